//! The truth about processes and sessions, read without any code of the agent.

use std::collections::{BTreeMap, BTreeSet};

use crate::postgres::Postgres;
use crate::stage::StageError;

/// In the column of the state.
const ESTABLISHED: &str = "01";

/// The TCP socket behind a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// Local port.
    pub port: u16,
    /// Number of its TCP state: 1 is ESTABLISHED, 8 is CLOSE_WAIT.
    pub state: u8,
}

/// The socket behind descriptor `fd` of process `pid`: descriptor, inode, row of the process's socket table.
///
/// # Errors
/// When the descriptor is no TCP socket of that process (any more).
pub fn socket(pid: u32, fd: u32) -> Result<Socket, StageError> {
    let link = format!("/proc/{pid}/fd/{fd}");
    let target = std::fs::read_link(&link).map_err(StageError::system(format!("read {link}")))?;
    let target = target.to_string_lossy().into_owned();
    let wrong = |found: String| StageError::Malformed { what: link.clone(), found };
    let inode = inode_of(&target).ok_or_else(|| wrong(target.clone()))?;
    for table in ["tcp", "tcp6"] {
        let rows = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for row in rows.lines().skip(1) {
            if row.split_ascii_whitespace().nth(9) == Some(inode) {
                return parse(row).ok_or_else(|| wrong(row.to_owned()));
            }
        }
    }
    Err(wrong(format!("{target}, which no socket table lists")))
}

/// How many established TCP connections a process has to this port, over v4.
pub fn connections_to(pid: u32, port: u16) -> Result<usize, StageError> {
    let folder = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&folder).map_err(StageError::system(format!("read {folder}")))?;
    let links = entries.flatten().filter_map(|it| std::fs::read_link(it.path()).ok());
    let ours: BTreeSet<String> = links.filter_map(|it| inode_of(&it.to_string_lossy()).map(str::to_owned)).collect();
    let rows = std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))
        .map_err(StageError::system("read the table of sockets"))?;
    let remote = format!(":{port:04X}");
    // By the inode: another process may have the same local port towards another address.
    let is_ours = |row: &&str| {
        let columns: Vec<&str> = row.split_ascii_whitespace().collect();
        let of = |column: usize| columns.get(column).copied().unwrap_or_default();
        of(2).ends_with(&remote) && of(3) == ESTABLISHED && ours.contains(of(9))
    };
    Ok(rows.lines().skip(1).filter(is_ours).count())
}

/// `88123` of `socket:[88123]`.
fn inode_of(link: &str) -> Option<&str> {
    link.strip_prefix("socket:[")?.strip_suffix(']')
}

/// Descriptors of a process's TCP sockets, by local port.
pub fn descriptors(pid: u32) -> Result<BTreeMap<u16, u32>, StageError> {
    let folder = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&folder).map_err(StageError::system(format!("read {folder}")))?;
    let numbers = entries.flatten().filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    // Files, pipes and what was closed meanwhile are no TCP sockets.
    Ok(numbers.filter_map(|fd| socket(pid, fd).ok().map(|it| (it.port, fd))).collect())
}

/// Local address and state are the second and fourth column, in hexadecimal.
fn parse(row: &str) -> Option<Socket> {
    let mut columns = row.split_ascii_whitespace();
    let port = columns.nth(1)?.rsplit(':').next()?;
    let state = columns.nth(1)?;
    Some(Socket { port: u16::from_str_radix(port, 16).ok()?, state: u8::from_str_radix(state, 16).ok()? })
}

/// One client backend as the server itself tells it, to a superuser.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// The backend's process id.
    pub pid: i32,
    /// `state`.
    pub state: String,
    /// `state_change` in seconds since 1970.
    pub state_changed_at: f64,
    /// `xact_start` in seconds since 1970; 0 outside a transaction.
    pub transaction_began_at: f64,
    /// `backend_start` in seconds since 1970: when the client connected.
    pub started_at: f64,
    /// `application_name`.
    pub application_name: String,
}

/// All client backends that came over TCP, by the client's port.
pub fn backends(server: &Postgres) -> Result<BTreeMap<u16, Backend>, StageError> {
    let rows = server.sql(
        "SELECT client_port, pid, coalesce(state, ''), coalesce(extract(epoch FROM state_change), 0), \
         coalesce(extract(epoch FROM xact_start), 0), extract(epoch FROM backend_start), application_name \
         FROM pg_stat_activity WHERE backend_type = 'client backend' AND client_port > 0",
    )?;
    let mut found = BTreeMap::new();
    for row in rows {
        let wrong = || StageError::Malformed { what: "pg_stat_activity".into(), found: format!("{row:?}") };
        let [port, pid, state, changed, began, started, name] = row.as_slice() else { return Err(wrong()) };
        let backend = Backend {
            pid: pid.parse().map_err(|_| wrong())?,
            state: state.clone(),
            state_changed_at: changed.parse().map_err(|_| wrong())?,
            transaction_began_at: began.parse().map_err(|_| wrong())?,
            started_at: started.parse().map_err(|_| wrong())?,
            application_name: name.clone(),
        };
        found.insert(port.parse().map_err(|_| wrong())?, backend);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_the_socket_table_is_read_by_its_columns() {
        let row = "   3: 0100007F:9C40 0100007F:1538 08 00000000:00000001 00:00000000 00000000  1000 0 88123 1 0 20 4 30 10 -1";
        assert_eq!(parse(row), Some(Socket { port: 40_000, state: 8 }));
        assert_eq!(parse("   3: 0100007F:9C40"), None);
    }

    #[test]
    fn connections_are_counted_by_whose_they_are_and_where_they_lead() {
        use std::net::{TcpListener, TcpStream};
        let [here, there] = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
        let [here, there] = [here, there].map(|it| (it.local_addr().expect("it is bound").port(), it));
        let _ours = [(); 2].map(|()| TcpStream::connect(("127.0.0.1", here.0)).expect("it listens"));
        let (me, parent) = (std::process::id(), std::os::unix::process::parent_id());
        assert_eq!((connections_to(me, here.0).unwrap(), connections_to(me, there.0).unwrap()), (2, 0));
        assert_eq!(connections_to(parent, here.0).unwrap_or(0), 0, "they are not its own");
    }

    #[test]
    fn our_own_socket_is_found_behind_its_descriptor() {
        use std::os::fd::AsRawFd;
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let fd = u32::try_from(listener.as_raw_fd()).expect("descriptors are positive");
        let found = socket(std::process::id(), fd).expect("it is a socket");
        assert_eq!(found, Socket { port, state: 10 }, "LISTEN");
        assert!(socket(std::process::id(), 9_999).is_err());
    }
}
