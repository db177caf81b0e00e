//! One agent's connection: each request in, one answer out.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, Response};
use axum::response::IntoResponse;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use tickbird_shared::Timestamp;
use tickbird_shared::batch::Acknowledgement;
use tickbird_shared::enrolment::RenewalAnswer;
use tickbird_shared::protocol::{MAX_COMPRESSED_BYTES, MAX_DECOMPRESSED_BYTES, RECORDS_PATH, RENEW_PATH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::certificates::Certificates;
use crate::ledger::{self, AgentKey, Guest, Settled, Standing, Unavailable};
use crate::listener::Accepted;

use super::admit::{Agents, Limits, Seat};
use super::authenticate::Peer;
use super::decode::{Encoding, decode};
use super::renew::Renewals;
use super::{Code, Counters, IngestError};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the rest of a body that is not wanted is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Memory for bodies and what is decoded of them, in KiB: what 15 of the largest take, or 4,000 usual ones.
const ROOM_KIB: u32 = 256 << 10;
/// How long a request waits for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// Bodies that are decoded at once on threads that may block.
const DECODERS: usize = 4;
/// A text over this takes longer to decode than a runtime thread may be kept.
const SMALL_TEXT: usize = 64 << 10;
/// A renewal is a signature and a write of its own: it costs as much as so many records.
const RENEWAL_COSTS: usize = 20;
/// What a body is expected to grow to when decompressed.
const USUAL_RATIO: usize = 16;

/// What serves all agents' connections. Cheap to clone.
#[derive(Clone)]
pub struct Ingest(Arc<Shared>);

struct Shared {
    ledger: ledger::Handle,
    renewals: Renewals,
    agents: Arc<Agents>,
    counters: Arc<Counters>,
    room: Arc<Semaphore>,
    decoders: Arc<Semaphore>,
    clock: fn() -> Timestamp,
    began: Instant,
}

impl Ingest {
    /// Settles with `ledger` what agents send within `limits`, and renews their `certificates`; `url` is where they send to.
    pub fn new(
        ledger: ledger::Handle,
        certificates: Certificates,
        url: String,
        limits: Limits,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self(Arc::new(Shared {
            renewals: Renewals::new(ledger.clone(), certificates, url),
            ledger,
            agents: Arc::new(Agents::new(limits)),
            counters: Arc::default(),
            room: Arc::new(Semaphore::new(ROOM_KIB as usize)),
            decoders: Arc::new(Semaphore::new(DECODERS)),
            clock,
            began: Instant::now(),
        }))
    }

    /// What it has done.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// Cuts the connections of agents whose right to speak is taken away; ends with the ledger.
    pub async fn withdraw(self) {
        let mut withdrawals = self.0.ledger.directory().withdrawals();
        while withdrawals.changed().await.is_ok() {
            withdrawals.borrow_and_update();
            self.0.agents.sweep(self.0.ledger.directory());
        }
    }

    /// Serves one connection until it ends.
    pub async fn serve(self, accepted: Accepted) {
        let Some(peer) = Peer::of(accepted.session(), self.0.renewals.certificates(), (self.0.clock)()) else {
            // Signed by our authority and yet no agent's: the server's own certificate, for example.
            self.0.counters.handshakes_failed.inc();
            return;
        };
        if !peer.is_ours {
            // Nobody enrols it: a certificate of that authority is what admits it.
            let guest = Guest { agent: peer.agent.clone(), certificate_expires_at: peer.ends() };
            if let Err(error) = self.0.ledger.admit(guest).await {
                tracing::warn!(agent = %peer.agent.id, %error, "an agent of another PKI could not be written down");
            }
        }
        let seat = if self.0.ledger.directory().standing(&peer.agent) == Some(Standing::Admitted) {
            self.0.agents.seat(&peer.agent, self.0.began.elapsed())
        } else {
            Err(IngestError::NotAdmitted)
        };
        self.0.counters.connections.inc();
        match seat {
            Ok(seat) => {
                let seat = Arc::new(seat);
                let service = service_fn(|request| {
                    let (this, peer, seat) = (self.clone(), peer.clone(), Arc::clone(&seat));
                    async move { Ok::<_, Infallible>(this.answer(&peer, &seat, request).await) }
                });
                accepted.serve(service, seat.withdrawn()).await;
            }
            // Answered once in words, since the agent's operator reads them; then the connection ends.
            Err(refused) => {
                let service = service_fn(|_| std::future::ready(Ok::<_, Infallible>(self.refuse(&refused))));
                accepted.serve(service, tokio::time::sleep(BODY_TIMEOUT)).await;
            }
        }
        self.0.counters.connections.dec();
    }

    async fn answer(&self, peer: &Peer, seat: &Seat, request: Request<Incoming>) -> Response<Body> {
        let answer = if request.uri().path() == RENEW_PATH {
            self.renew(peer, seat, request).await.map(|it| serde_json::to_vec(&it))
        } else {
            self.settle(peer, seat, request).await.map(|it| serde_json::to_vec(&it))
        };
        match answer {
            Ok(Ok(body)) => {
                self.count("ok");
                ([(CONTENT_TYPE, "application/json")], body).into_response()
            }
            Ok(Err(_)) => self.refuse(&Unavailable::Failed.into()),
            Err(error) => self.refuse(&error),
        }
    }

    async fn renew(&self, peer: &Peer, seat: &Seat, request: Request<Incoming>) -> Result<RenewalAnswer, IngestError> {
        let shared = &self.0;
        if request.method() != Method::POST {
            return Err(IngestError::Method);
        }
        let body = tokio::time::timeout(BODY_TIMEOUT, read(request.into_body())).await;
        let body = body.map_err(|_| IngestError::Slow)??;
        seat.is_open(shared.began.elapsed())?;
        seat.pay(RENEWAL_COSTS, shared.began.elapsed())?;
        let answer = shared.renewals.renew(peer, &body, (shared.clock)()).await?;
        shared.counters.renewed.inc();
        Ok(answer)
    }

    async fn settle(
        &self,
        peer: &Peer,
        seat: &Seat,
        request: Request<Incoming>,
    ) -> Result<Acknowledgement, IngestError> {
        let shared = &self.0;
        let (head, body) = request.into_parts();
        let (encoding, mut room) = match shared.admit(peer, seat, &head).await {
            Ok(admitted) => admitted,
            Err(refused) => {
                // A peer that is still writing would see its connection break, and not why.
                let _ = tokio::time::timeout(DRAIN_TIMEOUT, read(body)).await;
                return Err(refused);
            }
        };
        let body = tokio::time::timeout(BODY_TIMEOUT, read(body)).await.map_err(|_| IngestError::Slow)??;
        shared.counters.bytes.inc_by(body.len() as u64);
        let incoming = shared.decode(&peer.agent, body, encoding).await?;
        seat.pay(incoming.records.len(), shared.began.elapsed())?;
        if let Some(more) = more_room(&incoming, room.num_permits()) {
            // It grew far beyond the usual: it may stay only if there is room now.
            let more = Arc::clone(&shared.room).try_acquire_many_owned(more).map_err(|_| Unavailable::Busy)?;
            room.merge(more);
        }
        match shared.ledger.batch(incoming).await? {
            Settled::Acknowledged(acknowledgement) => Ok(acknowledgement),
            Settled::Gap { through } => Err(IngestError::Gap { through }),
            Settled::NotAdmitted => Err(IngestError::NotAdmitted),
        }
    }

    fn refuse(&self, error: &IngestError) -> Response<Body> {
        self.count(error.code());
        // The log of the agent and that of a proxy between have something in common by it.
        let id = ulid::Ulid::new().to_string();
        tracing::debug!(request_id = id, code = error.code(), "a request was refused");
        let mut response = error.problem().with("request_id", id).into_response();
        if matches!(error, IngestError::NotAdmitted | IngestError::TooManyConnections) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn count(&self, code: &'static str) {
        self.0.counters.requests.get_or_create(&Code { code }).inc();
    }
}

impl Shared {
    /// What can be said of a request before its body is read.
    async fn admit(
        &self,
        peer: &Peer,
        seat: &Seat,
        head: &Parts,
    ) -> Result<(Encoding, OwnedSemaphorePermit), IngestError> {
        if head.uri.path() != RECORDS_PATH {
            return Err(IngestError::NotFound);
        }
        if head.method != Method::POST {
            return Err(IngestError::Method);
        }
        if self.ledger.directory().standing(&peer.agent) != Some(Standing::Admitted) {
            return Err(IngestError::NotAdmitted);
        }
        peer.is_valid((self.clock)())?;
        peer.is_meant(&head.headers)?;
        seat.is_open(self.began.elapsed())?;
        let encoding = encoding(&head.headers)?;
        Ok((encoding, self.room(announced_length(&head.headers)?).await?))
    }

    /// Room for a body of this length and what it usually becomes.
    async fn room(&self, length: Option<usize>) -> Result<OwnedSemaphorePermit, IngestError> {
        let compressed = length.unwrap_or(MAX_COMPRESSED_BYTES);
        let expected = compressed + (compressed * USUAL_RATIO).min(MAX_DECOMPRESSED_BYTES);
        let room = Arc::clone(&self.room).acquire_many_owned(kib(expected));
        match tokio::time::timeout(ROOM_TIMEOUT, room).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Unavailable::Busy.into()),
        }
    }

    async fn decode(
        &self,
        agent: &AgentKey,
        body: Vec<u8>,
        encoding: Encoding,
    ) -> Result<ledger::Incoming, IngestError> {
        let received_at = (self.clock)();
        if body.len() <= SMALL_TEXT {
            match decode(agent, &body, encoding, SMALL_TEXT, received_at) {
                Err(IngestError::TooLarge) => (), // small as sent, and large all the same
                decoded => return decoded,
            }
        }
        let slot = Arc::clone(&self.decoders).acquire_owned().await.map_err(|_| Unavailable::Closing)?;
        let agent = agent.clone();
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            decode(&agent, &body, encoding, MAX_DECOMPRESSED_BYTES, received_at)
        });
        work.await.map_err(|_| Unavailable::Failed)?
    }
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingest").field("counters", &self.0.counters).finish_non_exhaustive()
    }
}

fn kib(bytes: usize) -> u32 {
    // At most 17 MiB come in here.
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(ROOM_KIB).max(16)
}

fn more_room(incoming: &ledger::Incoming, held: usize) -> Option<u32> {
    // A record owns its texts and some 200 bytes of structure.
    let bytes = incoming.text_bytes + incoming.body.len() + incoming.records.len() * 256;
    let more = (kib(bytes) as usize).saturating_sub(held);
    u32::try_from(more).ok().filter(|more| *more > 0)
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, IngestError> {
    match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(Encoding::Plain),
        Some(b"zstd") => Ok(Encoding::Zstd),
        Some(_) => Err(IngestError::Encoding),
    }
}

fn announced_length(headers: &HeaderMap) -> Result<Option<usize>, IngestError> {
    let Some(value) = headers.get(CONTENT_LENGTH) else { return Ok(None) };
    // What cannot be read as a number was refused by HTTP itself.
    match value.to_str().ok().and_then(|text| text.parse::<usize>().ok()) {
        Some(length) if length <= MAX_COMPRESSED_BYTES => Ok(Some(length)),
        _ => Err(IngestError::TooLarge),
    }
}

/// Reads a body. One that is too large is read on and thrown away for as long again, so that its sender can finish
/// writing and hear why.
async fn read(mut body: Incoming) -> Result<Vec<u8>, IngestError> {
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX).min(MAX_COMPRESSED_BYTES);
    let (mut bytes, mut read) = (Vec::with_capacity(expected), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| IngestError::Cut)?.into_data() else { continue };
        read += data.len();
        if read <= MAX_COMPRESSED_BYTES {
            bytes.extend_from_slice(&data);
        } else if read > 2 * MAX_COMPRESSED_BYTES {
            break;
        }
    }
    if read > MAX_COMPRESSED_BYTES { Err(IngestError::TooLarge) } else { Ok(bytes) }
}
