//! A collector that is killed goes on where its disk stands: levels, incidents of the fleet and the use of pools.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use tickbird_shared::levels::{Amount, FORM, Levels, PoolLevel, ServerLevel, ServerName};
use tickbird_shared::{Epoch, Lane, Severity, Status, Timestamp};

use super::*;
use crate::alert::Receiver;
use crate::store::{AgentRow, Bounds, IncidentFilter, IncidentRow, LevelsRow, Writer};

/// Seconds of the test's own clock.
static NOW: AtomicI64 = AtomicI64::new(1_790_000_000);

fn clock() -> Timestamp {
    Timestamp::from_second(NOW.load(Ordering::Relaxed)).expect("in range")
}

fn agent() -> AgentRow {
    AgentRow::enrolled(("default", "a-1"), "web-1", clock(), clock())
}

fn levels(limit: u32) -> Levels {
    let server = ServerName { system: Some("7312".into()), replica: false, address: "10.0.0.5:5432".into() };
    let pool = PoolLevel {
        target: "pool:shop/main>10.0.0.5:5432".into(),
        server: server.clone(),
        database: None,
        user: None,
        application: "shop".into(),
        instances: 4,
        limit: Amount::Known(limit),
        open: 9,
        leased: Amount::Between(3, 9),
        dsn: None,
        by_transaction: None,
    };
    // Somebody with psql, of whom nobody knows a limit.
    let person = PoolLevel {
        target: "pool:psql/main>10.0.0.5:5432".into(),
        application: "psql".into(),
        instances: 1,
        limit: Amount::Unknown("no limit is configured or can be read".into()),
        open: 1,
        leased: Amount::Known(0),
        ..pool.clone()
    };
    let addresses = vec![server.address.clone()];
    let server = ServerLevel {
        server,
        addresses,
        asked_as: None,
        slots: Amount::Known(57),
        used: Amount::Known(11),
        by_transaction: None,
    };
    Levels { form: FORM, observed_at: clock(), pools: vec![pool, person], left_out: 0, servers: vec![server] }
}

struct Running {
    path: PathBuf,
    ledger: Handle,
    thread: super::Running,
    next: u64,
}

impl Running {
    fn over(path: &Path, next: u64) -> Self {
        let config = Config {
            rules: Rules {
                policy: vec![Receiver::new("ops")].into(),
                fleet: Vec::new(),
                bounds: Bounds::default(),
                abandoned: Vec::new(),
            },
            certificates: tokio::sync::watch::channel(crate::pki::life::Kept::default()).1,
            strain: tokio::sync::watch::channel(None).1,
            store: path.to_owned(),
            clock,
        };
        let (ledger, thread) = start(Writer::open(path).expect("opens"), config).expect("starts");
        Self { path: path.to_owned(), ledger, thread, next }
    }

    /// A minute in which the agent tells a limit every ten seconds.
    async fn minute(&mut self, limit: u32) {
        for second in 0..60 {
            NOW.fetch_add(1, Ordering::Relaxed);
            if second % 10 == 0 {
                self.tells(limit).await;
            }
            self.passes().await;
        }
    }

    /// One tick, and its transaction: what is asked together with a tick is answered before it, the next after it.
    async fn passes(&self) {
        self.ledger.tick().await.expect("is there");
        for _ in 0..2 {
            self.ledger.presence(Vec::new()).await.expect("answers");
        }
    }

    async fn tells(&mut self, limit: u32) {
        let now = clock();
        let row = LevelsRow {
            tenant: "default".into(),
            agent: "a-1".into(),
            epoch: Epoch::try_from("A".repeat(26)).expect("26 letters"),
            seen_at: now,
            received_at: now,
            levels: levels(limit),
        };
        let batch = Incoming {
            tenant: row.tenant.clone(),
            agent: row.agent.clone(),
            epoch: row.epoch.clone(),
            lane: Lane::Bulk,
            first: self.next,
            sent_at: now,
            goodbye: false,
            start: None,
            received_at: now,
            records: vec![Numbered { seq: self.next, width: 1, content: Content::Levels(Box::new(row)) }],
            digest: [0; 32],
            body: Vec::new(),
            text_bytes: 0,
        };
        self.next += 1;
        assert!(matches!(self.ledger.batch(batch).await, Ok(Settled::Acknowledged(_))));
    }

    /// What a kill at this moment leaves on the disk, and a ledger over it.
    fn killed(&self) -> Self {
        let after = self.path.with_file_name(format!("after-{}.db", self.next));
        for suffix in ["", "-wal"] {
            let of = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            std::fs::copy(of(&self.path), of(&after)).expect("copies");
        }
        Self::over(&after, self.next)
    }

    async fn ends(self) {
        self.ledger.close().await;
        tokio::task::spawn_blocking(|| self.thread.join()).await.expect("ends").expect("closes tidily");
    }

    fn incidents(&self) -> Vec<IncidentRow> {
        let filter = IncidentFilter { tenant: "default".into(), limit: 9, ..IncidentFilter::default() };
        let writer = Writer::open(&self.path).expect("opens");
        let all = writer.rows().incidents(&filter).expect("reads");
        all.into_iter().filter(|it| it.check == "fleet.pool_budget").collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_neither_forgets_nor_repeats_what_the_fleet_is_told_for() {
    let room = tempfile::tempdir().expect("a directory");
    let path = room.path().join("store.db");
    let mut writer = Writer::create(&path).expect("creates");
    let transaction = writer.transaction().expect("begins");
    transaction.put_agent(&agent()).expect("writes");
    transaction.commit().expect("commits");
    drop(writer);

    let mut before = Running::over(&path, 1);
    before.minute(58).await;
    let [opened] = &before.incidents()[..] else { panic!("{:?}", before.incidents()) };
    assert_eq!((opened.status, opened.severity, opened.agent.as_str()), (Status::Firing, Severity::Critical, "fleet"));

    let mut after = before.killed();
    after.passes().await;
    let counted = |it: &Running| {
        let counters = it.ledger.counters();
        [&counters.received, &counters.committed, &counters.duplicate, &counters.refused].map(|it| it.get())
    };
    assert_eq!(counted(&before), [6, 6, 0, 0]);
    assert_eq!(counted(&after), counted(&before), "what was counted is counted still");
    let pools = after.ledger.fleet_pools("default").await.expect("answers");
    let [_, shop] = &pools[..] else { panic!("the levels are there before the agent speaks again: {pools:?}") };
    assert_eq!((shop.share.limit.low, shop.slots, shop.fires), (58, Some(57), Some(Severity::Critical)));
    assert!(shop.usage.is_some_and(|used| used.samples >= 5 && used.peak == 3), "{:?}", shop.usage);
    assert!(after.ledger.fleet_pools("other").await.expect("answers").is_empty());
    after.minute(58).await;
    let [same] = &after.incidents()[..] else { panic!("{:?}", after.incidents()) };
    assert_eq!((&same.id, same.state_epoch), (&opened.id, opened.state_epoch), "nobody is told again");

    let mut last = after.killed();
    last.minute(5).await;
    assert_eq!(last.incidents().iter().map(|it| it.status).collect::<Vec<_>>(), [Status::Resolved]);
    for it in [before, after, last] {
        it.ends().await;
    }
}
