//! Which receivers an incident leads to: a tree of routes with Alertmanager's words and meaning.
//!
//! An incident enters at the top. At each node the children are tried in order; the first that matches takes it, and the
//! next ones are tried as well when that says `continue`. A node none of whose children matches tells its own receiver.

use std::collections::BTreeMap;

use super::Matcher;
use super::escalation::Step;
use super::group::Grouping;
use crate::aggregate::rule_labels;
use crate::store::{AgentRow, IncidentRow};

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it stands in the configuration: `route`, `route.routes[1]`.
    pub at: String,
    /// The matchers of those above it and its own, in a row: what it is known by when another one is put before it.
    pub path: String,
    /// Who is told, its parent's receiver unless it names one.
    pub receiver: String,
    /// All of them have to match; the top has none.
    pub matchers: Vec<Matcher>,
    /// The next of its siblings are tried, too.
    pub goes_on: bool,
    /// Tried in order.
    pub routes: Vec<Route>,
    /// How incidents are told together; none where each is told by itself and at once.
    pub grouping: Option<Grouping>,
    /// Names of time intervals in which it tells nobody anything.
    pub mute: Vec<String>,
    /// Names of those outside of all of which it does not either, if there are any.
    pub active: Vec<String>,
    /// Who is told after a time of what it told and is nobody's.
    pub escalate: Vec<Step>,
}

/// What matchers ask: labels of the agent, and what the incident is about, which wins.
pub type Facts = BTreeMap<String, String>;

/// What is known of an incident: its agent's labels, or those that a rule groups by; `alertname` and `check`, `severity`, `target`, `sub_key`, `agent`, `host` and
/// `tenant`.
pub fn facts(incident: &IncidentRow, agent: Option<&AgentRow>) -> Facts {
    let mut facts = Facts::new();
    if let Some(agent) = agent {
        facts.extend(agent.labels().iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        facts.insert("host".into(), agent.host.clone());
    }
    facts.extend(rule_labels(incident));
    facts.extend(own(incident).into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
    facts
}

/// Those that are of the incident itself.
fn own(incident: &IncidentRow) -> [(&'static str, &str); 7] {
    [
        ("alertname", &incident.check),
        ("check", &incident.check),
        ("severity", incident.severity.as_str()),
        ("target", &incident.target),
        ("sub_key", incident.sub_key.as_deref().unwrap_or_default()),
        ("agent", &incident.agent),
        ("tenant", &incident.tenant),
    ]
}

/// Facts that all of them have with the same value. Fifty thousand maps of texts would be made to be dropped, so only the first is.
pub(super) fn common<'a>(all: impl IntoIterator<Item = (&'a IncidentRow, Option<&'a AgentRow>)>) -> Facts {
    let mut all = all.into_iter();
    let Some((first, agent)) = all.next() else { return Facts::new() };
    let (mut common, mut last) = (facts(first, agent), agent);
    // A rule's labels are of its incident alone.
    let mut had_labels = !rule_labels(first).is_empty();
    for (incident, agent) in all {
        if common.is_empty() {
            break;
        }
        let has_labels = !rule_labels(incident).is_empty();
        // What is left was the same at the last one; of the same agent its labels are still.
        let is_same_agent = match (last, agent) {
            (Some(last), Some(agent)) => std::ptr::eq(last, agent),
            (last, agent) => last.is_none() && agent.is_none(),
        } && !had_labels
            && !has_labels;
        had_labels = has_labels;
        let of_agent = if is_same_agent { None } else { Some(facts(incident, agent)) };
        let own = own(incident);
        common.retain(|name, value| match (own.iter().find(|(it, _)| it == name), &of_agent) {
            (Some((_, own)), _) => own == value,
            (None, Some(facts)) => facts.get(name) == Some(value),
            (None, None) => true,
        });
        last = agent;
    }
    common
}

impl Route {
    fn matches(&self, facts: &Facts) -> bool {
        self.matchers.iter().all(|it| it.matches(facts.get(it.label()).map_or("", String::as_str)))
    }

    /// Who may be told by this node itself, at once or after a time.
    pub(super) fn hearers(&self) -> impl Iterator<Item = &str> {
        self.escalate.iter().map(|it| it.receiver.as_str()).chain([self.receiver.as_str()])
    }

    /// The nodes that an incident of these facts ends at, in order; at least one below the top.
    pub fn lead(&self, facts: &Facts) -> Vec<&Self> {
        let mut ends = Vec::new();
        if self.matches(facts) {
            self.descend(facts, &mut ends);
        }
        ends
    }

    fn descend<'a>(&'a self, facts: &Facts, ends: &mut Vec<&'a Self>) {
        let before = ends.len();
        for child in &self.routes {
            if child.matches(facts) {
                child.descend(facts, ends);
                if !child.goes_on {
                    break;
                }
            }
        }
        if ends.len() == before {
            ends.push(self);
        }
    }

    /// Every node, this one first.
    pub fn all(&self) -> Vec<&Self> {
        let mut all = vec![self];
        self.routes.iter().for_each(|it| all.extend(it.all()));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tickbird_shared::Severity;

    use super::*;
    use crate::alert::tests;

    fn route(receiver: &str, matchers: &[&str], goes_on: bool, routes: Vec<Route>) -> Route {
        let matchers = matchers.iter().map(|it| it.parse().expect("a matcher")).collect();
        let (mute, active) = (Vec::new(), Vec::new());
        Route {
            at: receiver.into(),
            path: receiver.into(),
            receiver: receiver.into(),
            matchers,
            goes_on,
            routes,
            grouping: None,
            mute,
            active,
            escalate: Vec::new(),
        }
    }

    /// Everything goes to the team; what is critical to the pager, of databases to the DBA's and on to the archive.
    fn tree() -> Route {
        let pager = route("pager", &["severity=critical"], false, vec![route("dba", &["team=db"], false, Vec::new())]);
        let archive = route("archive", &["check=~\"pool\\..*\""], true, Vec::new());
        route("team", &[], false, vec![archive, pager, route("desk", &["severity!=info"], false, Vec::new())])
    }

    fn ends(facts: &[(&str, &str)]) -> Vec<String> {
        let facts = facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        tree().lead(&facts).iter().map(|it| it.receiver.clone()).collect()
    }

    #[test]
    fn the_first_that_matches_takes_it_unless_it_goes_on() {
        assert_eq!(ends(&[("severity", "critical"), ("team", "web")]), ["pager"]);
        assert_eq!(ends(&[("severity", "critical"), ("team", "db")]), ["dba"]);
        assert_eq!(ends(&[("severity", "warning")]), ["desk"]);
        assert_eq!(ends(&[("severity", "info")]), ["team"], "none of its children: the top itself");
        assert_eq!(ends(&[("severity", "warning"), ("check", "pool.leak")]), ["archive", "desk"]);
        assert_eq!(ends(&[("severity", "info"), ("check", "pool.leak")]), ["archive"], "a child took it");
    }

    #[test]
    fn what_a_rule_groups_by_leads_its_incidents() {
        let rule = incident("rule.open", r#"fleet{env="pro\"d",team="db"}"#, 1).0;
        let found = facts(&rule, None);
        let of = |name: &str| found.get(name).map(String::as_str);
        assert_eq!((of("env"), of("team"), of("check")), (Some("pro\"d"), Some("db"), Some("rule.open")));
        let of_agent = IncidentRow { agent: "a-1".into(), ..rule };
        assert_eq!(facts(&of_agent, None).get("env"), None, "an agent's own target says nothing of the kind");
    }

    /// An incident, and whose it is; two of the same host are of the same agent.
    fn incident(check: &str, target: &str, host: u8) -> (IncidentRow, AgentRow) {
        let row = tests::incident(check, Severity::Warning, 1);
        let agent = AgentRow { host: format!("web-{host}"), ..tests::an_agent() };
        let of_rule = check.starts_with("rule.") && target.starts_with("fleet");
        let owner = if of_rule { "fleet".to_owned() } else { row.agent.clone() };
        (IncidentRow { target: target.into(), agent: owner, ..row }, agent)
    }

    proptest! {
        #[test]
        fn what_all_have_in_common_is_what_the_facts_of_each_say(
            all in proptest::collection::vec(
                ("pool.leak|rule.open", "a|fleet[{]env=\"[ab]\"[}]", 0..3_u8, any::<bool>()), 0..6,
            ),
        ) {
            let rows: Vec<_> = all.iter().map(|(check, target, host, _)| incident(check, target, *host)).collect();
            let hosts: BTreeMap<_, _> = rows.iter().map(|(_, agent)| (&agent.host, agent)).collect();
            let found: Vec<_> = rows.iter().zip(&all).map(|((row, agent), it)| (row, it.3.then(|| hosts[&agent.host]))).collect();
            let each: Vec<Facts> = found.iter().map(|(row, agent)| facts(row, *agent)).collect();
            let mut expected = each.first().cloned().unwrap_or_default();
            expected.retain(|name, value| each.iter().all(|it| it.get(name) == Some(value)));
            prop_assert_eq!(common(found), expected);
        }

        #[test]
        fn an_incident_always_leads_somewhere(severity in "info|warning|critical", team in "|db|web", check in "pool.leak|http.status") {
            let ends = ends(&[("severity", &severity), ("team", &team), ("check", &check)]);
            prop_assert!(!ends.is_empty());
        }
    }
}
