//! What makes a leak critical: half of the limit, a pool that will soon be empty, or an old lease; each by itself.

use serde_json::Value;
use tickbird_tests::agent::check;
use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, StageError, alone};

const LEAK: &str = "pool.leak";
/// Shorter than the shipped 60 s and 300 s. A forecast needs half a minute of a rise.
const BOUNDS: &str = "warning = \"5s\"\ncritical = \"45s\"";
const OLD: f64 = 45.0;

/// asyncpg says itself what was given back, so that no rule has to be learnt first.
const fn role(name: &'static str, size: u16) -> Role {
    Role { name, library: Library::Asyncpg, sizes: Sizes::full(size) }
}

/// Waits until it is critical, and gives the proof; until then it is a warning.
fn is_critical(scene: &mut Scene, name: &str, cause: &str) -> Result<Value, StageError> {
    scene.passes_until(&format!("{name} is critical"), 60.s(), |sample| {
        sample.finding(LEAK, name).is_some_and(|it| it["severity"] == "critical")
    })?;
    let last = scene.samples().last().and_then(|it| it.finding(LEAK, name)).cloned().unwrap_or_default();
    let proof = last["evidence"].clone();
    assert_eq!(proof["critical_by"], Value::from(vec![cause]), "{name}: {proof}");
    let found = scene.comparison(name)?;
    assert!(found.wrong.is_empty(), "{name}: {:#?}", found.wrong);
    Ok(proof)
}

fn number(proof: &Value, key: &str) -> f64 {
    proof[key].as_f64().unwrap_or_else(|| panic!("{key} is a number: {proof}"))
}

#[test]
fn a_leak_is_critical_by_half_of_the_limit_by_its_forecast_and_by_its_age() {
    alone(|stage| {
        let roles = [role("half-leaky", 6), role("soon-leaky", 40), role("old-leaky", 12), role("twin", 12)];
        let mut scene = Scene::begin(stage, &roles, &check(LEAK, BOUNDS))?;
        for role in roles {
            scene.app(role.name).does("traffic 20")?;
        }
        scene.is_seen()?;
        scene.passes_until("every connection has shown that it was given back", 60.s(), |sample| {
            let mut all = sample.pools.iter().flat_map(|it| &it.connections);
            all.all(|it| it.verdict != "unknown")
        })?;
        for name in ["soon-leaky", "half-leaky", "old-leaky"] {
            scene.app(name).does("keep 1")?;
        }
        scene.passes(2.s())?;
        scene.app("old-leaky").does("keep 1")?;
        scene.app("half-leaky").does("keep 2")?;

        let proof = is_critical(&mut scene, "half-leaky", "half of the limit")?;
        assert!(number(&proof, "held_too_long") == 3.0 && proof["limit"] == 6, "{proof}");
        assert!(number(&proof, "oldest_seconds") < 30.0, "{proof}");

        // One more every two seconds: the forty are gone in little more than a minute.
        for _ in 0..8 {
            scene.app("soon-leaky").does("keep 1")?;
            scene.passes(2.s())?;
        }
        let proof = is_critical(&mut scene, "soon-leaky", "empty within 5 min")?;
        assert!(number(&proof, "held_too_long") < 20.0 && proof["limit"] == 40, "{proof}");
        assert!(number(&proof, "oldest_seconds") < OLD, "{proof}");
        assert!(proof["empty_in_seconds"][0].as_f64().is_some_and(|it| it <= 300.0), "{proof}");

        let of = |it: &Scene| it.samples().last().and_then(|it| it.finding(LEAK, "old-leaky")).cloned();
        let told = of(&scene).unwrap_or_default();
        assert_eq!((&told["severity"], &told["evidence"]["critical_by"]), (&"warning".into(), &Value::Array(vec![])));
        let proof = is_critical(&mut scene, "old-leaky", "age of the oldest")?;
        assert!(number(&proof, "held_too_long") == 2.0 && proof["limit"] == 12, "{proof}");
        assert!(number(&proof, "oldest_seconds") >= OLD, "{proof}");

        let leaky = ["half-leaky", "soon-leaky", "old-leaky"];
        for name in leaky {
            let is_it = |it: &Value| {
                it["check"] == LEAK
                    && it["severity"] == "critical"
                    && it["target"].as_str().is_some_and(|it| it.contains(name))
            };
            scene.watch.collector.has_incident(&format!("{name} is critical"), 20.s(), is_it)?;
            scene.app(name).does("repair")?;
        }
        for name in leaky {
            scene.watch.resolves(LEAK, name, 30.s())?;
        }
        let twin = scene.comparison("twin")?;
        assert!(twin.looks > 30 && twin.wrong.is_empty(), "{twin}: {:#?}", twin.wrong);
        scene.is_quiet_about("twin")?;
        scene.all_served()
    });
}
