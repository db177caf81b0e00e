//! The table of checks with the operator's changes: text goes in, [`Thresholds`] or mistakes come out.

use std::fmt;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tickbird_shared::units;

use super::defaults::{CHECKS, Check, CheckId};
use super::hold::{Hold, Holds};
use super::threshold::{Bounds, Direction};
use super::words;
use crate::inspect::Unit;

/// What the operator wrote in `[check."<id>"]`. Numbers are given as the text that stands in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Override {
    /// Id of the check.
    pub check: String,
    /// Bound of a warning, with its unit: `90s`, `80%`, `2/s`, `200MiB`, `3`.
    pub warning: Option<String>,
    /// Bound of critical, the same.
    pub critical: Option<String>,
    /// `3` (looks), `3 of 5` (looks) or `60s`.
    pub hold: Option<String>,
    /// `false` switches the check off.
    pub enabled: Option<bool>,
    /// Sessions of these applications are left out; a `*` at the end stands for any rest.
    pub allow_application_names: Vec<String>,
}

/// One thing that is wrong in the operator's changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Id of the check, as it was written.
    pub check: String,
    /// `warning`, `critical`, `hold` or `allow_application_names`; `None` when the id itself is wrong.
    pub key: Option<&'static str>,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub advice: Option<String>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, key, what, .. } = self;
        match key {
            Some(key) => write!(f, "{check:?}.{key}: {what}"),
            None => write!(f, "{check:?} {what}"),
        }
    }
}

/// One check as it is judged here.
#[derive(Debug, Clone)]
pub struct Effective {
    /// Its row in the table.
    pub check: &'static Check,
    /// Unit of the bounds: the check's own, or bytes where the operator gave `proc.memory` absolute bounds.
    pub unit: Unit,
    /// The bounds in force.
    pub bounds: Bounds,
    /// The holds in force.
    pub holds: Holds,
    /// Whether it is judged at all.
    pub enabled: bool,
    /// Application names whose sessions are left out.
    pub allowed: Vec<String>,
    /// Whether the operator changed anything.
    pub changed: bool,
}

/// Every check, with the operator's changes.
#[derive(Debug, Clone)]
pub struct Thresholds(Vec<Effective>);

impl Default for Thresholds {
    /// The shipped table.
    fn default() -> Self {
        let shipped = |check: &'static Check| Effective {
            check,
            unit: check.unit,
            bounds: check.bounds,
            holds: check.holds,
            enabled: true,
            allowed: Vec::new(),
            changed: false,
        };
        Self(CHECKS.iter().map(shipped).collect())
    }
}

impl Thresholds {
    /// The table with changes laid over it, and every mistake that is in them. What is mistaken is left as shipped.
    pub fn with(overrides: impl IntoIterator<Item = Override>) -> (Self, Vec<Mistake>) {
        let mut table = Self::default();
        let mut mistakes = Vec::new();
        for it in overrides {
            match CheckId::find(&it.check) {
                Some(id) => apply(&mut table.0[id as usize], it, &mut mistakes),
                None => mistakes.push(unknown(it.check)),
            }
        }
        (table, mistakes)
    }

    /// Every check, in the order in which they are shown.
    pub fn table(&self) -> &[Effective] {
        &self.0
    }

    pub(super) fn of(&self, id: CheckId) -> &Effective {
        &self.0[id as usize]
    }
}

impl Effective {
    /// The row for `tickbird-agent defaults --json`.
    pub fn json(&self) -> Json {
        let bound = |bound: Option<f64>| bound.map(|it| words::number(it, self.unit));
        json!({
            "check": self.check.id,
            "meaning": self.check.meaning,
            "value": self.check.value,
            "unit": self.unit.as_str(),
            "direction": direction(self.bounds.direction),
            "info": self.bounds.info,
            "warning": self.bounds.warning,
            "critical": self.bounds.critical,
            "info_text": bound(self.bounds.info),
            "warning_text": bound(self.bounds.warning),
            "critical_text": bound(self.bounds.critical),
            "hold_warning": self.holds.warning.to_string(),
            "hold_critical": self.holds.critical.to_string(),
            "clears": self.clears(),
            "impact": self.check.impact,
            "probability": self.check.probability,
            "false_alarm": self.check.false_alarm.as_str(),
            "needs": self.check.needs,
            "advice": self.check.advice,
            "reason": self.check.reason,
            "enabled": self.enabled,
            "allow_application_names": self.allowed,
            "changed": self.changed,
        })
    }

    /// Whether sessions that call themselves so are left out.
    pub(super) fn allows(&self, application_name: &str) -> bool {
        self.allowed.iter().any(|it| match it.strip_suffix('*') {
            Some(start) => application_name.starts_with(start),
            None => application_name == it,
        })
    }

    fn clears(&self) -> String {
        match self.bounds.direction {
            Direction::Above => format!("at 90 % of the bound for {} looks", self.holds.clearing),
            Direction::Below => format!("at 110 % of the bound for {} looks", self.holds.clearing),
            Direction::Event => format!("after {} looks without it", self.holds.clearing),
        }
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let check = self.check;
        let note = match (self.enabled, self.changed) {
            (false, _) => "  (switched off)",
            (true, true) => "  (changed by configuration)",
            (true, false) => "",
        };
        writeln!(f, "{}{note}", check.id)?;
        writeln!(f, "  means     {}", check.meaning)?;
        writeln!(f, "  value     {}", check.value)?;
        for (name, bound, hold) in [
            ("info    ", self.bounds.info, self.holds.warning),
            ("warning ", self.bounds.warning, self.holds.warning),
            ("critical", self.bounds.critical, self.holds.critical),
        ] {
            let Some(bound) = bound else { continue };
            match self.bounds.direction {
                Direction::Event => writeln!(f, "  {name}  after {hold}")?,
                Direction::Above => writeln!(f, "  {name}  from {}, after {hold}", words::number(bound, self.unit))?,
                Direction::Below => writeln!(f, "  {name}  under {}, after {hold}", words::number(bound, self.unit))?,
            }
        }
        writeln!(f, "  clears    {}", self.clears())?;
        writeln!(f, "  because   {}", check.reason)?;
        writeln!(f, "  needs     {}", check.needs)?;
        let (impact, probability, risk) = (check.impact, check.probability, check.false_alarm.as_str());
        writeln!(f, "  priority  impact {impact} of 5, probability {probability}; risk of a false alarm {risk}")?;
        if !self.allowed.is_empty() {
            writeln!(f, "  allows    {}", self.allowed.join(", "))?;
        }
        write!(f, "  then      {}", check.advice)
    }
}

const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Above => "above",
        Direction::Below => "below",
        Direction::Event => "event",
    }
}

fn unknown(check: String) -> Mistake {
    let check: String = check.chars().take(60).collect();
    let nearest = CHECKS.iter().map(|it| (distance(&check, it.id), it.id)).min();
    let advice = match nearest {
        Some((edits, id)) if edits <= check.len() / 2 => format!("did you mean {id:?}?"),
        _ => "`tickbird-agent defaults` lists every check".to_owned(),
    };
    Mistake { check, key: None, what: "is not a check".to_owned(), advice: Some(advice) }
}

fn apply(row: &mut Effective, change: Override, mistakes: &mut Vec<Mistake>) {
    let check = row.check;
    let mut wrong = |key, (what, advice): (String, &str)| {
        let advice = Some(advice.to_owned());
        mistakes.push(Mistake { check: check.id.to_owned(), key: Some(key), what, advice });
    };
    row.changed = true;
    row.enabled = change.enabled.unwrap_or(true);
    row.allowed = change.allow_application_names;
    if !row.allowed.is_empty() && !check.id.ends_with("_transaction") && check.id != "pool.leak" {
        wrong("allow_application_names", (format!("{} does not look at sessions", check.id), "leave it out"));
    }
    // A bound in bytes has another meaning than the shipped share, so it replaces both bounds.
    let is_absolute = |text: &Option<String>| text.as_deref().is_some_and(|it| bytes(it).is_some());
    if check.id == "proc.memory" && (is_absolute(&change.warning) || is_absolute(&change.critical)) {
        row.unit = Unit::Bytes;
        row.bounds = Bounds::above(None, None);
    }
    let mut bounds = row.bounds;
    for (key, text, bound) in
        [("warning", change.warning, &mut bounds.warning), ("critical", change.critical, &mut bounds.critical)]
    {
        let Some(text) = text else { continue };
        if bounds.direction == Direction::Event {
            let advice = "change its hold, or switch it off with enabled = false";
            wrong(key, (format!("{} is an event and has no bound", check.id), advice));
            continue;
        }
        match parse_bound(&text, row.unit) {
            Ok(value) => *bound = Some(value),
            Err(error) => wrong(key, error),
        }
    }
    if let (Some(warning), Some(critical)) = (bounds.warning, bounds.critical) {
        let is_crossed_first =
            if bounds.direction == Direction::Below { warning >= critical } else { warning <= critical };
        if !is_crossed_first {
            let [warning, critical] = [warning, critical].map(|it| words::number(it, row.unit));
            let advice = "let the warning be crossed first";
            wrong("critical", (format!("{critical} is crossed before the warning's {warning}"), advice));
            bounds = row.bounds;
        }
    }
    row.bounds = bounds;
    if let Some(text) = change.hold {
        match parse_hold(&text) {
            Ok(hold) => row.holds = Holds { clearing: row.holds.clearing, ..Holds::both(hold) },
            Err(error) => wrong("hold", error),
        }
    }
}

type Wrong = (String, &'static str);

fn shown(text: &str) -> String {
    format!("`{}`", words::foreign(text, 40))
}

fn parse_bound(text: &str, unit: Unit) -> Result<f64, Wrong> {
    let text = text.trim();
    let value = match unit {
        Unit::Seconds => return parse_duration(text).map(|it| it.as_secs_f64()),
        Unit::Ratio => match text.strip_suffix('%') {
            Some(percent) => finite(percent).map(|it| it / 100.0).ok_or("write \"80%\" or 0.8"),
            None => finite(text).filter(|it| *it <= 1.0).ok_or("write \"80%\" or 0.8"),
        },
        Unit::PerSecond => finite(text.strip_suffix("/s").unwrap_or(text)).ok_or("write \"2/s\""),
        Unit::Bytes => bytes(text).ok_or("write \"200MiB\" or \"1GiB\""),
        Unit::Count => finite(text).ok_or("write a number"),
    };
    let of = match unit {
        Unit::Ratio => "a share",
        Unit::PerSecond => "a rate",
        Unit::Bytes => "a size",
        Unit::Count | Unit::Seconds => "a number",
    };
    value.map_err(|advice| (format!("{} is not {of}", shown(text)), advice))
}

fn finite(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|it: &f64| it.is_finite() && *it > 0.0)
}

fn bytes(text: &str) -> Option<f64> {
    let text = text.trim();
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let scale = match &text[unit..] {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    finite(&text[..unit]).map(|it| it * scale)
}

fn parse_hold(text: &str) -> Result<Hold, Wrong> {
    let text = text.trim();
    let looks = |text: &str| text.trim().parse::<u32>().ok();
    if let Some(looks) = looks(text) {
        let wrong = || (format!("{} is not a number of looks from 1 to 1000", shown(text)), "write 3 or \"60s\"");
        return Some(Hold::Looks(looks)).filter(|_| (1..=1000).contains(&looks)).ok_or_else(wrong);
    }
    if let Some((over, all)) = text.split_once("of") {
        let hold =
            looks(over).zip(looks(all)).filter(|(over, all)| (1..=32).contains(all) && (1..=*all).contains(over));
        let wrong = || (format!("{} is not \"3 of 5\"", shown(text)), "at most \"32 of 32\"");
        return hold.map(|(over, looks)| Hold::Of { over, looks }).ok_or_else(wrong);
    }
    parse_duration(text).map(Hold::For)
}

/// A duration, and a number with more than digits in it told as one that has no unit.
fn parse_duration(text: &str) -> Result<Duration, Wrong> {
    const ADVICE: &str = "write \"90s\" or \"2m\"; units are ms, s, m, h, d, w";
    if finite(text).is_some() || text == "0" {
        return Err((format!("{} has no unit", shown(text)), ADVICE));
    }
    units::parse_duration(text).map_err(|wrong| (wrong.to_string(), ADVICE))
}

/// Edits from one word to the other; words here are at most some sixty characters.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, a) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, b) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(check: &str) -> Override {
        Override { check: check.to_owned(), ..Override::default() }
    }

    fn mistake(change: Override) -> String {
        let (_, mistakes) = Thresholds::with([change]);
        mistakes
            .iter()
            .map(|it| format!("{it} ({})", it.advice.as_deref().unwrap_or("-")))
            .collect::<Vec<_>>()
            .join("; ")
    }

    fn row(change: Override) -> Effective {
        let id = CheckId::find(&change.check).expect("a check");
        let (table, mistakes) = Thresholds::with([change]);
        assert_eq!(mistakes, []);
        table.of(id).clone()
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn bounds_and_holds_are_changed_one_by_one() {
        let it = row(Override { warning: text("90s"), ..of("pool.idle_in_transaction") });
        assert_eq!(
            (it.bounds.warning, it.bounds.critical, it.holds),
            (Some(90.0), Some(300.0), Holds::both(Hold::Looks(3)))
        );
        let it = row(Override { warning: text("70%"), hold: text("5s"), ..of("pool.utilization") });
        assert_eq!((it.bounds.warning, it.holds), (Some(0.7), Holds::both(Hold::For(Duration::from_secs(5)))));
        let it = row(Override { warning: text("0.5"), hold: text("2 of 4"), ..of("fd.limit") });
        assert_eq!((it.bounds.warning, it.holds.warning), (Some(0.5), Hold::Of { over: 2, looks: 4 }));
        let it = row(Override { warning: text("3/s"), hold: text("7"), ..of("pool.churn") });
        assert_eq!((it.bounds.warning, it.holds.warning), (Some(3.0), Hold::Looks(7)));
        let it = row(Override { hold: text("0s"), ..of("proc.gone") });
        assert_eq!(it.holds.warning, Hold::For(Duration::ZERO));
        let it = row(Override { enabled: Some(false), ..of("tls.cert") });
        assert!(!it.enabled && it.to_string().starts_with("tls.cert  (switched off)"));
    }

    #[test]
    fn memory_may_be_bounded_in_bytes() {
        let it = row(Override { warning: text("200MB"), ..of("proc.memory") });
        assert_eq!((it.unit, it.bounds.warning, it.bounds.critical), (Unit::Bytes, Some(2e8), None));
        let it = row(Override { warning: text("70%"), ..of("proc.memory") });
        assert_eq!((it.unit, it.bounds.warning, it.bounds.critical), (Unit::Ratio, Some(0.7), Some(0.95)));
    }

    #[test]
    fn a_number_without_its_unit_is_a_clear_mistake() {
        let idle = |warning| mistake(Override { warning: text(warning), ..of("pool.idle_in_transaction") });
        let advice = "(write \"90s\" or \"2m\"; units are ms, s, m, h, d, w)";
        assert_eq!(idle("90"), format!("\"pool.idle_in_transaction\".warning: `90` has no unit {advice}"));
        assert_eq!(idle("90 %"), format!("\"pool.idle_in_transaction\".warning: `90 %` is not a duration {advice}"));
        for (check, warning, part) in [
            ("fd.limit", "80", "is not a share"),
            ("fd.limit", "-1%", "is not a share"),
            ("pool.churn", "fast", "is not a rate"),
            ("proc.restart", "NaN", "is not a number"),
            ("proc.memory", "200", "is not a share"),
            ("http.status", "1", "is an event"),
        ] {
            let told = mistake(Override { warning: text(warning), ..of(check) });
            assert!(told.contains(part), "{told}");
        }
        for hold in ["0", "-3", "3 of 2", "60", "1x", "5 0s", "99999999999999999999s", ""] {
            let told = mistake(Override { hold: text(hold), ..of("fd.limit") });
            assert_eq!(told.is_empty(), hold == "60", "{hold:?}: {told}");
        }
    }

    #[test]
    fn an_unknown_check_names_its_neighbour() {
        assert_eq!(mistake(of("pool.churm")), "\"pool.churm\" is not a check (did you mean \"pool.churn\"?)");
        assert!(mistake(of("x")).contains("`tickbird-agent defaults` lists every check"));
    }

    #[test]
    fn critical_before_warning_and_names_without_sessions_are_mistakes() {
        let told = mistake(Override { warning: text("10m"), ..of("pool.idle_in_transaction") });
        assert!(told.contains("critical: 300 s is crossed before the warning's 10 min"), "{told}");
        let told = mistake(Override { critical: text("20d"), ..of("tls.cert") });
        assert!(told.contains("critical: 20 d is crossed before"), "{told}");
        let told = mistake(Override { allow_application_names: vec!["nightly".into()], ..of("fd.limit") });
        assert!(told.contains("does not look at sessions"), "{told}");
    }

    #[test]
    fn names_are_allowed_whole_or_by_their_start() {
        let names = vec!["nightly".to_owned(), "batch-*".to_owned()];
        let it = row(Override { allow_application_names: names, ..of("pool.idle_in_transaction") });
        let allowed = ["nightly", "batch-7", "nightly2", "web"].map(|name| it.allows(name));
        assert_eq!(allowed, [true, true, false, false]);
    }

    #[test]
    fn the_table_is_printed_from_itself() {
        let table = Thresholds::default();
        assert_eq!(table.table().len(), CHECKS.len());
        let shown = table.of(CheckId::Certificate).to_string();
        for line in [
            "  warning   under 14 d, after 3 looks",
            "  critical  under 3 d, after 3 looks",
            "  clears    at 110 % of the bound for 3 looks",
        ] {
            assert!(shown.lines().any(|it| it == line), "{line:?} is missing in\n{shown}");
        }
        let row = table.of(CheckId::Utilization).json();
        assert_eq!((&row["warning_text"], &row["hold_critical"]), (&json!("80 %"), &json!("30 s")));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}", check in 0..CHECKS.len()) {
            let change = Override {
                check: CHECKS[check].id.to_owned(),
                warning: Some(text.clone()),
                critical: Some(text.clone()),
                hold: Some(text),
                ..Override::default()
            };
            let (table, _) = Thresholds::with([change]);
            prop_assert_eq!(table.table().len(), CHECKS.len());
        }
    }
}
