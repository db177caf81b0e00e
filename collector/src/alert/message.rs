//! What a receiver is told: one JSON document, rendered once when it is decided. The API shows incidents in the same form.

use serde::Serialize;
use serde_json::value::RawValue;
use tickbird_shared::{Fingerprint, Labels, Severity, Status, Timestamp};
use ulid::Ulid;

use crate::aggregate::Priority;
use crate::store::{AgentRow, IncidentRow};

/// Version of the document; a member may be added without a new one.
const VERSION: u32 = 1;
/// Type and check of what only tries a receiver.
const SAMPLE: &str = "receiver.test";

#[derive(Debug, Serialize)]
struct Message<'a> {
    version: u32,
    id: &'a str,
    r#type: &'a str,
    receiver: &'a str,
    decided_at: Timestamp,
    reason: &'a str,
    incident: IncidentDocument<'a>,
}

/// An incident as receivers and callers of the API see it.
#[derive(Debug, Serialize)]
pub struct IncidentDocument<'a> {
    id: &'a str,
    fingerprint: String,
    status: &'a str,
    severity: &'a str,
    check: &'a str,
    target: &'a str,
    sub_key: Option<&'a str>,
    agent: AgentDocument<'a>,
    summary: &'a str,
    advice: Option<&'a str>,
    evidence: &'a RawValue,
    evidence_lost: bool,
    priority: PriorityDocument,
    since: Timestamp,
    opened_at: Timestamp,
    updated_at: Timestamp,
    resolved_at: Option<Timestamp>,
    resolved_reason: Option<&'a str>,
    occurrences: u32,
}

#[derive(Debug, Serialize)]
struct PriorityDocument {
    value: f64,
    impact: &'static str,
    probability: f64,
}

/// Who judged it. Host and labels are unknown of an agent that was forgotten.
#[derive(Debug, Serialize)]
pub struct AgentDocument<'a> {
    id: &'a str,
    host: Option<&'a str>,
    labels: Labels,
}

impl<'a> IncidentDocument<'a> {
    /// The document of a row, with what is known of its agent.
    pub fn new(row: &'a IncidentRow, agent: Option<&'a AgentRow>) -> Self {
        let priority = Priority::of(&row.check, row.occurrences);
        Self {
            id: &row.id,
            fingerprint: row.fingerprint.to_string(),
            status: row.status.as_str(),
            severity: row.severity.as_str(),
            check: &row.check,
            target: &row.target,
            sub_key: row.sub_key.as_deref(),
            agent: AgentDocument::new(&row.agent, agent),
            summary: &row.summary,
            advice: row.advice.as_deref(),
            evidence: object(&row.evidence),
            evidence_lost: row.evidence_lost,
            priority: PriorityDocument {
                value: priority.value(),
                impact: priority.impact.as_str(),
                probability: priority.probability(),
            },
            since: row.since,
            opened_at: row.opened_at,
            updated_at: row.updated_at,
            resolved_at: row.resolved_at,
            resolved_reason: row.resolved_reason.as_deref(),
            occurrences: row.occurrences,
        }
    }
}

impl<'a> AgentDocument<'a> {
    /// The document of an agent by its id, with its row where there is one.
    pub fn new(id: &'a str, row: Option<&'a AgentRow>) -> Self {
        Self { id, host: row.map(|row| row.host.as_str()), labels: row.map(AgentRow::labels).unwrap_or_default() }
    }
}

/// Stored evidence as the JSON it is; it was checked when it came, so the empty object stands only for damage.
pub(crate) fn object(evidence: &str) -> &RawValue {
    const EMPTY: &str = "{}";
    serde_json::from_str(evidence)
        .unwrap_or_else(|_| serde_json::from_str(EMPTY).expect("an empty object is valid JSON"))
}

/// A message that no incident is behind, to see whether a receiver takes one: its id and its bytes.
pub fn sample(tenant: &str, receiver: &str, now: Timestamp) -> (String, Vec<u8>) {
    let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
    let incident = IncidentRow {
        tenant: tenant.into(),
        id: Ulid::from_parts(millis, u128::from(now.subsec_nanosecond().unsigned_abs())).to_string(),
        fingerprint: Fingerprint::of(tenant, "collector", SAMPLE, receiver, None),
        agent: "collector".into(),
        check: SAMPLE.into(),
        target: format!("receiver:{receiver}"),
        sub_key: None,
        status: Status::Firing,
        severity: Severity::Info,
        summary: "this is a test, and nothing is wrong".into(),
        advice: Some("nothing is to be done".into()),
        evidence: "{}".into(),
        evidence_lost: false,
        since: now,
        opened_at: now,
        updated_at: now,
        resolved_at: None,
        resolved_reason: None,
        occurrences: 1,
        state_epoch: 1,
        state_since: now,
        seen_epoch: None,
        seen_at: now,
    };
    let id = format!("msg_{}", incident.id);
    let body = render(&id, SAMPLE, receiver, "somebody asked for a test", &incident, None, now);
    (id, body)
}

/// The bytes of a message.
pub(super) fn render(
    id: &str,
    kind: &str,
    receiver: &str,
    reason: &str,
    incident: &IncidentRow,
    agent: Option<&AgentRow>,
    decided_at: Timestamp,
) -> Vec<u8> {
    let message = Message {
        version: VERSION,
        id,
        r#type: kind,
        receiver,
        decided_at,
        reason,
        incident: IncidentDocument::new(incident, agent),
    };
    serde_json::to_vec(&message).expect("texts, numbers and checked JSON serialise")
}
