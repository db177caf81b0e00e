//! The floor: rows as the kernel gives them, no opinion.
//!
//! Sockets come over netlink ([`sock_diag`]) or, where that is refused, from `/proc/net` ([`proc_net`]); processes from
//! `/proc` ([`proc`]) and their memory limits from the cgroup tree ([`cgroup`]). [`owners`] joins the two: which process
//! holds which socket on which descriptor; [`own`] is what this process takes itself, [`sockstat`] the number of all sockets. [`netns`] tells network namespaces apart and looks into others, [`pidfd`]
//! hears the end of a process. [`reader`] is who has the rights for all of it. In every module the parser is a pure function of bytes and separate from the reading.

use std::io;

pub mod cgroup;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub mod netns;
pub mod own;
pub mod owners;
pub mod pidfd;
pub mod proc;
pub mod proc_net;
pub mod reader;
pub mod sock_diag;
pub mod socket;
pub mod sockstat;
pub mod unix_path;

/// Why the kernel did not give a row.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process, or the thing asked for, is not there (any more): processes end, and that is no fault.
    #[error("it is gone")]
    Gone,
    /// A right is missing.
    #[error("may not be read")]
    Denied,
    /// This kernel does not have it.
    #[error("not offered by this kernel")]
    Absent,
    /// The kernel answered with something else than its documentation says; the text names what.
    #[error("not understood: {0}")]
    Malformed(&'static str),
    /// Anything else, by its error number.
    #[error("cannot be read")]
    Io(#[source] io::Error),
}

impl From<rustix::io::Errno> for KernelError {
    fn from(errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        match errno {
            Errno::NOENT | Errno::SRCH | Errno::NOTDIR => Self::Gone,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            Errno::NOSYS | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => Self::Absent,
            other => Self::Io(other.into()),
        }
    }
}

impl From<io::Error> for KernelError {
    fn from(error: io::Error) -> Self {
        match rustix::io::Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None => Self::Io(error),
        }
    }
}
