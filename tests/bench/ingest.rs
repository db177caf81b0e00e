//! Records a second that the collector commits: several agents with a backlog, over mutual TLS, on this machine.
//!
//! The generator speaks the wire by itself (nothing of `tickbird-shared`), so its records are a second opinion on the
//! protocol too. Each agent stays within its burst of 20,000 records; what is counted was acknowledged, so it is on disk.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use tickbird_tests::https::Connection;
use tickbird_tests::simulated::fingerprint;
use tickbird_tests::{Collector, Simulated, Stage, StageError};

use crate::Figure;

const AGENTS: u32 = 8;
const BATCHES: u32 = 36;
const RECORDS: u32 = 500;
const TIME: &str = "2026-01-01T00:00:00Z";

/// One agent's identity and how far its sequences are.
struct Sender {
    id: String,
    tenant: String,
    epoch: String,
    connection: Connection,
}

pub(crate) fn ingest(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut figures = Vec::new();
    // DESIGN.md section 7 asks for both: the steady mix is summaries with 2 % findings.
    for (what, findings_per_hundred) in [("98 % summaries, 2 % findings", 2), ("findings alone", 100)] {
        let mut collector = Collector::init(stage)?;
        collector.serve()?;
        let senders = (0..AGENTS).map(|_| sender(stage, &collector)).collect::<Result<Vec<_>, _>>()?;
        let began = Instant::now();
        let work: Vec<_> =
            senders.into_iter().map(|it| thread::spawn(move || send_all(it, findings_per_hundred))).collect();
        let mut latencies = Vec::new();
        for thread in work {
            latencies.extend(thread.join().expect("a sender returns its errors")?);
        }
        let seconds = began.elapsed().as_secs_f64();
        // Every batch is as full as the others.
        let records = latencies.len() as f64 * f64::from(RECORDS);
        latencies.sort();
        let p99 = latencies[latencies.len() * 99 / 100];
        let milliseconds = |it: Duration| 1000.0 * it.as_secs_f64();
        let committed = Figure::of(format!("{what}: committed"), records / seconds, "records/s");
        figures.push(committed.more_is_better());
        let all = latencies.iter().copied().map(milliseconds).collect();
        figures.push(Figure::of_all(format!("{what}: acknowledgement"), all, "ms"));
        figures.push(Figure::of(format!("{what}: acknowledgement (p99)"), milliseconds(p99), "ms"));
        collector.stop()?;
    }
    Ok(figures)
}

/// Enrols an agent and connects with its certificate.
fn sender(stage: &Stage, collector: &Collector) -> Result<Sender, StageError> {
    let agent = Simulated::enrolled(stage, collector, collector.enrolment_token())?;
    let connection = agent.connect()?;
    let Simulated { id, tenant, epoch, .. } = agent;
    Ok(Sender { id, tenant, epoch, connection })
}

/// Sends this sender's backlog; how long each acknowledgement took.
fn send_all(mut it: Sender, findings_per_hundred: u32) -> Result<Vec<Duration>, StageError> {
    let lane = if findings_per_hundred == 100 { "urgent" } else { "bulk" };
    let mut latencies = Vec::new();
    let mut first = 1_u64;
    for batch in 0..BATCHES {
        let findings = if lane == "urgent" { RECORDS } else { 0 };
        let body = body(&it, lane, first, batch, RECORDS - findings, findings);
        latencies.push(deliver(&mut it.connection, &body, first + u64::from(RECORDS) - 1)?);
        first += u64::from(RECORDS);
        // Findings go in a lane of their own: as many batches less, each as full as the others.
        let share = 100 / findings_per_hundred;
        if lane == "bulk" && batch.is_multiple_of(share) {
            let begin = 1 + u64::from(batch / share * RECORDS);
            let body = self::body(&it, "urgent", begin, batch, 0, RECORDS);
            latencies.push(deliver(&mut it.connection, &body, begin + u64::from(RECORDS) - 1)?);
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

fn body(it: &Sender, lane: &str, first: u64, batch: u32, summaries: u32, findings: u32) -> Vec<u8> {
    let now = jiff::Timestamp::now();
    let mut text = format!(
        r#"{{"protocol":1,"epoch":"{}","lane":"{lane}","first":{first},"sent_at":"{now}","records":["#,
        it.epoch
    );
    let minute = jiff::Timestamp::from_second(now.as_second() / 60 * 60).unwrap_or(now);
    for number in 0..summaries {
        let _ = write!(
            text,
            r#"{{"summary":{{"measure":"pool.open","unit":"count","target":"pool:app-{number}>10.0.0.5:5432/db?user=app","minute":"{minute}","min":1.0,"max":20.0,"sum":600.5,"count":60,"last":{batch}.0}}}},"#
        );
    }
    for number in 0..findings {
        // Each finding is of a target of its own among a thousand, and changes each time it comes round.
        let target = format!("pool:app-{number}>10.0.0.5:5432/db?user=app");
        let check = "pool.idle_in_transaction";
        let fingerprint = fingerprint(&[&it.tenant, &it.id, check, &target, ""]);
        let (status, change) = if batch.is_multiple_of(2) { ("firing", "began") } else { ("resolved", "cleared") };
        let _ = write!(
            text,
            r#"{{"finding":{{"fingerprint":"{fingerprint}","check":"{check}","target":"{target}","status":"{status}","severity":"warning","change":"{change}","summary":"3 sessions idle in transaction","reason":"31 s is over 30 s","evidence":{{"backend":{number}}},"since":"{TIME}","observed_at":"{now}"}}}},"#
        );
    }
    text.pop();
    text.push_str("]}");
    zstd::bulk::compress(text.as_bytes(), 1).expect("memory can be compressed")
}
