//! Readings, thresholds and history in; findings with their reasons out. No I/O and no clock.
//!
//! Each check turns the rows of a reading into one value for each of its targets (`judge/pool`, `judge/server.rs`,
//! `judge/process.rs`, `judge/endpoint.rs`, `judge/log.rs`, `judge/sqlite.rs`, `judge/own.rs`). `judge/threshold.rs` holds a value against its bounds,
//! `judge/hold.rs` says when that counts, `judge/tracks.rs` keeps the state of every check on every target and makes
//! the findings. The table of checks is `judge/defaults.rs`, with the operator's changes `judge/settings.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;
use tickbird_shared::batch::Open;
use tickbird_shared::protocol::MAX_FIRING;
use tickbird_shared::{Finding, Fingerprint, Severity};

use crate::discover::TargetKey;
use crate::inspect::host::{Ended, Gap};
use crate::inspect::{HostLook, Reading, Reason, Rows, Value};

mod defaults;
mod endpoint;
mod evidence;
mod forecast;
mod hold;
pub mod levels;
mod log;
mod own;
mod pool;
mod process;
mod server;
mod settings;
mod sqlite;
mod threshold;
mod tracks;
mod words;

pub use defaults::{CHECKS, Check, FalseAlarm};
pub use hold::{Hold, Holds};
pub use own::{BudgetSeen, BufferSeen, BufferSums, CertificateSeen, LaneSums};
pub use pool::join::{Join, Joined, join};
pub use pool::quality::JoinedShare;
pub use pool::view::{ConnectionView, PoolView, Verdict};
pub use settings::{Effective, Mistake, Override, Thresholds};
pub use threshold::{Bounds, CLEARING_RATIO, Direction};

use defaults::CheckId;
use tracks::{Key, Standing, Tracks};

/// How the reason of a value begins that no check looks at: neither ok nor waiting.
pub(crate) const NOT_JUDGED: &str = "not judged";
/// A process or pool that has not been seen for so long is gone, and what fired of it is resolved.
const GONE: Duration = Duration::from_secs(300);
/// What fired of it aside, it is forgotten much sooner: a host may start thousands of short-lived processes an hour. So is
/// all that no inspector looks at any more.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// For whom the judge speaks: part of every fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// The tenant.
    pub tenant: String,
    /// The agent's id.
    pub agent: String,
}

impl Who {
    /// An agent without a collector.
    pub fn alone() -> Self {
        Self { tenant: "default".to_owned(), agent: "alone".to_owned() }
    }
}

/// The time of a look by both clocks: holds count by the monotonic one, findings show the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Since the agent started.
    pub mono: Duration,
    /// Wall time.
    pub wall: Timestamp,
}

/// State of one check on one target. Ordered so that the greatest is the one that a target is shown in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Not enough seen, or not judged at all.
    NotYet,
    /// Known, and inside its bounds.
    Ok,
    /// Fires as `info`.
    Info,
    /// Cannot be seen.
    Blind,
    /// Fires as `warning`.
    Warning,
    /// Fires as `critical`.
    Critical,
}

impl State {
    /// Each of them, best first.
    pub const ALL: [Self; 6] = [Self::NotYet, Self::Ok, Self::Info, Self::Blind, Self::Warning, Self::Critical];

    /// `not yet`, `ok`, `info`, `blind`, `warning` or `critical`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotYet => "not yet",
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Blind => "blind",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl From<Severity> for State {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Info => Self::Info,
            Severity::Warning => Self::Warning,
            Severity::Critical => Self::Critical,
        }
    }
}

/// One check on one target, for `status` and `inspect`.
#[derive(Debug, Clone)]
pub struct CheckState {
    /// Id of the check.
    pub check: &'static str,
    /// The target.
    pub target: TargetKey,
    /// Tells states of one check on one target apart.
    pub sub_key: Option<Arc<str>>,
    /// The state.
    pub state: State,
    /// What was last seen.
    pub value: Value,
    /// Unit of the value.
    pub unit: &'static str,
    /// What it stands against.
    pub bounds: Bounds,
    /// When the fault began, while it fires.
    pub since: Option<Timestamp>,
    /// What it waits for: `over the bound for 2 looks; fires after 3 looks`.
    pub pending: Option<String>,
    /// One sentence, while a bound is crossed.
    pub summary: Option<String>,
    /// Why it was last decided so.
    pub reason: String,
    /// What to do, while a bound is crossed or the check is blind.
    pub advice: Option<String>,
    /// The proof, while a bound is crossed.
    pub evidence: Option<Box<RawValue>>,
    /// When it was last looked at.
    pub observed_at: Timestamp,
    /// Looks so far.
    pub looks: u64,
    /// Looks that gave an exactly known value.
    pub looks_known: u64,
}

/// Owner of every state; fed by one task.
#[derive(Debug)]
pub struct Judge {
    tracks: Tracks,
    pools: pool::Pools,
    processes: process::Processes,
    servers: server::Servers,
    endpoints: endpoint::Endpoints,
    logs: log::Logs,
    databases: sqlite::Databases,
    own: own::Own,
    host_seen: bool,
    /// No server is configured: none is missing when none was asked.
    is_without_servers: bool,
    /// Inspectors that have not looked for [`LATE`] intervals.
    late: BTreeSet<String>,
    /// When other inspectors were begun last.
    begun: Option<Duration>,
    /// Those of them that have not looked yet.
    awaited: BTreeSet<String>,
}

/// So many intervals without a look are no hiccup.
const LATE: u32 = 3;

impl Judge {
    /// A judge that has seen nothing.
    pub fn new(who: Who, thresholds: Thresholds) -> Self {
        Self {
            tracks: Tracks::new(who, thresholds),
            pools: pool::Pools::default(),
            processes: process::Processes::default(),
            servers: server::Servers::default(),
            endpoints: endpoint::Endpoints,
            logs: log::Logs::default(),
            databases: sqlite::Databases::default(),
            own: own::Own::default(),
            host_seen: false,
            is_without_servers: false,
            late: BTreeSet::new(),
            begun: None,
            awaited: BTreeSet::new(),
        }
    }

    /// The same, for one look from the command line: every look counts at once, and states say what they would wait for.
    #[must_use]
    pub fn ignoring_holds(mut self) -> Self {
        self.tracks.ignore_holds();
        self
    }

    /// No server is to be asked, or some are: of whom nobody asks, nothing fires.
    pub const fn watches_servers(&mut self, some: bool) {
        self.is_without_servers = !some;
    }

    /// These inspectors look from now on. What none of them has seen a minute later, when all have looked, is not in the
    /// configuration any more, and ends.
    pub fn begin_anew(&mut self, inspectors: impl IntoIterator<Item = String>, now: Moment) {
        self.begun = Some(now.mono);
        self.awaited = inspectors.into_iter().collect();
        self.late.clear();
    }

    /// Judges by other thresholds from now on; what fires of checks that were switched off is resolved.
    pub fn reconfigure(&mut self, thresholds: Thresholds, now: Moment) -> Vec<Finding<'static>> {
        self.tracks.reconfigure(thresholds, now);
        self.tracks.take()
    }

    /// Takes one reading in.
    pub fn look(&mut self, reading: &Reading, now: Moment) -> Vec<Finding<'static>> {
        match &reading.rows {
            Rows::Host(look) => {
                self.host_seen = true;
                match lost_sight(look, CheckId::Zombie, look.processes.is_empty()) {
                    None => self.processes.look(look, now, &mut self.tracks),
                    Some(reason) => {
                        self.tracks.lose(reason, now, |key, _| key.target.as_str().starts_with("process:"));
                    }
                }
                self.pools.host(
                    look,
                    lost_sight(look, CheckId::CloseWait, look.pools.is_empty()),
                    now,
                    &mut self.tracks,
                );
                self.own.gaps(&look.gaps, now, &mut self.tracks);
                self.end_what_is_gone(now);
            }
            Rows::Server(look) => {
                self.servers.look(look, &self.pools, now, &mut self.tracks);
                self.pools.server(look, now, &mut self.tracks);
            }
            Rows::PoolStats(said) => self.pools.stats(said, now, &mut self.tracks),
            Rows::Probe(probe) => self.endpoints.look(probe, now, &mut self.tracks),
            Rows::Log(look) => {
                self.logs.look(look, now, &mut self.tracks);
                self.pools.log(look, now);
            }
            Rows::Sqlite(look) => self.databases.look(look, now, &mut self.tracks),
            Rows::Names(look) => self.pools.names(look, now),
        }
        self.own.tell_blind(now, &mut self.tracks);
        self.tracks.take()
    }

    /// A watched process ended: told at once by the kernel, before the next look at the host.
    pub fn ended(&mut self, ended: &Ended, now: Moment) -> Vec<Finding<'static>> {
        self.processes.ended(ended, now, &mut self.tracks);
        self.tracks.take()
    }

    /// Time has passed: holds that wait for no look are judged.
    pub fn tick(&mut self, now: Moment) -> Vec<Finding<'static>> {
        self.processes.tick(now, &mut self.tracks);
        self.tracks.take()
    }

    /// When [`Self::tick`] is due, on the monotonic clock; `None` while nothing waits.
    pub fn wake_at(&self) -> Option<Duration> {
        self.processes.wake_at()
    }

    /// Takes in how the agent's own buffer stands.
    pub fn own_buffer(&mut self, buffer: &BufferSeen, now: Moment) -> Vec<Finding<'static>> {
        self.own.buffer(buffer, now, &mut self.tracks);
        self.tracks.take()
    }

    /// Takes in what the agent takes of its host.
    pub fn own_budget(&mut self, seen: &BudgetSeen, now: Moment) -> Vec<Finding<'static>> {
        own::Own::budget(seen, now, &mut self.tracks);
        self.tracks.take()
    }

    /// Takes in how the agent's own certificate stands.
    pub fn own_certificate(&mut self, seen: &CertificateSeen<'_>, now: Moment) -> Vec<Finding<'static>> {
        own::Own::certificate(seen, now, &mut self.tracks);
        self.tracks.take()
    }

    /// Takes in the clocks. `since_boot` counts while the host sleeps, and was read together with `now.wall`; `ahead` are
    /// bounds of how far the collector's clock is ahead of this host's, when there is a collector and it has answered.
    pub fn own_clock(
        &mut self,
        since_boot: Duration,
        ahead: Option<(SignedDuration, SignedDuration)>,
        now: Moment,
    ) -> Vec<Finding<'static>> {
        self.own.clock(since_boot, now, &mut self.tracks);
        if ahead.is_some() {
            own::Own::skew(ahead, now, &mut self.tracks);
        }
        self.tracks.take()
    }

    /// Whether a look at the host is wanted at once: a process ended, and whether another has taken its place decides.
    pub const fn waits_for_look(&self) -> bool {
        self.processes.wait_for_look()
    }

    /// An inspector had its turn; `missed` intervals have gone by without what it sees, this one among them if it saw
    /// nothing.
    pub fn ran(&mut self, inspector: &str, missed: u32, now: Moment) -> Vec<Finding<'static>> {
        if missed == 0 {
            self.awaited.remove(inspector);
        }
        if missed < LATE {
            self.late.remove(inspector);
        } else if !self.late.contains(inspector) {
            self.late.insert(inspector.to_owned());
        }
        own::late(inspector, missed, now, &mut self.tracks);
        self.tracks.take()
    }

    /// Every check on every target, in the order of the table.
    pub fn states(&self) -> Vec<CheckState> {
        self.tracks.states()
    }

    /// What fires, `agent.blind` among it, each with its last evidence.
    pub fn firing(&self) -> Vec<Finding<'static>> {
        self.tracks.firing()
    }

    /// What fires or may, and the checks of which the collector may resolve everything else: those that looked and
    /// saw all of their targets. A target that was seen too seldom, or waits for its hold, may fire. While an inspector does
    /// not come to look, nothing is concluded from what does not fire.
    pub fn open(&self, now: Moment) -> Open {
        let mut firing = self.tracks.fingerprints();
        let mut checks = Vec::new();
        for check in CheckId::all().filter(|_| self.late.is_empty()) {
            let Some(open) = self.may_fire(check, now) else { continue };
            if firing.len() + open.len() <= MAX_FIRING {
                checks.push(check.check().id.to_owned());
                firing.extend(open);
            }
        }
        Open { checks, firing, observed_at: now.wall }
    }

    /// When each check was last looked at on any target, on the monotonic clock.
    pub fn last_runs(&self) -> BTreeMap<&'static str, Duration> {
        let mut runs: BTreeMap<_, Duration> = BTreeMap::new();
        for (key, track) in self.tracks.iter() {
            let last = runs.entry(key.check.check().id).or_default();
            *last = (*last).max(track.seen_at);
        }
        runs
    }

    /// Callers that wait for a connection of a pool at `now`, on the monotonic clock.
    pub fn waiters(&self, pool: &TargetKey, now: Duration) -> Value {
        self.pools.waiters(pool, now)
    }

    /// Seconds until a server has no slot left at its present rate, at `now` on the monotonic clock: a range while the
    /// trend holds.
    pub fn server_empty_in(&self, server: &TargetKey, now: Duration) -> Value {
        self.servers.empty_in(server, now)
    }

    /// How many connections of this host were joined with their sessions at the last look at a server; `None` where none
    /// could be.
    pub fn joined(&self, server: &TargetKey) -> Option<&JoinedShare> {
        self.pools.joined(server)
    }

    /// Whether a pool of this server is over 80 % or has a session that is half-way to a bound: then the server is worth
    /// asking more often. `server` is the target's key or the inspector's name.
    pub fn is_suspect(&self, server: &str) -> bool {
        self.pools.is_suspect(server, self.tracks.rule(CheckId::Utilization).bounds.warning)
    }

    /// Whether a rule waits for the order in which a pool hands out its connections: then looks at the host are worth a
    /// second dump.
    pub fn wants_order_test(&self) -> bool {
        self.pools.want_order()
    }

    /// Every pool of every process, with the verdict on each of its connections.
    pub fn pools(&self) -> Vec<PoolView> {
        self.pools.views()
    }

    /// What may fire of a check beside what does; `None` when a target of it cannot be seen, or nothing was looked at.
    fn may_fire(&self, check: CheckId, now: Moment) -> Option<Vec<Fingerprint>> {
        if !self.tracks.thresholds().of(check).enabled {
            // What fired of it before a restart, nobody else would end.
            return Some(Vec::new());
        }
        let (mut has_any, mut has_settled, mut open) = (false, false, Vec::new());
        for (key, track) in self.tracks.of(check) {
            has_any = true;
            match track.standing() {
                Standing::Settled => has_settled = true,
                Standing::Open => open.push(self.tracks.fingerprint(key)),
                Standing::Unseen => return None,
            }
        }
        if has_any {
            return has_settled.then_some(open);
        }
        self.has_looked(check, now).then(Vec::new)
    }

    fn has_looked(&self, check: CheckId, now: Moment) -> bool {
        // Nothing to look at is an answer too, once there was time for everything to appear.
        let has_looked = match check {
            CheckId::Headroom
            | CheckId::Connect
            | CheckId::Locks
            | CheckId::TxAbandoned
            | CheckId::TxErrors
            | CheckId::Role
            | CheckId::Replica
            | CheckId::ReplicaUse
            | CheckId::Join => self.is_without_servers || self.servers.have_looked(),
            CheckId::SqliteShared => self.databases.have_looked(),
            CheckId::Stats | CheckId::HttpStatus | CheckId::HttpLatency | CheckId::HttpBody | CheckId::Certificate => {
                true
            }
            _ => self.host_seen,
        };
        has_looked && now.mono >= GONE
    }

    fn end_what_is_gone(&mut self, now: Moment) {
        let pools = &self.pools;
        self.tracks.keep(now, |_, track| track.place.as_ref().is_some_and(|it| pools.is_there(&it.who)));
        let all_look = self.awaited.is_empty() && self.late.is_empty();
        // Some facts are read once in several looks.
        if let Some(begun) = self.begun.filter(|it| all_look && now.mono.saturating_sub(*it) >= FORGOTTEN) {
            let reason = "nothing looks at it since the configuration was loaded anew";
            self.tracks.end(reason, now, |key, track| !lives_here(key) && track.seen_at <= begun);
        }
        self.tracks.end("the target has not been there for 5 minutes", now, |key, track| {
            let unseen = now.mono.saturating_sub(track.seen_at);
            match track.level.firing() {
                Some(_) => lives_here(key) && key.check != CheckId::Gone && unseen >= GONE,
                None => lives_here(key) && unseen >= FORGOTTEN,
            }
        });
    }
}

/// Whether its target is a process or a pool of this host, which comes and goes whatever is configured.
fn lives_here(key: &Key) -> bool {
    key.target.as_str().starts_with("process:") || key.target.as_str().starts_with("pool:")
}

/// Why a look shows nothing of what `check` looks at, when that is because it could not be read. A host where nothing
/// runs has no such gap; one where only some users are hidden shows the others.
fn lost_sight(look: &HostLook, check: CheckId, shows_nothing: bool) -> Option<&Reason> {
    let id = check.check().id;
    let covers = |gap: &&Gap| gap.target == TargetKey::agent() && gap.checks.contains(&id);
    look.gaps.iter().filter(|_| shows_nothing).find(covers).map(|gap| &gap.reason)
}

#[cfg(test)]
mod tests;
