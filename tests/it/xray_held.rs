//! Whether a connection that was never given back is told from one that was, by each library's pool.
//!
//! At the server both are an idle session. Every look of the agent is compared with what the application itself wrote:
//! no connection that nobody keeps is ever called held, and where a rule applies nearly every kept one is.

use tickbird_tests::alone::alone_within;
use tickbird_tests::truth::socket;
use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, Stage, StageError, alone};

const LEAK: &str = "pool.leak";
/// The share of looks at a connection kept for 15 s or more that have to call it held, where a rule applies.
const RECALL: f64 = 0.85;

/// Nothing is opened before somebody wants it.
const ON_DEMAND: Sizes = Sizes { most: 20, least: 0 };
const GROWING: [&str; 2] = ["hikari-grows", "hikari-twin"];

const fn role(name: &'static str, library: Library) -> Role {
    Role { name, library, sizes: Sizes::full(12) }
}

/// What can be said of connections that are kept idle.
#[derive(Debug, Clone, Copy)]
enum Claim {
    /// The pool rotates: they are passed over.
    Held,
    /// asyncpg's reset has not come: by section 5 of POOL-XRAY such a connection is certainly leased. No rule is needed.
    Leased,
    /// A transaction is open on each, which the server says of any library.
    Open,
    /// The pool had to open one more while they lay idle.
    Grown,
    /// No rule applies.
    Nothing,
    /// A rule applies where its pool's order comes to light.
    HeldOrNothing,
}

/// Says nothing against the truth; of what is kept, nearly all looks make the claim, and none another.
fn judged(scene: &mut Scene, name: &str, claim: Claim) -> Result<(), StageError> {
    let found = scene.comparison(name)?;
    assert!(found.wrong.is_empty(), "{name}: {} times against the truth: {:#?}", found.wrong.len(), found.wrong);
    let kept = found.of(verb(name));
    assert!(kept.samples() > 20, "{name}: too few looks to say anything: {found}");
    let (verdicts, rule, least): (&[&str], _, _) = match claim {
        Claim::Held => (&["held"], Some("rotation"), RECALL),
        Claim::Leased => (&["leased"], Some("asyncpg's reset"), RECALL),
        Claim::Open => (&["leased"], Some("pg_stat_activity.state"), RECALL),
        Claim::Grown => (&["held"], Some("growth"), RECALL),
        Claim::Nothing => (&["unknown"], None, 1.0),
        Claim::HeldOrNothing => (&["held", "unknown", "group stop"], Some("rotation"), 1.0),
    };
    assert!(kept.share(verdicts) >= least, "{name}: {found}");
    assert!(kept.rules.keys().all(|it| Some(it.as_str()) == rule), "{name}: {found}");
    Ok(())
}

/// `pool.leak` fires and comes to name all that are kept, each by its process, descriptor and port, and at no look
/// anything else.
fn is_told(scene: &mut Scene, name: &str, kept: &[u16]) -> Result<(), StageError> {
    scene.fires(LEAK, name, 150.s())?;
    scene.passes_until(&format!("{LEAK} names {kept:?} of {name}"), 60.s(), |sample| {
        let rows = sample.finding(LEAK, name).and_then(|it| it["evidence"]["connections"].as_array());
        rows.is_some_and(|it| it.len() >= kept.len())
    })?;
    let (pid, found) = (scene.app(name).pid(), scene.comparison(name)?);
    assert!(found.wrong.is_empty(), "{name}: {:#?}", found.wrong);
    assert!(found.named.keys().eq(kept), "{name}: {kept:?} are kept, {:?} named", found.named);
    for (port, fd) in found.named {
        assert_eq!(socket(pid, fd)?.port, port, "{name}: the descriptor {fd} is that socket");
    }
    Ok(())
}

fn healthy(scene: &mut Scene, name: &str) -> Result<(), StageError> {
    let found = scene.comparison(name)?;
    assert!(found.looks > 30 && found.wrong.is_empty(), "{name}: {found}: {:#?}", found.wrong);
    scene.is_quiet_about(name)
}

/// So many requests at once in each pool that grows, the healthy one's too.
fn bursts(scene: &mut Scene, at_once: u32) -> Result<(), StageError> {
    GROWING.iter().try_for_each(|name| scene.app(name).does(&format!("burst {at_once} 0.3")).map(drop))
}

/// How an application of this name keeps connections.
fn verb(name: &str) -> &'static str {
    if name.ends_with("-open") { "leak" } else { "keep" }
}

/// Keeps three, seven seconds apart, and gives their ports.
fn keeps(scene: &mut Scene, names: &[&str]) -> Result<Vec<Vec<u16>>, StageError> {
    let mut ports = vec![Vec::new(); names.len()];
    for round in 0..3 {
        for (name, ports) in names.iter().zip(&mut ports) {
            let did = scene.app(name).does(&format!("{} 1", verb(name)))?;
            let told = did.as_array().into_iter().flatten();
            ports.extend(told.filter_map(|it| u16::try_from(it.as_u64()?).ok()));
        }
        if names.contains(&GROWING[0]) {
            bursts(scene, 6 + 2 * round)?;
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
    is_told(&mut scene, "fifo-leaky", &ports[0])?;
    judged(&mut scene, "fifo-leaky", Claim::Held)?;
    judged(&mut scene, "lifo-leaky", Claim::Nothing)?;
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
    // A pick falls between two dumps at every eighth look, and twenty have to before the order is known: some 170 s, but of four pools one
    // took 280.
    alone_within(720.s(), |stage| rotating_and_stacked(stage, 4, 480));
}

/// The second pool of one process to the same server rests from the start, or stops after a while. Where nothing tells
/// the two apart, the order of the first may stay hidden: then nothing is said. Where the server tells them apart by
/// their application names, what is kept is found as if there were one pool.
#[test]
fn a_second_pool_that_rests_or_goes_quiet_is_not_a_leak() {
    alone_within(480.s(), |stage| {
        let alike = [role("rests-leaky", Library::QueuePool), role("stops-leaky", Library::PsycopgPool)];
        let twins = [role("rests-twin", Library::QueuePool), role("stops-twin", Library::PsycopgPool)];
        let apart = [role("rests-apart", Library::QueuePool), role("stops-apart", Library::PsycopgPool)];
        let all = [alike, twins, apart].concat();
        let mut scene = Scene::begin(stage, &all, "")?;
        // It is filled before its first request, so a pool that rests has connections nobody uses.
        let second = |scene: &mut Scene, name: &str, rate: u32| {
            let pool = if name.ends_with("apart") { "apart" } else { "second" };
            scene.app(name).does(&format!("{pool} {rate}")).map(drop)
        };
        for role in &all {
            scene.app(role.name).does("traffic 30")?;
            second(&mut scene, role.name, if role.name.starts_with("rests") { 0 } else { 15 })?;
        }
        scene.is_seen()?;
        scene.passes(35.s())?;
        let pids = apart.map(|it| scene.app(it.name).pid());
        scene.passes_until("the order of the pools that are told apart is known", 120.s(), |sample| {
            let rotating = |pid: u32| sample.of(pid).filter(|it| it.discipline == "rotating").count();
            rotating(pids[0]) == 1 && rotating(pids[1]) == 2
        })?;
        for name in all.iter().map(|it| it.name).filter(|it| it.starts_with("stops")) {
            second(&mut scene, name, 0)?;
        }
        scene.passes(10.s())?;
        let leaky = [alike, apart].concat();
        let ports = keeps(&mut scene, &Vec::from_iter(leaky.iter().map(|it| it.name)))?;
        for (role, ports) in leaky.iter().zip(&ports).skip(alike.len()) {
            is_told(&mut scene, role.name, ports)?;
        }
        for role in apart {
            judged(&mut scene, role.name, Claim::Held)?;
        }
        for role in alike {
            judged(&mut scene, role.name, Claim::HeldOrNothing)?;
        }
        for role in twins {
            healthy(&mut scene, role.name)?;
        }
        scene.all_served()
    });
}

/// psycopg_pool and SQLAlchemy's pools rotate; asyncpg says itself what was returned; of a stack that does not grow nothing can be said.
/// HikariCP is neither. Of a full one nothing can be said but what the server says: that a transaction is open. One whose
/// page tells that it keeps none ready (`minimumIdle` 0) opens on demand only: then its growth shows what it leaks.
#[test]
fn each_library_is_judged_by_the_rule_that_fits_it_or_not_at_all() {
    alone(|stage| {
        let leaky = [
            role("psycopg-leaky", Library::PsycopgPool),
            role("asyncpg-leaky", Library::Asyncpg),
            role("go-leaky", Library::GoSql),
            role("hikari-leaky", Library::Hikari),
            role("hikari-open", Library::Hikari),
            Role { name: "hikari-grows", library: Library::Hikari, sizes: ON_DEMAND },
            role("node-leaky", Library::NodePg),
            role("engine-psycopg-leaky", Library::EnginePsycopg),
            role("engine-asyncpg-leaky", Library::EngineAsyncpg),
        ];
        let twins = [
            role("asyncpg-twin", Library::Asyncpg),
            role("go-twin", Library::GoSql),
            Role { name: "hikari-twin", library: Library::Hikari, sizes: ON_DEMAND },
            role("engine-psycopg-twin", Library::EnginePsycopg),
            role("engine-asyncpg-twin", Library::EngineAsyncpg),
        ];
        let mut scene = Scene::begin_with(stage, &[&leaky[..], &twins].concat(), "", |it| {
            let is_told = GROWING.contains(&it.name());
            let page = |port| format!("pool.metrics = \"http://127.0.0.1:{port}/metrics\"\n");
            if is_told { it.does("metrics").map(page) } else { Ok(String::new()) }
        })?;
        for role in leaky.iter().chain(&twins) {
            scene.app(role.name).does("traffic 30")?;
        }
        scene.is_seen()?;
        scene.passes(45.s())?;
        let ports = keeps(&mut scene, &leaky.map(|it| it.name))?;
        // What the last burst opened is handed out again by the next one.
        for at_once in [14, 16] {
            bursts(&mut scene, at_once)?;
            scene.passes(4.s())?;
        }
        let claims = [
            ("psycopg-leaky", Claim::Held),
            ("asyncpg-leaky", Claim::Leased),
            ("hikari-open", Claim::Open),
            ("hikari-grows", Claim::Grown),
            ("engine-psycopg-leaky", Claim::Held),
            ("engine-asyncpg-leaky", Claim::Held),
        ];
        for (role, ports) in leaky.iter().zip(&ports) {
            let Some((name, claim)) = claims.iter().find(|it| it.0 == role.name) else { continue };
            is_told(&mut scene, name, ports)?;
            judged(&mut scene, name, *claim)?;
        }
        for name in ["go-leaky", "node-leaky", "hikari-leaky"] {
            judged(&mut scene, name, Claim::Nothing)?;
            scene.is_quiet_about(name)?;
        }
        for twin in twins {
            healthy(&mut scene, twin.name)?;
        }
        scene.all_served()
    });
}
