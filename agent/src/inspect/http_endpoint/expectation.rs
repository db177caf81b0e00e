//! Which endpoint is asked and what is expected of its answer, as an operator writes it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use regex_lite::Regex;
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use super::Assertion;
use crate::inspect::tls_certificate;
use crate::scrub;

/// Shorter, and a healthy endpoint would miss it; longer, and a dead one would be told of too late.
const MIN_TIMEOUT: Duration = Duration::from_millis(50);
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// Most bytes that are shown of an assertion.
const MAX_ASSERTION: usize = 120;

/// One `[[endpoint]]` section as it was written.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http` or `https`, IPv6 addresses in brackets, no credentials.
    pub url: String,
    /// Expected statuses: `200-299, 401`. Default 200 to 399: a redirect is an answer and is not followed.
    pub status: Option<String>,
    /// A regular expression that the body must match somewhere.
    pub body_matches: Option<String>,
    /// JSON pointers (RFC 6901) and the values that must stand there.
    pub json: Vec<(String, Value)>,
    /// For the whole request, name and handshake included.
    pub timeout: Duration,
    /// PEM file of authorities to trust besides Mozilla's and this host's.
    pub ca_file: Option<PathBuf>,
}

/// One endpoint and what is expected of it: cannot be wrong.
#[derive(Debug, Clone)]
pub struct Config {
    /// What is asked for.
    pub url: EndpointUrl,
    /// For the whole request.
    pub timeout: Duration,
    pub(super) status: StatusRanges,
    pub(super) authorities: Vec<CertificateDer<'static>>,
    pub(super) assertions: Assertions,
}

impl Config {
    /// Reads the section and the file of `ca_file`; gives every mistake in them at once.
    pub fn new(options: Options) -> Result<Self, Vec<ConfigError>> {
        let mut mistakes = Vec::new();
        let mut note = |mistake| mistakes.push(mistake);
        let url = EndpointUrl::parse(&options.url).map_err(&mut note).ok();
        let status = options.status.map_or_else(|| Ok(StatusRanges::usual()), |text| StatusRanges::parse(&text));
        let status = status.map_err(&mut note).ok();
        let pattern = options.body_matches.and_then(|text| body_pattern(&text).map_err(&mut note).ok());
        let json = options.json.into_iter();
        let json = json.filter_map(|(pointer, value)| JsonAssertion::new(&pointer, value).map_err(&mut note).ok());
        let json = json.collect();
        if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&options.timeout) {
            note(ConfigError::Timeout);
        }
        let authorities = options.ca_file.map_or_else(|| Ok(Vec::new()), |path| authorities(&path));
        let authorities = authorities.map_err(&mut note).ok();
        match (url, status, authorities) {
            (Some(url), Some(status), Some(authorities)) if mistakes.is_empty() => Ok(Self {
                url,
                timeout: options.timeout,
                status,
                authorities,
                assertions: Assertions { pattern, json },
            }),
            _ => Err(mistakes),
        }
    }
}

/// What is wrong with an endpoint's configuration. Never shows credentials or a query.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a URL that can be asked.
    #[error("the URL {what}")]
    Url {
        /// `has no host`.
        what: &'static str,
    },
    /// Not a list of statuses.
    #[error("`{text}` is not a list of HTTP statuses")]
    Status {
        /// As written.
        text: String,
    },
    /// Not a regular expression, or one that is too big.
    #[error("the regular expression cannot be read: {what}")]
    Pattern {
        /// What the parser said.
        what: String,
    },
    /// Not a JSON pointer.
    #[error("`{text}` is not a JSON pointer")]
    Pointer {
        /// As written.
        text: String,
    },
    /// Too short to be met or too long to be of use.
    #[error("a timeout is from 50 ms to 300 s")]
    Timeout,
    /// `ca_file` cannot be read.
    #[error("cannot read `{path}`")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ConfigError {
    /// The key of the section that is wrong.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Url { .. } => "url",
            Self::Status { .. } => "status",
            Self::Pattern { .. } => "body_matches",
            Self::Pointer { .. } => "json",
            Self::Timeout => "timeout",
            Self::CaFile { .. } => "ca_file",
        }
    }

    /// What the operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Url { .. } => "write `http://host:port/path` or `https://…`, with an IPv6 address in brackets",
            Self::Status { .. } => "write statuses and ranges with commas: `200-299, 401`",
            Self::Pattern { .. } => "classes, groups and alternatives work; look-around and back-references do not",
            Self::Pointer { .. } => "begin with `/`, as in `/database/ok`; write `~1` for `/` and `~0` for `~`",
            Self::Timeout => "write a duration with its unit: `10s`",
            Self::CaFile { .. } => "name a readable file with PEM certificates",
        }
    }
}

/// An `http` or `https` URL without credentials. `Display` and `Debug` leave the query out.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl {
    pub(super) is_https: bool,
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path_and_query: String,
}

impl EndpointUrl {
    /// Reads a URL.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = |what| ConfigError::Url { what };
        let uri: Uri = text.trim().parse().map_err(|_| wrong("cannot be read"))?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) => return Err(wrong("is neither http nor https")),
            None => return Err(wrong("has no scheme")),
        };
        let authority = uri.authority().ok_or(wrong("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("holds credentials, which a configuration file must not"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("has no host"));
        }
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, digits)) if !digits.contains(']') => {
                digits.parse().ok().filter(|port| *port > 0).ok_or(wrong("has a port that is none"))?
            }
            _ if is_https => 443,
            _ => 80,
        };
        let path_and_query = uri.path_and_query().map_or("/", |it| it.as_str()).to_owned();
        Ok(Self { is_https, host: host.to_owned(), port, path_and_query })
    }

    /// `host`, `host:8000`, `[::1]:8000`: without the port that goes without saying.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.is_https, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        f.write_str(&scrub::url(&format!("{scheme}://{}{path}", self.authority())))
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointUrl({self})")
    }
}

/// Statuses that are as expected: ranges, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StatusRanges(Vec<(u16, u16)>);

impl StatusRanges {
    fn usual() -> Self {
        Self(vec![(200, 399)])
    }

    /// Reads `200-299`, `204`, `200-299, 401`.
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let status = |text: &str| text.trim().parse().ok().filter(|status| (100..=599).contains(status));
        let range = |text: &str| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            Some((status(from)?, status(to)?)).filter(|(from, to)| from <= to)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(Self).ok_or_else(|| ConfigError::Status { text: scrub::text(text, MAX_ASSERTION) })
    }

    /// Whether the status is in one of the ranges.
    pub(super) fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|(from, to)| (*from..=*to).contains(&status))
    }
}

/// In the syntax of Perl, without look-around and back-references.
fn body_pattern(text: &str) -> Result<Regex, ConfigError> {
    let pattern = regex_lite::RegexBuilder::new(text).size_limit(256 * 1024).build();
    pattern.map_err(|error| ConfigError::Pattern { what: scrub::text(&error.to_string(), MAX_ASSERTION) })
}

/// A value that the body, as JSON, must have in one place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JsonAssertion {
    pointer: String,
    expected: Value,
}

impl JsonAssertion {
    /// `pointer` as in RFC 6901; the empty one is the whole body.
    fn new(pointer: &str, expected: Value) -> Result<Self, ConfigError> {
        let escapes = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        if escapes && (pointer.is_empty() || pointer.starts_with('/')) {
            return Ok(Self { pointer: pointer.to_owned(), expected });
        }
        Err(ConfigError::Pointer { text: scrub::text(pointer, MAX_ASSERTION) })
    }
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    tls_certificate::read_file(path).map_err(|source| ConfigError::CaFile { path: path.into(), source })
}

/// What is asserted of a body.
#[derive(Debug, Clone)]
pub(super) struct Assertions {
    pattern: Option<Regex>,
    json: Vec<JsonAssertion>,
}

impl Assertions {
    pub(super) const fn is_empty(&self) -> bool {
        self.pattern.is_none() && self.json.is_empty()
    }

    /// Tries each. `is_whole` is false when the body is longer than what was read of it.
    pub(super) fn check(&self, body: &[u8], is_whole: bool) -> Vec<Assertion> {
        let mut checked = Vec::new();
        if let Some(pattern) = &self.pattern {
            let failed = match pattern.is_match(&String::from_utf8_lossy(body)) {
                true => None,
                false if is_whole => Some("no match"),
                false => Some("no match in the part that was read"),
            };
            checked.push((format!("body matches /{pattern}/"), failed));
        }
        let value: Option<Value> =
            if self.json.is_empty() || !is_whole { None } else { serde_json::from_slice(body).ok() };
        for JsonAssertion { pointer, expected } in &self.json {
            let failed = match &value {
                None if is_whole => Some("not JSON"),
                None => Some("too long to be read as JSON"),
                Some(value) => match value.pointer(pointer) {
                    Some(found) if is_equal(found, expected) => None,
                    found => Some(kind(found)),
                },
            };
            checked.push((format!("{pointer} = {expected}"), failed));
        }
        let assertion = |(asserted, failed): (String, Option<&str>)| Assertion {
            asserted: scrub::text(&asserted, MAX_ASSERTION).into(),
            failed: failed.map(Into::into),
        };
        checked.into_iter().map(assertion).collect()
    }
}

/// `1` and `1.0` are one number to everybody but the parser.
fn is_equal(found: &Value, expected: &Value) -> bool {
    match (found.as_f64(), expected.as_f64()) {
        (Some(found), Some(expected)) => found == expected,
        _ => found == expected,
    }
}

/// What was found, without a text or number of the body.
fn kind(found: Option<&Value>) -> &'static str {
    match found {
        None => "absent",
        Some(Value::Null) => "null",
        Some(Value::Bool(true)) => "true",
        Some(Value::Bool(false)) => "false",
        Some(Value::Number(_)) => "a number",
        Some(Value::String(_)) => "a text",
        Some(Value::Array(_)) => "a list",
        Some(Value::Object(_)) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn urls_are_read_and_shown_without_their_query() {
        for (text, shown, host, port) in [
            ("http://127.0.0.1:8000/health", "http://127.0.0.1:8000/health", "127.0.0.1", 8000),
            ("https://example.org", "https://example.org/", "example.org", 443),
            ("http://[::1]:8000/a?token=hunter2", "http://[::1]:8000/a", "::1", 8000),
            ("https://[::1]/", "https://[::1]/", "::1", 443),
            ("http://h:80/", "http://h/", "h", 80),
        ] {
            let url = EndpointUrl::parse(text).expect(text);
            assert_eq!((url.to_string().as_str(), url.host.as_str(), url.port), (shown, host, port));
            assert!(!format!("{url:?}").contains("hunter2"));
        }
        assert_eq!(EndpointUrl::parse("http://h/a?x=1").expect("a URL").path_and_query, "/a?x=1");
    }

    #[test]
    fn a_wrong_url_is_named_without_being_repeated() {
        for (text, expected) in [
            ("", "the URL cannot be read"),
            ("localhost:8000", "the URL has no scheme"),
            ("/health", "the URL has no scheme"),
            ("ftp://h/", "the URL is neither http nor https"),
            ("http://u:hunter2@h/", "the URL holds credentials, which a configuration file must not"),
            ("http://h:99999/", "the URL has a port that is none"),
            ("http://h:0/", "the URL has a port that is none"),
            ("http://a b/", "the URL cannot be read"),
        ] {
            let error = EndpointUrl::parse(text).expect_err(text);
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn statuses_are_ranges_and_lists() {
        let ranges = StatusRanges::parse("200-299, 401").expect("a list");
        assert!([200, 250, 299, 401].into_iter().all(|status| ranges.contains(status)));
        assert!([199, 300, 400, 402].into_iter().all(|status| !ranges.contains(status)));
        for text in ["", "2xx", "299-200", "99", "600", "200-", "200;201"] {
            let error = StatusRanges::parse(text).expect_err(text);
            assert!(error.to_string().contains("HTTP statuses"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_checked_is_refused_with_advice() {
        assert!(body_pattern("(a").expect_err("open").to_string().contains("cannot be read"));
        assert!(body_pattern("(a{1000}){1000}").is_err(), "too big");
        for pointer in ["database/ok", "/a~2", "/a~"] {
            assert!(JsonAssertion::new(pointer, json!(1)).expect_err(pointer).advice().contains("`/`"));
        }
        let error = authorities(Path::new("/no/such")).expect_err("is not there");
        assert_eq!(error.to_string(), "cannot read `/no/such`");
    }

    fn options(url: &str) -> Options {
        let timeout = Duration::from_secs(10);
        Options { url: url.into(), status: None, body_matches: None, json: Vec::new(), timeout, ca_file: None }
    }

    #[test]
    fn every_mistake_of_a_section_is_told_with_its_key() {
        let section = Options {
            status: Some("2xx".into()),
            body_matches: Some("(".into()),
            json: vec![("a".into(), json!(1)), ("/b".into(), json!(1)), ("c".into(), json!(1))],
            timeout: Duration::ZERO,
            ca_file: Some("/no/such".into()),
            ..options("ftp://h/")
        };
        let mistakes = Config::new(section).expect_err("all of it is wrong");
        let keys: Vec<_> = mistakes.iter().map(ConfigError::key).collect();
        assert_eq!(keys, ["url", "status", "body_matches", "json", "json", "timeout", "ca_file"]);
        let config = Config::new(options("http://h/")).expect("all of it is right");
        assert!(config.assertions.is_empty() && config.status.contains(302) && !config.status.contains(400));
    }

    #[track_caller]
    fn found(pointer: &str, expected: Value, body: &str, is_whole: bool) -> Option<String> {
        let json = vec![JsonAssertion::new(pointer, expected).expect("a pointer")];
        let checked = Assertions { pattern: None, json }.check(body.as_bytes(), is_whole);
        checked[0].failed.as_deref().map(ToOwned::to_owned)
    }

    #[test]
    fn assertions_say_what_was_found_without_the_text_of_the_body() {
        let body = r#"{"database":{"ok":true,"lag":1.0,"by":"hunter2"},"a/b":[null]}"#;
        assert_eq!(found("/database/ok", json!(true), body, true), None);
        assert_eq!(found("/database/lag", json!(1), body, true), None);
        assert_eq!(found("/a~1b/0", Value::Null, body, true), None);
        assert_eq!(found("/database/ok", json!(false), body, true).as_deref(), Some("true"));
        assert_eq!(found("/database/by", json!("x"), body, true).as_deref(), Some("a text"));
        assert_eq!(found("/cache/ok", json!(true), body, true).as_deref(), Some("absent"));
        assert_eq!(found("/x", json!(1), "<html>", true).as_deref(), Some("not JSON"));
        assert_eq!(found("/x", json!(1), "{\"x\":1", false).as_deref(), Some("too long to be read as JSON"));
        let pattern = Some(body_pattern("^ok$").expect("a pattern"));
        let checked = Assertions { pattern, json: Vec::new() }.check(b"hunter2", true);
        assert_eq!(&*checked[0].asserted, "body matches /^ok$/");
        assert_eq!(checked[0].failed.as_deref(), Some("no match"));
    }

    proptest! {
        #[test]
        fn nothing_that_is_written_panics(text in "\\PC{0,30}", body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = EndpointUrl::parse(&text);
            let _ = EndpointUrl::parse(&format!("http://{text}"));
            let _ = StatusRanges::parse(&text);
            let pattern = body_pattern(&text).ok();
            let json = JsonAssertion::new(&text, json!(1)).into_iter().collect();
            for assertion in (Assertions { pattern, json }).check(&body, true) {
                prop_assert!(assertion.asserted.len() <= MAX_ASSERTION);
            }
        }
    }
}
