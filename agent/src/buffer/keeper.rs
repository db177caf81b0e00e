//! The buffer's one thread: it owns what is on disk and what is in memory, and does what callers ask in the order
//! they asked.
//!
//! Calls that append and wait in the channel at the same time are committed together: one write and one sync for
//! all of them, then each is answered. That is what makes many small appends cheap without making one of them wait.
//!
//! A disk too full even to open on is no reason not to run: it is tried again each second, and until then there is
//! only memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tickbird_shared::batch::Refused;
use tickbird_shared::{Lane, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

use super::disk::Disk;
use super::stat::Stat;
use super::volatile::Volatile;
use super::{Appended, BufferError, Config, Heads, MAX_APPEND_BYTES, Opened, Standing, Stored};

/// How often a disk that had no room for opening is tried again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, BufferError>>;

/// What callers ask for.
pub(super) enum Command {
    Append { lane: Lane, records: Vec<Vec<u8>>, reply: Reply<Appended> },
    Hold { records: Vec<Vec<u8>>, reply: Reply<u64> },
    Next { lane: Lane, max_records: usize, max_raw_bytes: usize, reply: Reply<Option<Stored>> },
    Settle { lane: Lane, through: u64, refused: Vec<Refused>, reply: Reply<u64> },
    SettleVolatile { through: u64, refused: Vec<Refused>, reply: Reply<u64> },
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
    disk: Place,
    volatile: Volatile,
    heads: watch::Sender<Heads>,
    /// Wall time at the start, for the epoch of a buffer that is begun later.
    began: (Timestamp, Instant),
}

/// Where accepted records go.
enum Place {
    Disk(Box<Disk>),
    /// There was no room to open it.
    Full {
        why: Arc<BufferError>,
        tried: Instant,
    },
}

impl Keeper {
    /// Opens or begins the buffer; on a full disk it begins in memory.
    pub(super) fn open(config: Config, now: Timestamp) -> Result<(Self, Opened), BufferError> {
        let volatile = Volatile::begin(now);
        let (disk, opened) = match Disk::open(config.clone(), now) {
            Ok(disk) => {
                let opened = Opened { epoch: disk.epoch().clone(), is_new: disk.is_new(), is_on_disk: true };
                (Place::Disk(Box::new(disk)), opened)
            }
            Err(error) if error.is_disk_full() => {
                tracing::error!(error = error.chain(), "no room to open the buffer: only memory until there is some");
                let opened = Opened { epoch: volatile.epoch().clone(), is_new: true, is_on_disk: false };
                (Place::Full { why: Arc::new(error), tried: Instant::now() }, opened)
            }
            Err(error) => return Err(error),
        };
        let mut keeper = Self { config, disk, volatile, heads: watch::Sender::default(), began: (now, Instant::now()) };
        keeper.tell_heads();
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
                Command::Hold { records, reply } => {
                    let held = self.volatile.hold(records);
                    self.tell_heads();
                    answer(reply, Ok(held));
                }
                Command::Next { lane, max_records, max_raw_bytes, reply } => {
                    answer(reply, self.next(lane, max_records, max_raw_bytes));
                }
                Command::Settle { lane, through, refused, reply } => {
                    answer(reply, self.disk().and_then(|disk| disk.settle(lane, through, &refused)));
                }
                Command::SettleVolatile { through, refused, reply } => {
                    answer(reply, Ok(self.volatile.settle(through, &refused)));
                }
                Command::SetAside { lane, sequence, code, reply } => {
                    answer(reply, self.disk().and_then(|disk| disk.set_aside(lane, sequence, code)));
                }
                Command::Standing { lane, reply } => answer(reply, Ok(self.standing(lane))),
                Command::RenewEpoch { now, reply } => answer(reply, self.disk().and_then(|disk| disk.renew_epoch(now))),
                Command::Stat { reply } => {
                    let volatile = self.volatile.stat();
                    answer(reply, self.disk().and_then(|disk| disk.stat(volatile)));
                }
                Command::Close { reply } => {
                    let synced = self.sync();
                    // The caller may open the buffer again as soon as it has the answer.
                    drop(self);
                    answer(reply, synced);
                    return;
                }
            }
        }
        if let Err(error) = self.sync() {
            tracing::warn!(%error, "the buffer ends without its last cursor synced");
        }
    }

    /// What is on disk; opened now if it could not be before.
    fn disk(&mut self) -> Result<&mut Disk, BufferError> {
        if let Place::Full { why, tried } = &mut self.disk {
            if tried.elapsed() < REOPEN_EVERY {
                return Err(BufferError::Together(Arc::clone(why)));
            }
            let (wall, since) = self.began;
            match Disk::open(self.config.clone(), wall + since.elapsed()) {
                Ok(disk) => {
                    tracing::info!(epoch = %disk.epoch(), "the disk has room again: the buffer is open");
                    self.disk = Place::Disk(Box::new(disk));
                    self.tell_heads();
                }
                Err(error) => {
                    *why = Arc::new(error);
                    // After the attempt, which may have waited for a lock.
                    *tried = Instant::now();
                }
            }
        }
        match &mut self.disk {
            Place::Disk(disk) => Ok(disk),
            Place::Full { why, .. } => Err(BufferError::Together(Arc::clone(why))),
        }
    }

    fn sync(&self) -> Result<(), BufferError> {
        match &self.disk {
            Place::Disk(disk) => disk.sync(),
            Place::Full { .. } => Ok(()),
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
            let appended = self.disk().and_then(|disk| Ok((disk.append(lane, &records)?, disk.evicted(lane))));
            match appended {
                Ok((mut first, evicted)) => {
                    for (count, reply) in calls {
                        answer(reply, Ok(Appended { first, count, evicted }));
                        first += count;
                    }
                }
                Err(error) => fail_all(error, calls),
            }
        }
        self.tell_heads();
    }

    /// From the disk, and from memory what the disk did not take. What is in memory does not wait for a disk that
    /// cannot even be read.
    fn next(&mut self, lane: Lane, max_records: usize, max_raw_bytes: usize) -> Result<Option<Stored>, BufferError> {
        let stored = match self.disk() {
            Ok(disk) => disk.next(lane, max_records, max_raw_bytes),
            // What is on it is not known, and nothing can be done about it but wait.
            Err(_) => Ok(None),
        };
        match stored {
            Ok(Some(stored)) => Ok(Some(stored)),
            other if lane == Lane::Urgent => {
                self.volatile.next(max_records, max_raw_bytes).map_or(other, |it| Ok(Some(it)))
            }
            other => other,
        }
    }

    fn standing(&mut self, lane: Lane) -> Standing {
        match self.disk() {
            Ok(disk) => Standing {
                epoch: disk.epoch().clone(),
                start: disk.start(lane),
                first: disk.first_sequence(lane),
                is_volatile: false,
            },
            Err(_) => {
                let (epoch, first) = (self.volatile.epoch().clone(), self.volatile.first());
                Standing { epoch, start: None, first, is_volatile: true }
            }
        }
    }

    fn tell_heads(&mut self) {
        let held = self.volatile.stat().held;
        let heads = match &self.disk {
            Place::Disk(disk) => {
                Heads { urgent: disk.next_sequence(Lane::Urgent), bulk: disk.next_sequence(Lane::Bulk), held }
            }
            Place::Full { .. } => Heads { held, ..Heads::default() },
        };
        self.heads.send_replace(heads);
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
