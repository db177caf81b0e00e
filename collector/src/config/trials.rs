//! Tests of rules, written by whoever writes the rules: what is there and for how long, and what has to fire then.

use std::collections::BTreeMap;
use std::time::Duration;

use tickbird_shared::Severity;
use toml::Value;

use super::Mistake;
use super::fields::{Fields, number_of};
use crate::aggregate::{Given, Measure, Rule, Span, Trial};

/// The longest that one test may last: its time passes look by look.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// One `[[rule_test]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleTest {
    /// What it is about, for people.
    pub name: String,
    /// The rule.
    pub rule: String,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One `[[rule_test.step]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// How long it lasts.
    pub time: Duration,
    /// What is there.
    pub given: Vec<Given>,
    /// Exactly what fires at its end: labels of the group, and how grave it is.
    pub fires: Vec<(BTreeMap<String, String>, Severity)>,
}

pub(super) fn tests(tables: Vec<Fields>, rules: &[Rule], mistakes: &mut Vec<Mistake>) -> Vec<RuleTest> {
    tables.into_iter().map(|it| test(it, rules, mistakes)).collect()
}

fn test(mut fields: Fields, rules: &[Rule], mistakes: &mut Vec<Mistake>) -> RuleTest {
    let name = fields.text("name", mistakes).unwrap_or_else(|| fields.at().to_owned());
    let rule = fields.text("rule", mistakes).unwrap_or_default();
    if rules.iter().all(|it| it.name != rule) {
        let what = if rule.is_empty() { "is missing: which rule".into() } else { format!("there is no rule `{rule}`") };
        fields.mistake("rule", what, "name a [[rule]]", mistakes);
    }
    let tables = fields.tables("step", mistakes);
    if tables.is_empty() {
        let advice = "write [[rule_test.step]] with `for`, `series` and `fires`";
        fields.mistake("step", "is missing: what happens".into(), advice, mistakes);
    }
    let steps: Vec<_> = tables.into_iter().map(|it| step(it, mistakes)).collect();
    if steps.iter().map(|it| it.time).sum::<Duration>() > LONGEST {
        fields.mistake("step", "last longer than a day together".into(), "write shorter ones", mistakes);
    }
    fields.finish(mistakes);
    RuleTest { name, rule, steps }
}

fn step(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> Step {
    if !fields.has("for") {
        fields.mistake("for", "is missing: how long it lasts".into(), "write for = \"2m\"", mistakes);
    }
    let time = fields.duration("for", mistakes).unwrap_or_default();
    let given = fields.tables("series", mistakes).into_iter().map(|it| given(it, mistakes)).collect();
    if !fields.has("fires") {
        fields.mistake("fires", "is missing: what has to fire".into(), "write fires = [] for nothing", mistakes);
    }
    let fires = fields.tables("fires", mistakes).into_iter().map(|it| group(it, mistakes)).collect();
    fields.finish(mistakes);
    Step { time, given, fires }
}

/// `{ application = "shop", "pool.open" = 85 }`
fn given(fields: Fields, mistakes: &mut Vec<Mistake>) -> Given {
    let at = fields.at().to_owned();
    let mut given = Given { labels: BTreeMap::new(), values: Vec::new() };
    let mut no = |key: &str, what: &str, advice: &str| {
        mistakes.push(Mistake { at: format!("{at}.{key:?}"), what: what.into(), advice: advice.into() });
    };
    for (key, value) in fields.all() {
        match (key.parse::<Measure>(), &value) {
            (Ok(measure), value) => match span(value) {
                Some(span) => given.values.push((measure, span)),
                None => no(&key, "is no value", "write 85, [80, 90] or \"unknown\""),
            },
            (Err(_), Value::String(text)) => drop(given.labels.insert(key, text.clone())),
            (Err(_), _) => no(&key, "is neither a label nor a measure", "write a label's value in quotes"),
        }
    }
    if given.values.is_empty() {
        mistakes.push(Mistake {
            at,
            what: "has no value".into(),
            advice: "write { application = \"shop\", \"pool.open\" = 85 }".into(),
        });
    }
    given
}

fn span(value: &Value) -> Option<Span> {
    let number = |it: &Value| number_of(it).filter(|it| *it >= 0.0);
    match value {
        Value::String(text) if text == "unknown" => Some(Span::UNKNOWN),
        Value::Array(ends) => {
            let [low, high] = ends.as_slice() else { return None };
            let span = Span { low: number(low)?, high: number(high)? };
            (span.low <= span.high).then_some(span)
        }
        one => number(one).map(Span::known),
    }
}

fn group(fields: Fields, mistakes: &mut Vec<Mistake>) -> (BTreeMap<String, String>, Severity) {
    const SEVERITY: &str = "severity";
    let at = fields.at().to_owned();
    let mut labels = fields.all_texts(mistakes);
    let word = labels.remove(SEVERITY);
    let severity = word.as_ref().and_then(|it| it.parse().ok()).filter(|it| *it > Severity::Info);
    if severity.is_none() {
        let what = word.map_or_else(|| "is missing".into(), |it| format!("`{it}` is no severity of a rule"));
        let advice = "write \"warning\" or \"critical\"".into();
        mistakes.push(Mistake { at: format!("{at}.{SEVERITY}"), what, advice });
    }
    (labels, severity.unwrap_or(Severity::Warning))
}

impl RuleTest {
    /// What is otherwise than expected, in words; nothing when all is as it should be.
    pub fn problems(&self, rules: &[Rule]) -> Vec<String> {
        let Some(rule) = rules.iter().find(|it| it.name == self.rule) else { return Vec::new() };
        let (mut trial, mut passed, mut problems) = (Trial::new(rule), Duration::ZERO, Vec::new());
        for step in &self.steps {
            trial.pass(step.time, &step.given);
            passed += step.time;
            let mut found = trial.firing();
            let mut wanted = step.fires.clone();
            let named = |(labels, severity): &(BTreeMap<String, String>, Severity)| {
                let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let of = if labels.is_empty() { String::new() } else { format!(" of {}", labels.join(", ")) };
                format!("{severity}{of}")
            };
            let after = passed.as_secs();
            wanted.retain(|it| {
                let place = found.iter().position(|that| that == it);
                place.map(|at| found.remove(at)).is_none()
            });
            problems.extend(wanted.iter().map(|it| format!("after {after} s {} does not fire", named(it))));
            problems.extend(found.iter().map(|it| format!("after {after} s {} fires", named(it))));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, expectations};

    const RULES: &str = r#"
        [[rule]]
        name = "shop"
        measure = "pool.open"
        aggregate = "sum"
        by = ["server"]
        matchers = ["env=production"]
        of = "server.slots"
        above = { warning = 0.8, critical = 0.95 }
        hold = "1m"
        clear_hold = "2m"
    "#;

    fn config() -> Config {
        Config::parse(RULES, Path::new(".")).expect("sound")
    }

    fn read(text: &str) -> Result<Vec<RuleTest>, Vec<String>> {
        let directory = tempfile::tempdir().expect("makes one");
        let path = directory.path().join("tests.toml");
        std::fs::write(&path, text).expect("writes");
        let said = |it: &Mistake| format!("{}: {}", it.at, it.what);
        let found =
            expectations::read(&path, &config()).map_err(|it| it.mistakes.iter().map(said).collect::<Vec<_>>())?;
        Ok(found.rules)
    }

    fn problems(steps: &str) -> Vec<String> {
        let text = format!("[[rule_test]]\nname = \"t\"\nrule = \"shop\"\n{steps}");
        read(&text).expect("sound").remove(0).problems(&config().rules)
    }

    /// A step in which so many connections are open of a hundred slots.
    fn step(time: &str, open: &str, fires: &str) -> String {
        format!(
            "[[rule_test.step]]\nfor = \"{time}\"\nfires = [{fires}]\nseries = [\n\
             {{ server = \"db\", env = \"production\", \"pool.open\" = {open} }},\n\
             {{ server = \"db\", env = \"staging\", \"pool.open\" = 90 }},\n\
             {{ server = \"db\", \"server.slots\" = 100 }}]\n"
        )
    }

    const WARNING: &str = "{ server = \"db\", severity = \"warning\" }";
    const CRITICAL: &str = "{ server = \"db\", severity = \"critical\" }";

    #[test]
    fn time_passes_and_what_fires_is_what_is_expected() {
        let all = [
            step("59s", "90", ""),
            step("1s", "90", WARNING),
            step("70s", "96", CRITICAL),
            step("10m", "[70, 96]", CRITICAL),
            step("10m", "\"unknown\"", CRITICAL),
            step("1m", "80", CRITICAL),
            step("2m", "80", ""),
        ];
        assert_eq!(problems(&all.concat()), [""; 0]);
    }

    #[test]
    fn what_is_otherwise_is_named_with_its_time() {
        assert_eq!(
            problems(&(step("1m", "81", CRITICAL) + &step("1m", "81", ""))),
            [
                "after 60 s critical of server=db does not fire",
                "after 60 s warning of server=db fires",
                "after 120 s warning of server=db fires",
            ]
        );
        assert_eq!(problems(&step("5m", "80", WARNING)), ["after 300 s warning of server=db does not fire"]);
    }

    #[test]
    fn mistakes_are_told_all_at_once() {
        let text = r#"
            [[rule_test]]
            [[rule_test]]
            rule = "shpo"
            stp = 1
            [[rule_test.step]]
            for = "2d"
            series = [{ server = "db" }, { server = 3, "pool.open" = [5, 4], "pool.limit" = "many" }]
            fires = [{ server = "db" }, { severity = "info" }]
            [[rule_test.step]]
        "#;
        assert_eq!(
            read(text).expect_err("wrong"),
            [
                "rule_test[0].rule: is missing: which rule",
                "rule_test[0].step: is missing: what happens",
                "rule_test[1].rule: there is no rule `shpo`",
                "rule_test[1].step[0].series[0]: has no value",
                "rule_test[1].step[0].series[1].\"pool.limit\": is no value",
                "rule_test[1].step[0].series[1].\"pool.open\": is no value",
                "rule_test[1].step[0].series[1].\"server\": is neither a label nor a measure",
                "rule_test[1].step[0].series[1]: has no value",
                "rule_test[1].step[0].fires[0].severity: is missing",
                "rule_test[1].step[0].fires[1].severity: `info` is no severity of a rule",
                "rule_test[1].step[1].for: is missing: how long it lasts",
                "rule_test[1].step[1].fires: is missing: what has to fire",
                "rule_test[1].step: last longer than a day together",
                "rule_test[1].stp: is not a key here",
            ]
        );
    }
}
