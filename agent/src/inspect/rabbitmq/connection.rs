//! The agent's one connection to a management API: HTTP/1.1, kept open, one request at a time, each answer bounded.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::answers::{self, Overview};
use super::url::Url;
use crate::inspect::server::kept::{self, ANSWER_TIMEOUT, AskError};
use crate::inspect::server::{ConnectError, Engine, attempts, wire};
use crate::scrub;

/// Longest answer that is read: a page of 500 connections takes some 150 KiB.
const MAX_BODY: usize = 2 << 20;
/// Bytes of a status line and headers at which hyper stops to wait for more of them.
const MAX_HEAD: usize = 64 << 10;
const AGENT: &str = concat!("tickbird-agent/", env!("CARGO_PKG_VERSION"));

/// An open connection that the server has let in.
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    /// Drives the connection; dropped with it.
    _driver: JoinSet<()>,
    /// An answer failed to come.
    is_spoilt: bool,
    seconds: f64,
    address: Option<IpAddr>,
    /// Whether the user may see the connections of others.
    pub(super) is_monitor: bool,
    /// When it was first asked for more than who we are.
    first_asked: Option<Duration>,
    /// What was told of the cluster, and when.
    pub(super) overview: Option<(Overview, Duration)>,
}

impl Connection {
    /// Since it was first asked.
    pub(super) fn age(&mut self, now: Duration) -> Duration {
        now.saturating_sub(*self.first_asked.get_or_insert(now))
    }

    /// Asks for one page of the API.
    pub(super) async fn get(&mut self, url: &Url, page: &str) -> Result<Vec<u8>, AskError> {
        let answer = match time::timeout(ANSWER_TIMEOUT, self.exchange(url, page)).await {
            Ok(Ok((200..300, body))) => return Ok(body),
            Ok(Ok((status, body))) => return Err(refusal(status, &body)),
            Ok(Err(error)) => error,
            Err(_) => AskError::Silent,
        };
        self.is_spoilt = true;
        Err(answer)
    }

    async fn exchange(&mut self, url: &Url, page: &str) -> Result<(u16, Vec<u8>), AskError> {
        let closed = |error: hyper::Error| match error.is_parse() {
            true => AskError::Closed(Some(NO_HTTP.to_owned())),
            false => AskError::Closed(None),
        };
        let mut authorization = HeaderValue::from_str(&url.authorization()).map_err(|_| AskError::Closed(None))?;
        authorization.set_sensitive(true);
        let request = Request::get(url.path(page))
            .header(HOST, url.address())
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, authorization)
            .body(Empty::new())
            .map_err(|_| AskError::Closed(None))?;
        self.sender.ready().await.map_err(closed)?;
        let answer = self.sender.send_request(request).await.map_err(closed)?;
        let status = answer.status().as_u16();
        Ok((status, body(answer.into_body()).await?))
    }
}

impl kept::Session for Connection {
    fn is_closed(&self) -> bool {
        self.is_spoilt || self.sender.is_closed()
    }

    fn seconds(&self) -> f64 {
        self.seconds
    }

    fn address(&self) -> Option<IpAddr> {
        self.address
    }
}

/// Begins what is said of something that is no management API.
const NO_HTTP: &str = "an answer that is not HTTP/1.1";

async fn body(mut incoming: Incoming) -> Result<Vec<u8>, AskError> {
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|_| AskError::Closed(None))?;
        let Some(data) = frame.data_ref() else { continue };
        if body.len() + data.len() > MAX_BODY {
            return Err(AskError::Closed(Some(format!("an answer of more than {} MiB", MAX_BODY >> 20))));
        }
        body.extend_from_slice(data);
    }
    Ok(body)
}

/// `{"error":"not_authorised","reason":"Not monitor user"}`.
fn refusal(status: u16, body: &[u8]) -> AskError {
    #[derive(Deserialize)]
    struct Said {
        reason: String,
    }
    let said = serde_json::from_slice::<Said>(body).map(|it| scrub::text(&it.reason, 120));
    let message = match said {
        Ok(said) => format!("{said} (HTTP {status})"),
        Err(_) => format!("HTTP {status}"),
    };
    AskError::Refused { denied: matches!(status, 401 | 403), message }
}

/// Opens a connection at the first of these addresses that lets us in, within `patience` altogether.
pub(super) async fn open(
    url: &Url,
    tls: Option<&Arc<ClientConfig>>,
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<Connection, ConnectError> {
    attempts::first(&url.named(), addresses, patience, |address| open_at(url, tls, address)).await
}

async fn open_at(url: &Url, tls: Option<&Arc<ClientConfig>>, address: SocketAddr) -> Result<Connection, ConnectError> {
    let (begun, server) = (Instant::now(), url.named());
    let (wire, _) = wire::connect(&server, url.host(), address, tls).await?;
    let shaken = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(wire)).await;
    let closed = || ConnectError::Unreachable { server: server.clone(), said: "connection closed".into() };
    let (sender, connection) = shaken.map_err(|_| closed())?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // How it ended is told to whoever waits for an answer.
        let _ = connection.await;
    });
    let mut connection = Connection {
        sender,
        _driver: driver,
        is_spoilt: false,
        seconds: 0.0,
        address: Some(address.ip()),
        is_monitor: false,
        first_asked: None,
        overview: None,
    };
    let who = connection.get(url, answers::WHO).await.map_err(|error| failure(&server, error))?;
    let foreign = |_| ConnectError::Foreign { server: server.clone(), engine: Engine::RabbitMq };
    connection.is_monitor = answers::is_monitor(&who).map_err(foreign)?;
    connection.seconds = begun.elapsed().as_secs_f64();
    Ok(connection)
}

/// What was said instead of who we are.
fn failure(server: &str, error: AskError) -> ConnectError {
    let server = server.to_owned();
    match error {
        AskError::Silent => ConnectError::Silent { server, seconds: ANSWER_TIMEOUT.as_secs_f64() },
        AskError::Closed(None) => ConnectError::Unreachable { server, said: "connection closed".into() },
        AskError::Closed(Some(_)) => ConnectError::Foreign { server, engine: Engine::RabbitMq },
        AskError::Refused { denied: true, message } => ConnectError::Login { server, said: message },
        AskError::Refused { message, .. } if message.contains("HTTP 5") => {
            ConnectError::NotServing { server, said: message }
        }
        AskError::Refused { .. } => ConnectError::Foreign { server, engine: Engine::RabbitMq },
    }
}
