//! Whether the services behind one pooler agree on what their DSNs say (`fleet.pool_params`).
//!
//! A DSN that lacks a key may belong to a program that sets it in its code, so one agent alone can only hint. But where
//! services of the same driver behind the same pooler write it into their DSNs, one that does not was forgotten.
//!
//! What counts is what a live agent has just told of a pool that leads to a pooler by transaction: as its own agent says,
//! else as all others that know this pooler say, else as its port says (6432). Servers are told apart as in `sum`; and
//! because containers of every host have the same addresses, those of container networks are of their host alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use tickbird_shared::levels::{DsnLevel, PoolLevel, ServerName};
use tickbird_shared::{Fingerprint, Timestamp};

use super::identity::{Addresses, Server, identity};
use super::sum::Told;
use super::{FLEET, HOLD, Outcome, evidence, target};
use crate::aggregate::Key;
use crate::store::IncidentRow;

/// Services of one driver behind one pooler set a key that others do not.
pub(in crate::aggregate) const POOL_PARAMS: &str = "fleet.pool_params";
/// PgBouncer's usual port.
const POOLER_PORT: u16 = 6432;
/// Looks that clear when nobody tells of the server any more: agents are asked for their word again after a loss.
const GONE: u8 = 12;

/// One pool as one agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    pub(super) agent: String,
    /// Its target, as far as it is shown.
    pub(super) target: String,
    pub(super) application: String,
}

/// Who has a key and who lacks it, by key.
pub(super) type Differences = BTreeMap<String, Split>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) with: BTreeSet<Service>,
    pub(super) without: BTreeSet<Service>,
}

/// What is known of one server now.
#[derive(Debug, Default)]
struct Behind {
    /// An address of it.
    name: String,
    /// Pools of which it is not known now what they say.
    unseen: BTreeSet<Service>,
    drivers: BTreeMap<String, Vec<(Service, DsnLevel)>>,
}

/// The comparison, and what its last looks said: by server and driver.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    looks: BTreeMap<(Server, String), Looks>,
}

#[derive(Debug, Default)]
struct Looks {
    fires: bool,
    since: Option<Timestamp>,
    /// Looks in a row that differ, and that clear.
    over: u8,
    under: u8,
    told: Option<Differences>,
    instead: Option<(Differences, u8)>,
    /// Services that were named last; while it fires and this is not known, every unseen one may have been.
    named: Option<BTreeSet<Service>>,
}

impl Comparison {
    /// What fires, as it is stored.
    pub(super) fn load<'a>(firing: impl Iterator<Item = &'a IncidentRow>) -> Self {
        let looks = firing.filter_map(|row| {
            let server = (row.tenant.clone(), row.target.strip_prefix("server:")?.to_owned());
            let named = evidence::named(&row.evidence);
            let looks = Looks { fires: true, since: Some(row.since), named, ..Looks::default() };
            Some(((server, row.sub_key.clone()?), looks))
        });
        Self { looks: looks.collect() }
    }

    /// One look.
    pub(super) fn look<'a>(
        &mut self,
        told: impl Iterator<Item = (&'a Key, Told<'a>)> + Clone,
        now: Timestamp,
    ) -> Vec<Outcome> {
        let cut_off: BTreeSet<&str> =
            told.clone().filter(|(_, it)| it.levels.left_out > 0).map(|((_, agent), _)| agent.as_str()).collect();
        let servers = behind(told);
        for (server, behind) in &servers {
            for driver in behind.drivers.keys() {
                self.looks.entry((server.clone(), driver.clone())).or_default();
            }
        }
        let mut outcomes = Vec::new();
        self.looks.retain(|(server, driver), looks| {
            let behind = servers.get(server);
            let services = behind.and_then(|it| it.drivers.get(driver));
            let differences = services.map(|it| differences(it)).unwrap_or_default();
            outcomes.extend(looks.look((server, driver), behind, differences, &cut_off, now));
            looks.fires || services.is_some()
        });
        outcomes
    }
}

impl Looks {
    fn look(
        &mut self,
        (server, driver): (&Server, &str),
        behind: Option<&Behind>,
        differences: Differences,
        cut_off: &BTreeSet<&str>,
        now: Timestamp,
    ) -> Option<Outcome> {
        let count = |looks: u8, is_so: bool| if is_so { looks.saturating_add(1) } else { 0 };
        self.over = count(self.over, !differences.is_empty());
        let is_seen = |it: &Service| {
            !cut_off.contains(it.agent.as_str()) && behind.is_none_or(|behind| !behind.unseen.contains(it))
        };
        let all_are_seen = match &self.named {
            Some(named) => named.iter().all(is_seen),
            None => cut_off.is_empty() && behind.is_none_or(|it| it.unseen.is_empty()),
        };
        self.under = count(self.under, differences.is_empty() && all_are_seen);
        if self.fires && self.under >= if behind.is_some() { HOLD } else { GONE } {
            *self = Self::default();
            let (why, reason) = match behind {
                Some(_) => ("cleared", "nobody lacks for 3 looks what another service has in its DSN"),
                None => ("target gone", "no agent tells of a pool to this server any more"),
            };
            return Some(Outcome::Ends(fingerprint(server, driver), why, reason.to_owned()));
        }
        if differences.is_empty() || !(self.fires || self.over >= HOLD) {
            self.instead = None;
            return None;
        }
        if self.fires && !self.is_news(&differences) {
            return None;
        }
        self.fires = true;
        self.instead = None;
        self.named = Some(differences.values().flat_map(|it| it.with.iter().chain(&it.without)).cloned().collect());
        let since = *self.since.get_or_insert(now);
        let name = behind.map_or("", |it| it.name.as_str());
        let finding = evidence::differing((server, name, driver), &differences, since, now);
        self.told = Some(differences);
        Some(Outcome::Fires(Box::new(finding)))
    }

    /// Whether something else than was told has been so for three looks.
    fn is_news(&mut self, differences: &Differences) -> bool {
        // After a restart the incident has its evidence already.
        if self.told.get_or_insert_with(|| differences.clone()) == differences {
            self.instead = None;
            return false;
        }
        let looks = self.instead.take().filter(|(it, _)| it == differences).map_or(1, |(_, looks)| looks + 1);
        self.instead = Some((differences.clone(), looks));
        looks >= HOLD
    }
}

pub(super) fn fingerprint(server: &Server, driver: &str) -> Fingerprint {
    Fingerprint::of(&server.0, FLEET, POOL_PARAMS, &target(server), Some(driver))
}

/// Puts each pool behind its server.
fn behind<'a>(told: impl Iterator<Item = (&'a Key, Told<'a>)> + Clone) -> BTreeMap<Server, Behind> {
    let addresses = Addresses::of(told.clone());
    let place = |tenant: &str, agent: &str, name: &ServerName| {
        let server = addresses.resolve(tenant, agent, name).unwrap_or_else(|| identity(agent, name));
        let is_repeated = name.system.is_none() && is_of_containers(&name.address);
        (tenant.to_owned(), if is_repeated { format!("{agent}/{}", name.address) } else { server })
    };
    // What is said of how each pooler hands out connections: a server has a way to it for each of its addresses.
    let way = |server: &Server, name: &ServerName| {
        let address = name.system.as_ref().map_or("", |_| &name.address);
        (server.clone(), address.to_owned())
    };
    let mut said: BTreeMap<(Server, String), BTreeSet<bool>> = BTreeMap::new();
    for ((tenant, agent), it) in told.clone().filter(|(_, it)| it.is_fresh) {
        let pools = it.levels.pools.iter().map(|it| (&it.server, it.by_transaction));
        let servers = it.levels.servers.iter().map(|it| (&it.server, it.by_transaction));
        for (name, by_transaction) in pools.chain(servers) {
            let server = place(tenant, agent, name);
            said.entry(way(&server, name)).or_default().extend(by_transaction);
        }
    }
    let mut servers: BTreeMap<Server, Behind> = BTreeMap::new();
    for ((tenant, agent), it) in told {
        for pool in &it.levels.pools {
            let server = place(tenant, agent, &pool.server);
            let others = said.get(&way(&server, &pool.server));
            let behind = servers.entry(server).or_default();
            if behind.name.is_empty() || pool.server.address < behind.name {
                behind.name.clone_from(&pool.server.address);
            }
            let service = Service {
                agent: agent.clone(),
                target: evidence::cut(&pool.target).to_owned(),
                application: evidence::cut(&pool.application).to_owned(),
            };
            match (is_by_transaction(pool, others), &pool.dsn) {
                _ if !it.is_fresh => drop(behind.unseen.insert(service)),
                // What is set does not matter there.
                (Some(false), _) => (),
                (Some(true), Some(dsn)) => {
                    behind.drivers.entry(dsn.driver.clone()).or_default().push((service, dsn.clone()));
                }
                _ => drop(behind.unseen.insert(service)),
            }
        }
    }
    servers
}

/// Whether a pool leads to a pooler by transaction, as far as somebody says so.
fn is_by_transaction(pool: &PoolLevel, others: Option<&BTreeSet<bool>>) -> Option<bool> {
    let by_port = || {
        let port = pool.server.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        (port == Some(POOLER_PORT)).then_some(true)
    };
    match others.map(|it| (it.len(), it.first().copied())) {
        _ if pool.by_transaction.is_some() => pool.by_transaction,
        None | Some((0, _)) => by_port(),
        Some((1, all)) => all,
        Some(_) => None,
    }
}

/// Addresses that every host gives to its own containers (Docker's default networks), or that mean something on one link.
fn is_of_containers(address: &str) -> bool {
    let Ok(address) = address.parse::<SocketAddr>() else { return false };
    match address.ip().to_canonical() {
        IpAddr::V4(it) => it.is_link_local() || (it.octets()[0] == 172 && (17..=30).contains(&it.octets()[1])),
        IpAddr::V6(it) => it.is_unicast_link_local(),
    }
}

/// Keys that somebody needs there, and that some have and others lack.
fn differences(services: &[(Service, DsnLevel)]) -> Differences {
    let required: BTreeSet<&String> = services.iter().flat_map(|(_, dsn)| &dsn.required).collect();
    let mut all = Differences::new();
    for key in required {
        let has = |dsn: &DsnLevel| key.split('|').any(|one| dsn.right.iter().any(|it| it == one));
        let mut split = Split::default();
        for (service, dsn) in services {
            let side = if has(dsn) { &mut split.with } else { &mut split.without };
            side.insert(service.clone());
        }
        if !split.with.is_empty() && !split.without.is_empty() {
            all.insert(key.clone(), split);
        }
    }
    all
}
