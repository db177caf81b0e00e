//! One pool as a person sees it: what is certainly leased, held, free or unknown, and by which rule.

use std::sync::Arc;
use std::time::Duration;

use super::leak::target_of;
use super::lines::HeldBy;
use super::verdict::{Judged, Pool, used_age};
use crate::discover::{End, Instance, TargetKey};
use crate::inspect::Value;
use crate::inspect::host::{Owner, Sharers};
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
    /// Who holds it beside the owner.
    pub sharers: Sharers,
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

/// One pool as it is shown.
pub(super) fn of(pool: &Pool<'_>, waiters: Value, empty_in: Value, now: Duration) -> PoolView {
    PoolView {
        target: target_of(pool),
        instance: match &pool.row.owner {
            Owner::Seen { instance, .. } => Some(*instance),
            Owner::NotVisible { .. } => None,
        },
        remote: pool.row.remote.clone(),
        limit: (pool.row.limit.value.clone(), pool.row.limit.source.clone()),
        connections: pool.connections.iter().map(|it| connection(it, now)).collect(),
        discipline: pool.discipline.as_str(),
        waiters,
        empty_in,
    }
}

fn connection(it: &Judged<'_>, now: Duration) -> ConnectionView {
    let session = it.said.map(|said| &said.session);
    // Where the kernel tells no ages nobody knows since when nothing has been known.
    let is_aged = it.verdict != Verdict::Unknown || used_age(it.connection).is_some();
    ConnectionView {
        cookie: it.connection.cookie,
        fds: it.connection.fds.clone(),
        sharers: it.connection.sharers.clone(),
        local: it.connection.local.clone(),
        verdict: it.verdict,
        rule: it.rule,
        facts: facts(it, now),
        age: is_aged.then(|| now.saturating_sub(it.since)),
        session: session.map(|it| it.backend),
        state: session.map(|it| it.state),
        statement: session.and_then(|it| it.statement.clone()),
    }
}

/// Everything that the verdict rests on, a sentence each.
fn facts(it: &Judged<'_>, now: Duration) -> Vec<String> {
    let connection = it.connection;
    let seconds = |age: Duration| format!("{:.1} s", age.as_secs_f64());
    let mut facts = Vec::new();
    let ages = [("sent", connection.sent_age), ("received", connection.received_age)];
    for (what, age) in ages {
        if let Some(age) = age {
            facts.push(format!("tcp_info: last data {what} {} ago", seconds(age)));
        }
    }
    if let Some(age) = connection.acknowledged_age {
        facts.push(format!("tcp_info: last acknowledged {} ago", seconds(age)));
    }
    if connection.unsent > 0 || connection.unacknowledged.is_some_and(|count| count > 0) {
        let segments = connection.unacknowledged.unwrap_or_default();
        facts.push(format!("{} bytes unsent, {segments} segments not acknowledged", connection.unsent));
    }
    facts.push(match connection.born {
        true => format!("opened {} ago", seconds(connection.seen_for)),
        false => format!("open when the agent first looked, {} ago", seconds(connection.seen_for)),
    });
    match it.said {
        Some(said) => {
            let (session, asked) = (&said.session, now.saturating_sub(said.at));
            facts.push(format!(
                "joined with {} {} of {}, asked {} ago: {}",
                said.engine.session_word(),
                session.backend,
                said.engine.name(),
                seconds(asked),
                session.state.as_str()
            ));
            if used_age(connection).is_some_and(|age| age + super::lines::SLACK < asked) {
                facts.push("used since the server was asked".to_owned());
            }
        }
        None => facts.push("no session of a server is joined".to_owned()),
    }
    if !connection.sharers.is_empty() {
        facts.push(format!("also held by {}: inherited by a fork, or passed on", connection.sharers));
    }
    if let Some(peer) = connection.peer {
        facts.push(format!("the other end is fd {} of pid {} on this host", peer.fd, peer.pid));
    }
    match it.held {
        Some(HeldBy::Rotation { passes, others }) => facts.push(format!(
            "the pool rotates: passed over {passes} times since, while {others} others took their turns"
        )),
        Some(HeldBy::Growth { witness }) => facts.push(format!(
            "idle when the pool had to open one more than ever before, {} ago",
            seconds(now.saturating_sub(witness))
        )),
        None => (),
    }
    facts
}
