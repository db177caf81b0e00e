//! Checks of logs: what an application writes when its pool or its transactions fail, counted over the last minutes.

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

/// What was written within this time is so;
const WINDOW: Duration = Duration::from_secs(60);
/// of transactions that failed within this one, as they are counted at the server.
const TRANSACTIONS_WINDOW: Duration = Duration::from_secs(300);
/// Most lines that are kept with their text, in all and in the evidence.
const MAX_KEPT: usize = 200;
const MAX_SHOWN: usize = 10;

/// What some kinds of lines say together.
struct Saying {
    kinds: &'static [Kind],
    what: &'static str,
}

/// The checks that logs decide, with what their lines say.
const CHECKS: [(CheckId, Saying); 4] = [
    (CheckId::PoolTimeout, Saying { kinds: &[Kind::PoolTimeout], what: "that nobody got a connection" }),
    (
        CheckId::Prepared,
        Saying { kinds: &[Kind::Prepared], what: "that a prepared statement is not where it was left" },
    ),
    (CheckId::AsyncMisuse, Saying { kinds: &[Kind::AsyncMisuse], what: "that several tasks use one session at once" }),
    (CheckId::TxErrors, Saying { kinds: &TRANSACTIONS, what: "that a transaction failed" }),
];

const TRANSACTIONS: [Kind; 4] =
    [Kind::SerializationFailure, Kind::Deadlock, Kind::AbortedTransaction, Kind::ReadOnlyTransaction];

const LOCKED: Saying = Saying { kinds: &[Kind::SqliteLocked], what: "that its SQLite database is locked" };
const DAMAGED: Saying = Saying { kinds: &[Kind::SqliteDamaged], what: "that its SQLite database is damaged" };

fn window(kind: Kind) -> Duration {
    if TRANSACTIONS.contains(&kind) { TRANSACTIONS_WINDOW } else { WINDOW }
}

impl Saying {
    fn window(&self) -> Duration {
        self.kinds.first().map_or(WINDOW, |kind| window(*kind))
    }
}

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
        let value = |saying: &Saying, count: usize| match unseen {
            Some(reason) if count == 0 => Value::Unknown(reason.clone()),
            Some(_) => Value::Between(count as f64, f64::INFINITY),
            None if said.has_gap(saying, now.mono) => Value::Between(count as f64, f64::INFINITY),
            None => Value::Known(count as f64),
        };
        for (check, saying) in &CHECKS {
            let subject = Subject::of(*check, &look.target);
            let seen = Seen::value(value(saying, said.count(saying)));
            tracks.observe(subject, seen, now, || said.case(saying, look, now.mono));
        }
        // One line says it: the check's own bound is a number of writers.
        let (damaged, locked) = (said.count(&DAMAGED), said.count(&LOCKED));
        let (saying, forced) = match (damaged, locked) {
            (0, 0) => (&LOCKED, None),
            (0, _) => (&LOCKED, Some(Severity::Warning)),
            _ => (&DAMAGED, Some(Severity::Critical)),
        };
        let seen = Seen { forced, ..Seen::value(value(saying, damaged + locked)) };
        let subject = Subject::of(CheckId::SqliteShared, &look.target);
        tracks.observe(subject, seen, now, || said.case(saying, look, now.mono));
    }
}

impl Said {
    fn forget(&mut self, now: Duration) {
        let is_young = |at: Duration, kind: Kind| now.saturating_sub(at) < window(kind);
        self.lines.retain(|it| is_young(it.0, it.1));
        self.more.retain(|it| is_young(it.0, it.1));
        self.gap = self.gap.filter(|at| now.saturating_sub(*at) < TRANSACTIONS_WINDOW);
    }

    /// Whether lines were left out in the time that counts.
    fn has_gap(&self, saying: &Saying, now: Duration) -> bool {
        self.gap.is_some_and(|at| now.saturating_sub(at) < saying.window())
    }

    fn count(&self, saying: &Saying) -> usize {
        saying.kinds.iter().map(|kind| self.count_of(*kind)).sum()
    }

    fn count_of(&self, kind: Kind) -> usize {
        let shown = self.lines.iter().filter(|it| it.1 == kind).count();
        shown + self.more.iter().filter(|it| it.1 == kind).count()
    }

    fn case(&self, saying: &Saying, look: &LogLook, now: Duration) -> Case {
        let of_kind: Vec<_> = self.lines.iter().filter(|it| saying.kinds.contains(&it.1)).collect();
        let last = of_kind.last().map(|it| words::foreign(&it.2, 200));
        let lines = of_kind
            .iter()
            .rev()
            .take(MAX_SHOWN)
            .map(|(at, _, line)| json!({ "seconds_ago": now.saturating_sub(*at).as_secs(), "line": line }));
        let count = self.count(saying);
        let window = saying.window();
        let by_state: serde_json::Map<_, _> = saying
            .kinds
            .iter()
            .filter_map(|kind| Some((kind.sqlstate()?.to_owned(), json!(self.count_of(*kind)))))
            .filter(|(_, count)| *count != json!(0))
            .collect();
        let last = last.map_or_else(String::new, |it| format!(", last `{it}`"));
        Case {
            summary: format!(
                "{}'s log {} says {} in the last {} {}{last}",
                words::foreign(&look.application, 80),
                look.path,
                if count == 1 { "once".to_owned() } else { format!("{count} times") },
                if window == WINDOW { "minute" } else { "5 minutes" },
                saying.what,
            ),
            evidence: object(json!({
                "application": look.application,
                "log": look.path,
                "occurrences": count,
                "window_seconds": window.as_secs(),
                "by_sqlstate": (!by_state.is_empty()).then_some(by_state),
                "lines": lines.collect::<Vec<_>>(),
                "rule": "the text of a library's or server's error in the application's log",
                "not_visible": if self.has_gap(saying, now) { vec!["lines were left out: more was written than is read"] } else { vec![] },
            })),
            ..Case::default()
        }
    }
}
