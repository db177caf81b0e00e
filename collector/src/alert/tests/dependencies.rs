//! Dependencies: who knows that a server is down is spared what its clients suffer, and nobody else is.

use super::*;
use crate::store::{DependencyRow, Edge};

const SERVER: &str = "10.0.0.5:5432";
const POOL: &str = "pool:shop/main>10.0.0.5:5432";

/// Receiver `db` hears of servers, `team` of pools, and of servers too if it `knows`.
fn policy(knows: bool) -> Policy {
    let route = |receiver: &str, matchers: &[&str], routes: Vec<Route>| Route {
        at: format!("route of {receiver}"),
        path: receiver.into(),
        receiver: receiver.into(),
        matchers: matchers.iter().map(|it| it.parse().expect("a matcher")).collect(),
        goes_on: true,
        routes,
        grouping: None,
        mute: Vec::new(),
        active: Vec::new(),
        escalate: Vec::new(),
    };
    let of_team = if knows { "check=~\"pool.*|db.*\"" } else { "check=~\"pool.*\"" };
    let routes = vec![route("team", &[of_team], Vec::new()), route("db", &["check=~\"db.*\""], Vec::new())];
    let receivers = vec![Receiver::new("db"), Receiver::new("team")];
    let dependencies = Dependencies::default();
    Policy { route: Some(route("db", &[], routes)), dependencies, ..Policy::from(receivers) }
}

fn row(id: char, check: &str, target: &str) -> IncidentRow {
    let fingerprint = Fingerprint::of("default", "a", check, target, None);
    let id = format!("01JCZZZZZZZZZZZZZZZZZZZZZ{id}");
    IncidentRow { id, target: target.into(), fingerprint, ..incident(check, Critical, 0) }
}

struct Estate {
    policy: Policy,
    state: State,
    edges: DependencyRow,
    told: Vec<String>,
}

impl Estate {
    fn new(knows: bool) -> Self {
        let edge = Edge {
            pools: [POOL.to_owned()].into(),
            applications: ["shop".to_owned()].into(),
            names: [SERVER.to_owned()].into(),
            seen_at: at(0),
        };
        let edges = [(SERVER.to_owned(), edge)].into();
        let row = DependencyRow { tenant: "default".into(), agent: "a".into(), edges, seen_at: at(0) };
        let state = State::default().with_dependencies(vec![row.clone()], []);
        Self { policy: policy(knows), state, edges: row, told: Vec::new() }
    }

    /// Decides, and writes down who is told of what, or what is held back from whom.
    fn change(&mut self, row: &mut IncidentRow, kind: ChangeKind, second: i64) {
        row.state_epoch += 1;
        row.status = if kind == Resolved { Status::Resolved } else { Status::Firing };
        let change = IncidentChange { incident: row.clone(), kind, reason: format!("{kind:?}") };
        for decision in self.state.decide(&change, None, &self.policy, at(second)) {
            let it = decision.row;
            let held = matches!(decision.withheld, Withheld::Put(_));
            if it.told || held {
                let word = if held { "spared" } else { "told" };
                self.told.push(format!("{} {word} {}", it.receiver, it.kind.trim_start_matches("incident.")));
            }
        }
    }

    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }
}

#[test]
fn who_hears_of_the_server_is_spared_and_hears_of_what_is_left_when_it_is_back() {
    let mut estate = Estate::new(true);
    let (mut server, mut pool) =
        (row('0', "db.connect", "server:10.0.0.5:5432/shop"), row('1', "pool.exhausted", POOL));
    estate.change(&mut server, Opened, 1);
    assert_eq!(estate.take(), ["db told firing", "team told firing"]);
    estate.change(&mut pool, Opened, 2);
    assert_eq!(estate.take(), ["team spared firing"]);
    estate.change(&mut server, Resolved, 3);
    assert_eq!(estate.take(), ["db told resolved", "team told resolved"]);
    let mut due = estate.state.lapses(&estate.policy, at(3));
    assert!(due.is_empty(), "what had one cause mostly clears with it");
    due = estate.state.lapses(&estate.policy, at(3).saturating_add(GRACE).expect("in range"));
    assert_eq!(due[0].incidents, [pool.id.clone()].into());
    estate.change(&mut pool, Reconsidered, 40);
    assert_eq!(estate.take(), ["team told firing"]);
    estate.change(&mut pool, Resolved, 50);
    assert_eq!(estate.take(), ["team told resolved"]);
}

#[test]
fn who_does_not_hear_of_the_server_is_told_of_its_clients() {
    let mut estate = Estate::new(false);
    let (mut server, mut pool) =
        (row('0', "db.connect", "server:10.0.0.5:5432/shop"), row('1', "pool.exhausted", POOL));
    estate.change(&mut server, Opened, 1);
    estate.change(&mut pool, Opened, 2);
    assert_eq!(estate.take(), ["db told firing", "team told firing"]);
}

#[test]
fn who_silenced_the_server_is_spared_its_clients_too() {
    let mut estate = Estate::new(true);
    let silence = SilenceRow {
        tenant: "default".into(),
        id: "sil_1".into(),
        matchers: vec!["check=\"db.connect\"".into()],
        author: "anna".into(),
        reason: "it moves".into(),
        created_at: at(0),
        starts_at: at(0),
        ends_at: at(1_000),
        over_at: None,
    };
    estate.state.silence(vec![Silence::new(silence).expect("sound")]);
    let (mut server, mut pool) =
        (row('0', "db.connect", "server:10.0.0.5:5432/shop"), row('1', "pool.exhausted", POOL));
    estate.change(&mut server, Opened, 1);
    estate.change(&mut pool, Opened, 2);
    assert_eq!(estate.take(), ["db spared firing", "team spared firing", "team spared firing"]);
}

/// The silence of the server ends, and what is told of it is mute now: nobody chose not to hear of its clients.
#[test]
fn a_silence_that_gives_way_to_a_time_interval_spares_nothing_any_more() {
    let mut estate = Estate::new(true);
    let night = Window { name: "night".into(), spans: vec![Span::default()] };
    let route = estate.policy.route.as_mut().expect("a route");
    route.routes[0].matchers = vec!["check=~\"pool.*\"".parse().expect("a matcher")];
    let matchers = vec!["check=~\"db.*\"".parse().expect("a matcher")];
    let of_servers =
        Route { at: "route of servers".into(), matchers, mute: vec!["night".into()], ..route.routes[0].clone() };
    route.routes.push(of_servers);
    estate.state.silence(vec![Silence::new(silence("sil_1", "check=db.connect")).expect("sound")]);
    let (mut server, mut pool) =
        (row('0', "db.connect", "server:10.0.0.5:5432/shop"), row('1', "pool.exhausted", POOL));
    estate.change(&mut server, Opened, 1);
    estate.change(&mut pool, Opened, 2);
    assert_eq!(estate.take(), ["db spared firing", "team spared firing", "team spared firing"]);
    estate.policy.windows = vec![night];
    estate.state.silence(Vec::new());
    estate.change(&mut server, Reconsidered, 3);
    assert_eq!(estate.take(), ["db told firing", "team spared firing"]);
    let later = at(3).saturating_add(GRACE).expect("in range");
    let lapses = estate.state.lapses(&estate.policy, later);
    assert_eq!(lapses.iter().flat_map(|it| &it.incidents).collect::<Vec<_>>(), [&pool.id]);
    estate.change(&mut pool, Reconsidered, 40);
    assert_eq!(estate.take(), ["team told firing"]);
}

#[test]
fn a_restart_in_the_middle_changes_nothing() {
    let mut estate = Estate::new(true);
    let (mut server, mut pool) =
        (row('0', "db.connect", "server:10.0.0.5:5432/shop"), row('1', "pool.exhausted", POOL));
    estate.change(&mut server, Opened, 1);
    estate.change(&mut pool, Opened, 2);
    let held = WithheldRow {
        tenant: "default".into(),
        incident: pool.id.clone(),
        receiver: "team".into(),
        kind: "incident.firing".into(),
        held_by: server.id.clone(),
    };
    let told = |policy: &Policy| {
        let mut told = Vec::new();
        for receiver in ["db", "team"] {
            told.push(DecisionRow {
                tenant: "default".into(),
                incident: server.id.clone(),
                receiver: receiver.into(),
                state_epoch: 1,
                told: true,
                kind: "incident.firing".into(),
                reason: "began".into(),
                decided_at: at(1),
                message: None,
                in_group: None,
            });
        }
        let edges = estate.edges.clone();
        let rows = [&server, &pool].map(|it| (it, None));
        let again = State::load(told, Vec::new()).with_dependencies(vec![edges], []).with_withheld(vec![held.clone()]);
        let mut again = again.with_sources(rows.iter().copied(), policy);
        again.look_for_strays(rows.iter().copied(), policy, false, at(3));
        again
    };
    let later = at(3).saturating_add(GRACE).expect("in range");
    assert!(told(&estate.policy).lapses(&estate.policy, later).is_empty(), "the server holds it back still");
    // Once nothing is learnt any more, it holds nothing.
    let dependencies = Dependencies { learnt: false, ..Dependencies::default() };
    let without = Policy { dependencies, ..policy(true) };
    assert_eq!(told(&without).lapses(&without, later).len(), 1);
}

#[test]
fn of_several_incidents_of_a_server_the_one_that_a_receiver_knows_spares_it() {
    let mut estate = Estate::new(true);
    let target = "server:10.0.0.5:5432/shop";
    // The first is of no concern to the team.
    let mut other = IncidentRow { severity: Critical, ..row('0', "db.headroom", target) };
    let mut policy = policy(true);
    policy.receivers[1].skip_checks = vec!["db.headroom".into()];
    estate.policy = policy;
    let (mut server, mut pool) = (row('1', "db.connect", target), row('2', "pool.exhausted", POOL));
    estate.change(&mut other, Opened, 1);
    estate.change(&mut server, Opened, 2);
    estate.take();
    estate.change(&mut pool, Opened, 3);
    assert_eq!(estate.take(), ["team spared firing"]);
}

/// Two servers that need each other, each declared to depend on the other: none is spared with the other, and what both suffer is told.
#[test]
fn two_servers_that_depend_on_each_other_explain_each_others_clients_and_never_each_other() {
    let mut estate = Estate::new(true);
    let matchers = |text: &str| vec![text.parse().expect("a matcher")];
    let declared = |target: &str, server: &str| Declared {
        at: "depends_on[0]".into(),
        matchers: matchers(&format!("target=~\"server:{target}.*\"")),
        server: server.into(),
    };
    let both = vec![declared("10.0.0.5", "10.0.0.6:5432"), declared("10.0.0.6", "10.0.0.5:5432")];
    estate.policy.dependencies =
        Dependencies { targets: matchers("check=~\".+\""), declared: both, ..Dependencies::default() };
    let row = |id, check, host: &str| row(id, check, &format!("server:{host}:5432/shop"));
    let (mut one, mut other) = (row('0', "db.connect", "10.0.0.5"), row('1', "db.connect", "10.0.0.6"));
    let (mut of_one, mut of_other) = (row('2', "db.replica", "10.0.0.5"), row('3', "db.replica", "10.0.0.6"));
    let told = ["db told firing", "team told firing"];
    estate.change(&mut one, Opened, 1);
    estate.change(&mut other, Opened, 2);
    assert_eq!(estate.take(), [told, told].concat(), "a server that is away is told whatever else is");
    estate.change(&mut of_one, Opened, 3);
    estate.change(&mut of_other, Opened, 3);
    let spared = ["db spared firing", "team spared firing"];
    assert_eq!(estate.take(), [spared, spared].concat());
    estate.change(&mut one, Resolved, 4);
    estate.change(&mut other, Resolved, 5);
    let over = ["db told resolved", "team told resolved"];
    assert_eq!(estate.take(), [over, over].concat());
    let lapses = estate.state.lapses(&estate.policy, at(5).saturating_add(GRACE).expect("in range"));
    assert_eq!(lapses.iter().map(|it| it.incidents.len()).sum::<usize>(), 2, "and nothing is held for ever");
    estate.change(&mut of_one, Reconsidered, 60);
    estate.change(&mut of_other, Reconsidered, 60);
    assert_eq!(estate.take(), [told, told].concat());
}

/// A hundred agents miss one server, and a team hears of its own alone.
#[test]
fn of_many_incidents_of_a_server_each_receiver_is_spared_by_its_own() {
    let mut estate = Estate::new(true);
    let routes = &mut estate.policy.route.as_mut().expect("a route").routes;
    routes[0].matchers.push("agent=\"a\"".parse().expect("a matcher"));
    for number in 0..100 {
        let agent = format!("A{number:02}");
        let mut other = row('2', "db.connect", "server:10.0.0.5:5432/shop");
        (other.id, other.agent) = (format!("01JCZZZZZZZZZZZZZZZZZZZ{number:03}"), agent);
        estate.change(&mut other, Opened, 1);
    }
    assert_eq!(estate.take(), ["db told firing"; 100]);
    let (mut server, mut pool) =
        (row('0', "db.connect", "server:10.0.0.5:5432/shop"), row('1', "pool.exhausted", POOL));
    estate.change(&mut server, Opened, 2);
    estate.change(&mut pool, Opened, 3);
    assert_eq!(estate.take(), ["db told firing", "team told firing", "team spared firing"]);
    // Nor is it taken for what strayed.
    let found = [(&pool, None)];
    estate.state.look_for_strays(found.into_iter(), &estate.policy, true, at(4));
    assert!(estate.state.lapses(&estate.policy, at(100)).is_empty());
}

/// It flaps, and goes away for now or is back.
fn flap(row: &mut IncidentRow, is_calm: bool) {
    row.flap = Some(Box::new(FlapRow { since: Some(at(0)), calm_since: is_calm.then(|| at(0)), ..FlapRow::default() }));
}

#[test]
fn a_client_that_has_gone_away_is_not_told_when_its_server_goes_away_too() {
    let mut estate = Estate::new(true);
    let (mut server, mut pool) =
        (row('0', "db.connect", "server:10.0.0.5:5432/shop"), row('1', "pool.exhausted", POOL));
    estate.change(&mut server, Opened, 1);
    estate.change(&mut pool, Opened, 2);
    estate.take();
    flap(&mut pool, true);
    estate.change(&mut pool, Flapped, 3);
    flap(&mut server, true);
    estate.change(&mut server, Flapped, 4);
    let later = at(4).saturating_add(GRACE).expect("in range");
    assert_eq!(estate.state.lapses(&estate.policy, later).len(), 1);
    estate.change(&mut pool, Reconsidered, 40);
    assert_eq!(estate.take(), ["team spared firing"], "it is not there");
    // Somebody had the server, who has it no more: it explains nothing for all that.
    estate.change(&mut server, Unacknowledged, 41);
    estate.take();
    flap(&mut pool, false);
    estate.change(&mut pool, Flapped, 50);
    assert_eq!(estate.state.lapses(&estate.policy, at(50)).len(), 1);
    estate.change(&mut pool, Reconsidered, 51);
    assert_eq!(estate.take(), ["team told firing"], "it is back, and the server is there");
}
