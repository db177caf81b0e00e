//! `/livez`: the process answers. `/readyz`: its parts work. Neither asks for a token, so neither tells where or what.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Shared;
use super::query::Query;
use crate::problem::Problem;
use crate::status::{self, Condition, Report};

pub(super) async fn live(State(shared): State<Arc<Shared>>, uri: Uri) -> Result<Json<Value>, Problem> {
    Query::parse(&uri)?.finish()?;
    let context = &shared.context;
    Ok(Json(json!({ "status": "ok", "version": context.version, "started_at": context.started_at })))
}

pub(super) async fn ready(State(shared): State<Arc<Shared>>, uri: Uri) -> Result<Response, Problem> {
    Query::parse(&uri)?.finish()?;
    let context = &shared.context;
    let kept = context.certificates.borrow().clone();
    let store = context.readers.ping().await;
    if let Err(error) = &store {
        tracing::warn!(%error, "the store cannot be read");
    }
    let report = Report {
        store: status::store(&store),
        ledger: status::ledger(context.ledger.health()),
        receivers: status::receivers(&context.notify.receivers()),
        certificates: status::certificates(&kept, (context.clock)()),
    };
    let code = match report.condition() {
        Condition::Failed => StatusCode::SERVICE_UNAVAILABLE,
        Condition::Ok | Condition::Degraded => StatusCode::OK,
    };
    Ok((code, Json(report.document())).into_response())
}
