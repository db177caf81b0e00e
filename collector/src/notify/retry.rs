//! What becomes of a message after an attempt: delivered, tried again, or given up: after seven days, or after a minute in which
//! the receiver said each time that it is this message which it does not take, and took another one, or said that this one is too large. The
//! same bytes would be refused for the whole week, and all that is told of the same thing waits behind them. Who takes nothing else either
//! has a fault of its own, whatever it answers.

use std::time::Duration;

use tickbird_shared::Timestamp;
use tickbird_shared::backoff::Backoff;

use super::{Answer, NotifyError};
use crate::ledger::Outcome;
use crate::store::OutboxRow;

/// Waits of up to a second after the first failure, doubling to at most two minutes.
const BASE: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_secs(120);
/// The longest wait that a receiver may ask for.
const LONGEST_WISH: Duration = Duration::from_secs(3600);
/// No attempt waits for longer than this.
pub(super) const LONGEST: Duration = Duration::from_secs(LONGEST_WISH.as_secs() + CAP.as_secs());
/// After this long without a yes a message is a dead letter.
pub(super) const GIVE_UP: Duration = Duration::from_secs(7 * 24 * 3600);
/// and not within so long after a start.
const TRIED_FOR: Duration = Duration::from_secs(60);

/// What is refused for what it is gets so many attempts at least,
const REFUSALS: u32 = 5;
/// and so much time: who is being deployed, or has a gateway that is, answers nonsense for a moment.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// Refusals of a message for what it is, in a row. Kept in memory only: a restart gives it another minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusals {
    count: u32,
    since: Timestamp,
    /// It is the message, and not the receiver, as far as can be said.
    is_its_own: bool,
}

impl Refusals {
    /// With the result of one more attempt, which ended at `now`; none where it was no such refusal. `taken_at` is when the receiver took
    /// something last.
    pub(super) fn after(
        before: Option<Self>,
        result: &Result<Answer, NotifyError>,
        taken_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Self> {
        let error = result.as_ref().err().filter(|it| it.is_about_the_message())?;
        let Self { count, since, is_its_own } = before.unwrap_or(Self { count: 0, since: now, is_its_own: false });
        let is_its_own = is_its_own || error.is_hopeless() || taken_at.is_some_and(|it| it >= since);
        Some(Self { count: count.saturating_add(1), since, is_its_own })
    }

    /// When it is given up.
    fn end(self) -> Timestamp {
        self.since.saturating_add(REFUSED_FOR).unwrap_or(Timestamp::MAX)
    }
}

/// When a message is given up, on the clock `steady` that nobody sets and that has run for `uptime`. A clock that is set, in either direction,
/// is no reason to give it up: it was decided a week ago by both clocks, and a start from a wrong one has had its time to try.
pub(super) fn end_of(decided_at: Timestamp, wall: Timestamp, (steady, uptime): (Timestamp, Duration)) -> Timestamp {
    let age = |now: Timestamp| Duration::try_from(now.duration_since(decided_at)).unwrap_or_default();
    let age = age(wall).min(age(steady));
    let left = GIVE_UP.saturating_sub(age).max(TRIED_FOR.saturating_sub(uptime));
    steady.saturating_add(left).unwrap_or(Timestamp::MAX)
}

/// What an attempt that ended at `now` comes to; `end` is that of the message, `refusals` are those of before with this one, `unit` is uniform
/// in `0.0..1.0`.
pub(super) fn outcome(
    message: &OutboxRow,
    result: &Result<Answer, NotifyError>,
    refusals: Option<Refusals>,
    (now, mut end): (Timestamp, Timestamp),
    unit: f64,
) -> Outcome {
    let error = match result {
        Ok(answer) => return Outcome::Delivered { answer: answer.to_string() },
        Err(error) => error,
    };
    let (uncertain, text) = (error.is_uncertain(), error.chain());
    let refused_enough = refusals.is_some_and(|it| it.is_its_own && it.count >= REFUSALS && now >= it.end());
    if now >= end || refused_enough {
        return Outcome::Dead { uncertain, error: text };
    }
    let wished = error.retry_after().map(|wait| wait.min(LONGEST_WISH));
    let mut failures = message.attempts;
    if let Some(refusals) = refusals.filter(|it| it.is_its_own || it.count < REFUSALS) {
        // It may have waited for days before: what is refused is done with soon all the same.
        failures = refusals.count - 1;
        end = end.min(refusals.end().max(now.saturating_add(BASE).unwrap_or(now)));
    }
    let wait = backoff(failures).after_failure(unit, wished);
    // The last attempt is made when the time is over, not given up before.
    let at = now.saturating_add(wait).unwrap_or(end).min(end);
    Outcome::Retry { at, uncertain, error: text }
}

/// The backoff of a message after so many attempts, which survive a restart while the backoff does not.
fn backoff(attempts: u32) -> Backoff {
    let mut backoff = Backoff::new(BASE, CAP);
    for _ in 0..attempts.min(16) {
        backoff.after_failure(0.0, None);
    }
    backoff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MessageState;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("in range")
    }

    fn message(attempts: u32) -> OutboxRow {
        OutboxRow {
            tenant: "default".into(),
            id: "msg_1".into(),
            receiver: "ops".into(),
            incident: "I".into(),
            kind: "incident.firing".into(),
            form: Some("webhook".into()),
            body: Vec::new(),
            decided_at: at(0),
            state: MessageState::Waiting,
            attempts,
            uncertain: 0,
            next_attempt_at: at(0),
            settled_at: None,
            said: None,
        }
    }

    fn week() -> Timestamp {
        at(7 * 24 * 3_600)
    }

    fn retry_at(attempts: u32, error: NotifyError, now: i64) -> i64 {
        match outcome(&message(attempts), &Err(error), None, (at(now), week()), 1.0) {
            Outcome::Retry { at: next, .. } => next.as_second() - at(0).as_second(),
            other => panic!("{other:?}"),
        }
    }

    fn answered(status: u16, retry_after: Option<u64>) -> NotifyError {
        NotifyError::Answered { status, retry_after: retry_after.map(Duration::from_secs) }
    }

    #[test]
    fn waits_double_over_restarts_and_stay_under_two_minutes() {
        let waits: Vec<_> = (0..9).map(|attempts| retry_at(attempts, answered(500, None), 0)).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 120, 120]);
        assert_eq!(retry_at(u32::MAX, answered(500, None), 0), 120);
    }

    #[test]
    fn what_the_receiver_asks_for_is_a_floor_within_reason() {
        assert_eq!(retry_at(0, answered(429, Some(30)), 0), 31);
        assert_eq!(retry_at(0, answered(503, Some(999_999)), 0), 3_601);
        assert_eq!(retry_at(u32::MAX, answered(503, Some(999_999)), 0), LONGEST.as_secs() as i64, "the longest of all");
    }

    #[test]
    fn seven_days_then_one_last_attempt_then_a_dead_letter() {
        let week = 7 * 24 * 3600;
        assert_eq!(retry_at(20, answered(500, None), week - 10), week);
        let now = |second| (at(second), end_of(at(0), at(second), (at(second), GIVE_UP)));
        let dead = outcome(&message(21), &Err(answered(500, None)), None, now(week), 0.5);
        assert!(matches!(&dead, Outcome::Dead { uncertain: true, error } if error.contains("500")), "{dead:?}");
        assert!(
            matches!(outcome(&message(21), &Ok(Answer::of(204)), None, now(week + 1), 0.5), Outcome::Delivered { answer } if answer == "answered 204")
        );
    }

    #[test]
    fn a_clock_that_is_set_gives_nothing_up() {
        let (hour, week) = (3_600, 7 * 24 * 3_600);
        let is_over = |decided, wall, steady, uptime| {
            end_of(at(decided), at(wall), (at(steady), Duration::from_secs(uptime))) <= at(steady)
        };
        assert!(is_over(0, week, week, 2 * 3_600));
        assert!(!is_over(0, hour, 2 * week, 3_600), "set back by two weeks since the start, an hour ago");
        assert!(!is_over(0, 2 * week, hour, 3_600), "set forward since it was decided");
        assert!(!is_over(0, 2 * week, 2 * week, 59), "a start by a clock that is ahead");
        assert!(is_over(0, 2 * week, 2 * week, 60));
    }

    /// When it is tried and at last given up, in seconds after the first attempt, by a receiver that answers so each time and took another one
    /// meanwhile.
    fn refused(attempts: u32, unit: f64, answers: impl Fn(i64) -> NotifyError) -> (Vec<i64>, bool) {
        refused_beside(Some(at(10)), attempts, unit, answers)
    }

    fn refused_beside(
        taken_at: Option<Timestamp>,
        attempts: u32,
        unit: f64,
        answers: impl Fn(i64) -> NotifyError,
    ) -> (Vec<i64>, bool) {
        let (mut message, mut refusals, mut now, mut tried) = (message(attempts), None, 0, Vec::new());
        while now < 1_000 {
            tried.push(now);
            let result = Err(answers(now));
            let taken_at = taken_at.filter(|it| *it <= at(now));
            refusals = Refusals::after(refusals, &result, taken_at, at(now));
            match outcome(&message, &result, refusals, (at(now), week()), unit) {
                Outcome::Retry { at: next, .. } => now = (next.as_second() - at(0).as_second()).max(now + 1),
                Outcome::Dead { .. } => return (tried, true),
                other => panic!("{other:?}"),
            }
            message.attempts += 1;
        }
        (tried, false)
    }

    #[test]
    fn what_is_refused_for_what_it_is_is_given_up_after_a_minute() {
        for status in [400, 413, 422] {
            let slow = (vec![0, 1, 3, 7, 15, 31, 60], true);
            assert_eq!(refused(0, 1.0, |_| answered(status, None)), slow, "{status}");
            assert_eq!(refused(50, 1.0, |_| answered(status, None)), slow, "after a long outage, too");
        }
        let (tried, is_dead) = refused(0, 0.0, |_| answered(400, None));
        assert!(is_dead && tried.last() == Some(&60), "in a minute that is lucky, too: {tried:?}");
        let letter = |code| move |_| NotifyError::Said { step: super::super::Step::Letter, code };
        assert!(refused(0, 1.0, letter(554)).1);
        assert!(!refused(0, 1.0, letter(451)).1, "later may be another word");
    }

    /// An expired key, a quota, a gateway that is being deployed: ends are owed, and nobody else is told while the receiver is said to be well.
    #[test]
    fn who_takes_nothing_at_all_has_a_fault_of_its_own() {
        let before = || at(0).checked_sub(Duration::from_secs(1)).ok();
        for taken_at in [None, before()] {
            assert!(!refused_beside(taken_at, 0, 1.0, |_| answered(400, None)).1);
            assert!(refused_beside(taken_at, 0, 1.0, |_| answered(413, None)).1, "that is about the size of this one");
        }
        assert!(refused_beside(Some(at(200)), 0, 1.0, |_| answered(400, None)).1, "once it took another one");
    }

    #[test]
    fn what_may_be_another_word_later_waits_out_its_week() {
        assert!(!refused(0, 1.0, |_| answered(404, None)).1, "what is wrong with every message is mended by somebody");
        assert!(!refused(0, 1.0, |_| answered(413, Some(5))).1, "it says that it may take it then");
        let now_and_then = |now| answered(if now % 10 < 5 { 400 } else { 500 }, None);
        assert!(!refused(0, 0.3, now_and_then).1, "not in a row");
        // What an earlier start of the collector was told five times in vain is not given up at the next one's first attempt.
        let late = Refusals { count: 1, since: at(0), is_its_own: true };
        assert!(matches!(
            outcome(&message(9), &Err(answered(400, None)), Some(late), (at(300), week()), 1.0),
            Outcome::Retry { at: next, .. } if next == at(301)
        ));
    }
}
