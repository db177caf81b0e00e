//! Groups of incidents that are told together, and what waits for their next message.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use rusqlite::{OptionalExtension, Row, named_params};
use tickbird_shared::Timestamp;

use super::column::{At, Json, Seq};
use super::incidents::read_decision;
use super::{DecisionRow, OutboxRow, Rows, StoreError, Transaction, outbox, sums};

/// A decision waits while its group waits with the message that it names. Otherwise it was told with that, and is not written
/// again to say so: fifty thousand incidents are told in one message.
pub(super) const WAITS: &str = "EXISTS (SELECT 1 FROM alert_groups WHERE alert_groups.tenant = decisions.tenant \
     AND alert_groups.id = decisions.in_group AND alert_groups.message = decisions.message)";

/// Whether a decision was told, by itself or with its group.
pub(super) fn is_told() -> String {
    format!("(decisions.told = 1 OR decisions.message IS NOT NULL AND NOT {WAITS})")
}

/// How old a decision may be that is taken for one whose group was lost: messages are kept for longer.
const LOST: Duration = Duration::from_secs(3600);

/// One receiver's incidents that are told together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRow {
    /// Tenant of its incidents.
    pub tenant: String,
    /// `grp_` and 32 hexadecimal digits; the same for the same receiver, route and labels.
    pub id: String,
    /// Who is told.
    pub receiver: String,
    /// Where the route stands that made it: `route.routes[1]`.
    pub route: String,
    /// What its incidents have in common because the route groups by it.
    pub labels: BTreeMap<String, String>,
    /// Id of its next message, while something waits for it.
    pub message: Option<String>,
    /// When that is to be told.
    pub due_at: Option<Timestamp>,
    /// When a message of it was last queued.
    pub told_at: Option<Timestamp>,
}

/// What groups had to do with an incident.
#[derive(Debug, Default)]
pub struct Gathering {
    /// Those that are still there, by their ids.
    pub groups: BTreeMap<String, GroupRow>,
    /// Messages that told again what was known, in order.
    pub repeats: Vec<OutboxRow>,
}

impl Rows<'_> {
    /// All groups of every tenant.
    pub fn groups(&self) -> Result<Vec<GroupRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM alert_groups ORDER BY tenant, id")?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }

    /// One group, while something of it fires or waits.
    pub fn group(&self, tenant: &str, id: &str) -> Result<Option<GroupRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM alert_groups WHERE tenant = ?1 AND id = ?2")?;
        Ok(query.query_row([tenant, id], read).optional()?)
    }

    /// Groups of some decisions that are still there, by their ids, and what was told of them again while nothing was new: from the
    /// first that was told of the incident to the end of it, the newest of them.
    pub fn groups_of(&self, decisions: &[DecisionRow], limit: u32) -> Result<Gathering, StoreError> {
        let mut found = Gathering::default();
        let mut query = self.0.prepare_cached(
            "SELECT * FROM outbox WHERE tenant = ?1 AND incident = ?2 AND kind = 'group.repeated' \
                 AND id > ?3 AND (?4 IS NULL OR id < ?4) ORDER BY id DESC LIMIT ?5",
        )?;
        let ids: BTreeSet<_> = decisions.iter().filter_map(|it| Some((&it.tenant, it.in_group.as_ref()?))).collect();
        for (tenant, id) in ids {
            found.groups.extend(self.group(tenant, id)?.map(|row| (id.clone(), row)));
            let told = decisions.iter().filter(|it| it.told && it.in_group.as_ref() == Some(id));
            let (mut first, mut last) = (None, None);
            for (message, is_end) in
                told.filter_map(|it| Some((it.message.as_deref()?, it.kind == "incident.resolved")))
            {
                first = first.or(Some(message));
                last = is_end.then_some(message);
            }
            if let Some(first) = first {
                let rows = query.query_map((tenant, id, first, last, limit), outbox::read)?;
                found.repeats.extend(rows.collect::<Result<Vec<_>, _>>()?);
            }
        }
        found.repeats.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// Every decision that waits for the next message of its group; of one incident and receiver the oldest first. Of a group that was
    /// lost with its page, those of the last hour that no message told. Sorted here: in the order of the key SQLite would read every
    /// decision there is.
    pub fn gathered(&self, now: Timestamp) -> Result<Vec<DecisionRow>, StoreError> {
        let mut of_groups = self.0.prepare_cached(
            "SELECT decisions.* FROM alert_groups CROSS JOIN decisions INDEXED BY decisions_gathered \
                 ON decisions.tenant = alert_groups.tenant AND decisions.message = alert_groups.message \
             WHERE alert_groups.message IS NOT NULL AND told = 0 AND decisions.message IS NOT NULL",
        )?;
        let mut of_none = self.0.prepare_cached(
            "WITH live AS (SELECT tenant, id FROM incidents WHERE status = 'firing' \
                 UNION ALL SELECT tenant, id FROM incidents WHERE status = 'resolved' AND resolved_at >= ?1) \
             SELECT decisions.* FROM live \
                 JOIN decisions ON decisions.tenant = live.tenant AND decisions.incident = live.id \
             WHERE told = 0 AND message IS NOT NULL AND decided_at >= ?1 \
                 AND NOT EXISTS (SELECT 1 FROM alert_groups WHERE alert_groups.tenant = decisions.tenant AND id = in_group) \
                 AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.tenant = decisions.tenant AND outbox.id = message)",
        )?;
        let mut found: Vec<DecisionRow> = of_groups.query_map([], read_decision)?.collect::<Result<_, _>>()?;
        let since = now.saturating_sub(LOST).unwrap_or(Timestamp::MIN);
        for row in of_none.query_map([At(since)], read_decision)? {
            found.push(row?);
        }
        found.sort_by(|a, b| {
            let key =
                |it: &'_ DecisionRow| (it.tenant.clone(), it.incident.clone(), it.receiver.clone(), it.state_epoch);
            key(a).cmp(&key(b))
        });
        Ok(found)
    }
}

impl Transaction<'_> {
    /// Writes a group, new or known.
    pub fn put_group(&self, group: &GroupRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO alert_groups (tenant, id, receiver, route, labels, message, due_at, told_at) \
                 VALUES (:tenant, :id, :receiver, :route, :labels, :message, :due_at, :told_at) \
                 ON CONFLICT DO UPDATE SET route = excluded.route, labels = excluded.labels, \
                     message = excluded.message, due_at = excluded.due_at, told_at = excluded.told_at",
            )?
            .execute(named_params! {
                ":tenant": group.tenant,
                ":id": group.id,
                ":receiver": group.receiver,
                ":route": group.route,
                ":labels": Json(&group.labels),
                ":message": group.message,
                ":due_at": group.due_at.map(At),
                ":told_at": group.told_at.map(At),
            })?;
        Ok(())
    }

    /// Forgets a group of which nothing fires or waits.
    pub fn delete_group(&self, tenant: &str, id: &str) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("DELETE FROM alert_groups WHERE tenant = ?1 AND id = ?2")?
            .execute((tenant, id))?;
        Ok(())
    }

    /// What was decided of an incident before a state epoch (or of every one) does not wait for a group any more, and why; while its
    /// group waits still, or was lost with it.
    pub fn ungather(
        &self,
        tenant: &str,
        incident: &str,
        receiver: &str,
        before: Option<u64>,
        why: &str,
    ) -> Result<(), StoreError> {
        static UNGATHER: LazyLock<String> = LazyLock::new(|| {
            format!(
                "UPDATE decisions SET message = NULL, in_group = NULL, reason = reason || '; ' || ?5 \
                 WHERE tenant = ?1 AND incident = ?2 AND receiver = ?3 AND (?4 IS NULL OR state_epoch < ?4) \
                     AND told = 0 AND message IS NOT NULL AND ({WAITS} \
                         OR NOT EXISTS (SELECT 1 FROM alert_groups WHERE alert_groups.tenant = ?1 AND id = in_group) \
                             AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.tenant = ?1 AND outbox.id = message))"
            )
        });
        self.connection().prepare_cached(&UNGATHER)?.execute((tenant, incident, receiver, before.map(Seq), why))?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<GroupRow> {
    sums::check("alert_groups", row)?;
    Ok(GroupRow {
        tenant: row.get("tenant")?,
        id: row.get("id")?,
        receiver: row.get("receiver")?,
        route: row.get("route")?,
        labels: row.get::<_, Json<_>>("labels")?.0,
        message: row.get("message")?,
        due_at: row.get::<_, Option<At>>("due_at")?.map(|at| at.0),
        told_at: row.get::<_, Option<At>>("told_at")?.map(|at| at.0),
    })
}
