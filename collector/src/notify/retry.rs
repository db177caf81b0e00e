//! What becomes of a message after an attempt: delivered, tried again, or given up after seven days.

use std::time::Duration;

use tickbird_shared::Timestamp;
use tickbird_shared::backoff::Backoff;

use super::NotifyError;
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

/// What an attempt that ended at `now` comes to; `unit` is uniform in `0.0..1.0`.
pub(super) fn outcome(message: &OutboxRow, result: &Result<(), NotifyError>, now: Timestamp, unit: f64) -> Outcome {
    let Err(error) = result else { return Outcome::Delivered };
    let (uncertain, text) = (error.is_uncertain(), error.chain());
    let end = message.decided_at.saturating_add(GIVE_UP).unwrap_or(Timestamp::MAX);
    if now >= end {
        return Outcome::Dead { uncertain, error: text };
    }
    let wished = error.retry_after().map(|wait| wait.min(LONGEST_WISH));
    let wait = backoff(message.attempts).after_failure(unit, wished);
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
            body: Vec::new(),
            decided_at: at(0),
            state: MessageState::Waiting,
            attempts,
            uncertain: 0,
            next_attempt_at: at(0),
            settled_at: None,
            last_error: None,
        }
    }

    fn retry_at(attempts: u32, error: NotifyError, now: i64) -> i64 {
        match outcome(&message(attempts), &Err(error), at(now), 1.0) {
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
        let dead = outcome(&message(21), &Err(answered(500, None)), at(week), 0.5);
        assert!(matches!(&dead, Outcome::Dead { uncertain: true, error } if error.contains("500")), "{dead:?}");
        assert!(matches!(outcome(&message(21), &Ok(()), at(week + 1), 0.5), Outcome::Delivered));
    }
}
