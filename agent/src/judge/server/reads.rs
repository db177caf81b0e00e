//! `db.replica_use`: whether a replica takes any of the reads, or its primary does them all.
//!
//! Known where the agent asks both: their looks are brought together by the system identifier that they share and the
//! name of the database. A replica that only stands by is no fault, so this is recorded and told to nobody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::discover::TargetKey;
use crate::inspect::server::Standing;
use crate::inspect::{Reason, ServerLook, Unit, Value};
use crate::judge::Moment;
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::words;

/// Reads are counted over so long.
const WINDOW: Duration = Duration::from_secs(300);
/// And no share is told of less.
const LEAST_TIME: Duration = Duration::from_secs(60);
/// Nor of so few rows: monitoring and a primary's own upkeep read some.
const LEAST_ROWS: u64 = 10_000;
/// A server that was not seen for so long takes no part.
const FORGOTTEN: Duration = WINDOW;

/// What each server of a replicated database has read.
#[derive(Debug, Default)]
pub(super) struct Reads(BTreeMap<TargetKey, Server>);

#[derive(Debug)]
struct Server {
    identifier: Arc<str>,
    database: String,
    is_primary: bool,
    /// Client sessions, the agent's own left out.
    sessions: usize,
    /// When rows were counted, and how many had been read; oldest first.
    samples: VecDeque<(Duration, u64)>,
}

impl Server {
    /// Rows read within the window, and in how many seconds.
    fn read(&self) -> Option<(u64, f64)> {
        let ((from, before), (until, after)) = (self.samples.front()?, self.samples.back()?);
        let time = until.saturating_sub(*from);
        (time >= LEAST_TIME).then(|| (after.saturating_sub(*before), time.as_secs_f64()))
    }

    fn rate(&self) -> Option<f64> {
        self.read().map(|(rows, seconds)| rows as f64 / seconds)
    }
}

impl Reads {
    pub(super) fn look(&mut self, look: &ServerLook, now: Moment, tracks: &mut Tracks) {
        let is_new = |it: &Server| it.samples.back().is_some_and(|(at, _)| now.mono.saturating_sub(*at) < FORGOTTEN);
        self.0.retain(|target, it| *target == look.target || is_new(it));
        let facts = &look.facts;
        let (Some(Ok(standing)), Some(Ok(counters)), Some(Ok(identifier))) =
            (&facts.standing, &facts.counters, &facts.identifier)
        else {
            return;
        };
        let fresh = || Server {
            identifier: identifier.clone(),
            database: database(&look.target),
            is_primary: true,
            sessions: 0,
            samples: VecDeque::new(),
        };
        let it = self.0.entry(look.target.clone()).or_insert_with(fresh);
        let is_primary = matches!(standing, Standing::Primary(_));
        let is_set_back = it.samples.back().is_some_and(|(_, rows)| counters.rows_read < *rows);
        if it.is_primary != is_primary || it.identifier != *identifier || is_set_back {
            it.samples.clear();
        }
        (it.is_primary, it.identifier) = (is_primary, identifier.clone());
        it.sessions = look.sessions.as_ref().map_or(0, Vec::len);
        if it.samples.back().is_none_or(|(at, _)| *at < counters.at) {
            it.samples.push_back((counters.at, counters.rows_read));
        }
        while it.samples.get(1).is_some_and(|(at, _)| counters.at.saturating_sub(*at) >= WINDOW) {
            it.samples.pop_front();
        }
        if !is_primary {
            self.judge(look, now, tracks);
        } else if tracks.of(CheckId::ReplicaUse).any(|(key, _)| key.target == look.target) {
            // It was promoted: no replica any more, whoever reads.
            tracks.observe(Subject::of(CheckId::ReplicaUse, &look.target), Seen::known(0.0), now, Case::default);
        }
    }

    fn judge(&self, look: &ServerLook, now: Moment, tracks: &mut Tracks) {
        let Some(replica) = self.0.get(&look.target) else { return };
        let is_beside = |it: &Server| it.identifier == replica.identifier && it.database == replica.database;
        let group: Vec<(&TargetKey, &Server)> = self.0.iter().filter(|(_, it)| is_beside(it)).collect();
        let primary = group.iter().find(|(_, it)| it.is_primary);
        let all: Option<u64> = group.iter().map(|(_, it)| it.read().map(|(rows, _)| rows)).sum();
        let value = match (primary, all, replica.read()) {
            (None, ..) => Value::Unknown(Reason::NotYet("a look at its primary; the agent is not told of it")),
            (_, Some(all), Some((rows, _))) if all > 0 => Value::Known(1.0 - rows as f64 / all as f64),
            (_, Some(_), _) => Value::Known(0.0),
            _ => Value::Unknown(Reason::NotYet("a minute of reads of each")),
        };
        let seen = Seen { qualifies: all.is_some_and(|it| it >= LEAST_ROWS), ..Seen::value(value) };
        tracks.observe(Subject::of(CheckId::ReplicaUse, &look.target), seen, now, || {
            let per_second = |rate: Option<f64>| words::number(rate.unwrap_or_default(), Unit::PerSecond);
            let server = |target: &TargetKey| target.as_str().trim_start_matches("server:").to_owned();
            let shown = primary.map_or_else(String::new, |(target, it)| {
                format!("; its primary {} reads {} of rows", server(target), per_second(it.rate()))
            });
            Case {
                summary: format!(
                    "replica {} is not read from: {} of rows{shown}",
                    server(&look.target),
                    per_second(replica.rate())
                ),
                evidence: object(json!({
                    "servers": group.iter().take(16).map(|(target, it)| json!({
                        "server": server(target),
                        "is_primary": it.is_primary,
                        "rows_per_second": it.rate().map(|it| number(it, Unit::PerSecond)),
                        "share_of_reads": it.read().zip(all).filter(|(_, all)| *all > 0)
                            .map(|((rows, _), all)| number(rows as f64 / all as f64, Unit::Ratio)),
                        "sessions": it.sessions,
                    })).collect::<Vec<_>>(),
                    "window_seconds": WINDOW.as_secs(),
                    "rule": "tup_returned of pg_stat_database on each server of one system identifier",
                    "not_visible": ["servers of this cluster that the agent does not ask"],
                })),
                ..Case::default()
            }
        });
    }
}

/// The last part of `server:<host>:<port>/<database>`.
fn database(target: &TargetKey) -> String {
    target.as_str().rsplit_once('/').map_or("", |(_, it)| it).to_owned()
}
