//! How much one agent may send, so that it cannot hurt the rest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::ledger::{AgentKey, Directory, Standing};

use super::IngestError;

/// What one agent may have and send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Records a second, sustained.
    pub rate: f64,
    /// Records at once, after a time of silence: a backlog.
    pub burst: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 2, rate: 200.0, burst: 20_000.0 }
    }
}

/// A token bucket. Pure: the caller says what time it is, as the time since some fixed moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bucket {
    tokens: f64,
    at: Duration,
    closed_until: Duration,
}

impl Bucket {
    pub(super) const fn full(limits: &Limits, now: Duration) -> Self {
        Self { tokens: limits.burst, at: now, closed_until: Duration::ZERO }
    }

    /// Whether a request may be read at all. After a refusal none is until the wait that was asked for is over:
    /// else an agent could make the collector decode what it will refuse, again and again.
    pub(super) fn is_open(&self, now: Duration) -> Result<(), Duration> {
        if now < self.closed_until { Err(self.closed_until - now) } else { Ok(()) }
    }

    /// Takes the tokens for `count` records, or says how long it takes to have them.
    pub(super) fn take(&mut self, limits: &Limits, count: usize, now: Duration) -> Result<(), Duration> {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * limits.rate).min(limits.burst);
        self.at = now;
        // A batch over the burst would wait for ever; it empties the bucket instead.
        let cost = (count as f64).min(limits.burst);
        if self.tokens >= cost {
            self.tokens -= cost;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((cost - self.tokens) / limits.rate);
        self.closed_until = now + wait;
        Err(wait)
    }
}

/// What is open and spent, per agent that was let in.
#[derive(Debug)]
pub(super) struct Agents {
    limits: Limits,
    agents: Mutex<HashMap<AgentKey, Usage>>,
}

#[derive(Debug)]
struct Usage {
    bucket: Bucket,
    open: Vec<Arc<Notify>>,
}

/// One connection of an agent; its place is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    agents: Arc<Agents>,
    agent: AgentKey,
    stop: Arc<Notify>,
}

impl Agents {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, agents: Mutex::default() }
    }

    /// A place for one more connection.
    pub(super) fn seat(self: &Arc<Self>, agent: &AgentKey, now: Duration) -> Result<Seat, IngestError> {
        let mut agents = self.lock();
        let fresh = || Usage { bucket: Bucket::full(&self.limits, now), open: Vec::new() };
        let usage = agents.entry(agent.clone()).or_insert_with(fresh);
        if usage.open.len() >= self.limits.connections {
            return Err(IngestError::TooManyConnections);
        }
        let stop = Arc::new(Notify::new());
        usage.open.push(Arc::clone(&stop));
        Ok(Seat { agents: Arc::clone(self), agent: agent.clone(), stop })
    }

    /// Ends the connections of agents that may not speak any more, and forgets what those without a name spent.
    pub(super) fn sweep(&self, directory: &Directory) {
        self.lock().retain(|agent, usage| {
            let standing = directory.standing(agent);
            if standing != Some(Standing::Admitted) {
                usage.open.iter().for_each(|stop| stop.notify_one());
            }
            standing.is_some() || !usage.open.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AgentKey, Usage>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Whether the agent may be listened to now.
    pub(super) fn is_open(&self, now: Duration) -> Result<(), IngestError> {
        self.with_bucket(|bucket, _| bucket.is_open(now))
    }

    /// Pays for `count` records; a heartbeat costs one.
    pub(super) fn pay(&self, count: usize, now: Duration) -> Result<(), IngestError> {
        self.with_bucket(|bucket, limits| bucket.take(limits, count.max(1), now))
    }

    /// Ends when the agent's right to speak was taken away.
    pub(super) async fn withdrawn(&self) {
        self.stop.notified().await;
    }

    fn with_bucket(&self, act: impl FnOnce(&mut Bucket, &Limits) -> Result<(), Duration>) -> Result<(), IngestError> {
        match self.agents.lock().get_mut(&self.agent) {
            Some(usage) => {
                act(&mut usage.bucket, &self.agents.limits).map_err(|wait| IngestError::RateLimited { wait })
            }
            None => Ok(()),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(usage) = self.agents.lock().get_mut(&self.agent) {
            usage.open.retain(|stop| !Arc::ptr_eq(stop, &self.stop));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { connections: 2, rate: 200.0, burst: 20_000.0 };

    #[test]
    fn a_backlog_passes_at_once_and_then_at_the_sustained_rate() {
        let mut bucket = Bucket::full(&LIMITS, Duration::ZERO);
        for _ in 0..20 {
            assert_eq!(bucket.take(&LIMITS, 1_000, Duration::ZERO), Ok(()));
        }
        let wait = bucket.take(&LIMITS, 1_000, Duration::ZERO).expect_err("empty");
        assert_eq!(wait, Duration::from_secs(5));
        assert_eq!(bucket.is_open(Duration::from_secs(4)), Err(Duration::from_secs(1)));
        assert_eq!(bucket.is_open(wait), Ok(()));
        assert_eq!(bucket.take(&LIMITS, 1_000, wait), Ok(()));
    }

    #[test]
    fn a_third_connection_finds_no_seat_until_one_is_given_back() {
        let agents = Arc::new(Agents::new(LIMITS));
        let agent = AgentKey::new("default", "a-1");
        let first = agents.seat(&agent, Duration::ZERO).expect("free");
        let _second = agents.seat(&agent, Duration::ZERO).expect("free");
        assert_eq!(agents.seat(&agent, Duration::ZERO).map(drop), Err(IngestError::TooManyConnections));
        assert!(agents.seat(&AgentKey::new("default", "a-2"), Duration::ZERO).is_ok(), "others are not hurt");
        drop(first);
        assert!(agents.seat(&agent, Duration::ZERO).is_ok());
    }

    #[test]
    fn a_new_connection_does_not_refill_the_bucket() {
        let agents = Arc::new(Agents::new(LIMITS));
        let agent = AgentKey::new("default", "a-1");
        let seat = agents.seat(&agent, Duration::ZERO).expect("free");
        seat.pay(20_000, Duration::ZERO).expect("full");
        drop(seat);
        let seat = agents.seat(&agent, Duration::ZERO).expect("free");
        assert!(matches!(seat.pay(1_000, Duration::ZERO), Err(IngestError::RateLimited { .. })));
    }

    proptest! {
        /// Over any time no more passes than the burst and the rate allow.
        #[test]
        fn never_more_than_burst_and_rate(steps in proptest::collection::vec((0_u64..3_000, 0_usize..12_000), 1..80)) {
            let mut bucket = Bucket::full(&LIMITS, Duration::ZERO);
            let (mut now, mut passed) = (Duration::ZERO, 0);
            for (wait, count) in steps {
                now += Duration::from_millis(wait);
                if bucket.take(&LIMITS, count, now).is_ok() {
                    passed += count;
                }
                prop_assert!(passed as f64 <= LIMITS.burst + LIMITS.rate * now.as_secs_f64() + 1.0);
            }
        }
    }
}
