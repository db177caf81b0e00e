//! The fault of `up --with-fault`: an application that leaks sessions, told as a story.

use std::time::{Duration, Instant};

use serde_json::Value;
use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::collector::receiver;
use tickbird_tests::truth::{backends, socket};
use tickbird_tests::webhook::{Message, firing, resolved, titles};
use tickbird_tests::{Application, Collector, Held, Postgres, Seconds, Stage, StageError, Webhook, until};

use super::Ended;
use super::news::News;
use crate::steps::TaskError;

const CHECK: &str = "pool.idle_in_transaction";
/// From the first leak to the webhook, with the thresholds below.
const PROMISED: Duration = Duration::from_secs(30);
const LEAKS: usize = 5;

pub(crate) struct Fault {
    server: Postgres,
    application: Application,
    webhook: Webhook,
}

impl Fault {
    /// Starts PostgreSQL, the application and a receiver of webhooks; nothing is wrong yet.
    pub(crate) fn prepare(stage: &Stage) -> Result<Self, TaskError> {
        println!("starting a private PostgreSQL, an application with a pool of 20 connections, and a webhook receiver");
        let server = Postgres::start(stage, 50)?;
        let mut application = Application::pooled(stage, "grants-api", &server)?;
        application.does("traffic 20")?;
        Ok(Self { server, application, webhook: Webhook::start(stage)? })
    }

    /// Tells the collector of our receiver.
    pub(crate) fn receiver(&self) -> String {
        receiver(&self.webhook)
    }

    /// What the agent is told; printed, so that nobody takes these thresholds for the shipped ones.
    pub(crate) fn configuration(&self) -> Result<String, TaskError> {
        let server = postgres(&self.server.dsn_file("tickbird")?);
        let short = check(CHECK, "warning = \"5s\" # shipped: 30s\ncritical = \"60s\" # shipped: 300s");
        let fragment = format!("{}{server}{short}", app("grants-api", &self.application.command()));
        println!("\nThe agent's configuration, with shorter thresholds than the shipped ones:\n");
        for line in fragment.lines() {
            println!("    {line}");
        }
        Ok(fragment)
    }

    /// Leaks, waits until it is told, compares it with the truth, repairs, and waits until that is told.
    ///
    /// # Errors
    /// When something is not told in time or not true. Ctrl-C ends the story early, without an error.
    pub(crate) fn tell(&mut self, collector: &Collector, news: &mut News, ended: &Ended) -> Result<(), TaskError> {
        let began = Instant::now();
        let leaked: Vec<Held> = (0..LEAKS).map(|_| self.application.leaks(1)).collect::<Result<Vec<_>, _>>()?.concat();
        println!("\nThe application now leaks {LEAKS} sessions: each ran a SELECT and is never closed.\n");
        let Some(message) = self.hears("the leak", PROMISED, collector, news, ended, firing(CHECK))? else {
            return Ok(());
        };
        news.catch_up(collector)?;
        println!("\nThe webhook heard of it {:.1} s after the first leak:\n", (message.at - began).as_secs_f64());
        println!("{}", serde_json::to_string_pretty(&message.json).unwrap_or(message.body));
        self.compare(&message.json["incident"]["evidence"], &leaked)?;

        println!("\nThe application repairs the leak.\n");
        self.application.repairs()?;
        let repaired = Instant::now();
        let Some(message) = self.hears("the repair", 60.s(), collector, news, ended, resolved(CHECK))? else {
            return Ok(());
        };
        news.catch_up(collector)?;
        let took = (message.at - repaired).as_secs_f64();
        println!("\nThe webhook heard \"resolved\" {took:.1} s after the repair.");
        Ok(())
    }

    /// Waits for a message while news are shown; `None` after Ctrl-C.
    fn hears(
        &self,
        what: &str,
        within: Duration,
        collector: &Collector,
        news: &mut News,
        ended: &Ended,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Option<Message>, TaskError> {
        let found = until(format!("the webhook hears of {what}"), within, || {
            if ended.yet() {
                return Ok(None);
            }
            let text = |error: StageError| error.to_string();
            news.show(collector).map_err(text)?;
            let heard = self.webhook.heard().map_err(text)?;
            heard.iter().find(|it| wanted(it)).cloned().map(Some).ok_or_else(|| titles(&heard))
        })?;
        Ok(found)
    }

    /// Prints what the evidence names, beside what the kernel and the server say of it.
    fn compare(&self, evidence: &Value, leaked: &[Held]) -> Result<(), TaskError> {
        println!("\nWhat it names, compared with /proc and pg_stat_activity:\n");
        println!("    {:>7}  {:>4}  {:>8}  {:>6}  {:>6}  statement", "pid", "fd", "backend", "port", "age");
        let sessions = backends(&self.server)?;
        let mut named = Vec::new();
        for row in evidence["sessions"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let number = |key: &str| row[key].as_u64().unwrap_or_default();
            let [pid, fd, backend] = ["pid", "fd", "backend"].map(|key| u32::try_from(number(key)).unwrap_or_default());
            let port = socket(pid, fd)?.port;
            let age = row["state_age_seconds"].as_f64().unwrap_or_default();
            let statement = row["statement"].as_str().unwrap_or("?");
            println!("    {pid:>7}  {fd:>4}  {backend:>8}  {port:>6}  {age:>5.1}s  {statement}");
            let told = Held { pid, fd, backend: i32::try_from(backend).unwrap_or_default(), port };
            let at_server =
                sessions.get(&port).is_some_and(|it| it.pid == told.backend && it.state == "idle in transaction");
            if at_server && leaked.contains(&told) {
                named.push(told);
            }
        }
        if named.is_empty() || named.len() != evidence["sessions"].as_array().map_or(0, Vec::len) {
            let found = format!("{} of the sessions named are among the {} leaked", named.len(), leaked.len());
            return Err(StageError::Malformed { what: "the evidence".into(), found }.into());
        }
        println!(
            "\n    {} of {} leaked sessions named, each with its true pid, fd and backend",
            named.len(),
            leaked.len()
        );
        Ok(())
    }
}
