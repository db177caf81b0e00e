//! The sockets of one look, sorted into those that listen, those that were opened here and those that were accepted.

mod births;

use std::path::Path;

use births::{Births, Cookies};

use super::endpoints::{Listeners, Ports};
use super::gaps::{self, POOL_CHECKS};
use super::{Gap, HostLook, USED_LATELY};
use crate::discover::TargetKey;
use crate::inspect::Reason;
use crate::kernel::sock_diag::message::{PortFilter, Row};
use crate::kernel::sock_diag::{DestroyEvents, Destroyed, SockDiag};
use crate::kernel::socket::{ByNumber, Network, Socket, TcpState};
use crate::kernel::{KernelError, own, proc_net};

/// So many connections are looked up one by one; a dump of more is cheaper.
const LOOKED_UP: usize = 128;

/// Where socket rows come from.
#[derive(Debug)]
pub(super) enum Source {
    Netlink(SockDiag),
    /// Refused; why.
    Table(Reason),
}

/// What the dump and the destroy events of one look gave. The buffers are kept from look to look.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) source: Source,
    network: Network,
    /// Whether the kernel took a dump only without a filter.
    refuses_filter: bool,
    events: Option<DestroyEvents>,
    /// Whether ends since the last look are unknown.
    is_incomplete: bool,
    births: Births,
    pub(super) listening: Vec<Socket>,
    /// To ports that are watched.
    pub(super) outbound: Vec<Socket>,
    /// On the local ports that were asked for.
    pub(super) accepted: Vec<Socket>,
    /// Connections as they were 30 ms later.
    again: Vec<Socket>,
    pub(super) destroyed: Vec<Destroyed>,
    pub(super) listeners: Listeners,
}

fn used_lately(socket: &Socket) -> bool {
    [socket.sent_age, socket.received_age].into_iter().flatten().min().is_some_and(|it| it <= USED_LATELY)
}

/// What a look at the sockets of one network namespace left out.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Wanted sockets beyond the bound.
    pub(super) cut: usize,
    /// The ends between two looks are not all known.
    pub(super) is_incomplete: bool,
}

impl Sockets {
    /// Those of the agent's own network namespace.
    pub(super) fn open() -> Self {
        let source = match SockDiag::open() {
            Ok(diag) => Source::Netlink(diag),
            Err(error) => Source::Table(gaps::refused(&error)),
        };
        Self::of(Network::OWN, source, DestroyEvents::open().ok())
    }

    /// Those of the network namespace `network`, from `source`.
    pub(super) fn of(network: Network, source: Source, events: Option<DestroyEvents>) -> Self {
        Self {
            source,
            network,
            refuses_filter: false,
            events,
            is_incomplete: false,
            births: Births::default(),
            listening: Vec::new(),
            outbound: Vec::new(),
            accepted: Vec::new(),
            again: Vec::new(),
            destroyed: Vec::new(),
            listeners: Listeners::default(),
        }
    }

    /// What may be asked for other sockets; `None` where the kernel refuses.
    pub(super) fn diag(&mut self) -> Option<&mut SockDiag> {
        match &mut self.source {
            Source::Netlink(diag) => Some(diag),
            Source::Table(_) => None,
        }
    }

    /// Takes everything anew: connections to the ports `remote`, accepted ones on the ports `local`, all that listen.
    pub(super) fn look(&mut self, proc_root: &Path, remote: &Ports, local: &Ports, look: &mut HostLook) {
        self.begin();
        if let Err((checks, reason)) = self.dump(proc_root, remote, local, look) {
            self.outbound.clear();
            look.gaps.push(Gap { checks, target: TargetKey::agent(), reason });
        }
        self.sort(remote, local);
        if self.events.is_none() {
            self.events = DestroyEvents::open().ok();
        }
        self.drain_events();
        look.closes_incomplete |= self.is_incomplete;
    }

    /// The same in another network namespace; `process` is `/proc/<pid>` of one that is in it.
    ///
    /// # Errors
    /// When its sockets cannot be read now; what was seen of it before stays.
    pub(super) fn look_elsewhere(
        &mut self,
        process: &Path,
        remote: &Ports,
        local: &Ports,
    ) -> Result<Told, KernelError> {
        let before = std::mem::take(&mut self.outbound);
        self.begin();
        let outcome = match &self.source {
            Source::Netlink(_) => self.ask(process, remote, local),
            Source::Table(_) => self.read(process, remote, local),
        };
        let cut = match outcome {
            Ok(cut) => cut,
            Err(error) => {
                self.outbound = before;
                return Err(error);
            }
        };
        let network = self.network;
        self.outbound.iter_mut().for_each(|it| it.cookie = network.identity(it.cookie));
        self.sort(remote, local);
        self.drain_events();
        self.destroyed.iter_mut().for_each(|it| it.cookie = network.identity(it.cookie));
        Ok(Told { cut, is_incomplete: self.is_incomplete })
    }

    fn begin(&mut self) {
        self.outbound.clear();
        self.destroyed.clear();
        self.is_incomplete = false;
    }

    fn dump(
        &mut self,
        proc_root: &Path,
        remote: &Ports,
        local: &Ports,
        look: &mut HostLook,
    ) -> Result<(), (&'static [&'static str], Reason)> {
        if let Source::Netlink(_) = &self.source {
            match self.ask(proc_root, remote, local) {
                Ok(cut) => {
                    look.gaps.extend(gaps::cut(cut));
                    return Ok(());
                }
                Err(error @ (KernelError::Denied | KernelError::Absent)) => {
                    self.outbound.clear();
                    self.source = Source::Table(gaps::refused(&error));
                }
                Err(error) => return Err((POOL_CHECKS, gaps::refused(&error))),
            }
        }
        if let Source::Table(reason) = &self.source {
            // States and queues, but no ages and no ends between two looks.
            look.closes_incomplete = true;
            look.gaps.push(Gap { checks: &["pool.churn"], target: TargetKey::agent(), reason: reason.clone() });
        }
        let cut = self.read(proc_root, remote, local).map_err(|error| {
            let reason = match error {
                KernelError::Denied => Reason::Denied("/proc/net/tcp".into()),
                KernelError::Malformed(what) => Reason::Malformed(what.to_owned()),
                _ => Reason::Absent("/proc/net/tcp".into()),
            };
            (POOL_CHECKS, reason)
        })?;
        look.gaps.extend(gaps::cut(cut));
        Ok(())
    }

    /// Asks the kernel for the sockets; gives how many wanted ones are left out. Where none was born since the last dump the
    /// known ones are looked up; else all are asked for. `root` is `/proc`, or that of a process in the network.
    fn ask(&mut self, root: &Path, remote: &Ports, local: &Ports) -> Result<usize, KernelError> {
        if self.events.is_some() {
            self.drain_events();
        }
        if self.look_up_known(remote, local) {
            return Ok(0);
        }
        self.outbound.clear();
        let began = own::thread_time();
        let count = self.events.as_ref().and_then(|_| self.births.count(root));
        let mut cookies = Cookies::default();
        // To compare its ports costs the kernel a tenth of the row that it would send, so it sorts out what is of no interest
        // wherever that is an eighth of all; but what is to be remembered has to be shown.
        let filter = if count.is_some() { None } else { self.filter(remote, local) };
        let Source::Netlink(diag) = &mut self.source else { return Err(KernelError::Absent) };
        let listen = TcpState::Listen.number();
        let mut wanted = |row: &Row<'_>| {
            if count.is_some() {
                cookies.insert(row.cookie());
            }
            row.state == listen || remote.contains(row.remote_port) || local.contains(row.local_port)
        };
        let mut answer = diag.dump(filter.as_ref(), &mut wanted, &mut self.outbound);
        if filter.is_some() && answer.is_err() {
            self.outbound.clear();
            answer = diag.dump(None, &mut wanted, &mut self.outbound);
            self.refuses_filter = answer.is_ok();
        }
        if let (Some(count), Ok(0)) = (count, &answer) {
            let known: Vec<Socket> = self.outbound.iter().filter(|it| it.state != TcpState::Listen).copied().collect();
            if known.len() <= LOOKED_UP {
                let cost = own::thread_time().saturating_sub(began);
                self.births.shown(count, cookies, known, (remote, local), cost);
            }
        }
        answer
    }

    /// Whether no socket was born since the last dump and all that it showed are there; then they are in `outbound`.
    fn look_up_known(&mut self, remote: &Ports, local: &Ports) -> bool {
        let began = own::thread_time();
        let Source::Netlink(diag) = &mut self.source else { return false };
        let Some(known) = self.births.none_since(remote, local) else { return false };
        let asked: Vec<&Socket> = known.iter().collect();
        let is_told = matches!(diag.look_up(&asked, &mut self.outbound), Ok(true));
        let cookies: Cookies = self.outbound.iter().map(|it| it.cookie).collect();
        if !is_told || !known.iter().all(|it| cookies.contains(&it.cookie)) {
            self.births.forget();
            return false;
        }
        let is_told = matches!(diag.dump_listening(&mut self.outbound), Ok(0));
        self.births.took(own::thread_time().saturating_sub(began));
        is_told
    }

    fn filter(&self, remote: &Ports, local: &Ports) -> Option<PortFilter> {
        if self.refuses_filter { None } else { PortFilter::of(remote.iter(), local.iter()) }
    }

    /// Reads the tables beneath `root`; gives how many wanted sockets are left out.
    fn read(&mut self, root: &Path, remote: &Ports, local: &Ports) -> Result<usize, KernelError> {
        let wanted = |ours, other, state| state == TcpState::Listen || remote.contains(other) || local.contains(ours);
        proc_net::read(root, wanted, &mut self.outbound)
    }

    /// Segments sent by now, for each connection to the ports `remote` that was used lately; empty where the kernel does not tell.
    pub(super) fn sent_again(&mut self, remote: &Ports) -> ByNumber<u32> {
        self.again.clear();
        let filter = self.filter(remote, &Ports::of([]));
        let lately: Vec<&Socket> = self.outbound.iter().filter(|it| used_lately(it)).take(LOOKED_UP + 1).collect();
        if let Source::Netlink(diag) = &mut self.source {
            let are_few = lately.len() <= LOOKED_UP;
            let told = match are_few.then(|| diag.look_up(&lately, &mut self.again)) {
                Some(Ok(true)) => Ok(0),
                Some(Ok(false)) | None => {
                    diag.dump(filter.as_ref(), |row| remote.contains(row.remote_port), &mut self.again)
                }
                Some(Err(error)) => Err(error),
            };
            if told.is_err() {
                // Half of it is no answer; the next look tells why.
                self.again.clear();
            }
        }
        self.again.iter().filter_map(|it| Some((self.network.identity(it.cookie), it.segments_out?))).collect()
    }

    fn sort(&mut self, remote: &Ports, local: &Ports) {
        self.listening.clear();
        self.accepted.clear();
        self.listeners.clear();
        for socket in self.outbound.iter().filter(|socket| socket.state == TcpState::Listen) {
            self.listeners.add(socket.local);
        }
        let Self { listening, accepted, listeners, .. } = self;
        self.outbound.retain(|socket| {
            // Inode 0: the process has closed it, and the kernel says goodbye to the peer alone; or it waits to be
            // accepted.
            if socket.inode == 0 {
                return false;
            }
            if socket.state == TcpState::Listen {
                listening.push(*socket);
                return false;
            }
            if listeners.accepted(socket.local) {
                if local.contains(socket.local.port()) {
                    accepted.push(*socket);
                }
                return false;
            }
            remote.contains(socket.remote.port())
        });
    }

    /// Takes the ends since the last time in.
    fn drain_events(&mut self) {
        let before = self.destroyed.len();
        match self.events.as_mut().map(|events| events.drain(&mut self.destroyed)) {
            Some(Ok(false)) => (),
            Some(Ok(true)) => self.lose_events(),
            Some(Err(_)) => {
                self.events = None;
                self.lose_events();
            }
            None => self.lose_events(),
        }
        self.births.ended(&self.destroyed[before..]);
    }

    fn lose_events(&mut self) {
        self.is_incomplete = true;
        self.births.forget();
    }
}
