//! What is in a buffer and what became of everything that ever was: for `buffer stat`, `status` and metrics.

use std::fmt;

use serde_json::{Value, json};
use tickbird_shared::{Epoch, Lane, Timestamp};

/// A buffer at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// This life of the buffer.
    pub epoch: Epoch,
    /// When this life began.
    pub created_at: Timestamp,
    /// How often it was opened in this life, the last time included.
    pub start: u64,
    /// Urgent, then bulk.
    pub lanes: [LaneStat; 2],
    /// Bound of all generations on disk, in bytes; `None` when read from outside, where it is not known.
    pub max_bytes: Option<u64>,
    /// Frames, generations and lanes that were moved aside and are kept for a person to look at.
    pub moved_aside: usize,
    /// Free bytes on the file system.
    pub available_bytes: u64,
    /// Below this many free bytes nothing is appended; `None` when read from outside.
    pub floor_bytes: Option<u64>,
    /// What this process holds in memory; `None` when read from outside.
    pub volatile: Option<VolatileStat>,
}

/// Records held in memory because the disk took nothing. Counts are since the agent started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolatileStat {
    /// Taken, ever.
    pub held: u64,
    /// On the collector's disk.
    pub acknowledged: u64,
    /// Never to be stored.
    pub refused: u64,
    /// Waiting.
    pub backlog: u64,
}

impl VolatileStat {
    /// Whether each record that was held has exactly one outcome or still waits.
    pub const fn is_whole(&self) -> bool {
        self.held == self.acknowledged + self.refused + self.backlog
    }

    fn to_json(self) -> Value {
        let Self { held, acknowledged, refused, backlog } = self;
        json!({ "held": held, "acknowledged": acknowledged, "refused": refused, "backlog": backlog })
    }
}

/// One lane at one moment. Counts are records, of this life of the buffer, across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneStat {
    /// Which one.
    pub lane: Lane,
    /// Accepted, ever. The newest has this sequence.
    pub appended: u64,
    /// On the collector's disk.
    pub acknowledged: u64,
    /// Gone to make room.
    pub evicted: u64,
    /// Never to be stored, by the collector's word or this agent's; kept in `refused/refused.jsonl`.
    pub refused: u64,
    /// Could not be read back; what is left of them was moved aside.
    pub quarantined: u64,
    /// Waiting.
    pub backlog: u64,
    /// Last sequence that is settled.
    pub through: u64,
    /// Databases it is kept in.
    pub generations: usize,
    /// Bytes of them on disk.
    pub bytes_on_disk: u64,
}

impl LaneStat {
    /// Whether each record that was accepted has exactly one outcome or still waits.
    pub const fn is_whole(&self) -> bool {
        self.appended == self.acknowledged + self.evicted + self.refused + self.quarantined + self.backlog
    }

    fn to_json(self) -> Value {
        json!({
            "lane": self.lane, "appended": self.appended, "acknowledged": self.acknowledged, "evicted": self.evicted,
            "refused": self.refused, "quarantined": self.quarantined, "backlog": self.backlog, "through": self.through,
            "generations": self.generations, "bytes_on_disk": self.bytes_on_disk, "whole": self.is_whole(),
        })
    }
}

impl Stat {
    /// Records waiting in both lanes.
    pub fn backlog(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.backlog).sum()
    }

    /// Bytes of all generations on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.bytes_on_disk).sum()
    }

    /// Whether appending is refused for want of free space.
    pub fn is_disk_full(&self) -> bool {
        self.floor_bytes.is_some_and(|floor| self.available_bytes < floor)
    }

    /// As one JSON object; its keys are those of the fields.
    pub fn to_json(&self) -> Value {
        json!({
            "epoch": self.epoch, "created_at": self.created_at, "start": self.start, "lanes": self.lanes.map(LaneStat::to_json),
            "bytes_on_disk": self.bytes_on_disk(), "max_bytes": self.max_bytes, "moved_aside": self.moved_aside,
            "available_bytes": self.available_bytes, "floor_bytes": self.floor_bytes,
            "volatile": self.volatile.map(VolatileStat::to_json),
        })
    }
}

impl fmt::Display for Stat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "epoch {} since {}, start {}", self.epoch, self.created_at, self.start)?;
        let heads = [
            "lane",
            "appended",
            "acknowledged",
            "evicted",
            "refused",
            "quarantined",
            "backlog",
            "generations",
            "on disk",
        ];
        for head in heads {
            write!(f, "{head:<14}")?;
        }
        writeln!(f)?;
        for lane in &self.lanes {
            write!(f, "{:<14}", lane.lane)?;
            let counts = [lane.appended, lane.acknowledged, lane.evicted, lane.refused, lane.quarantined, lane.backlog];
            for count in counts {
                write!(f, "{count:<14}")?;
            }
            writeln!(f, "{:<14}{}", lane.generations, Mebibytes(lane.bytes_on_disk))?;
        }
        write!(f, "on disk {}", Mebibytes(self.bytes_on_disk()))?;
        if let Some(max) = self.max_bytes {
            write!(f, " of {}", Mebibytes(max))?;
        }
        write!(f, ", {} free", Mebibytes(self.available_bytes))?;
        if self.moved_aside > 0 {
            write!(f, ", {} damaged parts kept in quarantine/", self.moved_aside)?;
        }
        if self.is_disk_full() {
            write!(
                f,
                "\nthe disk is full: nothing is appended until {} are free",
                Mebibytes(self.floor_bytes.unwrap_or(0))
            )?;
        }
        writeln!(f)
    }
}

struct Mebibytes(u64);

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.saturating_mul(10) >> 20;
        write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
    }
}
