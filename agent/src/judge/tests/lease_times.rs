//! What a pool's own leases teach of how long one may take, and what is no example of it.

use super::sessions::leaking;
use super::*;
use crate::inspect::server::SessionState;

const LEAK: &str = "pool.leak";

/// Five sessions that were left in a transaction for 48 s each teach the pool nothing of how long a lease may take.
#[test]
fn transactions_that_were_left_open_do_not_make_a_later_leak_look_usual() {
    // Nothing goes over a connection while its session waits.
    let left = |leaked: usize, seconds: f64| {
        let (mut host, server) = leaking(leaked, seconds);
        for (index, it) in host.pools[0].connections.iter_mut().enumerate().take(leaked) {
            let age = Duration::from_secs_f64((seconds - index as f64).max(0.2));
            (it.sent_age, it.received_age) = (Some(age), Some(age));
        }
        (host, server)
    };
    let mut night = Night::begin();
    // Short transactions of four sessions, and now and then five that are left open and end.
    night.scenes(80, |seconds| {
        let look = (seconds / 5.0) as u32;
        if look % 20 < 10 {
            return left(5, f64::from(look % 20) * 5.0);
        }
        let (mut host, mut server) = leaking(0, 0.0);
        let rows = server.sessions.as_mut().expect("sessions");
        for row in rows.iter_mut().take(if look.is_multiple_of(2) { 4 } else { 0 }) {
            row.state = SessionState::IdleInTransaction;
            row.state_age = Some(Duration::from_millis(200));
            row.transaction_age = row.state_age;
        }
        for it in host.pools[0].connections.iter_mut().take(4) {
            (it.sent_age, it.received_age) = (Some(Duration::from_millis(200)), Some(Duration::from_millis(200)));
        }
        (host, server)
    });
    night.told();
    night.scenes(30, |seconds| left(2, seconds));
    let after = night.told_of(LEAK);
    assert_eq!(after.matches("began").count(), 1, "within 150 s: {after}");
}

/// A pool of twenty at this second: eight are in transactions of twenty seconds with a statement every third of one,
/// two think in theirs since `thinks` seconds.
fn working(second: u32, thinks: Option<f64>) -> (HostLook, ServerLook) {
    let (mut host, mut server) = leaking(0, 0.0);
    let rows = server.sessions.as_mut().expect("sessions");
    // After the server's look comes the host's, and nothing was sent between the two.
    let rests = if second % 5 == 1 { 0.32 } else { 0.02 };
    for (index, it) in host.pools[0].connections.iter_mut().enumerate().take(10) {
        let (quiet, transaction) = match thinks {
            // Each has begun at a time of its own.
            _ if index < 8 => (rests, f64::from((second + index as u32 * 3) % 20) + 0.1),
            Some(quiet) => (quiet - (index - 8) as f64 * 2.0, quiet + 0.3),
            None => continue,
        };
        let session = &mut rows[index];
        session.state = SessionState::IdleInTransaction;
        (session.state_age, session.transaction_age) = (seconds(quiet), seconds(transaction));
        (it.sent_age, it.received_age) = (seconds(quiet + 0.01), seconds(quiet));
    }
    (host, server)
}

fn seconds(count: f64) -> Option<Duration> {
    Some(Duration::from_secs_f64(count))
}

/// Every second a look at the host, after every fifth one a look at the server.
fn works(night: &mut Night, seconds: u32, thinks: impl Fn(u32) -> Option<f64>) {
    for second in 1..=seconds {
        let (host, server) = working(second, thinks(second));
        night.wait(if second % 5 == 1 { 0.3 } else { 1.0 }).host(&host);
        if second.is_multiple_of(5) {
            night.wait(0.7).server(&server);
        }
    }
}

/// The last statement of such a transaction is always young; the transaction is what the lease takes.
#[test]
fn long_transactions_of_short_statements_let_two_sessions_think_in_theirs() {
    let mut night = Night::begin();
    works(&mut night, 600, |_| None);
    // Two that think for 14 s and 12 s, again and again.
    works(&mut night, 300, |second| Some(f64::from(second % 15)).filter(|it| *it >= 3.0));
    assert_eq!(night.told_of(LEAK), "");
    // Two that are never given back are a leak all the same, some time later.
    works(&mut night, 500, |second| Some(f64::from(second) + 3.0));
    let told = night.told_of(LEAK);
    assert_eq!(told.matches("began").count(), 1, "{told}");
    let bound = evidence(night.found.iter().rfind(|it| it.check == LEAK).expect("told"))["bound_seconds"].clone();
    assert!(bound.as_f64().is_some_and(|it| (300.0..=420.0).contains(&it)), "twenty times 15 to 21 s: {bound}");
}
