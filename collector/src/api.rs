//! The routes for people, and how an error is answered.
//!
//! A route exists only as a line of `ROUTES` with the `Permission` it asks for; there is no other way to add one.
//! Every answer carries `X-Request-Id`, every error is a problem document, every list is cut into pages.

mod access;
mod acknowledgements;
mod agents;
mod exchange;
mod findings;
mod fleet;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod health;
mod incidents;
mod metrics;
mod page;
mod query;
mod reports;
mod silences;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, delete, get, post};
use prometheus_client::registry::Registry;
use tickbird_shared::Timestamp;
use tokio::sync::watch;

use crate::aggregate::Strain;
use crate::alert::Route;
use crate::ledger::{Handle, Unavailable};
use crate::notify;
use crate::pki::life::Kept;
use crate::problem::Problem;
use crate::store::{Readers, StoreError};

pub use access::Role;

use access::Permission;

/// What the routes need.
#[derive(Debug)]
pub struct Context {
    /// The store, to be read.
    pub readers: Readers,
    /// The ledger, for presence and health.
    pub ledger: Handle,
    /// The routes as they are configured, by which it is told how an incident was grouped.
    pub route: watch::Receiver<Option<Arc<Route>>>,
    /// How delivery goes.
    pub notify: notify::Status,
    /// What the other stages count.
    pub metrics: Arc<Registry>,
    /// Our own certificates.
    pub certificates: watch::Receiver<Kept>,
    /// What our own parts bear; none before the first look.
    pub strain: watch::Receiver<Option<Strain>>,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
    /// Version of this collector.
    pub version: &'static str,
    /// When it started.
    pub started_at: Timestamp,
}

/// Context and counters, shared by all requests.
#[derive(Debug)]
struct Shared {
    context: Context,
    requests: exchange::Counters,
}

type Handler = fn() -> MethodRouter<Arc<Shared>>;

/// Every route, how it is asked, who may use it, and what answers it.
const ROUTES: &[(Method, &str, Permission, Handler)] = &[
    (Method::GET, "/livez", Permission::Anyone, || get(health::live)),
    (Method::GET, "/readyz", Permission::Anyone, || get(health::ready)),
    (Method::GET, "/metrics", Permission::AtLeast(Role::Viewer), || get(metrics::show)),
    (Method::GET, "/v1/incidents", Permission::AtLeast(Role::Viewer), || get(incidents::list)),
    (Method::GET, "/v1/incidents/{id}/explanation", Permission::AtLeast(Role::Viewer), || get(incidents::explain)),
    (Method::POST, "/v1/incidents/{id}/acknowledgement", Permission::AtLeast(Role::Operator), || {
        post(acknowledgements::begin).layer(acknowledgements::body_limit())
    }),
    (Method::DELETE, "/v1/incidents/{id}/acknowledgement", Permission::AtLeast(Role::Operator), || {
        delete(acknowledgements::end)
    }),
    (Method::GET, "/v1/silences", Permission::AtLeast(Role::Viewer), || get(silences::list)),
    (Method::POST, "/v1/silences", Permission::AtLeast(Role::Operator), || {
        post(silences::begin).layer(silences::body_limit())
    }),
    (Method::POST, "/v1/silences/{id}/end", Permission::AtLeast(Role::Operator), || post(silences::end)),
    (Method::GET, "/v1/findings", Permission::AtLeast(Role::Viewer), || get(findings::list)),
    (Method::GET, "/v1/fleet/pools", Permission::AtLeast(Role::Viewer), || get(fleet::pools)),
    (Method::GET, "/v1/reports/pools", Permission::AtLeast(Role::Viewer), || get(reports::pools)),
    (Method::GET, "/v1/agents", Permission::AtLeast(Role::Viewer), || get(agents::list)),
];

/// The whole listener for people. `enrolment` brings its own protection: the token in its body.
pub fn router(context: Context, enrolment: Router) -> Router {
    let shared = Arc::new(Shared { context, requests: exchange::Counters::default() });
    let mut router = Router::new();
    for (_, path, permission, handler) in ROUTES {
        let guard = from_fn_with_state((Arc::clone(&shared), *permission), access::check);
        router = router.route(path, handler().route_layer(guard));
    }
    router
        .with_state(Arc::clone(&shared))
        .merge(enrolment)
        .route_layer(from_fn(exchange::name_route))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(shared, exchange::carry))
}

async fn no_such_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

async fn no_such_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not know the method")
        .advise("use one of those in the Allow header")
}

/// A store that cannot be read now. The log line stands in the span that carries the request id.
fn unreadable(error: &StoreError) -> Problem {
    tracing::error!(%error, cause = std::error::Error::source(error).map(tracing::field::display), "cannot read the store");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "the store cannot be read now")
        .advise("try again; if it stays so, the collector's log has the cause under this request_id")
        .retry_after(Unavailable::Failed.retry_after())
}

fn unavailable(why: Unavailable) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, why.code(), why.to_string()).retry_after(why.retry_after())
}

#[cfg(test)]
mod tests;
