//! Makes the [`Report`] from what the agent knows.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value as Json;
use tickbird_shared::Finding;

use super::pools;
use super::world::{World, value_json};
use super::{AgentPart, BlindPart, CheckPart, CollectorPart, FindingPart, Report, SCHEMA, TargetPart};
use crate::discover::TargetKey;
use crate::identity::Identity;
use crate::judge::{CheckState, Judge, Moment, State};
use crate::kernel::own;

/// Everything a report is made of.
pub struct Source<'a> {
    /// The states and what fires.
    pub judge: &'a Judge,
    /// The facts last seen.
    pub world: &'a World,
    /// Who the agent is, when it is enrolled.
    pub identity: Option<&'a Identity>,
    /// The buffer's own account of itself.
    pub buffer: Option<Json>,
    /// The way to the collector.
    pub shipping: Option<CollectorPart>,
    /// When the agent started.
    pub started_at: Timestamp,
    /// Now.
    pub now: Moment,
    /// Intervals are so many times longer than configured.
    pub times_slower: u32,
    /// `false` in `inspect`.
    pub holds_respected: bool,
}

/// The report of this moment.
pub fn report(source: &Source<'_>) -> Report {
    let states = source.judge.states();
    let mut worst: BTreeMap<&str, State> = BTreeMap::new();
    for it in &states {
        let state = worst.entry(it.target.as_str()).or_insert(it.state);
        *state = (*state).max(it.state);
    }
    let waiting = |key: &TargetKey| {
        let value = source.judge.waiters(key, source.now.mono);
        if value.low().is_some() { value_json(&value) } else { Json::Null }
    };
    let targets = source.world.targets().into_iter().map(|(key, kind, mut facts)| {
        if kind == "pool" {
            facts.insert("waiting".to_owned(), waiting(&key));
        }
        if kind == "server" {
            let empty_in = source.judge.server_empty_in(&key, source.now.mono);
            facts.insert("empty_in_seconds".to_owned(), value_json(&empty_in));
            if let Some(share) = source.judge.joined(&key) {
                let all = share.connections.max(share.sessions);
                facts.insert("joined".to_owned(), format!("{} of {all}", share.joined).into());
                facts.insert("why_not_joined".to_owned(), share.why.clone().into());
            }
        }
        TargetPart {
            state: worst.get(key.as_str()).copied().unwrap_or(State::NotYet).as_str().to_owned(),
            key: key.as_str().to_owned(),
            kind: kind.to_owned(),
            facts,
        }
    });
    let elapsed = source.now.mono.as_secs_f64();
    let share = own::cpu_time().as_secs_f64() / elapsed;
    Report {
        schema: SCHEMA.to_owned(),
        agent: AgentPart {
            id: source.identity.map(|it| it.card().agent.clone()),
            host: crate::agent::host_name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: source.started_at,
            reported_at: source.now.wall,
            holds_respected: source.holds_respected,
            cpu_ratio: (elapsed > 0.0).then(|| (share * 1e4).round() / 1e4),
            memory_bytes: own::memory(),
            times_slower: source.times_slower,
            collector: source.shipping.clone(),
            buffer: source.buffer.clone(),
        },
        targets: targets.collect(),
        pools: pools::parts(&source.judge.pools()),
        findings: source.judge.firing().iter().map(finding).collect(),
        blind: blind(&states),
        checks: states.iter().map(check).collect(),
    }
}

fn finding(it: &Finding<'static>) -> FindingPart {
    FindingPart {
        check: it.check.to_string(),
        status: it.status.as_str().to_owned(),
        severity: it.severity.as_str().to_owned(),
        target: it.target.to_string(),
        summary: it.summary.to_string(),
        reason: it.reason.to_string(),
        advice: it.advice.as_ref().map(ToString::to_string),
        // The judge wrote it, so it is JSON; were it not, the text itself is still the proof.
        evidence: serde_json::from_str(it.evidence.get())
            .unwrap_or_else(|_| Json::String(it.evidence.get().to_owned())),
        since: it.since,
    }
}

fn check(it: &CheckState) -> CheckPart {
    CheckPart {
        check: it.check.to_owned(),
        target: it.target.as_str().to_owned(),
        state: it.state.as_str().to_owned(),
        value: value_json(&it.value),
        unit: it.unit.to_owned(),
        reason: it.reason.clone(),
        pending: it.pending.clone(),
        looks_known: it.looks_known,
        looks: it.looks,
    }
}

/// What cannot be seen, one entry for each cause.
fn blind(states: &[CheckState]) -> Vec<BlindPart> {
    let mut causes: BTreeMap<String, BlindPart> = BTreeMap::new();
    for it in states {
        let (State::Blind, crate::inspect::Value::Unknown(reason)) = (it.state, &it.value) else { continue };
        let part = causes.entry(reason.to_string()).or_insert_with_key(|text| BlindPart {
            checks: Vec::new(),
            targets: Vec::new(),
            reason: text.clone(),
            advice: reason.advice().map(str::to_owned),
        });
        let (check, target) = (it.check.to_owned(), it.target.as_str().to_owned());
        if !part.checks.contains(&check) {
            part.checks.push(check);
        }
        if !part.targets.contains(&target) {
            part.targets.push(target);
        }
    }
    causes.into_values().collect()
}
