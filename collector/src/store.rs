//! What survives: row types, one transaction, and what is kept for how long.
//!
//! One SQLite database in WAL mode with `synchronous=FULL`. Exactly one connection of a serving process writes
//! ([`Writer`], owned by the ledger); any number read ([`Readers`]). Command lines write through a [`Writer`] of their own
//! for a moment; SQLite orders them, and the ledger notices them by `data_version`.
//!
//! Invariants: the tenant is the first part of every key; times are microseconds since 1970 in UTC; a committed
//! transaction is on the disk, power cut included, when `commit` returns; a torn write leaves the transaction out.
//! This is the only folder that holds SQL. Beside the database lies a ballast, which is given up on a full disk.

mod acknowledgements;
mod agents;
mod ballast;
mod column;
mod copy;
mod dependencies;
mod escalations;
mod excesses;
mod findings;
mod flaps;
mod groups;
mod heard;
mod incidents;
mod lanes;
mod levels;
mod log;
mod migrate;
mod mover;
mod newest;
mod outbox;
mod readers;
mod repair;
mod retention;
mod salvage;
#[cfg(test)]
mod sample;
mod silences;
mod sums;
mod tallies;
mod tokens;
mod turn;
mod writer;

use tickbird_shared::levels::Levels;
use tickbird_shared::{Change, Epoch, Fingerprint, Labels, Lane, Severity, StartWord, Status, Timestamp};

pub use acknowledgements::AcknowledgementRow;
pub use agents::AgentFilter;
pub use ballast::{Room, room};
pub use copy::{Contents, copy, verify};
pub use dependencies::{DependencyRow, Edge, Edges};
pub use escalations::EscalationRow;
pub use excesses::ExcessRow;
pub use findings::FindingFilter;
pub use flaps::FlapRow;
pub use groups::{Gathering, GroupRow};
pub use heard::HeardRow;
pub use incidents::IncidentFilter;
pub use lanes::LaneKey;
pub use outbox::Resent;
pub use readers::{Readers, Rows};
pub use repair::{Aside, Condition, Damage, check, is_suspected, open_sound, repair, suspect};
pub use retention::{Bounds, Kept};
pub use salvage::{Left, Lost};
pub use silences::{MAX_SILENCES, SilenceRow, WithheldRow};
pub use writer::{Transaction, Writer};

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not there.
    #[error("there is no store at `{path}`")]
    Missing {
        /// Where it was looked for.
        path: std::path::PathBuf,
    },
    /// The file could not be made.
    #[error("cannot create `{path}`")]
    Create {
        /// Where it should have been.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A newer collector has written this store.
    #[error("the store has schema {found}, this collector knows up to {known}")]
    FromTheFuture {
        /// Schema version of the file.
        found: u32,
        /// Newest version this binary can read.
        known: u32,
    },
    /// An older collector has written this store, and may still serve it.
    #[error("the store `{path}` has schema {found}, this command knows {known}; nothing was changed")]
    Older {
        /// The store.
        path: std::path::PathBuf,
        /// Schema version of the file.
        found: u32,
        /// Newest version this binary knows.
        known: u32,
    },
    /// The disk is full or a quota is reached.
    #[error("no room left for the store")]
    Full(#[source] rusqlite::Error),
    /// A copy that is not whole.
    #[error("the store `{path}` is damaged: {said}")]
    Damaged {
        /// The copy.
        path: std::path::PathBuf,
        /// What SQLite found first.
        said: String,
    },
    /// Damage that the collector repairs at its start.
    #[error("the store `{path}` is damaged: {said}")]
    Unrepaired {
        /// The store.
        path: std::path::PathBuf,
        /// What is wrong with it.
        said: String,
    },
    /// A damaged store could not be replaced by what is left of it.
    #[error("the damaged store could not be repaired: `{path}`")]
    Repair {
        /// Which file or directory.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A command came while the store is replaced by what is left of it.
    #[error("the store `{path}` is being repaired; nothing was changed")]
    InRepair {
        /// The store.
        path: std::path::PathBuf,
    },
    /// Anything else SQLite says: damage, permissions, a lock held for too long.
    #[error("the store failed")]
    Sqlite(#[source] rusqlite::Error),
    /// A row does not hold what this version writes.
    #[error("a row holds something that this collector did not write")]
    Malformed(#[source] rusqlite::Error),
    /// The work was given up because the process ends.
    #[error("the store is closing")]
    Closing,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
        match (&error, error.sqlite_error_code()) {
            (_, Some(rusqlite::ErrorCode::DiskFull)) => Self::Full(error),
            _ if sums::is_refused(&error) => Self::Malformed(error),
            (FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..), _) => {
                Self::Malformed(error)
            }
            _ => Self::Sqlite(error),
        }
    }
}

impl StoreError {
    /// Whether the file itself is at fault: a page that is none, or a row that this version would not write.
    pub fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Self::Malformed(_) | Self::Damaged { .. } | Self::Unrepaired { .. } => true,
            Self::Sqlite(error) => {
                matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
                    // The list of tables is a page like any other.
                    || error.to_string().starts_with("no such ")
            }
            _ => false,
        }
    }

    /// With what lies beneath it.
    pub fn in_full(&self) -> String {
        let cause = std::error::Error::source(self).map(ToString::to_string);
        cause.map_or_else(|| self.to_string(), |cause| format!("{self}: {cause}"))
    }

    /// What an operator can do.
    pub const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Missing { .. } => Some("create one with `tickbird-collector init`"),
            Self::Create { .. } => Some("check that the directory is there, writable and holds no store yet"),
            Self::FromTheFuture { .. } => Some("run the newer collector again, or restore the backup made before it"),
            Self::Older { .. } => {
                Some("start this version's collector, which brings the store up to date; then try again")
            }
            Self::Full(_) => Some("free space on the store's disk, or lower retention.bytes"),
            Self::Damaged { .. } => Some("use an older backup"),
            Self::Unrepaired { .. } => Some("start the collector, which repairs its store and says what is lost"),
            Self::Repair { .. } => Some("see that the store's disk has room for a second store and can be written"),
            Self::InRepair { .. } => Some("try again when the collector's log says that it was repaired"),
            Self::Sqlite(_) => Some("check the disk and the rights of the store's directory"),
            Self::Malformed(_) => Some("restore a backup; the store was changed by something else"),
            Self::Closing => None,
        }
    }
}

/// An agent as enrolled and as last heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    /// Tenant it belongs to.
    pub tenant: String,
    /// Id the collector gave it.
    pub id: String,
    /// Host name: of its inventory, else of its enrolment.
    pub host: String,
    /// Version of its inventory.
    pub version: Option<String>,
    /// Operating system and kernel of its inventory.
    pub system: Option<String>,
    /// Labels of the enrolment token, which win.
    pub token_labels: Labels,
    /// Labels of its own file.
    pub own_labels: Labels,
    /// Stable keys of what it watches.
    pub targets: Vec<String>,
    /// Forgotten an hour after it was last heard.
    pub ephemeral: bool,
    /// When it was enrolled.
    pub enrolled_at: Timestamp,
    /// End of its newest certificate's life.
    pub certificate_expires_at: Timestamp,
    /// When an operator denied it.
    pub denied_at: Option<Timestamp>,
    /// When an operator asked to forget it; the ledger resolves its incidents and deletes the row.
    pub forget_at: Option<Timestamp>,
    /// When it was last heard, by the collector's clock; written every few seconds, not with each heartbeat.
    pub last_seen_at: Option<Timestamp>,
    /// When it said goodbye, if it has not been heard since.
    pub stopped_at: Option<Timestamp>,
}

impl AgentRow {
    /// An agent, by tenant and id, that has just been enrolled and has said nothing yet.
    pub fn enrolled(
        (tenant, id): (impl Into<String>, impl Into<String>),
        host: impl Into<String>,
        enrolled_at: Timestamp,
        certificate_expires_at: Timestamp,
    ) -> Self {
        Self {
            tenant: tenant.into(),
            id: id.into(),
            host: host.into(),
            version: None,
            system: None,
            token_labels: Labels::default(),
            own_labels: Labels::default(),
            targets: Vec::new(),
            ephemeral: false,
            enrolled_at,
            certificate_expires_at,
            denied_at: None,
            forget_at: None,
            last_seen_at: None,
            stopped_at: None,
        }
    }

    /// Its labels with the token's laid over its own.
    pub fn labels(&self) -> Labels {
        self.own_labels.overlaid_with(&self.token_labels)
    }
}

/// A finding as stored. `id` counts up with the time of receipt over all tenants; 0 before it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FindingRow {
    /// Order of receipt; what pages are cut by.
    pub id: i64,
    /// Tenant of the agent.
    pub tenant: String,
    /// Agent that judged it; of the collector's own findings the agent they are about.
    pub agent: String,
    /// Incident's name.
    pub fingerprint: Fingerprint,
    /// Id of the check.
    pub check: String,
    /// Stable key of the target.
    pub target: String,
    /// Sub-key, where the check declares one.
    pub sub_key: Option<String>,
    /// Firing or resolved.
    pub status: Status,
    /// Severity now, or the highest it had.
    pub severity: Severity,
    /// What changed.
    pub change: Change,
    /// One sentence.
    pub summary: String,
    /// Why the judge decided so.
    pub reason: String,
    /// What to do next.
    pub advice: Option<String>,
    /// A JSON object.
    pub evidence: String,
    /// When the fault began, by the agent's clock.
    pub since: Timestamp,
    /// When it was seen, by the agent's clock.
    pub observed_at: Timestamp,
    /// When it was received, by the collector's clock.
    pub received_at: Timestamp,
    /// The incident it belongs to; none for `info`.
    pub incident: Option<String>,
}

/// One fingerprint from firing to resolved, as stored: the whole row is written at each change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncidentRow {
    /// Tenant of the agent.
    pub tenant: String,
    /// A ULID: sorts by the time it first opened.
    pub id: String,
    /// What it is about.
    pub fingerprint: Fingerprint,
    /// Agent it is about.
    pub agent: String,
    /// Id of the check.
    pub check: String,
    /// Stable key of the target.
    pub target: String,
    /// Sub-key, where the check declares one.
    pub sub_key: Option<String>,
    /// Firing or resolved.
    pub status: Status,
    /// Severity now, or the highest it had when resolved.
    pub severity: Severity,
    /// One sentence of the newest finding.
    pub summary: String,
    /// What to do next.
    pub advice: Option<String>,
    /// A JSON object: the newest evidence.
    pub evidence: String,
    /// It fires and can no longer be seen.
    pub evidence_lost: bool,
    /// When the fault began, by the agent's clock.
    pub since: Timestamp,
    /// When it opened, by the collector's clock; moves when it is reopened.
    pub opened_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was resolved.
    pub resolved_at: Option<Timestamp>,
    /// Why it was resolved: `cleared`, `target gone`, `resync`, `agent forgotten`, …
    pub resolved_reason: Option<String>,
    /// How often it opened.
    pub occurrences: u32,
    /// Counts the changes that somebody may hear of; a decision is made once for each.
    pub state_epoch: u64,
    /// When `state_epoch` last counted up; a later `updated_at` is news that nobody was told of yet.
    pub state_since: Timestamp,
    /// Life of the agent's buffer that the newest finding came from; none of the collector's own incidents.
    pub seen_epoch: Option<Epoch>,
    /// When the newest finding was seen, moved to the collector's clock: what is older is history.
    pub seen_at: Timestamp,
    /// How it returned lately; a row of its own, of those that did.
    pub flap: Option<Box<FlapRow>>,
}

impl IncidentRow {
    /// Whether it goes away and comes back too often to tell of each time.
    pub fn flaps(&self) -> bool {
        self.status == Status::Firing && self.flap.as_ref().is_some_and(|it| it.since.is_some())
    }

    /// The highest severity that anybody may have been told of lately.
    pub fn worst(&self) -> Severity {
        let worst = self.flap.as_ref().and_then(|it| it.worst);
        worst.map_or(self.severity, |worst| worst.max(self.severity))
    }

    /// Whether it flaps and has gone away for now.
    pub fn is_calm(&self) -> bool {
        self.flaps() && self.flap.as_ref().is_some_and(|it| it.calm_since.is_some())
    }
}

/// One decision of alert about one (incident, receiver, state epoch), with its reason. Written once; where it waits for the message
/// of a group, the end of that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionRow {
    /// Tenant of the incident.
    pub tenant: String,
    /// Incident it is about.
    pub incident: String,
    /// Receiver it is about.
    pub receiver: String,
    /// State epoch of the incident that was decided.
    pub state_epoch: u64,
    /// Whether a message was queued.
    pub told: bool,
    /// `incident.firing` and so on.
    pub kind: String,
    /// Why: `began: …`, `below min_severity`.
    pub reason: String,
    /// When it was decided.
    pub decided_at: Timestamp,
    /// Id of the outbox row, when a message was queued, or of the one that its group will queue.
    pub message: Option<String>,
    /// Id of the group that it is, or was, told with.
    pub in_group: Option<String>,
}

/// Where a message is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageState {
    /// To be sent, or sent again.
    Waiting,
    /// The receiver said yes.
    Delivered,
    /// A newer message of the same incident says it all; never attempted, or its outcome is known to be "no".
    Superseded,
    /// Given up: after seven days, or refused for what it is.
    Dead,
}

/// One message to one receiver. The body never changes, so every attempt sends the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Tenant of the incident.
    pub tenant: String,
    /// `msg_` and a ULID: stable over retries; order of ids is order of decisions.
    pub id: String,
    /// Name of the receiver.
    pub receiver: String,
    /// The incident it tells of, or the group: a receiver hears what is of one in order.
    pub incident: String,
    /// `incident.firing`, `group.resolved` and so on.
    pub kind: String,
    /// What the receiver was when this was written (`webhook`, `slack`, `email`, `alertmanager`); an earlier version did not say.
    pub form: Option<String>,
    /// The bytes that are sent.
    pub body: Vec<u8>,
    /// When it was decided.
    pub decided_at: Timestamp,
    /// Where it is on its way.
    pub state: MessageState,
    /// Attempts made.
    pub attempts: u32,
    /// Attempts whose outcome is unknown: each may have been heard.
    pub uncertain: u32,
    /// Not before this.
    pub next_attempt_at: Timestamp,
    /// When it reached its end.
    pub settled_at: Option<Timestamp>,
    /// What was heard of its attempts, scrubbed, one a line, the newest last: of one that was delivered that is the receiver's yes.
    /// Attempts in a row that came to the same are one line, and the oldest lines go.
    pub said: Option<String>,
}

impl OutboxRow {
    /// One that waits and was never tried.
    pub fn queued(
        tenant: &str,
        id: String,
        receiver: &str,
        incident: String,
        (kind, form, body): (&str, &str, Vec<u8>),
        now: Timestamp,
    ) -> Self {
        Self {
            tenant: tenant.to_owned(),
            id,
            receiver: receiver.to_owned(),
            incident,
            kind: kind.to_owned(),
            form: Some(form.to_owned()),
            body,
            decided_at: now,
            state: MessageState::Waiting,
            attempts: 0,
            uncertain: 0,
            next_attempt_at: now,
            settled_at: None,
            said: None,
        }
    }
}

/// How far a lane has been received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneRow {
    /// Tenant of the agent.
    pub tenant: String,
    /// The agent.
    pub agent: String,
    /// Life of its buffer.
    pub epoch: Epoch,
    /// Lane of that buffer.
    pub lane: Lane,
    /// Everything up to here is on disk or refused for ever.
    pub through: u64,
    /// First sequence of the newest batch, whose last is `through`.
    pub last_first: u64,
    /// SHA-256 of the newest batch's records, to tell a repeat from a clone.
    pub last_digest: [u8; 32],
    /// The start of the agent's buffer that sent it, when it named one.
    pub start: Option<LaneStart>,
    /// When that was.
    pub updated_at: Timestamp,
}

/// A start of an agent's buffer, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStart {
    /// Counts the starts of its epoch.
    pub number: u64,
    /// Tells it from others of that number.
    pub word: StartWord,
}

/// A received body kept as it came: summaries and recordings until they are read out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyRow {
    /// Tenant of the agent.
    pub tenant: String,
    /// The agent.
    pub agent: String,
    /// Life of its buffer.
    pub epoch: Epoch,
    /// Lane of that buffer.
    pub lane: Lane,
    /// First sequence of the body that was new.
    pub first: u64,
    /// Last sequence of the body.
    pub through: u64,
    /// When it was received.
    pub received_at: Timestamp,
    /// The body as received: zstd of JSON.
    pub body: Vec<u8>,
}

/// What became of records. `received = committed + duplicate + refused`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records of settled batches.
    pub received: u64,
    /// On the disk because of it.
    pub committed: u64,
    /// Settled before.
    pub duplicate: u64,
    /// Never to be stored.
    pub refused: u64,
    /// What agents say they lost; in none of the others.
    pub lost: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.received += other.received;
        self.committed += other.committed;
        self.duplicate += other.duplicate;
        self.refused += other.refused;
        self.lost += other.lost;
    }
}

/// A range that an agent's buffer had to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LossRow {
    /// Tenant of the agent.
    pub tenant: String,
    /// The agent.
    pub agent: String,
    /// Life of its buffer.
    pub epoch: Epoch,
    /// Lane it happened in.
    pub lane: Lane,
    /// First sequence lost.
    pub from: u64,
    /// Last sequence lost.
    pub to: u64,
    /// Records lost.
    pub count: u64,
    /// `evicted` or `quarantined`.
    pub outcome: String,
    /// When the collector heard of it.
    pub received_at: Timestamp,
}

/// The newest levels of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelsRow {
    /// Tenant of the agent.
    pub tenant: String,
    /// The agent.
    pub agent: String,
    /// Life of the buffer that they came from.
    pub epoch: Epoch,
    /// When they were true, by the collector's clock.
    pub seen_at: Timestamp,
    /// When they came.
    pub received_at: Timestamp,
    /// What was told.
    pub levels: Levels,
}

/// How many connections one application had leased at one server, over one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UseRow {
    /// Tenant of the agents.
    pub tenant: String,
    /// The server.
    pub server: String,
    /// The application.
    pub application: String,
    /// Start of the day in UTC.
    pub day: Timestamp,
    /// How often it was looked at.
    pub samples: u64,
    /// Most connections that were certainly leased at one look.
    pub peak: u32,
    /// Most connections that were open at one look.
    pub peak_open: u32,
    /// How often so many were certainly leased: step of the histogram, and looks.
    pub counts: Vec<(u16, u32)>,
}

/// An enrolment token; only the hash of its secret is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Tenant its agents will belong to.
    pub tenant: String,
    /// Name it is listed and revoked by; not secret.
    pub id: String,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// Labels its agents get.
    pub labels: Labels,
    /// Its agents are forgotten an hour after they were last heard.
    pub ephemeral: bool,
    /// How often it may be used.
    pub uses: u32,
    /// How often it was used.
    pub used: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A token for the API; only its hash is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiTokenRow {
    /// Tenant it may see.
    pub tenant: String,
    /// Who it was made for.
    pub name: String,
    /// SHA-256 of the whole token.
    pub hash: [u8; 32],
    /// `viewer`, `operator` or `admin`.
    pub role: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// For tests of what stands above the store: its tables, as anybody beside the collector may read them.
#[cfg(test)]
pub(crate) fn outside(path: &std::path::Path) -> rusqlite::Connection {
    rusqlite::Connection::open(path).expect("opens")
}

#[cfg(test)]
mod tests;
