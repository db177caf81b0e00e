//! Moves the log of changes into the store beside the one who writes, whose transactions do not wait for it.
//!
//! SQLite's own way does it within a commit, so every few seconds one acknowledgement waits for thousands of pages and two syncs.
//! Here a thread with a connection of its own moves what is there. While it does, the writer goes on, and what it writes
//! meanwhile is left over: that little the writer moves itself, between two transactions, or the log could never begin anew
//! under a load that does not end. At [`MOST`] the writer waits a while after each transaction: the log is bounded by how
//! long somebody reads one state, as it is with SQLite's own way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// Frames of the log from which it is moved: 16 MiB.
const FROM: u32 = 4_000;
/// Frames that the writer moves itself: some milliseconds.
const FEW: u32 = 1_000;
/// Frames at which the writer waits: as much as of the log's file is kept.
const MOST: u32 = 16_000;
/// For how long it waits between two transactions.
const BRAKE: Duration = Duration::from_secs(1);

/// The thread, and what is known of the log.
#[derive(Debug)]
pub(super) struct Mover {
    /// Frames in the log, as of the last commit.
    frames: Arc<AtomicU32>,
    /// None once the thread is to end.
    begin: Option<SyncSender<()>>,
    moved: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    /// It moves; so many frames were in the log when it began.
    began_at: Option<u32>,
}

impl Mover {
    /// Starts the thread, and takes SQLite's own way from the connection that writes.
    pub(super) fn start(path: &Path, writer: &mut Connection) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        // Whoever goes last moves the log; this one has no checksums to write with.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        let (begin, asked) = sync_channel(1);
        let (done, moved) = sync_channel(1);
        let work = move || {
            while asked.recv().is_ok() {
                pass(&connection);
                if done.send(()).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("store".into()).spawn(work).map_err(|_| StoreError::Closing)?;
        let frames = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&frames);
        // In the place of what moves the log at each commit.
        writer.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, frames| {
            counted.store(u32::try_from(frames).unwrap_or_default(), Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Self { frames, begin: Some(begin), moved, thread: Some(thread), began_at: None })
    }

    /// To be called between two transactions of `writer`: begins to move the log, or ends it.
    pub(super) fn look(&mut self, writer: &Connection) {
        let frames = self.frames.load(Ordering::Relaxed);
        if let Some(began_at) = self.began_at {
            if frames >= MOST {
                // While somebody reads an old state for long, nothing behind that can be moved, and the log grows all the same.
                if self.moved.recv_timeout(BRAKE) == Err(RecvTimeoutError::Timeout) {
                    return;
                }
            } else if self.moved.try_recv() == Err(TryRecvError::Empty) {
                return;
            }
            self.began_at = None;
            if frames >= MOST || frames.saturating_sub(began_at) <= FEW {
                pass(writer);
                return;
            }
        }
        if frames >= FROM
            && let Some(begin) = &self.begin
        {
            match begin.try_send(()) {
                Ok(()) => self.began_at = Some(frames),
                // A thread that has ended moves nothing.
                Err(_) => pass(writer),
            }
        }
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.begin = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// Moves what no reader holds back. What fails stays in the log, and a log that grows too far fails the commits.
fn pass(connection: &Connection) {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        tracing::debug!(%error, "the log of changes could not be moved into the store");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tickbird_shared::{Lane, Timestamp};

    use super::*;
    use crate::store::{BodyRow, Writer};

    /// One transaction of some 260 frames.
    fn writes(writer: &mut Writer, number: u64) {
        let transaction = writer.transaction().expect("begins");
        let body = BodyRow {
            tenant: "default".into(),
            agent: "a-1".into(),
            epoch: "01JD7Z5W0000000000000000AA".to_owned().try_into().expect("a ULID"),
            lane: Lane::Bulk,
            first: number,
            through: number,
            received_at: Timestamp::UNIX_EPOCH,
            body: vec![7; 1 << 20],
        };
        transaction.add_body(&body).expect("writes");
        transaction.commit().expect("commits");
    }

    #[test]
    fn no_commit_moves_the_log_and_another_thread_does_once_it_is_long() {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("store.db");
        let mut writer = Writer::create(&path).expect("creates");
        writer.move_beside().expect("starts");
        let length = || std::fs::metadata(&path).expect("is there").len();
        (1..=20).for_each(|number| writes(&mut writer, number));
        assert!(length() < 1 << 20, "20 MiB are in the log, and nowhere else: {}", length());
        let until = Instant::now() + Duration::from_secs(20);
        while length() < 20 << 20 && Instant::now() < until {
            writer.tidy();
            std::thread::yield_now();
        }
        assert!(length() >= 20 << 20, "nobody moves it: {}", length());
        writer.close().expect("closes");
    }

    #[test]
    fn a_log_that_is_written_without_a_pause_has_a_bound_and_nothing_of_it_is_missing() {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("store.db");
        let mut writer = Writer::create(&path).expect("creates");
        writer.move_beside().expect("starts");
        for number in 1..=150 {
            writes(&mut writer, number);
            writer.tidy();
        }
        let log = std::fs::metadata(room.path().join("store.db-wal")).expect("is there").len();
        // On a machine that starves the thread the writer goes on after each wait.
        assert!(log < u64::from(2 * MOST) * 4_120, "{log} bytes");
        writer.close().expect("closes");
        let writer = Writer::open(&path).expect("opens");
        assert_eq!(writer.rows().bodies_and_losses("default", "a-1").expect("reads"), (150, 0));
    }
}
