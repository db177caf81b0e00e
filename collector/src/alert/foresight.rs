//! Who would be told of an incident of these facts, for `route test` and for the tests of a configuration. It asks what deciding asks,
//! in the same order: the tree, the receiver, what explains it, the clock.

use std::collections::BTreeMap;

use tickbird_shared::{Severity, Timestamp};

use super::group::By;
use super::route::Facts;
use super::{Policy, Route};
use crate::aggregate::tells_of_receiver;

/// What is not worth an incident.
const RECORDS: &str = "a finding of severity info is recorded, and opens no incident";

/// One receiver to which an incident leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreseen {
    /// Who.
    pub receiver: String,
    /// Where the route stands that leads there; none without routes.
    pub route: Option<String>,
    /// The values by which the route groups it, if it groups: `incident` where each is told by itself.
    pub group: Option<BTreeMap<String, String>>,
    /// Why nobody is told there all the same.
    pub silent: Option<String>,
}

impl Route {
    /// The values by which it groups an incident of these facts, if it groups: `incident` where each is told by itself.
    pub fn foresee_group(&self, facts: &Facts) -> Option<BTreeMap<String, String>> {
        Some(match &self.grouping.as_ref()?.by {
            By::Each => BTreeMap::from([("incident".to_owned(), String::new())]),
            By::Labels(names) => {
                let of = |name: &String| (name.clone(), facts.get(name).cloned().unwrap_or_default());
                names.iter().map(of).collect()
            }
        })
    }
}

impl Policy {
    /// Every receiver to which facts lead at a moment, while others fire, in the order of the routes.
    pub fn foresee(&self, facts: &Facts, firing: &[Facts], now: Timestamp) -> Vec<Foreseen> {
        let ways: Vec<(&str, Option<&Route>)> = match &self.route {
            None => self.receivers.iter().map(|it| (it.name.as_str(), None)).collect(),
            Some(route) => route.lead(facts).into_iter().map(|it| (it.receiver.as_str(), Some(it))).collect(),
        };
        let explained = self.inhibitions.iter().find_map(|rule| {
            let source = firing.iter().find(|source| rule.explains(source, facts))?;
            let of = |label: &str| source.get(label).map_or("", String::as_str);
            Some(format!("inhibited by {} of {}, by {}", of("check"), of("target"), rule.at))
        });
        let of = |(name, route): (&str, Option<&Route>)| {
            let receiver = self.receivers.iter().find(|it| it.name == name)?;
            let check = facts.get("check").or_else(|| facts.get("alertname")).map_or("", String::as_str);
            let severity: Option<Severity> = facts.get("severity").and_then(|it| it.parse().ok());
            let target = facts.get("target").map_or("", String::as_str);
            // Without a severity none is too low.
            let records = (severity == Some(Severity::Info)).then(|| RECORDS.to_owned());
            let silent = records.or_else(|| receiver.does_not_want(check, severity.unwrap_or(Severity::Critical)));
            let silent = silent
                .or_else(|| tells_of_receiver(check, target, name).then(|| "it is about this receiver itself".into()));
            let mute = || route.and_then(|it| self.is_mute(it, now));
            Some(Foreseen {
                receiver: name.to_owned(),
                route: route.map(|it| it.at.clone()),
                group: route.and_then(|it| it.foresee_group(facts)),
                silent: silent.or_else(|| explained.clone()).or_else(mute),
            })
        };
        ways.into_iter().filter_map(of).collect()
    }
}

/// Facts as they were given, with both names of a check.
pub fn given(labels: impl IntoIterator<Item = (String, String)>) -> Facts {
    let mut facts: Facts = labels.into_iter().collect();
    for (name, other) in [("check", "alertname"), ("alertname", "check")] {
        if let Some(value) = facts.get(name).cloned() {
            facts.entry(other.into()).or_insert(value);
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::{Inhibition, Receiver};

    fn facts(labels: &[(&str, &str)]) -> Facts {
        given(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn without_routes_everybody_is_led_to_and_a_receivers_own_bounds_are_told() {
        let mut pager = Receiver::new("pager");
        pager.min_severity = Severity::Critical;
        let mut policy = Policy::from(vec![Receiver::new("ops"), pager]);
        let silent = |policy: &Policy, severity| {
            let seen = policy.foresee(&facts(&[("severity", severity), ("check", "pool.leak")]), &[], Timestamp::now());
            seen.into_iter().map(|it| it.silent.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(silent(&policy, "warning"), [false, true]);
        assert_eq!(silent(&policy, "critical"), [false, false]);
        policy.receivers[0].min_severity = Severity::Info;
        assert!(silent(&policy, "info")[0], "it opens no incident");
    }

    #[test]
    fn what_a_receiver_never_hears_of_is_said_without_a_severity_too() {
        let policy = Policy::from(vec![Receiver::new("ops")]);
        let silent = |labels: &[(&str, &str)]| policy.foresee(&facts(labels), &[], Timestamp::now()).remove(0).silent;
        assert_eq!(silent(&[("check", "agent.blind")]).as_deref(), Some("skip_checks holds agent.blind"));
        let away = [("check", "collector.receiver"), ("target", "receiver:ops"), ("severity", "warning")];
        assert_eq!(silent(&away).as_deref(), Some("it is about this receiver itself"));
        assert_eq!(silent(&[("check", "collector.receiver"), ("target", "receiver:desk")]), None);
    }

    /// The same as [`super::super::inhibition::Sources`] decides of incidents.
    #[test]
    fn what_fires_explains_what_has_equal_labels_and_two_of_a_kind_do_not_explain_one_another() {
        let matchers = |texts: &[&str]| texts.iter().map(|it| it.parse().expect("a matcher")).collect();
        let rule = Inhibition {
            at: "inhibit_rules[0]".into(),
            sources: matchers(&["severity=critical"]),
            targets: matchers(&["check=~\"http.*\""]),
            equal: vec!["host".into()],
        };
        let mut policy = Policy::from(vec![Receiver::new("ops")]);
        policy.inhibitions = vec![rule];
        let page = |severity, host| facts(&[("check", "http.status"), ("severity", severity), ("host", host)]);
        let database =
            facts(&[("check", "db.connect"), ("severity", "critical"), ("host", "web-1"), ("target", "postgres:shop")]);
        let why = |facts: &Facts, firing: &[Facts]| policy.foresee(facts, firing, Timestamp::now()).remove(0).silent;
        let said = "inhibited by db.connect of postgres:shop, by inhibit_rules[0]";
        assert_eq!(why(&page("warning", "web-1"), std::slice::from_ref(&database)).as_deref(), Some(said));
        assert_eq!(why(&page("warning", "web-2"), std::slice::from_ref(&database)), None, "another host");
        assert!(why(&page("critical", "web-1"), std::slice::from_ref(&database)).is_some());
        assert_eq!(why(&page("critical", "web-1"), &[page("critical", "web-1")]), None, "two of a kind");
        assert!(why(&page("warning", "web-1"), &[page("critical", "web-1")]).is_some());
    }
}
