//! Acknowledgements: an incident is somebody's for a while. Nobody hears of it meanwhile, but that it got worse than its owner has
//! seen, and that it is over. At the end whoever was told that it fires is told again, if it still does.

use serde::Serialize;
use tickbird_shared::{Status, Timestamp};
use ulid::Ulid;

use super::State;
use crate::aggregate::IncidentChange;
use crate::store::{AcknowledgementRow, IncidentRow};

/// What holds back begins with it where it is an acknowledgement.
pub(super) const ACKNOWLEDGED: &str = "ack_";
/// How a decision calls what was decided when somebody took an incident.
pub(super) const KIND: &str = "incident.acknowledged";
/// Ends that are noticed at once.
const AT_ONCE: usize = 500;

/// An acknowledgement as receivers and callers of the API and the command line see it.
#[derive(Debug, Serialize)]
pub struct AcknowledgementDocument<'a> {
    id: &'a str,
    by: &'a str,
    note: Option<&'a str>,
    at: Timestamp,
    until: Timestamp,
}

impl<'a> From<&'a AcknowledgementRow> for AcknowledgementDocument<'a> {
    fn from(row: &'a AcknowledgementRow) -> Self {
        Self { id: &row.id, by: &row.owner, note: row.note.as_deref(), at: row.created_at, until: row.ends_at }
    }
}

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// A new one.
    pub id: Ulid,
    /// Tenant of the incident.
    pub tenant: String,
    /// Its id.
    pub incident: String,
    /// Who owns it from now on.
    pub owner: String,
    /// What they want to say.
    pub note: Option<String>,
    /// Until when.
    pub ends_at: Timestamp,
}

/// Why an incident is not acknowledged, or goes on being so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AcknowledgementError {
    /// No such incident.
    #[error("there is no incident of this id")]
    Unknown,
    /// Nothing is left to own.
    #[error("the incident does not fire any more")]
    NotFiring,
    /// No time is left.
    #[error("it would end before now")]
    Over,
    /// There is none to end.
    #[error("nobody has acknowledged this incident, or not for now")]
    NoneHolds,
}

impl AcknowledgementError {
    /// What to do instead.
    pub const fn advice(self) -> Option<&'static str> {
        match self {
            Self::Unknown => Some("take the id from a message, or from GET /v1/incidents"),
            Self::NotFiring | Self::NoneHolds => None,
            Self::Over => Some("give an end that is to come"),
        }
    }
}

impl Ask {
    /// For how long an incident is somebody's who does not say: a shift. Until it is over would be for ever where nobody looks again.
    pub const LENGTH: std::time::Duration = std::time::Duration::from_secs(8 * 3600);

    /// What to write, given the incident that it is about.
    ///
    /// # Errors
    /// When that is unknown or over, or the end has passed.
    pub fn of(
        self,
        incident: Option<&IncidentRow>,
        now: Timestamp,
    ) -> Result<AcknowledgementRow, AcknowledgementError> {
        let incident = incident.ok_or(AcknowledgementError::Unknown)?;
        // As it is stored.
        let stored = |at: Timestamp| Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at);
        let (now, ends_at) = (stored(now), stored(self.ends_at));
        if incident.status != Status::Firing {
            return Err(AcknowledgementError::NotFiring);
        }
        if ends_at <= now {
            return Err(AcknowledgementError::Over);
        }
        Ok(AcknowledgementRow {
            tenant: self.tenant,
            incident: self.incident,
            id: format!("{ACKNOWLEDGED}{}", self.id),
            owner: self.owner,
            note: self.note,
            severity: incident.worst(),
            created_at: now,
            ends_at,
            taken_at: None,
            over_why: None,
            over_at: None,
        })
    }
}

impl AcknowledgementRow {
    /// Why nobody is told, for the record.
    pub fn why(&self) -> String {
        let Self { id, owner, ends_at, note, .. } = self;
        let note = note.as_deref().map(|it| format!(": {it}")).unwrap_or_default();
        format!("acknowledged until {ends_at} by {owner}{note} ({id})")
    }

    /// Why it is over, for the record.
    pub fn ended(&self) -> String {
        let why = self.over_why.as_deref().unwrap_or("its time has passed");
        format!("the acknowledgement of {} has ended: {why} ({})", self.owner, self.id)
    }

    /// The same with its end noticed.
    #[must_use]
    pub fn over(mut self, why: Option<&str>, now: Timestamp) -> Self {
        self.over_why = self.over_why.or_else(|| why.map(str::to_owned));
        self.over_at = Some(now);
        self
    }

    /// Whether an incident as it is now is none that its owner has seen.
    pub fn is_outgrown(&self, incident: &IncidentRow) -> bool {
        incident.severity > self.severity
    }
}

impl State {
    /// The same with what is somebody's, as stored.
    #[must_use]
    pub fn with_acknowledgements(mut self, rows: Vec<AcknowledgementRow>) -> Self {
        self.take_acknowledgements(rows);
        self
    }

    /// Takes those whose end was not noticed yet, in place of those that are known.
    pub fn take_acknowledgements(&mut self, rows: Vec<AcknowledgementRow>) {
        self.acknowledgements = rows.into_iter().map(|it| ((it.tenant.clone(), it.incident.clone()), it)).collect();
    }

    /// Whether somebody has an incident, as far as was taken over.
    pub fn has_owner(&self, tenant: &str, incident: &str) -> bool {
        self.acknowledgements.contains_key(&(tenant.to_owned(), incident.to_owned()))
    }

    /// Takes out those whose time has passed, or that somebody ended; not all of them at once.
    pub fn acknowledgements_over(&mut self, now: Timestamp) -> Vec<AcknowledgementRow> {
        let over = self.acknowledgements.extract_if(|_, it| it.ends_at <= now);
        let over: Vec<_> = over.take(AT_ONCE).map(|(_, it)| it.over(None, now)).collect();
        self.is_behind |= over.len() >= AT_ONCE;
        over
    }

    /// Takes out the one of an incident that a change ends: it got worse than its owner has seen, or is over.
    pub fn ends_acknowledgement(&mut self, change: &IncidentChange, now: Timestamp) -> Option<AcknowledgementRow> {
        // There is one change for each finding.
        if self.acknowledgements.is_empty() {
            return None;
        }
        let key = (change.incident.tenant.clone(), change.incident.id.clone());
        let row = self.acknowledgements.get(&key)?;
        let why = if change.incident.status != Status::Firing {
            "the incident is over"
        } else if row.is_outgrown(&change.incident) {
            "it got worse"
        } else {
            return None;
        };
        self.acknowledgements.remove(&key).map(|it| it.over(Some(why), now))
    }
}
