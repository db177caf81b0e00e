//! What every request and answer have in common: an id, headers that keep a browser careful, errors in one form, a count.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::Instrument;
use ulid::Ulid;

use super::Shared;
use crate::problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over from a caller.
const MAX_ID: usize = 64;

/// Nothing here is a page, and nothing may be kept.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

/// Requests by route and status.
#[derive(Debug, Default)]
pub(super) struct Counters {
    requests: Family<RequestLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// As registered, so that a caller cannot make new series.
    path: String,
    status: u16,
}

impl Counters {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("tickbird_api_requests", "Requests of people, by route and status", self.requests.clone());
    }
}

/// Leaves the name of the route in the answer, for the count.
pub(super) async fn name_route(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(path) = path {
        response.extensions_mut().insert(path);
    }
    response
}

/// Gives a request its id and its answer what every answer has.
pub(super) async fn carry(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let id = accepted(&request).unwrap_or_else(|| generated(&shared));
    let span = tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());
    let mut response = next.run(request).instrument(span).await;
    let path = response.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    shared.requests.requests.get_or_create(&RequestLabels { path, status: response.status().as_u16() }).inc();

    // A health report has a form of its own, and says more than a problem could.
    let is_report = response.headers().get(header::CONTENT_TYPE).is_some_and(|it| it == "application/json");
    if (response.status().is_client_error() || response.status().is_server_error()) && !is_report {
        response = as_problem(response, &id);
    }
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers.insert(REQUEST_ID, HeaderValue::from_str(&id).expect("an id is letters, digits, `-`, `_` and `.`"));
    response
}

/// An error in the one form of errors, whoever made it, with the request's id.
fn as_problem(mut response: Response, id: &str) -> Response {
    let status = response.status();
    let problem = response.extensions_mut().remove::<Problem>().unwrap_or_else(|| unnamed(status));
    let mut named = problem.with("request_id", id).into_response();
    // Such as Allow and WWW-Authenticate; what describes the body is the new body's.
    for (name, value) in response.headers() {
        if !named.headers().contains_key(name) && *name != header::CONTENT_LENGTH {
            named.headers_mut().append(name, value.clone());
        }
    }
    named
}

/// An error of the HTTP library itself.
fn unnamed(status: StatusCode) -> Problem {
    let (code, detail) = match status {
        StatusCode::PAYLOAD_TOO_LARGE => ("too_large", "the body is larger than this path takes"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ("unsupported_media_type", "the body is not of a type that this path takes")
        }
        StatusCode::REQUEST_TIMEOUT => ("too_slow", "the request did not come in time"),
        _ if status.is_client_error() => ("malformed", "the request cannot be read"),
        _ => ("failed", "the request could not be answered"),
    };
    let problem = Problem::new(status, code, detail);
    if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(Duration::from_secs(2)) } else { problem }
}

/// The caller's id, when it may be written into a header and a log as it is.
fn accepted(request: &Request<Body>) -> Option<String> {
    let id = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!id.is_empty() && id.len() <= MAX_ID && id.bytes().all(fits)).then(|| id.to_owned())
}

fn generated(shared: &Shared) -> String {
    let millis = (shared.context.clock)().as_millisecond();
    Ulid::from_parts(u64::try_from(millis).unwrap_or_default(), rand::random()).to_string()
}
