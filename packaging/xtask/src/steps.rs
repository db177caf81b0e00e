//! Runs the steps of a command one after another, each timed, and sums them up.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tickbird_tests::StageError;
use tickbird_tests::stage::workspace;

/// Why a command of the project failed. What the step itself printed stands above.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// Steps that were run and failed.
    #[error("failed: {}", .0.join(", "))]
    Steps(Vec<String>),
    /// Packages that are missing and that we may not install.
    #[error("these Debian packages are missing; install them as root:\n  apt-get install {}", .0.join(" "))]
    Packages(Vec<&'static str>),
    /// The stage could not do its part.
    #[error("{0}")]
    Stage(#[from] StageError),
}

/// Steps that were run, with their time and outcome.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration, bool)>,
}

impl Steps {
    /// Runs one step. A failure does not keep the next ones from running: a person wants to see all of them at once.
    pub(crate) fn run(&mut self, name: &str, step: impl FnOnce() -> Result<(), TaskError>) {
        println!("\n==> {name}");
        let began = Instant::now();
        let outcome = step();
        if let Err(error) = &outcome {
            eprintln!("{error}");
        }
        self.done.push((name.to_owned(), began.elapsed(), outcome.is_ok()));
    }

    /// Prints the summary.
    ///
    /// # Errors
    /// With the names of the steps that failed.
    pub(crate) fn finish(self) -> Result<(), TaskError> {
        println!();
        for (name, took, well) in &self.done {
            println!("{} {:>6.1} s  {name}", if *well { "ok    " } else { "FAILED" }, took.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|(_, took, _)| *took).sum();
        println!("       {:>6.1} s  in all", total.as_secs_f64());
        let failed: Vec<String> = self.done.into_iter().filter(|(_, _, well)| !well).map(|(name, ..)| name).collect();
        if failed.is_empty() { Ok(()) } else { Err(TaskError::Steps(failed)) }
    }
}

/// Runs cargo in the workspace, its output going where ours goes.
pub(crate) fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<(), TaskError> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).envs(environment.iter().copied()).current_dir(workspace());
    // `cargo run` tells a program of which package it is. Build scripts that watch these names would run again, and
    // everything that stands on ring be built anew, each time this is called another way.
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours
        .filter(|it| it.to_str().is_some_and(|it| it.starts_with("CARGO_PKG_") || it.starts_with("CARGO_MANIFEST_")))
    {
        command.env_remove(name);
    }
    let status = command.status().map_err(StageError::system("run cargo"))?;
    if status.success() { Ok(()) } else { Err(TaskError::Steps(vec![format!("cargo {}", arguments.join(" "))])) }
}

/// Builds both shipped binaries and gives the folder that holds them.
pub(crate) fn build_release() -> Result<PathBuf, TaskError> {
    cargo(&["build", "--release", "-p", "tickbird-agent", "-p", "tickbird-collector"], &[])?;
    Ok(target_directory()?.join("release"))
}

/// Cargo's target directory, wherever configuration has put it.
pub(crate) fn target_directory() -> Result<PathBuf, TaskError> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--no-deps", "--format-version=1", "--offline"]).current_dir(workspace());
    let text = tickbird_tests::process::run(&mut command)?;
    let found: Option<PathBuf> = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|it| it["target_directory"].as_str().map(PathBuf::from));
    let what = "the output of cargo metadata".to_owned();
    Ok(found.ok_or(StageError::Malformed { what, found: text.chars().take(200).collect() })?)
}

/// Removes a file of an earlier run, where there is one.
pub(crate) fn remove(path: &Path) -> Result<(), TaskError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StageError::system("remove a file of an earlier run")(error).into())
        }
        _ => Ok(()),
    }
}
