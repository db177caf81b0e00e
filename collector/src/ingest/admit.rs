//! What agents have open and have spent, so that one cannot hurt the rest.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::ledger::{AgentKey, Directory, Standing};

use super::IngestError;
use super::limits::{Bucket, Closed, Limits};
use super::series::Series;

/// Handshakes an agent may make a second, and at once. Each opens a connection that it keeps.
const ARRIVALS: (f64, f64) = (1.0, 60.0);
/// A connection that was silent for this long gives way to a new one: its agent speaks every ten seconds, so it is what a
/// host that lost its power or its network left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(20);

/// What is open and spent, per agent that was let in.
#[derive(Debug)]
pub(super) struct Agents {
    limits: Limits,
    /// Keyed anew by each start, so that nobody can choose names that fall together.
    hasher: RandomState,
    agents: Mutex<HashMap<AgentKey, Usage>>,
}

#[derive(Debug)]
struct Usage {
    bucket: Bucket,
    arrivals: Bucket,
    open: Vec<Place>,
    /// Connections that are open only to hear why they may not be.
    told: usize,
    turns: Arc<Semaphore>,
    series: Series,
}

#[derive(Debug)]
struct Place {
    stop: Arc<Notify>,
    heard: Duration,
    /// Requests of it that were begun and not answered.
    busy: usize,
}

/// One connection of an agent; its place is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    agents: Arc<Agents>,
    agent: AgentKey,
    stop: Arc<Notify>,
}

/// One request that is worked on.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    seat: &'a Seat,
    _permit: Option<OwnedSemaphorePermit>,
}

/// A connection that may hear why it is refused.
#[derive(Debug)]
pub(super) struct Telling {
    agents: Arc<Agents>,
    agent: AgentKey,
}

impl Agents {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, hasher: RandomState::new(), agents: Mutex::default() }
    }

    pub(super) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The name of a series in [`Seat::admit_series`].
    pub(super) fn series(&self, target: &str, measure: &str) -> u64 {
        self.hasher.hash_one((target, measure))
    }

    /// A place for one more connection.
    pub(super) fn seat(self: &Arc<Self>, agent: &AgentKey, now: Duration) -> Result<Seat, IngestError> {
        let mut agents = self.lock();
        let usage = agents.entry(agent.clone()).or_insert_with(|| Usage::new(&self.limits, now));
        usage.arrivals.take(1, now).map_err(|wait| IngestError::TooManyHandshakes { wait })?;
        if usage.open.len() >= self.limits.connections {
            let is_left = |it: &Place| it.busy == 0 && now.saturating_sub(it.heard) >= LEFT_BEHIND;
            let left = usage.open.iter().position(is_left).ok_or(IngestError::TooManyConnections)?;
            usage.open.remove(left).stop.notify_one();
        }
        let stop = Arc::new(Notify::new());
        usage.open.push(Place { stop: Arc::clone(&stop), heard: now, busy: 0 });
        Ok(Seat { agents: Arc::clone(self), agent: agent.clone(), stop })
    }

    /// A connection that has no place may be told so, unless as many are being told as have places.
    pub(super) fn tell(self: &Arc<Self>, agent: &AgentKey, now: Duration) -> Option<Telling> {
        let mut agents = self.lock();
        let usage = agents.entry(agent.clone()).or_insert_with(|| Usage::new(&self.limits, now));
        if usage.told >= self.limits.connections {
            return None;
        }
        usage.told += 1;
        Some(Telling { agents: Arc::clone(self), agent: agent.clone() })
    }

    /// Ends the connections of agents that may not speak any more, and forgets what those without a name spent.
    pub(super) fn sweep(&self, directory: &Directory) {
        self.lock().retain(|agent, usage| {
            let standing = directory.standing(agent);
            if standing != Some(Standing::Admitted) {
                usage.open.iter().for_each(|place| place.stop.notify_one());
            }
            standing.is_some() || !usage.open.is_empty() || usage.told > 0
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AgentKey, Usage>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Usage {
    fn new(limits: &Limits, now: Duration) -> Self {
        Self {
            bucket: Bucket::full(limits.rate, limits.burst, now),
            arrivals: Bucket::full(ARRIVALS.0, ARRIVALS.1, now),
            open: Vec::new(),
            told: 0,
            turns: Arc::new(Semaphore::new(limits.connections)),
            series: Series::default(),
        }
    }
}

impl Seat {
    /// Waits until this request may be worked on: an agent has no more in hand than connections, however it sends them, so
    /// that what waits for the ledger waits in turns of agents.
    pub(super) async fn turn(&self, now: Duration) -> Turn<'_> {
        self.place(|place| {
            place.heard = now;
            place.busy += 1;
        });
        // From here on, so that a request that is given up while it waits is not busy for ever.
        let mut turn = Turn { seat: self, _permit: None };
        let turns = self.agents.lock().get(&self.agent).map(|usage| Arc::clone(&usage.turns));
        if let Some(turns) = turns {
            // It is never closed.
            turn._permit = turns.acquire_owned().await.ok();
        }
        turn
    }

    /// Whether the agent may be listened to now.
    pub(super) fn is_open(&self, now: Duration) -> Result<(), IngestError> {
        self.with_usage(|usage| match usage.bucket.is_open(now) {
            Ok(()) => Ok(()),
            Err(Closed::Spent(wait)) => Err(IngestError::RateLimited { wait }),
            Err(Closed::Told(wait)) => Err(IngestError::WaitIgnored { wait }),
        })
        .unwrap_or(Ok(()))
    }

    /// Pays for what costs as much as `records`.
    pub(super) fn pay(&self, records: usize, now: Duration) -> Result<(), IngestError> {
        let paid = self.with_usage(|usage| usage.bucket.take(records, now)).unwrap_or(Ok(()));
        paid.map_err(|wait| IngestError::RateLimited { wait })
    }

    /// Charges for what was done in vain.
    pub(super) fn charge(&self, records: usize, now: Duration) {
        self.with_usage(|usage| usage.bucket.charge(records, now));
    }

    /// Of these series those that are over the bound: their places in `series`.
    pub(super) fn admit_series(&self, series: &[u64], now: Duration) -> Vec<usize> {
        let most = self.agents.limits.series;
        let over = |usage: &mut Usage| {
            let refused = series.iter().enumerate().filter(|(_, it)| !usage.series.admit(**it, most, now));
            refused.map(|(place, _)| place).collect()
        };
        self.with_usage(over).unwrap_or_default()
    }

    /// Ends when the agent's right to speak was taken away, or a new connection took this one's place.
    pub(super) async fn withdrawn(&self) {
        self.stop.notified().await;
    }

    fn with_usage<T>(&self, act: impl FnOnce(&mut Usage) -> T) -> Option<T> {
        self.agents.lock().get_mut(&self.agent).map(act)
    }

    fn place(&self, act: impl FnOnce(&mut Place)) {
        self.with_usage(|usage| usage.open.iter_mut().find(|it| Arc::ptr_eq(&it.stop, &self.stop)).map(act));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.with_usage(|usage| usage.open.retain(|place| !Arc::ptr_eq(&place.stop, &self.stop)));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.seat.place(|place| place.busy -= 1);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(usage) = self.agents.lock().get_mut(&self.agent) {
            usage.told -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agents() -> (Arc<Agents>, AgentKey) {
        (Arc::new(Agents::new(Limits::default())), AgentKey::new("default", "a-1"))
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_third_connection_finds_no_seat_until_one_is_given_back() {
        let (agents, agent) = agents();
        let first = agents.seat(&agent, s(0)).expect("free");
        let _second = agents.seat(&agent, s(0)).expect("free");
        assert_eq!(agents.seat(&agent, s(0)).map(drop), Err(IngestError::TooManyConnections));
        assert!(agents.seat(&AgentKey::new("default", "a-2"), s(0)).is_ok(), "others are not hurt");
        drop(first);
        assert!(agents.seat(&agent, s(0)).is_ok());
    }

    #[tokio::test]
    async fn what_a_lost_host_left_behind_gives_way_and_what_is_in_use_does_not() {
        let (agents, agent) = agents();
        let first = agents.seat(&agent, s(0)).expect("free");
        let second = agents.seat(&agent, s(0)).expect("free");
        let turn = second.turn(s(0)).await;
        drop(first.turn(s(5)).await);
        assert_eq!(agents.seat(&agent, s(24)).map(drop), Err(IngestError::TooManyConnections), "silent for 19 s");
        let third = agents.seat(&agent, s(25)).expect("silent for 20 s");
        tokio::time::timeout(s(5), first.withdrawn()).await.expect("the first one is ended");
        assert_eq!(agents.seat(&agent, s(25)).map(drop), Err(IngestError::TooManyConnections), "one works, one is new");
        drop(first);
        drop(turn);
        assert!(agents.seat(&agent, s(26)).is_ok(), "the one that works no more has been silent since it began");
        drop((second, third));
    }

    #[tokio::test]
    async fn an_agent_has_no_more_in_hand_than_connections() {
        let (agents, agent) = agents();
        let seat = agents.seat(&agent, s(0)).expect("free");
        let (first, _second) = (seat.turn(s(0)).await, seat.turn(s(0)).await);
        assert!(tokio::time::timeout(Duration::from_millis(50), seat.turn(s(0))).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(s(5), seat.turn(s(0))).await.is_ok());
    }

    #[test]
    fn connecting_again_and_again_is_bounded_and_so_is_being_told() {
        let (agents, agent) = agents();
        for _ in 0..60 {
            assert!(agents.seat(&agent, s(0)).is_ok());
        }
        assert_eq!(agents.seat(&agent, s(0)).map(drop), Err(IngestError::TooManyHandshakes { wait: s(1) }));
        let told = (agents.tell(&agent, s(0)), agents.tell(&agent, s(0)));
        assert!(told.0.is_some() && told.1.is_some() && agents.tell(&agent, s(0)).is_none());
        drop(told);
        assert!(agents.tell(&agent, s(0)).is_some());
    }

    #[test]
    fn a_new_connection_does_not_refill_the_bucket() {
        let (agents, agent) = agents();
        let seat = agents.seat(&agent, s(0)).expect("free");
        seat.pay(20_000, s(0)).expect("full");
        drop(seat);
        let seat = agents.seat(&agent, s(0)).expect("free");
        assert_eq!(seat.pay(1_000, s(0)), Err(IngestError::RateLimited { wait: s(5) }));
        assert_eq!(seat.is_open(s(1)), Err(IngestError::WaitIgnored { wait: s(4) }));
    }
}
