//! Where a server listens, as a DSN says it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::ConnectError;
use super::dsn::DsnError;
use super::kept::CONNECT_TIMEOUT;
use crate::inspect::network;

/// An address, or a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::inspect) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl Place {
    /// A name or an address of the DSN, and its port.
    pub(in crate::inspect) fn tcp(host: Option<String>, port: u16) -> Result<Self, DsnError> {
        match host {
            None => Err(DsnError::Missing { what: "host" }),
            Some(host) if is_host(&host) => Ok(Self::Tcp { host, port }),
            Some(_) => Err(DsnError::Value { key: "host", expected: "a name or an address" }),
        }
    }

    /// `10.0.0.5:3306`, `[::1]:3306`, `/run/mysqld/mysqld.sock`: the server, as it is called in targets and texts.
    pub(in crate::inspect) fn address(&self) -> String {
        match self {
            Self::Tcp { host, port } => host_and_port(host, *port),
            Self::Unix(path) => path.display().to_string(),
        }
    }

    /// The unix socket that it names.
    pub(in crate::inspect) fn socket(&self) -> Option<String> {
        match self {
            Self::Tcp { .. } => None,
            Self::Unix(path) => Some(path.display().to_string()),
        }
    }

    /// Addresses of the server as sockets show them; none for a unix socket. `server` is named in the error.
    pub(in crate::inspect) async fn addresses(&self, server: String) -> Result<Vec<SocketAddr>, ConnectError> {
        match self {
            Self::Unix(_) => Ok(Vec::new()),
            Self::Tcp { host, port } => resolve(host, *port, server).await,
        }
    }
}

/// The addresses of a server's name; `server` is how it is called in the error.
pub(in crate::inspect) async fn resolve(
    host: &str,
    port: u16,
    server: String,
) -> Result<Vec<SocketAddr>, ConnectError> {
    let found = network::resolve(host, port, CONNECT_TIMEOUT).await;
    found.map_err(|error| ConnectError::Resolve { server, said: network::said(&error) })
}

/// `10.0.0.5:3306`, `[::1]:3306`, `db.internal:3306`.
pub(in crate::inspect) fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether it is a name or an address, and no text that would be something else in another place.
pub(in crate::inspect) fn is_host(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The value of the key `port`.
pub(in crate::inspect) fn port(value: &str) -> Result<u16, DsnError> {
    let expected = "a number from 1 to 65535";
    value.parse().ok().filter(|port| *port > 0).ok_or(DsnError::Value { key: "port", expected })
}
