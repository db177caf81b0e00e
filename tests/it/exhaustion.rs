//! A pool that is empty while requests wait is found with its waiters, and nothing that only looks like it.

use std::time::{Duration, Instant};

use serde_json::Value;

use tickbird_tests::agent::{app, postgres};
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{
    Agent, Application, Postgres, Requests, Seconds, Stage, StageError, Streams, Watch, alone, until,
};

const CHECK: &str = "pool.exhausted";
/// What a look may take to come: the host's of 1 s, a suspect server's of 2 s, and two busy cores.
const LATE: Duration = Duration::from_secs(6);

/// An application with a pool of five, its healthy twin on the same server, and a watch over both.
struct Waits {
    faulty: Application,
    twin: Application,
    watch: Watch,
    _server: Postgres,
}

impl Waits {
    /// `settings` are keys of the faulty application's section.
    fn begin(stage: &Stage, settings: impl Fn(&Application) -> String) -> Result<Self, StageError> {
        let server = Postgres::start(stage, 100)?;
        let faulty = Application::waiting(stage, "faulty-api", &server, 5)?;
        let twin = Application::waiting(stage, "twin-api", &server, 5)?;
        let configuration = [
            app(faulty.name(), &faulty.command()),
            settings(&faulty),
            app(twin.name(), &twin.command()),
            postgres(&server.dsn_file("tickbird")?),
        ]
        .concat();
        let watch = Watch::begin(stage, &configuration)?;
        for name in ["faulty-api", "twin-api"] {
            watch.sees(CHECK, name, "ok", 30.s())?;
        }
        Ok(Self { faulty, twin, watch, _server: server })
    }

    /// Twenty requests on the pool of five: told after three seconds, critical after ten, over when they are answered.
    fn is_exhausted_and_recovers(&mut self) -> Result<(), StageError> {
        let began = Instant::now();
        let requests = Requests::send(self.faulty.port(), "/work", 20)?;
        until("fifteen requests wait", 10.s(), || match self.faulty.does("truth").map(|it| it["waiting"].as_u64()) {
            Ok(Some(15)) => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        until("fifteen waiters are shown at the second look at the server", 2.s() + LATE, || {
            let status = self.watch.agent.status().map_err(|error| error.to_string())?;
            let targets = status["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
            let is_it =
                |it: &&Value| it["kind"] == "pool" && it["key"].as_str().is_some_and(|it| it.contains("faulty"));
            let pool = targets.iter().find(is_it).ok_or("it has no pool")?;
            let shown = pool["facts"]["waiting"].as_u64();
            if shown.is_some_and(|it| (14..=16).contains(&it)) { Ok(()) } else { Err(pool["facts"].to_string()) }
        })?;
        let proof = becomes(&self.watch.agent, "warning", 3.s() + LATE)?;
        assert!(began.elapsed() >= 3.s(), "a burst is over by then: {:?}", began.elapsed());
        let waiters = proof["waiters"].as_u64().unwrap_or_default();
        assert!((14..=16).contains(&waiters), "fifteen wait: {proof}");
        let leases = proof["leases"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(leases.len() == 5 && leases.iter().all(|it| it["pid"] == self.faulty.pid()), "{proof}");
        assert!(leases.iter().all(|it| it["state"] == "idle in transaction" && it["session"].is_u64()), "{proof}");
        assert!(!proof.to_string().contains("a literal"), "statements come without their literals: {proof}");
        becomes(&self.watch.agent, "critical", 7.s() + LATE)?;
        assert!(began.elapsed() >= 10.s(), "{:?}", began.elapsed());
        self.watch.fires(CHECK, "faulty-api", 20.s())?;
        self.faulty.does("release")?;
        requests.are_answered()?;
        self.watch.resolves(CHECK, "faulty-api", 30.s()).map(drop)
    }
}

/// Waits until the check fires so for the faulty application, by the agent's own word; gives the proof.
fn becomes(agent: &Agent, severity: &str, within: Duration) -> Result<Value, StageError> {
    until(format!("{CHECK} is {severity}"), within, || {
        let status = agent.status().map_err(|error| error.to_string())?;
        let firing = status["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_it =
            |it: &&Value| it["check"] == CHECK && it["target"].as_str().is_some_and(|it| it.contains("faulty-api"));
        match firing.iter().find(is_it) {
            Some(it) if it["severity"] == severity => Ok(it["evidence"].clone()),
            other => Err(format!("{other:?}; {:?}", rows_of(&status, CHECK, "faulty-api"))),
        }
    })
}

/// By the sessions of the server and the requests in flight; then the same with eight WebSockets on the same port.
#[test]
fn a_pool_of_five_under_twenty_requests_has_fifteen_waiters() {
    alone(|stage| {
        let mut it = Waits::begin(stage, |_| String::new())?;
        it.is_exhausted_and_recovers()?;
        let _streams = Streams::open(it.faulty.port(), "/stream", 8)?;
        let _others = Streams::open(it.twin.port(), "/stream", 8)?;
        // Chatter is known as such once it was seen for three seconds.
        throughout("streams are no waiters", 5.s(), || {
            let status = it.watch.agent.status().map_err(|error| error.to_string())?;
            let rows = rows_of(&status, CHECK, "-api");
            if rows.iter().any(|row| row["state"] == "warning") { Err(format!("{rows:?}")) } else { Ok(()) }
        })?;
        it.is_exhausted_and_recovers()?;
        it.watch.silent_about("twin-api")
    });
}

/// By the application's own count, on its page of health; and nobody who only seems to wait is one.
#[test]
fn waiters_that_the_application_counts_are_exact() {
    alone(|stage| {
        let mut it = Waits::begin(stage, |faulty| {
            let port = faulty.port();
            format!(
                "pool.metrics = \"http://127.0.0.1:{port}/metrics\"\npool.health = {{ url = \
                 \"http://127.0.0.1:{port}/health\", in_use = \"/pool/checked_out\", waiting = \"/pool/waiting\" }}\n"
            )
        })?;
        it.watch.sees("pool.stats", &format!("{}/metrics", it.faulty.port()), "ok", 40.s())?;
        it.watch.sees("pool.stats", &format!("{}/health", it.faulty.port()), "ok", 40.s())?;
        it.is_exhausted_and_recovers()?;
        // Requests that want no connection, beside four that have one each.
        let slow = Requests::send(it.twin.port(), "/slow", 10)?;
        let work = Requests::send(it.twin.port(), "/work", 4)?;
        throughout("slow requests are no waiters", 15.s(), || {
            let status = it.watch.agent.status().map_err(|error| error.to_string())?;
            let rows = rows_of(&status, CHECK, "twin-api");
            if rows.iter().any(|row| row["state"] == "warning") { Err(format!("{rows:?}")) } else { Ok(()) }
        })?;
        it.twin.does("release")?;
        slow.are_answered()?;
        work.are_answered()?;
        it.watch.silent_about("twin-api")
    });
}
