//! Findings, in the order they were received.

use rusqlite::{Row, params};
use tickbird_shared::{Change, Severity, Status, Timestamp};

use super::column::{At, Bytes, Seq, Word};
use super::{FindingRow, Rows, StoreError, Transaction, newest, sums};

/// Which findings to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct FindingFilter {
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
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

impl Rows<'_> {
    /// Findings of one tenant, newest first.
    pub fn findings(&self, filter: &FindingFilter) -> Result<Vec<FindingRow>, StoreError> {
        let of = newest::Filter {
            tenant: &filter.tenant,
            agent: filter.agent.as_deref(),
            check: filter.check.as_deref(),
            severity: filter.severity,
            status: filter.status,
        };
        let between = newest::Between { after: 0, before: filter.before.unwrap_or(i64::MAX) };
        let ids = newest::ids(self.0, "findings", &of, between, filter.limit)?;
        let mut query = self.0.prepare_cached("SELECT * FROM findings WHERE id = ?1")?;
        ids.iter().map(|id| newest::row(query.query_row([id], read))).collect()
    }

    /// How often a check began to fail since then, target by target; at most ten thousand targets.
    pub fn began_by_target(
        &self,
        tenant: &str,
        check: &str,
        since: Timestamp,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT target, count(*) FROM findings \
             WHERE tenant = ?1 AND check_id = ?2 AND change = ?3 AND received_at >= ?4 GROUP BY target LIMIT 10000",
        )?;
        let rows = query.query_map((tenant, check, Word(Change::Began), At(since)), |row| {
            Ok((row.get(0)?, row.get::<_, Seq>(1)?.0))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Appends a finding and says its id.
    pub fn add_finding(&self, finding: &FindingRow) -> Result<i64, StoreError> {
        let connection = self.connection();
        connection
            .prepare_cached(
                "INSERT INTO findings (tenant, agent, fingerprint, check_id, target, sub_key, status, severity, change, \
                 summary, reason, advice, evidence, since, observed_at, received_at, incident) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
            )?
            .execute(params![
                finding.tenant,
                finding.agent,
                finding.fingerprint.as_bytes(),
                finding.check,
                finding.target,
                finding.sub_key,
                finding.status.as_str(),
                finding.severity.as_str(),
                Word(finding.change),
                finding.summary,
                finding.reason,
                finding.advice,
                finding.evidence,
                At(finding.since),
                At(finding.observed_at),
                At(finding.received_at),
                finding.incident,
            ])?;
        Ok(connection.last_insert_rowid())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<FindingRow> {
    sums::check("findings", row)?;
    Ok(FindingRow {
        id: row.get("id")?,
        tenant: row.get("tenant")?,
        agent: row.get("agent")?,
        fingerprint: row.get::<_, Bytes<16>>("fingerprint")?.0.into(),
        check: row.get("check_id")?,
        target: row.get("target")?,
        sub_key: row.get("sub_key")?,
        status: row.get::<_, Word<_>>("status")?.0,
        severity: row.get::<_, Word<_>>("severity")?.0,
        change: row.get::<_, Word<_>>("change")?.0,
        summary: row.get("summary")?,
        reason: row.get("reason")?,
        advice: row.get("advice")?,
        evidence: row.get("evidence")?,
        since: row.get::<_, At>("since")?.0,
        observed_at: row.get::<_, At>("observed_at")?.0,
        received_at: row.get::<_, At>("received_at")?.0,
        incident: row.get("incident")?,
    })
}
