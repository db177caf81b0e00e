//! `cargo xtask soak`: healthy traffic over stacks of four languages for a long time, without one finding; then the long
//! forms of the tests that cut, kill, damage and crowd.

use std::time::Instant;

use tickbird_tests::StageError;
use tickbird_tests::stage::workspace;

use crate::packages;
use crate::steps::{Steps, TaskError, build_release, cargo, remove};

/// What each long form is, which tests it runs, and how it is asked for.
const LONG: [(&str, &str, (&str, &str)); 4] = [
    ("kills", "kills::", ("TICKBIRD_KILL_CYCLES", "1000")),
    ("cuts of the network", "partitions::", ("TICKBIRD_CUT_SECONDS", "180")),
    ("short-lived certificates", "short_lives::", ("TICKBIRD_CERTIFICATE_MINUTES", "30")),
    ("many agents", "limits::ten_", ("TICKBIRD_LIMITS_AGENTS", "2000")),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Minutes of traffic; none leaves the traffic out.
    #[arg(default_value_t = 60, value_name = "MINUTES")]
    minutes: u64,
    /// Only the long forms whose name contains this; none of them contains `-`.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
}

pub(crate) fn soak(arguments: &Arguments) -> Result<(), TaskError> {
    packages::install_all()?;
    let binaries = build_release()?;
    let runs = workspace().join("tests/bench/runs");
    let binaries = binaries.to_string_lossy();
    let mut steps = Steps::default();
    if arguments.minutes > 0 {
        let summary = runs.join("soak.md");
        println!("{} minutes of traffic; the summary will stand in {}", arguments.minutes, summary.display());
        let environment = [
            ("TICKBIRD_BIN_DIR", &*binaries),
            ("TICKBIRD_SOAK_MINUTES", &arguments.minutes.to_string()),
            ("TICKBIRD_SOAK_SUMMARY", &summary.to_string_lossy()),
        ];
        steps.run("traffic", || cargo(&["test", "--locked", "-p", "tickbird-tests", "--test", "soak"], &environment));
    }
    let long: Vec<_> = LONG.iter().filter(|(name, ..)| name.contains(&arguments.only)).collect();
    let told = runs.join("long-forms.txt");
    let mut summary = String::from(
        "# Long forms of the tests\n\nEach line that a test tells of itself, on release binaries, one after another.\n",
    );
    for (name, tests, variable) in &long {
        remove(&told)?;
        let began = Instant::now();
        let environment = [*variable, ("TICKBIRD_BIN_DIR", &*binaries), ("TICKBIRD_REPORT", &*told.to_string_lossy())];
        let mut passed = false;
        steps.run(name, || {
            let run = ["test", "--locked", "-p", "tickbird-tests", "--test", "it", "--", tests, "--test-threads=1"];
            cargo(&run, &environment).inspect(|()| passed = true)
        });
        let (key, value) = variable;
        let outcome = if passed { "passed" } else { "FAILED" };
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        summary += &format!("\n## {name}: {outcome}\n\n`{key}={value}`, {minutes:.1} minutes.\n");
        let lines = std::fs::read_to_string(&told).unwrap_or_default();
        for line in lines.lines() {
            summary += &format!("- {line}\n");
        }
    }
    remove(&told)?;
    if long.len() == LONG.len() {
        let path = runs.join("long-forms.md");
        std::fs::write(&path, summary).map_err(StageError::system("write the summary of the long forms"))?;
        println!("the long forms' summary stands in {}", path.display());
    }
    steps.finish()
}
