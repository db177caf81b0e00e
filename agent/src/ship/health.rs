//! How shipping goes, for `status`, metrics and whoever waits for it.

use jiff::SignedDuration;
use std::error::Error;
use std::fmt;

use serde_json::{Value, json};
use tickbird_shared::Timestamp;

use super::breaker::BreakerState;
use crate::scrub;

/// Longest text of an error that is kept, in bytes.
const MAX_ERROR_BYTES: usize = 300;

/// Since this agent started. Counts are records unless they say otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// `https://host:port`.
    pub collector: String,
    /// Whether the way to it works.
    pub breaker: BreakerState,
    /// Attempts that failed since the last that did not.
    pub failures_in_a_row: u32,
    /// Sent, repeats included.
    pub sent: u64,
    /// On the collector's disk, by its word.
    pub acknowledged: u64,
    /// Refused by the collector and set aside.
    pub refused: u64,
    /// Set aside here because they can never be sent.
    pub set_aside: u64,
    /// Gaps that were told: the collector did not have what it had acknowledged, as after a restore.
    pub bridged: u64,
    /// Epochs that were begun because the one before went on elsewhere: the buffer had been copied, or put back.
    pub begun_anew: u64,
    /// Requests that were answered as they should.
    pub requests: u64,
    /// Of these, the empty ones.
    pub heartbeats: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Bytes of bodies, compressed.
    pub bytes_sent: u64,
    /// When the collector last took something.
    pub last_success: Option<Timestamp>,
    /// The last failure, while nothing succeeded since.
    pub last_error: Option<Failure>,
    /// How this agent's certificate stands.
    pub certificate: CertificateHealth,
    /// How far the collector's clock is ahead of this host's, by its last answer: from the first to the second.
    pub ahead: Option<(SignedDuration, SignedDuration)>,
}

/// The certificate that records are sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateHealth {
    /// First moment of its life.
    pub begins: Timestamp,
    /// Last moment of its life.
    pub ends: Timestamp,
    /// How often it was renewed since this agent started.
    pub renewals: u64,
    /// Attempts to renew it that failed, since the last that did not.
    pub failures: u32,
    /// The last of these.
    pub last_error: Option<Failure>,
}

impl CertificateHealth {
    pub(super) const fn new((begins, ends): (Timestamp, Timestamp)) -> Self {
        Self { begins, ends, renewals: 0, failures: 0, last_error: None }
    }
}

/// A failure, fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Stable word.
    pub outcome: &'static str,
    /// What happened, with its causes; scrubbed.
    pub text: String,
    /// What the operator can do.
    pub advice: Option<&'static str>,
    /// When.
    pub at: Timestamp,
    /// It may pass by itself.
    pub is_transient: bool,
}

impl Health {
    pub(super) fn new(collector: String, certificate: (Timestamp, Timestamp)) -> Self {
        Self {
            certificate: CertificateHealth::new(certificate),
            collector,
            breaker: BreakerState::Closed,
            failures_in_a_row: 0,
            sent: 0,
            acknowledged: 0,
            refused: 0,
            set_aside: 0,
            bridged: 0,
            begun_anew: 0,
            requests: 0,
            heartbeats: 0,
            failures: 0,
            bytes_sent: 0,
            last_success: None,
            last_error: None,
            ahead: None,
        }
    }

    /// As one JSON object; its keys are those of the fields.
    pub fn to_json(&self) -> Value {
        let of = |failure: &Failure| {
            json!({
                "outcome": failure.outcome, "text": failure.text, "advice": failure.advice, "at": failure.at,
                "transient": failure.is_transient,
            })
        };
        let failure = self.last_error.as_ref().map(of);
        let certificate = json!({
            "begins": self.certificate.begins, "ends": self.certificate.ends, "renewals": self.certificate.renewals,
            "failures": self.certificate.failures, "last_error": self.certificate.last_error.as_ref().map(of),
        });
        json!({
            "collector": self.collector, "breaker": self.breaker.to_string(), "failures_in_a_row": self.failures_in_a_row,
            "sent": self.sent, "acknowledged": self.acknowledged, "refused": self.refused, "set_aside": self.set_aside,
            "bridged": self.bridged, "begun_anew": self.begun_anew, "requests": self.requests, "heartbeats": self.heartbeats,
            "failures": self.failures,
            "collector_clock_ahead_seconds": self.ahead.map(|(low, high)| [low.as_secs_f64(), high.as_secs_f64()]),
            "bytes_sent": self.bytes_sent, "last_success": self.last_success, "last_error": failure,
            "certificate": certificate,
        })
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "collector {}: ", self.collector)?;
        match (&self.last_error, self.last_success) {
            (None, None) => write!(f, "not spoken to yet")?,
            (None, Some(at)) => write!(f, "connected, last answer {at}")?,
            (Some(failure), last) => {
                write!(f, "{} ({} attempts failed, breaker {})", failure.text, self.failures_in_a_row, self.breaker)?;
                if let Some(at) = last {
                    write!(f, ", last answer {at}")?;
                }
                if let Some(advice) = failure.advice {
                    write!(f, "; {advice}")?;
                }
            }
        }
        write!(
            f,
            "\n{} records acknowledged, {} refused, {} set aside",
            self.acknowledged, self.refused, self.set_aside
        )
    }
}

/// An error with its causes on one line, without secrets.
pub(super) fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Wrappers often repeat what they wrap.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    scrub::text(&text, MAX_ERROR_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn an_error_is_told_with_its_causes_once_and_without_secrets() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot connect")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("refused by https://me:hunter2@proxy/"));
        let told = told(&error);
        assert!(told.starts_with("cannot connect: refused by") && !told.contains("hunter2"), "{told}");
    }
}
