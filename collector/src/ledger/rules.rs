//! What the ledger goes by, and may go by otherwise while it serves.

use std::collections::BTreeMap;
use std::fmt;

use crate::aggregate::Rule;
use crate::alert::Policy;
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

/// Receivers that are in no configuration and were told of incidents that fire, with the number of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed(BTreeMap<String, usize>);

impl Owed {
    /// Those of `owed` that are neither configured nor abandoned, if there are any.
    pub(super) fn beyond(rules: &Rules, mut owed: BTreeMap<String, usize>) -> Option<Self> {
        owed.retain(|name, _| {
            rules.policy.receivers.iter().all(|it| it.name != *name) && !rules.abandoned.contains(name)
        });
        (!owed.is_empty()).then_some(Self(owed))
    }
}

impl fmt::Display for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, count)) in self.0.iter().enumerate() {
            let and = if at == 0 { "" } else { ", and " };
            let end = if *count == 1 { "the end of an incident" } else { "the ends of" };
            write!(f, "{and}`{name}` was told of what fires, is owed {end}")?;
            if *count > 1 {
                write!(f, " {count} incidents")?;
            }
            write!(f, ", and is in the configuration no more")?;
        }
        Ok(())
    }
}

impl Owed {
    /// What an operator can do.
    pub const ADVICE: &str =
        "put it back until they are over, or write its name into abandoned_receivers: it will never hear of their ends";
}
