//! Who is told, and when: routes, what explains what, and time intervals, as Alertmanager writes them.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use jiff::tz::TimeZone;

use super::Mistake;
use super::fields::Fields;
use crate::alert::{Inhibition, Matcher, MatcherError, Route, Span, Window, day, minutes, month, range, weekday};

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
    route(fields, "", known, 1, mistakes)
}

/// What a route may name.
pub(super) struct Names<'a> {
    pub(super) receivers: &'a HashSet<String>,
    pub(super) windows: &'a HashSet<String>,
}

fn route(
    mut fields: Fields,
    parents: &str,
    known: &Names<'_>,
    depth: usize,
    mistakes: &mut Vec<Mistake>,
) -> Option<Route> {
    let at = fields.at().to_owned();
    let receiver = fields.text("receiver", mistakes).unwrap_or_else(|| parents.to_owned());
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
    let routes: Vec<_> =
        children.into_iter().filter_map(|it| route(it, &receiver, known, depth + 1, mistakes)).collect();
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
    Some(Route { at, receiver, matchers, goes_on, routes, mute, active })
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
        match TimeZone::get(&name) {
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

fn matchers(fields: &mut Fields, key: &str, mistakes: &mut Vec<Mistake>) -> Vec<Matcher> {
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
