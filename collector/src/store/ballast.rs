//! Space that is held in reserve beside the store, so that on a full disk what was delivered can still be marked.
//!
//! Without the mark a message would be sent again after each restart. The ballast is given up when the disk is full,
//! and laid again when there is room for it twice over, so that a disk that is nearly full does not change its mind
//! with every transaction.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Pays for some thousand marks.
const BYTES: u64 = 16 << 20;
/// With less than this nothing can be promised.
const TOO_LITTLE: u64 = 4 << 20;

/// Room on the disk of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that may be written.
    pub free: u64,
    /// Bytes that the whole file system has.
    pub size: u64,
}

/// Room on the disk of the store at `store`; none where the file system does not say. Blocks as long as that takes.
pub fn room(store: &Path) -> Option<Room> {
    let found = statvfs(store.parent().unwrap_or(Path::new("."))).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    // A file system without a size of its own has no share that is free.
    (found.f_blocks > 0).then(|| Room { free: bytes(found.f_bavail), size: bytes(found.f_blocks) })
}

/// The reserve of one store.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// That of the store at `store`; nothing is done yet.
    pub(super) fn beside(store: &Path) -> Self {
        Self { path: store.with_file_name("ballast") }
    }

    /// Lays it in, when there is room for it twice over; says whether it is there.
    pub(super) fn lay(&self) -> bool {
        if self.path.metadata().is_ok_and(|found| found.len() == BYTES) {
            return true;
        }
        if self.available() < 2 * BYTES {
            return false;
        }
        let laid = File::create(&self.path)
            .and_then(|file| fallocate(&file, FallocateFlags::empty(), 0, BYTES).map_err(io::Error::from));
        if let Err(error) = &laid {
            tracing::debug!(%error, "no ballast: the file system cannot reserve space");
            self.drop();
        }
        laid.is_ok()
    }

    /// Gives it up.
    pub(super) fn drop(&self) {
        // Not there is as good as removed.
        let _ = std::fs::remove_file(&self.path);
    }

    /// The disk has less than a few transactions need.
    pub(super) fn is_short(&self) -> bool {
        self.available() < TOO_LITTLE
    }

    /// There is room for the ballast twice over.
    pub(super) fn has_room(&self) -> bool {
        self.available() >= 2 * BYTES
    }

    /// Bytes that may be written; as many as there can be where the file system cannot be asked.
    fn available(&self) -> u64 {
        room(&self.path).map_or(u64::MAX, |room| room.free)
    }
}
