//! Connections over unix sockets to servers of this host.
//!
//! A client's socket has no name; it leads to the one that the server accepted, which bears its listener's path. There
//! are no ages here and no news of sockets that ended: births and closes are what differs between two looks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::endpoints::{Configured, service_of_path};
use crate::kernel::owners::{Kin, Wanted};
use crate::kernel::sock_diag::SockDiag;
use crate::kernel::socket::{ByNumber, TcpState};
use crate::kernel::{KernelError, unix_path};

/// While no known server listens on a path, it is looked for so often.
const PROBE: Duration = Duration::from_secs(10);
/// A kernel that cannot tell of unix sockets is asked again after this.
const REFUSED: Duration = Duration::from_secs(60);
/// Paths of servers that are kept.
const MAX_PATHS: usize = 256;
/// Connected sockets that are kept of one dump.
const MAX_SOCKETS: usize = 65_536;

/// A connection of a process here to a server's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnixClient {
    pub(super) cookie: u64,
    pub(super) inode: u64,
    pub(super) uid: u32,
    /// Where the server listens.
    pub(super) path: Arc<str>,
    pub(super) state: TcpState,
    /// Bytes that the server has not read.
    pub(super) unsent: u32,
    /// The listener's inode, and the other end.
    listener: u64,
    peer: Option<(u64, u64)>,
}

/// A listening socket of a server.
#[derive(Debug, Clone)]
struct Listener {
    inode: u64,
    path: Arc<str>,
}

/// What is known of unix sockets.
#[derive(Debug, Default)]
pub(super) struct UnixSockets {
    /// By the name that it was bound to.
    listeners: HashMap<Box<[u8]>, Listener>,
    pub(super) clients: Vec<UnixClient>,
    by_cookie: ByNumber<usize>,
    probe_due: Duration,
}

/// A connected socket without a name: somebody's client, perhaps of a server that is of interest.
#[derive(Debug, Clone, Copy)]
struct Nameless {
    cookie: u64,
    inode: u64,
    uid: u32,
    peer: u64,
    is_shut: bool,
    unsent: u32,
}

impl UnixSockets {
    /// Takes one look, which costs nothing while nobody of interest listens.
    ///
    /// # Errors
    /// When the kernel refuses; what was seen last stays.
    pub(super) fn look(
        &mut self,
        diag: Option<&mut SockDiag>,
        configured: &Configured,
        now: Duration,
    ) -> Result<(), KernelError> {
        let Some(diag) = diag else { return Ok(()) };
        if self.listeners.is_empty() && self.clients.is_empty() {
            if now < self.probe_due {
                return Ok(());
            }
            self.probe_due = now + PROBE;
            let mut found = HashMap::new();
            diag.dump_unix(true, |row| note_listener(row.path(), row.inode, &self.listeners, configured, &mut found))
                .inspect_err(|_| self.probe_due = now + REFUSED)?;
            self.listeners = found;
            if self.listeners.is_empty() {
                return Ok(());
            }
        }
        let (mut found, mut nameless, mut accepted) = (HashMap::new(), Vec::new(), ByNumber::default());
        diag.dump_unix(false, |row| match row.path() {
            path if row.is_listening => note_listener(path, row.inode, &self.listeners, configured, &mut found),
            Some(path) if accepted.len() < MAX_SOCKETS => {
                if let Some(listener) = self.listeners.get(path) {
                    accepted.insert(row.inode, (row.cookie, listener.clone()));
                }
            }
            None if row.name.is_none() && row.inode != 0 && nameless.len() < MAX_SOCKETS => nameless.push(Nameless {
                cookie: row.cookie,
                inode: row.inode,
                uid: row.uid.unwrap_or(u32::MAX),
                peer: row.peer,
                is_shut: row.is_shut,
                unsent: row.send_queue,
            }),
            _ => (),
        })?;
        let clients = nameless.into_iter().filter_map(|it| self.client(it, &accepted)).collect();
        self.clients = clients;
        self.by_cookie = self.clients.iter().enumerate().map(|(at, it)| (it.cookie, at)).collect();
        self.listeners = found;
        Ok(())
    }

    fn client(&self, it: Nameless, accepted: &ByNumber<(u64, Listener)>) -> Option<UnixClient> {
        let Nameless { cookie, inode, uid, peer, is_shut, unsent } = it;
        if let Some((far, listener)) = accepted.get(&peer) {
            let path = listener.path.clone();
            let state = TcpState::Established;
            let peer = Some((*far, peer));
            return Some(UnixClient { cookie, inode, uid, path, state, unsent, listener: listener.inode, peer });
        }
        // The server closed it: nothing but our memory tells where it led.
        let before = self.clients.get(*self.by_cookie.get(&cookie)?)?;
        (is_shut && peer == 0).then(|| UnixClient {
            state: TcpState::CloseWait,
            unsent: 0,
            peer: None,
            ..before.clone()
        })
    }

    /// The sockets whose holders are asked for: clients and their other ends.
    pub(super) fn wanted(&self) -> impl Iterator<Item = Wanted> + '_ {
        self.clients.iter().flat_map(|it| {
            let wanted = |cookie, inode, kin| Wanted { cookie, inode, kin, is_thorough: true };
            let far = it.peer.map(|(cookie, inode)| wanted(cookie, inode, Kin::AtPath(it.listener)));
            [Some(wanted(it.cookie, it.inode, Kin::ToPath(it.listener))), far].into_iter().flatten()
        })
    }

    /// The cookie of the other end.
    pub(super) fn peer_of(&self, cookie: u64) -> Option<u64> {
        Some(self.clients.get(*self.by_cookie.get(&cookie)?)?.peer?.0)
    }
}

/// Notes a listening socket when it is a known server's, or the configured one.
fn note_listener(
    name: Option<&[u8]>,
    inode: u64,
    known: &HashMap<Box<[u8]>, Listener>,
    configured: &Configured,
    found: &mut HashMap<Box<[u8]>, Listener>,
) {
    let Some(name) = name.filter(|_| found.len() < MAX_PATHS) else { return };
    if let Some(before) = known.get(name) {
        found.insert(name.into(), Listener { inode, path: before.path.clone() });
        return;
    }
    let Ok(path) = std::str::from_utf8(name) else { return };
    if service_of_path(path).is_some() || configured.may_be_path(path) {
        let path = unix_path::real(path);
        if service_of_path(&path).is_some() || configured.has_path(&path) {
            found.insert(name.into(), Listener { inode, path });
        }
    }
}
