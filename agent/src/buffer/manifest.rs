//! What of a buffer changes rarely: its epoch and starts, each lane's generations, and the ranges that were given up.
//!
//! Two kinds of small JSON file, replaced whole (written beside, synced, renamed, directory synced). A lane's
//! cursor is synced before its manifest is written, so the cursor on disk is never older than the manifest. A
//! manifest older than the cursor is harmless: what it still lists and the cursor has passed is settled.
//!
//! A second line has the first one's checksum: a bit that turns one digit into another would leave good JSON and sums that are
//! not whole. What earlier agents wrote has none, and is believed.

use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tickbird_shared::start::{EarlierStart, MAX_EARLIER};
use tickbird_shared::{Epoch, Lane, Start, StartWord, Timestamp};
use ulid::Ulid;

use crate::durable_file;

/// Version of the files below and of what they describe.
const FORMAT: u32 = 1;
/// More is not a file of ours: it would take 20,000 separate losses.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// No sequence or count of a lane comes near; sums of two of them stay whole.
const MAX_NUMBER: u64 = i64::MAX as u64;

/// `buffer.json`: which life of the buffer this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Life {
    format: u32,
    pub(super) epoch: Epoch,
    pub(super) created_at: Timestamp,
    /// How often the buffer was opened in this life; written before anything is sent, so that none is counted twice.
    #[serde(default)]
    pub(super) number: u64,
    /// The newest starts, newest first: the one that runs, and those that are told with it.
    #[serde(default)]
    starts: Vec<StartMark>,
}

/// One start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StartMark {
    word: StartWord,
    /// Last sequence that each lane had ever given out, in the order of [`Lane::ALL`].
    opened: [u64; 2],
}

/// `<lane>/lane.json`: what a lane is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LaneManifest {
    format: u32,
    /// Oldest first; written to the last. Never empty.
    pub(super) generations: Vec<GenerationMark>,
    /// Ranges given up and not yet settled, in order.
    pub(super) losses: Vec<LossMark>,
    /// Records that made room, ever.
    pub(super) evicted: u64,
    /// Records that could not be read back, ever.
    pub(super) quarantined: u64,
    /// Records refused at this agent, ever; the collector's refusals are in the cursor.
    pub(super) set_aside: u64,
}

/// One generation: directory `q-<number>`, holding the sequences from `first` to the next one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerationMark {
    pub(super) number: u64,
    pub(super) first: u64,
    /// Records are missing from it: when it is drained it is moved aside instead of deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_damaged: bool,
}

impl GenerationMark {
    pub(super) const fn new(number: u64, first: u64) -> Self {
        Self { number, first, is_damaged: false }
    }
}

/// A range that will not come, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LossMark {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) cause: Cause,
}

/// Why a range is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Cause {
    /// It made room.
    Evicted,
    /// It could not be read back.
    Quarantined,
    /// It can never be sent, and was set aside here.
    Refused,
}

impl Life {
    pub(super) fn begin(now: Timestamp) -> Self {
        let milliseconds = u64::try_from(now.as_millisecond()).unwrap_or_default();
        let ulid = Ulid::from_parts(milliseconds, rand::random());
        let epoch = Epoch::try_from(ulid.to_string()).expect("a ULID is printed as 26 capitals and digits");
        Self { format: FORMAT, epoch, created_at: now, number: 0, starts: Vec::new() }
    }

    /// The same life, started once more; `opened` is the last sequence that each lane ever gave out.
    pub(super) fn started(mut self, opened: [u64; 2]) -> Self {
        self.number += 1;
        self.starts.insert(0, StartMark { word: StartWord::new(rand::random()), opened });
        self.starts.truncate(MAX_EARLIER + 1);
        self
    }

    /// The start that runs, as the batches of a lane name it; nothing before the first.
    pub(super) fn start(&self, lane: Lane) -> Option<Start> {
        let of = |mark: &StartMark| EarlierStart { word: mark.word, opened: mark.opened[lane as usize] };
        let (newest, earlier) = self.starts.split_first()?;
        let EarlierStart { word, opened } = of(newest);
        Some(Start { number: self.number, word, opened, before: earlier.iter().map(of).collect() })
    }

    /// # Errors
    /// `NotFound` when there is none; `InvalidData` when it is not one that this build reads.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Self::parse(&read(path)?)
    }

    /// # Errors
    /// `InvalidData` when it is not one that this build reads.
    pub(super) fn parse(text: &[u8]) -> io::Result<Self> {
        let life = parse(text, |life: &Self| life.format)?;
        let mut numbers = life.starts.iter().flat_map(|it| it.opened).chain([life.number]);
        if life.starts.len() > MAX_EARLIER + 1 || numbers.any(|it| it >= MAX_NUMBER - 1) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it has more starts, or a larger number, than can be",
            ));
        }
        Ok(life)
    }

    /// # Errors
    /// When it cannot be written; the old one then stays.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write(path, self)
    }
}

impl LaneManifest {
    /// A lane with nothing in it, whose first record will have this sequence.
    pub(super) fn begin(first: u64) -> Self {
        let generations = vec![GenerationMark::new(1, first)];
        Self { format: FORMAT, generations, losses: Vec::new(), evicted: 0, quarantined: 0, set_aside: 0 }
    }

    /// # Errors
    /// `NotFound` when there is none; `InvalidData` when it is not one that this build reads.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Self::parse(&read(path)?)
    }

    /// # Errors
    /// `InvalidData` when it is not one that this build reads.
    pub(super) fn parse(text: &[u8]) -> io::Result<Self> {
        let manifest = parse(text, |manifest: &Self| manifest.format)?;
        let Self { generations, losses, .. } = &manifest;
        let is_ordered =
            generations.windows(2).all(|two| two[0].number < two[1].number && two[0].first <= two[1].first)
                && losses.windows(2).all(|two| two[0].to < two[1].from)
                && losses.iter().all(|loss| loss.from <= loss.to);
        let mut numbers = [manifest.evicted, manifest.quarantined, manifest.set_aside]
            .into_iter()
            .chain(generations.iter().flat_map(|it| [it.number, it.first]))
            .chain(losses.iter().map(|it| it.to));
        if numbers.any(|it| it > MAX_NUMBER) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a number in it is larger than any sequence"));
        }
        if generations.is_empty() || !is_ordered {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its generations or losses are not in order"));
        }
        Ok(manifest)
    }

    /// # Errors
    /// When it cannot be written; the old one then stays.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write(path, self)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8], format: fn(&T) -> u32) -> io::Result<T> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let text = match text.iter().position(|byte| *byte == b'\n') {
        None => text,
        Some(at) if text[at..] == *checksum(&text[..at]).as_bytes() => &text[..at],
        Some(_) => return Err(invalid("it is not what its checksum says".to_owned())),
    };
    let value: T = serde_json::from_slice(text).map_err(|error| invalid(error.to_string()))?;
    match format(&value) {
        FORMAT => Ok(value),
        other => Err(invalid(format!("it has format {other}, this agent reads {FORMAT}"))),
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    // One line: JSON has its line ends escaped.
    let mut text = serde_json::to_vec(value).map_err(io::Error::other)?;
    text.extend_from_slice(checksum(&text).as_bytes());
    durable_file::replace(path, &text, 0o600)
}

/// The second line, for this first one.
fn checksum(line: &[u8]) -> String {
    format!("\ncrc32 {:08x}\n", crc32fast::hash(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_comes_back_as_written_and_disorder_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lane.json");
        let mut manifest = LaneManifest::begin(1);
        manifest.generations.push(GenerationMark::new(2, 400));
        manifest.losses.push(LossMark { from: 3, to: 9, cause: Cause::Quarantined });
        manifest.write(&path).expect("written");
        assert_eq!(LaneManifest::read(&path).expect("read"), manifest);
        manifest.generations.swap(0, 1);
        manifest.write(&path).expect("written");
        assert_eq!(LaneManifest::read(&path).expect_err("refused").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn whatever_bit_turns_is_noticed_and_what_has_no_checksum_is_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lane.json");
        let manifest = LaneManifest::begin(1);
        manifest.write(&path).expect("written");
        let whole = std::fs::read(&path).expect("read");
        for bit in 0..8 * whole.len() {
            let mut turned = whole.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            assert!(LaneManifest::parse(&turned).is_err(), "bit {bit}: {}", String::from_utf8_lossy(&turned));
        }
        let of_before = serde_json::to_vec(&manifest).expect("written");
        assert_eq!(LaneManifest::parse(&of_before).expect("read"), manifest);
    }

    #[test]
    fn a_number_beyond_every_sequence_is_refused() {
        let mut manifest = LaneManifest::begin(1);
        manifest.losses.push(LossMark { from: 0, to: u64::MAX, cause: Cause::Evicted });
        let text = serde_json::to_vec(&manifest).expect("written");
        assert_eq!(LaneManifest::parse(&text).expect_err("refused").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn each_start_has_a_number_and_a_word_and_tells_what_those_before_it_gave_out() {
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let life = Life::begin(now);
        assert_eq!((life.number, life.start(Lane::Urgent)), (0, None));
        let life = life.started([0, 0]).started([5, 70]);
        let first = life.start(Lane::Urgent).expect("it started").before[0].word;
        let life = life.started([9, 80]);
        let start = life.start(Lane::Bulk).expect("it started");
        assert_eq!((start.number, start.opened, start.before.len()), (3, 80, 2));
        assert_eq!(
            (start.holds_of(first), life.start(Lane::Urgent).and_then(|it| it.holds_of(first))),
            (Some(70), Some(5))
        );
        let many = (0..40_u64).fold(life, |life, _| life.started([9, 80]));
        let start = many.start(Lane::Bulk).expect("it started");
        assert!(start.number == 43 && start.before.len() == MAX_EARLIER && start.is_sound());
        assert_eq!(Life::parse(&serde_json::to_vec(&many).expect("written")).expect("read"), many);
    }

    #[test]
    fn a_life_of_an_agent_that_counted_no_starts_goes_on_and_numbers_that_cannot_be_are_refused() {
        let text = r#"{"format":1,"epoch":"01JD7Z5W0000000000000000AA","created_at":"2026-11-21T10:00:00Z"}"#;
        assert_eq!(Life::parse(text.as_bytes()).expect("read").number, 0);
        let with = |more: &str| Life::parse(text.replace('}', more).as_bytes()).map(drop).map_err(|it| it.kind());
        assert_eq!(with(r#","number":9223372036854775807}"#), Err(io::ErrorKind::InvalidData));
        let start = |opened: u64| format!(r#"{{"word":"00000000000000ff","opened":[1,{opened}]}}"#);
        assert_eq!(with(&format!(r#","number":1,"starts":[{}]}}"#, start(2))), Ok(()));
        assert_eq!(with(&format!(r#","number":1,"starts":[{}]}}"#, start(u64::MAX))), Err(io::ErrorKind::InvalidData));
        let many = vec![start(2); MAX_EARLIER + 2].join(",");
        assert_eq!(with(&format!(r#","number":99,"starts":[{many}]}}"#)), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn each_life_has_an_epoch_of_its_own() {
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let (one, two) = (Life::begin(now), Life::begin(now));
        assert_ne!(one.epoch, two.epoch);
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("buffer.json");
        one.write(&path).expect("written");
        assert_eq!(Life::read(&path).expect("read"), one);
    }
}
