//! The sockets of one look, sorted into those that listen, those that were opened here and those that were accepted.

use std::path::Path;
use std::time::Duration;

use super::endpoints::{Listeners, Ports};
use super::gaps::{self, POOL_CHECKS};
use super::sieve::Sieve;
use super::{Gap, HostLook};
use crate::discover::TargetKey;
use crate::inspect::Reason;
use crate::kernel::sock_diag::message::Row;
use crate::kernel::sock_diag::{DestroyEvents, Destroyed, SockDiag};
use crate::kernel::socket::{ByNumber, Socket, TcpState};
use crate::kernel::{KernelError, proc_net};

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
    sieve: Sieve,
    events: Option<DestroyEvents>,
    pub(super) listening: Vec<Socket>,
    /// To ports that are watched.
    pub(super) outbound: Vec<Socket>,
    /// On the local ports that were asked for.
    pub(super) accepted: Vec<Socket>,
    /// Connections of the second dump.
    again: Vec<Socket>,
    pub(super) destroyed: Vec<Destroyed>,
    pub(super) listeners: Listeners,
}

impl Sockets {
    pub(super) fn open() -> Self {
        let source = match SockDiag::open() {
            Ok(diag) => Source::Netlink(diag),
            Err(error) => Source::Table(gaps::refused(&error)),
        };
        Self {
            source,
            sieve: Sieve::default(),
            events: DestroyEvents::open().ok(),
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
    pub(super) fn look(&mut self, proc_root: &Path, remote: &Ports, local: &Ports, now: Duration, look: &mut HostLook) {
        self.outbound.clear();
        if let Err((checks, reason)) = self.dump(proc_root, remote, local, now, look) {
            self.outbound.clear();
            look.gaps.push(Gap { checks, target: TargetKey::agent(), reason });
        }
        self.sort(remote, local);
        self.drain_events(look);
    }

    fn dump(
        &mut self,
        proc_root: &Path,
        remote: &Ports,
        local: &Ports,
        now: Duration,
        look: &mut HostLook,
    ) -> Result<(), (&'static [&'static str], Reason)> {
        let listen = TcpState::Listen.number();
        if let Source::Netlink(diag) = &mut self.source {
            let wanted = |state, ours, other| state == listen || remote.contains(other) || local.contains(ours);
            let wanted = |row: &Row<'_>| wanted(row.state, row.local_port, row.remote_port);
            let mut filter = self.sieve.filter(remote, local, now);
            let mut answer = diag.dump(filter.as_ref(), wanted, &mut self.outbound);
            if filter.is_some() && answer.is_err() {
                self.sieve.refuse();
                self.outbound.clear();
                filter = None;
                answer = diag.dump(None, wanted, &mut self.outbound);
            }
            if filter.is_none()
                && let Ok(told) = &answer
            {
                self.sieve.count(told.rows, self.outbound.len(), now);
            }
            match answer {
                Ok(told) if told.cut > 0 => {
                    let what = format!("more than 65536 connections to watched endpoints; {} are left out", told.cut);
                    let reason = Reason::Absent(what);
                    look.gaps.push(Gap { checks: POOL_CHECKS, target: TargetKey::agent(), reason });
                    return Ok(());
                }
                Ok(_) => return Ok(()),
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
        let wanted = |ours, other, state| state == TcpState::Listen || remote.contains(other) || local.contains(ours);
        proc_net::read(proc_root, wanted, &mut self.outbound).map_err(|error| {
            let reason = match error {
                KernelError::Denied => Reason::Denied("/proc/net/tcp".into()),
                KernelError::Malformed(what) => Reason::Malformed(what.to_owned()),
                _ => Reason::Absent("/proc/net/tcp".into()),
            };
            (POOL_CHECKS, reason)
        })
    }

    /// Segments sent by now, for each connection to the ports `remote`; empty where the kernel does not tell.
    pub(super) fn sent_again(&mut self, remote: &Ports) -> ByNumber<u32> {
        self.again.clear();
        if let Source::Netlink(diag) = &mut self.source
            && diag
                .dump(self.sieve.again(remote).as_ref(), |row| remote.contains(row.remote_port), &mut self.again)
                .is_err()
        {
            // Half a dump is no answer; the next look tells why.
            self.again.clear();
        }
        self.again.iter().filter_map(|it| Some((it.cookie, it.segments_out?))).collect()
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
