//! The server's own view is blocked: the agent keeps its one connection, says so, and the rest of it goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tickbird_tests::agent::{app, postgres};
use tickbird_tests::truth::connections_to;
use tickbird_tests::wait::{Paced, paced};
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Library, Postgres, Seconds, Sizes, Stage, StageError, Watch, alone};

const OURS: &str = "SELECT pid FROM pg_stat_get_activity(NULL) WHERE application_name = 'tickbird-agent'";
const CHECK: &str = "pool.idle_in_transaction";

fn begin(stage: &Stage) -> Result<(Postgres, Application, Watch), StageError> {
    let server = Postgres::start(stage, 50)?;
    let mut shop = Application::of_library(stage, "shop", Library::QueuePool, &server, Sizes::full(5))?;
    shop.does("traffic 20")?;
    let configuration = postgres(&server.dsn_file("tickbird")?) + &app("shop", &shop.command());
    let watch = Watch::begin(stage, &configuration)?;
    watch.sees(CHECK, "shop", "ok", 30.s())?;
    Ok((server, shop, watch))
}

fn looks(status: &Value, check: &str) -> u64 {
    rows_of(status, check, "shop").iter().filter_map(|it| it["looks_known"].as_u64()).sum()
}

/// Looks in a row with a second connection: one that hangs is given five seconds to say farewell before it is cut.
const FAREWELL: usize = 7;

/// Watches the agent for so long: it keeps one connection, but for `farewell` looks in a row, and its looks at the host go
/// on. The causes of blindness, and the checks that were blind at any time.
fn goes_on(
    watch: &Watch,
    server: &Postgres,
    time: Duration,
    farewell: usize,
) -> Result<(BTreeSet<String>, BTreeSet<String>), StageError> {
    let pid = watch.agent.pid().expect("the agent runs");
    let before = looks(&watch.agent.status()?, "pool.close_wait");
    let (mut causes, mut blind, mut too_many) = (BTreeSet::new(), BTreeSet::new(), 0);
    paced(1.s(), time, || {
        let status = watch.agent.status()?;
        causes.extend(status["blind"].as_array().into_iter().flatten().map(ToString::to_string));
        let checks = status["blind"].as_array().into_iter().flatten().filter_map(|it| it["checks"].as_array());
        blind.extend(checks.flatten().filter_map(|it| it.as_str().map(str::to_owned)));
        let connections = connections_to(pid, server.port())?;
        too_many = if connections > 1 { too_many + 1 } else { 0 };
        assert!(connections <= 2 && too_many <= farewell, "{connections} connections at {too_many} looks");
        Ok(Paced::More)
    })?;
    let looked = looks(&watch.agent.status()?, "pool.close_wait") - before;
    assert!(looked + 4 >= time.as_secs(), "{looked} looks at the host in {time:?}");
    Ok((causes, blind))
}

/// Somebody holds a lock on the view, and with it on the catalogues behind it: whoever logs in waits.
#[test]
fn a_lock_on_the_catalogue_view_costs_no_second_connection() {
    alone(|stage| {
        let (server, mut shop, watch) = begin(stage)?;
        let lock =
            "BEGIN; LOCK TABLE pg_catalog.pg_stat_activity IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(20); COMMIT";
        let (causes, blind) = std::thread::scope(|scope| {
            let holder = scope.spawn(|| server.sql(lock));
            let seen = goes_on(&watch, &server, 18.s(), 0);
            holder.join().expect("it does not panic").and(seen)
        })?;
        assert!(!blind.contains("pool.close_wait"), "{blind:?}");
        assert!(causes.iter().any(|it| it.contains("no answer from") && it.contains("lock timeout")), "{causes:?}");
        watch.sees(CHECK, "shop", "ok", 30.s())?;
        watch.silent_about("shop")?;
        let (served, failed) = shop.served()?;
        assert!(served > 100 && failed == 0, "{served} served, {failed} failed");
        Ok(())
    });
}

/// The agent's own backend hangs in the middle of everything.
#[test]
fn a_backend_that_hangs_blinds_the_checks_of_its_server_and_no_other() {
    alone(|stage| {
        let (server, _shop, watch) = begin(stage)?;
        let backend: i32 = server.sql(OURS)?[0][0].parse().expect("a process id");
        let backend = Pid::from_raw(backend).expect("a process id is positive");
        let signal = |it| kill_process(backend, it).map_err(|error| StageError::system("signal")(error.into()));
        signal(Signal::STOP)?;
        let seen = goes_on(&watch, &server, 25.s(), FAREWELL);
        signal(Signal::CONT)?;
        let (_, blind) = seen?;
        assert!(blind.contains(CHECK) && !blind.contains("pool.close_wait"), "{blind:?}");
        watch.sees(CHECK, "shop", "ok", 30.s())?;
        watch.silent_about("pool:shop")
    });
}
