//! What the ledger counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::store::Tally;

/// What the ledger has done. `received = committed + duplicate + refused`, always; these and `lost` are kept in the
/// store and count on after a restart.
#[derive(Debug)]
pub struct Counters {
    /// Records of settled batches.
    pub received: Counter,
    /// Records that are on the disk because of it.
    pub committed: Counter,
    /// Records that were on the disk, or refused, before.
    pub duplicate: Counter,
    /// Records that will never be stored.
    pub refused: Counter,
    /// Records that agents say they lost.
    pub lost: Counter,
    /// Batches of a buffer whose epoch goes on elsewhere; they are not received, and come again under another epoch.
    pub superseded: Counter,
    /// Transactions committed.
    pub transactions: Counter,
    /// Transactions that failed.
    pub failures: Counter,
    /// Rows deleted because of their age.
    pub expired: Counter,
    /// Rows deleted because of the bound on bytes.
    pub evicted: Counter,
    /// Seconds from an agent to the yes of the receiver, of each canary that got there.
    pub canaries: Histogram,
}

/// From what a well path needs to what a fault leaves: an agent's backoff, an outage of the collector.
const CANARY_SECONDS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

impl Default for Counters {
    fn default() -> Self {
        Self {
            received: Counter::default(),
            committed: Counter::default(),
            duplicate: Counter::default(),
            refused: Counter::default(),
            lost: Counter::default(),
            superseded: Counter::default(),
            transactions: Counter::default(),
            failures: Counter::default(),
            expired: Counter::default(),
            evicted: Counter::default(),
            canaries: Histogram::new(CANARY_SECONDS),
        }
    }
}

impl Counters {
    /// Adds them to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        let records = [
            ("received", "Records of settled batches", &self.received),
            ("committed", "Records on the disk", &self.committed),
            ("duplicate", "Records that were settled before", &self.duplicate),
            ("refused", "Records that will never be stored", &self.refused),
            ("lost", "Records that agents say they lost", &self.lost),
        ];
        for (name, help, counter) in records {
            registry.register(format!("tickbird_records_{name}"), help, counter.clone());
        }
        let others = [
            (
                "tickbird_batches_superseded",
                "Batches of a copied or restored buffer, whose epoch goes on elsewhere",
                &self.superseded,
            ),
            ("tickbird_store_transactions", "Transactions committed", &self.transactions),
            ("tickbird_store_failures", "Transactions that failed", &self.failures),
            ("tickbird_store_rows_expired", "Rows deleted because of their age", &self.expired),
            ("tickbird_store_rows_evicted", "Rows deleted because of the bound on bytes", &self.evicted),
        ];
        let help = "From an agent to the yes of the receiver that waits for canaries";
        registry.register("tickbird_canary_latency_seconds", help, self.canaries.clone());
        for (name, help, counter) in others {
            registry.register(name, help, counter.clone());
        }
    }

    pub(super) fn add(&self, tally: Tally) {
        debug_assert_eq!(tally.received, tally.committed + tally.duplicate + tally.refused);
        self.received.inc_by(tally.received);
        self.committed.inc_by(tally.committed);
        self.duplicate.inc_by(tally.duplicate);
        self.refused.inc_by(tally.refused);
        self.lost.inc_by(tally.lost);
    }
}
