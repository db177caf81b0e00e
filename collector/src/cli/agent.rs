//! `agent …`: who is enrolled, who may not send any more.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::json;

use super::table::{labels, plain, table, time};
use super::{CliError, Where, now};
use crate::store::{AgentRow, StoreError, Transaction};
use crate::token::DEFAULT_TENANT;

#[derive(Debug, Subcommand)]
pub(super) enum Agent {
    List(List),
    Deny(Deny),
    Forget(Forget),
}

/// Lists the agents that are enrolled, and how often each was refused for going over its limits.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    at: Where,
}

/// Denies an agent: its connections close within five seconds and its certificate opens none any more.
///
/// Its incidents stay as they are. To let the host back in, enrol it again.
#[derive(Debug, Args)]
pub(super) struct Deny {
    /// As in the list.
    id: String,
    #[command(flatten)]
    at: Where,
}

/// Forgets an agent that is gone for good: resolves its incidents and closes it out.
///
/// A serving collector does it within seconds, one that does not serve at its next start. Findings and incidents stay
/// as history.
#[derive(Debug, Args)]
pub(super) struct Forget {
    /// As in the list.
    id: String,
    #[command(flatten)]
    at: Where,
}

impl Agent {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self {
            Self::List(it) => it.run(),
            Self::Deny(it) => {
                mark(&it.at, &it.id, |transaction| transaction.deny_agent(DEFAULT_TENANT, &it.id, now()))?;
                it.at.print(&json!({ "id": it.id, "denied": true }), || format!("{} is denied", it.id))
            }
            Self::Forget(it) => {
                mark(&it.at, &it.id, |transaction| transaction.ask_to_forget_agent(DEFAULT_TENANT, &it.id, now()))?;
                it.at.print(&json!({ "id": it.id, "forgotten": true }), || format!("{} will be forgotten", it.id))
            }
        }
    }
}

/// What the ledger finds and acts upon.
fn mark(at: &Where, id: &str, set: impl FnOnce(&Transaction<'_>) -> Result<bool, StoreError>) -> Result<(), CliError> {
    let mut writer = at.writer()?;
    let transaction = writer.transaction()?;
    if !set(&transaction)? {
        return Err(CliError::Unknown { kind: "agent", id: id.into() });
    }
    Ok(transaction.commit()?)
}

impl List {
    fn run(self) -> Result<(), CliError> {
        let writer = self.at.writer()?;
        let agents = writer.rows().all_agents()?;
        // By tenant and agent; those of one stand together.
        let mut excesses: BTreeMap<(String, String), BTreeMap<String, u64>> = BTreeMap::new();
        for it in writer.rows().all_excesses()? {
            excesses.entry((it.tenant, it.agent)).or_default().insert(it.limit, it.times);
        }
        let of = |it: &AgentRow| {
            let excess = excesses.get(&(it.tenant.clone(), it.id.clone()));
            json!({
                "tenant": it.tenant,
                "id": it.id,
                "host": it.host,
                "version": it.version,
                "system": it.system,
                "labels": it.labels(),
                "targets": it.targets,
                "ephemeral": it.ephemeral,
                "state": state(it),
                "enrolled_at": it.enrolled_at,
                "certificate_expires_at": it.certificate_expires_at,
                "last_seen_at": it.last_seen_at,
                "denied_at": it.denied_at,
                "excess": excess.cloned().unwrap_or_default(),
            })
        };
        let json = json!({ "agents": agents.iter().map(of).collect::<Vec<_>>() });
        self.at.print(&json, || {
            let row = |it: &AgentRow| {
                let seen = it.last_seen_at.map_or_else(|| "never".into(), time);
                let version = it.version.as_deref().map_or_else(|| "-".into(), plain);
                let excess = excesses.get(&(it.tenant.clone(), it.id.clone()));
                let times: u64 = excess.map_or(0, |it| it.values().sum());
                let excess = if times == 0 { "-".into() } else { times.to_string() };
                [it.id.clone(), plain(&it.host), version, state(it).into(), seen, excess, labels(&it.labels())]
            };
            let rows: Vec<_> = agents.iter().map(row).collect();
            table(["ID", "HOST", "VERSION", "STATE", "LAST SEEN", "EXCESS", "LABELS"], &rows)
        })
    }
}

/// What an operator did, or the agent said. Whether it is missing is known to a serving collector only.
const fn state(agent: &AgentRow) -> &'static str {
    if agent.forget_at.is_some() {
        "forgetting"
    } else if agent.denied_at.is_some() {
        "denied"
    } else if agent.stopped_at.is_some() {
        "stopped"
    } else if agent.last_seen_at.is_some() {
        "enrolled"
    } else {
        "never seen"
    }
}
