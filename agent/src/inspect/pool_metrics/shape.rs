//! The numbers of one pool, and which library's names they came by.

use crate::inspect::{Reason, Value};

use super::NOT_TOLD;

/// What a source says of one pool; what it does not say is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Numbers {
    pub(super) limit: Option<f64>,
    pub(super) in_use: Option<f64>,
    pub(super) idle: Option<f64>,
    pub(super) open: Option<f64>,
    pub(super) waiting: Option<f64>,
    pub(super) oldest_wait: Option<f64>,
    /// Connections that are kept when idle; with an overflow the limit is larger, and not told.
    pub(super) size: Option<f64>,
    /// Connections that it opens though nobody asks for one.
    pub(super) least: Option<f64>,
    /// Idle connections that it keeps ready whatever is in use.
    pub(super) least_idle: Option<f64>,
    /// Idle connections beyond which it closes one that is given back.
    pub(super) most_idle: Option<f64>,
    /// What it counts since its process began.
    pub(super) totals: Totals,
}

/// Counters of one pool since its process began; what is not told is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Callers that had to wait for a connection.
    pub waits: Option<f64>,
    /// Seconds that callers have waited, in all, once their wait was over.
    pub wait_seconds: Option<f64>,
    /// Callers that gave up.
    pub timeouts: Option<f64>,
    /// Connections that were given back.
    pub uses: Option<f64>,
    /// Seconds for which those were in use, in all.
    pub use_seconds: Option<f64>,
}

impl Totals {
    /// What was added since `earlier`; nothing of a counter that was set back.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.with(earlier, |later, earlier| Some(later - earlier).filter(|it| *it >= 0.0))
    }

    fn with(&self, other: &Self, of: impl Fn(f64, f64) -> Option<f64>) -> Self {
        let both = |one: Option<f64>, other: Option<f64>| of(one?, other?);
        Self {
            waits: both(self.waits, other.waits),
            wait_seconds: both(self.wait_seconds, other.wait_seconds),
            timeouts: both(self.timeouts, other.timeouts),
            uses: both(self.uses, other.uses),
            use_seconds: both(self.use_seconds, other.use_seconds),
        }
    }
}

impl Numbers {
    /// Whether anything is told that no socket tells.
    pub(super) fn is_telling(&self) -> bool {
        let it = self.completed();
        it.in_use.is_some() || it.waiting.is_some()
    }

    /// Of open, used and idle any two give the third.
    pub(super) fn completed(mut self) -> Self {
        match (self.open, self.in_use, self.idle) {
            (None, Some(in_use), Some(idle)) => self.open = Some(in_use + idle),
            (Some(open), None, Some(idle)) => self.in_use = Some(open - idle),
            (Some(open), Some(in_use), None) => self.idle = Some(open - in_use),
            _ => (),
        }
        self
    }

    /// The limit, or what is certain of it.
    pub(super) fn limit(&self) -> Value {
        let no_limit = || Value::Unknown(Reason::NotYet("not judged: the pool has no limit"));
        match (self.limit, self.size) {
            // Zero means without limit to Go, minus one to others.
            (Some(limit), _) if limit <= 0.0 || !limit.is_finite() => no_limit(),
            (Some(limit), _) => Value::Known(limit),
            // SQLAlchemy opens without limit when the size is 0.
            (None, Some(size)) if size <= 0.0 => no_limit(),
            (None, Some(size)) => Value::Between(size.max(self.open.unwrap_or(size)), f64::INFINITY),
            (None, None) => NOT_TOLD,
        }
    }

    /// Adds another process's numbers of the same pool. What one of them does not say is not known of both.
    pub(super) fn add(&mut self, other: &Self) {
        let add = |left: Option<f64>, right: Option<f64>| Some(left? + right?);
        let longest = |left: Option<f64>, right: Option<f64>| Some(left?.max(right?));
        *self = Self {
            limit: add(self.limit, other.limit),
            in_use: add(self.in_use, other.in_use),
            idle: add(self.idle, other.idle),
            open: add(self.open, other.open),
            waiting: add(self.waiting, other.waiting),
            oldest_wait: longest(self.oldest_wait, other.oldest_wait),
            size: add(self.size, other.size),
            least: add(self.least, other.least),
            least_idle: add(self.least_idle, other.least_idle),
            most_idle: add(self.most_idle, other.most_idle),
            totals: self.totals.with(&other.totals, |one, other| Some(one + other)),
        };
    }
}

/// A key as every library would write it: `totalCount`, `total_count` and `pool_total_count` are one.
pub(super) fn plain(key: &str) -> String {
    let plain: String =
        key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).take(64).collect();
    let short = plain.strip_prefix("pool").filter(|it| !it.is_empty());
    short.map_or_else(|| plain.clone(), str::to_owned)
}

/// The numbers behind keys in the form of [`plain`], when together they are those of a known library.
pub(super) fn recognised(get: impl Fn(&str) -> Option<f64>) -> Option<(Numbers, &'static str)> {
    let any = |keys: &[&str]| keys.iter().find_map(|key| get(key));
    let waiting = any(&["requestswaiting", "waitingcount", "waiting"]);
    let mut numbers = Numbers { waiting, ..Numbers::default() };
    if let Some(in_use) = any(&["checkedout", "currentcheckedoutconnections"]) {
        let size = any(&["size"]);
        let overflow = any(&["overflow", "currentoverflow"]);
        numbers.in_use = Some(in_use);
        numbers.idle = any(&["checkedin"]);
        // Without overflow it is below zero by as much as the pool is not filled.
        numbers.open = numbers.idle.map(|idle| idle + in_use).or_else(|| Some(size? + overflow?));
        numbers.limit = any(&["limit", "max"]).or_else(|| Some(size? + get("maxoverflow")?));
        numbers.size = size;
        return Some((numbers, "SQLAlchemy's pool"));
    }
    if let (Some(open), Some(idle)) = (get("size"), get("available")) {
        (numbers.open, numbers.idle, numbers.limit) = (Some(open), Some(idle), get("max"));
        numbers.least = get("min");
        return Some((numbers, "psycopg_pool's statistics"));
    }
    if let (Some(open), Some(idle)) = (get("totalcount"), get("idlecount")) {
        (numbers.open, numbers.idle, numbers.limit) = (Some(open), Some(idle), any(&["max", "maxcount"]));
        return Some((numbers, "pg-pool's counts"));
    }
    if let (Some(limit), Some(in_use)) = (get("size"), get("busy")) {
        (numbers.limit, numbers.in_use) = (Some(limit), Some(in_use));
        (numbers.idle, numbers.open) = (get("idle"), get("connections"));
        return Some((numbers, "ActiveRecord's pool statistics"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, f64)]) -> Option<(Numbers, &'static str)> {
        recognised(|key| pairs.iter().find(|(it, _)| plain(it) == key).map(|(_, value)| *value))
    }

    #[test]
    fn each_library_is_known_by_its_names() {
        let (it, by) = read(&[("pool_min", 4.0), ("pool_max", 10.0), ("pool_size", 6.0), ("pool_available", 2.0)])
            .expect("psycopg_pool");
        assert_eq!(
            (it.limit(), it.completed().in_use, it.least, by),
            (Value::Known(10.0), Some(4.0), Some(4.0), "psycopg_pool's statistics")
        );
        let (it, by) = read(&[("totalCount", 6.0), ("idleCount", 1.0), ("waitingCount", 3.0)]).expect("pg-pool");
        assert_eq!((it.completed().in_use, it.waiting, by), (Some(5.0), Some(3.0), "pg-pool's counts"));
        let (it, _) = read(&[("size", 5.0), ("connections", 5.0), ("busy", 4.0), ("idle", 1.0), ("waiting", 2.0)])
            .expect("ActiveRecord");
        assert_eq!((it.limit(), it.in_use, it.waiting), (Value::Known(5.0), Some(4.0), Some(2.0)));
        let (it, _) = read(&[("pool_size", 20.0), ("checked_out", 23.0), ("overflow", 3.0)]).expect("SQLAlchemy");
        assert_eq!((it.limit(), it.open), (Value::Between(23.0, f64::INFINITY), Some(23.0)));
        assert_eq!(read(&[("size", 5.0), ("idle", 1.0)]), None, "a pool of threads has a size too");
    }

    #[test]
    fn no_limit_is_not_a_limit_of_zero() {
        for limit in [0.0, -1.0, f64::INFINITY] {
            let it = Numbers { limit: Some(limit), ..Numbers::default() };
            assert!(matches!(it.limit(), Value::Unknown(Reason::NotYet(_))), "{limit}");
        }
    }

    #[test]
    fn a_counter_that_was_set_back_says_nothing_of_the_time_between() {
        let totals = |waits, timeouts| Totals { waits: Some(waits), timeouts: Some(timeouts), ..Totals::default() };
        assert_eq!(totals(9.0, 1.0).since(&totals(4.0, 3.0)), Totals { waits: Some(5.0), ..Totals::default() });
    }

    #[test]
    fn two_processes_are_added_up_only_where_both_speak() {
        let mut one = Numbers { in_use: Some(3.0), waiting: Some(1.0), limit: Some(5.0), ..Numbers::default() };
        one.add(&Numbers { in_use: Some(2.0), limit: Some(5.0), ..Numbers::default() });
        assert_eq!((one.in_use, one.limit, one.waiting), (Some(5.0), Some(10.0), None));
    }
}
