//! One PostgreSQL server's own view: its client backends and slots, through one kept connection.
//!
//! The connection is opened when there is none, with growing waits after failures, so that a dead server costs nothing
//! and a full one is not asked for one more slot at each look. That the server is full is itself evidence.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tickbird_shared::backoff::Backoff;
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::discover::TargetKey;
use crate::inspect::server::kept::{AskError, CONNECT_TIMEOUT};
use crate::inspect::server::{Engine, Facts, measures};
use crate::inspect::{About, Inspector, Look, Reading, Reason, Rows, ServerLook, Value};
use crate::kernel::unix_path;

mod activity;
mod check;
pub(super) mod connection;
pub(super) mod dsn;
mod facts;
mod names;

pub use crate::inspect::server::ConnectError;
pub use check::{CheckError, Checked, check};
pub use dsn::{Dsn, DsnError};

use activity::{Activity, Server};
use connection::Connection;
use names::Names;

/// Our name at the server, in `application_name`.
pub const APPLICATION_NAME: &str = "tickbird-agent";

/// Settings of our session, behind those of the DSN, so that they win. No statement lasts, none waits for a lock, none
/// writes, and no function that somebody made in a schema of the search path is called with our rights.
const SESSION_OPTIONS: &str = "-c statement_timeout=500 -c lock_timeout=250 -c idle_in_transaction_session_timeout=10000 \
-c default_transaction_read_only=on -c search_path=pg_catalog";

/// A first wait as long as a usual look, and a last one after which a recovered server is seen soon enough.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LAST_WAIT: Duration = Duration::from_secs(30);

/// How long the addresses of a name stand while the connection lasts.
const ADDRESSES_LAST: Duration = Duration::from_secs(60);

/// Which server is looked at, and what of it is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server, the database and the role.
    pub dsn: Dsn,
    /// Whether statements are shown; always without their literals.
    pub statements: bool,
}

/// What this inspector is.
pub static ABOUT: About = About {
    name: "postgres",
    source: "pg_stat_get_activity(): pid, client_addr, client_port, datid, usesysid, application_name, state, state_change, \
             xact_start, backend_start, wait_event, query; max_connections and what is reserved of it",
    needs: "a role that may log in: the application's own, or one in pg_monitor; with another, port and state of \
            other roles' sessions are hidden",
    cost: "one kept connection; one row for each session, some 0.5 ms of the server's CPU at 100 sessions",
    measures: measures::ALL,
};

/// Looks at one server. Holds at most one connection; none while the server refuses it, but for attempts with growing
/// waits between them.
pub struct PostgresInspector {
    config: Config,
    target: TargetKey,
    tls: MakeRustlsConnect,
    held: Option<Held>,
    backoff: Backoff,
    /// What the last attempt failed with, and when the next one may be made.
    failed: Option<(ConnectError, Duration)>,
    addresses: Vec<SocketAddr>,
    resolved_at: Duration,
    /// The unix socket that the DSN names, its directory's links followed.
    socket_path: Option<Arc<str>>,
    /// Known from the last session on: a server that is full refuses to say it again.
    server: Option<Server>,
    /// Of the last look; none of them is known without a session.
    facts: Facts,
}

/// The connection in use, with what is prepared on it.
struct Held {
    connection: Connection,
    sessions: Option<Statement>,
    names: Names,
    asked: facts::Asked,
    /// Whether `server` was read through it: a restart may have changed it.
    is_introduced: bool,
}

impl PostgresInspector {
    /// Makes no connection yet: the first look does.
    pub fn new(config: Config) -> Self {
        Self {
            target: TargetKey::server(&config.dsn.address(), config.dsn.database()),
            tls: connection::connector(&config.dsn),
            config,
            held: None,
            backoff: Backoff::new(FIRST_WAIT, LAST_WAIT),
            failed: None,
            addresses: Vec::new(),
            socket_path: None,
            resolved_at: Duration::ZERO,
            server: None,
            facts: Facts::default(),
        }
    }

    async fn look(&mut self, now: Duration) -> Reading {
        let mut activity = self.ask(now).await;
        // Ended since the last look, by a restart perhaps: a new one may answer at once.
        if matches!(activity, Err(NoView::Ask(AskError::Closed(_)))) {
            activity = self.ask(now).await;
        }
        match &activity {
            Err(NoView::Ask(error)) if !error.keeps_session() => {
                self.fail(error.without_session(&self.config.dsn.named()), now);
            }
            Err(NoView::NoSession) => (),
            _ => self.backoff.reset(),
        }
        self.reading(activity)
    }

    /// One answer of the server, on the connection in use or a new one.
    async fn ask(&mut self, now: Duration) -> Result<Activity, NoView> {
        self.connect(now).await?;
        let answer = self.ask_connected(now).await;
        if matches!(&answer, Err(NoView::Ask(error)) if !error.keeps_session()) {
            self.held = None;
        }
        answer
    }

    fn fail(&mut self, error: ConnectError, now: Duration) {
        let wait = self.backoff.after_failure(rand::random(), None);
        self.failed = Some((error, now + wait));
    }

    async fn connect(&mut self, now: Duration) -> Result<(), NoView> {
        if self.held.as_ref().is_some_and(|held| held.connection.is_closed()) {
            self.held = None;
        }
        if self.held.is_some() {
            if now.saturating_sub(self.resolved_at) >= ADDRESSES_LAST {
                // The connection outlives its name; that it cannot be resolved now is no failure of the server.
                if let Ok(addresses) = connection::addresses(&self.config.dsn).await {
                    self.addresses = addresses;
                }
                self.resolved_at = now;
            }
            return Ok(());
        }
        if self.failed.as_ref().is_some_and(|(_, retry_at)| now < *retry_at) {
            return Err(NoView::NoSession);
        }
        match self.open(now).await {
            Ok(connection) => {
                self.failed = None;
                self.held = Some(Held {
                    connection,
                    sessions: None,
                    names: Names::default(),
                    asked: facts::Asked::default(),
                    is_introduced: false,
                });
                Ok(())
            }
            Err(error) => {
                self.fail(error, now);
                Err(NoView::NoSession)
            }
        }
    }

    async fn open(&mut self, now: Duration) -> Result<Connection, ConnectError> {
        let begun = Instant::now();
        self.socket_path = self.config.dsn.socket_path().map(|path| unix_path::real(&path));
        self.addresses = connection::addresses(&self.config.dsn).await?;
        self.resolved_at = now;
        let patience = CONNECT_TIMEOUT.saturating_sub(begun.elapsed());
        connection::open(&self.config.dsn, &self.tls, &self.addresses, patience).await
    }

    async fn ask_connected(&mut self, now: Duration) -> Result<Activity, NoView> {
        let held = self.held.as_mut().ok_or(NoView::NoSession)?;
        if !held.is_introduced {
            let statement = held.connection.prepare(activity::SERVER).await?;
            let rows = held.connection.ask(&statement).await?;
            self.server = Some(Server::read(&rows).ok_or(NoView::Unclear("its settings".into()))?);
            held.is_introduced = true;
        }
        let statement = match &held.sessions {
            Some(statement) => statement,
            None => held.sessions.insert(held.connection.prepare(activity::SESSIONS).await?),
        };
        let rows = held.connection.ask(statement).await?;
        held.names.learn(activity::oids(&rows), &held.connection, now).await?;
        let server = self.server.as_ref().ok_or(NoView::NoSession)?;
        let activity = Activity::read(&rows, &held.names, server.role_oid, self.config.statements);
        let activity = activity.map_err(NoView::Unclear)?;
        let address = format!("PostgreSQL at {}", self.config.dsn.address());
        self.facts = held.asked.ask(&held.connection, server, &activity, &address, now).await?;
        Ok(activity)
    }

    fn reading(&self, activity: Result<Activity, NoView>) -> Reading {
        let address = self.config.dsn.address();
        let failed = self.failed.as_ref().map(|(error, _)| error);
        let activity = activity.map_err(|why| match (why, failed) {
            (NoView::Ask(error), _) => error.reason(&self.config.dsn.named()),
            (NoView::Unclear(what), _) => Reason::Malformed(format!("PostgreSQL at {address}: {what}")),
            (NoView::NoSession, Some(error)) => error.reason(),
            (NoView::NoSession, None) => Reason::NotYet("the server was not asked yet"),
        });
        let connect = match (&self.held, failed) {
            (Some(held), _) => Value::Known(held.connection.seconds),
            (None, Some(error)) => Value::Unknown(error.reason()),
            (None, None) => Value::Unknown(Reason::NotYet("no connection was opened yet")),
        };
        let unseen = |server: &Server| Reason::NotGranted(format!("{} at {address}", pg_monitor(&server.role)));
        let hides = matches!(&activity, Ok(activity) if activity.hidden > 0);
        let look = ServerLook {
            target: self.target.clone(),
            engine: Engine::PostgreSql,
            socket_path: self.socket_path.clone(),
            addresses: self.seen_addresses(),
            connect,
            refused: failed.filter(|error| !error.is_our_fault()).map(|error| error.to_string().into()),
            slots: match (&self.server, &activity) {
                (Some(server), _) => Value::Known(server.slots.into()),
                (None, Err(reason)) => Value::Unknown(reason.clone()),
                (None, Ok(_)) => Value::Unknown(Reason::NotYet("the settings were not read yet")),
            },
            used: self.used(&activity),
            hidden: self.server.as_ref().filter(|_| hides).map(unseen),
            unseen: 0,
            waiters: Vec::new(),
            pool_mode: None,
            facts: match &activity {
                Ok(_) => Box::new(self.facts.clone()),
                Err(reason) => Box::new(facts::unknown(reason)),
            },
            sessions: activity.map(|activity| activity.sessions),
        };
        let observations = measures::of(&look);
        Reading { rows: Rows::Server(look), observations }
    }

    /// The answers of the name, and the address in use though the name may have left it since.
    fn seen_addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = self.addresses.clone();
        if let Some(address) = self.held.as_ref().and_then(|held| held.connection.address)
            && let Some(port) = addresses.first().map(SocketAddr::port)
            && !addresses.iter().any(|known| known.ip() == address)
        {
            addresses.push(SocketAddr::new(address, port));
        }
        addresses
    }

    fn used(&self, activity: &Result<Activity, Reason>) -> Value {
        let count = |count: usize| u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
        let is_full = matches!(self.failed, Some((ConnectError::TooManyClients { of_server: true, .. }, _)));
        match (activity, &self.server) {
            (Ok(it), _) if it.hidden == 0 => Value::Known(count(it.own + it.sessions.len())),
            // Some of the hidden ones may be parallel workers, which take no slot.
            (Ok(it), _) => {
                let all = it.own + it.sessions.len();
                Value::Between(count(all - it.hidden), count(all))
            }
            (Err(_), Some(server)) if is_full => Value::Between(server.slots.into(), server.max_connections.into()),
            (Err(reason), _) => Value::Unknown(reason.clone()),
        }
    }
}

impl Inspector for PostgresInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        format!("postgres {}", self.config.dsn)
    }

    fn inspect<'a>(&'a mut self, now: Duration) -> Look<'a> {
        Box::pin(self.look(now))
    }
}

/// Why a look did not see the sessions.
enum NoView {
    /// None is open: `failed` says why.
    NoSession,
    Ask(AskError),
    /// An answer that is not as asked for.
    Unclear(String),
}

impl From<AskError> for NoView {
    fn from(error: AskError) -> Self {
        Self::Ask(error)
    }
}

/// What may not be read without the right, in the words of reasons and advice.
fn pg_monitor(role: &str) -> String {
    format!("port and state of other roles' sessions (the role {role} is not in pg_monitor)")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::inspect::Observation;

    fn inspector(dsn: &str) -> PostgresInspector {
        PostgresInspector::new(Config { dsn: Dsn::parse(dsn).expect("a DSN"), statements: true })
    }

    async fn look(inspector: &mut PostgresInspector, now: Duration) -> (ServerLook, Vec<Observation>) {
        let Reading { rows: Rows::Server(look), observations } = inspector.inspect(now).await else {
            panic!("other rows")
        };
        (look, observations)
    }

    /// A server that refuses everybody like this, and counts them.
    async fn refusing(fields: &'static [&str]) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            let body: Vec<u8> = fields.iter().flat_map(|field| field.bytes().chain([0])).chain([0]).collect();
            let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
            let answer = [&b"E"[..], &length, &body].concat();
            while let Ok((mut socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = socket.read(&mut [0; 512]).await;
                let _ = socket.write_all(&answer).await;
            }
        });
        (address, asked)
    }

    const FULL: &[&str] = &["SFATAL", "VFATAL", "C53300", "Msorry, too many clients already", "RInitProcess"];
    const WRONG: &[&str] = &["SFATAL", "VFATAL", "C28P01", "Mpassword authentication failed for user \"app\""];

    #[tokio::test]
    async fn a_full_server_is_not_asked_at_every_look_and_its_refusal_is_kept_as_evidence() {
        let (address, asked) = refusing(FULL).await;
        let mut inspector = inspector(&format!("postgres://app:hunter2@{address}/d?sslmode=disable"));
        let now = Duration::from_secs(100);
        for _ in 0..50 {
            let (look, observations) = look(&mut inspector, now).await;
            let expected = format!("PostgreSQL at {address}: sorry, too many clients already");
            assert_eq!(look.refused.as_deref(), Some(&*expected));
            assert_eq!(look.sessions.expect_err("none were seen"), Reason::Unreachable(expected));
            assert_eq!(look.addresses, [address]);
            assert!(observations.iter().all(|it| matches!(it.value, Value::Unknown(_))), "{observations:?}");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        look(&mut inspector, now + FIRST_WAIT).await;
        assert_eq!(asked.load(Ordering::Relaxed), 2, "the first wait is at most this long");
        for seconds in 0..120 {
            look(&mut inspector, now + FIRST_WAIT + Duration::from_secs(seconds)).await;
        }
        assert!(asked.load(Ordering::Relaxed) < 60, "waits grow: {asked:?}");
        look(&mut inspector, now + 10 * LAST_WAIT).await;
        let before = asked.load(Ordering::Relaxed);
        look(&mut inspector, now + 11 * LAST_WAIT).await;
        assert_eq!(asked.load(Ordering::Relaxed), before + 1, "no wait is longer than the last one");
    }

    #[tokio::test]
    async fn slots_that_were_known_say_how_full_a_full_server_is() {
        let (address, _) = refusing(FULL).await;
        let mut inspector = inspector(&format!("postgres://app@{address}/d?sslmode=disable"));
        inspector.server = Some(Server {
            max_connections: 100,
            slots: 97,
            role: "app".into(),
            role_oid: 16_384,
            database: "d".into(),
            database_oid: 5,
            sees_all: true,
            version: "15".into(),
            version_number: 150_000,
            is_encrypted: false,
        });
        let (look, observations) = look(&mut inspector, Duration::ZERO).await;
        assert_eq!((look.used, look.slots), (Value::Between(97.0, 100.0), Value::Known(97.0)));
        let ratio = observations.iter().find(|it| it.measure.name == "server.slots_used_ratio").expect("is there");
        assert!(ratio.value.low() >= Some(1.0), "{ratio:?}");
    }

    #[tokio::test]
    async fn a_wrong_password_blinds_us_and_is_no_refusal_of_others() {
        let (address, _) = refusing(WRONG).await;
        let mut inspector = inspector(&format!("postgres://app:hunter2@{address}/d?sslmode=disable"));
        let (look, _) = look(&mut inspector, Duration::ZERO).await;
        assert_eq!(look.refused, None);
        assert!(matches!(&look.sessions, Err(Reason::Refused(_))) && matches!(look.connect, Value::Unknown(_)));
        assert!(!format!("{look:?}").contains("hunter2"));
    }
}
