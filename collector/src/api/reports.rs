//! `GET /v1/reports/pools?days=7`: what each application used of its pools, what went wrong with them, and the size that
//! would have been enough.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use serde::Serialize;

use super::access::Caller;
use super::fleet::UsePart;
use super::page::{Document, Page};
use super::query::Query;
use super::{Shared, unreadable};
use crate::aggregate::of_rows;
use crate::problem::Problem;
use crate::store::{Rows, StoreError, UseRow};

/// Days of a report when nobody says; and the most that are kept.
const DAYS: u32 = 7;
const MAX_DAYS: u32 = 35;

/// What is counted, and the checks that count.
const COUNTED: [(&str, &[&str]); 4] = [
    ("leaks", &["pool.leak", "pool.leak_rate"]),
    ("left_in_transaction", &["pool.idle_in_transaction", "pool.aborted_transaction"]),
    ("waits", &["pool.exhausted", "pool.timeout"]),
    ("churn", &["pool.churn", "pool.absent"]),
];

/// One application over the days of the report.
#[derive(Debug, Default)]
struct Service {
    name: String,
    /// Rows by server.
    used: BTreeMap<String, Vec<UseRow>>,
    /// How often a fault began, in the order of [`COUNTED`].
    began: [u64; COUNTED.len()],
}

#[derive(Debug, Serialize)]
struct ServiceDocument<'a> {
    application: &'a str,
    days: u32,
    servers: Vec<ServerPart<'a>>,
    faults_that_began: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct ServerPart<'a> {
    server: &'a str,
    #[serde(flatten)]
    used: Option<UsePart>,
}

pub(super) async fn pools(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Document, Problem> {
    let mut query = Query::parse(&uri)?;
    let days: u32 = query.value("days")?.unwrap_or(DAYS);
    if days == 0 || days > MAX_DAYS {
        let detail = format!("`days` is 1 to {MAX_DAYS}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_parameter", detail).with("parameter", "days"));
    }
    let application = query.text("application")?;
    let filters = [Some(days.to_string()), application.clone()];
    let filters: Vec<_> = filters.iter().map(Option::as_deref).collect();
    let page = Page::read(&mut query, "reports/pools", &caller.tenant, &filters)?;
    query.finish()?;
    let since = (shared.context.clock)() - Duration::from_secs(u64::from(days) * 24 * 3600);
    let read = move |rows: Rows<'_>| {
        let mut services = services(rows, &caller.tenant, since)?;
        services.retain(|it| application.as_ref().is_none_or(|application| it.name == *application));
        services.retain(|it| page.after().is_none_or(|after| it.name.as_str() > after));
        services.truncate(page.ask() as usize);
        Ok(page.document(&services, |it| it.name.clone(), |it| ServiceDocument::new(it, days)))
    };
    shared.context.readers.read(read).await.map_err(|error| unreadable(&error))
}

/// Every application of a tenant that used a pool or had a fault of one, by name.
fn services(rows: Rows<'_>, tenant: &str, since: tickbird_shared::Timestamp) -> Result<Vec<Service>, StoreError> {
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    for row in rows.pool_use(since)?.into_iter().filter(|row| row.tenant == tenant) {
        let service = services.entry(row.application.clone()).or_default();
        service.used.entry(row.server.clone()).or_default().push(row);
    }
    for (index, (_, checks)) in COUNTED.iter().enumerate() {
        for check in *checks {
            for (target, count) in rows.began_by_target(tenant, check, since)? {
                if let Some(name) = application_of(&target) {
                    services.entry(name.to_owned()).or_default().began[index] += count;
                }
            }
        }
    }
    Ok(services.into_iter().map(|(name, service)| Service { name, ..service }).collect())
}

/// The application in `pool:<application>/<role>><remote>…`.
fn application_of(target: &str) -> Option<&str> {
    let (who, _) = target.strip_prefix("pool:")?.split_once('>')?;
    who.rsplit_once('/').map(|(application, _)| application)
}

impl<'a> ServiceDocument<'a> {
    fn new(it: &'a Service, days: u32) -> Self {
        let part = |(server, rows): (&'a String, &'a Vec<UseRow>)| ServerPart {
            server,
            used: of_rows(rows.iter()).map(UsePart::from),
        };
        Self {
            application: &it.name,
            days,
            servers: it.used.iter().map(part).collect(),
            faults_that_began: COUNTED.iter().zip(it.began).map(|((name, _), count)| (*name, count)).collect(),
        }
    }
}
