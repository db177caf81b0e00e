//! `cargo xtask bench`: figures of the release binaries on this machine, from `tests/bench`, kept in `tests/bench/runs`.

use tickbird_tests::stage::workspace;

use crate::packages;
use crate::steps::{TaskError, build_release, cargo};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Names of scenarios; all of them without any.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Keeps a run that missed a budget or is worse than the last one kept, too: that is the new measure.
    #[arg(long)]
    keep: bool,
    /// Measures peers of Debian's packages in turns with ours, where a scenario has some; missing ones are installed.
    #[arg(long)]
    against_peers: bool,
}

pub(crate) fn bench(arguments: &Arguments) -> Result<(), TaskError> {
    packages::install_missing()?;
    packages::install_for_figures(arguments.against_peers)?;
    let binaries = build_release()?;
    let mut command = vec!["bench", "--quiet", "-p", "tickbird-tests", "--bench", "figures", "--"];
    command.extend(arguments.names.iter().map(String::as_str));
    let runs = workspace().join("tests/bench/runs");
    let (binaries, runs) = (binaries.to_string_lossy(), runs.to_string_lossy());
    let mut environment = vec![("TICKBIRD_BIN_DIR", &*binaries), ("TICKBIRD_BENCH_RUNS", &*runs)];
    environment.extend(arguments.keep.then_some(("TICKBIRD_BENCH_KEEP", "1")));
    environment.extend(arguments.against_peers.then_some(("TICKBIRD_BENCH_AGAINST_PEERS", "1")));
    cargo(&command, &environment)
}
