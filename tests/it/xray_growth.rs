//! A pool that had to grow was empty at that moment: the one rule that works on a stack.

use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, alone};

/// Twelve of twenty are kept one after another, and each time the stack has to open one more for its requests.
#[test]
fn a_growing_stack_names_what_it_leaks_with_the_time_it_was_witnessed() {
    alone(|stage| {
        const CHECK: &str = "pool.leak";
        let sizes = Sizes::growing(20);
        let roles = [
            Role { name: "growing-leaky", library: Library::QueuePoolLifo, sizes },
            Role { name: "growing-twin", library: Library::QueuePoolLifo, sizes },
            Role { name: "go-leaky", library: Library::GoSql, sizes },
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
            scene.app("growing-twin").does("burst 2 0.1")?;
            scene.passes(4.s())?;
        }
        scene.passes_until("half of the limit is leaked: critical", 120.s(), |sample| {
            ["growing-leaky", "go-leaky"]
                .iter()
                .all(|name| sample.finding(CHECK, name).is_some_and(|it| it["severity"] == "critical"))
        })?;
        for name in ["growing-leaky", "go-leaky"] {
            let found = scene.comparison(name)?;
            assert!(found.wrong.is_empty(), "{name}: {:#?}", found.wrong);
            let kept = found.of("keep");
            assert!(kept.samples() > 100 && kept.share(&["held"]) >= 0.9, "{name}: {found}");
        }
        let twin = scene.comparison("growing-twin")?;
        assert!(twin.wrong.is_empty(), "{:#?}", twin.wrong);
        scene.is_quiet_about("growing-twin")?;
        for name in ["growing-leaky", "go-leaky"] {
            scene.app(name).does("repair")?;
            // A return is silent, and a stack does not come back to what lies at its bottom: only use ends the verdict.
            scene.app(name).does("burst 20 0.2")?;
            scene.watch.resolves(CHECK, name, 60.s())?;
        }
        scene.all_served()
    });
}
