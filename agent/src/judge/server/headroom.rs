//! Room for connections at a server: `db.headroom` of all of its slots, and when they will be used up.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::discover::TargetKey;
use crate::inspect::server::Session;
use crate::inspect::{Reason, ServerLook, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{self, Case, number, object};
use crate::judge::forecast::{self, Trend};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// Most names in a tally.
const MAX_NAMES: usize = 8;

/// Every server that has been asked.
#[derive(Debug, Default)]
pub(super) struct Rooms(BTreeMap<TargetKey, Room>);

/// How the used slots of one server went.
#[derive(Debug, Default)]
struct Room {
    trend: Trend,
    /// Slots that are left, at least and at most, at the last look that told it.
    left: Option<(f64, f64)>,
}

impl Rooms {
    pub(super) fn look(&mut self, look: &ServerLook, now: Moment, tracks: &mut Tracks) {
        let room = self.0.entry(look.target.clone()).or_default();
        // A range is no point of a trend: what hides sessions hides more of them at one look than at another.
        if let Some(used) = look.used.known().filter(|it| *it >= 0.0) {
            room.trend.take(used as u32, now.mono);
            room.left = look.slots.low().zip(look.slots.high()).map(|(least, most)| (least - used, most - used));
        }
        let value = match (&look.used, &look.slots) {
            (Value::Unknown(reason), _) | (_, Value::Unknown(reason)) => Value::Unknown(reason.clone()),
            (used, slots) => match (slots.low(), slots.high()) {
                (Some(least), Some(most)) if least > 0.0 => share(used, least, most),
                _ => return,
            },
        };
        let subject = Subject::of(CheckId::Headroom, &look.target);
        tracks.observe(subject, Seen::value(value.clone()), now, || case(look, &value, &room.empty_in(now.mono)));
    }

    /// Seconds until a server has no slot left at its present rate.
    pub(super) fn empty_in(&self, server: &TargetKey, now: Duration) -> Value {
        let unknown = || Value::Unknown(Reason::NotYet("a look at the server"));
        self.0.get(server).map_or_else(unknown, |it| it.empty_in(now))
    }
}

impl Room {
    fn empty_in(&self, now: Duration) -> Value {
        self.trend.empty_in(self.left, now)
    }
}

fn case(look: &ServerLook, share: &Value, empty_in: &Value) -> Case {
    let sessions = look.sessions.as_deref().unwrap_or_default();
    let by_application = tally(sessions, |it| words::foreign(&it.application_name, 60));
    let by_user = tally(sessions, |it| words::foreign(&it.user, 60));
    // MySQL's clients have no name, and others may have none.
    let named = by_application.first().filter(|(name, _)| !name.is_empty()).or(by_user.first());
    let most = named.map(|(name, count)| format!("; {name:?} holds {count}"));
    let [used, slots] = [&look.used, &look.slots].map(|it| words::value(it, Unit::Count));
    let server = look.target.as_str().trim_start_matches("server:");
    Case {
        summary: format!(
            "{server} uses {used} of its {slots} connection slots ({}){}{}",
            words::value(share, Unit::Ratio),
            most.unwrap_or_default(),
            forecast::in_words("it has none left", empty_in),
        ),
        evidence: object(json!({
            "used": evidence::value(&look.used, Unit::Count),
            "slots": evidence::value(&look.slots, Unit::Count),
            "share": evidence::value(share, Unit::Ratio),
            "empty_in_seconds": evidence::value(empty_in, Unit::Seconds),
            "by_application": json_tally(by_application),
            "by_user": json_tally(by_user),
            "by_client": json_tally(tally(sessions, |it| {
                it.address.map_or_else(|| "unix socket or hidden".to_owned(), |it| it.to_canonical().to_string())
            })),
            "rule": look.engine.slots_rule(),
            "not_visible": look.hidden.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
        ..Case::default()
    }
}

/// Used against slots, either of which may be a range.
fn share(used: &Value, least: f64, most: f64) -> Value {
    match (used, least == most) {
        (Value::Known(used), true) => Value::Known(used / most),
        _ => Value::Between(used.low().unwrap_or_default() / most, used.high().unwrap_or(f64::INFINITY) / least),
    }
}

/// How many sessions have each name, most first.
fn tally(sessions: &[Session], name: impl Fn(&Session) -> String) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for session in sessions {
        *counts.entry(name(session)).or_default() += 1;
    }
    let mut all: Vec<_> = counts.into_iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    all.truncate(MAX_NAMES);
    all
}

fn json_tally(counts: Vec<(String, usize)>) -> serde_json::Value {
    counts
        .into_iter()
        .map(|(name, count)| (name, number(count as f64, Unit::Count)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
