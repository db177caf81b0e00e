//! What is the same in every occurrence of an error: its text without numbers, quoted values and secrets. Pure.

use sha2::{Digest as _, Sha256};

use crate::scrub;

/// Most of a text that is looked at.
const MAX_INPUT: usize = 1_000;
/// A longer word is an identifier or a secret, not a word.
const MAX_WORD: usize = 40;
/// Stands for a word with a digit or an address in it, and for a quoted text.
const NUMBER: char = '#';
const QUOTED: char = '?';

/// A message without what differs between two occurrences, at most `most` bytes.
pub(super) fn message(text: &str, most: usize) -> String {
    // What looks like a secret once may not do so the next time.
    let text = scrub::text(text, MAX_INPUT).replace("***", "0");
    let mut shown = String::new();
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        let is_in_word = shown.chars().next_back().is_some_and(|it| it.is_alphanumeric() || it == NUMBER);
        // `can't`, `role's`: an apostrophe, not a quote.
        if matches!(c, '"' | '`') || c == '\'' && !is_in_word {
            let body = &rest[c.len_utf8()..];
            shown.push(QUOTED);
            // A value may hold what encloses it: everything to the last one goes.
            rest = body.rfind(c).map_or("", |end| &body[end + c.len_utf8()..]);
            continue;
        }
        let end = rest.find(|it: char| !is_of_word(it)).unwrap_or(rest.len());
        if end == 0 {
            shown.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        push_word(&mut shown, &rest[..end]);
        rest = &rest[end..];
    }
    scrub::text(shown.trim(), most)
}

/// A name in a program, at most `most` bytes: what stands in it is kept but for numbers.
pub(super) fn name(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for c in text.chars().take(MAX_INPUT) {
        if !c.is_ascii_digit() {
            shown.push(c);
        } else if !shown.ends_with(NUMBER) {
            shown.push(NUMBER);
        }
    }
    scrub::text(shown.trim(), most)
}

/// The name of an error's type, at most `most` bytes; digits belong to it.
pub(super) fn kind(text: &str, most: usize) -> String {
    scrub::text(text, most)
}

/// The path of a request without its query, at most `most` bytes; a part with a digit may be somebody's number.
pub(super) fn path(target: &str, most: usize) -> String {
    let path = target.split(['?', '#', ';']).next().unwrap_or_default();
    let is_version = |part: &str| part.len() <= 3 && part.starts_with('v');
    let mut shown = String::new();
    for (index, part) in path.chars().take(MAX_INPUT).collect::<String>().split('/').enumerate() {
        if index > 0 {
            shown.push('/');
        }
        if is_version(part) {
            shown.push_str(part);
        } else {
            push_word(&mut shown, part);
        }
    }
    scrub::path(&shown, most)
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | '%' | '+' | '$')
}

fn push_word(shown: &mut String, word: &str) {
    if is_type(word) {
        shown.push_str(word);
        return;
    }
    let is_value = word.chars().any(|it| it.is_ascii_digit()) || word.contains('@') || word.len() > MAX_WORD;
    if is_value {
        shown.push(NUMBER);
        // The end of a sentence is no part of the number.
        shown.extend(word.ends_with('.').then_some('.'));
    } else {
        shown.push_str(word);
    }
}

/// `psycopg2.errors.UniqueViolation`: words with a dot between them, a capital in the last, a version at most.
fn is_type(word: &str) -> bool {
    let is_part = |part: &str| {
        let digits = part.chars().filter(char::is_ascii_digit).count();
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && part.len() <= MAX_WORD && digits <= 1
    };
    let last = word.rsplit('.').next().unwrap_or_default();
    word.contains('.')
        && last.starts_with(|c: char| c.is_ascii_uppercase())
        && word.split('.').all(is_part)
        && !word.contains('@')
}

/// Sixteen letters that are the same for the same parts, on every host.
pub(super) fn fingerprint(parts: [&str; 3]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_between_two_occurrences_is_left_out() {
        for (text, expected) in [
            ("order 4711 of 10.0.0.5:5432 not found", "order # of #:# not found"),
            ("invalid literal for int() with base 10: 'abc'", "invalid literal for int() with base #: ?"),
            ("between 'it's' and 'that', nothing", "between ?, nothing"),
            ("can't adapt type \"Row\" at <object at 0x7f3a10>", "can't adapt type ? at <object at #>"),
            ("no user anna@example.com.", "no user #."),
            ("unterminated 'quote of a secret", "unterminated ?"),
            ("id 6f1c2d3e-aaaa-bbbb-cccc-ddddeeeeffff is taken", "id # is taken"),
            ("[Errno 2] No such file: /app/data/part-7.csv", "[Errno #] No such file: /app/data/#"),
            ("(psycopg2.errors.UniqueViolation) taken", "(psycopg2.errors.UniqueViolation) taken"),
            ("", ""),
        ] {
            assert_eq!(message(text, 200), expected, "{text}");
        }
    }

    #[test]
    fn no_secret_is_left() {
        for text in
            ["login failed password=canary-secret", "GET https://u:canary@host/x failed", "token: canary-secret"]
        {
            let shown = message(text, 200);
            assert!(!shown.contains("canary"), "{text}: {shown}");
        }
        assert_eq!(path("/api/v1/orders/17/lines?token=canary", 100), "/api/v1/orders/#/lines");
    }

    #[test]
    fn a_fingerprint_depends_on_each_part_and_nothing_else() {
        let one = fingerprint(["ValueError", "bad #", "main.py handler"]);
        assert_eq!(one.len(), 16);
        assert_eq!(one, fingerprint(["ValueError", "bad #", "main.py handler"]));
        assert_ne!(one, fingerprint(["ValueError", "bad #main.py", " handler"]));
    }
}
