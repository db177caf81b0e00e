//! The proof of an exhausted pool: who waits, for how long, and what each lease does.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::waiters::{Client, CountedBy};
use super::{Exhausted, Waiters};
use crate::discover::TargetKey;
use crate::inspect::host::PoolRow;
use crate::inspect::{Unit, Value};
use crate::judge::evidence::{self, Case, number, object};
use crate::judge::pool::heard::Heard;
use crate::judge::pool::lease::{Hold, Lease, Leases};
use crate::judge::pool::row::{self, MAX_INSTANCES, MAX_ROWS, One, Rows};
use crate::judge::pool::{owner_name, pid, pids, pids_in_words};
use crate::judge::words;

/// Most requests of each process.
const MAX_REQUESTS: usize = 10;

/// What makes more of it than a record.
const ADVICE: &str = "name the pool's limit (`pool.limit`) or a page that counts its waiters (`pool.metrics`, \
                      `pool.health`): without them this is only recorded";

/// What stands behind the finding.
pub(super) struct Proof<'a> {
    pub(super) target: &'a TargetKey,
    /// Callers that wait, where somebody who knows says so.
    pub(super) told: Option<&'a Waiters>,
    /// The instances that are exhausted by their sockets.
    pub(super) exhausted: Vec<&'a Exhausted<'a>>,
    /// What the connections of every instance do.
    pub(super) leases: Vec<(&'a PoolRow, Leases<'a>)>,
    /// Nobody is told of it, for nobody tells who waits or what the limit is.
    pub(super) is_recorded: bool,
    pub(super) heard: Heard<'a>,
}

impl Proof<'_> {
    pub(super) fn case(&self) -> Case {
        let longest = self.exhausted.iter().map(|it| it.age).chain(self.told.map(Waiters::age)).max();
        let longest = longest.unwrap_or_default().as_secs_f64();
        let leases: Vec<(&PoolRow, &Lease<'_>)> = self.shown_leases();
        let of_exhausted = self.exhausted.iter().flat_map(|it| &it.leases.all);
        let mut members: Vec<u64> = of_exhausted.map(|it| it.connection.cookie).collect();
        members.sort_unstable();
        let clients = match self.told.map(|it| &it.counted_by) {
            Some(CountedBy::Pooler(clients)) => clients.as_slice(),
            Some(CountedBy::Application | CountedBy::Waits(_)) | None => &[],
        };
        let seconds = |it: Duration| number(it.as_secs_f64(), Unit::Seconds);
        let waits = match self.told.map(|it| &it.counted_by) {
            Some(CountedBy::Waits(it)) => Some(json!({
                "begun": it.gained.waits,
                "seconds_of_those_that_ended": it.gained.wait_seconds.map(|it| number(it, Unit::Seconds)),
                "given_up": it.gained.timeouts,
                "within_seconds": seconds(it.over),
            })),
            _ => None,
        };
        let by_requests = (!self.exhausted.is_empty()).then(|| self.at_most());
        let mut evidence = object(json!({
            "waiters": match self.told {
                Some(told) => evidence::value(&told.value(), Unit::Count),
                None => evidence::value(&Value::Between(0.0, self.at_most() as f64), Unit::Count),
            },
            "waiters_source": self.told.map_or_else(
                || "at most the requests in flight beyond the leases".to_owned(),
                |it| words::foreign(&it.source, 300),
            ),
            "waiters_at_most_by_requests": by_requests,
            "longest_wait_seconds": self.told.and_then(|it| it.oldest).map(seconds),
            "oldest_request_seconds": self.oldest_in_flight().map(seconds),
            "oldest_request_without_connection_seconds": self.oldest_without().map(seconds),
            "seconds": number(longest, Unit::Seconds),
            "waits": waits,
            "waiting_clients": clients.iter().map(client).collect::<Vec<_>>(),
            "instances": self.exhausted.iter().take(MAX_INSTANCES).map(|it| instance(it)).collect::<Vec<_>>(),
            "instances_total": self.exhausted.len(),
            "leases_total": leases.len(),
            "rule": match self.told.map(|it| &it.counted_by) {
                Some(CountedBy::Application) => "callers that wait, by the application's own count",
                Some(CountedBy::Waits(_)) => "callers that had to wait, by the application's counters of waits: not how many",
                Some(CountedBy::Pooler(_)) => "connections that wait for a server, by the pooler's own list",
                None => "every open connection leased or busy at two looks, none connecting, none opened for 2 s, \
                         more requests in flight than leases, the oldest over 1 s",
            },
            "not_visible": self.not_visible(),
        }));
        let mut rows = Rows::default();
        for (pool, lease) in leases.iter().take(MAX_ROWS) {
            add_row(&mut rows, pool, lease, self.heard);
        }
        rows.put(&mut evidence, "leases");
        Case {
            summary: self.summary() + &row::sharing(leases.iter().map(|(_, it)| it.connection)),
            evidence,
            members,
            age_seconds: Some(longest),
            advice: self.is_recorded.then(|| ADVICE.to_owned()),
        }
    }

    /// Those of the instances that are exhausted; of all of them where only the waiters were told.
    fn shown_leases(&self) -> Vec<(&PoolRow, &Lease<'_>)> {
        if self.exhausted.is_empty() {
            return self.leases.iter().flat_map(|(row, it)| it.all.iter().map(|lease| (*row, lease))).collect();
        }
        self.exhausted.iter().flat_map(|it| it.leases.all.iter().map(|lease| (it.row, lease))).collect()
    }

    fn not_visible(&self) -> Vec<&'static str> {
        let mut all = Vec::new();
        if self.leases.is_empty() {
            all.push("pid, fd and session: it is not told which connections of this host are the pool's");
        } else if self.exhausted.is_empty() {
            all.push("what each lease does");
        }
        if self.told.is_none() {
            all.push("whether each request in flight wants a connection");
        }
        if self.is_recorded {
            all.push("the limit of the pool: it may only have as many connections as it needs");
        }
        all
    }

    /// Requests in flight beyond the leases.
    fn at_most(&self) -> usize {
        self.exhausted.iter().map(|it| it.waiters).sum()
    }

    fn oldest_in_flight(&self) -> Option<Duration> {
        self.exhausted.iter().map(|it| it.serving.oldest()).max()
    }

    /// Only where it is known of every instance.
    fn oldest_without(&self) -> Option<Duration> {
        let all: Option<Vec<Duration>> = self.exhausted.iter().map(|it| it.oldest_without).collect();
        all?.into_iter().max()
    }

    fn summary(&self) -> String {
        let Some(first) = self.exhausted.iter().max_by_key(|it| it.age) else { return self.told_only() };
        let open: usize = self.exhausted.iter().map(|it| it.leases.open()).sum();
        let pids = pids_in_words(&pids(self.exhausted.iter().map(|it| it.row)));
        let waits = match self.told {
            Some(told) => format!("{} for one{}", callers(told), since(told)),
            None if self.is_recorded => {
                self.may_wait() + "; only recorded, for nobody tells the pool's limit or who waits"
            }
            None => self.may_wait(),
        };
        format!(
            "{}, {pids}: all {} to {} are leased and none is being opened; {waits}",
            owner_name(first.row),
            words::counted(open, "connection"),
            first.row.remote,
        )
    }

    /// The requests that are perhaps waiters: more of them than leases, which is all that is known.
    fn may_wait(&self) -> String {
        let in_flight: usize = self.exhausted.iter().map(|it| it.serving.in_flight.len()).sum();
        let oldest = match (self.oldest_without(), self.oldest_in_flight()) {
            (Some(age), _) => format!(", the oldest of them came {} ago", words::duration(age)),
            (None, age) => {
                format!(", the oldest request in flight is {} old", words::duration(age.unwrap_or_default()))
            }
        };
        format!(
            "up to {} of {} in flight may wait for one{oldest}",
            self.at_most(),
            words::counted(in_flight, "request")
        )
    }

    /// Only the waiters are known, not what the connections do.
    fn told_only(&self) -> String {
        let Some(told) = self.told else { return String::new() };
        let (waits, since) = (callers(told), since(told));
        let Some((row, _)) = self.leases.first() else {
            let name = words::foreign(self.target.as_str().trim_start_matches("pool:"), 200);
            return format!("{name}: {waits} for a connection{since}");
        };
        let who = format!("{}, {}", owner_name(row), pids_in_words(&pids(self.leases.iter().map(|(row, _)| *row))));
        match &told.counted_by {
            CountedBy::Application | CountedBy::Waits(_) => {
                let open: usize = self.leases.iter().map(|(_, it)| it.open()).sum();
                let open = words::counted(open, "open connection");
                format!("{who}: {waits} for one of its {open} to {}{since}", row.remote)
            }
            CountedBy::Pooler(clients) => {
                let fd = clients.first().and_then(|it| it.fd).map(|fd| format!(" on fd {fd}")).unwrap_or_default();
                format!("{who}: {waits} at {} for a server{since}{fd}", words::foreign(&told.source, 200))
            }
        }
    }
}

/// `3 callers wait`, `at least 1 caller waits`.
fn callers(told: &Waiters) -> String {
    match told.counted_by {
        CountedBy::Pooler(_) => words::waits(told.count as usize, "connection"),
        CountedBy::Application => words::waits(told.count as usize, "caller"),
        CountedBy::Waits(_) => format!("at least {}", words::waits(told.count as usize, "caller")),
    }
}

/// `, the longest for 12 s`, as far as it is known.
fn since(told: &Waiters) -> String {
    match (told.oldest, told.age()) {
        (Some(oldest), _) if told.count <= 1.0 => format!(", for {}", words::duration(oldest)),
        (Some(oldest), _) => format!(", the longest for {}", words::duration(oldest)),
        (None, age) if age.is_zero() => String::new(),
        (None, age) => format!(", for {} now", words::duration(age)),
    }
}

fn client(it: &Client) -> Json {
    json!({
        "pid": it.pid,
        "fd": it.fd,
        "local": it.local.to_string(),
        "waited_seconds": number(it.waited.as_secs_f64(), Unit::Seconds),
    })
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
        "waiters_at_most": it.waiters,
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
        rows.tell(json!({
            "application_name": words::foreign(&session.application_name, 63),
            "statement": session.statement.as_deref().map(|it| words::foreign(it, 200)),
        }));
    }
}
