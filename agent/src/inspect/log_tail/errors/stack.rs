//! Stacks as Java, Node.js and Go write them, line by line. Pure.
//!
//! The line that names the error comes first, the frames (`at …`) or the goroutine after it. An error is told at its
//! first frame: a line alone may only speak of it.

use super::{MAX_KIND, MAX_MESSAGE, MAX_PLACE, Raised, normal};

/// A message of several lines may stand between the error's name and its first frame.
const MAX_BETWEEN: u32 = 20;
/// How the names of what may be thrown end.
const ENDS: [&str; 3] = ["Exception", "Error", "Throwable"];

/// How the causes of an error begin, below its own frames.
const CAUSES: [&str; 2] = ["Caused by: ", "Suppressed: "];

/// What was read of stacks.
#[derive(Debug, Default)]
pub(super) struct Stack {
    /// An error that was named and has no frame yet, and how many lines ago.
    named: Option<(Named, u32)>,
}

#[derive(Debug)]
struct Named {
    kind: String,
    message: String,
    is_go: bool,
}

impl Stack {
    /// The error whose first frame this line is. `is_head` says whether the line names an error that may get one.
    pub(super) fn line(&mut self, line: &str) -> (Option<Raised>, bool) {
        if let Some(place) = frame(line) {
            let named = self.named.take_if(|it| !it.0.is_go);
            return (named.map(|(it, _)| Raised::new(&it.kind, it.message, place)), false);
        }
        if is_goroutine(line) {
            let named = self.named.take_if(|it| it.0.is_go);
            return (named.map(|(it, _)| Raised::new(&it.kind, it.message, String::new())), false);
        }
        let is_cause = CAUSES.iter().any(|it| line.trim_start().starts_with(it));
        if is_cause {
            // The same error in another coat, with frames of its own.
            return (None, false);
        }
        if let Some(named) = panic(line).or_else(|| thrown(line)) {
            self.named = Some((named, 0));
            return (None, true);
        }
        if let Some((_, lines)) = &mut self.named {
            *lines += 1;
            if *lines > MAX_BETWEEN {
                self.named = None;
            }
        }
        (None, false)
    }
}

/// `    at com.shop.Orders.find(Orders.java:10)`, `    at handler (/app/main.js:10:5)`.
fn frame(line: &str) -> Option<String> {
    let text = line.trim_start();
    let is_indented = text.len() < line.len();
    let place = text.strip_prefix("at ").filter(|it| is_indented && it.contains([':', '(']))?;
    let before = place.split('(').next().unwrap_or_default().trim();
    let place = if before.is_empty() { place.trim_matches(['(', ')']) } else { before };
    // A file without a function: its name, without line and column.
    let file = place.rsplit('/').next().unwrap_or(place);
    Some(normal::name(file.split(':').next().unwrap_or(file), MAX_PLACE))
}

/// `goroutine 34 [running]:`.
fn is_goroutine(line: &str) -> bool {
    line.strip_prefix("goroutine ").is_some_and(|rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        digits > 0 && rest[digits..].starts_with(" [")
    })
}

/// `panic: message`, `http: panic serving 10.0.0.9:4711: message`.
fn panic(line: &str) -> Option<Named> {
    let message = match line.strip_prefix("panic: ") {
        Some(message) => message,
        None => line.split_once("panic serving ")?.1.split_once(": ")?.1,
    };
    Some(Named { kind: "panic".to_owned(), message: normal::message(message, MAX_MESSAGE), is_go: true })
}

/// The first word that is the name of something thrown, with its message: `java.lang.Error: x`, `TypeError: x`.
fn thrown(line: &str) -> Option<Named> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '$');
    let mut rest = line;
    while let Some(from) = rest.find(is_of_name) {
        let word = &rest[from..];
        let end = word.find(|c| !is_of_name(c)).unwrap_or(word.len());
        let (word, after) = word.split_at(end);
        let is_named = word.len() <= MAX_KIND && ENDS.iter().any(|it| word.ends_with(it));
        if is_named && (after.is_empty() || after.starts_with(": ") || after == ":") {
            let message = normal::message(after.trim_start_matches([':', ' ']), MAX_MESSAGE);
            return Some(Named { kind: word.to_owned(), message, is_go: false });
        }
        rest = after;
    }
    None
}
