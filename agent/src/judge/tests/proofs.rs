//! What stands behind a finding of a pool: whose connection it is, on which descriptor, which session, in what state, since
//! when; and what could not be seen.

use std::collections::BTreeSet;

use super::rows::{connection, pool, server, session};
use super::stats::said;
use super::*;
use crate::discover::Instance;
use crate::inspect::host::{Connection, Descriptor, Limit, Owner, PoolRow, Sharers, TcpState};
use crate::inspect::resolver::{Answer, NamesLook};
use crate::inspect::server::{Session, SessionState};
use crate::judge::defaults::CheckId;

const REMOTE: &str = "10.0.0.5:5432";

/// What every row says, if only that it is not known.
const FIELDS: [&str; 12] = [
    "pid",
    "start",
    "fd",
    "local",
    "remote",
    "socket",
    "session",
    "state",
    "age_seconds",
    "state_age_seconds",
    "quiet_seconds",
    "open_seconds",
];

/// Of these no finding is about a connection: a page of numbers, a DSN, the lines of a log.
const OF_NO_CONNECTION: [&str; 4] = ["pool.params", "pool.prepared", "pool.stats", "pool.timeout"];

/// Changes what the second look since the beginning sees.
type Scene = fn(&mut Night, f64, &mut HostLook, &mut ServerLook);

fn seconds(count: f64) -> Option<Duration> {
    Some(Duration::from_secs_f64(count.max(0.0)))
}

fn six() -> PoolRow {
    let mut it = pool("shop", 77, REMOTE);
    it.connections = (0..6).map(|index| connection(&format!("10.0.0.9:{}", 40000 + index), 10 + index)).collect();
    it
}

/// Looks at a pool of six each second and at its server, which is another host, each fifth.
fn night(count: u32, scene: impl Fn(&mut Night, f64, &mut HostLook, &mut ServerLook)) -> Night {
    let mut night = Night::begin();
    for second in 1..=count {
        let rows = (0..6).map(|index| session(900 + index, &format!("10.0.0.9:{}", 40000 + index))).collect();
        let (mut host, mut look) = (host_of(vec![six()]), server(REMOTE, rows));
        night.wait(1.0);
        scene(&mut night, second.into(), &mut host, &mut look);
        night.host(&host);
        if second % 5 == 0 {
            night.server(&look);
        }
    }
    night
}

fn connections(host: &mut HostLook) -> &mut Vec<Connection> {
    &mut host.pools[0].connections
}

fn sessions(look: &mut ServerLook) -> &mut Vec<Session> {
    look.sessions.as_mut().expect("sessions")
}

/// The first two are in a transaction, begun one after the other.
fn left_open(host: &mut HostLook, look: &mut ServerLook, state: SessionState, second: f64) {
    for index in 0..2 {
        let age = seconds(second - 3.0 * index as f64);
        let it = &mut connections(host)[index];
        (it.sent_age, it.received_age, it.acknowledged_age) = (age, age, age);
        let it = &mut sessions(look)[index];
        (it.state, it.state_age, it.transaction_age) = (state, age, age);
    }
}

fn silent(it: &mut Connection, age: f64) {
    (it.sent_age, it.received_age, it.acknowledged_age) = (seconds(age), seconds(age), seconds(age));
    (it.retransmits, it.unacknowledged, it.keepalive) = ((age / 3.0) as u8, Some(1), false);
}

fn churns(host: &mut HostLook, kept: usize) {
    let it = &mut host.pools[0];
    (it.births, it.closes) = (8, vec![seconds(0.02); 8]);
    it.connections.truncate(kept);
}

/// Each check with the list of its evidence, after how many seconds it fires, and by what.
fn table() -> Vec<(&'static str, &'static str, u32, Scene)> {
    vec![
        ("pool.idle_in_transaction", "sessions", 60, |_, second, host, look| {
            left_open(host, look, SessionState::IdleInTransaction, second);
        }),
        ("pool.aborted_transaction", "sessions", 60, |_, second, host, look| {
            left_open(host, look, SessionState::IdleInTransactionAborted, second);
        }),
        ("pool.leak", "connections", 110, |_, second, host, look| {
            left_open(host, look, SessionState::IdleInTransaction, second);
        }),
        ("pool.leak_rate", "connections", 110, |_, second, host, look| {
            left_open(host, look, SessionState::IdleInTransaction, second);
        }),
        ("pool.close_wait", "connections", 340, |_, second, host, _| {
            for it in connections(host).iter_mut().take(3).filter(|_| second > 10.0) {
                (it.state, it.state_age) = (TcpState::CloseWait, Duration::from_secs_f64(second - 10.0));
            }
        }),
        ("pool.half_open", "connections", 30, |_, second, host, _| {
            connections(host).iter_mut().take(2).for_each(|it| silent(it, second));
        }),
        ("pool.keepalive", "connections", 20, |_, _, host, _| {
            connections(host).iter_mut().for_each(|it| it.keepalive = false);
        }),
        ("pool.connect_stuck", "connections", 20, |_, second, host, _| {
            let it = &mut connections(host)[0];
            (it.state, it.state_age) = (TcpState::SynSent, Duration::from_secs_f64(second));
        }),
        ("pool.storm", "connections", 8, |_, second, host, _| {
            for it in connections(host) {
                (it.born, it.seen_for) = (true, Duration::from_secs_f64(second));
            }
            host.pools[0].closes = vec![None; if second < 2.0 { 6 } else { 0 }];
        }),
        ("pool.ghost", "sessions", 60, |_, second, host, _| {
            if second > 20.0 {
                connections(host).drain(..2);
            }
        }),
        ("pool.stale_dns", "connections", 420, |night, second, host, _| {
            connections(host).iter_mut().for_each(|it| it.seen_for = Duration::from_secs_f64(second + 900.0));
            if (second as u32).is_multiple_of(15) {
                let address = if second < 60.0 { "10.0.0.5" } else { "10.0.0.6" };
                let addresses = Ok(vec![address.parse().expect("an address")]);
                night.rows(Rows::Names(NamesLook { answers: vec![Answer { host: "db.internal".into(), addresses }] }));
            }
        }),
        ("pool.churn", "connections", 400, |_, _, host, _| churns(host, 3)),
        ("pool.absent", "connections", 400, |_, _, host, _| {
            churns(host, 3);
            connections(host).iter_mut().for_each(|it| it.seen_for = Duration::from_millis(10));
        }),
        ("pool.utilization", "connections", 120, |_, _, host, look| {
            host.pools[0].limit = Limit { value: Value::Known(6.0), source: "DATABASE_URL of the process".into() };
            sessions(look).iter_mut().take(5).for_each(|it| it.state = SessionState::Active);
        }),
        ("pool.exhausted", "leases", 40, |night, second, _, _| {
            if (second as u32).is_multiple_of(2) {
                night.stats(&said(5.0, 5.0, 7.0));
            }
        }),
    ]
}

fn last_of(night: &Night, check: &str) -> Finding<'static> {
    let of_check = night.found.iter().rev().find(|it| it.check == check);
    of_check.unwrap_or_else(|| panic!("{check} was not told: {:?}", night.told)).clone()
}

#[test]
fn every_finding_of_a_pool_names_process_descriptor_ends_session_state_and_ages() {
    for (check, list, count, scene) in table() {
        let night = night(count, scene);
        let proof = evidence(&last_of(&night, check));
        let rows = proof[list].as_array().unwrap_or_else(|| panic!("{check}: {proof}"));
        assert!(!rows.is_empty(), "{check}: {proof}");
        for field in ["rule", "bounds", "not_visible"] {
            // What is a fact and no number has no bound.
            let is_event = field == "bounds" && matches!(check, "pool.keepalive" | "pool.storm");
            assert!(!proof[field].is_null() || is_event, "{check} lacks {field}: {proof}");
        }
        let not_visible = proof["not_visible"].to_string();
        for row in rows {
            let row = row.as_object().expect("a row");
            let missing: Vec<_> = FIELDS.iter().filter(|it| !row.contains_key(**it)).collect();
            assert!(missing.is_empty(), "{check} lacks {missing:?}: {row:?}");
            assert_eq!(
                (&row["pid"], &row["start"], &row["remote"]),
                (&77.into(), &7700.into(), &REMOTE.into()),
                "{check}"
            );
            assert!(row["fd"].as_u64().is_some_and(|fd| (10..16).contains(&fd)), "{check}: {row:?}");
            assert!(row["local"].as_str().is_some_and(|it| it.starts_with("10.0.0.9:400")), "{check}: {row:?}");
            for field in FIELDS.iter().filter(|it| row[**it].is_null()) {
                let why = if matches!(*field, "state" | "state_age_seconds") { "session" } else { field };
                assert!(not_visible.contains(why), "{check}: why there is no {field} is not said: {proof}");
            }
        }
    }
}

#[test]
fn the_table_has_every_check_of_connections() {
    let told: BTreeSet<&str> = table().into_iter().map(|it| it.0).chain(OF_NO_CONNECTION).collect();
    let all: BTreeSet<&str> = CheckId::all().map(|it| it.check().id).filter(|it| it.starts_with("pool.")).collect();
    assert_eq!(told, all);
}

#[test]
fn a_session_that_is_joined_stands_in_what_sockets_show() {
    for check in ["pool.half_open", "pool.keepalive", "pool.stale_dns", "pool.churn", "pool.exhausted"] {
        let (_, list, count, scene) = table().into_iter().find(|it| it.0 == check).expect("it is in the table");
        let night = night(count, scene);
        let state = night.state(check, "shop");
        let proof: Json = serde_json::from_str(state.evidence.expect("proof").get()).expect("JSON");
        let row = &proof[list][0];
        let fd = row["fd"].as_u64().expect("a descriptor");
        assert_eq!((&row["session"], &row["state"]), (&(890 + fd).into(), &"idle".into()), "{check}: {proof}");
    }
}

#[test]
fn an_owner_that_is_not_visible_is_null_in_every_row_and_said_once() {
    for (check, list, count, scene) in table() {
        // A storm and a hidden process: its age is not known. Requests and pages are of processes that are seen.
        if matches!(check, "pool.storm" | "pool.exhausted") {
            continue;
        }
        let night = night(count, |night: &mut Night, second, host: &mut HostLook, look: &mut ServerLook| {
            scene(night, second, host, look);
            host.pools[0].owner = Owner::NotVisible { uid: 1000, cgroup: None };
            host.pools[0].connections.iter_mut().for_each(|it| it.fds.clear());
            host.processes.clear();
        });
        let proof = evidence(&last_of(&night, check));
        let row = &proof[list][0];
        assert_eq!(
            (&row["pid"], &row["start"], &row["fd"]),
            (&Json::Null, &Json::Null, &Json::Null),
            "{check}: {proof}"
        );
        assert!(proof["not_visible"].to_string().contains("owner: not visible"), "{check}: {proof}");
    }
}

#[test]
fn connections_that_processes_share_after_a_fork_are_named_with_each_of_them_and_counted_once() {
    for (check, list, count, scene) in table() {
        let night = night(count, |night: &mut Night, second, host: &mut HostLook, look: &mut ServerLook| {
            let of = |pid: u32, fd: u32| Descriptor { instance: Instance { pid, start: u64::from(pid) * 100 }, fd };
            for it in connections(host) {
                it.sharers = Sharers { first: vec![of(113, it.fds[0]), of(115, it.fds[0])], more: 0 };
            }
            scene(night, second, host, look);
        });
        let finding = last_of(&night, check);
        // Who held a socket that is gone is no help any more.
        if check == "pool.ghost" {
            continue;
        }
        assert!(finding.summary.contains("also") && finding.summary.contains("by pid 113 fd 1"), "{}", finding.summary);
        let proof = evidence(&finding);
        let row = &proof[list][0];
        let holder = |pid: u32| serde_json::json!({ "pid": pid, "start": pid * 100, "fd": row["fd"] });
        assert_eq!(row["also_held_by"], serde_json::json!([holder(113), holder(115)]), "{check}: {proof}");
        assert!(proof["open"].as_u64().is_none_or(|open| open <= 6), "{check}: {proof}");
    }
}

/// Two of six send again and hear nothing; the server has the sessions that `keeps` leaves it.
fn half_open(keeps: impl Fn(f64, &mut ServerLook)) -> Json {
    let night = night(40, |_: &mut Night, second, host: &mut HostLook, look: &mut ServerLook| {
        connections(host).iter_mut().take(2).for_each(|it| silent(it, second));
        keeps(second, look);
    });
    let state = night.state("pool.half_open", "shop");
    let proof: Json = serde_json::from_str(state.evidence.expect("proof").get()).expect("JSON");
    serde_json::json!([proof["certain"], proof["connections"][0]["session"], proof["connections"][0]["state"]])
}

#[test]
fn a_silent_peer_whose_session_is_gone_is_certain_and_one_whose_session_is_there_is_not() {
    let gone = |_, look: &mut ServerLook| drop(sessions(look).drain(..2));
    assert_eq!(half_open(gone), serde_json::json!([2, null, "gone at the server"]));
    assert_eq!(half_open(|_, _| ()), serde_json::json!([0, 900, "idle"]));
    let one = |_, look: &mut ServerLook| drop(sessions(look).remove(0));
    assert_eq!(half_open(one), serde_json::json!([1, null, "gone at the server"]));
}

#[test]
fn a_session_that_may_only_be_hidden_is_not_called_gone() {
    let none = serde_json::json!([0, null, null]);
    let hidden = |_, look: &mut ServerLook| {
        sessions(look).drain(..2);
        (look.hidden, look.unseen) = (Some(Reason::Denied("pg_stat_activity".into())), 2);
    };
    assert_eq!(half_open(hidden), none, "our role may not see it");
    let alone = |_, look: &mut ServerLook| sessions(look).clear();
    assert_eq!(half_open(alone), none, "no other row joins: perhaps an address is translated");
    let once = |second: f64, look: &mut ServerLook| drop(sessions(look).drain(..if second < 35.0 { 0 } else { 2 }));
    assert_eq!(half_open(once), none, "one look may have been between two moments");
}

#[test]
fn twenty_sessions_have_a_row_each_however_long_their_texts_and_addresses_are() {
    let mut night = Night::begin();
    for second in 1..=60_u32 {
        let mut it = pool("shop", 1_234_567, "[2001:db8:1234:5678:9abc:def0:1234:5678]:65432");
        let mut rows = Vec::new();
        for index in 0..20 {
            let client = format!("[2001:db8:1234:5678:9abc:def0:1234:{:x}]:65000", 0x1000 + index);
            let mut one = connection(&client, 1000 + index);
            (one.cookie, one.sent_age) = (u64::from(index) + 1, seconds(1.234));
            it.connections.push(one);
            let mut row = session(94_104_910_775_584 + u64::from(index), &client);
            let age = seconds(f64::from(second) + 0.123 + f64::from(index));
            (row.state, row.state_age, row.transaction_age) = (SessionState::IdleInTransaction, age, age);
            (row.statement, row.application_name) = (Some("SELECT 1 ".repeat(30).into()), "a".repeat(63).into());
            rows.push(row);
        }
        let mut look = server("10.0.0.5:5432", rows);
        look.addresses = vec![rows::address("[2001:db8:1234:5678:9abc:def0:1234:5678]:65432")];
        night.wait(1.0).host(&host_of(vec![it]));
        if second.is_multiple_of(5) {
            night.server(&look);
        }
    }
    let proof = evidence(&last_of(&night, "pool.idle_in_transaction"));
    let rows = proof["sessions"].as_array().expect("rows");
    assert_eq!((rows.len(), &proof["sessions_in_short"]), (20, &Json::Null), "{proof}");
    assert!(rows.iter().all(|row| FIELDS.iter().all(|it| row.get(*it).is_some())), "{proof}");
    assert!(rows[0]["statement"].is_string() || proof.to_string().len() > 7_500, "{proof}");
}
