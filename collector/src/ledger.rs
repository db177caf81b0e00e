//! The owner of all state: an event comes in, aggregate and alert decide, one transaction is committed, then it is answered.

use tickbird_shared::batch::{Inventory, Open};
use tickbird_shared::{Epoch, Lane, Timestamp};

use crate::store::{FindingRow, LossRow};

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
    /// When it was received.
    pub received_at: Timestamp,
    /// What could be read, in order of sequence.
    pub records: Vec<Numbered>,
    /// SHA-256 over the records' texts.
    pub digest: [u8; 32],
    /// The body as received, kept for the bulk lane.
    pub body: Vec<u8>,
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
    /// A summary or recording: durable as part of the body.
    InBody,
    /// Never to be stored, with the code that says why.
    Refused(&'static str),
}

/// What happened to one attempt to deliver a message.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Tenant of the message.
    pub tenant: String,
    /// Id of the message.
    pub message: String,
    /// When the attempt ended.
    pub at: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an attempt to deliver ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The receiver said yes.
    Delivered,
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
