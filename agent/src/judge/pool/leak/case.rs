//! The proof of a leak: which process holds which connections, for how long, by which rule.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use crate::discover::Instance;
use crate::inspect::log_tail::Raised;
use crate::inspect::{Unit, Value};
use crate::judge::evidence::{self, Case, number, object};
use crate::judge::forecast;
use crate::judge::pool::error_path::ErrorPath;
use crate::judge::pool::heard::Heard;
use crate::judge::pool::lines::HeldBy;
use crate::judge::pool::row::{self, MAX_ROWS, One, Rows};
use crate::judge::pool::verdict::{Judged, Pool};
use crate::judge::pool::view::Verdict;
use crate::judge::pool::{owner_name, pids, pids_in_words};
use crate::judge::words;

/// A pool that will be empty so soon makes it critical.
const SOON: f64 = 300.0;

/// What a look says of one target.
pub(in crate::judge::pool) struct Leak<'a, 'p> {
    pub(super) pools: &'p [&'p Pool<'a>],
    /// Held too long, the oldest first.
    pub(in crate::judge::pool) held: Vec<&'p Judged<'a>>,
    pub(in crate::judge::pool) bound: f64,
    /// From this age on the oldest makes it critical, in seconds.
    pub(super) old: f64,
    pub(super) now: Duration,
    pub(super) empty_in: &'p Value,
    pub(super) commands: &'p HashMap<Instance, Arc<str>>,
    pub(super) heard: Heard<'p>,
    /// Which of them may have been left by an error.
    pub(super) errors: &'p ErrorPath,
}

impl Leak<'_, '_> {
    pub(in crate::judge::pool) fn age(&self, it: &Judged<'_>) -> f64 {
        self.now.saturating_sub(it.since).as_secs_f64()
    }

    /// Second signs, each of which makes it critical.
    pub(super) fn causes(&self) -> Vec<&'static str> {
        let half = |pool: &&Pool<'_>| {
            let held = self.held.iter().filter(|it| std::ptr::eq(it.row, pool.row)).count();
            pool.row.limit.value.known().is_some_and(|limit| limit > 0.0 && 2.0 * held as f64 >= limit)
        };
        let is_old = self.held.first().is_some_and(|it| self.age(it) >= self.old);
        let is_soon = self.empty_in.low().is_some_and(|low| low <= SOON);
        let all = [
            (self.pools.iter().any(half), "half of the limit"),
            (is_soon, "empty within 5 min"),
            (is_old, "age of the oldest"),
        ];
        all.into_iter().filter(|(holds, _)| *holds).map(|(_, cause)| cause).collect()
    }

    pub(super) fn case(&self) -> Case {
        let Some(oldest) = self.held.first() else { return Case::default() };
        let mut members: Vec<u64> = self.held.iter().map(|it| it.connection.cookie).collect();
        members.sort_unstable();
        let pids = pids(self.held.iter().map(|it| it.row));
        let empty = forecast::in_words("the pool is empty", self.empty_in);
        let is_paired = |it: &&&Judged<'_>| self.error_of(it).is_some();
        let paired = match self.held.iter().filter(is_paired).count() {
            0 => String::new(),
            pairs => {
                format!("; {pairs} of them had last been used within 1 s of an error: perhaps a leak on error path")
            }
        };
        Case {
            summary: format!(
                "{}, {}, has held {} of {} connections to {} for longer than {}, the oldest for {} on {}{empty}{paired}{}",
                owner_name(oldest.row),
                pids_in_words(&pids),
                self.held.len(),
                self.open(),
                oldest.row.remote,
                words::seconds(self.bound),
                words::seconds(self.age(oldest)),
                words_of(oldest),
                row::sharing(self.held.iter().map(|it| it.connection)),
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
            "oldest_seconds": number(self.age(self.held[0]), Unit::Seconds),
            "critical_by": self.causes(),
            "pids": pids,
            "rule": by_rule,
            "not_visible": [],
            "connections_total": held.len(),
        }));
        if self.errors.is_evidence(&self.held) {
            whole.insert("errors".to_owned(), self.errors.errors(held));
        }
        whole.extend(more);
        let mut rows = Rows::default();
        held.iter().take(MAX_ROWS).for_each(|it| self.add_row(&mut rows, it));
        rows.put(&mut whole, "connections");
        whole
    }

    /// The error that left it, where that is more than chance.
    fn error_of(&self, it: &Judged<'_>) -> Option<(&Raised, f64)> {
        self.errors.of(it.connection.cookie).filter(|_| self.errors.is_evidence(&self.held))
    }

    fn add_row(&self, rows: &mut Rows, it: &Judged<'_>) {
        let session = it.said.map(|said| &said.session);
        let seconds = |age: Duration| number(age.as_secs_f64(), Unit::Seconds);
        let command = row::instance(it.row).and_then(|it| self.commands.get(&it));
        let word = self.heard.of(it.row, it.connection);
        let row = rows.add(&One::of(it.row, it.connection, word, Some(self.age(it))));
        row.extend(object(json!({
            "held_seconds": number(self.age(it), Unit::Seconds),
            "rule": it.rule,
        })));
        match it.held {
            Some(HeldBy::Growth { witness }) => {
                row.insert("witnessed_seconds_ago".to_owned(), seconds(self.now.saturating_sub(witness)));
            }
            Some(HeldBy::Rotation { passes, others }) => {
                row.insert("rotation".to_owned(), json!({ "passed_over": passes, "others": others }));
            }
            None => (),
        }
        if let Some((raised, after)) = self.error_of(it) {
            row.insert(
                "error".to_owned(),
                json!({
                    "fingerprint": raised.fingerprint,
                    "type": raised.kind,
                    "seconds_after_last_use": number(after, Unit::Seconds),
                }),
            );
        }
        rows.tell(json!({
            "command": command.map(|it| words::foreign(it, 60)),
            "application_name": session.map(|it| words::foreign(&it.application_name, 63)),
            "statement": session.and_then(|it| it.statement.as_deref()).map(|it| words::foreign(it, 120)),
        }));
    }

    pub(super) fn rate_case(&self, rate: usize) -> Case {
        let case = self.case();
        let row = self.pools[0].row;
        let summary = format!(
            "{} has leaked {} to {} within the last hour{}",
            owner_name(row),
            words::counted(rate, "connection"),
            row.remote,
            row::sharing(self.held.iter().map(|it| it.connection)),
        );
        let mut evidence = case.evidence;
        if evidence.is_empty() {
            let pids = pids(self.pools.iter().map(|pool| pool.row));
            evidence = object(json!({ "rule": "connections named by pool.leak", "pids": pids, "connections": [] }));
            row::put_instances(self.pools.iter().map(|pool| pool.row), &mut evidence);
        }
        if rate > self.held.len() {
            let over = "fd, local end and session of leaked connections that were given back or have ended";
            row::not_visible(&mut evidence, over);
        }
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
