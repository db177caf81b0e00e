//! Two tenants have the same in everything but their names: nothing of one holds back, ends, gathers or explains what is the other's.

use std::convert::Infallible;

use super::super::{Ask, Found, Sought};
use super::ward::{WAIT, body, grouping, policy};
use super::*;
use crate::store::{DependencyRow, Edge};

const TENANTS: [&str; 2] = ["default", "other"];

fn row(tenant: &str, check: &str, target: &str) -> IncidentRow {
    IncidentRow { tenant: tenant.into(), target: target.into(), ..incident(check, Warning, 0) }
}

/// Who is told of a change, and what it is called.
fn told(state: &mut State, policy: &Policy, row: &mut IncidentRow, kind: ChangeKind, second: i64) -> Vec<String> {
    row.state_epoch += 1;
    row.status = if kind == Resolved { Status::Resolved } else { Status::Firing };
    let change = IncidentChange { incident: row.clone(), kind, reason: format!("{kind:?}") };
    let decisions = state.decide(&change, None, policy, at(second)).into_iter().map(|it| it.row);
    decisions.filter(|it| it.told).map(|it| format!("{} {}", it.tenant, it.kind)).collect()
}

#[test]
fn what_ends_or_is_silenced_or_somebodys_for_one_goes_on_for_the_other() {
    let policy = policy(None);
    let mut state = State::default();
    let [mut ours, mut theirs] = TENANTS.map(|it| row(it, "pool.leak", "pool:shop"));
    assert_eq!(ours.id, theirs.id);
    assert_eq!(told(&mut state, &policy, &mut ours, Opened, 1), ["default incident.firing"]);
    assert!(told(&mut state, &policy, &mut theirs, Resolved, 2).is_empty(), "it was never told to fire");
    assert_eq!(told(&mut state, &policy, &mut theirs, Opened, 3), ["other incident.firing"]);
    state.silence(vec![Silence::new(silence("sil_1", "check=pool.leak")).expect("sound")]);
    assert!(told(&mut state, &policy, &mut ours, Worsened, 4).is_empty());
    assert_eq!(told(&mut state, &policy, &mut theirs, Worsened, 4), ["other incident.worsened"]);
    state.silence(Vec::new());
    let (tenant, incident, ends_at) = (ours.tenant.clone(), ours.id.clone(), at(900));
    let ask = Ask { id: Ulid::from_parts(1, 1), tenant, incident, owner: "anna".into(), note: None, ends_at };
    state.take_acknowledgements(vec![ask.of(Some(&ours), at(5)).expect("it fires")]);
    assert!(told(&mut state, &policy, &mut ours, Updated, 6).is_empty());
    assert_eq!(told(&mut state, &policy, &mut theirs, Updated, 6), ["other incident.updated"]);
    assert_eq!(told(&mut state, &policy, &mut ours, Resolved, 7), ["default incident.resolved"]);
    assert_eq!(state.owed()["ops"], 1, "of the other's");
    assert_eq!(told(&mut state, &policy, &mut theirs, Resolved, 8), ["other incident.resolved"]);
}

#[test]
fn what_fires_for_one_explains_nothing_of_the_others() {
    let matchers = |text: &str| vec![text.parse().expect("a matcher")];
    let mut inhibits = policy(None);
    inhibits.inhibitions = vec![Inhibition {
        at: "inhibit_rules[0]".into(),
        sources: matchers("check=db.connect"),
        targets: matchers("check=pool.exhausted"),
        equal: Vec::new(),
    }];
    let address = "10.0.0.5:5432";
    let edges = |tenant: &str| {
        let edge = Edge {
            pools: ["pool:shop/main>10.0.0.5:5432".to_owned()].into(),
            applications: ["shop".to_owned()].into(),
            names: [address.to_owned()].into(),
            seen_at: at(0),
        };
        let edges = [(address.to_owned(), edge)].into();
        DependencyRow { tenant: tenant.into(), agent: "a".into(), edges, seen_at: at(0) }
    };
    for policy in [inhibits, policy(None)] {
        let mut state = State::default().with_dependencies(TENANTS.map(edges).into(), []);
        let mut server =
            IncidentRow { severity: Critical, ..row("default", "db.connect", "server:10.0.0.5:5432/shop") };
        let [mut ours, mut theirs] = TENANTS.map(|it| row(it, "pool.exhausted", "pool:shop/main>10.0.0.5:5432"));
        // Ids are of one tenant; the source has another than what it explains.
        server.id = "01JCZZZZZZZZZZZZZZZZZZZZZ0".into();
        assert_eq!(told(&mut state, &policy, &mut server, Opened, 1), ["default incident.firing"]);
        assert!(told(&mut state, &policy, &mut ours, Opened, 2).is_empty());
        assert_eq!(told(&mut state, &policy, &mut theirs, Opened, 2), ["other incident.firing"]);
    }
}

#[test]
fn what_is_alike_is_told_together_within_a_tenant_only() {
    let policy = policy(Some(grouping()));
    let mut state = State::default();
    let rows = TENANTS.map(|it| row(it, "pool.leak", "pool:shop"));
    for row in &rows {
        told(&mut state, &policy, &mut row.clone(), Opened, 1);
    }
    let find = |(tenant, id): &IncidentKey, _: Option<Fingerprint>| {
        let found = rows.iter().find(|it| it.tenant == *tenant && it.id == *id);
        Ok::<_, Infallible>(found.map(|it| -> Found<'_> { (Sought::Known(it), None) }))
    };
    let Ok(flushes) = state.flush(&policy, at(1 + WAIT), find);
    let messages: Vec<_> = flushes.iter().filter_map(|it| it.message.as_ref()).collect();
    let mut of: Vec<_> = messages.iter().map(|it| (it.tenant.as_str(), body(it)["group"]["firing"].clone())).collect();
    of.sort_by_key(|it| it.0);
    assert_eq!(of, TENANTS.map(|it| (it, 1.into())));
    let ids: BTreeSet<_> = flushes.iter().map(|it| (&it.group.tenant, &it.group.id)).collect();
    assert_eq!(ids.len(), 2, "each has a group of its own: {ids:?}");
}
