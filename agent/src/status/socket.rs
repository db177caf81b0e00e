//! The agent's local socket: `GET /v1/status` over HTTP/1.1 on a unix socket.
//!
//! Mode 0660; the peer must be root, the agent's own user, or of the socket's group. Nothing can be changed over it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::status::Report;

/// Name of the socket in the state directory.
pub const NAME: &str = "agent.sock";

/// Most callers served at a time; more wait to be accepted.
const MAX_CALLERS: usize = 8;
/// Largest report that a caller reads.
const MAX_REPORT_BYTES: usize = 16 << 20;
/// Longest a caller waits for the report, and the longest a connection lives.
const PATIENCE: Duration = Duration::from_secs(10);

/// A caller that waits for a report.
pub type Ask = oneshot::Sender<Report>;

/// Why there is no report from a running agent.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No agent listens there.
    #[error("no agent answers at `{path}`")]
    NotRunning {
        /// The socket.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket's mode or group keeps us out, or the agent refused the peer.
    #[error("may not ask the agent at `{path}`")]
    Denied {
        /// The socket.
        path: String,
    },
    /// Something answered, but no report.
    #[error("the agent at `{path}` gave no report: {what}")]
    NoReport {
        /// The socket.
        path: String,
        /// What came instead.
        what: String,
    },
}

impl SocketError {
    /// What to do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::NotRunning { .. } => {
                "start it with `tickbird-agent run`, or take one look with `tickbird-agent inspect`"
            }
            Self::Denied { .. } => "run this as root, as the agent's user or as a member of the socket's group",
            Self::NoReport { .. } => "look at the agent's log",
        }
    }
}

/// Listens at `path`, replacing a socket that a dead agent left behind.
///
/// # Errors
/// When another agent answers there, or the directory may not be written.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent is running with this state directory"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves reports until `asks` closes. Each caller is put to the owner of the state, who answers through the sender.
pub async fn serve(listener: UnixListener, group: u32, asks: mpsc::Sender<Ask>) {
    let slots = std::sync::Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = asks.closed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "local socket cannot accept");
                // Out of descriptors, most likely: trying again at once would only spin.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let asks = asks.clone();
        tokio::spawn(async move {
            let allowed = is_allowed(&stream, group);
            let service = service_fn(move |request| answer(request, allowed, asks.clone()));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(PATIENCE, connection).await;
            drop(slot);
        });
    }
}

fn is_allowed(stream: &UnixStream, group: u32) -> bool {
    let Ok(peer) = stream.peer_cred() else { return false };
    let own = rustix::process::geteuid().as_raw();
    peer.uid() == 0 || peer.uid() == own || peer.gid() == group
}

async fn answer(
    request: Request<Incoming>,
    allowed: bool,
    asks: mpsc::Sender<Ask>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        _ if !allowed => (StatusCode::FORBIDDEN, Bytes::new()),
        (&Method::GET, "/v1/status") => {
            let (ask, told) = oneshot::channel();
            let report = match asks.send(ask).await {
                Ok(()) => told.await.ok(),
                Err(_) => None,
            };
            match report.map(|it| serde_json::to_vec(&it)) {
                Some(Ok(json)) => (StatusCode::OK, json.into()),
                _ => (StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
            }
        }
        (_, "/v1/status") => (StatusCode::METHOD_NOT_ALLOWED, Bytes::new()),
        _ => (StatusCode::NOT_FOUND, Bytes::new()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    Ok(response)
}

/// Asks the running agent at `path`.
///
/// # Errors
/// When none runs, it refuses, or what it says is no report.
pub async fn ask(path: &Path) -> Result<Report, SocketError> {
    let shown = path.display().to_string();
    let stream = UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => SocketError::Denied { path: shown.clone() },
        _ => SocketError::NotRunning { path: shown.clone(), source },
    })?;
    let no_report = |what: String| SocketError::NoReport { path: shown.clone(), what };
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| no_report(error.to_string()))?;
        let connection = tokio::spawn(connection);
        let request = Request::get("/v1/status")
            .header("host", "agent")
            .body(Empty::<Bytes>::new())
            .map_err(|error| no_report(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| no_report(error.to_string()))?;
        match response.status() {
            StatusCode::OK => (),
            StatusCode::FORBIDDEN => return Err(SocketError::Denied { path: shown.clone() }),
            status => return Err(no_report(format!("status {status}"))),
        }
        let body = Limited::new(response.into_body(), MAX_REPORT_BYTES).collect().await;
        connection.abort();
        let body = body.map_err(|error| no_report(error.to_string()))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| no_report(error.to_string()))
    };
    tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| no_report("no answer within 10 s".into()))?
}
