//! `tickbird-agent defaults` and `inspectors`: what is checked and what is read, as data.

use serde_json::json;

use super::{Failure, put, put_json};
use crate::config::Config;
#[cfg(feature = "mysql")]
use crate::inspect::mysql;
#[cfg(feature = "rabbitmq")]
use crate::inspect::rabbitmq;
#[cfg(feature = "redis")]
use crate::inspect::redis;
use crate::inspect::{About, host, http_endpoint, log_tail, pgbouncer, pool_metrics, postgres, resolver, sqlite};

pub(super) fn defaults(config: &Config, as_json: bool) -> Result<u8, Failure> {
    let table = config.checks.table();
    if as_json {
        return put_json(0, &json!({ "checks": table.iter().map(|it| it.json()).collect::<Vec<_>>() }));
    }
    put(0, table.iter().map(|it| format!("{it}\n\n")).collect::<String>())
}

/// Every source of facts.
const INSPECTORS: &[&About] = &[
    &host::ABOUT,
    &postgres::ABOUT,
    &pgbouncer::ABOUT,
    #[cfg(feature = "mysql")]
    &mysql::ABOUT,
    #[cfg(feature = "redis")]
    &redis::ABOUT,
    #[cfg(feature = "rabbitmq")]
    &rabbitmq::ABOUT,
    &pool_metrics::ABOUT,
    &http_endpoint::ABOUT,
    &log_tail::ABOUT,
    &resolver::ABOUT,
    &sqlite::ABOUT,
];

pub(super) fn inspectors(as_json: bool) -> Result<u8, Failure> {
    if as_json {
        let all = INSPECTORS.iter().map(|it| {
            let measures =
                it.measures.iter().map(|m| json!({ "name": m.name, "unit": m.unit.as_str(), "meaning": m.meaning }));
            json!({
                "name": it.name, "source": it.source, "needs": it.needs, "cost": it.cost,
                "measures": measures.collect::<Vec<_>>(),
            })
        });
        return put_json(0, &json!({ "inspectors": all.collect::<Vec<_>>() }));
    }
    put(0, INSPECTORS.iter().map(|it| paragraph(it)).collect::<String>())
}

fn paragraph(it: &About) -> String {
    let mut lines = vec![format!("{}\n  reads  {}\n  needs  {}\n  costs  {}", it.name, it.source, it.needs, it.cost)];
    if !it.measures.is_empty() {
        lines.push("  gives".to_owned());
    }
    lines.extend(it.measures.iter().map(|m| format!("    {:32} {:10} {}", m.name, m.unit.as_str(), m.meaning)));
    lines.join("\n") + "\n\n"
}
