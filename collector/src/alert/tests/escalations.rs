//! Escalation: who else is told, when, and why not.

use super::super::Step;
use super::ward::{AFTER, INTERVAL, REPEAT, WAIT, Ward, body, changes, escalating, grouping, seconds};
use super::*;

/// Where nothing is grouped.
fn alone() -> Ward {
    Ward::new(escalating(None))
}

/// What was queued for somebody.
fn told(ward: &Ward, receiver: &str) -> Vec<String> {
    ward.outbox.iter().filter(|it| it.receiver == receiver).map(|it| it.kind.clone()).collect()
}

#[test]
fn what_nobody_acknowledges_is_told_to_the_next_who_hears_the_end_too() {
    let mut ward = alone();
    ward.change(0, Opened, Warning);
    ward.change(2, Opened, Critical);
    ward.pass(AFTER / 2);
    assert_eq!(told(&ward, "boss"), ["incident.escalated"], "what is critical comes sooner");
    ward.change(0, Updated, Warning);
    ward.pass(AFTER / 2 - 1);
    assert_eq!(told(&ward, "boss").len(), 1);
    ward.restart();
    ward.pass(1);
    assert_eq!(told(&ward, "boss").len(), 2);
    let said = ward.outbox.last().map(body).expect("one");
    assert_eq!(said["reason"], format!("escalated: not acknowledged for {AFTER}s, by route.escalate[0]"));
    // It is told once, whatever follows.
    ward.restart();
    ward.change(0, Worsened, Critical);
    ward.pass(10 * AFTER);
    assert_eq!(told(&ward, "boss").len(), 2);
    ward.change(0, Resolved, Critical);
    assert_eq!(told(&ward, "boss")[2..], ["incident.resolved"]);
    assert!(ward.escalations.keys().all(|it| it.0 == ward.rows[2].id), "nothing is left of it");
}

#[test]
fn what_fell_due_while_nobody_served_is_told_once_and_afterwards() {
    let mut ward = alone();
    ward.change(0, Opened, Warning);
    ward.second += 1_000;
    ward.restart();
    ward.pass(1);
    ward.restart();
    ward.pass(100);
    assert_eq!(told(&ward, "boss"), ["incident.escalated"]);
    ward.change(1, Opened, Warning);
    ward.change(1, Resolved, Warning);
    ward.second += 1_000;
    ward.restart();
    ward.pass(1);
    assert_eq!(told(&ward, "boss").len(), 1, "what is over needs nobody");
}

#[test]
fn an_acknowledgement_stops_the_steps_and_its_end_begins_anew() {
    let mut ward = alone();
    ward.change(0, Opened, Warning);
    ward.pass(AFTER - 1);
    ward.acknowledge(0, 100);
    ward.pass(50);
    ward.restart();
    ward.pass(50 + AFTER - 1);
    assert!(told(&ward, "boss").is_empty(), "nobody has it only since a moment");
    ward.restart();
    ward.pass(1);
    assert_eq!(told(&ward, "boss"), ["incident.escalated"]);
    // The boss gives it to somebody, who forgets it.
    ward.acknowledge(0, 10);
    ward.pass(10 + AFTER);
    assert_eq!(told(&ward, "boss"), ["incident.escalated"; 2]);
    assert_eq!(told(&ward, "ops"), ["incident.firing", "incident.repeated", "incident.repeated"]);
}

#[test]
fn what_holds_everything_back_holds_a_step_back_and_says_so_once() {
    let mut ward = alone();
    ward.change(0, Opened, Warning);
    ward.silence(Some("check=pool.leak"));
    ward.pass(3 * AFTER);
    ward.restart();
    ward.pass(AFTER);
    assert!(told(&ward, "boss").is_empty());
    let to_boss = |ward: &Ward| {
        let of_step = |it: &&DecisionRow| it.receiver == "boss" && it.kind == "incident.escalated";
        ward.decisions.iter().filter(of_step).map(|it| it.reason.clone()).collect::<Vec<_>>()
    };
    assert!(to_boss(&ward).len() == 1 && to_boss(&ward)[0].starts_with("silenced until"), "{:?}", to_boss(&ward));
    // Also where nobody serves at its very end.
    ward.silence(None);
    ward.restart();
    ward.pass(6);
    assert_eq!(told(&ward, "boss"), ["incident.escalated"]);
}

#[test]
fn a_step_may_wait_until_it_is_bad_enough_and_the_next_has_a_time_of_its_own() {
    let mut ward = alone();
    let steps = &mut ward.policy.route.as_mut().expect("a route").escalate;
    steps[0].min_severity = Critical;
    let after = [(Warning, seconds(2 * AFTER)), (Critical, seconds(2 * AFTER))].into();
    steps.push(Step { name: "2 boss".into(), after, min_severity: Severity::Info, ..steps[0].clone() });
    ward.change(0, Opened, Warning);
    ward.pass(AFTER);
    let last = ward.decisions.last().expect("one");
    assert_eq!((last.told, last.reason.as_str()), (false, "warning is below critical, by route.escalate[0]"));
    ward.change(0, Worsened, Critical);
    ward.pass(1);
    assert_eq!(told(&ward, "boss"), ["incident.escalated"]);
    assert_eq!(ward.state.take_unsaved_escalations().len(), 0);
    assert_eq!(ward.escalations.values().map(|it| it.steps.len()).sum::<usize>(), 1);
}

#[test]
fn who_is_on_the_route_already_is_told_once_more() {
    let mut ward = alone();
    let steps = &mut ward.policy.route.as_mut().expect("a route").escalate;
    (steps[0].receiver, steps[0].name) = ("ops".into(), "1 ops".into());
    let escalated = |ward: &Ward| told(ward, "ops").iter().filter(|it| *it == "incident.escalated").count();
    let opened = IncidentChange {
        incident: IncidentRow { state_epoch: 1, status: Status::Firing, ..ward.rows[0].clone() },
        kind: Opened,
        reason: "x".into(),
    };
    assert_eq!(ward.state.decide(&opened, None, &ward.policy, at(0)).len(), 2);
    let again =
        IncidentChange { kind: Escalated, incident: IncidentRow { state_epoch: 2, ..opened.incident }, ..opened };
    let decisions = ward.state.decide(&again, None, &ward.policy, at(AFTER));
    assert_eq!(decisions.iter().map(|it| (it.row.receiver.as_str(), it.row.told)).collect::<Vec<_>>(), [("ops", true)]);
    assert_eq!(escalated(&ward), 0, "nothing of this was written");
}

/// It eases while the step waits for its group: that is told to nobody, and the step to whom it leads at its own time.
#[test]
fn what_eases_while_a_step_waits_for_the_group_of_who_knows_it_is_told_once_more_later() {
    let mut ward = Ward::new(escalating(Some(grouping())));
    let steps = &mut ward.policy.route.as_mut().expect("a route").escalate;
    (steps[0].receiver, steps[0].name) = ("ops".into(), "1 ops".into());
    ward.change(0, Opened, Critical);
    ward.pass(WAIT + AFTER / 2);
    let waits = ward.decisions.last().expect("one");
    assert!(waits.kind == "incident.escalated" && waits.in_group.is_some(), "{waits:?}");
    ward.change(0, Eased, Warning);
    ward.pass(AFTER + INTERVAL);
    let escalated: Vec<_> =
        ward.outbox.iter().flat_map(changes).filter(|it| it.1 == "incident.escalated").map(|it| it.0).collect();
    assert_eq!(escalated, [0]);
}

#[test]
fn where_the_route_groups_the_step_tells_together_and_ends_together() {
    let mut ward = Ward::new(escalating(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.change(1, Opened, Warning);
    ward.pass(WAIT + AFTER);
    assert!(told(&ward, "boss").is_empty(), "it waits for others");
    // News of it changes nothing of that, and neither does a restart.
    ward.change(0, Updated, Warning);
    ward.restart();
    ward.pass(WAIT);
    let to_boss: Vec<_> = ward.outbox.iter().filter(|it| it.receiver == "boss").collect();
    let both = [(0, "incident.escalated".to_owned()), (1, "incident.escalated".to_owned())];
    assert_eq!(to_boss.iter().map(|it| changes(it)).collect::<Vec<_>>(), [both]);
    ward.restart();
    ward.pass(REPEAT);
    assert_eq!(told(&ward, "boss"), ["group.firing", "group.repeated"]);
    ward.change(0, Resolved, Warning);
    ward.change(1, Resolved, Warning);
    ward.pass(INTERVAL);
    assert_eq!(told(&ward, "boss")[2..], ["group.resolved"]);
    assert!(ward.groups.is_empty());
}

#[test]
fn what_somebody_takes_while_a_step_waits_for_its_group_is_not_told() {
    let mut ward = Ward::new(escalating(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(WAIT + AFTER);
    ward.acknowledge(0, 1_000);
    ward.pass(100);
    assert!(told(&ward, "boss").is_empty());
    let reason = ward.decisions.iter().rfind(|it| it.kind == "incident.escalated").map(|it| it.reason.as_str());
    assert!(reason.is_some_and(|it| it.contains("; acknowledged until")), "{reason:?}");
}

#[test]
fn what_waits_for_its_group_when_time_begins_anew_is_not_told_with_it() {
    let mut ward = Ward::new(escalating(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(WAIT + AFTER);
    ward.acknowledge(0, 1);
    ward.pass(AFTER - 1);
    assert!(told(&ward, "boss").is_empty());
    ward.pass(3 * WAIT);
    assert_eq!(told(&ward, "boss"), ["group.firing"]);
}

#[test]
fn what_a_server_explained_has_time_to_clear_before_its_step_also_when_a_restart_is_between() {
    for restarts in [false, true] {
        let mut ward = alone();
        ward.change(1, Opened, Warning);
        ward.pass(5);
        ward.change(4, Opened, Critical);
        ward.pass(AFTER);
        assert!(!ward.believes("boss", 1), "the server explains it");
        ward.change(4, Resolved, Critical);
        if restarts {
            ward.restart();
        }
        ward.pass(20);
        assert!(!ward.believes("boss", 1), "it may be about to clear");
        ward.pass(15);
        assert!(ward.believes("boss", 1));
    }
}

/// It falls due within the time that what the server explained has to clear.
#[test]
fn a_step_that_falls_due_just_after_its_server_is_back_waits_too() {
    let mut ward = alone();
    ward.change(1, Opened, Warning);
    ward.change(4, Opened, Critical);
    ward.pass(AFTER - 2);
    ward.change(4, Resolved, Critical);
    ward.pass(20);
    assert!(!ward.believes("boss", 1), "it may be about to clear");
    ward.pass(18);
    assert!(ward.believes("boss", 1));
}
