//! A look at this host without a running agent: the same inspectors and the same judge, holds ignored.

use jiff::Timestamp;

use super::{servers, wall};
use crate::config::Config;
use crate::inspect::host::{self, Attention, Endpoints, HostInspector};
use crate::inspect::http_endpoint::HttpInspector;
use crate::inspect::log_tail::LogInspector;
use crate::inspect::pool_metrics::PoolInspector;
use crate::inspect::schedule::Clock;
use crate::inspect::sqlite::SqliteInspector;
use crate::inspect::{Inspector, Rows};
use crate::judge::{Judge, Moment, Who};
use crate::kernel::reader::Reader;
use crate::status::Report;
use crate::status::report::{Source, report};
use crate::status::world::World;

/// The inspectors, the judge and what they have seen so far.
pub struct Once {
    inspectors: Vec<Box<dyn Inspector>>,
    endpoints: Endpoints,
    attention: Attention,
    judge: Judge,
    world: World,
    clock: Clock,
    started_at: Timestamp,
}

impl Once {
    /// Prepares the inspectors that the configuration asks for; `reader` looks into other processes.
    pub fn new(config: Config, reader: &Reader) -> Self {
        let endpoints = Endpoints::default();
        let attention = Attention::default();
        let host =
            host::Config { attention: attention.clone(), reader: reader.clone(), ..config.host(endpoints.clone()) };
        let (host, _ended) = HostInspector::new(host);
        let mut inspectors: Vec<Box<dyn Inspector>> = servers(&config).into_iter().map(|(it, _)| it).collect();
        for source in &config.pools {
            inspectors.push(Box::new(PoolInspector::new(source.inspector.clone())));
        }
        for endpoint in &config.endpoints {
            inspectors.push(Box::new(HttpInspector::new(endpoint.inspector.clone())));
        }
        for log in &config.logs {
            inspectors.push(Box::new(LogInspector::new(log.clone(), reader.clone())));
        }
        inspectors.push(Box::new(SqliteInspector::new(reader.clone())));
        // Last, so that it knows where the servers are.
        inspectors.push(Box::new(host));
        let judge = Judge::new(Who::alone(), config.checks.clone()).ignoring_holds();
        Self {
            inspectors,
            endpoints,
            attention,
            judge,
            world: World::default(),
            clock: Clock::start(),
            started_at: wall(),
        }
    }

    /// One look of every inspector, one after the other. The host is looked at last, when the servers' addresses are
    /// known, and judged first, so that the sessions of this look find the sockets of this look.
    pub async fn look(&mut self) {
        let mut readings = Vec::with_capacity(self.inspectors.len());
        for inspector in &mut self.inspectors {
            let now = Moment { mono: self.clock.now(), wall: wall() };
            let reading = inspector.inspect(now.mono).await;
            if let Rows::Server(look) = &reading.rows {
                self.endpoints.learn(&inspector.name(), look);
            }
            readings.push(reading);
        }
        for reading in readings.into_iter().rev() {
            let now = Moment { mono: self.clock.now(), wall: wall() };
            // What fires is in the judge's state; a report shows the level, not the edges.
            let _edges = self.judge.look(&reading, now);
            self.world.saw(reading.rows);
        }
        // For `--watch`: the next look finds out what this one left open.
        self.attention.want_order_test(self.judge.wants_order_test());
    }

    /// How far was seen from where this process stands; `None` before the first look.
    pub fn surroundings(&self) -> Option<&host::Surroundings> {
        self.world.surroundings()
    }

    /// What was seen so far.
    pub fn report(&self) -> Report {
        report(&Source {
            judge: &self.judge,
            world: &self.world,
            identity: None,
            buffer: None,
            shipping: None,
            started_at: self.started_at,
            now: Moment { mono: self.clock.now(), wall: wall() },
            times_slower: 1,
            holds_respected: false,
        })
    }
}
