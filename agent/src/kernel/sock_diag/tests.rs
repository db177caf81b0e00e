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

fn inode(of: impl AsFd) -> u64 {
    rustix::fs::fstat(of).unwrap().st_ino
}

fn dumped(port: u16) -> Vec<Socket> {
    let mut sockets = Vec::new();
    let wanted = |row: &Row<'_>| row.local_port == port || row.remote_port == port;
    SockDiag::open().unwrap().dump(None, wanted, &mut sockets).unwrap();
    sockets
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
    let port = pair.listener.local_addr().unwrap().port();
    pair.client.write_all(b"?").unwrap();
    pair.server.read_exact(&mut [0]).unwrap();
    let sockets = dumped(port);
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
    assert!(dumped(port).iter().any(|socket| socket.inode == ours.inode && socket.keepalive));
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
    let sockets = dumped(port);
    let of = |inode| sockets.iter().find(|socket| socket.inode == inode).unwrap();
    assert_eq!(of(inode(&client)).local, of(inode(&server)).remote);
    assert_eq!(of(inode(&server)).local, std::net::SocketAddr::from(([127, 0, 0, 1], port)));
}

#[test]
fn a_connection_that_the_peer_closed_waits_to_be_closed() {
    let pair = pair("127.0.0.1:0");
    let port = pair.listener.local_addr().unwrap().port();
    let client = inode(&pair.client);
    pair.server.shutdown(Shutdown::Both).unwrap();
    drop(pair.server);
    let seen = until("CLOSE_WAIT", || {
        dumped(port).into_iter().find(|socket| socket.inode == client && socket.state == TcpState::CloseWait)
    });
    assert_eq!(seen.remote.port(), port);
}

#[test]
fn netlink_and_the_table_tell_the_same() {
    let (v4, v6) = (pair("127.0.0.1:0"), pair("[::1]:0"));
    for pair in [&v4, &v6] {
        let port = pair.listener.local_addr().unwrap().port();
        let mut table = Vec::new();
        let wanted = |local, remote, _| local == port || remote == port;
        proc_net::read("/proc".as_ref(), wanted, &mut table).unwrap();
        let brief = |socket: &Socket| (socket.inode, socket.local, socket.remote, socket.state, socket.uid);
        let mut from_table: Vec<_> = table.iter().map(brief).collect();
        let mut from_netlink: Vec<_> = dumped(port).iter().map(brief).collect();
        from_table.sort_unstable();
        from_netlink.sort_unstable();
        assert_eq!(from_table.len(), 3);
        assert_eq!(from_table, from_netlink);
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
    let port = pair.listener.local_addr().unwrap().port();
    let mut diag = SockDiag::open().unwrap();
    for _ in 0..3 {
        let mut sockets = Vec::new();
        let cut = diag.dump(None, |row| row.local_port == port, &mut sockets).unwrap();
        assert_eq!((sockets.len(), cut), (2, 0));
    }
}

#[test]
fn one_request_for_both_families_tells_what_one_for_each_does() {
    let pairs = [pair("127.0.0.1:0"), pair("[::1]:0")];
    let ports = pairs.each_ref().map(|pair| pair.listener.local_addr().unwrap().port());
    let filter = PortFilter::of(ports, []).unwrap();
    let dumped = |by_family, filter: Option<&PortFilter>| {
        let mut diag = SockDiag { by_family, ..SockDiag::open().unwrap() };
        let mut sockets = Vec::new();
        let of_ours = |row: &Row<'_>| ports.contains(&row.local_port) || ports.contains(&row.remote_port);
        diag.dump(filter, of_ours, &mut sockets).unwrap();
        assert_eq!(diag.by_family, by_family, "this kernel refuses nothing");
        // Ages go on between two dumps.
        let lasting = |it: &Socket| (it.cookie, it.inode, it.local, it.remote, it.state, it.uid, it.cgroup);
        let mut seen: Vec<_> = sockets.iter().map(lasting).collect();
        seen.sort_unstable();
        assert!(sockets.iter().all(|it| it.state == TcpState::Listen || it.sent_age.is_some()), "{sockets:?}");
        seen
    };
    assert_eq!(dumped(false, None).len(), 6);
    assert_eq!(dumped(false, None), dumped(true, None));
    assert_eq!(dumped(false, Some(&filter)).len(), 4, "who accepted is not asked for");
    assert_eq!(dumped(false, Some(&filter)), dumped(true, Some(&filter)));
}

#[test]
fn the_kernels_own_filter_leaves_out_what_has_none_of_the_ports() {
    let (asked, other) = (pair("127.0.0.1:0"), pair("127.0.0.1:0"));
    let port = |pair: &Pair| pair.listener.local_addr().unwrap().port();
    let (asked_port, other_port) = (port(&asked), port(&other));
    let dumped = |filter: &PortFilter| {
        let mut sockets = Vec::new();
        let of_ours =
            |row: &Row<'_>| [row.local_port, row.remote_port].iter().any(|it| *it == asked_port || *it == other_port);
        SockDiag::open().unwrap().dump(Some(filter), of_ours, &mut sockets).unwrap();
        let mut seen: Vec<_> = sockets.iter().map(|it| (it.local.port(), it.remote.port())).collect();
        seen.sort_unstable();
        seen
    };
    let client = |pair: &Pair| pair.client.local_addr().unwrap().port();
    let listening = [(asked_port, 0), (other_port, 0)];
    let sorted = |mut all: Vec<(u16, u16)>| {
        all.extend(listening);
        all.sort_unstable();
        all
    };
    let outbound = dumped(&PortFilter::of([asked_port], []).unwrap());
    assert_eq!(outbound, sorted(vec![(client(&asked), asked_port)]));
    let accepted = dumped(&PortFilter::of([], [other_port]).unwrap());
    assert_eq!(accepted, sorted(vec![(other_port, client(&other))]));
    let all: Vec<u16> = (1..63).chain([asked_port]).collect();
    let many = dumped(&PortFilter::of(all, []).unwrap());
    assert_eq!(many, outbound, "the last of as many as a filter may have");
}
