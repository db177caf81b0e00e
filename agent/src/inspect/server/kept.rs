//! The one connection to a server that is kept from look to look: opened in bounded time, with growing waits after
//! failures, so that a dead server costs nothing and a full one is not asked for one more slot at each look.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tickbird_shared::backoff::Backoff;
use tokio::time::Instant;

use super::{ConnectError, Engine, Facts, Obstacle, ServerLook, Session as Row};
use crate::discover::TargetKey;
use crate::inspect::{Reason, Value};
use crate::kernel::unix_path;

/// For the name and all its addresses together. Above the five seconds that `db.connect` calls critical, so that they
/// can be measured.
pub(in crate::inspect) const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);

/// For the answer to one question: the session's own limit, and what a busy host and network add to it.
pub(in crate::inspect) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A first wait as long as a usual look, and a last one after which a recovered server is seen soon enough.
pub(in crate::inspect) const FIRST_WAIT: Duration = Duration::from_secs(2);
pub(in crate::inspect) const LAST_WAIT: Duration = Duration::from_secs(30);

/// How long the addresses of a name stand while the connection lasts.
const ADDRESSES_LAST: Duration = Duration::from_secs(60);

/// A server that can be connected to and asked.
pub(in crate::inspect) trait Source: Send + Sync {
    /// An open session.
    type Session: Session;
    /// What one look at it gives.
    type View: Send;

    /// What kind of server it is.
    fn engine(&self) -> Engine;

    /// `10.0.0.5:3306`.
    fn address(&self) -> String;

    /// Addresses of the server as sockets show them; none for a unix socket.
    fn addresses(&self) -> impl Future<Output = Result<Vec<SocketAddr>, ConnectError>> + Send;

    /// The unix socket that the DSN names.
    fn socket(&self) -> Option<String>;

    /// Opens a session at one of these addresses.
    fn open(
        &self,
        addresses: &[SocketAddr],
        patience: Duration,
    ) -> impl Future<Output = Result<Self::Session, ConnectError>> + Send;

    /// Asks an open session.
    fn ask(
        &self,
        session: &mut Self::Session,
        now: Duration,
    ) -> impl Future<Output = Result<Self::View, NoView>> + Send;
}

/// An open session, as far as it is kept.
pub(in crate::inspect) trait Session: Send {
    /// Whether the server or the network ended it.
    fn is_closed(&self) -> bool;

    /// From the first SYN to a ready session.
    fn seconds(&self) -> f64;

    /// The address that answered; `None` over a unix socket, or when the library keeps it to itself.
    fn address(&self) -> Option<IpAddr>;
}

/// Why an open session gave no answer.
#[derive(Debug)]
pub(in crate::inspect) enum AskError {
    /// The server refused or cancelled the statement; the session goes on.
    Refused { denied: bool, message: String },
    /// No answer in time: the session is given up.
    Silent,
    /// The session is over; the server may have said why.
    Closed(Option<String>),
}

impl AskError {
    /// Whether the session can be asked again.
    pub(in crate::inspect) fn keeps_session(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// The same as the cause of there being no session any more.
    pub(in crate::inspect) fn without_session(&self, server: &str) -> ConnectError {
        let server = server.to_owned();
        match self {
            Self::Silent => ConnectError::Silent { server, seconds: ANSWER_TIMEOUT.as_secs_f64() },
            Self::Closed(None) => ConnectError::Unreachable { server, said: "connection closed".into() },
            Self::Closed(Some(said)) | Self::Refused { message: said, .. } => {
                ConnectError::NotServing { server, said: said.clone() }
            }
        }
    }

    /// Why nothing is known of `server`.
    pub(in crate::inspect) fn reason(&self, server: &str) -> Reason {
        match self {
            Self::Refused { denied: true, message } => Reason::NotGranted(format!("{server}: {message}")),
            Self::Refused { message, .. } => Reason::Unanswered(format!("{server}: {message}")),
            Self::Closed(Some(message)) => Reason::Unreachable(format!("{server}: {message}")),
            Self::Closed(None) => Reason::Unreachable(format!("{server}: connection closed")),
            Self::Silent => {
                let seconds = ANSWER_TIMEOUT.as_secs();
                Reason::Unreachable(format!("{server}: no answer within {seconds} s"))
            }
        }
    }
}

/// Why a look did not see the sessions.
#[derive(Debug)]
pub(in crate::inspect) enum NoView {
    /// None is open: what the last attempt failed with says why.
    NoSession,
    /// It is open and did not answer.
    Ask(AskError),
    /// An answer that is not as asked for.
    Unclear(String),
}

impl NoView {
    /// Why nothing is known of `server`.
    fn reason(&self, server: &str) -> Reason {
        match self {
            Self::Ask(error) => error.reason(server),
            Self::Unclear(what) => Reason::Malformed(format!("{server}: {what}")),
            Self::NoSession => Reason::NotYet("the server was not asked yet"),
        }
    }

    /// The same for a person, with what to do.
    pub(in crate::inspect) fn in_words(&self, server: &str) -> Obstacle {
        let reason = self.reason(server);
        let advice = match &reason {
            Reason::NotGranted(_) => Some("use a role that may see the sessions of all others"),
            other => other.advice(),
        };
        let is_blind = matches!(reason, Reason::NotGranted(_) | Reason::Refused(_));
        Obstacle { found: reason.to_string(), advice, is_blind }
    }
}

impl From<AskError> for NoView {
    fn from(error: AskError) -> Self {
        Self::Ask(error)
    }
}

/// A source with its connection.
pub(in crate::inspect) struct Kept<S: Source> {
    pub(in crate::inspect) source: S,
    session: Option<S::Session>,
    backoff: Backoff,
    /// What the last attempt failed with, and when the next one may be made.
    failed: Option<(ConnectError, Duration)>,
    addresses: Vec<SocketAddr>,
    resolved_at: Duration,
    /// The unix socket, its directory's links followed.
    socket_path: Option<Arc<str>>,
}

impl<S: Source> Kept<S> {
    /// Makes no connection yet: the first look does.
    pub(in crate::inspect) fn new(source: S) -> Self {
        Self {
            source,
            session: None,
            backoff: Backoff::new(FIRST_WAIT, LAST_WAIT),
            failed: None,
            addresses: Vec::new(),
            resolved_at: Duration::ZERO,
            socket_path: None,
        }
    }

    /// One answer of the server, on the connection in use or a new one.
    pub(in crate::inspect) async fn look(&mut self, now: Duration) -> Result<S::View, Reason> {
        let mut view = self.ask(now).await;
        // Ended since the last look, by a restart perhaps: a new one may answer at once.
        if matches!(view, Err(NoView::Ask(AskError::Closed(_)))) {
            view = self.ask(now).await;
        }
        let server = self.server();
        match &view {
            Err(NoView::Ask(error)) if !error.keeps_session() => self.fail(error.without_session(&server), now),
            Err(NoView::NoSession) => (),
            _ => self.backoff.reset(),
        }
        view.map_err(|why| match (&why, self.failure()) {
            (NoView::NoSession, Some(error)) => error.reason(),
            _ => why.reason(&server),
        })
    }

    /// What is seen of a server of which no more is told than this.
    pub(in crate::inspect) fn server_look(
        &self,
        target: &TargetKey,
        sessions: Result<Vec<Row>, Reason>,
        used: Value,
        slots: Value,
    ) -> ServerLook {
        ServerLook {
            target: target.clone(),
            engine: self.source.engine(),
            addresses: self.addresses(),
            socket_path: self.socket_path.clone(),
            connect: self.connect(),
            refused: self.refused().map(Into::into),
            sessions,
            slots,
            used,
            hidden: None,
            unseen: 0,
            waiters: Vec::new(),
            pool_mode: None,
            carries_statements: false,
            facts: Box::new(Facts::default()),
        }
    }

    /// Seconds of the connection in use, or why there is none.
    fn connect(&self) -> Value {
        match (&self.session, self.failure()) {
            (Some(session), _) => Value::Known(session.seconds()),
            (None, Some(error)) => Value::Unknown(error.reason()),
            (None, None) => Value::Unknown(Reason::NotYet("no connection was opened yet")),
        }
    }

    /// What the server or the kernel said, when there is no session and it is not the agent's own fault.
    fn refused(&self) -> Option<String> {
        self.failure().filter(|error| !error.is_our_fault()).map(ToString::to_string)
    }

    /// Whether the last attempt was refused because every slot is taken.
    pub(in crate::inspect) fn is_full(&self) -> bool {
        matches!(self.failure(), Some(ConnectError::TooManyClients { of_server: true, .. }))
    }

    /// The answers of the name, and the address in use though the name may have left it since.
    pub(in crate::inspect) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = self.addresses.clone();
        if let Some(address) = self.session.as_ref().and_then(Session::address)
            && let Some(port) = addresses.first().map(SocketAddr::port)
            && !addresses.iter().any(|known| known.ip() == address)
        {
            addresses.push(SocketAddr::new(address, port));
        }
        addresses
    }

    /// `MySQL at 10.0.0.5:3306`.
    fn server(&self) -> String {
        self.source.engine().at(&self.source.address())
    }

    fn failure(&self) -> Option<&ConnectError> {
        self.failed.as_ref().map(|(error, _)| error)
    }

    fn fail(&mut self, error: ConnectError, now: Duration) {
        let wait = self.backoff.after_failure(rand::random(), None);
        self.failed = Some((error, now + wait));
    }

    async fn ask(&mut self, now: Duration) -> Result<S::View, NoView> {
        self.keep_open(now).await?;
        let session = self.session.as_mut().ok_or(NoView::NoSession)?;
        let view = self.source.ask(session, now).await;
        if matches!(&view, Err(NoView::Ask(error)) if !error.keeps_session()) {
            self.session = None;
        }
        view
    }

    async fn keep_open(&mut self, now: Duration) -> Result<(), NoView> {
        if self.session.as_ref().is_some_and(Session::is_closed) {
            self.session = None;
        }
        if self.session.is_some() {
            if now.saturating_sub(self.resolved_at) >= ADDRESSES_LAST {
                // The connection outlives its name; that it cannot be resolved now is no failure of the server.
                if let Ok(addresses) = self.source.addresses().await {
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
            Ok(session) => {
                self.failed = None;
                self.session = Some(session);
                Ok(())
            }
            Err(error) => {
                self.fail(error, now);
                Err(NoView::NoSession)
            }
        }
    }

    async fn open(&mut self, now: Duration) -> Result<S::Session, ConnectError> {
        let begun = Instant::now();
        self.socket_path = self.source.socket().map(|path| unix_path::real(&path));
        self.addresses = self.source.addresses().await?;
        self.resolved_at = now;
        self.source.open(&self.addresses, CONNECT_TIMEOUT.saturating_sub(begun.elapsed())).await
    }
}
