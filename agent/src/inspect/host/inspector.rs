//! One look at the host: dump, difference, owners, pools, processes.

use std::collections::{BTreeSet, HashMap};
use std::iter;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::config::{ABOUT, Config};
use super::endpoints::{Configured, Ports};
use super::found_ports::{self, FoundPorts};
use super::gaps::{self, ALL_CHECKS, Hidden, POOL_CHECKS, PROCESS_CHECKS};
use super::networks::{Networks, Other};
use super::peers::Peers;
use super::pools::{self, Batch, Pools};
use super::rows::{pid_of, row_of};
use super::services::{self, Services};
use super::sockets::{Sockets, Source};
use super::unix::UnixSockets;
use super::watched::{self, MAX_WATCHED, Watched};
use super::world::{World, is_agent};
use super::{Ended, Gap, HostLook, Owner, PoolRow, Unattributed, Vantage, measures};
use crate::discover::application::Declared;
use crate::discover::processes::Processes;
use crate::discover::{Instance, TargetKey};
use crate::inspect::{About, Inspector, Look, Reading, Reason, Rows, Value};
use crate::kernel::owners::{Candidate, Held, Kin, Owners, Wanted};
use crate::kernel::proc::Proc;
use crate::kernel::reader::Reader;
use crate::kernel::socket::{Network, Socket};

/// Ends that wait to be heard; beyond, the tasks that tell them wait.
const ENDS: usize = 256;

/// From the first dump to the second.
const ORDER_TEST: Duration = Duration::from_millis(30);

/// Looks at the sockets and processes of this host.
#[derive(Debug)]
pub struct HostInspector {
    // Only one look runs at a time. The lock is there for a look that was given up in mid-air: its thread goes on.
    state: Arc<Mutex<State>>,
    reader: Reader,
    /// Set while a look is on its way: found set, the last look was given up and its births and closes with it.
    is_looking: bool,
}

impl HostInspector {
    /// An inspector, and the ends of watched processes as they happen. Once that receiver is dropped, ends are told in
    /// the next look instead.
    pub fn new(config: Config) -> (Self, mpsc::Receiver<Ended>) {
        let (out, ended) = mpsc::channel(ENDS);
        let reader = config.reader.clone();
        let state = State::new(config, out);
        (Self { state: Arc::new(Mutex::new(state)), reader, is_looking: false }, ended)
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
            let look = self.reader.look(move || {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.look(now)
            });
            let mut look = look.await.unwrap_or_default();
            look.closes_incomplete |= is_incomplete;
            self.is_looking = false;
            let observations = measures::observe(&look);
            Reading { rows: Rows::Host(look), observations }
        })
    }
}

#[derive(Debug)]
struct State {
    config: Config,
    ports: Ports,
    /// Servers that were configured or found at the look before.
    configured: Configured,
    found: FoundPorts,
    proc: Result<Proc, Reason>,
    sockets: Sockets,
    processes: Processes,
    owners: Owners,
    pools: Pools,
    watched: Option<Watched>,
    out: mpsc::Sender<Ended>,
    peers: Peers,
    unix: UnixSockets,
    services: Services,
    networks: Networks,
    has_looked: bool,
    /// Its sockets into the kernel: whoever looks opens them.
    is_open: bool,
    // A buffer, kept from look to look.
    wanted: Vec<Wanted>,
}

impl State {
    fn new(config: Config, out: mpsc::Sender<Ended>) -> Self {
        let declared =
            config.apps.iter().map(|app| Declared { name: app.name.clone(), command: app.command.clone() }).collect();
        Self {
            ports: Ports::known_and(config.ports.iter().copied()),
            configured: Configured::default(),
            found: FoundPorts::new(),
            proc: Proc::open(&config.proc_root).map_err(|error| gaps::no_proc(&error)),
            sockets: Sockets::of(Network::OWN, Source::Table(Reason::NotYet("nobody has looked yet")), None),
            processes: Processes::new(declared),
            owners: Owners::default(),
            pools: Pools::default(),
            watched: None,
            out,
            peers: Peers::default(),
            unix: UnixSockets::default(),
            services: Services::default(),
            networks: Networks::new(&config.proc_root, config.namespaces),
            has_looked: false,
            is_open: false,
            wanted: Vec::new(),
            config,
        }
    }

    fn look(&mut self, now: Duration) -> HostLook {
        let mut look = HostLook::default();
        if self.proc.is_err() {
            self.proc = Proc::open(&self.config.proc_root).map_err(|error| gaps::no_proc(&error));
        }
        let mut configured = self.config.endpoints.configured();
        configured.add(&self.found);
        let ports = Ports::known_and(self.config.ports.iter().copied().chain(configured.ports()));
        let ports_before = std::mem::replace(&mut self.ports, ports);
        let near = if self.has_looked {
            Ports::of(self.peers.sought_ports(now).chain(self.services.ports()))
        } else {
            // At first every connection is new.
            self.ports.clone()
        };
        self.has_looked = true;
        if !std::mem::replace(&mut self.is_open, true) {
            self.sockets = Sockets::open();
        }
        let dumped = Instant::now();
        self.sockets.look(&self.config.proc_root, &self.ports, &near, &mut look);
        if let Err(error) = self.unix.look(self.sockets.diag(), &configured, now)
            && configured.has_paths()
        {
            look.gaps.push(Gap { checks: POOL_CHECKS, target: TargetKey::agent(), reason: gaps::no_unix(&error) });
        }
        self.peers.look(&self.sockets.outbound, &self.sockets.accepted, |port| near.contains(port), now);
        let proc = match &mut self.proc {
            Ok(proc) => proc,
            Err(reason) => {
                look.gaps.push(Gap { checks: ALL_CHECKS, target: TargetKey::agent(), reason: reason.clone() });
                return look;
            }
        };
        match self.processes.refresh(proc, now) {
            Ok(ended) => {
                ended.iter().for_each(|instance| self.owners.forget(instance.pid));
                self.networks.find(&self.processes, &ended, now);
            }
            Err(error) => {
                look.gaps.push(Gap { checks: ALL_CHECKS, target: TargetKey::agent(), reason: gaps::no_proc(&error) });
            }
        }
        self.networks.look(&self.ports, now, &mut look);
        let elsewhere = &self.networks;
        self.wanted.clear();
        let wanted =
            |socket: &Socket, kin| Wanted { cookie: socket.cookie, inode: socket.inode, kin, is_thorough: true };
        self.wanted.extend(self.sockets.listening.iter().map(|it| wanted(it, Kin::At(it.local.port()))));
        self.wanted.extend(self.sockets.outbound.iter().map(|it| wanted(it, Kin::To(it.remote))));
        self.wanted.extend(self.peers.wanted());
        self.wanted.extend(self.unix.wanted());
        self.wanted.extend(self.services.wanted(&self.sockets.accepted));
        for other in elsewhere.iter() {
            let Sockets { listening, outbound, accepted, .. } = &other.sockets;
            self.wanted.extend(listening.iter().map(|it| wanted(it, Kin::At(it.local.port()))));
            self.wanted.extend(outbound.iter().map(|it| wanted(it, Kin::To(it.remote))));
            self.wanted.extend(other.peers.wanted());
            self.wanted.extend(other.services.wanted(accepted));
        }
        let candidates: Vec<Candidate> = self.processes.candidates().collect();
        self.owners.look(proc, &self.wanted, &candidates, now);
        self.peers.settle(&mut self.owners, proc, now);
        for other in self.networks.iter_mut() {
            other.peers.settle(&mut self.owners, proc, now);
        }

        let mut listens: HashMap<Instance, Vec<SocketAddr>> = HashMap::new();
        let mut hidden = Hidden::default();
        let elsewhere = self.networks.iter().flat_map(|it| &it.sockets.listening);
        for socket in self.sockets.listening.iter().chain(elsewhere) {
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

        let world = World {
            owners: &self.owners,
            processes: &self.processes,
            ports: &self.ports,
            before: (&ports_before, &self.configured),
            peers: &self.peers,
            unix: &self.unix,
            listeners: &self.sockets.listeners,
            networks: &self.networks,
            configured: &configured,
            own_pid: self.config.own_pid,
        };
        let Sockets { outbound, destroyed, .. } = &self.sockets;
        let own = Batch { network: Network::OWN, is_new: false, sockets: outbound, destroyed };
        let batches: Vec<Batch<'_>> = iter::once(own).chain(self.networks.iter().map(Other::batch)).collect();
        let given = pools::Given { sockets: &batches, unix: &self.unix.clients, now };
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
            none => none.insert(Watched::new(proc, self.config.reader.clone(), self.out.clone())),
        };
        let declared = self.processes.iter().filter(|process| process.application.declared);
        let mut wanted: BTreeSet<Instance> = declared
            .filter(|process| process.zombie_since.is_none())
            .map(|process| process.instance)
            .chain(listens.keys().copied())
            .chain(self.pools.holders(&world))
            .filter(|instance| !is_agent(&self.processes, own_pid, instance.pid))
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
        self.found = found_ports::found(&listens, &self.processes, watched.named_ports(proc));
        look.processes.sort_by(|a, b| (&a.target, a.instance).cmp(&(&b.target, b.instance)));
        look.ended = watched.unheard();

        let given = services::Given {
            listening: &self.sockets.listening,
            accepted: &self.sockets.accepted,
            owners: &self.owners,
            processes: &self.processes,
            rows: &look.processes,
            holders: &self.pools.holders(&world).collect(),
            hidden: &seen.pools.iter().filter_map(|pool| pool.key.party.hidden()).collect(),
            servers: &self.ports,
            own_pid,
        };
        look.services = self.services.look(&given);
        for Other { sockets, services, .. } in self.networks.iter_mut().filter(|it| it.vantage == Vantage::Entered) {
            let Sockets { listening, accepted, .. } = &*sockets;
            look.services.extend(services.look(&services::Given { listening, accepted, ..given }));
        }

        let ages: HashMap<Instance, Duration> = look.processes.iter().map(|row| (row.instance, row.age)).collect();
        let denied = gaps::denied_users(&self.owners, &self.processes);
        look.surroundings.processes = candidates.len();
        look.surroundings.refusing = self.owners.denied().count();
        for pool in seen.pools {
            let service = configured.service_at(&pool.key.remote);
            let vantage = self.networks.vantage(pool.key.network);
            let mut row = row_of(pool, service, &self.processes, &self.config, &ages, proc, watched);
            if let Some(row) = &mut row {
                row.closes_incomplete |= vantage.untold().is_some();
                row.vantage = vantage;
            }
            if let Some(PoolRow { owner: Owner::NotVisible { uid, .. }, limit, .. }) = &mut row {
                hidden.connected(*uid);
                limit.value = Value::Unknown(gaps::why_hidden(*uid, &denied));
            }
            look.pools.extend(row);
        }
        look.pools.sort_by(|a, b| (&a.target, pid_of(&a.owner)).cmp(&(&b.target, pid_of(&b.owner))));
        if self.config.attention.wants_order_test() {
            self.pick(&mut look.pools, dumped);
        }
        look.absent = absent(&self.config, &self.processes);
        look.surroundings.has_unheld = hidden.tell(&denied, &mut look.gaps);
        self.configured = configured;
        look
    }

    /// Dumps once more, and notes which connections have sent something since the first dump.
    fn pick(&mut self, pools: &mut [PoolRow], dumped: Instant) {
        std::thread::sleep(ORDER_TEST.saturating_sub(dumped.elapsed()));
        let mut sent = self.sockets.sent_again(&self.ports);
        self.networks.sent_again(&self.ports, &mut sent);
        for connection in pools.iter_mut().flat_map(|pool| &mut pool.connections) {
            let (before, after) = (connection.segments_out, sent.get(&connection.cookie));
            connection.picked = before.zip(after.copied()).map(|(before, after)| before != after);
        }
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
