//! Reads facts from one source at a time; measures and never judges.
//!
//! An inspector takes one look at its source and gives a [`Reading`]. What could not be read is
//! [`Value::Unknown`] with its reason, never a smaller number: that would be judged as a recovery.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::discover::TargetKey;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub mod host;
pub mod http_endpoint;
pub mod log_tail;
#[cfg(feature = "mysql")]
pub mod mysql;
mod network;
pub mod pgbouncer;
pub mod pool_metrics;
pub mod postgres;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
pub mod recording;
#[cfg(feature = "redis")]
pub mod redis;
pub mod resolver;
pub mod schedule;
pub mod server;
pub mod sqlite;
pub mod summary;
pub mod tls_certificate;

pub use host::HostLook;
pub use http_endpoint::Probe;
pub use log_tail::LogLook;
pub use pool_metrics::PoolStats;
pub use resolver::NamesLook;
pub use server::ServerLook;
pub use sqlite::SqliteLook;

/// Reads one source of facts. Measures; never judges, stores or sends.
pub trait Inspector: Send {
    /// What is read, in the words an operator sees in `tickbird-agent inspectors`.
    fn about(&self) -> &'static About;

    /// Stable name of this instance of the inspector (`postgres 10.0.0.5:5432/app`), for logs and `agent.slow`.
    fn name(&self) -> String;

    /// Takes one look. The scheduler owns the inspector (hence `&mut`: a source may remember its last look), bounds
    /// it in time and never overlaps two. `now` is the agent's monotonic clock.
    fn inspect<'a>(&'a mut self, now: Duration) -> Look<'a>;
}

/// The future of one look. It never fails as a whole: what could not be read is said inside the reading.
pub type Look<'a> = Pin<Box<dyn Future<Output = Reading> + Send + 'a>>;

/// What an inspector is, as data: `tickbird-agent inspectors` and the reference page come from it.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// Short name: `host`, `postgres`, `http_endpoint`.
    pub name: &'static str,
    /// Where the facts come from: `/proc/<pid>/stat`, a view and its columns, an RFC.
    pub source: &'static str,
    /// The least right that is needed, and what is missing without it.
    pub needs: &'static str,
    /// What one look costs here and at the source.
    pub cost: &'static str,
    /// What is measured.
    pub measures: &'static [&'static Measure],
}

/// The name, unit and meaning of one number.
#[derive(Debug)]
pub struct Measure {
    /// Dotted name: `pool.open`.
    pub name: &'static str,
    /// Unit of every value of it.
    pub unit: Unit,
    /// What it counts, for a person.
    pub meaning: &'static str,
}

/// Units of measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Octets.
    Bytes,
    /// Seconds.
    Seconds,
    /// A share; 1.0 is all of it.
    Ratio,
    /// Events per second.
    PerSecond,
}

impl Unit {
    /// The unit as on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Ratio => "ratio",
            Self::PerSecond => "per_second",
        }
    }
}

/// What is known of a number. Only `Known` can clear a finding; a range fires by its certain end.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Exactly this.
    Known(f64),
    /// Somewhere from the first to the second, both included.
    Between(f64, f64),
    /// Not known, and why.
    Unknown(Reason),
}

impl Value {
    /// The value when it is exactly known.
    pub const fn known(&self) -> Option<f64> {
        match self {
            Self::Known(value) => Some(*value),
            _ => None,
        }
    }

    /// The least it can be.
    pub const fn low(&self) -> Option<f64> {
        match self {
            Self::Known(value) | Self::Between(value, _) => Some(*value),
            Self::Unknown(_) => None,
        }
    }

    /// The most it can be.
    pub const fn high(&self) -> Option<f64> {
        match self {
            Self::Known(value) | Self::Between(_, value) => Some(*value),
            Self::Unknown(_) => None,
        }
    }

    /// The same value in another unit or on another scale.
    #[must_use]
    pub fn map(self, scale: impl Fn(f64) -> f64) -> Self {
        match self {
            Self::Known(value) => Self::Known(scale(value)),
            Self::Between(low, high) => Self::Between(scale(low), scale(high)),
            Self::Unknown(reason) => Self::Unknown(reason),
        }
    }
}

/// Why a value is not known. A blind reason makes the check `blind`; the others are only "not yet".
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A right is missing; the text names what may not be read: `the descriptors of processes of uid 1001`.
    Denied(String),
    /// A file's permissions keep it from the agent; the text names it: `the log /var/log/shop.log`.
    Unreadable(String),
    /// The server does not let the agent in as it is configured; the text is what it said.
    Refused(String),
    /// The agent's role may not see it at the server; the text names what.
    NotGranted(String),
    /// No credential is configured; the text names for what: `PostgreSQL at 10.0.0.5:5432`.
    NoCredential(String),
    /// The source does not answer; the text says what and how: `PostgreSQL at 10.0.0.5:5432: connection refused`.
    Unreachable(String),
    /// The server was reached and did not answer this question; the text says which server and what it said:
    /// `PostgreSQL at 10.0.0.5:5432: canceling statement due to lock timeout`.
    Unanswered(String),
    /// The source answered with something that cannot be understood; the text names what.
    Malformed(String),
    /// The kernel or the server does not offer it; the text names what is absent.
    Absent(String),
    /// It runs in another namespace than the agent; the text names what: `the processes that hold these sockets`.
    Elsewhere(String),
    /// It is in another network namespace than the agent; the text names what is not told of it from outside.
    OtherNetwork(String),
    /// It is a server on the loopback of another network namespace, which nobody asks from here; the text names it.
    Apart(String),
    /// An address is translated on the way, so that two views of one connection do not match; the text names to where.
    Translated(String),
    /// It needs history or a second look that is not there yet.
    NotYet(&'static str),
}

impl Reason {
    /// Whether the check cannot see, as opposed to not having seen enough yet.
    pub const fn is_blind(&self) -> bool {
        !matches!(self, Self::NotYet(_))
    }

    /// What the operator can do; `None` where waiting is all.
    pub const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Denied(_) => Some(
                "run the agent as the application's user, or grant it CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH together; at a \
                 server, give its user there the rights that `tickbird-agent doctor` names",
            ),
            Self::Unreadable(_) => Some(
                "let the agent's user read it: by group (usermod -aG), or by an ACL on the file and its directory (setfacl)",
            ),
            Self::Refused(_) => Some(
                "mend the DSN of its section (user, password, database, TLS), or let the agent in at the server \
                 (pg_hba.conf, grants, ACLs)",
            ),
            Self::NotGranted(_) => Some(
                "grant it to the agent's role at the server; `tickbird-agent inspectors` says what each server needs",
            ),
            Self::NoCredential(_) => Some(
                "add its section ([[postgres]], [[pgbouncer]], [[mysql]], [[redis]], [[rabbitmq]]) with a dsn_file: a role of the application, or \
                 one that may see all sessions",
            ),
            Self::Unreachable(_) => Some("check that the server runs and that this host may reach it"),
            Self::Unanswered(_) => Some(
                "look for who keeps it from answering: a lock on its statistics views, or a load under which no statement ends \
                 within half a second",
            ),
            Self::Malformed(_) => Some("report it with the output of `tickbird-agent doctor --json`"),
            Self::Absent(_) => Some("a newer kernel or server offers it; the check stays blind here"),
            Self::Elsewhere(_) => Some(
                "share the application's PID namespace with the agent (shareProcessNamespace, or --pid of a container \
                 engine), or run the agent on the host",
            ),
            Self::OtherNetwork(_) => Some(
                "set `namespaces = true` in [host] and grant the agent CAP_SYS_ADMIN beside CAP_SYS_PTRACE and \
                 CAP_DAC_READ_SEARCH, or run an agent in the application's network namespace",
            ),
            Self::Apart(_) => Some("run an agent in the application's network namespace, with the server's section"),
            Self::Translated(_) => Some(
                "a pooler, proxy or address translation stands between: point the DSN at it, or run an agent behind it",
            ),
            Self::NotYet(_) => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(what) | Self::Unreadable(what) | Self::NotGranted(what) => write!(f, "may not read {what}"),
            Self::Refused(what) => f.write_str(what),
            Self::NoCredential(what) => write!(f, "no credential for {what}"),
            Self::Unreachable(what) => write!(f, "cannot reach {what}"),
            Self::Unanswered(what) => write!(f, "no answer from {what}"),
            Self::Malformed(what) => write!(f, "cannot understand {what}"),
            Self::Absent(what) => write!(f, "not offered here: {what}"),
            Self::Elsewhere(what) => write!(f, "cannot see {what}: they run in another PID namespace"),
            Self::Apart(what) => write!(f, "cannot ask {what}: that is loopback of another network namespace"),
            Self::OtherNetwork(what) => write!(f, "another network namespace: {what}"),
            Self::Translated(to) => {
                write!(f, "cannot match any connection from here with a session of {to}: address translated")
            }
            Self::NotYet(what) => write!(f, "not yet known: {what}"),
        }
    }
}

/// A value that knows its unit, because it points at its [`Measure`].
#[derive(Debug, Clone)]
pub struct Observation {
    /// The target it was taken of.
    pub target: TargetKey,
    /// What was measured.
    pub measure: &'static Measure,
    /// What was seen.
    pub value: Value,
}

/// One look: the rows that rules and evidence need, and the numbers that summaries need.
#[derive(Debug)]
pub struct Reading {
    /// The facts of this source.
    pub rows: Rows,
    /// The numbers to be summed up minute by minute.
    pub observations: Vec<Observation>,
}

/// The facts of one look, by source.
#[derive(Debug)]
pub enum Rows {
    /// Sockets and processes of this host.
    Host(HostLook),
    /// One PostgreSQL server's own view.
    Server(ServerLook),
    /// One request to one endpoint.
    Probe(Probe),
    /// What an application says of its own pools.
    PoolStats(PoolStats),
    /// New lines of one log.
    Log(LogLook),
    /// What the names of databases lead to.
    Names(NamesLook),
    /// SQLite databases that processes have open.
    Sqlite(SqliteLook),
}
