//! The rules over many agents: the sum of all pools' limits against the slots of one server (`fleet.pool_budget`), and
//! whether the services behind one pooler agree on what their DSNs say (`params`, `fleet.pool_params`).
//!
//! Agents tell levels; every ten seconds they are added up (`sum`), and three looks in a row decide. An agent that fell
//! silent or stopped leaves the sum two minutes later, until then it counts in the upper end alone: a rolling restart
//! neither raises nor ends anything. Operators' own rules add up the same (`rule`). What was used is kept day by day (`usage`) and suggests a size.

mod evidence;
mod identity;
mod params;
mod rule;
mod sum;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tickbird_shared::levels::Levels;
use tickbird_shared::{Epoch, Fingerprint, Severity, Timestamp};

use super::incident::elapsed;
use super::{Key, Orphan, Presence};
use crate::store::{AgentRow, FindingRow, IncidentRow, LevelsRow, UseRow};

pub(crate) use identity::{identity, place};
pub(super) use params::POOL_PARAMS;
pub(super) use rule::PREFIX as RULE_PREFIX;
pub(super) use rule::labels_of;
pub use rule::{Aggregate, Bounds, Given, HOLD as RULE_HOLD, MAX_BY, MAX_RULES, Measure, Rule, Side, Span, Trial};
pub use sum::{Range, Share};
pub use usage::{Used, of_rows};

use identity::{Addresses, Server};
use params::Comparison;
use rule::Rules;
use sum::{Sum, Told};
use usage::Usage;

/// All pools together may open more connections than a server has slots for.
pub(super) const POOL_BUDGET: &str = "fleet.pool_budget";
/// The agent id of what is found about many agents.
pub(super) const FLEET: &str = "fleet";

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Looks in a row that decide.
const HOLD: u8 = 3;
/// Levels are told at least every minute; what is older says how it was.
const FRESH: Duration = Duration::from_secs(150);
/// After so long an agent that is gone, or a server that nobody tells of, counts no more.
const GRACE: Duration = Duration::from_secs(120);
/// After so long without levels an agent that lives has none.
const SILENT: Duration = Duration::from_secs(900);
/// Warning and critical, as shares of the slots in percent.
const BOUNDS: [(Severity, u64); 2] = [(Severity::Warning, 80), (Severity::Critical, 100)];
/// A bound is cleared at this share of itself, in percent.
const CLEARING: u64 = 90;

/// What all agents told, and what was made of it.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    agents: BTreeMap<Key, Levelled>,
    looks: BTreeMap<Server, Looks>,
    comparison: Comparison,
    usage: Usage,
    sums: BTreeMap<Server, Sum>,
    rules: Rules,
    /// What leads where, as of the last look; empty while no rule asks.
    addresses: Addresses,
    looked: Option<Duration>,
}

/// The newest levels of an agent.
#[derive(Debug)]
struct Levelled {
    levels: Levels,
    epoch: Epoch,
    /// When they were true, by our clock.
    seen_at: Timestamp,
    /// When they came, and since when the agent is gone, in time that the collector has listened.
    heard: Duration,
    gone: Option<Duration>,
}

/// What the last looks at one server said.
#[derive(Debug, Default)]
struct Looks {
    fires: Option<Severity>,
    since: Option<Timestamp>,
    /// Looks in a row over each bound, and under the value that clears it.
    over: [u8; 2],
    under: [u8; 2],
    /// Slots when last told of.
    slots: Option<u32>,
    absent: Option<Duration>,
    /// What the last finding said, and what the looks after it say instead: how often in a row.
    told: Option<Says>,
    instead: Option<(Says, u8)>,
    /// While it fires: applications whose limit was known since it began; after a restart as the evidence has it. None when
    /// that names not all: then nothing unknown clears.
    known: Option<BTreeSet<String>>,
}

/// What of a sum is news: sum, slots, applications, and those whose limit was known. What is open and leased changes all the
/// time.
type Says = (Range, u32, BTreeSet<String>, Option<BTreeSet<String>>);

/// What a look at the fleet found.
#[derive(Debug)]
pub(super) enum Outcome {
    /// To be raised, or told anew.
    Fires(Box<FindingRow>),
    /// To be ended: why, and for what reason.
    Ends(Fingerprint, &'static str, String),
}

/// One application's part of one server, for the API.
#[derive(Debug, Clone)]
pub struct PoolSum {
    /// Identity of the server.
    pub server: String,
    /// An address of it.
    pub name: String,
    /// Its slots, where known.
    pub slots: Option<u32>,
    /// How many of them are used, where known.
    pub used: Option<u32>,
    /// Most connections of all applications together.
    pub server_limit: Range,
    /// What fires about it.
    pub fires: Option<Severity>,
    /// The application.
    pub application: String,
    /// Its part.
    pub share: Share,
    /// What it used over the last days.
    pub usage: Option<Used>,
}

impl Fleet {
    /// What was stored. `firing` are the incidents of the fleet that fire.
    pub(super) fn load<'a>(
        levels: impl Iterator<Item = LevelsRow>,
        used: Vec<UseRow>,
        firing: impl Iterator<Item = &'a IncidentRow> + Clone,
    ) -> Self {
        let agents = levels.map(|row| {
            let LevelsRow { tenant, agent, epoch, seen_at, levels, .. } = row;
            ((tenant, agent), Levelled { levels, epoch, seen_at, heard: Duration::ZERO, gone: None })
        });
        let looks = firing.clone().filter(|row| row.check == POOL_BUDGET).filter_map(|row| {
            let server = row.target.strip_prefix("server:")?;
            let known = evidence::limits_known(&row.evidence);
            let looks = Looks { fires: Some(row.severity), since: Some(row.since), known, ..Looks::default() };
            Some(((row.tenant.clone(), server.to_owned()), looks))
        });
        let comparison = Comparison::load(firing.filter(|row| row.check == POOL_PARAMS));
        let (agents, looks) = (agents.collect(), looks.collect());
        Self { agents, looks, comparison, usage: Usage::load(used), ..Self::default() }
    }

    /// Goes by these rules. `firing` are the incidents of the fleet that fire; those of rules that are no more are given back.
    pub(super) fn follow<'a>(
        &mut self,
        rules: &[Rule],
        agents: &[AgentRow],
        firing: impl Iterator<Item = &'a IncidentRow>,
    ) -> Vec<Orphan> {
        let (mut rules, orphans) = Rules::load(rules, agents, firing);
        rules.go_on_from(std::mem::take(&mut self.rules));
        self.rules = rules;
        orphans
    }

    /// An agent as its row says.
    pub(super) fn describe(&mut self, row: &AgentRow) {
        self.rules.describe(row);
    }

    /// Takes levels in; false when newer ones of another life of the agent's buffer are known.
    pub(super) fn hear(&mut self, row: &LevelsRow, listened: Duration) -> bool {
        let key = (row.tenant.clone(), row.agent.clone());
        if self.is_history(&key, &row.epoch, row.seen_at) {
            return false;
        }
        let (levels, epoch, seen_at) = (row.levels.clone(), row.epoch.clone(), row.seen_at);
        self.agents.insert(key, Levelled { levels, epoch, seen_at, heard: listened, gone: None });
        true
    }

    /// Whether another life of its buffer told its levels after this moment.
    pub(super) fn is_history(&self, agent: &Key, epoch: &Epoch, seen_at: Timestamp) -> bool {
        self.agents.get(agent).is_some_and(|it| it.epoch != *epoch && it.seen_at > seen_at)
    }

    /// An operator took the agent away; nothing of it counts from now on.
    pub(super) fn forget(&mut self, agent: &Key) {
        self.agents.remove(agent);
        self.rules.forget(agent);
    }

    /// Looks, when it is time to.
    pub(super) fn tick(
        &mut self,
        now: Timestamp,
        listened: Duration,
        presence: impl Fn(&Key) -> Presence,
    ) -> Vec<Outcome> {
        let mut outcomes = self.look(now, listened, &presence);
        outcomes.extend(self.rules.tick(&self.agents, &self.addresses, (now, listened), &presence));
        outcomes
    }

    fn look(&mut self, now: Timestamp, listened: Duration, presence: impl Fn(&Key) -> Presence) -> Vec<Outcome> {
        if self.looked.is_some_and(|at| listened.saturating_sub(at) < LOOK_EVERY) {
            return Vec::new();
        }
        self.looked = Some(listened);
        self.agents.retain(|key, it| {
            let is_gone = matches!(presence(key), Presence::Missing | Presence::Stopped);
            it.gone = is_gone.then(|| it.gone.unwrap_or(listened));
            let over = |since: Duration, by| listened.saturating_sub(since) >= by;
            !it.gone.is_some_and(|since| over(since, GRACE)) && !over(it.heard, SILENT)
        });
        let told = self.agents.iter().map(|(key, it)| {
            let is_fresh = it.gone.is_none() && elapsed(it.seen_at, now) < FRESH;
            (key, Told { levels: &it.levels, is_fresh })
        });
        self.sums = sum::sums(told.clone());
        if self.rules.need_servers() {
            self.addresses = Addresses::of(told.clone());
        }
        let mut outcomes = self.comparison.look(told, now);
        self.sample(now);
        for server in self.sums.keys() {
            self.looks.entry(server.clone()).or_default();
        }
        let usage = &self.usage;
        self.looks.retain(|server, looks| {
            match self.sums.get(server) {
                Some(sum) => outcomes.extend(looks.look(server, sum, usage, now)),
                None => outcomes.extend(looks.miss(server, listened)),
            }
            looks.fires.is_some() || self.sums.contains_key(server)
        });
        outcomes
    }

    /// What changed in the use of pools since it was asked last.
    pub(super) fn take_unsaved_use(&mut self) -> Vec<UseRow> {
        self.usage.take_unsaved()
    }

    /// Every application's part of every server of a tenant at the last look, in order of server and application.
    pub(super) fn pools(&self, tenant: &str) -> Vec<PoolSum> {
        let mut pools = Vec::new();
        for (key, sum) in self.sums.iter().filter(|((of, _), _)| of == tenant) {
            for (application, share) in &sum.applications {
                let who = (key.0.clone(), key.1.clone(), application.clone());
                pools.push(PoolSum {
                    server: key.1.clone(),
                    name: sum.name.clone(),
                    slots: sum.slots,
                    used: sum.used,
                    server_limit: sum.limit,
                    fires: self.looks.get(key).and_then(|it| it.fires),
                    application: application.clone(),
                    share: share.clone(),
                    usage: self.usage.of(&who),
                });
            }
        }
        pools
    }

    /// Keeps what each application uses now, where that is seen.
    fn sample(&mut self, now: Timestamp) {
        for ((tenant, server), sum) in &self.sums {
            for (application, share) in &sum.applications {
                // Of a pool that an agent no longer sees, or whose sessions it may not, nothing is known.
                if share.leased.high.is_none() || share.open == 0 {
                    continue;
                }
                let leased = u32::try_from(share.leased.low).unwrap_or(u32::MAX);
                let open = u32::try_from(share.open).unwrap_or(u32::MAX);
                self.usage.add((tenant.clone(), server.clone(), application.clone()), leased, open, now);
            }
        }
        self.usage.forget(now);
    }
}

impl Looks {
    /// Takes one look at a server in.
    fn look(&mut self, server: &Server, sum: &Sum, usage: &Usage, now: Timestamp) -> Option<Outcome> {
        self.absent = None;
        self.slots = sum.slots.or(self.slots);
        let slots = self.slots.filter(|it| *it > 0)?;
        for (index, (_, bound)) in BOUNDS.into_iter().enumerate() {
            let bound = u64::from(slots) * bound;
            let is_over = sum.limit.low * 100 > bound;
            let is_under = self.at_most(sum).is_some_and(|high| high * 100 * 100 <= bound * CLEARING);
            let count = |looks: u8, is_so: bool| if is_so { looks.saturating_add(1) } else { 0 };
            self.over[index] = count(self.over[index], is_over);
            self.under[index] = count(self.under[index], is_under);
        }
        let before = self.fires;
        let held = |looks: [u8; 2], index: usize| looks[index] >= HOLD;
        self.fires = match before {
            _ if held(self.over, 1) => Some(Severity::Critical),
            Some(_) if held(self.under, 0) => None,
            Some(Severity::Critical) if held(self.under, 1) => Some(Severity::Warning),
            None if held(self.over, 0) => Some(Severity::Warning),
            unchanged => unchanged,
        };
        let Some(severity) = self.fires else {
            before?;
            let high = self.at_most(sum).unwrap_or_default();
            (self.told, self.instead, self.since, self.known) = (None, None, None, None);
            let reason = format!("{high} of {slots} slots for 3 looks, at most {CLEARING} % of the bound");
            return Some(Outcome::Ends(fingerprint(server), "cleared", reason));
        };
        if before.is_none() {
            self.known = Some(BTreeSet::new());
        }
        if let Some(known) = &mut self.known {
            let is_known = |(name, share): (&String, &Share)| share.limit.high.map(|_| name.clone());
            known.extend(sum.applications.iter().filter_map(is_known));
        }
        let since = *self.since.get_or_insert(now);
        let says = (sum.limit, slots, sum.applications.keys().cloned().collect(), self.known.clone());
        if before == self.fires && !self.is_news(&says, sum.is_stale) {
            return None;
        }
        self.told = Some(says);
        self.instead = None;
        let about = (sum, slots, self.known.as_ref());
        Some(Outcome::Fires(Box::new(evidence::finding(server, about, severity, usage, since, now))))
    }

    /// What all pools may open at most, as far as it decides. A limit that was never known had no part in the sum that
    /// fired: of such an application counts what it has open. One that was known and cannot be seen now clears nothing.
    fn at_most(&self, sum: &Sum) -> Option<u64> {
        let Some(known) = self.known.as_ref().filter(|_| !sum.is_stale && sum.limit.high.is_none()) else {
            return sum.limit.high;
        };
        let of = |(name, share): (&String, &Share)| match share.limit.high {
            None if !known.contains(name) => Some(share.limit.low.max(share.open)),
            high => high,
        };
        sum.applications.iter().map(of).sum()
    }

    /// Whether something else than was told has been so for three looks: a rolling restart is no news.
    fn is_news(&mut self, says: &Says, is_stale: bool) -> bool {
        // After a restart the incident has its evidence already.
        if is_stale || self.told.get_or_insert_with(|| says.clone()) == says {
            self.instead = None;
            return false;
        }
        let looks = self.instead.take().filter(|(instead, _)| instead == says).map_or(1, |(_, looks)| looks + 1);
        self.instead = Some((says.clone(), looks));
        looks >= HOLD
    }

    /// Nobody told of the server.
    fn miss(&mut self, server: &Server, listened: Duration) -> Option<Outcome> {
        let since = *self.absent.get_or_insert(listened);
        (self.over, self.under) = Default::default();
        if listened.saturating_sub(since) < GRACE || self.fires.take().is_none() {
            return None;
        }
        let reason = "no agent tells of a pool or a look at this server any more".to_owned();
        Some(Outcome::Ends(fingerprint(server), "target gone", reason))
    }
}

fn target((_, server): &Server) -> String {
    format!("server:{server}")
}

fn fingerprint(server: &Server) -> Fingerprint {
    Fingerprint::of(&server.0, FLEET, POOL_BUDGET, &target(server), None)
}

#[cfg(test)]
mod tests;
