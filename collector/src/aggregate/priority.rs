//! What to look at first: probability × impact. It orders lists; severity decides who is told.
//!
//! Each check has an impact and a default probability that the harm is there or comes; a return within the recurrence
//! window raises the probability one step. The most specific line of the table wins: an id, then a family, then all.

use std::fmt;

/// What the fault does to users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impact {
    /// Users get nothing.
    Outage,
    /// Somebody gets what is not theirs.
    Exposure,
    /// Lost, wrong or stale data.
    Data,
    /// Slower, or not for all.
    Degraded,
    /// We or the owners would not notice.
    Sight,
    /// Untidy.
    Hygiene,
}

impl Impact {
    /// The word of the catalogue.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::Exposure => "exposure",
            Self::Data => "data",
            Self::Degraded => "degraded",
            Self::Sight => "sight",
            Self::Hygiene => "hygiene",
        }
    }

    /// From 1 to 5.
    pub const fn weight(self) -> f64 {
        match self {
            Self::Outage | Self::Exposure => 5.0,
            Self::Data => 4.0,
            Self::Degraded => 3.0,
            Self::Sight => 2.0,
            Self::Hygiene => 1.0,
        }
    }
}

/// How likely the harm is there or comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probability {
    /// 0.2
    Low,
    /// 0.5
    Medium,
    /// 0.8
    High,
}

impl Probability {
    const fn value(self) -> f64 {
        match self {
            Self::Low => 0.2,
            Self::Medium => 0.5,
            Self::High => 0.8,
        }
    }

    const fn raised(self) -> Self {
        match self {
            Self::Low => Self::Medium,
            Self::Medium | Self::High => Self::High,
        }
    }
}

/// Both factors of an incident's priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priority {
    /// What it does to users.
    pub impact: Impact,
    /// How likely that is.
    pub probability: Probability,
}

impl Priority {
    /// The priority of an incident of `check` that opened `occurrences` times.
    pub fn of(check: &str, occurrences: u32) -> Self {
        let exact = TABLE.iter().find(|(pattern, ..)| *pattern == check);
        let family = || {
            let fits = |pattern: &str| pattern.strip_suffix('*').is_some_and(|prefix| check.starts_with(prefix));
            TABLE.iter().filter(|(pattern, ..)| fits(pattern)).max_by_key(|(pattern, ..)| pattern.len())
        };
        let (_, impact, default) = exact.or_else(family).copied().unwrap_or(("*", Degraded, Low));
        let probability = if occurrences > 1 { default.raised() } else { default };
        Self { impact, probability }
    }

    /// Probability × impact: 0.2 to 4.
    pub fn value(self) -> f64 {
        // One decimal is all the factors have; without this 0.2 × 3 would show as 0.6000000000000001.
        (self.impact.weight() * self.probability.value() * 10.0).round() / 10.0
    }

    /// The probability alone: 0.2, 0.5 or 0.8.
    pub const fn probability(self) -> f64 {
        self.probability.value()
    }
}

/// With both inputs: `4 = impact 5 (outage) x probability 0.8`.
impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, impact) = (self.value(), self.impact);
        write!(f, "{value} = impact {} ({}) x probability {}", impact.weight(), impact.as_str(), self.probability())
    }
}

use Impact::{Data, Degraded, Exposure, Hygiene, Outage, Sight};
use Probability::{High, Low, Medium};

/// The catalogue's header, its sections written as the families they hold.
const TABLE: &[(&str, Impact, Probability)] = &[
    // Pools and sessions.
    ("pool.*", Degraded, Medium),
    ("db.*", Degraded, Medium),
    ("rule.*", Degraded, High),
    ("pool.exhausted", Outage, High),
    ("pool.timeout", Outage, High),
    ("pool.leak", Outage, High),
    ("pool.leak_rate", Outage, High),
    ("db.connect", Outage, High),
    ("db.headroom", Outage, High),
    ("fleet.pool_budget", Outage, High),
    ("fleet.pool_params", Degraded, Medium),
    ("pool.utilization", Outage, Medium),
    ("pool.idle_in_transaction", Outage, Medium),
    ("pool.connect_stuck", Outage, Medium),
    ("db.role", Outage, Medium),
    ("pool.stats", Hygiene, Low),
    ("pool.keepalive", Hygiene, Low),
    ("pool.storm", Hygiene, Low),
    ("pool.stale_dns", Hygiene, Low),
    ("sqlite.shared", Data, Medium),
    ("db.async_misuse", Data, Medium),
    ("db.tx_abandoned", Data, Medium),
    ("db.tx_errors", Data, Medium),
    ("db.replica", Data, Medium),
    ("agent.*", Sight, Medium),
    // Endpoints and what they depend on.
    ("http.*", Degraded, Medium),
    ("out.*", Degraded, Medium),
    ("lb.*", Degraded, Medium),
    ("http.status", Outage, Medium),
    ("dep.*", Outage, Medium),
    ("tls.cert", Outage, Medium),
    ("out.hang", Outage, Medium),
    ("breaker.state", Outage, Medium),
    ("data.freshness", Data, Medium),
    ("health.*", Sight, Medium),
    // Who may do what.
    ("cors.*", Exposure, Medium),
    ("jwt.*", Exposure, Medium),
    ("session.*", Exposure, Medium),
    ("mfa.*", Exposure, Medium),
    ("reset.*", Exposure, Medium),
    ("auth.*", Exposure, Medium),
    ("oauth.*", Exposure, Medium),
    ("rbac.*", Exposure, Medium),
    ("tenant.*", Exposure, Medium),
    ("ws.auth", Exposure, Medium),
    ("csrf.*", Exposure, Medium),
    ("input.*", Exposure, Medium),
    ("leak.*", Exposure, Medium),
    ("auth.masked_error", Outage, Medium),
    ("jwt.lifetime", Outage, Medium),
    ("jwt.refresh_flow", Outage, Medium),
    ("cookie.flags", Exposure, Low),
    ("headers.security", Exposure, Low),
    ("cors.wide", Exposure, Low),
    ("session.limits", Exposure, Low),
    ("dep.versions", Exposure, Low),
    ("proc.core_dump", Exposure, Low),
    // What is stored, and its contracts.
    ("contract.*", Data, Medium),
    ("data.*", Data, Medium),
    ("files.*", Data, Medium),
    ("db.cascade", Data, Medium),
    ("db.mass_delete", Data, Medium),
    ("db.migration", Data, Medium),
    ("db.schema_hash", Data, Medium),
    ("db.consistency", Data, Medium),
    ("db.orphans", Data, Medium),
    ("db.slow", Degraded, Medium),
    ("db.n_plus_one", Degraded, Medium),
    ("db.qpm", Degraded, Medium),
    ("upload.*", Degraded, Medium),
    ("api.pagination", Degraded, Medium),
    ("api.version_skew", Degraded, Medium),
    ("disk.space", Outage, High),
    ("trace.*", Sight, Low),
    ("api.*", Hygiene, Low),
    ("http.cache_headers", Hygiene, Low),
    // Caches, processes, hosts.
    ("cache.*", Degraded, Medium),
    ("ws.*", Degraded, Medium),
    ("proc.*", Degraded, Medium),
    ("cgroup.*", Degraded, Medium),
    ("web.*", Degraded, Medium),
    ("proc.gone", Outage, High),
    ("proc.restart", Outage, High),
    ("proc.stall", Outage, High),
    ("fd.limit", Outage, High),
    ("cache.coherence", Data, Medium),
    ("cache.invalidation", Data, Medium),
    // Logs, errors, and telling people.
    ("log.*", Sight, Low),
    ("otel.*", Sight, Low),
    ("metrics.*", Sight, Low),
    ("collector.*", Sight, High),
    ("notify.*", Sight, Low),
    ("err.*", Degraded, Medium),
    // Jobs.
    ("job.*", Data, Medium),
    // Configuration and delivery; what is in no family falls here too.
    ("secret.*", Exposure, Medium),
    ("config.*", Exposure, Medium),
    ("image.identity", Exposure, Medium),
    ("deploy.track", Degraded, High),
    ("backup.age", Data, Medium),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_line_wins() {
        let of = |check| {
            let it = Priority::of(check, 1);
            format!("{} {} {}", it.impact.as_str(), it.probability(), it.value())
        };
        assert_eq!(of("pool.leak"), "outage 0.8 4");
        assert_eq!(of("pool.idle_in_transaction"), "outage 0.5 2.5");
        assert_eq!(of("pool.close_wait"), "degraded 0.5 1.5");
        assert_eq!(of("db.tx_errors"), "data 0.5 2");
        assert_eq!(of("dep.versions"), "exposure 0.2 1");
        assert_eq!(of("agent.missing"), "sight 0.5 1");
        assert_eq!(of("something.new"), "degraded 0.2 0.6");
        assert_eq!(Priority::of("db.tx_errors", 2).to_string(), "3.2 = impact 4 (data) x probability 0.8");
    }

    #[test]
    fn a_return_raises_the_probability_one_step_and_no_further() {
        let of = |check, occurrences| Priority::of(check, occurrences).probability();
        assert_eq!((of("pool.keepalive", 1), of("pool.keepalive", 2), of("pool.keepalive", 9)), (0.2, 0.5, 0.5));
        assert_eq!((of("pool.leak", 1), of("pool.leak", 2)), (0.8, 0.8));
    }

    #[test]
    fn no_line_is_written_twice() {
        let mut seen = std::collections::HashSet::new();
        assert!(TABLE.iter().all(|(pattern, ..)| seen.insert(pattern)));
    }
}
