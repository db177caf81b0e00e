//! What can be told, made up: to try a receiver with, and to try a body with before anything happens.

use std::collections::BTreeMap;

use serde_json::Value;
use tickbird_shared::{Fingerprint, Severity, Status, Timestamp};
use ulid::Ulid;

use super::{GroupTold, Parts, SAMPLE, Told};
use crate::alert::{Found, Kind, Sought};
use crate::store::{AgentRow, GroupRow, IncidentRow};

/// An incident that nothing is behind.
pub(super) fn incident(tenant: &str, receiver: &str, now: Timestamp) -> IncidentRow {
    let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
    IncidentRow {
        tenant: tenant.into(),
        id: Ulid::from_parts(millis, u128::from(now.subsec_nanosecond().unsigned_abs())).to_string(),
        fingerprint: Fingerprint::of(tenant, "collector", SAMPLE, receiver, None),
        agent: "collector".into(),
        check: SAMPLE.into(),
        target: format!("receiver:{receiver}"),
        sub_key: None,
        status: Status::Firing,
        severity: Severity::Info,
        summary: "this is a test, and nothing is wrong".into(),
        advice: Some("nothing is to be done".into()),
        evidence: "{}".into(),
        evidence_lost: false,
        since: now,
        opened_at: now,
        updated_at: now,
        resolved_at: None,
        resolved_reason: None,
        occurrences: 1,
        state_epoch: 1,
        state_since: now,
        seen_epoch: None,
        seen_at: now,
        flap: None,
    }
}

fn agent(now: Timestamp) -> AgentRow {
    AgentRow::enrolled(("default", "a-1"), "web-1", now, now)
}

/// The document of each kind of message, some with everything that may be there, others with nothing that need not; texts have
/// what a body has to escape.
pub(super) fn documents() -> Vec<(&'static str, Value)> {
    let now = Timestamp::UNIX_EPOCH;
    let agent = agent(now);
    let bare = IncidentRow { advice: None, ..incident("default", "ops", now) };
    let full = IncidentRow {
        sub_key: Some("part".into()),
        summary: "14 of 20 held by \"shop\"\n<till> & {desk}".into(),
        evidence: r#"{"open":20,"sessions":[{"pid":7}]}"#.into(),
        ..incident("default", "ops", now)
    };
    let over = IncidentRow {
        status: Status::Resolved,
        resolved_at: Some(now),
        resolved_reason: Some("it cleared".into()),
        ..bare.clone()
    };
    let one = |kind, incident, agent| {
        let told = Told {
            id: "msg_1",
            kind,
            receiver: "ops",
            reason: "a sample",
            incident,
            agent,
            acknowledged: None,
            known: None,
            decided_at: now,
        };
        serde_json::to_value(told.document()).expect("texts, numbers and checked JSON serialise")
    };
    let group = GroupRow {
        tenant: "default".into(),
        id: "grp_1".into(),
        receiver: "ops".into(),
        route: "route".into(),
        labels: BTreeMap::new(),
        message: None,
        due_at: None,
        told_at: None,
    };
    let many = |changed: &[(Kind, &Found<'_>)], others: &[Found<'_>]| {
        let told = GroupTold::new("msg_1", &group, &Parts { changed, others, held: 0, known: &|_| None }, now);
        serde_json::to_value(told.document()).expect("texts, numbers and checked JSON serialise")
    };
    let [first, second, last]: [Found<'_>; 3] =
        [(Sought::Known(&full), Some(&agent)), (Sought::Known(&bare), None), (Sought::Known(&over), None)];
    vec![
        ("a sample that fires", one("incident.firing", &full, Some(&agent))),
        ("a sample that fires and has nothing that need not be there", one("incident.firing", &bare, None)),
        ("a sample of an update", one("incident.updated", &full, None)),
        ("a sample that is over", one("incident.resolved", &over, Some(&agent))),
        ("a sample of a group", many(&[(Kind::Firing, &first)], std::slice::from_ref(&second))),
        ("a sample of a group that fires still", many(&[], std::slice::from_ref(&second))),
        ("a sample of a group that is over", many(&[(Kind::Resolved, &last)], &[])),
    ]
}
