//! `explain INCIDENT`: why somebody was told, or was not.

use std::collections::BTreeMap;

use clap::Args;

use super::table::{plain, time};
use super::{CliError, Where};
use crate::alert::{EXPLAINED, explanation};
use crate::store::{DecisionRow, IncidentRow, MessageState, OutboxRow};
use crate::token::DEFAULT_TENANT;

/// Tells what was decided about an incident, in order: who was told what and why, or why not, and what they answered.
///
/// Of an incident that is told of for weeks these are the last thousand decisions.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Its id, as in messages and in the API.
    incident: String,
    #[command(flatten)]
    at: Where,
}

type Messages = BTreeMap<String, OutboxRow>;

impl Explain {
    pub(super) fn run(self) -> Result<(), CliError> {
        let writer = self.at.writer()?;
        let rows = writer.rows();
        let Some(incident) = rows.incident(DEFAULT_TENANT, &self.incident)? else {
            return Err(CliError::Unknown { kind: "incident", id: self.incident });
        };
        let decisions = rows.newest_decisions(DEFAULT_TENANT, &incident.id, EXPLAINED)?;
        let messages = rows.messages_of(&decisions)?;
        self.at.print(&explanation(&incident, &decisions, &messages), || text(&incident, &decisions, &messages))
    }
}

fn text(incident: &IncidentRow, decisions: &[DecisionRow], messages: &Messages) -> String {
    let (check, severity) = (&incident.check, incident.severity);
    let mut lines = vec![format!("{severity} {check}: {}", plain(&incident.summary))];
    lines.push(format!("  target {}, agent {}", plain(&incident.target), incident.agent));
    lines.push(format!("  opened {}, occurrences {}", time(incident.opened_at), incident.occurrences));
    if let Some(at) = incident.resolved_at {
        let why = incident.resolved_reason.as_deref().unwrap_or_default();
        lines.push(format!("  resolved {}: {}", time(at), plain(why)));
    }
    for it in decisions {
        let (told, kind) = (if it.told { "told" } else { "not told" }, it.kind.trim_start_matches("incident."));
        let reason = plain(&it.reason);
        lines.push(format!("{}  {} {told} of {kind}: {reason}", time(it.decided_at), it.receiver));
        if let Some(id) = &it.message {
            lines.push(format!("    {id}: {}", messages.get(id).map_or_else(gone, answered)));
        }
    }
    lines.join("\n")
}

fn gone() -> String {
    "no longer kept".into()
}

/// What became of a message.
fn answered(row: &OutboxRow) -> String {
    let attempts = format!("{} attempt(s)", row.attempts);
    let error = row.last_error.as_deref().map(|it| format!("; last: {}", plain(it))).unwrap_or_default();
    let at = row.settled_at.map(time).unwrap_or_default();
    match row.state {
        MessageState::Delivered => format!("taken {at}, {attempts}"),
        MessageState::Superseded => format!("not sent: what came after it says it all ({at})"),
        MessageState::Dead => format!("given up {at}, {attempts}{error}"),
        MessageState::Waiting if row.attempts == 0 => "waits".into(),
        MessageState::Waiting => format!("waits for the next attempt {}, {attempts}{error}", time(row.next_attempt_at)),
    }
}
