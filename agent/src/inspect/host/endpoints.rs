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

/// Endpoints where even one connection is a pool, because somebody configured the server: told by those who know their
/// addresses, by name of the source (an inspector's name, a target), and read at each look. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    by_source: Arc<Mutex<BTreeMap<String, Vec<SocketAddr>>>>,
}

impl Endpoints {
    /// Replaces the addresses of one source; v4-mapped ones are taken as v4.
    pub fn set(&self, source: &str, addresses: &[SocketAddr]) {
        let normalised = addresses.iter().map(|one| SocketAddr::new(one.ip().to_canonical(), one.port())).collect();
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        if by_source.get(source) != Some(&normalised) {
            by_source.insert(source.to_owned(), normalised);
        }
    }

    /// All addresses now.
    pub(super) fn all(&self) -> HashSet<SocketAddr> {
        let by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        by_source.values().flatten().copied().collect()
    }
}

/// Ports as a set with one bit each, asked once for every socket of the host.
#[derive(Debug)]
pub(super) struct Ports {
    bits: Box<[u64; 1024]>,
}

impl Ports {
    /// The known services and `further`.
    pub(super) fn known_and(further: impl IntoIterator<Item = u16>) -> Self {
        let mut ports = Self { bits: Box::new([0; 1024]) };
        for port in SERVICES.iter().map(|(port, _)| *port).chain(further) {
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
        endpoints.set("a", &[address("[::ffff:10.0.0.5]:6000")]);
        endpoints.set("b", &[address("10.0.0.6:6000")]);
        endpoints.set("b", &[address("10.0.0.7:6000")]);
        assert_eq!(endpoints.all(), [address("10.0.0.5:6000"), address("10.0.0.7:6000")].into());
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
