//! Through a pooler: an application's connection → the pooler's client → the session at the server behind it.
//!
//! The pooler says which server connection a client stands on; the server says what that session does. The two looks
//! are not of one moment, and a pooler in transaction mode may have handed the server connection to somebody else in
//! between. So the server's word counts only when the client stood on the same connection before it and after it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::join::Join;
use crate::discover::{End, TargetKey};
use crate::inspect::server::{Engine, Link, Session, SessionState};
use crate::inspect::{Reason, ServerLook};

/// A look that is older says nothing of now.
const LOOK_LASTS: Duration = Duration::from_secs(30);

/// For so long a client may stand on a server connection before the server has to have been asked: two looks.
const TWO_LOOKS: Duration = Duration::from_secs(12);

/// What the last looks at poolers and at the servers behind them said.
#[derive(Debug, Default)]
pub(super) struct Hops {
    poolers: BTreeMap<TargetKey, Pooler>,
    servers: BTreeMap<TargetKey, Behind>,
}

/// The clients of a pooler that stood on a server connection.
#[derive(Debug, Default)]
struct Pooler {
    at: Duration,
    /// By the client's number.
    clients: HashMap<u64, Client>,
}

#[derive(Debug)]
struct Client {
    link: Link,
    /// Since the first of the looks that all showed the same link.
    since: Duration,
    /// Who it is, for a person, when its connection is not seen here.
    shown: Arc<str>,
    /// A connection of this host.
    is_here: bool,
}

/// The sessions of a server that is not a pooler.
#[derive(Debug)]
struct Behind {
    at: Duration,
    ends: HashSet<End>,
    /// By the server's number.
    sessions: HashMap<u64, Session>,
}

/// Sessions of a server that a pooler holds for its clients.
#[derive(Debug, Default)]
pub(super) struct PassedOn {
    /// Their clients are connections of this host, where they are told.
    here: HashSet<u64>,
    /// Their clients are elsewhere.
    elsewhere: HashMap<u64, Arc<str>>,
}

impl PassedOn {
    /// Whether what this session does is told at the application that caused it.
    pub(super) fn is_told_at_client(&self, backend: u64) -> bool {
        self.here.contains(&backend)
    }

    /// The client on another host for which the pooler holds this session.
    pub(super) fn stranger(&self, backend: u64) -> Option<&str> {
        self.elsewhere.get(&backend).map(|it| &**it)
    }
}

impl Hops {
    /// A look at a pooler in which each client that stands on a server connection has the state of that session.
    /// `None` when the look is not at a pooler, or saw nothing.
    pub(super) fn resolve(&mut self, look: &ServerLook, now: Duration) -> Option<ServerLook> {
        if look.engine != Engine::PgBouncer {
            return None;
        }
        let sessions = look.sessions.as_ref().ok()?;
        let before = self.poolers.get(&look.target).filter(|it| now.saturating_sub(it.at) <= LOOK_LASTS);
        let mut resolved = look.clone();
        resolved.sessions = Ok(sessions
            .iter()
            .map(|session| {
                let mut session = session.clone();
                let known = before.and_then(|it| it.clients.get(&session.backend));
                let since = known.filter(|it| Some(&it.link) == session.link.as_ref()).map_or(now, |it| it.since);
                if session.link.is_some() {
                    self.follow(&mut session, since, now);
                }
                session
            })
            .collect());
        Some(resolved)
    }

    /// Takes over what the server says of a client's session, when it said so while the client stood on it.
    fn follow(&self, session: &mut Session, since: Duration, now: Duration) {
        let Some(link) = &mut session.link else { return };
        let is_current = |it: &&Behind| it.at >= since && now.saturating_sub(it.at) <= LOOK_LASTS;
        let found = self.servers.iter().filter(|(_, it)| is_current(it)).find_map(|(target, behind)| {
            let there = behind.sessions.get(&link.backend?)?;
            is_same(link, there, &behind.ends).then_some((target, there))
        });
        // In transaction mode the link itself is the lease: an idle session is one that has just been given back.
        let counts = |it: SessionState| match session.state {
            SessionState::InTransaction => it.is_leased(),
            _ => it != SessionState::Unknown,
        };
        match found.filter(|(_, there)| counts(there.state)) {
            Some((target, there)) => {
                link.server = Some(target.clone());
                session.state = there.state;
                session.state_age = there.state_age;
                session.transaction_age = there.transaction_age;
                session.waits_for = there.waits_for.clone();
                session.statement = there.statement.clone();
            }
            None if session.waits_for.is_none() => session.state_age = Some(now.saturating_sub(since)),
            None => (),
        }
    }

    /// Remembers a look for the next one at the other end.
    pub(super) fn remember(&mut self, look: &ServerLook, join: &Join<'_>, now: Duration) {
        let Ok(sessions) = &look.sessions else {
            self.poolers.remove(&look.target);
            self.servers.remove(&look.target);
            return;
        };
        if look.engine != Engine::PgBouncer {
            // Without a pooler nobody asks for them.
            if !self.poolers.is_empty() {
                let sessions = sessions.iter().map(|it| (it.backend, it.clone())).collect();
                let unix = look.socket_path.iter().map(|it| End::Unix(Arc::clone(it)));
                let ends = look.addresses.iter().copied().map(End::Tcp).chain(unix).collect();
                self.servers.insert(look.target.clone(), Behind { at: now, ends, sessions });
            }
            return;
        }
        let here: HashSet<u64> = join.joined.iter().map(|it| it.session.backend).collect();
        let mut before = self.poolers.remove(&look.target).unwrap_or_default();
        if now.saturating_sub(before.at) > LOOK_LASTS {
            before.clients.clear();
        }
        let client = |session: &Session| {
            let mut link = session.link.clone()?;
            link.server = None;
            let known = before.clients.get(&session.backend).filter(|it| it.link == link);
            let since = known.map_or(now, |it| it.since);
            let end = session.address.zip(session.port).map(|(address, port)| SocketAddr::new(address, port));
            let shown = match (end, session.client_pid) {
                (Some(end), _) => format!("client {end} behind it, whose connection is not on this host"),
                (None, Some(pid)) => format!("pid {pid} behind it, over a unix socket"),
                (None, None) => "a client behind it whose address is not told".to_owned(),
            };
            let is_here = here.contains(&session.backend);
            Some((session.backend, Client { link, since, shown: shown.into(), is_here }))
        };
        let clients = sessions.iter().filter_map(client).collect();
        self.poolers.insert(look.target.clone(), Pooler { at: now, clients });
    }

    /// Which sessions of this look a pooler holds for its clients.
    pub(super) fn passed_on(&self, look: &ServerLook, now: Duration) -> PassedOn {
        let mut passed = PassedOn::default();
        let Ok(sessions) = &look.sessions else { return passed };
        let poolers = self.poolers.values().filter(|it| now.saturating_sub(it.at) <= LOOK_LASTS);
        let links: HashMap<u64, &Client> =
            poolers.flat_map(|it| it.clients.values()).filter_map(|it| Some((it.link.backend?, it))).collect();
        if links.is_empty() || look.engine == Engine::PgBouncer {
            return passed;
        }
        let unix = look.socket_path.iter().map(|it| End::Unix(Arc::clone(it)));
        let ends: HashSet<End> = look.addresses.iter().copied().map(End::Tcp).chain(unix).collect();
        for session in sessions {
            match links.get(&session.backend).filter(|it| is_same(&it.link, session, &ends)) {
                Some(client) if client.is_here => {
                    passed.here.insert(session.backend);
                }
                Some(client) => {
                    passed.elsewhere.insert(session.backend, Arc::clone(&client.shown));
                }
                None => (),
            }
        }
        passed
    }
}

/// Whether a pooler's link and a server's session are one: the same number, and the same end of the pooler.
fn is_same(link: &Link, session: &Session, ends: &HashSet<End>) -> bool {
    if link.backend != Some(session.backend) {
        return false;
    }
    match (link.local, session.address.zip(session.port)) {
        (Some(local), Some((address, port))) => (local.ip().to_canonical(), local.port()) == (address, port),
        (None, None) => ends.contains(&link.remote) || ends.iter().any(|it| unix_port(&link.remote) == tcp_port(it)),
        _ => false,
    }
}

/// The port in the name of a unix socket of PostgreSQL.
fn unix_port(end: &End) -> Option<u16> {
    match end {
        End::Unix(path) => path.rsplit('/').next()?.strip_prefix(".s.PGSQL.")?.parse().ok(),
        End::Tcp(_) | End::Apart(_) => None,
    }
}

/// The port of a server, however it is reached.
fn tcp_port(end: &End) -> Option<u16> {
    end.address().map_or_else(|| unix_port(end), |it| Some(it.port()))
}

/// The link of a client whose session at the server is known.
pub(super) fn link(session: &Session) -> Option<&Link> {
    session.link.as_ref().filter(|it| it.server.is_some())
}

/// The server's number of the session that the client stands on, or the session's own.
pub(super) fn final_backend(session: &Session) -> u64 {
    link(session).and_then(|it| it.backend).unwrap_or(session.backend)
}

/// `backend 4711 of 10.0.0.5:5432/app through PgBouncer`.
pub(super) fn in_words(link: &Link, pooler: Engine) -> String {
    let server = link.server.as_ref().map_or("", |it| it.as_str().trim_start_matches("server:"));
    format!("backend {} of {server} through {}", link.backend.unwrap_or_default(), pooler.name())
}

/// Whether a client has held its server connection for so long that the server's word of it is missing.
pub(super) fn hides_its_state(session: &Session) -> bool {
    session.link.is_none() || session.state_age.is_none_or(|it| it > TWO_LOOKS)
}

/// Why the state of a client's session is not known.
pub(super) fn why_hidden(session: &Session) -> Reason {
    match &session.link {
        Some(link) if hides_its_state(session) => {
            Reason::NoCredential(format!("the server behind the pooler, PostgreSQL at {}", link.remote))
        }
        _ => Reason::NotYet("the server behind the pooler has not been asked since"),
    }
}
