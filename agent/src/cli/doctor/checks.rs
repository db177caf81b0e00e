//! Which checks cannot run here for want of a section in the configuration, and what they need.

use std::collections::{BTreeMap, BTreeSet};

use super::{Line, NOTE};
use crate::config::Config;
use crate::judge::Check;
use crate::status::Report;

/// What the configuration has, and the checks that are on.
pub(super) struct Sections {
    configured: BTreeSet<&'static str>,
    checks: Vec<&'static Check>,
}

impl Sections {
    pub(super) fn of(config: &Config) -> Self {
        let sections = [
            ("postgres", config.postgres.is_empty()),
            ("pgbouncer", config.pgbouncer.is_empty()),
            #[cfg(feature = "mysql")]
            ("mysql", config.mysql.is_empty()),
            #[cfg(feature = "redis")]
            ("redis", config.redis.is_empty()),
            #[cfg(feature = "rabbitmq")]
            ("rabbitmq", config.rabbitmq.is_empty()),
            ("endpoint", config.endpoints.is_empty()),
            ("log", config.logs.is_empty()),
            ("app", config.apps.is_empty()),
        ];
        let configured = sections.into_iter().filter(|it| !it.1).map(|it| it.0).collect();
        let checks = config.checks.table().iter().filter(|it| it.enabled).map(|it| it.check).collect();
        Self { configured, checks }
    }

    /// One line for all checks that need the same sections, of which there is none. What some target is judged by has
    /// what it needs there, or says as blind what it lacks.
    pub(super) fn missing(&self, report: &Report) -> Vec<Line> {
        let judged: BTreeSet<_> = report.checks.iter().map(|it| it.check.as_str()).collect();
        let mut families: BTreeMap<&'static str, Vec<&'static str>> = BTreeMap::new();
        for check in self.checks.iter().filter(|it| !judged.contains(it.id)) {
            let wanted = sections_in(check.needs);
            if !wanted.is_empty() && !wanted.iter().any(|it| self.configured.contains(it)) {
                families.entry(check.needs).or_default().push(check.id);
            }
        }
        let line = |(needs, checks): (&'static str, Vec<&'static str>)| {
            let wanted: Vec<_> = sections_in(needs).iter().map(|it| format!("[[{it}]]")).collect();
            let need = if checks.len() == 1 { "needs" } else { "need" };
            Line {
                what: checks.join(", "),
                state: NOTE,
                found: format!("not judged here: {need} a section {}, and there is none", wanted.join(" or ")),
                needs: Some(needs),
                advice: Some("add the section to the configuration, or leave these checks out".to_owned()),
            }
        };
        families.into_iter().map(line).collect()
    }
}

/// The names in double brackets: `postgres` and `redis` of `a [[postgres]] or [[redis]] section`.
fn sections_in(needs: &str) -> Vec<&str> {
    needs.split("[[").skip(1).filter_map(|it| it.split_once("]]").map(|it| it.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sections_that_a_check_needs_are_read_from_what_it_says() {
        assert_eq!(sections_in("a [[postgres]] or [[redis]] section"), ["postgres", "redis"]);
        assert_eq!(sections_in("nothing"), Vec::<&str>::new());
    }
}
