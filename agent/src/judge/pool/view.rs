//! One pool as a person sees it: what is certainly leased, held, free or unknown, and by which rule.

use std::sync::Arc;
use std::time::Duration;

use crate::discover::{End, Instance, TargetKey};
use crate::inspect::Value;
use crate::inspect::server::SessionState;

/// What is known of one connection's lease, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Certainly handed out: the server says so.
    Leased,
    /// A request was sent and not answered: certainly handed out while the protocol is strict request and response.
    Busy,
    /// Idle, and the rotation or growth rule names it: strong.
    Held,
    /// Three or more stopped within a second: perhaps a second pool; nothing is claimed.
    GroupStop,
    /// Idle and in rotation: strong.
    Free,
    /// Nothing can be said.
    Unknown,
}

impl Verdict {
    /// `leased`, `busy`, `held`, `group stop`, `free` or `unknown`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leased => "leased",
            Self::Busy => "busy",
            Self::Held => "held",
            Self::GroupStop => "group stop",
            Self::Free => "free",
            Self::Unknown => "unknown",
        }
    }
}

/// One connection with its verdict.
#[derive(Debug, Clone)]
pub struct ConnectionView {
    /// Socket cookie.
    pub cookie: u64,
    /// Descriptors in the owner; empty when not visible.
    pub fds: Vec<u32>,
    /// Our end.
    pub local: End,
    /// The verdict.
    pub verdict: Verdict,
    /// The rule that led to it: `pg_stat_activity.state`, `rotation`, `growth`, `tcp_info`.
    pub rule: &'static str,
    /// The facts that the rule used, each a short sentence, for `inspect --why`.
    pub facts: Vec<String>,
    /// Since when it has been so, as a time before the look.
    pub age: Option<Duration>,
    /// The server's number of the session, where joined.
    pub session: Option<u64>,
    /// What the server says of it, where joined.
    pub state: Option<SessionState>,
    /// Last statement without its literals, where joined and told.
    pub statement: Option<Arc<str>>,
}

/// One instance's pool.
#[derive(Debug, Clone)]
pub struct PoolView {
    /// `pool:…` as the kernel shows it, or with database and user once joined.
    pub target: TargetKey,
    /// The process; `None` when its owner is not visible.
    pub instance: Option<Instance>,
    /// The remote end.
    pub remote: End,
    /// Most connections, and who said so.
    pub limit: (Value, Arc<str>),
    /// Every connection.
    pub connections: Vec<ConnectionView>,
    /// `rotating`, `stack` or `unknown`.
    pub discipline: &'static str,
    /// Callers that wait for a connection.
    pub waiters: Value,
    /// Seconds until it is empty at the present rate.
    pub empty_in: Value,
}

impl PoolView {
    /// How many connections have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.connections.iter().filter(|it| it.verdict == verdict).count()
    }
}
