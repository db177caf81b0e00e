//! Services behind one pooler whose DSNs differ.

use tickbird_shared::levels::DsnLevel;

use super::*;

const POOLER: &str = "10.0.0.7:6432";
const KEY: &str = "statement_cache_size";

/// A pool to the pooler whose agent knows that it hands out connections by transaction.
fn service(application: &str, driver: &str, right: &[&str]) -> PoolLevel {
    let keys = |them: &[&str]| them.iter().map(|it| (*it).to_owned()).collect();
    let dsn = DsnLevel { driver: driver.into(), required: keys(&[KEY]), right: keys(right) };
    let limit = Amount::Known(5);
    PoolLevel { dsn: Some(dsn), by_transaction: Some(true), ..pool(application, unasked(POOLER), limit) }
}

fn with_key(application: &str) -> PoolLevel {
    service(application, "asyncpg", &[KEY])
}

fn without_key(application: &str) -> PoolLevel {
    service(application, "asyncpg", &[])
}

fn at_address(it: PoolLevel, address: &str) -> PoolLevel {
    PoolLevel { server: unasked(address), ..it }
}

fn world(pools: [PoolLevel; 2]) -> World {
    let mut world = World::new();
    for (agent, pool) in ["a", "b"].into_iter().zip(pools) {
        world.runs(agent, vec![pool], Vec::new());
    }
    world
}

fn firing(world: &World) -> Option<&IncidentRow> {
    world.incidents.iter().find(|it| it.check == POOL_PARAMS && it.status == Status::Firing)
}

const OPENED: [&str; 1] = ["Opened params warning"];
const OVER: [&str; 1] = ["Resolved params warning"];

#[test]
fn a_service_without_the_key_that_another_has_is_named_until_both_agree() {
    let mut world = world([with_key("shop"), without_key("billing")]);
    assert_eq!(world.wait(29), NOTHING, "not before three looks");
    assert_eq!(world.wait(15), OPENED);
    let incident = firing(&world).expect("fires");
    assert_eq!(incident.target, format!("server:{POOLER}"));
    assert_eq!(incident.sub_key.as_deref(), Some("asyncpg"));
    assert!(
        incident.summary.contains("statement_cache_size is set by shop and not by billing"),
        "{}",
        incident.summary
    );
    let evidence: serde_json::Value = serde_json::from_str(&incident.evidence).expect("JSON");
    assert_eq!(evidence["keys"][0], serde_json::json!({ "key": KEY, "with": ["shop"], "without": ["billing"] }));
    assert_eq!(world.wait(300), NOTHING, "told once");
    world.runs("b", vec![with_key("billing")], Vec::new());
    assert_eq!(world.wait(60), OVER);
    world.runs("b", vec![without_key("billing")], Vec::new());
    world.runs("a", vec![without_key("shop")], Vec::new());
    assert_eq!(world.wait(300), NOTHING, "nobody has it: perhaps both set it in their code");
}

#[test]
fn who_joins_them_is_news_and_who_goes_ends_it() {
    let mut world = world([with_key("shop"), without_key("billing")]);
    assert_eq!(world.wait(60), OPENED);
    world.runs("c", vec![without_key("search")], Vec::new());
    assert_eq!(world.wait(120), ["Updated params warning"]);
    assert!(firing(&world).is_some_and(|it| it.summary.contains("billing, search")));
    world.runs("c", Vec::new(), Vec::new());
    world.runs("b", Vec::new(), Vec::new());
    assert_eq!(world.wait(60), OVER, "their pools are gone");
    world.runs("b", vec![without_key("billing")], Vec::new());
    world.wait(60);
    assert!(firing(&world).is_some());
    world.alive.remove("b");
    world.says("b", true);
    assert_eq!(world.wait(300), OVER, "its host is gone");
    world.runs("b", vec![without_key("billing")], Vec::new());
    world.wait(60);
    assert!(firing(&world).is_some());
    world.alive.clear();
    world.wait(600);
    assert!(firing(&world).is_none(), "all are gone");
}

#[test]
fn only_what_is_known_is_compared_and_only_what_is_known_clears() {
    let blurred = |it: PoolLevel| PoolLevel { dsn: None, ..it };
    assert_eq!(world([with_key("shop"), blurred(without_key("billing"))]).wait(300), NOTHING, "its DSN was not read");
    let mut world = world([with_key("shop"), without_key("billing")]);
    assert_eq!(world.wait(60), OPENED);
    world.runs("b", vec![blurred(without_key("billing"))], Vec::new());
    assert_eq!(world.wait(300), NOTHING, "it may lack it still");
    world.restart();
    assert_eq!(world.wait(300), NOTHING, "and after a restart, too");
    world.runs("a", vec![blurred(with_key("shop"))], Vec::new());
    assert_eq!(world.wait(300), NOTHING);
    // An agent that leaves something out may have left out just that.
    world.runs("a", vec![with_key("shop")], Vec::new());
    world.alive.remove("b");
    for _ in 0..6 {
        world.says("b", false);
        let (now, epoch) = (at(world.now), epoch('A'));
        let levels = Levels { form: FORM, observed_at: now, pools: Vec::new(), left_out: 1, servers: Vec::new() };
        let (tenant, agent) = (TENANT.to_owned(), "b".to_owned());
        let mut row = LevelsRow { tenant, agent, epoch, seen_at: now, received_at: now, levels };
        assert!(world.state.levels(&mut row, now));
        assert_eq!(world.wait(10), NOTHING);
    }
    // Somebody else of whom nothing is known was never part of it.
    world.runs("c", vec![blurred(with_key("report"))], Vec::new());
    world.runs("b", vec![with_key("billing")], Vec::new());
    assert_eq!(world.wait(60), OVER);
}

#[test]
fn other_drivers_other_poolers_and_other_hosts_are_not_compared() {
    let psycopg2 = PoolLevel {
        dsn: Some(DsnLevel { driver: "psycopg2".into(), required: Vec::new(), right: Vec::new() }),
        ..without_key("billing")
    };
    assert_eq!(world([with_key("shop"), psycopg2]).wait(300), NOTHING);
    assert_eq!(world([with_key("shop"), service("billing", "jdbc", &[])]).wait(300), NOTHING);
    assert_eq!(world([with_key("shop"), at_address(without_key("billing"), "10.0.0.8:6432")]).wait(300), NOTHING);
    // The same address on two hosts, and two poolers.
    for address in ["127.0.0.1:6432", "172.18.0.3:6432", "169.254.1.1:6432", "netns:127.0.0.1:6432", "unix:/run/6432"] {
        let pools = [with_key("shop"), without_key("billing")].map(|it| at_address(it, address));
        assert_eq!(world(pools).wait(300), NOTHING, "{address}");
        // On one host it is one.
        let mut world = World::new();
        let pools = [with_key("shop"), without_key("billing")].map(|it| at_address(it, address));
        world.runs("a", pools.into(), Vec::new());
        assert_eq!(world.wait(60), OPENED, "{address}");
    }
}

#[test]
fn what_leads_to_no_pooler_by_transaction_is_not_compared() {
    let as_said = |mode: Option<bool>, address: &str| {
        world(
            [with_key("shop"), without_key("billing")]
                .map(|it| at_address(PoolLevel { by_transaction: mode, ..it }, address)),
        )
    };
    assert_eq!(as_said(Some(false), POOLER).wait(300), NOTHING, "by session, or the server itself");
    assert_eq!(as_said(None, "10.0.0.5:5432").wait(300), NOTHING, "nobody says that it is a pooler");
    assert_eq!(as_said(None, POOLER).wait(60), OPENED, "its port says so");
    // One agent knows; the other only has the address.
    for (mode, expected) in [(true, &OPENED[..]), (false, &[])] {
        let mut pools = [with_key("shop"), without_key("billing")].map(|it| at_address(it, "10.0.0.5:7000"));
        pools[0].by_transaction = Some(mode);
        pools[1].by_transaction = None;
        assert_eq!(world(pools).wait(60), expected);
    }
    // An agent beside the pooler, which runs none of the services.
    let mut world = as_said(None, "10.0.0.5:7000");
    let pooler = ServerLevel {
        asked_as: None,
        addresses: vec!["127.0.0.1:7000".into(), "10.0.0.5:7000".into()],
        by_transaction: Some(true),
        ..asked(unasked("127.0.0.1:7000"), SLOTS)
    };
    world.runs("c", Vec::new(), vec![pooler]);
    assert_eq!(world.wait(60), OPENED);
    // It is told to hand out connections by session.
    for agent in ["a", "b"] {
        let (pools, _) = world.alive.get_mut(agent).expect("runs");
        pools[0].by_transaction = Some(false);
    }
    assert_eq!(world.wait(60), OVER);
}

#[test]
fn a_server_with_an_identifier_is_one_by_whatever_address_and_directly_it_needs_no_key() {
    let named = |it: PoolLevel, address: &str| PoolLevel { server: identified(address), ..it };
    let pools = [named(with_key("shop"), "127.0.0.1:6432"), named(without_key("billing"), "10.0.0.5:6432")];
    assert_eq!(world(pools).wait(60), OPENED);
    let direct = PoolLevel { by_transaction: Some(false), ..named(without_key("billing"), "10.0.0.5:5432") };
    assert_eq!(world([named(with_key("shop"), "127.0.0.1:6432"), direct]).wait(300), NOTHING);
}

#[test]
fn what_one_operator_demands_is_looked_for_everywhere() {
    let demanded = |mut it: PoolLevel| {
        it.dsn.iter_mut().for_each(|dsn| dsn.required = vec!["no_prepare|raw_sql".into()]);
        it
    };
    let shop = demanded(service("shop", "asyncpg", &["raw_sql"]));
    assert_eq!(world([shop.clone(), without_key("billing")]).wait(60), OPENED);
    assert_eq!(world([shop, service("billing", "asyncpg", &["no_prepare"])]).wait(300), NOTHING, "one is enough");
}

#[test]
fn a_collector_that_restarts_neither_repeats_it_nor_forgets_whom_it_named() {
    let mut world = world([with_key("shop"), without_key("billing")]);
    assert_eq!(world.wait(60), OPENED);
    world.restart();
    assert_eq!(world.wait(300), NOTHING);
    // Down for an hour.
    world.now += 3_600;
    world.restart();
    let alive = std::mem::take(&mut world.alive);
    assert_eq!(world.wait(20), NOTHING);
    world.alive = alive;
    world.runs("c", vec![PoolLevel { dsn: None, ..with_key("report") }], Vec::new());
    assert_eq!(world.wait(60), NOTHING);
    world.runs("b", vec![with_key("billing")], Vec::new());
    assert_eq!(world.wait(60), OVER, "the third was not named");
}
