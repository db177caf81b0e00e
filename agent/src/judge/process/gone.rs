//! A process that ended and that nothing replaced.
//!
//! Ends are everyday: deploys, scale-in, finished jobs, a closed terminal. An end is worth telling only of a *service*:
//! a process that the operator declared, one that listened on a port, or one that held a pool for an hour (a job that
//! takes longer is rare, a consumer of a queue lives for days). Programs that a person starts are none of these. A
//! child that its parent forked inherits the port and the name, so it has to have lived for ten minutes as well.
//!
//! It is silent when another instance of the same target runs (scale-in), and when a successor came: an instance of the
//! same application and role that started around the end and whose key was not there before, such as one on another
//! port. A successor that does not listen yet has a minute to do so. The end of a parent speaks for its workers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tickbird_shared::Severity;

use super::Running;
use crate::discover::TargetKey;
use crate::inspect::Unit;
use crate::inspect::host::Ended;
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::hold::{Hold, Holds};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Rule, Subject, Tracks};
use crate::judge::{Moment, words};

/// A listener that lived shorter was a test's or a mistake.
const LISTENED: Duration = Duration::from_secs(2);
/// A listener that lived shorter and ended well had finished its work: a test suite, a one-off preview.
const SERVED: Duration = Duration::from_secs(60);
/// A process without a port that lived shorter was a job.
const HELD_A_POOL: Duration = Duration::from_secs(3600);
/// A child that lived shorter did one piece of work.
const WORKED: Duration = Duration::from_secs(600);
/// A successor may start this long before the end, and has as long after it to listen.
const AROUND: Duration = Duration::from_secs(60);
/// Without a look for so long after the hold, what was seen before counts: a host too starved to be looked at is no
/// reason to be silent.
const BLIND: Duration = Duration::from_secs(2);
/// Most ends that wait or are told at a time.
const MAX_ENDS: usize = 1_000;
/// Programs of people, not services, however long they run.
const OF_PEOPLE: [&str; 20] = [
    "psql",
    "pgcli",
    "pg_dump",
    "pg_restore",
    "pgbench",
    "mysql",
    "mariadb",
    "mysqldump",
    "redis-cli",
    "mongosh",
    "sqlite3",
    "dbeaver",
    "pgadmin4",
    "ssh",
    "curl",
    "wget",
    "ipython",
    "jupyter",
    "bash",
    "sh",
];

/// Ends that wait for their hold, and those that were told.
#[derive(Debug, Default)]
pub(super) struct Gone {
    waiting: Vec<Ended>,
    told: BTreeMap<TargetKey, Ended>,
    /// Declared applications that no process matches, and since when.
    absent: BTreeMap<TargetKey, Duration>,
    /// When the next hold passes.
    due: Option<Duration>,
    /// When the last look at the host began: an end after it may have a successor that nobody has seen yet.
    looked_at: Duration,
    waits_for_look: bool,
}

impl Gone {
    /// A process ended; what that means is decided by [`Self::tick`].
    pub(super) fn ended(&mut self, ended: &Ended) {
        if is_service(ended) && self.waiting.len() < MAX_ENDS {
            self.waiting.push(ended.clone());
            self.due = Some(ended.at);
        }
    }

    pub(super) const fn wake_at(&self) -> Option<Duration> {
        self.due
    }

    /// Whether an end whose hold has passed waits for a look that says whether it was replaced.
    pub(super) const fn waits_for_look(&self) -> bool {
        self.waits_for_look
    }

    /// Takes a look in: what runs is not gone.
    pub(super) fn look(
        &mut self,
        running: &[Running],
        targets: &BTreeMap<TargetKey, (Duration, Duration)>,
        absent: &[TargetKey],
        now: Moment,
        tracks: &mut Tracks,
    ) {
        self.looked_at = now.mono;
        let mut there: Vec<&TargetKey> = running.iter().map(|it| &it.target).collect();
        there.sort();
        there.dedup();
        let back: Vec<TargetKey> = self
            .told
            .iter()
            .filter(|(target, ended)| {
                !there.contains(target) && successor(ended, running, targets) == Successor::Serves
            })
            .map(|(target, _)| target.clone())
            .collect();
        for target in there.into_iter().chain(&back) {
            observe(target, Seen::known(0.0), now, tracks, Case::default);
        }
        self.tick(running, targets, now, tracks);
        let firing: Vec<TargetKey> = tracks
            .of(CheckId::Gone)
            .filter(|(_, it)| it.level.firing().is_some())
            .map(|it| it.0.target.clone())
            .collect();
        self.told.retain(|target, _| firing.contains(target));
        self.absent(absent, now, tracks);
    }

    /// Judges the ends whose hold has passed.
    pub(super) fn tick(
        &mut self,
        running: &[Running],
        targets: &BTreeMap<TargetKey, (Duration, Duration)>,
        now: Moment,
        tracks: &mut Tracks,
    ) {
        let hold = hold(tracks);
        let mut next: Option<Duration> = None;
        let mut wait = |due: Duration| next = Some(next.map_or(due, |it| it.min(due)));
        let (mut passed, mut waits_for_look) = (Vec::new(), false);
        let looked_at = self.looked_at;
        self.waiting.retain(|ended| {
            let successor = successor(ended, running, targets);
            let patience = if successor == Successor::Starts { hold.max(AROUND) } else { hold };
            let due = ended.at + patience;
            if successor == Successor::Serves {
                return false;
            }
            if now.mono < due {
                wait(due);
                return true;
            }
            if looked_at < ended.at && now.mono < due + BLIND {
                wait(due + BLIND);
                waits_for_look = true;
                return true;
            }
            passed.push(ended.clone());
            false
        });
        (self.due, self.waits_for_look) = (next, waits_for_look);
        // A parent's end is told first, so that it speaks for its workers.
        passed.sort_by_key(|it| it.application.role != "main");
        for ended in passed {
            let is_covered = ended.application.role != "main"
                && self
                    .told
                    .values()
                    .any(|it| it.application.name == ended.application.name && it.application.role == "main");
            if is_covered {
                continue;
            }
            let severity = if ended.application.declared { Severity::Critical } else { Severity::Warning };
            let seen = Seen { forced: Some(severity), words: Some(words_of(hold)), ..Seen::known(1.0) };
            observe(&ended.target, seen, now, tracks, || case(&ended, now));
            self.told.insert(ended.target.clone(), ended);
        }
    }

    /// Declared applications that were to be there and are not.
    fn absent(&mut self, absent: &[TargetKey], now: Moment, tracks: &mut Tracks) {
        let hold = hold(tracks);
        self.absent.retain(|target, _| {
            let is_still = absent.contains(target);
            if !is_still {
                observe(target, Seen::known(0.0), now, tracks, Case::default);
            }
            // It is fed zero until it has cleared.
            is_still || tracks.of(CheckId::Gone).any(|(key, it)| key.target == *target && it.level.firing().is_some())
        });
        for target in absent {
            let name = application_of(target);
            let is_told = |it: &Ended| *it.application.name == *name;
            if self.told.values().any(is_told) || self.waiting.iter().any(is_told) {
                continue;
            }
            let since = *self.absent.entry(target.clone()).or_insert(now.mono);
            if now.mono.saturating_sub(since) < hold && !tracks.ignores_holds() {
                continue;
            }
            let seen = Seen {
                forced: Some(Severity::Critical),
                words: Some(format!("it is expected, and no process matched it for {}", words::duration(hold))),
                ..Seen::known(1.0)
            };
            observe(target, seen, now, tracks, || Case {
                summary: format!("{} is expected to run here and does not", words::foreign(name, 80)),
                evidence: object(json!({
                    "application": name,
                    "rule": "[[app]] expected = true, and no command line matches",
                    "not_visible": [],
                })),
                advice: Some("start it, or mend the `command` of its [[app]] section if it runs".to_owned()),
                ..Case::default()
            });
        }
    }
}

/// The hold has passed here already: the track counts the first look that says so.
fn observe(target: &TargetKey, seen: Seen, now: Moment, tracks: &mut Tracks, case: impl FnOnce() -> Case) {
    let rule = tracks.rule(CheckId::Gone);
    let rule = Rule { holds: Holds { clearing: rule.holds.clearing, ..Holds::both(Hold::Looks(1)) }, ..rule };
    tracks.observe_by(rule, Subject::of(CheckId::Gone, target), seen, now, case);
}

/// How long an end waits for a successor; a hold in looks is one of the host's, a second each.
fn hold(tracks: &Tracks) -> Duration {
    match tracks.rule(CheckId::Gone).holds.warning {
        Hold::For(time) => time,
        Hold::Looks(looks) | Hold::Of { looks, .. } => Duration::from_secs(u64::from(looks)),
    }
}

fn words_of(hold: Duration) -> String {
    if hold.is_zero() {
        return "it ended and no other instance runs".to_owned();
    }
    format!("it ended and nothing took its place within {}", words::duration(hold))
}

fn is_service(ended: &Ended) -> bool {
    if ended.application.role != "main" && ended.age < WORKED {
        return false;
    }
    if ended.application.declared {
        return true;
    }
    let command = ended.command.split_whitespace().next().unwrap_or_default();
    let program = command.rsplit('/').next().unwrap_or_default();
    if OF_PEOPLE.contains(&program) || OF_PEOPLE.contains(&&*ended.application.name) {
        return false;
    }
    let has_finished = ended.how.as_deref() == Some("exit status 0");
    match port_of(&ended.target) {
        Some(_) => ended.age >= LISTENED && (ended.age >= SERVED || !has_finished),
        None => ended.age >= HELD_A_POOL && !has_finished,
    }
}

/// The port in `process:<application>/<role>:<port>`.
fn port_of(target: &TargetKey) -> Option<u16> {
    let (_, role) = target.as_str().rsplit_once('/')?;
    role.rsplit_once(':')?.1.parse().ok()
}

fn application_of(target: &TargetKey) -> &str {
    let key = target.as_str().trim_start_matches("process:");
    key.rsplit_once('/').map_or(key, |(application, _)| application)
}

/// Who took the place of a process that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Successor {
    None,
    /// It runs and does not listen yet.
    Starts,
    Serves,
}

fn successor(ended: &Ended, running: &[Running], targets: &BTreeMap<TargetKey, (Duration, Duration)>) -> Successor {
    if running.iter().any(|it| it.target == ended.target && it.instance != ended.instance) {
        return Successor::Serves;
    }
    let earliest = ended.at.saturating_sub(AROUND);
    let of_kind = |it: &&Running| {
        it.application == ended.application.name
            && it.role == ended.application.role
            && it.instance.start > ended.instance.start
    };
    let mut starts = false;
    for it in running.iter().filter(of_kind).filter(|it| it.started >= earliest && it.started > Duration::ZERO) {
        if it.listens {
            // A key that was there before is another instance of the service, and still is only that.
            let is_new =
                targets.get(&it.target).is_some_and(|(first, _)| *first >= earliest && *first > Duration::ZERO);
            if is_new {
                return Successor::Serves;
            }
        } else {
            starts = true;
        }
    }
    if starts { Successor::Starts } else { Successor::None }
}

fn case(ended: &Ended, now: Moment) -> Case {
    let how = ended.how.as_deref().map_or_else(String::new, |it| format!(" ({})", words::foreign(it, 80)));
    let since = now.mono.saturating_sub(ended.at).as_secs_f64();
    Case {
        summary: format!(
            "{}, pid {} ({}), ended after {}{how} and nothing took its place",
            words::foreign(&ended.application.name, 80),
            ended.instance.pid,
            words::foreign(&ended.command, 120),
            words::duration(ended.age),
        ),
        evidence: object(json!({
            "pid": ended.instance.pid,
            "start": ended.instance.start,
            "command": words::foreign(&ended.command, 200),
            "role": ended.application.role,
            "declared": ended.application.declared,
            "port": port_of(&ended.target),
            "lived_seconds": number(ended.age.as_secs_f64(), Unit::Seconds),
            "how": ended.how.as_deref(),
            "rule": "pidfd event, and no other instance of the same target",
            "not_visible": if ended.how.is_none() { vec!["exit status"] } else { vec![] },
        })),
        age_seconds: Some(since),
        ..Case::default()
    }
}
