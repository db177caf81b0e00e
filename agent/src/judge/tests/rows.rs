//! Rows as inspectors give them, small enough to read in a test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::discover::{Application, End, Instance, TargetKey};
use crate::inspect::host::{Connection, Ended, Limit, Owner, PoolRow, ProcessRow, Sharers, TcpState, Vantage};
use crate::inspect::server::{Engine, Session, SessionState};
use crate::inspect::{Reason, ServerLook, Value};

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

pub(crate) fn application(name: &str) -> Application {
    Application { name: name.into(), role: "main", declared: false }
}

/// A process of `name`, an hour old, that listens on `port` if it is not 0, with healthy numbers.
pub(crate) fn process(name: &str, pid: u32, port: u16) -> ProcessRow {
    let absent = || Value::Unknown(Reason::Absent("cgroup v2".into()));
    ProcessRow {
        target: TargetKey::process(name, "main", Some(port).filter(|it| *it > 0)),
        application: application(name),
        instance: Instance { pid, start: u64::from(pid) * 100 },
        parent: 1,
        uid: 1000,
        command: format!("/usr/bin/python3 {name}.py").into(),
        age: Duration::from_secs(3600),
        memory: Value::Known(100.0 * 1_048_576.0),
        memory_is_pss: true,
        cgroup_memory: absent(),
        cgroup_limit: absent(),
        cgroup_max_events: absent(),
        cgroup_oom_kills: absent(),
        cpu: Value::Known(0.1),
        descriptors: Value::Known(20.0),
        descriptor_limit: Value::Known(1024.0),
        threads: Value::Known(4.0),
        zombies: Vec::new(),
        listens: if port > 0 { vec![SocketAddr::from(([0, 0, 0, 0], port))] } else { Vec::new() },
    }
}

/// The end of such a process, noticed at `at`.
pub(crate) fn end_of(row: &ProcessRow, at: Duration) -> Ended {
    Ended {
        target: row.target.clone(),
        application: row.application.clone(),
        instance: row.instance,
        command: row.command.clone(),
        age: row.age,
        at,
        how: None,
    }
}

/// A pool of `name` in process `pid`, without connections and limit.
pub(crate) fn pool(name: &str, pid: u32, remote: &str) -> PoolRow {
    let remote = address(remote);
    let application = application(name);
    PoolRow {
        target: TargetKey::pool(name, "main", &End::Tcp(remote)),
        owner: Owner::Seen { application, instance: Instance { pid, start: u64::from(pid) * 100 } },
        remote: End::Tcp(remote),
        service: (remote.port() == 5432).then_some("postgresql"),
        connections: Vec::new(),
        births: 0,
        closes: Vec::new(),
        presumed: Vec::new(),
        closes_incomplete: false,
        vantage: Vantage::Own,
        process_age: Some(Duration::from_secs(3600)),
        limit: Limit { value: Value::Unknown(Reason::NotYet("none")), source: "nobody".into() },
        dsn: crate::inspect::host::DsnRow::default(),
    }
}

/// An established connection that was used a second ago.
pub(crate) fn connection(local: &str, fd: u32) -> Connection {
    let local = address(local);
    Connection {
        cookie: u64::from(local.port()),
        fds: vec![fd],
        sharers: Sharers::default(),
        local: End::Tcp(local),
        peer: None,
        state: TcpState::Established,
        sent_age: Some(Duration::from_secs(1)),
        received_age: Some(Duration::from_secs(1)),
        acknowledged_age: Some(Duration::from_secs(1)),
        unacknowledged: Some(0),
        unsent: 0,
        segments_out: Some(10),
        picked: None,
        state_age: Duration::from_secs(60),
        seen_for: Duration::from_secs(60),
        born: false,
        keepalive: true,
        retransmits: 0,
        probes: 0,
    }
}

/// A server that was asked, with room, whose sessions are all visible.
pub(crate) fn server(at: &str, sessions: Vec<Session>) -> ServerLook {
    ServerLook {
        target: TargetKey::server(at, "app"),
        engine: Engine::PostgreSql,
        addresses: vec![address(at)],
        socket_path: None,
        connect: Value::Known(0.004),
        refused: None,
        used: Value::Known(sessions.len() as f64 + 1.0),
        sessions: Ok(sessions),
        slots: Value::Known(97.0),
        hidden: None,
        unseen: 0,
        waiters: Vec::new(),
        pool_mode: None,
        carries_statements: false,
        facts: Box::default(),
    }
}

/// An idle session of database `app`, user `web`, from the given client.
pub(crate) fn session(backend: u64, client: &str) -> Session {
    let client = address(client);
    Session {
        backend,
        address: Some(client.ip()),
        port: Some(client.port()),
        socket_fd: None,
        client_pid: None,
        address_candidates: Vec::new(),
        link: None,
        database: "app".into(),
        user: "web".into(),
        application_name: "shop".into(),
        state: SessionState::Idle,
        state_age: Some(Duration::from_secs(1)),
        transaction_age: None,
        session_age: Some(Duration::from_secs(600)),
        waits_for: None,
        holds_lock: false,
        statement: Some(Arc::from("SELECT $1")),
    }
}
