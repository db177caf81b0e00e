//! Whose session is it: a server's rows matched with the sockets of this host.
//!
//! A row of the server names its client's address and port, which is the local end of exactly one socket. Rows of other
//! hosts' clients are not ours and join nothing. A row without address (hidden from our role, or over a unix socket) is
//! joined by the other end: on this host we see which backend, or which descriptor of the server, holds it. A row or a
//! socket that joins nothing once was opened or closed between the two looks; only at the second look in a row does
//! that say something.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use crate::discover::End;
use crate::inspect::host::{Connection, Owner, PoolRow, TcpState, port_of_path};
use crate::inspect::server::{Engine, Session};
use crate::inspect::{Reason, ServerLook};

/// A session and the socket behind it.
#[derive(Debug, Clone, Copy)]
pub struct Joined<'a> {
    /// The server's row.
    pub session: &'a Session,
    /// The pool that holds the socket.
    pub pool: &'a PoolRow,
    /// The socket.
    pub connection: &'a Connection,
    /// False when only the process is certain: any of its connections to this server may be the one.
    pub is_exact: bool,
}

/// What a look at a server and a look at this host say together.
#[derive(Debug, Default)]
pub struct Join<'a> {
    /// Sessions with their sockets, in the server's order.
    pub joined: Vec<Joined<'a>>,
    /// Established connections of this host to the server for which it has no row.
    pub without_session: Vec<(&'a PoolRow, &'a Connection)>,
    /// Rows with an address of this host for which there is no socket here: other namespaces, or ended since.
    pub without_socket: Vec<&'a Session>,
    /// Rows of clients on other hosts.
    pub elsewhere: usize,
    /// Rows without address, hidden from our role or over a unix socket, whose other end was not seen either.
    pub unnamed: Vec<&'a Session>,
    /// How many those are, with the ones that the server did not list.
    pub without_address: usize,
}

impl Join<'_> {
    /// Established connections of this host to the server.
    pub fn open(&self) -> usize {
        self.joined.len() + self.without_session.len()
    }

    /// There are connections, and not one row of the server is of them: an address is translated on the way.
    pub fn is_translated(&self) -> bool {
        self.joined.is_empty() && self.without_session.iter().any(|(_, it)| it.local.address().is_some())
    }

    /// There are rows without address, and connections over unix sockets of which nobody may be seen at the other end.
    pub fn hides_ends(&self) -> bool {
        let is_hidden = |it: &Connection| it.peer.is_none() && it.local.address().is_none();
        self.without_address > 0 && self.without_session.iter().any(|(_, it)| is_hidden(it))
    }
}

/// Why a session over a unix socket cannot be told from another.
pub(super) fn hidden_ends(engine: Engine) -> Reason {
    Reason::Denied(format!("the descriptors of {}'s processes, which tell whose a unix socket is", engine.name()))
}

/// Joins a server's sessions with the connections of `pools` to it.
pub fn join<'a>(look: &'a ServerLook, pools: &'a [PoolRow]) -> Join<'a> {
    let mut sockets: HashMap<SocketAddr, (&PoolRow, &Connection)> = HashMap::new();
    let mut ours: HashSet<IpAddr> = HashSet::new();
    let mut unix = Vec::new();
    let of_server = is_of_server(look, pools);
    for pool in pools.iter().filter(|it| of_server(&it.remote)) {
        for connection in &pool.connections {
            let Some(local) = connection.local.address().map(canonical) else {
                unix.push((pool, connection));
                continue;
            };
            ours.insert(local.ip());
            let is_named = pool
                .remote
                .address()
                .is_some_and(|remote| look.addresses.iter().any(|it| canonical(*it) == canonical(remote)));
            // One local port may lead to two remotes: the one that the DSN names is this server's.
            if is_named || !sockets.contains_key(&local) {
                sockets.insert(local, (pool, connection));
            }
        }
    }
    let sessions = look.sessions.as_deref().unwrap_or_default();
    let by_address: Vec<_> = sessions.iter().map(|it| clients(it).find_map(|client| sockets.remove(&client))).collect();
    let mut rest: Vec<(&PoolRow, &Connection)> = sockets.into_values().chain(unix).collect();
    rest.sort_by_key(|(_, connection)| connection.cookie);
    let mut by_peer = ByPeer::of(&rest);
    let mut join = Join::default();
    for (session, found) in sessions.iter().zip(by_address) {
        match (found, clients(session).next()) {
            (Some((pool, connection)), _) => {
                join.joined.push(Joined { session, pool, connection, is_exact: true });
            }
            (None, None) => match by_peer.take(look.engine, session) {
                Some((pool, connection, is_exact)) => {
                    join.joined.push(Joined { session, pool, connection, is_exact });
                }
                None => join.unnamed.push(session),
            },
            (None, Some(_)) if clients(session).any(|it| ours.contains(&it.ip())) => {
                join.without_socket.push(session);
            }
            (None, Some(_)) => join.elsewhere += 1,
        }
    }
    join.without_address = look.unseen + join.unnamed.len();
    let joined: HashSet<u64> = join.joined.iter().map(|it| it.connection.cookie).collect();
    rest.retain(|(_, it)| it.state == TcpState::Established && !joined.contains(&it.cookie));
    join.without_session = rest;
    join
}

/// What the client's end may be: one address, or those of its name.
fn clients(session: &Session) -> impl Iterator<Item = SocketAddr> {
    let addresses = session.address.into_iter().chain(session.address_candidates.iter().copied());
    session
        .port
        .into_iter()
        .flat_map(move |port| addresses.clone().map(move |address| SocketAddr::new(address.to_canonical(), port)))
}

/// Connections by who holds their other end, and those over a unix socket by who holds this one.
#[derive(Debug, Default)]
struct ByPeer<'a> {
    by_owner: HashMap<u32, Vec<(&'a PoolRow, &'a Connection)>>,
    /// Owners with more than one.
    ambiguous: HashSet<u32>,
    by_pid: HashMap<u64, (&'a PoolRow, &'a Connection)>,
    by_fd: HashMap<u32, (&'a PoolRow, &'a Connection)>,
}

impl<'a> ByPeer<'a> {
    fn of(connections: &[(&'a PoolRow, &'a Connection)]) -> Self {
        let mut all = Self::default();
        for (pool, connection) in connections {
            if let (Owner::Seen { instance, .. }, End::Unix(_)) = (&pool.owner, &connection.local) {
                all.by_owner.entry(instance.pid).or_default().push((pool, connection));
            }
            if let Some(peer) = connection.peer {
                all.by_pid.insert(peer.pid.into(), (*pool, *connection));
                all.by_fd.insert(peer.fd, (*pool, *connection));
            }
        }
        all.ambiguous = all.by_owner.iter().filter(|(_, held)| held.len() > 1).map(|(pid, _)| *pid).collect();
        all
    }

    /// By the server's own descriptor where it tells one (it is one process), else by the pid of the backend, which is
    /// PostgreSQL's number of a session and of no other; else by the client's process where the server tells it, which
    /// names the connection only when the process has one. The third says whether it is certainly this one.
    fn take(&mut self, engine: Engine, session: &Session) -> Option<(&'a PoolRow, &'a Connection, bool)> {
        if let Some(pid) = session.client_pid {
            let (pool, connection) = self.by_owner.get_mut(&pid)?.pop()?;
            return Some((pool, connection, !self.ambiguous.contains(&pid)));
        }
        let (pool, connection) = match session.socket_fd {
            Some(fd) => self.by_fd.remove(&fd),
            None if engine == Engine::PostgreSql => self.by_pid.remove(&session.backend),
            None => None,
        }?;
        Some((pool, connection, true))
    }
}

/// Whether a remote end is this server: an address or path of its DSN, or, when the server is here, the same port of this
/// host, be it in the name of a unix socket of PostgreSQL (`.s.PGSQL.5432`).
pub(in crate::judge) fn is_of_server<'a>(look: &'a ServerLook, pools: &'a [PoolRow]) -> impl Fn(&End) -> bool + 'a {
    let here: HashSet<IpAddr> = pools
        .iter()
        .filter(|it| it.vantage.is_own())
        .flat_map(|it| &it.connections)
        .filter_map(|it| Some(canonical(it.local.address()?).ip()))
        .collect();
    let is_here = move |address: IpAddr| address.is_loopback() || here.contains(&address);
    let server_is_here = look.socket_path.is_some() || look.addresses.iter().any(|it| is_here(canonical(*it).ip()));
    let named = look.socket_path.as_deref().and_then(port_of_path);
    let ports: HashSet<u16> = look.addresses.iter().map(SocketAddr::port).chain(named).collect();
    move |remote| match remote {
        End::Tcp(remote) => {
            let remote = canonical(*remote);
            let is_named = look.addresses.iter().any(|it| canonical(*it) == remote);
            is_named || (server_is_here && ports.contains(&remote.port()) && is_here(remote.ip()))
        }
        End::Apart(_) => false,
        End::Unix(path) => match &look.socket_path {
            Some(named) => named == path,
            // Two servers with one port on one host listen in two directories, and both would have to be asked over TCP.
            None => {
                let speaks = matches!(look.engine, Engine::PostgreSql | Engine::PgBouncer);
                let port = port_of_path(path).filter(|_| speaks);
                server_is_here && port.is_some_and(|port| ports.contains(&port))
            }
        },
    }
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::host::Peer;
    use crate::judge::tests::rows::{connection, pool, server, session};

    /// `backend=pid/fd` of each joined row, then the four counts of the others.
    fn shown(look: &ServerLook, pools: &[PoolRow]) -> String {
        let join = join(look, pools);
        let mut rows: Vec<String> = join
            .joined
            .iter()
            .map(|it| format!("{}={}", it.session.backend, it.connection.fds.first().copied().unwrap_or_default()))
            .collect();
        rows.push(format!(
            "{} {} {} {}",
            join.without_session.len(),
            join.without_socket.len(),
            join.elsewhere,
            join.without_address
        ));
        rows.join(" ")
    }

    #[test]
    fn a_row_joins_the_socket_with_its_local_end() {
        let mut it = pool("shop", 77, "10.0.0.5:5432");
        it.connections = vec![connection("10.0.0.9:40000", 17), connection("10.0.0.9:40001", 18)];
        let look = server("10.0.0.5:5432", vec![session(901, "10.0.0.9:40001"), session(900, "10.0.0.9:40000")]);
        assert_eq!(shown(&look, &[it]), "901=18 900=17 0 0 0 0");
    }

    #[test]
    fn both_sides_may_write_v4_as_v6() {
        let mut it = pool("shop", 77, "[::ffff:10.0.0.5]:5432");
        it.connections = vec![connection("[::ffff:10.0.0.9]:40000", 17), connection("10.0.0.9:40001", 18)];
        let rows = vec![session(900, "10.0.0.9:40000"), session(901, "[::ffff:10.0.0.9]:40001")];
        assert_eq!(shown(&server("10.0.0.5:5432", rows), &[it]), "900=17 901=18 0 0 0 0");
    }

    #[test]
    fn rows_of_other_hosts_and_of_other_namespaces_are_told_apart() {
        let mut it = pool("shop", 77, "10.0.0.5:5432");
        it.connections = vec![connection("10.0.0.9:40000", 17), connection("10.0.0.9:40002", 19)];
        let mut hidden = session(903, "10.0.0.9:1");
        (hidden.address, hidden.port) = (None, None);
        let rows = vec![
            session(900, "10.0.0.9:40000"),
            session(901, "10.0.0.9:41000"),
            session(902, "10.0.0.8:40000"),
            hidden,
        ];
        assert_eq!(shown(&server("10.0.0.5:5432", rows), &[it]), "900=17 1 1 1 1");
    }

    #[test]
    fn a_server_on_this_host_is_the_same_by_any_of_its_addresses() {
        let mut near = pool("shop", 77, "10.0.0.9:5432");
        near.connections = vec![connection("10.0.0.9:40000", 17)];
        let look = server("127.0.0.1:5432", vec![session(900, "10.0.0.9:40000")]);
        assert_eq!(shown(&look, &[near]), "900=17 0 0 0 0");
        let mut far = pool("shop", 77, "10.0.0.5:5432");
        far.connections = vec![connection("10.0.0.9:40000", 17)];
        assert_eq!(shown(&look, &[far]), "0 0 1 0", "another server's connection is not joined by its port alone");
    }

    #[test]
    fn one_local_port_to_two_servers_is_the_one_that_was_asked() {
        let mut asked = pool("shop", 77, "127.0.0.1:5432");
        asked.connections = vec![connection("127.0.0.1:40000", 17)];
        let mut other = pool("shop", 77, "127.0.0.1:5433");
        other.connections = vec![connection("127.0.0.1:40000", 18)];
        let look = server("127.0.0.1:5432", vec![session(900, "127.0.0.1:40000")]);
        assert_eq!(shown(&look, &[other, asked]), "900=17 0 0 0 0");
    }

    #[test]
    fn no_row_of_ours_at_all_is_a_translation() {
        let mut it = pool("shop", 77, "10.0.0.5:5432");
        it.connections = vec![connection("10.0.0.9:40000", 17)];
        let pools = [it];
        let translated = server("10.0.0.5:5432", vec![session(900, "192.168.0.1:40000")]);
        assert!(join(&translated, &pools).is_translated());
        let whole = server("10.0.0.5:5432", vec![session(900, "10.0.0.9:40000")]);
        assert!(!join(&whole, &pools).is_translated());
        assert!(!join(&translated, &[]).is_translated(), "no connections, nothing to translate");
    }

    fn peer(connection: &mut Connection, pid: u32, fd: u32) {
        connection.peer = Some(Peer { pid, fd });
    }

    #[test]
    fn a_row_without_address_joins_by_the_backend_that_holds_the_other_end() {
        let mut it = pool("shop", 77, "127.0.0.1:5432");
        it.connections = [17, 18, 19].map(|fd| connection(&format!("127.0.0.1:400{fd}"), fd)).to_vec();
        peer(&mut it.connections[0], 900, 9);
        peer(&mut it.connections[1], 901, 9);
        let mut hidden = [session(901, "127.0.0.1:1"), session(900, "127.0.0.1:1"), session(902, "127.0.0.1:1")];
        hidden.iter_mut().for_each(|it| (it.address, it.port) = (None, None));
        let look = server("127.0.0.1:5432", hidden.to_vec());
        let pools = [it];
        assert_eq!(shown(&look, &pools), "901=18 900=17 1 0 0 1");
        let joined = join(&look, &pools);
        assert_eq!(joined.unnamed.iter().map(|it| it.backend).collect::<Vec<_>>(), [902]);
    }

    #[test]
    fn an_address_wins_over_the_other_end() {
        let mut it = pool("shop", 77, "127.0.0.1:5432");
        it.connections = vec![connection("127.0.0.1:40000", 17)];
        peer(&mut it.connections[0], 901, 9);
        let mut hidden = session(901, "127.0.0.1:1");
        (hidden.address, hidden.port) = (None, None);
        let look = server("127.0.0.1:5432", vec![hidden, session(900, "127.0.0.1:40000")]);
        assert_eq!(shown(&look, &[it]), "900=17 0 0 0 1");
    }

    #[test]
    fn a_server_that_tells_its_descriptor_is_joined_by_it_and_not_by_a_number_that_looks_like_a_pid() {
        let mut it = pool("shop", 77, "127.0.0.1:5432");
        it.connections = vec![connection("127.0.0.1:40000", 17), connection("127.0.0.1:40001", 18)];
        peer(&mut it.connections[0], 4000, 31);
        peer(&mut it.connections[1], 4000, 32);
        let mut rows = vec![session(4000, "127.0.0.1:1"), session(8, "127.0.0.1:1")];
        rows.iter_mut().zip([32, 33]).for_each(|(it, fd)| (it.port, it.socket_fd) = (None, Some(fd)));
        assert_eq!(shown(&server("127.0.0.1:5432", rows), &[it]), "4000=18 1 0 0 1");
    }

    #[test]
    fn a_pool_over_a_unix_socket_is_the_servers_by_its_path_or_its_port() {
        let path = "/run/postgresql/.s.PGSQL.5432";
        let mut it = pool("shop", 77, "127.0.0.1:5432");
        it.remote = End::Unix(path.into());
        it.connections = vec![connection("127.0.0.1:40000", 17), connection("127.0.0.1:40001", 18)];
        it.connections.iter_mut().for_each(|it| it.local = End::Unix("".into()));
        peer(&mut it.connections[0], 900, 9);
        let mut row = session(900, "127.0.0.1:1");
        (row.address, row.port) = (None, None);
        let pools = [it];
        let by_tcp = server("127.0.0.1:5432", vec![row.clone()]);
        assert_eq!(shown(&by_tcp, &pools), "900=17 1 0 0 0");
        let mut by_path = server("127.0.0.1:5432", vec![row.clone()]);
        (by_path.addresses, by_path.socket_path) = (Vec::new(), Some(path.into()));
        assert_eq!(shown(&by_path, &pools), "900=17 1 0 0 0");
        by_path.socket_path = Some("/tmp/.s.PGSQL.5432".into());
        assert_eq!(shown(&by_path, &pools), "0 0 0 1", "another server of the same port, in another directory");
        let elsewhere = server("10.0.0.5:5432", vec![row]);
        assert_eq!(shown(&elsewhere, &pools), "0 0 0 1", "a server of another host has no socket here");
    }
}
