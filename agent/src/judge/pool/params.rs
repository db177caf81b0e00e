//! What a DSN has to say when a pooler hands each transaction another server connection.
//!
//! Judged only where the pooler's mode is certain: the operator said it, or the pooler itself. What a program sets in
//! its code cannot be seen, so keys that nobody demanded are a hint (`info`) until `pool.prepared` says that
//! statements do fail, and those of `pool.required` a warning.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tickbird_shared::Severity;

use super::{Instances, Subject, Tracks, owner_name, pids, pids_in_words, place};
use crate::discover::End;
use crate::inspect::host::{Owner, PoolRow};
use crate::inspect::server::PoolMode;
use crate::inspect::{Reason, ServerLook, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, object};
use crate::judge::threshold::Seen;
use crate::judge::{Moment, words};

const CHECK: CheckId = CheckId::Params;
/// PgBouncer's usual port.
const POOLER_PORT: u16 = 6432;
/// The keys that the DSN of that driver should show; psycopg2 prepares nothing by itself. psycopg has no such key: it takes
/// `prepare_threshold` from the code alone. SQLAlchemy's `prepared_statement_cache_size` is not enough: asyncpg still
/// names the statements itself.
const REQUIRED: [(&str, &[&str]); 3] =
    [("asyncpg", &["statement_cache_size=0"]), ("jdbc", &["preparethreshold=0"]), ("psycopg2", &[])];

/// How the poolers that were asked hand out their connections, by the remote ends that lead to them.
pub(super) type Modes = BTreeMap<End, Told>;

/// What a pooler says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    mode: PoolMode,
    /// Prepared statements go with their client.
    carries_statements: bool,
}

/// Takes over what a pooler says of itself.
pub(super) fn learn(modes: &mut Modes, look: &ServerLook) {
    for address in &look.addresses {
        match look.pool_mode {
            Some(mode) => {
                let carries_statements = look.carries_statements;
                modes.insert(End::Tcp(*address), Told { mode, carries_statements });
            }
            // Without an answer the last one stands; a server that is no pooler has none.
            None if look.sessions.is_ok() => {
                modes.remove(&End::Tcp(*address));
            }
            None => (),
        }
    }
}

pub(super) fn judge(modes: &Modes, pools: &Instances<'_>, now: Moment, tracks: &mut Tracks) {
    for (target, rows) in pools {
        let row = rows[0];
        let said = row.dsn.pooler.map(|mode| (mode, "configuration"));
        let told = modes.get(&row.remote);
        let mode = said.or_else(|| told.map(|it| (it.mode, "the pooler's own settings")));
        let is_port = row.remote.address().is_some_and(|it| it.port() == POOLER_PORT);
        let (value, missing) = match mode {
            None if is_port => {
                let untold =
                    "not judged: how the pooler at this port hands out connections (pool.pooler, [[pgbouncer]])";
                (Value::Unknown(Reason::NotYet(untold)), Vec::new())
            }
            // Nobody says that this is a pooler.
            None => continue,
            Some(_) if told.is_some_and(|it| it.carries_statements) => (Value::Known(0.0), Vec::new()),
            Some((PoolMode::Session, _)) => (Value::Known(0.0), Vec::new()),
            Some(_) => missing(rows),
        };
        let fails = matches!(&row.owner, Owner::Seen { application, .. } if has_failures(&application.name, tracks));
        let place = place(row);
        let subject = Subject { place: Some(&place), ..Subject::of(CHECK, target) };
        // What the program sets in its code cannot be seen: only the operator's own keys, or failures, make it a fault.
        let is_hint = !fails && !missing.is_empty() && rows.iter().all(|row| row.dsn.required.is_empty());
        let seen = match is_hint {
            true => Seen { forced: Some(Severity::Info), ..Seen::known(0.0) },
            false => Seen { corroborated: fails, ..Seen::value(value) },
        };
        tracks.observe(subject, seen, now, || case(rows, &missing, mode, fails));
    }
}

/// The required keys that one of the instances' DSNs lacks.
fn missing(rows: &[&PoolRow]) -> (Value, Vec<Arc<str>>) {
    let mut missing: Vec<Arc<str>> = Vec::new();
    for row in rows {
        let Some(named) = &row.dsn.named else {
            return (
                Value::Unknown(Reason::NotYet("not judged: no DSN in the process's environment or command line")),
                missing,
            );
        };
        let Some(required) = required(named.driver.unwrap_or_default(), &row.dsn.required) else {
            let untold = "not judged: which keys this driver needs (pool.required)";
            return (Value::Unknown(Reason::NotYet(untold)), missing);
        };
        for key in required {
            if !named.has(&key) && !missing.contains(&key) {
                missing.push(key);
            }
        }
    }
    (Value::Known(if missing.is_empty() { 0.0 } else { 1.0 }), missing)
}

/// The keys that a DSN of this driver should show: what the operator demands, else what is known of the driver; none when
/// nothing is.
pub(in crate::judge) fn required(driver: &str, said: &[Arc<str>]) -> Option<Vec<Arc<str>>> {
    if !said.is_empty() {
        return Some(said.to_vec());
    }
    let (_, keys) = REQUIRED.iter().find(|(name, _)| *name == driver)?;
    Some(keys.iter().map(|it| Arc::from(*it)).collect())
}

/// Whether the application's log says that prepared statements fail.
fn has_failures(application: &str, tracks: &Tracks) -> bool {
    let log = format!("log:{application}:");
    let mut of = tracks.of(CheckId::Prepared);
    of.any(|(key, track)| key.target.as_str().starts_with(&log) && track.level.firing().is_some())
}

fn case(rows: &[&PoolRow], missing: &[Arc<str>], mode: Option<(PoolMode, &str)>, fails: bool) -> Case {
    let pids = pids(rows.iter().copied());
    let (mode, told_by) = mode.map_or(("unknown", "nobody"), |(mode, by)| (mode.as_str(), by));
    let keys = missing.join(", ").replace('|', " or ");
    let named = rows.iter().find_map(|it| it.dsn.named.as_ref());
    let but = if fails { ", and its log says that prepared statements fail" } else { "" };
    Case {
        summary: format!(
            "{}, {}, connects to {} without {}: the pooler there hands out connections by {mode}{but}",
            owner_name(rows[0]),
            pids_in_words(&pids),
            rows[0].remote,
            words::foreign(&keys, 200),
        ),
        evidence: object(json!({
            "missing": missing,
            "driver": named.and_then(|it| it.driver),
            "dsn_source": named.map(|it| it.source),
            "pool_mode": mode,
            "pool_mode_told_by": told_by,
            "pids": pids,
            "rule": "keys that the driver needs behind a pooler, looked for in the DSN",
            "not_visible": ["what the program sets in its code"],
        })),
        ..Case::default()
    }
}
