//! Routes mean what they mean to Alertmanager: its own `amtool` reads the same trees and is asked of the same labels.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tickbird_tests::chance::Chance;
use tickbird_tests::process::{installed, run};
use tickbird_tests::{Collector, Stage, StageError, alone};

const RECEIVERS: [&str; 4] = ["desk", "pager", "dba", "archive"];
const TREES: u64 = 24;
const QUESTIONS: u64 = 8;
/// Routes below one another.
const DEEPEST: u32 = 3;

/// A route as both read it.
struct Route {
    /// A child may leave it to its parent.
    receiver: Option<&'static str>,
    matchers: Vec<String>,
    goes_on: bool,
    routes: Vec<Route>,
}

const fn one<T: Copy>(of: &[T], chance: &mut Chance) -> T {
    of[chance.below(of.len() as u64) as usize]
}

fn matcher(chance: &mut Chance) -> String {
    let (label, values): (_, &[&str]) = match chance.below(3) {
        0 => ("severity", &["critical", "warning", ""]),
        1 => ("team", &["db", "web", ""]),
        _ => ("check", &["pool.leak", "http.status", "db.headroom"]),
    };
    match chance.below(4) {
        0 => format!("{label}=\"{}\"", one(values, chance)),
        1 => format!("{label}!=\"{}\"", one(values, chance)),
        // Both match from the first letter to the last: `web` is not `w`.
        2 => format!("{label}=~\"{}\"", one(&["pool[.].*|d?b", "w", ".+", ".*", "crit.*|web", ""], chance)),
        _ => format!("{label}!~\"{}\"", one(&["pool[.].*|d?b", "w", ".+", "warning|http[.].*", ""], chance)),
    }
}

impl Route {
    fn top(chance: &mut Chance) -> Self {
        let routes = (0..=chance.below(4)).map(|_| Self::below(1, chance)).collect();
        Self { receiver: Some(one(&RECEIVERS, chance)), matchers: Vec::new(), goes_on: false, routes }
    }

    fn below(depth: u32, chance: &mut Chance) -> Self {
        let children = if depth < DEEPEST { chance.below(4) } else { 0 };
        Self {
            receiver: (chance.below(4) > 0).then(|| one(&RECEIVERS, chance)),
            matchers: (0..chance.below(3)).map(|_| matcher(chance)).collect(),
            goes_on: chance.below(3) == 0,
            routes: (0..children).map(|_| Self::below(depth + 1, chance)).collect(),
        }
    }

    /// In Alertmanager's file; JSON is YAML.
    fn document(&self) -> Value {
        let mut document = serde_json::json!({ "routes": self.routes.iter().map(Self::document).collect::<Vec<_>>() });
        if let Some(receiver) = self.receiver {
            document["receiver"] = receiver.into();
        }
        if !self.matchers.is_empty() {
            document["matchers"] = self.matchers.clone().into();
        }
        if self.goes_on {
            document["continue"] = true.into();
        }
        document
    }

    /// In ours.
    fn lines(&self, at: &str) -> String {
        let head = if at == "route" { format!("[{at}]\n") } else { format!("[[{at}]]\n") };
        let receiver = self.receiver.map(|it| format!("receiver = \"{it}\"\n")).unwrap_or_default();
        let matchers: Vec<_> = self.matchers.iter().map(|it| format!("'{it}'")).collect();
        let matchers = match matchers.as_slice() {
            [] => String::new(),
            some => format!("matchers = [{}]\n", some.join(", ")),
        };
        let goes_on = if self.goes_on { "continue = true\n" } else { "" };
        let below: String = self.routes.iter().map(|it| it.lines(&format!("{at}.routes"))).collect();
        format!("{head}{receiver}{matchers}{goes_on}{below}")
    }
}

fn labels(chance: &mut Chance) -> Vec<String> {
    let mut labels = vec![format!("check={}", one(&["pool.leak", "http.status", "db.headroom"], chance))];
    for (name, values) in [("severity", ["critical", "warning"]), ("team", ["db", "web"])] {
        if chance.below(4) > 0 {
            labels.push(format!("{name}={}", one(&values, chance)));
        }
    }
    labels
}

/// Where ours says that it leads, in the order of the routes.
fn ours(collector: &Collector, labels: &[&str]) -> Result<Vec<String>, StageError> {
    let said = collector.command(&[&["route", "test", "--json"], labels].concat())?;
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let names = said["receivers"].as_array().into_iter().flatten().filter_map(|it| it["receiver"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Where theirs does.
fn theirs(amtool: &Path, file: &Path, labels: &[&str]) -> Result<Vec<String>, StageError> {
    let mut command = Command::new(amtool);
    command.args(["config", "routes", "test"]).arg(format!("--config.file={}", file.display())).args(labels);
    Ok(run(&mut command)?.trim().split(',').map(str::to_owned).collect())
}

/// Asks both of one tree after another; how many receivers were named in all.
fn compared(stage: &Stage, amtool: &Path) -> Result<u64, StageError> {
    let collector = Collector::init(stage)?;
    for name in RECEIVERS {
        collector.configure(&format!("\n[[receiver]]\nname = \"{name}\"\nwebhook.url = \"http://127.0.0.1:9/\"\n"))?;
    }
    let receivers: Vec<_> = RECEIVERS.map(|name| serde_json::json!({ "name": name })).into();
    let file = collector.directory().join("alertmanager.yml");
    let (mut chance, mut before, mut named) = (Chance::of(0x7469_636B), String::new(), 0);
    for _ in 0..TREES {
        let tree = Route::top(&mut chance);
        let lines = format!("\n{}# the end\n", tree.lines("route"));
        match before.is_empty() {
            true => collector.configure(&lines)?,
            false => collector.rewrite(&before, &lines)?,
        }
        let document = serde_json::json!({ "route": tree.document(), "receivers": receivers });
        std::fs::write(&file, document.to_string()).map_err(StageError::system("write Alertmanager's file"))?;
        for _ in 0..QUESTIONS {
            let labels = labels(&mut chance);
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let (ours, theirs) = (ours(&collector, &labels)?, theirs(amtool, &file, &labels)?);
            assert_eq!(ours, theirs, "{labels:?} by {lines}");
            named += ours.len() as u64;
        }
        before = lines;
    }
    Ok(named)
}

#[test]
fn every_tree_of_routes_leads_where_alertmanagers_own_tool_says() {
    alone(|stage| {
        let amtool = installed("/usr/bin/amtool", "prometheus-alertmanager")?;
        let named = compared(stage, &amtool)?;
        // Some lead to one receiver, some to several.
        assert!(named > TREES * QUESTIONS, "{named} were named");
        Ok(())
    });
}
