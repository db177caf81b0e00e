//! Transactions left open: sessions that are idle inside one, or inside a failed one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::join::{Join, Joined, hidden_ends};
use super::row::{self, MAX_ROWS, One, Rows};
use super::through_pooler::{self, PassedOn};
use super::{owner_name, pid, pids, pids_in_words, place, who};
use crate::discover::{Instance, TargetKey};
use crate::inspect::host::PoolRow;
use crate::inspect::server::{Session, SessionState};
use crate::inspect::{Reason, ServerLook, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::settings::Effective;
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// A session younger than this share of the warning's bound is ordinary work, not evidence.
const LEAST_SHARE: f64 = 0.1;

/// The joined sessions of each target by database and user.
pub(super) type Groups<'a> = BTreeMap<TargetKey, Vec<Joined<'a>>>;

pub(super) fn grouped<'a>(join: &Join<'a>) -> Groups<'a> {
    let mut groups = Groups::new();
    for it in &join.joined {
        let (application, role) = who(it.pool).rsplit_once('/').unwrap_or((who(it.pool), "main"));
        let [database, user] = [&it.session.database, &it.session.user].map(|name| words::foreign(name, 63));
        let target = TargetKey::pool_of(application, role, &it.pool.remote, &database, &user);
        groups.entry(target).or_default().push(*it);
    }
    groups
}

/// One look at one server, joined.
pub(super) struct Scene<'a> {
    pub(super) look: &'a ServerLook,
    pub(super) join: &'a Join<'a>,
    pub(super) commands: &'a HashMap<Instance, Arc<str>>,
    /// Whose sessions a pooler's are, when the look is at the server behind it.
    pub(super) passed: &'a PassedOn,
}

impl Scene<'_> {
    /// Judges every group by one of the two checks. True when a session is half-way to the warning.
    pub(super) fn judge(&self, check: CheckId, groups: &Groups<'_>, now: Moment, tracks: &mut Tracks) -> bool {
        let state = match check {
            CheckId::AbortedTransaction => SessionState::IdleInTransactionAborted,
            _ => SessionState::IdleInTransaction,
        };
        let bound = tracks.rule(check).bounds.warning.unwrap_or(f64::INFINITY);
        let mut suspect = false;
        for (target, joined) in groups {
            let offenders = offenders(joined, state, tracks.thresholds().of(check), self.passed);
            let oldest = offenders.first().map_or(0.0, |it| age(it.session));
            suspect |= oldest >= bound / 2.0;
            let value = match self.not_seen(target, joined, state) {
                None => Value::Known(oldest),
                Some(_) if oldest > 0.0 => Value::Between(oldest, f64::INFINITY),
                Some(reason) => Value::Unknown(reason),
            };
            let place = place(joined[0].pool);
            let subject = Subject { place: Some(&place), ..Subject::of(check, target) };
            let listed: Vec<_> = offenders.into_iter().filter(|it| age(it.session) >= bound * LEAST_SHARE).collect();
            tracks.observe(subject, Seen::value(value), now, || self.case(check, joined, &listed));
        }
        suspect
    }

    /// What keeps the oldest age of a group from being exactly known.
    fn not_seen(&self, target: &TargetKey, joined: &[Joined<'_>], state: SessionState) -> Option<Reason> {
        let untold = |it: &Session| match it.state {
            SessionState::Unknown => true,
            SessionState::InTransaction => through_pooler::hides_its_state(it),
            other => other == state && it.state_age.is_none(),
        };
        let (database, user) = (&joined[0].session.database, &joined[0].session.user);
        let is_hidden = |it: &&Session| it.database == *database && it.user == *user;
        // A hidden row may be a connection of this pool only if one of its connections has no row.
        let has_gap = self.join.without_session.iter().any(|(pool, _)| pool.target == joined[0].pool.target);
        let is_whole = joined.iter().all(|it| !untold(it.session));
        if is_whole && !(has_gap && (self.look.unseen > 0 || self.join.unnamed.iter().any(is_hidden))) {
            return None;
        }
        if let Some(session) = joined.iter().map(|it| it.session).find(|it| untold(it) && it.link.is_some()) {
            return Some(through_pooler::why_hidden(session));
        }
        let absent = || Reason::Absent(format!("the state of sessions of {target} (is track_activities off?)"));
        let ends = || (is_whole && self.join.hides_ends()).then(|| hidden_ends(self.look.engine));
        Some(self.look.hidden.clone().or_else(ends).unwrap_or_else(absent))
    }

    /// Pools none of whose connections have a visible row, while rows are hidden from our role.
    pub(super) fn hidden_pools(&self, groups: &Groups<'_>) -> Vec<&PoolRow> {
        let mut pools: Vec<&PoolRow> = self.partly_hidden().collect();
        pools.sort_by(|a, b| a.target.cmp(&b.target));
        pools.dedup_by(|a, b| a.target == b.target);
        pools.retain(|pool| !groups.values().any(|joined| joined[0].pool.target == pool.target));
        pools
    }

    /// Pools with a connection whose row may be one that is hidden from our role; some may come twice.
    pub(super) fn partly_hidden(&self) -> impl Iterator<Item = &PoolRow> {
        let hides = self.look.hidden.is_some() && self.join.without_address > 0;
        self.join.without_session.iter().filter(move |_| hides).map(|(pool, _)| *pool)
    }

    fn case(&self, check: CheckId, joined: &[Joined<'_>], listed: &[Joined<'_>]) -> Case {
        let mut members: Vec<u64> = listed.iter().map(|it| through_pooler::final_backend(it.session)).collect();
        members.sort_unstable();
        Case {
            summary: summary(check, self.look, self.passed, joined, listed),
            evidence: self.evidence(joined, listed),
            members,
            age_seconds: listed.first().map(|it| age(it.session)),
            advice: None,
        }
    }

    fn evidence(&self, joined: &[Joined<'_>], listed: &[Joined<'_>]) -> Map<String, Json> {
        let mut by_state: BTreeMap<&str, usize> = BTreeMap::new();
        for it in joined {
            *by_state.entry(it.session.state.as_str()).or_default() += 1;
        }
        let mut not_visible = Vec::new();
        if listed.iter().all(|it| it.session.statement.is_none()) {
            not_visible.push("statement");
        }
        if self.look.hidden.is_some() {
            not_visible.push("sessions of other roles");
        }
        let mut whole = object(json!({
            "sessions_total": listed.len(),
            "open": joined.len(),
            "by_state": by_state,
            "pids": pids(listed.iter().map(|it| it.pool)),
            "rule": self.look.engine.state_rule(),
            "not_visible": not_visible,
            "join": {
                "joined": self.join.joined.len(),
                "open": self.join.open(),
                "rows_without_socket": self.join.without_socket.len(),
            },
        }));
        self.put_rows(listed, &mut whole);
        whole
    }

    /// The oldest sessions as rows: with shorter texts where they have no room.
    fn put_rows(&self, listed: &[Joined<'_>], evidence: &mut Map<String, Json>) {
        let listed = &listed[..listed.len().min(MAX_ROWS)];
        let mut rows = Rows::default();
        for text in [200, 60] {
            rows = Rows::default();
            listed.iter().for_each(|it| self.add_row(&mut rows, it, text));
            if rows.fit(evidence) {
                break;
            }
        }
        rows.put(evidence, "sessions");
    }

    fn add_row(&self, rows: &mut Rows, it: &Joined<'_>, text: usize) {
        let Joined { session, pool, .. } = it;
        let row = rows.add(&One::joined(it, Some(age(session))));
        row.insert("backend".to_owned(), json!(through_pooler::final_backend(session)));
        let transaction = session.transaction_age.map(|it| number(it.as_secs_f64(), Unit::Seconds));
        let command = row::instance(pool).and_then(|it| self.commands.get(&it));
        rows.tell(json!({
            "transaction_age_seconds": transaction,
            "command": command.map(|it| words::foreign(it, text)),
            "database": session.database,
            "user": session.user,
            "application_name": words::foreign(&session.application_name, text),
            "statement": session.statement.as_deref().map(|it| words::foreign(it, text)),
        }));
        if let Some(link) = through_pooler::link(session) {
            let server = link.server.as_ref().map(|it| it.as_str());
            rows.tell(json!({ "through": { "pooler": self.look.target.as_str(), "server": server } }));
        }
        if let Some(client) = self.passed.stranger(session.backend) {
            rows.tell(json!({ "client_of_pooler": client }));
        }
        if row::instance(pool).is_none() {
            rows.tell(json!({ "owner": "not visible" }));
        }
    }
}

/// Sessions in `state`, oldest first, without those that the operator allows.
fn offenders<'a>(
    joined: &[Joined<'a>],
    state: SessionState,
    setting: &Effective,
    passed: &PassedOn,
) -> Vec<Joined<'a>> {
    let offends = |it: &&Joined<'_>| {
        let is_ours = !passed.is_told_at_client(it.session.backend);
        it.session.state == state && is_ours && !setting.allows(&it.session.application_name)
    };
    let mut all: Vec<_> = joined.iter().filter(offends).copied().collect();
    all.sort_by(|a, b| b.session.state_age.cmp(&a.session.state_age).then(a.session.backend.cmp(&b.session.backend)));
    all
}

fn age(session: &Session) -> f64 {
    session.state_age.unwrap_or_default().as_secs_f64()
}

/// The sentence that the person on call reads.
fn summary(
    check: CheckId,
    look: &ServerLook,
    passed: &PassedOn,
    joined: &[Joined<'_>],
    listed: &[Joined<'_>],
) -> String {
    let Some(oldest) = listed.first().or(joined.first()) else { return String::new() };
    let pids = pids(listed.iter().map(|it| it.pool));
    let (who, holds, its) = match pids.len() {
        0 | 1 => (pids_in_words(&pids), "holds", "its"),
        _ => (pids_in_words(&pids), "hold", "their"),
    };
    let what = match check {
        CheckId::AbortedTransaction => "idle in a failed transaction",
        _ => "idle in transaction",
    };
    let (session, open) = (oldest.session, joined.len());
    let of_pid = match pid(oldest.pool) {
        Some(pid) if pids.len() > 1 => format!("pid {pid}, "),
        _ => String::new(),
    };
    let fd = match oldest.connection.fds.first() {
        _ if !oldest.is_exact => "one of its unix sockets".to_owned(),
        Some(fd) => format!("fd {fd}"),
        None => words::local_end(&oldest.connection.local),
    };
    let session_is = match through_pooler::link(session) {
        Some(link) => through_pooler::in_words(link, look.engine),
        None => format!("{} {}", look.engine.session_word(), session.backend),
    };
    let client = passed.stranger(session.backend).map(|it| format!(", for {it}"));
    let statement = session.statement.as_deref().map(|it| format!(", last statement `{}`", words::foreign(it, 200)));
    format!(
        "{}, {who}, {holds} {} of {its} {open} connections to {}/{} {what}, the oldest for {} on {of_pid}{fd} = {session_is}{}{}{}",
        owner_name(oldest.pool),
        listed.len(),
        oldest.pool.remote,
        words::foreign(&session.database, 63),
        words::seconds(age(session)),
        client.unwrap_or_default(),
        statement.unwrap_or_default(),
        // Of one whose process alone is certain nothing is known of the socket.
        row::sharing(listed.iter().filter(|it| it.is_exact).map(|it| it.connection)),
    )
}
