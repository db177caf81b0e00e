//! Pools without TCP keepalive: a peer that is lost while they are idle is noticed by the next request.

use super::heard::Heard;
use super::row::{Offender, case, connections};
use super::{Instances, Subject, Tracks, place};
use crate::inspect::host::{Connection, TcpState};
use crate::inspect::{Reason, Value};
use crate::judge::Moment;
use crate::judge::defaults::CheckId;
use crate::judge::threshold::Seen;

pub(super) fn judge(pools: &Instances<'_>, heard: Heard<'_>, now: Moment, tracks: &mut Tracks) {
    for (target, rows) in pools {
        let (mut without, mut untold) = (Vec::new(), 0);
        for (pool, connection) in connections(rows).filter(|(_, it)| may_be_lost(it)) {
            match has_keepalive(connection) {
                Some(true) => (),
                Some(false) => {
                    let age_seconds = connection.seen_for.as_secs_f64();
                    without.push(Offender { pool, connection, age_seconds });
                }
                None => untold += 1,
            }
        }
        without.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
        let value = match without.is_empty() {
            false => Value::Known(1.0),
            true if untold > 0 => Value::Unknown(Reason::NotYet("a moment without data on the way")),
            true => Value::Known(0.0),
        };
        let place = place(rows[0]);
        let subject = Subject { place: Some(&place), ..Subject::of(CheckId::Keepalive, target) };
        tracks.observe(subject, Seen::value(value), now, || {
            let what = "without TCP keepalive: a lost peer would not be noticed";
            case(rows, &without, heard, "sock_diag: no keepalive timer while nothing is on the way", what)
        });
    }
}

/// A peer on the loopback interface cannot be lost: the kernel itself says that it is gone.
fn may_be_lost(it: &Connection) -> bool {
    it.state == TcpState::Established && it.local.address().is_some_and(|it| !it.ip().to_canonical().is_loopback())
}

/// Whether the timer runs; while data waits for its acknowledgement the kernel shows another timer. A socket table does not
/// tell the segments on the way, but the bytes, which say the same.
fn has_keepalive(it: &Connection) -> Option<bool> {
    match it.keepalive {
        true => Some(true),
        false if it.unacknowledged.unwrap_or_default() == 0 && it.unsent == 0 => Some(false),
        false => None,
    }
}
