//! The first 100 bytes of a SQLite database (sqlite.org, "Database File Format", section 1.3). Pure.

/// Bytes that are needed.
pub(super) const BYTES: usize = 100;
const MAGIC: &[u8] = b"SQLite format 3\0";

/// What the first page says of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of a page: a power of two from 512 to 65,536.
    pub page_size: u32,
    /// How changes are kept until they are complete.
    pub journal_mode: JournalMode,
    /// Pages of the database; `None` when the number was written by a version that does not keep it true.
    pub pages: Option<u32>,
}

/// How changes are kept until they are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalMode {
    /// In a journal beside it, which is rolled back: one writer, and nobody reads meanwhile.
    Rollback,
    /// In a write-ahead log: one writer, and readers beside it.
    Wal,
}

impl JournalMode {
    /// `rollback` or `wal`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Wal => "wal",
        }
    }
}

impl Header {
    /// Reads it.
    ///
    /// # Errors
    /// With what is wrong. A file without any content is a database that nothing was written to yet, and is no error.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.is_empty() {
            return Ok(Self { page_size: 4096, journal_mode: JournalMode::Rollback, pages: Some(0) });
        }
        if !bytes.starts_with(MAGIC) {
            return Err("its first bytes are not SQLite's");
        }
        let (Some(size), Some(versions)) = (pair(bytes, 16), bytes.get(18..20)) else {
            return Err("its first page is cut off");
        };
        let page_size = if size == 1 { 65_536 } else { u32::from(size) };
        if !page_size.is_power_of_two() || page_size < 512 {
            return Err("its page size is impossible");
        }
        let journal_mode = match versions {
            [1, 1] => JournalMode::Rollback,
            [2, 2] => JournalMode::Wal,
            _ => return Err("its format version is not known"),
        };
        let (Some(changes), Some(pages), Some(valid_for)) = (four(bytes, 24), four(bytes, 28), four(bytes, 92)) else {
            return Err("its first page is cut off");
        };
        let is_kept = changes == valid_for && pages > 0;
        Ok(Self { page_size, journal_mode, pages: is_kept.then_some(pages) })
    }

    /// Whether a file of `size` bytes lacks pages that its header counts. A write-ahead log may hold them.
    pub fn lacks_pages(&self, size: u64, wal_size: Option<u64>) -> bool {
        let needed = self.pages.map_or(0, u64::from) * u64::from(self.page_size);
        wal_size.unwrap_or(0) == 0 && size < needed
    }
}

fn pair(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn four(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(page: u16, versions: [u8; 2], changes: u32, pages: u32, valid_for: u32) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..18].copy_from_slice(&page.to_be_bytes());
        bytes[18..20].copy_from_slice(&versions);
        bytes[24..28].copy_from_slice(&changes.to_be_bytes());
        bytes[28..32].copy_from_slice(&pages.to_be_bytes());
        bytes[92..96].copy_from_slice(&valid_for.to_be_bytes());
        bytes
    }

    #[test]
    fn it_says_how_large_the_database_is_and_how_it_is_written() {
        let wal = Header::parse(&written(4096, [2, 2], 7, 3, 7)).expect("a header");
        assert_eq!(wal, Header { page_size: 4096, journal_mode: JournalMode::Wal, pages: Some(3) });
        assert!(!wal.lacks_pages(3 * 4096, None) && wal.lacks_pages(2 * 4096, None));
        assert!(!wal.lacks_pages(2 * 4096, Some(4152)), "the third may be in the log");
        let old = Header::parse(&written(1, [1, 1], 7, 3, 6)).expect("a header");
        assert_eq!(old, Header { page_size: 65_536, journal_mode: JournalMode::Rollback, pages: None });
        assert!(!old.lacks_pages(0, None), "a number that nobody keeps says nothing");
        assert!(Header::parse(b"").is_ok_and(|it| !it.lacks_pages(0, None)), "nothing was written yet");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = written(4096, [1, 1], 1, 1, 1);
        for (bytes, said) in [
            (b"not a database".to_vec(), "its first bytes are not SQLite's"),
            (good[..50].to_vec(), "its first page is cut off"),
            (written(1000, [1, 1], 1, 1, 1), "its page size is impossible"),
            (written(4096, [9, 1], 1, 1, 1), "its format version is not known"),
        ] {
            assert_eq!(Header::parse(&bytes), Err(said));
        }
    }

    proptest! {
        #[test]
        fn never_panics(tail in proptest::collection::vec(any::<u8>(), 0..120), size: u64) {
            for bytes in [tail.clone(), [MAGIC, &tail].concat()] {
                if let Ok(header) = Header::parse(&bytes) {
                    let _ = header.lacks_pages(size, None);
                }
            }
        }
    }
}
