//! What groups tell at their time: each that waits is looked at once more, and what is over or held back by now is not told.

use std::collections::HashSet;
use std::ops::Deref;

use tickbird_shared::{Fingerprint, Status, Timestamp};

use super::route::{Facts, facts};
use super::{Form, IncidentKey, Kind, Policy, State, Way, Withheld, group, message, next_id};
use crate::store::{AgentRow, GroupRow, IncidentRow, OutboxRow, WithheldRow};

/// An incident as it is now, and its agent where that is known.
pub type Found<'a> = (Sought<'a>, Option<&'a AgentRow>);

/// The row of an incident: fifty thousand may stand in a row, so one that had to be read stands elsewhere.
#[derive(Debug)]
pub enum Sought<'a> {
    /// It was there.
    Known(&'a IncidentRow),
    /// It was read from the store.
    Read(Box<IncidentRow>),
}

impl Deref for Sought<'_> {
    type Target = IncidentRow;

    fn deref(&self) -> &IncidentRow {
        match self {
            Self::Known(row) => row,
            Self::Read(row) => row,
        }
    }
}

/// What a group tells at its time, and what becomes of it.
#[derive(Debug)]
pub struct Flush {
    /// As it is kept from now on.
    pub group: GroupRow,
    /// Nothing of it fires or waits any more, and it is not kept.
    pub is_over: bool,
    /// What is told, if anything.
    pub message: Option<OutboxRow>,
    /// Incidents that are not told after all, and why.
    pub ungathered: Vec<(String, String)>,
    /// What is held back from now on.
    pub withheld: Vec<WithheldRow>,
    /// Ids of waiting messages that need not be sent any more, if they were certainly not heard.
    pub supersedes: Vec<String>,
}

impl State {
    /// What the groups tell whose time has come. `find` gives an incident as it is now.
    ///
    /// # Errors
    /// Those of `find`; what is known here may then be ahead of what is stored.
    pub fn flush<'a, E>(
        &mut self,
        policy: &Policy,
        now: Timestamp,
        find: impl Fn(&IncidentKey, Option<Fingerprint>) -> Result<Option<Found<'a>>, E>,
    ) -> Result<Vec<Flush>, E> {
        /// Incidents that are looked at in one turn at most, but for one group.
        const AT_ONCE: usize = 2_000;
        let is_configured = |name: &str| policy.receivers.iter().any(|it| it.name == name);
        let (mut flushes, mut looked_at) = (Vec::new(), 0);
        let due = self.groups.due(is_configured, now);
        self.is_behind |= due.len() >= group::AT_ONCE;
        for key in due {
            looked_at += self.groups.len(&key);
            flushes.extend(self.flush_one(&key, policy, now, &find)?);
            if looked_at >= AT_ONCE {
                self.is_behind = true;
                break;
            }
        }
        Ok(flushes)
    }

    fn flush_one<'a, E>(
        &mut self,
        key: &IncidentKey,
        policy: &Policy,
        now: Timestamp,
        find: &impl Fn(&IncidentKey, Option<Fingerprint>) -> Result<Option<Found<'a>>, E>,
    ) -> Result<Option<Flush>, E> {
        let gathered = self.groups.take_gathered(key);
        let Some(group) = self.groups.get_mut(key) else { return Ok(None) };
        let (before, firing) = (group.row.clone(), group.firing.clone());
        let (tenant, receiver) = (&key.0, &before.receiver);
        let configured = policy.receivers.iter().find(|it| it.name == *receiver);
        let is_configured = configured.is_some();
        let form = configured.map_or(&Form::Own, |it| &it.form);
        let are_asked = !self.silences.is_empty() || !policy.inhibitions.is_empty() || !policy.windows.is_empty();
        let holds = |state: &Self, place: &IncidentKey, (row, agent): &Found<'_>| {
            // What explains others is not explained.
            let is_asked = are_asked || !state.graph.is_quiet() && !state.graph.explains(row);
            let facts = if is_asked { facts(row, *agent) } else { Facts::new() };
            // Where a route of its own leads to the receiver, that one says whether it is mute.
            let mute = || match policy.way(receiver, &facts, now) {
                (Way::None, _) => policy.is_mute_for_step(&before.route, now),
                (_, mute) => mute,
            };
            let hold = state.holder(policy, row, &facts, now);
            let held = state.hold_for(receiver, hold.as_ref(), place);
            let held = held.map(|(by, why)| (by.to_owned(), why.to_owned()));
            if is_asked { held.or_else(mute) } else { held }
        };
        // Fifty thousand may wait: what grows by doubling is copied again and again.
        let mut all = Vec::with_capacity(gathered.len());
        for (incident, it) in gathered {
            let place = (tenant.clone(), incident);
            let found = find(&place, it.fingerprint)?;
            all.push((place, it, found));
        }
        let (mut told, mut ungathered, mut withheld) = (Vec::with_capacity(all.len()), Vec::new(), Vec::new());
        // What explains others is looked at before them: who is told of it with this message is spared the others.
        let explains =
            |state: &Self, found: &Option<Found<'_>>| found.as_ref().is_some_and(|(row, _)| state.graph.explains(row));
        if !self.graph.is_quiet() {
            all.sort_by_key(|(.., found)| !explains(self, found));
        }
        self.telling.clear();
        for (place, it, found) in all {
            let is_server = it.kind != Kind::Resolved && explains(self, &found);
            let found = match found {
                _ if !is_configured => Err(("the receiver is not configured any more", true)),
                None => Err(("the incident is not known any more", true)),
                Some((row, _)) if it.kind == Kind::Resolved && row.status == Status::Firing => {
                    Err(("it fires again", false))
                }
                Some((row, _)) if it.kind != Kind::Resolved && row.status != Status::Firing => {
                    Err(("it is over", true))
                }
                Some(found) => Ok(found),
            };
            let held = found.as_ref().ok().filter(|_| it.kind != Kind::Resolved).and_then(|it| holds(self, &place, it));
            match (found, held) {
                (Ok((row, _)), Some((_, why))) if it.kind == Kind::Escalated => {
                    self.escalations.hold_back(&place, receiver, now);
                    ungathered.push((place.1.clone(), why));
                    self.spares_no_more(&row, receiver, &place, now);
                }
                (Ok((row, _)), Some((by, why))) => {
                    ungathered.push((place.1.clone(), why));
                    if let Withheld::Put(row) = self.withhold(&place, receiver, it.kind, Some(by)) {
                        withheld.push(row);
                    }
                    self.spares_no_more(&row, receiver, &place, now);
                }
                (Ok(found), None) => {
                    if is_server {
                        self.telling.insert(place.1.clone());
                    }
                    told.push((it, place.1, found));
                }
                (Err((why, is_forgotten)), _) => {
                    if it.kind == Kind::Resolved && is_forgotten {
                        self.told_in_group(&place, receiver, key, it);
                    }
                    ungathered.push((place.1, why.to_owned()));
                }
            }
        }
        told.sort_by(|a, b| a.1.cmp(&b.1));
        // What was told before and still fires, if nothing holds it back now.
        let (mut others, mut held) = (Vec::new(), 0);
        let changed: HashSet<_> = told.iter().map(|it| it.1.as_str()).collect();
        for (incident, fingerprint) in firing.into_iter().filter(|it| !changed.contains(it.0.as_str())) {
            let place = (tenant.clone(), incident);
            let found = find(&place, fingerprint)?.filter(|(row, _)| row.status == Status::Firing);
            match found.map(|it| (holds(self, &place, &it).is_some(), it)) {
                Some((false, found)) => others.push(found),
                Some((true, _)) => held += 1,
                // It ended while its receiver was not configured.
                None => {
                    self.told_in_group(&place, receiver, key, group::Gathered { kind: Kind::Resolved, fingerprint })
                }
            }
        }
        self.telling.clear();
        let fires = |it: &&(group::Gathered, String, Found<'_>)| it.0.kind != Kind::Resolved;
        let severities =
            told.iter().filter(fires).map(|it| it.2.0.severity).chain(others.iter().map(|it| it.0.severity));
        let highest = severities.max();
        let repeats = told.is_empty()
            && is_configured
            && self.groups.get_mut(key).is_some_and(|group| group.repeats(highest, held > 0, now));
        let message = (repeats || !told.is_empty()).then(|| {
            let id = match &before.message {
                Some(id) if !told.is_empty() => id.clone(),
                _ => next_id(&mut self.last_id, &[before.id.as_bytes(), receiver.as_bytes()], now),
            };
            let changed: Vec<_> = told.iter().map(|(it, _, found)| (it.kind, found)).collect();
            let known = |it: &IncidentRow| self.heard.get(&(it.tenant.clone(), it.id.clone()), receiver);
            let parts = message::Parts { changed: &changed, others: &others, held, known: &known };
            message::of_group(id, &before, &parts, form, now)
        });
        let escalates = policy.escalates();
        self.believers.reserve(told.len());
        for (it, incident, (row, agent)) in told {
            let place = (tenant.clone(), incident);
            self.hears((&place, receiver, form), it.kind, (&row, agent));
            self.told_in_group(&place, receiver, key, it);
            if escalates && it.kind != Kind::Resolved {
                self.was_told(&place, receiver, policy, &facts(&row, agent), now);
            }
        }
        let supersedes = match &message {
            Some(row) => {
                let supersedes = self.supersede(key, receiver, Kind::Updated);
                self.wait(row);
                supersedes
            }
            None => Vec::new(),
        };
        let Some(group) = self.groups.get_mut(key) else { return Ok(None) };
        if message.is_some() || before.message.is_some() {
            group.told(message.is_some(), highest, held > 0, now);
        }
        let (group, is_over) = (group.row.clone(), group.is_over());
        if is_over {
            self.groups.remove(key);
        } else if group == before && message.is_none() && ungathered.is_empty() {
            return Ok(None);
        }
        Ok(Some(Flush { group, is_over, message, ungathered, withheld, supersedes }))
    }

    /// Who does not hear of a server is spared nothing of its clients.
    fn spares_no_more(&mut self, incident: &IncidentRow, receiver: &str, place: &IncidentKey, now: Timestamp) {
        if self.graph.explains(incident) && !self.knows(receiver, place) {
            self.let_go_of(place.clone(), now);
        }
    }

    /// A receiver was told something of an incident with a group.
    fn told_in_group(&mut self, place: &IncidentKey, receiver: &str, key: &IncidentKey, it: group::Gathered) {
        if it.kind == Kind::Resolved {
            self.groups.forget(place, &key.1);
            self.heard.remove(place, receiver);
            if let Some(them) = self.believers.get_mut(place) {
                them.remove(receiver);
                if them.is_empty() {
                    self.believers.remove(place);
                }
            }
            return;
        }
        let id = self.groups.get_mut(key).map(|it| it.id.clone());
        self.believe(place, receiver, Some(id.unwrap_or_else(|| key.1.as_str().into())));
        if let Some(group) = self.groups.get_mut(key) {
            group.firing.insert(place.1.clone(), it.fingerprint);
        }
    }
}
