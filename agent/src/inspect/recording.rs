//! The flight recorder: the last five minutes of every measure in seconds, told when a finding turns critical.
//!
//! Kept in memory only and bounded. A second in which a measure was not exactly known is a gap, never a zero.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tickbird_shared::batch::Recording;
use tickbird_shared::{Finding, Severity};

use crate::discover::TargetKey;
use crate::inspect::Observation;

/// Seconds that are kept.
const SECONDS: usize = 300;
/// Series that are kept: with their keys some 1 MiB.
const MAX_SERIES: usize = 750;
/// Largest recording, in bytes of JSON.
const MAX_BYTES: usize = 64 << 10;
/// A value in JSON takes this many bytes at most, its comma included; a gap takes five.
const VALUE_BYTES: usize = 16;

/// The last minutes of everything that is measured.
#[derive(Debug, Default)]
pub struct Recorder {
    series: BTreeMap<(TargetKey, &'static str), Series>,
    /// Observations left out because there were too many series.
    pub refused: u64,
}

#[derive(Debug)]
struct Series {
    /// By second modulo [`SECONDS`]; NaN where nothing was known.
    values: Box<[f32; SECONDS]>,
    last: u64,
}

impl Recorder {
    /// Takes in what was observed at `now`, on the agent's monotonic clock.
    pub fn add(&mut self, observations: &[Observation], now: Duration) {
        let second = now.as_secs();
        for Observation { target, measure, value } in observations {
            let Some(value) = value.known().filter(|it| it.is_finite()) else { continue };
            let key = (target.clone(), measure.name);
            if !self.series.contains_key(&key) && self.series.len() >= MAX_SERIES {
                self.series.retain(|_, it| second < it.last + SECONDS as u64);
                if self.series.len() >= MAX_SERIES {
                    self.refused += 1;
                    continue;
                }
            }
            self.series.entry(key).or_insert_with(|| Series::new(second)).set(second, value as f32);
        }
    }

    /// The recording that belongs to a finding which has just turned critical: every measure of its target, of the
    /// kernel's pool behind it, and of the process that holds that pool. `None` for any other finding.
    pub fn of(&self, finding: &Finding<'_>, now: Duration, wall: Timestamp) -> Option<Recording<'static>> {
        let is_new = matches!(finding.change, tickbird_shared::Change::Began | tickbird_shared::Change::Worsened);
        if !is_new || finding.severity != Severity::Critical {
            return None;
        }
        let second = now.as_secs();
        let mut wanted: Vec<_> = self.series.iter().filter(|((key, _), _)| belongs(&finding.target, key)).collect();
        // Should there be too many, the target's own come first.
        wanted.sort_by_key(|((key, _), _)| key.as_str() != finding.target);
        let mut measures = BTreeMap::new();
        let mut bytes = finding.target.len() + 200;
        for ((key, measure), series) in wanted {
            let values = series.told(second);
            let name =
                if *key.as_str() == *finding.target { (*measure).to_owned() } else { format!("{measure} of {key}") };
            let known = values.iter().flatten().count();
            bytes += name.len() + 8 + known * VALUE_BYTES + (SECONDS - known) * 5;
            if bytes > MAX_BYTES {
                break;
            }
            if known > 0 {
                measures.insert(name, values);
            }
        }
        let from = wall - SignedDuration::from_secs(SECONDS as i64 - 1);
        let target = finding.target.to_string().into();
        (!measures.is_empty()).then_some(Recording { fingerprint: finding.fingerprint, target, from, measures })
    }
}

impl Series {
    fn new(second: u64) -> Self {
        Self { values: Box::new([f32::NAN; SECONDS]), last: second }
    }

    fn set(&mut self, second: u64, value: f32) {
        // The seconds between were not seen.
        for gap in (self.last + 1..=second).take(SECONDS) {
            self.values[gap as usize % SECONDS] = f32::NAN;
        }
        self.last = self.last.max(second);
        self.values[second as usize % SECONDS] = value;
    }

    /// Oldest first, the last of them that of `second`.
    fn told(&self, second: u64) -> Vec<Option<f64>> {
        let value = |ago: usize| {
            let at = second.checked_sub(ago as u64).filter(|at| *at <= self.last && at + SECONDS as u64 > self.last)?;
            let value = self.values[at as usize % SECONDS];
            // By way of its shortest text: 0.1 stays 0.1.
            (!value.is_nan()).then(|| value.to_string().parse().ok()).flatten()
        };
        (0..SECONDS).rev().map(value).collect()
    }
}

/// Whether a measure of `key` helps to understand a finding of `target`.
fn belongs(target: &str, key: &TargetKey) -> bool {
    let key = key.as_str();
    if target == key || target.strip_prefix(key).is_some_and(|rest| rest.starts_with('/')) {
        return true;
    }
    let role = target.strip_prefix("pool:").and_then(|it| Some(it.rsplit_once('>')?.0));
    role.is_some_and(|role| {
        key.strip_prefix("process:")
            .and_then(|it| it.strip_prefix(role))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use tickbird_shared::{Change, Fingerprint, Status};

    use super::*;
    use crate::inspect::{Measure, Reason, Unit, Value};

    static OPEN: Measure = Measure { name: "pool.open", unit: Unit::Count, meaning: "" };
    static MEMORY: Measure = Measure { name: "process.memory", unit: Unit::Bytes, meaning: "" };
    const POOL: &str = "pool:shop/worker>10.0.0.5:5432";

    fn key(text: &str) -> TargetKey {
        let (kind, rest) = text.split_once(':').expect("a kind");
        match kind {
            "pool" => {
                let (who, remote) = rest.split_once('>').expect("a remote end");
                let (application, role) = who.split_once('/').expect("a role");
                TargetKey::pool(application, role, &remote.parse::<std::net::SocketAddr>().expect("an address").into())
            }
            _ => TargetKey::process(rest.split_once('/').expect("a role").0, "worker", Some(8000)),
        }
    }

    fn seen(target: &str, measure: &'static Measure, value: Value) -> Observation {
        Observation { target: key(target), measure, value }
    }

    fn finding(severity: Severity, change: Change) -> Finding<'static> {
        Finding {
            fingerprint: Fingerprint::of("default", "a", "pool.leak", "pool:x", None),
            check: "pool.leak".into(),
            target: format!("{POOL}/app?user=web").into(),
            sub_key: None,
            status: Status::Firing,
            severity,
            change,
            summary: "".into(),
            reason: "".into(),
            advice: None,
            evidence: RawValue::from_string("{}".to_owned()).map(std::borrow::Cow::Owned).expect("JSON"),
            since: wall(),
            observed_at: wall(),
        }
    }

    fn wall() -> Timestamp {
        "2026-11-20T10:05:00Z".parse().expect("a time")
    }

    #[test]
    fn a_finding_that_turns_critical_brings_the_last_five_minutes() {
        let mut recorder = Recorder::default();
        for second in 1..=400 {
            let open = if second == 390 {
                Value::Unknown(Reason::NotYet("a gap"))
            } else {
                Value::Known(second as f64 / 10.0)
            };
            let all = [
                seen(POOL, &OPEN, open),
                seen("process:shop/worker", &MEMORY, Value::Known(5.0)),
                seen("pool:shop/worker>10.0.0.6:5432", &OPEN, Value::Known(1.0)),
            ];
            recorder.add(&all, Duration::from_secs(second));
        }
        let told = recorder.of(&finding(Severity::Critical, Change::Worsened), Duration::from_secs(401), wall());
        let told = told.expect("a recording");
        assert_eq!(told.from, "2026-11-20T10:00:01Z".parse().expect("a time"));
        assert_eq!(
            told.measures.keys().collect::<Vec<_>>(),
            ["pool.open of pool:shop/worker>10.0.0.5:5432", "process.memory of process:shop/worker:8000"]
        );
        let open = &told.measures["pool.open of pool:shop/worker>10.0.0.5:5432"];
        assert_eq!(open.len(), SECONDS);
        assert_eq!((open[0], open[298], open[299]), (Some(10.2), Some(40.0), None), "nothing was seen at second 401");
        assert_eq!(open[288], None, "second 390 was not known");
    }

    #[test]
    fn other_findings_bring_nothing() {
        let mut recorder = Recorder::default();
        recorder.add(&[seen(POOL, &OPEN, Value::Known(1.0))], Duration::from_secs(1));
        let of = |severity, change| recorder.of(&finding(severity, change), Duration::from_secs(2), wall()).is_some();
        assert!(of(Severity::Critical, Change::Began));
        assert!(!of(Severity::Warning, Change::Began) && !of(Severity::Critical, Change::Cleared));
    }

    #[test]
    fn memory_is_bounded_and_the_rest_is_counted() {
        let mut recorder = Recorder::default();
        for port in 0..MAX_SERIES as u16 + 10 {
            let target = TargetKey::process("shop", "worker", Some(port));
            let it = Observation { target, measure: &MEMORY, value: Value::Known(1.0) };
            recorder.add(&[it], Duration::from_secs(1));
        }
        assert_eq!((recorder.series.len(), recorder.refused), (MAX_SERIES, 10));
        recorder.add(&[seen(POOL, &OPEN, Value::Known(1.0))], Duration::from_secs(1 + SECONDS as u64));
        assert_eq!((recorder.series.len(), recorder.refused), (1, 10), "what is five minutes old makes room");
    }

    #[test]
    fn a_recording_on_the_wire_is_bounded() {
        let mut recorder = Recorder::default();
        for second in 1..=SECONDS as u16 {
            for port in 0..40 {
                let target = TargetKey::process("shop", "worker", Some(port));
                let value = Value::Known(-f64::from(second) / 7e9);
                recorder.add(&[Observation { target, measure: &MEMORY, value }], Duration::from_secs(second.into()));
            }
        }
        let told = recorder.of(&finding(Severity::Critical, Change::Began), Duration::from_secs(300), wall());
        let bytes = serde_json::to_vec(&told.expect("a recording")).expect("JSON").len();
        assert!((MAX_BYTES / 2..=MAX_BYTES).contains(&bytes), "{bytes}");
    }

    #[test]
    fn after_a_pause_old_seconds_are_gaps() {
        let mut recorder = Recorder::default();
        recorder.add(&[seen(POOL, &OPEN, Value::Known(1.0))], Duration::from_secs(10));
        recorder.add(&[seen(POOL, &OPEN, Value::Known(2.0))], Duration::from_secs(1_000));
        let told =
            recorder.of(&finding(Severity::Critical, Change::Began), Duration::from_secs(1_000), wall()).expect("one");
        let values = told.measures.values().next().expect("a measure");
        assert_eq!(values.iter().flatten().copied().collect::<Vec<_>>(), [2.0]);
    }
}
