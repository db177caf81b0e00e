//! `GET /v1/findings`: in the order they were received, newest first, by status, severity, check and agent.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;
use serde_json::value::RawValue;
use tickbird_shared::{Change, Timestamp};

use super::access::Caller;
use super::incidents::agents;
use super::page::{Document, Page};
use super::query::Query;
use super::{Shared, unreadable};
use crate::alert::{AgentDocument, object};
use crate::problem::Problem;
use crate::store::{AgentRow, FindingFilter, FindingRow, Rows};

#[derive(Debug, Serialize)]
struct FindingDocument<'a> {
    fingerprint: String,
    check: &'a str,
    target: &'a str,
    sub_key: Option<&'a str>,
    status: &'a str,
    severity: &'a str,
    change: Change,
    summary: &'a str,
    reason: &'a str,
    advice: Option<&'a str>,
    evidence: &'a RawValue,
    since: Timestamp,
    observed_at: Timestamp,
    received_at: Timestamp,
    agent: AgentDocument<'a>,
    incident: Option<&'a str>,
}

impl<'a> FindingDocument<'a> {
    fn new(row: &'a FindingRow, agent: Option<&'a AgentRow>) -> Self {
        Self {
            fingerprint: row.fingerprint.to_string(),
            check: &row.check,
            target: &row.target,
            sub_key: row.sub_key.as_deref(),
            status: row.status.as_str(),
            severity: row.severity.as_str(),
            change: row.change,
            summary: &row.summary,
            reason: &row.reason,
            advice: row.advice.as_deref(),
            evidence: object(&row.evidence),
            since: row.since,
            observed_at: row.observed_at,
            received_at: row.received_at,
            agent: AgentDocument::new(&row.agent, agent),
            incident: row.incident.as_deref(),
        }
    }
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Document, Problem> {
    let mut query = Query::parse(&uri)?;
    let mut filter = FindingFilter {
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
    let page = Page::read(&mut query, "findings", &filter.tenant, &filters)?;
    query.finish()?;
    filter.before = page.after_number()?;
    filter.limit = page.ask();
    let read = move |rows: Rows<'_>| {
        let found = rows.findings(&filter)?;
        let agents = agents(rows, &filter.tenant, found.iter().map(|it| it.agent.as_str()))?;
        let item = |row| FindingDocument::new(row, agents.get(&row.agent));
        Ok(page.document(&found, |row: &FindingRow| row.id.to_string(), item))
    };
    shared.context.readers.read(read).await.map_err(|error| unreadable(&error))
}
