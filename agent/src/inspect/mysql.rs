//! One MySQL or MariaDB server's own view: its sessions and slots, through one kept connection.
//!
//! With `performance_schema` each session is known by the server's own socket; without it, which is MariaDB's default,
//! by the process list, which knows ports but not whose a unix socket is, and may call hosts by name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::discover::TargetKey;
use crate::inspect::server::kept::{AskError, CONNECT_TIMEOUT, Kept, NoView, Session as _, Source};
use crate::inspect::server::{ConnectError, DsnError, Engine, Obstacle, Session, measures};
use crate::inspect::{About, Inspector, Look, Reading, Reason, ServerLook, Value, network};
use crate::kernel::unix_path;

mod connection;
mod dsn;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod sessions;

pub use dsn::Dsn;

use connection::Connection;
use sessions::{Cells, Names};

/// Most names of clients that are resolved anew in one look, and how long each may take.
const MAX_NAMES: usize = 8;
const NAME_TIMEOUT: Duration = Duration::from_millis(300);
/// How long an answer, or that there is none, stands.
const NAMES_LAST: Duration = Duration::from_secs(300);

/// Which server is looked at, and what of it is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server and the user.
    pub dsn: Dsn,
    /// Whether statements are shown; always without their literals.
    pub statements: bool,
}

impl Config {
    /// With this DSN.
    ///
    /// # Errors
    /// With what is wrong in it; never with a value.
    pub fn parse(dsn: &str, statements: bool) -> Result<Self, DsnError> {
        Ok(Self { dsn: Dsn::parse(dsn)?, statements })
    }
}

/// What this inspector is.
pub static ABOUT: About = About {
    name: "mysql",
    source: "performance_schema.threads, socket_instances and events_statements_current, or information_schema.processlist; \
             information_schema.innodb_trx; Threads_connected and max_connections",
    needs: "a user with PROCESS; with SELECT on performance_schema, and that on, sessions over unix sockets are known \
            too; without PROCESS only the user's own sessions are seen, and no transactions",
    cost: "one kept connection; one row for each session, and two short statements",
    measures: measures::ALL,
};

/// Looks at one server through one kept connection.
pub struct MySqlInspector {
    target: TargetKey,
    kept: Kept<Server>,
    /// The last `max_connections`: a server that is full refuses to say it again.
    slots: Option<u32>,
    names: Names,
    named_at: Duration,
    /// The unix socket of a server of this host that is asked over TCP.
    listens: Option<Arc<str>>,
}

impl MySqlInspector {
    /// Makes no connection yet: the first look does.
    pub fn new(config: Config) -> Self {
        let target = TargetKey::server(&config.dsn.address(), config.dsn.database());
        Self {
            target,
            kept: Kept::new(Server { config }),
            slots: None,
            names: Names::new(),
            named_at: Duration::ZERO,
            listens: None,
        }
    }

    async fn look(&mut self, now: Duration) -> Reading {
        let seen = self.kept.look(now).await;
        let mut hidden = None;
        let mut unseen = 0;
        let (used, sessions) = match seen {
            Ok(seen) => {
                self.slots = seen.slots.or(self.slots);
                self.listens = seen.listens.as_deref().map(unix_path::real);
                self.learn(&seen.rows, now).await;
                let config = &self.kept.source.config;
                let sessions = sessions::read(&seen.rows, &self.names, seen.view.sees_transactions, config.statements);
                let sessions = sessions.map_err(|what| Reason::Malformed(format!("{}: {what}", config.dsn.named())));
                hidden = sessions.as_ref().ok().and_then(|it| self.hidden(seen.view, it));
                if !seen.view.sees_transactions && !seen.view.has_schema {
                    unseen = (seen.used as usize).saturating_sub(seen.rows.len() + 1);
                }
                (Value::Known(seen.used.into()), sessions)
            }
            Err(reason) => match self.slots.filter(|_| self.kept.is_full()) {
                // One more is kept for those who may do everything.
                Some(slots) => (Value::Between(slots.into(), f64::from(slots) + 1.0), Err(reason)),
                None => (Value::Unknown(reason.clone()), Err(reason)),
            },
        };
        let slots = match (self.slots, &sessions) {
            (Some(slots), _) => Value::Known(slots.into()),
            (None, Err(reason)) => Value::Unknown(reason.clone()),
            (None, Ok(_)) => Value::Unknown(Reason::Absent("max_connections".to_owned())),
        };
        let mut look = self.kept.server_look(&self.target, sessions, used, slots);
        look.socket_path = look.socket_path.or_else(|| self.listens.clone());
        ServerLook { hidden, unseen, ..look }.into()
    }

    /// What our user may not see, or this server does not tell.
    fn hidden(&self, view: View, sessions: &[Session]) -> Option<Reason> {
        let dsn = &self.kept.source.config.dsn;
        if !view.sees_transactions {
            return Some(Reason::NotGranted(format!(
                "transactions and the sessions of other users (the user {} has no PROCESS right) at {}",
                dsn.user(),
                dsn.address(),
            )));
        }
        let is_untold = |it: &Session| it.port.is_none() && it.socket_fd.is_none();
        (!view.has_schema && sessions.iter().any(is_untold)).then(|| {
            Reason::Absent(format!(
                "whose a session over a unix socket is (performance_schema is off, or not granted, at {})",
                dsn.address(),
            ))
        })
    }

    /// Resolves the names by which the server calls its clients.
    async fn learn(&mut self, rows: &[Cells], now: Duration) {
        if now.saturating_sub(self.named_at) >= NAMES_LAST {
            self.names.clear();
            self.named_at = now;
        }
        let wanted = sessions::names(rows).into_iter().filter(|it| !self.names.contains_key(*it));
        let wanted: Vec<String> = wanted.take(MAX_NAMES).map(str::to_owned).collect();
        for name in wanted {
            let addresses = match name.as_str() {
                // Whatever the resolver thinks of it.
                "localhost" => vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)],
                name => {
                    let found = network::resolve(name, 0, NAME_TIMEOUT).await.unwrap_or_default();
                    found.iter().map(SocketAddr::ip).collect()
                }
            };
            self.names.insert(name, addresses);
        }
    }
}

impl Inspector for MySqlInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        format!("mysql {}", self.kept.source.config.dsn)
    }

    fn inspect<'a>(&'a mut self, now: Duration) -> Look<'a> {
        Box::pin(self.look(now))
    }
}

/// The server and who asks it.
struct Server {
    config: Config,
}

/// What our user may see of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    has_schema: bool,
    sees_transactions: bool,
}

impl View {
    const fn statement(self) -> &'static str {
        let views = if self.has_schema { sessions::SCHEMA } else { sessions::LIST };
        views[self.sees_transactions as usize]
    }
}

/// One look.
struct Seen {
    rows: Vec<Cells>,
    view: View,
    used: u32,
    slots: Option<u32>,
    /// Its unix socket, when it is asked over this host's own address.
    listens: Option<String>,
}

impl Source for Server {
    type Session = Connection;
    type View = Seen;

    fn engine(&self) -> Engine {
        Engine::MySql
    }

    fn address(&self) -> String {
        self.config.dsn.address()
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        self.config.dsn.place().addresses(self.config.dsn.named()).await
    }

    fn socket(&self) -> Option<String> {
        self.config.dsn.place().socket()
    }

    async fn open(&self, addresses: &[SocketAddr], patience: Duration) -> Result<Connection, ConnectError> {
        connection::open(&self.config.dsn, addresses, patience).await
    }

    async fn ask(&self, session: &mut Connection, _now: Duration) -> Result<Seen, NoView> {
        let (view, rows) = match session.view {
            Some(view) => (view, session.ask(view.statement()).await?),
            None => best_view(session).await?,
        };
        session.view = Some(view);
        let used = session.ask(sessions::USED).await?;
        let used = used.first().and_then(|row| row.number(1));
        let slots = session.ask(sessions::SLOTS).await?;
        Ok(Seen {
            rows,
            view,
            used: used.ok_or_else(|| NoView::Unclear("Threads_connected".to_owned()))?,
            slots: slots.first().and_then(|row| row.number(0)),
            // A server elsewhere may have one of the same name.
            listens: session.listens.clone().filter(|_| session.address().is_some_and(|it| it.is_loopback())),
        })
    }
}

/// `MariaDB 10.11.19` of `10.11.19-MariaDB-0+deb12u1-log`.
fn version(text: &str) -> String {
    let name = if text.to_ascii_lowercase().contains("mariadb") { "MariaDB" } else { Engine::MySql.name() };
    let number: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').take(20).collect();
    format!("{name} {number}")
}

/// The view that shows most, of those that the server has and our user may read. A refusal does not say which right is
/// missing, and each costs one statement, once for a connection.
async fn best_view(session: &mut Connection) -> Result<(View, Vec<Cells>), AskError> {
    let server = session.ask(sessions::SERVER).await?;
    session.listens = server.first().and_then(|row| row.text(3)).filter(|it| it.starts_with('/')).map(str::to_owned);
    let is_on = server.first().and_then(|row| row.text(2)).is_some_and(|it| it == "1" || it.eq_ignore_ascii_case("on"));
    let all = [(true, true), (false, true), (true, false), (false, false)];
    let mut refused = None;
    for (has_schema, sees_transactions) in all.into_iter().filter(|(has_schema, _)| is_on || !has_schema) {
        let view = View { has_schema, sees_transactions };
        match session.ask(view.statement()).await {
            Ok(rows) => return Ok((view, rows)),
            Err(error @ AskError::Refused { denied: true, .. }) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or(AskError::Closed(None)))
}

/// Connects once, looks once and leaves: what `doctor` prints.
///
/// # Errors
/// With why nothing can be seen, and what to do.
pub async fn check(config: &Config) -> Result<String, Obstacle> {
    let server = Server { config: config.clone() };
    let named = config.dsn.named();
    let failed = |error: ConnectError| Obstacle::from(error);
    let addresses = server.addresses().await.map_err(failed)?;
    let mut session = server.open(&addresses, CONNECT_TIMEOUT).await.map_err(failed)?;
    let in_words = |why: NoView| why.in_words(&named);
    let about = session.ask(sessions::SERVER).await.map_err(|why| in_words(why.into()))?;
    let seen = server.ask(&mut session, Duration::ZERO).await.map_err(in_words)?;
    let about = |index| about.first().and_then(|row| row.text(index)).unwrap_or("?");
    let found = format!(
        "{} as {}, ready in {:.0} ms; {} sessions seen by {}, {}; {} of {} slots used",
        version(about(0)),
        crate::scrub::text(about(1), 63),
        session.seconds() * 1e3,
        seen.rows.len(),
        if seen.view.has_schema { "performance_schema" } else { "the process list" },
        if seen.view.sees_transactions { "with transactions" } else { "transactions and other users hidden" },
        seen.used,
        seen.slots.map_or_else(|| "?".to_owned(), |it| it.to_string()),
    );
    match seen.view.sees_transactions {
        true => Ok(found),
        false => {
            let advice = "run `GRANT PROCESS ON *.* TO` the agent's user; it counts from the next login";
            Err(Obstacle::hidden(found, Some(advice)))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::inspect::Rows;

    /// A look at a server that says this to everybody, before any handshake.
    async fn look_at(number: u16, said: &str) -> (ServerLook, String) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = listener.local_addr().expect("is bound").to_string();
        let body = [&[0xff][..], &number.to_le_bytes(), b"#08004", said.as_bytes()].concat();
        let length = u32::try_from(body.len()).expect("short").to_le_bytes();
        let packet = [&length[..3], &[0], &body].concat();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.write_all(&packet).await;
            }
        });
        let config = Config::parse(&format!("mysql://app:hunter2@{address}/d"), true).expect("a DSN");
        let mut inspector = MySqlInspector::new(config);
        inspector.slots = Some(50);
        let reading = inspector.inspect(Duration::from_secs(100)).await;
        let Rows::Server(look) = reading.rows else { panic!("other rows") };
        assert!(!format!("{look:?}").contains("hunter2"));
        (look, address)
    }

    #[tokio::test]
    async fn a_full_server_is_evidence_and_a_wrong_password_is_our_own_blindness() {
        let (look, address) = look_at(1040, "Too many connections").await;
        let refused = look.refused.as_deref().expect("a refusal");
        assert!(refused.starts_with(&format!("MySQL at {address}: ")) && refused.contains("Too many"), "{refused}");
        assert_eq!((look.used, look.slots), (Value::Between(50.0, 51.0), Value::Known(50.0)));

        let (look, _) = look_at(1045, "Access denied for user").await;
        assert_eq!(look.refused, None);
        assert!(matches!(&look.sessions, Err(Reason::Refused(_))) && matches!(look.connect, Value::Unknown(_)));
    }

    #[test]
    fn versions_read_as_a_person_says_them() {
        assert_eq!(version("10.11.19-MariaDB-0+deb12u1-log"), "MariaDB 10.11.19");
        assert_eq!(version("8.4.3"), "MySQL 8.4.3");
        assert_eq!(version("hunter2"), "MySQL ");
    }
}
