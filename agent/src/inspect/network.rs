//! Names to addresses, and what the kernel said, in words.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time;

use crate::scrub;

/// Most addresses of a name that are looked at: a name with more is a mistake or an attack.
const MAX_ADDRESSES: usize = 16;

/// Addresses of a name as sockets show them: an IPv4 address is never written as an IPv6 one, none comes twice.
///
/// An address is its own answer and costs nothing. A name is asked of the system's resolver on a thread of its own,
/// which may go on for longer than `timeout`.
pub(super) async fn resolve(host: &str, port: u16, timeout: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address.to_canonical(), port)]);
    }
    let Ok(answer) = time::timeout(timeout, tokio::net::lookup_host((host, port))).await else {
        return Err(io::Error::from(io::ErrorKind::TimedOut));
    };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in answer?.take(MAX_ADDRESSES) {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    Ok(addresses)
}

/// What the kernel or the resolver said: `connection refused`. Without the number of the error, at most 120 bytes.
pub(super) fn said(error: &io::Error) -> String {
    let known = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset => "connection reset",
        io::ErrorKind::ConnectionAborted => "connection aborted",
        io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => "connection closed",
        io::ErrorKind::HostUnreachable => "no route to host",
        io::ErrorKind::NetworkUnreachable => "network unreachable",
        io::ErrorKind::TimedOut => "timed out",
        io::ErrorKind::NotFound => "not found",
        io::ErrorKind::PermissionDenied => "permission denied",
        _ => "",
    };
    if !known.is_empty() {
        return known.into();
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    scrub::text(text.trim_start_matches("failed to lookup address information: "), 120)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_its_own_answer_in_its_plain_form() {
        for (host, expected) in
            [("127.0.0.1", "127.0.0.1:5432"), ("::1", "[::1]:5432"), ("::ffff:10.0.0.5", "10.0.0.5:5432")]
        {
            let addresses = resolve(host, 5432, Duration::from_secs(5)).await.expect("resolves");
            assert_eq!(addresses, [expected.parse::<SocketAddr>().expect("an address")]);
        }
    }

    #[tokio::test]
    async fn a_name_of_this_host_has_addresses_and_an_impossible_one_an_error_in_words() {
        let addresses = resolve("localhost", 80, Duration::from_secs(5)).await.expect("resolves");
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 80), "{addresses:?}");
        let error = resolve("no such name", 80, Duration::from_secs(5)).await.expect_err("has a space");
        assert!(!said(&error).contains("os error"), "{}", said(&error));
    }

    #[test]
    fn what_was_said_has_no_number() {
        assert_eq!(said(&io::Error::from_raw_os_error(111)), "connection refused");
        assert_eq!(said(&io::Error::from_raw_os_error(24)), "Too many open files");
    }
}
