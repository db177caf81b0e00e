//! How far the steps of routes have come with what they told.

use std::collections::BTreeMap;

use rusqlite::{Row, named_params};
use tickbird_shared::Timestamp;

use super::column::{At, Json};
use super::{Rows, StoreError, Transaction, sums};

/// Since when an incident that a receiver was told of is nobody's, and what became of the steps of its route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EscalationRow {
    /// Tenant of the incident.
    pub tenant: String,
    /// The incident.
    pub incident: String,
    /// Who was told by a route with steps.
    pub receiver: String,
    /// From when on time counts.
    pub since: Timestamp,
    /// Steps whose time has come, by their names (`1 boss`): `told`, `held back` and so on.
    pub steps: BTreeMap<String, String>,
}

impl Rows<'_> {
    /// Those of every tenant.
    pub fn escalations(&self) -> Result<Vec<EscalationRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM escalations ORDER BY tenant, incident, receiver")?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }

    /// Those of one incident.
    pub fn escalations_of(&self, tenant: &str, incident: &str) -> Result<Vec<EscalationRow>, StoreError> {
        let mut query =
            self.0.prepare_cached("SELECT * FROM escalations WHERE tenant = ?1 AND incident = ?2 ORDER BY receiver")?;
        Ok(query.query_map([tenant, incident], read)?.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Writes how far one has come.
    pub fn put_escalation(&self, row: &EscalationRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO escalations (tenant, incident, receiver, since, steps) \
                 VALUES (:tenant, :incident, :receiver, :since, :steps) \
                 ON CONFLICT DO UPDATE SET since = excluded.since, steps = excluded.steps",
            )?
            .execute(named_params! {
                ":tenant": row.tenant,
                ":incident": row.incident,
                ":receiver": row.receiver,
                ":since": At(row.since),
                ":steps": Json(&row.steps),
            })?;
        Ok(())
    }

    /// Forgets one: its incident is over.
    pub fn delete_escalation(&self, tenant: &str, incident: &str, receiver: &str) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("DELETE FROM escalations WHERE tenant = ?1 AND incident = ?2 AND receiver = ?3")?
            .execute((tenant, incident, receiver))?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<EscalationRow> {
    sums::check("escalations", row)?;
    Ok(EscalationRow {
        tenant: row.get("tenant")?,
        incident: row.get("incident")?,
        receiver: row.get("receiver")?,
        since: row.get::<_, At>("since")?.0,
        steps: row.get::<_, Json<_>>("steps")?.0,
    })
}
