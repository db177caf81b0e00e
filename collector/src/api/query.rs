//! The query of a request, read parameter by parameter; what nobody asked for is an error.

use std::str::FromStr;

use axum::http::{StatusCode, Uri};
use tickbird_shared::protocol::MAX_KEY_BYTES;

use crate::problem::Problem;

/// Most parameters of one request; no route knows as many.
const MAX_PARAMETERS: usize = 32;

/// Parameters that were not read yet, and the names of those that could be.
#[derive(Debug)]
pub(super) struct Query {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Query {
    /// The query of `uri`.
    pub(super) fn parse(uri: &Uri) -> Result<Self, Problem> {
        let malformed = || bad("malformed_query", "the query cannot be read".into());
        let axum::extract::Query(left) =
            axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|_| malformed())?;
        if left.len() > MAX_PARAMETERS { Err(malformed()) } else { Ok(Self { left, known: Vec::new() }) }
    }

    /// The value of `name`, as it is.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        self.known.push(name);
        let Some(at) = self.left.iter().position(|(it, _)| it == name) else { return Ok(None) };
        let (_, value) = self.left.swap_remove(at);
        if self.left.iter().any(|(it, _)| it == name) {
            return Err(bad("bad_parameter", format!("`{name}` is there more than once")).with("parameter", name));
        }
        if value.is_empty() || value.len() > MAX_KEY_BYTES {
            let detail = format!("`{name}` has 1 to {MAX_KEY_BYTES} bytes");
            return Err(bad("bad_parameter", detail).with("parameter", name));
        }
        Ok(Some(value))
    }

    /// The value of `name`, read as a `T`, whose error says what would do.
    pub(super) fn value<T>(&mut self, name: &'static str) -> Result<Option<T>, Problem>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let read = |text: String| {
            text.parse().map_err(|error| bad("bad_parameter", format!("`{name}`: {error}")).with("parameter", name))
        };
        self.text(name)?.map(read).transpose()
    }

    /// Refuses what was not read.
    pub(super) fn finish(self) -> Result<(), Problem> {
        let Some((name, _)) = self.left.first() else { return Ok(()) };
        let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
        Err(bad("unknown_parameter", format!("`{shown}` is not a parameter of this path")).with("known", self.known))
    }
}

fn bad(code: &'static str, detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tickbird_shared::Severity;

    fn query(text: &str) -> Query {
        Query::parse(&format!("/v1/incidents?{text}").parse().expect("a URI")).expect("a query")
    }

    #[test]
    fn a_value_is_read_once_and_what_is_left_is_refused_by_name() {
        let mut it = query("severity=critical&check=pool.leak&lmit=5");
        assert_eq!(it.value::<Severity>("severity").expect("reads"), Some(Severity::Critical));
        assert_eq!(it.text("check").expect("reads").as_deref(), Some("pool.leak"));
        assert_eq!(it.text("agent").expect("reads"), None);
        let problem = it.finish().expect_err("lmit");
        assert_eq!(
            (problem.code, problem.detail.as_str()),
            ("unknown_parameter", "`lmit` is not a parameter of this path")
        );
        assert_eq!(problem.members["known"], serde_json::json!(["severity", "check", "agent"]));
    }

    #[test]
    fn a_wrong_word_says_which_would_do() {
        let problem = query("severity=bad").value::<Severity>("severity").expect_err("bad");
        assert_eq!(problem.detail, "`severity`: it is none of info, warning, critical");
        assert!(query("check=a&check=b").text("check").is_err_and(|it| it.detail.contains("more than once")));
        assert!(query("check=").text("check").is_err());
    }

    proptest! {
        #[test]
        fn no_query_panics(text in "[!-~]{0,80}") {
            if let Ok(uri) = format!("/x?{text}").parse::<Uri>() && let Ok(mut query) = Query::parse(&uri) {
                let _ = query.value::<u32>("limit");
                let _ = query.finish();
            }
        }
    }
}
