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
use crate::config::expectations;
use crate::store::is_suspected;

/// How often one life opens its store anew because it was damaged. Whose disk fails that often should be looked at.
const REPAIRS: u32 = 5;

/// Serves agents and people until SIGTERM or SIGINT.
///
/// Writes DIR/addresses.json when it is ready, with the ports it really listens on, and removes it at the end. Logs to
/// standard error. On SIGTERM or SIGINT it accepts nothing new, answers what was asked, commits, and exits 0.
///
/// On SIGHUP it reads the configuration again and goes by its receivers, routes, rules, inhibitions, time intervals and retention; the log
/// names what needs a new start. One with a mistake, or without a receiver that is owed the end of something, changes nothing.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    files: Files,
    /// Writes the log as JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

/// Reads the configuration and says everything that is wrong with it; with tests, whether it tells whom it should.
///
/// A file of tests has tables like
///
///   [[test]]
///   name = "at night a full database wakes the DBA alone"
///   at = "2026-11-21T03:00:00+01:00"
///   labels = { check = "db.headroom", severity = "critical", team = "db" }
///   firing = [{ check = "host.down", host = "db-1" }]
///   told = ["dba"]
///   not_told.desk = "nights"
///   group.dba = { team = "db" }
///
/// `labels` are what fires, `firing` what fires besides, `told` exactly who is told. The rest may be left out: the time (now), who is led to and
/// not told with a part of the reason, and the values by which a receiver's messages are grouped. One test that fails is exit code 1.
///
/// What a [[rule]] makes of values that last for a time is tested with
///
///   [[rule_test]]
///   name = "nine of ten connections for a minute are a warning"
///   rule = "shop-connections"
///   [[rule_test.step]]
///   for = "1m"
///   series = [{ server = "db", "pool.open" = 90 }, { server = "db", "server.slots" = 100 }]
///   fires = [{ server = "db", severity = "warning" }]
///
/// `series` are labels and measures, a value of which is a number, [least, most] or "unknown"; `fires` is exactly what fires at the step's end.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct CheckConfig {
    #[command(flatten)]
    files: Files,
    /// Runs the tests of this file; may be given again.
    #[arg(long, value_name = "FILE")]
    tests: Vec<PathBuf>,
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
        let at = Where { dir: self.files.dir, json: self.json };
        let checked = read_config(&path).and_then(|it| Ok((run_tests(&self.tests, &it)?, it)));
        let mistakes = match &checked {
            Err(CliError::Config(found)) => {
                let of = |it: &crate::config::Mistake| json!({"at": it.at, "what": it.what, "advice": it.advice});
                found.mistakes.iter().map(of).collect()
            }
            Ok(_) | Err(_) => Vec::new(),
        };
        let tests = checked.as_ref().map_or(&[][..], |(tests, _)| tests);
        let has_nobody = checked.as_ref().is_ok_and(|(_, it)| it.destinations.is_empty());
        if self.json || checked.is_ok() {
            let of = |it: &Tested| json!({"file": it.file, "name": it.name, "passed": it.problems.is_empty(), "problems": it.problems});
            let rules: Vec<_> = checked.iter().flat_map(|(_, it)| &it.rules).collect();
            let mut json = json!({ "config": shown, "mistakes": mistakes });
            if !rules.is_empty() {
                json["rules"] = rules.iter().map(|it| json!({ "name": it.name, "rule": it.to_string() })).collect();
            }
            if !self.tests.is_empty() {
                json["tests"] = tests.iter().map(of).collect();
            }
            at.print(&json, || {
                let of = |it: &Tested| match &it.problems[..] {
                    [] => format!("ok    {}\n", it.name),
                    problems => format!("FAIL  {}\n        {}\n", it.name, problems.join("\n        ")),
                };
                let rules: String = rules.iter().map(|it| format!("rule  {}: {it}\n", it.name)).collect();
                let nobody = if has_nobody { ", but it has no [[receiver]]: nobody is told of anything" } else { "" };
                format!("{shown} is fine{nobody}\n{rules}{}", tests.iter().map(of).collect::<String>())
            })?;
        }
        let failed = tests.iter().filter(|it| !it.problems.is_empty()).count();
        if failed > 0 {
            return Err(CliError::TestsFailed { failed, all: tests.len() });
        }
        checked.map(drop)
    }
}

/// A test that was run.
struct Tested {
    file: String,
    name: String,
    problems: Vec<String>,
}

fn run_tests(files: &[PathBuf], config: &Config) -> Result<Vec<Tested>, CliError> {
    let mut tested = Vec::new();
    for path in files {
        let file = path.display().to_string();
        let tests = expectations::read(path, config)?;
        let of = |name, problems| Tested { file: file.clone(), name, problems };
        let told = tests.told.into_iter().map(|it| of(it.name.clone(), it.problems(&config.policy, now())));
        let rules = tests.rules.into_iter().map(|it| of(it.name.clone(), it.problems(&config.rules)));
        tested.extend(told.chain(rules));
    }
    Ok(tested)
}

impl Serve {
    pub(super) fn run(self) -> Result<(), CliError> {
        let file = self.files.config();
        let mut config = read_config(&file)?;
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
            let mut hangup = signal(SignalKind::hangup()).map_err(CliError::Runtime)?;
            let mut repairs = 0;
            loop {
                let mut collector = Collector::start(directory.clone(), config.clone(), now).await?;
                let failed = loop {
                    tokio::select! {
                        _ = terminate.recv() => break None,
                        _ = interrupt.recv() => break None,
                        failed = collector.failed() => break Some(failed),
                        _ = hangup.recv() => {
                            if let Some(taken) = reload(&mut collector, &file).await {
                                config = taken;
                            }
                        }
                    }
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

/// Takes over what the file says now, or says why not.
async fn reload(collector: &mut Collector, file: &Path) -> Option<Config> {
    let config = match Config::read(file) {
        Ok(config) => config,
        Err(mistakes) => {
            tracing::error!("the configuration stays as it was: {mistakes}");
            return None;
        }
    };
    match collector.reload(config.clone()).await {
        Ok(fixed) if fixed.is_empty() => tracing::info!("the configuration was read again"),
        Ok(fixed) => {
            let parts = fixed.join(", ");
            tracing::warn!(parts, "the configuration was read again; these parts of it need a new start");
        }
        Err(error) => {
            tracing::error!(advice = error.advice(), "the configuration stays as it was: {error}");
            return None;
        }
    }
    Some(config)
}

/// Gives up, before anything is heard and before there is another thread, what no collector needs.
fn confine(config: &Config, directory: &Path) {
    let mut paths = Paths::of_the_system();
    paths.write.push(directory.to_owned());
    config
        .certificates
        .read_again()
        .chain(config.files.iter().map(PathBuf::as_path))
        .for_each(|it| paths.and_beside(it));
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
