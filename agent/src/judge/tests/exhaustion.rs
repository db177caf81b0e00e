//! All leased, nobody connects, requests wait; and everything that only looks like it.

use super::rows::{address, pool, server, session};
use super::stats::{said, shop};
use super::*;
use crate::discover::TargetKey;
use crate::inspect::host::{InFlight, Limit, PoolRow, ServiceRow, TcpState};
use crate::inspect::server::SessionState;

const CHECK: &str = "pool.exhausted";

/// Shop, whose pool of five is all busy since so many seconds.
fn busy(seconds: f64) -> PoolRow {
    let mut it = shop(77, 5);
    for one in &mut it.connections {
        one.sent_age = Some(Duration::from_secs_f64(seconds));
        one.received_age = Some(Duration::from_secs_f64(seconds + 0.1));
    }
    it
}

fn limited(mut row: PoolRow, limit: f64) -> PoolRow {
    row.limit = Limit { value: Value::Known(limit), source: "DATABASE_URL of the process".into() };
    row
}

/// Requests of these ages in flight at the owner of a pool, oldest first; each is known by its place in the list.
fn serves(row: &PoolRow, ages: impl IntoIterator<Item = f64>) -> ServiceRow {
    let request = |(index, age): (u64, f64)| in_flight(index, age, age + 0.1);
    let mut in_flight: Vec<_> = (0..).zip(ages).map(request).collect();
    in_flight.sort_by_key(|it| std::cmp::Reverse(it.age));
    ServiceRow {
        target: TargetKey::process("shop", "main", Some(8000)),
        owner: row.owner.clone(),
        listen: address("0.0.0.0:8000"),
        accepted: 30,
        in_flight,
        accept_queue: 0,
        backlog: 128,
    }
}

fn in_flight(index: u64, age: f64, sent_age: f64) -> InFlight {
    let [age, sent_age] = [age, sent_age].map(Duration::from_secs_f64);
    InFlight { cookie: 900_000 + index, age, sent_age }
}

fn host(row: PoolRow, ages: impl IntoIterator<Item = f64>) -> HostLook {
    let service = serves(&row, ages);
    HostLook { services: vec![service], ..host_of(vec![row]) }
}

/// Twenty requests that all came so many seconds ago.
fn twenty(seconds: f64) -> Vec<f64> {
    vec![seconds; 20]
}

/// A quiet start, then so many seconds of what `scene` gives for the seconds since.
fn night(seconds: u64, scene: impl Fn(f64) -> HostLook) -> Night {
    let mut night = Night::begin();
    night.hosts(&host(shop(77, 5), []), 30);
    watch(&mut night, seconds, scene);
    night
}

fn watch(night: &mut Night, seconds: u64, scene: impl Fn(f64) -> HostLook) {
    for second in 1..=seconds {
        night.wait(1.0).host(&scene(second as f64));
    }
}

#[test]
fn requests_beyond_the_leases_of_a_full_pool_are_its_waiters() {
    let mut night = night(12, |second| host(limited(busy(second), 5.0), twenty(second)));
    assert_eq!(night.told_of(CHECK), "34s pool.exhausted began warning", "three seconds after the first full look");
    let finding = night.last().clone();
    assert_eq!(
        finding.summary,
        "shop, pid 77: all 5 connections to 10.0.0.5:5432 are leased and none is being opened; up to 15 of 20 \
         requests in flight may wait for one, the oldest request in flight is 4 s old"
    );
    let proof = evidence(&finding);
    assert_eq!((&proof["waiters"], &proof["leases_total"]), (&serde_json::json!([0, 15]), &5.into()));
    let lease = &proof["leases"][0];
    assert_eq!((&lease["pid"], &lease["fd"]), (&77.into(), &10.into()));
    assert!(lease["state"].as_str().expect("a state").starts_with("busy"), "{lease}");
    watch(&mut night, 3, |_| host(limited(shop(77, 5), 5.0), []));
    assert_eq!(night.told_of(CHECK), "45s pool.exhausted cleared warning");
}

#[test]
fn requests_that_came_after_every_lease_are_those_that_have_none() {
    // Five reports of 40 s, and ten long polls of 25 s that want no connection.
    let mut night = night(30, |second| {
        let ages = [second + 0.2; 5].into_iter().chain([second - 6.0; 10]).filter(|age| *age >= 0.0);
        host(limited(busy(second), 5.0), ages)
    });
    assert_eq!(night.told_of(CHECK), "39s pool.exhausted began warning", "three seconds after the polls came");
    assert!(
        night
            .last()
            .summary
            .ends_with("; up to 10 of 15 requests in flight may wait for one, the oldest of them came 3 s ago"),
        "{}",
        night.last().summary
    );
    let proof = evidence(night.last());
    assert_eq!(
        (&proof["oldest_request_without_connection_seconds"], &proof["waiters"]),
        (&3.into(), &serde_json::json!([0, 10]))
    );
    assert_eq!(night.is(CHECK, "shop"), "warning", "nobody told that anybody waits");
}

#[test]
fn waiters_are_shown_as_far_as_they_are_known() {
    let target = shop(77, 5).target;
    let shown = |night: &Night| night.judge.waiters(&target, night.now());
    let mut night = Night::begin();
    night.wait(1.0).host(&host(busy(1.0), twenty(1.0)));
    assert_eq!(shown(&night), Value::Between(0.0, 15.0), "already at the first look; each may want something else");
    night.wait(1.0).host(&host(shop(77, 5), twenty(1.0)));
    assert_eq!(shown(&night), Value::Between(0.0, 20.0), "nobody knows what the idle connections are");
    night.wait(1.0).host(&host(shop(77, 5), []));
    assert_eq!(shown(&night), Value::Known(0.0));
    night.wait(1.0).host(&host_of(vec![busy(1.0)]));
    assert_eq!(shown(&night).low(), None, "its requests cannot be seen");
    night.stats(&said(5.0, 5.0, 7.0));
    assert_eq!(shown(&night), Value::Known(7.0));
}

#[test]
fn where_nobody_tells_a_limit_or_waiters_it_is_only_recorded() {
    let mut found = night(30, |second| host(busy(second), twenty(second)));
    assert_eq!(found.told_of(CHECK), "34s pool.exhausted began info");
    let (finding, proof) = (found.last().clone(), evidence(found.last()));
    assert!(proof["not_visible"].to_string().contains("whether each request in flight wants"), "{proof}");
    assert!(proof["not_visible"].to_string().contains("the limit of the pool"), "{proof}");
    assert!(finding.summary.ends_with("only recorded, for nobody tells the pool's limit or who waits"), "{finding:?}");
    assert_eq!(finding.reason, "3 s has reached 3 s for 1 look");
    assert!(finding.advice.as_deref().is_some_and(|it| it.contains("`pool.limit`")), "{:?}", finding.advice);
    // Its limit comes to be known.
    watch(&mut found, 3, |second| host(limited(busy(30.0 + second), 5.0), twenty(30.0 + second)));
    assert_eq!(found.told_of(CHECK), "61s pool.exhausted worsened warning");

    // A pool of fifteen, as its code says, has needed two connections for ten minutes; other requests call an API.
    let mut small = Night::begin();
    watch(&mut small, 60, |_| host(shop(77, 15), []));
    watch(&mut small, 700, |_| host(shop(77, 2), []));
    watch(&mut small, 50, |second| {
        let mut row = shop(77, 2);
        for one in &mut row.connections {
            one.sent_age = Some(Duration::from_secs_f64(second));
            one.received_age = Some(Duration::from_secs_f64(second + 0.1));
        }
        host(row, vec![second; 10])
    });
    let told = small.told_of(CHECK);
    assert!(told.lines().count() == 1 && told.ends_with("began info"), "{told}");
}

#[test]
fn a_size_beside_which_an_overflow_may_be_is_no_limit_until_that_is_reached_too() {
    let between = |second: f64, high: f64| {
        let mut row = busy(second);
        row.limit = Limit { value: Value::Between(5.0, high), source: "DB_POOL_SIZE of the process".into() };
        host(row, twenty(second))
    };
    let mut may_have_more = night(10, |second| between(second, 15.0));
    assert_eq!(may_have_more.told_of(CHECK), "34s pool.exhausted began info");
    let mut has_all = night(10, |second| between(second, 5.0));
    assert_eq!(has_all.told_of(CHECK), "34s pool.exhausted began warning");
}

/// Eight WebSockets that say something every seven seconds and get no answer, each at a time of its own, beside five
/// requests that have their connection.
#[test]
fn streams_that_say_something_now_and_then_are_no_waiters() {
    let scene = |row: PoolRow, second: f64, age: Option<f64>| {
        let mut look = host(row, []);
        let requests = &mut look.services[0].in_flight;
        requests.extend((0..8_u64).map(|index| in_flight(index, (second + index as f64) % 7.0, 400.0 + second)));
        requests.extend(age.into_iter().flat_map(|age| (20..25).map(move |index| in_flight(index, age, age + 0.1))));
        requests.sort_by_key(|it| std::cmp::Reverse(it.age));
        look
    };
    let mut night = Night::begin();
    watch(&mut night, 10, |second| scene(limited(shop(77, 5), 5.0), second, None));
    watch(&mut night, 50, |second| scene(limited(busy(second), 5.0), 10.0 + second, Some(second)));
    assert_eq!((night.told_of(CHECK).as_str(), night.is(CHECK, "shop")), ("", "ok"));
}

/// A kept-alive connection brings one request after another: each is answered before the next comes.
#[test]
fn requests_that_follow_one_another_on_a_connection_are_requests() {
    let mut night = Night::begin();
    night.hosts(&host(limited(shop(77, 5), 5.0), []), 30);
    watch(&mut night, 20, |second| {
        let mut look = host(limited(busy(second), 5.0), vec![second; 5]);
        // Every third second the answer of something quick, and the next request right after it.
        look.services[0].in_flight.extend((50..60).map(|index| in_flight(index, second % 3.0, second % 3.0 + 0.05)));
        look.services[0].in_flight.sort_by_key(|it| std::cmp::Reverse(it.age));
        look
    });
    assert!(night.told_of(CHECK).contains("began warning"));
    assert_eq!(evidence(night.last())["instances"][0]["streams_left_out"], 0);
}

#[test]
fn waiters_stay_waiters_however_old_they_grow() {
    let mut night = night(150, |second| host(limited(busy(second), 5.0), twenty(second)));
    assert_eq!(night.told_of(CHECK), "34s pool.exhausted began warning");
    assert_eq!(night.is(CHECK, "shop"), "warning", "a request that waits for minutes is no stream");
}

#[test]
fn web_sockets_and_event_streams_do_not_wait() {
    // Eight that have been open for long, eight that receive something each second and never answer.
    let streams = |second: f64| (0..8).map(move |_| 600.0 + second).chain((0..8).map(|_| 0.4));
    let mut alone = Night::begin();
    watch(&mut alone, 60, |second| host(busy(second), streams(second)));
    assert_eq!((alone.told_of(CHECK).as_str(), alone.is(CHECK, "shop")), ("", "ok"));
    let mut night = Night::begin();
    watch(&mut night, 30, |second| host(shop(77, 5), streams(second)));
    watch(&mut night, 4, |second| {
        let (row, waiting) = (limited(busy(second), 5.0), twenty(second));
        host(row, streams(30.0 + second).chain(waiting))
    });
    assert_eq!(night.told_of(CHECK), "34s pool.exhausted began warning");
    assert_eq!(evidence(night.last())["waiters_at_most_by_requests"], 15);
    assert_eq!(evidence(night.last())["instances"][0]["streams_left_out"], 16);
}

#[test]
fn a_burst_of_two_seconds_is_no_exhaustion() {
    let mut night = Night::begin();
    for round in 0..20 {
        watch(&mut night, 2, |second| host(limited(busy(second), 5.0), twenty(second)));
        watch(&mut night, 3 + round % 3, |_| host(limited(shop(77, 5), 5.0), [0.2]));
    }
    assert_eq!(night.told_of(CHECK), "");
}

#[test]
fn slow_requests_that_need_no_connection_are_left_alone() {
    // Ten requests wait for another service; the pool has idle connections.
    let mut idle = night(60, |second| host(shop(77, 5), vec![second; 10]));
    assert_eq!(idle.told_of(CHECK), "");
    // The pool is busy, and may open more.
    let mut growing = night(60, |second| host(limited(busy(second), 20.0), vec![second; 10]));
    assert_eq!((growing.told_of(CHECK).as_str(), growing.is(CHECK, "shop")), ("", "ok"));
    // It had more a minute ago, so it may have more now.
    let mut before = Night::begin();
    before.hosts(&host(shop(77, 9), []), 60);
    watch(&mut before, 60, |second| host(busy(second), vec![second; 10]));
    assert_eq!((before.told_of(CHECK).as_str(), before.is(CHECK, "shop")), ("", "ok"));
    // Every request has its connection.
    let mut served = night(60, |second| host(limited(busy(second), 5.0), vec![second; 5]));
    assert_eq!((served.told_of(CHECK).as_str(), served.is(CHECK, "shop")), ("", "ok"));
}

#[test]
fn requests_that_hold_connections_of_another_pool_do_not_wait_for_this_one() {
    let mut night = Night::begin();
    watch(&mut night, 60, |second| {
        let here = limited(busy(second), 5.0);
        let mut there = pool("shop", 77, "10.0.0.6:5432");
        there.connections = here.connections.clone();
        for (index, it) in there.connections.iter_mut().enumerate() {
            it.cookie += 1_000 + index as u64;
        }
        let service = serves(&here, vec![second; 10]);
        HostLook { services: vec![service], ..host_of(vec![here, there]) }
    });
    assert_eq!(night.told_of(CHECK), "");
}

#[test]
fn a_pool_that_grows_or_connects_is_not_exhausted_yet() {
    let mut growing = night(30, |second| {
        let mut row = busy(second);
        row.births = 1;
        host(row, twenty(second))
    });
    assert_eq!(growing.told_of(CHECK), "");
    let mut connecting = night(30, |second| {
        let mut row = busy(second);
        row.connections[4].state = TcpState::SynSent;
        host(row, twenty(second))
    });
    assert_eq!(connecting.told_of(CHECK), "");
}

/// Sessions of the five connections in this state.
fn view(state: SessionState) -> ServerLook {
    let sessions = (0..5_u32).map(|index| {
        let mut it = session(900 + u64::from(index), &format!("10.0.0.9:{}", 7700 + index));
        it.state = state;
        it
    });
    server("10.0.0.5:5432", sessions.collect())
}

/// The five connections, last used so many seconds ago by the application.
fn quiet(seconds: f64) -> PoolRow {
    let mut it = limited(shop(77, 5), 5.0);
    for one in &mut it.connections {
        (one.sent_age, one.received_age) =
            (Some(Duration::from_secs_f64(seconds + 0.1)), Some(Duration::from_secs_f64(seconds)));
    }
    it
}

#[test]
fn leases_that_are_idle_in_a_transaction_count_by_the_servers_word() {
    let mut night = Night::begin();
    night.hosts(&host(quiet(9.0), []), 30);
    for second in 1..=12 {
        night.wait(1.0).host(&host(quiet(f64::from(second)), twenty(f64::from(second))));
        if second % 2 == 0 {
            night.server(&view(SessionState::IdleInTransaction));
        }
    }
    assert_eq!(night.told_of(CHECK), "35s pool.exhausted began warning");
    let lease = &evidence(night.last())["leases"][0];
    assert_eq!((&lease["session"], &lease["state"]), (&900.into(), &"idle in transaction".into()));
    // The requests go on for another reason, and a connection that was returned stays unwanted.
    for second in 13..=24 {
        night.wait(1.0).host(&host(quiet(f64::from(second) - 12.0), twenty(f64::from(second))));
        if second % 2 == 0 {
            night.server(&view(SessionState::Idle));
        }
    }
    assert_eq!(night.told_of(CHECK), "47s pool.exhausted cleared warning");
}

#[test]
fn connections_that_are_used_between_the_servers_looks_count_by_those_looks() {
    let mut night = Night::begin();
    night.hosts(&host(quiet(9.0), []), 30);
    for second in 1..=14 {
        // Every connection was used 100 ms ago: another request has it now.
        night.wait(1.0).host(&host(quiet(0.1), twenty(f64::from(second))));
        if second % 2 == 0 {
            night.server(&view(SessionState::IdleInTransaction));
        }
    }
    assert_eq!(night.told_of(CHECK), "36s pool.exhausted began warning");
}

#[test]
fn idle_connections_while_requests_wait_say_nothing_of_leases() {
    let mut night = Night::begin();
    for second in 1..=40 {
        night.wait(1.0).host(&host(quiet(f64::from(second)), twenty(f64::from(second))));
        if second % 2 == 0 {
            night.server(&view(SessionState::Idle));
        }
    }
    assert_eq!(night.told_of(CHECK), "");
    assert_eq!(night.is(CHECK, "shop"), "not yet", "five leaked without a transaction would look the same");
}

#[test]
fn exact_waiters_need_no_sockets_and_turn_critical() {
    let mut night = Night::begin();
    let mut look = host_of(vec![shop(77, 5)]);
    look.services.clear();
    for second in 1..=14 {
        night.hosts(&look, 1);
        if second % 2 == 0 {
            night.stats(&said(5.0, 5.0, 7.0));
        }
    }
    assert_eq!(night.told_of(CHECK), "7s pool.exhausted began warning\n13s pool.exhausted worsened critical");
    let proof = evidence(night.last());
    assert_eq!(proof["waiters"], 7);
    assert_eq!(proof["waiters_source"], "hikaricp_connections_* of http://127.0.0.1:8000/metrics");
    assert_eq!(proof["rule"], "callers that wait, by the application's own count");
    assert_eq!((&proof["leases"][0]["pid"], &proof["leases"][0]["fd"]), (&77.into(), &10.into()));
    assert_eq!(
        night.last().summary,
        "shop, pid 77: 7 callers wait for one of its 5 open connections to 10.0.0.5:5432, for 10 s now"
    );
    night.stats(&said(3.0, 5.0, 0.0));
    night.hosts(&look, 3);
    assert_eq!(night.told_of(CHECK), "17s pool.exhausted cleared critical");
}

#[test]
fn an_application_that_says_that_nobody_waits_is_believed() {
    let mut night = Night::begin();
    for second in 1..=40 {
        let row = limited(busy(f64::from(second)), 5.0);
        night.wait(1.0).host(&host(row, vec![f64::from(second); 10]));
        if second % 2 == 0 {
            night.stats(&said(5.0, 5.0, 0.0));
        }
    }
    assert_eq!(night.told_of(CHECK), "", "the other requests want no connection");
}

#[test]
fn an_application_that_is_too_stuck_to_tell_is_seen_all_the_same() {
    let mut night = Night::begin();
    night.stats(&said(1.0, 5.0, 0.0));
    night.hosts(&host(shop(77, 5), []), 2);
    night.stats(&said(1.0, 5.0, 0.0));
    watch(&mut night, 5, |second| host(busy(second), twenty(second)));
    assert_eq!(night.told_of(CHECK), "", "it is asked every two seconds now, and may say that nobody waits");
    watch(&mut night, 5, |second| host(busy(5.0 + second), twenty(5.0 + second)));
    assert_eq!(night.told_of(CHECK), "9s pool.exhausted began warning", "what it said was before");
}

#[test]
fn what_is_waited_for_while_connections_are_left_is_their_opening() {
    let mut night = Night::begin();
    for _ in 0..20 {
        night.hosts(&host_of(vec![shop(77, 5)]), 2);
        night.stats(&said(4.0, 10.0, 3.0));
    }
    assert_eq!(night.told_of(CHECK), "");
}

#[test]
fn one_of_several_processes_that_has_waiters_is_a_warning() {
    let mut night = Night::begin();
    let look = host_of(vec![shop(77, 5), shop(78, 5)]);
    for _ in 0..20 {
        night.hosts(&look, 2);
        night.stats(&said(5.0, 5.0, 3.0));
    }
    assert_eq!(night.told_of(CHECK), "7s pool.exhausted began warning");
}

#[test]
fn a_pool_that_stopped_twice_beside_requests_has_no_limit_that_is_known() {
    let mut night = night(10, |second| host(busy(second), twenty(second)));
    watch(&mut night, 10, |_| host(shop(77, 5), []));
    let reason = |night: &Night| night.state("pool.utilization", "shop").value.low();
    assert_eq!(reason(&night), None, "once may have been demand");
    watch(&mut night, 10, |second| host(busy(second), twenty(second)));
    watch(&mut night, 10, |_| host(shop(77, 2), []));
    let limit = |night: &Night| night.judge.pools()[0].limit.0.clone();
    assert_eq!(limit(&night), Value::Between(5.0, f64::INFINITY), "the requests may have wanted something else");
    assert_eq!(reason(&night), None, "so nothing is used up");
    watch(&mut night, 10, |_| host(shop(77, 7), []));
    assert_eq!(limit(&night).low(), None, "it went beyond what was learned");
    assert!(!night.told_of(CHECK).contains("critical"), "what is learned by one sign proves nothing by itself");
}

#[test]
fn callers_that_wait_at_a_pooler_are_exact() {
    use crate::inspect::server::{Engine, PoolMode, Waiter};
    let mut row = shop(77, 5);
    row.service = Some("pgbouncer");
    let mut look = view(SessionState::Active);
    (look.engine, look.pool_mode) = (Engine::PgBouncer, Some(PoolMode::Transaction));
    let mut night = Night::begin();
    for second in 1..=14 {
        night.hosts(&host_of(vec![row.clone()]), 1);
        if second % 2 == 0 {
            look.waiters = vec![Waiter {
                address: Some(address("10.0.0.9:1").ip()),
                port: Some(7702),
                database: "app".into(),
                user: "web".into(),
                waited: Duration::from_secs(second),
            }];
            night.server(&look);
        }
    }
    assert_eq!(night.told_of(CHECK), "4s pool.exhausted began warning\n10s pool.exhausted worsened critical");
    let proof = evidence(night.last());
    assert_eq!(proof["waiters_source"], "PgBouncer at 10.0.0.5:5432");
    assert_eq!(proof["rule"], "connections that wait for a server, by the pooler's own list");
    let client = &proof["waiting_clients"][0];
    assert_eq!((&client["pid"], &client["fd"], &client["waited_seconds"]), (&77.into(), &12.into(), &10.into()));
    assert_eq!(
        night.last().summary,
        "shop, pid 77: 1 connection waits at PgBouncer at 10.0.0.5:5432 for a server, for 10 s on fd 12"
    );
    look.waiters.clear();
    night.server(&look);
    night.hosts(&host(row, []), 3);
    assert!(night.told_of(CHECK).ends_with("pool.exhausted cleared critical"));
}

/// What the pooler's word began ends by it, though nobody sees this process's requests; not while all is leased.
#[test]
fn a_pooler_at_which_nobody_waits_any_more_is_believed_while_a_connection_is_left() {
    use crate::inspect::server::{Engine, PoolMode, Waiter};
    let mut row = shop(77, 2);
    row.service = Some("pgbouncer");
    let mut night = Night::begin();
    let mut looks = |state: SessionState, waits: Option<u64>| {
        let mut look = view(state);
        (look.engine, look.pool_mode) = (Engine::PgBouncer, Some(PoolMode::Transaction));
        let waiter = |seconds: u64| Waiter {
            address: Some(address("10.0.0.9:1").ip()),
            port: Some(7701),
            database: "app".into(),
            user: "web".into(),
            waited: Duration::from_secs(seconds),
        };
        look.waiters = waits.map(waiter).into_iter().collect();
        for _ in 0..3 {
            night.hosts(&host_of(vec![row.clone()]), 2);
            night.server(&look);
        }
        night.state(CHECK, "shop").state
    };
    assert_eq!(looks(SessionState::Idle, None), State::Ok, "nobody waits there, and connections are left");
    assert_eq!(looks(SessionState::Active, Some(20)), State::Critical);
    assert_eq!(
        looks(SessionState::Active, None),
        State::Critical,
        "callers may wait for these, where nobody sees them"
    );
    assert_eq!(looks(SessionState::Idle, None), State::Ok);
}

#[test]
fn a_process_that_serves_nothing_is_not_judged() {
    let mut night = Night::begin();
    night.hosts(&host_of(vec![busy(3.0)]), 10);
    let state = night.state(CHECK, "shop");
    assert_eq!(state.state, State::NotYet);
    assert!(matches!(state.value, Value::Unknown(why) if why.to_string().contains("it does not listen")));
}
