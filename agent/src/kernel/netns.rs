//! Network namespaces: which one a process is in, and sockets that look into another.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::KernelError;
use super::sock_diag::{DestroyEvents, SockDiag};

/// The table whose inode tells namespaces apart: each has one of its own, and it may be asked for without any right,
/// unlike `/proc/<pid>/ns/net`.
const TABLE: &str = "net/tcp";

/// What tells the network namespace of a process from every other that exists now; `process` is `/proc/<pid>`. No right
/// is needed. Costs one `stat`.
///
/// # Errors
/// `Gone` of a process that ended (a zombie is in none any more).
pub fn of(process: &Path) -> Result<u64, KernelError> {
    match rustix::fs::stat(process.join(TABLE)) {
        Ok(stat) => Ok(stat.st_ino),
        Err(rustix::io::Errno::INVAL) => Err(KernelError::Gone),
        Err(error) => Err(error.into()),
    }
}

/// Opens sockets in the network namespace `wanted` of process `pid`, which work from every thread from then on. A thread
/// of its own calls `setns`, opens them and ends, so that no other thread ever leaves its namespace.
///
/// They keep the namespace alive: whoever holds them lets go once no process is in it.
///
/// # Errors
/// `Denied` without `CAP_SYS_ADMIN`, or without the right to look into the process; `Gone` when it ended, or is in another
/// namespace by now.
pub fn enter(proc_root: &Path, pid: u32, wanted: u64) -> Result<(SockDiag, DestroyEvents), KernelError> {
    let link = proc_root.join(format!("{pid}/ns/net"));
    let link = rustix::fs::open(link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let here = proc_root.join("thread-self");
    let thread = std::thread::Builder::new().name("netns".into()).spawn(move || {
        move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))?;
        if of(&here)? != wanted {
            return Err(KernelError::Gone);
        }
        Ok((SockDiag::open_elsewhere()?, DestroyEvents::open()?))
    })?;
    match thread.join() {
        Ok(opened) => opened,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_of_this_process_is_in_one_namespace_and_no_process_is_in_none() {
        let own = of(Path::new("/proc/self")).unwrap();
        assert_eq!(of(Path::new("/proc/thread-self")).unwrap(), own);
        assert!(matches!(of(Path::new("/proc/4194305")), Err(KernelError::Gone)));
    }

    #[test]
    fn without_the_right_or_the_process_nothing_is_entered() {
        let own = of(Path::new("/proc/self")).unwrap();
        match enter(Path::new("/proc"), std::process::id(), own) {
            Ok((mut diag, _)) => {
                let mut sockets = Vec::new();
                diag.dump(None, |_| true, &mut sockets).unwrap();
            }
            Err(error) => assert!(matches!(error, KernelError::Denied), "{error:?}"),
        }
        let gone = enter(Path::new("/proc"), 4_194_305, own);
        assert!(matches!(gone, Err(KernelError::Gone)), "{gone:?}");
    }
}
