//! Memory of a process against its control group's limit, or against what it usually had.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::json;

use super::{MAX_TARGETS, greatest, share, whole_or_blind};
use crate::discover::TargetKey;
use crate::inspect::host::ProcessRow;
use crate::inspect::{Reason, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, object, value};
use crate::judge::hold::{Hold, Holds};
use crate::judge::threshold::{Bounds, Seen};
use crate::judge::tracks::{Rule, Subject, Tracks};
use crate::judge::{Moment, words};

/// Without a limit: twice the usual for ten minutes is a warning, and never more than that.
const BY_HISTORY: Rule = Rule {
    bounds: Bounds::above(Some(2.0), None),
    holds: Holds::both(Hold::For(Duration::from_secs(600))),
    unit: Unit::Ratio,
};
/// One value is kept of so long, the greatest; a week of them is 1,008 values, 4 KiB for each target.
const STEP: Duration = Duration::from_secs(600);
const MAX_STEPS: usize = 1_008;
/// Nights and days differ: a usual memory is one of at least a whole day.
const LEAST_STEPS: usize = 144;
/// How long after the kernel hit the group's limit this counts as a second sign.
const RECLAIM: Duration = Duration::from_secs(60);

/// What is remembered for each target.
#[derive(Debug, Default)]
pub(super) struct Histories(BTreeMap<TargetKey, History>);

#[derive(Debug, Default)]
struct History {
    steps: VecDeque<f32>,
    step_began: Option<Duration>,
    step_most: f64,
    hits: Option<f64>,
    hit_at: Option<Duration>,
    seen_at: Duration,
}

impl History {
    fn add(&mut self, memory: f64, now: Duration) {
        let began = *self.step_began.get_or_insert(now);
        if now.saturating_sub(began) >= STEP {
            self.steps.push_back(self.step_most as f32);
            if self.steps.len() > MAX_STEPS {
                self.steps.pop_front();
            }
            (self.step_began, self.step_most) = (Some(now), 0.0);
        }
        self.step_most = self.step_most.max(memory);
    }

    /// The 95th percentile, once there is enough.
    fn usual(&self) -> Option<f64> {
        if self.steps.len() < LEAST_STEPS {
            return None;
        }
        let mut sorted: Vec<f32> = self.steps.iter().copied().collect();
        let index = sorted.len() * 95 / 100;
        let (_, it, _) = sorted.select_nth_unstable_by(index, f32::total_cmp);
        Some(f64::from(*it)).filter(|it| *it > 0.0)
    }

    /// Whether the kernel has lately reclaimed at the limit in vain.
    fn is_hit(&mut self, rows: &[&ProcessRow], now: Duration) -> bool {
        let hits = rows.iter().filter_map(|it| it.cgroup_max_events.known()).reduce(f64::max);
        if let (Some(old), Some(new)) = (self.hits, hits)
            && new > old
        {
            self.hit_at = Some(now);
        }
        self.hits = hits;
        self.hit_at.is_some_and(|at| now.saturating_sub(at) < RECLAIM)
    }
}

impl Histories {
    /// Forgets targets that have been gone for as long as their history lasts.
    pub(super) fn forget(&mut self, now: Duration) {
        self.0.retain(|_, it| now.saturating_sub(it.seen_at) < STEP * (it.steps.len() as u32 + 1));
    }

    pub(super) fn judge(&mut self, target: &TargetKey, rows: &[&ProcessRow], now: Moment, tracks: &mut Tracks) {
        if !self.0.contains_key(target) && self.0.len() >= MAX_TARGETS {
            return;
        }
        let history = self.0.entry(target.clone()).or_default();
        history.seen_at = now.mono;
        let is_hit = history.is_hit(rows, now.mono);
        let memories: Vec<_> = rows.iter().map(|it| (it.memory.clone(), *it)).collect();
        let Some((memory, largest)) = greatest(memories.iter().cloned()) else { return };
        if let Value::Known(memory) = memory {
            history.add(memory, now.mono);
        }
        let usual = history.usual();
        let rule = tracks.rule(CheckId::Memory);
        let subject = Subject::of(CheckId::Memory, target);
        let is_limited = rows.iter().any(|it| it.cgroup_limit.known().is_some());
        if rule.unit == Unit::Bytes {
            let seen = Seen::value(whole_or_blind(memory, &memories, rule.bounds.warning));
            let against = rule.bounds.warning.or(rule.bounds.critical).unwrap_or_default();
            let against = format!("; {} are allowed", words::number(against, Unit::Bytes));
            tracks.observe(subject, Seen { corroborated: true, ..seen }, now, || case(largest, rows, &against, usual));
        } else if is_limited {
            let shares: Vec<_> = rows.iter().map(|it| (share(&it.cgroup_memory, &it.cgroup_limit), *it)).collect();
            let Some((fullest, row)) = greatest(shares.iter().cloned()) else { return };
            let [used, limit] = [&row.cgroup_memory, &row.cgroup_limit].map(|it| words::value(it, Unit::Bytes));
            let pressed = if is_hit { ", and the kernel reclaims in vain" } else { "" };
            let against = format!(
                "; its control group uses {used} of {limit} ({}){pressed}",
                words::value(&fullest, Unit::Ratio)
            );
            let value = whole_or_blind(fullest, &shares, rule.bounds.warning);
            let seen = Seen { corroborated: is_hit, ..Seen::value(value) };
            tracks.observe(subject, seen, now, || case(row, rows, &against, usual));
        } else {
            let value = match (&memory, usual) {
                (Value::Unknown(reason), _) => Value::Unknown(reason.clone()),
                (_, None) => Value::Unknown(Reason::NotYet("a day of its memory, as there is no limit")),
                (memory, Some(usual)) => memory.clone().map(|it| it / usual),
            };
            let against = format!("; usually at most {}", words::number(usual.unwrap_or_default(), Unit::Bytes));
            tracks.observe_by(BY_HISTORY, subject, Seen::value(value), now, || case(largest, rows, &against, usual));
        }
    }
}

fn case(row: &ProcessRow, rows: &[&ProcessRow], against: &str, usual: Option<f64>) -> Case {
    let kind = if row.memory_is_pss { "PSS" } else { "RSS" };
    Case {
        summary: format!(
            "{}, pid {}, has {} of memory ({kind}){against}",
            words::foreign(&row.application.name, 80),
            row.instance.pid,
            words::value(&row.memory, Unit::Bytes),
        ),
        evidence: object(json!({
            "instances": rows.iter().take(50).map(|it| json!({
                "pid": it.instance.pid,
                "start": it.instance.start,
                "memory_bytes": value(&it.memory, Unit::Bytes),
                "is_pss": it.memory_is_pss,
            })).collect::<Vec<_>>(),
            "instances_total": rows.len(),
            "command": words::foreign(&row.command, 200),
            "cgroup_bytes": value(&row.cgroup_memory, Unit::Bytes),
            "cgroup_limit_bytes": value(&row.cgroup_limit, Unit::Bytes),
            "cgroup_max_events": value(&row.cgroup_max_events, Unit::Count),
            "usual_bytes": usual.map(|it| super::super::evidence::number(it, Unit::Bytes)),
            "rule": "cgroup memory.current against memory.max; else PSS against its own 95th percentile",
            "not_visible": if row.memory_is_pss { vec![] } else { vec!["PSS"] },
        })),
        ..Case::default()
    }
}
