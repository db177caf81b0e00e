//! Situations of rules, each with its healthy twin; what groups come to, against every subset there may be; and random histories.

use std::cell::Cell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;
use tickbird_shared::levels::{Amount, FORM, Levels, PoolLevel, ServerLevel, ServerName};
use tickbird_shared::{Epoch, Labels, Severity, Status};

use super::group::Group;
use super::series::{Kind, Source};
use super::*;
use crate::aggregate::{ChangeKind, Event, Flapping, State, rule_labels};
use crate::store::{FindingRow, LevelsRow};

const TENANT: &str = "default";
const NOTHING: [&str; 0] = [];

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).expect("in range")
}

fn epoch() -> Epoch {
    Epoch::try_from("A".repeat(26)).expect("26 letters")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let mut labels = Labels::default();
    for (name, value) in pairs {
        labels.insert(*name, *value).expect("a label");
    }
    labels
}

fn agent(id: &str, env: &str) -> AgentRow {
    AgentRow {
        token_labels: labels(&[("env", env)]),
        last_seen_at: Some(at(0)),
        ..AgentRow::enrolled((TENANT, id), format!("host-{id}"), at(0), at(1_000_000))
    }
}

fn server(address: &str) -> ServerName {
    ServerName { system: Some("7312".into()), replica: false, address: address.into() }
}

fn pool(application: &str, open: u32) -> PoolLevel {
    PoolLevel {
        target: format!("pool:{application}/main>db"),
        server: server("10.0.0.5:5432"),
        database: Some("app".into()),
        user: Some("app".into()),
        application: application.into(),
        instances: 2,
        limit: Amount::Known(open + 10),
        open,
        leased: Amount::Between(open / 2, open),
        dsn: None,
        by_transaction: None,
    }
}

/// A rule that only says what it must: a minute of hold, half a minute for the end.
fn rule(measure: Measure, aggregate: Aggregate, by: &[&str], bounds: Bounds) -> Rule {
    Rule {
        name: "r".into(),
        measure,
        aggregate,
        by: by.iter().map(|it| (*it).to_owned()).collect(),
        matchers: Vec::new(),
        of: None,
        bounds,
        hold: Duration::from_secs(60),
        clear_hold: Duration::from_secs(30),
        summary: None,
        advice: None,
    }
}

const fn above(warning: f64) -> Bounds {
    Bounds { side: Side::Above, warning: Some(warning), critical: None }
}

const fn below(warning: f64) -> Bounds {
    Bounds { side: Side::Below, warning: Some(warning), critical: None }
}

/// A collector without its disk.
struct Fleet {
    rules: Vec<Rule>,
    state: State,
    agents: Vec<AgentRow>,
    incidents: Vec<IncidentRow>,
    levels: BTreeMap<String, LevelsRow>,
    now: i64,
    /// Agents that speak, and what they tell every ten seconds.
    alive: BTreeMap<String, (Vec<PoolLevel>, Vec<ServerLevel>)>,
    told: Vec<String>,
}

impl Fleet {
    fn of(rules: &[Rule]) -> Self {
        let agents = vec![agent("a", "production"), agent("b", "production"), agent("c", "staging")];
        let state = State::load(agents.clone(), Vec::new(), at(0)).with_rules(rules, &agents);
        let (incidents, levels, alive, told) = Default::default();
        Self { rules: rules.to_vec(), state, agents, incidents, levels, now: 0, alive, told }
    }

    fn apply(&mut self, event: Event<'_>) {
        for change in self.state.apply(event, at(self.now)) {
            let row = change.incident;
            if row.check.starts_with(PREFIX) && change.kind != ChangeKind::Refreshed {
                let of: Vec<_> = rule_labels(&row).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
                let why = row.resolved_reason.clone().unwrap_or_else(|| row.severity.to_string());
                self.told.push(format!("{:?} {why} {}", change.kind, of.join(",")).trim_end().to_owned());
            }
            self.incidents.retain(|it| it.id != row.id);
            self.incidents.push(row);
        }
    }

    /// An agent has these pools from now on.
    fn runs(&mut self, agent: &str, pools: Vec<PoolLevel>) {
        self.alive.entry(agent.into()).or_default().0 = pools;
    }

    /// An agent asks the server, which has so many slots.
    fn asks(&mut self, agent: &str, slots: Amount) {
        let level = ServerLevel {
            server: server("127.0.0.1:5432"),
            asked_as: None,
            addresses: Vec::new(),
            slots,
            used: Amount::Known(9),
            by_transaction: None,
        };
        self.alive.entry(agent.into()).or_default().1 = vec![level];
    }

    fn dies(&mut self, agent: &str) {
        self.alive.remove(agent);
    }

    fn wait(&mut self, seconds: i64) -> Vec<String> {
        self.told.clear();
        for _ in 0..seconds {
            self.now += 1;
            if self.now % 10 == 0 {
                for (agent, (pools, servers)) in self.alive.clone() {
                    self.speaks(&agent, pools, servers, 0);
                }
            }
            self.apply(Event::Tick);
        }
        std::mem::take(&mut self.told)
    }

    fn speaks(&mut self, agent: &str, pools: Vec<PoolLevel>, servers: Vec<ServerLevel>, left_out: u32) {
        let (epoch, now) = (epoch(), at(self.now));
        let heard =
            Event::Heard { tenant: TENANT, agent, epoch: &epoch, sent_at: now, goodbye: false, is_volatile: false };
        self.apply(heard);
        let levels = Levels { form: FORM, observed_at: now, pools, left_out, servers };
        assert_eq!(levels.fault(), None);
        let mut row =
            LevelsRow { tenant: TENANT.into(), agent: agent.into(), epoch, seen_at: now, received_at: now, levels };
        assert!(self.state.levels(&mut row, now));
        self.levels.insert(agent.into(), row);
    }

    /// A start, or another configuration.
    fn restart(&mut self) {
        self.state = State::load(self.agents.clone(), self.incidents.clone(), at(self.now))
            .with_fleet(self.levels.values().cloned().collect(), Vec::new())
            .with_rules(&self.rules, &self.agents);
    }

    fn firing(&self) -> Vec<&IncidentRow> {
        let fires = |it: &&IncidentRow| it.check.starts_with(PREFIX) && it.status == Status::Firing;
        self.incidents.iter().filter(fires).collect()
    }

    fn evidence(&self) -> Value {
        serde_json::from_str(&self.firing().first().expect("fires").evidence).expect("an object")
    }
}

#[test]
fn a_hold_goes_on_through_a_reload_of_the_same_rule_and_begins_anew_with_another() {
    let shop = rule(Measure::PoolOpen, Aggregate::Sum, &["application"], above(100.0));
    let mut fleet = Fleet::of(std::slice::from_ref(&shop));
    fleet.runs("a", vec![pool("shop", 101)]);
    let reload = |fleet: &mut Fleet, rules: &[Rule]| {
        let before = std::mem::replace(&mut fleet.state, State::load(Vec::new(), Vec::new(), at(0)));
        fleet.state = before.reloaded(Flapping::NEVER, (None, None), rules, &fleet.agents);
    };
    let other = Rule { name: "other".into(), ..shop.clone() };
    for _ in 0..2 {
        assert_eq!(fleet.wait(30), NOTHING);
        // In another place of the file.
        reload(&mut fleet, &[other.clone(), shop.clone()]);
    }
    assert_eq!(
        fleet.wait(25),
        ["Opened warning application=shop"],
        "whoever reloads more often than it holds is told, too"
    );
    reload(&mut fleet, &[other.clone(), Rule { hold: Duration::from_secs(90), ..shop }]);
    assert_eq!(fleet.wait(30), ["Opened warning application=shop"], "the other one's hold went on");
    let rules = [other.clone(), fleet.rules[0].clone()];
    reload(&mut fleet, std::slice::from_ref(&other));
    reload(&mut fleet, &rules);
    assert_eq!(fleet.wait(15), NOTHING, "it was back before anybody looked");
    reload(&mut fleet, &[other]);
    assert_eq!(fleet.wait(15), ["Resolved rule gone application=shop"]);
}

#[test]
fn a_sum_over_its_bound_for_the_hold_fires_with_its_proof_and_the_twin_stays_silent() {
    let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &["application"], above(100.0))]);
    fleet.runs("a", vec![pool("shop", 60), pool("twin", 50)]);
    fleet.runs("b", vec![pool("shop", 41), pool("twin", 50)]);
    assert_eq!(fleet.wait(65), NOTHING, "not before the hold");
    assert_eq!(fleet.wait(20), ["Opened warning application=shop"]);
    let incident = fleet.firing()[0].clone();
    let named = (incident.agent.as_str(), incident.check.as_str(), incident.target.as_str());
    assert_eq!(named, (FLEET, "rule.r", "fleet{application=\"shop\"}"));
    assert_eq!(incident.summary, "r (application shop): sum of pool.open is 101, above 100");
    let evidence = fleet.evidence();
    assert_eq!((&evidence["value"], &evidence["values"]), (&101.into(), &2.into()));
    assert_eq!(evidence["above"]["warning"], 100.0);
    let largest = serde_json::json!([
        { "target": "pool:shop/main>db", "value": 60, "host": "host-a" },
        { "target": "pool:shop/main>db", "value": 41, "host": "host-b" },
    ]);
    assert_eq!(evidence["largest"], largest);
    fleet.runs("b", vec![pool("shop", 40), pool("twin", 50)]);
    assert_eq!(fleet.wait(35), NOTHING, "exactly the bound is not over it, and not yet for the hold");
    assert_eq!(fleet.wait(25), ["Resolved cleared application=shop"]);
}

/// Of each way to add up: what fires, and what looks like it and does not.
#[test]
fn each_way_to_add_up_sees_its_fault_and_not_its_decoy() {
    use Aggregate::{Count, Max, Min, Quantile, Sum};
    let cases: [(Aggregate, Bounds, &[u32], &[u32]); 8] = [
        (Sum, above(100.0), &[50, 51], &[100, 0]),
        (Sum, below(10.0), &[4, 5], &[0, 10]),
        (Max, above(50.0), &[1, 51], &[50, 50, 50]),
        (Max, below(5.0), &[4, 4], &[0, 5]),
        (Min, below(5.0), &[90, 4], &[5, 5]),
        (Min, above(5.0), &[6, 90], &[5, 90]),
        (Count, above(2.0), &[0, 0, 0], &[90, 90]),
        (Quantile(0.5), above(10.0), &[1, 11, 12], &[10, 10, 90]),
    ];
    for (aggregate, bounds, fault, decoy) in cases {
        let fires = |values: &[u32]| {
            let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, aggregate, &[], bounds)]);
            let pools = values.iter().enumerate().map(|(at, open)| pool(&format!("app-{at}"), *open));
            fleet.runs("a", pools.collect());
            fleet.wait(200)
        };
        assert_eq!(fires(fault), ["Opened warning"], "{aggregate} {bounds:?} of {fault:?}");
        assert_eq!(fires(decoy), NOTHING, "{aggregate} {bounds:?} of {decoy:?}");
    }
}

#[test]
fn a_share_of_another_measure_has_two_severities_and_counts_a_server_once() {
    let bounds = Bounds { side: Side::Above, warning: Some(0.8), critical: Some(0.95) };
    let of_slots =
        Rule { of: Some(Measure::ServerSlots), ..rule(Measure::PoolOpen, Aggregate::Sum, &["server"], bounds) };
    let mut fleet = Fleet::of(&[of_slots]);
    fleet.runs("a", vec![pool("shop", 45)]);
    fleet.runs("b", vec![pool("shop", 36)]);
    fleet.asks("a", Amount::Known(100));
    fleet.asks("b", Amount::Known(100));
    assert_eq!(fleet.wait(90), ["Opened warning server=system/7312"]);
    assert_eq!(
        fleet.firing()[0].summary,
        "r (server system/7312): sum of pool.open is 81, 0.81 of server.slots (100), above 0.8"
    );
    fleet.runs("b", vec![pool("shop", 52)]);
    assert_eq!(fleet.wait(90), ["Worsened critical server=system/7312"]);
    fleet.runs("b", vec![pool("shop", 40)]);
    assert_eq!(fleet.wait(60), ["Eased warning server=system/7312"]);
    fleet.runs("b", vec![pool("shop", 35)]);
    assert_eq!(fleet.wait(60), ["Resolved cleared server=system/7312"]);
}

#[test]
fn matchers_choose_and_labels_of_agents_group() {
    let matchers = vec!["application=~\"shop.*\"".parse().expect("a matcher")];
    let by_env = Rule { matchers, ..rule(Measure::PoolOpen, Aggregate::Sum, &["env"], above(50.0)) };
    let mut fleet = Fleet::of(&[by_env]);
    fleet.runs("a", vec![pool("shop-1", 30), pool("billing", 90)]);
    fleet.runs("b", vec![pool("shop-2", 30)]);
    fleet.runs("c", vec![pool("shop-1", 50)]);
    assert_eq!(fleet.wait(200), ["Opened warning env=production"]);
}

#[test]
fn what_is_not_known_neither_begins_nor_ends_anything() {
    let limits = || rule(Measure::PoolLimit, Aggregate::Sum, &[], above(100.0));
    let with = |limit: Amount| vec![PoolLevel { limit, ..pool("shop", 5) }];
    for limit in [Amount::Unknown("no DSN".into()), Amount::Between(20, 500)] {
        let mut fleet = Fleet::of(&[limits()]);
        fleet.runs("a", with(limit.clone()));
        assert_eq!(fleet.wait(300), NOTHING, "{limit:?} may be more, and may be less");
        fleet.runs("a", with(Amount::Between(101, 500)));
        assert_eq!(fleet.wait(90), ["Opened warning"], "at least 101");
        fleet.runs("a", with(limit.clone()));
        assert_eq!(fleet.wait(600), NOTHING, "{limit:?} ends nothing");
        assert!(fleet.firing()[0].evidence_lost);
        fleet.runs("a", with(Amount::Between(2, 100)));
        assert_eq!(fleet.wait(60), ["Resolved cleared"], "100 at most");
    }
}

#[test]
fn what_is_out_of_sight_and_comes_back_over_the_bound_is_seen_again() {
    let mut fleet = Fleet::of(&[rule(Measure::PoolLimit, Aggregate::Sum, &[], above(100.0))]);
    let with = |limit: Amount| vec![PoolLevel { limit, ..pool("shop", 5) }];
    fleet.runs("a", with(Amount::Known(120)));
    assert_eq!(fleet.wait(90), ["Opened warning"]);
    fleet.runs("a", with(Amount::Unknown("no DSN".into())));
    fleet.wait(90);
    assert!(fleet.firing()[0].evidence_lost);
    fleet.restart();
    fleet.wait(15);
    fleet.runs("a", with(Amount::Known(130)));
    assert_eq!(fleet.wait(60), NOTHING);
    assert!(!fleet.firing()[0].evidence_lost);
    assert_eq!(fleet.evidence()["value"], 130, "the proof is of now");
}

#[test]
fn without_the_measure_that_it_is_a_share_of_nothing_is_said() {
    let of_slots =
        Rule { of: Some(Measure::ServerSlots), ..rule(Measure::PoolOpen, Aggregate::Sum, &["server"], above(0.8)) };
    let mut fleet = Fleet::of(&[of_slots]);
    fleet.runs("a", vec![pool("shop", 500)]);
    assert_eq!(fleet.wait(200), NOTHING);
    fleet.asks("a", Amount::Known(0));
    assert_eq!(fleet.wait(200), NOTHING, "of nothing there is no share");
}

#[test]
fn a_share_of_what_nobody_tells_of_any_more_is_over() {
    let of_slots = Rule { of: Some(Measure::ServerSlots), ..rule(Measure::PoolOpen, Aggregate::Sum, &[], above(0.8)) };
    let mut fleet = Fleet::of(&[of_slots]);
    fleet.runs("a", vec![pool("shop", 90)]);
    fleet.asks("b", Amount::Known(100));
    assert_eq!(fleet.wait(90), ["Opened warning"]);
    fleet.dies("b");
    let mut told = fleet.wait(120);
    assert_eq!(told, NOTHING, "it may be back in a moment");
    told = fleet.wait(400);
    assert_eq!(told, ["Resolved target gone"]);
    fleet.asks("b", Amount::Known(100));
    assert_eq!(fleet.wait(90), ["Reopened warning"]);
}

#[test]
fn a_bound_that_was_taken_out_is_crossed_by_nothing() {
    let bounds = Bounds { critical: Some(110.0), ..above(100.0) };
    let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &[], bounds)]);
    fleet.runs("a", vec![pool("shop", 120)]);
    assert_eq!(fleet.wait(90), ["Opened critical"]);
    fleet.rules[0].bounds = above(100.0);
    fleet.restart();
    assert_eq!(fleet.wait(60), ["Eased warning"]);
}

#[test]
fn a_tenant_of_many_groups_leaves_room_for_the_groups_of_others() {
    let mut fleet = Fleet::of(&[rule(Measure::AgentPresent, Aggregate::Sum, &["host"], above(0.5))]);
    fleet
        .agents
        .extend((0..8_000).map(|it| AgentRow { tenant: "other".into(), ..agent(&it.to_string(), "production") }));
    fleet.restart();
    fleet.runs("a", Vec::new());
    assert_eq!(fleet.wait(90), ["Opened warning", "Opened warning host=host-a"], "the other has too many");
    assert_eq!(fleet.firing()[0].tenant, "other");
}

#[test]
fn an_agent_that_fell_silent_decides_nothing_and_after_two_minutes_counts_no_more() {
    let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &[], above(100.0))]);
    fleet.runs("a", vec![pool("shop", 60)]);
    fleet.runs("b", vec![pool("shop", 60)]);
    assert_eq!(fleet.wait(90), ["Opened warning"]);
    fleet.dies("b");
    assert_eq!(fleet.wait(120), NOTHING, "whether its 60 are gone is not known");
    assert_eq!(fleet.wait(120), ["Resolved cleared"]);
    fleet.runs("b", vec![pool("shop", 30)]);
    fleet.wait(30);
    fleet.dies("a");
    fleet.runs("c", vec![pool("shop", 45)]);
    assert_eq!(fleet.wait(300), NOTHING, "75 is certain, 135 only until the silent one is forgotten");
}

#[test]
fn a_denied_agent_counts_no_more_at_once() {
    let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &[], above(100.0))]);
    fleet.runs("a", vec![pool("shop", 60)]);
    fleet.runs("b", vec![pool("shop", 60)]);
    assert_eq!(fleet.wait(90), ["Opened warning"]);
    fleet.dies("b");
    fleet.agents[1].denied_at = Some(at(fleet.now));
    let mut unserved = Fleet { agents: fleet.agents.clone(), ..Fleet::of(&fleet.rules) };
    (unserved.incidents, unserved.levels, unserved.now) = (fleet.incidents.clone(), fleet.levels.clone(), fleet.now);
    fleet.apply(Event::Denied { tenant: TENANT, agent: "b" });
    assert_eq!(fleet.wait(60), ["Resolved cleared"]);
    // The same while nobody served.
    unserved.restart();
    unserved.runs("a", vec![pool("shop", 60)]);
    assert_eq!(unserved.wait(60), ["Resolved cleared"]);
}

#[test]
fn a_denied_agent_is_not_missed_either() {
    let mut fleet = Fleet::of(&[rule(Measure::AgentPresent, Aggregate::Count, &["env"], above(1.0))]);
    assert_eq!(fleet.wait(90), ["Opened warning env=production"]);
    fleet.agents[1].denied_at = Some(at(fleet.now));
    fleet.apply(Event::Denied { tenant: TENANT, agent: "b" });
    assert_eq!(fleet.wait(60), ["Resolved cleared env=production"]);
    fleet.restart();
    assert_eq!(fleet.wait(120), NOTHING);
}

/// As for `fleet.pool_budget`: that an address leads to this server is what somebody else says.
#[test]
fn a_pool_that_only_others_place_at_a_server_is_in_doubt() {
    let by_server = rule(Measure::PoolOpen, Aggregate::Sum, &["server"], above(100.0));
    let unasked = |address: &str| ServerName { system: None, replica: false, address: address.into() };
    let fires = |address: &str| {
        let mut fleet = Fleet::of(std::slice::from_ref(&by_server));
        fleet.asks("a", Amount::Known(57));
        fleet.alive.get_mut("a").expect("asks").1[0].addresses = vec!["10.0.0.5:5432".into()];
        fleet.runs("b", vec![PoolLevel { server: unasked(address), ..pool("shop", 120) }]);
        fleet.wait(200)
    };
    assert_eq!(fires("10.0.0.5:5432"), NOTHING);
    assert_eq!(fires("10.0.0.6:5432"), ["Opened warning server=10.0.0.6:5432"]);
}

#[test]
fn a_pool_without_a_known_limit_may_have_what_it_has_open() {
    let mut fleet = Fleet::of(&[rule(Measure::PoolLimit, Aggregate::Sum, &[], above(100.0))]);
    fleet.runs("a", vec![PoolLevel { limit: Amount::Unknown("no DSN".into()), ..pool("shop", 101) }]);
    assert_eq!(fleet.wait(90), ["Opened warning"]);
    assert_eq!(fleet.firing()[0].summary, "r: sum of pool.limit is 101 or more, above 100");
}

#[test]
fn an_agent_cannot_speak_for_a_rule() {
    let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &[], above(100.0))]);
    let one = &fleet.rules[0];
    let seen = evidence::Seen {
        value: Some(Span::known(1.0)),
        whole: None,
        judged: None,
        severity: Severity::Warning,
        since: at(0),
        certain: 1,
        doubtful: 0,
    };
    let told = evidence::finding((TENANT, FLEET), one, &seen, None, tickbird_shared::Change::Began, at(0));
    fleet.apply(Event::Finding(&mut FindingRow { agent: "a".into(), ..told }));
    assert_eq!(fleet.told, NOTHING);
}

#[test]
fn a_group_that_is_gone_ends_and_says_so() {
    let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &["application"], above(100.0))]);
    fleet.runs("a", vec![pool("shop", 120)]);
    assert_eq!(fleet.wait(90), ["Opened warning application=shop"]);
    fleet.runs("a", vec![]);
    assert_eq!(fleet.wait(100), NOTHING);
    assert_eq!(fleet.wait(60), ["Resolved target gone application=shop"]);
}

#[test]
fn pools_that_an_agent_left_out_take_the_upper_end_away() {
    let fires = |left_out: u32| {
        let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &[], below(100.0))]);
        for _ in 0..20 {
            fleet.speaks("a", vec![pool("shop", 5)], Vec::new(), left_out);
            fleet.wait(10);
        }
        fleet.firing().len()
    };
    assert_eq!((fires(0), fires(1)), (1, 0));
}

#[test]
fn agents_that_speak_are_counted_and_those_that_were_never_heard_are_not_missed() {
    let mut fleet = Fleet::of(&[rule(Measure::AgentPresent, Aggregate::Sum, &["env"], below(2.0))]);
    let mut never = agent("d", "new");
    never.last_seen_at = None;
    fleet.agents.push(never);
    fleet.restart();
    fleet.runs("a", Vec::new());
    fleet.runs("b", Vec::new());
    fleet.runs("c", Vec::new());
    assert_eq!(fleet.wait(90), ["Opened warning env=staging"]);
    fleet.dies("a");
    assert_eq!(fleet.wait(60), NOTHING, "silent for 30 s, and then the hold");
    assert_eq!(fleet.wait(60), ["Opened warning env=production"]);
    fleet.runs("a", Vec::new());
    assert_eq!(fleet.wait(60), ["Resolved cleared env=production"]);
}

#[test]
fn a_restart_tells_nothing_again_and_ends_nothing() {
    let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &["application"], above(100.0))]);
    fleet.runs("a", vec![pool("shop", 120)]);
    assert_eq!(fleet.wait(90), ["Opened warning application=shop"]);
    for wait in [1, 5, 15, 31, 70] {
        fleet.restart();
        assert_eq!(fleet.wait(wait), NOTHING, "{wait} s after a start");
    }
    assert_eq!(fleet.firing()[0].occurrences, 1);
    fleet.runs("a", vec![pool("shop", 20)]);
    fleet.restart();
    assert_eq!(fleet.wait(60), ["Resolved cleared application=shop"]);
    fleet.runs("a", vec![pool("shop", 120)]);
    fleet.wait(50);
    fleet.restart();
    assert_eq!(fleet.wait(55), NOTHING, "the hold begins anew");
    assert_eq!(fleet.wait(30), ["Reopened warning application=shop"]);
}

#[test]
fn a_rule_that_is_taken_out_or_groups_otherwise_ends_what_fires_of_it_and_says_why() {
    let by = |labels: &[&str]| rule(Measure::PoolOpen, Aggregate::Sum, labels, above(100.0));
    let fire = || {
        let mut fleet = Fleet::of(&[by(&["application"])]);
        fleet.runs("a", vec![pool("shop", 120)]);
        assert_eq!(fleet.wait(90), ["Opened warning application=shop"]);
        fleet
    };
    let mut fleet = fire();
    fleet.rules.clear();
    fleet.restart();
    assert_eq!(fleet.wait(1), ["Resolved rule gone application=shop"]);
    let mut fleet = fire();
    fleet.rules = vec![by(&["env"])];
    fleet.restart();
    assert_eq!(fleet.wait(1), ["Resolved rule changed application=shop"]);
    assert_eq!(fleet.wait(90), ["Opened warning env=production"]);
    // Another bound is judged as ever.
    let mut fleet = fire();
    fleet.rules = vec![Rule { bounds: above(200.0), ..by(&["application"]) }];
    fleet.restart();
    assert_eq!(fleet.wait(20), NOTHING);
    assert_eq!(fleet.wait(30), ["Resolved cleared application=shop"]);
}

#[test]
fn a_value_that_moves_is_no_news_and_its_proof_is_kept_anew() {
    let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &[], above(100.0))]);
    fleet.runs("a", vec![pool("shop", 120)]);
    assert_eq!(fleet.wait(90), ["Opened warning"]);
    for open in [130, 140, 150] {
        fleet.runs("a", vec![pool("shop", open)]);
        assert_eq!(fleet.wait(300), NOTHING);
    }
    assert_eq!(fleet.evidence()["value"], 150);
}

#[test]
fn groups_beyond_the_bound_are_told_and_what_fires_keeps_its_place() {
    let pools = |names: std::ops::Range<usize>, open| names.map(move |it| pool(&format!("app-{it:04}"), open));
    let mut fleet = Fleet::of(&[rule(Measure::PoolOpen, Aggregate::Sum, &["application"], above(100.0))]);
    fleet.agents.extend((0..6).map(|it| agent(&format!("m{it}"), "production")));
    fleet.restart();
    fleet.runs("c", pools(5_000..5_001, 120).collect());
    assert_eq!(fleet.wait(90), ["Opened warning application=app-5000"]);
    for it in 0..5 {
        fleet.runs(&format!("m{it}"), pools(it * 200..it * 200 + 200, 1).collect());
    }
    let told = fleet.wait(60);
    assert_eq!(told, ["Opened warning"], "a thousand beside the one that fires");
    let beyond = fleet.firing().into_iter().find(|it| it.target == BEYOND).expect("told");
    assert!(beyond.summary.contains("1 values of others are not looked at"), "{}", beyond.summary);
    fleet.restart();
    assert_eq!(fleet.wait(60), NOTHING, "neither anew nor over");
    fleet.dies("m4");
    let told = fleet.wait(400);
    assert_eq!(told, ["Resolved cleared"], "800 groups are within the bound");
    assert_eq!(fleet.firing().len(), 1, "what fired fires");
}

#[test]
fn two_tenants_are_two_groups() {
    let mut other = agent("a", "production");
    other.tenant = "other".into();
    let mut fleet = Fleet::of(&[rule(Measure::AgentPresent, Aggregate::Count, &[], above(3.0))]);
    fleet.agents.push(other);
    fleet.restart();
    assert_eq!(fleet.wait(120), NOTHING, "three and one");
    fleet.agents.push(agent("d", "production"));
    fleet.restart();
    assert_eq!(fleet.wait(120), ["Opened warning"]);
    assert_eq!(fleet.firing()[0].tenant, TENANT);
}

#[test]
fn a_quantile_of_round_numbers_is_not_one_further() {
    let given = BTreeMap::new();
    let mut group = Group::default();
    for value in 1..=100 {
        group.add(Aggregate::Quantile(0.07), &Series::given(Kind::Pool, &given, Span::known(f64::from(value))));
    }
    assert_eq!(
        [0.07, 0.5, 1.0].map(|it| group.span(Aggregate::Quantile(it))),
        [7.0, 50.0, 100.0].map(|it| Some(Span::known(it)))
    );
}

/// Pools that many agents have, and how many of them were shown.
struct Many(Vec<BTreeMap<String, String>>, Cell<u64>);

impl Source for Many {
    fn each(&self, measure: Measure, _: bool, act: &mut dyn FnMut(&Series<'_>)) {
        for labels in &self.0 {
            self.1.set(self.1.get() + 1);
            act(&Series::given(measure.kind(), labels, Span::known(7.0)));
        }
    }
}

/// A look reads each value once, whatever fires; what matters most is sought only when something is told.
#[test]
fn a_look_at_fifteen_thousand_agents_reads_each_value_once() {
    let of = |it: usize| [("application".to_owned(), format!("app-{}", it % 400))].into();
    let many = Many((0..15_000).map(of).collect(), Cell::new(0));
    let rule = rule(Measure::PoolOpen, Aggregate::Sum, &["application"], above(100.0));
    let mut watch = Watch::at_place(0);
    let mut read = Vec::new();
    for second in 0..=80 {
        let listened = Duration::from_secs(second);
        if watch.is_due(listened) {
            let told = watch.look(&rule, &many, at(0), listened).len();
            read.push((many.1.take() / 15_000, told));
        }
    }
    assert_eq!(read, [(1, 0), (1, 0), (1, 0), (1, 0), (1, 0), (1, 0), (2, 400), (1, 0), (1, 0)]);
}

#[test]
fn rules_take_turns() {
    let first = |place| {
        let watch = Watch::at_place(place);
        (0..20).find(|it| watch.is_due(Duration::from_secs(*it)))
    };
    assert_eq!([0, 1, 9, 10, 11].map(first), [Some(0), Some(1), Some(9), Some(0), Some(1)]);
}

/// What an aggregate is of exactly these values.
fn exactly(aggregate: Aggregate, values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (first, last) = (*values.first()?, *values.last()?);
    Some(match aggregate {
        Aggregate::Sum => values.iter().sum(),
        Aggregate::Max => last,
        Aggregate::Min => first,
        Aggregate::Count => values.len() as f64,
        Aggregate::Quantile(part) => {
            let reached = |it: &&f64| {
                let under = values.iter().filter(|other| other <= it).count();
                under as f64 >= part * values.len() as f64 - 1e-9
            };
            *values.iter().find(reached)?
        }
    })
}

proptest! {
    /// Whatever of the doubtful is there, and wherever between its ends each value is, the truth lies within the span;
    /// and each end of it is the truth of something that may be.
    #[test]
    fn the_truth_is_within_the_span_and_each_end_of_it_can_be_true(
        values in prop::collection::vec((0..20_u32, 0..5_u32, any::<bool>()), 1..7),
        kind in 0..5_usize,
        part in prop::sample::select(vec![0.01, 0.25, 0.5, 0.9, 1.0]),
    ) {
        let quantile = Aggregate::Quantile(part);
        let aggregate = [Aggregate::Sum, Aggregate::Max, Aggregate::Min, Aggregate::Count, quantile][kind];
        let (given, mut group) = (BTreeMap::new(), Group::default());
        for (low, width, is_certain) in &values {
            let span = Span { low: f64::from(*low), high: f64::from(low + width) };
            let mut series = Series::given(Kind::Pool, &given, span);
            series.is_certain = *is_certain;
            group.add(aggregate, &series);
        }
        let span = group.span(aggregate).expect("there are values");
        let mut truths = Vec::new();
        for chosen in 0..1_u32 << values.len() {
            if values.iter().enumerate().any(|(at, it)| it.2 && chosen & (1 << at) == 0) {
                continue;
            }
            let there: Vec<_> = values.iter().enumerate().filter(|(at, _)| chosen & (1 << at) != 0).map(|(_, it)| it).collect();
            let ends = [0, 1].map(|end| there.iter().map(|it| f64::from(it.0 + end * it.1)).collect::<Vec<_>>());
            truths.extend(ends.iter().filter_map(|it| exactly(aggregate, it)));
        }
        for truth in &truths {
            prop_assert!(span.low <= *truth && *truth <= span.high, "{aggregate} {truth} of {values:?} in {span:?}");
        }
        // Of what may not be there at all, a sum is 0 and so is a count.
        if values.iter().any(|it| it.2) {
            prop_assert!(truths.contains(&span.low), "{aggregate} of {values:?}: {span:?}");
            prop_assert!(truths.contains(&span.high), "{aggregate} of {values:?}: {span:?}");
        }
    }

    #[test]
    fn a_target_says_its_labels_and_two_groups_are_never_one(
        pairs in prop::collection::vec(("[a-z]{1,3}", "[ab\",={}\\\\\n~é]{0,8}|[ab]{95,110}"), 0..4),
        other in prop::collection::vec("[ab\",={}\\\\\n~é]{0,8}|[ab]{95,110}", 4),
    ) {
        let target = |pairs: &[(String, String)]| {
            let mut target = String::new();
            write_target(&mut target, pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            target
        };
        let read = labels_of(&target(&pairs)).expect("its own target");
        if pairs.iter().all(|(_, value)| value.len() <= LONGEST) {
            prop_assert_eq!(&read, &pairs);
        }
        let twin: Vec<_> = pairs.iter().zip(&other).map(|((name, _), value)| (name.clone(), value.clone())).collect();
        prop_assert_eq!(twin == pairs, target(&twin) == target(&pairs));
    }

    #[test]
    fn no_target_panics(text in "(fleet)?[{},=\"\\\\a-zé]{0,20}") {
        let _ = labels_of(&text);
    }

    /// Agents come, go and change; the collector is killed. Nothing opens that was not certainly over the bound for the
    /// hold, nothing clears that was not certainly within, and in the end what fires is what is true, with and without kills.
    #[test]
    fn histories_end_in_the_truth(
        acts in prop::collection::vec((0..3_usize, 0..12_u32, 1..9_i64, prop::bool::weighted(0.25)), 1..25),
    ) {
        const BOUND: u32 = 100;
        let rule = Rule {
            hold: Duration::from_secs(20),
            clear_hold: Duration::from_secs(20),
            ..rule(Measure::PoolOpen, Aggregate::Sum, &["application"], above(f64::from(BOUND)))
        };
        let [mut killed, mut whole] = [(), ()].map(|()| Fleet::of(std::slice::from_ref(&rule)));
        let mut said: BTreeMap<&str, u32> = BTreeMap::new();
        let mut heard: BTreeSet<&str> = BTreeSet::new();
        let (mut not_over, mut not_within) = (0_i64, 0_i64);
        for (who, tens, waits, kill) in acts.into_iter().chain([(0, 12, 30, false)]) {
            let name = ["a", "b", "c"][who];
            for fleet in [&mut killed, &mut whole] {
                match tens {
                    // The last act changes nothing.
                    12 => (),
                    0 => fleet.dies(name),
                    tens => fleet.runs(name, vec![pool("shop", tens * 10)]),
                }
            }
            if kill {
                killed.restart();
            }
            for _ in 0..waits * 10 {
                let (told, _) = (killed.wait(1), whole.wait(1));
                if killed.now % 10 == 0 {
                    said.extend(killed.alive.iter().map(|(name, it)| {
                        let name = ["a", "b", "c"].into_iter().find(|it| it == name).expect("one of them");
                        (name, it.0.iter().map(|it| it.open).sum())
                    }));
                }
                // Who came back says how it is now when it tells anew.
                heard.retain(|name| killed.alive.contains_key(*name));
                if killed.now % 10 == 0 {
                    heard.extend(said.keys().filter(|name| killed.alive.contains_key(**name)));
                }
                let alive: u32 = heard.iter().map(|name| said[name]).sum();
                let most: u32 = said.values().sum();
                for told in told {
                    let opens = told.starts_with("Opened") || told.starts_with("Reopened");
                    prop_assert!(!opens || killed.now - not_over >= 20, "{} after {}", told, not_over);
                    prop_assert!(!told.contains("cleared") || killed.now - not_within >= 20, "{} after {}", told, not_within);
                }
                if most <= BOUND {
                    not_over = killed.now;
                }
                if alive > BOUND {
                    not_within = killed.now;
                }
            }
        }
        let alive: u32 = killed.alive.values().flat_map(|it| &it.0).map(|it| it.open).sum();
        let fires = |fleet: &Fleet| fleet.firing().iter().map(|it| it.target.clone()).collect::<BTreeSet<_>>();
        prop_assert_eq!(fires(&killed), fires(&whole));
        prop_assert_eq!(!fires(&killed).is_empty(), alive > BOUND);
    }

    #[test]
    fn a_trial_is_the_rule(open in 0..200_u32, minutes in 0..3_u64) {
        let rule = rule(Measure::PoolOpen, Aggregate::Sum, &["application"], above(100.0));
        let mut trial = Trial::new(&rule);
        let labels: BTreeMap<_, _> = [("application".to_owned(), "shop".to_owned())].into();
        let given = Given { labels: labels.clone(), values: vec![(Measure::PoolOpen, Span::known(f64::from(open)))] };
        trial.pass(Duration::from_secs(minutes * 60), &[given]);
        let fires = open > 100 && minutes > 0;
        prop_assert_eq!(trial.firing(), if fires { vec![(labels, Severity::Warning)] } else { Vec::new() });
        trial.pass(Duration::from_secs(600), &[]);
        prop_assert_eq!(trial.firing(), []);
    }
}
