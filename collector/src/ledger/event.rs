//! What the ledger is told, and what it answers.

use tickbird_shared::batch::{Acknowledgement, Inventory, Open};
use tickbird_shared::{Epoch, Lane, Start, Timestamp};

use super::AgentKey;
use crate::alert::Ask;
use crate::store::{FindingRow, LevelsRow, LossRow, SilenceRow};

/// A decoded batch of an authenticated agent, in the store's own rows, owning all it holds.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Tenant of the certificate.
    pub tenant: String,
    /// Agent of the certificate.
    pub agent: String,
    /// Life of the agent's buffer.
    pub epoch: Epoch,
    /// Lane of that buffer.
    pub lane: Lane,
    /// First sequence; at least 1.
    pub first: u64,
    /// The agent's clock as it left.
    pub sent_at: Timestamp,
    /// The agent ends on purpose.
    pub goodbye: bool,
    /// The start of the agent's buffer that it names.
    pub start: Option<Start>,
    /// When it was received.
    pub received_at: Timestamp,
    /// Every record, in order of sequence, without gaps.
    pub records: Vec<Numbered>,
    /// SHA-256 over the records' texts.
    pub digest: [u8; 32],
    /// The body as received, kept when a record says so.
    pub body: Vec<u8>,
    /// Bytes of the body's text, which the rows in `records` share out among them.
    pub text_bytes: usize,
}

/// One record with the sequences it takes.
#[derive(Debug, Clone)]
pub struct Numbered {
    /// Its first sequence.
    pub seq: u64,
    /// How many sequences it takes; more than one only for a loss.
    pub width: u64,
    /// What it says.
    pub content: Content,
}

/// What a record says, as far as the ledger must know.
#[derive(Debug, Clone)]
pub enum Content {
    /// A judged change.
    Finding(Box<FindingRow>),
    /// What fires, per check that ran.
    Open(Open),
    /// What the agent's buffer gave up.
    Loss(LossRow),
    /// Who the agent is.
    Inventory(Box<Inventory>),
    /// How full pools and servers of the agent are.
    Levels(Box<LevelsRow>),
    /// A summary or recording: durable as part of the body.
    InBody,
    /// Never to be stored, with the code that says why.
    Refused(&'static str),
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// It is on the disk, was there before, or is refused for ever.
    Acknowledged(Acknowledgement),
    /// The same; so many of its findings fire beyond what an agent may have, and are recorded without an incident.
    Beyond(Acknowledgement, u64),
    /// Sequences before it never came.
    Gap {
        /// Last sequence settled.
        through: u64,
    },
    /// Another start of the agent's buffer is the one that this lane goes by: nothing of it was taken.
    OtherStart,
    /// The agent was denied or forgotten while the batch waited.
    NotAdmitted,
}

/// What an agent asks for with a token; the names are already assigned.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// SHA-256 of the token's secret.
    pub token_hash: [u8; 32],
    /// Id for the new agent.
    pub agent: String,
    /// Its host name.
    pub host: String,
    /// End of the certificate that it will get.
    pub certificate_expires_at: Timestamp,
}

/// A new certificate that an agent is about to get.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// Whose.
    pub agent: AgentKey,
    /// End of its life.
    pub certificate_expires_at: Timestamp,
}

/// An agent that another PKI vouches for.
#[derive(Debug, Clone)]
pub struct Guest {
    /// As its certificate names it.
    pub agent: AgentKey,
    /// End of its certificate's life.
    pub certificate_expires_at: Timestamp,
}

/// Why a token gives nothing. The caller is told only that it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// No such token.
    #[error("the token is not known")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// All its uses are used.
    #[error("the token is used up")]
    UsedUp,
    /// An operator ended it.
    #[error("the token was revoked")]
    Revoked,
}

/// What happened to one attempt to deliver a message.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Tenant of the message.
    pub tenant: String,
    /// Id of the message.
    pub message: String,
    /// When the attempt began or ended.
    pub at: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// Its beginning is written: it is counted already, as one that may have been heard.
    pub is_counted: bool,
}

/// How an attempt to deliver ended, or that it begins.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It begins. Whoever is killed before its end does not know what came of it.
    Begun,
    /// The receiver said yes.
    Delivered {
        /// In what way.
        answer: String,
    },
    /// Certainly not heard, or (`uncertain`) perhaps; to be tried again.
    Retry {
        /// When to try again.
        at: Timestamp,
        /// Whether the attempt may have been heard.
        uncertain: bool,
        /// What went wrong, without secrets.
        error: String,
    },
    /// Given up.
    Dead {
        /// Whether the last attempt may have been heard.
        uncertain: bool,
        /// What went wrong, without secrets.
        error: String,
    },
}

/// What somebody asks of silences.
#[derive(Debug, Clone)]
pub enum Silencing {
    /// A new one.
    Begin(Box<SilenceRow>),
    /// Its end, now.
    End {
        /// Tenant of the silence.
        tenant: String,
        /// Its id.
        silence: String,
    },
}

/// What somebody asks of an acknowledgement.
#[derive(Debug, Clone)]
pub enum Acknowledging {
    /// A new one.
    Begin(Box<Ask>),
    /// Its end, now.
    End {
        /// Tenant of the incident.
        tenant: String,
        /// The incident.
        incident: String,
        /// Who ends it.
        by: String,
    },
}

/// What an agent did beyond one of its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// Who.
    pub agent: AgentKey,
    /// The code that it was refused with.
    pub limit: &'static str,
    /// How often.
    pub times: u64,
}
