//! The proof of a leak: which process holds which connections, for how long, by which rule.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tickbird_shared::protocol::MAX_EVIDENCE_BYTES;

use crate::discover::Instance;
use crate::inspect::host::Owner;
use crate::inspect::log_tail::Raised;
use crate::inspect::{Unit, Value};
use crate::judge::evidence::{self, Case, number, object};
use crate::judge::pool::error_path::ErrorPath;
use crate::judge::pool::lines::HeldBy;
use crate::judge::pool::verdict::{Judged, Pool};
use crate::judge::pool::view::Verdict;
use crate::judge::pool::{owner_name, pid, pids, pids_in_words};
use crate::judge::words;

/// From this age on the oldest makes it critical.
const OLD: f64 = 300.0;
/// A pool that will be empty so soon makes it critical.
const SOON: f64 = 300.0;
/// Most connections in one finding's evidence.
const MAX_ROWS: usize = 50;

/// What a look says of one target.
pub(in crate::judge::pool) struct Leak<'a, 'p> {
    pub(super) pools: &'p [&'p Pool<'a>],
    /// Held too long, the oldest first.
    pub(in crate::judge::pool) held: Vec<&'p Judged<'a>>,
    pub(in crate::judge::pool) bound: f64,
    pub(super) now: Duration,
    pub(super) empty_in: &'p Value,
    pub(super) commands: &'p HashMap<Instance, Arc<str>>,
    /// Which of them may have been left by an error.
    pub(super) errors: &'p ErrorPath,
}

impl Leak<'_, '_> {
    pub(in crate::judge::pool) fn age(&self, it: &Judged<'_>) -> f64 {
        self.now.saturating_sub(it.since).as_secs_f64()
    }

    /// A second sign: half of a process's limit, soon empty, or old.
    pub(super) fn is_grave(&self) -> bool {
        let half = |pool: &&Pool<'_>| {
            let held = self.held.iter().filter(|it| std::ptr::eq(it.row, pool.row)).count();
            pool.row.limit.value.known().is_some_and(|limit| limit > 0.0 && 2.0 * held as f64 >= limit)
        };
        let is_old = self.held.first().is_some_and(|it| self.age(it) >= OLD);
        let is_soon = self.empty_in.low().is_some_and(|low| low <= SOON);
        is_old || is_soon || self.pools.iter().any(half)
    }

    pub(super) fn case(&self) -> Case {
        let Some(oldest) = self.held.first() else { return Case::default() };
        let mut members: Vec<u64> = self.held.iter().map(|it| it.connection.cookie).collect();
        members.sort_unstable();
        let pids = pids(self.held.iter().map(|it| it.row));
        let empty = match self.empty_in {
            Value::Between(low, high) => {
                format!("; at this rate the pool is empty in {} to {}", words::seconds(*low), words::seconds(*high))
            }
            _ => String::new(),
        };
        let is_paired = |it: &&&Judged<'_>| self.error_of(it).is_some();
        let paired = match self.held.iter().filter(is_paired).count() {
            0 => String::new(),
            pairs => {
                format!("; {pairs} of them had last been used within 1 s of an error: perhaps a leak on error path")
            }
        };
        Case {
            summary: format!(
                "{}, {}, has held {} of {} connections to {} for longer than {}, the oldest for {} on {}{empty}{paired}",
                owner_name(oldest.row),
                pids_in_words(&pids),
                self.held.len(),
                self.open(),
                oldest.row.remote,
                words::seconds(self.bound),
                words::seconds(self.age(oldest)),
                words_of(oldest),
            ),
            evidence: self.evidence(&self.held, Map::new()),
            members,
            age_seconds: Some(self.age(oldest)),
            advice: None,
        }
    }

    fn open(&self) -> usize {
        self.pools.iter().map(|pool| pool.connections.len()).sum()
    }

    /// The proof, with these connections and with what else there is to say.
    pub(in crate::judge::pool) fn evidence(&self, held: &[&Judged<'_>], more: Map<String, Json>) -> Map<String, Json> {
        let mut by_rule: BTreeMap<&str, usize> = BTreeMap::new();
        held.iter().for_each(|it| *by_rule.entry(it.rule).or_default() += 1);
        let pids = pids(held.iter().map(|it| it.row));
        let mut not_visible = Vec::new();
        if pids.is_empty() {
            not_visible.push("owner: not visible");
        }
        if held.iter().any(|it| it.said.is_none()) {
            not_visible.push("the server's session");
        }
        let count = |verdict| self.pools.iter().map(|pool| pool.count(verdict)).sum::<usize>();
        let certain: usize = self.pools.iter().map(|pool| pool.certain()).sum();
        let uncertain = count(Verdict::Held) + count(Verdict::GroupStop) + count(Verdict::Unknown);
        let limit = &self.held[0].row.limit;
        let mut whole = object(json!({
            "held_too_long": self.held.len(),
            "bound_seconds": number(self.bound, Unit::Seconds),
            "open": self.open(),
            "leased_at_least": certain,
            "leased_at_most": certain + uncertain,
            "free": count(Verdict::Free),
            "limit": evidence::value(&limit.value, Unit::Count),
            "limit_source": limit.source,
            "discipline": self.pools[0].discipline.as_str(),
            "empty_in_seconds": evidence::value(self.empty_in, Unit::Seconds),
            "pids": pids,
            "rule": by_rule,
            "not_visible": not_visible,
        }));
        if self.errors.is_evidence(&self.held) {
            whole.insert("errors".to_owned(), self.errors.errors(held));
        }
        whole.extend(more);
        let left = MAX_EVIDENCE_BYTES.saturating_sub(Json::Object(whole.clone()).to_string().len() + 32);
        let mut rows = Vec::new();
        let mut bytes = 2;
        for it in held.iter().take(MAX_ROWS) {
            let row = self.row(it);
            bytes += row.to_string().len() + 1;
            if bytes > left {
                break;
            }
            rows.push(row);
        }
        whole.insert("connections".to_owned(), Json::Array(rows));
        whole
    }

    /// The error that left it, where that is more than chance.
    fn error_of(&self, it: &Judged<'_>) -> Option<(&Raised, f64)> {
        self.errors.of(it.connection.cookie).filter(|_| self.errors.is_evidence(&self.held))
    }

    fn row(&self, it: &Judged<'_>) -> Json {
        let instance = match &it.row.owner {
            Owner::Seen { instance, .. } => Some(instance),
            Owner::NotVisible { .. } => None,
        };
        let session = it.said.map(|said| &said.session);
        let seconds = |age: Option<Duration>| age.map(|it| number(it.as_secs_f64(), Unit::Seconds));
        let witnessed = match it.held {
            Some(HeldBy::Growth { witness }) => Some(self.now.saturating_sub(witness)),
            _ => None,
        };
        let passes = match it.held {
            Some(HeldBy::Rotation { passes, others }) => Some(json!({ "passed_over": passes, "others": others })),
            _ => None,
        };
        let error = self.error_of(it).map(|(raised, after)| {
            json!({
                "fingerprint": raised.fingerprint,
                "type": raised.kind,
                "seconds_after_last_use": number(after, Unit::Seconds),
            })
        });
        let mut row = json!({
            "pid": pid(it.row),
            "start": instance.map(|it| it.start),
            "fd": it.connection.fds.first(),
            "local": it.connection.local.to_string(),
            "remote": it.row.remote.to_string(),
            "command": instance.and_then(|it| self.commands.get(it)).map(|it| words::foreign(it, 60)),
            "held_seconds": number(self.age(it), Unit::Seconds),
            "rule": it.rule,
            "witnessed_seconds_ago": seconds(witnessed),
            "rotation": passes,
            "session": session.map(|it| it.backend),
            "state": session.map(|it| it.state.as_str()),
            "state_age_seconds": seconds(session.and_then(|it| it.state_age)),
            "application_name": session.map(|it| words::foreign(&it.application_name, 63)),
            "statement": session.and_then(|it| it.statement.as_deref()).map(|it| words::foreign(it, 120)),
        });
        if let Some(error) = error {
            row["error"] = error;
        }
        row
    }

    pub(super) fn rate_case(&self, rate: usize) -> Case {
        let case = self.case();
        let row = self.pools[0].row;
        let summary = format!(
            "{} has leaked {} to {} within the last hour",
            owner_name(row),
            words::counted(rate, "connection"),
            row.remote
        );
        let mut evidence = if case.evidence.is_empty() {
            object(json!({ "rule": "connections named by pool.leak", "not_visible": [] }))
        } else {
            case.evidence
        };
        evidence.insert("leaks_last_hour".to_owned(), json!(rate));
        Case { summary, evidence, ..Case::default() }
    }
}

/// `fd 12 = backend 4242, last statement `SELECT $1``.
pub(in crate::judge::pool) fn words_of(it: &Judged<'_>) -> String {
    let fd = it.connection.fds.first();
    let on = fd.map_or_else(|| words::local_end(&it.connection.local), |fd| format!("fd {fd}"));
    let session = it.said.map(|said| format!(" = {} {}", said.engine.session_word(), said.session.backend));
    let statement = it.said.and_then(|said| said.session.statement.as_deref());
    let statement = statement.map(|it| format!(", last statement `{}`", words::foreign(it, 200)));
    format!("{on}{}{}", session.unwrap_or_default(), statement.unwrap_or_default())
}
