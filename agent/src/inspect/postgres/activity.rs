//! What is asked of a server, and its answers as rows.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type, accepts};

use super::names::Names;
use crate::inspect::server::{Session, SessionState};
use crate::scrub;

/// Most sessions that are read in one look.
const MAX_SESSIONS: i64 = 10_000;

/// Most bytes of names, which the server itself bounds at 63, and of an application's name.
pub(super) const MAX_NAME: usize = 63;

/// Client backends but our own. Of a session that our role may not see, the server hides `backend_type`, port and
/// state; it is then known for a backend of a client, or a parallel worker of one, by its user and database.
///
/// The function itself is asked, not the view over it: names come from [`super::names`], and addresses, clocks and ages
/// are taken as they are, because joining, formatting and subtracting them costs the server more than reading them.
pub(super) const SESSIONS: &str = "/* tickbird */ \
SELECT pid, client_addr, client_port, datid, usesysid, application_name, state, \
       wait_event_type, wait_event, \
       state_change, xact_start, backend_start, \
       CASE WHEN octet_length(query) > 200 THEN left(query, 200) ELSE query END, \
       backend_type IS NULL, \
       statement_timestamp() \
  FROM pg_stat_get_activity(NULL) \
 WHERE (backend_type = 'client backend' \
        OR backend_type IS NULL AND usesysid IS NOT NULL AND datid IS NOT NULL) \
   AND pid <> pg_backend_pid() \
 LIMIT 10001";

/// What does not change while a session lasts. `reserved_connections` came with PostgreSQL 16.
pub(super) const SERVER: &str = "/* tickbird */ \
SELECT current_setting('max_connections')::int4, \
       current_setting('superuser_reserved_connections')::int4, \
       coalesce(current_setting('reserved_connections', true), '0')::int4, \
       current_user::text, \
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), \
       current_setting('server_version'), \
       coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false), \
       (SELECT oid FROM pg_roles WHERE rolname = current_user), \
       current_database()::text, \
       (SELECT oid FROM pg_database WHERE datname = current_database()), \
       current_setting('server_version_num')::int4";

/// What a server is, as [`SERVER`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) max_connections: u32,
    /// `max_connections` without what is kept for superusers and reserved roles.
    pub(super) slots: u32,
    pub(super) role: String,
    /// Its oid, by which our other sessions are told.
    pub(super) role_oid: u32,
    /// The database of our session, whose counters are read.
    pub(super) database: String,
    pub(super) database_oid: u32,
    pub(super) sees_all: bool,
    pub(super) version: String,
    /// `150014` for 15.14.
    pub(super) version_number: i32,
    pub(super) is_encrypted: bool,
}

impl Server {
    /// From the one row of [`SERVER`]; `None` when it is not as asked for.
    pub(super) fn read(rows: &[Row]) -> Option<Self> {
        let row = rows.first()?;
        let count = |index| u32::try_from(field::<i32>(row, index)?).ok();
        let max_connections = count(0)?;
        Some(Self {
            max_connections,
            slots: max_connections.saturating_sub(count(1)?.saturating_add(count(2)?)),
            role: scrub::text(field::<&str>(row, 3)?, MAX_NAME),
            sees_all: field(row, 4)?,
            version: scrub::text(field::<&str>(row, 5)?, MAX_NAME),
            is_encrypted: field(row, 6)?,
            role_oid: field(row, 7)?,
            database: scrub::text(field::<&str>(row, 8)?, MAX_NAME),
            database_oid: field(row, 9)?,
            version_number: field(row, 10)?,
        })
    }
}

/// The client backends of one look.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// All but our own.
    pub(super) sessions: Vec<Session>,
    /// How many of them hide their port and state from our role; some may be parallel workers.
    pub(super) hidden: usize,
    /// Which ones.
    pub(super) hidden_backends: BTreeSet<u64>,
    /// Sessions of our own: the one that asked, and those of other agents of the same role.
    pub(super) own: usize,
    /// The databases of those others.
    pub(super) own_databases: Vec<Arc<str>>,
    /// Their process ids.
    pub(super) own_backends: BTreeSet<i32>,
}

impl Activity {
    /// From the rows of [`SESSIONS`], `role` being the oid of our own, as they are at `asked_at`, or were when they were read.
    /// An error says what cannot be understood.
    pub(super) fn read(
        rows: &[Row],
        names: &Names,
        role: u32,
        with_statements: bool,
        asked_at: Option<Micros>,
    ) -> Result<Self, String> {
        if rows.len() > usize::try_from(MAX_SESSIONS).unwrap_or(usize::MAX) {
            return Err(format!("more than {MAX_SESSIONS} sessions"));
        }
        let mut activity = Self { own: 1, ..Self::default() };
        for row in rows {
            let is_hidden = field(row, 13).unwrap_or(true);
            if field(row, 5) == Some(super::APPLICATION_NAME) && field(row, 4) == Some(role) {
                activity.own += 1;
                activity.own_databases.extend(field(row, 3).map(|oid| names.database(oid)));
                activity.own_backends.extend(field::<i32>(row, 0));
                continue;
            }
            activity.hidden += usize::from(is_hidden);
            let asked_at = asked_at.or_else(|| field(row, 14));
            let session = session(row, names, is_hidden, with_statements, asked_at);
            let session = session.ok_or("a row of pg_stat_activity")?;
            if is_hidden {
                activity.hidden_backends.insert(session.backend);
            }
            activity.sessions.push(session);
        }
        Ok(activity)
    }
}

/// The oids of databases and roles in the rows of [`SESSIONS`].
pub(super) fn oids(rows: &[Row]) -> impl Iterator<Item = (Option<u32>, Option<u32>)> {
    rows.iter().map(|row| (field(row, 3), field(row, 4)))
}

fn session(
    row: &Row,
    names: &Names,
    is_hidden: bool,
    with_statement: bool,
    asked_at: Option<Micros>,
) -> Option<Session> {
    let text = |index, max| field::<&str>(row, index).map(|text| scrub::text(text, max));
    let waits_for = match (text(7, MAX_NAME), text(8, MAX_NAME)) {
        (Some(kind), Some(event)) => Some(format!("{kind}: {event}").into()),
        _ => None,
    };
    let statement = field::<&str>(row, 12)
        .filter(|text| with_statement && !is_hidden && !text.is_empty())
        .and_then(scrub::sql)
        .filter(|text| !text.is_empty());
    let age = |index| Some(asked_at?.since(field::<Micros>(row, index)?));
    Some(Session {
        socket_fd: None,
        client_pid: None,
        address_candidates: Vec::new(),
        link: None,
        backend: u64::from(field::<i32>(row, 0)?.unsigned_abs()),
        address: field::<IpAddr>(row, 1).map(|it| it.to_canonical()),
        // -1 over a unix socket.
        port: field::<i32>(row, 2).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0),
        database: field(row, 3).map(|oid| names.database(oid)).unwrap_or_default(),
        user: field(row, 4).map(|oid| names.role(oid)).unwrap_or_default(),
        application_name: text(5, MAX_NAME).unwrap_or_default().into(),
        state: state(field(row, 6)),
        state_age: age(9),
        transaction_age: age(10),
        session_age: age(11),
        waits_for,
        holds_lock: false,
        statement: statement.map(Into::into),
    })
}

/// A column, when it is there, of this type and not null. A server in an encoding of no kind (`SQL_ASCII`) may send
/// texts that are none.
pub(super) fn field<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Option<T> {
    row.try_get::<_, Option<T>>(index).ok().flatten()
}

fn state(text: Option<&str>) -> SessionState {
    match text {
        Some("active") => SessionState::Active,
        Some("idle") => SessionState::Idle,
        Some("idle in transaction") => SessionState::IdleInTransaction,
        Some("idle in transaction (aborted)") => SessionState::IdleInTransactionAborted,
        Some("fastpath function call") => SessionState::FastPath,
        // `disabled`, hidden, or a word of a later version.
        _ => SessionState::Unknown,
    }
}

/// A `timestamptz` as the server keeps it: microseconds of its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Micros(i64);

impl Micros {
    #[cfg(test)]
    pub(super) const fn of(micros: i64) -> Self {
        Self(micros)
    }

    /// The clock of the server may have been set back, and the question is older than what changed since: nothing is
    /// younger than now.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    accepts!(TIMESTAMPTZ);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_the_server_has_its_own_here() {
        for (text, expected) in [
            (Some("active"), SessionState::Active),
            (Some("idle"), SessionState::Idle),
            (Some("idle in transaction"), SessionState::IdleInTransaction),
            (Some("idle in transaction (aborted)"), SessionState::IdleInTransactionAborted),
            (Some("fastpath function call"), SessionState::FastPath),
            (Some("disabled"), SessionState::Unknown),
            (Some("a state of PostgreSQL 30"), SessionState::Unknown),
            (None, SessionState::Unknown),
        ] {
            assert_eq!(state(text), expected, "{text:?}");
        }
    }

    #[test]
    fn ages_are_never_negative_and_never_panic() {
        let micros = |raw: i64| Micros::from_sql(&Type::TIMESTAMPTZ, &raw.to_be_bytes()).expect("eight bytes");
        assert_eq!(micros(2_500_000).since(micros(1_000_000)), Duration::from_millis(1500));
        assert_eq!(micros(0).since(micros(3)), Duration::ZERO);
        for (now, then) in [(i64::MAX, i64::MIN), (i64::MIN, i64::MAX), (0, i64::MIN)] {
            let age = micros(now).since(micros(then));
            assert!(age == Duration::ZERO || age > Duration::from_secs(1 << 40), "{age:?}");
        }
        assert!(Micros::from_sql(&Type::TIMESTAMPTZ, &[1, 2, 3]).is_err());
    }

    #[test]
    fn a_dba_finds_our_statements_in_the_log_by_their_beginning() {
        let backends = crate::inspect::postgres::still::BACKENDS;
        for statement in [SESSIONS, SERVER, backends, crate::inspect::postgres::names::NAMES] {
            assert!(statement.starts_with("/* tickbird */ SELECT"));
        }
        assert!(SESSIONS.ends_with(&(MAX_SESSIONS + 1).to_string()));
    }
}
