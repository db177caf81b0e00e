//! What is asked of a server, and its answers as rows.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::inspect::server::{Session, SessionState};
use crate::scrub;

/// Most sessions that are read in one look.
pub(super) const MAX_SESSIONS: usize = 10_000;

const MAX_NAME: usize = 63;

/// Every view gives these columns: id, user, host with port, address, port, the server's descriptor, database, command,
/// seconds in it, what it does, statement, seconds since its transaction began.
macro_rules! of_schema {
    ($transaction:literal, $join:literal) => {
        concat!(
            "/* tickbird */ SELECT CAST(t.PROCESSLIST_ID AS CHAR), t.PROCESSLIST_USER, t.PROCESSLIST_HOST, s.IP, \
             CAST(s.PORT AS CHAR), CAST(s.SOCKET_ID AS CHAR), t.PROCESSLIST_DB, t.PROCESSLIST_COMMAND, \
             CAST(t.PROCESSLIST_TIME AS CHAR), t.PROCESSLIST_STATE, \
             CAST(LEFT(COALESCE(t.PROCESSLIST_INFO, e.SQL_TEXT), 200) AS CHAR), ",
            $transaction,
            " FROM performance_schema.threads t \
             JOIN performance_schema.socket_instances s ON s.THREAD_ID = t.THREAD_ID \
             LEFT JOIN performance_schema.events_statements_current e \
                    ON e.THREAD_ID = t.THREAD_ID AND e.NESTING_EVENT_LEVEL = 0 ",
            $join,
            " WHERE t.PROCESSLIST_ID <> CONNECTION_ID() LIMIT 10001"
        )
    };
}
macro_rules! of_list {
    ($transaction:literal, $join:literal) => {
        concat!(
            "/* tickbird */ SELECT CAST(t.ID AS CHAR), t.USER, t.HOST, CAST(NULL AS CHAR), CAST(NULL AS CHAR), \
             CAST(NULL AS CHAR), t.DB, t.COMMAND, CAST(t.TIME AS CHAR), t.STATE, CAST(LEFT(t.INFO, 200) AS CHAR), ",
            $transaction,
            " FROM information_schema.PROCESSLIST t ",
            $join,
            " WHERE t.ID <> CONNECTION_ID() LIMIT 10001"
        )
    };
}

/// `performance_schema`, with and without the right to see transactions.
pub(super) const SCHEMA: [&str; 2] = [
    of_schema!("CAST(NULL AS CHAR)", ""),
    of_schema!(
        "CAST(TIMESTAMPDIFF(SECOND, x.trx_started, NOW()) AS CHAR)",
        "LEFT JOIN information_schema.INNODB_TRX x ON x.trx_mysql_thread_id = t.PROCESSLIST_ID"
    ),
];

/// The process list, likewise.
pub(super) const LIST: [&str; 2] = [
    of_list!("CAST(NULL AS CHAR)", ""),
    of_list!(
        "CAST(TIMESTAMPDIFF(SECOND, x.trx_started, NOW()) AS CHAR)",
        "LEFT JOIN information_schema.INNODB_TRX x ON x.trx_mysql_thread_id = t.ID"
    ),
];

/// What a server is.
pub(super) const SERVER: &str = "/* tickbird */ SELECT CAST(VERSION() AS CHAR), CAST(CURRENT_USER() AS CHAR), \
                                 CAST(@@global.performance_schema AS CHAR), CAST(@@global.socket AS CHAR)";

/// Its slots, and how many are taken: told to everybody.
pub(super) const SLOTS: &str = "/* tickbird */ SELECT CAST(@@global.max_connections AS CHAR)";
pub(super) const USED: &str = "/* tickbird */ SHOW GLOBAL STATUS LIKE 'Threads_connected'";

/// One row: texts or nulls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cells(pub(super) Vec<Option<String>>);

impl Cells {
    pub(super) fn text(&self, index: usize) -> Option<&str> {
        self.0.get(index)?.as_deref()
    }

    pub(super) fn number<T: std::str::FromStr>(&self, index: usize) -> Option<T> {
        self.text(index)?.trim().parse().ok()
    }

    fn name(&self, index: usize) -> Arc<str> {
        scrub::text(self.text(index).unwrap_or_default(), MAX_NAME).into()
    }
}

/// Addresses of the names that the server calls its clients by.
pub(super) type Names = HashMap<String, Vec<IpAddr>>;

/// The names of clients in these rows that are no addresses.
pub(super) fn names(rows: &[Cells]) -> BTreeSet<&str> {
    let name = |row: &'_ Cells| -> Option<usize> {
        let (host, port) = client(row.text(2)?);
        (row.text(3).is_none() && port.is_some() && host.parse::<IpAddr>().is_err()).then_some(host.len())
    };
    rows.iter().filter_map(|row| name(row).and_then(|length| row.text(2)?.get(..length))).collect()
}

/// From the rows of one of the views. An error says what cannot be understood.
pub(super) fn read(
    rows: &[Cells],
    names: &Names,
    sees_transactions: bool,
    with_statements: bool,
) -> Result<Vec<Session>, String> {
    if rows.len() > MAX_SESSIONS {
        return Err(format!("more than {MAX_SESSIONS} sessions"));
    }
    let mut sessions = Vec::with_capacity(rows.len());
    for row in rows {
        let user = row.text(1).unwrap_or_default();
        // The server's own threads, and connections that have not logged in.
        if ["system user", "event_scheduler", "unauthenticated user", ""].contains(&user) {
            continue;
        }
        sessions.push(session(row, names, sees_transactions, with_statements).ok_or("a row of its process list")?);
    }
    Ok(sessions)
}

fn session(row: &Cells, names: &Names, sees_transactions: bool, with_statement: bool) -> Option<Session> {
    let (host, port_of_host) = row.text(2).map(client).unwrap_or_default();
    let told = row.text(3).and_then(|it| it.parse::<IpAddr>().ok());
    let port = match told {
        Some(_) => row.number(4),
        None => port_of_host,
    };
    let address = told.or_else(|| host.parse().ok()).map(|it| it.to_canonical()).filter(|_| port.is_some());
    let address_candidates = match (address, port) {
        (None, Some(_)) => names.get(host).cloned().unwrap_or_default(),
        _ => Vec::new(),
    };
    let seconds = |index| row.number::<i64>(index).map(|it| Duration::from_secs(it.max(0).unsigned_abs()));
    let transaction_age = seconds(11);
    let is_asleep = row.text(7) == Some("Sleep");
    let statement = row.text(10).filter(|it| with_statement && !it.is_empty()).and_then(scrub::mysql);
    Some(Session {
        backend: row.number(0)?,
        address,
        address_candidates,
        // An address that is a name without addresses is of nobody here.
        port: port.filter(|port| *port > 0),
        socket_fd: row.number(5),
        client_pid: None,
        link: None,
        database: row.name(6),
        user: row.name(1),
        application_name: "".into(),
        state: match (is_asleep, transaction_age) {
            (false, _) => SessionState::Active,
            (true, Some(_)) => SessionState::IdleInTransaction,
            (true, None) if sees_transactions => SessionState::Idle,
            (true, None) => SessionState::Unknown,
        },
        // In this command: of a sleeping session, since its last statement ended.
        state_age: seconds(8),
        transaction_age,
        session_age: None,
        holds_lock: false,
        waits_for: row.text(9).filter(|it| !it.is_empty()).map(|it| scrub::text(it, MAX_NAME).into()),
        statement: statement.filter(|it| !it.is_empty()).map(Into::into),
    })
}

/// Host and port of `10.0.0.9:40000`, `::1:40000` or `web1.internal:40000`; over a unix socket there is no port.
fn client(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
        Some((name, Ok(port))) => (name.trim_start_matches('[').trim_end_matches(']'), Some(port)),
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(cells: [&str; 12]) -> Cells {
        Cells(cells.map(|it| (it != "NULL").then(|| it.to_owned())).to_vec())
    }

    fn one(cells: [&str; 12], sees_transactions: bool) -> Session {
        let names = Names::from([("web1".to_owned(), vec!["10.0.0.9".parse().expect("an address")])]);
        read(&[row(cells)], &names, sees_transactions, true).expect("is read").remove(0)
    }

    const SLEEPS: [&str; 12] =
        ["7", "web", "10.0.0.9:40000", "NULL", "NULL", "NULL", "app", "Sleep", "31", "", "NULL", "35"];

    #[test]
    fn a_session_that_sleeps_in_a_transaction_is_idle_since_its_last_statement() {
        let it = one(SLEEPS, true);
        assert_eq!((it.backend, it.state), (7, SessionState::IdleInTransaction));
        assert_eq!((it.state_age, it.transaction_age), (Some(Duration::from_secs(31)), Some(Duration::from_secs(35))));
        assert_eq!((it.address, it.port), ("10.0.0.9".parse().ok(), Some(40000)));
        let mut idle = SLEEPS;
        idle[11] = "NULL";
        assert_eq!(one(idle, true).state, SessionState::Idle);
        assert_eq!(one(idle, false).state, SessionState::Unknown, "transactions may not be seen");
        idle[7] = "Query";
        assert_eq!(one(idle, false).state, SessionState::Active);
    }

    #[test]
    fn a_client_is_known_by_address_by_name_or_by_the_servers_descriptor() {
        let mut it = SLEEPS;
        it[2] = "::1:40001";
        assert_eq!((one(it, true).address, one(it, true).port), ("::1".parse().ok(), Some(40001)));
        it[2] = "::ffff:10.0.0.9:40002";
        assert_eq!(one(it, true).address, "10.0.0.9".parse().ok());
        it[2] = "web1:40003";
        let named = one(it, true);
        assert_eq!((named.address, named.port), (None, Some(40003)));
        assert_eq!(named.address_candidates, ["10.0.0.9".parse::<IpAddr>().expect("an address")]);
        it[2] = "localhost";
        assert_eq!((one(it, true).address, one(it, true).port), (None, None));
        (it[3], it[4], it[5]) = ("", "0", "57");
        let unix = one(it, true);
        assert_eq!((unix.address, unix.port, unix.socket_fd), (None, None, Some(57)));
        (it[3], it[4], it[5]) = ("127.0.0.1", "51832", "44");
        assert_eq!((one(it, true).address, one(it, true).port), ("127.0.0.1".parse().ok(), Some(51832)));
    }

    #[test]
    fn only_names_that_have_to_be_resolved_are() {
        let with_host = |host: &'static str| {
            let mut it = SLEEPS;
            it[2] = host;
            row(it)
        };
        let rows = ["web1:1", "web1:2", "10.0.0.9:3", "::1:4", "localhost"].map(with_host);
        assert_eq!(names(&rows).into_iter().collect::<Vec<_>>(), ["web1"]);
    }

    #[test]
    fn threads_of_the_server_are_no_sessions_and_statements_lose_their_literals() {
        let mut it = SLEEPS;
        it[1] = "system user";
        assert_eq!(read(&[row(it)], &Names::new(), true, true).expect("is read").len(), 0);
        (it[1], it[10]) = ("web", "SELECT 'secret'");
        assert_eq!(one(it, true).statement.as_deref(), Some("SELECT ?"));
        let silent = read(&[row(it)], &Names::new(), true, false).expect("is read");
        assert_eq!(silent[0].statement, None);
        it[0] = "no number";
        assert!(read(&[row(it)], &Names::new(), true, true).is_err());
    }

    #[test]
    fn ages_are_never_negative() {
        let mut it = SLEEPS;
        (it[8], it[11]) = ("-5", "-3600");
        assert_eq!(
            (one(it, true).state_age, one(it, true).transaction_age),
            (Some(Duration::ZERO), Some(Duration::ZERO))
        );
    }

    #[test]
    fn a_dba_finds_our_statements_by_their_beginning() {
        for statement in SCHEMA.into_iter().chain(LIST) {
            assert!(statement.starts_with("/* tickbird */ SELECT") && statement.ends_with("LIMIT 10001"));
        }
    }

    proptest! {
        #[test]
        fn no_row_panics(cells in proptest::collection::vec(proptest::option::of("[0-9:.a-f-]{0,24}|\\PC{0,9}|Sleep"), 0..14)) {
            let rows = [Cells(cells)];
            let _ = names(&rows);
            let _ = read(&rows, &Names::new(), true, true);
        }
    }
}
