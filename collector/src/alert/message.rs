//! What a receiver is told: one JSON document, rendered once when it is decided, in the receiver's own form. The API shows incidents in
//! ours.

mod alertmanager;
mod email;
mod head;
mod samples;
mod slack;
mod template;
mod words;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use tickbird_shared::{Labels, Severity, Status, Timestamp};

use crate::aggregate::Priority;
use crate::store::{AcknowledgementRow, AgentRow, GroupRow, IncidentRow, OutboxRow};

use super::acknowledgement::AcknowledgementDocument;
use super::group::in_words;
use super::route::{Facts, common};
use super::{Found, Kind, Receiver};

pub(super) use alertmanager::labels as alert_labels;
pub use alertmanager::{Known, refresh, requests_of};
pub use email::Letter;
pub use head::Head;
pub use template::{Template, TemplateError};
pub use words::{METHODS, Words};

/// Version of the document; a member may be added without a new one.
const VERSION: u32 = 1;
/// Type of a message of a group in which nothing is new.
pub(super) const REPEATED: &str = "group.repeated";
/// Incidents of a group that its message tells in full, at most so many and not much more than so many bytes: whoever takes messages
/// often takes no more than a mebibyte.
const IN_FULL: usize = 100;
const BYTES_IN_FULL: usize = 256 << 10;
/// Further ones that it names, and
const IN_BRIEF: usize = 500;
/// of what is over so many, before all others: who was told of one by name is told of its end by name.
const ENDS_IN_BRIEF: usize = 2_000;
/// All of these together take no more than so many bytes.
const BYTES_IN_BRIEF: usize = 600 << 10;
/// What is said of an incident of a group of which nothing is new.
const UNCHANGED: &str = "unchanged";
/// Type and check of what only tries a receiver.
const SAMPLE: &str = "receiver.test";

/// What a receiver understands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Form {
    /// Our own document, signed in the Standard Webhooks form.
    #[default]
    Own,
    /// An incoming webhook of Slack, and of whatever takes the same.
    Slack,
    /// A letter.
    Email,
    /// A list of Alertmanager's alerts.
    Alertmanager,
    /// Words of the operator's own, over our document.
    Words(Words),
}

impl Form {
    /// The kind of receiver that understands it, as a configuration names it. What a webhook understands its operator says.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Own | Self::Words(_) => "webhook",
            Self::Slack => "slack",
            Self::Email => "email",
            Self::Alertmanager => "alertmanager",
        }
    }
}

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
    flapping: Option<FlappingDocument>,
    acknowledged: Option<AcknowledgementDocument<'a>>,
}

/// That it goes away and comes back too often to tell of each time.
#[derive(Debug, Serialize)]
struct FlappingDocument {
    since: Timestamp,
    /// Since when it has gone away for now.
    calm_since: Option<Timestamp>,
}

impl FlappingDocument {
    fn of(row: &IncidentRow) -> Option<Self> {
        let flap = row.flap.as_ref().filter(|_| row.flaps())?;
        Some(Self { since: flap.since?, calm_since: flap.calm_since })
    }
}

/// The first is the product of the other two numbers.
#[derive(Debug, Serialize)]
pub(super) struct PriorityDocument {
    value: f64,
    impact: &'static str,
    weight: f64,
    probability: f64,
}

impl From<Priority> for PriorityDocument {
    fn from(it: Priority) -> Self {
        let (impact, weight) = (it.impact.as_str(), it.impact.weight());
        Self { value: it.value(), impact, weight, probability: it.probability() }
    }
}

/// Who judged it. Host and labels are unknown of an agent that was forgotten.
#[derive(Debug, Serialize)]
pub struct AgentDocument<'a> {
    id: &'a str,
    host: Option<&'a str>,
    labels: Labels,
}

pub(super) fn priority(incident: &IncidentRow) -> Priority {
    Priority::of(&incident.check, incident.occurrences)
}

impl<'a> IncidentDocument<'a> {
    /// The document of a row, with what is known of its agent, and whose it is.
    pub fn new(
        row: &'a IncidentRow,
        agent: Option<&'a AgentRow>,
        acknowledged: Option<&'a AcknowledgementRow>,
    ) -> Self {
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
            priority: priority(row).into(),
            since: row.since,
            opened_at: row.opened_at,
            updated_at: row.updated_at,
            resolved_at: row.resolved_at,
            resolved_reason: row.resolved_reason.as_deref(),
            occurrences: row.occurrences,
            flapping: FlappingDocument::of(row),
            acknowledged: acknowledged.map(AcknowledgementDocument::from),
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
pub fn sample(tenant: &str, receiver: &Receiver, now: Timestamp) -> (String, Vec<u8>) {
    let incident = samples::incident(tenant, &receiver.name, now);
    let id = format!("msg_{}", incident.id);
    let told = Told {
        id: &id,
        kind: SAMPLE,
        receiver: &receiver.name,
        reason: "somebody asked for a test",
        incident: &incident,
        agent: None,
        acknowledged: None,
        known: None,
        decided_at: now,
    };
    let body = told.render(&receiver.form);
    (id, body)
}

#[derive(Debug, Serialize)]
struct GroupMessage<'a> {
    version: u32,
    id: &'a str,
    r#type: &'a str,
    receiver: &'a str,
    decided_at: Timestamp,
    reason: &'a str,
    group: GroupDocument<'a>,
    incidents: Vec<Member<'a>>,
    others: Vec<Brief<'a>>,
    left_out: usize,
}

/// What is true of the whole group.
#[derive(Debug, Serialize)]
struct GroupDocument<'a> {
    id: &'a str,
    route: &'a str,
    labels: &'a BTreeMap<String, String>,
    common: Facts,
    status: Status,
    severity: Option<Severity>,
    firing: usize,
    held: usize,
    resolved: usize,
    summary: &'a str,
}

#[derive(Debug, Serialize)]
struct Member<'a> {
    change: &'static str,
    incident: IncidentDocument<'a>,
}

#[derive(Debug, Serialize)]
struct Brief<'a> {
    change: &'static str,
    id: &'a str,
    fingerprint: String,
    status: Status,
    severity: Severity,
    check: &'a str,
    target: &'a str,
    priority: PriorityDocument,
}

/// One incident of a message of a group, and what is said of it.
type Part<'a> = (&'static str, &'a IncidentRow, Option<&'a AgentRow>);

/// What a message of a group is made of.
pub(super) struct Parts<'a> {
    /// What is said of what changed.
    pub(super) changed: &'a [(Kind, &'a Found<'a>)],
    /// What else of it fires.
    pub(super) others: &'a [Found<'a>],
    /// What fires besides, was told before and is held back now.
    pub(super) held: usize,
    /// By what the receiver knows an incident.
    pub(super) known: &'a dyn Fn(&IncidentRow) -> Option<Known>,
}

/// What is told of a group: what changed of it, and what else of it fires. The gravest comes first, what is new before what is known.
struct GroupTold<'a> {
    id: &'a str,
    kind: &'static str,
    reason: String,
    group: &'a GroupRow,
    parts: Vec<Part<'a>>,
    firing: usize,
    held: usize,
    resolved: usize,
    summary: String,
    severity: Option<Severity>,
    known: &'a dyn Fn(&IncidentRow) -> Option<Known>,
    decided_at: Timestamp,
}

/// The message of a group, for the outbox.
pub(super) fn of_group(id: String, group: &GroupRow, parts: &Parts<'_>, form: &Form, now: Timestamp) -> OutboxRow {
    let told = GroupTold::new(&id, group, parts, now);
    let (kind, body) = (told.kind.to_owned(), told.render(form));
    OutboxRow::queued(&group.tenant, id, &group.receiver, group.id.clone(), (&kind, form.kind(), body), now)
}

impl<'a> GroupTold<'a> {
    fn new(
        id: &'a str,
        group: &'a GroupRow,
        &Parts { changed, others, held, known: known_by }: &Parts<'a>,
        decided_at: Timestamp,
    ) -> Self {
        let (over, fires): (Vec<_>, Vec<_>) = changed.iter().partition(|(kind, _)| *kind == Kind::Resolved);
        let part = |(kind, (row, agent)): &&'a (Kind, &'a Found<'a>)| (kind.as_str(), &**row, *agent);
        let known = others.iter().map(|(row, agent)| (UNCHANGED, &**row, *agent));
        let mut parts: Vec<Part<'a>> = fires.iter().chain(&over).map(part).chain(known).collect();
        let rank = |(change, row, _): &Part<'_>| (*change == UNCHANGED, row.status != Status::Firing);
        parts.sort_by_key(|it| (rank(it), std::cmp::Reverse(it.1.severity)));
        let (firing, resolved) = (fires.len() + others.len() + held, over.len());
        let is_news = fires.iter().any(|(kind, _)| *kind != Kind::Updated);
        let (kind, reason) = match firing {
            0 => ("group.resolved", format!("nothing of it fires any more: {resolved} are over")),
            _ if changed.is_empty() => (REPEATED, "nothing is new, and it still fires".to_owned()),
            _ if is_news => ("group.firing", format!("{} changed", changed.len())),
            _ => ("group.updated", format!("{} changed", changed.len())),
        };
        let mut told = Self {
            id,
            kind,
            reason,
            group,
            parts,
            firing,
            held,
            resolved,
            summary: String::new(),
            severity: None,
            known: known_by,
            decided_at,
        };
        told.severity = told.about().map(|it| it.1.severity).max();
        let words = in_words(told.about().map(|it| it.1));
        let back = if held > 0 { format!(" ({held} of them held back)") } else { String::new() };
        told.summary = match (firing, resolved) {
            (0, _) => format!("{resolved} resolved: {words}"),
            (_, 0) => format!("{firing} firing{back}: {words}"),
            _ => format!("{firing} firing{back}, {resolved} resolved: {words}"),
        };
        told
    }

    /// What fires is what the group is about; where none of that is shown, it is about what is over.
    fn about(&self) -> impl Iterator<Item = &Part<'a>> {
        let fires = |it: &Part<'_>| it.1.status == Status::Firing;
        let is_over = !self.parts.iter().any(fires);
        self.parts.iter().filter(move |it| is_over || fires(it))
    }

    fn render(&self, form: &Form) -> Vec<u8> {
        match form {
            Form::Own => bytes(&self.document()),
            Form::Slack => slack::of_group(self),
            Form::Email => email::of_group(self),
            Form::Alertmanager => alertmanager::of_group(self),
            Form::Words(words) => words.render(&self.document()),
        }
    }

    /// What is over and not among the first so many, which are told in full.
    fn further_ends(&self, in_full: usize) -> impl Iterator<Item = &Part<'a>> {
        self.parts.iter().skip(in_full).filter(|it| is_end(it))
    }

    /// Of many some are told in full, more are named, and all are counted.
    fn document(&self) -> GroupMessage<'_> {
        let mut bytes = 0;
        let fits = |(_, row, agent): &&Part<'a>| {
            let labels: usize =
                agent.map_or(0, |it| it.labels().iter().map(|(name, value)| name.len() + value.len()).sum());
            let texts = row.summary.len() + row.advice.as_ref().map_or(0, String::len);
            bytes += row.evidence.len() + texts + labels;
            bytes <= BYTES_IN_FULL
        };
        let in_full = self.parts.iter().take(IN_FULL).take_while(fits).count();
        // What is somebody's is not told with its group.
        let document = |row, agent| IncidentDocument::new(row, agent, None);
        let full = |(change, row, agent): &Part<'a>| Member { change, incident: document(row, *agent) };
        let brief = |(change, row, _): &Part<'a>| Brief {
            change,
            id: &row.id,
            fingerprint: row.fingerprint.to_string(),
            status: row.status,
            severity: row.severity,
            check: &row.check,
            target: &row.target,
            priority: priority(row).into(),
        };
        let ends = self.further_ends(in_full).take(ENDS_IN_BRIEF);
        let rest = self.parts.iter().skip(in_full).filter(|it| !is_end(it)).take(IN_BRIEF);
        let mut bytes = 0;
        let fits = |it: &Brief<'_>| {
            bytes += serde_json::to_vec(it).map_or(0, |it| it.len() + 1);
            bytes <= BYTES_IN_BRIEF
        };
        let others: Vec<_> = ends.chain(rest).map(brief).take_while(fits).collect();
        GroupMessage {
            version: VERSION,
            id: self.id,
            r#type: self.kind,
            receiver: &self.group.receiver,
            decided_at: self.decided_at,
            reason: &self.reason,
            group: GroupDocument {
                id: &self.group.id,
                route: &self.group.route,
                labels: &self.group.labels,
                common: common(self.about().map(|(_, row, agent)| (*row, *agent))),
                status: if self.firing == 0 { Status::Resolved } else { Status::Firing },
                severity: self.severity,
                firing: self.firing,
                held: self.held,
                resolved: self.resolved,
                summary: &self.summary,
            },
            incidents: self.parts.iter().take(in_full).map(full).collect(),
            left_out: self.parts.len().saturating_sub(in_full + others.len()),
            others,
        }
    }
}

fn is_end((_, row, _): &Part<'_>) -> bool {
    row.status == Status::Resolved
}

/// What is told of one incident.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) id: &'a str,
    /// `incident.firing` and so on.
    pub(super) kind: &'a str,
    pub(super) receiver: &'a str,
    pub(super) reason: &'a str,
    pub(super) incident: &'a IncidentRow,
    pub(super) agent: Option<&'a AgentRow>,
    /// Who has it.
    pub(super) acknowledged: Option<&'a AcknowledgementRow>,
    /// By what the receiver knows it.
    pub(super) known: Option<&'a Known>,
    pub(super) decided_at: Timestamp,
}

impl Told<'_> {
    /// The bytes of a message.
    pub(super) fn render(self, form: &Form) -> Vec<u8> {
        match form {
            Form::Own => bytes(&self.document()),
            Form::Slack => slack::of_incident(self),
            Form::Email => email::of_incident(self),
            Form::Alertmanager => alertmanager::of_incident(self),
            Form::Words(words) => words.render(&self.document()),
        }
    }

    fn document(&self) -> Message<'_> {
        Message {
            version: VERSION,
            id: self.id,
            r#type: self.kind,
            receiver: self.receiver,
            decided_at: self.decided_at,
            reason: self.reason,
            incident: IncidentDocument::new(self.incident, self.agent, self.acknowledged),
        }
    }
}

fn bytes(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("texts, numbers and checked JSON serialise")
}
