//! When a certificate is renewed, and tried again. Pure: the caller says what time it is and supplies chance.

use std::time::Duration;

use tickbird_shared::Timestamp;
use tickbird_shared::backoff::Backoff;

/// The longest wait between two attempts.
const LONGEST: Duration = Duration::from_secs(3600);
/// The same once the certificate has ended, and nothing else is possible.
const LONGEST_AFTER: Duration = Duration::from_secs(30);

/// The renewal of one certificate.
#[derive(Debug, Clone)]
pub struct Renewal {
    ends: Timestamp,
    due: Timestamp,
    not_before: Timestamp,
    backoff: Backoff,
    longest: Duration,
    /// The collector said that it has ended.
    is_hurried: bool,
}

impl Renewal {
    /// Of a certificate with this life: due at two thirds of it, less up to a fifteenth by chance (`unit` is uniform in
    /// `0.0..1.0`), so that agents that were enrolled together do not come together.
    pub fn new(begins: Timestamp, ends: Timestamp, unit: f64) -> Self {
        let life = Duration::try_from(ends.duration_since(begins)).unwrap_or_default();
        let due = begins.saturating_add(life.mul_f64((2.0 - unit.clamp(0.0, 1.0) / 5.0) / 3.0)).unwrap_or(ends);
        let longest = (life / 20).clamp(Duration::from_secs(1), LONGEST);
        let (not_before, backoff) = (Timestamp::MIN, Backoff::new(longest / 10, longest));
        Self { ends, due, not_before, backoff, longest, is_hurried: false }
    }

    /// Of a certificate that somebody else renews.
    pub fn of_others(begins: Timestamp, ends: Timestamp) -> Self {
        Self { due: Timestamp::MAX, ..Self::new(begins, ends, 0.0) }
    }

    /// Whether it should be tried now.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.wait(now).is_zero()
    }

    /// How long until it should be tried.
    pub fn wait(&self, now: Timestamp) -> Duration {
        let until = |at: Timestamp| Duration::try_from(at.duration_since(now)).unwrap_or_default();
        // A wait that is longer than any was said before the clock was set back.
        until(self.due).max(Some(until(self.not_before)).filter(|it| *it <= self.longest).unwrap_or_default())
    }

    /// Whether the certificate's life is over.
    pub fn has_ended(&self, now: Timestamp) -> bool {
        self.ends <= now
    }

    /// An attempt failed: the next one is after a wait that grows to a twentieth of the certificate's life, or an hour; once
    /// it has ended, to half a minute.
    pub fn failed(&mut self, now: Timestamp, unit: f64) {
        let mut wait = self.backoff.after_failure(unit, None);
        if self.has_ended(now) {
            wait = wait.min(LONGEST_AFTER.mul_f64(f64::midpoint(unit.clamp(0.0, 1.0), 1.0)));
        }
        self.not_before = now.saturating_add(wait).unwrap_or(now);
    }

    /// Attempts that failed.
    pub const fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Of a certificate that was made just now. By a clock that is far ahead it is due already, or has ended: as long as
    /// nobody says so, it is renewed after half of its life all the same, not at once again.
    pub fn of_new(begins: Timestamp, ends: Timestamp, unit: f64, now: Timestamp) -> Self {
        let mut it = Self::new(begins, ends, unit);
        if it.is_due(now) {
            it.longest = Duration::try_from(ends.duration_since(begins)).unwrap_or_default() / 2;
            it.not_before = now.saturating_add(it.longest).unwrap_or(now);
        }
        it
    }

    /// The collector says that the certificate's life is over, whatever the clock here says.
    pub fn hurry(&mut self) {
        if self.due != Timestamp::MAX {
            if !self.is_hurried {
                self.not_before = Timestamp::MIN;
            }
            self.due = Timestamp::MIN;
            self.is_hurried = true;
        }
    }

    /// Whether its life is over by the collector's clock or by this one: then it is renewed with its own key.
    pub fn needs_own_key(&self, now: Timestamp) -> bool {
        self.is_hurried || self.has_ended(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
    }

    #[test]
    fn is_due_at_two_thirds_or_a_little_earlier() {
        let due = |unit, now| Renewal::new(at(0), at(3_000), unit).is_due(at(now));
        assert!(!due(0.0, 1_999) && due(0.0, 2_000));
        assert!(!due(1.0, 1_799) && due(1.0, 1_800));
        assert!(!due(0.0, 1_000) && due(0.0, 9_000) && Renewal::new(at(0), at(3_000), 0.0).has_ended(at(3_000)));
    }

    #[test]
    fn what_fails_is_tried_again_at_growing_waits_and_a_clock_set_back_does_not_stop_it() {
        let mut it = Renewal::new(at(0), at(2_592_000), 0.0);
        let now = at(1_728_000);
        let waits: Vec<_> = (0..6)
            .map(|_| {
                it.failed(now, 1.0);
                it.wait(now).as_secs()
            })
            .collect();
        assert_eq!(waits, [360, 720, 1_440, 2_880, 3_600, 3_600]);
        assert!(it.wait(at(1_728_000 - 86_400)) == Duration::from_secs(86_400), "it is not due yet");
        let mut late = Renewal::new(at(0), at(2_592_000), 0.0);
        late.failed(at(2_500_000), 1.0);
        assert!(late.is_due(at(2_400_000)), "the wait was said by a clock that was ahead");
        late.failed(at(2_592_000), 0.5);
        assert!(late.wait(at(2_592_000)) <= LONGEST_AFTER, "an agent that was off is back soon after its collector");
        it.hurry();
        assert!(it.is_due(at(0)));
        let mut of_others = Renewal::of_others(at(0), at(3_000));
        of_others.hurry();
        assert!(!of_others.is_due(at(2_999)) && of_others.has_ended(at(3_000)));
    }

    #[test]
    fn by_a_clock_that_is_wrong_it_is_renewed_at_its_pace_and_when_the_collector_says_so() {
        let ahead = at(3_600);
        let mut it = Renewal::of_new(at(0), at(120), 0.0, ahead);
        assert_eq!(it.wait(ahead), Duration::from_secs(60));
        assert!(it.needs_own_key(ahead) && !it.is_due(ahead + jiff::SignedDuration::from_secs(59)));
        assert_eq!(it.wait(at(10)), Duration::from_secs(70), "the clock is right again");
        it.hurry();
        assert!(it.is_due(ahead));
        it.failed(ahead, 1.0);
        it.hurry();
        assert!(!it.is_due(ahead), "said again it waits as after any failure");
        let behind = at(-3_600);
        let mut it = Renewal::of_new(at(0), at(120), 0.0, behind);
        assert!(!it.is_due(behind) && !it.needs_own_key(behind));
        it.hurry();
        assert!(it.is_due(behind) && it.needs_own_key(behind));
        assert_eq!(Renewal::of_new(at(0), at(120), 0.0, at(12)).wait(at(12)), Duration::from_secs(68));
    }

    proptest! {
        /// However often it fails, there are at least three attempts between two thirds and the end.
        #[test]
        fn there_is_time_for_several_attempts(life in 5_i64..100_000_000, units in proptest::collection::vec(0.0_f64..1.0, 4)) {
            let mut it = Renewal::new(at(0), at(life), units[0]);
            let mut now = at(0);
            for unit in &units[1..] {
                now = now.saturating_add(it.wait(now)).expect("in range");
                prop_assert!(it.is_due(now) && !it.has_ended(now));
                it.failed(now, *unit);
            }
        }
    }
}
