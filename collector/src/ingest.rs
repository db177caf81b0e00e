//! From bytes on a socket to an accepted batch.
//!
//! A connection is let in by its certificate (`authenticate`), which it may also renew (`renew`); each request is bounded in
//! bytes, records, rate, series and time (`admit`, by `limits` and `series`), its body is read into rows one record at a time
//! (`decode`), and the ledger settles it. An answer of 200 is written only after the ledger's commit. What is over a bound is
//! counted under its agent's name (`excess`).

mod admit;
mod authenticate;
mod decode;
mod excess;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod limits;
mod listener;
mod renew;
mod series;

use std::time::Duration;

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tickbird_shared::protocol::{MAX_COMPRESSED_BYTES, MAX_DECOMPRESSED_BYTES, MAX_RECORDS, PROTOCOL};

use crate::ledger::Unavailable;
use crate::problem::Problem;

pub use limits::Limits;
pub use listener::Ingest;

/// Why a request was not settled. Whatever is not said to be for ever, the agent keeps and sends again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// The certificate names an agent that is denied, forgotten or was never here.
    #[error("this agent may not send")]
    NotAdmitted,
    /// The certificate's life is over: it serves for its renewal and for nothing else.
    #[error("the agent's certificate has ended, or has not begun: it may only be renewed")]
    CertificateEnded,
    /// The agent believes to be another than its certificate names.
    #[error("the certificate names another agent than the request does")]
    OtherAgent,
    /// A request to renew that cannot be signed.
    #[error("the certificate cannot be renewed: {0}")]
    Request(&'static str),
    /// The agent has as many connections as it may.
    #[error("the agent has too many connections")]
    TooManyConnections,
    /// The agent sends faster than it may.
    #[error("the agent sends more records than it may")]
    RateLimited {
        /// When there is room for what was sent.
        wait: Duration,
    },
    /// The agent was told to wait, and did not.
    #[error("the agent was told to wait")]
    WaitIgnored {
        /// What is left of the wait.
        wait: Duration,
    },
    /// The agent opens connections again and again.
    #[error("the agent makes too many handshakes")]
    TooManyHandshakes {
        /// When it may make another one.
        wait: Duration,
    },
    /// There is nothing at this path.
    #[error("there is nothing here")]
    NotFound,
    /// The path is asked with POST only.
    #[error("only POST is answered here")]
    Method,
    /// Neither zstd nor plain.
    #[error("the body is encoded in a way that is not read here")]
    Encoding,
    /// Over one of the bounds on bytes.
    #[error("the body is over {MAX_COMPRESSED_BYTES} bytes, or over {MAX_DECOMPRESSED_BYTES} decompressed")]
    TooLarge,
    /// Over the bound on records.
    #[error("the batch has more than {MAX_RECORDS} records")]
    TooManyRecords,
    /// The body did not come in time.
    #[error("the body did not arrive in time")]
    Slow,
    /// The connection ended within the body.
    #[error("the body ended early")]
    Cut,
    /// Not a zstd frame, or one with too large a window.
    #[error("the body is not zstd that may be read here")]
    Zstd,
    /// The envelope cannot be read.
    #[error("the batch cannot be read: {0}")]
    Malformed(String),
    /// The envelope is of another version.
    #[error("protocol {0} is not read here, {PROTOCOL} is")]
    Protocol(u32),
    /// Sequences before the batch never came.
    #[error("the batch does not follow {through}")]
    Gap {
        /// Last sequence settled.
        through: u64,
    },
    /// The buffer that it comes from was copied, or put back to an older state, and its epoch goes on elsewhere.
    #[error("another start of this buffer speaks under its epoch")]
    OtherStart,
    /// The ledger did nothing.
    #[error("{0}")]
    Unavailable(#[from] Unavailable),
}

impl IngestError {
    /// Stable name, as in a problem document and in the counters.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAdmitted => "denied",
            Self::CertificateEnded => "certificate_ended",
            Self::OtherAgent => "other_agent",
            Self::Request(_) => "csr",
            Self::TooManyConnections => "too_many_connections",
            Self::RateLimited { .. } => "rate_limited",
            Self::WaitIgnored { .. } => "wait_ignored",
            Self::TooManyHandshakes { .. } => "too_many_handshakes",
            Self::NotFound => "not_found",
            Self::Method => "method",
            Self::Encoding => "unsupported_encoding",
            Self::TooLarge => "too_large",
            Self::TooManyRecords => "too_many_records",
            Self::Slow => "slow",
            Self::Cut => "cut",
            Self::Zstd => "bad_zstd",
            Self::Malformed(_) => "malformed",
            Self::Protocol(_) => "unsupported_protocol",
            Self::Gap { .. } => "gap",
            Self::OtherStart => "other_start",
            Self::Unavailable(why) => why.code(),
        }
    }

    /// The answer.
    pub fn problem(&self) -> Problem {
        let (status, wait) = match self {
            Self::NotAdmitted | Self::CertificateEnded | Self::OtherAgent => (StatusCode::FORBIDDEN, None),
            Self::Request(_) => (StatusCode::UNPROCESSABLE_ENTITY, None),
            Self::TooManyConnections => (StatusCode::TOO_MANY_REQUESTS, Some(Duration::from_secs(10))),
            Self::RateLimited { wait } | Self::WaitIgnored { wait } | Self::TooManyHandshakes { wait } => {
                (StatusCode::TOO_MANY_REQUESTS, Some(*wait))
            }
            Self::NotFound => (StatusCode::NOT_FOUND, None),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, None),
            Self::Encoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, None),
            Self::TooLarge | Self::TooManyRecords => (StatusCode::PAYLOAD_TOO_LARGE, None),
            Self::Slow => (StatusCode::REQUEST_TIMEOUT, None),
            Self::Cut | Self::Zstd | Self::Malformed(_) | Self::Protocol(_) => (StatusCode::BAD_REQUEST, None),
            Self::Gap { .. } | Self::OtherStart => (StatusCode::CONFLICT, None),
            Self::Unavailable(why) => (StatusCode::SERVICE_UNAVAILABLE, Some(why.retry_after())),
        };
        let mut problem = Problem::new(status, self.code(), self.to_string());
        problem.retry_after = wait;
        problem.advice = self.advice();
        match self {
            Self::Gap { through } => problem.with("through", *through),
            _ => problem,
        }
    }

    /// Whether nothing that comes on this connection would be listened to.
    const fn ends_connection(&self) -> bool {
        let refused = matches!(self, Self::NotAdmitted | Self::TooManyConnections | Self::TooManyHandshakes { .. });
        refused || matches!(self, Self::WaitIgnored { .. } | Self::Slow)
    }

    /// What the agent's operator can do.
    const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NotAdmitted => Some("enrol the agent again with a new token"),
            Self::CertificateEnded => Some("let the agent renew it; see `tickbird-agent status` why it did not"),
            Self::OtherAgent => Some("let collector.agent there and agents.client_name here mean the same"),
            Self::TooManyConnections | Self::TooManyHandshakes { .. } => {
                Some("check that no second agent runs with this identity")
            }
            Self::WaitIgnored { .. } => Some("wait as long as Retry-After says"),
            Self::TooLarge | Self::TooManyRecords => Some("split the batch"),
            Self::Protocol(_) => Some("upgrade the collector before its agents"),
            Self::Gap { .. } => Some("send from the sequence after `through`, or a loss for what is gone"),
            Self::OtherStart => {
                Some("begin a new epoch; if the agent's state was copied to a second machine, enrol that one anew")
            }
            _ => None,
        }
    }
}

/// What ingest has done since start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Agents' connections open now.
    pub connections: Gauge,
    /// Connections that did not become one: no or a foreign certificate, or too slow.
    pub handshakes_failed: Counter,
    /// Connections closed before their handshake, by the bound they were over.
    pub connections_refused: Family<Reason, Counter>,
    /// Requests by code: `ok`, or why not.
    pub requests: Family<Code, Counter>,
    /// Bytes of bodies as received.
    pub bytes: Counter,
    /// Certificates renewed.
    pub renewed: Counter,
}

/// The label of [`Counters::connections_refused`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// `source_rate`, `source_connections` or `handshakes`.
    pub reason: &'static str,
}

/// The label of [`Counters::requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Code {
    /// `ok`, or the code of the problem document.
    pub code: &'static str,
}

impl Counters {
    /// Adds them to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("tickbird_agent_connections", "Agents' connections open now", self.connections.clone());
        registry.register(
            "tickbird_handshakes_failed",
            "Connections that showed no certificate of ours in time",
            self.handshakes_failed.clone(),
        );
        registry.register(
            "tickbird_connections_refused",
            "Connections closed before their handshake, by the bound they were over",
            self.connections_refused.clone(),
        );
        registry.register("tickbird_ingest_requests", "Requests of agents by answer", self.requests.clone());
        registry.register("tickbird_certificates_renewed", "Certificates of agents renewed", self.renewed.clone());
        registry.register("tickbird_ingest_bytes", "Bytes of bodies as received", self.bytes.clone());
    }
}
