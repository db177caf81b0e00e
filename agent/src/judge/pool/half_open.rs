//! Connections whose peer is gone without a word: what is sent is not acknowledged, or keepalive finds nobody. Where the
//! server's sessions are seen and one's is gone, it is certain.
//!
//! Without traffic and without keepalive a lost peer cannot be seen at all, so a pool with such connections is never
//! called well here: `pool.keepalive` says that it is so.

use std::time::Duration;

use serde_json::json;

use super::heard::Heard;
use super::row::{Offender, case, connections};
use super::{Instances, Subject, Tracks, place};
use crate::inspect::host::{Connection, TcpState};
use crate::inspect::{Reason, Value};
use crate::judge::Moment;
use crate::judge::defaults::CheckId;
use crate::judge::threshold::Seen;
use crate::judge::words;

const CHECK: CheckId = CheckId::HalfOpen;
/// Retransmissions in a row; a lossy network loses one segment two times in a row now and then.
const RETRANSMITS: u8 = 3;
/// Probes without an answer.
const PROBES: u8 = 2;
/// Whoever was heard within this time is there.
const RECENT: Duration = Duration::from_secs(10);

/// What the kernel tells of one connection's peer.
enum Peer {
    /// It was heard lately, or would be missed.
    There,
    /// Not heard for so long, though it should have answered.
    Silent(Duration),
    /// Nothing asks it, so nobody would notice.
    Unasked,
    /// The kernel does not tell.
    Untold,
}

pub(super) fn judge(pools: &Instances<'_>, heard: Heard<'_>, now: Moment, tracks: &mut Tracks) {
    for (target, rows) in pools {
        let (mut silent, mut unasked, mut untold) = (Vec::new(), 0, 0);
        for (pool, connection) in connections(rows) {
            match peer(connection) {
                Peer::Silent(age) => silent.push(Offender { pool, connection, age_seconds: age.as_secs_f64() }),
                Peer::Unasked => unasked += 1,
                Peer::Untold => untold += 1,
                Peer::There => (),
            }
        }
        silent.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
        let oldest = silent.first().map_or(0.0, |it| it.age_seconds);
        let fires = tracks.of(CHECK).any(|(key, track)| key.target == **target && track.level.firing().is_some());
        let value = match () {
            () if untold > 0 && oldest > 0.0 => Value::Between(oldest, f64::INFINITY),
            () if untold > 0 => super::untold(rows)
                .unwrap_or_else(|| Value::Unknown(Reason::Absent("when a peer was last heard (tcp_info)".to_owned()))),
            // The ones that were found are heard again or gone; of the others no more can be said than before.
            () if oldest > 0.0 || unasked == 0 || fires => Value::Known(oldest),
            () => Value::Unknown(Reason::NotYet("idle connections without keepalive would not notice a lost peer")),
        };
        let place = place(rows[0]);
        let subject = Subject { place: Some(&place), ..Subject::of(CHECK, target) };
        tracks.observe(subject, Seen::value(value), now, || {
            let gone = silent.iter().filter(|it| heard.is_gone(it.connection)).count();
            let certain = match gone {
                0 => String::new(),
                _ if gone == silent.len() => ", and the server has no session of them any more: certain".to_owned(),
                _ => format!(", and the server has no session of {gone} of them any more: those are certain"),
            };
            let what = format!("whose peer has not been heard for {}{certain}", words::seconds(oldest));
            let rule = match gone {
                0 => "tcp_info: retransmits >= 3 and nothing heard for 10 s, or probes >= 2",
                _ => {
                    "tcp_info: retransmits >= 3 and nothing heard for 10 s, or probes >= 2; the session gone at two \
                     looks at the server that join others"
                }
            };
            let mut case = case(rows, &silent, heard, rule, &what);
            case.evidence.insert("certain".to_owned(), json!(gone));
            case
        });
    }
}

fn peer(it: &Connection) -> Peer {
    if it.local.address().is_none() || !matches!(it.state, TcpState::Established | TcpState::CloseWait) {
        return Peer::There;
    }
    let heard = [it.received_age, it.acknowledged_age].into_iter().flatten().min();
    let Some(heard) = heard else { return Peer::Untold };
    if heard < RECENT {
        return Peer::There;
    }
    let is_asked = it.keepalive || it.unacknowledged.is_some_and(|it| it > 0) || it.unsent > 0;
    match it.retransmits >= RETRANSMITS || it.probes >= PROBES {
        true => Peer::Silent(heard),
        false if is_asked => Peer::There,
        false => Peer::Unasked,
    }
}
