//! Canaries: findings that agents send again and again to be waited for, told together to one receiver.
//!
//! A canary is late in two places. On its way from its agent to here: each agent's own time, and a silence of one that is heard otherwise is an
//! incident about that agent. And from here to the receiver: the same for all, so one incident for all, and none where it is already told that
//! the receiver is away. What a canary waits to be told together with others is no part of its latency: a finding does not wait for that.
//!
//! An agent that never sent one is not waited for, and nor is one that stopped or is missing: silence has an incident of its own. All of it is in
//! memory, so after a start nothing is known until the next canary comes, and what was missed before is missed until then.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};
use tickbird_shared::protocol::CANARY_EVERY;
use tickbird_shared::{Fingerprint, Severity, Status, Timestamp};

use super::incident::{Sight, elapsed};
use super::own::{COLLECTOR, Own};
use super::presence::Presence;
use super::strain::Reach;
use super::{IncidentChange, Key, State, key};
use crate::store::{FindingRow, OutboxRow};
use crate::token::DEFAULT_TENANT;

/// Kind of the messages, and what they are all about where others are about an incident.
pub const CANARY: &str = "canary";
/// The canaries of an agent do not come, though it is heard.
pub(super) const MISSING: &str = "agent.canary_missing";
/// Canaries need long, or do not get to their receiver.
pub(super) const LATE: &str = "collector.canary";
/// Agents that a message or a proof names.
const NAMED: usize = 10;
/// Messages of a tenant that are kept, for whoever looks into the outbox.
const KEPT: usize = 10;
/// What an agent that says nothing of its interval has.
const EVERY_SECONDS: u32 = 60;

/// Who waits for canaries, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanarySettings {
    /// The receiver.
    pub receiver: String,
    /// From one message to the next. A minute by default, as for the switches outside that wait for it.
    pub every: Duration,
    /// Silence of an agent, or of the receiver, that is told. Five minutes by default: five canaries, or three of an agent with a longer interval.
    pub missing_after: Duration,
    /// Latency that is too long. 30 s by default: most of the agents' backoff after one failure.
    pub slow: Duration,
    /// For how long each canary of an agent must be slow. Five minutes by default: what waited while the collector was away comes once.
    pub slow_hold: Duration,
}

impl CanarySettings {
    /// The defaults.
    pub const fn new(receiver: String) -> Self {
        let s = Duration::from_secs;
        Self { receiver, every: s(60), missing_after: s(300), slow: s(30), slow_hold: s(300) }
    }
}

/// What is told of the canaries of a tenant.
#[derive(Debug)]
pub struct Flown {
    /// The tenant.
    pub tenant: String,
    /// Who is told.
    pub receiver: String,
    /// One sentence.
    pub summary: String,
    /// A JSON object.
    pub evidence: String,
    /// A message that is kept no longer.
    pub forgets: Option<String>,
}

/// What is known of the canaries of an agent, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanarySeen {
    /// It is missed.
    pub is_missing: bool,
    /// What the newest that its receiver took had needed.
    pub latency: Option<Duration>,
    /// When that was.
    pub taken_at: Option<Timestamp>,
}

/// No number is known.
const NONE: u32 = u32::MAX;

/// What is known of the canaries of one agent: 32 bytes, for there are thousands. Times are seconds of [`super::presence::Listening`],
/// durations milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bird {
    /// Seconds between two; 0 of an agent that is not known to send any.
    every: u32,
    /// When the newest came.
    came: u32,
    /// How long it was under way until then.
    here: u32,
    /// The same of the one that its receiver is told of now.
    told: u32,
    /// From the agent to the yes of the receiver, of the newest that got there.
    latency: u32,
    /// Since when each that got there was slow.
    slow_since: u32,
    /// Unix time at which the newest got there.
    taken_at: u32,
    /// The newest was not told yet.
    is_new: bool,
    /// One is in the message that is under way.
    is_told: bool,
    /// It is missed, and that was told.
    is_missed: bool,
    /// Those that got there were slow for long enough.
    is_slow: bool,
}

impl Default for Bird {
    fn default() -> Self {
        Self {
            every: 0,
            came: 0,
            here: 0,
            told: 0,
            latency: NONE,
            slow_since: NONE,
            taken_at: 0,
            is_new: false,
            is_told: false,
            is_missed: false,
            is_slow: false,
        }
    }
}

impl Bird {
    /// It was missed when the collector ended.
    pub(super) const fn still_missed(&mut self) {
        self.is_missed = true;
    }

    /// How long it took was a matter of another receiver.
    pub(super) const fn forget_latency(&mut self) {
        (self.latency, self.slow_since, self.is_slow, self.is_told) = (NONE, NONE, false, false);
    }

    /// Its agent said goodbye.
    pub(super) const fn stops(&mut self) {
        self.every = 0;
    }

    const fn is_known(&self) -> bool {
        self.every > 0 || self.is_missed
    }

    /// One got there. `hold` is at least two intervals of the messages; of one that sings more seldom it is two of its own, or one slow
    /// canary were enough. So it counts from one that got there to another: that none does is told of the receiver.
    fn got_there(&mut self, is_slow: bool, listened: u32, hold: u32) {
        if !is_slow {
            (self.slow_since, self.is_slow) = (NONE, false);
            return;
        }
        let since = if self.slow_since == NONE { listened } else { self.slow_since };
        let hold = hold.max(self.every.saturating_mul(2));
        (self.slow_since, self.is_slow) = (since, listened.saturating_sub(since) >= hold);
    }
}

/// The messages of one tenant.
#[derive(Debug, Default)]
struct Flight {
    next_at: Duration,
    /// Their ids, the newest last.
    told: VecDeque<String>,
    /// Since when the receiver takes none of them, by both clocks.
    waits_since: Option<(Duration, Timestamp)>,
    taken_at: Option<Timestamp>,
}

/// What is known beside the agents.
#[derive(Debug, Default)]
pub(super) struct Canaries {
    flights: BTreeMap<String, Flight>,
    /// What is too slow, as of the last tick, and for how many seconds it may be.
    slow: u32,
    hold: u32,
    /// Nobody waits for them, and what was told of them is over.
    is_off: bool,
    /// Latencies that were not counted yet.
    latencies: Vec<u32>,
}

impl Canaries {
    /// What waits of them is out of the way after a reload; since when none is taken is known still.
    pub(super) fn forget_messages(&mut self) {
        self.flights.values_mut().for_each(|it| it.told.clear());
    }
}

/// The agents of one tenant, counted.
#[derive(Debug, Default, Clone, Copy)]
struct Flock {
    live: usize,
    singing: usize,
    missing: usize,
    slow: usize,
}

/// What a look over all agents finds.
#[derive(Debug)]
struct Count {
    /// By tenant.
    flocks: Vec<(String, Flock)>,
    /// Those that are missed from now on, each with its silence in seconds.
    missed: Vec<(Key, u32)>,
    /// Those that were, and are not expected any more.
    gone: Vec<Key>,
}

/// Latencies of a tenant: the newest of each agent, the longest first.
#[derive(Debug)]
struct Latencies(Vec<(u32, String, String)>);

impl Latencies {
    fn at(&self, share: f64) -> Option<u32> {
        let last = self.0.len().checked_sub(1)?;
        // Of few the longest is said.
        self.0.get((last as f64 * (1.0 - share)).floor() as usize).map(|it| it.0)
    }

    fn worst(&self) -> Vec<Value> {
        let row = |(latency, agent, host): &(u32, String, String)| json!({ "agent": agent, "host": host, "latency_ms": latency });
        self.0.iter().take(NAMED).map(row).collect()
    }
}

impl State {
    /// Takes a canary, or the word that none comes any more.
    pub(super) fn canary(&mut self, finding: &FindingRow, now: Timestamp) -> Vec<IncidentChange> {
        let owner = key(&finding.tenant, &finding.agent);
        let listened = seconds(self.listening.total());
        let Some(agent) = self.agents.get_mut(&owner).filter(|it| !it.denied) else { return Vec::new() };
        let was_missed = agent.bird.is_missed;
        let is_over = finding.status == Status::Resolved;
        if is_over {
            agent.bird = Bird::default();
        } else {
            // By the agent's clock until the batch left, and by ours from when it came: what the two differ by is in neither.
            let before =
                agent.batch.as_ref().map_or(Duration::ZERO, |(_, sent_at)| elapsed(finding.observed_at, *sent_at));
            let bird = &mut agent.bird;
            bird.every = every(&finding.evidence);
            (bird.came, bird.here) = (listened, millis(before + elapsed(finding.received_at, now)));
            (bird.is_new, bird.is_missed) = (true, false);
        }
        let why = if is_over { "switched off" } else { "heard again" };
        let reason = if is_over { "its agent says that none comes any more" } else { "a canary of the agent came" };
        if was_missed { self.end_own(&owner, MISSING, why, reason, now) } else { Vec::new() }
    }

    /// Looks who is missed, and what is to be told: once a second. `reach` is how the receiver stands.
    pub fn canaries(
        &mut self,
        settings: Option<&CanarySettings>,
        reach: Option<&Reach>,
        now: Timestamp,
    ) -> (Vec<IncidentChange>, Vec<Flown>) {
        let Some(settings) = settings else { return (self.without_canaries(now), Vec::new()) };
        self.canaries.is_off = false;
        self.canaries.slow = millis(settings.slow);
        self.canaries.hold = seconds(settings.slow_hold.max(settings.every * 2));
        let Count { flocks, missed, gone } = self.count_canaries(settings);
        let mut changes = Vec::new();
        for owner in gone {
            let reason = "the agent itself is not heard, or stopped";
            changes.extend(self.end_own(&owner, MISSING, "not expected", reason, now));
        }
        for (owner, silent) in missed {
            let host = self.host(&owner.0, &owner.1);
            changes.extend(self.raise(missing(&owner, &host, silent, now), now));
        }
        let mut flown = Vec::new();
        for (tenant, flock) in flocks {
            changes.extend(self.look_at_latency(&tenant, flock, settings, now));
            changes.extend(self.look_at_receiver(&tenant, settings, reach, now));
            let listened = self.listening.total();
            let flight = self.canaries.flights.entry(tenant.clone()).or_default();
            // One that its receiver thinks about is waited for: what it needed is the latency. One that nobody takes is replaced.
            let waits = flight.waits_since.filter(|_| !flight.told.is_empty());
            let is_under_way = waits.is_some_and(|(since, _)| listened.saturating_sub(since) < settings.missing_after);
            if listened >= flight.next_at && !is_under_way {
                flight.next_at = listened + settings.every;
                flight.waits_since.get_or_insert((listened, now));
                flown.push(self.tell_canaries(tenant, flock, settings));
            }
        }
        (changes, flown)
    }

    /// The message of a tenant was queued.
    pub fn flew(&mut self, tenant: &str, message: &str) {
        if let Some(flight) = self.canaries.flights.get_mut(tenant) {
            flight.told.push_back(message.to_owned());
        }
    }

    /// What is known of the canaries of an agent that sends some.
    pub fn canary_of(&self, tenant: &str, agent: &str) -> Option<CanarySeen> {
        let bird = self.agents.get(&key(tenant, agent)).map(|it| &it.bird).filter(|it| it.is_known())?;
        let is_taken = bird.latency != NONE;
        Some(CanarySeen {
            is_missing: bird.is_missed,
            latency: is_taken.then(|| Duration::from_millis(bird.latency.into())),
            taken_at: is_taken.then(|| Timestamp::from_second(bird.taken_at.into()).ok()).flatten(),
        })
    }

    /// What canaries needed that were taken since this was asked last, in milliseconds.
    pub fn take_canary_latencies(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.canaries.latencies)
    }

    /// A receiver took a message. One that was superseded meanwhile says only that it takes them.
    pub(super) fn canaries_taken(&mut self, message: &OutboxRow, now: Timestamp) -> Vec<IncidentChange> {
        let listened = seconds(self.listening.total());
        let taken_at = message.settled_at.unwrap_or(now);
        let Some(flight) = self.canaries.flights.get_mut(&message.tenant) else { return Vec::new() };
        flight.waits_since = None;
        flight.taken_at = Some(taken_at);
        if flight.told.back() == Some(&message.id) {
            let took = millis(elapsed(message.decided_at, taken_at));
            let of_tenant = self.agents.iter_mut().filter(|((tenant, _), _)| *tenant == message.tenant);
            for bird in of_tenant.map(|(_, agent)| &mut agent.bird).filter(|it| it.is_told) {
                bird.is_told = false;
                bird.latency = bird.told.saturating_add(took).min(NONE - 1);
                bird.taken_at = u32::try_from(taken_at.as_second()).unwrap_or_default();
                bird.got_there(bird.latency > self.canaries.slow, listened, self.canaries.hold);
                self.canaries.latencies.push(bird.latency);
            }
        }
        self.over(&message.tenant, &receiver_target(&message.receiver), "the receiver took one", now)
    }

    fn count_canaries(&mut self, settings: &CanarySettings) -> Count {
        let (mut missed, mut gone) = (Vec::new(), Vec::new());
        // A switch outside waits for the first one's word also while there is no agent.
        let mut flocks = BTreeMap::from([(DEFAULT_TENANT, Flock::default())]);
        for (owner, agent) in &mut self.agents {
            let bird = &mut agent.bird;
            match agent.voice.presence() {
                Presence::Live => (),
                // After a start nothing is known yet.
                Presence::Unknown if !agent.denied => continue,
                Presence::Unknown | Presence::Stopped | Presence::Missing => {
                    if std::mem::take(bird).is_missed {
                        gone.push(owner.clone());
                    }
                    continue;
                }
            }
            let is_told_of = bird.is_known() || self.canaries.flights.contains_key(&owner.0);
            if !is_told_of && owner.0 != DEFAULT_TENANT {
                continue;
            }
            // Only what was heard meanwhile can be missed: one that is stopped, or cut off, is silent altogether.
            let silent = seconds(agent.voice.heard()).saturating_sub(bird.came);
            let bound = seconds(settings.missing_after).max(bird.every.saturating_mul(3));
            if bird.every > 0 && !bird.is_missed && silent >= bound {
                bird.is_missed = true;
                missed.push((owner.clone(), silent));
            }
            let flock = flocks.entry(&owner.0).or_default();
            flock.live += 1;
            flock.singing += usize::from(bird.is_known());
            flock.missing += usize::from(bird.is_missed);
            flock.slow += usize::from(!bird.is_missed && bird.is_slow);
        }
        for tenant in self.canaries.flights.keys() {
            flocks.entry(tenant).or_default();
        }
        let flocks = flocks.into_iter().map(|(tenant, flock)| (tenant.to_owned(), flock)).collect();
        Count { flocks, missed, gone }
    }

    /// One incident for all that are slow: what they have in common is on their way, mostly.
    fn look_at_latency(
        &mut self,
        tenant: &str,
        flock: Flock,
        settings: &CanarySettings,
        now: Timestamp,
    ) -> Vec<IncidentChange> {
        let target = "canary:latency";
        if flock.slow == 0 {
            return self.over(tenant, target, "none is slow any more", now);
        }
        if self.is_late(tenant, target) {
            return Vec::new();
        }
        let Flock { slow, singing, .. } = flock;
        let worst = self.latencies(tenant);
        let own = Own {
            tenant,
            agent: COLLECTOR,
            check: LATE,
            target: target.into(),
            severity: Severity::Warning,
            summary: format!(
                "canaries of {slow} of {singing} agents need over {:?} to receiver {}; the slowest {} s",
                settings.slow,
                settings.receiver,
                f64::from(worst.at(1.0).unwrap_or_default()) / 1_000.0,
            ),
            reason: "each of them needed more than canary.slow for canary.slow_hold".into(),
            advice: "of a few agents look at their buffers (`tickbird-agent status`), of all at the receiver and at this host's disk",
            evidence: json!({
                "receiver": settings.receiver, "agents": slow, "of": singing, "slow_ms": millis(settings.slow), "worst": worst.worst(),
            }),
            since: now,
        };
        self.raise(own.finding(now), now)
    }

    /// One incident for all that wait here, unless it is told already that the receiver is away.
    fn look_at_receiver(
        &mut self,
        tenant: &str,
        settings: &CanarySettings,
        reach: Option<&Reach>,
        now: Timestamp,
    ) -> Vec<IncidentChange> {
        let receiver = &settings.receiver;
        let Some(flight) = self.canaries.flights.get(tenant) else { return Vec::new() };
        let Some((from, since)) = flight.waits_since else { return Vec::new() };
        let is_away = reach.is_some_and(|it| it.is_away == Some(true));
        let target = receiver_target(receiver);
        if self.listening.total() - from < settings.missing_after || is_away || self.is_late(tenant, &target) {
            return Vec::new();
        }
        let last_error = reach.and_then(|it| it.last_error.as_deref());
        let because = last_error.map(|it| format!(", because: {it}")).unwrap_or_default();
        let own = Own {
            tenant,
            agent: COLLECTOR,
            check: LATE,
            target,
            severity: Severity::Critical,
            summary: format!("canaries are stored and not delivered to receiver {receiver} since {since}{because}"),
            reason: "it took none for canary.missing_after".into(),
            advice: "see what waits for the receiver, and what it answers (`tickbird-collector receiver list`); findings go the same way",
            evidence: json!({
                "receiver": receiver, "since": since, "last_taken_at": flight.taken_at, "last_error": last_error,
            }),
            since,
        };
        self.raise(own.finding(now), now)
    }

    /// Those that came since the last message go with this one.
    fn tell_canaries(&mut self, tenant: String, flock: Flock, settings: &CanarySettings) -> Flown {
        let listened = seconds(self.listening.total());
        let (mut came, mut missing) = (0_usize, Vec::new());
        for ((_, id), agent) in self.agents.iter_mut().filter(|((of, _), _)| *of == tenant) {
            let bird = &mut agent.bird;
            if std::mem::take(&mut bird.is_new) {
                (bird.told, bird.is_told) = (bird.here, true);
                came += 1;
            }
            if bird.is_missed && missing.len() < NAMED {
                // After a start nobody knows for how long.
                let silent = (bird.every > 0).then(|| listened.saturating_sub(bird.came));
                missing.push(json!({ "agent": id, "host": agent.host, "silent_seconds": silent }));
            }
        }
        let latencies = self.latencies(&tenant);
        let worst = latencies.at(1.0);
        let Flock { live, singing, missing: missed, slow } = flock;
        let took = worst.map(|it| format!("; the slowest of the last ones needed {} s", f64::from(it) / 1_000.0));
        let flight = self.canaries.flights.entry(tenant.clone()).or_default();
        let evidence = json!({
            CANARY_EVERY: settings.every.as_secs(),
            "agents": { "live": live, "singing": singing, "came": came, "missing": missed, "slow": slow },
            "latency_ms": { "median": latencies.at(0.5), "p99": latencies.at(0.99), "worst": worst },
            "worst": latencies.worst(),
            "missing": missing,
            "last_taken_at": flight.taken_at,
        });
        let forgets = if flight.told.len() >= KEPT { flight.told.pop_front() } else { None };
        Flown {
            receiver: settings.receiver.clone(),
            summary: format!(
                "the collector works: canaries of {came} agents came, {missed} of {singing} are missing{}",
                took.unwrap_or_default()
            ),
            evidence: evidence.to_string(),
            tenant,
            forgets,
        }
    }

    fn latencies(&self, tenant: &str) -> Latencies {
        let of = self.agents.iter().filter(|((of, _), agent)| of == tenant && agent.bird.latency != NONE);
        let mut all: Vec<_> = of.map(|((_, id), agent)| (agent.bird.latency, id.clone(), agent.host.clone())).collect();
        all.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        Latencies(all)
    }

    /// Ends what was told of canaries: nobody waits for them.
    fn without_canaries(&mut self, now: Timestamp) -> Vec<IncidentChange> {
        if std::mem::replace(&mut self.canaries.is_off, true) {
            return Vec::new();
        }
        self.canaries.flights.clear();
        self.agents.values_mut().for_each(|agent| agent.bird.is_missed = false);
        let is_of_them = |check: &str| check == MISSING || check == LATE;
        let told = self.incidents.iter().filter(|(_, it)| it.is_firing() && is_of_them(&it.row().check));
        let told: Vec<_> = told.map(|(fingerprint, _)| *fingerprint).collect();
        let sight = Sight { epoch: None, at: now };
        let reason = "nobody waits for canaries any more";
        told.into_iter().filter_map(|it| self.end(it, "not expected", reason, sight.clone(), now)).collect()
    }

    fn is_late(&self, tenant: &str, target: &str) -> bool {
        self.incidents.get(&fingerprint(tenant, target)).is_some_and(|it| it.is_firing())
    }

    fn over(&mut self, tenant: &str, target: &str, reason: &str, now: Timestamp) -> Vec<IncidentChange> {
        let sight = Sight { epoch: None, at: now };
        self.end(fingerprint(tenant, target), "cleared", reason, sight, now).into_iter().collect()
    }
}

fn missing(owner: &Key, host: &str, silent: u32, now: Timestamp) -> FindingRow {
    let since = now.saturating_sub(Duration::from_secs(silent.into())).unwrap_or(now);
    Own {
        tenant: &owner.0,
        agent: &owner.1,
        check: MISSING,
        target: format!("agent:{host}"),
        severity: Severity::Critical,
        summary: format!(
            "{host}: its agent is heard, but no canary of it came for {silent} s: findings may not come either"
        ),
        reason: format!("not arrived from the agent for {silent} s"),
        advice: "see `tickbird-agent status` and its log there: does it judge, and does its buffer take anything?",
        evidence: json!({ "host": host, "stuck": "not arrived from the agent", "last_came_at": since }),
        since,
    }
    .finding(now)
}

fn fingerprint(tenant: &str, target: &str) -> Fingerprint {
    Fingerprint::of(tenant, COLLECTOR, LATE, target, None)
}

/// Which receiver an incident is about that takes no canaries.
pub(super) fn receiver_of<'a>(check: &str, target: &'a str) -> Option<&'a str> {
    (check == LATE).then(|| target.strip_prefix("canary:")).flatten()
}

pub(super) fn receiver_target(receiver: &str) -> String {
    format!("canary:{receiver}")
}

/// Seconds until the next one, as its agent says.
fn every(evidence: &str) -> u32 {
    let said = serde_json::from_str::<Value>(evidence).ok();
    let seconds = said.and_then(|it| it[CANARY_EVERY].as_u64()).and_then(|it| u32::try_from(it).ok());
    seconds.unwrap_or(EVERY_SECONDS).clamp(1, 24 * 3600)
}

fn seconds(it: Duration) -> u32 {
    u32::try_from(it.as_secs()).unwrap_or(NONE - 1)
}

fn millis(it: Duration) -> u32 {
    u32::try_from(it.as_millis()).unwrap_or(NONE - 1).min(NONE - 1)
}

#[cfg(test)]
mod tests;
