//! Figures of the shipped binaries on this machine: `cargo xtask bench [NAME]`.
//!
//! A figure is printed as one line of CSV, `scenario,figure,value,unit`, so that runs of one machine can be compared. One
//! that is over its budget makes the exit code a failure: `cargo xtask test` runs `tick` for its sake.

mod cost;
mod ingest;
mod leak;
mod look;
mod stacks;
mod tick;
mod watch;

use std::process::ExitCode;

use tickbird_tests::{Stage, StageError, alone};

type Scenario = fn(&Stage) -> Result<Vec<Figure>, StageError>;

/// These run in namespaces of their own: what others on this host start and end would be counted to the agent.
const APART: [&str; 3] = ["tick", "stacks", "silent"];

const SCENARIOS: [(&str, &str, Scenario); 7] = [
    ("watch", "the agent's CPU and memory while it watches this host", watch::watch),
    ("tick", "the agent's CPU per second with 100, 1,000 and 5,000 pool sockets, against a bare dump", tick::tick),
    ("ingest", "records a second that the collector commits", ingest::ingest),
    ("look", "the watched PostgreSQL's CPU for one look of the agent", look::look),
    ("leak", "seconds from a fault to the webhook", leak::leak),
    (
        "stacks",
        "seconds from the first session leaked in a transaction to the webhook, for six libraries",
        stacks::stacks,
    ),
    ("silent", "the same of sessions that are idle at the server, for three", stacks::silent),
];

/// One number.
struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    /// The most that it may be.
    budget: Option<f64>,
}

impl Figure {
    fn of(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { what: what.into(), value, unit, budget: None }
    }

    fn at_most(self, budget: f64) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// Not a number is over every budget.
    fn is_over(&self) -> bool {
        self.budget.is_some_and(|budget| self.value.partial_cmp(&budget).is_none_or(|it| it.is_gt()))
    }

    /// The median of some values, and their range.
    fn spread(what: &str, mut values: Vec<f64>, unit: &'static str) -> [Self; 3] {
        values.sort_by(f64::total_cmp);
        let [least, most] = [values.first(), values.last()].map(|it| it.copied().unwrap_or(f64::NAN));
        [
            Self::of(format!("{what} (median of {})", values.len()), median(values), unit),
            Self::of(format!("{what} (least)"), least, unit),
            Self::of(format!("{what} (most)"), most, unit),
        ]
    }
}

fn main() -> ExitCode {
    // cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    let unknown: Vec<&String> = wanted.iter().filter(|it| !SCENARIOS.iter().any(|(name, ..)| name == it)).collect();
    if !unknown.is_empty() {
        eprintln!("no scenario is named {unknown:?}; there are:");
        for (name, about, _) in SCENARIOS {
            eprintln!("  {name:<8} {about}");
        }
        return ExitCode::FAILURE;
    }
    let mut outcome = ExitCode::SUCCESS;
    if alone::inside().is_none() {
        println!("scenario,figure,value,unit");
    }
    for (name, _, scenario) in SCENARIOS {
        if !wanted.is_empty() && !wanted.iter().any(|it| it == name) {
            continue;
        }
        match run(name, scenario) {
            Ok(figures) => {
                for it in figures {
                    let Figure { what, value, unit, .. } = &it;
                    println!("{name},{what},{value:.3},{unit}");
                    if it.is_over() {
                        eprintln!("{name}: {what} is {value:.3}, over its budget of {}", it.budget.unwrap_or_default());
                        outcome = ExitCode::FAILURE;
                    }
                }
            }
            Err(error) => {
                eprintln!("{name}: {error}");
                outcome = ExitCode::FAILURE;
            }
        }
    }
    outcome
}

fn run(name: &str, scenario: Scenario) -> Result<Vec<Figure>, StageError> {
    if let Some(directory) = alone::inside() {
        return scenario(&Stage::at(&directory)?);
    }
    let directory = tempfile::Builder::new().prefix("tickbird-bench-").tempdir();
    let directory = directory.map_err(StageError::system("make a scratch directory"))?;
    if !APART.contains(&name) {
        return scenario(&Stage::at(directory.path())?);
    }
    // The child prints its figures itself.
    let status = alone::once_more(directory.path())?.arg(name).status().map_err(StageError::system("run it apart"))?;
    match status.success() {
        true => Ok(Vec::new()),
        false => Err(StageError::Failed { what: name.to_owned(), said: status.to_string() }),
    }
}

/// The middle of some numbers.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
