//! One kept connection to a collector: hyper's HTTP/1.1 over rustls, every step bounded in time and size.

use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tickbird_shared::protocol::AGENT_HEADER;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::origin::Origin;
use super::patience;
use crate::identity::tls::WrongAuthority;

/// Largest answer that is read: ten thousand refused records.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// A name gets so long: resolvers ask again after five seconds.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(6);
/// Each address of a host gets so long: after a cut an attempt that began within it is over soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// A collector that works on the handshakes of thousands may take a while; one that is not heard at all is noticed before.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The name has no address.
    #[error("cannot resolve `{host}`")]
    Unresolved {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody listens, or nothing comes through.
    #[error("cannot connect to {to}")]
    Unreachable {
        /// `host:port`.
        to: String,
        /// What the system said of the last address tried.
        source: io::Error,
    },
    /// The chain that the server shows does not hold the authority we were told to trust.
    #[error("{to} does not show the authority that the token names")]
    WrongAuthority {
        /// `host:port`.
        to: String,
    },
    /// TLS could not be agreed on: a certificate of either side, most often.
    #[error("no TLS with {to}")]
    Tls {
        /// `host:port`.
        to: String,
        /// What rustls said.
        source: io::Error,
    },
    /// The connection ended before the answer did.
    #[error("the connection to {to} broke")]
    Broken {
        /// `host:port`.
        to: String,
        /// What hyper said.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("{to} did not answer within {} s", within.as_secs_f32())]
    TimedOut {
        /// `host:port`.
        to: String,
        /// How long was waited.
        within: Duration,
    },
    /// The answer is larger than any that means something.
    #[error("the answer of {to} is larger than {MAX_ANSWER_BYTES} bytes")]
    AnswerTooLarge {
        /// `host:port`.
        to: String,
    },
}

impl ConnectionError {
    /// What the operator can do.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Unresolved { .. } => Some("check the collector's address and this host's resolver"),
            Self::Unreachable { .. } => Some("check that the collector runs, and the way to it (port, firewall)"),
            Self::WrongAuthority { .. } => {
                Some("check the address; the token must be from the collector that listens there")
            }
            Self::Tls { .. } => {
                Some("check that the address is the one in the collector's certificate, and both clocks")
            }
            Self::Broken { .. } | Self::TimedOut { .. } | Self::AnswerTooLarge { .. } => None,
        }
    }

    /// Whether the way there failed and no peer had a say: the next attempt burdens nobody.
    ///
    /// An answer that is late is none of it: what is lost on the way the kernel tells before (`patience`), so the collector is
    /// there and has more to do than it can.
    pub fn is_of_the_way(&self) -> bool {
        match self {
            Self::Unresolved { .. } | Self::Unreachable { .. } | Self::Broken { .. } => true,
            // rustls says what it does not like by this kind; any other is the socket's.
            Self::Tls { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            Self::TimedOut { .. } | Self::WrongAuthority { .. } | Self::AnswerTooLarge { .. } => false,
        }
    }

    /// Stable word for counting.
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Unresolved { .. } | Self::Unreachable { .. } => "unreachable",
            Self::WrongAuthority { .. } | Self::Tls { .. } => "tls",
            Self::Broken { .. } => "broken",
            Self::TimedOut { .. } => "timed_out",
            Self::AnswerTooLarge { .. } => "answer_too_large",
        }
    }
}

/// An answer, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
    /// The answer's `Date`.
    pub(super) date: Option<String>,
    pub(super) body: Vec<u8>,
}

/// What is posted.
pub(super) struct Post<'a> {
    pub(super) path: &'a str,
    pub(super) body: Bytes,
    pub(super) is_zstd: bool,
}

/// Posts to one collector; opens a connection when none is open.
pub(super) struct Line {
    origin: Origin,
    tls: Arc<ClientConfig>,
    request_timeout: Duration,
    /// Who this agent believes to be; none while it is nobody.
    agent: Option<String>,
    /// Which of this host's addresses it comes from; the system's choice without one.
    from: Option<IpAddr>,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Line {
    pub(super) fn new(origin: Origin, tls: Arc<ClientConfig>, request_timeout: Duration) -> Self {
        Self { origin, tls, request_timeout, agent: None, from: None, open: None }
    }

    /// The same of an agent that says so in each request.
    pub(super) fn of_agent(self, agent: &str) -> Self {
        Self { agent: Some(agent.to_owned()), ..self }
    }

    /// The same from one of this host's addresses.
    pub(super) fn with_source(self, from: IpAddr) -> Self {
        Self { from: Some(from), ..self }
    }

    pub(super) const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Posts and reads the answer. A kept connection that turns out to be closed is replaced once: its server ended
    /// it while it was idle, which is nobody's failure. To be cancelled, it is dropped; the connection goes with it.
    pub(super) async fn post(&mut self, post: &Post<'_>) -> Result<Answer, ConnectionError> {
        if let Some(mut open) = self.open.take().filter(|open| !open.sender.is_closed()) {
            match self.exchange(&mut open, post).await {
                Err(ConnectionError::Broken { .. }) => {}
                result => return self.keep(open, result),
            }
        }
        let mut open = self.connect().await?;
        let result = self.exchange(&mut open, post).await;
        self.keep(open, result)
    }

    /// Opens the connection, when none is open; whether that was so.
    pub(super) async fn open(&mut self) -> Result<bool, ConnectionError> {
        let is_closed = self.open.as_ref().is_none_or(|open| open.sender.is_closed());
        if is_closed {
            self.open = Some(self.connect().await?);
        }
        Ok(is_closed)
    }

    /// A connection is kept only after a whole exchange: after anything else its state is unknown.
    fn keep(&mut self, open: Open, result: Result<Answer, ConnectionError>) -> Result<Answer, ConnectionError> {
        if result.is_ok() {
            self.open = Some(open);
        }
        result
    }

    async fn connect(&self) -> Result<Open, ConnectionError> {
        let to = self.origin.authority();
        let tcp = self.reach().await?;
        // A batch is one write; waiting for more to fill the packet only delays it.
        let prepared = tcp.set_nodelay(true).and_then(|()| patience::bound(&tcp));
        prepared.map_err(|source| ConnectionError::Unreachable { to: to.clone(), source })?;
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(self.origin.server_name(), tcp);
        let tls = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(source)) if is_wrong_authority(&source) => return Err(ConnectionError::WrongAuthority { to }),
            Ok(Err(source)) => return Err(ConnectionError::Tls { to, source }),
            Err(_) => return Err(ConnectionError::TimedOut { to, within: HANDSHAKE_TIMEOUT }),
        };
        let (sender, connection) =
            http1::handshake(TokioIo::new(tls)).await.map_err(|source| ConnectionError::Broken { to, source })?;
        let driver = tokio::spawn(async move {
            // Its error is the request's, which reports it; an idle connection may end as it likes.
            let _ = connection.await;
        });
        Ok(Open { sender, driver })
    }

    /// Tries the host's addresses in the resolver's order.
    async fn reach(&self) -> Result<TcpStream, ConnectionError> {
        let (host, port) = (self.origin.host(), self.origin.port());
        let unresolved = |source| ConnectionError::Unresolved { host: host.to_owned(), source };
        let resolved = timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await;
        let addresses = resolved.map_err(|_| unresolved(io::ErrorKind::TimedOut.into()))?.map_err(unresolved)?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            match timeout(CONNECT_TIMEOUT, self.connect_to(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(ConnectionError::Unreachable { to: self.origin.authority(), source: last })
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let Some(from) = self.from else { return TcpStream::connect(address).await };
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(address).await
    }

    async fn exchange(&self, open: &mut Open, post: &Post<'_>) -> Result<Answer, ConnectionError> {
        let to = self.origin.authority();
        let broken = |source| ConnectionError::Broken { to: to.clone(), source };
        let exchanged = timeout(self.request_timeout, async {
            open.sender.ready().await.map_err(broken)?;
            let answer = open.sender.send_request(self.request(post)).await.map_err(broken)?;
            let (head, body) = answer.into_parts();
            let body = match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
                Ok(body) => body.to_bytes().to_vec(),
                Err(error) => match error.downcast::<hyper::Error>() {
                    Ok(error) => return Err(broken(*error)),
                    Err(other) => {
                        debug_assert!(other.is::<LengthLimitError>(), "the limit is the only other way to fail");
                        return Err(ConnectionError::AnswerTooLarge { to: to.clone() });
                    }
                },
            };
            let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let (retry_after, date) = (header(RETRY_AFTER), header(DATE));
            Ok(Answer { status: head.status.as_u16(), retry_after, date, body })
        });
        let within = self.request_timeout;
        exchanged.await.unwrap_or_else(|_| Err(ConnectionError::TimedOut { to: to.clone(), within }))
    }

    fn request(&self, post: &Post<'_>) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(post.path)
            .header(HOST, self.origin.authority())
            .header(USER_AGENT, concat!("tickbird-agent/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json");
        if post.is_zstd {
            request = request.header(CONTENT_ENCODING, "zstd");
        }
        // An id that is no header value is no id that a certificate can name either.
        if let Some(agent) = self.agent.as_ref().and_then(|it| HeaderValue::from_str(it).ok()) {
            request = request.header(AGENT_HEADER, agent);
        }
        request.body(Full::new(post.body.clone())).expect("an origin that was parsed is a valid header value")
    }
}

fn is_wrong_authority(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) = inner else { return false };
    other.0.is::<WrongAuthority>() || other.source().is_some_and(|source| source.is::<WrongAuthority>())
}
