//! Netlink messages of `NETLINK_SOCK_DIAG`, from and to bytes.
//!
//! Layouts: `struct nlmsghdr` (16 bytes), `struct inet_diag_req_v2` (56) or the older `struct inet_diag_req` (60),
//! `struct inet_diag_msg` (72, then attributes), `struct tcp_info` (attribute 2; older kernels send less of it, so every
//! field is read only if it is there).
//! Numbers are in the host's order, ports and addresses in the network's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::kernel::socket::{Socket, TcpState, normalised};

pub(super) const HEADER: usize = 16;
const ROW: usize = 72;

/// `SOCK_DIAG_BY_FAMILY`: the type of requests, rows and destroy events.
pub(super) const BY_FAMILY: u16 = 20;
/// `TCPDIAG_GETSOCK`: the older request and its rows, which are of both families.
const OF_BOTH: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 0x1;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = REQUEST | 0x300;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_JMP: u8 = 1;
const INET_DIAG_BC_S_EQ: u8 = 11;
const INET_DIAG_BC_D_EQ: u8 = 12;
/// Bytes of one operation of a filter, and of one condition: comparison, port, jump.
const OPERATION: usize = 4;
const CONDITION: usize = 3 * OPERATION;
/// Comparisons of ports in one filter.
const MAX_CONDITIONS: usize = 64;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Address families of TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`.
    V4 = 2,
    /// `AF_INET6`; v4 over a v6 socket is here, too.
    V6 = 10,
}

/// States that are asked for: all in which a process may hold the socket. Left out are TIME_WAIT, which belongs to
/// the kernel, SYN_RECV, which no process has accepted (and which a flood makes many), and CLOSE.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11;

/// Which sockets a dump is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// All that a process may hold.
    All,
    /// What listens, which the kernel keeps in a small table of its own.
    Listening,
}

/// A dump request for every TCP socket of `family`, with `tcp_info`; with a filter, for those that pass it.
///
/// Without a family it is the older request, for both of them: the kernel then goes through its table of connections
/// once. That table grows with the machine's memory, and on a host with few sockets to go through it is nearly all that a
/// dump costs.
pub fn dump_request(family: Option<Family>, asked: Asked, sequence: u32, filter: Option<&PortFilter>) -> Vec<u8> {
    let states = match asked {
        Asked::All => STATES,
        Asked::Listening => 1 << TcpState::Listen.number(),
    };
    let mut bytes = match family {
        Some(family) => {
            let mut bytes = request::<{ HEADER + 56 }>(BY_FAMILY, sequence).to_vec();
            bytes[16] = family as u8;
            bytes[17] = IPPROTO_TCP;
            bytes[18] = 1 << (INET_DIAG_INFO - 1);
            bytes[20..24].copy_from_slice(&states.to_ne_bytes());
            bytes
        }
        None => {
            let mut bytes = request::<{ HEADER + 60 }>(OF_BOTH, sequence).to_vec();
            bytes[19] = 1 << (INET_DIAG_INFO - 1);
            bytes[68..72].copy_from_slice(&states.to_ne_bytes());
            bytes
        }
    };
    if let Some(PortFilter { code }) = filter {
        bytes.extend(((4 + code.len()) as u16).to_ne_bytes());
        bytes.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
        bytes.extend(code);
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    }
    bytes
}

/// A request for one socket by its ends, with `tcp_info`. The kernel finds it in its table without going through it. `None` for a
/// link-local address: which interface it belongs to is not known here.
pub fn request_of(local: SocketAddr, remote: SocketAddr, sequence: u32) -> Option<[u8; HEADER + 56]> {
    let mut bytes = request::<{ HEADER + 56 }>(BY_FAMILY, sequence);
    bytes[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    bytes[17] = IPPROTO_TCP;
    bytes[18] = 1 << (INET_DIAG_INFO - 1);
    bytes[20..24].copy_from_slice(&STATES.to_ne_bytes());
    bytes[24..26].copy_from_slice(&local.port().to_be_bytes());
    bytes[26..28].copy_from_slice(&remote.port().to_be_bytes());
    match (local.ip(), remote.ip()) {
        // A v4 address over a v6 socket is found so, too.
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            bytes[16] = Family::V4 as u8;
            bytes[28..32].copy_from_slice(&local.octets());
            bytes[44..48].copy_from_slice(&remote.octets());
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) if !local.is_unicast_link_local() => {
            bytes[16] = Family::V6 as u8;
            bytes[28..44].copy_from_slice(&local.octets());
            bytes[44..60].copy_from_slice(&remote.octets());
        }
        _ => return None,
    }
    // `INET_DIAG_NOCOOKIE`: any of these ends.
    bytes[64..72].fill(0xff);
    Some(bytes)
}

/// What the kernel leaves out of a dump by itself (`INET_DIAG_REQ_BYTECODE`): all but what listens and the connections
/// with one of some ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFilter {
    code: Vec<u8>,
}

impl PortFilter {
    /// Lets pass what listens, what leads to one of the ports `remote`, and what is on one of the ports `local`. `None`
    /// when they are so many that asking for each would cost more than it saves.
    pub fn of(remote: impl IntoIterator<Item = u16>, local: impl IntoIterator<Item = u16>) -> Option<Self> {
        // A socket that listens has no other port.
        let remote = std::iter::once(0).chain(remote).map(|port| (INET_DIAG_BC_D_EQ, port));
        let all: Vec<_> =
            remote.chain(local.into_iter().map(|port| (INET_DIAG_BC_S_EQ, port))).take(MAX_CONDITIONS + 1).collect();
        if all.len() > MAX_CONDITIONS {
            return None;
        }
        // Each is a comparison, its port, and a jump to the end, where a socket has passed. The last needs no jump;
        // when it does not hold either, four bytes beyond the end say so.
        let mut code = Vec::with_capacity(all.len() * CONDITION);
        for (at, (operation, port)) in all.iter().enumerate() {
            let left = (all.len() - at) * CONDITION - OPERATION;
            let is_last = at + 1 == all.len();
            code.extend([*operation, 8]);
            code.extend((CONDITION as u16).to_ne_bytes());
            code.extend([0, 0]);
            code.extend(port.to_ne_bytes());
            if !is_last {
                code.extend([INET_DIAG_BC_JMP, OPERATION as u8]);
                code.extend(((left - 2 * OPERATION) as u16).to_ne_bytes());
            }
        }
        Some(Self { code })
    }
}

/// One message of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A socket.
    Row {
        /// Sequence of the request it answers; 0 of an event.
        sequence: u32,
        /// Its row.
        row: Row<'a>,
    },
    /// The end of the dump with this sequence.
    Done(u32),
    /// The request with this sequence failed with this error number.
    Failed(u32, i32),
}

/// A socket's row, its attributes not read yet: most rows are of no interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// State as the kernel numbers it.
    pub state: u8,
    /// Our port.
    pub local_port: u16,
    /// The other port.
    pub remote_port: u16,
    bytes: &'a [u8; ROW],
    attributes: &'a [u8],
}

/// The messages of one datagram about TCP, up to the first that is cut or claims a length that cannot be.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    frames(datagram).filter_map(|frame| match frame {
        Frame::Body { sequence, body } => Row::parse(body).map(|row| Message::Row { sequence, row }),
        Frame::Done(sequence) => Some(Message::Done(sequence)),
        Frame::Failed(sequence, number) => Some(Message::Failed(sequence, number)),
    })
}

/// One message whose body is not read yet: its layout is that of the family that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A socket.
    Body {
        /// Sequence of the request it answers; 0 of an event.
        sequence: u32,
        /// Behind the header.
        body: &'a [u8],
    },
    /// The end of the dump with this sequence.
    Done(u32),
    /// The request with this sequence failed with this error number.
    Failed(u32, i32),
}

/// The messages of one datagram, up to the first that is cut or claims a length that cannot be.
pub fn frames(datagram: &[u8]) -> Frames<'_> {
    Frames { rest: datagram }
}

/// See [`frames`].
#[derive(Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        loop {
            let length = u32_at(self.rest, 0)? as usize;
            if length < HEADER {
                return None;
            }
            let message = self.rest.get(..length)?;
            self.rest = self.rest.get(aligned(length)..).unwrap_or(&[]);
            let (kind, sequence) = (u16_at(message, 4)?, u32_at(message, 8)?);
            let body = &message[HEADER..];
            match kind {
                BY_FAMILY | OF_BOTH => return Some(Frame::Body { sequence, body }),
                NLMSG_DONE => return Some(Frame::Done(sequence)),
                NLMSG_ERROR => {
                    return Some(Frame::Failed(sequence, (u32_at(body, 0)? as i32).saturating_neg()));
                }
                _ => continue,
            }
        }
    }
}

impl<'a> Row<'a> {
    /// From the body of a message; `None` when it is too short.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let (bytes, attributes) = body.split_first_chunk::<ROW>()?;
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        Some(Self { state: bytes[1], local_port: port(4), remote_port: port(6), bytes, attributes })
    }

    /// Identity of the socket.
    pub fn cookie(&self) -> u64 {
        let half = |at: usize| u64::from(u32_at(self.bytes, at).unwrap_or(0));
        half(44) | half(48) << 32
    }

    /// Our end and the other end.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (normalised(self.address(8), self.local_port), normalised(self.address(24), self.remote_port))
    }

    fn address(&self, at: usize) -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.bytes[at..at + 16]);
        if self.bytes[0] == Family::V6 as u8 {
            IpAddr::V6(Ipv6Addr::from(octets))
        } else {
            IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]))
        }
    }

    /// Whether it is in one of the states in which a process may hold it.
    pub(super) const fn is_of_asked_state(&self) -> bool {
        self.state < 32 && STATES >> self.state & 1 == 1
    }

    /// The whole row; `None` when its state is none that we know.
    pub fn socket(&self) -> Option<Socket> {
        let state = TcpState::from_number(self.state)?;
        let (local, remote) = self.ends();
        let (timer, expired) = (self.bytes[2], self.bytes[3]);
        let mut socket = Socket {
            cookie: self.cookie(),
            local,
            remote,
            state,
            uid: u32_at(self.bytes, 64).unwrap_or(0),
            inode: u64::from(u32_at(self.bytes, 68).unwrap_or(0)),
            cgroup: None,
            keepalive: timer == 2,
            // Timer 1 counts retransmissions, 2 (keepalive) and 4 (zero window) count probes.
            retransmits: if timer == 1 { expired } else { 0 },
            probes: if timer == 2 || timer == 4 { expired } else { 0 },
            sent_age: None,
            received_age: None,
            acknowledged_age: None,
            unacknowledged: None,
            send_queue: u32_at(self.bytes, 60).unwrap_or(0),
            receive_queue: u32_at(self.bytes, 56).unwrap_or(0),
            segments_out: None,
            segments_in: None,
        };
        for (kind, value) in attributes(self.attributes) {
            match kind {
                INET_DIAG_INFO => read_tcp_info(value, &mut socket),
                INET_DIAG_CGROUP_ID => socket.cgroup = value.first_chunk().copied().map(u64::from_ne_bytes),
                _ => (),
            }
        }
        Some(socket)
    }
}

/// Offsets of `struct tcp_info`, `include/uapi/linux/tcp.h`.
fn read_tcp_info(info: &[u8], socket: &mut Socket) {
    if let Some(retransmits) = info.get(2) {
        socket.retransmits = *retransmits;
    }
    if let Some(probes) = info.get(3) {
        socket.probes = *probes;
    }
    // Before the handshake the kernel subtracts from zero, and a listener keeps other numbers in these places.
    if !matches!(socket.state, TcpState::SynSent | TcpState::SynReceived | TcpState::Listen) {
        let age = |at| u32_at(info, at).map(|milliseconds| Duration::from_millis(milliseconds.into()));
        socket.sent_age = age(44);
        socket.received_age = age(52);
        socket.acknowledged_age = age(56);
        socket.unacknowledged = u32_at(info, 24);
        socket.segments_in = u32_at(info, 152);
        socket.segments_out = u32_at(info, 156);
    }
}

/// Kind and value of each attribute, up to the first that is cut.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let (kind, value) = (u16_at(rest, 2)?, rest.get(4..length)?);
        rest = rest.get(aligned(length)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The header of a dump request, and room for its body.
pub(super) fn request<const LENGTH: usize>(kind: u16, sequence: u32) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[0..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    bytes
}

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }

    pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    /// An established v4-mapped connection with the keepalive timer.
    fn row(attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![0; ROW];
        body[0] = Family::V6 as u8;
        body[1] = 1;
        body[2] = 2;
        body[3] = 3;
        body[4..6].copy_from_slice(&40_000_u16.to_be_bytes());
        body[6..8].copy_from_slice(&5_432_u16.to_be_bytes());
        body[8..24].copy_from_slice(&"::ffff:127.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
        body[24..40].copy_from_slice(&"::ffff:10.0.0.5".parse::<Ipv6Addr>().unwrap().octets());
        body[44..48].copy_from_slice(&0x1122_u32.to_ne_bytes());
        body[48..52].copy_from_slice(&1_u32.to_ne_bytes());
        body[64..68].copy_from_slice(&1000_u32.to_ne_bytes());
        body[68..72].copy_from_slice(&4711_u32.to_ne_bytes());
        body.extend(attributes);
        message(BY_FAMILY, &body)
    }

    fn parsed(datagram: &[u8]) -> Socket {
        match messages(datagram).next() {
            Some(Message::Row { sequence: 7, row }) => row.socket().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_row_is_read_with_its_attributes() {
        let mut info = vec![0; 248];
        info[2] = 5;
        info[3] = 1;
        info[44..48].copy_from_slice(&1_500_u32.to_ne_bytes());
        info[52..56].copy_from_slice(&40_u32.to_ne_bytes());
        let mut attributes = attribute(INET_DIAG_CGROUP_ID, &99_u64.to_ne_bytes());
        attributes.extend(attribute(INET_DIAG_INFO, &info));
        let socket = parsed(&row(&attributes));
        assert_eq!(socket.cookie, 0x1_0000_1122);
        assert_eq!(socket.local, "127.0.0.1:40000".parse().unwrap());
        assert_eq!(socket.remote, "10.0.0.5:5432".parse().unwrap());
        assert_eq!((socket.uid, socket.inode, socket.cgroup), (1000, 4711, Some(99)));
        assert_eq!((socket.keepalive, socket.retransmits, socket.probes), (true, 5, 1));
        assert_eq!(socket.sent_age, Some(Duration::from_millis(1500)));
        assert_eq!(socket.received_age, Some(Duration::from_millis(40)));
    }

    #[test]
    fn an_older_kernels_shorter_tcp_info_leaves_the_rest_unknown() {
        let socket = parsed(&row(&attribute(INET_DIAG_INFO, &[0; 50])));
        assert_eq!(socket.sent_age, Some(Duration::ZERO));
        assert_eq!(socket.received_age, None);
        let bare = parsed(&row(&[]));
        assert_eq!((bare.probes, bare.retransmits, bare.sent_age), (3, 0, None));
    }

    #[test]
    fn a_cut_attribute_is_not_read() {
        let mut attributes = attribute(INET_DIAG_INFO, &[9; 248]);
        attributes.truncate(100);
        assert_eq!(parsed(&row(&attributes)).sent_age, None);
    }

    #[test]
    fn the_end_and_a_refusal_are_told_apart() {
        let mut datagram = message(NLMSG_DONE, &0_i32.to_ne_bytes());
        datagram.extend(message(NLMSG_ERROR, &(-13_i32).to_ne_bytes()));
        let seen: Vec<_> = messages(&datagram).collect();
        assert_eq!(seen, [Message::Done(7), Message::Failed(7, 13)]);
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_datagram() {
        let mut datagram = row(&[]);
        datagram.extend([3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(messages(&datagram).count(), 1);
        assert_eq!(messages(&[0; 64]).count(), 0);
    }

    /// The kernel's `inet_diag_bc_run`: whether a socket passes.
    fn passes(filter: &PortFilter, local: u16, remote: u16) -> bool {
        let (mut at, code) = (0, &filter.code);
        while at < code.len() {
            let (operation, yes, no) = (code[at], code[at + 1], u16_at(code, at + 2).unwrap());
            let port = || u16_at(code, at + 6).unwrap();
            let holds = match operation {
                INET_DIAG_BC_S_EQ => local == port(),
                INET_DIAG_BC_D_EQ => remote == port(),
                INET_DIAG_BC_JMP => false,
                other => panic!("{other}"),
            };
            at += if holds { usize::from(yes) } else { usize::from(no) };
        }
        at == code.len()
    }

    #[test]
    fn a_filter_lets_pass_what_listens_and_what_has_one_of_the_ports() {
        let filter = PortFilter::of([5432, 6379], [8000]).unwrap();
        for (local, remote, expected) in [
            (80, 0, true),
            (40_000, 5432, true),
            (40_000, 6379, true),
            (8000, 40_000, true),
            (5432, 40_000, false),
            (40_000, 8000, false),
            (40_000, 443, false),
        ] {
            assert_eq!(passes(&filter, local, remote), expected, "{local} {remote}");
        }
        let empty = PortFilter::of([], []).unwrap();
        assert!(passes(&empty, 80, 0) && !passes(&empty, 80, 5432));
        assert_eq!(PortFilter::of(0..64, []), None, "so many ports are cheaper to sort out here");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for message in messages(&bytes) {
                if let Message::Row { row, .. } = message {
                    let _ = row.socket();
                }
            }
        }

        #[test]
        fn never_panics_on_attributes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let datagram = row(&bytes);
            let _ = parsed(&datagram);
        }
    }
}
