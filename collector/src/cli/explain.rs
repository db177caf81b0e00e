//! `explain INCIDENT`: why somebody was told, or was not.

use super::table::{group, plain, time};
use super::{CliError, Where, read_config};
use crate::alert::{Entry, Explanation, Facts};
use crate::store::{AcknowledgementRow, DecisionRow, EscalationRow, MessageState, OutboxRow, SilenceRow};
use crate::token::DEFAULT_TENANT;
use clap::Args;

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

impl Explain {
    pub(super) fn run(self) -> Result<(), CliError> {
        let writer = self.at.writer()?;
        // What fired is explained by a configuration that cannot be read, too.
        let top = read_config(&self.at.directory().config()).ok().and_then(|it| it.policy.route);
        let Some(explanation) = Explanation::read(writer.rows(), DEFAULT_TENANT, &self.incident, top.as_ref())? else {
            return Err(CliError::Unknown { kind: "incident", id: self.incident });
        };
        self.at.print(&explanation.document(), || text(&explanation))
    }
}

fn text(explanation: &Explanation) -> String {
    let incident = &explanation.incident;
    let (check, severity) = (&incident.check, incident.severity);
    let mut lines = vec![format!("{severity} {check}: {}", plain(&incident.summary))];
    lines.push(format!("  target {}, agent {}", plain(&incident.target), incident.agent));
    lines.push(format!("  opened {}, occurrences {}", time(incident.opened_at), incident.occurrences));
    lines.push(format!("  priority {}", explanation.priority()));
    if let Some(at) = incident.resolved_at {
        let why = incident.resolved_reason.as_deref().unwrap_or_default();
        lines.push(format!("  resolved {}: {}", time(at), plain(why)));
    }
    if let Some(flap) = incident.flap.as_ref().filter(|_| incident.flaps()) {
        let now =
            flap.calm_since.map_or_else(|| "it is there".to_owned(), |at| format!("gone for now, since {}", time(at)));
        lines.push(format!("  flaps since {}; {now}", flap.since.map(time).unwrap_or_default()));
    }
    lines.extend(explanation.escalations.iter().map(escalation));
    let told = explanation.timeline();
    if told.is_empty() {
        lines
            .push("  nothing was decided: no receiver was configured, or what was decided is not kept any more".into());
    }
    lines.extend(told.into_iter().flat_map(|(at, it)| match it {
        Entry::Acknowledged(_, it) => vec![took(it)],
        Entry::GivenBack(_, it) => vec![format!("{}  {}", time(at), plain(&it.ended()))],
        Entry::Silenced(_, it) => vec![silence(it)],
        Entry::Decided(_, it) => decision(explanation, it),
        Entry::Repeated(_, it) => again(it),
    }));
    lines.join("\n")
}

/// Since when it is nobody's, and what became of the steps whose time has come.
fn escalation(it: &EscalationRow) -> String {
    let step = |(name, word): (&String, &String)| format!("{}: {word}", name.split_once(' ').map_or("", |it| it.1));
    let steps: Vec<_> = it.steps.iter().map(step).collect();
    let taken = if steps.is_empty() { "no step was due yet".to_owned() } else { steps.join(", ") };
    format!("  escalates what {} was told; time counts from {}; {taken}", it.receiver, time(it.since))
}

/// That somebody took it.
fn took(it: &AcknowledgementRow) -> String {
    let note = it.note.as_deref().map(|it| format!(": {}", plain(it))).unwrap_or_default();
    format!("{}  {} acknowledged it until {}{note}", time(it.created_at), plain(&it.owner), time(it.ends_at))
}

/// From when until when somebody keeps people from hearing of it.
fn silence(it: &SilenceRow) -> String {
    let (by, reason, until) = (plain(&it.author), plain(&it.reason), time(it.ends_at));
    format!("{}  silenced until {until} by {by}: {reason} ({})", time(it.starts_at), it.id)
}

/// That it was told while nothing was new.
fn again(it: &OutboxRow) -> Vec<String> {
    let line = format!("{}  {} told again with {}: it still fires", time(it.decided_at), it.receiver, it.incident);
    vec![line, format!("    {}: {}", it.id, answered(it))]
}

fn decision(explanation: &Explanation, it: &DecisionRow) -> Vec<String> {
    let kind = it.kind.trim_start_matches("incident.");
    let gathered = explanation.gathered(it);
    let told = match gathered {
        Some(_) => "to be told",
        None if it.told => "told",
        None => "not told",
    };
    let who = if it.receiver.is_empty() { "nobody" } else { &it.receiver };
    let mut lines = vec![format!("{}  {who} {told} of {kind}: {}", time(it.decided_at), plain(&it.reason))];
    if let Some(id) = &it.message {
        let of = it.in_group.as_deref().map(|it| format!(" of {it}")).unwrap_or_default();
        lines.extend(it.in_group.as_ref().map(|id| format!("    {}", grouped(explanation.groupings.get(id)))));
        let state = match (explanation.messages.get(id), gathered.and_then(|it| it.due_at)) {
            (Some(row), _) => answered(row),
            (None, Some(due)) => format!("waits for its group, until {}", time(due)),
            (None, None) => "no longer kept".into(),
        };
        lines.push(format!("    {id}{of}: {state}"));
    }
    lines
}

/// With what else it was told, as far as that can still be known.
fn grouped(by: Option<&Facts>) -> String {
    let unknown = || "as an earlier configuration, or other labels of its agent, said".to_owned();
    let by = by.map_or_else(unknown, |labels| format!("by {}", group(labels)));
    format!("grouped {by}")
}

/// What became of a message.
fn answered(row: &OutboxRow) -> String {
    let attempts = format!("{} attempt(s)", row.attempts);
    let mut failures = row.failures();
    let error = match row.answer() {
        Some(answer) => format!(": {}", plain(answer)),
        None => failures.pop().map(|it| format!("; last: {}", plain(it))).unwrap_or_default(),
    };
    let before: Vec<_> = failures.into_iter().map(plain).collect();
    let before = if before.is_empty() { String::new() } else { format!("; before: {}", before.join(", ")) };
    let error = error + &before;
    let at = row.settled_at.map(time).unwrap_or_default();
    match row.state {
        MessageState::Delivered => format!("taken {at}, {attempts}{error}"),
        MessageState::Superseded => format!("not sent: what came after it says it all ({at})"),
        MessageState::Dead => format!("given up {at}, {attempts}{error}"),
        MessageState::Waiting if row.attempts == 0 => "waits".into(),
        MessageState::Waiting => format!("waits for the next attempt {}, {attempts}{error}", time(row.next_attempt_at)),
    }
}

#[cfg(test)]
mod tests {
    use tickbird_shared::Timestamp;

    use super::*;

    fn message(state: MessageState, heard: &[&str]) -> OutboxRow {
        let at = Timestamp::from_second(1_790_000_000).expect("in range");
        let mut row = OutboxRow::queued(
            "default",
            "msg_1".into(),
            "ops",
            "I".into(),
            ("incident.firing", "webhook", Vec::new()),
            at,
        );
        (row.state, row.settled_at, row.attempts) = (state, Some(at), heard.len() as u32);
        heard.iter().for_each(|it| row.hears(it));
        row
    }

    #[test]
    fn what_they_answered_is_told_with_what_failed_before() {
        let told = |state, heard: &[&str]| {
            let told = answered(&message(state, heard));
            told.split_once("attempt(s)").map(|(_, rest)| rest.to_owned()).expect("counts them")
        };
        use MessageState::{Dead, Delivered, Waiting};
        assert_eq!(told(Delivered, &["answered 204"]), ": answered 204");
        let heard = ["answered 500", "no answer within 400 ms", "answered 200"];
        assert_eq!(told(Delivered, &heard), ": answered 200; before: answered 500, no answer within 400 ms");
        assert_eq!(told(Dead, &["answered 413", "answered 413"]), "; last: answered 413 (2 times)");
        assert_eq!(told(Waiting, &["answered 500", "answered 502"]), "; last: answered 502; before: answered 500");
        assert_eq!(told(Delivered, &[]), "", "by a collector that did not keep it");
    }
}
