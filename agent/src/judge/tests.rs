//! Nights replayed: readings with their times in, a timeline of what was told out.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;
use tickbird_shared::Finding;

use super::*;
use crate::inspect::host::Ended;
use crate::inspect::{HostLook, PoolStats, Probe, Reading, ServerLook};

mod endpoints;
mod error_path;
mod exhaustion;
mod facts;
mod headroom;
mod join_quality;
mod lease_times;
mod leases;
mod logs;
mod own;
mod params;
mod poolers;
mod pools;
mod processes;
mod proofs;
mod rabbitmq;
mod reads;
mod redis;
mod reloads;
pub(crate) mod rows;
mod second_pools;
mod sessions;
mod sockets;
mod stale_dns;
mod states;
mod stats;

/// A judge, a clock that is moved by hand, and everything that was told.
pub(crate) struct Night {
    pub(crate) judge: Judge,
    now: Duration,
    pub(crate) found: Vec<Finding<'static>>,
    told: Vec<String>,
}

impl Night {
    pub(crate) fn begin() -> Self {
        Self::with([])
    }

    pub(crate) fn with(overrides: impl IntoIterator<Item = Override>) -> Self {
        let (thresholds, mistakes) = Thresholds::with(overrides);
        assert_eq!(mistakes, []);
        Self { judge: Judge::new(Who::alone(), thresholds), now: Duration::ZERO, found: Vec::new(), told: Vec::new() }
    }

    pub(crate) fn moment(&self) -> Moment {
        let start: Timestamp = "2026-11-20T02:00:00Z".parse().expect("a timestamp");
        let wall = start.checked_add(SignedDuration::try_from(self.now).expect("fits")).expect("fits");
        Moment { mono: self.now, wall }
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }

    /// Moves the clock.
    pub(crate) fn wait(&mut self, seconds: f64) -> &mut Self {
        self.now += Duration::from_secs_f64(seconds);
        self
    }

    pub(crate) fn host(&mut self, look: &HostLook) {
        self.rows(Rows::Host(look.clone()));
    }

    /// Whether a source is worth asking more often.
    pub(crate) fn is_suspect(&self, source: &str) -> bool {
        self.judge.is_suspect(source)
    }

    /// The same look once a second, so many times.
    pub(crate) fn hosts(&mut self, look: &HostLook, seconds: u64) {
        for _ in 0..seconds {
            self.wait(1.0).host(look);
        }
    }

    pub(crate) fn server(&mut self, look: &ServerLook) {
        self.rows(Rows::Server(look.clone()));
    }

    pub(crate) fn stats(&mut self, said: &PoolStats) {
        self.rows(Rows::PoolStats(said.clone()));
    }

    pub(crate) fn log(&mut self, look: &crate::inspect::LogLook) {
        self.rows(Rows::Log(look.clone()));
    }

    pub(crate) fn probe(&mut self, probe: &Probe) {
        self.rows(Rows::Probe(probe.clone()));
    }

    /// Looks at host and server every five seconds, with what `scene` gives for the seconds since it began.
    pub(crate) fn scenes(&mut self, looks: u32, mut scene: impl FnMut(f64) -> (HostLook, ServerLook)) {
        let began = self.now;
        for _ in 0..looks {
            self.wait(5.0);
            let (host, server) = scene((self.now - began).as_secs_f64());
            self.host(&host);
            self.server(&server);
        }
    }

    pub(crate) fn rows(&mut self, rows: Rows) {
        let now = self.moment();
        let found = self.judge.look(&Reading { rows, observations: Vec::new() }, now);
        self.tell(found);
    }

    pub(crate) fn ended(&mut self, ended: &Ended) {
        let now = self.moment();
        let found = self.judge.ended(ended, now);
        self.tell(found);
    }

    pub(crate) fn tick(&mut self) {
        let now = self.moment();
        let found = self.judge.tick(now);
        self.tell(found);
    }

    pub(crate) fn tell(&mut self, found: Vec<Finding<'static>>) {
        for it in found {
            assert_eq!(it.fault(), None, "{it:?}");
            let change = serde_json::to_value(it.change).expect("a word");
            let change = change.as_str().expect("a word").to_owned();
            self.told.push(format!("{}s {} {change} {}", self.now.as_secs_f64(), it.check, it.severity));
            self.found.push(it);
        }
    }

    /// What was told since the last call, one line each: `31s pool.churn began warning`.
    pub(crate) fn told(&mut self) -> String {
        std::mem::take(&mut self.told).join("\n")
    }

    /// The same of one check alone.
    pub(crate) fn told_of(&mut self, check: &str) -> String {
        let told = std::mem::take(&mut self.told);
        told.into_iter().filter(|it| it.contains(&format!("s {check} "))).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn last(&self) -> &Finding<'static> {
        self.found.last().expect("something was told")
    }

    /// The state of a check on the only target whose key contains `part`.
    pub(crate) fn state(&self, check: &str, part: &str) -> CheckState {
        let all = self.judge.states();
        let mut of = all.into_iter().filter(|it| it.check == check && it.target.as_str().contains(part));
        let it = of.next().unwrap_or_else(|| panic!("{check} has no state for {part}"));
        assert!(of.next().is_none(), "{check} has two states for {part}");
        it
    }

    /// The state in words.
    pub(crate) fn is(&self, check: &str, part: &str) -> &'static str {
        self.state(check, part).state.as_str()
    }
}

pub(crate) fn evidence(finding: &Finding<'_>) -> Json {
    serde_json::from_str(finding.evidence.get()).expect("evidence is JSON")
}

pub(crate) fn change(check: &str) -> Override {
    Override { check: check.to_owned(), ..Override::default() }
}

pub(crate) fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A host with these pools, and a process for each of their owners.
pub(crate) fn host_of(pools: Vec<crate::inspect::host::PoolRow>) -> HostLook {
    use crate::inspect::host::Owner;
    let owner = |it: &crate::inspect::host::PoolRow| match &it.owner {
        Owner::Seen { application, instance } => Some(rows::process(&application.name, instance.pid, 0)),
        Owner::NotVisible { .. } => None,
    };
    HostLook { processes: pools.iter().filter_map(owner).collect(), pools, ..HostLook::default() }
}
