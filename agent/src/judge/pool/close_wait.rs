//! Connections that the server closed and the pool still keeps.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::json;

use super::heard::Heard;
use super::order::Discipline;
use super::row::{MAX_ROWS, One, Rows, sharing};
use super::{Subject, Tracks, owner_name, pids, pids_in_words, untold};
use crate::discover::TargetKey;
use crate::inspect::Value;
use crate::inspect::host::{Connection, PoolRow, TcpState};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::Place;
use crate::judge::{Moment, words};

/// Fewer are what every pool has now and then.
const LEAST: usize = 3;
/// A pool without data on any connection for so long is idle: it keeps dead connections until its next checkout.
const IDLE: Duration = Duration::from_secs(10);

/// How the count went, to tell a pool that collects dead connections from one that works them off.
#[derive(Debug, Default)]
pub(super) struct Dead {
    /// Counts where they changed, each with its time; those older than the bound are folded into the first.
    counts: VecDeque<(Duration, usize)>,
    /// The least count ever seen.
    least: Option<usize>,
}

impl Dead {
    /// Takes a count in; true when it has risen since the first look and has not fallen within `window`.
    fn rises(&mut self, count: usize, window: Duration, now: Duration) -> bool {
        let least = self.least.map_or(count, |it| it.min(count));
        self.least = Some(least);
        if self.counts.back().is_none_or(|(_, last)| *last != count) {
            self.counts.push_back((now, count));
        }
        while self.counts.len() > 64
            || self.counts.get(1).is_some_and(|(changed, _)| now.saturating_sub(*changed) >= window)
        {
            self.counts.pop_front();
        }
        let has_fallen = self.counts.iter().zip(self.counts.iter().skip(1)).any(|((_, old), (_, new))| new < old);
        count > least && !has_fallen
    }
}

pub(super) fn judge(
    all: &mut BTreeMap<TargetKey, Dead>,
    target: &TargetKey,
    place: &Place,
    rows: &[&PoolRow],
    (discipline, heard): (Discipline, Heard<'_>),
    now: Moment,
    tracks: &mut Tracks,
) {
    let mut dead: Vec<(&PoolRow, &Connection)> = rows
        .iter()
        .flat_map(|row| row.connections.iter().map(|it| (*row, it)))
        .filter(|(_, it)| it.state == TcpState::CloseWait)
        .collect();
    dead.sort_by_key(|(_, it)| std::cmp::Reverse(it.state_age));
    let bound = tracks.rule(CheckId::CloseWait).bounds.warning.unwrap_or_default();
    let window = Duration::try_from_secs_f64(bound).unwrap_or(Duration::MAX);
    let rises = all.entry(target.clone()).or_default().rises(dead.len(), window, now.mono);
    let oldest = if dead.len() < LEAST { 0.0 } else { dead[0].1.state_age.as_secs_f64() };
    // Whether the pool is at work is told by ages alone: without them many dead connections may be an idle pool's.
    let value = untold(rows).filter(|_| dead.len() >= LEAST).unwrap_or(Value::Known(oldest));
    let seen = Seen { qualifies: rises && passes_by(rows, discipline), ..Seen::value(value) };
    let subject = Subject { place: Some(place), ..Subject::of(CheckId::CloseWait, target) };
    tracks.observe(subject, seen, now, || case(rows, &dead, heard));
}

/// Whether the pool hands out connections and yet passes the dead ones by: then somebody else has them. The far end of a
/// stack is not reached by little traffic, and is as idle as a pool without any.
fn passes_by(rows: &[&PoolRow], discipline: Discipline) -> bool {
    let moves = |it: &&Connection| {
        let quiet = [it.sent_age, it.received_age].into_iter().flatten().min();
        it.state == TcpState::Established && quiet.is_some_and(|age| age <= IDLE)
    };
    let used = |row: &&&PoolRow| row.connections.iter().filter(moves).count();
    match discipline {
        Discipline::Rotating => rows.iter().any(|row| row.opened() > 0 || used(&row) > 0),
        Discipline::Stack => false,
        // Where several serve at once, a third dead one would have been met.
        Discipline::Unknown => rows.iter().any(|row| used(&row) >= LEAST),
    }
}

fn case(rows: &[&PoolRow], dead: &[(&PoolRow, &Connection)], heard: Heard<'_>) -> Case {
    let pids = pids(dead.iter().map(|it| it.0));
    let (summary, oldest) = match dead.first() {
        None => (String::new(), 0.0),
        Some((pool, connection)) => {
            let oldest = connection.state_age.as_secs_f64();
            let fd = connection.fds.first().map_or_else(String::new, |fd| format!(" on fd {fd}"));
            let summary = format!(
                "{}, {}, keeps {} of {} connections to {} that the server closed (CLOSE_WAIT), the oldest for {}{fd}, while the pool is at work{}",
                owner_name(pool),
                pids_in_words(&pids),
                dead.len(),
                rows.iter().map(|it| it.connections.len()).sum::<usize>(),
                pool.remote,
                words::seconds(oldest),
                sharing(dead.iter().map(|it| it.1)),
            );
            (summary, oldest)
        }
    };
    let mut members: Vec<u64> = dead.iter().map(|it| it.1.cookie).collect();
    members.sort_unstable();
    let mut evidence = object(json!({
        "close_wait": dead.len(),
        "open": rows.iter().map(|it| it.connections.len()).sum::<usize>(),
        "pids": pids,
        "rule": "sock_diag: CLOSE_WAIT",
        "not_visible": [],
    }));
    let mut shown = Rows::default();
    for (pool, it) in dead.iter().take(MAX_ROWS) {
        shown.add(&One::of(pool, it, heard.of(pool, it), Some(it.state_age.as_secs_f64())));
    }
    shown.put(&mut evidence, "connections");
    Case { summary, evidence, members, age_seconds: Some(oldest), advice: None }
}
