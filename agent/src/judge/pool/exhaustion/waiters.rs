//! Callers that wait for a connection, as somebody who knows says: the application, or a pooler in front of the server.

use std::sync::Arc;
use std::time::Duration;

use super::super::join::canonical;
use crate::discover::{End, TargetKey};
use crate::inspect::host::{Connection, PoolRow};
use crate::inspect::pool_metrics::Totals;
use crate::inspect::{ServerLook, Value};

/// Waiters that were told are believed for so long; a source with waiters is asked every second one.
const LAST: Duration = Duration::from_secs(12);
/// That nobody waits is believed for longer, until the sockets say otherwise.
const NOBODY_LASTS: Duration = Duration::from_secs(35);
/// Most clients of a pooler that are named.
const MAX_CLIENTS: usize = 50;

/// Callers that wait, as somebody who knows says.
#[derive(Debug, Clone)]
pub(in crate::judge::pool) struct Waiters {
    /// The target whose look said it.
    pub(super) by: TargetKey,
    pub(super) count: f64,
    pub(in crate::judge::pool) oldest: Option<Duration>,
    /// Who says so: `hikaricp_connections_* of http://…`, `PgBouncer at 10.0.0.5:6432`.
    pub(super) source: Arc<str>,
    /// Whose count it is.
    pub(super) counted_by: CountedBy,
    /// Whether the count is of every process of the pool.
    pub(in crate::judge::pool) is_whole: bool,
    /// When it was said.
    pub(super) at: Duration,
    /// Since when callers have waited, at every word of the source.
    pub(super) since: Option<Duration>,
}

/// Whose count of callers it is.
#[derive(Debug, Clone)]
pub(super) enum CountedBy {
    Application,
    /// The application counts waits, not waiters: at least one caller waited between its last two words.
    Waits(Waited),
    /// A pooler, with the connections here that wait, at most 50, the longest first.
    Pooler(Vec<Client>),
}

/// What an application's counters gained between two looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::judge::pool) struct Waited {
    pub(in crate::judge::pool) gained: Totals,
    /// The time between the two.
    pub(in crate::judge::pool) over: Duration,
}

impl Waited {
    /// Whether somebody waited all the time: seconds of waits that ended make one caller on average, or callers gave
    /// up, or they began to wait and none of them was served by a pool that is full. Waits of milliseconds are the
    /// everyday life of a small pool.
    pub(in crate::judge::pool) fn is_exhaustion(&self, is_full: bool) -> bool {
        let Totals { waits, wait_seconds, timeouts, .. } = self.gained;
        let is_any = |count: Option<f64>| count.is_some_and(|it| it > 0.0);
        let served = wait_seconds.map(|it| it > 0.0);
        let mean = wait_seconds.is_some_and(|it| it >= self.over.as_secs_f64() && it > 0.0);
        mean || is_any(timeouts) || is_full && is_any(waits) && served == Some(false)
    }
}

/// A connection of a pool that waits at the pooler.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) pid: Option<u32>,
    pub(super) fd: Option<u32>,
    pub(super) local: End,
    pub(super) waited: Duration,
}

impl Waiters {
    /// `count` callers wait at `at`, for every process of the pool, by the application's own count.
    pub(in crate::judge::pool) const fn new(by: TargetKey, count: f64, source: Arc<str>, at: Duration) -> Self {
        let counted_by = CountedBy::Application;
        Self { by, count, oldest: None, source, counted_by, is_whole: true, at, since: None }
    }

    /// At least one caller has waited since the last word, by counters of waits.
    pub(in crate::judge::pool) fn by_waits(by: TargetKey, waited: Waited, source: Arc<str>, at: Duration) -> Self {
        Self { counted_by: CountedBy::Waits(waited), ..Self::new(by, 1.0, source, at) }
    }

    /// How many wait: a lower bound where only waits are counted.
    pub(super) const fn value(&self) -> Value {
        match self.counted_by {
            CountedBy::Waits(_) => Value::Between(self.count, f64::INFINITY),
            CountedBy::Application | CountedBy::Pooler(_) => Value::Known(self.count),
        }
    }

    /// The connections of a pool that wait at a pooler. That none does says nothing of callers that wait inside the
    /// application.
    pub(super) fn of_pooler(look: &ServerLook, rows: &[&PoolRow], now: Duration) -> Self {
        let mut clients = Vec::new();
        for (row, connection) in rows.iter().flat_map(|row| row.connections.iter().map(move |it| (row, it))) {
            if let Some(waited) = waited(look, connection) {
                let (fd, local) = (connection.fds.first().copied(), connection.local.clone());
                clients.push(Client { pid: super::super::pid(row), fd, local, waited });
            }
        }
        clients.sort_by_key(|it| std::cmp::Reverse(it.waited));
        let source = format!("{} at {}", look.engine.name(), rows[0].remote);
        let mut waiters = Self::new(look.target.clone(), clients.len() as f64, source.into(), now);
        waiters.oldest = clients.first().map(|it| it.waited);
        waiters.is_whole = !clients.is_empty();
        clients.truncate(MAX_CLIENTS);
        waiters.counted_by = CountedBy::Pooler(clients);
        waiters
    }

    pub(super) const fn is_any(&self) -> bool {
        self.count > 0.0
    }

    pub(super) fn is_believed(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) <= if self.is_any() { LAST } else { NOBODY_LASTS }
    }

    /// For how long callers have certainly waited.
    pub(super) fn age(&self) -> Duration {
        let seen = self.since.map_or(Duration::ZERO, |since| self.at.saturating_sub(since));
        seen.max(self.oldest.unwrap_or_default())
    }
}

/// For how long a connection has waited at the pooler, if it does.
fn waited(look: &ServerLook, connection: &Connection) -> Option<Duration> {
    let local = canonical(connection.local.address()?);
    let is_it = |address: std::net::IpAddr, port: u16| address.to_canonical() == local.ip() && port == local.port();
    let waiter = look.waiters.iter().find(|it| it.address.zip(it.port).is_some_and(|(ip, port)| is_it(ip, port)))?;
    Some(waiter.waited)
}
