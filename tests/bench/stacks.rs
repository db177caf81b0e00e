//! From the first leaked session to the webhook, with everything as it is shipped, for the pools of six libraries: a
//! session in a transaction that nobody ends, and two that are idle and never given back.

use std::time::Instant;

use tickbird_tests::webhook::{Message, firing, resolved};
use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, Stage, StageError};

use crate::Figure;

const RUNS: usize = 5;
const IDLE: &str = "pool.idle_in_transaction";
const LEAK: &str = "pool.leak";

/// What a leaked connection leaves of a pool, by which it is known where the server's view shows nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// It is passed over, or its reset does not come.
    OfPool,
    /// None: POOL-XRAY claims nothing of a stack that does not grow.
    Nothing,
}

const STACKS: [(&str, Library, Sign); 6] = [
    ("sqlalchemy-psycopg2", Library::QueuePool, Sign::OfPool),
    ("psycopg-pool", Library::PsycopgPool, Sign::OfPool),
    ("asyncpg", Library::Asyncpg, Sign::OfPool),
    ("go-sql", Library::GoSql, Sign::Nothing),
    ("node-pg", Library::NodePg, Sign::Nothing),
    ("hikari", Library::Hikari, Sign::Nothing),
];

pub(crate) fn stacks(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let roles = STACKS.map(|(name, library, _)| Role { name, library, sizes: Sizes::full(12) });
    let mut scene = Scene::begin(stage, &roles, "")?;
    for (name, ..) in STACKS {
        scene.app(name).does("traffic 20")?;
    }
    scene.is_seen()?;
    for (name, ..) in STACKS {
        scene.watch.sees(IDLE, name, "ok", 60.s())?;
    }
    let mut figures = leaked(&mut scene, IDLE, |_| true, |scene, name| scene.app(name).does("leak 1").map(drop))?;
    scene.passes_until("every rule that applies is known", 120.s(), |sample| {
        let ruled = |name: &str| sample.pools.iter().any(|it| it.target.contains(name) && it.discipline == "rotating");
        ["sqlalchemy-psycopg2", "psycopg-pool"].into_iter().all(ruled)
    })?;
    let is_seen = |sign| sign == Sign::OfPool;
    figures.extend(leaked(&mut scene, LEAK, is_seen, |scene, name| scene.app(name).does("keep 1").map(drop))?);
    Ok(figures)
}

/// Has every stack of these leak and waits until each is told, repairs all, and that again.
fn leaked(
    scene: &mut Scene,
    check: &'static str,
    is_asked: fn(Sign) -> bool,
    leaks: fn(&mut Scene, &str) -> Result<(), StageError>,
) -> Result<Vec<Figure>, StageError> {
    let names: Vec<&str> = STACKS.iter().filter(|it| is_asked(it.2)).map(|it| it.0).collect();
    let mut times = vec![Vec::new(); names.len()];
    for _ in 0..RUNS {
        let mut began = Vec::new();
        for name in &names {
            began.push(Instant::now());
            leaks(scene, name)?;
        }
        if check == LEAK {
            // One may be a long job: a second that began later makes it a leak.
            scene.passes(5.s())?;
            names.iter().try_for_each(|name| leaks(scene, name))?;
        }
        for (at, name) in names.iter().enumerate() {
            let is_it = |it: &Message| it.at > began[at] && firing(check)(it) && is_about(it, name);
            let heard = scene.watch.webhook.hears(&format!("{check} of {name}"), 200.s(), is_it)?;
            times[at].push((heard.at - began[at]).as_secs_f64());
        }
        let repaired = Instant::now();
        for name in &names {
            scene.app(name).does("repair")?;
        }
        for name in &names {
            let is_it = |it: &Message| it.at > repaired && resolved(check)(it) && is_about(it, name);
            scene.watch.webhook.hears(&format!("the end of {check} of {name}"), 150.s(), is_it)?;
        }
    }
    let spread = |(name, times): (&&str, Vec<f64>)| Figure::spread(&format!("{name}: {check}"), times, "s");
    Ok(names.iter().zip(times).flat_map(spread).collect())
}

fn is_about(message: &Message, name: &str) -> bool {
    message.json["incident"]["target"].to_string().contains(name)
}
