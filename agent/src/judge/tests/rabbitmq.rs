//! RabbitMQ: its connections are named and nothing is concluded from their being quiet or busy.

use super::rows::{connection, pool, server, session};
use super::*;
use crate::inspect::host::PoolRow;
use crate::inspect::server::{Engine, SessionState};
use crate::inspect::{HostLook, Reason, ServerLook, Value};
use crate::judge::Verdict;

const AT: &str = "10.0.0.8:5672";

fn pool_of(count: u32) -> PoolRow {
    let mut it = pool("shop", 77, AT);
    it.service = Some("rabbitmq");
    it.connections = (0..count).map(|index| connection(&format!("10.0.0.9:{}", 40_000 + index), 10 + index)).collect();
    for (index, it) in it.connections.iter_mut().enumerate() {
        // Half of them published last, half consumed last, all long ago.
        let (sent, received) = if index % 2 == 0 { (100, 200) } else { (200, 100) };
        (it.sent_age, it.received_age) = (Some(Duration::from_secs(sent)), Some(Duration::from_secs(received)));
    }
    it
}

fn scene(count: u32) -> (HostLook, ServerLook) {
    let client = |index: u32| {
        let mut it = session(u64::from(40_000 + index), &format!("10.0.0.9:{}", 40_000 + index));
        (it.state, it.state_age, it.statement) = (SessionState::Unknown, None, None);
        it
    };
    let mut look = server(AT, (0..count).map(client).collect());
    look.engine = Engine::RabbitMq;
    (host_of(vec![pool_of(count)]), look)
}

#[test]
fn connections_are_named_and_neither_busy_nor_held() {
    let mut night = Night::begin();
    night.scenes(60, |_| scene(10));
    let pools = night.judge.pools();
    let all: Vec<_> = pools.iter().flat_map(|it| &it.connections).collect();
    assert_eq!(all.iter().filter(|it| it.session.is_some()).count(), 10);
    assert!(all.iter().all(|it| it.verdict == Verdict::Unknown), "{all:?}");
    assert_eq!(night.told(), "");
    let judged =
        |check: &str| night.judge.states().iter().any(|it| it.check == check && it.target.as_str().contains("shop"));
    assert!(!judged("pool.idle_in_transaction"), "it has none that could be left open");
    assert_eq!(night.is("pool.leak", "shop"), "not yet", "no rule of ours names one");
}

#[test]
fn a_full_node_has_no_headroom_and_a_refusal_is_blind_once() {
    let mut night = Night::begin();
    night.scenes(4, |_| {
        let (host, mut look) = scene(10);
        (look.used, look.slots) = (Value::Known(24.0), Value::Known(27.0));
        (host, look)
    });
    assert!(night.told().contains("db.headroom began warning"));
    assert!(night.last().summary.contains("uses 24 of its 27 connection slots"), "{}", night.last().summary);
    let mut night = Night::begin();
    night.scenes(4, |_| {
        let (host, mut look) = scene(10);
        let reason = Reason::Denied("RabbitMQ at 10.0.0.8:15672: Login failed (HTTP 401)".to_owned());
        (look.used, look.slots) = (Value::Unknown(reason.clone()), Value::Unknown(reason.clone()));
        (look.connect, look.sessions) = (Value::Unknown(reason.clone()), Err(reason));
        (host, look)
    });
    assert_eq!(night.is("db.headroom", "server:"), "blind");
    assert!(!night.judge.states().iter().any(|it| it.check == "pool.idle_in_transaction"));
}
