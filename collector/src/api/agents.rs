//! `GET /v1/agents`: in order of id, with what is known of their presence.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;
use tickbird_shared::{Labels, Timestamp};

use super::access::Caller;
use super::page::{Document, Page};
use super::query::Query;
use super::{Shared, unavailable, unreadable};
use crate::aggregate::{CanarySeen, Presence};
use crate::ledger::AgentKey;
use crate::problem::Problem;
use crate::store::{AgentFilter, AgentRow, Rows};

#[derive(Debug, Serialize)]
struct AgentDocument<'a> {
    id: &'a str,
    host: &'a str,
    version: Option<&'a str>,
    system: Option<&'a str>,
    presence: &'a str,
    /// Of one that is `unknown`: when it was last heard, or else enrolled.
    unknown_since: Option<Timestamp>,
    last_seen_at: Option<Timestamp>,
    labels: Labels,
    targets: &'a [String],
    ephemeral: bool,
    denied: bool,
    enrolled_at: Timestamp,
    certificate_expires_at: Timestamp,
    /// How often it went over each of its limits.
    excess: &'a BTreeMap<String, u64>,
    /// None of one that sends none, or of which none came since the collector's start.
    canary: Option<CanaryDocument>,
}

#[derive(Debug, Serialize)]
struct CanaryDocument {
    missing: bool,
    /// From the agent to the yes of the receiver, of the newest that got there.
    latency_ms: Option<u64>,
    taken_at: Option<Timestamp>,
}

/// An agent with what is known of it elsewhere.
struct Found {
    row: AgentRow,
    excess: BTreeMap<String, u64>,
    presence: Presence,
    canary: Option<CanarySeen>,
}

impl<'a> AgentDocument<'a> {
    fn new(Found { row, excess, presence, canary }: &'a Found) -> Self {
        Self {
            id: &row.id,
            host: &row.host,
            version: row.version.as_deref(),
            system: row.system.as_deref(),
            presence: presence.as_str(),
            unknown_since: (*presence == Presence::Unknown).then(|| row.last_heard()),
            last_seen_at: row.last_seen_at,
            labels: row.labels(),
            targets: &row.targets,
            ephemeral: row.ephemeral,
            denied: row.denied_at.is_some(),
            enrolled_at: row.enrolled_at,
            certificate_expires_at: row.certificate_expires_at,
            excess,
            canary: canary.map(|it| CanaryDocument {
                missing: it.is_missing,
                latency_ms: it.latency.map(|it| it.as_millis() as u64),
                taken_at: it.taken_at,
            }),
        }
    }
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Document, Problem> {
    let mut query = Query::parse(&uri)?;
    let page = Page::read(&mut query, "agents", &caller.tenant, &[])?;
    query.finish()?;
    let after = page.after().map(str::to_owned);
    let filter = AgentFilter { tenant: caller.tenant, after, limit: page.ask() };
    let look = move |rows: Rows<'_>| {
        let found = rows.agents(&filter)?;
        let ids = found.first().zip(found.last()).map(|(first, last)| (first.id.as_str(), last.id.as_str()));
        let excesses = ids.map(|ids| rows.excesses(&filter.tenant, ids)).transpose()?.unwrap_or_default();
        Ok((found, excesses))
    };
    let (found, excesses) = shared.context.readers.read(look).await.map_err(|error| unreadable(&error))?;
    let mut by_agent: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for it in excesses {
        by_agent.entry(it.agent).or_default().insert(it.limit, it.times);
    }
    let keys: Vec<_> = found.iter().map(|row| AgentKey::new(&row.tenant, &row.id)).collect();
    let canaries = shared.context.ledger.canaries(keys.clone()).await.map_err(unavailable)?;
    let mut canaries = canaries.into_iter().chain(std::iter::repeat(None));
    let presence = shared.context.ledger.presence(keys).await.map_err(unavailable)?;
    // While the ledger recovers it knows of nobody.
    let presence = presence.into_iter().chain(std::iter::repeat(Presence::Unknown));
    let with = |(row, presence): (AgentRow, Presence)| {
        let excess = by_agent.remove(&row.id).unwrap_or_default();
        Found { row, excess, presence, canary: canaries.next().flatten() }
    };
    let found: Vec<Found> = found.into_iter().zip(presence).map(with).collect();
    Ok(page.document(&found, |it| it.row.id.clone(), AgentDocument::new))
}
