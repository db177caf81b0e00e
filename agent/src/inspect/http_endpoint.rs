//! One request to one HTTP or HTTPS endpoint, as a stranger would make it: resolve, connect, shake hands, ask, read.
//!
//! Each look uses a connection of its own, so that every phase is seen, and follows no redirect.

use std::sync::Arc;
use std::time::Duration;

use crate::discover::TargetKey;
use crate::inspect::{About, Inspector, Look, Measure, Observation, Reading, Reason, Rows, Unit, Value};

mod asker;
mod expectation;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod request;

pub use crate::inspect::tls_certificate::Certificate;
pub use expectation::{Config, ConfigError, EndpointUrl, Options};

pub(super) use asker::Asker;

use expectation::Assertions;
use request::Received;

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
    /// Bytes of the body that were read, at most 1 MiB.
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
    /// From the request's first byte to the end of the answer's head.
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

static SECONDS: Measure = Measure {
    name: "endpoint.seconds",
    unit: Unit::Seconds,
    meaning: "a whole request, from the name to the last byte of the answer",
};
static RESOLVE: Measure =
    Measure { name: "endpoint.seconds_resolve", unit: Unit::Seconds, meaning: "from the name to its addresses" };
static CONNECT: Measure = Measure { name: "endpoint.seconds_connect", unit: Unit::Seconds, meaning: "TCP handshake" };
static TLS: Measure = Measure { name: "endpoint.seconds_tls", unit: Unit::Seconds, meaning: "TLS handshake" };
static FIRST_BYTE: Measure = Measure {
    name: "endpoint.seconds_first_byte",
    unit: Unit::Seconds,
    meaning: "from the request to the end of the answer's head",
};
static BODY: Measure =
    Measure { name: "endpoint.seconds_body", unit: Unit::Seconds, meaning: "the rest of the answer" };

/// What this inspector is.
pub static ABOUT: About = About {
    name: "http_endpoint",
    source: "a GET request (RFC 9112) on a connection of its own, and the certificate shown in its handshake",
    needs: "a way to the endpoint; no account, no header",
    cost: "one connection and one request a look; at most 1 MiB of the body is read",
    measures: &[&SECONDS, &RESOLVE, &CONNECT, &TLS, &FIRST_BYTE, &BODY],
};

impl Phase {
    const fn measure(self) -> &'static Measure {
        match self {
            Self::Resolve => &RESOLVE,
            Self::Connect => &CONNECT,
            Self::Tls => &TLS,
            Self::FirstByte => &FIRST_BYTE,
            Self::Body => &BODY,
        }
    }
}

/// Asks one endpoint.
pub struct HttpInspector {
    name: String,
    config: Config,
    target: TargetKey,
    asker: Asker,
    assertions: Arc<Assertions>,
}

impl HttpInspector {
    /// Makes no connection yet.
    pub fn new(config: Config) -> Self {
        Self {
            name: format!("http_endpoint {}", config.url),
            target: TargetKey::endpoint(&config.url.to_string()),
            asker: Asker::new(&config),
            assertions: Arc::new(config.assertions.clone()),
            config,
        }
    }

    async fn look(&mut self) -> Reading {
        let (received, phases) = self.asker.ask().await;
        let mut probe = Probe {
            target: self.target.clone(),
            outcome: match &received {
                Ok(Received { status, body, .. }) => {
                    Ok(Answer { status: *status, body_bytes: u64::try_from(body.len()).unwrap_or(u64::MAX) })
                }
                Err(failure) => Err(failure.clone()),
            },
            phases,
            certificate: self.asker.take_certificate(),
            status_as_expected: received.as_ref().ok().map(|it| self.config.status.contains(it.status)),
            assertions: Vec::new(),
        };
        if let Ok(received) = received
            && !self.assertions.is_empty()
        {
            let assertions = Arc::clone(&self.assertions);
            // A pattern over a mebibyte takes longer than a thread of the runtime may be held.
            let checked = move || assertions.check(&received.body, received.is_whole);
            probe.assertions = tokio::task::spawn_blocking(checked).await.unwrap_or_default();
        }
        let observations = observations(&probe);
        Reading { rows: Rows::Probe(probe), observations }
    }
}

impl Inspector for HttpInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn inspect<'a>(&'a mut self, _now: Duration) -> Look<'a> {
        Box::pin(self.look())
    }
}

/// The whole request is known when there was an answer; of a failed phase only its beginning is.
fn observations(probe: &Probe) -> Vec<Observation> {
    let observe = |measure, value| Observation { target: probe.target.clone(), measure, value };
    let whole: Duration = probe.phases.iter().map(|(_, took)| *took).sum();
    let (whole, failed) = match &probe.outcome {
        Ok(_) => (Value::Known(whole.as_secs_f64()), None),
        Err(failure) => {
            let reason = Reason::Unreachable(format!("{}: {}", probe.target, failure.what));
            (Value::Unknown(reason), Some(failure.phase))
        }
    };
    let gone = probe.phases.iter().filter(|(phase, _)| Some(*phase) != failed);
    let phases = gone.map(|(phase, took)| observe(phase.measure(), Value::Known(took.as_secs_f64())));
    std::iter::once(observe(&SECONDS, whole)).chain(phases).collect()
}

#[cfg(test)]
mod tests;
