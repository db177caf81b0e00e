//! `GET /metrics`: OpenMetrics of what every stage counts, and of the levels that the store knows.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Extension;
use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tickbird_shared::Severity;

use super::access::Caller;
use super::query::Query;
use super::{Shared, unavailable, unreadable};
use crate::aggregate::{CanarySeen, Presence};
use crate::ledger::AgentKey;
use crate::notify::BreakerState;
use crate::problem::Problem;
use crate::store::Rows;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Level = Gauge<u64, AtomicU64>;
type Levels = Family<Vec<(&'static str, String)>, Level>;

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Response, Problem> {
    Query::parse(&uri)?.finish()?;
    let levels = levels(&shared, &caller).await?;
    let mut counted = Registry::default();
    shared.requests.register(&mut counted);
    shared.context.notify.counters().register(&mut counted);
    let text = encode([&shared.context.metrics, &counted, &levels]).expect("writing to a string succeeds");
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}

fn encode(registries: [&Registry; 3]) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for registry in registries {
        encode_registry(&mut text, registry)?;
    }
    encode_eof(&mut text)?;
    Ok(text)
}

/// What is not counted but is as it is: read anew each time.
async fn levels(shared: &Shared, caller: &Caller) -> Result<Registry, Problem> {
    let context = &shared.context;
    let receivers = context.notify.receivers();
    let names: Vec<_> = receivers.iter().map(|it| it.name.clone()).collect();
    let tenant = caller.tenant.clone();
    let look = move |rows: Rows<'_>| {
        let waiting: Result<Vec<_>, _> = names.iter().map(|name| rows.outbox_backlog(name)).collect();
        let dead: Result<Vec<_>, _> = names.iter().map(|name| rows.outbox_dead(name)).collect();
        Ok((rows.firing_by_severity(&tenant)?, rows.agent_ids(&tenant)?, waiting?, dead?))
    };
    let (firing, agents, waiting, dead) = context.readers.read(look).await.map_err(|error| unreadable(&error))?;
    let keys: Vec<_> = agents.iter().map(|id| AgentKey::new(&caller.tenant, id)).collect();
    let canaries = context.ledger.canaries(keys.clone()).await.map_err(unavailable)?;
    let mut presence: BTreeMap<&str, u64> = Presence::ALL.map(|it| (it.as_str(), 0)).into();
    for it in context.ledger.presence(keys).await.map_err(unavailable)? {
        *presence.entry(it.as_str()).or_default() += 1;
    }

    let mut registry = Registry::default();
    let build = Info::new(vec![("version", context.version)]);
    registry.register("tickbird_collector", "The collector that answers", build);
    let firing = [Severity::Warning, Severity::Critical]
        .map(|severity| (severity.to_string(), firing.get(&severity).copied().unwrap_or_default()));
    let presence = presence.into_iter().map(|(word, count)| (word.to_owned(), count));
    let of = |number: fn(&(u64, u64, u64)) -> u64| {
        let now = (context.clock)();
        let row = move |(receiver, (count, oldest)): (&crate::notify::ReceiverStatus, &(u64, Option<_>))| {
            let age = oldest.map_or(0, |at| now.duration_since(at).as_secs().max(0).unsigned_abs());
            let open = u64::from(receiver.breaker != BreakerState::Closed);
            (receiver.name.clone(), number(&(*count, age, open)))
        };
        receivers.iter().zip(&waiting).map(row).collect::<Vec<_>>()
    };
    level(&mut registry, "tickbird_incidents_firing", "Incidents that fire", "severity", firing);
    level(&mut registry, "tickbird_agents", "Agents by presence", "presence", presence);
    level(&mut registry, "tickbird_notify_waiting", "Messages that wait", "receiver", of(|it| it.0));
    let help = "Age of the oldest message that waits";
    level(&mut registry, "tickbird_notify_oldest_seconds", help, "receiver", of(|it| it.1));
    let dead = receivers.iter().zip(&dead).map(|(receiver, count)| (receiver.name.clone(), *count));
    level(&mut registry, "tickbird_notify_dead", "Messages that were given up and are kept", "receiver", dead);
    let help = "1 while a receiver is not asked, or only now and then";
    level(&mut registry, "tickbird_notify_breaker_open", help, "receiver", of(|it| it.2));
    let left_out = receivers.iter().map(|it| (it.name.clone(), it.left_out.as_ref().map_or(0, Vec::len) as u64));
    let help = "Recipients for whom the mail server did not take the last letter that it took for others";
    level(&mut registry, "tickbird_notify_recipients_left_out", help, "receiver", left_out);
    register_canaries(&mut registry, &canaries);
    let queue = context.ledger.queue();
    single(&mut registry, "tickbird_ledger_waiting", "Events that wait for the ledger", queue.waiting as u64);
    single(&mut registry, "tickbird_ledger_places", "Events that may wait for the ledger", queue.places as u64);
    if let Some(room) = context.strain.borrow().as_ref().and_then(|it| it.disk.room) {
        single(&mut registry, "tickbird_disk_free_bytes", "Room on the disk of the collector's directory", room.free);
    }
    let (now, kept) = ((context.clock)(), context.certificates.borrow().clone());
    let left = kept.lives.iter().map(|it| {
        let seconds = it.validity.ends.duration_since(now).as_secs().max(0).unsigned_abs();
        (it.name.to_owned(), seconds)
    });
    let help = "Time until a certificate of the collector itself ends";
    level(&mut registry, "tickbird_certificate_left_seconds", help, "certificate", left);
    Ok(registry)
}

/// How many agents send canaries, and what the newest of each needed.
fn register_canaries(registry: &mut Registry, canaries: &[Option<CanarySeen>]) {
    let known = || canaries.iter().flatten();
    let missing = known().filter(|it| it.is_missing).count();
    let taken = known().filter(|it| !it.is_missing && it.latency.is_some()).count();
    let counts = [("missing", missing), ("taken", taken), ("untold", known().count() - missing - taken)];
    let counts = counts.map(|(state, count)| (state.to_owned(), count as u64));
    let help = "Agents that send canaries: missing, taken by the receiver, or not known to be either";
    level(registry, "tickbird_canary_agents", help, "state", counts);
    let mut latencies: Vec<_> = known().filter_map(|it| it.latency).collect();
    latencies.sort_unstable();
    let newest = Family::<Vec<(&'static str, String)>, Gauge<f64, AtomicU64>>::default();
    if let Some(last) = latencies.len().checked_sub(1) {
        for quantile in [0.5, 0.99, 1.0] {
            let at = (last as f64 * quantile).ceil() as usize;
            newest.get_or_create(&vec![("quantile", quantile.to_string())]).set(latencies[at].as_secs_f64());
        }
    }
    let help = "Newest latency of each agent's canary: the median, the 99th percentile and the worst";
    registry.register("tickbird_canary_newest_seconds", help, newest);
}

fn single(registry: &mut Registry, name: &str, help: &str, number: u64) {
    let level = Level::default();
    level.set(number);
    registry.register(name, help, level);
}

fn level(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = (String, u64)>,
) {
    let levels = Levels::default();
    for (value, number) in values {
        levels.get_or_create(&vec![(label, value)]).set(number);
    }
    registry.register(name, help, levels);
}
