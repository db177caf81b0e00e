//! Accepts TLS connections, bounded in number, rate and time, serves HTTP on them and drains them.
//!
//! TLS 1.3 only. What a source may begin is bounded (`sources`), and excess is closed before it costs a signature. A connection
//! that does not finish its handshake in time is dropped, and so is one whose peer does not read what it asked for
//! (`patience`). On closing, requests that were begun are answered, then each connection ends.

mod patience;
mod sources;
mod stir;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use patience::{Patience, watched};
use sources::{Allowance, Knock, Origin, Sources};
use stir::{Stir, held};

/// How long requests in flight may take once the collector closes.
const GRACE: Duration = Duration::from_secs(10);
/// How long nothing is accepted after the system had no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(200);

/// A connection on which nothing is said for so long, or twice as long, gives up the buffers of HTTP.
const LULL: Duration = Duration::from_millis(100);

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
    stream: Box<TlsStream<TcpStream>>,
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
            // In a place of its own, which is free again when it is done: a handshake takes more than what comes after it.
            let handshake = Box::pin(shake(acceptor, socket, peer, knock, bounds, closing, failed));
            connections.spawn(async move {
                let accepted = handshake.await;
                if let Some(accepted) = accepted {
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
        Ok(Ok(stream)) => return Some(Accepted { stream: Box::new(stream), peer, closing, bounds, knock }),
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
    ///
    /// Not an `async fn`: what is moved into one is kept twice, and there are thousands of these.
    pub fn serve<'a, S>(
        self,
        service: S,
        cut: impl Future<Output = ()> + Send + 'a,
    ) -> Pin<Box<dyn Future<Output = Ended> + Send + 'a>>
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send + 'a,
        S::Future: Send + 'static,
    {
        let is_h2 = self.session().alpn_protocol() == Some(b"h2");
        let Bounds { idle, answer, streams, .. } = self.bounds;
        let stir = Arc::new(Stir::default());
        let stream = Patience::new(*self.stream, answer, Arc::clone(&stir));
        let end = End { stir, closing: self.closing, peer: self.peer, _knock: self.knock };
        // Chosen here, not sniffed: a sniffing server waits for a first byte without a limit in time.
        if is_h2 {
            Box::pin(end.serve_http2(Box::new(stream), service, (idle, answer, streams), cut))
        } else {
            Box::pin(end.serve_http1(Box::new(stream), service, idle, cut))
        }
    }
}

/// What ends a connection beside its peer.
struct End {
    stir: Arc<Stir>,
    closing: watch::Receiver<bool>,
    peer: SocketAddr,
    /// Counts the connection until it is over.
    _knock: Knock,
}

/// One stream, in a place of its own.
type Stream = Box<Patience<TlsStream<TcpStream>>>;

impl End {
    /// While nothing is said for a while, only the stream is kept: HTTP's buffers are larger than all the rest of a connection.
    async fn serve_http1<S>(
        mut self,
        mut stream: Stream,
        service: S,
        idle: Duration,
        cut: impl Future<Output = ()>,
    ) -> Ended
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    {
        let stir = Arc::clone(&self.stir);
        let mut service = service_fn(move |request| {
            let (answered, request) = (service.call(request), stir.begin());
            async move {
                let response = answered.await?;
                request.answered();
                Ok::<_, Infallible>(response.map(|it| held(it, request)))
            }
        });
        let mut cut = pin!(cut);
        loop {
            tokio::select! {
                heard = tokio::time::timeout(idle, stream.heard()) => match heard {
                    Ok(Ok(true)) => (),
                    Ok(_) => return Ended::Closed,
                    Err(_) => return Ended::Silent,
                },
                () = &mut cut => return Ended::Closed,
                () = closes(&mut self.closing) => {
                    // It is told tidily, should it still be there.
                    let _ = stream.shutdown().await;
                    return Ended::Closed;
                }
            }
            self.stir.wake();
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(idle).max_buf_size(64 << 10);
            let mut connection = Box::new(builder.serve_connection(TokioIo::new(stream), service));
            if let Some(ended) =
                self.wait(&mut *connection, http1::Connection::graceful_shutdown, cut.as_mut(), true).await
            {
                return ended;
            }
            let parts = connection.into_parts();
            (stream, service) = (parts.io.into_inner(), parts.service);
            stream.put_back(parts.read_buf);
        }
    }

    async fn serve_http2<S>(
        mut self,
        stream: Stream,
        service: S,
        (idle, answer, streams): (Duration, Duration, u32),
        cut: impl Future<Output = ()>,
    ) -> Ended
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
        S::Future: Send + 'static,
    {
        let overdue = Arc::clone(&self.stir);
        let service = service_fn(move |request| {
            let (answered, overdue) = (service.call(request), Arc::clone(&overdue));
            async move { Ok::<_, Infallible>(answered.await?.map(|it| watched(it, answer, overdue))) }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(streams)
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(512 << 10)
            .max_header_list_size(16 << 10)
            .keep_alive_interval(idle)
            .keep_alive_timeout(Duration::from_secs(20));
        let mut connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service));
        let mut cut = pin!(cut);
        let ended =
            self.wait(&mut connection, |it| it.get_mut().as_mut().graceful_shutdown(), cut.as_mut(), false).await;
        ended.unwrap_or(Ended::Closed)
    }

    /// Until it has ended; none when it `may_rest` and nothing was said for a while.
    async fn wait<C: Future<Output = hyper::Result<()>> + Unpin>(
        &mut self,
        connection: &mut C,
        shut: fn(Pin<&mut C>),
        mut cut: Pin<&mut impl Future<Output = ()>>,
        mut may_rest: bool,
    ) -> Option<Ended> {
        let mut ending = false;
        let (mut ticks, mut before) = (tokio::time::interval(LULL), None);
        loop {
            tokio::select! {
                // HTTP itself first: between two ticks it had its turn, so nothing of a request is left to it.
                biased;
                ended = &mut *connection => {
                    let Err(error) = ended else { return Some(Ended::Closed) };
                    tracing::debug!(peer = %self.peer, %error, "connection ended");
                    return Some(match (self.stir.is_unread(), error.is_timeout()) {
                        (true, _) => Ended::Unread,
                        (false, true) => Ended::Silent,
                        (false, false) => Ended::Closed,
                    });
                }
                () = &mut cut => return Some(Ended::Closed),
                () = self.stir.overdue() => return Some(Ended::Unread),
                () = closes(&mut self.closing), if !ending => {
                    (ending, may_rest) = (true, false);
                    shut(Pin::new(&mut *connection));
                }
                _ = ticks.tick(), if may_rest => {
                    let now = self.stir.lull();
                    if now.is_some() && now == before {
                        return None;
                    }
                    before = now;
                }
            }
        }
    }
}

async fn closes(closing: &mut watch::Receiver<bool>) {
    // The sender lives as long as the collector; without one there is nothing left to serve.
    let _ = closing.wait_for(|closing| *closing).await;
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
