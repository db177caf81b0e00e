//! What a server tells of itself: locks, failed transactions, its role, its replicas and its narrower limits.

use super::rows::{connection, pool, server, session};
use super::*;
use crate::inspect::server::{Blocked, Counters, Facts, Limit, LimitOf, Replica, SessionState, Standing};
use crate::inspect::{HostLook, Reason, ServerLook, Value};

const AT: &str = "10.0.0.5:5432";

/// A server with two sessions of this host's shop, and these facts.
fn scene(facts: Facts) -> (HostLook, ServerLook) {
    let mut it = pool("shop", 77, AT);
    it.connections = vec![connection("10.0.0.9:40000", 10), connection("10.0.0.9:40001", 11)];
    let mut look = server(AT, vec![session(900, "10.0.0.9:40000"), session(901, "10.0.0.9:40001")]);
    look.facts = Box::new(facts);
    (host_of(vec![it]), look)
}

fn waits(seconds: f64) -> Facts {
    let waited = Some(Duration::from_secs_f64(seconds));
    Facts { blocked: Some(Ok(vec![Blocked { backend: 900, waited, by: vec![901] }])), ..Facts::default() }
}

#[test]
fn a_long_wait_for_a_lock_names_who_waits_and_who_holds_it() {
    let mut night = Night::begin();
    night.scenes(4, |seconds| {
        let (host, mut look) = scene(waits(seconds + 5.0));
        let holder = &mut look.sessions.as_mut().expect("sessions")[1];
        holder.state = SessionState::IdleInTransaction;
        holder.state_age = Some(Duration::from_secs(2));
        (host, look)
    });
    assert_eq!(night.told(), "15s db.locks began warning");
    assert_eq!(
        night.last().summary,
        "1 session of 10.0.0.5:5432/app waits for a lock, backend 900 of shop (idle for 1 s) for 20 s, \
         held by backend 901 of shop (idle in transaction for 2 s)"
    );
    let proof = evidence(night.last());
    assert_eq!((&proof["blocked"][0]["pid"], &proof["blocked"][0]["fd"]), (&77.into(), &10.into()));
    assert_eq!(proof["blocked"][0]["waits_for"][0]["backend"], 901);
    night.scenes(3, |_| scene(waits(40.0)));
    assert_eq!(night.told(), "35s db.locks worsened critical");
    night.scenes(3, |_| scene(Facts { blocked: Some(Ok(Vec::new())), ..Facts::default() }));
    assert_eq!(night.told(), "50s db.locks cleared critical");
}

#[test]
fn short_waits_are_silent_and_hidden_ones_are_not_called_none() {
    let mut night = Night::begin();
    night.scenes(20, |_| scene(waits(0.4)));
    assert_eq!((night.told().as_str(), night.is("db.locks", "server:")), ("", "ok"));
    night.scenes(1, |_| {
        let (host, mut look) = scene(Facts { blocked: Some(Ok(Vec::new())), ..Facts::default() });
        look.hidden = Some(Reason::Denied("sessions of others".into()));
        (host, look)
    });
    assert_eq!(night.is("db.locks", "server:"), "blind");
}

fn counted(seconds: f64, commits: u64, rollbacks: u64, deadlocks: u64) -> Facts {
    let at = Duration::from_secs_f64(seconds);
    let counters = Counters { at, commits, rollbacks, deadlocks, conflicts: 0, rows_read: 0 };
    Facts { counters: Some(Ok(counters)), blocked: Some(Ok(Vec::new())), ..Facts::default() }
}

#[test]
fn one_deadlock_is_a_warning_that_ends_and_an_error_that_is_recorded() {
    let mut night = Night::begin();
    night.scenes(2, |seconds| scene(counted(seconds, 100, 0, 7)));
    assert_eq!(night.told(), "", "what was before us is not told");
    night.scenes(30, |seconds| scene(counted(10.0 + seconds, 200, 0, 8)));
    assert_eq!(
        night.told(),
        "25s db.locks began warning\n25s db.tx_errors began info\n85s db.locks cleared warning",
        "the error stays in its window of 5 min"
    );
    assert!(night.found[0].summary.contains("broke 1 deadlock"), "{}", night.found[0].summary);
}

#[test]
fn rollbacks_count_where_they_are_no_habit_and_are_not_judged_where_they_are() {
    let ratio = |share: f64| {
        move |night: &mut Night, from: f64, looks: u32, base: (u64, u64)| {
            night.scenes(looks, |seconds| {
                let all = seconds * 100.0;
                scene(counted(from + seconds, base.0 + (all * (1.0 - share)) as u64, base.1 + (all * share) as u64, 0))
            });
            let all = f64::from(looks) * 500.0;
            (base.0 + (all * (1.0 - share)) as u64, base.1 + (all * share) as u64)
        }
    };
    let mut night = Night::begin();
    let base = ratio(0.001)(&mut night, 0.0, 200, (0, 0));
    assert_eq!((night.told().as_str(), night.is("db.tx_abandoned", "server:")), ("", "ok"));
    ratio(0.5)(&mut night, 1000.0, 60, base);
    assert!(night.told().contains("db.tx_abandoned began warning"), "one sign alone is a warning");
    assert!(!night.found.iter().any(|it| it.severity == tickbird_shared::Severity::Critical));

    let mut decoy = Night::begin();
    let base = ratio(0.6)(&mut decoy, 0.0, 400, (0, 0));
    assert_eq!(
        decoy.told_of("db.tx_abandoned"),
        "915s db.tx_abandoned began info",
        "a pool that sends ROLLBACK at each return"
    );
    let finding = decoy.last();
    assert!(
        finding
            .summary
            .ends_with("; it has done so since the agent knows it, as with pools that send one at each return"),
        "{}",
        finding.summary
    );
    assert_eq!(evidence(finding)["usual_share"], 0.6);
    ratio(0.001)(&mut decoy, 2000.0, 120, base);
    assert!(decoy.told_of("db.tx_abandoned").ends_with("cleared info"), "{:?}", decoy.found.last());
    assert!(decoy.found.iter().all(|it| it.severity == Severity::Info), "a habit pages nobody");
}

#[test]
fn a_second_sign_makes_many_rollbacks_critical_and_a_reset_counter_says_nothing() {
    let mut night = Night::begin();
    night.scenes(200, |seconds| scene(counted(seconds, (seconds * 100.0) as u64, 0, 0)));
    night.scenes(40, |seconds| {
        let (host, mut look) = scene(counted(1000.0 + seconds, 100_000, (seconds * 100.0) as u64, 0));
        look.sessions.as_mut().expect("sessions")[0].state = SessionState::IdleInTransactionAborted;
        (host, look)
    });
    assert!(night.told().contains("db.tx_abandoned worsened critical"));
    let mut twin = Night::begin();
    twin.scenes(200, |seconds| scene(counted(seconds, (seconds * 100.0) as u64, 0, 3)));
    twin.scenes(20, |seconds| scene(counted(1000.0 + seconds, (seconds * 100.0) as u64, 0, 0)));
    assert_eq!(twin.told(), "");
}

fn is_primary() -> Facts {
    Facts { identifier: Some(Ok("7300".into())), standing: Some(Ok(Standing::Primary(Vec::new()))), ..Facts::default() }
}

fn is_replica(is_fed: bool, is_caught_up: bool, age: u64) -> Facts {
    let last_change_age = Some(Duration::from_secs(age));
    let standing = Standing::Replica { is_fed, is_caught_up, last_change_age };
    Facts { standing: Some(Ok(standing)), ..is_primary() }
}

#[test]
fn an_application_that_stays_on_the_old_primary_is_critical_until_it_moves() {
    let mut night = Night::begin();
    night.scenes(4, |_| scene(is_primary()));
    assert_eq!((night.told().as_str(), night.is("db.role", "server:")), ("", "ok"));
    night.scenes(8, |_| scene(is_replica(true, true, 1)));
    assert_eq!(night.told(), "25s db.role began info\n55s db.role worsened critical");
    assert!(night.last().summary.contains("is a replica now; shop, pid 77 still on it for 30 s"), "{:?}", night.last());
    night.scenes(40, |_| {
        let (mut host, look) = scene(is_replica(true, true, 1));
        host.pools[0].connections.clear();
        (host, look)
    });
    assert!(night.told().ends_with("db.role cleared critical"), "{:?}", night.found.last());
}

#[test]
fn an_application_on_a_replica_from_the_start_is_silent_and_another_server_is_a_warning() {
    let mut night = Night::begin();
    night.scenes(60, |_| scene(is_replica(true, true, 7200)));
    assert_eq!((night.told().as_str(), night.is("db.role", "server:")), ("", "ok"));
    night.scenes(1, |_| scene(Facts { identifier: Some(Ok("9900".into())), ..is_replica(true, true, 1) }));
    assert!(night.told().contains("db.role began warning"));
}

#[test]
fn a_primary_that_lives_on_beside_its_promoted_replica_is_the_old_one() {
    let other = |address, facts| {
        let mut look = server(address, Vec::new());
        look.facts = Box::new(facts);
        look
    };
    let mut night = Night::begin();
    for look in 0..12 {
        night.wait(5.0);
        let (host, old) = scene(is_primary());
        night.host(&host);
        night.server(&old);
        // One server under two names.
        for address in ["10.0.0.6:5432", "10.0.0.7:5432"] {
            night.server(&other(address, if look < 4 { is_replica(true, true, 1) } else { is_primary() }));
        }
    }
    let critical: Vec<_> = night.found.iter().filter(|it| it.severity == Severity::Critical).collect();
    assert!(critical.iter().all(|it| it.target.contains("10.0.0.5")), "{critical:?}");
    assert!(critical[0].summary.contains("superseded by a replica of its cluster; shop, pid 77"), "{critical:?}");
}

#[test]
fn a_primary_that_died_is_the_old_one_once_its_replica_took_over() {
    let other = |facts| {
        let mut look = server("10.0.0.6:5432", Vec::new());
        look.facts = Box::new(facts);
        look
    };
    let mut night = Night::begin();
    for look in 0..12 {
        night.wait(5.0);
        let died = || Reason::Unreachable("10.0.0.5:5432: no answer".into());
        let facts = if look < 3 { is_primary() } else { Facts { standing: Some(Err(died())), ..Facts::default() } };
        let (host, old) = scene(facts);
        night.host(&host);
        night.server(&old);
        night.server(&other(if look < 4 { is_replica(true, true, 1) } else { is_primary() }));
    }
    let told = night.told();
    assert!(told.contains("25s db.role began info"), "the successor's promotion: {told}");
    assert!(
        told.contains("db.role began critical") || told.contains("worsened critical"),
        "the sockets on the dead one: {told}"
    );
    assert!(night.found.iter().any(|it| it.summary.contains("superseded")), "{told}");
}

#[test]
fn a_replica_that_lags_is_told_and_one_of_an_idle_primary_is_not() {
    let mut night = Night::begin();
    night.scenes(60, |_| scene(is_replica(true, true, 36_000)));
    assert_eq!((night.told().as_str(), night.is("db.replica", "server:")), ("", "ok"));
    // One change after ten idle hours, looked at before it was replayed.
    night.scenes(1, |_| scene(is_replica(true, false, 36_000)));
    assert_eq!(night.state("db.replica", "server:").value, Value::Known(5.0));
    night.scenes(12, |seconds| scene(is_replica(true, false, 36_000 + seconds as u64)));
    assert!(night.told().contains("db.replica began warning"));
    let mut cut = Night::begin();
    cut.scenes(2, |_| scene(is_replica(true, true, 1)));
    cut.scenes(12, |seconds| scene(is_replica(false, true, seconds as u64)));
    assert!(cut.told().contains("db.replica began warning"));
    assert!(cut.last().summary.contains("not connected to"), "{}", cut.last().summary);
    let mut archive = Night::begin();
    archive.scenes(60, |_| scene(is_replica(false, true, 36_000)));
    assert_eq!((archive.told().as_str(), archive.is("db.replica", "server:")), ("", "not yet"), "fed from an archive");
}

#[test]
fn a_primary_tells_its_slowest_replica_and_without_one_has_no_lag() {
    let with = |lag: Option<u64>, bytes| {
        let replica = Replica { name: "standby1".into(), lag: lag.map(Duration::from_secs), bytes };
        Facts { standing: Some(Ok(Standing::Primary(vec![replica]))), ..is_primary() }
    };
    let mut night = Night::begin();
    night.scenes(10, |_| scene(with(Some(3600), 0)));
    assert_eq!((night.told().as_str(), night.is("db.replica", "server:")), ("", "ok"), "measured long ago, whole now");
    night.scenes(4, |_| scene(with(Some(45), 1 << 20)));
    assert!(night.told().contains("db.replica began warning"));
    assert!(night.last().summary.contains("replica \"standby1\""), "{}", night.last().summary);
    let mut alone = Night::begin();
    alone.scenes(10, |_| scene(is_primary()));
    assert!(alone.judge.states().iter().all(|it| it.check != "db.replica"), "nothing to judge");
}

#[test]
fn a_role_near_its_own_limit_is_told_beside_a_server_with_room() {
    let limits = |used, perhaps| {
        let limit = Limit { of: LimitOf::Role("web".into()), most: 20, used, perhaps };
        Facts { limits: Some(Ok(vec![limit])), ..Facts::default() }
    };
    let mut night = Night::begin();
    night.scenes(10, |_| scene(limits(10, 0)));
    assert_eq!(night.told(), "");
    night.scenes(3, |_| scene(limits(17, 0)));
    assert_eq!(night.told(), "65s db.headroom began warning");
    assert!(night.last().summary.starts_with("role web uses 17 of the 20 connections"), "{}", night.last().summary);
    assert_eq!(night.last().sub_key.as_deref(), Some("role web"));
    night.scenes(3, |_| scene(limits(5, 15)));
    assert_eq!(night.told(), "80s db.headroom evidence_lost warning", "hidden ones may fill it: it does not clear");
    night.scenes(1, |_| scene(Facts { limits: Some(Ok(Vec::new())), ..Facts::default() }));
    assert!(night.told().contains("db.headroom target_gone"), "the limit was lifted");
}
