//! Everything that was decided about an incident, as one document.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::store::{DecisionRow, IncidentRow, OutboxRow};

/// Decisions that are shown, the newest.
pub const SHOWN: u32 = 1_000;

/// Who was told what and why, or why not, in order, and what they answered; `messages` are those that are still kept, by their ids.
pub fn explanation(incident: &IncidentRow, decisions: &[DecisionRow], messages: &BTreeMap<String, OutboxRow>) -> Value {
    let of = |it: &DecisionRow| {
        let message = it.message.as_ref().map(|id| {
            let row = messages.get(id);
            json!({
                "id": id,
                "state": row.map(|it| it.state.as_str()),
                "attempts": row.map(|it| it.attempts),
                "uncertain": row.map(|it| it.uncertain),
                "settled_at": row.and_then(|it| it.settled_at),
                "last_error": row.and_then(|it| it.last_error.clone()),
            })
        });
        json!({
            "decided_at": it.decided_at,
            "receiver": it.receiver,
            "state_epoch": it.state_epoch,
            "kind": it.kind,
            "told": it.told,
            "reason": it.reason,
            "message": message,
        })
    };
    json!({
        "incident": {
            "id": incident.id,
            "fingerprint": incident.fingerprint.to_string(),
            "check": incident.check,
            "target": incident.target,
            "agent": incident.agent,
            "status": incident.status,
            "severity": incident.severity,
            "summary": incident.summary,
            "opened_at": incident.opened_at,
            "resolved_at": incident.resolved_at,
            "resolved_reason": incident.resolved_reason,
            "occurrences": incident.occurrences,
        },
        "truncated": decisions.len() >= SHOWN as usize,
        "decisions": decisions.iter().map(of).collect::<Vec<_>>(),
    })
}
