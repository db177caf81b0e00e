//! `GET /v1/incidents`: newest first, by status, severity, check and agent; of one, everything that was decided about it.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::{Extension, Json};
use serde_json::Value;
use tickbird_shared::Status;

use super::access::Caller;
use super::page::{Document, Page};
use super::query::Query;
use super::{Shared, unreadable};
use crate::alert::{Explanation, IncidentDocument};
use crate::problem::Problem;
use crate::store::{AgentRow, IncidentFilter, IncidentRow, Rows, StoreError};

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Document, Problem> {
    let mut query = Query::parse(&uri)?;
    let mut filter = IncidentFilter {
        tenant: caller.tenant,
        status: query.value("status")?,
        severity: query.value("severity")?,
        check: query.text("check")?,
        agent: query.text("agent")?,
        before: None,
        limit: 0,
    };
    let filters = [
        filter.status.map(|it| it.as_str()),
        filter.severity.map(|it| it.as_str()),
        filter.check.as_deref(),
        filter.agent.as_deref(),
    ];
    let page = Page::read(&mut query, "incidents", &filter.tenant, &filters)?;
    query.finish()?;
    filter.before = page.after().map(str::to_owned);
    filter.limit = page.ask();
    let now = (shared.context.clock)();
    let read = move |rows: Rows<'_>| {
        let found = rows.incidents(&filter)?;
        let agents = agents(rows, &filter.tenant, found.iter().map(|it| it.agent.as_str()))?;
        let mut acknowledged = HashMap::new();
        for row in found.iter().filter(|it| it.status == Status::Firing) {
            acknowledged.extend(rows.acknowledgement(&row.tenant, &row.id, now)?.map(|it| (row.id.clone(), it)));
        }
        let item = |row| IncidentDocument::new(row, agents.get(&row.agent), acknowledged.get(&row.id));
        Ok(page.document(&found, |row: &IncidentRow| row.id.clone(), item))
    };
    shared.context.readers.read(read).await.map_err(|error| unreadable(&error))
}

pub(super) async fn explain(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<Value>, Problem> {
    Query::parse(&uri)?.finish()?;
    let top = shared.context.route.borrow().clone();
    let read =
        move |rows: Rows<'_>| Ok(Explanation::read(rows, &caller.tenant, &id, top.as_deref())?.map(|it| it.document()));
    let found = shared.context.readers.read(read).await.map_err(|error| unreadable(&error))?;
    let none = || Problem::new(StatusCode::NOT_FOUND, "no_such_incident", "there is no incident of this id");
    found.map(Json).ok_or_else(none)
}

/// The rows of those agents that are known, by id.
pub(super) fn agents<'a>(
    rows: Rows<'_>,
    tenant: &str,
    ids: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, AgentRow>, StoreError> {
    let mut agents = HashMap::new();
    for id in ids {
        if !agents.contains_key(id)
            && let Some(row) = rows.agent(tenant, id)?
        {
            agents.insert(id.to_owned(), row);
        }
    }
    Ok(agents)
}
