//! What one agent, and one source address, may have, send and take its time for.

use std::time::Duration;

/// Bytes of a body's text that cost as much as one record: a finding with all the evidence it may have costs one.
const BYTES_PER_RECORD: usize = 16 << 10;
/// Least that a request costs: it is decoded, and its transaction written, however little is in it.
const REQUEST_COSTS: usize = 5;
/// A request that cannot be used costs as much as so many records, beside its bytes.
const FAULT_COSTS: usize = 20;

/// The bounds of an operator's configuration (`[limits]`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Connections of an agent at once, and requests of it that are worked on at once.
    pub connections: usize,
    /// Records a second of an agent, sustained.
    pub rate: f64,
    /// Records of an agent at once, after a time of silence: a backlog.
    pub burst: f64,
    /// Series (a measure of a target) of an agent within two hours.
    pub series: usize,
    /// Handshakes a second that one source address may begin, beside one for each agent admitted from it.
    pub handshake_rate: f64,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long a connection may be silent, and how long the head of a request may take.
    pub idle: Duration,
    /// How long a body may take to arrive.
    pub body: Duration,
    /// How long an agent may take to read an answer.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2,
            rate: 200.0,
            burst: 20_000.0,
            series: 2_000,
            handshake_rate: 20.0,
            handshake: Duration::from_secs(10),
            // Six heartbeats.
            idle: Duration::from_secs(60),
            body: Duration::from_secs(30),
            answer: Duration::from_secs(30),
        }
    }
}

/// What a batch costs, in records: its records, or its bytes when those are more, and never less than a heartbeat.
pub(super) const fn cost(records: usize, text_bytes: usize) -> usize {
    let bytes = text_bytes / BYTES_PER_RECORD;
    let most = if records > bytes { records } else { bytes };
    if most > REQUEST_COSTS { most } else { REQUEST_COSTS }
}

/// What a request costs that could not be used, after so many bytes of text were looked at.
pub(super) const fn cost_of_fault(text_bytes: usize) -> usize {
    FAULT_COSTS + text_bytes / BYTES_PER_RECORD
}

/// Whether a request may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// It spent what it has; this is the first it hears of it.
    Spent(Duration),
    /// It was told to wait, and did not.
    Told(Duration),
}

/// A token bucket. Pure: the caller says what time it is, as the time since some fixed moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bucket {
    rate: f64,
    burst: f64,
    /// Below zero after faults, which are charged whatever there is.
    tokens: f64,
    at: Duration,
    closed_until: Duration,
}

impl Bucket {
    pub(super) const fn full(rate: f64, burst: f64, now: Duration) -> Self {
        Self { rate, burst, tokens: burst, at: now, closed_until: Duration::ZERO }
    }

    /// Whether a request may be read at all. After a refusal none is until the wait that was asked for is over:
    /// else an agent could make the collector decode what it will refuse, again and again.
    pub(super) fn is_open(&mut self, now: Duration) -> Result<(), Closed> {
        if now < self.closed_until {
            return Err(Closed::Told(self.closed_until - now));
        }
        self.refill(now);
        if self.tokens < 0.0 { Err(Closed::Spent(self.close(0.0, now))) } else { Ok(()) }
    }

    /// Takes the tokens for `count` records, or says how long it takes to have them.
    pub(super) fn take(&mut self, count: usize, now: Duration) -> Result<(), Duration> {
        self.refill(now);
        // A batch over the burst would wait for ever; it empties the bucket instead.
        let cost = (count as f64).min(self.burst);
        if self.tokens >= cost {
            self.tokens -= cost;
            return Ok(());
        }
        Err(self.close(cost, now))
    }

    /// Takes tokens that may not be there: what is done is done.
    pub(super) fn charge(&mut self, count: usize, now: Duration) {
        self.refill(now);
        self.tokens = (self.tokens - count as f64).max(-self.burst);
    }

    fn close(&mut self, wanted: f64, now: Duration) -> Duration {
        let wait = Duration::from_secs_f64((wanted - self.tokens) / self.rate);
        self.closed_until = now + wait;
        wait
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.burst);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: f64 = 200.0;
    const BURST: f64 = 20_000.0;

    #[test]
    fn a_backlog_passes_at_once_and_then_at_the_sustained_rate() {
        let mut bucket = Bucket::full(RATE, BURST, Duration::ZERO);
        for _ in 0..20 {
            assert_eq!(bucket.take(1_000, Duration::ZERO), Ok(()));
        }
        let wait = bucket.take(1_000, Duration::ZERO).expect_err("empty");
        assert_eq!(wait, Duration::from_secs(5));
        assert_eq!(bucket.is_open(Duration::from_secs(4)), Err(Closed::Told(Duration::from_secs(1))));
        assert_eq!(bucket.is_open(wait), Ok(()));
        assert_eq!(bucket.take(1_000, wait), Ok(()));
    }

    #[test]
    fn faults_are_charged_until_nothing_is_read_any_more() {
        let mut bucket = Bucket::full(RATE, BURST, Duration::ZERO);
        let mut faults = 0;
        while bucket.is_open(Duration::ZERO).is_ok() {
            bucket.charge(cost_of_fault(16 << 20), Duration::ZERO);
            faults += 1;
        }
        assert_eq!(faults, 20, "so many bombs are looked at, and then one each five seconds");
        let Err(Closed::Told(wait)) = bucket.is_open(Duration::ZERO) else { panic!("it was told to wait") };
        assert_eq!(bucket.is_open(wait), Ok(()));
        assert_eq!(bucket.take(1, wait), Err(Duration::from_millis(5)), "and there is nothing left over");
    }

    #[test]
    fn a_batch_costs_its_records_or_its_bytes() {
        assert_eq!([cost(0, 200), cost(100, 30_000), cost(1, 160 << 10)], [5, 100, 10]);
    }

    proptest! {
        /// Over any time no more passes than the burst and the rate allow.
        #[test]
        fn never_more_than_burst_and_rate(steps in proptest::collection::vec((0_u64..3_000, 0_usize..12_000), 1..80)) {
            let mut bucket = Bucket::full(RATE, BURST, Duration::ZERO);
            let (mut now, mut passed) = (Duration::ZERO, 0);
            for (wait, count) in steps {
                now += Duration::from_millis(wait);
                if bucket.take(count, now).is_ok() {
                    passed += count;
                }
                prop_assert!(passed as f64 <= BURST + RATE * now.as_secs_f64() + 1.0);
            }
        }
    }
}
