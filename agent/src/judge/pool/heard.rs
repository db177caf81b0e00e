//! What servers said of the connections of this host, for checks that judge by sockets.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use super::join::{Join, canonical};
use super::lease::Sessions;
use super::row::Word;
use super::{Connection, End, PoolRow, Servers};
use crate::inspect::ServerLook;
use crate::inspect::host::TcpState;

/// Why a connection has no session, where that is known for certain.
const GONE: &str = "session: gone at the server, which lists others over the same way and not this one, at two looks";

/// Every server's last word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard<'a> {
    pub(super) sessions: &'a Sessions,
    pub(super) servers: &'a Servers,
    pub(super) now: Duration,
}

impl<'a> Heard<'a> {
    /// The session of a connection, or why it has none that is seen.
    pub(super) fn of(self, row: &PoolRow, connection: &Connection) -> Word<'a> {
        match connection.state {
            TcpState::Established => (),
            TcpState::SynSent | TcpState::SynReceived => {
                return Word::Nothing("session: there is none before the server's first answer");
            }
            TcpState::CloseWait => return Word::Nothing("session: the server ended it and closed the connection"),
            _ => return Word::Nothing("session: the connection is being closed"),
        }
        if self.is_gone(connection) {
            return Word::Gone(GONE);
        }
        match self.sessions.fresh(connection.cookie, self.now) {
            Some(said) => Word::Said(&said.session),
            None => Word::Nothing(self.why_none(&row.remote)),
        }
    }

    /// Whether the server has certainly no session of an open connection any more.
    pub(super) fn is_gone(self, connection: &Connection) -> bool {
        self.servers.values().any(|it| it.missing.gone.contains(&connection.cookie))
    }

    fn why_none(self, remote: &End) -> &'static str {
        match self.servers.values().any(|it| it.remotes.contains(remote)) {
            true => "session: no row of the server was joined with it at the last look",
            false => "session: its server is not asked",
        }
    }
}

/// Open connections of which a server lists no session, though it lists others over the same way.
#[derive(Debug, Default)]
pub(super) struct Missing {
    /// At the last look.
    last: HashSet<u64>,
    /// At two looks in a row, and not joined since.
    gone: HashSet<u64>,
}

impl Missing {
    /// Takes a look in. Only one that hides nothing says that a session is not there; `is_whole` says that it could be
    /// joined with what is seen here.
    pub(super) fn look(&mut self, look: &ServerLook, join: &Join<'_>, is_whole: bool) {
        let open: HashSet<u64> = join.without_session.iter().map(|(_, it)| it.cookie).collect();
        if !is_whole || look.hidden.is_some() || look.unseen > 0 || look.sessions.is_err() {
            self.last.clear();
            self.gone.retain(|it| open.contains(it));
            return;
        }
        // An address that is translated on one way is none of another's fault: others have to come the same way.
        let mut ways: HashMap<&End, BTreeSet<IpAddr>> = HashMap::new();
        for it in &join.joined {
            if let Some(local) = it.connection.local.address() {
                ways.entry(&it.pool.remote).or_default().insert(canonical(local).ip());
            }
        }
        let comes_so = |pool: &PoolRow, it: &Connection| {
            it.local
                .address()
                .is_some_and(|local| ways.get(&pool.remote).is_some_and(|it| it.contains(&canonical(local).ip())))
        };
        let of_way = join.without_session.iter().filter(|(pool, it)| comes_so(pool, it));
        let missing: HashSet<u64> = of_way.map(|(_, it)| it.cookie).collect();
        self.gone.retain(|it| open.contains(it));
        self.gone.extend(missing.intersection(&self.last));
        self.last = missing;
    }
}
