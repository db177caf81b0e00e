//! How an error is answered over HTTP: an RFC 9457 problem document with a stable code, free of internals.

use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

/// One error as a caller sees it. The request id is added by the layer that knows it.
#[derive(Debug, Clone)]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable name that programs branch on: `gap`, `rate_limited`.
    pub code: &'static str,
    /// What happened, to what; one sentence without a full stop.
    pub detail: String,
    /// What the caller can do.
    pub advice: Option<&'static str>,
    /// When to come back, for 429 and 503.
    pub retry_after: Option<Duration>,
    /// Further members of the document, such as `through` of a gap.
    pub members: Map<String, Value>,
}

impl Problem {
    /// A problem without advice.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), advice: None, retry_after: None, members: Map::new() }
    }

    /// Says what the caller can do.
    #[must_use]
    pub const fn advise(mut self, advice: &'static str) -> Self {
        self.advice = Some(advice);
        self
    }

    /// Asks the caller to come back after `wait`, rounded up to whole seconds.
    #[must_use]
    pub const fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Adds a member to the document.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// The document.
    pub fn document(&self) -> Value {
        let mut document = self.members.clone();
        document.insert("type".into(), format!("urn:tickbird:problem:{}", self.code).into());
        document.insert("title".into(), self.status.canonical_reason().unwrap_or("error").into());
        document.insert("status".into(), self.status.as_u16().into());
        document.insert("code".into(), self.code.into());
        document.insert("detail".into(), self.detail.clone().into());
        if let Some(advice) = self.advice {
            document.insert("advice".into(), advice.into());
        }
        Value::Object(document)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.document().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_its_code_its_members_and_whole_seconds() {
        let problem = Problem::new(StatusCode::CONFLICT, "gap", "sequence 9 does not follow 5")
            .with("through", 5)
            .retry_after(Duration::from_millis(1200));
        let document = problem.document();
        assert_eq!(
            (&document["code"], &document["through"], &document["status"]),
            (&"gap".into(), &5.into(), &409.into())
        );
        let response = problem.into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    }
}
