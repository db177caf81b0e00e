//! Against the kernel that runs the tests, on loopback.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::*;
use crate::kernel::proc_net;
use crate::kernel::socket::TcpState;

struct Pair {
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

fn pair(address: &str) -> Pair {
    let listener = TcpListener::bind(address).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    Pair { listener, client, server }
}

impl Pair {
    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Of the listener, the client and the one accepted. A port number alone is no identity: tests beside this one may be given
    /// the same number in the other family, or for another peer.
    fn inodes(&self) -> [u64; 3] {
        [inode(&self.listener), inode(&self.client), inode(&self.server)]
    }
}

fn inode(of: impl AsFd) -> u64 {
    rustix::fs::fstat(of).unwrap().st_ino
}

/// What netlink tells of these pairs.
fn dumped(pairs: &[&Pair], diag: &mut SockDiag, filter: Option<&PortFilter>) -> Vec<Socket> {
    let ports: Vec<u16> = pairs.iter().map(|pair| pair.port()).collect();
    let inodes: Vec<u64> = pairs.iter().flat_map(|pair| pair.inodes()).collect();
    let mut sockets = Vec::new();
    let wanted = |row: &Row<'_>| ports.contains(&row.local_port) || ports.contains(&row.remote_port);
    assert_eq!(diag.dump(filter, wanted, &mut sockets).unwrap(), 0, "no row is cut");
    sockets.retain(|socket| inodes.contains(&socket.inode));
    sockets
}

fn all_of(pair: &Pair) -> Vec<Socket> {
    dumped(&[pair], &mut SockDiag::open().unwrap(), None)
}

/// Waits for a state, looking again and again until a deadline.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never seen: {what}");
        std::thread::yield_now();
    }
}

fn sees_a_connection_from_both_ends(address: &str) {
    let mut pair = pair(address);
    pair.client.write_all(b"?").unwrap();
    pair.server.read_exact(&mut [0]).unwrap();
    let sockets = all_of(&pair);
    let of = |inode| sockets.iter().find(|socket| socket.inode == inode).unwrap();

    let listening = of(inode(&pair.listener));
    assert_eq!((listening.state, listening.local), (TcpState::Listen, pair.listener.local_addr().unwrap()));
    let ours = of(inode(&pair.client));
    assert_eq!(ours.state, TcpState::Established);
    assert_eq!(ours.local, pair.client.local_addr().unwrap());
    assert_eq!(ours.remote, pair.client.peer_addr().unwrap());
    assert_eq!(ours.cookie, sockopt::socket_cookie(&pair.client).unwrap());
    assert_eq!(ours.uid, rustix::process::getuid().as_raw());
    assert!(ours.sent_age.unwrap() < Duration::from_secs(5), "{ours:?}");
    assert!(!ours.keepalive);
    let theirs = of(inode(&pair.server));
    assert_eq!((theirs.local, theirs.remote), (ours.remote, ours.local));
    assert!(theirs.received_age.unwrap() < Duration::from_secs(5), "{theirs:?}");

    sockopt::set_socket_keepalive(&pair.client, true).unwrap();
    assert!(all_of(&pair).iter().any(|socket| socket.inode == ours.inode && socket.keepalive));
}

#[test]
fn a_connection_over_v4_is_seen_from_both_ends() {
    sees_a_connection_from_both_ends("127.0.0.1:0");
}

#[test]
fn a_connection_over_v6_is_seen_from_both_ends() {
    sees_a_connection_from_both_ends("[::1]:0");
}

#[test]
fn a_v4_client_of_a_v6_listener_has_one_form_of_address_on_both_ends() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (server, _) = listener.accept().unwrap();
    let pair = Pair { listener, client, server };
    let sockets = all_of(&pair);
    let of = |inode| sockets.iter().find(|socket| socket.inode == inode).unwrap();
    assert_eq!(of(inode(&pair.client)).local, of(inode(&pair.server)).remote);
    assert_eq!(of(inode(&pair.server)).local, std::net::SocketAddr::from(([127, 0, 0, 1], port)));
}

#[test]
fn a_connection_is_looked_up_as_a_dump_tells_it_and_one_that_is_gone_is_left_out() {
    let mapped = {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let client = TcpStream::connect(("127.0.0.1", listener.local_addr().unwrap().port())).unwrap();
        let (server, _) = listener.accept().unwrap();
        Pair { listener, client, server }
    };
    let mut diag = SockDiag::open().unwrap();
    let mut connections = Vec::new();
    // More than fit into one request.
    let pairs: Vec<Pair> = (0..20).flat_map(|_| [pair("127.0.0.1:0"), pair("[::1]:0")]).chain([mapped]).collect();
    for pair in &pairs {
        connections.extend(all_of(pair).into_iter().filter(|it| it.state == TcpState::Established));
    }
    assert_eq!(connections.len(), 2 * pairs.len());
    let gone = pair("127.0.0.1:0");
    let mut ends = all_of(&gone);
    ends.retain(|it| it.inode == inode(&gone.client));
    drop(gone);
    until("the end of one", || all_of(&pairs[0]).iter().all(|it| it.cookie != ends[0].cookie).then_some(()));
    connections.insert(7, ends[0]);

    (&pairs[1].client).write_all(b"?").unwrap();
    let mut found = Vec::new();
    assert!(diag.look_up(&connections.iter().collect::<Vec<_>>(), &mut found).unwrap());
    connections.remove(7);
    let ends = |it: &Socket| (it.cookie, it.local, it.remote, it.inode, it.uid);
    let (mut told, mut known): (Vec<_>, Vec<_>) =
        (found.iter().map(ends).collect(), connections.iter().map(ends).collect());
    told.sort_unstable();
    known.sort_unstable();
    assert_eq!(told, known);
    let sent = |of: &[Socket], inode| of.iter().find(|it| it.inode == inode).and_then(|it| it.segments_out);
    let client = inode(&pairs[1].client);
    assert!(sent(&found, client) > sent(&connections, client), "what was sent since the dump is seen");
    // The socket is as good for a dump as before.
    assert_eq!(dumped(&[&pairs[0]], &mut diag, None).len(), 3);

    let link_local = Socket { local: "[fe80::1]:5".parse().unwrap(), ..connections[0] };
    found.clear();
    assert!(!diag.look_up(&[&connections[0], &link_local], &mut found).unwrap() && found.is_empty());
}

#[test]
fn a_connection_that_the_peer_closed_waits_to_be_closed() {
    let pair = pair("127.0.0.1:0");
    let client = inode(&pair.client);
    pair.server.shutdown(Shutdown::Write).unwrap();
    let seen = until("CLOSE_WAIT", || {
        all_of(&pair).into_iter().find(|socket| socket.inode == client && socket.state == TcpState::CloseWait)
    });
    assert_eq!(seen.remote.port(), pair.port());
}

#[test]
fn netlink_and_the_table_tell_the_same() {
    for pair in [pair("127.0.0.1:0"), pair("[::1]:0")] {
        let (port, inodes) = (pair.port(), pair.inodes());
        let brief = |socket: &Socket| (socket.inode, socket.local, socket.remote, socket.state, socket.uid);
        let mut from_netlink: Vec<_> = all_of(&pair).iter().map(brief).collect();
        from_netlink.sort_unstable();
        assert_eq!(from_netlink.len(), 3);
        // The table is read a page at a time, and what comes and goes between two pages may hide a row or tell it again.
        until("the same in the table", || {
            let mut table = Vec::new();
            proc_net::read("/proc".as_ref(), |local, remote, _| local == port || remote == port, &mut table).unwrap();
            let mut from_table: Vec<_> = table.iter().filter(|it| inodes.contains(&it.inode)).map(brief).collect();
            from_table.sort_unstable();
            (from_table == from_netlink).then_some(())
        });
    }
}

#[test]
fn a_connection_that_lived_between_two_looks_is_heard_to_end() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let mut events = DestroyEvents::open().unwrap();
        let pair = pair(address);
        let cookie = sockopt::socket_cookie(&pair.client).unwrap();
        let (local, remote) = (pair.client.local_addr().unwrap(), pair.client.peer_addr().unwrap());
        drop(pair);
        let mut ended = Vec::new();
        let seen = until("the destroy event", || {
            events.drain(&mut ended).unwrap();
            ended.iter().find(|event| event.cookie == cookie).copied()
        });
        assert_eq!((seen.local, seen.remote), (local, remote));
        assert!(!ended.iter().any(|event| event.remote.port() == 0), "a listener is no connection");
    }
}

#[test]
fn events_that_did_not_fit_are_told_as_lost() {
    let mut events = DestroyEvents::with_room(1).unwrap();
    until("ENOBUFS", || {
        for _ in 0..20 {
            drop(pair("127.0.0.1:0"));
        }
        events.drain(&mut Vec::new()).unwrap().then_some(())
    });
}

#[test]
fn one_socket_dumps_again_and_again() {
    let pair = pair("127.0.0.1:0");
    let mut diag = SockDiag::open().unwrap();
    for _ in 0..3 {
        assert_eq!(dumped(&[&pair], &mut diag, None).len(), 3);
    }
}

#[test]
fn one_request_for_both_families_tells_what_one_for_each_does() {
    let (v4, v6) = (pair("127.0.0.1:0"), pair("[::1]:0"));
    let filter = PortFilter::of([v4.port(), v6.port()], []).unwrap();
    let seen = |by_family, filter: Option<&PortFilter>| {
        let mut diag = SockDiag { by_family, ..SockDiag::open().unwrap() };
        let sockets = dumped(&[&v4, &v6], &mut diag, filter);
        assert_eq!(diag.by_family, by_family, "this kernel refuses nothing");
        // Ages go on between two dumps.
        let lasting = |it: &Socket| (it.cookie, it.inode, it.local, it.remote, it.state, it.uid, it.cgroup);
        let mut seen: Vec<_> = sockets.iter().map(lasting).collect();
        seen.sort_unstable();
        assert!(sockets.iter().all(|it| it.state == TcpState::Listen || it.sent_age.is_some()), "{sockets:?}");
        seen
    };
    assert_eq!(seen(false, None).len(), 6);
    assert_eq!(seen(false, None), seen(true, None));
    assert_eq!(seen(false, Some(&filter)).len(), 4, "who accepted is not asked for");
    assert_eq!(seen(false, Some(&filter)), seen(true, Some(&filter)));
}

#[test]
fn the_kernels_own_filter_leaves_out_what_has_none_of_the_ports() {
    let (asked, other) = (pair("127.0.0.1:0"), pair("127.0.0.1:0"));
    let seen = |filter: &PortFilter| {
        let sockets = dumped(&[&asked, &other], &mut SockDiag::open().unwrap(), Some(filter));
        let mut seen: Vec<u64> = sockets.iter().map(|it| it.inode).collect();
        seen.sort_unstable();
        seen
    };
    let with_listeners = |one: &TcpStream| {
        let mut all = vec![inode(&asked.listener), inode(&other.listener), inode(one)];
        all.sort_unstable();
        all
    };
    let outbound = seen(&PortFilter::of([asked.port()], []).unwrap());
    assert_eq!(outbound, with_listeners(&asked.client));
    let accepted = seen(&PortFilter::of([], [other.port()]).unwrap());
    assert_eq!(accepted, with_listeners(&other.server));
    let all: Vec<u16> = (1..63).chain([asked.port()]).collect();
    let many = seen(&PortFilter::of(all, []).unwrap());
    assert_eq!(many, outbound, "the last of as many as a filter may have");
}
