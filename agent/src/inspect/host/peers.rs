//! The other ends of connections that do not leave this host.
//!
//! A server on this host shows its end in the same dump, with local and remote swapped. Its holder is a backend's pid or
//! a server's descriptor: what joins a session whose address the server hides. Other ends are sought for new connections
//! only, and are believed once they were found twice, so that a steady look reads no further row of the dump and asks
//! for no further holder.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Peer;
use crate::kernel::owners::{Held, Kin, Owners, Wanted};
use crate::kernel::proc::Proc;
use crate::kernel::socket::{ByNumber, Socket, TcpState};

/// Another end that was not found twice is sought again after this.
const RETRY: Duration = Duration::from_secs(10);

/// A holder is looked at again so soon (a server that forks for each session held the socket itself for a moment), and
/// then each minute.
const SECOND_SIGHT: Duration = Duration::from_secs(3);
const REFRESH: Duration = Duration::from_secs(60);

/// The other ends that are known, by our connection's cookie.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: ByNumber<Entry>,
    look: u64,
}

#[derive(Debug)]
struct Entry {
    far: Option<Wanted>,
    holder: Option<Peer>,
    /// Its holder was seen twice and is not asked for any more.
    is_settled: bool,
    check_at: Duration,
    port: u16,
    misses: u8,
    retry: Duration,
    look: u64,
}

impl Peers {
    /// Ports of servers on this host whose accepted sockets the next dump has to show.
    pub(super) fn sought_ports(&self, now: Duration) -> impl Iterator<Item = u16> + '_ {
        self.known.values().filter(move |entry| entry.is_sought(now)).map(|entry| entry.port)
    }

    /// Takes one look: the connections, and what was accepted on the ports for which `was_shown` holds.
    pub(super) fn look(
        &mut self,
        outbound: &[Socket],
        accepted: &[Socket],
        was_shown: impl Fn(u16) -> bool,
        now: Duration,
    ) {
        self.look += 1;
        let mut sought: HashMap<(SocketAddr, SocketAddr), u64> = HashMap::new();
        for socket in outbound.iter().filter(|socket| stays_here(socket)) {
            let port = socket.remote.port();
            let entry = self.known.entry(socket.cookie).or_insert_with(|| Entry {
                far: None,
                holder: None,
                is_settled: false,
                check_at: Duration::ZERO,
                port,
                misses: 0,
                retry: Duration::ZERO,
                look: 0,
            });
            entry.look = self.look;
            if entry.is_sought(now) && was_shown(port) {
                sought.insert((socket.local, socket.remote), socket.cookie);
            }
        }
        let look = self.look;
        self.known.retain(|_, entry| entry.look == look);
        if sought.is_empty() {
            return;
        }
        for socket in accepted {
            if let Some(cookie) = sought.remove(&(socket.remote, socket.local))
                && let Some(entry) = self.known.get_mut(&cookie)
            {
                entry.far = Some(Wanted {
                    cookie: socket.cookie,
                    inode: socket.inode,
                    kin: Kin::At(socket.local.port()),
                    is_thorough: true,
                });
            }
        }
        for cookie in sought.values() {
            if let Some(entry) = self.known.get_mut(cookie) {
                entry.misses = entry.misses.saturating_add(1);
                if entry.misses >= 2 {
                    entry.retry = now + RETRY;
                }
            }
        }
    }

    /// The other ends whose holders are asked for.
    pub(super) fn wanted(&self) -> impl Iterator<Item = Wanted> + '_ {
        self.known.values().filter(|entry| !entry.is_settled).filter_map(|entry| entry.far)
    }

    /// Takes what was found of their holders.
    pub(super) fn settle(&mut self, owners: &mut Owners, proc: &mut Proc, now: Duration) {
        for (cookie, entry) in &mut self.known {
            let Some(far) = entry.far else { continue };
            if !entry.is_settled
                && let Held::By(holders) = owners.of(far.cookie)
                // The newest: of a server that forks for each session, the child.
                && let Some(holder) = holders.last().map(|it| Peer { pid: it.pid, fd: it.fd })
                && entry.holder != Some(holder)
            {
                entry.holder = Some(holder);
                entry.check_at = now + SECOND_SIGHT;
            }
            if let Some(holder) = entry.holder
                && entry.check_at <= now
            {
                entry.is_settled = proc.socket_at(holder.pid, holder.fd) == Some(far.inode);
                if entry.is_settled {
                    // Not all in one look.
                    entry.check_at = now + REFRESH + Duration::from_secs(cookie % 16);
                } else {
                    entry.holder = None;
                    owners.doubt(far.cookie);
                }
            }
        }
    }

    /// Who holds the other end.
    pub(super) fn of(&self, cookie: u64) -> Option<Peer> {
        self.known.get(&cookie)?.holder
    }
}

impl Entry {
    fn is_sought(&self, now: Duration) -> bool {
        self.far.is_none() && self.retry <= now
    }
}

/// A connection to an address of this host is opened from that address, unless somebody bound it elsewhere.
fn stays_here(socket: &Socket) -> bool {
    socket.state == TcpState::Established
        && (socket.remote.ip().is_loopback() || socket.remote.ip() == socket.local.ip())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::inspect::host::pools::tests::socket;
    use crate::kernel::owners::Candidate;

    fn pair(cookie: u64, client: &str, server: &str) -> (Socket, Socket) {
        let mut near = socket(cookie, server, TcpState::Established);
        near.local = client.parse().unwrap();
        let mut far = near;
        (far.cookie, far.inode, far.local, far.remote) = (cookie + 1000, cookie + 1000, near.remote, near.local);
        (near, far)
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ports(peers: &Peers, seconds: u64) -> Vec<u16> {
        peers.sought_ports(at(seconds)).collect()
    }

    fn far(peers: &Peers) -> Vec<u64> {
        peers.wanted().map(|it| it.inode).collect()
    }

    #[test]
    fn the_swapped_socket_is_the_other_end_and_is_sought_once() {
        let (near, swapped) = pair(1, "127.0.0.1:40000", "127.0.0.1:5432");
        let (_, other) = pair(2, "127.0.0.1:40001", "127.0.0.1:5432");
        let mut peers = Peers::default();
        peers.look(&[near], &[], |_| false, at(0));
        assert_eq!((far(&peers), ports(&peers, 1)), (vec![], vec![5432]));
        peers.look(&[near], &[other, swapped], |port| port == 5432, at(1));
        assert_eq!((far(&peers), ports(&peers, 2)), (vec![1001], vec![]));
        peers.look(&[near], &[], |_| false, at(2));
        assert_eq!(far(&peers), [1001], "known for as long as the connection lasts");
        let mut half = near;
        half.state = TcpState::CloseWait;
        peers.look(&[half], &[], |_| false, at(3));
        assert_eq!(far(&peers), [0_u64; 0], "nobody holds the other end of what the server closed");
    }

    #[test]
    fn what_leaves_the_host_has_no_other_end_here() {
        let (near, swapped) = pair(1, "10.0.0.9:40000", "10.0.0.5:5432");
        let mut peers = Peers::default();
        peers.look(&[near], &[swapped], |_| true, at(0));
        assert_eq!((far(&peers), ports(&peers, 1)), (vec![], vec![]));
        let (near, swapped) = pair(2, "10.0.0.5:40000", "10.0.0.5:5432");
        peers.look(&[near], &[swapped], |_| true, at(1));
        assert_eq!(far(&peers), [1002], "an address of this host that is not loopback");
    }

    #[test]
    fn one_that_is_not_there_is_sought_twice_and_then_every_ten_seconds() {
        let (near, swapped) = pair(1, "127.0.0.1:40000", "127.0.0.1:5432");
        let mut peers = Peers::default();
        peers.look(&[near], &[], |_| true, at(0));
        peers.look(&[near], &[], |_| true, at(1));
        assert_eq!((ports(&peers, 2), ports(&peers, 11)), (vec![], vec![5432]));
        peers.look(&[near], &[swapped], |_| true, at(2));
        assert_eq!(far(&peers), [0_u64; 0]);
        peers.look(&[near], &[swapped], |_| true, at(11));
        assert_eq!(far(&peers), [1001]);
    }

    /// `/proc` with one process that holds one socket on descriptor 9.
    fn holds(root: &Path, pid: u32, inode: u64) {
        let directory = root.join(format!("{pid}/fd"));
        std::fs::create_dir_all(&directory).unwrap();
        symlink(format!("socket:[{inode}]"), directory.join("9")).unwrap();
    }

    #[test]
    fn a_holder_is_believed_at_its_second_sight_and_looked_at_again_each_minute() {
        let root = tempfile::tempdir().unwrap();
        let mut proc = Proc::open(root.path()).unwrap();
        let (near, swapped) = pair(1, "127.0.0.1:40000", "127.0.0.1:5432");
        let (mut owners, mut peers) = (Owners::default(), Peers::default());
        let mut look = |seconds, peers: &mut Peers| {
            peers.look(&[near], &[swapped], |_| true, at(seconds));
            let wanted: Vec<_> = peers.wanted().collect();
            let candidates = [7, 8].map(|pid| Candidate { pid, start: u64::from(pid) });
            owners.look(&mut proc, &wanted, &candidates, at(seconds));
            peers.settle(&mut owners, &mut proc, at(seconds));
            (peers.of(1).map(|it| (it.pid, it.fd)), wanted.len())
        };
        // The parent accepts, and hands on to a child before it is looked at again.
        holds(root.path(), 7, 1001);
        assert_eq!(look(0, &mut peers), (Some((7, 9)), 1));
        std::fs::remove_dir_all(root.path().join("7")).unwrap();
        holds(root.path(), 8, 1001);
        assert_eq!(look(3, &mut peers), (None, 1));
        assert_eq!(look(4, &mut peers), (Some((8, 9)), 1));
        assert_eq!(look(7, &mut peers), (Some((8, 9)), 1));
        assert_eq!(look(8, &mut peers), (Some((8, 9)), 0), "it is not asked for any more");
        std::fs::remove_dir_all(root.path().join("8")).unwrap();
        assert_eq!(look(60, &mut peers).0, Some((8, 9)));
        assert_eq!(look(90, &mut peers).0, None);
    }
}
