//! What is remembered of each connection from look to look, and the two rules that name idle connections as held.
//!
//! *Rotation*: in a pool that hands out the longest idle first, a connection that is passed over again and again is not
//! in the queue: somebody holds it. *Growth*: a pool that opens only on demand opened one more than ever before, so at
//! that moment every other connection was leased, the idle ones too. Both end with the connection's next traffic.
//!
//! Two pools of one process to one server look like one where the server does not tell them apart. So a connection is
//! missed from a rotation only if it used to take its turn in it, and growth speaks of a pool only while those that it
//! witnessed stay away: one that comes back was at rest in another pool.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::order::{Asked, Discipline, Order};
use crate::discover::End;
use crate::inspect::host::{Owner, USED_LATELY};
use crate::inspect::server::Session;
use crate::kernel::socket::ByNumber;

/// Two clocks and one kernel tick: what differs by less is the same moment.
pub(super) const SLACK: Duration = Duration::from_millis(50);
/// A connection used so lately is in rotation.
const IN_ROTATION: Duration = Duration::from_secs(5);
/// Looks in rotation before it is called free.
const LOOKS_IN_ROTATION: u8 = 5;
/// A connection that takes its turn comes back after so many rounds: some others are leased for longer. One that comes
/// sooner stands in no queue.
const IN_TURN: std::ops::RangeInclusive<f64> = 0.5..=1.5;
/// Turns after which a connection counts among those that rotate.
const ROTATES: u8 = 2;
/// Turns it took before it can be missed from a rotation,
const TURNS: u8 = 5;
/// at most this many of which are remembered.
const MOST_TURNS: u8 = 8;
/// A quieter one may be held.
const QUIET: Duration = Duration::from_secs(10);
/// One that was there before the agent and was hardly used since may rest for longer.
const LONG_QUIET: Duration = Duration::from_secs(120);
/// Rounds of the others that it was passed over in.
const ROUNDS: f64 = 5.0;
/// Rounds after which it is missing: not named yet, but others that stopped with it show a stop of all.
const MISSING: f64 = 3.0;
/// And so many times more of them than ever of late.
const TIMES_LONGEST: f64 = 2.0;
/// Others that rotate at least.
const LEAST_ROTATING: usize = 3;
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
/// A birth that is to prove something is handed out again within this time, as a pool's connection is.
const JOINS: Duration = Duration::from_secs(60);
/// Or so many are born and none is handed out again: each was kept at once.
const ALL_KEPT: usize = 3;
/// One that is quiet for more of its usual gaps may be held: that others pass it over says nothing of the order.
const RESTS: u32 = 2;
/// It may be quiet for so many times its usual gap,
const TIMES_GAP: u32 = 6;
/// which after fewer uses is not known yet: the mean of its life stands for it.
const FEW_USES: u32 = 4;
/// One that came back so often though it was witnessed rests in another pool; once may have been a starved host.
const RESTFUL: u8 = 2;
/// A single quiet one may be the bottom of another pool's stack.
const LEAST_QUIET: usize = 2;
/// One birth may have been another pool's first.
const LEAST_GROWN: u32 = 2;
/// Connections that stopped so near to one another: perhaps a second pool that went quiet. A slow pool's stop within
/// two of its rounds.
const GROUP: Duration = Duration::from_secs(1);
/// The longest such time.
const LONGEST_GROUP: Duration = Duration::from_secs(30);
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
    key: Arc<Key>,
    first_seen: Duration,
    born: bool,
    used_at: Duration,
    /// Picks of its pool when it was last used.
    picks: u64,
    looks_in_rotation: u8,
    /// Uses that came when its turn was, less those that did not.
    turns: u8,
    /// Uses seen.
    uses: u32,
    /// Between two of its uses: a moving mean, and the longest of late.
    typical_gap: Duration,
    longest_gap: Duration,
    /// Rounds of the others that it was passed over of late, though it came back.
    longest_wait: f64,
    /// How often it was witnessed, and came back soon.
    rests: u8,
    /// When it was idle while the pool opened one more.
    witness: Option<Duration>,
    held: Option<HeldBy>,
    /// Passed over for some rounds of a rotation in which it took its turn.
    is_missing: bool,
    look: u64,
}

impl Line {
    fn new(key: &Arc<Key>, sight: &Sight, picks: u64, look: u64) -> Self {
        Self {
            key: key.clone(),
            first_seen: sight.first_seen,
            born: sight.born,
            used_at: sight.used_at,
            picks,
            looks_in_rotation: 0,
            turns: 0,
            uses: 0,
            typical_gap: Duration::ZERO,
            longest_gap: Duration::ZERO,
            longest_wait: 0.0,
            rests: 0,
            witness: None,
            held: None,
            is_missing: false,
            look,
        }
    }

    /// For how long it may be quiet and come back, going by what it did so far; `None` when it was never seen at work.
    fn patience(&self) -> Option<Duration> {
        let mean = self.used_at.saturating_sub(self.first_seen) / self.uses.max(1);
        let (least, gap) = match self.uses {
            0 if !self.born => return None,
            // What it did before the agent came is not known.
            0..FEW_USES if !self.born => (LONG_QUIET, mean),
            0..FEW_USES => (QUIET, mean),
            _ => (QUIET, self.typical_gap.max(mean)),
        };
        Some(least.max(self.longest_gap * 2).max(gap * TIMES_GAP))
    }

    /// Data went over it at `at`, after `passes` uses of the `others` that rotate.
    fn used(&mut self, at: Duration, passes: u64, others: u64) {
        let gap = at.saturating_sub(self.used_at);
        self.typical_gap = if self.uses == 0 { gap } else { (self.typical_gap * 3 + gap) / 4 };
        self.longest_gap = gap.max(self.longest_gap * 7 / 8);
        if others > 0 {
            let rounds = passes as f64 / others as f64;
            self.longest_wait = rounds.max(self.longest_wait * 7.0 / 8.0);
            self.turns = match IN_TURN.contains(&rounds) {
                true => (self.turns + 1).min(MOST_TURNS),
                false => self.turns.saturating_sub(2),
            };
        }
        self.uses = self.uses.saturating_add(1);
        (self.used_at, self.held, self.is_missing) = (at, None, false);
    }
}

/// What is remembered of one pool.
#[derive(Debug, Default)]
struct Pool {
    order: Order,
    /// Uses of its connections that were seen, ever.
    picks: u64,
    high_water: usize,
    closed_at: Option<Duration>,
    /// Births that opened one more than ever before, to be looked at once their closes and their first uses are known.
    grown: VecDeque<Grown>,
    /// How many of these proved something.
    proved: u32,
    /// Of the connections that were witnessed: how many came back soon, and how many after minutes.
    returned: u32,
    stayed: u32,
    used_at: Duration,
    look: u64,
}

impl Pool {
    /// One that was witnessed is used again, so long after that.
    fn returned(&mut self, after: Duration) {
        *if after <= WITNESS_MOST { &mut self.returned } else { &mut self.stayed } += 1;
        if self.returned + self.stayed > 64 {
            (self.returned, self.stayed) = (self.returned / 2, self.stayed / 2);
        }
    }
}

/// A birth that opened one more than ever before.
#[derive(Debug, Clone, Copy)]
struct Grown {
    at: Duration,
    cookie: u64,
}

/// Every connection and pool.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: ByNumber<Line>,
    pools: HashMap<Arc<Key>, Pool>,
    look: u64,
}

impl Lines {
    /// Begins a look; every pool comes with [`Self::pool`], and [`Self::end`] ends it.
    pub(super) fn begin(&mut self) {
        self.look += 1;
    }

    /// Takes one pool of one process in. `age` is the age of the process; without it growth proves nothing. `ahead`
    /// is how many connections the pool opens though nobody asks for one: the one beyond them is a proof. `closed` says
    /// that one of it ended since the last look.
    pub(super) fn pool(
        &mut self,
        key: &Key,
        sights: &[Sight],
        age: Option<Duration>,
        ahead: usize,
        closed: bool,
        now: Duration,
    ) {
        let look = self.look;
        let known = self.pools.get_key_value(key).map(|(key, _)| key.clone());
        let is_new = known.is_none();
        // Its lines share the key, so that one of another pool is told by a comparison of pointers.
        let shared = known.unwrap_or_else(|| Arc::new(key.clone()));
        let pool = self.pools.entry(shared.clone()).or_default();
        pool.look = look;
        if closed {
            pool.closed_at = Some(now);
        }
        let mut used = Vec::new();
        for sight in sights {
            if self.lines.len() >= MAX_LINES && !self.lines.contains_key(&sight.cookie) {
                continue;
            }
            let line = self.lines.entry(sight.cookie).or_insert_with(|| Line::new(&shared, sight, pool.picks, look));
            if !Arc::ptr_eq(&line.key, &shared) {
                // Its pool has a name now; what was counted among strangers does not count.
                *line = Line::new(&shared, sight, pool.picks, look);
            }
            line.look = look;
            if sight.used_at > line.used_at + SLACK {
                used.push((sight.cookie, sight.used_at));
            }
        }
        let picks = pool.picks + used.len() as u64;
        let rotates =
            |it: &&Sight| self.lines.get(&it.cookie).is_some_and(|line| line.turns >= ROTATES && line.held.is_none());
        let rotating = sights.iter().filter(rotates).count();
        for (cookie, used_at) in &used {
            pool.order.used(*cookie, *used_at);
            let Some(line) = self.lines.get_mut(cookie) else { continue };
            let is_other = |it: &&Sight| it.cookie != *cookie && it.used_at > line.used_at + SLACK;
            let others = sights.iter().filter(is_other).count().max(rotating.saturating_sub(1)) as u64;
            if let Some(at) = line.witness.take() {
                let after = used_at.saturating_sub(at);
                line.rests = line.rests.saturating_add(u8::from(after <= WITNESS_MOST));
                pool.returned(after);
            }
            line.used(*used_at, (picks - line.picks).saturating_sub(1), others);
            // Counted from the end of the look: which of several uses came first is not known.
            line.picks = picks;
            pool.used_at = now;
        }
        pool.picks = picks;
        for sight in sights {
            let Some(line) = self.lines.get_mut(&sight.cookie) else { continue };
            let is_in_rotation = now.saturating_sub(line.used_at) <= IN_ROTATION;
            line.looks_in_rotation = match (is_in_rotation, line.looks_in_rotation) {
                (true, looks) => looks.saturating_add(1).min(LOOKS_IN_ROTATION),
                // Once a member, it is missed when it does not come round.
                (false, LOOKS_IN_ROTATION) => LOOKS_IN_ROTATION,
                (false, _) => 0,
            };
        }
        Self::ask_order(pool, &self.lines, sights, now);
        if sights.len() > pool.high_water {
            let born = sights.iter().filter(|it| it.born && !is_new).max_by_key(|it| it.first_seen);
            let is_late = |it: &&Sight| now.saturating_sub(it.first_seen) > NO_CLOSE / 2;
            if let Some(it) = born.filter(|it| pool.high_water > 0 && sights.len() > ahead && !is_late(it)) {
                pool.grown.push_back(Grown { at: it.first_seen, cookie: it.cookie });
            }
            pool.high_water = sights.len();
        }
        self.rotation(key, sights, now);
        self.growth(key, sights, age, ahead < usize::MAX, now);
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

    /// Those of one pool's connections that stopped together. A rule names one after the other, so those that are only
    /// missing yet count too: the first to be named is not alone.
    pub(super) fn stopped_together(&self, cookies: impl Iterator<Item = u64>) -> HashSet<u64> {
        let stops = cookies.filter_map(|cookie| {
            let line = self.lines.get(&cookie).filter(|it| it.held.is_some() || it.is_missing)?;
            Some(Stop { cookie, at: line.used_at, gap: line.typical_gap })
        });
        stopped_together(stops.collect())
    }

    /// Whether an idle connection takes its turn in its pool, should that rotate.
    pub(super) fn takes_turns(&self, cookie: u64, now: Duration) -> bool {
        self.lines.get(&cookie).is_some_and(|line| {
            line.looks_in_rotation == LOOKS_IN_ROTATION && now.saturating_sub(line.used_at) <= IN_ROTATION
        })
    }

    /// Whether some pool at work wants a second dump at the next look.
    pub(super) fn want_order(&self, now: Duration) -> bool {
        self.pools.values().any(|it| {
            it.high_water >= LEAST_ROTATING && now.saturating_sub(it.used_at) <= USED_LATELY && it.order.wants(now)
        })
    }

    fn ask_order(pool: &mut Pool, lines: &ByNumber<Line>, sights: &[Sight], now: Duration) {
        let is_asked = |it: &&Sight| it.idle && !it.apart && now.saturating_sub(it.used_at) <= USED_LATELY;
        let rests = |it: &Sight| {
            let line = lines.get(&it.cookie).filter(|line| line.uses >= FEW_USES);
            line.is_some_and(|line| now.saturating_sub(it.used_at) > line.typical_gap * RESTS)
        };
        let asked =
            |it: &Sight| Some(Asked { cookie: it.cookie, used_at: it.used_at, picked: it.picked?, rests: rests(it) });
        let mut idle: Vec<Asked> = sights.iter().filter(is_asked).filter_map(asked).collect();
        if !idle.is_empty() {
            idle.sort_by_key(|it| it.used_at);
            pool.order.take(&idle, now);
        }
    }

    fn rotation(&mut self, key: &Key, sights: &[Sight], now: Duration) {
        let Some(pool) = self.pools.get(key).filter(|it| it.order.discipline() == Discipline::Rotating) else { return };
        for sight in sights.iter().filter(|it| it.idle && !it.apart) {
            let others = sights.iter().filter(|it| it.used_at > sight.used_at + SLACK).count();
            let Some(line) = self.lines.get_mut(&sight.cookie) else { continue };
            if line.turns < TURNS || others < LEAST_ROTATING {
                continue;
            }
            let passes = pool.picks - line.picks;
            let rounds = passes as f64 / others as f64;
            line.is_missing |= rounds >= MISSING;
            let is_quiet = now.saturating_sub(sight.used_at) > QUIET;
            if is_quiet && rounds >= ROUNDS.max(line.longest_wait * TIMES_LONGEST) {
                line.held.get_or_insert(HeldBy::Rotation { passes, others });
            }
        }
    }

    fn growth(&mut self, key: &Key, sights: &[Sight], age: Option<Duration>, grows: bool, now: Duration) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        let settled = pool.grown.iter().filter(|it| now.saturating_sub(it.at) >= SETTLE).count();
        let mut waiting = VecDeque::new();
        for grown in std::mem::take(&mut pool.grown) {
            let at = grown.at;
            let since = now.saturating_sub(at);
            let was_old = age.is_some_and(|age| age.saturating_sub(since) > START);
            let closed = pool.closed_at.is_some_and(|closed| closed + NO_CLOSE > at && closed <= at + SETTLE);
            let newborn = sights.iter().find(|it| it.cookie == grown.cookie && !it.apart);
            let (Some(_), true, true, false) = (newborn, grows, was_old, closed) else { continue };
            let is_used = self.lines.get(&grown.cookie).is_some_and(|line| line.uses > 0);
            if since < SETTLE || !is_used && settled < ALL_KEPT {
                if since < JOINS {
                    waiting.push_back(grown);
                }
                continue;
            }
            pool.proved += 1;
            for sight in sights.iter().filter(|it| it.idle && !it.apart && it.first_seen < at) {
                let quiet = at.saturating_sub(sight.used_at);
                if (WITNESS_LEAST..=WITNESS_MOST).contains(&quiet)
                    && let Some(line) = self.lines.get_mut(&sight.cookie)
                {
                    line.witness.get_or_insert(at);
                }
            }
        }
        pool.grown = waiting;
        self.believe(key, sights, now);
    }

    /// Names those that were witnessed, while the others that were stay away.
    fn believe(&mut self, key: &Key, sights: &[Sight], now: Duration) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        let witnessed: Vec<u64> = sights
            .iter()
            .filter(|it| self.lines.get(&it.cookie).is_some_and(|line| line.witness.is_some()))
            .map(|it| it.cookie)
            .collect();
        let away = witnessed.len() as u32 + pool.stayed;
        let is_believed = pool.proved >= LEAST_GROWN && pool.returned * 3 <= away;
        let is_quiet = |line: &Line| line.patience().is_some_and(|it| now.saturating_sub(line.used_at) > it);
        let quiet = witnessed.iter().filter_map(|it| self.lines.get(it)).filter(|it| is_quiet(it)).count();
        for cookie in witnessed {
            let Some(line) = self.lines.get_mut(&cookie) else { continue };
            let Some(at) = line.witness else { continue };
            match line.held {
                None if is_believed && quiet >= LEAST_QUIET && line.rests < RESTFUL && is_quiet(line) => {
                    line.held = Some(HeldBy::Growth { witness: at });
                }
                Some(HeldBy::Growth { .. }) if !is_believed => line.held = None,
                _ => (),
            }
        }
    }
}

/// One quiet connection: when it stopped, and what lay between its uses.
#[derive(Debug, Clone, Copy)]
struct Stop {
    cookie: u64,
    at: Duration,
    gap: Duration,
}

/// Those of some quiet connections that stopped together: three or more, each within a second of the next, or within
/// two rounds of a slow pool.
fn stopped_together(mut stops: Vec<Stop>) -> HashSet<u64> {
    stops.sort_by_key(|it| it.at);
    let mut together = HashSet::new();
    for three in stops.windows(GROUP_LEAST) {
        let gap = three.iter().map(|it| it.gap).min().unwrap_or_default();
        let within = (gap * 2).clamp(GROUP, LONGEST_GROUP);
        if three[GROUP_LEAST - 1].at.saturating_sub(three[0].at) <= within {
            together.extend(three.iter().map(|it| it.cookie));
        }
    }
    together
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests a second of each pool, and between two of them.
    const PACE: Duration = Duration::from_millis(50);
    const SIZE: u64 = 10;

    /// Two rotating pools of one name in one process; the second stops, and the first takes none but its own.
    struct Two {
        lines: Lines,
        key: Key,
        /// Last use of each, the first pool's before the second's.
        used_at: Vec<Duration>,
        /// Nobody gets this one.
        kept: Option<usize>,
    }

    impl Two {
        fn new() -> Self {
            let remote = End::Tcp(([127, 0, 0, 1], 5432).into());
            let key = Key { owner: Owner::NotVisible { uid: 1, cgroup: None }, remote, of: None };
            Self { lines: Lines::default(), key, used_at: vec![Duration::ZERO; 2 * SIZE as usize], kept: None }
        }

        /// Looks at `now`, after all that was used by then.
        fn look(&mut self, now: Duration, stopped_at: Duration) {
            let turns = |now: Duration| (now.as_millis() / PACE.as_millis()) as u64;
            let mut picked = vec![false; self.used_at.len()];
            for (pool, end) in [(0, now), (1, now.min(stopped_at))] {
                for turn in turns(end).saturating_sub(SIZE)..turns(end) {
                    let cookie = (pool * SIZE + turn % SIZE) as usize;
                    if self.kept != Some(cookie) {
                        self.used_at[cookie] = PACE * (turn as u32 + 1);
                    }
                }
                // The next one is seen at work by the second dump.
                picked[(pool * SIZE + turns(end) % SIZE) as usize] = pool == 0 || now < stopped_at;
            }
            let sights: Vec<Sight> = (0..2 * SIZE)
                .map(|cookie| Sight {
                    cookie,
                    used_at: self.used_at[cookie as usize],
                    first_seen: Duration::ZERO,
                    born: false,
                    idle: true,
                    apart: false,
                    picked: Some(picked[cookie as usize]),
                })
                .collect();
            self.lines.begin();
            self.lines.pool(&self.key, &sights, None, usize::MAX, false, now);
            self.lines.end();
        }

        /// Those that a rule names, and those of them that did not stop with others.
        fn named(&self) -> (usize, Vec<u64>) {
            let together = self.lines.stopped_together(0..2 * SIZE);
            let named: Vec<u64> = (0..2 * SIZE).filter(|it| self.lines.held(*it).is_some()).collect();
            (named.len(), named.into_iter().filter(|it| !together.contains(it)).collect())
        }
    }

    #[test]
    fn a_second_pool_that_stops_is_a_stop_of_all_from_the_first_that_is_named() {
        // Wherever the looks fall between the first of them and the last.
        for phase in (0..1000).step_by(17) {
            let mut two = Two::new();
            let mut most = 0;
            for second in 1..90 {
                let now = Duration::from_millis(second * 1000 + phase);
                two.look(now, Duration::from_secs(60));
                let (named, alone) = two.named();
                assert!(alone.is_empty(), "{alone:?} of {named} are held at {now:?}");
                most = most.max(named);
            }
            assert_eq!(most, SIZE as usize, "all of the second pool are missed, and none of the first");
        }
    }

    #[test]
    fn one_that_is_kept_is_named_alone() {
        let mut two = Two::new();
        for second in 1..90 {
            let now = Duration::from_secs(second);
            two.look(now, Duration::MAX);
            if second == 60 {
                two.kept = Some(SIZE as usize + 9);
            }
        }
        assert_eq!(two.named(), (1, vec![SIZE + 9]));
    }
}
