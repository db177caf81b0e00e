//! Connections that wait for the server's first answer.

use std::collections::BTreeMap;
use std::time::Duration;

use super::heard::Heard;
use super::row::{Offender, case, connections};
use super::{Instances, Subject, Tracks, place};
use crate::discover::TargetKey;
use crate::inspect::host::{PoolRow, TcpState};
use crate::judge::defaults::CheckId;
use crate::judge::threshold::Seen;
use crate::judge::{Moment, words};

/// A first answer takes less, however far the server; the first SYN is sent again after this time.
const SLOW: Duration = Duration::from_secs(1);

/// Since when each target has been trying to connect without success.
pub(super) type Trying = BTreeMap<TargetKey, Duration>;

pub(super) fn judge(all: &mut Trying, pools: &Instances<'_>, heard: Heard<'_>, now: Moment, tracks: &mut Tracks) {
    all.retain(|target, _| pools.contains_key(target));
    for (target, rows) in pools {
        let mut trying: Vec<Offender<'_>> = connections(rows)
            .filter(|(_, it)| it.state == TcpState::SynSent)
            .map(|(pool, connection)| Offender { pool, connection, age_seconds: connection.state_age.as_secs_f64() })
            .collect();
        trying.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
        let stuck = stuck_for(all, target, rows, &trying, now.mono);
        let place = place(rows[0]);
        let subject = Subject { place: Some(&place), ..Subject::of(CheckId::ConnectStuck, target) };
        tracks.observe(subject, Seen::known(stuck.as_secs_f64()), now, || {
            let what = format!("waiting for the server's first answer, for {}", words::seconds(stuck.as_secs_f64()));
            case(rows, &trying, heard, "sock_diag: SYN_SENT older than 1 s, and none was answered since", &what)
        });
    }
}

/// How long the target has been trying. An application that gives up after two seconds and tries again is as stuck as
/// one that waits, so the time counts from the first attempt until one is answered or nobody tries any more.
fn stuck_for(
    all: &mut Trying,
    target: &TargetKey,
    rows: &[&PoolRow],
    trying: &[Offender<'_>],
    now: Duration,
) -> Duration {
    let oldest = trying.first().map_or(Duration::ZERO, |it| it.connection.state_age);
    let since = match all.get(target) {
        Some(since) => *since,
        None if oldest >= SLOW => now.saturating_sub(oldest),
        None => return Duration::ZERO,
    };
    let stuck = now.saturating_sub(since);
    let is_answered =
        connections(rows).any(|(_, it)| it.state == TcpState::Established && it.born && it.seen_for < stuck);
    if trying.is_empty() || is_answered && oldest < SLOW {
        all.remove(target);
        return Duration::ZERO;
    }
    // Others are answered: then only each one that waits counts for itself.
    let since = if is_answered { now.saturating_sub(oldest) } else { since };
    all.insert(target.clone(), since);
    now.saturating_sub(since)
}
