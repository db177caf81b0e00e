//! `cargo xtask test`: everything, from nothing.

use crate::steps::{Steps, TaskError, build_release, cargo};
use crate::{lint, packages};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only end-to-end scenarios whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// How many scenarios run at once. They mostly wait, so it is more than there are cores.
    #[arg(long, default_value_t = 4, value_name = "N")]
    at_once: usize,
}

pub(crate) fn test(arguments: &Arguments) -> Result<(), TaskError> {
    let mut steps = Steps::default();
    steps.run("Debian packages", packages::install_all);
    if arguments.only.is_none() {
        lint::run(&mut steps);
        steps.run("unit tests", || cargo(&["test", "--workspace", "--locked", "--no-fail-fast"], &[]));
    }
    let mut binaries = None;
    steps.run("release build", || build_release().map(|folder| binaries = Some(folder)));
    if let Some(binaries) = binaries {
        steps.run("end-to-end tests", || {
            let at_once = format!("--test-threads={}", arguments.at_once);
            let mut command = vec!["test", "--locked", "-p", "tickbird-tests", "--test", "it", "--", &at_once];
            command.extend(arguments.only.as_deref());
            cargo(&command, &[("TICKBIRD_BIN_DIR", &binaries.to_string_lossy())])
        });
        if arguments.only.is_none() {
            // After the others: what is measured is a share of CPU time, and beside four scenarios it is a coarser one.
            steps.run("cost of a tick", || {
                let command = ["bench", "--locked", "--profile", "dev", "-p", "tickbird-tests", "--bench", "figures"];
                cargo(&[&command[..], &["--", "tick"]].concat(), &[("TICKBIRD_BIN_DIR", &binaries.to_string_lossy())])
            });
        }
    }
    steps.finish()
}
