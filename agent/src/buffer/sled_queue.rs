//! One generation: a small sled database of frames, and the only file of the agent that names sled.
//!
//! sled 0.34 keeps what was flushed through `kill -9`, but its `flush` asks the kernel only for `sync_file_range`:
//! after a power cut neither the file's size nor the drive's cache is safe. [`SledQueue::append`] therefore syncs
//! the file itself, and the side files ("blobs") to which sled moves what is larger than a quarter of a segment. A
//! damaged database makes sled panic as often as return an error, so each call into it is caught.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::durable_file::sync_directory;

/// sled's cache holds pages, of which a queue reads each once: the least that does not slow it down.
const CACHE_BYTES: u64 = 1 << 20;
/// A dropped handle's threads keep the lock for some milliseconds.
const OPEN_ATTEMPTS: u32 = 100;
const OPEN_PAUSE: Duration = Duration::from_millis(5);

/// Why a generation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Another process, or the last moments of an earlier handle, hold it.
    #[error("the queue's database is locked by another process")]
    Locked,
    /// No space for what was to be written. Everything accepted before is intact.
    #[error("no space for the queue's database")]
    Full(#[source] io::Error),
    /// The system failed to read or write it.
    #[error("the queue's database cannot be read or written")]
    Io(#[source] io::Error),
    /// Its bytes make no sense.
    #[error("the queue's database is damaged: {0}")]
    Damaged(String),
}

impl QueueError {
    /// Whether the database itself is at fault, so that trying again cannot help.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_))
    }
}

/// A frame as stored, and the sequence it is stored under.
pub(super) struct StoredFrame {
    pub(super) first: u64,
    pub(super) bytes: Vec<u8>,
}

/// An open generation.
pub(super) struct SledQueue {
    database: sled::Db,
    directory: PathBuf,
    /// Our own descriptor of sled's file, to sync it.
    file: File,
    synced_blobs: HashSet<std::ffi::OsString>,
}

impl SledQueue {
    /// Opens the generation in `directory`, or creates it.
    ///
    /// # Errors
    /// [`QueueError::Damaged`] when it can never be opened; the rest may heal.
    pub(super) fn open(directory: &Path) -> Result<Self, QueueError> {
        let is_new = !directory.join("db").exists();
        let mut has_mended = false;
        let mut attempt = 0;
        let database = loop {
            match open_once(directory) {
                Ok(database) => break database,
                Err(QueueError::Locked) if attempt < OPEN_ATTEMPTS => {
                    attempt += 1;
                    std::thread::sleep(OPEN_PAUSE);
                }
                // A snapshot cut short while it was written stops sled, which would do without it.
                Err(QueueError::Damaged(_)) if !has_mended => {
                    has_mended = true;
                    remove_unfinished_snapshots(directory);
                }
                Err(error) => return Err(error),
            }
        };
        let file = File::options().read(true).write(true).open(directory.join("db")).map_err(QueueError::from_io)?;
        if is_new {
            file.sync_all().and_then(|()| sync_directory(directory)).map_err(QueueError::from_io)?;
        }
        Ok(Self { database, directory: directory.to_owned(), file, synced_blobs: HashSet::new() })
    }

    /// Adds frames. When this returns they survive a power cut.
    ///
    /// # Errors
    /// When they may not be there. sled then refuses everything that follows: open it anew.
    pub(super) fn append(&mut self, frames: &[StoredFrame]) -> Result<(), QueueError> {
        caught(|| {
            // sled writes and waits for the mark of a batch by itself, before what is in it. One frame is whole without.
            if let [frame] = frames {
                self.database.insert(frame.first.to_be_bytes(), &frame.bytes[..])?;
            } else {
                let mut batch = sled::Batch::default();
                for frame in frames {
                    batch.insert(&frame.first.to_be_bytes(), &frame.bytes[..]);
                }
                self.database.apply_batch(batch)?;
            }
            self.database.flush()
        })?;
        self.file.sync_data().and_then(|()| self.sync_blobs()).map_err(QueueError::from_io)
    }

    /// The frame that stands at `sequence` or is the last before it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(super) fn at_or_before(&self, sequence: u64) -> Result<Option<StoredFrame>, QueueError> {
        caught(|| self.database.range(..=sequence.to_be_bytes()).next_back().transpose())?.map(stored).transpose()
    }

    /// Sequence of the first frame that begins after `sequence`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(super) fn first_after(&self, sequence: u64) -> Result<Option<u64>, QueueError> {
        let from = sequence.saturating_add(1).to_be_bytes();
        let found = caught(|| self.database.range(from..).next().transpose())?;
        found.map(|entry| Ok(stored(entry)?.first)).transpose()
    }

    /// The newest frame.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(super) fn last(&self) -> Result<Option<StoredFrame>, QueueError> {
        self.at_or_before(u64::MAX)
    }

    /// Large values stand in files of their own, which sled writes without ever syncing them.
    fn sync_blobs(&mut self) -> io::Result<()> {
        let directory = self.directory.join("blobs");
        let mut present = HashSet::new();
        let mut is_any_new = false;
        for entry in std::fs::read_dir(&directory)? {
            let name = entry?.file_name();
            if !self.synced_blobs.contains(&name) {
                match File::open(directory.join(&name)) {
                    Ok(file) => file.sync_all()?,
                    // sled removes a blob when what it held was rewritten elsewhere.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                is_any_new = true;
            }
            present.insert(name);
        }
        if is_any_new {
            sync_directory(&directory)?;
        }
        self.synced_blobs = present;
        Ok(())
    }
}

impl Drop for SledQueue {
    /// sled flushes what is left when its handle goes; here it may start its threads for it as for any other call.
    fn drop(&mut self) {
        // Whoever appended has synced. What an opening changed is done again by the next one.
        let _ = caught(|| self.database.flush());
    }
}

impl QueueError {
    fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(error),
            // sled passes on a lock that is taken as text only.
            io::ErrorKind::Other if error.to_string().starts_with("could not acquire lock") => Self::Locked,
            io::ErrorKind::WouldBlock => Self::Locked,
            // sled reads by offset: a file shorter than it remembers ends early.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Damaged(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

fn open_once(directory: &Path) -> Result<sled::Db, QueueError> {
    let config = sled::Config::new()
        .path(directory)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
        .use_compression(false)
        .mode(sled::Mode::LowSpace);
    caught(|| config.open())
}

/// sled's seven threads each wake once a second to find nothing to do, at seven times of it: that was a sixth of what a
/// calm agent costs. A thread has the slack of its timers from whoever starts it, and sled starts its own with the first
/// work for them, in whatever call that is. With much slack they wake when something else wakes their core; work wakes them
/// at once, as before.
struct IdleTogether {
    before: Option<u64>,
}

/// How much later than asked a timer of theirs may end.
const SLACK: Duration = Duration::from_secs(60);

impl IdleTogether {
    /// For the threads that this one starts until it is dropped.
    fn begin() -> Self {
        let before = rustix::thread::current_timer_slack().ok();
        // It costs what it did where it is refused.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(SLACK.as_nanos() as u64));
        Self { before }
    }
}

impl Drop for IdleTogether {
    fn drop(&mut self) {
        let _ = rustix::thread::set_current_timer_slack(self.before.and_then(NonZeroU64::new));
    }
}

/// Runs one call into sled, whose panics mean a damaged database.
fn caught<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, QueueError> {
    let _idle = IdleTogether::begin();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) => Err(QueueError::from_io(error)),
        Ok(Err(other)) => Err(QueueError::Damaged(other.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it made the reader panic");
            Err(QueueError::Damaged(text.to_owned()))
        }
    }
}

fn stored((key, value): (sled::IVec, sled::IVec)) -> Result<StoredFrame, QueueError> {
    let key = <[u8; 8]>::try_from(key.as_ref());
    let key = key.map_err(|_| QueueError::Damaged("a key is not a sequence".to_owned()))?;
    Ok(StoredFrame { first: u64::from_be_bytes(key), bytes: value.to_vec() })
}

fn remove_unfinished_snapshots(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("snap.") && name.to_string_lossy().ends_with(".generating") {
            // What stays is found by the next attempt to open, whose error is the one reported.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u64, bytes: &[u8]) -> StoredFrame {
        StoredFrame { first, bytes: bytes.to_vec() }
    }

    #[test]
    fn frames_are_found_by_any_sequence_they_hold_and_survive_reopening() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("q-000001");
        let mut queue = SledQueue::open(&path).expect("opened");
        queue.append(&[frame(1, b"one"), frame(11, b"eleven"), frame(256, b"later")]).expect("appended");
        drop(queue);
        let queue = SledQueue::open(&path).expect("reopened");
        let at = |sequence| queue.at_or_before(sequence).expect("read").map(|frame| frame.first);
        assert_eq!([at(0), at(1), at(10), at(11), at(300)], [None, Some(1), Some(1), Some(11), Some(256)]);
        assert_eq!(queue.first_after(1).expect("read"), Some(11));
        assert_eq!(queue.first_after(256).expect("read"), None);
        assert_eq!(queue.last().expect("read").expect("not empty").bytes, b"later");
    }

    #[test]
    fn a_value_too_large_for_the_log_is_synced_in_its_own_file_and_read_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("q-000001");
        let large: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let mut queue = SledQueue::open(&path).expect("opened");
        queue.append(&[frame(1, &large)]).expect("appended");
        assert!(!queue.synced_blobs.is_empty(), "the file beside the log was synced");
        drop(queue);
        let queue = SledQueue::open(&path).expect("reopened");
        assert_eq!(queue.last().expect("read").expect("there").bytes, large);
    }

    #[test]
    fn sleds_threads_wake_when_others_do_and_who_started_them_is_as_punctual_as_before() {
        let before = rustix::thread::current_timer_slack().expect("the kernel tells");
        let directory = tempfile::tempdir().expect("a directory");
        let mut queue = SledQueue::open(&directory.path().join("q-000001")).expect("opened");
        queue.append(&[frame(1, b"one")]).expect("appended");
        assert_eq!(rustix::thread::current_timer_slack().expect("the kernel tells"), before);
        let mut seen = 0;
        for task in std::fs::read_dir("/proc/self/task").expect("read").flatten() {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if name.starts_with("sled-io-") {
                let slack = Path::new("/proc").join(task.file_name()).join("timerslack_ns");
                let slack = std::fs::read_to_string(slack).expect("read");
                assert_eq!(slack.trim().parse::<u128>().expect("a number"), SLACK.as_nanos(), "{name}");
                seen += 1;
            }
        }
        assert!(seen > 0, "sled has threads");
    }

    #[test]
    fn an_open_generation_is_locked_and_a_file_of_garbage_is_damage() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("q-000001");
        let _held = SledQueue::open(&path).expect("opened");
        assert!(matches!(open_once(&path), Err(QueueError::Locked)));
        let other = directory.path().join("q-000002");
        std::fs::create_dir(&other).expect("created");
        std::fs::write(other.join("conf"), b"not a configuration").expect("written");
        assert!(SledQueue::open(&other).err().expect("must fail").is_damage());
    }
}
