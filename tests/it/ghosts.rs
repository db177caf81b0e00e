//! Sessions whose client is gone and whose server was not told, and those that only look so.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::Value;
use tickbird_tests::agent::{app, postgres};
use tickbird_tests::network::kernel;
use tickbird_tests::postgres::{Route, free_port};
use tickbird_tests::process::Running;
use tickbird_tests::stage::workspace;
use tickbird_tests::truth::{backends, descriptors};
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Far, Library, Postgres, Seconds, Sizes, StageError, Watch, alone, until};

const CHECK: &str = "pool.ghost";

/// Backends of an application, by the server's own word.
fn sessions(server: &Postgres, name: &str) -> Result<BTreeSet<i32>, StageError> {
    Ok(backends(server)?.into_values().filter(|it| it.application_name == name).map(|it| it.pid).collect())
}

fn told(finding: &Value) -> BTreeSet<i32> {
    let rows = finding["evidence"]["sessions"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|it| i32::try_from(it["backend"].as_i64()?).ok()).collect()
}

/// Kills it, and waits until the kernel has no socket of it any more, not even one that tries to say goodbye.
fn dies(application: &mut Application) -> Result<(), StageError> {
    let ports: Vec<u16> = descriptors(application.pid())?.into_keys().collect();
    application.kill()?;
    until("its sockets are gone", 40.s(), || {
        let table = std::fs::read_to_string("/proc/net/tcp").map_err(|error| error.to_string())?;
        // 06 is TIME_WAIT: it said goodbye.
        let is_open = |port: &&u16| {
            let mut rows = table.lines().filter(|row| row.contains(&format!(":{port:04X} ")));
            rows.any(|row| row.split_ascii_whitespace().nth(3) != Some("06"))
        };
        let left = ports.iter().filter(is_open).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    })
}

#[test]
fn a_client_killed_behind_a_broken_network_leaves_ghosts_and_one_that_says_goodbye_does_not() {
    alone(|stage| {
        // As on a busy host: a socket without owner is not kept for minutes.
        kernel("tcp_orphan_retries", 1)?;
        let far = Far::begin(stage, 1)?;
        let server = Postgres::start_far(stage, 50, &far)?;
        let mut text = postgres(&server.dsn_file("tickbird")?);
        let mut begin = |name: &str| -> Result<Application, StageError> {
            let it = Application::of_library(stage, name, Library::QueuePool, &server, Sizes::full(5))?;
            text += &app(name, &it.command());
            Ok(it)
        };
        let (mut gone, mut ended, _staying) = (begin("gone-api")?, begin("ended-api")?, begin("staying-api")?);
        let watch = Watch::begin(stage, &text)?;
        for name in ["gone-api", "ended-api", "staying-api"] {
            watch.sees(CHECK, name, "ok", 40.s())?;
        }
        let lost = sessions(&server, "gone-api")?;
        assert_eq!(lost.len(), 5);
        dies(&mut ended)?;
        far.vanishes()?;
        dies(&mut gone)?;
        far.returns()?;
        assert_eq!(sessions(&server, "gone-api")?, lost, "the server was not told");
        assert!(sessions(&server, "ended-api")?.is_empty(), "this one said goodbye");
        watch.fires(CHECK, "gone-api", 60.s())?;
        until("all of them are named", 20.s(), || {
            let found = watch.tells(CHECK, "gone-api", 1.s()).map_err(|error| error.to_string())?;
            if told(&found) == lost { Ok(()) } else { Err(found.to_string()) }
        })?;
        server.terminate(lost)?;
        watch.resolves(CHECK, "gone-api", 40.s())?;
        for name in ["ended-api", "staying-api"] {
            watch.never_told(CHECK, name)?;
        }
        watch.silent_about("staying-api")
    });
}

/// The server sees the relay's addresses, so nothing of it can be told from other people's sessions.
#[test]
fn behind_a_translation_of_addresses_nobody_is_called_a_ghost_and_nobody_well() {
    alone(|stage| {
        let far = Far::begin(stage, 1)?;
        let server = Postgres::start_far(stage, 50, &far)?;
        let port = free_port()?.to_string();
        let mut relay = Command::new("/usr/bin/python3");
        relay.arg(workspace().join("tests/applications/relay.py")).args([&far.router(), &port, &far.address()]);
        let mut relay = far.on_router(relay.arg(server.port().to_string()));
        relay.stdin(Stdio::null()).stdout(Stdio::null());
        let mut relay = Running::start("relay", &mut relay, &stage.room("relay")?.join("log"))?;
        until("the relay listens", 10.s(), || {
            relay.alive()?;
            let all = std::net::TcpStream::connect(format!("{}:{port}", far.router()));
            all.map(drop).map_err(|error| error.to_string())
        })?;
        let mut environment = server.environment("app", Route::V4);
        for (key, value) in &mut environment {
            match *key {
                "PGHOST" => *value = far.router(),
                "PGPORT" => value.clone_from(&port),
                _ => (),
            }
        }
        let file = stage.room("relayed")?.join("dsn");
        let ends = [(far.address(), far.router()), (server.port().to_string(), port)];
        let dsn = ends.iter().fold(server.dsn("tickbird"), |dsn, (was, is)| dsn.replace(was, is));
        std::fs::write(&file, dsn).map_err(StageError::system("write a DSN file"))?;
        let mut gone =
            Application::through(stage, "gone-api", Library::QueuePool, environment.clone(), Sizes::full(5))?;
        let staying = Application::through(stage, "staying-api", Library::QueuePool, environment, Sizes::full(5))?;
        let text = [app("gone-api", &gone.command()), app("staying-api", &staying.command()), postgres(&file)].concat();
        let watch = Watch::begin(stage, &text)?;
        let is_blind = |name: &str| -> Result<(), StageError> {
            until(format!("{CHECK} is blind for {name}"), 40.s(), || {
                let status = watch.agent.status().map_err(|error| error.to_string())?;
                let rows = rows_of(&status, CHECK, name);
                let is_so = !rows.is_empty() && rows.iter().all(|it| it["state"] == "blind");
                let says = status["blind"].to_string().contains("address translated");
                if is_so && says { Ok(()) } else { Err(format!("{rows:?}; {}", status["blind"])) }
            })
        };
        is_blind("gone-api")?;
        dies(&mut gone)?;
        let left = sessions(&server, "gone-api")?;
        assert_eq!(left.len(), 5, "the relay tells the server nothing");
        throughout("there are ghosts that nobody can name", 15.s(), || Ok(()))?;
        is_blind("staying-api")?;
        watch.never_told(CHECK, "")
    });
}
