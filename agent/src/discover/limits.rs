//! How many connections a process's pool may open, as its own settings say: a number, never the string it stood in.
//!
//! Read are named keys of the environment, DSNs among them, and the command line. All of them may hold passwords, so
//! what is kept is the number, whose pool it is, and the kind of place where it stood.

use std::sync::Arc;

use super::dsn_keys::Named;
use crate::kernel::proc::strings;

/// SQLAlchemy opens so many beyond `pool_size` when nobody says otherwise.
const DEFAULT_OVERFLOW: u32 = 10;
/// No pool is larger; a larger number is a mistake, or not what its key suggests.
const MAX_LIMIT: u32 = 100_000;
const MAX_SETTINGS: usize = 32;

/// The pool limits that one process's settings tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    found: Vec<Setting>,
    named: Vec<Arc<Named>>,
    libpq_port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    kind: Kind,
    port: Option<u16>,
    bound: Bound,
}

/// A limit and where it stood. `low` and `high` differ when the size is set and the overflow is not, which then
/// depends on the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The least that the limit can be.
    pub low: u32,
    /// The most.
    pub high: u32,
    /// `DATABASE_URL of the process`, `environment of the process`, `command line`.
    pub source: &'static str,
}

/// Families of services whose settings do not mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sql,
    Redis,
    Mongo,
    Other,
}

/// Keys that hold a DSN, and how it is called when it is the source.
const DSN_KEYS: &[(&str, &str)] = &[
    ("DATABASE_URL", "DATABASE_URL of the process"),
    ("ASYNC_DATABASE_URL", "ASYNC_DATABASE_URL of the process"),
    ("SQLALCHEMY_DATABASE_URI", "SQLALCHEMY_DATABASE_URI of the process"),
    ("SQLALCHEMY_DATABASE_URL", "SQLALCHEMY_DATABASE_URL of the process"),
    ("DATABASE_URI", "DATABASE_URI of the process"),
    ("DATABASE_DSN", "DATABASE_DSN of the process"),
    ("DB_URL", "DB_URL of the process"),
    ("DB_DSN", "DB_DSN of the process"),
    ("POSTGRES_URL", "POSTGRES_URL of the process"),
    ("POSTGRES_DSN", "POSTGRES_DSN of the process"),
    ("PG_DSN", "PG_DSN of the process"),
    ("MYSQL_URL", "MYSQL_URL of the process"),
    ("JDBC_DATABASE_URL", "JDBC_DATABASE_URL of the process"),
    ("SPRING_DATASOURCE_URL", "SPRING_DATASOURCE_URL of the process"),
    ("REDIS_URL", "REDIS_URL of the process"),
    ("MONGODB_URI", "MONGODB_URI of the process"),
    ("MONGO_URL", "MONGO_URL of the process"),
];

/// Keys that hold a number.
struct NumberKeys {
    kind: Kind,
    size: Option<&'static str>,
    overflow: Option<&'static str>,
    maximum: Option<&'static str>,
}

/// Size, overflow and maximum of one pool, all with the same beginning.
const fn sized(size: &'static str, overflow: &'static str, maximum: &'static str) -> NumberKeys {
    NumberKeys { kind: Kind::Sql, size: Some(size), overflow: Some(overflow), maximum: Some(maximum) }
}

const fn maximum(kind: Kind, key: &'static str) -> NumberKeys {
    NumberKeys { kind, size: None, overflow: None, maximum: Some(key) }
}

const NUMBER_KEYS: &[NumberKeys] = &[
    sized("SQLALCHEMY_POOL_SIZE", "SQLALCHEMY_MAX_OVERFLOW", "SQLALCHEMY_POOL_MAX"),
    sized("DB_POOL_SIZE", "DB_MAX_OVERFLOW", "DB_MAX_POOL_SIZE"),
    sized("DATABASE_POOL_SIZE", "DATABASE_MAX_OVERFLOW", "DATABASE_POOL_MAX"),
    sized("POSTGRES_POOL_SIZE", "POSTGRES_MAX_OVERFLOW", "POSTGRES_POOL_MAX"),
    sized("PG_POOL_SIZE", "PG_MAX_OVERFLOW", "PG_POOL_MAX"),
    sized("MYSQL_POOL_SIZE", "MYSQL_MAX_OVERFLOW", "MYSQL_POOL_MAX"),
    maximum(Kind::Sql, "DB_POOL"),
    maximum(Kind::Sql, "DB_POOL_MAX"),
    maximum(Kind::Sql, "DB_MAX_OPEN_CONNS"),
    maximum(Kind::Sql, "SPRING_DATASOURCE_HIKARI_MAXIMUM_POOL_SIZE"),
    maximum(Kind::Sql, "SPRING_DATASOURCE_HIKARI_MAXIMUMPOOLSIZE"),
    maximum(Kind::Sql, "QUARKUS_DATASOURCE_JDBC_MAX_SIZE"),
    maximum(Kind::Redis, "REDIS_MAX_CONNECTIONS"),
    maximum(Kind::Redis, "REDIS_POOL_SIZE"),
    maximum(Kind::Mongo, "MONGODB_MAX_POOL_SIZE"),
];

const ENVIRONMENT: &str = "environment of the process";
const COMMAND_LINE: &str = "command line";

impl Settings {
    /// Reads what the environment (as of `/proc/<pid>/environ`) and the arguments say. An environment that may not be
    /// read is given as empty.
    pub fn read(environment: &[u8], arguments: &[&str]) -> Self {
        let mut settings = Self::default();
        for (key, source) in DSN_KEYS {
            if let Some(dsn) = strings::value_of(environment, key) {
                settings.add(from_dsn(dsn, source));
                settings.name(dsn, source);
            }
        }
        let number = |key: Option<&str>| key.and_then(|key| parse_limit(strings::value_of(environment, key)?));
        for keys in NUMBER_KEYS {
            let parts =
                Parts { size: number(keys.size), overflow: number(keys.overflow), maximum: number(keys.maximum) };
            settings.add(parts.bound(ENVIRONMENT).map(|bound| Setting { kind: keys.kind, port: None, bound }));
        }
        settings.libpq_port = strings::value_of(environment, "PGPORT").and_then(|it| it.parse().ok());
        settings.add(from_arguments(arguments));
        for argument in arguments.iter().skip(1) {
            let value = argument
                .split_once('=')
                .filter(|(name, _)| !name.contains("://"))
                .map_or(*argument, |(_, value)| value);
            if value.contains("://") {
                settings.add(from_dsn(value, COMMAND_LINE));
                settings.name(value, COMMAND_LINE);
            }
        }
        settings
    }

    fn add(&mut self, setting: Option<Setting>) {
        if self.found.len() < MAX_SETTINGS {
            self.found.extend(setting);
        }
    }

    fn name(&mut self, dsn: &str, source: &'static str) {
        if self.named.len() < MAX_SETTINGS {
            self.named.extend(Named::read(dsn, source).map(Arc::new));
        }
    }

    /// Ports to which its DSNs lead, with what is spoken there.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &'static str)> {
        let libpq = self.libpq_port.map(|port| (port, "postgresql"));
        self.named.iter().map(|it| (it.port, it.service)).chain(libpq)
    }

    /// The first DSN that leads to this port.
    pub fn named_for(&self, port: u16) -> Option<Arc<Named>> {
        self.named.iter().find(|it| it.port == port).cloned()
    }

    /// The limit of this process's pool to `port`, where `service` is what the port speaks, when it is known.
    pub fn limit_for(&self, service: Option<&str>, port: u16) -> Option<Bound> {
        let kind = match service {
            Some("postgresql" | "pgbouncer" | "mysql" | "sqlserver" | "oracle") => Some(Kind::Sql),
            Some("redis") => Some(Kind::Redis),
            Some("mongodb") => Some(Kind::Mongo),
            Some(_) => Some(Kind::Other),
            None => None,
        };
        // A DSN that names this port is meant for it, whatever the port usually speaks.
        let by_port = self.found.iter().find(|one| one.port == Some(port));
        by_port
            .or_else(|| self.found.iter().find(|one| one.port.is_none() && kind.is_none_or(|kind| kind == one.kind)))
            .map(|one| one.bound)
    }
}

/// What was said of one pool.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    size: Option<u32>,
    overflow: Option<u32>,
    maximum: Option<u32>,
}

impl Parts {
    fn bound(self, source: &'static str) -> Option<Bound> {
        let (low, high) = match self {
            Self { maximum: Some(maximum), .. } => (maximum, maximum),
            Self { size: Some(size), overflow: Some(overflow), .. } => (size + overflow, size + overflow),
            Self { size: Some(size), .. } => (size, size + DEFAULT_OVERFLOW),
            _ => return None,
        };
        // Zero means "no limit" where it is allowed at all.
        (1..=MAX_LIMIT).contains(&low).then_some(Bound { low, high, source })
    }

    /// Takes the number when `name` is that of a pool's size, overflow or maximum.
    fn take(&mut self, name: &str, value: &str) {
        let plain: String =
            name.chars().filter(char::is_ascii_alphanumeric).take(64).collect::<String>().to_ascii_lowercase();
        let place = match plain.as_str() {
            "poolsize" => &mut self.size,
            "maxoverflow" => &mut self.overflow,
            "maxpoolsize" | "maximumpoolsize" | "poolmaxconns" | "poolmaxsize" | "poolmax" | "connectionlimit"
            | "maxconnections" | "maxopenconns" | "pool" => &mut self.maximum,
            _ => return,
        };
        if let Some(number) = parse_limit(value) {
            *place = Some(number);
        }
    }
}

/// A DSN: a URL, or `key=value` pairs with spaces between them.
fn from_dsn(dsn: &str, source: &'static str) -> Option<Setting> {
    let dsn = dsn.strip_prefix("jdbc:").unwrap_or(dsn);
    let mut parts = Parts::default();
    let (kind, port) = match dsn.split_once("://") {
        Some((scheme, rest)) => {
            let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
            for pair in query.split(['&', ';', '#']) {
                if let Some((name, value)) = pair.split_once('=') {
                    parts.take(name, value);
                }
            }
            (kind_of(scheme), port_of(address))
        }
        None => {
            let mut port = None;
            for pair in dsn.split_ascii_whitespace() {
                match pair.split_once('=') {
                    Some(("port", value)) => port = value.parse().ok(),
                    Some((name, value)) => parts.take(name, value),
                    None => (),
                }
            }
            (Kind::Sql, port)
        }
    };
    parts.bound(source).map(|bound| Setting { kind, port, bound })
}

fn kind_of(scheme: &str) -> Kind {
    match scheme.split('+').next().unwrap_or("") {
        "redis" | "rediss" | "valkey" => Kind::Redis,
        "mongodb" => Kind::Mongo,
        "postgres" | "postgresql" | "postgis" | "mysql" | "mysql2" | "mariadb" | "sqlserver" | "mssql" | "oracle"
        | "cockroachdb" => Kind::Sql,
        _ => Kind::Other,
    }
}

/// The port of `user:password@host:port/database`; `None` when there is none, or several hosts.
fn port_of(address: &str) -> Option<u16> {
    // The password may hold a slash or an at sign that was not escaped; the host is behind the last at sign.
    let host = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let host = host.split('/').next()?;
    if host.contains(',') {
        return None;
    }
    host.rsplit_once(':')?.1.parse().ok()
}

/// `--db-pool-size 20`, `-Dspring.datasource.hikari.maximum-pool-size=20`, `--max-overflow=5`.
fn from_arguments(arguments: &[&str]) -> Option<Setting> {
    /// What may stand before a pool's word; `thread-pool-size` is another thing.
    const PREFIXES: &[&str] =
        &["db", "database", "sqlalchemy", "sql", "pg", "postgres", "mysql", "hikari", "spring", "datasource"];
    let mut parts = Parts::default();
    for (at, argument) in arguments.iter().enumerate().skip(1) {
        let Some(option) = argument.strip_prefix("--").or_else(|| argument.strip_prefix("-D")) else { continue };
        let (name, value) = match option.split_once('=') {
            Some(pair) => pair,
            None => (option, arguments.get(at + 1).copied().unwrap_or("")),
        };
        let mut words = name.split(['.', '-', '_']).skip_while(|word| PREFIXES.contains(word));
        // A single word such as `--pool` or `--max` says too little of what it bounds.
        let (Some(first), Some(second)) = (words.next(), words.next()) else {
            if let Some((_, camel @ ("maximumPoolSize" | "maxPoolSize" | "poolSize"))) = name.rsplit_once('.') {
                parts.take(camel, value);
            }
            continue;
        };
        let joined: String = [first, second].into_iter().chain(words).collect();
        if !matches!(joined.as_str(), "maxconnections" | "connectionlimit") {
            parts.take(&joined, value);
        }
    }
    parts.bound(COMMAND_LINE).map(|bound| Setting { kind: Kind::Sql, port: None, bound })
}

fn parse_limit(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|number| *number <= MAX_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(environment: &str, line: &str, service: Option<&str>, port: u16) -> Option<(u32, u32, &'static str)> {
        let environment = environment.replace('|', "\0");
        let arguments: Vec<_> = line.split(' ').collect();
        Settings::read(environment.as_bytes(), &arguments)
            .limit_for(service, port)
            .map(|bound| (bound.low, bound.high, bound.source))
    }

    #[test]
    fn limits_are_found_where_applications_keep_them() {
        let url = "DATABASE_URL of the process";
        for (environment, line, expected) in [
            ("DATABASE_URL=postgresql+asyncpg://u:p@db:5432/x?pool_size=20&max_overflow=10", "x", Some((30, 30, url))),
            ("DATABASE_URL=postgres://u:p@db/x?connection_limit=7", "x", Some((7, 7, url))),
            ("DATABASE_URL=host=db port=5432 password=p pool_max_conns=9", "x", Some((9, 9, url))),
            ("DATABASE_URL=postgres://u:p@db:5432/x?pool_size=20", "x", Some((20, 30, url))),
            ("DATABASE_URL=postgres://u:p@db:6000/x?pool_size=20", "x", None),
            (
                "SPRING_DATASOURCE_URL=jdbc:postgresql://db:5432/x?maximumPoolSize=12",
                "x",
                Some((12, 12, "SPRING_DATASOURCE_URL of the process")),
            ),
            ("SQLALCHEMY_POOL_SIZE=5|SQLALCHEMY_MAX_OVERFLOW=0", "x", Some((5, 5, ENVIRONMENT))),
            ("DB_POOL_SIZE=5|DB_MAX_OVERFLOW=3", "x", Some((8, 8, ENVIRONMENT))),
            ("DATABASE_POOL_SIZE=5", "x", Some((5, 15, ENVIRONMENT))),
            ("SPRING_DATASOURCE_HIKARI_MAXIMUMPOOLSIZE=11", "x", Some((11, 11, ENVIRONMENT))),
            ("DB_POOL_SIZE=0", "x", None),
            ("DB_POOL_SIZE=many|DB_MAX_OVERFLOW=3", "x", None),
            ("DB_POOL_SIZE=99999999999", "x", None),
            ("REDIS_MAX_CONNECTIONS=50", "x", None),
            ("", "java -Dspring.datasource.hikari.maximum-pool-size=20 -jar x.jar", Some((20, 20, COMMAND_LINE))),
            ("", "java -jar x.jar --spring.datasource.hikari.maximumPoolSize=21", Some((21, 21, COMMAND_LINE))),
            ("", "app --db-pool-size 20 --max-overflow=4", Some((24, 24, COMMAND_LINE))),
            ("", "app --thread-pool-size 20 --max-connections 9 --pool 3", None),
            ("", "app --dsn=postgres://u:p@h:5432/x?pool_max_conns=6", Some((6, 6, COMMAND_LINE))),
            ("", "app postgres://u:p@h/x?pool_max_conns=6", Some((6, 6, COMMAND_LINE))),
            ("PATH=/bin", "app", None),
        ] {
            assert_eq!(limit(environment, line, Some("postgresql"), 5432), expected, "{environment} {line}");
        }
    }

    #[test]
    fn the_setting_of_another_service_is_not_taken() {
        let both =
            "REDIS_URL=redis://:p@cache:6379/0?max_connections=50|DATABASE_URL=postgres://u:p@db/x?pool_max_conns=9";
        assert_eq!(limit(both, "x", Some("redis"), 6379).unwrap().0, 50);
        assert_eq!(limit(both, "x", Some("postgresql"), 5432).unwrap().0, 9);
        assert_eq!(limit(both, "x", Some("rabbitmq"), 5672), None);
        let private = "DATABASE_URL=postgres://u:p@db:40001/x?pool_max_conns=9";
        assert_eq!(limit(private, "x", None, 40001).unwrap().0, 9);
    }

    #[test]
    fn what_is_kept_holds_no_secret() {
        let environment = b"DATABASE_URL=postgres://u:canary-1@db/x?pool_size=5&password=canary-2\0DB_POOL_SIZE=canary-3\0SECRET=canary-4\0";
        let settings =
            Settings::read(environment, &["x", "--pool-size", "canary-5", "postgres://canary-6@h/d?pool_max_conns=4"]);
        assert_eq!(settings.limit_for(Some("postgresql"), 5432).unwrap().low, 5);
        assert!(!format!("{settings:?}").contains("canary"), "{settings:?}");
    }

    proptest! {
        #[test]
        fn never_panics_and_never_keeps_a_string(
            dsn in "[a-z]{0,9}(://)?[a-z0-9:@/?&=,;_. \\[\\]é-]{0,80}",
            arguments in proptest::collection::vec("(--|-D)?[a-z.=_:/?-]{0,30}[0-9]{0,12}", 0..5),
        ) {
            let environment = format!("DATABASE_URL={dsn}?pool_size=7\0DB_DSN={dsn}\0canary={dsn}\0");
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            let settings = Settings::read(environment.as_bytes(), &arguments);
            for bound in settings.found.iter().map(|one| one.bound) {
                prop_assert!(bound.low >= 1 && bound.low <= bound.high && bound.high <= 2 * MAX_LIMIT);
            }
            let _ = settings.limit_for(None, 1);
        }
    }
}
