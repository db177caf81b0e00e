//! Connections that are held for too long, and how many an hour: `pool.leak` and `pool.leak_rate`.
//!
//! One such connection may be a long job. Two that began at different times, while their number does not fall, are a
//! leak: a warning, and critical when a second sign says that it will hurt.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tickbird_shared::Severity;
use tickbird_shared::protocol::MAX_EVIDENCE_BYTES;

use super::forecast::Trend;
use super::lines::HeldBy;
use super::order::Discipline;
use super::verdict::{Judged, Pool};
use super::view::Verdict;
use super::{owner_name, pid, pids, pids_in_words, place, untold, who};
use crate::discover::{Instance, TargetKey};
use crate::inspect::host::Owner;
use crate::inspect::server::SessionState;
use crate::inspect::{Reason, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{self, Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Place, Subject, Tracks};
use crate::judge::{Moment, words};

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
/// From this age on the oldest makes it critical.
const OLD: f64 = 300.0;
/// A pool that will be empty so soon makes it critical.
const SOON: f64 = 300.0;
/// Leaks are counted over this time.
const HOUR: Duration = Duration::from_secs(3600);
/// Most connections in one finding's evidence.
const MAX_ROWS: usize = 50;

const NO_RULE: Reason = Reason::NotYet(
    "no rule sees the leases of this pool: it is not known to rotate, it has not grown, and its server was not asked",
);

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
    leased: HashMap<u64, Duration>,
    /// How many were held too long, where that changed.
    counts: VecDeque<(Duration, usize)>,
    trend: Trend,
    /// Connections that were named as leaked and are open still.
    named: HashSet<u64>,
    /// When connections were named.
    leaks: VecDeque<Duration>,
    empty_in: Value,
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
        }
    }

    /// Leases that ended since the last look leave their age behind.
    fn learn(&mut self, pools: &[&Pool<'_>], now: Duration) {
        let all = pools.iter().flat_map(|pool| &pool.connections);
        let leased: HashMap<u64, Duration> = all
            .filter(|it| matches!(it.verdict, Verdict::Leased | Verdict::Busy) && !listens(it))
            .map(|it| (it.connection.cookie, now.saturating_sub(it.since)))
            .collect();
        let ended = self.leased.iter().filter(|(cookie, _)| !leased.contains_key(*cookie));
        // One that was named is no example of how long a lease should take.
        let ended = ended.filter(|(cookie, _)| !self.named.contains(*cookie));
        self.leases.extend(ended.map(|(_, age)| age.as_secs_f64()));
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

/// What a look says of one target.
struct Leak<'a, 'p> {
    pools: &'p [&'p Pool<'a>],
    /// Held too long, the oldest first.
    held: Vec<&'p Judged<'a>>,
    bound: f64,
    now: Duration,
    empty_in: &'p Value,
    commands: &'p HashMap<Instance, Arc<str>>,
}

impl Leaks {
    /// Judges every pool of the host.
    pub(super) fn judge(
        &mut self,
        pools: &[Pool<'_>],
        commands: &HashMap<Instance, Arc<str>>,
        now: Moment,
        tracks: &mut Tracks,
    ) {
        let mut targets: BTreeMap<TargetKey, Vec<&Pool<'_>>> = BTreeMap::new();
        for pool in pools {
            targets.entry(target_of(pool)).or_default().push(pool);
        }
        for (target, pools) in &targets {
            self.judge_one(target, pools, commands, now, tracks);
        }
        self.pools.retain(|_, it| now.mono.saturating_sub(it.seen_at) <= HOUR);
    }

    fn judge_one(
        &mut self,
        target: &TargetKey,
        pools: &[&Pool<'_>],
        commands: &HashMap<Instance, Arc<str>>,
        now: Moment,
        tracks: &mut Tracks,
    ) {
        let history = self.pools.entry(target.clone()).or_insert_with(|| History::new(now.mono));
        history.seen_at = now.mono;
        history.learn(pools, now.mono);
        let rule = tracks.rule(CheckId::Leak);
        let bound = history.bound(rule.bounds.warning.unwrap_or(f64::INFINITY), now.mono);
        let setting = tracks.thresholds().of(CheckId::Leak);
        let is_allowed = |it: &Judged<'_>| it.said.is_some_and(|said| setting.allows(&said.session.application_name));
        let age = |it: &Judged<'_>| now.mono.saturating_sub(it.since).as_secs_f64();
        let mut held: Vec<&Judged<'_>> =
            pools.iter().flat_map(|pool| &pool.connections).filter(|it| is_held(it) && !is_allowed(it)).collect();
        held.sort_by_key(|it| (it.since, it.connection.cookie));
        history.trend.take(held.len() as u32, now.mono);
        let room = pools.iter().map(|pool| room(pool)).try_fold(0.0, |sum, room| Some(sum + room?));
        history.empty_in = history.trend.empty_in(room, now.mono);
        let has_sight = pools
            .iter()
            .any(|pool| pool.discipline == Discipline::Rotating || pool.connections.iter().any(tells_lease));
        let has_rule = has_sight || !held.is_empty() || !history.named.is_empty();
        held.retain(|it| age(it) >= bound);
        let is_steady = history.is_steady(held.len(), now.mono);
        let second = held.iter().find(|it| it.since.saturating_sub(held[0].since) >= APART).map_or(0.0, |it| age(it));
        let leak = Leak { pools, held, bound, now: now.mono, empty_in: &history.empty_in, commands };
        let grave = leak.is_grave();
        let seen = Seen {
            qualifies: is_steady,
            corroborated: grave,
            forced: (second > 0.0).then_some(if grave { Severity::Critical } else { Severity::Warning }),
            ..Seen::value(if has_rule { Value::Known(second) } else { no_rule(pools) })
        };
        let place = place(pools[0].row);
        let subject = Subject { place: Some(&place), ..Subject::of(CheckId::Leak, target) };
        tracks.observe(subject, seen, now, || leak.case());
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

/// Waits for what others send: its age is no example of a lease's, and no sign of a leak.
fn listens(it: &Judged<'_>) -> bool {
    it.said.is_some_and(|said| said.session.state == SessionState::Listening)
}

/// Connections that the pool may still hand out.
fn room(pool: &Pool<'_>) -> Option<f64> {
    let limit = pool.row.limit.value.known().filter(|it| *it > 0.0)?;
    Some((limit - (pool.certain() + pool.count(Verdict::Held)) as f64).max(0.0))
}

impl Leak<'_, '_> {
    fn age(&self, it: &Judged<'_>) -> f64 {
        self.now.saturating_sub(it.since).as_secs_f64()
    }

    /// A second sign: half of a process's limit, soon empty, or old.
    fn is_grave(&self) -> bool {
        let half = |pool: &&Pool<'_>| {
            let held = self.held.iter().filter(|it| std::ptr::eq(it.row, pool.row)).count();
            pool.row.limit.value.known().is_some_and(|limit| limit > 0.0 && 2.0 * held as f64 >= limit)
        };
        let is_old = self.held.first().is_some_and(|it| self.age(it) >= OLD);
        let is_soon = self.empty_in.low().is_some_and(|low| low <= SOON);
        is_old || is_soon || self.pools.iter().any(half)
    }

    fn case(&self) -> Case {
        let Some(oldest) = self.held.first() else { return Case::default() };
        let mut members: Vec<u64> = self.held.iter().map(|it| it.connection.cookie).collect();
        members.sort_unstable();
        let pids = pids(self.held.iter().map(|it| it.row));
        let open: usize = self.pools.iter().map(|pool| pool.connections.len()).sum();
        let fd = oldest.connection.fds.first();
        let on = fd.map_or_else(|| words::local_end(&oldest.connection.local), |fd| format!("fd {fd}"));
        let session = oldest.said.map(|said| format!(" = {} {}", said.engine.session_word(), said.session.backend));
        let statement = oldest.said.and_then(|said| said.session.statement.as_deref());
        let statement = statement.map(|it| format!(", last statement `{}`", words::foreign(it, 200)));
        let empty = match self.empty_in {
            Value::Between(low, high) => {
                format!("; at this rate the pool is empty in {} to {}", words::seconds(*low), words::seconds(*high))
            }
            _ => String::new(),
        };
        Case {
            summary: format!(
                "{}, {}, has held {} of {open} connections to {} for longer than {}, the oldest for {} on {on}{}{}{empty}",
                owner_name(oldest.row),
                pids_in_words(&pids),
                self.held.len(),
                oldest.row.remote,
                words::seconds(self.bound),
                words::seconds(self.age(oldest)),
                session.unwrap_or_default(),
                statement.unwrap_or_default(),
            ),
            evidence: self.evidence(open, &pids),
            members,
            age_seconds: Some(self.age(oldest)),
            advice: None,
        }
    }

    fn evidence(&self, open: usize, pids: &[u32]) -> Map<String, Json> {
        let mut by_rule: BTreeMap<&str, usize> = BTreeMap::new();
        self.held.iter().for_each(|it| *by_rule.entry(it.rule).or_default() += 1);
        let mut not_visible = Vec::new();
        if pids.is_empty() {
            not_visible.push("owner: not visible");
        }
        if self.held.iter().any(|it| it.said.is_none()) {
            not_visible.push("the server's session");
        }
        let count = |verdict| self.pools.iter().map(|pool| pool.count(verdict)).sum::<usize>();
        let certain: usize = self.pools.iter().map(|pool| pool.certain()).sum();
        let uncertain = count(Verdict::Held) + count(Verdict::GroupStop) + count(Verdict::Unknown);
        let limit = &self.held[0].row.limit;
        let mut whole = object(json!({
            "held_too_long": self.held.len(),
            "bound_seconds": number(self.bound, Unit::Seconds),
            "open": open,
            "leased_at_least": certain,
            "leased_at_most": certain + uncertain,
            "free": count(Verdict::Free),
            "limit": evidence::value(&limit.value, Unit::Count),
            "limit_source": limit.source,
            "discipline": self.pools[0].discipline.as_str(),
            "empty_in_seconds": evidence::value(self.empty_in, Unit::Seconds),
            "pids": pids,
            "rule": by_rule,
            "not_visible": not_visible,
        }));
        let left = MAX_EVIDENCE_BYTES.saturating_sub(Json::Object(whole.clone()).to_string().len() + 32);
        let mut rows = Vec::new();
        let mut bytes = 2;
        for it in self.held.iter().take(MAX_ROWS) {
            let row = self.row(it);
            bytes += row.to_string().len() + 1;
            if bytes > left {
                break;
            }
            rows.push(row);
        }
        whole.insert("connections".to_owned(), Json::Array(rows));
        whole
    }

    fn row(&self, it: &Judged<'_>) -> Json {
        let instance = match &it.row.owner {
            Owner::Seen { instance, .. } => Some(instance),
            Owner::NotVisible { .. } => None,
        };
        let session = it.said.map(|said| &said.session);
        let seconds = |age: Option<Duration>| age.map(|it| number(it.as_secs_f64(), Unit::Seconds));
        let witnessed = match it.held {
            Some(HeldBy::Growth { witness }) => Some(self.now.saturating_sub(witness)),
            _ => None,
        };
        let passes = match it.held {
            Some(HeldBy::Rotation { passes, others }) => Some(json!({ "passed_over": passes, "others": others })),
            _ => None,
        };
        json!({
            "pid": pid(it.row),
            "start": instance.map(|it| it.start),
            "fd": it.connection.fds.first(),
            "local": it.connection.local.to_string(),
            "remote": it.row.remote.to_string(),
            "command": instance.and_then(|it| self.commands.get(it)).map(|it| words::foreign(it, 60)),
            "held_seconds": number(self.age(it), Unit::Seconds),
            "rule": it.rule,
            "witnessed_seconds_ago": seconds(witnessed),
            "rotation": passes,
            "session": session.map(|it| it.backend),
            "state": session.map(|it| it.state.as_str()),
            "state_age_seconds": seconds(session.and_then(|it| it.state_age)),
            "application_name": session.map(|it| words::foreign(&it.application_name, 63)),
            "statement": session.and_then(|it| it.statement.as_deref()).map(|it| words::foreign(it, 120)),
        })
    }

    fn rate_case(&self, rate: usize) -> Case {
        let case = self.case();
        let row = self.pools[0].row;
        let summary = format!(
            "{} has leaked {} to {} within the last hour",
            owner_name(row),
            words::counted(rate, "connection"),
            row.remote
        );
        let mut evidence = if case.evidence.is_empty() {
            object(json!({ "rule": "connections named by pool.leak", "not_visible": [] }))
        } else {
            case.evidence
        };
        evidence.insert("leaks_last_hour".to_owned(), json!(rate));
        Case { summary, evidence, ..Case::default() }
    }
}
