//! The thread of the ledger: takes what waits, one transaction, answers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tickbird_shared::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use crate::aggregate::{CanarySeen, PoolSum, Presence, Strain};
use crate::alert::AcknowledgementError;
use crate::pki::life::Kept;
use crate::store::{self, AcknowledgementRow, AgentRow, Aside, Condition, StoreError, Tally, Writer};

use super::mind::Mind;
use super::{
    Acknowledging, AgentKey, Answer, Content, Counters, Delivery, Directory, Enrolment, Event, Excess, Guest, Handle,
    Health, Incoming, Numbered, Owed, Renewal, Rules, Settled, Silencing, TokenRefusal, Unavailable,
};

/// Events that may wait. Each is a request that waits for its answer; over it agents are told to come back.
const WAITING: usize = 1_024;
/// Findings after which a transaction takes no further event: what waits shares one sync, and waits for some 20 ms of work.
const FINDINGS: usize = 1_000;
/// The same for bodies that are kept as they came.
const BODY_BYTES: usize = 4 << 20;
/// How long a transaction may gather events: at most this is added to an acknowledgement's wait.
const GATHER: Duration = Duration::from_millis(20);
/// Turns in a row in which what fell due is decided, at most, until the next tick: more would be a fault that goes round in a circle.
const TURNS: u32 = 500;
/// How long nothing is tried after a transaction failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the times of last word are written.
const SEEN_EVERY: Duration = Duration::from_secs(5);
/// How often a slice is deleted when none was left over.
const RETENTION_EVERY: Duration = Duration::from_secs(60);

/// What the ledger is told at start.
#[derive(Debug, Clone)]
pub struct Config {
    /// What it goes by at first.
    pub rules: Rules,
    /// The collector's own certificates.
    pub certificates: watch::Receiver<Kept>,
    /// What the collector's own parts bear; none before the first look.
    pub strain: watch::Receiver<Option<Strain>>,
    /// Where the store lies.
    pub store: PathBuf,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
}

/// The running thread.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<Result<(), StoreError>>,
}

impl Running {
    /// Waits for the end of the thread, after [`Handle::close`]. Blocks.
    ///
    /// # Errors
    /// When the store could not be closed tidily; what was acknowledged is on the disk all the same.
    pub fn join(self) -> Result<(), StoreError> {
        self.thread.join().unwrap_or(Err(StoreError::Closing))
    }
}

/// Loads the state and starts the thread.
///
/// # Errors
/// When the state cannot be read or the thread cannot be started.
pub fn start(mut writer: Writer, config: Config) -> Result<(Handle, Running), StoreError> {
    let (events, waiting) = mpsc::channel(WAITING);
    let directory = Arc::new(Directory::default());
    let counters = Arc::new(Counters::default());
    let (outbox, outbox_changed) = watch::channel(0);
    counters.add(writer.rows().tally()?);
    writer.move_beside()?;
    let mut found = Health::default();
    if !writer.lay_ballast() && !writer.has_room() {
        tracing::error!("the disk is full: nothing is stored; agents keep what they have");
        found.failing = Some(Unavailable::Full);
    }
    let (health, health_seen) = watch::channel(found);
    let mut mind = Mind::load(writer.rows(), &config.rules, (config.clock)())?;
    if let Some(owed) = Owed::beyond(&config.rules, mind.owed()) {
        tracing::warn!(advice = owed.advice(), "{owed}");
    }
    mind.publish(&directory);
    let handle = Handle {
        events,
        directory: Arc::clone(&directory),
        outbox: outbox_changed,
        health: health_seen,
        counters: Arc::clone(&counters),
    };
    let ledger = Ledger {
        aside: Aside::of(&config.store),
        writer,
        config,
        mind: Some(mind),
        directory,
        counters,
        outbox,
        health,
        paused_until: None,
        turns: 0,
        seen_at: Instant::now(),
        kept_at: None,
        first: true,
        told_full: false,
    };
    let thread = std::thread::Builder::new()
        .name("ledger".into())
        .spawn(move || ledger.run(waiting))
        .map_err(|_| StoreError::Closing)?;
    Ok((handle, Running { thread }))
}

struct Ledger {
    writer: Writer,
    config: Config,
    /// None after a failure, until the store can be read again.
    mind: Option<Mind>,
    directory: Arc<Directory>,
    counters: Arc<Counters>,
    outbox: watch::Sender<u64>,
    health: watch::Sender<Health>,
    paused_until: Option<Instant>,
    /// Turns that may follow, while more is due than one of them takes.
    turns: u32,
    seen_at: Instant,
    kept_at: Option<Instant>,
    /// Nothing was committed yet: what command lines wrote before the start was not looked at.
    first: bool,
    /// Since the disk filled up, people were told.
    told_full: bool,
    /// What was set aside of a damaged store.
    aside: Aside,
}

impl Ledger {
    fn run(mut self, mut waiting: mpsc::Receiver<Event>) -> Result<(), StoreError> {
        let mut closing = false;
        while !closing {
            let mut group = Group { goes_on: self.goes_on(), ..Group::default() };
            if !group.goes_on {
                let Some(event) = waiting.blocking_recv() else { break };
                closing |= group.add(event);
            }
            let began = Instant::now();
            while group.findings < FINDINGS && group.body_bytes < BODY_BYTES && began.elapsed() < GATHER {
                let Ok(event) = waiting.try_recv() else { break };
                closing |= group.add(event);
            }
            if let Err(error) = self.settle(group) {
                store::suspect(&self.config.store, &error.in_full());
                self.health.send_modify(|health| health.failing = Some(Unavailable::Failed));
                return Err(error);
            }
        }
        // Whoever still waits is told by the end of its channel.
        self.health.send_modify(|health| health.failing = Some(Unavailable::Closing));
        drop(waiting);
        self.finish()
    }

    /// Whether what is due does not wait for the next tick.
    fn goes_on(&self) -> bool {
        self.turns > 0 && self.mind.is_some() && self.paused_until.is_none() && self.health.borrow().failing.is_none()
    }

    /// # Errors
    /// When the store is damaged: nothing can be written until it was opened anew.
    fn settle(&mut self, mut group: Group) -> Result<(), StoreError> {
        for (agents, answer) in group.presence.drain(..) {
            let presence = self.mind.as_ref().map(|mind| mind.presence(&agents)).unwrap_or_default();
            // Whoever asked may have gone.
            let _ = answer.send(presence);
        }
        for (agents, answer) in group.canaries.drain(..) {
            let canaries = self.mind.as_ref().map(|mind| mind.canaries(&agents)).unwrap_or_default();
            let _ = answer.send(canaries);
        }
        for (tenant, answer) in group.fleet.drain(..) {
            let pools = self.mind.as_ref().map(|mind| mind.fleet_pools(&tenant)).unwrap_or_default();
            let _ = answer.send(pools);
        }
        for (rules, answer) in std::mem::take(&mut group.reloads) {
            // What became of attempts waits to be written, and would be lost with the workers that know it: the answer ends unsaid.
            if self.health.borrow().failing.is_some() {
                continue;
            }
            match self.reload(*rules) {
                Err(error) if error.is_damage() => return Err(error),
                // The health says why; the answer ends unsaid.
                Err(error) => tracing::warn!(error = error.in_full(), "the rules stay as they are"),
                // Whoever asked may have gone.
                Ok(done) => drop(answer.send(Ok(done))),
            }
        }
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            // The health says why; the answers end unsaid.
            return Ok(());
        }
        let mut is_reserved = self.health.borrow().failing == Some(Unavailable::Full);
        if is_reserved && group.tick && self.writer.has_room() {
            self.writer.lay_ballast();
            // Time has passed in which no agent could be heard.
            self.mind = None;
            (is_reserved, self.told_full) = (false, false);
        }
        if is_reserved {
            if group.tick && !self.told_full {
                self.tell_full();
            }
            group.keep_deliveries();
            if group.work.is_empty() {
                return Ok(());
            }
        }
        match self.commit(&mut group) {
            Ok(done) => {
                self.paused_until = None;
                if !is_reserved && self.health.send_if_modified(|health| health.failing.take().is_some()) {
                    tracing::info!("the store can be written again");
                }
                for (work, done) in group.work.into_iter().zip(done) {
                    work.answer(done, &self.counters);
                }
                // The reserve is for messages, not for what waits in the log.
                if !is_reserved {
                    self.writer.tidy();
                }
                if group.tick
                    && let Err(error) = self.retain()
                {
                    if error.is_damage() {
                        return Err(error);
                    }
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "what is too old could not be deleted");
                }
            }
            Err(error) if error.is_damage() => return Err(error),
            Err(error) => {
                // SQLite has other words too for a disk that is full.
                let is_full = matches!(error, StoreError::Full(_)) || self.writer.is_short();
                let why = if is_full { Unavailable::Full } else { Unavailable::Failed };
                if is_full {
                    self.writer.drop_ballast();
                }
                self.counters.failures.inc();
                // Once for each time it begins; it is tried every second.
                if self.health.borrow().failing.is_none() {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    let advice = error.advice();
                    tracing::error!(%error, cause, advice, "nothing is stored; agents keep what they have");
                }
                self.mind = None;
                self.paused_until = Some(Instant::now() + PAUSE);
                // Before the answers end, so that whoever waited can say why.
                self.health.send_modify(|health| health.failing = Some(why));
            }
        }
        Ok(())
    }

    /// The reserve pays for one more message: that nothing is stored.
    fn tell_full(&mut self) {
        let now = (self.config.clock)();
        let condition = Condition { is_full: true, damage: self.aside.newest() };
        match self.tell_condition(&condition, now) {
            Ok(()) => self.told_full = true,
            // The reserve went to somebody else; it is tried again each second.
            Err(error) => tracing::warn!(error = error.in_full(), "nobody can be told that the disk is full"),
        }
    }

    fn tell_condition(&mut self, condition: &Condition, now: Timestamp) -> Result<(), StoreError> {
        let mind = match &mut self.mind {
            Some(mind) => mind,
            lost => lost.insert(Mind::load(self.writer.rows(), &self.config.rules, now)?),
        };
        let strain = self.config.strain.borrow().clone();
        let transaction = self.writer.transaction()?;
        let told = mind
            .store_stands(&transaction, &self.config.rules.policy, condition, strain.as_ref(), now)
            .and_then(|()| transaction.commit());
        if told.is_err() {
            self.mind = None;
            return told;
        }
        if mind.publish(&self.directory) {
            self.outbox.send_modify(|changes| *changes += 1);
        }
        Ok(())
    }

    /// Goes by other rules, unless somebody would never hear the end of something.
    fn reload(&mut self, rules: Rules) -> Result<Result<(), Owed>, StoreError> {
        let now = (self.config.clock)();
        let mind = match &mut self.mind {
            Some(mind) => mind,
            lost => lost.insert(Mind::load(self.writer.rows(), &self.config.rules, now)?),
        };
        if let Some(owed) = Owed::of_change(&self.config.rules, &rules, mind.owed(), mind.waiting()) {
            return Ok(Err(owed));
        }
        self.save()?;
        // As at a start: what is held back or grouped is looked at by the rules that are. Until it is, all goes by those that were.
        let mind = Mind::load_anew(self.writer.rows(), &rules, now)?;
        self.mind = Some(match self.mind.take() {
            Some(before) => mind.after(before, (&self.config.rules.policy, &rules)),
            None => mind,
        });
        // What commands changed of agents is looked at with the next tick, whether it was noticed before or not.
        self.first = true;
        self.config.rules = rules;
        self.kept_at = None;
        Ok(Ok(()))
    }

    /// Writes what the store is behind with, because it is written now and then.
    fn save(&mut self) -> Result<(), StoreError> {
        if let Some(mind) = &mut self.mind {
            let transaction = self.writer.transaction()?;
            mind.write_seen(&transaction)?;
            mind.write_use(&transaction)?;
            transaction.commit()?;
        }
        Ok(())
    }

    /// One transaction for the whole group; what became of each piece of work, in its order.
    fn commit(&mut self, group: &mut Group) -> Result<Vec<Done>, StoreError> {
        let now = (self.config.clock)();
        let policy = &self.config.rules.policy;
        // What others wrote may have been noticed by a transaction that came to nothing.
        self.first |= self.mind.is_none();
        let mind = match &mut self.mind {
            Some(mind) => mind,
            lost => lost.insert(Mind::load(self.writer.rows(), &self.config.rules, now)?),
        };
        let commands = group.tick && self.writer.changed_elsewhere()?;
        let transaction = self.writer.transaction()?;
        if self.health.borrow().failing.is_some() {
            // Else a transaction that has nothing to write would pass for a recovery.
            transaction.prove_writable(now)?;
        }
        if commands || std::mem::take(&mut self.first) {
            mind.take_commands(&transaction, policy, now)?;
        }
        let mut done = Vec::with_capacity(group.work.len());
        let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
        for work in &mut group.work {
            done.push(match work {
                Work::Batch(batch, _) => {
                    let (settled, tally) = mind.settle(&transaction, policy, batch, now)?;
                    if tally != Tally::default() {
                        *tallies.entry(batch.tenant.clone()).or_default() += tally;
                    }
                    Done::Batch(settled, tally)
                }
                Work::Enrol(enrolment, _) => Done::Enrol(Box::new(mind.enrol(&transaction, policy, enrolment, now)?)),
                Work::Renew(renewal, _) => Done::Renew(mind.renew(&transaction, renewal)?),
                Work::Admit(guest, _) => {
                    mind.admit(&transaction, policy, guest, now)?;
                    Done::Admitted
                }
                Work::Delivered(delivery, _) => {
                    mind.deliver(&transaction, policy, delivery, now)?;
                    Done::Delivered
                }
                Work::Excess(excesses, _) => {
                    mind.exceed(&transaction, policy, excesses, now)?;
                    Done::Excess
                }
                Work::Silence(silencing, _) => Done::Silence(mind.silence(&transaction, policy, silencing, now)?),
                Work::Acknowledge(asked, _) => {
                    Done::Acknowledge(Box::new(mind.acknowledge(&transaction, policy, asked, now)?))
                }
            });
        }
        if group.tick {
            let kept = self.config.certificates.borrow().clone();
            let condition = Condition { is_full: false, damage: self.aside.newest() };
            let strain = self.config.strain.borrow().clone();
            mind.tick(&transaction, policy, &kept, (&condition, strain.as_ref()), now)?;
            if self.seen_at.elapsed() >= SEEN_EVERY {
                mind.write_seen(&transaction)?;
                self.seen_at = Instant::now();
            }
        } else if group.goes_on {
            mind.go_on(&transaction, policy, now)?;
        }
        self.turns = match mind.take_behind() {
            true if group.goes_on && !group.tick => self.turns - 1,
            true => TURNS,
            false => 0,
        };
        for (tenant, tally) in tallies {
            transaction.add_tally(&tenant, tally)?;
        }
        transaction.commit()?;
        self.counters.transactions.inc();
        mind.take_canary_latencies().into_iter().for_each(|it| self.counters.canaries.observe(f64::from(it) / 1_000.0));
        if mind.publish(&self.directory) {
            self.outbox.send_modify(|changes| *changes += 1);
        }
        Ok(done)
    }

    /// Deletes one slice of what is too old or too much, in a transaction of its own.
    fn retain(&mut self) -> Result<(), StoreError> {
        if self.kept_at.is_some_and(|at| at.elapsed() < RETENTION_EVERY) {
            return Ok(());
        }
        let transaction = self.writer.transaction()?;
        let kept = transaction.keep_within(&self.config.rules.bounds, (self.config.clock)())?;
        transaction.commit()?;
        self.counters.expired.inc_by(kept.expired);
        self.counters.evicted.inc_by(kept.evicted);
        if kept.evicted > 0 {
            tracing::warn!(rows = kept.evicted, "the store is over retention.bytes; the oldest went before their time");
        }
        // What is left over is taken at the next tick.
        self.kept_at = (!kept.more).then(Instant::now);
        let bytes_in_use = self.writer.rows().bytes_in_use()?;
        self.health.send_modify(|health| health.bytes_in_use = bytes_in_use);
        Ok(())
    }

    fn finish(mut self) -> Result<(), StoreError> {
        self.save()?;
        self.writer.close()
    }
}

/// Other rules, and who asks for them.
type Reload = (Box<Rules>, Answer<Result<(), Owed>>);

/// Agents, and who asks what is known of their canaries.
type OfCanaries = (Vec<AgentKey>, oneshot::Sender<Vec<Option<CanarySeen>>>);

/// Events that are settled together.
#[derive(Default)]
struct Group {
    work: Vec<Work>,
    presence: Vec<(Vec<AgentKey>, oneshot::Sender<Vec<Presence>>)>,
    canaries: Vec<OfCanaries>,
    fleet: Vec<(String, oneshot::Sender<Vec<PoolSum>>)>,
    reloads: Vec<Reload>,
    tick: bool,
    /// What is due is gone on with, though no second has passed.
    goes_on: bool,
    findings: usize,
    body_bytes: usize,
}

enum Work {
    Batch(Box<Incoming>, Answer<Settled>),
    Enrol(Box<Enrolment>, Answer<Result<AgentRow, TokenRefusal>>),
    Renew(Renewal, Answer<bool>),
    Admit(Guest, Answer<()>),
    Delivered(Box<Delivery>, Answer<()>),
    Excess(Vec<Excess>, Answer<()>),
    Silence(Silencing, Answer<bool>),
    Acknowledge(Acknowledging, Answer<Result<AcknowledgementRow, AcknowledgementError>>),
}

enum Done {
    Batch(Settled, Tally),
    Enrol(Box<Result<AgentRow, TokenRefusal>>),
    Renew(bool),
    Admitted,
    Delivered,
    Excess,
    Silence(bool),
    Acknowledge(Box<Result<AcknowledgementRow, AcknowledgementError>>),
}

impl Group {
    /// Adds an event; true when it is the last one.
    fn add(&mut self, event: Event) -> bool {
        match event {
            Event::Batch(batch, answer) => {
                let is_row = |record: &&Numbered| !matches!(record.content, Content::InBody | Content::Refused(_));
                self.findings += batch.records.iter().filter(is_row).count();
                self.body_bytes += batch.body.len();
                self.work.push(Work::Batch(batch, answer));
            }
            Event::Enrol(enrolment, answer) => self.work.push(Work::Enrol(enrolment, answer)),
            Event::Renew(renewal, answer) => self.work.push(Work::Renew(renewal, answer)),
            Event::Admit(guest, answer) => self.work.push(Work::Admit(guest, answer)),
            Event::Delivered(delivery, answer) => self.work.push(Work::Delivered(delivery, answer)),
            Event::Excess(excesses, answer) => self.work.push(Work::Excess(excesses, answer)),
            Event::Silence(silencing, answer) => self.work.push(Work::Silence(silencing, answer)),
            Event::Acknowledge(asked, answer) => self.work.push(Work::Acknowledge(asked, answer)),
            Event::Reload(rules, answer) => self.reloads.push((rules, answer)),
            Event::Presence(agents, answer) => self.presence.push((agents, answer)),
            Event::Canaries(agents, answer) => self.canaries.push((agents, answer)),
            Event::Fleet(tenant, answer) => self.fleet.push((tenant, answer)),
            Event::Tick => self.tick = true,
            Event::Close => return true,
        }
        false
    }
}

impl Group {
    /// Leaves only what the ballast pays for: whoever asked for something else is told to come back.
    fn keep_deliveries(&mut self) {
        self.work.retain(|work| matches!(work, Work::Delivered(..)));
        self.tick = false;
    }
}

impl Work {
    /// Tells whoever waits; it may have gone, and what was done stands all the same.
    fn answer(self, done: Done, counters: &Counters) {
        match (self, done) {
            (Self::Batch(_, answer), Done::Batch(settled, tally)) => {
                counters.add(tally);
                if settled == Settled::OtherStart {
                    counters.superseded.inc();
                }
                let _ = answer.send(Ok(settled));
            }
            (Self::Enrol(_, answer), Done::Enrol(enrolled)) => {
                let _ = answer.send(Ok(*enrolled));
            }
            (Self::Renew(_, answer), Done::Renew(done)) | (Self::Silence(_, answer), Done::Silence(done)) => {
                let _ = answer.send(Ok(done));
            }
            (Self::Acknowledge(_, answer), Done::Acknowledge(done)) => {
                let _ = answer.send(Ok(*done));
            }
            (Self::Admit(_, answer), Done::Admitted)
            | (Self::Delivered(_, answer), Done::Delivered)
            | (Self::Excess(_, answer), Done::Excess) => {
                let _ = answer.send(Ok(()));
            }
            _ => unreachable!("each piece of work is done as what it is"),
        }
    }
}
