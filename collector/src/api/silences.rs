//! Silences: `GET /v1/silences`, `POST /v1/silences`, `POST /v1/silences/{id}/end`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, Uri};
use axum::{Extension, Json};
use serde::Deserialize;
use tickbird_shared::Timestamp;
use ulid::Ulid;

use super::access::Caller;
use super::page::{Document, Page};
use super::query::Query;
use super::{Shared, unavailable, unreadable};
use crate::alert::{Silence, SilenceDocument};
use crate::ledger::Silencing;
use crate::problem::Problem;
use crate::store::{MAX_SILENCES, Rows, SilenceRow};

/// Most bytes of a body.
const MAX_BODY: usize = 128 << 10;
/// Most bytes of a name or a reason.
const MAX_TEXT: usize = 1_024;
/// Most matchers of one silence; each is bounded by itself.
const MAX_MATCHERS: usize = 64;

/// What somebody asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    matchers: Vec<String>,
    reason: String,
    /// The name of the token, unless it is given.
    author: Option<String>,
    /// Now, unless it is given.
    starts_at: Option<Timestamp>,
    ends_at: Timestamp,
}

/// Bounds the body of a request.
pub(super) fn body_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(MAX_BODY)
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Document, Problem> {
    let mut query = Query::parse(&uri)?;
    let ended = query.value::<bool>("ended")?.unwrap_or(false);
    let page = Page::read(&mut query, "silences", &caller.tenant, &[ended.then_some("ended")])?;
    query.finish()?;
    let now = (shared.context.clock)();
    let (before, limit) = (page.after().map(str::to_owned), page.ask());
    let read = move |rows: Rows<'_>| {
        let found = rows.silences(&caller.tenant, ended, now, before.as_deref(), limit)?;
        Ok(page.document(&found, |row: &SilenceRow| row.id.clone(), |row| SilenceDocument::new(row, now)))
    };
    shared.context.readers.read(read).await.map_err(|error| unreadable(&error))
}

pub(super) async fn begin(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    body: Bytes,
) -> Result<(StatusCode, Json<serde_json::Value>), Problem> {
    Query::parse(&uri)?.finish()?;
    let now = (shared.context.clock)();
    let row = asked(&body, caller, now)?;
    let document = serde_json::json!(SilenceDocument::new(&row, now));
    if !shared.context.ledger.silence(Silencing::Begin(Box::new(row))).await.map_err(unavailable)? {
        let detail = format!("there are {MAX_SILENCES} silences that have not ended, and may not be more");
        return Err(Problem::new(StatusCode::CONFLICT, "too_many_silences", detail).advise("end some of them"));
    }
    Ok((StatusCode::CREATED, Json(document)))
}

/// A silence that would do.
fn asked(body: &[u8], caller: Caller, now: Timestamp) -> Result<SilenceRow, Problem> {
    let unfit = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "silence", detail);
    let asked: Asked =
        serde_json::from_slice(body).map_err(|error| unfit(format!("the body is no silence: {error}"))).map_err(
            |it| it.advise(r#"send {"matchers": ["team=\"db\""], "reason": "…", "ends_at": "2026-12-01T08:00:00Z"}"#),
        )?;
    if asked.matchers.len() > MAX_MATCHERS {
        return Err(unfit(format!("it has {} matchers, and may have {MAX_MATCHERS}", asked.matchers.len())));
    }
    let author = asked.author.unwrap_or(caller.name);
    for (name, text) in [("author", &author), ("reason", &asked.reason)] {
        if text.trim().is_empty() || text.len() > MAX_TEXT {
            return Err(unfit(format!("`{name}` has 1 to {MAX_TEXT} bytes")));
        }
    }
    let row = SilenceRow {
        tenant: caller.tenant,
        id: format!("sil_{}", Ulid::new()),
        matchers: asked.matchers,
        author,
        reason: asked.reason,
        created_at: now,
        starts_at: asked.starts_at.unwrap_or(now),
        ends_at: asked.ends_at,
        over_at: None,
    };
    match Silence::asked(row) {
        Ok(silence) => Ok(silence.row().clone()),
        Err(error) => Err(unfit(error.to_string()).advise(error.advice())),
    }
}

pub(super) async fn end(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Path(silence): Path<String>,
    uri: Uri,
) -> Result<Json<serde_json::Value>, Problem> {
    Query::parse(&uri)?.finish()?;
    let answer = serde_json::json!({ "id": silence, "ended": true });
    let end = Silencing::End { tenant: caller.tenant, silence };
    if shared.context.ledger.silence(end).await.map_err(unavailable)? {
        Ok(Json(answer))
    } else {
        let detail = "no silence of this id holds or is to come";
        Err(Problem::new(StatusCode::NOT_FOUND, "no_such_silence", detail))
    }
}
