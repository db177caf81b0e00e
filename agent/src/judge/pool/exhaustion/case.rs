//! The proof of an exhausted pool: who waits, for how long, and what each lease does.

use serde_json::{Value as Json, json};

use super::{Exhausted, Waiters};
use crate::discover::TargetKey;
use crate::inspect::Unit;
use crate::inspect::host::PoolRow;
use crate::judge::evidence::{self, Case, number, object};
use crate::judge::pool::heard::Heard;
use crate::judge::pool::lease::{Hold, Lease, Leases};
use crate::judge::pool::row::{self, MAX_INSTANCES, MAX_ROWS, One, Rows};
use crate::judge::pool::{owner_name, pid, pids, pids_in_words};
use crate::judge::words;

/// Most requests of each process.
const MAX_REQUESTS: usize = 10;

/// `pools` are those that callers wait for, by somebody's own count or by what the sockets say.
pub(super) fn case(
    target: &TargetKey,
    told: Option<&Waiters>,
    exhausted: &[&Exhausted<'_>],
    pools: &[&PoolRow],
    heard: Heard<'_>,
) -> Case {
    let by_sockets: usize = exhausted.iter().map(|it| it.waiters).sum();
    let longest = exhausted.iter().map(|it| it.age).chain(told.map(Waiters::age)).max().unwrap_or_default();
    // Whoever counts the callers may do so where the sockets say nothing: then every connection may be a lease.
    let possible: Vec<(&PoolRow, Leases<'_>)> = match exhausted.is_empty() {
        true => pools.iter().map(|row| (*row, Leases::of(row, heard.sessions, heard.now))).collect(),
        false => Vec::new(),
    };
    let certain = exhausted.iter().map(|it| (it.row, &it.leases));
    let all = certain.chain(possible.iter().map(|(row, leases)| (*row, leases)));
    let leases: Vec<(&PoolRow, &Lease<'_>)> =
        all.flat_map(|(row, leases)| leases.all.iter().map(move |lease| (row, lease))).collect();
    let of_exhausted = exhausted.iter().flat_map(|it| &it.leases.all);
    let mut members: Vec<u64> = of_exhausted.map(|it| it.connection.cookie).collect();
    members.sort_unstable();
    let mut not_visible = Vec::new();
    if pools.is_empty() {
        not_visible.push("pid, fd and session: it is not told which connections of this host are the pool's");
    } else if exhausted.is_empty() {
        not_visible.push("what each lease does");
    }
    if told.is_none() {
        not_visible.push("whether each request in flight wants a connection");
    }
    let waiters = told.map_or(by_sockets as f64, |it| it.count);
    let oldest = told.and_then(|it| it.oldest).or_else(|| exhausted.iter().map(|it| it.oldest).max());
    let mut evidence = object(json!({
        "waiters": number(waiters, Unit::Count),
        "waiters_source": told.map_or_else(
            || "requests in flight beyond the leases".to_owned(),
            |it| words::foreign(&it.source, 300),
        ),
        "waiters_by_requests": (!exhausted.is_empty()).then_some(by_sockets),
        "oldest_seconds": oldest.map(|it| number(it.as_secs_f64(), Unit::Seconds)),
        "seconds": number(longest.as_secs_f64(), Unit::Seconds),
        "instances": exhausted.iter().take(MAX_INSTANCES).map(|it| instance(it)).collect::<Vec<_>>(),
        "instances_total": exhausted.len(),
        "leases_total": leases.len(),
        "rule": match told {
            Some(_) => "callers that wait, by the count of who hands connections out",
            None => "every open connection leased or busy at two looks, none connecting, none opened for 2 s, more \
                     requests in flight than leases, the oldest over 1 s",
        },
        "not_visible": not_visible,
    }));
    let mut shown = Rows::default();
    for (pool, lease) in leases.iter().take(MAX_ROWS) {
        add_row(&mut shown, pool, lease, heard);
    }
    shown.put(&mut evidence, "leases");
    Case {
        summary: summary(target, told, exhausted, waiters) + &row::sharing(leases.iter().map(|(_, it)| it.connection)),
        evidence,
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
        let verb = if waiters as usize == 1 { "waits" } else { "wait" };
        return format!("{callers} of {name} {verb} for a connection{since}");
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
        "start": row::instance(it.row).map(|it| it.start),
        "remote": it.row.remote.to_string(),
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

fn add_row(rows: &mut Rows, pool: &PoolRow, lease: &Lease<'_>, heard: Heard<'_>) {
    let (session, connection) = (lease.said.map(|it| &it.session), lease.connection);
    let age = match (lease.hold, session) {
        (Hold::Busy, _) | (_, None) => connection.sent_age.min(connection.received_age),
        (_, Some(session)) => session.transaction_age.or(session.state_age),
    };
    let row = rows.add(&One::of(pool, connection, heard.of(pool, connection), age.map(|it| it.as_secs_f64())));
    if lease.hold == Hold::Busy {
        row.insert("state".to_owned(), json!("busy: a request was sent and not answered"));
    }
    if let Some(session) = session {
        row.insert("application_name".to_owned(), json!(words::foreign(&session.application_name, 63)));
        row.insert("statement".to_owned(), json!(session.statement.as_deref().map(|it| words::foreign(it, 200))));
    }
}
