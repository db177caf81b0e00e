//! What was found waits here until the collector has it: on disk, in order, whatever happens to this process.
//!
//! # Promises
//!
//! - [`Buffer::append`] returns when the records survive `kill -9` and a power cut, and not before.
//! - Records leave in the order they came, per lane, each under one sequence of one epoch, without a gap.
//! - Each record has exactly one outcome: per lane, appended = acknowledged + evicted + refused + quarantined +
//!   backlog, across restarts. What does not come is announced by a loss that takes its place.
//! - The buffer stays within its bound on disk as measured, and within some megabytes of memory.
//! - When the disk takes nothing, at most [`MAX_VOLATILE_RECORDS`] records are held in memory for whoever asks for it
//!   ([`Buffer::hold`]), in an epoch of their own. They end with the process.
//!
//! # On disk
//!
//! ```text
//! buffer/
//!   lock               held by the agent that runs
//!   buffer.json        the epoch and its starts                   (replaced whole)
//!   ballast            4 MiB to give up on a full disk
//!   urgent/  bulk/
//!     cursor           how far: settled, next, counts             (two slots, written in place)
//!     lane.json        generations, losses not yet told           (replaced whole)
//!     q-000001/ …      generations: small databases of frames     (append only, deleted when drained)
//!   quarantine/        what could not be read, moved aside, never deleted
//!   refused/           records that will never be stored, as JSON lines
//! ```
//!
//! # When writing is cut short
//!
//! An append is one atomic batch in the generation, then a sync, then the cursor. Cut before the sync, nobody was
//! told that it is kept; cut after, the next start finds it. A generation is listed in `lane.json` before anything in
//! it is accepted, and a loss before what it replaces is deleted, so what the manifest does not list was either never
//! accepted or is settled. The cursor stands in the page cache between syncs: a power cut may bring an older one back,
//! and acknowledged records are then sent again under their own sequences, which the collector knows.
//!
//! Each opening is a start, written down before anything is sent: its number, a random word, and how much each lane had
//! given out by then. Batches name it and those before it, so the collector can tell this buffer from a copy of it that
//! runs elsewhere, and from an older state that was put back; either then begins an epoch of its own.

use std::path::PathBuf;

use tickbird_shared::batch::{Loss, Refused};
use tickbird_shared::{Epoch, Lane, Start, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

mod cursor;
mod disk;
mod error;
mod eviction;
pub mod examine;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod generations;
mod keeper;
mod lane;
mod losses;
mod manifest;
mod quarantine;
mod refused;
mod sled_queue;
mod space;
mod stat;
mod volatile;

pub use error::BufferError;
pub use frame::FrameError;
pub use sled_queue::QueueError;
pub use stat::{LaneStat, Stat, VolatileStat};

use keeper::{Command, Keeper};

/// Largest record that is kept, in bytes: four times the largest there is, a recording.
pub const MAX_RECORD_BYTES: usize = 256 << 10;
/// Most records of one call.
pub const MAX_APPEND_RECORDS: usize = 10_000;
/// Most bytes of one call.
pub const MAX_APPEND_BYTES: usize = 4 << 20;
/// Most records that are held in memory while the disk takes nothing.
pub const MAX_VOLATILE_RECORDS: usize = 1_000;
/// Two generations for each lane.
pub const MIN_MAX_BYTES: u64 = 32 << 20;

/// Calls that wait for the buffer's thread. One more waits where it is called.
const CHANNEL: usize = 256;

/// Where the buffer lives and how large it may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    directory: PathBuf,
    max_bytes: u64,
    generation_bytes: u64,
    min_free_bytes: Option<u64>,
}

impl Config {
    /// A buffer in `directory` (the agent's `STATE/buffer`): 64 MiB on disk, some 2.7 million findings; generations of
    /// 4 MiB; stopping when less than 64 MiB, or a hundredth of the file system, is free.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), max_bytes: 64 << 20, generation_bytes: 4 << 20, min_free_bytes: None }
    }

    /// Bounds the generations of both lanes together, in bytes on disk.
    ///
    /// # Errors
    /// Below [`MIN_MAX_BYTES`].
    pub fn with_max_bytes(self, max_bytes: u64) -> Result<Self, BufferError> {
        if max_bytes < MIN_MAX_BYTES {
            return Err(BufferError::BoundTooSmall(max_bytes));
        }
        Ok(Self { max_bytes, ..self })
    }

    /// Leaves this many bytes of the file system to others. With 0 only the disk's own end stops an append.
    #[must_use]
    pub fn with_min_free_bytes(self, min_free_bytes: u64) -> Self {
        Self { min_free_bytes: Some(min_free_bytes), ..self }
    }

    /// Where the buffer lives.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }
}

/// A handle of the buffer, to be cloned freely. The buffer ends when all handles are gone, or one closes it.
#[derive(Debug, Clone)]
pub struct Buffer {
    commands: mpsc::Sender<Command>,
    heads: watch::Receiver<Heads>,
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The life of the buffer that goes on or begins.
    pub epoch: Epoch,
    /// There was none before.
    pub is_new: bool,
    /// False when the disk had no room even for opening: until it has, there is only memory.
    pub is_on_disk: bool,
}

/// Sequences that the next record of each lane will have; zero while the disk has no room for opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heads {
    /// Of [`Lane::Urgent`].
    pub urgent: u64,
    /// Of [`Lane::Bulk`].
    pub bulk: u64,
    /// Records that were held in memory so far.
    pub held: u64,
}

impl Heads {
    /// The one of a lane.
    pub const fn of(self, lane: Lane) -> u64 {
        match lane {
            Lane::Urgent => self.urgent,
            Lane::Bulk => self.bulk,
        }
    }
}

/// Where a lane stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Life of the buffer that the sequence counts in.
    pub epoch: Epoch,
    /// The start of the buffer; nothing in memory.
    pub start: Option<Start>,
    /// Sequence of the oldest record that is not settled; when none waits, of the next one.
    pub first: u64,
    /// The epoch is that of what is held in memory.
    pub is_volatile: bool,
}

/// Records that were accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Sequence of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Records of this lane that were evicted for want of room and are not told yet.
    pub evicted: u64,
}

/// Records of one lane with consecutive sequences, as they wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Life of the buffer that the sequences count in.
    pub epoch: Epoch,
    /// The start of the buffer; nothing in memory.
    pub start: Option<Start>,
    /// The lane.
    pub lane: Lane,
    /// Sequence of the first item.
    pub first: u64,
    /// Never empty.
    pub items: Vec<Item>,
    /// They are held in memory: settled by [`Buffer::settle_volatile`].
    pub is_volatile: bool,
}

/// What stands at a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A record as it was appended.
    Record(Vec<u8>),
    /// What stood in this range is gone; it takes all of its sequences.
    Loss(Loss),
}

impl Item {
    /// How many sequences it takes.
    pub const fn width(&self) -> u64 {
        match self {
            Self::Record(_) => 1,
            Self::Loss(loss) => loss.to - loss.from + 1,
        }
    }
}

impl Stored {
    /// Sequence of the last item; of a loss, the last of its range.
    pub fn through(&self) -> u64 {
        self.first + self.items.iter().map(Item::width).sum::<u64>() - 1
    }
}

impl Buffer {
    /// Opens the buffer, or begins one, and starts its thread. `now` is the wall time, which becomes part of a new
    /// epoch's name.
    ///
    /// A full disk is no error: the buffer then begins in memory and opens what is on disk once there is room.
    ///
    /// # Errors
    /// When another process has it, or the disk cannot be worked with. Damage is no error: see the module.
    pub fn open(config: Config, now: Timestamp) -> Result<(Self, Opened), BufferError> {
        let directory = config.directory.clone();
        let (keeper, opened) = Keeper::open(config, now)?;
        let heads = keeper.heads();
        let (commands, receiver) = mpsc::channel(CHANNEL);
        std::thread::Builder::new()
            .name("buffer".into())
            .spawn(move || keeper.run(receiver))
            .map_err(BufferError::io("start a thread for", &directory))?;
        Ok((Self { commands, heads }, opened))
    }

    /// Adds encoded records to a lane, in order, all or none. When this returns `Ok` they survive a power cut. Calls
    /// made at the same time share one sync.
    ///
    /// # Errors
    /// When they are not kept: too large, disk full, disk failing. A failure after the write began leaves it open
    /// whether a later start finds them.
    pub async fn append(&self, lane: Lane, records: Vec<Vec<u8>>) -> Result<Appended, BufferError> {
        let bytes: usize = records.iter().map(Vec::len).sum();
        if let Some(large) = records.iter().map(Vec::len).find(|bytes| *bytes > MAX_RECORD_BYTES) {
            return Err(BufferError::RecordTooLarge(large));
        }
        if records.len() > MAX_APPEND_RECORDS || bytes > MAX_APPEND_BYTES {
            return Err(BufferError::TooMany { records: records.len(), bytes });
        }
        if records.is_empty() {
            return Ok(Appended { first: self.heads().of(lane), count: 0, evicted: 0 });
        }
        self.ask(|reply| Command::Append { lane, records, reply }).await
    }

    /// Holds encoded records in memory, which the disk did not take, to be sent from there in the urgent lane. Answers
    /// how many were taken before [`MAX_VOLATILE_RECORDS`] waited. They do not survive this process.
    ///
    /// # Errors
    /// When the buffer is closed, or one is larger than [`MAX_RECORD_BYTES`].
    pub async fn hold(&self, records: Vec<Vec<u8>>) -> Result<u64, BufferError> {
        if let Some(large) = records.iter().map(Vec::len).find(|bytes| *bytes > MAX_RECORD_BYTES) {
            return Err(BufferError::RecordTooLarge(large));
        }
        self.ask(|reply| Command::Hold { records, reply }).await
    }

    /// The oldest records of a lane that are not settled; `None` when none wait. At most `max_records` items and
    /// `max_raw_bytes` bytes, but at least one item. Changes nothing: until [`Self::settle`], the next call answers
    /// the same.
    ///
    /// # Errors
    /// When the disk cannot be read now. What can never be read is among the items, as a loss.
    pub async fn next_batch(
        &self,
        lane: Lane,
        max_records: usize,
        max_raw_bytes: usize,
    ) -> Result<Option<Stored>, BufferError> {
        self.ask(|reply| Command::Next { lane, max_records, max_raw_bytes, reply }).await
    }

    /// Where a lane stands.
    ///
    /// # Errors
    /// When the buffer is closed.
    pub async fn standing(&self, lane: Lane) -> Result<Standing, BufferError> {
        self.ask(|reply| Command::Standing { lane, reply }).await
    }

    /// The collector's acknowledgement: all up to `through` is on its disk, or refused. Refused records are written
    /// to `refused/refused.jsonl`. Answers how many records were acknowledged by it.
    ///
    /// # Errors
    /// When that cannot be written down; the records are then offered again.
    pub async fn settle(&self, lane: Lane, through: u64, refused: Vec<Refused>) -> Result<u64, BufferError> {
        self.ask(|reply| Command::Settle { lane, through, refused, reply }).await
    }

    /// [`Self::settle`] for what is held in memory. Refused records are counted and not kept.
    ///
    /// # Errors
    /// When the buffer is closed.
    pub async fn settle_volatile(&self, through: u64, refused: Vec<Refused>) -> Result<u64, BufferError> {
        self.ask(|reply| Command::SettleVolatile { through, refused, reply }).await
    }

    /// Sets a record aside that can never be sent; a loss takes its place in the lane.
    ///
    /// # Errors
    /// When that cannot be written down; the record is then offered again.
    pub async fn set_aside(&self, lane: Lane, sequence: u64, code: &'static str) -> Result<(), BufferError> {
        self.ask(|reply| Command::SetAside { lane, sequence, code, reply }).await
    }

    /// Begins a new epoch; sequences go on. For when the collector turns out to know another buffer under this epoch:
    /// this one was copied, or restored from an older copy.
    ///
    /// # Errors
    /// When it cannot be written down; the epoch then stays.
    pub async fn renew_epoch(&self, now: Timestamp) -> Result<(), BufferError> {
        self.ask(|reply| Command::RenewEpoch { now, reply }).await
    }

    /// What is in the buffer now, and what became of everything before.
    ///
    /// # Errors
    /// When the file system cannot be asked, or the buffer is closed.
    pub async fn stat(&self) -> Result<Stat, BufferError> {
        self.ask(|reply| Command::Stat { reply }).await
    }

    /// The sequence each lane's next record will have; for a reader that waits, see [`Self::watch_heads`].
    pub fn heads(&self) -> Heads {
        *self.heads.borrow()
    }

    /// Changes whenever records were appended.
    pub fn watch_heads(&self) -> watch::Receiver<Heads> {
        self.heads.clone()
    }

    /// Ends the buffer after everything asked before. When this returns it may be opened again. Other handles get
    /// [`BufferError::Closed`] from now on.
    ///
    /// # Errors
    /// When its last state could not be synced, or it was closed before.
    pub async fn close(self) -> Result<(), BufferError> {
        self.ask(|reply| Command::Close { reply }).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, BufferError>>) -> Command,
    ) -> Result<T, BufferError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| BufferError::Closed)?;
        answer.await.map_err(|_| BufferError::Closed)?
    }
}

#[cfg(test)]
mod damage;
#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod tests;
