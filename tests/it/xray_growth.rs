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
            scene.app(role.name).does("traffic 30")?;
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
        // Those that were kept last are witnessed by it, too.
        for name in ["growing-leaky", "go-leaky"] {
            scene.app(name).does("burst 8 0.2")?;
        }
        scene.passes_until("half of the limit is leaked: critical", 120.s(), |sample| {
            // A forecast may make it critical before that.
            let half =
                |it: &Value| it["severity"] == "critical" && it["evidence"]["held_too_long"].as_u64() >= Some(10);
            ["growing-leaky", "go-leaky"].iter().all(|name| sample.finding(CHECK, name).is_some_and(half))
        })?;
        // A connection is named once it stayed away for longer than it is used to (up to a minute): a minute more for each
        // keeps the share of the looks before that in proportion.
        scene.passes(60.s())?;
        for name in ["growing-leaky", "go-leaky"] {
            let found = scene.comparison(name)?;
            assert!(found.wrong.is_empty(), "{name}: {:#?}", found.wrong);
            let kept = found.of("keep");
            assert!(kept.samples() > 100 && kept.share(&["held"]) >= 0.9, "{name}: {found}");
            assert!(kept.rules.keys().all(|it| it == "growth"), "{name}: {found}");
            is_witnessed(&mut scene, name)?;
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
