//! A database's name that leads elsewhere than its pool.

use super::rows::{connection, pool};
use super::*;
use crate::inspect::host::PoolRow;
use crate::inspect::resolver::{Answer, NamesLook};

/// Four connections to the old address, first seen so many seconds ago.
fn at_old(seconds: f64) -> PoolRow {
    let mut it = pool("shop", 77, "10.0.0.5:6379");
    for index in 0..4 {
        let mut one = connection(&format!("10.0.0.9:{}", 40000 + index), 10 + index);
        one.seen_for = Duration::from_secs_f64(seconds);
        it.connections.push(one);
    }
    it
}

fn led_to(addresses: &[&str]) -> NamesLook {
    let addresses = addresses.iter().map(|it| it.parse().expect("an address")).collect();
    NamesLook { answers: vec![Answer { host: "db.internal".into(), addresses: Ok(addresses) }] }
}

/// Looks at the host every 5 s and asks for the name every 15 s.
fn run(night: &mut Night, seconds: u32, names: impl Fn(u32) -> NamesLook, scene: impl Fn(f64) -> PoolRow) {
    for second in (5..=seconds).step_by(5) {
        night.wait(5.0);
        if second % 15 == 0 {
            night.rows(Rows::Names(names(second)));
        }
        let now = night.now().as_secs_f64();
        night.host(&host_of(vec![scene(now)]));
    }
}

#[test]
fn a_pool_that_stays_at_the_old_address_is_recorded_until_it_moves() {
    let mut night = Night::begin();
    run(&mut night, 60, |_| led_to(&["10.0.0.5"]), at_old);
    assert_eq!(night.is("pool.stale_dns", "shop"), "ok");
    run(&mut night, 400, |_| led_to(&["10.0.0.6"]), at_old);
    assert_eq!(night.told(), "360s pool.stale_dns began info");
    let summary = night.last().summary.clone();
    assert!(
        summary.starts_with("shop, pid 77, has 4 of 4 connections to 10.0.0.5:6379 to which db.internal has not led"),
        "{summary}"
    );
    assert!(summary.contains("leads to 10.0.0.6"), "{summary}");
    run(
        &mut night,
        15,
        |_| led_to(&["10.0.0.6"]),
        |_| {
            let mut moved = pool("shop", 77, "10.0.0.6:6379");
            moved.connections = at_old(10.0).connections;
            moved
        },
    );
    assert!(night.told().ends_with("pool.stale_dns cleared info"), "{}", night.told());
}

#[test]
fn a_round_robin_other_servers_and_young_connections_are_well() {
    let mut night = Night::begin();
    let robin = |second: u32| led_to(&[["10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8"][(second / 15 % 4) as usize]]);
    run(&mut night, 1200, robin, at_old);
    assert_eq!((night.told().as_str(), night.is("pool.stale_dns", "shop")), ("", "ok"), "each in its turn");

    let mut night = Night::begin();
    run(&mut night, 900, |_| led_to(&["10.0.0.6"]), at_old);
    assert_eq!(night.told(), "", "the name was never seen to lead there: another server, or a service address");

    let mut night = Night::begin();
    run(&mut night, 60, |_| led_to(&["10.0.0.5"]), |_| at_old(20.0));
    run(&mut night, 900, |_| led_to(&["10.0.0.6"]), |_| at_old(20.0));
    assert_eq!((night.told().as_str(), night.is("pool.stale_dns", "shop")), ("", "ok"), "a pool that is renewed");
}

#[test]
fn a_resolver_that_does_not_answer_makes_it_blind_and_never_well() {
    let mut night = Night::begin();
    run(&mut night, 60, |_| led_to(&["10.0.0.5"]), at_old);
    let silent = |_| {
        let reason = Reason::Unreachable("the resolver for db.internal: timed out".into());
        NamesLook { answers: vec![Answer { host: "db.internal".into(), addresses: Err(reason) }] }
    };
    run(&mut night, 60, silent, at_old);
    assert_eq!(night.is("pool.stale_dns", "shop"), "blind");
}
