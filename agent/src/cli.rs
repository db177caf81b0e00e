//! The command line: one function for each command, which gives the exit code.
//!
//! `status`, `inspect` and `doctor` exit by the convention of monitoring plugins (0 ok, 1 warning, 2 critical, 3 not
//! known: blind and nothing else, or the command itself failed); every other command exits 0, 1 on failure, 2 on wrong
//! usage.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{self, Config};

mod buffer;
mod defaults;
mod doctor;
mod enroll;
mod inspect;
mod run;
mod screen;

const EXIT_CODES: &str = "\
Exit codes:
  status, inspect, doctor  0 ok, 1 warning, 2 critical, 3 not known: blind only, a failure or wrong usage
  every other command      0 done, 1 failure, 2 wrong usage";

/// Looks at an application's connection pools, processes and endpoints from beside it, without touching it.
///
/// With no configuration at all, `tickbird-agent inspect` takes two looks at this host a second apart and prints the
/// pools, processes and listening ports it found, with verdicts and the proof. `tickbird-agent run` keeps looking, and
/// ships what it finds to a collector once the agent is enrolled.
#[derive(Debug, Parser)]
#[command(name = "tickbird-agent", version, propagate_version = true, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Configuration file. Fragments beside it are read too: of agent.toml those in agent.d/*.toml.
    ///
    /// Without it /etc/tickbird/agent.toml is read if it is there; else the agent runs with defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the buffer, the identity and the local socket; wins over the configuration.
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch this host until SIGTERM or Ctrl-C; SIGHUP reads the configuration again.
    ///
    /// Findings go to the log (standard error) and, when the agent is enrolled, through the buffer to the collector.
    /// SIGTERM drains the buffer for a few seconds and says goodbye, so that the collector knows it was on purpose.
    Run,
    /// Ask the running agent what is open now.
    ///
    /// Exits 0 when nothing is, 1 on a warning, 2 on a critical finding, 3 when some check is blind and nothing else, and
    /// when the agent cannot be asked.
    Status(Show),
    /// Take one look (two, a second apart) at this host and print what was found, with verdicts and the proof.
    ///
    /// Needs no running agent and no configuration. Exits like `status`.
    Inspect {
        #[command(flatten)]
        show: Show,
        /// Look again each second until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Read the configuration and print every mistake in it.
    CheckConfig,
    /// Say what each check needs, whether it has it, run it once, and tell how to mend it. Exits like `status`.
    Doctor(Json),
    /// Give this agent an identity at a collector, with an enrolment token.
    ///
    /// The token is read from a file or standard input, never from the command line, where every user could read it.
    Enroll(enroll::Options),
    /// Print every check with its thresholds, holds and reasons, as they stand with this configuration.
    Defaults(Json),
    /// Print every source of facts: what is read, what it needs and what it costs.
    Inspectors(Json),
    /// Look into the buffer of findings that wait for the collector.
    #[command(subcommand)]
    Buffer(buffer::Command),
}

#[derive(Debug, Clone, Copy, Args)]
struct Json {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, Args)]
struct Show {
    #[command(flatten)]
    json: Json,
    /// List every check on every target too.
    #[arg(long)]
    checks: bool,
    /// List every connection of every pool too: its verdict, descriptor, session, state, age, and the rule behind it.
    #[arg(long)]
    sessions: bool,
    /// Print every fact, join and rule that led to what is said of this process.
    #[arg(long, value_name = "PID")]
    why: Option<u32>,
}

/// Why a command failed: one text, already free of secrets, with advice behind it where there is some.
#[derive(Debug)]
pub struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.trim_end())
    }
}

impl Failure {
    /// The error with its causes, and what to do about it.
    fn of(error: &(dyn std::error::Error + 'static), advice: Option<&str>) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        if let Some(advice) = advice {
            text.push_str(&format!("\n  advice: {advice}"));
        }
        Self(text)
    }
}

impl From<config::Mistakes> for Failure {
    fn from(mistakes: config::Mistakes) -> Self {
        Self(mistakes.to_string())
    }
}

/// Runs one command.
///
/// # Errors
/// With a text for the operator when it could not do its work.
pub async fn run(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { command, config, state_dir } = arguments;
    let place = config::Place { file: config, state_dir };
    match command {
        Command::Run => run::run(&place).await,
        Command::Status(show) => inspect::status(&Config::load(&place)?, show).await,
        Command::Inspect { show, watch } => inspect::inspect(Config::load(&place)?, show, watch).await,
        Command::CheckConfig => {
            let config = Config::load(&place)?;
            for it in &config.warnings {
                say(&format!("warning: {}\n  advice: {}", it.what, it.advice));
            }
            put(0, format_args!("{}\n", config.describe()))
        }
        Command::Doctor(Json { json }) => doctor::doctor(Config::load(&place)?, json).await,
        Command::Enroll(options) => enroll::enroll(&place, options).await,
        Command::Defaults(Json { json }) => defaults::defaults(&Config::load(&place)?, json),
        Command::Inspectors(Json { json }) => defaults::inspectors(json),
        Command::Buffer(command) => buffer::buffer(&Config::load(&place)?, command).await,
    }
}

impl Arguments {
    /// The exit code when the command cannot do its work: 3 where 1 and 2 are verdicts.
    pub const fn code_of_failure(&self) -> u8 {
        match self.command {
            Command::Status(_) | Command::Inspect { .. } | Command::Doctor(_) => UNKNOWN,
            _ => 1,
        }
    }
}

/// What a monitoring system takes for "nothing can be said".
const UNKNOWN: u8 = 3;

/// Prints what is wrong with the arguments, or the help that was asked for; gives the exit code.
pub fn usage(error: &clap::Error) -> u8 {
    let printed = error.print();
    if error.use_stderr() {
        return code_of_usage(std::env::args_os());
    }
    written(0, printed).unwrap_or_else(|failure| {
        tell(&failure);
        1
    })
}

/// The exit code for arguments that were not understood, by the command that they name.
fn code_of_usage(words: impl Iterator<Item = std::ffi::OsString>) -> u8 {
    let understood = Arguments::command().ignore_errors(true).try_get_matches_from(words);
    let is_verdict = |name: &str| matches!(name, "status" | "inspect" | "doctor");
    if understood.is_ok_and(|it| it.subcommand_name().is_some_and(is_verdict)) { UNKNOWN } else { 2 }
}

/// Gives up what only the reader needs, before anything is heard from a network.
fn separate(config: &Config) -> Result<crate::agent::Separation, Failure> {
    crate::agent::Separation::begin(config).map_err(|error| Failure(format!("cannot separate rights: {error}")))
}

/// Writes why the agent failed to standard error.
pub fn tell(failure: &dyn std::fmt::Display) {
    say(&format!("tickbird-agent: {failure}"));
}

/// Writes a line to standard error. Where that is closed or full there is nobody to tell.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes the answer of a command that ends with `code`. A reader who has seen enough is no failure.
fn put(code: u8, answer: impl std::fmt::Display) -> Result<u8, Failure> {
    let mut out = std::io::stdout().lock();
    written(code, write!(out, "{answer}").and_then(|()| out.flush()))
}

fn written(code: u8, outcome: std::io::Result<()>) -> Result<u8, Failure> {
    match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure(format!("cannot write the answer: {error}")))
        }
        _ => Ok(code),
    }
}

/// One value as JSON on standard output.
fn put_json(code: u8, value: &serde_json::Value) -> Result<u8, Failure> {
    put(code, format_args!("{value:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<u8, u8> {
        let words: Vec<_> = line.split(' ').map(std::ffi::OsString::from).collect();
        Arguments::try_parse_from(&words).map(|it| it.code_of_failure()).map_err(|_| code_of_usage(words.into_iter()))
    }

    #[test]
    fn a_failure_never_looks_like_a_verdict_and_a_value_is_no_command() {
        Arguments::command().debug_assert();
        for command in ["status", "inspect", "doctor"] {
            assert_eq!(read(&format!("agent --config x {command}")), Ok(3));
            for wrong in ["--nonsense", "nonsense", "--config"] {
                assert_eq!(read(&format!("agent {command} {wrong}")), Err(3), "{command} {wrong}");
            }
        }
        for wrong in ["check-config --nonsense", "nonsense", "--config status run --nonsense", "buffer nonsense"] {
            assert_eq!(read(&format!("agent {wrong}")), Err(2), "{wrong}");
        }
    }
}
