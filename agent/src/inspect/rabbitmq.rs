//! One RabbitMQ cluster's own view: its connections and how full its nodes are, through one kept connection to its
//! management API.
//!
//! What it tells of a connection's state may be five seconds old: nodes report no oftener. A connection carries many
//! channels and answers nothing in turn, so nothing is concluded from its being quiet.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::discover::TargetKey;
use crate::inspect::server::kept::{CONNECT_TIMEOUT, Kept, NoView, Session as _, Source};
use crate::inspect::server::tls_keys::Tls;
use crate::inspect::server::{ConnectError, DsnError, Engine, Obstacle, measures, place};
use crate::inspect::{About, Inspector, Look, Reading, Reason, ServerLook, Value};

mod answers;
mod connection;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod url;

pub use url::Url;

use answers::{Connections, Overview};
use connection::Connection;

/// Stands for the name of a database: a look is at all virtual hosts.
const DATABASE: &str = "rabbitmq";

/// How long it stands where the cluster listens.
const OVERVIEW_LASTS: Duration = Duration::from_secs(60);

/// A node that started, and our connection with it, reports within five seconds.
const FIRST_REPORT: Duration = Duration::from_secs(20);

/// Which cluster is looked at.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its management API and the user.
    pub url: Url,
}

impl Config {
    /// With this URL.
    ///
    /// # Errors
    /// With what is wrong in it; never with a value.
    pub fn parse(url: &str) -> Result<Self, DsnError> {
        Ok(Self { url: Url::parse(url)? })
    }
}

/// What this inspector is.
pub static ABOUT: About = About {
    name: "rabbitmq",
    source: "the management API: /api/connections by pages (peer_host, peer_port, user, vhost, state), /api/nodes \
             (sockets_used and sockets_total, else fd_used and fd_total), /api/overview once a minute (listeners)",
    needs: "the plugin rabbitmq_management, and a user with the tag `monitoring`; its connections are the application's over \
            AMQP, found by the cluster's own addresses",
    cost: "one kept connection to the API; a request for each 500 connections, and one for the nodes",
    measures: measures::ALL,
};

/// Looks at one cluster through one kept connection.
pub struct RabbitMqInspector {
    target: TargetKey,
    kept: Kept<Server>,
    /// Where the cluster takes connections.
    ports: BTreeSet<u16>,
    places: BTreeSet<SocketAddr>,
    /// The last total of the fullest node.
    slots: Option<u32>,
}

impl RabbitMqInspector {
    /// Makes no connection yet: the first look does.
    pub fn new(config: Config) -> Self {
        Self {
            target: TargetKey::server(&config.url.address(), DATABASE),
            kept: Kept::new(Server::new(config)),
            ports: BTreeSet::new(),
            places: BTreeSet::new(),
            slots: None,
        }
    }

    async fn look(&mut self, now: Duration) -> Reading {
        let (used, slots, sessions) = match self.kept.look(now).await {
            Ok(seen) => {
                self.ports = seen.ports;
                let (used, slots) = match seen.room {
                    Ok((used, slots)) => {
                        self.slots = Some(slots);
                        (Value::Known(used.into()), Value::Known(slots.into()))
                    }
                    Err(reason) => (Value::Unknown(reason.clone()), Value::Unknown(reason)),
                };
                let sessions = seen.connections.map(|it| {
                    self.places = it.places;
                    it.sessions
                });
                (used, slots, sessions)
            }
            Err(reason) => {
                let slots = self.slots.map_or_else(|| Value::Unknown(reason.clone()), |it| Value::Known(it.into()));
                (Value::Unknown(reason.clone()), slots, Err(reason))
            }
        };
        let look = self.kept.server_look(&self.target, sessions, used, slots);
        ServerLook { addresses: self.addresses(), ..look }.into()
    }

    /// Where clients reach the cluster: at the ports that it tells of the host that was asked, and where its nodes took
    /// their connections. What a node calls loopback is its own.
    fn addresses(&self) -> Vec<SocketAddr> {
        let asked = self.kept.addresses();
        let here = asked.iter().flat_map(|it| self.ports.iter().map(|port| SocketAddr::new(it.ip(), *port)));
        let taken = self.places.iter().copied().filter(|it| !it.ip().is_loopback());
        let all: BTreeSet<SocketAddr> = here.chain(taken).collect();
        all.into_iter().collect()
    }
}

impl Inspector for RabbitMqInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        format!("rabbitmq {}", self.kept.source.config.url)
    }

    fn inspect<'a>(&'a mut self, now: Duration) -> Look<'a> {
        Box::pin(self.look(now))
    }
}

/// The API and who asks it.
struct Server {
    config: Config,
    tls: Option<Arc<ClientConfig>>,
}

/// One look. What the user may not see is missing by itself.
struct Seen {
    version: String,
    ports: BTreeSet<u16>,
    /// Used and total at the fullest node.
    room: Result<(u32, u32), Reason>,
    connections: Result<Connections, Reason>,
}

impl Server {
    fn new(config: Config) -> Self {
        Self { tls: config.url.tls().map(Tls::client_config), config }
    }

    /// An answer, or why there is none for this user; what ends the connection is an error.
    async fn get(&self, session: &mut Connection, page: &str) -> Result<Result<Vec<u8>, Reason>, NoView> {
        match session.get(&self.config.url, page).await {
            Ok(body) => Ok(Ok(body)),
            Err(error) if error.keeps_session() => Ok(Err(error.reason(&self.config.url.named()))),
            Err(error) => Err(error.into()),
        }
    }

    fn malformed(&self, what: &str) -> Reason {
        Reason::Malformed(format!("{}: {what}", self.config.url.named()))
    }

    async fn overview(&self, session: &mut Connection, now: Duration) -> Result<Overview, NoView> {
        if let Some((overview, at)) = &session.overview
            && now.saturating_sub(*at) < OVERVIEW_LASTS
        {
            return Ok(overview.clone());
        }
        // A tag may have been given since.
        if let Ok(body) = self.get(session, answers::WHO).await? {
            session.is_monitor = answers::is_monitor(&body).map_err(|what| NoView::Unclear(what.to_owned()))?;
        }
        let overview = match self.get(session, answers::OVERVIEW).await? {
            Ok(body) => Overview::read(&body).map_err(|what| NoView::Unclear(what.to_owned()))?,
            Err(_) => Overview::default(),
        };
        session.overview = Some((overview.clone(), now));
        Ok(overview)
    }

    async fn connections(&self, session: &mut Connection) -> Result<Result<Connections, Reason>, NoView> {
        if !session.is_monitor {
            return Ok(Err(Reason::NotGranted(format!(
                "connections of other users (the user {} has no tag `monitoring`) at {}",
                self.config.url.user(),
                self.config.url.address(),
            ))));
        }
        let mut all = Connections::default();
        let (mut page, mut pages) = (1, 1);
        while page <= pages {
            match self.get(session, &answers::page(page)).await? {
                Ok(body) => match all.take(&body) {
                    Ok(told) => pages = told,
                    Err(what) => return Ok(Err(self.malformed(&what))),
                },
                // There were more pages a moment ago.
                Err(Reason::Unanswered(_)) if page > 1 => break,
                Err(reason) => return Ok(Err(reason)),
            }
            page += 1;
        }
        Ok(Ok(all))
    }
}

impl Source for Server {
    type Session = Connection;
    type View = Seen;

    fn engine(&self) -> Engine {
        Engine::RabbitMq
    }

    fn address(&self) -> String {
        self.config.url.address()
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        place::resolve(self.config.url.host(), self.config.url.port(), self.config.url.named()).await
    }

    fn socket(&self) -> Option<String> {
        None
    }

    async fn open(&self, addresses: &[SocketAddr], patience: Duration) -> Result<Connection, ConnectError> {
        connection::open(&self.config.url, self.tls.as_ref(), addresses, patience).await
    }

    async fn ask(&self, session: &mut Connection, now: Duration) -> Result<Seen, NoView> {
        let Overview { version, ports } = self.overview(session, now).await?;
        let room = match self.get(session, answers::NODES).await? {
            Ok(body) => match answers::room(&body) {
                Ok(Some(room)) => Ok(room),
                Ok(None) if session.age(now) < FIRST_REPORT => Err(Reason::NotYet("the first report of a node")),
                Ok(None) => Err(Reason::Absent("sockets_total and fd_total of a node".to_owned())),
                Err(what) => Err(self.malformed(what)),
            },
            Err(reason) => Err(reason),
        };
        let connections = self.connections(session).await?;
        Ok(Seen { version, ports, room, connections })
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
    let seen = seen.map_err(|why| why.in_words(&config.url.named()))?;
    let because = |reason: Reason| match &reason {
        Reason::NotGranted(_) => {
            let advice = "run `rabbitmqctl set_user_tags` with its user and `monitoring`";
            Obstacle::hidden(reason.to_string(), Some(advice))
        }
        Reason::Refused(_) => Obstacle::hidden(reason.to_string(), reason.advice()),
        other => Obstacle { found: other.to_string(), advice: other.advice(), is_blind: false },
    };
    let connections = seen.connections.map_err(because)?;
    let (used, slots) = seen.room.map_err(because)?;
    let ports: Vec<String> = seen.ports.iter().map(u16::to_string).collect();
    Ok(format!(
        "RabbitMQ {} as {}, ready in {:.0} ms; {} connections seen, at ports {}; {used} of {slots} slots used at the fullest \
         node",
        seen.version,
        crate::scrub::text(config.url.user(), 63),
        session.seconds() * 1e3,
        connections.sessions.len(),
        ports.join(", "),
    ))
}

#[cfg(test)]
mod tests;
