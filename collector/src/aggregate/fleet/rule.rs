//! Rules over many agents that operators write (`[[rule]]`): the sum, largest, smallest, number or a quantile of a measure, group
//! by group, against bounds.
//!
//! Every ten seconds a rule looks at the newest that all agents told (`series`) and adds it up (`group`); what is over a bound for
//! its hold fires, one incident for each group (`watch`). A sum of which not all is known has two ends, and only the certain one
//! decides. Agents tell as often as a rule looks, so counting along with each record would cost more than a look, and
//! could drift; between two looks nothing is kept of a sum.

mod evidence;
mod group;
mod series;
mod trial;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tickbird_shared::{Fingerprint, Timestamp};

use super::{FLEET, Levelled, Outcome};
use crate::aggregate::matcher::Matcher;
use crate::aggregate::{Key, Orphan, Presence};
use crate::store::{AgentRow, IncidentRow};

pub use series::{Measure, Span};
pub use trial::{Given, Trial};

use super::identity::Addresses;
use series::{Series, Who, World};
use watch::Watch;

/// Most rules of a configuration.
pub const MAX_RULES: usize = 100;
/// Most groups of one rule and tenant; of what is beyond them one incident tells.
pub(super) const MAX_GROUPS: usize = 1_000;
/// Most labels that a rule groups by.
pub const MAX_BY: usize = 5;
/// What the check of a rule's incidents begins with.
pub(in crate::aggregate) const PREFIX: &str = "rule.";
/// How long something must be over its bound, where nothing is said.
pub const HOLD: Duration = Duration::from_secs(60);
/// The target of what tells of too many groups.
const BEYOND: &str = "groups";
/// The longest value of a label within a target, in bytes; of a longer one a part and a hash stand there.
const LONGEST: usize = 100;

/// A rule as it is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What its incidents are called, after `rule.`.
    pub name: String,
    /// What is added up.
    pub measure: Measure,
    /// How.
    pub aggregate: Aggregate,
    /// Labels whose values a group has in common; none for one group of all.
    pub by: Vec<String>,
    /// All have to match what is added up.
    pub matchers: Vec<Matcher>,
    /// Bounds are shares of this, added up the same way.
    pub of: Option<Measure>,
    /// From where on it fires.
    pub bounds: Bounds,
    /// How long it must be over a bound.
    pub hold: Duration,
    /// How long it must not be, for the end.
    pub clear_hold: Duration,
    /// What people read first.
    pub summary: Option<String>,
    /// What they do next.
    pub advice: Option<String>,
}

/// How many values become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aggregate {
    /// All together.
    Sum,
    /// The largest.
    Max,
    /// The smallest.
    Min,
    /// How many there are, whatever they say.
    Count,
    /// The smallest value that this part of them does not exceed.
    Quantile(f64),
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sum => f.write_str("sum"),
            Self::Max => f.write_str("max"),
            Self::Min => f.write_str("min"),
            Self::Count => f.write_str("count"),
            Self::Quantile(part) => write!(f, "quantile {part}"),
        }
    }
}

/// Which side of a bound is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// More than the bound.
    Above,
    /// Less than the bound.
    Below,
}

impl Side {
    /// `above` or `below`, as in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Above => "above",
            Self::Below => "below",
        }
    }
}

/// From where on a rule fires; one of the two at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// The bad side.
    pub side: Side,
    /// The bound of a warning.
    pub warning: Option<f64>,
    /// The bound of what is critical.
    pub critical: Option<f64>,
}

/// `sum of pool.open by server, of server.slots: warning above 0.8, critical above 0.95 for 60 s`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.aggregate, self.measure.as_str())?;
        let matchers: Vec<_> = self.matchers.iter().map(ToString::to_string).collect();
        if !matchers.is_empty() {
            write!(f, " where {}", matchers.join(", "))?;
        }
        if !self.by.is_empty() {
            write!(f, " by {}", self.by.join(", "))?;
        }
        if let Some(of) = self.of {
            write!(f, ", as a share of {}", of.as_str())?;
        }
        let Bounds { side, warning, critical } = self.bounds;
        let bounds = [("warning", warning), ("critical", critical)];
        let bounds = bounds.into_iter().filter_map(|(word, bound)| Some((word, bound?)));
        let bounds: Vec<_> = bounds.map(|(word, bound)| format!("{word} {} {bound}", side.as_str())).collect();
        write!(f, ": {} for {} s, over after {} s", bounds.join(", "), self.hold.as_secs(), self.clear_hold.as_secs())
    }
}

impl Rule {
    fn check(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// Whether something is added up here.
    fn takes(&self, series: &Series<'_>) -> bool {
        let knows = |it: &&Matcher| self.measure.kind() == series.kind() || series.has(it.label());
        self.matchers.iter().filter(knows).all(|it| it.matches(series.label(it.label())))
    }
}

/// All rules and what they have seen.
#[derive(Debug, Default)]
pub(super) struct Rules {
    all: Vec<(Rule, Watch)>,
    /// Every agent that is not denied; nobody while there are no rules.
    agents: HashMap<Key, Who>,
}

impl Rules {
    /// Rules with what fires of them, and what fires of rules that are no more.
    pub(super) fn load<'a>(
        rules: &[Rule],
        agents: &[AgentRow],
        firing: impl Iterator<Item = &'a IncidentRow>,
    ) -> (Self, Vec<Orphan>) {
        let watches = rules.iter().enumerate().map(|(at, rule)| (rule.clone(), Watch::at_place(at)));
        let mut it = Self { all: watches.collect(), agents: HashMap::new() };
        agents.iter().for_each(|row| it.describe(row));
        let mut orphans = Vec::new();
        for row in firing {
            let Some(name) = row.check.strip_prefix(PREFIX) else { continue };
            match it.all.iter_mut().find(|(rule, _)| rule.name == name) {
                None => orphans.push((row.fingerprint, "rule gone", "the rule is not configured any more")),
                Some((rule, watch)) => {
                    if !watch.resume(rule, row) {
                        orphans.push((row.fingerprint, "rule changed", "the rule groups by other labels now"));
                    }
                }
            }
        }
        (it, orphans)
    }

    /// What was seen by a rule that is what it was counts on: who reloads each minute has holds of an hour all the same.
    pub(super) fn go_on_from(&mut self, mut before: Self) {
        for (rule, watch) in &mut self.all {
            if let Some(at) = before.all.iter().position(|(it, _)| it == rule) {
                *watch = before.all.swap_remove(at).1;
            }
        }
    }

    /// An agent as its row says.
    pub(super) fn describe(&mut self, row: &AgentRow) {
        if !self.all.is_empty() && row.denied_at.is_none() {
            let who = Who { host: row.host.clone(), labels: row.labels(), has_spoken: row.last_seen_at.is_some() };
            self.agents.insert((row.tenant.clone(), row.id.clone()), who);
        }
    }

    pub(super) fn forget(&mut self, agent: &Key) {
        self.agents.remove(agent);
    }

    /// Looks with each rule whose time it is. They take turns, so that no second has the work of all.
    pub(super) fn tick(
        &mut self,
        levels: &BTreeMap<Key, Levelled>,
        addresses: &Addresses,
        (now, listened): (Timestamp, Duration),
        presence: &dyn Fn(&Key) -> Presence,
    ) -> Vec<Outcome> {
        let world = World { levels, addresses, agents: &self.agents, presence, now };
        let due = self.all.iter_mut().filter(|(_, watch)| watch.is_due(listened));
        due.flat_map(|(rule, watch)| watch.look(rule, &world, now, listened)).collect()
    }

    /// Whether a rule asks which server is which.
    pub(super) fn need_servers(&self) -> bool {
        let asks = |rule: &Rule| {
            let is_server = |it: &Measure| it.kind() == series::Kind::Server;
            is_server(&rule.measure) || rule.of.as_ref().is_some_and(is_server) || rule.names(series::SERVER)
        };
        self.all.iter().any(|(rule, _)| asks(rule))
    }
}

impl Rule {
    /// Whether it groups by a label or asks for it.
    fn names(&self, label: &str) -> bool {
        self.by.iter().any(|it| it == label) || self.matchers.iter().any(|it| it.label() == label)
    }
}

/// Writes tenant and group of a series as one text: the tenant, a zero byte, and the target `fleet{application="shop"}`.
fn write_key(key: &mut String, by: &[String], series: &Series<'_>) {
    key.clear();
    key.push_str(series.tenant());
    key.push('\0');
    write_target(key, by.iter().map(|name| (name.as_str(), series.label(name))));
}

fn write_target<'a>(target: &mut String, labels: impl Iterator<Item = (&'a str, &'a str)>) {
    target.push_str(FLEET);
    let mut sign = '{';
    for (name, value) in labels {
        target.push(sign);
        target.push_str(name);
        target.push_str("=\"");
        if value.len() > LONGEST {
            write_value(target, &shortened(value));
        } else {
            write_value(target, value);
        }
        target.push('"');
        sign = ',';
    }
    if sign == ',' {
        target.push('}');
    }
}

fn write_value(target: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '"' | '\\' => target.extend(['\\', c]),
            '\n' => target.push_str("\\n"),
            c => target.push(c),
        }
    }
}

/// The begin of a long value and a hash of all of it: two that differ stay two.
fn shortened(value: &str) -> String {
    let end = (0..=LONGEST - 20).rev().find(|it| value.is_char_boundary(*it)).unwrap_or_default();
    let hash: String = Sha256::digest(value).iter().take(8).map(|it| format!("{it:02x}")).collect();
    format!("{}~{hash}", &value[..end])
}

/// The labels of a group, read from the target of its incident.
pub(in crate::aggregate) fn labels_of(target: &str) -> Option<Vec<(String, String)>> {
    let rest = target.strip_prefix(FLEET)?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let mut rest = rest.strip_prefix('{')?;
    let mut labels = Vec::new();
    loop {
        let (name, after) = rest.split_once("=\"")?;
        let (mut value, mut end) = (String::new(), None);
        let mut letters = after.char_indices();
        while let Some((at, c)) = letters.next() {
            match c {
                '"' => {
                    end = Some(at + 1);
                    break;
                }
                '\\' => value.push(match letters.next()?.1 {
                    'n' => '\n',
                    c => c,
                }),
                c => value.push(c),
            }
        }
        labels.push((name.to_owned(), value));
        match &after[end?..] {
            "}" => return Some(labels),
            more => rest = more.strip_prefix(',')?,
        }
    }
}

fn fingerprint(tenant: &str, rule: &Rule, target: &str) -> Fingerprint {
    Fingerprint::of(tenant, FLEET, &rule.check(), target, None)
}

#[cfg(test)]
mod tests;
