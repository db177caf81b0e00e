//! One agent's word with one collector: a batch out, a verdict in, over one kept connection.
//!
//! It has no buffer, no pace and no patience: what becomes of a verdict is its caller's. [`Ship`](super::Ship) is one caller;
//! the fleet simulator, which speaks for thousands of agents in one process, is the other.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use jiff::SignedDuration;
use rustls::ClientConfig;
use tickbird_shared::Timestamp;
use tickbird_shared::protocol::RECORDS_PATH;

use super::answer::{self, Verdict};
use super::connection::{Line, Post};
use super::{Origin, ShipError, skew};

/// A kept connection, opened when there is something to say.
pub struct Session {
    pub(super) line: Line,
    clock: fn() -> Timestamp,
}

/// What the collector said of one batch.
#[derive(Debug)]
pub struct Reply {
    /// What to do next.
    pub verdict: Verdict,
    /// Bounds of how far its clock is ahead of ours, when it told the time.
    pub ahead: Option<(SignedDuration, SignedDuration)>,
}

impl Session {
    /// Nothing is opened yet. `agent` is the id that the certificate in `tls` names.
    pub fn new(
        origin: Origin,
        tls: Arc<ClientConfig>,
        agent: &str,
        request_timeout: Duration,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self { line: Line::new(origin, tls, request_timeout).of_agent(agent), clock }
    }

    /// The same from one of this host's addresses.
    #[must_use]
    pub fn with_source(self, from: IpAddr) -> Self {
        Self { line: self.line.with_source(from), ..self }
    }

    /// Opens the connection, when none is open, and says nothing on it; whether that was so.
    ///
    /// # Errors
    /// When the collector is not reached, or the two do not know each other.
    pub async fn open(&mut self) -> Result<bool, ShipError> {
        Ok(self.line.open().await?)
    }

    /// Sends a batch as [`body`](super::body) makes it. Cut short, it is forgotten with its connection.
    ///
    /// # Errors
    /// When there is no answer, or the collector cannot, or will not, take anything now.
    pub async fn post(&mut self, body: impl Into<Bytes>) -> Result<Reply, ShipError> {
        let post = Post { path: RECORDS_PATH, body: body.into(), is_zstd: true };
        let sent = (self.clock)();
        let answer = self.line.post(&post).await?;
        let received = (self.clock)();
        let ahead = answer.date.as_deref().and_then(|date| skew::of(date, sent, received));
        Ok(Reply { verdict: answer::judge(&answer, received)?, ahead })
    }
}
