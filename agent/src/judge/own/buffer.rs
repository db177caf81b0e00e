//! Whether the agent's buffer is filling, has lost something, or takes nothing.

use std::time::Duration;

use serde_json::json;
use tickbird_shared::{Lane, Severity};

use crate::discover::TargetKey;
use crate::inspect::{Reason, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// For so long a loss is told: afterwards the collector's own counts and the loss records speak of it.
const LOST_LATELY: Duration = Duration::from_secs(600);
/// For so long an append that failed says that the buffer takes nothing.
const FAILED_LATELY: Duration = Duration::from_secs(60);

/// The buffer, as the task that fills it knows it.
#[derive(Debug, Clone, Copy)]
pub struct BufferSeen {
    /// Its sums; `None` when it does not answer.
    pub sums: Option<BufferSums>,
    /// Records that could not be appended since the agent started.
    pub unbuffered: u64,
    /// Of these, critical findings that were held in memory and are sent from there.
    pub held: u64,
}

/// What the buffer says of itself.
#[derive(Debug, Clone, Copy)]
pub struct BufferSums {
    /// Urgent, then bulk.
    pub lanes: [LaneSums; 2],
    /// Bound of both lanes on disk, in bytes; 0 when there is none.
    pub max_bytes: u64,
    /// Free bytes of the file system.
    pub available_bytes: u64,
    /// Too few of them: nothing is appended.
    pub is_disk_full: bool,
}

/// One lane of it. Counts are records, across restarts.
#[derive(Debug, Clone, Copy)]
pub struct LaneSums {
    /// Which one.
    pub lane: Lane,
    /// Waiting.
    pub backlog: u64,
    /// Bytes on disk.
    pub bytes_on_disk: u64,
    /// Gone to make room.
    pub evicted: u64,
    /// Could not be read back.
    pub quarantined: u64,
}

/// What was lost so far, and when it last grew.
#[derive(Debug, Default)]
pub(super) struct Losses {
    lost: Option<u64>,
    lost_at: Option<Duration>,
    unbuffered: u64,
    failed_at: Option<Duration>,
}

impl Losses {
    pub(super) fn look(&mut self, seen: &BufferSeen, now: Moment, tracks: &mut Tracks) {
        if let Some(sums) = &seen.sums {
            let urgent = sums.lanes.iter().filter(|it| it.lane == Lane::Urgent);
            let lost = urgent.map(|it| it.evicted + it.quarantined).sum();
            // What a former life of the agent lost was told by it.
            if self.lost.replace(lost).is_some_and(|before| lost > before) {
                self.lost_at = Some(now.mono);
            }
        }
        if seen.unbuffered > self.unbuffered {
            (self.unbuffered, self.failed_at) = (seen.unbuffered, Some(now.mono));
        }
        let is_late = |at: Option<Duration>, window| at.is_some_and(|at| now.mono.saturating_sub(at) < window);
        let is_short = seen.sums.is_some_and(|it| it.is_disk_full);
        let trouble = match () {
            () if is_late(self.failed_at, FAILED_LATELY) => Some("takes no records"),
            () if is_late(self.lost_at, LOST_LATELY) => Some("has lost findings"),
            () if is_short => Some("has no space on its file system"),
            () => None,
        };
        let share = seen.sums.filter(|it| it.max_bytes > 0).map(|it| (used(&it), it.max_bytes));
        let value = match share {
            Some((used, bound)) => Value::Known(used as f64 / bound as f64),
            None if trouble.is_some() => Value::Between(0.0, f64::INFINITY),
            None => Value::Unknown(Reason::NotYet("the buffer's sums")),
        };
        let target = TargetKey::agent();
        let words = trouble.map(str::to_owned);
        let seen_now = Seen { forced: trouble.map(|_| Severity::Critical), words, ..Seen::value(value) };
        tracks.observe(Subject::of(CheckId::Buffer, &target), seen_now, now, || case(seen, trouble, share));
    }
}

fn used(sums: &BufferSums) -> u64 {
    sums.lanes.iter().map(|it| it.bytes_on_disk).sum()
}

fn case(seen: &BufferSeen, trouble: Option<&str>, share: Option<(u64, u64)>) -> Case {
    let filled = share.map_or_else(String::new, |(used, bound)| {
        format!("{} of its {} bytes are used", words::number(used as f64, Unit::Count), bound)
    });
    let summary = match trouble {
        Some(what) if filled.is_empty() => format!("the agent's buffer {what}"),
        Some(what) => format!("the agent's buffer {what}; {filled}"),
        None => format!("the agent's buffer fills: {filled}"),
    };
    let lanes = seen.sums.iter().flat_map(|it| &it.lanes).map(|it| {
        json!({
            "lane": it.lane, "backlog": it.backlog, "bytes_on_disk": it.bytes_on_disk, "evicted": it.evicted,
            "quarantined": it.quarantined,
        })
    });
    Case {
        summary,
        evidence: object(json!({
            "lanes": lanes.collect::<Vec<_>>(),
            "used_share": share.map(|(used, bound)| number(used as f64 / bound as f64, Unit::Ratio)),
            "available_bytes": seen.sums.map(|it| it.available_bytes),
            "records_not_buffered": seen.unbuffered,
            "findings_held_in_memory": seen.held,
            "rule": "the buffer's own sums, every 10 s",
            "not_visible": if seen.sums.is_none() { vec!["the buffer does not answer"] } else { vec![] },
        })),
        ..Case::default()
    }
}
