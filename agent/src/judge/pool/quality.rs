//! How many of the connections here are joined with a session of their server, and the reverse: `agent.join`.
//!
//! What is not joined is judged by nobody, so the share comes first and says why. Only what matches nothing at two looks
//! in a row counts: the two views are not of one moment. It is recorded and never told, for a replication stream or a
//! container behind this host's address is no fault.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use super::join::{Join, canonical, hidden_ends};
use super::{Connection, PoolRow, pid};
use crate::discover::End;
use crate::inspect::server::Session;
use crate::inspect::{Reason, ServerLook, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// Most connections and sessions in the evidence.
const MAX_ROWS: usize = 10;

const NAMESPACES: &str = "sessions from an address of this host have no socket here: another network namespace \
                          behind that address, or a client that is gone";
const UNLISTED: &str = "the server lists no session of some connections: a replication stream, or one that has not \
                        logged in";

/// What is remembered of one server's looks.
#[derive(Debug, Default)]
pub(super) struct Quality {
    /// Connections without a session at the last look.
    connections: HashSet<u64>,
    /// Sessions from our addresses without a socket at the last look.
    sessions: HashSet<(u64, Option<SocketAddr>)>,
    last: Option<JoinedShare>,
}

/// What one look joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedShare {
    /// Connections of this host with a session.
    pub joined: usize,
    /// These, and the connections that had none at this look and the one before.
    pub connections: usize,
    /// These, and the sessions from an address of this host that had no socket at this look and the one before.
    pub sessions: usize,
    /// Why not all of them.
    pub why: Option<String>,
}

impl JoinedShare {
    /// The greater of the two shares that are not joined.
    fn missing(&self) -> f64 {
        match self.connections.max(self.sessions) {
            0 => 0.0,
            all => (all - self.joined) as f64 / all as f64,
        }
    }
}

impl Quality {
    /// What the last look joined; `None` while nothing could be.
    pub(super) const fn last(&self) -> Option<&JoinedShare> {
        self.last.as_ref()
    }

    /// Takes a look in. `unseen` says why nothing can be joined at all.
    pub(super) fn judge(
        &mut self,
        look: &ServerLook,
        join: &Join<'_>,
        unseen: Option<&Reason>,
        now: Moment,
        tracks: &mut Tracks,
    ) {
        let subject = Subject::of(CheckId::Join, &look.target);
        if let Some(reason) = unseen {
            *self = Self::default();
            tracks.observe(subject, Seen::value(Value::Unknown(reason.clone())), now, Case::default);
            return;
        }
        let key = |it: &Session| (it.backend, it.address.zip(it.port).map(SocketAddr::from));
        let alone = join.without_session.iter().filter(|(_, it)| self.connections.contains(&it.cookie));
        let alone: Vec<(&PoolRow, &Connection)> = alone.copied().collect();
        let strange = join.without_socket.iter().filter(|it| self.sessions.contains(&key(it)));
        let strange: Vec<&Session> = strange.copied().collect();
        self.connections = join.without_session.iter().map(|(_, it)| it.cookie).collect();
        self.sessions = join.without_socket.iter().map(|it| key(it)).collect();
        let joined = join.joined.len();
        let share = JoinedShare {
            joined,
            connections: joined + alone.len(),
            sessions: joined + strange.len(),
            why: why(look, join, &alone, &strange),
        };
        tracks.observe(subject, Seen::known(share.missing()), now, || case(look, &share, &alone, &strange));
        self.last = Some(share);
    }
}

/// Why not everything is joined.
fn why(look: &ServerLook, join: &Join<'_>, alone: &[(&PoolRow, &Connection)], strange: &[&Session]) -> Option<String> {
    let mut all = Vec::new();
    let is_unix = |it: &Connection| it.local.address().is_none();
    match &look.hidden {
        _ if alone.is_empty() => (),
        Some(hidden) if join.without_address > 0 => all.push(hidden.to_string()),
        _ if join.hides_ends() && alone.iter().any(|(_, it)| is_unix(it)) => {
            all.push(hidden_ends(look.engine).to_string());
        }
        _ => {
            let mut ways: HashMap<&End, HashSet<IpAddr>> = HashMap::new();
            for it in &join.joined {
                ways.entry(&it.pool.remote).or_default().extend(ip(it.connection));
            }
            let is_known = |(pool, it): &&(&PoolRow, &Connection)| {
                ways.get(&pool.remote).is_some_and(|ways| ip(it).is_none_or(|ip| ways.contains(&ip)))
            };
            all.push(match alone.iter().find(|it| !is_known(it)) {
                Some((pool, _)) => format!("no session matches the connections to {}: address translated", pool.remote),
                None => UNLISTED.to_owned(),
            });
        }
    }
    if !strange.is_empty() {
        all.push(NAMESPACES.to_owned());
    }
    (!all.is_empty()).then(|| all.join("; "))
}

fn ip(it: &Connection) -> Option<IpAddr> {
    it.local.address().map(|it| canonical(it).ip())
}

fn case(look: &ServerLook, share: &JoinedShare, alone: &[(&PoolRow, &Connection)], strange: &[&Session]) -> Case {
    let JoinedShare { joined, connections, sessions, why } = share;
    let server = look.target.as_str().trim_start_matches("server:");
    let why = why.as_deref().unwrap_or_default();
    let connection = |(pool, it): &(&PoolRow, &Connection)| json!({ "pid": pid(pool), "fd": it.fds.first(), "local": it.local.to_string(), "remote": pool.remote.to_string() });
    let session = |it: &&Session| {
        let client = it.address.zip(it.port).map(|it| SocketAddr::from(it).to_string());
        json!({ "session": it.backend, "client": client, "user": words::foreign(&it.user, 63) })
    };
    let mut members: Vec<u64> = alone.iter().map(|(_, it)| it.cookie).collect();
    members.extend(strange.iter().map(|it| it.backend));
    members.sort_unstable();
    Case {
        summary: format!(
            "{joined} of {} of this host to {server} are joined with a session, and {joined} of {} from its addresses \
             with a connection: {why}",
            words::counted(*connections, "connection"),
            words::counted(*sessions, "session"),
        ),
        evidence: object(json!({
            "joined": joined,
            "connections": connections,
            "sessions": sessions,
            "share_missing": number(share.missing(), Unit::Ratio),
            "connections_alone": alone.iter().take(MAX_ROWS).map(connection).collect::<Vec<_>>(),
            "sessions_alone": strange.iter().take(MAX_ROWS).map(session).collect::<Vec<_>>(),
            "rule": "connections to the server and its sessions from this host's addresses that match nothing at two \
                     looks in a row",
            "not_visible": [why],
        })),
        members,
        ..Case::default()
    }
}
