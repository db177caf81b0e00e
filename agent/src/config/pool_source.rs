//! `pool.metrics`, `pool.health` and `pool.endpoint` of an `[[app]]` section.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{HOUR, PoolSource, SECOND, Section};
use crate::inspect::http_endpoint::ConfigError;
use crate::inspect::pool_metrics::{Config, Pointer, Pointers};
use crate::inspect::server::PoolMode;

/// `pool.pooler` and `pool.required`: how the pooler in front of the server hands out connections, and which keys a DSN
/// needs then.
pub(super) fn pooler(pool: &mut Section) -> (Option<PoolMode>, Vec<Arc<str>>) {
    let modes = [PoolMode::Session, PoolMode::Transaction, PoolMode::Statement];
    let mode = pool.text("pooler").and_then(|text| {
        let mode = modes.into_iter().find(|it| it.as_str() == text);
        if mode.is_none() {
            let advice = "write \"transaction\", \"session\" or \"statement\"";
            pool.wrong("pooler", "is no mode of a pooler", Some(advice.to_owned()));
        }
        mode
    });
    let required = pool.texts("required").unwrap_or_default();
    for text in &required {
        if text.len() > 200 || !text.split('|').all(|it| it.contains('=')) {
            let advice = "write \"statement_cache_size=0\", alternatives with | between them";
            pool.wrong("required", "has an item that is not key=value", Some(advice.to_owned()));
        }
    }
    if !required.is_empty() && mode.is_none() {
        pool.wrong("required", "is of use only with pool.pooler", None);
    }
    (mode, required.into_iter().map(Arc::from).collect())
}

/// Reads the sources of one application's pools.
pub(super) fn read(pool: &mut Section, application: &str, sources: &mut Vec<PoolSource>) {
    let endpoint = pool.text("endpoint").and_then(|text| {
        let address = text.parse::<SocketAddr>();
        let wrong = |_| {
            let advice = "write the remote end as `tickbird-agent inspect` shows it: 10.0.0.5:5432";
            pool.wrong("endpoint", format!("`{text}` is not an address with a port"), Some(advice.to_owned()));
        };
        address.map_err(wrong).ok()
    });
    let interval = pool.duration("interval", SECOND, HOUR).unwrap_or(10 * SECOND);
    let before = sources.len();
    let metrics = pool.text("metrics");
    if let Some(url) = &metrics {
        add(Config::metrics(application, endpoint, url), |error| wrong(pool, "metrics", error), interval, sources);
    }
    let health = pool.section("health");
    let has_source = metrics.is_some() || health.is_some();
    if let Some(mut health) = health {
        let pointers = pointers(&mut health);
        match health.text("url") {
            None => health.wrong("url", "is missing or wrong", None),
            Some(url) => {
                let made = Config::health(application, endpoint, &url, pointers);
                add(made, |error| wrong(&health, "url", error), interval, sources);
            }
        }
    }
    if endpoint.is_some() && !has_source && sources.len() == before {
        pool.wrong("endpoint", "is of use only with pool.metrics or pool.health", None);
    }
}

fn add(
    made: Result<Config, Vec<ConfigError>>,
    wrong: impl Fn(&ConfigError),
    interval: std::time::Duration,
    sources: &mut Vec<PoolSource>,
) {
    match made {
        Ok(inspector) => sources.push(PoolSource { inspector, interval }),
        Err(errors) => errors.iter().for_each(wrong),
    }
}

fn wrong(section: &Section, key: &str, error: &ConfigError) {
    section.wrong(key, error, Some(error.advice().to_owned()));
}

fn pointers(health: &mut Section) -> Pointers {
    let mut read = |key: &'static str| {
        let text = health.text(key)?;
        let pointer = Pointer::parse(&text);
        if pointer.is_none() {
            let advice = "begin with `/`, as in `/pool/size`; write `~1` for `/` and `~0` for `~`";
            health.wrong(key, format!("`{text}` is not a JSON pointer"), Some(advice.to_owned()));
        }
        pointer
    };
    Pointers {
        limit: read("limit"),
        in_use: read("in_use"),
        idle: read("idle"),
        open: read("open"),
        size: read("size"),
        overflow: read("overflow"),
        waiting: read("waiting"),
        oldest_wait: read("oldest_wait"),
        status: read("status"),
    }
}
