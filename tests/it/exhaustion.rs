//! A pool that is empty while requests wait is found with its waiters, and nothing that only looks like it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use tickbird_tests::agent::{app, postgres};
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Postgres, Requests, Seconds, Stage, StageError, Streams, Watch, alone, until};

const CHECK: &str = "pool.exhausted";
const ANYTHING: [&str; 3] = ["info", "warning", "critical"];
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
    /// `settings` are keys of each application's section. The limit of the twin's pool stands in its code alone.
    fn begin(stage: &Stage, settings: impl Fn(&Application) -> String) -> Result<Self, StageError> {
        let server = Postgres::start(stage, 100)?;
        let faulty = Application::waiting(stage, "faulty-api", &server, Some(5))?;
        let twin = Application::waiting(stage, "twin-api", &server, None)?;
        let configuration = [
            app(faulty.name(), &faulty.command()),
            settings(&faulty),
            app(twin.name(), &twin.command()),
            settings(&twin),
            postgres(&server.dsn_file("tickbird")?),
        ]
        .concat();
        let watch = Watch::begin(stage, &configuration)?;
        for name in ["faulty-api", "twin-api"] {
            watch.sees(CHECK, name, "ok", 30.s())?;
        }
        Ok(Self { faulty, twin, watch, _server: server })
    }

    /// Twenty requests on the pool of five: told after three seconds, over when they are answered. Where the application
    /// tells its waiters it is critical after ten; by the sockets it stays a warning at the limit that its DSN tells, for
    /// they may want something else.
    fn is_exhausted_and_recovers(&mut self, is_told: bool) -> Result<(), StageError> {
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
            if is_fifteen(&pool["facts"]["waiting"], is_told) { Ok(()) } else { Err(pool["facts"].to_string()) }
        })?;
        let proof = self.watch.tells_as(CHECK, "faulty-api", "warning", 3.s() + LATE)?["evidence"].clone();
        assert!(began.elapsed() >= 3.s(), "a burst is over by then: {:?}", began.elapsed());
        assert!(is_fifteen(&proof["waiters"], is_told), "fifteen wait: {proof}");
        let leases = proof["leases"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(leases.len() == 5 && leases.iter().all(|it| it["pid"] == self.faulty.pid()), "{proof}");
        assert!(leases.iter().all(|it| it["state"] == "idle in transaction" && it["session"].is_u64()), "{proof}");
        assert!(!proof.to_string().contains("a literal"), "statements come without their literals: {proof}");
        if is_told {
            self.watch.tells_as(CHECK, "faulty-api", "critical", 7.s() + LATE)?;
            assert!(began.elapsed() >= 10.s(), "{:?}", began.elapsed());
        } else {
            self.stays_a_warning("faulty-api", 7.s() + LATE)?;
        }
        self.watch.fires(CHECK, "faulty-api", 20.s())?;
        self.faulty.does("release")?;
        requests.are_answered()?;
        self.watch.resolves(CHECK, "faulty-api", 30.s()).map(drop)
    }

    /// WebSockets on the same port, of which some talk each second and some every third; then it is exhausted beside
    /// them, and its twin has all of its connections at work.
    fn streams_are_no_waiters(&mut self, is_told: bool) -> Result<(), StageError> {
        let [faulty, twin] = [self.faulty.port(), self.twin.port()];
        let open = |port, pause| Streams::open(port, "/stream", 6, pause);
        let _streams = [open(faulty, 1.s())?, open(faulty, 3.s())?, open(twin, 1.s())?, open(twin, 3.s())?];
        // A stream is known as such once it has said something twice.
        throughout("streams are no waiters", 9.s(), || self.fires_not("-api", &ANYTHING))?;
        let work = Requests::send(twin, "/work", 5)?;
        self.is_exhausted_and_recovers(is_told)?;
        self.fires_not("twin-api", &ANYTHING)
            .map_err(|said| failed("streams beside a busy pool are no waiters", said))?;
        self.twin.does("release")?;
        work.are_answered()
    }

    /// It goes on, and is not critical.
    fn stays_a_warning(&self, who: &str, time: Duration) -> Result<(), StageError> {
        throughout("it stays a warning", time, || self.fires_not(who, &["critical", "ok"]))
    }

    fn fires_not(&self, who: &str, states: &[&str]) -> Result<(), String> {
        let status = self.watch.agent.status().map_err(|error| error.to_string())?;
        let rows = rows_of(&status, CHECK, who);
        let is_one = |row: &&Value| states.iter().any(|it| row["state"] == **it);
        if rows.iter().any(is_one) { Err(format!("{rows:?}")) } else { Ok(()) }
    }
}

fn failed(what: &str, said: String) -> StageError {
    StageError::Failed { what: what.to_owned(), said }
}

/// Exactly, or at most, where nobody told.
fn is_fifteen(waiters: &Value, is_told: bool) -> bool {
    let most = if is_told { waiters.as_u64() } else { waiters[1].as_u64().filter(|_| waiters[0] == 0) };
    most.is_some_and(|it| (14..=16).contains(&it))
}

/// By the sessions of the server and the requests in flight; then the same with eight WebSockets on the same port.
#[test]
fn a_pool_of_five_under_twenty_requests_has_fifteen_waiters_at_most() {
    alone(|stage| {
        let mut it = Waits::begin(stage, |_| String::new())?;
        it.is_exhausted_and_recovers(false)?;
        it.streams_are_no_waiters(false)?;
        it.watch.silent_about("twin-api")?;
        // Busy work that has every connection, beside long polls that want none: nobody waits, which no socket tells, and
        // nothing tells whether its pool may open more. It is recorded, and nobody is called.
        let polls = Requests::send(it.twin.port(), "/slow", 10)?;
        let work = Requests::send(it.twin.port(), "/work", 5)?;
        let told = it.watch.tells_as(CHECK, "twin-api", "info", 3.s() + LATE)?;
        assert_eq!(told["evidence"]["waiters"], json!([0, 10]), "{told}");
        let summary = told["summary"].as_str().unwrap_or_default();
        assert!(summary.contains("up to 10 of 15 requests in flight may wait for one"), "{summary}");
        assert!(summary.ends_with("only recorded, for nobody tells the pool's limit or who waits"), "{summary}");
        throughout("it stays a record", 7.s() + LATE, || it.fires_not("twin-api", &["warning", "critical", "ok"]))?;
        it.twin.does("release")?;
        polls.are_answered()?;
        work.are_answered()?;
        until("the record ends", 30.s(), || it.fires_not("twin-api", &ANYTHING))?;
        it.watch.quiet_about("twin-api")
    });
}

/// By the application's own count, on its page of health; and nobody who only seems to wait is one.
#[test]
fn waiters_that_the_application_counts_are_exact() {
    alone(|stage| {
        let pages = |it: &Application| {
            let port = it.port();
            format!(
                "pool.metrics = \"http://127.0.0.1:{port}/metrics\"\npool.health = {{ url = \
                 \"http://127.0.0.1:{port}/health\", in_use = \"/pool/checked_out\", waiting = \"/pool/waiting\" }}\n"
            )
        };
        let mut it = Waits::begin(stage, pages)?;
        for name in ["faulty", "twin"] {
            let port = if name == "twin" { it.twin.port() } else { it.faulty.port() };
            it.watch.sees("pool.stats", &format!("{port}/metrics"), "ok", 40.s())?;
            it.watch.sees("pool.stats", &format!("{port}/health"), "ok", 40.s())?;
        }
        it.is_exhausted_and_recovers(true)?;
        it.streams_are_no_waiters(true)?;
        // All five connections at work beside requests that want none: the application knows that nobody waits.
        let slow = Requests::send(it.twin.port(), "/slow", 10)?;
        let work = Requests::send(it.twin.port(), "/work", 5)?;
        throughout("slow requests are no waiters", 15.s(), || it.fires_not("twin-api", &["warning", "critical"]))?;
        it.twin.does("release")?;
        slow.are_answered()?;
        work.are_answered()?;
        it.watch.silent_about("twin-api")
    });
}

/// A pointer leads to a number that counts those who wait, too. While nobody waits it is right; then twenty connections
/// of five would be in use. That is told of the page, the pool is judged by it no more, and it is over with the queue.
#[test]
fn numbers_that_cannot_be_are_told_and_the_pool_is_not_judged_by_them() {
    const STATS: &str = "pool.stats";
    alone(|stage| {
        let page = |it: &Application| format!("http://127.0.0.1:{}/health", it.port());
        let settings = |it: &Application| {
            let in_use = if it.name() == "twin-api" { "checked_out" } else { "callers" };
            let url = page(it);
            format!(
                "pool.interval = \"2s\"\npool.health = {{ url = \"{url}\", limit = \"/pool/limit\", in_use = \
                 \"/pool/{in_use}\" }}\n"
            )
        };
        let mut it = Waits::begin(stage, settings)?;
        let pages = [page(&it.faulty), page(&it.twin)];
        for page in &pages {
            it.watch.sees(STATS, page, "ok", 30.s())?;
        }
        let waits = Requests::send(it.faulty.port(), "/work", 20)?;
        let work = Requests::send(it.twin.port(), "/work", 5)?;
        let told = it.watch.tells(STATS, &pages[0], 30.s())?;
        assert_eq!(told["severity"], "warning", "{told}");
        let summary = told["summary"].as_str().unwrap_or_default();
        assert!(summary.contains("20 connections are in use of at most 5"), "{summary}");
        assert_eq!(told["evidence"]["pools"][0]["in_use"], 20, "{told}");
        it.watch.fires(STATS, &pages[0], 20.s())?;
        let status = it.watch.agent.status()?;
        let shares = rows_of(&status, "pool.utilization", "faulty-api");
        let is_share = |row: &&Value| row["value"].as_f64().is_some_and(|it| it <= 1.0);
        assert!(
            !shares.is_empty() && shares.iter().all(is_share),
            "by the sessions it is full, by the page fourfold: {shares:?}"
        );
        it.faulty.does("release")?;
        it.twin.does("release")?;
        waits.are_answered()?;
        work.are_answered()?;
        it.watch.resolves(STATS, &pages[0], 30.s())?;
        it.watch.never_told(STATS, &pages[1])
    });
}
