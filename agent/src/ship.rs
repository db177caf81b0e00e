//! Empties the buffer towards the collector: batch, send, acknowledge, back off.
//!
//! ```text
//!            ┌───────────── wait: something appended, or the next heartbeat ◀──────────┐
//!            ▼                                                                          │
//!  urgent, then bulk ─▶ batch ─▶ POST /v1/records ─▶ 200: settle in the buffer ─────────┤
//!                         ▲                       ├▶ 413, 400: half of it ──────────────┤
//!                         │                       ├▶ 409 gap: a loss for what is gone ──┤
//!                         │                       ├▶ 409 other start: a new epoch ──────┤
//!                         └──── wait, grown ◀─────┴▶ anything else: keep ───────────────┘
//! ```
//!
//! One request is under way at a time. A record leaves the buffer only by the collector's word, so whatever is cut
//! short is sent again, under the same sequences. One record that cannot be taken does not stop the others: its batch
//! is halved until it is alone, and when the collector still takes an empty batch, the record is at fault and set
//! aside.
//!
//! Between two requests the certificate is renewed when that is due, or replaced when somebody else did.

use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use tickbird_shared::backoff::Backoff;
use tickbird_shared::batch::{Acknowledgement, Loss, LossOutcome, Refused};
use tickbird_shared::protocol::HEARTBEAT_SECONDS;
use tickbird_shared::{Lane, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::buffer::{Buffer, BufferError, Heads, Item, Standing, Stored};
use crate::identity::Identity;
use crate::identity::renewal::Renewal;

mod answer;
pub mod body;
mod breaker;
mod connection;
pub mod enrolment;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod health;
mod origin;
mod pace;
mod patience;
mod renewal;
mod session;
mod skew;

pub use answer::Verdict;
pub use breaker::BreakerState;
pub use connection::ConnectionError;
pub use error::ShipError;
pub use health::{CertificateHealth, Failure, Health};
pub use origin::{Origin, OriginError};
pub use renewal::RenewError;
pub use session::{Reply, Session};

use body::Unsendable;
use breaker::Breaker;
use pace::Pace;

/// A failing disk is asked again after so long.
const BUFFER_PAUSE: Duration = Duration::from_secs(1);
/// A goodbye that is not heard in this time is not worth waiting for.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// How records are shipped.
#[derive(Debug, Clone)]
pub struct Config {
    /// The collector's listener for agents.
    pub origin: Origin,
    /// An empty batch goes out when nothing else has for so long. Ten seconds: the collector calls an agent missing
    /// after thirty.
    pub heartbeat: Duration,
    /// How long one request may take, answer included.
    pub request_timeout: Duration,
    /// Most records of one request.
    pub max_records: usize,
    /// Most bytes of records in one request, before compression; one larger record goes alone.
    pub max_raw_bytes: usize,
    /// Records a second that are sent in the long run.
    pub records_per_second: f64,
    /// Records that may be sent at once after a quiet time.
    pub burst: f64,
    /// The first wait after a failure is random up to this; each one doubles.
    pub backoff_base: Duration,
    /// The longest wait.
    pub backoff_cap: Duration,
    /// The longest wait after an attempt that did not get there: with an attempt that is under way when a cut ends it
    /// stays below a heartbeat.
    pub way_cap: Duration,
    /// Failures in a row after which only probes are sent.
    pub breaker_opens_after: u32,
    /// How long the end of the agent waits for what is still to be sent.
    pub drain_for: Duration,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
}

impl Config {
    /// What an agent does unless told otherwise: nine tenths of what a collector allows by default, so that the two
    /// never disagree.
    pub const fn new(origin: Origin, clock: fn() -> Timestamp) -> Self {
        Self {
            origin,
            heartbeat: Duration::from_secs(HEARTBEAT_SECONDS),
            request_timeout: Duration::from_secs(30),
            max_records: 1_000,
            max_raw_bytes: 512 << 10,
            records_per_second: 180.0,
            burst: 18_000.0,
            backoff_base: Duration::from_millis(500),
            backoff_cap: Duration::from_secs(30),
            way_cap: Duration::from_secs(5),
            breaker_opens_after: 5,
            drain_for: Duration::from_secs(5),
            clock,
        }
    }
}

/// Ships one buffer to one collector.
pub struct Ship {
    config: Config,
    buffer: Buffer,
    heads: watch::Receiver<Heads>,
    session: Session,
    identity: Identity,
    renewal: Renewal,
    /// When the files of another PKI are looked at again.
    files_due: Duration,
    pace: Pace,
    breaker: Breaker,
    /// Most records of the next batch, per lane: halved by the collector's word, doubled by its acknowledgement.
    limits: [usize; 2],
    /// A new epoch was begun, and nothing was acknowledged in it yet.
    has_begun_anew: bool,
    began: Instant,
    heartbeat_due: Duration,
    health: watch::Sender<Health>,
}

/// A connection, not yet open, of this identity.
fn session(config: &Config, identity: &Identity) -> Session {
    let (origin, agent) = (config.origin.clone(), &identity.card().agent);
    Session::new(origin, identity.tls(), agent, config.request_timeout, config.clock)
}

fn renewal_of(identity: &Identity) -> Renewal {
    let (begins, ends) = identity.life();
    if identity.is_renewed_here() {
        Renewal::new(begins, ends, rand::random())
    } else {
        Renewal::of_others(begins, ends)
    }
}

/// What one turn of the loop did.
enum Turn {
    Sent,
    /// Nothing to send; nothing will be before this long, unless something is appended.
    Idle(Duration),
}

impl Ship {
    /// Prepares shipping; nothing is sent before [`Ship::run`]. The receiver always holds the newest state.
    pub fn new(config: Config, identity: &Identity, buffer: Buffer) -> (Self, watch::Receiver<Health>) {
        let health = watch::Sender::new(Health::new(config.origin.to_string(), identity.life()));
        let receiver = health.subscribe();
        let backoff = Backoff::new(config.backoff_base, config.backoff_cap);
        let ship = Self {
            heads: buffer.watch_heads(),
            session: session(&config, identity),
            identity: identity.clone(),
            renewal: renewal_of(identity),
            files_due: Duration::ZERO,
            pace: Pace::new(config.records_per_second, config.burst, Duration::ZERO),
            breaker: Breaker::new(backoff, config.breaker_opens_after),
            limits: [config.max_records; 2],
            has_begun_anew: false,
            began: Instant::now(),
            // The first one goes out at once: the collector shows the agent as live before it has found anything.
            heartbeat_due: Duration::ZERO,
            health,
            buffer,
            config,
        };
        (ship, receiver)
    }

    /// Ships until `stop` is ready, then sends what still waits for a few seconds, and says goodbye. Returns early only
    /// when the buffer is closed.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                // Cut short, a request is forgotten with its connection; its records are still in the buffer.
                flow = self.step() => if flow.is_break() {
                    tracing::error!("the buffer is closed: nothing can be shipped any more");
                    return;
                },
            }
        }
        self.farewell().await;
    }

    async fn step(&mut self) -> ControlFlow<()> {
        self.publish_breaker();
        if let Some(wait) = self.breaker.wait(self.now()) {
            sleep(wait).await;
            return ControlFlow::Continue(());
        }
        self.keep_certificate().await;
        // Marked as seen before looking: what is appended from here on wakes us.
        self.heads.borrow_and_update();
        match self.turn().await {
            Ok(Turn::Sent) => ControlFlow::Continue(()),
            Ok(Turn::Idle(wait)) => tokio::select! {
                changed = self.heads.changed() => match changed {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                },
                () = sleep(wait) => ControlFlow::Continue(()),
            },
            Err(ShipError::Buffer(BufferError::Closed)) => ControlFlow::Break(()),
            Err(error) => {
                self.failed(&error);
                ControlFlow::Continue(())
            }
        }
    }

    /// Sends one batch, or a heartbeat when it is due.
    async fn turn(&mut self) -> Result<Turn, ShipError> {
        let now = self.now();
        if self.breaker.state(now) == BreakerState::HalfOpen {
            self.heartbeat(false).await?;
            return Ok(Turn::Sent);
        }
        let mut idle = self.heartbeat_due.saturating_sub(now).min(self.renewal.wait((self.config.clock)()));
        let mut unreadable = None;
        for lane in Lane::ALL {
            let allowed = self.pace.allowance(lane, now).min(self.limits[index(lane)]);
            if allowed == 0 {
                idle = idle.min(self.pace.wait(lane, now));
                continue;
            }
            match self.buffer.next_batch(lane, allowed, self.config.max_raw_bytes).await {
                Ok(Some(stored)) => {
                    self.ship(stored).await?;
                    return Ok(Turn::Sent);
                }
                Ok(None) => (),
                Err(BufferError::Closed) => return Err(BufferError::Closed.into()),
                // What cannot be read now is no reason to be taken for dead.
                Err(error) => unreadable = Some(error),
            }
        }
        if now >= self.heartbeat_due {
            self.heartbeat(false).await?;
            return Ok(Turn::Sent);
        }
        unreadable.map_or(Ok(Turn::Idle(idle)), |error| Err(error.into()))
    }

    async fn ship(&mut self, stored: Stored) -> Result<(), ShipError> {
        match self.send(&stored).await? {
            Sent::Answered(Verdict::Acknowledged(acknowledgement)) => self.acknowledged(&stored, acknowledgement).await,
            Sent::Answered(Verdict::Gap { through }) => self.bridge(&stored, through).await,
            Sent::Answered(Verdict::Split { code }) => self.split(&stored, code).await,
            Sent::Answered(Verdict::OtherStart) => self.give_way(stored.lane).await,
            Sent::NotSent(Unsendable::TooLarge) => self.split(&stored, "too_large".to_owned()).await,
            Sent::NotSent(Unsendable::NotJson { sequence }) => self.set_aside(&stored, sequence, "not_json").await,
        }
    }

    async fn acknowledged(&mut self, stored: &Stored, acknowledgement: Acknowledgement) -> Result<(), ShipError> {
        let Acknowledgement { through, refused } = acknowledgement;
        if !stored.is_volatile && self.is_ahead(stored.lane, through).await? {
            return Ok(());
        }
        if through < stored.first {
            return Err(ShipError::Garbage);
        }
        for refused in &refused {
            tracing::error!(lane = %stored.lane, seq = refused.seq, code = %crate::scrub::text(&refused.code, 64), "the collector refused a record");
        }
        let count = refused.len() as u64;
        let taken = if stored.is_volatile {
            self.buffer.settle_volatile(through, refused).await?
        } else {
            self.buffer.settle(stored.lane, through, refused).await?
        };
        let limit = &mut self.limits[index(stored.lane)];
        *limit = (*limit * 2).min(self.config.max_records);
        self.succeeded(|health| {
            health.acknowledged += taken;
            health.refused += count;
        });
        Ok(())
    }

    /// The collector knows sequences of this epoch that the buffer has not given out yet: the state directory was
    /// restored from an older copy. Under these numbers nothing new would be believed, so the epoch ends here. Who goes by
    /// starts turns the batch down before; that is no reason to believe in records which were never sent.
    async fn is_ahead(&mut self, lane: Lane, through: u64) -> Result<bool, ShipError> {
        let next = self.buffer.heads().of(lane);
        if through < next {
            return Ok(false);
        }
        tracing::warn!(%lane, through, next, "the collector knows more of this epoch than the buffer");
        self.begin_anew().await?;
        Ok(true)
    }

    /// The epoch goes on from another start of the buffer: from a copy on a second machine, from the buffer that this one
    /// is a copy of, or from the newer state that was here before. What waits is sent under a new epoch.
    async fn give_way(&mut self, lane: Lane) -> Result<(), ShipError> {
        tracing::warn!(
            %lane,
            advice = "if two machines run on copies of one state directory, enrol one of them again with a new token and --force",
            "the state directory was copied, or put back to an older copy: a new epoch begins, what waits is sent under it"
        );
        self.begin_anew().await
    }

    async fn begin_anew(&mut self) -> Result<(), ShipError> {
        // Hardly anybody else can know an epoch that was begun just now: whoever turns down that too is left alone for a while.
        if std::mem::take(&mut self.has_begun_anew) {
            return Err(ShipError::Garbage);
        }
        self.buffer.renew_epoch((self.config.clock)()).await?;
        self.has_begun_anew = true;
        self.health.send_modify(|health| health.begun_anew += 1);
        Ok(())
    }

    /// Half of the batch next time; a record that is alone already is set aside, if it is at fault.
    async fn split(&mut self, stored: &Stored, code: String) -> Result<(), ShipError> {
        let items = stored.items.len();
        if items > 1 {
            tracing::debug!(lane = %stored.lane, items, code, "the batch is halved");
            self.limits[index(stored.lane)] = items.div_ceil(2);
            return Ok(());
        }
        // Whoever turns down an empty batch too turns down everything: then no record is at fault.
        self.heartbeat(false).await?;
        match stored.items.first() {
            Some(Item::Record(_)) => {
                let code = if code == "too_large" { "too_large" } else { "malformed" };
                self.set_aside(stored, stored.first, code).await
            }
            _ => Err(ShipError::Rejected { code }),
        }
    }

    async fn set_aside(&mut self, stored: &Stored, sequence: u64, code: &'static str) -> Result<(), ShipError> {
        let lane = stored.lane;
        tracing::error!(%lane, seq = sequence, code, "a record can never be sent and is set aside");
        if stored.is_volatile {
            // It is the oldest, and what it leaves is a gap that the collector asks about.
            self.buffer.settle_volatile(sequence, vec![Refused { seq: sequence, code: code.to_owned() }]).await?;
        } else {
            self.buffer.set_aside(lane, sequence, code).await?;
        }
        self.health.send_modify(|health| health.set_aside += 1);
        Ok(())
    }

    /// The collector lacks sequences that are settled here: it was restored from an older copy. What it lacks cannot
    /// be sent again, so it is told that it is gone.
    async fn bridge(&mut self, stored: &Stored, through: u64) -> Result<(), ShipError> {
        let (from, to) = (through.saturating_add(1), stored.first - 1);
        if from > to {
            return Err(ShipError::Garbage);
        }
        tracing::warn!(lane = %stored.lane, from, to, "the collector lost what it had acknowledged");
        // Also should the answer be lost: then nobody asks again, and what still fires has to be said again all the same.
        self.health.send_modify(|health| health.bridged += 1);
        let loss = Loss { lane: stored.lane, from, to, count: to - from + 1, outcome: LossOutcome::Quarantined };
        let gone = Stored { first: from, items: vec![Item::Loss(loss)], ..stored.clone() };
        match self.send(&gone).await? {
            Sent::Answered(Verdict::Acknowledged(answer)) if answer.through >= to => {
                self.succeeded(|_| ());
                Ok(())
            }
            Sent::Answered(Verdict::OtherStart) => self.give_way(stored.lane).await,
            _ => Err(ShipError::Garbage),
        }
    }

    /// An empty batch: the collector hears that the agent is alive, or that it goes. Its answer tells what it has of the urgent
    /// lane, so that what a restored one lacks is said although nothing is found that would ask about it.
    async fn heartbeat(&mut self, goodbye: bool) -> Result<(), ShipError> {
        loop {
            let standing = self.buffer.standing(Lane::Urgent).await?;
            let body = body::empty(&standing, Lane::Urgent, (self.config.clock)(), goodbye);
            return match self.post(body, 1).await? {
                Verdict::Acknowledged(answer) => {
                    self.succeeded(|health| health.heartbeats += 1);
                    let Standing { epoch, start, first, is_volatile } = standing;
                    if is_volatile || self.is_ahead(Lane::Urgent, answer.through).await? {
                        return Ok(());
                    }
                    // Who goes says nothing more: the next start does.
                    if goodbye || answer.through.saturating_add(1) >= first {
                        return Ok(());
                    }
                    let next = Stored { epoch, start, lane: Lane::Urgent, first, items: Vec::new(), is_volatile };
                    self.bridge(&next, answer.through).await
                }
                // A goodbye has to be heard under the new epoch, too.
                Verdict::OtherStart => {
                    self.give_way(Lane::Urgent).await?;
                    continue;
                }
                Verdict::Split { code } => Err(ShipError::Rejected { code }),
                Verdict::Gap { .. } => Err(ShipError::Garbage),
            };
        }
    }

    async fn send(&mut self, stored: &Stored) -> Result<Sent, ShipError> {
        let body = match body::full(stored, (self.config.clock)()) {
            Ok(body) => body,
            Err(unsendable) => return Ok(Sent::NotSent(unsendable)),
        };
        let records = stored.items.len();
        self.health.send_modify(|health| health.sent += records as u64);
        self.post(body, records).await.map(Sent::Answered)
    }

    async fn post(&mut self, body: Vec<u8>, records: usize) -> Result<Verdict, ShipError> {
        let bytes = body.len() as u64;
        self.pace.spend(records, self.now());
        self.health.send_modify(|health| health.bytes_sent += bytes);
        let Reply { verdict, ahead } = self.session.post(body).await?;
        if ahead.is_some() {
            self.health.send_modify(|health| health.ahead = ahead);
        }
        Ok(verdict)
    }

    fn succeeded(&mut self, count: impl FnOnce(&mut Health)) {
        if self.breaker.failures() > 0 {
            tracing::info!(collector = %self.session.line.origin(), failures = self.breaker.failures(), "the collector is back");
        }
        self.breaker.succeed();
        self.has_begun_anew = false;
        self.heartbeat_due = self.now() + self.config.heartbeat;
        let now = (self.config.clock)();
        self.health.send_modify(|health| {
            health.requests += 1;
            health.breaker = BreakerState::Closed;
            health.failures_in_a_row = 0;
            health.last_success = Some(now);
            health.last_error = None;
            count(health);
        });
    }

    fn failed(&mut self, error: &ShipError) {
        let now = self.now();
        match error {
            // The way to the collector works.
            ShipError::Limited { retry_after } => {
                self.pace.empty(now);
                let jitter = self.config.backoff_base.mul_f64(rand::random());
                self.breaker.pause(now, retry_after.unwrap_or_default() + jitter);
            }
            ShipError::Buffer(_) => self.breaker.pause(now, BUFFER_PAUSE),
            ShipError::Denied { code } if code == "certificate_ended" => {
                self.renewal.hurry();
                self.breaker.fail(now, rand::random(), None);
            }
            error if error.is_of_the_way() => {
                self.breaker.fail_on_the_way(now, rand::random(), self.config.way_cap);
            }
            _ => self.breaker.fail(now, rand::random(), error.retry_after()),
        }
        let failure = Failure {
            outcome: error.outcome(),
            text: health::told(error),
            advice: error.advice(),
            at: (self.config.clock)(),
            is_transient: error.is_transient(),
        };
        let failures = self.breaker.failures();
        // Once when it begins and once when the breaker opens; the rest is in the status.
        if failures <= 1 || failures == self.config.breaker_opens_after {
            tracing::warn!(collector = %self.session.line.origin(), outcome = failure.outcome, error = failure.text, failures, "cannot ship");
        }
        let breaker = self.breaker.state(now);
        self.health.send_modify(|health| {
            health.failures += 1;
            health.failures_in_a_row = failures;
            health.breaker = breaker;
            health.last_error = Some(failure);
        });
    }

    fn publish_breaker(&self) {
        let state = self.breaker.state(self.now());
        self.health.send_if_modified(|health| std::mem::replace(&mut health.breaker, state) != state);
    }

    /// Sends what still waits, as long as that works, then says goodbye. Whatever remains is sent by the next start.
    async fn farewell(&mut self) {
        let drained = timeout(self.config.drain_for, async {
            while self.breaker.failures() == 0 && self.breaker.wait(self.now()).is_none() {
                match self.turn().await {
                    Ok(Turn::Sent) => {}
                    Ok(Turn::Idle(_)) => break,
                    Err(error) => {
                        self.failed(&error);
                        break;
                    }
                }
            }
        });
        if drained.await.is_err() {
            tracing::info!("the backlog is too long to be sent before the end");
        }
        match timeout(GOODBYE_TIMEOUT, self.heartbeat(true)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = health::told(&error), "the collector did not hear the goodbye"),
            Err(_) => tracing::debug!("the collector did not hear the goodbye in time"),
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

/// What became of a batch.
enum Sent {
    Answered(Verdict),
    NotSent(Unsendable),
}

const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Urgent => 0,
        Lane::Bulk => 1,
    }
}

#[cfg(test)]
mod tests;
