//! Who is told, and when: routes, what explains what, and time intervals, as Alertmanager writes them.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::tz::TimeZone;
use tickbird_shared::Severity;

use super::Mistake;
use super::fields::Fields;
use crate::alert::{
    By, Declared, Dependencies, Grouping, Inhibition, Matcher, MatcherError, Route, Span, Step, Window, day, minutes,
    month, range, weekday,
};

/// Routes within routes; more would be a mistake of whatever wrote the file.
const DEEPEST: usize = 16;

/// The top of the tree, at which every incident enters.
pub(super) fn top(mut fields: Fields, known: &Names<'_>, mistakes: &mut Vec<Mistake>) -> Option<Route> {
    for key in ["matchers", "continue", "mute_time_intervals", "active_time_intervals"] {
        if fields.has(key) {
            let what = "every incident enters here, so this one has none".into();
            fields.mistake(key, what, "write it on one of [[route.routes]]", mistakes);
            fields.ignore(key);
        }
    }
    if !fields.has("receiver") {
        let what = "is missing: who is told when no other route matches";
        fields.mistake("receiver", what.into(), "name a [[receiver]]", mistakes);
    }
    route(fields, &Parent::default(), known, 1, mistakes)
}

/// What a route takes over from those above it.
#[derive(Debug, Clone, Default)]
struct Parent {
    path: String,
    receiver: String,
    by: Option<By>,
    wait: Option<Duration>,
    interval: Option<Duration>,
    repeat: Option<BTreeMap<Severity, Duration>>,
    escalate: Option<Vec<Step>>,
}

impl Parent {
    /// The same with what this route names itself.
    fn with(&self, fields: &mut Fields, known: &Names<'_>, mistakes: &mut Vec<Mistake>) -> Self {
        let mut own = self.clone();
        own.by = group_by(fields, mistakes).or(own.by);
        own.wait = fields.duration("group_wait", mistakes).or(own.wait);
        own.interval = at_least_a_second(fields, "group_interval", mistakes).or(own.interval);
        own.repeat = repeat(fields, self.repeat.as_ref(), mistakes).or(own.repeat);
        if fields.has("escalate") {
            own.escalate = Some(escalate(fields, known, mistakes));
        }
        own
    }

    /// How incidents are told together; each by itself and at once where nobody says anything.
    fn grouping(&self) -> Option<Grouping> {
        let is_named = self.by.is_some() || self.wait.is_some() || self.interval.is_some() || self.repeat.is_some();
        is_named.then(|| Grouping {
            by: self.by.clone().unwrap_or(By::Labels(Vec::new())),
            wait: self.wait.unwrap_or(Grouping::WAIT),
            interval: self.interval.unwrap_or(Grouping::INTERVAL),
            repeat: self.repeat.clone().unwrap_or_else(|| every(Grouping::REPEAT)),
        })
    }
}

fn group_by(fields: &mut Fields, mistakes: &mut Vec<Mistake>) -> Option<By> {
    const EACH: &str = "...";
    let labels = fields.texts("group_by", mistakes)?;
    if labels.iter().any(String::is_empty) {
        fields.mistake("group_by", "names a label without a name".into(), "write [] for one group of all", mistakes);
    }
    let twice = labels.iter().enumerate().find(|(at, it)| labels[..*at].contains(it));
    if let Some((_, label)) = twice {
        fields.mistake("group_by", format!("names `{label}` twice"), "name each label once", mistakes);
    }
    if labels.iter().any(|it| it == EACH) {
        if labels.len() > 1 {
            let what = "`...` is each incident by itself, so no label can stand beside it".into();
            fields.mistake("group_by", what, "write [\"...\"], or the labels alone", mistakes);
        }
        return Some(By::Each);
    }
    Some(By::Labels(labels))
}

/// What is done again and again, and not as often as the clock is looked at.
fn at_least_a_second(fields: &mut Fields, key: &str, mistakes: &mut Vec<Mistake>) -> Option<Duration> {
    let duration = fields.duration(key, mistakes)?;
    if duration < Duration::from_secs(1) {
        fields.mistake(key, "is less than a second".into(), "write \"5m\", or \"1s\" at least", mistakes);
        return None;
    }
    Some(duration)
}

fn every(duration: Duration) -> BTreeMap<Severity, Duration> {
    [Severity::Info, Severity::Warning, Severity::Critical].map(|it| (it, duration)).into()
}

/// One duration for all, or a table by severity, of which a parent may have some.
fn repeat(
    fields: &mut Fields,
    parents: Option<&BTreeMap<Severity, Duration>>,
    mistakes: &mut Vec<Mistake>,
) -> Option<BTreeMap<Severity, Duration>> {
    const KEY: &str = "repeat_interval";
    if !fields.is_table(KEY) {
        return at_least_a_second(fields, KEY, mistakes).map(every);
    }
    let mut table = fields.table(KEY, mistakes);
    let mut repeat = parents.cloned().unwrap_or_else(|| every(Grouping::REPEAT));
    for (severity, duration) in &mut repeat {
        if let Some(named) = at_least_a_second(&mut table, severity.as_str(), mistakes) {
            *duration = named;
        }
    }
    table.finish(mistakes);
    Some(repeat)
}

/// Who else is told, and after which time; `[]` takes back what a parent says.
fn escalate(fields: &mut Fields, known: &Names<'_>, mistakes: &mut Vec<Mistake>) -> Vec<Step> {
    const AFTER: &str = "after";
    let mut steps: Vec<Step> = Vec::new();
    for mut fields in fields.tables("escalate", mistakes) {
        let at = fields.at().to_owned();
        let receiver = fields.text("receiver", mistakes);
        match &receiver {
            None => fields.mistake("receiver", "is missing: who is told".into(), "name a [[receiver]]", mistakes),
            Some(name) if !known.receivers.contains(name) => {
                fields.mistake("receiver", format!("there is no receiver `{name}`"), "name a [[receiver]]", mistakes);
            }
            Some(_) => (),
        }
        if !fields.has(AFTER) {
            let advice = "write after = \"15m\", or { critical = \"15m\", warning = \"2h\" }";
            fields.mistake(AFTER, "is missing: how long nobody has acknowledged it".into(), advice, mistakes);
        }
        let after = if fields.is_table(AFTER) {
            let mut table = fields.table(AFTER, mistakes);
            let severities = [Severity::Info, Severity::Warning, Severity::Critical];
            let named = severities.map(|it| (it, at_least_a_second(&mut table, it.as_str(), mistakes)));
            table.finish(mistakes);
            named.into_iter().filter_map(|(severity, after)| Some((severity, after?))).collect()
        } else {
            at_least_a_second(&mut fields, AFTER, mistakes).map(every).unwrap_or_default()
        };
        let min_severity = fields.text("min_severity", mistakes).map_or(Severity::Info, |word| {
            word.parse().unwrap_or_else(|_| {
                let advice = "write \"info\", \"warning\" or \"critical\"";
                fields.mistake("min_severity", format!("`{word}` is no severity"), advice, mistakes);
                Severity::Info
            })
        });
        fields.finish(mistakes);
        let receiver = receiver.unwrap_or_default();
        let number = 1 + steps.iter().filter(|it| it.receiver == receiver).count();
        steps.push(Step { at, name: format!("{number} {receiver}"), receiver, after, min_severity });
    }
    steps
}

/// What a route may name.
pub(super) struct Names<'a> {
    pub(super) receivers: &'a HashSet<String>,
    pub(super) windows: &'a HashSet<String>,
}

fn route(
    mut fields: Fields,
    parent: &Parent,
    known: &Names<'_>,
    depth: usize,
    mistakes: &mut Vec<Mistake>,
) -> Option<Route> {
    let at = fields.at().to_owned();
    let receiver = fields.text("receiver", mistakes).unwrap_or_else(|| parent.receiver.clone());
    if !receiver.is_empty() && !known.receivers.contains(&receiver) {
        fields.mistake("receiver", format!("there is no receiver `{receiver}`"), "name a [[receiver]]", mistakes);
    }
    let matchers = matchers(&mut fields, "matchers", mistakes);
    let goes_on = fields.flag("continue", mistakes).unwrap_or(false);
    let children = fields.tables("routes", mistakes);
    if depth == DEEPEST && !children.is_empty() {
        fields.mistake("routes", format!("lies deeper than {DEEPEST}"), "put routes beside one another", mistakes);
        return None;
    }
    let step: Vec<_> = matchers.iter().map(ToString::to_string).collect();
    let path = format!("{}{}{{{}}}", parent.path, if parent.path.is_empty() { "" } else { "/" }, step.join(","));
    let own = Parent { path: path.clone(), receiver: receiver.clone(), ..parent.with(&mut fields, known, mistakes) };
    let routes: Vec<_> = children.into_iter().filter_map(|it| route(it, &own, known, depth + 1, mistakes)).collect();
    let mut intervals = |key| {
        let named = fields.texts(key, mistakes).unwrap_or_default();
        for name in named.iter().filter(|it| !known.windows.contains(*it)) {
            fields.mistake(
                key,
                format!("there is no time interval `{name}`"),
                "name one of [[time_intervals]]",
                mistakes,
            );
        }
        named
    };
    let (mute, active) = (intervals("mute_time_intervals"), intervals("active_time_intervals"));
    fields.finish(mistakes);
    let grouping = own.grouping();
    let escalate = own.escalate.unwrap_or_default();
    Some(Route { at, path, receiver, matchers, goes_on, routes, grouping, mute, active, escalate })
}

/// Named times, as Alertmanager writes them.
pub(super) fn windows(tables: Vec<Fields>, mistakes: &mut Vec<Mistake>) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for mut fields in tables {
        let name = fields.text("name", mistakes);
        match &name {
            None => fields.mistake("name", "is missing".into(), "routes name it by that", mistakes),
            Some(name) if windows.iter().any(|it| it.name == *name) => {
                fields.mistake("name", format!("`{name}` is there already"), "give each another name", mistakes);
            }
            Some(_) => (),
        }
        let spans: Vec<_> =
            fields.tables("time_intervals", mistakes).into_iter().map(|it| span(it, mistakes)).collect();
        if spans.is_empty() {
            let advice = "write [[time_intervals.time_intervals]] below it";
            fields.mistake("time_intervals", "is missing: it would never hold".into(), advice, mistakes);
        }
        fields.finish(mistakes);
        windows.push(Window { name: name.unwrap_or_default(), spans });
    }
    windows
}

fn span(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> Span {
    let mut span = Span::default();
    for mut times in fields.tables("times", mistakes) {
        let mut end = |key| {
            let advice = "write it like \"09:00\"; the day ends at \"24:00\"";
            let text = times.text(key, mistakes);
            let read = text.as_deref().and_then(minutes);
            if read.is_none() {
                let what = text.map_or_else(|| "is missing".to_owned(), |it| format!("`{it}` is no time of a day"));
                times.mistake(key, what, advice, mistakes);
            }
            read
        };
        let found = (end("start_time"), end("end_time"));
        match found {
            (Some(from), Some(to)) if from < to => span.times.push((from, to)),
            (Some(_), Some(_)) => {
                let advice = "write a night as two: to \"24:00\", and from \"00:00\"";
                times.mistake("end_time", "is not after start_time".into(), advice, mistakes);
            }
            _ => (),
        }
        times.finish(mistakes);
    }
    span.weekdays =
        ranges(&mut fields, "weekdays", weekday, "write \"monday:friday\"; the week begins with sunday", mistakes);
    span.months = ranges(&mut fields, "months", month, "write \"january:march\", or \"1:3\"", mistakes);
    span.years = ranges(&mut fields, "years", |it| it.parse().ok(), "write \"2026:2027\"", mistakes);
    // From the 25th to the last day is no range of numbers.
    let advice = "write \"1:5\", or \"-3:-1\" for the end of the month";
    for text in fields.texts("days_of_month", mistakes).unwrap_or_default() {
        let (from, to) = text.split_once(':').unwrap_or((&text, &text));
        match (day(from.trim()), day(to.trim())) {
            (Some(from), Some(to)) if (from > 0) != (to > 0) || from <= to => span.days_of_month.push(from..=to),
            _ => fields.mistake("days_of_month", format!("`{text}` are no days of a month"), advice, mistakes),
        }
    }
    if let Some(name) = fields.text("location", mistakes) {
        match zone(&name) {
            Ok(zone) => span.zone = zone,
            Err(_) => {
                let what = format!("this host knows no time zone `{name}`");
                fields.mistake("location", what, "write it like \"Europe/Berlin\", or install tzdata", mistakes);
            }
        }
    }
    fields.finish(mistakes);
    span
}

/// A zone by its name; `Local` is the one of this host.
fn zone(name: &str) -> Result<TimeZone, jiff::Error> {
    if name == "Local" { TimeZone::try_system() } else { TimeZone::get(name) }
}

fn ranges<T: PartialOrd + Copy>(
    fields: &mut Fields,
    key: &str,
    one: impl Fn(&str) -> Option<T> + Copy,
    advice: &str,
    mistakes: &mut Vec<Mistake>,
) -> Vec<RangeInclusive<T>> {
    let mut found = Vec::new();
    for text in fields.texts(key, mistakes).unwrap_or_default() {
        match range(&text, one) {
            Some(range) => found.push(range),
            None => fields.mistake(key, format!("`{text}` is none of these"), advice, mistakes),
        }
    }
    found
}

pub(super) fn matchers(fields: &mut Fields, key: &str, mistakes: &mut Vec<Mistake>) -> Vec<Matcher> {
    let mut matchers = Vec::new();
    for text in fields.texts(key, mistakes).unwrap_or_default() {
        match text.parse::<Matcher>() {
            Ok(matcher) => matchers.push(matcher),
            Err(error) => {
                let what = format!("`{text}`: {error}");
                fields.mistake(key, what, MatcherError::advice(), mistakes);
            }
        }
    }
    matchers
}

/// Which incidents explain which others.
pub(super) fn inhibition(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> Option<Inhibition> {
    let at = fields.at().to_owned();
    let before = mistakes.len();
    let mut needed = |key| {
        let before = mistakes.len();
        let found = matchers(&mut fields, key, mistakes);
        if found.is_empty() && mistakes.len() == before {
            let what = "is missing: without it every incident would match".into();
            fields.mistake(key, what, MatcherError::advice(), mistakes);
        }
        found
    };
    let (sources, targets) = (needed("source_matchers"), needed("target_matchers"));
    let equal = fields.texts("equal", mistakes).unwrap_or_default();
    fields.finish(mistakes);
    (mistakes.len() == before).then_some(Inhibition { at, sources, targets, equal })
}

/// What of servers explains what of their clients.
pub(super) fn dependencies(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> Dependencies {
    let mut dependencies = Dependencies::default();
    if let Some(learn) = fields.flag("learn", mistakes) {
        dependencies.learnt = learn;
    }
    let keys = [("source_matchers", &mut dependencies.sources), ("target_matchers", &mut dependencies.targets)];
    for (key, of) in keys {
        if fields.has(key) {
            let before = mistakes.len();
            *of = matchers(&mut fields, key, mistakes);
            if of.is_empty() && mistakes.len() == before {
                let what = "is empty: every incident would match".into();
                fields.mistake(key, what, MatcherError::advice(), mistakes);
            }
        }
    }
    fields.finish(mistakes);
    dependencies
}

/// That some incidents depend on a server.
pub(super) fn declared(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> Option<Declared> {
    let (at, before) = (fields.at().to_owned(), mistakes.len());
    let found = matchers(&mut fields, "matchers", mistakes);
    if found.is_empty() && mistakes.len() == before {
        let what = "is missing: without it everything would depend on it".into();
        fields.mistake("matchers", what, MatcherError::advice(), mistakes);
    }
    let advice = "write its host or address and its port, as the agent that asks it: \"db.internal:5432\"";
    if !fields.has("server") {
        fields.mistake("server", "is missing".into(), advice, mistakes);
    }
    let server = fields.text("server", mistakes);
    match &server {
        Some(it) if it.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) => {
            fields.mistake("server", format!("`{it}` names no server"), advice, mistakes);
        }
        _ => (),
    }
    fields.finish(mistakes);
    (mistakes.len() == before).then_some(Declared { at, matchers: found, server: server? })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::alert::{Policy, given};
    use crate::config::Config;

    const TOP: &str = r#"
        [[receiver]]
        name = "desk"
        webhook.url = "http://127.0.0.1:1/"
        [route]
        receiver = "desk"
        [[route.routes]]
        active_time_intervals = ["office", "fair"]
        mute_time_intervals = ["lunch"]
        [[time_intervals]]
        name = "office"
        [[time_intervals.time_intervals]]
        times = [{ start_time = "09:00", end_time = "17:00" }]
        location = "Europe/Berlin"
        [[time_intervals]]
        name = "fair"
        [[time_intervals.time_intervals]]
        years = ["2027"]
        [[time_intervals]]
        name = "lunch"
        [[time_intervals.time_intervals]]
        times = [{ start_time = "12:00", end_time = "13:00" }]
        location = "America/New_York"
    "#;

    fn policy(text: &str) -> Policy {
        Config::parse(text, Path::new("/nonexistent")).expect("is read").policy
    }

    /// Why nobody would be told then.
    fn silent(policy: &Policy, at: &str) -> Option<String> {
        let facts = given([("check".to_owned(), "pool.leak".to_owned())]);
        policy.foresee(&facts, &[], at.parse().expect("a time")).remove(0).silent
    }

    #[test]
    fn a_route_speaks_within_one_of_its_active_intervals_by_the_clock_of_their_location() {
        let policy = policy(TOP);
        let out = Some("none of the active_time_intervals of route.routes[0] holds".to_owned());
        let lunch = Some("the time interval `lunch` mutes route.routes[0]".to_owned());
        for (at, why) in [
            ("2026-07-14T06:59:59Z", &out), // 08:59 in summer
            ("2026-07-14T07:00:00Z", &None),
            ("2026-07-14T14:59:59Z", &None),
            ("2026-07-14T15:00:00Z", &out),
            ("2026-11-24T07:59:59Z", &out), // the same in winter
            ("2026-11-24T08:00:00Z", &None),
            ("2026-11-24T16:00:00Z", &out),
            ("2027-11-24T05:00:00Z", &None),  // the fair, all day
            ("2027-11-24T17:30:00Z", &lunch), // 12:30 over there
        ] {
            assert_eq!(silent(&policy, at), *why, "{at}");
        }
    }

    #[test]
    fn local_is_the_zone_of_the_collectors_host() {
        let text = TOP.replace("Europe/Berlin", "Local").replace("mute_time_intervals = [\"lunch\"]", "");
        let policy = policy(&text);
        let zone = TimeZone::system();
        let local = |hour: i8| {
            let at = jiff::civil::date(2026, 11, 25).at(hour, 30, 0, 0).to_zoned(zone.clone()).expect("a time");
            silent(&policy, &at.timestamp().to_string()).is_some()
        };
        assert_eq!([8, 9, 16, 17].map(local), [true, false, false, true]);
        let wrong = Config::parse(&TOP.replace("Europe/Berlin", "local time"), Path::new("/nonexistent"));
        let wrong = wrong.expect_err("must be refused");
        assert_eq!(wrong[0].what, "this host knows no time zone `local time`");
    }
}
