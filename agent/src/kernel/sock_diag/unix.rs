//! Unix sockets over `NETLINK_SOCK_DIAG`, from and to bytes.
//!
//! Layouts: `struct unix_diag_req` (24 bytes), `struct unix_diag_msg` (16, then attributes). A client's socket has no
//! name; its peer, which the server accepted, has the name of the listener.

use super::message::{BY_FAMILY, HEADER, attributes, request, u32_at};

const ROW: usize = 16;
const AF_UNIX: u8 = 1;
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
/// `UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN | UDIAG_SHOW_UID`; older kernels do not know the last.
const SHOW: u32 = 0x1 | 0x4 | 0x10 | 0x40;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_SHUTDOWN: u16 = 6;
const UNIX_DIAG_UID: u16 = 7;
/// `SHUTDOWN_MASK`: neither direction is open any more.
const BOTH: u8 = 3;

/// A dump request for the unix sockets that listen, and the connected ones unless `only_listening`.
pub fn dump_request(only_listening: bool, sequence: u32) -> [u8; HEADER + 24] {
    let mut bytes = request::<{ HEADER + 24 }>(BY_FAMILY, sequence);
    let states: u32 = 1 << LISTEN | if only_listening { 0 } else { 1 << ESTABLISHED };
    bytes[16] = AF_UNIX;
    bytes[20..24].copy_from_slice(&states.to_ne_bytes());
    bytes[28..32].copy_from_slice(&SHOW.to_ne_bytes());
    bytes
}

/// One unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixRow<'a> {
    /// Identity.
    pub cookie: u64,
    /// Inode; 0 while it waits to be accepted.
    pub inode: u64,
    /// Whether it listens.
    pub is_listening: bool,
    /// Its name, or its listener's; `None` for a client, empty never. A first byte of 0 is no path.
    pub name: Option<&'a [u8]>,
    /// Inode of the other end; 0 when it is gone or not accepted yet.
    pub peer: u64,
    /// Neither direction is open any more: the other end closed it, or both shut it down.
    pub is_shut: bool,
    /// Bytes that wait to be read; of a listening socket, connections that wait to be accepted.
    pub receive_queue: u32,
    /// Bytes written that the other end has not read; of a listening socket, how many may wait.
    pub send_queue: u32,
    /// User id of its maker, where the kernel tells.
    pub uid: Option<u32>,
}

impl<'a> UnixRow<'a> {
    /// From the body of a message; `None` when it is of another family or too short.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let (bytes, rest) = body.split_first_chunk::<ROW>()?;
        if bytes[0] != AF_UNIX {
            return None;
        }
        let half = |at| u32_at(bytes, at).map(u64::from);
        let mut row = Self {
            cookie: half(8)? | half(12)? << 32,
            inode: half(4)?,
            is_listening: bytes[2] == LISTEN,
            name: None,
            peer: 0,
            is_shut: false,
            receive_queue: 0,
            send_queue: 0,
            uid: None,
        };
        for (kind, value) in attributes(rest) {
            match kind {
                // The kernel ends a path with a zero or not, as the name was bound.
                UNIX_DIAG_NAME => row.name = Some(trimmed(value)).filter(|name| !name.is_empty()),
                UNIX_DIAG_PEER => row.peer = u32_at(value, 0).unwrap_or(0).into(),
                UNIX_DIAG_RQLEN => {
                    row.receive_queue = u32_at(value, 0).unwrap_or(0);
                    row.send_queue = u32_at(value, 4).unwrap_or(0);
                }
                UNIX_DIAG_SHUTDOWN => row.is_shut = value.first() == Some(&BOTH),
                UNIX_DIAG_UID => row.uid = u32_at(value, 0),
                _ => (),
            }
        }
        Some(row)
    }

    /// Its name, when that is a path.
    pub fn path(&self) -> Option<&'a [u8]> {
        self.name.filter(|name| name[0] != 0)
    }
}

/// Up to the first zero that is not the first byte (an abstract name begins with one).
fn trimmed(name: &[u8]) -> &[u8] {
    let end = name.iter().skip(1).position(|byte| *byte == 0).map_or(name.len(), |at| at + 1);
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::attribute;
    use super::*;
    use proptest::prelude::*;

    fn body(state: u8, parts: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![AF_UNIX, 1, state, 0];
        bytes.extend(4711_u32.to_ne_bytes());
        bytes.extend(0x1122_u32.to_ne_bytes());
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend(parts.concat());
        bytes
    }

    #[test]
    fn a_row_is_read_with_its_attributes() {
        let queues = [120_u32.to_ne_bytes(), 7_u32.to_ne_bytes()].concat();
        let bytes = body(
            ESTABLISHED,
            &[
                attribute(UNIX_DIAG_NAME, b"/run/postgresql/.s.PGSQL.5432\0"),
                attribute(UNIX_DIAG_PEER, &4712_u32.to_ne_bytes()),
                attribute(UNIX_DIAG_RQLEN, &queues),
                attribute(UNIX_DIAG_SHUTDOWN, &[3]),
                attribute(UNIX_DIAG_UID, &1000_u32.to_ne_bytes()),
            ],
        );
        let row = UnixRow::parse(&bytes).unwrap();
        assert_eq!((row.cookie, row.inode, row.peer), (0x1_0000_1122, 4711, 4712));
        assert_eq!(row.path(), Some(&b"/run/postgresql/.s.PGSQL.5432"[..]));
        assert_eq!((row.receive_queue, row.send_queue, row.uid), (120, 7, Some(1000)));
        assert!(row.is_shut && !row.is_listening);
    }

    #[test]
    fn a_client_has_no_name_and_an_abstract_name_is_no_path() {
        let client = body(ESTABLISHED, &[attribute(UNIX_DIAG_SHUTDOWN, &[0])]);
        let row = UnixRow::parse(&client).unwrap();
        assert_eq!((row.name, row.is_shut, row.peer), (None, false, 0));
        let named = body(LISTEN, &[attribute(UNIX_DIAG_NAME, b"\0bus")]);
        let row = UnixRow::parse(&named).unwrap();
        assert_eq!((row.name, row.path(), row.is_listening), (Some(&b"\0bus"[..]), None, true));
    }

    #[test]
    fn a_row_of_another_family_is_none() {
        let mut bytes = body(ESTABLISHED, &[]);
        bytes[0] = 2;
        assert_eq!(UnixRow::parse(&bytes), None);
        assert_eq!(UnixRow::parse(&body(ESTABLISHED, &[])[..15]), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let row = |bytes: &[u8]| UnixRow::parse(bytes).and_then(|row| row.path().map(<[u8]>::len));
            let _ = row(&bytes);
            let _ = row(&body(ESTABLISHED, &[bytes]));
        }
    }
}
