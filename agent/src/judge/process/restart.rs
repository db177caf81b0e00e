//! A service that keeps crashing, told apart from a deploy.
//!
//! A restart is an end with a successor of the same target, begun before it or after. What is judged is how often
//! *every instance* was restarted: N instances replaced once each are a rolling restart and count as one. A crash loop
//! of one instance among many would hide in that average, so a second count goes beside it: successors that themselves
//! ended within ten minutes. The greater one is judged.
//!
//! Whoever starts the successor first and then ends the predecessor in order means to: no supervisor answers a crash before
//! it happens. Such a replacement is no restart, however often it is deployed in an hour.
//!
//! Workers are recycled by their parents as a matter of course (`max_requests`), so of them only those count that
//! lived for less than a minute or were killed by a signal. Programs that neither listen nor were declared come and go
//! as cron runs them and are not judged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::json;
use tickbird_shared::Severity;

use super::{Group, MAX_TARGETS};
use crate::discover::{Instance, TargetKey};
use crate::inspect::host::{Ended, ProcessRow};
use crate::inspect::{Reason, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

const HOUR: Duration = Duration::from_secs(3600);
/// An end and a beginning further apart belong to two lives of the service, not to one restart.
const APART: Duration = Duration::from_secs(600);
/// Instances that appear within this time of the target's first belong to its start.
const START: Duration = Duration::from_secs(30);
/// A successor that lives shorter than this died young.
const YOUNG: Duration = Duration::from_secs(600);
/// A worker that lives shorter than this was not recycled: it failed at its start.
const STILLBORN: Duration = Duration::from_secs(60);
/// A successor began before its predecessor's end when it is older than that by this. Supervisors wait as long after an end
/// (`RestartSec=` of systemd, Docker), so an end that is noticed late is not taken for one.
const AHEAD: Duration = Duration::from_millis(100);
/// How long an OOM kill keeps firing.
const OOM: Duration = Duration::from_secs(300);
/// Most events that are kept of a target.
const MAX_EVENTS: usize = 256;

/// What is remembered for each target.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    targets: BTreeMap<TargetKey, Life>,
    has_looked: bool,
}

#[derive(Debug, Default)]
struct Life {
    began: Duration,
    seen_at: Duration,
    running: Vec<Instance>,
    /// Most instances at one time, lately.
    most: usize,
    most_at: Duration,
    /// Instances that came beside others and whose predecessor has not ended yet.
    came: VecDeque<(Duration, Instance)>,
    /// Ends that have no successor yet.
    left: VecDeque<Death>,
    restarts: VecDeque<Death>,
    successors: VecDeque<Instance>,
    oom_kills: Option<f64>,
    oom_at: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Death {
    at: Duration,
    instance: Instance,
    lived: Duration,
    was_successor: bool,
    how: Option<std::sync::Arc<str>>,
}

impl Death {
    fn is_in_order(&self) -> bool {
        self.how.as_deref().is_some_and(is_in_order)
    }
}

impl Restarts {
    /// Notes which instances are new.
    pub(super) fn appeared(&mut self, groups: &[Group<'_>], now: Duration) {
        for (target, rows) in groups {
            let is_known = self.targets.contains_key(*target);
            if !is_known && self.targets.len() >= MAX_TARGETS {
                continue;
            }
            let life = self.targets.entry((*target).clone()).or_default();
            if !is_known {
                // What the agent's first look finds began long ago.
                life.began = if self.has_looked { now } else { Duration::ZERO };
                life.running = rows.iter().map(|it| it.instance).collect();
            }
            life.update(rows, now);
        }
        self.has_looked = true;
        self.targets.retain(|_, it| now.saturating_sub(it.seen_at) < HOUR);
    }

    pub(super) fn ended(&mut self, ended: &Ended, now: Duration) {
        let Some(life) = self.targets.get_mut(&ended.target) else { return };
        life.running.retain(|it| *it != ended.instance);
        let is_crash = ended.age < STILLBORN || ended.how.as_deref().is_some_and(is_by_signal);
        if ended.application.role == "worker" && !is_crash {
            return;
        }
        let death = Death {
            at: ended.at.min(now),
            instance: ended.instance,
            lived: ended.age,
            was_successor: life.successors.contains(&ended.instance),
            how: ended.how.clone(),
        };
        life.came.retain(|(_, it)| *it != ended.instance);
        match life.came.pop_front() {
            Some(_) if death.is_in_order() => (),
            Some((_, successor)) => life.restarted(death, successor, now),
            None => push(&mut life.left, death),
        }
    }

    pub(super) fn judge(&mut self, groups: &[Group<'_>], now: Moment, tracks: &mut Tracks) {
        for (target, rows) in groups {
            let Some(life) = self.targets.get_mut(*target) else { continue };
            let is_oom = life.is_oom(rows, now.mono);
            let is_service = rows.iter().any(|it| it.application.declared || !it.listens.is_empty());
            let count = life.count(now.mono);
            let mut seen = match is_service {
                true => Seen::known(count),
                false => Seen::value(Value::Unknown(Reason::NotYet("not judged: neither declared nor listening"))),
            };
            if is_oom {
                seen = Seen {
                    forced: Some(Severity::Critical),
                    words: Some("the kernel killed a process of its control group for memory".to_owned()),
                    ..Seen::known(count)
                };
            }
            let life = &*life;
            tracks.observe(Subject::of(CheckId::Restart, target), seen, now, || life.case(rows[0], is_oom, now));
        }
    }
}

impl Life {
    fn update(&mut self, rows: &[&ProcessRow], now: Duration) {
        self.seen_at = now;
        let is_start = now.saturating_sub(self.began) < START && self.began > Duration::ZERO;
        for row in rows {
            let instance = row.instance;
            if self.running.contains(&instance) {
                continue;
            }
            self.running.push(instance);
            // Both may have happened between two looks.
            let was_first = |death: &Death| now.saturating_sub(row.age) + AHEAD <= death.at;
            match self.left.pop_front() {
                Some(death) if death.is_in_order() && was_first(&death) => (),
                Some(death) => self.restarted(death, instance, now),
                None if is_start => (),
                None => push(&mut self.came, (now, instance)),
            }
        }
        // An instance whose end was not told is gone as well; without its end there is no restart to count.
        self.running.retain(|it| rows.iter().any(|row| row.instance == *it));
        if self.running.len() >= self.most || now.saturating_sub(self.most_at) >= HOUR {
            (self.most, self.most_at) = (self.running.len(), now);
        }
        let is_old = |at: Duration, age: Duration| now.saturating_sub(at) >= age;
        self.came.retain(|it| !is_old(it.0, APART));
        self.left.retain(|it| !is_old(it.at, APART));
        self.restarts.retain(|it| !is_old(it.at, HOUR));
    }

    fn restarted(&mut self, death: Death, successor: Instance, now: Duration) {
        push(&mut self.successors, successor);
        push(&mut self.restarts, Death { at: now, ..death });
    }

    /// Restarts of every instance in the last hour, or of one that keeps dying.
    fn count(&self, now: Duration) -> f64 {
        let recent = || self.restarts.iter().filter(|it| now.saturating_sub(it.at) < HOUR);
        let young = recent().filter(|it| it.was_successor && it.lived < YOUNG).count();
        let each = recent().count() / self.most.max(1);
        each.max(young) as f64
    }

    fn is_oom(&mut self, rows: &[&ProcessRow], now: Duration) -> bool {
        let kills = rows.iter().filter_map(|it| it.cgroup_oom_kills.known()).reduce(f64::max);
        if let (Some(old), Some(new)) = (self.oom_kills, kills)
            && new > old
        {
            self.oom_at = Some(now);
        }
        // While it is being restarted nothing can be read; the count goes on from where it was.
        self.oom_kills = kills.or(self.oom_kills);
        self.oom_at.is_some_and(|at| now.saturating_sub(at) < OOM)
    }

    fn case(&self, row: &ProcessRow, is_oom: bool, now: Moment) -> Case {
        let name = words::foreign(&row.application.name, 80);
        let count = self.restarts.len();
        let last = self.restarts.back();
        let how = last.and_then(|it| it.how.as_deref()).map(|it| format!(" ({})", words::foreign(it, 80)));
        let lived =
            last.map(|it| format!(", the last one after {}{}", words::duration(it.lived), how.unwrap_or_default()));
        let restarted = format!("{} in the last hour{}", words::counted(count, "restart"), lived.unwrap_or_default());
        Case {
            summary: match is_oom {
                true => format!("the kernel killed a process of {name}'s control group for memory; {restarted}"),
                false => format!("{name} keeps ending: {restarted}"),
            },
            evidence: object(json!({
                "restarts": self.restarts.iter().rev().take(50).map(|it| json!({
                    "pid": it.instance.pid,
                    "start": it.instance.start,
                    "lived_seconds": number(it.lived.as_secs_f64(), Unit::Seconds),
                    "seconds_ago": number(now.mono.saturating_sub(it.at).as_secs_f64(), Unit::Seconds),
                    "how": it.how.as_deref(),
                })).collect::<Vec<_>>(),
                "restarts_total": count,
                "instances": self.running.len(),
                "oom_kills": self.oom_kills.map(|it| number(it, Unit::Count)),
                "pids": self.running.iter().map(|it| it.pid).collect::<Vec<_>>(),
                "command": words::foreign(&row.command, 200),
                "rule": "ends with a successor of the same target; memory.events: oom_kill",
                "not_visible": if last.is_some_and(|it| it.how.is_none()) { vec!["exit status"] } else { vec![] },
            })),
            ..Case::default()
        }
    }
}

/// Signals that people and supervisors send to end a service in order.
const ENDING: [&str; 4] = ["signal 15", "signal 2", "signal 1", "signal 3"];
/// What a program that takes such a signal ends with: nothing, or 128 and the signal.
const ENDED: [&str; 5] = ["status 0", "status 143", "status 130", "status 129", "status 131"];

/// A signal that nobody sends on purpose to end a service in order.
fn is_by_signal(how: &str) -> bool {
    how.contains("signal") && !is_in_order(how)
}

fn is_in_order(how: &str) -> bool {
    ENDING.iter().chain(&ENDED).any(|it| how.strip_suffix(it).is_some_and(|head| head.ends_with(' ')))
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() >= MAX_EVENTS {
        queue.pop_front();
    }
    queue.push_back(item);
}
