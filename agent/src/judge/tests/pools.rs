//! What the sockets of a pool say, and what a server says of its room.

use super::rows::{connection, pool, server, session};
use super::*;
use crate::inspect::host::{Limit, PoolRow, TcpState, Unattributed};
use crate::inspect::server::SessionState;
use crate::inspect::{Reason, Value};

/// A pool of `open` connections of which the first `dead` are in CLOSE_WAIT for so many seconds.
fn dying(open: u32, dead: u32, seconds: f64) -> HostLook {
    let mut it = pool("shop", 77, "10.0.0.5:6379");
    for index in 0..open {
        let mut one = connection(&format!("10.0.0.9:{}", 40000 + index), 10 + index);
        if index < dead {
            (one.state, one.state_age) = (TcpState::CloseWait, Duration::from_secs_f64(seconds));
        }
        it.connections.push(one);
    }
    host_of(vec![it])
}

/// Looks once a second for so many seconds.
fn watch(night: &mut Night, seconds: u64, scene: impl Fn(f64) -> HostLook) {
    for second in 1..=seconds {
        night.wait(1.0).host(&scene(second as f64));
    }
}

#[test]
fn dead_connections_in_a_pool_at_work_are_found() {
    let mut night = Night::begin();
    watch(&mut night, 10, |_| dying(8, 0, 0.0));
    watch(&mut night, 310, |second| dying(8, 5, second - 1.0));
    assert_eq!(night.told(), "313s pool.close_wait began warning");
    let summary = night.last().summary.clone();
    assert!(summary.starts_with("shop, pid 77, keeps 5 of 8 connections to 10.0.0.5:6379"), "{summary}");
    assert_eq!(evidence(night.last())["connections"].as_array().map(Vec::len), Some(5));
    watch(&mut night, 3, |_| dying(8, 2, 400.0));
    assert_eq!(night.told(), "323s pool.close_wait cleared warning");
}

#[test]
fn an_idle_pool_may_keep_its_dead_connections() {
    let mut night = Night::begin();
    let idle = |mut look: HostLook| {
        for it in &mut look.pools[0].connections {
            (it.sent_age, it.received_age) = (Some(Duration::from_secs(60)), Some(Duration::from_secs(60)));
        }
        look
    };
    watch(&mut night, 10, |_| idle(dying(8, 0, 0.0)));
    watch(&mut night, 400, |second| idle(dying(8, 5, second)));
    assert_eq!(night.told(), "");
}

/// The last one used is the first one taken: little traffic needs one connection, and the server ended the others.
#[test]
fn the_far_end_of_a_stack_may_keep_its_dead_connections() {
    let mut night = Night::begin();
    watch(&mut night, 10, |_| dying(8, 0, 0.0));
    watch(&mut night, 400, |second| dying(8, 7, second));
    assert_eq!(night.told(), "");
}

#[test]
fn a_pool_that_works_its_dead_connections_off_is_left_alone_and_so_is_one_found_so() {
    let mut night = Night::begin();
    watch(&mut night, 10, |_| dying(8, 0, 0.0));
    watch(&mut night, 500, |second| dying(12, 12 - (second as u32 / 50).min(8), second));
    assert_eq!(night.told(), "", "the count falls");
    let mut night = Night::begin();
    watch(&mut night, 400, |second| dying(8, 5, second));
    assert_eq!(night.told(), "", "it was never seen to rise");
    let mut night = Night::begin();
    watch(&mut night, 10, |_| dying(8, 0, 0.0));
    watch(&mut night, 400, |second| dying(8, 2, second));
    assert_eq!(night.told(), "", "two are too few");
}

/// `births` a second, each of which lived for `life`.
fn churning(births: u32, life: Duration) -> HostLook {
    let mut it = pool("shop", 77, "10.0.0.5:6379");
    // One is kept: where none is, the application has no pool, which is another fault.
    it.connections.push(connection("10.0.0.9:39999", 9));
    it.births = births;
    it.closes = vec![Some(life); births as usize];
    host_of(vec![it])
}

#[test]
fn connections_opened_for_each_request_are_churn_until_they_are_pooled() {
    let mut night = Night::begin();
    watch(&mut night, 330, |_| churning(10, Duration::from_millis(20)));
    assert_eq!(night.told(), "311s pool.churn began warning");
    let summary = night.last().summary.clone();
    assert_eq!(
        summary,
        "shop, pid 77, opens 10/s connections to 10.0.0.5:6379 and closes them after 20 ms on the median"
    );
    watch(&mut night, 40, |_| churning(0, Duration::ZERO));
    assert_eq!(night.told(), "360s pool.churn cleared warning");
}

#[test]
fn many_births_of_long_lived_connections_a_start_and_rare_probes_are_not_churn() {
    let mut night = Night::begin();
    watch(&mut night, 400, |_| churning(5, Duration::from_secs(60)));
    watch(&mut night, 20, |_| churning(20, Duration::from_millis(20)));
    watch(&mut night, 400, |second| churning(u32::from((second as u32).is_multiple_of(5)), Duration::from_millis(20)));
    assert_eq!(night.told(), "");
}

/// Two pools at one server, and `unowned` connections a second of which no look sees whose they are.
fn beside(second: f64, unowned: u32) -> HostLook {
    let is_seen = unowned > 0 && (second as u32).is_multiple_of(6);
    let mut look = churning(u32::from(is_seen), Duration::from_millis(400));
    let mut twin = pool("billing", 88, "10.0.0.5:6379");
    twin.connections.push(connection("10.0.0.9:38888", 8));
    look.pools.push(twin);
    let remote = "10.0.0.5:6379".parse().expect("an address");
    look.unattributed.push(Unattributed { remote, service: None, births: unowned });
    look
}

#[test]
fn what_ends_between_two_looks_counts_for_the_pool_whose_connections_were_seen() {
    let mut night = Night::begin();
    watch(&mut night, 400, |second| beside(second, 20));
    assert_eq!(night.told().matches("pool.churn").count(), 1, "{}", night.told());
    assert!(night.last().summary.starts_with("shop, pid 77"), "{}", night.last().summary);
    watch(&mut night, 60, |second| beside(second, 0));
    assert!(night.told().ends_with("pool.churn cleared warning"), "{}", night.told());
    assert_eq!(night.is("pool.churn", "billing"), "ok");
}

#[test]
fn what_nobody_saw_is_not_surely_the_only_pools_once_another_is_known_there() {
    let billing = |_| {
        let mut look = beside(0.0, 0);
        look.pools.remove(0);
        look.pools[0].presumed = vec![Duration::from_secs(1); 20];
        look
    };
    let short = || Night::with([Override { hold: text("15s"), ..change("pool.churn") }]);
    // Eight seconds between two looks, as when the agent keeps to its budget, are no long life.
    let mut night = short();
    watch(&mut night, 60, |second| {
        let mut look = billing(second);
        look.pools[0].presumed = vec![Duration::from_secs(8); 20];
        look
    });
    assert_eq!(night.told().matches("pool.churn began").count(), 1, "{}", night.told());
    let mut night = short();
    watch(&mut night, 40, billing);
    assert_eq!(night.told().matches("pool.churn began").count(), 1, "nobody else is there: {}", night.told());
    // The other becomes known when a look has seen some of its connections: all of that half minute may be its own.
    let mut night = short();
    watch(&mut night, 20, billing);
    watch(&mut night, 100, |second| beside(second, 20));
    assert_eq!(night.told().matches("pool.churn").count(), 1, "{}", night.told());
    assert!(night.last().summary.starts_with("shop, pid 77"), "{}", night.last().summary);
    watch(&mut night, 60, |second| beside(second, 0));
    assert_eq!(night.is("pool.churn", "billing"), "ok");
}

#[test]
fn lost_events_leave_a_lower_bound_that_clears_nothing() {
    let mut night = Night::with([Override { hold: text("5s"), ..change("pool.churn") }]);
    let lossy = |mut look: HostLook| {
        look.closes_incomplete = true;
        look
    };
    watch(&mut night, 20, |_| lossy(churning(10, Duration::from_millis(20))));
    assert_eq!(night.told(), "16s pool.churn began warning");
    assert_eq!(night.last().reason, "at least 10/s is at its certain end over 1/s for 5 s");
    watch(&mut night, 60, |_| lossy(churning(0, Duration::ZERO)));
    assert_eq!(night.is("pool.churn", "shop"), "warning");
    assert!(!night.told().contains("cleared"));
}

#[test]
fn connections_over_a_unix_socket_whose_ends_are_not_told_are_neither_churn_nor_well() {
    let mut night = Night::with([Override { hold: text("5s"), ..change("pool.churn") }]);
    let over_unix = |mut look: HostLook| {
        look.pools[0].closes_incomplete = true;
        look
    };
    watch(&mut night, 60, |_| over_unix(churning(10, Duration::from_millis(20))));
    assert_eq!(night.told(), "");
    assert_eq!(night.is("pool.churn", "shop"), "not yet");
}

/// Two instances with pools of `limit`, all open; `used` sessions of the second are active.
fn used(limit: u32, open: u32, used: u32) -> (HostLook, ServerLook) {
    let (mut pools, mut sessions) = (Vec::new(), Vec::new());
    for (instance, busy) in [(0_u32, 1), (1, used)] {
        let mut it: PoolRow = pool("shop", 77 + instance, "10.0.0.5:5432");
        it.limit = Limit { value: Value::Known(f64::from(limit)), source: "DATABASE_URL of the process".into() };
        for index in 0..open {
            let client = format!("10.0.0.9:{}", 40000 + instance * 1000 + index);
            it.connections.push(connection(&client, 10 + index));
            let mut row = session(u64::from(instance * 1000 + index), &client);
            if index < busy {
                row.state = SessionState::Active;
            }
            sessions.push(row);
        }
        pools.push(it);
    }
    (host_of(pools), server("10.0.0.5:5432", sessions))
}

#[test]
fn the_fullest_instance_decides_and_what_is_not_exact_stays_a_warning() {
    const CHECK: &str = "pool.utilization";
    let mut night = Night::begin();
    night.scenes(20, |_| used(20, 20, 5));
    assert_eq!((night.told().as_str(), night.is(CHECK, "shop")), ("", "ok"));
    night.scenes(30, |_| used(20, 20, 19));
    assert_eq!(night.told(), "165s pool.utilization began warning");
    let finding = night.last().clone();
    assert!(finding.summary.contains("pid 78, uses at least 19 of the 20 connections"), "{}", finding.summary);
    assert_eq!(finding.reason, "95 % is over 80 % for 60 s");
    let proof = evidence(&finding);
    assert_eq!((&proof["used_at_least"], &proof["used_at_most"]), (&19.into(), &20.into()));
    assert_eq!(proof["instances"].as_array().map(Vec::len), Some(2));
    night.scenes(3, |_| used(20, 20, 5));
    assert_eq!(night.told(), "265s pool.utilization cleared warning");
}

#[test]
fn an_exact_share_may_be_critical() {
    let mut night = Night::begin();
    let exact = |_| {
        let (mut host, mut server) = used(20, 20, 20);
        host.pools.remove(0);
        server.sessions.as_mut().expect("sessions").drain(..20);
        (host, server)
    };
    night.scenes(8, exact);
    assert_eq!(night.told(), "35s pool.utilization began critical");
    assert!(night.last().summary.contains("uses 20 of the 20"), "{}", night.last().summary);
}

#[test]
fn without_a_limit_it_is_not_judged_and_without_a_view_only_what_is_certain_is_said() {
    let mut night = Night::begin();
    let (mut host, _) = used(20, 10, 0);
    night.hosts(&host, 20);
    assert_eq!(night.is("pool.utilization", "shop"), "ok", "ten of twenty are not near, however many are in use");
    host.pools[0].connections.extend((0..8).map(|it| connection(&format!("10.0.0.9:{}", 45000 + it), 50 + it)));
    night.hosts(&host, 20);
    assert_eq!(night.is("pool.utilization", "shop"), "blind", "nobody can say how many of eighteen are in use");
    host.pools.iter_mut().for_each(|it| it.limit.value = Value::Unknown(Reason::Absent("a limit".into())));
    night.hosts(&host, 1);
    let state = night.state("pool.utilization", "shop");
    assert_eq!(state.state, State::NotYet);
    assert!(matches!(state.value, Value::Unknown(reason) if reason.to_string().contains("no limit is configured")));
}

fn with_room(used: f64) -> ServerLook {
    let mut it = server("10.0.0.5:5432", vec![session(1, "10.0.0.7:1"), session(2, "10.0.0.8:2")]);
    (it.used, it.slots) = (Value::Known(used), Value::Known(97.0));
    it
}

/// Looks at a server every five seconds.
fn ask(night: &mut Night, looks: u32, look: &ServerLook) {
    for _ in 0..looks {
        night.wait(5.0).server(look);
    }
}

#[test]
fn a_server_out_of_slots_counts_the_sessions_of_every_host() {
    let mut night = Night::begin();
    ask(&mut night, 10, &with_room(60.0));
    ask(&mut night, 3, &with_room(80.0));
    ask(&mut night, 3, &with_room(95.0));
    ask(&mut night, 3, &with_room(50.0));
    assert_eq!(
        night.told(),
        "65s db.headroom began warning\n80s db.headroom worsened critical\n95s db.headroom cleared critical"
    );
    assert!(
        night.found[0].summary.starts_with("10.0.0.5:5432/app uses 80 of its 97 connection slots (82.5 %)"),
        "{}",
        night.found[0].summary
    );
    assert_eq!(evidence(&night.found[0])["by_client"], serde_json::json!({ "10.0.0.7": 1, "10.0.0.8": 1 }));
}

#[test]
fn a_full_server_that_refuses_us_is_certainly_over_and_stays_a_warning() {
    let mut night = Night::begin();
    let mut full = with_room(97.0);
    full.used = Value::Between(97.0, 100.0);
    full.refused = Some("FATAL: sorry, too many clients already".into());
    ask(&mut night, 3, &full);
    assert_eq!(night.told(), "15s db.headroom began warning\n15s db.connect began critical");
    assert_eq!(night.last().reason, "FATAL: sorry, too many clients already, for 3 looks");
    ask(&mut night, 3, &with_room(20.0));
    assert_eq!(night.told(), "30s db.headroom cleared warning\n30s db.connect cleared critical");
}

#[test]
fn one_slow_connection_that_is_kept_is_one_sign_and_three_are_a_finding() {
    let connected = |seconds| {
        let mut it = with_room(10.0);
        it.connect = Value::Known(seconds);
        it
    };
    let mut night = Night::begin();
    ask(&mut night, 20, &connected(1.5));
    assert_eq!(night.told(), "");
    for seconds in [1.6, 1.7, 1.8] {
        ask(&mut night, 1, &connected(seconds));
    }
    assert!(night.told().ends_with("db.connect began warning"));
    ask(&mut night, 3, &connected(0.01));
    assert!(night.told().ends_with("db.connect cleared warning"));
}
