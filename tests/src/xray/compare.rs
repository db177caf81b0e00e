//! Each look of the agent against the truth of the same moment.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::view::{ConnectionSeen, Sample};
use super::{Connection, Truth};

/// The agent's sockets are a second old, its sessions up to five: what changed within this time is not compared.
const STALE_SECONDS: f64 = 6.5;
/// A kept connection has to be known from this age on.
const OLD_SECONDS: f64 = 15.0;

/// How often connections that one command keeps were seen, each at least 15 s old, and as what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Samples by verdict.
    pub verdicts: BTreeMap<String, usize>,
    /// Samples by rule, of those that were called held or leased.
    pub rules: BTreeMap<String, usize>,
}

impl Kept {
    /// All samples.
    pub fn samples(&self) -> usize {
        self.verdicts.values().sum()
    }

    /// The share of samples with one of these verdicts; 0 without any sample.
    pub fn share(&self, verdicts: &[&str]) -> f64 {
        let named: usize = verdicts.iter().filter_map(|it| self.verdicts.get(*it)).sum();
        if named == 0 { 0.0 } else { named as f64 / self.samples() as f64 }
    }
}

/// What came out for one process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// Looks that showed a pool of this process.
    pub looks: usize,
    /// Verdicts on connections that nobody kept.
    pub not_kept: BTreeMap<String, usize>,
    /// What was said against the truth, each with its time, port and verdict.
    pub wrong: Vec<String>,
    /// Verdicts on connections that `leak`, `keep`, `listen` and so on kept.
    pub kept: BTreeMap<String, Kept>,
    /// Seconds from the lease to the first verdict that names it, by local port.
    pub detected: BTreeMap<u16, f64>,
    /// Kept connections that a finding of a leak named: descriptors by local port.
    pub named: BTreeMap<u16, u32>,
}

impl Comparison {
    /// Verdicts on connections that this command keeps.
    pub fn of(&self, command: &str) -> Kept {
        self.kept.get(command).cloned().unwrap_or_default()
    }

    /// Median, least and greatest seconds to the first verdict that named a kept connection.
    pub fn detection(&self) -> Option<(f64, f64, f64)> {
        let mut all: Vec<f64> = self.detected.values().copied().collect();
        all.sort_by(f64::total_cmp);
        Some((*all.get(all.len() / 2)?, *all.first()?, *all.last()?))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} looks, {} wrong; not kept {:?}", self.looks, self.wrong.len(), self.not_kept)?;
        for (command, kept) in &self.kept {
            write!(f, "; {command} {:?} by {:?}", kept.verdicts, kept.rules)?;
        }
        if let Some((median, least, most)) = self.detection() {
            write!(f, "; named after {median:.1} s ({least:.1} to {most:.1})")?;
        }
        Ok(())
    }
}

/// Compares every sample of one process's pools with the truth of the same seconds.
///
/// *Wrong* is: a connection called held, or named by a finding of a leak, that nobody keeps; one called leased or busy
/// that was not used lately; one called free that was kept for 15 s; a finding's descriptor that is not the connection's.
/// What changed just now is left out; what the truth does not list was
/// never leased, and is busy while it is opened.
pub fn compare(pid: u32, truth: &Truth, samples: &[Sample]) -> Comparison {
    let mut found = Comparison::default();
    for sample in samples {
        let mut shown = false;
        for seen in sample.of(pid).flat_map(|it| &it.connections) {
            shown = true;
            match steady(truth, sample.at, seen.port()) {
                State::Changed => (),
                State::Free { used } => {
                    *found.not_kept.entry(seen.verdict.clone()).or_default() += 1;
                    let claims = ["leased", "busy"].contains(&seen.verdict.as_str());
                    if seen.verdict == "held" || claims && !used {
                        found.wrong.push(said(sample.at, seen, "nobody kept it"));
                    }
                }
                State::Unlisted => {
                    *found.not_kept.entry(seen.verdict.clone()).or_default() += 1;
                    if ["held", "leased"].contains(&seen.verdict.as_str()) {
                        found.wrong.push(said(sample.at, seen, "nobody ever took it"));
                    }
                }
                State::Kept(it) => kept(&mut found, sample.at, seen, &it),
            }
        }
        found.looks += usize::from(shown);
        for row in sample.leaks().filter(|it| it["pid"] == pid) {
            named(&mut found, sample.at, row, truth);
        }
    }
    found
}

/// One connection of a finding's evidence.
fn named(found: &mut Comparison, at: f64, row: &Value, truth: &Truth) {
    let wrong = |why: &str| format!("at {at:.1}: a leak names {row}, but {why}");
    let Some((port, fd)) = end_of(row) else { return found.wrong.push(wrong("it has no port or no descriptor")) };
    match steady(truth, at, port) {
        State::Changed => (),
        State::Free { .. } | State::Unlisted => found.wrong.push(wrong("nobody kept it")),
        State::Kept(it) if it.fd.is_some_and(|known| known != fd) => {
            found.wrong.push(wrong(&format!("its descriptor is {:?}", it.fd)));
        }
        State::Kept(_) => drop(found.named.insert(port, fd)),
    }
}

/// Local port and descriptor of one connection of a finding's evidence.
fn end_of(row: &Value) -> Option<(u16, u32)> {
    let port = row["local"].as_str()?.rsplit(':').next()?.parse().ok()?;
    Some((port, row["fd"].as_u64()?.try_into().ok()?))
}

fn kept(found: &mut Comparison, at: f64, seen: &ConnectionSeen, truth: &Connection) {
    let age = at - truth.since;
    let named = ["held", "leased", "busy"].contains(&seen.verdict.as_str());
    if named {
        let first = found.detected.entry(truth.port).or_insert(age);
        *first = first.min(age);
    }
    if age < OLD_SECONDS {
        return;
    }
    let counts = found.kept.entry(truth.kept.clone()).or_default();
    *counts.verdicts.entry(seen.verdict.clone()).or_default() += 1;
    if named {
        *counts.rules.entry(seen.rule.clone()).or_default() += 1;
    }
    if seen.verdict == "free" {
        found.wrong.push(said(at, seen, &format!("{} kept it for {age:.0} s", truth.kept)));
    }
}

fn said(at: f64, seen: &ConnectionSeen, truth: &str) -> String {
    format!("at {at:.1}: {} fd {:?} is called {} ({}), but {truth}", seen.local, seen.fd, seen.verdict, seen.rule)
}

enum State {
    /// It was taken for keeps or given back within the time that the agent may be late.
    Changed,
    /// Nobody kept it in all that time; `used`: requests used it.
    Free { used: bool },
    /// It was kept in all that time, or since it was taken.
    Kept(Connection),
    /// The application does not list it: nobody ever took it, and perhaps it is only being opened, with all that is said for it.
    Unlisted,
}

fn steady(truth: &Truth, at: f64, port: u16) -> State {
    let mut rows = truth.between(at - STALE_SECONDS, at + 0.3).map(|it| it.connections.get(&port));
    let Some(first) = rows.next() else { return State::Changed };
    let (mut last, mut used, mut changed) = (first, first.is_some_and(|it| it.leased), false);
    for row in rows {
        let why = |it: Option<&Connection>| it.map_or(String::new(), |it| it.kept.clone());
        let uses = |it: Option<&Connection>| it.map_or(0, |it| it.uses);
        changed |= why(row) != why(last);
        used |= uses(row) != uses(last) || row.is_some_and(|it| it.leased);
        last = row;
    }
    match last {
        Some(it) if !it.kept.is_empty() && !changed => State::Kept(it.clone()),
        _ if changed => State::Changed,
        None if !used => State::Unlisted,
        _ => State::Free { used },
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::PoolSeen;
    use super::super::{Moment, Truth};
    use super::*;

    /// Twenty seconds and more of one connection, which is kept from second 5 on.
    fn truth() -> Truth {
        let moments = (0..200).map(|tick| {
            let at = f64::from(tick) / 5.0;
            let kept = at >= 5.0;
            let connection = Connection {
                pool: "main".into(),
                port: 4000,
                fd: Some(3),
                backend: 1,
                leased: kept,
                kept: if kept { "keep".into() } else { String::new() },
                since: 5.0,
                uses: 1,
            };
            Moment { at, waiting: 0, connections: [(4000, connection)].into(), all: Vec::new() }
        });
        Truth { moments: moments.collect() }
    }

    fn named_at(at: f64, port: u16, fd: u32) -> Comparison {
        let row = serde_json::json!({ "pid": 7, "fd": fd, "local": format!("127.0.0.1:{port}") });
        let other = serde_json::json!({ "pid": 8, "fd": 9, "local": "127.0.0.1:1" });
        let finding = serde_json::json!({ "check": "pool.leak", "evidence": { "connections": [row, other] } });
        compare(7, &truth(), &[Sample { at, pools: Vec::new(), findings: vec![finding] }])
    }

    #[test]
    fn a_finding_may_name_only_what_is_kept_by_its_own_descriptor() {
        let right = named_at(30.0, 4000, 3);
        assert_eq!((right.wrong.len(), right.named), (0, [(4000, 3)].into()));
        for wrong in [named_at(30.0, 4000, 4), named_at(30.0, 4001, 3), named_at(4.0, 4000, 3)] {
            assert_eq!((wrong.wrong.len(), wrong.named.len()), (1, 0), "{:?}", wrong.wrong);
        }
    }

    fn said_at(at: f64, port: u16, verdict: &str) -> Comparison {
        let connection = ConnectionSeen {
            fd: Some(3),
            local: format!("127.0.0.1:{port}"),
            verdict: verdict.into(),
            rule: "rotation".into(),
            age: None,
            session: None,
            state: None,
        };
        let pool = PoolSeen {
            target: "pool".into(),
            pid: Some(7),
            discipline: "rotating".into(),
            all: serde_json::Value::Null,
            connections: vec![connection],
        };
        compare(7, &truth(), &[Sample { at, pools: vec![pool], findings: Vec::new() }])
    }

    #[test]
    fn a_kept_connection_may_be_held_or_unknown_but_not_free() {
        for (verdict, wrong) in [("held", 0), ("unknown", 0), ("free", 1)] {
            let found = said_at(30.0, 4000, verdict);
            assert_eq!((found.wrong.len(), found.of("keep").samples()), (wrong, 1), "{verdict}");
        }
        assert_eq!(said_at(30.0, 4000, "held").detection(), Some((25.0, 25.0, 25.0)));
        assert!((said_at(30.0, 4000, "held").of("keep").share(&["held"]) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_connection_that_nobody_kept_is_not_held_and_one_that_just_changed_is_not_judged() {
        assert_eq!(said_at(4.0, 4000, "held").wrong.len(), 1);
        assert_eq!(said_at(4.0, 4000, "leased").wrong.len(), 1, "it was not used");
        assert_eq!(said_at(4.0, 4000, "unknown").wrong.len(), 0);
        assert_eq!(said_at(6.0, 4000, "held"), Comparison { looks: 1, ..Comparison::default() });
        for (verdict, wrong) in [("held", 1), ("leased", 1), ("busy", 0), ("unknown", 0)] {
            assert_eq!(said_at(30.0, 4001, verdict).wrong.len(), wrong, "nobody ever leased it: {verdict}");
        }
    }
}
