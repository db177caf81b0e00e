//! The sockets of one look, sorted into those that listen, those that were opened here and those that were accepted.

use std::path::Path;

use super::endpoints::{Listeners, Ports};
use super::gaps::{self, POOL_CHECKS};
use super::{Gap, HostLook, USED_LATELY};
use crate::discover::TargetKey;
use crate::inspect::Reason;
use crate::kernel::sock_diag::message::{PortFilter, Row};
use crate::kernel::sock_diag::{DestroyEvents, Destroyed, SockDiag};
use crate::kernel::socket::{ByNumber, Network, Socket, TcpState};
use crate::kernel::{KernelError, proc_net};

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
        self.outbound.clear();
        if let Err((checks, reason)) = self.dump(proc_root, remote, local, look) {
            self.outbound.clear();
            look.gaps.push(Gap { checks, target: TargetKey::agent(), reason });
        }
        self.sort(remote, local);
        if self.events.is_none() {
            self.events = DestroyEvents::open().ok();
        }
        look.closes_incomplete |= self.drain_events();
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
        let outcome = match &self.source {
            Source::Netlink(_) => self.ask(remote, local),
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
        let is_incomplete = self.drain_events();
        self.destroyed.iter_mut().for_each(|it| it.cookie = network.identity(it.cookie));
        Ok(Told { cut, is_incomplete })
    }

    fn dump(
        &mut self,
        proc_root: &Path,
        remote: &Ports,
        local: &Ports,
        look: &mut HostLook,
    ) -> Result<(), (&'static [&'static str], Reason)> {
        if let Source::Netlink(_) = &self.source {
            match self.ask(remote, local) {
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

    /// Asks the kernel for the sockets; gives how many wanted ones are left out. To compare its ports costs the kernel a
    /// tenth of the row that it would send, so it sorts out what is of no interest wherever that is an eighth of all.
    fn ask(&mut self, remote: &Ports, local: &Ports) -> Result<usize, KernelError> {
        let filter = self.filter(remote, local);
        let Source::Netlink(diag) = &mut self.source else { return Err(KernelError::Absent) };
        let listen = TcpState::Listen.number();
        let wanted = |state, ours, other| state == listen || remote.contains(other) || local.contains(ours);
        let wanted = |row: &Row<'_>| wanted(row.state, row.local_port, row.remote_port);
        let mut answer = diag.dump(filter.as_ref(), wanted, &mut self.outbound);
        if filter.is_some() && answer.is_err() {
            self.outbound.clear();
            answer = diag.dump(None, wanted, &mut self.outbound);
            self.refuses_filter = answer.is_ok();
        }
        answer
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

    /// Takes the ends since the last look in; true when some were lost.
    fn drain_events(&mut self) -> bool {
        self.destroyed.clear();
        match self.events.as_mut().map(|events| events.drain(&mut self.destroyed)) {
            Some(Ok(lost)) => lost,
            Some(Err(_)) => {
                self.events = None;
                true
            }
            None => true,
        }
    }
}
