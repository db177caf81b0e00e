//! What a pool's DSNs say of how statements are prepared, for the comparison of services at the collector.
//!
//! Names from a closed list leave the host, and whether they are right; no value, and nothing else of a DSN. What cannot be
//! read of one instance is not told of any: half of a pool is no proof.

use std::collections::BTreeSet;
use std::sync::Arc;

use tickbird_shared::levels::{DsnLevel, MAX_KEYS};

use crate::inspect::ServerLook;
use crate::inspect::host::PoolRow;
use crate::inspect::server::{Engine, PoolMode};
use crate::judge::pool::join::Joined;
use crate::judge::pool::params;

/// Keys, and the values that leave no prepared statement behind on a connection that the next transaction of somebody else
/// gets.
const RIGHT: [(&str, &[&str]); 12] = [
    ("statement_cache_size", &["0"]),
    ("prepared_statement_cache_size", &["0"]),
    ("prepare_threshold", &["none"]),
    ("preparethreshold", &["0"]),
    ("prepared_statements", &["false"]),
    ("pgbouncer", &["true"]),
    ("raw_sql", &["true"]),
    ("no_prepare", &["true"]),
    ("default_query_exec_mode", &["exec", "simple_protocol"]),
    ("statement_cache_capacity", &["0"]),
    ("binary_parameters", &["yes"]),
    ("prefer_simple_protocol", &["true"]),
];

/// What all instances of one pool say; none when one of them says nothing that is understood.
pub(super) fn level(rows: &[&PoolRow]) -> Option<DsnLevel> {
    let driver = rows.first()?.dsn.named.as_ref()?.driver?;
    let mut required = BTreeSet::new();
    let mut right: BTreeSet<&str> = RIGHT.iter().map(|(key, _)| *key).collect();
    for row in rows {
        let named = row.dsn.named.as_ref().filter(|it| it.driver == Some(driver))?;
        let demanded = params::required(driver, &row.dsn.required).unwrap_or_default();
        required.extend(demanded.iter().filter_map(name));
        right.retain(|key| {
            let values = RIGHT.iter().find(|(name, _)| name == key).map_or(&[][..], |(_, values)| values);
            values.iter().any(|value| named.has(&format!("{key}={value}")))
        });
    }
    let required = required.into_iter().take(MAX_KEYS).collect();
    Some(DsnLevel { driver: driver.into(), required, right: right.into_iter().map(str::to_owned).collect() })
}

/// The names of a requirement (`a=0|b=0`), when each of its alternatives is one of [`RIGHT`].
fn name(required: &Arc<str>) -> Option<String> {
    let names = required.split('|').map(|it| {
        let (key, value) = it.split_once('=')?;
        let is_it = |(name, values): &&(&'static str, &[&str])| {
            name.eq_ignore_ascii_case(key) && values.iter().any(|it| it.eq_ignore_ascii_case(value))
        };
        RIGHT.iter().find(is_it).map(|(name, _)| *name)
    });
    let mut names: Vec<&str> = names.collect::<Option<_>>()?;
    names.sort_unstable();
    names.dedup();
    Some(names.join("|"))
}

/// Whether a pooler hands each transaction another connection, without the statements that were prepared on the last.
pub(super) fn told_by_the_pooler(look: &ServerLook) -> Option<bool> {
    look.pool_mode.map(|mode| is_by_transaction(mode) && !look.carries_statements)
}

/// The same of a pool: as the operator says, unless the pooler carries statements along; else as the pooler says; else a
/// server that lists the pool's own sockets has nothing before it.
pub(super) fn by_transaction(rows: &[&PoolRow], by_pooler: Option<bool>, is_direct: bool) -> Option<bool> {
    let said = rows.iter().find_map(|row| row.dsn.pooler).map(is_by_transaction);
    match (said, by_pooler) {
        (Some(said), told) => Some(said && told != Some(false)),
        (None, Some(told)) => Some(told),
        (None, None) => is_direct.then_some(false),
    }
}

/// Whether a session of PostgreSQL itself is at the other end of one of these sockets.
pub(super) fn is_direct<'i, 'a: 'i>(look: &ServerLook, mut joined: impl Iterator<Item = &'i Joined<'a>>) -> bool {
    look.engine == Engine::PostgreSql && joined.any(|it| it.is_exact)
}

fn is_by_transaction(mode: PoolMode) -> bool {
    mode != PoolMode::Session
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::dsn_keys::Named;
    use crate::judge::tests::rows::pool;

    fn row(dsn: &str) -> PoolRow {
        let mut it = pool("shop", 77, "10.0.0.7:6432");
        it.dsn.named = Named::read(dsn, "test").map(Arc::new);
        it
    }

    fn said(rows: &[PoolRow]) -> Option<String> {
        let rows: Vec<_> = rows.iter().collect();
        let it = level(&rows)?;
        Some(format!("{}: {} of {}", it.driver, it.right.join(","), it.required.join(",")))
    }

    const BARE: &str = "postgresql+asyncpg://u:p@pooler:6432/x";

    #[test]
    fn names_of_known_keys_leave_the_host_and_no_value() {
        let one = |keys: &str| said(&[row(&format!("{BARE}?{keys}"))]);
        assert_eq!(one(""), Some("asyncpg:  of statement_cache_size".into()));
        assert_eq!(one("statement_cache_size=0"), Some("asyncpg: statement_cache_size of statement_cache_size".into()));
        assert_eq!(one("statement_cache_size=100"), one(""), "there, and not right");
        let both = one("raw_sql=true&no_prepare=true&password=canary&application_name=canary");
        assert_eq!(both, Some("asyncpg: no_prepare,raw_sql of statement_cache_size".into()));
        // The operator's word counts in the place of ours; what is on no list stays here.
        let mut it = row(BARE);
        it.dsn.required = ["raw_sql=TRUE|no_prepare=true", "pgbouncer=canary", "canary=1"].map(Arc::from).into();
        assert_eq!(said(&[it]), Some("asyncpg:  of no_prepare|raw_sql".into()));
        assert_eq!(said(&[row("postgresql+psycopg2://u:p@h/x")]), Some("psycopg2:  of ".into()), "it needs none");
    }

    #[test]
    fn half_of_a_pool_is_no_proof() {
        let set = format!("{BARE}?statement_cache_size=0");
        assert_eq!(said(&[row(&set), row(BARE)]), said(&[row(BARE)]), "each of them has to have it");
        assert_eq!(said(&[row(&set), row("")]), None, "one cannot be read");
        assert_eq!(said(&[row("postgres://u:p@h/x")]), None, "any driver");
        assert_eq!(said(&[row(&set), row("postgresql+psycopg2://u:p@h/x")]), None, "two drivers");
    }

    #[test]
    fn who_hands_out_connections_is_said_by_the_operator_the_pooler_or_the_server_itself() {
        let with = |mode| {
            let mut it = row(BARE);
            it.dsn.pooler = mode;
            it
        };
        let transaction = Some(PoolMode::Transaction);
        for (said, told, is_direct, expected) in [
            (None, None, false, None),
            (None, None, true, Some(false)),
            (None, Some(true), false, Some(true)),
            (transaction, None, true, Some(true)),
            (transaction, Some(false), false, Some(false)),
            (Some(PoolMode::Session), Some(true), false, Some(false)),
        ] {
            assert_eq!(by_transaction(&[&with(said)], told, is_direct), expected, "{said:?} {told:?} {is_direct}");
        }
    }
}
