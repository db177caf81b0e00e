//! Which process holds which socket, on which descriptor.
//!
//! The kernel does not tell it in a dump: it has to be looked up in `/proc/<pid>/fd`, one `readlink` each. So answers
//! are kept by cookie, and only new sockets are looked for: first among the processes that hold a socket of the same kin
//! and those that are new, at last among all, and that no more often than one hundredth of a core pays.
//! Once a minute everything is read again: a fork, a descriptor passed on, a changed user.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::KernelError;
use super::own::thread_time;
use super::proc::Proc;
use super::socket::ByNumber;

/// Everything is read again after this.
const REFRESH: Duration = Duration::from_secs(60);
/// A socket that was not found twice is looked for again after this.
const RETRY: Duration = Duration::from_secs(10);
/// A search among all processes, or among those that serve, is followed by a pause of so many times what it cost.
const PAUSE: u32 = 100;

/// A descriptor of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// Start of the process in clock ticks since boot: with the pid it names one life. First, so that the oldest
    /// holder sorts first: of a parent and the children that inherited a socket, the parent.
    pub start: u64,
    /// The process.
    pub pid: u32,
    /// The descriptor's number.
    pub fd: u32,
}

/// A socket whose holders are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Identity.
    pub cookie: u64,
    /// Inode; not 0.
    pub inode: u64,
    /// By which its likely holders are guessed.
    pub kin: Kin,
    /// Whether it is worth a search among all processes when none of the likely ones holds it.
    pub is_thorough: bool,
}

/// What sockets of one process have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kin {
    /// They lead to one endpoint.
    To(SocketAddr),
    /// They belong to one that listens on this port, whatever its address: itself, and what it accepted.
    At(u16),
    /// They lead to the unix socket with this inode.
    ToPath(u64),
    /// They were accepted by it.
    AtPath(u64),
}

impl Kin {
    const fn is_served(self) -> bool {
        matches!(self, Self::At(_) | Self::AtPath(_))
    }
}

/// A process that may hold sockets.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// The process.
    pub pid: u32,
    /// Its start.
    pub start: u64,
}

/// What is known of a socket's holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held<'a> {
    /// These, the oldest process first.
    By(&'a [Holder]),
    /// Not looked for thoroughly yet.
    NotYet,
    /// No process that may be read holds it.
    ByNobodySeen,
}

/// The answers so far.
#[derive(Debug, Default)]
pub struct Owners {
    known: ByNumber<Entry>,
    /// Processes whose descriptors were read, or refused, by pid.
    visited: HashMap<u32, Visit>,
    look: u64,
    next_refresh: Option<Duration>,
    next_wide: Duration,
    next_serving: Duration,
}

#[derive(Debug)]
struct Entry {
    holders: Vec<Holder>,
    inode: u64,
    kin: Kin,
    is_thorough: bool,
    look: u64,
    misses: u8,
    retry: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Visit {
    start: u64,
    denied: bool,
}

impl Owners {
    /// Looks for the holders of those of `wanted` that are new, and forgets sockets that are not wanted any more.
    /// Costs a look-up per socket when nothing is new.
    pub fn look(&mut self, proc: &mut Proc, wanted: &[Wanted], candidates: &[Candidate], now: Duration) {
        self.look += 1;
        let mut missing = ByNumber::default();
        for one in wanted {
            let entry = self.known.entry(one.cookie).or_insert_with(|| Entry {
                holders: Vec::new(),
                inode: one.inode,
                kin: one.kin,
                is_thorough: one.is_thorough,
                look: 0,
                misses: 0,
                retry: Duration::ZERO,
            });
            entry.look = self.look;
            if entry.holders.is_empty() && entry.retry <= now {
                missing.insert(one.inode, one.cookie);
            }
        }
        if self.known.len() > wanted.len() {
            let look = self.look;
            self.known.retain(|_, entry| entry.look == look);
        }
        if self.next_refresh.is_none_or(|due| due <= now) {
            self.refresh(proc, candidates, now);
        } else if !missing.is_empty() {
            self.find(proc, missing, candidates, now);
        }
    }

    /// What is known of one socket.
    pub fn of(&self, cookie: u64) -> Held<'_> {
        match self.known.get(&cookie) {
            Some(entry) if !entry.holders.is_empty() => Held::By(&entry.holders),
            Some(entry) if entry.misses >= 2 => Held::ByNobodySeen,
            _ => Held::NotYet,
        }
    }

    /// Whether the descriptors of a process were refused to us.
    pub fn is_denied(&self, pid: u32, start: u64) -> bool {
        self.visited.get(&pid).is_some_and(|visit| visit.start == start && visit.denied)
    }

    /// Processes whose descriptors are refused to us.
    pub fn denied(&self) -> impl Iterator<Item = u32> + '_ {
        self.visited.iter().filter(|(_, visit)| visit.denied).map(|(pid, _)| *pid)
    }

    /// What was found of a socket is not so any more: its holders are looked for anew.
    pub fn doubt(&mut self, cookie: u64) {
        self.known.remove(&cookie);
    }

    /// A process that ended holds nothing; what it held is looked for anew.
    pub fn forget(&mut self, pid: u32) {
        self.visited.remove(&pid);
        for entry in self.known.values_mut() {
            let before = entry.holders.len();
            entry.holders.retain(|holder| holder.pid != pid);
            if entry.holders.is_empty() && before > 0 {
                entry.misses = 0;
            }
        }
    }

    fn refresh(&mut self, proc: &mut Proc, candidates: &[Candidate], now: Duration) {
        self.next_refresh = Some(now + REFRESH);
        self.visited.clear();
        let mut by_inode = ByNumber::default();
        for (cookie, entry) in &mut self.known {
            entry.holders.clear();
            by_inode.insert(entry.inode, *cookie);
        }
        if by_inode.is_empty() {
            return;
        }
        for candidate in candidates {
            self.visit(proc, *candidate, &by_inode);
        }
        self.settle(by_inode.values(), now);
    }

    fn find(&mut self, proc: &mut Proc, mut missing: ByNumber<u64>, candidates: &[Candidate], now: Duration) {
        let kin: HashSet<Kin> =
            missing.values().filter_map(|cookie| self.known.get(cookie)).map(|entry| entry.kin).collect();
        let (mut clients, mut serving) = (HashSet::new(), HashSet::new());
        for entry in self.known.values().filter(|entry| kin.contains(&entry.kin)) {
            let likely = if entry.kin.is_served() { &mut serving } else { &mut clients };
            likely.extend(entry.holders.iter().map(|holder| holder.pid));
        }
        let mut searched: Vec<u64> = missing.values().copied().collect();
        let mut visited = HashSet::new();
        for candidate in candidates {
            let is_new = self.visited.get(&candidate.pid).is_none_or(|visit| visit.start != candidate.start);
            if is_new || clients.contains(&candidate.pid) {
                self.visit(proc, *candidate, &missing);
                visited.insert(candidate.pid);
            }
        }
        missing.retain(|_, cookie| self.is_without_holder(*cookie));
        // A server that forks for each connection was found among the new ones; one that takes a hundred connections a
        // second would have its whole table read at each look.
        let is_served = |this: &Self, cookie: u64| this.known.get(&cookie).is_some_and(|it| it.kin.is_served());
        if missing.values().any(|cookie| is_served(self, *cookie)) {
            if now < self.next_serving {
                let is_left = |cookie: &u64| is_served(self, *cookie) && self.is_without_holder(*cookie);
                searched.retain(|cookie| !is_left(cookie));
                missing.retain(|_, cookie| !is_left(cookie));
            } else {
                let began = thread_time();
                for candidate in candidates {
                    if serving.contains(&candidate.pid) && visited.insert(candidate.pid) {
                        self.visit(proc, *candidate, &missing);
                    }
                }
                self.next_serving = now + thread_time().saturating_sub(began) * PAUSE;
            }
        }
        missing.retain(|_, cookie| self.known.get(cookie).is_some_and(|it| it.holders.is_empty() && it.is_thorough));
        if !missing.is_empty() {
            if now < self.next_wide {
                // Those that are still missing have not been looked for everywhere: no miss.
                let left: HashSet<u64> = missing.values().copied().collect();
                searched.retain(|cookie| !left.contains(cookie));
            } else {
                let began = thread_time();
                for candidate in candidates {
                    if !visited.contains(&candidate.pid) && !self.is_denied(candidate.pid, candidate.start) {
                        self.visit(proc, *candidate, &missing);
                    }
                }
                self.next_wide = now + thread_time().saturating_sub(began) * PAUSE;
            }
        }
        self.settle(searched.iter(), now);
    }

    fn is_without_holder(&self, cookie: u64) -> bool {
        self.known.get(&cookie).is_some_and(|entry| entry.holders.is_empty())
    }

    /// Notes the descriptors of one process that are among the sought, and that it was visited.
    fn visit(&mut self, proc: &mut Proc, candidate: Candidate, sought: &ByNumber<u64>) {
        let mut found = Vec::new();
        let denied = match proc.sockets(candidate.pid, &mut found) {
            Ok(()) => false,
            Err(KernelError::Denied) => true,
            // It ended meanwhile, or its table could not be read: the next look sees whether it is there.
            Err(_) => return,
        };
        self.visited.insert(candidate.pid, Visit { start: candidate.start, denied });
        for descriptor in found {
            if let Some(entry) = sought.get(&descriptor.inode).and_then(|cookie| self.known.get_mut(cookie)) {
                let holder = Holder { pid: candidate.pid, start: candidate.start, fd: descriptor.fd };
                if !entry.holders.contains(&holder) {
                    entry.holders.push(holder);
                }
            }
        }
    }

    /// After a search among all: found ones in order, the others one miss further.
    fn settle<'a>(&mut self, searched: impl Iterator<Item = &'a u64>, now: Duration) {
        for cookie in searched {
            let Some(entry) = self.known.get_mut(cookie) else { continue };
            if entry.holders.is_empty() {
                entry.misses = entry.misses.saturating_add(1);
                if entry.misses >= 2 {
                    entry.retry = now + RETRY;
                }
            } else {
                entry.holders.sort_unstable();
                entry.misses = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    const REMOTE: &str = "10.0.0.5:5432";

    fn holds(root: &Path, pid: u32, fds: &[(u32, u64)]) {
        let directory = root.join(format!("{pid}/fd"));
        std::fs::create_dir_all(&directory).unwrap();
        for (fd, inode) in fds {
            symlink(format!("socket:[{inode}]"), directory.join(fd.to_string())).unwrap();
        }
    }

    fn wanted(numbers: &[u64]) -> Vec<Wanted> {
        let remote = REMOTE.parse().unwrap();
        let to =
            |number: &u64| Wanted { cookie: *number, inode: *number + 1000, kin: Kin::To(remote), is_thorough: true };
        numbers.iter().map(to).collect()
    }

    fn candidates(pids: &[u32]) -> Vec<Candidate> {
        pids.iter().map(|pid| Candidate { pid: *pid, start: u64::from(*pid) * 10 }).collect()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_new_socket_is_found_in_its_process_and_a_copy_is_told() {
        let root = tempfile::tempdir().unwrap();
        holds(root.path(), 7, &[(3, 1001), (9, 1001), (4, 5)]);
        let mut proc = Proc::open(root.path()).unwrap();
        let mut owners = Owners::default();
        owners.look(&mut proc, &wanted(&[1]), &candidates(&[7]), at(0));
        let holder = |fd| Holder { pid: 7, start: 70, fd };
        assert_eq!(owners.of(1), Held::By(&[holder(3), holder(9)]));
        assert_eq!(owners.of(2), Held::NotYet);

        holds(root.path(), 7, &[(11, 1002)]);
        owners.look(&mut proc, &wanted(&[1, 2]), &candidates(&[7]), at(1));
        assert_eq!(owners.of(2), Held::By(&[holder(11)]));
        owners.look(&mut proc, &wanted(&[2]), &candidates(&[7]), at(2));
        assert_eq!(owners.of(1), Held::NotYet, "what is not wanted any more is forgotten");
    }

    #[test]
    fn a_socket_that_nobody_holds_is_known_as_such_only_after_two_searches() {
        let root = tempfile::tempdir().unwrap();
        holds(root.path(), 7, &[]);
        let mut proc = Proc::open(root.path()).unwrap();
        let mut owners = Owners::default();
        owners.look(&mut proc, &wanted(&[1]), &candidates(&[7]), at(0));
        assert_eq!(owners.of(1), Held::NotYet);
        owners.look(&mut proc, &wanted(&[1]), &candidates(&[7]), at(1));
        assert_eq!(owners.of(1), Held::ByNobodySeen);
        holds(root.path(), 7, &[(3, 1001)]);
        owners.look(&mut proc, &wanted(&[1]), &candidates(&[7]), at(5));
        assert_eq!(owners.of(1), Held::ByNobodySeen, "it is looked for again after ten seconds");
        owners.look(&mut proc, &wanted(&[1]), &candidates(&[7]), at(11));
        assert!(matches!(owners.of(1), Held::By(_)));
    }

    #[test]
    fn a_fork_is_seen_within_a_minute_and_the_parent_comes_first() {
        let root = tempfile::tempdir().unwrap();
        holds(root.path(), 8, &[(3, 1001)]);
        let mut proc = Proc::open(root.path()).unwrap();
        let mut owners = Owners::default();
        owners.look(&mut proc, &wanted(&[1]), &candidates(&[8]), at(0));
        holds(root.path(), 9, &[(3, 1001)]);
        owners.look(&mut proc, &wanted(&[1]), &candidates(&[8, 9]), at(59));
        assert!(matches!(owners.of(1), Held::By([_])));
        owners.look(&mut proc, &wanted(&[1]), &candidates(&[9, 8]), at(60));
        assert!(matches!(owners.of(1), Held::By([Holder { pid: 8, .. }, Holder { pid: 9, .. }])));
        owners.forget(8);
        assert!(matches!(owners.of(1), Held::By([Holder { pid: 9, .. }])));
        owners.forget(9);
        assert_eq!(owners.of(1), Held::NotYet);
    }

    #[test]
    fn an_accepted_socket_is_sought_where_its_listener_is_held_and_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        let at_listener =
            |number: u64, is_thorough| Wanted { cookie: number, inode: number + 1000, kin: Kin::At(8000), is_thorough };
        holds(root.path(), 7, &[(3, 1001)]);
        holds(root.path(), 8, &[]);
        let mut proc = Proc::open(root.path()).unwrap();
        let mut owners = Owners::default();
        let all = candidates(&[7, 8]);
        owners.look(&mut proc, &[at_listener(1, true)], &all, at(0));
        holds(root.path(), 7, &[(4, 1002)]);
        holds(root.path(), 8, &[(9, 1003)]);
        let wanted = [at_listener(1, true), at_listener(2, false), at_listener(3, false)];
        owners.look(&mut proc, &wanted, &all, at(1));
        assert_eq!(owners.of(2), Held::By(&[Holder { pid: 7, start: 70, fd: 4 }]));
        assert_eq!(owners.of(3), Held::NotYet);
        owners.look(&mut proc, &wanted, &all, at(10));
        assert_eq!(owners.of(3), Held::ByNobodySeen, "the process that holds it is no likely one");
        owners.look(&mut proc, &[at_listener(1, true), at_listener(3, true)], &all, at(60));
        assert!(matches!(owners.of(3), Held::By(_)), "once a minute all are read");
    }
}
