//! `backup` and `restore`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{CliError, Where, now};
use crate::backup::{self, Done};

/// Makes a backup of a collector, whether it serves or not, and verifies it.
///
/// The backup is a new directory: the store as it was at one moment, the authority's and the server's keys, the
/// configuration and the other files of the collector's directory, each with its digest. Whoever has it can speak for the
/// collector: keep it where only the collector's user may read. While the store is copied its log grows by what is written. Files that the configuration names elsewhere are not in it.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The directory to make.
    #[arg(value_name = "BACKUP")]
    to: PathBuf,
    #[command(flatten)]
    at: Where,
}

/// Makes a collector anew from a backup.
///
/// Every file is compared with its digest and the store is read whole before the directory gets its name; an existing
/// collector is never overwritten. Agents go on without being enrolled again, say as lost what only the old store had, and
/// say once more what still fires. What was done after the backup is undone: agents enrolled since have to be enrolled
/// again, denials, revocations and changed settings be made again; a token that was used since can be used again.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The directory that `backup` made.
    #[arg(value_name = "BACKUP")]
    from: PathBuf,
    #[command(flatten)]
    at: Where,
}

impl Backup {
    pub(super) fn run(self) -> Result<(), CliError> {
        let mut last = 0;
        let is_seen = io::stderr().is_terminal();
        let done = backup::make(&self.at.directory(), &self.to, now(), |share| {
            let percent = (100.0 * share) as u32;
            if is_seen && percent > last {
                last = percent;
                // Who closed it does not want to know.
                let _ = write!(io::stderr(), "\r{percent} % of the store copied");
            }
        });
        if last > 0 {
            let _ = writeln!(io::stderr());
        }
        let done = done?;
        let to = self.to.display().to_string();
        self.at.print(&json(&to, &done), || {
            let left_out = match done.left_out.as_slice() {
                [] => String::new(),
                names => format!("Not in it, as they are no files: {}\n", names.join(", ")),
            };
            format!("A backup is in {to}, read back and whole.\n\n{}{left_out}", listed(&done))
        })
    }
}

impl Restore {
    pub(super) fn run(self) -> Result<(), CliError> {
        let directory = self.at.directory();
        let done = backup::restore(&self.from, &directory)?;
        let to = directory.path().display().to_string();
        self.at.print(&json(&to, &done), || {
            format!(
                "The collector of {} is in {to}.\n\n{}\nNext: tickbird-collector serve --dir {to}\n",
                done.manifest.made_at,
                listed(&done)
            )
        })
    }
}

fn listed(done: &Done) -> String {
    let it = &done.contents;
    format!(
        "\u{20} made at     {}\n\
         \u{20} by version  {}, schema {}\n\
         \u{20} agents      {}\n\
         \u{20} incidents   {}\n\
         \u{20} findings    {}\n\
         \u{20} files       {}, {} bytes\n",
        done.manifest.made_at,
        done.manifest.version,
        it.schema,
        it.agents,
        it.incidents,
        it.findings,
        done.manifest.files.len(),
        done.bytes()
    )
}

fn json(to: &str, done: &Done) -> serde_json::Value {
    let it = &done.contents;
    json!({
        "dir": to,
        "made_at": done.manifest.made_at,
        "version": done.manifest.version,
        "schema": it.schema,
        "agents": it.agents,
        "incidents": it.incidents,
        "findings": it.findings,
        "bytes": done.bytes(),
        "files": done.manifest.files.iter().map(|it| &it.name).collect::<Vec<_>>(),
        "left_out": done.left_out,
    })
}
