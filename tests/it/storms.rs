//! Pools that reconnect all at once, and applications that have no pool at all.

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Library, Postgres, Seconds, Sizes, Watch, alone, until};

const STORM: &str = "pool.storm";
const ABSENT: &str = "pool.absent";
const CHURN: &str = "pool.churn";

/// A process is young for a minute, and a pool is one when it has kept a connection for a minute: so long this waits.
#[test]
fn a_pool_that_comes_back_after_a_restart_is_a_storm_and_a_deploy_is_none() {
    alone(|stage| {
        let mut server = Postgres::start(stage, 100)?;
        let other = Postgres::start(stage, 100)?;
        let short = check(ABSENT, "hold = \"5s\"") + &check(CHURN, "hold = \"5s\"");
        let mut text = postgres(&server.dsn_file("tickbird")?) + &postgres(&other.dsn_file("tickbird")?) + &short;
        let mut begin = |name: &str, server: &Postgres| {
            let it = Application::of_library(stage, name, Library::QueuePool, server, Sizes::full(8))?;
            text += &app(name, &it.command());
            Ok(it)
        };
        let mut stormy = begin("stormy-api", &server)?;
        let mut calm = begin("calm-api", &other)?;
        let mut mixed = begin("mixed-api", &other)?;
        let deployed = begin("deployed-api", &other)?;
        let watch = Watch::begin(stage, &text)?;
        for name in ["stormy-api", "calm-api", "mixed-api", "deployed-api"] {
            watch.sees(STORM, name, "ok", 30.s())?;
        }
        throughout("all of them grow old", 61.s(), || Ok(()))?;
        server.stop()?;
        server.serve()?;
        // The first requests find the dead connections, those after them open new ones all at once.
        stormy.does("burst 8 0.2")?;
        stormy.does("burst 8 0.5")?;
        calm.does("burst 8 0.5")?;
        let successor = deployed.successor()?;
        mixed.does("churn 40")?;
        let told = watch.tells(STORM, "stormy-api", 20.s())?;
        assert_eq!(told["severity"], "info");
        assert_eq!(told["evidence"]["connections_total"], 8, "{told}");
        until("it is over", 30.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let rows = rows_of(&status, STORM, "stormy-api");
            if rows.iter().all(|it| it["state"] == "ok") { Ok(()) } else { Err(format!("{rows:?}")) }
        })?;
        let incidents = watch.collector.items("incidents", "check=pool.storm")?;
        assert!(incidents.is_empty(), "it is recorded and told to nobody: {incidents:?}");
        // What opens connections beside a pool churns, and has a pool.
        watch.fires(CHURN, "mixed-api", 40.s())?;
        watch.never_told(ABSENT, "")?;
        watch.sees(STORM, "deployed-api", "ok", 10.s())?;
        drop((deployed, successor));
        for name in ["calm-api", "deployed-api", "mixed-api"] {
            watch.never_told(STORM, name)?;
        }
        watch.silent_about("calm-api")
    });
}

#[test]
fn a_connection_for_each_request_is_no_pool_and_is_told_once() {
    alone(|stage| {
        let mut text = check(ABSENT, "hold = \"15s\"") + &check(CHURN, "hold = \"15s\"");
        let (server, other) = (Postgres::start(stage, 50)?, Postgres::start(stage, 50)?);
        text += &(postgres(&server.dsn_file("tickbird")?) + &postgres(&other.dsn_file("tickbird")?));
        let mut begin = |name: &str, server: &Postgres, least| {
            let it = Application::of_library(stage, name, Library::QueuePool, server, Sizes { most: 5, least })?;
            text += &app(name, &it.command());
            Ok(it)
        };
        // What ends between two looks names no process: on a shared server it counts for whom looks have seen.
        let (mut bare, mut pooled) = (begin("bare-api", &server, 0)?, begin("pooled-api", &server, 5)?);
        let mut seldom = begin("seldom-api", &other, 1)?;
        let watch = Watch::begin(stage, &text)?;
        // A probe now and then, and a pool at work.
        seldom.does("churn 0.4")?;
        pooled.does("traffic 20")?;
        for name in ["seldom-api", "pooled-api"] {
            watch.sees(ABSENT, name, "ok", 40.s())?;
        }
        bare.does("churn 40")?;
        let told = watch.fires(ABSENT, "bare-api", 60.s())?;
        assert_eq!(told["severity"], "warning");
        watch.never_told(CHURN, "bare-api")?;
        bare.does("churn 0")?;
        watch.resolves(ABSENT, "bare-api", 60.s())?;
        watch.never_told(CHURN, "bare-api")?;
        for name in ["seldom-api", "pooled-api"] {
            watch.silent_about(name)?;
        }
        Ok(())
    });
}
