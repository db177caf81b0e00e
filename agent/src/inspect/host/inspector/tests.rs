//! The whole inspector against the kernel that runs the tests: real sockets, real children, loopback only.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::net::sockopt::socket_cookie;

use super::*;
use crate::discover::End;
use crate::inspect::Value;
use crate::inspect::host::sockets::Source;
use crate::inspect::host::{Connection, DeclaredApp, Limit, Owner, Peer, PoolRow, ProcessRow, TcpState};

/// An inspector that takes the test for an application, and the listener that it takes for a server.
struct Stage {
    listener: TcpListener,
    inspector: HostInspector,
    ended: mpsc::Receiver<Ended>,
    second: u64,
}

impl Stage {
    fn new(address: &str, apps: &[(&str, &str)], own_pid: Option<u32>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let apps = apps.iter().map(|(name, command)| DeclaredApp {
            name: (*name).into(),
            command: (*command).into(),
            pool_limit: None,
            pooler: None,
            required_keys: Vec::new(),
            expected: true,
        });
        let config = Config { apps: apps.collect(), own_pid, ..Config::default() };
        config.endpoints.set("test", "postgresql", [listener.local_addr().unwrap().into()]);
        let (inspector, ended) = HostInspector::new(config);
        Self { listener, inspector, ended, second: 0 }
    }

    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        (client, self.listener.accept().unwrap().0)
    }

    async fn look(&mut self) -> HostLook {
        self.second += 1;
        match self.inspector.inspect(Duration::from_secs(self.second)).await.rows {
            Rows::Host(look) => look,
            other => panic!("{other:?}"),
        }
    }

    /// Looks until something is seen.
    async fn until<T>(&mut self, what: &str, mut seen: impl FnMut(&HostLook) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let look = self.look().await;
            if let Some(found) = seen(&look) {
                return found;
            }
            assert!(Instant::now() < deadline, "never seen: {what}; last: {look:?}");
        }
    }

    /// The end of one process, of all that are told: children of other tests end, too.
    async fn end_of(&mut self, pid: u32) -> Ended {
        let told = async {
            loop {
                let ended = self.ended.recv().await.unwrap();
                if ended.instance.pid == pid {
                    return ended;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told).await.unwrap()
    }

    fn remote(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    async fn pool(&mut self) -> PoolRow {
        let remote = self.remote();
        let look = self.look().await;
        let of_remote: Vec<_> = look.pools.into_iter().filter(|pool| pool.remote == remote.into()).collect();
        assert_eq!(of_remote.len(), 1, "{of_remote:?}");
        of_remote.into_iter().next().unwrap()
    }
}

fn connection<'a>(pool: &'a PoolRow, client: &TcpStream) -> &'a Connection {
    let cookie = socket_cookie(client).unwrap();
    pool.connections.iter().find(|one| one.cookie == cookie).unwrap()
}

#[tokio::test]
async fn connections_that_were_there_before_their_server_was_known_were_not_born_then() {
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let endpoints = stage.inspector.state.lock().unwrap().config.endpoints.clone();
    endpoints.set("test", "postgresql", []);
    let mut held: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    assert!(stage.look().await.pools.iter().all(|it| it.remote != stage.listener.local_addr().unwrap().into()));
    endpoints.set("test", "postgresql", [stage.remote().into()]);
    let pool = stage.pool().await;
    assert_eq!((pool.connections.len(), pool.births), (3, 0));
    assert!(pool.connections.iter().all(|it| !it.born), "{pool:?}");
    held.push(stage.connect());
    let pool = stage.pool().await;
    assert_eq!((pool.connections.len(), pool.births), (4, 1));
}

async fn a_pool_is_seen_as_it_changes(address: &str) {
    let mut stage = Stage::new(address, &[], None);
    let mut held: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    let copy = held[0].0.try_clone().unwrap();

    let pool = stage.pool().await;
    let Owner::Seen { instance, application } = &pool.owner else { panic!("{pool:?}") };
    assert_eq!(instance.pid, std::process::id());
    assert_eq!(pool.target, TargetKey::pool(&application.name, application.role, &stage.remote().into()));
    assert_eq!((pool.connections.len(), pool.births, pool.closes.len()), (3, 0, 0));
    assert!(pool.process_age.unwrap() < Duration::from_secs(3600));
    assert_eq!(pool.service, Some("postgresql"), "as it is configured");
    for (client, _) in &held {
        let seen = connection(&pool, client);
        assert_eq!(seen.local, client.local_addr().unwrap().into());
        assert_eq!((seen.state, seen.born), (TcpState::Established, false));
    }
    let mut fds = connection(&pool, &held[0].0).fds.clone();
    fds.sort_unstable();
    let mut expected = [held[0].0.as_raw_fd() as u32, copy.as_raw_fd() as u32];
    expected.sort_unstable();
    assert_eq!(fds, expected);
    assert_eq!(connection(&pool, &held[1].0).fds, [held[1].0.as_raw_fd() as u32]);

    held.push(stage.connect());
    let pool = stage.pool().await;
    assert_eq!((pool.connections.len(), pool.births, pool.closes.len()), (4, 1, 0));
    assert!(connection(&pool, &held[3].0).born);

    // One ends that was seen to be born, one that was not, and one lives between two looks.
    drop(held.pop());
    drop(held.pop());
    drop(stage.connect());
    let (mut births, mut closes) = (0, Vec::new());
    let deadline = Instant::now() + Duration::from_secs(20);
    while closes.len() < 3 || births < 1 {
        let pool = stage.pool().await;
        births += pool.opened();
        closes.extend(pool.closes);
        closes.extend(pool.presumed.into_iter().map(Some));
        assert_eq!(pool.connections.len(), 2);
        assert!(Instant::now() < deadline, "{births} {closes:?}");
    }
    assert_eq!((births, closes.len()), (1, 3));
    assert_eq!(closes.iter().filter(|lifetime| lifetime.is_none()).count(), 1);

    let (client, server) = held.pop().unwrap();
    drop(server);
    let cookie = socket_cookie(&client).unwrap();
    let remote = stage.remote();
    let waits = stage
        .until("CLOSE_WAIT", |look| {
            let pool = look.pools.iter().find(|pool| pool.remote == remote.into())?;
            pool.connections.iter().find(|one| one.cookie == cookie && one.state == TcpState::CloseWait).cloned()
        })
        .await;
    assert!(waits.state_age < waits.seen_for);
}

#[tokio::test]
async fn a_pool_over_v4_is_seen_as_it_changes() {
    a_pool_is_seen_as_it_changes("127.0.0.1:0").await;
}

#[tokio::test]
async fn a_pool_over_v6_is_seen_as_it_changes() {
    a_pool_is_seen_as_it_changes("[::1]:0").await;
}

#[tokio::test]
async fn the_other_end_on_this_host_is_known_by_its_holder() {
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let mut held: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    let peer = |server: &TcpStream| Some(Peer { pid: std::process::id(), fd: server.as_raw_fd() as u32 });
    let remote = stage.remote();
    stage
        .until("the other ends", |look| {
            let pool = look.pools.iter().find(|pool| pool.remote == remote.into())?;
            held.iter().all(|(client, server)| connection(pool, client).peer == peer(server)).then_some(())
        })
        .await;

    held.push(stage.connect());
    let (client, server) = &held[3];
    stage
        .until("the new one's", |look| {
            let pool = look.pools.iter().find(|pool| pool.remote == remote.into())?;
            (connection(pool, client).peer == peer(server)).then_some(())
        })
        .await;
    let now = Duration::from_secs(stage.second + 1);
    let state = stage.inspector.state.lock().unwrap();
    let sought: Vec<_> = state.peers.sought_ports(now).filter(|port| *port == remote.port()).collect();
    assert!(sought.is_empty(), "nothing is sought in a steady look");
}

/// Connections that wait for an answer on `listen`, by the process that is to give it.
fn in_flight(look: &HostLook, listen: SocketAddr, pid: u32) -> Option<(u32, Vec<u64>)> {
    let is_of = |owner: &Owner| matches!(owner, Owner::Seen { instance, .. } if instance.pid == pid);
    let row = look.services.iter().find(|row| row.listen == listen && is_of(&row.owner))?;
    Some((row.accepted, row.in_flight.iter().map(|one| one.cookie).collect()))
}

#[tokio::test]
async fn a_request_is_in_flight_from_its_arrival_to_its_answer() {
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let _pool = [stage.connect(), stage.connect()];
    let web = TcpListener::bind("[::1]:0").unwrap();
    let (address, ours) = (web.local_addr().unwrap(), std::process::id());
    let mut visitors: Vec<_> = (0..3)
        .map(|_| {
            let visitor = TcpStream::connect(address).unwrap();
            (visitor, web.accept().unwrap().0)
        })
        .collect();
    stage.until("nothing in flight", |look| (in_flight(look, address, ours)? == (3, vec![])).then_some(())).await;

    for (visitor, _) in &mut visitors[..2] {
        visitor.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    }
    let mut both: Vec<_> = visitors[..2].iter().map(|(_, served)| socket_cookie(served).unwrap()).collect();
    both.sort_unstable();
    stage
        .until("two in flight", |look| {
            let (_, mut cookies) = in_flight(look, address, ours)?;
            cookies.sort_unstable();
            (cookies == both).then_some(())
        })
        .await;
    let mut request = [0; 100];
    let (visitor, served) = &mut visitors[0];
    assert!(served.read(&mut request).unwrap() > 0);
    served.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    assert!(visitor.read(&mut request).unwrap() > 0);
    let left = vec![socket_cookie(&visitors[1].1).unwrap()];
    stage.until("one answered", |look| (in_flight(look, address, ours)? == (3, left.clone())).then_some(())).await;

    // One more waits to be accepted.
    let _waits = TcpStream::connect(address).unwrap();
    let queues = stage
        .until("the accept queue", |look| {
            let row = look.services.iter().find(|row| row.listen == address)?;
            (row.accept_queue == 1).then_some((row.accepted, row.backlog))
        })
        .await;
    assert_eq!(queues, (3, 128));
}

#[tokio::test]
async fn workers_that_share_a_port_have_their_own_requests_each() {
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let _pool = [stage.connect(), stage.connect()];
    let web = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = web.local_addr().unwrap().port();
    // Every address of v4 and of v6 is one service.
    let address: SocketAddr = format!("[::]:{port}").parse().unwrap();
    let ask = || {
        let mut visitor = TcpStream::connect(("127.0.0.1", port)).unwrap();
        visitor.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        (visitor, web.accept().unwrap().0)
    };
    let (ours, theirs) = (ask(), ask());
    let cookies = [&ours.1, &theirs.1].map(|served| socket_cookie(served).unwrap());
    // The worker holds the listener and one of the two requests.
    let mut worker = Command::new("sleep")
        .arg("86404")
        .stdin(OwnedFd::from(web.try_clone().unwrap()))
        .stdout(OwnedFd::from(theirs.1))
        .spawn()
        .unwrap();
    stage
        .until("a request of each", |look| {
            let of_test = in_flight(look, address, std::process::id())?;
            let of_worker = in_flight(look, address, worker.id())?;
            ((of_test, of_worker) == ((1, vec![cookies[0]]), (1, vec![cookies[1]]))).then_some(())
        })
        .await;
    // A process that is long known takes one more.
    let further = ask();
    let both = [cookies[0], socket_cookie(&further.1).unwrap()];
    stage
        .until("one more", |look| {
            let (accepted, in_flight) = in_flight(look, address, std::process::id())?;
            (accepted == 2 && both.iter().all(|it| in_flight.contains(it))).then_some(())
        })
        .await;
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[tokio::test]
async fn what_a_parent_accepts_and_a_child_with_a_pool_serves_is_the_childs() {
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let pool = [stage.connect(), stage.connect()];
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = web.local_addr().unwrap();
    let mut visitor = TcpStream::connect(address).unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let served = web.accept().unwrap().0;
    let cookie = socket_cookie(&served).unwrap();
    let [(first, _far), (second, _other)] = pool;
    let mut child = Command::new("sleep")
        .arg("86406")
        .stdin(OwnedFd::from(served))
        .stdout(OwnedFd::from(first))
        .stderr(OwnedFd::from(second))
        .spawn()
        .unwrap();
    let seen = stage.until("the child's request", |look| in_flight(look, address, child.id())).await;
    assert_eq!(seen, (1, vec![cookie]));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn what_was_sent_between_two_dumps_is_told_when_it_is_asked_for() {
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let held: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    let pool = stage.pool().await;
    assert!(pool.connections.iter().all(|one| one.picked.is_none()));

    let (mut client, mut server) = (held[0].0.try_clone().unwrap(), held[0].1.try_clone().unwrap());
    let talks = std::thread::spawn(move || {
        let mut byte = [0; 1];
        while client.write_all(b"?").is_ok() && server.read(&mut byte).is_ok_and(|length| length > 0) {}
    });
    let attention = stage.inspector.state.lock().unwrap().config.attention.clone();
    attention.want_order_test(true);
    let pool = stage.pool().await;
    let picked = held.iter().map(|(client, _)| connection(&pool, client).picked);
    assert_eq!(picked.collect::<Vec<_>>(), [Some(true), Some(false), Some(false)]);
    attention.want_order_test(false);
    assert!(stage.pool().await.connections.iter().all(|one| one.picked.is_none()));
    held[0].0.shutdown(std::net::Shutdown::Both).unwrap();
    talks.join().unwrap();
}

/// The pool over a unix socket of one process, when there is one.
fn unix_pool<'a>(look: &'a HostLook, path: &str, pid: u32) -> Option<&'a PoolRow> {
    let is_of = |owner: &Owner| matches!(owner, Owner::Seen { instance, .. } if instance.pid == pid);
    look.pools.iter().find(|pool| matches!(&pool.remote, End::Unix(it) if **it == *path) && is_of(&pool.owner))
}

#[tokio::test]
async fn a_pool_over_a_unix_socket_is_seen_as_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let bound = directory.path().join(".s.PGSQL.6543");
    let listener = UnixListener::bind(&bound).unwrap();
    let path = bound.canonicalize().unwrap().to_str().unwrap().to_owned();
    let connect = || (UnixStream::connect(&bound).unwrap(), listener.accept().unwrap().0);
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let ours = std::process::id();
    let mut held: Vec<_> = (0..3).map(|_| connect()).collect();
    // One connection waits to be accepted: it is nobody's yet, and no connection of the pool.
    let _waits = UnixStream::connect(&bound).unwrap();
    let peer = |server: &UnixStream| Some(Peer { pid: ours, fd: server.as_raw_fd() as u32 });
    let pool = stage
        .until("the pool with its other ends", |look| {
            let pool = unix_pool(look, &path, ours)?;
            pool.connections.iter().all(|one| one.peer.is_some()).then(|| pool.clone())
        })
        .await;
    assert_eq!((pool.service, pool.connections.len(), pool.births), (Some("postgresql"), 3, 0));
    assert!(pool.closes_incomplete && pool.target.as_str().ends_with(&format!(">unix:{path}")), "{pool:?}");
    for (client, server) in &held {
        let seen = pool.connections.iter().find(|one| one.fds == [client.as_raw_fd() as u32]).unwrap();
        assert_eq!((seen.peer, &seen.local, seen.state), (peer(server), &End::Unix("".into()), TcpState::Established));
        assert_eq!((seen.sent_age, seen.unsent), (None, 0));
    }

    // A child takes one over; one is born, and one ends that was not seen to be born.
    let (taken, _server) = held.pop().unwrap();
    let mut child = Command::new("sleep").arg("86405").stdin(OwnedFd::from(taken)).spawn().unwrap();
    drop(held.pop());
    held.push(connect());
    let (mut births, mut closes) = (0, 0);
    stage
        .until("one born and one ended", |look| {
            let pool = unix_pool(look, &path, ours)?;
            births += pool.births;
            closes += pool.closes.len();
            (births == 1 && closes == 1).then_some(())
        })
        .await;

    // A request that the server does not read, then a server that hangs up.
    held[0].0.write_all(b"SELECT 1").unwrap();
    let fd = held[0].0.as_raw_fd() as u32;
    let of_first =
        |look: &HostLook| unix_pool(look, &path, ours)?.connections.iter().find(|one| one.fds == [fd]).cloned();
    stage.until("what waits to be read", |look| of_first(look).filter(|one| one.unsent > 0)).await;
    drop(std::mem::replace(&mut held[0].1, UnixStream::pair().unwrap().0));
    let closed = stage.until("the hang-up", |look| of_first(look).filter(|one| one.state == TcpState::CloseWait)).await;
    assert_eq!(closed.peer, None);
    drop(listener);
    stage.until("it without its listener", |look| of_first(look).filter(|one| one.state == TcpState::CloseWait)).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_configured_unix_socket_of_any_name_is_watched_and_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    std::fs::create_dir(root.join("run")).unwrap();
    std::os::unix::fs::symlink("run", root.join("var")).unwrap();
    let (named, other) = (root.join("var/database"), root.join("other"));
    let listeners = [&named, &other].map(|path| UnixListener::bind(path).unwrap());
    let held = [&named, &named, &other, &other].map(|path| UnixStream::connect(path).unwrap());
    let accepted: Vec<_> = listeners.iter().flat_map(|it| [it.accept().unwrap(), it.accept().unwrap()]).collect();
    let path = root.join("run/database").to_str().unwrap().to_owned();
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let endpoints = stage.inspector.state.lock().unwrap().config.endpoints.clone();
    endpoints.set("test server", "postgresql", [End::Unix(path.as_str().into())]);
    let look = stage
        .until("the configured one", |look| unix_pool(look, &path, std::process::id()).is_some().then(|| look.clone()))
        .await;
    let pool = unix_pool(&look, &path, std::process::id()).unwrap();
    assert_eq!((pool.service, pool.connections.len()), (Some("postgresql"), 2));
    let other = End::Unix(other.to_str().unwrap().into());
    assert!(!look.pools.iter().any(|pool| pool.remote == other));
    assert_eq!(held.len(), accepted.len());
}

#[tokio::test]
async fn the_agents_own_connections_and_process_are_left_out() {
    let mut stage = Stage::new("127.0.0.1:0", &[], Some(std::process::id()));
    let _held: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    let remote = stage.remote();
    for _ in 0..3 {
        let look = stage.look().await;
        assert!(!look.pools.iter().any(|pool| pool.remote == remote.into()), "{look:?}");
        assert!(!look.processes.iter().any(|row| row.instance.pid == std::process::id()));
    }
}

#[tokio::test]
async fn where_sock_diag_is_refused_the_table_still_shows_pools() {
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let held: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    {
        let mut state = stage.inspector.state.lock().unwrap();
        state.is_open = true;
        state.sockets.source = Source::Table(Reason::Denied("sockets over NETLINK_SOCK_DIAG".into()));
    }
    let look = stage.look().await;
    assert!(look.closes_incomplete);
    let gap = &look.gaps[0];
    assert_eq!(
        (gap.checks, gap.reason.to_string().as_str()),
        (&["pool.churn"][..], "may not read sockets over NETLINK_SOCK_DIAG")
    );
    let pool = look.pools.iter().find(|pool| pool.remote == stage.remote().into()).unwrap();
    assert_eq!(pool.connections.len(), 3);
    assert!(pool.connections.iter().all(|one| one.state == TcpState::Established && one.sent_age.is_none()));
    let fds: Vec<_> = pool.connections.iter().flat_map(|one| one.fds.clone()).collect();
    assert!(held.iter().all(|(client, _)| fds.contains(&(client.as_raw_fd() as u32))));
}

/// A child of ours that holds two connections to the stage's server and ends when its input does. Its environment
/// and command line hold a password.
fn client_with_secrets(stage: &Stage) -> Child {
    let port = stage.remote().port();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} 4<>/dev/tcp/127.0.0.1/{port}; read -r line");
    Command::new("bash")
        .args(["-c", &script, "grants-worker", "--password=canary-argument"])
        .env("DATABASE_URL", format!("postgres://u:canary-dsn@127.0.0.1:{port}/x?pool_size=2&max_overflow=1"))
        .env("PGPASSWORD", "canary-environment")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_childs_pool_has_its_own_limit_and_tells_no_secret() {
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let mut child = client_with_secrets(&stage);
    let _accepted = [stage.listener.accept().unwrap(), stage.listener.accept().unwrap()];
    let (remote, pid) = (stage.remote(), child.id());
    let of_child = |owner: &Owner| matches!(owner, Owner::Seen { instance, .. } if instance.pid == pid);
    let (pool, process) = stage
        .until("the child's pool with its process", |look| {
            let pool = look.pools.iter().find(|pool| pool.remote == remote.into() && of_child(&pool.owner))?;
            let process = look.processes.iter().find(|row| row.instance.pid == pid && row.cpu.known().is_some())?;
            assert!(!format!("{look:?}").contains("canary"), "{look:?}");
            Some((pool.clone(), process.clone()))
        })
        .await;
    assert_eq!(pool.limit, Limit { value: Value::Known(3.0), source: "DATABASE_URL of the process".into() });
    let fds: Vec<_> = pool.connections.iter().flat_map(|one| one.fds.clone()).collect();
    assert_eq!(fds.len(), 2);
    assert!(fds.contains(&3) && fds.contains(&4));
    is_like_the_childs(&process);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
    stage.until("the pool's end", |look| (!look.pools.iter().any(|pool| of_child(&pool.owner))).then_some(())).await;
    let ended = stage.end_of(pid).await;
    assert_eq!((ended.instance, &ended.command), (process.instance, &process.command));
}

fn is_like_the_childs(row: &ProcessRow) {
    assert_eq!(row.target, TargetKey::process("bash", "main", None));
    assert_eq!(row.parent, std::process::id());
    assert_eq!(row.uid, rustix::process::getuid().as_raw());
    assert!(row.memory_is_pss && row.memory.known().unwrap() > 100_000.0);
    assert!(row.descriptors.known().unwrap() >= 5.0);
    assert_eq!(row.threads, Value::Known(1.0));
    assert!(row.age < Duration::from_secs(600));
    assert!(row.command.starts_with("bash -c"), "{}", row.command);
}

/// Told apart from the sleepers of other tests by its argument.
fn sleeper(seconds: &str) -> Child {
    Command::new("sleep").arg(seconds).spawn().unwrap()
}

fn row_of_pid(look: &HostLook, pid: u32) -> Option<ProcessRow> {
    look.processes.iter().find(|row| row.instance.pid == pid).cloned()
}

#[tokio::test]
async fn a_killed_process_is_told_at_once_and_only_once() {
    let mut stage = Stage::new("127.0.0.1:0", &[("sleeper", "sleep 86401")], None);
    let absent = TargetKey::process("sleeper", "main", None);
    assert_eq!(stage.look().await.absent, std::slice::from_ref(&absent));
    let mut child = sleeper("86401");
    let row = stage.until("the declared process", |look| row_of_pid(look, child.id())).await;
    assert_eq!((&row.target, row.application.declared), (&absent, true));
    assert!(stage.look().await.absent.is_empty());

    let killed = Instant::now();
    child.kill().unwrap();
    let ended = stage.end_of(child.id()).await;
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    assert_eq!((ended.target, ended.instance), (absent.clone(), row.instance));
    assert_eq!(ended.how.as_deref(), Some("killed by signal 9"));
    let look = stage.look().await;
    assert!(!is_told(&look, child.id()) && row_of_pid(&look, child.id()).is_none());
    child.wait().unwrap();
    stage.until("its absence", |look| (look.absent == [absent.clone()]).then_some(())).await;
    while let Ok(other) = stage.ended.try_recv() {
        assert_ne!(other.instance.pid, child.id(), "it was told already");
    }
}

fn is_told(look: &HostLook, pid: u32) -> bool {
    look.ended.iter().any(|ended| ended.instance.pid == pid)
}

#[tokio::test]
async fn without_a_listener_the_next_look_tells_the_end() {
    let mut stage = Stage::new("127.0.0.1:0", &[("sleeper", "sleep 86402")], None);
    stage.ended.close();
    let mut child = sleeper("86402");
    stage.until("the declared process", |look| row_of_pid(look, child.id())).await;
    child.kill().unwrap();
    child.wait().unwrap();
    stage.until("its end", |look| is_told(look, child.id()).then_some(())).await;
    assert!(!is_told(&stage.look().await, child.id()));
}

#[tokio::test]
async fn a_zombie_child_of_a_watched_process_is_told() {
    let mut stage = Stage::new("127.0.0.1:0", &[], None);
    let mut child = Command::new("true").spawn().unwrap();
    let ours = std::process::id();
    stage
        .until("the zombie", |look| {
            let row = row_of_pid(look, ours)?;
            row.zombies.iter().any(|(pid, age)| *pid == child.id() && *age >= Duration::from_secs(2)).then_some(())
        })
        .await;
    child.wait().unwrap();
    stage
        .until("its end", |look| {
            (!row_of_pid(look, ours)?.zombies.iter().any(|(pid, _)| *pid == child.id())).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_listening_process_is_watched_with_what_it_listens_on() {
    let mut stage = Stage::new("[::1]:0", &[], None);
    let remote = stage.remote();
    let row = stage.until("our process", |look| row_of_pid(look, std::process::id())).await;
    assert!(row.listens.contains(&remote), "{row:?}");
    let lowest = row.listens.iter().map(SocketAddr::port).min();
    let (_, port) = row.target.as_str().rsplit_once(':').unwrap();
    assert!(port.parse::<u16>().unwrap() <= lowest.unwrap(), "{row:?}");
}

#[tokio::test]
async fn without_a_proc_every_check_is_blind_and_says_so() {
    let config = Config { proc_root: "/nowhere".into(), ..Config::default() };
    let (mut inspector, _ended) = HostInspector::new(config);
    let Rows::Host(look) = inspector.inspect(Duration::from_secs(1)).await.rows else { panic!() };
    let told: Vec<_> = look.gaps.iter().map(|gap| (gap.reason.to_string(), gap.checks.len())).collect();
    assert_eq!(told, [("not offered here: /proc".to_owned(), ALL_CHECKS.len())]);
}
