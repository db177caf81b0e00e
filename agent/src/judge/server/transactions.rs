//! `db.tx_abandoned` and `db.tx_errors`: transactions that do not end as they were meant to, by the database's counters.
//!
//! A counter does not tell a rollback after an error from one that a pool sends whenever it takes a connection back: a
//! healthy SQLAlchemy application that mostly reads rolls most of its transactions back. So what a database does by habit
//! is learnt first. Where rollbacks are a habit they are recorded, and told to somebody only beside another sign.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::json;
use tickbird_shared::Severity;

use crate::discover::TargetKey;
use crate::inspect::server::{Counters, SessionState};
use crate::inspect::{Reason, ServerLook, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// What is compared.
const WINDOW: Duration = Duration::from_secs(300);
/// What is learnt from: three windows.
const LEARNING: Duration = Duration::from_secs(900);
/// Fewer transactions than this make no share.
const ENOUGH: u64 = 100;
/// Above this share rollbacks are a habit.
const HABIT: f64 = 0.02;
const LEARNS: &str = "how often transactions are rolled back by habit";
const BY_HABIT: &str = "since the agent knows it, as with pools that send one at each return";

const ADVICE_OF_HABIT: &str =
    "nothing needs doing if its pools roll back at each return; if not, read the application's log for errors";

/// What is remembered of each database.
#[derive(Debug, Default)]
pub(super) struct Transactions(BTreeMap<TargetKey, History>);

#[derive(Debug, Default)]
struct History {
    /// Of the last five minutes, oldest first.
    samples: VecDeque<Counters>,
    learnt_from: Option<Counters>,
    /// The share of rollbacks in the learning time, once that is over.
    habit: Option<f64>,
}

/// What happened between two readings of the counters.
#[derive(Debug, Clone, Copy)]
struct Change {
    seconds: f64,
    commits: u64,
    rollbacks: u64,
    deadlocks: u64,
    conflicts: u64,
}

impl Change {
    /// `None` when a counter was set back.
    fn between(earlier: &Counters, later: &Counters) -> Option<Self> {
        Some(Self {
            seconds: later.at.saturating_sub(earlier.at).as_secs_f64(),
            commits: later.commits.checked_sub(earlier.commits)?,
            rollbacks: later.rollbacks.checked_sub(earlier.rollbacks)?,
            deadlocks: later.deadlocks.checked_sub(earlier.deadlocks)?,
            conflicts: later.conflicts.checked_sub(earlier.conflicts)?,
        })
    }

    fn total(&self) -> u64 {
        self.commits.saturating_add(self.rollbacks)
    }

    /// Rollbacks among all, 0 when there was none.
    fn share(&self) -> f64 {
        if self.total() == 0 { 0.0 } else { self.rollbacks as f64 / self.total() as f64 }
    }

    /// What no habit explains.
    fn certain_errors(&self) -> u64 {
        self.deadlocks.saturating_add(self.conflicts)
    }
}

impl Transactions {
    pub(super) fn look(&mut self, look: &ServerLook, now: Moment, tracks: &mut Tracks) {
        let counters = match &look.facts.counters {
            None => return,
            Some(Ok(counters)) => counters,
            Some(Err(reason)) => {
                for check in [CheckId::TxAbandoned, CheckId::TxErrors] {
                    let seen = Seen::value(Value::Unknown(reason.clone()));
                    tracks.observe(Subject::of(check, &look.target), seen, now, Case::default);
                }
                return;
            }
        };
        let history = self.0.entry(look.target.clone()).or_default();
        // The same reading again says nothing new.
        if history.samples.back() != Some(counters)
            && let Some(change) = history.take(*counters)
        {
            history.abandoned(look, &change, now, tracks);
            history.errors(look, &change, now, tracks);
        }
    }
}

impl History {
    /// Takes a reading in; gives the change within the window once there is an earlier one.
    fn take(&mut self, counters: Counters) -> Option<Change> {
        if self.samples.back().is_some_and(|last| Change::between(last, &counters).is_none()) {
            self.samples.clear();
            self.learnt_from = None;
        }
        self.samples.push_back(counters);
        while self.samples.get(1).is_some_and(|next| counters.at.saturating_sub(next.at) >= WINDOW) {
            self.samples.pop_front();
        }
        let first = *self.learnt_from.get_or_insert(counters);
        if self.habit.is_none()
            && counters.at.saturating_sub(first.at) >= LEARNING
            && let Some(all) = Change::between(&first, &counters).filter(|all| all.total() >= ENOUGH)
        {
            self.habit = Some(all.share());
        }
        if self.samples.len() < 2 { None } else { Change::between(self.samples.front()?, &counters) }
    }

    fn abandoned(&self, look: &ServerLook, change: &Change, now: Moment, tracks: &mut Tracks) {
        let sessions = look.sessions.as_deref().unwrap_or_default();
        let failed = sessions.iter().filter(|it| it.state == SessionState::IdleInTransactionAborted).count();
        let has_second_sign = failed > 0 || change.certain_errors() > 0;
        let share = change.share();
        let by_habit = self.habit.filter(|it| *it > HABIT);
        let bounds = tracks.rule(CheckId::TxAbandoned).bounds;
        let is_many = |share: f64| bounds.warning.is_some_and(|bound| !bounds.is_cleared(share, bound));
        // What rose above the habit, beside a sign that no habit explains.
        let rise = by_habit.filter(|_| has_second_sign).map(|habit| share - habit).filter(|it| is_many(*it));
        let mut seen = Seen::value(match self.habit {
            None if !has_second_sign => Value::Unknown(Reason::NotYet(LEARNS)),
            _ => Value::Known(rise.unwrap_or(share)),
        });
        seen.qualifies = change.total() >= ENOUGH;
        // Before the habit is known, a second sign alone does not make it critical.
        seen.corroborated = has_second_sign && self.habit.is_some();
        let is_only_habit = by_habit.is_some() && rise.is_none();
        if is_only_habit {
            seen.forced = is_many(share).then_some(Severity::Info);
            seen.words = Some(format!("{}, {BY_HABIT}", words::number(share, Unit::Ratio)));
        }
        tracks.observe(Subject::of(CheckId::TxAbandoned, &look.target), seen, now, || Case {
            summary: format!(
                "{} rolled back {} of its {} transactions ({}) in {}{}{}",
                look.target.as_str().trim_start_matches("server:"),
                change.rollbacks,
                change.total(),
                words::number(share, Unit::Ratio),
                words::seconds(change.seconds),
                if is_only_habit { format!("; it has done so {BY_HABIT}") } else { String::new() },
                if failed > 0 {
                    format!("; {} failed and kept", words::counted(failed, "session"))
                } else {
                    String::new()
                },
            ),
            evidence: self.evidence(change, "rollbacks / (commits + rollbacks) of the database over 5 min"),
            advice: is_only_habit.then(|| ADVICE_OF_HABIT.to_owned()),
            ..Case::default()
        });
    }

    fn errors(&self, look: &ServerLook, change: &Change, now: Moment, tracks: &mut Tracks) {
        // Only where nothing is ever rolled back is each rollback an error.
        let rollbacks = if self.habit == Some(0.0) { change.rollbacks } else { 0 };
        let errors = change.certain_errors().saturating_add(rollbacks);
        let seen = Seen::known(errors as f64);
        tracks.observe(Subject::of(CheckId::TxErrors, &look.target), seen, now, || Case {
            summary: format!(
                "{}: {} in {}: {}, {}{}",
                look.target.as_str().trim_start_matches("server:"),
                words::counted(usize::try_from(errors).unwrap_or(usize::MAX), "transaction error"),
                words::seconds(change.seconds),
                words::counted(usize::try_from(change.deadlocks).unwrap_or(usize::MAX), "deadlock"),
                words::counted(usize::try_from(change.conflicts).unwrap_or(usize::MAX), "conflict"),
                match rollbacks {
                    0 => String::new(),
                    some => format!(", {}", words::counted(usize::try_from(some).unwrap_or(usize::MAX), "rollback")),
                },
            ),
            evidence: self.evidence(change, "deadlocks, conflicts, and rollbacks where there never were any"),
            ..Case::default()
        });
    }

    fn evidence(&self, change: &Change, rule: &str) -> serde_json::Map<String, serde_json::Value> {
        object(json!({
            "seconds": number(change.seconds, Unit::Seconds),
            "commits": change.commits,
            "rollbacks": change.rollbacks,
            "deadlocks": change.deadlocks,
            "conflicts": change.conflicts,
            "usual_share": self.habit.map(|it| number(it, Unit::Ratio)),
            "rule": rule,
            "not_visible": ["why each transaction was rolled back"],
        }))
    }
}
