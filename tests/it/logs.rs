//! What applications write themselves when their pool fails, in the words of the real libraries.

use std::path::Path;

use serde_json::{Value, json};
use tickbird_tests::agent::{app, postgres};
use tickbird_tests::postgres::Route;
use tickbird_tests::wait::throughout;
use tickbird_tests::{
    Application, Failing, Library, PgBouncer, Postgres, Seconds, Sizes, Stage, StageError, Watch, alone, until,
};

const TIMEOUT: &str = "pool.timeout";
const PREPARED: &str = "pool.prepared";
const MISUSE: &str = "db.async_misuse";
const ERRORS: &str = "db.tx_errors";

/// An application with its log.
fn sections(it: &Application) -> String {
    let log = it.written().display();
    app(it.name(), &it.command()) + &format!("[[log]]\npath = \"{log}\"\napp = \"{}\"\n", it.name())
}

/// Waits until the evidence counts so many occurrences in the last minute.
fn counts(watch: &Watch, check: &str, name: &str, count: u64) -> Result<Value, StageError> {
    until(format!("{count} occurrences of {check}"), 20.s(), || {
        let told = watch.tells(check, name, 1.s()).map_err(|error| error.to_string())?;
        if told["evidence"]["occurrences"] == count { Ok(told) } else { Err(told["evidence"].to_string()) }
    })
}

/// A worker and its twin on one server, and a watch that has seen both of their logs.
fn two(stage: &Stage) -> Result<(Application, Application, Watch, Postgres), StageError> {
    let server = Postgres::start(stage, 50)?;
    let begin = |name: &str| Application::failing(stage, name, server.environment("app", Route::V4));
    let (mut faulty, mut twin) = (begin("faulty-api")?, begin("twin-api")?);
    for it in [&mut faulty, &mut twin] {
        it.does("serve 1")?;
    }
    let text = sections(&faulty) + &sections(&twin) + &postgres(&server.dsn_file("tickbird")?);
    let watch = Watch::begin(stage, &text)?;
    for check in [TIMEOUT, PREPARED, MISUSE] {
        for name in ["log:faulty-api", "log:twin-api"] {
            watch.sees(check, name, "ok", 30.s())?;
        }
    }
    Ok((faulty, twin, watch, server))
}

/// As logrotate does it with `copytruncate`.
fn copy_and_truncate(log: &Path, to: &Path) -> Result<(), StageError> {
    let failed = || StageError::system(format!("rotate {}", log.display()));
    std::fs::copy(log, to).map_err(failed())?;
    std::fs::OpenOptions::new().write(true).truncate(true).open(log).map(drop).map_err(failed())
}

/// One request without a connection is critical; a minute later it is over. The twin only speaks of such things.
#[test]
fn one_request_that_waited_in_vain_is_critical_and_talk_of_it_is_nothing() {
    alone(|stage| {
        let (mut faulty, mut twin, watch, _server) = two(stage)?;
        twin.does("serve 5")?;
        let text = "QueuePool limit of size 1 overflow 0 reached, connection timed out, timeout 0.05";
        for said in [
            format!("INFO POST /search body={{\"q\": \"{text}\"}}"),
            format!("WARNING ticket 7: \"{text}\" is what the customer reads"),
            "DEBUG greenlet_spawn has not been called by this path".to_owned(),
            "WARNING a prepared statement already exists in the plan".to_owned(),
        ] {
            twin.does(&format!("say {said}"))?;
        }
        assert_eq!(faulty.does("starve 1")?, 1);
        let found = watch.fires(TIMEOUT, "faulty-api", 20.s())?;
        assert_eq!(found["severity"], "critical");
        let told = counts(&watch, TIMEOUT, "faulty-api", 1)?;
        let line = told["evidence"]["lines"][0]["line"].as_str().unwrap_or_default();
        assert!(line.contains("QueuePool limit of size 1 overflow 0 reached"), "{told}");
        watch.resolves(TIMEOUT, "faulty-api", 90.s())?;
        watch.silent_about("log:twin-api")
    });
}

/// What each library says when its pool is empty.
const fn own_words(whose: Failing) -> &'static str {
    match whose {
        Failing::Python => "couldn't get a connection after 0.05 sec",
        Failing::Java => "Connection is not available, request timed out after 1",
        Failing::Node => "timeout exceeded when trying to connect",
        Failing::Ruby => "could not obtain a connection from the pool within 0.050 seconds",
    }
}

/// Waits until these words are told once of each worker, whatever chain of causes its library writes.
fn tells_once(watch: &Watch, name: &str, words: &str) -> Result<(), StageError> {
    until(format!("{name} is told to have written once: {words}"), 20.s(), || {
        let told = watch.tells(TIMEOUT, name, 1.s()).map_err(|error| error.to_string())?;
        let lines = told["evidence"]["lines"].as_array().cloned().unwrap_or_default();
        let with = lines.iter().filter(|it| it["line"].as_str().is_some_and(|it| it.contains(words))).count();
        if with == 1 && told["severity"] == "critical" { Ok(()) } else { Err(told.to_string()) }
    })
}

/// Client backends at the server, without the one that asks.
fn taken(server: &Postgres) -> Result<u16, StageError> {
    let rows = server.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )?;
    let count = rows.first().and_then(|it| it.first()).and_then(|it| it.parse().ok());
    count.ok_or_else(|| StageError::Malformed { what: "a count of backends".into(), found: format!("{rows:?}") })
}

/// HikariCP, psycopg_pool, pg-pool and ActiveRecord, and each one's driver when the server refuses: for the limit of a
/// role, for the slots that are kept for superusers, and for the very last one. The twins serve all the while.
#[test]
fn nobody_gets_a_connection_in_the_words_of_each_library_and_of_its_server() {
    alone(|stage| {
        const SLOTS: u16 = 20;
        let server = Postgres::start(stage, SLOTS)?;
        let begin = |kind: &str, whose: Failing| {
            let name = format!("{kind}-{whose:?}-api");
            Application::failing_as(whose, stage, &name, server.environment("app", Route::V4))
        };
        let mut all = Vec::new();
        for whose in Failing::ALL {
            all.push((whose, begin("faulty", whose)?, begin("twin", whose)?));
        }
        let text: String = all.iter().map(|(_, faulty, twin)| sections(faulty) + &sections(twin)).collect();
        let watch = Watch::begin(stage, &text)?;
        for (whose, faulty, twin) in &mut all {
            assert_eq!((faulty.does("serve 1")?, twin.does("serve 3")?), (0.into(), 0.into()));
            for name in [faulty.name(), twin.name()] {
                watch.sees(TIMEOUT, &format!("log:{name}"), "ok", 30.s())?;
            }
            let words = own_words(*whose).to_owned() + if *whose == Failing::Java { "000ms" } else { "" };
            for said in [
                format!("INFO POST /search body={{\"q\": \"{words}\"}}"),
                format!("WARNING ticket 7: \"{words}\" is what the customer reads"),
                format!("DEBUG tried again: {words}"),
            ] {
                twin.does(&format!("say {said}"))?;
            }
        }
        for (whose, faulty, _) in &mut all {
            let command = if *whose == Failing::Python { "queue 1" } else { "starve 1" };
            assert_eq!(faulty.does(command)?, 1);
        }
        for (whose, faulty, _) in &all {
            tells_once(&watch, faulty.name(), own_words(*whose))?;
        }

        let mut refused = |words: &str| -> Result<(), StageError> {
            for (_, faulty, twin) in &mut all {
                assert_eq!((faulty.does("begin 1")?, twin.does("serve 1")?), (1.into(), 0.into()), "{words}");
            }
            all.iter().try_for_each(|(_, faulty, _)| tells_once(&watch, faulty.name(), words))
        };
        server.sql(&format!("ALTER ROLE app CONNECTION LIMIT {}", taken(&server)?))?;
        refused("too many connections for role")?;
        server.sql("ALTER ROLE app CONNECTION LIMIT -1")?;
        let crowd = |name: &str, role: &str, size: u16| {
            let environment = server.environment(role, Route::V4);
            Application::through(stage, name, Library::PsycopgPool, environment, Sizes::full(size))
        };
        let _crowd = crowd("crowd", "app", SLOTS - 3 - taken(&server)?)?;
        refused("remaining connection slots are reserved")?;
        let _people = crowd("people", "postgres", 3)?;
        refused("sorry, too many clients already")?;
        watch.silent_about("log:twin-")
    });
}

/// Each of the errors is written with its traceback and the chain of its causes, and is one.
#[test]
fn a_rotated_log_loses_no_line_and_repeats_none() {
    alone(|stage| {
        let (mut faulty, _twin, watch, _server) = two(stage)?;
        let log = faulty.written().to_owned();
        let rotated = |number: u32| log.with_file_name(format!("app.log.{number}"));
        faulty.does("starve 3")?;
        counts(&watch, TIMEOUT, "faulty-api", 3)?;
        // Renamed in the middle of the writing; the application opens a new one with its next line.
        faulty.does("starve 2")?;
        std::fs::rename(&log, rotated(1)).map_err(StageError::system("rename the log"))?;
        faulty.does("starve 2")?;
        counts(&watch, TIMEOUT, "faulty-api", 7)?;
        // Copied and truncated before anybody can have read the last two, and at once longer than before.
        faulty.does("starve 2")?;
        copy_and_truncate(&log, &rotated(2))?;
        faulty.does("starve 6")?;
        counts(&watch, TIMEOUT, "faulty-api", 15)?;
        throughout("it stays so", 5.s(), || {
            let told = watch.tells(TIMEOUT, "faulty-api", 1.s()).map_err(|error| error.to_string())?;
            if told["evidence"]["occurrences"] == 15 { Ok(()) } else { Err(told["evidence"].to_string()) }
        })?;
        watch.silent_about("log:twin-api")
    });
}

/// asyncpg numbers its statements in each process, so the second worker finds the first one's on the shared connection.
#[test]
fn prepared_statements_behind_a_pooler_fail_in_the_second_worker() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        let pooler = PgBouncer::start(stage, &server)?;
        let begin = |name: &str, environment| Application::failing(stage, name, environment);
        let mut first = begin("first-worker", pooler.environment(&server, Route::V4))?;
        let mut second = begin("second-worker", pooler.environment(&server, Route::V4))?;
        let mut direct = begin("direct-worker", server.environment("app", Route::V4))?;
        let text = [&first, &second, &direct].map(sections).concat() + &postgres(&server.dsn_file("tickbird")?);
        let watch = Watch::begin(stage, &text)?;
        for name in ["log:first-worker", "log:second-worker", "log:direct-worker"] {
            watch.sees(PREPARED, name, "ok", 30.s())?;
        }
        assert_eq!(first.does("ask 6")?, 0, "nobody was there before");
        assert_eq!(direct.does("ask 6")?, 0);
        assert_eq!(second.does("ask 1")?, 1);
        assert_eq!(watch.fires(PREPARED, "log:second-worker", 20.s())?["severity"], "warning");
        counts(&watch, PREPARED, "second-worker", 1)?;
        assert_eq!(second.does("ask 5")?, 5);
        counts(&watch, PREPARED, "second-worker", 6)?;
        let is_critical = |it: &Value| it["check"] == PREPARED && it["severity"] == "critical";
        watch.collector.has_incident("it is critical", 20.s(), is_critical)?;
        for name in ["log:first-worker", "log:direct-worker"] {
            watch.silent_about(name)?;
        }
        Ok(())
    });
}

#[test]
fn one_session_in_two_tasks_and_one_outside_of_its_loop_are_misuse() {
    alone(|stage| {
        let (mut faulty, mut twin, watch, _server) = two(stage)?;
        assert_eq!(twin.does("ask 5")?, 0);
        assert_eq!(faulty.does("overlap 1")?, 1);
        assert_eq!(watch.fires(MISUSE, "log:faulty-api", 20.s())?["severity"], "warning");
        let told = counts(&watch, MISUSE, "faulty-api", 1)?;
        assert!(told["evidence"].to_string().contains("another operation is in progress"), "{told}");
        assert_eq!(faulty.does("lazy 2")?, 2);
        let told = counts(&watch, MISUSE, "faulty-api", 3)?;
        assert!(told["evidence"].to_string().contains("greenlet_spawn has not been called"), "{told}");
        watch.silent_about("log:twin-api")
    });
}

/// One is recorded, five within five minutes are told; the twin's transactions are well, and it only speaks of errors.
#[test]
fn transactions_that_fail_are_known_by_what_the_driver_writes() {
    alone(|stage| {
        let (mut faulty, mut twin, watch, _server) = two(stage)?;
        for name in ["log:faulty-api", "log:twin-api"] {
            watch.sees(ERRORS, name, "ok", 30.s())?;
        }
        twin.does("serve 5")?;
        for said in [
            "INFO order 7: deadlock detected, tried again",
            "WARNING ticket 7: \"current transaction is aborted, commands ignored until end of transaction block\"",
            "DEBUG retried after SQLSTATE 40001",
            "ERROR order 25006 is not known",
        ] {
            twin.does(&format!("say {said}"))?;
        }
        assert_eq!(faulty.does("abort 1")?, 1);
        let told = counts(&watch, ERRORS, "log:faulty-api", 1)?;
        assert_eq!((&told["severity"], &told["evidence"]["by_sqlstate"]), (&"info".into(), &json!({ "25P02": 1 })));
        assert_eq!(faulty.does("write 4")?, 4);
        assert_eq!(watch.fires(ERRORS, "log:faulty-api", 20.s())?["severity"], "warning");
        let told = counts(&watch, ERRORS, "log:faulty-api", 5)?;
        assert_eq!(told["evidence"]["by_sqlstate"], json!({ "25006": 4, "25P02": 1 }));
        assert!(told["evidence"]["lines"].to_string().contains("in a read-only transaction"), "{told}");
        watch.silent_about("log:twin-api")
    });
}
