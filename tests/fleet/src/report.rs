//! What a fleet did, as numbers and as one table.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// What was done over some time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// All agents.
    pub agents: usize,
    /// Those that were connected at its end.
    pub connected: usize,
    /// Handshakes that were done, and how long each took.
    pub handshakes: Times,
    /// Heartbeats and goodbyes that were acknowledged.
    pub heartbeats: u64,
    /// Batches that were acknowledged, and how long each took from its first byte.
    pub acknowledgements: Times,
    /// Their records.
    pub records: u64,
    /// Batches and records that the collector turned down, by its reason.
    pub refusals: BTreeMap<String, u64>,
    /// Attempts without an answer that says so, by the agent's word for it; each was made again.
    pub errors: BTreeMap<&'static str, u64>,
    /// What was done wrong on purpose.
    pub misdeeds: BTreeMap<&'static str, u64>,
    /// Answers that break what the collector promises.
    pub broken_promises: BTreeMap<&'static str, u64>,
    /// What was given up.
    pub given_up: u64,
}

/// Times of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times(Vec<u32>);

impl Times {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    /// In milliseconds: the time that this share of them does not exceed. Not a number without any.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        let at = ((sorted.len() as f64 * share) as usize).min(last);
        sorted.get(at).map_or(f64::NAN, |it| f64::from(*it) / 1000.0)
    }
}

impl Report {
    /// All of them as one; connected are those of the last.
    pub fn of_all(reports: impl IntoIterator<Item = Self>) -> Self {
        reports.into_iter().reduce(Self::and).unwrap_or_default()
    }

    fn and(mut self, later: Self) -> Self {
        self.handshakes.0.extend(later.handshakes.0);
        self.acknowledgements.0.extend(later.acknowledgements.0);
        let add = |into: &mut BTreeMap<&'static str, u64>, from: BTreeMap<&'static str, u64>| {
            from.into_iter().for_each(|(name, count)| *into.entry(name).or_default() += count);
        };
        add(&mut self.errors, later.errors);
        add(&mut self.misdeeds, later.misdeeds);
        add(&mut self.broken_promises, later.broken_promises);
        later.refusals.into_iter().for_each(|(name, count)| *self.refusals.entry(name).or_default() += count);
        Self {
            agents: later.agents,
            connected: later.connected,
            heartbeats: self.heartbeats + later.heartbeats,
            records: self.records + later.records,
            given_up: self.given_up + later.given_up,
            ..self
        }
    }

    /// Whether everything was acknowledged and no promise broken.
    pub fn is_well(&self) -> bool {
        self.given_up == 0 && self.broken_promises.is_empty()
    }

    /// One object. `seconds` is how long it all took.
    pub fn to_json(&self, seconds: f64) -> Value {
        let times = |it: &Times| json!({ "count": it.len(), "p50_ms": it.quantile(0.5), "p99_ms": it.quantile(0.99), "max_ms": it.quantile(1.0) });
        json!({
            "seconds": seconds,
            "agents": self.agents,
            "connected": self.connected,
            "handshakes": times(&self.handshakes),
            "handshakes_per_second": self.handshakes.len() as f64 / seconds,
            "heartbeats": self.heartbeats,
            "acknowledgements": times(&self.acknowledgements),
            "batches_per_second": self.acknowledgements.len() as f64 / seconds,
            "records": self.records,
            "records_per_second": self.records as f64 / seconds,
            "refusals": self.refusals,
            "errors": self.errors,
            "misdeeds": self.misdeeds,
            "broken_promises": self.broken_promises,
            "given_up": self.given_up,
        })
    }

    /// A table for a person.
    pub fn table(&self, seconds: f64) -> String {
        let times = |it: &Times| {
            let [half, most, all] = [0.5, 0.99, 1.0].map(|share| it.quantile(share));
            format!("{} (p50 {half:.1}, p99 {most:.1}, max {all:.1} ms)", it.len())
        };
        let mut rows = vec![
            ("agents connected", format!("{} of {}", self.connected, self.agents)),
            ("seconds", format!("{seconds:.1}")),
            ("handshakes", times(&self.handshakes)),
            ("handshakes a second", format!("{:.0}", self.handshakes.len() as f64 / seconds)),
            ("heartbeats", self.heartbeats.to_string()),
            ("batches acknowledged", times(&self.acknowledgements)),
            ("records", format!("{} ({:.0} a second)", self.records, self.records as f64 / seconds)),
            ("given up", self.given_up.to_string()),
        ];
        rows.push(("refusals", Counts(&self.refusals).to_string()));
        rows.push(("errors, tried again", Counts(&self.errors).to_string()));
        rows.push(("faults on purpose", Counts(&self.misdeeds).to_string()));
        rows.push(("promises broken", Counts(&self.broken_promises).to_string()));
        rows.into_iter().map(|(what, value)| format!("{what:<22} {value}\n")).collect()
    }
}

/// `3 × gap, 1 × too_large`.
struct Counts<'a, K>(&'a BTreeMap<K, u64>);

impl<K: fmt::Display> fmt::Display for Counts<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (place, (name, count)) in self.0.iter().enumerate() {
            let between = if place == 0 { "" } else { ", " };
            write!(f, "{between}{count} × {name}")?;
        }
        Ok(())
    }
}

/// What all members write to.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Report>);

impl Tally {
    pub(crate) fn note(&self) -> MutexGuard<'_, Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self) -> Report {
        std::mem::take(&mut *self.note())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_times() {
        let mut times = Times::default();
        assert!(times.quantile(0.5).is_nan());
        (1..=100).rev().for_each(|it| times.add(Duration::from_millis(it)));
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|it| times.quantile(it)), [1.0, 51.0, 100.0, 100.0]);
    }

    #[test]
    fn what_was_given_up_or_broken_is_not_well() {
        let well = Report { refusals: BTreeMap::from([("gap".to_owned(), 3)]), ..Report::default() };
        assert!(well.is_well() && well.table(1.0).contains("3 × gap"));
        assert!(!Report { given_up: 1, ..well.clone() }.is_well());
        assert!(!Report { broken_promises: BTreeMap::from([("a", 1)]), ..well }.is_well());
    }
}
