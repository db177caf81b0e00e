//! Matchers as Alertmanager writes them: `team="db"`, `severity!="info"`, `check=~"pool\\..*"`, `target!~".*/staging.*"`.
//!
//! A label that is not there is the empty text. A regular expression has to match the whole value.

use std::fmt;
use std::str::FromStr;

use regex_lite::Regex;

/// Longest matcher, in bytes.
const MAX_BYTES: usize = 1_024;

/// One condition on one label.
#[derive(Debug, Clone)]
pub struct Matcher {
    label: String,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Is(String),
    IsNot(String),
    Matches(Regex, String),
    MatchesNot(Regex, String),
}

/// Why a text is no matcher.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatcherError {
    /// More than is read.
    #[error("is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// None of the four signs.
    #[error("has none of =, !=, =~ and !~")]
    NoSign,
    /// Before the sign.
    #[error("`{0}` is no label's name: letters, digits, `_`, `.`, `-` and `/`")]
    Label(String),
    /// After the sign.
    #[error("the value begins with a quote and does not end with one, or has quotes within")]
    Quotes,
    /// After `=~` or `!~`.
    #[error("`{0}` is no regular expression")]
    Expression(String),
}

impl MatcherError {
    /// What to write instead.
    pub const fn advice() -> &'static str {
        r#"write 'severity="critical"', 'check=~"pool\\..*"', 'env!="staging"' or 'target!~".*test.*"'"#
    }
}

impl Matcher {
    /// The label that it is about.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whether a label of this value meets it; the empty text where there is no such label.
    pub fn matches(&self, value: &str) -> bool {
        match &self.test {
            Test::Is(wanted) => value == wanted,
            Test::IsNot(unwanted) => value != unwanted,
            Test::Matches(expression, _) => expression.is_match(value),
            Test::MatchesNot(expression, _) => !expression.is_match(value),
        }
    }
}

/// Two are alike when they say the same.
impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Matcher {}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, value) = match &self.test {
            Test::Is(value) => ("=", value),
            Test::IsNot(value) => ("!=", value),
            Test::Matches(_, text) => ("=~", text),
            Test::MatchesNot(_, text) => ("!~", text),
        };
        let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        write!(f, "{}{sign}\"{escaped}\"", self.label)
    }
}

impl FromStr for Matcher {
    type Err = MatcherError;

    fn from_str(text: &str) -> Result<Self, MatcherError> {
        if text.len() > MAX_BYTES {
            return Err(MatcherError::TooLong);
        }
        let at = text.find(['=', '!']).ok_or(MatcherError::NoSign)?;
        let (label, rest) = (text[..at].trim(), &text[at..]);
        let sign = ["=~", "!~", "!=", "="].into_iter().find(|it| rest.starts_with(it)).ok_or(MatcherError::NoSign)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
        if label.is_empty() || !label.chars().all(is_plain) {
            return Err(MatcherError::Label(label.to_owned()));
        }
        let value = unquoted(rest[sign.len()..].trim())?;
        let expression = || {
            // By itself first: a closing bracket too many would end the group that is made around it, so that `a|b` as a whole
            // has to be the whole value.
            let whole = Regex::new(&value).and_then(|_| Regex::new(&format!("^(?s:{value})$")));
            whole.map_err(|_| MatcherError::Expression(value.clone()))
        };
        let test = match sign {
            "=~" => Test::Matches(expression()?, value),
            "!~" => Test::MatchesNot(expression()?, value),
            "!=" => Test::IsNot(value),
            _ => Test::Is(value),
        };
        Ok(Self { label: label.to_owned(), test })
    }
}

/// A value in quotes, with `\"`, `\\` and `\n` in it, or a bare one.
fn unquoted(text: &str) -> Result<String, MatcherError> {
    let Some(rest) = text.strip_prefix('"') else {
        return if text.contains('"') { Err(MatcherError::Quotes) } else { Ok(text.to_owned()) };
    };
    let mut value = String::new();
    let mut characters = rest.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => return if characters.next().is_none() { Ok(value) } else { Err(MatcherError::Quotes) },
            '\\' => match characters.next() {
                Some('n') => value.push('\n'),
                Some(c @ ('"' | '\\')) => value.push(c),
                // As Prometheus' own users write them: the backslash of a regular expression.
                Some(c) => value.extend(['\\', c]),
                None => return Err(MatcherError::Quotes),
            },
            c => value.push(c),
        }
    }
    Err(MatcherError::Quotes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(text: &str) -> Matcher {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn each_sign_means_what_alertmanager_means() {
        for (text, value, is_met) in [
            (r#"team="db""#, "db", true),
            (r#"team="db""#, "DB", false),
            (r#"team!="db""#, "", true),
            (r#"team="""#, "", true),
            (r#" team = db "#, "db", true),
            (r#"check=~"pool\..*""#, "pool.leak", true),
            (r#"check=~"pool\\..*""#, "pool.leak", true),
            (r#"check=~"pool\..*""#, "my pool.leak", false),
            (r#"check=~"db|pool""#, "pool.leak", false),
            (r#"check!~"db|pool""#, "pool", false),
            (r#"check!~"db|pool""#, "http", true),
            (r#"said="a \"b\" \\ c""#, "a \"b\" \\ c", true),
            (r#"lines=~"a.b""#, "a\nb", true),
        ] {
            assert_eq!(matcher(text).matches(value), is_met, "{text} of {value:?}");
        }
    }

    #[test]
    fn what_is_no_matcher_says_why() {
        for (text, why) in [
            ("severity", MatcherError::NoSign),
            ("severity!critical", MatcherError::NoSign),
            ("=critical", MatcherError::Label(String::new())),
            ("ser verity=x", MatcherError::Label("ser verity".into())),
            (r#"a="b"#, MatcherError::Quotes),
            (r#"a="b"c"#, MatcherError::Quotes),
            (r#"a=b""#, MatcherError::Quotes),
            (r#"a=~"(""#, MatcherError::Expression("(".into())),
            (r#"a=~"b)|(?:c""#, MatcherError::Expression("b)|(?:c".into())),
        ] {
            assert_eq!(text.parse::<Matcher>().map(|it| it.to_string()), Err(why), "{text}");
        }
        assert_eq!("a".repeat(MAX_BYTES + 1).parse::<Matcher>(), Err(MatcherError::TooLong));
    }

    proptest! {
        #[test]
        fn what_it_says_is_read_as_the_same(label in "[a-z_][a-z0-9_./-]{0,8}", value in "\\PC{0,20}", not: bool) {
            let value = value.replace('\\', "");
            let sign = if not { "!=" } else { "=" };
            let text = format!("{label}{sign}\"{}\"", value.replace('"', "\\\""));
            let it: Matcher = text.parse().expect("a matcher");
            prop_assert_eq!(it.matches(&value), !not);
            prop_assert_eq!(it.to_string().parse::<Matcher>().expect("again"), it);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            if let Ok(it) = text.parse::<Matcher>() {
                let _ = it.matches(&text);
            }
        }
    }
}
