//! Every application of a soak, what it does by the minute, and how one is replaced.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use tickbird_tests::agent::app;
use tickbird_tests::certificate::Certificate;
use tickbird_tests::process::{Running, installed};
use tickbird_tests::wait::throughout;
use tickbird_tests::{Application, Library, Requests, Seconds, Sizes, Stage, StageError, until};

use crate::servers::Servers;

/// Requests a second, minute by minute; each application begins at another place.
const RATES: [u32; 6] = [20, 50, 5, 30, 0, 10];
/// The same for the others.
const LIGHT: [u32; 6] = [5, 10, 0, 3, 8, 1];

/// Pools of these stacks on the main server, each of so many connections.
const SIZE: u16 = 12;
const STACKS: [(&str, Library); 6] = [
    ("queuepool-api", Library::QueuePool),
    ("psycopg-api", Library::PsycopgPool),
    ("asyncpg-api", Library::Asyncpg),
    ("go-api", Library::GoSql),
    ("hikari-api", Library::Hikari),
    ("node-api", Library::NodePg),
];
/// Of the pools, the one that serves an HTTP client, too.
const LISTENS: usize = 0;
/// What looks like a fault and is none: a listener, a lock, a long job, a second pool.
const DECOYS: [(usize, &str); 7] = [
    (0, "listen"),
    (0, "lock"),
    // Taken from the pool for good, and committed: no later statement shows what they are for.
    (0, "dedicate 2 lock"),
    (0, "dedicate 1 listen"),
    (1, "batch"),
    (3, "listen"),
    (0, "second 10"),
];
/// The same at Redis: who is fed by others, and who waits for work.
const DECOYS_OF_REDIS: [&str; 3] = ["subscribe", "xread", "block 2"];
/// What SQLAlchemy documents for asyncpg behind a pooler.
const KEY: &str = "prepared_statement_cache_size=0";

/// What an ordinary log says beside its requests: nothing of it is a fault of a pool.
const SAID: [&str; 5] = [
    "INFO POST /search body={\"q\": \"QueuePool limit of size 1 overflow 0 reached, connection timed out\"}",
    "WARNING ticket 7: \"deadlock detected\" is what the customer reads",
    "DEBUG greenlet_spawn has not been called by this path",
    "WARNING a prepared statement already exists in the plan",
    "ERROR order 25006 is not known",
];

/// One process writes in WAL mode, the other reads.
const LEDGER: &str = r#"
import sqlite3, sys, time
reads = len(sys.argv) > 2
database = sqlite3.connect(f"file:{sys.argv[1]}{'?mode=ro' if reads else ''}", uri=True, isolation_level=None)
if not reads:
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, what TEXT)")
print("ready", file=sys.stderr, flush=True)
while True:
    if reads:
        database.execute("SELECT count(*) FROM entries").fetchone()
    else:
        database.execute("INSERT INTO entries (what) VALUES ('a')")
    time.sleep(0.5)
"#;

/// They run until this is dropped.
#[derive(Debug)]
pub(crate) struct Actors {
    /// The stacks on the main server, then others of the same manners.
    pools: Vec<Application>,
    light: usize,
    page: Application,
    waits: [Application; 2],
    orders: Application,
    accounts: Application,
    /// Reads from the replica what the one before it writes.
    reports: Application,
    _safe: Application,
    _ledger: [Running; 2],
    /// What those that were replaced have served and failed.
    served: BTreeMap<String, (u64, u64)>,
    restarts: usize,
}

impl Actors {
    /// Starts all of them; gives the sections that tell the agent of them, too.
    pub(crate) fn begin(stage: &Stage, servers: &Servers, tls: &Certificate) -> Result<(Self, String), StageError> {
        let mut pools = Vec::new();
        let mut text = String::new();
        for (name, library) in STACKS {
            let it = Application::of_library(stage, name, library, &servers.main, Sizes::full(SIZE))?;
            text += &format!("{}pool.limit = {SIZE}\n{}", app(name, &it.command()), log(name, &it.log().display()));
            pools.push(it);
        }
        let light = pools.len();
        for (name, library, environment, settings) in [
            ("named-api", Library::QueuePool, servers.by_name(), String::new()),
            (
                "pooled-async-api",
                Library::AsyncEngine,
                servers.pooled("asyncpg", &format!("?{KEY}")),
                format!("pool.pooler = \"transaction\"\npool.required = [\"{KEY}\"]\n"),
            ),
            ("pooled-api", Library::QueuePool, servers.pooled("psycopg2", ""), String::new()),
            ("shop-api", Library::PyMySql, servers.mariadb(), String::new()),
            ("cache-api", Library::RedisPy, servers.redis(), String::new()),
            ("jobs-api", Library::Pika, servers.rabbitmq(), String::new()),
        ] {
            let it = Application::through(stage, name, library, environment, Sizes::full(6))?;
            text += &(app(name, &it.command()) + &settings);
            pools.push(it);
        }
        let page = Application::web(stage, "page", 0)?;
        let safe = Application::web_tls(stage, "safe", tls)?;
        text += &format!(
            "[[endpoint]]\nurl = \"{}\"\njson = {{ \"/database/ok\" = true }}\n[[endpoint]]\nurl = \"{}\"\nca_file = \"{}\"\n",
            page.url(),
            safe.url(),
            tls.chain.display()
        );
        let waiting = |name: &str| Application::waiting(stage, name, &servers.main, Some(5));
        let waits = [waiting("waiting-api")?, waiting("status-api")?];
        text += &told_by_pages(&waits);
        let orders = Application::failing(stage, "orders-api", servers.direct())?;
        text += &(app(orders.name(), &orders.command()) + &log(orders.name(), &orders.written().display()));
        let mut accounts = Application::transacting(stage, "accounts-api", servers.direct())?;
        accounts.does("prepare")?;
        text += &app(accounts.name(), &accounts.command());
        servers.has_replayed("accounts")?;
        let reports = Application::transacting(stage, "reports-api", servers.replica())?;
        text += &app(reports.name(), &reports.command());
        let _ledger = ledger(stage)?;
        let (served, restarts) = (BTreeMap::new(), 0);
        let mut it =
            Self { pools, light, page, waits, orders, accounts, reports, _safe: safe, _ledger, served, restarts };
        for at in 0..it.light {
            it.decoys(at)?;
        }
        for command in DECOYS_OF_REDIS {
            it.named("cache-api").does(command)?;
        }
        Ok((it, text))
    }

    fn named(&mut self, name: &str) -> &mut Application {
        self.pools.iter_mut().find(|it| it.name() == name).expect("one of the pools has this name")
    }

    fn decoys(&mut self, at: usize) -> Result<(), StageError> {
        DECOYS.iter().filter(|it| it.0 == at).try_for_each(|(_, command)| self.pools[at].does(command).map(drop))
    }

    /// A minute's traffic, with a burst to the limit and an HTTP client without keepalive now and then.
    pub(crate) fn minute(&mut self, minute: usize) -> Result<(), StageError> {
        for at in 0..self.pools.len() {
            self.pools[at].does(&traffic(at, self.light, minute))?;
        }
        if minute % 3 == 1 {
            for it in &mut self.pools[..self.light] {
                it.does(&format!("burst {SIZE} 1"))?;
            }
            // More than the pool has: some wait a moment.
            for it in &self.waits {
                Requests::send(it.port(), "/work?seconds=0.5", 8)?.are_answered()?;
            }
        }
        if minute % 4 == 2 {
            self.pools[LISTENS].does("http 500")?;
        }
        // Who changes his mind rolls back; an error is logged, and leaves nothing open.
        self.accounts.does("rollback 1")?;
        self.orders.does(&format!("say {}", SAID[minute % SAID.len()]))?;
        self.orders.does("tidy").map(drop)
    }

    /// Some requests of those that do nothing by themselves.
    pub(crate) fn second(&mut self, second: usize) -> Result<(), StageError> {
        self.orders.does("serve 2")?;
        self.orders.does("ask 1")?;
        self.accounts.does("commit 2")?;
        self.reports.does("commit 2")?;
        match second % 5 {
            0 => assert_eq!(self.accounts.does("write")?, 0, "every write is taken"),
            1 => {
                for it in &self.waits {
                    Requests::send(it.port(), "/work?seconds=0.2", 3)?.are_answered()?;
                }
            }
            _ => (),
        }
        Ok(())
    }

    /// A rolling restart of the page and of one stack after another: the successor serves beside its predecessor for a
    /// while, by turns for several looks of the agent and within one.
    pub(crate) fn rolls(&mut self, minute: usize) -> Result<(), StageError> {
        let beside = Duration::from_millis(if self.restarts.is_multiple_of(2) { 500 } else { 3000 });
        let page = self.page.successor()?;
        throughout("both serve", beside, || Ok(()))?;
        std::mem::replace(&mut self.page, page).stop()?;
        let at = (self.restarts + 1) % self.light;
        let mut successor = self.pools[at].successor()?;
        successor.does(&traffic(at, self.light, minute))?;
        if at == LISTENS {
            // One that does not listen within a minute of its predecessor's end takes no service over: that would be true.
            successor.does("http 1")?;
        }
        throughout("both serve", beside, || Ok(()))?;
        let mut old = std::mem::replace(&mut self.pools[at], successor);
        old.does("traffic 0")?;
        let (served, failed) = old.served()?;
        old.stop()?;
        let all = self.served.entry(old.name().to_owned()).or_default();
        *all = (all.0 + served, all.1 + failed);
        self.restarts += 1;
        self.decoys(at)
    }

    /// How many rolling restarts there were.
    pub(crate) const fn restarts(&self) -> usize {
        self.restarts
    }

    /// What each has served and failed, its predecessors among it.
    pub(crate) fn served(&mut self) -> Result<BTreeMap<String, (u64, u64)>, StageError> {
        let mut all = self.served.clone();
        for it in &mut self.pools {
            let (served, failed) = it.served()?;
            let sum = all.entry(it.name().to_owned()).or_default();
            *sum = (sum.0 + served, sum.1 + failed);
        }
        Ok(all)
    }
}

fn traffic(at: usize, light: usize, minute: usize) -> String {
    let rates = if at < light { RATES } else { LIGHT };
    format!("traffic {}", rates[(minute + at) % rates.len()])
}

fn log(name: &str, path: &impl std::fmt::Display) -> String {
    format!("[[log]]\npath = \"{path}\"\napp = \"{name}\"\n")
}

/// The first tells of its pool by metrics and by JSON, the other by SQLAlchemy's own words.
fn told_by_pages(waits: &[Application; 2]) -> String {
    let [first, other] = waits;
    let (port, name) = (first.port(), first.name());
    let pages = format!(
        "pool.metrics = \"http://127.0.0.1:{port}/metrics\"\npool.health = {{ url = \"http://127.0.0.1:{port}/health\", \
         limit = \"/pool/limit\", in_use = \"/pool/checked_out\", waiting = \"/pool/waiting\" }}\n"
    );
    let status =
        format!("pool.health = {{ url = \"http://127.0.0.1:{}/health\", status = \"/pool/text\" }}\n", other.port());
    [app(name, &first.command()), pages, app(other.name(), &other.command()), status].concat()
}

fn ledger(stage: &Stage) -> Result<[Running; 2], StageError> {
    let room = stage.room("ledger")?;
    let (script, database) = (room.join("ledger.py"), room.join("ledger.db"));
    std::fs::write(&script, LEDGER).map_err(StageError::system("write a script"))?;
    let python = installed("/usr/bin/python3", "python3")?;
    let start = |name: &str, reads: bool| {
        let output = room.join(name);
        let mut command = Command::new(&python);
        command.arg(&script).arg(&database).args(reads.then_some("reads"));
        let mut it = Running::start(name, command.stdin(Stdio::null()), &output)?;
        until(format!("{name} has begun"), 30.s(), || {
            it.alive()?;
            let text = std::fs::read_to_string(&output).map_err(|error| error.to_string())?;
            if text.contains("ready") { Ok(()) } else { Err(text) }
        })?;
        Ok(it)
    };
    Ok([start("writer", false)?, start("reader", true)?])
}
