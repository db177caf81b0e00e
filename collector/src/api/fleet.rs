//! `GET /v1/fleet/pools`: what each application takes of each server, by server and application.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;

use super::access::Caller;
use super::page::{Document, Page};
use super::query::Query;
use super::{Shared, unavailable};
use crate::aggregate::{PoolSum, Range, Used};
use crate::problem::Problem;

/// Between server and application in a cursor. A name that contained it would only make a page begin elsewhere.
const BETWEEN: char = '\u{1f}';

#[derive(Debug, Serialize)]
struct PoolDocument<'a> {
    server: ServerPart<'a>,
    application: &'a str,
    agents: usize,
    processes: u64,
    possible: RangePart,
    share_of_slots: Option<f64>,
    open: u64,
    leased: RangePart,
    limit_not_known: Option<&'a str>,
    last_days: Option<UsePart>,
}

#[derive(Debug, Serialize)]
struct ServerPart<'a> {
    id: &'a str,
    address: &'a str,
    slots: Option<u32>,
    used: Option<u32>,
    possible: RangePart,
    fires: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct RangePart {
    at_least: u64,
    at_most: Option<u64>,
}

/// What was used, for a list and for a report.
#[derive(Debug, Serialize)]
pub(super) struct UsePart {
    samples: u64,
    leased_p95: u32,
    leased_peak: u32,
    open_peak: u32,
    suggested: Option<u32>,
}

impl From<Range> for RangePart {
    fn from(it: Range) -> Self {
        Self { at_least: it.low, at_most: it.high }
    }
}

impl From<Used> for UsePart {
    fn from(it: Used) -> Self {
        let Used { samples, peak, peak_open, p95, suggested } = it;
        Self { samples, leased_p95: p95, leased_peak: peak, open_peak: peak_open, suggested }
    }
}

impl<'a> PoolDocument<'a> {
    fn new(it: &'a PoolSum) -> Self {
        let share = |slots: u32| (it.share.limit.low as f64 / f64::from(slots) * 1000.0).round() / 1000.0;
        Self {
            server: ServerPart {
                id: &it.server,
                address: &it.name,
                slots: it.slots,
                used: it.used,
                possible: it.server_limit.into(),
                fires: it.fires.map(|it| it.as_str()),
            },
            application: &it.application,
            agents: it.share.agents.len(),
            processes: it.share.instances,
            possible: it.share.limit.into(),
            share_of_slots: it.slots.filter(|slots| *slots > 0).map(share),
            open: it.share.open,
            leased: it.share.leased.into(),
            limit_not_known: it.share.why_unknown.as_deref(),
            last_days: it.usage.map(UsePart::from),
        }
    }
}

pub(super) async fn pools(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Document, Problem> {
    let mut query = Query::parse(&uri)?;
    let (server, application) = (query.text("server")?, query.text("application")?);
    let filters = [server.as_deref(), application.as_deref()];
    let page = Page::read(&mut query, "fleet/pools", &caller.tenant, &filters)?;
    query.finish()?;
    let mut pools = shared.context.ledger.fleet_pools(&caller.tenant).await.map_err(unavailable)?;
    // A person knows a server by its address as well as by its identity.
    pools.retain(|it| {
        server.as_deref().is_none_or(|server| it.server == server || it.name == server)
            && application.as_deref().is_none_or(|application| it.application == application)
    });
    if let Some((server, application)) = page.after().and_then(|after| after.split_once(BETWEEN)) {
        pools.retain(|it| (it.server.as_str(), it.application.as_str()) > (server, application));
    }
    pools.truncate(page.ask() as usize);
    Ok(page.document(&pools, |it| format!("{}{BETWEEN}{}", it.server, it.application), PoolDocument::new))
}
