//! One request to one HTTP or HTTPS endpoint: the rows.

use std::sync::Arc;
use std::time::Duration;

use crate::discover::TargetKey;
pub use crate::inspect::tls_certificate::Certificate;

/// One request and its answer.
#[derive(Debug, Clone)]
pub struct Probe {
    /// `endpoint:<url>`.
    pub target: TargetKey,
    /// What happened: an answer, or the phase that failed.
    pub outcome: Result<Answer, ProbeFailure>,
    /// How long each phase took, in order; the failed one last.
    pub phases: Vec<(Phase, Duration)>,
    /// The certificate that was shown, also when it was refused; `None` over plain HTTP.
    pub certificate: Option<Certificate>,
    /// Whether the status is the expected one: `None` when there was no answer.
    pub status_as_expected: Option<bool>,
    /// Assertions on the body: what was asserted, and what was found instead when it did not hold. No body text.
    pub assertions: Vec<Assertion>,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Bytes of the body that were read.
    pub body_bytes: u64,
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeFailure {
    /// Where it failed.
    pub phase: Phase,
    /// What was said, scrubbed: `connection refused`, `no answer within 10 s`.
    pub what: Arc<str>,
}

/// The phases of a request, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Name to addresses.
    Resolve,
    /// TCP handshake.
    Connect,
    /// TLS handshake.
    Tls,
    /// From the request's last byte to the answer's first.
    FirstByte,
    /// The rest of the answer.
    Body,
}

/// One assertion on the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// As configured: `body matches /ok/`, `/database/ok = true`.
    pub asserted: Arc<str>,
    /// `None` when it held; else what was found, without text of the body: `no match`, `absent`, `false`.
    pub failed: Option<Arc<str>>,
}
