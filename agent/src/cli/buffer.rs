//! `tickbird-agent buffer`: what waits for the collector, read without the agent and without changing anything.

use std::io::Write;

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use tickbird_shared::Lane;

use super::{Failure, Json, print_json};
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
            if json {
                print_json(&stat.to_json())
            } else {
                println!("{stat}")
            }
            Ok(0)
        }
        Command::Peek { lane, limit, json: Json { json } } => {
            let lane = match lane {
                Which::Urgent => Lane::Urgent,
                Which::Bulk => Lane::Bulk,
            };
            let found = examine::peek(directory, lane, limit).map_err(failed)?;
            if json {
                print_json(&json!({ "records": found.iter().map(|it| it.to_json(lane)).collect::<Vec<_>>() }));
            } else {
                found.iter().for_each(|it| println!("{}", it.to_json(lane)));
            }
            Ok(0)
        }
        Command::Verify(Json { json }) => {
            let verified = examine::verify(directory).map_err(failed)?;
            if json {
                print_json(&verified.to_json())
            } else {
                print!("{verified}")
            }
            Ok(if verified.is_good() { 0 } else { 1 })
        }
        Command::Export => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            let written = examine::export(directory, &mut out).map_err(failed)?;
            out.flush().map_err(|error| Failure(format!("cannot write: {error}")))?;
            eprintln!("{written} records");
            Ok(0)
        }
    }
}
