//! `route …`: who would be told of what, before anything happens.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tickbird_shared::units::show_duration as shown;
use tickbird_shared::{Severity, Timestamp};

use super::table::{group, table};
use super::{CliError, Where, now, read_config};
use crate::alert::{self, By, Facts, Foreseen, Grouping, Policy, Step, given};

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

/// Tells which receivers an incident of these labels leads to, by which route, with what it would be grouped, and which of them would not
/// hear of it.
///
/// Labels are those of the agent and what the incident is about: check (alertname), severity, target, sub_key, agent, host and
/// tenant. One that is left out is empty; severity and check count for a receiver's own min_severity and skip_checks, too.
#[derive(Debug, Args)]
pub(super) struct Test {
    /// As in `severity=critical team=db`.
    #[arg(value_name = "LABEL=VALUE", required = true, value_parser = label)]
    labels: Vec<(String, String)>,
    /// As if it were then, for time intervals: 2026-11-23T21:30:00Z. Default: now.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    #[command(flatten)]
    place: Where,
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
        "escalate": route.escalate.iter().map(step).collect::<Vec<_>>(),
        "routes": route.routes.iter().map(document).collect::<Vec<_>>(),
    })
}

/// With seconds.
fn step(it: &Step) -> Value {
    let after: BTreeMap<_, _> = it.after.iter().map(|(severity, it)| (severity.as_str(), it.as_secs_f64())).collect();
    json!({ "at": it.at, "receiver": it.receiver, "after": after, "min_severity": it.min_severity })
}

/// `boss after 15m`, `boss after 15m to 2h`.
fn step_in_words(it: &Step) -> String {
    let (least, most) = (it.after.values().min().copied(), it.after.values().max().copied());
    let after = match (least, most) {
        (Some(least), Some(most)) if least < most => format!("{} to {}", shown(least), shown(most)),
        (least, _) => least.map(shown).unwrap_or_default(),
    };
    let least = if it.min_severity > Severity::Info { format!(" from {} on", it.min_severity) } else { String::new() };
    format!("{} after {after}{least}", it.receiver)
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
    let steps: Vec<_> = route.escalate.iter().map(step_in_words).collect();
    let escalates = if steps.is_empty() { String::new() } else { format!(", escalates to {}", steps.join(", then ")) };
    *lines += &format!("{}{what} -> {}{together}{escalates}{when}{goes_on}\n", "  ".repeat(depth), route.receiver);
    route.routes.iter().for_each(|it| write_down(it, depth + 1, lines));
}

/// The labels of a group.
type Group = Option<BTreeMap<String, String>>;

/// One step of a route that is led to: its receiver, where it stands, with what it groups, after what time it is told, and why it would
/// not be.
type StepRow = (String, String, Group, Option<std::time::Duration>, Option<String>);

/// Who is told later of what nobody has acknowledged.
fn steps(policy: &Policy, facts: &Facts) -> Vec<StepRow> {
    let routes = policy.route.as_ref().map(|it| it.lead(facts)).unwrap_or_default();
    let severity: Option<Severity> = facts.get("severity").and_then(|it| it.parse().ok());
    let of = |route: &alert::Route, it: &Step| {
        let after = severity.map_or_else(|| it.after.values().min(), |severity| it.after.get(&severity)).copied();
        let receiver = policy.receivers.iter().find(|known| known.name == it.receiver);
        let check = facts.get("check").map_or("", String::as_str);
        let silent = match severity {
            Some(severity) if after.is_none() => Some(format!("it names no time for {severity}")),
            Some(severity) if severity < it.min_severity => {
                Some(format!("below min_severity: {severity} is less than {}", it.min_severity))
            }
            Some(severity) => receiver.and_then(|it| it.does_not_want(check, severity)),
            None => None,
        };
        (it.receiver.clone(), it.at.clone(), route.foresee_group(facts), after, silent)
    };
    routes.into_iter().flat_map(|route| route.escalate.iter().map(move |it| of(route, it))).collect()
}

impl Test {
    fn run(self) -> Result<(), CliError> {
        let policy = read_config(&self.place.directory().config())?.policy;
        let facts = given(self.labels);
        let at = self.at.unwrap_or_else(now);
        let seen = policy.foresee(&facts, &[], at);
        let way = |it: &Foreseen| it.route.clone().unwrap_or_else(|| "there are no routes".into());
        let of = |it: &Foreseen| json!({ "receiver": it.receiver, "route": way(it), "group": it.group, "silent": it.silent });
        let steps = steps(&policy, &facts);
        let of_step = |(receiver, at, group, after, silent): &StepRow| {
            let after = after.map(|it| it.as_secs_f64());
            json!({ "receiver": receiver, "route": at, "group": group, "after": after, "silent": silent })
        };
        let json = json!({
            "labels": facts,
            "at": at,
            "receivers": seen.iter().map(of).collect::<Vec<_>>(),
            "escalates": steps.iter().map(of_step).collect::<Vec<_>>(),
        });
        self.place.print(&json, || {
            let of = |it: &Foreseen| {
                let told = it.silent.as_ref().map_or_else(|| "told".to_owned(), |why| format!("not told: {why}"));
                [it.receiver.clone(), way(it), it.group.as_ref().map(group).unwrap_or_default(), told]
            };
            let of_step = |(receiver, at, grouped, after, silent): &StepRow| {
                let told = match (after, silent) {
                    (_, Some(why)) => format!("not told later: {why}"),
                    (after, None) => {
                        let after = after.map(shown).unwrap_or_default();
                        format!("told after {after}, unless somebody acknowledges it")
                    }
                };
                [receiver.clone(), at.clone(), grouped.as_ref().map(group).unwrap_or_default(), told]
            };
            let rows: Vec<_> = seen.iter().map(of).chain(steps.iter().map(of_step)).collect();
            table(["RECEIVER", "ROUTE", "GROUPED BY", "IT IS"], &rows)
        })
    }
}
