//! Findings of many agents in, incident changes out. Pure: what is heard and when is all it knows.
//!
//! One incident per fingerprint (`incident`); presence of agents (`presence`); canaries (`canary`); and the incidents that the collector
//! raises itself, about agents and about its own parts (`own`, `parts`, `strain`) and about many agents together (`fleet`). An agent's list of what fires resolves what is
//! missing from it, so that no lost message leaves an incident open for ever; what another life of its buffer said, only
//! when that life is over (`lives`).

mod agent;
mod canary;
mod event;
mod excess;
mod flap;
mod fleet;
mod incident;
mod lives;
mod matcher;
mod own;
mod parts;
mod presence;
mod priority;
mod strain;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tickbird_shared::batch::Open;
use tickbird_shared::protocol::{CANARY_CHECK, MAX_FIRING};
use tickbird_shared::{Epoch, Fingerprint, Lane, Severity, Status, Timestamp};
use ulid::Ulid;

use crate::pki::life::Kept;
use crate::store::{AgentRow, FindingRow, IncidentRow, LevelsRow, MessageState, OutboxRow, UseRow};

pub use canary::{CANARY, CanarySeen, CanarySettings, Flown};
pub use event::Event;
pub use flap::{Flapping, MOST_RETURNS};
pub use fleet::{
    Aggregate, Bounds, Given, MAX_BY, MAX_RULES, Measure, PoolSum, RULE_HOLD, Range, Rule, Share, Side, Span, Trial,
    Used, of_rows,
};
pub(crate) use fleet::{identity, place};
pub use incident::{ChangeKind, IncidentChange};
pub use matcher::{Matcher, MatcherError};
pub use presence::Presence;
pub use priority::{Impact, Priority, Probability};
pub use strain::{Backlog, Disk, Judged, Look, Queue, Reach, Settings, Strain, Strains, Verdict};

use agent::Agent;
use canary::Canaries;
use fleet::{Fleet, Outcome};
use incident::{Heard, Incident, RECURRENCE, Sight, UPDATE_EVERY, elapsed, later};
use lives::Word;
use presence::Listening;

/// Incidents of one agent that are remembered. One that fires and ends a hundred times a second, each time as another
/// fingerprint, would fill the memory of all.
const REMEMBERED: usize = 2 * MAX_FIRING;
/// Silence after which an ephemeral agent is forgotten.
const EPHEMERAL: Duration = Duration::from_secs(3600);
/// and while it was listened so long: one that comes back after a downtime of the collector had room to say so.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// After a start or a pause, the time in which agents say what happened while nobody listened.
const SETTLED: Duration = Duration::from_secs(60);
/// Why what fires at a denied agent ends.
const DENIED: &str = "an operator denied the agent";
/// Why an open list ends an incident.
const MISSING_IN_LIST: &str = "it is missing from the agent's list of what fires";

type Key = (String, String);
/// What fires of an agent from which nothing is heard any more, and why it ends.
type Orphan = (Fingerprint, &'static str, &'static str);

/// All incidents that fire or may still return, and the presence of all agents.
#[derive(Debug)]
pub struct State {
    agents: HashMap<Key, Agent>,
    /// In boxes: the table itself grows by doubling.
    incidents: HashMap<Fingerprint, Box<Incident>>,
    /// Updates that wait for their time.
    held: BTreeSet<(Timestamp, Fingerprint)>,
    /// Resolved incidents and when they can no longer return.
    ended: BTreeSet<(Timestamp, Fingerprint)>,
    /// Those that flap.
    flapping: BTreeSet<Fingerprint>,
    /// When something flaps.
    flaps: Flapping,
    /// What fires of agents that are denied or no longer known; ended at the first tick.
    orphans: Vec<Orphan>,
    /// Receivers of which it was told that they are away, and not yet that they are back.
    away: BTreeSet<String>,
    canaries: Canaries,
    fleet: Fleet,
    listening: Listening,
    last_id: Ulid,
}

impl State {
    /// The state as stored. Agents get the time of a full silence, from here on, to be heard again.
    pub fn load(agents: Vec<AgentRow>, incidents: Vec<IncidentRow>, started_at: Timestamp) -> Self {
        let mut state = Self {
            agents: agents.iter().map(|row| (key(&row.tenant, &row.id), Agent::stored(row))).collect(),
            incidents: HashMap::new(),
            held: BTreeSet::new(),
            ended: BTreeSet::new(),
            flapping: BTreeSet::new(),
            flaps: Flapping::NEVER,
            orphans: Vec::new(),
            away: BTreeSet::new(),
            canaries: Canaries::default(),
            fleet: Fleet::default(),
            listening: Listening::default(),
            // So that ids go on upwards, also when the clock has stepped back meanwhile.
            last_id: incidents.iter().filter_map(|row| Ulid::from_string(&row.id).ok()).max().unwrap_or_default(),
        };
        state.listening.tick(started_at);
        for row in incidents {
            if row.resolved_at.is_some_and(|at| elapsed(at, started_at) > RECURRENCE) {
                continue;
            }
            // Of two of one fingerprint the newer one is what a return belongs to.
            if state.incidents.get(&row.fingerprint).is_some_and(|it| it.row().id > row.id) {
                continue;
            }
            let fingerprint = row.fingerprint;
            if row.status == Status::Firing {
                state.away.extend(own::receiver_of(&row.check, &row.target).map(str::to_owned));
                match state.agents.get_mut(&key(&row.tenant, &row.agent)) {
                    // While nobody served.
                    Some(agent) if agent.denied => state.orphans.push((fingerprint, "agent denied", DENIED)),
                    Some(agent) if row.check == own::MISSING && !row.is_calm() => agent.voice.still_missing(),
                    Some(agent) if row.check == canary::MISSING => agent.bird.still_missed(),
                    Some(_) => (),
                    None if [own::COLLECTOR, fleet::FLEET].contains(&row.agent.as_str()) => (),
                    None => state.orphans.push((fingerprint, "agent forgotten", "its agent is not known")),
                }
            }
            state.remember(fingerprint, Incident::loaded(row));
            state.schedule(fingerprint);
        }
        state
    }

    /// The same with what was stored of the fleet.
    #[must_use]
    pub fn with_fleet(mut self, levels: Vec<LevelsRow>, used: Vec<UseRow>) -> Self {
        let of_fleet = |it: &&IncidentRow| it.status == Status::Firing && it.agent == fleet::FLEET;
        let firing = self.incidents.values().map(|it| it.row()).filter(of_fleet);
        // It may have been denied while nobody served.
        let counts = |it: &LevelsRow| self.agents.get(&key(&it.tenant, &it.agent)).is_some_and(|it| !it.denied);
        self.fleet = Fleet::load(levels.into_iter().filter(counts), used, firing);
        self
    }

    /// The same where incidents flap as these settings say; without them none does.
    #[must_use]
    pub const fn with_flapping(mut self, flaps: Flapping) -> Self {
        self.flaps = flaps;
        self
    }

    /// The same going by rules that operators wrote. What fires of rules that are no more ends at the first tick.
    #[must_use]
    pub fn with_rules(mut self, rules: &[Rule], agents: &[AgentRow]) -> Self {
        let of_fleet = |it: &&IncidentRow| it.status == Status::Firing && it.agent == fleet::FLEET;
        let firing = self.incidents.values().map(|it| it.row()).filter(of_fleet);
        let orphans = self.fleet.follow(rules, agents, firing);
        // A rule that was taken out and is back before anybody looked.
        self.orphans.retain(|(_, why, _)| !why.starts_with("rule "));
        self.orphans.extend(orphans);
        self
    }

    /// The same where canaries go to this receiver: what was told of another one is nobody's any more.
    #[must_use]
    pub fn with_canary(mut self, settings: Option<&CanarySettings>) -> Self {
        let target = settings.map(|it| canary::receiver_target(&it.receiver));
        let is_of_another = |row: &IncidentRow| row.check == canary::LATE && Some(&row.target) != target.as_ref();
        let firing = self.incidents.values().map(|it| it.row()).filter(|it| it.status == Status::Firing);
        let orphan = |row: &IncidentRow| (row.fingerprint, "receiver changed", "canaries go to another receiver");
        let orphans: Vec<_> = firing.filter(|it| is_of_another(it)).map(orphan).collect();
        self.orphans.extend(orphans);
        self
    }

    /// The same by other settings. What was seen so far counts on, of each rule that is what it was, and of canaries if they go where they went.
    #[must_use]
    pub fn reloaded(
        mut self,
        flaps: Flapping,
        (before, canary): (Option<&CanarySettings>, Option<&CanarySettings>),
        rules: &[Rule],
        agents: &[AgentRow],
    ) -> Self {
        if before == canary {
            self.canaries.forget_messages();
        } else {
            self.canaries = Canaries::default();
            self.agents.values_mut().for_each(|it| it.bird.forget_latency());
        }
        self.with_flapping(flaps).with_canary(canary).with_rules(rules, agents)
    }

    /// Takes the levels of an agent and says when they were true; false when newer ones are known.
    pub fn levels(&mut self, row: &mut LevelsRow, now: Timestamp) -> bool {
        row.seen_at = self.sight(&key(&row.tenant, &row.agent), row.levels.observed_at, now).at;
        self.fleet.hear(row, self.listening.total())
    }

    /// Whether a life of an agent's buffer told this before another life of it told its levels: it is history of a buffer that was
    /// found again.
    pub fn is_history(
        &self,
        (tenant, agent): (&str, &str),
        epoch: &Epoch,
        observed_at: Timestamp,
        now: Timestamp,
    ) -> bool {
        let key = key(tenant, agent);
        self.fleet.is_history(&key, epoch, self.sight(&key, observed_at, now).at)
    }

    /// Each application's part of each server of a tenant.
    pub fn fleet_pools(&self, tenant: &str) -> Vec<PoolSum> {
        self.fleet.pools(tenant)
    }

    /// What changed in the daily use of pools since it was asked last.
    pub fn take_unsaved_use(&mut self) -> Vec<UseRow> {
        self.fleet.take_unsaved_use()
    }

    /// Takes an event and says what it changes, in order.
    pub fn apply(&mut self, event: Event<'_>, now: Timestamp) -> Vec<IncidentChange> {
        match event {
            Event::Finding(finding) if finding.check == CANARY_CHECK => self.canary(finding, now),
            Event::Finding(finding) => self.finding(finding, now),
            Event::Open { tenant, agent, open } => self.open(&key(tenant, agent), open, now),
            Event::Enrolled(row) | Event::Inventory(row) => {
                self.describe(row);
                Vec::new()
            }
            Event::Heard { tenant, agent, epoch, sent_at, goodbye, is_volatile } => {
                self.heard(&key(tenant, agent), Word { epoch, sent_at, goodbye, is_volatile }, now)
            }
            Event::ClonedIdentity { tenant, agent, lane, first } => {
                let host = self.host(tenant, agent);
                self.raise(own::cloned_identity(&key(tenant, agent), &host, lane, first, now), now)
            }
            Event::Excess { tenant, agent, limit, times } => {
                let key = key(tenant, agent);
                let Some(agent) = self.agents.get_mut(&key).filter(|it| !it.denied) else { return Vec::new() };
                let told = agent.excess.add(limit, times, now);
                let finding = told.map(|(limits, since)| own::excess(&key, &agent.host, limits, since, now));
                finding.map_or_else(Vec::new, |finding| self.raise(finding, now))
            }
            Event::Loss(loss) if loss.lane == Lane::Urgent => {
                let host = self.host(&loss.tenant, &loss.agent);
                self.raise(own::loss(loss, &host, now), now)
            }
            Event::Loss(_) => Vec::new(),
            Event::Denied { tenant, agent } => {
                let key = key(tenant, agent);
                self.fleet.forget(&key);
                if let Some(agent) = self.agents.get_mut(&key) {
                    agent.denied = true;
                    agent.voice.ignore();
                }
                self.end_all(&key, "agent denied", DENIED, now)
            }
            Event::Forgotten { tenant, agent } => {
                let key = key(tenant, agent);
                let changes = self.end_all(&key, "agent forgotten", "nothing is expected of it any more", now);
                self.agents.remove(&key);
                self.fleet.forget(&key);
                changes
            }
            Event::Message(message) => self.message(message, now),
            Event::Certificates(kept) => self.certificates(kept, now),
            Event::Store { condition, disk } => self.store(condition, disk, now),
            Event::Strain(strain) => self.strain(strain, now),
            Event::Tick => self.tick(now),
        }
    }

    /// Gives those that fire of some incidents a new state epoch. `why` says of a tenant and an id whether it is one, and the reason.
    pub fn reconsider<'a>(&mut self, why: impl Fn(&str, &str) -> Option<(ChangeKind, &'a str)>) -> Vec<IncidentChange> {
        let firing = self.incidents.values_mut().filter(|it| it.is_firing());
        let change = |it: &mut Box<Incident>| {
            let (kind, reason) = why(&it.row().tenant, &it.row().id)?;
            Some(it.reconsider(kind, reason))
        };
        firing.filter_map(change).collect()
    }

    /// The incident of a fingerprint that fires or may still return.
    pub fn incident(&self, fingerprint: Fingerprint) -> Option<&IncidentRow> {
        self.incidents.get(&fingerprint).map(|it| it.row())
    }

    /// What fires at an agent.
    pub fn firing_of(&self, tenant: &str, agent: &str) -> impl Iterator<Item = &IncidentRow> {
        let found = self.agents.get(&key(tenant, agent));
        let incidents = &self.incidents;
        found.into_iter().flat_map(|it| &it.firing).filter_map(|it| incidents.get(it).map(|it| it.row()))
    }

    /// Whether an agent has been heard from lately.
    pub fn presence(&self, tenant: &str, agent: &str) -> Presence {
        self.agents.get(&key(tenant, agent)).map_or(Presence::Unknown, |agent| agent.voice.presence())
    }

    /// Ephemeral agents that have been silent for an hour, ten minutes of which were listened; feed each back as [`Event::Forgotten`].
    pub fn to_forget(&self, now: Timestamp) -> Vec<(String, String)> {
        let listened = self.listening.total();
        let over = |agent: &Agent| {
            let waits = agent.voice.presence() == Presence::Unknown && agent.last_seen_at.is_some();
            let heard = agent.last_seen_at.unwrap_or(agent.enrolled_at);
            agent.ephemeral
                && !agent.denied
                && !waits
                && agent.voice.presence() != Presence::Live
                && elapsed(heard, now) >= EPHEMERAL
                && listened.saturating_sub(agent.voice.heard()) >= FORGOTTEN
        };
        self.agents.iter().filter(|(_, agent)| over(agent)).map(|(key, _)| key.clone()).collect()
    }

    fn finding(&mut self, finding: &mut FindingRow, now: Timestamp) -> Vec<IncidentChange> {
        // What the collector says of an agent, the agent cannot say or take back.
        if own::is_reserved(&finding.check) {
            return Vec::new();
        }
        let owner = key(&finding.tenant, &finding.agent);
        let sight = self.sight(&owner, finding.observed_at, now);
        let begins = finding.status == Status::Firing && finding.severity > Severity::Info;
        let known = self.incidents.get(&finding.fingerprint);
        let is_full =
            |agent: &Agent| agent.firing.len() >= MAX_FIRING || (known.is_none() && agent.remembered >= REMEMBERED);
        let full = self.agents.get(&owner).is_some_and(is_full);
        if begins && full && !known.is_some_and(|it| it.is_firing()) {
            let host = self.host(&finding.tenant, &finding.agent);
            return self.raise(own::too_many_firing(&finding.tenant, &finding.agent, &host, now), now);
        }
        let change = self.take(finding, sight, now);
        finding.incident = self.incidents.get(&finding.fingerprint).map(|it| it.row().id.clone());
        change.into_iter().collect()
    }

    /// Lets a finding act on the incident of its fingerprint, whoever saw it.
    fn take(&mut self, finding: &FindingRow, sight: Sight, now: Timestamp) -> Option<IncidentChange> {
        let fingerprint = finding.fingerprint;
        let heard = match self.incidents.get_mut(&fingerprint) {
            Some(incident) => {
                unqueue(&mut self.held, incident.held_until(), fingerprint);
                let flaps = if may_flap(finding) { &self.flaps } else { &Flapping::NEVER };
                incident.hear(finding, sight.clone(), flaps, now)
            }
            None => Heard::Anew,
        };
        let change = match heard {
            Heard::Changed(change) => Some(*change),
            Heard::Nothing => None,
            Heard::Anew if finding.status == Status::Firing && finding.severity > Severity::Info => {
                let id = self.next_id(fingerprint, now);
                let (incident, change) = Incident::opened(id, finding, sight, now);
                self.remember(fingerprint, incident);
                Some(change)
            }
            Heard::Anew => None,
        };
        self.schedule(fingerprint);
        change
    }

    /// Resolves what the agent does not list, for the checks that ran.
    fn open(&mut self, owner: &Key, open: &Open, now: Timestamp) -> Vec<IncidentChange> {
        let Some(agent) = self.agents.get(owner) else { return Vec::new() };
        let listed: HashSet<&Fingerprint> = open.firing.iter().collect();
        let ran: HashSet<&str> = open.checks.iter().map(String::as_str).collect();
        let sight = self.sight(owner, open.observed_at, now);
        let missing = |fingerprint: &&Fingerprint| {
            let incident = self.incidents.get(fingerprint).map(|it| (it, &it.row().check));
            incident.is_some_and(|(it, check)| {
                ran.contains(check.as_str()) && !own::is_reserved(check) && !it.is_history(&sight)
            })
        };
        let missing: Vec<_> = agent.firing.iter().filter(|it| !listed.contains(it)).filter(missing).copied().collect();
        let listened = self.listening.total();
        let incidents = &self.incidents;
        // What another life said that still speaks is not this one's to end: the two may be two machines.
        let is_others = |it: &Fingerprint| {
            let said_by = incidents.get(it).and_then(|it| it.row().seen_epoch.as_ref());
            said_by.is_some_and(|it| sight.epoch.as_ref() != Some(it) && !agent.lives.is_over(it, listened))
        };
        let (doubted, ended): (Vec<_>, Vec<_>) = missing.into_iter().partition(is_others);
        if let (Some(epoch), Some(agent)) = (&sight.epoch, self.agents.get_mut(owner)) {
            let of_list = |it: &Fingerprint| incidents.get(it).is_none_or(|it| ran.contains(it.row().check.as_str()));
            agent.lives.doubt(epoch, of_list, &doubted, sight.at);
        }
        let end = |it| self.end(it, "resync", MISSING_IN_LIST, sight.clone(), now);
        ended.into_iter().filter_map(end).collect()
    }

    /// Ends what a list had not, once the life that had said it is over.
    fn look_at_doubts(&mut self, now: Timestamp) -> Vec<IncidentChange> {
        let listened = self.listening.total();
        let mut ends = Vec::new();
        for agent in self.agents.values_mut() {
            let mut settled = HashSet::new();
            for (fingerprint, epoch, at) in agent.lives.doubts(listened) {
                let sight = Sight { epoch: Some(epoch.clone()), at };
                let incident = self.incidents.get(&fingerprint).filter(|it| it.is_firing() && !it.is_history(&sight));
                match incident.and_then(|it| it.row().seen_epoch.as_ref()) {
                    Some(said_by) if said_by != epoch => {
                        if agent.lives.is_over(said_by, listened) {
                            settled.insert(fingerprint);
                            ends.push((fingerprint, sight));
                        }
                    }
                    _ => {
                        settled.insert(fingerprint);
                    }
                }
            }
            if !settled.is_empty() {
                agent.lives.settle(&settled);
            }
        }
        ends.into_iter().filter_map(|(it, sight)| self.end(it, "resync", MISSING_IN_LIST, sight, now)).collect()
    }

    fn heard(&mut self, owner: &Key, word: Word<'_>, now: Timestamp) -> Vec<IncidentChange> {
        let listened = self.listening.total();
        let Some(agent) = self.agents.get_mut(owner) else { return Vec::new() };
        agent.batch = Some((word.epoch.clone(), word.sent_at));
        if agent.denied {
            return Vec::new();
        }
        let other = agent.lives.hear(word, listened);
        let was_missing = agent.voice.presence() == Presence::Missing;
        let is_live = agent.voice.hear(word.sent_at, word.goodbye, listened);
        if word.goodbye {
            // What starts in its place may be older, and send none.
            agent.bird.stops();
        }
        if is_live {
            agent.last_seen_at = Some(now);
        }
        let told = other.map(|other| own::lives_take_turns(owner, &agent.host, [&other, word.epoch], now));
        let mut changes = told.map_or_else(Vec::new, |finding| self.raise(finding, now));
        if is_live && was_missing {
            let (why, reason) = if word.goodbye {
                ("stopped", "the agent said goodbye")
            } else {
                ("heard again", "a batch of the agent came")
            };
            changes.extend(self.end_own(owner, own::MISSING, why, reason, now));
        }
        changes
    }

    fn message(&mut self, message: &OutboxRow, now: Timestamp) -> Vec<IncidentChange> {
        match message.state {
            MessageState::Dead => self.raise(own::dead_letter(message, now), now),
            MessageState::Delivered => {
                let fingerprint = own::dead_letter_fingerprint(&message.tenant, &message.receiver);
                let known = self.incidents.get(&fingerprint);
                let is_over = known.is_some_and(|it| own::ends_dead_letter(it.row(), message, now));
                let sight = Sight { epoch: None, at: now };
                let end = || self.end(fingerprint, "delivered again", "the receiver took a message", sight, now);
                let ended = if is_over { end() } else { None };
                let of_canaries = if message.kind == CANARY { self.canaries_taken(message, now) } else { Vec::new() };
                ended.into_iter().chain(of_canaries).collect()
            }
            MessageState::Waiting | MessageState::Superseded => Vec::new(),
        }
    }

    /// Told once when one should have been renewed and was not, and again when it gets worse; over when it is renewed.
    fn certificates(&mut self, kept: &Kept, now: Timestamp) -> Vec<IncidentChange> {
        let mut changes = Vec::new();
        for life in &kept.lives {
            let fingerprint = own::certificate_fingerprint(life.name);
            let fires = self.incidents.get(&fingerprint).filter(|it| it.is_firing()).map(|it| it.row().severity);
            match own::certificate(life, kept.failure.as_deref(), now) {
                Some(finding) if fires != Some(finding.severity) => changes.extend(self.raise(finding, now)),
                Some(_) => (),
                None => {
                    let sight = Sight { epoch: None, at: now };
                    let reason = "a certificate with a longer life is in its place";
                    changes.extend(self.end(fingerprint, "renewed", reason, sight, now));
                }
            }
        }
        changes
    }

    fn tick(&mut self, now: Timestamp) -> Vec<IncidentChange> {
        self.listening.tick(now);
        let listened = self.listening.total();
        let silent = |(key, agent): (&Key, &mut Agent)| {
            (!agent.denied && agent.voice.falls_silent(listened)).then(|| own::missing(key, agent, now))
        };
        let missing: Vec<_> = self.agents.iter_mut().filter_map(silent).collect();
        let mut changes: Vec<_> = missing.into_iter().flat_map(|finding| self.raise(finding, now)).collect();
        changes.extend(self.look_at_doubts(now));
        changes.extend(self.look_at_fleet(now));
        changes.extend(self.look_at_flapping(now));

        for (orphan, why, reason) in std::mem::take(&mut self.orphans) {
            changes.extend(self.end_for_good(orphan, why, reason, now));
        }
        // After the clock was set back the last ones come first: see `Incident::release`.
        let is_due = |(until, _): &(Timestamp, Fingerprint)| *until <= now || later(now, UPDATE_EVERY) < *until;
        let next = |held: &BTreeSet<_>| [held.first(), held.last()].into_iter().flatten().copied().find(is_due);
        while let Some((until, fingerprint)) = next(&self.held) {
            self.held.remove(&(until, fingerprint));
            changes.extend(self.incidents.get_mut(&fingerprint).and_then(|it| it.release(now)));
        }
        let quiet = |it: &Incident| it.is_firing() && own::is_over(it.row(), now);
        let over: Vec<_> = self.incidents.iter().filter(|(_, it)| quiet(it)).map(|(it, _)| *it).collect();
        for fingerprint in over {
            let sight = Sight { epoch: None, at: now };
            changes.extend(self.end(fingerprint, "quiet", "it did not happen again", sight, now));
        }
        while let Some(&(until, fingerprint)) = self.ended.first()
            && until <= now
        {
            self.ended.pop_first();
            // It may have returned and ended again meanwhile; then it has a later place too.
            let ended = self.incidents.get(&fingerprint).and_then(|it| it.row().resolved_at);
            if ended.is_some_and(|at| later(at, RECURRENCE) <= now)
                && let Some(gone) = self.incidents.remove(&fingerprint)
                && let Some(agent) = self.agents.get_mut(&key(&gone.row().tenant, &gone.row().agent))
            {
                agent.remembered = agent.remembered.saturating_sub(1);
            }
        }
        changes
    }

    /// Ends the flapping of what has stayed as it is. Not at once after a start or a pause: agents are to say first what happened
    /// meanwhile.
    fn look_at_flapping(&mut self, now: Timestamp) -> Vec<IncidentChange> {
        if self.flapping.is_empty() || self.listening.without_a_pause() < SETTLED {
            return Vec::new();
        }
        let mut changes = Vec::new();
        for fingerprint in self.flapping.clone() {
            let Some(incident) = self.incidents.get_mut(&fingerprint) else { continue };
            unqueue(&mut self.held, incident.held_until(), fingerprint);
            changes.extend(incident.settle(&self.flaps, now));
            self.schedule(fingerprint);
        }
        changes
    }

    fn look_at_fleet(&mut self, now: Timestamp) -> Vec<IncidentChange> {
        let agents = &self.agents;
        let presence = |key: &Key| agents.get(key).map_or(Presence::Missing, |it| it.voice.presence());
        let outcomes = self.fleet.tick(now, self.listening.total(), presence);
        let mut changes = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Fires(finding) => changes.extend(self.raise(*finding, now)),
                Outcome::Ends(fingerprint, why, reason) => {
                    let sight = Sight { epoch: None, at: now };
                    changes.extend(self.end(fingerprint, why, &reason, sight, now));
                }
            }
        }
        changes
    }

    /// Lets the collector's own finding act.
    fn raise(&mut self, finding: FindingRow, now: Timestamp) -> Vec<IncidentChange> {
        self.take(&finding, Sight { epoch: None, at: now }, now).into_iter().collect()
    }

    fn end(
        &mut self,
        fingerprint: Fingerprint,
        why: &str,
        reason: &str,
        sight: Sight,
        now: Timestamp,
    ) -> Option<IncidentChange> {
        let incident = self.incidents.get_mut(&fingerprint).filter(|it| it.is_firing())?;
        unqueue(&mut self.held, incident.held_until(), fingerprint);
        let change = incident.end(why, reason, sight, now);
        self.schedule(fingerprint);
        change
    }

    /// The same of what nobody will speak of any more.
    fn end_for_good(
        &mut self,
        fingerprint: Fingerprint,
        why: &str,
        reason: &str,
        now: Timestamp,
    ) -> Option<IncidentChange> {
        let incident = self.incidents.get_mut(&fingerprint).filter(|it| it.is_firing())?;
        unqueue(&mut self.held, incident.held_until(), fingerprint);
        let change = incident.end_for_good(why, reason, now);
        self.schedule(fingerprint);
        Some(change)
    }

    fn end_own(&mut self, owner: &Key, check: &str, why: &str, reason: &str, now: Timestamp) -> Vec<IncidentChange> {
        let Some(agent) = self.agents.get(owner) else { return Vec::new() };
        let of_check = |it: &&Fingerprint| self.incidents.get(it).is_some_and(|it| it.row().check == check);
        let found: Vec<_> = agent.firing.iter().filter(of_check).copied().collect();
        let sight = Sight { epoch: None, at: now };
        found.into_iter().filter_map(|it| self.end(it, why, reason, sight.clone(), now)).collect()
    }

    fn end_all(&mut self, owner: &Key, why: &str, reason: &str, now: Timestamp) -> Vec<IncidentChange> {
        let Some(agent) = self.agents.get(owner) else { return Vec::new() };
        let firing: Vec<_> = agent.firing.iter().copied().collect();
        firing.into_iter().filter_map(|it| self.end_for_good(it, why, reason, now)).collect()
    }

    fn remember(&mut self, fingerprint: Fingerprint, incident: Incident) {
        let owner = key(&incident.row().tenant, &incident.row().agent);
        if self.incidents.insert(fingerprint, Box::new(incident)).is_none()
            && let Some(agent) = self.agents.get_mut(&owner)
        {
            agent.remembered += 1;
        }
    }

    /// Brings what is kept about an incident beside it in line with it.
    fn schedule(&mut self, fingerprint: Fingerprint) {
        let Some(incident) = self.incidents.get(&fingerprint) else { return };
        let row = incident.row();
        if let Some(until) = incident.held_until() {
            self.held.insert((until, fingerprint));
        }
        if row.flaps() {
            self.flapping.insert(fingerprint);
        } else {
            self.flapping.remove(&fingerprint);
        }
        if let Some(resolved_at) = row.resolved_at {
            self.ended.insert((later(resolved_at, RECURRENCE), fingerprint));
        }
        if let Some(agent) = self.agents.get_mut(&key(&row.tenant, &row.agent)) {
            if incident.is_firing() {
                agent.firing.insert(fingerprint);
            } else {
                agent.firing.remove(&fingerprint);
            }
        }
    }

    fn describe(&mut self, row: &AgentRow) {
        let known = self.agents.entry(key(&row.tenant, &row.id)).or_insert_with(|| Agent::stored(row));
        known.host.clone_from(&row.host);
        known.targets = row.targets.len();
        self.fleet.describe(row);
    }

    fn host(&self, tenant: &str, agent: &str) -> String {
        self.agents.get(&key(tenant, agent)).map_or_else(|| agent.to_owned(), |it| it.host.clone())
    }

    /// Where something of the agent's newest batch was seen: its age by the agent's clock, taken off ours.
    fn sight(&self, owner: &Key, observed_at: Timestamp, now: Timestamp) -> Sight {
        let Some((epoch, sent_at)) = self.agents.get(owner).and_then(|agent| agent.batch.as_ref()) else {
            return Sight { epoch: None, at: now };
        };
        let age = elapsed(observed_at, *sent_at);
        Sight { epoch: Some(epoch.clone()), at: now.saturating_sub(age).unwrap_or(Timestamp::MIN) }
    }

    /// A ULID of `now`, greater than every one before it; the same history gives the same ids.
    fn next_id(&mut self, fingerprint: Fingerprint, now: Timestamp) -> String {
        let mut hash = Sha256::new();
        hash.update(fingerprint.as_bytes());
        hash.update(now.as_microsecond().to_be_bytes());
        let mut random = [0; 16];
        random.copy_from_slice(&hash.finalize()[..16]);
        let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
        let wished = Ulid::from_parts(millis, u128::from_be_bytes(random));
        self.last_id = wished.max(self.last_id.increment().unwrap_or(self.last_id));
        self.last_id.to_string()
    }
}

/// Takes the place of an incident out of a queue, if it has one.
fn unqueue(queue: &mut BTreeSet<(Timestamp, Fingerprint)>, at: Option<Timestamp>, fingerprint: Fingerprint) {
    if let Some(at) = at {
        queue.remove(&(at, fingerprint));
    }
}

/// Whether an incident says that an agent is missing.
pub fn is_of_missing(incident: &IncidentRow) -> bool {
    incident.check == own::MISSING
}

/// Whether an incident is about the collector itself.
pub fn is_own(incident: &IncidentRow) -> bool {
    incident.agent == own::COLLECTOR
}

/// The labels of the group that an incident of an operator's rule is about; none of any other.
pub fn rule_labels(incident: &IncidentRow) -> Vec<(String, String)> {
    let is_of_rule = incident.agent == fleet::FLEET && incident.check.starts_with(fleet::RULE_PREFIX);
    if is_of_rule { fleet::labels_of(&incident.target).unwrap_or_default() } else { Vec::new() }
}

/// Whether an incident is that this receiver is away.
pub fn is_about(incident: &IncidentRow, receiver: &str) -> bool {
    tells_of_receiver(&incident.check, &incident.target, receiver)
}

/// The same of a check and a target.
pub fn tells_of_receiver(check: &str, target: &str, receiver: &str) -> bool {
    own::receiver_of(check, target).or_else(|| canary::receiver_of(check, target)) == Some(receiver)
}

/// Whether what a finding is about may flap: what agents say, and whether they are there. What the collector says of itself and of
/// many agents goes by holds of its own, and is raised only when it changes.
fn may_flap(finding: &FindingRow) -> bool {
    let is_own = [own::COLLECTOR, fleet::FLEET].contains(&finding.agent.as_str());
    finding.check == own::MISSING || !is_own && !own::is_reserved(&finding.check)
}

/// Whether a finding that was taken in fires without an incident: its agent has as many as it may.
pub fn is_beyond(finding: &FindingRow) -> bool {
    let begins = finding.status == Status::Firing && finding.severity > Severity::Info;
    begins && finding.incident.is_none() && !own::is_reserved(&finding.check)
}

fn key(tenant: &str, agent: &str) -> Key {
    (tenant.to_owned(), agent.to_owned())
}

#[cfg(test)]
mod histories;
