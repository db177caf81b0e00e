//! What a soak leaves behind: how long, how much, which checks saw it, and what the agent cost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;
use tickbird_tests::StageError;

/// Figures of a run, minute by minute.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    minutes: u32,
    memory: Vec<u64>,
    cpu: Vec<f64>,
    connections: BTreeSet<usize>,
    wrong: BTreeSet<String>,
}

/// After so many minutes everything has been seen; a run that is this much longer shows whether memory still grows.
const SETTLED: usize = 10;
const LONG: usize = 30;
const GROWTH: f64 = 1.3;

impl Summary {
    /// Takes in the agent's word on itself.
    pub(crate) fn minute(&mut self, status: &Value) {
        self.minutes += 1;
        self.memory.extend(status["agent"]["memory_bytes"].as_u64());
        self.cpu.extend(status["agent"]["cpu_ratio"].as_f64());
    }

    /// How many connections the agent had to each server just now.
    pub(crate) fn connections(&mut self, counts: impl Iterator<Item = usize>) {
        self.connections.extend(counts);
    }

    /// Something that fails the run once it is over: a soak that ends at its first fault tells of one.
    pub(crate) fn wrong(&mut self, what: String) {
        self.wrong.insert(what);
    }

    /// Nothing was wrong, and the agent's memory is about what it was after ten minutes; a short run cannot tell that.
    ///
    /// # Errors
    /// With all that was.
    pub(crate) fn is_clean(&self) -> Result<(), StageError> {
        let mut all: Vec<String> = self.wrong.iter().cloned().collect();
        if let (Some(settled), Some(last)) = (self.memory.get(SETTLED - 1), self.memory.last())
            && self.memory.len() >= LONG
            && *last as f64 > *settled as f64 * GROWTH
        {
            all.push(format!("the agent's memory grew from {settled} to {last} bytes"));
        }
        if all.is_empty() { Ok(()) } else { Err(StageError::Failed { what: "the soak".into(), said: all.join("\n") }) }
    }

    /// As Markdown.
    pub(crate) fn text(
        &self,
        status: &Value,
        findings: &[Value],
        served: &BTreeMap<String, (u64, u64)>,
        restarts: usize,
    ) -> String {
        let mut text = format!("# Soak: {} minutes of healthy traffic\n\n", self.minutes);
        let _ = writeln!(
            text,
            "Agent {}, from {} to {}.\n",
            word(&status["agent"]["version"]),
            started(status),
            now(status)
        );
        let total: u64 = served.values().map(|it| it.0).sum();
        let failed: u64 = served.values().map(|it| it.1).sum();
        let _ = writeln!(text, "{total} requests served, {failed} failed, through {restarts} rolling restarts:");
        for (name, (requests, _)) in served {
            let _ = writeln!(text, "- {name}: {requests}");
        }
        if !self.wrong.is_empty() {
            let _ = writeln!(text, "\n**It failed:** {:?}", self.wrong);
        }
        let (least, most) = (self.connections.first(), self.connections.last());
        let _ =
            writeln!(text, "\nThe agent's connections at each of six servers: {} to {}.", shown(least), shown(most));
        let mebibytes = |it: &u64| it / (1 << 20);
        let every = self.memory.iter().skip(SETTLED - 1).step_by(SETTLED);
        let series: Vec<String> = self
            .memory
            .iter()
            .take(1)
            .chain(every)
            .chain(self.memory.last())
            .map(|it| mebibytes(it).to_string())
            .collect();
        let _ = writeln!(text, "Its memory after 1, 10, 20 … minutes and at the end: {} MiB.", series.join(", "));
        let cpu = self.cpu.iter().sum::<f64>() / self.cpu.len().max(1) as f64;
        let _ = writeln!(text, "Its CPU by its own count: {:.2} % of a core on average.", 100.0 * cpu);
        let mut told: BTreeMap<String, usize> = BTreeMap::new();
        for it in findings {
            *told.entry(format!("{} ({})", word(&it["check"]), word(&it["severity"]))).or_default() += 1;
        }
        let is_loud = |it: &&Value| it["severity"] != "info" && it["check"] != "agent.slow";
        let loud = findings.iter().filter(is_loud).count();
        let late = findings.iter().filter(|it| it["check"] == "agent.slow").count();
        let _ =
            writeln!(text, "\nFindings above `info`: {loud}, and {late} on the agent's own lateness. All: {told:?}.");
        let blind = status["blind"].as_array().map_or(0, Vec::len);
        let _ = writeln!(text, "Blind (`agent.blind` has no row of its own): {blind}.");
        text.push_str("\n| check | targets | ok | looks | with a known value |\n| --- | --- | --- | --- | --- |\n");
        for (check, it) in by_check(status) {
            let _ = writeln!(text, "| `{check}` | {} | {} | {} | {} |", it.targets, it.ok, it.looks, it.known);
        }
        text
    }
}

#[derive(Debug, Default)]
struct Check {
    targets: u64,
    ok: u64,
    looks: u64,
    known: u64,
}

fn by_check(status: &Value) -> BTreeMap<String, Check> {
    let mut all: BTreeMap<String, Check> = BTreeMap::new();
    for row in status["checks"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let it = all.entry(word(&row["check"])).or_default();
        it.targets += 1;
        it.ok += u64::from(row["state"] == "ok");
        it.looks += row["looks"].as_u64().unwrap_or_default();
        it.known += row["looks_known"].as_u64().unwrap_or_default();
    }
    all
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("?").to_owned()
}

fn started(status: &Value) -> String {
    word(&status["agent"]["started_at"])
}

fn now(status: &Value) -> String {
    word(&status["agent"]["reported_at"])
}

fn shown<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "?".to_owned(), |it| it.to_string())
}
