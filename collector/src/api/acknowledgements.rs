//! Who has an incident: `POST` and `DELETE /v1/incidents/{id}/acknowledgement`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, Uri};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use tickbird_shared::Timestamp;
use tickbird_shared::units::parse_duration;
use ulid::Ulid;

use super::access::Caller;
use super::query::Query;
use super::{Shared, unavailable};
use crate::alert::{AcknowledgementDocument, AcknowledgementError, Ask};
use crate::ledger::Acknowledging;
use crate::problem::Problem;

/// Most bytes of a body.
const MAX_BODY: usize = 16 << 10;
/// Most bytes of a name or a note.
const MAX_TEXT: usize = 1_024;

/// What somebody asks for; an empty body is an empty object.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// The name of the token, unless it is given.
    by: Option<String>,
    note: Option<String>,
    until: Option<Timestamp>,
    /// In place of `until`.
    r#for: Option<String>,
}

/// Bounds the body of a request.
pub(super) fn body_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(MAX_BODY)
}

pub(super) async fn begin(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Path(incident): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Problem> {
    Query::parse(&uri)?.finish()?;
    let ask = asked(&body, caller, incident, (shared.context.clock)())?;
    let done = shared.context.ledger.acknowledge(Acknowledging::Begin(Box::new(ask))).await.map_err(unavailable)?;
    let row = done.map_err(refused)?;
    Ok((StatusCode::CREATED, Json(json!(AcknowledgementDocument::from(&row)))))
}

fn asked(body: &[u8], caller: Caller, incident: String, now: Timestamp) -> Result<Ask, Problem> {
    let unfit = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "acknowledgement", detail);
    let empty = body.iter().all(u8::is_ascii_whitespace);
    let asked: Asked = if empty { Ok(Asked::default()) } else { serde_json::from_slice(body) }
        .map_err(|error| unfit(format!("the body is no acknowledgement: {error}")))
        .map_err(|it| {
            it.advise(r#"send {"by": "anna", "for": "4h", "note": "…"}, or "until": "2026-12-01T08:00:00Z""#)
        })?;
    let owner = asked.by.unwrap_or(caller.name);
    for (name, text) in [("by", Some(&owner)), ("note", asked.note.as_ref())] {
        if text.is_some_and(|it| it.trim().is_empty() || it.len() > MAX_TEXT) {
            return Err(unfit(format!("`{name}` has 1 to {MAX_TEXT} bytes")));
        }
    }
    let ends_at = match (asked.until, asked.r#for.as_deref().map(parse_duration)) {
        (Some(_), Some(_)) => return Err(unfit("`until` and `for` are two words for one thing".into())),
        (_, Some(Err(error))) => return Err(unfit(format!("`for`: {error}"))),
        (Some(until), None) => until,
        (None, length) => {
            let length = length.and_then(Result::ok).unwrap_or(Ask::LENGTH);
            now.saturating_add(length).unwrap_or(Timestamp::MAX)
        }
    };
    Ok(Ask { id: Ulid::new(), tenant: caller.tenant, incident, owner, note: asked.note, ends_at })
}

pub(super) async fn end(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Path(incident): Path<String>,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    Query::parse(&uri)?.finish()?;
    let end = Acknowledging::End { tenant: caller.tenant, incident, by: caller.name };
    let done = shared.context.ledger.acknowledge(end).await.map_err(unavailable)?;
    let row = done.map_err(refused)?;
    Ok(Json(json!({ "id": row.id, "incident": row.incident, "ended": true })))
}

fn refused(error: AcknowledgementError) -> Problem {
    let (status, code) = match error {
        AcknowledgementError::Unknown => (StatusCode::NOT_FOUND, "no_such_incident"),
        AcknowledgementError::NoneHolds => (StatusCode::NOT_FOUND, "no_such_acknowledgement"),
        AcknowledgementError::NotFiring => (StatusCode::CONFLICT, "incident_is_over"),
        AcknowledgementError::Over => (StatusCode::UNPROCESSABLE_ENTITY, "acknowledgement"),
    };
    let problem = Problem::new(status, code, error.to_string());
    match error.advice() {
        Some(advice) => problem.advise(advice),
        None => problem,
    }
}
