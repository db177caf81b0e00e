//! `tickbird-agent`: arguments, signals, exit code; nothing else.

use std::process::ExitCode;

use clap::Parser;
use tickbird_agent::cli;

fn main() -> ExitCode {
    // One provider for every TLS connection; a second one in the process would be a build mistake.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        cli::tell(&"a TLS provider was already installed");
        return ExitCode::FAILURE;
    }
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return ExitCode::from(cli::usage(&error)),
    };
    let on_failure = arguments.code_of_failure();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::tell(&format!("cannot start: {error}"));
            return ExitCode::from(on_failure);
        }
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            cli::tell(&failure);
            ExitCode::from(on_failure)
        }
    }
}
