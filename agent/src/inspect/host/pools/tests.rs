//! Pools as they grow, shrink and churn, look by look.

use std::collections::HashMap;

use super::*;

const REMOTE: &str = "10.0.0.5:5432";

/// Owners as the test says; endpoints on port 5432 are watched, those on 6000 configured.
#[derive(Default)]
struct Stage {
    owners: HashMap<u64, Vec<Holder>>,
    nobody: Vec<u64>,
    ended: Vec<u32>,
    pools: Pools,
    destroyed: Vec<Destroyed>,
    unix: Vec<UnixClient>,
}

struct Owned<'a>(&'a HashMap<u64, Vec<Holder>>, &'a [u64], &'a [u32]);

impl World for Owned<'_> {
    fn held(&self, cookie: u64) -> Held<'_> {
        match self.0.get(&cookie) {
            Some(holders) => Held::By(holders),
            None if self.1.contains(&cookie) => Held::ByNobodySeen,
            None => Held::NotYet,
        }
    }

    fn peer(&self, _cookie: u64) -> Option<Peer> {
        None
    }

    fn is_ours(&self, pid: u32) -> bool {
        pid == 1
    }

    fn runs(&self, instance: Instance) -> bool {
        !self.2.contains(&instance.pid)
    }

    fn is_configured(&self, remote: &End) -> bool {
        remote.address().is_some_and(|remote| remote.port() == 6000)
    }

    fn is_newly_watched(&self, remote: &End) -> bool {
        remote.address().is_some_and(|remote| remote.port() == 6001)
    }

    fn is_watched(&self, _network: Network, _local: SocketAddr, remote: SocketAddr) -> bool {
        remote.port() == 5432
    }
}

pub(crate) fn socket(cookie: u64, remote: &str, state: TcpState) -> Socket {
    Socket {
        acknowledged_age: None,
        unacknowledged: None,
        send_queue: 0,
        receive_queue: 0,
        segments_out: None,
        segments_in: None,
        cookie,
        local: format!("10.0.0.1:{}", 40_000 + cookie).parse().unwrap(),
        remote: remote.parse().unwrap(),
        state,
        uid: 1000,
        inode: cookie,
        cgroup: Some(77),
        keepalive: false,
        retransmits: 0,
        probes: 0,
        sent_age: None,
        received_age: None,
    }
}

impl Stage {
    fn owned(pid: u32, cookies: &[u64]) -> Self {
        let mut stage = Self::default();
        stage.own(pid, cookies);
        stage
    }

    fn own(&mut self, pid: u32, cookies: &[u64]) {
        for cookie in cookies {
            self.owners.entry(*cookie).or_default().push(Holder { start: u64::from(pid), pid, fd: *cookie as u32 });
        }
    }

    fn dies(&mut self, cookie: u64, remote: &str) {
        let local = format!("10.0.0.1:{}", 40_000 + cookie).parse().unwrap();
        self.destroyed.push(Destroyed { cookie, local, remote: remote.parse().unwrap() });
    }

    fn look(&mut self, second: u64, sockets: &[Socket]) -> Look {
        self.look_in(second, Network::OWN, sockets)
    }

    fn look_in(&mut self, second: u64, network: Network, sockets: &[Socket]) -> Look {
        let batch = Batch { network, is_new: false, sockets, destroyed: &self.destroyed };
        let given = Given { sockets: &[batch], unix: &self.unix, now: Duration::from_secs(second) };
        let seen = self.pools.look(given, &Owned(&self.owners, &self.nobody, &self.ended));
        self.destroyed.clear();
        seen
    }

    fn at(&mut self, second: u64, cookies: &[u64]) -> Look {
        let sockets: Vec<_> = cookies.iter().map(|cookie| socket(*cookie, REMOTE, TcpState::Established)).collect();
        self.look(second, &sockets)
    }
}

fn only(look: Look) -> Seen {
    assert_eq!(look.pools.len(), 1, "{look:?}");
    look.pools.into_iter().next().unwrap()
}

#[test]
fn two_connections_are_a_pool_and_one_is_none() {
    let mut stage = Stage::owned(7, &[1, 2]);
    assert!(stage.at(1, &[1]).pools.is_empty());
    let pool = only(stage.at(2, &[1, 2]));
    assert_eq!(pool.key.party, Party::Process(Instance { pid: 7, start: 7 }));
    assert_eq!((pool.connections.len(), pool.births, pool.closes.len()), (2, 1, 0));
    let ages: Vec<_> = pool.connections.iter().map(|one| (one.born, one.seen_for.as_secs())).collect();
    assert_eq!(ages, [(false, 1), (true, 0)]);
    assert_eq!(only(stage.at(3, &[1])).connections.len(), 1, "once a pool, always a pool");
    assert_eq!(only(stage.at(90, &[])).connections.len(), 0, "while its process runs");
    stage.ended.push(7);
    assert!(stage.at(91, &[]).pools.is_empty());
}

#[test]
fn one_connection_to_a_configured_server_is_a_pool() {
    let mut stage = Stage::owned(7, &[1]);
    let pool = only(stage.look(1, &[socket(1, "10.0.0.5:6000", TcpState::SynSent)]));
    assert_eq!(pool.connections[0].state, TcpState::SynSent);
}

#[test]
fn a_close_is_counted_once_however_it_is_learnt() {
    let mut stage = Stage::owned(7, &[1, 2, 3, 4]);
    stage.at(1, &[1, 2]);
    stage.at(2, &[1, 2, 3, 4]);
    // 3 is missing in the dump, and its event comes a look later; 4 ends after the dump; 1 ends in between.
    stage.dies(4, REMOTE);
    stage.dies(1, REMOTE);
    let pool = only(stage.at(5, &[2, 4]));
    assert_eq!(pool.connections.len(), 1);
    let mut closes = pool.closes;
    closes.sort();
    assert_eq!(closes, [None, Some(Duration::from_secs(3)), Some(Duration::from_secs(3))]);
    stage.dies(3, REMOTE);
    let pool = only(stage.at(6, &[2]));
    assert_eq!((pool.births, pool.closes.len()), (0, 0));
}

#[test]
fn what_lived_between_two_looks_belongs_to_the_only_pool_of_its_endpoint() {
    let mut stage = Stage::owned(7, &[1, 2]);
    stage.dies(90, REMOTE);
    assert!(stage.at(1, &[1, 2]).unattributed.is_empty(), "before the first look nothing was counted");
    stage.dies(91, REMOTE);
    stage.dies(92, REMOTE);
    stage.dies(93, "10.0.0.5:80");
    let seen = stage.at(2, &[1, 2]);
    assert!(seen.unattributed.is_empty());
    let pool = only(seen);
    assert_eq!((pool.births, pool.closes, pool.presumed), (0, vec![], vec![Duration::from_secs(1); 2]));

    stage.own(8, &[3, 4]);
    stage.at(3, &[1, 2, 3, 4]);
    stage.dies(94, REMOTE);
    let seen = stage.at(4, &[1, 2, 3, 4]);
    assert_eq!(seen.unattributed, [(REMOTE.parse().unwrap(), 1)].into());
    assert!(seen.pools.iter().all(|pool| pool.births == 0 && pool.presumed.is_empty()));
}

#[test]
fn a_connection_that_ended_before_its_owner_was_found_is_not_lost() {
    let mut stage = Stage::owned(7, &[1, 2]);
    stage.at(1, &[1, 2]);
    stage.at(2, &[1, 2, 50]);
    let pool = only(stage.at(3, &[1, 2]));
    assert_eq!((pool.births, pool.presumed), (0, vec![Duration::from_secs(1)]));
}

#[test]
fn a_hidden_owner_is_a_user_and_a_cgroup_until_it_is_found() {
    let mut stage = Stage { nobody: vec![1, 2], ..Stage::default() };
    let pool = only(stage.at(1, &[1, 2]));
    assert_eq!(pool.key.party, Party::Hidden(1000, Some(77)));
    assert!(pool.connections.iter().all(|one| one.fds.is_empty()));
    stage.own(7, &[1, 2]);
    let seen = stage.at(2, &[1, 2]);
    let of_process = seen.pools.iter().find(|pool| pool.key.party == Party::Process(Instance { pid: 7, start: 7 }));
    let of_process = of_process.unwrap();
    assert_eq!((of_process.connections.len(), of_process.births), (2, 0), "found is not born");
}

#[test]
fn a_copied_descriptor_is_told_twice_and_counted_once() {
    let mut stage = Stage::owned(7, &[1, 2]);
    stage.owners.get_mut(&1).unwrap().push(Holder { start: 7, pid: 7, fd: 33 });
    stage.own(8, &[1]);
    let pool = only(stage.at(1, &[1, 2]));
    assert_eq!(pool.connections.len(), 2);
    assert_eq!(pool.connections[0].fds, [1, 33], "those of the oldest holder");
    let shared = |index: usize| pool.connections[index].sharers.clone();
    let of_child = Descriptor { instance: Instance { pid: 8, start: 8 }, fd: 1 };
    assert_eq!(shared(0), Sharers { first: vec![of_child], more: 0 });
    assert_eq!(shared(1), Sharers::default(), "its parent alone holds it");
}

#[test]
fn of_very_many_holders_sixteen_are_named_and_the_others_counted_and_we_are_none_of_them() {
    let mut stage = Stage::owned(7, &[1, 2]);
    (8..38).chain([1]).for_each(|pid| stage.own(pid, &[1]));
    stage.owners.get_mut(&1).unwrap().sort_unstable();
    let pool = only(stage.at(1, &[1, 2]));
    assert_eq!((pool.key.party, pool.connections.len()), (Party::Process(Instance { pid: 7, start: 7 }), 2));
    let Sharers { first, more } = &pool.connections[0].sharers;
    assert_eq!((first.len(), *more), (16, 14));
    assert!(first.iter().map(|it| it.instance.pid).eq(8..24), "the oldest first: {first:?}");
}

#[test]
fn our_own_connections_are_no_pool_and_their_ends_no_churn() {
    let mut stage = Stage::owned(1, &[1, 2, 3]);
    stage.own(7, &[4, 5]);
    stage.at(1, &[1, 2, 4, 5]);
    stage.at(2, &[1, 2, 3, 4, 5]);
    stage.dies(3, REMOTE);
    let seen = stage.at(3, &[1, 4, 5]);
    assert!(seen.unattributed.is_empty());
    let pool = only(seen);
    assert_eq!((pool.births, pool.closes.len()), (0, 0));
}

#[test]
fn the_age_of_a_state_begins_with_the_state() {
    let mut stage = Stage::owned(7, &[1, 2]);
    stage.at(1, &[1, 2]);
    let closing = [socket(1, REMOTE, TcpState::CloseWait), socket(2, REMOTE, TcpState::Established)];
    stage.look(11, &closing);
    let pool = only(stage.look(15, &closing));
    let ages: Vec<_> = pool.connections.iter().map(|one| (one.state_age.as_secs(), one.seen_for.as_secs())).collect();
    assert_eq!(ages, [(4, 14), (14, 14)]);
}

#[test]
fn loopback_of_another_network_is_an_end_of_its_own_and_its_ends_are_no_churn_of_ours() {
    const LOOPBACK: &str = "127.0.0.1:5432";
    let other = Network(1);
    let mut stage = Stage::owned(7, &[1, 2]);
    stage.own(8, &[other.identity(1), other.identity(2)]);
    let of = |network: Network| {
        [1, 2].map(|cookie| {
            let mut it = socket(cookie, LOOPBACK, TcpState::Established);
            it.local = format!("127.0.0.1:{}", 40_000 + cookie).parse().unwrap();
            it.cookie = network.identity(cookie);
            it
        })
    };
    let (ours, theirs) = (of(Network::OWN), of(other));
    let mut look = |second, destroyed: &[Destroyed], is_new| {
        let near = Batch { network: Network::OWN, is_new: false, sockets: &ours, destroyed: &[] };
        let far = Batch { network: other, is_new, sockets: &theirs, destroyed };
        let given = Given { sockets: &[near, far], unix: &[], now: Duration::from_secs(second) };
        let seen = stage.pools.look(given, &Owned(&stage.owners, &[], &[]));
        let mut all: Vec<(String, usize)> =
            seen.pools.iter().map(|it| (it.key.remote.to_string(), it.births as usize + it.presumed.len())).collect();
        all.sort();
        assert!(seen.pools.iter().all(|it| it.connections.len() == 2), "{seen:?}");
        all
    };
    let shown = |births: [usize; 2]| [(LOOPBACK.to_owned(), births[0]), (format!("netns:{LOOPBACK}"), births[1])];
    assert_eq!(look(1, &[], true), shown([0, 0]));
    let local = "127.0.0.1:50000".parse().unwrap();
    let gone = |cookie| [Destroyed { cookie: other.identity(cookie), local, remote: LOOPBACK.parse().unwrap() }];
    assert_eq!(look(2, &gone(9), false), shown([0, 1]));
    assert_eq!(look(3, &gone(10), true), shown([0, 0]), "it may be older than the first look there");
}
