//! How incidents returned.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row, params};
use tickbird_shared::{Severity, Timestamp};

use super::column::{At, Json, Word};
use super::{IncidentRow, Rows, StoreError, Transaction, sums};

/// How one incident returned lately.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FlapRow {
    /// When, the oldest first; as many as count.
    pub returns: Vec<Timestamp>,
    /// Since when it flaps.
    pub since: Option<Timestamp>,
    /// Since when it has gone away for now, while it flaps.
    pub calm_since: Option<Timestamp>,
    /// The highest severity that was told, while it flaps.
    pub worst: Option<Severity>,
}

impl Rows<'_> {
    /// Puts to incidents how they returned: `all` reads every row, else each is looked up.
    pub(super) fn with_flaps(&self, incidents: &mut [IncidentRow], all: bool) -> Result<(), StoreError> {
        if all {
            let mut query = self.0.prepare_cached("SELECT * FROM flaps")?;
            let rows = query.query_map([], |row| Ok(((row.get("tenant")?, row.get("incident")?), read(row)?)))?;
            let mut rows: HashMap<(String, String), FlapRow> = rows.collect::<Result<_, _>>()?;
            if rows.is_empty() {
                return Ok(());
            }
            for incident in incidents {
                incident.flap = rows.remove(&(incident.tenant.clone(), incident.id.clone())).map(Box::new);
            }
            return Ok(());
        }
        let mut query = self.0.prepare_cached("SELECT * FROM flaps WHERE tenant = ?1 AND incident = ?2")?;
        for incident in incidents.iter_mut().filter(|it| it.occurrences > 1) {
            incident.flap = query.query_row([&incident.tenant, &incident.id], read).optional()?.map(Box::new);
        }
        Ok(())
    }
}

impl Transaction<'_> {
    /// Writes how an incident returned, if it did.
    pub(super) fn put_flap(&self, incident: &IncidentRow) -> Result<(), StoreError> {
        let Some(flap) = &incident.flap else { return Ok(()) };
        if **flap == FlapRow::default() {
            let mut gone = self.connection().prepare_cached("DELETE FROM flaps WHERE tenant = ?1 AND incident = ?2")?;
            gone.execute([&incident.tenant, &incident.id])?;
            return Ok(());
        }
        let returns: Vec<_> = flap.returns.iter().map(|it| it.as_microsecond()).collect();
        self.connection()
            .prepare_cached(
                "INSERT INTO flaps (tenant, incident, returns, since, calm_since, worst) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                 ON CONFLICT DO UPDATE SET returns = excluded.returns, since = excluded.since, \
                 calm_since = excluded.calm_since, worst = excluded.worst",
            )?
            .execute(params![
                incident.tenant,
                incident.id,
                Json(&returns),
                flap.since.map(At),
                flap.calm_since.map(At),
                flap.worst.map(Severity::as_str),
            ])?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<FlapRow> {
    sums::check("flaps", row)?;
    let at = |name: &str| row.get::<_, Option<At>>(name).map(|it| it.map(|at| at.0));
    let returns = row.get::<_, Json<Vec<i64>>>("returns")?.0;
    Ok(FlapRow {
        returns: returns.into_iter().filter_map(|it| Timestamp::from_microsecond(it).ok()).collect(),
        since: at("since")?,
        calm_since: at("calm_since")?,
        worst: row.get::<_, Option<Word<_>>>("worst")?.map(|it| it.0),
    })
}
