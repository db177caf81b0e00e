//! The part of the buffer that is on disk: both lanes, the epoch they count in, its starts, and the room they may take.

use std::fs::{File, TryLockError};
use std::time::Duration;

use tickbird_shared::batch::Refused;
use tickbird_shared::{Epoch, Lane, Start, Timestamp};

use super::eviction::{Giver, next_to_give};
use super::frame::Codec;
use super::lane::{LaneQueue, Place};
use super::manifest::Life;
use super::refused::{RefusedFile, SetAside};
use super::space::Space;
use super::stat::{Stat, VolatileStat};
use super::{BufferError, Config, Stored, quarantine};

/// The last moments of an earlier holder in this process: sled's threads outlive their handle a little.
const LOCK_ATTEMPTS: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// Frames written between two measurements of the newest generation.
const MEASURE_EVERY_BYTES: usize = 64 << 10;

/// See the module.
pub(super) struct Disk {
    config: Config,
    life: Life,
    /// In the order of [`Lane::ALL`].
    lanes: [LaneQueue; 2],
    codec: Codec,
    space: Space,
    refused: RefusedFile,
    unmeasured: usize,
    is_short: bool,
    is_new: bool,
    /// Held as long as this lives; the kernel lets go of it when the process ends, however it ends.
    _lock: File,
}

impl Disk {
    /// Opens or begins the buffer.
    pub(super) fn open(config: Config, now: Timestamp) -> Result<Self, BufferError> {
        let directory = config.directory.clone();
        crate::durable_file::create_private_directory(&directory).map_err(BufferError::io("create", &directory))?;
        let lock = lock(&directory.join("lock"))?;
        let space = Space::new(&directory, config.min_free_bytes);
        let life_path = directory.join("buffer.json");
        let (mut life, is_new) = match Life::read(&life_path) {
            Ok(life) => (life, false),
            Err(error) => {
                let is_first = error.kind() == std::io::ErrorKind::NotFound;
                if !is_first {
                    tracing::error!(%error, "the buffer's file cannot be read: its epoch is lost, a new one begins");
                    quarantine::take(&life_path, &directory.join("quarantine"), "buffer.json")
                        .map_err(BufferError::io("move aside", &life_path))?;
                }
                (begin(&space, &life_path, now)?, true)
            }
        };
        let place = Place { buffer: &directory, generation_bytes: config.generation_bytes, space: &space };
        let mut renew = || {
            life = begin(&space, &life_path, now)?;
            tracing::warn!(epoch = %life.epoch, "accepted records are missing: a new epoch begins");
            Ok(())
        };
        let urgent = LaneQueue::open(Lane::Urgent, &place, &mut renew)?;
        let lanes = [urgent, LaneQueue::open(Lane::Bulk, &place, &mut renew)?];
        let codec = Codec::new().map_err(BufferError::io("compress for", &directory))?;
        // Last: a start that is written down is one that may send.
        let life = write(&space, &life_path, life.started(given_out(&lanes)))?;
        space.lay_ballast();
        let refused = RefusedFile::new(&directory.join("refused"));
        let (unmeasured, is_short, _lock) = (0, false, lock);
        Ok(Self { config, life, lanes, codec, space, refused, unmeasured, is_short, is_new, _lock })
    }

    pub(super) const fn epoch(&self) -> &Epoch {
        &self.life.epoch
    }

    /// The start that runs, as the batches of a lane name it.
    pub(super) fn start(&self, lane: Lane) -> Option<Start> {
        self.life.start(lane)
    }

    /// It began with this opening.
    pub(super) const fn is_new(&self) -> bool {
        self.is_new
    }

    /// Sequence the next record of a lane will have.
    pub(super) const fn next_sequence(&self, lane: Lane) -> u64 {
        self.lanes[index(lane)].next()
    }

    /// Sequence after the last settled one of a lane.
    pub(super) const fn first_sequence(&self, lane: Lane) -> u64 {
        self.lanes[index(lane)].first()
    }

    /// Records of a lane that were evicted and whose loss is not delivered yet.
    pub(super) const fn evicted(&self, lane: Lane) -> u64 {
        self.lanes[index(lane)].evicted()
    }

    /// Makes the cursors survive a power cut.
    pub(super) fn sync(&self) -> Result<(), BufferError> {
        self.lanes.iter().try_for_each(LaneQueue::sync)
    }

    /// Adds records to a lane; answers the first one's sequence.
    pub(super) fn append(&mut self, lane: Lane, records: &[Vec<u8>]) -> Result<u64, BufferError> {
        let taken = self.guard_space().and_then(|()| self.lanes[index(lane)].append(&mut self.codec, records));
        self.heed_space(&taken);
        let (first, bytes) = taken?;
        self.unmeasured += bytes;
        if self.unmeasured >= MEASURE_EVERY_BYTES {
            self.unmeasured = 0;
            self.lanes.iter_mut().for_each(LaneQueue::measure);
            self.make_room();
        }
        Ok(first)
    }

    /// Refuses to write when others need the space more.
    fn guard_space(&self) -> Result<(), BufferError> {
        let room = self.space.room().map_err(BufferError::io("ask for free space of", &self.config.directory))?;
        if room.is_short() {
            return Err(BufferError::DiskFull { available: room.available, floor: room.floor });
        }
        Ok(())
    }

    /// Says once that the disk is full, whether the guard saw it or an append met it, and once that it is over: then there
    /// is room for the ballast, too, which may have been given up meanwhile.
    fn heed_space<T>(&mut self, taken: &Result<T, BufferError>) {
        match taken {
            Err(error) if error.is_disk_full() => {
                if !std::mem::replace(&mut self.is_short, true) {
                    tracing::error!(error = error.chain(), "the disk is full: nothing is appended");
                }
            }
            Err(_) => (),
            Ok(_) if std::mem::take(&mut self.is_short) => {
                tracing::info!("the disk has space again: appending goes on");
                self.space.lay_ballast();
            }
            Ok(_) => (),
        }
    }

    /// Evicts until the buffer is within its bound. Records already accepted stay accepted whatever happens here.
    fn make_room(&mut self) {
        loop {
            let standing = self.lanes.each_ref().map(|lane| Giver {
                lane: lane.lane(),
                bytes_on_disk: lane.on_disk(),
                can_give: lane.can_evict(),
            });
            let Some(lane) = next_to_give(&standing, self.config.max_bytes) else { return };
            match self.lanes[index(lane)].evict_oldest() {
                Ok(count) => tracing::error!(%lane, count, "the buffer is full: its oldest records are lost"),
                Err(error) => {
                    tracing::warn!(%lane, %error, "cannot make room now");
                    return;
                }
            }
        }
    }

    /// The oldest records of a lane that wait.
    pub(super) fn next(
        &mut self,
        lane: Lane,
        max_records: usize,
        max_raw_bytes: usize,
    ) -> Result<Option<Stored>, BufferError> {
        let queue = &mut self.lanes[index(lane)];
        let items = queue.read(&mut self.codec, max_records, max_raw_bytes)?;
        let first = queue.first();
        Ok((!items.is_empty()).then(|| Stored {
            epoch: self.life.epoch.clone(),
            start: self.start(lane),
            lane,
            first,
            items,
            is_volatile: false,
        }))
    }

    /// Refused records are written to their file before the cursor passes them: a crash between repeats a line, and
    /// loses none.
    pub(super) fn settle(&mut self, lane: Lane, through: u64, refused: &[Refused]) -> Result<u64, BufferError> {
        let queue = &mut self.lanes[index(lane)];
        let is_in_range = |refused: &&Refused| (queue.first()..=through).contains(&refused.seq);
        let mut refused: Vec<&Refused> = refused.iter().filter(is_in_range).collect();
        refused.sort_by_key(|refused| refused.seq);
        refused.dedup_by_key(|refused| refused.seq);
        let bytes: Vec<_> = refused.iter().map(|it| queue.record_at(&mut self.codec, it.seq)).collect();
        let lines: Vec<_> = refused
            .iter()
            .zip(&bytes)
            .map(|(it, bytes)| SetAside::new(&self.life.epoch, lane, it.seq, &it.code, bytes.as_deref()))
            .collect();
        self.refused.add(&lines).map_err(BufferError::io("write", &self.refused.path()))?;
        // A loss that is refused has had its outcome here already.
        queue.settle(through, bytes.iter().flatten().count() as u64)
    }

    pub(super) fn set_aside(&mut self, lane: Lane, sequence: u64, code: &str) -> Result<(), BufferError> {
        let queue = &mut self.lanes[index(lane)];
        let bytes = queue.record_at(&mut self.codec, sequence);
        let line = SetAside::new(&self.life.epoch, lane, sequence, code, bytes.as_deref());
        self.refused.add(&[line]).map_err(BufferError::io("write", &self.refused.path()))?;
        queue.set_aside(sequence)
    }

    pub(super) fn renew_epoch(&mut self, now: Timestamp) -> Result<(), BufferError> {
        let life = Life::begin(now).started(given_out(&self.lanes));
        let life = write(&self.space, &self.config.directory.join("buffer.json"), life)?;
        tracing::warn!(was = %self.life.epoch, epoch = %life.epoch, "the buffer begins a new epoch");
        self.life = life;
        Ok(())
    }

    pub(super) fn stat(&mut self, volatile: VolatileStat) -> Result<Stat, BufferError> {
        self.lanes.iter_mut().for_each(LaneQueue::measure);
        let room = self.space.room().map_err(BufferError::io("ask for free space of", &self.config.directory))?;
        Ok(Stat {
            epoch: self.life.epoch.clone(),
            created_at: self.life.created_at,
            start: self.life.number,
            lanes: self.lanes.each_ref().map(LaneQueue::stat),
            max_bytes: Some(self.config.max_bytes),
            moved_aside: quarantine::count(&self.config.directory.join("quarantine")),
            available_bytes: room.available,
            floor_bytes: Some(room.floor),
            volatile: Some(volatile),
        })
    }
}

/// Begins a life of the buffer.
fn begin(space: &Space, path: &std::path::Path, now: Timestamp) -> Result<Life, BufferError> {
    write(space, path, Life::begin(now))
}

/// The last sequence that each lane ever gave out.
fn given_out(lanes: &[LaneQueue; 2]) -> [u64; 2] {
    lanes.each_ref().map(|lane| lane.next() - 1)
}

/// Writes a life down; on a full disk the ballast pays for it.
fn write(space: &Space, path: &std::path::Path, life: Life) -> Result<Life, BufferError> {
    let written = life.write(path).or_else(|_| {
        space.drop_ballast();
        life.write(path)
    });
    written.map_err(BufferError::io("write", path))?;
    Ok(life)
}

const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Urgent => 0,
        Lane::Bulk => 1,
    }
}

fn lock(path: &std::path::Path) -> Result<File, BufferError> {
    let file =
        File::options().write(true).create(true).truncate(false).open(path).map_err(BufferError::io("open", path))?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(BufferError::io("lock", path)(error)),
        }
    }
    let directory = path.parent().map(std::path::Path::to_owned).unwrap_or_default();
    Err(BufferError::InUse { directory })
}
