//! Who has an incident: what is told meanwhile, what ends it, and what is told then.

use super::ward::{INTERVAL, REPEAT, WAIT, Ward, body, changes, grouping, policy};
use super::*;

/// Where nothing is grouped.
fn alone() -> Ward {
    Ward::new(policy(None))
}

#[test]
fn while_somebody_has_it_updates_are_held_back_and_afterwards_it_is_told_again() {
    let mut ward = alone();
    ward.change(0, Opened, Warning);
    ward.change(2, Opened, Warning);
    ward.acknowledge(0, 100);
    ward.change(0, Updated, Warning);
    ward.change(2, Updated, Warning);
    assert_eq!(ward.kinds(), ["incident.firing", "incident.firing", "incident.updated"], "the other one is nobody's");
    ward.pass(98);
    ward.restart();
    ward.pass(1);
    assert_eq!(ward.outbox.len(), 3);
    ward.pass(1);
    assert_eq!(ward.kinds()[3..], ["incident.repeated"]);
    let said = body(&ward.outbox[3]);
    let why = "the acknowledgement of anna has ended: its time has passed (ack_";
    assert!(
        ward.decisions.iter().any(|it| it.reason.starts_with("acknowledged until") && it.kind == "incident.updated")
    );
    assert!(ward.decisions.iter().rfind(|it| it.told).is_some_and(|it| it.reason.starts_with("Unacknowledged")));
    assert!(ward.acknowledgements[0].ended().starts_with(why) && said["incident"]["acknowledged"].is_null());
    // It is told once.
    ward.restart();
    ward.pass(1_000);
    assert_eq!(ward.outbox.len(), 4);
}

#[test]
fn what_gets_worse_than_its_owner_has_seen_is_told_and_nobody_has_it_any_more() {
    let mut ward = alone();
    ward.change(0, Opened, Warning);
    ward.acknowledge(0, 1_000);
    ward.change(0, Worsened, Critical);
    assert_eq!(ward.kinds(), ["incident.firing", "incident.worsened"]);
    let told = ward.decisions.last().expect("one");
    assert!(told.reason.starts_with("Worsened; the acknowledgement of anna has ended: it got worse"), "{told:?}");
    assert!(!ward.is_owned(0));
    // What its owner has seen as bad as this is not worse.
    ward.acknowledge(0, 1_000);
    ward.change(0, Eased, Warning);
    ward.change(0, Worsened, Critical);
    ward.pass(10);
    assert_eq!(ward.outbox.len(), 2);
    assert!(ward.is_owned(0));
}

#[test]
fn the_end_of_the_fault_is_told_with_its_owner_and_ends_the_acknowledgement() {
    let mut ward = alone();
    ward.change(0, Opened, Warning);
    ward.acknowledge(0, 1_000);
    ward.change(0, Resolved, Warning);
    assert_eq!(ward.kinds(), ["incident.firing", "incident.resolved"]);
    assert_eq!(body(&ward.outbox[1])["incident"]["acknowledged"]["by"], "anna");
    ward.change(0, Reopened, Warning);
    assert_eq!(ward.kinds()[2..], ["incident.firing"], "who had it before has not seen this");
}

#[test]
fn who_takes_it_over_holds_what_was_held_back_before() {
    let mut ward = alone();
    ward.change(0, Opened, Warning);
    ward.acknowledge(0, 10);
    ward.change(0, Updated, Warning);
    ward.acknowledge(0, 50);
    ward.state.look_for_strays(ward.rows.iter().map(|it| (it, None)), &ward.policy, false, at(ward.second));
    let epoch = ward.rows[0].state_epoch;
    ward.pass(49);
    assert_eq!((ward.outbox.len(), ward.rows[0].state_epoch), (1, epoch), "nothing is decided meanwhile");
    ward.pass(1);
    assert_eq!(ward.kinds(), ["incident.firing", "incident.repeated"]);
}

#[test]
fn an_end_within_a_silence_is_told_when_that_is_over() {
    let mut ward = alone();
    ward.change(0, Opened, Warning);
    ward.acknowledge(0, 10);
    ward.silence(Some("check=pool.leak"));
    ward.pass(20);
    assert_eq!(ward.outbox.len(), 1);
    ward.change(0, Eased, Warning);
    ward.restart();
    ward.silence(None);
    ward.pass(1);
    assert_eq!(ward.kinds(), ["incident.firing", "incident.repeated"]);
}

#[test]
fn what_somebody_has_is_not_repeated_with_its_group_and_others_are() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.change(1, Opened, Warning);
    ward.change(2, Opened, Warning);
    ward.pass(WAIT);
    ward.acknowledge(0, 10 * REPEAT);
    ward.acknowledge(2, REPEAT + REPEAT / 2);
    ward.pass(REPEAT);
    assert_eq!(ward.kinds(), ["group.firing", "group.firing", "group.repeated"], "all of the till's is somebody's");
    assert_eq!(changes(&ward.outbox[2]), [(1, "unchanged".into())]);
    assert_eq!(body(&ward.outbox[2])["group"]["held"], 1);
    ward.restart();
    ward.pass(REPEAT / 2 + WAIT);
    assert_eq!(changes(&ward.outbox[3]), [(2, "incident.repeated".into())]);
    ward.unacknowledge(0);
    ward.pass(INTERVAL);
    assert_eq!(changes(&ward.outbox[4]), [(0, "incident.repeated".into()), (1, "unchanged".into())]);
}

#[test]
fn what_somebody_takes_before_its_group_is_told_is_told_when_nobody_has_it() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.acknowledge(0, 20);
    ward.pass(WAIT);
    assert!(ward.outbox.is_empty());
    assert!(ward.decisions[0].reason.contains("; acknowledged until"), "{:?}", ward.decisions[0]);
    ward.pass(20);
    assert_eq!(changes(&ward.outbox[0]), [(0, "incident.firing".into())]);
}
