//! Incidents, and what was decided about each of them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY;
use rusqlite::{OptionalExtension, Row, params};
use tickbird_shared::{Epoch, Severity, Status, Timestamp};

use super::column::{At, Bytes, Seq, Word};
use super::groups::is_told;
use super::{DecisionRow, IncidentRow, Rows, StoreError, Transaction, newest, sums};

/// Behind every ULID.
const AFTER_ALL: &str = "~";
/// All columns but the checksum, in their order.
const COLUMNS: &str = "tenant, id, fingerprint, agent, check_id, target, sub_key, status, severity, summary, advice, \
                       evidence, evidence_lost, since, opened_at, updated_at, resolved_at, resolved_reason, \
                       occurrences, state_epoch, state_since, seen_epoch, seen_at";

/// Which incidents to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct IncidentFilter {
    /// Only of this tenant.
    pub tenant: String,
    /// Only with this status.
    pub status: Option<Status>,
    /// Only with this severity.
    pub severity: Option<Severity>,
    /// Only of this check.
    pub check: Option<String>,
    /// Only of this agent.
    pub agent: Option<String>,
    /// Only ids below this one.
    pub before: Option<String>,
    /// At most so many.
    pub limit: u32,
}

impl Rows<'_> {
    /// Incidents of one tenant, those that first opened last in front.
    pub fn incidents(&self, filter: &IncidentFilter) -> Result<Vec<IncidentRow>, StoreError> {
        let of = newest::Filter {
            tenant: &filter.tenant,
            agent: filter.agent.as_deref(),
            check: filter.check.as_deref(),
            severity: filter.severity,
            status: filter.status,
        };
        let before = filter.before.clone().unwrap_or_else(|| AFTER_ALL.to_owned());
        let between = newest::Between { after: String::new(), before };
        let ids = newest::ids(self.0, "incidents", &of, between, filter.limit)?;
        let mut query = self.0.prepare_cached("SELECT * FROM incidents WHERE tenant = ?1 AND id = ?2")?;
        let rows = ids.iter().map(|id| newest::row(query.query_row([&filter.tenant, id], read)));
        let mut rows = rows.collect::<Result<Vec<_>, _>>()?;
        self.with_flaps(&mut rows, false)?;
        Ok(rows)
    }

    /// One incident, if it is there.
    pub fn incident(&self, tenant: &str, id: &str) -> Result<Option<IncidentRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM incidents WHERE tenant = ?1 AND id = ?2")?;
        let mut row = query.query_row([tenant, id], read).optional()?;
        self.with_flaps(row.as_mut_slice(), false)?;
        Ok(row)
    }

    /// What aggregate needs at start: all that fire, and those resolved at `since` or later. Every tenant.
    pub fn live_incidents(&self, since: Timestamp) -> Result<Vec<IncidentRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM incidents WHERE status = 'firing' \
             UNION ALL SELECT * FROM incidents WHERE status = 'resolved' AND resolved_at >= ?1",
        )?;
        let mut rows = query.query_map([At(since)], read)?.collect::<Result<Vec<_>, _>>()?;
        self.with_flaps(&mut rows, true)?;
        Ok(rows)
    }

    /// How many incidents of a tenant fire, by severity.
    pub fn firing_by_severity(&self, tenant: &str) -> Result<BTreeMap<Severity, u64>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT severity, count(*) FROM incidents WHERE tenant = ?1 AND status = 'firing' GROUP BY severity",
        )?;
        let rows = query.query_map([tenant], |row| Ok((row.get::<_, Word<_>>(0)?.0, row.get::<_, Seq>(1)?.0)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Every decision about one incident, oldest first.
    pub fn decisions(&self, tenant: &str, incident: &str) -> Result<Vec<DecisionRow>, StoreError> {
        static QUERY: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT *, {} AS is_told FROM decisions WHERE tenant = ?1 AND incident = ?2 ORDER BY state_epoch, receiver",
                is_told()
            )
        });
        let mut query = self.0.prepare_cached(&QUERY)?;
        Ok(query.query_map([tenant, incident], read_decision)?.collect::<Result<_, _>>()?)
    }

    /// The newest decisions about one incident, at most so many, the oldest of them first.
    pub fn newest_decisions(&self, tenant: &str, incident: &str, limit: u32) -> Result<Vec<DecisionRow>, StoreError> {
        static QUERY: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT *, {} AS is_told FROM decisions WHERE tenant = ?1 AND incident = ?2 \
                     AND state_epoch >= (SELECT coalesce(min(state_epoch), 0) FROM (SELECT state_epoch FROM decisions \
                         WHERE tenant = ?1 AND incident = ?2 ORDER BY state_epoch DESC LIMIT ?3)) \
                 ORDER BY state_epoch, receiver",
                is_told()
            )
        });
        let mut query = self.0.prepare_cached(&QUERY)?;
        Ok(query.query_map((tenant, incident, limit), read_decision)?.collect::<Result<_, _>>()?)
    }

    /// What fires and a receiver was told of, and not that it is over: what it believes.
    pub fn believed_by(&self, receiver: &str) -> Result<Vec<IncidentRow>, StoreError> {
        static QUERY: LazyLock<String> = LazyLock::new(|| {
            format!(
                "SELECT * FROM incidents WHERE status = 'firing' AND 'incident.resolved' <> \
                     (SELECT kind FROM decisions WHERE tenant = incidents.tenant AND incident = incidents.id \
                      AND receiver = ?1 AND {} ORDER BY state_epoch DESC LIMIT 1)",
                is_told()
            )
        });
        let mut query = self.0.prepare_cached(&QUERY)?;
        Ok(query.query_map([receiver], read)?.collect::<Result<_, _>>()?)
    }

    /// The newest decision that queued a message, per incident and receiver, of the incidents of
    /// [`Rows::live_incidents`]: who believes what.
    pub fn told(&self, since: Timestamp) -> Result<Vec<DecisionRow>, StoreError> {
        static QUERY: LazyLock<String> = LazyLock::new(|| {
            format!(
                "WITH live AS (SELECT tenant, id FROM incidents WHERE status = 'firing' \
                     UNION ALL SELECT tenant, id FROM incidents WHERE status = 'resolved' AND resolved_at >= ?1) \
                 SELECT decisions.*, 1 AS is_told, max(state_epoch) FROM live \
                     JOIN decisions ON decisions.tenant = live.tenant AND decisions.incident = live.id AND {} \
                 GROUP BY decisions.tenant, decisions.incident, decisions.receiver",
                is_told()
            )
        });
        let mut query = self.0.prepare_cached(&QUERY)?;
        Ok(query.query_map([At(since)], read_decision)?.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Writes the whole row of an incident, new or known.
    pub fn put_incident(&self, incident: &IncidentRow) -> Result<(), StoreError> {
        if !self.update_incident(incident)? {
            self.add_incident(incident)?;
        }
        self.put_flap(incident)
    }

    /// Writes an incident that is new.
    pub fn add_incident(&self, incident: &IncidentRow) -> Result<(), StoreError> {
        let added = self
            .connection()
            .prepare_cached(
                "INSERT INTO incidents (tenant, id, fingerprint, agent, check_id, target, sub_key, status, severity, \
                 summary, advice, evidence, evidence_lost, since, opened_at, updated_at, resolved_at, resolved_reason, \
                 occurrences, state_epoch, state_since, seen_epoch, seen_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)",
            )?
            .execute(params![
                incident.tenant,
                incident.id,
                incident.fingerprint.as_bytes(),
                incident.agent,
                incident.check,
                incident.target,
                incident.sub_key,
                incident.status.as_str(),
                incident.severity.as_str(),
                incident.summary,
                incident.advice,
                incident.evidence,
                incident.evidence_lost,
                At(incident.since),
                At(incident.opened_at),
                At(incident.updated_at),
                incident.resolved_at.map(At),
                incident.resolved_reason,
                incident.occurrences,
                Seq(incident.state_epoch),
                At(incident.state_since),
                incident.seen_epoch.as_ref().map(Epoch::as_str),
                At(incident.seen_at),
            ]);
        match added {
            // It is there, and was left alone.
            Err(rusqlite::Error::SqliteFailure(error, _)) if error.extended_code == SQLITE_CONSTRAINT_PRIMARYKEY => {
                Err(sums::refusal("incidents").into())
            }
            added => Ok(added.map(drop)?),
        }
    }

    /// Writes what may change of an incident; false when it is not there, or not as it was written. An upsert would compute the
    /// checksum of a row that is never written. Values go by their numbers: to look them up by name takes as long as an index.
    fn update_incident(&self, incident: &IncidentRow) -> Result<bool, StoreError> {
        static UPDATE: LazyLock<String> = LazyLock::new(|| {
            format!(
                "UPDATE incidents SET status = ?3, severity = ?4, summary = ?5, advice = ?6, evidence = ?7, \
                 evidence_lost = ?8, since = ?9, opened_at = ?10, updated_at = ?11, resolved_at = ?12, \
                 resolved_reason = ?13, occurrences = ?14, state_epoch = ?15, state_since = ?16, seen_epoch = ?17, \
                 seen_at = ?18 WHERE tenant = ?1 AND id = ?2 AND {}",
                sums::is_whole("incidents", COLUMNS)
            )
        });
        let changed = self.connection().prepare_cached(&UPDATE)?.execute(params![
            incident.tenant,
            incident.id,
            incident.status.as_str(),
            incident.severity.as_str(),
            incident.summary,
            incident.advice,
            incident.evidence,
            incident.evidence_lost,
            At(incident.since),
            At(incident.opened_at),
            At(incident.updated_at),
            incident.resolved_at.map(At),
            incident.resolved_reason,
            incident.occurrences,
            Seq(incident.state_epoch),
            At(incident.state_since),
            incident.seen_epoch.as_ref().map(Epoch::as_str),
            At(incident.seen_at),
        ])?;
        Ok(changed > 0)
    }

    /// Writes a decision; false when this (incident, receiver, state epoch) was decided before, which then stands.
    pub fn add_decision(&self, decision: &DecisionRow) -> Result<bool, StoreError> {
        let added = self
            .connection()
            .prepare_cached(
                "INSERT OR IGNORE INTO decisions (tenant, incident, receiver, state_epoch, told, kind, reason, \
                 decided_at, message, in_group) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                decision.tenant,
                decision.incident,
                decision.receiver,
                Seq(decision.state_epoch),
                decision.told,
                decision.kind,
                decision.reason,
                At(decision.decided_at),
                decision.message,
                decision.in_group,
            ])?;
        Ok(added > 0)
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<IncidentRow> {
    sums::check("incidents", row)?;
    Ok(IncidentRow {
        tenant: row.get("tenant")?,
        id: row.get("id")?,
        fingerprint: row.get::<_, Bytes<16>>("fingerprint")?.0.into(),
        agent: row.get("agent")?,
        check: row.get("check_id")?,
        target: row.get("target")?,
        sub_key: row.get("sub_key")?,
        status: row.get::<_, Word<_>>("status")?.0,
        severity: row.get::<_, Word<_>>("severity")?.0,
        summary: row.get("summary")?,
        advice: row.get("advice")?,
        evidence: row.get("evidence")?,
        evidence_lost: row.get("evidence_lost")?,
        since: row.get::<_, At>("since")?.0,
        opened_at: row.get::<_, At>("opened_at")?.0,
        updated_at: row.get::<_, At>("updated_at")?.0,
        resolved_at: row.get::<_, Option<At>>("resolved_at")?.map(|at| at.0),
        resolved_reason: row.get("resolved_reason")?,
        occurrences: row.get("occurrences")?,
        state_epoch: row.get::<_, Seq>("state_epoch")?.0,
        state_since: row.get::<_, At>("state_since")?.0,
        seen_epoch: row.get::<_, Option<Word<_>>>("seen_epoch")?.map(|epoch| epoch.0),
        seen_at: row.get::<_, At>("seen_at")?.0,
        flap: None,
    })
}

pub(super) fn read_decision(row: &Row<'_>) -> rusqlite::Result<DecisionRow> {
    sums::check("decisions", row)?;
    Ok(DecisionRow {
        tenant: row.get("tenant")?,
        incident: row.get("incident")?,
        receiver: row.get("receiver")?,
        state_epoch: row.get::<_, Seq>("state_epoch")?.0,
        told: match row.as_ref().column_index("is_told") {
            Ok(place) => row.get(place)?,
            Err(_) => row.get("told")?,
        },
        kind: row.get("kind")?,
        reason: row.get("reason")?,
        decided_at: row.get::<_, At>("decided_at")?.0,
        message: row.get("message")?,
        // A store of an older schema is read as well, by who only repairs it.
        in_group: match row.as_ref().column_index("in_group") {
            Ok(place) => row.get(place)?,
            Err(_) => None,
        },
    })
}
