//! Which remote endpoints a pool may lead to.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// Ports whose services are used through pools, and what they speak.
const SERVICES: &[(u16, &str)] = &[
    (1433, "sqlserver"),
    (1521, "oracle"),
    (3306, "mysql"),
    (4222, "nats"),
    (5432, "postgresql"),
    (5671, "rabbitmq"),
    (5672, "rabbitmq"),
    (6379, "redis"),
    (6380, "redis"),
    (6432, "pgbouncer"),
    (9000, "clickhouse"),
    (9042, "cassandra"),
    (9092, "kafka"),
    (9200, "elasticsearch"),
    (11211, "memcached"),
    (26257, "postgresql"),
    (27017, "mongodb"),
    (33060, "mysql"),
];

/// What a port usually speaks; `None` for a port that is not among the known services.
pub fn service_of(port: u16) -> Option<&'static str> {
    SERVICES.binary_search_by_key(&port, |(known, _)| *known).ok().map(|at| SERVICES[at].1)
}

/// Servers that somebody configured: even one connection to them is a pool, and two to their ports wherever they lead.
/// Those who know the addresses tell them, by name of the source (an inspector's name, a target); they are read at each
/// look. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    by_source: Arc<Mutex<BTreeMap<String, Told>>>,
}

type Told = (&'static str, Vec<SocketAddr>);

impl Endpoints {
    /// Replaces what one source has told: its service (`postgresql`) and its addresses; v4-mapped ones are taken as v4.
    pub fn set(&self, source: &str, service: &'static str, addresses: &[SocketAddr]) {
        let addresses = addresses.iter().map(|one| SocketAddr::new(one.ip().to_canonical(), one.port())).collect();
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        by_source.insert(source.to_owned(), (service, addresses));
    }

    /// All of them now.
    pub(super) fn configured(&self) -> Configured {
        let by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        let mut configured = Configured::default();
        for (service, addresses) in by_source.values() {
            for address in addresses {
                configured.services.insert(address.port(), service);
                configured.addresses.insert(*address);
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
}

impl Configured {
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

    /// What a port speaks: as configured, else as usual.
    pub(super) fn service(&self, port: u16) -> Option<&'static str> {
        self.services.get(&port).copied().or_else(|| service_of(port))
    }
}

/// Ports as a set with one bit each, asked once for every socket of the host.
#[derive(Debug, Clone)]
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
    fn a_set_of_ports_holds_the_ends_of_its_range() {
        let ports = Ports::known_and([0, 65_535]);
        assert!([0, 65_535, 5432, 6379].iter().all(|port| ports.contains(*port)));
        assert!([1, 65_534, 5433, 80].iter().all(|port| !ports.contains(*port)));
    }

    #[test]
    fn a_source_replaces_its_own_addresses_only() {
        let endpoints = Endpoints::default();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        endpoints.set("a", "postgresql", &[address("[::ffff:10.0.0.5]:6000")]);
        endpoints.set("b", "postgresql", &[address("10.0.0.6:6000")]);
        endpoints.set("b", "mysql", &[address("127.0.0.1:7000")]);
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
