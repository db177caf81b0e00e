//! How much of a pool is in use, against the limit of its fullest instance.
//!
//! What is certain: sessions that the server calls active or in a transaction. What is possible: every open socket,
//! since a connection that was leased and is idle looks like one that was given back. The certain share is what is
//! judged and what clears; both are told. Only where they are equal is the share exact, and only then may it be critical.

use serde_json::json;

use super::join::Join;
use super::row::{self, MAX_INSTANCES, MAX_ROWS, One, Rows, Word};
use super::{Instances, Subject, Tracks, owner_name, pid, place};
use crate::discover::TargetKey;
use crate::inspect::host::{Connection, PoolRow, TcpState};
use crate::inspect::server::{Engine, SessionState};
use crate::inspect::{Reason, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::{CLEARING_RATIO, Seen};
use crate::judge::tracks::Place;
use crate::judge::{Moment, words};

const NO_LIMIT: Reason = Reason::NotYet("not judged: no limit is configured or can be read from the process");

/// One instance's pool.
struct Use<'a> {
    row: &'a PoolRow,
    /// Connections that are certainly leased.
    certain: usize,
    /// Sockets that may be.
    open: usize,
    limit: f64,
    /// Whether every open socket has a session whose state is visible.
    is_whole: bool,
}

impl Use<'_> {
    fn share(&self, used: usize) -> f64 {
        used as f64 / self.limit
    }
}

/// Judges the pools of one server by its joined sessions. True when one of them is over the warning's bound.
pub(super) fn judge(bases: &Instances<'_>, join: &Join<'_>, engine: Engine, now: Moment, tracks: &mut Tracks) -> bool {
    let mut suspect = false;
    for (target, rows) in bases {
        let place = place(rows[0]);
        let limited: Vec<Use<'_>> = rows.iter().filter_map(|row| use_of(row, join)).collect();
        let Some(fullest) = limited.iter().max_by(|a, b| a.share(a.certain).total_cmp(&b.share(b.certain))) else {
            observe(target, &place, Seen::value(Value::Unknown(no_limit(rows))), now, tracks, Case::default);
            continue;
        };
        let certain = fullest.share(fullest.certain);
        let most = limited.iter().map(|it| it.share(it.open)).fold(0.0, f64::max);
        let is_exact = limited.iter().all(|it| it.is_whole && it.certain == it.open);
        let value = match limited.iter().all(|it| it.is_whole) {
            true => Value::Known(certain),
            false => Value::Between(certain, most),
        };
        let seen = Seen { corroborated: is_exact, ..Seen::value(value) };
        suspect |= tracks.rule(CheckId::Utilization).bounds.warning.is_some_and(|bound| certain >= bound);
        observe(target, &place, seen, now, tracks, || case(fullest, &limited, rows, join, is_exact, engine));
    }
    suspect
}

/// Judges a pool by its sockets alone. `why` says why the server was not asked, where it could have been.
pub(super) fn without_view(
    target: &TargetKey,
    place: &Place,
    rows: &[&PoolRow],
    why: Option<&Reason>,
    now: Moment,
    tracks: &mut Tracks,
) {
    let value = match most_share(rows) {
        None => Value::Unknown(no_limit(rows)),
        Some(most) if is_low(most, tracks) => Value::Known(most),
        Some(_) => {
            let untold = Reason::NotYet("how many of the open connections are in use");
            Value::Unknown(why.cloned().unwrap_or(untold))
        }
    };
    observe(target, place, Seen::value(value), now, tracks, Case::default);
}

/// The server's view is missing at this look.
pub(super) fn unseen(bases: &Instances<'_>, reason: &Reason, now: Moment, tracks: &mut Tracks) {
    for (target, rows) in bases {
        without_view(target, &place(rows[0]), rows, Some(reason), now, tracks);
    }
}

fn observe(
    target: &TargetKey,
    place: &Place,
    seen: Seen,
    now: Moment,
    tracks: &mut Tracks,
    case: impl FnOnce() -> Case,
) {
    let subject = Subject { place: Some(place), ..Subject::of(CheckId::Utilization, target) };
    tracks.observe(subject, seen, now, case);
}

/// Even if every open socket were in use, the pool would be well.
fn is_low(most: f64, tracks: &Tracks) -> bool {
    tracks.rule(CheckId::Utilization).bounds.warning.is_some_and(|bound| most < bound * CLEARING_RATIO)
}

/// A limit that may not be read is a missing right; one that nobody set is not.
fn no_limit(rows: &[&PoolRow]) -> Reason {
    let denied = rows.iter().find_map(|it| match &it.limit.value {
        Value::Unknown(reason @ Reason::Denied(_)) => Some(reason.clone()),
        _ => None,
    });
    denied.unwrap_or(NO_LIMIT)
}

fn limit(row: &PoolRow) -> Option<f64> {
    row.limit.value.known().filter(|it| *it > 0.0)
}

fn open(row: &PoolRow) -> usize {
    let is_open =
        |it: &&Connection| matches!(it.state, TcpState::Established | TcpState::SynSent | TcpState::CloseWait);
    row.connections.iter().filter(is_open).count()
}

fn most_share(rows: &[&PoolRow]) -> Option<f64> {
    rows.iter().filter_map(|it| Some(open(it) as f64 / limit(it)?)).reduce(f64::max)
}

fn use_of<'a>(row: &'a PoolRow, join: &Join<'_>) -> Option<Use<'a>> {
    let joined: Vec<_> = join.joined.iter().filter(|it| std::ptr::eq(it.pool, row)).collect();
    let certain = joined.iter().filter(|it| it.session.state.is_leased()).count();
    let is_told = joined.iter().all(|it| it.session.state != SessionState::Unknown);
    let has_gap = join.without_address > 0 && join.without_session.iter().any(|(pool, _)| std::ptr::eq(*pool, row));
    Some(Use { row, certain, open: open(row), limit: limit(row)?, is_whole: is_told && !has_gap })
}

fn case(
    fullest: &Use<'_>,
    limited: &[Use<'_>],
    rows: &[&PoolRow],
    join: &Join<'_>,
    is_exact: bool,
    engine: Engine,
) -> Case {
    let row = fullest.row;
    let at_least = if is_exact { "" } else { "at least " };
    let pid_words = pid(row).map_or_else(|| "owner: not visible".to_owned(), |it| format!("pid {it}"));
    let instances = limited.iter().map(|it| {
        json!({
            "pid": pid(it.row),
            "start": row::instance(it.row).map(|it| it.start),
            "remote": it.row.remote.to_string(),
            "used_at_least": it.certain,
            "used_at_most": it.open,
            "limit": it.limit,
            "limit_source": it.row.limit.source,
        })
    });
    let mut evidence = object(json!({
        "used_at_least": fullest.certain,
        "used_at_most": fullest.open,
        "limit": fullest.limit,
        "limit_source": row.limit.source,
        "share_at_least": number(fullest.share(fullest.certain), Unit::Ratio),
        "share_at_most": number(fullest.share(fullest.open), Unit::Ratio),
        "decided_by": if is_exact { "exact" } else { "sessions that are active or in a transaction" },
        "instances": instances.take(MAX_INSTANCES).collect::<Vec<_>>(),
        "instances_total": limited.len(),
        "instances_without_limit": rows.len() - limited.len(),
        "connections_total": row.connections.len(),
        "rule": format!("{} against the limit", engine.state_rule()),
        "not_visible": if is_exact { vec![] } else { vec!["whether idle connections are leased"] },
    }));
    // Those that are certainly in use first, the longest of them at the top.
    let used = join.joined.iter().filter(|it| std::ptr::eq(it.pool, row));
    let mut used: Vec<_> = used.collect();
    used.sort_by_key(|it| std::cmp::Reverse((it.session.state.is_leased(), it.session.state_age)));
    let mut shown = Rows::default();
    for it in used.iter().take(MAX_ROWS) {
        shown.add(&One::joined(it, it.session.state_age.map(|it| it.as_secs_f64())));
    }
    let others = join.without_session.iter().filter(|(pool, _)| std::ptr::eq(*pool, row));
    for (pool, it) in others.take(MAX_ROWS.saturating_sub(used.len())) {
        let word = Word::Nothing("session: no row of the server was joined with it at the last look");
        shown.add(&One::of(pool, it, word, None));
    }
    shown.put(&mut evidence, "connections");
    Case {
        summary: format!(
            "{}, {pid_words}, uses {at_least}{} of the {} connections that its pool to {} may open ({}); {} are open{}",
            owner_name(row),
            fullest.certain,
            fullest.limit,
            row.remote,
            words::number(fullest.share(fullest.certain), Unit::Ratio),
            fullest.open,
            row::sharing(&row.connections),
        ),
        evidence,
        ..Case::default()
    }
}
