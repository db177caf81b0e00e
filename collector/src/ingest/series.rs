//! How many series an agent has: a measure of a target is one. What is over the bound is refused record by record.

use std::collections::HashSet;
use std::time::Duration;

/// A series that nobody spoke of for this long, up to twice as long, makes room.
const KEPT: Duration = Duration::from_secs(3_600);

/// The series of one agent, by hash.
#[derive(Debug, Default)]
pub(super) struct Series {
    now: HashSet<u64>,
    /// Those of the hour before, as far as they did not come again.
    before: HashSet<u64>,
    since: Duration,
}

impl Series {
    /// Whether a summary of this series may be stored.
    pub(super) fn admit(&mut self, series: u64, most: usize, now: Duration) -> bool {
        if now.saturating_sub(self.since) >= KEPT {
            self.before = std::mem::take(&mut self.now);
            self.since = now;
        }
        if self.now.contains(&series) {
            return true;
        }
        if !self.before.remove(&series) && self.now.len() + self.before.len() >= most {
            return false;
        }
        self.now.insert(series)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_over_the_bound_is_refused_until_others_are_old() {
        let hours = |it: u64| Duration::from_secs(it * 3_600);
        let mut series = Series::default();
        let mut admit = |it: u64, at: u64| series.admit(it, 3, hours(at));
        assert_eq!([admit(1, 0), admit(2, 0), admit(3, 0), admit(4, 0), admit(1, 0)], [true, true, true, false, true]);
        assert_eq!([admit(1, 1), admit(4, 1)], [true, false], "those of the hour before count");
        assert_eq!([admit(1, 2), admit(4, 2), admit(5, 2), admit(6, 2)], [true, true, true, false]);
    }
}
