//! A body in the operator's own words, over the document that is told without one. It is rendered when a message is decided, like any
//! other form, so that each attempt has the same bytes.

use std::fmt;
use std::io;
use std::sync::Arc;

use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde::Serialize;
use serde_json::Value;

use super::samples;

/// What a body may cost to make: some hundred thousand steps tell of a hundred incidents with all their evidence.
const FUEL: u64 = 2_000_000;
/// Macros within macros, and blocks within blocks.
const DEEPEST: usize = 64;
/// No receiver takes more.
const LARGEST: usize = 1 << 20;
const NAME: &str = "body";

/// A template that renders every sample.
#[derive(Clone)]
pub struct Template {
    source: Arc<str>,
    environment: Arc<Environment<'static>>,
    is_json: bool,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("source", &self.source).field("is_json", &self.is_json).finish_non_exhaustive()
    }
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        (&self.source, self.is_json) == (&other.source, other.is_json)
    }
}

impl Eq for Template {}

/// Why a body cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}{}", place(*.at), of.map(|it| format!(", of {it}")).unwrap_or_default())]
pub struct TemplateError {
    /// Line and column of the template, where they are known.
    pub at: Option<(usize, usize)>,
    /// What is wrong there.
    pub what: String,
    /// The sample that it fails with.
    pub of: Option<&'static str>,
}

impl TemplateError {
    /// What the operator can do.
    pub const fn advice(&self) -> &'static str {
        if self.of.is_some() {
            "write `| default(\"\")` behind what need not be there, and `| tojson` behind what goes into JSON"
        } else {
            "write it as Jinja: {{ incident.summary | tojson }}"
        }
    }
}

fn place(at: Option<(usize, usize)>) -> String {
    at.map(|(line, column)| format!("line {line}, column {column}: ")).unwrap_or_default()
}

impl Template {
    /// A template that makes JSON, or any text.
    ///
    /// # Errors
    /// When it is not one, when a sample of what can be told fails, or is not JSON where it must be.
    pub fn new(source: &str, is_json: bool) -> Result<Self, TemplateError> {
        let it = Self::compile(source, is_json)?;
        for (name, sample) in samples::documents() {
            it.render(&sample).map_err(|error| TemplateError { of: Some(name), ..error })?;
        }
        Ok(it)
    }

    /// The same, of which no sample was tried.
    pub(super) fn compile(source: &str, is_json: bool) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_debug(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEEPEST);
        // A name that is spelt wrong is told when the configuration is read, not by an empty place in a message.
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| failure(&error, source))?;
        Ok(Self { source: source.into(), environment: Arc::new(environment), is_json })
    }

    /// What it makes of a document.
    pub(super) fn render(&self, document: &impl Serialize) -> Result<Vec<u8>, TemplateError> {
        let other = |what: String| TemplateError { at: None, what, of: None };
        // Evidence is JSON already, which only JSON's own serialiser knows.
        let document = serde_json::to_value(document).map_err(|error| other(error.to_string()))?;
        let template = self.environment.get_template(NAME).map_err(|error| failure(&error, &self.source))?;
        let mut body = Bounded(Vec::new());
        let rendered = template.render_captured_to(minijinja::Value::from(Serde(document)), &mut body);
        match rendered.map(drop) {
            Err(error) if error.kind() == ErrorKind::WriteFailure => {
                return Err(other(format!("makes more than {LARGEST} bytes")));
            }
            rendered => rendered.map_err(|error| failure(&error, &self.source))?,
        }
        if self.is_json {
            let read = serde_json::from_slice::<Value>(&body.0);
            read.map_err(|error| other(format!("makes what is no JSON: {error}")))?;
        }
        Ok(body.0)
    }
}

/// A name that nothing has would be `null` to the engine's own filter, even where undefined names are errors.
fn tojson(
    value: &minijinja::Value,
    indent: Option<minijinja::Value>,
    arguments: Kwargs,
) -> Result<minijinja::Value, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "nothing has this name"));
    }
    minijinja::filters::tojson(value, indent, arguments)
}

fn failure(error: &Error, source: &str) -> TemplateError {
    let begin = error.range().map(|it| it.start).filter(|it| source.is_char_boundary(*it));
    let at = match begin {
        Some(begin) => {
            let before = &source[..begin];
            let line = before.rsplit('\n').next().unwrap_or_default();
            Some((1 + before.matches('\n').count(), 1 + line.chars().count()))
        }
        None => error.line().map(|line| (line, 1)),
    };
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "takes too many steps".to_owned(),
        ErrorKind::UndefinedError => format!("{what}: {}", word(source, error)),
        _ => what,
    };
    TemplateError { at, what, of: None }
}

/// The expression that failed: what stands between the braces around it.
fn word<'s>(source: &'s str, error: &Error) -> &'s str {
    let Some((before, after)) = error.range().and_then(|it| source.split_at_checked(it.start)) else { return "" };
    let begin = before.rfind(['{', '%']).map_or(0, |at| at + 1);
    let end = after.find(['}', '%']).map_or(source.len(), |at| before.len() + at);
    source[begin..end].trim()
}

/// Takes so much and no more.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(source: &str, is_json: bool) -> String {
        Template::new(source, is_json).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_body_is_made_of_the_document_and_is_the_same_each_time() {
        let source = r#"{"title": {{ (incident.summary if incident is defined else group.summary) | tojson }}, "key": {{ id | tojson }}}"#;
        let template = Template::new(source, true).expect("renders every sample");
        let document = json!({ "id": "msg_1", "incident": { "summary": "a \"b\"\n</script> \u{e9}" } });
        let body = template.render(&document).expect("renders");
        assert_eq!(body, template.render(&document).expect("renders"));
        let read: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(read, json!({ "title": "a \"b\"\n</script> \u{e9}", "key": "msg_1" }));
        let text = Template::new("{{ type }} & <{{ id }}>", false).expect("renders");
        let body = text.render(&json!({ "type": "a<b", "id": 1 })).expect("renders");
        assert_eq!(body, b"a<b & <1>", "no text is taken for HTML");
    }

    #[test]
    fn what_fails_is_refused_with_its_place_before_anything_happens() {
        let no_filter = "line 2, column 25: unknown filter: filter tojsn is unknown, of a sample that fires";
        assert_eq!(wrong("{\n  {{ incident.summary | tojsn }}", true), no_filter);
        let unclosed = "line 1, column 7: syntax error: unexpected `}`, expected end of variable block";
        assert_eq!(wrong("{{ id }\n", true), unclosed);
        let no_name = wrong("[\n1,\n {{ incident.sumary | tojson }}]", true);
        assert!(no_name.starts_with("line 3, column 23: undefined value"), "{no_name}");
        assert!(no_name.ends_with("has this name: incident.sumary | tojson, of a sample that fires"), "{no_name}");
        let of_groups = wrong("{{ incident.summary | tojson }}", true);
        assert!(of_groups.ends_with("of a sample of a group"), "{of_groups}");
        let bare =
            wrong("{% if incident is defined %}{{ incident.agent.labels.team | tojson }}{% else %}1{% endif %}", true);
        assert!(bare.contains("incident.agent.labels.team") && bare.contains("of a sample that fires"), "{bare}");
        let unquoted = wrong("{\"id\": {{ id }}}", true);
        assert!(unquoted.contains("makes what is no JSON") && unquoted.contains("column"), "{unquoted}");
        Template::new("{\"id\": {{ id }}}", false).expect("any text will do where it is not called JSON");
    }

    #[test]
    fn steps_depth_and_length_are_bounded() {
        let endless = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
        assert!(wrong(endless, false).contains("takes too many steps"));
        let deep = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
        assert!(wrong(deep, false).contains("recursion"), "{}", wrong(deep, false));
        let long = "{% for a in range(2000) %}{{ \"x\" * 1000 }}{% endfor %}";
        assert!(wrong(long, false).contains("makes more than 1048576 bytes"), "{}", wrong(long, false));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(source in "[{}% a-z.|\"\\n]{0,60}", other in "\\PC{0,40}") {
            let _ = Template::new(&source, true);
            let _ = Template::new(&format!("{{{{ {other} }}}}"), false);
        }
    }
}
