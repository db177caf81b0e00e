//! What agents did beyond their limits: one row for each agent and limit.

use rusqlite::{Row, named_params};
use tickbird_shared::Timestamp;

use super::column::{At, Seq};
use super::{Rows, StoreError, Transaction, sums};

/// How often an agent went over one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExcessRow {
    /// Tenant of the agent.
    pub tenant: String,
    /// The agent.
    pub agent: String,
    /// The code that it was refused with: `rate_limited`.
    pub limit: String,
    /// How often, since it is known; as added, how often more.
    pub times: u64,
    /// When it was written down last.
    pub last_at: Timestamp,
}

impl Rows<'_> {
    /// What the agents of a tenant did beyond their limits, from the one of `ids` to the other, in order of agent and limit.
    pub fn excesses(&self, tenant: &str, ids: (&str, &str)) -> Result<Vec<ExcessRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM excesses WHERE tenant = ?1 AND agent BETWEEN ?2 AND ?3 ORDER BY agent, \"limit\"",
        )?;
        Ok(query.query_map((tenant, ids.0, ids.1), read)?.collect::<Result<_, _>>()?)
    }

    /// The same of every agent of every tenant.
    pub fn all_excesses(&self) -> Result<Vec<ExcessRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM excesses ORDER BY tenant, agent, \"limit\"")?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Adds to what an agent did beyond one limit.
    pub fn add_excess(&self, more: &ExcessRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO excesses (tenant, agent, \"limit\", times, last_at) \
                 VALUES (:tenant, :agent, :limit, :times, :last_at) \
                 ON CONFLICT DO UPDATE SET times = times + excluded.times, last_at = excluded.last_at",
            )?
            .execute(named_params! {
                ":tenant": more.tenant,
                ":agent": more.agent,
                ":limit": more.limit,
                ":times": Seq(more.times),
                ":last_at": At(more.last_at),
            })?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<ExcessRow> {
    sums::check("excesses", row)?;
    Ok(ExcessRow {
        tenant: row.get("tenant")?,
        agent: row.get("agent")?,
        limit: row.get("limit")?,
        times: row.get::<_, Seq>("times")?.0,
        last_at: row.get::<_, At>("last_at")?.0,
    })
}
