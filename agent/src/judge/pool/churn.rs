//! Connections that are opened and closed all the time, counted by the kernel's own events.
//!
//! An event names no process. Where several pools lead to one server, a connection that lived between two looks may be
//! any one's: each pool is given the share that it certainly has by those that were seen, and the rest makes a range.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::heard::Heard;
use super::row::{self, connections, sharing};
use super::{Subject, Tracks, absent, owner_name, pids, pids_in_words, untold};
use crate::discover::TargetKey;
use crate::inspect::host::PoolRow;
use crate::inspect::{HostLook, Reason, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::Place;
use crate::judge::{Moment, words};

/// The rate is that of the last half minute: long enough to be steady, short enough to see the end of a fault.
const WINDOW: Duration = Duration::from_secs(30);
/// A rate of less time than this is not told.
const LEAST_TIME: Duration = Duration::from_secs(10);
/// Connections that live longer than this on the median are pooled, however many are born.
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// Fewer lives than this have no median worth the name.
const LEAST_LIVES: usize = 5;
/// Most lives that are kept of a window.
const MAX_LIVES: usize = 1_024;
/// So few connections a second that name no process change nothing.
const FEW: f64 = 0.5;
/// A share is certain in nineteen of twenty cases.
const DEVIATIONS: f64 = 1.645;

const UNTOLD: Reason = Reason::NotYet("not judged: the kernel does not tell the ends of unix sockets");

/// Births and lives of one target's connections.
#[derive(Debug, Default)]
pub(super) struct Births {
    since: Option<Duration>,
    looks: VecDeque<BirthsOfLook>,
    lives: VecDeque<Life>,
}

/// A connection that ended in the window.
#[derive(Debug, Clone, Copy)]
struct Life {
    at: Duration,
    lasted: Duration,
    /// It ended before a look saw whose it was.
    is_presumed: bool,
}

impl Life {
    /// Of one that no look saw, the time between two looks is all that is known; it did not live to be seen.
    fn is_short(&self) -> bool {
        self.is_presumed || self.lasted < SHORT_LIFE
    }
}

#[derive(Debug, Clone, Copy)]
struct BirthsOfLook {
    at: Duration,
    count: u32,
    presumed: u32,
    beside: Beside,
    is_lower_bound: bool,
}

/// What else was born at the same server in one look.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Beside {
    /// Another pool is known there.
    has_others: bool,
    /// In pools of others, of those that did not live long.
    elsewhere: u32,
    /// In some pool.
    unowned: u32,
}

impl Beside {
    pub(super) fn of(look: &HostLook, rows: &[&PoolRow]) -> Self {
        let (target, remote) = (&rows[0].target, &rows[0].remote);
        let others = || look.pools.iter().filter(|it| it.remote == *remote && it.target != *target);
        let unowned = look.unattributed.iter().filter(|it| remote.address() == Some(it.remote));
        let passed = others().flat_map(|it| &it.closes).flatten().filter(|life| **life < SHORT_LIFE).count();
        let elsewhere = u32::try_from(passed).unwrap_or(u32::MAX);
        Self { has_others: others().next().is_some(), elsewhere, unowned: unowned.map(|it| it.births).sum() }
    }
}

impl Births {
    /// Whether a birth of the window is still counted.
    pub(super) fn is_recent(&self, now: Duration) -> bool {
        self.looks.back().is_some_and(|it| now.saturating_sub(it.at) < WINDOW)
    }

    fn add(&mut self, rows: &[&PoolRow], beside: Beside, incomplete: bool, now: Duration) {
        let since = *self.since.get_or_insert(now);
        // What the first look finds was born before it.
        let presumed = rows.iter().flat_map(|it| &it.presumed);
        let (count, unseen) = match since == now {
            true => (0, 0),
            false => {
                (rows.iter().map(|it| it.births).sum(), u32::try_from(presumed.clone().count()).unwrap_or(u32::MAX))
            }
        };
        self.looks.push_back(BirthsOfLook { at: now, count, presumed: unseen, beside, is_lower_bound: incomplete });
        let seen = rows.iter().flat_map(|it| &it.closes).flatten();
        for (lasted, is_presumed) in seen.map(|it| (it, false)).chain(presumed.map(|it| (it, true))) {
            self.lives.push_back(Life { at: now, lasted: *lasted, is_presumed });
        }
        let is_old = |at: Duration| now.saturating_sub(at) >= WINDOW;
        while self.looks.front().is_some_and(|it| is_old(it.at)) {
            self.looks.pop_front();
        }
        while self.lives.len() > MAX_LIVES || self.lives.front().is_some_and(|it| is_old(it.at)) {
            self.lives.pop_front();
        }
    }

    pub(super) fn rate(&self, now: Duration) -> Value {
        let time = now.saturating_sub(self.since.unwrap_or(now)).min(WINDOW);
        if time < LEAST_TIME {
            return Value::Unknown(Reason::NotYet("ten seconds of births"));
        }
        let rate = |births: f64| births / time.as_secs_f64();
        let (own, unowned) = (self.own(), self.unowned());
        let low = rate(own + self.share() * unowned);
        if self.looks.iter().any(|it| it.is_lower_bound) {
            Value::Between(low, f64::INFINITY)
        } else if rate(unowned) >= FEW {
            Value::Between(low, rate(own + unowned))
        } else {
            Value::Known(rate(own))
        }
    }

    /// Whether those that nobody saw are this pool's: no other was known at its server in the whole window. One that
    /// begins to connect there is known only when a look has seen some of its connections.
    fn is_alone(&self) -> bool {
        !self.looks.iter().any(|it| it.beside.has_others)
    }

    fn presumed(&self) -> f64 {
        self.looks.iter().map(|it| f64::from(it.presumed)).sum()
    }

    fn own(&self) -> f64 {
        let seen: f64 = self.looks.iter().map(|it| f64::from(it.count)).sum();
        if self.is_alone() { seen + self.presumed() } else { seen }
    }

    fn unowned(&self) -> f64 {
        let unowned: f64 = self.looks.iter().map(|it| f64::from(it.beside.unowned)).sum();
        if self.is_alone() { unowned } else { unowned + self.presumed() }
    }

    /// Connections that ended and are this pool's.
    fn ended(&self) -> impl Iterator<Item = &Life> {
        let is_alone = self.is_alone();
        self.lives.iter().filter(move |it| is_alone || !it.is_presumed)
    }

    /// The least share that this pool has in what passes at its server, by those of short life that were seen (Wilson's
    /// bound). What is born and kept, as when a pool is filled, says nothing of who opens the others.
    fn share(&self) -> f64 {
        let own = self.ended().filter(|it| it.is_short()).count() as f64;
        let elsewhere = self.looks.iter().map(|it| f64::from(it.beside.elsewhere)).sum::<f64>();
        let (all, square) = (own + elsewhere, DEVIATIONS * DEVIATIONS);
        if own == 0.0 {
            return 0.0;
        }
        let part = own / all;
        let spread = DEVIATIONS * (part * (1.0 - part) / all + square / (4.0 * all * all)).sqrt();
        ((part + square / (2.0 * all) - spread) / (1.0 + square / all)).max(0.0)
    }

    fn not_visible(&self) -> Vec<&'static str> {
        let lost = self.looks.iter().any(|it| it.is_lower_bound);
        let lost = lost.then_some("events were lost: the rate is a lower bound");
        let unowned = (self.unowned() > 0.0).then_some("whose the connections were that ended between two looks");
        lost.into_iter().chain(unowned).collect()
    }

    /// Whether most connections do not live long. Those that no look saw did not.
    fn is_short(&self) -> bool {
        let long = self.ended().filter(|it| !it.is_short()).count() as f64;
        let short = self.ended().count() as f64 - long + self.share() * self.unowned();
        short + long >= LEAST_LIVES as f64 && short > long
    }

    fn median_life(&self) -> Option<Duration> {
        let mut lives: Vec<Duration> = self.ended().map(|it| it.lasted).collect();
        lives.sort_unstable();
        (lives.len() >= LEAST_LIVES).then(|| lives[lives.len() / 2])
    }
}

pub(super) fn judge(
    all: &mut BTreeMap<TargetKey, Births>,
    target: &TargetKey,
    place: &Place,
    rows: &[&PoolRow],
    (look, heard): (&HostLook, Heard<'_>),
    now: Moment,
    tracks: &mut Tracks,
) {
    let incomplete = look.closes_incomplete;
    let births = all.entry(target.clone()).or_default();
    births.add(rows, Beside::of(look, rows), incomplete, now.mono);
    // What ends within a look is not seen at all there, so a low rate would say nothing, and a high one could not clear.
    let is_told = !rows.iter().any(|it| it.closes_incomplete);
    let rate = match untold(rows) {
        Some(untold) => untold,
        None if is_told => births.rate(now.mono),
        None => Value::Unknown(UNTOLD),
    };
    let life = births.median_life();
    let is_short = births.is_short();
    absent::judge(births, is_short, target, rows, heard, now, tracks);
    let qualifies = is_short && !absent::fires(target, tracks);
    let seen = Seen { qualifies, ..Seen::value(rate.clone()) };
    let subject = Subject { place: Some(place), ..Subject::of(CheckId::Churn, target) };
    tracks.observe(subject, seen, now, || {
        let pids = pids(rows.iter().copied());
        let (shown, lived) = (words::value(&rate, Unit::PerSecond), words::duration(life.unwrap_or_default()));
        let mut evidence = object(json!({
            "births_per_second": crate::judge::evidence::value(&rate, Unit::PerSecond),
            "median_life_seconds": life.map(|it| number(it.as_secs_f64(), Unit::Seconds)),
            "lives_counted": births.ended().count(),
            "window_seconds": WINDOW.as_secs(),
            "pids": pids,
            "rule": "sock_diag destroy events",
            "ended_between_looks": births.unowned(),
            "not_visible": births.not_visible(),
        }));
        put_passing(rows, heard, &mut evidence);
        Case {
            summary: format!(
                "{}, {}, opens {shown} connections to {} and closes them after {lived} on the median{}",
                owner_name(rows[0]),
                pids_in_words(&pids),
                rows[0].remote,
                sharing(connections(rows).map(|it| it.1)),
            ),
            evidence,
            ..Case::default()
        }
    });
}

/// The connections that are open now, the youngest first, and the processes that open them: of those that ended nothing
/// can be read any more.
pub(super) fn put_passing(rows: &[&PoolRow], heard: Heard<'_>, evidence: &mut Map<String, Json>) {
    let gone = "fd, local end and session of connections that have ended: nothing keeps them";
    row::not_visible(evidence, gone);
    row::put_open(rows, heard, evidence);
}
