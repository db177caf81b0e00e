//! Who was refused what: counted by agent, for `/metrics` and for the ledger, which writes it down and tells people.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::ledger::{AgentKey, Excess};

/// What agents exceeded since the start of the collector.
#[derive(Debug, Default)]
pub(super) struct Excesses {
    counted: Family<Labels, Counter>,
    /// Not handed to the ledger yet.
    fresh: Mutex<HashMap<(AgentKey, &'static str), u64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    agent: String,
    limit: &'static str,
}

impl Excesses {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "What agents did beyond their limits, by agent and by the code it was refused with";
        registry.register("tickbird_agent_excess", help, self.counted.clone());
    }

    /// Notes that `agent` went over `limit`, so many times.
    pub(super) fn note(&self, agent: &AgentKey, limit: &'static str, times: u64) {
        if times == 0 {
            return;
        }
        self.counted.get_or_create(&Labels { agent: agent.id.as_ref().to_owned(), limit }).inc_by(times);
        self.put(agent.clone(), limit, times);
    }

    /// What is new since it was asked last.
    pub(super) fn take(&self) -> Vec<Excess> {
        let fresh = std::mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner));
        fresh.into_iter().map(|((agent, limit), times)| Excess { agent, limit, times }).collect()
    }

    /// Takes back what the ledger could not write.
    pub(super) fn put_back(&self, excesses: Vec<Excess>) {
        excesses.into_iter().for_each(|it| self.put(it.agent, it.limit, it.times));
    }

    fn put(&self, agent: AgentKey, limit: &'static str, times: u64) {
        *self.fresh.lock().unwrap_or_else(PoisonError::into_inner).entry((agent, limit)).or_default() += times;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_written_is_not_lost() {
        let excesses = Excesses::default();
        let agent = AgentKey::new("default", "a-1");
        excesses.note(&agent, "slow", 0);
        assert!(excesses.take().is_empty());
        excesses.note(&agent, "slow", 1);
        excesses.put_back(excesses.take());
        excesses.note(&agent, "slow", 2);
        let taken = excesses.take();
        assert_eq!(taken, [Excess { agent: agent.clone(), limit: "slow", times: 3 }]);
        let labels = Labels { agent: "a-1".into(), limit: "slow" };
        assert_eq!(excesses.counted.get_or_create(&labels).get(), 3, "it is counted once");
    }
}
