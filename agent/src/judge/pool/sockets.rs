//! The checks that sockets alone decide, beside churn and CLOSE_WAIT.

use super::heard::Heard;
use super::{Instances, Tracks, connect_stuck, half_open, keepalive, storm};
use crate::judge::Moment;
use crate::judge::defaults::CheckId;

/// Those that say nothing where no socket can be read, and are well where there is no connection.
pub(super) const CHECKS: [CheckId; 8] = [
    CheckId::Churn,
    CheckId::Absent,
    CheckId::CloseWait,
    CheckId::HalfOpen,
    CheckId::Keepalive,
    CheckId::ConnectStuck,
    CheckId::Storm,
    CheckId::StaleDns,
];

/// What they remember between looks.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    trying: connect_stuck::Trying,
    ends: storm::Ends,
}

impl Sockets {
    pub(super) fn judge(&mut self, pools: &Instances<'_>, heard: Heard<'_>, now: Moment, tracks: &mut Tracks) {
        half_open::judge(pools, heard, now, tracks);
        keepalive::judge(pools, heard, now, tracks);
        connect_stuck::judge(&mut self.trying, pools, heard, now, tracks);
        storm::judge(&mut self.ends, pools, heard, now, tracks);
    }
}
