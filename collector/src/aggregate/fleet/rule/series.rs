//! What rules add up: one value of each pool, server or agent, with its labels, as it was last told.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use tickbird_shared::levels::{Amount, PoolLevel};
use tickbird_shared::{Labels, Timestamp};

use super::super::identity::{Addresses, identity};
use super::super::{FRESH, Levelled};
use crate::aggregate::incident::elapsed;
use crate::aggregate::{Key, Presence};

/// The label of a server: its identity.
pub(super) const SERVER: &str = "server";

/// What can be added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// 1 for an agent that speaks, 0 for one that fell silent or said goodbye.
    AgentPresent,
    /// Processes that hold a pool.
    PoolInstances,
    /// Connections that a pool has handed out.
    PoolLeased,
    /// Most connections that a pool may open.
    PoolLimit,
    /// Connections that a pool has open.
    PoolOpen,
    /// Sessions that ordinary roles may have at a server.
    ServerSlots,
    /// How many of them are used.
    ServerUsed,
}

/// What a measure is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Agent,
    Pool,
    Server,
}

impl Measure {
    /// All there are.
    pub const ALL: [Self; 7] = [
        Self::AgentPresent,
        Self::PoolInstances,
        Self::PoolLeased,
        Self::PoolLimit,
        Self::PoolOpen,
        Self::ServerSlots,
        Self::ServerUsed,
    ];

    /// Its name: `pool.open`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AgentPresent => "agent.present",
            Self::PoolInstances => "pool.instances",
            Self::PoolLeased => "pool.leased",
            Self::PoolLimit => "pool.limit",
            Self::PoolOpen => "pool.open",
            Self::ServerSlots => "server.slots",
            Self::ServerUsed => "server.used",
        }
    }

    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::AgentPresent => Kind::Agent,
            Self::PoolInstances | Self::PoolLeased | Self::PoolLimit | Self::PoolOpen => Kind::Pool,
            Self::ServerSlots | Self::ServerUsed => Kind::Server,
        }
    }

    /// Whether it can have a label. What is of an agent has the agent's labels, whatever these are.
    pub fn has(self, label: &str) -> bool {
        self.kind().has(label)
    }
}

impl Kind {
    fn has(self, label: &str) -> bool {
        const OF_POOLS: [&str; 6] = ["application", SERVER, "address", "database", "user", "target"];
        match self {
            Self::Server => label == SERVER,
            Self::Agent => !OF_POOLS.contains(&label),
            Self::Pool => true,
        }
    }
}

/// A name that is no measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no measure")]
pub struct NoMeasure;

impl FromStr for Measure {
    type Err = NoMeasure;

    fn from_str(text: &str) -> Result<Self, NoMeasure> {
        Self::ALL.into_iter().find(|it| it.as_str() == text).ok_or(NoMeasure)
    }
}

/// What a value is, from the least to the most that it can be. Nothing here is less than 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// The least.
    pub low: f64,
    /// The most; infinite when nobody knows.
    pub high: f64,
}

impl Span {
    /// Of what nothing is known.
    pub const UNKNOWN: Self = Self { low: 0.0, high: f64::INFINITY };

    /// Exactly this.
    pub const fn known(value: f64) -> Self {
        Self { low: value, high: value }
    }

    fn of(amount: &Amount, at_least: u32) -> Self {
        let high = amount.high().map_or(f64::INFINITY, f64::from);
        let low = if high.is_infinite() { at_least } else { amount.low() };
        Self { low: f64::from(low), high }
    }

    /// This as a part of another.
    pub(super) fn share_of(self, whole: Self) -> Self {
        // Of nothing there is no share.
        if whole.high <= 0.0 {
            return Self::UNKNOWN;
        }
        let low = if whole.high.is_finite() { self.low / whole.high } else { 0.0 };
        let high = if whole.low > 0.0 { self.high / whole.low } else { f64::INFINITY };
        Self { low, high }
    }
}

/// An agent, as rules know it.
#[derive(Debug)]
pub(super) struct Who {
    pub(super) host: String,
    pub(super) labels: Labels,
    /// It was heard at least once: one that was only enrolled is not missed.
    pub(super) has_spoken: bool,
}

/// One value and what it is of.
#[derive(Debug)]
pub(super) struct Series<'a> {
    about: About<'a>,
    pub(super) span: Span,
    /// It is there, and says how it is now. Else it is as it was last told, or gone.
    pub(super) is_certain: bool,
    /// Its agent has more of these than it told.
    pub(super) hides_more: bool,
}

#[derive(Debug)]
enum About<'a> {
    Agent(&'a Key, &'a Who),
    Pool { key: &'a Key, who: Option<&'a Who>, pool: &'a PoolLevel, server: Cow<'a, str> },
    Server { tenant: &'a str, server: &'a str },
    Given(Kind, &'a BTreeMap<String, String>),
}

impl<'a> Series<'a> {
    /// What the test of a rule gives.
    pub(super) const fn given(kind: Kind, labels: &'a BTreeMap<String, String>, span: Span) -> Self {
        Self { about: About::Given(kind, labels), span, is_certain: true, hides_more: false }
    }

    pub(super) fn tenant(&self) -> &str {
        match &self.about {
            About::Agent(key, _) | About::Pool { key, .. } => &key.0,
            About::Server { tenant, .. } => tenant,
            About::Given(..) => "",
        }
    }

    pub(super) const fn kind(&self) -> Kind {
        match &self.about {
            About::Agent(..) => Kind::Agent,
            About::Pool { .. } => Kind::Pool,
            About::Server { .. } => Kind::Server,
            About::Given(kind, _) => *kind,
        }
    }

    pub(super) fn has(&self, label: &str) -> bool {
        self.kind().has(label)
    }

    /// The value of a label; empty where there is none. What it is of wins over the labels of its agent.
    pub(super) fn label(&self, name: &str) -> &str {
        match &self.about {
            About::Given(_, labels) => labels.get(name).map_or("", String::as_str),
            About::Server { server, .. } => {
                if name == SERVER {
                    server
                } else {
                    ""
                }
            }
            About::Agent(key, who) => of_agent(name, key, Some(who)),
            About::Pool { key, who, pool, server } => match name {
                "application" => &pool.application,
                SERVER => server,
                "address" => &pool.server.address,
                "database" => pool.database.as_deref().unwrap_or_default(),
                "user" => pool.user.as_deref().unwrap_or_default(),
                "target" => &pool.target,
                _ => of_agent(name, key, *who),
            },
        }
    }

    /// What it is called among others: its own key, and its agent's host.
    pub(super) fn name(&self) -> (&str, &str) {
        match &self.about {
            About::Agent(key, who) => (&key.1, &who.host),
            About::Pool { key, who, pool, .. } => (&pool.target, who.map_or(&key.1, |it| &it.host)),
            About::Server { server, .. } => (server, ""),
            About::Given(_, labels) => (labels.values().next().map_or("", String::as_str), ""),
        }
    }
}

fn of_agent<'a>(name: &str, key: &'a Key, who: Option<&'a Who>) -> &'a str {
    match name {
        "agent" => &key.1,
        "tenant" => &key.0,
        "host" => who.map_or("", |it| &it.host),
        _ => who.and_then(|it| it.labels.get(name)).unwrap_or_default(),
    }
}

/// Where values come from.
pub(super) trait Source {
    /// Calls `act` with every value of a measure. `with_servers` when somebody asks at which server a pool is.
    fn each(&self, measure: Measure, with_servers: bool, act: &mut dyn FnMut(&Series<'_>));
}

/// What all agents told.
pub(super) struct World<'a> {
    pub(super) levels: &'a BTreeMap<Key, Levelled>,
    pub(super) addresses: &'a Addresses,
    pub(super) agents: &'a HashMap<Key, Who>,
    pub(super) presence: &'a dyn Fn(&Key) -> Presence,
    pub(super) now: Timestamp,
}

impl Source for World<'_> {
    fn each(&self, measure: Measure, with_servers: bool, act: &mut dyn FnMut(&Series<'_>)) {
        match measure.kind() {
            Kind::Agent => self.each_agent(act),
            Kind::Pool => self.each_pool(measure, with_servers, act),
            Kind::Server => self.each_server(measure, act),
        }
    }
}

impl World<'_> {
    fn each_agent(&self, act: &mut dyn FnMut(&Series<'_>)) {
        for (key, who) in self.agents {
            let span = match (self.presence)(key) {
                Presence::Live => Span::known(1.0),
                Presence::Missing | Presence::Stopped => Span::known(0.0),
                // Since the collector started it has not had its time to speak.
                Presence::Unknown if who.has_spoken => Span { low: 0.0, high: 1.0 },
                Presence::Unknown => continue,
            };
            act(&Series { about: About::Agent(key, who), span, is_certain: true, hides_more: false });
        }
    }

    fn each_pool(&self, measure: Measure, with_servers: bool, act: &mut dyn FnMut(&Series<'_>)) {
        for (key, it) in self.levels {
            let is_fresh = self.is_fresh(it);
            let who = self.agents.get(key);
            for pool in &it.levels.pools {
                let span = match measure {
                    Measure::PoolInstances => Span::known(f64::from(pool.instances)),
                    Measure::PoolLeased => Span::of(&pool.leased, 0),
                    // What has no known limit has what is open at least.
                    Measure::PoolLimit => Span::of(&pool.limit, pool.open),
                    _ => Span::known(f64::from(pool.open)),
                };
                let (mut server, mut is_certain) = (Cow::Borrowed(""), is_fresh);
                if with_servers {
                    let own = identity(&key.1, &pool.server);
                    // That an address leads to this server is what others say of it.
                    let resolved = self.addresses.resolve(&key.0, &key.1, &pool.server);
                    is_certain &= resolved.as_ref().is_none_or(|it| *it == own);
                    server = Cow::Owned(resolved.unwrap_or(own));
                }
                let about = About::Pool { key, who, pool, server };
                act(&Series { about, span, is_certain, hides_more: it.levels.left_out > 0 });
            }
        }
    }

    /// Each server once, however many agents ask it: of what is told now the most exact, of two the larger; what is old only
    /// fills a gap.
    fn each_server(&self, measure: Measure, act: &mut dyn FnMut(&Series<'_>)) {
        let mut servers: BTreeMap<(&str, String), (bool, Span)> = BTreeMap::new();
        for ((tenant, agent), it) in self.levels {
            let is_fresh = self.is_fresh(it);
            for level in &it.levels.servers {
                let amount = if measure == Measure::ServerSlots { &level.slots } else { &level.used };
                let told = (is_fresh, Span::of(amount, 0));
                let best = servers.entry((tenant, identity(agent, &level.server))).or_insert(told);
                let rank = |(is_fresh, span): &(bool, Span)| (*is_fresh, span.low - span.high, span.low);
                if rank(&told) > rank(best) {
                    *best = told;
                }
            }
        }
        for ((tenant, server), (is_certain, span)) in &servers {
            let about = About::Server { tenant, server };
            act(&Series { about, span: *span, is_certain: *is_certain, hides_more: false });
        }
    }

    fn is_fresh(&self, it: &Levelled) -> bool {
        it.gone.is_none() && elapsed(it.seen_at, self.now) < FRESH
    }
}
