//! Who hears of an incident, when, and why not. Pure; each decision is stored with its reason.
//!
//! Routes (`route`) say which receivers an incident leads to now; what a receiver was told before does not depend on them.
//!
//! Two promises. *(a)* Each (incident, receiver, state epoch) is decided once, and what is told has a stable id and
//! identical bytes. *(b)* While a receiver stays configured, a resolve is queued for each one that was told that the
//! incident fires, whatever the routes say now.
//!
//! A message that waits and was certainly not heard is superseded by a newer one that says all it said: any update by
//! what follows it, everything by the resolve. The resolve itself is always sent, so somebody whose receiver was away
//! learns that a fault came and went.
//!
//! While a silence holds, or another incident fires that explains it, nobody hears of an incident, but that it is over. What
//! was held back is kept; when what held it is gone, the incident is decided anew, and what a receiver missed is told if it
//! is still true.
//!
//! That a receiver is away is told to all others, and never to itself: it would hear of it when it is not true any more. What it gets
//! late says when it was decided.

mod explanation;
mod inhibition;
mod matcher;
mod message;
mod route;
mod silence;
mod window;
mod withheld;

use std::collections::{BTreeSet, HashMap, HashSet};

use sha2::{Digest, Sha256};
use tickbird_shared::{Severity, Status, Timestamp};
use ulid::Ulid;

use crate::aggregate::{ChangeKind, IncidentChange, is_about};
use crate::store::{AgentRow, DecisionRow, IncidentRow, MessageState, OutboxRow, WithheldRow};

pub use explanation::{SHOWN as EXPLAINED, explanation};
pub use inhibition::Inhibition;
pub use matcher::{Matcher, MatcherError};
pub(crate) use message::object;
pub use message::{AgentDocument, IncidentDocument, sample};
pub use route::{Facts, Route, facts};
pub use silence::{Silence, SilenceError};
pub use window::{Span, Window, day, minutes, month, range, weekday};

pub use withheld::Lapse;

use inhibition::Sources;
use withheld::{GRACE, Held, Holdings, MUTE};

/// A configured destination, as far as deciding goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// Its name in the configuration.
    pub name: String,
    /// Hears of this severity and above. Default `warning`.
    pub min_severity: Severity,
    /// Ids of checks that it never hears of. Default `agent.blind`.
    pub skip_checks: Vec<String>,
}

impl Receiver {
    /// A receiver with the defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), min_severity: Severity::Warning, skip_checks: vec!["agent.blind".into()] }
    }

    /// Why it does not hear of a check at a severity, whatever leads to it.
    pub fn does_not_want(&self, check: &str, severity: Severity) -> Option<String> {
        if self.skip_checks.iter().any(|it| it == check) {
            Some(format!("skip_checks holds {check}"))
        } else if severity < self.min_severity {
            Some(format!("below min_severity: {severity} is less than {}", self.min_severity))
        } else {
            None
        }
    }
}

/// Who may hear, and of what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// All that are configured.
    pub receivers: Vec<Receiver>,
    /// Which of them an incident leads to. Without one it leads to all.
    pub route: Option<Route>,
    /// Which incidents explain which others.
    pub inhibitions: Vec<Inhibition>,
    /// Named times in which routes are mute, or are not.
    pub windows: Vec<Window>,
}

impl Policy {
    /// Why a route is mute at a moment, if it is.
    pub fn is_mute(&self, route: &Route, now: Timestamp) -> Option<String> {
        let holds = |name: &&String| self.windows.iter().any(|it| it.name == **name && it.holds(now));
        if let Some(name) = route.mute.iter().find(holds) {
            return Some(format!("the time interval `{name}` mutes {}", route.at));
        }
        let is_out = !route.active.is_empty() && !route.active.iter().any(|name| holds(&name));
        is_out.then(|| format!("none of the active_time_intervals of {} holds", route.at))
    }

    /// Whether the route that stands there is mute; one that stands nowhere is not.
    fn is_mute_at(&self, at: &str, now: Timestamp) -> bool {
        let all = self.route.as_ref().map(Route::all).unwrap_or_default();
        all.into_iter().find(|it| it.at == at).is_some_and(|it| self.is_mute(it, now).is_some())
    }
}

impl From<Vec<Receiver>> for Policy {
    fn from(receivers: Vec<Receiver>) -> Self {
        Self { receivers, route: None, inhibitions: Vec::new(), windows: Vec::new() }
    }
}

/// What was decided for one receiver about one state of an incident.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The decision and its reason.
    pub row: DecisionRow,
    /// What is told, if anything.
    pub message: Option<OutboxRow>,
    /// Ids of waiting messages that need not be sent any more, if they were certainly not heard.
    pub supersedes: Vec<String>,
    /// What is held back from the receiver from now on.
    pub withheld: Withheld,
}

/// What a decision changes of what is held back from its receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Withheld {
    /// Nothing was, and nothing is.
    Nothing,
    /// This, in place of whatever was.
    Put(WithheldRow),
    /// What was is told, or not worth telling any more.
    Gone,
}

/// What a message says happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Firing,
    Worsened,
    Eased,
    Updated,
    Resolved,
}

impl Kind {
    /// What can be held back, the gravest last.
    const HELD: [Self; 3] = [Self::Updated, Self::Worsened, Self::Firing];

    /// The graver of two that are held back.
    fn graver(self, other: Self) -> Self {
        let weight = |it| Self::HELD.iter().position(|held| *held == it);
        if weight(other) > weight(self) { other } else { self }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "incident.firing",
            Self::Worsened => "incident.worsened",
            Self::Eased => "incident.eased",
            Self::Updated => "incident.updated",
            Self::Resolved => "incident.resolved",
        }
    }
}

/// A message that waits, as far as superseding it goes.
#[derive(Debug)]
struct Waiting {
    id: String,
    is_update: bool,
}

type IncidentKey = (String, String);

/// Which receivers believe what.
#[derive(Debug, Default)]
pub struct State {
    /// Per incident the receivers that were told that it fires, and not yet that it is over.
    believers: HashMap<IncidentKey, BTreeSet<String>>,
    waiting: HashMap<IncidentKey, Vec<(String, Waiting)>>,
    /// Those whose end was not noticed yet.
    silences: Vec<Silence>,
    /// Per incident and receiver what they would have been told.
    withheld: Holdings,
    /// What fires and explains others.
    sources: Sources,
    /// Routes that were mute when they held something back, each with [`MUTE`] and the tenant.
    mute: BTreeSet<IncidentKey>,
    last_id: Ulid,
}

impl State {
    /// The state as stored: `told` holds the newest decision that told something, per incident and receiver.
    pub fn load(told: Vec<DecisionRow>, waiting: Vec<OutboxRow>) -> Self {
        let mut state = Self::default();
        // Ids order what waits, also when the clock has stepped back meanwhile.
        let ids = told.iter().filter_map(|row| row.message.as_deref()).chain(waiting.iter().map(|row| row.id.as_str()));
        let newest = ids.filter_map(|id| Ulid::from_string(id.strip_prefix("msg_")?).ok()).max();
        state.last_id = newest.unwrap_or_default();
        for row in told.into_iter().filter(|row| row.told && row.kind != Kind::Resolved.as_str()) {
            state.believers.entry((row.tenant, row.incident)).or_default().insert(row.receiver);
        }
        for row in waiting {
            state.wait(&row);
        }
        state
    }

    /// The same with what is held back, as stored.
    #[must_use]
    pub fn with_withheld(mut self, rows: Vec<WithheldRow>) -> Self {
        for row in rows {
            // A kind that this version does not know is told as a first firing, or as an update.
            let kind = Kind::HELD.into_iter().find(|it| it.as_str() == row.kind).unwrap_or(Kind::Updated);
            if row.held_by.starts_with(MUTE) {
                self.mute.insert((row.tenant.clone(), row.held_by.clone()));
            }
            let held = Held { kind, by: row.held_by };
            self.withheld.set(&(row.tenant, row.incident), &row.receiver, Some(held));
        }
        self
    }

    /// The same with what fires and explains others, as these rules say.
    #[must_use]
    pub fn with_sources<'a>(
        mut self,
        incidents: impl Iterator<Item = (&'a IncidentRow, Option<&'a AgentRow>)>,
        policy: &Policy,
    ) -> Self {
        for (incident, agent) in incidents.filter(|(it, _)| it.status == Status::Firing) {
            self.sources.take(&policy.inhibitions, incident, true, &facts(incident, agent));
        }
        self
    }

    /// Releases what is held back by something that does not hold it any more, though nobody saw it go: a rule was taken out of the
    /// configuration, a silence cannot be read, or the end was not written.
    pub fn look_for_strays<'a>(
        &mut self,
        incidents: impl Iterator<Item = (&'a IncidentRow, Option<&'a AgentRow>)>,
        policy: &Policy,
        now: Timestamp,
    ) {
        let due = now.saturating_add(GRACE).unwrap_or(Timestamp::MAX);
        let silences: HashSet<_> = self.silences.iter().map(|it| (&*it.row().tenant, &*it.row().id)).collect();
        for (incident, agent) in incidents.filter(|(it, _)| it.status == Status::Firing) {
            let key = (incident.tenant.clone(), incident.id.clone());
            let holder = self.sources.holder(&policy.inhibitions, &key, &facts(incident, agent));
            let holder = holder.map(|it| it.incident.to_owned());
            // Whether a route is mute is asked each time.
            let holds = |by: &String| {
                by.starts_with(MUTE) || holder.as_ref() == Some(by) || silences.contains(&(&*key.0, by.as_str()))
            };
            if !self.withheld.holders_of(&key).iter().all(holds) {
                self.withheld.release_one(&key, "what held it back does not any more".into(), due);
            }
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
            if self.sources.take(&policy.inhibitions, incident, true, &facts(incident, Some(agent))) {
                self.let_go_of(key.clone(), now);
            }
            if self.withheld.has(&key) {
                self.withheld.release_one(&key, "the labels of its agent are others now".into(), now);
            }
        }
    }

    /// What an incident explained may clear with it, and is decided anew after a while if it does not.
    fn let_go_of(&mut self, key: IncidentKey, now: Timestamp) {
        let reason = format!("what held it back does not any more ({})", key.1);
        let due = now.saturating_add(GRACE).unwrap_or(Timestamp::MAX);
        self.withheld.release(key, false, reason, due);
    }

    /// Takes the silences whose end was not noticed yet, in place of those that are known; whether they are others.
    pub fn silence(&mut self, silences: Vec<Silence>) -> bool {
        let are_others = self.silences != silences;
        self.silences = silences;
        are_others
    }

    /// How many hold, or are to come.
    pub const fn silences(&self) -> usize {
        self.silences.len()
    }

    /// Takes out what is to be decided anew now, since what held it back is gone.
    pub fn lapses(&mut self, policy: &Policy, now: Timestamp) -> Vec<Lapse> {
        let speaks = |(_, by): &&IncidentKey| by.strip_prefix(MUTE).is_some_and(|at| !policy.is_mute_at(at, now));
        let speaking: Vec<_> = self.withheld.holders().filter(speaks).cloned().collect();
        for key in speaking {
            let reason = format!("a time interval is over, and {} speaks", key.1.trim_start_matches(MUTE));
            self.withheld.release(key, false, reason, now);
        }
        for silence in self.silences.extract_if(.., |it| it.is_over(now)) {
            let row = silence.row();
            let reason = format!("the silence of {} has ended ({})", row.author, row.id);
            self.withheld.release((row.tenant.clone(), row.id.clone()), true, reason, now);
        }
        self.withheld.due(now)
    }

    /// Decides for every receiver what it hears of a change. Nothing is decided about a change that nobody may hear of.
    pub fn decide(
        &mut self,
        change: &IncidentChange,
        agent: Option<&AgentRow>,
        policy: &Policy,
        now: Timestamp,
    ) -> Vec<Decision> {
        if change.kind == ChangeKind::Refreshed {
            return Vec::new();
        }
        let key = (change.incident.tenant.clone(), change.incident.id.clone());
        // Only routes, silences and inhibitions ask for them, and there is one change for each finding.
        let are_asked =
            policy.route.is_some() || !policy.inhibitions.is_empty() || self.silences.iter().any(|it| it.holds(now));
        let facts = if are_asked { facts(&change.incident, agent) } else { Facts::new() };
        let fires = change.incident.status == Status::Firing;
        if self.sources.take(&policy.inhibitions, &change.incident, fires, &facts) {
            self.let_go_of(key.clone(), now);
        }
        let silence = self.silences.iter().find(|it| it.holds(now) && it.matches(&facts));
        let holder = silence.map(|it| (it.row().id.clone(), it.why())).or_else(|| {
            let it = self.sources.holder(&policy.inhibitions, &key, &facts)?;
            Some((it.incident.to_owned(), it.why()))
        });
        let receivers = &policy.receivers;
        let mut decisions = Vec::with_capacity(receivers.len());
        for receiver in receivers {
            let believes = self.believers.get(&key).is_some_and(|them| them.contains(&receiver.name));
            let held = self.withheld.get(&key, &receiver.name).map(|it| it.kind);
            if change.kind == ChangeKind::Reconsidered && held.is_none() {
                continue;
            }
            let mut mute = None;
            let way = match &policy.route {
                None => Way::All,
                Some(route) => {
                    // One that speaks is enough; else the first is named.
                    let ways: Vec<_> = route.to(&receiver.name, &facts).collect();
                    let speaks = ways.iter().find(|it| policy.is_mute(it, now).is_none());
                    let way = speaks.or(ways.first());
                    mute = way.and_then(|it| Some((format!("{MUTE}{}", it.at), policy.is_mute(it, now)?)));
                    way.map_or(Way::None, |it| Way::By(&it.at))
                }
            };
            let (kind, mut verdict) = judge(change, receiver, believes, held, way);
            let mut by = None;
            if let Some((id, why)) =
                holder.as_ref().or(mute.as_ref()).filter(|_| verdict.is_ok() && kind != Kind::Resolved)
            {
                verdict = Err(why.clone());
                by = Some(id.clone());
            }
            let mut decision = self.write_down(change, agent, &receiver.name, kind, verdict, now);
            decision.withheld = self.withhold(&key, &receiver.name, kind, by);
            decisions.push(decision);
        }
        if change.kind == ChangeKind::Resolved {
            // Of receivers that are not configured any more.
            self.withheld.remove(&key);
            // Those that are left were told that it fires and are not configured any more.
            for receiver in self.believers.remove(&key).unwrap_or_default() {
                if receivers.iter().any(|it| it.name == receiver) {
                    continue;
                }
                let verdict = Err("the receiver is not configured any more".into());
                decisions.push(self.write_down(change, agent, &receiver, Kind::Resolved, verdict, now));
            }
        }
        decisions
    }

    /// A message reached its end.
    pub fn settled(&mut self, row: &OutboxRow) {
        let key = (row.tenant.clone(), row.incident.clone());
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.retain(|(_, it)| it.id != row.id);
            if waiting.is_empty() {
                self.waiting.remove(&key);
            }
        }
    }

    fn write_down(
        &mut self,
        change: &IncidentChange,
        agent: Option<&AgentRow>,
        receiver: &str,
        kind: Kind,
        verdict: Result<String, String>,
        now: Timestamp,
    ) -> Decision {
        let incident = &change.incident;
        let mut row = DecisionRow {
            tenant: incident.tenant.clone(),
            incident: incident.id.clone(),
            receiver: receiver.to_owned(),
            state_epoch: incident.state_epoch,
            told: verdict.is_ok(),
            kind: kind.as_str().into(),
            reason: String::new(),
            decided_at: now,
            message: None,
        };
        let reason = match verdict {
            Ok(reason) => reason,
            Err(reason) => {
                row.reason = reason;
                return Decision { row, message: None, supersedes: Vec::new(), withheld: Withheld::Nothing };
            }
        };
        let id = self.next_id(incident, receiver, now);
        let body = message::render(&id, kind.as_str(), receiver, &reason, incident, agent, now);
        row.reason = reason;
        row.message = Some(id.clone());
        let message = OutboxRow {
            tenant: incident.tenant.clone(),
            id,
            receiver: receiver.to_owned(),
            incident: incident.id.clone(),
            kind: kind.as_str().into(),
            body,
            decided_at: now,
            state: MessageState::Waiting,
            attempts: 0,
            uncertain: 0,
            next_attempt_at: now,
            settled_at: None,
            last_error: None,
        };
        let key = (incident.tenant.clone(), incident.id.clone());
        if kind != Kind::Resolved {
            self.believers.entry(key.clone()).or_default().insert(receiver.to_owned());
        }
        let supersedes = self.supersede(&key, receiver, kind);
        self.wait(&message);
        Decision { row, message: Some(message), supersedes, withheld: Withheld::Nothing }
    }

    /// Keeps what is held back from a receiver, or forgets what was.
    fn withhold(&mut self, key: &IncidentKey, receiver: &str, kind: Kind, by: Option<String>) -> Withheld {
        let held = by.map(|by| Held { kind, by });
        let row = held.as_ref().map(|it| WithheldRow {
            tenant: key.0.clone(),
            incident: key.1.clone(),
            receiver: receiver.to_owned(),
            kind: it.kind.as_str().into(),
            held_by: it.by.clone(),
        });
        let was = self.withheld.set(key, receiver, held);
        match row {
            Some(row) => Withheld::Put(row),
            None if was => Withheld::Gone,
            None => Withheld::Nothing,
        }
    }

    /// Takes out what a message of `kind` says as well. The store keeps those that may have been heard.
    fn supersede(&mut self, key: &IncidentKey, receiver: &str, kind: Kind) -> Vec<String> {
        let Some(waiting) = self.waiting.get_mut(key) else { return Vec::new() };
        let gone = waiting.extract_if(.., |(of, it)| of == receiver && (it.is_update || kind == Kind::Resolved));
        gone.map(|(_, it)| it.id).collect()
    }

    fn wait(&mut self, row: &OutboxRow) {
        let waiting = Waiting { id: row.id.clone(), is_update: row.kind == Kind::Updated.as_str() };
        let key = (row.tenant.clone(), row.incident.clone());
        self.waiting.entry(key).or_default().push((row.receiver.clone(), waiting));
    }

    /// `msg_` and a ULID that is greater than every one before it.
    fn next_id(&mut self, incident: &IncidentRow, receiver: &str, now: Timestamp) -> String {
        let mut hash = Sha256::new();
        hash.update(incident.fingerprint.as_bytes());
        hash.update(incident.id.as_bytes());
        hash.update(incident.state_epoch.to_be_bytes());
        hash.update(receiver.as_bytes());
        let mut random = [0; 16];
        random.copy_from_slice(&hash.finalize()[..16]);
        let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
        let wished = Ulid::from_parts(millis, u128::from_be_bytes(random));
        let least = self.last_id.increment().unwrap_or(self.last_id);
        self.last_id = wished.max(least);
        format!("msg_{}", self.last_id)
    }
}

/// How an incident leads to a receiver.
#[derive(Debug, Clone, Copy)]
enum Way<'a> {
    /// There are no routes: it leads to everybody.
    All,
    /// By the route that stands there.
    By(&'a str),
    /// By none.
    None,
}

/// What one receiver hears of a change: what kind of message, and why, or why none. `held` is what was held back from it.
fn judge(
    change: &IncidentChange,
    receiver: &Receiver,
    believes: bool,
    held: Option<Kind>,
    way: Way<'_>,
) -> (Kind, Result<String, String>) {
    let incident = &change.incident;
    let kind = match change.kind {
        ChangeKind::Resolved => {
            let verdict = if believes { Ok(change.reason.clone()) } else { Err("was not told that it fires".into()) };
            return (Kind::Resolved, verdict);
        }
        // A first telling is that it fires, whatever happened before in silence.
        _ if !believes => Kind::Firing,
        ChangeKind::Opened | ChangeKind::Reopened => Kind::Firing,
        ChangeKind::Worsened => Kind::Worsened,
        ChangeKind::Eased => Kind::Eased,
        ChangeKind::Updated | ChangeKind::Refreshed | ChangeKind::Reconsidered => Kind::Updated,
    };
    // What it missed is told with what it hears next, unless that took it back.
    let kind = held.filter(|_| kind != Kind::Eased).map_or(kind, |held| kind.graver(held));
    let silent = if matches!(way, Way::None) {
        Some("no route leads there".to_owned())
    } else if change.kind == ChangeKind::Eased && (believes || held.is_none()) {
        Some(format!("nobody is told that a fault eased ({})", change.reason))
    } else if is_about(incident, &receiver.name) {
        Some("it is about this receiver itself, which would hear of it once it is over".to_owned())
    } else {
        receiver.does_not_want(&incident.check, incident.severity)
    };
    let told = || match way {
        Way::By(at) => format!("{}, by {at}", change.reason),
        Way::All | Way::None => change.reason.clone(),
    };
    (kind, silent.map_or_else(|| Ok(told()), Err))
}

#[cfg(test)]
mod tests;
