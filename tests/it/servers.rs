//! Servers beside PostgreSQL: whose session is it, by every route; and a full server. MariaDB here, with either of its views.

use std::collections::BTreeSet;

use serde_json::Value;
use tickbird_tests::agent::{app, check};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::postgres::Route;
use tickbird_tests::xray::Truth;
use tickbird_tests::{Application, Library, MariaDb, Seconds, Sizes, Stage, StageError, Watch, alone, until};

mod rabbitmq;
mod redis;

const CHECK: &str = "pool.idle_in_transaction";
const EACH: usize = 20;

fn pool(stage: &Stage, name: &str, server: &MariaDb, route: Route) -> Result<Application, StageError> {
    Application::through(stage, name, Library::PyMySql, server.environment(route), Sizes::full(20))
}

/// Process, descriptor and session id of everything that the application says it leaked.
fn truth(application: &Application) -> Result<BTreeSet<(u64, u64, u64)>, StageError> {
    until("all are leaked", 10.s(), || {
        let truth = Truth::read(application.truth()).map_err(|error| error.to_string())?;
        let rows = truth.last().map(|last| last.all.clone()).unwrap_or_default();
        let row = |it: &tickbird_tests::xray::Connection| {
            Some((application.pid().into(), it.fd?.into(), u64::try_from(it.backend).ok()?))
        };
        let rows: BTreeSet<_> = rows.iter().filter(|it| it.kept == "leak").filter_map(row).collect();
        if rows.len() == EACH { Ok(rows) } else { Err(format!("{rows:?}")) }
    })
}

fn told(finding: &Value) -> BTreeSet<(u64, u64, u64)> {
    let rows = finding["evidence"]["sessions"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|it| Some((it["pid"].as_u64()?, it["fd"].as_u64()?, it["backend"].as_u64()?))).collect()
}

/// Each of the applications leaks its whole pool but the last one, which works and stays silent. `server` is a part of
/// the server's own target.
fn all_are_named(
    stage: &Stage,
    section: &str,
    server: &str,
    routes: &[(&str, Route)],
    pool: impl Fn(&str, Route) -> Result<Application, StageError>,
) -> Result<(), StageError> {
    let mut configuration = check(CHECK, "warning = \"5s\"") + section;
    let mut applications = Vec::new();
    for (name, route) in routes {
        let it = pool(name, *route)?;
        configuration += &app(name, &it.command());
        applications.push(it);
    }
    let mut healthy = pool("healthy-twin", Route::V4)?;
    configuration += &app("healthy-twin", &healthy.command());
    healthy.does("traffic 10")?;
    let watch = Watch::begin(stage, &configuration)?;
    watch.sees("db.headroom", server, "ok", 40.s())?;
    watch.sees(CHECK, "healthy-twin", "ok", 40.s())?;
    for it in &mut applications {
        watch.sees(CHECK, it.name(), "ok", 40.s())?;
        it.does("leak 20")?;
    }
    for it in &applications {
        let truth = truth(it)?;
        until(format!("all sessions of {} are named", it.name()), 60.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let findings = status["findings"].as_array().cloned().unwrap_or_default();
            let about = |row: &&Value| row["check"] == CHECK && row["target"].to_string().contains(it.name());
            let finding = findings.iter().find(about).ok_or("no finding")?;
            let told = told(finding);
            if told == truth { Ok(()) } else { Err(format!("{finding}; in truth {truth:?}")) }
        })?;
    }
    watch.silent_about("healthy-twin")
}

fn all_of_mariadb(stage: &Stage, server: &MariaDb, routes: &[(&str, Route)]) -> Result<(), StageError> {
    let start = |name: &str, route| pool(stage, name, server, route);
    all_are_named(stage, &server.section()?, "/information_schema", routes, start)
}

#[test]
fn twenty_of_twenty_sessions_of_mariadb_are_named_by_its_process_list() {
    alone(|stage| {
        let server = MariaDb::start(stage, &Certificate::ending_in(stage, 30)?, false, 200)?;
        all_of_mariadb(stage, &server, &[("over-v4", Route::V4), ("over-v6", Route::V6), ("over-tls", Route::Tls)])
    });
}

#[test]
fn twenty_of_twenty_sessions_of_mariadb_are_named_by_its_performance_schema() {
    alone(|stage| {
        let server = MariaDb::start(stage, &Certificate::ending_in(stage, 30)?, true, 200)?;
        let routes =
            [("over-v4", Route::V4), ("over-v6", Route::V6), ("over-tls", Route::Tls), ("over-unix", Route::Unix)];
        all_of_mariadb(stage, &server, &routes)
    });
}

#[test]
fn a_full_mariadb_has_no_headroom() {
    alone(|stage| {
        let server = MariaDb::start(stage, &Certificate::ending_in(stage, 30)?, false, 24)?;
        let it = pool(stage, "greedy", &server, Route::V4)?;
        let configuration = check("db.headroom", "hold = \"5s\"") + &server.section()? + &app("greedy", &it.command());
        let watch = Watch::begin(stage, &configuration)?;
        watch.fires("db.headroom", "/information_schema", 60.s()).map(drop)
    });
}
