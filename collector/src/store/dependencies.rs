//! Which servers are used from the host of an agent.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};
use tickbird_shared::Timestamp;

use super::column::{At, Json};
use super::{Rows, StoreError, Transaction, sums};

/// What one agent knows of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Targets of pools that lead there.
    pub pools: BTreeSet<String>,
    /// The applications that hold them.
    pub applications: BTreeSet<String>,
    /// What else the server is called, as far as the agent asks it.
    pub names: BTreeSet<String>,
    /// When this was true last.
    pub seen_at: Timestamp,
}

/// By the identity of a server.
pub type Edges = BTreeMap<String, Edge>;

/// What one agent's sockets said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DependencyRow {
    /// Tenant of the agent.
    pub tenant: String,
    /// The agent.
    pub agent: String,
    /// Servers that are used from its host.
    pub edges: Edges,
    /// When it was written.
    pub seen_at: Timestamp,
}

impl Rows<'_> {
    /// Those of every agent.
    pub fn dependencies(&self) -> Result<Vec<DependencyRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM dependencies")?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Keeps what an agent's sockets said in place of what they said before.
    pub fn put_dependencies(&self, row: &DependencyRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT OR REPLACE INTO dependencies (tenant, agent, edges, seen_at) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![row.tenant, row.agent, Json(&row.edges), At(row.seen_at)])?;
        Ok(())
    }

    /// Forgets what an agent's sockets said.
    pub fn delete_dependencies(&self, tenant: &str, agent: &str) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("DELETE FROM dependencies WHERE tenant = ?1 AND agent = ?2")?
            .execute([tenant, agent])?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<DependencyRow> {
    sums::check("dependencies", row)?;
    Ok(DependencyRow {
        tenant: row.get("tenant")?,
        agent: row.get("agent")?,
        edges: row.get::<_, Json<_>>("edges")?.0,
        seen_at: row.get::<_, At>("seen_at")?.0,
    })
}
