//! Processes, from `/proc`.
//!
//! [`Proc`] reads one bounded file at a time into a buffer that it keeps; what the bytes mean is said by pure parsers:
//! [`stat`], [`status`], [`limits`], [`memory`], [`strings`] (command line and environment), [`descriptors`].

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir};
use zeroize::{Zeroize, Zeroizing};

use super::KernelError;

pub mod descriptors;
pub mod limits;
pub mod memory;
pub mod stat;
pub mod status;
pub mod strings;

pub use descriptors::Descriptor;
pub use stat::Stat;

/// Bytes read of one small file of `/proc/<pid>`.
const SMALL: usize = 16 * 1024;
/// Bytes read of a command line or an environment; a longer one is cut after the last whole string.
const STRINGS: usize = 128 * 1024;
/// Entries read of one directory.
const MAX_ENTRIES: usize = 1 << 20;

/// A `/proc`, or a captured tree in tests.
#[derive(Debug)]
pub struct Proc {
    root: PathBuf,
    directory: OwnedFd,
    path: String,
    buffer: Vec<u8>,
    constants: Constants,
}

/// What turns the kernel's units into ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Constants {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Clock ticks of a second, in which `stat` counts.
    pub ticks_per_second: u64,
}

impl Proc {
    /// Opens the tree.
    ///
    /// # Errors
    /// When there is none at `root`.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, KernelError> {
        let root = root.into();
        let directory = rustix::fs::open(&root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut proc = Self {
            root,
            directory,
            path: String::new(),
            buffer: Vec::with_capacity(SMALL),
            constants: Constants { page_bytes: 4096, ticks_per_second: 100 },
        };
        // A captured tree has none; nearly every machine has these values.
        if let Ok(bytes) = proc.file("self/auxv", SMALL) {
            let read = stat::parse_auxv(bytes);
            proc.constants.page_bytes = read.0.unwrap_or(4096);
            proc.constants.ticks_per_second = read.1.unwrap_or(100);
        }
        Ok(proc)
    }

    /// Where it stands.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Units of this kernel.
    pub fn constants(&self) -> Constants {
        self.constants
    }

    /// A file beneath the root, at most `limit` bytes of it.
    ///
    /// # Errors
    /// `Gone`, `Denied`, or as the kernel says.
    pub fn file(&mut self, path: &str, limit: usize) -> Result<&[u8], KernelError> {
        self.buffer.clear();
        read_into(&self.directory, path, limit, &mut self.buffer)?;
        Ok(&self.buffer)
    }

    fn small(&mut self, pid: u32, name: &str) -> Result<&[u8], KernelError> {
        self.name(pid, name);
        self.buffer.clear();
        read_into(&self.directory, &self.path, SMALL, &mut self.buffer)?;
        Ok(&self.buffer)
    }

    fn name(&mut self, pid: u32, name: &str) {
        self.path.clear();
        // Writing to a String does not fail.
        let _ = write!(self.path, "{pid}/{name}");
    }

    /// Since the machine started.
    ///
    /// # Errors
    /// As [`Proc::file`]; `Malformed` when it is no number.
    pub fn uptime(&mut self) -> Result<Duration, KernelError> {
        let text = self.file("uptime", 128)?;
        stat::parse_uptime(text).ok_or(KernelError::Malformed("/proc/uptime"))
    }

    /// The pid that was given last, to a process or a thread: while it stays the same, no process was born.
    /// `None` where `/proc/loadavg` does not tell, and of a `/proc` mounted elsewhere: the file speaks of the reader's
    /// own PID namespace, whatever tree it stands in.
    pub fn last_pid(&mut self) -> Option<u32> {
        if self.root != Path::new("/proc") {
            return None;
        }
        stat::parse_last_pid(self.file("loadavg", 128).ok()?)
    }

    /// All processes, in the kernel's order (rising).
    ///
    /// # Errors
    /// As [`Proc::file`].
    pub fn pids(&mut self, pids: &mut Vec<u32>) -> Result<(), KernelError> {
        let directory = rustix::fs::openat(&self.directory, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        numbered_entries(&directory, |pid| pids.push(pid))
    }

    /// `/proc/<pid>/stat`.
    ///
    /// # Errors
    /// As [`Proc::file`]; `Malformed` when it is not what proc_pid_stat(5) says.
    pub fn stat(&mut self, pid: u32) -> Result<Stat, KernelError> {
        stat::parse(self.small(pid, "stat")?).ok_or(KernelError::Malformed("/proc/<pid>/stat"))
    }

    /// Real user id.
    ///
    /// # Errors
    /// As [`Proc::stat`].
    pub fn uid(&mut self, pid: u32) -> Result<u32, KernelError> {
        status::parse_uid(self.small(pid, "status")?).ok_or(KernelError::Malformed("/proc/<pid>/status"))
    }

    /// Soft limit of open descriptors; `None` when there is none.
    ///
    /// # Errors
    /// As [`Proc::stat`].
    pub fn descriptor_limit(&mut self, pid: u32) -> Result<Option<u64>, KernelError> {
        limits::parse_open_files(self.small(pid, "limits")?).ok_or(KernelError::Malformed("/proc/<pid>/limits"))
    }

    /// Proportional set size in bytes. It walks the process's pages: microseconds to tens of milliseconds.
    ///
    /// # Errors
    /// As [`Proc::stat`]; `Gone` also of a process without memory (a zombie, a kernel thread).
    pub fn pss(&mut self, pid: u32) -> Result<u64, KernelError> {
        memory::parse_pss(self.small(pid, "smaps_rollup")?).ok_or(KernelError::Malformed("/proc/<pid>/smaps_rollup"))
    }

    /// Resident pages that no file is behind.
    ///
    /// # Errors
    /// As [`Proc::stat`].
    pub fn anonymous_pages(&mut self, pid: u32) -> Result<u64, KernelError> {
        memory::parse_anonymous_pages(self.small(pid, "statm")?).ok_or(KernelError::Malformed("/proc/<pid>/statm"))
    }

    /// The text of `/proc/<pid>/cgroup`.
    ///
    /// # Errors
    /// As [`Proc::file`].
    pub fn cgroup(&mut self, pid: u32) -> Result<&[u8], KernelError> {
        self.small(pid, "cgroup")
    }

    /// How many descriptors are open. Since Linux 6.2 one call, and no right needed; before, they are counted.
    ///
    /// # Errors
    /// As [`Proc::file`].
    pub fn descriptor_count(&mut self, pid: u32) -> Result<u64, KernelError> {
        self.name(pid, "fd");
        let told = rustix::fs::statat(&self.directory, &self.path, AtFlags::empty())?.st_size;
        match u64::try_from(told) {
            Ok(count) if count > 0 => Ok(count),
            _ => {
                let mut count = 0;
                numbered_entries(&self.open_directory(pid, "fd")?, |_| count += 1)?;
                Ok(count)
            }
        }
    }

    /// Appends the descriptors of `pid` that are sockets. One `readlink` each, so a process with thousands of them
    /// takes milliseconds.
    ///
    /// # Errors
    /// As [`Proc::file`]. With `CAP_DAC_READ_SEARCH` alone the directory of another user's process may be listed and no
    /// link in it read: that is `Denied` too, not a process without sockets.
    pub fn sockets(&mut self, pid: u32, found: &mut Vec<Descriptor>) -> Result<(), KernelError> {
        let directory = self.open_directory(pid, "fd")?;
        let mut target = [0; 64];
        let mut denied = false;
        numbered_entries(&directory, |fd| {
            self.path.clear();
            let _ = write!(self.path, "{fd}");
            match rustix::fs::readlinkat_raw(&directory, &self.path, &mut target[..]) {
                Ok(length) => {
                    found.extend(descriptors::parse_socket(&target[..length]).map(|inode| Descriptor { fd, inode }));
                }
                Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => denied = true,
                // A descriptor may be closed while the directory is read.
                Err(_) => (),
            }
        })?;
        if denied { Err(KernelError::Denied) } else { Ok(()) }
    }

    /// Appends the descriptors of `pid` that lead to a file whose path `is_wanted`. A path that is longer than 1 KiB is
    /// passed over, and so is a file that was deleted.
    ///
    /// # Errors
    /// As [`Proc::sockets`].
    pub fn files(
        &mut self,
        pid: u32,
        is_wanted: impl Fn(&[u8]) -> bool,
        found: &mut Vec<(u32, Vec<u8>)>,
    ) -> Result<(), KernelError> {
        let directory = self.open_directory(pid, "fd")?;
        let mut target = [0; 1024];
        let mut denied = false;
        numbered_entries(&directory, |fd| {
            self.path.clear();
            let _ = write!(self.path, "{fd}");
            match rustix::fs::readlinkat_raw(&directory, &self.path, &mut target[..]) {
                Ok(length) if length == target.len() => (),
                Ok(length) if target[0] == b'/' && is_wanted(&target[..length]) => {
                    found.push((fd, target[..length].to_vec()));
                }
                Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => denied = true,
                Ok(_) | Err(_) => (),
            }
        })?;
        if denied { Err(KernelError::Denied) } else { Ok(()) }
    }

    /// Opens what a descriptor of `pid` leads to, for reading and only if it is a plain file. It is the same file,
    /// whatever stands at its path now, and in whatever namespace.
    ///
    /// # Errors
    /// As [`Proc::file`]; `Absent` when it is no plain file, `Gone` when the descriptor became another meanwhile.
    pub fn open_file_at(&mut self, pid: u32, fd: u32) -> Result<std::fs::File, KernelError> {
        self.name(pid, "fd/");
        let _ = write!(self.path, "{fd}");
        let stat = rustix::fs::statat(&self.directory, &self.path, AtFlags::empty())?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(KernelError::Absent);
        }
        // A file on a dead network mount must not hold the reader up when it is opened.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::openat(&self.directory, &self.path, flags, Mode::empty())?;
        // Its owner may have put something else there between the two.
        let opened = rustix::fs::fstat(&file)?;
        match (opened.st_dev, opened.st_ino) == (stat.st_dev, stat.st_ino) {
            true => Ok(file.into()),
            false => Err(KernelError::Gone),
        }
    }

    /// Whether a descriptor of `pid` was opened for writing (`/proc/<pid>/fdinfo/<fd>`, `flags`).
    ///
    /// # Errors
    /// As [`Proc::file`].
    pub fn is_writable(&mut self, pid: u32, fd: u32) -> Result<bool, KernelError> {
        let bytes = self.small(pid, &format!("fdinfo/{fd}"))?;
        descriptors::parse_writable(bytes).ok_or(KernelError::Malformed("fdinfo"))
    }

    /// The short name of a process (`/proc/<pid>/comm`), at most 16 bytes.
    ///
    /// # Errors
    /// As [`Proc::file`].
    pub fn short_name(&mut self, pid: u32) -> Result<String, KernelError> {
        Ok(String::from_utf8_lossy(self.small(pid, "comm")?).trim_end().to_owned())
    }

    /// The inode of the socket that one descriptor of `pid` is; `None` when it is none, or may not be read.
    pub fn socket_at(&mut self, pid: u32, fd: u32) -> Option<u64> {
        self.name(pid, "fd/");
        let _ = write!(self.path, "{fd}");
        let mut target = [0; 64];
        let length = rustix::fs::readlinkat_raw(&self.directory, &self.path, &mut target[..]).ok()?;
        descriptors::parse_socket(&target[..length])
    }

    fn open_directory(&mut self, pid: u32, name: &str) -> Result<OwnedFd, KernelError> {
        self.name(pid, name);
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, &self.path, flags, Mode::empty())?)
    }

    /// The command line: arguments, each ended by a zero byte. It may hold secrets, so the buffer is wiped when dropped.
    ///
    /// # Errors
    /// As [`Proc::file`].
    pub fn command_line(&mut self, pid: u32) -> Result<Zeroizing<Vec<u8>>, KernelError> {
        self.secret(pid, "cmdline")
    }

    /// The environment the process began with, to be searched by [`strings::value_of`]. Wiped when dropped.
    ///
    /// # Errors
    /// As [`Proc::file`]; another user's needs `CAP_SYS_PTRACE` and `CAP_DAC_READ_SEARCH`.
    pub fn environment(&mut self, pid: u32) -> Result<Zeroizing<Vec<u8>>, KernelError> {
        self.secret(pid, "environ")
    }

    fn secret(&mut self, pid: u32, name: &str) -> Result<Zeroizing<Vec<u8>>, KernelError> {
        self.name(pid, name);
        // Room for all of it at once: a buffer that grows leaves copies behind that nobody wipes.
        let mut read = Zeroizing::new(Vec::with_capacity(STRINGS));
        read_into(&self.directory, &self.path, STRINGS, &mut read)?;
        if read.len() == STRINGS {
            let whole = read.iter().rposition(|byte| *byte == 0).map_or(0, |last| last + 1);
            read[whole..].zeroize();
            read.truncate(whole);
        }
        Ok(read)
    }
}

/// Appends at most `limit` bytes of a file; a reading never follows a link out of the tree's own files, for `/proc`
/// has none among those that are read here.
fn read_into(directory: &OwnedFd, path: &str, limit: usize, buffer: &mut Vec<u8>) -> Result<(), KernelError> {
    let file = rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?;
    buffer.reserve(limit.min(4096));
    while buffer.len() < limit {
        let at = buffer.len();
        let room = (limit - at).min((buffer.capacity() - at).max(4096));
        buffer.resize(at + room, 0);
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer[at..]));
        buffer.truncate(at + *read.as_ref().unwrap_or(&0));
        let read = read?;
        // The kernel makes each of the small files in one piece: what comes short of a page is its end.
        if read == 0 || (at == 0 && read < room.min(4096)) {
            break;
        }
    }
    Ok(())
}

/// Calls `each` for every entry of a directory whose name is a number.
fn numbered_entries(directory: &OwnedFd, mut each: impl FnMut(u32)) -> Result<(), KernelError> {
    let mut room = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(directory, room.spare_capacity_mut());
    for _ in 0..MAX_ENTRIES {
        match entries.next() {
            Some(entry) => {
                if let Some(number) = stat::parse_number(entry?.file_name().to_bytes()) {
                    each(number);
                }
            }
            None => return Ok(()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
