//! A pool that had to grow was empty at that moment: the one rule that works on a stack.

use serde_json::Value;
use tickbird_tests::truth::{backends, socket};
use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, StageError, alone};

const CHECK: &str = "pool.leak";
/// The agent sees a birth at its next look.
const LATE: f64 = 2.5;

/// Every connection that the finding names is one that is kept, by its own descriptor; growth named it, and at the time
/// that the finding says the pool did grow while this one lay idle.
fn is_witnessed(scene: &mut Scene, name: &str) -> Result<(), StageError> {
    let last = scene.samples().last().expect("it was looked at");
    let finding = last.finding(CHECK, name).cloned().unwrap_or_default();
    let rows = finding["evidence"]["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Rows that have no room are named in short.
    let short = finding["evidence"]["connections_in_short"].as_array().map_or(0, Vec::len);
    assert!(rows.len() >= 3 && rows.len() + short >= 10, "{name}: half of the limit is named: {finding}");
    let (pid, truth, sessions) = (scene.app(name).pid(), scene.truth(name)?, backends(&scene.server)?);
    let now = &truth.last().expect("it wrote").connections;
    // The pool never closes one: each connection is a growth, at the time when the server saw it come.
    let mut births: Vec<f64> = now.keys().filter_map(|port| Some(sessions.get(port)?.started_at)).collect();
    births.sort_by(f64::total_cmp);
    for row in rows {
        let port = row["local"].as_str().and_then(|it| it.rsplit(':').next()?.parse::<u16>().ok()).unwrap_or_default();
        assert!(now.get(&port).is_some_and(|it| it.kept == "keep"), "{name}: only what is kept is named: {row}");
        let fd = row["fd"].as_u64().and_then(|it| u32::try_from(it).ok()).expect("its descriptor is visible");
        assert_eq!((&row["pid"], socket(pid, fd)?.port), (&Value::from(pid), port), "{name}: {row}");
        let seconds = |key: &str| row[key].as_f64().filter(|_| row["rule"] == "growth");
        let [held, ago] = ["held_seconds", "witnessed_seconds_ago"].map(|key| seconds(key).expect("growth says when"));
        // Both ages are of the same look, whenever that was; it is held since its last statement ended.
        let idle_at = sessions.get(&port).expect("it is open").state_changed_at;
        let witnessed = idle_at + held - ago;
        let grew: Vec<f64> = births.iter().copied().filter(|at| *at > idle_at).collect();
        let is_then = |grew: &f64| (-0.5..=LATE).contains(&(witnessed - grew));
        assert!(grew.iter().any(is_then), "{name}: at {witnessed:.1}, idle {idle_at:.1}, grew {grew:.1?}: {row}");
    }
    Ok(())
}

/// While it leaks, and for a while after, the agent says when the pool will be empty, and so does the finding from its
/// first look on: a range around what is left of the limit by the pace at which the application itself kept connections.
/// What is named late makes the rise steeper for a moment: at no look is the nearer end more than half beside that.
fn is_forecast(scene: &mut Scene, name: &str) -> Result<(), StageError> {
    let (pid, truth) = (scene.app(name).pid(), scene.truth(name)?);
    let kept = truth.last().expect("it wrote").connections.values().filter(|it| it.kept == "keep");
    let taken: Vec<f64> = kept.map(|it| it.since).collect();
    let [first, last] = [f64::min, f64::max].map(|end| taken.iter().copied().reduce(end).expect("some are kept"));
    let pace = (taken.len() - 1) as f64 / (last - first);
    let range = |said: &Value| Some((said[0].as_f64()?, said[1].as_f64()?));
    let (mut said, mut told) = (Vec::new(), 0);
    for sample in scene.samples().iter().filter(|it| (first..last + 25.0).contains(&it.at)) {
        let finding = sample.finding(CHECK, name).map(|it| &it["evidence"]["empty_in_seconds"]);
        told += finding.and_then(range).map_or(0, |_| 1);
        // A connection that its server has not named yet is no pool of its own.
        for pool in sample.of(pid).filter(|it| it.connections.len() > 2) {
            let Some((low, high)) = range(&pool.all["empty_in"]) else { continue };
            let count = |verdict: &str| pool.all["counts"][verdict].as_f64().unwrap_or_default();
            let expected = (20.0 - count("leased") - count("busy") - count("held")) / pace;
            said.push((low, expected, high));
        }
    }
    let around = said.iter().filter(|(low, expected, high)| (low..=high).contains(&expected)).count();
    println!(
        "{name}: forecast at {} looks, around the truth at {around}, {told} in the finding; {said:.0?}",
        said.len()
    );
    let is_near = |(low, expected, high): &(f64, f64, f64)| low / 1.5 <= *expected && *expected <= high * 1.5;
    assert!(said.len() >= 8 && told >= 1 && around >= 3, "{name}: {pace}/s, {told} told, {said:.0?}");
    assert!(said.iter().all(is_near), "{name}: {said:.0?}");
    Ok(())
}

/// Twelve of twenty are kept one after another, and each time the stack has to open one more for its requests.
#[test]
fn a_growing_stack_names_what_it_leaks_with_the_time_it_was_witnessed() {
    alone(|stage| {
        let sizes = Sizes::growing(20);
        let roles = [
            Role { name: "growing-leaky", library: Library::QueuePoolLifo, sizes },
            Role { name: "growing-twin", library: Library::QueuePoolLifo, sizes },
            Role { name: "go-leaky", library: Library::GoSql, sizes },
            Role { name: "go-twin", library: Library::GoSql, sizes },
        ];
        let mut scene = Scene::begin(stage, &roles, "")?;
        for role in roles {
            // A machine that stands still for a moment makes requests come together, and the pool grow when nobody leaks: at thirty a
            // second to its limit, after which nothing can witness what is kept.
            scene.app(role.name).does("traffic 8")?;
        }
        scene.is_seen()?;
        // Of a process younger than a minute nothing is said.
        scene.passes(62.s())?;
        for _ in 0..12 {
            for name in ["growing-leaky", "go-leaky"] {
                scene.app(name).does("keep 1")?;
            }
            // A healthy pool grows too, when several want a connection at once.
            for name in ["growing-twin", "go-twin"] {
                scene.app(name).does("burst 2 0.1")?;
            }
            scene.passes(4.s())?;
        }
        // Those that were kept last are witnessed by it, too, once they have lain idle for some looks of a slow machine.
        scene.passes(8.s())?;
        for name in ["growing-leaky", "go-leaky"] {
            scene.app(name).does("burst 8 0.2")?;
        }
        scene.passes_until("half of the limit is leaked: critical", 120.s(), |sample| {
            // A forecast may make it critical before that.
            let half =
                |it: &Value| it["severity"] == "critical" && it["evidence"]["held_too_long"].as_u64() >= Some(10);
            ["growing-leaky", "go-leaky"].iter().all(|name| sample.finding(CHECK, name).is_some_and(half))
        })?;
        for name in ["growing-leaky", "go-leaky"] {
            let found = scene.comparison(name)?;
            assert!(found.wrong.is_empty(), "{name}: {:#?}", found.wrong);
            let kept = found.of("keep");
            assert!(kept.samples() > 100 && kept.share(&["held"]) >= 0.85, "{name}: {found}");
            assert!(kept.rules.keys().all(|it| it == "growth"), "{name}: {found}");
            is_witnessed(&mut scene, name)?;
            is_forecast(&mut scene, name)?;
        }
        for name in ["growing-twin", "go-twin"] {
            let twin = scene.comparison(name)?;
            assert!(twin.looks > 60 && twin.wrong.is_empty(), "{name}: {twin}: {:#?}", twin.wrong);
            scene.is_quiet_about(name)?;
        }
        for name in ["growing-leaky", "go-leaky"] {
            scene.app(name).does("repair")?;
            // A return is silent, and a stack does not come back to what lies at its bottom: only use ends the verdict.
            scene.app(name).does("burst 20 0.2")?;
            scene.watch.resolves(CHECK, name, 60.s())?;
        }
        scene.all_served()
    });
}
