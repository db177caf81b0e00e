//! A server's own view of its sessions, whatever the server is: what its inspector gives and the judge joins.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::discover::TargetKey;
use crate::inspect::{Reason, Value};

/// Kinds of servers that can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    /// PostgreSQL, through `pg_stat_activity`.
    PostgreSql,
}

impl Engine {
    /// Its name in a sentence.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PostgreSql => "PostgreSQL",
        }
    }

    /// What its port speaks, as pools are named: `postgresql`.
    pub const fn service(self) -> &'static str {
        match self {
            Self::PostgreSql => "postgresql",
        }
    }
}

/// One look at one server.
#[derive(Debug, Clone)]
pub struct ServerLook {
    /// `server:<host>:<port>/<database>`.
    pub target: TargetKey,
    /// What kind of server it is.
    pub engine: Engine,
    /// Addresses of the server as the kernel shows them in sockets; empty for a unix socket.
    pub addresses: Vec<SocketAddr>,
    /// Path of the server's unix socket when it is asked over one.
    pub socket_path: Option<Arc<str>>,
    /// Seconds from the first SYN to a ready session, of the connection in use or the last attempt.
    pub connect: Value,
    /// When there is no session: what the server or the kernel said, scrubbed. Not for a refusal that is the agent's
    /// own fault (password, `pg_hba.conf`, trust, settings): then `connect` and `sessions` say what may not be seen.
    pub refused: Option<Arc<str>>,
    /// Client backends, our own left out. `Err` when the view could not be read.
    pub sessions: Result<Vec<Session>, Reason>,
    /// `max_connections - superuser_reserved_connections - reserved_connections`.
    pub slots: Value,
    /// Client backends in use, ours included: what stands against `slots`. A range when sessions are hidden, and
    /// when the server refuses us because it is full.
    pub used: Value,
    /// Whether the port and state of other roles' sessions are hidden from our role.
    pub hidden: Option<Reason>,
}

/// One session: a client backend of `pg_stat_activity`, a client of PgBouncer, a thread of MySQL, a client of Redis.
#[derive(Debug, Clone)]
pub struct Session {
    /// The server's own number of it: backend's process id, processlist id, client id.
    pub backend: u64,
    /// Client's address; `None` over a unix socket or when hidden.
    pub address: Option<IpAddr>,
    /// Client's port; `None` over a unix socket or when hidden.
    pub port: Option<u16>,
    /// The server's own descriptor of it, where the server tells (MySQL's `socket_id`, Redis' `fd`).
    pub socket_fd: Option<u32>,
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

/// What a session does, in PostgreSQL's words.
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
