//! Pools that reconnect all at once: after a failover, a restart of the server, a broken network.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::heard::Heard;
use super::row::{Offender, case};
use super::{Instances, Owner, PoolRow, Subject, Tracks, place, untold};
use crate::discover::{End, Instance};
use crate::inspect::host::Connection;
use crate::inspect::{Reason, Value};
use crate::judge::Moment;
use crate::judge::defaults::CheckId;
use crate::judge::threshold::Seen;

/// Births within this time are one storm.
const WINDOW: Duration = Duration::from_secs(10);
/// A process that just started opens its pool: a deploy is no storm.
const YOUNG: Duration = Duration::from_secs(60);
/// So many are a storm whatever the pool's size.
const MANY: usize = 20;
/// Half of a pool of fewer than six is what any request may open.
const LEAST: usize = 3;
/// Connections that ended within this time are those that the new ones stand for.
const ENDED: Duration = Duration::from_secs(60);
/// Whatever lived for less was no connection of a pool.
const SHORT_LIFE: Duration = Duration::from_secs(2);

/// Connections that ended lately, of each instance's pool.
pub(super) type Ends = HashMap<(Instance, End), VecDeque<(Duration, usize)>>;

pub(super) fn judge(all: &mut Ends, pools: &Instances<'_>, heard: Heard<'_>, now: Moment, tracks: &mut Tracks) {
    for (target, rows) in pools {
        let mut fresh: Vec<Offender<'_>> = Vec::new();
        for row in rows {
            let ended = ended(all, row, now.mono);
            let born = born(row);
            let replaces = born.len() >= LEAST && born.len() * 2 >= row.connections.len() && ended * 2 >= born.len();
            if born.len() >= MANY || replaces {
                fresh.extend(born);
            }
        }
        fresh.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
        let value = match why_unseen(rows).filter(|_| fresh.is_empty()) {
            Some(reason) => Value::Unknown(reason),
            None if fresh.is_empty() => untold(rows).unwrap_or(Value::Known(0.0)),
            None => Value::Known(1.0),
        };
        let place = place(rows[0]);
        let subject = Subject { place: Some(&place), ..Subject::of(CheckId::Storm, target) };
        tracks.observe(subject, Seen::value(value), now, || {
            let rule = "half of the pool in place of ended ones, or 20, born within 10 s in a process older than 60 s";
            case(rows, &fresh, heard, rule, "opened within 10 s")
        });
    }
    all.retain(|_, ends| ends.back().is_some_and(|(at, _)| now.mono.saturating_sub(*at) < ENDED));
}

/// Why the age of one of the processes is not known.
fn why_unseen(rows: &[&PoolRow]) -> Option<Reason> {
    let row = rows.iter().find(|it| it.process_age.is_none())?;
    Some(match &row.limit.value {
        Value::Unknown(reason) if matches!(row.owner, Owner::NotVisible { .. }) => reason.clone(),
        _ => Reason::NotYet("the age of the process"),
    })
}

/// The connections born within the window, in a process that was not young then. One that did not last is no part of
/// a storm: `pool.churn` counts those.
fn born(row: &PoolRow) -> Vec<Offender<'_>> {
    let Some(age) = row.process_age else { return Vec::new() };
    let is_fresh = |it: &&Connection| it.born && it.seen_for <= WINDOW && age.saturating_sub(it.seen_for) >= YOUNG;
    let fresh = row.connections.iter().filter(is_fresh);
    fresh.map(|it| Offender { pool: row, connection: it, age_seconds: it.seen_for.as_secs_f64() }).collect()
}

/// How many pooled connections of this instance ended lately, this look's among them.
fn ended(all: &mut Ends, row: &PoolRow, now: Duration) -> usize {
    let Owner::Seen { instance, .. } = row.owner else { return 0 };
    let count = row.closes.iter().filter(|life| life.is_none_or(|it| it >= SHORT_LIFE)).count();
    let key = (instance, row.remote.clone());
    if count > 0 {
        all.entry(key.clone()).or_default().push_back((now, count));
    }
    let Some(ends) = all.get_mut(&key) else { return 0 };
    while ends.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= ENDED) {
        ends.pop_front();
    }
    ends.iter().map(|(_, count)| count).sum()
}
