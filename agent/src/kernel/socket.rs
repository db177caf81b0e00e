//! One TCP socket, whoever told of it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A TCP socket of this network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// Identity for life. Inodes are used again, cookies are not. (From `/proc/net` it is the inode: the best there is.)
    /// In another network namespace than the agent's it tells that apart, too: see [`Network::identity`].
    pub cookie: u64,
    /// Our end; v4-mapped addresses are given as v4.
    pub local: SocketAddr,
    /// The other end; port 0 on a listening socket.
    pub remote: SocketAddr,
    /// TCP state.
    pub state: TcpState,
    /// User id of its maker.
    pub uid: u32,
    /// Inode, as in `/proc/<pid>/fd`; 0 once no process holds it.
    pub inode: u64,
    /// Cgroup v2 id (inode of the cgroup's directory), where the kernel tells.
    pub cgroup: Option<u64>,
    /// Whether the keepalive timer runs.
    pub keepalive: bool,
    /// Retransmissions in a row.
    pub retransmits: u8,
    /// Unanswered keepalive or zero-window probes.
    pub probes: u8,
    /// Since data was last sent, or since the handshake; `None` before it and where the kernel does not tell.
    pub sent_age: Option<Duration>,
    /// Since data was last received, likewise.
    pub received_age: Option<Duration>,
    /// Since the peer last acknowledged anything, likewise.
    pub acknowledged_age: Option<Duration>,
    /// Segments sent and not acknowledged.
    pub unacknowledged: Option<u32>,
    /// Bytes in the send queue; on a listening socket the most that may wait to be accepted.
    pub send_queue: u32,
    /// Bytes in the receive queue; on a listening socket those that wait to be accepted.
    pub receive_queue: u32,
    /// Segments with data sent since the connection began.
    pub segments_out: Option<u32>,
    /// Segments with data received since the connection began.
    pub segments_in: Option<u32>,
}

/// A network namespace, as this agent numbers those it has met; 0 is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Network(pub u16);

impl Network {
    /// The agent's own.
    pub const OWN: Self = Self(0);

    /// The identity of a socket among those of all namespaces: its cookie, or inode, with this number in the upper bits.
    /// Older kernels count cookies in each namespace from one; none has come near 2^48.
    pub const fn identity(self, cookie: u64) -> u64 {
        cookie ^ (self.0 as u64) << 48
    }

    /// The namespace of an identity.
    pub const fn of(identity: u64) -> Self {
        Self((identity >> 48) as u16)
    }
}

/// TCP states of `include/net/tcp_states.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are RFC 9293's")]
pub enum TcpState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
}

impl TcpState {
    /// From the kernel's number; `None` for one that it does not use for rows.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            // 12 is a request socket, which tells itself as SYN_RECV in every table.
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => return None,
        })
    }

    /// The kernel's number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Established => 1,
            Self::SynSent => 2,
            Self::SynReceived => 3,
            Self::FinWait1 => 4,
            Self::FinWait2 => 5,
            Self::TimeWait => 6,
            Self::Close => 7,
            Self::CloseWait => 8,
            Self::LastAck => 9,
            Self::Listen => 10,
            Self::Closing => 11,
        }
    }
}

/// The same address in one form: a v4 address that a v6 socket shows as `::ffff:a.b.c.d` is a v4 address.
pub fn normalised(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

/// A map by cookie or inode: numbers that the kernel gave, so a hash that resists chosen keys would only cost time in
/// the one loop that runs over every socket of the host.
pub type ByNumber<T> = HashMap<u64, T, BuildHasherDefault<NumberHasher>>;

/// See [`ByNumber`].
#[derive(Debug, Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, number: u64) {
        // Cookies and inodes count upwards; the odd factor spreads them over the high bits, the fold over the low ones.
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ spread >> 32;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 << 8 | u64::from(*byte));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_one_number_and_back() {
        for number in 1..=11 {
            assert_eq!(TcpState::from_number(number).unwrap().number(), number);
        }
        assert_eq!(TcpState::from_number(0), None);
        assert_eq!(TcpState::from_number(13), None);
    }

    #[test]
    fn one_cookie_in_two_namespaces_is_two_sockets() {
        assert_eq!(Network::OWN.identity(4711), 4711);
        let all: std::collections::HashSet<_> = (0..100).map(|number| Network(number).identity(4711)).collect();
        assert_eq!(all.len(), 100);
        assert_eq!((Network::of(4711), Network::of(Network(9).identity(4711))), (Network::OWN, Network(9)));
    }

    #[test]
    fn a_mapped_address_is_the_address() {
        assert_eq!(normalised("::ffff:10.0.0.5".parse().unwrap(), 5432), "10.0.0.5:5432".parse().unwrap());
        assert_eq!(normalised("::1".parse().unwrap(), 5432), "[::1]:5432".parse().unwrap());
    }
}
