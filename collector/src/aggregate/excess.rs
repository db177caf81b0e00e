//! When an agent that is refused is told of: once it goes on with it.
//!
//! A connection that was left behind, or one request before its time, happens to every agent. Ten refusals within five
//! minutes do not. What the agent tells of itself (its clock) and what ends by itself (silence) is counted and not told.

use std::collections::BTreeMap;
use std::time::Duration;

use tickbird_shared::Timestamp;

use super::incident::elapsed;

/// Refusals after which it is told.
const TOLD_FROM: u64 = 10;
/// Within this time.
const WINDOW: Duration = Duration::from_secs(300);
/// What is only counted.
const COUNTED_ONLY: [&str; 2] = ["clock_skew", "silent"];

/// What one agent was refused lately.
#[derive(Debug, Default)]
pub(super) struct Excess {
    since: Option<Timestamp>,
    limits: BTreeMap<&'static str, u64>,
}

impl Excess {
    /// Adds to it; what there is to tell, and since when.
    pub(super) fn add(
        &mut self,
        limit: &'static str,
        times: u64,
        now: Timestamp,
    ) -> Option<(&BTreeMap<&'static str, u64>, Timestamp)> {
        if COUNTED_ONLY.contains(&limit) {
            return None;
        }
        let since = match self.since {
            // Also after a step of the clock back.
            Some(since) if since <= now && elapsed(since, now) < WINDOW => since,
            _ => {
                self.limits.clear();
                *self.since.insert(now)
            }
        };
        *self.limits.entry(limit).or_default() += times;
        let times: u64 = self.limits.values().sum();
        (times >= TOLD_FROM).then_some((&self.limits, since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_on_is_told_of_and_who_stumbles_is_not() {
        let at = |second: i64| Timestamp::from_second(1_790_000_000 + second).expect("in range");
        let mut excess = Excess::default();
        assert!(excess.add("clock_skew", 1_000, at(0)).is_none());
        assert!(excess.add("slow", 4, at(0)).is_none());
        assert!(excess.add("too_large", 5, at(299)).is_none());
        assert!(excess.add("slow", 9, at(301)).is_none(), "another five minutes");
        let (limits, since) = excess.add("gap", 1, at(302)).expect("ten");
        assert_eq!((limits.len(), since), (2, at(301)));
        assert!(excess.add("gap", 1, at(-100)).is_none(), "the clock was set back");
    }
}
