//! `agent …`: who is enrolled, who may not send any more.

use std::collections::{BTreeMap, HashSet};

use clap::{Args, Subcommand};
use jiff::SignedDuration;
use serde_json::json;
use tickbird_shared::Timestamp;
use tickbird_shared::protocol::PRESENCE_SECONDS;

use super::table::{labels, plain, table, time};
use super::{CliError, Where, now};
use crate::aggregate::is_of_missing;
use crate::store::{AgentRow, StoreError, Transaction};
use crate::token::DEFAULT_TENANT;

/// State of one that may live or not.
const UNKNOWN: &str = "unknown";

#[derive(Debug, Subcommand)]
pub(super) enum Agent {
    List(List),
    Deny(Deny),
    Forget(Forget),
}

/// Lists the agents that are enrolled, and how often each was refused for going over its limits.
///
/// One that was not heard for half a minute is missing when the collector served meanwhile, and otherwise unknown, since it was last heard.
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
        let incidents = writer.rows().live_incidents(Timestamp::MAX)?;
        let missing: HashSet<_> =
            incidents.iter().filter(|it| is_of_missing(it)).map(|it| (it.tenant.as_str(), it.agent.as_str())).collect();
        let now = now();
        let state = |it: &AgentRow| state(it, missing.contains(&(it.tenant.as_str(), it.id.as_str())), now);
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
                "unknown_since": unknown_since(it, state(it)),
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
                let word = state(it);
                let word = if word == UNKNOWN { format!("{word} since {seen}") } else { word.into() };
                [it.id.clone(), plain(&it.host), version, word, seen, excess, labels(&it.labels())]
            };
            let rows: Vec<_> = agents.iter().map(row).collect();
            table(["ID", "HOST", "VERSION", "STATE", "LAST SEEN", "EXCESS", "LABELS"], &rows)
        })
    }
}

/// What an operator did, the agent said, or the collector found. Of one that was not heard for so long that it would be missing, and is
/// not, nobody knows: no collector served, or not for long enough.
fn state(agent: &AgentRow, is_missing: bool, now: Timestamp) -> &'static str {
    let silent = now.duration_since(agent.last_heard());
    if agent.forget_at.is_some() {
        "forgetting"
    } else if agent.denied_at.is_some() {
        "denied"
    } else if agent.stopped_at.is_some() {
        "stopped"
    } else if agent.last_seen_at.is_none() {
        "never seen"
    } else if is_missing {
        "missing"
    } else if silent > SignedDuration::from_secs(PRESENCE_SECONDS as i64) {
        UNKNOWN
    } else {
        "enrolled"
    }
}

/// Since when nothing is known of one of whom nothing is.
fn unknown_since(agent: &AgentRow, state: &str) -> Option<Timestamp> {
    [UNKNOWN, "never seen"].contains(&state).then(|| agent.last_heard())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_missing_where_somebody_listened_and_unknown_since_its_last_word_where_nobody_did() {
        let at = |second: i64| Timestamp::from_second(1_790_000_000 + second).expect("in range");
        let agent = AgentRow {
            last_seen_at: Some(at(10)),
            ..AgentRow::enrolled((DEFAULT_TENANT, "a-1"), "web-1", at(0), at(1_000))
        };
        let of = |agent: &AgentRow, is_missing, second| {
            let word = state(agent, is_missing, at(second));
            (word, unknown_since(agent, word))
        };
        assert_eq!(of(&agent, false, 40), ("enrolled", None));
        assert_eq!(of(&agent, false, 41), ("unknown", Some(at(10))));
        assert_eq!(of(&agent, true, 41), ("missing", None));
        let stopped = AgentRow { stopped_at: Some(at(11)), ..agent.clone() };
        assert_eq!(of(&stopped, false, 90), ("stopped", None));
        let new = AgentRow { last_seen_at: None, ..agent };
        assert_eq!(of(&new, false, 90), ("never seen", Some(at(0))));
    }
}
