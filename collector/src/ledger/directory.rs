//! Which agents may speak: what authentication asks for each request, without touching the store.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

/// Name of one agent. Cheap to clone: each connection of the agent holds one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentKey {
    /// Tenant it belongs to.
    pub tenant: Arc<str>,
    /// Id the collector gave it.
    pub id: Arc<str>,
}

impl AgentKey {
    /// The name of `id` in `tenant`.
    pub fn new(tenant: &str, id: &str) -> Self {
        Self { tenant: tenant.into(), id: id.into() }
    }
}

/// Whether an agent may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Enrolled, and nobody objected.
    Admitted,
    /// An operator denied it.
    Denied,
}

/// The agents by name. The ledger writes it after its commits; anybody reads.
#[derive(Debug)]
pub struct Directory {
    agents: RwLock<HashMap<AgentKey, Standing>>,
    version: watch::Sender<u64>,
}

impl Default for Directory {
    fn default() -> Self {
        Self { agents: RwLock::default(), version: watch::Sender::new(0) }
    }
}

impl Directory {
    /// The standing of an agent; none when it was never enrolled here, or forgotten.
    pub fn standing(&self, agent: &AgentKey) -> Option<Standing> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).get(agent).copied()
    }

    /// Counts the changes that took a right away: whoever holds a connection open looks again.
    pub fn withdrawals(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Agents known.
    pub fn len(&self) -> usize {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no agent is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn set(&self, agent: AgentKey, standing: Option<Standing>) {
        {
            let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
            match standing {
                Some(standing) => agents.insert(agent, standing),
                None => agents.remove(&agent),
            };
        }
        if standing != Some(Standing::Admitted) {
            self.version.send_modify(|version| *version += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_right_taken_away_wakes_those_who_hold_connections() {
        let directory = Directory::default();
        let withdrawals = directory.withdrawals();
        let agent = AgentKey::new("default", "a-1");
        assert_eq!(directory.standing(&agent), None);
        directory.set(agent.clone(), Some(Standing::Admitted));
        assert!(!withdrawals.has_changed().expect("the directory is there"));
        directory.set(agent.clone(), Some(Standing::Denied));
        assert!(withdrawals.has_changed().expect("the directory is there"));
        assert_eq!(directory.standing(&agent), Some(Standing::Denied));
    }
}
