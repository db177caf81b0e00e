//! One lane: a cursor that moves through generations of frames, and the ranges it jumps over.
//!
//! ```text
//!        settled          waiting                       free
//! ───────────────┬──────────[loss]───────────────────┬────────▶ sequences
//!             through                               next
//!      [q-000004      ][q-000005        ][q-000006       ]
//!        read here                          written here
//! ```
//!
//! Nothing is taken out of a generation: the cursor moves, and a generation is deleted when the cursor has left it.
//! Whatever is found missing or unreadable becomes a loss of exactly its range, so the lane has no gap.

use std::path::{Path, PathBuf};

use tickbird_shared::Lane;
use tickbird_shared::batch::{Loss, LossOutcome};

use super::cursor::{Cursor, CursorFile};
use super::frame::{self, Codec, FrameError};
use super::generations::{Generations, QueueFailure};
use super::losses::Losses;
use super::manifest::{Cause, LaneManifest, LossMark};
use super::sled_queue::{QueueError, StoredFrame};
use super::space::Space;
use super::stat::LaneStat;
use super::{BufferError, Item, quarantine};
use crate::durable_file::create_private_directory;

/// An open lane.
pub(super) struct LaneQueue {
    lane: Lane,
    directory: PathBuf,
    quarantine: PathBuf,
    space: Space,
    generation_bytes: u64,
    generations: Generations,
    losses: Losses,
    cursor: Cursor,
    cursor_file: CursorFile,
    evicted: u64,
    quarantined: u64,
    set_aside: u64,
    /// Bytes of frames in the newest generation; after a restart a guess from its size on disk.
    written: u64,
    /// The newest generation failed while it was written: what it holds after `next` is unknown.
    must_roll: bool,
}

/// Begins a new epoch.
pub(super) type Renew<'a> = dyn FnMut() -> Result<(), BufferError> + 'a;

/// Where a buffer's lane lives, and how large its parts become.
pub(super) struct Place<'a> {
    pub(super) buffer: &'a Path,
    pub(super) generation_bytes: u64,
    pub(super) space: &'a Space,
}

impl LaneQueue {
    /// Opens the lane, or begins it. Reads the newest generation only, so a full buffer opens as fast as an empty one.
    ///
    /// Accepted records may be lost at the end that is written to, so that sequences are given out a second time. Only
    /// a new epoch keeps them apart: `renew` begins it, before anything here says that the damage is mended.
    ///
    /// # Errors
    /// When the disk or a lock is in the way. Damage is no error: it is moved aside and becomes a loss.
    pub(super) fn open(lane: Lane, place: &Place<'_>, renew: &mut Renew<'_>) -> Result<Self, BufferError> {
        let directory = place.buffer.join(lane.as_str());
        let quarantine = place.buffer.join("quarantine");
        let failed = |doing: &'static str| BufferError::io(doing, &directory);
        create_private_directory(&directory).map_err(failed("create"))?;
        let (mut cursor_file, cursor) = CursorFile::open(&directory.join("cursor")).map_err(failed("open"))?;
        let manifest = match LaneManifest::read(&directory.join("lane.json")) {
            Ok(manifest) => manifest,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && cursor.is_none() => LaneManifest::begin(1),
            Err(error) => {
                tracing::error!(%lane, %error, "the lane's manifest cannot be read: everything in it is moved aside");
                renew()?;
                quarantine::take(&directory, &quarantine, lane.as_str()).map_err(failed("move aside"))?;
                create_private_directory(&directory).map_err(failed("create"))?;
                cursor_file = CursorFile::open(&directory.join("cursor")).map_err(failed("open"))?.0;
                rebuilt(cursor.unwrap_or_default())
            }
        };
        let cursor = cursor.unwrap_or_else(|| unknown_cursor(&manifest));
        let mut queue = Self {
            lane,
            generations: Generations::new(lane, &directory, &quarantine, place.space.clone(), &manifest.generations),
            quarantine,
            space: place.space.clone(),
            generation_bytes: place.generation_bytes,
            losses: Losses::restore(&manifest.losses, cursor.through),
            cursor,
            cursor_file,
            evicted: manifest.evicted,
            quarantined: manifest.quarantined,
            set_aside: manifest.set_aside,
            written: 0,
            must_roll: false,
            directory,
        };
        queue.find_end(renew)?;
        queue.save()?;
        queue.cursor_file.write(queue.cursor).map_err(BufferError::io("write", &queue.directory))?;
        queue.drop_drained()?;
        Ok(queue)
    }

    /// Learns from the newest generation where the lane ends.
    fn find_end(&mut self, renew: &mut Renew<'_>) -> Result<(), BufferError> {
        let newest = self.generations.newest();
        let accepted = self.cursor.next.max(newest.first);
        self.cursor.next = accepted;
        if !self.generations.has_newest_on_disk() {
            return self.give_up_tail(newest.first, accepted, renew);
        }
        self.written = self.generations.newest_on_disk() / 2;
        let found = self.generations.queue(newest.number).and_then(|queue| queue.last());
        let mut is_sure = true;
        let end = match found {
            Ok(None) => newest.first,
            Ok(Some(last)) => match frame::header(&last.bytes) {
                Ok(header) => header.next().max(newest.first),
                Err(_) => {
                    // Its records count as far as they were accepted; the frame itself is met again when it is read.
                    is_sure = false;
                    accepted.max(last.first + 1)
                }
            },
            Err(error) if error.is_damage() => {
                renew()?;
                return self.quarantine_generation(newest.number, &error);
            }
            Err(error) => return Err(self.failed(newest.number, error)),
        };
        self.cursor.next = end.max(accepted);
        if !is_sure {
            renew()?;
        }
        self.give_up_tail(end, accepted, renew)
    }

    /// Records in `end..accepted` were accepted and are not there.
    fn give_up_tail(&mut self, end: u64, accepted: u64, renew: &mut Renew<'_>) -> Result<(), BufferError> {
        if end >= accepted {
            return Ok(());
        }
        renew()?;
        self.must_roll = true;
        self.generations.mark_damaged(self.generations.newest().number);
        self.give_up(end.max(self.cursor.through + 1), accepted - 1, Cause::Quarantined);
        Ok(())
    }

    /// Adds records, in order. When this returns they survive a power cut. Answers the first one's sequence, and the bytes
    /// of their frames.
    ///
    /// # Errors
    /// When they may not be there; none of them has then taken a sequence.
    pub(super) fn append(&mut self, codec: &mut Codec, records: &[Vec<u8>]) -> Result<(u64, usize), BufferError> {
        let is_drained = self.cursor.through + 1 == self.cursor.next;
        let bound = if is_drained { self.generation_bytes / 4 } else { self.generation_bytes };
        if self.must_roll || self.written >= bound {
            self.roll()?;
            self.drop_drained()?;
        }
        let first = self.cursor.next;
        let mut frames = Vec::new();
        let mut sequence = first;
        for run in runs(records) {
            let bytes = codec.encode(sequence, run).map_err(BufferError::io("compress for", &self.directory))?;
            frames.push(StoredFrame { first: sequence, bytes });
            sequence += run.len() as u64;
        }
        let bytes: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
        let number = self.generations.newest().number;
        if let Err(error) = self.generations.queue(number).and_then(|queue| queue.append(&frames)) {
            // sled refuses a handle that failed once. What it kept of these frames is beyond `next`: never read.
            self.generations.close_writer();
            self.must_roll = true;
            return Err(self.failed(number, error));
        }
        self.written += bytes as u64;
        self.cursor.next = sequence;
        self.write_cursor();
        Ok((first, bytes))
    }

    /// The records after the cursor: at most `max_records`, and no more than `max_raw_bytes` unless the first alone
    /// is larger. Reading changes nothing; the same call gives the same records until they are settled.
    ///
    /// # Errors
    /// When the disk cannot be read. Damage is no error: it is among the items, as a loss.
    pub(super) fn read(
        &mut self,
        codec: &mut Codec,
        max_records: usize,
        max_raw_bytes: usize,
    ) -> Result<Vec<Item>, BufferError> {
        let mut items = Vec::new();
        let mut bytes = 0;
        let mut sequence = self.cursor.through + 1;
        while sequence < self.cursor.next && items.len() < max_records {
            if let Some(mark) = self.losses.offer(sequence) {
                items.push(Item::Loss(wire_loss(self.lane, mark.from, mark.to, mark.cause)));
                sequence = mark.to + 1;
                continue;
            }
            for record in self.records_at(codec, sequence)? {
                let is_full = items.len() == max_records || bytes + record.len() > max_raw_bytes;
                if is_full && !items.is_empty() {
                    return Ok(items);
                }
                bytes += record.len();
                sequence += 1;
                items.push(Item::Record(record));
            }
        }
        Ok(items)
    }

    /// The record of one sequence; `None` when it is gone.
    pub(super) fn record_at(&mut self, codec: &mut Codec, sequence: u64) -> Option<Vec<u8>> {
        let is_waiting = (self.cursor.through + 1..self.cursor.next).contains(&sequence);
        if !is_waiting || self.losses.covering(sequence).is_some() {
            return None;
        }
        self.records_at(codec, sequence).ok()?.into_iter().next()
    }

    /// The records of a frame from `sequence` on, up to the next loss. Nothing when they had to be given up.
    fn records_at(&mut self, codec: &mut Codec, sequence: u64) -> Result<Vec<Vec<u8>>, BufferError> {
        let Some((mark, next)) = self.generations.holding(sequence) else {
            self.give_up_and_save(sequence, self.generations.oldest().first - 1)?;
            return Ok(Vec::new());
        };
        let (number, end) = (mark.number, next.unwrap_or(self.cursor.next));
        let found = self.generations.queue(number).and_then(|queue| {
            let frame = queue.at_or_before(sequence)?;
            // Only what cannot be read needs to know where the next readable frame begins.
            match frame {
                Some(frame) => match open(codec, &frame, sequence) {
                    Ok(records) => Ok(Found::Records(records)),
                    Err(error) => Ok(Found::Bad(frame, error, queue.first_after(sequence)?)),
                },
                None => Ok(Found::Nothing(queue.first_after(sequence)?)),
            }
        });
        match found {
            Ok(Found::Records(mut records)) => {
                let until = self.losses.next_from(sequence).map_or(end, |from| from.min(end));
                records.truncate(usize::try_from(until - sequence).unwrap_or(usize::MAX));
                Ok(records)
            }
            Ok(Found::Bad(frame, error, next)) => {
                if error == FrameError::Misplaced {
                    self.generations.mark_damaged(number);
                } else {
                    tracing::error!(lane = %self.lane, first = frame.first, %error, "a frame cannot be read and is moved aside");
                    quarantine::keep(&frame.bytes, &self.quarantine, &format!("{}-{}.frame", self.lane, frame.first))
                        .map_err(BufferError::io("write to", &self.quarantine))?;
                }
                self.give_up_and_save(sequence, next.map_or(end, |next| next.min(end)) - 1)?;
                Ok(Vec::new())
            }
            Ok(Found::Nothing(next)) => {
                self.generations.mark_damaged(number);
                self.give_up_and_save(sequence, next.map_or(end, |next| next.min(end)) - 1)?;
                Ok(Vec::new())
            }
            Err(error) if error.is_damage() => {
                self.quarantine_generation(number, &error)?;
                Ok(Vec::new())
            }
            Err(error) => Err(self.failed(number, error)),
        }
    }

    /// The collector's word: everything up to `through` is settled, `refused` of it refused. Answers how many
    /// records it took.
    ///
    /// # Errors
    /// When what is drained cannot be deleted; the cursor has moved all the same.
    pub(super) fn settle(&mut self, through: u64, refused: u64) -> Result<u64, BufferError> {
        let through = through.min(self.cursor.next - 1);
        if through <= self.cursor.through {
            return Ok(0);
        }
        let width = through - self.cursor.through;
        let passed = self.losses.pass(through);
        let refused = refused.min(width - passed.as_losses);
        let taken = width - passed.as_losses - refused;
        self.evicted -= passed.delivered_evicted;
        self.quarantined -= passed.delivered_quarantined;
        self.cursor.through = through;
        self.cursor.acknowledged += taken;
        self.cursor.refused += refused;
        self.write_cursor();
        if passed.delivered_evicted + passed.delivered_quarantined > 0 {
            self.save()?;
        }
        self.drop_drained()?;
        Ok(taken)
    }

    /// Gives one record up that can never be sent; the collector is told by a loss in its place.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub(super) fn set_aside(&mut self, sequence: u64) -> Result<(), BufferError> {
        if (self.cursor.through + 1..self.cursor.next).contains(&sequence) {
            self.set_aside += self.losses.add(sequence, sequence, Cause::Refused);
            self.save()?;
        }
        Ok(())
    }

    /// Records that were evicted and whose loss is not delivered yet.
    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Whether [`Self::evict_oldest`] would free anything.
    pub(super) fn can_evict(&self) -> bool {
        self.generations.len() > 1 || self.backlog() > 0
    }

    /// Deletes the oldest generation and records what went with it as a loss. Answers how many records went.
    ///
    /// # Errors
    /// When the loss cannot be written down; nothing is then deleted.
    pub(super) fn evict_oldest(&mut self) -> Result<u64, BufferError> {
        if self.generations.len() == 1 {
            self.roll()?;
        }
        let gone = self.generations.take_oldest();
        let (from, to) = (gone.first.max(self.cursor.through + 1), self.generations.oldest().first - 1);
        let count = self.losses.add(from, to, Cause::Evicted);
        self.evicted += count;
        self.save()?;
        self.generations.dispose(gone).map_err(BufferError::io("remove a generation of", &self.directory))?;
        Ok(count)
    }

    /// Begins a new generation.
    fn roll(&mut self) -> Result<(), BufferError> {
        let (cursor, counts) = (&self.cursor_file, self.counts());
        let (directory, space, losses) = (&self.directory, &self.space, &self.losses);
        self.generations.begin(self.cursor.next, |generations| {
            save(directory, space, cursor, counts.manifest(generations, losses))
        })?;
        self.written = 0;
        self.must_roll = false;
        Ok(())
    }

    /// Deletes the generations that the cursor has left.
    fn drop_drained(&mut self) -> Result<(), BufferError> {
        let mut has_changed = false;
        while self.generations.second().is_some_and(|second| second.first <= self.cursor.through + 1) {
            if !has_changed {
                self.sync()?;
            }
            has_changed = true;
            let gone = self.generations.take_oldest();
            self.generations.dispose(gone).map_err(BufferError::io("remove a generation of", &self.directory))?;
        }
        if has_changed { self.save() } else { Ok(()) }
    }

    /// Moves a generation that cannot be read out of the way; what waited in it is lost.
    fn quarantine_generation(&mut self, number: u64, why: &QueueError) -> Result<(), BufferError> {
        tracing::error!(lane = %self.lane, generation = number, error = %why, "a generation cannot be read and is moved aside");
        if number == self.generations.newest().number {
            self.written = 0;
            self.must_roll = false;
        }
        let moved = self.generations.quarantine(number, self.cursor.next);
        let (from, end) = moved.map_err(BufferError::io("move aside a generation of", &self.directory))?;
        let from = from.max(self.cursor.through + 1);
        if from < end {
            self.give_up(from, end - 1, Cause::Quarantined);
        }
        self.save()
    }

    fn give_up_and_save(&mut self, from: u64, to: u64) -> Result<(), BufferError> {
        self.give_up(from, to, Cause::Quarantined);
        self.save()
    }

    fn give_up(&mut self, from: u64, to: u64, cause: Cause) {
        let count = self.losses.add(from, to, cause);
        self.quarantined += count;
        tracing::error!(lane = %self.lane, from, to, count, "records could not be read back and are lost");
    }

    fn save(&self) -> Result<(), BufferError> {
        let manifest = self.counts().manifest(&self.generations, &self.losses);
        save(&self.directory, &self.space, &self.cursor_file, manifest)
    }

    const fn counts(&self) -> Counts {
        Counts { evicted: self.evicted, quarantined: self.quarantined, set_aside: self.set_aside }
    }

    /// A cursor that cannot be written costs repeats after a restart, and nothing now.
    fn write_cursor(&mut self) {
        if let Err(error) = self.cursor_file.write(self.cursor) {
            tracing::warn!(lane = %self.lane, %error, "cannot write the lane's cursor");
        }
    }

    /// Makes the cursor survive a power cut; called when the buffer closes.
    ///
    /// # Errors
    /// When it cannot be synced.
    pub(super) fn sync(&self) -> Result<(), BufferError> {
        self.cursor_file.sync().map_err(BufferError::io("sync", &self.directory))
    }

    /// Measures the newest generation again.
    pub(super) fn measure(&mut self) {
        self.generations.measure();
    }

    /// Bytes of all generations on disk, as last measured.
    pub(super) fn on_disk(&self) -> u64 {
        self.generations.on_disk()
    }

    pub(super) const fn lane(&self) -> Lane {
        self.lane
    }

    /// Sequence the next record will have.
    pub(super) const fn next(&self) -> u64 {
        self.cursor.next
    }

    /// Sequence after the last settled one.
    pub(super) const fn first(&self) -> u64 {
        self.cursor.through + 1
    }

    fn backlog(&self) -> u64 {
        self.cursor.next - 1 - self.cursor.through - self.losses.width()
    }

    pub(super) fn stat(&self) -> LaneStat {
        LaneStat {
            lane: self.lane,
            appended: self.cursor.next - 1,
            acknowledged: self.cursor.acknowledged,
            evicted: self.evicted,
            refused: self.cursor.refused + self.set_aside,
            quarantined: self.quarantined,
            backlog: self.backlog(),
            through: self.cursor.through,
            generations: self.generations.len(),
            bytes_on_disk: self.on_disk(),
        }
    }

    fn failed(&self, number: u64, source: QueueError) -> BufferError {
        BufferError::Queue { generation: self.generations.path(number), source }
    }
}

impl From<QueueFailure> for BufferError {
    fn from(QueueFailure { generation, source }: QueueFailure) -> Self {
        Self::Queue { generation, source }
    }
}

/// Records that had an outcome of their own, ever.
#[derive(Clone, Copy)]
struct Counts {
    evicted: u64,
    quarantined: u64,
    set_aside: u64,
}

impl Counts {
    fn manifest(self, generations: &Generations, losses: &Losses) -> LaneManifest {
        let mut manifest = LaneManifest::begin(1);
        manifest.generations = generations.marks();
        manifest.losses = losses.marks();
        (manifest.evicted, manifest.quarantined, manifest.set_aside) = (self.evicted, self.quarantined, self.set_aside);
        manifest
    }
}

/// Writes a manifest, after the cursor that it relies on; on a full disk the ballast pays for it.
fn save(directory: &Path, space: &Space, cursor: &CursorFile, manifest: LaneManifest) -> Result<(), BufferError> {
    cursor.sync().map_err(BufferError::io("sync", directory))?;
    let path = directory.join("lane.json");
    let written = manifest.write(&path).or_else(|_| {
        space.drop_ballast();
        manifest.write(&path)
    });
    written.map_err(BufferError::io("write", &path))
}

/// What stands at a sequence.
enum Found {
    Records(Vec<Vec<u8>>),
    Bad(StoredFrame, FrameError, Option<u64>),
    Nothing(Option<u64>),
}

/// The records of a frame from `sequence` on.
fn open(codec: &mut Codec, frame: &StoredFrame, sequence: u64) -> Result<Vec<Vec<u8>>, FrameError> {
    let (header, mut records) = codec.decode(&frame.bytes)?;
    let skip = sequence - frame.first;
    if header.first != frame.first || skip >= u64::from(header.count) {
        return Err(FrameError::Misplaced);
    }
    records.drain(..usize::try_from(skip).unwrap_or(usize::MAX));
    Ok(records)
}

/// Cuts records into frames.
fn runs(records: &[Vec<u8>]) -> impl Iterator<Item = &[Vec<u8>]> {
    let mut rest = records;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |record: &&Vec<u8>| {
            bytes += record.len();
            bytes <= frame::TARGET_RAW_BYTES
        };
        let count = rest.iter().take(frame::MAX_RECORDS).take_while(fits).count().max(1).min(rest.len());
        let (run, later) = rest.split_at(count);
        rest = later;
        (!run.is_empty()).then_some(run)
    })
}

/// The collector knows two outcomes of what does not come; refused at this agent is for it the second.
pub(super) fn wire_loss(lane: Lane, from: u64, to: u64, cause: Cause) -> Loss {
    let outcome = match cause {
        Cause::Evicted => LossOutcome::Evicted,
        Cause::Quarantined | Cause::Refused => LossOutcome::Quarantined,
    };
    Loss { lane, from, to, count: to - from + 1, outcome }
}

/// A manifest for a lane of which only the cursor is known: everything that waited is lost.
fn rebuilt(cursor: Cursor) -> LaneManifest {
    let next = cursor.next.max(cursor.through + 1);
    let mut manifest = LaneManifest::begin(next);
    // What the lost manifest counted as evicted is counted here: the sum stays whole.
    manifest.quarantined = (next - 1).saturating_sub(cursor.acknowledged + cursor.refused);
    if next > cursor.through + 1 {
        let mark = LossMark { from: cursor.through + 1, to: next - 1, cause: Cause::Quarantined };
        manifest.losses.push(mark);
    }
    manifest
}

/// Both slots of the cursor are gone: everything that is there is sent again, which the collector takes as repeats.
fn unknown_cursor(manifest: &LaneManifest) -> Cursor {
    let (oldest, newest) = (manifest.generations[0], manifest.generations[manifest.generations.len() - 1]);
    let through = oldest.first - 1;
    let gone = manifest.evicted + manifest.quarantined + manifest.set_aside;
    Cursor { through, next: newest.first, acknowledged: through.saturating_sub(gone), refused: 0 }
}
