//! What a person is told of a server whose pools together are too large, or whose services differ; and what of it is read
//! again after a restart.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tickbird_shared::{Severity, Timestamp};

use super::identity::Server;
use super::params::{Differences, POOL_PARAMS, Service, fingerprint};
use super::sum::{Range, Share, Sum};
use super::usage::Usage;
use super::{FLEET, POOL_BUDGET, target};
use crate::aggregate::own::Own;
use crate::store::FindingRow;

/// Most applications that are named: the evidence of a finding is bounded.
const NAMED: usize = 20;
/// Most letters of a name that came from an agent.
const LETTERS: usize = 100;

/// The finding of a server over a bound.
pub(super) fn finding(
    server: &Server,
    (sum, slots, known): (&Sum, u32, Option<&BTreeSet<String>>),
    severity: Severity,
    usage: &Usage,
    since: Timestamp,
    now: Timestamp,
) -> FindingRow {
    let mut shares: Vec<_> = sum.applications.iter().collect();
    // The largest first; what has no upper end may be larger than all.
    shares.sort_by_key(|(name, share)| (std::cmp::Reverse((share.limit.low, share.open)), (*name).clone()));
    let low = sum.limit.low;
    let or_more = if sum.limit.high == Some(low) { "" } else { " or more" };
    let percent = low * 100 / u64::from(slots);
    let name = cut(&sum.name);
    let verb = if low > u64::from(slots) { "can exhaust" } else { "can nearly exhaust" };
    let first: Vec<String> =
        shares.iter().take(3).map(|(name, share)| format!("{} {}", cut(name), share.limit.low)).collect();
    let others = shares.len().saturating_sub(first.len());
    let others = if others > 0 { format!(" and {others} more") } else { String::new() };
    let bound = if severity == Severity::Critical { 100 } else { 80 };
    Own {
        tenant: &server.0,
        agent: FLEET,
        check: POOL_BUDGET,
        target: target(server),
        severity,
        summary: format!(
            "{name}: pools {verb} it: {low}{or_more} connections may be opened, {slots} slots ({}{others})",
            first.join(", ")
        ),
        reason: format!("{low}{or_more} is {percent} % of {slots} slots, over {bound} % for 3 looks"),
        advice: "make pools smaller (size, overflow or number of workers) or the server's max_connections larger; \
                 the evidence suggests a size for each application",
        evidence: json!({
            "server": name,
            "slots": slots,
            "possible": range(sum.limit),
            "pressure": { "open": sum.open, "leased": range(sum.leased), "used_at_the_server": sum.used },
            "applications": shares.iter().take(NAMED).map(|it| application(server, *it, slots, usage)).collect::<Vec<_>>(),
            "applications_total": shares.len(),
            "limits_known": known.and_then(all_of),
            "looks": "every 10 s, of levels that agents tell every 10 to 60 s",
        }),
        since,
    }
    .finding(now)
}

/// Names, if there is room for all of them in full.
pub(super) fn all_of(names: &BTreeSet<String>) -> Option<Vec<&String>> {
    let has_room = names.len() <= NAMED && names.iter().all(|it| cut(it) == it);
    has_room.then(|| names.iter().collect())
}

/// The applications whose limit was known when a stored finding was told; none when it does not name all.
pub(super) fn limits_known(evidence: &str) -> Option<BTreeSet<String>> {
    let evidence: Value = serde_json::from_str(evidence).ok()?;
    let names = evidence["limits_known"].as_array()?;
    names.iter().map(|it| it.as_str().map(str::to_owned)).collect()
}

/// The finding of services of one driver behind one pooler that differ.
pub(super) fn differing(
    (server, name, driver): (&Server, &str, &str),
    differences: &Differences,
    since: Timestamp,
    now: Timestamp,
) -> FindingRow {
    let name = cut(name);
    let parts: Vec<String> = differences
        .iter()
        .take(3)
        .map(|(key, it)| format!("{} is set by {} and not by {}", or(key), words(&it.with), words(&it.without)))
        .collect();
    let services: BTreeSet<&Service> = differences.values().flat_map(|it| it.with.iter().chain(&it.without)).collect();
    let list = |of: &BTreeSet<Service>| of.iter().take(NAMED).map(|it| it.application.clone()).collect::<Vec<_>>();
    let keys = differences
        .iter()
        .map(|(key, it)| json!({ "key": or(key), "with": list(&it.with), "without": list(&it.without) }));
    let service = |it: &&Service| json!({ "application": it.application, "agent": it.agent, "target": it.target });
    let own = Own {
        tenant: &server.0,
        agent: FLEET,
        check: POOL_PARAMS,
        target: target(server),
        severity: Severity::Warning,
        summary: format!("{name}: services that use {driver} behind one pooler differ: {}", parts.join("; ")),
        reason: "for 3 looks a key that one service needs behind this pooler, and has, is not in another's DSN".into(),
        advice: "give the services without it the same key; where a program sets it in its code, its DSN can say it too",
        evidence: json!({
            "server": name,
            "driver": driver,
            "keys": keys.collect::<Vec<_>>(),
            "services": services.iter().take(NAMED).map(service).collect::<Vec<_>>(),
            "services_total": services.len(),
            "rule": "the pooler hands out connections by transaction; names of keys in the DSNs are compared",
            "not_visible": ["what a program sets in its code"],
        }),
        since,
    };
    FindingRow { sub_key: Some(driver.into()), fingerprint: fingerprint(server, driver), ..own.finding(now) }
}

/// The services that a stored finding named; none when it did not name all.
pub(super) fn named(evidence: &str) -> Option<BTreeSet<Service>> {
    let evidence: Value = serde_json::from_str(evidence).ok()?;
    let services = evidence["services"].as_array()?;
    let word = |it: &Value, key: &str| it[key].as_str().map(str::to_owned);
    let read = |it: &Value| {
        Some(Service { agent: word(it, "agent")?, target: word(it, "target")?, application: word(it, "application")? })
    };
    let found: BTreeSet<Service> = services.iter().map(read).collect::<Option<_>>()?;
    (evidence["services_total"].as_u64() == Some(found.len() as u64)).then_some(found)
}

/// `a or b`, of a key with alternatives.
fn or(key: &str) -> String {
    key.replace('|', " or ")
}

/// The first applications of a list.
fn words(services: &BTreeSet<Service>) -> String {
    let names: BTreeSet<&str> = services.iter().map(|it| it.application.as_str()).collect();
    let first: Vec<&str> = names.iter().take(3).copied().collect();
    let others = names.len() - first.len();
    let others = if others > 0 { format!(" and {others} more") } else { String::new() };
    format!("{}{others}", first.join(", "))
}

fn application(server: &Server, (name, share): (&String, &Share), slots: u32, usage: &Usage) -> Value {
    let used = usage.of(&(server.0.clone(), server.1.clone(), name.clone()));
    json!({
        "application": cut(name),
        "possible": range(share.limit),
        "share_of_slots": (share.limit.low * 1000 / u64::from(slots)) as f64 / 1000.0,
        "processes": share.instances,
        "agents": share.agents.len(),
        "open": share.open,
        "leased": range(share.leased),
        "leased_p95": used.map(|it| it.p95),
        "leased_peak": used.map(|it| it.peak),
        "suggested_for_all_processes": used.and_then(|it| it.suggested),
        "limit_not_known": share.why_unknown.as_deref().map(cut),
    })
}

/// A number, a pair, or the least of what has no upper end.
fn range(it: Range) -> Value {
    match it.high {
        Some(high) if high == it.low => json!(high),
        Some(high) => json!([it.low, high]),
        None => json!({ "at_least": it.low }),
    }
}

pub(super) fn cut(text: &str) -> &str {
    text.char_indices().nth(LETTERS).map_or(text, |(at, _)| &text[..at])
}
