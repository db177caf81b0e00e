//! The lexical rules of MySQL and MariaDB.

use super::{Next, Token, is_space, is_word, number, run, string_in};

pub(super) fn next(rest: &str, first: char) -> Next<'_> {
    let literal = |end: Option<usize>| end.map_or(Next::Cut, |length| Next::Token(Token::Literal, length));
    let after = &rest[first.len_utf8()..];
    let second = after.chars().next();
    match first {
        _ if is_space(first) => Next::Token(Token::Space, run(rest, is_space)),
        '#' => line_comment(rest),
        // `1--1` is arithmetic: only white space after it makes it a comment.
        '-' if second == Some('-') && after[1..].chars().next().is_none_or(|c| c.is_whitespace() || c.is_control()) => {
            line_comment(rest)
        }
        // `/*! … */` and `/*M! … */` are executed: what stands in them is read otherwise than a comment.
        '/' if second == Some('*') && (after[1..].starts_with('!') || after[1..].starts_with("M!")) => Next::Cut,
        // Comments do not nest.
        '/' if second == Some('*') => match after[1..].find("*/") {
            Some(end) => Next::Token(Token::Space, end + 4),
            None => Next::Cut,
        },
        '\'' | '"' => literal(string_in(first, rest, 0)),
        '`' => match quoted_identifier(rest) {
            Some(end) => Next::Token(Token::QuotedIdentifier(&rest[..end]), end),
            None => Next::Cut,
        },
        // The beginning of a name, or of a string whose end is its tag, by the server's version.
        '$' => Next::Cut,
        '0'..='9' => Next::Token(Token::Literal, number(rest)),
        '.' if second.is_some_and(|c| c.is_ascii_digit()) => Next::Token(Token::Literal, number(rest)),
        'b' | 'B' | 'x' | 'X' | 'n' | 'N' if second == Some('\'') => literal(string_in('\'', rest, 1)),
        _ if is_word(first) => {
            let length = run(rest, is_word);
            Next::Token(Token::Word(&rest[..length]), length)
        }
        _ if "+-*/<>=~!@%^&|?()[]{},;:.".contains(first) => Next::Token(Token::Symbol(first), 1),
        _ => Next::NotSql,
    }
}

fn line_comment(rest: &str) -> Next<'_> {
    Next::Token(Token::Space, run(rest, |c| c != '\n'))
}

/// Length of a name in backticks; one inside is written twice, and a backslash means nothing.
fn quoted_identifier(rest: &str) -> Option<usize> {
    let mut at = 1;
    loop {
        at += rest[at..].find('`')? + 1;
        if !rest[at..].starts_with('`') {
            return Some(at);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::scrub;

    #[track_caller]
    fn shows(statement: &str, expected: &str) {
        assert_eq!(scrub::mysql(statement).as_deref(), Some(expected), "{statement}");
    }

    #[test]
    fn literals_go_and_names_stay() {
        shows("SELECT v FROM `my t`.`a``b` WHERE id = 42", "SELECT v FROM `my t`.`a``b` WHERE id = ?");
        shows(r#"SELECT "it's", 'say "x"', 'o''brien', """""#, "SELECT ?, ?, ?, ?");
        shows("SELECT -1.5e-3, .5, 0xFF, x'ff', b'01', N'n', _utf8mb4'x'", "SELECT -?, ?, ?, ?, ?, ?, _utf8mb4?");
        shows("SELECT @a := 5, @@global.x, ? FROM t", "SELECT @a := ?, @@global.x, ? FROM t");
        shows("INSERT INTO t VALUES (1,'a'),(2,'b');", "INSERT INTO t VALUES (?,?),(?,?);");
    }

    #[test]
    fn comments_go_with_what_they_say() {
        shows("SELECT a # key 'x\n, b -- 'y\n, c /* /* 'z */, d", "SELECT a , b , c , d");
        shows("SELECT 1--1, a--b", "SELECT ?--?, a--b");
        shows("SELECT 1--'a\n secret'", "SELECT ?--?");
        shows("SELECT 1 --", "SELECT ?");
        shows("SELECT /*! 'x*/ secret' */ 1", "SELECT…");
        shows("SELECT /*M!100100 a */ 1", "SELECT…");
        shows("SELECT /* never ends", "SELECT…");
    }

    #[test]
    fn what_is_not_certain_ends_the_text() {
        shows(r"SELECT 'it\'s secret', 'x'", "SELECT…");
        shows(r#"SELECT "a\" OR secret, 'x'"#, "SELECT…");
        shows(r"SELECT 'a\\', b", "SELECT ?, b");
        shows("SELECT 'secr", "SELECT…");
        shows("SELECT \"secr", "SELECT…");
        shows("SELECT `secr", "SELECT…");
        shows("SELECT $$secret$$", "SELECT…");
        shows("SELECT 'it's secret', 'x'", "SELECT ?…");
        shows("SELECT 'a'`secret`", "SELECT ?…");
        assert_eq!(scrub::mysql("SELECT ‘secret’"), None);
    }

    #[test]
    fn values_of_settings_are_literals_though_they_are_words() {
        shows("SET GLOBAL x = hunter2", "SET GLOBAL x = ?");
        shows("SET PASSWORD FOR a = hunter2; SELECT 1", "SET PASSWORD FOR a = ?; SELECT ?");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_string_is_shown(
            before in "[ a-z0-9,=(`\\n#*/'\"-]{0,12}",
            mark in "['\"]",
            after in "\\PC{0,12}",
        ) {
            let _ = scrub::mysql(&format!("{before}{after}"));
            let text = format!("SELECT {mark}hunter2canary{mark} {after}");
            prop_assert!(!scrub::mysql(&text).unwrap_or_default().contains("hunter2"));
        }
    }
}
