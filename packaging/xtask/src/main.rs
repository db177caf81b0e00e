//! The project's own commands: `cargo xtask up | test | lint | bench | fleet | soak | fuzz`.

mod arrows;
mod bench;
mod fleet;
mod fuzz;
mod lint;
mod packages;
mod soak;
mod steps;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch this host: build, make a collector, enrol and run an agent, and show what they find until Ctrl-C.
    Up(up::Arguments),
    /// Everything, from nothing: packages, formatting, clippy, docs, unit and end-to-end tests.
    Test(test::Arguments),
    /// Formatting, clippy, docs and the arrows between modules.
    Lint,
    /// Figures of the release binaries on this machine: CPU, memory, records a second, seconds to the webhook.
    Bench(bench::Arguments),
    /// Simulated agents that speak to a collector of their own: connected, handshakes, acknowledgements, refusals.
    Fleet(fleet::Arguments),
    /// An hour, or so many minutes, of healthy traffic over stacks of four languages, in which nothing may be found; then the
    /// long forms of the tests that kill, cut and crowd.
    Soak(soak::Arguments),
    /// Every parser of foreign bytes under libFuzzer, ten minutes each: nothing may panic, hang or grow without bound.
    Fuzz(fuzz::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Up(arguments) => up::up(&arguments),
        Command::Test(arguments) => test::test(&arguments),
        Command::Lint => lint::lint(),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Fleet(arguments) => fleet::fleet(&arguments),
        Command::Soak(arguments) => soak::soak(&arguments),
        Command::Fuzz(arguments) => fuzz::fuzz(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error}");
            ExitCode::FAILURE
        }
    }
}
