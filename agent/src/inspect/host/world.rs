//! What the pools ask of the world: who holds a socket, who runs, what is watched.

use std::net::SocketAddr;

use super::endpoints::{Configured, Listeners, Ports};
use super::networks::Networks;
use super::peers::Peers;
use super::unix::UnixSockets;
use super::{Peer, pools};
use crate::discover::processes::Processes;
use crate::discover::{End, Instance};
use crate::kernel::owners::{Held, Owners};
use crate::kernel::socket::Network;

/// The eyes of `pools::Pools`.
pub(super) struct World<'a> {
    pub(super) owners: &'a Owners,
    pub(super) processes: &'a Processes,
    pub(super) peers: &'a Peers,
    pub(super) unix: &'a UnixSockets,
    pub(super) ports: &'a Ports,
    /// Those of the look before, and the servers that were configured then.
    pub(super) before: (&'a Ports, &'a Configured),
    pub(super) listeners: &'a Listeners,
    pub(super) networks: &'a Networks,
    pub(super) configured: &'a Configured,
    pub(super) own_pid: Option<u32>,
}

impl pools::World for World<'_> {
    fn held(&self, cookie: u64) -> Held<'_> {
        self.owners.of(cookie)
    }

    fn peer(&self, cookie: u64) -> Option<Peer> {
        let of_unix = || match self.owners.of(self.unix.peer_of(cookie)?) {
            Held::By(holders) => holders.last().map(|holder| Peer { pid: holder.pid, fd: holder.fd }),
            Held::ByNobodySeen | Held::NotYet => None,
        };
        self.peers.of(cookie).or_else(of_unix).or_else(|| self.networks.peer(cookie))
    }

    fn is_ours(&self, pid: u32) -> bool {
        is_agent(self.processes, self.own_pid, pid)
    }

    fn runs(&self, instance: Instance) -> bool {
        self.processes
            .get(instance.pid)
            .is_some_and(|process| process.instance == instance && process.zombie_since.is_none())
    }

    fn is_configured(&self, remote: &End) -> bool {
        self.configured.contains_end(remote)
    }

    fn is_newly_watched(&self, remote: &End) -> bool {
        let (ports, configured) = self.before;
        match remote {
            End::Tcp(remote) | End::Apart(remote) => !ports.contains(remote.port()),
            End::Unix(path) => !configured.watches_path(path),
        }
    }

    fn is_watched(&self, network: Network, local: SocketAddr, remote: SocketAddr) -> bool {
        let listeners = match network {
            Network::OWN => Some(self.listeners),
            other => self.networks.listeners(other),
        };
        self.ports.contains(remote.port()) && !listeners.is_some_and(|it| it.accepted(local))
    }
}

/// Whether a process is this agent, or another of its kind: a look from the command line beside the service.
pub(super) fn is_agent(processes: &Processes, own_pid: Option<u32>, pid: u32) -> bool {
    const PROGRAM: &str = "tickbird-agent";
    let is_one =
        |command: &str| command.split_whitespace().next().and_then(|it| it.rsplit('/').next()) == Some(PROGRAM);
    own_pid.is_some_and(|own| own == pid || processes.get(pid).is_some_and(|it| is_one(&it.command)))
}
