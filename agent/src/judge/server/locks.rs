//! `db.locks`: sessions that wait for a lock of another, and deadlocks that the server had to break.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tickbird_shared::Severity;

use crate::discover::TargetKey;
use crate::inspect::server::{Blocked, Session};
use crate::inspect::{Reason, ServerLook, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::pool::Pools;
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// A deadlock is over when it is counted: it stands for so long and so many looks, so that a hold can see it.
const STANDS: Duration = Duration::from_secs(60);
const STANDS_FOR_LOOKS: u32 = 4;
/// Most waiting sessions in the evidence.
const MAX_LISTED: usize = 20;

/// Deadlocks that were counted, by server.
#[derive(Debug, Default)]
pub(super) struct Deadlocks(BTreeMap<TargetKey, Counted>);

#[derive(Debug)]
struct Counted {
    total: u64,
    /// How many came at the last rise, when, and the looks since.
    last: Option<(u64, Duration, u32)>,
}

impl Deadlocks {
    pub(super) fn look(&mut self, look: &ServerLook, pools: &Pools, now: Moment, tracks: &mut Tracks) {
        let Some(blocked) = &look.facts.blocked else { return };
        let deadlocks = self.recent(look, now);
        let longest = longest(blocked, look);
        let waited = longest.low().unwrap_or_default();
        let mut seen = Seen::value(longest);
        let critical = tracks.rule(CheckId::Locks).bounds.critical.unwrap_or(f64::INFINITY);
        if deadlocks > 0 {
            // It was seen to be, whatever else cannot be seen.
            if seen.value.low().is_none() {
                seen.value = Value::Between(0.0, f64::INFINITY);
            }
            seen.forced = (waited < critical).then_some(Severity::Warning);
            seen.words = Some(words::counted(usize::try_from(deadlocks).unwrap_or(usize::MAX), "deadlock"));
        }
        let rows = blocked.as_deref().unwrap_or_default();
        tracks.observe(Subject::of(CheckId::Locks, &look.target), seen, now, || case(look, rows, deadlocks, pools));
    }

    /// Deadlocks of the last rise while it stands.
    fn recent(&mut self, look: &ServerLook, now: Moment) -> u64 {
        let Some(Ok(counters)) = &look.facts.counters else { return 0 };
        let fresh = || Counted { total: counters.deadlocks, last: None };
        let counted = self.0.entry(look.target.clone()).or_insert_with(fresh);
        let came = counters.deadlocks.saturating_sub(counted.total);
        counted.total = counters.deadlocks;
        if came > 0 {
            counted.last = Some((came, now.mono, 0));
        }
        let Some((came, at, looks)) = &mut counted.last else { return 0 };
        *looks += 1;
        if now.mono.saturating_sub(*at) < STANDS || *looks <= STANDS_FOR_LOOKS { *came } else { 0 }
    }
}

/// Seconds of the longest wait, as far as it can be seen.
fn longest(blocked: &Result<Vec<Blocked>, Reason>, look: &ServerLook) -> Value {
    let rows = match blocked {
        Ok(rows) => rows,
        Err(reason) => return Value::Unknown(reason.clone()),
    };
    let known = rows.iter().filter_map(|it| it.waited).max().unwrap_or_default().as_secs_f64();
    let untold = rows.iter().any(|it| it.waited.is_none());
    match (&look.hidden, untold) {
        (None, false) => Value::Known(known),
        _ if known > 0.0 => Value::Between(known, f64::INFINITY),
        (Some(hidden), _) => Value::Unknown(hidden.clone()),
        (None, true) => Value::Unknown(Reason::Absent("since when a lock is waited for (PostgreSQL 14)".into())),
    }
}

fn case(look: &ServerLook, blocked: &[Blocked], deadlocks: u64, pools: &Pools) -> Case {
    let sessions = look.sessions.as_deref().unwrap_or_default();
    let find = |backend: u64| sessions.iter().find(|it| it.backend == backend);
    let server = look.target.as_str().trim_start_matches("server:");
    let word = look.engine.session_word();
    let longest = blocked.iter().max_by_key(|it| it.waited);
    let mut summary = match longest {
        Some(it) => {
            let waited = it.waited.map_or_else(|| "an unknown time".to_owned(), words::duration);
            let by = it.by.first().map(|by| format!(", held by {}", named(*by, find(*by), word)));
            let who = named(it.backend, find(it.backend), word);
            let count = words::counted(blocked.len(), "session");
            let wait = if blocked.len() == 1 { "waits" } else { "wait" };
            format!("{count} of {server} {wait} for a lock, {who} for {waited}{}", by.unwrap_or_default())
        }
        None => String::new(),
    };
    if deadlocks > 0 {
        let count = words::counted(usize::try_from(deadlocks).unwrap_or(usize::MAX), "deadlock");
        let told = format!("{server} broke {count} by ending a transaction");
        summary = if summary.is_empty() { told } else { format!("{told}; {summary}") };
    }
    if summary.is_empty() {
        summary = format!("no session of {server} waits for a lock");
    }
    let row = |backend: u64| {
        let session = find(backend);
        let holder = session.and_then(|it| pools.holder(it));
        json!({
            "backend": backend,
            "pid": holder.map(|it| it.0),
            "fd": holder.map(|it| it.1),
            "user": session.map(|it| words::foreign(&it.user, 63)),
            "database": session.map(|it| words::foreign(&it.database, 63)),
            "application_name": session.map(|it| words::foreign(&it.application_name, 63)),
            "state": session.map(|it| it.state.as_str()),
            "state_age_seconds": session.and_then(|it| it.state_age).map(|it| number(it.as_secs_f64(), Unit::Seconds)),
            "transaction_age_seconds":
                session.and_then(|it| it.transaction_age).map(|it| number(it.as_secs_f64(), Unit::Seconds)),
            "statement": session.and_then(|it| it.statement.as_deref()).map(|it| words::foreign(it, 200)),
        })
    };
    let listed = blocked.iter().take(MAX_LISTED).map(|it| {
        let mut shown = object(row(it.backend));
        shown.insert("waited_seconds".into(), json!(it.waited.map(|it| number(it.as_secs_f64(), Unit::Seconds))));
        shown.insert("waits_for".into(), it.by.iter().take(4).map(|by| row(*by)).collect());
        shown
    });
    let mut members: Vec<u64> = blocked.iter().map(|it| it.backend).collect();
    members.sort_unstable();
    Case {
        summary,
        evidence: object(json!({
            "blocked_total": blocked.len(),
            "blocked": listed.collect::<Vec<_>>(),
            "deadlocks": deadlocks,
            "rule": "pg_locks.waitstart and pg_blocking_pids() of sessions that wait for a lock; pg_stat_get_db_deadlocks()",
            "not_visible": look.hidden.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
        members,
        age_seconds: longest.and_then(|it| it.waited).map(|it| it.as_secs_f64()),
        advice: None,
    }
}

/// `backend 812 of billing (idle in transaction for 40 s)`.
fn named(backend: u64, session: Option<&Session>, word: &str) -> String {
    if backend == 0 {
        return "a prepared transaction".to_owned();
    }
    let Some(session) = session else { return format!("{word} {backend}") };
    let name = if session.application_name.is_empty() { &session.user } else { &session.application_name };
    let age = session.state_age.map(|it| format!(" for {}", words::duration(it))).unwrap_or_default();
    format!("{word} {backend} of {} ({}{age})", words::foreign(name, 60), session.state.as_str())
}
