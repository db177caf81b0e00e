//! What operators have added up over many agents: `[[rule]]`.

use std::collections::HashSet;
use std::time::Duration;

use tickbird_shared::Severity;

use super::Mistake;
use super::fields::Fields;
use super::routing::matchers;
use crate::aggregate::{Aggregate, Bounds, MAX_BY, MAX_RULES, Measure, RULE_HOLD, Rule, Side};

/// The longest name, and the longest of what people read, in letters.
const LONGEST_NAME: usize = 60;
const LONGEST_TEXT: usize = 500;
/// Longer than a rule can be thought to wait.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);

pub(super) fn rules(tables: Vec<Fields>, mistakes: &mut Vec<Mistake>) -> Vec<Rule> {
    if let Some(beyond) = tables.get(MAX_RULES) {
        let what = format!("is one of {}, and {MAX_RULES} are looked at", tables.len());
        beyond.mistake("name", what, "group by labels instead of writing a rule for each value", mistakes);
    }
    let mut names = HashSet::new();
    tables.into_iter().filter_map(|fields| rule(fields, &mut names, mistakes)).collect()
}

fn rule(mut fields: Fields, names: &mut HashSet<String>, mistakes: &mut Vec<Mistake>) -> Option<Rule> {
    let before = mistakes.len();
    let name = name(&mut fields, names, mistakes);
    let measure = match fields.has("measure") {
        true => measure(&mut fields, "measure", mistakes),
        false => {
            fields.mistake("measure", "is missing: what is added up".into(), &known_measures(), mistakes);
            None
        }
    };
    let aggregate = aggregate(&mut fields, mistakes);
    let by = by(&mut fields, mistakes);
    let matchers = matchers(&mut fields, "matchers", mistakes);
    let of = measure_of(&mut fields, measure, mistakes);
    for (key, it) in [("measure", measure), ("of", of)] {
        let Some(it) = it else { continue };
        for label in by.iter().filter(|label| !it.has(label)) {
            let what = format!("`{}` has no label `{label}`", it.as_str());
            fields.mistake("by", what, &format!("group by what `{key}` has, or by nothing"), mistakes);
        }
    }
    let without = |it: &&crate::alert::Matcher| measure.is_some_and(|measure| !measure.has(it.label()));
    for matcher in matchers.iter().filter(without) {
        let what = format!("`{}` has no label `{}`", measure.map_or("", Measure::as_str), matcher.label());
        fields.mistake("matchers", what, "ask for a label that it has", mistakes);
    }
    let bounds = bounds(&mut fields, mistakes);
    let mut hold = |key| {
        let hold = fields.duration(key, mistakes).unwrap_or(RULE_HOLD);
        if hold > LONGEST_HOLD {
            fields.mistake(key, "is more than a day".into(), "write \"5m\"", mistakes);
        }
        hold
    };
    let (hold, clear_hold) = (hold("hold"), hold("clear_hold"));
    let mut text = |key| {
        let text = fields.text(key, mistakes);
        if text.as_ref().is_some_and(|it| it.chars().count() > LONGEST_TEXT) {
            fields.mistake(key, format!("is longer than {LONGEST_TEXT} letters"), "write less", mistakes);
        }
        text
    };
    let (summary, advice) = (text("summary"), text("advice"));
    fields.finish(mistakes);
    if mistakes.len() > before {
        return None;
    }
    let (name, measure, aggregate, bounds) = (name?, measure?, aggregate?, bounds?);
    Some(Rule { name, measure, aggregate, by, matchers, of, bounds, hold, clear_hold, summary, advice })
}

fn name(fields: &mut Fields, names: &mut HashSet<String>, mistakes: &mut Vec<Mistake>) -> Option<String> {
    let advice = "write letters, digits, `-`, `_` and `.`: its incidents are of the check rule.NAME";
    let Some(name) = fields.text("name", mistakes) else {
        fields.mistake("name", "is missing".into(), advice, mistakes);
        return None;
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if !name.chars().all(is_plain) || name.len() > LONGEST_NAME {
        let what = format!("is not a name of at most {LONGEST_NAME} plain letters");
        fields.mistake("name", what, advice, mistakes);
    }
    if !names.insert(name.clone()) {
        fields.mistake("name", format!("`{name}` is there twice"), "give each another name", mistakes);
    }
    Some(name)
}

fn known_measures() -> String {
    format!("write one of {}", Measure::ALL.map(|it| format!("\"{}\"", it.as_str())).join(", "))
}

fn measure(fields: &mut Fields, key: &str, mistakes: &mut Vec<Mistake>) -> Option<Measure> {
    let text = fields.text(key, mistakes)?;
    let found = text.parse().ok();
    if found.is_none() {
        // What PostgreSQL calls them.
        let advice = match text.as_str() {
            "server.max_connections" => {
                "did you mean \"server.slots\"? They are what max_connections leaves ordinary roles".into()
            }
            "server.connections" => "did you mean \"server.used\"?".into(),
            _ => known_measures(),
        };
        fields.mistake(key, format!("`{text}` is no measure"), &advice, mistakes);
    }
    found
}

fn measure_of(fields: &mut Fields, measured: Option<Measure>, mistakes: &mut Vec<Mistake>) -> Option<Measure> {
    let of = measure(fields, "of", mistakes)?;
    if measured == Some(of) {
        fields.mistake("of", "is the measure itself: the share is always 1".into(), "name another", mistakes);
    }
    Some(of)
}

fn aggregate(fields: &mut Fields, mistakes: &mut Vec<Mistake>) -> Option<Aggregate> {
    let advice = "write \"sum\", \"max\", \"min\", \"count\" or \"quantile\"";
    let word = fields.text("aggregate", mistakes);
    if word.as_deref() != Some("quantile") && fields.has("quantile") {
        let what = "is only for aggregate = \"quantile\"";
        fields.mistake("quantile", what.into(), "leave it out", mistakes);
        fields.ignore("quantile");
    }
    match word.as_deref() {
        Some("sum") => Some(Aggregate::Sum),
        Some("max") => Some(Aggregate::Max),
        Some("min") => Some(Aggregate::Min),
        Some("count") => Some(Aggregate::Count),
        Some("quantile") => {
            let advice = "write quantile = 0.9";
            if !fields.has("quantile") {
                fields.mistake("quantile", "is missing: which one".into(), advice, mistakes);
            }
            let part = fields.number("quantile", mistakes)?;
            if part <= 0.0 || part > 1.0 {
                fields.mistake("quantile", format!("`{part}` is not over 0 and up to 1"), advice, mistakes);
            }
            Some(Aggregate::Quantile(part))
        }
        Some(other) => {
            fields.mistake("aggregate", format!("`{other}` is no way to add up"), advice, mistakes);
            None
        }
        None => {
            fields.mistake("aggregate", "is missing: how values become one".into(), advice, mistakes);
            None
        }
    }
}

fn by(fields: &mut Fields, mistakes: &mut Vec<Mistake>) -> Vec<String> {
    let by = fields.texts("by", mistakes).unwrap_or_default();
    let is_plain = |it: &str| !it.is_empty() && it.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c));
    for (at, label) in by.iter().enumerate() {
        if !is_plain(label) {
            fields.mistake("by", format!("`{label}` is no label's name"), "write by = [\"application\"]", mistakes);
        }
        if by[..at].contains(label) {
            fields.mistake("by", format!("names `{label}` twice"), "name each label once", mistakes);
        }
    }
    if by.len() > MAX_BY {
        fields.mistake("by", format!("names more than {MAX_BY} labels"), "group by fewer", mistakes);
    }
    by
}

/// `above = { warning = 0.8, critical = 0.95 }`, or one number for a warning.
fn bounds(fields: &mut Fields, mistakes: &mut Vec<Mistake>) -> Option<Bounds> {
    let advice = "write above = { warning = 0.8, critical = 0.95 }, or above = 100 for a warning";
    let mut read = |side: Side| {
        let key = side.as_str();
        if !fields.has(key) {
            return None;
        }
        if !fields.is_table(key) {
            let bound = fields.number(key, mistakes);
            return Some(Bounds { side, warning: bound, critical: None });
        }
        let mut table = fields.table(key, mistakes);
        let before = mistakes.len();
        let [warning, critical] = [Severity::Warning, Severity::Critical].map(|it| table.number(it.as_str(), mistakes));
        if warning.is_none() && critical.is_none() && mistakes.len() == before {
            fields.mistake(key, "has no bound".into(), advice, mistakes);
        }
        table.finish(mistakes);
        if let (Some(warning), Some(critical)) = (warning, critical) {
            let is_first = if side == Side::Above { warning < critical } else { warning > critical };
            if !is_first {
                let order = if side == Side::Above { "less" } else { "more" };
                let what = format!("the warning {warning} would not come before the critical {critical}");
                fields.mistake(key, what, &format!("write {order} for the warning"), mistakes);
            }
        }
        Some(Bounds { side, warning, critical })
    };
    match (read(Side::Above), read(Side::Below)) {
        (Some(bounds), None) | (None, Some(bounds)) => Some(bounds),
        (None, None) => {
            fields.mistake("above", "is missing, and so is `below`".into(), advice, mistakes);
            None
        }
        (Some(_), Some(_)) => {
            fields.mistake("below", "stands beside `above`".into(), "write two rules", mistakes);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn rules(text: &str) -> Vec<Rule> {
        Config::parse(text, Path::new(".")).expect("sound").rules
    }

    fn mistakes(text: &str) -> Vec<String> {
        let found = Config::parse(text, Path::new(".")).expect_err("wrong");
        found.into_iter().map(|it| format!("{}: {}  {}", it.at, it.what, it.advice)).collect()
    }

    const SHORT: &str = "[[rule]]\nname = \"a\"\nmeasure = \"pool.open\"\naggregate = \"sum\"\nabove = 100\n";

    #[test]
    fn a_rule_is_read_with_all_it_says_and_with_the_least() {
        let text = r#"
            [[rule]]
            name = "shop-connections"
            measure = "pool.open"
            aggregate = "sum"
            by = ["server", "env"]
            matchers = ['application=~"shop.*"']
            of = "pool.limit"
            above = { warning = 0.8, critical = 0.95 }
            hold = "90s"
            clear_hold = "2m"
            summary = "The shop's pools"
            advice = "call the shop"
            [[rule]]
            name = "lives"
            measure = "agent.present"
            aggregate = "quantile"
            quantile = 0.5
            below = 1
        "#;
        let rules = rules(text);
        assert_eq!(
            rules[0].to_string(),
            "sum of pool.open where application=~\"shop.*\" by server, env, as a share of pool.limit: \
             warning above 0.8, critical above 0.95 for 90 s, over after 120 s"
        );
        let texts = (rules[0].summary.as_deref(), rules[0].advice.as_deref());
        assert_eq!(texts, (Some("The shop's pools"), Some("call the shop")));
        assert_eq!(rules[1].to_string(), "quantile 0.5 of agent.present: warning below 1 for 60 s, over after 60 s");
    }

    #[test]
    fn every_mistake_of_a_rule_is_said_at_once_by_its_key() {
        let text = r#"
            [[rule]]
            [[rule]]
            name = "a b"
            measure = "server.max_connections"
            aggregate = "average"
            quantile = 0.5
            by = ["application", "application", "", "a", "b", "c"]
            matchers = ["env"]
            of = "pool.opne"
            above = { warning = 0.9, critical = 0.8, loud = 1 }
            below = "much"
            hold = 5
            clear_hold = "2d"
            sumary = "x"
            [[rule]]
            name = "server"
            measure = "server.used"
            aggregate = "quantile"
            quantile = 90
            by = ["application"]
            matchers = ["env=production"]
            of = "agent.present"
            above = {}
            [[rule]]
            name = "server"
            measure = "pool.open"
            of = "pool.open"
            aggregate = "quantile"
            below = { warning = 1, critical = 2 }
        "#;
        insta::assert_snapshot!(mistakes(text).join("\n"), @r#"
        rule[0].name: is missing  write letters, digits, `-`, `_` and `.`: its incidents are of the check rule.NAME
        rule[0].measure: is missing: what is added up  write one of "agent.present", "pool.instances", "pool.leased", "pool.limit", "pool.open", "server.slots", "server.used"
        rule[0].aggregate: is missing: how values become one  write "sum", "max", "min", "count" or "quantile"
        rule[0].above: is missing, and so is `below`  write above = { warning = 0.8, critical = 0.95 }, or above = 100 for a warning
        rule[1].name: is not a name of at most 60 plain letters  write letters, digits, `-`, `_` and `.`: its incidents are of the check rule.NAME
        rule[1].measure: `server.max_connections` is no measure  did you mean "server.slots"? They are what max_connections leaves ordinary roles
        rule[1].quantile: is only for aggregate = "quantile"  leave it out
        rule[1].aggregate: `average` is no way to add up  write "sum", "max", "min", "count" or "quantile"
        rule[1].by: names `application` twice  name each label once
        rule[1].by: `` is no label's name  write by = ["application"]
        rule[1].by: names more than 5 labels  group by fewer
        rule[1].matchers: `env`: has none of =, !=, =~ and !~  write 'severity="critical"', 'check=~"pool\\..*"', 'env!="staging"' or 'target!~".*test.*"'
        rule[1].of: `pool.opne` is no measure  write one of "agent.present", "pool.instances", "pool.leased", "pool.limit", "pool.open", "server.slots", "server.used"
        rule[1].above.loud: is not a key here  check its spelling, or leave it out
        rule[1].above: the warning 0.9 would not come before the critical 0.8  write less for the warning
        rule[1].below: is not a number but a string  write it without quotes, like 100 or 0.8
        rule[1].below: stands beside `above`  write two rules
        rule[1].hold: `5` has no unit  write "90s", "36h" or "30d"
        rule[1].clear_hold: is more than a day  write "5m"
        rule[1].sumary: is not a key here  check its spelling, or leave it out
        rule[2].quantile: `90` is not over 0 and up to 1  write quantile = 0.9
        rule[2].by: `server.used` has no label `application`  group by what `measure` has, or by nothing
        rule[2].by: `agent.present` has no label `application`  group by what `of` has, or by nothing
        rule[2].matchers: `server.used` has no label `env`  ask for a label that it has
        rule[2].above: has no bound  write above = { warning = 0.8, critical = 0.95 }, or above = 100 for a warning
        rule[3].name: `server` is there twice  give each another name
        rule[3].quantile: is missing: which one  write quantile = 0.9
        rule[3].of: is the measure itself: the share is always 1  name another
        rule[3].below: the warning 1 would not come before the critical 2  write more for the warning
        "#);
    }

    #[test]
    fn there_are_at_most_a_hundred() {
        let many = |count: usize| {
            let one = |at| SHORT.replace("\"a\"", &format!("\"a{at}\""));
            (0..count).map(one).collect::<String>()
        };
        assert_eq!(rules(&many(MAX_RULES)).len(), MAX_RULES);
        assert_eq!(mistakes(&many(MAX_RULES + 1)).len(), 1);
    }
}
