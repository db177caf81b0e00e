//! The newest levels of each agent, and how much of their pools applications used.

use rusqlite::{Row, named_params};
use tickbird_shared::Timestamp;

use super::column::{At, Json, Seq, Word};
use super::{LevelsRow, Rows, StoreError, Transaction, UseRow, sums};

impl Rows<'_> {
    /// The newest levels of every agent.
    pub fn levels(&self) -> Result<Vec<LevelsRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM levels")?;
        let rows = query.query_map([], read_levels)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What was used on the days from `since`, of every tenant.
    pub fn pool_use(&self, since: Timestamp) -> Result<Vec<UseRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM pool_use WHERE day >= ?1")?;
        let rows = query.query_map([At(since)], read_use)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Keeps the levels of an agent instead of its earlier ones.
    pub fn put_levels(&self, levels: &LevelsRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT OR REPLACE INTO levels (tenant, agent, epoch, seen_at, received_at, levels) \
                 VALUES (:tenant, :agent, :epoch, :seen_at, :received_at, :levels)",
            )?
            .execute(named_params! {
                ":tenant": levels.tenant,
                ":agent": levels.agent,
                ":epoch": levels.epoch.as_str(),
                ":seen_at": At(levels.seen_at),
                ":received_at": At(levels.received_at),
                ":levels": Json(&levels.levels),
            })?;
        Ok(())
    }

    /// Forgets the levels of an agent.
    pub fn delete_levels(&self, tenant: &str, agent: &str) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("DELETE FROM levels WHERE tenant = ?1 AND agent = ?2")?
            .execute([tenant, agent])?;
        Ok(())
    }

    /// Keeps what was used on one day instead of what was known of it.
    pub fn put_pool_use(&self, row: &UseRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT OR REPLACE INTO pool_use \
                 (tenant, server, application, day, samples, peak, peak_open, counts) \
                 VALUES (:tenant, :server, :application, :day, :samples, :peak, :peak_open, :counts)",
            )?
            .execute(named_params! {
                ":tenant": row.tenant,
                ":server": row.server,
                ":application": row.application,
                ":day": At(row.day),
                ":samples": Seq(row.samples),
                ":peak": row.peak,
                ":peak_open": row.peak_open,
                ":counts": Json(&row.counts),
            })?;
        Ok(())
    }
}

pub(super) fn read_levels(row: &Row<'_>) -> rusqlite::Result<LevelsRow> {
    sums::check("levels", row)?;
    Ok(LevelsRow {
        tenant: row.get("tenant")?,
        agent: row.get("agent")?,
        epoch: row.get::<_, Word<_>>("epoch")?.0,
        seen_at: row.get::<_, At>("seen_at")?.0,
        received_at: row.get::<_, At>("received_at")?.0,
        levels: row.get::<_, Json<_>>("levels")?.0,
    })
}

pub(super) fn read_use(row: &Row<'_>) -> rusqlite::Result<UseRow> {
    sums::check("pool_use", row)?;
    Ok(UseRow {
        tenant: row.get("tenant")?,
        server: row.get("server")?,
        application: row.get("application")?,
        day: row.get::<_, At>("day")?.0,
        samples: row.get::<_, Seq>("samples")?.0,
        peak: row.get("peak")?,
        peak_open: row.get("peak_open")?,
        counts: row.get::<_, Json<_>>("counts")?.0,
    })
}
