//! `cargo xtask bench`: figures of the release binaries on this machine, from `tests/bench`.

use crate::packages;
use crate::steps::{TaskError, build_release, cargo};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Names of scenarios; all of them without any.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) fn bench(arguments: &Arguments) -> Result<(), TaskError> {
    packages::install_missing()?;
    let binaries = build_release()?;
    let mut command = vec!["bench", "--quiet", "-p", "tickbird-tests", "--bench", "figures", "--"];
    command.extend(arguments.names.iter().map(String::as_str));
    cargo(&command, &[("TICKBIRD_BIN_DIR", &binaries.to_string_lossy())])
}
