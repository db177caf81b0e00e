//! Checks of database servers: room for connections, and the way to get one.

use std::collections::BTreeMap;

use serde_json::json;
use tickbird_shared::Severity;

use super::defaults::CheckId;
use super::evidence::{Case, number, object, value};
use super::pool::Pools;
use super::threshold::Seen;
use super::tracks::{Subject, Tracks};
use super::{Moment, words};
use crate::discover::TargetKey;
use crate::inspect::server::Session;
use crate::inspect::{ServerLook, Unit, Value};

mod limits;
mod locks;
mod replica;
mod role;
mod transactions;

/// Most names in a tally.
const MAX_NAMES: usize = 8;

/// What is remembered of servers between looks.
#[derive(Debug, Default)]
pub(super) struct Servers {
    /// How long the last connection took that was told.
    connected_in: BTreeMap<TargetKey, f64>,
    deadlocks: locks::Deadlocks,
    transactions: transactions::Transactions,
    roles: role::Roles,
    replicas: replica::Replicas,
    have_looked: bool,
}

impl Servers {
    /// `pools` as they were before this look: whose connections lead to the server.
    pub(super) fn look(&mut self, look: &ServerLook, pools: &Pools, now: Moment, tracks: &mut Tracks) {
        self.have_looked = true;
        headroom(look, now, tracks);
        limits::look(look, now, tracks);
        self.connect(look, now, tracks);
        self.deadlocks.look(look, pools, now, tracks);
        self.transactions.look(look, now, tracks);
        self.roles.look(look, pools, now, tracks);
        self.replicas.look(look, now, tracks);
    }

    pub(super) const fn have_looked(&self) -> bool {
        self.have_looked
    }

    fn connect(&mut self, look: &ServerLook, now: Moment, tracks: &mut Tracks) {
        let mut seen = Seen::value(look.connect.clone());
        if let Some(said) = &look.refused {
            // No number stands for a refusal; it is as bad as the longest wait.
            seen.value = Value::Known(f64::INFINITY);
            seen.forced = Some(Severity::Critical);
            seen.words = Some(words::foreign(said, 300));
        }
        if let Some(seconds) = look.connect.known() {
            let bounds = tracks.rule(CheckId::Connect).bounds;
            let is_slow = bounds.warning.is_some_and(|bound| !bounds.is_cleared(seconds, bound));
            let is_told = self.connected_in.insert(look.target.clone(), seconds) == Some(seconds);
            // One slow connection that is kept is one sign, at however many looks it is in use.
            if is_slow && is_told && look.refused.is_none() {
                return;
            }
        } else {
            self.connected_in.remove(&look.target);
        }
        let server = look.target.as_str().trim_start_matches("server:");
        tracks.observe(Subject::of(CheckId::Connect, &look.target), seen, now, || Case {
            summary: match &look.refused {
                Some(said) => format!("connecting to {server} fails: {}", words::foreign(said, 500)),
                None => format!("connecting to {server} takes {}", words::value(&look.connect, Unit::Seconds)),
            },
            evidence: object(json!({
                "refused": look.refused.as_deref().map(|it| words::foreign(it, 500)),
                "connect_seconds": value(&look.connect, Unit::Seconds),
                "addresses": look.addresses.iter().take(16).map(ToString::to_string).collect::<Vec<_>>(),
                "rule": "TCP, TLS, start-up and authentication of the agent's own session",
                "not_visible": [],
            })),
            ..Case::default()
        });
    }
}

fn headroom(look: &ServerLook, now: Moment, tracks: &mut Tracks) {
    let value = match (&look.used, &look.slots) {
        (Value::Unknown(reason), _) | (_, Value::Unknown(reason)) => Value::Unknown(reason.clone()),
        (used, slots) => match (slots.low(), slots.high()) {
            (Some(least), Some(most)) if least > 0.0 => share(used, least, most),
            _ => return,
        },
    };
    tracks.observe(Subject::of(CheckId::Headroom, &look.target), Seen::value(value.clone()), now, || {
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
                "{server} uses {used} of its {slots} connection slots ({}){}",
                words::value(&value, Unit::Ratio),
                most.unwrap_or_default(),
            ),
            evidence: object(json!({
                "used": super::evidence::value(&look.used, Unit::Count),
                "slots": super::evidence::value(&look.slots, Unit::Count),
                "share": super::evidence::value(&value, Unit::Ratio),
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
    });
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
