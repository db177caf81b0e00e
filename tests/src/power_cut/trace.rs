//! What a process did to its files, from the lines of `strace -f -y -xx`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// System calls that change files or their names, or make the change last.
pub const CALLS: &str = "openat,write,pwrite64,writev,pwritev,ftruncate,rename,renameat,renameat2,unlink,\
                                unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,sync_file_range,copy_file_range,sendfile";

/// A call that did something, in the order of their ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// How many calls had ended when this one began.
    pub after: usize,
    /// What it did.
    pub what: What,
}

/// What a call did to files or their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The file is there, and empty if it was to be.
    Opened {
        /// The file.
        path: PathBuf,
        /// It is empty now, whatever it was.
        truncated: bool,
    },
    /// Bytes of a file.
    Written {
        /// The file.
        path: PathBuf,
        /// Where they begin.
        at: u64,
        /// What they are.
        bytes: Vec<u8>,
    },
    /// A file is so long now.
    Resized {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A directory.
    Made(PathBuf),
    /// A file or directory has another name.
    Renamed {
        /// The old one.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
    },
    /// A file or an empty directory.
    Removed(PathBuf),
    /// fsync or fdatasync of a file or a directory.
    Synced(PathBuf),
    /// sync_file_range: promises nothing after a power cut.
    Pushed(PathBuf),
}

impl What {
    /// Whether it is about something within `directory`.
    pub fn is_within(&self, directory: &Path) -> bool {
        match self {
            Self::Opened { path, .. }
            | Self::Written { path, .. }
            | Self::Resized { path, .. }
            | Self::Made(path)
            | Self::Removed(path)
            | Self::Synced(path)
            | Self::Pushed(path) => path.starts_with(directory),
            Self::Renamed { to, .. } => to.starts_with(directory),
        }
    }

    /// In one line: a write without its bytes.
    pub fn in_short(&self) -> String {
        match self {
            Self::Written { path, at, bytes } => format!("write of {} at {at} to {}", bytes.len(), path.display()),
            other => format!("{other:?}"),
        }
    }
}

/// Reads a whole trace. A call that failed did nothing and is left out.
///
/// # Panics
/// On a line that changes files in a way that is not modelled: then the model would lie.
pub fn read(text: &str) -> Vec<Done> {
    let mut done: Vec<Done> = Vec::new();
    let mut begun: HashMap<&str, (usize, &str)> = HashMap::new();
    // Where `write` goes on, by the number of the descriptor; threads share it.
    let mut positions: HashMap<u64, u64> = HashMap::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(first) = rest.strip_suffix("<unfinished ...>") {
            begun.insert(thread, (done.len(), first.trim_end()));
            continue;
        }
        let (after, call) = match rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
            Some((_, end)) => match begun.remove(thread) {
                Some((after, first)) => (after, format!("{first}{end}")),
                None => continue,
            },
            None => (done.len(), rest.to_owned()),
        };
        let Some((call, result)) = call.rsplit_once(" = ") else { continue };
        if result.starts_with('-') || result.starts_with('?') {
            continue;
        }
        let Some((name, arguments)) = call.trim_end().strip_suffix(')').and_then(|call| call.split_once('(')) else {
            continue;
        };
        let arguments: Vec<&str> = arguments.split(", ").collect();
        if let Some(what) = what(name, &arguments, result, &mut positions) {
            done.push(Done { after, what });
        }
    }
    done
}

fn what(name: &str, arguments: &[&str], result: &str, positions: &mut HashMap<u64, u64>) -> Option<What> {
    let word = |at: usize| arguments.get(at).copied().unwrap_or_default();
    let number = |at: usize| word(at).parse::<u64>().unwrap_or_default();
    let path = || path_of(word(0));
    let descriptor = || word(0).split('<').next().and_then(|it| it.parse::<u64>().ok()).unwrap_or(u64::MAX);
    match name {
        "openat" => {
            let opened = result.split('<').next().and_then(|it| it.trim().parse::<u64>().ok())?;
            positions.insert(opened, 0);
            let truncated = word(2).contains("O_TRUNC");
            word(2).contains("O_CREAT").then(|| What::Opened { path: path_of(result), truncated })
        }
        "pwrite64" => Some(What::Written { path: path(), at: number(3), bytes: bytes(word(1)) }),
        "write" => {
            let at = positions.entry(descriptor()).or_default();
            let bytes = bytes(word(1));
            let from = *at;
            *at += bytes.len() as u64;
            Some(What::Written { path: path(), at: from, bytes })
        }
        "ftruncate" => Some(What::Resized { path: path(), bytes: number(1) }),
        "rename" => Some(What::Renamed { from: path_of(word(0)), to: path_of(word(1)) }),
        "unlink" | "rmdir" => Some(What::Removed(path_of(word(0)))),
        "unlinkat" => Some(What::Removed(beneath(word(0), word(1)))),
        "mkdir" => Some(What::Made(path_of(word(0)))),
        "fsync" | "fdatasync" => Some(What::Synced(path())),
        "sync_file_range" => Some(What::Pushed(path())),
        _ => panic!("`{name}` is not modelled"),
    }
}

/// The path in `9<\x2f\x74>`, or the text in `"\x2f\x74"`.
fn path_of(word: &str) -> PathBuf {
    let inner = word.split_once('<').map_or(word, |(_, rest)| rest.trim_end_matches('>'));
    PathBuf::from(String::from_utf8(bytes(inner)).expect("paths of the test are text"))
}

/// A name within the directory of a descriptor; an absolute one stands alone.
fn beneath(directory: &str, name: &str) -> PathBuf {
    path_of(directory).join(Path::new(&path_of(name)))
}

/// `\x41\x42` with or without its quotes.
fn bytes(word: &str) -> Vec<u8> {
    assert!(!word.ends_with("..."), "strace was told to write whole strings");
    let digits = word.trim_matches('"').split("\\x").skip(1);
    digits.map(|two| u8::from_str_radix(two, 16).expect("two digits")).collect()
}
