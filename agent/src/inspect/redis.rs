//! One Redis server's own view (or Valkey's): its clients, its limit and its part in replication, through one kept
//! connection.
//!
//! Two commands make a look, `INFO` and `CLIENT LIST`. Each is answered from memory, and neither shows a key or a value:
//! of a command its name is told, never an argument.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::discover::TargetKey;
use crate::inspect::server::kept::{AskError, CONNECT_TIMEOUT, Kept, NoView, Session as _, Source};
use crate::inspect::server::tls_keys::Tls;
use crate::inspect::server::{ConnectError, DsnError, Engine, Facts, Obstacle, measures};
use crate::inspect::{About, Inspector, Look, Reading, Reason, ServerLook, Value};
use crate::kernel::unix_path;

mod clients;
mod connection;
mod dsn;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod info;
mod resp;

pub use dsn::Dsn;

use clients::{Clients, Ourselves};
use connection::Connection;
use info::{Info, Offsets};
use resp::Reply;

/// Which server is looked at, and what of it is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server and the user.
    pub dsn: Dsn,
    /// Whether the name of each client's last command is shown; its arguments never are.
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
    name: "redis",
    source: "CLIENT LIST (addr, fd, flags, multi, idle, name of the last command) and INFO (maxclients, connected_clients, \
             role, replicas); CONFIG GET maxclients before version 7",
    needs: "a user with `+client|list +info`; with `+client|id +client|setname` too it is seen under its own name. \
            Before version 6.2 `+client`, and `+config|get` for the limit before version 7",
    cost: "one kept connection; two answers from memory, one of them with a line for each client: 0.1 ms of the server's \
           thread at 20 clients, 1.5 ms at 1,000, 15 ms at 4,000 (a longer `interval` makes it rarer)",
    measures: measures::ALL,
};

/// Looks at one server through one kept connection.
pub struct RedisInspector {
    target: TargetKey,
    kept: Kept<Server>,
    /// The last `maxclients`: a server that is full refuses to say it again.
    slots: Option<u32>,
    offsets: Offsets,
    /// Where else the server listens, as its clients' rows show.
    places: Places,
}

/// Where a server takes clients beside the address that is asked.
#[derive(Debug, Default)]
struct Places {
    ports: Vec<u16>,
    addresses: Vec<SocketAddr>,
    socket_path: Option<Arc<str>>,
}

impl RedisInspector {
    /// Makes no connection yet: the first look does.
    pub fn new(config: Config) -> Self {
        Self {
            target: TargetKey::server(&config.dsn.address(), &config.dsn.database()),
            kept: Kept::new(Server::new(config)),
            slots: None,
            offsets: Offsets::default(),
            places: Places::default(),
        }
    }

    async fn look(&mut self, now: Duration) -> Reading {
        let seen = self.kept.look(now).await;
        let mut facts = Facts::default();
        let (used, slots, sessions) = match seen {
            Ok(seen) => {
                self.slots = seen.slots.as_ref().ok().copied().or(self.slots);
                if let Ok(clients) = &seen.clients {
                    self.learn(clients);
                }
                facts.standing = match &seen.info {
                    Ok(info) => info.standing(&mut self.offsets, now).map(Ok),
                    Err(reason) => Some(Err(reason.clone())),
                };
                facts.identifier = seen.info.as_ref().ok().and_then(|it| it.run_id.clone()).map(Ok);
                let used = match &seen.info {
                    Ok(Info { used: Some(used), .. }) => Value::Known((*used).into()),
                    Ok(_) => Value::Unknown(Reason::Absent("connected_clients in INFO".to_owned())),
                    Err(reason) => Value::Unknown(reason.clone()),
                };
                let slots = match seen.slots {
                    Ok(slots) => Value::Known(slots.into()),
                    Err(reason) => Value::Unknown(reason),
                };
                (used, slots, seen.clients.map(|it| it.sessions))
            }
            Err(reason) => {
                facts.standing = Some(Err(reason.clone()));
                let unknown = || Value::Unknown(reason.clone());
                // Nobody has a slot in reserve: a server that refuses for want of one has given out all.
                let used =
                    self.slots.filter(|_| self.kept.is_full()).map_or_else(unknown, |it| Value::Known(it.into()));
                let slots = self.slots.map_or_else(unknown, |it| Value::Known(it.into()));
                (used, slots, Err(reason))
            }
        };
        let mut look = self.kept.server_look(&self.target, sessions, used, slots);
        look.socket_path = look.socket_path.or_else(|| self.places.socket_path.clone());
        ServerLook { addresses: self.addresses(), facts: Box::new(facts), ..look }.into()
    }

    /// Where the server listens too, such as for TLS, by where it took its clients. Only when it sees its own address as
    /// we do: behind a translation another server may have the port that it names.
    fn learn(&mut self, clients: &Clients) {
        let asked = self.kept.addresses();
        let is_near = asked.is_empty() || asked.iter().any(|it| it.ip().is_loopback());
        let is_as_asked = clients.ours.is_some_and(|ours| asked.iter().any(|it| it.port() == ours.port()));
        if is_as_asked {
            self.places.ports = clients.places.iter().map(SocketAddr::port).collect();
        }
        if asked.is_empty() {
            self.places.addresses.clone_from(&clients.places);
        }
        // A server elsewhere may have a socket of the same name.
        if let Some(path) = clients.socket_path.as_deref().filter(|_| is_near) {
            self.places.socket_path = Some(unix_path::real(path));
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let mut all = self.kept.addresses();
        let others: Vec<SocketAddr> = all
            .iter()
            .flat_map(|it| self.places.ports.iter().map(|port| SocketAddr::new(it.ip(), *port)))
            .chain(self.places.addresses.iter().copied())
            .collect();
        for it in others {
            if !all.contains(&it) {
                all.push(it);
            }
        }
        all
    }
}

impl Inspector for RedisInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        format!("redis {}", self.kept.source.config.dsn)
    }

    fn inspect<'a>(&'a mut self, now: Duration) -> Look<'a> {
        Box::pin(self.look(now))
    }
}

/// The server and who asks it.
struct Server {
    config: Config,
    tls: Option<Arc<ClientConfig>>,
}

impl Server {
    fn new(config: Config) -> Self {
        Self { tls: config.dsn.tls().map(Tls::client_config), config }
    }

    /// An answer, or why there is none for this user; what ends the connection is an error.
    async fn text(&self, session: &mut Connection, words: &[&str]) -> Result<Result<String, Reason>, NoView> {
        let named = self.config.dsn.named();
        match session.ask(words).await {
            Ok(reply) => match reply.text() {
                Some(text) => Ok(Ok(text)),
                None => Err(NoView::Unclear(words.join(" "))),
            },
            Err(error) if error.keeps_session() => Ok(Err(error.reason(&named))),
            Err(error) => Err(error.into()),
        }
    }

    /// The limit that older servers tell only as a setting, asked once for a connection.
    async fn configured(&self, session: &mut Connection) -> Result<Result<u32, Reason>, NoView> {
        if let Some(known) = &session.configured {
            return Ok(known.clone());
        }
        let limit = match session.ask(&["CONFIG", "GET", "maxclients"]).await {
            Ok(Reply::Array(parts)) => {
                let limit = parts.into_iter().nth(1).and_then(Reply::text).and_then(|it| it.parse().ok());
                limit.filter(|it| *it > 0).ok_or_else(|| Reason::Absent("maxclients".to_owned()))
            }
            Ok(_) => Err(Reason::Absent("maxclients".to_owned())),
            Err(error @ AskError::Refused { .. }) => Err(error.reason(&self.config.dsn.named())),
            Err(error) => return Err(error.into()),
        };
        session.configured = Some(limit.clone());
        Ok(limit)
    }
}

/// One look. Each part is missing by itself when the user has no right to it.
struct Seen {
    info: Result<Info, Reason>,
    slots: Result<u32, Reason>,
    clients: Result<Clients, Reason>,
}

impl Source for Server {
    type Session = Connection;
    type View = Seen;

    fn engine(&self) -> Engine {
        Engine::Redis
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
        connection::open(&self.config.dsn, self.tls.as_ref(), addresses, patience).await
    }

    async fn ask(&self, session: &mut Connection, _now: Duration) -> Result<Seen, NoView> {
        let info = self.text(session, &["INFO"]).await?.map(|text| Info::read(&text));
        let slots = match info.as_ref().ok().and_then(|it| it.max_clients) {
            Some(slots) => Ok(slots),
            None => self.configured(session).await?,
        };
        let ourselves = match (session.id, session.local) {
            (Some(id), _) => Ourselves::Id(id),
            (None, Some(end)) => Ourselves::End(end),
            (None, None) => Ourselves::Unix { user: self.config.dsn.user() },
        };
        let clients = match self.text(session, &["CLIENT", "LIST"]).await? {
            Ok(text) => Clients::read(&text, ourselves, self.config.statements)
                .map_err(|what| Reason::Malformed(format!("{}: {what}", self.config.dsn.named()))),
            Err(reason) => Err(reason),
        };
        Ok(Seen { info, slots, clients })
    }
}

/// Connects once, looks once and leaves: what `doctor` prints.
///
/// # Errors
/// With why nothing can be seen, and what to do.
pub async fn check(config: &Config) -> Result<String, Obstacle> {
    let server = Server::new(config.clone());
    let failed = |error: ConnectError| Obstacle::from(error);
    let addresses = server.addresses().await.map_err(failed)?;
    let mut session = server.open(&addresses, CONNECT_TIMEOUT).await.map_err(failed)?;
    let seen = server.ask(&mut session, Duration::ZERO).await;
    let seen = seen.map_err(|why| why.in_words(&config.dsn.named()))?;
    let advice = Some("run `ACL SETUSER` for the agent's user with `+client|list +info +client|id +client|setname`");
    let clients = seen.clients.map_err(|reason| Obstacle::hidden(reason.to_string(), advice))?;
    let info = seen.info.map_err(|reason| Obstacle::hidden(reason.to_string(), advice))?;
    let told = |number: Option<u32>| number.map_or_else(|| "?".to_owned(), |it| it.to_string());
    let found = format!(
        "{} {} as {}{}, ready in {:.0} ms; {} clients seen; {} of {} slots used",
        info.product,
        info.version,
        crate::scrub::text(config.dsn.user(), 63),
        if config.dsn.tls().is_some() { " over TLS" } else { "" },
        session.seconds() * 1e3,
        clients.sessions.len(),
        told(info.used),
        told(seen.slots.as_ref().ok().copied()),
    );
    match seen.slots {
        Ok(_) => Ok(found),
        Err(reason) => Err(Obstacle::hidden(format!("{found}: {reason}"), advice)),
    }
}

#[cfg(test)]
mod tests;
