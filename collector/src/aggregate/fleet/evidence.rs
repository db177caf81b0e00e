//! What a person is told of a server whose pools together are too large.

use serde_json::{Value, json};
use tickbird_shared::{Severity, Timestamp};

use super::sum::{Range, Server, Share, Sum};
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
    sum: &Sum,
    slots: u32,
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
            "looks": "every 10 s, of levels that agents tell every 10 to 60 s",
        }),
        since,
    }
    .finding(now)
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

fn cut(text: &str) -> &str {
    text.char_indices().nth(LETTERS).map_or(text, |(at, _)| &text[..at])
}
