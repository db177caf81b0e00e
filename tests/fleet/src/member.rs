//! One agent of the fleet: its certificate, its sequences, and how it behaves when it is refused.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustls::ClientConfig;
use tickbird_agent::buffer::{Item, Standing, Stored};
use tickbird_agent::ship::{self, Session, ShipError, Verdict, body};
use tickbird_shared::backoff::Backoff;
use tickbird_shared::{Epoch, Lane, Start, StartWord, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::identities::{Identity, IdentityError};
use crate::report::Tally;
use crate::{Conduct, load, misdeeds};

pub(crate) struct Member {
    number: usize,
    id: String,
    tenant: String,
    tls: Arc<ClientConfig>,
    from: Option<IpAddr>,
    /// Of an agent that is configured by nobody.
    habits: Arc<ship::Config>,
    session: Session,
    connected: bool,
    epoch: Epoch,
    start: Start,
    /// The next sequence of each lane.
    next: [u64; 2],
    /// Batches made.
    turn: u64,
    backoff: Backoff,
    random: StdRng,
    skew: Duration,
    /// A connection on which nothing is said.
    mute: Option<JoinHandle<()>>,
    is_mute_too: bool,
    conduct: Arc<Conduct>,
    tally: Arc<Tally>,
}

impl Member {
    pub(crate) fn new(
        number: usize,
        identity: &Identity,
        from: Option<IpAddr>,
        habits: &Arc<ship::Config>,
        conduct: &Arc<Conduct>,
        tally: &Arc<Tally>,
    ) -> Result<Self, IdentityError> {
        let tls = identity.tls()?;
        let mut random = StdRng::seed_from_u64(conduct.seed ^ number as u64);
        let skewed = random.random_bool(conduct.faults.skewed);
        let is_mute_too = random.random_bool(conduct.faults.half_open);
        Ok(Self {
            number,
            id: identity.agent.clone(),
            tenant: identity.tenant.clone(),
            session: session(habits, &tls, &identity.agent, from),
            habits: Arc::clone(habits),
            tls,
            from,
            connected: false,
            epoch: epoch(),
            start: first_start(),
            next: [1; 2],
            turn: 0,
            backoff: Backoff::new(habits.backoff_base, habits.backoff_cap),
            random,
            skew: if skewed { conduct.faults.skew } else { Duration::ZERO },
            mute: None,
            is_mute_too,
            conduct: Arc::clone(conduct),
            tally: Arc::clone(tally),
        })
    }

    pub(crate) fn number(&self) -> usize {
        self.number
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected
    }

    /// Its process dies, and another one takes its place.
    pub(crate) fn hang_up(&mut self) {
        self.session = session(&self.habits, &self.tls, &self.id, self.from);
        self.connected = false;
        if let Some(mute) = self.mute.take() {
            mute.abort();
        }
    }

    pub(crate) async fn open(&mut self, give_up: Instant) {
        loop {
            match self.connect().await {
                Ok(()) => return,
                Err(error) if !self.wait_after(&error, give_up).await => return,
                Err(_) => (),
            }
        }
    }

    pub(crate) async fn greet(&mut self, give_up: Instant) {
        self.say(false, give_up).await;
        if self.is_mute_too && self.mute.is_none() {
            let stream = misdeeds::connect(&self.habits.origin, Arc::clone(&self.tls), self.from).await;
            if let Ok(stream) = stream {
                self.misdid("half open");
                self.mute = Some(tokio::spawn(misdeeds::stay(stream)));
            }
        }
    }

    pub(crate) async fn part(&mut self, give_up: Instant) {
        self.say(true, give_up).await;
    }

    pub(crate) async fn send(&mut self, batches: u32, give_up: Instant) {
        let mut due = self.first_due();
        for _ in 0..batches {
            sleep_until(due).await;
            due += self.conduct.every;
            self.send_one(give_up).await;
        }
    }

    pub(crate) async fn keep_sending(&mut self, until: Instant) {
        let mut due = self.first_due();
        while due < until {
            sleep_until(due).await;
            due += self.conduct.every;
            self.send_one(until + self.habits.request_timeout).await;
        }
    }

    /// Somewhere in the first interval: agents that begin together do not speak together.
    fn first_due(&mut self) -> Instant {
        Instant::now() + self.conduct.every.mul_f64(self.random.random())
    }

    /// An empty batch.
    async fn say(&mut self, goodbye: bool, give_up: Instant) {
        let body = loop {
            let first = self.next[index(Lane::Urgent)];
            let standing =
                Standing { epoch: self.epoch.clone(), start: Some(self.start.clone()), first, is_volatile: false };
            let body = body::empty(&standing, Lane::Urgent, self.clock(), goodbye);
            let Some(verdict) = self.post(Bytes::from(body), give_up).await else { return };
            match verdict {
                Verdict::OtherStart => self.begin_anew(),
                other => break other,
            }
        };
        match body {
            Verdict::Acknowledged(_) => self.tally.note().heartbeats += 1,
            other => self.refused(&other),
        }
    }

    async fn send_one(&mut self, give_up: Instant) {
        let turn = self.turn;
        self.turn += 1;
        // Spread over the agents, not all of them in one turn.
        let is_finding =
            (turn + self.number as u64) * u64::from(self.conduct.findings) % 100 < u64::from(self.conduct.findings);
        let lane = if is_finding { Lane::Urgent } else { Lane::Bulk };
        let faults = self.conduct.faults;
        // A lane never heard of begins wherever its agent says, so there the later one would be the first.
        if self.next[index(lane)] > 1 && self.random.random_bool(faults.reordered) {
            self.misdid("reordered");
            let mut later = self.batch(lane, turn);
            later.first += later.items.len() as u64;
            if let Some(bytes) = self.bytes(&later)
                && let Some(Verdict::Acknowledged(_)) = self.post(bytes, give_up).await
            {
                self.broke("took a batch that follows one it never had");
            }
        }
        let batch = self.batch(lane, turn);
        let Some(bytes) = self.bytes(&batch) else { return };
        if self.random.random_bool(faults.cut) {
            self.misdid("cut");
            // That it breaks is what is wanted; how does not matter.
            let stream = misdeeds::connect(&self.habits.origin, Arc::clone(&self.tls), self.from).await;
            if let Ok(stream) = stream {
                let _ = misdeeds::break_off(stream, &self.habits.origin, &bytes).await;
            }
        }
        if self.deliver(batch, bytes.clone(), give_up).await && self.random.random_bool(faults.repeated) {
            self.misdid("repeated");
            let last = self.next[index(lane)] - 1;
            match self.post(bytes, give_up).await {
                Some(Verdict::Acknowledged(again)) if again.through == last => (),
                None => (),
                Some(_) => self.broke("answered a repeat in another way"),
            }
        }
    }

    /// Until it is settled, whatever that is; true when it was acknowledged.
    async fn deliver(&mut self, mut batch: Stored, mut bytes: Bytes, give_up: Instant) -> bool {
        loop {
            let began = Instant::now();
            let Some(verdict) = self.post(bytes.clone(), give_up).await else { return false };
            let lane = index(batch.lane);
            match verdict {
                Verdict::Acknowledged(answer) => {
                    let mut note = self.tally.note();
                    note.acknowledgements.add(began.elapsed());
                    note.records += batch.items.len() as u64;
                    for refused in answer.refused {
                        *note.refusals.entry(refused.code).or_default() += 1;
                    }
                    let last = batch.first + batch.items.len() as u64 - 1;
                    if answer.through != last {
                        *note.broken_promises.entry("acknowledged other than what was sent").or_default() += 1;
                    }
                    self.next[lane] = answer.through + 1;
                    return true;
                }
                Verdict::OtherStart => {
                    self.begin_anew();
                    (batch.epoch, batch.start, batch.first) =
                        (self.epoch.clone(), Some(self.start.clone()), self.next[lane]);
                }
                Verdict::Gap { through } => {
                    self.refused(&Verdict::Gap { through });
                    self.next[lane] = through + 1;
                    batch.first = through + 1;
                }
                Verdict::Split { code } => {
                    self.refused(&Verdict::Split { code });
                    self.tally.note().given_up += 1;
                    return false;
                }
            }
            match self.bytes(&batch) {
                Some(anew) => bytes = anew,
                None => return false,
            }
        }
    }

    /// One answer, after as many attempts as it takes; none when it is given up.
    async fn post(&mut self, bytes: Bytes, give_up: Instant) -> Option<Verdict> {
        loop {
            let posted = match self.connect().await {
                Ok(()) => self.session.post(bytes.clone()).await,
                Err(error) => Err(error),
            };
            match posted {
                Ok(reply) => {
                    self.backoff.reset();
                    return Some(reply.verdict);
                }
                Err(error) => {
                    if !self.wait_after(&error, give_up).await {
                        return None;
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), ShipError> {
        let began = Instant::now();
        if self.session.open().await? {
            self.tally.note().handshakes.add(began.elapsed());
        }
        self.connected = true;
        Ok(())
    }

    /// False when it is not to be tried again.
    async fn wait_after(&mut self, error: &ShipError, give_up: Instant) -> bool {
        self.connected = false;
        *self.tally.note().errors.entry(error.outcome()).or_default() += 1;
        let unit = self.random.random();
        let wait = if error.is_of_the_way() {
            self.backoff.after_failure_within(unit, self.habits.way_cap)
        } else {
            self.backoff.after_failure(unit, error.retry_after())
        };
        if !error.is_transient() && !error.is_of_the_way() || Instant::now() + wait >= give_up {
            self.tally.note().given_up += 1;
            return false;
        }
        sleep(wait).await;
        true
    }

    fn batch(&mut self, lane: Lane, turn: u64) -> Stored {
        let (count, now) = (self.conduct.records, self.clock());
        let records = match lane {
            Lane::Urgent => load::findings(count, turn, (&self.tenant, &self.id), now),
            Lane::Bulk => load::summaries(count, &mut self.random, now),
        };
        Stored {
            epoch: self.epoch.clone(),
            start: Some(self.start.clone()),
            lane,
            first: self.next[index(lane)],
            items: records.into_iter().map(Item::Record).collect(),
            is_volatile: false,
        }
    }

    fn bytes(&self, batch: &Stored) -> Option<Bytes> {
        match body::full(batch, self.clock()) {
            Ok(bytes) => Some(bytes.into()),
            Err(_) => {
                self.tally.note().given_up += 1;
                None
            }
        }
    }

    fn begin_anew(&mut self) {
        *self.tally.note().refusals.entry("other_start".into()).or_default() += 1;
        (self.epoch, self.start, self.next) = (epoch(), first_start(), [1; 2]);
    }

    fn refused(&self, verdict: &Verdict) {
        let code = match verdict {
            Verdict::Gap { .. } => "gap",
            Verdict::Split { code } => code,
            Verdict::OtherStart => "other_start",
            Verdict::Acknowledged(_) => return,
        };
        *self.tally.note().refusals.entry(code.to_owned()).or_default() += 1;
    }

    fn misdid(&self, what: &'static str) {
        *self.tally.note().misdeeds.entry(what).or_default() += 1;
    }

    fn broke(&self, what: &'static str) {
        *self.tally.note().broken_promises.entry(what).or_default() += 1;
    }

    fn clock(&self) -> Timestamp {
        (self.habits.clock)().saturating_sub(self.skew).unwrap_or(Timestamp::MIN)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mute) = self.mute.take() {
            mute.abort();
        }
    }
}

fn session(habits: &ship::Config, tls: &Arc<ClientConfig>, agent: &str, from: Option<IpAddr>) -> Session {
    let (origin, within) = (habits.origin.clone(), habits.request_timeout);
    let session = Session::new(origin, Arc::clone(tls), agent, within, habits.clock);
    match from {
        Some(from) => session.with_source(from),
        None => session,
    }
}

fn epoch() -> Epoch {
    Epoch::try_from(ulid::Ulid::new().to_string()).expect("a ULID is an epoch's form")
}

fn first_start() -> Start {
    Start { number: 1, word: StartWord::new(rand::random()), opened: 0, before: Vec::new() }
}

const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Urgent => 0,
        Lane::Bulk => 1,
    }
}
