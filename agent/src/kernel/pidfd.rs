//! The end of a process, heard when it happens.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::KernelError;

/// A watch on one process. It holds one descriptor of ours.
#[derive(Debug)]
pub struct Watch {
    pidfd: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Begins to watch the process that has `pid` now. Who has read its start time before must read it again after:
    /// if it is still the same, the watch is on that life. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// `Gone` when there is no such process, `Absent` before Linux 5.3, `Denied` or `Io` where a sandbox or the
    /// limit of our own descriptors forbids it.
    pub fn begin(pid: u32) -> Result<Self, KernelError> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(KernelError::Gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for descriptors that are closed or swapped under the registration; this \
                      one is owned by the AsyncFd alone, which deregisters before it closes"
        )]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { pidfd })
    }

    /// Ready once the process has ended, that is when all of its threads have, whether its parent waited or not.
    pub async fn ended(&self) {
        // Only the runtime's end makes this an error, and then nobody listens any more.
        let _ = self.pidfd.readable().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[tokio::test]
    async fn the_end_of_a_child_is_heard() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let watch = Watch::begin(child.id()).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), watch.ended()).await;
        assert!(early.is_err(), "it still runs");
        child.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(10), watch.ended()).await.unwrap();
        child.wait().unwrap();
        assert!(matches!(Watch::begin(child.id()), Err(KernelError::Gone)));
    }
}
