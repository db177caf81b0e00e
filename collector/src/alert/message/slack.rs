//! Slack's incoming webhooks, and whatever takes the same (Mattermost, Rocket.Chat): a line, and an attachment with the rest.

use serde::Serialize;
use tickbird_shared::{Severity, Status};

use super::{GroupTold, Part, SAMPLE, Told, bytes, priority};
use crate::aggregate::CANARY;
use crate::store::{AcknowledgementRow, AgentRow, IncidentRow};

/// Incidents of a group that are told one by one; Slack shows no more than some twenty well.
const SHOWN: usize = 20;
/// Further ends that are named, within the 40,000 letters that a text may have.
const ENDS: usize = 50;
/// Letters of one text; Slack cuts at some thousands.
const LONGEST: usize = 2_000;

#[derive(Debug, Serialize)]
struct Post {
    text: String,
    attachments: Vec<Attachment>,
}

#[derive(Debug, Serialize)]
struct Attachment {
    color: &'static str,
    fallback: String,
    text: String,
    fields: Vec<Field>,
    footer: String,
    ts: i64,
    mrkdwn_in: [&'static str; 1],
}

#[derive(Debug, Serialize)]
struct Field {
    title: &'static str,
    value: String,
    short: bool,
}

pub(super) fn of_incident(told: Told<'_>) -> Vec<u8> {
    let Told { id, kind, incident, agent, acknowledged, reason, decided_at, .. } = told;
    let state = match kind.strip_prefix("incident.") {
        Some(state) => state.to_uppercase(),
        None if kind == SAMPLE => "TEST".into(),
        None if kind == CANARY => "ALIVE".into(),
        None => kind.to_owned(),
    };
    let line = format!("[{state}] {}", title(incident, agent));
    bytes(&Post {
        text: line.clone(),
        attachments: vec![Attachment {
            color: if kind == CANARY { "good" } else { color(incident) },
            fallback: line,
            text: text(incident),
            fields: fields(incident, agent, acknowledged),
            footer: plain(&format!("{reason} | incident {} | {id}", incident.id)),
            ts: decided_at.as_second(),
            mrkdwn_in: ["text"],
        }],
    })
}

pub(super) fn of_group(told: &GroupTold<'_>) -> Vec<u8> {
    let state = told.kind.trim_start_matches("group.").to_uppercase();
    let severity = told.severity.map_or("", Severity::as_str);
    let of = |(change, incident, agent): &Part<'_>| Attachment {
        color: color(incident),
        fallback: title(incident, *agent),
        text: format!("*{}* {}\n{}", change.trim_start_matches("incident."), title(incident, *agent), text(incident)),
        fields: Vec::new(),
        footer: match incident.status {
            Status::Firing => format!("priority {} | incident {}", priority(incident), incident.id),
            Status::Resolved => format!("incident {}", incident.id),
        },
        ts: incident.updated_at.as_second(),
        mrkdwn_in: ["text"],
    };
    let mut text = format!("[{state}] {severity} {}", plain(&told.summary));
    if told.parts.len() > SHOWN {
        text += &format!("\n{} more are not shown", told.parts.len() - SHOWN);
        // Who was told of one by name is told of its end by name.
        for (_, incident, agent) in told.further_ends(SHOWN).take(ENDS) {
            text += &format!("\nover, too: {} | incident {}", title(incident, *agent), incident.id);
        }
    }
    text += &format!("\n{} | {}", told.group.id, told.id);
    bytes(&Post { text, attachments: told.parts.iter().take(SHOWN).map(of).collect() })
}

fn title(incident: &IncidentRow, agent: Option<&AgentRow>) -> String {
    let host = agent.map(|it| format!(" on {}", plain(&it.host))).unwrap_or_default();
    let flaps = if incident.flaps() { " (flapping)" } else { "" };
    format!("{} *{}* of {}{host}{flaps}", incident.severity, plain(&incident.check), plain(&incident.target))
}

fn text(incident: &IncidentRow) -> String {
    let mut text = plain(&incident.summary);
    if let Some(why) = incident.resolved_reason.as_deref().filter(|_| incident.status == Status::Resolved) {
        text += &format!("\nresolved: {}", plain(why));
    } else if let Some(advice) = &incident.advice {
        text += &format!("\n{}", plain(advice));
    }
    text
}

fn fields(incident: &IncidentRow, agent: Option<&AgentRow>, acknowledged: Option<&AcknowledgementRow>) -> Vec<Field> {
    let field = |title, value: &str| Field { title, value: plain(value), short: true };
    let mut fields = vec![field("target", &incident.target), field("since", &incident.since.to_string())];
    if incident.status == Status::Firing {
        fields.push(field("priority", &priority(incident).to_string()));
    }
    if let Some(agent) = agent {
        fields.push(field("host", &agent.host));
        let labels: Vec<_> = agent.labels().iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !labels.is_empty() {
            fields.push(field("labels", &labels.join(", ")));
        }
    }
    if let Some(it) = acknowledged {
        fields.push(field("acknowledged by", &it.owner));
    }
    fields
}

const fn color(incident: &IncidentRow) -> &'static str {
    match (incident.status, incident.severity) {
        (Status::Resolved, _) => "good",
        (Status::Firing, Severity::Critical) => "danger",
        (Status::Firing, _) => "warning",
    }
}

/// Text from outside without what Slack reads as a link, a channel or a person, and no longer than is read.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars().take(LONGEST) {
        match letter {
            '&' => plain += "&amp;",
            '<' => plain += "&lt;",
            '>' => plain += "&gt;",
            // With nothing visible behind it: nobody is called by what an agent says.
            '@' => plain += "@\u{200b}",
            it if it.is_control() => plain.push(' '),
            it => plain.push(it),
        }
    }
    plain
}
