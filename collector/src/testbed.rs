//! For tests of what stands above the ledger: a real ledger over a real store in a directory of its own, one agent, no sockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tickbird_shared::batch::Inventory;
use tickbird_shared::levels::Levels;
use tickbird_shared::{Change, Epoch, Fingerprint, Labels, Lane, Severity, Status, Timestamp};

use crate::alert::{Policy, Receiver};
use crate::ledger::{self, Content, Handle, Incoming, Numbered, Rules, Settled};
use crate::pki::life::Kept;
use crate::store::{self, AgentRow, Bounds, FindingRow, LevelsRow, MessageState, OutboxRow, Readers, Writer};

pub(crate) const TENANT: &str = "default";
pub(crate) const AGENT: &str = "a-1";

pub(crate) fn clock() -> Timestamp {
    Timestamp::now()
}

pub(crate) struct Testbed {
    directory: PathBuf,
    /// Removed with it, where it made the directory itself.
    room: Option<TempDir>,
    pub(crate) readers: Readers,
    pub(crate) ledger: Handle,
    running: ledger::Running,
    epoch: Epoch,
    next: u64,
    clock: fn() -> Timestamp,
}

impl Testbed {
    /// A new store with one agent.
    pub(crate) fn new(receivers: Vec<Receiver>) -> Self {
        let room = tempfile::tempdir().expect("makes a directory");
        let mut it = Self::within(room.path(), receivers);
        it.room = Some(room);
        it
    }

    /// The same by a clock of the caller, in memory: what it says of a disk is nothing.
    pub(crate) fn by(clock: fn() -> Timestamp, policy: Policy) -> Self {
        let room = Self::room();
        let mut it = Self::first(room.path(), policy, clock);
        it.room = Some(room);
        it
    }

    fn room() -> TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
    }

    /// The same in `collector` within a directory of the caller.
    pub(crate) fn within(directory: &Path, receivers: Vec<Receiver>) -> Self {
        Self::first(directory, receivers.into(), clock)
    }

    fn first(directory: &Path, policy: Policy, clock: fn() -> Timestamp) -> Self {
        let directory = directory.join("collector");
        std::fs::create_dir(&directory).expect("makes a directory");
        let mut writer = Writer::create(&directory.join("store.db")).expect("creates");
        let agent = AgentRow {
            tenant: TENANT.into(),
            id: AGENT.into(),
            host: "web-1".into(),
            version: Some("0.1.0".into()),
            system: None,
            token_labels: Labels::default(),
            own_labels: serde_json::from_str(r#"{"service":"shop"}"#).expect("labels"),
            targets: vec!["pool:shop".into()],
            ephemeral: false,
            enrolled_at: clock(),
            certificate_expires_at: clock(),
            denied_at: None,
            forget_at: None,
            last_seen_at: None,
            stopped_at: None,
        };
        let transaction = writer.transaction().expect("begins");
        transaction.put_agent(&agent).expect("writes");
        transaction.commit().expect("commits");
        drop(writer);
        Self::over((directory, None), policy, (Self::epoch('A'), 1), clock)
    }

    fn over(
        (directory, room): (PathBuf, Option<TempDir>),
        policy: Policy,
        (epoch, next): (Epoch, u64),
        clock: fn() -> Timestamp,
    ) -> Self {
        let path = directory.join("store.db");
        let config = ledger::Config {
            rules: Rules { policy, fleet: Vec::new(), bounds: Bounds::default(), abandoned: Vec::new() },
            certificates: tokio::sync::watch::channel(Kept::default()).1,
            strain: tokio::sync::watch::channel(None).1,
            store: path.clone(),
            clock,
        };
        let (ledger, running) = ledger::start(Writer::open(&path).expect("opens"), config).expect("starts");
        let readers = Readers::open(&path).expect("opens");
        Self { directory, room, readers, ledger, running, epoch, next, clock }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.directory.join("store.db")
    }

    /// A life of the agent's buffer: the first is `A`.
    pub(crate) fn epoch(letter: char) -> Epoch {
        Epoch::try_from(letter.to_string().repeat(26)).expect("26 letters")
    }

    /// Ends the ledger, which moves the log of changes into the store.
    pub(crate) async fn ends(self) {
        self.ledger.close().await;
        let running = self.running;
        tokio::task::spawn_blocking(move || running.join()).await.expect("joins").expect("closes");
    }

    /// Ends the ledger and starts it again over the same store. The agent's buffer begins a new life.
    pub(crate) async fn restart(self, receivers: Vec<Receiver>) -> Self {
        self.ledger.close().await;
        let running = self.running;
        tokio::task::spawn_blocking(move || running.join()).await.expect("joins").expect("closes");
        Self::over((self.directory, self.room), receivers.into(), (Self::epoch('B'), 1), self.clock)
    }

    /// The same with an agent that went on meanwhile.
    pub(crate) async fn goes_on(self, policy: Policy) -> Self {
        self.ledger.close().await;
        let running = self.running;
        tokio::task::spawn_blocking(move || running.join()).await.expect("joins").expect("closes");
        Self::over((self.directory, self.room), policy, (self.epoch, self.next), self.clock)
    }

    /// The same over what was on the disk right after the last commit.
    pub(crate) async fn dies(self, policy: Policy) -> Self {
        let room = Self::room();
        let directory = room.path().join("collector");
        std::fs::create_dir(&directory).expect("makes a directory");
        let outside = store::outside(&self.store());
        // While somebody reads, the log of changes is moved into the store, perhaps, but never begun anew: both together are whole.
        outside.execute_batch("BEGIN; SELECT count(*) FROM outbox").expect("reads");
        for name in ["store.db", "store.db-wal"] {
            std::fs::copy(self.directory.join(name), directory.join(name)).expect("copied");
        }
        drop(outside);
        let next = Self::over((directory, Some(room)), policy, (self.epoch.clone(), self.next), self.clock);
        self.ends().await;
        next
    }

    /// Lets the agent say that a check on a target began to fail, or anything else.
    pub(crate) async fn finds(&mut self, check: &str, target: &str, severity: Severity, change: Change) {
        let now = (self.clock)();
        let ended = matches!(change, Change::Cleared | Change::TargetGone);
        let finding = FindingRow {
            id: 0,
            tenant: TENANT.into(),
            agent: AGENT.into(),
            fingerprint: Fingerprint::of(TENANT, AGENT, check, target, None),
            check: check.into(),
            target: target.into(),
            sub_key: None,
            status: if ended { Status::Resolved } else { Status::Firing },
            severity,
            change,
            summary: format!("{target}: {check}"),
            reason: "3 looks".into(),
            advice: Some("look".into()),
            evidence: r#"{"open":20}"#.into(),
            since: now,
            observed_at: now,
            received_at: now,
            incident: None,
        };
        self.sends(Lane::Urgent, Content::Finding(Box::new(finding))).await;
    }

    /// Lets the agent tell these levels, and the collector look at once.
    pub(crate) async fn tells(&mut self, levels: Levels) {
        let (tenant, agent, epoch, now) = (TENANT.into(), AGENT.into(), self.epoch.clone(), (self.clock)());
        let row = LevelsRow { tenant, agent, epoch, seen_at: now, received_at: now, levels };
        self.sends(Lane::Bulk, Content::Levels(Box::new(row))).await;
        self.ledger.tick().await.expect("is there");
        // What is asked from now on is answered after that tick.
        self.ledger.presence(Vec::new()).await.expect("answers");
    }

    /// Lets the agent say what host it is on, as that was so many seconds ago: this life of its buffer, or another by a number of its own.
    pub(crate) async fn describes(&mut self, other: Option<(char, u64)>, ago: u64, host: &str) {
        let inventory = Inventory {
            version: "0.1.0".into(),
            host: host.into(),
            system: "Linux".into(),
            labels: Labels::default(),
            targets: Vec::new(),
            observed_at: (self.clock)().saturating_sub(Duration::from_secs(ago)).expect("in range"),
        };
        let content = Content::Inventory(Box::new(inventory));
        match other {
            Some((epoch, seq)) => self.sends_of((Self::epoch(epoch), seq), Lane::Bulk, content).await,
            None => self.sends(Lane::Bulk, content).await,
        }
    }

    async fn sends(&mut self, lane: Lane, content: Content) {
        let of = (self.epoch.clone(), self.next);
        self.next += 1;
        self.sends_of(of, lane, content).await;
    }

    async fn sends_of(&self, (epoch, seq): (Epoch, u64), lane: Lane, content: Content) {
        let now = (self.clock)();
        let batch = Incoming {
            tenant: TENANT.into(),
            agent: AGENT.into(),
            epoch,
            lane,
            first: seq,
            sent_at: now,
            goodbye: false,
            start: None,
            received_at: now,
            records: vec![Numbered { seq, width: 1, content }],
            digest: [seq as u8; 32],
            body: Vec::new(),
            text_bytes: 0,
        };
        let settled = self.ledger.batch(batch).await.expect("committed");
        assert!(matches!(settled, Settled::Acknowledged(_)), "{settled:?}");
    }

    pub(crate) async fn begins(&mut self, target: &str) {
        self.finds("pool.leak", target, Severity::Warning, Change::Began).await;
    }

    pub(crate) async fn clears(&mut self, target: &str) {
        self.finds("pool.leak", target, Severity::Warning, Change::Cleared).await;
    }

    /// Every message to a receiver that has been queued, in order.
    pub(crate) async fn outbox(&self) -> Vec<OutboxRow> {
        let ids = |rows: crate::store::Rows<'_>| {
            let mut messages = Vec::new();
            for incident in rows.live_incidents(Timestamp::MIN)? {
                for decision in rows.decisions(TENANT, &incident.id)? {
                    if let Some(id) = decision.message {
                        messages.extend(rows.message(TENANT, &id)?);
                    }
                }
            }
            Ok(messages)
        };
        let mut messages = self.readers.read(ids).await.expect("reads");
        messages.sort_by(|a, b| a.id.cmp(&b.id));
        messages
    }

    /// Waits until no message waits.
    pub(crate) async fn is_drained(&self) -> Vec<OutboxRow> {
        let drained = async {
            loop {
                let messages = self.outbox().await;
                if messages.iter().all(|it| it.state != MessageState::Waiting) {
                    return messages;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), drained).await.expect("drained in time")
    }
}
