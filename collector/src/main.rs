//! `tickbird-collector`: arguments, exit code and allocator; nothing else.

use std::process::ExitCode;

use clap::Parser;
use tickbird_collector::cli::{self, Arguments};
use tikv_jemallocator::Jemalloc;

/// Thousands of connections and incidents that live long beside messages that do not: it leaves less room between them.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    cli::run(Arguments::parse())
}
