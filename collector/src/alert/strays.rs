//! What nobody decided when it changed: rules and labels are others now, so what held an incident back does not any more, or a
//! receiver should hear of it that never did.

use std::collections::HashSet;

use tickbird_shared::{Status, Timestamp};

use super::acknowledgement::ACKNOWLEDGED;
use super::hold::{CALM, SILENCE};
use super::route::{Facts, facts};
use super::verdict::{Kind, deaf};
use super::withheld::{GRACE, Held, MUTE};
use super::{Policy, State};
use crate::store::{AgentRow, IncidentRow};

/// What holds back until the next turn that somebody should hear of an incident; in memory only, for a start looks again.
pub(super) const NEWLY_LED: &str = "led";

impl State {
    /// Releases what is held back by something that does not hold it any more, though nobody saw it go: a rule was taken out of the
    /// configuration, a silence cannot be read, or the end was not written. What leads to a receiver only now is told to it.
    pub fn look_for_strays<'a>(
        &mut self,
        incidents: impl Iterator<Item = (&'a IncidentRow, Option<&'a AgentRow>)>,
        policy: &Policy,
        is_start: bool,
        now: Timestamp,
    ) {
        let later = now.saturating_add(GRACE).unwrap_or(Timestamp::MAX);
        // What cleared while nobody listened is told by agents first.
        let led_at = if is_start { later } else { now };
        let silences = self.silences.iter().map(|it| (it.row().tenant.clone(), it.row().id.clone()));
        let silences: HashSet<(String, String)> = silences.collect();
        for (incident, agent) in incidents.filter(|(it, _)| it.status == Status::Firing) {
            let key = (incident.tenant.clone(), incident.id.clone());
            let facts = facts(incident, agent);
            let inhibited = self.sources.holder(&policy.inhibitions, &key, &facts).map(|it| it.incident.to_owned());
            let held_by: HashSet<_> = self.withheld.of(&key).map(|it| it.1).collect();
            let counts = |id: &str| (held_by.contains(id), true);
            let depends: Vec<_> = self.graph.holders(&policy.dependencies, incident, &facts, counts);
            let depends: HashSet<_> = depends.iter().map(|it| it.incident.as_str()).collect();
            let holds = |(receiver, by): (&str, &str)| {
                // Whoever took it over goes on holding it.
                let is_owned = by.starts_with(ACKNOWLEDGED) && self.acknowledgements.contains_key(&key);
                let is_silenced = by.starts_with(SILENCE) && silences.contains(&(key.0.clone(), by.to_owned()));
                let is_inhibited = inhibited.as_deref() == Some(by);
                // Its routes may be others now.
                let is_spared = || depends.contains(by) && self.knows(receiver, &(key.0.clone(), by.to_owned()));
                let is_calm = by == CALM && incident.is_calm();
                let is_mute = || by.starts_with(MUTE) && policy.is_muted_by(receiver, &facts, by, now);
                is_calm || is_owned || is_silenced || is_inhibited || is_mute() || is_spared()
            };
            let strays = || self.withheld.of(&key).filter(|it| !holds(*it)).map(|it| it.1);
            // Only what another incident explains may be about to clear with it.
            let is_persons = |by: &str| [SILENCE, ACKNOWLEDGED, CALM, MUTE].iter().any(|it| by.starts_with(it));
            let due = if strays().all(is_persons) { now } else { later };
            if strays().next().is_some() {
                self.withheld.release_one(&key, "what held it back does not any more".into(), due);
            }
            // An incident is decided for everybody at once.
            self.look_who_missed(incident, &facts, policy, (now, led_at.max(due)));
        }
    }

    /// Takes the incidents of an agent whose labels or host are others now.
    pub fn relabelled<'a>(
        &mut self,
        incidents: impl Iterator<Item = &'a IncidentRow>,
        agent: &AgentRow,
        policy: &Policy,
        now: Timestamp,
    ) {
        for incident in incidents {
            let key = (incident.tenant.clone(), incident.id.clone());
            let facts = facts(incident, Some(agent));
            if self.take_source(policy, incident, !incident.is_calm(), &facts) {
                self.let_go_of(key.clone(), now);
            }
            if self.withheld.has(&key) {
                self.withheld.release_one(&key, "the labels of its agent are others now".into(), now);
            }
            self.look_who_missed(incident, &facts, policy, (now, now));
        }
    }

    /// Everybody whom a firing incident leads to was told of it, or something holds it back from them. Whoever it leads to only now, by
    /// other rules or labels or as what it has eased to, is told from `due` on.
    pub(super) fn look_who_missed(
        &mut self,
        incident: &IncidentRow,
        facts: &Facts,
        policy: &Policy,
        (now, due): (Timestamp, Timestamp),
    ) {
        let key = (incident.tenant.clone(), incident.id.clone());
        let mut missed = false;
        for receiver in &policy.receivers {
            let hears = deaf(incident, receiver, policy.way(&receiver.name, facts, now).0).is_none();
            if hears && self.withheld.get(&key, &receiver.name).is_none() && !self.knows(&receiver.name, &key) {
                let held = Held { kind: Kind::Firing, by: NEWLY_LED.into() };
                self.withheld.set(&key, &receiver.name, Some(held));
                missed = true;
            }
        }
        if missed {
            self.withheld.release_one(&key, "it leads to the receiver now".into(), due);
        }
    }
}
