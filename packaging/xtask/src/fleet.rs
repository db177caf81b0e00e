//! `cargo xtask fleet`: simulated agents against a collector of their own, in a scratch directory.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tickbird_tests::{Collector, Stage, StageError};

use crate::steps::{TaskError, build_release, cargo};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many agents.
    #[arg(default_value_t = 1000, value_name = "N")]
    agents: u32,
    /// The simulator's own: `cargo xtask fleet 1000 -- --storm 20 --seconds 60`; `-- --help` tells all of them.
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

pub(crate) fn fleet(arguments: &Arguments) -> Result<(), TaskError> {
    let binaries = build_release()?;
    // By itself, so that what it needs of a crate that it shares with the others is not built into them.
    cargo(&["build", "--release", "-p", "tickbird-fleet"], &[])?;
    let scratch = tempfile::Builder::new().prefix("tickbird-fleet-").tempdir();
    let scratch = scratch.map_err(StageError::system("make a scratch directory"))?;
    let stage = Stage::with_binaries(scratch.path(), binaries)?;
    let mut command = Command::new(stage.binary("tickbird-fleet")?);
    command.arg(arguments.agents.to_string()).arg("--identities").arg(scratch.path().join("identities.jsonl"));
    let mut collector = Collector::init(&stage)?;
    if !arguments.options.iter().any(|it| it == "--help" || it == "-h") {
        collector.serve()?;
        let token = scratch.path().join("token");
        let made = collector.command(&["token", "create", "--json", "--uses", &arguments.agents.to_string()])?;
        let wrong = || StageError::Malformed { what: "token create --json".into(), found: "no token".into() };
        let made: serde_json::Value = serde_json::from_str(&made).map_err(|_| wrong())?;
        let failed = || StageError::system("write the token");
        std::fs::write(&token, made["token"].as_str().ok_or_else(wrong)?).map_err(failed())?;
        std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).map_err(failed())?;
        command.arg("--token-file").arg(token).arg("--collector").arg(format!("https://{}", collector.people()));
    }
    let status = command.args(&arguments.options).status().map_err(StageError::system("run tickbird-fleet"))?;
    if status.success() { Ok(()) } else { Err(TaskError::Steps(vec!["tickbird-fleet".into()])) }
}
