//! The agent in numbers: OpenMetrics without evidence.
//!
//! Labels are ids of checks, words and lanes. A target's name may tell of an application, a text of more: neither is here.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use serde_json::Value as Json;

use super::Report;
use crate::judge::State;

/// Media type of [`text`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Level = Gauge<f64, AtomicU64>;
type Key = Vec<(&'static str, String)>;

/// What the buffer counts of each lane, and what it says.
const LANE_COUNTS: [(&str, &str); 5] = [
    ("appended", "Records that the buffer accepted"),
    ("acknowledged", "Records on the collector's disk"),
    ("evicted", "Records that went to make room"),
    ("refused", "Records that can never be stored"),
    ("quarantined", "Records that could not be read back"),
];
/// The same of what is now.
const LANE_LEVELS: [(&str, &str); 2] =
    [("backlog", "Records that wait for the collector"), ("bytes_on_disk", "Bytes of the buffer on disk")];
/// What shipping counts.
const SHIPPING: [(&str, &str); 5] = [
    ("requests", "Requests that the collector answered as it should"),
    ("failures", "Attempts that failed"),
    ("bytes_sent", "Bytes of bodies, compressed"),
    ("bridged", "Gaps of the collector that were told"),
    ("begun_anew", "Epochs begun because the buffer was copied or put back"),
];

/// Whether the way to the collector works; none when the agent watches alone.
pub(super) fn is_connected(report: &Report) -> Option<bool> {
    report.agent.collector.as_ref().map(|it| it.breaker == "closed")
}

/// The report's numbers.
pub(super) fn text(report: &Report) -> String {
    let agent = &report.agent;
    let mut registry = Registry::with_prefix("tickbird_agent");
    registry.register("build", "The agent that answers", Info::new(vec![("version", agent.version.clone())]));
    let seconds = |at: jiff::Timestamp| at.as_millisecond() as f64 / 1e3;
    single(&mut registry, "start_time", "When it started", Some(Unit::Seconds), seconds(agent.started_at));
    if let Some(bytes) = agent.memory_bytes {
        single(
            &mut registry,
            "memory",
            "Its memory, its part of what is shared included",
            Some(Unit::Bytes),
            bytes as f64,
        );
    }
    if let Some(share) = agent.cpu_ratio {
        let help = "Its CPU since it started, of one core";
        single(&mut registry, "cpu", help, Some(Unit::Ratios), share);
    }
    single(
        &mut registry,
        "times_slower",
        "Intervals are so many times longer, for the budget",
        None,
        agent.times_slower.into(),
    );

    let mut states: BTreeMap<Key, f64> = State::ALL.map(|it| (vec![("state", it.as_str().to_owned())], 0.0)).into();
    for it in &report.checks {
        *states.entry(vec![("state", it.state.clone())]).or_default() += 1.0;
    }
    levels(&mut registry, "checks", "Checks on their targets, by state", states);
    let mut findings: BTreeMap<Key, f64> = BTreeMap::new();
    for it in &report.findings {
        let key = vec![("check", it.check.clone()), ("severity", it.severity.clone())];
        *findings.entry(key).or_default() += 1.0;
    }
    levels(&mut registry, "findings", "Findings that fire", findings);
    single(&mut registry, "blind_causes", "Causes why checks cannot see", None, report.blind.len() as f64);
    let mut targets: BTreeMap<Key, f64> = BTreeMap::new();
    for it in &report.targets {
        *targets.entry(vec![("kind", it.kind.clone())]).or_default() += 1.0;
    }
    levels(&mut registry, "targets", "What is watched, by kind", targets);

    if let Some(buffer) = &agent.buffer {
        let lanes: &[Json] = buffer["lanes"].as_array().map_or(&[], Vec::as_slice);
        let of = |lane: &Json| vec![("lane", lane["lane"].as_str().unwrap_or_default().to_owned())];
        for (name, help) in LANE_COUNTS {
            let counts = Family::<Key, Counter>::default();
            for lane in lanes {
                counts.get_or_create(&of(lane)).inc_by(lane[name].as_u64().unwrap_or_default());
            }
            registry.register(format!("buffer_records_{name}"), help, counts);
        }
        for (name, help) in LANE_LEVELS {
            let values = lanes.iter().map(|it| (of(it), it[name].as_f64().unwrap_or_default())).collect();
            levels(&mut registry, &format!("buffer_{name}"), help, values);
        }
        if let Some(bytes) = buffer["available_bytes"].as_f64() {
            single(&mut registry, "buffer_available", "Room on the buffer's disk", Some(Unit::Bytes), bytes);
        }
    }
    if let Some(collector) = &agent.collector {
        for (name, help) in SHIPPING {
            let count: Counter = Counter::default();
            count.inc_by(collector.counts[name].as_u64().unwrap_or_default());
            registry.register(format!("ship_{name}"), help, count);
        }
        let help = "1 while the way to the collector works";
        single(&mut registry, "collector_connected", help, None, f64::from(is_connected(report) == Some(true)));
        if let Some(at) = collector.acknowledged_at {
            let help = "When the collector last acknowledged something";
            single(&mut registry, "acknowledged", help, Some(Unit::Seconds), seconds(at));
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a string succeeds");
    text
}

fn single(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>, value: f64) {
    let level = Level::default();
    level.set(value);
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, level),
        None => registry.register(name, help, level),
    }
}

fn levels(registry: &mut Registry, name: &str, help: &str, values: BTreeMap<Key, f64>) {
    let family = Family::<Key, Level>::default();
    for (key, value) in values {
        family.get_or_create(&key).set(value);
    }
    registry.register(name, help, family);
}

#[cfg(test)]
mod tests {
    use super::super::tests::leaking;
    use super::*;

    #[test]
    fn numbers_are_told_and_no_evidence() {
        let mut report = leaking();
        report.agent.buffer = Some(serde_json::json!({ "lanes": [{ "lane": "urgent", "appended": 7, "backlog": 2 }] }));
        let text = text(&report);
        for line in [
            "tickbird_agent_findings{check=\"pool.idle_in_transaction\",severity=\"critical\"} 1.0",
            "tickbird_agent_checks{state=\"critical\"} 1.0",
            "tickbird_agent_checks{state=\"ok\"} 0.0",
            "tickbird_agent_blind_causes 1.0",
            "tickbird_agent_targets{kind=\"pool\"} 1.0",
            "tickbird_agent_buffer_records_appended_total{lane=\"urgent\"} 7",
            "tickbird_agent_buffer_backlog{lane=\"urgent\"} 2.0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in\n{text}");
        }
        for secret in ["grants-api", "10.0.0.5", "4121", "88123", "uid 33"] {
            assert!(!text.contains(secret), "{secret} is evidence:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
