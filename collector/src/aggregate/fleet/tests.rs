//! Situations of a fleet, and random histories that must not leave it stuck.

mod params;

use proptest::prelude::*;
use tickbird_shared::Status;
use tickbird_shared::levels::{Amount, FORM, PoolLevel, ServerLevel, ServerName};

use super::*;
use crate::aggregate::{Event, State};
use crate::store::{AgentRow, IncidentRow};

const TENANT: &str = "default";
const SLOTS: u32 = 57;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).expect("in range")
}

fn epoch(name: char) -> Epoch {
    Epoch::try_from(name.to_string().repeat(26)).expect("26 letters")
}

fn agent(id: &str) -> AgentRow {
    AgentRow {
        last_seen_at: Some(at(0)),
        ..AgentRow::enrolled((TENANT, id), format!("host-{id}"), at(0), at(1_000_000))
    }
}

fn identified(address: &str) -> ServerName {
    ServerName { system: Some("7312".into()), replica: false, address: address.into() }
}

fn unasked(address: &str) -> ServerName {
    ServerName { system: None, replica: false, address: address.into() }
}

fn pool(application: &str, server: ServerName, limit: Amount) -> PoolLevel {
    PoolLevel {
        target: format!("pool:{application}/main>{}", server.address),
        server,
        database: Some("app".into()),
        user: Some("app".into()),
        application: application.into(),
        instances: 2,
        limit,
        open: 7,
        leased: Amount::Between(2, 7),
        dsn: None,
        by_transaction: None,
    }
}

fn asked(server: ServerName, slots: u32) -> ServerLevel {
    let addresses = vec![server.address.clone()];
    ServerLevel {
        server,
        addresses,
        asked_as: None,
        slots: Amount::Known(slots),
        used: Amount::Known(9),
        by_transaction: None,
    }
}

/// A collector without its disk.
struct World {
    state: State,
    agents: Vec<AgentRow>,
    incidents: Vec<IncidentRow>,
    levels: BTreeMap<String, LevelsRow>,
    now: i64,
    /// Agents that speak each second, with what they tell every ten.
    alive: BTreeMap<String, (Vec<PoolLevel>, Vec<ServerLevel>)>,
    told: Vec<String>,
}

impl World {
    fn new() -> Self {
        let agents: Vec<_> = ["a", "b", "c"].map(agent).into();
        let state = State::load(agents.clone(), Vec::new(), at(0));
        let (incidents, levels, alive) = Default::default();
        Self { state, agents, incidents, levels, now: 0, alive, told: Vec::new() }
    }

    fn apply(&mut self, event: Event<'_>) {
        for change in self.state.apply(event, at(self.now)) {
            if change.incident.check == POOL_BUDGET {
                self.told.push(format!("{:?} {}", change.kind, change.incident.severity));
            }
            if change.incident.check == POOL_PARAMS {
                self.told.push(format!("{:?} params {}", change.kind, change.incident.severity));
            }
            self.incidents.retain(|it| it.id != change.incident.id);
            self.incidents.push(change.incident);
        }
    }

    fn runs(&mut self, agent: &str, pools: Vec<PoolLevel>, servers: Vec<ServerLevel>) {
        self.alive.insert(agent.into(), (pools, servers));
    }

    fn says(&mut self, agent: &str, goodbye: bool) {
        let (epoch, sent_at) = (epoch('A'), at(self.now));
        self.apply(Event::Heard { tenant: TENANT, agent, epoch: &epoch, sent_at, goodbye, is_volatile: false });
    }

    fn tells(&mut self, agent: &str, pools: Vec<PoolLevel>, servers: Vec<ServerLevel>, observed_at: Timestamp) -> bool {
        let levels = Levels { form: FORM, observed_at, pools, left_out: 0, servers };
        assert_eq!(levels.fault(), None);
        let now = at(self.now);
        let mut row = LevelsRow {
            tenant: TENANT.into(),
            agent: agent.into(),
            epoch: epoch('A'),
            seen_at: now,
            received_at: now,
            levels,
        };
        let taken = self.state.levels(&mut row, now);
        self.levels.insert(agent.into(), row);
        taken
    }

    fn wait(&mut self, seconds: i64) -> Vec<String> {
        self.told.clear();
        for _ in 0..seconds {
            self.now += 1;
            if self.now % 10 == 0 {
                for (agent, (pools, servers)) in self.alive.clone() {
                    self.says(&agent, false);
                    self.tells(&agent, pools, servers, at(self.now));
                }
            }
            self.apply(Event::Tick);
        }
        std::mem::take(&mut self.told)
    }

    fn restart(&mut self) {
        let used = self.state.take_unsaved_use();
        self.state = State::load(self.agents.clone(), self.incidents.clone(), at(self.now))
            .with_fleet(self.levels.values().cloned().collect(), used);
    }

    fn firing(&self) -> Option<&IncidentRow> {
        self.incidents.iter().find(|it| it.check == POOL_BUDGET && it.status == Status::Firing)
    }

    /// Two agents on two hosts that reach one server by different addresses.
    fn with_sum(first: u32, second: u32) -> Self {
        let mut world = Self::new();
        let (near, far) = (identified("127.0.0.1:5432"), identified("10.0.0.5:5432"));
        world.runs("a", vec![pool("shop", near.clone(), Amount::Known(first))], vec![asked(near, SLOTS)]);
        world.runs("b", vec![pool("billing", far.clone(), Amount::Known(second))], vec![asked(far, SLOTS)]);
        world
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn two_hosts_that_together_ask_for_more_than_there_is_are_critical_and_named() {
    let mut world = World::with_sum(30, 28);
    assert_eq!(world.wait(29), NOTHING, "not before three looks");
    assert_eq!(world.wait(15), ["Opened critical"]);
    let incident = world.firing().expect("fires");
    assert_eq!((incident.agent.as_str(), incident.target.as_str()), (FLEET, "server:system/7312"));
    assert!(
        incident.summary.contains("can exhaust") && incident.summary.contains("58 connections"),
        "{}",
        incident.summary
    );
    let evidence: serde_json::Value = serde_json::from_str(&incident.evidence).expect("JSON");
    let named: Vec<_> = evidence["applications"].as_array().expect("a list").iter().collect();
    assert_eq!(named.len(), 2);
    assert_eq!((&named[0]["application"], &named[0]["possible"]), (&"shop".into(), &30.into()));
    assert_eq!(evidence["pressure"]["open"], 14);
    assert_eq!(world.wait(600), NOTHING, "told once");
}

#[test]
fn half_of_the_slots_is_silent_and_four_fifths_a_warning() {
    assert_eq!(World::with_sum(15, 13).wait(300), NOTHING);
    assert_eq!(World::with_sum(23, 22).wait(300), NOTHING, "45 of 57 is under 80 %");
    assert_eq!(World::with_sum(23, 23).wait(300), ["Opened warning"]);
    assert_eq!(World::with_sum(30, 27).wait(300), ["Opened warning"], "57 of 57 cannot exhaust it");
}

#[test]
fn it_eases_and_clears_at_nine_tenths_of_the_bound() {
    let mut world = World::with_sum(40, 40);
    assert_eq!(world.wait(60), ["Opened critical"]);
    let set = |world: &mut World, sum: u32| {
        let server = identified("10.0.0.5:5432");
        world.runs("b", vec![pool("billing", server.clone(), Amount::Known(sum - 40))], vec![asked(server, SLOTS)]);
        world.wait(120).retain(|it| it.starts_with('U'));
        world.firing().map(|it| it.severity)
    };
    assert_eq!(set(&mut world, 52), Some(Severity::Critical), "52 is over 90 % of 57");
    assert_eq!(set(&mut world, 51), Some(Severity::Warning));
    assert_eq!(set(&mut world, 42), Some(Severity::Warning), "42 is over 90 % of 80 %");
    assert_eq!(set(&mut world, 41), None);
}

#[test]
fn a_limit_that_is_not_known_fires_by_what_is_certain_and_keeps_it_from_clearing() {
    let mut world = World::with_sum(50, 8);
    assert_eq!(world.wait(60), ["Opened critical"]);
    let server = identified("10.0.0.5:5432");
    let unknown = pool("billing", server.clone(), Amount::Unknown("nobody said".into()));
    world.runs("b", vec![unknown], vec![asked(server.clone(), SLOTS)]);
    let near = identified("127.0.0.1:5432");
    world.runs("a", vec![pool("shop", near.clone(), Amount::Known(5))], vec![asked(near, SLOTS)]);
    world.wait(300);
    let incident = world.firing().expect("still fires");
    assert!(incident.evidence.contains("nobody said"), "{}", incident.evidence);
    world.runs("b", vec![pool("billing", server.clone(), Amount::Between(8, 20))], vec![asked(server, SLOTS)]);
    world.wait(60);
    assert!(world.firing().is_none(), "at most 25 is certainly under the bound");
}

#[test]
fn a_limit_that_never_was_known_does_not_keep_it_from_clearing() {
    let mut world = World::with_sum(50, 8);
    let server = identified("10.0.0.5:5432");
    let person = pool("psql", server.clone(), Amount::Unknown("nobody said".into()));
    world.runs("c", vec![person.clone()], vec![asked(server.clone(), SLOTS)]);
    assert_eq!(world.wait(60), ["Opened critical"]);
    world.runs("a", vec![pool("shop", server.clone(), Amount::Known(5))], vec![asked(server.clone(), SLOTS)]);
    world.wait(60);
    assert!(world.firing().is_none(), "5 and 8, and what a person has open");
    // A restart changes nothing of it, and forgets nobody whose limit was known.
    world.runs("a", vec![pool("shop", server.clone(), Amount::Known(50))], vec![asked(server.clone(), SLOTS)]);
    world.wait(60);
    world.restart();
    let blurred = pool("shop", server.clone(), Amount::Unknown("its settings cannot be read".into()));
    world.runs("a", vec![blurred], vec![asked(server.clone(), SLOTS)]);
    world.wait(300);
    assert!(world.firing().is_some(), "it may be what it was");
    world.restart();
    world.runs("a", vec![pool("shop", server.clone(), Amount::Known(5))], vec![asked(server, SLOTS)]);
    world.wait(60);
    assert!(world.firing().is_none(), "the person never had a limit");
}

#[test]
fn evidence_that_does_not_name_all_lets_nothing_unknown_clear() {
    for (names, is_whole) in [(20, true), (21, false)] {
        let names: BTreeSet<String> = (0..names).map(|it| format!("app-{it}")).collect();
        let evidence = serde_json::json!({ "limits_known": evidence::all_of(&names) });
        assert_eq!(evidence::limits_known(&evidence.to_string()), is_whole.then_some(names));
    }
    assert_eq!(evidence::all_of(&[String::from("é").repeat(101)].into()), None, "it would be cut");
    for old in ["{}", "", r#"{"limits_known":[7]}"#] {
        assert_eq!(evidence::limits_known(old), None, "{old}");
    }
}

#[test]
fn a_server_is_only_known_by_its_address_to_those_that_share_it() {
    // The same loopback address on two hosts is two servers.
    let mut world = World::new();
    for agent in ["a", "b"] {
        let server = unasked("127.0.0.1:5432");
        world.runs(agent, vec![pool("shop", server.clone(), Amount::Known(40))], vec![asked(server, SLOTS)]);
    }
    assert_eq!(world.wait(120), NOTHING);
    // A replica has its primary's identifier and slots of its own.
    let mut world = World::new();
    for (agent, address, replica) in [("a", "10.0.0.5:5432", false), ("b", "10.0.0.6:5432", true)] {
        let server = ServerName { replica, ..identified(address) };
        world.runs(agent, vec![pool("shop", server.clone(), Amount::Known(40))], vec![asked(server, SLOTS)]);
    }
    assert_eq!(world.wait(120), NOTHING);
    // A shared address without identifiers is one.
    let mut world = World::new();
    for agent in ["a", "b"] {
        let server = unasked("10.0.0.5:5432");
        world.runs(agent, vec![pool("shop", server.clone(), Amount::Known(40))], vec![asked(server, SLOTS)]);
    }
    assert_eq!(world.wait(120), ["Opened critical"]);
}

#[test]
fn who_only_has_the_address_counts_in_the_upper_end() {
    let mut world = World::with_sum(20, 10);
    world.runs("c", vec![pool("report", unasked("10.0.0.5:5432"), Amount::Known(90))], Vec::new());
    assert_eq!(world.wait(300), NOTHING, "nobody has seen that those are connections of this server");
    let pools = world.state.fleet_pools(TENANT);
    let found: Vec<_> =
        pools.iter().map(|it| (it.application.as_str(), it.share.limit.low, it.share.limit.high)).collect();
    assert_eq!(found, [("billing", 10, Some(10)), ("report", 0, Some(90)), ("shop", 20, Some(20))]);
    assert_eq!(pools[0].server_limit, Range { low: 30, high: Some(120) });
}

#[test]
fn connections_that_a_proxy_holds_a_second_time_are_counted_once() {
    let mut world = World::new();
    let server = identified("10.0.0.5:5432");
    let through = PoolLevel { open: 24, ..pool("shop", server.clone(), Amount::Known(40)) };
    let proxy = PoolLevel { open: 24, ..pool("proxy", server.clone(), Amount::Unknown("nobody said".into())) };
    // The server has 24 sessions of the shop, and two of agents.
    let level = ServerLevel { used: Amount::Known(26), ..asked(server.clone(), SLOTS) };
    world.runs("a", vec![through.clone(), proxy.clone()], vec![level]);
    assert_eq!(world.wait(300), NOTHING, "40 and 2 of 57, not 64");
    // Of a pool that is no proxy the server knows more sessions.
    let level = ServerLevel { used: Amount::Known(50), ..asked(server, SLOTS) };
    world.runs("a", vec![through, proxy], vec![level]);
    assert_eq!(world.wait(300), ["Opened critical"]);
}

#[test]
fn an_agent_that_restarts_ends_nothing_and_one_that_stays_away_leaves() {
    let mut world = World::with_sum(40, 40);
    assert_eq!(world.wait(60), ["Opened critical"]);
    let b = world.alive.remove("b").expect("runs");
    world.says("b", true);
    assert_eq!(world.wait(90), NOTHING);
    world.runs("b", b.0, b.1);
    assert_eq!(world.wait(300), NOTHING, "back within two minutes");
    world.alive.remove("b");
    world.says("b", true);
    assert_eq!(world.wait(120), NOTHING);
    world.wait(60);
    assert!(world.firing().is_none(), "40 is under nine tenths of four fifths of 57");
    world.alive.clear();
    world.wait(300);
    assert!(world.state.fleet_pools(TENANT).is_empty());
}

#[test]
fn a_collector_that_restarts_goes_on_with_what_it_knew() {
    let mut world = World::with_sum(40, 40);
    assert_eq!(world.wait(60), ["Opened critical"]);
    world.restart();
    assert_eq!(world.wait(300), NOTHING, "neither again nor over");
    // Down for an hour: what is stored is old, so it proves nothing until it is told again.
    world.now += 3_600;
    world.restart();
    let alive = std::mem::take(&mut world.alive);
    assert_eq!(world.wait(20), NOTHING);
    world.alive = alive;
    assert_eq!(world.wait(300), NOTHING);
    assert!(world.firing().is_some());
    let server = identified("10.0.0.5:5432");
    world.runs("b", vec![pool("billing", server.clone(), Amount::Known(1))], vec![asked(server, SLOTS)]);
    world.wait(60);
    assert!(world.firing().is_none(), "and it still clears");
}

#[test]
fn what_comes_late_says_how_it_was() {
    let mut world = World::new();
    world.says("a", false);
    let server = identified("10.0.0.5:5432");
    let pools = vec![pool("shop", server.clone(), Amount::Known(90))];
    for _ in 0..10 {
        world.says("a", false);
        assert!(world.tells("a", pools.clone(), vec![asked(server.clone(), SLOTS)], at(world.now - 600)));
        assert_eq!(world.wait(10), NOTHING, "ten minutes old");
    }
}

#[derive(Debug, Clone)]
enum Act {
    Runs(usize, u32, bool),
    Dies(usize),
    Stops(usize),
    Denied(usize),
    Restart,
    Wait(i64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..3_usize, 0..60_u32, any::<bool>()).prop_map(|(it, limit, known)| Act::Runs(it, limit, known)),
        1 => (0..3_usize).prop_map(Act::Dies),
        1 => (0..3_usize).prop_map(Act::Stops),
        1 => (0..3_usize).prop_map(Act::Denied),
        1 => Just(Act::Restart),
        4 => (1..200_i64).prop_map(Act::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_it_ends_when_all_is_well_or_everybody_is_gone(
        acts in proptest::collection::vec(act(), 1..25),
        gone in any::<bool>(),
    ) {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let mut world = World::new();
        for act in acts {
            match act {
                Act::Runs(it, limit, known) => {
                    let server = identified("10.0.0.5:5432");
                    let limit = if known { Amount::Known(limit) } else { Amount::Unknown("x".into()) };
                    world.runs(NAMES[it], vec![pool(NAMES[it], server.clone(), limit)], vec![asked(server, SLOTS)]);
                }
                Act::Dies(it) => drop(world.alive.remove(NAMES[it])),
                Act::Stops(it) => {
                    world.alive.remove(NAMES[it]);
                    world.says(NAMES[it], true);
                }
                Act::Denied(it) => {
                    world.alive.remove(NAMES[it]);
                    world.levels.remove(NAMES[it]);
                    world.apply(Event::Denied { tenant: TENANT, agent: NAMES[it] });
                }
                Act::Restart => world.restart(),
                Act::Wait(seconds) => drop(world.wait(seconds)),
            }
            let firing = world.incidents.iter().filter(|it| it.check == POOL_BUDGET && it.status == Status::Firing);
            prop_assert!(firing.count() <= 1);
        }
        world.alive.clear();
        if !gone {
            let server = identified("10.0.0.5:5432");
            world.runs("a", vec![pool("shop", server.clone(), Amount::Known(3))], vec![asked(server, SLOTS)]);
        }
        world.wait(1_200);
        prop_assert!(world.firing().is_none(), "{:?}", world.firing());
        prop_assert_eq!(world.state.fleet_pools(TENANT).len(), usize::from(!gone));
    }
}
