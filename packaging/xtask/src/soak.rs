//! `cargo xtask soak`: healthy traffic over stacks of four languages for a long time, without one finding.

use tickbird_tests::stage::workspace;

use crate::packages;
use crate::steps::{TaskError, build_release, cargo};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Minutes of traffic.
    #[arg(default_value_t = 60, value_name = "MINUTES")]
    minutes: u64,
}

pub(crate) fn soak(arguments: &Arguments) -> Result<(), TaskError> {
    packages::install_all()?;
    let binaries = build_release()?;
    let summary = workspace().join("tests/bench/runs/soak.md");
    let environment = [
        ("TICKBIRD_BIN_DIR", &*binaries.to_string_lossy()),
        ("TICKBIRD_SOAK_MINUTES", &arguments.minutes.to_string()),
        ("TICKBIRD_SOAK_SUMMARY", &summary.to_string_lossy()),
    ];
    println!("{} minutes of traffic; the summary will stand in {}", arguments.minutes, summary.display());
    cargo(&["test", "--locked", "-p", "tickbird-tests", "--test", "soak"], &environment)
}
