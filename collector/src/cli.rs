//! The command line, by noun. Exit codes: 0 done, 1 failed, 2 not understood.

mod ack;
mod agent;
mod backup;
mod dependency;
mod explain;
mod init;
mod receiver;
mod route;
mod serve;
mod silence;
mod table;
mod token;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tickbird_shared::Timestamp;
use tickbird_shared::labels::LabelError;

use crate::alert::{AcknowledgementError, SilenceError};
use crate::backup::BackupError;
use crate::collector::{CollectorError, Directory};
use crate::config::{Config, Mistakes};
use crate::notify::NotifyError;
use crate::pki::PkiError;
use crate::store::{MAX_SILENCES, StoreError, Writer};

/// Takes findings from many agents, turns them into incidents and tells people, once, with the evidence.
///
/// A collector lives in one directory: its configuration, certificate authority, server certificate and store. `init`
/// makes it, `serve` runs it, the other commands change it, whether it runs or not.
#[derive(Debug, Parser)]
#[command(name = "tickbird-collector", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Serve(serve::Serve),
    Backup(backup::Backup),
    Restore(backup::Restore),
    CheckConfig(serve::CheckConfig),
    /// Makes, lists and revokes tokens.
    #[command(subcommand)]
    Token(token::Token),
    /// Lists, denies and forgets agents.
    #[command(subcommand)]
    Agent(agent::Agent),
    /// Silences what matches for a while, and lists and ends silences.
    #[command(subcommand)]
    Silence(silence::Silence),
    Ack(ack::Acknowledge),
    #[command(subcommand)]
    Dependency(dependency::Dependency),
    Explain(explain::Explain),
    /// Lists and tests receivers, and sends again what was given up.
    #[command(subcommand)]
    Receiver(receiver::Receiver),
    /// Shows the routes, and tells where an incident of some labels would go.
    #[command(subcommand)]
    Route(route::Route),
}

/// Which collector.
#[derive(Debug, Args)]
struct Where {
    /// The collector's directory, as made by `init`.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/tickbird-collector")]
    dir: PathBuf,
    /// Prints one JSON document instead of text for people.
    #[arg(long)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] Mistakes),
    /// A certificate or key.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The serving collector.
    #[error(transparent)]
    Collector(#[from] CollectorError),
    /// The runtime or its signals.
    #[error("the system gives no threads or signals")]
    Runtime(#[source] io::Error),
    /// A label on the command line.
    #[error("--label {given}: {source}")]
    Label { given: String, source: LabelError },
    /// Nothing of that name.
    #[error("there is no {kind} `{id}`")]
    Unknown { kind: &'static str, id: String },
    /// An incident that cannot be acknowledged, or is not.
    #[error(transparent)]
    Acknowledgement(#[from] AcknowledgementError),
    /// A silence that would not do.
    #[error("such a silence cannot be: {0}")]
    Silence(#[from] SilenceError),
    /// The configuration tells others than whom it should.
    #[error("{failed} of {all} tests failed")]
    TestsFailed { failed: usize, all: usize },
    /// No room for another one.
    #[error("there are {MAX_SILENCES} silences that have not ended, and may not be more")]
    TooManySilences,
    /// A receiver did not take a test.
    #[error("the receiver did not take it")]
    Notify(#[from] NotifyError),
    /// A message that was not given up.
    #[error("the message `{id}` is {state}, and only one that was given up is sent again")]
    NotDead { id: String, state: &'static str },
    /// A message after which another one was sent.
    #[error("the message `{id}` was followed by `{by}` about the same incident")]
    Followed { id: String, by: String },
    /// A message that says what is true no more.
    #[error("what the message `{id}` says is true no more{}", by.as_ref().map(|it| format!(", as `{it}` tells")).unwrap_or_default())]
    Outdated { id: String, by: Option<String> },
    /// Nobody is known to be logged in.
    #[error("nobody says who asks for it")]
    Nobody,
    /// Something of that name is there.
    #[error("there is an API token `{0}` already")]
    Taken(String),
    /// The answer could not be printed.
    #[error("cannot write the answer")]
    Output(#[source] io::Error),
}

impl CliError {
    const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Pki(error) => error.advice(),
            Self::Store(error) => error.advice(),
            Self::Backup(error) => error.advice(),
            Self::Collector(error) => error.advice(),
            Self::Unknown { .. } => Some("see what there is with `list`"),
            Self::Acknowledgement(error) => error.advice(),
            Self::Silence(error) => Some(error.advice()),
            Self::TooManySilences => Some("end some with `silence end`; one matcher like team=~\"a|b\" is about many"),
            Self::NotDead { .. } => Some("see what was given up with `receiver dead`"),
            Self::Followed { .. } => Some("the receiver would believe what is over; see `explain` of its incident"),
            Self::Outdated { by: Some(_), .. } => Some("it was given up as well: send that one again"),
            Self::Outdated { by: None, .. } => Some("see `explain` of its incident"),
            Self::Nobody => Some("give a name with --author, or --by"),
            Self::Taken(_) => Some("choose another name"),
            Self::Label { .. } => Some("write it like --label env=production"),
            Self::Notify(_) | Self::Config(_) | Self::Runtime(_) | Self::Output(_) | Self::TestsFailed { .. } => None,
        }
    }
}

/// Does what was asked.
pub fn run(arguments: Arguments) -> ExitCode {
    let done = match arguments.command {
        Command::Init(it) => it.run(),
        Command::Serve(it) => it.run(),
        Command::CheckConfig(it) => it.run(),
        Command::Backup(it) => it.run(),
        Command::Restore(it) => it.run(),
        Command::Token(it) => it.run(),
        Command::Agent(it) => it.run(),
        Command::Route(it) => it.run(),
        Command::Silence(it) => it.run(),
        Command::Ack(it) => it.run(),
        Command::Dependency(it) => it.run(),
        Command::Explain(it) => it.run(),
        Command::Receiver(it) => it.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the answer has seen enough of it.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            say(&told(&error));
            ExitCode::FAILURE
        }
    }
}

/// Writes `text` to standard error. Where that is closed or full there is nobody to tell.
fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The error with its causes and what to do.
fn told(error: &CliError) -> String {
    let mut text = format!("tickbird-collector: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text.push('\n');
    if let Some(advice) = error.advice() {
        text.push_str(&format!("  advice: {advice}\n"));
    }
    text
}

/// The one place that reads the wall clock.
fn now() -> Timestamp {
    Timestamp::now()
}

impl Where {
    fn directory(&self) -> Directory {
        Directory::new(&self.dir)
    }

    /// The store, to be changed for a moment beside a collector that may serve.
    fn writer(&self) -> Result<Writer, CliError> {
        Ok(Writer::open_beside(&self.directory().store())?)
    }

    /// Prints `json`, or `text` for people.
    fn print(&self, json: &serde_json::Value, text: impl FnOnce() -> String) -> Result<(), CliError> {
        let mut answer = if self.json { json.to_string() } else { text() };
        if !answer.ends_with('\n') {
            answer.push('\n');
        }
        let mut out = io::stdout().lock();
        out.write_all(answer.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
    }
}

fn read_config(path: &std::path::Path) -> Result<Config, CliError> {
    Ok(Config::read(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_error_is_told_with_its_cause_and_what_to_do() {
        let source = io::Error::new(io::ErrorKind::PermissionDenied, "permission denied");
        let error = CliError::Pki(PkiError::Read { path: "/x/ca.key".into(), source });
        let text = told(&error);
        assert!(text.starts_with("tickbird-collector: cannot read `/x/ca.key`: permission denied\n"), "{text}");
        assert!(text.contains("  advice: run as the collector's user"), "{text}");
    }
}
