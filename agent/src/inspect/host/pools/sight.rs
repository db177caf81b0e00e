//! One connection as the kernel shows it, over TCP or a unix socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Party;
use crate::discover::End;
use crate::inspect::host::unix::UnixClient;
use crate::inspect::host::{Connection, Sharers, TcpState};
use crate::kernel::socket::{Network, Socket};

/// A connection as a dump shows it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sight<'a> {
    Tcp(&'a Socket),
    Unix(&'a UnixClient),
}

impl Sight<'_> {
    pub(super) const fn cookie(self) -> u64 {
        match self {
            Self::Tcp(socket) => socket.cookie,
            Self::Unix(client) => client.cookie,
        }
    }

    pub(super) const fn state(self) -> TcpState {
        match self {
            Self::Tcp(socket) => socket.state,
            Self::Unix(client) => client.state,
        }
    }

    pub(super) fn remote(self, network: Network) -> End {
        match self {
            Self::Tcp(socket) => end_in(network, socket.remote),
            Self::Unix(client) => End::Unix(client.path.clone()),
        }
    }

    fn local(self, network: Network) -> End {
        match self {
            Self::Tcp(socket) => end_in(network, socket.local),
            Self::Unix(_) => End::Unix(Arc::default()),
        }
    }

    pub(super) const fn hidden(self) -> Party {
        match self {
            Self::Tcp(socket) => Party::Hidden(socket.uid, socket.cgroup),
            Self::Unix(client) => Party::Hidden(client.uid, None),
        }
    }

    /// What the kernel tells of it.
    pub(super) fn connection(self, network: Network) -> Connection {
        let mut connection = Connection {
            cookie: self.cookie(),
            fds: Vec::new(),
            sharers: Sharers::default(),
            local: self.local(network),
            peer: None,
            state: self.state(),
            sent_age: None,
            received_age: None,
            acknowledged_age: None,
            unacknowledged: None,
            unsent: 0,
            segments_out: None,
            picked: None,
            state_age: Duration::ZERO,
            seen_for: Duration::ZERO,
            born: false,
            keepalive: false,
            retransmits: 0,
            probes: 0,
        };
        match self {
            Self::Tcp(socket) => {
                connection.sent_age = socket.sent_age;
                connection.received_age = socket.received_age;
                connection.acknowledged_age = socket.acknowledged_age;
                connection.unacknowledged = socket.unacknowledged;
                connection.unsent = socket.send_queue;
                connection.segments_out = socket.segments_out;
                connection.keepalive = socket.keepalive;
                connection.retransmits = socket.retransmits;
                connection.probes = socket.probes;
            }
            Self::Unix(client) => connection.unsent = client.unsent,
        }
        connection
    }
}

/// Loopback is another in each network namespace.
pub(super) fn end_in(network: Network, address: SocketAddr) -> End {
    if network == Network::OWN || !address.ip().is_loopback() { End::Tcp(address) } else { End::Apart(address) }
}
