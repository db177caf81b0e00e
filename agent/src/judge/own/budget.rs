//! What the agent takes of its host against its budget.

use serde_json::json;

use crate::discover::TargetKey;
use crate::inspect::{Reason, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// What the agent took lately, and what it may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetSeen {
    /// Cores since the last measurement; `None` when there was none before.
    pub cpu: Option<f64>,
    /// Cores that it may take.
    pub cpu_budget: f64,
    /// Bytes of memory; `None` where the kernel does not tell.
    pub memory: Option<u64>,
    /// Bytes that it may take.
    pub memory_budget: u64,
    /// Intervals are so many times longer than configured, to stay within the budget.
    pub times_slower: u32,
}

pub(super) fn look(seen: &BudgetSeen, now: Moment, tracks: &mut Tracks) {
    let share = |taken: Option<f64>, budget: f64, of: &'static str| match taken {
        Some(taken) => Value::Known(taken / budget),
        None => Value::Unknown(Reason::NotYet(of)),
    };
    let cpu = share(seen.cpu, seen.cpu_budget, "two measurements of its CPU time");
    let memory = share(seen.memory.map(|it| it as f64), seen.memory_budget as f64, "its memory");
    let target = TargetKey::agent();
    for (what, value) in [("cpu", cpu), ("memory", memory)] {
        let subject = Subject { sub_key: Some(what), ..Subject::of(CheckId::Budget, &target) };
        tracks.observe(subject, Seen::value(value), now, || case(what, seen));
    }
    // Intervals that are left out on purpose are left out all the same.
    let subject = Subject { sub_key: Some("budget"), ..Subject::of(CheckId::Slow, &target) };
    let missed = seen.times_slower.saturating_sub(1);
    tracks.observe(subject, Seen::known(f64::from(missed)), now, || Case {
        summary: format!(
            "the agent looks at the host {} times less often than configured, to stay within {:.1} % of a core",
            seen.times_slower,
            100.0 * seen.cpu_budget
        ),
        evidence: evidence(seen),
        advice: Some("raise budget.cpu, or look less often (host.interval)".to_owned()),
        ..Case::default()
    });
}

fn case(what: &str, seen: &BudgetSeen) -> Case {
    let (taken, budget) = match what {
        "cpu" => {
            let percent = |cores: f64| format!("{:.1} % of a core", 100.0 * cores);
            (percent(seen.cpu.unwrap_or_default()), percent(seen.cpu_budget))
        }
        _ => {
            let bytes = |bytes: u64| words::number(bytes as f64, Unit::Bytes);
            (bytes(seen.memory.unwrap_or_default()), bytes(seen.memory_budget))
        }
    };
    let slower = match seen.times_slower {
        1 => String::new(),
        times => format!(", though it looks at the host {times} times less often than configured"),
    };
    Case {
        summary: format!("the agent takes {taken}; its budget is {budget}{slower}"),
        evidence: evidence(seen),
        ..Case::default()
    }
}

fn evidence(seen: &BudgetSeen) -> serde_json::Map<String, serde_json::Value> {
    object(json!({
        "cpu_cores": seen.cpu.map(|it| number(it, Unit::Ratio)),
        "cpu_budget_cores": number(seen.cpu_budget, Unit::Ratio),
        "memory_bytes": seen.memory,
        "memory_budget_bytes": seen.memory_budget,
        "times_slower": seen.times_slower,
        "rule": "its own CPU clock and smaps_rollup, every 10 s",
        "not_visible": [],
    }))
}
