//! What an application says when a request fails: tracebacks of Python, stacks of Java, Node.js and Go, and answers
//! with 5xx. Pure.
//!
//! Each is reduced to what is the same in all of its occurrences: kind, message without numbers, quoted texts and
//! secrets, and the innermost frame of the application's own. Nothing else of it is kept.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json};

mod access;
mod normal;
mod stack;
mod stamp;
mod traceback;

use stack::Stack;
pub use stamp::Written;
use traceback::{Part, Traceback};

/// Longest name of an error, longest message and longest frame, in bytes.
const MAX_KIND: usize = 120;
const MAX_MESSAGE: usize = 200;
const MAX_PLACE: usize = 100;
/// Lines of one text inside a structured record.
const MAX_INNER: usize = 500;

/// An error without what differs between two occurrences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// Name of its type, `panic`, or `HTTP 500`.
    pub kind: Arc<str>,
    /// Its message, or method and path of the request.
    pub message: Arc<str>,
    /// File and function of the innermost frame that is the application's own; empty where none is told.
    pub place: Arc<str>,
    /// Sixteen hexadecimal digits of the three above: the same in each occurrence, on every host.
    pub fingerprint: Arc<str>,
}

impl Raised {
    fn new(kind: &str, message: String, place: String) -> Self {
        let kind = normal::kind(kind, MAX_KIND);
        let fingerprint = normal::fingerprint([&kind, &message, &place]);
        Self { kind: kind.into(), message: message.into(), place: place.into(), fingerprint: fingerprint.into() }
    }

    /// Whether it is known by its answer alone.
    pub fn is_answer(&self) -> bool {
        self.kind.starts_with("HTTP ")
    }
}

/// One occurrence of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occurrence {
    /// What was raised.
    pub raised: Raised,
    /// On the agent's monotonic clock: its first line was written after this.
    pub since: Duration,
    /// When it was written, by the line's own word.
    pub written: Option<Written>,
}

/// Reads line by line.
#[derive(Debug, Default)]
pub(super) struct Reader {
    traceback: Option<(Traceback, Begun)>,
    stack: Stack,
    /// Of the line that named the error whose stack may follow.
    named: Begun,
    /// Time of the line before: a logger's own, above the traceback that it writes.
    before: Option<Written>,
    /// The last traceback, while a line said that the next one is the same error in another coat.
    last: Begun,
    is_chained: bool,
}

/// When something began.
#[derive(Debug, Clone, Copy, Default)]
struct Begun {
    since: Duration,
    written: Option<Written>,
}

/// What a line completed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) occurrence: Occurrence,
    /// It takes the place of the one before, of which it is the consequence.
    pub(super) is_consequence: bool,
}

impl Reader {
    /// The error that this line completes. `since`: the line was written after this.
    pub(super) fn line(&mut self, line: &str, since: Duration) -> Option<Read> {
        const CHAINS: [&str; 2] = [
            "The above exception was the direct cause of the following exception",
            "During handling of the above exception, another exception occurred",
        ];
        let before = self.before.take();
        if let Some((traceback, begun)) = &mut self.traceback {
            let (part, begun) = (traceback.line(line), *begun);
            if matches!(part, Part::Within) {
                return None;
            }
            self.traceback = None;
            if let Part::End(raised) = part {
                self.last = begun;
                return Some(self.read(raised, begun));
            }
        }
        let own = stamp::at_head(line);
        let begun = Begun { since, written: own.or(before) };
        if let Some(traceback) = Traceback::begins(line) {
            let begun = if self.is_chained { self.last } else { begun };
            self.traceback = Some((traceback, begun));
            return None;
        }
        let words = line.trim_start_matches([' ', '|']);
        if words.is_empty() {
            self.before = before;
            return None;
        }
        if CHAINS.iter().any(|it| words.starts_with(it)) {
            self.is_chained = true;
            return None;
        }
        self.is_chained = false;
        self.before = own;
        if line.starts_with('{')
            && let Ok(Json::Object(record)) = serde_json::from_str(line)
        {
            let written = stamp::of_record(&record);
            let raised = of_record(&record)?;
            return Some(self.read(raised, Begun { since, written }));
        }
        let (raised, is_head) = self.stack.line(line);
        if is_head {
            self.named = begun;
        }
        if let Some(raised) = raised {
            return Some(self.read(raised, self.named));
        }
        // A line of an access log may bear the time at which the request came.
        let raised = access::of_line(line)?;
        Some(self.read(raised, Begun { since, written: None }))
    }

    fn read(&mut self, raised: Raised, begun: Begun) -> Read {
        let occurrence = Occurrence { raised, since: begun.since, written: begun.written };
        Read { occurrence, is_consequence: std::mem::take(&mut self.is_chained) }
    }
}

/// The traceback or stack in one of the record's texts, else its answer with 5xx.
fn of_record(record: &Map<String, Json>) -> Option<Raised> {
    let inner = record.values().filter_map(Json::as_object).flat_map(Map::values);
    let texts = record.values().chain(inner).filter_map(Json::as_str).filter(|it| it.contains('\n'));
    let raised = |text: &str| {
        let mut reader = Reader::default();
        let all = text.lines().take(MAX_INNER).filter_map(|line| reader.plain(line));
        all.last()
    };
    texts.rev().find_map(raised).or_else(|| access::of_record(record))
}

impl Reader {
    /// The same for the text of a record, in which there are no records.
    fn plain(&mut self, line: &str) -> Option<Raised> {
        if line.starts_with('{') {
            return None;
        }
        self.line(line, Duration::ZERO).map(|it| it.occurrence.raised).filter(|it| !it.is_answer())
    }
}

#[cfg(test)]
mod tests;
