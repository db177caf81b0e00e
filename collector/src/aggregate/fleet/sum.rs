//! What the agents' levels say together of each server: the most that all pools may open, against its slots.
//!
//! Certain is what live agents have just told of a server that they know by its own identifier, or by an address that
//! means the same to everybody. Everything else counts in the upper end alone: pools of an agent that fell silent or
//! stopped, old levels, and pools that lead to one of the server's addresses without having been seen to be its.

use std::collections::{BTreeMap, BTreeSet};

use tickbird_shared::levels::{Amount, Levels, PoolLevel};

use super::identity::{Addresses, Server, identity};
use crate::aggregate::Key;

/// A sum of parts, not all of which are exactly known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The least it can be.
    pub low: u64,
    /// The most it can be; none when a part has no upper end.
    pub high: Option<u64>,
}

impl Default for Range {
    fn default() -> Self {
        Self { low: 0, high: Some(0) }
    }
}

impl Range {
    fn add(&mut self, low: u32, high: Option<u32>) {
        self.low += u64::from(low);
        self.high = self.high.zip(high).map(|(sum, part)| sum + u64::from(part));
    }
}

/// What one application takes of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Agents that see it.
    pub agents: BTreeSet<String>,
    /// Its processes.
    pub instances: u64,
    /// Most connections that it may open.
    pub limit: Range,
    /// Connections that it has open.
    pub open: u64,
    /// Connections that it has leased.
    pub leased: Range,
    /// Why its limit is not known, of one of its pools.
    pub why_unknown: Option<String>,
}

/// One server and all that lead to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// An address that it is known by.
    pub(super) name: String,
    /// Sessions that ordinary roles may have.
    pub(super) slots: Option<u32>,
    /// Sessions that are used, by whomever, as the server says itself.
    pub(super) used: Option<u32>,
    /// Most connections that all pools may open.
    pub(super) limit: Range,
    /// Connections that they have open.
    pub(super) open: u64,
    /// Of those, the ones of pools whose limit is not known.
    open_unlimited: u64,
    /// Connections that they have leased.
    pub(super) leased: Range,
    /// A part of it is of an agent that does not speak now, or old.
    pub(super) is_stale: bool,
    /// The same, application by application.
    pub(super) applications: BTreeMap<String, Share>,
}

/// Levels of one agent, and whether they say how it is now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) levels: &'a Levels,
    pub(super) is_fresh: bool,
}

/// Adds up everything that was told.
pub(super) fn sums<'a>(told: impl Iterator<Item = (&'a Key, Told<'a>)> + Clone) -> BTreeMap<Server, Sum> {
    let mut sums: BTreeMap<Server, Sum> = BTreeMap::new();
    let addresses = Addresses::of(told.clone());
    let fresh_first = told.clone().filter(|(_, it)| it.is_fresh).chain(told.clone().filter(|(_, it)| !it.is_fresh));
    for ((tenant, agent), it) in fresh_first {
        for level in &it.levels.servers {
            let server = (tenant.clone(), identity(agent, &level.server));
            let sum = sums.entry(server).or_default();
            sum.describe(&level.server.address, exact(&level.slots), exact(&level.used), it.is_fresh);
        }
    }
    for ((tenant, agent), it) in told {
        for pool in &it.levels.pools {
            let own = identity(agent, &pool.server);
            let identified = addresses.resolve(tenant, agent, &pool.server);
            let is_certain = it.is_fresh && identified.as_ref().is_none_or(|it| *it == own);
            let sum = sums.entry((tenant.clone(), identified.unwrap_or(own))).or_default();
            sum.add(agent, pool, is_certain);
            sum.is_stale |= !it.is_fresh;
        }
        if it.levels.left_out > 0 {
            // Which servers the rest leads to was not told.
            for level in &it.levels.servers {
                if let Some(sum) = sums.get_mut(&(tenant.clone(), identity(agent, &level.server))) {
                    sum.limit.high = None;
                }
            }
        }
    }
    sums.values_mut().for_each(Sum::add_unlimited);
    sums
}

/// A value that is exactly known.
fn exact(amount: &Amount) -> Option<u32> {
    if let Amount::Known(value) = amount { Some(*value) } else { None }
}

impl Sum {
    fn describe(&mut self, address: &str, slots: Option<u32>, used: Option<u32>, is_fresh: bool) {
        let is_better = self.name.is_empty() || address < self.name.as_str();
        if is_better {
            self.name = address.to_owned();
        }
        // What is old only fills a gap; while agents hear of a changed setting one after another, more room is believed.
        if is_fresh || self.slots.is_none() {
            self.slots = self.slots.max(slots);
        }
        self.used = self.used.max(used.filter(|_| is_fresh));
    }

    /// A pool without a known limit takes what it has open; but a proxy has its clients' connections open a second time,
    /// so all of these together take no more than the server says is used beside the others.
    fn add_unlimited(&mut self) {
        let others = self.open - self.open_unlimited;
        let beside = self.used.map_or(0, |used| u64::from(used).saturating_sub(others));
        self.limit.low += self.open_unlimited.min(beside);
    }

    fn add(&mut self, agent: &str, pool: &PoolLevel, is_certain: bool) {
        // A limit that is not known is at least what is open.
        let (low, high) = match &pool.limit {
            Amount::Unknown(_) => (pool.open, None),
            limit => (limit.low(), limit.high()),
        };
        let low = if is_certain { low } else { 0 };
        let (open, leased) = if is_certain { (pool.open, pool.leased.low()) } else { (0, 0) };
        if self.name.is_empty() {
            self.name.clone_from(&pool.server.address);
        }
        let share = self.applications.entry(pool.application.clone()).or_default();
        share.agents.insert(agent.to_owned());
        share.instances += u64::from(pool.instances);
        share.limit.add(low, high);
        share.open += u64::from(open);
        share.leased.add(leased, pool.leased.high());
        if let Amount::Unknown(why) = &pool.limit {
            share.why_unknown.get_or_insert_with(|| why.clone());
        }
        match (&pool.limit, is_certain) {
            (Amount::Unknown(_), true) => {
                self.limit.high = None;
                self.open_unlimited += u64::from(open);
            }
            _ => self.limit.add(low, high),
        }
        self.open += u64::from(open);
        self.leased.add(leased, pool.leased.high());
    }
}
