//! SQLite databases that processes of this host have open: who writes to each, and whether its first page is sound.
//!
//! Only the first 100 bytes of a file are read. SQLite itself does not run here: its parser in a process that may read
//! everybody's files would be more risk than a check is worth, and an application says itself that a database is
//! damaged (see `log_tail`).

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::inspect::{About, Inspector, Look, Reading, Reason, Rows};
use crate::kernel::KernelError;
use crate::kernel::proc::Proc;
use crate::kernel::reader::Reader;
use crate::scrub;

mod header;

pub use header::{Header, JournalMode};

/// Most databases and holders that are told.
const MAX_FILES: usize = 256;
const MAX_HOLDERS: usize = 1_024;
/// Longest path in a finding, in bytes.
const MAX_PATH: usize = 300;
/// How a database's file is usually called.
const NAMES: [&[u8]; 4] = [b".db", b".sqlite", b".sqlite3", b".db3"];
const WAL: &[u8] = b"-wal";

/// What this inspector reads.
pub static ABOUT: About = About {
    name: "sqlite",
    source: "/proc/<pid>/fd of every process, and the first 100 bytes of files called *.db, *.sqlite, *.sqlite3, *.db3",
    needs: "the application's user, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH together",
    cost: "the links of every process's descriptors, every 30 s",
    measures: &[],
};

/// One look at all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SqliteLook {
    /// Each database, by path.
    pub files: Vec<SqliteFile>,
    /// Why some processes could not be looked at: their databases, or they as further writers, are missing above.
    pub hidden: Option<Reason>,
}

/// One open database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteFile {
    /// Path as the processes that have it open see it, scrubbed.
    pub path: Arc<str>,
    /// Device and inode: the same file under several paths is one database.
    pub file: (u64, u64),
    /// Bytes.
    pub size: u64,
    /// Bytes of its write-ahead log, where there is one and a process has it open.
    pub wal_size: Option<u64>,
    /// Its first page; `Err` when that is none of SQLite's.
    pub header: Result<Header, &'static str>,
    /// Who has it open, by pid.
    pub holders: Vec<Holder>,
}

/// A process that has a database open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Start, in clock ticks since boot.
    pub start: u64,
    /// Its short name.
    pub name: Arc<str>,
    /// Its first descriptor of the file.
    pub fd: u32,
    /// Whether one of them allows writing.
    pub writes: bool,
}

impl SqliteFile {
    /// Processes that may write to it.
    pub fn writers(&self) -> impl Iterator<Item = &Holder> {
        self.holders.iter().filter(|it| it.writes)
    }
}

/// Looks at the descriptors of every process.
#[derive(Debug, Default)]
pub struct SqliteInspector {
    // One look runs at a time; the lock is for one that was given up while its thread goes on.
    proc: Arc<Mutex<Option<Proc>>>,
    reader: Reader,
}

impl SqliteInspector {
    /// An inspector whose looks are taken by `reader`.
    pub fn new(reader: Reader) -> Self {
        Self { proc: Arc::default(), reader }
    }
}

impl Inspector for SqliteInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        "sqlite".to_owned()
    }

    fn inspect<'a>(&'a mut self, _now: Duration) -> Look<'a> {
        let proc = self.proc.clone();
        Box::pin(async move {
            let look = self.reader.look(move || {
                let mut proc = proc.lock().unwrap_or_else(PoisonError::into_inner);
                if proc.is_none() {
                    *proc = Proc::open("/proc").ok();
                }
                proc.as_mut().map(look)
            });
            let look = look.await.flatten().unwrap_or_else(|| SqliteLook {
                hidden: Some(Reason::Absent("/proc".to_owned())),
                ..SqliteLook::default()
            });
            Reading { rows: Rows::Sqlite(look), observations: Vec::new() }
        })
    }
}

fn look(proc: &mut Proc) -> SqliteLook {
    let (mut pids, mut descriptors) = (Vec::new(), Vec::new());
    let mut look = SqliteLook::default();
    if let Err(error) = proc.pids(&mut pids) {
        look.hidden = Some(hidden(&error));
        return look;
    }
    let ours = std::process::id();
    let mut files: BTreeMap<(u64, u64), SqliteFile> = BTreeMap::new();
    let mut logs: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for pid in pids.into_iter().filter(|it| *it != ours) {
        descriptors.clear();
        let seen = proc.files(pid, is_database, &mut descriptors);
        if let Err(error @ KernelError::Denied) = seen {
            look.hidden.get_or_insert_with(|| hidden(&error));
        }
        let Ok(start) = proc.stat(pid).map(|it| it.start) else { continue };
        for (fd, path) in descriptors.drain(..) {
            if let Some(database) = path.strip_suffix(WAL) {
                let size = proc.open_file_at(pid, fd).ok().and_then(|it| Some(it.metadata().ok()?.len()));
                logs.extend(size.map(|size| (database.to_vec(), size)));
                continue;
            }
            take(proc, &mut files, (pid, start, fd), &path);
        }
    }
    look.files = files.into_values().collect();
    for file in &mut look.files {
        file.wal_size = logs.get(file.path.as_bytes()).copied();
    }
    look.files.sort_by(|a, b| a.path.cmp(&b.path));
    for file in &mut look.files {
        let shown = scrub::path(&file.path, MAX_PATH);
        // Two paths may look alike once something in them is hidden.
        let is_whole = *shown == *file.path;
        file.path = if is_whole { shown } else { format!("{shown} (inode {})", file.file.1) }.into();
    }
    look
}

/// Takes one descriptor in, if it leads to a database.
fn take(proc: &mut Proc, files: &mut BTreeMap<(u64, u64), SqliteFile>, (pid, start, fd): (u32, u64, u32), path: &[u8]) {
    let Ok(mut opened) = proc.open_file_at(pid, fd) else { return };
    let Ok(metadata) = opened.metadata() else { return };
    let key = (metadata.dev(), metadata.ino());
    if !files.contains_key(&key) {
        if files.len() >= MAX_FILES {
            return;
        }
        let mut first = Vec::with_capacity(header::BYTES);
        if opened.by_ref().take(header::BYTES as u64).read_to_end(&mut first).is_err() {
            return;
        }
        let file = SqliteFile {
            path: String::from_utf8_lossy(path).into(),
            file: key,
            size: metadata.len(),
            wal_size: None,
            header: Header::parse(&first),
            holders: Vec::new(),
        };
        files.insert(key, file);
    }
    let Some(file) = files.get_mut(&key) else { return };
    let writes = proc.is_writable(pid, fd).unwrap_or(false);
    if let Some(known) = file.holders.iter_mut().find(|it| it.pid == pid) {
        known.writes |= writes;
        known.fd = known.fd.min(fd);
    } else if file.holders.len() < MAX_HOLDERS {
        let name = scrub::text(&proc.short_name(pid).unwrap_or_default(), 32).into();
        file.holders.push(Holder { pid, start, name, fd, writes });
    }
}

fn is_database(path: &[u8]) -> bool {
    let path = path.strip_suffix(WAL).unwrap_or(path);
    NAMES.iter().any(|it| path.ends_with(it))
}

fn hidden(error: &KernelError) -> Reason {
    match error {
        KernelError::Denied => Reason::Denied("the descriptors of other users' processes".to_owned()),
        _ => Reason::Absent("the list of processes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_databases_and_their_logs() {
        for name in ["/a/shop.db", "/a/shop.sqlite", "/a/x.sqlite3", "/a/x.db3", "/a/shop.db-wal"] {
            assert!(is_database(name.as_bytes()), "{name}");
        }
        for name in ["/a/shop.db-shm", "/a/shop.dbx", "/a/db", "/a/shop.db (deleted)", "/dev/null"] {
            assert!(!is_database(name.as_bytes()), "{name}");
        }
    }
}
