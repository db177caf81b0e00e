//! New lines of a file, through rotation.
//!
//! A file is known by device and inode. Renamed away, it is read to its end for a few looks more, because the
//! application still writes to it until it opens the new one, which is then read from its beginning. Copied and
//! truncated, the copy beside it is read to its end first, and then the file from its beginning. The first and the
//! last bytes that were read say whether a file is continued, and which one is its copy; where that is compressed at once or put
//! elsewhere, what was written since the last look is lost. Opened are regular files only, never through a symbolic
//! link in the last part of the path, and never in a way that could block.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::inspect::Reason;

/// Most bytes of one look; the rest waits for the next one.
const MAX_BYTES: u64 = 1 << 20;
/// Further behind, bytes are left out and counted.
const MAX_BEHIND: u64 = 16 << 20;
/// Longest line; the rest of a longer one is left out.
const MAX_LINE: usize = 8 << 10;
/// Looks for which a renamed file is read further.
const FAREWELL: u32 = 3;
/// Bytes of the file's beginning and before the position that are remembered: a first line tells its time, where the
/// same traceback again may end as the one before.
const MAX_HEAD: usize = 1 << 10;
const MAX_KNOWN: usize = 256;
/// Files that are looked at for a copy.
const MAX_COPIES: usize = 100;

/// Where reading stands.
#[derive(Debug)]
pub(super) struct Follow {
    path: PathBuf,
    open: Option<Open>,
    /// Whether the file was found missing once: one that appears then is new from its first line.
    was_missing: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: (u64, u64),
    position: u64,
    /// What stands at the beginning, and just before the position.
    head: Vec<u8>,
    known: Vec<u8>,
    line: Vec<u8>,
    /// The line is longer than is kept; until its end nothing is.
    is_overlong: bool,
    farewells: u32,
}

/// What one look read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Took {
    /// Bytes that were passed over.
    pub(super) left_out: u64,
}

impl Follow {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, open: None, was_missing: false }
    }

    /// Gives each new complete line, without its end.
    pub(super) fn look(&mut self, mut line: impl FnMut(&str)) -> Result<Took, Reason> {
        let there = self.path.symlink_metadata();
        let mut read = Took::default();
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open_file(!self.was_missing)?,
        };
        self.was_missing = false;
        let is_same = there.as_ref().is_ok_and(|it| identity(it) == open.identity);
        let is_at_end = open.read(&self.path, &mut read, &mut line).map_err(|error| self.reason(&error))?;
        if is_same {
            open.farewells = 0;
            self.open = Some(open);
            return Ok(read);
        }
        open.farewells += 1;
        let is_over = is_at_end && open.farewells >= FAREWELL;
        match there {
            Ok(_) if is_over => {
                open.end(&mut line);
                let mut new = self.open_file(false)?;
                new.read(&self.path, &mut read, &mut line).map_err(|error| self.reason(&error))?;
                self.open = Some(new);
            }
            Err(error) if is_over => {
                open.end(&mut line);
                self.was_missing = true;
                return Err(self.reason(&error));
            }
            _ => self.open = Some(open),
        }
        Ok(read)
    }

    fn open_file(&mut self, at_end: bool) -> Result<Open, Reason> {
        let opened = self.try_open(at_end);
        opened.map_err(|error| {
            self.was_missing |= error.kind() == ErrorKind::NotFound;
            self.reason(&error)
        })
    }

    fn try_open(&self, at_end: bool) -> std::io::Result<Open> {
        let (file, metadata) = open_regular(&self.path)?;
        let position = if at_end { metadata.len() } else { 0 };
        let some = |most: usize| vec![0; usize::try_from(position).unwrap_or(most).min(most)];
        let (mut head, mut known) = (some(MAX_HEAD), some(MAX_KNOWN));
        file.read_exact_at(&mut head, 0)?;
        let from = position - known.len() as u64;
        file.read_exact_at(&mut known, from)?;
        Ok(Open {
            file,
            identity: identity(&metadata),
            position,
            line: Vec::new(),
            // The line that is being written at the start began before it.
            is_overlong: known.last().is_some_and(|it| *it != b'\n'),
            head,
            known,
            farewells: 0,
        })
    }

    fn reason(&self, error: &std::io::Error) -> Reason {
        let shown = crate::scrub::path(&self.path.display().to_string(), 300);
        match error.kind() {
            ErrorKind::PermissionDenied => Reason::Unreadable(format!("the log {shown}")),
            ErrorKind::NotFound => Reason::Unreachable(format!("the log {shown}: there is no such file")),
            ErrorKind::InvalidInput => Reason::Unreachable(format!("the log {shown}: {error}")),
            kind => Reason::Unreachable(format!("the log {shown}: {kind}")),
        }
    }
}

impl Open {
    /// Reads what is new, within bounds; true when the end was reached.
    fn read(&mut self, path: &Path, read: &mut Took, line: &mut impl FnMut(&str)) -> std::io::Result<bool> {
        if !self.is_continued_by(&self.file)? {
            self.read_copy(path, read, line)?;
            self.position = 0;
            self.head.clear();
            self.known.clear();
        }
        let size = self.file.metadata()?.len().max(self.position);
        if size - self.position > MAX_BEHIND {
            let left_out = size - self.position - MAX_BYTES;
            self.position += left_out;
            read.left_out += left_out;
            self.line.clear();
            self.known.clear();
            self.is_overlong = true;
        }
        self.file.seek(SeekFrom::Start(self.position))?;
        let mut bytes = Vec::new();
        let count = (&mut self.file).take(MAX_BYTES).read_to_end(&mut bytes)?;
        if self.head.len() as u64 == self.position {
            self.head.extend(&bytes[..bytes.len().min(MAX_HEAD.saturating_sub(self.head.len()))]);
        }
        self.position += count as u64;
        self.known.extend(&bytes[bytes.len().saturating_sub(MAX_KNOWN)..]);
        self.known.drain(..self.known.len().saturating_sub(MAX_KNOWN));
        self.take(&bytes, line);
        Ok(self.position >= size)
    }

    /// Whether what was read last stands in `file` where it was read.
    fn is_continued_by(&self, file: &File) -> std::io::Result<bool> {
        for (known, at) in [(&self.head, 0), (&self.known, self.position - self.known.len() as u64)] {
            let mut found = vec![0; known.len()];
            match file.read_exact_at(&mut found, at) {
                Ok(()) if found == *known => (),
                Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// What was written between the last look and the copy, which begins as the file did until it was truncated.
    fn read_copy(&mut self, path: &Path, read: &mut Took, line: &mut impl FnMut(&str)) -> std::io::Result<()> {
        if let Some((mut copy, size)) = self.copy(path) {
            copy.seek(SeekFrom::Start(self.position))?;
            let mut bytes = Vec::new();
            let count = copy.take(MAX_BYTES).read_to_end(&mut bytes)?;
            read.left_out += size.saturating_sub(self.position).saturating_sub(count as u64);
            self.take(&bytes, line);
            self.end(line);
        }
        self.line.clear();
        self.is_overlong = false;
        Ok(())
    }

    /// The newest file beside the log whose name begins as the log's does and which continues what was read.
    fn copy(&self, path: &Path) -> Option<(File, u64)> {
        let (name, stem) = (path.file_name()?, path.file_stem()?);
        let beside = std::fs::read_dir(path.parent()?).ok()?.flatten();
        let named =
            beside.filter(|it| it.file_name() != name && it.file_name().as_bytes().starts_with(stem.as_bytes()));
        let opened = named.take(MAX_COPIES).filter_map(|it| open_regular(&it.path()).ok());
        let copies = opened.filter(|(file, _)| !self.known.is_empty() && self.is_continued_by(file).unwrap_or(false));
        let newest = copies.max_by_key(|(_, metadata)| (metadata.mtime(), metadata.mtime_nsec()));
        newest.map(|(file, metadata)| (file, metadata.len()))
    }

    fn take(&mut self, bytes: &[u8], line: &mut impl FnMut(&str)) {
        for part in bytes.split_inclusive(|it| *it == b'\n') {
            let (text, ends) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            // Whoever does not append goes on at the old place: what is before it reads as zeros.
            let zeros = if self.line.is_empty() { text.iter().take_while(|it| **it == 0).count() } else { 0 };
            let text = &text[zeros..];
            if !self.is_overlong {
                let room = MAX_LINE.saturating_sub(self.line.len());
                self.line.extend_from_slice(&text[..text.len().min(room)]);
            }
            if ends {
                self.end(line);
            }
        }
    }

    /// The line is complete.
    fn end(&mut self, line: &mut impl FnMut(&str)) {
        if !self.line.is_empty() {
            line(String::from_utf8_lossy(&self.line).trim_end_matches('\r'));
            self.line.clear();
        }
        self.is_overlong = false;
    }
}

fn identity(it: &Metadata) -> (u64, u64) {
    (it.dev(), it.ino())
}

fn open_regular(path: &Path) -> std::io::Result<(File, Metadata)> {
    let not_regular = || std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file");
    // Opening a device may already do something, so it is looked at before; and after, for it may have changed.
    if !path.symlink_metadata()?.is_file() {
        return Err(not_regular());
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(not_regular()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn append(path: &Path, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the log");
        file.write_all(text.as_bytes()).expect("written");
    }

    /// The lines of one look, with `|` between them; or why there are none.
    fn look(follow: &mut Follow) -> String {
        let mut lines = Vec::new();
        match follow.look(|it| lines.push(it.to_owned())) {
            Ok(_) => lines.join("|"),
            Err(reason) => reason.to_string(),
        }
    }

    fn begun(dir: &Path) -> (PathBuf, Follow) {
        let path = dir.join("app.log");
        append(&path, "old\n");
        let mut follow = Follow::new(path.clone());
        assert_eq!(look(&mut follow), "");
        (path, follow)
    }

    #[test]
    fn lines_come_whole_and_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut follow) = begun(dir.path());
        append(&path, "one\r\ntwo\nthr");
        assert_eq!(look(&mut follow), "one|two");
        assert_eq!(look(&mut follow), "");
        append(&path, "ee\n");
        assert_eq!(look(&mut follow), "three");
    }

    #[test]
    fn a_line_half_written_at_the_start_is_left_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.log");
        append(&path, "half of a l");
        let mut follow = Follow::new(path.clone());
        assert_eq!(look(&mut follow), "");
        append(&path, "ine\nnew\n");
        assert_eq!(look(&mut follow), "new");
    }

    #[test]
    fn a_renamed_log_is_read_to_its_end_and_the_new_one_from_its_beginning() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut follow) = begun(dir.path());
        append(&path, "before\n");
        std::fs::rename(&path, dir.path().join("app.log.1")).expect("renamed");
        append(&path, "first of the new\n");
        assert_eq!(look(&mut follow), "before");
        append(&dir.path().join("app.log.1"), "late\n");
        assert_eq!(look(&mut follow), "late");
        assert_eq!(look(&mut follow), "first of the new");
        append(&path, "second\n");
        assert_eq!(look(&mut follow), "second");
    }

    #[test]
    fn a_truncated_log_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut follow) = begun(dir.path());
        append(&path, "a line that is longer than the next one\n");
        assert_eq!(look(&mut follow), "a line that is longer than the next one");
        File::create(&path).expect("truncated");
        append(&path, "anew\n");
        assert_eq!(look(&mut follow), "anew");
    }

    #[test]
    fn what_a_copy_took_along_is_read_there_and_nothing_twice() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut follow) = begun(dir.path());
        append(&path, "one\n");
        assert_eq!(look(&mut follow), "one");
        for (number, late) in ["two\nthree\n", "", "seven\neight, not en"].iter().enumerate() {
            append(&path, late);
            // An older rotation, and a file of another service.
            std::fs::write(dir.path().join("app.log.9"), "old\nother lines\n").expect("an old copy");
            std::fs::copy(&path, dir.path().join(format!("app.log.{number}"))).expect("copied");
            OpenOptions::new().write(true).truncate(true).open(&path).expect("truncated");
            append(
                &path,
                &format!("anew {number}, and longer than everything that stood there before it was truncated\n"),
            );
            let told = late.lines().map(|it| format!("{it}|")).collect::<String>();
            let new = format!("anew {number}, and longer than everything that stood there before it was truncated");
            assert_eq!(look(&mut follow), format!("{told}{new}"));
            assert_eq!(look(&mut follow), "");
        }
    }

    #[test]
    fn the_same_traceback_in_a_truncated_log_is_another_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut follow) = begun(dir.path());
        let record = |second: u32| format!("02:00:{second:02} failed\n{}last\n", "  the same frame\n".repeat(100));
        let failed = |text: String| text.matches("failed").count();
        for second in 10..12 {
            append(&path, &record(second));
        }
        assert_eq!(failed(look(&mut follow)), 2);
        std::fs::copy(&path, dir.path().join("app.log.1")).expect("copied");
        std::fs::write(&path, "new\n").expect("truncated");
        for second in 20..25 {
            append(&path, &record(second));
        }
        assert_eq!(failed(look(&mut follow)), 5);
    }

    #[test]
    fn whoever_does_not_append_leaves_a_hole_and_its_lines_are_read() {
        use std::os::unix::fs::FileExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut follow) = begun(dir.path());
        append(&path, &"x\n".repeat(10_000));
        assert_eq!(look(&mut follow).len(), 19_999);
        let file = OpenOptions::new().write(true).truncate(true).open(&path).expect("truncated");
        file.write_all_at(b"after the hole\nnext\n", 20_004).expect("written");
        assert_eq!(look(&mut follow), "after the hole|next");
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_read_from_its_first_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.log");
        let mut follow = Follow::new(path.clone());
        assert!(look(&mut follow).contains("there is no such file"));
        append(&path, "first\n");
        assert_eq!(look(&mut follow), "first");
    }

    #[test]
    fn one_endless_line_is_bounded_and_so_is_a_flood() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut follow) = begun(dir.path());
        append(&path, &"x".repeat(100_000));
        append(&path, "\nnext\n");
        let lines = look(&mut follow);
        assert_eq!((lines.len(), lines.ends_with("|next")), (MAX_LINE + 5, true));
        append(&path, &"a line of a flood\n".repeat(1_000_000));
        let mut count = 0;
        let read = follow.look(|_| count += 1).expect("readable");
        assert!(read.left_out > 16_000_000 && count < 60_000, "{read:?} {count}");
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, _) = begun(dir.path());
        let link = dir.path().join("link.log");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(look(&mut Follow::new(link)).contains("not a regular file"));
        let fifo = dir.path().join("fifo.log");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("a FIFO");
        assert!(look(&mut Follow::new(fifo)).contains("not a regular file"));
        assert!(look(&mut Follow::new(dir.path().to_owned())).contains("not a regular file"));
    }
}
