//! Accepts TLS connections, bounded in number and time, serves HTTP on them and drains them.
//!
//! TLS 1.3 only. A connection that does not finish its handshake in time is dropped; while as many handshakes run as may,
//! new connections wait in the kernel's queue. On closing, requests that were begun are answered, then each connection ends.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long requests in flight may take once the collector closes.
const GRACE: Duration = Duration::from_secs(10);
/// How long nothing is accepted after the system had no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(200);

/// What one listener bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// Handshakes at once.
    pub handshakes: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long a connection may be silent, and how long a request's head may take.
    pub idle: Duration,
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
    idle: Duration,
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
    /// `each` serves one connection; `failed` hears of each handshake that came to nothing.
    pub async fn run<F, Fut>(
        self,
        mut closing: watch::Receiver<bool>,
        each: F,
        failed: impl Fn() + Clone + Send + 'static,
    ) where
        F: Fn(Accepted) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let handshakes = Arc::new(Semaphore::new(self.bounds.handshakes));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let room = connections.len() < self.bounds.connections;
            let accepted = tokio::select! {
                _ = closing.wait_for(|closing| *closing) => break,
                _ = connections.join_next(), if !room => continue,
                accepted = accept(&self.socket, &handshakes), if room => accepted,
            };
            let (socket, peer, slot) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(listener = self.name, %error, "a connection could not be accepted");
                    tokio::time::sleep(EXHAUSTED).await;
                    continue;
                }
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&self.tls.borrow()));
            let (each, failed) = (each.clone(), failed.clone());
            let (bounds, closing) = (self.bounds, closing.clone());
            connections.spawn(async move {
                // A batch is one write; waiting to fill a packet would only delay it.
                let _ = socket.set_nodelay(true);
                let stream = tokio::time::timeout(bounds.handshake, acceptor.accept(socket)).await;
                drop(slot);
                match stream {
                    Ok(Ok(stream)) => each(Accepted { stream, peer, closing, idle: bounds.idle }).await,
                    Ok(Err(error)) => {
                        failed();
                        tracing::debug!(%peer, %error, "handshake refused");
                    }
                    Err(_) => {
                        failed();
                        tracing::debug!(%peer, "handshake took too long");
                    }
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

async fn accept(
    socket: &TcpListener,
    handshakes: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, Option<tokio::sync::OwnedSemaphorePermit>)> {
    // The semaphore is never closed.
    let slot = Arc::clone(handshakes).acquire_owned().await.ok();
    let (stream, peer) = socket.accept().await?;
    Ok((stream, peer, slot))
}

impl Accepted {
    /// The verified TLS session.
    pub fn session(&self) -> &rustls::ServerConnection {
        self.stream.get_ref().1
    }

    /// Serves HTTP/1.1 or HTTP/2, as was agreed in the handshake, until the peer ends, the collector closes, or `cut`
    /// ends, which cuts the connection at once.
    pub async fn serve<S>(self, service: S, cut: impl Future<Output = ()>)
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send,
        S::Future: Send + 'static,
    {
        let is_h2 = self.session().alpn_protocol() == Some(b"h2");
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.idle)
            .max_buf_size(64 << 10)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(16)
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(512 << 10)
            .max_header_list_size(16 << 10)
            .keep_alive_interval(self.idle)
            .keep_alive_timeout(Duration::from_secs(20));
        // Chosen here, not sniffed: a sniffing server waits for a first byte without a limit in time.
        let builder = if is_h2 { builder.http2_only() } else { builder.http1_only() };
        let (mut closing, peer) = (self.closing, self.peer);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(self.stream), service));
        let mut cut = pin!(cut);
        let mut ending = false;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, error, "connection ended");
                    }
                    return;
                }
                () = &mut cut => return,
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
