//! Prints each finding and each change of an incident once.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use tickbird_tests::{Collector, StageError};

/// How often the collector is asked.
const PACE: Duration = Duration::from_millis(500);

/// What was shown already.
#[derive(Debug, Default)]
pub(crate) struct News {
    asked: Option<Instant>,
    findings: HashSet<String>,
    incidents: HashMap<String, String>,
}

impl News {
    /// Asks the collector, when it was not asked a moment ago, and prints what is new.
    pub(crate) fn show(&mut self, collector: &Collector) -> Result<(), StageError> {
        if self.asked.is_some_and(|it| it.elapsed() < PACE) {
            return Ok(());
        }
        self.catch_up(collector)
    }

    /// Asks the collector now, and prints what is new.
    pub(crate) fn catch_up(&mut self, collector: &Collector) -> Result<(), StageError> {
        self.asked = Some(Instant::now());
        for finding in collector.items("findings", "")? {
            let key = ["fingerprint", "observed_at", "change"].map(|it| text(&finding, it)).join(" ");
            if self.findings.insert(key) {
                line("finding ", &finding, &text(&finding, "observed_at"));
            }
        }
        for incident in collector.items("incidents", "")? {
            let state = format!("{} {}", text(&incident, "status"), text(&incident, "severity"));
            if self.incidents.insert(text(&incident, "id"), state.clone()).as_ref() != Some(&state) {
                let ended = text(&incident, "resolved_at");
                line(
                    "INCIDENT",
                    &incident,
                    if ended.is_empty() { incident["opened_at"].as_str().unwrap_or("") } else { &ended },
                );
            }
        }
        Ok(())
    }
}

fn line(kind: &str, item: &Value, at: &str) {
    let [status, severity, check, summary] = ["status", "severity", "check", "summary"].map(|it| text(item, it));
    println!("{}  {kind}  {status:<8}  {severity:<8}  {check}: {summary}", clock(at));
}

fn text(item: &Value, key: &str) -> String {
    item[key].as_str().unwrap_or_default().to_owned()
}

/// The local time of day of a timestamp; the timestamp itself when it is none.
fn clock(at: &str) -> String {
    let local = at.parse::<jiff::Timestamp>().map(|it| it.to_zoned(jiff::tz::TimeZone::system()));
    local.map_or_else(|_| at.to_owned(), |it| it.strftime("%H:%M:%S").to_string())
}
