//! A [`Report`] as a person reads it: tables of what is watched, then what fires, with the proof.
//!
//! Everything shown came from outside at some point, so control characters are escaped here once more.

use std::fmt::Write as _;
use std::io::IsTerminal;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value as Json;

use crate::status::pools::{ConnectionPart, LEGEND, PoolPart, empty_in};
use crate::status::{BlindPart, CheckPart, FindingPart, Report, TargetPart};

/// How to draw: colours, and the zone of the times.
#[derive(Debug, Clone)]
pub struct Style {
    /// Whether states are coloured.
    pub colour: bool,
    /// Zone in which times are shown.
    pub zone: TimeZone,
    /// Whether each check is listed too.
    pub checks: bool,
    /// Whether each connection of a pool is listed too.
    pub sessions: bool,
    /// The process of which every fact, join and rule is told.
    pub why: Option<u32>,
}

impl Style {
    /// Colours only on a terminal and without `NO_COLOR`; the system's time zone.
    pub fn of_terminal() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        Self { colour, zone: TimeZone::system(), checks: false, sessions: false, why: None }
    }

    /// A state or severity, padded to `width` and coloured.
    fn state(&self, word: &str, width: usize) -> String {
        let code = match word {
            "critical" => "31;1",
            "warning" => "33",
            "blind" => "35",
            "ok" | "resolved" => "32",
            _ => "36",
        };
        if self.colour { format!("\x1b[{code}m{word:width$}\x1b[0m") } else { format!("{word:width$}") }
    }

    fn heading(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A time in the zone, with its offset.
    pub fn time(&self, at: Timestamp) -> String {
        at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
    }
}

/// The whole report as text.
pub fn report(report: &Report, style: &Style) -> String {
    let mut out = String::new();
    let agent = &report.agent;
    let who = agent.id.as_deref().map_or(String::new(), |id| format!(" ({id})"));
    let _ = writeln!(
        out,
        "tickbird-agent {} on {}{who}, {}",
        agent.version,
        visible(&agent.host),
        style.time(agent.reported_at)
    );
    if !agent.holds_respected {
        out.push_str("two looks a second apart; holds are ignored, rules that need history say \"not yet known\"\n");
    }
    if let Some(collector) = &agent.collector {
        let last = collector.acknowledged_at.map_or("never".to_owned(), |at| style.time(at));
        let _ = writeln!(
            out,
            "collector {}: circuit {}, last acknowledgement {last}",
            visible(&collector.url),
            collector.breaker
        );
        if let Some(error) = &collector.error {
            let _ = writeln!(out, "  {}", visible(error));
        }
    }
    for Layout { kind, title, columns } in TABLES {
        let of_kind: Vec<&TargetPart> = report.targets.iter().filter(|it| it.kind == kind).collect();
        if !of_kind.is_empty() {
            table(&mut out, title, columns, &of_kind, style);
        }
    }
    pools(&mut out, &report.pools, style);
    if let Some(pid) = style.why {
        why(&mut out, report, pid, style);
    }
    if style.checks {
        checks(&mut out, report, style);
    }
    findings(&mut out, &report.findings, style);
    pending(&mut out, report, style);
    blind(&mut out, &report.blind, style);
    out
}

/// How the targets of one kind are shown.
struct Layout {
    kind: &'static str,
    title: &'static str,
    /// Heading of each column and the fact that fills it.
    columns: &'static [(&'static str, &'static str)],
}

const TABLES: [Layout; 5] = [
    Layout {
        kind: "process",
        title: "PROCESSES",
        columns: &[
            ("application", "application"),
            ("listens", "listens"),
            ("pids", "pids"),
            ("cpu", "cpu_cores"),
            ("memory", "memory_bytes"),
            ("descriptors", "descriptors"),
            ("threads", "threads"),
        ],
    },
    Layout {
        kind: "pool",
        title: "POOLS",
        columns: &[
            ("application", "application"),
            ("to", "remote"),
            ("service", "service"),
            ("pids", "pids"),
            ("open", "open"),
            ("by state", "by_state"),
            ("limit", "limit"),
            ("waiting", "waiting"),
        ],
    },
    Layout {
        kind: "application pool",
        title: "POOLS AS APPLICATIONS COUNT THEM",
        columns: &[
            ("application", "application"),
            ("pool", "pool"),
            ("limit", "limit"),
            ("in use", "in_use"),
            ("idle", "idle"),
            ("waiting", "waiting"),
            ("said by", "said_by"),
        ],
    },
    Layout {
        kind: "server",
        title: "SERVERS",
        columns: &[
            ("server", "server"),
            ("sessions", "sessions"),
            ("joined", "joined"),
            ("by state", "by_state"),
            ("used", "used"),
            ("slots", "slots"),
            ("empty in", "empty_in_seconds"),
            ("connect", "connect_seconds"),
            ("not joined", "why_not_joined"),
        ],
    },
    Layout {
        kind: "endpoint",
        title: "ENDPOINTS",
        columns: &[
            ("url", "url"),
            ("answer", "answer"),
            ("seconds", "seconds"),
            ("phases", "phases"),
            ("certificate until", "certificate_until"),
        ],
    },
];

fn table(out: &mut String, title: &str, columns: &[(&str, &str)], targets: &[&TargetPart], style: &Style) {
    let rows: Vec<Vec<String>> = targets
        .iter()
        .map(|target| columns.iter().map(|(_, fact)| cell(fact, target.facts.get(*fact))).collect())
        .collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|i| {
            rows.iter().map(|row| row[i].chars().count()).chain([columns[i].0.len()]).max().unwrap_or_default().min(48)
        })
        .collect();
    let _ = write!(out, "\n{}\n  {:8}", style.heading(title), "state");
    for ((heading, _), width) in columns.iter().zip(&widths) {
        let _ = write!(out, "  {heading:width$}");
    }
    trim_line(out);
    for (target, row) in targets.iter().zip(&rows) {
        let _ = write!(out, "  {}", style.state(&target.state, 8));
        for (text, width) in row.iter().zip(&widths) {
            let _ = write!(out, "  {:width$}", cut(text, *width));
        }
        trim_line(out);
    }
}

fn trim_line(out: &mut String) {
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}

fn cell(fact: &str, value: Option<&Json>) -> String {
    match value {
        None | Some(Json::Null) => "-".into(),
        Some(range) if fact == "empty_in_seconds" => empty_in(range).unwrap_or_else(|| "not yet known".into()),
        Some(Json::Number(number)) if fact.ends_with("_bytes") => bytes(number.as_f64().unwrap_or_default()),
        Some(Json::Number(number)) if fact == "cpu_cores" => {
            format!("{:.1} %", number.as_f64().unwrap_or_default() * 100.0)
        }
        Some(Json::Number(number)) if fact.ends_with("seconds") => {
            format!("{:.3} s", number.as_f64().unwrap_or_default())
        }
        Some(Json::Number(number)) => number.to_string(),
        Some(Json::String(text)) => visible(text),
        Some(Json::Array(items)) => {
            let all: Vec<_> = items.iter().map(|it| cell("", Some(it))).collect();
            all.join(" ")
        }
        Some(Json::Object(pairs)) => {
            let all: Vec<_> = pairs.iter().map(|(name, it)| named(name, it, fact)).collect();
            all.join(", ")
        }
        Some(Json::Bool(flag)) => flag.to_string(),
    }
}

/// One fact of several: `20 established`, and `phase connect`.
fn named(name: &str, value: &Json, fact: &str) -> String {
    let shown = cell(fact, Some(value));
    if value.is_number() { format!("{shown} {name}") } else { format!("{name} {shown}") }
}

/// Each instance's pool as one glance, its connections behind it when they are asked for.
fn pools(out: &mut String, pools: &[PoolPart], style: &Style) {
    if !pools.is_empty() {
        let _ = writeln!(out, "\n{}  {LEGEND}", style.heading("CONNECTIONS"));
    }
    for pool in pools {
        let _ = writeln!(out, "  {}\n    {} {}", pool.who(), pool.bar(), visible(&pool.glance()));
        if style.sessions {
            for it in &pool.connections {
                let _ = writeln!(out, "      {}", it.line());
            }
            if pool.connections.len() < pool.open {
                let _ = writeln!(out, "      and {} more", pool.open - pool.connections.len());
            }
        }
    }
}

/// Everything that led to what is said of one process.
fn why(out: &mut String, report: &Report, pid: u32, style: &Style) {
    let _ = writeln!(out, "\n{}", style.heading(&format!("WHY: PID {pid}")));
    let has_pid = |it: &&TargetPart| {
        it.facts
            .get("pids")
            .and_then(Json::as_array)
            .is_some_and(|all| all.iter().any(|one| one.as_u64() == Some(pid.into())))
    };
    // What it inherited stands in the pool of the process that opened it.
    let is_of = |pool: &PoolPart, it: &ConnectionPart| pool.pid == Some(pid) || it.is_shared_with(pid);
    let of_process: Vec<&PoolPart> = report
        .pools
        .iter()
        .filter(|pool| pool.pid == Some(pid) || pool.connections.iter().any(|it| is_of(pool, it)))
        .collect();
    let targets: Vec<&TargetPart> = report.targets.iter().filter(has_pid).collect();
    if of_process.is_empty() && targets.is_empty() {
        out.push_str(
            "  no process of this number listens, holds a pool or is declared; `inspect` shows those that do\n",
        );
        return;
    }
    for target in &targets {
        let _ = writeln!(out, "  {}  {}", style.state(&target.state, 8), visible(&target.key));
        for (name, value) in &target.facts {
            let _ = writeln!(out, "      {name}: {}", cell(name, Some(value)));
        }
    }
    for pool in &of_process {
        let _ = writeln!(out, "  {}: {}", pool.who(), visible(&pool.glance()));
        for it in pool.connections.iter().filter(|it| is_of(pool, it)) {
            let _ = writeln!(out, "    {}", it.line());
            for fact in &it.facts {
                let _ = writeln!(out, "      {}", visible(fact));
            }
        }
    }
    let keys: Vec<&str> =
        targets.iter().map(|it| it.key.as_str()).chain(of_process.iter().map(|it| it.target.as_str())).collect();
    let concerns =
        |it: &&CheckPart| keys.iter().any(|key| it.target == *key || it.target.starts_with(&format!("{key}/")));
    for it in report.checks.iter().filter(concerns) {
        let _ = writeln!(out, "  {}  {}  {}", style.state(&it.state, 8), it.check, visible(&it.target));
        let _ = writeln!(out, "      value: {} {}", cut(&cell("", Some(&it.value)), 200), unit_of(it));
        let _ = writeln!(out, "      why:   {}", visible(&it.reason));
    }
}

fn findings(out: &mut String, findings: &[FindingPart], style: &Style) {
    let _ = writeln!(out, "\n{}", style.heading("FINDINGS"));
    // What cannot be seen has a section of its own, one entry for each cause.
    let seen: Vec<_> = findings.iter().filter(|it| it.check != "agent.blind").collect();
    if seen.is_empty() {
        out.push_str("  none\n");
    }
    for it in seen {
        let _ = writeln!(out, "  {}  {}  {}", style.state(&it.severity, 8), it.check, visible(&it.target));
        let _ = writeln!(out, "            {}", visible(&it.summary));
        let _ = writeln!(out, "            why:   {} (since {})", visible(&it.reason), style.time(it.since));
        if let Some(advice) = &it.advice {
            let _ = writeln!(out, "            do:    {}", visible(advice));
        }
        for line in proof(&it.evidence) {
            let _ = writeln!(out, "            proof: {line}");
        }
    }
}

/// The evidence in lines: one for each item of a list (at most ten), one for everything else.
fn proof(evidence: &Json) -> Vec<String> {
    let Json::Object(facts) = evidence else { return Vec::new() };
    let mut lines = Vec::new();
    let mut rest = Vec::new();
    for (name, value) in facts {
        match value {
            Json::Array(items) if items.first().is_some_and(Json::is_object) => {
                lines.extend(items.iter().take(10).map(|item| cut(&pairs(item), 200)));
                if items.len() > 10 {
                    lines.push(format!("and {} more {name}", items.len() - 10));
                }
            }
            Json::Null => (),
            Json::Array(items) if items.is_empty() => (),
            other => rest.push(format!("{name} {}", cell(name, Some(other)))),
        }
    }
    if !rest.is_empty() {
        lines.push(cut(&rest.join(", "), 400));
    }
    lines
}

fn pairs(item: &Json) -> String {
    let Json::Object(facts) = item else { return cell("", Some(item)) };
    let shown =
        facts.iter().filter(|(_, it)| !it.is_null()).map(|(name, it)| format!("{name} {}", cell(name, Some(it))));
    shown.collect::<Vec<_>>().join(", ")
}

fn pending(out: &mut String, report: &Report, style: &Style) {
    let waiting: Vec<_> = report.checks.iter().filter_map(|it| it.pending.as_ref().map(|text| (it, text))).collect();
    if !waiting.is_empty() {
        let _ = writeln!(out, "\n{}", style.heading("WAITING FOR A HOLD"));
    }
    for (it, text) in waiting {
        let _ = writeln!(out, "  {}  {}: {}", it.check, visible(&it.target), visible(text));
    }
}

fn blind(out: &mut String, blind: &[BlindPart], style: &Style) {
    if !blind.is_empty() {
        let _ = writeln!(out, "\n{}", style.heading("BLIND"));
    }
    for it in blind {
        let _ = writeln!(out, "  {}  {}: {}", style.state("blind", 8), it.checks.join(", "), visible(&it.reason));
        if let Some(advice) = &it.advice {
            let _ = writeln!(out, "            do:    {}", visible(advice));
        }
        let _ = writeln!(out, "            for:   {}", cut(&visible(&it.targets.join(", ")), 300));
    }
}

fn checks(out: &mut String, report: &Report, style: &Style) {
    let _ = writeln!(out, "\n{}", style.heading("CHECKS"));
    for it in &report.checks {
        let value = cut(&cell("", Some(&it.value)), 80);
        let unit = unit_of(it);
        let _ = write!(out, "  {}  {:26} {}  {value} {unit}", style.state(&it.state, 8), it.check, visible(&it.target));
        trim_line(out);
    }
}

/// The unit behind a value; a text that says why there is none has no unit.
fn unit_of(it: &CheckPart) -> &str {
    if it.value.is_number() || it.value.is_array() { &it.unit } else { "" }
}

/// Bytes with a binary unit.
pub fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len() - 1).find(|i| count < 1024_f64.powi(*i as i32 + 1)).unwrap_or(units.len() - 1);
    let scaled = count / 1024_f64.powi(step as i32);
    if step == 0 { format!("{scaled:.0} B") } else { format!("{scaled:.1} {}", units[step]) }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The text with control characters and direction marks escaped.
fn visible(text: &str) -> String {
    crate::scrub::text(text, 4096)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::status::tests::leaking;

    fn shown(report: &Report) -> String {
        super::report(
            report,
            &Style { colour: false, zone: TimeZone::UTC, checks: true, sessions: true, why: Some(4121) },
        )
    }

    #[test]
    fn a_leak_as_a_person_reads_it() {
        insta::assert_snapshot!(shown(&leaking()));
    }

    #[test]
    fn colours_only_when_asked_for() {
        let style = Style { colour: true, zone: TimeZone::UTC, checks: false, sessions: false, why: None };
        assert!(super::report(&leaking(), &style).contains("\u{1b}[31;1mcritical"));
        assert!(!shown(&leaking()).contains('\u{1b}'));
    }

    #[test]
    fn control_characters_from_outside_are_escaped() {
        let mut report = leaking();
        report.findings[0].summary = "evil \u{1b}[2J\u{202e} name".into();
        report.findings[0].evidence = json!({ "name": "a\u{7}b" });
        let text = shown(&report);
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{7}']), "{text}");
    }

    #[test]
    fn a_text_stands_behind_its_name_and_has_no_unit() {
        let failure = serde_json::json!({ "phase": "connect", "what": "connection refused" });
        assert_eq!(cell("failure", Some(&failure)), "phase connect, what connection refused");
        assert_eq!(cell("by_state", Some(&serde_json::json!({ "established": 20 }))), "20 established");
        let mut check = crate::status::tests::leaking().checks.remove(0);
        check.value = "not judged: it tells nothing of its pool".into();
        assert_eq!(unit_of(&check), "");
        check.value = 3.into();
        assert_eq!(unit_of(&check), check.unit);
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!([0.0, 1023.0, 1024.0, 2.5e6, 3e12].map(bytes), ["0 B", "1023 B", "1.0 KiB", "2.4 MiB", "2.7 TiB"]);
    }
}
