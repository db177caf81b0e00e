//! A letter for whoever is woken by it: what, where, since when, the proof, and where to read on.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tickbird_shared::{Severity, Status, Timestamp};

use super::{GroupTold, Part, SAMPLE, Told, bytes, priority};
use crate::aggregate::CANARY;
use crate::store::{AgentRow, IncidentRow};

/// Incidents of a group that are told one by one.
const SHOWN: usize = 50;
/// Further ends that are named.
const ENDS: usize = 500;
/// Letters of one text from outside.
const LONGEST: usize = 2_000;
/// Letters of one part of a subject.
const LONGEST_OF_SUBJECT: usize = 100;
/// Entries of a list within the proof.
const ENTRIES: usize = 10;
/// Bytes of the proof of one incident; all of it is in the API.
const PROOF: usize = 16 << 10;

/// What is written to somebody; who writes to whom stands in the configuration at the time it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// One line.
    pub subject: String,
    /// What all letters about one incident, or one group, have in common.
    pub thread: Option<String>,
    /// The letter's date.
    pub decided_at: Timestamp,
    /// Lines, ended by `\n`.
    pub text: String,
}

impl Letter {
    /// Reads what is stored. What was decided while the receiver was something else is told as it is: an end must be heard.
    pub fn read(body: &[u8], now: Timestamp) -> Self {
        serde_json::from_slice(body).unwrap_or_else(|_| Self {
            subject: "[tickbird] decided before this receiver took mail".into(),
            thread: None,
            decided_at: now,
            text: String::from_utf8_lossy(body).into_owned(),
        })
    }
}

pub(super) fn of_incident(told: Told<'_>) -> Vec<u8> {
    let Told { id, kind, receiver, incident, agent, acknowledged, reason, decided_at, .. } = told;
    let state = match kind {
        SAMPLE => "TEST".into(),
        CANARY => "ALIVE".into(),
        _ => state(kind, "incident."),
    };
    let mut text = format!("{}\n\n", plain(&incident.summary));
    text += &about(incident, agent);
    if incident.status == Status::Firing
        && let Some(advice) = &incident.advice
    {
        text += &format!("\nWhat to do: {}\n", plain(advice));
    }
    let proof = proof(&incident.evidence);
    if !proof.is_empty() {
        text += &format!("\nProof:\n{proof}");
    }
    if incident.evidence_lost {
        text += "\nPart of the proof was too long to be kept.\n";
    }
    if let Some(it) = acknowledged {
        text += &format!("\nAcknowledged by {}.\n", plain(&it.owner));
    }
    text += &format!("\nTold to {receiver}: {}.\n", plain(reason));
    if ![SAMPLE, CANARY].contains(&kind) {
        text += &format!("Who else was told, and why: tickbird-collector explain {}\n", incident.id);
    }
    text += &format!("Message {id}\n");
    let subject = format!("[{state}] {}", title(incident, agent, LONGEST_OF_SUBJECT));
    bytes(&Letter { subject, thread: Some(incident.id.clone()), decided_at, text })
}

pub(super) fn of_group(told: &GroupTold<'_>) -> Vec<u8> {
    let severity = told.severity.map_or("", Severity::as_str);
    let summary: String = plain(&told.summary);
    let mut text = format!("{summary}\n");
    text.extend(told.parts.iter().take(SHOWN).map(one));
    if told.parts.len() > SHOWN {
        text += &format!("\n{} more are not shown.\n", told.parts.len() - SHOWN);
        // Who was told of one by name is told of its end by name.
        for (_, incident, agent) in told.further_ends(SHOWN).take(ENDS) {
            text += &format!("over, too: {}, incident {}\n", title(incident, *agent, LONGEST), incident.id);
        }
    }
    text += &format!("\nTold to {}: {}.\n", told.group.receiver, plain(&told.reason));
    text += &format!("Group {} of route {}\nMessage {}\n", told.group.id, plain(&told.group.route), told.id);
    let summary: String = summary.chars().take(2 * LONGEST_OF_SUBJECT).collect();
    let subject = format!("[{}] {severity} {summary}", state(told.kind, "group."));
    let letter = Letter { subject, thread: Some(told.group.id.clone()), decided_at: told.decided_at, text };
    bytes(&letter)
}

fn one((change, incident, agent): &Part<'_>) -> String {
    let change = change.trim_start_matches("incident.");
    let title = title(incident, *agent, LONGEST);
    format!(
        "\n* {change}: {title}\n  {}\n  since {}, incident {}{}\n",
        plain(&incident.summary),
        time(incident.since),
        incident.id,
        if incident.status == Status::Firing { format!(", priority {}", priority(incident)) } else { String::new() }
    )
}

/// `incident.firing` is `FIRING`.
fn state(kind: &str, of: &str) -> String {
    kind.strip_prefix(of).unwrap_or(kind).to_uppercase()
}

fn title(incident: &IncidentRow, agent: Option<&AgentRow>, longest: usize) -> String {
    let short = |text: &str| plain(text).chars().take(longest).collect::<String>();
    let host = agent.map(|it| format!(" on {}", short(&it.host))).unwrap_or_default();
    let flaps = if incident.flaps() { " (flapping)" } else { "" };
    format!("{} {} of {}{host}{flaps}", incident.severity, short(&incident.check), short(&incident.target))
}

fn about(incident: &IncidentRow, agent: Option<&AgentRow>) -> String {
    let mut lines = vec![
        ("what", format!("{}, {}, {}", plain(&incident.check), incident.severity, incident.status)),
        ("where", plain(&incident.target)),
    ];
    if let Some(part) = &incident.sub_key {
        lines.push(("part", plain(part)));
    }
    if let Some(agent) = agent {
        lines.push(("host", plain(&agent.host)));
        let labels: Vec<_> = agent.labels().iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !labels.is_empty() {
            lines.push(("labels", plain(&labels.join(", "))));
        }
    }
    lines.push(("since", time(incident.since)));
    if let Some(at) = incident.resolved_at.filter(|_| incident.status == Status::Resolved) {
        let why = incident.resolved_reason.as_deref().map(|it| format!(": {}", plain(it))).unwrap_or_default();
        lines.push(("over", format!("{}{why}", time(at))));
    }
    if incident.occurrences > 1 {
        lines.push(("times", incident.occurrences.to_string()));
    }
    if incident.status == Status::Firing {
        lines.push(("priority", priority(incident).to_string()));
    }
    lines.push(("incident", incident.id.clone()));
    lines.into_iter().map(|(name, value)| format!("{name:9} {value}\n")).collect()
}

/// Evidence as lines: whoever reads it on a telephone reads no JSON.
fn proof(evidence: &str) -> String {
    let Ok(Value::Object(members)) = serde_json::from_str(evidence) else { return String::new() };
    let mut text = String::new();
    for (name, value) in members {
        match value {
            Value::Array(entries) if entries.iter().any(|it| it.is_object() || it.is_array()) => {
                text += &format!("  {}:\n", plain(&name));
                for entry in entries.iter().take(ENTRIES) {
                    text += &format!("    - {}\n", inline(entry));
                }
                if entries.len() > ENTRIES {
                    text += &format!("    and {} more\n", entries.len() - ENTRIES);
                }
            }
            value => text += &format!("  {}: {}\n", plain(&name), inline(&value)),
        }
        if text.len() > PROOF {
            return text + "  and more, in the API\n";
        }
    }
    text
}

/// `pid 4711, state idle`
fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        Value::Array(entries) => entries.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            let of = |(name, value): (&String, &Value)| format!("{} {}", plain(name), inline(value));
            members.iter().map(of).collect::<Vec<_>>().join(", ")
        }
        Value::Null => "not known".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Number(number) => number.to_string(),
    }
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Text from outside in one line, and no longer than is read.
fn plain(text: &str) -> String {
    text.chars().take(LONGEST).map(|it| if it.is_control() { ' ' } else { it }).collect()
}
