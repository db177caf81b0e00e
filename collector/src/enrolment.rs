//! Token and certificate request in, certificate out: `POST /v1/enroll` on the listener for people.
//!
//! The token decides the tenant and the labels, the collector the agent's id; of the request only the public key is used.
//! The agent is on the disk before its certificate is signed. Whoever shows a wrong token is told so once and then less and
//! less: each address may be wrong a few times a minute.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Extension, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use http_body_util::BodyExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tickbird_shared::Timestamp;
use tickbird_shared::enrolment::{EnrolmentAnswer, EnrolmentRequest};
use tickbird_shared::protocol::{ENROL_PATH, MAX_LABEL_BYTES};
use tokio::sync::Semaphore;

use crate::certificates::Certificates;
use crate::ledger;
use crate::pki::{self, MAX_REQUEST_BYTES};
use crate::problem::Problem;
use crate::token;

/// Largest body: a request, a token and a name.
const MAX_BODY: usize = MAX_REQUEST_BYTES + 4_096;
/// Requests that are worked on at once.
const AT_ONCE: usize = 8;
/// Most bytes of a body that are read at all: what is over [`MAX_BODY`] is thrown away.
const MAX_DRAINED: usize = 8 << 20;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Wrong tokens that one address may show in a row.
const WRONG_BURST: f64 = 10.0;
/// How long it takes until one more may be shown.
const WRONG_EVERY: Duration = Duration::from_secs(10);
/// Addresses that are remembered; over it all are forgotten, and an attacker with so many is slowed by [`AT_ONCE`].
const ADDRESSES: usize = 10_000;

/// What the handler needs. Cheap to clone.
#[derive(Clone)]
pub struct Enrolment(Arc<Shared>);

struct Shared {
    ledger: ledger::Handle,
    certificates: Certificates,
    /// Where agents send their records.
    url: String,
    clock: fn() -> Timestamp,
    began: Instant,
    wrong: Mutex<HashMap<IpAddr, Wrong>>,
    slots: Semaphore,
    counters: Counters,
}

/// What enrolment has done since start.
#[derive(Debug, Default, Clone)]
pub struct Counters {
    /// Agents enrolled.
    pub enrolled: Counter,
    /// Requests refused.
    pub refused: Counter,
}

impl Counters {
    /// Adds them to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("tickbird_agents_enrolled", "Agents enrolled", self.enrolled.clone());
        registry.register("tickbird_enrolments_refused", "Requests to enrol that were refused", self.refused.clone());
    }
}

impl Enrolment {
    /// Enrols agents that will send to `url`.
    pub fn new(ledger: ledger::Handle, certificates: Certificates, url: String, clock: fn() -> Timestamp) -> Self {
        Self(Arc::new(Shared {
            ledger,
            certificates,
            url,
            clock,
            began: Instant::now(),
            wrong: Mutex::default(),
            slots: Semaphore::new(AT_ONCE),
            counters: Counters::default(),
        }))
    }

    /// The route; it needs no bearer token, and a [`ConnectInfo`] in the request.
    pub fn router(&self) -> Router {
        // `enrol` reads the body itself, and holds at most MAX_BODY of it.
        Router::new().route(ENROL_PATH, post(enrol)).layer(DefaultBodyLimit::disable()).with_state(self.clone())
    }

    /// What it has done.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    async fn enrol(&self, peer: IpAddr, asked: &EnrolmentRequest) -> Result<EnrolmentAnswer, Problem> {
        let shared = &self.0;
        let slowed = shared.with_wrong(peer, |wrong, now| wrong.wait(now));
        if let Some(wait) = slowed {
            let detail = "too many wrong tokens came from this address";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail).retry_after(wait));
        }
        // The semaphore is never closed.
        let _slot = shared.slots.acquire().await.ok();
        let is_name =
            |host: &str| !host.is_empty() && host.len() <= MAX_LABEL_BYTES && !host.chars().any(char::is_control);
        if !is_name(&asked.host) {
            let detail = format!("`host` is a name of 1 to {MAX_LABEL_BYTES} bytes without control characters");
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "host", detail));
        }
        let request = pki::Request::read(&asked.csr).map_err(|error| {
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "csr", error.to_string());
            error.advice().map_or(problem.clone(), |advice| problem.advise(advice))
        })?;
        let now = (shared.clock)();
        let enrolment = ledger::Enrolment {
            token_hash: token::hash(&asked.token),
            agent: format!("a-{}", ulid::Ulid::new().to_string().to_ascii_lowercase()),
            host: asked.host.clone(),
            certificate_expires_at: shared.certificates.agent_expiry(now),
        };
        let enrolled = shared.ledger.enrol(enrolment).await.map_err(|why| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, why.code(), why.to_string()).retry_after(why.retry_after())
        })?;
        let agent = enrolled.map_err(|refusal| {
            shared.with_wrong(peer, |wrong, now| wrong.count(now));
            // The log says which; a stranger is not told whether a token ever existed.
            tracing::warn!(%peer, host = ?asked.host, reason = %refusal, "enrolment refused");
            Problem::new(StatusCode::FORBIDDEN, "token_refused", "the enrolment token gives nothing")
                .advise("make a new one with `tickbird-collector token create`")
        })?;
        let signed = shared.certificates.sign(&request, (&agent.tenant, &agent.id), now).map_err(|error| {
            tracing::error!(agent = %agent.id, %error, "an enrolled agent got no certificate");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "not_signed", "the certificate could not be made")
        })?;
        tracing::info!(agent = %agent.id, host = ?agent.host, "agent enrolled");
        Ok(EnrolmentAnswer {
            agent: agent.id,
            tenant: agent.tenant,
            labels: agent.token_labels,
            certificate: signed.certificate,
            authority: shared.certificates.bundle(now),
            url: shared.url.clone(),
            expires_at: signed.expires_at,
        })
    }
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolment").field("url", &self.0.url).finish_non_exhaustive()
    }
}

async fn enrol(
    State(enrolment): State<Enrolment>,
    Extension(ConnectInfo(peer)): Extension<ConnectInfo<SocketAddr>>,
    body: Body,
) -> Result<Json<EnrolmentAnswer>, Problem> {
    let body = tokio::time::timeout(BODY_TIMEOUT, read(body)).await;
    let asked = match body.unwrap_or(Err(StatusCode::REQUEST_TIMEOUT)) {
        Ok(body) => serde_json::from_slice::<EnrolmentRequest>(&body)
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "malformed", error.to_string())),
        Err(status) => Err(unreadable(status)),
    };
    let answer = match asked {
        Ok(asked) => enrolment.enrol(peer.ip(), &asked).await,
        Err(problem) => Err(problem),
    };
    let counters = enrolment.counters();
    if answer.is_ok() {
        counters.enrolled.inc()
    } else {
        counters.refused.inc()
    };
    answer.map(Json)
}

/// Reads a request. One that is too large is read on and thrown away for a while, so that its sender can finish writing
/// and hear why.
async fn read(body: Body) -> Result<Vec<u8>, StatusCode> {
    let (mut body, mut bytes, mut read) = (body, Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| StatusCode::BAD_REQUEST)?.into_data() else { continue };
        read += data.len();
        if read <= MAX_BODY {
            bytes.extend_from_slice(&data);
        } else if read > MAX_DRAINED {
            break;
        }
    }
    if read > MAX_BODY { Err(StatusCode::PAYLOAD_TOO_LARGE) } else { Ok(bytes) }
}

fn unreadable(status: StatusCode) -> Problem {
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(status, "too_large", format!("a request to enrol has at most {MAX_BODY} bytes"))
        }
        StatusCode::REQUEST_TIMEOUT => Problem::new(status, "too_slow", "the request did not come in time"),
        _ => Problem::new(status, "malformed", "the request ended before its body did"),
    }
}

impl Shared {
    fn with_wrong<T>(&self, peer: IpAddr, act: impl FnOnce(&mut Wrong, Duration) -> T) -> T {
        let now = self.began.elapsed();
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong.len() >= ADDRESSES {
            wrong.clear();
        }
        act(wrong.entry(network(peer)).or_insert(Wrong { left: WRONG_BURST, at: now }), now)
    }
}

/// Who is slowed: an IPv6 host owns a whole /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(it) => Ipv6Addr::from_bits(it.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// How many wrong tokens an address may still show.
#[derive(Debug, Clone, Copy)]
struct Wrong {
    left: f64,
    at: Duration,
}

impl Wrong {
    fn wait(&mut self, now: Duration) -> Option<Duration> {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.left = (self.left + passed / WRONG_EVERY.as_secs_f64()).min(WRONG_BURST);
        self.at = now;
        (self.left < 1.0).then(|| WRONG_EVERY.mul_f64(1.0 - self.left))
    }

    fn count(&mut self, now: Duration) {
        self.wait(now);
        self.left = (self.left - 1.0).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_slowed_after_ten_wrong_tokens_and_trusted_again_in_time() {
        let mut wrong = Wrong { left: WRONG_BURST, at: Duration::ZERO };
        for _ in 0..10 {
            assert_eq!(wrong.wait(Duration::ZERO), None);
            wrong.count(Duration::ZERO);
        }
        assert_eq!(wrong.wait(Duration::ZERO), Some(WRONG_EVERY));
        assert_eq!(wrong.wait(WRONG_EVERY), None);
    }

    #[test]
    fn an_ipv6_host_does_not_escape_into_its_own_network() {
        let address = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(address("2001:db8:1:2:3::4"), address("2001:db8:1:2:ffff::1"));
        assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
    }
}
