//! What the judge says of itself: states, blindness, the open list, lateness.

use super::rows::{process, server};
use super::*;
use crate::discover::TargetKey;
use crate::inspect::host::Gap;
use crate::inspect::{Reason, Value};
use tickbird_shared::Fingerprint;

fn zombies(count: u32) -> HostLook {
    let mut row = process("shop", 77, 8000);
    row.zombies = (0..count).map(|it| (900 + it, Duration::from_secs(100))).collect();
    HostLook { processes: vec![row], ..HostLook::default() }
}

#[test]
fn a_gap_is_one_finding_for_each_check_and_cause_and_ends_with_it() {
    let gap = |uid: u32, target: &str| Gap {
        checks: &["fd.limit", "pool.close_wait"],
        target: TargetKey::process(target, "main", None),
        reason: Reason::Denied(format!("the descriptors of processes of uid {uid}")),
    };
    let look = HostLook { gaps: vec![gap(1001, "a"), gap(1001, "b"), gap(1002, "c")], ..HostLook::default() };
    let mut night = Night::begin();
    night.hosts(&look, 10);
    assert_eq!(night.told(), ["3s agent.blind began warning"; 4].join("\n"), "two checks, two causes");
    assert_eq!(
        night.found[0].summary,
        "fd.limit cannot see 2 targets: may not read the descriptors of processes of uid 1001"
    );
    assert_eq!(evidence(&night.found[0])["targets"], serde_json::json!(["process:a/main", "process:b/main"]));
    let prints: std::collections::BTreeSet<_> = night.found.iter().map(|it| it.fingerprint).collect();
    assert_eq!(prints.len(), 4);
    night.hosts(&HostLook::default(), 3);
    assert_eq!(night.told(), ["13s agent.blind cleared warning"; 4].join("\n"));
    assert!(night.judge.states().iter().all(|it| it.check == "agent.blind" || it.state != State::Blind));
}

#[test]
fn the_fingerprint_is_that_of_tenant_agent_check_and_target() {
    let mut night = Night::begin();
    night.hosts(&zombies(5), 3);
    let it = night.last();
    assert_eq!(it.fingerprint, Fingerprint::of("default", "alone", "proc.zombie", "process:shop/main:8000", None));
    assert_eq!(night.judge.firing().len(), 1);
    assert_eq!(night.judge.open(night.moment()).firing, [it.fingerprint]);
}

#[test]
fn a_state_says_what_it_waits_for() {
    let mut night = Night::begin();
    night.hosts(&zombies(5), 1);
    let state = night.state("proc.zombie", "shop");
    assert_eq!(
        (state.state, state.pending.as_deref()),
        (State::Ok, Some("over the bound for 1 look; fires after 3 looks"))
    );
    assert!(state.summary.is_some_and(|it| it.contains("5 children")));
    assert_eq!((state.looks, state.looks_known, state.unit), (1, 1, "count"));
}

#[test]
fn one_look_from_the_command_line_ignores_holds_and_says_so() {
    let mut night = Night::begin();
    night.judge = Judge::new(Who::alone(), Thresholds::default()).ignoring_holds();
    night.hosts(&zombies(5), 1);
    let state = night.state("proc.zombie", "shop");
    assert_eq!(
        (state.state, state.pending.as_deref()),
        (State::Warning, Some("over the bound now; fires after 3 looks"))
    );
    assert_eq!(night.judge.firing().len(), 1);
    assert_eq!(night.is("proc.memory", "shop"), "not yet", "what needs history is not known");
    night.hosts(&zombies(0), 1);
    assert!(night.judge.firing().is_empty());
}

#[test]
fn the_open_list_names_only_checks_that_are_settled() {
    let mut night = Night::begin();
    let open = |night: &Night| night.judge.open(night.moment()).checks;
    assert_eq!(open(&night), [""; 0], "nothing has been looked at");
    night.hosts(&zombies(5), 2);
    assert!(!open(&night).contains(&"fd.limit".to_owned()), "two looks are not enough");
    night.hosts(&zombies(5), 1);
    assert!(open(&night).contains(&"fd.limit".to_owned()) && open(&night).contains(&"proc.zombie".to_owned()));
    assert!(!open(&night).contains(&"proc.memory".to_owned()), "its history is not there");
    let blind = {
        let mut look = zombies(5);
        look.processes[0].descriptors = Value::Unknown(Reason::Denied("x".into()));
        look
    };
    night.hosts(&blind, 1);
    assert!(!open(&night).contains(&"fd.limit".to_owned()), "a check that cannot see resolves nothing");
    let mut fresh = Night::begin();
    fresh.hosts(&zombies(0), 3);
    fresh.hosts(&zombies(5), 1);
    assert!(!open(&fresh).contains(&"proc.zombie".to_owned()), "over the bound, and its hold has not passed");
}

#[test]
fn every_look_leaves_a_trace_of_its_checks() {
    let mut night = Night::begin();
    night.hosts(&zombies(0), 7);
    night.wait(1.0).server(&server("10.0.0.5:5432", Vec::new()));
    let runs = night.judge.last_runs();
    assert_eq!(runs["fd.limit"], Duration::from_secs(7));
    assert_eq!(runs["db.headroom"], Duration::from_secs(8));
}

#[test]
fn a_process_that_is_gone_resolves_what_fired_of_it_after_five_minutes() {
    let mut night = Night::begin();
    night.hosts(&zombies(5), 3);
    night.told();
    night.hosts(&HostLook::default(), 299);
    assert_eq!(night.told(), "");
    night.hosts(&HostLook::default(), 1);
    assert_eq!(night.told(), "303s proc.zombie target_gone warning");
    assert_eq!(night.last().reason, "the target has not been there for 5 minutes");
    assert!(night.judge.firing().is_empty());
}

#[test]
fn an_inspector_that_is_late_is_told_and_one_hiccup_is_not() {
    let mut night = Night::begin();
    for missed in [0, 0, 1, 0, 2, 0, 4, 0, 0, 0] {
        let now = night.wait(1.0).moment();
        let found = night.judge.ran("postgres 10.0.0.5:5432/app", missed, now);
        night.tell(found);
    }
    assert_eq!(night.told(), "7s agent.slow began warning\n10s agent.slow cleared warning");
    assert_eq!(night.found[0].summary, "the agent has not looked at postgres 10.0.0.5:5432/app for 4 intervals");
    assert_eq!(night.is("agent.slow", "agent:self"), "ok");
}

#[test]
fn a_check_that_is_switched_off_is_resolved_and_not_judged() {
    let mut night = Night::begin();
    night.hosts(&zombies(5), 3);
    let (off, _) = Thresholds::with([Override { enabled: Some(false), ..change("proc.zombie") }]);
    let now = night.moment();
    let found = night.judge.reconfigure(off, now);
    night.tell(found);
    assert_eq!(night.told(), "3s proc.zombie began warning\n3s proc.zombie target_gone warning");
    night.hosts(&zombies(5), 10);
    assert_eq!(night.told(), "");
}

#[test]
fn a_thousand_and_more_faults_stay_within_what_the_collector_takes() {
    let processes = (0..1_200).map(|index| {
        let mut row = process(&format!("app-{index}"), 1000 + index, 0);
        row.zombies = (0..5).map(|it| (it, Duration::from_secs(100))).collect();
        row
    });
    let look = HostLook { processes: processes.collect(), ..HostLook::default() };
    let mut night = Night::begin();
    night.hosts(&look, 5);
    assert_eq!(night.judge.open(night.moment()).firing.len(), tickbird_shared::protocol::MAX_FIRING);
    night.hosts(&HostLook::default(), 301);
    assert!(night.judge.firing().is_empty());
}
