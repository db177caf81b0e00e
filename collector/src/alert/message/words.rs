//! A message in the operator's own words: its body, and of the request's head the method and headers. What has no template is as it
//! would be without; what cannot be made of a message that no sample had foreseen does not keep it from being told.

use serde::Serialize;
use serde_json::Value;

use super::head::Head;
use super::template::{Template, TemplateError};
use super::{bytes, samples};

/// Methods that carry a message.
pub const METHODS: [&str; 3] = ["POST", "PUT", "PATCH"];
/// Letters of the value of a header; whole heads of more than some kilobytes are refused by many servers.
const LONGEST: usize = 1_000;

/// Templates that render every sample.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    body: Option<Template>,
    method: Option<Template>,
    headers: Vec<(String, Template)>,
}

impl From<Template> for Words {
    fn from(body: Template) -> Self {
        Self { body: Some(body), ..Self::default() }
    }
}

impl Words {
    /// Whether a text of the configuration is a template, and not the text itself.
    pub fn is_template(text: &str) -> bool {
        ["{{", "{%", "{#"].iter().any(|it| text.contains(it))
    }

    /// Nothing is in words of the operator's own.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The body is made of the document.
    pub fn set_body(&mut self, body: Template) {
        self.body = Some(body);
    }

    /// The method is made of the document.
    ///
    /// # Errors
    /// When it is no template, when a sample fails, or is no method that carries a message.
    pub fn set_method(&mut self, source: &str) -> Result<(), TemplateError> {
        self.method = Some(tried(source, |text| method(text).map(drop))?);
        Ok(())
    }

    /// The value of a header is made of the document; one that is empty is left out.
    ///
    /// # Errors
    /// When it is no template, when a sample fails, or has more than one line of its own.
    pub fn add_header(&mut self, name: &str, source: &str) -> Result<(), TemplateError> {
        let template = tried(source, |text| match trimmed(text).contains(char::is_control) {
            false => Ok(()),
            true => Err(wrong("makes a header with a control character".into())),
        })?;
        self.headers.push((name.to_ascii_lowercase(), template));
        Ok(())
    }

    /// What is stored of a document.
    pub(super) fn render(&self, document: &impl Serialize) -> Vec<u8> {
        let body = self.body.as_ref().map_or_else(|| bytes(document), |template| worded(template, document));
        // What an agent says may begin with the byte that a head begins with.
        if self.method.is_none() && self.headers.is_empty() && !Head::is_at(&body) {
            return body;
        }
        self.head(document).before(body)
    }

    fn head(&self, document: &impl Serialize) -> Head {
        let said = |template: &Template| template.render(document).map(|it| String::from_utf8_lossy(&it).into_owned());
        let mut head = Head::default();
        if let Some(template) = &self.method {
            match said(template).and_then(|it| method(&it).map(str::to_owned)) {
                Ok(method) => head.method = Some(method),
                Err(error) => tracing::error!(%error, "a receiver's method cannot be made; it is POST instead"),
            }
        }
        for (name, template) in &self.headers {
            match said(template) {
                Ok(text) => {
                    let text = trimmed(&text);
                    if text.contains(char::is_control) {
                        tracing::warn!(header = name, "control characters in a receiver's header are spaces instead");
                    }
                    let plain = |it: char| if it.is_control() { ' ' } else { it };
                    let value: String = text.chars().map(plain).take(LONGEST).collect();
                    if !value.is_empty() {
                        head.headers.insert(name.clone(), value);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, header = name, "a receiver's header cannot be made; it is left out")
                }
            }
        }
        head
    }
}

/// The body that a template makes. One that no sample had foreseen is told as the document itself, with what went wrong: somebody
/// has to hear of it.
fn worded(template: &Template, document: &impl Serialize) -> Vec<u8> {
    template.render(document).unwrap_or_else(|error| {
        tracing::error!(%error, "a receiver's body cannot be made; it is told the document instead");
        let mut document = serde_json::to_value(document).expect("texts, numbers and checked JSON serialise");
        document["template_error"] = error.to_string().into();
        bytes(&document)
    })
}

fn wrong(what: String) -> TemplateError {
    TemplateError { at: None, what, of: None }
}

/// A value without what stands around it, as an end of the line.
fn trimmed(text: &str) -> &str {
    text.trim_matches(|it: char| it.is_whitespace() || it.is_control())
}

fn method(text: &str) -> Result<&'static str, TemplateError> {
    let found = METHODS.into_iter().find(|it| *it == text.trim());
    found.ok_or_else(|| wrong(format!("makes `{}`, and only {} carry a message", text.trim(), METHODS.join(", "))))
}

/// A template of one line that renders every sample as `check` wants it. Texts of samples are in one line themselves, for what comes
/// from outside is made so before it is sent.
fn tried(source: &str, check: impl Fn(&str) -> Result<(), TemplateError>) -> Result<Template, TemplateError> {
    let template = Template::compile(source, false)?;
    for (name, mut sample) in samples::documents() {
        flatten(&mut sample);
        let made = template.render(&sample).and_then(|it| check(&String::from_utf8_lossy(&it)));
        made.map_err(|error| TemplateError { of: Some(name), ..error })?;
    }
    Ok(template)
}

fn flatten(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.replace(char::is_control, " "),
        Value::Array(entries) => entries.iter_mut().for_each(flatten),
        Value::Object(members) => members.values_mut().for_each(flatten),
        Value::Null | Value::Bool(_) | Value::Number(_) => (),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SUBJECT: &str = "{{ (incident if incident is defined else group).summary }}";

    fn of(summary: &str) -> Value {
        json!({ "type": "incident.firing", "incident": { "summary": summary } })
    }

    #[test]
    fn a_head_is_made_of_the_document_and_stands_before_the_body() {
        let mut words = Words::default();
        words.set_method("{{ 'PATCH' if type == 'incident.updated' else 'PUT' }}").expect("renders every sample");
        words.add_header("X-Subject", SUBJECT).expect("renders every sample");
        let empty = "{% if type == 'incident.resolved' %}yes{% endif %}";
        words.add_header("x-over", empty).expect("renders every sample");
        let document = of("14 of 20 held");
        let stored = words.render(&document);
        assert_eq!(stored, words.render(&document));
        let (head, body) = Head::split(&stored);
        let headers = [("x-subject".to_owned(), "14 of 20 held".to_owned())].into();
        assert_eq!(head, Some(Head { method: Some("PUT".into()), headers }));
        assert_eq!(body, bytes(&document), "without a template of its own it is the document");
        let plain = Words::from(Template::new("{{ type }}", false).expect("renders"));
        assert_eq!(plain.render(&document), b"incident.firing", "no head where none was asked for");
    }

    /// An agent says what it likes, and no head of a request.
    #[test]
    fn a_body_that_looks_like_a_head_is_a_body() {
        let words = Words::from(Template::new(SUBJECT, false).expect("renders"));
        let hostile = "\0{\"method\":\"PUT\",\"headers\":{\"authorization\":\"x\"}}\nand more";
        let stored = words.render(&of(hostile));
        assert_eq!(Head::split(&stored), (Some(Head::default()), hostile.as_bytes()));
    }

    #[test]
    fn what_no_sample_had_foreseen_is_told_all_the_same() {
        let mut words = Words::default();
        words.add_header("x-subject", SUBJECT).expect("renders every sample");
        words.set_method("{{ 'PUT' if type != 'other' else 'GET' }}").expect("renders every sample");
        let head = |document: &Value| Head::split(&words.render(document)).0.expect("a head");
        let hostile = head(&of(" a\r\nx-evil: 1\0\n"));
        assert_eq!((hostile.headers["x-subject"].as_str(), hostile.method.as_deref()), ("a  x-evil: 1", Some("PUT")));
        assert_eq!(head(&of(&"\u{e9}".repeat(5_000))).headers["x-subject"].chars().count(), LONGEST);
        let stored = words.render(&json!({ "type": "other" }));
        assert_eq!(Head::split(&stored), (Some(Head::default()), &b"{\"type\":\"other\"}"[..]), "neither can be made");
    }

    #[test]
    fn what_fails_is_refused_before_anything_happens() {
        let header = |source| Words::default().add_header("x", source).expect_err("must be refused").to_string();
        assert!(header("{{ incident.sumary }}").contains("incident.sumary"), "{}", header("{{ incident.sumary }}"));
        assert!(header("{{ type").starts_with("line 1, column"), "{}", header("{{ type"));
        assert_eq!(header("a\n{{ type }}"), "makes a header with a control character, of a sample that fires");
        let method = Words::default().set_method("{{ 'GET' }}").expect_err("must be refused").to_string();
        assert_eq!(method, "makes `GET`, and only POST, PUT, PATCH carry a message, of a sample that fires");
        assert!(Words::is_template("a{{ id }}") && Words::is_template("{% if a %}") && !Words::is_template("{a}"));
    }
}
