//! Escalation: who else is told of an incident that was told, goes on firing and is nobody's, and after which time.
//!
//! A clock begins when a route with steps has told its receiver of an incident, and begins anew when nobody has it any more. What of
//! its steps was taken is a row beside it, so that a step which fell due while nobody served is taken once, and after it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tickbird_shared::units::show_duration;
use tickbird_shared::{Severity, Status, Timestamp};

use super::by_receiver::ByReceiver;
use super::flush::Found;
use super::group::Grouping;
use super::hold::SILENCE;
use super::route::{Facts, facts};
use super::withheld::{GRACE, MUTE};
use super::{Decision, IncidentKey, Kind, Policy, Route, State};
use crate::aggregate::{IncidentChange, is_about};
use crate::store::{AgentRow, EscalationRow, IncidentRow};

/// Clocks that are looked at in one turn at most: some 20 ms of the ledger.
const AT_ONCE: usize = 500;
/// How often one is looked at of which nothing is known to fall due: the labels of an agent may be others.
const SELDOM: Duration = Duration::from_secs(600);
/// The same while something holds it back.
const OFTEN: Duration = Duration::from_secs(5);

/// One step of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where it stands in the configuration: `route.escalate[0]`.
    pub at: String,
    /// Which of the steps to its receiver it is, and the receiver: `1 boss`. What it is known by when its time is another.
    pub name: String,
    /// Who is told.
    pub receiver: String,
    /// After how long, by severity; at one that is not named it is not taken.
    pub after: BTreeMap<Severity, Duration>,
    /// From which severity on.
    pub min_severity: Severity,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    /// Its receiver is told, or will be with its group.
    Told,
    /// Its time has come, and what explains the incident holds it back.
    Held,
    /// The same of a silence, which lets go at once.
    Silenced,
    /// The same of the time intervals of its route.
    Mute,
    /// Its time has come, and the incident is not bad enough.
    Below,
    /// Its receiver never hears of such a thing.
    Never,
}

impl Word {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::Held => "held back",
            Self::Silenced => "silenced",
            Self::Mute => "mute",
            Self::Below => "below its severity",
            Self::Never => "never",
        }
    }
}

/// How far one incident has come with the steps of the route that told one receiver.
#[derive(Debug)]
struct Clock {
    row: EscalationRow,
    look_at: Timestamp,
    /// What explained it is gone, and it may clear until then.
    not_before: Timestamp,
}

impl Clock {
    fn is(&self, step: &Step, word: Word) -> bool {
        self.row.steps.get(&step.name).is_some_and(|it| it == word.as_str())
    }

    /// What becomes of which step now, and why; and when there is something to look at again. What fell due just now waits while it
    /// `may_clear`.
    fn look<'a>(
        &self,
        route: &'a Route,
        policy: &Policy,
        incident: &IncidentRow,
        held: Option<(Word, &str)>,
        (may_clear, now): (bool, Timestamp),
    ) -> (Vec<(&'a Step, Word, String)>, Timestamp) {
        let (mut found, mut next) = (Vec::new(), later(now, SELDOM));
        for step in &route.escalate {
            if self.is(step, Word::Told) || self.is(step, Word::Never) {
                continue;
            }
            let Some(after) = step.after.get(&incident.severity) else { continue };
            let due = later(self.row.since, *after);
            let Some(receiver) = policy.receivers.iter().find(|it| it.name == step.receiver) else { continue };
            let least = step.min_severity.max(receiver.min_severity);
            if due > now {
                next = next.min(due);
            } else if incident.severity < least {
                if !self.is(step, Word::Below) {
                    let why = format!("{} is below {least}, by {}", incident.severity, step.at);
                    found.push((step, Word::Below, why));
                }
            } else if let Some(why) = never(incident, receiver) {
                found.push((step, Word::Never, why));
            } else if let Some((word, why)) = held {
                next = next.min(later(now, OFTEN));
                if !self.is(step, word) {
                    found.push((step, word, why.to_owned()));
                }
            } else if self.not_before > now {
                next = next.min(self.not_before);
            } else if may_clear && now < later(due, GRACE) {
                next = next.min(later(now, OFTEN));
            } else {
                let why = format!("escalated: not acknowledged for {}, by {}", show_duration(*after), step.at);
                found.push((step, Word::Told, why));
            }
        }
        found.sort_by_key(|it| it.1);
        (found, next)
    }
}

/// What holds steps back, and why: what holds their incident, or its route's being mute.
fn held(holder: Option<(&str, &str)>, mute: Option<String>) -> Option<(Word, String)> {
    let word = |by: &str| if by.starts_with(SILENCE) { Word::Silenced } else { Word::Held };
    holder.map(|(by, why)| (word(by), why.to_owned())).or_else(|| mute.map(|why| (Word::Mute, why)))
}

/// Why a receiver never hears of an incident.
fn never(incident: &IncidentRow, receiver: &super::Receiver) -> Option<String> {
    if is_about(incident, &receiver.name) {
        return Some("it is about this receiver itself, which would hear of it once it is over".into());
    }
    receiver.does_not_want(&incident.check, Severity::Critical)
}

/// All clocks.
#[derive(Debug, Default)]
pub(super) struct Escalations {
    of: HashMap<IncidentKey, BTreeMap<String, Clock>>,
    /// Clocks that the store has otherwise, or has still.
    unsaved: BTreeSet<(IncidentKey, String)>,
}

impl Escalations {
    /// A receiver was told by a route with steps: time begins to count, unless it does already.
    pub(super) fn begin(&mut self, key: &IncidentKey, receiver: &str, now: Timestamp) {
        let clocks = self.of.entry(key.clone()).or_default();
        if clocks.contains_key(receiver) {
            return;
        }
        let row = EscalationRow {
            tenant: key.0.clone(),
            incident: key.1.clone(),
            receiver: receiver.to_owned(),
            since: now,
            steps: BTreeMap::new(),
        };
        clocks.insert(receiver.to_owned(), Clock { row, look_at: now, not_before: now });
        self.unsaved.insert((key.clone(), receiver.to_owned()));
    }

    /// Time counts anew for an incident.
    pub(super) fn begin_anew(&mut self, key: &IncidentKey, now: Timestamp) {
        for (receiver, clock) in self.of.get_mut(key).into_iter().flatten() {
            (clock.row.since, clock.look_at) = (now, now);
            clock.row.steps.clear();
            self.unsaved.insert((key.clone(), receiver.clone()));
        }
    }

    /// Something of an incident is otherwise.
    pub(super) fn look_again(&mut self, key: &IncidentKey, now: Timestamp) {
        self.of.get_mut(key).into_iter().flatten().for_each(|(_, it)| it.look_at = now);
    }

    /// Whether a step has told a receiver since time began to count, or will with its group.
    pub(super) fn has_told(&self, key: &IncidentKey, receiver: &str) -> bool {
        let steps = self.of.get(key).into_iter().flatten().flat_map(|(_, it)| &it.row.steps);
        steps.into_iter().any(|(name, word)| is_of(name, receiver) && word == Word::Told.as_str())
    }

    /// What waited to be told to a receiver with its group is held back.
    pub(super) fn hold_back(&mut self, key: &IncidentKey, receiver: &str, now: Timestamp) {
        for (of, clock) in self.of.get_mut(key).into_iter().flatten() {
            for (_, word) in clock.row.steps.iter_mut().filter(|(name, _)| is_of(name, receiver)) {
                *word = Word::Held.as_str().into();
                clock.look_at = now;
                self.unsaved.insert((key.clone(), of.clone()));
            }
        }
    }

    /// An incident is over.
    pub(super) fn remove(&mut self, key: &IncidentKey) {
        for receiver in self.of.remove(key).into_iter().flatten().map(|it| it.0) {
            self.unsaved.insert((key.clone(), receiver));
        }
    }

    fn set(&mut self, key: &IncidentKey, receiver: &str, step: &Step, word: Word, now: Timestamp) {
        if let Some(clock) = self.of.get_mut(key).and_then(|it| it.get_mut(receiver)) {
            clock.row.steps.insert(step.name.clone(), word.as_str().into());
            clock.look_at = now;
            self.unsaved.insert((key.clone(), receiver.to_owned()));
        }
    }

    /// Those that have to be looked at now, or were put off by a clock that was ahead; not all of them at once.
    fn due(&self, now: Timestamp) -> Vec<(IncidentKey, String)> {
        let latest = later(now, SELDOM);
        let of = |(key, clocks): (&IncidentKey, &BTreeMap<String, Clock>)| {
            let due = clocks.iter().filter(|(_, it)| it.look_at <= now || it.look_at > latest);
            due.map(|(receiver, _)| (key.clone(), receiver.clone())).collect::<Vec<_>>()
        };
        self.of.iter().flat_map(of).take(AT_ONCE).collect()
    }
}

/// Whether a step of this name tells a receiver.
fn is_of(name: &str, receiver: &str) -> bool {
    name.split_once(' ').is_some_and(|it| it.1 == receiver)
}

fn later(than: Timestamp, by: Duration) -> Timestamp {
    than.saturating_add(by).unwrap_or(Timestamp::MAX)
}

impl Policy {
    /// The first route with steps that leads incidents of these facts to a receiver.
    fn steps_for(&self, receiver: &str, facts: &Facts) -> Option<&Route> {
        let top = self.route.as_ref()?;
        top.lead(facts).into_iter().find(|it| it.receiver == receiver && !it.escalate.is_empty())
    }

    /// What holds back what is told by the steps of a route, and why, if that is mute now.
    pub(super) fn is_mute_for_step(&self, path: &str, now: Timestamp) -> Option<(String, String)> {
        let path = path.strip_suffix('!')?;
        let all = self.route.as_ref().map(Route::all).unwrap_or_default();
        let route = all.into_iter().find(|it| it.path == path)?;
        Some((format!("{MUTE}{}", route.at), self.is_mute(route, now)?))
    }

    /// Whether anybody hears of anything only after a time.
    pub(super) fn escalates(&self) -> bool {
        self.route.as_ref().is_some_and(Route::escalates)
    }
}

impl Route {
    fn escalates(&self) -> bool {
        !self.escalate.is_empty() || self.routes.iter().any(Self::escalates)
    }

    /// What the routes are known by that lead to the receivers of its steps.
    pub(super) fn path_of_steps(&self) -> String {
        format!("{}!", self.path)
    }

    /// The route by which the receiver of a step is told: grouped as this one groups.
    fn of_step(&self, step: &Step) -> Self {
        Self {
            at: step.at.clone(),
            path: self.path_of_steps(),
            receiver: step.receiver.clone(),
            routes: Vec::new(),
            escalate: Vec::new(),
            ..self.clone()
        }
    }

    /// How those are told together who are told by a step, given the route and the receiver of their group.
    pub(super) fn grouping_of_step(&self, path: &str, receiver: &str) -> Option<&Grouping> {
        let is_here = path.strip_suffix('!').is_some_and(|it| it == self.path);
        let has_step = self.escalate.iter().any(|it| it.receiver == receiver);
        self.grouping.as_ref().filter(|_| is_here && has_step)
    }
}

impl State {
    /// The same with how far escalations have come, as stored. What was told by a route that has steps only since counts from now on.
    #[must_use]
    pub fn with_escalations<'a>(
        mut self,
        rows: Vec<EscalationRow>,
        incidents: impl Iterator<Item = (&'a IncidentRow, Option<&'a AgentRow>)>,
        policy: &Policy,
        now: Timestamp,
    ) -> Self {
        for row in rows {
            let key = (row.tenant.clone(), row.incident.clone());
            // Nobody saw whether what explained it has just gone.
            let is_held = row.steps.values().any(|it| it == Word::Held.as_str());
            let not_before = if is_held { later(now, GRACE) } else { Timestamp::MIN };
            let clock = Clock { look_at: now, not_before, row };
            self.escalations.of.entry(key).or_default().insert(clock.row.receiver.clone(), clock);
        }
        if policy.escalates() {
            for (incident, agent) in incidents.filter(|(it, _)| it.status == Status::Firing) {
                let key = (incident.tenant.clone(), incident.id.clone());
                // Who is to be told counts from then on.
                let waits =
                    |it: &str| self.groups.gathered(&key, it).is_some() || self.withheld.get(&key, it).is_some();
                let believers = self.believers.get(&key).into_iter().flat_map(ByReceiver::names);
                let receivers: Vec<_> = believers.filter(|it| !waits(it)).map(str::to_owned).collect();
                receivers.iter().for_each(|it| self.was_told(&key, it, policy, &facts(incident, agent), now));
            }
        }
        self
    }

    /// Whether something that explained others is gone since so short a time that they may be about to clear with it.
    fn may_clear(&self, now: Timestamp) -> bool {
        self.let_go_at.is_some_and(|at| at <= now && now < later(at, GRACE))
    }

    /// A receiver was told that an incident of these facts fires.
    pub(super) fn was_told(
        &mut self,
        key: &IncidentKey,
        receiver: &str,
        policy: &Policy,
        facts: &Facts,
        now: Timestamp,
    ) {
        if policy.escalates() && policy.steps_for(receiver, facts).is_some() {
            self.escalations.begin(key, receiver, now);
        }
    }

    /// Nobody has an incident any more: the time until its steps counts anew.
    pub fn escalate_anew(&mut self, tenant: &str, incident: &str, now: Timestamp) {
        self.escalations.begin_anew(&(tenant.to_owned(), incident.to_owned()), now);
    }

    /// Incidents of which a step is to be decided now. `find` gives one as it is.
    ///
    /// # Errors
    /// Those of `find`.
    pub fn escalations_due<'a, E>(
        &mut self,
        policy: &Policy,
        now: Timestamp,
        find: impl Fn(&IncidentKey) -> Result<Option<Found<'a>>, E>,
    ) -> Result<BTreeSet<IncidentKey>, E> {
        let mut due = BTreeSet::new();
        let may_clear = self.may_clear(now);
        let clocks = self.escalations.due(now);
        self.is_behind |= clocks.len() >= AT_ONCE;
        for (key, receiver) in clocks {
            let Some((row, agent)) = find(&key)?.filter(|(row, _)| row.status == Status::Firing) else {
                // Only damage takes an incident away that fires.
                self.escalations.remove(&key);
                continue;
            };
            let is_owned = self.acknowledgements.contains_key(&key);
            let facts = facts(&row, agent);
            let hold = self.holder(policy, &row, &facts, now);
            let holder = self.hold_for(&receiver, hold.as_ref(), &key);
            let Some(clock) = self.escalations.of.get_mut(&key).and_then(|it| it.get_mut(&receiver)) else { continue };
            clock.look_at = later(now, SELDOM);
            clock.not_before = clock.not_before.min(later(now, GRACE));
            if clock.row.since > now {
                // A clock that was ahead said so.
                clock.row.since = now;
                self.escalations.unsaved.insert((key.clone(), receiver.clone()));
            }
            let Some(route) = policy.steps_for(&receiver, &facts).filter(|_| !is_owned) else { continue };
            if holder.is_some_and(|(by, _)| !by.starts_with(SILENCE)) {
                clock.not_before = later(now, GRACE);
            }
            let held = held(holder, policy.is_mute(route, now));
            let held = held.as_ref().map(|(word, why)| (*word, why.as_str()));
            let (found, next) = clock.look(route, policy, &row, held, (may_clear, now));
            clock.look_at = next;
            if !found.is_empty() {
                due.insert(key);
            }
        }
        Ok(due)
    }

    /// Decides what becomes of the steps of an incident whose time has come.
    pub(super) fn escalate(
        &mut self,
        (change, agent): (&IncidentChange, Option<&AgentRow>),
        policy: &Policy,
        now: Timestamp,
    ) -> Vec<Decision> {
        let incident = &change.incident;
        let key = (incident.tenant.clone(), incident.id.clone());
        let facts = facts(incident, agent);
        let hold = self.holder(policy, incident, &facts, now);
        let told: Vec<_> = self.escalations.of.get(&key).into_iter().flatten().map(|it| it.0.clone()).collect();
        let (mut decisions, mut decided) = (Vec::new(), HashSet::new());
        let may_clear = self.may_clear(now);
        for of in told {
            let Some(route) = policy.steps_for(&of, &facts) else { continue };
            let holder = self.hold_for(&of, hold.as_ref(), &key);
            let held = held(holder, policy.is_mute(route, now));
            let held = held.as_ref().map(|(word, why)| (*word, why.as_str()));
            let Some(clock) = self.escalations.of.get(&key).and_then(|it| it.get(&of)) else { continue };
            for (step, word, reason) in clock.look(route, policy, incident, held, (may_clear, now)).0 {
                self.escalations.set(&key, &of, step, word, now);
                let Some(receiver) = policy.receivers.iter().find(|it| it.name == step.receiver) else { continue };
                // Two steps to one receiver that fell due together are one word.
                if !decided.insert(&step.receiver) {
                    continue;
                }
                let verdict = if word == Word::Told { Ok(reason) } else { Err(reason) };
                let place = self.place_of_step(&key, route, step, incident, &facts);
                // News of it that waits in the same place is the graver word.
                let waiting = self.groups.gathered(&key, &step.receiver);
                let is_graver = |it: &Kind| ![Kind::Updated, Kind::Resolved].contains(it);
                let kind = waiting.filter(is_graver).unwrap_or(Kind::Escalated);
                let latest = route.grouping.as_ref().map(|it| later(now, it.wait));
                decisions.push(self.write_down((change, agent), receiver, kind, verdict, (place, latest), now));
            }
        }
        decisions
    }

    /// The group with which the receiver of a step is told: the one that told it before, or will.
    fn place_of_step(
        &mut self,
        key: &IncidentKey,
        route: &Route,
        step: &Step,
        incident: &IncidentRow,
        facts: &Facts,
    ) -> Option<String> {
        let told_in = self.believers.get(key).and_then(|it| it.get(&step.receiver)).cloned();
        match told_in {
            Some(thread) => thread.filter(|id| self.groups.has(&key.0, id)).map(|it| it.to_string()),
            None => self.groups.waits_in(key, &step.receiver).or_else(|| {
                let grouping = route.grouping.as_ref()?;
                Some(self.groups.of(&route.of_step(step), grouping, incident, facts))
            }),
        }
    }

    /// What changed of escalations since it was asked last: of each incident and receiver the row, or none where there is none any more.
    pub fn take_unsaved_escalations(&mut self) -> Vec<(IncidentKey, String, Option<EscalationRow>)> {
        let unsaved = std::mem::take(&mut self.escalations.unsaved);
        let row =
            |key: &IncidentKey, receiver: &String| self.escalations.of.get(key)?.get(receiver).map(|it| it.row.clone());
        let with_row = |(key, receiver)| {
            let row = row(&key, &receiver);
            (key, receiver, row)
        };
        unsaved.into_iter().map(with_row).collect()
    }
}
