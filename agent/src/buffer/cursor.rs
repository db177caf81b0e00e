//! How far a lane has come, in a file of two slots that is written in place.
//!
//! A settled batch moves four numbers. Writing them must cost nothing, need no free space (a full disk is drained
//! too) and survive `kill -9`. So each write goes to the older of two slots, a page apart, under a checksum: a torn
//! write leaves the other slot. It is not synced each time. A power cut may bring an older cursor back; then some
//! acknowledged records are sent again under their old sequences, which changes nothing at the collector.
//!
//! ```text
//! slot at 0 and at 4096, little-endian:
//! 0 "TBC" and version (1)   4 u32 CRC-32 of bytes 8..48   8 u64 serial   16 through   24 next   32 acknowledged   40 refused
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: [u8; 4] = *b"TBC\x01";
pub(super) const SLOT_BYTES: usize = 48;
const SLOT_OFFSETS: [u64; 2] = [0, 4096];

/// The numbers of a lane that change with every batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cursor {
    /// Last sequence that is settled.
    pub(super) through: u64,
    /// Sequence the next record will have, as far as accepted ones go.
    pub(super) next: u64,
    /// Records the collector took.
    pub(super) acknowledged: u64,
    /// Records the collector refused.
    pub(super) refused: u64,
}

/// The open file.
pub(super) struct CursorFile {
    file: File,
    serial: u64,
}

impl CursorFile {
    /// Opens or creates the file. The cursor is `None` when neither slot can be read.
    ///
    /// # Errors
    /// When the file cannot be opened, created or read.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Cursor>)> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let newest = newest(&file)?;
        let mut opened = Self { file, serial: newest.map_or(0, |(serial, _)| serial) };
        if newest.is_none() {
            // Both slots get their blocks now, so that later writes need none.
            opened.write(Cursor::default())?;
            opened.write(Cursor::default())?;
            opened.sync()?;
        }
        Ok((opened, newest.map(|(_, cursor)| cursor)))
    }

    /// Writes the older slot. Safe against the end of this process, not against a power cut: see [`Self::sync`].
    ///
    /// # Errors
    /// When the write fails.
    pub(super) fn write(&mut self, cursor: Cursor) -> io::Result<()> {
        self.serial += 1;
        let slot = encode(self.serial, cursor);
        self.file.write_all_at(&slot, SLOT_OFFSETS[usize::from(self.serial % 2 == 1)])
    }

    /// Makes what was written survive a power cut.
    ///
    /// # Errors
    /// When the sync fails.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The cursor of a lane that another process may be writing.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn read(path: &Path) -> io::Result<Option<Cursor>> {
    Ok(newest(&File::open(path)?)?.map(|(_, cursor)| cursor))
}

fn newest(file: &File) -> io::Result<Option<(u64, Cursor)>> {
    let mut found: Option<(u64, Cursor)> = None;
    for offset in SLOT_OFFSETS {
        let mut slot = [0; SLOT_BYTES];
        match file.read_exact_at(&mut slot, offset) {
            Ok(()) => found = found.into_iter().chain(decode(&slot)).max_by_key(|(serial, _)| *serial),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

pub(super) fn encode(serial: u64, cursor: Cursor) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..4].copy_from_slice(&MAGIC);
    let numbers = [serial, cursor.through, cursor.next, cursor.acknowledged, cursor.refused];
    for (at, number) in slot[8..].chunks_exact_mut(8).zip(numbers) {
        at.copy_from_slice(&number.to_le_bytes());
    }
    let checksum = crc32fast::hash(&slot[8..]);
    slot[4..8].copy_from_slice(&checksum.to_le_bytes());
    slot
}

pub(super) fn decode(slot: &[u8; SLOT_BYTES]) -> Option<(u64, Cursor)> {
    let number = |at: usize| slot[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let checksum = u32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]]);
    let is_whole = slot[..4] == MAGIC && crc32fast::hash(&slot[8..]) == checksum;
    is_whole.then(|| {
        (number(8), Cursor { through: number(16), next: number(24), acknowledged: number(32), refused: number(40) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_slot_counts_whatever_tore_the_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("cursor");
        let (mut file, found) = CursorFile::open(&path).expect("created");
        assert_eq!(found, None);
        let at = |through| Cursor { through, next: through + 9, acknowledged: through - 1, refused: 1 };
        for through in 1..=5 {
            file.write(at(through)).expect("written");
            assert_eq!(read(&path).expect("read"), Some(at(through)));
        }
        let newest_slot = SLOT_OFFSETS[usize::from(file.serial % 2 == 1)];
        drop(file);
        let raw = File::options().write(true).open(&path).expect("opened");
        raw.write_all_at(&[0xff], newest_slot + 17).expect("torn");
        let (_, found) = CursorFile::open(&path).expect("opened");
        assert_eq!(found, Some(at(4)));
    }

    #[test]
    fn an_empty_or_foreign_file_holds_no_cursor() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("cursor");
        std::fs::write(&path, [7; 5000]).expect("written");
        assert_eq!(read(&path).expect("read"), None);
    }
}
