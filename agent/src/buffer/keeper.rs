//! The buffer's one thread: it owns both lanes, and does what callers ask in the order they asked.
//!
//! Calls that append and wait in the channel at the same time are committed together: one write and one sync for
//! all of them, then each is answered. That is what makes many small appends cheap without making one of them wait.

use std::fs::{File, TryLockError};
use std::sync::Arc;
use std::time::Duration;

use tickbird_shared::batch::Refused;
use tickbird_shared::{Lane, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

use super::eviction::{Giver, next_to_give};
use super::frame::Codec;
use super::lane::{LaneQueue, Place};
use super::manifest::Life;
use super::refused::{RefusedFile, SetAside};
use super::space::Space;
use super::stat::Stat;
use super::{Appended, BufferError, Config, Heads, MAX_APPEND_BYTES, Opened, Standing, Stored, quarantine};

/// The last moments of an earlier holder in this process: sled's threads outlive their handle a little.
const LOCK_ATTEMPTS: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// Frames written between two measurements of the newest generation.
const MEASURE_EVERY_BYTES: usize = 64 << 10;

type Reply<T> = oneshot::Sender<Result<T, BufferError>>;

/// What callers ask for.
pub(super) enum Command {
    Append { lane: Lane, records: Vec<Vec<u8>>, reply: Reply<Appended> },
    Next { lane: Lane, max_records: usize, max_raw_bytes: usize, reply: Reply<Option<Stored>> },
    Settle { lane: Lane, through: u64, refused: Vec<Refused>, reply: Reply<u64> },
    SetAside { lane: Lane, sequence: u64, code: &'static str, reply: Reply<()> },
    Standing { lane: Lane, reply: Reply<Standing> },
    RenewEpoch { now: Timestamp, reply: Reply<()> },
    Stat { reply: Reply<Stat> },
    Close { reply: Reply<()> },
}

struct Append {
    lane: Lane,
    records: Vec<Vec<u8>>,
    reply: Reply<Appended>,
}

/// State of the thread.
pub(super) struct Keeper {
    config: Config,
    life: Life,
    /// In the order of [`Lane::ALL`].
    lanes: [LaneQueue; 2],
    codec: Codec,
    space: Space,
    refused: RefusedFile,
    heads: watch::Sender<Heads>,
    unmeasured: usize,
    is_short: bool,
    /// Held as long as the keeper lives; the kernel lets go of it when the process ends, however it ends.
    _lock: File,
}

impl Keeper {
    /// Opens or begins the buffer.
    pub(super) fn open(config: Config, now: Timestamp) -> Result<(Self, Opened), BufferError> {
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
                let life = Life::begin(now);
                life.write(&life_path).map_err(BufferError::io("write", &life_path))?;
                (life, true)
            }
        };
        let place = Place { buffer: &directory, generation_bytes: config.generation_bytes, space: &space };
        let urgent = LaneQueue::open(Lane::Urgent, &place)?;
        let bulk = LaneQueue::open(Lane::Bulk, &place)?;
        if urgent.needs_new_epoch || bulk.needs_new_epoch {
            life = Life::begin(now);
            life.write(&life_path).map_err(BufferError::io("write", &life_path))?;
            tracing::warn!(epoch = %life.epoch, "accepted records are missing: a new epoch begins");
        }
        let codec = Codec::new().map_err(BufferError::io("compress for", &directory))?;
        space.lay_ballast();
        let lanes = [urgent.queue, bulk.queue];
        let opened = Opened { epoch: life.epoch.clone(), is_new };
        let refused = RefusedFile::new(&directory.join("refused"));
        let heads = watch::Sender::new(Heads { urgent: lanes[0].next(), bulk: lanes[1].next() });
        let keeper =
            Self { config, life, lanes, codec, space, refused, heads, unmeasured: 0, is_short: false, _lock: lock };
        Ok((keeper, opened))
    }

    pub(super) fn heads(&self) -> watch::Receiver<Heads> {
        self.heads.subscribe()
    }

    /// Serves until every handle is gone or one of them closes the buffer.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut held_back = None;
        while let Some(command) = held_back.take().or_else(|| commands.blocking_recv()) {
            match command {
                Command::Append { lane, records, reply } => {
                    let mut group = vec![Append { lane, records, reply }];
                    held_back = gather(&mut commands, &mut group);
                    self.commit(group);
                }
                Command::Next { lane, max_records, max_raw_bytes, reply } => {
                    answer(reply, self.next(lane, max_records, max_raw_bytes));
                }
                Command::Settle { lane, through, refused, reply } => {
                    answer(reply, self.settle(lane, through, &refused))
                }
                Command::SetAside { lane, sequence, code, reply } => {
                    answer(reply, self.set_aside(lane, sequence, code))
                }
                Command::Standing { lane, reply } => {
                    let first = self.lanes[index(lane)].first();
                    answer(reply, Ok(Standing { epoch: self.life.epoch.clone(), first }));
                }
                Command::RenewEpoch { now, reply } => answer(reply, self.renew_epoch(now)),
                Command::Stat { reply } => answer(reply, self.stat()),
                Command::Close { reply } => {
                    let synced = self.lanes.iter().try_for_each(LaneQueue::sync);
                    // The caller may open the buffer again as soon as it has the answer.
                    drop(self);
                    answer(reply, synced);
                    return;
                }
            }
        }
        if let Err(error) = self.lanes.iter().try_for_each(LaneQueue::sync) {
            tracing::warn!(%error, "the buffer ends without its last cursor synced");
        }
    }

    /// Appends a group, lane by lane, and answers each of its calls.
    fn commit(&mut self, group: Vec<Append>) {
        let (urgent, bulk): (Vec<_>, Vec<_>) = group.into_iter().partition(|append| append.lane == Lane::Urgent);
        for (lane, appends) in [(Lane::Urgent, urgent), (Lane::Bulk, bulk)] {
            if appends.is_empty() {
                continue;
            }
            let mut records = Vec::new();
            let mut calls = Vec::new();
            for append in appends {
                calls.push((append.records.len() as u64, append.reply));
                records.extend(append.records);
            }
            match self.append(lane, &records) {
                Ok(mut first) => {
                    let evicted = self.lanes[index(lane)].evicted();
                    for (count, reply) in calls {
                        answer(reply, Ok(Appended { first, count, evicted }));
                        first += count;
                    }
                }
                Err(error) => fail_all(error, calls),
            }
        }
        self.heads.send_replace(Heads { urgent: self.lanes[0].next(), bulk: self.lanes[1].next() });
    }

    fn append(&mut self, lane: Lane, records: &[Vec<u8>]) -> Result<u64, BufferError> {
        self.guard_space()?;
        let at = index(lane);
        let first = self.lanes[at].append(&mut self.codec, records)?;
        self.unmeasured += records.iter().map(Vec::len).sum::<usize>();
        if self.unmeasured >= MEASURE_EVERY_BYTES {
            self.unmeasured = 0;
            self.lanes.iter_mut().for_each(LaneQueue::measure);
            self.make_room();
        }
        Ok(first)
    }

    /// Refuses to write when others need the space more; says so once, and once when it is over.
    fn guard_space(&mut self) -> Result<(), BufferError> {
        let room = self.space.room().map_err(BufferError::io("ask for free space of", &self.config.directory))?;
        if room.is_short() {
            if !std::mem::replace(&mut self.is_short, true) {
                tracing::error!(
                    available = room.available,
                    floor = room.floor,
                    "the disk is full: nothing is appended"
                );
            }
            return Err(BufferError::DiskFull { available: room.available, floor: room.floor });
        }
        if std::mem::take(&mut self.is_short) {
            tracing::info!(available = room.available, "the disk has space again: appending goes on");
            self.space.lay_ballast();
        }
        Ok(())
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

    fn next(&mut self, lane: Lane, max_records: usize, max_raw_bytes: usize) -> Result<Option<Stored>, BufferError> {
        let queue = &mut self.lanes[index(lane)];
        let items = queue.read(&mut self.codec, max_records, max_raw_bytes)?;
        let first = queue.first();
        Ok((!items.is_empty()).then(|| Stored { epoch: self.life.epoch.clone(), lane, first, items }))
    }

    /// Refused records are written to their file before the cursor passes them: a crash between repeats a line, and
    /// loses none.
    fn settle(&mut self, lane: Lane, through: u64, refused: &[Refused]) -> Result<u64, BufferError> {
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

    fn set_aside(&mut self, lane: Lane, sequence: u64, code: &str) -> Result<(), BufferError> {
        let queue = &mut self.lanes[index(lane)];
        let bytes = queue.record_at(&mut self.codec, sequence);
        let line = SetAside::new(&self.life.epoch, lane, sequence, code, bytes.as_deref());
        self.refused.add(&[line]).map_err(BufferError::io("write", &self.refused.path()))?;
        queue.set_aside(sequence)
    }

    fn renew_epoch(&mut self, now: Timestamp) -> Result<(), BufferError> {
        let life = Life::begin(now);
        let path = self.config.directory.join("buffer.json");
        life.write(&path).map_err(BufferError::io("write", &path))?;
        tracing::warn!(was = %self.life.epoch, epoch = %life.epoch, "the buffer begins a new epoch");
        self.life = life;
        Ok(())
    }

    fn stat(&mut self) -> Result<Stat, BufferError> {
        self.lanes.iter_mut().for_each(LaneQueue::measure);
        let room = self.space.room().map_err(BufferError::io("ask for free space of", &self.config.directory))?;
        Ok(Stat {
            epoch: self.life.epoch.clone(),
            created_at: self.life.created_at,
            lanes: self.lanes.each_ref().map(LaneQueue::stat),
            max_bytes: Some(self.config.max_bytes),
            moved_aside: quarantine::count(&self.config.directory.join("quarantine")),
            available_bytes: room.available,
            floor_bytes: Some(room.floor),
        })
    }
}

/// Takes the appends that wait behind the first, up to a bound. A command of another kind ends the group and is
/// handed back.
fn gather(commands: &mut mpsc::Receiver<Command>, group: &mut Vec<Append>) -> Option<Command> {
    let size = |append: &Append| append.records.iter().map(Vec::len).sum::<usize>();
    let mut bytes: usize = group.iter().map(size).sum();
    while bytes < MAX_APPEND_BYTES {
        match commands.try_recv().ok()? {
            Command::Append { lane, records, reply } => {
                let append = Append { lane, records, reply };
                bytes += size(&append);
                group.push(append);
            }
            other => return Some(other),
        }
    }
    None
}

/// One failure is everybody's.
fn fail_all(error: BufferError, calls: Vec<(u64, Reply<Appended>)>) {
    let shared = Arc::new(error);
    for (_, reply) in calls {
        answer(reply, Err(BufferError::Together(Arc::clone(&shared))));
    }
}

fn answer<T>(reply: Reply<T>, with: Result<T, BufferError>) {
    // A caller that went away, because it was cancelled, needs no answer.
    let _ = reply.send(with);
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
