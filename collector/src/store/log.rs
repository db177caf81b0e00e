//! Whether the log of changes (`store.db-wal`) still holds everything that was committed to it.
//!
//! SQLite reads the log up to the first frame that does not match its checksum, and takes what follows for a transaction
//! that a crash cut short. That is right after a crash and wrong after damage: then whole transactions that were
//! acknowledged are missing, and nobody is told. Two things tell it, both before SQLite opens the store:
//!
//! - The index of the log (`store.db-shm`) outlives a killed process. It is written after the log was synced, so a log of the
//!   same salts that holds less than it says has lost something, unless all of it had been moved into the store.
//! - Behind the first frame that does not match, frames with the log's salts end two transactions or more. The next one
//!   begins only when the one before it is on the disk, so at most the last can be one that a power cut left unfinished. What
//!   an earlier such end left behind it is not of the same chain: each frame's sums go on from those of the frame before it,
//!   also behind damage, and where they do so no more a second time nothing is counted any more.
//!
//! A log whose end was cut off, without an index, looks as it would after a crash: nothing can be told of it.
//!
//! Layout of the log: a header of 32 bytes (magic, version, size of a page, number of checkpoints, two salts, two sums), then
//! frames: 24 bytes (page, size of the store after a commit or 0, two salts, two sums), and the page. Sums go on from frame to
//! frame. All numbers are big-endian; the magic says in which order the sums take words. Of the index: its header of 48 bytes,
//! twice, then how many frames were moved into the store; in the order of the machine.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::repair::with_suffix;

/// Sums of words in the order of the machine that wrote them: little-endian, big-endian.
const MAGIC: [u32; 2] = [0x377f_0682, 0x377f_0683];
const HEADER: usize = 32;
const FRAME: usize = 24;
/// Of the index: its header, the same again, how many frames were moved, and nothing more that matters.
const INDEX: usize = 100;
const INDEX_HEADER: usize = 48;

/// How often it is looked again while somebody writes.
const TRIES: usize = 10;

/// What can be told of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is missing, as far as can be told.
    Whole,
    /// It is damaged, and all of it had been moved into the store. SQLite would take pages from it that are older than the store's.
    Spent,
    /// Committed transactions are missing.
    Cut {
        /// Frames up to the end of the last transaction that is whole.
        frames: u64,
        /// How many are missing; at least so many.
        transactions: u64,
    },
}

impl Verdict {
    /// What is wrong, in words.
    pub(super) fn said(self) -> Option<String> {
        match self {
            Self::Whole => None,
            Self::Spent => Some("the log of changes is damaged; nothing of it is needed".into()),
            Self::Cut { frames, transactions } => Some(format!(
                "the log of changes is damaged behind frame {frames}: {transactions} transactions or more are missing"
            )),
        }
    }
}

/// Looks through the log of the store at `path`, without SQLite.
pub(super) fn look(path: &Path) -> Verdict {
    let (log, index) = (with_suffix(path, "-wal"), with_suffix(path, "-shm"));
    let mut before = Index::read(&index);
    for _ in 0..TRIES {
        // After the index: what another process commits meanwhile is then only in the log.
        let held = match File::open(&log) {
            Ok(file) => Held::read(BufReader::with_capacity(1 << 20, file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Held::default(),
            Err(_) => return Verdict::Whole,
        };
        let verdict = judge(before, &held);
        let after = Index::read(&index);
        if verdict == Verdict::Whole || before == after {
            return verdict;
        }
        // Somebody began the log anew while it was read.
        before = after;
    }
    Verdict::Whole
}

/// Removes a log that is [`Verdict::Spent`], with its index, as SQLite does at an orderly end.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    for suffix in ["-wal", "-shm"] {
        match std::fs::remove_file(with_suffix(path, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

/// Keeps a verdict that SQLite's next look at the log would make unprovable, until somebody has acted on it.
pub(super) fn note(verdict: Verdict, mark: &Path) -> std::io::Result<()> {
    let text = match verdict {
        Verdict::Whole => return Ok(()),
        Verdict::Spent => "log spent\n".to_owned(),
        Verdict::Cut { frames, transactions } => format!("log cut {frames} {transactions}\n"),
    };
    let mut file = File::create(mark)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    File::open(mark.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// The verdict that an earlier start came to and did not act on.
pub(super) fn noted(mark: &Path) -> Option<Verdict> {
    let mut text = String::new();
    File::open(mark).ok()?.take(100).read_to_string(&mut text).ok()?;
    match *text.split_whitespace().collect::<Vec<_>>() {
        ["log", "spent"] => Some(Verdict::Spent),
        ["log", "cut", frames, transactions] => {
            Some(Verdict::Cut { frames: frames.parse().ok()?, transactions: transactions.parse().ok()? })
        }
        _ => None,
    }
}

fn judge(index: Option<Index>, log: &Held) -> Verdict {
    if let Some(index) = index.filter(|it| log.salts.is_none_or(|salts| salts == it.salts)) {
        return match (log.whole < index.frames, index.moved < index.frames) {
            (false, _) => Verdict::Whole,
            (true, false) => Verdict::Spent,
            (true, true) => Verdict::Cut { frames: log.whole, transactions: log.behind.max(1) },
        };
    }
    match log.behind {
        _ if log.is_spoilt => Verdict::Cut { frames: 0, transactions: 1 },
        0 | 1 => Verdict::Whole,
        behind => Verdict::Cut { frames: log.whole, transactions: behind - 1 },
    }
}

/// What the log holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    /// Of its header; none where there is no log, or its header is none.
    salts: Option<[u8; 8]>,
    /// Something stands where the header should be.
    is_spoilt: bool,
    /// Frames up to the end of the last transaction that is whole.
    whole: u64,
    /// Ends of transactions behind the first frame that is not, as far as one chain goes.
    behind: u64,
}

impl Held {
    fn read(mut from: impl Read) -> Self {
        let mut header = [0; HEADER];
        let held = fill(&mut from, &mut header);
        let mut sum = Sum::default();
        let magic = word(&header, 0);
        sum.is_big = magic == MAGIC[1];
        sum.add(&header[..24]);
        if held < HEADER || !MAGIC.contains(&magic) || !sum.is(&header[24..]) {
            // A header of zeros is one that was never synced.
            return Self { is_spoilt: header.iter().any(|byte| *byte != 0), ..Self::default() };
        }
        let salts = [16, 17, 18, 19, 20, 21, 22, 23].map(|at| header[at]);
        let mut log = Self { salts: Some(salts), ..Self::default() };
        let size = match word(&header, 8) {
            1 => 65_536,
            size => size as usize,
        };
        let mut frame = vec![0; FRAME + size];
        let (mut number, mut is_whole) = (0, true);
        // Behind the first frame that is not as it was: what the next one goes on from when that frame's sums are right, and the
        // rest of it is not. `sum` is for the other case.
        let mut said: Option<Sum> = None;
        while fill(&mut from, &mut frame) == frame.len() {
            number += 1;
            let is_commit = word(&frame, 4) != 0;
            let is_of_log = frame[8..16] == salts;
            let goes_on = |from: &mut Sum| {
                from.add(&frame[..8]);
                from.add(&frame[FRAME..]);
                is_of_log && from.is(&frame[16..FRAME])
            };
            let (by_sum, by_said) = (goes_on(&mut sum), said.as_mut().is_some_and(goes_on));
            match (by_sum, by_said) {
                (true, _) => said = None,
                (false, true) => sum = said.take().unwrap_or_default(),
                (false, false) if is_whole => {
                    is_whole = false;
                    said = Some(Sum { first: word(&frame, 16), second: word(&frame, 20), ..sum });
                }
                (false, false) => break,
            }
            match is_whole {
                true if is_commit => log.whole = number,
                false if is_commit && is_of_log => log.behind += 1,
                _ => (),
            }
        }
        log
    }
}

/// What the index says of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Index {
    salts: [u8; 8],
    /// Frames that were committed.
    frames: u64,
    /// Frames that were moved into the store.
    moved: u64,
}

impl Index {
    fn read(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let mut bytes = [0; INDEX];
        let read = file.read_exact_at(&mut bytes, 0);
        // Never closed: with any descriptor of this file all locks of this process on it would go, and SQLite's are there.
        let _ = file.into_raw_fd();
        read.ok()?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8; INDEX]) -> Option<Self> {
        let (header, again) = bytes[..2 * INDEX_HEADER].split_at(INDEX_HEADER);
        let mut sum = Sum { is_big: cfg!(target_endian = "big"), ..Sum::default() };
        sum.add(&header[..40]);
        let native = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let is_whole = header == again && (native(40), native(44)) == (sum.first, sum.second) && bytes[12] != 0;
        let salts = [32, 33, 34, 35, 36, 37, 38, 39].map(|at| bytes[at]);
        is_whole.then(|| Self { salts, frames: native(16).into(), moved: native(96).into() })
    }
}

/// The checksum of SQLite's logs, which goes on from one piece to the next.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    is_big: bool,
    first: u32,
    second: u32,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let word = |bytes: &[u8]| {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            if self.is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        let (mut first, mut second) = (self.first, self.second);
        for pair in bytes.chunks_exact(8) {
            first = first.wrapping_add(word(&pair[..4])).wrapping_add(second);
            second = second.wrapping_add(word(&pair[4..])).wrapping_add(first);
        }
        (self.first, self.second) = (first, second);
    }

    fn is(&self, bytes: &[u8]) -> bool {
        (word(bytes, 0), word(bytes, 4)) == (self.first, self.second)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads until it is full or there is no more; how much that was.
fn fill(from: &mut impl Read, to: &mut [u8]) -> usize {
    let mut held = 0;
    while held < to.len() {
        match from.read(&mut to[held..]) {
            Ok(0) => break,
            Ok(more) => held += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(_) => break,
        }
    }
    held
}

#[cfg(test)]
mod tests;
