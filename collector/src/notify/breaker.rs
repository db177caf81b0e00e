//! Stops asking a receiver that does not answer: after five failures in a row one attempt at a time, ever more rarely.

use std::fmt;
use std::time::Duration;

use tickbird_shared::backoff::Backoff;

/// Failures in a row after which the breaker opens.
const FAILURES: u32 = 5;
/// Waits while it is open: up to two seconds at first, never over a minute.
const BASE: Duration = Duration::from_secs(2);
const CAP: Duration = Duration::from_secs(60);

/// Whether a receiver is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Yes.
    Closed,
    /// Not now.
    Open,
    /// One attempt at a time, to see whether it is back.
    HalfOpen,
}

impl BreakerState {
    /// `closed`, `open` or `half_open`, as in `/readyz`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state of one receiver's breaker. Pure: `now` is monotonic time since any fixed moment.
#[derive(Debug)]
pub(super) struct Breaker {
    failures: u32,
    open_until: Option<Duration>,
    backoff: Backoff,
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self { failures: 0, open_until: None, backoff: Backoff::new(BASE, CAP) }
    }

    pub(super) fn state(&self, now: Duration) -> BreakerState {
        match self.open_until {
            None => BreakerState::Closed,
            Some(until) if now < until => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// When attempts may be made again, while it is open.
    pub(super) fn open_until(&self, now: Duration) -> Option<Duration> {
        self.open_until.filter(|until| now < *until)
    }

    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::new();
    }

    /// Counts a failure; `unit` is uniform in `0.0..1.0`.
    pub(super) fn failed(&mut self, now: Duration, unit: f64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            // Half of the wait is certain: a breaker that closes at once does not protect anybody.
            let wait = self.backoff.after_failure(unit, None);
            self.open_until = Some(now + BASE / 2 + wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn opens_after_five_failures_tries_once_and_closes_with_the_first_success() {
        let mut breaker = Breaker::new();
        for _ in 0..4 {
            breaker.failed(s(0), 1.0);
        }
        assert_eq!(breaker.state(s(0)), BreakerState::Closed);
        breaker.failed(s(0), 1.0);
        assert_eq!((breaker.state(s(2)), breaker.state(s(3))), (BreakerState::Open, BreakerState::HalfOpen));
        breaker.failed(s(3), 1.0);
        assert_eq!((breaker.state(s(7)), breaker.state(s(8))), (BreakerState::Open, BreakerState::HalfOpen));
        breaker.succeeded();
        assert_eq!((breaker.state(s(8)), breaker.failures()), (BreakerState::Closed, 0));
    }

    #[test]
    fn never_stays_open_for_much_over_a_minute() {
        let mut breaker = Breaker::new();
        for _ in 0..1_000 {
            breaker.failed(s(0), 1.0);
        }
        assert_eq!(breaker.open_until(s(0)), Some(s(61)));
    }
}
