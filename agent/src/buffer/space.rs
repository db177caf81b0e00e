//! How much room there is: what the buffer takes on disk as measured, and what the disk has left.
//!
//! A full disk poisons an open sled database and keeps a closed one from opening. So the buffer stops appending
//! while the file system still has room, and keeps a ballast: 4 MiB that can be given up at once when something
//! that must be written (a manifest, a database being opened) finds no space. Both heal by themselves.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Enough for a generation to open on a full disk; 256 KiB was measured to be too little.
const BALLAST_BYTES: u64 = 4 << 20;
/// What is left to others where nothing else is configured.
const MIN_FREE_BYTES: u64 = 64 << 20;

/// The guard of one buffer's file system.
#[derive(Debug, Clone)]
pub(super) struct Space {
    directory: PathBuf,
    min_free_bytes: Option<u64>,
}

/// What a file system has left, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// For unprivileged writers.
    pub(super) available: u64,
    /// Below this nothing is appended.
    pub(super) floor: u64,
}

impl Room {
    /// The floor is the configured one; without one, 64 MiB or a hundredth of the file system, whichever is more.
    fn new(available: u64, total: u64, min_free_bytes: Option<u64>) -> Self {
        Self { available, floor: min_free_bytes.unwrap_or_else(|| (total / 100).max(MIN_FREE_BYTES)) }
    }

    pub(super) const fn is_short(self) -> bool {
        self.available < self.floor
    }
}

impl Space {
    pub(super) fn new(directory: &Path, min_free_bytes: Option<u64>) -> Self {
        Self { directory: directory.to_owned(), min_free_bytes }
    }

    /// # Errors
    /// When the file system cannot be asked.
    pub(super) fn room(&self) -> io::Result<Room> {
        let found = statvfs(&self.directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Room::new(bytes(found.f_bavail), bytes(found.f_blocks), self.min_free_bytes))
    }

    /// Lays the ballast in, unless it is there or the disk has no room for it besides the floor.
    pub(super) fn lay_ballast(&self) {
        let path = self.ballast();
        let is_there = path.metadata().is_ok_and(|found| found.len() == BALLAST_BYTES);
        let has_room = |room: Room| room.available >= room.floor.saturating_add(2 * BALLAST_BYTES);
        if is_there || !self.room().is_ok_and(has_room) {
            return;
        }
        let laid = std::fs::File::create(&path)
            .and_then(|file| fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES).map_err(io::Error::from));
        if let Err(error) = laid {
            tracing::debug!(%error, "no ballast: the file system cannot reserve space");
            self.drop_ballast();
        }
    }

    /// Gives the ballast up.
    pub(super) fn drop_ballast(&self) {
        // Not there is as good as removed.
        let _ = std::fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join("ballast")
    }
}

/// Bytes that a directory and everything in it take on disk, in whole blocks. What vanishes meanwhile counts nothing.
pub(super) fn on_disk(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let mut bytes = 0;
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(found) if found.is_dir() => bytes += on_disk(&entry.path()),
            Ok(found) => bytes += found.blocks() * 512,
            Err(_) => {}
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_configured_one_else_64_mib_or_a_hundredth() {
        const MIB: u64 = 1 << 20;
        assert!(Room::new(63 * MIB, 1000 * MIB, None).is_short());
        assert!(!Room::new(64 * MIB, 1000 * MIB, None).is_short());
        assert!(Room::new(99 * MIB, 10_000 * MIB, None).is_short());
        assert!(!Room::new(100 * MIB, 10_000 * MIB, None).is_short());
        assert!(!Room::new(MIB, 10_000 * MIB, Some(MIB)).is_short(), "what is configured counts alone");
        assert!(!Room::new(0, 10_000 * MIB, Some(0)).is_short());
    }

    #[test]
    fn the_ballast_takes_its_space_at_once_and_gives_it_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let space = Space::new(directory.path(), Some(0));
        space.lay_ballast();
        assert!(on_disk(directory.path()) >= BALLAST_BYTES);
        space.drop_ballast();
        assert_eq!(on_disk(directory.path()), 0);
        let short = Space::new(directory.path(), Some(u64::MAX));
        short.lay_ballast();
        assert_eq!(on_disk(directory.path()), 0, "no ballast is laid while space is short");
    }
}
