//! Why something did not leave.

use std::time::Duration;

use super::connection::ConnectionError;
use crate::buffer::BufferError;

/// See the variants. None of them loses a record: what did not leave stays in the buffer.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// There was no answer.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The collector is there and cannot take anything now.
    #[error("the collector answers {status} ({code})")]
    Unavailable {
        /// HTTP status.
        status: u16,
        /// Its reason, as a word.
        code: String,
        /// Its wish.
        retry_after: Option<Duration>,
    },
    /// We sent more than we may.
    #[error("the collector takes no more from this agent for now")]
    Limited {
        /// Its wish.
        retry_after: Option<Duration>,
    },
    /// The collector does not let this agent speak.
    #[error("the collector denies this agent ({code})")]
    Denied {
        /// Its reason, as a word.
        code: String,
    },
    /// The collector, or what stands in its place, does not speak our protocol.
    #[error("the collector answers {status} ({code}): it does not speak this agent's protocol")]
    NotUnderstood {
        /// HTTP status.
        status: u16,
        /// Its reason, as a word.
        code: String,
    },
    /// An answer that says nothing readable, or contradicts what was sent.
    #[error("the collector's answer makes no sense")]
    Garbage,
    /// Even an empty batch is turned down as unreadable.
    #[error("the collector turns down everything this agent sends ({code})")]
    Rejected {
        /// Its reason, as a word.
        code: String,
    },
    /// What waits cannot be read, or what was settled cannot be written down.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

impl ShipError {
    /// Whether it may pass without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection(ConnectionError::WrongAuthority { .. } | ConnectionError::Tls { .. }) => false,
            Self::Connection(_) | Self::Unavailable { .. } | Self::Limited { .. } | Self::Garbage => true,
            Self::Buffer(error) => error.is_transient(),
            Self::Denied { .. } | Self::NotUnderstood { .. } | Self::Rejected { .. } => false,
        }
    }

    /// Stable word for counting.
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Connection(error) => error.outcome(),
            Self::Unavailable { .. } => "unavailable",
            Self::Limited { .. } => "limited",
            Self::Denied { .. } => "denied",
            Self::NotUnderstood { .. } => "not_understood",
            Self::Garbage => "garbage",
            Self::Rejected { .. } => "rejected",
            Self::Buffer(_) => "buffer",
        }
    }

    /// Whether the way to the collector failed, and it had no say.
    pub fn is_of_the_way(&self) -> bool {
        matches!(self, Self::Connection(error) if error.is_of_the_way())
    }

    /// What the collector wishes us to wait.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } | Self::Limited { retry_after } => *retry_after,
            _ => None,
        }
    }

    /// What the operator can do; `None` where nothing needs doing.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Connection(error) => error.advice(),
            Self::Buffer(error) => error.advice(),
            Self::Denied { .. } => {
                Some("see `tickbird-collector agent list`; enrol again with a new token and --force")
            }
            Self::NotUnderstood { .. } | Self::Rejected { .. } => Some(
                "check that the address is the collector's listener for agents; upgrade the collector before its agents",
            ),
            Self::Unavailable { .. } => Some("see the collector's /readyz"),
            Self::Limited { .. } | Self::Garbage => None,
        }
    }
}
