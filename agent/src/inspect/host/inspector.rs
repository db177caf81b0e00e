//! One look at the host: dump, difference, owners, pools, processes.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::endpoints::{Configured, Endpoints, Listeners, Ports};
use super::gaps::{self, ALL_CHECKS, Hidden, POOL_CHECKS, PROCESS_CHECKS};
use super::pools::{self, Party, Pools};
use super::watched::{self, MAX_WATCHED, Watched};
use super::{Ended, Gap, HostLook, Limit, Owner, PoolRow, Unattributed, measures};
use crate::discover::application::Declared;
use crate::discover::processes::Processes;
use crate::discover::{End, Instance, TargetKey};
use crate::inspect::{About, Inspector, Look, Reading, Reason, Rows, Value};
use crate::kernel::owners::{Candidate, Held, Owners, Wanted};
use crate::kernel::proc::Proc;
use crate::kernel::sock_diag::{DestroyEvents, Destroyed, SockDiag};
use crate::kernel::socket::{Socket, TcpState};
use crate::kernel::{KernelError, proc_net};

/// What the host inspector is told by configuration. The default watches what it finds.
#[derive(Debug, Clone)]
pub struct Config {
    /// `/proc`; another tree only in tests.
    pub proc_root: PathBuf,
    /// `[[app]]`.
    pub apps: Vec<DeclaredApp>,
    /// Further remote ports to which connections are watched as those to known services are.
    pub ports: Vec<u16>,
    /// Endpoints of configured servers, filled in as their addresses become known.
    pub endpoints: Endpoints,
    /// The agent itself, whose process and sockets are left out.
    pub own_pid: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            proc_root: "/proc".into(),
            apps: Vec::new(),
            ports: Vec::new(),
            endpoints: Endpoints::default(),
            own_pid: Some(std::process::id()),
        }
    }
}

/// One `[[app]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredApp {
    /// Its name, in target keys.
    pub name: Arc<str>,
    /// What its command line contains.
    pub command: String,
    /// Most connections of one process's pool.
    pub pool_limit: Option<u32>,
    /// Whether its absence is worth telling.
    pub expected: bool,
}

/// Ends that wait to be heard; beyond, the tasks that tell them wait.
const ENDS: usize = 256;

/// What this inspector reads.
pub static ABOUT: About = About {
    name: "host",
    source: "NETLINK_SOCK_DIAG dump and destroy events of TCP (else /proc/net/tcp and tcp6); /proc/<pid>/stat, status, \
             cmdline, limits, smaps_rollup, fd, environ (named keys), cgroup; the cgroup tree's memory files; pidfd",
    needs: "nothing for sockets, CPU and threads; the application's user, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH \
            together, for who holds which socket, PSS and the pool limits of its environment",
    cost: "one dump of the host's TCP sockets, one stat per watched process; PSS every 10 s, all descriptors once a minute",
    measures: measures::ALL,
};

/// Looks at the sockets and processes of this host.
#[derive(Debug)]
pub struct HostInspector {
    // Only one look runs at a time. The lock is there for a look that was given up in mid-air: its thread goes on.
    state: Arc<Mutex<State>>,
    /// Set while a look is on its way: found set, the last look was given up and its births and closes with it.
    is_looking: bool,
}

impl HostInspector {
    /// An inspector, and the ends of watched processes as they happen. Once that receiver is dropped, ends are told in
    /// the next look instead.
    pub fn new(config: Config) -> (Self, mpsc::Receiver<Ended>) {
        let (out, ended) = mpsc::channel(ENDS);
        let state = State::new(config, out);
        (Self { state: Arc::new(Mutex::new(state)), is_looking: false }, ended)
    }
}

impl Inspector for HostInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        "host".into()
    }

    fn inspect<'a>(&'a mut self, now: Duration) -> Look<'a> {
        let state = self.state.clone();
        let is_incomplete = std::mem::replace(&mut self.is_looking, true);
        Box::pin(async move {
            // A dump of thousands of sockets and a walk over /proc take milliseconds: too long for a runtime thread.
            let look = tokio::task::spawn_blocking(move || {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.look(now)
            });
            let mut look = match look.await {
                Ok(look) => look,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime is ending.
                Err(_) => HostLook::default(),
            };
            look.closes_incomplete |= is_incomplete;
            self.is_looking = false;
            let observations = measures::observe(&look);
            Reading { rows: Rows::Host(look), observations }
        })
    }
}

/// Where socket rows come from.
#[derive(Debug)]
enum Source {
    Netlink(SockDiag),
    /// Refused; why.
    Table(Reason),
}

#[derive(Debug)]
struct State {
    config: Config,
    ports: Ports,
    proc: Result<Proc, Reason>,
    source: Source,
    events: Option<DestroyEvents>,
    processes: Processes,
    owners: Owners,
    pools: Pools,
    watched: Option<Watched>,
    out: mpsc::Sender<Ended>,
    // Buffers, kept from look to look.
    sockets: Vec<Socket>,
    destroyed: Vec<Destroyed>,
    wanted: Vec<Wanted>,
    listeners: Listeners,
}

impl State {
    fn new(config: Config, out: mpsc::Sender<Ended>) -> Self {
        let declared =
            config.apps.iter().map(|app| Declared { name: app.name.clone(), command: app.command.clone() }).collect();
        let source = match SockDiag::open() {
            Ok(diag) => Source::Netlink(diag),
            Err(error) => Source::Table(gaps::refused(&error)),
        };
        Self {
            ports: Ports::known_and(config.ports.iter().copied()),
            proc: Proc::open(&config.proc_root).map_err(|error| gaps::no_proc(&error)),
            source,
            events: DestroyEvents::open().ok(),
            processes: Processes::new(declared),
            owners: Owners::default(),
            pools: Pools::default(),
            watched: None,
            out,
            sockets: Vec::new(),
            destroyed: Vec::new(),
            wanted: Vec::new(),
            listeners: Listeners::default(),
            config,
        }
    }

    fn look(&mut self, now: Duration) -> HostLook {
        let mut look = HostLook::default();
        if self.proc.is_err() {
            self.proc = Proc::open(&self.config.proc_root).map_err(|error| gaps::no_proc(&error));
        }
        let configured = self.config.endpoints.configured();
        self.ports = Ports::known_and(self.config.ports.iter().copied().chain(configured.ports()));
        self.dump(&mut look);
        self.drain_events(&mut look);
        let proc = match &mut self.proc {
            Ok(proc) => proc,
            Err(reason) => {
                look.gaps.push(Gap { checks: ALL_CHECKS, target: TargetKey::agent(), reason: reason.clone() });
                return look;
            }
        };
        match self.processes.refresh(proc, now) {
            Ok(ended) => ended.iter().for_each(|instance| self.owners.forget(instance.pid)),
            Err(error) => {
                look.gaps.push(Gap { checks: ALL_CHECKS, target: TargetKey::agent(), reason: gaps::no_proc(&error) });
            }
        }
        self.wanted.clear();
        self.wanted.extend(self.sockets.iter().map(|socket| Wanted {
            cookie: socket.cookie,
            inode: socket.inode,
            remote: socket.remote,
        }));
        let candidates: Vec<Candidate> = self.processes.candidates().collect();
        self.owners.look(proc, &self.wanted, &candidates, now);

        // Listening sockets have told where and by whom; from here on there are only outbound connections.
        let mut listens: HashMap<Instance, Vec<SocketAddr>> = HashMap::new();
        let mut hidden = Hidden::default();
        for socket in self.sockets.iter().filter(|socket| socket.state == TcpState::Listen) {
            match self.owners.of(socket.cookie) {
                Held::By(holders) => {
                    for holder in holders {
                        let of_holder = listens.entry(Instance { pid: holder.pid, start: holder.start }).or_default();
                        if !of_holder.contains(&socket.local) {
                            of_holder.push(socket.local);
                        }
                    }
                }
                Held::ByNobodySeen => hidden.listening(socket.uid),
                Held::NotYet => (),
            }
        }
        self.sockets.retain(|socket| socket.state != TcpState::Listen);

        let world = World {
            owners: &self.owners,
            processes: &self.processes,
            ports: &self.ports,
            listeners: &self.listeners,
            configured: &configured,
            own_pid: self.config.own_pid,
        };
        let given = pools::Given { sockets: &self.sockets, destroyed: &self.destroyed, now };
        let seen = self.pools.look(given, &world);
        let of = |(remote, births): (SocketAddr, u32)| Unattributed {
            remote,
            service: configured.service(remote.port()),
            births,
        };
        look.unattributed = seen.unattributed.into_iter().map(of).collect();

        let own_pid = self.config.own_pid;
        let watched = match &mut self.watched {
            Some(watched) => watched,
            none => none.insert(Watched::new(proc, self.out.clone())),
        };
        let declared = self.processes.iter().filter(|process| process.application.declared);
        let mut wanted: BTreeSet<Instance> = declared
            .filter(|process| process.zombie_since.is_none())
            .map(|process| process.instance)
            .chain(listens.keys().copied())
            .chain(self.pools.holders(&world))
            .filter(|instance| Some(instance.pid) != own_pid)
            .collect();
        wanted.retain(|instance| !watched.contains(*instance));
        if watched.len() + wanted.len() > MAX_WATCHED {
            let what = format!("more than {MAX_WATCHED} watched processes; the others go unwatched");
            look.gaps.push(Gap { checks: PROCESS_CHECKS, target: TargetKey::agent(), reason: Reason::Absent(what) });
        }
        let owners = &self.owners;
        let is_denied = move |instance: Instance| owners.is_denied(instance.pid, instance.start);
        let given = watched::Given {
            processes: &self.processes,
            wanted: &wanted,
            listens: &listens,
            is_denied: &is_denied,
            now,
        };
        look.processes = watched.look(proc, &given);
        look.processes.sort_by(|a, b| (&a.target, a.instance).cmp(&(&b.target, b.instance)));
        look.ended = watched.unheard();

        let ages: HashMap<Instance, Duration> = look.processes.iter().map(|row| (row.instance, row.age)).collect();
        for pool in seen.pools {
            if let Party::Hidden(uid, _) = pool.key.party {
                hidden.connected(uid);
            }
            let service = configured.service(pool.key.remote.port());
            look.pools.extend(row_of(pool, service, &self.processes, &self.config, &ages, proc, watched));
        }
        look.pools.sort_by(|a, b| (&a.target, pid_of(&a.owner)).cmp(&(&b.target, pid_of(&b.owner))));
        look.absent = absent(&self.config, &self.processes);
        hidden.tell(&self.owners, &self.processes, &mut look.gaps);
        look
    }

    /// Fills `sockets` with listening sockets and with outbound connections that may belong to a pool.
    fn dump(&mut self, look: &mut HostLook) {
        self.sockets.clear();
        let ports = &self.ports;
        let listen = TcpState::Listen.number();
        if let Source::Netlink(diag) = &mut self.source {
            match diag.dump(|row| row.state == listen || ports.contains(row.remote_port), &mut self.sockets) {
                Ok(told) if told.cut > 0 => {
                    let what = format!("more than 65536 connections to watched endpoints; {} are left out", told.cut);
                    look.gaps.push(Gap {
                        checks: POOL_CHECKS,
                        target: TargetKey::agent(),
                        reason: Reason::Absent(what),
                    });
                }
                Ok(_) => (),
                Err(error) => {
                    self.sockets.clear();
                    if matches!(error, KernelError::Denied | KernelError::Absent) {
                        self.source = Source::Table(gaps::refused(&error));
                    } else {
                        look.gaps.push(Gap {
                            checks: POOL_CHECKS,
                            target: TargetKey::agent(),
                            reason: gaps::refused(&error),
                        });
                    }
                }
            }
        }
        if let Source::Table(reason) = &self.source {
            // States and queues, but no ages and no ends between two looks.
            look.closes_incomplete = true;
            look.gaps.push(Gap { checks: &["pool.churn"], target: TargetKey::agent(), reason: reason.clone() });
            let wanted = |_, remote, state| state == TcpState::Listen || ports.contains(remote);
            if let Err(error) = proc_net::read(&self.config.proc_root, wanted, &mut self.sockets) {
                self.sockets.clear();
                let reason = match error {
                    KernelError::Denied => Reason::Denied("/proc/net/tcp".into()),
                    KernelError::Malformed(what) => Reason::Malformed(what.to_owned()),
                    _ => Reason::Absent("/proc/net/tcp".into()),
                };
                look.gaps.push(Gap { checks: POOL_CHECKS, target: TargetKey::agent(), reason });
            }
        }
        self.listeners.clear();
        for socket in self.sockets.iter().filter(|socket| socket.state == TcpState::Listen) {
            self.listeners.add(socket.local);
        }
        let listeners = &self.listeners;
        // Inode 0: the process has closed it, and the kernel says goodbye to the peer alone.
        self.sockets.retain(|socket| {
            socket.inode != 0 && (socket.state == TcpState::Listen || !listeners.accepted(socket.local))
        });
    }

    fn drain_events(&mut self, look: &mut HostLook) {
        self.destroyed.clear();
        if self.events.is_none() {
            self.events = DestroyEvents::open().ok();
        }
        match self.events.as_mut().map(|events| events.drain(&mut self.destroyed)) {
            Some(Ok(lost)) => look.closes_incomplete |= lost,
            Some(Err(_)) => {
                self.events = None;
                look.closes_incomplete = true;
            }
            None => look.closes_incomplete = true,
        }
    }
}

/// The eyes of [`Pools`].
struct World<'a> {
    owners: &'a Owners,
    processes: &'a Processes,
    ports: &'a Ports,
    listeners: &'a Listeners,
    configured: &'a Configured,
    own_pid: Option<u32>,
}

impl pools::World for World<'_> {
    fn held(&self, cookie: u64) -> Held<'_> {
        self.owners.of(cookie)
    }

    fn is_ours(&self, pid: u32) -> bool {
        self.own_pid == Some(pid)
    }

    fn runs(&self, instance: Instance) -> bool {
        self.processes
            .get(instance.pid)
            .is_some_and(|process| process.instance == instance && process.zombie_since.is_none())
    }

    fn is_configured(&self, remote: SocketAddr) -> bool {
        self.configured.contains(remote)
    }

    fn is_watched(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.ports.contains(remote.port()) && !self.listeners.accepted(local)
    }
}

/// The row of a pool; `None` when its process ended meanwhile.
fn row_of(
    pool: pools::Seen,
    service: Option<&'static str>,
    processes: &Processes,
    config: &Config,
    ages: &HashMap<Instance, Duration>,
    proc: &mut Proc,
    watched: &mut Watched,
) -> Option<PoolRow> {
    let port = pool.key.remote.port();
    let remote = End::Tcp(pool.key.remote);
    let (owner, target, limit, process_age) = match pool.key.party {
        Party::Process(instance) => {
            let process = processes.get(instance.pid).filter(|process| process.instance == instance)?;
            let application = process.application.clone();
            let target = TargetKey::pool(&application.name, application.role, &remote);
            let declared = config.apps.iter().find(|app| application.declared && app.name == application.name);
            let limit = match declared.and_then(|app| app.pool_limit) {
                Some(limit) => Limit { value: Value::Known(limit.into()), source: "configuration".into() },
                None => limit_of(proc, watched, instance, process.uid, service, port),
            };
            (Owner::Seen { application, instance }, target, limit, ages.get(&instance).copied())
        }
        Party::Hidden(uid, cgroup) => {
            let target = TargetKey::pool(&format!("uid {uid}"), "unseen", &remote);
            let reason = Reason::Denied(format!("the environment of processes of uid {uid}"));
            (
                Owner::NotVisible { uid, cgroup },
                target,
                Limit { value: Value::Unknown(reason), source: "none".into() },
                None,
            )
        }
    };
    let pools::Seen { connections, births, closes, .. } = pool;
    Some(PoolRow { target, owner, remote, service, connections, births, closes, process_age, limit })
}

fn limit_of(
    proc: &mut Proc,
    watched: &mut Watched,
    instance: Instance,
    uid: u32,
    service: Option<&str>,
    port: u16,
) -> Limit {
    let unknown = |reason| Limit { value: Value::Unknown(reason), source: "none".into() };
    match watched.settings(proc, instance) {
        Some(Ok(settings)) => match settings.limit_for(service, port) {
            Some(bound) if bound.low == bound.high => {
                Limit { value: Value::Known(bound.low.into()), source: bound.source.into() }
            }
            Some(bound) => {
                Limit { value: Value::Between(bound.low.into(), bound.high.into()), source: bound.source.into() }
            }
            None => unknown(Reason::NotYet("no pool limit is configured, nor set in the process's environment")),
        },
        Some(Err(KernelError::Denied)) => unknown(Reason::Denied(format!("the environment of processes of uid {uid}"))),
        Some(Err(_)) | None => unknown(Reason::NotYet("the settings of the process")),
    }
}

fn pid_of(owner: &Owner) -> u32 {
    match owner {
        Owner::Seen { instance, .. } => instance.pid,
        Owner::NotVisible { .. } => 0,
    }
}

fn absent(config: &Config, processes: &Processes) -> Vec<TargetKey> {
    let expected = config.apps.iter().filter(|app| app.expected);
    let runs = |name: &Arc<str>| {
        processes.iter().any(|process| {
            process.application.declared && process.zombie_since.is_none() && process.application.name == *name
        })
    };
    expected.filter(|app| !runs(&app.name)).map(|app| TargetKey::process(&app.name, "main", None)).collect()
}

#[cfg(test)]
mod tests;
