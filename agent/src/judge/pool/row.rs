//! One connection as it stands in evidence.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json, json};

use super::{Owner, PoolRow, owner_name, pids, pids_in_words};
use crate::inspect::Unit;
use crate::inspect::host::Connection;
use crate::judge::evidence::{Case, number, object};

/// Most rows in the evidence.
const MAX_ROWS: usize = 50;

/// A connection that offends, with how long it has done so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offender<'a> {
    pub(super) pool: &'a PoolRow,
    pub(super) connection: &'a Connection,
    pub(super) age_seconds: f64,
}

/// Every connection of some rows with its row.
pub(super) fn connections<'a>(rows: &[&'a PoolRow]) -> impl Iterator<Item = (&'a PoolRow, &'a Connection)> {
    rows.iter().flat_map(|row| row.connections.iter().map(|it| (*row, it)))
}

/// The case against some connections, the oldest first. `what` ends the sentence "shop, pid 77, has 2 of 8 connections
/// to 10.0.0.5:5432 …".
pub(super) fn case(rows: &[&PoolRow], offenders: &[Offender<'_>], rule: &str, what: &str) -> Case {
    let open: usize = rows.iter().map(|it| it.connections.len()).sum();
    let pids = pids(offenders.iter().map(|it| it.pool));
    let summary = offenders.first().map_or_else(String::new, |oldest| {
        let fd = oldest.connection.fds.first().map_or_else(String::new, |fd| format!(" (the oldest on fd {fd})"));
        let has = if pids.len() > 1 { "have" } else { "has" };
        let (who, remote) = (owner_name(oldest.pool), &oldest.pool.remote);
        let (whose, count) = (pids_in_words(&pids), offenders.len());
        format!("{who}, {whose}, {has} {count} of {open} connections to {remote} {what}{fd}")
    });
    let mut members: Vec<u64> = offenders.iter().map(|it| it.connection.cookie).collect();
    members.sort_unstable();
    let mut evidence = shown(offenders);
    evidence.extend(object(json!({ "open": open, "pids": pids, "rule": rule })));
    Case { summary, evidence, members, age_seconds: offenders.first().map(|it| it.age_seconds), advice: None }
}

/// `connections`, `connections_total` and `not_visible`.
fn shown(offenders: &[Offender<'_>]) -> Map<String, Json> {
    let mut not_visible = BTreeSet::new();
    if offenders.iter().any(|it| matches!(it.pool.owner, Owner::NotVisible { .. })) {
        not_visible.insert("owner: not visible");
    }
    object(json!({
        "connections": offenders.iter().take(MAX_ROWS).map(row).collect::<Vec<_>>(),
        "connections_total": offenders.len(),
        "not_visible": not_visible,
    }))
}

fn row(it: &Offender<'_>) -> Json {
    let instance = match &it.pool.owner {
        Owner::Seen { instance, .. } => Some(instance),
        Owner::NotVisible { .. } => None,
    };
    let connection = it.connection;
    json!({
        "pid": instance.map(|it| it.pid),
        "start": instance.map(|it| it.start),
        "fd": connection.fds.first(),
        "local": connection.local.to_string(),
        "remote": it.pool.remote.to_string(),
        "state": format!("{:?}", connection.state),
        "age_seconds": number(it.age_seconds, Unit::Seconds),
        "retransmits": connection.retransmits,
        "probes": connection.probes,
        "keepalive": connection.keepalive,
    })
}
