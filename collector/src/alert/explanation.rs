//! Everything that was decided about an incident, as one document.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tickbird_shared::Timestamp;

use super::message::{PriorityDocument, priority};
use super::route::{Facts, Route, facts};
use super::silence::Silence;
use crate::aggregate::Priority;
use crate::store::{
    AcknowledgementRow, DecisionRow, EscalationRow, Gathering, IncidentRow, OutboxRow, Rows, SilenceRow, StoreError,
};

/// Decisions that are shown, the newest.
const SHOWN: u32 = 1_000;
/// Acknowledgements, the newest.
const OWNERS: u32 = 100;
/// Silences of its time that are asked whether they are about it.
const SILENCES: u32 = 10_000;
/// Of each group, messages in which nothing was new.
const REPEATS: u32 = 100;

/// Who was told what of an incident and why, or why not, in order, and what they answered.
#[derive(Debug)]
pub struct Explanation {
    /// The incident.
    pub incident: IncidentRow,
    /// What was decided, the oldest first.
    pub decisions: Vec<DecisionRow>,
    /// Messages of these decisions that are still kept, by their ids.
    pub messages: BTreeMap<String, OutboxRow>,
    /// The groups that it was told with.
    pub gathering: Gathering,
    /// By the ids of these groups, and of those that are over: the labels that all of a group have in common because the route groups by them.
    /// A group is not here that is over, and that the routes of an earlier configuration, or other labels of the agent, made.
    pub groupings: BTreeMap<String, Facts>,
    /// Whose it was, and is, the oldest first.
    pub acknowledgements: Vec<AcknowledgementRow>,
    /// What held it back while it fired, or does, or will, the oldest first: also what was not told again meanwhile, which is no decision.
    pub silences: Vec<SilenceRow>,
    /// How far it has come with the steps of the routes that told it, while it fires.
    pub escalations: Vec<EscalationRow>,
}

/// One thing that happened to an incident, with its place in the list that it stands in.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// Somebody took it.
    Acknowledged(usize, &'a AcknowledgementRow),
    /// Nobody has it any more.
    GivenBack(usize, &'a AcknowledgementRow),
    /// From then on a silence was about it.
    Silenced(usize, &'a SilenceRow),
    /// Somebody was told of it, or was not.
    Decided(usize, &'a DecisionRow),
    /// It was told again while nothing was new.
    Repeated(usize, &'a OutboxRow),
}

impl Entry<'_> {
    /// The member of the document that it stands in, where in it, and what happened.
    const fn place(self) -> (&'static str, usize, &'static str) {
        match self {
            Self::Acknowledged(index, _) => ("acknowledgements", index, "acknowledged"),
            Self::GivenBack(index, _) => ("acknowledgements", index, "acknowledgement_over"),
            Self::Silenced(index, _) => ("silences", index, "silenced"),
            Self::Decided(index, _) => ("decisions", index, "decided"),
            Self::Repeated(index, _) => ("repeats", index, "repeated"),
        }
    }
}

impl Explanation {
    /// All of it in one order, the oldest first.
    pub fn timeline(&self) -> Vec<(Timestamp, Entry<'_>)> {
        let taken = self.acknowledgements.iter().enumerate().flat_map(|(index, it)| {
            let over = it.over_at.map(|at| (at, Entry::GivenBack(index, it)));
            [(it.created_at, Entry::Acknowledged(index, it))].into_iter().chain(over)
        });
        let silenced = self.silences.iter().enumerate().map(|(index, it)| (it.starts_at, Entry::Silenced(index, it)));
        let decided = self.decisions.iter().enumerate().map(|(index, it)| (it.decided_at, Entry::Decided(index, it)));
        let repeats = self.gathering.repeats.iter().enumerate();
        let repeated = repeats.map(|(index, it)| (it.decided_at, Entry::Repeated(index, it)));
        let mut all: Vec<_> = taken.chain(silenced).chain(decided).chain(repeated).collect();
        all.sort_by_key(|(at, _)| *at);
        all
    }

    /// Reads all of it; none where there is no such incident. `top` is the top of the routes as they are configured.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn read(rows: Rows<'_>, tenant: &str, incident: &str, top: Option<&Route>) -> Result<Option<Self>, StoreError> {
        let Some(incident) = rows.incident(tenant, incident)? else { return Ok(None) };
        let decisions = rows.newest_decisions(tenant, &incident.id, SHOWN)?;
        let messages = rows.messages_of(&decisions)?;
        let gathering = rows.groups_of(&decisions, REPEATS)?;
        let facts = facts(&incident, rows.agent(tenant, &incident.agent)?.as_ref());
        let mut groupings = BTreeMap::new();
        for id in decisions.iter().filter_map(|it| it.in_group.as_ref()) {
            if !groupings.contains_key(id) {
                let kept = || gathering.groups.get(id).map(|it| it.labels.clone());
                let found = top.and_then(|it| it.labels_of_group(id, &incident, &facts)).or_else(kept);
                groupings.extend(found.map(|labels| (id.clone(), labels)));
            }
        }
        let acknowledgements = rows.acknowledgements_of(tenant, &incident.id, OWNERS)?;
        let escalations = rows.escalations_of(tenant, &incident.id)?;
        let mut silences = rows.silences_since(tenant, incident.opened_at, SILENCES)?;
        silences.retain(|it| {
            let is_of_its_time = incident.resolved_at.is_none_or(|over| it.starts_at < over);
            is_of_its_time && Silence::new(it.clone()).is_ok_and(|it| it.matches(&facts))
        });
        Ok(Some(Self { incident, decisions, messages, gathering, groupings, acknowledgements, silences, escalations }))
    }

    /// When a decision is told that waits for the next message of its group; none of one that does not.
    pub fn gathered<'a>(&'a self, decision: &DecisionRow) -> Option<&'a crate::store::GroupRow> {
        let group = decision.in_group.as_ref().filter(|_| !decision.told)?;
        self.gathering.groups.get(group)
    }

    /// What to look at first.
    pub fn priority(&self) -> Priority {
        priority(&self.incident)
    }

    /// As the API and `--json` show it.
    pub fn document(&self) -> Value {
        let Self { incident, decisions, messages, gathering, groupings, acknowledgements, silences, escalations } =
            self;
        let of = |it: &DecisionRow| {
            let message = it.message.as_ref().map(|id| {
                let due = self.gathered(it).map(|group| group.due_at);
                message(id, messages.get(id), due.is_some().then_some("gathered"))
            });
            json!({
                "decided_at": it.decided_at,
                "receiver": (!it.receiver.is_empty()).then_some(&it.receiver),
                "state_epoch": it.state_epoch,
                "kind": it.kind,
                "told": it.told,
                "reason": it.reason,
                "group": it.in_group,
                "grouped_by": it.in_group.as_ref().and_then(|id| groupings.get(id)),
                "due_at": self.gathered(it).and_then(|group| group.due_at),
                "message": message,
            })
        };
        let again = |it: &OutboxRow| {
            json!({
                "decided_at": it.decided_at,
                "receiver": it.receiver,
                "kind": it.kind,
                "group": it.incident,
                "message": message(&it.id, Some(it), None),
            })
        };
        let owner = |it: &AcknowledgementRow| {
            json!({
                "id": it.id,
                "by": it.owner,
                "note": it.note,
                "at": it.created_at,
                "until": it.ends_at,
                "over_at": it.over_at,
                "over_why": it.over_why,
            })
        };
        let silence = |it: &SilenceRow| {
            json!({
                "id": it.id,
                "by": it.author,
                "reason": it.reason,
                "from": it.starts_at,
                "until": it.ends_at,
            })
        };
        let entry = |(at, it): (Timestamp, Entry<'_>)| {
            let (list, index, what) = it.place();
            json!({ "at": at, "what": what, "in": list, "index": index })
        };
        let escalation = |it: &EscalationRow| json!({ "receiver": it.receiver, "since": it.since, "steps": it.steps });
        json!({
            "incident": {
                "id": incident.id,
                "fingerprint": incident.fingerprint.to_string(),
                "check": incident.check,
                "target": incident.target,
                "agent": incident.agent,
                "status": incident.status,
                "severity": incident.severity,
                "priority": PriorityDocument::from(priority(incident)),
                "summary": incident.summary,
                "opened_at": incident.opened_at,
                "resolved_at": incident.resolved_at,
                "resolved_reason": incident.resolved_reason,
                "occurrences": incident.occurrences,
            },
            "timeline": self.timeline().into_iter().map(entry).collect::<Vec<_>>(),
            "truncated": decisions.len() >= SHOWN as usize,
            "decisions": decisions.iter().map(of).collect::<Vec<_>>(),
            "acknowledgements": acknowledgements.iter().map(owner).collect::<Vec<_>>(),
            "silences": silences.iter().map(silence).collect::<Vec<_>>(),
            "escalations": escalations.iter().map(escalation).collect::<Vec<_>>(),
            "repeats": gathering.repeats.iter().map(again).collect::<Vec<_>>(),
        })
    }
}

fn message(id: &str, row: Option<&OutboxRow>, state: Option<&str>) -> Value {
    json!({
        "id": id,
        "state": row.map(|it| it.state.as_str()).or(state),
        "attempts": row.map(|it| it.attempts),
        "uncertain": row.map(|it| it.uncertain),
        "settled_at": row.and_then(|it| it.settled_at),
        "answer": row.and_then(OutboxRow::answer),
        "last_error": row.and_then(OutboxRow::last_error),
        "failures": row.map(OutboxRow::failures),
    })
}
