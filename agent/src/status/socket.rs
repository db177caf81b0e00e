//! The agent's local socket: `GET /v1/status` over HTTP/1.1 on a unix socket.
//!
//! Mode 0660; the peer must be root, the agent's own user, or of the socket's group. Nothing can be changed over it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::Report;
use super::server::{self, Accept, Ask, PATIENCE};

/// Name of the socket in the state directory.
pub const NAME: &str = "agent.sock";

/// Largest report that a caller reads.
const MAX_REPORT_BYTES: usize = 16 << 20;
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
    server::serve(listener, asks, move |request, caller: Option<UCred>, asks| {
        let allowed = caller.is_some_and(|peer| is_allowed(peer, group));
        answer(request, allowed, asks)
    })
    .await;
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    /// Who asks, as the kernel says.
    type Caller = Option<UCred>;

    async fn next(&self) -> io::Result<(UnixStream, Self::Caller)> {
        let (stream, _) = self.accept().await?;
        let peer = stream.peer_cred().ok();
        Ok((stream, peer))
    }
}

fn is_allowed(peer: UCred, group: u32) -> bool {
    let own = rustix::process::geteuid().as_raw();
    peer.uid() == 0 || peer.uid() == own || peer.gid() == group
}

async fn answer(request: Request<Incoming>, allowed: bool, asks: mpsc::Sender<Ask>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        _ if !allowed => (StatusCode::FORBIDDEN, Bytes::new()),
        (&Method::GET, "/v1/status") => match server::report(&asks).await.map(|it| serde_json::to_vec(&it)) {
            Some(Ok(json)) => (StatusCode::OK, json.into()),
            _ => (StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
        },
        (_, "/v1/status") => (StatusCode::METHOD_NOT_ALLOWED, Bytes::new()),
        _ => (StatusCode::NOT_FOUND, Bytes::new()),
    };
    server::response(status, None, body)
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
