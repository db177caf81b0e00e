//! The proof of an exhausted pool: who waits, for how long, and what each lease does.

use serde_json::{Value as Json, json};

use super::{Exhausted, Waiters};
use crate::discover::TargetKey;
use crate::inspect::Unit;
use crate::inspect::host::PoolRow;
use crate::judge::evidence::{self, Case, number, object};
use crate::judge::pool::lease::{Hold, Lease};
use crate::judge::pool::{owner_name, pid, pids, pids_in_words};
use crate::judge::words;

/// Most leases in one finding's evidence.
const MAX_LEASES: usize = 50;
/// Most requests of each process.
const MAX_REQUESTS: usize = 10;

pub(super) fn case(target: &TargetKey, told: Option<&Waiters>, exhausted: &[&Exhausted<'_>]) -> Case {
    let by_sockets: usize = exhausted.iter().map(|it| it.waiters).sum();
    let longest = exhausted.iter().map(|it| it.age).chain(told.map(Waiters::age)).max().unwrap_or_default();
    let leases: Vec<(&PoolRow, &Lease<'_>)> =
        exhausted.iter().flat_map(|it| it.leases.all.iter().map(|lease| (it.row, lease))).collect();
    let mut members: Vec<u64> = leases.iter().map(|(_, it)| it.connection.cookie).collect();
    members.sort_unstable();
    let mut not_visible = Vec::new();
    if exhausted.is_empty() {
        not_visible.push("what each lease does");
    }
    if exhausted.iter().any(|it| pid(it.row).is_none()) {
        not_visible.push("owner: not visible");
    }
    if leases.iter().any(|(_, it)| it.said.is_none()) {
        not_visible.push("sessions of some connections");
    }
    if told.is_none() {
        not_visible.push("whether each request in flight wants a connection");
    }
    let waiters = told.map_or(by_sockets as f64, |it| it.count);
    let oldest = told.and_then(|it| it.oldest).or_else(|| exhausted.iter().map(|it| it.oldest).max());
    Case {
        summary: summary(target, told, exhausted, waiters),
        evidence: object(json!({
            "waiters": number(waiters, Unit::Count),
            "waiters_source": told.map_or_else(
                || "requests in flight beyond the leases".to_owned(),
                |it| words::foreign(&it.source, 300),
            ),
            "waiters_by_requests": (!exhausted.is_empty()).then_some(by_sockets),
            "oldest_seconds": oldest.map(|it| number(it.as_secs_f64(), Unit::Seconds)),
            "seconds": number(longest.as_secs_f64(), Unit::Seconds),
            "instances": exhausted.iter().map(|it| instance(it)).collect::<Vec<_>>(),
            "leases": leases.iter().take(MAX_LEASES).map(|(row, it)| shown(row, it)).collect::<Vec<_>>(),
            "leases_total": leases.len(),
            "rule": match told {
                Some(_) => "callers that wait, by the application's own count",
                None => "every open connection leased or busy at two looks, none connecting, none opened for 2 s, more \
                         requests in flight than leases, the oldest over 1 s",
            },
            "not_visible": not_visible,
        })),
        members,
        age_seconds: Some(longest.as_secs_f64()),
        advice: None,
    }
}

fn summary(target: &TargetKey, told: Option<&Waiters>, exhausted: &[&Exhausted<'_>], waiters: f64) -> String {
    let Some(first) = exhausted.iter().max_by_key(|it| it.age) else {
        let name = words::foreign(target.as_str().trim_start_matches("pool:"), 200);
        let callers = words::counted(waiters as usize, "caller");
        let age = told.map(Waiters::age).unwrap_or_default();
        let since = if age.is_zero() { String::new() } else { format!(", for {} now", words::duration(age)) };
        return format!("{callers} of {name} wait for a connection{since}");
    };
    let open: usize = exhausted.iter().map(|it| it.leases.open()).sum();
    let pids = pids_in_words(&pids(exhausted.iter().map(|it| it.row)));
    let what = if told.is_some() { "caller" } else { "request" };
    let oldest = exhausted.iter().map(|it| it.oldest).max().unwrap_or_default();
    format!(
        "{}, {pids}: all {} to {} are leased and none is being opened; {} for one, the oldest request is {} old",
        owner_name(first.row),
        words::counted(open, "connection"),
        first.row.remote,
        waits(waiters as usize, what),
        words::duration(oldest),
    )
}

fn waits(count: usize, what: &str) -> String {
    let verb = if count == 1 { "waits" } else { "wait" };
    format!("{} {verb}", words::counted(count, what))
}

fn instance(it: &Exhausted<'_>) -> Json {
    let requests = it.serving.in_flight.iter().take(MAX_REQUESTS);
    json!({
        "pid": pid(it.row),
        "listens": it.serving.listens.iter().take(8).map(ToString::to_string).collect::<Vec<_>>(),
        "requests_in_flight": it.serving.in_flight.len(),
        "request_ages_seconds":
            requests.map(|it| number(it.age.as_secs_f64(), Unit::Seconds)).collect::<Vec<_>>(),
        "streams_left_out": it.serving.streams,
        "accept_queue": it.serving.accept_queue,
        "backlog": it.serving.backlog,
        "open": it.leases.open(),
        "waiters": it.waiters,
        "limit": evidence::value(&it.row.limit.value, Unit::Count),
        "limit_source": it.row.limit.source,
    })
}

fn shown(row: &PoolRow, lease: &Lease<'_>) -> Json {
    let seconds = |it: std::time::Duration| number(it.as_secs_f64(), Unit::Seconds);
    let session = lease.said.map(|it| &it.session);
    json!({
        "pid": pid(row),
        "fds": lease.connection.fds,
        "local": lease.connection.local.to_string(),
        "session": session.map(|it| it.backend),
        "state": match (lease.hold, session) {
            (Hold::Busy, _) => "busy: a request was sent and not answered",
            (_, Some(session)) => session.state.as_str(),
            (_, None) => "not visible",
        },
        "state_age_seconds": session.and_then(|it| it.state_age).map(seconds),
        "quiet_seconds": lease.connection.sent_age.min(lease.connection.received_age).map(seconds),
        "application_name": session.map(|it| words::foreign(&it.application_name, 63)),
        "statement": session.and_then(|it| it.statement.as_deref()).map(|it| words::foreign(it, 200)),
    })
}
