//! Leaks are counted over the hour: also those that were mended meanwhile.

use serde_json::Value;
use tickbird_tests::agent::check;
use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, alone};

const LEAK: &str = "pool.leak";
const RATE: &str = "pool.leak_rate";

/// asyncpg says itself what was given back, so that no rule has to be learnt first.
const fn role(name: &'static str) -> Role {
    Role { name, library: Library::Asyncpg, sizes: Sizes::full(12) }
}

#[test]
fn leaks_one_after_another_are_counted_when_they_are_mended_too_and_one_long_lease_is_none() {
    alone(|stage| {
        let roles = [role("often-leaky"), role("often-twin"), role("report-job")];
        let mut scene = Scene::begin(stage, &roles, &check(LEAK, "warning = \"10s\""))?;
        for role in roles {
            scene.app(role.name).does("traffic 20")?;
        }
        scene.is_seen()?;
        scene.passes_until("every connection has shown that it was given back", 60.s(), |sample| {
            let mut all = sample.pools.iter().flat_map(|it| &it.connections);
            all.all(|it| it.verdict != "unknown")
        })?;
        // A report that runs all the time, between its statements.
        scene.app("report-job").does("keep 1")?;
        scene.app("often-leaky").does("keep 1")?;
        scene.passes(4.s())?;
        scene.app("often-leaky").does("keep 1")?;
        let counted = |count: u64, severity: &'static str| {
            move |it: &Value| it["evidence"]["leaks_last_hour"] == count && it["severity"] == severity
        };
        scene.passes_until("two are counted", 90.s(), |sample| {
            sample.finding(RATE, "often-leaky").is_some_and(counted(2, "warning"))
        })?;
        scene.watch.fires(LEAK, "often-leaky", 20.s())?;
        scene.app("often-leaky").does("repair")?;
        scene.watch.resolves(LEAK, "often-leaky", 40.s())?;
        scene.passes_until("both are counted still", 10.s(), |sample| {
            sample.finding(RATE, "often-leaky").is_some_and(counted(2, "warning"))
        })?;
        for _ in 0..2 {
            scene.app("often-leaky").does("keep 2")?;
            scene.passes(4.s())?;
        }
        scene.passes_until("six are counted", 90.s(), |sample| {
            sample.finding(RATE, "often-leaky").is_some_and(counted(6, "critical"))
        })?;
        let found = scene.comparison("often-leaky")?;
        assert!(found.wrong.is_empty() && found.named.len() >= 4, "{found}: {:?} {:#?}", found.named, found.wrong);
        let job = scene.comparison("report-job")?;
        assert!(job.wrong.is_empty() && job.of("keep").samples() > 20, "{job}: {:#?}", job.wrong);
        assert!(job.named.is_empty() && job.of("keep").share(&["leased"]) >= 0.85, "{job}: {:?}", job.named);
        let twin = scene.comparison("often-twin")?;
        assert!(twin.looks > 30 && twin.wrong.is_empty(), "{twin}: {:#?}", twin.wrong);
        for name in ["often-twin", "report-job"] {
            scene.is_quiet_about(name)?;
        }
        scene.watch.fires(RATE, "often-leaky", 20.s())?;
        scene.all_served()
    });
}
