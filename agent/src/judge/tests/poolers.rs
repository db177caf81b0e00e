//! A pooler between the application and the server: whose transaction it is, and who is told.

use super::rows::{address, connection, pool, server, session};
use super::*;
use crate::discover::{End, TargetKey};
use crate::inspect::server::{Engine, Link, PoolMode, Session, SessionState};

const IDLE: &str = "pool.idle_in_transaction";

/// The clients of a pooler at 10.0.0.6:6432 on this host; the pooler's own end of a link is 10.0.0.9:43000 and on.
fn pooler(clients: Vec<Session>) -> ServerLook {
    let mut look = server("10.0.0.6:6432", clients);
    look.target = TargetKey::server("10.0.0.6:6432", "pgbouncer");
    look.engine = Engine::PgBouncer;
    look.pool_mode = Some(PoolMode::Transaction);
    look
}

/// A client of the pooler that stands on the backend 700 + `slot`.
fn linked(client: u64, end: &str, slot: u16) -> Session {
    let mut it = session(client, end);
    it.state = SessionState::InTransaction;
    (it.state_age, it.statement) = (None, None);
    it.link = Some(Link {
        remote: End::Tcp(address("10.0.0.5:5432")),
        local: Some(address(&format!("10.0.0.9:{}", 43000 + slot))),
        backend: Some(700 + u64::from(slot)),
        server: None,
    });
    it
}

/// The pooler's session at the server, idle in a transaction for so long.
fn behind(slot: u16, seconds: f64) -> Session {
    let mut it = session(700 + u64::from(slot), &format!("10.0.0.9:{}", 43000 + slot));
    it.state = SessionState::IdleInTransaction;
    it.state_age = Some(Duration::from_secs_f64(seconds));
    it.application_name = "".into();
    it
}

/// The shop with two connections to the pooler, and the pooler with three to the server.
fn host() -> HostLook {
    let mut shop = pool("shop", 77, "10.0.0.6:6432");
    shop.service = Some("pgbouncer");
    shop.connections = vec![connection("10.0.0.9:40000", 10), connection("10.0.0.9:40001", 11)];
    let mut pooler = pool("pgbouncer", 88, "10.0.0.5:5432");
    pooler.connections = (0..3).map(|it| connection(&format!("10.0.0.9:{}", 43000 + it), 20 + it)).collect();
    host_of(vec![shop, pooler])
}

/// Looks at everything each five seconds: the host, the pooler, the server.
fn watch(night: &mut Night, looks: u32, clients: impl Fn(f64) -> Vec<Session>, backends: impl Fn(f64) -> Vec<Session>) {
    for look in 0..looks {
        let seconds = f64::from(look) * 5.0;
        night.scenes(1, |_| (host(), pooler(clients(seconds))));
        night.server(&server("10.0.0.5:5432", backends(seconds)));
    }
}

#[test]
fn a_transaction_left_open_names_the_applications_descriptor_and_the_final_backend_once() {
    let mut night = Night::begin();
    let clients = |_| vec![linked(1, "10.0.0.9:40000", 0), session(2, "10.0.0.9:40001")];
    watch(&mut night, 10, clients, |seconds| vec![behind(0, seconds)]);
    let told = night.told_of(IDLE);
    assert_eq!(told.lines().count(), 1, "{told}");
    let finding = night.last().clone();
    assert_eq!(finding.target, "pool:shop/main>10.0.0.6:6432/app?user=web");
    assert!(
        finding.summary.contains(
            "shop, pid 77, holds 1 of its 2 connections to 10.0.0.6:6432/app idle in transaction, the oldest for "
        ) && finding.summary.contains("on fd 10 = backend 700 of 10.0.0.5:5432/app through PgBouncer"),
        "{}",
        finding.summary
    );
    let row = &evidence(&finding)["sessions"][0];
    assert_eq!((&row["pid"], &row["fd"], &row["backend"]), (&77.into(), &10.into(), &700.into()));
    assert_eq!(row["through"]["server"], "server:10.0.0.5:5432/app");
}

#[test]
fn a_client_of_another_host_leaves_the_finding_at_the_pooler_and_says_so() {
    let mut night = Night::begin();
    let clients = |_| vec![linked(1, "10.0.0.8:40000", 0), session(2, "10.0.0.9:40001")];
    watch(&mut night, 10, clients, |seconds| vec![behind(0, seconds)]);
    let finding = night.last().clone();
    assert_eq!(
        (night.told_of(IDLE).lines().count(), &*finding.target),
        (1, "pool:pgbouncer/main>10.0.0.5:5432/app?user=web")
    );
    assert!(
        finding
            .summary
            .contains("fd 20 = backend 700, for client 10.0.0.8:40000 behind it, whose connection is not on this host"),
        "{}",
        finding.summary
    );
}

#[test]
fn a_server_connection_that_changes_hands_blames_nobody_who_has_it_for_a_moment() {
    let mut night = Night::begin();
    // Each look another client stands on it, and each client's transaction is short; the server's row is always of
    // the one before.
    let clients = |seconds: f64| match (seconds as u32 / 5).is_multiple_of(2) {
        true => vec![linked(1, "10.0.0.9:40000", 0), session(2, "10.0.0.9:40001")],
        false => vec![session(1, "10.0.0.9:40000"), linked(2, "10.0.0.9:40001", 0)],
    };
    watch(&mut night, 20, clients, |_| vec![behind(0, 90.0)]);
    assert!(!night.told_of(IDLE).contains("began"));
}

#[test]
fn a_backend_with_the_same_number_on_another_end_is_another_session() {
    let mut night = Night::begin();
    let clients = |_| vec![linked(1, "10.0.0.9:40000", 0), session(2, "10.0.0.9:40001")];
    watch(&mut night, 10, clients, |seconds| {
        let mut other = behind(0, seconds);
        other.port = Some(43009);
        vec![other]
    });
    assert!(!night.told_of(IDLE).contains("began"));
}

#[test]
fn without_the_server_a_lease_is_certain_and_its_state_is_not_known() {
    let mut night = Night::begin();
    night.scenes(10, |_| (host(), pooler(vec![linked(1, "10.0.0.9:40000", 0), session(2, "10.0.0.9:40001")])));
    assert_eq!(night.is(IDLE, "shop"), "blind");
    let mut twin = Night::begin();
    twin.scenes(10, |seconds| {
        // Short transactions: never the same link twice.
        (host(), pooler(vec![linked(1, "10.0.0.9:40000", (seconds / 5.0) as u16 % 3), session(2, "10.0.0.9:40001")]))
    });
    assert_eq!((night.told_of(IDLE).contains("began"), twin.is(IDLE, "shop")), (false, "ok"));
}
