//! How an application connects, as its own DSN says: driver, host, port, and the keys that are no secrets.
//!
//! A DSN holds a password, so nothing of it is kept but what is named here: values only of keys that are known to be
//! harmless, names of no others.

use std::sync::Arc;

/// Keys whose value says how statements are prepared; all others are passed over.
const SAFE_KEYS: [&str; 12] = [
    "statement_cache_size",
    "prepared_statement_cache_size",
    "prepare_threshold",
    "preparethreshold",
    "prepared_statements",
    "pgbouncer",
    "raw_sql",
    "no_prepare",
    "default_query_exec_mode",
    "statement_cache_capacity",
    "binary_parameters",
    "prefer_simple_protocol",
];
/// How the URLs begin, what is spoken there, and the usual ports.
const SCHEMES: [(&str, &str, u16); 9] = [
    ("postgres", "postgresql", 5432),
    ("postgresql", "postgresql", 5432),
    ("mysql", "mysql", 3306),
    ("mariadb", "mysql", 3306),
    ("redis", "redis", 6379),
    ("rediss", "redis", 6379),
    ("amqp", "rabbitmq", 5672),
    ("amqps", "rabbitmq", 5671),
    ("mongodb", "mongodb", 27017),
];
const MAX_NAME: usize = 255;
const MAX_VALUE: usize = 40;

/// What one DSN says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Driver, where the scheme tells it: `asyncpg`, `psycopg`, `jdbc`.
    pub driver: Option<&'static str>,
    /// What is spoken there: `postgresql`, `redis`.
    pub service: &'static str,
    /// Name or address of the server.
    pub host: Arc<str>,
    /// Its port; the usual one when none is given.
    pub port: u16,
    /// Known keys with their values, both in lower case.
    pub keys: Vec<(&'static str, Arc<str>)>,
    /// Where the DSN stood: `DATABASE_URL of the process`, `command line`.
    pub source: &'static str,
}

impl Named {
    /// Whether one of the alternatives of `required` (`a=0|b=0`) is there.
    pub fn has(&self, required: &str) -> bool {
        required.split('|').filter_map(|it| it.split_once('=')).any(|(name, wanted)| {
            let is_it =
                |(key, value): &(&str, Arc<str>)| name.eq_ignore_ascii_case(key) && wanted.eq_ignore_ascii_case(value);
            self.keys.iter().any(is_it)
        })
    }

    /// Reads a URL of a server whose pools are watched; `None` for anything else, several hosts among it.
    pub fn read(dsn: &str, source: &'static str) -> Option<Self> {
        let (is_jdbc, dsn) = dsn.strip_prefix("jdbc:").map_or((false, dsn), |rest| (true, rest));
        let (scheme, rest) = dsn.split_once("://")?;
        let (engine, library) = scheme.split_once('+').unwrap_or((scheme, ""));
        let (_, service, default_port) = *SCHEMES.iter().find(|(scheme, ..)| *scheme == engine)?;
        let driver = match library {
            _ if service != "postgresql" => None,
            _ if is_jdbc => Some("jdbc"),
            "asyncpg" => Some("asyncpg"),
            "psycopg" | "psycopg_async" => Some("psycopg"),
            "psycopg2" => Some("psycopg2"),
            _ => None,
        };
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        // The password may hold a slash or an at sign that was not escaped; the host is behind the last at sign.
        let host = address.rsplit_once('@').map_or(address, |(_, host)| host).split('/').next()?;
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') => (host, port.parse().ok()?),
            _ => (host, default_port),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > MAX_NAME || !host.chars().all(is_name) {
            return None;
        }
        Some(Self { driver, service, host: host.to_ascii_lowercase().into(), port, keys: keys(query), source })
    }
}

fn keys(query: &str) -> Vec<(&'static str, Arc<str>)> {
    let pairs = query.split(['&', ';', '#']).filter_map(|it| it.split_once('='));
    let known = pairs.filter_map(|(name, value)| {
        let key = SAFE_KEYS.iter().find(|it| it.eq_ignore_ascii_case(name))?;
        let is_plain = value.len() <= MAX_VALUE && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        Some((*key, if is_plain { value.to_ascii_lowercase().into() } else { "".into() }))
    });
    known.take(SAFE_KEYS.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(dsn: &str) -> Option<String> {
        let it = Named::read(dsn, "test")?;
        let keys: Vec<_> = it.keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        Some(format!("{} {}:{} {}", it.driver.unwrap_or("-"), it.host, it.port, keys.join(",")))
    }

    #[test]
    fn a_dsn_says_driver_host_port_and_known_keys() {
        for (dsn, expected) in [
            (
                "postgresql+asyncpg://u:p@db.internal:6432/x?prepared_statement_cache_size=0&ssl=require",
                Some("asyncpg db.internal:6432 prepared_statement_cache_size=0"),
            ),
            ("postgresql+psycopg://u:p@DB/x?prepare_threshold=None", Some("psycopg db:5432 prepare_threshold=none")),
            ("jdbc:postgresql://db:6432/x?prepareThreshold=0", Some("jdbc db:6432 preparethreshold=0")),
            ("postgres://u:p/a@b@10.0.0.5:5433/x", Some("- 10.0.0.5:5433 ")),
            ("postgres://u:p@[::1]:5433/x", Some("- ::1:5433 ")),
            ("postgres://u:p@one:1,two:2/x", None),
            ("mysql+pymysql://u:p@db/x", Some("- db:3306 ")),
            ("redis://:p@cache.internal/0", Some("- cache.internal:6379 ")),
            ("amqps://u:p@queue/%2f", Some("- queue:5671 ")),
            ("https://u:p@db/x", None),
            ("host=db port=5432", None),
        ] {
            assert_eq!(shown(dsn).as_deref(), expected, "{dsn}");
        }
    }

    #[test]
    fn no_secret_is_kept() {
        let dsn =
            "postgresql+asyncpg://canary-1:canary-2@db:6432/canary-3?password=canary-4&statement_cache_size=canary-5";
        let shown = format!("{:?}", Named::read(dsn, "test"));
        assert!(shown.contains("statement_cache_size") && !shown.contains("canary"), "{shown}");
    }

    #[test]
    fn one_of_the_alternatives_is_enough() {
        let it = Named::read("postgresql+asyncpg://db/x?statement_cache_size=0", "test").expect("a DSN");
        assert!(it.has("prepared_statement_cache_size=0|statement_cache_size=0"));
        assert!(!it.has("prepared_statement_cache_size=0") && !it.has("statement_cache_size=1") && !it.has(""));
    }

    proptest! {
        #[test]
        fn never_panics(text in "(jdbc:)?(postgres(ql)?(\\+[a-z]{0,8})?://)?\\PC{0,60}") {
            let _ = Named::read(&text, "test");
        }
    }
}
