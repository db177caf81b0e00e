//! Tests of a configuration, written by whoever writes it: what fires, and who has to be told.

use std::collections::BTreeMap;
use std::path::Path;

use tickbird_shared::{Severity, Timestamp};

use super::fields::Fields;
use super::trials::{self, RuleTest};
use super::{Config, Mistake, Mistakes, table};
use crate::aggregate::Rule;
use crate::alert::{Facts, Foreseen, Policy, given};

/// One `[[test]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// What it is about, for people.
    pub name: String,
    /// When; now where nothing is said.
    pub at: Option<Timestamp>,
    /// What the incident is about, and its agent's labels.
    pub facts: Facts,
    /// Others that fire then.
    pub firing: Vec<Facts>,
    /// Exactly these receivers are told.
    pub told: Vec<String>,
    /// These are led to and not told; a part of the reason.
    pub not_told: BTreeMap<String, String>,
    /// By receiver, the values by which it is grouped.
    pub group: BTreeMap<String, BTreeMap<String, String>>,
}

/// All tests of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tests {
    /// Who is told.
    pub told: Vec<Expectation>,
    /// What rules make fire.
    pub rules: Vec<RuleTest>,
}

/// Reads a file of tests.
///
/// # Errors
/// Every mistake, not only the first.
pub fn read(path: &Path, config: &Config) -> Result<Tests, Mistakes> {
    let failed = |mistakes| Mistakes { path: path.into(), mistakes };
    let text = std::fs::read_to_string(path).map_err(|error| {
        let (what, advice) =
            (format!("cannot be read: {error}"), "name a file of [[test]] and [[rule_test]] tables".into());
        failed(vec![Mistake { at: String::new(), what, advice }])
    })?;
    parse(&text, &config.policy, &config.rules).map_err(failed)
}

fn parse(text: &str, policy: &Policy, rules: &[Rule]) -> Result<Tests, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut root = Fields::new(String::new(), table(text).map_err(|it| vec![it])?);
    let tables = root.tables("test", &mut mistakes);
    let of_rules = root.tables("rule_test", &mut mistakes);
    if tables.is_empty() && of_rules.is_empty() && mistakes.is_empty() {
        let advice = "write [[test]] or [[rule_test]] tables";
        root.mistake("test", "is missing: nothing is tested".into(), advice, &mut mistakes);
    }
    let told = tables.into_iter().map(|it| expectation(it, policy, &mut mistakes)).collect();
    let rules = trials::tests(of_rules, rules, &mut mistakes);
    root.finish(&mut mistakes);
    if mistakes.is_empty() { Ok(Tests { told, rules }) } else { Err(mistakes) }
}

fn expectation(mut fields: Fields, policy: &Policy, mistakes: &mut Vec<Mistake>) -> Expectation {
    let name = fields.text("name", mistakes).unwrap_or_else(|| fields.at().to_owned());
    let at = fields.text("at", mistakes).and_then(|text| {
        let read = text.parse().ok();
        if read.is_none() {
            let advice = "write it like \"2026-11-21T03:00:00+01:00\"";
            fields.mistake("at", format!("`{text}` is no time with its zone"), advice, mistakes);
        }
        read
    });
    if !fields.has("labels") {
        fields.mistake(
            "labels",
            "is missing: what fires".into(),
            "write labels = { check = \"db.headroom\" }",
            mistakes,
        );
    }
    let facts = facts(fields.table("labels", mistakes), mistakes);
    let firing = fields.tables("firing", mistakes).into_iter().map(|it| self::facts(it, mistakes)).collect();
    if !fields.has("told") {
        fields.mistake("told", "is missing: who has to be told".into(), "write told = [] for nobody", mistakes);
    }
    let told = fields.texts("told", mistakes).unwrap_or_default();
    let not_told = fields.table("not_told", mistakes).all_texts(mistakes);
    let mut table = fields.table("group", mistakes);
    let groups: Vec<_> = table.keys();
    let of = |name: String| {
        let labels = table.table(&name, mistakes).all_texts(mistakes);
        (name, labels)
    };
    let group: BTreeMap<_, _> = groups.into_iter().map(of).collect();
    let named = told.iter().map(|it| ("told", it));
    let named = named.chain(not_told.keys().map(|it| ("not_told", it))).chain(group.keys().map(|it| ("group", it)));
    for (key, name) in named.filter(|(_, name)| policy.receivers.iter().all(|it| it.name != **name)) {
        fields.mistake(key, format!("there is no receiver `{name}`"), "name a [[receiver]]", mistakes);
    }
    fields.finish(mistakes);
    Expectation { name, at, facts, firing, told, not_told, group }
}

fn facts(fields: Fields, mistakes: &mut Vec<Mistake>) -> Facts {
    let at = fields.at().to_owned();
    let facts = given(fields.all_texts(mistakes));
    if let Some(severity) = facts.get("severity").filter(|it| it.parse::<Severity>().is_err()) {
        let (what, advice) = (format!("`{severity}` is no severity"), "write info, warning or critical".to_owned());
        mistakes.push(Mistake { at: format!("{at}.severity"), what, advice });
    }
    facts
}

impl Expectation {
    /// What is otherwise than expected, in words; nothing when all is as it should be.
    pub fn problems(&self, policy: &Policy, now: Timestamp) -> Vec<String> {
        let seen = policy.foresee(&self.facts, &self.firing, self.at.unwrap_or(now));
        let way =
            |it: &Foreseen| it.route.as_ref().map_or_else(|| "for there are no routes".into(), |at| format!("by {at}"));
        let mut problems = Vec::new();
        for name in &self.told {
            let ways: Vec<_> = seen.iter().filter(|it| it.receiver == *name).collect();
            match ways.first() {
                None => problems.push(format!("{name} is not told: no route leads there")),
                // Of several ways one that speaks is enough.
                Some(first) if ways.iter().all(|it| it.silent.is_some()) => {
                    problems.push(format!("{name} is not told: {}", first.silent.as_deref().unwrap_or_default()));
                }
                Some(_) => (),
            }
        }
        for it in seen.iter().filter(|it| it.silent.is_none() && !self.told.contains(&it.receiver)) {
            problems.push(format!("{} is told, {}", it.receiver, way(it)));
        }
        for (name, part) in &self.not_told {
            let why: Vec<_> =
                seen.iter().filter(|it| it.receiver == *name).filter_map(|it| it.silent.as_ref()).collect();
            if why.is_empty() && seen.iter().all(|it| it.receiver != *name) {
                problems.push(format!("{name} is not told, but because no route leads there"));
            } else if let Some(first) = why.first()
                && !why.iter().any(|it| it.contains(part.as_str()))
            {
                problems.push(format!("{name} is not told, but because: {first}"));
            }
        }
        for (name, expected) in &self.group {
            // Of several ways the first that speaks is taken.
            let ways = || seen.iter().filter(|it| it.receiver == *name);
            let found =
                ways().find(|it| it.silent.is_none()).or_else(|| ways().next()).and_then(|it| it.group.as_ref());
            if found != Some(expected) {
                let found = found.map_or_else(|| "in no group".into(), |it| format!("with {it:?}"));
                problems.push(format!("{name} is told {found}, and not with {expected:?}"));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
[[receiver]]
name = "pager"
webhook.url = "http://127.0.0.1:1/"
min_severity = "critical"
[[receiver]]
name = "desk"
webhook.url = "http://127.0.0.1:2/"
[route]
receiver = "desk"
[[route.routes]]
receiver = "pager"
matchers = ["team=db"]
continue = true
group_by = ["team"]
[[route.routes]]
receiver = "desk"
mute_time_intervals = ["nights"]
[[time_intervals]]
name = "nights"
[[time_intervals.time_intervals]]
times = [{ start_time = "00:00", end_time = "06:00" }]
[[inhibit_rules]]
source_matchers = ["check=db.connect"]
target_matchers = ["check=~\"http.*\""]
equal = ["host"]
"#;

    fn policy() -> Policy {
        Config::parse(CONFIG, Path::new(".")).expect("sound").policy
    }

    fn problems(test: &str) -> Vec<String> {
        let policy = policy();
        let found = parse(&format!("[[test]]\n{test}"), &policy, &[]).expect("sound");
        found.told[0].problems(&policy, "2026-11-21T12:00:00Z".parse().expect("a time"))
    }

    #[test]
    fn what_is_as_expected_has_no_problem() {
        let day = "name = \"d\"\nlabels = { check = \"db.headroom\", severity = \"critical\", team = \"db\" }\n";
        assert_eq!(problems(&format!("{day}told = [\"pager\", \"desk\"]\ngroup.pager = {{ team = \"db\" }}")), [""; 0]);
        let night = format!("{day}at = \"2026-11-21T03:00:00Z\"\ntold = [\"pager\"]\nnot_told.desk = \"nights\"");
        assert_eq!(problems(&night), [""; 0]);
        let page =
            "labels = { check = \"http.status\", host = \"a\" }\nfiring = [{ check = \"db.connect\", host = \"a\" }]\n";
        assert_eq!(problems(&format!("{page}told = []\nnot_told.desk = \"inhibited by db.connect\"")), [""; 0]);
    }

    #[test]
    fn each_thing_that_is_otherwise_is_named() {
        let labels = "labels = { check = \"db.headroom\", severity = \"warning\", team = \"db\" }\n";
        assert_eq!(
            problems(&format!("{labels}told = [\"pager\"]")),
            [
                "pager is not told: below min_severity: warning is less than critical",
                "desk is told, by route.routes[1]"
            ]
        );
        let other =
            format!("{labels}told = [\"desk\"]\nnot_told.pager = \"silenced\"\ngroup.pager = {{ team = \"web\" }}");
        assert_eq!(
            problems(&other),
            [
                "pager is not told, but because: below min_severity: warning is less than critical",
                "pager is told with {\"team\": \"db\"}, and not with {\"team\": \"web\"}"
            ]
        );
        let web = "labels = { check = \"http.status\" }\ntold = [\"desk\", \"pager\"]\nnot_told.pager = \"x\"\ngroup.desk = {}";
        assert_eq!(
            problems(web),
            [
                "pager is not told: no route leads there",
                "pager is not told, but because no route leads there",
                "desk is told in no group, and not with {}"
            ]
        );
    }

    #[test]
    fn mistakes_are_told_all_at_once() {
        let said = |text: &str| {
            let mistakes = parse(text, &policy(), &[]).expect_err("wrong");
            mistakes.into_iter().map(|it| format!("{}: {}", it.at, it.what)).collect::<Vec<_>>()
        };
        assert_eq!(said(""), ["test: is missing: nothing is tested"]);
        assert_eq!(
            said("[[test]]\nat = \"noon\"\nlabels = { severity = \"bad\", n = 3 }\ntold = [\"nobody\"]\nfring = []"),
            [
                "test[0].at: `noon` is no time with its zone",
                "test[0].labels.n: is not a text but an integer",
                "test[0].labels.severity: `bad` is no severity",
                "test[0].told: there is no receiver `nobody`",
                "test[0].fring: is not a key here",
            ]
        );
        assert_eq!(
            said("[[test]]"),
            ["test[0].labels: is missing: what fires", "test[0].told: is missing: who has to be told"]
        );
        assert!(said("[[test]\n")[0].contains("line 1"));
    }
}
