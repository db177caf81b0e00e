//! Answers of PgBouncer's admin console as rows: who is connected, on which server connection, and who waits.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::discover::End;
use crate::inspect::server::{Link, PoolMode, Session, SessionState, Waiter};
use crate::scrub;

/// Most bytes of a name.
const MAX_NAME: usize = 63;
/// The database that is the pooler itself.
const CONSOLE: &str = "pgbouncer";

/// One row of an answer, by the names of its columns.
pub(super) trait Columns {
    /// The text of a column; `None` when it is not there or null.
    fn text(&self, column: &str) -> Option<&str>;

    /// A column that is a number.
    fn number<T: std::str::FromStr>(&self, column: &str) -> Option<T> {
        self.text(column)?.trim().parse().ok()
    }

    /// A name, safe to show.
    fn name(&self, column: &str) -> Arc<str> {
        scrub::text(self.text(column).unwrap_or_default(), MAX_NAME).into()
    }
}

impl Columns for tokio_postgres::SimpleQueryRow {
    fn text(&self, column: &str) -> Option<&str> {
        self.try_get(column).ok().flatten()
    }
}

/// What is configured and changes only with a reload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// Clients that it takes altogether.
    pub(super) max_client_conn: Option<u32>,
    /// For pools that say nothing else.
    pub(super) pool_mode: Option<PoolMode>,
    /// From version 1.21 on, and more than none: it carries prepared statements of the protocol from one server
    /// connection to the next.
    pub(super) carries_statements: bool,
    /// Directories of servers that are reached over a unix socket, by the pooler's name of the database.
    pub(super) directories: HashMap<String, String>,
}

impl Settings {
    /// From `SHOW CONFIG` and `SHOW DATABASES`.
    pub(super) fn read<C: Columns>(config: &[C], databases: &[C]) -> Self {
        let setting = |key: &str| config.iter().find(|it| it.text("key") == Some(key)).and_then(|it| it.text("value"));
        let directory = |row: &C| {
            let host = row.text("host").filter(|it| it.starts_with('/'))?;
            Some((row.text("name")?.to_owned(), host.trim_end_matches('/').to_owned()))
        };
        Self {
            max_client_conn: setting("max_client_conn").and_then(|it| it.parse().ok()),
            pool_mode: setting("pool_mode").and_then(mode),
            carries_statements: setting("max_prepared_statements").and_then(|it| it.parse().ok()).unwrap_or(0_u32) > 0,
            directories: databases.iter().filter_map(directory).collect(),
        }
    }
}

/// One look at the console.
#[derive(Debug, Default)]
pub(super) struct Answers<C> {
    pub(super) pools: Vec<C>,
    pub(super) servers: Vec<C>,
    pub(super) clients: Vec<C>,
}

/// Clients as sessions, and those of them that wait.
#[derive(Debug, Default)]
pub(super) struct Clients {
    pub(super) sessions: Vec<Session>,
    pub(super) waiters: Vec<Waiter>,
}

impl<C: Columns> Answers<C> {
    /// Joins the answers. `own` is the role of our own console sessions, which are left out.
    pub(super) fn read(&self, settings: &Settings, own: &str) -> Result<Clients, String> {
        let modes: HashMap<(&str, &str), PoolMode> = self
            .pools
            .iter()
            .filter_map(|it| Some(((it.text("database")?, it.text("user")?), mode(it.text("pool_mode")?)?)))
            .collect();
        let servers: HashMap<&str, &C> = self.servers.iter().filter_map(|it| Some((it.text("ptr")?, it))).collect();
        let mut all = Clients::default();
        for row in &self.clients {
            let (Some(database), Some(user)) = (row.text("database"), row.text("user")) else {
                return Err("a row of SHOW CLIENTS".to_owned());
            };
            if user == own && row.text("application_name") == Some(crate::inspect::postgres::APPLICATION_NAME) {
                continue;
            }
            let pointer = row.text("ptr").ok_or("a row of SHOW CLIENTS without ptr")?;
            let link = row.text("link").and_then(|it| servers.get(it));
            // The two answers are not of one moment: both have to name the other.
            let link = link.filter(|server| server.text("link") == Some(pointer)).map(|it| link_to(*it, settings));
            let has_link = row.text("link").is_some_and(|it| !it.is_empty());
            let waited = waited(row);
            let mode = modes.get(&(database, user)).copied().or(settings.pool_mode);
            let address = row.text("addr").and_then(|it| it.parse::<IpAddr>().ok()).map(|it| it.to_canonical());
            // Over a unix socket every client shows the pooler's own port.
            let port = address.and_then(|_| row.number("port")).filter(|port| *port > 0);
            let session = Session {
                backend: u64::from_str_radix(pointer.trim_start_matches("0x"), 16)
                    .map_err(|_| "a row of SHOW CLIENTS: its ptr")?,
                address,
                address_candidates: Vec::new(),
                port,
                socket_fd: None,
                client_pid: row.number("remote_pid").filter(|pid| *pid > 0),
                link,
                database: row.name("database"),
                user: row.name("user"),
                application_name: row.name("application_name"),
                state: state(mode, has_link, waited.is_some()),
                state_age: waited,
                transaction_age: None,
                session_age: None,
                holds_lock: false,
                waits_for: waited.map(|_| "a server connection of the pool".into()),
                statement: None,
            };
            if let Some(waited) = waited {
                let (database, user) = (Arc::clone(&session.database), Arc::clone(&session.user));
                all.waiters.push(Waiter { address, port, database, user, waited });
            }
            all.sessions.push(session);
        }
        all.waiters.sort_by_key(|it| std::cmp::Reverse(it.waited));
        Ok(all)
    }
}

/// Of a client that waits for a server connection. `wait` alone does not tell: that of a client of the admin console,
/// which no server ever serves, grows from its first command on.
fn waited(row: &impl Columns) -> Option<Duration> {
    let seconds: u64 = row.number("wait").unwrap_or(0);
    let microseconds: u64 = row.number("wait_us").unwrap_or(0);
    let waits = row.text("state").is_some_and(|it| it.starts_with("waiting"));
    let is_served = row.text("database") != Some(CONSOLE);
    (waits && is_served).then(|| Duration::from_secs(seconds).saturating_add(Duration::from_micros(microseconds)))
}

/// `state` itself is `active` for every client and says nothing.
const fn state(mode: Option<PoolMode>, has_link: bool, waits: bool) -> SessionState {
    match (mode, has_link) {
        // It sent a statement, which is not answered.
        _ if waits => SessionState::Active,
        (_, false) => SessionState::Idle,
        (Some(PoolMode::Transaction), true) => SessionState::InTransaction,
        (Some(PoolMode::Statement), true) => SessionState::Active,
        // In session mode the link lasts as long as the client: only the server knows.
        (Some(PoolMode::Session) | None, true) => SessionState::Unknown,
    }
}

fn link_to(server: &impl Columns, settings: &Settings) -> Link {
    let port: u16 = server.number("port").unwrap_or(0);
    let address = |column: &str| server.text(column).and_then(|it| it.parse::<IpAddr>().ok());
    let remote = match address("addr") {
        Some(address) => End::Tcp(SocketAddr::new(address.to_canonical(), port)),
        None => {
            let name = format!(".s.PGSQL.{port}");
            let directory = server.text("database").and_then(|it| settings.directories.get(it));
            End::Unix(directory.map_or(name.clone(), |it| format!("{it}/{name}")).into())
        }
    };
    let local = address("local_addr").zip(server.number::<u16>("local_port"));
    Link {
        remote,
        local: local.map(|(address, port)| SocketAddr::new(address.to_canonical(), port)),
        backend: server.number("remote_pid").filter(|pid| *pid > 0),
        server: None,
    }
}

fn mode(text: &str) -> Option<PoolMode> {
    [PoolMode::Session, PoolMode::Transaction, PoolMode::Statement].into_iter().find(|it| it.as_str() == text.trim())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Row = HashMap<&'static str, String>;

    impl Columns for Row {
        fn text(&self, column: &str) -> Option<&str> {
            self.get(column).map(String::as_str)
        }
    }

    /// Rows as psql prints them: a head, then one line for each row, columns between `|`.
    fn rows(table: &'static str) -> Vec<Row> {
        let cells = |line: &'static str| line.split('|').map(str::trim).collect::<Vec<_>>();
        let mut lines = table.trim().lines();
        let head = cells(lines.next().expect("a head"));
        lines.map(|line| head.iter().copied().zip(cells(line).into_iter().map(str::to_owned)).collect()).collect()
    }

    /// As PgBouncer 1.18 answers, with fewer columns.
    fn answers() -> Answers<Row> {
        Answers {
            pools: rows(
                "database | user | pool_mode
                 app | web | transaction
                 jobs | web | session",
            ),
            servers: rows(
                "user | database | addr | port | local_addr | local_port | ptr | link | remote_pid
                 web | app | 127.0.0.1 | 5432 | 127.0.0.1 | 43024 | 0xa1 | 0xc1 | 4751
                 web | app | 127.0.0.1 | 5432 | 127.0.0.1 | 43025 | 0xa2 | 0xc9 | 4752
                 web | jobs | unix | 5432 | unix | 5432 | 0xa3 | 0xc5 | 4753
                 web | app | 127.0.0.1 | 5432 | 127.0.0.1 | 43026 | 0xa4 |  | 4754",
            ),
            clients: rows(
                "user | database | state | addr | port | wait | wait_us | ptr | link | remote_pid | application_name
                 web | app | active | 127.0.0.1 | 53268 | 0 | 0 | 0xc1 | 0xa1 | 0 | shop
                 web | app | active | ::1 | 53269 | 0 | 0 | 0xc2 | 0xa2 | 0 | shop
                 web | app | waiting | 127.0.0.1 | 53276 | 4 | 976619 | 0xc3 |  | 0 | shop
                 web | app | active | unix | 6432 | 0 | 0 | 0xc4 |  | 777 | shop
                 web | jobs | active | 127.0.0.1 | 53280 | 0 | 0 | 0xc5 | 0xa3 | 0 | shop
                 tick | pgbouncer | active | 127.0.0.1 | 53302 | 0 | 0 | 0xc6 |  | 0 | tickbird-agent
                 tick | pgbouncer | active | 127.0.0.1 | 53303 | 37 | 4021 | 0xc7 |  | 0 | exporter",
            ),
        }
    }

    fn settings() -> Settings {
        Settings::read(
            &rows("key | value\npool_mode | transaction\nmax_client_conn | 60"),
            &rows("name | host\njobs | /run/postgresql\napp | 127.0.0.1"),
        )
    }

    #[test]
    fn a_link_is_a_lease_in_transaction_mode_and_a_wait_is_exact() {
        let clients = answers().read(&settings(), "tick").expect("is read");
        let states: Vec<_> = clients.sessions.iter().map(|it| (it.backend, it.state)).collect();
        assert_eq!(
            states,
            [
                (0xc1, SessionState::InTransaction),
                (0xc2, SessionState::InTransaction),
                (0xc3, SessionState::Active),
                (0xc4, SessionState::Idle),
                (0xc5, SessionState::Unknown),
                (0xc7, SessionState::Idle),
            ],
            "our own console is left out, that of others is not"
        );
        let [waiter] = &clients.waiters[..] else { panic!("{:?}", clients.waiters) };
        assert_eq!((waiter.port, waiter.waited), (Some(53276), Duration::from_micros(4_976_619)));
        assert_eq!((&*waiter.database, &*waiter.user), ("app", "web"));
    }

    #[test]
    fn a_link_names_the_final_backend_when_both_sides_agree() {
        let clients = answers().read(&settings(), "tick").expect("is read").sessions;
        let link = |at: usize| clients[at].link.clone();
        let expected = Link {
            remote: End::Tcp("127.0.0.1:5432".parse().expect("an address")),
            local: Some("127.0.0.1:43024".parse().expect("an address")),
            backend: Some(4751),
            server: None,
        };
        assert_eq!(link(0), Some(expected));
        assert_eq!(link(1), None, "the server connection has gone to another client between the two answers");
        let unix = link(4).expect("both agree");
        assert_eq!((unix.remote, unix.local), (End::Unix("/run/postgresql/.s.PGSQL.5432".into()), None));
    }

    #[test]
    fn a_unix_client_has_a_process_and_no_port() {
        let clients = answers().read(&settings(), "tick").expect("is read").sessions;
        assert_eq!((clients[3].address, clients[3].port, clients[3].client_pid), (None, None, Some(777)));
        assert_eq!((clients[0].port, clients[0].client_pid), (Some(53268), None));
    }

    #[test]
    fn settings_are_read_and_unknown_ones_are_unknown() {
        let it = settings();
        assert_eq!((it.max_client_conn, it.pool_mode), (Some(60), Some(PoolMode::Transaction)));
        let newer = Settings::read(&rows("key | value\nmax_prepared_statements | 200"), &rows("name | host"));
        assert!(newer.carries_statements && !it.carries_statements);
        let none = Settings::read(&rows("key | value\npool_mode | of 2040"), &rows("name | host"));
        assert_eq!(none, Settings::default());
    }

    proptest! {
        #[test]
        fn no_answer_panics(
            cells in proptest::collection::vec("(0x)?[0-9a-fg]{0,20}|unix|waiting|127.0.0.1|\\PC{0,8}", 11),
        ) {
            let columns =
                ["user", "database", "state", "addr", "port", "wait", "wait_us", "ptr", "link", "remote_pid", "pool_mode"];
            let row: Row = columns.into_iter().zip(cells).collect();
            let answers = Answers { pools: vec![row.clone()], servers: vec![row.clone()], clients: vec![row] };
            let _ = answers.read(&Settings::default(), "tick");
        }
    }
}
