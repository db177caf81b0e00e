//! Runs a scenario in namespaces of its own.
//!
//! The agent watches the whole host. Two scenarios on one host would see one another's faults, and "not one finding"
//! could be said of neither. So each scenario runs as a process of its own in a new network, mount and PID namespace:
//! the loopback interface, the processes and the ports there are its own, and all of them end with it.

use std::any::type_name;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{Running, installed, last_lines};
use crate::report::append;
use crate::stage::{Stage, StageError};

/// Set in the child: the directory of its stage.
const INSIDE: &str = "TICKBIRD_STAGE";
/// Names the file that takes a line for each scenario that failed once and passed twice after it.
pub const UNSTEADY: &str = "TICKBIRD_UNSTEADY";
/// One more pass says little of a fault that shows every other time; two say that it is rare.
const PASSES: usize = 2;
/// Few scenarios take longer; one that does hangs.
const LONGEST: Duration = Duration::from_secs(360);

/// Runs `scenario`, which must be a closure within the test function of its name.
///
/// # Panics
/// When the scenario fails: with all it printed, and the directory that holds the logs of everything it started.
pub fn alone<S>(scenario: S)
where
    S: FnOnce(&Stage) -> Result<(), StageError>,
{
    alone_within(LONGEST, scenario);
}

/// The same for a scenario that takes longer than others.
///
/// # Panics
/// As [`alone()`].
pub fn alone_within<S>(longest: Duration, scenario: S)
where
    S: FnOnce(&Stage) -> Result<(), StageError>,
{
    match inside() {
        Some(directory) => {
            let stage = Stage::at(&directory).expect("the parent has made the directory");
            if let Err(error) = scenario(&stage) {
                panic!("{error}");
            }
        }
        None => send_off(test_name::<S>(), longest),
    }
}

/// `it::leak::a_leak_is_named::{{closure}}` is the test `leak::a_leak_is_named` of the binary `it`.
fn test_name<S>() -> &'static str {
    let name = type_name::<S>();
    let name = name.strip_suffix("::{{closure}}").unwrap_or(name);
    name.split_once("::").map_or(name, |(_, test)| test)
}

fn send_off(test: &str, longest: Duration) {
    let told = std::env::var_os(UNSTEADY).map(PathBuf::from);
    let outcome = steadily(told.as_deref(), test, || {
        let directory = tempfile::Builder::new().prefix("tickbird-").tempdir().expect("there is a temporary directory");
        in_namespaces(test, &directory, longest).map_err(|error| {
            let directory = directory.keep();
            println!("{error}\n{}", last_words_of_all(&directory));
            format!("the scenario failed; the whole logs are in {}", directory.display())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// Where somebody counts what is unsteady, a scenario that failed once and then passes twice is told there and goes on; else
/// it has failed.
fn steadily(told: Option<&Path>, test: &str, mut run: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let Err(first) = run() else { return Ok(()) };
    let Some(told) = told else { return Err(first) };
    for _ in 0..PASSES {
        run().map_err(|again| format!("{first}; {again}"))?;
    }
    let line = format!("{test}: {first}");
    append(told, &line).map_err(|error| format!("{first}; {error}"))
}

/// The end of the log of everything that was started, in the order of appearance.
fn last_words_of_all(directory: &Path) -> String {
    let mut rooms: Vec<_> = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|it| it.path()).collect();
    rooms.sort();
    let logs = rooms.iter().map(|room| room.join("log")).filter(|log| log.exists());
    logs.map(|log| format!("---- {}\n{}\n", log.display(), last_lines(&log, 15))).collect()
}

fn in_namespaces(test: &str, directory: &tempfile::TempDir, longest: Duration) -> Result<(), StageError> {
    let log = directory.path().join("scenario.log");
    let out =
        File::options().create(true).append(true).open(&log).map_err(StageError::system("write the scenario's log"))?;
    let mut command = once_more(directory.path())?;
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("RUST_BACKTRACE", "0") // a backtrace of the stage buries what the scenario says
        .stdout(out);
    let mut child = Running::start(test, &mut command, &log)?;
    let status = child.ends(longest).inspect_err(|_| {
        let _ = child.kill();
    })?;
    let said = last_lines(&log, usize::MAX);
    // A name that is wrong would run no test at all, and succeed.
    if status.success() && said.contains("1 passed") {
        // Its figures are shown to whoever asks for them (`--nocapture`).
        println!("{}", said.trim());
        return Ok(());
    }
    Err(StageError::Failed { what: test.to_owned(), said: format!("{status}\n{}", said.trim()) })
}

/// The directory of the stage, in a program that [`once_more`] has started.
pub fn inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

/// This program once more, in namespaces of its own and with its stage in `directory`; arguments may be added.
///
/// # Errors
/// When what makes the namespaces is not installed.
pub fn once_more(directory: &Path) -> Result<Command, StageError> {
    installed("/usr/bin/unshare", "util-linux")?;
    installed("/sbin/ip", "iproute2")?;
    let binary = std::env::current_exe().map_err(StageError::system("find this program's binary"))?;
    // It ends with the thread that waits for it: whoever interrupts the tests leaves nothing behind.
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig", "KILL", "/usr/bin/unshare"]);
    if !rustix::process::geteuid().is_root() {
        // An own user namespace gives the rights for the others; scenarios about other users need root all the same.
        command.args(["--user", "--map-current-user", "--keep-caps"]);
    }
    command
        .args(["--net", "--pid", "--mount-proc", "--fork", "--kill-child", "/bin/sh", "-c"])
        // The shell stays as the first process of the namespace and waits for orphans.
        .args(["/sbin/ip link set lo up && \"$@\"; exit $?", "sh"])
        .arg(binary)
        .env(INSIDE, directory)
        .stdin(Stdio::null());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closure_tells_the_test_that_it_stands_in() {
        fn name_of<S: FnOnce()>(_: S) -> &'static str {
            test_name::<S>()
        }
        assert_eq!(name_of(|| ()), "alone::tests::a_closure_tells_the_test_that_it_stands_in");
    }
    /// What is told, and how it ends, when the runs end like this.
    fn told_of(runs: &[bool], counted: bool) -> (Result<(), String>, usize, String) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut taken = 0;
        let outcome = steadily(counted.then_some(file.path()), "it::one", || {
            taken += 1;
            if runs[taken - 1] { Ok(()) } else { Err(format!("run {taken}")) }
        });
        (outcome, taken, std::fs::read_to_string(file.path()).expect("the file"))
    }

    #[test]
    fn a_scenario_that_fails_once_is_unsteady_and_one_that_fails_again_has_failed() {
        assert_eq!(told_of(&[true], true), (Ok(()), 1, String::new()));
        assert_eq!(told_of(&[false, true, true], true), (Ok(()), 3, "it::one: run 1\n".to_owned()));
        assert_eq!(told_of(&[false, true, false], true), (Err("run 1; run 3".to_owned()), 3, String::new()));
        assert_eq!(told_of(&[false, false], true), (Err("run 1; run 2".to_owned()), 2, String::new()));
    }

    #[test]
    fn where_nobody_counts_the_first_failure_is_the_outcome() {
        assert_eq!(told_of(&[false, true, true], false), (Err("run 1".to_owned()), 1, String::new()));
    }
}
