//! `route …`: who would be told of what, before anything happens.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tickbird_shared::units::show_duration as shown;
use tickbird_shared::{Severity, Timestamp};

use super::table::table;
use super::{CliError, Where, now, read_config};
use crate::alert::{self, By, Facts, Grouping, Policy};

#[derive(Debug, Subcommand)]
pub(super) enum Route {
    Show(Show),
    Test(Test),
}

/// Shows the routes of the configuration as a tree.
#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    at: Where,
}

/// Tells which receivers an incident of these labels leads to, by which route, and which of them would not hear of it.
///
/// Labels are those of the agent and what the incident is about: check (alertname), severity, target, sub_key, agent, host and
/// tenant. One that is left out is empty; severity and check count for a receiver's own min_severity and skip_checks, too.
#[derive(Debug, Args)]
pub(super) struct Test {
    /// As in `severity=critical team=db`.
    #[arg(value_name = "LABEL=VALUE", required = true, value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    at: Where,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it like team=db")?;
    if name.is_empty() {
        return Err("it has no name".into());
    }
    if name == "severity" && value.parse::<Severity>().is_err() {
        return Err("a severity is info, warning or critical".into());
    }
    Ok((name.to_owned(), value.to_owned()))
}

impl Route {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self {
            Self::Show(it) => it.run(),
            Self::Test(it) => it.run(),
        }
    }
}

impl Show {
    fn run(self) -> Result<(), CliError> {
        let policy = read_config(&self.at.directory().config())?.policy;
        let tree = policy.route.as_ref().map(document);
        self.at.print(&json!({ "route": tree }), || match &policy.route {
            None => "there are no routes: every incident leads to every receiver".into(),
            Some(route) => {
                let mut lines = String::new();
                write_down(route, 0, &mut lines);
                lines
            }
        })
    }
}

fn document(route: &alert::Route) -> Value {
    json!({
        "at": route.at,
        "receiver": route.receiver,
        "matchers": route.matchers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "continue": route.goes_on,
        "grouping": route.grouping.as_ref().map(grouping),
        "mute_time_intervals": route.mute,
        "active_time_intervals": route.active,
        "routes": route.routes.iter().map(document).collect::<Vec<_>>(),
    })
}

/// In Alertmanager's words, with seconds.
fn grouping(it: &Grouping) -> Value {
    let by = match &it.by {
        By::Each => vec!["...".to_owned()],
        By::Labels(labels) => labels.clone(),
    };
    let repeat: BTreeMap<_, _> = it.repeat.iter().map(|(severity, it)| (severity.as_str(), it.as_secs_f64())).collect();
    json!({
        "group_by": by,
        "group_wait": it.wait.as_secs_f64(),
        "group_interval": it.interval.as_secs_f64(),
        "repeat_interval": repeat,
    })
}

fn in_words(it: &Grouping) -> String {
    let by = match &it.by {
        By::Each => "each by itself".to_owned(),
        By::Labels(labels) if labels.is_empty() => "all together".to_owned(),
        By::Labels(labels) => format!("grouped by {}", labels.join(", ")),
    };
    let least = it.repeat.values().min().copied().unwrap_or_default();
    let most = it.repeat.values().max().copied().unwrap_or_default();
    let repeat = if least == most { shown(least) } else { format!("{} to {}", shown(least), shown(most)) };
    format!(", {by} after {}, then each {}, again after {repeat}", shown(it.wait), shown(it.interval))
}

fn write_down(route: &alert::Route, depth: usize, lines: &mut String) {
    let matchers: Vec<_> = route.matchers.iter().map(ToString::to_string).collect();
    let what = if matchers.is_empty() { "everything".into() } else { matchers.join(", ") };
    let goes_on = if route.goes_on { ", and the next are tried" } else { "" };
    let when = match (route.mute.is_empty(), route.active.is_empty()) {
        (true, true) => String::new(),
        (false, true) => format!(", mute in {}", route.mute.join(", ")),
        (true, false) => format!(", only in {}", route.active.join(", ")),
        (false, false) => format!(", only in {} and mute in {}", route.active.join(", "), route.mute.join(", ")),
    };
    let together = route.grouping.as_ref().map(in_words).unwrap_or_default();
    *lines += &format!("{}{what} -> {}{together}{when}{goes_on}\n", "  ".repeat(depth), route.receiver);
    route.routes.iter().for_each(|it| write_down(it, depth + 1, lines));
}

/// One receiver, how the labels lead to it, and why it would not hear of them all the same.
type Row = (String, String, Option<String>);

/// Who is led to. Deciding says the same of an incident: it asks the same tree, then the receiver, then the clock.
fn rows(policy: &Policy, facts: &Facts, now: Timestamp) -> Vec<Row> {
    let ways: Vec<(&str, &str, Option<String>)> = match &policy.route {
        None => policy.receivers.iter().map(|it| (it.name.as_str(), "there are no routes", None)).collect(),
        Some(route) => {
            let of = |it: &'_ alert::Route| policy.is_mute(it, now);
            route.lead(facts).into_iter().map(|it| (it.receiver.as_str(), it.at.as_str(), of(it))).collect()
        }
    };
    let of = |(name, way, mute): (&str, &str, Option<String>)| {
        let receiver = policy.receivers.iter().find(|it| it.name == name)?;
        let check = facts.get("check").or_else(|| facts.get("alertname")).map_or("", String::as_str);
        let severity = facts.get("severity").and_then(|it| it.parse().ok());
        let silent = severity.and_then(|severity| receiver.does_not_want(check, severity));
        Some((name.to_owned(), way.to_owned(), silent.or(mute)))
    };
    ways.into_iter().filter_map(of).collect()
}

impl Test {
    fn run(self) -> Result<(), CliError> {
        let policy = read_config(&self.at.directory().config())?.policy;
        let mut facts: Facts = self.labels.into_iter().collect();
        // Two names of one thing.
        for (name, other) in [("check", "alertname"), ("alertname", "check")] {
            if let Some(value) = facts.get(name).cloned() {
                facts.entry(other.into()).or_insert(value);
            }
        }
        let rows = rows(&policy, &facts, now());
        let of = |(receiver, route, silent): &Row| json!({ "receiver": receiver, "route": route, "silent": silent });
        let json = json!({ "labels": facts, "receivers": rows.iter().map(of).collect::<Vec<_>>() });
        self.at.print(&json, || {
            let of = |(receiver, route, silent): &Row| {
                let told = silent.as_ref().map_or_else(|| "told".to_owned(), |why| format!("not told: {why}"));
                [receiver.clone(), route.clone(), told]
            };
            table(["RECEIVER", "ROUTE", "IT IS"], &rows.iter().map(of).collect::<Vec<_>>())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Receiver;

    #[test]
    fn without_routes_everybody_is_led_to_and_a_receivers_own_bounds_are_told() {
        let mut pager = Receiver::new("pager");
        pager.min_severity = Severity::Critical;
        let policy = Policy::from(vec![Receiver::new("ops"), pager]);
        let facts =
            |severity: &str| Facts::from([("severity".into(), severity.into()), ("check".into(), "pool.leak".into())]);
        let silent =
            |severity| rows(&policy, &facts(severity), now()).into_iter().map(|it| it.2.is_some()).collect::<Vec<_>>();
        assert_eq!(silent("warning"), [false, true]);
        assert_eq!(silent("critical"), [false, false]);
    }
}
