//! The proof inside a finding: a JSON object that always fits.

use serde_json::value::RawValue;
use serde_json::{Map, Value as Json, json};
use tickbird_shared::protocol::MAX_EVIDENCE_BYTES;

use super::threshold::Bounds;
use crate::inspect::{Unit, Value};

/// What stands behind one decision, built only while a bound is crossed.
#[derive(Debug, Clone, Default)]
pub(super) struct Case {
    /// One sentence for a person, with the names.
    pub(super) summary: String,
    /// The proof.
    pub(super) evidence: Map<String, Json>,
    /// Identities of the offenders, sorted; a change among them is worth telling. Empty where there are none.
    pub(super) members: Vec<u64>,
    /// How many seconds it had been so when it was seen; `None` counts from the first look.
    pub(super) age_seconds: Option<f64>,
    /// What to do, where it is not the check's own advice.
    pub(super) advice: Option<String>,
}

/// Gives the object of `json!({…})`.
pub(super) fn object(value: Json) -> Map<String, Json> {
    match value {
        Json::Object(map) => map,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

/// A value as JSON: a number, a pair (its open end as `null`), or the reason as a text.
pub(super) fn value(value: &Value, unit: Unit) -> Json {
    let number = |value: f64| number(value, unit);
    match value {
        Value::Known(value) => number(*value),
        Value::Between(low, high) => json!([number(*low), number(*high)]),
        Value::Unknown(reason) => json!(reason.to_string()),
    }
}

/// What a value was held against; `null` where there is no such bound.
pub(super) fn bounds(bounds: Bounds, unit: Unit) -> Json {
    let all = [("info", bounds.info), ("warning", bounds.warning), ("critical", bounds.critical)];
    all.into_iter().filter_map(|(name, bound)| Some((name.to_owned(), number(bound?, unit)))).collect()
}

/// Rounded to what its unit can mean; what is not finite is `null`.
pub(super) fn number(value: f64, unit: Unit) -> Json {
    let digits = match unit {
        Unit::Count | Unit::Bytes => 1.0,
        Unit::Seconds | Unit::PerSecond => 1e3,
        Unit::Ratio => 1e4,
    };
    let rounded = (value * digits).round() / digits;
    if rounded.fract() == 0.0 && rounded.abs() < 9e15 { json!(rounded as i64) } else { json!(rounded) }
}

/// The object as text within the wire's bound: the longest lists lose their last items first, then the longest texts
/// go. Totals are fields of their own, so what was cut remains counted.
pub(super) fn bounded(mut object: Map<String, Json>) -> Box<RawValue> {
    loop {
        let text = Json::Object(object.clone()).to_string();
        if text.len() <= MAX_EVIDENCE_BYTES
            && let Ok(raw) = RawValue::from_string(text)
        {
            return raw;
        }
        let size = |value: &Json| value.to_string().len();
        let Some((key, largest)) = object.iter_mut().max_by_key(|(_, it)| size(it)).map(|(key, it)| (key.clone(), it))
        else {
            return RawValue::NULL.to_owned();
        };
        match largest {
            Json::Array(items) if items.len() > 1 => items.truncate(items.len() - items.len().div_ceil(8)),
            _ => {
                object.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_from_its_end_and_everything_else_stays() {
        let rows: Vec<_> = (0..500).map(|index| json!({ "pid": index, "command": "x".repeat(50) })).collect();
        let raw = bounded(object(json!({ "sessions": rows, "sessions_total": 500 })));
        assert!(raw.get().len() <= MAX_EVIDENCE_BYTES);
        let back: Json = serde_json::from_str(raw.get()).expect("it is JSON");
        let kept = back["sessions"].as_array().expect("a list");
        assert!(kept.len() > 60 && kept[0]["pid"] == 0, "{}", kept.len());
        assert_eq!(back["sessions_total"], 500);
    }

    #[test]
    fn a_single_text_that_is_too_long_goes() {
        let raw = bounded(object(json!({ "text": "\u{1}".repeat(9000), "kept": 1 })));
        assert_eq!(raw.get(), r#"{"kept":1}"#);
    }

    #[test]
    fn numbers_are_rounded_to_their_unit_and_never_infinite() {
        assert_eq!(value(&Value::Between(1.23456, f64::INFINITY), Unit::Seconds), json!([1.235, null]));
        assert_eq!(value(&Value::Known(20.0), Unit::Count), json!(20));
        assert_eq!(value(&Value::Known(0.80001), Unit::Ratio), json!(0.8));
    }
}
