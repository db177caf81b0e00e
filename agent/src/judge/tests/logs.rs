//! What applications write when their pools fail.

use super::*;
use crate::discover::TargetKey;
use crate::inspect::Reason;
use crate::inspect::log_tail::{Found, Kind, LogLook, Match};

/// A look at a log in which these lines were found.
fn log(kinds: &[Kind]) -> LogLook {
    let found = kinds.iter().map(|kind| Match { kind: *kind, line: format!("ERROR {kind:?}").into() });
    LogLook {
        target: TargetKey::log("shop", "/var/log/shop.log"),
        application: "shop".into(),
        path: "/var/log/shop.log".into(),
        found: Ok(Found { lines: 5, matches: found.collect(), ..Found::default() }),
    }
}

fn quiet(night: &mut Night, seconds: u64) {
    for _ in 0..seconds {
        night.wait(1.0).log(&log(&[]));
    }
}

#[test]
fn one_pool_timeout_is_critical_and_over_after_a_minute_without() {
    let mut night = Night::begin();
    quiet(&mut night, 5);
    assert_eq!((night.told().as_str(), night.is("pool.timeout", "shop")), ("", "ok"));
    night.wait(1.0).log(&log(&[Kind::PoolTimeout]));
    assert_eq!(night.told(), "6s pool.timeout began critical");
    let summary = night.last().summary.clone();
    assert!(summary.starts_with("shop's log /var/log/shop.log says once in the last minute that nobody"), "{summary}");
    quiet(&mut night, 70);
    assert_eq!(night.told(), "68s pool.timeout cleared critical");
}

#[test]
fn prepared_statements_warn_at_one_a_minute_and_are_critical_at_five() {
    let mut night = Night::begin();
    night.wait(1.0).log(&log(&[Kind::Prepared]));
    night.wait(1.0).log(&log(&[Kind::Prepared; 4]));
    assert_eq!(night.told(), "1s pool.prepared began warning\n2s pool.prepared worsened critical");
    assert_eq!(evidence(night.last())["occurrences"], 5);
}

#[test]
fn a_locked_sqlite_database_is_a_warning_and_a_damaged_one_critical() {
    let mut night = Night::begin();
    quiet(&mut night, 5);
    assert_eq!(night.is("sqlite.shared", "log:shop"), "ok");
    night.wait(1.0).log(&log(&[Kind::SqliteLocked]));
    quiet(&mut night, 2);
    assert_eq!(night.told(), "8s sqlite.shared began warning");
    assert!(night.last().summary.contains("that its SQLite database is locked"), "{}", night.last().summary);
    night.wait(1.0).log(&log(&[Kind::SqliteDamaged]));
    quiet(&mut night, 2);
    assert!(night.told().ends_with("11s sqlite.shared worsened critical"), "{}", night.told());
    quiet(&mut night, 70);
    assert!(night.told().ends_with("cleared critical"), "{}", night.told());
}

#[test]
fn one_session_in_several_tasks_is_a_warning_and_other_errors_are_none_of_these() {
    let mut night = Night::begin();
    night.wait(1.0).log(&log(&[Kind::AsyncMisuse, Kind::AsyncMisuse]));
    quiet(&mut night, 3);
    assert_eq!(night.told(), "1s db.async_misuse began warning");
}

#[test]
fn a_transaction_that_failed_is_recorded_and_one_a_minute_is_a_warning() {
    let mut night = Night::begin();
    quiet(&mut night, 5);
    assert_eq!(night.is("db.tx_errors", "log:shop"), "ok");
    night.wait(1.0).log(&log(&[Kind::Deadlock]));
    quiet(&mut night, 3);
    assert_eq!(night.told(), "8s db.tx_errors began info");
    night.wait(51.0).log(&log(&[Kind::SerializationFailure, Kind::SerializationFailure]));
    night.wait(60.0).log(&log(&[Kind::AbortedTransaction, Kind::ReadOnlyTransaction]));
    quiet(&mut night, 3);
    assert_eq!(night.told(), "122s db.tx_errors worsened warning", "five within five minutes");
    let summary = &night.last().summary;
    assert!(summary.starts_with("shop's log /var/log/shop.log says 5 times in the last 5 minutes that a"), "{summary}");
    let by_state = serde_json::json!({ "25006": 1, "25P02": 1, "40001": 2, "40P01": 1 });
    assert_eq!(evidence(night.last())["by_sqlstate"], by_state);
    quiet(&mut night, 310);
    assert!(night.told().ends_with("db.tx_errors cleared warning"));
}

#[test]
fn a_log_that_cannot_be_read_is_blind_and_one_that_was_left_out_clears_nothing() {
    let denied = || LogLook { found: Err(Reason::Denied("the log /var/log/shop.log".into())), ..log(&[]) };
    let mut night = Night::begin();
    for _ in 0..3 {
        night.wait(1.0).log(&denied());
    }
    assert_eq!(night.told(), "3s agent.blind began warning");
    assert_eq!(night.is("pool.timeout", "shop"), "blind");
    let mut night = Night::begin();
    night.wait(1.0).log(&log(&[Kind::PoolTimeout]));
    for _ in 0..200 {
        let mut look = log(&[]);
        look.found.as_mut().expect("found").is_lower_bound = true;
        night.wait(1.0).log(&look);
    }
    assert!(!night.told().contains("cleared"));
}
