//! What a receiver is told: one JSON document, rendered once when it is decided. The API shows incidents in the same form.

use serde::Serialize;
use serde_json::value::RawValue;
use tickbird_shared::{Labels, Timestamp};

use crate::aggregate::Priority;
use crate::store::{AgentRow, IncidentRow};

/// Version of the document; a member may be added without a new one.
const VERSION: u32 = 1;

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
