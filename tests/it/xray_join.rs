//! Every connection is joined with its session, whichever way it goes: process, descriptor and backend.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::postgres::Route;
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::xray::{Truth, pools_in};
use tickbird_tests::{
    Application, Library, PgBouncer, Postgres, Seconds, Sizes, Stage, StageError, Watch, alone, until,
};

const CHECK: &str = "pool.idle_in_transaction";
const EACH: u16 = 20;
/// The healthy application beside those that leak.
const TWIN: &str = "healthy-twin";
const EXHAUSTED: &str = "pool.exhausted";
/// As its pool is called.
const CONSOLE_CLIENT: &str = "pool:psql/";
/// With exact waiters an exhausted pool is critical after 10 s.
const CRITICAL_AFTER: Duration = Duration::from_secs(15);

/// Process, descriptor, backend, and the local port of TCP.
type Row = (u32, u32, i32, u16);

fn truth(application: &Application) -> Result<BTreeSet<Row>, StageError> {
    until("all are leaked", 10.s(), || {
        // On a unix socket all ports are 0: there the truth is by descriptor.
        let truth = Truth::read(application.truth()).map_err(|error| error.to_string())?;
        let rows = truth.last().map(|last| last.all.clone()).unwrap_or_default();
        let pid = application.pid();
        let leaked = rows.iter().filter(|it| it.kept == "leak");
        let rows: BTreeSet<Row> = leaked.filter_map(|it| Some((pid, it.fd?, it.backend, it.port))).collect();
        if rows.len() == usize::from(EACH) { Ok(rows) } else { Err(format!("{rows:?}")) }
    })
}

/// Rows of the evidence; a descriptor that is not visible is `None`.
fn told(evidence: &Value) -> BTreeSet<(u32, Option<u32>, i32, u16)> {
    let rows = evidence["sessions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |it: &Value| {
        let number = |key: &str| it[key].as_u64();
        let local = it["local"].as_str().unwrap_or_default();
        let port = local.rsplit(':').next().and_then(|it| it.parse().ok()).unwrap_or(0);
        let fd = number("fd").and_then(|it| it.try_into().ok());
        Some((number("pid")?.try_into().ok()?, fd, number("backend")?.try_into().ok()?, port))
    };
    rows.iter().filter_map(row).collect()
}

/// Every application leaks all of its pool, and the finding names exactly that; without descriptors where `fds` says so.
fn all_are_named(watch: &Watch, applications: &mut [(Application, bool)]) -> Result<(), StageError> {
    for (it, _) in &mut *applications {
        watch.sees(CHECK, it.name(), "ok", 40.s())?;
        it.does(&format!("leak {EACH}"))?;
    }
    for (it, fds) in applications {
        let truth = truth(it)?.into_iter().map(|(pid, fd, backend, port)| (pid, fds.then_some(fd), backend, port));
        let truth: BTreeSet<_> = truth.collect();
        until(format!("all sessions of {} are named", it.name()), 40.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let findings = status["findings"].as_array().cloned().unwrap_or_default();
            let about = |row: &&Value| row["check"] == CHECK && row["target"].to_string().contains(it.name());
            let finding = findings.iter().find(about).ok_or("no finding")?;
            let told = told(&finding["evidence"]);
            if told == truth { Ok(()) } else { Err(format!("{finding}; in truth {truth:?}")) }
        })?;
    }
    Ok(())
}

/// An application that gives back all it takes.
fn twin(stage: &Stage, server: Vec<(&'static str, String)>) -> Result<Application, StageError> {
    let mut it = Application::through(stage, TWIN, Library::QueuePool, server, Sizes::full(5))?;
    it.does("traffic 20")?;
    Ok(it)
}

/// It was seen and served, and nothing was ever found about it.
fn is_well(watch: &Watch, twin: &mut Application) -> Result<(), StageError> {
    watch.sees(CHECK, TWIN, "ok", 20.s())?;
    let (served, failed) = twin.served()?;
    assert!(served > 50 && failed == 0, "{served} served, {failed} failed");
    watch.silent_about(TWIN)
}

#[test]
fn twenty_of_twenty_sessions_are_named_over_v4_v6_mapped_unix_and_tls() {
    alone(|stage| {
        let certificate = Certificate::ending_in(stage, 30)?;
        let plain = Postgres::start(stage, 150)?;
        let encrypted = Postgres::start_tls(stage, 50, &certificate)?;
        let routes = [
            ("over-v4", &plain, Route::V4),
            ("over-v6", &plain, Route::V6),
            ("over-mapped", &plain, Route::Mapped),
            ("over-unix", &plain, Route::Unix),
            ("over-tls", &encrypted, Route::Tls),
        ];
        let mut configuration = check(CHECK, "warning = \"2s\"");
        for server in [&plain, &encrypted] {
            configuration += &postgres(&server.dsn_file("tickbird")?);
        }
        let mut applications = Vec::new();
        for (name, server, route) in routes {
            let it = Application::through(
                stage,
                name,
                Library::QueuePool,
                server.environment("app", route),
                Sizes::full(EACH),
            )?;
            configuration += &app(name, &it.command());
            applications.push((it, true));
        }
        let mut twin = twin(stage, plain.environment("app", Route::V4))?;
        configuration += &app(TWIN, &twin.command());
        let watch = Watch::begin(stage, &configuration)?;
        all_are_named(&watch, &mut applications)?;
        is_well(&watch, &mut twin)
    });
}

/// PostgreSQL lists the sessions of other users to anybody, and hides their port and state. On one host the join works
/// even so: the backend's own descriptor leads to the socket. What is hidden stays unknown, and is no healthy pool.
#[test]
fn sessions_that_are_hidden_from_our_role_are_joined_by_their_backends_descriptor() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        server.strange_role("stranger")?;
        let environment = server.environment("app", Route::V4);
        let mut it = Application::through(stage, "hidden-api", Library::QueuePool, environment, Sizes::full(EACH))?;
        let configuration = app(it.name(), &it.command()) + &postgres(&server.dsn_file("stranger")?);
        let watch = Watch::begin(stage, &configuration)?;
        it.does(&format!("leak {EACH}"))?;
        let truth = truth(&it)?;
        until("all sessions are joined, and their state is not visible", 40.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let pools = pools_in(&status).map_err(|error| error.to_string())?;
            let rows = pools.iter().flat_map(|pool| pool.connections.iter().map(move |row| (pool.pid, row)));
            let joined: BTreeSet<Row> = rows
                .filter(|(_, row)| row.state.as_deref() == Some("not visible"))
                .filter_map(|(pid, row)| Some((pid?, row.fd?, i32::try_from(row.session?).ok()?, row.port())))
                .collect();
            let servers = status["targets"].as_array().into_iter().flatten().filter(|it| it["kind"] == "server");
            let facts = servers.map(|it| it["facts"]["joined"].clone()).collect::<Vec<_>>();
            let is_whole = joined == truth && facts == [Value::from(format!("{EACH} of {EACH}"))];
            if is_whole { Ok(()) } else { Err(format!("{facts:?}, {joined:?}; in truth {truth:?}")) }
        })?;
        watch.sees("agent.join", "", "ok", 20.s())?;
        until("what is hidden is blind, and never well", 40.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let rows = rows_of(&status, CHECK, it.name());
            let is_blind = !rows.is_empty() && rows.iter().all(|it| it["state"] == "blind" && it["looks_known"] == 0);
            if is_blind { Ok(()) } else { Err(format!("{rows:?}")) }
        })
    });
}

/// Behind a pooler the process and its descriptor are joined with the final backend. Over the pooler's unix socket all
/// clients show one port: the process is named, a descriptor of many is not.
#[test]
fn twenty_of_twenty_sessions_are_named_through_pgbouncer() {
    alone(|stage| {
        let server = Postgres::start(stage, 150)?;
        let pooler = PgBouncer::start(stage, &server)?;
        let mut configuration = check(CHECK, "warning = \"2s\"") + &postgres(&server.dsn_file("tickbird")?);
        configuration += &format!("[[pgbouncer]]\ndsn_file = \"{}\"\n", pooler.dsn_file()?.display());
        let mut applications = Vec::new();
        for (name, route, fds) in [("through-tcp", Route::V4, true), ("through-unix", Route::Unix, false)] {
            let environment = pooler.environment(&server, route);
            let it = Application::through(stage, name, Library::QueuePool, environment, Sizes::full(EACH))?;
            configuration += &app(name, &it.command());
            applications.push((it, fds));
        }
        let mut twin = twin(stage, pooler.environment(&server, Route::V4))?;
        configuration += &app(TWIN, &twin.command());
        // PgBouncer counts a wait for it that never ends.
        let mut console = pooler.console_client(stage)?;
        let watch = Watch::begin(stage, &configuration)?;
        // It listens nowhere and tells nothing of a pool, so all that is known of its callers is what PgBouncer says.
        until("the console's client is watched", 40.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let rows = rows_of(&status, EXHAUSTED, CONSOLE_CLIENT);
            if rows.iter().any(|it| it["looks"].as_u64() >= Some(3)) { Ok(()) } else { Err(format!("{rows:?}")) }
        })?;
        let since = Instant::now();
        all_are_named(&watch, &mut applications)?;
        let rest = CRITICAL_AFTER.saturating_sub(since.elapsed());
        throughout("who asks the console waits for nobody", rest, || {
            watch.never_told(EXHAUSTED, CONSOLE_CLIENT).map_err(|error| error.to_string())
        })?;
        console.alive().map_err(|said| StageError::Failed { what: "the console's client".into(), said })?;
        watch.silent_about(CONSOLE_CLIENT)?;
        is_well(&watch, &mut twin)
    });
}
