//! How fast records leave: a token bucket that stays within what the collector allows each agent.
//!
//! The collector allows 200 records a second and a burst of 20,000. An agent that empties a day's backlog keeps below
//! both, so that it is never told to wait; and a part of the burst is never spent on bulk, so that a finding leaves at
//! once even then.

use std::time::Duration;

use tickbird_shared::Lane;

/// No fewer are sent at once while the pace binds: a request for each record would cost more than the records.
const CHUNK: f64 = 100.0;

/// The state of the bucket. `now` is monotonic.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    per_second: f64,
    burst: f64,
    /// Kept for urgent records.
    reserve: f64,
    tokens: f64,
    at: Duration,
}

impl Pace {
    /// A full bucket.
    pub(super) fn new(per_second: f64, burst: f64, now: Duration) -> Self {
        Self { per_second, burst, reserve: burst / 10.0, tokens: burst, at: now }
    }

    /// How many records of a lane may go now; not fewer than a chunk, or none.
    pub(super) fn allowance(&mut self, lane: Lane, now: Duration) -> usize {
        self.refill(now);
        let free = self.tokens - self.reserve_against(lane);
        // The conversion cuts off at the ends, which is what is wanted.
        if free >= CHUNK.min(self.burst - self.reserve) { free as usize } else { 0 }
    }

    /// Records went out.
    pub(super) fn spend(&mut self, records: usize, now: Duration) {
        self.refill(now);
        self.tokens -= records as f64;
    }

    /// The collector counts otherwise and said so: begin again from nothing.
    pub(super) fn empty(&mut self, now: Duration) {
        self.refill(now);
        self.tokens = self.tokens.min(0.0);
    }

    /// How long until a lane has an allowance again.
    pub(super) fn wait(&mut self, lane: Lane, now: Duration) -> Duration {
        self.refill(now);
        let missing = CHUNK.min(self.burst - self.reserve) + self.reserve_against(lane) - self.tokens;
        Duration::from_secs_f64((missing / self.per_second).clamp(0.0, 86_400.0))
    }

    const fn reserve_against(&self, lane: Lane) -> f64 {
        match lane {
            Lane::Urgent => 0.0,
            Lane::Bulk => self.reserve,
        }
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_backlog_of_bulk_leaves_room_for_the_urgent() {
        let mut pace = Pace::new(200.0, 20_000.0, s(0));
        assert_eq!(pace.allowance(Lane::Bulk, s(0)), 18_000);
        pace.spend(18_000, s(0));
        assert_eq!(pace.allowance(Lane::Bulk, s(0)), 0);
        assert_eq!(pace.allowance(Lane::Urgent, s(0)), 2_000);
        assert_eq!(pace.wait(Lane::Bulk, s(0)), Duration::from_millis(500));
        assert_eq!(pace.allowance(Lane::Bulk, s(1)), 200);
    }

    #[test]
    fn a_collector_that_counts_otherwise_is_believed() {
        let mut pace = Pace::new(200.0, 20_000.0, s(0));
        pace.empty(s(0));
        assert_eq!(pace.allowance(Lane::Urgent, s(0)), 0);
        assert_eq!(pace.wait(Lane::Urgent, s(0)), Duration::from_millis(500));
    }

    proptest! {
        /// Whatever is asked when: no window of time sees more than the burst and what it earns.
        #[test]
        fn never_exceeds_the_pace(asks in proptest::collection::vec((0_u64..3_000, 1_usize..5_000), 1..80)) {
            let mut pace = Pace::new(200.0, 5_000.0, s(0));
            let mut now = Duration::ZERO;
            let mut sent: Vec<(Duration, usize)> = Vec::new();
            for (pause, wish) in asks {
                now += Duration::from_millis(pause);
                let records = wish.min(pace.allowance(Lane::Bulk, now));
                pace.spend(records, now);
                sent.push((now, records));
            }
            for from in 0..sent.len() {
                let sum: usize = sent[from..].iter().map(|(_, records)| records).sum();
                let window = (sent[sent.len() - 1].0 - sent[from].0).as_secs_f64();
                prop_assert!(sum as f64 <= 5_000.0 + window * 200.0 + 1.0);
            }
        }
    }
}
