use tickbird_shared::protocol::CANARY_CHECK;
use tickbird_shared::{Change, Epoch};

use super::super::{Event, Flapping};
use super::*;
use crate::store::{AgentRow, IncidentRow, MessageState};

const OPS: &str = "switch";

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_790_000_000_000 + millis).expect("in range")
}

fn agent(id: &str) -> AgentRow {
    AgentRow::enrolled((DEFAULT_TENANT, id), format!("host-{id}"), at(0), at(1_000_000_000))
}

/// A collector without its disk and its receivers, second by second.
struct World {
    state: State,
    settings: Option<CanarySettings>,
    /// Those that are heard, and those of them that sing, each second.
    heard: Vec<&'static str>,
    singing: Vec<&'static str>,
    /// How old a canary is when its batch leaves.
    age: i64,
    /// How long the receiver needs; none when it takes nothing.
    takes: Option<i64>,
    is_away: Option<bool>,
    every: u32,
    second: i64,
    number: u32,
    messages: Vec<Flown>,
    stored: BTreeMap<String, IncidentRow>,
}

impl World {
    fn new(agents: &[&'static str]) -> Self {
        let rows = agents.iter().map(|it| agent(it)).collect();
        let s = Duration::from_secs;
        let settings =
            CanarySettings { receiver: OPS.into(), every: s(10), missing_after: s(60), slow: s(5), slow_hold: s(30) };
        Self {
            state: State::load(rows, Vec::new(), at(0)),
            settings: Some(settings),
            heard: agents.to_vec(),
            singing: agents.to_vec(),
            age: 100,
            takes: Some(200),
            is_away: Some(false),
            every: 10,
            second: 0,
            number: 0,
            messages: Vec::new(),
            stored: BTreeMap::new(),
        }
    }

    fn now(&self) -> Timestamp {
        at(self.second * 1_000)
    }

    fn restart(&mut self) {
        let agents = self.heard.iter().map(|it| AgentRow { last_seen_at: Some(self.now()), ..agent(it) }).collect();
        self.state = State::load(agents, self.stored.values().cloned().collect(), self.now());
    }

    fn keep(&mut self, changes: Vec<IncidentChange>) -> Vec<String> {
        let one = |it: IncidentChange| {
            let line = format!("{:?} {} {}", it.kind, it.incident.check, it.incident.target);
            self.stored.insert(it.incident.id.clone(), it.incident);
            line
        };
        changes.into_iter().map(one).collect()
    }

    fn hear(&mut self, id: &str, goodbye: bool) -> Vec<String> {
        let (epoch, now) = (Epoch::try_from("A".repeat(26)).expect("26 letters"), self.now());
        let heard = Event::Heard {
            tenant: DEFAULT_TENANT,
            agent: id,
            epoch: &epoch,
            sent_at: now,
            goodbye,
            is_volatile: false,
        };
        let changes = self.state.apply(heard, now);
        self.keep(changes)
    }

    fn canary(&self, id: &str, status: Status) -> FindingRow {
        let target = format!("agent:host-{id}");
        FindingRow {
            id: 0,
            tenant: DEFAULT_TENANT.into(),
            agent: id.into(),
            fingerprint: Fingerprint::of(DEFAULT_TENANT, id, CANARY_CHECK, &target, None),
            check: CANARY_CHECK.into(),
            target,
            sub_key: None,
            status,
            severity: Severity::Info,
            change: Change::Began,
            summary: "a canary".into(),
            reason: "r".into(),
            advice: None,
            evidence: json!({ CANARY_EVERY: self.every }).to_string(),
            since: self.now(),
            observed_at: at(self.second * 1_000 - self.age),
            received_at: self.now(),
            incident: None,
        }
    }

    fn sing(&mut self, id: &str, status: Status) -> Vec<String> {
        let (mut canary, now) = (self.canary(id, status), self.now());
        let changes = self.state.apply(Event::Finding(&mut canary), now);
        self.keep(changes)
    }

    fn settle(&mut self, id: &str, decided_at: Timestamp, took: i64) -> Vec<String> {
        let settled_at = decided_at.saturating_add(Duration::from_millis(took.unsigned_abs())).expect("in range");
        let mut row = OutboxRow::queued(
            DEFAULT_TENANT,
            id.into(),
            OPS,
            CANARY.into(),
            (CANARY, "webhook", Vec::new()),
            decided_at,
        );
        (row.state, row.settled_at) = (MessageState::Delivered, Some(settled_at));
        let changes = self.state.apply(Event::Message(&row), self.now());
        self.keep(changes)
    }

    /// So many seconds, and what changed in them.
    fn wait(&mut self, seconds: u32) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..seconds {
            self.second += 1;
            let now = self.now();
            for id in self.heard.clone() {
                told.extend(self.hear(id, false));
            }
            if self.second % 10 == 5 {
                for id in self.singing.clone() {
                    told.extend(self.sing(id, Status::Firing));
                }
            }
            let changes = self.state.apply(Event::Tick, now);
            told.extend(self.keep(changes));
            let reach = Reach {
                name: OPS.into(),
                is_away: self.is_away,
                failures: 3,
                last_error: Some("answered 500".into()),
                left_out: None,
            };
            let (changes, flown) = self.state.canaries(self.settings.as_ref(), Some(&reach), now);
            told.extend(self.keep(changes));
            for it in flown {
                self.number += 1;
                let id = format!("msg_{:08}", self.number);
                self.state.flew(DEFAULT_TENANT, &id);
                self.messages.push(it);
                if let Some(took) = self.takes {
                    told.extend(self.settle(&id, now, took));
                }
            }
        }
        told
    }

    fn seen(&self, id: &str) -> Option<CanarySeen> {
        self.state.canary_of(DEFAULT_TENANT, id)
    }

    fn newest(&self) -> Value {
        serde_json::from_str(&self.messages.last().expect("one").evidence).expect("JSON")
    }
}

const NOTHING: Vec<String> = Vec::new();

#[test]
fn a_canary_is_as_slow_as_its_two_ways_and_what_it_waits_for_others_counts_for_nothing() {
    let mut world = World::new(&["a", "b"]);
    world.singing = vec!["a"];
    assert_eq!(world.wait(300), NOTHING);
    let seen = world.seen("a").expect("it sings");
    // It came five seconds before it was told.
    assert_eq!((seen.is_missing, seen.latency), (false, Some(Duration::from_millis(300))));
    assert_eq!(world.seen("b"), None, "an older agent");
    let told = world.newest();
    assert_eq!(told["agents"], json!({ "live": 2, "singing": 1, "came": 1, "missing": 0, "slow": 0 }));
    assert_eq!(told["latency_ms"], json!({ "median": 300, "p99": 300, "worst": 300 }));
    assert_eq!(told["worst"][0]["host"], "host-a");
    assert_eq!(world.messages.len(), 30, "one each ten seconds, however many agents there are");
    let latencies = world.state.take_canary_latencies();
    assert!(latencies.len() >= 28 && latencies.iter().all(|it| *it == 300), "{latencies:?}");
}

#[test]
fn one_that_is_heard_and_does_not_sing_any_more_is_missed_and_found() {
    let mut world = World::new(&["a", "b"]);
    world.wait(100);
    world.singing = vec!["b"];
    assert_eq!(world.wait(54), NOTHING, "it sang at 95, and has a minute");
    assert_eq!(world.wait(1), ["Opened agent.canary_missing agent:host-a"]);
    let incident = world.stored.values().next().expect("one");
    assert_eq!(incident.severity, Severity::Critical);
    assert!(incident.summary.contains("no canary of it came for 60 s"), "{}", incident.summary);
    assert_eq!(world.wait(1_000), NOTHING, "told once");
    assert_eq!(world.newest()["missing"][0]["agent"], "a");
    assert!(world.seen("a").is_some_and(|it| it.is_missing));
    world.singing.push("a");
    assert_eq!(world.wait(10), ["Resolved agent.canary_missing agent:host-a"]);
    assert_eq!(world.wait(1_000), NOTHING);
}

#[test]
fn a_silence_is_that_of_the_canaries_only_where_the_agent_is_heard() {
    let mut world = World::new(&["a"]);
    world.settings.as_mut().expect("is set").missing_after = Duration::from_secs(15);
    world.wait(99);
    // Stopped, as by a signal, for longer than its canaries may take, and for less than it may itself.
    (world.singing, world.heard) = (Vec::new(), Vec::new());
    assert_eq!(world.wait(28), NOTHING);
    assert_eq!(world.wait(20), ["Opened agent.missing agent:host-a"]);
}

#[test]
fn a_long_interval_is_waited_for() {
    let mut world = World::new(&["a"]);
    world.every = 120;
    world.wait(10);
    world.singing.clear();
    assert_eq!(world.wait(354), NOTHING);
    assert_eq!(world.wait(1), ["Opened agent.canary_missing agent:host-a"], "three of its own");
}

#[test]
fn one_that_stops_is_missing_is_denied_or_says_that_none_comes_is_not_missed() {
    let mut world = World::new(&["a", "b", "c", "d"]);
    world.wait(100);
    world.singing.clear();
    world.heard.clear();
    assert_eq!(world.hear("a", true), NOTHING);
    let denied = Event::Denied { tenant: DEFAULT_TENANT, agent: "c" };
    assert_eq!(world.state.apply(denied, world.now()).len(), 0);
    world.heard = vec!["d"];
    assert_eq!(world.sing("d", Status::Resolved), NOTHING);
    assert_eq!(world.wait(1_000), ["Opened agent.missing agent:host-b"], "which has an incident of its own");
    world.heard = vec!["a", "b", "d"];
    assert_eq!(world.wait(1_000), ["Resolved agent.missing agent:host-b"], "none of them has sung since");
}

#[test]
fn who_was_missed_is_not_when_it_stops_or_says_that_none_comes() {
    let mut world = World::new(&["a", "b", "c"]);
    world.wait(100);
    world.singing.clear();
    assert_eq!(world.wait(100).len(), 3);
    assert_eq!(world.sing("a", Status::Resolved), ["Resolved agent.canary_missing agent:host-a"]);
    world.heard = vec!["a", "b"];
    world.hear("c", true);
    assert_eq!(world.wait(1), ["Resolved agent.canary_missing agent:host-c"]);
    world.settings = None;
    assert_eq!(world.wait(1), ["Resolved agent.canary_missing agent:host-b"], "nobody waits for any");
    assert_eq!(world.wait(1_000), NOTHING);
}

#[test]
fn after_a_start_nobody_is_missed_who_was_not_before() {
    let mut world = World::new(&["a", "b"]);
    world.wait(100);
    world.singing = vec!["b"];
    world.wait(30);
    // A downtime of an hour, and a pause of as long: nobody was listened to.
    world.second += 3_600;
    world.restart();
    assert_eq!(world.wait(40), NOTHING);
    world.second += 3_600;
    assert_eq!(world.wait(1_000), NOTHING, "a has not sung since the start");
    world.singing = vec!["a", "b"];
    world.wait(10);
    world.singing = vec!["b"];
    assert_eq!(world.wait(100), ["Opened agent.canary_missing agent:host-a"]);
    world.restart();
    assert_eq!(world.wait(1_000), NOTHING, "it is missed still");
    world.singing.push("a");
    assert_eq!(world.wait(10), ["Resolved agent.canary_missing agent:host-a"]);
}

#[test]
fn a_receiver_that_takes_none_is_one_incident_for_all_agents() {
    let mut world = World::new(&["a", "b", "c"]);
    world.wait(100);
    world.takes = None;
    assert_eq!(world.wait(60), NOTHING);
    assert_eq!(world.wait(10), ["Opened collector.canary canary:switch"]);
    let incident = world.stored.values().next().expect("one");
    assert!(incident.summary.contains("not delivered to receiver switch since"), "{}", incident.summary);
    assert!(incident.summary.contains("because: answered 500"), "{}", incident.summary);
    assert_eq!(world.wait(1_000), NOTHING);
    world.takes = Some(10);
    assert_eq!(world.wait(10), ["Resolved collector.canary canary:switch"]);
}

#[test]
fn a_receiver_that_is_known_to_be_away_is_told_by_that_alone() {
    let mut world = World::new(&["a"]);
    world.wait(100);
    (world.takes, world.is_away) = (None, Some(true));
    assert_eq!(world.wait(1_000), NOTHING);
}

#[test]
fn a_message_that_was_superseded_says_only_that_the_receiver_takes_them() {
    let mut world = World::new(&["a"]);
    world.takes = None;
    world.wait(65);
    let first = at(1_000);
    assert_eq!(world.settle("msg_00000001", first, 50_000), ["Resolved collector.canary canary:switch"]);
    assert_eq!(world.seen("a").and_then(|it| it.latency), None, "its canary is in the newest");
    let (newest, decided_at) = (format!("msg_{:08}", world.number), at(61_000));
    world.settle(&newest, decided_at, 500);
    assert_eq!(world.seen("a").and_then(|it| it.latency), Some(Duration::from_millis(600)));
}

#[test]
fn a_reload_goes_on_waiting_for_who_sang_before_it() {
    let silent = || {
        let mut world = World::new(&["a", "b"]);
        world.wait(100);
        world.singing = vec!["b"];
        world
    };
    let mut twin = silent();
    let missed_after = (1..200).find(|_| !twin.wait(1).is_empty()).expect("is missed");
    let mut world = silent();
    assert_eq!(world.wait(missed_after - 2), NOTHING);
    let before = std::mem::replace(&mut world.state, State::load(Vec::new(), Vec::new(), at(0)));
    world.state = before.reloaded(Flapping::NEVER, (None, None), &[], &[]);
    assert_eq!(world.wait(3), ["Opened agent.canary_missing agent:host-a"], "the time before it counts");
}

#[test]
fn what_starts_in_the_place_of_one_that_said_goodbye_may_send_none() {
    let mut world = World::new(&["a"]);
    world.wait(100);
    world.singing.clear();
    // Both between two looks.
    world.hear("a", true);
    world.hear("a", false);
    assert_eq!(world.wait(1_000), NOTHING);
}

#[test]
fn one_slow_canary_of_an_agent_that_sings_seldom_is_no_slowness() {
    let mut world = World::new(&["a"]);
    world.every = 300;
    world.age = 9_000;
    assert_eq!(world.wait(320), NOTHING, "the first");
    world.age = 100;
    assert_eq!(world.wait(1_000), NOTHING);
}

#[test]
fn slow_ones_are_one_incident_after_a_hold_and_a_slow_one_now_and_then_is_none() {
    let mut world = World::new(&["a", "b"]);
    for _ in 0..20 {
        world.age = 9_000;
        assert_eq!(world.wait(20), NOTHING, "what waited while something was away comes late, and once");
        world.age = 100;
        assert_eq!(world.wait(20), NOTHING);
    }
    world.takes = Some(6_000);
    let told = world.wait(60);
    assert_eq!(told, ["Opened collector.canary canary:latency"]);
    let incident = world.stored.values().next().expect("one");
    assert_eq!(incident.severity, Severity::Warning);
    assert!(incident.summary.contains("canaries of 2 of 2 agents need over 5s"), "{}", incident.summary);
    assert_eq!(world.wait(1_000), NOTHING);
    world.takes = Some(4_800);
    assert_eq!(world.wait(20), ["Resolved collector.canary canary:latency"]);
}

/// A mail server that reads each letter for longer than it is until the next canary.
#[test]
fn what_a_receiver_needs_for_longer_than_an_interval_is_measured_and_told() {
    let mut world = World::new(&["a"]);
    world.takes = Some(100);
    world.wait(40);
    world.takes = None;
    let mut told = Vec::new();
    for _ in 0..8 {
        let before = world.messages.len();
        while world.messages.len() == before {
            told.extend(world.wait(1));
        }
        let decided_at = world.now();
        told.extend(world.wait(25));
        assert_eq!(world.messages.len(), before + 1, "it is waited for");
        told.extend(world.settle(&format!("msg_{:08}", world.number), decided_at, 25_000));
        assert!(world.seen("a").and_then(|it| it.latency).is_some_and(|it| it >= Duration::from_secs(25)));
    }
    assert_eq!(told, ["Opened collector.canary canary:latency"]);
    // Who takes none is told each time what is true then.
    let before = world.messages.len();
    assert_eq!(world.wait(300), ["Opened collector.canary canary:switch"]);
    assert!(world.messages.len() > before + 20, "{} messages", world.messages.len() - before);
}

#[test]
fn one_slow_canary_and_then_a_receiver_that_takes_none_is_told_of_the_receiver_alone() {
    let mut world = World::new(&["a", "b"]);
    world.takes = Some(100);
    assert_eq!(world.wait(40), NOTHING);
    world.takes = Some(6_000);
    assert_eq!(world.wait(10), NOTHING);
    world.takes = None;
    assert_eq!(world.wait(1_000), ["Opened collector.canary canary:switch"]);
    world.takes = Some(100);
    assert_eq!(world.wait(20), ["Resolved collector.canary canary:switch"]);
}

#[test]
fn there_is_a_message_also_while_there_is_no_agent_and_old_ones_are_not_kept() {
    let mut world = World::new(&[]);
    assert_eq!(world.wait(200), NOTHING);
    assert_eq!(world.messages.len(), 20);
    let forgotten: Vec<_> = world.messages.iter().filter_map(|it| it.forgets.clone()).collect();
    assert_eq!(forgotten.len(), 10, "{forgotten:?}");
    assert_eq!(forgotten[0], "msg_00000001");
}

#[test]
fn what_is_kept_of_an_agent_is_small() {
    assert_eq!(size_of::<Bird>(), 32);
}
