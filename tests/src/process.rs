//! A child process with a log, ended by its own id.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::stage::StageError;
use crate::wait::until;

/// How long a process may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);

/// A running child. Dropped, it is asked to end, and killed when it does not.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command` with its standard error, and its standard output unless `command` has set one, in `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self, StageError> {
        let failed = || StageError::system(format!("start {name}"));
        let file = File::options().create(true).append(true).open(log).map_err(failed())?;
        // A group of its own: Ctrl-C in a terminal reaches the one who started it, and that one ends its children.
        let child = command.stderr(file).process_group(0).spawn().map_err(failed())?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id. A wrapper such as setpriv replaces itself, so this is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal; nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(i32::try_from(self.pid()).expect("process ids are positive i32")) {
            // Only a process that has ended and was waited for refuses; that is what a signal wants.
            let _ = kill_process(pid, signal);
        }
    }

    /// An error with the last words of the log when it has ended.
    pub fn alive(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("{} ended ({status}): {}", self.name, self.last_words())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits for its end.
    pub fn ends(&mut self, within: Duration) -> Result<ExitStatus, StageError> {
        let name = self.name.clone();
        until(format!("{name} ends"), within, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Asks it to end (`SIGTERM`) and waits.
    pub fn stop(&mut self) -> Result<ExitStatus, StageError> {
        self.signal(Signal::TERM);
        self.ends(GRACE)
    }

    /// Kills it (`SIGKILL`) and waits.
    pub fn kill(&mut self) -> Result<ExitStatus, StageError> {
        self.signal(Signal::KILL);
        self.ends(GRACE)
    }

    /// The last twenty lines of its log.
    pub fn last_words(&self) -> String {
        last_lines(&self.log, 20)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.alive().is_ok() && self.stop().is_err() {
            let _ = self.kill();
        }
    }
}

/// Runs `command` to its end and gives what it wrote; a failure is an error with its last words.
pub fn run(command: &mut Command) -> Result<String, StageError> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [&output.stdout[..], &output.stderr[..]].map(|it| String::from_utf8_lossy(it).into_owned()).concat();
    let what = command.get_program().to_string_lossy().into_owned();
    Err(StageError::Failed { what, said: format!("{}: {}", output.status, end_of(&said, 20)) })
}

/// Runs `command` to its end; whatever it ends with is an answer.
pub fn output(command: &mut Command) -> Result<Output, StageError> {
    let what = format!("run {}", command.get_program().to_string_lossy());
    command.stdin(Stdio::null()).output().map_err(StageError::system(what))
}

/// `path` if it is there, else the error that names the package which has it.
pub fn installed(path: &str, package: &'static str) -> Result<PathBuf, StageError> {
    let path = PathBuf::from(path);
    if path.exists() { Ok(path) } else { Err(StageError::Missing { what: path.display().to_string(), package }) }
}

/// The last lines of a file; nothing when it cannot be read.
pub fn last_lines(file: &Path, count: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    end_of(&String::from_utf8_lossy(&text), count)
}

fn end_of(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
