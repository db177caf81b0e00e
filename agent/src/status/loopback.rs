//! A page for probes and scrapers on this host, when it is switched on: `/healthz` and `/metrics` on a loopback address.
//!
//! Whoever has a shell here can read it, so it holds no evidence: no target, no text, only words of closed lists and numbers.

use std::io;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::server::{self, Accept, Ask, response};
use super::{Report, metrics};

/// The listener, while it is switched on; dropping it ends it.
#[derive(Debug)]
pub struct Loopback {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Loopback {
    /// Listens at `address`; what is served is asked for through `asks`.
    ///
    /// # Errors
    /// When somebody else listens there, or the address is none of this host.
    pub async fn begin(address: SocketAddr, asks: mpsc::Sender<Ask>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let task = tokio::spawn(server::serve(listener, asks, |request, (), asks| answer(request, asks)));
        tracing::info!(%address, "health and metrics are served");
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    type Caller = ();

    async fn next(&self) -> io::Result<(TcpStream, ())> {
        Ok((self.accept().await?.0, ()))
    }
}

async fn answer(request: Request<Incoming>, asks: mpsc::Sender<Ask>) -> Response<Full<Bytes>> {
    let page: fn(&Report) -> (&'static str, String) = match request.uri().path() {
        "/healthz" => |report| ("application/json", health(report)),
        "/metrics" => |report| (metrics::CONTENT_TYPE, metrics::text(report)),
        _ => return response(StatusCode::NOT_FOUND, None, Bytes::new()),
    };
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, None, Bytes::new());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    // Nobody answers once the agent ends: whoever probes should know.
    let Some(report) = server::report(&asks).await else {
        return response(StatusCode::SERVICE_UNAVAILABLE, None, Bytes::new());
    };
    let (content_type, text) = page(&report);
    response(StatusCode::OK, Some(content_type), text.into())
}

/// `{"status":"ok","reasons":[]}`, or `degraded` with words: `collector_away`, and ids of the agent's own checks that fire as
/// more than information. A degraded agent works, so its answer is 200 as well: to start it again would mend nothing.
fn health(report: &Report) -> String {
    let own = report.findings.iter().filter(|it| it.check.starts_with("agent.") && it.severity != "info");
    let mut reasons: Vec<&str> = own.map(|it| it.check.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    if !metrics::is_connected(report).unwrap_or(true) {
        reasons.push("collector_away");
    }
    let status = if reasons.is_empty() { "ok" } else { "degraded" };
    json!({ "status": status, "reasons": reasons }).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::tests::leaking;
    use super::*;

    #[test]
    fn the_agents_own_trouble_degrades_it_and_that_of_others_does_not() {
        let mut report = leaking();
        assert_eq!(health(&report), "{\"reasons\":[],\"status\":\"ok\"}\n");
        report.findings[0].check = "agent.buffer".into();
        assert_eq!(health(&report), "{\"reasons\":[\"agent.buffer\"],\"status\":\"degraded\"}\n");
        report.findings[0].severity = "info".into();
        assert!(health(&report).contains("\"ok\""), "information is no trouble");
    }
}
