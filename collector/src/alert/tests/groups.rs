//! Incidents that are told together: moment by moment, then random histories with what a person would have to say of them.

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::super::{By, Flush, Found, Grouping};
use super::*;

const WAIT: i64 = 3;
const INTERVAL: i64 = 10;
const REPEAT: i64 = 60;

fn seconds(count: i64) -> Duration {
    Duration::from_secs(count.unsigned_abs())
}

fn grouping() -> Grouping {
    let repeat = [(Warning, seconds(REPEAT)), (Critical, seconds(REPEAT / 2))].into();
    Grouping { by: By::Labels(vec!["target".into()]), wait: seconds(WAIT), interval: seconds(INTERVAL), repeat }
}

/// Everything leads to one receiver by one route.
fn policy(grouping: Option<Grouping>) -> Policy {
    let route = Route {
        at: "route".into(),
        path: "{}".into(),
        receiver: "ops".into(),
        matchers: Vec::new(),
        goes_on: false,
        routes: Vec::new(),
        grouping,
        mute: vec!["night".into()],
        active: Vec::new(),
    };
    Policy { route: Some(route), ..Policy::from(vec![Receiver::new("ops")]) }
}

/// The tables that the ledger writes, and four incidents: two of each of two targets.
struct Ward {
    policy: Policy,
    state: State,
    rows: Vec<IncidentRow>,
    decisions: Vec<DecisionRow>,
    groups: BTreeMap<String, GroupRow>,
    outbox: Vec<OutboxRow>,
    withheld: BTreeMap<String, WithheldRow>,
    silences: Vec<SilenceRow>,
    /// Silences so far.
    begun: u32,
    second: i64,
    /// When a route that does not group was last there.
    ungrouped_at: i64,
    /// Of each incident since when it is as it is, and nothing holds it back.
    steady_since: [i64; 4],
}

impl Ward {
    fn new(policy: Policy) -> Self {
        let row = |number: usize| IncidentRow {
            id: format!("01JCZZZZZZZZZZZZZZZZZZZZZ{number}"),
            fingerprint: Fingerprint::of("default", "a", "pool.leak", "pool:shop", Some(&number.to_string())),
            sub_key: Some(number.to_string()),
            target: if number < 2 { "pool:shop" } else { "pool:till" }.into(),
            status: Status::Resolved,
            ..incident(if number.is_multiple_of(2) { "pool.leak" } else { "pool.exhausted" }, Warning, 0)
        };
        Self {
            policy,
            state: State::default(),
            rows: (0..4).map(row).collect(),
            decisions: Vec::new(),
            groups: BTreeMap::new(),
            outbox: Vec::new(),
            withheld: BTreeMap::new(),
            silences: Vec::new(),
            begun: 0,
            second: 0,
            ungrouped_at: i64::MIN / 2,
            steady_since: [0; 4],
        }
    }

    fn fires(&self, number: usize) -> bool {
        self.rows[number].status == Status::Firing
    }

    fn is_silenced(&self, row: &IncidentRow) -> bool {
        let matches = |it: &SilenceRow| Silence::new(it.clone()).is_ok_and(|it| it.matches(&facts(row, None)));
        self.silences.iter().any(|it| it.ends_at > at(self.second) && matches(it))
    }

    fn is_mute(&self) -> bool {
        !self.policy.windows.is_empty()
    }

    fn change(&mut self, number: usize, kind: ChangeKind, severity: Severity) {
        let row = &mut self.rows[number];
        row.state_epoch += 1;
        row.severity = severity;
        row.status = if kind == Resolved { Status::Resolved } else { Status::Firing };
        let change = IncidentChange { incident: row.clone(), kind, reason: format!("{kind:?}") };
        self.steady_since[number] = self.second;
        for decision in self.state.decide(&change, None, &self.policy, at(self.second)) {
            let row = decision.row;
            let key = |it: &DecisionRow| (it.incident.clone(), it.receiver.clone(), it.state_epoch);
            let same = |it: &DecisionRow| key(it) == key(&row);
            assert!(!self.decisions.iter().any(same), "decided twice: {row:?}");
            if let Some(why) = decision.ungathers {
                assert!(self.ungather(&row.incident, &why) > 0, "nothing waited: {row:?}");
            }
            match decision.withheld {
                Withheld::Put(held) => drop(self.withheld.insert(row.incident.clone(), held)),
                Withheld::Gone => assert!(self.withheld.remove(&row.incident).is_some()),
                Withheld::Nothing => (),
            }
            if let Some(group) = decision.group {
                self.groups.insert(group.id.clone(), group);
            }
            self.decisions.push(row);
            self.supersede(&decision.supersedes);
            self.outbox.extend(decision.message);
        }
        if kind == Resolved {
            self.withheld.remove(&self.rows[number].id);
        }
    }

    fn ungather(&mut self, incident: &str, why: &str) -> usize {
        let waits = |it: &&mut DecisionRow| it.incident == incident && !it.told && it.message.is_some();
        let mut count = 0;
        for row in self.decisions.iter_mut().filter(waits) {
            (row.message, row.in_group) = (None, None);
            row.reason = format!("{}; {why}", row.reason);
            count += 1;
        }
        count
    }

    fn supersede(&mut self, ids: &[String]) {
        for row in self.outbox.iter_mut().filter(|it| ids.contains(&it.id)) {
            assert_eq!(row.state, MessageState::Waiting);
            if row.uncertain == 0 {
                row.state = MessageState::Superseded;
            }
        }
    }

    /// One second, as the ledger has it.
    fn tick(&mut self) {
        self.second += 1;
        let now = at(self.second);
        if self.policy.route.as_ref().is_none_or(|it| it.grouping.is_none()) {
            self.ungrouped_at = self.second;
        }
        for lapse in self.state.lapses(&self.policy, now) {
            if lapse.ends_silence {
                self.silences.retain(|it| it.id != lapse.holder);
            }
            for number in 0..4 {
                if lapse.incidents.contains(&self.rows[number].id) && self.fires(number) {
                    self.change(number, Reconsidered, self.rows[number].severity);
                }
            }
        }
        let rows = &self.rows;
        let find = |(_, id): &IncidentKey, fingerprint: Option<Fingerprint>| {
            let found = rows.iter().find(|it| it.id == *id);
            assert!(fingerprint.is_none() || fingerprint == found.map(|it| it.fingerprint));
            Ok::<_, Infallible>(found.map(|it| -> Found<'_> { (Cow::Borrowed(it), None) }))
        };
        let Ok(flushes) = self.state.flush(&self.policy, now, find);
        for flush in flushes {
            self.write(flush);
        }
    }

    fn write(&mut self, flush: Flush) {
        for (incident, why) in &flush.ungathered {
            assert!(self.ungather(incident, why) > 0, "nothing waited: {incident}");
        }
        for row in flush.withheld {
            self.withheld.insert(row.incident.clone(), row);
        }
        if let Some(message) = flush.gathered_for {
            for row in self.decisions.iter_mut().filter(|it| it.message.as_ref() == Some(&message)) {
                assert!(!row.told, "told twice: {row:?}");
                row.told = true;
            }
            assert_eq!(flush.message.as_ref().map(|it| &it.id), Some(&message), "what waited for it is told with it");
        }
        self.supersede(&flush.supersedes);
        if let Some(message) = flush.message {
            let before = self.outbox.iter().rfind(|it| it.incident == message.incident);
            assert!(before.is_none_or(|it| it.id < message.id), "a message of a group follows the one before");
            let least = before.map_or(i64::MAX, |it| message.decided_at.as_second() - it.decided_at.as_second());
            let is_grouped = self.second - self.ungrouped_at > WAIT;
            assert!(least.abs() >= WAIT || !is_grouped, "two messages of a group within {least} s");
            for (number, change) in changes(&message) {
                let news = ["incident.firing", "incident.worsened", "incident.updated"].contains(&&*change);
                let row = &self.rows[number];
                assert!(!news || self.fires(number), "told to fire, and does not: {number}");
                assert!(!news || !self.is_silenced(row), "told though it is silenced: {number}");
                assert!(!news || !self.is_mute(), "told by a route that is mute: {number}");
            }
            self.outbox.push(message);
        }
        if flush.is_over {
            self.groups.remove(&flush.group.id);
        } else {
            self.groups.insert(flush.group.id.clone(), flush.group);
        }
    }

    fn pass(&mut self, seconds: i64) {
        (0..seconds).for_each(|_| self.tick());
    }

    fn restart(&mut self) {
        let mut told: BTreeMap<_, DecisionRow> = BTreeMap::new();
        for row in self.decisions.iter().filter(|it| it.told) {
            told.insert((row.incident.clone(), row.receiver.clone()), row.clone());
        }
        let waiting = self.outbox.iter().filter(|it| it.state == MessageState::Waiting).cloned().collect();
        let gathered: Vec<_> = self.decisions.iter().filter(|it| !it.told && it.message.is_some()).cloned().collect();
        let groups = self.groups.values().cloned().collect();
        self.state = State::load(told.into_values().collect(), waiting)
            .after(self.outbox.last().map(|it| it.id.as_str()))
            .with_withheld(self.withheld.values().cloned().collect())
            .with_groups(groups, &gathered, self.rows.iter(), &self.policy, at(self.second));
        self.load_silences();
    }

    fn load_silences(&mut self) {
        self.state.silence(self.silences.iter().map(|it| Silence::new(it.clone()).expect("sound")).collect());
    }

    fn silence(&mut self, matcher: Option<&str>) {
        match matcher {
            Some(matcher) => {
                self.begun += 1;
                let id = format!("sil_{}", self.begun);
                self.silences.push(silence(&id, matcher));
            }
            None => {
                let now = at(self.second);
                self.silences.iter_mut().for_each(|it| it.ends_at = it.ends_at.min(now));
            }
        }
        self.steady_since = [self.second; 4];
        self.load_silences();
    }

    /// The last that was queued of an incident: whether it fires.
    fn is_told_to_fire(&self, number: usize) -> bool {
        let mut fires = false;
        for row in self.outbox.iter().filter(|it| it.state != MessageState::Superseded) {
            for (_, change) in changes(row).into_iter().filter(|it| it.0 == number) {
                fires = change != "incident.resolved";
            }
        }
        fires
    }

    fn kinds(&self) -> Vec<&str> {
        self.outbox.iter().map(|it| it.kind.as_str()).collect()
    }
}

fn body(row: &OutboxRow) -> Value {
    serde_json::from_slice(&row.body).expect("JSON")
}

/// What a message says of which incident.
fn changes(row: &OutboxRow) -> Vec<(usize, String)> {
    let body = body(row);
    let number = |id: &Value| id.as_str().and_then(|it| it.chars().last()?.to_digit(10)).expect("an id") as usize;
    let Some(members) = body["incidents"].as_array() else {
        return vec![(number(&body["incident"]["id"]), row.kind.clone())];
    };
    let of = |it: &Value| (number(&it["incident"]["id"]), it["change"].as_str().expect("a change").to_owned());
    members.iter().map(of).collect()
}

#[test]
fn the_first_message_waits_for_others_and_the_next_for_the_interval() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(2);
    ward.change(1, Opened, Critical);
    ward.change(2, Opened, Warning);
    assert_eq!(ward.kinds(), [""; 0], "group_wait is not over");
    ward.pass(1);
    assert_eq!(ward.kinds(), ["group.firing"], "of one target; the other one's wait has begun later");
    let said = body(&ward.outbox[0]);
    assert_eq!(said["group"]["labels"], serde_json::json!({ "target": "pool:shop" }));
    assert_eq!(said["group"]["summary"], "2 firing: 1 pool.exhausted of pool:shop, 1 pool.leak of pool:shop");
    assert_eq!((&said["group"]["severity"], &said["group"]["firing"]), (&"critical".into(), &2.into()));
    let listed: Vec<_> =
        said["incidents"].as_array().expect("a list").iter().map(|it| &it["incident"]["check"]).collect();
    assert_eq!(listed, ["pool.exhausted", "pool.leak"], "the gravest first");
    ward.pass(2);
    assert_eq!(ward.kinds(), ["group.firing", "group.firing"]);

    // What follows waits for the interval, whatever it is.
    ward.change(0, Resolved, Warning);
    ward.pass(INTERVAL - WAIT);
    assert_eq!(ward.kinds().len(), 2);
    ward.pass(WAIT);
    assert_eq!(ward.kinds()[2..], ["group.updated"]);
    assert_eq!(changes(&ward.outbox[2]), [(0, "incident.resolved".into()), (1, "unchanged".into())]);
    ward.change(1, Resolved, Critical);
    ward.pass(INTERVAL);
    assert_eq!(ward.kinds()[3..], ["group.resolved"]);
    assert_eq!(body(&ward.outbox[3])["group"]["status"], "resolved");
    assert_eq!(ward.groups.len(), 1, "a group of which nothing fires is over");
}

#[test]
fn what_clears_before_its_group_is_told_is_not_told_and_says_so() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.change(1, Opened, Warning);
    ward.pass(1);
    ward.change(0, Resolved, Warning);
    ward.pass(WAIT);
    assert_eq!(changes(&ward.outbox[0]), [(1, "incident.firing".into())]);
    let reasons: Vec<_> = ward.decisions.iter().map(|it| it.reason.as_str()).collect();
    let over = "Opened, by route; it was over before its group was told";
    assert_eq!(reasons, [over, "Opened, by route", "was not told that it fires"]);
    // All of it cleared: nobody hears anything.
    ward.change(2, Opened, Warning);
    ward.change(2, Resolved, Warning);
    ward.pass(REPEAT / 2);
    assert_eq!(ward.outbox.len(), 1);
    assert_eq!(ward.groups.len(), 1);
}

#[test]
fn a_group_is_told_again_while_something_of_it_fires_and_what_is_critical_more_often() {
    for (severity, repeat) in [(Warning, REPEAT), (Critical, REPEAT / 2)] {
        let mut ward = Ward::new(policy(Some(grouping())));
        ward.change(0, Opened, severity);
        ward.pass(WAIT + repeat - 1);
        assert_eq!(ward.kinds(), ["group.firing"]);
        ward.restart();
        ward.pass(1);
        assert_eq!(ward.kinds(), ["group.firing", "group.repeated"], "also when a restart was between");
        assert_eq!(changes(&ward.outbox[1]), [(0, "unchanged".into())]);
        // While it is silenced it is not, and after it at the next look.
        ward.silence(Some("check=pool.leak"));
        ward.pass(2 * repeat);
        assert_eq!(ward.outbox.len(), 2);
        ward.silence(None);
        ward.pass(INTERVAL);
        assert_eq!(ward.kinds()[2..], ["group.repeated"]);
        assert_eq!(ward.outbox[1].state, MessageState::Superseded, "nobody heard it, and the newer one says the same");
        ward.change(0, Resolved, severity);
        ward.pass(INTERVAL);
        assert_eq!(ward.kinds()[3..], ["group.resolved"]);
        ward.pass(2 * repeat);
        assert_eq!(ward.outbox.len(), 4, "nothing fires");
    }
}

#[test]
fn what_is_silenced_within_the_wait_is_held_back_and_told_with_its_group_afterwards() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.change(1, Opened, Warning);
    ward.silence(Some("check=pool.leak"));
    ward.pass(WAIT);
    assert_eq!(changes(&ward.outbox[0]), [(1, "incident.firing".into())]);
    assert!(ward.decisions[0].reason.contains("; silenced until"), "{:?}", ward.decisions[0]);
    assert!(!ward.decisions[0].told && ward.decisions[1].told);
    ward.silence(None);
    ward.pass(INTERVAL + 1);
    assert_eq!(changes(&ward.outbox[1]), [(0, "incident.firing".into()), (1, "unchanged".into())]);
}

#[test]
fn the_end_goes_to_the_group_that_heard_of_it_whatever_the_routes_say() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    let group = ward.outbox[0].incident.clone();
    ward.policy = policy(None);
    ward.restart();
    ward.change(0, Resolved, Warning);
    ward.pass(1);
    assert_eq!(ward.kinds(), ["group.firing", "group.resolved"], "there is nothing to wait for any more");
    assert_eq!(ward.outbox[1].incident, group);
    assert!(ward.groups.is_empty());

    // What gets worse by a route that does not group is told at once, in the thread that has heard of it, and ends there.
    ward.policy = policy(Some(grouping()));
    ward.restart();
    ward.change(0, Reopened, Warning);
    ward.pass(WAIT);
    ward.policy = policy(None);
    ward.restart();
    ward.change(0, Worsened, Critical);
    ward.restart();
    ward.pass(1);
    assert_eq!(changes(&ward.outbox[3]), [(0, "incident.worsened".into())]);
    ward.restart();
    ward.change(0, Resolved, Critical);
    ward.pass(1);
    assert_eq!(ward.kinds()[2..], ["group.firing", "group.firing", "group.resolved"]);
    assert!(ward.outbox.iter().all(|it| it.incident == group));
    assert!(ward.groups.is_empty());
}

#[test]
fn what_waits_for_a_receiver_that_is_gone_waits_for_a_week_and_the_record_says_so() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.change(2, Opened, Warning);
    ward.pass(WAIT);
    ward.change(0, Updated, Warning);
    ward.change(2, Resolved, Warning);
    ward.policy = Policy::from(vec![Receiver::new("desk")]);
    ward.restart();
    ward.pass(INTERVAL);
    assert_eq!((ward.outbox.len(), ward.groups.len()), (2, 2));
    // It was taken out by mistake.
    ward.policy = policy(Some(grouping()));
    ward.restart();
    ward.pass(WAIT);
    assert_eq!(ward.kinds()[2..], ["group.updated", "group.resolved"]);

    ward.change(0, Resolved, Warning);
    ward.policy = Policy::from(vec![Receiver::new("desk")]);
    ward.restart();
    for _ in 0..8 {
        ward.second += 24 * 3_600;
        ward.restart();
        ward.pass(1);
    }
    assert!(ward.outbox.len() == 4 && ward.groups.is_empty());
    let last = ward.decisions.iter().rfind(|it| it.receiver == "ops").expect("one");
    assert_eq!(last.reason, "Resolved; the receiver is not configured any more");
}

#[test]
fn what_fires_and_is_held_back_now_keeps_a_group_from_being_over() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.change(1, Opened, Warning);
    ward.pass(WAIT);
    ward.silence(Some("check=pool.leak"));
    ward.change(1, Resolved, Warning);
    ward.pass(INTERVAL);
    assert_eq!(ward.kinds()[1..], ["group.updated"]);
    let said = body(&ward.outbox[1]);
    assert_eq!((&said["group"]["status"], &said["group"]["held"]), (&"firing".into(), &1.into()));
    let summary = "1 firing (1 of them held back), 1 resolved: 1 pool.exhausted of pool:shop";
    assert_eq!(said["group"]["summary"], summary);
}

#[test]
fn a_clock_that_was_ahead_puts_off_neither_news_nor_repeats_for_long() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.second += 365 * 24 * 3_600;
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    ward.change(1, Opened, Warning);
    ward.second -= 365 * 24 * 3_600;
    ward.pass(INTERVAL);
    assert_eq!(ward.kinds(), ["group.firing", "group.firing"]);
    ward.second -= 3_600;
    ward.pass(2 * REPEAT);
    assert_eq!(ward.kinds()[2..], ["group.repeated"], "with the time of now");
}

#[test]
fn news_in_the_thread_of_another_route_waits_no_longer_than_its_own_route_lets_it() {
    let mut ward = Ward::new(policy(Some(grouping())));
    let quick = Grouping { wait: seconds(1), ..grouping() };
    let route = ward.policy.route.as_mut().expect("a route");
    let matchers = vec!["severity=critical".parse().expect("a matcher")];
    let child = Route { path: "{}/{critical}".into(), matchers, grouping: Some(quick), ..route.clone() };
    route.routes.push(child);
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    ward.ungrouped_at = ward.second; // messages of this thread may be closer than its own wait
    ward.change(0, Worsened, Critical);
    ward.pass(1);
    assert_eq!(changes(&ward.outbox[1]), [(0, "incident.worsened".into())]);
    assert_eq!(ward.outbox[0].incident, ward.outbox[1].incident);
}

#[test]
fn what_the_collector_says_of_itself_does_not_wait() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.rows[0].agent = "collector".into();
    ward.change(0, Opened, Critical);
    ward.pass(1);
    assert_eq!(ward.kinds(), ["group.firing"]);
}

#[test]
fn an_end_of_what_fires_again_is_not_told_and_its_receiver_goes_on_believing() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    ward.change(0, Resolved, Warning);
    // It is not configured for as long as the incident needs to come back.
    let before = std::mem::replace(&mut ward.policy, Policy::from(vec![Receiver::new("desk")]));
    ward.restart();
    ward.change(0, Reopened, Warning);
    ward.policy = before;
    ward.restart();
    ward.pass(INTERVAL + WAIT);
    let to_ops = |ward: &Ward| {
        ward.outbox.iter().filter(|it| it.receiver == "ops").map(|it| it.kind.clone()).collect::<Vec<_>>()
    };
    assert_eq!(to_ops(&ward), ["group.firing"], "it has heard that it fires, and it does");
    ward.change(0, Resolved, Warning);
    ward.pass(INTERVAL);
    assert_eq!(to_ops(&ward), ["group.firing", "group.resolved"]);
}

#[test]
fn a_route_whose_matchers_are_others_tells_again_what_was_told_before() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    ward.policy.route.as_mut().expect("a route").path = "{}/{env=\"production\"}".into();
    ward.restart();
    ward.pass(REPEAT);
    assert_eq!(ward.kinds(), ["group.firing", "group.repeated"]);
}

#[test]
fn each_by_itself_is_a_group_of_one() {
    let each = Grouping { by: By::Each, wait: Duration::ZERO, ..grouping() };
    let mut ward = Ward::new(policy(Some(each)));
    (0..4).for_each(|number| ward.change(number, Opened, Warning));
    ward.pass(1);
    assert_eq!(ward.kinds(), ["group.firing"; 4]);
    let groups: BTreeSet<_> = ward.outbox.iter().map(|it| &it.incident).collect();
    assert_eq!(groups.len(), 4);
}

#[test]
fn of_many_some_are_told_in_full_more_are_named_and_all_are_counted() {
    let all = Grouping { by: By::Labels(Vec::new()), ..grouping() };
    let policy = policy(Some(all));
    let mut state = State::default();
    let rows: Vec<_> = (0..1_500)
        .map(|number| IncidentRow {
            id: format!("01JCZZZZZZZZZZZZZZZZZZ{number:04}"),
            fingerprint: Fingerprint::of("default", "a", "db.connect", "postgres:db-1", Some(&number.to_string())),
            sub_key: Some(format!("app-{number}")),
            target: "postgres:db-1".into(),
            ..incident("db.connect", if number == 1_400 { Critical } else { Warning }, 1)
        })
        .collect();
    for row in &rows {
        let change = IncidentChange { incident: row.clone(), kind: Opened, reason: "began".into() };
        assert!(state.decide(&change, None, &policy, at(0))[0].message.is_none());
    }
    let find = |(_, id): &IncidentKey, _: Option<Fingerprint>| {
        let found = rows.iter().find(|it| it.id == *id);
        Ok::<_, Infallible>(found.map(|it| -> Found<'_> { (Cow::Borrowed(it), None) }))
    };
    let Ok(flushes) = state.flush(&policy, at(WAIT), find);
    let said = body(flushes[0].message.as_ref().expect("told"));
    assert_eq!(said["group"]["summary"], "1500 firing: 1500 db.connect of postgres:db-1");
    assert_eq!(said["group"]["common"]["target"], "postgres:db-1", "what all have in common names the cause");
    assert!(said["group"]["common"].get("sub_key").is_none());
    let count = |list: &str| said[list].as_array().map_or(0, Vec::len);
    assert_eq!((count("incidents"), count("others"), &said["left_out"]), (100, 500, &900.into()));
    assert_eq!(said["incidents"][0]["incident"]["sub_key"], "app-1400", "what is critical is not left out");
    assert!(flushes[0].message.as_ref().is_some_and(|it| it.body.len() < 512 << 10));
}

#[derive(Debug, Clone)]
enum Step {
    Change(usize, ChangeKind, Severity),
    Pass(i64),
    Restart,
    Silence(Option<usize>),
    Mute(bool),
    Group(bool),
    Deliver,
}

fn step() -> impl Strategy<Value = Step> {
    let severity = prop_oneof![Just(Warning), Just(Critical)];
    let kind = prop_oneof![Just(Opened), Just(Worsened), Just(Eased), Just(Updated), Just(Resolved), Just(Resolved)];
    prop_oneof![
        8 => (0..4_usize, kind, severity).prop_map(|(number, kind, severity)| Step::Change(number, kind, severity)),
        6 => (0..20_i64).prop_map(Step::Pass),
        2 => Just(Step::Restart),
        2 => proptest::option::of(0..2_usize).prop_map(Step::Silence),
        1 => any::<bool>().prop_map(Step::Mute),
        1 => any::<bool>().prop_map(Step::Group),
        1 => Just(Step::Deliver),
    ]
}

proptest! {
    #[test]
    fn whoever_is_told_with_a_group_hears_in_time_and_hears_the_end(steps in proptest::collection::vec(step(), 1..60)) {
        let mut ward = Ward::new(policy(Some(grouping())));
        for step in steps {
            match step {
                Step::Change(number, wished, severity) => {
                    // The state machine of incidents gives only these.
                    let kind = match (ward.fires(number), wished) {
                        (false, Resolved) => continue,
                        (false, _) if ward.rows[number].state_epoch == 0 => Opened,
                        (false, _) => Reopened,
                        (true, Opened) => Updated,
                        (true, kind) => kind,
                    };
                    ward.change(number, kind, severity);
                }
                Step::Pass(seconds) => ward.pass(seconds),
                Step::Restart => ward.restart(),
                Step::Silence(number) => ward.silence(number.map(|it| ["check=pool.leak", "target=pool:till"][it])),
                Step::Mute(begins) => {
                    let window = Window { name: "night".into(), spans: vec![Span::default()] };
                    ward.policy.windows = begins.then_some(window).into_iter().collect();
                    ward.steady_since = [ward.second; 4];
                }
                Step::Group(groups) => {
                    let windows = std::mem::take(&mut ward.policy.windows);
                    ward.policy = Policy { windows, ..policy(groups.then(grouping)) };
                    ward.ungrouped_at = ward.second;
                    ward.restart();
                }
                Step::Deliver => {
                    if let Some(row) = ward.outbox.iter_mut().find(|it| it.state == MessageState::Waiting) {
                        row.state = MessageState::Delivered;
                        let row = row.clone();
                        ward.state.settled(&row);
                    }
                }
            }
            for row in &ward.decisions {
                let message = ward.outbox.iter().find(|it| Some(&it.id) == row.message.as_ref());
                prop_assert_eq!(row.told, message.is_some(), "told is what is queued: {:?}", row);
                if let Some(id) = row.in_group.as_ref().filter(|_| !row.told) {
                    let group = ward.groups.get(id).expect("what waits has its group");
                    prop_assert_eq!(&group.message, &row.message, "and waits for its next message");
                    prop_assert!(group.due_at.is_some());
                }
            }
            for number in 0..4 {
                let waited = ward.second - ward.steady_since[number] > WAIT + INTERVAL;
                let held = ward.is_silenced(&ward.rows[number]) || ward.is_mute();
                if waited && ward.fires(number) && !held {
                    prop_assert!(ward.is_told_to_fire(number), "{number} fires, and nobody knows");
                }
                if waited && !ward.fires(number) {
                    prop_assert!(!ward.is_told_to_fire(number), "{number} is over, and somebody believes it");
                }
            }
        }
        ward.policy.windows.clear();
        ward.silence(None);
        (0..4).for_each(|number| if ward.fires(number) { ward.change(number, Resolved, Warning) });
        ward.pass(WAIT + INTERVAL + 1);
        prop_assert!((0..4).all(|number| !ward.is_told_to_fire(number)));
        prop_assert!(ward.groups.is_empty() && ward.withheld.is_empty(), "{:?}", ward.groups);
    }
}
