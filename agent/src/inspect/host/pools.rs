//! From sockets to pools: which connections belong together, which are new, which ended.
//!
//! Pure: rows of a dump, their owners and the destroy events go in; pools with births and closes come out. The cookie is
//! the identity of a connection, so one that lived and died between two looks is counted by its destroy event alone. Of
//! unix sockets there are no such events.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use super::unix::UnixClient;
use super::{Connection, Descriptor, Peer, Sharers, TcpState};
use crate::discover::{End, Instance};
use crate::kernel::owners::{Held, Holder};
use crate::kernel::sock_diag::Destroyed;
use crate::kernel::socket::{ByNumber, Network, Socket};

mod sight;

use sight::{Sight, end_in};

/// A connection that ended is remembered so long, for its destroy event may come after the look that missed it.
const REMEMBERED: Duration = Duration::from_secs(30);
/// A pool whose owner is not visible is given up after this time without a connection; a visible one when its owner ends.
const DESERTED: Duration = Duration::from_secs(60);
/// Most descriptors of a connection beside those of its owner that are told.
const MAX_SHARERS: usize = 16;
/// Pools, and would-be pools, that are kept.
const MAX_POOLS: usize = 10_000;

/// Who holds a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Party {
    /// A process that we see.
    Process(Instance),
    /// Nobody that we see: its user and cgroup.
    Hidden(u32, Option<u64>),
}

impl Party {
    /// User and cgroup of one that is not visible.
    pub(super) const fn hidden(self) -> Option<(u32, Option<u64>)> {
        match self {
            Self::Hidden(uid, cgroup) => Some((uid, cgroup)),
            Self::Process(_) => None,
        }
    }
}

/// One party's connections to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) party: Party,
    pub(super) network: Network,
    pub(super) remote: End,
}

/// One pool in one look.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) key: Key,
    pub(super) connections: Vec<Connection>,
    pub(super) births: u32,
    pub(super) closes: Vec<Option<Duration>>,
    /// Lives of those that ended before a look saw whose they were: nobody else was known to connect there.
    pub(super) presumed: Vec<Duration>,
}

/// What one look saw.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) pools: Vec<Seen>,
    /// Connections that lived and died unseen, by endpoint.
    pub(super) unattributed: BTreeMap<SocketAddr, u32>,
}

/// What the dump and the events of one look gave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    /// Outbound sockets to watched endpoints, by network namespace.
    pub(super) sockets: &'a [Batch<'a>],
    /// Connections to unix sockets of servers.
    pub(super) unix: &'a [UnixClient],
    pub(super) now: Duration,
}

/// What one look gave of one network namespace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch<'a> {
    pub(super) network: Network,
    /// It was not looked at before, or not at these ports: what is in it was not born since.
    pub(super) is_new: bool,
    pub(super) sockets: &'a [Socket],
    /// Connections that ended since the last look.
    pub(super) destroyed: &'a [Destroyed],
}

/// The world that decides what the rows mean.
pub(super) trait World {
    /// Who holds a socket.
    fn held(&self, cookie: u64) -> Held<'_>;
    /// Who holds the other end of a connection.
    fn peer(&self, cookie: u64) -> Option<Peer>;
    /// Whether a process is this agent.
    fn is_ours(&self, pid: u32) -> bool;
    /// Whether a process of that life still runs.
    fn runs(&self, instance: Instance) -> bool;
    /// Whether even one connection to this endpoint is a pool: it is configured.
    fn is_configured(&self, remote: &End) -> bool;
    /// Whether an endpoint was not watched at the look before, so that what leads there may be old.
    fn is_newly_watched(&self, remote: &End) -> bool;
    /// Whether connections from `local` to `remote` in a network namespace are watched at all.
    fn is_watched(&self, network: Network, local: SocketAddr, remote: SocketAddr) -> bool;
}

/// Every connection and pool so far.
#[derive(Debug, Default)]
pub(super) struct Pools {
    connections: ByNumber<Tracked>,
    pools: HashMap<Key, Pool>,
    look: u64,
    last: Option<Duration>,
}

#[derive(Debug)]
struct Tracked {
    party: Known,
    network: Network,
    remote: End,
    first_seen: Duration,
    born: bool,
    state: TcpState,
    state_since: Duration,
    look: u64,
    closed: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    NotYet,
    Ours,
    Of(Party),
}

#[derive(Debug, Default)]
struct Pool {
    /// Connections that it ever had.
    ever: u32,
    connections: Vec<Connection>,
    births: u32,
    closes: Vec<Option<Duration>>,
    presumed: Vec<Duration>,
    last_used: Duration,
}

impl Pools {
    /// Takes one look.
    pub(super) fn look(&mut self, given: Given<'_>, world: &impl World) -> Look {
        self.look += 1;
        let mut unattributed = BTreeMap::new();
        for batch in given.sockets {
            let is_new = batch.is_new || self.last.is_none();
            for socket in batch.sockets {
                self.see(Sight::Tcp(socket), batch.network, is_new, given.now, world);
            }
        }
        for client in given.unix {
            self.see(Sight::Unix(client), Network::OWN, self.last.is_none(), given.now, world);
        }
        self.note_vanished(given.now, &mut unattributed);
        // Before the first look nothing was counted, so nothing that ended then is missing.
        if let Some(last) = self.last {
            for batch in given.sockets {
                for event in batch.destroyed {
                    self.note_destroyed(event, batch, given.now, last, world, &mut unattributed);
                }
            }
        }
        self.last = Some(given.now);
        self.pools.retain(|key, pool| match key.party {
            _ if !pool.connections.is_empty() => true,
            Party::Process(instance) => world.runs(instance),
            Party::Hidden(..) => given.now < pool.last_used + DESERTED,
        });
        Look { pools: self.told(world), unattributed }
    }

    /// Processes that hold a pool.
    pub(super) fn holders(&self, world: &impl World) -> impl Iterator<Item = Instance> {
        self.pools.iter().filter(|(key, pool)| pool.is_one(key, world)).filter_map(|(key, _)| match key.party {
            Party::Process(instance) => Some(instance),
            Party::Hidden(..) => None,
        })
    }

    fn see(&mut self, sight: Sight<'_>, network: Network, is_new: bool, now: Duration, world: &impl World) {
        let (cookie, state) = (sight.cookie(), sight.state());
        let tracked = self.connections.entry(cookie).or_insert_with(|| Tracked {
            party: Known::NotYet,
            network,
            remote: sight.remote(network),
            first_seen: now,
            born: !is_new && !world.is_newly_watched(&sight.remote(network)),
            state,
            state_since: now,
            look: 0,
            closed: None,
        });
        tracked.look = self.look;
        if tracked.closed.is_some() {
            return;
        }
        if tracked.state != state {
            tracked.state = state;
            tracked.state_since = now;
        }
        let mut holders: &[Holder] = &[];
        let party = match world.held(cookie) {
            Held::By(by) => match by.iter().find(|holder| !world.is_ours(holder.pid)) {
                Some(oldest) => {
                    holders = by;
                    Known::Of(Party::Process(Instance { pid: oldest.pid, start: oldest.start }))
                }
                None => Known::Ours,
            },
            Held::ByNobodySeen => Known::Of(sight.hidden()),
            Held::NotYet => tracked.party,
        };
        let before = std::mem::replace(&mut tracked.party, party);
        let Known::Of(party) = party else { return };
        let key = Key { party, network, remote: tracked.remote.clone() };
        if self.pools.len() >= MAX_POOLS && !self.pools.contains_key(&key) {
            return;
        }
        let pool = self.pools.entry(key).or_default();
        if before != Known::Of(party) {
            pool.ever = pool.ever.saturating_add(1);
            // One whose owner became visible, or which a child took over, was not born by that.
            pool.births += u32::from(tracked.born && before == Known::NotYet);
        }
        pool.last_used = now;
        let (fds, sharers) = match party {
            Party::Process(owner) => told_apart(holders, owner, world),
            Party::Hidden(..) => (Vec::new(), Sharers::default()),
        };
        pool.connections.push(Connection {
            fds,
            sharers,
            peer: world.peer(cookie),
            state_age: now.saturating_sub(tracked.state_since),
            seen_for: now.saturating_sub(tracked.first_seen),
            born: tracked.born,
            ..sight.connection(network)
        });
    }

    /// Connections that the dump does not have any more.
    fn note_vanished(&mut self, now: Duration, unattributed: &mut BTreeMap<SocketAddr, u32>) {
        let look = self.look;
        let mut lost = Vec::new();
        self.connections.retain(|_, tracked| {
            if tracked.look == look {
                return true;
            }
            match tracked.closed {
                Some(at) => now < at + REMEMBERED,
                None => {
                    tracked.closed = Some(now);
                    match tracked.party {
                        Known::Of(party) => {
                            let key = Key { party, network: tracked.network, remote: tracked.remote.clone() };
                            if let Some(pool) = self.pools.get_mut(&key) {
                                pool.closes.push(tracked.lifetime(now));
                            }
                        }
                        // It ended before its owner was found.
                        Known::NotYet if tracked.born => {
                            lost.push((
                                tracked.network,
                                tracked.remote.clone(),
                                now.saturating_sub(tracked.first_seen),
                            ));
                        }
                        Known::NotYet | Known::Ours => (),
                    }
                    true
                }
            }
        });
        for (network, remote, lifetime) in lost {
            self.attribute(network, &remote, lifetime, now, unattributed);
        }
    }

    fn note_destroyed(
        &mut self,
        event: &Destroyed,
        batch: &Batch<'_>,
        now: Duration,
        last: Duration,
        world: &impl World,
        unattributed: &mut BTreeMap<SocketAddr, u32>,
    ) {
        let network = batch.network;
        let Some(tracked) = self.connections.remove(&event.cookie) else {
            let remote = end_in(network, event.remote);
            let is_new = batch.is_new || world.is_newly_watched(&remote);
            if !is_new && world.is_watched(network, event.local, event.remote) {
                // It lived for less than the time between two looks; that is all that is known, and enough.
                self.attribute(network, &remote, now.saturating_sub(last), now, unattributed);
            }
            return;
        };
        if tracked.closed.is_some() {
            return;
        }
        match tracked.party {
            Known::Of(party) => {
                let key = Key { party, network: tracked.network, remote: tracked.remote.clone() };
                if let Some(pool) = self.pools.get_mut(&key) {
                    // It ended between the dump and now.
                    pool.connections.retain(|connection| connection.cookie != event.cookie);
                    pool.closes.push(tracked.lifetime(now));
                }
            }
            Known::NotYet if tracked.born => {
                let lifetime = now.saturating_sub(tracked.first_seen);
                self.attribute(network, &tracked.remote, lifetime, now, unattributed);
            }
            Known::NotYet | Known::Ours => (),
        }
    }

    /// A connection whose owner nobody saw is presumed the only pool's of its endpoint, if there is just one.
    fn attribute(
        &mut self,
        network: Network,
        remote: &End,
        lifetime: Duration,
        now: Duration,
        unattributed: &mut BTreeMap<SocketAddr, u32>,
    ) {
        let is_of_it = |key: &Key| key.network == network && key.remote == *remote;
        let mut of_endpoint = self.pools.iter_mut().filter(|(key, _)| is_of_it(key));
        match (of_endpoint.next(), of_endpoint.next()) {
            (Some((_, pool)), None) => {
                pool.ever = pool.ever.saturating_add(1);
                pool.presumed.push(lifetime);
                pool.last_used = now;
            }
            // One over a unix socket was seen in a dump, so its pool is seen soon; no event tells of others.
            _ => {
                if let Some(remote) = remote.address() {
                    *unattributed.entry(remote).or_default() += 1;
                }
            }
        }
    }

    fn told(&mut self, world: &impl World) -> Vec<Seen> {
        let mut seen = Vec::new();
        for (key, pool) in &mut self.pools {
            let (births, closes) = (std::mem::take(&mut pool.births), std::mem::take(&mut pool.closes));
            let presumed = std::mem::take(&mut pool.presumed);
            let room = pool.connections.len();
            let connections = std::mem::replace(&mut pool.connections, Vec::with_capacity(room));
            if pool.is_one(key, world) {
                seen.push(Seen { key: key.clone(), connections, births, closes, presumed });
            }
        }
        seen
    }
}

/// The descriptors of the owner, and who holds the socket beside it.
fn told_apart(holders: &[Holder], owner: Instance, world: &impl World) -> (Vec<u32>, Sharers) {
    let of_owner = |holder: &&Holder| holder.pid == owner.pid;
    let fds = holders.iter().filter(of_owner).map(|holder| holder.fd).collect();
    let others = || holders.iter().filter(|holder| holder.pid != owner.pid && !world.is_ours(holder.pid));
    let descriptor = |it: &Holder| Descriptor { instance: Instance { pid: it.pid, start: it.start }, fd: it.fd };
    let first: Vec<Descriptor> = others().take(MAX_SHARERS).map(descriptor).collect();
    let more = if first.len() < MAX_SHARERS { 0 } else { others().count() - first.len() };
    (fds, Sharers { first, more })
}

impl Pool {
    /// Two connections make a pool, and it stays one when it shrinks; to a configured server one is enough.
    fn is_one(&self, key: &Key, world: &impl World) -> bool {
        self.ever >= 2 || world.is_configured(&key.remote)
    }
}

impl Tracked {
    fn lifetime(&self, now: Duration) -> Option<Duration> {
        self.born.then(|| now.saturating_sub(self.first_seen))
    }
}

#[cfg(test)]
pub(super) mod tests;
