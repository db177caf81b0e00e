//! The numbers of a look, for the summaries: one for each target and measure, instances added up.

use std::collections::BTreeMap;

use super::{HostLook, PoolRow, ProcessRow, TcpState};
use crate::discover::TargetKey;
use crate::inspect::{Measure, Observation, Unit, Value};

macro_rules! measures {
    ($($constant:ident = $name:literal, $unit:ident, $meaning:literal;)*) => {
        $(static $constant: Measure = Measure { name: $name, unit: Unit::$unit, meaning: $meaning };)*
        /// Everything that the host inspector measures.
        pub(super) static ALL: &[&Measure] = &[$(&$constant),*];
    };
}

measures! {
    POOL_OPEN = "pool.open", Count, "connections of the pool, in whatever state";
    POOL_CONNECTING = "pool.connecting", Count, "connections that wait for the server's first answer";
    POOL_CLOSE_WAIT = "pool.close_wait", Count, "connections that the server closed and the application did not";
    POOL_BIRTHS = "pool.births", Count, "connections opened since the last look, the shortest-lived among them";
    POOL_CLOSES = "pool.closes", Count, "connections ended since the last look";
    POOL_RETRANSMITTING = "pool.retransmitting", Count, "connections whose last data is being sent again";
    PROCESS_INSTANCES = "process.instances", Count, "processes of this role that run";
    PROCESS_MEMORY = "process.memory", Bytes, "proportional set size where it may be read, else resident set size";
    PROCESS_CPU = "process.cpu", Ratio, "cores used; 1.0 is one whole core";
    PROCESS_DESCRIPTORS = "process.descriptors", Count, "open descriptors";
    PROCESS_THREADS = "process.threads", Count, "threads";
    PROCESS_ZOMBIES = "process.zombies", Count, "children that ended and were not waited for";
    CGROUP_MEMORY = "cgroup.memory", Bytes, "memory of the limited cgroup, without page cache that can be dropped";
}

/// The observations of one look.
pub(super) fn observe(look: &HostLook) -> Vec<Observation> {
    let mut sums = Sums::default();
    for row in &look.pools {
        sums.add_pool(row, look.closes_incomplete || row.closes_incomplete);
    }
    for row in &look.processes {
        sums.add_process(row);
    }
    sums.observations
}

/// Adds up in place: rows of one target mostly follow each other, and there are few.
#[derive(Default)]
struct Sums {
    observations: Vec<Observation>,
    at: BTreeMap<(TargetKey, &'static str), usize>,
}

impl Sums {
    fn add_pool(&mut self, row: &PoolRow, is_lower_bound: bool) {
        let of = |wanted: fn(&TcpState) -> bool| row.connections.iter().filter(|one| wanted(&one.state)).count();
        let (connecting, close_wait) =
            (of(|state| *state == TcpState::SynSent), of(|state| *state == TcpState::CloseWait));
        let retransmitting = row.connections.iter().filter(|one| one.retransmits > 0).count();
        let counted = |count: usize| {
            if is_lower_bound { Value::Between(count as f64, f64::MAX) } else { Value::Known(count as f64) }
        };
        for (measure, value) in [
            (&POOL_OPEN, Value::Known(row.connections.len() as f64)),
            (&POOL_CONNECTING, Value::Known(connecting as f64)),
            (&POOL_CLOSE_WAIT, Value::Known(close_wait as f64)),
            (&POOL_RETRANSMITTING, Value::Known(retransmitting as f64)),
            (&POOL_BIRTHS, counted(row.opened())),
            (&POOL_CLOSES, counted(row.ended())),
        ] {
            self.add(&row.target, measure, value);
        }
    }

    fn add_process(&mut self, row: &ProcessRow) {
        for (measure, value) in [
            (&PROCESS_INSTANCES, Value::Known(1.0)),
            (&PROCESS_MEMORY, row.memory.clone()),
            (&PROCESS_CPU, row.cpu.clone()),
            (&PROCESS_DESCRIPTORS, row.descriptors.clone()),
            (&PROCESS_THREADS, row.threads.clone()),
            (&PROCESS_ZOMBIES, Value::Known(row.zombies.len() as f64)),
        ] {
            self.add(&row.target, measure, value);
        }
        // Instances share a cgroup more often than not, so its memory is not added up: the largest stands for all.
        if let Value::Known(bytes) = row.cgroup_memory {
            let at = self.place(&row.target, &CGROUP_MEMORY);
            if self.observations[at].value.known().is_none_or(|known| known < bytes) {
                self.observations[at].value = Value::Known(bytes);
            }
        }
    }

    fn add(&mut self, target: &TargetKey, measure: &'static Measure, value: Value) {
        let at = self.place(target, measure);
        let sum = &mut self.observations[at].value;
        *sum = match (&*sum, value) {
            (Value::Unknown(reason), _) => Value::Unknown(reason.clone()),
            (_, Value::Unknown(reason)) => Value::Unknown(reason),
            (Value::Known(one), Value::Known(other)) => Value::Known(one + other),
            (one, other) => {
                let sum = |one: Option<f64>, other: Option<f64>| one.unwrap_or(0.0) + other.unwrap_or(0.0);
                Value::Between(sum(one.low(), other.low()), sum(one.high(), other.high()).min(f64::MAX))
            }
        };
    }

    fn place(&mut self, target: &TargetKey, measure: &'static Measure) -> usize {
        *self.at.entry((target.clone(), measure.name)).or_insert_with(|| {
            self.observations.push(Observation { target: target.clone(), measure, value: Value::Known(0.0) });
            self.observations.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Reason;

    #[test]
    fn one_unknown_part_makes_the_sum_unknown_and_not_smaller() {
        let mut sums = Sums::default();
        let target = TargetKey::process("x", "main", None);
        sums.add(&target, &PROCESS_MEMORY, Value::Known(3.0));
        sums.add(&target, &PROCESS_MEMORY, Value::Known(4.0));
        sums.add(&target, &PROCESS_CPU, Value::Known(1.0));
        sums.add(&target, &PROCESS_CPU, Value::Unknown(Reason::NotYet("two looks")));
        sums.add(&target, &POOL_BIRTHS, Value::Known(2.0));
        sums.add(&target, &POOL_BIRTHS, Value::Between(1.0, f64::MAX));
        let values: Vec<_> = sums.observations.into_iter().map(|one| one.value).collect();
        assert_eq!(values[0], Value::Known(7.0));
        assert!(matches!(values[1], Value::Unknown(_)));
        assert_eq!(values[2], Value::Between(3.0, f64::MAX));
    }
}
