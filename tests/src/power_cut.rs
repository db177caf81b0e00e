//! A power cut at any moment of a process's life, as far as it can be tried: its writes are replayed into copies that hold
//! what was synced by then and nothing else, and copies that hold every prefix of what was written.

use std::path::Path;
use std::process::Command;

pub mod files;
pub mod trace;

pub use files::Files;
pub use trace::What;

/// Set in the process that is traced: where it works.
pub const INSIDE: &str = "TICKBIRD_POWER_CUT";

/// Runs the test `name` of this very binary once more, with [`INSIDE`] set to `work`, and gives what it did to its files.
///
/// # Panics
/// When strace is not installed, or the test fails there.
pub fn traced(name: &str, work: &Path, log: &Path) -> Vec<trace::Done> {
    let outcome = Command::new("strace")
        .args(["-f", "-y", "-xx", "-s", "1048576", "-e", "signal=none", "-e", &format!("trace={}", trace::CALLS), "-o"])
        .arg(log)
        .arg(std::env::current_exe().expect("this test's binary"))
        .args(["--exact", name])
        .env(INSIDE, work)
        .output()
        .expect("strace is installed (`apt-get install strace`)");
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
    trace::read(&std::fs::read_to_string(log).expect("traced"))
}
