//! Requests that fail, and whether what they leased is given back.

use std::time::Duration;

use super::leases::host;
use super::rows::{connection, server, session};
use super::*;
use crate::inspect::Reason;
use crate::inspect::host::Connection;
use crate::inspect::log_tail::{Found, LogLook, Occurrence, Raised};
use crate::inspect::server::SessionState;

const CHECK: &str = "err.correlate";
const BACKEND: u64 = 900;
/// Connections that are used all the time.
const HEALTHY: u16 = 4;

/// An application: when each of its leaked connections was last used, when it is given back, and when it logs errors.
#[derive(Default)]
struct Shop {
    leaks: Vec<f64>,
    repaired: Option<f64>,
    errors: Vec<f64>,
    log: Log,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Log {
    #[default]
    Followed,
    Absent,
    Denied,
    LeftOut,
    OfAnother,
}

impl Shop {
    /// Looks at host and log once a second, at the server every five.
    fn night(&self, seconds: u32) -> Night {
        let mut night = Night::begin();
        for second in 1..=seconds {
            let now = f64::from(second);
            night.wait(1.0);
            if let Some(look) = self.log(now) {
                night.log(&look);
            }
            night.host(&host(self.connections(now), 20));
            if second % 5 == 0 {
                night.server(&server("10.0.0.5:5432", self.sessions(now)));
            }
        }
        night
    }

    /// For how long each connection has been quiet, and whether it is leaked.
    fn quiet(&self, now: f64) -> Vec<(f64, bool)> {
        let is_repaired = self.repaired.is_some_and(|at| now >= at);
        let leaks = self.leaks.iter().map(|at| if now > *at && !is_repaired { (now - at, true) } else { (0.3, false) });
        leaks.chain((0..HEALTHY).map(|_| (0.3, false))).collect()
    }

    fn connections(&self, now: f64) -> Vec<Connection> {
        let row = |(index, (quiet, _)): (usize, (f64, bool))| {
            let age = Some(Duration::from_secs_f64(quiet));
            Connection {
                sent_age: age,
                received_age: age,
                acknowledged_age: age,
                seen_for: Duration::from_secs_f64(now),
                ..connection(&format!("10.0.0.9:{}", 40_000 + index), 10 + index as u32)
            }
        };
        self.quiet(now).into_iter().enumerate().map(row).collect()
    }

    fn sessions(&self, now: f64) -> Vec<crate::inspect::server::Session> {
        let row = |(index, (quiet, is_leaked)): (usize, (f64, bool))| {
            let mut it = session(BACKEND + index as u64, &format!("10.0.0.9:{}", 40_000 + index));
            it.state_age = Some(Duration::from_secs_f64(quiet));
            if is_leaked {
                it.state = SessionState::IdleInTransaction;
                // The request ran for a while before its last statement.
                it.transaction_age = Some(Duration::from_secs_f64(quiet + 2.0));
                it.statement = Some("SELECT $1".into());
            }
            it
        };
        self.quiet(now).into_iter().enumerate().map(row).collect()
    }

    fn log(&self, now: f64) -> Option<LogLook> {
        let since = Duration::from_secs_f64(now - 1.0);
        let raised = Raised {
            kind: "shop.OutOfStock".into(),
            message: "no # left".into(),
            place: "main.py order".into(),
            fingerprint: "00112233aabbccdd".into(),
        };
        let new = self.errors.iter().filter(|at| **at > now - 1.0 && **at <= now);
        let found = Found {
            errors: new.map(|_| Occurrence { raised: raised.clone(), since, written: None }).collect(),
            since: (now > 1.0).then_some(since),
            until: Duration::from_secs_f64(now),
            is_lower_bound: self.log == Log::LeftOut,
            ..Found::default()
        };
        let application = if self.log == Log::OfAnother { "other" } else { "shop" };
        let found = match self.log {
            Log::Absent => return None,
            Log::Denied => Err(Reason::Unreadable("the log /var/log/shop.log".into())),
            _ => Ok(found),
        };
        Some(LogLook {
            target: TargetKey::log(application, "/var/log/shop.log"),
            application: application.into(),
            path: "/var/log/shop.log".into(),
            found,
        })
    }
}

#[test]
fn one_connection_that_an_error_left_is_named_with_it_once_it_is_held_too_long() {
    let mut night = Shop { leaks: vec![60.4], errors: vec![60.45], ..Shop::default() }.night(115);
    assert_eq!((night.told_of(CHECK).as_str(), night.is(CHECK, "shop")), ("", "ok"));
    let mut night = Shop { leaks: vec![60.4], errors: vec![60.45], ..Shop::default() }.night(400);
    assert!(night.told_of(CHECK).ends_with("s err.correlate began warning"), "one is enough, and never critical");
    let state = night.state(CHECK, "shop");
    let summary = state.summary.expect("it fires");
    for part in [
        "shop, pid 77: leak on error path: 1 of 1 connection held for longer than 60 s to 10.0.0.5:5432",
        "`shop.OutOfStock: no # left` in main.py order (00112233aabbccdd) on fd 10 = backend 900",
    ] {
        assert!(summary.contains(part), "{summary}");
    }
    let proof: Json = serde_json::from_str(state.evidence.expect("proof").get()).expect("JSON");
    assert_eq!(proof["errors"][0]["fingerprint"], "00112233aabbccdd");
    let row = &proof["connections"][0];
    assert_eq!((&row["pid"], &row["fd"], &row["session"]), (&77.into(), &10.into(), &900.into()));
    assert_eq!(row["error"]["type"], "shop.OutOfStock");
    assert!(row["error"]["seconds_after_last_use"].as_f64().is_some_and(|it| it.abs() < 1.0), "{row}");
    assert_ne!(night.is("pool.leak", "shop"), "warning", "one alone is no leak by number");
}

#[test]
fn a_repaired_one_is_resolved_and_one_given_back_in_time_is_never_told() {
    let mut night =
        Shop { leaks: vec![60.4], repaired: Some(200.0), errors: vec![60.45], ..Shop::default() }.night(260);
    assert!(night.told_of(CHECK).ends_with("err.correlate cleared warning"));
    assert_eq!(night.is(CHECK, "shop"), "ok");
    let mut night =
        Shop { leaks: vec![60.4], repaired: Some(110.0), errors: vec![60.45], ..Shop::default() }.night(260);
    assert_eq!((night.told_of(CHECK).as_str(), night.is(CHECK, "shop")), ("", "ok"));
}

#[test]
fn the_leaks_own_finding_mentions_the_pairs() {
    let shop = Shop { leaks: vec![60.4, 75.4], errors: vec![60.45, 75.45], ..Shop::default() };
    let night = shop.night(250);
    let leak = night.state("pool.leak", "shop");
    let summary = leak.summary.expect("it fires");
    assert!(summary.contains("2 of them had last been used within 1 s of an error"), "{summary}");
    let proof: Json = serde_json::from_str(leak.evidence.expect("proof").get()).expect("JSON");
    assert_eq!(proof["errors"][0]["connections"], 2);
    let without = Shop { errors: vec![30.0], ..shop }.night(250).state("pool.leak", "shop");
    assert!(!without.evidence.expect("proof").get().contains("error"), "{:?}", without.summary);
}

#[test]
fn errors_without_a_leak_are_none_and_a_leak_at_another_time_is_none() {
    for shop in [
        Shop { errors: vec![60.45, 75.45, 130.2], ..Shop::default() },
        Shop { leaks: vec![60.4, 75.4, 90.4], errors: vec![50.0, 80.0, 84.0, 120.0], ..Shop::default() },
    ] {
        let mut night = shop.night(300);
        assert_eq!((night.told_of(CHECK).as_str(), night.is(CHECK, "shop")), ("", "ok"));
    }
}

#[test]
fn where_errors_are_frequent_or_many_are_held_a_pair_is_no_evidence() {
    let all_the_time: Vec<f64> = (1..300).map(|it| f64::from(it) + 0.5).collect();
    let now_and_then: Vec<f64> = (0..60).map(|it| f64::from(it) * 10.0 + 5.5).collect();
    let many: Vec<f64> = (0..12).map(|it| f64::from(it) * 7.3 + 40.4).collect();
    for (leaks, errors) in [(vec![60.4, 75.4], all_the_time), (many, now_and_then)] {
        let mut night = Shop { leaks, errors, ..Shop::default() }.night(290);
        assert_eq!(night.told_of(CHECK), "");
        let state = night.state(CHECK, "shop");
        assert_eq!(state.state, State::NotYet, "{state:?}");
        assert!(matches!(&state.value, Value::Unknown(it) if it.to_string().contains("so frequent")), "{state:?}");
        let leak = night.state("pool.leak", "shop").evidence.expect("it fires");
        assert!(!leak.get().contains("error"), "{leak}");
    }
}

#[test]
fn without_a_log_of_the_application_nothing_is_judged_and_without_its_lines_nothing_is_well() {
    let shop = |log| Shop { leaks: vec![60.4, 75.4], log, ..Shop::default() };
    for log in [Log::Absent, Log::OfAnother] {
        let night = shop(log).night(200);
        assert!(night.judge.states().iter().all(|it| it.check != CHECK));
    }
    assert_eq!(shop(Log::Denied).night(200).is(CHECK, "shop"), "blind");
    assert_eq!(shop(Log::LeftOut).night(200).is(CHECK, "shop"), "not yet");
    // Older than the log's first look.
    let before = Shop { leaks: vec![0.5], ..Shop::default() };
    assert_eq!(before.night(200).is(CHECK, "shop"), "not yet");
}
