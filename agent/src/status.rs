//! What the agent says of itself and of what it watches: the report behind `status`, `inspect` and `doctor`.
//!
//! The JSON form is a public interface (`"schema": "tickbird.report/1"`): fields are added, never renamed. A running
//! agent gives it over its local socket, which only its own user, root and the socket's group may use. Its numbers alone are
//! on a loopback page, when that is switched on.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub mod loopback;
mod metrics;
pub mod pools;
pub mod render;
pub mod report;
mod server;
pub mod socket;
pub mod world;

pub use server::Ask;

/// Name and version of the JSON form.
pub const SCHEMA: &str = "tickbird.report/1";

/// One report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Who reports, and how the agent itself is.
    pub agent: AgentPart,
    /// What is watched, with the facts last seen.
    pub targets: Vec<TargetPart>,
    /// Pools, process by process, with the verdict on every connection.
    #[serde(default)]
    pub pools: Vec<pools::PoolPart>,
    /// What fires.
    pub findings: Vec<FindingPart>,
    /// Which checks cannot see, and how to mend it.
    pub blind: Vec<BlindPart>,
    /// Every check on every target, with its state.
    pub checks: Vec<CheckPart>,
}

/// The agent itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentPart {
    /// The id the collector gave it; absent when it watches alone.
    pub id: Option<String>,
    /// Host name.
    pub host: String,
    /// Version of the agent.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// When this report was made.
    pub reported_at: Timestamp,
    /// `false` in `inspect`, which takes two looks and does not wait for holds.
    pub holds_respected: bool,
    /// Share of one core since it started.
    pub cpu_ratio: Option<f64>,
    /// Memory in bytes, its part of what is shared included.
    pub memory_bytes: Option<u64>,
    /// Intervals are so many times longer than configured, to stay within the budget; 1 as a rule.
    pub times_slower: u32,
    /// The way to the collector; absent when it watches alone.
    pub collector: Option<CollectorPart>,
    /// The buffer, per lane.
    pub buffer: Option<Json>,
}

/// The way to the collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CollectorPart {
    /// Where records go.
    pub url: String,
    /// `closed` (all is well), `open` (waiting after failures) or `half-open` (trying).
    pub breaker: String,
    /// When the collector last acknowledged something.
    pub acknowledged_at: Option<Timestamp>,
    /// What went wrong last, since it last succeeded.
    pub error: Option<String>,
    /// Everything that shipping counts.
    pub counts: Json,
}

/// One thing watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetPart {
    /// Stable key.
    pub key: String,
    /// `process`, `pool`, `server` or `endpoint`.
    pub kind: String,
    /// The worst state of its checks.
    pub state: String,
    /// What was last seen; names and units are those of the measures, unknown values are texts that say why.
    pub facts: BTreeMap<String, Json>,
}

/// One finding that fires.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FindingPart {
    /// Id of the check.
    pub check: String,
    /// `firing`.
    pub status: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// Stable key of the target.
    pub target: String,
    /// One sentence.
    pub summary: String,
    /// Why the judge says so.
    pub reason: String,
    /// What to do next.
    pub advice: Option<String>,
    /// The proof.
    pub evidence: Json,
    /// Since when.
    pub since: Timestamp,
}

/// One check that cannot see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlindPart {
    /// Ids of the checks.
    pub checks: Vec<String>,
    /// Stable keys of the targets.
    pub targets: Vec<String>,
    /// What it lacks.
    pub reason: String,
    /// How to give it.
    pub advice: Option<String>,
}

/// One check on one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckPart {
    /// Id of the check.
    pub check: String,
    /// Stable key of the target.
    pub target: String,
    /// `ok`, `info`, `warning`, `critical`, `blind` or `not yet`.
    pub state: String,
    /// What was last seen: a number, a pair, or a text that says why not.
    pub value: Json,
    /// Unit of the value.
    pub unit: String,
    /// Why it was last decided so.
    #[serde(default)]
    pub reason: String,
    /// What it waits for: `over the bound now; fires after 60 s`.
    pub pending: Option<String>,
    /// Looks that gave a known value.
    pub looks_known: u64,
    /// All looks.
    pub looks: u64,
}

impl Report {
    /// Exit code by the convention of monitoring plugins: 0 ok, 1 warning, 2 critical, 3 blind only.
    pub fn exit_code(&self) -> u8 {
        // Blindness has a code of its own, so the findings that tell of it do not count as warnings.
        let worst = self.findings.iter().filter(|it| it.check != "agent.blind");
        let worst = worst.map(|it| it.severity.as_str()).filter(|it| *it != "info");
        match worst.fold(0, |worst, it| worst.max(if it == "critical" { 2 } else { 1 })) {
            0 if !self.blind.is_empty() => 3,
            code => code,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A report with a critical leak and a blind check.
    pub(super) fn leaking() -> Report {
        let at: Timestamp = "2026-11-20T10:00:00Z".parse().expect("a time");
        let pool = "pool:grants-api/worker>10.0.0.5:5432/app?user=app";
        let facts = json!({
            "application": "grants-api", "remote": "10.0.0.5:5432", "service": "postgresql", "pids": [4121],
            "open": 20, "by_state": { "established": 20 }, "limit": 30,
        });
        Report {
            schema: SCHEMA.to_owned(),
            agent: AgentPart {
                id: None,
                host: "web-1".to_owned(),
                version: "0.1.0".to_owned(),
                pid: 77,
                started_at: at,
                reported_at: at,
                holds_respected: false,
                cpu_ratio: None,
                memory_bytes: None,
                times_slower: 1,
                collector: None,
                buffer: None,
            },
            targets: vec![TargetPart {
                key: pool.to_owned(),
                kind: "pool".to_owned(),
                state: "critical".to_owned(),
                facts: serde_json::from_value(facts).expect("facts"),
            }],
            pools: pools::parts(&[pools::tests::pool()]),
            findings: vec![FindingPart {
                check: "pool.idle_in_transaction".to_owned(),
                status: "firing".to_owned(),
                severity: "critical".to_owned(),
                target: pool.to_owned(),
                summary: "grants-api, pid 4121, holds 14 of its 20 connections idle in transaction".to_owned(),
                reason: "312 s is over 300 s".to_owned(),
                advice: Some("close the session in a finally block".to_owned()),
                evidence: json!({ "sessions": [{ "pid": 4121, "fd": 17, "backend": 88123 }], "open": 20 }),
                since: at,
            }],
            blind: vec![BlindPart {
                checks: vec!["fd.limit".to_owned()],
                targets: vec!["process:nginx/main:80".to_owned()],
                reason: "may not read the descriptors of processes of uid 33".to_owned(),
                advice: Some("run the agent as root".to_owned()),
            }],
            checks: vec![CheckPart {
                check: "pool.idle_in_transaction".to_owned(),
                target: pool.to_owned(),
                state: "critical".to_owned(),
                value: json!(312.4),
                unit: "seconds".to_owned(),
                reason: "312 s is over 300 s".to_owned(),
                pending: None,
                looks_known: 2,
                looks: 2,
            }],
        }
    }

    #[test]
    fn the_exit_code_is_that_of_the_worst_and_blindness_counts_only_alone() {
        let mut report = leaking();
        assert_eq!(report.exit_code(), 2);
        report.findings[0].severity = "warning".to_owned();
        assert_eq!(report.exit_code(), 1);
        report.findings[0].severity = "info".to_owned();
        assert_eq!(report.exit_code(), 3);
        report.blind.clear();
        assert_eq!(report.exit_code(), 0);
    }

    #[tokio::test]
    async fn a_caller_gets_the_report_over_the_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(socket::NAME);
        let (asks, mut asked) = tokio::sync::mpsc::channel::<Ask>(1);
        let listener = socket::listen(&path).expect("listens");
        let server = tokio::spawn(socket::serve(listener, u32::MAX, asks));
        let answering = tokio::spawn(async move {
            if let Some(ask) = asked.recv().await {
                ask.send(leaking()).expect("the caller waits");
            }
        });
        assert_eq!(socket::ask(&path).await.expect("a report"), leaking());
        answering.await.expect("answered");
        server.await.expect("ends with the owner of the state");
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(socket::NAME);
        drop(socket::listen(&path).expect("listens"));
        assert!(matches!(socket::ask(&path).await, Err(socket::SocketError::NotRunning { .. })));
        let _live = socket::listen(&path).expect("replaces what is dead");
        let error = socket::listen(&path).expect_err("another one runs");
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    }
}
