//! Applications that have no pool at all: each request opens a connection and closes it.
//!
//! `pool.churn` sees the same births; what is different here is that nothing is kept. While this fires, churn does not
//! begin: one fault is told once.

use std::time::Duration;

use serde_json::json;

use super::churn::{Births, put_passing};
use super::heard::Heard;
use super::row::{connections, sharing};
use super::{Subject, Tracks, owner_name, pids, pids_in_words, place, untold};
use crate::discover::TargetKey;
use crate::inspect::host::{PoolRow, TcpState};
use crate::inspect::{Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, object, value};
use crate::judge::threshold::Seen;
use crate::judge::{Moment, words};

const CHECK: CheckId = CheckId::Absent;
/// A connection that has been there for so long is kept by somebody: that is a pool, if a bad one.
const KEPT: Duration = Duration::from_secs(60);

/// Judges by the births that are counted for churn. `is_short` says that they did not live long.
pub(super) fn judge(
    births: &Births,
    is_short: bool,
    target: &TargetKey,
    rows: &[&PoolRow],
    heard: Heard<'_>,
    now: Moment,
    tracks: &mut Tracks,
) {
    let has_pool = connections(rows).any(|(_, it)| it.state == TcpState::Established && it.seen_for >= KEPT);
    let instances = rows.len().max(1) as f64;
    let rate = match untold(rows) {
        _ if has_pool => Value::Known(0.0),
        Some(untold) => untold,
        None => births.rate(now.mono).map(|it| it / instances),
    };
    let seen = Seen { qualifies: is_short, ..Seen::value(rate.clone()) };
    let subject = Subject { place: Some(&place(rows[0])), ..Subject::of(CHECK, target) };
    tracks.observe(subject, seen, now, || {
        let pids = pids(rows.iter().copied());
        let shown = words::value(&rate, Unit::PerSecond);
        let each = if pids.len() > 1 { " for each process" } else { "" };
        let mut evidence = object(json!({
            "births_per_second_and_process": value(&rate, Unit::PerSecond),
            "pids": pids,
            "limit": value(&rows[0].limit.value, Unit::Count),
            "rule": "sock_diag destroy events, and no connection that is kept for 60 s",
            "not_visible": [],
        }));
        put_passing(rows, heard, &mut evidence);
        Case {
            summary: format!(
                "{}, {}, opens {shown} connections to {}{each} and keeps none: it has no pool{}",
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

/// Whether the application has been found to have no pool.
pub(super) fn fires(target: &TargetKey, tracks: &Tracks) -> bool {
    tracks.of(CHECK).any(|(key, track)| key.target == *target && track.level.firing().is_some())
}
