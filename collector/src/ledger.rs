//! The owner of all state: an event comes in, aggregate and alert decide, one transaction is committed, then it is answered.
//!
//! One thread owns the writing connection and everything that decides. It takes whatever waits (at most 500 findings
//! at once), lets [`crate::aggregate`] and [`crate::alert`] decide, writes the de-duplication marks, the findings, the
//! incident changes, the decisions and the outbox rows they cause in **one** transaction, and answers after its commit.
//! So after a crash there is nothing to reconcile: either all of it happened or none.
//!
//! A transaction that fails leaves what was decided in memory ahead of the store: the memory is thrown away and read
//! again from the store, and everybody who waited is told to come back.

mod counters;
mod directory;
mod event;
mod lane;
mod mind;
mod rules;
mod thread;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::aggregate::{CanarySeen, PoolSum, Presence, Queue};
use crate::alert::AcknowledgementError;
use crate::store::{AcknowledgementRow, AgentRow};

pub use counters::Counters;
pub use directory::{AgentKey, Directory, Standing};
pub use event::{
    Acknowledging, Content, Delivery, Enrolment, Excess, Guest, Incoming, Numbered, Outcome, Renewal, Settled,
    Silencing, TokenRefusal,
};
pub use rules::{Owed, Rules};
pub use thread::{Config, Running, start};

/// Why the ledger did nothing. Everything may be asked again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// As much waits as may wait.
    #[error("more is waiting than the store can take")]
    Busy,
    /// The disk is full.
    #[error("the store has no room left")]
    Full,
    /// The store failed.
    #[error("the store failed")]
    Failed,
    /// The collector ends.
    #[error("the collector is closing")]
    Closing,
}

impl Unavailable {
    /// Stable name, as in a problem document.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Full => "store_full",
            Self::Failed => "store_failed",
            Self::Closing => "closing",
        }
    }

    /// When asking again makes sense.
    pub const fn retry_after(self) -> Duration {
        match self {
            Self::Busy => Duration::from_secs(1),
            Self::Closing => Duration::from_secs(2),
            Self::Full | Self::Failed => Duration::from_secs(5),
        }
    }
}

/// Whether the ledger can do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Why the last transaction was not committed, if it was not.
    pub failing: Option<Unavailable>,
    /// Bytes of the store that hold something, as of the last look (once a minute).
    pub bytes_in_use: u64,
}

/// Where events go in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    events: mpsc::Sender<Event>,
    directory: Arc<Directory>,
    outbox: watch::Receiver<u64>,
    health: watch::Receiver<Health>,
    counters: Arc<Counters>,
}

type Answer<T> = oneshot::Sender<Result<T, Unavailable>>;

enum Event {
    Batch(Box<Incoming>, Answer<Settled>),
    Enrol(Box<Enrolment>, Answer<Result<AgentRow, TokenRefusal>>),
    Renew(Renewal, Answer<bool>),
    Admit(Guest, Answer<()>),
    Delivered(Box<Delivery>, Answer<()>),
    Excess(Vec<Excess>, Answer<()>),
    Silence(Silencing, Answer<bool>),
    Acknowledge(Acknowledging, Answer<Result<AcknowledgementRow, AcknowledgementError>>),
    Reload(Box<Rules>, Answer<Result<(), Owed>>),
    Presence(Vec<AgentKey>, oneshot::Sender<Vec<Presence>>),
    Canaries(Vec<AgentKey>, oneshot::Sender<Vec<Option<CanarySeen>>>),
    Fleet(String, oneshot::Sender<Vec<PoolSum>>),
    Tick,
    Close,
}

impl Handle {
    /// Settles a batch; the answer comes after its commit. Never waits for room: an agent can come back.
    ///
    /// # Errors
    /// When nothing was done and the batch should be sent again.
    pub async fn batch(&self, batch: Incoming) -> Result<Settled, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.events.try_send(Event::Batch(Box::new(batch), answer)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Unavailable::Busy,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Closing,
        })?;
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// Uses a token and keeps the agent that comes of it.
    ///
    /// # Errors
    /// When nothing was done; the inner error says that the token gives nothing.
    pub async fn enrol(&self, enrolment: Enrolment) -> Result<Result<AgentRow, TokenRefusal>, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Enrol(Box::new(enrolment), answer)).await?;
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// Writes until when an agent's certificate lasts; false when the agent may not speak any more.
    ///
    /// # Errors
    /// When nothing was done.
    pub async fn renew(&self, renewal: Renewal) -> Result<bool, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Renew(renewal, answer)).await?;
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// Keeps an agent that another PKI vouches for, if it is not known yet, and until when its certificate lasts.
    ///
    /// # Errors
    /// When nothing was done.
    pub async fn admit(&self, guest: Guest) -> Result<(), Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Admit(guest, answer)).await?;
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// Writes what became of an attempt to deliver.
    ///
    /// # Errors
    /// When it is not written: the message will be attempted again.
    pub async fn delivered(&self, delivery: Delivery) -> Result<(), Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Delivered(Box::new(delivery), answer)).await?;
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// Writes down what agents did beyond their limits, and tells people of those that go on with it.
    ///
    /// # Errors
    /// When nothing was done.
    pub async fn excess(&self, excesses: Vec<Excess>) -> Result<(), Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Excess(excesses, answer)).await?;
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// Begins or ends a silence; false when there are as many as there may be, or none of that id to end.
    /// What it held back is decided anew with its end.
    ///
    /// # Errors
    /// When nothing was done.
    pub async fn silence(&self, silencing: Silencing) -> Result<bool, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Silence(silencing, answer)).await?;
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// Begins or ends an acknowledgement, and says what it is then. With its end whoever was told of the incident is told again.
    ///
    /// # Errors
    /// When nothing was done; the inner error says that nothing can be.
    pub async fn acknowledge(
        &self,
        asked: Acknowledging,
    ) -> Result<Result<AcknowledgementRow, AcknowledgementError>, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Acknowledge(asked, answer)).await?;
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// Goes by other rules from here on. What was held back, and what waits for its group, is looked at anew.
    ///
    /// # Errors
    /// When nothing was done; the inner error names receivers that are owed the end of something and would hear it from nobody.
    pub async fn reload(&self, rules: Rules) -> Result<Result<(), Owed>, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Reload(Box::new(rules), answer)).await?;
        answered.await.unwrap_or_else(|_| Err(self.why()))
    }

    /// What is known of the presence of these agents, in the same order.
    ///
    /// # Errors
    /// When the collector closes.
    pub async fn presence(&self, agents: Vec<AgentKey>) -> Result<Vec<Presence>, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Presence(agents, answer)).await?;
        answered.await.map_err(|_| self.why())
    }

    /// What is known of the canaries of these agents, in the same order; none of one that sends none.
    ///
    /// # Errors
    /// When the collector closes.
    pub async fn canaries(&self, agents: Vec<AgentKey>) -> Result<Vec<Option<CanarySeen>>, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Canaries(agents, answer)).await?;
        answered.await.map_err(|_| self.why())
    }

    /// Each application's part of each server of a tenant, in order of server and application.
    ///
    /// # Errors
    /// When the collector closes.
    pub async fn fleet_pools(&self, tenant: &str) -> Result<Vec<PoolSum>, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Fleet(tenant.to_owned(), answer)).await?;
        answered.await.map_err(|_| self.why())
    }

    /// Lets time pass: presence, what ended, retention. Waits for room.
    pub async fn tick(&self) -> Result<(), Unavailable> {
        self.send(Event::Tick).await
    }

    /// Takes no more events; what waits is settled first.
    pub async fn close(&self) {
        // Closed already is closed too.
        let _ = self.send(Event::Close).await;
    }

    /// Counts up when messages were queued: look at the outbox.
    pub fn outbox_changed(&self) -> watch::Receiver<u64> {
        self.outbox.clone()
    }

    /// Which agents may speak.
    pub const fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Whether the ledger can do its work.
    pub fn health(&self) -> Health {
        *self.health.borrow()
    }

    /// How many events wait, as of now: also while the thread waits for its disk.
    pub fn queue(&self) -> Queue {
        let places = self.events.max_capacity();
        Queue { waiting: places.saturating_sub(self.events.capacity()), places }
    }

    /// What it has done.
    pub const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Why an answer ended unsaid.
    fn why(&self) -> Unavailable {
        self.health().failing.unwrap_or(Unavailable::Failed)
    }

    async fn send(&self, event: Event) -> Result<(), Unavailable> {
        self.events.send(event).await.map_err(|_| Unavailable::Closing)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod turns;
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rusqlite::Connection;
    use tickbird_shared::batch::Acknowledgement;
    use tickbird_shared::{Change, Epoch, Fingerprint, Labels, Lane, Severity, Status, Timestamp};

    use super::*;
    use crate::alert::Receiver;
    use crate::pki::life::Kept;
    use crate::store::{Bounds, FindingRow, IncidentFilter, Writer};
    use crate::token::{self, Terms};

    const EPOCH: &str = "01JD7Z5W0000000000000000AA";

    fn incoming(agent: &str, first: u64, summaries: &[&str]) -> Incoming {
        let now = Timestamp::now();
        let finding = |summary: &str| FindingRow {
            id: 0,
            tenant: "default".into(),
            agent: agent.into(),
            fingerprint: Fingerprint::of("default", agent, "pool.leak", "shop", None),
            check: "pool.leak".into(),
            target: "shop".into(),
            sub_key: None,
            status: Status::Firing,
            severity: Severity::Warning,
            change: Change::Began,
            summary: summary.into(),
            reason: "r".into(),
            advice: None,
            evidence: "{}".into(),
            since: now,
            observed_at: now,
            received_at: now,
            incident: None,
        };
        let number = |(seq, summary): (u64, &&str)| Numbered {
            seq,
            width: 1,
            content: Content::Finding(Box::new(finding(summary))),
        };
        Incoming {
            tenant: "default".into(),
            agent: agent.into(),
            epoch: Epoch::try_from(EPOCH.to_owned()).expect("a ULID"),
            lane: Lane::Urgent,
            first,
            sent_at: now,
            goodbye: false,
            start: None,
            received_at: now,
            records: (first..).zip(summaries).map(number).collect(),
            digest: [0; 32],
            body: Vec::new(),
            text_bytes: 0,
        }
    }

    /// Asked from outside, for the thread cannot say so while it waits for its disk, or as here for somebody else's transaction.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_for_a_ledger_that_stands_still_is_known_all_the_same() {
        let bed = crate::testbed::Testbed::new(vec![Receiver::new("ops")]);
        let drained = async || {
            while bed.ledger.queue().waiting > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let outside = Connection::open(bed.store()).expect("opens");
        outside.execute_batch("BEGIN IMMEDIATE").expect("locks");
        bed.ledger.tick().await.expect("is there");
        tokio::time::timeout(Duration::from_secs(10), drained()).await.expect("it is taken, and waits");
        for _ in 0..900 {
            bed.ledger.tick().await.expect("has a place");
        }
        let queue = bed.ledger.queue();
        assert!(queue.waiting >= 820 && queue.places == 1_024, "{queue:?}");
        outside.execute_batch("COMMIT").expect("unlocks");
        tokio::time::timeout(Duration::from_secs(10), drained()).await.expect("nothing waits any more");
    }

    /// Else it would be told to receivers for whom nobody works.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_reload_that_cannot_be_read_back_leaves_everything_as_it_was() {
        let mut bed = crate::testbed::Testbed::new(vec![Receiver::new("ops")]);
        let outside = Connection::open(bed.store()).expect("opens");
        // An error of a read that is no damage.
        let overflow = "ALTER TABLE escalations RENAME TO elsewhere; CREATE VIEW escalations AS \
                        SELECT *, abs(-9223372036854775807 - 1) FROM (SELECT 1 AS tenant, 1 AS incident, 1 AS receiver, \
                        abs(-9223372036854775807 - 1) AS since, 1 AS steps)";
        outside.execute_batch(overflow).expect("stands in its way");
        let rules = || Rules {
            policy: vec![Receiver::new("night")].into(),
            fleet: Vec::new(),
            bounds: Bounds::default(),
            abandoned: Vec::new(),
        };
        assert_eq!(bed.ledger.reload(rules()).await, Err(Unavailable::Failed));
        let back = "DROP VIEW escalations; ALTER TABLE elsewhere RENAME TO escalations";
        outside.execute_batch(back).expect("brings it back");
        let told = || {
            let mut statement = outside.prepare("SELECT receiver FROM outbox ORDER BY id").expect("reads");
            let names = statement.query_map([], |row| row.get::<_, String>(0)).expect("reads");
            names.collect::<Result<Vec<_>, _>>().expect("reads")
        };
        bed.finds("pool.leak", "pool:shop", Severity::Warning, Change::Began).await;
        assert_eq!(told(), ["ops"]);
        assert!(matches!(bed.ledger.reload(rules()).await, Ok(Err(_))), "it is owed the end");
        bed.finds("pool.leak", "pool:shop", Severity::Warning, Change::Cleared).await;
        assert_eq!(told(), ["ops", "ops"]);
        bed.ends().await;
    }

    /// What was decided for a transaction that failed is not remembered, and nobody is told twice or not at all.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_failed_transaction_leaves_neither_rows_nor_memory() {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("store.db");
        let mut writer = Writer::create(&path).expect("creates");
        let terms = Terms { ttl: Duration::from_secs(60), uses: 1, labels: Labels::default(), ephemeral: false };
        let (row, token) = token::enrolment("ab".repeat(32), terms, Timestamp::now());
        let transaction = writer.transaction().expect("begins");
        transaction.add_token(&row).expect("writes");
        transaction.commit().expect("commits");
        let config = Config {
            rules: Rules {
                policy: vec![Receiver::new("ops")].into(),
                fleet: Vec::new(),
                bounds: Bounds::default(),
                abandoned: Vec::new(),
            },
            certificates: watch::channel(Kept::default()).1,
            strain: watch::channel(None).1,
            store: path.clone(),
            clock: Timestamp::now,
        };
        let (ledger, running) = start(writer, config).expect("starts");
        let enrolment = Enrolment {
            token_hash: token::hash(&token.secret),
            agent: "a-1".into(),
            host: "web-1".into(),
            certificate_expires_at: Timestamp::now(),
        };
        ledger.enrol(enrolment).await.expect("is there").expect("the token is good");

        // The same failure as a disk's, at the same place: a statement of the transaction is refused.
        let outside = Connection::open(&path).expect("opens");
        let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON findings BEGIN SELECT RAISE(ABORT, 'refused'); END";
        outside.execute_batch(refuse).expect("refuses");
        assert_eq!(ledger.batch(incoming("a-1", 1, &["leaks"])).await, Err(Unavailable::Failed));
        assert_eq!(ledger.health().failing, Some(Unavailable::Failed));
        // Workers that end now would take with them what became of their attempts.
        let rules =
            Rules { policy: Vec::new().into(), fleet: Vec::new(), bounds: Bounds::default(), abandoned: Vec::new() };
        assert_eq!(ledger.reload(rules).await, Err(Unavailable::Failed));
        outside.execute_batch("DROP TRIGGER refuse").expect("allows");

        let recovered = async {
            while ledger.health().failing.is_some() {
                ledger.tick().await.expect("is there");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), recovered).await.expect("recovers by itself");
        let settled = ledger.batch(incoming("a-1", 1, &["leaks"])).await;
        let expected = Acknowledgement { through: 1, refused: Vec::new() };
        assert_eq!(settled, Ok(Settled::Acknowledged(expected)));
        ledger.close().await;
        tokio::task::spawn_blocking(|| running.join()).await.expect("ends").expect("closes tidily");

        let writer = Writer::open(&path).expect("opens");
        let filter = IncidentFilter { tenant: "default".into(), limit: 9, ..IncidentFilter::default() };
        let incidents = writer.rows().incidents(&filter).expect("reads");
        assert_eq!(incidents.iter().map(|it| it.occurrences).collect::<Vec<_>>(), [1]);
        assert_eq!(writer.rows().outbox_waiting().expect("reads").len(), 1);
    }
}
