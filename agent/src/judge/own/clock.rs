//! Whether the wall clock can be believed: against the collector's, and against the time since boot, which goes on while
//! the host sleeps.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::discover::TargetKey;
use crate::inspect::{Reason, Unit, Value};
use crate::judge::Moment;
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object, value};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};

/// A step is told for so long.
const STEPPED_LATELY: Duration = Duration::from_secs(60);
/// Smaller ones are corrections: a clock that is slewed, a look that began a little late.
const STEP: f64 = 0.5;
/// An offset that is known no better than this is a range.
const EXACT: f64 = 2.5;

/// The wall clock at the last look, and its steps.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Time since boot and wall time, read together.
    last: Option<(Duration, Timestamp)>,
    steps: VecDeque<(Duration, f64)>,
}

impl Steps {
    /// Compares both clocks with the last look.
    pub(super) fn look(&mut self, since_boot: Duration, now: Moment, tracks: &mut Tracks) {
        if let Some((boot, wall)) = self.last.replace((since_boot, now.wall)) {
            let by_wall = now.wall.duration_since(wall).as_secs_f64();
            let step = by_wall - since_boot.saturating_sub(boot).as_secs_f64();
            if step.abs() >= STEP {
                self.steps.push_back((now.mono, step));
            }
        }
        while self.steps.front().is_some_and(|(at, _)| now.mono.saturating_sub(*at) >= STEPPED_LATELY) {
            self.steps.pop_front();
        }
        let largest = self.steps.iter().map(|(_, step)| *step).max_by(|a, b| a.abs().total_cmp(&b.abs()));
        let step = largest.unwrap_or(0.0);
        let target = TargetKey::agent();
        let subject = Subject { sub_key: Some("step"), ..Subject::of(CheckId::Clock, &target) };
        tracks.observe(subject, Seen::known(step.abs()), now, || {
            let way = if step > 0.0 { "forward" } else { "back" };
            Case {
                summary: format!(
                    "this host's clock was set {way} by {:.1} s: times in findings around it lie",
                    step.abs()
                ),
                evidence: object(json!({
                    "step_seconds": number(step, Unit::Seconds),
                    "rule": "the wall clock against the time since boot between two looks",
                    "not_visible": [],
                })),
                ..Case::default()
            }
        });
    }
}

/// How far the collector's clock is ahead of this host's: from the first to the second.
pub(super) fn skew(ahead: Option<(SignedDuration, SignedDuration)>, now: Moment, tracks: &mut Tracks) {
    let seen = match ahead.map(|(low, high)| (low.as_secs_f64(), high.as_secs_f64())) {
        None => Value::Unknown(Reason::NotYet("an answer of the collector with its time")),
        Some((low, high)) if high - low <= EXACT => Value::Known(f64::midpoint(low, high).abs()),
        Some((low, high)) => {
            let least = if low > 0.0 { low } else { (-high).max(0.0) };
            Value::Between(least, low.abs().max(high.abs()))
        }
    };
    let target = TargetKey::agent();
    let subject = Subject { sub_key: Some("collector"), ..Subject::of(CheckId::Clock, &target) };
    let shown = value(&seen, Unit::Seconds);
    tracks.observe(subject, Seen::value(seen), now, || {
        let middle = ahead.map_or(0.0, |(low, high)| f64::midpoint(low.as_secs_f64(), high.as_secs_f64()));
        let way = if middle > 0.0 { "behind" } else { "ahead of" };
        Case {
            summary: format!("this host's clock is {:.1} s {way} the collector's: times in findings lie", middle.abs()),
            evidence: object(json!({
                "skew_seconds": shown,
                "rule": "the Date of the collector's answers, between the request and the answer",
                "not_visible": ["which of the two clocks is wrong"],
            })),
            ..Case::default()
        }
    });
}
