//! Which remote endpoints a pool may lead to.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use super::found_ports::FoundPorts;
use crate::discover::End;
use crate::inspect::ServerLook;

/// Ports whose services are used through pools, and what they speak.
const SERVICES: &[(u16, &str)] = &[
    (1433, "sqlserver"),
    (1521, "oracle"),
    (3306, "mysql"),
    (4222, "nats"),
    (5432, "postgresql"),
    (5433, "postgresql"),
    (5671, "rabbitmq"),
    (5672, "rabbitmq"),
    (6379, "redis"),
    (6380, "redis"),
    (6432, "pgbouncer"),
    (9042, "cassandra"),
    (9092, "kafka"),
    (11211, "memcached"),
    (26257, "postgresql"),
    (27017, "mongodb"),
    (33060, "mysql"),
];

/// What a port usually speaks; `None` for a port that is not among the known services.
pub fn service_of(port: u16) -> Option<&'static str> {
    SERVICES.binary_search_by_key(&port, |(known, _)| *known).ok().map(|at| SERVICES[at].1)
}

/// What usually listens on a unix socket of that path.
pub(super) fn service_of_path(path: &str) -> Option<&'static str> {
    let (directory, name) = path.rsplit_once('/')?;
    if name.starts_with(".s.PGSQL.") {
        let is_pooler = directory.contains("pgbouncer");
        return port_of_path(path).map(|port| match service_of(port) {
            Some("pgbouncer") => "pgbouncer",
            _ if is_pooler => "pgbouncer",
            _ => "postgresql",
        });
    }
    let stem = name.strip_suffix(".sock")?;
    match stem {
        "mysqld" | "mysql" | "mysqlx" | "mariadb" | "mariadbd" => Some("mysql"),
        _ if stem.starts_with("redis") || stem.starts_with("valkey") => Some("redis"),
        _ => None,
    }
}

/// The port in the name of a unix socket of PostgreSQL.
pub fn port_of_path(path: &str) -> Option<u16> {
    path.rsplit('/').next()?.strip_prefix(".s.PGSQL.")?.parse().ok()
}

/// Servers that somebody configured: even one connection to them is a pool, and two to their ports wherever they lead.
/// Those who know the addresses tell them, by name of the source (an inspector's name, a target); they are read at each
/// look. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    by_source: Arc<Mutex<BTreeMap<String, Told>>>,
}

type Told = (&'static str, Vec<End>);

impl Endpoints {
    /// Replaces what one source has told: its service (`postgresql`) and its ends; v4-mapped addresses are taken as v4.
    pub fn set(&self, source: &str, service: &'static str, ends: impl IntoIterator<Item = End>) {
        let canonical = |end| match end {
            End::Tcp(one) => End::Tcp(SocketAddr::new(one.ip().to_canonical(), one.port())),
            other => other,
        };
        let ends = ends.into_iter().map(canonical).collect();
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        by_source.insert(source.to_owned(), (service, ends));
    }

    /// Replaces what one source has told by what a look at a server says of its addresses and its unix socket.
    pub fn learn(&self, source: &str, look: &ServerLook) {
        let addresses = look.addresses.iter().copied().map(End::Tcp);
        self.set(source, look.engine.service(), addresses.chain(look.socket_path.clone().map(End::Unix)));
    }

    /// All of them now.
    pub(super) fn configured(&self) -> Configured {
        let by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        let mut configured = Configured::default();
        for (service, ends) in by_source.values() {
            for end in ends {
                match end {
                    End::Tcp(address) => {
                        configured.services.insert(address.port(), service);
                        configured.addresses.insert(*address);
                    }
                    End::Apart(_) => (),
                    End::Unix(path) => {
                        // Applications may reach the same server over TCP.
                        configured.services.extend(port_of_path(path).map(|port| (port, *service)));
                        configured.paths.insert(path.clone(), service);
                    }
                }
            }
        }
        configured
    }
}

/// The configured servers in one look.
#[derive(Debug, Default)]
pub(super) struct Configured {
    addresses: HashSet<SocketAddr>,
    services: BTreeMap<u16, &'static str>,
    paths: BTreeMap<Arc<str>, &'static str>,
}

impl Configured {
    /// Adds what is spoken at ports that were found; what somebody configured stands.
    pub(super) fn add(&mut self, found: &FoundPorts) {
        for (port, service) in found {
            self.services.entry(*port).or_insert(service);
        }
    }

    /// Whether the path is one of theirs, or a known server's by its name.
    pub(super) fn watches_path(&self, path: &str) -> bool {
        self.has_path(path) || service_of_path(path).is_some()
    }

    /// Their ports.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.services.keys().copied()
    }

    /// Whether a remote end is one of them. All of loopback is this host, whichever name of it an application took.
    pub(super) fn contains(&self, remote: SocketAddr) -> bool {
        self.addresses.contains(&remote)
            || (remote.ip().is_loopback()
                && self.addresses.iter().any(|one| one.port() == remote.port() && one.ip().is_loopback()))
    }

    /// Whether a pool's remote end is one of them.
    pub(super) fn contains_end(&self, remote: &End) -> bool {
        match remote {
            End::Tcp(remote) => self.contains(*remote),
            // It leads to no server that this agent could have been told of.
            End::Apart(_) => false,
            End::Unix(path) => self.has_path(path),
        }
    }

    /// Whether one of them is known by a unix socket.
    pub(super) fn has_paths(&self) -> bool {
        !self.paths.is_empty()
    }

    /// Whether one of them listens on this unix socket.
    pub(super) fn has_path(&self, path: &str) -> bool {
        self.paths.contains_key(path)
    }

    /// Whether a path may be one of theirs under another name of its directory.
    pub(super) fn may_be_path(&self, path: &str) -> bool {
        let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
        self.paths.keys().any(|known| name(known) == name(path))
    }

    /// What a remote end speaks: as configured, else as usual.
    pub(super) fn service_at(&self, remote: &End) -> Option<&'static str> {
        match remote {
            End::Tcp(remote) | End::Apart(remote) => self.service(remote.port()),
            End::Unix(path) => self.paths.get(path).copied().or_else(|| service_of_path(path)),
        }
    }

    /// What a port speaks: as configured, else as usual.
    pub(super) fn service(&self, port: u16) -> Option<&'static str> {
        self.services.get(&port).copied().or_else(|| service_of(port))
    }
}

/// Ports as a set with one bit each, asked once for every socket of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    bits: Box<[u64; 1024]>,
}

impl Ports {
    /// The known services and `further`.
    pub(super) fn known_and(further: impl IntoIterator<Item = u16>) -> Self {
        Self::of(SERVICES.iter().map(|(port, _)| *port).chain(further))
    }

    /// These alone.
    pub(super) fn of(all: impl IntoIterator<Item = u16>) -> Self {
        let mut ports = Self { bits: Box::new([0; 1024]) };
        for port in all {
            ports.bits[usize::from(port >> 6)] |= 1 << (port & 63);
        }
        ports
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        let words = self.bits.iter().enumerate().filter(|(_, word)| **word != 0);
        words.flat_map(|(at, word)| {
            (0..64).filter(move |bit| word & 1 << bit != 0).map(move |bit| (at << 6 | bit) as u16)
        })
    }

    /// Whether `port` is in it.
    pub(super) fn contains(&self, port: u16) -> bool {
        self.bits[usize::from(port >> 6)] & 1 << (port & 63) != 0
    }
}

/// What this host listens on: a socket whose local end is among it was accepted, not opened.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    exact: HashSet<SocketAddr>,
    any: HashSet<u16>,
}

impl Listeners {
    pub(super) fn clear(&mut self) {
        self.exact.clear();
        self.any.clear();
    }

    pub(super) fn add(&mut self, local: SocketAddr) {
        match local.ip() {
            IpAddr::V4(address) if address.is_unspecified() => self.any.insert(local.port()),
            IpAddr::V6(address) if address.is_unspecified() => self.any.insert(local.port()),
            _ => self.exact.insert(local),
        };
    }

    pub(super) fn accepted(&self, local: SocketAddr) -> bool {
        self.any.contains(&local.port()) || self.exact.contains(&local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_by_port() {
        assert!(SERVICES.is_sorted_by_key(|(port, _)| *port));
        assert_eq!(service_of(5432), Some("postgresql"));
        assert_eq!(service_of(27017), Some("mongodb"));
        assert_eq!(service_of(80), None);
    }

    #[test]
    fn a_configured_unix_socket_is_known_by_its_path_and_the_port_in_its_name() {
        let endpoints = Endpoints::default();
        let path = "/srv/run/.s.PGSQL.6100";
        endpoints.set("a", "postgresql", [End::Unix(path.into())]);
        let configured = endpoints.configured();
        assert!(configured.contains_end(&End::Unix(path.into())));
        assert!(!configured.contains_end(&End::Unix("/run/.s.PGSQL.6100".into())));
        assert!(configured.may_be_path("/var/run/.s.PGSQL.6100") && !configured.may_be_path("/srv/run/.s.PGSQL.6101"));
        assert_eq!(configured.ports().collect::<Vec<_>>(), [6100]);
        assert!(!configured.contains("10.0.0.5:6100".parse().unwrap()), "one connection elsewhere is no pool");
    }

    #[test]
    fn services_are_found_by_the_name_of_their_unix_socket() {
        for (path, service) in [
            ("/run/postgresql/.s.PGSQL.5432", Some("postgresql")),
            ("/tmp/.s.PGSQL.6000", Some("postgresql")),
            ("/run/postgresql/.s.PGSQL.6432", Some("pgbouncer")),
            ("/run/pgbouncer/.s.PGSQL.5432", Some("pgbouncer")),
            ("/run/mysqld/mysqld.sock", Some("mysql")),
            ("/run/redis/redis-server.sock", Some("redis")),
            ("/tmp/.s.PGSQL.5432.lock", None),
            ("/run/systemd/notify.sock", None),
            ("mysqld.sock", None),
            ("", None),
        ] {
            assert_eq!(service_of_path(path), service, "{path}");
        }
        assert_eq!(port_of_path("/tmp/.s.PGSQL.6000"), Some(6000));
    }

    #[test]
    fn a_set_of_ports_holds_the_ends_of_its_range() {
        let ports = Ports::known_and([0, 65_535]);
        assert!([0, 65_535, 5432, 6379].iter().all(|port| ports.contains(*port)));
        assert_eq!(Ports::of([65_535, 64, 0, 63, 64]).iter().collect::<Vec<_>>(), [0, 63, 64, 65_535]);
        assert!([1, 65_534, 5434, 80].iter().all(|port| !ports.contains(*port)));
    }

    #[test]
    fn a_source_replaces_its_own_addresses_only() {
        let endpoints = Endpoints::default();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        endpoints.set("a", "postgresql", [address("[::ffff:10.0.0.5]:6000").into()]);
        endpoints.set("b", "postgresql", [address("10.0.0.6:6000").into()]);
        endpoints.set("b", "mysql", [address("127.0.0.1:7000").into()]);
        let configured = endpoints.configured();
        assert!(configured.contains(address("10.0.0.5:6000")) && !configured.contains(address("10.0.0.6:6000")));
        assert!(configured.contains(address("[::1]:7000")), "the same server by another name of this host");
        assert!(!configured.contains(address("10.0.0.5:7000")));
        assert_eq!(
            [6000, 7000, 5432, 80].map(|port| configured.service(port)),
            [Some("postgresql"), Some("mysql"), Some("postgresql"), None]
        );
    }

    #[test]
    fn a_local_end_that_is_listened_on_was_accepted() {
        let mut listeners = Listeners::default();
        listeners.add("0.0.0.0:80".parse().unwrap());
        listeners.add("127.0.0.1:5432".parse().unwrap());
        let accepted = |end: &str| listeners.accepted(end.parse().unwrap());
        assert!(accepted("10.0.0.1:80") && accepted("127.0.0.1:5432"));
        assert!(!accepted("10.0.0.1:5432") && !accepted("10.0.0.1:40000"));
    }
}
