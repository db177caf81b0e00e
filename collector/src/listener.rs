//! Accepts TLS connections, bounded in number, rate and time, serves HTTP on them and drains them.
//!
//! TLS 1.3 only. What a source may begin is bounded (`sources`), and excess is closed before it costs a signature. A connection
//! that does not finish its handshake in time is dropped, and so is one whose peer does not read what it asked for
//! (`patience`). On closing, requests that were begun are answered, then each connection ends.

mod patience;
mod sources;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use patience::{Patience, watched};
use sources::{Allowance, Knock, Origin, Sources};

/// How long requests in flight may take once the collector closes.
const GRACE: Duration = Duration::from_secs(10);
/// How long nothing is accepted after the system had no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(200);

/// What one listener bears.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// Connections of one source address at once, beside two for each agent admitted from it.
    pub source_connections: usize,
    /// Handshakes at once.
    pub handshakes: usize,
    /// Of them, those kept for sources that agents were admitted from lately.
    pub kept: usize,
    /// Handshakes a second that one source may begin, beside one for each agent admitted from it; ten times as many at once.
    pub handshake_rate: f64,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long a connection may be silent, and how long a request's head may take.
    pub idle: Duration,
    /// How long a peer may take to read an answer.
    pub answer: Duration,
    /// Requests at once on one connection of HTTP/2.
    pub streams: u32,
    /// Bytes that the kernel keeps for a peer that does not read, of which it takes twice as many.
    pub send_buffer: usize,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By either side, or by an error on the way.
    Closed,
    /// It was silent, or the head of a request did not come in time.
    Silent,
    /// Its peer did not read an answer in time.
    Unread,
}

/// A connection that came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// No certificate that is good here, or no TLS.
    Handshake,
    /// The handshake took too long.
    Slow,
    /// It was closed before its handshake, for a reason that is a stable name.
    Refused(&'static str),
}

/// A bound socket.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    bounds: Bounds,
}

/// A connection whose handshake is done.
pub struct Accepted {
    stream: TlsStream<TcpStream>,
    /// Where it comes from.
    pub peer: SocketAddr,
    closing: watch::Receiver<bool>,
    bounds: Bounds,
    knock: Knock,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    /// Which.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

impl Listener {
    /// Binds `address`; port 0 lets the system choose. `name` is for the log. Each connection takes `tls` as it then is.
    ///
    /// # Errors
    /// When the address is taken or is not this host's.
    pub async fn bind(
        name: &'static str,
        address: SocketAddr,
        tls: watch::Receiver<Arc<ServerConfig>>,
        bounds: Bounds,
    ) -> Result<Self, BindError> {
        let socket = TcpListener::bind(address).await.map_err(|source| BindError { address, source })?;
        Ok(Self { name, socket, tls, bounds })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until `closing` is true, then waits for the connections to end, at most ten seconds.
    ///
    /// `each` serves one connection; `failed` hears of each that came to nothing.
    pub async fn run<F, Fut>(
        self,
        mut closing: watch::Receiver<bool>,
        each: F,
        failed: impl Fn(Failed) + Clone + Send + 'static,
    ) where
        F: Fn(Accepted) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let bounds = self.bounds;
        let sources = Sources::new(Allowance {
            slots: bounds.handshakes,
            kept: bounds.kept,
            rate: bounds.handshake_rate,
            connections: bounds.source_connections,
        });
        let began = Instant::now();
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let room = connections.len() < bounds.connections;
            let accepted = tokio::select! {
                _ = closing.wait_for(|closing| *closing) => break,
                _ = connections.join_next(), if !room => continue,
                accepted = self.socket.accept(), if room => accepted,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(listener = self.name, %error, "a connection could not be accepted");
                    tokio::time::sleep(EXHAUSTED).await;
                    continue;
                }
            };
            let knock = match sources.knock(Origin::of(peer.ip()), began.elapsed()) {
                Ok(knock) => knock,
                Err(refusal) => {
                    // Closed at once: whoever floods must not be the reason why others wait.
                    drop(socket);
                    failed(Failed::Refused(refusal.as_str()));
                    tracing::debug!(listener = self.name, %peer, reason = refusal.as_str(), "connection refused");
                    continue;
                }
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&self.tls.borrow()));
            let (each, failed, closing) = (each.clone(), failed.clone(), closing.clone());
            connections.spawn(async move {
                if let Some(accepted) = shake(acceptor, socket, peer, knock, bounds, closing, failed).await {
                    each(accepted).await;
                }
            });
        }
        drop(self.socket);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, drained).await.is_err() {
            tracing::warn!(listener = self.name, left = connections.len(), "connections were cut after their grace");
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("name", &self.name).field("socket", &self.socket).finish_non_exhaustive()
    }
}

async fn shake(
    acceptor: TlsAcceptor,
    socket: TcpStream,
    peer: SocketAddr,
    mut knock: Knock,
    bounds: Bounds,
    closing: watch::Receiver<bool>,
    failed: impl Fn(Failed),
) -> Option<Accepted> {
    // A batch is one write; waiting to fill a packet would only delay it.
    let _ = socket.set_nodelay(true);
    // Left alone it grows to megabytes for whoever asks much and reads nothing.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, bounds.send_buffer);
    let stream = tokio::time::timeout(bounds.handshake, acceptor.accept(socket)).await;
    knock.shook();
    match stream {
        Ok(Ok(stream)) => return Some(Accepted { stream, peer, closing, bounds, knock }),
        Ok(Err(error)) => {
            failed(Failed::Handshake);
            tracing::debug!(%peer, %error, "handshake refused");
        }
        Err(_) => {
            failed(Failed::Slow);
            tracing::debug!(%peer, "handshake took too long");
        }
    }
    None
}

impl Accepted {
    /// The verified TLS session.
    pub fn session(&self) -> &rustls::ServerConnection {
        self.stream.get_ref().1
    }

    /// Says that this is an agent's who may speak: from now on its source is known.
    pub fn admit(&mut self) {
        self.knock.admitted();
    }

    /// Serves HTTP/1.1 or HTTP/2, as was agreed in the handshake, until the peer ends, a bound on time does, the collector
    /// closes, or `cut` ends, which cuts the connection at once.
    pub async fn serve<S>(self, service: S, cut: impl Future<Output = ()>) -> Ended
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send,
        S::Future: Send + 'static,
    {
        let is_h2 = self.session().alpn_protocol() == Some(b"h2");
        let Bounds { idle, answer, streams, .. } = self.bounds;
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(idle)
            .max_buf_size(64 << 10)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(streams)
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(512 << 10)
            .max_header_list_size(16 << 10)
            .keep_alive_interval(idle)
            .keep_alive_timeout(Duration::from_secs(20));
        // Chosen here, not sniffed: a sniffing server waits for a first byte without a limit in time.
        let builder = if is_h2 { builder.http2_only() } else { builder.http1_only() };
        let (unread, overdue) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let service = service_fn(|request| {
            let (answered, overdue) = (service.call(request), Arc::clone(&overdue));
            async move {
                let response = answered.await?;
                Ok::<_, Infallible>(if is_h2 { response.map(|it| watched(it, answer, overdue)) } else { response })
            }
        });
        let stream = Patience::new(self.stream, answer, Arc::clone(&unread));
        // The knock counts the connection until it is over.
        let (mut closing, peer, _knock) = (self.closing, self.peer, self.knock);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut cut = pin!(cut);
        let mut ending = false;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    let Err(error) = ended else { return Ended::Closed };
                    tracing::debug!(%peer, error, "connection ended");
                    let is_late = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout);
                    return match (unread.load(Ordering::Relaxed), is_late) {
                        (true, _) => Ended::Unread,
                        (false, true) => Ended::Silent,
                        (false, false) => Ended::Closed,
                    };
                }
                () = &mut cut => return Ended::Closed,
                () = overdue.notified() => return Ended::Unread,
                _ = closing.wait_for(|closing| *closing), if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// The part that every TLS configuration of ours has.
///
/// # Errors
/// Never with the provider that is built in; the type cannot say so.
pub fn tls_builder() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])
}

/// Both versions of HTTP, the newer first.
pub fn protocols() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}
