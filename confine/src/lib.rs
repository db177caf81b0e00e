//! What a thread gives up before it hears from anybody, for itself and every thread that it starts from then on.
//!
//! [`everything`] is for whoever reads what a network sends: no capability, no new one by `execve`, no system call that
//! looks into other processes, mounts, or changes the kernel (seccomp), and no file beyond those it names (Landlock).
//! [`all_but`] is for whoever has to look into other processes: it keeps the named capabilities and gives up the network.
//!
//! Linux holds all of this per thread. Threads share their memory and descriptors, so this is no wall against foreign code
//! that runs in one of them; it stops what a parser can be talked into: a path that leads elsewhere, a file of another
//! user, a program that is started. A kernel without seccomp or Landlock gives less, and [`Confined`] says so.

mod capabilities;
mod files;
mod system_calls;

use std::fmt;
use std::path::PathBuf;

pub use rustix::thread::CapabilitySet;

pub use capabilities::{held, named};

/// Files that stay within reach: what stands at each path when it is given up, and everything beneath.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// May be read.
    pub read: Vec<PathBuf>,
    /// May be read, written, made and removed.
    pub write: Vec<PathBuf>,
}

impl Paths {
    /// What every program needs that looks names up and speaks TLS: `/etc`, libraries, time zones, where resolvers keep
    /// their addresses, and the devices for nothing and for chance.
    pub fn of_the_system() -> Self {
        let read = [
            "/etc",
            "/usr",
            "/lib",
            "/lib64",
            "/nix/store",
            "/gnu/store",
            "/run/systemd/resolve",
            "/run/resolvconf",
            "/run/NetworkManager",
            "/dev/urandom",
            "/dev/random",
        ];
        let mut it = Self { read: read.map(PathBuf::from).into(), write: vec!["/dev/null".into()] };
        // Elsewhere on some systems: `/run/netconfig`, `/mnt/wsl`.
        it.and_beside(std::path::Path::new("/etc/resolv.conf"));
        it
    }

    /// And the directory of this file, and of that to which it leads: secrets are renewed by renaming beside them. So are
    /// directories of them, by turning a link in the path to another: the directory of such a link, too, unless it is one
    /// of the top (`/var/run` leads to `/run`).
    pub fn and_beside(&mut self, file: &std::path::Path) {
        let real = file.canonicalize().ok();
        let links = file.ancestors().skip(1).filter(|it| it.is_symlink() && it.components().count() > 3);
        let found = [Some(file), real.as_deref()].into_iter().flatten().chain(links);
        self.read.extend(found.filter_map(std::path::Path::parent).map(PathBuf::from));
    }
}

/// What was given up, and what the kernel did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confined {
    /// What is left of the capabilities.
    pub capabilities: CapabilitySet,
    /// How many system calls are refused; why none is.
    pub system_calls: Result<usize, String>,
    /// How far Landlock holds; `None` where nothing was to be given up.
    pub files: Option<Files>,
}

/// How far files are out of reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// All but those that were named.
    All,
    /// All but those, and some acts upon them that an older kernel does not know to refuse.
    Most,
    /// None, for this reason.
    None(String),
}

impl Confined {
    /// Whether the kernel took all of it.
    pub fn is_whole(&self) -> bool {
        self.system_calls.is_ok() && matches!(self.files, None | Some(Files::All | Files::Most))
    }
}

/// `no capability, 52 system calls refused, all files but its own out of reach`.
impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match named(self.capabilities) {
            names if names.is_empty() => write!(f, "no capability")?,
            names => write!(f, "{}", names.join(" and "))?,
        }
        match &self.system_calls {
            Ok(count) => write!(f, ", {count} system calls refused")?,
            Err(why) => write!(f, ", no system call refused ({why})")?,
        }
        match &self.files {
            None => Ok(()),
            Some(Files::All) => write!(f, ", all files but its own out of reach"),
            Some(Files::Most) => write!(f, ", files but its own out of reach as far as this kernel can"),
            Some(Files::None(why)) => write!(f, ", no file out of reach ({why})"),
        }
    }
}

/// Gives up every capability, the system calls that nobody here needs, and all files but these.
pub fn everything(paths: &Paths) -> Confined {
    everything_but(CapabilitySet::empty(), paths)
}

/// The same, and these capabilities stay as far as they are held.
pub fn everything_but(kept: CapabilitySet, paths: &Paths) -> Confined {
    gain_nothing();
    let files = files::give_up(paths);
    let capabilities = capabilities::keep(kept);
    let system_calls = system_calls::refuse(system_calls::Also::EnteringNamespaces);
    Confined { capabilities, system_calls, files: Some(files) }
}

/// What root needs in a directory of somebody else, as in a container whose volume belongs to a user outside. Files that are
/// out of reach stay so.
pub fn in_the_directory_of_another(directory: &std::path::Path) -> CapabilitySet {
    use std::os::unix::fs::MetadataExt;
    let is_anothers = directory.metadata().is_ok_and(|it| it.uid() != 0);
    if rustix::process::geteuid().is_root() && is_anothers {
        CapabilitySet::DAC_OVERRIDE
    } else {
        CapabilitySet::empty()
    }
}

/// Gives up every capability but these, as far as they are held, the system calls that nobody here needs, and every kind
/// of socket but netlink's.
pub fn all_but(kept: CapabilitySet) -> Confined {
    gain_nothing();
    let capabilities = capabilities::keep(kept);
    let system_calls = system_calls::refuse(system_calls::Also::NetworkSockets);
    Confined { capabilities, system_calls, files: None }
}

/// No program that is started has more rights than who starts it (`no_new_privs`).
fn gain_nothing() {
    // Every kernel since Linux 3.5 knows it, and refuses it to nobody.
    let _ = rustix::thread::set_no_new_privs(true);
}

#[cfg(test)]
mod tests {
    use std::fs::{read, write};
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::process::Command;
    use std::thread;

    use super::*;

    /// In a thread of its own: what is given up never comes back.
    fn confined<T: Send>(act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| scope.spawn(act).join().unwrap())
    }

    #[test]
    fn who_gave_up_everything_starts_nothing_and_reads_only_its_own() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for it in [&own, &other] {
            write(it.path().join("file"), "text").unwrap();
        }
        std::os::unix::fs::symlink(other.path().join("file"), own.path().join("link")).unwrap();
        let (own, other) = (own.path(), other.path());
        confined(|| {
            let mut paths = Paths::of_the_system();
            paths.write.push(own.to_owned());
            let outcome = everything(&paths);
            assert_eq!(outcome.capabilities, CapabilitySet::empty());
            assert_eq!(held(), CapabilitySet::empty());
            if outcome.system_calls.is_ok() {
                let started = Command::new("/bin/true").status().unwrap_err();
                assert_eq!(started.kind(), ErrorKind::PermissionDenied, "{outcome}");
            }
            write(own.join("new"), "text").unwrap();
            assert_eq!(read(own.join("file")).unwrap(), b"text");
            assert!(read("/etc/passwd").is_ok(), "names are looked up");
            if outcome.files == Some(Files::All) {
                for out in [other.join("file"), own.join("link"), own.join(".."), "/proc/1/environ".into()] {
                    let refused = read(&out).unwrap_err();
                    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{}", out.display());
                }
                assert!(write(other.join("new"), "text").is_err());
            }
            // What it starts is no freer.
            let inherited = thread::spawn(move || (held(), Command::new("/bin/true").status().is_err()));
            assert_eq!(inherited.join().unwrap(), (CapabilitySet::empty(), outcome.system_calls.is_ok()));
            TcpListener::bind(("127.0.0.1", 0)).unwrap();
        });
        assert!(read(other.join("file")).is_ok(), "the others stay as they were");
    }

    #[test]
    fn secrets_are_in_reach_after_a_link_in_their_path_was_turned() {
        use std::os::unix::fs::symlink;
        let room = tempfile::tempdir().unwrap();
        for (directory, text) in [("v1", "old"), ("v2", "new")] {
            std::fs::create_dir(room.path().join(directory)).unwrap();
            write(room.path().join(directory).join("key.pem"), text).unwrap();
        }
        let link = room.path().join("current");
        symlink("v1", &link).unwrap();
        let (file, turn) = (link.join("key.pem"), std::sync::Barrier::new(2));
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut paths = Paths::of_the_system();
                paths.and_beside(&file);
                everything(&paths);
                let before = read(&file).unwrap();
                turn.wait();
                turn.wait();
                (before, read(&file).unwrap())
            });
            turn.wait();
            // Who administers is not confined.
            symlink("v2", room.path().join("next")).unwrap();
            std::fs::rename(room.path().join("next"), &link).unwrap();
            turn.wait();
            assert_eq!(reader.join().unwrap(), (b"old".to_vec(), b"new".to_vec()));
        });
    }

    #[test]
    fn who_keeps_capabilities_has_these_alone_and_no_network() {
        let before = held();
        confined(|| {
            let outcome = all_but(CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH);
            let kept = before & (CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH);
            assert_eq!((outcome.capabilities, held()), (kept, kept));
            assert!(read("/proc/self/stat").is_ok());
            if outcome.system_calls.is_ok() {
                assert_eq!(TcpListener::bind(("127.0.0.1", 0)).unwrap_err().kind(), ErrorKind::PermissionDenied);
                assert!(Command::new("/bin/true").status().is_err(), "{outcome}");
                let netlink = rustix::net::AddressFamily::NETLINK;
                assert!(rustix::net::socket(netlink, rustix::net::SocketType::RAW, None).is_ok());
            }
        });
        assert_eq!(held(), before);
    }

    #[test]
    fn what_was_given_up_is_said_and_what_was_not_as_well() {
        let it = Confined { capabilities: CapabilitySet::empty(), system_calls: Ok(52), files: Some(Files::All) };
        assert_eq!(it.to_string(), "no capability, 52 system calls refused, all files but its own out of reach");
        assert!(it.is_whole());
        let reader = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
        let it = Confined { capabilities: reader, system_calls: Err("no seccomp".into()), files: None };
        assert_eq!(it.to_string(), "CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE, no system call refused (no seccomp)");
        assert!(!it.is_whole());
    }
}
