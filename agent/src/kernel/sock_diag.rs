//! TCP and unix sockets of this network namespace over netlink, and the news of TCP sockets that ended.
//!
//! A dump gives every socket with its age, whoever owns it, and needs no right. The destroy groups give what no dump
//! can: connections that lived and died between two looks.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use super::KernelError;
use super::socket::Socket;

pub mod message;
pub mod unix;

use message::{Asked, Family, Frame, Message, PortFilter, Row};
use unix::UnixRow;

/// The kernel fills at most 32 KiB in one datagram of a dump.
const DATAGRAM: usize = 64 * 1024;
/// Rows kept of one dump; a host with more wanted sockets than this is told of as cut.
const MAX_SOCKETS: usize = 65_536;
/// Destroy events read in one look.
const MAX_EVENTS: usize = 65_536;
/// Room for some thousand destroy events between two looks; the kernel grants what `rmem_max` allows.
const EVENT_ROOM: usize = 4 << 20;
/// `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY`, as a mask.
const DESTROY_GROUPS: u32 = 0x1 | 0x4;

/// Asks for dumps of sockets.
#[derive(Debug)]
pub struct SockDiag {
    socket: OwnedFd,
    /// Of the namespace that its threads are in: only there a new socket is of the same one.
    is_home: bool,
    /// Whether the one request for both families was refused where one for each is not.
    by_family: bool,
    datagram: Vec<u8>,
    sequence: u32,
}

impl SockDiag {
    /// Opens the netlink socket.
    ///
    /// # Errors
    /// `Absent` or `Denied` where the kernel or a sandbox refuses the family.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self {
            socket: open_dump_socket()?,
            is_home: true,
            by_family: false,
            datagram: vec![0; DATAGRAM],
            sequence: 0,
        })
    }

    /// The same in the network namespace that the calling thread has entered, for threads that have not. Once a dump
    /// fails it is of no more use.
    ///
    /// # Errors
    /// As [`SockDiag::open`].
    pub fn open_elsewhere() -> Result<Self, KernelError> {
        Ok(Self { is_home: false, ..Self::open()? })
    }

    /// Appends every TCP socket, v4 and v6, TIME_WAIT left out, that `wanted` says yes to, of those that pass the
    /// kernel's own `filter`; gives how many of them were beyond the bound and are left out. The order is the kernel's;
    /// the dump is not atomic: a socket may end or change its state while it runs.
    ///
    /// # Errors
    /// When the kernel refuses or breaks off. The next call begins anew.
    pub fn dump(
        &mut self,
        filter: Option<&PortFilter>,
        wanted: impl FnMut(&Row<'_>) -> bool,
        sockets: &mut Vec<Socket>,
    ) -> Result<usize, KernelError> {
        self.dump_both(Asked::All, filter, wanted, sockets)
    }

    /// The same for what listens alone; all of it.
    ///
    /// # Errors
    /// As [`SockDiag::dump`].
    pub fn dump_listening(&mut self, sockets: &mut Vec<Socket>) -> Result<usize, KernelError> {
        self.dump_both(Asked::Listening, None, |_| true, sockets)
    }

    fn dump_both(
        &mut self,
        asked: Asked,
        filter: Option<&PortFilter>,
        mut wanted: impl FnMut(&Row<'_>) -> bool,
        sockets: &mut Vec<Socket>,
    ) -> Result<usize, KernelError> {
        if !self.by_family {
            let before = sockets.len();
            match self.dump_of((None, asked), filter, &mut wanted, sockets) {
                Ok(cut) => return Ok(cut),
                Err(_) => sockets.truncate(before),
            }
        }
        let mut cut = self.dump_of((Some(Family::V4), asked), filter, &mut wanted, sockets)?;
        match self.dump_of((Some(Family::V6), asked), filter, &mut wanted, sockets) {
            Ok(of_v6) => cut += of_v6,
            // A kernel without IPv6 has no such table, and so no such socket.
            Err(KernelError::Gone | KernelError::Absent) => (),
            Err(error) => return Err(error),
        }
        self.by_family = true;
        Ok(cut)
    }

    /// One request: for the sockets of a family, or of both.
    fn dump_of(
        &mut self,
        (family, asked): (Option<Family>, Asked),
        filter: Option<&PortFilter>,
        wanted: &mut impl FnMut(&Row<'_>) -> bool,
        sockets: &mut Vec<Socket>,
    ) -> Result<usize, KernelError> {
        let mut cut = 0;
        let take = |body: &[u8]| {
            let Some(row) = Row::parse(body).filter(|row| wanted(row)) else { return };
            if sockets.len() >= MAX_SOCKETS {
                cut += 1;
            } else if let Some(socket) = row.socket() {
                sockets.push(socket);
            }
        };
        self.ask(|sequence| message::dump_request(family, asked, sequence, filter), take)?;
        Ok(cut)
    }

    /// Appends those of some connections that are still there, as they are now: each is looked up by its ends, which the size of the
    /// kernel's table does not make dearer as it does a dump. Says false, and asks for none, where one of them cannot be looked up so.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn look_up(&mut self, connections: &[&Socket], found: &mut Vec<Socket>) -> Result<bool, KernelError> {
        /// Looked up with one request: their answers fit into the socket's buffer.
        const AT_ONCE: usize = 32;
        let first = self.sequence.wrapping_add(1);
        let requests = connections.iter().zip(0..);
        let requests = requests.map(|(it, at)| message::request_of(it.local, it.remote, first.wrapping_add(at)));
        let Some(requests) = requests.collect::<Option<Vec<_>>>() else { return Ok(false) };
        for part in requests.chunks(AT_ONCE) {
            let from = self.sequence.wrapping_add(1);
            self.sequence = self.sequence.wrapping_add(part.len() as u32);
            let answer = self.exchange_each(&part.concat(), from, part.len(), |row| {
                // What it asked for says nothing of states here: the kernel's own goodbye is found, too.
                found.extend(row.socket().filter(|_| row.is_of_asked_state()));
            });
            if answer.is_err() && self.is_home {
                // Answers that come late are another's by then.
                self.socket = open_dump_socket()?;
            }
            answer?;
        }
        Ok(true)
    }

    /// Sends requests with the sequences from `first` on, and reads one answer to each.
    fn exchange_each(
        &mut self,
        requests: &[u8],
        first: u32,
        count: usize,
        mut take: impl FnMut(&Row<'_>),
    ) -> Result<(), KernelError> {
        net::send(&self.socket, requests, SendFlags::empty())?;
        let mut left = count;
        while left > 0 {
            let kept = self.receive()?;
            for message in message::messages(&self.datagram[..kept]) {
                let is_ours = |sequence: u32| (sequence.wrapping_sub(first) as usize) < count;
                match message {
                    Message::Row { sequence, row } if is_ours(sequence) => {
                        take(&row);
                        left = left.saturating_sub(1);
                    }
                    // It has gone.
                    Message::Failed(sequence, number) if is_ours(sequence) => match Errno::from_raw_os_error(number) {
                        Errno::NOENT => left = left.saturating_sub(1),
                        error => return Err(error.into()),
                    },
                    _ => (),
                }
            }
        }
        Ok(())
    }

    /// The next datagram, into the buffer; its length.
    fn receive(&mut self) -> Result<usize, KernelError> {
        loop {
            let (kept, length) = match net::recv(&self.socket, &mut self.datagram[..], RecvFlags::TRUNC) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if length > kept || kept == 0 {
                return Err(KernelError::Malformed("a netlink datagram longer than the kernel's bound"));
            }
            return Ok(kept);
        }
    }

    /// Shows every unix socket that listens, and every connected one unless `only_listening`.
    ///
    /// # Errors
    /// As [`SockDiag::dump`]; `Gone` or `Absent` where the kernel cannot tell of unix sockets.
    pub fn dump_unix(&mut self, only_listening: bool, mut take: impl FnMut(&UnixRow<'_>)) -> Result<(), KernelError> {
        let take = |body: &[u8]| {
            if let Some(row) = UnixRow::parse(body) {
                take(&row);
            }
        };
        self.ask(|sequence| unix::dump_request(only_listening, sequence), take)
    }

    /// Sends one request and gives the body of each row of the answer.
    fn ask<R: AsRef<[u8]>>(
        &mut self,
        request: impl FnOnce(u32) -> R,
        take: impl FnMut(&[u8]),
    ) -> Result<(), KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let answer = self.exchange(request(self.sequence).as_ref(), take);
        if answer.is_err() && self.is_home {
            // A dump broken off goes on in the kernel; only a new socket is clean.
            self.socket = open_dump_socket()?;
        }
        answer
    }

    fn exchange(&mut self, request: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), KernelError> {
        net::send(&self.socket, request, SendFlags::empty())?;
        loop {
            let kept = self.receive()?;
            for frame in message::frames(&self.datagram[..kept]) {
                match frame {
                    Frame::Body { sequence, body } if sequence == self.sequence => take(body),
                    Frame::Done(sequence) if sequence == self.sequence => return Ok(()),
                    Frame::Failed(sequence, number) if sequence == self.sequence => {
                        return Err(Errno::from_raw_os_error(number).into());
                    }
                    // The rest of a dump that was broken off.
                    _ => (),
                }
            }
        }
    }
}

fn open_dump_socket() -> Result<OwnedFd, KernelError> {
    let socket = open_netlink(SocketFlags::CLOEXEC)?;
    // A dump is made while it is read, so nothing is waited for; a kernel that breaks this must not hang the agent.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(2)))?;
    Ok(socket)
}

fn open_netlink(flags: SocketFlags) -> Result<OwnedFd, KernelError> {
    let family = AddressFamily::NETLINK;
    Ok(net::socket_with(family, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?)
}

/// A connection that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destroyed {
    /// Its identity. The inode is gone by now.
    pub cookie: u64,
    /// Our end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// Hears of TCP sockets that end.
#[derive(Debug)]
pub struct DestroyEvents {
    socket: OwnedFd,
    datagram: Vec<u8>,
}

impl DestroyEvents {
    /// Begins to listen.
    ///
    /// # Errors
    /// `Absent` or `Denied` where the kernel or a sandbox refuses.
    pub fn open() -> Result<Self, KernelError> {
        Self::with_room(EVENT_ROOM)
    }

    fn with_room(bytes: usize) -> Result<Self, KernelError> {
        let socket = open_netlink(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        // More than `rmem_max` needs CAP_NET_ADMIN, which nothing here asks for; less room only makes a bound lower.
        if sockopt::set_socket_recv_buffer_size_force(&socket, bytes).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
        }
        // The groups must come with the bind: membership of an unbound socket hears nothing and reports no error.
        net::bind(&socket, &netlink::SocketAddrNetlink::new(0, DESTROY_GROUPS))?;
        Ok(Self { socket, datagram: vec![0; 8192] })
    }

    /// Appends the connections that ended since the last call (listening sockets are none). Never waits.
    /// `Ok(true)`: some were lost, the count is a lower bound.
    ///
    /// # Errors
    /// When the socket fails; it should then be opened anew.
    pub fn drain(&mut self, ended: &mut Vec<Destroyed>) -> Result<bool, KernelError> {
        let mut lost = false;
        for _ in 0..MAX_EVENTS {
            match net::recv(&self.socket, &mut self.datagram[..], RecvFlags::empty()) {
                Ok((kept, _)) => {
                    for message in message::messages(&self.datagram[..kept]) {
                        if let Message::Row { row, .. } = message
                            && row.remote_port != 0
                        {
                            let (local, remote) = row.ends();
                            ended.push(Destroyed { cookie: row.cookie(), local, remote });
                        }
                    }
                }
                Err(Errno::AGAIN) => return Ok(lost),
                Err(Errno::NOBUFS) => lost = true,
                Err(Errno::INTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
        // As many as one look reads; what is still there is read by the next.
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
