//! A handler that raises and does not close its session, beside one that raises the same and does.

use serde_json::Value;
use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::postgres::Route;
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Postgres, Seconds, Stage, StageError, Watch, alone, until};

const CHECK: &str = "err.correlate";
const LEAK: &str = "pool.leak";

/// An application with its log.
fn sections(it: &Application) -> String {
    let log = it.written().display();
    app(it.name(), &it.command()) + &format!("[[log]]\npath = \"{log}\"\napp = \"{}\"\n", it.name())
}

fn begin(stage: &Stage, server: &Postgres, name: &str) -> Result<Application, StageError> {
    let mut it = Application::failing(stage, name, server.environment("app", Route::V4))?;
    // Its pool has a connection from now on.
    it.does("tidy")?;
    Ok(it)
}

/// Waits until the finding counts so many pairs.
fn pairs(watch: &Watch, name: &str, count: u64) -> Result<Value, StageError> {
    until(format!("{count} connections of {name} that an error left"), 40.s(), || {
        let told = watch.tells(CHECK, name, 1.s()).map_err(|error| error.to_string())?;
        if told["evidence"]["pairs"] == count { Ok(told) } else { Err(told["evidence"].to_string()) }
    })
}

/// Process, descriptor and backend of each connection, as the finding and as the application itself tell them.
fn named(rows: &Value, backend: &str) -> Vec<[u64; 3]> {
    let number = |row: &Value, key: &str| row[key].as_u64().unwrap_or_default();
    let rows = rows.as_array().cloned().unwrap_or_default();
    let mut all: Vec<_> = rows.iter().map(|it| ["pid", "fd", backend].map(|key| number(it, key))).collect();
    all.sort_unstable();
    all
}

#[test]
fn sessions_that_an_error_leaves_open_are_named_with_it_and_closed_ones_are_not() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        let mut faulty = begin(stage, &server, "faulty-api")?;
        let mut twin = begin(stage, &server, "twin-api")?;
        let mut other = begin(stage, &server, "other-api")?;
        let text = [&faulty, &twin, &other].map(sections).concat()
            + &postgres(&server.dsn_file("tickbird")?)
            + &check(LEAK, "warning = \"8s\"");
        let watch = Watch::begin(stage, &text)?;
        for name in ["faulty-api", "twin-api", "other-api"] {
            watch.sees(CHECK, name, "ok", 30.s())?;
        }
        // What is usual has to be known before one error stands out.
        until("half a minute of the logs is known", 60.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let rows = rows_of(&status, "pool.timeout", "log:");
            let is_known = rows.len() == 3 && rows.iter().all(|it| it["looks"].as_u64() >= Some(30));
            if is_known { Ok(()) } else { Err(format!("{rows:?}")) }
        })?;

        let first = faulty.does("fail")?;
        twin.does("tidy")?;
        other.does("tidy")?;
        let found = watch.fires(CHECK, "faulty-api", 40.s())?;
        assert_eq!(found["severity"], "warning");
        let told = pairs(&watch, "faulty-api", 1)?;
        let summary = told["summary"].as_str().unwrap_or_default();
        assert!(summary.contains("leak on error path") && summary.contains("OutOfStock"), "{summary}");
        let error = told["evidence"]["errors"][0].clone();
        assert_eq!(error["place"], "failing.py order", "{told}");
        assert_eq!(
            named(&told["evidence"]["connections"], "session"),
            named(&Value::from(vec![first.clone()]), "backend")
        );
        watch.never_told(LEAK, "faulty-api")?;

        // Nothing was raised when the third one forgot its sessions.
        other.does("forget")?;
        throughout("only one is told of", 4.s(), || {
            watch.never_told(CHECK, "other-api").map_err(|error| error.to_string())
        })?;
        let second = faulty.does("fail")?;
        twin.does("tidy")?;
        other.does("tidy")?;
        let told = pairs(&watch, "faulty-api", 2)?;
        assert_eq!(told["evidence"]["errors"][0]["fingerprint"], error["fingerprint"], "it is the same error: {told}");
        assert_eq!(
            named(&told["evidence"]["connections"], "session"),
            named(&Value::from(vec![first, second]), "backend")
        );
        assert!(!told.to_string().contains("canary"), "what was quoted left this host: {told}");
        let leak = watch.tells(LEAK, "faulty-api", 40.s())?;
        assert_eq!(leak["evidence"]["errors"][0]["fingerprint"], error["fingerprint"], "{leak}");
        other.does("forget")?;
        let leak = watch.tells(LEAK, "other-api", 40.s())?;
        assert_eq!(leak["evidence"]["errors"], Value::Null, "{leak}");

        assert_eq!(faulty.does("repair")?, 2);
        watch.resolves(CHECK, "faulty-api", 30.s())?;
        watch.never_told(CHECK, "other-api")?;
        watch.silent_about("twin-api")
    });
}
