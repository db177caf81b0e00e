//! What a server tells of itself beside its sessions: its standing, its counters, who waits for whom, and its limits.
//!
//! Each fact is `None` for a server whose kind has no such thing or is not asked for it, and `Err` when it was asked and
//! could not be read.

use std::sync::Arc;
use std::time::Duration;

use crate::inspect::Reason;

/// A fact that was asked for, or not.
pub type Fact<T> = Option<Result<T, Reason>>;

/// Facts of one look. The slow ones are as old as their own interval.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Of no two servers behind one name. PostgreSQL's `system_identifier` is shared by everything that replicates it byte
    /// by byte and lasts; Redis' `run_id` is one server's until it restarts.
    pub identifier: Fact<Arc<str>>,
    /// Whether it takes writes, and how far the replicas are.
    pub standing: Fact<Standing>,
    /// Counters of the database that is asked.
    pub counters: Fact<Counters>,
    /// Sessions that wait for a lock of another session.
    pub blocked: Fact<Vec<Blocked>>,
    /// Limits narrower than the server's own slots.
    pub limits: Fact<Vec<Limit>>,
}

/// A server's part in replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It takes writes; its replicas, as far as our role may see them.
    Primary(Vec<Replica>),
    /// It replays the changes of another.
    Replica {
        /// Whether it is connected to where its changes come from.
        is_fed: bool,
        /// Whether it has replayed everything that it received.
        is_caught_up: bool,
        /// Since the last change that it replayed was made; `None` when none was since its start.
        last_change_age: Option<Duration>,
    },
}

impl Standing {
    /// `primary` or `replica`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Primary(_) => "primary",
            Self::Replica { .. } => "replica",
        }
    }
}

/// One replica of a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its name, as it gave it: `application_name`.
    pub name: Arc<str>,
    /// How long a change takes until it is replayed there; `None` when nothing was measured, as on an idle server.
    pub lag: Option<Duration>,
    /// Bytes of changes that it has not replayed.
    pub bytes: u64,
}

/// Counters since some moment, all of one moment; they only grow, but for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// When they were read, on the agent's monotonic clock.
    pub at: Duration,
    /// Transactions that were committed.
    pub commits: u64,
    /// Transactions that were rolled back, by error or by wish.
    pub rollbacks: u64,
    /// Transactions that the server ended to break a deadlock.
    pub deadlocks: u64,
    /// Rows that statements read of tables and indexes.
    pub rows_read: u64,
    /// Statements that a replica ended because they stood in the way of its replay.
    pub conflicts: u64,
}

/// A session that waits for a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The server's number of it.
    pub backend: u64,
    /// For how long it has waited; `None` where the server does not tell.
    pub waited: Option<Duration>,
    /// Numbers of those that it waits for. 0 stands for a prepared transaction.
    pub by: Vec<u64>,
}

/// A limit on connections of one role or to one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Whose.
    pub of: LimitOf,
    /// Connections at once.
    pub most: u32,
    /// Sessions that certainly count.
    pub used: u32,
    /// Sessions that may count too: hidden ones, which may be workers.
    pub perhaps: u32,
}

/// Whom a limit concerns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitOf {
    /// `ALTER ROLE … CONNECTION LIMIT`.
    Role(Arc<str>),
    /// `ALTER DATABASE … CONNECTION LIMIT`.
    Database(Arc<str>),
}

impl LimitOf {
    /// `role app` or `database shop`.
    pub fn words(&self) -> String {
        match self {
            Self::Role(name) => format!("role {name}"),
            Self::Database(name) => format!("database {name}"),
        }
    }
}
