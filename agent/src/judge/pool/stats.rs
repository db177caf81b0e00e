//! What applications say of their own pools: whether it makes sense (`pool.stats`), the exact share of
//! `pool.utilization`, and the most trusted limit.
//!
//! A source names an application and perhaps a remote end. Where that leaves exactly one pool of this host, the source
//! speaks of it; where it does not, its pools are judged under the names that the application gives them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::exhaustion::{Waited, Waiters};
use super::heard::Heard;
use super::row;
use super::{Instances, place};
use crate::discover::{End, TargetKey};
use crate::inspect::host::{Limit, Owner, PoolRow};
use crate::inspect::pool_metrics::{NamedPool, PoolStats, Totals};
use crate::inspect::{Reason, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{self, Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Place, Subject, Tracks};
use crate::judge::{Moment, words};

/// Numbers are of use for so long: two looks that failed, at the shipped pace of 10 s.
const FRESH: Duration = Duration::from_secs(25);
/// What two numbers of one page may differ by, which are not read at the same moment.
const SLACK: f64 = 2.0;

const NO_LIMIT: Reason = Reason::NotYet("not judged: no limit is configured or told by the application");

/// Every source's last word.
#[derive(Debug, Default)]
pub(super) struct Stats {
    sources: BTreeMap<TargetKey, Source>,
    held: Vec<Held>,
    /// Before the first look at the host nobody knows whose connections a source speaks of.
    has_host: bool,
}

#[derive(Debug)]
struct Source {
    said: PoolStats,
    at: Duration,
    /// Between the last two looks.
    gap: Duration,
    /// What the counters of each pool gained between them, where both told them.
    gained: BTreeMap<Arc<str>, Totals>,
}

/// A pool of this host that a source may speak of.
#[derive(Debug)]
struct Held {
    target: TargetKey,
    place: Place,
    application: Arc<str>,
    is_sql: bool,
    instances: usize,
    limit: Limit,
}

/// What is known of one pool from its application.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exact<'a> {
    pub(super) pool: &'a NamedPool,
    /// When it was said.
    pub(super) at: Duration,
    /// Whether it covers every process of the pool; else it is one of them, whichever answered.
    pub(super) is_whole: bool,
    held: Option<&'a Held>,
    application: &'a str,
    source: &'a TargetKey,
    /// What its counters gained between the last two looks.
    waited: Option<Waited>,
}

impl Exact<'_> {
    /// The pool's connections where they can be told, else its name.
    pub(super) fn target(&self) -> TargetKey {
        self.held.map_or_else(|| TargetKey::named_pool(self.application, &self.pool.name), |it| it.target.clone())
    }

    pub(super) fn place(&self) -> Option<&Place> {
        self.held.map(|it| &it.place)
    }

    /// Whether it speaks of connections that this host shows.
    pub(super) const fn is_attached(&self) -> bool {
        self.held.is_some()
    }

    /// The limit by trust: the application's own word, then what its process's settings say.
    pub(super) fn limit(&self) -> Option<(f64, &str)> {
        let told = self.pool.limit.known().map(|it| (it, &*self.pool.source));
        let of_process = || {
            let limit = &self.held?.limit;
            let processes = f64::from(self.pool.processes);
            Some((limit.value.known().filter(|it| *it > 0.0)? * processes, &*limit.source))
        };
        told.or_else(of_process)
    }

    /// Callers that wait. While a connection is left, whoever waits waits for it to be opened. A pool that tells only
    /// how many had to wait says that one does, while they wait for long.
    pub(super) fn waiters(&self) -> Option<Waiters> {
        let room = self.pool.in_use.known().zip(self.limit()).map(|(in_use, (limit, _))| in_use < limit);
        let has_room = room == Some(true);
        let waiting = self.pool.waiting.known();
        if !has_room
            && waiting.is_none()
            && let Some(waited) = self.waited.filter(|it| it.is_exhaustion(room == Some(false)))
        {
            let mut waiters = Waiters::by_waits(self.source.clone(), waited, self.pool.source.clone(), self.at);
            waiters.is_whole = self.is_whole;
            return Some(waiters);
        }
        let count = if has_room { 0.0 } else { waiting? };
        let mut waiters = Waiters::new(self.source.clone(), count, self.pool.source.clone(), self.at);
        waiters.is_whole = self.is_whole;
        let oldest = self.pool.oldest_wait.known().filter(|_| count > 0.0);
        waiters.oldest = oldest.and_then(|it| Duration::try_from_secs_f64(it).ok());
        Some(waiters)
    }

    fn share(&self) -> Option<f64> {
        Some(self.pool.in_use.known()? / self.limit()?.0)
    }

    /// Seconds for which a connection was in use on average, of those given back between the last two looks.
    fn mean_use(&self) -> Option<f64> {
        let gained = self.waited?.gained;
        Some(gained.use_seconds? / gained.uses.filter(|it| *it > 0.0)?)
    }

    /// `shop` as it stands in a sentence.
    pub(super) fn owner_name(&self) -> String {
        words::foreign(self.application, 80)
    }
}

impl Stats {
    /// The pools of this host now.
    pub(super) fn remember(&mut self, pools: &Instances<'_>) {
        self.held.clear();
        self.has_host = true;
        for (target, rows) in pools {
            let Owner::Seen { application, .. } = &rows[0].owner else { continue };
            self.held.push(Held {
                target: (*target).clone(),
                place: place(rows[0]),
                application: application.name.clone(),
                is_sql: rows[0].service.is_some_and(|it| SQL.contains(&it)),
                instances: rows.len(),
                limit: rows[0].limit.clone(),
            });
        }
    }

    /// Takes one source's word in.
    pub(super) fn look(
        &mut self,
        said: &PoolStats,
        (pools, heard): (&[PoolRow], Heard<'_>),
        now: Moment,
        tracks: &mut Tracks,
    ) {
        let before = self.sources.get(&said.target);
        let gap = before.map_or(FRESH, |it| now.mono.saturating_sub(it.at));
        let gained = before.map(|it| gained(&it.said, said)).unwrap_or_default();
        self.sources.insert(said.target.clone(), Source { said: said.clone(), at: now.mono, gap, gained });
        sense(said, now, tracks);
        for exact in self.of_source(&said.target) {
            if exact.is_attached() {
                let named = TargetKey::named_pool(&said.application, &exact.pool.name);
                tracks.end("its connections are known now", now, |key, _| key.target == named);
            }
            // A pool of several processes of which one answered is judged by its sessions.
            if (exact.is_attached() && !exact.is_whole) || exact.pool.in_use.known().is_none() {
                continue;
            }
            let target = exact.target();
            if self.share_of(&target, now.mono).is_some_and(|it| it.pool.source != exact.pool.source) {
                continue;
            }
            let seen = match exact.share() {
                Some(share) => Seen { corroborated: true, ..Seen::known(share) },
                None if exact.is_attached() => continue,
                None => Seen::value(Value::Unknown(NO_LIMIT)),
            };
            let subject = Subject { place: exact.place(), ..Subject::of(CheckId::Utilization, &target) };
            let rows: Vec<&PoolRow> = pools.iter().filter(|row| exact.is_attached() && row.target == target).collect();
            tracks.observe(subject, seen, now, || utilization_case(&exact, &rows, heard));
        }
    }

    /// What one source says of each of its pools that makes sense.
    pub(super) fn of_source(&self, source: &TargetKey) -> Vec<Exact<'_>> {
        let Some(source) = self.sources.get(source).filter(|_| self.has_host) else { return Vec::new() };
        let pools = source.said.pools.as_deref().unwrap_or_default();
        let held = if pools.len() == 1 { self.held_by(&source.said) } else { None };
        let exact = |pool| {
            let is_whole = held.is_none_or(|it| it.instances <= 1 || pool_processes(pool) >= it.instances);
            Exact {
                pool,
                at: source.at,
                is_whole,
                held,
                application: &source.said.application,
                source: &source.said.target,
                waited: source.gained.get(&pool.name).map(|gained| Waited { gained: *gained, over: source.gap }),
            }
        };
        pools.iter().filter(|pool| contradiction(pool).is_none()).map(exact).collect()
    }

    /// Everything that is said now of this host's pools, the most trusted first.
    pub(super) fn attached(&self, now: Duration) -> impl Iterator<Item = Exact<'_>> {
        let is_fresh = move |it: &&Source| now.saturating_sub(it.at) <= FRESH.max(it.gap.mul_f64(2.5));
        let mut sources: Vec<&Source> = self.sources.values().filter(is_fresh).collect();
        sources.sort_by_key(|it| it.said.kind);
        sources.into_iter().flat_map(|it| self.of_source(&it.said.target)).filter(Exact::is_attached)
    }

    /// The word that `pool.utilization` of a pool is judged by, where there is an exact one.
    pub(super) fn share_of(&self, target: &TargetKey, now: Duration) -> Option<Exact<'_>> {
        self.attached(now).find(|it| it.is_whole && it.share().is_some() && it.target() == *target)
    }

    /// The rows with the limit that is trusted most: metrics, health, the process's settings, then what was `learned`.
    pub(super) fn limited<'a>(
        &self,
        rows: &'a [PoolRow],
        learned: impl Fn(&TargetKey) -> Option<Limit>,
        now: Duration,
    ) -> Vec<Cow<'a, PoolRow>> {
        let told = |target: &TargetKey| {
            let mut limits = self.attached(now).filter(|it| it.target() == *target);
            let (limit, exact) = limits.find_map(|it| Some((it.pool.limit.known()?, it)))?;
            let of_one = limit / f64::from(exact.pool.processes);
            Some(Limit { value: Value::Known(of_one), source: exact.pool.source.clone() })
        };
        let replaced = |row: &'a PoolRow| {
            let is_unknown = row.limit.value.low().is_none();
            let better = told(&row.target).or_else(|| if is_unknown { learned(&row.target) } else { None });
            match better {
                Some(limit) => Cow::Owned(PoolRow { limit, ..row.clone() }),
                None => Cow::Borrowed(row),
            }
        };
        rows.iter().map(replaced).collect()
    }

    /// Connections that a pool opens though nobody asks for one, as its application says: growth up to there proves
    /// nothing. Without end where idle ones are kept ready, for then one is opened whenever one is used; `None` where
    /// nothing is said of it.
    pub(super) fn opens_ahead(&self, target: &TargetKey, now: Duration) -> Option<usize> {
        let of_target = self.attached(now).filter(|it| it.target() == *target);
        let ahead = of_target.filter_map(|it| match (it.pool.least_idle, it.pool.least) {
            (Some(idle), _) if idle > 0.0 => Some(usize::MAX),
            (_, Some(least)) => Some((least / f64::from(it.pool.processes)).ceil() as usize),
            (idle, None) => idle.map(|_| 0),
        });
        ahead.max()
    }

    /// Whether a pool of which this source tells is nearly full or has callers that wait.
    pub(super) fn is_suspect(&self, source: &str, bound: Option<f64>) -> bool {
        let is_high = |it: &Exact<'_>| {
            it.pool.waiting.low().is_some_and(|it| it > 0.0) || it.share().zip(bound).is_some_and(|(it, at)| it >= at)
        };
        self.named(source).flat_map(|it| self.of_source(it)).any(|it| is_high(&it))
    }

    /// The pools of this host of which a source tells.
    pub(super) fn targets_of(&self, source: &str) -> impl Iterator<Item = TargetKey> {
        self.named(source).flat_map(|it| self.of_source(it)).filter(Exact::is_attached).map(|it| it.target())
    }

    /// A source by its inspector's name: `pool_metrics http://…`.
    fn named(&self, inspector: &str) -> impl Iterator<Item = &TargetKey> {
        let url = inspector.trim_start_matches("pool_metrics ").to_owned();
        self.sources.keys().filter(move |it| it.as_str().strip_prefix("endpoint:") == Some(&*url))
    }

    fn held_by(&self, said: &PoolStats) -> Option<&Held> {
        let of_application = || self.held.iter().filter(|it| it.application == said.application);
        let candidates: Vec<&Held> = match said.endpoint {
            Some(endpoint) => of_application().filter(|it| it.place.remote == End::Tcp(endpoint)).collect(),
            None if of_application().any(|it| it.is_sql) => of_application().filter(|it| it.is_sql).collect(),
            None => of_application().collect(),
        };
        if let [one] = candidates[..] { Some(one) } else { None }
    }
}

/// What speaks SQL; the numbers of an application's only pool are of one of these before any other.
pub(super) const SQL: [&str; 5] = ["postgresql", "pgbouncer", "mysql", "sqlserver", "oracle"];

/// What the counters of each pool gained from one word of a source to its next.
fn gained(before: &PoolStats, now: &PoolStats) -> BTreeMap<Arc<str>, Totals> {
    let mut all = BTreeMap::new();
    for pool in now.pools.iter().flatten() {
        let same = before.pools.iter().flatten().find(|it| it.name == pool.name && it.processes == pool.processes);
        if let Some(before) = same {
            all.insert(pool.name.clone(), pool.totals.since(&before.totals));
        }
    }
    all
}

fn pool_processes(pool: &NamedPool) -> usize {
    usize::try_from(pool.processes).unwrap_or(usize::MAX)
}

/// `pool.stats`: the source answers and its numbers agree with one another.
fn sense(said: &PoolStats, now: Moment, tracks: &mut Tracks) {
    let wrong: Vec<(&NamedPool, String)> =
        said.pools.iter().flatten().filter_map(|pool| Some((pool, contradiction(pool)?))).collect();
    let seen = match &said.pools {
        Err(reason) => Seen::value(Value::Unknown(reason.clone())),
        Ok(_) => match wrong.first() {
            Some((_, what)) => Seen { words: Some(what.clone()), ..Seen::known(1.0) },
            None => Seen::known(0.0),
        },
    };
    tracks.observe(Subject::of(CheckId::Stats, &said.target), seen, now, || {
        let (pool, what) = wrong.first().map_or(("", ""), |(pool, what)| (&*pool.name, what.as_str()));
        let application = words::foreign(&said.application, 80);
        Case {
            summary: format!("what {application} says of its pool {pool} cannot be: {what}"),
            evidence: object(json!({
                "source": said.target.as_str().trim_start_matches("endpoint:"),
                "pools": said.pools.iter().flatten().take(20).map(shown).collect::<Vec<_>>(),
                "rule": "the numbers of one page agree with one another",
                "not_visible": [],
            })),
            ..Case::default()
        }
    });
}

/// Why the numbers of a pool cannot all be true.
fn contradiction(pool: &NamedPool) -> Option<String> {
    let all = [&pool.in_use, &pool.idle, &pool.open, &pool.waiting, &pool.oldest_wait];
    if all.iter().filter_map(|it| it.known()).any(|it| it < 0.0 || !it.is_finite()) {
        return Some("a number is below zero or no number".to_owned());
    }
    let (in_use, limit) = (pool.in_use.known(), pool.limit.known());
    if let (Some(in_use), Some(limit)) = (in_use, limit)
        && in_use > limit + SLACK
    {
        return Some(format!("{in_use} connections are in use of at most {limit}"));
    }
    let (open, idle) = (pool.open.known(), pool.idle.known());
    if let (Some(open), Some(in_use), Some(idle)) = (open, in_use, idle)
        && (open - in_use - idle).abs() > SLACK.max(open / 2.0)
    {
        return Some(format!("{in_use} in use and {idle} idle are not {open} open connections"));
    }
    match (pool.waiting.known(), in_use) {
        (Some(waiting), Some(in_use)) if waiting > SLACK && in_use == 0.0 => {
            Some(format!("{waiting} callers wait while no connection is in use"))
        }
        _ => None,
    }
}

/// The numbers of a pool as evidence.
pub(super) fn shown(pool: &NamedPool) -> serde_json::Value {
    let count = |value: &Value| if value.low().is_some() { evidence::value(value, Unit::Count) } else { json!(null) };
    json!({
        "name": words::foreign(&pool.name, 80),
        "limit": count(&pool.limit),
        "in_use": count(&pool.in_use),
        "idle": count(&pool.idle),
        "open": count(&pool.open),
        "waiting": count(&pool.waiting),
        "opens_ahead": pool.least,
        "keeps_idle": pool.least_idle,
        "keeps_idle_at_most": pool.most_idle,
        "source": words::foreign(&pool.source, 300),
    })
}

fn utilization_case(exact: &Exact<'_>, rows: &[&PoolRow], heard: Heard<'_>) -> Case {
    let (in_use, (limit, limit_source)) =
        (exact.pool.in_use.known().unwrap_or(0.0), exact.limit().unwrap_or((0.0, "")));
    let share = exact.share().unwrap_or(0.0);
    let waiting = match exact.pool.waiting.known() {
        Some(waiting) if waiting > 0.0 => format!("; {} for one", words::waits(waiting as usize, "caller")),
        _ => String::new(),
    };
    let remote = exact.place().map(|it| format!(" to {}", it.remote)).unwrap_or_default();
    let untold = "pid, fd and session: it is not told which connections of this host are the pool's";
    let mut evidence = object(json!({
        "used_at_least": number(in_use, Unit::Count),
        "used_at_most": number(in_use, Unit::Count),
        "limit": number(limit, Unit::Count),
        "limit_source": words::foreign(limit_source, 300),
        "share_at_least": number(share, Unit::Ratio),
        "share_at_most": number(share, Unit::Ratio),
        "decided_by": "exact",
        "pool": shown(exact.pool),
        "processes": exact.pool.processes,
        "mean_use_seconds": exact.mean_use().map(|it| number(it, Unit::Seconds)),
        "rule": "the application's own numbers",
        "not_visible": if rows.is_empty() { vec![untold] } else { vec!["which of the open connections are in use"] },
    }));
    row::put_open(rows, heard, &mut evidence);
    Case {
        summary: format!(
            "{} uses {in_use} of the {limit} connections that its pool{remote} may open ({}){waiting}{}",
            exact.owner_name(),
            words::number(share, Unit::Ratio),
            row::sharing(row::connections(rows).map(|it| it.1)),
        ),
        evidence,
        ..Case::default()
    }
}
