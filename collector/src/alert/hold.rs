//! What holds an incident back now, and from whom.

use tickbird_shared::Timestamp;

use super::acknowledgement::ACKNOWLEDGED;
use super::route::Facts;
use super::strays::NEWLY_LED;
use super::{IncidentKey, Policy, State};
use crate::store::IncidentRow;

/// How ids of silences begin.
pub(super) const SILENCE: &str = "sil_";
/// What holds back what flaps and has gone away for now: it is told when it is back.
pub(super) const CALM: &str = "calm";

/// What holds an incident back: the id of the silence, the incident or the acknowledgement, and why.
#[derive(Debug)]
pub(super) enum Hold {
    ForAll((String, String)),
    /// Incidents of a server, each for those who know of it.
    ForWhoKnows(Vec<(String, String)>),
}

impl State {
    /// What holds an incident back, and why: that it has gone away, a silence, another incident, an acknowledgement, or that it depends on a
    /// server.
    pub(super) fn holder(
        &self,
        policy: &Policy,
        incident: &IncidentRow,
        facts: &Facts,
        now: Timestamp,
    ) -> Option<Hold> {
        let key = (incident.tenant.clone(), incident.id.clone());
        let all = |by: &str, why: String| Hold::ForAll((by.to_owned(), why));
        if incident.is_calm() {
            return Some(all(CALM, "it flaps, and has gone away for now".into()));
        }
        let silence = self.silences.iter().find(|it| it.holds(now) && it.matches(facts));
        let inhibited = || self.sources.holder(&policy.inhibitions, &key, facts).map(|it| all(it.incident, it.why()));
        let owned = || self.acknowledgements.get(&key).map(|it| all(&it.id, it.why()));
        let depends = || {
            // One for each receiver is enough: of a server that a hundred agents miss, each knows those that lead to it.
            let mut uncovered: Vec<_> = policy.receivers.iter().map(|it| it.name.as_str()).collect();
            let counts = |id: &str| {
                let (all, source) = (uncovered.len(), (key.0.clone(), id.to_owned()));
                uncovered.retain(|it| !self.knows(it, &source));
                (uncovered.len() < all, !uncovered.is_empty())
            };
            let all = self.graph.holders(&policy.dependencies, incident, facts, counts);
            (!all.is_empty())
                .then(|| Hold::ForWhoKnows(all.iter().map(|it| (it.incident.to_owned(), it.why())).collect()))
        };
        silence.map(|it| all(&it.row().id, it.why())).or_else(inhibited).or_else(owned).or_else(depends)
    }

    /// The same as far as it holds for a receiver: that a server is down spares those who know that it is, or chose not to hear of it.
    pub(super) fn hold_for<'a>(
        &self,
        receiver: &str,
        hold: Option<&'a Hold>,
        key: &IncidentKey,
    ) -> Option<(&'a str, &'a str)> {
        let (by, why) = match hold? {
            Hold::ForAll(it) => it,
            Hold::ForWhoKnows(all) => all.iter().find(|(by, _)| self.knows(receiver, &(key.0.clone(), by.clone())))?,
        };
        Some((by, why))
    }

    /// Whether a receiver was told of an incident, is about to be, or is spared it by somebody's choice.
    pub(super) fn knows(&self, receiver: &str, key: &IncidentKey) -> bool {
        let believes = self.believers.get(key).is_some_and(|them| them.get(receiver).is_some());
        let chose = |by: &str| by.starts_with(SILENCE) || by.starts_with(ACKNOWLEDGED) || by == NEWLY_LED;
        let is_spared = || self.withheld.get(key, receiver).is_some_and(|it| chose(&it.by));
        let is_being_told = self.telling.contains(&key.1);
        believes || is_being_told || self.groups.gathered(key, receiver).is_some() || is_spared()
    }
}
