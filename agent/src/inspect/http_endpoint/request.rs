//! One request on a connection of its own, phase by phase.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_rustls::TlsConnector;

use super::expectation::EndpointUrl;
use super::{Phase, ProbeFailure};
use crate::inspect::{network, tls_certificate};
use crate::scrub;

/// Most bytes of a body that are read.
pub(super) const MAX_BODY: usize = 1024 * 1024;

/// Bytes of a status line and headers at which hyper stops to wait for more of them.
const MAX_HEAD: usize = 64 * 1024;

const AGENT: &str = concat!("tickbird-agent/", env!("CARGO_PKG_VERSION"));

/// A whole answer, or the first mebibyte of it.
pub(in crate::inspect) struct Received {
    pub(in crate::inspect) status: u16,
    pub(in crate::inspect) body: Vec<u8>,
    pub(in crate::inspect) is_whole: bool,
}

/// How long each phase took, while they go on.
pub(super) struct Course {
    pub(super) phases: Vec<(Phase, Duration)>,
    timeout: Duration,
    deadline: Instant,
}

impl Course {
    pub(super) fn within(timeout: Duration) -> Self {
        Self { phases: Vec::with_capacity(5), timeout, deadline: Instant::now() + timeout }
    }

    /// Goes through one phase, for as long as the time of all of them lasts.
    async fn phase<T>(
        &mut self,
        phase: Phase,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, ProbeFailure> {
        let begun = Instant::now();
        let done = time::timeout_at(self.deadline, work).await;
        self.phases.push((phase, begun.elapsed()));
        let what = match done {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(what)) => what,
            Err(_) => format!("no answer within {:?}", self.timeout),
        };
        Err(ProbeFailure { phase, what: what.into() })
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// Asks once. `tls` is for `https`.
pub(super) async fn ask(
    url: &EndpointUrl,
    tls: &Arc<ClientConfig>,
    course: &mut Course,
) -> Result<Received, ProbeFailure> {
    let patience = course.left();
    let resolved =
        async { network::resolve(&url.host, url.port, patience).await.map_err(|error| network::said(&error)) };
    let addresses = course.phase(Phase::Resolve, resolved).await?;
    let patience = course.left();
    let stream = course.phase(Phase::Connect, connect(&addresses, patience)).await?;
    if !url.is_https {
        return exchange(url, stream, course).await;
    }
    let handshake = async {
        let name = ServerName::try_from(url.host.clone()).map_err(|_| "not a name that a certificate can have")?;
        let handshake = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
        handshake.map_err(|error| tls_certificate::why_handshake_failed(&error))
    };
    let stream = course.phase(Phase::Tls, handshake).await?;
    exchange(url, stream, course).await
}

/// The first address that accepts; one that swallows everything leaves the others their share of the time.
async fn connect(addresses: &[SocketAddr], patience: Duration) -> Result<TcpStream, String> {
    let started = Instant::now();
    let mut last = "no address".to_owned();
    for (index, address) in addresses.iter().enumerate() {
        let others = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = patience.saturating_sub(started.elapsed()) / others;
        let attempt = TcpStream::connect(address);
        // The last one is bounded by the whole request.
        let attempted = if others == 1 { Ok(attempt.await) } else { time::timeout(share, attempt).await };
        match attempted {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = network::said(&error),
            Err(_) => last = "no answer".into(),
        }
    }
    Err(last)
}

async fn exchange<S>(url: &EndpointUrl, stream: S, course: &mut Course) -> Result<Received, ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Dropped with this look, and the connection with it.
    let mut driver = JoinSet::new();
    let answer = course.phase(Phase::FirstByte, head(url, stream, &mut driver)).await?;
    let status = answer.status().as_u16();
    let (body, is_whole) = course.phase(Phase::Body, body(answer.into_body())).await?;
    Ok(Received { status, body, is_whole })
}

async fn head<S>(url: &EndpointUrl, stream: S, driver: &mut JoinSet<()>) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| why_no_answer(&error))?;
    driver.spawn(async move {
        // How it ended is told to whoever waits for the answer.
        let _ = connection.await;
    });
    let request = Request::get(&url.path_and_query)
        .header(HOST, url.authority())
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| scrub::text(&error.to_string(), 120))?;
    sender.send_request(request).await.map_err(|error| why_no_answer(&error))
}

/// At most a mebibyte of the body, and whether that is all.
async fn body(mut incoming: Incoming) -> Result<(Vec<u8>, bool), String> {
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| why_no_answer(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        let room = MAX_BODY - body.len();
        body.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            return Ok((body, false));
        }
    }
    Ok((body, true))
}

fn why_no_answer(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        return format!("headers of more than {} KiB", MAX_HEAD / 1024);
    }
    if error.is_parse() {
        return "the answer is not HTTP/1.1".into();
    }
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause {
        Some(cause) => tls_certificate::why_handshake_failed(cause),
        None if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => "connection closed".into(),
        None => scrub::text(&error.to_string(), 120),
    }
}
