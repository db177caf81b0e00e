//! Figures of the shipped binaries on this machine: `cargo xtask bench [NAME]`.
//!
//! A figure is printed as one line of CSV, `scenario,figure,value,unit`, so that runs of one machine can be compared.

mod cost;
mod ingest;
mod leak;
mod look;
mod tick;
mod watch;

use std::process::ExitCode;

use tickbird_tests::{Stage, StageError};

type Scenario = fn(&Stage) -> Result<Vec<Figure>, StageError>;

const SCENARIOS: [(&str, &str, Scenario); 5] = [
    ("watch", "the agent's CPU and memory while it watches this host", watch::watch),
    ("tick", "the agent's CPU per second with 100, 1,000 and 5,000 pool sockets, against a bare dump", tick::tick),
    ("ingest", "records a second that the collector commits", ingest::ingest),
    ("look", "the watched PostgreSQL's CPU for one look of the agent", look::look),
    ("leak", "seconds from a fault to the webhook", leak::leak),
];

/// One number.
struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
}

impl Figure {
    fn of(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { what: what.into(), value, unit }
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
    println!("scenario,figure,value,unit");
    for (name, _, scenario) in SCENARIOS {
        if !wanted.is_empty() && !wanted.iter().any(|it| it == name) {
            continue;
        }
        match run(scenario) {
            Ok(figures) => {
                for Figure { what, value, unit } in figures {
                    println!("{name},{what},{value:.3},{unit}");
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

fn run(scenario: Scenario) -> Result<Vec<Figure>, StageError> {
    let directory = tempfile::Builder::new().prefix("tickbird-bench-").tempdir();
    let directory = directory.map_err(StageError::system("make a scratch directory"))?;
    scenario(&Stage::at(directory.path())?)
}

/// The middle of some numbers.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
