//! Redis: who waits for others by design is leased and leaks nothing; a transaction left open is named; a restart is none
//! of another server.

use super::rows::{connection, pool, server, session};
use super::*;
use crate::inspect::host::PoolRow;
use crate::inspect::server::{Engine, Facts, SessionState, Standing};
use crate::inspect::{HostLook, Reason, ServerLook};
use crate::judge::Verdict;

const AT: &str = "10.0.0.6:6379";

fn pool_of(count: u32) -> PoolRow {
    let mut it = pool("shop", 77, AT);
    it.service = Some("redis");
    it.connections = (0..count).map(|index| connection(&format!("10.0.0.9:{}", 40_000 + index), 10 + index)).collect();
    it
}

/// The pool's clients in this state for so long, and nothing on their sockets since.
fn scene(count: u32, state: SessionState, seconds: f64) -> (HostLook, ServerLook) {
    let age = Duration::from_secs_f64(seconds);
    let mut it = pool_of(count);
    for it in &mut it.connections {
        (it.sent_age, it.received_age, it.acknowledged_age) = (Some(age), Some(age), Some(age));
    }
    let client = |index: u32| {
        let mut it = session(u64::from(900 + index), &format!("10.0.0.9:{}", 40_000 + index));
        (it.state, it.state_age, it.statement) = (state, Some(age), Some("BLPOP".into()));
        it
    };
    let mut look = server(AT, (0..count).map(client).collect());
    look.engine = Engine::Redis;
    (host_of(vec![it]), look)
}

#[test]
fn a_night_of_waiting_for_others_is_leased_and_silent() {
    let mut night = Night::begin();
    night.scenes(120, |seconds| scene(12, SessionState::Listening, seconds + 60.0));
    let pools = night.judge.pools();
    assert_eq!(pools.iter().map(|it| it.count(Verdict::Leased)).sum::<usize>(), 12, "{pools:?}");
    assert_eq!(night.told(), "");
    for check in ["pool.leak", "pool.idle_in_transaction"] {
        assert_eq!(night.is(check, "shop"), "ok", "{check}");
    }
}

#[test]
fn a_transaction_left_open_is_named_by_client() {
    let mut night = Night::begin();
    night.scenes(12, |seconds| scene(1, SessionState::IdleInTransaction, seconds));
    assert!(night.told().contains("pool.idle_in_transaction began warning"));
    let summary = &night.last().summary;
    assert!(summary.contains("idle in transaction") && summary.contains("on fd 10 = client 900"), "{summary}");
    assert_eq!(evidence(night.last())["rule"], "CLIENT LIST flags and multi");
}

#[test]
fn a_restart_is_no_other_server_and_a_change_of_role_is_told() {
    let facts = |run: &str, standing| {
        Box::new(Facts { identifier: Some(Ok(run.into())), standing: Some(Ok(standing)), ..Facts::default() })
    };
    let primary = || Standing::Primary(Vec::new());
    let mut night = Night::begin();
    for run in ["a", "b"] {
        night.scenes(4, |_| {
            let (host, mut look) = scene(2, SessionState::Idle, 1.0);
            look.facts = facts(run, primary());
            (host, look)
        });
    }
    assert_eq!((night.told().as_str(), night.is("db.role", "server:")), ("", "ok"));
    let replica = Standing::Replica { is_fed: true, is_caught_up: true, last_change_age: None };
    night.scenes(2, |_| {
        let (host, mut look) = scene(2, SessionState::Idle, 1.0);
        look.facts = facts("b", replica.clone());
        (host, look)
    });
    assert!(night.told().contains("db.role began info"));
    assert_eq!(evidence(night.last())["rule"], "INFO role against the looks before");
}

#[test]
fn a_pool_whose_redis_nobody_may_ask_is_not_called_blind_and_one_that_refuses_is() {
    let mut night = Night::begin();
    night.hosts(&host_of(vec![pool_of(5)]), 30);
    assert_eq!(night.told(), "", "a section for it is an offer");
    let denied = || Reason::Denied("Redis at 10.0.0.6:6379: CLIENT LIST: the user has no right to it".to_owned());
    night.scenes(3, |_| {
        let (host, mut look) = scene(5, SessionState::Idle, 1.0);
        look.sessions = Err(denied());
        (host, look)
    });
    assert_eq!(night.is("pool.idle_in_transaction", "shop"), "blind");
    assert_eq!(night.is("db.headroom", "server:"), "ok");
}
