//! An application's log, followed from its end: what an application says when its pool or a request fails.
//!
//! `follow` reads new lines through rotation, `patterns` says what a line means, `errors` which lines are a traceback or
//! an answer with 5xx. Lines are scrubbed before they are shown to anybody; what matches nothing is counted and forgotten.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::discover::TargetKey;
use crate::inspect::{About, Inspector, Look, Measure, Observation, Reading, Reason, Rows, Unit, Value};
use crate::kernel::reader;
use crate::scrub;

mod errors;
mod follow;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod patterns;

pub use errors::{Occurrence, Raised, Written};
use follow::{Follow, Took};
pub use patterns::Kind;
use patterns::Reader;

/// Most matches of one look that are kept with their text; all are counted.
const MAX_MATCHES: usize = 50;
/// Most errors of one look; beyond them it is only known that there were more.
const MAX_ERRORS: usize = 50;
/// Longest line in evidence.
const MAX_SHOWN: usize = 300;

static LINES: Measure =
    Measure { name: "log.lines", unit: Unit::Count, meaning: "lines that were written to the log since the last look" };

/// What this inspector reads.
pub static ABOUT: About = About {
    name: "log_tail",
    source: "lines that are appended to a configured file, through rotation by rename and by truncation",
    needs: "a [[log]] section and the right to read the file",
    cost: "one stat a second and the new lines, at most 1 MiB a look",
    measures: &[&LINES],
};

/// One log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// Whose log it is.
    pub application: Arc<str>,
}

/// One look at one log.
#[derive(Debug, Clone)]
pub struct LogLook {
    /// `log:<application>:<path>`.
    pub target: TargetKey,
    /// Whose log it is.
    pub application: Arc<str>,
    /// The file.
    pub path: Arc<str>,
    /// What was found in the lines since the last look; `Err` when it could not be read.
    pub found: Result<Found, Reason>,
}

/// What the new lines said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Complete lines that were read.
    pub lines: u64,
    /// Lines that say something, in order; at most 50 with their text.
    pub matches: Vec<Match>,
    /// Those beyond.
    pub more: Vec<Kind>,
    /// Errors of requests, in order; at most 50.
    pub errors: Vec<Occurrence>,
    /// There were more errors than those.
    pub has_more_errors: bool,
    /// On the agent's monotonic clock: the lines were written after `since`, when the last look began, and before
    /// `until`, when this one was over. `None` until there was a look before.
    pub since: Option<Duration>,
    /// See `since`.
    pub until: Duration,
    /// Bytes were left out because too much was written, so every count is a lower bound.
    pub is_lower_bound: bool,
}

/// A line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// What it says.
    pub kind: Kind,
    /// The line, scrubbed, at most 300 bytes.
    pub line: Arc<str>,
}

/// Follows one log.
#[derive(Debug)]
pub struct LogInspector {
    config: Config,
    target: TargetKey,
    /// Opens the file and gives its lines, and makes nothing of them.
    rights: reader::Reader,
    // One look runs at a time; the locks are for one that was given up while its thread goes on.
    follow: Arc<Mutex<Follow>>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    reader: Reader,
    errors: errors::Reader,
    /// When the last look that could read the log began.
    looked_at: Option<Duration>,
}

impl LogInspector {
    /// An inspector that begins at the file's present end, which is read with the rights of `rights`.
    pub fn new(config: Config, rights: reader::Reader) -> Self {
        let target = TargetKey::log(&config.application, &config.path.display().to_string());
        let follow = Arc::new(Mutex::new(Follow::new(config.path.clone())));
        Self { target, config, rights, follow, state: Arc::default() }
    }
}

impl Inspector for LogInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        format!("log {}", self.config.path.display())
    }

    fn inspect<'a>(&'a mut self, now: Duration) -> Look<'a> {
        let (follow, state) = (self.follow.clone(), self.state.clone());
        Box::pin(async move {
            let began = Instant::now();
            // Files block whatever they are opened with, if only for the disk.
            let read = self.rights.look(move || {
                let mut lines = Vec::new();
                let mut follow = follow.lock().unwrap_or_else(PoisonError::into_inner);
                follow.look(|line| lines.push(line.to_owned())).map(|took| (lines, took))
            });
            let ending = Reason::NotYet("the runtime is ending");
            let found = match read.await {
                Some(Ok((lines, took))) => {
                    // What others wrote is read without the rights with which it was opened.
                    let read = tokio::task::spawn_blocking(move || {
                        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                        state.read(&lines, &took, now, now + began.elapsed())
                    });
                    match read.await {
                        Ok(found) => Ok(found),
                        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                        Err(_) => Err(ending),
                    }
                }
                Some(Err(reason)) => Err(reason),
                None => Err(ending),
            };
            let value = match &found {
                Ok(it) if it.is_lower_bound => Value::Between(it.lines as f64, f64::MAX),
                Ok(it) => Value::Known(it.lines as f64),
                Err(reason) => Value::Unknown(reason.clone()),
            };
            let observations = vec![Observation { target: self.target.clone(), measure: &LINES, value }];
            let look = LogLook {
                target: self.target.clone(),
                application: self.config.application.clone(),
                path: scrub::path(&self.config.path.display().to_string(), MAX_SHOWN).into(),
                found,
            };
            Reading { rows: Rows::Log(look), observations }
        })
    }
}

impl State {
    /// What lines say that were read in a look from `now` to `until`.
    fn read(&mut self, lines: &[String], took: &Took, now: Duration, until: Duration) -> Found {
        let Self { reader, errors, looked_at } = self;
        let since = looked_at.unwrap_or(now);
        let is_lower_bound = took.left_out > 0;
        let mut found = Found { since: looked_at.replace(now), until, is_lower_bound, ..Found::default() };
        for line in lines {
            found.lines += 1;
            found.take(errors.line(line, since));
            let Some(kind) = reader.line(line) else { continue };
            if found.matches.len() < MAX_MATCHES {
                found.matches.push(Match { kind, line: scrub::text(line, MAX_SHOWN).into() });
            } else {
                found.more.push(kind);
            }
        }
        found
    }
}

impl Found {
    fn take(&mut self, read: Option<errors::Read>) {
        let Some(read) = read else { return };
        if read.is_consequence {
            self.errors.pop();
        }
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(read.occurrence);
        } else {
            self.has_more_errors = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const TIMEOUT: &str =
        "sqlalchemy.exc.TimeoutError: QueuePool limit of size 5 overflow 0 reached, connection timed out, timeout 1.00";

    async fn look(inspector: &mut LogInspector) -> Result<Found, Reason> {
        match inspector.inspect(Duration::ZERO).await.rows {
            Rows::Log(look) => look.found,
            other => panic!("not a log: {other:?}"),
        }
    }

    #[tokio::test]
    async fn lines_written_after_the_start_are_found_and_shown_without_secrets() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.log");
        std::fs::write(&path, format!("{TIMEOUT}\n")).expect("an old line");
        let mut inspector =
            LogInspector::new(Config { path: path.clone(), application: "shop".into() }, reader::Reader::default());
        assert_eq!(look(&mut inspector).await.expect("readable").lines, 0, "old lines say nothing of now");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("the log");
        writeln!(file, "ERROR password=canary-1 {TIMEOUT}\nINFO all is well").expect("two lines");
        let found = look(&mut inspector).await.expect("readable");
        assert_eq!((found.lines, found.matches.len()), (2, 1));
        assert_eq!(found.matches[0].kind, Kind::PoolTimeout);
        assert!(found.matches[0].line.contains("QueuePool limit of size 5"), "{}", found.matches[0].line);
        assert!(!found.matches[0].line.contains("canary"), "{}", found.matches[0].line);
    }

    #[tokio::test]
    async fn errors_have_the_look_before_as_their_earliest_time_and_are_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.log");
        std::fs::write(&path, "").expect("a log");
        let mut inspector =
            LogInspector::new(Config { path: path.clone(), application: "shop".into() }, reader::Reader::default());
        let mut look_at = async |seconds: u64, text: &str| {
            let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("the log");
            file.write_all(text.as_bytes()).expect("written");
            match inspector.inspect(Duration::from_secs(seconds)).await.rows {
                Rows::Log(look) => look.found.expect("readable"),
                other => panic!("not a log: {other:?}"),
            }
        };
        assert_eq!(look_at(1, "").await.since, None);
        // A traceback that is half written at a look began before it.
        assert_eq!(look_at(2, "Traceback (most recent call last):\n").await.errors, []);
        let found = look_at(3, "  File \"/a/m.py\", line 1, in f\nValueError: password=canary\n").await;
        assert_eq!((found.errors.len(), found.errors[0].since), (1, Duration::from_secs(1)));
        assert_eq!(found.since, Some(Duration::from_secs(2)));
        assert!(found.until >= Duration::from_secs(3) && !format!("{found:?}").contains("canary"), "{found:?}");
        let found = look_at(4, &"\"GET /a HTTP/1.1\" 500\n".repeat(1000)).await;
        assert_eq!((found.errors.len(), found.has_more_errors), (MAX_ERRORS, true));
    }

    #[tokio::test]
    async fn a_file_that_may_not_be_read_says_why() {
        // A name of random letters may look like a secret and is not shown then.
        let missing = PathBuf::from("/nonexistent/logs/none.log");
        let mut inspector =
            LogInspector::new(Config { path: missing, application: "shop".into() }, reader::Reader::default());
        let reason = look(&mut inspector).await.expect_err("not there");
        assert!(reason.is_blind() && reason.to_string().contains("none.log"), "{reason}");
    }
}
