//! What the agent says of itself: where it cannot see, and where it is late.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;
use tickbird_shared::protocol::MAX_KEY_BYTES;

use super::defaults::CheckId;
use super::evidence::{Case, object};
use super::threshold::Seen;
use super::tracks::{Key, Subject, Tracks};
use super::{Moment, words};
use crate::discover::TargetKey;
use crate::inspect::host::Gap;
use crate::inspect::{Reason, Value};

mod budget;
mod buffer;
mod certificate;
mod clock;

pub use budget::BudgetSeen;
pub use buffer::{BufferSeen, BufferSums, LaneSums};
pub use certificate::CertificateSeen;

/// Longest reason or name in a sub-key, in characters.
const CAUSE: usize = 200;
/// Most targets in the evidence.
const MAX_TARGETS: usize = 50;

/// What could not be read at the last looks.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// What was told as blind at the last look.
    blind: BTreeSet<String>,
    losses: buffer::Losses,
    steps: clock::Steps,
}

/// What one cause keeps from being seen.
struct Cause {
    reason: Reason,
    checks: BTreeSet<&'static str>,
    targets: BTreeSet<TargetKey>,
}

impl Own {
    /// Takes the gaps of a look at the host in. They are states of their own, beside those that values make.
    pub(super) fn gaps(&mut self, gaps: &[Gap], now: Moment, tracks: &mut Tracks) {
        for gap in gaps {
            for check in gap.checks.iter().filter_map(|it| CheckId::find(it)) {
                let subject = Subject { sub_key: Some(GAP), ..Subject::of(check, &gap.target) };
                tracks.observe(subject, Seen::value(Value::Unknown(gap.reason.clone())), now, Case::default);
            }
        }
        tracks.end("it can be read now", now, |key, track| is_gap(key) && track.seen_at < now.mono);
    }

    /// Takes in what the agent knows of its own buffer.
    pub(super) fn buffer(&mut self, seen: &BufferSeen, now: Moment, tracks: &mut Tracks) {
        self.losses.look(seen, now, tracks);
    }

    /// Takes in what the agent takes of its host.
    pub(super) fn budget(seen: &BudgetSeen, now: Moment, tracks: &mut Tracks) {
        budget::look(seen, now, tracks);
    }

    /// Compares the wall clock with the time since boot.
    pub(super) fn clock(&mut self, since_boot: Duration, now: Moment, tracks: &mut Tracks) {
        self.steps.look(since_boot, now, tracks);
    }

    /// Takes in how the agent's certificate stands.
    pub(super) fn certificate(seen: &CertificateSeen<'_>, now: Moment, tracks: &mut Tracks) {
        certificate::look(seen, now, tracks);
    }

    /// Takes in how far the collector's clock is ahead.
    pub(super) fn skew(ahead: Option<(SignedDuration, SignedDuration)>, now: Moment, tracks: &mut Tracks) {
        clock::skew(ahead, now, tracks);
    }

    /// One `agent.blind` for each cause, whatever the checks that it blinds: who mends it mends all of them.
    pub(super) fn tell_blind(&mut self, now: Moment, tracks: &mut Tracks) {
        let mut causes: BTreeMap<String, Cause> = BTreeMap::new();
        for (key, track) in tracks.iter() {
            let Value::Unknown(reason) = &track.value else { continue };
            if !track.level.is_blind() || !reason.is_blind() {
                continue;
            }
            let sub_key = words::cut(words::foreign(&reason.to_string(), CAUSE), MAX_KEY_BYTES);
            let cause = causes.entry(sub_key).or_insert_with(|| Cause {
                reason: reason.clone(),
                checks: BTreeSet::new(),
                targets: BTreeSet::new(),
            });
            cause.checks.insert(key.check.check().id);
            cause.targets.insert(key.target.clone());
        }
        let agent = TargetKey::agent();
        for (sub_key, cause) in &causes {
            let subject = Subject { sub_key: Some(sub_key), ..Subject::of(CheckId::Blind, &agent) };
            tracks.observe(subject, Seen::known(1.0), now, || blind_case(cause));
        }
        // What was blind and no longer is clears like any other fault; then its state is forgotten.
        let firing: BTreeSet<String> = tracks
            .of(CheckId::Blind)
            .filter(|(_, track)| track.level.firing().is_some())
            .filter_map(|(key, _)| Some(key.sub_key.as_deref()?.to_owned()))
            .collect();
        for sub_key in firing.iter().filter(|it| !causes.contains_key(*it)) {
            let subject = Subject { sub_key: Some(sub_key), ..Subject::of(CheckId::Blind, &agent) };
            tracks.observe(subject, Seen::known(0.0), now, Case::default);
        }
        if self.blind != firing {
            tracks.end("it can be seen now", now, |key, track| {
                key.check == CheckId::Blind && track.level.firing().is_none() && track.seen_at < now.mono
            });
            self.blind = firing;
        }
    }
}

/// An inspector has not looked for `missed` intervals.
pub(super) fn late(inspector: &str, missed: u32, now: Moment, tracks: &mut Tracks) {
    let agent = TargetKey::agent();
    let name = words::cut(words::foreign(inspector, CAUSE), MAX_KEY_BYTES);
    let subject = Subject { sub_key: Some(&name), ..Subject::of(CheckId::Slow, &agent) };
    tracks.observe(subject, Seen::known(f64::from(missed)), now, || Case {
        summary: format!("the agent has not looked at {name} for {}", words::counted(missed as usize, "interval")),
        evidence: object(
            json!({ "inspector": name, "intervals_missed": missed, "rule": "schedule", "not_visible": [] }),
        ),
        ..Case::default()
    });
}

/// The sub-key of states that a gap makes.
const GAP: &str = "gap";

fn is_gap(key: &Key) -> bool {
    key.sub_key.as_deref() == Some(GAP)
}

fn blind_case(cause: &Cause) -> Case {
    let targets: Vec<_> = cause.targets.iter().take(MAX_TARGETS).map(TargetKey::as_str).collect();
    let what = match targets.as_slice() {
        [one] if cause.targets.len() == 1 => (*one).to_owned(),
        _ => words::counted(cause.targets.len(), "target"),
    };
    let because = words::foreign(&cause.reason.to_string(), 500);
    let checks: Vec<_> = cause.checks.iter().copied().collect();
    Case {
        summary: format!("{} cannot see {}: {because}", listed(&checks), words::foreign(&what, 300)),
        evidence: object(json!({
            "checks": checks,
            "targets": targets,
            "targets_total": cause.targets.len(),
            "reason": because,
            "rule": "three looks without sight",
            "not_visible": [because],
        })),
        advice: cause.reason.advice().map(str::to_owned),
        ..Case::default()
    }
}

/// `fd.limit`, `fd.limit and proc.gone` or `fd.limit, proc.gone and 3 other checks`.
fn listed(checks: &[&str]) -> String {
    match checks {
        [] => "no check".to_owned(),
        [one] => (*one).to_owned(),
        [one, two] => format!("{one} and {two}"),
        [one, two, three] => format!("{one}, {two} and {three}"),
        [one, two, more @ ..] => format!("{one}, {two} and {} other checks", more.len()),
    }
}
