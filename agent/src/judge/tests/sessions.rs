//! Transactions left open, and what a server's view can and cannot say of them.

use super::rows::{connection, pool, server, session};
use super::*;
use crate::inspect::host::{Gap, Owner, PoolRow};
use crate::inspect::server::{Session, SessionState};
use crate::inspect::{Reason, Value};

const IDLE: &str = "pool.idle_in_transaction";
const SHOP: &str = "pool:shop/main>10.0.0.5:5432/app?user=web";

/// A pool of twenty in process 77, of which the first `leaked` were left in a transaction one second after another.
pub(super) fn leaking(leaked: usize, seconds: f64) -> (HostLook, ServerLook) {
    leaking_in(SessionState::IdleInTransaction, leaked, seconds)
}

fn leaking_in(state: SessionState, leaked: usize, seconds: f64) -> (HostLook, ServerLook) {
    let mut it = pool("shop", 77, "10.0.0.5:5432");
    let mut sessions = Vec::new();
    for index in 0..20 {
        let client = format!("10.0.0.9:{}", 40000 + index);
        it.connections.push(connection(&client, 10 + index));
        let mut row = session(900 + index as u64, &client);
        let age = seconds - f64::from(index);
        if (index as usize) < leaked && age >= 0.0 {
            row.state = state;
            row.state_age = Some(Duration::from_secs_f64(age));
            row.transaction_age = Some(Duration::from_secs_f64(age + 0.1));
        }
        sessions.push(row);
    }
    (host_of(vec![it]), server("10.0.0.5:5432", sessions))
}

#[test]
fn a_leak_is_named_with_pid_descriptors_backends_and_statement_and_its_end_is_told() {
    let mut night = Night::begin();
    night.scenes(3, |_| leaking(0, 0.0));
    assert_eq!(night.is(IDLE, "shop"), "ok");
    night.scenes(9, |seconds| leaking(14, seconds));
    assert_eq!(night.told(), "55s pool.idle_in_transaction began warning");
    let finding = night.last().clone();
    assert_eq!(finding.target, SHOP);
    assert_eq!(
        finding.summary,
        "shop, pid 77, holds 14 of its 20 connections to 10.0.0.5:5432/app idle in transaction, the oldest for 40 s \
         on fd 10 = backend 900, last statement `SELECT $1`"
    );
    assert_eq!(finding.reason, "40 s is over 30 s for 3 looks");
    assert_eq!(finding.since.to_string(), "2026-11-20T02:00:15Z", "when the oldest of them fell idle");
    let proof = evidence(&finding);
    assert_eq!((&proof["sessions_total"], &proof["open"]), (&14.into(), &20.into()));
    assert_eq!(proof["by_state"], serde_json::json!({ "idle": 6, "idle in transaction": 14 }));
    assert_eq!(proof["pids"], serde_json::json!([77]));
    assert_eq!((&proof["rule"], &proof["not_visible"]), (&"pg_stat_activity.state".into(), &serde_json::json!([])));
    let rows = proof["sessions"].as_array().expect("a list");
    assert_eq!(rows.len(), 14);
    assert_eq!(
        rows[0],
        serde_json::json!({
            "pid": 77, "start": 7700, "command": "/usr/bin/python3 shop.py", "fd": 10, "local": "10.0.0.9:40000",
            "remote": "10.0.0.5:5432", "socket": "Established", "session": 900, "backend": 900, "age_seconds": 40,
            "quiet_seconds": 1, "open_seconds": 60, "database": "app", "user": "web", "application_name": "shop",
            "state": "idle in transaction", "state_age_seconds": 40, "transaction_age_seconds": 40.1,
            "statement": "SELECT $1",
        })
    );
    night.scenes(2, |_| leaking(0, 0.0));
    assert_eq!(night.told(), "");
    night.scenes(1, |_| leaking(0, 0.0));
    assert_eq!(night.told(), "75s pool.idle_in_transaction cleared warning");
    assert_eq!(night.last().reason, "0 ms is under 27 s for 3 looks");
    assert!(night.last().summary.starts_with("over after 60 s; it was: shop, pid 77"), "{}", night.last().summary);
    assert_eq!(evidence(night.last())["sessions_total"], 14, "the proof of what it was stays");
}

#[test]
fn it_worsens_at_five_minutes_and_eases_on_the_way_back() {
    let mut night = Night::begin();
    night.scenes(64, |seconds| leaking(1, seconds));
    assert_eq!(
        night.told(),
        "40s pool.idle_in_transaction began warning\n310s pool.idle_in_transaction worsened critical"
    );
    assert_eq!(night.last().reason, "310 s is over 300 s for 3 looks");
    night.scenes(3, |_| leaking(1, 100.0));
    assert_eq!(night.told(), "335s pool.idle_in_transaction eased warning");
    assert_eq!(night.last().reason, "100 s is under 270 s for 3 looks");
}

#[test]
fn requests_that_work_in_short_transactions_are_silent() {
    let mut night = Night::begin();
    night.scenes(40, |seconds| leaking(14, seconds % 20.0));
    assert_eq!(night.told(), "");
    assert_eq!((night.is(IDLE, "shop"), night.state(IDLE, "shop").looks_known), ("ok", 40));
}

#[test]
fn a_batch_that_the_operator_allows_is_silent() {
    let allowed = Override { allow_application_names: vec!["nightly*".into()], ..change(IDLE) };
    let mut night = Night::with([allowed]);
    night.scenes(20, |seconds| {
        let (host, mut server) = leaking(1, seconds + 100.0);
        for it in server.sessions.as_mut().expect("sessions") {
            it.application_name = "nightly-report".into();
        }
        (host, server)
    });
    assert_eq!(night.told(), "");
    assert_eq!(night.state(IDLE, "shop").value, Value::Known(0.0));
}

#[test]
fn a_failed_transaction_that_is_kept_is_a_finding_of_its_own() {
    let mut night = Night::begin();
    night.scenes(8, |seconds| leaking_in(SessionState::IdleInTransactionAborted, 2, seconds));
    assert_eq!(night.told(), "20s pool.aborted_transaction began warning");
    assert!(night.last().summary.contains("holds 2 of its 20 connections"), "{}", night.last().summary);
    assert!(night.last().summary.contains("idle in a failed transaction"), "{}", night.last().summary);
    let mut twin = Night::begin();
    twin.scenes(8, |_| leaking_in(SessionState::IdleInTransactionAborted, 2, 1.0));
    assert_eq!(twin.told(), "");
}

#[test]
fn several_processes_are_one_finding_and_innocent_ones_are_not_named() {
    let scene = |seconds: f64| {
        let mut pools: Vec<PoolRow> = Vec::new();
        let mut sessions: Vec<Session> = Vec::new();
        for (index, (name, pid)) in [("shop", 77), ("shop", 78), ("billing", 79)].into_iter().enumerate() {
            let client = format!("10.0.0.9:{}", 40000 + index);
            let mut it = pool(name, pid, "10.0.0.5:5432");
            it.connections.push(connection(&client, 17));
            pools.push(it);
            let mut row = session(900 + index as u64, &client);
            if name == "shop" {
                row.state = SessionState::IdleInTransaction;
                row.state_age = Some(Duration::from_secs_f64(seconds + index as f64));
            }
            sessions.push(row);
        }
        (host_of(pools), server("10.0.0.5:5432", sessions))
    };
    let mut night = Night::begin();
    night.scenes(9, scene);
    assert_eq!(night.told(), "40s pool.idle_in_transaction began warning");
    let summary = night.last().summary.clone();
    assert!(summary.starts_with("shop, 2 processes (pids 77, 78), hold 2 of their 2 connections"), "{summary}");
    assert!(summary.contains("on pid 78, fd 17 = backend 901"), "the oldest is the second's: {summary}");
    assert_eq!(evidence(night.last())["pids"], serde_json::json!([77, 78]));
    assert_eq!((night.is(IDLE, "shop"), night.is(IDLE, "billing")), ("warning", "ok"));
}

#[test]
fn two_users_of_one_process_are_two_pools() {
    let mut night = Night::begin();
    night.scenes(9, |seconds| {
        let (host, mut server) = leaking(3, seconds);
        server.sessions.as_mut().expect("sessions")[0].user = "report".into();
        (host, server)
    });
    let targets: Vec<_> = night.found.iter().map(|it| it.target.as_ref()).collect();
    assert_eq!(targets, ["pool:shop/main>10.0.0.5:5432/app?user=report", SHOP]);
}

#[test]
fn an_owner_that_is_not_visible_is_said() {
    let mut night = Night::begin();
    night.scenes(9, |seconds| {
        let (mut host, server) = leaking(2, seconds);
        host.processes.clear();
        host.pools[0].owner = Owner::NotVisible { uid: 1000, cgroup: None };
        host.pools[0].target = crate::discover::TargetKey::pool("uid-1000", "main", &host.pools[0].remote);
        host.pools[0].connections.iter_mut().for_each(|it| it.fds.clear());
        (host, server)
    });
    let finding = night.last();
    assert_eq!(finding.target, "pool:uid-1000/main>10.0.0.5:5432/app?user=web");
    assert!(finding.summary.contains("owner: not visible"), "{}", finding.summary);
    assert!(finding.summary.contains("on port 40000 = backend 900"), "{}", finding.summary);
    let proof = evidence(finding);
    assert_eq!(proof["not_visible"], serde_json::json!(["owner: not visible"]));
    assert_eq!((&proof["sessions"][0]["pid"], &proof["sessions"][0]["owner"]), (&Json::Null, &"not visible".into()));
}

#[test]
fn fifty_long_rows_still_fit_and_stay_counted() {
    let mut night = Night::begin();
    night.scenes(9, |seconds| {
        let mut it = pool("shop", 77, "10.0.0.5:5432");
        let mut sessions = Vec::new();
        for index in 0..200 {
            let client = format!("10.0.0.9:{}", 40000 + index);
            it.connections.push(connection(&client, 10 + index));
            let mut row = session(900 + index as u64, &client);
            row.state = SessionState::IdleInTransaction;
            row.state_age = Some(Duration::from_secs_f64(seconds + f64::from(index)));
            row.statement = Some("SELECT \u{1b}".repeat(100).into());
            sessions.push(row);
        }
        let mut server = server("10.0.0.5:5432", sessions);
        server.slots = Value::Known(1000.0);
        (host_of(vec![it]), server)
    });
    let proof = evidence(&night.found[0]);
    assert_eq!(proof["sessions_total"], 200);
    let rows = proof["sessions"].as_array().expect("a list");
    let short = proof["sessions_in_short"].as_array().expect("a list");
    assert!(rows.len() >= 20 && rows.len() + short.len() == 50, "the oldest are named: {}", rows.len());
    assert_eq!(short[short.len() - 1], "pid 77 fd 160 10.0.0.9:40150 session 1050");
    assert_eq!(rows[0]["backend"], 1099, "oldest first");
    assert!(rows.iter().all(|it| it["fd"].is_u64() && it["state_age_seconds"].is_number()), "{rows:?}");
    assert!(!night.found[0].summary.contains('\u{1b}'));
}

#[test]
fn more_offenders_are_told_as_new_evidence_but_not_at_every_look() {
    let mut night = Night::begin();
    night.scenes(8, |seconds| leaking(1, seconds));
    night.told();
    night.scenes(40, |seconds| leaking(1 + (seconds as usize).min(13), seconds + 40.0));
    let told = night.told();
    assert!(told.starts_with("50s pool.idle_in_transaction evidence warning"), "{told}");
    let tellings = told.lines().filter(|it| it.contains("evidence")).count();
    assert!((1..=3).contains(&tellings), "{told}");
    let last = night.found.iter().rfind(|it| it.change == tickbird_shared::Change::Evidence).expect("told");
    assert_eq!(evidence(last)["sessions_total"], 14);
    assert!(last.reason.contains("were told, 14 are there"), "{}", last.reason);
}

#[test]
fn a_view_that_is_lost_clears_nothing() {
    let mut night = Night::begin();
    night.scenes(9, |seconds| leaking(2, seconds));
    night.told();
    let lost = |_| {
        let (host, mut server) = leaking(2, 60.0);
        server.sessions = Err(Reason::Unreachable("PostgreSQL at 10.0.0.5:5432: timed out".into()));
        (host, server)
    };
    night.scenes(6, lost);
    assert_eq!(night.told(), "60s pool.idle_in_transaction evidence_lost warning\n60s agent.blind began warning");
    assert_eq!(night.is(IDLE, "shop"), "warning");
    let blind = night.last();
    assert_eq!(blind.sub_key.as_deref(), Some("cannot reach PostgreSQL at 10.0.0.5:5432: timed out"));
    night.scenes(4, |_| leaking(0, 0.0));
    assert_eq!(
        night.told(),
        "80s pool.idle_in_transaction evidence_back warning\n85s agent.blind cleared warning\n\
         90s pool.idle_in_transaction cleared warning"
    );
}

#[test]
fn sockets_that_cannot_be_read_any_more_clear_nothing_and_are_not_gone() {
    let mut night = Night::begin();
    night.scenes(9, |seconds| leaking(2, seconds));
    night.told();
    let denied = Gap {
        checks: &["pool.utilization", "pool.close_wait", "pool.churn"],
        target: crate::discover::TargetKey::agent(),
        reason: Reason::Denied("sockets over NETLINK_SOCK_DIAG".into()),
    };
    night.scenes(100, |_| {
        let (mut host, server) = leaking(0, 0.0);
        host.pools.clear();
        host.gaps.push(denied.clone());
        (host, server)
    });
    let told = night.told();
    assert!(told.starts_with("60s agent.blind began warning"), "{told}");
    assert!(told.contains("pool.idle_in_transaction evidence_lost warning") && !told.contains("gone"), "{told}");
    assert_eq!((night.is(IDLE, "shop"), night.is("pool.churn", "pool:shop")), ("warning", "blind"));
}

#[test]
fn without_a_credential_the_pool_is_blind_after_a_while_and_says_what_to_add() {
    let mut night = Night::begin();
    let (host, _) = leaking(2, 60.0);
    night.hosts(&host, 14);
    assert_eq!((night.told().as_str(), night.is(IDLE, "shop")), ("", "not yet"));
    night.hosts(&host, 6);
    assert_eq!(night.is(IDLE, "shop"), "blind");
    let told = night.told();
    assert_eq!(told.lines().filter(|it| it.contains("agent.blind began")).count(), 1, "one for the cause: {told}");
    assert!(night.last().summary.contains("no credential for PostgreSQL at 10.0.0.5:5432"), "{}", night.last().summary);
    assert!(night.last().advice.as_deref().is_some_and(|it| it.contains("[[postgres]]")));
    night.scenes(3, |_| leaking(0, 0.0));
    assert_eq!(night.is(IDLE, "shop"), "ok", "the pool is known by database and user then, and only so");
}

#[test]
fn a_translated_address_is_blind_at_the_second_look_and_nothing_is_a_ghost() {
    let mut night = Night::begin();
    let scene = |_| {
        let (host, mut server) = leaking(14, 60.0);
        for it in server.sessions.as_mut().expect("sessions") {
            it.address = Some("192.168.7.7".parse().expect("an address"));
        }
        (host, server)
    };
    night.scenes(1, scene);
    assert_eq!(night.is(IDLE, "shop"), "not yet");
    night.scenes(4, scene);
    assert_eq!(night.is(IDLE, "shop"), "blind");
    assert!(night.state(IDLE, "shop").value == Value::Unknown(Reason::Translated("10.0.0.5:5432/app".into())));
    assert!(night.told().lines().all(|it| it.contains("agent.blind")));
}

#[test]
fn what_is_hidden_from_our_role_is_blind_and_never_well() {
    let denied = || Reason::Denied("port and state of other roles' sessions".into());
    let mut night = Night::begin();
    night.scenes(4, |_| {
        let (host, mut server) = leaking(14, 60.0);
        for it in server.sessions.as_mut().expect("sessions") {
            (it.address, it.port, it.state) = (None, None, SessionState::Unknown);
        }
        server.hidden = Some(denied());
        (host, server)
    });
    assert_eq!(night.is(IDLE, "shop"), "blind");
    // Half of the pool is visible: what is seen there fires, but what is not seen never clears it.
    let half = |leaked| {
        move |_| {
            let (host, mut server) = leaking(leaked, 60.0);
            for it in &mut server.sessions.as_mut().expect("sessions")[10..] {
                (it.address, it.port, it.state) = (None, None, SessionState::Unknown);
            }
            server.hidden = Some(denied());
            (host, server)
        }
    };
    night.told();
    night.scenes(3, half(2));
    assert!(night.told().contains("pool.idle_in_transaction began warning"));
    assert!(matches!(night.state(IDLE, "user=web").value, Value::Between(..)));
    night.scenes(6, half(0));
    assert_eq!(night.is(IDLE, "user=web"), "warning");
    assert!(night.told().contains("pool.idle_in_transaction evidence_lost warning"));
}

#[test]
fn a_pool_of_one_user_that_became_hidden_is_lost_and_not_cleared() {
    let mut night = Night::begin();
    let scene = |hide: bool| {
        move |seconds: f64| {
            let (host, mut server) = leaking(2, seconds + 20.0);
            for it in &mut server.sessions.as_mut().expect("sessions")[..10] {
                it.user = "report".into();
                if hide {
                    (it.address, it.port, it.state) = (None, None, SessionState::Unknown);
                }
            }
            server.hidden = hide.then(|| Reason::Denied("port and state of other roles' sessions".into()));
            (host, server)
        }
    };
    night.scenes(5, scene(false));
    assert_eq!(night.told(), "20s pool.idle_in_transaction began warning");
    night.scenes(6, scene(true));
    let told = night.told();
    assert!(told.starts_with("40s pool.idle_in_transaction evidence_lost warning"), "{told}");
    assert_eq!((night.is(IDLE, "user=report"), night.is(IDLE, "user=web")), ("warning", "ok"));
}

#[test]
fn connections_that_come_and_go_between_two_views_are_no_translation() {
    let mut night = Night::begin();
    for look in 0..10_u32 {
        let (mut host, server) = leaking(0, 0.0);
        host.pools[0].connections = vec![connection(&format!("10.0.0.9:{}", 50_000 + look), 10)];
        night.scenes(1, |_| (host.clone(), server.clone()));
    }
    assert_eq!((night.told().as_str(), night.is(IDLE, "shop")), ("", "not yet"));
}

#[test]
fn a_server_that_moved_is_not_seen_at_its_old_address() {
    let mut night = Night::begin();
    night.scenes(3, |_| leaking(0, 0.0));
    let moved = server("10.0.0.6:5432", Vec::new());
    night.scenes(8, |_| {
        let (host, mut there) = (leaking(0, 0.0).0, moved.clone());
        there.target = crate::discover::TargetKey::server("10.0.0.5:5432", "app");
        (host, there)
    });
    assert_eq!(night.is(IDLE, "shop"), "blind");
}

#[test]
fn a_pool_to_another_address_of_the_same_server_clears_when_it_is_empty() {
    let near = |leaked, seconds| {
        let (mut host, mut server) = leaking(leaked, seconds);
        server.addresses = vec![rows::address("127.0.0.1:5432")];
        let remote = rows::address("10.0.0.9:5432");
        host.pools[0].remote = remote.into();
        host.pools[0].target = crate::discover::TargetKey::pool("shop", "main", &remote.into());
        (host, server)
    };
    let mut night = Night::begin();
    night.scenes(9, |seconds| near(2, seconds));
    assert_eq!(night.told(), "40s pool.idle_in_transaction began warning");
    night.scenes(3, |_| {
        let (mut host, mut server) = near(0, 0.0);
        host.pools.clear();
        server.sessions = Ok(Vec::new());
        (host, server)
    });
    assert_eq!(night.told(), "60s pool.idle_in_transaction cleared warning");
}

#[test]
fn an_application_that_was_restarted_clears_as_usual_and_one_that_is_gone_after_five_minutes() {
    let mut night = Night::begin();
    night.scenes(9, |seconds| leaking(2, seconds));
    night.told();
    let empty = server("10.0.0.5:5432", Vec::new());
    let restarted = HostLook { processes: vec![rows::process("shop", 80, 0)], ..HostLook::default() };
    night.scenes(3, |_| (restarted.clone(), empty.clone()));
    assert_eq!(night.told(), "60s pool.idle_in_transaction cleared warning");

    let mut night = Night::begin();
    night.scenes(9, |seconds| leaking(2, seconds));
    night.told();
    night.scenes(59, |_| (HostLook::default(), empty.clone()));
    assert_eq!(night.told(), "");
    night.scenes(1, |_| (HostLook::default(), empty.clone()));
    assert_eq!(night.told(), "345s pool.idle_in_transaction target_gone warning");
    assert_eq!(night.last().status, tickbird_shared::Status::Resolved);
}

#[test]
fn a_server_is_suspect_while_a_session_is_half_way_to_a_bound() {
    let mut night = Night::begin();
    let mut suspect = Vec::new();
    for _ in 0..4 {
        let age = night.now().as_secs_f64();
        night.scenes(1, |_| leaking(1, age));
        suspect.push(night.judge.is_suspect("postgres 10.0.0.5:5432/app"));
    }
    assert_eq!(suspect, [false, false, false, true], "at 0, 5, 10 and 15 s");
    assert!(night.judge.is_suspect("server:10.0.0.5:5432/app") && !night.judge.is_suspect("postgres other:5432/app"));
}
