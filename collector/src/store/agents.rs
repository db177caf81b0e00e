//! Agents: who was enrolled, what they said of themselves, when they were last heard.

use rusqlite::{OptionalExtension, Row, named_params};
use tickbird_shared::Timestamp;

use super::column::{At, Json};
use super::{AgentRow, Rows, StoreError, Transaction, sums};

/// Which agents to list, in order of id.
#[derive(Debug, Clone, Default)]
pub struct AgentFilter {
    /// Only of this tenant.
    pub tenant: String,
    /// Only ids after this one.
    pub after: Option<String>,
    /// At most so many.
    pub limit: u32,
}

impl AgentRow {
    /// When it was last heard; of one that never was, when it was enrolled.
    pub fn last_heard(&self) -> Timestamp {
        self.last_seen_at.unwrap_or(self.enrolled_at)
    }
}

impl Rows<'_> {
    /// Agents of one tenant, in order of id.
    pub fn agents(&self, filter: &AgentFilter) -> Result<Vec<AgentRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM agents WHERE tenant = :tenant AND id > coalesce(:after, '') ORDER BY id LIMIT :limit",
        )?;
        let rows = query.query_map(
            named_params! { ":tenant": filter.tenant, ":after": filter.after, ":limit": filter.limit },
            read,
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Every agent of every tenant.
    pub fn all_agents(&self) -> Result<Vec<AgentRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM agents ORDER BY tenant, id")?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }

    /// Ids of all agents of one tenant, in order.
    pub fn agent_ids(&self, tenant: &str) -> Result<Vec<String>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT id FROM agents WHERE tenant = ?1 ORDER BY id")?;
        Ok(query.query_map([tenant], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// One agent, if it is known.
    pub fn agent(&self, tenant: &str, id: &str) -> Result<Option<AgentRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM agents WHERE tenant = ?1 AND id = ?2")?;
        Ok(query.query_row([tenant, id], read).optional()?)
    }
}

impl Transaction<'_> {
    /// Writes the whole row of an agent, new or known.
    ///
    /// What an operator's command wrote in the meantime stays: a ledger that has not read it yet must not undo it.
    pub fn put_agent(&self, agent: &AgentRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO agents (tenant, id, host, version, system, token_labels, own_labels, targets, \
                 ephemeral, enrolled_at, certificate_expires_at, denied_at, forget_at, last_seen_at, stopped_at) \
                 VALUES (:tenant, :id, :host, :version, :system, :token_labels, :own_labels, :targets, \
                 :ephemeral, :enrolled_at, :certificate_expires_at, :denied_at, :forget_at, :last_seen_at, :stopped_at) \
                 ON CONFLICT (tenant, id) DO UPDATE SET host = excluded.host, version = excluded.version, \
                 system = excluded.system, token_labels = excluded.token_labels, own_labels = excluded.own_labels, \
                 targets = excluded.targets, ephemeral = excluded.ephemeral, enrolled_at = excluded.enrolled_at, \
                 certificate_expires_at = excluded.certificate_expires_at, \
                 denied_at = coalesce(denied_at, excluded.denied_at), \
                 forget_at = coalesce(forget_at, excluded.forget_at), \
                 last_seen_at = excluded.last_seen_at, stopped_at = excluded.stopped_at",
            )?
            .execute(named_params! {
                ":tenant": agent.tenant,
                ":id": agent.id,
                ":host": agent.host,
                ":version": agent.version,
                ":system": agent.system,
                ":token_labels": Json(&agent.token_labels),
                ":own_labels": Json(&agent.own_labels),
                ":targets": Json(&agent.targets),
                ":ephemeral": agent.ephemeral,
                ":enrolled_at": At(agent.enrolled_at),
                ":certificate_expires_at": At(agent.certificate_expires_at),
                ":denied_at": agent.denied_at.map(At),
                ":forget_at": agent.forget_at.map(At),
                ":last_seen_at": agent.last_seen_at.map(At),
                ":stopped_at": agent.stopped_at.map(At),
            })?;
        Ok(())
    }

    /// Writes when an agent was last heard and whether it said goodbye, and nothing else of it.
    pub fn mark_seen(&self, agent: &AgentRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("UPDATE agents SET last_seen_at = ?3, stopped_at = ?4 WHERE tenant = ?1 AND id = ?2")?
            .execute((&agent.tenant, &agent.id, agent.last_seen_at.map(At), agent.stopped_at.map(At)))?;
        Ok(())
    }

    /// Denies an agent; false when there is no such agent. Denying twice keeps the first time.
    pub fn deny_agent(&self, tenant: &str, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let changed = self
            .connection()
            .prepare_cached("UPDATE agents SET denied_at = coalesce(denied_at, ?3) WHERE tenant = ?1 AND id = ?2")?
            .execute((tenant, id, At(now)))?;
        Ok(changed > 0)
    }

    /// Asks the ledger to forget an agent; false when there is no such agent.
    pub fn ask_to_forget_agent(&self, tenant: &str, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let changed = self
            .connection()
            .prepare_cached("UPDATE agents SET forget_at = coalesce(forget_at, ?3) WHERE tenant = ?1 AND id = ?2")?
            .execute((tenant, id, At(now)))?;
        Ok(changed > 0)
    }

    /// Deletes an agent, its levels, its excesses and how far it was received. Its findings, incidents and losses stay as history.
    pub fn delete_agent(&self, tenant: &str, id: &str) -> Result<(), StoreError> {
        let connection = self.connection();
        connection.prepare_cached("DELETE FROM lanes WHERE tenant = ?1 AND agent = ?2")?.execute([tenant, id])?;
        connection.prepare_cached("DELETE FROM levels WHERE tenant = ?1 AND agent = ?2")?.execute([tenant, id])?;
        connection.prepare_cached("DELETE FROM excesses WHERE tenant = ?1 AND agent = ?2")?.execute([tenant, id])?;
        connection.prepare_cached("DELETE FROM agents WHERE tenant = ?1 AND id = ?2")?.execute([tenant, id])?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<AgentRow> {
    sums::check("agents", row)?;
    let time = |column: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<At>>(column)?.map(|at| at.0));
    Ok(AgentRow {
        tenant: row.get("tenant")?,
        id: row.get("id")?,
        host: row.get("host")?,
        version: row.get("version")?,
        system: row.get("system")?,
        token_labels: row.get::<_, Json<_>>("token_labels")?.0,
        own_labels: row.get::<_, Json<_>>("own_labels")?.0,
        targets: row.get::<_, Json<_>>("targets")?.0,
        ephemeral: row.get("ephemeral")?,
        enrolled_at: row.get::<_, At>("enrolled_at")?.0,
        certificate_expires_at: row.get::<_, At>("certificate_expires_at")?.0,
        denied_at: time("denied_at")?,
        forget_at: time("forget_at")?,
        last_seen_at: time("last_seen_at")?,
        stopped_at: time("stopped_at")?,
    })
}
