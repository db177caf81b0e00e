//! Mixed healthy traffic over stacks of four languages, for as long as asked: `cargo xtask soak [MINUTES]`.
//!
//! Everything is watched with the shipped thresholds. Each minute the traffic of each application changes; nothing may be
//! found above `info`, every check named here has to have run with known values, and a summary is written.

mod summary;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::alone::alone_within;
use tickbird_tests::certificate::Certificate;
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Library, Postgres, Seconds, Sizes, Stage, StageError, Watch};

use self::summary::Summary;

/// How many minutes; 5 without it.
const MINUTES: &str = "TICKBIRD_SOAK_MINUTES";
/// Where the summary is written; nowhere without it.
const SUMMARY: &str = "TICKBIRD_SOAK_SUMMARY";

/// Requests a second, minute by minute; each application begins at another place.
const RATES: [u32; 6] = [20, 50, 5, 30, 0, 10];

const STACKS: [(&str, Library); 6] = [
    ("queuepool-api", Library::QueuePool),
    ("psycopg-api", Library::PsycopgPool),
    ("asyncpg-api", Library::Asyncpg),
    ("go-api", Library::GoSql),
    ("hikari-api", Library::Hikari),
    ("node-api", Library::NodePg),
];

/// Each check that has to have seen a target whose key contains this part.
const CHECKS: [(&str, &str); 18] = [
    ("pool.leak", "psycopg-api"),
    ("pool.idle_in_transaction", "go-api"),
    ("pool.aborted_transaction", "hikari-api"),
    ("pool.close_wait", "node-api"),
    ("pool.churn", "asyncpg-api"),
    ("pool.utilization", "psycopg-api"),
    ("db.headroom", "server:"),
    ("db.connect", "server:"),
    ("proc.memory", "hikari-api"),
    ("proc.restart", "node-api"),
    ("proc.gone", "go-api"),
    ("proc.zombie", "queuepool-api"),
    ("fd.limit", "go-api"),
    ("http.status", "endpoint:http:"),
    ("http.latency", "endpoint:http:"),
    ("http.body", "endpoint:http:"),
    ("tls.cert", "endpoint:https:"),
    ("agent.slow", "agent:self"),
];

fn minutes() -> u64 {
    std::env::var(MINUTES).ok().and_then(|it| it.parse().ok()).unwrap_or(5)
}

#[test]
fn healthy_traffic_over_four_stacks_causes_not_one_finding() {
    alone_within(Duration::from_secs(60 * minutes() + 300), |stage| {
        let mut soak = Soak::begin(stage)?;
        for minute in 0..minutes() {
            soak.minute(usize::try_from(minute).unwrap_or_default())?;
        }
        soak.end()
    });
}

struct Soak {
    server: Postgres,
    applications: Vec<Application>,
    watch: Watch,
    summary: Summary,
    _pages: [Application; 2],
}

impl Soak {
    fn begin(stage: &Stage) -> Result<Self, StageError> {
        let server = Postgres::start(stage, 200)?;
        let mut applications = Vec::new();
        // Without a limit of the control group, memory needs a bound or a day of history.
        let mut configuration = postgres(&server.dsn_file("tickbird")?) + &check("proc.memory", "warning = \"2GiB\"");
        configuration += &check("pool.idle_in_transaction", "allow_application_names = [\"nightly-batch\"]");
        for (name, library) in STACKS {
            let it = Application::of_library(stage, name, library, &server, Sizes::full(12))?;
            configuration += &format!("{}pool.limit = 12\n", app(name, &it.command()));
            applications.push(it);
        }
        let page = Application::web(stage, "page", 0)?;
        let certificate = Certificate::ending_in(stage, 90)?;
        let safe = Application::web_tls(stage, "safe", &certificate)?;
        configuration += &format!("[[endpoint]]\nurl = \"{}\"\njson = {{ \"/database/ok\" = true }}\n", page.url());
        configuration +=
            &format!("[[endpoint]]\nurl = \"{}\"\nca_file = \"{}\"\n", safe.url(), certificate.chain.display());
        let watch = Watch::begin(stage, &configuration)?;
        let mut it = Self { server, applications, watch, summary: Summary::default(), _pages: [page, safe] };
        for (index, command) in [(0, "listen"), (0, "lock"), (1, "batch"), (3, "listen"), (0, "second 10")] {
            it.applications[index].does(command)?;
        }
        Ok(it)
    }

    /// A minute of traffic, with a burst to the limit and an HTTP client without keepalive now and then.
    fn minute(&mut self, minute: usize) -> Result<(), StageError> {
        for (index, it) in self.applications.iter_mut().enumerate() {
            it.does(&format!("traffic {}", RATES[(minute + index) % RATES.len()]))?;
        }
        if minute % 3 == 1 {
            for it in &mut self.applications {
                it.does("burst 12 1")?;
            }
        }
        if minute % 4 == 2 {
            self.applications[0].does("http 500")?;
        }
        throughout("nothing is found", 57.s(), || {
            let found = self.watch.collector.items("findings", "").map_err(|error| error.to_string())?;
            let loud = |it: &&Value| it["severity"] != "info" && it["check"] != "agent.slow";
            found.iter().find(loud).map_or(Ok(()), |it| Err(it.to_string()))
        })?;
        let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tickbird-agent'";
        let status = self.watch.agent.status()?;
        self.summary.minute(&status, &self.server.sql(ours)?);
        Ok(())
    }

    fn end(mut self) -> Result<(), StageError> {
        let status = self.watch.agent.status()?;
        for (check, target) in CHECKS {
            let rows = rows_of(&status, check, target);
            let known = rows.iter().any(|it| it["state"] == "ok" && it["looks_known"].as_u64() > Some(0));
            assert!(known, "{check} has not seen {target} with a known value: {rows:?}; blind: {}", status["blind"]);
        }
        for it in &mut self.applications {
            let (served, failed) = it.served()?;
            assert!(served > 20 && failed == 0, "{}: {served} served, {failed} failed", it.name());
            self.summary.served(it.name(), served);
        }
        assert!(self.watch.webhook.attempts().iter().all(|it| it.check() == "agent.slow"), "nobody was told anything");
        let findings = self.watch.collector.items("findings", "")?;
        let text = self.summary.text(&status, &findings);
        println!("{text}");
        match std::env::var_os(SUMMARY).map(PathBuf::from) {
            Some(file) => std::fs::write(&file, text).map_err(StageError::system("write the summary")),
            None => Ok(()),
        }
    }
}
