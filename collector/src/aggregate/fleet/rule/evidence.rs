//! What a person is told of a group over a bound: the value, the bound, how many values it is made of, and the largest of them.

use serde_json::{Value, json};
use tickbird_shared::{Change, Severity, Timestamp};

use super::super::{FLEET, evidence::cut};
use super::series::{Series, Span};
use super::{Aggregate, BEYOND, MAX_GROUPS, Rule, Side, fingerprint, labels_of};
use crate::aggregate::own::Own;
use crate::store::FindingRow;

/// Most of what is added up that is named.
const NAMED: usize = 5;
/// What to do, where the rule does not say.
const ADVICE: &str = "see [[rule]] of this name in the collector's configuration; the evidence names what matters most of what is added up";

/// A look at a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) value: Option<Span>,
    /// What it is a part of, where the rule says so and somebody told of it.
    pub(super) whole: Option<Span>,
    /// The value, or its share.
    pub(super) judged: Option<Span>,
    pub(super) severity: Severity,
    pub(super) since: Timestamp,
    pub(super) certain: u32,
    pub(super) doubtful: u32,
}

/// The values that matter most of a group: the largest, or the smallest where less is worse.
#[derive(Debug)]
pub(super) struct Top {
    is_small: bool,
    named: Vec<(Span, String, String)>,
}

impl Top {
    pub(super) fn of(rule: &Rule) -> Self {
        let is_small = match rule.aggregate {
            Aggregate::Min => true,
            Aggregate::Max => false,
            _ => rule.bounds.side == Side::Below,
        };
        Self { is_small, named: Vec::new() }
    }

    pub(super) fn add(&mut self, series: &Series<'_>) {
        let is_before = |a: (f64, &str, &str), b: (f64, &str, &str)| {
            let by_value = if self.is_small { a.0.total_cmp(&b.0) } else { b.0.total_cmp(&a.0) };
            by_value.then_with(|| (a.1, a.2).cmp(&(b.1, b.2))).is_lt()
        };
        let end = |span: Span| if self.is_small { span.high } else { span.low };
        let (name, host) = series.name();
        let own = (end(series.span), name, host);
        let place = self.named.partition_point(|(span, name, host)| is_before((end(*span), name, host), own));
        if place < NAMED {
            self.named.insert(place, (series.span, name.to_owned(), host.to_owned()));
            self.named.truncate(NAMED);
        }
    }
}

/// The finding of a group over a bound.
pub(super) fn finding(
    (tenant, target): (&str, &str),
    rule: &Rule,
    seen: &Seen,
    top: Option<&Top>,
    change: Change,
    now: Timestamp,
) -> FindingRow {
    let labels = labels_of(target).unwrap_or_default();
    let words: Vec<_> = labels.iter().map(|(name, value)| format!("{name} {}", cut(value))).collect();
    let of_group = if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) };
    let head = rule.summary.as_deref().unwrap_or(&rule.name);
    let (side, bound) = (rule.bounds.side.as_str(), rule.bounds.of(seen.severity));
    let is = said(rule, seen);
    let reason = match change {
        Change::EvidenceLost => format!("{is}: on which side of {bound} it is cannot be said"),
        _ => format!("{is}, {side} {bound} for {} s", rule.hold.as_secs()),
    };
    let entry = |(span, name, host): &(Span, String, String)| {
        let mut it = json!({ "target": cut(name), "value": range(*span) });
        if !host.is_empty() {
            it["host"] = json!(cut(host));
        }
        it
    };
    let most = top.map(|it| it.named.iter().map(entry).collect::<Vec<_>>()).unwrap_or_default();
    let labels: serde_json::Map<_, _> = labels.iter().map(|(name, value)| (name.clone(), json!(cut(value)))).collect();
    let mut evidence = json!({
        "rule": rule.name,
        "value_of": format!("{} of {}", rule.aggregate, rule.measure.as_str()),
        "labels": labels,
        "value": seen.value.map(range),
        side: { "warning": rule.bounds.warning, "critical": rule.bounds.critical },
        "hold_seconds": rule.hold.as_secs(),
        "values": seen.certain,
        "values_in_doubt": seen.doubtful,
        if top.is_some_and(|it| it.is_small) { "smallest" } else { "largest" }: most,
        "looks": "every 10 s, of levels that agents tell every 10 to 60 s",
    });
    if let (Some(of), Some(whole)) = (rule.of, seen.whole) {
        evidence["of"] = json!({ "measure": of.as_str(), "value": range(whole) });
        evidence["share"] = json!(seen.judged.map(range));
    }
    let own = Own {
        tenant,
        agent: FLEET,
        check: &rule.check(),
        target: target.to_owned(),
        severity: seen.severity,
        summary: format!("{head}{of_group}: {is}, {side} {bound}"),
        reason,
        advice: rule.advice.as_deref().unwrap_or(ADVICE),
        evidence,
        since: seen.since,
    };
    FindingRow { change, ..own.finding(now) }
}

/// Why a group is over.
pub(super) fn cleared(rule: &Rule, seen: &Seen) -> String {
    let bound = rule.bounds.warning.or(rule.bounds.critical).unwrap_or_default();
    let side = rule.bounds.side.as_str();
    format!("{}, not {side} {bound} for {} s", said(rule, seen), rule.clear_hold.as_secs())
}

/// The finding of a rule with more groups than are looked at.
pub(super) fn beyond(tenant: &str, rule: &Rule, values: u64, now: Timestamp) -> FindingRow {
    let own = Own {
        tenant,
        agent: FLEET,
        check: &rule.check(),
        target: BEYOND.into(),
        severity: Severity::Warning,
        summary: format!(
            "{}: has more than {MAX_GROUPS} groups, and {values} values of others are not looked at",
            rule.name
        ),
        reason: format!("more than {MAX_GROUPS} groups"),
        advice: "group by fewer labels, or write matchers",
        evidence: json!({ "rule": rule.name, "by": rule.by, "groups": MAX_GROUPS, "values_left_out": values }),
        since: now,
    };
    let fingerprint = fingerprint(tenant, rule, BEYOND);
    FindingRow { fingerprint, ..own.finding(now) }
}

/// `sum of pool.open is 90, 0.9 of server.slots (100)`.
fn said(rule: &Rule, seen: &Seen) -> String {
    let value = seen.value.map_or_else(|| "not known".to_owned(), words);
    let of = rule.of.zip(seen.whole).map(|(of, whole)| {
        let share =
            seen.judged.filter(|it| it.high.is_finite()).map(|it| format!(", {}", words(it))).unwrap_or_default();
        format!("{share} of {} ({})", of.as_str(), words(whole))
    });
    format!("{} of {} is {value}{}", rule.aggregate, rule.measure.as_str(), of.unwrap_or_default())
}

fn words(Span { low, high }: Span) -> String {
    let (low, high) = (rounded(low), rounded(high));
    if low == high {
        low.to_string()
    } else if high.is_finite() {
        format!("{low} to {high}")
    } else {
        format!("{low} or more")
    }
}

/// A number, a pair, or the least of what has no upper end.
fn range(Span { low, high }: Span) -> Value {
    if high.is_infinite() {
        json!({ "at_least": number(low) })
    } else if low == high {
        number(low)
    } else {
        json!([number(low), number(high)])
    }
}

fn number(value: f64) -> Value {
    // Counts of connections are whole, and far from where that would not be exact.
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(rounded(value)) }
}

fn rounded(value: f64) -> f64 {
    if value.is_finite() { (value * 1000.0).round() / 1000.0 } else { value }
}
