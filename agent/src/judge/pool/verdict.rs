//! What is known of each connection's lease, from every source together: the server's word, `tcp_info`, and the rules
//! of `lines.rs`. Strongest first; what nothing speaks of is `unknown`, never `free`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::lease::{self, Hold, Said, Sessions};
use super::lines::{HeldBy, Key, Lines, Name, SLACK, Sight};
use super::order::Discipline;
use super::view::Verdict;
use crate::discover::Instance;
use crate::inspect::host::{Connection, Owner, PoolRow, TcpState};
use crate::inspect::server::{Engine, SessionState};
use crate::kernel::socket::ByNumber;

/// asyncpg sends this when a connection is given back.
const RESET_BEGINS: &str = "SELECT pg_advisory_unlock_all();";
const RESET_ENDS: &str = "RESET ALL;";
/// What the server sends so long after it became idle answers nothing.
const UNASKED: Duration = Duration::from_secs(2);
/// Ports whose protocol answers each request before the next: only there a request without an answer is a lease.
const STRICT: [&str; 5] = ["postgresql", "pgbouncer", "mysql", "redis", "memcached"];

/// One connection with everything that is known of it.
#[derive(Debug, Clone)]
pub(super) struct Judged<'a> {
    pub(super) row: &'a PoolRow,
    pub(super) connection: &'a Connection,
    pub(super) said: Option<&'a Said>,
    pub(super) verdict: Verdict,
    pub(super) rule: &'static str,
    pub(super) held: Option<HeldBy>,
    /// Since when it has been so, as far as that is certain.
    pub(super) since: Duration,
}

/// One pool of one process with its connections.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    pub(super) row: &'a PoolRow,
    pub(super) name: Option<Arc<Name>>,
    pub(super) discipline: Discipline,
    pub(super) connections: Vec<Judged<'a>>,
}

impl Pool<'_> {
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.connections.iter().filter(|it| it.verdict == verdict).count()
    }

    /// Certainly leased.
    pub(super) fn certain(&self) -> usize {
        self.count(Verdict::Leased) + self.count(Verdict::Busy)
    }
}

/// The history behind the verdicts.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    lines: Lines,
    /// How each connection's server names its pool; kept while the connection lasts.
    names: ByNumber<Arc<Name>>,
    /// Connections that have shown asyncpg's reset since they were born.
    resets: HashSet<u64>,
    /// Connections that were seen to listen, and not to have ended that since: later statements hide it.
    listeners: HashSet<u64>,
}

impl Verdicts {
    /// Takes a look at the host in. `opens_ahead` says how many connections a pool may open that nobody
    /// asked for.
    pub(super) fn host(
        &mut self,
        rows: &[PoolRow],
        sessions: &Sessions,
        is_viewed: impl Fn(&PoolRow) -> bool,
        opens_ahead: impl Fn(Instance, &PoolRow) -> usize,
        now: Duration,
    ) {
        self.learn(rows, sessions, now);
        self.lines.begin();
        for row in rows {
            let ahead = match &row.owner {
                Owner::Seen { instance, .. } => opens_ahead(*instance, row),
                Owner::NotVisible { .. } => usize::MAX,
            };
            for (key, connections) in self.grouped(row) {
                // A connection without a name, where the server gives names, is of no pool yet.
                if key.of.is_none() && is_viewed(row) {
                    continue;
                }
                let sights: Vec<Sight> =
                    connections.iter().filter_map(|it| self.sight(it, sessions, row.service, now)).collect();
                self.lines.pool(&key, &sights, row.process_age, ahead, row.ended() > 0, now);
            }
        }
        self.lines.end();
    }

    /// Names, resets and listeners, as long as their connections last.
    fn learn(&mut self, rows: &[PoolRow], sessions: &Sessions, now: Duration) {
        let mut names = ByNumber::with_capacity_and_hasher(self.names.len(), Default::default());
        let mut resets = HashSet::with_capacity(self.resets.len());
        let mut listeners = HashSet::with_capacity(self.listeners.len());
        for it in rows.iter().flat_map(|row| &row.connections) {
            let said = sessions.of(it.cookie);
            let name = said.map(|said| Name::of(&said.session));
            let known = self.names.remove(&it.cookie);
            let name = match (name, known) {
                (Some(name), Some(known)) if name == *known => Some(known),
                (Some(name), _) => Some(Arc::new(name)),
                (None, known) => known,
            };
            if let Some(name) = name {
                names.insert(it.cookie, name);
            }
            if self.resets.contains(&it.cookie) || said.is_some_and(is_reset) {
                resets.insert(it.cookie);
            }
            let began = said.is_some_and(|said| listens(said) || is_notified(it, said, now));
            let goes_on = self.listeners.contains(&it.cookie) && !said.is_some_and(ends_listening);
            if began || goes_on {
                listeners.insert(it.cookie);
            }
        }
        (self.names, self.resets, self.listeners) = (names, resets, listeners);
    }

    /// The connections of one row by the pool that the server knows.
    fn grouped<'a>(&self, row: &'a PoolRow) -> Vec<(Key, Vec<&'a Connection>)> {
        let mut groups: Vec<(Key, Vec<&Connection>)> = Vec::new();
        let of_state = |it: &&Connection| it.state == TcpState::Established;
        for connection in row.connections.iter().filter(of_state) {
            let of = self.names.get(&connection.cookie).cloned();
            match groups.iter_mut().find(|(key, _)| key.of == of) {
                Some((_, connections)) => connections.push(connection),
                None => {
                    let key = Key { owner: row.owner.clone(), remote: row.remote.clone(), of };
                    groups.push((key, vec![connection]));
                }
            }
        }
        groups
    }

    /// Whether some pool at work wants a second dump at the next look.
    pub(super) fn want_order(&self, now: Duration) -> bool {
        self.lines.want_order(now)
    }

    /// How the instances of a pool hand out their connections: one that rotates is enough.
    pub(super) fn discipline(&self, rows: &[&PoolRow]) -> Discipline {
        let all = rows.iter().flat_map(|row| self.grouped(row)).map(|(key, _)| self.lines.discipline(&key));
        all.fold(Discipline::Unknown, |known, it| match (known, it) {
            (Discipline::Rotating, _) | (_, Discipline::Rotating) => Discipline::Rotating,
            (Discipline::Stack, _) | (_, Discipline::Stack) => Discipline::Stack,
            _ => Discipline::Unknown,
        })
    }

    /// The verdicts of one row, pool by pool.
    pub(super) fn of<'a>(&self, row: &'a PoolRow, sessions: &'a Sessions, now: Duration) -> Vec<Pool<'a>> {
        let groups = self.grouped(row).into_iter();
        groups
            .map(|(key, connections)| {
                let together = self.lines.stopped_together(connections.iter().map(|it| it.cookie));
                let discipline = self.lines.discipline(&key);
                let judged = |connection: &&'a Connection| {
                    let mut it = self.judged(discipline, row, connection, sessions, now);
                    // Only a rule's word is weakened by it, never the server's.
                    if it.verdict == Verdict::Held && together.contains(&connection.cookie) {
                        (it.verdict, it.rule) = (Verdict::GroupStop, "group stop");
                    }
                    it
                };
                Pool { row, discipline, connections: connections.iter().map(judged).collect(), name: key.of.clone() }
            })
            .collect()
    }

    fn judged<'a>(
        &self,
        discipline: Discipline,
        row: &'a PoolRow,
        connection: &'a Connection,
        sessions: &'a Sessions,
        now: Duration,
    ) -> Judged<'a> {
        let said = sessions.fresh(connection.cookie, now);
        let used_at = now.saturating_sub(used_age(connection).unwrap_or_default());
        let mut it = Judged {
            row,
            connection,
            said,
            verdict: Verdict::Unknown,
            rule: "none",
            held: self.lines.held(connection.cookie),
            since: used_at,
        };
        let hold = lease::hold(connection, said, now);
        if hold == Hold::Leased
            && let Some(said) = said
        {
            let session = &said.session;
            // Since it has done nothing: a transaction that is older and goes on is no lease that was forgotten.
            let age = session.state_age.or(session.transaction_age);
            it.since = said.at.saturating_sub(age.unwrap_or_default());
            (it.verdict, it.rule) = (Verdict::Leased, said.engine.state_rule());
            return it;
        }
        if hold == Hold::Busy && row.service.is_some_and(|service| STRICT.contains(&service)) {
            (it.verdict, it.rule) = (Verdict::Busy, "tcp_info");
            return it;
        }
        if self.is_apart(connection, said) {
            it.rule = "a session of its own: it listens or holds an advisory lock";
            return it;
        }
        if hold == Hold::Idle
            && let Some(said) = said
            && said.engine == Engine::PostgreSql
            && self.resets.contains(&connection.cookie)
            && said.session.statement.is_some()
        {
            it.verdict = if is_reset(said) { Verdict::Free } else { Verdict::Leased };
            it.rule = "asyncpg's reset";
            return it;
        }
        if matches!(hold, Hold::Idle | Hold::Unknown) {
            if let Some(held) = it.held {
                (it.verdict, it.rule) = (Verdict::Held, held.rule());
            } else if discipline == Discipline::Rotating && self.lines.takes_turns(connection.cookie, now) {
                (it.verdict, it.rule) = (Verdict::Free, "rotation");
            }
        }
        it
    }

    fn sight(
        &self,
        connection: &&Connection,
        sessions: &Sessions,
        service: Option<&str>,
        now: Duration,
    ) -> Option<Sight> {
        let said = sessions.fresh(connection.cookie, now);
        let is_strict = service.is_some_and(|it| STRICT.contains(&it));
        Some(Sight {
            cookie: connection.cookie,
            used_at: now.saturating_sub(used_age(connection)?),
            first_seen: now.saturating_sub(connection.seen_for),
            born: connection.born,
            idle: is_strict && matches!(lease::hold(connection, said, now), Hold::Idle | Hold::Unknown),
            apart: self.is_apart(connection, said),
            picked: connection.picked,
        })
    }

    /// A session that no pool gets back: it waits for what others send, or was opened to hold a lock.
    fn is_apart(&self, connection: &Connection, said: Option<&Said>) -> bool {
        self.listeners.contains(&connection.cookie) || said.is_some_and(|it| listens(it) || holds_lock(it))
    }
}

/// Since data last went either way.
pub(super) fn used_age(it: &Connection) -> Option<Duration> {
    [it.sent_age, it.received_age].into_iter().flatten().min()
}

/// Whether its last statement began to listen.
fn listens(said: &Said) -> bool {
    said.session.state == SessionState::Listening || last_statement(said).is_some_and(|it| begins(it, "LISTEN "))
}

/// Whether the server sent something that nobody asked for, as it does to who listens: the session was idle before, and
/// we sent nothing since.
fn is_notified(connection: &Connection, said: &Said, now: Duration) -> bool {
    let (Some(sent), Some(received)) = (connection.sent_age, connection.received_age) else { return false };
    let idle_for = said.session.state_age.filter(|_| said.session.state == SessionState::Idle);
    let Some(idle_for) = idle_for.filter(|_| said.engine == Engine::PostgreSql) else { return false };
    let idle_for = idle_for + now.saturating_sub(said.at);
    received + UNASKED <= idle_for && sent + SLACK >= idle_for
}

/// Whether its last statement certainly ended that.
fn ends_listening(said: &Said) -> bool {
    is_reset(said) || last_statement(said).is_some_and(|it| begins(it, "UNLISTEN") || begins(it, "DISCARD ALL"))
}

/// Whether it was opened to hold a lock: as its server says, or by its last statement where that cannot be asked.
fn holds_lock(said: &Said) -> bool {
    let takes =
        |it: &str| ["pg_advisory_lock", "pg_try_advisory_lock", "GET_LOCK("].iter().any(|word| it.contains(word));
    said.session.holds_lock || last_statement(said).is_some_and(takes)
}

fn last_statement(said: &Said) -> Option<&str> {
    said.session.statement.as_deref().map(str::trim_start)
}

fn begins(text: &str, word: &str) -> bool {
    text.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word))
}

fn is_reset(said: &Said) -> bool {
    said.session.statement.as_deref().is_some_and(|text| {
        let text = text.trim();
        text.starts_with(RESET_BEGINS) && text.ends_with(RESET_ENDS)
    })
}
