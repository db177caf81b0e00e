//! What applications say of their own pools.

use super::rows::{connection, pool, server, session};
use super::*;
use crate::discover::TargetKey;
use crate::inspect::host::{Limit, PoolRow};
use crate::inspect::pool_metrics::{Kind, NamedPool, PoolStats, Totals};
use crate::inspect::server::SessionState;

const UTILIZATION: &str = "pool.utilization";

/// A page that says so of one pool; a limit of 0 is none.
pub(super) fn said(in_use: f64, limit: f64, waiting: f64) -> PoolStats {
    let none = || Value::Unknown(Reason::NotYet("not judged: not told"));
    let pool = NamedPool {
        name: "main".into(),
        limit: if limit > 0.0 { Value::Known(limit) } else { none() },
        in_use: Value::Known(in_use),
        idle: Value::Known((limit - in_use).max(0.0)),
        open: Value::Known(in_use.max(limit)),
        waiting: Value::Known(waiting),
        oldest_wait: none(),
        least: None,
        least_idle: None,
        most_idle: None,
        totals: Totals::default(),
        processes: 1,
        source: "hikaricp_connections_* of http://127.0.0.1:8000/metrics".into(),
    };
    PoolStats {
        target: TargetKey::endpoint("http://127.0.0.1:8000/metrics"),
        application: "shop".into(),
        endpoint: None,
        kind: Kind::Metrics,
        pools: Ok(vec![pool]),
    }
}

/// A pool of shop with so many idle connections.
pub(super) fn shop(pid: u32, open: u32) -> PoolRow {
    let mut it = pool("shop", pid, "10.0.0.5:5432");
    it.connections =
        (0..open).map(|index| connection(&format!("10.0.0.9:{}", pid * 100 + index), 10 + index)).collect();
    it
}

/// Sockets each second and the page each tenth, for so many pages.
fn pages(night: &mut Night, host: &HostLook, page: &PoolStats, count: u32) {
    for _ in 0..count {
        night.hosts(host, 10);
        night.stats(page);
    }
}

#[test]
fn an_exact_share_may_be_critical_and_clears_by_what_is_said() {
    let host = host_of(vec![shop(77, 20)]);
    let mut night = Night::begin();
    pages(&mut night, &host, &said(5.0, 20.0, 0.0), 3);
    assert_eq!((night.told_of(UTILIZATION).as_str(), night.is(UTILIZATION, "shop")), ("", "ok"));
    pages(&mut night, &host, &said(19.0, 20.0, 0.0), 5);
    assert_eq!(night.told_of(UTILIZATION), "70s pool.utilization began critical");
    let finding = night.last().clone();
    assert_eq!(finding.target, "pool:shop/main>10.0.0.5:5432", "the pool whose sockets are seen");
    assert_eq!(finding.summary, "shop uses 19 of the 20 connections that its pool to 10.0.0.5:5432 may open (95 %)");
    let proof = evidence(&finding);
    assert_eq!(
        (&proof["decided_by"], &proof["limit_source"]),
        (&"exact".into(), &"hikaricp_connections_* of http://127.0.0.1:8000/metrics".into())
    );
    pages(&mut night, &host, &said(5.0, 20.0, 0.0), 3);
    assert_eq!(night.told_of(UTILIZATION), "110s pool.utilization cleared critical");
}

#[test]
fn sessions_do_not_contradict_the_application() {
    let mut row = shop(77, 20);
    row.limit = Limit { value: Value::Known(20.0), source: "DATABASE_URL of the process".into() };
    let host = host_of(vec![row]);
    let mut sessions: Vec<_> =
        (0..20_u32).map(|it| session(u64::from(it), &format!("10.0.0.9:{}", 7700 + it))).collect();
    sessions.iter_mut().for_each(|it| it.state = SessionState::Active);
    let view = server("10.0.0.5:5432", sessions);
    let mut night = Night::begin();
    for second in 1..=150 {
        night.hosts(&host, 1);
        if second % 5 == 0 {
            night.server(&view);
        }
        if second % 10 == 1 {
            night.stats(&said(3.0, 20.0, 0.0));
        }
    }
    assert_eq!((night.told_of(UTILIZATION).as_str(), night.is(UTILIZATION, "shop")), ("", "ok"));
    for second in 1..=120 {
        night.hosts(&host, 1);
        if second % 5 == 0 {
            night.server(&view);
        }
    }
    assert!(night.told().contains("pool.utilization began"), "a source that fell silent leaves it to the sessions");
}

#[test]
fn a_limit_that_only_the_process_tells_is_taken_from_there() {
    let mut row = shop(77, 20);
    row.limit = Limit { value: Value::Known(20.0), source: "DATABASE_URL of the process".into() };
    let mut night = Night::begin();
    pages(&mut night, &host_of(vec![row]), &said(20.0, 0.0, 0.0), 5);
    assert!(night.told().contains("pool.utilization began critical"));
    assert_eq!(evidence(night.last())["limit_source"], "DATABASE_URL of the process");
}

#[test]
fn one_of_several_processes_does_not_speak_for_all() {
    let host = host_of(vec![shop(77, 20), shop(78, 20)]);
    let mut night = Night::begin();
    pages(&mut night, &host, &said(20.0, 20.0, 0.0), 8);
    assert_eq!(night.told_of(UTILIZATION), "");
    let mut both = said(40.0, 40.0, 0.0);
    both.pools.as_mut().expect("pools")[0].processes = 2;
    pages(&mut night, &host, &both, 8);
    assert!(night.told().contains("pool.utilization began critical"), "a page that adds them up does");
}

#[test]
fn a_pool_whose_sockets_cannot_be_told_is_judged_under_its_own_name() {
    let mut other = shop(77, 5);
    (other.remote, other.target) = (
        crate::discover::End::Tcp(rows::address("10.0.0.6:5432")),
        TargetKey::pool("shop", "main", &crate::discover::End::Tcp(rows::address("10.0.0.6:5432"))),
    );
    let host = host_of(vec![shop(77, 20), other]);
    let mut night = Night::begin();
    pages(&mut night, &host, &said(19.0, 20.0, 0.0), 8);
    assert_eq!(night.last().target, "pool:shop#main");
    let mut named = said(19.0, 20.0, 0.0);
    named.endpoint = Some(rows::address("10.0.0.6:5432"));
    let mut night = Night::begin();
    pages(&mut night, &host, &named, 8);
    assert_eq!(night.last().target, "pool:shop/main>10.0.0.6:5432", "the operator said which");
}

#[test]
fn numbers_that_cannot_be_are_told_and_not_judged_by() {
    let mut night = Night::begin();
    let host = host_of(vec![shop(77, 20)]);
    pages(&mut night, &host, &said(25.0, 20.0, 0.0), 8);
    assert_eq!(night.told_of("pool.stats"), "30s pool.stats began warning");
    let summary = night.last().summary.clone();
    assert_eq!(summary, "what shop says of its pool main cannot be: 25 connections are in use of at most 20");
    assert_ne!(night.is(UTILIZATION, "shop"), "ok");
    pages(&mut night, &host, &said(5.0, 20.0, 0.0), 3);
    assert_eq!(night.told_of("pool.stats"), "110s pool.stats cleared warning");
}

#[test]
fn a_source_that_does_not_answer_is_blind() {
    let mut night = Night::begin();
    let mut page = said(0.0, 0.0, 0.0);
    page.pools = Err(Reason::Unreachable("http://127.0.0.1:8000/metrics: connection refused".into()));
    pages(&mut night, &host_of(vec![shop(77, 20)]), &page, 3);
    assert_eq!(night.is("pool.stats", "8000"), "blind");
    assert!(night.told().contains("agent.blind began warning"));
    assert_eq!(night.state("pool.stats", "8000").value.low(), None);
}

#[test]
fn a_source_with_waiters_is_asked_more_often() {
    let mut night = Night::begin();
    let name = "pool_metrics http://127.0.0.1:8000/metrics";
    night.hosts(&host_of(vec![shop(77, 5)]), 1);
    night.stats(&said(5.0, 20.0, 0.0));
    assert!(!night.is_suspect(name));
    night.stats(&said(20.0, 20.0, 1.0));
    assert!(night.is_suspect(name));
}

/// Go's page: a pool of five that is all in use, and so many waits and seconds of them so far.
fn counted(waits: f64, seconds: f64) -> PoolStats {
    let mut page = said(5.0, 5.0, 0.0);
    let pool = &mut page.pools.as_mut().expect("a pool")[0];
    pool.waiting = Value::Unknown(Reason::NotYet("not judged: not told"));
    pool.totals = Totals { waits: Some(waits), wait_seconds: Some(seconds), ..Totals::default() };
    page
}

/// A look each second and a page each two, with what `page` gives for the seconds since.
fn two_by_two(seconds: u64, page: impl Fn(f64) -> PoolStats) -> Night {
    let mut night = Night::begin();
    let mut host = host_of(vec![shop(77, 5)]);
    host.services.clear();
    for second in 1..=seconds {
        night.hosts(&host, 1);
        if second % 2 == 0 {
            night.stats(&page(second as f64));
        }
    }
    night
}

const EXHAUSTED: &str = "pool.exhausted";

#[test]
fn waits_that_are_counted_with_their_time_are_callers_that_waited() {
    // Three callers wait all the time, each for six seconds: half a wait ends in each second.
    let mut night = two_by_two(12, |second| counted(second / 2.0, second * 3.0));
    assert_eq!(night.told_of(EXHAUSTED), "9s pool.exhausted began warning", "a count of waits is a range of waiters");
    let proof = evidence(night.last());
    assert_eq!(proof["waiters"], serde_json::json!([1, null]));
    assert_eq!((&proof["waits"]["begun"], &proof["waits"]["within_seconds"]), (&1.0.into(), &2.into()));
    assert!(night.last().summary.contains("at least 1 caller waits for one of its 5 open"), "{}", night.last().summary);
    assert_eq!(night.judge.waiters(&shop(77, 5).target, night.now()), Value::Between(1.0, f64::INFINITY));
    let mut host = host_of(vec![shop(77, 5)]);
    host.services.clear();
    for _ in 0..3 {
        let mut page = counted(15.0, 90.0);
        page.pools.as_mut().expect("a pool")[0].in_use = Value::Known(1.0);
        page.pools.as_mut().expect("a pool")[0].idle = Value::Known(4.0);
        night.stats(&page);
        night.hosts(&host, 2);
    }
    assert!(night.told_of(EXHAUSTED).contains("pool.exhausted cleared warning"), "connections are left");
}

#[test]
fn callers_that_begin_to_wait_and_are_never_served_are_seen_by_the_count_alone() {
    let mut stuck = two_by_two(30, |second| counted(second * 4.0, 12.0));
    assert_eq!(stuck.told_of(EXHAUSTED), "9s pool.exhausted began warning");
}

#[test]
fn waits_of_milliseconds_are_a_busy_pool_and_no_exhaustion() {
    let mut busy = two_by_two(120, |second| counted(second * 200.0, second * 0.4));
    assert_eq!(busy.told_of(EXHAUSTED), "");
    let mut once = two_by_two(120, |second| {
        counted(if second < 60.0 { 0.0 } else { 1.0 }, if second < 60.0 { 0.0 } else { 30.0 })
    });
    assert_eq!(once.told_of(EXHAUSTED), "", "one long wait that is over");
    let mut restarted = two_by_two(120, |second| counted(1000.0 - second, 5000.0 - 10.0 * second));
    assert_eq!(restarted.told_of(EXHAUSTED), "", "counters that are set back say nothing");
}
