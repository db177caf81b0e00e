//! What the ledger goes by, and may go by otherwise while it serves.

use std::collections::BTreeMap;
use std::fmt;

use crate::aggregate::Rule;
use crate::alert::{Policy, Receiver};
use crate::store::Bounds;

/// What of a configuration the ledger decides by.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Who hears of incidents.
    pub policy: Policy,
    /// What operators have added up over many agents.
    pub fleet: Vec<Rule>,
    /// How long and how much is kept.
    pub bounds: Bounds,
    /// Receivers that were taken out though they are owed something: they never hear it.
    pub abandoned: Vec<String>,
}

impl Rules {
    fn receiver(&self, name: &str) -> Option<&Receiver> {
        self.policy.receivers.iter().find(|it| it.name == name)
    }
}

/// Receivers that would lose what they are owed by a reload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owed {
    /// Those in no configuration that were told of incidents that fire, with the number of these.
    gone: BTreeMap<String, usize>,
    /// Those of another kind than before, with the number of messages that wait in the old form.
    reshaped: BTreeMap<String, usize>,
    /// The same with the number of incidents whose ends they are owed: another than was told that they fire would hear of them.
    replaced: BTreeMap<String, usize>,
}

impl Owed {
    /// Those of `owed` that are neither configured nor abandoned, if there are any.
    pub(super) fn beyond(rules: &Rules, mut owed: BTreeMap<String, usize>) -> Option<Self> {
        owed.retain(|name, _| rules.receiver(name).is_none() && !rules.abandoned.contains(name));
        (!owed.is_empty()).then_some(Self { gone: owed, ..Self::default() })
    }

    /// The same, and those that take another form than they did by the rules `before`, while messages `waiting` have the old one.
    pub(super) fn of_change(
        before: &Rules,
        rules: &Rules,
        owed: BTreeMap<String, usize>,
        waiting: BTreeMap<String, usize>,
    ) -> Option<Self> {
        let is_reshaped = |name: &str| match (before.receiver(name), rules.receiver(name)) {
            (Some(was), Some(is)) => was.form.kind() != is.form.kind(),
            _ => false,
        };
        let reshaped: BTreeMap<_, _> = waiting.into_iter().filter(|(name, _)| is_reshaped(name)).collect();
        let ends = owed.iter().filter(|(name, _)| is_reshaped(name) && !reshaped.contains_key(*name));
        let replaced: BTreeMap<_, _> = ends.map(|(name, count)| (name.clone(), *count)).collect();
        let gone = Self::beyond(rules, owed).map(|it| it.gone).unwrap_or_default();
        let is_owed = [&gone, &reshaped, &replaced].iter().any(|it| !it.is_empty());
        is_owed.then_some(Self { gone, reshaped, replaced })
    }

    /// What an operator can do.
    pub fn advice(&self) -> &'static str {
        if self.gone.is_empty() {
            "give the new one another name, and keep this one until what waits is delivered and what fires is over"
        } else {
            "put it back until they are over, or write its name into abandoned_receivers: it will never hear of their ends"
        }
    }
}

impl fmt::Display for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = |count: usize| match count {
            1 => "the end of an incident".to_owned(),
            _ => format!("the ends of {count} incidents"),
        };
        let gone = self.gone.iter().map(|(name, count)| {
            let ends = ends(*count);
            format!("`{name}` was told of what fires, is owed {ends}, and is in the configuration no more")
        });
        let replaced = self
            .replaced
            .iter()
            .map(|(name, count)| format!("`{name}` is of another kind, and the old one is owed {}", ends(*count)));
        let reshaped = self.reshaped.iter().map(|(name, count)| {
            let wait = match count {
                1 => "a message waits".to_owned(),
                _ => format!("{count} messages wait"),
            };
            format!("`{name}` is of another kind, and {wait} for it in the form of the old one")
        });
        f.write_str(&gone.chain(reshaped).chain(replaced).collect::<Vec<_>>().join(", and "))
    }
}
