//! Texts from outside: names, messages of databases and kernels.

use std::fmt::Write as _;

use super::{HIDDEN, MAX_INPUT, bounded, prefix, secret, url};

/// Most bytes of a word, or of a name's end, that tell whether it is a secret.
const MAX_TOKEN: usize = 256;
/// Most bytes of a database's message.
const MAX_MESSAGE: usize = 300;

/// A text of at most `max` bytes on one line: control, bidirectional and invisible characters escaped, URLs without
/// credentials, values of secret names (`password=…`, `Authorization: …`) and everything that looks like a token
/// as `***`.
pub fn text(input: &str, max: usize) -> String {
    bounded(redact(input), max)
}

/// A path of a file, at most `max` bytes: each part by itself, so that a part with a random name hides no other.
pub fn path(input: &str, max: usize) -> String {
    let parts: Vec<String> = prefix(input, MAX_INPUT).split('/').map(redact).collect();
    bounded(parts.join("/"), max)
}

/// The message of a database's error, at most 300 bytes: as [`text`], and without the values that it quotes (after a
/// colon, after `near`, in `'…'`, in `(column)=(value)`). Names of roles, databases and columns stay.
pub fn database_error(message: &str) -> String {
    let mut shown = String::new();
    let mut rest = prefix(message, MAX_INPUT);
    while let Some(at) = rest.find(['"', '\'', '=']) {
        let (before, from) = rest.split_at(at);
        shown.push_str(before);
        let mark = &from[..1];
        let said = before.trim_end();
        let (is_value, close) = match mark {
            "=" => (from[1..].starts_with('('), ")"),
            "\"" => (said.ends_with([':', '=']) || said.ends_with("near") || said.ends_with("value"), "\""),
            // `can't`, `role's`: an apostrophe, not a quote.
            _ => (!before.ends_with(char::is_alphanumeric), "'"),
        };
        let skip = if mark == "=" && is_value { 2 } else { 1 };
        let body = &from[skip..];
        if is_value {
            shown.push_str(&from[..skip]);
            shown.push_str(HIDDEN);
            // A value may hold what encloses it: everything to the last one goes.
            match body.rfind(close) {
                Some(end) => {
                    shown.push_str(close);
                    rest = &body[end + close.len()..];
                }
                None => rest = "",
            }
        } else if mark == "\"" {
            let end = body.find('"').map_or(body.len(), |end| end + 1);
            shown.push_str(&from[..skip + end]);
            rest = &body[end..];
        } else {
            shown.push_str(mark);
            rest = body;
        }
    }
    shown.push_str(rest);
    text(&shown, MAX_MESSAGE)
}

/// The text with every character that moves a cursor, turns the direction of writing or cannot be seen written as
/// `\n`, `\t` or `\u{202e}`.
pub fn escape(input: &str) -> String {
    let mut shown = String::with_capacity(input.len());
    for c in input.chars() {
        push_escaped(&mut shown, c);
    }
    shown
}

fn push_escaped(shown: &mut String, c: char) {
    match c {
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\t' => shown.push_str("\\t"),
        _ if c.is_control() || is_unseen(c) => write!(shown, "\\u{{{:x}}}", u32::from(c)).expect("a String takes all"),
        _ => shown.push(c),
    }
}

/// Format characters (Unicode's Cf), separators of lines and paragraphs, and the tags and selectors that hide text.
fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}'
        | '\u{8e2}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
        | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// The text with its secrets as `***`, escaped, of any length.
pub(super) fn redact(input: &str) -> String {
    let mut rest = prefix(input, MAX_INPUT);
    if rest.len() < input.len() {
        // The last word is a part of one, and a part of a token might not be known for one.
        rest = &rest[..rest.rfind(char::is_whitespace).unwrap_or(0)];
    }
    let mut shown = String::with_capacity(rest.len());
    let mut ends = Ends::default();
    let mut at = 0;
    while let Some(first) = rest[at..].chars().next() {
        let (word, length) = match word_at(rest, at, &mut ends) {
            Some(found) => found,
            None => {
                push_escaped(&mut shown, first);
                at += first.len_utf8();
                continue;
            }
        };
        match word {
            Shown::AsIs => shown.push_str(&rest[at..at + length]),
            Shown::Instead(text) => shown.push_str(&text),
        }
        at += length;
    }
    shown
}

enum Shown {
    AsIs,
    Instead(String),
}

/// Ends of what stands at the present place, which parts of one word have in common: found once for all of them, so that
/// a word of a thousand parts is not read a thousand times.
#[derive(Default)]
struct Ends {
    /// Of token characters, of a name's characters, and of what is no white space.
    run: usize,
    name: usize,
    word: usize,
    /// The next `@`; whatever it was found from.
    sign: usize,
    /// Of which end of a name the mark behind it was sought, and what was found.
    marked: Option<(usize, Option<Mark>)>,
}

/// `=` or `:` behind a name, and where the value begins.
#[derive(Clone, Copy)]
struct Mark {
    mark: char,
    is_double: bool,
    value: usize,
}

/// The end of the stretch that holds `at`: the one that is known, if `at` lies before it.
fn end_of(known: &mut usize, text: &str, at: usize, ends: impl Fn(char) -> bool) -> usize {
    if *known <= at {
        *known = text[at..].find(ends).map_or(text.len(), |length| at + length);
    }
    *known
}

/// What to show for the word, assignment or URL that begins here, and how many bytes of the text it stands for.
fn word_at(text: &str, at: usize, ends: &mut Ends) -> Option<(Shown, usize)> {
    let rest = &text[at..];
    let run = end_of(&mut ends.run, text, at, |c| !secret::is_token_character(c)) - at;
    if run == 0 {
        return None;
    }
    let name = end_of(&mut ends.name, text, at, |c| !(c.is_ascii_alphanumeric() || "_.-+".contains(c))) - at;
    if rest[name..].starts_with("://") {
        return Some(url_at(text, at, name, ends));
    }
    if name > 0
        && let Some((value, end)) = assigned(text, at, at + name, ends)
    {
        return Some((Shown::Instead(format!("{}{HIDDEN}", &text[at..value])), end - at));
    }
    if rest[..run].eq_ignore_ascii_case("bearer") || rest[..run].eq_ignore_ascii_case("basic") {
        return Some(credentials_after(rest, run));
    }
    let word = &rest[..run];
    if is_token(word) {
        return Some((Shown::Instead(HIDDEN.into()), run));
    }
    // Step by step over a path and `a=b`: each part may be a name with a value, or a token.
    let part = word.find(['/', '=', '+', '~']).unwrap_or(run);
    match part {
        0 => Some((Shown::AsIs, 1)),
        _ if is_token(&word[..part]) => Some((Shown::Instead(HIDDEN.into()), part)),
        _ => Some((Shown::AsIs, part)),
    }
}

/// A token is known by its beginning.
fn is_token(word: &str) -> bool {
    secret::is_token(prefix(word, MAX_TOKEN))
}

/// A URL ends with white space or a quote; with an `@` behind the quote it may be a password that holds one.
fn url_at(text: &str, at: usize, scheme: usize, ends: &mut Ends) -> (Shown, usize) {
    let word = &text[at..end_of(&mut ends.word, text, at, char::is_whitespace)];
    let end = word.find(['"', '\'', '<', '>', '`', '\\']).unwrap_or(word.len());
    let sign = end_of(&mut ends.sign, text, at + end, |c| c == '@');
    if sign < at + word.len() && text[sign..].starts_with('@') {
        return (Shown::Instead(format!("{}://{HIDDEN}", &word[..scheme])), word.len());
    }
    let end = word[..end].trim_end_matches([',', '.', ';', ')', ']', '}', '!']).len().max(scheme + 3);
    (Shown::Instead(url(&word[..end])), end)
}

/// Where the value of a secret name begins and ends: `name=value`, `"name": "value"`, `Name: value to the line's end`.
fn assigned(text: &str, at: usize, name: usize, ends: &mut Ends) -> Option<(usize, usize)> {
    let mark = match ends.marked {
        Some((of, mark)) if of == name => mark,
        _ => {
            let mark = mark_behind(text, name);
            ends.marked = Some((name, mark));
            mark
        }
    };
    let Mark { mark, is_double, value } = mark?;
    // What a name means, its end says.
    let written = &text[at.max(name.saturating_sub(MAX_TOKEN))..name];
    // `primary key: id` is prose, `key=…` is not; `a::b` is a path of types.
    let is_prose = mark == ':' && (written.eq_ignore_ascii_case("key") || is_double);
    let after = &text[value..];
    if is_prose || !secret::is_secret_name(written) || after.is_empty() {
        return None;
    }
    let length = match after.chars().next()? {
        // Hidden before: what stands behind it is not a part of it.
        _ if after.strip_prefix(HIDDEN).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric())) => {
            HIDDEN.len()
        }
        _ if secret::takes_the_line(written) => after.find(['\n', '\r']).unwrap_or(after.len()),
        quote @ ('"' | '\'') => quoted(after, quote),
        _ => after.find(char::is_whitespace).unwrap_or(after.len()),
    };
    Some((value, value + length))
}

fn mark_behind(text: &str, name: usize) -> Option<Mark> {
    let between = text[name..].trim_start_matches(['"', '\'']).trim_start_matches([' ', '\t']);
    let mark = between.chars().next().filter(|c| matches!(c, '=' | ':'))?;
    let after = between[1..].trim_start_matches(['=', '>']).trim_start_matches([' ', '\t']);
    Some(Mark { mark, is_double: between.starts_with("::"), value: text.len() - after.len() })
}

/// Length of a quoted value with its quotes; all the rest when it does not end.
fn quoted(value: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in value.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => {
                // What is written on to it belongs to it: `'a''b'`, `"a"b`.
                let after = &value[at + 1..];
                return at + 1 + after.find(|c: char| c.is_whitespace() || ",;)]}".contains(c)).unwrap_or(after.len());
            }
            _ => (),
        }
    }
    value.len()
}

/// `Bearer abc` hides every word, `Basic abc` only one that cannot be prose.
fn credentials_after(rest: &str, scheme: usize) -> (Shown, usize) {
    let after = rest[scheme..].trim_start_matches([' ', '\t']);
    let start = rest.len() - after.len();
    let length = after.find(char::is_whitespace).unwrap_or(after.len());
    let value = &after[..length];
    let is_prose = rest[..scheme].eq_ignore_ascii_case("basic") && value.chars().all(|c| c.is_lowercase() || c == '-');
    if start == scheme || value.is_empty() || is_prose {
        return (Shown::AsIs, scheme);
    }
    (Shown::Instead(format!("{} {HIDDEN}", &rest[..scheme])), start + length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn shows(input: &str, expected: &str) {
        assert_eq!(text(input, 500), expected, "{input}");
        assert_eq!(text(expected, 500), expected, "a second time");
    }

    #[test]
    fn a_path_loses_the_part_that_may_be_a_secret_and_no_other() {
        assert_eq!(path("/var/log/shop/app.log", 300), "/var/log/shop/app.log");
        assert_eq!(path("/tmp/AKIAIOSFODNN7EXAMPLE/shop.db", 300), "/tmp/***/shop.db");
        assert_eq!(path("/var/log/shop/app.log", 10), "/var/lo…");
    }

    #[test]
    fn ordinary_texts_stay_as_they_are() {
        for it in [
            "grants-api",
            "connection refused",
            "FATAL: password authentication failed for user \"app\"",
            "no answer within 10 s",
            "PostgreSQL JDBC Driver",
            "uvicorn app.main:app --host 0.0.0.0 --port 8000 --workers 4",
            "psql 15.4 (Debian 15.4-1+b1)",
            "std::io::Error: No such file or directory (os error 2)",
            "größe ≥ 5 µs, 日本語",
            "basic authentication is off",
            "/usr/lib/python3/dist-packages/x.py:17",
        ] {
            shows(it, it);
        }
    }

    #[test]
    fn values_of_secret_names_go() {
        shows("password=hunter2 host=db", "password=*** host=db");
        shows("PASSWORD = 'hunter 2' x", "PASSWORD = *** x");
        shows(r#"{"password": "hun\"ter2", "user": "app"}"#, r#"{"password": ***, "user": "app"}"#);
        shows("Authorization: Basic aHVudGVyMg== more", "Authorization: ***");
        shows("sent Bearer abc to host", "sent Bearer *** to host");
        shows("Cookie: a=b; c=d", "Cookie: ***");
        shows("api_key: hunter2", "api_key: ***");
        shows("secret => hunter2", "secret => ***");
        shows("password='a''hunter2' x", "password=*** x");
        shows("token=", "token=");
    }

    #[test]
    fn tokens_and_urls_inside_a_text_are_found() {
        shows("got eyJhbGciOiJIUzI1NiJ9.e30.x, stop", "got ***, stop");
        shows("cannot reach postgres://u:hunter2@db/app: refused", "cannot reach postgres://db/app: refused");
        shows("\"redis://:x@h:1/0\",", "\"redis://h:1/0\",");
        shows("postgres://u:a\"b@host/app x", "postgres://*** x");
        shows("id 550e8400-e29b-41d4-a716-446655440000", "id ***");
    }

    #[test]
    fn no_character_moves_the_cursor_or_turns_the_line() {
        shows("a\u{1b}[31mb\nc\u{202e}d\u{200b}", "a\\u{1b}[31mb\\nc\\u{202e}d\\u{200b}");
        shows("a\u{2028}b\u{85}", "a\\u{2028}b\\u{85}");
    }

    #[test]
    fn database_errors_keep_names_and_lose_values() {
        let shows = |message: &str, expected: &str| assert_eq!(database_error(message), expected);
        shows("password authentication failed for user \"app\"", "password authentication failed for user \"app\"");
        shows("database \"app\" does not exist", "database \"app\" does not exist");
        shows("invalid input syntax for type integer: \"hunter2\"", "invalid input syntax for type integer: \"***\"");
        shows("syntax error at or near \"hunter2\"", "syntax error at or near \"***\"");
        shows("Key (email)=(a@b.c) already exists.", "Key (email)=(***) already exists.");
        shows("value 'it's hunter2' is bad", "value '***' is bad");
        shows("can't connect", "can't connect");
        shows("sorry, too many clients already", "sorry, too many clients already");
        shows("near \"hunter2", "near \"***");
    }

    proptest! {
        #[test]
        fn a_labelled_canary_never_survives(
            label in "(db_password|PGPASSWORD|apiKey|client-secret|X-Auth-Token)",
            mark in "(=|: | = |\": \"|=')",
            before in "[a-z ]{0,9}",
            after in "[ -~]{0,9}",
        ) {
            let input = format!("{before} {label}{mark}hunter2canary{after}");
            let shown = text(&input, 500);
            prop_assert!(!shown.contains("hunter2"), "{input:?} gave {shown:?}");
        }
    }
}
