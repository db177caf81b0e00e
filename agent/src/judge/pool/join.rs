//! Whose session is it: a server's rows matched with the sockets of this host.
//!
//! A row of the server names its client's address and port, which is the local end of exactly one socket. Rows of other
//! hosts' clients are not ours and join nothing. A row or a socket that joins nothing once was opened or closed between
//! the two looks; only at the second look in a row does that say something.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use crate::discover::End;
use crate::inspect::ServerLook;
use crate::inspect::host::{Connection, PoolRow, TcpState};
use crate::inspect::server::Session;

/// A session and the socket behind it.
#[derive(Debug, Clone, Copy)]
pub struct Joined<'a> {
    /// The server's row.
    pub session: &'a Session,
    /// The pool that holds the socket.
    pub pool: &'a PoolRow,
    /// The socket.
    pub connection: &'a Connection,
}

/// What a look at a server and a look at this host say together.
#[derive(Debug, Default)]
pub struct Join<'a> {
    /// Sessions with their sockets, in the server's order.
    pub joined: Vec<Joined<'a>>,
    /// Established connections of this host to the server for which it has no row.
    pub without_session: Vec<(&'a PoolRow, &'a Connection)>,
    /// Rows with an address of this host for which there is no socket here: other namespaces, or ended since.
    pub without_socket: usize,
    /// Rows of clients on other hosts.
    pub elsewhere: usize,
    /// Rows without address: hidden from our role, or over a unix socket. Sessions that have no row count too.
    pub without_address: usize,
}

impl Join<'_> {
    /// Established connections of this host to the server.
    pub fn open(&self) -> usize {
        self.joined.len() + self.without_session.len()
    }

    /// There are connections, and not one row of the server is of them: an address is translated on the way.
    pub fn is_translated(&self) -> bool {
        self.joined.is_empty() && !self.without_session.is_empty()
    }
}

/// Joins a server's sessions with the connections of `pools` to it.
pub fn join<'a>(look: &'a ServerLook, pools: &'a [PoolRow]) -> Join<'a> {
    let mut sockets: HashMap<SocketAddr, (&PoolRow, &Connection)> = HashMap::new();
    let mut ours: HashSet<IpAddr> = HashSet::new();
    let of_server = is_of_server(look, pools);
    for pool in pools.iter().filter(|it| of_server(&it.remote)) {
        for connection in &pool.connections {
            let Some(local) = connection.local.address().map(canonical) else { continue };
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
    let mut join = Join { without_address: look.unseen, ..Join::default() };
    for session in look.sessions.as_deref().unwrap_or_default() {
        let (Some(address), Some(port)) = (session.address, session.port) else {
            join.without_address += 1;
            continue;
        };
        let address = address.to_canonical();
        match sockets.remove(&SocketAddr::new(address, port)) {
            Some((pool, connection)) => join.joined.push(Joined { session, pool, connection }),
            None if ours.contains(&address) => join.without_socket += 1,
            None => join.elsewhere += 1,
        }
    }
    join.without_session = sockets.into_values().filter(|(_, it)| it.state == TcpState::Established).collect();
    join.without_session.sort_by_key(|(_, connection)| connection.cookie);
    join
}

/// Whether a remote end is this server: an address of its DSN, or the same port of this host when the server is here.
pub(super) fn is_of_server<'a>(look: &'a ServerLook, pools: &'a [PoolRow]) -> impl Fn(&End) -> bool + 'a {
    let here: HashSet<IpAddr> = pools
        .iter()
        .flat_map(|it| &it.connections)
        .filter_map(|it| Some(canonical(it.local.address()?).ip()))
        .collect();
    let is_here = move |address: IpAddr| address.is_loopback() || here.contains(&address);
    let server_is_here = look.addresses.iter().any(|it| is_here(canonical(*it).ip()));
    move |remote| {
        let Some(remote) = remote.address().map(canonical) else { return false };
        let is_named = look.addresses.iter().any(|it| canonical(*it) == remote);
        let is_same_port = look.addresses.iter().any(|it| it.port() == remote.port());
        is_named || (server_is_here && is_same_port && is_here(remote.ip()))
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
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
            join.without_socket,
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
}
