//! Who reads: the primary alone, or its replicas too.

use super::rows::{server, session};
use super::*;
use crate::inspect::ServerLook;
use crate::inspect::server::{Counters, Facts, Standing};

const CHECK: &str = "db.replica_use";
const PRIMARY: &str = "10.0.0.5:5432";
const REPLICA: &str = "10.0.0.6:5432";

fn look(at: &str, identifier: &str, seconds: Duration, rows_read: u64) -> ServerLook {
    let standing = match at {
        REPLICA => Standing::Replica { is_fed: true, is_caught_up: true, last_change_age: None },
        _ => Standing::Primary(Vec::new()),
    };
    let counters = Counters { at: seconds, commits: 0, rollbacks: 0, deadlocks: 0, conflicts: 0, rows_read };
    let mut look = server(at, vec![session(900, "10.0.0.9:40000")]);
    look.facts = Box::new(Facts {
        identifier: Some(Ok(identifier.into())),
        standing: Some(Ok(standing)),
        counters: Some(Ok(counters)),
        ..Facts::default()
    });
    look
}

/// Every ten seconds a look at both, which read so many rows a second.
fn reads(night: &mut Night, minutes: u32, [primary, replica]: [u64; 2], identifiers: [&str; 2]) {
    for _ in 0..minutes * 6 {
        night.wait(10.0);
        let now = night.now();
        night.server(&look(PRIMARY, identifiers[0], now, primary * now.as_secs()));
        night.server(&look(REPLICA, identifiers[1], now, replica * now.as_secs()));
    }
}

#[test]
fn a_replica_that_nobody_reads_for_an_hour_is_recorded_and_told_to_nobody() {
    let mut night = Night::begin();
    reads(&mut night, 55, [5_000, 1], ["7", "7"]);
    assert_eq!(night.told_of(CHECK), "");
    reads(&mut night, 10, [5_000, 1], ["7", "7"]);
    assert!(night.told_of(CHECK).ends_with("db.replica_use began info"), "{}", night.told());
    let finding = night.last();
    assert_eq!(
        finding.summary,
        "replica 10.0.0.6:5432/app is not read from: 1/s of rows; its primary 10.0.0.5:5432/app reads 5000/s of rows"
    );
    let proof = evidence(finding);
    assert_eq!((&proof["servers"][0]["is_primary"], &proof["servers"][1]["sessions"]), (&true.into(), &1.into()));
}

#[test]
fn a_replica_that_takes_a_part_an_idle_pair_and_a_stranger_are_not() {
    for (rates, identifiers) in [([5_000, 300], ["7", "7"]), ([20, 0], ["7", "7"]), ([5_000, 0], ["7", "8"])] {
        let mut night = Night::begin();
        reads(&mut night, 80, rates, identifiers);
        assert_eq!(night.told_of(CHECK), "", "{rates:?} {identifiers:?}");
    }
}

#[test]
fn without_a_look_at_its_primary_nothing_is_said() {
    let mut night = Night::begin();
    for _ in 0..400 {
        night.wait(10.0);
        night.server(&look(REPLICA, "7", night.now(), 0));
    }
    assert_eq!((night.told_of(CHECK).as_str(), night.is(CHECK, REPLICA)), ("", "not yet"));
}
