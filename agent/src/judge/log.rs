//! Checks of logs: what an application writes when its pool fails, counted over the last minute.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tickbird_shared::Severity;

use super::defaults::CheckId;
use super::evidence::{Case, object};
use super::threshold::Seen;
use super::tracks::{Subject, Tracks};
use super::{Moment, words};
use crate::discover::TargetKey;
use crate::inspect::Value;
use crate::inspect::log_tail::{Kind, LogLook};

/// What was written within this time is so.
const WINDOW: Duration = Duration::from_secs(60);
/// Most lines that are kept with their text, in all and in the evidence.
const MAX_KEPT: usize = 200;
const MAX_SHOWN: usize = 10;

/// The checks that logs decide, with what their lines say.
const CHECKS: [(CheckId, Kind, &str); 3] = [
    (CheckId::PoolTimeout, Kind::PoolTimeout, "that nobody got a connection"),
    (CheckId::Prepared, Kind::Prepared, "that a prepared statement is not where it was left"),
    (CheckId::AsyncMisuse, Kind::AsyncMisuse, "that several tasks use one session at once"),
];

const SQLITE_LOCKED: &str = "that its SQLite database is locked";

/// What every log said lately.
#[derive(Debug, Default)]
pub(super) struct Logs {
    by_target: BTreeMap<TargetKey, Said>,
}

#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<(Duration, Kind, Arc<str>)>,
    /// Occurrences without their text.
    more: VecDeque<(Duration, Kind)>,
    /// When lines were last left out.
    gap: Option<Duration>,
}

impl Logs {
    pub(super) fn look(&mut self, look: &LogLook, now: Moment, tracks: &mut Tracks) {
        let said = self.by_target.entry(look.target.clone()).or_default();
        said.forget(now.mono);
        let unseen = match &look.found {
            Ok(found) => {
                said.lines.extend(found.matches.iter().map(|it| (now.mono, it.kind, it.line.clone())));
                said.more.extend(found.more.iter().map(|it| (now.mono, *it)));
                while said.lines.len() > MAX_KEPT {
                    said.more.extend(said.lines.pop_front().map(|(at, kind, _)| (at, kind)));
                }
                if found.is_lower_bound {
                    said.gap = Some(now.mono);
                }
                None
            }
            Err(reason) => Some(reason),
        };
        let value = |count: usize| match unseen {
            Some(reason) if count == 0 => Value::Unknown(reason.clone()),
            Some(_) => Value::Between(count as f64, f64::INFINITY),
            None if said.gap.is_some() => Value::Between(count as f64, f64::INFINITY),
            None => Value::Known(count as f64),
        };
        for (check, kind, what) in CHECKS {
            let subject = Subject::of(check, &look.target);
            let seen = Seen::value(value(said.count(kind)));
            tracks.observe(subject, seen, now, || said.case(kind, what, look, now.mono));
        }
        // One line says it: the check's own bound is a number of writers.
        let damaged = said.count(Kind::SqliteDamaged);
        let locked = said.count(Kind::SqliteLocked);
        let (kind, forced, what) = match (damaged, locked) {
            (0, 0) => (Kind::SqliteLocked, None, SQLITE_LOCKED),
            (0, _) => (Kind::SqliteLocked, Some(Severity::Warning), SQLITE_LOCKED),
            _ => (Kind::SqliteDamaged, Some(Severity::Critical), "that its SQLite database is damaged"),
        };
        let seen = Seen { forced, ..Seen::value(value(damaged + locked)) };
        let subject = Subject::of(CheckId::SqliteShared, &look.target);
        tracks.observe(subject, seen, now, || said.case(kind, what, look, now.mono));
    }
}

impl Said {
    fn forget(&mut self, now: Duration) {
        let is_old = |at: Duration| now.saturating_sub(at) >= WINDOW;
        while self.lines.front().is_some_and(|it| is_old(it.0)) {
            self.lines.pop_front();
        }
        self.more.retain(|it| !is_old(it.0));
        self.gap = self.gap.filter(|at| !is_old(*at));
    }

    fn count(&self, kind: Kind) -> usize {
        let shown = self.lines.iter().filter(|it| it.1 == kind).count();
        shown + self.more.iter().filter(|it| it.1 == kind).count()
    }

    fn case(&self, kind: Kind, what: &str, look: &LogLook, now: Duration) -> Case {
        let of_kind: Vec<_> = self.lines.iter().filter(|it| it.1 == kind).collect();
        let last = of_kind.last().map(|it| words::foreign(&it.2, 200));
        let lines = of_kind
            .iter()
            .rev()
            .take(MAX_SHOWN)
            .map(|(at, _, line)| json!({ "seconds_ago": now.saturating_sub(*at).as_secs(), "line": line }));
        let count = self.count(kind);
        let last = last.map_or_else(String::new, |it| format!(", last `{it}`"));
        Case {
            summary: format!(
                "{}'s log {} says {} in the last minute {what}{last}",
                words::foreign(&look.application, 80),
                look.path,
                if count == 1 { "once".to_owned() } else { format!("{count} times") },
            ),
            evidence: object(json!({
                "application": look.application,
                "log": look.path,
                "occurrences": count,
                "window_seconds": WINDOW.as_secs(),
                "lines": lines.collect::<Vec<_>>(),
                "rule": "the text of a library's or server's error in the application's log",
                "not_visible": if self.gap.is_some() { vec!["lines were left out: more was written than is read"] } else { vec![] },
            })),
            ..Case::default()
        }
    }
}
