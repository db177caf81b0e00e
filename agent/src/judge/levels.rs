//! How full the pools of this host and their servers are now, for the rules over many agents. Nothing is judged here.
//!
//! A server is named by its own identifier, which is the same whatever address it is reached by. What it told of itself
//! is kept while it does not answer: a server that is full must not look like another one.

mod dsn;

use std::collections::BTreeMap;
use std::time::Duration;

use tickbird_shared::levels::{
    Amount, FORM, Levels, MAX_ADDRESSES, MAX_POOLS, MAX_SERVERS, PoolLevel, ServerLevel, ServerName,
};
use tickbird_shared::protocol::{MAX_KEY_BYTES, MAX_LABEL_BYTES};

use super::pool::join::{self, Join};
use super::{CheckId, Moment, lost_sight};
use crate::discover::TargetKey;
use crate::inspect::host::{Owner, PoolRow};
use crate::inspect::server::Standing;
use crate::inspect::{HostLook, ServerLook, Value};

/// At most so often.
const EVERY: Duration = Duration::from_secs(10);
/// At least so often, also when nothing changed.
const REPEAT: Duration = Duration::from_secs(60);
/// Until every server had its first look: before that, names and limits would be told that change a moment later.
const FIRST: Duration = Duration::from_secs(15);
/// A process younger than this may be about to replace another: in a rolling restart both are there for a while.
const YOUNG: Duration = Duration::from_secs(60);

/// What was told, and what is remembered of servers that do not answer.
#[derive(Debug, Default)]
pub struct Telling {
    looked: Option<Duration>,
    told: Option<(Duration, Levels)>,
    known: BTreeMap<TargetKey, Known>,
}

/// A server as it last described itself.
#[derive(Debug, Clone)]
struct Known {
    name: ServerName,
    slots: Amount,
    by_transaction: Option<bool>,
}

impl Telling {
    /// What is to be told now, if anything.
    pub fn due<'a>(
        &mut self,
        host: &HostLook,
        servers: impl Iterator<Item = &'a ServerLook> + Clone,
        now: Moment,
    ) -> Option<Levels> {
        let is_time = self.looked.map_or(now.mono >= FIRST, |at| now.mono.saturating_sub(at) >= EVERY);
        // No sockets at all is no empty pool; levels that are not told grow old at the collector.
        if !is_time || lost_sight(host, CheckId::Utilization, host.pools.is_empty()).is_some() {
            return None;
        }
        self.looked = Some(now.mono);
        self.remember(servers.clone());
        let levels = self.levels(host, servers, now);
        let is_told = self.told.as_ref().is_some_and(|(at, told)| {
            let same = told.pools == levels.pools && told.servers == levels.servers && told.left_out == levels.left_out;
            let nothing = levels.pools.is_empty() && levels.servers.is_empty();
            same && (nothing || now.mono.saturating_sub(*at) < REPEAT)
        });
        if is_told {
            return None;
        }
        self.told = Some((now.mono, levels.clone()));
        Some(levels)
    }

    fn remember<'a>(&mut self, servers: impl Iterator<Item = &'a ServerLook> + Clone) {
        self.known.retain(|target, _| servers.clone().any(|look| look.target == *target));
        for look in servers {
            let before = self.known.get(&look.target);
            let slots = match (amount(&look.slots), before) {
                (Amount::Unknown(_), Some(before)) => before.slots.clone(),
                (slots, _) => slots,
            };
            let address = address(look).or_else(|| before.map(|it| it.name.address.clone()));
            let address = address.unwrap_or_else(|| cut(look.target.as_str(), MAX_KEY_BYTES).to_owned());
            let name = match (identifier(look), before) {
                (Some((system, replica)), _) => ServerName { system: Some(system), replica, address },
                (None, Some(before)) => ServerName { address, ..before.name.clone() },
                (None, None) => ServerName { system: None, replica: false, address },
            };
            let before = before.and_then(|it| it.by_transaction);
            let by_transaction = dsn::told_by_the_pooler(look).or(before.filter(|_| look.sessions.is_err()));
            self.known.insert(look.target.clone(), Known { name, slots, by_transaction });
        }
    }

    fn levels<'a>(
        &self,
        host: &HostLook,
        servers: impl Iterator<Item = &'a ServerLook> + Clone,
        now: Moment,
    ) -> Levels {
        let mut groups: BTreeMap<(&TargetKey, ServerName), Group<'_>> = BTreeMap::new();
        let mut led: Vec<bool> = vec![false; host.pools.len()];
        for look in servers.clone() {
            let Some(known) = self.known.get(&look.target) else { continue };
            let is_of_server = join::is_of_server(look, &host.pools);
            let join = join::join(look, &host.pools);
            for (row, led) in host.pools.iter().zip(&mut led).filter(|(row, _)| is_of_server(&row.remote)) {
                // Two looks at one server, at a database each, see the same pool.
                if !std::mem::replace(led, true) {
                    let group = groups.entry((&row.target, known.name.clone())).or_default();
                    group.by_pooler = group.by_pooler.or(known.by_transaction);
                    group.add(row, Some((look, &join)));
                }
            }
        }
        for (row, led) in host.pools.iter().zip(led) {
            if !led && row.service.is_some() {
                let name = ServerName { system: None, replica: false, address: row.remote.to_string() };
                groups.entry((&row.target, name)).or_default().add(row, None);
            }
        }
        let mut pools: Vec<_> = groups.into_iter().map(|((target, server), it)| it.level(target, server)).collect();
        // Those of servers that are asked can be added up, so they come first where there is not room for all.
        pools.sort_by_key(|it| (it.server.system.is_none(), std::cmp::Reverse(it.open)));
        let left_out = u32::try_from(pools.len().saturating_sub(MAX_POOLS)).unwrap_or(u32::MAX);
        pools.truncate(MAX_POOLS);
        let servers = servers.filter_map(|look| Some(server_level(look, self.known.get(&look.target)?)));
        let mut servers: Vec<_> = servers.collect();
        servers.dedup_by(|later, first| later.server == first.server && later.slots == first.slots);
        servers.truncate(MAX_SERVERS);
        Levels { form: FORM, observed_at: now.wall, pools, left_out, servers }
    }
}

/// The instances of one pool.
#[derive(Default)]
struct Group<'a> {
    rows: Vec<&'a PoolRow>,
    leased: Option<Amount>,
    sessions: Vec<(&'a str, &'a str)>,
    /// What the pooler says of itself.
    by_pooler: Option<bool>,
    /// The server itself has sessions of it: nothing between them hands out connections.
    is_direct: bool,
}

impl<'a> Group<'a> {
    fn add(&mut self, row: &'a PoolRow, view: Option<(&'a ServerLook, &Join<'a>)>) {
        self.rows.push(row);
        let leased = match view {
            None => Amount::Unknown("the server is not asked".into()),
            Some((ServerLook { sessions: Err(reason), .. }, _)) => unknown(&reason.to_string()),
            Some((_, join)) if join.is_translated() => Amount::Unknown("address translated".into()),
            Some((look, join)) => {
                let of_row = join.joined.iter().filter(|it| std::ptr::eq(it.pool, row));
                self.is_direct |= dsn::is_direct(look, of_row.clone());
                self.sessions.extend(of_row.clone().map(|it| (&*it.session.database, &*it.session.user)));
                let certain = of_row.filter(|it| it.session.state.is_leased()).count();
                Amount::between(count(certain), count(row.connections.len().max(certain)))
            }
        };
        self.leased = Some(match self.leased.take() {
            Some(before) => sum(before, leased),
            None => leased,
        });
    }

    fn level(self, target: &TargetKey, server: ServerName) -> PoolLevel {
        let application = match &self.rows[0].owner {
            Owner::Seen { application, .. } => application.name.to_string(),
            Owner::NotVisible { uid, cgroup } => Owner::unseen(*uid, *cgroup),
        };
        let limit = self.rows.iter().map(|row| limit(row)).reduce(sum).unwrap_or(Amount::Known(0));
        let (database, user) = match self.sessions.split_first() {
            Some((first, rest)) if rest.iter().all(|it| it == first) => {
                (Some(cut(first.0, MAX_KEY_BYTES).to_owned()), Some(cut(first.1, MAX_KEY_BYTES).to_owned()))
            }
            _ => (None, None),
        };
        PoolLevel {
            target: cut(target.as_str(), MAX_KEY_BYTES).to_owned(),
            server,
            database,
            user,
            application: cut(&application, MAX_KEY_BYTES).to_owned(),
            instances: count(self.rows.len()),
            limit,
            open: count(self.rows.iter().map(|row| row.connections.len()).sum()),
            leased: self.leased.unwrap_or(Amount::Known(0)),
            dsn: dsn::level(&self.rows),
            by_transaction: dsn::by_transaction(&self.rows, self.by_pooler, self.is_direct),
        }
    }
}

fn server_level(look: &ServerLook, known: &Known) -> ServerLevel {
    let addresses = look.addresses.iter().take(MAX_ADDRESSES).map(ToString::to_string).collect();
    let Known { name, slots, by_transaction } = known.clone();
    let asked_as = look.target.server_address().map(|it| cut(it, MAX_KEY_BYTES).to_owned());
    ServerLevel { server: name, addresses, asked_as, slots, used: amount(&look.used), by_transaction }
}

/// Most connections of one instance, as far as that may be added up.
fn limit(row: &PoolRow) -> Amount {
    let limit = amount(&row.limit.value);
    let is_young = row.process_age.is_some_and(|age| age < YOUNG);
    match limit {
        Amount::Known(most) | Amount::Between(_, most) if count(row.connections.len()) > most => {
            Amount::Unknown("more connections are open than its limit allows: perhaps a second pool".into())
        }
        Amount::Known(most) | Amount::Between(_, most) if is_young => Amount::between(0, most),
        other => other,
    }
}

/// The server's own identifier and whether it is a replica, where it tells both: a replica has its primary's.
fn identifier(look: &ServerLook) -> Option<(String, bool)> {
    let system = look.facts.identifier.as_ref()?.as_ref().ok()?;
    let standing = look.facts.standing.as_ref()?.as_ref().ok()?;
    Some((cut(system, MAX_KEY_BYTES).to_owned(), matches!(standing, Standing::Replica { .. })))
}

fn address(look: &ServerLook) -> Option<String> {
    let over_unix = || look.socket_path.as_ref().map(|path| cut(&format!("unix:{path}"), MAX_KEY_BYTES).to_owned());
    look.addresses.first().map(ToString::to_string).or_else(over_unix)
}

fn amount(value: &Value) -> Amount {
    // The cast saturates and knows no NaN; a count beyond it is no count.
    let whole = |value: f64| value.round() as u32;
    match value {
        Value::Known(value) => Amount::Known(whole(*value)),
        // A sum with it would be without end, too.
        Value::Between(low, high) if high.is_infinite() => {
            unknown(&format!("at least {low}, and nothing says how many at most"))
        }
        Value::Between(low, high) => Amount::between(whole(*low), whole(*high)),
        Value::Unknown(reason) => unknown(&reason.to_string()),
    }
}

fn unknown(reason: &str) -> Amount {
    Amount::Unknown(cut(reason, MAX_LABEL_BYTES).to_owned())
}

/// What two parts are together; not known when one is not.
fn sum(one: Amount, other: Amount) -> Amount {
    match (one, other) {
        (unknown @ Amount::Unknown(_), _) | (_, unknown @ Amount::Unknown(_)) => unknown,
        (one, other) => {
            let high = one.high().unwrap_or_default().saturating_add(other.high().unwrap_or_default());
            Amount::between(one.low().saturating_add(other.low()), high)
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The text, at most so many bytes of it.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests;
