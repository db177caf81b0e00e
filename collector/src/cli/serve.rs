//! `serve` and `check-config`.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tickbird_confine::{CapabilitySet, Paths};
use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, Where, now, read_config};
use crate::collector::{Collector, Directory};
use crate::config::Config;
use crate::store::is_suspected;

/// How often one life opens its store anew because it was damaged. Whose disk fails that often should be looked at.
const REPAIRS: u32 = 5;

/// Serves agents and people until SIGTERM or SIGINT.
///
/// Writes DIR/addresses.json when it is ready, with the ports it really listens on, and removes it at the end. Logs to
/// standard error. On SIGTERM or SIGINT it accepts nothing new, answers what was asked, commits, and exits 0.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    files: Files,
    /// Writes the log as JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

/// Reads the configuration and says everything that is wrong with it.
#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    #[command(flatten)]
    files: Files,
    /// Prints one JSON document instead of text for people.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Files {
    /// The collector's directory, as made by `init`; its configuration is collector.toml.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/tickbird-collector")]
    dir: PathBuf,
    /// The configuration; its directory is the collector's.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Files {
    fn directory(&self) -> Directory {
        match self.config.as_ref().map(|file| file.parent()) {
            Some(Some(parent)) if parent.as_os_str().is_empty() => Directory::new("."),
            Some(Some(parent)) => Directory::new(parent),
            _ => Directory::new(&self.dir),
        }
    }

    fn config(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| self.directory().config())
    }
}

impl CheckConfig {
    pub(super) fn run(self) -> Result<(), CliError> {
        let path = self.files.config();
        let shown = path.display().to_string();
        let read = read_config(&path);
        let at = Where { dir: self.files.dir, json: self.json };
        let mistakes = match &read {
            Ok(_) => Vec::new(),
            Err(CliError::Config(found)) => {
                let of = |it: &crate::config::Mistake| json!({"at": it.at, "what": it.what, "advice": it.advice});
                found.mistakes.iter().map(of).collect()
            }
            Err(_) => Vec::new(),
        };
        if self.json || read.is_ok() {
            let json = json!({ "config": shown, "mistakes": mistakes });
            at.print(&json, || format!("{shown} is fine"))?;
        }
        read.map(drop)
    }
}

impl Serve {
    pub(super) fn run(self) -> Result<(), CliError> {
        let config = read_config(&self.files.config())?;
        log_to_stderr(self.log_json);
        raise_descriptors();
        let directory = self.files.directory();
        // Asked while the quota of a container can be read.
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        confine(&config, directory.path());
        // A second one in the process would make rustls panic at first use; this one is named everywhere all the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(workers)
            .thread_name("collector")
            .build()
            .map_err(CliError::Runtime)?;
        runtime.block_on(async {
            // Before the start, so that an early signal is not lost.
            let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Runtime)?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Runtime)?;
            let mut repairs = 0;
            loop {
                let mut collector = Collector::start(directory.clone(), config.clone(), now).await?;
                let failed = tokio::select! {
                    _ = terminate.recv() => None,
                    _ = interrupt.recv() => None,
                    failed = collector.failed() => Some(failed),
                };
                tracing::info!("collector drains");
                let is_last = failed.is_none() || !is_suspected(&directory.store()) || repairs == REPAIRS;
                if is_last {
                    Collector::tells_its_end();
                }
                let stopped = collector.stop().await;
                if is_last {
                    return Ok(failed.map_or(stopped, Err)?);
                }
                repairs += 1;
            }
        })
    }
}

/// Gives up, before anything is heard and before there is another thread, what no collector needs.
fn confine(config: &Config, directory: &Path) {
    let mut paths = Paths::of_the_system();
    paths.write.push(directory.to_owned());
    config.certificates.read_again().for_each(|file| paths.and_beside(file));
    let is_low = [config.agents, config.people].iter().any(|it| it.port() < 1024);
    let kept = if is_low { CapabilitySet::NET_BIND_SERVICE } else { CapabilitySet::empty() };
    let kept = kept | tickbird_confine::in_the_directory_of_another(directory);
    let confined = tickbird_confine::everything_but(kept, &paths);
    if confined.is_whole() {
        tracing::info!("rights are given up: {confined}");
    } else {
        tracing::warn!("this kernel takes rights only in part: {confined}");
    }
}

fn log_to_stderr(json: bool) {
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(colours).with_target(false);
    if json { log.json().init() } else { log.init() }
}

/// Each connection is a descriptor; the usual soft limit of 1,024 is for programs that use select(2).
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = limit.current, "the limit on open files stays as it is");
    }
}
