//! A server's own view of its sessions, whatever the server is: what its inspector gives and the judge joins.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::discover::{End, TargetKey};
use crate::inspect::{Reason, Value};

pub(super) mod attempts;
mod connect_error;
pub(super) mod dsn;
mod facts;
pub(super) mod kept;
pub(super) mod measures;
pub(super) mod place;
#[cfg(any(feature = "redis", feature = "rabbitmq"))]
pub(super) mod tls_keys;
#[cfg(any(feature = "redis", feature = "rabbitmq"))]
pub(super) mod wire;

pub use connect_error::ConnectError;
pub use dsn::DsnError;
pub use facts::{Blocked, Counters, Fact, Facts, Limit, LimitOf, Replica, Standing};

/// Kinds of servers that can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    /// PostgreSQL, through `pg_stat_activity`.
    PostgreSql,
    /// PgBouncer, through its admin console.
    PgBouncer,
    /// MySQL, MariaDB and their kin, through `performance_schema` or the process list.
    MySql,
    /// Redis and Valkey, through `CLIENT LIST`.
    Redis,
    /// RabbitMQ, through its management API.
    RabbitMq,
}

impl Engine {
    const ALL: [Self; 5] = [Self::PostgreSql, Self::PgBouncer, Self::MySql, Self::Redis, Self::RabbitMq];

    /// Its name in a sentence.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PostgreSql => "PostgreSQL",
            Self::PgBouncer => "PgBouncer",
            Self::MySql => "MySQL",
            Self::Redis => "Redis",
            Self::RabbitMq => "RabbitMQ",
        }
    }

    /// One of them, as it is called in texts: `PostgreSQL at 10.0.0.5:5432`.
    pub(super) fn at(self, address: &str) -> String {
        format!("{} at {address}", self.name())
    }

    /// What its port speaks, as pools are named: `postgresql`.
    pub const fn service(self) -> &'static str {
        match self {
            Self::PostgreSql => "postgresql",
            Self::PgBouncer => "pgbouncer",
            Self::MySql => "mysql",
            Self::Redis => "redis",
            Self::RabbitMq => "rabbitmq",
        }
    }

    /// The server that can be asked about a port that speaks this.
    pub fn of_service(service: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.service() == service)
    }

    /// What one session is called there: `backend 4711`.
    pub const fn session_word(self) -> &'static str {
        match self {
            Self::PostgreSql => "backend",
            Self::PgBouncer | Self::Redis => "client",
            Self::MySql => "connection",
            Self::RabbitMq => "connection from port",
        }
    }

    /// Where the state of a session stands, as rules name it.
    pub const fn state_rule(self) -> &'static str {
        match self {
            Self::PostgreSql => "pg_stat_activity.state",
            Self::PgBouncer => "SHOW CLIENTS link and wait, pg_stat_activity.state of the linked backend",
            Self::MySql => "processlist command and innodb_trx",
            Self::Redis => "CLIENT LIST flags and multi",
            Self::RabbitMq => "/api/connections state",
        }
    }

    /// How room for connections is counted.
    pub const fn slots_rule(self) -> &'static str {
        match self {
            Self::PostgreSql => "sessions / (max_connections - superuser_reserved_connections - reserved_connections)",
            Self::PgBouncer => "clients / max_client_conn",
            Self::MySql => "Threads_connected / max_connections",
            Self::Redis => "(connected_clients + connected_slaves + cluster_connections) / maxclients",
            Self::RabbitMq => {
                "sockets_used / sockets_total of the fullest node, descriptors where sockets are not told"
            }
        }
    }

    /// How its part in replication is known.
    pub const fn role_rule(self) -> &'static str {
        match self {
            Self::Redis => "INFO role against the looks before",
            _ => "pg_is_in_recovery() and system_identifier against the looks before",
        }
    }

    /// How a replica's lag is known.
    pub const fn replica_rule(self) -> &'static str {
        match self {
            Self::Redis => {
                "INFO: since the replica lost its primary; what a replica has not acknowledged of earlier looks at the \
                 primary"
            }
            _ => "pg_last_xact_replay_timestamp() while it lacks changes or its primary; replay_lag of its primary",
        }
    }

    /// Whether [`Facts::identifier`] outlives a restart, so that another one is another server.
    pub const fn keeps_identifier(self) -> bool {
        !matches!(self, Self::Redis)
    }

    /// Whether the states of its sessions tell who has a lease. RabbitMQ's connections carry many channels, and no state of
    /// theirs says that nobody needs one.
    pub const fn tells_leases(self) -> bool {
        !matches!(self, Self::RabbitMq)
    }

    /// Whether a pool is half seen as long as nobody may ask its server: what its clients leave open there costs others.
    /// Of the other servers a section is an offer.
    pub const fn is_missed(self) -> bool {
        matches!(self, Self::PostgreSql | Self::PgBouncer | Self::MySql)
    }
}

/// Why a look at a server, taken to try it out, did not come to its end.
#[derive(Debug)]
pub struct Obstacle {
    /// What was found, without secrets.
    pub found: String,
    /// What the operator can do.
    pub advice: Option<&'static str>,
    /// The server is there and may serve others well: it is the agent that may not see.
    pub is_blind: bool,
}

impl Obstacle {
    /// Something that the agent's user may not see.
    pub(super) const fn hidden(found: String, advice: Option<&'static str>) -> Self {
        Self { found, advice, is_blind: true }
    }
}

impl From<ConnectError> for Obstacle {
    fn from(error: ConnectError) -> Self {
        Self { found: error.to_string(), advice: Some(error.advice()), is_blind: error.is_our_fault() }
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
    /// Sessions that are known to be there and have no row at all in `sessions`, because our role may not see them.
    pub unseen: usize,
    /// Callers that have a connection to this server and wait for a server behind it: those of a pooler, exactly.
    pub waiters: Vec<Waiter>,
    /// How a pooler hands out its server connections; `None` when this is no pooler.
    pub pool_mode: Option<PoolMode>,
    /// It is a pooler that prepares its clients' statements anew wherever they are sent next.
    pub carries_statements: bool,
    /// What it tells of itself beside its sessions.
    pub facts: Box<Facts>,
}

/// A client of a pooler that waits for a server connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// The client's address; `None` over a unix socket.
    pub address: Option<IpAddr>,
    /// The client's port; `None` over a unix socket.
    pub port: Option<u16>,
    /// The pool that it waits for.
    pub database: Arc<str>,
    /// The pool that it waits for.
    pub user: Arc<str>,
    /// For how long.
    pub waited: Duration,
}

/// For how long a pooler binds a client to a server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolMode {
    /// From its first statement until it disconnects.
    Session,
    /// For a transaction: settings and prepared statements of the session do not stay with the client.
    Transaction,
    /// For a statement.
    Statement,
}

impl PoolMode {
    /// `session`, `transaction` or `statement`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        }
    }
}

/// The server connection on which a pooler's client stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The server's end.
    pub remote: End,
    /// The pooler's end, as the server sees its client; `None` over a unix socket.
    pub local: Option<SocketAddr>,
    /// The server's number of the session (PostgreSQL's backend pid); `None` when the server did not tell it.
    pub backend: Option<u64>,
    /// The server that was asked for the session's own state; filled once both looks are there.
    pub server: Option<TargetKey>,
}

/// One session: a client backend of `pg_stat_activity`, a client of PgBouncer, a thread of MySQL, a client of Redis, a
/// connection of RabbitMQ.
#[derive(Debug, Clone)]
pub struct Session {
    /// The server's own number of it: backend's process id, processlist id, client id. RabbitMQ has none; there it is the
    /// client's port, by which its connections are named.
    pub backend: u64,
    /// Client's address; `None` over a unix socket or when hidden.
    pub address: Option<IpAddr>,
    /// What the client's address may be when the server tells only its name (MySQL with name resolution).
    pub address_candidates: Vec<IpAddr>,
    /// Client's port; `None` over a unix socket or when hidden.
    pub port: Option<u16>,
    /// The server's own descriptor of it, where the server tells (MySQL's `socket_id`, Redis' `fd`).
    pub socket_fd: Option<u32>,
    /// Process of the client, where the server tells (PgBouncer over a unix socket).
    pub client_pid: Option<u32>,
    /// The server connection that a pooler's client holds.
    pub link: Option<Link>,
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
    /// It holds an advisory lock beyond its transaction, as far as the server was asked: it is kept for that, by design.
    pub holds_lock: bool,
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
    /// Holds a server connection of a pooler for its transaction: runs a statement or waits inside the transaction.
    InTransaction,
    /// Waits for what others send, for as long as that takes: it listens by design and leaks nothing.
    Listening,
    /// Our role may not see it, or `track_activities` is off.
    Unknown,
}

impl SessionState {
    /// Whether the session is certainly handed out to somebody: it runs a statement, stands in a transaction or listens.
    pub const fn is_leased(self) -> bool {
        !matches!(self, Self::Idle | Self::Unknown)
    }

    /// The state as PostgreSQL writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Idle => "idle",
            Self::IdleInTransaction => "idle in transaction",
            Self::IdleInTransactionAborted => "idle in transaction (aborted)",
            Self::FastPath => "fastpath function call",
            Self::InTransaction => "in transaction",
            Self::Listening => "listening",
            Self::Unknown => "not visible",
        }
    }
}
