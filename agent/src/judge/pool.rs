//! Checks of pools: what the sockets of this host say, and what a server says of the sessions behind them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::defaults::CheckId;
use super::threshold::Seen;
use super::tracks::{Place, Subject, Track, Tracks};
use super::{Moment, evidence::Case};
use crate::discover::{End, Instance, TargetKey};
use crate::inspect::host::{Connection, Owner, PoolRow};
use crate::inspect::server::{Engine, Session};
use crate::inspect::{HostLook, LogLook, NamesLook, PoolStats, Reason, ServerLook, Value};

mod absent;
mod churn;
mod close_wait;
mod connect_stuck;
mod error_path;
mod errors;
mod exhaustion;
mod ghost;
mod half_open;
mod heard;
pub(super) mod join;
mod keepalive;
mod leak;
mod lease;
mod lines;
mod order;
pub(super) mod params;
pub(super) mod quality;
mod row;
mod sessions;
mod sockets;
mod stale_dns;
mod stats;
mod storm;
mod through_pooler;
mod utilization;
mod verdict;
pub(super) mod view;

/// The checks that judge a server's sessions.
const SESSION_CHECKS: [CheckId; 2] = [CheckId::IdleInTransaction, CheckId::AbortedTransaction];
/// The checks that judge leases, by the pool that the server names.
const LEAK_CHECKS: [CheckId; 3] = [CheckId::Leak, CheckId::LeakRate, CheckId::ErrorPath];
/// For so long a new pool may wait for the first look at its server: three looks.
const FIRST_VIEW: Duration = Duration::from_secs(15);

/// What is remembered of pools between looks.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// Pools of servers that can be asked, at the last look at the host: what a server's rows are joined with.
    rows: Vec<PoolRow>,
    commands: HashMap<Instance, Arc<str>>,
    /// `<application>/<role>` of everything that runs or holds connections.
    there: HashSet<String>,
    /// Why no socket could be read at the last look at the host.
    lost: Option<Reason>,
    servers: Servers,
    hops: through_pooler::Hops,
    births: BTreeMap<TargetKey, churn::Births>,
    dead: BTreeMap<TargetKey, close_wait::Dead>,
    sockets: sockets::Sockets,
    ghosts: ghost::Known,
    modes: params::Modes,
    exhaustion: exhaustion::Exhaustion,
    verdicts: verdict::Verdicts,
    leaks: leak::Leaks,
    errors: errors::Errors,
    stats: stats::Stats,
    names: stale_dns::Names,
    /// Every pool at the last look at the host, and when that was.
    seen: Vec<PoolRow>,
    seen_at: Duration,
    /// Since when each pool without a server's view has been seen.
    waiting: BTreeMap<TargetKey, Duration>,
}

/// Servers that have been asked.
type Servers = BTreeMap<TargetKey, Server>;

/// A server that has been asked.
#[derive(Debug, Default)]
struct Server {
    /// Addresses of its name.
    addresses: BTreeSet<SocketAddr>,
    /// Remote ends here that are this server: those, and others of this host that were seen to be.
    remotes: BTreeSet<End>,
    /// Connections without a session at the last look.
    strange: HashSet<u64>,
    missing: heard::Missing,
    quality: quality::Quality,
    is_suspect: bool,
}

/// The pools of one target, instance by instance.
type Instances<'a> = BTreeMap<&'a TargetKey, Vec<&'a PoolRow>>;

impl Pools {
    /// Takes a look at the host in. `lost` says why no socket could be read, when that is so.
    pub(super) fn host(&mut self, look: &HostLook, lost: Option<&Reason>, now: Moment, tracks: &mut Tracks) {
        self.lost = lost.cloned();
        if let Some(reason) = lost {
            self.rows.clear();
            let also = [CheckId::Exhausted, CheckId::Utilization];
            let by_sockets = |check| sockets::CHECKS.contains(&check) || also.contains(&check);
            tracks.lose(reason, now, |key, track| by_sockets(key.check) && track.place.is_some());
            return;
        }
        let learned = |target: &TargetKey| self.exhaustion.learned(target);
        let rows = self.stats.limited(&look.pools, learned, now.mono);
        self.remember(look, &rows);
        let mut pools = Instances::new();
        for row in &rows {
            pools.entry(&row.target).or_default().push(row);
        }
        self.stats.remember(&pools);
        self.exhaustion.host(look, now.mono);
        self.exhaustion.unlearn(&pools);
        self.exhaustion.judge(&self.servers, &pools, now, tracks);
        let heard = heard::Heard { sessions: &self.exhaustion.sessions, servers: &self.servers, now: now.mono };
        self.sockets.judge(&pools, heard, now, tracks);
        params::judge(&self.modes, &pools, now, tracks);
        self.names.judge(&pools, heard, now, tracks);
        let mut unviewed = Vec::new();
        for (target, rows) in &pools {
            let place = place(rows[0]);
            let heard = heard::Heard { sessions: &self.exhaustion.sessions, servers: &self.servers, now: now.mono };
            churn::judge(&mut self.births, target, &place, rows, (look, heard), now, tracks);
            let discipline = self.verdicts.discipline(rows);
            close_wait::judge(&mut self.dead, target, &place, rows, (discipline, heard), now, tracks);
            if !self.is_viewed(&place.remote) {
                let reason = self.why_not_viewed(target, rows[0], now, tracks);
                if self.stats.share_of(target, now.mono).is_none() {
                    utilization::without_view(target, &place, rows, reason.as_ref(), now, tracks);
                }
                unviewed.extend(reason.map(|reason| (*target, place, reason)));
            }
        }
        if !unviewed.is_empty() {
            for check in SESSION_CHECKS {
                let known: Vec<_> = known_places(check, tracks).collect();
                for (target, place, reason) in &unviewed {
                    // Sessions that were seen once, before the server moved, cannot be seen either.
                    let of_pool: Vec<_> = known.iter().filter(|it| it.1 == *place).map(|it| &it.0).collect();
                    let all = if of_pool.is_empty() { vec![*target] } else { of_pool };
                    all.into_iter().for_each(|it| blind(check, it, place, reason.clone(), now, tracks));
                }
            }
        }
        self.errors.forget(now.mono);
        self.leases(&rows, now, tracks);
        self.waiting.retain(|target, _| pools.contains_key(target));
        self.births.retain(|target, births| pools.contains_key(target) || births.is_recent(now.mono));
        self.dead.retain(|target, _| pools.contains_key(target));
        // An application that runs and holds no connection to an endpoint has nothing wrong with that pool.
        for check in sockets::CHECKS.into_iter().chain([CheckId::Exhausted, CheckId::Utilization]) {
            self.nothing_there(check, now, tracks, |key, _| !pools.contains_key(key));
        }
    }

    /// The verdict on every connection, and what is held too long.
    fn leases(&mut self, rows: &[Cow<'_, PoolRow>], now: Moment, tracks: &mut Tracks) {
        let rows: Vec<PoolRow> = rows.iter().map(|row| row.clone().into_owned()).collect();
        let sessions = &self.exhaustion.sessions;
        let is_viewed = |row: &PoolRow| self.servers.values().any(|it| it.remotes.contains(&row.remote));
        // HikariCP refills its pool though nobody asks for a connection, unless its page says that it keeps none ready.
        let opens_ahead = |instance: Instance, row: &PoolRow| {
            let is_java = self.commands.get(&instance).is_some_and(|it| runs_java(it));
            let told = self.stats.opens_ahead(&row.target, now.mono);
            told.unwrap_or(if is_java { usize::MAX } else { 0 })
        };
        self.verdicts.host(&rows, sessions, is_viewed, opens_ahead, now.mono);
        // Where the server names pools, a connection that it has not named yet is of none.
        let is_one = |pool: &verdict::Pool<'_>| pool.name.is_some() || !is_viewed(pool.row);
        let all = rows.iter().flat_map(|row| self.verdicts.of(row, sessions, now.mono));
        let judged: Vec<verdict::Pool<'_>> = all.filter(is_one).collect();
        let heard = heard::Heard { sessions, servers: &self.servers, now: now.mono };
        self.leaks.judge(&judged, (&self.commands, heard), &self.errors, now, tracks);
        let errors = &self.errors;
        tracks.end("no log of its application is followed any more", now, |key, track| {
            let application = track.place.as_ref().and_then(|it| it.who.rsplit_once('/')).map(|it| it.0);
            key.check == CheckId::ErrorPath && application.is_some_and(|it| !errors.follow(it))
        });
        for check in LEAK_CHECKS {
            for (target, place) in self.leaks.nothing_else(&judged, known_places(check, tracks).collect()) {
                // What was named within the last hour stays so.
                if check != CheckId::LeakRate && self.is_there(&place.who) {
                    nothing(check, &target, &place, now, tracks);
                }
            }
        }
        drop(judged);
        (self.seen, self.seen_at) = (rows, now.mono);
    }

    /// Every pool with the verdict on each of its connections.
    pub(super) fn views(&self) -> Vec<view::PoolView> {
        let sessions = &self.exhaustion.sessions;
        let all = self.seen.iter().flat_map(|row| self.verdicts.of(row, sessions, self.seen_at));
        all.map(|pool| {
            view::of(&pool, self.exhaustion.waiters(pool.row, self.seen_at), self.leaks.empty_in(&pool), self.seen_at)
        })
        .collect()
    }

    /// Whether some pool at work wants a second dump at the next look.
    pub(super) fn want_order(&self) -> bool {
        self.verdicts.want_order(self.seen_at)
    }

    /// Takes a look at a server in.
    pub(super) fn server(&mut self, look: &ServerLook, now: Moment, tracks: &mut Tracks) {
        let rows = std::mem::take(&mut self.rows);
        let passed = self.hops.passed_on(look, now.mono);
        match self.hops.resolve(look, now.mono) {
            Some(resolved) => self.join(&resolved, &rows, &passed, now, tracks),
            None => self.join(look, &rows, &passed, now, tracks),
        }
        self.rows = rows;
    }

    /// Takes what the names of servers lead to in.
    pub(super) fn names(&mut self, look: &NamesLook, now: Moment) {
        self.names.learn(look, now);
    }

    /// Takes what an application's log says of failed requests in.
    pub(super) fn log(&mut self, look: &LogLook, now: Moment) {
        self.errors.look(look, now);
    }

    /// Takes what an application says of its pools in.
    pub(super) fn stats(&mut self, said: &PoolStats, now: Moment, tracks: &mut Tracks) {
        let heard = heard::Heard { sessions: &self.exhaustion.sessions, servers: &self.servers, now: now.mono };
        self.stats.look(said, (&self.seen, heard), now, tracks);
        self.exhaustion.untell_missing(said);
        for exact in self.stats.of_source(&said.target) {
            let Some(waiters) = exact.waiters() else { continue };
            let target = exact.target();
            self.exhaustion.tell(target.clone(), waiters);
            if !exact.is_attached() {
                self.exhaustion.judge_named(&self.servers, &target, now, tracks);
            }
        }
    }

    fn join(
        &mut self,
        look: &ServerLook,
        rows: &[PoolRow],
        passed: &through_pooler::PassedOn,
        now: Moment,
        tracks: &mut Tracks,
    ) {
        let of_server = join::is_of_server(look, rows);
        let mut bases = Instances::new();
        for row in rows.iter().filter(|it| of_server(&it.remote)) {
            bases.entry(&row.target).or_default().push(row);
        }
        let server = self.servers.entry(look.target.clone()).or_default();
        let addresses: BTreeSet<SocketAddr> = look.addresses.iter().copied().collect();
        if !addresses.is_empty() && addresses != server.addresses {
            // A server that moved is no longer seen at the address it had.
            (server.remotes, server.addresses) = (addresses.iter().copied().map(End::Tcp).collect(), addresses);
        }
        server.remotes.extend(bases.values().map(|rows| rows[0].remote.clone()));
        server.is_suspect = false;
        let remotes = server.remotes.clone();
        let join = join::join(look, rows);
        self.hops.remember(look, &join, now.mono);
        let strange: HashSet<u64> = join.without_session.iter().map(|(_, it)| it.cookie).collect();
        // The two views are not of one moment: only a connection that matches nothing twice says something.
        let is_strange_again = strange.intersection(&server.strange).next().is_some();
        server.strange = strange;
        let unseen = match (&look.sessions, &look.hidden) {
            // Without our own sockets nobody's sessions can be told from ours.
            (Ok(_), _) if self.lost.is_some() => self.lost.clone(),
            (Err(reason), _) => Some(reason.clone()),
            (Ok(_), Some(hidden)) if join.is_translated() && join.without_address > 0 => Some(hidden.clone()),
            (Ok(_), _) if join.joined.is_empty() && join.hides_ends() => Some(join::hidden_ends(look.engine)),
            (Ok(_), _) if !join.is_translated() => None,
            (Ok(_), _) if !is_strange_again => Some(Reason::NotYet("a second look at the server")),
            (Ok(_), _) => Some(Reason::Translated(look.target.as_str().trim_start_matches("server:").to_owned())),
        };
        if let Some(server) = self.servers.get_mut(&look.target) {
            server.missing.look(look, &join, unseen.is_none());
            server.quality.judge(look, &join, unseen.as_ref(), now, tracks);
        }
        params::learn(&mut self.modes, look);
        let haunted = ghost::targets(&bases, &remotes, tracks);
        ghost::judge(&mut self.ghosts, look, &join, unseen.as_ref(), haunted, now, tracks);
        // Where the application's own numbers are exact, sessions only say less.
        let mut by_sessions = bases.clone();
        by_sessions.retain(|target, _| self.stats.share_of(target, now.mono).is_none());
        if let Some(reason) = unseen {
            utilization::unseen(&by_sessions, &reason, now, tracks);
            if look.engine.tells_leases() {
                self.unseen(&bases, &remotes, &reason, now, tracks);
            }
        } else {
            let groups = if look.engine.tells_leases() { sessions::grouped(&join) } else { sessions::Groups::new() };
            let mut suspect = utilization::judge(&by_sessions, &join, look.engine, now, tracks);
            self.exhaustion.server(&join, look.engine, now.mono);
            self.exhaustion.pooler(look, &bases, now.mono);
            self.exhaustion.judge(&self.servers, &bases, now, tracks);
            let scene = sessions::Scene { look, join: &join, commands: &self.commands, passed };
            for check in SESSION_CHECKS {
                suspect |= scene.judge(check, &groups, now, tracks);
            }
            let of_this = |place: &Place| remotes.contains(&place.remote);
            let is_bare = |target: &TargetKey| !target.as_str().contains("?user=");
            let hidden_from: Vec<Place> = scene.partly_hidden().map(place).collect();
            for check in SESSION_CHECKS {
                let of_nobody = |it: &(TargetKey, Place)| {
                    of_this(&it.1) && !is_bare(&it.0) && !groups.contains_key(&it.0) && self.is_there(&it.1.who)
                };
                let all: Vec<_> = known_places(check, tracks).filter(of_nobody).collect();
                for (target, place) in all {
                    match look.hidden.as_ref().filter(|_| hidden_from.contains(&place)) {
                        Some(reason) => blind(check, &target, &place, reason.clone(), now, tracks),
                        // The view of this pool is whole, so what has no row in it has no session.
                        None => nothing(check, &target, &place, now, tracks),
                    }
                }
            }
            let hidden = scene.hidden_pools(&groups);
            for pool in &hidden {
                let has_log = error_path::application(pool).is_some_and(|it| self.errors.follow(it));
                let of_leaks = [CheckId::Leak].into_iter().chain(has_log.then_some(CheckId::ErrorPath));
                let checks = SESSION_CHECKS.into_iter().chain(of_leaks);
                for (check, reason) in checks.zip(look.hidden.iter().cycle()) {
                    blind(check, &pool.target, &place(pool), reason.clone(), now, tracks);
                }
            }
            tracks.end("its sessions are known by database and user now", now, |key, track| {
                let is_here = track.place.as_ref().is_some_and(of_this);
                let is_hidden = hidden.iter().any(|it| it.target == key.target);
                let is_of_sessions = SESSION_CHECKS.contains(&key.check) || LEAK_CHECKS.contains(&key.check);
                is_of_sessions && is_bare(&key.target) && is_here && !is_hidden
            });
            if let Some(server) = self.servers.get_mut(&look.target) {
                server.is_suspect = suspect;
            }
        }
    }

    /// Callers that wait for a connection of this pool, in all of its processes.
    pub(super) fn waiters(&self, target: &TargetKey, now: Duration) -> Value {
        let rows = self.rows.iter().filter(|it| it.target == *target);
        let mut all = rows.map(|row| self.exhaustion.waiters(row, now));
        let Some(first) = all.next() else { return Value::Unknown(Reason::NotYet("callers that wait")) };
        if self.exhaustion.is_told(target, now) {
            return first;
        }
        all.fold(first, |sum, it| match (sum, it) {
            (Value::Known(sum), Value::Known(it)) => Value::Known(sum + it),
            // What is not known of one process is not known of all.
            (Value::Unknown(reason), _) | (_, Value::Unknown(reason)) => Value::Unknown(reason),
            (sum, it) => Value::Between(
                sum.low().unwrap_or(0.0) + it.low().unwrap_or(0.0),
                sum.high().unwrap_or(0.0) + it.high().unwrap_or(0.0),
            ),
        })
    }

    /// How many connections of this host were joined with their sessions at the last look at a server.
    pub(super) fn joined(&self, server: &TargetKey) -> Option<&quality::JoinedShare> {
        self.servers.get(server).and_then(|it| it.quality.last())
    }

    /// Pools of this host with a connection to a server.
    pub(super) fn connected_to(&self, server: &TargetKey) -> Vec<&PoolRow> {
        let Some(server) = self.servers.get(server) else { return Vec::new() };
        self.rows.iter().filter(|it| server.remotes.contains(&it.remote) && !it.connections.is_empty()).collect()
    }

    /// `shop, pid 77`.
    pub(super) fn words_of(&self, row: &PoolRow) -> String {
        format!("{}, {}", owner_name(row), pids_in_words(&pids([row])))
    }

    /// Process and descriptor of this host behind a session.
    pub(super) fn holder(&self, session: &Session) -> Option<(u32, Option<u32>)> {
        let local = SocketAddr::new(session.address?, session.port?);
        let is_it = |it: &Connection| {
            it.local.address().is_some_and(|it| it.ip().to_canonical() == local.ip() && it.port() == local.port())
        };
        self.rows.iter().find_map(|row| {
            let connection = row.connections.iter().find(|it| is_it(it))?;
            Some((pid(row)?, connection.fds.first().copied()))
        })
    }

    /// Whether an application's role runs or holds connections.
    pub(super) fn is_there(&self, who: &str) -> bool {
        self.there.contains(who)
    }

    /// Whether a source is worth asking more often; `bound` is the share from which a pool is nearly full.
    pub(super) fn is_suspect(&self, server: &str, bound: Option<f64>) -> bool {
        if server.starts_with("pool_metrics ") {
            return self.stats.is_suspect(server, bound)
                || self
                    .stats
                    .targets_of(server)
                    .any(|target| self.rows.iter().any(|row| row.target == target && self.exhaustion.is_suspect(row)));
        }
        // `postgres 10.0.0.5:5432/app` is the inspector of `server:10.0.0.5:5432/app`.
        let wanted = server.split_once(' ').map_or(server, |(_, rest)| rest).trim_start_matches("server:");
        let bare = |key: &TargetKey| key.as_str().trim_start_matches("server:").to_owned();
        let waits = |it: &Server| {
            self.rows.iter().any(|row| it.remotes.contains(&row.remote) && self.exhaustion.is_suspect(row))
        };
        self.servers.iter().any(|(key, it)| bare(key) == wanted && (it.is_suspect || waits(it)))
    }

    fn remember(&mut self, look: &HostLook, rows: &[Cow<'_, PoolRow>]) {
        let is_wanted =
            |row: &&Cow<'_, PoolRow>| row.service.and_then(Engine::of_service).is_some() || self.is_viewed(&row.remote);
        self.rows = rows.iter().filter(is_wanted).map(|row| row.clone().into_owned()).collect();
        self.commands = look.processes.iter().map(|it| (it.instance, it.command.clone())).collect();
        self.there = look.pools.iter().map(|it| who(it).to_owned()).collect();
        self.there.extend(look.processes.iter().map(|it| format!("{}/{}", it.application.name, it.application.role)));
    }

    fn is_viewed(&self, remote: &End) -> bool {
        self.servers.values().any(|it| it.remotes.contains(remote))
    }

    /// Why the server behind a pool has not been asked: `None` when nobody could ask it.
    fn why_not_viewed(&mut self, target: &TargetKey, row: &PoolRow, now: Moment, tracks: &Tracks) -> Option<Reason> {
        let engine = row.service.and_then(Engine::of_service).filter(|it| it.is_missed())?;
        if let End::Apart(address) = &row.remote {
            // Nobody could ask it from here, whatever was configured.
            return Some(Reason::Apart(format!("{} at {address}", engine.name())));
        }
        let since = *self.waiting.entry(target.clone()).or_insert(now.mono);
        let is_early = now.mono.saturating_sub(since) < FIRST_VIEW && !tracks.ignores_holds();
        Some(match is_early {
            true => Reason::NotYet("the server has not been asked yet"),
            false => Reason::NoCredential(format!("{} at {}", engine.name(), row.remote)),
        })
    }

    /// The server's view is missing: whatever was judged by it cannot be seen.
    fn unseen(
        &self,
        bases: &Instances<'_>,
        remotes: &BTreeSet<End>,
        reason: &Reason,
        now: Moment,
        tracks: &mut Tracks,
    ) {
        for check in SESSION_CHECKS {
            let mut targets: BTreeMap<TargetKey, Place> = known_places(check, tracks)
                .filter(|(_, place)| remotes.contains(&place.remote) && self.is_there(&place.who))
                .collect();
            for (target, rows) in bases {
                let place = place(rows[0]);
                if !targets.values().any(|it| *it == place) {
                    targets.insert((*target).clone(), place);
                }
            }
            for (target, place) in targets {
                blind(check, &target, &place, reason.clone(), now, tracks);
            }
        }
    }

    /// Feeds zero to the known targets of `check` that satisfy `is_empty` while their application runs.
    fn nothing_there(
        &self,
        check: CheckId,
        now: Moment,
        tracks: &mut Tracks,
        is_empty: impl Fn(&TargetKey, &Place) -> bool,
    ) {
        let empty: Vec<_> = known_places(check, tracks)
            .filter(|(target, place)| self.is_there(&place.who) && is_empty(target, place))
            .collect();
        for (target, place) in empty {
            nothing(check, &target, &place, now, tracks);
        }
    }
}

/// Whether a command line is a Java program's.
fn runs_java(command: &str) -> bool {
    let program = command.split_ascii_whitespace().next().unwrap_or_default();
    program.rsplit('/').next() == Some("java")
}

fn nothing(check: CheckId, target: &TargetKey, place: &Place, now: Moment, tracks: &mut Tracks) {
    let subject = Subject { place: Some(place), ..Subject::of(check, target) };
    tracks.observe(subject, Seen::known(0.0), now, Case::default);
}

/// Targets of a check and where they live. A target that is not the kernel's pool alone is known by database and user.
fn known_places(check: CheckId, tracks: &Tracks) -> impl Iterator<Item = (TargetKey, Place)> {
    let place = |track: &Track| track.place.clone();
    let all: Vec<_> = tracks.of(check).filter_map(|(key, track)| Some((key.target.clone(), place(track)?))).collect();
    all.into_iter()
}

fn blind(check: CheckId, target: &TargetKey, place: &Place, reason: Reason, now: Moment, tracks: &mut Tracks) {
    let subject = Subject { place: Some(place), ..Subject::of(check, target) };
    tracks.observe(subject, Seen::value(Value::Unknown(reason)), now, Case::default);
}

fn place(row: &PoolRow) -> Place {
    Place { who: who(row).into(), remote: row.remote.clone() }
}

/// `<application>/<role>` as it stands in the target's key.
fn who(row: &PoolRow) -> &str {
    let key = row.target.as_str();
    let inner = key.strip_prefix("pool:").unwrap_or(key);
    inner.strip_suffix(&format!(">{}", row.remote)).unwrap_or(inner)
}

/// The application in a sentence.
fn owner_name(row: &PoolRow) -> String {
    match &row.owner {
        Owner::Seen { application, .. } => super::words::foreign(&application.name, 80),
        Owner::NotVisible { uid, cgroup } => {
            format!("an application of {} (owner: not visible)", Owner::unseen(*uid, *cgroup))
        }
    }
}

/// Why neither ages nor ends are told of some of these connections, when that is so.
fn untold(rows: &[&PoolRow]) -> Option<Value> {
    rows.iter().find_map(|row| row.vantage.untold()).map(|reason| Value::Unknown(reason.clone()))
}

fn pid(row: &PoolRow) -> Option<u32> {
    match &row.owner {
        Owner::Seen { instance, .. } => Some(instance.pid),
        Owner::NotVisible { .. } => None,
    }
}

/// Distinct pids of some rows, in order.
fn pids<'a>(rows: impl IntoIterator<Item = &'a PoolRow>) -> Vec<u32> {
    let all: BTreeSet<u32> = rows.into_iter().filter_map(pid).collect();
    all.into_iter().collect()
}

/// `pid 4121` or `3 processes (pids 4121, 4122, 4123)`.
fn pids_in_words(pids: &[u32]) -> String {
    match pids {
        [] => "owner: not visible".to_owned(),
        [one] => format!("pid {one}"),
        many => {
            let shown: Vec<_> = many.iter().take(8).map(u32::to_string).collect();
            let rest = if many.len() > 8 { ", …" } else { "" };
            format!("{} processes (pids {}{rest})", many.len(), shown.join(", "))
        }
    }
}
