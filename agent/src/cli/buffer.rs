//! `tickbird-agent buffer`: what waits for the collector, read without the agent and without changing anything.

use std::io::Write;

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use tickbird_shared::Lane;

use super::{Failure, Json, put, put_json, say, written};
use crate::buffer::examine;
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print how much waits, and what became of everything before.
    Stat(Json),
    /// Print the oldest records of a lane.
    Peek {
        /// Which of the two queues.
        #[arg(value_enum, default_value = "urgent")]
        lane: Which,
        /// How many records.
        #[arg(long, default_value_t = 10, value_name = "N")]
        limit: usize,
        #[command(flatten)]
        json: Json,
    },
    /// Read every record and check its frame; exits 1 when something cannot be read.
    Verify(Json),
    /// Write every record that waits to standard output, one JSON object a line.
    Export,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Which {
    /// Findings, open lists and losses.
    Urgent,
    /// Summaries and inventory.
    Bulk,
}

pub(super) async fn buffer(config: &Config, command: Command) -> Result<u8, Failure> {
    let directory = config.buffer.directory().to_owned();
    // Copying and reading generations blocks, and nothing else runs in this process.
    let outcome = tokio::task::spawn_blocking(move || answer(&directory, command)).await;
    outcome.map_err(|error| Failure(format!("the buffer could not be read: {error}")))?
}

fn answer(directory: &std::path::Path, command: Command) -> Result<u8, Failure> {
    let failed = |error: crate::buffer::BufferError| Failure::of(&error, error.advice());
    match command {
        Command::Stat(Json { json }) => {
            let stat = examine::stat(directory).map_err(failed)?;
            if json { put_json(0, &stat.to_json()) } else { put(0, format_args!("{stat}\n")) }
        }
        Command::Peek { lane, limit, json: Json { json } } => {
            let lane = match lane {
                Which::Urgent => Lane::Urgent,
                Which::Bulk => Lane::Bulk,
            };
            let found = examine::peek(directory, lane, limit).map_err(failed)?;
            if json {
                return put_json(0, &json!({ "records": found.iter().map(|it| it.to_json(lane)).collect::<Vec<_>>() }));
            }
            put(0, found.iter().map(|it| format!("{}\n", it.to_json(lane))).collect::<String>())
        }
        Command::Verify(Json { json }) => {
            let verified = examine::verify(directory).map_err(failed)?;
            let code = if verified.is_good() { 0 } else { 1 };
            if json { put_json(code, &verified.to_json()) } else { put(code, verified) }
        }
        Command::Export => {
            let mut out = Outlet { out: std::io::BufWriter::new(std::io::stdout().lock()), error: None };
            let lines = examine::export(directory, &mut out);
            let flushed = out.flush();
            if let Some(error) = out.error {
                return written(0, Err(error));
            }
            flushed.map_err(|error| Failure(format!("cannot write the answer: {error}")))?;
            say(&format!("{} records", lines.map_err(failed)?));
            Ok(0)
        }
    }
}

/// Remembers why standard output failed: to the reader of the buffer it is one error among others.
struct Outlet<W> {
    out: W,
    error: Option<std::io::Error>,
}

impl<W: Write> Outlet<W> {
    fn noting<T>(&mut self, outcome: std::io::Result<T>) -> std::io::Result<T> {
        if let Err(error) = &outcome {
            self.error = Some(error.kind().into());
        }
        outcome
    }
}

impl<W: Write> Write for Outlet<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let outcome = self.out.write(bytes);
        self.noting(outcome)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let outcome = self.out.flush();
        self.noting(outcome)
    }
}
