//! One agent's connection: each request in, one answer out.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderValue};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, Response};
use axum::response::IntoResponse;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use jiff::fmt::rfc2822::DateTimePrinter;
use prometheus_client::registry::Registry;
use tickbird_shared::Timestamp;
use tickbird_shared::batch::Acknowledgement;
use tickbird_shared::enrolment::RenewalAnswer;
use tickbird_shared::protocol::{MAX_COMPRESSED_BYTES, MAX_DECOMPRESSED_BYTES, RECORDS_PATH, RENEW_PATH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::certificates::Certificates;
use crate::ledger::{self, AgentKey, Content, Guest, Settled, Standing, Unavailable};
use crate::listener::{Accepted, Ended};

use super::admit::{Agents, Seat};
use super::authenticate::Peer;
use super::decode::{Decoded, Encoding, blank, decode};
use super::excess::Excesses;
use super::limits::{Limits, cost, cost_of_fault};
use super::renew::Renewals;
use super::{Code, Counters, IngestError};

/// How long the rest of a body that is not wanted is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Memory for bodies and what is decoded of them, in KiB: what 15 of the largest take, or 4,000 usual ones.
const ROOM_KIB: u32 = 256 << 10;
/// Room that a body takes at a time as it arrives: what was announced and does not come takes none.
const STEP_KIB: u32 = 64;
/// How long a request waits for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// A text over this takes longer to decode than a runtime thread may be kept.
const SMALL_TEXT: usize = 64 << 10;
/// A renewal is a signature and a write of its own: it costs as much as so many records.
const RENEWAL_COSTS: usize = 20;
/// What a body is expected to grow to when decompressed.
const USUAL_RATIO: usize = 16;
/// How long a connection that may not be has to hear why.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// How far an agent's clock may be ahead of ours, and behind it beside the time that its request may take to arrive.
const SKEW: Duration = Duration::from_secs(5);
/// How often what agents exceeded is written down.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What serves all agents' connections. Cheap to clone.
#[derive(Clone)]
pub struct Ingest(Arc<Shared>);

struct Shared {
    ledger: ledger::Handle,
    renewals: Renewals,
    agents: Arc<Agents>,
    counters: Arc<Counters>,
    excesses: Excesses,
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
            excesses: Excesses::default(),
            room: Arc::new(Semaphore::new(ROOM_KIB as usize)),
            decoders: Arc::new(Semaphore::new(decoders())),
            clock,
            began: Instant::now(),
        }))
    }

    /// What it has done.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// Adds what it counts to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        self.0.counters.register(registry);
        self.0.excesses.register(registry);
    }

    /// Tells the ledger each second what agents exceeded; ends with the ledger.
    pub async fn report(self) {
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let excesses = self.0.excesses.take();
            if excesses.is_empty() {
                continue;
            }
            match self.0.ledger.excess(excesses.clone()).await {
                Ok(()) => (),
                Err(Unavailable::Closing) => return,
                Err(_) => self.0.excesses.put_back(excesses),
            }
        }
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
    pub async fn serve(self, mut accepted: Accepted) {
        let shared = &self.0;
        let peer = Peer::of(accepted.session(), shared.renewals.certificates(), (shared.clock)());
        let Some(peer) = peer.map(Arc::new) else {
            // Signed by our authority and yet no agent's: the server's own certificate, for example.
            shared.counters.handshakes_failed.inc();
            return;
        };
        if !peer.is_ours {
            // Nobody enrols it: a certificate of that authority is what admits it.
            let guest = Guest { agent: peer.agent.clone(), certificate_expires_at: peer.ends() };
            if let Err(error) = shared.ledger.admit(guest).await {
                tracing::warn!(agent = %peer.agent.id, %error, "an agent of another PKI could not be written down");
            }
        }
        let now = shared.began.elapsed();
        let seat = if shared.ledger.directory().standing(&peer.agent) == Some(Standing::Admitted) {
            accepted.admit();
            shared.agents.seat(&peer.agent, now)
        } else {
            Err(IngestError::NotAdmitted)
        };
        shared.counters.connections.inc();
        match seat {
            Ok(seat) => {
                let seat = Arc::new(seat);
                let service = service_fn(|request| {
                    let (this, peer, seat) = (self.clone(), Arc::clone(&peer), Arc::clone(&seat));
                    // Most connections are silent most of the time: what a request takes is theirs only while there is one.
                    Box::pin(async move { Ok::<_, Infallible>(this.answer(&peer, &seat, request).await) })
                });
                match accepted.serve(service, seat.withdrawn()).await {
                    Ended::Closed => (),
                    Ended::Silent => shared.excesses.note(&peer.agent, "silent", 1),
                    Ended::Unread => shared.excesses.note(&peer.agent, "unread", 1),
                }
            }
            // Answered once in words, since the agent's operator reads them; then the connection ends.
            Err(refused) => {
                shared.excesses.note(&peer.agent, refused.code(), 1);
                if let Some(_telling) = shared.agents.tell(&peer.agent, now) {
                    let service = service_fn(|_| std::future::ready(Ok::<_, Infallible>(self.refuse(&refused))));
                    accepted.serve(service, tokio::time::sleep(TELL_TIMEOUT)).await;
                }
            }
        }
        shared.counters.connections.dec();
    }

    async fn answer(&self, peer: &Peer, seat: &Seat, request: Request<Incoming>) -> Response<Body> {
        let _turn = seat.turn(self.0.began.elapsed()).await;
        let answer = if request.uri().path() == RENEW_PATH {
            self.renew(peer, seat, request).await.map(|it| serde_json::to_vec(&it))
        } else {
            self.settle(peer, seat, request).await.map(|it| serde_json::to_vec(&it))
        };
        let mut response = match answer {
            Ok(Ok(body)) => {
                self.count("ok");
                ([(CONTENT_TYPE, "application/json")], body).into_response()
            }
            Ok(Err(_)) => self.refuse(&Unavailable::Failed.into()),
            Err(error) => {
                if !matches!(error, IngestError::Unavailable(_)) {
                    self.0.excesses.note(&peer.agent, error.code(), 1);
                }
                self.refuse(&error)
            }
        };
        // hyper keeps the date of its last answer until a later one comes: after the clock was set back, the old time.
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&(self.0.clock)());
        if let Some(date) = date.ok().and_then(|it| HeaderValue::from_str(&it).ok()) {
            response.headers_mut().insert(DATE, date);
        }
        response
    }

    async fn renew(&self, peer: &Peer, seat: &Seat, request: Request<Incoming>) -> Result<RenewalAnswer, IngestError> {
        let shared = &self.0;
        if request.method() != Method::POST {
            return Err(IngestError::Method);
        }
        let (body, _room) = shared.read(request.into_body()).await?;
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
        let encoding = match shared.admit(peer, seat, &head) {
            Ok(encoding) => encoding,
            Err(refused) => {
                // A peer that is still writing would see its connection break, and not why.
                let _ = tokio::time::timeout(DRAIN_TIMEOUT, read(body, &shared.room)).await;
                seat.charge(cost_of_fault(0), shared.began.elapsed());
                return Err(refused);
            }
        };
        let (body, mut room) = shared.read(body).await.inspect_err(|_| {
            seat.charge(cost_of_fault(MAX_COMPRESSED_BYTES), shared.began.elapsed());
        })?;
        shared.counters.bytes.inc_by(body.len() as u64);
        // Only now, when all of it is here: who writes slowly takes no room from others.
        let expected = body.len().saturating_mul(USUAL_RATIO).min(MAX_DECOMPRESSED_BYTES);
        room.merge(shared.room(kib(expected)).await?);
        let length = body.len();
        let decoded = shared.decode(&peer.agent, body, encoding).await.inspect_err(|error| {
            let grown = if *error == IngestError::TooLarge { MAX_DECOMPRESSED_BYTES } else { length };
            seat.charge(cost_of_fault(grown), shared.began.elapsed());
        })?;
        let Decoded { mut incoming, series } = decoded;
        seat.pay(cost(incoming.records.len(), incoming.text_bytes), shared.began.elapsed())?;
        if let Some(more) = more_room(&incoming, room.num_permits()) {
            // It grew far beyond the usual: it may stay only if there is room now.
            let more = Arc::clone(&shared.room).try_acquire_many_owned(more).map_err(|_| Unavailable::Busy)?;
            room.merge(more);
        }
        shared.bound_series(seat, &mut incoming, &series).await?;
        shared.note(peer, &incoming);
        match shared.ledger.batch(incoming).await? {
            Settled::Acknowledged(acknowledgement) => Ok(acknowledgement),
            Settled::Beyond(acknowledgement, findings) => {
                shared.excesses.note(&peer.agent, "too_many_firing", findings);
                Ok(acknowledgement)
            }
            Settled::Gap { through } => Err(IngestError::Gap { through }),
            Settled::OtherStart => {
                seat.charge(cost_of_fault(0), shared.began.elapsed());
                Err(IngestError::OtherStart)
            }
            Settled::NotAdmitted => Err(IngestError::NotAdmitted),
        }
    }

    fn refuse(&self, error: &IngestError) -> Response<Body> {
        self.count(error.code());
        // The log of the agent and that of a proxy between have something in common by it.
        let id = ulid::Ulid::new().to_string();
        tracing::debug!(request_id = id, code = error.code(), "a request was refused");
        let mut response = error.problem().with("request_id", id).into_response();
        if error.ends_connection() {
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
    fn admit(&self, peer: &Peer, seat: &Seat, head: &Parts) -> Result<Encoding, IngestError> {
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
        is_announced_well(&head.headers)?;
        encoding(&head.headers)
    }

    /// A body that comes in time, and the room that it takes.
    async fn read(&self, body: Incoming) -> Result<(Vec<u8>, OwnedSemaphorePermit), IngestError> {
        let read = tokio::time::timeout(self.agents.limits().body, read(body, &self.room)).await;
        read.map_err(|_| IngestError::Slow)?
    }

    async fn room(&self, kib: u32) -> Result<OwnedSemaphorePermit, IngestError> {
        take_room(&self.room, kib).await
    }

    async fn decode(&self, agent: &AgentKey, body: Vec<u8>, encoding: Encoding) -> Result<Decoded, IngestError> {
        let received_at = (self.clock)();
        if body.len() <= SMALL_TEXT {
            let agents = &self.agents;
            let name = |target: &str, measure: &str| agents.series(target, measure);
            match decode(agent, &body, encoding, SMALL_TEXT, received_at, name) {
                Err(IngestError::TooLarge) => (), // small as sent, and large all the same
                decoded => return decoded,
            }
        }
        let (agent, agents) = (agent.clone(), Arc::clone(&self.agents));
        self.aside(move || {
            let name = |target: &str, measure: &str| agents.series(target, measure);
            decode(&agent, &body, encoding, MAX_DECOMPRESSED_BYTES, received_at, name)
        })
        .await
    }

    /// Refuses the summaries of series over the bound; what is stored of the batch is without them.
    async fn bound_series(
        &self,
        seat: &Seat,
        incoming: &mut ledger::Incoming,
        series: &[(usize, u64)],
    ) -> Result<(), IngestError> {
        let names: Vec<u64> = series.iter().map(|(_, name)| *name).collect();
        let over = seat.admit_series(&names, self.began.elapsed());
        if over.is_empty() {
            return Ok(());
        }
        let over: Vec<usize> = over.into_iter().map(|place| series[place].0).collect();
        for place in &over {
            incoming.records[*place].content = Content::Refused("too_many_series");
        }
        let body = std::mem::take(&mut incoming.body);
        if incoming.records.iter().any(|record| matches!(record.content, Content::InBody)) {
            incoming.body = self.aside(move || blank(&body, &over)).await?;
        }
        Ok(())
    }

    /// Does what takes too long for a runtime thread.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, IngestError> + Send + 'static,
    ) -> Result<T, IngestError> {
        let slot = Arc::clone(&self.decoders).acquire_owned().await.map_err(|_| Unavailable::Closing)?;
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            work()
        });
        work.await.map_err(|_| Unavailable::Failed)?
    }

    /// Counts what of a batch that is taken is not as it should be.
    fn note(&self, peer: &Peer, incoming: &ledger::Incoming) {
        let mut refused: BTreeMap<&'static str, u64> = BTreeMap::new();
        for record in &incoming.records {
            if let Content::Refused(code) = &record.content {
                *refused.entry(code).or_default() += 1;
            }
        }
        for (code, times) in refused {
            self.excesses.note(&peer.agent, code, times);
        }
        let ahead = incoming.sent_at.duration_since(incoming.received_at);
        let behind = SKEW + self.agents.limits().body + ROOM_TIMEOUT;
        if ahead.unsigned_abs() > if ahead.is_positive() { SKEW } else { behind } {
            self.excesses.note(&peer.agent, "clock_skew", 1);
        }
    }
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingest").field("counters", &self.0.counters).finish_non_exhaustive()
    }
}

/// Large bodies that are decoded at once: half the processors, so that no number of them keeps what is small waiting.
fn decoders() -> usize {
    std::thread::available_parallelism().map_or(1, |it| it.get() / 2).clamp(1, 4)
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

pub(super) fn encoding(headers: &HeaderMap) -> Result<Encoding, IngestError> {
    match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(Encoding::Plain),
        Some(b"zstd") => Ok(Encoding::Zstd),
        Some(_) => Err(IngestError::Encoding),
    }
}

/// What says beforehand that it is too large is not read.
pub(super) fn is_announced_well(headers: &HeaderMap) -> Result<(), IngestError> {
    let Some(value) = headers.get(CONTENT_LENGTH) else { return Ok(()) };
    // What cannot be read as a number was refused by HTTP itself.
    match value.to_str().ok().and_then(|text| text.parse::<usize>().ok()) {
        Some(length) if length <= MAX_COMPRESSED_BYTES => Ok(()),
        _ => Err(IngestError::TooLarge),
    }
}

async fn take_room(room: &Arc<Semaphore>, kib: u32) -> Result<OwnedSemaphorePermit, IngestError> {
    match tokio::time::timeout(ROOM_TIMEOUT, Arc::clone(room).acquire_many_owned(kib)).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Unavailable::Busy.into()),
    }
}

/// Reads a body; room is taken as it arrives. One that is too large is read on and thrown away for as long again, so that
/// its sender can finish writing and hear why.
async fn read(mut body: Incoming, room: &Arc<Semaphore>) -> Result<(Vec<u8>, OwnedSemaphorePermit), IngestError> {
    let (mut bytes, mut read) = (Vec::new(), 0);
    let mut held = take_room(room, kib(0)).await?;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| IngestError::Cut)?.into_data() else { continue };
        read += data.len();
        if read <= MAX_COMPRESSED_BYTES {
            while held.num_permits() << 10 < read {
                held.merge(take_room(room, STEP_KIB).await?);
            }
            bytes.extend_from_slice(&data);
        } else if read > 2 * MAX_COMPRESSED_BYTES {
            break;
        }
    }
    if read > MAX_COMPRESSED_BYTES { Err(IngestError::TooLarge) } else { Ok((bytes, held)) }
}
