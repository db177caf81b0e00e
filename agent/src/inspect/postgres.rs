//! One PostgreSQL server's own view: its client backends and slots, through one kept connection.
//!
//! That the server is full is itself evidence, and needs no slot to be told.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio_postgres::{Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::discover::TargetKey;
use crate::inspect::server::kept::{self, Kept, NoView, Source};
use crate::inspect::server::{Engine, Facts, measures};
use crate::inspect::{About, Inspector, Look, Reading, Reason, ServerLook, Value};

mod activity;
mod check;
pub(super) mod connection;
pub(super) mod dsn;
mod facts;
mod names;
mod still;

pub use crate::inspect::server::{ConnectError, DsnError};
pub use check::{CheckError, Checked, check};
pub use dsn::Dsn;

use activity::{Activity, Server};
use connection::Connection;
use names::Names;
use still::{Backends, Still};

/// Our name at the server, in `application_name`.
pub const APPLICATION_NAME: &str = "tickbird-agent";

/// Settings of our session, behind those of the DSN, so that they win. No statement lasts, none waits for a lock, none
/// writes, and no function that somebody made in a schema of the search path is called with our rights.
const SESSION_OPTIONS: &str = "-c statement_timeout=500 -c lock_timeout=250 -c idle_in_transaction_session_timeout=10000 \
-c default_transaction_read_only=on -c search_path=pg_catalog";

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
    cost: "one kept connection; one row for each session, some 0.7 ms of the server's CPU at 100 sessions, a third of it \
           while none of them does anything",
    measures: measures::ALL,
};

/// Looks at one server through one kept connection.
pub struct PostgresInspector {
    target: TargetKey,
    kept: Kept<Postgres>,
    /// Known from the last session on: a server that is full refuses to say it again.
    server: Option<Server>,
}

impl PostgresInspector {
    /// Makes no connection yet: the first look does.
    pub fn new(config: Config) -> Self {
        Self {
            target: TargetKey::server(&config.dsn.address(), config.dsn.database()),
            kept: Kept::new(Postgres { tls: connection::connector(&config.dsn), config }),
            server: None,
        }
    }

    async fn look(&mut self, now: Duration) -> Reading {
        let seen = self.kept.look(now).await;
        if let Ok(seen) = &seen {
            self.server = Some(seen.server.clone());
        }
        let slots = match (&self.server, &seen) {
            (Some(server), _) => Value::Known(server.slots.into()),
            (None, Err(reason)) => Value::Unknown(reason.clone()),
            (None, Ok(_)) => Value::Unknown(Reason::NotYet("the settings were not read yet")),
        };
        let used = match &seen {
            Ok(seen) => used(&seen.activity),
            Err(reason) => self.used_of_full().unwrap_or_else(|| Value::Unknown(reason.clone())),
        };
        let address = self.kept.source.config.dsn.address();
        let hidden = seen
            .as_ref()
            .ok()
            .filter(|it| it.activity.hidden > 0)
            .map(|it| Reason::NotGranted(format!("{} at {address}", pg_monitor(&it.server.role))));
        let (facts, sessions) = match seen {
            Ok(seen) => (seen.facts, Ok(seen.activity.sessions)),
            Err(reason) => (facts::unknown(&reason), Err(reason)),
        };
        let look = self.kept.server_look(&self.target, sessions, used, slots);
        ServerLook { hidden, facts: Box::new(facts), ..look }.into()
    }

    /// What is used when the server refuses us because it is full: the reserved slots may be free.
    fn used_of_full(&self) -> Option<Value> {
        let server = self.server.as_ref().filter(|_| self.kept.is_full())?;
        Some(Value::Between(server.slots.into(), server.max_connections.into()))
    }
}

fn used(activity: &Activity) -> Value {
    let count = |count: usize| u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
    let all = activity.own + activity.sessions.len();
    match activity.hidden {
        0 => Value::Known(count(all)),
        // Some of the hidden ones may be parallel workers, which take no slot.
        hidden => Value::Between(count(all - hidden), count(all)),
    }
}

impl Inspector for PostgresInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        format!("postgres {}", self.kept.source.config.dsn)
    }

    fn inspect<'a>(&'a mut self, now: Duration) -> Look<'a> {
        Box::pin(self.look(now))
    }
}

/// The server and who asks it.
struct Postgres {
    config: Config,
    tls: MakeRustlsConnect,
}

/// The connection in use, with what is prepared on it.
struct Held {
    connection: Connection,
    sessions: Option<Statement>,
    backends: Option<Statement>,
    still: Still<Vec<Row>>,
    /// Sessions of other agents of our role.
    own: BTreeSet<i32>,
    names: Names,
    asked: facts::Asked,
    /// Read through this connection: a restart may have changed it.
    server: Option<Server>,
}

/// One look.
struct Seen {
    activity: Activity,
    server: Server,
    facts: Facts,
}

impl Source for Postgres {
    type Session = Held;
    type View = Seen;

    fn engine(&self) -> Engine {
        Engine::PostgreSql
    }

    fn address(&self) -> String {
        self.config.dsn.address()
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        connection::addresses(&self.config.dsn).await
    }

    fn socket(&self) -> Option<String> {
        self.config.dsn.socket_path()
    }

    async fn open(&self, addresses: &[SocketAddr], patience: Duration) -> Result<Held, ConnectError> {
        let connection = connection::open(&self.config.dsn, &self.tls, addresses, patience).await?;
        Ok(Held {
            connection,
            sessions: None,
            backends: None,
            still: Still::default(),
            own: BTreeSet::new(),
            names: Names::default(),
            asked: facts::Asked::default(),
            server: None,
        })
    }

    async fn ask(&self, session: &mut Held, now: Duration) -> Result<Seen, NoView> {
        let backends = session.backends().await?;
        let Held { connection, sessions, still, own, names, asked, server, .. } = session;
        let server = match server {
            Some(server) => server,
            None => {
                let statement = connection.prepare(activity::SERVER).await?;
                let rows = connection.ask(&statement).await?;
                server.insert(Server::read(&rows).ok_or(NoView::Unclear("its settings".into()))?)
            }
        };
        let activity = |rows: &[Row], names: &Names, asked_at| {
            let activity = Activity::read(rows, names, server.role_oid, self.config.statements, asked_at);
            activity.map_err(NoView::Unclear)
        };
        let same = backends.as_ref().and_then(|it| Some((still.same(it, own)?, it.asked_at)));
        let mut activity = match same {
            Some((rows, asked_at)) => {
                names.learn(activity::oids(rows), connection, now).await?;
                activity(rows, names, Some(asked_at))?
            }
            None => {
                let statement = match sessions {
                    Some(statement) => statement,
                    None => sessions.insert(connection.prepare(activity::SESSIONS).await?),
                };
                let rows = connection.ask(statement).await?;
                names.learn(activity::oids(&rows), connection, now).await?;
                let activity = activity(&rows, names, None)?;
                own.clone_from(&activity.own_backends);
                if let Some(backends) = backends {
                    still.read(backends, activity.sessions.iter().all(still::is_quiet), rows);
                }
                activity
            }
        };
        let facts = asked.ask(connection, server, &activity, &self.config.dsn.named(), now).await?;
        for session in &mut activity.sessions {
            session.holds_lock = asked.holds_lock(session.backend);
        }
        Ok(Seen { activity, server: server.clone(), facts })
    }
}

impl Held {
    /// The backends that the server has now; none where it is not asked, or does not say.
    async fn backends(&mut self) -> Result<Option<Backends>, NoView> {
        if !self.still.is_asked() {
            return Ok(None);
        }
        let asked = async {
            let statement = match &self.backends {
                Some(statement) => statement,
                None => self.backends.insert(self.connection.prepare(still::BACKENDS).await?),
            };
            self.connection.ask(statement).await
        };
        match asked.await.map(|rows| Backends::read(&rows)) {
            Ok(Some(backends)) => Ok(Some(backends)),
            // Another server of the same protocol may not have these functions.
            Ok(None) => {
                self.still.give_up();
                Ok(None)
            }
            Err(error) if error.keeps_session() => {
                self.still.give_up();
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl kept::Session for Held {
    fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    fn seconds(&self) -> f64 {
        self.connection.seconds
    }

    fn address(&self) -> Option<IpAddr> {
        self.connection.address
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
    use crate::inspect::server::kept::{FIRST_WAIT, LAST_WAIT};
    use crate::inspect::{Observation, Rows};

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
