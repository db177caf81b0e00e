//! When a pool or a server will be empty if its count goes on rising as it did in the last ten minutes.

use std::collections::VecDeque;
use std::time::Duration;

use super::words;
use crate::inspect::{Reason, Value};

/// For so long counts are kept.
const KEPT: Duration = Duration::from_secs(600);
/// One count is kept for each of these.
const STEP: Duration = Duration::from_secs(5);
/// A trend needs so much time.
const LEAST: Duration = Duration::from_secs(30);
/// The trend has ended when the count has not risen for so long, or for twice its own pace where that is longer.
const ENDED: Duration = Duration::from_secs(60);

const NO_TREND: Reason = Reason::NotYet("a steady rise");
const NO_LIMIT: Reason = Reason::NotYet("a limit");

/// How a count went: the held connections of a pool, the used slots of a server.
#[derive(Debug, Default)]
pub(super) struct Trend {
    counts: VecDeque<(Duration, u32)>,
    rose_at: Duration,
}

impl Trend {
    /// Takes a count in.
    pub(super) fn take(&mut self, count: u32, now: Duration) {
        let last = self.counts.back().copied();
        // A new height, not a wave on the way: what only swings does not rise.
        if self.counts.iter().all(|(_, before)| count > *before) {
            self.rose_at = now;
        }
        if last.is_some_and(|(at, before)| now.saturating_sub(at) < STEP && before == count) {
            return;
        }
        self.counts.push_back((now, count));
        while self.counts.len() > 240 || self.counts.front().is_some_and(|(at, _)| now.saturating_sub(*at) > KEPT) {
            self.counts.pop_front();
        }
    }

    /// Seconds until the count has risen by `room`, at least and at most: a range, from the middle half of the slopes
    /// between all pairs of counts.
    pub(super) fn empty_in(&self, room: Option<(f64, f64)>, now: Duration) -> Value {
        let Some((least, most)) = room else { return Value::Unknown(NO_LIMIT) };
        let Some((low, high)) = self.slopes() else { return Value::Unknown(NO_TREND) };
        let patience = ENDED.as_secs_f64().max(2.0 / low);
        if now.saturating_sub(self.rose_at).as_secs_f64() > patience {
            return Value::Unknown(NO_TREND);
        }
        Value::Between(least.max(0.0) / high, most.max(0.0) / low)
    }

    /// The first and third quartile of the slopes since the count was last at its lowest, when it rises: the quiet night
    /// before says nothing of the pace.
    fn slopes(&self) -> Option<(f64, f64)> {
        let lowest = self.counts.iter().map(|(_, count)| *count).min()?;
        let begin = self.counts.iter().rposition(|(_, count)| *count == lowest)?;
        let (first, last) = (self.counts.get(begin)?, self.counts.back()?);
        if last.0.saturating_sub(first.0) < LEAST || last.1 <= first.1 {
            return None;
        }
        let rise = self.counts.iter().skip(begin);
        let all: Vec<_> = rise.map(|(at, count)| (at.as_secs_f64(), f64::from(*count))).collect();
        let mut slopes = Vec::with_capacity(all.len() * all.len() / 2);
        for (index, (at, count)) in all.iter().enumerate() {
            // Neighbours say little more than the grain of the steps.
            slopes.extend(
                all[index + 1..]
                    .iter()
                    .filter(|(later, _)| later - at >= LEAST.as_secs_f64() / 2.0)
                    .map(|(later, more)| (more - count) / (later - at)),
            );
        }
        slopes.sort_by(f64::total_cmp);
        let quartile = |part: usize| slopes.get(slopes.len() * part / 4).copied();
        quartile(1).zip(quartile(3)).filter(|(low, _)| *low > 0.0)
    }
}

/// `; at this rate the pool is empty in 3.3 min to 5 min` as it stands behind a summary; nothing where it is not known.
pub(super) fn in_words(what: &str, empty_in: &Value) -> String {
    match empty_in {
        Value::Between(low, high) => {
            format!("; at this rate {what} in {} to {}", words::seconds(*low), words::seconds(*high))
        }
        Value::Known(_) | Value::Unknown(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// One more every `pace` seconds for `length`, looked at each second.
    fn rising(pace: u64, length: u64) -> Trend {
        let mut trend = Trend::default();
        (0..=length).for_each(|at| trend.take((at / pace) as u32, seconds(at)));
        trend
    }

    #[test]
    fn a_steady_leak_says_when_the_pool_is_empty() {
        let Value::Between(low, high) = rising(10, 120).empty_in(Some((12.0, 12.0)), seconds(120)) else {
            panic!("a range")
        };
        assert!((80.0..=120.0).contains(&low) && (120.0..=180.0).contains(&high), "{low} to {high}");
    }

    #[test]
    fn a_leak_after_ten_quiet_minutes_is_forecast_by_its_own_pace() {
        let mut trend = Trend::default();
        (0..600).for_each(|at| trend.take(0, seconds(at)));
        // One more every four seconds.
        (600..640).for_each(|at| trend.take(((at - 600) / 4) as u32, seconds(at)));
        let Value::Between(low, high) = trend.empty_in(Some((11.0, 11.0)), seconds(640)) else { panic!("a range") };
        assert!((30.0..=44.0).contains(&low) && (44.0..=60.0).contains(&high), "{low} to {high}");
    }

    #[test]
    fn without_a_limit_or_a_trend_nothing_is_guessed() {
        assert!(matches!(rising(10, 120).empty_in(None, seconds(120)), Value::Unknown(_)));
        assert!(matches!(rising(10, 20).empty_in(Some((12.0, 12.0)), seconds(20)), Value::Unknown(_)), "too short");
        let mut flat = Trend::default();
        (0..300).for_each(|at| flat.take(5, seconds(at)));
        assert!(matches!(flat.empty_in(Some((12.0, 12.0)), seconds(300)), Value::Unknown(_)));
    }

    #[test]
    fn a_trend_that_stopped_is_none() {
        let mut trend = rising(10, 120);
        (121..400).for_each(|at| trend.take(12, seconds(at)));
        assert!(matches!(trend.empty_in(Some((12.0, 12.0)), seconds(400)), Value::Unknown(_)));
    }

    #[test]
    fn a_rise_that_ended_in_waves_is_none() {
        let mut trend = rising(10, 300);
        (301..420).for_each(|at| trend.take(28 + [0, 2, 1][at as usize / 5 % 3], seconds(at)));
        assert!(matches!(trend.empty_in(Some((12.0, 12.0)), seconds(420)), Value::Unknown(_)));
    }

    #[test]
    fn a_pool_that_gives_back_has_no_forecast() {
        let mut trend = rising(10, 120);
        (121..150).for_each(|at| trend.take(0, seconds(at)));
        assert!(matches!(trend.empty_in(Some((12.0, 12.0)), seconds(150)), Value::Unknown(_)));
    }
}
