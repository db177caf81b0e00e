//! Decisions one by one, then random histories against both promises.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tickbird_shared::{Fingerprint, Labels, Status};

use super::*;
use crate::store::{FlapRow, HeardRow, MessageState, SilenceRow};

mod acknowledgements;
mod dependencies;
mod escalations;
mod forms;
mod groups;
mod inhibition;
mod tenants;
mod ward;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).expect("in range")
}

pub(super) fn incident(check: &str, severity: Severity, state_epoch: u64) -> IncidentRow {
    IncidentRow {
        tenant: "default".into(),
        id: "01JCZZZZZZZZZZZZZZZZZZZZZZ".into(),
        fingerprint: Fingerprint::of("default", "a", check, "pool:shop", None),
        agent: "a".into(),
        check: check.into(),
        target: "pool:shop".into(),
        sub_key: None,
        status: Status::Firing,
        severity,
        summary: "14 of 20 held".into(),
        advice: None,
        evidence: r#"{"open":20}"#.into(),
        evidence_lost: false,
        since: at(0),
        opened_at: at(1),
        updated_at: at(1),
        resolved_at: None,
        resolved_reason: None,
        occurrences: 1,
        state_epoch,
        state_since: at(1),
        seen_epoch: None,
        seen_at: at(1),
        flap: None,
    }
}

fn change(kind: ChangeKind, severity: Severity, state_epoch: u64) -> IncidentChange {
    let mut incident = incident("pool.leak", severity, state_epoch);
    if kind == ChangeKind::Resolved {
        incident.status = Status::Resolved;
    }
    IncidentChange { incident, kind, reason: format!("{kind:?}") }
}

/// What `ops` and a pager that only takes `critical` hear of each change.
fn hear(changes: &[(ChangeKind, Severity)]) -> Vec<String> {
    let mut pager = Receiver::new("pager");
    pager.min_severity = Severity::Critical;
    let receivers = Policy::from(vec![Receiver::new("ops"), pager]);
    let mut state = State::default();
    let mut told = Vec::new();
    for (epoch, &(kind, severity)) in (1..).zip(changes) {
        for decision in state.decide(&change(kind, severity, epoch), None, &receivers, at(epoch as i64)) {
            let row = decision.row;
            assert_eq!((row.told, row.message.is_some()), (decision.message.is_some(), decision.message.is_some()));
            told.push(if row.told {
                format!("{} {}", row.receiver, row.kind)
            } else {
                format!("{} - {}", row.receiver, row.reason)
            });
        }
    }
    told
}

use ChangeKind::{
    Eased, Escalated, Flapped, Opened, Reconsidered, Refreshed, Reopened, Resolved, Unacknowledged, Updated, Worsened,
};
use Severity::{Critical, Warning};

#[test]
fn each_receiver_hears_from_its_severity_on_and_its_own_resolve() {
    let told =
        hear(&[(Opened, Warning), (Worsened, Critical), (Eased, Warning), (Updated, Warning), (Resolved, Critical)]);
    assert_eq!(
        told,
        [
            "ops incident.firing",
            "pager - below min_severity: warning is less than critical",
            "ops incident.worsened",
            "pager incident.firing",
            "ops - nobody is told that a fault eased (Eased)",
            "pager - below min_severity: warning is less than critical",
            "ops incident.updated",
            "pager - below min_severity: warning is less than critical",
            "ops incident.resolved",
            "pager incident.resolved",
        ]
    );
}

#[test]
fn who_never_heard_that_it_fires_does_not_hear_that_it_is_over() {
    let told = hear(&[(Opened, Warning), (Refreshed, Warning), (Resolved, Warning), (Reopened, Critical)]);
    assert_eq!(
        told,
        [
            "ops incident.firing",
            "pager - below min_severity: warning is less than critical",
            "ops incident.resolved",
            "pager - was not told that it fires",
            "ops incident.firing",
            "pager incident.firing",
        ]
    );
}

#[test]
fn that_a_receiver_is_away_is_told_to_all_others_and_never_to_itself() {
    let receivers = Policy::from(vec![Receiver::new("ops"), Receiver::new("chat")]);
    let mut state = State::default();
    let mut told = Vec::new();
    for (epoch, kind) in (1..).zip([Opened, Updated, Resolved]) {
        let mut change = change(kind, Warning, epoch);
        (change.incident.check, change.incident.target) = ("collector.receiver".into(), "receiver:ops".into());
        let decisions = state.decide(&change, None, &receivers, at(epoch as i64));
        told.extend(decisions.into_iter().map(|it| format!("{} {} {}", it.row.receiver, it.row.told, it.row.reason)));
    }
    let itself = "ops false it is about this receiver itself, which would hear of it once it is over";
    assert_eq!(
        told,
        [
            itself,
            "chat true Opened",
            itself,
            "chat true Updated",
            "ops false was not told that it fires",
            "chat true Resolved"
        ]
    );
}

#[test]
fn a_route_says_who_hears_of_it_and_the_resolve_goes_to_whoever_heard_that_it_fires() {
    let mut policy = Policy::from(vec![Receiver::new("ops"), Receiver::new("pager")]);
    policy.route = Some(by_severity("pager", "ops"));
    let mut state = State::default();
    let mut told = Vec::new();
    for (epoch, (kind, severity)) in (1..).zip([(Opened, Warning), (Worsened, Critical), (Resolved, Critical)]) {
        if kind == Resolved {
            policy.route = Some(by_severity("ops", "ops"));
        }
        let decisions = state.decide(&change(kind, severity, epoch), None, &policy, at(epoch as i64));
        told.extend(decisions.into_iter().map(|it| format!("{} {} {}", it.row.receiver, it.row.kind, it.row.reason)));
    }
    assert_eq!(
        told,
        [
            "ops incident.firing Opened, by ops",
            "pager incident.firing no route leads there",
            "ops incident.worsened no route leads there",
            "pager incident.firing Worsened, by pager",
            "ops incident.resolved Resolved",
            "pager incident.resolved Resolved",
        ]
    );
}

#[test]
fn a_blind_check_is_recorded_and_routed_nowhere() {
    let mut change = change(Opened, Warning, 1);
    change.incident.check = "agent.blind".into();
    let decisions = State::default().decide(&change, None, &vec![Receiver::new("ops")].into(), at(0));
    assert_eq!(decisions[0].row.reason, "skip_checks holds agent.blind");
    assert!(decisions[0].message.is_none());
}

#[test]
fn a_restart_between_firing_and_resolve_remembers_who_was_told() {
    let receivers = Policy::from(vec![Receiver::new("ops")]);
    let mut state = State::default();
    let firing = state.decide(&change(Opened, Warning, 1), None, &receivers, at(0)).remove(0);
    let mut again = State::load(vec![firing.row], firing.message.clone().into_iter().collect());
    let mut stricter = receivers.clone();
    stricter.receivers[0].min_severity = Severity::Critical;
    let resolved = again.decide(&change(Resolved, Warning, 2), None, &stricter, at(9)).remove(0);
    assert_eq!(resolved.row.kind, "incident.resolved");
    assert!(resolved.row.told, "whatever the routes say now");
    assert_eq!(resolved.supersedes, [firing.message.expect("queued").id]);
}

#[test]
fn a_receiver_that_is_not_configured_any_more_is_named_in_the_decision() {
    let mut state = State::default();
    state.decide(&change(Opened, Warning, 1), None, &vec![Receiver::new("old")].into(), at(0));
    let decisions = state.decide(&change(Resolved, Warning, 2), None, &vec![Receiver::new("new")].into(), at(1));
    let told: Vec<_> = decisions.iter().map(|it| (it.row.receiver.as_str(), it.row.reason.as_str())).collect();
    assert_eq!(told, [("new", "was not told that it fires"), ("old", "the receiver is not configured any more")]);
}

pub(super) fn an_agent() -> AgentRow {
    AgentRow {
        tenant: "default".into(),
        id: "a".into(),
        host: "web-1".into(),
        version: None,
        system: None,
        token_labels: Labels::default(),
        own_labels: serde_json::from_str(r#"{"service":"grants-api"}"#).expect("labels"),
        targets: Vec::new(),
        ephemeral: false,
        enrolled_at: at(0),
        certificate_expires_at: at(0),
        denied_at: None,
        forget_at: None,
        last_seen_at: None,
        stopped_at: None,
    }
}

#[test]
fn the_body_is_the_documented_one() {
    let agent = an_agent();
    let mut decisions =
        State::default().decide(&change(Opened, Warning, 1), Some(&agent), &vec![Receiver::new("ops")].into(), at(2));
    let message = decisions.remove(0).message.expect("told");
    let body: serde_json::Value = serde_json::from_slice(&message.body).expect("JSON");
    assert_eq!(body["id"], message.id.as_str());
    let expected = serde_json::json!({
        "version": 1, "id": message.id, "type": "incident.firing", "receiver": "ops",
        "decided_at": "2026-09-21T14:13:22Z", "reason": "Opened",
        "incident": {
            "id": "01JCZZZZZZZZZZZZZZZZZZZZZZ", "fingerprint": change(Opened, Warning, 1).incident.fingerprint.to_string(),
            "status": "firing", "severity": "warning", "check": "pool.leak", "target": "pool:shop", "sub_key": null,
            "agent": { "id": "a", "host": "web-1", "labels": { "service": "grants-api" } },
            "summary": "14 of 20 held", "advice": null, "evidence": { "open": 20 }, "evidence_lost": false,
            "flapping": null,
            "priority": { "value": 4.0, "impact": "outage", "weight": 5.0, "probability": 0.8 },
            "since": "2026-09-21T14:13:20Z", "opened_at": "2026-09-21T14:13:21Z", "updated_at": "2026-09-21T14:13:21Z",
            "resolved_at": null, "resolved_reason": null, "occurrences": 1, "acknowledged": null,
        },
    });
    assert_eq!(body, expected);
}

fn silence(id: &str, matcher: &str) -> SilenceRow {
    SilenceRow {
        tenant: "default".into(),
        id: id.into(),
        matchers: vec![matcher.into()],
        author: "anna".into(),
        reason: "they move".into(),
        created_at: at(0),
        starts_at: at(0),
        ends_at: at(1_000_000),
        over_at: None,
    }
}

#[test]
fn the_gravest_of_what_was_missed_is_told_at_the_end_of_a_silence_and_what_eased_meanwhile_is_not() {
    let story = |during: &[(ChangeKind, Severity)]| {
        let policy = Policy::from(vec![Receiver::new("ops")]);
        let mut state = State::default();
        let mut told = Vec::new();
        let mut hear = |state: &mut State, kind, severity, epoch: u64| {
            let decisions = state.decide(&change(kind, severity, epoch), None, &policy, at(epoch as i64));
            told.extend(decisions.into_iter().filter(|it| it.row.told).map(|it| it.row.kind));
        };
        hear(&mut state, Opened, Warning, 1);
        let mut row = silence("sil_1", "check=pool.leak");
        state.silence(vec![Silence::new(row.clone()).expect("sound")]);
        for (epoch, &(kind, severity)) in (2..).zip(during) {
            hear(&mut state, kind, severity, epoch);
        }
        row.ends_at = at(20);
        state.silence(vec![Silence::new(row).expect("sound")]);
        assert!(state.lapses(&policy, at(19)).is_empty(), "it holds");
        let severity = during.last().expect("something happens").1;
        for _ in state.lapses(&policy, at(20)) {
            hear(&mut state, Reconsidered, severity, 20);
        }
        told
    };
    let firing = "incident.firing";
    assert_eq!(story(&[(Worsened, Critical), (Updated, Critical)]), [firing, "incident.worsened"]);
    assert_eq!(story(&[(Updated, Warning)]), [firing, "incident.updated"]);
    assert_eq!(story(&[(Worsened, Critical), (Eased, Warning)]), [firing]);
    assert_eq!(story(&[(Resolved, Warning), (Reopened, Warning)]), [firing, "incident.resolved", firing]);
}

#[derive(Debug, Clone)]
enum Act {
    Change(ChangeKind, Severity),
    /// The oldest message that waits for a receiver is attempted: heard, certainly not, or perhaps.
    Attempt(usize, Option<bool>),
    Restart,
    Configure(Severity, Severity),
    /// What is critical leads to this one alone, everything else to the other; or there are no routes.
    Route(Option<usize>),
    /// A silence of what is critical, or of everything, begins; or all end.
    Silence(Option<bool>),
    /// The interval in which the route of what is critical is mute begins, or ends.
    Mute(bool),
    /// The agent has other labels from now on, or is forgotten.
    Relabel(Option<bool>),
}

fn act() -> impl Strategy<Value = Act> {
    let severity = || prop_oneof![Just(Warning), Just(Critical)];
    let kind = prop_oneof![
        Just(Opened),
        Just(Worsened),
        Just(Eased),
        Just(Updated),
        Just(Refreshed),
        Just(Resolved),
        Just(Resolved)
    ];
    prop_oneof![
        6 => (kind, severity()).prop_map(|(kind, severity)| Act::Change(kind, severity)),
        4 => (0..2_usize, proptest::option::of(any::<bool>())).prop_map(|(receiver, heard)| Act::Attempt(receiver, heard)),
        1 => Just(Act::Restart),
        1 => (severity(), severity()).prop_map(|(a, b)| Act::Configure(a, b)),
        1 => proptest::option::of(0..2_usize).prop_map(Act::Route),
        2 => proptest::option::of(any::<bool>()).prop_map(Act::Silence),
        2 => any::<bool>().prop_map(Act::Mute),
        1 => proptest::option::of(any::<bool>()).prop_map(Act::Relabel),
    ]
}

/// What is critical leads to one, everything else to the other.
fn by_severity(critical: &str, other: &str) -> Route {
    let route = |receiver: &str, matchers, routes, mute: &[&str]| Route {
        at: receiver.to_owned(),
        path: receiver.to_owned(),
        receiver: receiver.to_owned(),
        matchers,
        goes_on: false,
        routes,
        grouping: None,
        mute: mute.iter().map(|it| (*it).to_owned()).collect(),
        active: Vec::new(),
        escalate: Vec::new(),
    };
    let matcher: Matcher = "severity=critical".parse().expect("a matcher");
    route(other, Vec::new(), vec![route(critical, vec![matcher], Vec::new(), &["off"])], &[])
}

/// The tables that the ledger writes, and what two people have heard.
#[derive(Default)]
struct World {
    state: State,
    decisions: Vec<DecisionRow>,
    outbox: Vec<OutboxRow>,
    /// Per receiver whether the last it heard, or may have heard, is that it fires.
    may_believe: BTreeMap<String, bool>,
    firing: bool,
    epoch: u64,
    severity: Option<Severity>,
    silences: Vec<SilenceRow>,
    withheld: BTreeMap<String, WithheldRow>,
    agent: Option<AgentRow>,
    heard: BTreeMap<String, HeardRow>,
    /// What an Alertmanager holds for firing that got every message.
    alerts: BTreeSet<Known>,
}

/// The second is an Alertmanager.
const NAMES: [&str; 2] = ["ops", "pager"];

impl World {
    fn change(&mut self, wished: ChangeKind, severity: Severity, policy: &Policy) {
        // The state machine of incidents gives only these.
        let kind = match (self.firing, wished) {
            (false, _) if self.epoch == 0 => Opened,
            (false, _) => Reopened,
            (true, Opened) => Updated,
            (true, kind) => kind,
        };
        self.firing = kind != Resolved;
        if kind != Refreshed {
            self.severity = Some(severity);
        }
        self.epoch += u64::from(kind != Refreshed);
        let now = self.now();
        let silenced = self.silences.iter().any(|it| {
            Silence::new(it.clone()).is_ok_and(|it| it.matches(&facts(&change(kind, severity, 1).incident, None)))
        });
        let agent = self.agent.clone();
        for decision in self.state.decide(&change(kind, severity, self.epoch), agent.as_ref(), policy, now) {
            let same =
                |it: &DecisionRow| it.receiver == decision.row.receiver && it.state_epoch == decision.row.state_epoch;
            assert!(!self.decisions.iter().any(same), "decided twice");
            let row = &decision.row;
            assert!(!silenced || !row.told || kind == Resolved, "told in a silence: {row:?}");
            let facts = facts(&change(kind, severity, 1).incident, None);
            let is_mute = policy.way(&row.receiver, &facts, now).1.is_some();
            assert!(!is_mute || !row.told || kind == Resolved, "told by a route that is mute: {row:?}");
            match &decision.withheld {
                Withheld::Put(it) => {
                    self.withheld.insert(row.receiver.clone(), it.clone());
                }
                Withheld::Gone => {
                    assert!(self.withheld.remove(&row.receiver).is_some(), "nothing was held back: {row:?}")
                }
                Withheld::Nothing => (),
            }
            self.decisions.push(decision.row);
            for row in self.outbox.iter_mut().filter(|it| decision.supersedes.contains(&it.id)) {
                assert_eq!(row.state, MessageState::Waiting);
                if row.uncertain == 0 {
                    row.state = MessageState::Superseded;
                }
            }
            if let Some(message) = decision.message {
                assert!(self.outbox.iter().all(|it| it.id < message.id), "ids are in order of decision");
                if message.receiver == NAMES[1] {
                    self.hears(&message);
                }
                self.outbox.push(message);
            }
        }
        for ((_, incident), receiver, row) in self.state.take_unsaved_heard() {
            assert_eq!(
                (incident, &*receiver),
                (change(kind, severity, 1).incident.id, NAMES[1]),
                "others know no alert"
            );
            match row {
                Some(row) => drop(self.heard.insert(receiver, row)),
                None => assert!(self.heard.remove(&receiver).is_some(), "nothing was kept"),
            }
        }
        // What is refreshed is what it holds, and nothing else.
        let known: BTreeSet<_> = self.heard.values().map(|it| it.labels.clone()).collect();
        assert_eq!(known, self.alerts);
        assert_eq!(self.alerts.len(), usize::from(self.believes(NAMES[1])), "{:?}", self.alerts);
    }

    /// What a message to an Alertmanager leaves there.
    fn hears(&mut self, message: &OutboxRow) {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Alert {
            labels: Known,
            ends_at: Option<Timestamp>,
        }
        let before = self.alerts.clone();
        for alert in serde_json::from_slice::<Vec<Alert>>(&message.body).expect("alerts") {
            match alert.ends_at {
                Some(_) => assert!(self.alerts.remove(&alert.labels), "the end of what never was: {:?}", alert.labels),
                None => drop(self.alerts.insert(alert.labels)),
            }
        }
        let severity = |it: &Known| it["severity"].clone();
        let others: Vec<_> = self.alerts.difference(&before).map(severity).collect();
        assert!(before.iter().all(|it| !others.contains(&severity(it))), "people are told twice: {before:?}");
    }

    fn now(&self) -> Timestamp {
        at(self.epoch as i64 / 3)
    }

    /// Whether the last that was queued for it is that it fires.
    fn believes(&self, receiver: &str) -> bool {
        let told = self.decisions.iter().rfind(|it| it.receiver == receiver && it.told);
        told.is_some_and(|it| it.kind != "incident.resolved")
    }

    fn silence(&mut self, begins: Option<bool>, policy: &Policy) {
        let row = |number: usize, critical: bool| {
            silence(&format!("sil_{number}"), if critical { "severity=critical" } else { "check=~\".+\"" })
        };
        match begins {
            Some(critical) => {
                // Its id is of its own among those that ended, too.
                self.silences.push(row(self.decisions.len() * 100 + self.silences.len(), critical));
                self.load_silences();
            }
            None => {
                let now = self.now();
                self.silences.iter_mut().for_each(|it| it.ends_at = now);
                self.load_silences();
                self.silences.clear();
            }
        }
        self.tick(policy);
    }

    /// What the ledger does each second.
    fn tick(&mut self, policy: &Policy) {
        for lapse in self.state.lapses(policy, self.now()) {
            assert!(self.firing || lapse.incidents.is_empty(), "nothing is held back of what is over");
            if !lapse.incidents.is_empty() {
                self.change(Reconsidered, self.severity.expect("it fires"), policy);
            }
        }
    }

    fn load_silences(&mut self) {
        let silences = self.silences.iter().map(|it| Silence::new(it.clone()).expect("sound"));
        self.state.silence(silences.collect());
    }

    fn attempt(&mut self, receiver: &str, heard: Option<bool>) -> bool {
        let next = |it: &&mut OutboxRow| it.receiver == receiver && it.state == MessageState::Waiting;
        let Some(row) = self.outbox.iter_mut().find(next) else { return false };
        row.attempts += 1;
        if heard != Some(false) {
            self.may_believe.insert(receiver.into(), row.kind != "incident.resolved");
        }
        match heard {
            Some(true) => {
                row.state = MessageState::Delivered;
                let row = row.clone();
                self.state.settled(&row);
            }
            Some(false) => (),
            None => row.uncertain += 1,
        }
        true
    }

    fn restart(&mut self, policy: &Policy) {
        let mut told: BTreeMap<String, DecisionRow> = BTreeMap::new();
        for row in self.decisions.iter().filter(|it| it.told) {
            told.insert(row.receiver.clone(), row.clone());
        }
        let waiting = self.outbox.iter().filter(|it| it.state == MessageState::Waiting).cloned().collect();
        let withheld = self.withheld.values().cloned().collect();
        let heard = self.heard.values().cloned().collect();
        self.state = State::load(told.into_values().collect(), waiting).with_withheld(withheld).with_heard(heard);
        self.load_silences();
        if let Some(severity) = self.severity.filter(|_| self.firing) {
            let incident = change(Updated, severity, self.epoch).incident;
            let agent = self.agent.as_ref();
            self.state.look_for_strays([(&incident, agent)].into_iter(), policy, false, self.now());
        }
    }

    /// Whoever it leads to now, and who is kept from hearing of it by nobody, was told.
    fn nobody_missed_it(&self, policy: &Policy) {
        let Some(severity) = self.severity.filter(|_| self.firing) else { return };
        let incident = change(Updated, severity, self.epoch).incident;
        let facts = facts(&incident, None);
        let is_silenced =
            self.silences.iter().any(|it| Silence::new(it.clone()).is_ok_and(|silence| silence.matches(&facts)));
        for receiver in &policy.receivers {
            let (way, mute) = policy.way(&receiver.name, &facts, self.now());
            let hears = verdict::deaf(&incident, receiver, way).is_none() && mute.is_none() && !is_silenced;
            assert!(!hears || self.believes(&receiver.name), "{} never heard of it", receiver.name);
        }
    }
}

proptest! {
    #[test]
    fn whoever_may_believe_that_it_fires_hears_that_it_is_over(acts in proptest::collection::vec(act(), 1..80)) {
        let mut policy = Policy::from(NAMES.map(Receiver::new).to_vec());
        policy.receivers[1].form = Form::Alertmanager;
        let mut world = World::default();
        for act in acts {
            match act {
                Act::Change(kind, severity) => world.change(kind, severity, &policy),
                Act::Attempt(receiver, heard) => { world.attempt(NAMES[receiver], heard); }
                Act::Restart => world.restart(&policy),
                Act::Configure(ops, pager) => {
                    policy.receivers[0].min_severity = ops;
                    policy.receivers[1].min_severity = pager;
                    world.restart(&policy);
                }
                Act::Route(critical) => {
                    policy.route = critical.map(|it| by_severity(NAMES[it], NAMES[1 - it]));
                    world.restart(&policy);
                }
                Act::Silence(begins) => world.silence(begins, &policy),
                Act::Mute(begins) => {
                    let window = Window { name: "off".into(), spans: vec![Span::default()] };
                    policy.windows = begins.then_some(window).into_iter().collect();
                }
                Act::Relabel(labels) => {
                    let own = |it| Labels::try_from(BTreeMap::from([("on".to_owned(), format!("{it}"))])).expect("labels");
                    world.agent = labels.map(|it| AgentRow { own_labels: own(it), ..an_agent() });
                }
            }
            world.tick(&policy);
            world.nobody_missed_it(&policy);
        }
        policy.windows.clear();
        world.silence(None, &policy);
        world.nobody_missed_it(&policy);
        prop_assert!(world.withheld.is_empty(), "{:?} are held back by nothing", world.withheld);
        if world.firing {
            world.change(Resolved, Warning, &policy);
        }
        for name in NAMES {
            while world.attempt(name, Some(true)) {}
            prop_assert_ne!(world.may_believe.get(name), Some(&true), "{} still believes", name);
            let kinds: Vec<_> = world.outbox.iter().filter(|it| it.receiver == name).map(|it| it.kind.as_str()).collect();
            prop_assert_ne!(kinds.first(), Some(&"incident.resolved"), "a resolve without a firing before it");
        }
    }
}

#[test]
fn a_letter_has_what_is_wrong_its_proof_and_where_it_belongs_and_one_line_is_one_line() {
    let mut incident = incident("pool.leak", Severity::Critical, 1);
    incident.evidence =
        r#"{"open":20,"limit":null,"idle":true,"sessions":[{"pid":7,"held":"90 s"},{"pid":8}],"names":["a","b"]}"#
            .into();
    incident.advice = Some("close them\r\nBcc: everybody@example.org".into());
    let told = message::Told {
        id: "msg_1",
        kind: "incident.firing",
        receiver: "desk",
        reason: "it began",
        incident: &incident,
        agent: None,
        acknowledged: None,
        known: None,
        decided_at: at(2),
    };
    let letter = Letter::read(&told.render(&Form::Email), at(9));
    assert_eq!(letter.subject, "[FIRING] critical pool.leak of pool:shop");
    assert_eq!((letter.thread.as_deref(), letter.decided_at), (Some(&*incident.id), at(2)));
    insta::assert_snapshot!(letter.text, @r#"
    14 of 20 held

    what      pool.leak, critical, firing
    where     pool:shop
    since     2026-09-21 14:13:20 UTC
    priority  4 = impact 5 (outage) x probability 0.8
    incident  01JCZZZZZZZZZZZZZZZZZZZZZZ

    What to do: close them  Bcc: everybody@example.org

    Proof:
      idle: yes
      limit: not known
      names: a, b
      open: 20
      sessions:
        - held 90 s, pid 7
        - pid 8

    Told to desk: it began.
    Who else was told, and why: tickbird-collector explain 01JCZZZZZZZZZZZZZZZZZZZZZZ
    Message msg_1
    "#);
    let evidence = format!("{{\"list\":[{}]}}", vec!["{\"pid\":1}"; 5_000].join(","));
    let crowded = IncidentRow { evidence, ..incident.clone() };
    let long = Letter::read(&message::Told { incident: &crowded, ..told }.render(&Form::Email), at(9));
    assert!(long.text.contains("and 4990 more") && long.text.len() < 2_000, "{}", long.text);
}

#[test]
fn an_alert_is_known_by_its_incident_and_ends_as_what_it_was_where_its_severity_changed() {
    let render = |kind: &str, incident: &IncidentRow, known: Option<&Known>| -> Vec<serde_json::Value> {
        let (agent, reason) = (an_agent(), "it began");
        let told = message::Told {
            id: "msg_1",
            kind,
            receiver: "am",
            reason,
            incident,
            agent: Some(&agent),
            acknowledged: None,
            known,
            decided_at: at(60),
        };
        serde_json::from_slice(&told.render(&Form::Alertmanager)).expect("a list")
    };
    let mut incident = incident("pool.leak", Severity::Critical, 1);
    let firing = render("incident.firing", &incident, None);
    assert_eq!(firing.len(), 1, "of what never was no end is told");
    let labels = &firing[0]["labels"];
    let told = ["alertname", "severity", "incident", "service"].map(|it| labels[it].as_str().unwrap_or_default());
    assert_eq!(told, ["pool.leak", "critical", &incident.id, "grants-api"]);
    assert!(firing[0]["endsAt"].is_null() && labels["sub_key"].is_null(), "{firing:?}");
    let before = IncidentRow { severity: Severity::Warning, ..incident.clone() };
    let before = render("incident.firing", &before, None)[0]["labels"].clone();
    let before: Known = serde_json::from_value(before).expect("labels");
    let worse = render("incident.worsened", &incident, Some(&before));
    let ends: Vec<_> = worse.iter().map(|it| (&it["labels"]["severity"], it["endsAt"].is_null())).collect();
    assert_eq!(ends, [(&"critical".into(), true), (&"warning".into(), false)]);
    let rows = vec![incident.clone(); 1_200];
    let requests = refresh(rows.iter().map(|it| (it, None, Some(before.clone()))), at(240));
    let read = |it: &[u8]| serde_json::from_slice::<Vec<serde_json::Value>>(it).expect("a list");
    assert_eq!(requests.iter().map(|it| read(it).len()).collect::<Vec<_>>(), [500, 500, 200]);
    let first = &read(&requests[0])[0];
    assert_eq!((&first["endsAt"], &first["labels"]["severity"]), (&at(240).to_string().into(), &"warning".into()));
    assert_eq!(requests_of(&requests.join(&b'\n')).flat_map(read).count(), 1_200, "a message of several requests");
    (incident.status, incident.resolved_at) = (Status::Resolved, Some(at(30)));
    for known in [None, Some(&before)] {
        let over = render("incident.resolved", &incident, known);
        assert_eq!((over.len(), &over[0]["endsAt"]), (1, &at(30).to_string().into()));
        let labels = known.map_or(firing[0]["labels"].clone(), |it| serde_json::json!(it));
        assert_eq!(over[0]["labels"], labels, "the same alert, though it got worse unsaid");
    }
}
