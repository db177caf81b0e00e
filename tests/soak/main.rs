//! Mixed healthy traffic over stacks of four languages, for as long as asked: `cargo xtask soak [MINUTES]`.
//!
//! Everything is watched with the shipped thresholds. Each minute the traffic of each application changes; nothing may be
//! found above `info`, every check that the agent has is looked at with known values, and a summary is written.

mod actors;
mod servers;
mod summary;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tickbird_tests::agent::check;
use tickbird_tests::alone::alone_within;
use tickbird_tests::certificate::Certificate;
use tickbird_tests::coverage::uncovered;
use tickbird_tests::wait::{Paced, paced};
use tickbird_tests::{Seconds, Stage, StageError, Watch, until};

use self::actors::Actors;
use self::servers::Servers;
use self::summary::Summary;

/// How many minutes; 5 without it.
const MINUTES: &str = "TICKBIRD_SOAK_MINUTES";
/// Where the summary is written; nowhere without it.
const SUMMARY: &str = "TICKBIRD_SOAK_SUMMARY";

/// Of each ten minutes, the one with a rolling restart.
const ROLLS: usize = 3;
/// A starved host makes every look late. It is counted.
const LATE: &str = "agent.slow";

/// Smaller pools than this are suggested to nobody.
const LEAST_SUGGESTED: u64 = 2;

fn minutes() -> u64 {
    std::env::var(MINUTES).ok().and_then(|it| it.parse().ok()).unwrap_or(5)
}

#[test]
fn healthy_traffic_over_four_stacks_causes_not_one_finding() {
    alone_within(Duration::from_secs(60 * minutes() + 900), |stage| {
        let mut soak = Soak::begin(stage)?;
        for minute in 0..minutes() {
            soak.minute(usize::try_from(minute).unwrap_or_default())?;
        }
        soak.end()
    });
}

/// What is watched ends before what it stands on.
struct Soak {
    actors: Actors,
    servers: Servers,
    watch: Watch,
    summary: Summary,
}

impl Soak {
    fn begin(stage: &Stage) -> Result<Self, StageError> {
        let certificate = Certificate::ending_in(stage, 90)?;
        let servers = Servers::begin(stage, &certificate)?;
        let (actors, sections) = Actors::begin(stage, &servers, &certificate)?;
        let configuration = [
            servers.sections(stage)?,
            // Without a limit of the control group, memory needs a bound or a day of history.
            check("proc.memory", "warning = \"2GiB\""),
            check("pool.idle_in_transaction", "allow_application_names = [\"nightly-batch\"]"),
            sections,
        ]
        .concat();
        let watch = Watch::begin(stage, &configuration)?;
        Ok(Self { actors, servers, watch, summary: Summary::default() })
    }

    fn minute(&mut self, minute: usize) -> Result<(), StageError> {
        self.servers.turn(minute)?;
        self.actors.minute(minute)?;
        if minute % 10 == ROLLS {
            self.actors.rolls(minute)?;
        }
        let mut second = 0;
        paced(1.s(), 57.s(), || {
            second += 1;
            self.actors.second(second)?;
            Ok(Paced::More)
        })?;
        let status = self.watch.agent.status()?;
        self.summary.minute(&status);
        // On a starved host it may be late; that it looks less often by itself is a fault of ours.
        if status["agent"]["times_slower"] != 1 {
            self.summary.wrong(format!("minute {minute}: over its budget: {}", status["agent"]));
        }
        let connections = self.servers.connections_of(self.watch.agent.pid().unwrap_or_default())?;
        self.summary.connections(connections.iter().map(|it| it.1));
        if connections.iter().any(|it| it.1 != 1) {
            self.summary.wrong(format!("minute {minute}: connections of the agent: {connections:?}"));
        }
        for it in self.loud(&status)? {
            self.summary.wrong(it);
        }
        // Whoever ends it early has this.
        if minute % 10 == 9 {
            let findings = self.watch.collector.items("findings", "")?;
            let (served, restarts) = (self.actors.served()?, self.actors.restarts());
            self.leaves(&self.summary.text(&status, &findings, &served, restarts))?;
        }
        Ok(())
    }

    /// What was found above `info`, by the collector so far and by the agent's own word just now.
    fn loud(&self, status: &Value) -> Result<Vec<String>, StageError> {
        let told = self.watch.collector.items("findings", "")?;
        let own = status["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_loud = |it: &&Value| it["severity"] != "info" && it["check"] != LATE;
        let words = |it: &Value| format!("{} {} {}: {}", it["severity"], it["check"], it["target"], it["summary"]);
        Ok(told.iter().chain(own).filter(is_loud).map(words).collect())
    }

    fn end(mut self) -> Result<(), StageError> {
        let defaults = self.watch.agent.report("defaults", &[])?;
        let status = self.watch.agent.status()?;
        let findings = self.watch.collector.items("findings", "")?;
        for it in self.loud(&status)? {
            self.summary.wrong(it);
        }
        for it in self.watch.webhook.attempts().iter().filter(|it| it.check() != LATE) {
            self.summary.wrong(format!("a receiver was told of {}", it.check()));
        }
        let served = self.actors.served()?;
        for (name, (served, failed)) in &served {
            if *served <= 20 || *failed > 0 {
                self.summary.wrong(format!("{name}: {served} served, {failed} failed"));
            }
        }
        for it in uncovered(&defaults, &status, minutes()) {
            self.summary.wrong(format!("not looked at with known values: {it}"));
        }
        for it in self.sizes_not_suggested()? {
            self.summary.wrong(it);
        }
        let records = self.sums_agree()?;
        let text = self.summary.text(&status, &findings, &served, self.actors.restarts());
        self.leaves(&format!("{text}\n{records} records that the agent wrote are at the collector, each once.\n"))?;
        self.summary.is_clean()
    }

    /// Prints the summary, and writes it where it was asked for.
    fn leaves(&self, text: &str) -> Result<(), StageError> {
        println!("{text}");
        match std::env::var_os(SUMMARY).map(PathBuf::from) {
            Some(file) => std::fs::write(&file, text).map_err(StageError::system("write the summary")),
            None => Ok(()),
        }
    }

    /// Pools for which the collector suggests no size that their use bears out. It takes ten minutes of looks to suggest one.
    fn sizes_not_suggested(&self) -> Result<Vec<String>, StageError> {
        if minutes() < 15 {
            return Ok(Vec::new());
        }
        let pools = self.watch.collector.items("fleet/pools", "")?;
        let fits = |pool: &Value| {
            let [used, suggested, open] =
                ["leased_p95", "suggested", "open_peak"].map(|it| pool["last_days"][it].as_u64());
            suggested.is_some() && used <= suggested && suggested <= open.max(Some(LEAST_SUGGESTED))
        };
        let wrong = pools.iter().filter(|it| !fits(it)).map(|it| format!("no fitting size is suggested: {it}"));
        let none = pools.is_empty().then(|| "the collector knows no pool".to_owned());
        Ok(wrong.chain(none).collect())
    }

    /// What the agent has written is at the collector, once. How many records that are.
    fn sums_agree(&mut self) -> Result<u64, StageError> {
        self.watch.agent.stop()?;
        let stat = self.watch.agent.report("buffer stat", &[])?;
        let lanes = stat["lanes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let appended: u64 = lanes.iter().filter_map(|lane| lane["appended"].as_u64()).sum();
        let counted = |what: &str| self.watch.collector.counted(&format!("tickbird_records_{what}"));
        until("the collector has all records", 30.s(), || {
            let text = |error: StageError| error.to_string();
            let sums = ["received", "committed", "duplicate", "refused"].map(|it| counted(it).map_err(text));
            let [received, committed, duplicate, refused] = sums;
            let sums = (received?, committed?, duplicate?, refused?);
            let agrees = sums.1 == appended && sums.0 == sums.1 + sums.2 && sums.3 == 0;
            if agrees && appended > 0 { Ok(appended) } else { Err(format!("{appended} written; {sums:?}")) }
        })
    }
}
