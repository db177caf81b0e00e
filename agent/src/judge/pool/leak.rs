//! Connections that are held for too long, and how many an hour: `pool.leak` and `pool.leak_rate`.
//!
//! One such connection may be a long job. Two that began at different times, while their number does not fall, are a
//! leak: a warning, and critical when a second sign says that it will hurt.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tickbird_shared::Severity;

use super::error_path::{self, ErrorPath};
use super::errors::Errors;
use super::heard::Heard;
use super::order::Discipline;
use super::verdict::{Judged, Pool};
use super::view::Verdict;
use super::{place, untold, who};
use crate::discover::{Instance, TargetKey};
use crate::inspect::server::SessionState;
use crate::inspect::{Reason, Value};
use crate::judge::defaults::CheckId;
use crate::judge::forecast::Trend;
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Place, Subject, Tracks};
use crate::judge::{Moment, words};

pub(super) mod case;

use case::Leak;

/// Two connections that were taken nearer to each other began together.
const APART: Duration = Duration::from_secs(1);
/// The number of connections held too long may not fall in this time.
const STEADY: Duration = Duration::from_secs(30);
/// From here on a pool's own lease times say what is too long.
const HISTORY: Duration = Duration::from_secs(300);
/// And so many of them.
const ENOUGH_LEASES: usize = 20;
/// Lease times that are kept.
const LEASES_KEPT: usize = 500;
/// Too long is this many times the pool's own 99th percentile,
const TIMES_P99: f64 = 20.0;
/// and at least this.
const LEAST_BOUND: f64 = 10.0;
/// Transactions whose beginnings were told nearer to each other are one: the answer of the server takes its time.
const SAME: Duration = Duration::from_millis(500);
/// Leaks are counted over this time.
const HOUR: Duration = Duration::from_secs(3600);

const NO_RULE: Reason = Reason::NotYet(
    "no rule sees the leases of this pool: it is not known to rotate, it has not grown, and its server was not asked",
);

/// A certain lease as an example of how long one takes. Its age is not that of [`Judged::since`]: within a transaction
/// of many statements only the last one is young.
#[derive(Debug)]
struct Taken {
    /// The least that it has taken so far.
    age: Duration,
    /// When its transaction began, where its server told of one.
    began: Option<Duration>,
    /// It was named, or its transaction left open for so long that it is a fault of its own: no example.
    is_fault: bool,
}

impl Taken {
    fn of(it: &Judged<'_>, now: Duration) -> Option<Self> {
        if listens(it) {
            return None;
        }
        let quiet = matches!(it.verdict, Verdict::Leased | Verdict::Busy).then(|| now.saturating_sub(it.since));
        // Should it have been used since, then by this transaction or by a later one: what was told is its least age.
        let told = it.said.and_then(|said| Some((said.at, said.session.transaction_age?)));
        let began = told.map(|(at, age)| at.saturating_sub(age));
        let transaction = match (told, it.verdict) {
            (Some((at, age)), Verdict::Leased) => Some(age + now.saturating_sub(at)),
            (told, _) => told.map(|(_, age)| age),
        };
        Some(Self { age: quiet.max(transaction)?, began, is_fault: false })
    }

    /// Whether both may be of one lease: no, if their transactions began at different times.
    fn is_same(&self, other: &Self) -> bool {
        match (self.began, other.began) {
            (Some(one), Some(other)) => one.abs_diff(other) <= SAME,
            (Some(_), None) => false,
            (None, _) => true,
        }
    }
}

/// What is remembered of each pool.
#[derive(Debug, Default)]
pub(super) struct Leaks {
    pools: BTreeMap<TargetKey, History>,
}

#[derive(Debug)]
struct History {
    first_seen: Duration,
    seen_at: Duration,
    /// Ages of certain leases at the last look before they ended, in seconds.
    leases: VecDeque<f64>,
    /// Certain leases at the last look.
    leased: HashMap<u64, Taken>,
    /// How many were held too long, where that changed.
    counts: VecDeque<(Duration, usize)>,
    trend: Trend,
    /// Connections that were named as leaked and are open still.
    named: HashSet<u64>,
    /// When connections were named.
    leaks: VecDeque<Duration>,
    empty_in: Value,
    errors: ErrorPath,
}

impl History {
    fn new(now: Duration) -> Self {
        Self {
            first_seen: now,
            seen_at: now,
            leases: VecDeque::new(),
            leased: HashMap::new(),
            counts: VecDeque::new(),
            trend: Trend::default(),
            named: HashSet::new(),
            leaks: VecDeque::new(),
            empty_in: Value::Unknown(Reason::NotYet("not judged yet")),
            errors: ErrorPath::default(),
        }
    }

    /// Leases that ended since the last look leave their age behind. A transaction that was left open beyond `left_open`
    /// seconds is no example, however it ended: one night of faults would make every later leak look usual.
    fn learn(&mut self, pools: &[&Pool<'_>], left_open: f64, now: Duration) {
        let mut leased = HashMap::with_capacity(self.leased.len());
        for it in pools.iter().flat_map(|pool| &pool.connections) {
            let Some(mut taken) = Taken::of(it, now) else { continue };
            let before = self.leased.get(&it.connection.cookie).filter(|before| before.is_same(&taken));
            // One that was named is no example of how long a lease should take.
            taken.is_fault = before.is_some_and(|it| it.is_fault)
                || self.named.contains(&it.connection.cookie)
                || is_left_open(it, left_open);
            leased.insert(it.connection.cookie, taken);
        }
        for (cookie, before) in std::mem::take(&mut self.leased) {
            let has_ended = leased.get(&cookie).is_none_or(|it| !before.is_same(it));
            if has_ended && !before.is_fault && !self.named.contains(&cookie) {
                self.leases.push_back(before.age.as_secs_f64());
            }
        }
        while self.leases.len() > LEASES_KEPT {
            self.leases.pop_front();
        }
        self.leased = leased;
    }

    /// From which age on a held connection is held too long.
    fn bound(&self, shipped: f64, now: Duration) -> f64 {
        if now.saturating_sub(self.first_seen) < HISTORY || self.leases.len() < ENOUGH_LEASES {
            return shipped;
        }
        let mut ages: Vec<f64> = self.leases.iter().copied().collect();
        ages.sort_by(f64::total_cmp);
        let p99 = ages.get(ages.len() * 99 / 100).copied().unwrap_or_default();
        (TIMES_P99 * p99).max(LEAST_BOUND)
    }

    /// Takes in how many are held too long; true while that has not fallen lately.
    fn is_steady(&mut self, count: usize, now: Duration) -> bool {
        if self.counts.back().is_none_or(|(_, last)| *last != count) {
            self.counts.push_back((now, count));
        }
        while self.counts.len() > 64 || self.counts.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= STEADY) {
            self.counts.pop_front();
        }
        self.counts.iter().zip(self.counts.iter().skip(1)).all(|((_, old), (_, new))| new >= old)
    }
}

impl Leaks {
    /// Judges every pool of the host.
    pub(super) fn judge(
        &mut self,
        pools: &[Pool<'_>],
        (commands, heard): (&HashMap<Instance, Arc<str>>, Heard<'_>),
        errors: &Errors,
        now: Moment,
        tracks: &mut Tracks,
    ) {
        let mut targets: BTreeMap<TargetKey, Vec<&Pool<'_>>> = BTreeMap::new();
        for pool in pools {
            targets.entry(target_of(pool)).or_default().push(pool);
        }
        for (target, pools) in &targets {
            self.judge_one(target, pools, (commands, heard), errors, now, tracks);
        }
        self.pools.retain(|_, it| now.mono.saturating_sub(it.seen_at) <= HOUR);
    }

    fn judge_one(
        &mut self,
        target: &TargetKey,
        pools: &[&Pool<'_>],
        (commands, heard): (&HashMap<Instance, Arc<str>>, Heard<'_>),
        errors: &Errors,
        now: Moment,
        tracks: &mut Tracks,
    ) {
        let history = self.pools.entry(target.clone()).or_insert_with(|| History::new(now.mono));
        history.seen_at = now.mono;
        let left_open = tracks.rule(CheckId::IdleInTransaction).bounds.warning.unwrap_or(f64::INFINITY);
        history.learn(pools, left_open, now.mono);
        let rule = tracks.rule(CheckId::Leak);
        let bound = history.bound(rule.bounds.warning.unwrap_or(f64::INFINITY), now.mono);
        let old = rule.bounds.critical.unwrap_or(f64::INFINITY);
        let setting = tracks.thresholds().of(CheckId::Leak);
        let is_allowed = |it: &Judged<'_>| it.said.is_some_and(|said| setting.allows(&said.session.application_name));
        let age = |it: &Judged<'_>| now.mono.saturating_sub(it.since).as_secs_f64();
        let mut held: Vec<&Judged<'_>> =
            pools.iter().flat_map(|pool| &pool.connections).filter(|it| is_held(it) && !is_allowed(it)).collect();
        held.sort_by_key(|it| (it.since, it.connection.cookie));
        history.trend.take(held.len() as u32, now.mono);
        history.errors.learn(&held, errors, now.mono);
        let room = pools.iter().map(|pool| room(pool)).try_fold(0.0, |sum, room| Some(sum + room?));
        history.empty_in = history.trend.empty_in(room.map(|it| (it, it)), now.mono);
        let has_sight = pools
            .iter()
            .any(|pool| pool.discipline == Discipline::Rotating || pool.connections.iter().any(tells_lease));
        let has_rule = has_sight || !held.is_empty() || !history.named.is_empty();
        held.retain(|it| age(it) >= bound);
        let is_steady = history.is_steady(held.len(), now.mono);
        let second = held.iter().find(|it| it.since.saturating_sub(held[0].since) >= APART).map_or(0.0, |it| age(it));
        let leak = Leak {
            pools,
            held,
            bound,
            old,
            now: now.mono,
            empty_in: &history.empty_in,
            commands,
            heard,
            errors: &history.errors,
        };
        let grave = !leak.causes().is_empty();
        let seen = Seen {
            qualifies: is_steady,
            corroborated: grave,
            forced: (second > 0.0).then_some(if grave { Severity::Critical } else { Severity::Warning }),
            ..Seen::value(if has_rule { Value::Known(second) } else { no_rule(pools) })
        };
        let place = place(pools[0].row);
        let subject = Subject { place: Some(&place), ..Subject::of(CheckId::Leak, target) };
        tracks.observe(subject, seen, now, || leak.case());
        let application = error_path::application(pools[0].row);
        if let Some(application) = application.filter(|it| errors.follow(it)) {
            let no_rule = (!has_rule).then(|| no_rule(pools));
            let seen = leak.errors.seen(&leak.held, errors.unread(application), no_rule);
            let subject = Subject { place: Some(&place), ..Subject::of(CheckId::ErrorPath, target) };
            tracks.observe(subject, seen, now, || leak.errors.case(&leak));
        }
        let cookies: HashSet<u64> = leak.held.iter().map(|it| it.connection.cookie).collect();
        if second > 0.0 && is_steady {
            let new = cookies.iter().filter(|it| !history.named.contains(*it)).count();
            history.leaks.extend(std::iter::repeat_n(now.mono, new));
            history.named.extend(&cookies);
        }
        history.named.retain(|it| cookies.contains(it));
        while history.leaks.front().is_some_and(|at| now.mono.saturating_sub(*at) >= HOUR) {
            history.leaks.pop_front();
        }
        let rate = history.leaks.len();
        let value = if has_rule { Value::Known(rate as f64) } else { no_rule(pools) };
        let subject = Subject { place: Some(&place), ..Subject::of(CheckId::LeakRate, target) };
        tracks.observe(subject, Seen::value(value), now, || leak.rate_case(rate));
    }

    /// Pools of which nothing is open any more have nothing held.
    pub(super) fn nothing_else(&self, pools: &[Pool<'_>], known: Vec<(TargetKey, Place)>) -> Vec<(TargetKey, Place)> {
        let open: HashSet<TargetKey> = pools.iter().map(target_of).collect();
        known.into_iter().filter(|(target, _)| !open.contains(target)).collect()
    }

    /// Seconds until the pool is empty, as last judged.
    pub(super) fn empty_in(&self, pool: &Pool<'_>) -> Value {
        let unknown = || Value::Unknown(Reason::NotYet("not judged yet"));
        self.pools.get(&target_of(pool)).map_or_else(unknown, |it| it.empty_in.clone())
    }
}

/// Why nothing can be said of these pools' leases.
fn no_rule(pools: &[&Pool<'_>]) -> Value {
    let rows: Vec<_> = pools.iter().map(|pool| pool.row).collect();
    untold(&rows).unwrap_or(Value::Unknown(NO_RULE))
}

/// `pool:…`, by database and user where the server names them.
pub(super) fn target_of(pool: &Pool<'_>) -> TargetKey {
    let Some(name) = &pool.name else { return pool.row.target.clone() };
    let (application, role) = who(pool.row).rsplit_once('/').unwrap_or((who(pool.row), "main"));
    let [database, user] = [&name.database, &name.user].map(|name| words::foreign(name, 63));
    TargetKey::pool_of(application, role, &pool.row.remote, &database, &user)
}

/// Held while nothing is done with it: in a transaction, named by a rule, or not given back though it could have been.
fn is_held(it: &Judged<'_>) -> bool {
    use SessionState::{Active, FastPath};
    match it.verdict {
        Verdict::Held => true,
        Verdict::Leased => !listens(it) && it.said.is_some_and(|said| !matches!(said.session.state, Active | FastPath)),
        _ => false,
    }
}

/// Whether its server says anything of its lease.
fn tells_lease(it: &Judged<'_>) -> bool {
    it.said.is_some_and(|said| said.engine.tells_leases())
}

/// Idle in a transaction for at least so many seconds.
fn is_left_open(it: &Judged<'_>, seconds: f64) -> bool {
    use SessionState::{IdleInTransaction, IdleInTransactionAborted, InTransaction};
    let stays = |state| matches!(state, IdleInTransaction | IdleInTransactionAborted | InTransaction);
    let age = it.said.filter(|it| stays(it.session.state)).and_then(|it| it.session.state_age);
    age.is_some_and(|it| it.as_secs_f64() >= seconds)
}

/// Waits for what others send: its age is no example of a lease's, and no sign of a leak.
fn listens(it: &Judged<'_>) -> bool {
    it.said.is_some_and(|said| said.session.state == SessionState::Listening)
}

/// Connections that the pool may still hand out.
fn room(pool: &Pool<'_>) -> Option<f64> {
    let limit = pool.row.limit.value.known().filter(|it| *it > 0.0)?;
    Some((limit - (pool.certain() + pool.count(Verdict::Held)) as f64).max(0.0))
}
