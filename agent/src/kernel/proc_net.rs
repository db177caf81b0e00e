//! TCP sockets from `/proc/net/tcp` and `tcp6`, where sock_diag is refused or shows another network namespace: states and
//! queues, but no ages.
//!
//! It costs two to five times a dump and has neither cookies nor destroy events: the inode stands for the cookie, and
//! connections between two looks go unseen.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::KernelError;
use super::socket::{Socket, TcpState, normalised};

/// Bytes read of one table: some 400,000 sockets. They are read and left row by row, so that memory is only taken by those
/// that are wanted.
const MAX_TABLE: u64 = 64 << 20;
/// Sockets kept of one reading.
const MAX_SOCKETS: usize = 65_536;
/// Longest row; the kernel pads them to 150 bytes, of v6 to some more.
const MAX_ROW: u64 = 1024;

/// Appends the TCP sockets beneath `root` (`/proc`, or `/proc/<pid>` for the namespace of that process) that `wanted` (our
/// port, the other port, state) says yes to; those that no process can hold (TIME_WAIT, SYN_RECV, CLOSE) are left out.
/// Gives how many wanted ones were left out beyond the bound.
///
/// # Errors
/// When a table cannot be read or has a row that is none: a cut table must not pass for a shorter one.
pub fn read(
    root: &Path,
    mut wanted: impl FnMut(u16, u16, TcpState) -> bool,
    sockets: &mut Vec<Socket>,
) -> Result<usize, KernelError> {
    let mut cut = 0;
    for table in ["net/tcp", "net/tcp6"] {
        let file = match File::open(root.join(table)).map_err(KernelError::from) {
            Ok(file) => file,
            // A kernel without IPv6 has no tcp6 table.
            Err(KernelError::Gone) if table == "net/tcp6" => continue,
            Err(error) => return Err(error),
        };
        let rows = read_table(BufReader::with_capacity(16 << 10, file.take(MAX_TABLE)), |socket| {
            let held = !matches!(socket.state, TcpState::TimeWait | TcpState::SynReceived | TcpState::Close);
            if held && wanted(socket.local.port(), socket.remote.port(), socket.state) {
                if sockets.len() < MAX_SOCKETS {
                    sockets.push(socket);
                } else {
                    cut += 1;
                }
            }
        });
        rows?;
    }
    Ok(cut)
}

/// Calls `each` for every row after the heading.
pub(super) fn read_table(mut table: impl BufRead, mut each: impl FnMut(Socket)) -> Result<(), KernelError> {
    let mut row = Vec::with_capacity(256);
    let mut is_heading = true;
    loop {
        row.clear();
        if table.by_ref().take(MAX_ROW).read_until(b'\n', &mut row)? == 0 {
            return Ok(());
        }
        if row.len() as u64 == MAX_ROW && !row.ends_with(b"\n") {
            return Err(KernelError::Malformed("a line of the socket table"));
        }
        if !std::mem::take(&mut is_heading) {
            let text = std::str::from_utf8(&row).ok();
            each(text.and_then(parse_row).ok_or(KernelError::Malformed("a row of the socket table"))?);
        }
    }
}

/// Columns: number, local, remote, state, queues, timer and its expiry, retransmissions, uid, probes, inode;
/// see proc_pid_net(5).
pub fn parse_row(row: &str) -> Option<Socket> {
    let mut columns = row.split_ascii_whitespace().skip(1);
    let local = parse_end(columns.next()?)?;
    let remote = parse_end(columns.next()?)?;
    let state = TcpState::from_number(u8::from_str_radix(columns.next()?, 16).ok()?)?;
    let (send_queue, receive_queue) = columns.next()?.split_once(':')?;
    let timer = u8::from_str_radix(columns.next()?.split(':').next()?, 16).ok()?;
    let retransmits = u64::from_str_radix(columns.next()?, 16).ok()?;
    let uid = columns.next()?.parse().ok()?;
    let probes: u64 = columns.next()?.parse().ok()?;
    let inode = columns.next()?.parse().ok()?;
    Some(Socket {
        acknowledged_age: None,
        unacknowledged: None,
        send_queue: u32::from_str_radix(send_queue, 16).ok()?,
        receive_queue: u32::from_str_radix(receive_queue, 16).ok()?,
        segments_out: None,
        segments_in: None,
        cookie: inode,
        local,
        remote,
        state,
        uid,
        inode,
        cgroup: None,
        keepalive: timer == 2,
        retransmits: u8::try_from(retransmits).unwrap_or(u8::MAX),
        probes: u8::try_from(probes).unwrap_or(u8::MAX),
        sent_age: None,
        received_age: None,
    })
}

/// `0100007F:1538`, or 32 digits for v6: words of 32 bits in the host's order, the port as a number.
fn parse_end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index * 8)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(normalised(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_row_of_each_family_is_read() {
        let v4 = "   1: 0100007F:9C40 0500000A:1538 08 00000000:00000005 02:00000A7C 00000003  1000        2 4711 2 0000000000000000 20 4 0 10 -1";
        let socket = parse_row(v4).unwrap();
        assert_eq!(socket.local, "127.0.0.1:40000".parse().unwrap());
        assert_eq!(socket.remote, "10.0.0.5:5432".parse().unwrap());
        assert_eq!((socket.state, socket.uid, socket.inode), (TcpState::CloseWait, 1000, 4711));
        assert_eq!((socket.keepalive, socket.retransmits, socket.probes), (true, 3, 2));
        assert_eq!((socket.send_queue, socket.receive_queue), (0, 5));
        let v6 = " 0: 00000000000000000000000001000000:1538 0000000000000000FFFF00000500000A:0001 0A 0:0 00:0 0 0 0 9";
        let socket = parse_row(v6).unwrap();
        assert_eq!(socket.local, "[::1]:5432".parse().unwrap());
        assert_eq!(socket.remote, "10.0.0.5:1".parse().unwrap());
    }

    #[test]
    fn a_cut_table_is_an_error_and_not_a_shorter_one() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("net")).unwrap();
        std::fs::write(root.path().join("net/tcp"), "  sl  local_address\n   0: 0100007F:9C40 05000").unwrap();
        let answer = read(root.path(), |_, _, _| true, &mut Vec::new());
        assert!(matches!(answer, Err(KernelError::Malformed(_))), "{answer:?}");
    }

    proptest! {
        #[test]
        fn never_panics(row in ".{0,200}", end in "[0-9A-F:é]{0,45}") {
            let _ = parse_row(&row);
            let _ = parse_row(&format!("0: {end} {end} 01 0:0 00:0 0 0 0 1"));
        }

        #[test]
        fn a_table_of_any_bytes_is_rows_or_an_error(table in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let mut count = 0;
            if read_table(&table[..], |_| count += 1).is_ok() {
                let rows = table.split_inclusive(|byte| *byte == b'\n').count();
                prop_assert_eq!(count, rows.saturating_sub(1));
            }
        }
    }
}
