//! Records a second that the collector commits: agents with a backlog, over mutual TLS, beside their generator on this machine.
//!
//! The generator speaks the wire by itself (nothing of `tickbird-shared`), so its records are a second opinion on the
//! protocol too. Its bodies are made while the clock stands; what is counted was acknowledged, so it is on disk. An agent may
//! send more than the shipped bounds allow, which are there to keep one from doing this.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use tickbird_tests::https::Connection;
use tickbird_tests::simulated::fingerprint;
use tickbird_tests::{Collector, Simulated, Stage, StageError};

use crate::Figure;
use crate::cost::cpu_seconds;

/// Stretches of equal work; the cost of one, of four and of all of them are compared.
const STRETCHES: u32 = 16;
const RECORDS: u32 = 500;
const TIME: &str = "2026-01-01T00:00:00Z";
pub(crate) const LIMITS: &str = "\n[limits]\nrecords_per_second = 1000000\nburst = 100000000\nseries = 10000\n";
/// Another number of stretches, for a look in passing; growth and rows are then less than they say.
const FEWER: &str = "TICKBIRD_BENCH_STRETCHES";

/// What is sent in each stretch.
struct Work {
    what: &'static str,
    agents: u32,
    /// Requests under way at once.
    at_once: usize,
    /// Batches of summaries of each agent, [`RECORDS`] in each.
    summaries: u32,
    /// Batches of findings of each agent.
    findings: u32,
    /// Findings of a batch.
    findings_each: u32,
    /// Records a second in the long run.
    at_least: f64,
}

/// DESIGN.md section 7 asks for both. Each agent has 10,000 series, half of them in every other stretch: 500,000 in all.
const WORKS: [Work; 2] = [
    Work {
        what: "98 % summaries, 2 % findings",
        agents: 50,
        at_once: 8,
        summaries: 10,
        findings: 1,
        findings_each: 100,
        at_least: 200_000.0,
    },
    // Five million rows.
    Work {
        what: "findings alone",
        agents: 16,
        at_once: 4,
        summaries: 0,
        findings: 40,
        findings_each: RECORDS,
        at_least: 40_000.0,
    },
];

/// One agent's identity and how far its lanes are.
pub(crate) struct Sender {
    pub(crate) id: String,
    pub(crate) tenant: String,
    epoch: String,
    connection: Connection,
    next: [u64; 2],
    bodies: Vec<(Vec<u8>, u64)>,
    /// Bytes of all bodies, before they were compressed.
    written: u64,
}

/// What one stretch took.
struct Stretch {
    records: f64,
    seconds: f64,
    collector: f64,
    generator: f64,
}

pub(crate) fn ingest(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut figures = Vec::new();
    for work in &WORKS {
        figures.extend(measured(stage, work)?);
    }
    Ok(figures)
}

fn measured(stage: &Stage, work: &Work) -> Result<Vec<Figure>, StageError> {
    let stretches = std::env::var(FEWER).ok().and_then(|it| it.parse().ok()).unwrap_or(STRETCHES);
    let mut collector = Collector::init(stage)?;
    collector.configure(LIMITS)?;
    collector.serve()?;
    let pid = collector.pid().unwrap_or_default();
    let made = collector.command(&["token", "create", "--json", "--uses", &work.agents.to_string()])?;
    let made: Option<serde_json::Value> = serde_json::from_str(&made).ok();
    let token = made.as_ref().and_then(|it| it["token"].as_str()).unwrap_or_default();
    let senders = (0..work.agents).map(|_| Sender::enrolled(stage, &collector, token));
    let mut senders = senders.collect::<Result<Vec<_>, _>>()?;
    let (mut took, mut latencies) = (Vec::new(), Vec::new());
    for turn in 0..stretches {
        thread::scope(|scope| {
            for part in senders.chunks_mut(work.agents.div_ceil(2) as usize) {
                scope.spawn(move || part.iter_mut().for_each(|it| it.prepare(work, turn)));
            }
        });
        let (began, before) = (Instant::now(), (cpu_seconds(pid)?, cpu_seconds(std::process::id())?));
        latencies.extend(send_all(&mut senders, work.at_once)?);
        took.push(Stretch {
            records: f64::from(work.agents * (work.summaries * RECORDS + work.findings * work.findings_each)),
            seconds: began.elapsed().as_secs_f64(),
            collector: cpu_seconds(pid)? - before.0,
            generator: cpu_seconds(std::process::id())? - before.1,
        });
    }
    collector.stop()?;
    let mut figures = figures(work, &took, latencies);
    let written = senders.iter().map(|it| it.written).sum::<u64>() as f64;
    let records = took.iter().map(|it| it.records).sum::<f64>();
    let what = format!("{}: a record, before it is compressed", work.what);
    figures.push(Figure::of(what, written / records, "bytes").for_comparison());
    Ok(figures)
}

fn figures(work: &Work, took: &[Stretch], mut latencies: Vec<Duration>) -> Vec<Figure> {
    let of = |what: &str| format!("{}: {what}", work.what);
    let sum = |part: &[Stretch], of: fn(&Stretch) -> f64| part.iter().map(of).sum::<f64>();
    let rate = |part: &[Stretch]| sum(part, |it| it.records) / sum(part, |it| it.seconds);
    let millions = sum(took, |it| it.records) / 1e6;
    latencies.sort();
    let quantile = |share: f64| {
        let at = (latencies.len() as f64 * share) as usize;
        1000.0 * latencies.get(at).copied().unwrap_or_default().as_secs_f64()
    };
    // Of both numbers of seconds, so that a pause for the disk is in neither.
    let cost = |part: &[Stretch]| 1e6 * sum(part, |it| it.collector) / sum(part, |it| it.records);
    let growth = |times: usize| cost(&took[..times.min(took.len())]) / cost(&took[..1]);
    vec![
        Figure::of(of("committed"), rate(took), "records/s").at_least(work.at_least),
        Figure::of_all(
            of("committed, stretch by stretch"),
            took.iter().map(|it| it.records / it.seconds).collect(),
            "records/s",
        ),
        Figure::of(of("committed in the last fourth"), rate(&took[took.len() * 3 / 4..]), "records/s")
            .at_least(work.at_least),
        Figure::of(of("acknowledgement (median)"), quantile(0.5), "ms"),
        Figure::of(of("acknowledgement (p99)"), quantile(0.99), "ms").at_most(100.0),
        Figure::of(of("the collector's CPU for a record"), cost(took), "µs"),
        Figure::of(of("the same of four times the work, to that of one"), growth(4), "").at_most(1.2),
        Figure::of(of("of sixteen times the work"), growth(16), "").at_most(1.2),
        Figure::of(
            of("the generator's CPU, to the collector's"),
            sum(took, |it| it.generator) / sum(took, |it| it.collector),
            "",
        )
        .for_comparison(),
        Figure::of(of("records"), millions, "million").for_comparison(),
    ]
}

/// Sends what every sender has prepared, so many at once; how long each acknowledgement took.
pub(crate) fn send_all(senders: &mut [Sender], at_once: usize) -> Result<Vec<Duration>, StageError> {
    let each = senders.len().div_ceil(at_once);
    thread::scope(|scope| {
        let parts: Vec<_> = senders.chunks_mut(each).map(|part| scope.spawn(move || send(part))).collect();
        let mut latencies = Vec::new();
        for part in parts {
            latencies.extend(part.join().expect("a sender returns its errors")?);
        }
        Ok(latencies)
    })
}

/// One batch of each sender after another, as long as there are any.
fn send(part: &mut [Sender]) -> Result<Vec<Duration>, StageError> {
    let mut latencies = Vec::new();
    let most = part.iter().map(|it| it.bodies.len()).max().unwrap_or_default();
    for place in 0..most {
        for sender in part.iter_mut() {
            let Sender { connection, bodies, .. } = sender;
            if let Some((body, last)) = bodies.get(place) {
                latencies.push(deliver(connection, body, *last)?);
            }
        }
    }
    Ok(latencies)
}

fn deliver(connection: &mut Connection, body: &[u8], last: u64) -> Result<Duration, StageError> {
    let began = Instant::now();
    let headers = "content-type: application/json\r\ncontent-encoding: zstd\r\n";
    let answer = connection.ask("POST", "/v1/records", headers, body)?;
    let through = answer.json().ok().and_then(|it| it["through"].as_u64());
    let refused = answer.body.contains("\"code\"");
    if answer.status == 200 && through == Some(last) && !refused {
        return Ok(began.elapsed());
    }
    let said: String = answer.body.chars().take(300).collect();
    Err(StageError::Failed { what: "a batch".into(), said: format!("{}: {said}", answer.status) })
}

impl Sender {
    /// Enrols an agent and connects with its certificate.
    pub(crate) fn enrolled(stage: &Stage, collector: &Collector, token: &str) -> Result<Self, StageError> {
        let agent = Simulated::enrolled(stage, collector, token)?;
        let connection = agent.connect()?;
        let Simulated { id, tenant, epoch, .. } = agent;
        Ok(Self { id, tenant, epoch, connection, next: [1; 2], bodies: Vec::new(), written: 0 })
    }

    /// Makes the bodies of a stretch: findings first, as an agent sends them.
    fn prepare(&mut self, work: &Work, turn: u32) {
        self.bodies.clear();
        for batch in 0..work.findings {
            let body = self.body("urgent", work.findings_each, |it, text, number| {
                it.finding(text, number, turn * work.findings + batch);
            });
            self.bodies.push(body);
        }
        for batch in 0..work.summaries {
            let first = (turn % 2 * work.summaries + batch) * RECORDS;
            let body = self.body("bulk", RECORDS, |_, text, number| summary(text, first + number, turn));
            self.bodies.push(body);
        }
    }

    /// Makes one more batch to be sent.
    pub(crate) fn add(&mut self, lane: &str, records: u32, record: impl Fn(&Self, &mut String, u32)) {
        let body = self.body(lane, records, record);
        self.bodies.push(body);
    }

    /// A batch, and its last sequence.
    fn body(&mut self, lane: &str, records: u32, record: impl Fn(&Self, &mut String, u32)) -> (Vec<u8>, u64) {
        let place = usize::from(lane == "bulk");
        let (first, now) = (self.next[place], jiff::Timestamp::now());
        let mut text = format!(
            r#"{{"protocol":1,"epoch":"{}","lane":"{lane}","first":{first},"sent_at":"{now}","records":["#,
            self.epoch
        );
        (0..records).for_each(|number| record(self, &mut text, number));
        text.pop();
        text.push_str("]}");
        self.written += text.len() as u64;
        self.next[place] += u64::from(records);
        (zstd::bulk::compress(text.as_bytes(), 1).expect("memory can be compressed"), self.next[place] - 1)
    }

    /// Each finding is of a target of its own, and changes each time it comes round.
    fn finding(&self, text: &mut String, number: u32, round: u32) {
        let target = target(number);
        let check = "pool.idle_in_transaction";
        let fingerprint = fingerprint(&[&self.tenant, &self.id, check, &target, ""]);
        let (status, change) = if round.is_multiple_of(2) { ("firing", "began") } else { ("resolved", "cleared") };
        let now = jiff::Timestamp::now();
        let _ = write!(
            text,
            r#"{{"finding":{{"fingerprint":"{fingerprint}","check":"{check}","target":"{target}","status":"{status}","severity":"warning","change":"{change}","summary":"3 sessions idle in transaction","reason":"31 s is over 30 s","evidence":{{"backend":{number}}},"since":"{TIME}","observed_at":"{now}"}}}},"#
        );
    }
}

fn summary(text: &mut String, number: u32, turn: u32) {
    let now = jiff::Timestamp::now();
    let minute = jiff::Timestamp::from_second(now.as_second() / 60 * 60).unwrap_or(now);
    let (max, sum) = (f64::from(number * 7 % 100), f64::from(number * 31 % 6_000) / 3.0);
    let _ = write!(
        text,
        r#"{{"summary":{{"measure":"pool.open","unit":"count","target":"{}","minute":"{minute}","min":0.0,"max":{max},"sum":{sum},"count":60,"last":{turn}.0}}}},"#,
        target(number),
    );
}

/// As long as those of real applications are: with it a summary has the 250 bytes that DESIGN.md section 7 asks for.
fn target(number: u32) -> String {
    format!("pool:grants-api-{number}/worker>db-primary.eu-central-1.internal.example.org:5432/grants?user=grants_api")
}
