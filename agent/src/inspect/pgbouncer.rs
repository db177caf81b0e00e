//! One PgBouncer's own view: its clients, the server connections that they stand on, and who waits for one.
//!
//! The console has no transactions and no statement timeout; each `SHOW` is answered from memory. `SHOW FDS` is never
//! asked: it stops the pooler.

use std::net::SocketAddr;
use std::time::Duration;

use tokio_postgres::SimpleQueryRow;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::discover::TargetKey;
use crate::inspect::postgres::Dsn;
use crate::inspect::postgres::connection::{self, Connection};
use crate::inspect::server::kept::{CONNECT_TIMEOUT, Kept, NoView, Session as _, Source};
use crate::inspect::server::{ConnectError, DsnError, Engine, Obstacle, measures};
use crate::inspect::{About, Inspector, Look, Reading, Reason, ServerLook, Value};

mod console;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use console::{Answers, Clients, Columns as _, Settings};

/// Most clients that are read in one look.
const MAX_CLIENTS: u32 = 20_000;

/// How long what is configured stands: a reload changes it under the same connection.
const SETTINGS_LAST: Duration = Duration::from_secs(60);

/// Which pooler is looked at.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its admin console, with a role of `stats_users`.
    pub dsn: Dsn,
}

impl Config {
    /// Reads a DSN of the console: database `pgbouncer` and port 6432 unless it says otherwise.
    ///
    /// # Errors
    /// With what is wrong in it; never with a value.
    pub fn parse(dsn: &str) -> Result<Self, DsnError> {
        Ok(Self { dsn: Dsn::parse_console(dsn)? })
    }
}

/// What this inspector is.
pub static ABOUT: About = About {
    name: "pgbouncer",
    source: "the admin console: SHOW CLIENTS (addr, port, wait, link), SHOW SERVERS (link, remote_pid), SHOW POOLS, \
             SHOW LISTS; SHOW CONFIG and SHOW DATABASES once a minute",
    needs: "a user in stats_users; with a [[postgres]] section for the server behind it, each client is also known by \
            its final backend",
    cost: "one kept connection to the console; four answers from memory, a row for each client and server connection",
    measures: measures::ALL,
};

/// Looks at one pooler through one kept connection.
pub struct PgBouncerInspector {
    target: TargetKey,
    kept: Kept<Console>,
    /// What the pooler last said of its limits: a full one refuses to say it again.
    settings: Option<Settings>,
}

impl PgBouncerInspector {
    /// Makes no connection yet: the first look does.
    pub fn new(config: Config) -> Self {
        let target = TargetKey::server(&config.dsn.address(), config.dsn.database());
        Self { target, kept: Kept::new(Console::new(config)), settings: None }
    }

    async fn look(&mut self, now: Duration) -> Reading {
        let view = self.kept.look(now).await;
        if let Ok(view) = &view {
            self.settings = Some(view.settings.clone());
        }
        let limit = self.settings.as_ref().and_then(|it| it.max_client_conn).map(f64::from);
        let (used, clients) = match view {
            Ok(view) => (Value::Known(view.used.into()), Ok(view.clients)),
            Err(reason) => match limit.filter(|_| self.kept.is_full()) {
                Some(limit) => (Value::Known(limit), Err(reason)),
                None => (Value::Unknown(reason.clone()), Err(reason)),
            },
        };
        let slots = match (limit, &clients) {
            (Some(limit), _) => Value::Known(limit),
            (None, Err(reason)) => Value::Unknown(reason.clone()),
            (None, Ok(_)) => Value::Unknown(Reason::Absent("max_client_conn in SHOW CONFIG".to_owned())),
        };
        let (sessions, waiters) = match clients {
            Ok(Clients { sessions, waiters }) => (Ok(sessions), waiters),
            Err(reason) => (Err(reason), Vec::new()),
        };
        let pool_mode = self.settings.as_ref().and_then(|it| it.pool_mode);
        let carries_statements = self.settings.as_ref().is_some_and(|it| it.carries_statements);
        let look = self.kept.server_look(&self.target, sessions, used, slots);
        ServerLook { waiters, pool_mode, carries_statements, ..look }.into()
    }
}

impl Inspector for PgBouncerInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        format!("pgbouncer {}", self.kept.source.config.dsn)
    }

    fn inspect<'a>(&'a mut self, now: Duration) -> Look<'a> {
        Box::pin(self.look(now))
    }
}

/// The console and how to reach it.
struct Console {
    config: Config,
    tls: MakeRustlsConnect,
}

/// A session at the console.
struct Session {
    connection: Connection,
    settings: Option<(Settings, Duration)>,
}

/// One look through it.
struct View {
    clients: Clients,
    /// Clients altogether, our own included.
    used: u32,
    settings: Settings,
}

impl Console {
    fn new(config: Config) -> Self {
        Self { tls: connection::connector(&config.dsn), config }
    }
}

impl Source for Console {
    type Session = Session;
    type View = View;

    fn engine(&self) -> Engine {
        Engine::PgBouncer
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

    async fn open(&self, addresses: &[SocketAddr], patience: Duration) -> Result<Session, ConnectError> {
        let connection = connection::open(&self.config.dsn, &self.tls, addresses, patience).await?;
        Ok(Session { connection, settings: None })
    }

    async fn ask(&self, session: &mut Session, now: Duration) -> Result<View, NoView> {
        let Session { connection, settings } = session;
        if settings.as_ref().is_none_or(|(_, read_at)| now.saturating_sub(*read_at) >= SETTINGS_LAST) {
            let config = connection.ask_console("SHOW CONFIG").await?;
            let databases = connection.ask_console("SHOW DATABASES").await?;
            *settings = Some((Settings::read(&config, &databases), now));
        }
        let settings = settings.as_ref().map(|(it, _)| it.clone()).unwrap_or_default();
        let lists = connection.ask_console("SHOW LISTS").await?;
        let items = |list: &str| {
            let row = lists.iter().find(|it| it.text("list") == Some(list));
            row.and_then(|it: &SimpleQueryRow| it.number::<u32>("items"))
        };
        let clients = items("used_clients").ok_or_else(|| NoView::Unclear("SHOW LISTS".to_owned()))?;
        if clients > MAX_CLIENTS {
            return Err(NoView::Unclear(format!("more than {MAX_CLIENTS} clients")));
        }
        let answers = Answers {
            pools: connection.ask_console("SHOW POOLS").await?,
            servers: connection.ask_console("SHOW SERVERS").await?,
            clients: connection.ask_console("SHOW CLIENTS").await?,
        };
        let used = clients.saturating_add(items("login_clients").unwrap_or(0));
        let clients = answers.read(&settings, self.config.dsn.user()).map_err(NoView::Unclear)?;
        Ok(View { clients, used, settings })
    }
}

impl crate::inspect::server::kept::Session for Session {
    fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    fn seconds(&self) -> f64 {
        self.connection.seconds
    }

    fn address(&self) -> Option<std::net::IpAddr> {
        self.connection.address
    }
}

/// Connects once, looks once and leaves: what `doctor` prints.
///
/// # Errors
/// With why nothing can be seen, and what to do.
pub async fn check(config: &Config) -> Result<String, Obstacle> {
    let console = Console::new(config.clone());
    let failed = |error: ConnectError| Obstacle::from(error);
    let addresses = console.addresses().await.map_err(failed)?;
    let mut session = console.open(&addresses, CONNECT_TIMEOUT).await.map_err(failed)?;
    let view = console.ask(&mut session, Duration::ZERO).await.map_err(|why| why.in_words(&config.dsn.named()))?;
    let linked = view.clients.sessions.iter().filter(|it| it.link.is_some()).count();
    Ok(format!(
        "PgBouncer as {}, pool_mode {}, ready in {:.0} ms; {} clients, {linked} on a server connection, {} waiting; {} of {} used",
        config.dsn.user(),
        view.settings.pool_mode.map_or("not known", |it| it.as_str()),
        session.seconds() * 1e3,
        view.clients.sessions.len(),
        view.clients.waiters.len(),
        view.used,
        view.settings.max_client_conn.map_or_else(|| "?".to_owned(), |it| it.to_string()),
    ))
}
