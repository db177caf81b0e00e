//! `/livez`: the process answers. `/readyz`: its parts work. Neither asks for a token, so neither tells where or what.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Shared;
use super::query::Query;
use crate::problem::Problem;
use crate::status::{self, Condition, Report};
use crate::store::Rows;

/// The store answers within a millisecond; who asks seldom waits for more than some seconds.
const STORE_WITHIN: Duration = Duration::from_secs(2);

pub(super) async fn live(State(shared): State<Arc<Shared>>, uri: Uri) -> Result<Json<Value>, Problem> {
    Query::parse(&uri)?.finish()?;
    let context = &shared.context;
    Ok(Json(json!({ "status": "ok", "version": context.version, "started_at": context.started_at })))
}

pub(super) async fn ready(State(shared): State<Arc<Shared>>, uri: Uri) -> Result<Response, Problem> {
    Query::parse(&uri)?.finish()?;
    let context = &shared.context;
    let kept = context.certificates.borrow().clone();
    let strain = context.strain.borrow().clone();
    // A disk that hangs must not keep this answer: whoever asks would take it for a network that does.
    let store = timeout(STORE_WITHIN, context.readers.ping()).await.ok();
    match &store {
        None => tracing::warn!("the store does not answer"),
        Some(Err(error)) => tracing::warn!(%error, "the store cannot be read"),
        Some(Ok(())) => (),
    }
    let receivers = context.notify.receivers();
    let names: Vec<_> = receivers.iter().map(|it| it.name.clone()).collect();
    let count = move |rows: Rows<'_>| names.iter().map(|name| rows.outbox_dead(name)).collect::<Result<Vec<_>, _>>();
    // A store that does not answer is told above, and not waited for again.
    let dead = match &store {
        Some(Ok(())) => timeout(STORE_WITHIN, context.readers.read(count)).await.ok().and_then(Result::ok),
        Some(Err(_)) | None => None,
    };
    let report = Report {
        store: status::store(store.as_ref()),
        disk: status::disk(strain.as_ref()),
        ledger: status::ledger(context.ledger.health()),
        queue: status::queue(context.ledger.queue(), strain.as_ref()),
        receivers: status::receivers(&receivers, dead.as_deref()),
        certificates: status::certificates(&kept, (context.clock)()),
    };
    let code = match report.condition() {
        Condition::Failed => StatusCode::SERVICE_UNAVAILABLE,
        Condition::Ok | Condition::Degraded => StatusCode::OK,
    };
    Ok((code, Json(report.document())).into_response())
}
