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
fn a_gap_is_one_finding_for_each_cause_and_ends_with_it() {
    let gap = |uid: u32, target: &str| Gap {
        checks: &["fd.limit", "pool.close_wait"],
        target: TargetKey::process(target, "main", None),
        reason: Reason::Denied(format!("the descriptors of processes of uid {uid}")),
    };
    let look = HostLook { gaps: vec![gap(1001, "a"), gap(1001, "b"), gap(1002, "c")], ..HostLook::default() };
    let mut night = Night::begin();
    night.hosts(&look, 10);
    assert_eq!(night.told(), ["3s agent.blind began warning"; 2].join("\n"), "two causes");
    assert_eq!(
        night.found[0].summary,
        "fd.limit and pool.close_wait cannot see 2 targets: may not read the descriptors of processes of uid 1001"
    );
    assert_eq!(evidence(&night.found[0])["targets"], serde_json::json!(["process:a/main", "process:b/main"]));
    let prints: std::collections::BTreeSet<_> = night.found.iter().map(|it| it.fingerprint).collect();
    assert_eq!(prints.len(), 2);
    assert_eq!(evidence(&night.found[0])["checks"], serde_json::json!(["fd.limit", "pool.close_wait"]));
    night.hosts(&HostLook::default(), 3);
    assert_eq!(night.told(), ["13s agent.blind cleared warning"; 2].join("\n"));
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
fn a_target_that_just_appeared_keeps_no_other_from_being_resolved_and_is_not_resolved_itself() {
    let mut night = Night::begin();
    night.hosts(&zombies(0), 5);
    let mut look = zombies(0);
    look.processes.push(rows::process("worker", 99, 0));
    night.hosts(&look, 1);
    let open = night.judge.open(night.moment());
    assert!(open.checks.contains(&"fd.limit".to_owned()), "{open:?}");
    let worker = tickbird_shared::Fingerprint::of("default", "alone", "fd.limit", "process:worker/main", None);
    assert!(open.firing.contains(&worker), "{open:?}");
    night.hosts(&look, 5);
    assert!(!night.judge.open(night.moment()).firing.contains(&worker), "it was seen often enough");
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
fn processes_that_cannot_be_read_any_more_are_lost_and_not_gone() {
    let mut night = Night::begin();
    night.hosts(&zombies(5), 3);
    night.told();
    let absent = Gap {
        checks: &["proc.zombie", "fd.limit"],
        target: TargetKey::agent(),
        reason: Reason::Absent("/proc".into()),
    };
    let nothing = HostLook { gaps: vec![absent], ..HostLook::default() };
    night.hosts(&nothing, 400);
    let told = night.told();
    assert!(told.contains("proc.zombie evidence_lost warning") && !told.contains("gone"), "{told}");
    assert_eq!((night.is("proc.zombie", "shop"), night.is("fd.limit", "shop")), ("warning", "blind"));
    night.hosts(&zombies(0), 5);
    assert!(night.told().contains("proc.zombie cleared warning"));
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
    night.wait(300.0).host(&HostLook::default());
    assert!(night.judge.firing().is_empty() && night.judge.states().is_empty());
}

#[test]
fn short_lived_processes_leave_nothing_behind() {
    let mut night = Night::begin();
    for index in 0..500 {
        let row = process(&format!("job-{index}"), 1000 + index, 0);
        night.hosts(&HostLook { processes: vec![row], ..HostLook::default() }, 1);
    }
    let states = night.judge.states();
    assert!(states.len() <= 60 * 6, "{} states of one process at a time", states.len());
}

/// A reason from outside, as long and as strange as it may come.
#[test]
fn keys_and_texts_stay_within_the_wire_whatever_they_are_made_of() {
    let mut night = Night::begin();
    let mut look = zombies(5);
    look.processes[0].application.name = "\u{202e}ü".repeat(400).into();
    look.processes[0].command = "\u{1b}".repeat(4000).into();
    let reason = Reason::Denied("\u{1b}🦀".repeat(1000));
    look.gaps.push(Gap { checks: &["fd.limit"], target: TargetKey::agent(), reason });
    // `tell` refuses whatever the collector would.
    night.hosts(&look, 5);
    assert_eq!(night.told(), "3s proc.zombie began warning\n3s agent.blind began warning");
}

mod property {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tickbird_shared::{Change, Status};

    use super::super::rows::{connection, end_of, pool, session};
    use super::*;
    use crate::inspect::host::{Limit, TcpState};
    use crate::inspect::server::SessionState;

    /// One step of a night: what happens, to whom, and how much.
    #[derive(Debug, Clone, Copy)]
    struct Event {
        kind: u8,
        what: u8,
        much: u16,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = (any::<u8>(), any::<u8>(), any::<u16>()).prop_map(|(kind, what, much)| Event { kind, what, much });
        proptest::collection::vec(event, 1..150)
    }

    fn play(night: &mut Night, event: Event) {
        let Event { kind, what, much } = event;
        night.wait(f64::from(much % 40));
        let age = Duration::from_secs(u64::from(much % 400));
        let mut shop = process("shop", 77 + u32::from(what % 3), 8000);
        shop.application.declared = what & 1 == 1;
        shop.zombies = (0..u32::from(what % 5)).map(|it| (it, age)).collect();
        if what & 2 == 2 {
            shop.descriptors = Value::Unknown(Reason::Denied("x".into()));
        }
        let mut it = pool("shop", 77 + u32::from(what % 3), "10.0.0.5:5432");
        it.births = u32::from(what % 20);
        it.closes = vec![Some(age / 100); usize::from(what % 20)];
        it.limit = Limit { value: Value::Known(f64::from(what % 8)), source: "configuration".into() };
        let mut sessions = Vec::new();
        for index in 0..u32::from(what % 8) {
            let client = format!("10.0.0.9:{}", 40000 + index);
            let mut one = connection(&client, 10 + index);
            if what & 8 == 8 {
                (one.state, one.state_age) = (TcpState::CloseWait, age);
            }
            it.connections.push(one);
            let mut row = session(900 + index as u64, &client);
            row.state =
                [SessionState::Idle, SessionState::IdleInTransaction, SessionState::Unknown][usize::from(much % 3)];
            row.state_age = (what & 16 == 0).then_some(age);
            if what & 32 == 32 {
                (row.address, row.port) = (None, None);
            }
            sessions.push(row);
        }
        let look = HostLook {
            processes: vec![shop.clone()],
            pools: vec![it],
            closes_incomplete: what & 4 == 4,
            ..HostLook::default()
        };
        match kind % 8 {
            0 => night.host(&HostLook::default()),
            1 => night.ended(&end_of(&shop, night.now())),
            2 => night.tick(),
            3 => {
                let mut seen = server("10.0.0.5:5432", sessions);
                if what & 64 == 64 {
                    seen.sessions = Err(Reason::Unreachable("it".into()));
                }
                seen.hidden = (what & 32 == 32).then(|| Reason::Denied("y".into()));
                seen.used = Value::Known(f64::from(what));
                night.server(&seen);
            }
            4 => {
                let now = night.moment();
                let found = night.judge.ran("host", u32::from(what % 5), now);
                night.tell(found);
            }
            _ => night.host(&look),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Every fault begins once and ends once, and what was told adds up to what fires.
        #[test]
        fn what_was_told_adds_up_to_what_fires(events in events()) {
            let mut night = Night::begin();
            let mut firing: BTreeMap<Fingerprint, tickbird_shared::Severity> = BTreeMap::new();
            for event in events {
                play(&mut night, event);
                for it in night.found.drain(..) {
                    let was = firing.get(&it.fingerprint).copied();
                    match it.change {
                        Change::Began => prop_assert_eq!(was, None),
                        Change::Worsened => prop_assert!(was < Some(it.severity)),
                        Change::Eased => prop_assert!(was > Some(it.severity)),
                        _ => prop_assert!(was.is_some(), "{:?} of what does not fire", it.change),
                    }
                    prop_assert!(it.since <= it.observed_at);
                    match it.status {
                        Status::Firing => firing.insert(it.fingerprint, it.severity),
                        Status::Resolved => firing.remove(&it.fingerprint),
                    };
                }
                let now: BTreeMap<_, _> = night.judge.firing().into_iter().map(|it| (it.fingerprint, it.severity)).collect();
                prop_assert_eq!(&now, &firing);
            }
        }
    }
}
