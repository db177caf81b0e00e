//! Delivers what alert decided: at least once, in order per incident, the same bytes each time.
//!
//! One worker per receiver empties its part of the outbox, so a receiver that is away delays nobody else. The outcome of
//! each attempt is written by the ledger; until it is, the incident's next message waits. An attempt that was under way
//! when the process was killed is made again: the id tells the receiver that it is the same message.

mod breaker;
mod connect;
pub mod email;
mod retry;
mod smtp;
pub mod webhook;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tickbird_shared::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::alert::{self, Head};
use crate::ledger::Handle;
use crate::store::Readers;

pub use breaker::BreakerState;
pub use connect::{TlsError, Trust};
pub use smtp::Step;

/// Why a message was not delivered. The text holds neither the path of a URL nor anything that the receiver answered.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// Nobody answers there, or the name is not known.
    #[error("cannot connect to {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The receiver's certificate is not trusted, or it does not speak TLS.
    #[error("no TLS session with {address}")]
    Handshake {
        /// Host and port.
        address: String,
        /// What TLS said.
        source: std::io::Error,
    },
    /// The connection ended before the answer.
    #[error("the connection ended before the answer")]
    Broken(#[source] hyper::Error),
    /// No answer in time.
    #[error("no answer within {} ms", after.as_millis())]
    TimedOut {
        /// How long was waited.
        after: Duration,
        /// The request had been sent, at least in part.
        uncertain: bool,
    },
    /// The answer was not a yes.
    #[error("answered {status}{}", if (300..400).contains(status) { "; redirects are not followed" } else { "" })]
    Answered {
        /// HTTP status.
        status: u16,
        /// What the receiver asked for.
        retry_after: Option<Duration>,
    },
    /// The connection to a mail server ended before the answer.
    #[error("the connection ended before the answer")]
    Ended {
        /// What the system said.
        source: std::io::Error,
        /// The letter had been sent.
        uncertain: bool,
    },
    /// A mail server said no.
    #[error("answered {code} to {}", step.as_str())]
    Said {
        /// To what.
        step: Step,
        /// Its code.
        code: u16,
    },
    /// The mail server knows no STARTTLS, and nothing else is sent in the clear.
    #[error("offers no STARTTLS, and nothing is sent in the clear")]
    NoStartTls,
    /// Somebody spoke behind the answer to STARTTLS and before TLS.
    #[error("said more in the clear than that TLS may begin")]
    SaidBeforeTls,
    /// The mail server asks for no password, or only in ways that are not known here.
    #[error("offers no login by PLAIN or LOGIN")]
    NoLogin,
    /// What answers there is no mail server.
    #[error("does not speak SMTP")]
    NoSmtp {
        /// The letter had been sent.
        uncertain: bool,
    },
    /// Some requests of a message were taken, and one was not.
    #[error("took a part of it")]
    TookAPart(#[source] Box<Self>),
    /// A mail server takes a letter for some later, if at all.
    #[error("{}", put_off(recipients, *others_have_it))]
    PutOff {
        /// Who, and by what code.
        recipients: Vec<(String, u16)>,
        /// Whether anybody has it.
        others_have_it: bool,
    },
    /// The collector ends, or goes on with another configuration.
    #[error("the collector did not wait for the rest")]
    Stopped,
    /// It is in no configuration.
    #[error("the receiver is not configured")]
    NotConfigured,
    /// It is of another kind than when the message was written.
    #[error("the message was written for a receiver of the kind `{was}`, and this one is `{is}` now")]
    OtherKind {
        /// What it was.
        was: String,
        /// What it is.
        is: &'static str,
    },
}

fn put_off(recipients: &[(String, u16)], others_have_it: bool) -> String {
    let word = if recipients.iter().any(|(_, code)| *code < 500) { "puts off" } else { "refuses" };
    format!("{word} {}{}", Named(recipients), if others_have_it { "; the others have it" } else { "" })
}

impl NotifyError {
    /// Whether the receiver may have heard the message all the same. A gateway that lost its other side, and a receiver
    /// that failed on the way, may have acted before.
    pub const fn is_uncertain(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Handshake { .. } | Self::Stopped => false,
            Self::NotConfigured | Self::OtherKind { .. } => false,
            Self::Said { .. } | Self::NoStartTls | Self::SaidBeforeTls | Self::NoLogin => false,
            Self::Broken(_) | Self::TookAPart(_) => true,
            Self::PutOff { others_have_it, .. } => *others_have_it,
            Self::TimedOut { uncertain, .. } | Self::Ended { uncertain, .. } | Self::NoSmtp { uncertain } => *uncertain,
            Self::Answered { status, .. } => matches!(*status, 500 | 502 | 504),
        }
    }

    /// What the receiver asked for.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answered { retry_after, .. } => *retry_after,
            Self::TookAPart(rest) => rest.retry_after(),
            _ => None,
        }
    }

    /// The error and its causes in one line, as it is stored and shown.
    fn chain(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |cause| cause.source());
        causes.fold(self.to_string(), |line, cause| format!("{line}: {cause}"))
    }

    /// Whether this one message is never taken, whatever becomes of others: it is too large, or in the wrong form.
    const fn is_hopeless(&self) -> bool {
        match self {
            Self::Answered { status, .. } => *status == 413,
            Self::TookAPart(rest) => rest.is_hopeless(),
            Self::OtherKind { .. } => true,
            _ => false,
        }
    }

    /// Whether it is about this one message, and the receiver is well. What a mail server says of a recipient it says of every
    /// letter; who names a time at which to come again does not mind the message (RFC 9110, section 15.5.14).
    const fn is_about_the_message(&self) -> bool {
        match self {
            Self::Answered { status, retry_after } => matches!(status, 400 | 413 | 422) && retry_after.is_none(),
            Self::Said { step: Step::Letter, code } => matches!(code, 500..600),
            Self::TookAPart(rest) => rest.is_about_the_message(),
            Self::OtherKind { .. } => true,
            _ => false,
        }
    }

    /// Whether the receiver is well all the same: it minds this one message, or some of its recipients have it.
    const fn leaves_it_well(&self) -> bool {
        self.is_about_the_message() || matches!(self, Self::PutOff { others_have_it: true, .. })
    }
}

/// The yes of a receiver. Codes alone, and none of its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status of HTTP, or the code of SMTP.
    code: u16,
    /// Recipients of a letter whom the server did not take it for while it did for others, and by what code.
    left_out: Vec<(String, u16)>,
}

impl Answer {
    const fn of(code: u16) -> Self {
        Self { code, left_out: Vec::new() }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answered {}", self.code)?;
        if self.left_out.is_empty() { Ok(()) } else { write!(f, ", but not for {}", Named(&self.left_out)) }
    }
}

/// Recipients with their codes; ten of them by name.
struct Named<'a>(&'a [(String, u16)]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED: usize = 10;
        for (index, (address, code)) in self.0.iter().take(NAMED).enumerate() {
            write!(f, "{}{address} ({code})", if index == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// How far an attempt came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing of the message can have been heard, or it was refused.
    Connecting,
    /// From here on the receiver may have heard it.
    Sent,
    /// The yes was heard, by this code.
    Taken(u16),
}

impl Phase {
    /// What an attempt that came so far has come to when its time is over.
    const fn timed_out(self, after: Duration) -> Result<u16, NotifyError> {
        match self {
            Self::Taken(code) => Ok(code),
            Self::Connecting => Err(NotifyError::TimedOut { after, uncertain: false }),
            Self::Sent => Err(NotifyError::TimedOut { after, uncertain: true }),
        }
    }
}

/// Where a receiver is, and how it is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Destination {
    /// By a request.
    Webhook(webhook::Config),
    /// By a request that a chat takes.
    Chat(webhook::Config),
    /// By a letter.
    Email(email::Config),
    /// By requests that say what changed, and again and again what fires.
    Alertmanager(webhook::Config, Duration),
}

impl Destination {
    /// What it is, as a configuration names it: the form of the messages that it takes.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Chat(_) => "slack",
            Self::Email(_) => "email",
            Self::Alertmanager(..) => "alertmanager",
        }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        match self {
            Self::Webhook(it) | Self::Chat(it) | Self::Alertmanager(it, _) => it.address(),
            Self::Email(it) => it.address(),
        }
    }

    /// Makes one attempt with the bytes that were stored. A message of several requests ends between two of them when it `is_over`.
    ///
    /// # Errors
    /// When no yes was heard; the error knows whether the receiver may have heard the message all the same.
    pub async fn send(
        &self,
        id: &str,
        at: Timestamp,
        stored: &[u8],
        is_over: &(dyn Fn() -> bool + Sync),
    ) -> Result<Answer, NotifyError> {
        let (head, body) = Head::split(stored);
        match self {
            Self::Webhook(it) | Self::Chat(it) => match head {
                Some(head) => it.decided(&head).send(id, at, body).await.map(Answer::of),
                None => it.send(id, at, body).await.map(Answer::of),
            },
            Self::Email(it) => it.send(id, at, body).await,
            Self::Alertmanager(it, _) => {
                let mut taken = None;
                for part in alert::requests_of(body) {
                    if taken.is_some() && is_over() {
                        return Err(NotifyError::TookAPart(Box::new(NotifyError::Stopped)));
                    }
                    let part = it.send(id, at, part).await;
                    let failed = |error| if taken.is_some() { NotifyError::TookAPart(Box::new(error)) } else { error };
                    taken = Some(part.map_err(failed)?);
                }
                Ok(Answer::of(taken.expect("what is split has one part at least")))
            }
        }
    }

    /// How often it is told what it believes already, where it would forget it otherwise.
    /// Messages that some of those behind it have, and others will: what follows them goes to the former meanwhile.
    fn partly(&self) -> Vec<String> {
        match self {
            Self::Email(it) => it.partly(),
            Self::Webhook(_) | Self::Chat(_) | Self::Alertmanager(..) => Vec::new(),
        }
    }

    /// Those that wait for nobody any more, whatever became of them.
    fn forget(&self, ids: &[String]) {
        if let Self::Email(it) = self {
            it.forget(ids);
        }
    }

    const fn refreshed_every(&self) -> Option<Duration> {
        match self {
            Self::Webhook(_) | Self::Chat(_) | Self::Email(_) => None,
            Self::Alertmanager(_, every) => Some(*every),
        }
    }

    /// What it gets, for a person.
    pub fn shown(&self, id: &str, at: Timestamp, stored: &[u8]) -> String {
        let (head, body) = Head::split(stored);
        match self {
            Self::Webhook(_) | Self::Chat(_) | Self::Alertmanager(..) => {
                let document = serde_json::from_slice::<serde_json::Value>(body);
                let body = document.map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |it| format!("{it:#}"));
                let Some(Head { method, headers }) = head else { return body };
                let headers = headers.iter().map(|(name, value)| format!("{name}: {value}"));
                let lines: Vec<_> = method.into_iter().chain(headers).chain([String::new(), body]).collect();
                lines.join("\n")
            }
            Self::Email(it) => String::from_utf8_lossy(&it.written(id, at, body)).replace("\r\n", "\n"),
        }
    }
}

/// What the workers are told at start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Each receiver by its name.
    pub receivers: Vec<(String, Destination)>,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
}

/// How delivery to one receiver goes.
#[derive(Debug, Clone)]
pub struct ReceiverStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Host and port.
    pub address: String,
    /// Whether it is asked.
    pub breaker: BreakerState,
    /// It is not asked as always, and something waits for it; none while nobody knows: after the start, or after a first failure.
    pub is_away: Option<bool>,
    /// Attempts that failed in a row.
    pub failures: u32,
    /// What the last failure said.
    pub last_error: Option<String>,
    /// When it last took a message, since start.
    pub delivered_at: Option<Timestamp>,
    /// Recipients for whom its server did not take the last letter that it took, and what it said; none until it took one.
    pub left_out: Option<Vec<(String, u16)>>,
}

/// How delivery to all receivers goes. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Status(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    receivers: Mutex<Vec<ReceiverStatus>>,
    counters: Counters,
}

impl Status {
    /// One entry per configured receiver, in the order of the configuration.
    pub fn receivers(&self) -> Vec<ReceiverStatus> {
        self.lock().clone()
    }

    /// What was attempted since start.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    fn update(&self, name: &str, change: impl FnOnce(&mut ReceiverStatus)) {
        if let Some(receiver) = self.lock().iter_mut().find(|it| it.name == name) {
            change(receiver);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ReceiverStatus>> {
        self.0.receivers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attempts by receiver and by what they came to.
#[derive(Debug, Default)]
pub struct Counters {
    attempts: Family<AttemptLabels, Counter>,
    refreshes: Family<AttemptLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    receiver: String,
    outcome: AttemptOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AttemptOutcome {
    Delivered,
    Refused,
    Uncertain,
}

impl EncodeLabelValue for AttemptOutcome {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let word = match self {
            Self::Delivered => "delivered",
            Self::Refused => "refused",
            Self::Uncertain => "uncertain",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

impl Counters {
    /// Adds them to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Attempts to deliver; after an uncertain one the receiver may hear the message twice";
        registry.register("tickbird_notify_attempts", help, self.attempts.clone());
        let help = "Requests that told a receiver again what it believes, so that it does not forget it";
        registry.register("tickbird_notify_refreshes", help, self.refreshes.clone());
    }

    fn count(&self, receiver: &str, result: &Result<Answer, NotifyError>) {
        Self::add(&self.attempts, receiver, result);
    }

    fn count_refresh(&self, receiver: &str, result: &Result<Answer, NotifyError>) {
        Self::add(&self.refreshes, receiver, result);
    }

    fn add(family: &Family<AttemptLabels, Counter>, receiver: &str, result: &Result<Answer, NotifyError>) {
        let outcome = match result {
            Ok(_) => AttemptOutcome::Delivered,
            Err(error) if error.is_uncertain() => AttemptOutcome::Uncertain,
            Err(_) => AttemptOutcome::Refused,
        };
        family.get_or_create(&AttemptLabels { receiver: receiver.into(), outcome }).inc();
    }
}

/// The running workers.
#[derive(Debug)]
pub struct Running {
    /// By the receiver's name; also those of receivers that are configured no more, until they have ended.
    stations: BTreeMap<String, Station>,
    /// Who looks after messages whose receiver is configured no more.
    strays: Station,
    status: Status,
    readers: Readers,
    ledger: Handle,
}

/// One task, where it delivers to, and how it is told to end.
#[derive(Debug)]
struct Station {
    destination: Option<Destination>,
    stop: watch::Sender<bool>,
    /// One task, and nothing once it has ended.
    task: JoinSet<()>,
}

impl Station {
    fn start<F>(destination: Option<Destination>, work: impl FnOnce(watch::Receiver<bool>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopping) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(work(stopping));
        Self { destination, stop, task }
    }

    /// Lets it begin no more attempts.
    fn stop(&self) {
        // One that has ended hears nothing.
        let _ = self.stop.send(true);
    }

    async fn end(mut self) {
        self.stop();
        while self.task.join_next().await.is_some() {}
    }
}

/// Starts a worker per receiver, and one for messages whose receiver is configured no more.
pub fn start(config: Config, readers: Readers, ledger: Handle) -> Running {
    let strays = strays(&config, readers.clone(), ledger.clone());
    let mut running = Running { stations: BTreeMap::new(), strays, status: Status::default(), readers, ledger };
    running.begin(config);
    running
}

fn strays(config: &Config, readers: Readers, ledger: Handle) -> Station {
    let (names, clock) = (config.receivers.iter().map(|(name, _)| name.clone()).collect(), config.clock);
    Station::start(None, |stopping| worker::give_up_strays(names, readers, ledger, clock, stopping))
}

impl Running {
    /// How delivery goes.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Delivers by another configuration from here on. A receiver that is what it was is told on; of one that changed or has gone,
    /// attempts under way end by the configuration there was, and those by the new one begin after them.
    pub fn reload(&mut self, config: Config) {
        // What the one before had not come to is found by this one.
        self.strays = strays(&config, self.readers.clone(), self.ledger.clone());
        self.begin(config);
    }

    fn begin(&mut self, config: Config) {
        let before = self.status.receivers();
        // One that ended by a fault of the collector begins anew.
        for it in self.stations.values_mut() {
            if it.task.try_join_next().is_some() {
                it.destination = None;
            }
        }
        let is_kept = |name: &str, destination: &Destination| {
            self.stations.get(name).is_some_and(|it| it.destination.as_ref() == Some(destination))
        };
        let of = |(name, destination): &(String, Destination)| {
            let known = before.iter().find(|it| it.name == *name);
            if let Some(known) = known.filter(|_| is_kept(name, destination)) {
                return known.clone();
            }
            ReceiverStatus {
                name: name.clone(),
                address: destination.address(),
                breaker: BreakerState::Closed,
                is_away: None,
                failures: 0,
                last_error: known.and_then(|it| it.last_error.clone()),
                delivered_at: known.and_then(|it| it.delivered_at),
                left_out: None,
            }
        };
        let statuses = config.receivers.iter().map(of).collect();
        let (kept, new): (Vec<_>, Vec<_>) =
            config.receivers.into_iter().partition(|(name, destination)| is_kept(name, destination));
        *self.status.lock() = statuses;
        let mut left = std::mem::take(&mut self.stations);
        for (name, _) in kept {
            self.stations.extend(left.remove_entry(&name));
        }
        for (name, destination) in new {
            let before = left.remove(&name);
            let (readers, ledger, status) = (self.readers.clone(), self.ledger.clone(), self.status.clone());
            let (of, to, clock) = (name.clone(), destination.clone(), config.clock);
            let station = Station::start(Some(destination), |stopping| async move {
                if let Some(before) = before {
                    before.end().await;
                }
                worker::Worker::new(of, to, readers, ledger, clock, status).run(stopping).await;
            });
            self.stations.insert(name, station);
        }
        for (name, mut gone) in left {
            gone.stop();
            gone.destination = None;
            if gone.task.try_join_next().is_none() {
                self.stations.insert(name, gone);
            }
        }
    }

    /// Begins no more attempts, and waits for those under way: at most as long as one may take. Stop the ledger later,
    /// so that their outcomes are written.
    pub async fn stop(self) {
        let stations: Vec<_> = self.stations.into_values().chain([self.strays]).collect();
        stations.iter().for_each(Station::stop);
        for station in stations {
            station.end().await;
        }
    }
}

#[cfg(test)]
mod tests;
