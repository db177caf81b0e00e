//! What is told of pools and servers, and how often.

use tickbird_shared::Timestamp;

use super::*;
use crate::inspect::Reason;
use crate::inspect::host::{Gap, Limit};
use crate::inspect::server::SessionState;
use crate::judge::tests::rows::{connection, pool, server, session};

const SERVER: &str = "10.0.0.5:5432";

fn at(second: u64) -> Moment {
    let wall = Timestamp::from_second(1_790_000_000 + second as i64).expect("in range");
    Moment { mono: Duration::from_secs(second), wall }
}

/// An instance with so many idle connections from port 40,000 + pid on.
fn instance(pid: u32, open: u16, limit: Value) -> PoolRow {
    let mut row = pool("shop", pid, SERVER);
    let local = |it: u16| format!("10.0.0.9:{}", 40_000 + pid as u16 + it);
    row.connections = (0..open).map(|it| connection(&local(it), 10 + u32::from(it))).collect();
    row.limit = Limit { value: limit, source: "configuration".into() };
    row
}

fn look(pools: Vec<PoolRow>) -> HostLook {
    HostLook { pools, ..HostLook::default() }
}

fn told(pools: Vec<PoolRow>, servers: &[ServerLook]) -> Levels {
    let levels = Telling::default().due(&look(pools), servers.iter(), at(60)).expect("is told");
    assert_eq!(levels.fault(), None);
    levels
}

#[test]
fn instances_are_added_up_and_what_the_server_says_of_their_sessions() {
    let mut sessions =
        vec![session(900, "10.0.0.9:40100"), session(901, "10.0.0.9:40101"), session(902, "10.0.0.9:40200")];
    sessions[1].state = SessionState::IdleInTransaction;
    let levels = told(
        vec![instance(100, 3, Value::Known(30.0)), instance(200, 1, Value::Known(30.0))],
        &[server(SERVER, sessions)],
    );
    let [it] = &levels.pools[..] else { panic!("one pool: {levels:?}") };
    assert_eq!((it.application.as_str(), it.instances, it.open), ("shop", 2, 4));
    assert_eq!((&it.limit, &it.leased), (&Amount::Known(60), &Amount::Between(1, 4)));
    assert_eq!((it.database.as_deref(), it.user.as_deref()), (Some("app"), Some("web")));
    assert_eq!(levels.servers[0].server, it.server);
    assert_eq!((&levels.servers[0].slots, &levels.servers[0].used), (&Amount::Known(97), &Amount::Known(4)));
}

#[test]
fn what_is_not_known_is_not_told_as_less() {
    let unknown = Value::Unknown(Reason::NotYet("nobody said"));
    let levels = told(vec![instance(100, 3, Value::Known(30.0)), instance(200, 1, unknown)], &[]);
    let it = &levels.pools[0];
    assert!(matches!(&it.limit, Amount::Unknown(reason) if reason.contains("nobody said")), "{it:?}");
    assert!(matches!(&it.leased, Amount::Unknown(_)), "{it:?}");
    assert_eq!(it.server, ServerName { system: None, replica: false, address: SERVER.into() });
    // More is open than the limit that was read: there is another pool, or another limit.
    let levels = told(vec![instance(100, 3, Value::Known(2.0))], &[]);
    assert!(matches!(levels.pools[0].limit, Amount::Unknown(_)));
    // A range of sizes stays one.
    let levels = told(vec![instance(100, 3, Value::Between(20.0, 30.0))], &[]);
    assert_eq!(levels.pools[0].limit, Amount::Between(20, 30));
}

#[test]
fn a_process_that_has_just_started_may_replace_another() {
    let mut young = instance(200, 1, Value::Known(30.0));
    young.process_age = Some(Duration::from_secs(59));
    let levels = told(vec![instance(100, 1, Value::Known(30.0)), young], &[]);
    assert_eq!(levels.pools[0].limit, Amount::Between(30, 60));
}

#[test]
fn changes_are_told_every_ten_seconds_and_all_every_minute() {
    let mut telling = Telling::default();
    let mut due = |second: u64, open: u16| {
        let host = look(vec![instance(100, open, Value::Known(30.0))]);
        telling.due(&host, std::iter::empty(), at(second)).is_some()
    };
    assert!(!due(14, 3), "the servers have not been looked at yet");
    assert!(due(15, 3));
    assert!(!due(24, 4));
    assert!(due(25, 4));
    let repeated: Vec<u64> = (26..=160).filter(|second| due(*second, 4)).collect();
    assert_eq!(repeated, [85, 145]);
}

#[test]
fn a_host_without_pools_says_so_once_and_one_whose_sockets_cannot_be_read_says_nothing() {
    let mut telling = Telling::default();
    let told = (15..200).filter(|it| telling.due(&look(Vec::new()), std::iter::empty(), at(*it)).is_some()).count();
    assert_eq!(told, 1);
    let reason = Reason::Denied("sockets".into());
    let gaps = vec![Gap { checks: &["pool.utilization"], target: TargetKey::agent(), reason }];
    let blind = HostLook { gaps, ..HostLook::default() };
    assert_eq!(Telling::default().due(&blind, std::iter::empty(), at(60)), None);
}

#[test]
fn a_server_that_refuses_keeps_its_slots() {
    let mut telling = Telling::default();
    let well = server(SERVER, vec![session(900, "10.0.0.9:40100")]);
    let host = look(vec![instance(100, 1, Value::Known(30.0))]);
    telling.due(&host, [&well].into_iter(), at(20)).expect("is told");
    let reason = Reason::Unreachable("PostgreSQL: too many clients already".into());
    let full = ServerLook {
        sessions: Err(reason.clone()),
        slots: Value::Unknown(reason.clone()),
        used: Value::Unknown(reason),
        ..well
    };
    let levels = telling.due(&host, [&full].into_iter(), at(30)).expect("is told");
    assert_eq!(levels.servers[0].slots, Amount::Known(97));
    assert!(matches!(levels.servers[0].used, Amount::Unknown(_)));
    assert!(matches!(levels.pools[0].leased, Amount::Unknown(_)));
}

#[test]
fn a_server_is_named_by_what_it_said_once_whatever_address_it_is_reached_by() {
    let mut telling = Telling::default();
    let host = look(vec![instance(100, 1, Value::Known(30.0))]);
    let mut asked = server(SERVER, vec![session(900, "10.0.0.9:40100")]);
    let name = |levels: Option<Levels>| levels.expect("is told").pools[0].server.clone();
    assert_eq!(name(telling.due(&host, [&asked].into_iter(), at(20))).system, None, "it did not say yet");
    asked.facts.identifier = Some(Ok("7312".into()));
    asked.facts.standing = Some(Ok(Standing::Primary(Vec::new())));
    let known = ServerName { system: Some("7312".into()), replica: false, address: SERVER.into() };
    assert_eq!(name(telling.due(&host, [&asked].into_iter(), at(30))), known);
    // It is full: what it says of itself cannot be asked for.
    let reason = Reason::Unreachable("PostgreSQL: too many clients already".into());
    asked.facts.identifier = Some(Err(reason.clone()));
    asked.facts.standing = Some(Err(reason.clone()));
    asked.sessions = Err(reason);
    assert_eq!(name(telling.due(&host, [&asked].into_iter(), at(40))), known);
    // A replica has its primary's identifier.
    asked.facts.identifier = Some(Ok("7312".into()));
    asked.facts.standing = Some(Ok(Standing::Replica { is_fed: true, is_caught_up: true, last_change_age: None }));
    assert!(name(telling.due(&host, [&asked].into_iter(), at(50))).replica);
}

#[test]
fn thousands_of_pools_are_cut_and_the_rest_is_said_to_be_left_out() {
    let pools = (0..MAX_POOLS + 7).map(|it| pool(&format!("app-{it}"), it as u32 + 1, SERVER)).collect();
    let levels = told(pools, &[]);
    assert_eq!((levels.pools.len(), levels.left_out), (MAX_POOLS, 7));
}
