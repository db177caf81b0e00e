//! An agent by its identity alone: enrolled like a real one, and then whatever a scenario makes it say.
//!
//! It speaks the wire by itself (nothing of `tickbird-shared`), so what it sends is a second opinion on the protocol.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::agent::{Agent, User};
use crate::collector::Collector;
use crate::https::{Client, Connection};
use crate::stage::{Stage, StageError};

/// Where batches go.
pub const RECORDS: &str = "/v1/records";

/// An agent's identity, and how it connects.
#[derive(Debug)]
pub struct Simulated {
    /// The id the collector gave it.
    pub id: String,
    /// Its tenant.
    pub tenant: String,
    /// A life of a buffer, in the form of a ULID.
    pub epoch: String,
    /// Shows its certificate.
    pub client: Client,
    /// Where it sends to: `127.0.0.1:41234`.
    pub address: String,
}

impl Simulated {
    /// Enrols it with `token` by the shipped agent, which then does not run.
    pub fn enrolled(stage: &Stage, collector: &Collector, token: &str) -> Result<Self, StageError> {
        let agent = Agent::prepare(stage, "", User::Same)?;
        agent.enrol_with(collector, token)?;
        Self::of(&agent)
    }

    /// Speaks as `agent`, which is enrolled.
    pub fn of(agent: &Agent) -> Result<Self, StageError> {
        let file = |name: &str| agent.identity(name);
        let text = std::fs::read_to_string(file("identity.json")).map_err(StageError::system("read identity.json"))?;
        let wrong = || StageError::Malformed { what: "identity.json".into(), found: text.clone() };
        let told: Value = serde_json::from_str(&text).map_err(|_| wrong())?;
        let word = |key: &str| told[key].as_str().map(str::to_owned).ok_or_else(wrong);
        let client = Client::as_agent(&file("ca.pem"), &file("agent.pem"), &file("agent.key"))?;
        let (id, url) = (word("agent")?, word("url")?);
        // A ULID in form: 26 characters, here made of the agent's own.
        let letters = id.chars().filter(char::is_ascii_alphanumeric).map(|it| it.to_ascii_uppercase());
        let epoch = letters.chain(std::iter::repeat('0')).take(26).collect();
        let address = url.trim_start_matches("https://").trim_end_matches('/').to_owned();
        Ok(Self { tenant: word("tenant")?, id, epoch, client, address })
    }

    /// A new connection with its certificate.
    pub fn connect(&self) -> Result<Connection, StageError> {
        self.client.connect(&self.address)
    }

    /// The same from another address of loopback.
    pub fn connect_from(&self, from: std::net::Ipv4Addr) -> Result<Connection, StageError> {
        self.client.connect_from(from, &self.address)
    }

    /// A batch of these records, from the sequence `first` of a lane (`urgent`, `bulk`).
    pub fn batch(&self, lane: &str, first: u64, records: &[Value]) -> Value {
        json!({
            "protocol": 1, "epoch": self.epoch, "lane": lane, "first": first,
            "sent_at": jiff::Timestamp::now(), "records": records,
        })
    }

    /// A finding that fires, with this evidence.
    pub fn finding(&self, target: &str, evidence: &Value) -> Value {
        let (check, now) = ("pool.leak", jiff::Timestamp::now());
        json!({ "finding": {
            "fingerprint": fingerprint(&[&self.tenant, &self.id, check, target, ""]),
            "check": check, "target": target, "status": "firing", "severity": "warning", "change": "began",
            "summary": "14 of 20 connections are held", "reason": "31 s is over 30 s", "evidence": evidence,
            "since": now, "observed_at": now,
        } })
    }

    /// A minute of a measure of a target.
    pub fn summary(&self, target: &str) -> Value {
        let now = jiff::Timestamp::now();
        json!({ "summary": {
            "measure": "pool.open", "unit": "count", "target": target,
            "minute": jiff::Timestamp::from_second(now.as_second() / 60 * 60).unwrap_or(now),
            "min": 1.0, "max": 20.0, "sum": 600.5, "count": 60, "last": 7.0,
        } })
    }
}

/// SHA-256 over each part with its length before it; the first 16 bytes in hexadecimal.
pub fn fingerprint(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize()[..16].iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
