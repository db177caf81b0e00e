//! Random histories against what must hold after each event, and situations that were once asked about.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tickbird_shared::{Change, Epoch, Labels};

use super::*;
use crate::pki::Validity;
use crate::pki::life::Life;
use crate::store::{Condition, Damage, Left, LossRow, Lost, Room};

const TENANT: &str = "default";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).expect("in range")
}

fn epoch(name: char) -> Epoch {
    Epoch::try_from(name.to_string().repeat(26)).expect("26 letters")
}

fn agent(id: &str) -> AgentRow {
    AgentRow {
        tenant: TENANT.into(),
        id: id.into(),
        host: format!("host-{id}"),
        version: None,
        system: None,
        token_labels: Labels::default(),
        own_labels: Labels::default(),
        targets: vec!["pool:shop".into()],
        ephemeral: false,
        enrolled_at: at(0),
        certificate_expires_at: at(1_000_000),
        denied_at: None,
        forget_at: None,
        last_seen_at: None,
        stopped_at: None,
    }
}

fn finding(check: &str, severity: Severity, change: Change, observed_at: Timestamp) -> FindingRow {
    let ended = matches!(change, Change::Cleared | Change::TargetGone);
    FindingRow {
        id: 0,
        tenant: TENANT.into(),
        agent: "a".into(),
        fingerprint: Fingerprint::of(TENANT, "a", check, "pool:shop", None),
        check: check.into(),
        target: "pool:shop".into(),
        sub_key: None,
        status: if ended { Status::Resolved } else { Status::Firing },
        severity,
        change,
        summary: "s".into(),
        reason: "r".into(),
        advice: None,
        evidence: "{}".into(),
        since: observed_at,
        observed_at,
        received_at: observed_at,
        incident: None,
    }
}

/// A collector without its disk: the state, and the rows that would be stored.
struct World {
    state: State,
    flaps: Flapping,
    stored: BTreeMap<String, IncidentRow>,
    now: i64,
}

impl World {
    fn new(agents: Vec<AgentRow>) -> Self {
        Self::flapping(agents, Flapping::NEVER)
    }

    fn flapping(agents: Vec<AgentRow>, flaps: Flapping) -> Self {
        let state = State::load(agents, Vec::new(), at(0)).with_flapping(flaps);
        Self { state, flaps, stored: BTreeMap::new(), now: 0 }
    }

    /// Applies an event, checks each change against the row before it, stores it, and says what was changed.
    fn apply(&mut self, event: Event<'_>) -> Vec<String> {
        let changes = self.state.apply(event, at(self.now));
        let never = self.flaps == Flapping::NEVER;
        let told = changes.into_iter().map(|change| {
            let IncidentChange { incident, kind, reason } = change;
            let before = self.stored.get(&incident.id);
            let fired = before.is_some_and(|it| it.status == Status::Firing);
            match kind {
                ChangeKind::Opened => assert!(before.is_none()),
                ChangeKind::Reopened => assert!(before.is_some() && !fired),
                _ => assert!(fired, "{kind:?} of what does not fire"),
            }
            assert_eq!(incident.status == Status::Resolved, kind == ChangeKind::Resolved);
            assert_eq!(incident.resolved_at.is_some(), incident.resolved_reason.is_some());
            assert_eq!(incident.resolved_at.is_some(), kind == ChangeKind::Resolved);
            let counted = incident.state_epoch - before.map_or(0, |it| it.state_epoch);
            assert_eq!(counted, u64::from(kind != ChangeKind::Refreshed), "{kind:?}");
            assert!(!reason.is_empty());
            assert!(!never || kind != ChangeKind::Flapped && !incident.flaps());
            let line = format!("{kind:?} {}", incident.check);
            self.stored.insert(incident.id.clone(), incident);
            line
        });
        let told: Vec<_> = told.collect();
        let firing: Vec<_> = self.stored.values().filter(|it| it.status == Status::Firing).collect();
        let distinct: BTreeSet<_> = firing.iter().map(|it| it.fingerprint).collect();
        assert_eq!(firing.len(), distinct.len(), "two incidents of one fingerprint fire");
        told
    }

    fn restart(&mut self, agents: Vec<AgentRow>) {
        self.state =
            State::load(agents, self.stored.values().cloned().collect(), at(self.now)).with_flapping(self.flaps);
    }

    fn hear(&mut self, name: char) -> Vec<String> {
        let (epoch, sent_at) = (epoch(name), at(self.now));
        self.apply(Event::Heard {
            tenant: TENANT,
            agent: "a",
            epoch: &epoch,
            sent_at,
            goodbye: false,
            is_volatile: false,
        })
    }

    fn find(&mut self, check: &str, severity: Severity, change: Change) -> Vec<String> {
        self.apply(Event::Finding(&mut finding(check, severity, change, at(self.now))))
    }

    fn wait(&mut self, seconds: i64) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..seconds {
            self.now += 1;
            told.extend(self.apply(Event::Tick));
        }
        told
    }

    fn firing(&self) -> BTreeSet<Fingerprint> {
        self.stored.values().filter(|it| it.status == Status::Firing).map(|it| it.fingerprint).collect()
    }
}

#[derive(Debug, Clone)]
enum Act {
    Find(usize, Severity, Change),
    Open(Vec<usize>, Vec<usize>),
    Wait(i64),
    Sleep(i64),
    Restart,
    Heartbeat,
    Goodbye,
}

const CHECKS: [&str; 4] = ["pool.leak", "pool.close_wait", "db.headroom", "http.status"];

fn act() -> impl Strategy<Value = Act> {
    let severity = prop_oneof![Just(Severity::Info), Just(Severity::Warning), Just(Severity::Critical)];
    let change = prop_oneof![
        Just(Change::Began),
        Just(Change::Worsened),
        Just(Change::Eased),
        Just(Change::Evidence),
        Just(Change::EvidenceLost),
        Just(Change::EvidenceBack),
        Just(Change::Cleared),
        Just(Change::TargetGone),
    ];
    let some = || proptest::sample::subsequence((0..CHECKS.len()).collect::<Vec<_>>(), 0..=CHECKS.len());
    prop_oneof![
        8 => (0..CHECKS.len(), severity, change).prop_map(|(check, severity, change)| Act::Find(check, severity, change)),
        2 => (some(), some()).prop_map(|(ran, firing)| Act::Open(ran, firing)),
        2 => (1..90_i64).prop_map(Act::Wait),
        1 => (1..9_000_i64).prop_map(Act::Sleep),
        1 => Just(Act::Restart),
        2 => Just(Act::Heartbeat),
        1 => Just(Act::Goodbye),
    ]
}

const FLAPPING: Flapping = Flapping { returns: 2, within: Duration::from_secs(1_000), calm: Duration::from_secs(30) };

proptest! {
    #[test]
    fn whatever_happens_incidents_follow_what_was_said_last(
        acts in proptest::collection::vec(act(), 1..60),
        flaps in prop_oneof![Just(Flapping::NEVER), Just(FLAPPING)],
    ) {
        let mut world = World::flapping(vec![agent("a")], flaps);
        let mut model: BTreeSet<Fingerprint> = BTreeSet::new();
        let of = |check: usize| Fingerprint::of(TENANT, "a", CHECKS[check], "pool:shop", None);
        for act in acts {
            match act {
                Act::Find(check, severity, change) => {
                    world.hear('A');
                    let fired = model.contains(&of(check));
                    let told = world.find(CHECKS[check], severity, change);
                    let ended = matches!(change, Change::Cleared | Change::TargetGone);
                    if !ended && severity > Severity::Info {
                        model.insert(of(check));
                        prop_assert_eq!(told.len(), 1);
                    } else {
                        prop_assert_eq!(told.len(), usize::from(fired), "a resolve follows firing, and only firing");
                        model.remove(&of(check));
                    }
                }
                Act::Open(ran, firing) => {
                    world.hear('A');
                    let open = Open {
                        checks: ran.iter().map(|it| CHECKS[*it].into()).collect(),
                        firing: firing.iter().map(|it| of(*it)).collect(),
                        observed_at: at(world.now),
                    };
                    world.apply(Event::Open { tenant: TENANT, agent: "a", open: &open });
                    let gone = |it: &Fingerprint| ran.iter().any(|ran| of(*ran) == *it) && !open.firing.contains(it);
                    model.retain(|it| !gone(it));
                }
                Act::Wait(seconds) => { world.wait(seconds); }
                Act::Sleep(seconds) => world.now += seconds,
                Act::Restart => {
                    let mut row = agent("a");
                    row.last_seen_at = Some(at(world.now));
                    world.restart(vec![row]);
                }
                Act::Heartbeat => { world.hear('A'); }
                Act::Goodbye => {
                    let (epoch, sent_at) = (epoch('A'), at(world.now));
                    world.apply(Event::Heard { tenant: TENANT, agent: "a", epoch: &epoch, sent_at, goodbye: true, is_volatile: false });
                }
            }
            let firing: BTreeSet<_> = world.stored.values()
                .filter(|it| it.status == Status::Firing && !it.is_calm() && it.check != own::MISSING)
                .map(|it| it.fingerprint).collect();
            prop_assert_eq!(&firing, &model);
        }
        // Whatever was lost on the way, a list of nothing ends everything.
        world.hear('A');
        let open = Open { checks: CHECKS.map(Into::into).into(), firing: Vec::new(), observed_at: at(world.now) };
        world.apply(Event::Open { tenant: TENANT, agent: "a", open: &open });
        // Somebody speaks all the while.
        for _ in 0..i64::try_from(flaps.calm.as_secs()).unwrap_or(0) + 61 {
            world.wait(1);
            world.hear('A');
        }
        prop_assert!(world.firing().is_empty(), "no incident stays open for ever");
    }
}

#[test]
fn an_agent_is_missed_after_thirty_seconds_and_its_return_ends_it() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    assert_eq!(world.wait(29), Vec::<String>::new());
    assert_eq!(world.wait(2), ["Opened agent.missing"]);
    assert_eq!(world.state.presence(TENANT, "a"), Presence::Missing);
    assert_eq!(world.wait(600), Vec::<String>::new(), "said once");
    assert_eq!(world.hear('A'), ["Resolved agent.missing"]);
    assert_eq!(world.state.presence(TENANT, "a"), Presence::Live);
}

#[test]
fn our_own_downtime_is_not_the_agents_silence() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    world.wait(5);
    world.now += 86_400;
    let mut row = agent("a");
    row.last_seen_at = Some(at(5));
    world.restart(vec![row]);
    assert_eq!(world.state.presence(TENANT, "a"), Presence::Unknown);
    assert_eq!(world.wait(29), Vec::<String>::new());
    world.hear('A');
    assert_eq!(world.wait(20), Vec::<String>::new());
}

#[test]
fn an_agent_that_was_missing_before_our_restart_is_not_missed_again() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    world.wait(40);
    let mut row = agent("a");
    row.last_seen_at = Some(at(0));
    world.restart(vec![row]);
    assert_eq!(world.state.presence(TENANT, "a"), Presence::Missing);
    assert_eq!(world.wait(100), Vec::<String>::new());
    assert_eq!(world.hear('A'), ["Resolved agent.missing"]);
}

#[test]
fn an_ephemeral_agent_is_forgotten_after_an_hour_with_all_that_fires() {
    let mut row = agent("a");
    row.ephemeral = true;
    let mut world = World::new(vec![row]);
    world.hear('A');
    world.find("pool.leak", Severity::Warning, Change::Began);
    world.wait(3_599);
    assert!(world.state.to_forget(at(world.now)).is_empty());
    world.wait(1);
    assert_eq!(world.state.to_forget(at(world.now)), [(TENANT.to_owned(), "a".to_owned())]);
    let mut told = world.apply(Event::Forgotten { tenant: TENANT, agent: "a" });
    told.sort();
    assert_eq!(told, ["Resolved agent.missing", "Resolved pool.leak"]);
    assert!(world.state.to_forget(at(world.now)).is_empty());
}

/// Neither a downtime of ours nor a step of our clock is an hour of an agent's silence.
#[test]
fn an_ephemeral_agent_that_is_silent_because_nobody_listened_has_time_to_come_back() {
    let mut row = agent("a");
    (row.ephemeral, row.last_seen_at) = (true, Some(at(0)));
    let mut world = World::new(vec![row.clone()]);
    world.hear('A');
    world.now += 3_900;
    world.restart(vec![row]);
    assert_eq!(world.wait(31), ["Opened agent.missing"]);
    assert!(world.state.to_forget(at(world.now)).is_empty());
    world.wait(569);
    assert_eq!(world.state.to_forget(at(world.now)), [(TENANT.to_owned(), "a".to_owned())]);
}

#[test]
fn denying_ends_what_fires_and_nobody_is_missed() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    world.find("pool.leak", Severity::Warning, Change::Began);
    assert_eq!(world.apply(Event::Denied { tenant: TENANT, agent: "a" }), ["Resolved pool.leak"]);
    assert_eq!(world.wait(100), Vec::<String>::new());
    assert_eq!(world.stored.values().next().and_then(|it| it.resolved_reason.as_deref()), Some("agent denied"));
}

#[test]
fn an_agent_that_was_denied_while_nobody_served_has_its_incidents_ended_too() {
    let mut world = World::new(vec![agent("a"), agent("b")]);
    world.hear('A');
    world.find("pool.leak", Severity::Warning, Change::Began);
    world.restart(vec![AgentRow { denied_at: Some(at(1)), ..agent("a") }, agent("b")]);
    assert_eq!(world.wait(1), ["Resolved pool.leak"]);
    assert_eq!(world.stored.values().next().and_then(|it| it.resolved_reason.as_deref()), Some("agent denied"));
}

/// An incident that has gone away for now.
fn calm() -> World {
    let mut world = World::flapping(vec![agent("a")], FLAPPING);
    assert_eq!(world.wait(60), Vec::<String>::new());
    for _ in 0..3 {
        world.hear('A');
        world.find("pool.leak", Severity::Warning, Change::Began);
        world.find("pool.leak", Severity::Warning, Change::Cleared);
    }
    assert!(world.stored.values().all(IncidentRow::is_calm));
    world
}

#[test]
fn what_flaps_and_is_denied_is_over_at_once() {
    let mut world = calm();
    assert_eq!(world.apply(Event::Denied { tenant: TENANT, agent: "a" }), ["Resolved pool.leak"]);
    let row = world.stored.values().next().expect("one");
    assert_eq!(row.resolved_reason.as_deref(), Some("agent denied"));
    assert_eq!(world.wait(100), Vec::<String>::new());
}

#[test]
fn what_was_calm_at_our_end_or_as_our_machine_slept_is_over_only_when_its_agent_could_say_otherwise() {
    for (returns, sleeps) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = calm();
        world.now += 7_200;
        if !sleeps {
            let mut row = agent("a");
            row.last_seen_at = Some(at(0));
            world.restart(vec![row]);
        }
        let mut told = Vec::new();
        for second in 0..70 {
            told.extend(world.wait(1));
            world.hear('A');
            if returns && second == 20 {
                told.extend(world.find("pool.leak", Severity::Warning, Change::Began));
            }
        }
        let expected: &[_] =
            if returns { &["Flapped pool.leak", "Updated pool.leak"] } else { &["Resolved pool.leak"] };
        assert_eq!(told, expected);
    }
}

#[test]
fn an_agent_that_comes_and_goes_is_told_once_and_is_missed_again_after_our_restart() {
    let mut world = World::flapping(vec![agent("a")], FLAPPING);
    let mut told = Vec::new();
    for _ in 0..4 {
        told.extend(world.hear('A'));
        told.extend(world.wait(32));
    }
    let all = ["Opened", "Resolved", "Reopened", "Resolved", "Reopened", "Flapped", "Flapped"];
    assert_eq!(told, all.map(|it| format!("{it} agent.missing")));
    assert_eq!(world.hear('A'), ["Flapped agent.missing"]);
    let mut row = agent("a");
    row.last_seen_at = Some(at(world.now));
    world.restart(vec![row]);
    assert_eq!(world.state.presence(TENANT, "a"), Presence::Unknown);
    assert_eq!(world.wait(32), ["Flapped agent.missing"], "it is gone once more");
    assert_eq!(world.state.presence(TENANT, "a"), Presence::Missing);
}

#[test]
fn what_flapped_goes_on_as_anything_else_when_flapping_counts_no_more() {
    let mut world = calm();
    world.flaps = Flapping::NEVER;
    world.restart(vec![agent("a")]);
    world.hear('A');
    let told: Vec<_> = (0..61)
        .flat_map(|_| {
            let told = world.wait(1);
            world.hear('A');
            told
        })
        .collect();
    assert_eq!(told, ["Resolved pool.leak"]);
}

#[test]
fn what_the_collector_says_of_itself_does_not_flap() {
    let mut world = World::flapping(vec![agent("a")], FLAPPING);
    let message = |state| OutboxRow {
        tenant: TENANT.into(),
        id: "msg_1".into(),
        receiver: "ops".into(),
        incident: "i".into(),
        kind: "incident.firing".into(),
        form: Some("webhook".into()),
        body: Vec::new(),
        decided_at: at(0),
        state,
        attempts: 1,
        uncertain: 0,
        next_attempt_at: at(0),
        settled_at: None,
        said: None,
    };
    let mut told = Vec::new();
    for _ in 0..4 {
        told.extend(world.apply(Event::Message(&message(MessageState::Dead))));
        told.extend(world.apply(Event::Message(&message(MessageState::Delivered))));
    }
    assert_eq!((told.len(), told.iter().filter(|it| it.starts_with("Resolved")).count()), (8, 4), "{told:?}");
}

#[test]
fn a_buffer_drained_late_does_not_reopen_what_is_over() {
    let mut world = World::new(vec![agent("a")]);
    world.now = 100;
    world.hear('B');
    world.find("pool.leak", Severity::Critical, Change::Began);
    world.now = 200;
    world.hear('B');
    world.find("pool.leak", Severity::Critical, Change::Cleared);
    world.now = 300;
    world.hear('A');
    let mut old = finding("pool.leak", Severity::Critical, Change::Began, at(50));
    assert_eq!(world.apply(Event::Finding(&mut old)), Vec::<String>::new());
    assert!(old.incident.is_some(), "it is shown beside the incident it belongs to");
}

/// A list of the life `name` that has nothing, of every check.
fn nothing_fires(world: &mut World, name: char) -> Vec<String> {
    let mut told = world.hear(name);
    let open = Open { checks: CHECKS.map(Into::into).into(), firing: Vec::new(), observed_at: at(world.now) };
    told.extend(world.apply(Event::Open { tenant: TENANT, agent: "a", open: &open }));
    told
}

#[test]
fn a_copy_of_an_identity_ends_nothing_of_the_other_and_is_told() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    world.find("pool.leak", Severity::Warning, Change::Began);
    let mut told = Vec::new();
    for turn in 0..120 {
        told.extend(world.wait(5));
        told.extend(if turn % 2 == 0 { nothing_fires(&mut world, 'B') } else { world.hear('A') });
    }
    let of_clone = |it: &&String| it.ends_with("agent.cloned_identity");
    assert_eq!(told.iter().find(of_clone).map(String::as_str), Some("Opened agent.cloned_identity"));
    assert!(told.iter().all(|it| of_clone(&it)), "{told:?}");
    let row = world.stored.values().find(|it| it.check == "agent.cloned_identity").expect("an incident");
    assert_eq!((row.agent.as_str(), row.severity), ("a", Severity::Critical));
    assert!(row.evidence.contains(epoch('A').as_str()) && row.evidence.contains(epoch('B').as_str()));

    // The copy is stopped; what it would have ended goes on, and the alarm is over in an hour.
    let mut later = Vec::new();
    for _ in 0..4_000 {
        later.extend(world.wait(1));
        world.hear('A');
    }
    assert_eq!(later, ["Resolved agent.cloned_identity"]);
    assert_eq!(world.firing().len(), 1);
}

#[test]
fn a_list_of_a_new_life_ends_what_the_old_one_said_when_that_is_silent() {
    let begin = || {
        let mut world = World::new(vec![agent("a")]);
        world.hear('A');
        world.find("pool.leak", Severity::Warning, Change::Began);
        world.wait(3);
        world
    };
    let mut world = begin();
    assert_eq!(nothing_fires(&mut world, 'B'), Vec::<String>::new(), "the old one spoke just now");
    let mut told = Vec::new();
    for _ in 0..30 {
        told.extend(world.wait(1));
        world.hear('B');
    }
    assert_eq!(told, ["Resolved pool.leak"]);

    let mut world = begin();
    let (first, sent_at) = (epoch('A'), at(world.now));
    let bye = Event::Heard { tenant: TENANT, agent: "a", epoch: &first, sent_at, goodbye: true, is_volatile: false };
    world.apply(bye);
    assert_eq!(nothing_fires(&mut world, 'B'), ["Resolved pool.leak"], "the old one ended on purpose");

    // What the new life says itself is not ended by a list from before.
    let mut world = begin();
    nothing_fires(&mut world, 'B');
    world.wait(1);
    world.hear('B');
    assert_eq!(world.find("pool.leak", Severity::Warning, Change::Began), ["Refreshed pool.leak"]);
    for _ in 0..60 {
        assert_eq!(world.wait(1), Vec::<String>::new());
        world.hear('B');
    }
}

#[test]
fn an_urgent_loss_is_an_incident_until_an_hour_without_one() {
    let mut world = World::new(vec![agent("a")]);
    let loss = |lane| LossRow {
        tenant: TENANT.into(),
        agent: "a".into(),
        epoch: epoch('A'),
        lane,
        from: 5,
        to: 9,
        count: 5,
        outcome: "evicted".into(),
        received_at: at(0),
    };
    assert_eq!(world.apply(Event::Loss(&loss(Lane::Bulk))), Vec::<String>::new());
    assert_eq!(world.apply(Event::Loss(&loss(Lane::Urgent))), ["Opened agent.loss"]);
    world.now = 1_800;
    assert_eq!(world.apply(Event::Loss(&loss(Lane::Urgent))), ["Updated agent.loss"]);
    world.now = 5_399;
    assert_eq!(world.apply(Event::Tick), Vec::<String>::new());
    world.now = 5_400;
    assert_eq!(world.apply(Event::Tick), ["Resolved agent.loss"]);
}

#[test]
fn an_agent_cannot_speak_for_the_collector() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    world.wait(31);
    world.hear('B');
    assert_eq!(world.find("agent.missing", Severity::Critical, Change::Began), Vec::<String>::new());
    world.apply(Event::ClonedIdentity { tenant: TENANT, agent: "a", lane: Lane::Urgent, first: 7 });
    let open = Open { checks: vec!["agent.cloned_identity".into()], firing: Vec::new(), observed_at: at(world.now) };
    assert_eq!(world.apply(Event::Open { tenant: TENANT, agent: "a", open: &open }), Vec::<String>::new());
}

#[test]
fn one_agent_cannot_open_incidents_without_end() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    for number in 0..MAX_FIRING + 50 {
        let mut one = finding("http.status", Severity::Warning, Change::Began, at(0));
        one.fingerprint = Fingerprint::of(TENANT, "a", "http.status", &number.to_string(), None);
        world.state.apply(Event::Finding(&mut one), at(0));
        assert_eq!(one.incident.is_some(), number < MAX_FIRING, "{number}");
        assert_eq!(is_beyond(&one), number >= MAX_FIRING, "it is counted: {number}");
    }
    assert!(world.state.incidents.values().any(|it| it.row().check == "agent.too_many_firing"));
}

#[test]
fn one_agent_cannot_fill_the_memory_with_incidents_that_end_at_once() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    let mut flash = |number: usize, second: i64| {
        let mut opened = false;
        for change in [Change::Began, Change::Cleared] {
            let mut one = finding("http.status", Severity::Warning, change, at(second));
            one.fingerprint = Fingerprint::of(TENANT, "a", "http.status", &number.to_string(), None);
            world.state.apply(Event::Finding(&mut one), at(second));
            opened |= one.incident.is_some();
        }
        opened
    };
    for number in 0..REMEMBERED + 50 {
        assert_eq!(flash(number, 0), number < REMEMBERED, "{number}");
    }
    assert!(flash(7, 1), "one that is known may return");
    let hour = 3_601;
    world.state.apply(Event::Tick, at(hour));
    assert!(world.state.incidents.len() <= 2, "only what returned, and what is told of it, is remembered");
    let mut one = finding("http.status", Severity::Warning, Change::Began, at(hour));
    world.state.apply(Event::Finding(&mut one), at(hour));
    assert!(one.incident.is_some(), "there is room again");
}

#[test]
fn an_agent_that_goes_on_beyond_its_limits_is_told_of_until_it_is_quiet() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    let mut refused = |times| world.apply(Event::Excess { tenant: TENANT, agent: "a", limit: "too_large", times });
    assert_eq!(refused(9), Vec::<String>::new());
    assert_eq!(refused(1).len(), 1);
    let of_excess = |world: &World| {
        let found = world.state.incidents.values().find(|it| it.row().check == "agent.excess");
        found.map(|it| (it.row().agent.clone(), it.is_firing()))
    };
    assert_eq!(of_excess(&world), Some(("a".into(), true)));
    world.wait(3_700);
    assert_eq!(of_excess(&world).map(|it| it.1), Some(false), "it did not happen again");
}

#[test]
fn a_dead_letter_is_an_incident_until_the_receiver_takes_it_or_something_later() {
    let mut world = World::new(Vec::new());
    let message = |state| OutboxRow {
        tenant: TENANT.into(),
        id: "msg_1".into(),
        receiver: "ops".into(),
        incident: "I".into(),
        kind: "incident.resolved".into(),
        form: Some("webhook".into()),
        body: Vec::new(),
        decided_at: at(0),
        state,
        attempts: 900,
        uncertain: 0,
        next_attempt_at: at(0),
        settled_at: None,
        said: Some("answered 500".into()),
    };
    assert_eq!(world.apply(Event::Message(&message(MessageState::Delivered))), Vec::<String>::new());
    assert_eq!(world.apply(Event::Message(&message(MessageState::Dead))), ["Opened notify.dead_letter"]);
    let other = || OutboxRow { id: "msg_2".into(), ..message(MessageState::Delivered) };
    world.wait(60);
    assert_eq!(world.apply(Event::Message(&other())), Vec::<String>::new(), "this one, and not what was given up");
    assert_eq!(world.apply(Event::Message(&message(MessageState::Delivered))), ["Resolved notify.dead_letter"]);
    assert_eq!(world.apply(Event::Message(&message(MessageState::Dead))), ["Reopened notify.dead_letter"]);
    world.wait(15 * 60);
    assert_eq!(world.apply(Event::Message(&other())), ["Resolved notify.dead_letter"], "it is long since");
}

#[test]
fn a_certificate_of_ours_that_is_not_renewed_is_told_once_worse_once_and_over_when_it_is() {
    let mut world = World::new(Vec::new());
    let days = |days: i64| at(days * 86_400);
    let kept = |begins: i64, ends: i64| Kept {
        lives: vec![Life { name: "server", validity: Validity { begins: days(begins), ends: days(ends) } }],
        failure: Some("cannot write `server.pem`: no space".into()),
    };
    let mut on = |day: i64, kept: &Kept| {
        world.now = day * 86_400;
        world.apply(Event::Certificates(kept))
    };
    let old = kept(0, 300);
    let none = Vec::<String>::new();
    assert_eq!(on(269, &old), none);
    assert_eq!(on(271, &old), ["Opened collector.certificate"]);
    assert_eq!((on(272, &old), on(280, &old)), (none.clone(), none.clone()), "it is known");
    assert_eq!(on(294, &old), ["Worsened collector.certificate"]);
    assert_eq!(on(301, &old), none);
    assert_eq!(on(302, &kept(302, 602)), ["Resolved collector.certificate"]);
    assert_eq!(on(303, &kept(302, 602)), none);
}

#[test]
fn a_store_that_takes_nothing_or_was_damaged_is_told_once_and_over_when_it_is() {
    let mut world = World::new(Vec::new());
    let none = Vec::<String>::new();
    let damage = |second: i64| Damage {
        transactions: 0,
        found_at: at(second),
        set_aside: format!("damaged/{second}"),
        said: vec!["row 12 missing".into()],
        tables: vec![Left { table: "findings".into(), kept: 7, lost: Lost::AtLeast(3) }],
    };
    let mut on = |is_full: bool, damage: Option<Damage>| {
        world.apply(Event::Store { condition: &Condition { is_full, damage }, disk: None })
    };
    assert_eq!(on(false, None), none);
    assert_eq!(on(true, None), ["Opened collector.store"]);
    assert_eq!(on(true, None), none, "it is known");
    assert_eq!(on(false, Some(damage(1))), ["Resolved collector.store", "Opened collector.store"]);
    assert_eq!(on(false, Some(damage(1))), none);
    assert_eq!(on(false, Some(damage(2))), ["Refreshed collector.store"], "it was damaged again");
    assert_eq!(on(false, None), ["Resolved collector.store"]);
    assert_eq!(on(true, None), ["Reopened collector.store"]);
    world.restart(Vec::new());
    let mut on =
        |is_full: bool| world.apply(Event::Store { condition: &Condition { is_full, damage: None }, disk: None });
    assert_eq!(on(true), none, "it was told before the restart");
    assert_eq!(on(false), ["Resolved collector.store"]);
}

const MIB: u64 = 1 << 20;

fn disk(free: u64, verdict: Verdict) -> Disk {
    let room = Some(Room { free: free * MIB, size: 100_000 * MIB });
    Disk { room, bound: 1_024 * MIB, judged: Judged { verdict, over_since: None } }
}

#[test]
fn a_disk_that_is_low_worsens_when_it_is_full_and_is_over_only_with_room_enough() {
    use Verdict::{Clear, Fires, Open};
    let mut world = World::new(Vec::new());
    let none = Vec::<String>::new();
    let on = |world: &mut World, is_full: bool, disk: Disk| {
        world.apply(Event::Store { condition: &Condition { is_full, damage: None }, disk: Some(&disk) })
    };
    assert_eq!(on(&mut world, false, disk(900, Open)), none, "not yet for its hold");
    assert_eq!(on(&mut world, false, disk(900, Fires)), ["Opened collector.store"]);
    assert_eq!(on(&mut world, false, disk(800, Fires)), none, "it is known");
    assert_eq!(on(&mut world, true, disk(0, Fires)), ["Worsened collector.store"]);
    assert_eq!(on(&mut world, false, disk(40, Fires)), ["Eased collector.store"], "it stores again");
    assert_eq!(on(&mut world, false, disk(1_536, Clear)), ["Resolved collector.store"]);
    // Filled at once, so that nobody told that it was low.
    assert_eq!(on(&mut world, true, disk(0, Open)), ["Reopened collector.store"]);
    assert_eq!(on(&mut world, false, disk(40, Open)), ["Eased collector.store"]);
    world.restart(Vec::new());
    let unseen = world.apply(Event::Store { condition: &Condition::default(), disk: None });
    assert_eq!(unseen, none, "nobody has looked yet");
    assert_eq!(on(&mut world, false, disk(1_100, Open)), none, "neither low nor enough");
    assert_eq!(on(&mut world, false, disk(1_536, Clear)), ["Resolved collector.store"]);
}

fn strain(queue: Verdict, receivers: &[(&str, Verdict)]) -> Strain {
    let judged = |verdict| Judged { verdict, over_since: None };
    let of = |&(name, verdict): &(&str, Verdict)| {
        let reach = Reach {
            name: name.into(),
            is_away: None,
            failures: 9,
            last_error: Some("answered 500".into()),
            left_out: None,
        };
        (reach, judged(verdict))
    };
    Strain {
        disk: disk(90_000, Verdict::Clear),
        queue: Backlog { queue: Queue { waiting: 900, places: 1_024 }, most: 900, judged: judged(queue) },
        receivers: receivers.iter().map(of).collect(),
    }
}

#[test]
fn a_queue_that_stays_full_and_a_receiver_that_stays_away_are_told_once_and_over_when_they_are() {
    use Verdict::{Clear, Fires, Open};
    let mut world = World::new(Vec::new());
    let none = Vec::<String>::new();
    let on =
        |world: &mut World, queue, receivers: &[(&str, Verdict)]| world.apply(Event::Strain(&strain(queue, receivers)));
    assert_eq!(on(&mut world, Open, &[("ops", Open)]), none);
    assert_eq!(on(&mut world, Clear, &[("ops", Clear)]), none);
    assert_eq!(on(&mut world, Fires, &[("ops", Clear), ("chat", Clear)]), ["Opened collector.queue"]);
    assert_eq!(on(&mut world, Fires, &[("ops", Fires), ("chat", Fires)]), ["Opened collector.receiver"; 2]);
    assert_eq!(on(&mut world, Fires, &[("ops", Fires), ("chat", Fires)]), none, "they are known");
    world.restart(Vec::new());
    assert_eq!(on(&mut world, Open, &[("ops", Open), ("chat", Open)]), none, "nothing is known yet");
    assert_eq!(on(&mut world, Clear, &[("ops", Clear), ("chat", Open)]).len(), 2, "the queue and one receiver");
    assert_eq!(on(&mut world, Clear, &[("ops", Clear)]), ["Resolved collector.receiver"], "it is configured no more");
    assert_eq!(on(&mut world, Clear, &[("ops", Fires)]), ["Reopened collector.receiver"]);
    world.restart(Vec::new());
    assert_eq!(on(&mut world, Clear, &[]), ["Resolved collector.receiver"], "also when that is so since a restart");
    assert_eq!(on(&mut world, Clear, &[("ops", Open)]), none);
}

#[test]
fn recipients_whom_letters_do_not_reach_are_told_once_until_one_does() {
    let mut world = World::new(Vec::new());
    let none = Vec::<String>::new();
    let on = |world: &mut World, left_out: Option<&[(&str, u16)]>| {
        let mut strain = strain(Verdict::Clear, &[("desk", Verdict::Clear)]);
        strain.receivers[0].0.left_out =
            left_out.map(|them| them.iter().map(|(who, code)| ((*who).to_owned(), *code)).collect());
        world.apply(Event::Strain(&strain))
    };
    let (one, both) = ([("oncall@x", 550)], [("boss@x", 452), ("oncall@x", 550)]);
    assert_eq!(on(&mut world, None), none);
    assert_eq!(on(&mut world, Some(&[])), none);
    assert_eq!(on(&mut world, Some(&one)), ["Opened collector.receiver"]);
    assert_eq!(on(&mut world, Some(&one)), none, "it is known");
    assert_eq!(on(&mut world, Some(&both)), ["Refreshed collector.receiver"], "there is one more");
    let incident = world.state.incidents.values().next().expect("one").row().clone();
    assert_eq!(incident.summary, "letters of receiver desk do not reach boss@x (452), oncall@x (550)");
    assert!(!is_about(&incident, "desk"), "the others hear of it");
    world.restart(Vec::new());
    assert_eq!(on(&mut world, None), none, "nothing is known yet");
    assert_eq!(on(&mut world, Some(&[])), ["Resolved collector.receiver"]);
    assert_eq!(on(&mut world, Some(&one)), ["Reopened collector.receiver"]);
    let gone = strain(Verdict::Clear, &[]);
    assert_eq!(world.apply(Event::Strain(&gone)), ["Resolved collector.receiver"], "it is configured no more");
}

#[test]
fn whom_an_incident_of_a_receiver_is_about_is_known_by_its_check_and_its_name() {
    let mut world = World::new(Vec::new());
    let strain = strain(Verdict::Clear, &[("ops", Verdict::Fires)]);
    let mut row = world.state.apply(Event::Strain(&strain), at(0)).remove(0).incident;
    assert!(is_about(&row, "ops") && !is_about(&row, "op") && !is_about(&row, "receiver:ops"));
    row.check = "notify.dead_letter".into();
    assert!(!is_about(&row, "ops"), "what was given up is told to its receiver too");
}

#[test]
fn incidents_of_an_agent_that_is_no_longer_known_end_at_the_first_tick() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    world.find("pool.leak", Severity::Warning, Change::Began);
    world.restart(Vec::new());
    assert_eq!(world.wait(1), ["Resolved pool.leak"]);
}

#[test]
fn ids_sort_in_the_order_incidents_opened() {
    let mut world = World::new(vec![agent("a")]);
    world.hear('A');
    let mut ids = Vec::new();
    for number in 0..500 {
        let mut one = finding("http.status", Severity::Warning, Change::Began, at(0));
        one.fingerprint = Fingerprint::of(TENANT, "a", "http.status", &number.to_string(), None);
        world.state.apply(Event::Finding(&mut one), at(number / 100));
        ids.push(one.incident.expect("an incident"));
    }
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    // Also when the clock steps back.
    let mut one = finding("db.headroom", Severity::Warning, Change::Began, at(0));
    world.state.apply(Event::Finding(&mut one), at(-60));
    assert!(one.incident.as_ref() > ids.last());
}
