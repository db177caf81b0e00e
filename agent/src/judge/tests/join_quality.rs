//! How much of what is here finds its session, and what is said where it does not.

use super::rows::{connection, pool, server, session};
use super::*;
use crate::inspect::host::{Peer, PoolRow};
use crate::inspect::server::{Session, SessionState};
use crate::inspect::{Reason, Value};

const CHECK: &str = "agent.join";
const SERVER: &str = "10.0.0.5:5432";

/// A pool of twenty whose ports begin at `base`, and a session for each.
fn twenty(base: u16) -> (PoolRow, Vec<Session>) {
    let mut it = pool("shop", 77, SERVER);
    let client = |index: u16| format!("10.0.0.9:{}", base + index);
    it.connections = (0..20).map(|index| connection(&client(index), 10 + u32::from(index))).collect();
    (it, (0..20).map(|index| session(900 + u64::from(index), &client(index))).collect())
}

/// Looks at host and server each five seconds for so long.
fn watch(night: &mut Night, seconds: u32, scene: impl Fn(u32) -> (Vec<PoolRow>, ServerLook)) {
    night.scenes(seconds / 5, |at| {
        let (pools, server) = scene(at as u32);
        (host_of(pools), server)
    });
}

fn joined(night: &Night) -> (usize, usize, usize) {
    let it = night.judge.joined(&server(SERVER, Vec::new()).target).expect("it was joined");
    (it.joined, it.connections, it.sessions)
}

#[test]
fn a_pool_that_is_seen_whole_is_well_at_any_churn() {
    let mut night = Night::begin();
    watch(&mut night, 300, |_| {
        let (pool, sessions) = twenty(40_000);
        (vec![pool], server(SERVER, sessions))
    });
    assert_eq!((night.is(CHECK, SERVER), joined(&night)), ("ok", (20, 20, 20)));
    // At each look others: the server lists those of a moment ago, or not yet those of now.
    let mut churning = Night::begin();
    watch(&mut churning, 300, |at| {
        let base = 40_000 + (at % 1_000) as u16 * 20;
        let (pool, _) = twenty(base);
        let (_, sessions) = twenty(base + 20);
        let (kept, mut of_kept) = twenty(30_000);
        of_kept.extend(sessions);
        (vec![kept, pool], server(SERVER, of_kept))
    });
    assert_eq!((churning.is(CHECK, SERVER), joined(&churning)), ("ok", (20, 20, 20)));
    assert_eq!(churning.told_of(CHECK), "");
}

#[test]
fn what_our_role_may_not_see_is_recorded_after_a_minute_with_its_reason() {
    let hide = |sessions: &mut [Session]| {
        for it in sessions {
            (it.address, it.port, it.state) = (None, None, SessionState::Unknown);
        }
    };
    let scene = |is_seen_from_behind: bool| {
        move |_| {
            let (mut pool, mut sessions) = twenty(40_000);
            hide(&mut sessions[10..]);
            for (index, it) in pool.connections.iter_mut().enumerate().skip(10) {
                it.peer = is_seen_from_behind.then_some(Peer { pid: 900 + index as u32, fd: 9 });
            }
            let hidden = Some(Reason::Denied("port and state of other roles' sessions".into()));
            (vec![pool], ServerLook { hidden, ..server(SERVER, sessions) })
        }
    };
    let mut night = Night::begin();
    watch(&mut night, 60, scene(false));
    assert_eq!((night.told_of(CHECK).as_str(), joined(&night)), ("", (10, 20, 10)));
    watch(&mut night, 30, scene(false));
    assert_eq!(night.told_of(CHECK), "70s agent.join began info");
    let finding = night.found.iter().find(|it| it.check == CHECK).expect("it was told");
    assert_eq!(
        finding.summary,
        "10 of 20 connections of this host to 10.0.0.5:5432/app are joined with a session, and 10 of 10 sessions from \
         its addresses with a connection: may not read port and state of other roles' sessions"
    );
    let proof = evidence(finding);
    assert_eq!((&proof["connections_alone"][0]["pid"], &proof["connections_alone"][0]["fd"]), (&77.into(), &20.into()));
    assert_eq!(proof["share_missing"], 0.5);
    // On one host the backend's descriptor tells all the same.
    watch(&mut night, 15, scene(true));
    assert_eq!((night.is(CHECK, SERVER), joined(&night)), ("ok", (20, 20, 10 + 10)));
}

#[test]
fn another_way_that_is_translated_and_other_namespaces_are_told_apart() {
    let mut night = Night::begin();
    watch(&mut night, 120, |_| {
        let (near, sessions) = twenty(40_000);
        let (mut far, _) = twenty(41_000);
        far.remote = crate::discover::End::Tcp(rows::address("10.0.0.6:5432"));
        far.target = crate::discover::TargetKey::pool("billing", "main", &far.remote);
        let look = server(SERVER, sessions);
        (vec![near, far], ServerLook { addresses: vec![rows::address(SERVER), rows::address("10.0.0.6:5432")], ..look })
    });
    let why = |night: &Night| night.judge.joined(&server(SERVER, Vec::new()).target).and_then(|it| it.why.clone());
    assert_eq!(why(&night).as_deref(), Some("no session matches the connections to 10.0.0.6:5432: address translated"));
    assert_eq!((night.is(CHECK, SERVER), joined(&night)), ("info", (20, 40, 20)));

    let mut behind = Night::begin();
    watch(&mut behind, 120, |_| {
        let (pool, mut sessions) = twenty(40_000);
        sessions.extend(twenty(50_000).1.into_iter().take(5));
        (vec![pool], server(SERVER, sessions))
    });
    assert!(why(&behind).is_some_and(|it| it.contains("another network namespace")));
    assert_eq!((behind.is(CHECK, SERVER), joined(&behind)), ("info", (20, 20, 25)));
    assert_eq!(behind.found.iter().filter(|it| it.severity > tickbird_shared::Severity::Info).count(), 0);
}

#[test]
fn a_server_that_cannot_be_read_is_blind_here_too_and_never_well() {
    let mut night = Night::begin();
    watch(&mut night, 60, |_| {
        let (pool, _) = twenty(40_000);
        let lost = Reason::Unreachable("PostgreSQL at 10.0.0.5:5432: timed out".into());
        (vec![pool], ServerLook { sessions: Err(lost), ..server(SERVER, Vec::new()) })
    });
    assert_eq!(night.is(CHECK, SERVER), "blind");
    assert!(matches!(night.state(CHECK, SERVER).value, Value::Unknown(_)));
}
