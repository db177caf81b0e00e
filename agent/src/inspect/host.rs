//! Sockets and processes of this host, once a second.
//!
//! The rows stand here; `inspector` takes a look, `sockets` dumps and sorts, `networks` does it in other network namespaces,
//! `pools` makes pools of connections, `unix` finds those over unix sockets, `peers` their other ends on this host,
//! `services` the requests in flight, `watched` reads the processes that matter, `measures` turns rows into numbers for the
//! summaries.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::discover::dsn_keys::Named;
use crate::discover::{Application, End, Instance, TargetKey};
use crate::inspect::server::PoolMode;
use crate::inspect::{Reason, Value};

mod attention;
mod config;
mod endpoints;
mod found_ports;
mod gaps;
mod inspector;
mod measures;
mod networks;
mod peers;
mod pools;
mod rows;
mod services;
mod sockets;
mod unix;
mod watched;
mod world;

pub use crate::kernel::socket::TcpState;
pub use attention::{Attention, USED_LATELY};
pub use config::{ABOUT, Config, DeclaredApp};
pub use endpoints::{Endpoints, port_of_path, service_of};
pub use inspector::HostInspector;

/// Most descriptors of others that a sentence names.
const SHARERS_SHOWN: usize = 4;

/// One look at the host.
#[derive(Debug, Clone, Default)]
pub struct HostLook {
    /// Every watched process: it listens, holds a pool, or is declared.
    pub processes: Vec<ProcessRow>,
    /// Every pool: one row for each (instance, remote endpoint).
    pub pools: Vec<PoolRow>,
    /// Watched processes that ended since the last look; empty while somebody listens to [`HostInspector::new`]'s
    /// channel, which tells each of them at once.
    pub ended: Vec<Ended>,
    /// Declared applications that are expected to run and that no process matches.
    pub absent: Vec<TargetKey>,
    /// What could not be read, one entry for each cause, with the checks that it blinds.
    pub gaps: Vec<Gap>,
    /// Requests that are being served now, one row for each (instance, listening end).
    pub services: Vec<ServiceRow>,
    /// The destroy events of this look are only a lower bound (`ENOBUFS`, or none are offered here).
    pub closes_incomplete: bool,
    /// Connections that lived and died between two looks and cannot be told to belong to one pool.
    pub unattributed: Vec<Unattributed>,
    /// Where the agent stands, and how far it sees from there.
    pub surroundings: Surroundings,
}

/// How far the agent sees from where it stands, for `doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Processes that may hold sockets and are in the agent's PID namespace.
    pub processes: usize,
    /// Those of them that were asked for their descriptors and refused them.
    pub refusing: usize,
    /// Whether some sockets are held by no process that is seen here.
    pub has_unheld: bool,
    /// Other network namespaces that were entered: seen like our own.
    pub entered: usize,
    /// Other network namespaces of which only the socket tables are read.
    pub outside: usize,
}

/// From where the sockets of a pool are seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vantage {
    /// They are in the agent's own network namespace.
    Own,
    /// They are in another, in which the agent has sockets of its own: the kernel tells as much of them.
    Entered,
    /// They are in another, of which only the socket tables may be read: states and queues, no ages, no ends. The reason
    /// is that of everything that needs more.
    Outside(Reason),
}

impl Vantage {
    /// Why neither ages nor ends of connections are told.
    pub const fn untold(&self) -> Option<&Reason> {
        match self {
            Self::Outside(reason) => Some(reason),
            Self::Own | Self::Entered => None,
        }
    }

    /// Whether it is the agent's own namespace.
    pub const fn is_own(&self) -> bool {
        matches!(self, Self::Own)
    }
}

/// Connections to one endpoint whose owner nobody saw: several pools lead there, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unattributed {
    /// The remote end.
    pub remote: SocketAddr,
    /// What the port speaks, by number.
    pub service: Option<&'static str>,
    /// How many, since the last look. Each was born and ended in that time.
    pub births: u32,
}

/// What one process serves on one listening port.
#[derive(Debug, Clone)]
pub struct ServiceRow {
    /// `process:…` of the process that accepted the connections.
    pub target: TargetKey,
    /// Who it is.
    pub owner: Owner,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Accepted connections that are open.
    pub accepted: u32,
    /// Of those, the ones with a request that is not answered: data received later than sent, or received and never
    /// answered. Oldest first; at most 1,000.
    pub in_flight: Vec<InFlight>,
    /// Connections that wait to be accepted (`idiag_rqueue` of the listening socket). Workers that share the socket tell
    /// the same number each: not to be added up.
    pub accept_queue: u32,
    /// How many may wait (`idiag_wqueue` of the listening socket).
    pub backlog: u32,
}

/// A request without its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlight {
    /// Identity of the connection.
    pub cookie: u64,
    /// Since its last byte was received.
    pub age: Duration,
    /// Since a byte was last sent on it, or since it was accepted.
    pub sent_age: Duration,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Ids of the checks that are blind for it.
    pub checks: &'static [&'static str],
    /// The target, or the agent itself when it is not of one target.
    pub target: TargetKey,
    /// Why.
    pub reason: Reason,
}

/// A watched process as it is now.
#[derive(Debug, Clone)]
pub struct ProcessRow {
    /// `process:…`, with the lowest port that this instance ever listened on; several instances may share it.
    pub target: TargetKey,
    /// Whom it belongs to.
    pub application: Application,
    /// Which life of which pid.
    pub instance: Instance,
    /// Parent's pid.
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// Scrubbed command line, at most 200 characters.
    pub command: Arc<str>,
    /// Since it started.
    pub age: Duration,
    /// Bytes: PSS where `smaps_rollup` may be read, else RSS (`memory_is_pss` says which).
    pub memory: Value,
    /// Whether `memory` is PSS.
    pub memory_is_pss: bool,
    /// Bytes: its cgroup's `memory.current` without page cache that can be dropped; `Unknown(Absent)` without a limit.
    pub cgroup_memory: Value,
    /// Bytes: `memory.max` of the nearest limited cgroup; `Unknown(Absent)` when there is none.
    pub cgroup_limit: Value,
    /// How often that cgroup hit its maximum (`memory.events`: max), since it was made.
    pub cgroup_max_events: Value,
    /// OOM kills of that cgroup (`memory.events`: oom_kill), since it was made.
    pub cgroup_oom_kills: Value,
    /// Cores used since the last look; `NotYet` on the first.
    pub cpu: Value,
    /// Open descriptors.
    pub descriptors: Value,
    /// Soft limit of descriptors (`/proc/<pid>/limits`).
    pub descriptor_limit: Value,
    /// Threads.
    pub threads: Value,
    /// Zombie children that it has not waited for: pid and how long each has been seen as one.
    pub zombies: Vec<(u32, Duration)>,
    /// What it listens on.
    pub listens: Vec<SocketAddr>,
}

/// A watched process that is gone.
#[derive(Debug, Clone)]
pub struct Ended {
    /// `process:…`, as it was.
    pub target: TargetKey,
    /// Whom it belonged to.
    pub application: Application,
    /// Which life ended.
    pub instance: Instance,
    /// Scrubbed command line.
    pub command: Arc<str>,
    /// How long it had lived.
    pub age: Duration,
    /// When it was noticed, on the agent's monotonic clock.
    pub at: Duration,
    /// `killed by signal 9`, `exit status 1`; `None` where the kernel does not tell us (it tells the parent).
    pub how: Option<Arc<str>>,
}

/// The connections of one instance to one remote endpoint.
#[derive(Debug, Clone)]
pub struct PoolRow {
    /// `pool:…` without database and user; several instances may share it.
    pub target: TargetKey,
    /// Who holds it.
    pub owner: Owner,
    /// The remote end.
    pub remote: End,
    /// What the port speaks, by number: `postgresql`, `redis`, …; `None` when it is not a known one.
    pub service: Option<&'static str>,
    /// The connections now, TIME_WAIT not among them.
    pub connections: Vec<Connection>,
    /// Connections seen to be born since the last look.
    pub births: u32,
    /// Connections that ended since the last look, with how long each lived where its birth was seen.
    pub closes: Vec<Option<Duration>>,
    /// Connections beside those that were born and ended before a look saw whose they were, where no other pool was known
    /// to connect: how long each lived at most.
    pub presumed: Vec<Duration>,
    /// Births and closes are only a lower bound whatever the look says: the kernel tells no end of a unix socket.
    pub closes_incomplete: bool,
    /// From where its sockets are seen.
    pub vantage: Vantage,
    /// Age of the owning process; `None` when the owner is not visible.
    pub process_age: Option<Duration>,
    /// Most connections that this instance's pool may open.
    pub limit: Limit,
    /// How its process connects.
    pub dsn: DsnRow,
}

impl PoolRow {
    /// Connections opened since the last look, also those that nobody else is known to have opened.
    pub fn opened(&self) -> usize {
        self.births as usize + self.presumed.len()
    }

    /// Connections ended since the last look, also those that nobody else is known to have opened.
    pub fn ended(&self) -> usize {
        self.closes.len() + self.presumed.len()
    }
}

/// What is known of how a process connects to one server.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DsnRow {
    /// Its own DSN for this port, without anything secret.
    pub named: Option<Arc<Named>>,
    /// How the pooler there hands out connections, as the operator says.
    pub pooler: Option<PoolMode>,
    /// Keys that the operator requires of the DSN: `a=0|b=0`.
    pub required: Vec<Arc<str>>,
}

/// Who holds a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A process that we may look into.
    Seen {
        /// Its application.
        application: Application,
        /// Its life.
        instance: Instance,
    },
    /// No right, or another PID namespace: grouped by user and cgroup.
    NotVisible {
        /// User id of the sockets.
        uid: u32,
        /// Cgroup id of the sockets (inode of the cgroup's directory), where the kernel tells.
        cgroup: Option<u64>,
    },
}

impl Owner {
    /// What stands in the place of the application's name while nobody is visible: user, and cgroup where that is not the
    /// root, which no container lives in: two containers of one image are two owners.
    pub(crate) fn unseen(uid: u32, cgroup: Option<u64>) -> String {
        const ROOT: u64 = 1;
        match cgroup.filter(|it| *it != ROOT) {
            Some(cgroup) => format!("uid {uid} cgroup {cgroup}"),
            None => format!("uid {uid}"),
        }
    }
}

/// One connection of a pool. Its identity is the kernel's socket cookie: inodes are used again, cookies are not.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Socket cookie.
    pub cookie: u64,
    /// Descriptors in the owner, several when it was copied there. Empty when not visible.
    pub fds: Vec<u32>,
    /// Who holds it beside the owner.
    pub sharers: Sharers,
    /// Our end.
    pub local: End,
    /// Who holds the other end, when that is on this host and may be seen.
    pub peer: Option<Peer>,
    /// TCP state; a connected unix socket is `Established`.
    pub state: TcpState,
    /// Since data was last sent. Grain: one kernel tick.
    pub sent_age: Option<Duration>,
    /// Since data was last received.
    pub received_age: Option<Duration>,
    /// Since the peer last acknowledged anything.
    pub acknowledged_age: Option<Duration>,
    /// Segments sent and not acknowledged yet.
    pub unacknowledged: Option<u32>,
    /// Bytes that are written and not sent or not acknowledged yet.
    pub unsent: u32,
    /// Segments sent since the connection began.
    pub segments_out: Option<u32>,
    /// Whether it sent anything between this look and one at the same 30 ms later; `None` when there was none, or it was not used lately.
    pub picked: Option<bool>,
    /// How long it has been in `state` at least: since this agent first saw it so.
    pub state_age: Duration,
    /// Since this agent first saw it.
    pub seen_for: Duration,
    /// Whether its birth was seen, so that `seen_for` is its age.
    pub born: bool,
    /// Whether a keepalive timer runs (`idiag_timer` = 2).
    pub keepalive: bool,
    /// Retransmissions in a row.
    pub retransmits: u8,
    /// Unanswered keepalive or zero-window probes.
    pub probes: u8,
}

/// Who holds a connection beside its owner: other processes, after a fork or when a descriptor was passed on. The
/// connection is counted once, at its owner. As of the last reading of all descriptors, which is at most a minute old.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sharers {
    /// Their descriptors, the oldest process first; at most 16.
    pub first: Vec<Descriptor>,
    /// Descriptors beyond those.
    pub more: usize,
}

impl Sharers {
    /// Whether the owner holds it alone, as far as is seen.
    pub const fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

/// `pid 113 fd 3, pid 115 fd 3 and 2 more`; nothing where nobody shares it.
impl fmt::Display for Sharers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.first.len().min(SHARERS_SHOWN);
        for (index, it) in self.first.iter().take(shown).enumerate() {
            let before = if index == 0 { "" } else { ", " };
            write!(f, "{before}pid {} fd {}", it.instance.pid, it.fd)?;
        }
        match self.first.len() - shown + self.more {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A descriptor of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Which life of which pid.
    pub instance: Instance,
    /// Its number there.
    pub fd: u32,
}

/// Who holds the other end of a connection, on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process of the server: the backend itself where the server has one process for each session.
    pub pid: u32,
    /// Its descriptor.
    pub fd: u32,
}

/// Most connections of one instance's pool, and who said so.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// Connections: size and overflow together.
    pub value: Value,
    /// `configuration`, `DATABASE_URL of the process`, `command line`; never the string it was read from.
    pub source: Arc<str>,
}
