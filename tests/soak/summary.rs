//! What a soak leaves behind: how long, how much, which checks saw it, and what the agent cost.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// Figures of a run, minute by minute.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    minutes: u32,
    memory: Vec<u64>,
    cpu: Vec<f64>,
    connections: Vec<u64>,
    served: Vec<(String, u64)>,
}

impl Summary {
    /// Takes in the agent's word on itself and the number of its connections at the server.
    pub(crate) fn minute(&mut self, status: &Value, connections: &[Vec<String>]) {
        self.minutes += 1;
        self.memory.extend(status["agent"]["memory_bytes"].as_u64());
        self.cpu.extend(status["agent"]["cpu_ratio"].as_f64());
        self.connections.extend(connections.iter().flatten().filter_map(|it| it.parse::<u64>().ok()));
    }

    pub(crate) fn served(&mut self, name: &str, requests: u64) {
        self.served.push((name.to_owned(), requests));
    }

    /// As Markdown.
    pub(crate) fn text(&self, status: &Value, findings: &[Value]) -> String {
        let mut text = format!("# Soak: {} minutes of healthy traffic\n\n", self.minutes);
        let _ = writeln!(
            text,
            "Agent {}, from {} to {}.\n",
            word(&status["agent"]["version"]),
            started(status),
            now(status)
        );
        let total: u64 = self.served.iter().map(|it| it.1).sum();
        let _ = writeln!(text, "{total} requests served, none failed:");
        for (name, requests) in &self.served {
            let _ = writeln!(text, "- {name}: {requests}");
        }
        let (least, most) = (self.connections.iter().min(), self.connections.iter().max());
        let _ = writeln!(text, "\nThe agent's connections at PostgreSQL: {} to {}.", shown(least), shown(most));
        let mebibytes = |it: &u64| it / (1 << 20);
        let (first, last) = (self.memory.first().map(mebibytes), self.memory.last().map(mebibytes));
        let _ = writeln!(text, "Its memory: {} MiB after a minute, {} MiB at the end.", shown(first), shown(last));
        let cpu = self.cpu.iter().sum::<f64>() / self.cpu.len().max(1) as f64;
        let _ = writeln!(text, "Its CPU by its own count: {:.2} % of a core on average.", 100.0 * cpu);
        let mut told: BTreeMap<String, usize> = BTreeMap::new();
        for it in findings {
            *told.entry(format!("{} ({})", word(&it["check"]), word(&it["severity"]))).or_default() += 1;
        }
        let _ = writeln!(text, "\nFindings above `info`, without the agent's own lateness: 0. Others: {told:?}.");
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
