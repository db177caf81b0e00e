//! Figures of the shipped binaries on this machine: `cargo xtask bench [NAME]`.
//!
//! Each scenario prints one table. A figure that misses its budget makes the exit code a failure: `cargo xtask test` runs
//! `tick` for its sake. With `TICKBIRD_BENCH_RUNS` set to a directory, so does one that is worse than in the last run that
//! is kept there; a run without either is kept there, too, or with `TICKBIRD_BENCH_KEEP` set, any.

mod backlog;
mod buffer;
mod cost;
mod fleet;
mod footprint;
mod ingest;
mod latency;
mod leak;
mod look;
mod query;
mod stacks;
mod storm;
mod tick;
mod watch;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use serde_json::Value;
use tickbird_tests::figure::{Figure, machine, median, runs};
use tickbird_tests::stage::workspace;
use tickbird_tests::{Stage, StageError, alone};

type Scenario = fn(&Stage) -> Result<Vec<Figure>, StageError>;

/// These run in namespaces of their own: what others on this host start and end would be counted to the agent.
const APART: [&str; 6] = ["footprint", "latency", "tick", "owners", "stacks", "silent"];

const SCENARIOS: [(&str, &str, Scenario); 15] = [
    ("footprint", "the agent's CPU and memory for the reference work, and peers' for the same", footprint::footprint),
    ("watch", "the agent's CPU and memory while it watches this host", watch::watch),
    ("tick", "the agent's CPU per second with 100, 1,000 and 5,000 pool sockets, against a bare dump", tick::tick),
    ("owners", "the same of seconds in which a connection is new, and of the dearest in a minute", tick::owners),
    ("buffer", "records a second into the agent's buffer and out of it, and what it leaves on disk", buffer::buffer),
    ("backlog", "the agent's start and memory with 3.5 million records in its buffer, against none", backlog::backlog),
    ("ingest", "records a second that the collector commits", ingest::ingest),
    ("fleet", "15,000 connected agents: memory of each, handshakes, reconnect storms, a steady load", fleet::fleet),
    ("query", "pages of the API with 5 million findings and 100,000 incidents stored", query::query),
    ("storm", "50,000 findings at once behind one cause: CPU, memory, and seconds to the one message", storm::storm),
    ("look", "the watched PostgreSQL's CPU for one look of the agent", look::look),
    ("latency", "seconds from three faults to the webhook, with a look each second", latency::latency),
    ("leak", "seconds from a leaked session to the webhook", leak::leak),
    (
        "stacks",
        "seconds from the first session leaked in a transaction to the webhook, for six libraries",
        stacks::stacks,
    ),
    ("silent", "the same of sessions that are idle at the server, for three", stacks::silent),
];

/// Set where peers are measured in turns with ours.
const AGAINST_PEERS: &str = "TICKBIRD_BENCH_AGAINST_PEERS";
/// Where runs are kept.
const RUNS: &str = "TICKBIRD_BENCH_RUNS";
/// Whether a run is kept that missed a budget, or worsened.
const KEEP: &str = "TICKBIRD_BENCH_KEEP";

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
    for (name, about, scenario) in SCENARIOS {
        if !wanted.is_empty() && !wanted.iter().any(|it| it == name) {
            continue;
        }
        match run(name, about, scenario) {
            Ok(faults) if faults.is_empty() => (),
            Ok(faults) => {
                faults.iter().for_each(|it| eprintln!("{name}: {it}"));
                outcome = ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("{name}: {error}");
                outcome = ExitCode::FAILURE;
            }
        }
    }
    outcome
}

/// Runs a scenario, tells its figures and keeps them; answers what is wrong with them.
fn run(name: &str, about: &str, scenario: Scenario) -> Result<Vec<String>, StageError> {
    if let Some(directory) = alone::inside() {
        let figures = scenario(&Stage::at(&directory)?)?;
        println!("{}", Value::from_iter(figures.iter().map(Figure::to_json)));
        return Ok(Vec::new());
    }
    let directory = tempfile::Builder::new().prefix("tickbird-bench-").tempdir();
    let directory = directory.map_err(StageError::system("make a scratch directory"))?;
    let stage = Stage::at(directory.path())?;
    let mut conditions = runs::conditions(&stage)?;
    eprintln!("{name}: {about}");
    let figures = if APART.contains(&name) { apart(name, &stage)? } else { scenario(&stage)? };
    conditions.extend(machine::about().into_iter().filter(|it| it.starts_with("load")).map(|it| it + " at the end"));

    let kept = std::env::var_os(RUNS).map(PathBuf::from);
    let before = kept.as_deref().map(|it| runs::last(it, name)).unwrap_or_default();
    let summary = runs::summary(name, about, &conditions, &figures, &before);
    println!("{summary}");
    let mut faults = Vec::new();
    for it in &figures {
        if it.is_missed() {
            faults.push(format!("{} misses its budget", it.what));
        } else if before.is_worsened(it) {
            faults.push(format!(
                "{} is more than 15 % worse than in {}",
                it.what,
                before.name.as_deref().unwrap_or("")
            ));
        }
    }
    if let Some(kept) = kept {
        let is_kept = faults.is_empty() || std::env::var_os(KEEP).is_some();
        let target = workspace().join("target/bench");
        let to = if is_kept { &kept } else { &target };
        let path = runs::keep(to, name, &summary, &figures)?;
        let hint = if is_kept { "" } else { ", and not beside the others, for what it missed (`--keep`)" };
        println!("kept in {}{hint}\n", path.display());
    }
    Ok(faults)
}

/// In namespaces of its own: the child writes its figures as one line of JSON.
fn apart(name: &str, stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut child = alone::once_more(stage.directory())?;
    let output = child.arg(name).stdout(Stdio::piped()).stderr(Stdio::inherit()).output();
    let output = output.map_err(StageError::system("run it apart"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures = said.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    let figures = figures.and_then(|it| it.as_array()?.iter().map(Figure::from_json).collect::<Option<Vec<_>>>());
    figures
        .filter(|_| output.status.success())
        .ok_or_else(|| StageError::Failed { what: name.to_owned(), said: format!("{}\n{said}", output.status) })
}
