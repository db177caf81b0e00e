//! Servers beside PostgreSQL: whose session is it, by every route; and a full server. MariaDB here, with either of its views.

use std::collections::BTreeSet;

use serde_json::Value;
use tickbird_tests::agent::{app, check};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::postgres::Route;
use tickbird_tests::watch::rows_of;
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

fn all_of_mariadb(stage: &Stage, server: &MariaDb, ours: Route, routes: &[(&str, Route)]) -> Result<(), StageError> {
    let start = |name: &str, route| pool(stage, name, server, route);
    all_are_named(stage, &server.section(ours)?, "/information_schema", routes, start)
}

#[test]
fn twenty_of_twenty_sessions_of_mariadb_are_named_by_its_process_list() {
    alone(|stage| {
        let server = MariaDb::start(stage, &Certificate::ending_in(stage, 30)?, false, 200)?;
        let routes = [("over-v4", Route::V4), ("over-v6", Route::V6), ("over-tls", Route::Tls)];
        all_of_mariadb(stage, &server, Route::Tls, &routes)
    });
}

#[test]
fn twenty_of_twenty_sessions_of_mariadb_are_named_by_its_performance_schema() {
    alone(|stage| {
        let server = MariaDb::start(stage, &Certificate::ending_in(stage, 30)?, true, 200)?;
        let routes =
            [("over-v4", Route::V4), ("over-v6", Route::V6), ("over-tls", Route::Tls), ("over-unix", Route::Unix)];
        all_of_mariadb(stage, &server, Route::V6, &routes)
    });
}

/// Without `performance_schema` nobody knows whose a session over a unix socket is: that pool is not judged, which is said
/// with its reason, and those over TCP are judged as before.
#[test]
fn whose_a_session_of_mariadb_over_a_unix_socket_is_stays_unknown_without_its_schema_and_is_said() {
    alone(|stage| {
        let server = MariaDb::start(stage, &Certificate::ending_in(stage, 30)?, false, 200)?;
        let start = |name: &str, route| pool(stage, name, &server, route);
        let mut hidden = start("over-unix", Route::Unix)?;
        let mut seen = start("over-v4", Route::V4)?;
        let mut twin = start("healthy-twin", Route::V4)?;
        twin.does("traffic 10")?;
        let applications = [&hidden, &seen, &twin].map(|it| app(it.name(), &it.command())).concat();
        let watch =
            Watch::begin(stage, &(check(CHECK, "warning = \"5s\"") + &server.section(Route::V4)? + &applications))?;
        for name in ["over-v4", "healthy-twin"] {
            watch.sees(CHECK, name, "ok", 40.s())?;
        }
        for it in [&mut hidden, &mut seen] {
            it.does("leak 20")?;
        }
        let reason = "whose a session over a unix socket is (performance_schema is off, or not granted";
        for check in [CHECK, "pool.leak"] {
            until(format!("{check} is blind for over-unix, with the reason"), 40.s(), || {
                let status = watch.agent.status().map_err(|error| error.to_string())?;
                let rows = rows_of(&status, check, "over-unix");
                let is_so = |it: &Value| it["state"] == "blind" && it["value"].to_string().contains(reason);
                if rows.iter().any(|it| is_so(it)) { Ok(()) } else { Err(format!("{rows:?}")) }
            })?;
        }
        let truth = truth(&seen)?;
        until("those over TCP are named by the same view", 60.s(), || {
            let finding = watch.tells(CHECK, "over-v4", 1.s()).map_err(|error| error.to_string())?;
            if told(&finding) == truth { Ok(()) } else { Err(finding.to_string()) }
        })?;
        let doctor = watch.agent.report("doctor", &[])?.to_string();
        assert!(doctor.contains(reason), "the doctor says the same: {doctor}");
        watch.never_told(CHECK, "over-unix")?;
        watch.never_told("pool.leak", "over-unix")?;
        watch.silent_about("healthy-twin")
    });
}

#[test]
fn a_full_mariadb_has_no_headroom() {
    alone(|stage| {
        let server = MariaDb::start(stage, &Certificate::ending_in(stage, 30)?, false, 24)?;
        let it = pool(stage, "greedy", &server, Route::V4)?;
        let configuration =
            check("db.headroom", "hold = \"5s\"") + &server.section(Route::V4)? + &app("greedy", &it.command());
        let watch = Watch::begin(stage, &configuration)?;
        watch.fires("db.headroom", "/information_schema", 60.s()).map(drop)
    });
}
