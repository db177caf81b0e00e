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
//! While a silence holds, another incident fires that explains it, or somebody has acknowledged it, nobody hears of an incident, but
//! that it is over. What was held back is kept; when what held it is gone, the incident is decided anew, and what a receiver missed is told if it
//! is still true.
//!
//! Where a route groups, what is decided waits for the next message of its group (`group`), and is looked at once more before it is
//! told: what is over, or held back by now, is not told. The end of an incident goes to the group that was told of it.
//!
//! That a receiver is away is told to all others, and never to itself: it would hear of it when it is not true any more. What it gets
//! late says when it was decided.

mod acknowledgement;
mod by_receiver;
mod canary;
mod dependency;
mod escalation;
mod explanation;
mod flush;
mod foresight;
mod group;
mod heard;
mod hold;
mod inhibition;
mod message;
mod route;
mod silence;
mod strays;
mod verdict;
mod window;
mod withheld;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tickbird_shared::{Severity, Status, Timestamp};
use ulid::Ulid;

use crate::aggregate::{CANARY, CanarySettings, ChangeKind, Flapping, IncidentChange, is_own};
use crate::store::{
    AcknowledgementRow, AgentRow, DecisionRow, DependencyRow, GroupRow, IncidentRow, LevelsRow, OutboxRow, WithheldRow,
};

pub use crate::aggregate::{Matcher, MatcherError};
pub use acknowledgement::{AcknowledgementDocument, AcknowledgementError, Ask};
pub use dependency::{Declared, Dependencies};
pub use escalation::Step;
pub use explanation::{Entry, Explanation};
pub use flush::{Flush, Found, Sought};
pub use foresight::{Foreseen, given};
pub use group::{By, Grouping};
pub use inhibition::Inhibition;
pub(crate) use message::object;
pub use message::{
    AgentDocument, Form, Head, IncidentDocument, Known, Letter, METHODS, Template, TemplateError, Words, refresh,
    requests_of, sample,
};
pub use route::{Facts, Route, facts};
pub use silence::{Silence, SilenceDocument, SilenceError};
pub use window::{Span, Window, day, minutes, month, range, weekday};

pub use withheld::Lapse;

use by_receiver::ByReceiver;
use dependency::Graph;
use escalation::Escalations;
use group::Groups;
use heard::Heard;
use inhibition::Sources;
use strays::NEWLY_LED;
use verdict::{Kind, Way, judge};
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
    /// What it understands.
    pub form: Form,
}

impl Receiver {
    /// A receiver with the defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            min_severity: Severity::Warning,
            skip_checks: vec!["agent.blind".into()],
            form: Form::Own,
        }
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
    /// When what returns again and again is told once.
    pub flapping: Flapping,
    /// What of a server explains what of its clients.
    pub dependencies: Dependencies,
    /// Who waits for canaries.
    pub canary: Option<CanarySettings>,
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

    /// How an incident of these facts leads to a receiver, and what mutes that. Of several ways one that speaks is enough; else the first
    /// is named.
    fn way(&self, receiver: &str, facts: &Facts, now: Timestamp) -> (Way<'_>, Option<(String, String)>) {
        let Some(route) = &self.route else { return (Way::All, None) };
        let ways: Vec<_> = route.lead(facts).into_iter().filter(|it| it.receiver == receiver).collect();
        let speaks = ways.iter().find(|it| self.is_mute(it, now).is_none());
        let Some(way) = speaks.or(ways.first()) else { return (Way::None, None) };
        (Way::By(way), self.is_mute(way, now).map(|why| (format!("{MUTE}{}", way.at), why)))
    }

    /// Whether that is still what holds an incident of these facts back from a receiver: a route that leads there, or the thread of an
    /// escalation where none does.
    fn is_muted_by(&self, receiver: &str, facts: &Facts, by: &str, now: Timestamp) -> bool {
        match self.way(receiver, facts, now) {
            (Way::By(_), mute) => mute.is_some_and(|it| it.0 == by),
            (Way::None, _) => by.strip_prefix(MUTE).is_some_and(|at| self.is_mute_at(at, now).is_some()),
            (Way::All, _) => false,
        }
    }

    /// Why the route that stands there is mute; one that stands nowhere is not.
    fn is_mute_at(&self, at: &str, now: Timestamp) -> Option<String> {
        let all = self.route.as_ref().map(Route::all).unwrap_or_default();
        all.into_iter().find(|it| it.at == at).and_then(|it| self.is_mute(it, now))
    }
}

impl From<Vec<Receiver>> for Policy {
    fn from(receivers: Vec<Receiver>) -> Self {
        Self {
            receivers,
            route: None,
            inhibitions: Vec::new(),
            windows: Vec::new(),
            flapping: Flapping::NEVER,
            dependencies: Dependencies::NONE,
            canary: None,
        }
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
    /// The group whose next message this is the first to wait for.
    pub group: Option<GroupRow>,
    /// Why what was decided before does not wait for its group any more, if something did.
    pub ungathers: Option<String>,
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

/// A message that waits, as far as superseding it goes.
#[derive(Debug)]
struct Waiting {
    id: String,
    is_update: bool,
}

type IncidentKey = (String, String);

/// What a decision is called that tells nobody: what flaps went away for now, or is back.
const FLAPPED: &str = "incident.flapped";

/// Which receivers believe what.
#[derive(Debug, Default)]
pub struct State {
    /// Per incident the receivers that were told that it fires, and not yet that it is over; each with the group it was told with.
    believers: HashMap<IncidentKey, ByReceiver<Option<Arc<str>>>>,
    waiting: HashMap<IncidentKey, Vec<(String, Waiting)>>,
    /// By what they know it, where the receiver has a say in that.
    heard: Heard,
    /// Those whose end was not noticed yet.
    silences: Vec<Silence>,
    /// Per incident and receiver what they would have been told.
    withheld: Holdings,
    /// What fires and explains others.
    sources: Sources,
    /// Who depends on which server, and which of them are down.
    graph: Graph,
    /// Incidents that are somebody's, and whose end was not noticed yet.
    acknowledgements: HashMap<IncidentKey, AcknowledgementRow>,
    /// How long what was told is nobody's.
    escalations: Escalations,
    /// What waits to be told together, and what was.
    groups: Groups,
    /// Incidents of servers that the message which is written now tells.
    telling: HashSet<String>,
    /// When something that explained others was last gone.
    let_go_at: Option<Timestamp>,
    /// Where the routes stand that were mute when this was last looked at.
    mute: BTreeSet<String>,
    /// More fell due than is looked at in one turn.
    is_behind: bool,
    last_id: Ulid,
}

impl State {
    /// The state as stored: `told` holds the newest decision that told something, per incident and receiver.
    pub fn load(told: Vec<DecisionRow>, waiting: Vec<OutboxRow>) -> Self {
        let mut state = Self::default();
        // Ids order what waits, also when the clock has stepped back meanwhile.
        let ids = told.iter().filter_map(|row| row.message.as_deref()).chain(waiting.iter().map(|row| row.id.as_str()));
        state.last_id = ids.filter_map(ulid_of).max().unwrap_or_default();
        for row in told.into_iter().filter(|row| row.told && row.kind != Kind::Resolved.as_str()) {
            state
                .believers
                .entry((row.tenant, row.incident))
                .or_default()
                .insert(&row.receiver, row.in_group.map(Into::into));
        }
        // Who waits for a canary is owed nothing when it does not come.
        for row in waiting.into_iter().filter(|row| row.kind != CANARY) {
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
            let held = Held { kind, by: row.held_by };
            self.withheld.set(&(row.tenant, row.incident), &row.receiver, Some(held));
        }
        self
    }

    /// The same with ids that go on after the newest message that is stored: one that only told again what was known has no decision.
    #[must_use]
    pub fn after(mut self, newest: Option<&str>) -> Self {
        self.last_id = newest.and_then(ulid_of).into_iter().chain([self.last_id]).max().unwrap_or_default();
        self
    }

    /// The same with the groups and what waits in them, as stored.
    #[must_use]
    pub fn with_groups<'a>(
        mut self,
        rows: Vec<GroupRow>,
        gathered: &[DecisionRow],
        incidents: impl Iterator<Item = &'a IncidentRow>,
        policy: &Policy,
        now: Timestamp,
    ) -> Self {
        let ids = rows.iter().filter_map(|row| row.message.as_deref()).filter_map(ulid_of);
        self.last_id = ids.chain([self.last_id]).max().unwrap_or_default();
        for row in gathered.iter().filter(|row| row.kind == Kind::Resolved.as_str()) {
            // Only who was told that it fires waits for this.
            let them = self.believers.entry((row.tenant.clone(), row.incident.clone())).or_default();
            if them.get(&row.receiver).is_none() {
                them.insert(&row.receiver, row.in_group.as_deref().map(Into::into));
            }
        }
        let told: Vec<_> = self
            .believers
            .iter()
            .flat_map(|(key, them)| them.values().flatten().map(|group| (key.clone(), group.clone())))
            .collect();
        let fingerprints = if rows.is_empty() && gathered.is_empty() {
            HashMap::new()
        } else {
            incidents.map(|it| ((it.tenant.clone(), it.id.clone()), it.fingerprint)).collect()
        };
        self.groups = Groups::load(rows, gathered, &told, &fingerprints, policy.route.as_ref(), now);
        self
    }

    /// The same with what fires and explains others, as these rules say.
    #[must_use]
    pub fn with_sources<'a>(
        mut self,
        incidents: impl Iterator<Item = (&'a IncidentRow, Option<&'a AgentRow>)>,
        policy: &Policy,
    ) -> Self {
        for (incident, agent) in incidents.filter(|(it, _)| it.status == Status::Firing && !it.is_calm()) {
            self.take_source(policy, incident, true, &facts(incident, agent));
        }
        self
    }

    /// The same with what agents said of who uses which server.
    #[must_use]
    pub fn with_dependencies<'a>(
        mut self,
        rows: Vec<DependencyRow>,
        agents: impl IntoIterator<Item = &'a AgentRow>,
    ) -> Self {
        self.graph = Graph::load(rows);
        agents.into_iter().for_each(|it| self.graph.know(it));
        self
    }

    /// Learns from an agent's description of its host what listens where.
    pub fn know(&mut self, agent: &AgentRow) {
        self.graph.know(agent);
    }

    /// Learns from levels who uses which server; the row when it is to be written.
    pub fn learn(&mut self, levels: &LevelsRow, now: Timestamp) -> Option<DependencyRow> {
        let row = self.graph.learn(&levels.tenant, &levels.agent, &levels.levels, now);
        for key in self.graph.take_renamed() {
            self.let_go_of(key, now);
        }
        row
    }

    /// Forgets what an agent said of who uses which server.
    pub fn forget(&mut self, tenant: &str, agent: &str) {
        self.graph.forget(tenant, agent);
    }

    /// Takes an incident as one that may explain others; true when it explained something that it does not any more.
    fn take_source(&mut self, policy: &Policy, incident: &IncidentRow, fires: bool, facts: &Facts) -> bool {
        let inhibited = self.sources.take(&policy.inhibitions, incident, fires, facts);
        if !policy.dependencies.concern(incident) {
            return inhibited;
        }
        self.graph.take(&policy.dependencies, incident, fires, facts) || inhibited
    }

    /// What an incident explained may clear with it, and is decided anew after a while if it does not.
    fn let_go_of(&mut self, key: IncidentKey, now: Timestamp) {
        let reason = format!("what held it back does not any more ({})", key.1);
        let due = now.saturating_add(GRACE).unwrap_or(Timestamp::MAX);
        self.withheld.release(key, false, reason, due);
        self.let_go_at = Some(now);
    }

    /// Of how many incidents each receiver was told that they fire, and not yet that they are over, or waits to be told so.
    pub fn owed(&self) -> BTreeMap<String, usize> {
        let mut owed: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        let believers = self.believers.iter().flat_map(|((_, id), them)| them.names().map(move |it| (it, id)));
        let waiting = self.waiting.iter().flat_map(|((_, id), them)| them.iter().map(move |(it, _)| (it.as_str(), id)));
        for (receiver, id) in believers.chain(waiting) {
            owed.entry(receiver.to_owned()).or_default().insert(id);
        }
        owed.into_iter().map(|(receiver, ids)| (receiver, ids.len())).collect()
    }

    /// How many messages wait for each receiver.
    pub fn waiting(&self) -> BTreeMap<String, usize> {
        let mut waiting = BTreeMap::new();
        for (receiver, _) in self.waiting.values().flatten() {
            *waiting.entry(receiver.clone()).or_default() += 1;
        }
        waiting
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
        let routes = policy.route.as_ref().map(Route::all).unwrap_or_default();
        let mute = routes.iter().filter(|it| policy.is_mute(it, now).is_some()).map(|it| it.at.clone()).collect();
        let was_mute = std::mem::replace(&mut self.mute, mute);
        let begins: Vec<_> = was_mute.difference(&self.mute).collect();
        if !begins.is_empty() {
            self.groups.look_again();
        }
        // Another route may lead there, too: one that speaks is enough.
        let heard_by = |at: &str| routes.iter().find(|it| it.at == at).into_iter().flat_map(|it| it.hearers());
        let now_heard: BTreeSet<_> = begins.iter().flat_map(|it| heard_by(it)).collect();
        let speaks = |at: &&str| !self.mute.contains(*at) || heard_by(at).any(|it| now_heard.contains(it));
        let held = self.withheld.holders().filter(|it| it.1.strip_prefix(MUTE).is_some_and(|at| speaks(&at)));
        for key in held.cloned().collect::<Vec<_>>() {
            let at = key.1.trim_start_matches(MUTE);
            let at = begins.iter().find(|_| self.mute.contains(at)).map_or(at, |it| it.as_str());
            let reason = format!("a time interval is over, and {at} speaks");
            self.withheld.release(key, false, reason, now);
        }
        for silence in self.silences.extract_if(.., |it| it.is_over(now)) {
            self.groups.look_again();
            let row = silence.row();
            let reason = format!("the silence of {} has ended ({})", row.author, row.id);
            self.withheld.release((row.tenant.clone(), row.id.clone()), true, reason, now);
        }
        let lapses = self.withheld.due(now);
        self.is_behind |= lapses.iter().map(|it| it.incidents.len()).sum::<usize>() >= withheld::AT_ONCE;
        lapses
    }

    /// Whether more fell due, since this was asked last, than was looked at.
    pub fn take_behind(&mut self) -> bool {
        std::mem::take(&mut self.is_behind)
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
        match change.kind {
            ChangeKind::Acknowledged => return self.note(change, acknowledgement::KIND, policy, now),
            ChangeKind::Flapped => return self.flapped((change, agent), policy, now),
            ChangeKind::Escalated => return self.escalate((change, agent), policy, now),
            ChangeKind::Worsened | ChangeKind::Eased => self.escalations.look_again(&key, now),
            ChangeKind::Resolved => self.escalations.remove(&key),
            _ => (),
        }
        // Only routes, silences and inhibitions ask for them, and there is one change for each finding.
        let are_asked = policy.route.is_some()
            || !policy.inhibitions.is_empty()
            || !self.graph.is_quiet()
            || policy.dependencies.concern(&change.incident)
            || self.silences.iter().any(|it| it.holds(now));
        let facts = if are_asked { facts(&change.incident, agent) } else { Facts::new() };
        let fires = change.incident.status == Status::Firing && !change.incident.is_calm();
        if self.take_source(policy, &change.incident, fires, &facts) {
            self.let_go_of(key.clone(), now);
        }
        let holder = self.holder(policy, &change.incident, &facts, now);
        let receivers = &policy.receivers;
        let knew: Vec<_> = if self.graph.explains(&change.incident) {
            receivers.iter().filter(|it| self.knows(&it.name, &key)).collect()
        } else {
            Vec::new()
        };
        let mut decisions = Vec::with_capacity(receivers.len());
        for receiver in receivers {
            let told_in = self.believers.get(&key).and_then(|them| them.get(&receiver.name)).cloned();
            let held = self.withheld.get(&key, &receiver.name).map(|it| it.kind);
            if change.kind == ChangeKind::Reconsidered && held.is_none() {
                continue;
            }
            let gathered = self.groups.gathered(&key, &receiver.name);
            let held = held.or(gathered);
            let (way, mute) = policy.way(&receiver.name, &facts, now);
            // A step of an escalation needs no route, and says all when it is told, unless time counts anew.
            let is_step = gathered == Some(Kind::Escalated) && matches!(way, Way::None);
            if is_step && change.kind != ChangeKind::Resolved && self.escalations.has_told(&key, &receiver.name) {
                continue;
            }
            let (kind, mut verdict) = judge(change, receiver, told_in.is_some(), held, way);
            let mut by = None;
            let holder = self.hold_for(&receiver.name, holder.as_ref(), &key);
            let mute = mute.as_ref().map(|(at, why)| (at.as_str(), why.as_str()));
            if let Some((id, why)) = holder.or(mute).filter(|_| verdict.is_ok() && kind != Kind::Resolved) {
                verdict = Err(why.to_owned());
                by = Some(id.to_owned());
            }
            // While it fires, it is told as it was told first: two queues of one receiver have no order between them.
            let thread = told_in.clone().flatten().filter(|id| self.groups.has(&change.incident.tenant, id));
            let thread = thread.map(|it| it.to_string());
            let group = match (&verdict, way) {
                (Err(_), _) => None,
                // Whatever the routes say now, it ends where it was told.
                (Ok(_), _) if kind == Kind::Resolved || thread.is_some() => thread.clone(),
                (Ok(_), Way::By(route)) if told_in != Some(None) => {
                    route.grouping.as_ref().map(|it| self.groups.of(route, it, &change.incident, &facts))
                }
                (Ok(_), _) => None,
            };
            // News in the thread of another route waits no longer than its own route lets it; that nothing can be stored, for nothing.
            let of_own = |it: &&Route| {
                let id = it.grouping.as_ref().map(|grouping| Groups::id_of(it, grouping, &change.incident, &facts));
                id.is_some() && id == thread
            };
            let latest = match way {
                _ if is_own(&change.incident) => Some(now),
                _ if kind == Kind::Resolved || thread.is_none() => None,
                Way::By(route) if of_own(&route) => None,
                Way::By(Route { grouping: Some(it), .. }) => now.saturating_add(it.wait).ok(),
                Way::By(_) | Way::All | Way::None => Some(now),
            };
            let ungathers = self.groups.leave(&key, &receiver.name, group.as_deref()).then(|| match &verdict {
                Err(_) if kind == Kind::Resolved => "it was over before its group was told".into(),
                Err(why) => why.clone(),
                Ok(_) => "it is told another way".into(),
            });
            // A step that waited here, also with other news, was not told.
            let was_step = gathered == Some(Kind::Escalated) && told_in.is_some();
            let is_untold = ungathers.is_some() && verdict.is_err() && (was_step || by.is_none() && told_in.is_none());
            if is_untold && kind != Kind::Resolved && self.escalations.has_told(&key, &receiver.name) {
                self.escalations.hold_back(&key, &receiver.name, now);
            }
            let mut decision = self.write_down((change, agent), receiver, kind, verdict, (group, latest), now);
            decision.withheld = self.withhold(&key, &receiver.name, kind, by);
            decision.ungathers = ungathers;
            // Who was not told of the end yet goes on believing, though it may hear nothing of the return.
            let goes_on = change.kind == ChangeKind::Reopened && told_in.is_some();
            if (decision.row.told && kind != Kind::Resolved) || goes_on {
                self.was_told(&key, &receiver.name, policy, &facts, now);
            }
            decisions.push(decision);
        }
        if receivers.is_empty() {
            let (nobody, why) = (Receiver::new(""), "there is no receiver in the configuration");
            let kind = judge(change, &nobody, false, None, Way::All).0;
            decisions.push(self.write_down((change, agent), &nobody, kind, Err(why.into()), (None, None), now));
        }
        // Who knows no more of a server is spared nothing of its clients.
        if knew.iter().any(|it| !self.knows(&it.name, &key)) {
            self.let_go_of(key.clone(), now);
        }
        if change.kind == ChangeKind::Resolved {
            // Of receivers that are not configured any more.
            self.withheld.remove(&key);
            for (receiver, group) in self.believers.remove(&key).unwrap_or_default() {
                if self.groups.gathered(&key, &receiver) == Some(Kind::Resolved) {
                    // It is told with its group.
                    self.believers.entry(key.clone()).or_default().insert(&receiver, group);
                    continue;
                }
                if let Some(group) = group {
                    self.groups.forget(&key, &group);
                }
                if receivers.iter().all(|it| *it.name != *receiver) {
                    let verdict = Err("the receiver is not configured any more".into());
                    let gone = Receiver::new(String::from(receiver));
                    decisions.push(self.write_down((change, agent), &gone, Kind::Resolved, verdict, (None, None), now));
                }
            }
            self.hear_no_more(&key);
        }
        decisions
    }

    /// A receiver was told that an incident fires, by itself or with a group.
    fn believe(&mut self, key: &IncidentKey, receiver: &str, group: Option<Arc<str>>) {
        let before = self.believers.entry(key.clone()).or_default().insert(receiver, group.clone());
        if let Some(before) = before.flatten()
            && Some(&before) != group.as_ref()
        {
            self.groups.forget(key, &before);
        }
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

    /// What flaps went away for now, or is back: while it is away it explains nothing. Who was told of it knows that it flaps.
    fn flapped(
        &mut self,
        (change, agent): (&IncidentChange, Option<&AgentRow>),
        policy: &Policy,
        now: Timestamp,
    ) -> Vec<Decision> {
        let facts = facts(&change.incident, agent);
        if (!policy.inhibitions.is_empty() || policy.dependencies.concern(&change.incident))
            && self.take_source(policy, &change.incident, !change.incident.is_calm(), &facts)
        {
            self.let_go_of((change.incident.tenant.clone(), change.incident.id.clone()), now);
        }
        let key = (change.incident.tenant.clone(), change.incident.id.clone());
        if !change.incident.is_calm() && self.withheld.has(&key) {
            self.withheld.release_one(&key, "it is back".into(), now);
        }
        if !change.incident.is_calm() {
            // Others than before may hear of it as it is now.
            self.look_who_missed(&change.incident, &facts, policy, (now, now));
        }
        self.note(change, FLAPPED, policy, now)
    }

    /// Writes down for everybody who was told of an incident what happened that they are not told of.
    fn note(&self, change: &IncidentChange, kind: &str, policy: &Policy, now: Timestamp) -> Vec<Decision> {
        let incident = &change.incident;
        let key = (incident.tenant.clone(), incident.id.clone());
        let believers = self.believers.get(&key);
        let hears = |name: &String| believers.is_some_and(|them| them.get(name).is_some());
        let of = |receiver: &String| Decision {
            row: DecisionRow {
                tenant: incident.tenant.clone(),
                incident: incident.id.clone(),
                receiver: receiver.clone(),
                state_epoch: incident.state_epoch,
                told: false,
                kind: kind.into(),
                reason: change.reason.clone(),
                decided_at: now,
                message: None,
                in_group: None,
            },
            message: None,
            supersedes: Vec::new(),
            withheld: Withheld::Nothing,
            group: None,
            ungathers: None,
        };
        policy.receivers.iter().map(|it| &it.name).filter(|it| hears(it)).map(of).collect()
    }

    fn write_down(
        &mut self,
        (change, agent): (&IncidentChange, Option<&AgentRow>),
        to: &Receiver,
        kind: Kind,
        verdict: Result<String, String>,
        (group, latest): (Option<String>, Option<Timestamp>),
        now: Timestamp,
    ) -> Decision {
        let (incident, receiver) = (&change.incident, to.name.as_str());
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
            in_group: None,
        };
        let alone = |row| Decision {
            row,
            message: None,
            supersedes: Vec::new(),
            withheld: Withheld::Nothing,
            group: None,
            ungathers: None,
        };
        let reason = match verdict {
            Ok(reason) => reason,
            Err(reason) => {
                row.reason = reason;
                return alone(row);
            }
        };
        let epoch = incident.state_epoch.to_be_bytes();
        let parts = [incident.fingerprint.as_bytes(), incident.id.as_bytes(), &epoch, receiver.as_bytes()];
        let (groups, last_id) = (&mut self.groups, &mut self.last_id);
        let gathered = group.and_then(|id| {
            let next_id = || next_id(last_id, &parts, now);
            let (message, changed) = groups.gather(incident, &id, (kind, latest), next_id, now)?;
            Some((id, message, changed))
        });
        if let Some((id, message, changed)) = gathered {
            (row.told, row.reason, row.message, row.in_group) = (false, reason, Some(message), Some(id));
            return Decision { group: changed, ..alone(row) };
        }
        let id = next_id(&mut self.last_id, &parts, now);
        let key = (incident.tenant.clone(), incident.id.clone());
        let known = self.heard.get(&key, receiver);
        let told = message::Told {
            id: &id,
            kind: kind.as_str(),
            receiver,
            reason: &reason,
            incident,
            agent,
            acknowledged: self.acknowledgements.get(&key),
            known: known.as_ref(),
            decided_at: now,
        };
        let body = told.render(&to.form);
        self.hears((&key, receiver, &to.form), kind, (incident, agent));
        row.reason = reason;
        row.message = Some(id.clone());
        let thread = incident.id.clone();
        let message =
            OutboxRow::queued(&incident.tenant, id, receiver, thread, (kind.as_str(), to.form.kind(), body), now);
        if kind != Kind::Resolved {
            self.believe(&key, receiver, None);
        }
        let supersedes = self.supersede(&key, receiver, kind);
        self.wait(&message);
        Decision { message: Some(message), supersedes, ..alone(row) }
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
        // What waits for the next turn only is not stored.
        let was_stored = self.withheld.get(key, receiver).is_some_and(|it| it.by != NEWLY_LED);
        self.withheld.set(key, receiver, held);
        match row {
            Some(row) => Withheld::Put(row),
            None if was_stored => Withheld::Gone,
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
        let updates = [Kind::Updated.as_str(), Kind::Repeated.as_str(), message::REPEATED];
        let is_update = updates.contains(&row.kind.as_str());
        let waiting = Waiting { id: row.id.clone(), is_update };
        let key = (row.tenant.clone(), row.incident.clone());
        self.waiting.entry(key).or_default().push((row.receiver.clone(), waiting));
    }
}

/// `msg_` and a ULID that is greater than every one before it.
fn next_id(last: &mut Ulid, parts: &[&[u8]], now: Timestamp) -> String {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let mut random = [0; 16];
    random.copy_from_slice(&hash.finalize()[..16]);
    let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
    let wished = Ulid::from_parts(millis, u128::from_be_bytes(random));
    let least = last.increment().unwrap_or(*last);
    *last = wished.max(least);
    format!("msg_{last}")
}

/// What orders a message among others.
fn ulid_of(message: &str) -> Option<Ulid> {
    Ulid::from_string(message.strip_prefix("msg_")?).ok()
}

#[cfg(test)]
mod tests;
