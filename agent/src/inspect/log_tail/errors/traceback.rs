//! Python's tracebacks, line by line. Pure.
//!
//! A traceback begins with `Traceback (most recent call last):`, goes on with indented lines, and ends with the first
//! line that is not: `SomeError: message`. A logger may write it behind its own prefix, repeated in each line or not; a
//! group of exceptions draws `|` before each line. Other processes may write lines in between.

use super::{MAX_KIND, MAX_MESSAGE, MAX_PLACE, Raised, normal};

const BEGINS: &str = "Traceback (most recent call last):";
const GROUP: &str = "Exception Group ";
/// Longest prefix, and the most lines that are no part of a traceback before it is given up.
const MAX_PREFIX: usize = 100;
const MAX_STRANGE: u32 = 20;
/// Directories of code that is not the application's own.
const LIBRARIES: [&str; 4] = ["site-packages/", "dist-packages/", "lib/python", "<frozen "];
/// Words that stand before a colon as an error's name does.
const LEVELS: [&str; 8] = ["DEBUG", "INFO", "NOTICE", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL"];

/// A traceback whose end has not come.
#[derive(Debug)]
pub(super) struct Traceback {
    prefix: String,
    /// Whether each line has the prefix; the first one says it.
    is_prefixed: Option<bool>,
    /// The innermost frame so far, and whether it is the application's own.
    place: String,
    is_own: bool,
    strange: u32,
}

/// What a line is to a traceback.
pub(super) enum Part {
    /// A part of it, or another process's line.
    Within,
    /// Its last.
    End(Raised),
    /// It will not end any more.
    Lost,
}

impl Traceback {
    /// The traceback that this line begins.
    pub(super) fn begins(line: &str) -> Option<Self> {
        let prefix = line.trim_end().strip_suffix(BEGINS)?;
        let prefix = prefix.strip_suffix(GROUP).unwrap_or(prefix);
        let prefix = if prefix.len() <= MAX_PREFIX { prefix.replace('+', "|") } else { return None };
        Some(Self { prefix, is_prefixed: None, place: String::new(), is_own: false, strange: 0 })
    }

    pub(super) fn line(&mut self, line: &str) -> Part {
        let behind = line.strip_prefix(&self.prefix);
        let is_prefixed = *self.is_prefixed.get_or_insert(behind.is_some());
        let text = if is_prefixed { behind } else { Some(line) };
        match text {
            Some(text) if text.starts_with([' ', '\t']) || text.trim().is_empty() => {
                self.frame(text);
                Part::Within
            }
            Some(text) => match raised(text, &self.place) {
                Some(raised) => Part::End(raised),
                None => self.strange(),
            },
            None => self.strange(),
        }
    }

    /// `  File "/app/main.py", line 10, in handler`.
    fn frame(&mut self, text: &str) {
        let Some((path, rest)) = text.trim_start().strip_prefix("File \"").and_then(|it| it.split_once("\", line "))
        else {
            return;
        };
        let is_own = !LIBRARIES.iter().any(|it| path.contains(it));
        if self.is_own && !is_own {
            return;
        }
        let file = path.rsplit('/').next().unwrap_or(path);
        let function = rest.split_once(", in ").map_or("", |(_, it)| it);
        (self.place, self.is_own) = (normal::name(&format!("{file} {function}"), MAX_PLACE), is_own);
    }

    fn strange(&mut self) -> Part {
        self.strange += 1;
        if self.strange > MAX_STRANGE { Part::Lost } else { Part::Within }
    }
}

/// `package.SomeError: message` or `SomeError`.
fn raised(text: &str, place: &str) -> Option<Raised> {
    let text = text.trim_end();
    let (kind, message) = match text.split_once(": ") {
        Some((kind, message)) => (kind, message),
        None => (text.strip_suffix(':').unwrap_or(text), ""),
    };
    let is_name = |it: &str| {
        it.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && it.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '<' | '>'))
    };
    let is_kind = kind.len() <= MAX_KIND && is_name(kind) && !LEVELS.iter().any(|it| kind.eq_ignore_ascii_case(it));
    is_kind.then(|| Raised::new(kind, normal::message(message, MAX_MESSAGE), place.to_owned()))
}
