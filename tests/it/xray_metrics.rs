//! Limits, use and waiters from what applications tell of their own pools: Prometheus' collector for Go's database/sql, and
//! HikariCP's numbers.

use serde_json::Value;
use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::xray::pools_in;
use tickbird_tests::{Application, Library, Postgres, Seconds, Sizes, Watch, alone, until};

const UTILIZATION: &str = "pool.utilization";
const EXHAUSTED: &str = "pool.exhausted";
const SIZE: u64 = 8;

#[test]
fn limits_use_and_waiters_are_what_the_applications_own_metrics_say() {
    alone(|stage| {
        let server = Postgres::start(stage, 100)?;
        let mut settings = postgres(&server.dsn_file("tickbird")?) + &check(UTILIZATION, "hold = \"3s\"");
        let (mut applications, mut pages) = (Vec::new(), Vec::new());
        for (name, library) in [
            ("go-full", Library::GoSql),
            ("go-twin", Library::GoSql),
            ("hikari-full", Library::Hikari),
            ("hikari-twin", Library::Hikari),
        ] {
            let sizes = Sizes { most: SIZE as u16, least: 2 };
            let mut it = Application::of_library(stage, name, library, &server, sizes)?;
            let port = it.does("metrics")?;
            settings += &app(name, &it.command());
            settings += &format!("pool.metrics = \"http://127.0.0.1:{port}/metrics\"\n");
            pages.push(format!("{port}/metrics"));
            applications.push(it);
        }
        let [go, go_twin, hikari, hikari_twin] = applications.as_mut_slice() else { panic!("four were started") };
        let watch = Watch::begin(stage, &settings)?;
        for it in [&mut *go_twin, &mut *hikari_twin] {
            it.does("traffic 30")?;
        }
        // The limit is nowhere else: neither in the environment nor in the configuration.
        for it in [&*go, &*go_twin, &*hikari, &*hikari_twin] {
            watch.sees(UTILIZATION, it.name(), "ok", 60.s())?;
            let pools = pools_in(&watch.agent.status()?)?;
            let pool = pools.iter().find(|pool| pool.pid == Some(it.pid())).expect("it has a pool");
            assert_eq!(pool.all["limit"], SIZE, "{}: {}", it.name(), pool.all);
        }

        for page in &pages {
            // What a page says and what the sockets show agree.
            watch.sees("pool.stats", page, "ok", 40.s())?;
        }

        for (it, exact) in [(&mut *go, false), (&mut *hikari, true)] {
            // Seven of eight are kept idle: by sockets and sessions alone nobody would know.
            it.does("keep 7")?;
            let told = watch.tells_as(UTILIZATION, it.name(), "warning", 40.s())?;
            assert_eq!(told["evidence"]["decided_by"], "exact", "{told}");
            assert!(told["summary"].to_string().contains("uses 7 of the 8"), "{told}");
            it.does("keep 1")?;
            watch.tells_as(UTILIZATION, it.name(), "critical", 40.s())?;
            watch.fires(UTILIZATION, it.name(), 20.s())?;
            // All is leased and six callers wait at any time, each until it gives up.
            it.does("traffic 30")?;
            let told = watch.tells_as(EXHAUSTED, it.name(), if exact { "critical" } else { "warning" }, 40.s())?;
            if exact {
                // HikariCP counts threads that wait.
                let waiters = told["evidence"]["waiters"].as_u64();
                assert!((1..=6).contains(&waiters.unwrap_or_default()), "{told}");
            }
            it.does("repair")?;
            watch.resolves(UTILIZATION, it.name(), 60.s())?;
            until(format!("nobody waits for {}", it.name()), 60.s(), || {
                let status = watch.agent.status().map_err(|error| error.to_string())?;
                let found = status["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
                let is_it = |row: &&Value| row["check"] == EXHAUSTED && row["target"].to_string().contains(it.name());
                found.iter().find(is_it).map_or(Ok(()), |it| Err(it.to_string()))
            })?;
        }
        for it in [go_twin, hikari_twin] {
            let (served, failed) = it.served()?;
            assert!(served > 100 && failed == 0, "{}: {served} served, {failed} failed", it.name());
            watch.silent_about(it.name())?;
        }
        Ok(())
    });
}
