//! Which connections of a pool are certainly leased, from the server's last word and from `tcp_info`.

use std::collections::HashSet;
use std::time::Duration;

use super::join::Join;
use super::lines::SLACK;
use crate::inspect::HostLook;
use crate::inspect::host::{Connection, PoolRow, TcpState};
use crate::inspect::server::{Engine, Session, SessionState};
use crate::kernel::socket::ByNumber;

/// Sessions are believed for so long after the server was asked.
pub(super) const VIEW_LASTS: Duration = Duration::from_secs(12);

/// A request is acknowledged within so long; what comes later answers a keepalive probe.
const ACKNOWLEDGES: Duration = Duration::from_millis(500);

/// The server's last word on each connection.
#[derive(Debug, Default)]
pub(super) struct Sessions(ByNumber<Said>);

/// What the server said of one connection.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) session: Session,
    pub(super) engine: Engine,
    pub(super) at: Duration,
}

impl Sessions {
    pub(super) fn look(&mut self, join: &Join<'_>, engine: Engine, now: Duration) {
        for (_, connection) in &join.without_session {
            self.0.remove(&connection.cookie);
        }
        for it in &join.joined {
            self.0.insert(it.connection.cookie, Said { session: it.session.clone(), engine, at: now });
        }
    }

    /// The server's last word while it is believed.
    pub(super) fn of(&self, cookie: u64) -> Option<&Said> {
        self.0.get(&cookie)
    }

    /// The same, should it be older than it was at the last look at the host.
    pub(super) fn fresh(&self, cookie: u64, now: Duration) -> Option<&Said> {
        self.of(cookie).filter(|it| now.saturating_sub(it.at) <= VIEW_LASTS)
    }

    /// Forgets what was said too long ago, and of connections that are gone.
    pub(super) fn keep(&mut self, look: &HostLook, now: Duration) {
        self.0.retain(|_, it| now.saturating_sub(it.at) <= VIEW_LASTS);
        if !self.0.is_empty() {
            let open: HashSet<u64> = look.pools.iter().flat_map(|row| &row.connections).map(|it| it.cookie).collect();
            self.0.retain(|cookie, _| open.contains(cookie));
        }
    }
}

/// What is known of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// A request was sent and not answered.
    Busy,
    /// The server says that it is active or in a transaction, and nothing has passed since.
    Leased,
    /// So it was when the server was asked, and it was used since.
    Was,
    /// Idle, says the server, and nothing has passed since.
    Idle,
    Unknown,
}

/// One connection of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease<'a> {
    pub(super) connection: &'a Connection,
    pub(super) said: Option<&'a Said>,
    pub(super) hold: Hold,
}

impl Lease<'_> {
    const fn is_certain(&self) -> bool {
        matches!(self.hold, Hold::Busy | Hold::Leased)
    }

    /// For how long at least whoever has it has had it, where it is certainly leased.
    pub(super) fn held_for(&self, now: Duration) -> Option<Duration> {
        match self.hold {
            Hold::Busy => self.connection.sent_age,
            Hold::Leased => self.said.and_then(|said| Some(said.session.state_age? + now.saturating_sub(said.at))),
            Hold::Was | Hold::Idle | Hold::Unknown => None,
        }
    }

    /// Since when it certainly has been idle.
    pub(super) fn idle_for(&self, now: Duration) -> Option<Duration> {
        let said = self.said.filter(|_| self.hold == Hold::Idle)?;
        Some(said.session.state_age? + now.saturating_sub(said.at))
    }
}

/// The connections of one instance's pool that may be leased. Those that listen for notifications are none.
#[derive(Debug)]
pub(super) struct Leases<'a> {
    pub(super) all: Vec<Lease<'a>>,
    pub(super) connecting: usize,
}

impl<'a> Leases<'a> {
    pub(super) fn of(row: &'a PoolRow, sessions: &'a Sessions, now: Duration) -> Self {
        let mut leases = Self { all: Vec::with_capacity(row.connections.len()), connecting: 0 };
        for connection in &row.connections {
            match connection.state {
                TcpState::SynSent | TcpState::SynReceived => leases.connecting += 1,
                TcpState::Established => {
                    let said = sessions.fresh(connection.cookie, now);
                    if !said.is_some_and(|it| listens(&it.session)) {
                        leases.all.push(Lease { connection, said, hold: hold(connection, said, now) });
                    }
                }
                // The pool may not know yet that it is dead, and may hand it out.
                TcpState::CloseWait => leases.all.push(Lease { connection, said: None, hold: Hold::Unknown }),
                _ => (),
            }
        }
        leases
    }

    pub(super) fn open(&self) -> usize {
        self.all.len()
    }

    pub(super) fn certain(&self) -> usize {
        self.all.iter().filter(|it| it.is_certain()).count()
    }

    pub(super) fn are_all_certain(&self) -> bool {
        !self.all.is_empty() && self.all.iter().all(Lease::is_certain)
    }

    /// Nothing says that one is not leased.
    pub(super) fn are_all_possible(&self) -> bool {
        !self.all.is_empty() && self.all.iter().all(|it| it.is_certain() || it.hold == Hold::Was)
    }

    pub(super) fn cookies(&self) -> HashSet<u64> {
        self.all.iter().map(|it| it.connection.cookie).collect()
    }
}

pub(super) fn hold(connection: &Connection, said: Option<&Said>, now: Duration) -> Hold {
    if is_busy(connection) {
        return Hold::Busy;
    }
    let Some(said) = said else { return Hold::Unknown };
    let since = now.saturating_sub(said.at);
    let is_unchanged = match connection.sent_age.min(connection.received_age) {
        Some(quiet) => quiet + SLACK >= since,
        // A unix socket has no ages: the word holds for the moment at which it was said.
        None => since <= SLACK,
    };
    match (said.session.state, is_unchanged) {
        (SessionState::Idle, true) => Hold::Idle,
        (SessionState::Idle | SessionState::Unknown, _) => Hold::Unknown,
        (_, true) => Hold::Leased,
        (_, false) => Hold::Was,
    }
}

/// A request was sent and not answered. Where both ages are the same tick, an acknowledgement that came after them is of
/// a request; else a tie (both at the same tick, as over loopback) says nothing.
fn is_busy(it: &Connection) -> bool {
    let (Some(sent), Some(received)) = (it.sent_age, it.received_age) else { return false };
    it.unacknowledged.is_some_and(|count| count > 0)
        || it.unsent > 0
        || sent < received
        || sent == received && it.acknowledged_age.is_some_and(|age| age < sent && sent - age <= ACKNOWLEDGES)
}

/// A session that waits for notifications, or for what a queue gives, belongs to nobody's request.
fn listens(session: &Session) -> bool {
    let begins = |text: &str| text.trim_start().get(..7).is_some_and(|it| it.eq_ignore_ascii_case("listen "));
    let is_listen = session.state == SessionState::Idle && session.statement.as_deref().is_some_and(begins);
    is_listen || session.state == SessionState::Listening
}
