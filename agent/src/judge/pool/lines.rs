//! What is remembered of each connection from look to look, and the two rules that name idle connections as held.
//!
//! *Rotation*: in a pool that hands out the longest idle first, a connection that is passed over again and again is not
//! in the queue: somebody holds it. *Growth*: a pool that opens only on demand opened one more than ever before, so at
//! that moment every other connection was leased, the idle ones too. Both end with the connection's next traffic.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::order::{Discipline, Order};
use crate::discover::End;
use crate::inspect::host::Owner;
use crate::inspect::server::Session;

/// Two clocks and one kernel tick: what differs by less is the same moment.
pub(super) const SLACK: Duration = Duration::from_millis(50);
/// A connection used so lately is in rotation.
const IN_ROTATION: Duration = Duration::from_secs(5);
/// Looks in rotation before it can be missed from it.
const LOOKS_IN_ROTATION: u8 = 5;
/// A quieter one may be held.
const QUIET: Duration = Duration::from_secs(10);
/// Rounds of the others that it was passed over in.
const ROUNDS: u64 = 5;
/// Others that rotate at least.
const LEAST_ROTATING: usize = 3;
/// Only connections used so lately are asked for the order.
const ORDER_WINDOW: Duration = Duration::from_secs(10);
/// No connection may have ended in this time before and `SETTLE` after one was opened on demand.
const NO_CLOSE: Duration = Duration::from_secs(60);
/// So long after a birth its closes are known.
const SETTLE: Duration = Duration::from_secs(2);
/// A process fills its pools in its first minute.
const START: Duration = Duration::from_secs(60);
/// One that was idle for less was perhaps between two statements.
const WITNESS_LEAST: Duration = Duration::from_secs(2);
/// One that was idle for longer belongs perhaps to another pool.
const WITNESS_MOST: Duration = Duration::from_secs(120);
/// Connections that stopped so near to one another: perhaps a second pool that went quiet.
const GROUP: Duration = Duration::from_secs(1);
/// This many of them.
const GROUP_LEAST: usize = 3;
/// Connections of one host that are remembered.
const MAX_LINES: usize = 65_536;

/// One pool of one process: what a server knows of it tells two pools to one endpoint apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) owner: Owner,
    pub(super) remote: End,
    /// Database, user and application name, once the server's view is there.
    pub(super) of: Option<Arc<Name>>,
}

/// How a server names a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) database: Arc<str>,
    pub(super) user: Arc<str>,
    pub(super) application: Arc<str>,
}

impl Name {
    pub(super) fn of(session: &Session) -> Self {
        Self {
            database: session.database.clone(),
            user: session.user.clone(),
            application: session.application_name.clone(),
        }
    }
}

/// The rule that names an idle connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeldBy {
    /// Passed over `passes` times while `others` rotated.
    Rotation { passes: u64, others: usize },
    /// Idle when the pool opened one more, at `witness`.
    Growth { witness: Duration },
}

impl HeldBy {
    pub(super) const fn rule(self) -> &'static str {
        match self {
            Self::Rotation { .. } => "rotation",
            Self::Growth { .. } => "growth",
        }
    }
}

/// One connection as it is now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    pub(super) cookie: u64,
    /// Last data in either direction.
    pub(super) used_at: Duration,
    pub(super) first_seen: Duration,
    pub(super) born: bool,
    /// Not certainly leased, and no request on its way.
    pub(super) idle: bool,
    /// A session of its own kind, which no pool gets back: it listens or holds an advisory lock.
    pub(super) apart: bool,
    pub(super) picked: Option<bool>,
}

/// What is remembered of one connection.
#[derive(Debug)]
struct Line {
    key: Key,
    used_at: Duration,
    /// Picks of its pool when it was last used.
    picks: u64,
    looks_in_rotation: u8,
    held: Option<HeldBy>,
    look: u64,
}

/// What is remembered of one pool.
#[derive(Debug, Default)]
struct Pool {
    order: Order,
    /// Uses of its connections that were seen, ever.
    picks: u64,
    high_water: usize,
    closed_at: Option<Duration>,
    /// Births that opened one more than ever before, to be looked at once their closes are known.
    grown: VecDeque<Duration>,
    used_at: Duration,
    look: u64,
}

/// Every connection and pool.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: HashMap<u64, Line>,
    pools: HashMap<Key, Pool>,
    look: u64,
}

impl Lines {
    /// Begins a look; every pool comes with [`Self::pool`], and [`Self::end`] ends it.
    pub(super) fn begin(&mut self) {
        self.look += 1;
    }

    /// Takes one pool of one process in. `age` is the age of the process; without it growth proves nothing. `grows`
    /// says that the pool opens connections only on demand; `closed` that one of it ended since the last look.
    pub(super) fn pool(
        &mut self,
        key: &Key,
        sights: &[Sight],
        age: Option<Duration>,
        grows: bool,
        closed: bool,
        now: Duration,
    ) {
        let look = self.look;
        let is_new = !self.pools.contains_key(key);
        let pool = self.pools.entry(key.clone()).or_default();
        pool.look = look;
        if closed {
            pool.closed_at = Some(now);
        }
        let mut used = Vec::new();
        for sight in sights {
            if self.lines.len() >= MAX_LINES && !self.lines.contains_key(&sight.cookie) {
                continue;
            }
            let line = self.lines.entry(sight.cookie).or_insert_with(|| Line {
                key: key.clone(),
                used_at: sight.used_at,
                picks: pool.picks,
                looks_in_rotation: 0,
                held: None,
                look,
            });
            line.look = look;
            if line.key != *key {
                // Its pool has a name now; what was counted among strangers does not count.
                (line.key, line.picks, line.looks_in_rotation, line.held) = (key.clone(), pool.picks, 0, None);
            }
            if sight.used_at > line.used_at + SLACK {
                line.used_at = sight.used_at;
                line.held = None;
                pool.picks += 1;
                pool.used_at = now;
                used.push(sight.cookie);
            }
            let is_in_rotation = now.saturating_sub(line.used_at) <= IN_ROTATION;
            line.looks_in_rotation = match (is_in_rotation, line.looks_in_rotation) {
                (true, looks) => looks.saturating_add(1).min(LOOKS_IN_ROTATION),
                // Once a member, it is missed when it does not come round.
                (false, LOOKS_IN_ROTATION) => LOOKS_IN_ROTATION,
                (false, _) => 0,
            };
        }
        // Counted from the end of the look: which of several uses came first is not known.
        for cookie in used {
            if let Some(line) = self.lines.get_mut(&cookie) {
                line.picks = pool.picks;
            }
        }
        Self::ask_order(pool, sights, now);
        if sights.len() > pool.high_water {
            let born = sights.iter().filter(|it| it.born && !is_new).map(|it| it.first_seen).max();
            if let Some(at) = born.filter(|at| pool.high_water > 0 && now.saturating_sub(*at) <= NO_CLOSE / 2) {
                pool.grown.push_back(at);
            }
            pool.high_water = sights.len();
        }
        self.rotation(key, sights, now);
        self.growth(key, sights, age, grows, now);
    }

    /// Ends a look: what was not seen in it is forgotten.
    pub(super) fn end(&mut self) {
        let look = self.look;
        self.lines.retain(|_, line| line.look == look);
        self.pools.retain(|_, pool| pool.look == look);
    }

    pub(super) fn discipline(&self, key: &Key) -> Discipline {
        self.pools.get(key).map(|it| it.order.discipline()).unwrap_or_default()
    }

    /// The rule that names a connection, if one does.
    pub(super) fn held(&self, cookie: u64) -> Option<HeldBy> {
        self.lines.get(&cookie)?.held
    }

    /// Whether an idle connection takes its turn in a pool that rotates.
    pub(super) fn is_free(&self, key: &Key, cookie: u64, now: Duration) -> bool {
        self.discipline(key) == Discipline::Rotating
            && self.lines.get(&cookie).is_some_and(|line| {
                line.looks_in_rotation == LOOKS_IN_ROTATION && now.saturating_sub(line.used_at) <= IN_ROTATION
            })
    }

    /// Whether some pool at work wants a second dump at the next look.
    pub(super) fn want_order(&self, now: Duration) -> bool {
        self.pools.values().any(|it| {
            it.high_water >= LEAST_ROTATING && now.saturating_sub(it.used_at) <= ORDER_WINDOW && it.order.wants(now)
        })
    }

    fn ask_order(pool: &mut Pool, sights: &[Sight], now: Duration) {
        let is_asked = |it: &&Sight| it.idle && !it.apart && now.saturating_sub(it.used_at) <= ORDER_WINDOW;
        let mut idle: Vec<(Duration, bool)> =
            sights.iter().filter(is_asked).filter_map(|it| Some((it.used_at, it.picked?))).collect();
        if !idle.is_empty() {
            idle.sort_by_key(|(used_at, _)| *used_at);
            let picked: Vec<bool> = idle.into_iter().map(|(_, picked)| picked).collect();
            pool.order.take(&picked, now);
        }
    }

    fn rotation(&mut self, key: &Key, sights: &[Sight], now: Duration) {
        let Some(pool) = self.pools.get(key).filter(|it| it.order.discipline() == Discipline::Rotating) else { return };
        for sight in sights.iter().filter(|it| it.idle && !it.apart && now.saturating_sub(it.used_at) > QUIET) {
            let others = sights.iter().filter(|it| it.used_at > sight.used_at + SLACK).count();
            let Some(line) = self.lines.get_mut(&sight.cookie) else { continue };
            let passes = pool.picks - line.picks;
            let was_in = line.looks_in_rotation == LOOKS_IN_ROTATION;
            if was_in && others >= LEAST_ROTATING && passes >= ROUNDS * others as u64 {
                line.held.get_or_insert(HeldBy::Rotation { passes, others });
            }
        }
    }

    fn growth(&mut self, key: &Key, sights: &[Sight], age: Option<Duration>, grows: bool, now: Duration) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        while let Some(at) = pool.grown.front().copied().filter(|at| now.saturating_sub(*at) >= SETTLE) {
            pool.grown.pop_front();
            let was_old = age.is_some_and(|age| age.saturating_sub(now.saturating_sub(at)) > START);
            let closed = pool.closed_at.is_some_and(|closed| closed + NO_CLOSE > at);
            if !grows || !was_old || closed {
                continue;
            }
            for sight in sights.iter().filter(|it| it.idle && !it.apart && it.first_seen < at) {
                let quiet = at.saturating_sub(sight.used_at);
                if (WITNESS_LEAST..=WITNESS_MOST).contains(&quiet)
                    && let Some(line) = self.lines.get_mut(&sight.cookie)
                {
                    line.held.get_or_insert(HeldBy::Growth { witness: at });
                }
            }
        }
    }
}

/// Those of some quiet connections that stopped together: three or more, each within a second of the next.
pub(super) fn stopped_together(quiet: &[(u64, Duration)]) -> HashSet<u64> {
    let mut quiet = quiet.to_vec();
    quiet.sort_by_key(|(_, at)| *at);
    let mut together = HashSet::new();
    for three in quiet.windows(GROUP_LEAST) {
        if three[GROUP_LEAST - 1].1.saturating_sub(three[0].1) <= GROUP {
            together.extend(three.iter().map(|(cookie, _)| *cookie));
        }
    }
    together
}
