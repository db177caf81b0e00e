//! `cargo xtask up`: a collector and an agent for this host in a scratch directory, and what they find as it comes.

mod fault;
mod news;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tickbird_tests::agent::postgres;
use tickbird_tests::{Agent, Collector, Seconds, Stage, StageError, until};

use self::fault::Fault;
use self::news::News;
use crate::packages;
use crate::steps::{TaskError, build_release};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also start a PostgreSQL and an application that leaks sessions, and show how that is found, told and resolved.
    #[arg(long)]
    with_fault: bool,
    /// A file that holds the DSN of a PostgreSQL server of yours: its sessions are joined with the sockets here.
    #[arg(long, value_name = "FILE")]
    postgres: Option<PathBuf>,
    /// End after so many minutes instead of at Ctrl-C; 0 ends as soon as the fault was told and resolved.
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
}

pub(crate) fn up(arguments: &Arguments) -> Result<(), TaskError> {
    if arguments.with_fault {
        packages::install_missing()?;
    }
    println!("building the agent and the collector (some minutes the first time)");
    let binaries = build_release()?;
    let ended = Ended::listen()?;

    let scratch = tempfile::Builder::new()
        .prefix("tickbird-up-")
        .tempdir()
        .map_err(StageError::system("make a scratch directory"))?;
    let stage = Stage::with_binaries(scratch.path(), binaries)?;
    let mut fault = if arguments.with_fault { Some(Fault::prepare(&stage)?) } else { None };

    let mut collector = Collector::init(&stage)?;
    let mut configuration = String::new();
    if let Some(fault) = &fault {
        collector.configure(&fault.receiver())?;
        configuration.push_str(&fault.configuration()?);
    }
    if let Some(file) = &arguments.postgres {
        configuration.push_str(&postgres(file));
    }
    collector.serve()?;
    let mut agent = Agent::running(&stage, &collector, &configuration)?;
    introduce(&collector, &agent)?;

    let mut news = News::default();
    let told = match &mut fault {
        Some(fault) => fault.tell(&collector, &mut news, &ended),
        None => Ok(()),
    };
    if told.is_ok() && arguments.minutes != Some(0) {
        println!("\nwatching this host; Ctrl-C ends it\n");
        watch(&collector, &mut news, &ended, arguments.minutes)?;
    }
    println!("\nending the agent and the collector");
    agent.stop()?;
    println!("the agent said goodbye: the collector lists it as {}", presence_after_goodbye(&collector)?);
    collector.stop()?;
    told
}

/// Where things are, and how to ask for more.
fn introduce(collector: &Collector, agent: &Agent) -> Result<(), TaskError> {
    let token = collector.directory().join("admin.token");
    let failed = || StageError::system("write the API token");
    std::fs::write(&token, collector.admin_token()).map_err(failed())?;
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).map_err(failed())?;
    let (directory, address) = (collector.directory().display(), collector.people());
    println!("\nThe collector answers at https://{address}, with its own authority {directory}/ca.pem.");
    println!("The API token stands in {}.", token.display());
    println!("\nAsk it yourself, while this runs:");
    println!(
        "  curl --cacert {directory}/ca.pem -H \"Authorization: Bearer $(cat {})\" https://{address}/v1/incidents",
        token.display()
    );
    println!("  {} status --config {}", agent.binary().display(), agent.configuration().display());
    Ok(())
}

/// Shows what comes, until Ctrl-C or the time is over.
fn watch(collector: &Collector, news: &mut News, ended: &Ended, minutes: Option<u64>) -> Result<(), TaskError> {
    // A day is longer than anybody looks; the next one asks again.
    let day = Duration::from_secs(86_400);
    let time = minutes.map_or(day, |it| Duration::from_secs(it * 60));
    let outcome = until("Ctrl-C", time, || {
        news.show(collector).map_err(|error| error.to_string())?;
        if ended.yet() { Ok(()) } else { Err("still watching".to_owned()) }
    });
    match outcome {
        Ok(()) | Err(StageError::NotInTime { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn presence_after_goodbye(collector: &Collector) -> Result<String, TaskError> {
    let presence = until("the agent is no longer live", 5.s(), || {
        let agents = collector.items("agents", "").map_err(|error| error.to_string())?;
        let presence = agents.first().and_then(|it| it["presence"].as_str()).unwrap_or("unknown").to_owned();
        if presence == "live" { Err(presence) } else { Ok(presence) }
    })?;
    Ok(presence)
}

/// Whether somebody asked us to end.
struct Ended(Arc<AtomicBool>);

impl Ended {
    /// Hears Ctrl-C and SIGTERM from now on. The children are in process groups of their own, so that we end them.
    fn listen() -> Result<Self, TaskError> {
        let flag = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(StageError::system("listen for signals"))?;
        let shared = flag.clone();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let terminate = async {
                    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                        Ok(mut signals) => signals.recv().await,
                        Err(_) => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => (),
                    _ = terminate => (),
                }
            });
            shared.store(true, Ordering::Relaxed);
        });
        Ok(Self(flag))
    }

    fn yet(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
