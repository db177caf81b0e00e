//! The other ends of connections that do not leave this host.
//!
//! A server on this host shows its end in the same dump, with local and remote swapped. Its holder is a backend's pid or
//! a server's descriptor: what joins a session whose address the server hides. Other ends are sought for new connections
//! only, so that in a steady look no further row of the dump is read.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::kernel::owners::{Kin, Wanted};
use crate::kernel::socket::{ByNumber, Socket, TcpState};

/// Another end that was not found twice is sought again after this.
const RETRY: Duration = Duration::from_secs(10);

/// The other ends that are known, by our connection's cookie.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: ByNumber<Entry>,
    look: u64,
}

#[derive(Debug)]
struct Entry {
    far: Option<Wanted>,
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
                    kin: Kin::At(socket.local),
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
        self.known.values().filter_map(|entry| entry.far)
    }

    /// The cookie of the other end.
    pub(super) fn of(&self, cookie: u64) -> Option<u64> {
        Some(self.known.get(&cookie)?.far?.cookie)
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
    use super::*;
    use crate::inspect::host::pools::tests::socket;

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

    #[test]
    fn the_swapped_socket_is_the_other_end_and_is_sought_once() {
        let (near, far) = pair(1, "127.0.0.1:40000", "127.0.0.1:5432");
        let (_, other) = pair(2, "127.0.0.1:40001", "127.0.0.1:5432");
        let mut peers = Peers::default();
        peers.look(&[near], &[], |_| false, at(0));
        assert_eq!((peers.of(1), ports(&peers, 1)), (None, vec![5432]));
        peers.look(&[near], &[other, far], |port| port == 5432, at(1));
        assert_eq!((peers.of(1), ports(&peers, 2)), (Some(1001), vec![]));
        assert_eq!(peers.wanted().map(|it| it.inode).collect::<Vec<_>>(), [1001]);
        peers.look(&[near], &[], |_| false, at(2));
        assert_eq!(peers.of(1), Some(1001), "known for as long as the connection lasts");
        let mut half = near;
        half.state = TcpState::CloseWait;
        peers.look(&[half], &[], |_| false, at(3));
        assert_eq!(peers.of(1), None, "nobody holds the other end of what the server closed");
    }

    #[test]
    fn what_leaves_the_host_has_no_other_end_here() {
        let (near, far) = pair(1, "10.0.0.9:40000", "10.0.0.5:5432");
        let mut peers = Peers::default();
        peers.look(&[near], &[far], |_| true, at(0));
        assert_eq!((peers.of(1), ports(&peers, 1)), (None, vec![]));
        let (near, far) = pair(2, "10.0.0.5:40000", "10.0.0.5:5432");
        peers.look(&[near], &[far], |_| true, at(1));
        assert_eq!(peers.of(2), Some(1002), "an address of this host that is not loopback");
    }

    #[test]
    fn one_that_is_not_there_is_sought_twice_and_then_every_ten_seconds() {
        let (near, far) = pair(1, "127.0.0.1:40000", "127.0.0.1:5432");
        let mut peers = Peers::default();
        peers.look(&[near], &[], |_| true, at(0));
        peers.look(&[near], &[], |_| true, at(1));
        assert_eq!((ports(&peers, 2), ports(&peers, 11)), (vec![], vec![5432]));
        peers.look(&[near], &[far], |_| true, at(2));
        assert_eq!(peers.of(1), None);
        peers.look(&[near], &[far], |_| true, at(11));
        assert_eq!(peers.of(1), Some(1001));
    }
}
