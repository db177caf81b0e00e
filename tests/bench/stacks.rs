//! From the first leaked session to the webhook, with everything as it is shipped, for the pools of six libraries: a
//! session in a transaction that nobody ends, and two that are idle and never given back.

use std::time::Instant;

use tickbird_tests::webhook::{Message, firing, resolved};
use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, Stage, StageError};

use crate::Figure;

const RUNS: u64 = 5;
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

/// Its name, whose pool it has, and what a leak leaves of it.
type Stack = (&'static str, Library, Sign);

const STACKS: [Stack; 6] = [
    ("sqlalchemy-psycopg2", Library::QueuePool, Sign::OfPool),
    ("psycopg-pool", Library::PsycopgPool, Sign::OfPool),
    ("asyncpg", Library::Asyncpg, Sign::OfPool),
    ("go-sql", Library::GoSql, Sign::Nothing),
    ("node-pg", Library::NodePg, Sign::Nothing),
    ("hikari", Library::Hikari, Sign::Nothing),
];

pub(crate) fn stacks(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut scene = begin(stage, &STACKS)?;
    leaked(&mut scene, &STACKS, IDLE, "leak 1")
}

pub(crate) fn silent(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let seen: Vec<Stack> = STACKS.into_iter().filter(|it| it.2 == Sign::OfPool).collect();
    let mut scene = begin(stage, &seen)?;
    scene.passes_until("the order of those that rotate is known", 120.s(), |sample| {
        let is_known = |it: &Stack| {
            let of_it = sample.pools.iter().filter(|pool| pool.target.contains(it.0));
            it.1 == Library::Asyncpg || of_it.into_iter().any(|pool| pool.discipline == "rotating")
        };
        seen.iter().all(is_known)
    })?;
    leaked(&mut scene, &seen, LEAK, "keep 1")
}

fn begin(stage: &Stage, stacks: &[Stack]) -> Result<Scene, StageError> {
    let role = |(name, library, _): &Stack| Role { name, library: *library, sizes: Sizes::full(12) };
    let roles: Vec<Role> = stacks.iter().map(role).collect();
    let mut scene = Scene::begin(stage, &roles, "")?;
    for (name, ..) in stacks {
        scene.app(name).does("traffic 20")?;
    }
    scene.is_seen()?;
    for (name, ..) in stacks {
        scene.watch.sees(IDLE, name, "ok", 60.s())?;
    }
    Ok(scene)
}

/// Has every stack of these leak and waits until each is told, repairs all, and that again.
fn leaked(scene: &mut Scene, stacks: &[Stack], check: &str, leaks: &str) -> Result<Vec<Figure>, StageError> {
    let names: Vec<&str> = stacks.iter().map(|it| it.0).collect();
    let mut times = vec![Vec::new(); names.len()];
    for run in 0..RUNS {
        // The server is asked every five seconds: each run begins at another point between two looks.
        scene.passes(run.s())?;
        let mut began = Vec::new();
        for name in &names {
            began.push(Instant::now());
            scene.app(name).does(leaks)?;
        }
        if check == LEAK {
            // One may be a long job: a second that began later makes it a leak.
            scene.passes(5.s())?;
            for name in &names {
                scene.app(name).does(leaks)?;
            }
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
    let figure = |(name, times): (&&str, Vec<f64>)| Figure::of_all(format!("{name}: {check}"), times, "s");
    Ok(names.iter().zip(times).map(figure).collect())
}

fn is_about(message: &Message, name: &str) -> bool {
    message.json["incident"]["target"].to_string().contains(name)
}
