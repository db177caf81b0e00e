//! Requests in flight of each process, without the streams among them.
//!
//! All that sockets show is when data came and went. HTTP/2 cannot be told by that: a connection counts as one request at
//! most, however many it carries, and one that is kept alive by frames in both directions may count when nothing waits.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::OLD;
use super::SLACK;
use crate::inspect::host::{InFlight, Owner, ServiceRow};

/// What is unanswered for longer is a WebSocket, an event stream, a long poll or an upload.
const STREAM: Duration = Duration::from_secs(60);
/// What receives anew within each second for so long is one too, or answers faster than it is looked at.
const CHATTER: Duration = Duration::from_secs(2);
/// Connections with a request that are remembered.
const MAX_REQUESTS: usize = 50_000;

/// Every process that serves.
#[derive(Debug, Default)]
pub(super) struct Requests {
    serving: HashMap<Owner, Serving>,
    seen: HashMap<u64, Request>,
    look: u64,
}

/// What one process serves on all of its listening ends.
#[derive(Debug, Default)]
pub(super) struct Serving {
    pub(super) listens: Vec<SocketAddr>,
    /// Oldest first.
    pub(super) in_flight: Vec<InFlight>,
    /// Connections that were taken out.
    pub(super) streams: usize,
    pub(super) accept_queue: u32,
    pub(super) backlog: u32,
}

/// A connection with a request in flight.
#[derive(Debug, Default)]
struct Request {
    look: u64,
    /// Since when it has been young at every look.
    young_since: Option<Duration>,
    is_stream: bool,
    /// When data was last received, as of the last look.
    received: Duration,
    /// Waited for a pool that was exhausted: it is no stream, however old it grows.
    has_waited: bool,
}

impl Serving {
    pub(super) fn oldest(&self) -> Duration {
        self.in_flight.first().map(|it| it.age).unwrap_or_default()
    }
}

impl Requests {
    pub(super) fn look(&mut self, services: &[ServiceRow], now: Duration) {
        self.look += 1;
        self.serving.clear();
        for service in services {
            let serving = self.serving.entry(service.owner.clone()).or_default();
            serving.listens.push(service.listen);
            serving.accept_queue = serving.accept_queue.saturating_add(service.accept_queue);
            serving.backlog = serving.backlog.saturating_add(service.backlog);
            for it in &service.in_flight {
                if self.seen.len() >= MAX_REQUESTS && !self.seen.contains_key(&it.cookie) {
                    continue;
                }
                let [received, sent] = [it.age, it.sent_age].map(|age| now.saturating_sub(age));
                let request = self.seen.entry(it.cookie).or_insert_with(|| Request { received, ..Request::default() });
                request.look = self.look;
                // Nobody who waits for an answer says more, some time later: WebSockets that only listen do, and uploads.
                request.is_stream |= received > request.received + OLD && sent <= request.received + SLACK;
                request.received = received;
                request.young_since = if it.age < OLD { request.young_since.or(Some(now)) } else { None };
                request.is_stream |= it.age > STREAM && !request.has_waited;
                let chatters = request.young_since.is_some_and(|since| now.saturating_sub(since) >= CHATTER);
                if request.is_stream || chatters {
                    serving.streams += 1;
                } else {
                    serving.in_flight.push(*it);
                }
            }
            serving.in_flight.sort_by_key(|it| std::cmp::Reverse(it.age));
        }
        let look = self.look;
        self.seen.retain(|_, it| it.look == look);
    }

    /// What a process serves; `None` when it does not listen or that cannot be seen.
    pub(super) fn of(&self, owner: &Owner) -> Option<&Serving> {
        self.serving.get(owner)
    }

    /// What this process has in flight now waits for its pool.
    pub(super) fn count(&mut self, owner: &Owner) {
        let Some(serving) = self.serving.get(owner) else { return };
        for it in &serving.in_flight {
            if let Some(request) = self.seen.get_mut(&it.cookie) {
                request.has_waited = true;
            }
        }
    }
}
