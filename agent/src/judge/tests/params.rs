//! What a DSN says of a driver behind a pooler.

use std::sync::Arc;

use super::rows::{connection, pool, server};
use super::*;
use crate::discover::dsn_keys::Named;
use crate::inspect::host::PoolRow;
use crate::inspect::log_tail::{Found, Kind, LogLook, Match};
use crate::inspect::server::PoolMode;

/// A pool to `remote` of a process whose DSN this is.
fn named(remote: &str, dsn: &str) -> PoolRow {
    let mut it = pool("shop", 77, remote);
    it.connections.push(connection("10.0.0.9:40000", 10));
    it.dsn.named = Named::read(dsn, "DATABASE_URL of the process").map(Arc::new);
    it
}

fn declared(mut it: PoolRow) -> PoolRow {
    it.dsn.pooler = Some(PoolMode::Transaction);
    it
}

fn watch(night: &mut Night, it: &PoolRow) {
    night.hosts(&host_of(vec![it.clone()]), 5);
}

const BARE: &str = "postgresql+asyncpg://u:p@pooler:6432/x";

#[test]
fn a_driver_that_prepares_behind_a_transaction_pooler_is_a_hint_and_critical_once_statements_fail() {
    let mut night = Night::begin();
    watch(&mut night, &declared(named("10.0.0.5:6432", BARE)));
    assert_eq!(night.told(), "3s pool.params began info");
    let summary = night.last().summary.clone();
    assert!(summary.contains("without statement_cache_size=0"), "{summary}");
    let failing = LogLook {
        target: crate::discover::TargetKey::log("shop", "/l"),
        application: "shop".into(),
        path: "/l".into(),
        found: Ok(Found { matches: vec![Match { kind: Kind::Prepared, line: "x".into() }], ..Found::default() }),
    };
    night.wait(1.0).log(&failing);
    night.told();
    watch(&mut night, &declared(named("10.0.0.5:6432", BARE)));
    assert_eq!(night.told(), "9s pool.params worsened critical");
    watch(&mut night, &declared(named("10.0.0.5:6432", &format!("{BARE}?statement_cache_size=0"))));
    assert_eq!(night.told(), "14s pool.params cleared critical");
}

#[test]
fn the_pooler_itself_says_its_mode_and_by_session_everything_is_well() {
    let (session, transaction) = (PoolMode::Session, PoolMode::Transaction);
    for (mode, carries, expected) in [(transaction, false, "info"), (transaction, true, "ok"), (session, false, "ok")] {
        let mut night = Night::begin();
        let mut look = server("10.0.0.5:6432", Vec::new());
        (look.pool_mode, look.carries_statements) = (Some(mode), carries);
        night.server(&look);
        watch(&mut night, &named("10.0.0.5:6432", BARE));
        assert_eq!(night.is("pool.params", "shop"), expected);
    }
}

#[test]
fn nothing_is_said_where_the_mode_the_keys_or_the_dsn_are_not_known() {
    let has_state = |night: &Night| night.judge.states().iter().any(|it| it.check == "pool.params");
    let mut night = Night::begin();
    watch(&mut night, &named("10.0.0.5:5432", BARE));
    assert!(!has_state(&night), "no pooler");
    for it in [
        named("10.0.0.5:6432", BARE),
        declared(named("10.0.0.5:6432", "postgres://u:p@pooler:6432/x")),
        declared(named("10.0.0.5:6432", "")),
        // It is said in the code or nowhere: libpq takes no such key.
        declared(named("10.0.0.5:6432", "postgresql+psycopg://u:p@pooler:6432/x")),
    ] {
        let mut night = Night::begin();
        watch(&mut night, &it);
        assert_eq!((night.told().as_str(), night.is("pool.params", "shop")), ("", "not yet"), "{:?}", it.dsn);
    }
}

#[test]
fn the_operator_may_say_which_keys_are_needed() {
    let mut it = declared(named("10.0.0.5:6432", "postgres://u:p@pooler:6432/x?pgbouncer=false"));
    it.dsn.required = vec!["pgbouncer=true".into()];
    let mut night = Night::begin();
    watch(&mut night, &it);
    assert_eq!(night.told(), "3s pool.params began warning");
}
