//! `cargo xtask lint`: what can be said of the code without running it.

use tickbird_tests::stage::workspace;

use crate::arrows;
use crate::steps::{Steps, TaskError, cargo};

pub(crate) fn lint() -> Result<(), TaskError> {
    let mut steps = Steps::default();
    run(&mut steps);
    steps.finish()
}

/// The steps of lint, as a part of another command.
pub(crate) fn run(steps: &mut Steps) {
    steps.run("formatting", || cargo(&["fmt", "--all", "--check"], &[]));
    steps.run("arrows between modules", || {
        let broken = arrows::broken(workspace())?;
        for it in &broken {
            println!("{it}");
        }
        if broken.is_empty() { Ok(()) } else { Err(TaskError::Steps(vec![format!("{} broken arrows", broken.len())])) }
    });
    steps.run("clippy", || {
        cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"], &[])
    });
    // `--all-targets` leaves out what `cargo test` shall not run.
    steps.run("clippy of the long tests", || {
        cargo(&["clippy", "--package", "tickbird-tests", "--test", "*", "--locked", "--", "--deny", "warnings"], &[])
    });
    steps.run("docs", || {
        cargo(&["doc", "--workspace", "--no-deps", "--locked"], &[("RUSTDOCFLAGS", "--deny warnings")])
    });
}
