//! Whether a connection that was never given back is told from one that was, by each library's pool.
//!
//! At the server both are an idle session. Every look of the agent is compared with what the application itself wrote:
//! no connection that nobody keeps is ever called held, and where a rule applies nearly every kept one is.

use tickbird_tests::alone::alone_within;
use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, Stage, StageError, alone};

const LEAK: &str = "pool.leak";
/// The share of looks at a connection kept for 15 s or more that have to call it held, where a rule applies.
const RECALL: f64 = 0.85;

const fn role(name: &'static str, library: Library) -> Role {
    Role { name, library, sizes: Sizes::full(12) }
}

/// Says nothing against the truth; of what is kept, `recall` of the looks say so. Without a rule, all are unknown.
fn judged(scene: &mut Scene, name: &str, recall: Option<f64>) -> Result<(), StageError> {
    let found = scene.comparison(name)?;
    assert!(found.wrong.is_empty(), "{name}: {} times against the truth: {:#?}", found.wrong.len(), found.wrong);
    let kept = found.of("keep");
    assert!(kept.samples() > 20, "{name}: too few looks to say anything: {found}");
    match recall {
        Some(least) => assert!(kept.share(&["held", "leased"]) >= least, "{name}: {found}"),
        None => assert!((kept.share(&["unknown", "group stop"]) - 1.0).abs() < 1e-9, "{name}: {found}"),
    }
    Ok(())
}

fn healthy(scene: &mut Scene, name: &str) -> Result<(), StageError> {
    let found = scene.comparison(name)?;
    assert!(found.looks > 30 && found.wrong.is_empty(), "{name}: {found}: {:#?}", found.wrong);
    scene.is_quiet_about(name)
}

/// Ports of the connections that the finding names.
fn named(finding: &serde_json::Value) -> Vec<u16> {
    let rows = finding["evidence"]["connections"].as_array().cloned().unwrap_or_default();
    let mut ports: Vec<u16> =
        rows.iter().filter_map(|it| it["local"].as_str()?.rsplit(':').next()?.parse().ok()).collect();
    ports.sort_unstable();
    ports
}

/// Keeps three, ten seconds apart, and gives their ports.
fn keeps(scene: &mut Scene, names: &[&str]) -> Result<Vec<Vec<u16>>, StageError> {
    let mut ports = vec![Vec::new(); names.len()];
    for round in 0..3 {
        for (name, ports) in names.iter().zip(&mut ports) {
            let did = scene.app(name).does("keep 1")?;
            let told = did.as_array().into_iter().flatten();
            ports.extend(told.filter_map(|it| u16::try_from(it.as_u64()?).ok()));
        }
        if round < 2 {
            scene.passes(7.s())?;
        }
    }
    ports.iter_mut().for_each(|it| it.sort_unstable());
    Ok(ports)
}

/// Two libraries that rotate, one that is a stack, at this many requests a second; and the healthy twin of each.
fn rotating_and_stacked(stage: &Stage, rate: u32, warm: u64) -> Result<(), StageError> {
    let roles = [
        role("fifo-leaky", Library::QueuePool),
        role("fifo-twin", Library::QueuePool),
        role("lifo-leaky", Library::QueuePoolLifo),
        role("lifo-twin", Library::QueuePoolLifo),
    ];
    let mut scene = Scene::begin(stage, &roles, "")?;
    for role in roles {
        scene.app(role.name).does(&format!("traffic {rate}"))?;
    }
    scene.is_seen()?;
    scene.passes_until("the discipline is known", warm.s(), |sample| {
        let rotating = sample.pools.iter().filter(|it| it.target.contains("fifo-") && it.discipline == "rotating");
        rotating.count() == 2
    })?;
    let ports = keeps(&mut scene, &["fifo-leaky", "lifo-leaky"])?;
    scene.fires(LEAK, "fifo-leaky", 150.s())?;
    let finding = scene.fires(LEAK, "fifo-leaky", 1.s())?;
    let named = named(&finding);
    assert!(named.len() >= 2 && named.iter().all(|it| ports[0].contains(it)), "{named:?} of {ports:?}: {finding}");
    judged(&mut scene, "fifo-leaky", Some(RECALL))?;
    judged(&mut scene, "lifo-leaky", None)?;
    for twin in ["fifo-twin", "lifo-twin"] {
        healthy(&mut scene, twin)?;
    }
    scene.is_quiet_about("lifo-leaky")?;
    scene.app("fifo-leaky").does("repair")?;
    scene.watch.resolves(LEAK, "fifo-leaky", 60.s())?;
    scene.all_served()
}

#[test]
fn at_sixty_requests_a_second_what_a_queue_leaks_is_named_and_of_a_stack_nothing_is_claimed() {
    alone(|stage| rotating_and_stacked(stage, 60, 60));
}

#[test]
fn at_four_requests_a_second_what_a_queue_leaks_is_named_and_of_a_stack_nothing_is_claimed() {
    // A pick falls between two dumps at every eighth look, and fifteen have to before the order is known.
    alone_within(480.s(), |stage| rotating_and_stacked(stage, 4, 270));
}

/// The second pool of one process to the same server rests from the start, or stops after a while.
#[test]
fn a_second_pool_that_rests_or_goes_quiet_is_not_a_leak() {
    alone(|stage| {
        let roles = [
            role("rests-leaky", Library::QueuePool),
            role("rests-twin", Library::QueuePool),
            role("stops-leaky", Library::PsycopgPool),
            role("stops-twin", Library::PsycopgPool),
        ];
        let mut scene = Scene::begin(stage, &roles, "")?;
        for role in roles {
            scene.app(role.name).does("traffic 40")?;
            // It is filled before its first request, so a pool that rests has connections nobody uses.
            scene.app(role.name).does(if role.name.starts_with("rests") { "second 0" } else { "second 20" })?;
        }
        scene.is_seen()?;
        scene.passes(35.s())?;
        for name in ["stops-leaky", "stops-twin"] {
            scene.app(name).does("second 0")?;
        }
        scene.passes(10.s())?;
        keeps(&mut scene, &["rests-leaky", "stops-leaky"])?;
        scene.passes(100.s())?;
        for name in ["rests-leaky", "stops-leaky"] {
            let found = scene.comparison(name)?;
            assert!(found.wrong.is_empty(), "{name}: {:#?}", found.wrong);
        }
        for twin in ["rests-twin", "stops-twin"] {
            healthy(&mut scene, twin)?;
        }
        scene.all_served()
    });
}

/// psycopg_pool rotates; asyncpg says itself what was returned; of a stack that does not grow nothing can be said.
/// HikariCP is neither: whatever is said of it has to be true.
#[test]
fn each_library_is_judged_by_the_rule_that_fits_it_or_not_at_all() {
    alone(|stage| {
        let leaky = [
            role("psycopg-leaky", Library::PsycopgPool),
            role("asyncpg-leaky", Library::Asyncpg),
            role("go-leaky", Library::GoSql),
            role("hikari-leaky", Library::Hikari),
            role("node-leaky", Library::NodePg),
        ];
        let twins = [role("asyncpg-twin", Library::Asyncpg), role("go-twin", Library::GoSql)];
        let mut scene = Scene::begin(stage, &[&leaky[..], &twins].concat(), "")?;
        for role in leaky.iter().chain(&twins) {
            scene.app(role.name).does("traffic 30")?;
        }
        scene.is_seen()?;
        scene.passes(45.s())?;
        keeps(&mut scene, &leaky.map(|it| it.name))?;
        for name in ["psycopg-leaky", "asyncpg-leaky"] {
            scene.fires(LEAK, name, 150.s())?;
            judged(&mut scene, name, Some(RECALL))?;
        }
        for name in ["go-leaky", "node-leaky"] {
            judged(&mut scene, name, None)?;
            scene.is_quiet_about(name)?;
        }
        let hikari = scene.comparison("hikari-leaky")?;
        assert!(hikari.wrong.is_empty() && hikari.of("keep").samples() > 20, "{hikari}: {:#?}", hikari.wrong);
        for twin in twins {
            healthy(&mut scene, twin.name)?;
        }
        scene.all_served()
    });
}
