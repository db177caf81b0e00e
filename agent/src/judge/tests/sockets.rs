//! What sockets alone say of peers that are gone, of connections that are not answered, and of reconnecting pools.

use super::rows::{connection, pool, server, session};
use super::*;
use crate::inspect::Reason;
use crate::inspect::host::{Connection, PoolRow, TcpState, Vantage};

fn seconds(count: f64) -> Duration {
    Duration::from_secs_f64(count)
}

/// A pool of `open` connections, changed by `each` with their index.
fn of(open: u32, each: impl Fn(u32, &mut Connection)) -> PoolRow {
    let mut it = pool("shop", 77, "10.0.0.5:6379");
    for index in 0..open {
        let mut one = connection(&format!("10.0.0.9:{}", 40000 + index), 10 + index);
        each(index, &mut one);
        it.connections.push(one);
    }
    it
}

fn heard(it: &mut Connection, age: f64) {
    (it.sent_age, it.received_age, it.acknowledged_age) = (Some(seconds(age)), Some(seconds(age)), Some(seconds(age)));
}

/// Looks once a second for so many seconds.
fn watch(night: &mut Night, count: u64, scene: impl Fn(f64) -> PoolRow) {
    for second in 1..=count {
        night.wait(1.0).host(&host_of(vec![scene(second as f64)]));
    }
}

/// Two of six connections send again and hear nothing.
fn silent(age: f64) -> PoolRow {
    of(6, |index, it| {
        if index < 2 {
            heard(it, age);
            (it.retransmits, it.unacknowledged, it.keepalive) = ((age / 3.0) as u8, Some(1), false);
        }
    })
}

#[test]
fn a_peer_that_answers_nothing_for_ten_seconds_is_gone_until_it_is_heard() {
    let mut night = Night::begin();
    watch(&mut night, 30, silent);
    assert_eq!(night.told(), "12s pool.half_open began warning");
    let summary = night.last().summary.clone();
    assert!(summary.starts_with("shop, pid 77, has 2 of 6 connections to 10.0.0.5:6379 whose peer"), "{summary}");
    assert_eq!(evidence(night.last())["connections"][0]["fd"], 10);
    watch(&mut night, 3, |_| silent(0.0));
    assert_eq!(night.told(), "33s pool.half_open cleared warning");
}

#[test]
fn unanswered_probes_of_an_idle_connection_say_the_same() {
    let mut night = Night::begin();
    watch(&mut night, 10, |_| {
        of(3, |_, it| {
            heard(it, 60.0);
            it.probes = 2;
        })
    });
    assert_eq!(night.told(), "3s pool.half_open began warning");
}

#[test]
fn mere_loss_is_heard_again_and_an_idle_pool_with_keepalive_is_well() {
    let mut night = Night::begin();
    watch(&mut night, 120, |second| {
        of(6, |_, it| {
            heard(it, second % 9.0);
            (it.retransmits, it.unacknowledged) = (4, Some(2));
        })
    });
    assert_eq!((night.told().as_str(), night.is("pool.half_open", "shop")), ("", "ok"), "heard within ten seconds");
    watch(&mut night, 30, |_| of(6, |_, it| heard(it, 500.0)));
    assert_eq!((night.told().as_str(), night.is("pool.half_open", "shop")), ("", "ok"));
}

#[test]
fn an_idle_connection_without_keepalive_is_never_called_well() {
    let mut night = Night::begin();
    let bare = |_| {
        of(6, |_, it| {
            heard(it, 500.0);
            it.keepalive = false;
        })
    };
    watch(&mut night, 10, bare);
    assert_eq!(night.told(), "3s pool.keepalive began info");
    assert_eq!(night.is("pool.half_open", "shop"), "not yet");
    assert_eq!(night.is("pool.keepalive", "shop"), "info");
    watch(&mut night, 3, |_| of(6, |_, it| heard(it, 500.0)));
    assert_eq!(night.told(), "13s pool.keepalive cleared info");
    let mut night = Night::begin();
    watch(&mut night, 10, |_| {
        let mut it = bare(0.0);
        it.connections.iter_mut().for_each(|it| it.local = rows::address("127.0.0.1:40000").into());
        it
    });
    assert_eq!(night.told(), "", "on the loopback interface nobody is lost");
}

#[test]
fn without_ages_nothing_is_said_of_peers() {
    let mut night = Night::begin();
    watch(&mut night, 5, |_| of(2, |_, it| (it.sent_age, it.received_age, it.acknowledged_age) = (None, None, None)));
    assert_eq!(night.is("pool.half_open", "shop"), "blind");
}

fn connecting(age: f64) -> PoolRow {
    of(3, |index, it| {
        if index == 0 {
            (it.state, it.state_age, it.seen_for) = (TcpState::SynSent, seconds(age), seconds(age));
        }
    })
}

#[test]
fn a_connection_that_is_not_answered_is_stuck_also_when_it_is_tried_again() {
    let mut night = Night::begin();
    watch(&mut night, 8, connecting);
    assert_eq!(night.told(), "5s pool.connect_stuck began warning");
    watch(&mut night, 3, |_| of(3, |_, _| ()));
    assert_eq!(night.told(), "11s pool.connect_stuck cleared warning");
    let mut night = Night::begin();
    watch(&mut night, 8, |second| connecting(second % 2.0));
    assert_eq!(night.told(), "5s pool.connect_stuck began warning", "given up every two seconds");
}

#[test]
fn connections_that_are_answered_are_not_stuck() {
    let mut night = Night::begin();
    watch(&mut night, 30, |_| connecting(0.4));
    watch(&mut night, 30, |second| {
        let mut it = connecting(second % 2.0);
        it.connections[1].born = true;
        it.connections[1].seen_for = seconds(0.5);
        it
    });
    assert_eq!((night.told().as_str(), night.is("pool.connect_stuck", "shop")), ("", "ok"));
}

/// All of ten connections ended and as many were born `age` ago, in a process of `process_age`.
fn reconnected(age: f64, process_age: f64) -> PoolRow {
    let mut it = of(10, |index, it| {
        it.cookie += u64::from(index) + 1000;
        (it.born, it.seen_for) = (true, seconds(age));
    });
    it.process_age = Some(seconds(process_age));
    if age <= 1.0 {
        it.closes = vec![None; 10];
    }
    it
}

#[test]
fn a_pool_that_reconnects_at_once_is_recorded_and_told_to_nobody() {
    let mut night = Night::begin();
    watch(&mut night, 30, |second| reconnected(second, 3600.0 + second));
    assert_eq!(night.told(), "3s pool.storm began info\n13s pool.storm cleared info");
}

#[test]
fn a_young_process_a_growing_pool_and_short_lives_are_no_storm() {
    let mut night = Night::begin();
    watch(&mut night, 30, |second| reconnected(second, 10.0 + second));
    assert_eq!(night.told(), "", "a rolling restart");
    let mut night = Night::begin();
    watch(&mut night, 30, |second| {
        let mut it = reconnected(second, 3600.0 + second);
        it.closes.clear();
        it
    });
    assert_eq!(night.told(), "", "a pool that grows");
    let mut night = Night::begin();
    watch(&mut night, 30, |_| {
        let mut it = of(2, |_, it| (it.born, it.seen_for) = (true, Duration::ZERO));
        it.closes = vec![Some(Duration::from_millis(300)); 30];
        it
    });
    assert_eq!(night.told(), "", "connections that do not last are churn");
}

/// Sixteen births a second in two processes; `kept` connections stay.
fn unpooled(night: &mut Night, count: u64, kept: u32) {
    for _ in 0..count {
        let rows = [77, 78].map(|pid| {
            let mut it = of(kept, |_, _| ());
            it.owner = pool("shop", pid, "10.0.0.5:6379").owner;
            it.births = 8;
            it.closes = vec![Some(Duration::from_millis(20)); 8];
            it
        });
        night.wait(1.0).host(&host_of(rows.to_vec()));
    }
}

#[test]
fn an_application_without_a_pool_is_told_once_and_one_with_a_pool_only_churns() {
    let mut night = Night::begin();
    unpooled(&mut night, 400, 0);
    assert_eq!(night.told(), "311s pool.absent began warning");
    let summary = night.last().summary.clone();
    assert!(summary.contains("(pids 77, 78), opens 8/s connections to 10.0.0.5:6379 for each process"), "{summary}");
    let mut night = Night::begin();
    unpooled(&mut night, 400, 3);
    assert_eq!(night.told(), "311s pool.churn began warning");
}

/// Six connections with their sessions; the sockets of the first `gone` are not there any more.
fn haunted(gone: usize) -> (HostLook, ServerLook) {
    let mut it = pool("shop", 77, "10.0.0.5:5432");
    it.connections = (0..6).map(|index| connection(&format!("10.0.0.9:{}", 40000 + index), 10 + index)).collect();
    it.connections.drain(..gone);
    let rows = (0..6).map(|index| session(900 + index, &format!("10.0.0.9:{}", 40000 + index))).collect();
    (host_of(vec![it]), server("10.0.0.5:5432", rows))
}

#[test]
fn a_session_whose_socket_was_here_and_is_gone_is_a_ghost_after_two_looks() {
    let mut night = Night::begin();
    night.scenes(3, |_| haunted(0));
    assert_eq!(night.is("pool.ghost", "shop"), "ok");
    night.scenes(5, |_| haunted(2));
    assert_eq!(night.told(), "25s pool.ghost began warning");
    assert_eq!(evidence(night.last())["sessions"][0]["backend"], 900);
    assert_eq!(evidence(night.last())["sessions"][0]["pid"], 77);
    night.scenes(3, |_| {
        let (host, mut server) = haunted(2);
        server.sessions.as_mut().expect("sessions").drain(..2);
        (host, server)
    });
    assert_eq!(night.told(), "55s pool.ghost cleared warning");
}

/// `others` says whether another pool of this host is still joined.
fn ghosts_of_one_that_never_returns(others: bool) -> Night {
    let mut night = Night::begin();
    let scene = |gone: usize, ended: usize| {
        let (mut host, mut server) = haunted(gone);
        if gone == 6 {
            host.pools.clear();
        }
        if others {
            let mut other = pool("billing", 88, "10.0.0.5:5432");
            other.connections = vec![connection("10.0.0.9:50000", 50)];
            host.pools.push(other);
        }
        let sessions = server.sessions.as_mut().expect("sessions");
        sessions.drain(..ended);
        sessions.push(session(990, "10.0.0.9:50000"));
        (host, server)
    };
    night.scenes(3, |_| scene(0, 0));
    night.scenes(4, |_| scene(2, 0));
    assert_eq!(night.is("pool.ghost", "shop"), "warning");
    night.scenes(4, |_| scene(6, 0));
    assert_eq!(night.is("pool.ghost", "shop"), "warning", "they are still there");
    night.scenes(4, |_| scene(6, 6));
    night
}

#[test]
fn ghosts_of_an_application_that_never_returns_are_over_when_the_server_ends_them() {
    assert!(ghosts_of_one_that_never_returns(true).told().ends_with("pool.ghost cleared warning"));
    assert!(ghosts_of_one_that_never_returns(false).told().ends_with("pool.ghost cleared warning"));
}

#[test]
fn rows_of_another_namespace_and_rows_that_none_joins_are_no_ghosts() {
    let mut night = Night::begin();
    let strangers = |user: &'static str| {
        move |_| {
            let (host, mut server) = haunted(2);
            for it in server.sessions.as_mut().expect("sessions").iter_mut().take(2) {
                it.user = user.into();
            }
            (host, server)
        }
    };
    night.scenes(10, strangers("somebody"));
    assert_eq!((night.told().as_str(), night.is("pool.ghost", "shop")), ("", "ok"), "their sockets were never here");
    // Of the same user they may be what a client left that was gone when the agent came: no finding is cleared by it.
    let mut night = Night::begin();
    night.scenes(10, |_| haunted(2));
    assert_eq!((night.told().as_str(), night.is("pool.ghost", "shop")), ("", "not yet"), "they may be its own");
    night.scenes(3, |_| {
        let (host, mut server) = haunted(2);
        server.sessions.as_mut().expect("sessions").drain(..2);
        (host, server)
    });
    assert_eq!(night.is("pool.ghost", "shop"), "ok", "they are gone");
    let mut night = Night::begin();
    night.scenes(3, |_| haunted(0));
    night.scenes(10, |_| haunted(6));
    assert_eq!((night.told().as_str(), night.is("pool.ghost", "shop")), ("", "not yet"), "no row joins");
    let mut night = Night::begin();
    let mut looks = 0;
    night.scenes(10, |_| {
        looks += 1;
        haunted(looks % 2)
    });
    assert_eq!(night.told(), "", "one look is no proof");
}

/// The connections of a pool that is seen from outside its network namespace.
fn outside(open: u32, each: impl Fn(u32, &mut Connection)) -> PoolRow {
    let mut it = of(open, |index, one| {
        (one.sent_age, one.received_age, one.acknowledged_age, one.unacknowledged) = (None, None, None, None);
        one.segments_out = None;
        each(index, one);
    });
    it.service = Some("postgresql");
    it.closes_incomplete = true;
    it.vantage = Vantage::Outside(Reason::OtherNetwork("no ages".into()));
    it
}

#[test]
fn from_outside_a_network_namespace_states_are_judged_and_nothing_that_needs_ages_is_well() {
    let mut night = Night::begin();
    let healthy = |row: PoolRow| {
        let mut look = host_of(vec![row]);
        look.processes = vec![super::rows::process("shop", 77, 0)];
        look
    };
    for _ in 0..90 {
        night.wait(1.0).host(&healthy(outside(6, |_, _| ())));
    }
    for check in
        ["pool.churn", "pool.absent", "pool.storm", "pool.leak", "pool.leak_rate", "pool.exhausted", "pool.half_open"]
    {
        let expected = if check == "pool.absent" { "ok" } else { "blind" };
        assert_eq!(night.is(check, "shop"), expected, "{check}");
    }
    for check in ["pool.close_wait", "pool.connect_stuck", "pool.keepalive"] {
        assert_eq!(night.is(check, "shop"), "ok", "{check}");
    }
    // One for the one cause, and one for the server that nobody configured.
    assert_eq!(night.told(), "3s agent.blind began warning\n18s agent.blind began warning");

    for _ in 0..10 {
        night.wait(1.0).host(&healthy(outside(6, |index, it| {
            if index < 3 {
                it.state = TcpState::CloseWait;
            }
        })));
    }
    assert_eq!(night.is("pool.close_wait", "shop"), "blind", "dead ones in a pool that may be idle");
}
