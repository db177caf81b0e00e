//! What applications say of their own pools.

use super::rows::{connection, pool, server, session};
use super::*;
use crate::discover::TargetKey;
use crate::inspect::host::{Limit, PoolRow};
use crate::inspect::pool_metrics::{Kind, NamedPool, PoolStats};
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
