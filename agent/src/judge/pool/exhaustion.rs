//! All leased, nobody connects, requests wait: `pool.exhausted`.
//!
//! Callers that wait are told exactly by the application or a pooler; only they make it critical. Otherwise there are
//! requests in flight beyond the connections that are leased, while every open connection is certainly leased or busy
//! and none is being opened. A request in flight may wait for something else, so their number is an upper bound, and it
//! is a warning only where somebody tells the pool's limit and that is reached. Without one the pool may be as small as
//! its demand: then it is recorded, and nobody is told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::heard::Heard;
use super::join::Join;
use super::lease::{Lease, Leases, Sessions, VIEW_LASTS};
use super::lines::SLACK;
use super::stats::SQL;
use super::{Instances, Servers, place};
use crate::discover::{End, TargetKey};
use crate::inspect::host::{Limit, Owner, PoolRow, TcpState};
use crate::inspect::server::Engine;
use crate::inspect::{HostLook, PoolStats, Reason, ServerLook, Value};
use crate::judge::Moment;
use crate::judge::defaults::CheckId;
use crate::judge::threshold::{Bounds, Seen};
use crate::judge::tracks::{Subject, Tracks};

mod case;
mod requests;
mod waiters;

pub(super) use waiters::{Waited, Waiters};

use requests::{Requests, Serving};

/// A pool that may open more does so within milliseconds of the need.
const NO_GROWTH: Duration = Duration::from_secs(2);
/// A request that is younger is being served.
const OLD: Duration = Duration::from_secs(1);
/// Two looks that are nearer say the same once.
const APART: Duration = Duration::from_millis(500);
/// A pool with a waiting caller hands a returned connection on at once; one that stays idle for so long is not wanted.
const UNWANTED: Duration = Duration::from_secs(2);
/// An application that tells how many wait is given so long to tell it of a pool that just became full; it is asked
/// every second one then, and may be too stuck to answer.
const TELLS_WITHIN: Duration = Duration::from_secs(6);
/// The most that a pool had is what it may have; a pool that was made smaller shows it after this time.
const HIGH_WATER_LASTS: Duration = Duration::from_secs(600);
/// Pools of which something is learned.
const MAX_LEARNED: usize = 1_000;

const NOTHING_TELLS: Reason = Reason::NotYet(
    "not judged: no requests of this process can be seen (it does not listen), and it tells nothing of its pool",
);
const UNCLEAR: Reason = Reason::NotYet("whether the idle connections are leased while requests are in flight");
const NEXT_WORD: Reason = Reason::NotYet("what the application says next: no request waits any more");
const ITS_WORD: Reason = Reason::NotYet("what the application says of callers that wait, now that the pool is full");
const SECOND_LOOK: Reason = Reason::NotYet("a second look at the pool");

/// What is remembered between looks.
#[derive(Debug, Default)]
pub(super) struct Exhaustion {
    pub(super) sessions: Sessions,
    requests: Requests,
    /// Certain leases of each owner in all of its pools.
    leased: HashMap<Owner, usize>,
    instances: HashMap<(Owner, End), Instance>,
    /// By pool and by who says so.
    told: BTreeMap<(TargetKey, TargetKey), Waiters>,
    learned: BTreeMap<TargetKey, Learned>,
}

/// One process's pool.
#[derive(Debug, Default)]
struct Instance {
    /// Last birth of a connection.
    born: Option<Duration>,
    first_seen: Duration,
    /// Most established connections that it had lately, and when.
    high_water: (usize, Duration),
    saturated: Option<Saturated>,
    /// Connections that were leased when it was last exhausted.
    were_leased: HashSet<u64>,
}

/// Every connection is leased and requests are in flight beyond that.
#[derive(Debug)]
struct Saturated {
    since: Duration,
    /// Last look at which it was so for certain.
    last: Duration,
    looks: u32,
    /// Whether it has counted as exhaustion.
    counted: bool,
}

/// An open count at which the pool stopped although requests waited.
#[derive(Debug, Clone, Copy)]
struct Learned {
    open: usize,
    times: u32,
    /// How often of these somebody who knows said that callers waited.
    told: u32,
}

/// What a look says of one instance.
#[derive(Debug)]
enum Outcome<'a> {
    Exhausted(Exhausted<'a>),
    /// Nobody waits.
    Clear,
    Unknown(Reason),
}

/// The proof for one instance.
#[derive(Debug)]
struct Exhausted<'a> {
    row: &'a PoolRow,
    leases: Leases<'a>,
    serving: &'a Serving,
    since: Duration,
    age: Duration,
    /// Requests in flight beyond the leases: the most that can wait.
    waiters: usize,
    /// Whether somebody tells the limit of its pool, and it has no more to open.
    is_at_limit: bool,
    /// Age of the oldest request that came after every lease began, where these are as many as may wait: it has none.
    oldest_without: Option<Duration>,
}

impl Exhaustion {
    /// Takes a look at the host in, before pools are judged.
    pub(super) fn host(&mut self, look: &HostLook, now: Duration) {
        self.requests.look(&look.services, now);
        self.leased.clear();
        let mut there = HashSet::new();
        for row in &look.pools {
            let open = row.connections.iter().filter(|it| it.state == TcpState::Established).count();
            if self.requests.of(&row.owner).is_some_and(|it| !it.in_flight.is_empty()) {
                let certain = Leases::of(row, &self.sessions, now).certain();
                *self.leased.entry(row.owner.clone()).or_default() += certain;
            }
            let key = (row.owner.clone(), row.remote.clone());
            let it = self
                .instances
                .entry(key.clone())
                .or_insert_with(|| Instance { first_seen: now, ..Instance::default() });
            if open >= it.high_water.0 || now.saturating_sub(it.high_water.1) > HIGH_WATER_LASTS {
                it.high_water = (open, now);
            }
            if row.opened() > 0 {
                it.born = Some(now);
            }
            there.insert(key);
        }
        self.instances.retain(|key, _| there.contains(key));
        self.sessions.keep(look, now);
    }

    /// Takes a server's sessions in.
    pub(super) fn server(&mut self, join: &Join<'_>, engine: Engine, now: Duration) {
        self.sessions.look(join, engine, now);
    }

    /// Takes in which clients wait at a pooler.
    pub(super) fn pooler(&mut self, look: &ServerLook, bases: &Instances<'_>, now: Duration) {
        if look.pool_mode.is_none() && look.waiters.is_empty() {
            return;
        }
        for (target, rows) in bases {
            self.tell((*target).clone(), Waiters::of_pooler(look, rows, now));
        }
    }

    /// Somebody who knows says how many callers wait for a connection of `target`.
    pub(super) fn tell(&mut self, target: TargetKey, mut waiters: Waiters) {
        let key = (target, waiters.by.clone());
        let before = self.told.get(&key).filter(|it| it.is_believed(waiters.at));
        waiters.since = match before.and_then(|it| it.since) {
            _ if !waiters.is_any() => None,
            Some(since) => Some(since),
            None => Some(waiters.at),
        };
        self.told.insert(key, waiters);
    }

    /// A source that cannot be read says nothing now.
    pub(super) fn untell_missing(&mut self, said: &PoolStats) {
        if said.pools.is_err() {
            self.told.retain(|_, it| it.by != said.target);
        }
    }

    /// What is believed of a pool: callers that wait the longest, else the last word that nobody does.
    fn told_of(&self, target: &TargetKey, now: Duration) -> Option<&Waiters> {
        let of_target = self.told.iter().filter(|(key, _)| key.0 == *target);
        let believed = of_target.map(|(_, it)| it).filter(|it| it.is_believed(now));
        believed.max_by_key(|it| (it.is_any(), it.is_whole, it.age(), it.at))
    }

    /// The limit at which a pool has stopped twice. Requests in flight may want no connection: by them alone it is the
    /// least that the limit can be.
    pub(super) fn learned(&self, target: &TargetKey) -> Option<Limit> {
        let it = self.learned.get(target).filter(|it| it.times >= 2)?;
        let value = match it.told {
            0 | 1 => Value::Between(it.open as f64, f64::INFINITY),
            _ => Value::Known(it.open as f64),
        };
        Some(Limit { value, source: LEARNED.into() })
    }

    /// Judges the pools of this host, at a look of it or of a server's sessions.
    pub(super) fn judge(&mut self, servers: &Servers, pools: &Instances<'_>, now: Moment, tracks: &mut Tracks) {
        for (target, rows) in pools {
            let told = self.told_of(target, now.mono).cloned();
            if told.is_none() && !rows[0].service.is_some_and(|it| SQL.contains(&it)) {
                // Callers of other services may keep a connection busy for as long as they like.
                continue;
            }
            rows.iter().for_each(|row| self.saturate(row, now.mono));
            let outcomes: Vec<Outcome<'_>> = rows.iter().map(|row| self.outcome(row, now.mono)).collect();
            let heard = Heard { sessions: &self.sessions, servers, now: now.mono };
            Scene { target, rows, told: told.as_ref(), outcomes: &outcomes, heard }.observe(now, tracks);
            let leased_of =
                |it: &Outcome<'_>| if let Outcome::Exhausted(it) = it { Some(it.leases.cookies()) } else { None };
            let leased: Vec<Option<HashSet<u64>>> = outcomes.iter().map(leased_of).collect();
            let is_told = told.as_ref().is_some_and(|it| it.is_any() && it.value().known().is_some());
            for (row, leased) in rows.iter().zip(leased) {
                if let Some(leased) = leased {
                    self.count(target, row, leased, is_told);
                }
            }
        }
    }

    /// Judges a pool that only its application knows.
    pub(super) fn judge_named(&self, servers: &Servers, target: &TargetKey, now: Moment, tracks: &mut Tracks) {
        if let told @ Some(_) = self.told_of(target, now.mono) {
            let heard = Heard { sessions: &self.sessions, servers, now: now.mono };
            Scene { target, rows: &[], told, outcomes: &[], heard }.observe(now, tracks);
        }
    }

    /// Whether requests seem to wait for this pool: then its server is worth asking more often.
    pub(super) fn is_suspect(&self, row: &PoolRow) -> bool {
        let Some(serving) = self.requests.of(&row.owner).filter(|it| it.oldest() > OLD) else { return false };
        serving.in_flight.len() > self.leased.get(&row.owner).copied().unwrap_or_default()
    }

    /// Whether somebody who knows counts the callers of every process of a pool.
    pub(super) fn is_told(&self, target: &TargetKey, now: Duration) -> bool {
        self.told_of(target, now).is_some_and(|it| it.is_whole)
    }

    /// Callers that wait for a connection of this instance, for a person to see; of all of them when that was told.
    /// By sockets it is a range: a request in flight may wait for something else.
    pub(super) fn waiters(&self, row: &PoolRow, now: Duration) -> Value {
        if let Some(told) = self.told_of(&row.target, now).filter(|it| it.is_whole) {
            return told.value();
        }
        let Some(serving) = self.requests.of(&row.owner) else {
            return Value::Unknown(row.vantage.untold().cloned().unwrap_or(NOTHING_TELLS));
        };
        let leases = Leases::of(row, &self.sessions, now);
        match self.beyond(row, &leases, serving) {
            0 => Value::Known(0.0),
            beyond => Value::Between(0.0, beyond as f64),
        }
    }

    /// Requests in flight for which this process has no lease, in any of its pools.
    fn beyond(&self, row: &PoolRow, leases: &Leases<'_>, serving: &Serving) -> usize {
        let leased = self.leased.get(&row.owner).copied().unwrap_or_default().max(leases.certain());
        serving.in_flight.len().saturating_sub(leased)
    }

    /// Follows for how long one instance has been saturated with requests in flight beyond that.
    fn saturate(&mut self, row: &PoolRow, now: Duration) {
        let serving = self.requests.of(&row.owner).filter(|it| !it.in_flight.is_empty());
        let leases = serving.map(|it| (Leases::of(row, &self.sessions, now), it));
        let beyond = leases.as_ref().map_or(0, |(leases, serving)| self.beyond(row, leases, serving));
        let Some(it) = self.instances.get_mut(&(row.owner.clone(), row.remote.clone())) else { return };
        let Some((leases, _)) = leases else {
            it.saturated = None;
            return;
        };
        if beyond == 0 || leases.connecting > 0 || !leases.are_all_possible() {
            it.saturated = None;
        } else if leases.are_all_certain() {
            let new = Saturated { since: now, last: now, looks: 1, counted: false };
            let saturated = it.saturated.get_or_insert(new);
            if now.saturating_sub(saturated.last) >= APART {
                (saturated.last, saturated.looks) = (now, saturated.looks + 1);
            }
        }
        // Used since the server was last asked: that neither ends what was certain nor makes it longer.
    }

    fn outcome<'a>(&'a self, row: &'a PoolRow, now: Duration) -> Outcome<'a> {
        let Some(serving) = self.requests.of(&row.owner) else {
            return Outcome::Unknown(row.vantage.untold().cloned().unwrap_or(NOTHING_TELLS));
        };
        if serving.oldest() <= OLD {
            return Outcome::Clear;
        }
        let leases = Leases::of(row, &self.sessions, now);
        let (open, waiters) = (leases.open(), self.beyond(row, &leases, serving));
        let limit = &row.limit.value;
        let Some(it) = self.instances.get(&(row.owner.clone(), row.remote.clone())) else {
            return Outcome::Unknown(SECOND_LOOK);
        };
        let may_grow = match limit.low() {
            Some(limit) => limit > open as f64,
            None => it.high_water.0 > open,
        };
        if waiters == 0 || may_grow {
            return Outcome::Clear;
        }
        let Some(saturated) = &it.saturated else {
            let is_unwanted = |lease: &Lease<'_>| lease.idle_for(now).is_some_and(|it| it >= UNWANTED);
            let mut returned = leases.all.iter().filter(|lease| it.were_leased.contains(&lease.connection.cookie));
            return if returned.any(is_unwanted) { Outcome::Clear } else { Outcome::Unknown(UNCLEAR) };
        };
        let is_at_limit =
            row.limit.source.as_ref() != LEARNED && limit.high().is_some_and(|it| it > 0.0 && it <= open as f64);
        let grew = it.born.unwrap_or(it.first_seen);
        let is_proven = saturated.looks >= 2
            && now.saturating_sub(grew) >= NO_GROWTH
            && now.saturating_sub(saturated.last) <= VIEW_LASTS
            // A single connection is no pool unless somebody says so.
            && (open >= 2 || is_at_limit);
        if !is_proven {
            return Outcome::Unknown(SECOND_LOOK);
        }
        let age = saturated.last.saturating_sub(saturated.since);
        let oldest_without = oldest_without(serving, &leases, waiters, now);
        let since = saturated.since;
        Outcome::Exhausted(Exhausted { row, leases, serving, since, age, waiters, is_at_limit, oldest_without })
    }

    /// Remembers that an instance is exhausted: its waiters stay waiters however old they grow, and where it stopped
    /// is learned, once each time.
    fn count(&mut self, target: &TargetKey, row: &PoolRow, leased: HashSet<u64>, is_told: bool) {
        self.requests.count(&row.owner);
        let open = leased.len();
        let Some(it) = self.instances.get_mut(&(row.owner.clone(), row.remote.clone())) else { return };
        it.were_leased = leased;
        let Some(saturated) = it.saturated.as_mut().filter(|it| !it.counted) else { return };
        saturated.counted = true;
        if self.learned.len() >= MAX_LEARNED && !self.learned.contains_key(target) {
            return;
        }
        let learned = self.learned.entry(target.clone()).or_insert(Learned { open, times: 0, told: 0 });
        if learned.open != open {
            *learned = Learned { open, times: 0, told: 0 };
        }
        learned.times += 1;
        learned.told += u32::from(is_told);
    }

    /// Forgets a learned limit that a pool has gone beyond.
    pub(super) fn unlearn(&mut self, pools: &Instances<'_>) {
        self.learned.retain(|target, it| {
            let open = |row: &&PoolRow| Leases::of(row, &self.sessions, Duration::ZERO).open();
            pools.get(target).is_none_or(|rows| rows.iter().map(open).max().unwrap_or(0) <= it.open)
        });
    }
}

/// Who said a limit that nobody told.
const LEARNED: &str = "learned: it stopped there twice while requests waited";

/// Age of the oldest request that can have no connection, since every lease began before it, if these account for all
/// that may wait.
fn oldest_without(serving: &Serving, leases: &Leases<'_>, waiters: usize, now: Duration) -> Option<Duration> {
    let began: Option<Vec<Duration>> = leases.all.iter().map(|lease| lease.held_for(now)).collect();
    let youngest = began?.into_iter().min()?;
    let without: Vec<Duration> =
        serving.in_flight.iter().map(|it| it.age).filter(|it| *it + SLACK < youngest).collect();
    without.first().copied().filter(|_| without.len() >= waiters)
}

/// One pool at one look: what was told and what the sockets say.
struct Scene<'a> {
    target: &'a TargetKey,
    rows: &'a [&'a PoolRow],
    told: Option<&'a Waiters>,
    outcomes: &'a [Outcome<'a>],
    heard: Heard<'a>,
}

impl Scene<'_> {
    /// Holds it against the bounds.
    fn observe(&self, now: Moment, tracks: &mut Tracks) {
        let exhausted: Vec<&Exhausted<'_>> = self
            .outcomes
            .iter()
            .filter_map(|it| if let Outcome::Exhausted(it) = it { Some(it) } else { None })
            .collect();
        let longest = exhausted.iter().max_by_key(|it| it.age);
        let age = longest.map_or(Duration::ZERO, |it| it.age);
        let seconds = |age: Duration| age.as_secs_f64();
        let none_waits = !self.outcomes.is_empty() && self.outcomes.iter().all(|it| matches!(it, Outcome::Clear));
        let mut is_recorded = false;
        let (value, corroborated) = match self.told {
            // It was true when it was said; the sockets have moved on since.
            Some(told) if told.is_any() && none_waits && now.mono.saturating_sub(told.at) > OLD => {
                (Value::Unknown(NEXT_WORD), false)
            }
            Some(told) if told.is_any() && told.value().known().is_none() => {
                (Value::Between(seconds(told.age().max(age)), f64::INFINITY), false)
            }
            Some(told) if told.is_any() && (told.is_whole || longest.is_some()) => {
                (Value::Known(seconds(told.age().max(age))), true)
            }
            Some(told) if told.is_any() => (Value::Between(seconds(told.age()), f64::INFINITY), false),
            // What was said before it began says nothing of it.
            Some(told) if told.is_whole && longest.is_none_or(|it| told.at >= it.since) => (Value::Known(0.0), false),
            Some(told)
                if told.is_whole && longest.is_some_and(|it| now.mono.saturating_sub(it.since) < TELLS_WITHIN) =>
            {
                (Value::Unknown(ITS_WORD), false)
            }
            // Its requests cannot be seen: the pooler's word ends what the pooler's word began, while a connection is left.
            Some(told) if !told.is_any() && self.nothing_else_tells() && self.has_one_left(now.mono) => {
                (Value::Known(0.0), false)
            }
            _ if longest.is_some() => {
                let at_limit = exhausted.iter().filter(|it| it.is_at_limit).map(|it| it.age).max();
                is_recorded = at_limit.is_none();
                (Value::Known(seconds(at_limit.unwrap_or(age))), false)
            }
            _ => (without(self.outcomes), false),
        };
        let seen = Seen { corroborated, ..Seen::value(value) };
        let mut rule = tracks.rule(CheckId::Exhausted);
        if is_recorded {
            rule.bounds = Bounds { info: rule.bounds.warning, warning: None, critical: None, ..rule.bounds };
        }
        let place = self.rows.first().map(|row| place(row));
        let subject = Subject { place: place.as_ref(), ..Subject::of(CheckId::Exhausted, self.target) };
        tracks.observe_by(rule, subject, seen, now, || {
            let told = self.told.filter(|it| it.is_any());
            let leases = self.rows.iter().map(|row| (*row, Leases::of(row, self.heard.sessions, now.mono))).collect();
            case::Proof { target: self.target, told, exhausted, leases, is_recorded, heard: self.heard }.case()
        });
    }
}

impl Scene<'_> {
    /// No process of it serves requests that could wait.
    fn nothing_else_tells(&self) -> bool {
        let tells_nothing = |it: &Outcome<'_>| matches!(it, Outcome::Unknown(why) if *why == NOTHING_TELLS);
        !self.outcomes.is_empty() && self.outcomes.iter().all(tells_nothing)
    }

    /// Each process has a connection that is not certainly leased.
    fn has_one_left(&self, now: Duration) -> bool {
        self.rows.iter().all(|row| {
            let leases = Leases::of(row, self.heard.sessions, now);
            leases.certain() < leases.open()
        })
    }
}

/// No instance is exhausted; whether that is certain of all of them.
fn without(outcomes: &[Outcome<'_>]) -> Value {
    let reasons = outcomes.iter().filter_map(|it| if let Outcome::Unknown(why) = it { Some(why) } else { None });
    let is_judged = |why: &&Reason| **why != NOTHING_TELLS;
    let all: Vec<&Reason> = reasons.collect();
    let first = all.iter().copied().find(is_judged);
    // Processes that serve nothing beside others that do are not what requests wait for.
    let all_silent = !all.is_empty() && all.len() == outcomes.len();
    match first.or_else(|| all.first().copied().filter(|_| all_silent)) {
        Some(reason) => Value::Unknown(reason.clone()),
        None => Value::Known(0.0),
    }
}
