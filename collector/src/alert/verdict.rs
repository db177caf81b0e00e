//! What one receiver hears of one change: what kind of message, and why, or why none.

use super::{Receiver, Route};
use crate::aggregate::{ChangeKind, IncidentChange, is_about};
use crate::store::IncidentRow;

/// What a message says happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Firing,
    Worsened,
    Eased,
    Updated,
    /// It fires as it did, and nobody owns it any more.
    Repeated,
    /// It was told to others, and nobody has it.
    Escalated,
    Resolved,
}

impl Kind {
    pub(super) const ALL: [Self; 7] =
        [Self::Firing, Self::Worsened, Self::Eased, Self::Updated, Self::Repeated, Self::Escalated, Self::Resolved];

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == name)
    }

    /// What can be held back, the gravest last. Whatever got worse or better, nobody has it any more.
    pub(super) const HELD: [Self; 4] = [Self::Updated, Self::Worsened, Self::Repeated, Self::Firing];

    /// The graver of two that are held back.
    pub(super) fn graver(self, other: Self) -> Self {
        let weight = |it| Self::HELD.iter().position(|held| *held == it);
        if weight(other) > weight(self) { other } else { self }
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "incident.firing",
            Self::Worsened => "incident.worsened",
            Self::Eased => "incident.eased",
            Self::Updated => "incident.updated",
            Self::Repeated => "incident.repeated",
            Self::Escalated => "incident.escalated",
            Self::Resolved => "incident.resolved",
        }
    }
}

/// How an incident leads to a receiver.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way<'a> {
    /// There are no routes: it leads to everybody.
    All,
    /// By this route.
    By(&'a Route),
    /// By none.
    None,
}

/// Why a receiver does not hear of an incident as it is now, whatever happens to it.
pub(super) fn deaf(incident: &IncidentRow, receiver: &Receiver, way: Way<'_>) -> Option<String> {
    if matches!(way, Way::None) {
        Some("no route leads there".into())
    } else if is_about(incident, &receiver.name) {
        Some("it is about this receiver itself, which would hear of it once it is over".into())
    } else {
        receiver.does_not_want(&incident.check, incident.severity)
    }
}

/// What one receiver hears of a change: what kind of message, and why, or why none. `held` is what was held back from it.
pub(super) fn judge(
    change: &IncidentChange,
    receiver: &Receiver,
    believes: bool,
    held: Option<Kind>,
    way: Way<'_>,
) -> (Kind, Result<String, String>) {
    let incident = &change.incident;
    let kind = match change.kind {
        ChangeKind::Resolved => {
            let verdict = if believes { Ok(change.reason.clone()) } else { Err("was not told that it fires".into()) };
            return (Kind::Resolved, verdict);
        }
        // A first telling is that it fires, whatever happened before in silence.
        _ if !believes => Kind::Firing,
        ChangeKind::Opened | ChangeKind::Reopened => Kind::Firing,
        ChangeKind::Worsened => Kind::Worsened,
        ChangeKind::Eased => Kind::Eased,
        ChangeKind::Unacknowledged => Kind::Repeated,
        ChangeKind::Updated
        | ChangeKind::Refreshed
        | ChangeKind::Reconsidered
        | ChangeKind::Acknowledged
        | ChangeKind::Flapped
        | ChangeKind::Escalated => Kind::Updated,
    };
    // What it missed is told with what it hears next, unless that took it back.
    let kind = match held {
        // Nobody has it any more, or it came back: that it is better than then takes back neither.
        Some(held @ (Kind::Repeated | Kind::Firing)) if kind == Kind::Eased => held,
        Some(held) if kind != Kind::Eased => kind.graver(held),
        _ => kind,
    };
    // Whoever never heard of it is told that it fires, for it leads there only since it eased.
    let eased = change.kind == ChangeKind::Eased && believes && (held.is_none() || kind == Kind::Eased);
    let silent = match deaf(incident, receiver, way) {
        None if eased => Some(format!("nobody is told that a fault eased ({})", change.reason)),
        deaf => deaf,
    };
    let told = || match way {
        Way::By(route) => format!("{}, by {}", change.reason, route.at),
        Way::All | Way::None => change.reason.clone(),
    };
    (kind, silent.map_or_else(|| Ok(told()), Err))
}
