//! What runs here without anybody having said so: applications, what they listen on, which pools they hold.
//!
//! A [`TargetKey`] names a thing that is inspected in words that stay the same across restarts: application, role,
//! and listening port or remote endpoint. A process *instance* (pid and start time) is evidence, never a key.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

pub mod application;
pub mod dsn_keys;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub mod limits;
pub mod processes;

/// Stable name of one thing inspected. Cheap to clone.
///
/// Forms: `process:<application>/<role>`, `process:<application>/<role>:<port>` when it listens,
/// `pool:<application>/<role>><address>:<port>` (`netns:127.0.0.1:5432` for loopback in another network namespace,
/// `unix:<path>`), the same with `/<database>?user=<user>` once the server's view is
/// joined, `pool:<application>#<name>` as the application itself calls it, `server:<address>:<port>/<database>`,
/// `endpoint:<url without credentials and query>`, `log:<application>:<path>`, `sqlite:<path>`, `agent:self`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetKey(Arc<str>);

impl TargetKey {
    /// A role of an application; `port` is the lowest port that it listens on.
    pub fn process(application: &str, role: &str, port: Option<u16>) -> Self {
        match port {
            Some(port) => Self(format!("process:{application}/{role}:{port}").into()),
            None => Self(format!("process:{application}/{role}").into()),
        }
    }

    /// The connections of an application's role to one remote endpoint, as the kernel shows them.
    pub fn pool(application: &str, role: &str, remote: &End) -> Self {
        Self(format!("pool:{application}/{role}>{remote}").into())
    }

    /// The same, told apart by what the server knows: database and user.
    pub fn pool_of(application: &str, role: &str, remote: &End, database: &str, user: &str) -> Self {
        Self(format!("pool:{application}/{role}>{remote}/{database}?user={user}").into())
    }

    /// A pool as its application calls it, where no connections can be told to be its own.
    pub fn named_pool(application: &str, name: &str) -> Self {
        Self(format!("pool:{application}#{name}").into())
    }

    /// A database server, by the address that its DSN names (`host:port`) and the database.
    pub fn server(address: &str, database: &str) -> Self {
        Self(format!("server:{address}/{database}").into())
    }

    /// Name or address and port in the key of a database server; `None` for another target.
    pub fn server_address(&self) -> Option<&str> {
        Some(self.0.strip_prefix("server:")?.split_once('/')?.0)
    }

    /// The name or address in the key of a database server; `None` for another target.
    pub fn server_host(&self) -> Option<&str> {
        let (host, _) = self.server_address()?.rsplit_once(':')?;
        Some(host.trim_start_matches('[').trim_end_matches(']'))
    }

    /// An HTTP endpoint; `url` has no credentials, query or fragment.
    pub fn endpoint(url: &str) -> Self {
        Self(format!("endpoint:{url}").into())
    }

    /// An application's log.
    pub fn log(application: &str, path: &str) -> Self {
        Self(format!("log:{application}:{path}").into())
    }

    /// A SQLite database, by the path under which processes have it open.
    pub fn sqlite(path: &str) -> Self {
        Self(format!("sqlite:{path}").into())
    }

    /// The agent itself.
    pub fn agent() -> Self {
        Self("agent:self".into())
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TargetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// An address and port; v4-mapped addresses are v4.
    Tcp(SocketAddr),
    /// An address that means something only in the network namespace of its process, which is not the agent's: loopback
    /// there. Whatever answers to it here is somebody else.
    Apart(SocketAddr),
    /// A unix socket by the path that its listener is bound to; empty for an end without a name.
    Unix(Arc<str>),
}

impl End {
    /// The address, for TCP, where it means the same to the agent.
    pub const fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Apart(_) | Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for End {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Apart(address) => write!(f, "netns:{address}"),
            Self::Unix(path) if path.is_empty() => f.write_str("unix"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// One process in one life: a pid is used again, a pid with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// Process id in the agent's PID namespace.
    pub pid: u32,
    /// Start, in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start: u64,
}

/// Who a process belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Application {
    /// The declared name, or one made from the command line: `uvicorn app.main:app`, `worker.py`, `nginx`.
    pub name: Arc<str>,
    /// `main`, or `worker` when its parent belongs to the same application.
    pub role: &'static str,
    /// Whether the operator named it in `[[app]]`.
    pub declared: bool,
}
