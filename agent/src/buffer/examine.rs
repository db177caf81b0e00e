//! A look into a buffer from outside its agent: `tickbird-agent buffer stat|peek|verify|export`.
//!
//! Nothing here writes to the buffer, or opens its databases: each generation is copied into a private directory and
//! the copy is opened. So it works beside a running agent. What that agent is writing at the moment of the copy may
//! be torn in it; [`Verified::is_in_use`] says when that is a possible cause.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tickbird_shared::Lane;
use tickbird_shared::batch::Loss;
use ulid::Ulid;

use super::cursor::{self, Cursor};
use super::frame::Codec;
use super::generations;
use super::lane::wire_loss;
use super::losses::Losses;
use super::manifest::{LaneManifest, Life};
use super::sled_queue::SledQueue;
use super::space::{Space, on_disk};
use super::{BufferError, LaneStat, Stat, quarantine};

/// What stands in a lane, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A record that waits, as it was appended.
    Record {
        /// Its sequence.
        seq: u64,
        /// Its bytes: JSON, unless they were damaged before they came here.
        bytes: Vec<u8>,
    },
    /// A range that was given up and that the collector will be told of.
    Loss(Loss),
    /// A range that cannot be read now.
    Unreadable {
        /// First sequence.
        from: u64,
        /// Last sequence.
        to: u64,
        /// What is wrong.
        why: String,
    },
}

impl Found {
    /// As one JSON object with `seq`, or `from` and `to`.
    pub fn to_json(&self, lane: Lane) -> Value {
        match self {
            Self::Record { seq, bytes } => match serde_json::from_slice::<Value>(bytes) {
                Ok(record) => json!({ "lane": lane, "seq": seq, "record": record }),
                Err(_) => json!({ "lane": lane, "seq": seq, "text": String::from_utf8_lossy(bytes) }),
            },
            Self::Loss(loss) => json!({ "lane": lane, "loss": loss }),
            Self::Unreadable { from, to, why } => json!({ "lane": lane, "from": from, "to": to, "unreadable": why }),
        }
    }
}

/// What [`verify`] found in one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLane {
    /// Which one.
    pub lane: Lane,
    /// Records that wait and can be read.
    pub readable: u64,
    /// Records that were given up and are not told to the collector yet.
    pub lost: u64,
    /// Ranges that cannot be read, each with what is wrong.
    pub unreadable: Vec<(u64, u64, String)>,
    /// The counts add up.
    pub is_whole: bool,
}

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Urgent, then bulk.
    pub lanes: Vec<VerifiedLane>,
    /// An agent works in it: what it was writing may look unreadable here.
    pub is_in_use: bool,
}

impl Verified {
    /// Whether everything that waits can be read and every count adds up.
    pub fn is_good(&self) -> bool {
        self.lanes.iter().all(|lane| lane.unreadable.is_empty() && lane.is_whole)
    }

    /// As one JSON object.
    pub fn to_json(&self) -> Value {
        let lanes = self.lanes.iter().map(|lane| {
            let unreadable = lane.unreadable.iter().map(|(from, to, why)| json!({"from": from, "to": to, "why": why}));
            json!({
                "lane": lane.lane, "readable": lane.readable, "lost": lane.lost, "whole": lane.is_whole,
                "unreadable": unreadable.collect::<Vec<_>>(),
            })
        });
        json!({ "good": self.is_good(), "in_use": self.is_in_use, "lanes": lanes.collect::<Vec<_>>() })
    }
}

impl std::fmt::Display for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for lane in &self.lanes {
            write!(f, "{:<7} {} records can be read", lane.lane, lane.readable)?;
            if lane.lost > 0 {
                write!(f, ", {} are lost and will be told", lane.lost)?;
            }
            writeln!(f, "{}", if lane.is_whole { "" } else { "; its counts do not add up" })?;
            for (from, to, why) in &lane.unreadable {
                writeln!(f, "        {from} to {to}: {why}")?;
            }
        }
        if self.is_in_use && !self.is_good() {
            writeln!(f, "an agent is running here and may have been writing: stop it for a sure answer")?;
        }
        Ok(())
    }
}

/// What a buffer holds, by its small files. Opens no database.
///
/// # Errors
/// When there is no buffer in `directory`, or it cannot be read.
pub fn stat(directory: &Path) -> Result<Stat, BufferError> {
    let life = life(directory)?;
    let mut lanes = Vec::new();
    for lane in Lane::ALL {
        lanes.push(LaneFiles::read(directory, lane)?.stat(directory));
    }
    let room = Space::new(directory, None).room().map_err(BufferError::io("ask for free space of", directory))?;
    Ok(Stat {
        epoch: life.epoch,
        created_at: life.created_at,
        start: life.number,
        lanes: [lanes[0], lanes[1]],
        max_bytes: None,
        moved_aside: quarantine::count(&directory.join("quarantine")),
        available_bytes: room.available,
        floor_bytes: None,
        volatile: None,
    })
}

/// The first `limit` things that wait in a lane.
///
/// # Errors
/// When there is no buffer in `directory`, or a copy cannot be made.
pub fn peek(directory: &Path, lane: Lane, limit: usize) -> Result<Vec<Found>, BufferError> {
    let mut found = Vec::new();
    if limit > 0 {
        walk(directory, lane, &mut |item| {
            found.push(item);
            Ok(found.len() < limit)
        })?;
    }
    Ok(found)
}

/// Reads everything that waits and checks it.
///
/// # Errors
/// When there is no buffer in `directory`, or a copy cannot be made.
pub fn verify(directory: &Path) -> Result<Verified, BufferError> {
    let is_in_use = is_in_use(directory);
    let mut lanes = Vec::new();
    for lane in Lane::ALL {
        let is_whole = LaneFiles::read(directory, lane)?.stat(directory).is_whole();
        let mut verified = VerifiedLane { lane, readable: 0, lost: 0, unreadable: Vec::new(), is_whole };
        walk(directory, lane, &mut |item| {
            match item {
                Found::Record { bytes, .. } if serde_json::from_slice::<&RawValue>(&bytes).is_ok() => {
                    verified.readable += 1
                }
                Found::Record { seq, .. } => verified.unreadable.push((seq, seq, "it is not JSON".into())),
                Found::Loss(loss) => verified.lost += loss.count,
                Found::Unreadable { from, to, why } => verified.unreadable.push((from, to, why)),
            }
            Ok(true)
        })?;
        lanes.push(verified);
    }
    Ok(Verified { lanes, is_in_use })
}

/// Writes everything that waits as JSON lines, in the order it would be sent. Answers how many lines.
///
/// # Errors
/// When there is no buffer in `directory`, a copy cannot be made, or `out` fails.
pub fn export(directory: &Path, out: &mut dyn Write) -> Result<u64, BufferError> {
    let mut lines = 0;
    for lane in Lane::ALL {
        walk(directory, lane, &mut |item| {
            writeln!(out, "{}", item.to_json(lane))?;
            lines += 1;
            Ok(true)
        })?;
    }
    Ok(lines)
}

/// The small files of a lane, read in an order that is consistent beside a running agent: the manifest first, since
/// a cursor that is newer only passes over what the manifest lists.
struct LaneFiles {
    lane: Lane,
    manifest: LaneManifest,
    cursor: Cursor,
    losses: Losses,
}

impl LaneFiles {
    fn read(directory: &Path, lane: Lane) -> Result<Self, BufferError> {
        let path = directory.join(lane.as_str());
        let manifest = LaneManifest::read(&path.join("lane.json")).map_err(BufferError::io("read", &path))?;
        let cursor = cursor::read(&path.join("cursor")).map_err(BufferError::io("read", &path))?.unwrap_or_default();
        let losses = Losses::restore(&manifest.losses, cursor.through);
        Ok(Self { lane, manifest, cursor, losses })
    }

    fn stat(&self, directory: &Path) -> LaneStat {
        let path = directory.join(self.lane.as_str());
        let generations =
            self.manifest.generations.iter().map(|mark| on_disk(&path.join(generations::name(mark.number))));
        let appended = self.cursor.next.saturating_sub(1);
        LaneStat {
            lane: self.lane,
            appended,
            acknowledged: self.cursor.acknowledged,
            evicted: self.manifest.evicted,
            refused: self.cursor.refused + self.manifest.set_aside,
            quarantined: self.manifest.quarantined,
            backlog: appended.saturating_sub(self.cursor.through).saturating_sub(self.losses.width()),
            through: self.cursor.through,
            generations: self.manifest.generations.len(),
            bytes_on_disk: generations.sum(),
        }
    }
}

/// Hands everything that waits in a lane to `visit`, until that says `false`.
fn walk(directory: &Path, lane: Lane, visit: &mut dyn FnMut(Found) -> io::Result<bool>) -> Result<(), BufferError> {
    life(directory)?;
    let files = LaneFiles::read(directory, lane)?;
    let mut codec = Codec::new().map_err(BufferError::io("decompress for", directory))?;
    let failed = BufferError::io("write what was found in", directory);
    let mut walked = || -> Result<(), Stopped> {
        let mut sequence = files.cursor.through + 1;
        let marks = &files.manifest.generations;
        for (at, mark) in marks.iter().enumerate() {
            let end = marks.get(at + 1).map_or(files.cursor.next, |next| next.first);
            if end <= sequence {
                continue;
            }
            sequence = tell_losses(&files, sequence, mark.first.max(sequence), visit)?;
            let source = directory.join(lane.as_str()).join(generations::name(mark.number));
            let copy = Copy::of(&source).map_err(Stopped::Copy)?;
            let queue = SledQueue::open(&copy.0);
            while sequence < end {
                sequence = tell_losses(&files, sequence, end, visit)?;
                if sequence >= end {
                    break;
                }
                let until = files.losses.next_from(sequence).map_or(end, |from| from.min(end));
                let read = match &queue {
                    Ok(queue) => read_frame(queue, &mut codec, sequence, until),
                    Err(error) => Err((until, error.to_string())),
                };
                match read {
                    Ok(records) => {
                        for bytes in records {
                            if !visit(Found::Record { seq: sequence, bytes })? {
                                return Err(Stopped::Enough);
                            }
                            sequence += 1;
                        }
                    }
                    Err((next, why)) => {
                        if !visit(Found::Unreadable { from: sequence, to: next - 1, why })? {
                            return Err(Stopped::Enough);
                        }
                        sequence = next;
                    }
                }
            }
        }
        tell_losses(&files, sequence, files.cursor.next, visit).map(|_| ())
    };
    match walked() {
        Ok(()) | Err(Stopped::Enough) => Ok(()),
        Err(Stopped::Copy(error)) => Err(error),
        Err(Stopped::Visit(error)) => Err(failed(error)),
    }
}

enum Stopped {
    Enough,
    Copy(BufferError),
    Visit(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Visit(error)
    }
}

/// Tells the losses that begin at `sequence`, one after the other, as long as they begin before `end`.
fn tell_losses(
    files: &LaneFiles,
    sequence: u64,
    end: u64,
    visit: &mut dyn FnMut(Found) -> io::Result<bool>,
) -> Result<u64, Stopped> {
    let mut sequence = sequence;
    while let Some(mark) = files.losses.covering(sequence).filter(|_| sequence <= end) {
        if !visit(Found::Loss(wire_loss(files.lane, sequence, mark.to, mark.cause)))? {
            return Err(Stopped::Enough);
        }
        sequence = mark.to + 1;
    }
    Ok(sequence)
}

/// The records from `sequence` on in its frame, before `until`; or where the next readable ones may be, and why not.
fn read_frame(queue: &SledQueue, codec: &mut Codec, sequence: u64, until: u64) -> Result<Vec<Vec<u8>>, (u64, String)> {
    let frame = queue.at_or_before(sequence).map_err(|error| (until, error.to_string()))?;
    let next = || match queue.first_after(sequence) {
        Ok(Some(next)) => next.min(until),
        _ => until,
    };
    let Some(frame) = frame else { return Err((next(), "nothing stands there".into())) };
    let (header, mut records) = codec.decode(&frame.bytes).map_err(|error| (next(), error.to_string()))?;
    if header.first != frame.first || !(header.first..header.next()).contains(&sequence) {
        return Err((next(), "nothing stands there".into()));
    }
    records.drain(..usize::try_from(sequence - header.first).unwrap_or(usize::MAX));
    records.truncate(usize::try_from(until - sequence).unwrap_or(usize::MAX));
    Ok(records)
}

/// A private copy of a generation, removed when done with.
struct Copy(PathBuf);

impl Copy {
    fn of(generation: &Path) -> Result<Self, BufferError> {
        let path = std::env::temp_dir().join(format!("tickbird-buffer-{}", Ulid::from_parts(0, rand::random())));
        // Fails when the name is taken: nobody can have prepared it for us.
        DirBuilder::new().mode(0o700).create(&path).map_err(BufferError::io("create", &path))?;
        let copy = Self(path);
        copy_files(generation, &copy.0).map_err(BufferError::io("copy", generation))?;
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove the copy of a generation");
        }
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(from) {
        // Not written to yet, or drained while we looked.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy_files(&entry.path(), &target)?;
            continue;
        }
        match std::fs::copy(entry.path(), target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => {
                copied?;
            }
        }
    }
    Ok(())
}

fn life(directory: &Path) -> Result<Life, BufferError> {
    let path = directory.join("buffer.json");
    Life::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BufferError::Absent { directory: directory.to_owned() },
        _ => BufferError::io("read", &path)(error),
    })
}

fn is_in_use(directory: &Path) -> bool {
    File::open(directory.join("lock"))
        .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{Buffer, Config};
    use tickbird_shared::Timestamp;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    #[tokio::test]
    async fn tells_the_truth_beside_a_running_agent_and_after_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = Config::new(directory.path().join("buffer")).with_min_free_bytes(0);
        let path = config.directory().to_owned();
        assert!(matches!(stat(&path), Err(BufferError::Absent { .. })));
        let (buffer, _) = Buffer::open(config, now()).expect("opened");
        let records = (0..250).map(|n| format!(r#"{{"summary":{n}}}"#).into_bytes()).collect();
        buffer.append(Lane::Urgent, records).await.expect("appended");
        buffer.settle(Lane::Urgent, 30, Vec::new()).await.expect("settled");
        buffer.set_aside(Lane::Urgent, 32, "too_large").await.expect("set aside");
        for is_running in [true, false] {
            let verified = verify(&path).expect("verified");
            assert_eq!(verified.is_in_use, is_running);
            assert!(verified.is_good(), "{verified}");
            assert_eq!((verified.lanes[0].readable, verified.lanes[0].lost), (219, 1));
            let stat = stat(&path).expect("stat");
            assert_eq!((stat.lanes[0].backlog, stat.lanes[0].refused, stat.start), (219, 1, 1));
            let peeked = peek(&path, Lane::Urgent, 3).expect("peeked");
            assert_eq!(peeked[0], Found::Record { seq: 31, bytes: br#"{"summary":30}"#.to_vec() });
            assert!(matches!(peeked[1], Found::Loss(loss) if loss.from == 32));
            assert_eq!(peeked.len(), 3);
            let mut lines = Vec::new();
            assert_eq!(export(&path, &mut lines).expect("exported"), 220);
            let text = String::from_utf8(lines).expect("text");
            assert!(text.starts_with(r#"{"lane":"urgent","record":{"summary":30},"seq":31}"#), "{text}");
            if is_running {
                buffer.clone().close().await.expect("closed");
            }
        }
    }
}
