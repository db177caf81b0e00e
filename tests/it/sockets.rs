//! What sockets alone say: peers that vanished without a word, and servers that do not answer.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::time::Duration;

use tickbird_tests::agent::{app, postgres};
use tickbird_tests::network::kernel;
use tickbird_tests::truth::descriptors;
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Far, Library, Postgres, Seconds, Sizes, Stage, StageError, Watch, alone, until};

/// A pool of one library on one server, with its section.
fn pool(
    stage: &Stage,
    name: &str,
    library: Library,
    server: &Postgres,
    sizes: Sizes,
    configuration: &mut String,
) -> Result<Application, StageError> {
    let it = Application::of_library(stage, name, library, server, sizes)?;
    *configuration += &app(name, &it.command());
    Ok(it)
}

fn serves_again(it: &mut Application) -> Result<(), StageError> {
    let before = it.served()?.0;
    until(format!("{} serves again", it.name()), 40.s(), || {
        let now = it.served().map_err(|error| error.to_string())?.0;
        if now > before + 10 { Ok(()) } else { Err(format!("{before}, then {now}")) }
    })
}

/// Keepalive of the kernel's own pace is used by libpq; asyncpg has none, so its connections are asked by requests only.
#[test]
fn a_peer_that_vanished_is_missed_where_something_asks_for_it_and_nowhere_is_it_called_well() {
    const CHECK: &str = "pool.half_open";
    alone(|stage| {
        for (setting, value) in [("tcp_keepalive_time", 4), ("tcp_keepalive_intvl", 2), ("tcp_keepalive_probes", 60)] {
            kernel(setting, value)?;
        }
        let (lost, other) = (Far::begin(stage, 1)?, Far::begin(stage, 2)?);
        let (server, elsewhere) = (Postgres::start_far(stage, 50, &lost)?, Postgres::start_far(stage, 50, &other)?);
        let mut text = postgres(&server.dsn_file("tickbird")?) + &postgres(&elsewhere.dsn_file("tickbird")?);
        let mut begin = |name, library, server| pool(stage, name, library, server, Sizes::full(5), &mut text);
        let probing = begin("probing-api", Library::QueuePool, &server)?;
        let mut asking = begin("asking-api", Library::Asyncpg, &server)?;
        let _mute = begin("mute-api", Library::Asyncpg, &server)?;
        let _probing_twin = begin("probing-twin", Library::QueuePool, &elsewhere)?;
        let mut asking_twin = begin("asking-twin", Library::Asyncpg, &elsewhere)?;
        asking.does("traffic 20")?;
        asking_twin.does("traffic 20")?;
        let watch = Watch::begin(stage, &text)?;
        for name in ["probing-api", "asking-api", "probing-twin", "asking-twin"] {
            watch.sees(CHECK, name, "ok", 30.s())?;
        }
        let told = watch.tells("pool.keepalive", "mute-api", 30.s())?;
        assert_eq!(told["severity"], "info");

        // Three seconds of loss are made up for.
        lost.vanishes()?;
        throughout("packets are lost", 3.s(), || Ok(()))?;
        lost.returns()?;
        serves_again(&mut asking)?;
        watch.never_told(CHECK, "")?;

        lost.vanishes()?;
        for name in ["probing-api", "asking-api"] {
            watch.fires(CHECK, name, 60.s())?;
        }
        // Each connection has its own time of the last probe: one after another is known to be dead.
        let truth: BTreeSet<u64> = descriptors(probing.pid())?.into_values().map(u64::from).collect();
        watch.tells_when(CHECK, "probing-api", "with every connection of the pool", 30.s(), |told| {
            let named = told["evidence"]["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
            named.iter().filter_map(|it| it["fd"].as_u64()).collect::<BTreeSet<_>>() == truth
        })?;
        let status = watch.agent.status()?;
        let rows = rows_of(&status, CHECK, "mute-api");
        assert!(!rows.is_empty() && rows.iter().all(|it| it["state"] != "ok"), "nobody can know: {rows:?}");
        watch.never_told(CHECK, "mute-api")?;
        lost.returns()?;
        for name in ["probing-api", "asking-api"] {
            watch.resolves(CHECK, name, 90.s())?;
        }
        watch.never_told(CHECK, "twin")?;
        watch.never_told("pool.keepalive", "probing")
    });
}

/// Behind a router that drops, and at a server that is frozen with its queue full: nobody says no.
#[test]
fn connecting_to_a_server_that_does_not_answer_is_stuck_and_to_one_that_answers_is_not() {
    const CHECK: &str = "pool.connect_stuck";
    alone(|stage| {
        let lost = Far::begin(stage, 1)?;
        let (far, frozen, well) =
            (Postgres::start_far(stage, 50, &lost)?, Postgres::start(stage, 30)?, Postgres::start(stage, 50)?);
        let mut text = String::new();
        for server in [&far, &frozen, &well] {
            text += &postgres(&server.dsn_file("tickbird")?);
        }
        let mut applications = Vec::new();
        for (name, server) in [("far-api", &far), ("frozen-api", &frozen), ("twin-api", &well)] {
            let mut it = pool(stage, name, Library::QueuePool, server, Sizes { most: 5, least: 0 }, &mut text)?;
            // A connection of its own for each request: there is always one to be opened, and at most looks one that is open.
            it.does("churn 40")?;
            applications.push(it);
        }
        let watch = Watch::begin(stage, &text)?;
        for name in ["far-api", "frozen-api", "twin-api"] {
            watch.sees(CHECK, name, "ok", 60.s())?;
        }
        for it in &mut applications[..2] {
            it.does("churn 0")?;
        }
        throughout("what is being opened is open", 1.s(), || Ok(()))?;
        lost.vanishes()?;
        frozen.freeze();
        // Clients that the kernel still takes in fill the queue of a server that takes nobody out of it.
        let mut queue = Vec::new();
        let address = format!("127.0.0.1:{}", frozen.port()).parse().expect("an address");
        until("the queue is full", 30.s(), || {
            match TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
                Ok(stream) => {
                    queue.push(stream);
                    Err(format!("{} in the queue", queue.len()))
                }
                Err(_) => Ok(()),
            }
        })?;
        for it in &mut applications[..2] {
            it.does("churn 10")?;
        }
        for name in ["far-api", "frozen-api"] {
            let found = watch.fires(CHECK, name, 40.s())?;
            assert_eq!(found["severity"], "warning");
        }
        drop(queue);
        frozen.thaws();
        lost.returns()?;
        for name in ["far-api", "frozen-api"] {
            watch.resolves(CHECK, name, 60.s())?;
        }
        watch.never_told(CHECK, "twin-api")
    });
}
