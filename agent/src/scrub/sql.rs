//! Statements without their literals, read by the lexical rules of PostgreSQL or of MySQL.

mod mysql;

use super::{HIDDEN, MAX_INPUT, bounded, escape, prefix, secret};

/// Most bytes of a scrubbed statement.
const MAX_STATEMENT: usize = 400;

/// Longer quoted identifiers name nothing: the server itself cuts names at 63 bytes.
const MAX_IDENTIFIER: usize = 63;

/// A statement with each literal as `$n`, numbered on from its own parameters, without comments, its white space as
/// single spaces, at most 400 bytes.
///
/// Literals are numbers, strings in every spelling of PostgreSQL, and the values of `SET`. Words and "quoted
/// identifiers" are kept. Where a literal does not end (the text was cut), or runs into a word, or ends differently
/// with `standard_conforming_strings` off, the text ends with `…`. `None` when it is not the text of a statement.
pub fn sql(statement: &str) -> Option<String> {
    shown(statement, Dialect::PostgreSql)
}

/// The same for a statement of MySQL or MariaDB, with each literal as `?`. Text in double quotes is a literal, though
/// it may be a name (`ANSI_QUOTES`); where a backslash may or may not escape a quote (`NO_BACKSLASH_ESCAPES`), and at
/// a comment that is executed, the text ends with `…`.
pub fn mysql(statement: &str) -> Option<String> {
    shown(statement, Dialect::MySql)
}

/// Whose lexical rules hold.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Dialect {
    PostgreSql,
    MySql,
}

fn shown(statement: &str, dialect: Dialect) -> Option<String> {
    let Lexed { tokens, cut } = lex(prefix(statement, MAX_INPUT), dialect)?;
    let mut shown = render(&tokens, dialect);
    if cut || statement.len() > MAX_INPUT {
        shown.push('…');
    }
    Some(bounded(shown, MAX_STATEMENT))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'a> {
    /// White space and comments.
    Space,
    Word(&'a str),
    /// With its quotes, and `U&` before them.
    QuotedIdentifier(&'a str),
    Parameter(u32),
    Literal,
    Symbol(char),
}

struct Lexed<'a> {
    tokens: Vec<Token<'a>>,
    /// The text goes on, and nothing of it may be shown.
    cut: bool,
}

/// One token and its length in bytes.
enum Next<'a> {
    Token(Token<'a>, usize),
    Cut,
    NotSql,
}

fn lex(mut rest: &str, dialect: Dialect) -> Option<Lexed<'_>> {
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let next = match dialect {
            Dialect::PostgreSql => next(rest, first),
            Dialect::MySql => mysql::next(rest, first),
        };
        match next {
            Next::Token(token, length) => {
                rest = &rest[length..];
                tokens.push(token);
                // `'it's mine'`: what follows is the inside of a string whose quote was not doubled.
                if token == Token::Literal && rest.starts_with(|c| is_word(c) || "\"`\\".contains(c)) {
                    return Some(Lexed { tokens, cut: true });
                }
            }
            Next::Cut => return Some(Lexed { tokens, cut: true }),
            Next::NotSql => return None,
        }
    }
    Some(Lexed { tokens, cut: false })
}

fn next(rest: &str, first: char) -> Next<'_> {
    let quoted = |end: Option<usize>, token: Token<'static>| match end {
        Some(length) => Next::Token(token, length),
        None => Next::Cut,
    };
    let second = rest[first.len_utf8()..].chars().next();
    match first {
        _ if is_space(first) => Next::Token(Token::Space, run(rest, is_space)),
        '-' if second == Some('-') => Next::Token(Token::Space, run(rest, |c| c != '\n' && c != '\r')),
        '/' if second == Some('*') => quoted(comment(rest), Token::Space),
        '\'' => quoted(string(rest, 0), Token::Literal),
        '"' => quoted_identifier(rest, 0),
        '$' => dollar(rest),
        '0'..='9' => Next::Token(Token::Literal, number(rest)),
        '.' if second.is_some_and(|c| c.is_ascii_digit()) => Next::Token(Token::Literal, number(rest)),
        'e' | 'E' if second == Some('\'') => quoted(escape_string(rest, 1), Token::Literal),
        'b' | 'B' | 'x' | 'X' | 'n' | 'N' if second == Some('\'') => quoted(string(rest, 1), Token::Literal),
        'u' | 'U' if rest[1..].starts_with("&'") => quoted(string(rest, 2), Token::Literal),
        'u' | 'U' if rest[1..].starts_with("&\"") => quoted_identifier(rest, 2),
        _ if is_word(first) => {
            let length = run(rest, is_word);
            Next::Token(Token::Word(&rest[..length]), length)
        }
        _ if "+-*/<>=~!@#%^&|?`()[]{},;:.".contains(first) => Next::Token(Token::Symbol(first), 1),
        _ => Next::NotSql,
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

/// The server takes every character beyond ASCII for a letter; typographic quotes are none here, since what they
/// enclose was meant as a string.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// Length of the run of such characters at the beginning.
fn run(rest: &str, belongs: impl Fn(char) -> bool) -> usize {
    rest.find(|c| !belongs(c)).unwrap_or(rest.len())
}

/// Length of a comment, those inside it included; `None` when it does not end.
fn comment(rest: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let step = rest[at..].find(['/', '*'])?;
        at += step;
        let (change, length) = match rest.get(at..at + 2) {
            Some("/*") => (1, 2),
            Some("*/") => (-1, 2),
            _ => (0, 1),
        };
        depth = depth.checked_add_signed(change)?;
        at += length;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Length of a string whose quote stands at `open`; `None` when its end is not certain. A quote after a backslash
/// ends it or not, depending on `standard_conforming_strings`.
fn string(rest: &str, open: usize) -> Option<usize> {
    string_in('\'', rest, open)
}

/// The same for any quote.
fn string_in(mark: char, rest: &str, open: usize) -> Option<usize> {
    let mut at = open + 1;
    loop {
        let quote = at + rest[at..].find(mark)?;
        let backslashes = rest[at..quote].bytes().rev().take_while(|b| *b == b'\\').count();
        if backslashes % 2 == 1 {
            return None;
        }
        at = quote + 1;
        if !rest[at..].starts_with(mark) {
            return Some(at);
        }
        at += 1;
    }
}

/// The same for `E'…'`, where a backslash always escapes.
fn escape_string(rest: &str, open: usize) -> Option<usize> {
    let mut at = open + 1;
    loop {
        at += rest[at..].find(['\'', '\\'])?;
        let escapes = rest[at..].starts_with('\\');
        at += 1;
        match rest[at..].chars().next() {
            Some(any) if escapes => at += any.len_utf8(),
            Some('\'') => at += 1,
            _ if escapes => return None,
            _ => return Some(at),
        }
    }
}

fn quoted_identifier(rest: &str, open: usize) -> Next<'_> {
    let mut at = open + 1;
    loop {
        let Some(step) = rest[at..].find('"') else { return Next::Cut };
        at += step + 1;
        if !rest[at..].starts_with('"') {
            return Next::Token(Token::QuotedIdentifier(&rest[..at]), at);
        }
        at += 1;
    }
}

/// `$1`, `$$…$$` or `$tag$…$tag$`.
fn dollar(rest: &str) -> Next<'_> {
    let digits = run(&rest[1..], |c| c.is_ascii_digit());
    if digits > 0 {
        // The protocol counts parameters in 16 bits.
        return match rest[1..=digits].parse::<u16>() {
            Ok(number) => Next::Token(Token::Parameter(number.into()), digits + 1),
            Err(_) => Next::NotSql,
        };
    }
    let tag = 1 + run(&rest[1..], |c| is_word(c) && c != '$');
    if !rest[tag..].starts_with('$') {
        return Next::Cut;
    }
    let (delimiter, body) = rest.split_at(tag + 1);
    match body.find(delimiter) {
        Some(end) => Next::Token(Token::Literal, delimiter.len() + end + delimiter.len()),
        None => Next::Cut,
    }
}

/// Length of a number, with everything that is written on to it: `1.5e-3`, `0xff`, `1_000`, also `12abc`.
fn number(rest: &str) -> usize {
    let mut at = 0;
    loop {
        at += run(&rest[at..], |c| is_word(c) || c == '.');
        let exponent = rest[..at].ends_with(['e', 'E']) && rest[at..].starts_with(['+', '-']);
        let continues = rest[at..].chars().nth(1).is_some_and(|c| c.is_ascii_digit());
        if !(exponent && continues) {
            return at;
        }
        at += 1;
    }
}

fn render(tokens: &[Token<'_>], dialect: Dialect) -> String {
    let taken = tokens.iter().filter_map(|it| if let Token::Parameter(n) = it { Some(*n) } else { None }).max();
    let mut placeholder = taken.unwrap_or(0);
    let mark = |number: u32| match dialect {
        Dialect::PostgreSql => format!("${number}"),
        Dialect::MySql => "?".to_owned(),
    };
    let mut shown = String::new();
    let mut setting = Setting::default();
    for token in tokens {
        match setting.step(token) {
            Step::Keep => (),
            Step::Hide => continue,
            Step::HideFromHere => {
                placeholder += 1;
                push_word(&mut shown, token);
                shown.push_str(&format!(" {}", mark(placeholder)));
                continue;
            }
        }
        match token {
            Token::Literal => {
                placeholder += 1;
                shown.push_str(&mark(placeholder));
            }
            token => push_word(&mut shown, token),
        }
    }
    shown.truncate(shown.trim_end().len());
    shown
}

fn push_word(shown: &mut String, token: &Token<'_>) {
    match token {
        Token::Space if shown.is_empty() || shown.ends_with(' ') => (),
        Token::Space => shown.push(' '),
        Token::Word(word) => shown.push_str(word),
        // A string in the wrong quotes is the commonest cause of a failed statement.
        Token::QuotedIdentifier(name) if name.len() > MAX_IDENTIFIER + 4 || is_token(name) => {
            shown.push_str(&format!("\"{HIDDEN}\""));
        }
        Token::QuotedIdentifier(name) => shown.push_str(&escape(name)),
        Token::Parameter(number) => shown.push_str(&format!("${number}")),
        Token::Symbol(symbol) => shown.push(*symbol),
        Token::Literal => (),
    }
}

fn is_token(quoted: &str) -> bool {
    secret::is_token(quoted.trim_start_matches(['u', 'U', '&']).trim_matches('"'))
}

/// `SET app.key = hunter2` and `ALTER ROLE app SET app.key TO hunter2` hold values that are words.
#[derive(Default)]
struct Setting {
    verb: Verb,
    hides: bool,
}

#[derive(Default, PartialEq)]
enum Verb {
    #[default]
    None,
    Alter,
    Set,
    Other,
}

enum Step {
    Keep,
    HideFromHere,
    Hide,
}

impl Setting {
    fn step(&mut self, token: &Token<'_>) -> Step {
        match token {
            Token::Symbol(';') => *self = Self::default(),
            _ if self.hides => return Step::Hide,
            Token::Word(word) if self.verb == Verb::None || self.verb == Verb::Alter => {
                let is = |keyword: &str| word.eq_ignore_ascii_case(keyword);
                self.verb = match self.verb {
                    _ if is("SET") => Verb::Set,
                    Verb::None if is("ALTER") => Verb::Alter,
                    Verb::None => Verb::Other,
                    _ => Verb::Alter,
                };
            }
            Token::Symbol('=') if self.verb == Verb::Set => self.hides = true,
            Token::Word(word) if self.verb == Verb::Set && word.eq_ignore_ascii_case("TO") => self.hides = true,
            _ => (),
        }
        if self.hides { Step::HideFromHere } else { Step::Keep }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn shows(statement: &str, expected: &str) {
        assert_eq!(sql(statement).as_deref(), Some(expected), "{statement}");
    }

    #[test]
    fn literals_go_and_names_stay() {
        shows("SELECT 1", "SELECT $1");
        shows(
            "select * from grants where id = 42 and name='o''brien'",
            "select * from grants where id = $1 and name=$2",
        );
        shows("SELECT -1.5e-3, .5, 0xFF, 1_000, 12abc, 1..10", "SELECT -$1, $2, $3, $4, $5, $6");
        shows("SELECT E'a\\'b', e'\\\\', B'01', x'ff', N'n', U&'\\0061'", "SELECT $1, $2, $3, $4, $5, $6");
        shows("SELECT $$it's$$, $fn$ $$ $fn$ FROM t1", "SELECT $1, $2 FROM t1");
        shows("SELECT 'x'::text, CAST('1' AS int), date'2026-01-01'", "SELECT $1::text, CAST($2 AS int), date$3");
        shows(r#"SELECT "My ""Col""", U&"d\0061t" FROM "T1""#, r#"SELECT "My ""Col""", U&"d\0061t" FROM "T1""#);
        shows("SELECT a$b$c, größe, col2, t.x FROM café", "SELECT a$b$c, größe, col2, t.x FROM café");
        shows("SELECT 'a'\n  'b'", "SELECT $1 $2");
        shows(";", ";");
        shows("", "");
    }

    #[test]
    fn placeholders_are_numbered_on_from_the_statements_own() {
        shows("SELECT $2, 7, $1 WHERE a = 'x'", "SELECT $2, $3, $1 WHERE a = $4");
    }

    #[test]
    fn comments_go_with_what_they_say() {
        shows("/* user=7 /* nested */ secret */SELECT 1 -- key\n, 2", "SELECT $1 , $2");
        shows("SELECT a--b\r+c", "SELECT a +c");
        shows("SELECT 1 /* never ends 'x'", "SELECT $1…");
    }

    #[test]
    fn an_unfinished_literal_ends_the_text() {
        shows("SELECT a FROM t WHERE k = 'secr", "SELECT a FROM t WHERE k =…");
        shows("SELECT E'secr\\", "SELECT…");
        shows("SELECT $$secr", "SELECT…");
        shows("SELECT $tag$secr$tag", "SELECT…");
        shows("SELECT $ta", "SELECT…");
        shows("SELECT \"secr", "SELECT…");
    }

    #[test]
    fn a_string_whose_end_is_not_certain_ends_the_text() {
        shows(r"SELECT 'C:\' OR secret, 'x'", "SELECT…");
        shows(r"SELECT 'a\\', b", "SELECT $1, b");
        shows("SELECT 'it's secret', 'x'", "SELECT $1…");
        shows(r#"SELECT 'a'"secret""#, "SELECT $1…");
    }

    #[test]
    fn values_of_settings_are_literals_though_they_are_words() {
        shows("SET app.key = hunter2", "SET app.key = $1");
        shows("set local app.key to hunter2, x; SELECT 1", "set local app.key to $1; SELECT $2");
        shows("ALTER ROLE app SET app.key TO hunter2", "ALTER ROLE app SET app.key TO $1");
        shows("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE");
        shows("UPDATE t SET a = b WHERE c = d", "UPDATE t SET a = b WHERE c = d");
        shows("ALTER TABLE a RENAME TO b", "ALTER TABLE a RENAME TO b");
    }

    #[test]
    fn what_is_no_statement_is_not_shown() {
        for text in [r"\password x", "SELECT ‘secret’", "SELECT a\u{0}", "SELECT $99999999", "a\u{202e}b"] {
            assert_eq!(sql(text), None, "{text:?}");
        }
    }

    #[test]
    fn quoted_names_that_cannot_be_names_are_hidden() {
        shows(r#"SELECT "eyJhbGciOiJIUzI1NiJ9.e30.x""#, r#"SELECT "***""#);
        shows(&format!(r#"SELECT "{}""#, "x".repeat(70)), r#"SELECT "***""#);
        shows("SELECT \"a\nb\"", "SELECT \"a\\nb\"");
    }

    #[test]
    fn a_statement_is_bounded() {
        let long = sql(&format!("SELECT {}", "a, ".repeat(40_000))).expect("is lexed");
        assert!(long.len() <= MAX_STATEMENT && long.ends_with('…'), "{long}");
    }

    const CANARY: &str = "hunter2canary";

    fn quoted() -> impl Strategy<Value = String> {
        let noise = "[a-z ]{0,4}";
        (0..10, noise, noise).prop_map(|(form, before, after)| match form {
            0 => format!("'{before}{CANARY}{after}'"),
            1 => format!("'{before}''{CANARY}''{after}'"),
            2 => format!("E'{before}\\'{CANARY}\\\\'"),
            3 => format!("$${before}{CANARY}'{after}$$"),
            4 => format!("$q${before}$${CANARY}$ $q$"),
            5 => format!("/* {before} /* x */ {CANARY} */"),
            6 => format!("-- {before}{CANARY}\n"),
            7 => format!("U&'{before}{CANARY}'"),
            8 => format!("77{CANARY}"),
            _ => format!("'{before}\\' {CANARY}'"),
        })
    }

    proptest! {
        #[test]
        fn a_canary_never_survives_whole_or_cut(
            pieces in proptest::collection::vec((quoted(), "(SELECT|, |=|\\(|\\)| FROM t | AND \"c\" )"), 1..6),
            cut in 0_usize..400,
        ) {
            let statement: String = pieces.iter().map(|(literal, between)| format!("{between} {literal} ")).collect();
            for text in [&*statement, prefix(&statement, cut)] {
                let shown = sql(text).unwrap_or_default();
                for part in [CANARY, "hunt", "canary", "hun"] {
                    prop_assert!(!shown.contains(part), "{text:?} gave {shown:?}");
                }
            }
        }

        #[test]
        fn scrubbing_twice_changes_nothing(pieces in proptest::collection::vec(quoted(), 0..5)) {
            if let Some(once) = sql(&pieces.join(" , ")) && !once.ends_with('…') {
                prop_assert_eq!(sql(&once), Some(once.clone()));
            }
        }
    }
}
