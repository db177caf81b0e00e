//! `tickbird-collector`: arguments and exit code; nothing else.

use std::process::ExitCode;

use clap::Parser;
use tickbird_collector::cli::{self, Arguments};

fn main() -> ExitCode {
    cli::run(Arguments::parse())
}
