//! Inhibition: while one incident fires nobody hears of another that it explains. By index: what fires is kept by the values that
//! have to be equal, so that a storm of incidents costs each of them one look.

use std::collections::{BTreeMap, HashMap};

use super::{Facts, IncidentKey, Matcher};
use crate::store::IncidentRow;

/// A rule with Alertmanager's words and meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibition {
    /// Where it stands in the configuration: `inhibit_rules[0]`.
    pub at: String,
    /// All have to match the incident that explains.
    pub sources: Vec<Matcher>,
    /// All have to match the one that is explained.
    pub targets: Vec<Matcher>,
    /// Labels whose values are the same at both; one that is missing is empty.
    pub equal: Vec<String>,
}

pub(super) fn all(matchers: &[Matcher], facts: &Facts) -> bool {
    matchers.iter().all(|it| it.matches(facts.get(it.label()).map_or("", String::as_str)))
}

impl Inhibition {
    /// Whether what has one kind of facts, while it fires, explains what has the other; two that are both do not.
    pub(super) fn explains(&self, source: &Facts, target: &Facts) -> bool {
        let tenant = |facts: &Facts| facts.get("tenant").cloned().unwrap_or_default();
        let are_both = all(&self.targets, source) && all(&self.sources, target);
        all(&self.sources, source)
            && all(&self.targets, target)
            && !are_both
            && self.values(&tenant(source), source) == self.values(&tenant(target), target)
    }

    /// The values that have to be equal, those of one tenant apart from another's.
    fn values(&self, tenant: &str, facts: &Facts) -> Vec<String> {
        let values = self.equal.iter().map(|it| facts.get(it).cloned().unwrap_or_default());
        [tenant.to_owned()].into_iter().chain(values).collect()
    }
}

/// Incidents that fire, as sources of one rule, each with words for people: `db.connect of postgres:shop`.
#[derive(Debug, Default)]
struct There {
    plain: BTreeMap<IncidentKey, String>,
    /// Those that are what the rule's targets are, too; two such do not inhibit one another.
    both: BTreeMap<IncidentKey, String>,
}

/// Which rule, and the values that have to be equal.
type Place = (usize, Vec<String>);

/// Everything that fires and explains something.
#[derive(Debug, Default)]
pub(super) struct Sources {
    by_place: HashMap<Place, There>,
    places: HashMap<IncidentKey, Vec<Place>>,
}

/// What holds an incident back.
pub(super) struct Holder<'a> {
    /// The incident that explains it.
    pub(super) incident: &'a str,
    what: &'a str,
    at: &'a str,
}

impl Holder<'_> {
    /// Why nobody is told, for the record.
    pub(super) fn why(&self) -> String {
        format!("inhibited by incident {}, {}, by {}", self.incident, self.what, self.at)
    }
}

impl Sources {
    /// Takes an incident as it is now; true when it explained something that it does not explain any more.
    pub(super) fn take(&mut self, rules: &[Inhibition], incident: &IncidentRow, fires: bool, facts: &Facts) -> bool {
        if rules.is_empty() {
            return false;
        }
        let key = (incident.tenant.clone(), incident.id.clone());
        let of_rule = |(index, rule): (usize, &Inhibition)| {
            (fires && all(&rule.sources, facts)).then(|| (index, rule.values(&key.0, facts)))
        };
        let now: Vec<Place> = rules.iter().enumerate().filter_map(of_rule).collect();
        let before = self.places.remove(&key).unwrap_or_default();
        for place in &before {
            if let Some(there) = self.by_place.get_mut(place) {
                there.plain.remove(&key);
                there.both.remove(&key);
                if there.plain.is_empty() && there.both.is_empty() {
                    self.by_place.remove(place);
                }
            }
        }
        let is_gone = before.iter().any(|it| !now.contains(it));
        for place in &now {
            let is_target = rules.get(place.0).is_some_and(|rule| all(&rule.targets, facts));
            let there = self.by_place.entry(place.clone()).or_default();
            let side = if is_target { &mut there.both } else { &mut there.plain };
            side.insert(key.clone(), format!("{} of {}", incident.check, incident.target));
        }
        if !now.is_empty() {
            self.places.insert(key, now);
        }
        is_gone
    }

    /// What explains an incident of these facts.
    pub(super) fn holder<'a>(
        &'a self,
        rules: &'a [Inhibition],
        key: &IncidentKey,
        facts: &Facts,
    ) -> Option<Holder<'a>> {
        rules.iter().enumerate().filter(|(_, rule)| all(&rule.targets, facts)).find_map(|(index, rule)| {
            let there = self.by_place.get(&(index, rule.values(&key.0, facts)))?;
            // One that is a source itself is among those that are both.
            let both = there.both.iter().take_while(|_| !all(&rule.sources, facts));
            let (source, what) = there.plain.iter().chain(both).next()?;
            Some(Holder { incident: &source.1, what, at: &rule.at })
        })
    }
}
