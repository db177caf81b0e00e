//! Whether anything happened at a server since its sessions were read, which costs it a third of reading them again.
//!
//! A session that is idle changes by a statement, which gives it another `query_start`, or by its end. So while all are idle and the
//! server has the same backends with the same `query_start`, the rows that were read are true still, and only
//! their ages grow. The question is put before the sessions are read: what is the same at two of them was the same in between.
//!
//! What is called by the protocol alone, without a statement (`lo_read` of large objects), leaves `query_start` as it is. It belongs in
//! a transaction, and one is never believed to stand still; outside of any, what was read is believed for a minute.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Row;

use super::activity::{Micros, field};
use crate::inspect::server::{Session, SessionState};

/// All backends but our own, those of the server's own work among them. A `query_start` that our role may not see is null.
pub(super) const BACKENDS: &str = "/* tickbird */ \
SELECT array_agg(pg_stat_get_backend_pid(id)), array_agg(pg_stat_get_backend_activity_start(id)), statement_timestamp() \
  FROM pg_stat_get_backend_idset() AS id WHERE pg_stat_get_backend_pid(id) <> pg_backend_pid()";

/// How long what was read is believed.
const TRUSTED: Duration = Duration::from_secs(60);
/// Looks in which it is not asked after something happened, at most: a busy server pays a thirty-second of the question.
const LONGEST: u32 = 31;

/// A process id with its `query_start`.
type Backend = (i32, Option<Micros>);

/// The answer to [`BACKENDS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backends {
    /// In the server's order.
    all: Vec<Backend>,
    /// When it was asked, by the server's clock.
    pub(super) asked_at: Micros,
}

impl Backends {
    /// From the one row of [`BACKENDS`]; `None` when it is not as asked for.
    pub(super) fn read(rows: &[Row]) -> Option<Self> {
        let row = rows.first()?;
        let pids: Vec<Option<i32>> = field(row, 0)?;
        let starts: Vec<Option<Micros>> = field(row, 1)?;
        let all: Vec<_> = pids.into_iter().zip(starts).filter_map(|(pid, start)| Some((pid?, start))).collect();
        Some(Self { all, asked_at: field(row, 2)? })
    }

    /// Whether nothing happened between both but in sessions of our own, of which only the number is told.
    fn is_as(&self, before: &Self, own: &BTreeSet<i32>) -> bool {
        let same = |(now, then): (&Backend, &Backend)| now == then || now.0 == then.0 && own.contains(&now.0);
        self.all.len() == before.all.len() && self.all.iter().zip(&before.all).all(same)
    }
}

/// What is remembered from look to look.
#[derive(Debug)]
pub(super) struct Still<R> {
    /// The backends before the sessions were read, and the sessions, while none was active.
    known: Option<(Backends, R)>,
    /// Looks in which it is not asked.
    left: u32,
    /// How many these were at first.
    pause: u32,
}

impl<R> Default for Still<R> {
    fn default() -> Self {
        Self { known: None, left: 0, pause: 0 }
    }
}

impl<R> Still<R> {
    /// Whether to ask for [`BACKENDS`] at this look.
    pub(super) fn is_asked(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        true
    }

    /// The sessions that were read, if they are true still.
    pub(super) fn same(&mut self, now: &Backends, own: &BTreeSet<i32>) -> Option<&R> {
        let is_same = self.known.as_ref().is_some_and(|(before, _)| now.is_as(before, own));
        if is_same {
            self.pause = 0;
            // Nothing happened that anybody could see; it is read again all the same.
            self.known.take_if(|(before, _)| now.asked_at.since(before.asked_at) >= TRUSTED);
            return self.known.as_ref().map(|(_, rows)| rows);
        }
        if self.known.take().is_some() {
            self.pause();
        }
        None
    }

    /// Takes what was read after these backends; `is_quiet` when no session was active.
    pub(super) fn read(&mut self, backends: Backends, is_quiet: bool, rows: R) {
        if !is_quiet {
            self.pause();
        }
        // The next look asks for the backends only where these are worth comparing.
        self.known = (is_quiet && self.left == 0).then_some((backends, rows));
    }

    /// It is not to be had from this server.
    pub(super) const fn give_up(&mut self) {
        self.left = u32::MAX;
    }

    fn pause(&mut self) {
        self.pause = (2 * self.pause + 1).min(LONGEST);
        self.left = self.pause;
    }
}

/// Whether a session changes only by a statement or its end.
pub(super) fn is_quiet(session: &Session) -> bool {
    session.state == SessionState::Idle
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(all: &[(i32, Option<i64>)]) -> Backends {
        let all = all.iter().map(|(pid, start)| (*pid, start.map(Micros::of))).collect();
        Backends { all, asked_at: Micros::of(0) }
    }

    fn none() -> BTreeSet<i32> {
        BTreeSet::new()
    }

    /// As the inspector does it; whether the sessions had to be read.
    fn look(still: &mut Still<u32>, now: &Backends, own: &BTreeSet<i32>, is_quiet: bool) -> (bool, bool) {
        if !still.is_asked() {
            return (false, true);
        }
        let is_same = still.same(now, own).is_some();
        if !is_same {
            still.read(now.clone(), is_quiet, 7);
        }
        (true, !is_same)
    }

    #[test]
    fn what_was_read_stands_until_a_statement_begins_or_a_backend_comes_or_goes() {
        let before = backends(&[(10, None), (11, Some(5)), (12, Some(6))]);
        let mut still = Still::default();
        assert_eq!(look(&mut still, &before, &none(), true), (true, true), "nothing was read yet");
        for _ in 0..100 {
            assert_eq!(look(&mut still, &before, &none(), true), (true, false));
        }
        for other in [
            &[(10, None), (11, Some(5)), (12, Some(7))][..],
            &[(10, None), (11, Some(5))],
            &[(10, None), (11, Some(5)), (12, Some(6)), (13, None)],
            &[(10, None), (11, Some(5)), (13, Some(6))],
            &[(10, None), (11, Some(5)), (12, None)],
            &[(10, Some(1)), (11, Some(5)), (12, Some(6))],
        ] {
            let mut still = Still::default();
            still.read(before.clone(), true, 7);
            assert_eq!(look(&mut still, &backends(other), &none(), true), (true, true), "{other:?}");
        }
    }

    #[test]
    fn what_was_read_is_read_again_after_a_minute_and_without_a_pause() {
        let at = |seconds: i64| Backends { asked_at: Micros::of(seconds * 1_000_000), ..backends(&[(11, Some(5))]) };
        let mut still = Still::default();
        let looks = (0..130).map(|second| look(&mut still, &at(second), &none(), true));
        let read: Vec<usize> =
            looks.enumerate().filter(|(_, it)| *it == (true, true)).map(|(second, _)| second).collect();
        assert_eq!(read, [0, 60, 120]);
    }

    #[test]
    fn other_agents_of_our_role_may_ask_and_may_not_go() {
        let (before, own) = (backends(&[(10, Some(1)), (11, Some(5))]), BTreeSet::from([10]));
        let mut still = Still::default();
        still.read(before, true, 7);
        assert_eq!(look(&mut still, &backends(&[(10, Some(2)), (11, Some(5))]), &own, true), (true, false));
        assert_eq!(look(&mut still, &backends(&[(11, Some(5))]), &own, true), (true, true));
    }

    #[test]
    fn an_active_session_is_read_again_whatever_the_backends_say() {
        let before = backends(&[(11, Some(5))]);
        let mut still = Still::default();
        assert_eq!(look(&mut still, &before, &none(), false), (true, true));
        let mut reads = 0;
        for _ in 0..10 {
            reads += u32::from(look(&mut still, &before, &none(), false).1);
        }
        assert_eq!(reads, 10);
    }

    /// A server on which something happens between any two looks pays hardly more than for its sessions.
    #[test]
    fn a_busy_server_is_asked_ever_more_rarely_and_a_quiet_one_each_time() {
        let mut still = Still::default();
        let mut asked = 0;
        for at in 0..1_000 {
            let (is_asked, is_read) = look(&mut still, &backends(&[(11, Some(at))]), &none(), true);
            assert!(is_read, "look {at}");
            asked += u32::from(is_asked);
        }
        assert!((50..80).contains(&asked), "{asked} of 1,000");
        let quiet = backends(&[(11, Some(5_000))]);
        let saved = (0..200).filter(|_| !look(&mut still, &quiet, &none(), true).1).count();
        assert!(saved > 160, "{saved} of 200");
        assert_eq!(look(&mut still, &backends(&[(11, Some(5_001))]), &none(), true), (true, true));
        assert_eq!(look(&mut still, &quiet, &none(), true), (false, true), "the first pause is short");
        assert!(look(&mut still, &quiet, &none(), true).0);
    }

    #[test]
    fn a_server_that_does_not_know_the_question_is_not_asked_again() {
        let mut still = Still::<u32>::default();
        assert!(still.is_asked());
        still.give_up();
        assert!((0..100).all(|_| !still.is_asked()));
    }
}
