//! Leaks on error paths: `err.correlate`.
//!
//! A request raises, and what it leased is never given back: its last statement and its error are one moment. A lease
//! that began near the error but was used later is none of it, so the last use alone counts. Held too long it has to be
//! besides, by the rule of `pool.leak`, and chance has to be a poor explanation: where errors are frequent, or many
//! connections are held, some lie near an error by themselves.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::errors::{Errors, Near, Nearness};
use super::leak::case::{Leak, words_of};
use super::lines::SLACK;
use super::row;
use super::verdict::{Judged, used_age};
use super::{owner_name, pids, pids_in_words};
use crate::inspect::host::{Owner, PoolRow};
use crate::inspect::log_tail::Raised;
use crate::inspect::{Reason, Unit, Value};
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::words;

/// Lines come late, and how often errors come is known only afterwards: until then it is looked up again.
const SETTLES: Duration = Duration::from_secs(120);
/// So many of the pairs may be expected by chance, at most.
const MOST_BY_CHANCE: f64 = 0.2;

const FREQUENT: Reason = Reason::NotYet(
    "errors are so frequent, or so many connections are held, that one within a second of another proves nothing",
);

/// Errors near the last use of each connection that is held.
#[derive(Debug, Default)]
pub(super) struct ErrorPath {
    near: HashMap<u64, (Duration, Nearness)>,
}

impl ErrorPath {
    /// Takes what is held in; what is held no longer is forgotten.
    pub(super) fn learn(&mut self, held: &[&Judged<'_>], errors: &Errors, now: Duration) {
        let mut near = HashMap::with_capacity(held.len());
        for it in held {
            let (Some(application), Some(used_at)) = (application(it.row), used_at(it, now)) else { continue };
            if !errors.follow(application) {
                continue;
            }
            let is_settled =
                |(at, _): &(Duration, Nearness)| at.abs_diff(used_at) <= SLACK && now.saturating_sub(*at) >= SETTLES;
            let known = self.near.remove(&it.connection.cookie).filter(is_settled);
            near.insert(it.connection.cookie, known.unwrap_or_else(|| (used_at, errors.near(application, used_at))));
        }
        self.near = near;
    }

    /// The error near a connection's last use, and how long after it that came, in seconds.
    pub(super) fn of(&self, cookie: u64) -> Option<(&Raised, f64)> {
        match &self.near.get(&cookie)?.1.near {
            Near::Error { raised, after } => Some((raised, *after)),
            Near::Perhaps | Near::Nothing => None,
        }
    }

    /// How many of those held too long are pairs. `unread` says why the log cannot be read, when that is so; `no_rule`
    /// why nothing is known of leases.
    pub(super) fn seen(&self, held: &[&Judged<'_>], unread: Option<&Reason>, no_rule: Option<Value>) -> Seen {
        let all = || held.iter().map(|it| self.near.get(&it.connection.cookie).map(|it| &it.1));
        let pairs = self.pairs(held).count();
        let unclear = all().filter(|it| it.is_none_or(|it| it.near == Near::Perhaps)).count();
        let value = match (pairs, unread, no_rule) {
            (1.., ..) if !self.is_evidence(held) => Value::Unknown(FREQUENT),
            (1.., None, None) if unclear == 0 => Value::Known(pairs as f64),
            (1.., ..) => Value::Between(pairs as f64, f64::INFINITY),
            (0, Some(reason), _) => Value::Unknown(reason.clone()),
            (0, None, Some(no_rule)) => no_rule,
            (0, None, None) if unclear > 0 => Value::Between(0.0, unclear as f64),
            (0, None, None) => Value::Known(0.0),
        };
        Seen::value(value)
    }

    /// Whether there are pairs, and more than chance makes.
    pub(super) fn is_evidence(&self, held: &[&Judged<'_>]) -> bool {
        let pairs = self.pairs(held).count();
        pairs > 0 && self.by_chance(held) <= MOST_BY_CHANCE * pairs as f64
    }

    /// How many of these connections are near an error by chance.
    fn by_chance(&self, held: &[&Judged<'_>]) -> f64 {
        held.iter().filter_map(|it| self.near.get(&it.connection.cookie)).map(|it| it.1.chance).sum()
    }

    fn pairs<'s, 'p, 'a>(
        &'s self,
        held: &'s [&'p Judged<'a>],
    ) -> impl Iterator<Item = (&'p Judged<'a>, &'s Raised, f64)> {
        held.iter().filter_map(|it| self.of(it.connection.cookie).map(|(raised, after)| (*it, raised, after)))
    }

    /// What a finding says, and its proof.
    pub(super) fn case(&self, leak: &Leak<'_, '_>) -> Case {
        let pairs: Vec<_> = self.pairs(&leak.held).collect();
        let Some((oldest, raised, after)) = pairs.first() else { return Case::default() };
        let rows: Vec<_> = pairs.iter().map(|it| it.0).collect();
        let mut members: Vec<u64> = rows.iter().map(|it| it.connection.cookie).collect();
        members.sort_unstable();
        let pids = pids(rows.iter().map(|it| it.row));
        let place = Some(&raised.place).filter(|it| !it.is_empty()).map(|it| format!(" in {}", words::foreign(it, 80)));
        let message =
            Some(&raised.message).filter(|it| !it.is_empty()).map(|it| format!(": {}", words::foreign(it, 120)));
        Case {
            summary: format!(
                "{}, {}: leak on error path: {} of {} held for longer than {} to {} had last been used within 1 s of an \
                 error in the log, the oldest {} `{}{}`{} ({}) on {}{}",
                owner_name(oldest.row),
                pids_in_words(&pids),
                pairs.len(),
                words::counted(leak.held.len(), "connection"),
                words::seconds(leak.bound),
                oldest.row.remote,
                distance(*after),
                words::foreign(&raised.kind, 80),
                message.unwrap_or_default(),
                place.unwrap_or_default(),
                raised.fingerprint,
                words_of(oldest),
                row::sharing(rows.iter().map(|it| it.connection)),
            ),
            evidence: self.evidence(leak, &rows),
            members,
            age_seconds: rows.iter().map(|it| leak.age(it)).reduce(f64::max),
            advice: None,
        }
    }

    fn evidence(&self, leak: &Leak<'_, '_>, rows: &[&Judged<'_>]) -> Map<String, Json> {
        let more = object(json!({
            "pairs": rows.len(),
            "pairs_by_chance": number(self.by_chance(&leak.held), Unit::Ratio),
            "pairs_rule": "held too long, and its last data within 1 s of an error in a log of the same application",
        }));
        leak.evidence(rows, more)
    }

    /// Each error with how many of these connections it is paired with, most first.
    pub(super) fn errors(&self, held: &[&Judged<'_>]) -> Json {
        let mut by_fingerprint: BTreeMap<&str, (&Raised, usize)> = BTreeMap::new();
        for (_, raised, _) in self.pairs(held) {
            by_fingerprint.entry(&raised.fingerprint).or_insert((raised, 0)).1 += 1;
        }
        let mut errors: Vec<_> = by_fingerprint.into_values().collect();
        errors.sort_by_key(|it| std::cmp::Reverse(it.1));
        let shown = |(raised, count): &(&Raised, usize)| {
            json!({
                "fingerprint": raised.fingerprint,
                "type": raised.kind,
                "message": words::foreign(&raised.message, 120),
                "place": raised.place,
                "connections": count,
            })
        };
        errors.iter().take(10).map(shown).collect()
    }
}

/// The application whose log may tell of it.
pub(super) fn application(row: &PoolRow) -> Option<&str> {
    match &row.owner {
        Owner::Seen { application, .. } => Some(&application.name),
        Owner::NotVisible { .. } => None,
    }
}

/// When its last data went over a connection; a unix socket has no ages, and there the server knows.
fn used_at(it: &Judged<'_>, now: Duration) -> Option<Duration> {
    let by_server = || it.said.and_then(|said| Some(said.at.saturating_sub(said.session.state_age?)));
    used_age(it.connection).map(|age| now.saturating_sub(age)).or_else(by_server)
}

/// `12 ms before`, of the last use as the error sees it.
fn distance(after: f64) -> String {
    format!("{} {}", words::seconds(after.abs()), if after < 0.0 { "after" } else { "before" })
}
