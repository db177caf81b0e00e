//! Checks of processes: their limits, their children, their restarts and their end.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::json;

use super::Moment;
use super::defaults::CheckId;
use super::evidence::{Case, object, value};
use super::threshold::Seen;
use super::tracks::{Subject, Tracks};
use super::words;
use crate::discover::{Instance, TargetKey};
use crate::inspect::host::{Ended, ProcessRow};
use crate::inspect::{HostLook, Reason, Unit, Value};

mod gone;
mod memory;
mod restart;

/// A zombie younger than this may still be waited for.
const ZOMBIE_AGE: Duration = Duration::from_secs(60);
/// Ended instances that are remembered, so that an event and a look do not tell the same end twice.
const MAX_ENDED: usize = 1_024;
/// Most targets that history is kept of: a host that starts others all the time runs none of them for long.
const MAX_TARGETS: usize = 4_096;

/// What is remembered of processes between looks.
#[derive(Debug, Default)]
pub(super) struct Processes {
    running: Vec<Running>,
    ended: VecDeque<Instance>,
    /// When each target was first seen, and last.
    targets: BTreeMap<TargetKey, (Duration, Duration)>,
    gone: gone::Gone,
    restarts: restart::Restarts,
    memory: memory::Histories,
}

/// A process of the last look, as much of it as its successors and predecessors need.
#[derive(Debug, Clone)]
struct Running {
    target: TargetKey,
    application: std::sync::Arc<str>,
    role: &'static str,
    instance: Instance,
    /// When it started, on the monotonic clock; zero for all that started before the agent.
    started: Duration,
    listens: bool,
}

/// The processes of one target.
type Group<'a> = (&'a TargetKey, Vec<&'a ProcessRow>);

impl Processes {
    pub(super) fn look(&mut self, look: &HostLook, now: Moment, tracks: &mut Tracks) {
        self.remember(look, now);
        let mut groups: BTreeMap<&TargetKey, Vec<&ProcessRow>> = BTreeMap::new();
        for row in &look.processes {
            groups.entry(&row.target).or_default().push(row);
        }
        let groups: Vec<Group<'_>> = groups.into_iter().collect();
        self.restarts.appeared(&groups, now.mono);
        for ended in &look.ended {
            self.end(ended, now);
        }
        for (target, rows) in &groups {
            descriptors(target, rows, now, tracks);
            zombies(target, rows, now, tracks);
            self.memory.judge(target, rows, now, tracks);
        }
        self.memory.forget(now.mono);
        self.restarts.judge(&groups, now, tracks);
        self.gone.look(&self.running, &self.targets, &look.absent, now, tracks);
    }

    pub(super) fn ended(&mut self, ended: &Ended, now: Moment, tracks: &mut Tracks) {
        self.end(ended, now);
        self.gone.tick(&self.running, &self.targets, now, tracks);
    }

    pub(super) fn tick(&mut self, now: Moment, tracks: &mut Tracks) {
        self.gone.tick(&self.running, &self.targets, now, tracks);
    }

    /// Whether an end waits for a look at the host.
    pub(super) const fn wait_for_look(&self) -> bool {
        self.gone.waits_for_look()
    }

    pub(super) fn wake_at(&self) -> Option<Duration> {
        self.gone.wake_at()
    }

    fn end(&mut self, ended: &Ended, now: Moment) {
        if self.ended.contains(&ended.instance) {
            return;
        }
        self.ended.push_back(ended.instance);
        if self.ended.len() > MAX_ENDED {
            self.ended.pop_front();
        }
        self.running.retain(|it| it.instance != ended.instance);
        self.restarts.ended(ended, now.mono);
        self.gone.ended(ended);
    }

    fn remember(&mut self, look: &HostLook, now: Moment) {
        let is_over = |row: &&ProcessRow| !self.ended.contains(&row.instance);
        self.running = look
            .processes
            .iter()
            .filter(is_over)
            .map(|it| Running {
                target: it.target.clone(),
                application: it.application.name.clone(),
                role: it.application.role,
                instance: it.instance,
                started: now.mono.saturating_sub(it.age),
                listens: !it.listens.is_empty(),
            })
            .collect();
        for it in &self.running {
            let has_room = self.targets.len() < MAX_TARGETS;
            if let Some(times) = self.targets.get_mut(&it.target) {
                times.1 = now.mono;
            } else if has_room {
                self.targets.insert(it.target.clone(), (now.mono, now.mono));
            }
        }
        // As long as a process that comes back may be the successor of one that is gone.
        self.targets.retain(|_, (_, last)| now.mono.saturating_sub(*last) < super::GONE * 12);
    }
}

/// The greatest of several values. One that is not known leaves only a lower end, or nothing.
fn greatest<'a>(values: impl IntoIterator<Item = (Value, &'a ProcessRow)>) -> Option<(Value, &'a ProcessRow)> {
    let mut known: Option<(f64, &ProcessRow)> = None;
    let mut unknown: Option<(Reason, &ProcessRow)> = None;
    for (value, row) in values {
        match value {
            Value::Unknown(reason) => {
                // A missing right outweighs a look that has not been taken yet.
                if unknown.as_ref().is_none_or(|(old, _)| reason.is_blind() && !old.is_blind()) {
                    unknown = Some((reason, row));
                }
            }
            Value::Known(value) | Value::Between(value, _) => {
                if known.is_none_or(|(most, _)| value > most) {
                    known = Some((value, row));
                }
            }
        }
    }
    match (known, unknown) {
        (Some((value, row)), None) => Some((Value::Known(value), row)),
        (Some((value, row)), Some(_)) => Some((Value::Between(value, f64::INFINITY), row)),
        (None, Some((reason, row))) => Some((Value::Unknown(reason), row)),
        (None, None) => None,
    }
}

/// `used / limit`, as far as both are known.
fn share(used: &Value, limit: &Value) -> Value {
    match (used, limit.known()) {
        (Value::Unknown(reason), _) => Value::Unknown(reason.clone()),
        (_, Some(limit)) if limit > 0.0 => used.clone().map(|used| used / limit),
        (_, Some(_)) => Value::Unknown(Reason::NotYet("not judged: the limit is zero")),
        (_, None) => match limit {
            Value::Unknown(reason) => Value::Unknown(reason.clone()),
            _ => Value::Unknown(Reason::NotYet("the limit is not exactly known")),
        },
    }
}

/// One instance that cannot be seen blinds the check, unless another one is over the bound for certain.
fn whole_or_blind(value: Value, values: &[(Value, &ProcessRow)], bound: Option<f64>) -> Value {
    match value {
        Value::Between(low, _) if bound.is_some_and(|bound| low < bound) => {
            let reason = values.iter().find_map(|(value, _)| match value {
                Value::Unknown(reason) => Some(reason.clone()),
                _ => None,
            });
            reason.map_or(value, Value::Unknown)
        }
        other => other,
    }
}

fn descriptors(target: &TargetKey, rows: &[&ProcessRow], now: Moment, tracks: &mut Tracks) {
    let shares: Vec<_> = rows.iter().map(|it| (share(&it.descriptors, &it.descriptor_limit), *it)).collect();
    let Some((fullest, row)) = greatest(shares.iter().cloned()) else { return };
    let bound = tracks.rule(CheckId::Descriptors).bounds.warning;
    let seen = Seen::value(whole_or_blind(fullest.clone(), &shares, bound));
    tracks.observe(Subject::of(CheckId::Descriptors, target), seen, now, || {
        let [used, limit] = [&row.descriptors, &row.descriptor_limit].map(|it| words::value(it, Unit::Count));
        Case {
            summary: format!(
                "{}, pid {}, has {used} of {limit} descriptors open ({})",
                words::foreign(&row.application.name, 80),
                row.instance.pid,
                words::value(&fullest, Unit::Ratio),
            ),
            evidence: object(json!({
                "instances": rows.iter().take(50).map(|it| json!({
                    "pid": it.instance.pid,
                    "start": it.instance.start,
                    "descriptors": value(&it.descriptors, Unit::Count),
                    "limit": value(&it.descriptor_limit, Unit::Count),
                })).collect::<Vec<_>>(),
                "instances_total": rows.len(),
                "command": words::foreign(&row.command, 200),
                "rule": "/proc/<pid>/fd against the soft limit in /proc/<pid>/limits",
                "not_visible": [],
            })),
            ..Case::default()
        }
    });
}

fn zombies(target: &TargetKey, rows: &[&ProcessRow], now: Moment, tracks: &mut Tracks) {
    let old = |row: &ProcessRow| row.zombies.iter().filter(|(_, age)| *age >= ZOMBIE_AGE).count();
    let Some(row) = rows.iter().max_by_key(|it| old(it)) else { return };
    let count = old(row);
    tracks.observe(Subject::of(CheckId::Zombie, target), Seen::known(count as f64), now, || Case {
        summary: format!(
            "{}, pid {}, has not waited for {} that ended more than {} ago",
            words::foreign(&row.application.name, 80),
            row.instance.pid,
            if count == 1 { "1 child".to_owned() } else { format!("{count} children") },
            words::duration(ZOMBIE_AGE),
        ),
        evidence: object(json!({
            "parent": row.instance.pid,
            "start": row.instance.start,
            "command": words::foreign(&row.command, 200),
            "zombies": row.zombies.iter().take(100).map(|(pid, age)| json!({
                "pid": pid,
                "age_seconds": super::evidence::number(age.as_secs_f64(), Unit::Seconds),
            })).collect::<Vec<_>>(),
            "zombies_total": row.zombies.len(),
            "rule": "/proc/<pid>/stat: state Z",
            "not_visible": [],
        })),
        ..Case::default()
    });
}
