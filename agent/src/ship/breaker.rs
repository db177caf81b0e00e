//! When to try again: growing waits, and after some failures in a row one probe at a time.
//!
//! ```text
//! closed ──(5 failures in a row)──▶ open ──(its wait is over)──▶ half open ──(probe fails)──▶ open
//!    ▲                                                              │
//!    └──────────────────────────(probe succeeds)────────────────────┘
//! ```
//!
//! While it is closed, what failed is tried again after its wait. A probe is an empty batch, so a collector that comes
//! back is not met with a mebibyte from each of its agents at once.

use std::fmt;
use std::time::Duration;

use tickbird_shared::backoff::Backoff;

/// Whether the way to the collector works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It does, or failed only a few times.
    Closed,
    /// It does not: nothing is tried until the wait is over.
    Open,
    /// It did not; one probe is due or under way.
    HalfOpen,
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half open",
        })
    }
}

/// See the module. `now` is monotonic.
#[derive(Debug, Clone)]
pub(super) struct Breaker {
    backoff: Backoff,
    opens_after: u32,
    not_before: Duration,
}

impl Breaker {
    pub(super) const fn new(backoff: Backoff, opens_after: u32) -> Self {
        Self { backoff, opens_after, not_before: Duration::ZERO }
    }

    pub(super) fn state(&self, now: Duration) -> BreakerState {
        match () {
            () if self.backoff.failures() < self.opens_after => BreakerState::Closed,
            () if now < self.not_before => BreakerState::Open,
            () => BreakerState::HalfOpen,
        }
    }

    /// Failures in a row.
    pub(super) const fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// How long nothing may be tried; `None` when it may be now.
    pub(super) fn wait(&self, now: Duration) -> Option<Duration> {
        self.not_before.checked_sub(now).filter(|wait| !wait.is_zero())
    }

    /// An attempt failed. `unit` is uniform in `0.0..1.0`; `at_least` is the collector's wish.
    pub(super) fn fail(&mut self, now: Duration, unit: f64, at_least: Option<Duration>) {
        self.not_before = now + self.backoff.after_failure(unit, at_least);
    }

    /// An attempt did not get there: tried again after `cap` at most.
    pub(super) fn fail_on_the_way(&mut self, now: Duration, unit: f64, cap: Duration) {
        self.not_before = now + self.backoff.after_failure_within(unit, cap);
    }

    /// The collector works and asks for patience: no failure, but nothing is tried until then.
    pub(super) fn pause(&mut self, now: Duration, wait: Duration) {
        self.not_before = self.not_before.max(now + wait);
    }

    /// An attempt succeeded.
    pub(super) fn succeed(&mut self) {
        self.backoff.reset();
        self.not_before = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn opens_after_failures_in_a_row_probes_and_closes_on_success() {
        let mut breaker = Breaker::new(Backoff::new(s(1), s(30)), 3);
        for _ in 0..2 {
            breaker.fail(s(0), 1.0, None);
            assert_eq!(breaker.state(s(0)), BreakerState::Closed);
        }
        breaker.fail(s(0), 1.0, None);
        assert_eq!((breaker.state(s(3)), breaker.wait(s(3))), (BreakerState::Open, Some(s(1))));
        assert_eq!((breaker.state(s(4)), breaker.wait(s(4))), (BreakerState::HalfOpen, None));
        breaker.fail(s(4), 1.0, Some(s(10)));
        assert_eq!(breaker.wait(s(4)), Some(s(18)), "the collector's wish and the fourth wait");
        breaker.succeed();
        assert_eq!((breaker.state(s(5)), breaker.wait(s(5))), (BreakerState::Closed, None));
        assert_eq!(breaker.failures(), 0);
    }

    #[test]
    fn a_way_that_is_cut_is_tried_again_soon_however_long_it_was_cut() {
        let mut breaker = Breaker::new(Backoff::new(s(1), s(30)), 3);
        for _ in 0..20 {
            breaker.fail_on_the_way(s(0), 1.0, s(5));
        }
        assert_eq!((breaker.state(s(0)), breaker.wait(s(0))), (BreakerState::Open, Some(s(5))));
        breaker.fail(s(5), 1.0, None);
        assert_eq!(breaker.wait(s(5)), Some(s(30)), "who answers that it cannot is left alone for longer");
    }

    #[test]
    fn a_pause_is_no_failure() {
        let mut breaker = Breaker::new(Backoff::new(s(1), s(30)), 1);
        breaker.pause(s(10), s(5));
        assert_eq!((breaker.state(s(12)), breaker.wait(s(12))), (BreakerState::Closed, Some(s(3))));
    }
}
