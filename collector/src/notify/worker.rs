//! Empties one receiver's part of the outbox, a few incidents at a time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tickbird_shared::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::breaker::{Breaker, BreakerState};
use super::retry::{self, GIVE_UP, LONGEST, Refusals};
use super::{Answer, Destination, NotifyError, Status};
use crate::alert;
use crate::ledger::{Delivery, Handle, Outcome, Unavailable};
use crate::store::{IncidentRow, OutboxRow, Readers};

/// Attempts to one receiver at once, each of another incident.
const AT_ONCE: usize = 8;
/// The outbox is looked at this often when nothing says that it changed, so that nothing waits for a word that was missed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Wait after the store could not be read.
const STORE_PAUSE: Duration = Duration::from_secs(2);
/// How often messages of receivers that are configured no more are looked for.
const STRAYS_EVERY: Duration = Duration::from_secs(3600);
/// How many of them are given up at once.
const STRAYS: u32 = 500;

/// A receiver that is refreshed forgets what it was not told for so many times as long.
const FORGETS_AFTER: u32 = 4;
/// Wait after a refresh that failed.
const REFRESH_PAUSE: Duration = Duration::from_secs(10);
/// What a refresh is called where messages have an id.
const REFRESH: &str = "refresh";

type IncidentKey = (String, String);

/// The time by which attempts wait: that of the start, and what has passed since. Who sets the clock back would have every
/// message wait for it to come by again. What an earlier start wrote while the clock was ahead is due ([`LONGEST`]).
#[derive(Debug, Clone, Copy)]
struct Steady {
    began: Timestamp,
    started: Instant,
}

impl Steady {
    fn now(self) -> Timestamp {
        self.began.saturating_add(self.started.elapsed()).unwrap_or(Timestamp::MAX)
    }
}

pub(super) struct Worker {
    name: String,
    destination: Destination,
    readers: Readers,
    ledger: Handle,
    clock: fn() -> Timestamp,
    status: Status,
    steady: Steady,
    started: Instant,
    breaker: Breaker,
    /// It has taken something since the start, or said what it minds about one message.
    has_answered: bool,
    /// Something waits for it; none before the first look.
    has_waiting: Option<bool>,
    /// Incidents with a message under way: their next one waits.
    busy: HashSet<IncidentKey>,
    /// Of which incidents the message whose turn it is was refused for what it is: its id, and how often.
    refused: HashMap<IncidentKey, (String, Refusals)>,
    /// When it took something last.
    taken_at: Option<Timestamp>,
    /// When it is told again what it believes, since the start.
    refresh_at: Duration,
    /// How much that was the last time.
    believed: usize,
}

impl Worker {
    pub(super) fn new(
        name: String,
        destination: Destination,
        readers: Readers,
        ledger: Handle,
        clock: fn() -> Timestamp,
        status: Status,
    ) -> Self {
        let (started, breaker, busy) = (Instant::now(), Breaker::new(), HashSet::new());
        let steady = Steady { began: clock(), started };
        let (has_answered, has_waiting) = (false, None);
        Self {
            name,
            destination,
            readers,
            ledger,
            clock,
            status,
            steady,
            started,
            breaker,
            has_answered,
            has_waiting,
            busy,
            refused: HashMap::new(),
            taken_at: None,
            refresh_at: Duration::ZERO,
            believed: 0,
        }
    }

    pub(super) async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let mut changed = self.ledger.outbox_changed();
        let mut attempts = JoinSet::new();
        while !*stopping.borrow() {
            // Before looking, so that what is queued while looking is seen the next time.
            changed.borrow_and_update();
            self.refresh(&stopping).await;
            let wait = self.begin(&mut attempts, &stopping).await.min(self.until_refresh());
            self.show();
            tokio::select! {
                _ = stopping.changed() => (),
                Some(ended) = attempts.join_next() => self.end(ended),
                // When the ledger has gone, only the stop is waited for.
                Ok(()) = changed.changed() => (),
                () = tokio::time::sleep(wait) => (),
            }
        }
        while let Some(ended) = attempts.join_next().await {
            self.end(ended);
        }
    }

    /// Tells it again what it believes, when that is due. Nothing else is said to it meanwhile: an end that came first would be taken
    /// back by what was read before it. So attempts that are under way end before, and no others begin.
    async fn refresh(&mut self, stopping: &watch::Receiver<bool>) {
        let Some(every) = self.destination.refreshed_every() else { return };
        if !self.is_refresh_due() || !self.busy.is_empty() {
            return;
        }
        let now = self.started.elapsed();
        if let Some(until) = self.breaker.open_until(now) {
            self.refresh_at = until;
            return;
        }
        self.refresh_at = now + every.min(REFRESH_PAUSE);
        let name = self.name.clone();
        let read = move |rows: crate::store::Rows<'_>| {
            let mut agents = HashMap::new();
            let (incidents, known) = (rows.believed_by(&name)?, rows.heard_by(&name)?);
            for it in &incidents {
                let key = (it.tenant.clone(), it.agent.clone());
                if let Entry::Vacant(place) = agents.entry(key) {
                    place.insert(rows.agent(&it.tenant, &it.agent)?);
                }
            }
            Ok((incidents, agents, known))
        };
        let (incidents, agents, known) = match self.readers.read(read).await {
            Ok(found) => found,
            Err(error) => return tracing::warn!(receiver = %self.name, %error, "cannot read what it believes"),
        };
        self.believed = incidents.len();
        let ends_at = (self.clock)().saturating_add(every * FORGETS_AFTER).unwrap_or(Timestamp::MAX);
        let agent = |it: &IncidentRow| agents.get(&(it.tenant.clone(), it.agent.clone()))?.as_ref();
        let mut known: HashMap<_, _> = known.into_iter().map(|it| ((it.tenant, it.incident), it.labels)).collect();
        let mut known = |it: &IncidentRow| known.remove(&(it.tenant.clone(), it.id.clone()));
        for request in alert::refresh(incidents.iter().map(|it| (it, agent(it), known(it))), ends_at) {
            // Who is so slow would get what has ended by the time it comes.
            if *stopping.borrow() || self.started.elapsed() > now + every * (FORGETS_AFTER - 1) {
                return;
            }
            let result = self.destination.send(REFRESH, (self.clock)(), &request, &|| *stopping.borrow()).await;
            self.status.counters().count_refresh(&self.name, &result);
            // One that is about what is in it says nothing of the next.
            let goes_on = result.as_ref().err().is_none_or(NotifyError::is_about_the_message);
            self.heard(result);
            if !goes_on {
                return;
            }
        }
        // From the end of it, or a slow one would be told nothing else.
        self.refresh_at = self.started.elapsed() + every;
    }

    fn is_refresh_due(&self) -> bool {
        self.destination.refreshed_every().is_some() && self.started.elapsed() >= self.refresh_at
    }

    fn until_refresh(&self) -> Duration {
        match self.destination.refreshed_every() {
            // With attempts under way their end comes first.
            Some(_) if self.busy.is_empty() => self.refresh_at.saturating_sub(self.started.elapsed()),
            Some(_) | None => LONGEST_WAIT,
        }
    }

    /// Begins what may be begun now; says when to look again.
    async fn begin(&mut self, attempts: &mut JoinSet<Ended>, stopping: &watch::Receiver<bool>) -> Duration {
        if self.is_refresh_due() && !self.busy.is_empty() {
            return LONGEST_WAIT; // the end of an attempt comes first
        }
        let now = self.started.elapsed();
        let room = match self.breaker.state(now) {
            BreakerState::Closed => AT_ONCE.saturating_sub(self.busy.len()),
            BreakerState::HalfOpen => 1_usize.saturating_sub(self.busy.len()),
            BreakerState::Open => {
                let until = self.breaker.open_until(now).unwrap_or(now);
                return until.saturating_sub(now);
            }
        };
        if room == 0 {
            return LONGEST_WAIT; // the end of an attempt comes first
        }
        let (name, wall, limit) = (self.name.clone(), self.steady.now(), (room + self.busy.len()) as u32);
        let partly = self.destination.partly();
        let look = move |rows: crate::store::Rows<'_>| {
            let waits = rows.outbox_waits(&name, &partly)?;
            let gone: Vec<_> = partly.into_iter().filter(|it| !waits.contains(it)).collect();
            let due = rows.outbox_due(&name, wall, LONGEST, limit, &waits)?;
            // With all hands full the end of an attempt comes first, and a long backlog need not be searched.
            let next_at = if due.len() < limit as usize { rows.outbox_next_at(&name, wall)? } else { None };
            Ok((due, next_at, gone))
        };
        let (due, next_at, gone) = match self.readers.read(look).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(receiver = %self.name, %error, "cannot read the outbox");
                return STORE_PAUSE;
            }
        };
        self.destination.forget(&gone);
        self.has_waiting = Some(!self.busy.is_empty() || !due.is_empty() || next_at.is_some());
        let fresh = |row: &OutboxRow| !self.busy.contains(&(row.tenant.clone(), row.incident.clone()));
        let begun: Vec<_> = due.into_iter().filter(fresh).take(room).collect();
        for message in begun {
            let key = (message.tenant.clone(), message.incident.clone());
            let refusals = self.refused.get(&key).filter(|(id, _)| *id == message.id).map(|(_, it)| *it);
            self.busy.insert(key);
            let (name, destination, ledger, status) =
                (self.name.clone(), self.destination.clone(), self.ledger.clone(), self.status.clone());
            attempts.spawn(attempt(
                name,
                destination,
                (message, refusals, self.taken_at),
                ledger,
                status,
                (self.clock, self.steady),
                stopping.clone(),
            ));
        }
        let until_next = next_at.and_then(|at| Duration::try_from(at.duration_since(wall)).ok());
        until_next.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)
    }

    fn end(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ok(Ended { incident, result, refused }) = ended else {
            // A panic; its incident stays busy until the restart rather than being told out of order.
            tracing::error!(receiver = %self.name, "an attempt to deliver ended by a fault of the collector");
            return;
        };
        self.busy.remove(&incident);
        match refused {
            Some(it) => _ = self.refused.insert(incident, it),
            None => _ = self.refused.remove(&incident),
        }
        if result.is_ok() {
            self.taken_at = Some(self.steady.now());
        }
        self.heard(result);
    }

    /// Draws the consequences of an attempt.
    fn heard(&mut self, result: Result<Answer, NotifyError>) {
        let (name, before) = (&self.name, self.breaker.state(self.started.elapsed()));
        match &result {
            // It was not asked.
            Err(NotifyError::OtherKind { .. }) => (),
            Err(error) if !error.leaves_it_well() => {
                self.breaker.failed(self.started.elapsed(), rand::random());
                let failures = self.breaker.failures();
                if before == BreakerState::Closed && self.breaker.state(self.started.elapsed()) == BreakerState::Open {
                    let error = error.chain();
                    tracing::warn!(receiver = %name, error, failures, "the receiver is not asked for a while");
                }
            }
            _ => {
                if before != BreakerState::Closed {
                    tracing::info!(receiver = %name, "the receiver is back");
                }
                self.breaker.succeeded();
                self.has_answered = true;
            }
        }
        if let Err(error) = &result {
            tracing::debug!(receiver = %name, error = error.chain(), "not delivered");
        }
        let at = (self.clock)();
        self.status.update(&self.name, |status| match result {
            Ok(answer) => {
                status.delivered_at = Some(at);
                status.last_error = None;
                status.left_out = Some(answer.left_out);
            }
            Err(error) => status.last_error = Some(error.chain()),
        });
    }

    fn show(&mut self) {
        let has_nothing = self.has_waiting == Some(false) && self.believed == 0;
        if has_nothing && self.breaker.state(self.started.elapsed()) == BreakerState::HalfOpen {
            // There is nothing left to see with whether it is back, and nobody waits to know.
            self.breaker.succeeded();
        }
        let (state, failures) = (self.breaker.state(self.started.elapsed()), self.breaker.failures());
        let is_away = match (state, self.has_waiting) {
            // A receiver that nobody needs is missed by nobody, and there is nothing to try it with.
            (_, Some(false)) if self.believed == 0 => Some(false),
            (BreakerState::Closed, _) => (self.has_answered && failures == 0).then_some(false),
            (BreakerState::Open | BreakerState::HalfOpen, _) => Some(true),
        };
        self.status.update(&self.name, |status| {
            status.breaker = state;
            status.is_away = is_away;
            status.failures = failures;
        });
    }
}

/// An attempt whose outcome is written, or cannot be written any more.
struct Ended {
    incident: IncidentKey,
    result: Result<Answer, NotifyError>,
    /// The message that was refused for what it is and is tried again.
    refused: Option<(String, Refusals)>,
}

async fn attempt(
    name: String,
    destination: Destination,
    (message, refusals, taken_at): (OutboxRow, Option<Refusals>, Option<Timestamp>),
    ledger: Handle,
    status: Status,
    (clock, steady): (fn() -> Timestamp, Steady),
    stopping: watch::Receiver<bool>,
) -> Ended {
    let begins = Delivery {
        tenant: message.tenant.clone(),
        message: message.id.clone(),
        at: steady.now(),
        outcome: Outcome::Begun,
        is_counted: false,
    };
    // A store that takes nothing is no reason to tell nobody; the end is counted then, if it can be.
    let is_counted = ledger.delivered(begins).await.is_ok();
    let result = match &message.form {
        // A start with another configuration is never refused; and a reload may decide for a moment what the worker of before finds.
        Some(was) if *was != destination.kind() => {
            Err(NotifyError::OtherKind { was: was.clone(), is: destination.kind() })
        }
        _ => destination.send(&message.id, clock(), &message.body, &|| *stopping.borrow()).await,
    };
    status.counters().count(&name, &result);
    let at = clock();
    let now = steady.now();
    let refusals = Refusals::after(refusals, &result, taken_at, now);
    let end = retry::end_of(message.decided_at, at, (now, steady.started.elapsed()));
    let outcome = retry::outcome(&message, &result, refusals, (now, end), rand::random());
    if let Outcome::Dead { error, .. } = &outcome {
        let attempts = message.attempts + 1;
        tracing::error!(receiver = %name, message = %message.id, attempts, %error, "given up");
    }
    let refused = refusals.filter(|_| matches!(outcome, Outcome::Retry { .. })).map(|it| (message.id.clone(), it));
    let incident = (message.tenant.clone(), message.incident.clone());
    let delivery = Delivery { tenant: message.tenant, message: message.id, at, outcome, is_counted };
    write_down(&ledger, delivery, &stopping).await;
    Ended { incident, result, refused }
}

/// Writes an outcome, however long the store needs to recover: the message must not be sent again meanwhile.
async fn write_down(ledger: &Handle, delivery: Delivery, stopping: &watch::Receiver<bool>) {
    loop {
        match ledger.delivered(delivery.clone()).await {
            Ok(()) => return,
            Err(error) if error == Unavailable::Closing || *stopping.borrow() => {
                tracing::warn!(message = %delivery.message, %error, "an outcome is not written; the message comes again");
                return;
            }
            Err(error) => tokio::time::sleep(error.retry_after()).await,
        }
    }
}

/// Gives up, after the time that any message gets, what waits for receivers that are in no configuration any more.
pub(super) async fn give_up_strays(
    configured: Vec<String>,
    readers: Readers,
    ledger: Handle,
    clock: fn() -> Timestamp,
    mut stopping: watch::Receiver<bool>,
) {
    while !*stopping.borrow() {
        let now = clock();
        let before = now.saturating_sub(GIVE_UP).unwrap_or(Timestamp::MIN);
        let names = configured.clone();
        let found = readers.read(move |rows| rows.outbox_strays(&names, before, STRAYS)).await;
        match found {
            Ok(strays) => {
                for message in strays {
                    tracing::error!(receiver = %message.receiver, message = %message.id, "given up: not configured");
                    let outcome = Outcome::Dead { uncertain: false, error: NotifyError::NotConfigured.to_string() };
                    let delivery =
                        Delivery { tenant: message.tenant, message: message.id, at: now, outcome, is_counted: false };
                    write_down(&ledger, delivery, &stopping).await;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read the outbox"),
        }
        tokio::select! {
            _ = stopping.changed() => (),
            () = tokio::time::sleep(STRAYS_EVERY) => (),
        }
    }
}
