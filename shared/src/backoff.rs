//! Growing waits between attempts, with full jitter: `random(0, min(cap, base · 2ⁿ))`.
//!
//! Full jitter spreads a thousand agents that lost the same collector evenly over the whole wait; equal or
//! decorrelated jitter leaves them in a clump.

use std::time::Duration;

/// The state of one series of attempts. Pure: the caller supplies the random number and does the waiting.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits of up to `base` after the first failure, doubling to at most `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// Failures in a row so far.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure and says how long to wait. `unit` is uniform in `0.0..1.0`; `at_least` is what the
    /// peer asked for (`Retry-After`) and is kept as a floor, to which the jitter is added.
    pub fn after_failure(&mut self, unit: f64, at_least: Option<Duration>) -> Duration {
        at_least.unwrap_or_default() + self.after_failure_within(unit, self.cap)
    }

    /// The same for a failure whose next attempt burdens nobody: it waits for at most `cap`, if that is shorter.
    pub fn after_failure_within(&mut self, unit: f64, cap: Duration) -> Duration {
        let ceiling = self.base.saturating_mul(1 << self.failures.min(20)).min(self.cap).min(cap);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(unit.clamp(0.0, 1.0))
    }

    /// An attempt succeeded: the next failure starts from `base` again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(8));
        let longest: Vec<_> = (0..7).map(|_| backoff.after_failure(1.0, None).as_millis()).collect();
        assert_eq!(longest, [500, 1000, 2000, 4000, 8000, 8000, 8000]);
        backoff.reset();
        assert_eq!(backoff.after_failure(1.0, None).as_millis(), 500);
    }

    #[test]
    fn jitter_covers_the_whole_wait_and_the_peers_wish_is_a_floor() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(backoff.after_failure(0.0, None), Duration::ZERO);
        let wait = backoff.after_failure(0.5, Some(Duration::from_secs(7)));
        assert_eq!(wait, Duration::from_secs(8));
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for _ in 0..10_000 {
            assert!(backoff.after_failure(1.0, None) <= Duration::from_secs(60));
        }
    }
}
