//! One PostgreSQL server's own view: the rows.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::discover::TargetKey;
use crate::inspect::{Reason, Value};

/// One look at one server.
#[derive(Debug, Clone)]
pub struct ServerLook {
    /// `server:<host>:<port>/<database>`.
    pub target: TargetKey,
    /// Addresses of the server as the kernel shows them in sockets; empty for a unix socket.
    pub addresses: Vec<SocketAddr>,
    /// Seconds from the first SYN to a ready session, of the connection in use or the last attempt.
    pub connect: Value,
    /// When the last attempt was refused or failed: what the server or the kernel said, scrubbed.
    pub refused: Option<Arc<str>>,
    /// Client backends, our own left out. `Err` when the view could not be read.
    pub sessions: Result<Vec<Session>, Reason>,
    /// `max_connections - superuser_reserved_connections - reserved_connections`.
    pub slots: Value,
    /// Client backends in use, ours included: what stands against `slots`.
    pub used: Value,
    /// Whether the port and state of other roles' sessions are hidden from our role.
    pub hidden: Option<Reason>,
}

/// One client backend of `pg_stat_activity`.
#[derive(Debug, Clone)]
pub struct Session {
    /// Backend's process id at the server.
    pub backend: i32,
    /// `client_addr`; `None` over a unix socket or when hidden.
    pub address: Option<IpAddr>,
    /// `client_port`; `None` over a unix socket or when hidden.
    pub port: Option<u16>,
    /// `datname`.
    pub database: Arc<str>,
    /// `usename`.
    pub user: Arc<str>,
    /// `application_name`, scrubbed.
    pub application_name: Arc<str>,
    /// `state`.
    pub state: SessionState,
    /// Since `state_change`.
    pub state_age: Option<Duration>,
    /// Since `xact_start`.
    pub transaction_age: Option<Duration>,
    /// Since `backend_start`.
    pub session_age: Option<Duration>,
    /// `wait_event_type: wait_event`.
    pub waits_for: Option<Arc<str>>,
    /// Last statement without its literals; `None` when switched off, hidden, or when the lexer failed.
    pub statement: Option<Arc<str>>,
}

/// `pg_stat_activity.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionState {
    /// Runs a statement.
    Active,
    /// Waits for the client, outside a transaction.
    Idle,
    /// Waits for the client, inside a transaction.
    IdleInTransaction,
    /// The same after an error: every statement fails until it rolls back.
    IdleInTransactionAborted,
    /// Runs a fast-path function.
    FastPath,
    /// Our role may not see it, or `track_activities` is off.
    Unknown,
}
