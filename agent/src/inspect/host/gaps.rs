//! What could not be read, and which checks are blind for it.

use std::collections::{BTreeMap, HashSet};

use super::Gap;
use crate::discover::TargetKey;
use crate::discover::processes::Processes;
use crate::inspect::Reason;
use crate::kernel::KernelError;
use crate::kernel::owners::Owners;

/// Gaps by user that are told one by one.
const MAX_GAPS: usize = 16;

/// Checks that need to see sockets.
pub(super) const POOL_CHECKS: &[&str] = &[
    "pool.exhausted",
    "pool.utilization",
    "pool.close_wait",
    "pool.churn",
    "pool.absent",
    "pool.half_open",
    "pool.keepalive",
    "pool.connect_stuck",
    "pool.storm",
    "pool.ghost",
];
/// Checks that need to see a process.
pub(super) const PROCESS_CHECKS: &[&str] = &["proc.memory", "proc.restart", "proc.gone", "proc.zombie", "fd.limit"];
/// Checks that need to know whose a pool is.
pub(super) const OWNER_CHECKS: &[&str] =
    &["pool.utilization", "pool.storm", "proc.memory", "proc.restart", "proc.gone", "proc.zombie", "fd.limit"];
/// All of this inspector's.
pub(super) const ALL_CHECKS: &[&str] = &[
    "pool.exhausted",
    "pool.utilization",
    "pool.close_wait",
    "pool.churn",
    "pool.absent",
    "pool.half_open",
    "pool.keepalive",
    "pool.connect_stuck",
    "pool.storm",
    "pool.ghost",
    "proc.memory",
    "proc.restart",
    "proc.gone",
    "proc.zombie",
    "fd.limit",
];

pub(super) fn refused(error: &KernelError) -> Reason {
    match error {
        KernelError::Denied => Reason::Denied("sockets over NETLINK_SOCK_DIAG".into()),
        KernelError::Malformed(what) => Reason::Malformed((*what).to_owned()),
        _ => Reason::Absent("sockets over NETLINK_SOCK_DIAG".into()),
    }
}

/// Why some connections are left out, when some are.
pub(super) fn cut(count: usize) -> Option<Gap> {
    let what = format!("more than 65536 connections to watched endpoints; {count} are left out");
    (count > 0).then(|| Gap { checks: POOL_CHECKS, target: TargetKey::agent(), reason: Reason::Absent(what) })
}

pub(super) fn no_unix(error: &KernelError) -> Reason {
    match error {
        KernelError::Denied => Reason::Denied("unix sockets over NETLINK_SOCK_DIAG".into()),
        KernelError::Malformed(what) => Reason::Malformed((*what).to_owned()),
        _ => Reason::Absent("unix sockets over NETLINK_SOCK_DIAG".into()),
    }
}

pub(super) fn no_proc(error: &KernelError) -> Reason {
    match error {
        KernelError::Denied => Reason::Denied("/proc".into()),
        _ => Reason::Absent("/proc".into()),
    }
}

/// Users of whom at least one process does not let us look into it.
pub(super) fn denied_users(owners: &Owners, processes: &Processes) -> HashSet<u32> {
    owners.denied().filter_map(|pid| Some(processes.get(pid)?.uid)).collect()
}

/// Why the holder of a socket of user `uid` is not visible: refused where processes of that user refuse us, else there
/// is no such process here.
pub(super) fn why_hidden(uid: u32, denied: &HashSet<u32>) -> Reason {
    if denied.contains(&uid) && uid == rustix::process::geteuid().as_raw() {
        // Whoever runs as that user may look into its processes, unless they forbid it.
        Reason::Denied(format!("the descriptors of a process of uid {uid} that made itself non-dumpable"))
    } else if denied.contains(&uid) {
        Reason::Denied(format!("the descriptors of processes of uid {uid}"))
    } else {
        Reason::Elsewhere("the processes that hold these sockets".into())
    }
}

/// Users with sockets whose owners we do not see.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    /// Whether a connection of a pool is among them; else they only listen.
    by_uid: BTreeMap<u32, bool>,
}

impl Hidden {
    pub(super) fn listening(&mut self, uid: u32) {
        self.by_uid.entry(uid).or_insert(false);
    }

    pub(super) fn connected(&mut self, uid: u32) {
        self.by_uid.insert(uid, true);
    }

    /// One gap for each user that refuses us, and one for all those that are in another PID namespace. A listening
    /// socket of uid 0 that no process holds is the kernel's own (NFS): no gap. True when some are elsewhere.
    pub(super) fn tell(self, denied: &HashSet<u32>, gaps: &mut Vec<Gap>) -> bool {
        let all = self.by_uid.len();
        let mut is_elsewhere = false;
        for (uid, has_pool) in self.by_uid.into_iter().take(MAX_GAPS) {
            if !has_pool && uid == 0 && !denied.contains(&uid) {
                continue;
            }
            let reason = why_hidden(uid, denied);
            is_elsewhere |= matches!(reason, Reason::Elsewhere(_));
            // What a pool's sockets tell is told of them all the same; its limit and its process are not known.
            let checks = if has_pool { OWNER_CHECKS } else { PROCESS_CHECKS };
            let gap = Gap { checks, target: TargetKey::agent(), reason };
            if !gaps.contains(&gap) {
                gaps.push(gap);
            }
        }
        if all > MAX_GAPS {
            let reason = Reason::Denied(format!("the descriptors of processes of {} further users", all - MAX_GAPS));
            gaps.push(Gap { checks: OWNER_CHECKS, target: TargetKey::agent(), reason });
        }
        is_elsewhere
    }
}
