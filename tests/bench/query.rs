//! Pages of incidents and findings over the API, with five million findings and a hundred thousand incidents stored.
//!
//! The store is filled by the collector's own code before the collector serves: over the wire it would take half an hour.
//! Each list is asked for over one kept connection with a token, its first page and then page after page by the cursor.

use std::time::Instant;

use tickbird_collector::store::{AgentRow, FindingRow, IncidentRow, Writer};
use tickbird_shared::{Change, Epoch, Fingerprint, Labels, Severity, Status, Timestamp};
use tickbird_tests::https::{Client, Connection};
use tickbird_tests::{Collector, Stage, StageError};

use crate::Figure;

const FINDINGS: u64 = 5_000_000;
const INCIDENTS: u64 = 100_000;
const AGENTS: u64 = 1_000;
/// Findings that come together from one agent.
const BATCH: u64 = 100;
/// Rows of one transaction.
const TOGETHER: usize = 10_000;
/// Times that the first page of a list is asked for, and pages that are followed by the cursor.
const FIRST: usize = 300;
const DEEP: usize = 300;
const P99: f64 = 20.0;

const TENANT: &str = "default";
/// One in a hundred thousand findings is of this check, one in a thousand incidents.
const RARE: &str = "tls.expired";
const CHECKS: [&str; 12] = [
    "pool.idle_in_transaction",
    "pool.leak",
    "pool.utilization",
    "pool.exhausted",
    "http.status",
    "http.latency",
    "proc.gone",
    "proc.restart",
    "fd.limit",
    "server.connections",
    "server.locks",
    "log.errors",
];

/// What is listed, with what the question says; `{agent}` and `{check}` are others each time.
const LISTS: [(&str, &str); 11] = [
    ("incidents", ""),
    ("incidents", "status=firing"),
    ("incidents", "severity=critical&status=resolved"),
    ("incidents", "check=tls.expired&severity=warning"),
    ("findings", ""),
    ("findings", "check={check}&severity=warning"),
    ("findings", "agent={agent}&severity=critical"),
    ("findings", "agent={agent}&check={check}"),
    ("findings", "severity=critical&status=resolved"),
    ("findings", "check={check}&status=firing"),
    ("findings", "check=tls.expired&status=resolved"),
];

pub(crate) fn query(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut collector = Collector::init(stage)?;
    let began = Instant::now();
    fill(&collector)?;
    let rows = (FINDINGS + INCIDENTS) as f64;
    let filled = Figure::of("rows stored a second while it is filled", rows / began.elapsed().as_secs_f64(), "rows/s");
    collector.serve()?;
    let mut figures = vec![filled.for_comparison()];
    let mut asker = Asker::of(&collector)?;
    for (list, filters) in LISTS {
        let (first, deep) = asker.pages(list, filters)?;
        let what = if filters.is_empty() { list.to_owned() } else { format!("{list} with {filters}") };
        figures.push(Figure::of(format!("{what}: first page, p99"), p99(&first), "ms").at_most(P99));
        figures.push(Figure::of_all(format!("{what}: first page"), first, "ms"));
        // What fits on one page has no next.
        if !deep.is_empty() {
            let what = format!("{what}: {} pages by the cursor, p99", deep.len());
            figures.push(Figure::of(what, p99(&deep), "ms").at_most(P99));
        }
    }
    collector.stop()?;
    Ok(figures)
}

/// One connection with a token.
struct Asker {
    connection: Connection,
    authorization: String,
}

impl Asker {
    fn of(collector: &Collector) -> Result<Self, StageError> {
        let client = Client::trusting(&collector.directory().join("ca.pem"))?;
        let authorization = format!("authorization: Bearer {}\r\n", collector.admin_token());
        Ok(Self { connection: client.connect(collector.people())?, authorization })
    }

    /// Milliseconds of first pages, and of pages that follow each other.
    fn pages(&mut self, list: &str, filters: &str) -> Result<(Vec<f64>, Vec<f64>), StageError> {
        let of = |turn: usize| {
            let (agent, check) = (agent(turn as u64 * 7 % AGENTS), CHECKS[turn % CHECKS.len()]);
            let filters = filters.replace("{agent}", &agent).replace("{check}", check);
            let and = if filters.is_empty() { "" } else { "&" };
            format!("/v1/{list}?limit=50{and}{filters}")
        };
        let first = (0..FIRST).map(|turn| Ok(self.page(&of(turn))?.0)).collect::<Result<_, StageError>>()?;
        let (mut deep, mut cursor, mut turn) = (Vec::new(), String::new(), 0);
        while deep.len() < DEEP && turn < DEEP {
            let (time, next) = self.page(&format!("{}{cursor}", of(turn)))?;
            if !cursor.is_empty() {
                deep.push(time);
            }
            match next {
                Some(next) => cursor = format!("&cursor={next}"),
                // The list is at its end: another one goes on.
                None => (cursor, turn) = (String::new(), turn + 1),
            }
        }
        Ok((first, deep))
    }

    /// Milliseconds until a page has come, and the cursor of the next.
    fn page(&mut self, path: &str) -> Result<(f64, Option<String>), StageError> {
        let began = Instant::now();
        let answer = self.connection.ask("GET", path, &self.authorization, &[])?;
        let time = 1000.0 * began.elapsed().as_secs_f64();
        let page = answer.json()?;
        if answer.status != 200 || page["items"].as_array().is_none_or(Vec::is_empty) {
            return Err(StageError::Failed {
                what: format!("GET {path}"),
                said: answer.body.chars().take(300).collect(),
            });
        }
        Ok((time, page["next"].as_str().map(str::to_owned)))
    }
}

fn p99(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}

/// Fills the store of a collector that does not serve yet: findings as they would have come over the last ten days.
fn fill(collector: &Collector) -> Result<(), StageError> {
    let mut writer = Writer::open(&collector.directory().join("store.db")).map_err(failed)?;
    let now = Timestamp::now();
    let transaction = writer.transaction().map_err(failed)?;
    for number in 0..AGENTS {
        transaction.put_agent(&agent_row(number, now)).map_err(failed)?;
    }
    transaction.commit().map_err(failed)?;
    let each = 10 * 86_400_000_000 / FINDINGS;
    let at = |number: u64| now - std::time::Duration::from_micros((FINDINGS - number) * each);
    for first in (0..FINDINGS).step_by(TOGETHER) {
        let transaction = writer.transaction().map_err(failed)?;
        for number in first..(first + TOGETHER as u64).min(FINDINGS) {
            transaction.add_finding(&finding(number, at(number))).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
    }
    for first in (0..INCIDENTS).step_by(TOGETHER) {
        let transaction = writer.transaction().map_err(failed)?;
        for number in first..(first + TOGETHER as u64).min(INCIDENTS) {
            transaction.put_incident(&incident(number, at(number * FINDINGS / INCIDENTS))).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
    }
    writer.close().map_err(failed)
}

fn agent(number: u64) -> String {
    format!("01JD7Z5W00000000000{number:07}")
}

/// A number that looks like chance and is the same each time.
fn chance(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20
}

fn check(noise: u64, rare: u64) -> &'static str {
    if noise.is_multiple_of(rare) { RARE } else { CHECKS[(noise / 7 % CHECKS.len() as u64) as usize] }
}

const fn severity(noise: u64) -> Severity {
    match noise / 3 % 20 {
        0 => Severity::Critical,
        1..8 => Severity::Warning,
        _ => Severity::Info,
    }
}

fn finding(number: u64, at: Timestamp) -> FindingRow {
    let (noise, other) = (chance(number), chance(!number));
    // A batch of an agent is in one run of rows.
    let (agent, check) = (agent(chance(number / BATCH) % AGENTS), check(noise, 100_000));
    let target = format!("pool:grants-api-{}/main>10.0.0.5:5432/app?user=app", noise % 20);
    let status = if (other / 64).is_multiple_of(2) { Status::Firing } else { Status::Resolved };
    FindingRow {
        id: 0,
        tenant: TENANT.into(),
        fingerprint: Fingerprint::of(TENANT, &agent, check, &target, None),
        agent,
        check: check.into(),
        target,
        sub_key: None,
        status,
        severity: severity(other),
        change: if status == Status::Firing { Change::Began } else { Change::Cleared },
        summary: format!("pid {} holds 14 of its 20 connections idle in transaction", 1000 + noise % 40),
        reason: "312 s is over 30 s".into(),
        advice: None,
        evidence: format!("{{\"pid\":{},\"fd\":17,\"backend\":{}}}", 1000 + noise % 40, noise % 100_000),
        since: at,
        observed_at: at,
        received_at: at,
        incident: None,
    }
}

fn incident(number: u64, at: Timestamp) -> IncidentRow {
    let noise = chance(number);
    // Of the newest some fire.
    let fires = INCIDENTS - number < 5_000 && noise.is_multiple_of(3);
    let finding = finding(number, at);
    IncidentRow {
        tenant: TENANT.into(),
        id: format!("01JD7Z5X000000000{number:09}"),
        fingerprint: finding.fingerprint,
        agent: finding.agent,
        check: check(noise, 1_000).into(),
        target: finding.target,
        sub_key: None,
        status: if fires { Status::Firing } else { Status::Resolved },
        severity: if (noise / 3).is_multiple_of(5) { Severity::Critical } else { Severity::Warning },
        summary: finding.summary,
        advice: None,
        evidence: finding.evidence,
        evidence_lost: false,
        since: at,
        opened_at: at,
        updated_at: at,
        resolved_at: (!fires).then_some(at),
        resolved_reason: (!fires).then(|| "cleared".into()),
        occurrences: 1,
        state_epoch: 1,
        state_since: at,
        seen_epoch: Epoch::try_from("01JD7Z5W0000000000000000AA".to_owned()).ok(),
        seen_at: at,
        flap: None,
    }
}

fn agent_row(number: u64, now: Timestamp) -> AgentRow {
    AgentRow {
        tenant: TENANT.into(),
        id: agent(number),
        host: format!("host-{number}"),
        version: Some("0.1.0".into()),
        system: Some("Debian 12".into()),
        token_labels: Labels::default(),
        own_labels: Labels::default(),
        targets: Vec::new(),
        ephemeral: false,
        enrolled_at: now,
        certificate_expires_at: now + std::time::Duration::from_secs(30 * 86_400),
        denied_at: None,
        forget_at: None,
        last_seen_at: Some(now),
        // Nobody waits for it.
        stopped_at: Some(now),
    }
}

fn failed(error: impl std::fmt::Display) -> StageError {
    StageError::Failed { what: "the store".into(), said: error.to_string() }
}
