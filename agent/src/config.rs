//! The agent's configuration: text goes in, a [`Config`] that cannot be wrong comes out, or every mistake at once.
//!
//! Each stage owns its own struct; this file only composes them. What may heal while the agent runs (a server, a name,
//! a password) is no mistake here.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tickbird_shared::Labels;
use toml::Value;

use crate::agent::{Budget, CANARY_EVERY};
use crate::buffer;
use crate::identity::files::Files;
#[cfg(feature = "mysql")]
use crate::inspect::mysql;
#[cfg(feature = "rabbitmq")]
use crate::inspect::rabbitmq;
#[cfg(feature = "redis")]
use crate::inspect::redis;
use crate::inspect::{host, http_endpoint, log_tail, pgbouncer, pool_metrics, postgres};
use crate::judge;
use crate::ship;

pub mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod log;
mod pool_source;
pub mod reader;

pub use files::{Place, Warning};
pub use reader::{Mistake, Mistakes, nearest};
use reader::{Notes, Section};

/// Everything the agent is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Buffer, identity and local socket. Default `/var/lib/tickbird-agent`.
    pub state_dir: PathBuf,
    /// Laid under the labels of the enrolment token.
    pub labels: Labels,
    /// Where records go; without it the identity's address is used.
    pub collector: Option<ship::Origin>,
    /// A certificate of another PKI in the place of enrolment.
    pub identity: Option<Arc<Files>>,
    /// Applications that the operator named.
    pub apps: Vec<host::DeclaredApp>,
    /// PostgreSQL servers whose own view is asked for.
    pub postgres: Vec<Server<postgres::Config>>,
    /// PgBouncers whose console is asked.
    pub pgbouncer: Vec<Server<pgbouncer::Config>>,
    /// MySQL and MariaDB servers.
    #[cfg(feature = "mysql")]
    pub mysql: Vec<Server<mysql::Config>>,
    /// Redis and Valkey servers.
    #[cfg(feature = "redis")]
    pub redis: Vec<Server<redis::Config>>,
    /// RabbitMQs whose management API is asked.
    #[cfg(feature = "rabbitmq")]
    pub rabbitmq: Vec<Server<rabbitmq::Config>>,
    /// What applications say of their own pools.
    pub pools: Vec<PoolSource>,
    /// HTTP endpoints that are probed.
    pub endpoints: Vec<Endpoint>,
    /// Logs that are followed.
    pub logs: Vec<log_tail::Config>,
    /// The table of checks with the operator's changes.
    pub checks: judge::Thresholds,
    /// The buffer.
    pub buffer: buffer::Config,
    /// What the agent may take of its host.
    pub budget: Budget,
    /// Between two canaries. Default 60 s; none when none goes.
    pub canary: Option<Duration>,
    /// Loopback address on which health and metrics are served. Default none: nothing listens.
    pub listen: Option<SocketAddr>,
    /// Between two looks at sockets and processes. Default 1 s.
    pub host_interval: Duration,
    /// Between two questions for the names of servers. Default 15 s.
    pub resolver_interval: Duration,
    /// Whether other network namespaces are entered. Default false: only their socket tables are read.
    pub namespaces: bool,
    /// Between two looks at who has SQLite databases open. Default 30 s.
    pub sqlite_interval: Duration,
    /// The files this came from.
    pub files: Vec<PathBuf>,
    /// What is no mistake, and should be mended all the same.
    pub warnings: Vec<Warning>,
}

/// A server and how often it is asked.
#[derive(Debug, Clone)]
pub struct Server<C> {
    /// What the inspector needs.
    pub inspector: C,
    /// Between two looks. Default 5 s: cheap for the server, and six looks within the shortest bound of 30 s.
    pub interval: Duration,
}

/// An endpoint and how often it is probed.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// What the inspector needs.
    pub inspector: http_endpoint::Config,
    /// Between two requests. Default 10 s.
    pub interval: Duration,
}

/// A page on which an application tells of its pools, and how often it is asked.
#[derive(Debug, Clone)]
pub struct PoolSource {
    /// What the inspector needs.
    pub inspector: pool_metrics::Config,
    /// Between two looks. Default 10 s; every second one while callers wait.
    pub interval: Duration,
}

const SECOND: Duration = Duration::from_secs(1);
/// Between two questions for the names of servers.
const RESOLVER_INTERVAL: Duration = Duration::from_secs(15);
/// Between two looks at who has SQLite databases open.
const SQLITE_INTERVAL: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);
/// Default of `state_dir`; systemd's `StateDirectory=` makes it.
const STATE_DIR: &str = "/var/lib/tickbird-agent";
/// Largest secret file that is read.
const MAX_SECRET_BYTES: u64 = 16 << 10;

impl Config {
    /// Reads the files of `place`.
    ///
    /// # Errors
    /// With every mistake that is in them.
    pub fn load(place: &Place) -> Result<Self, Mistakes> {
        let notes = Notes::default();
        let (table, files) = place.read(&notes);
        let mut config = compose(Section::root(table, notes.clone()), place, files);
        config.warnings = notes.warnings();
        let mistakes = notes.take();
        if mistakes.0.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// What the host inspector needs of it; `endpoints` is filled as the servers' addresses become known.
    pub fn host(&self, endpoints: host::Endpoints) -> host::Config {
        host::Config { apps: self.apps.clone(), endpoints, namespaces: self.namespaces, ..host::Config::default() }
    }

    const fn mysql_count(&self) -> usize {
        #[cfg(feature = "mysql")]
        return self.mysql.len();
        #[cfg(not(feature = "mysql"))]
        return 0;
    }

    const fn redis_count(&self) -> usize {
        #[cfg(feature = "redis")]
        return self.redis.len();
        #[cfg(not(feature = "redis"))]
        return 0;
    }

    const fn rabbitmq_count(&self) -> usize {
        #[cfg(feature = "rabbitmq")]
        return self.rabbitmq.len();
        #[cfg(not(feature = "rabbitmq"))]
        return 0;
    }

    /// One paragraph for `check-config`.
    pub fn describe(&self) -> String {
        let files: Vec<_> = self.files.iter().map(|it| it.display().to_string()).collect();
        let collector = self.collector.as_ref().map(ToString::to_string);
        let from = if files.is_empty() { "no file: defaults".to_owned() } else { files.join(", ") };
        format!(
            "configuration is good ({from})\n  state directory  {}\n  collector        {}\n  applications     {}\n  pool sources     {}\n  postgres         {}\n  pgbouncer        {}\n  mysql            {}\n  redis            {}\n  rabbitmq         {}\n  logs             {}\n  endpoints        {}\n  local page       {}",
            self.state_dir.display(),
            collector.as_deref().unwrap_or("from enrolment, if the agent is enrolled"),
            self.apps.len(),
            self.pools.len(),
            self.postgres.len(),
            self.pgbouncer.len(),
            self.mysql_count(),
            self.redis_count(),
            self.rabbitmq_count(),
            self.logs.len(),
            self.endpoints.len(),
            self.listen.map_or_else(|| "off".to_owned(), |it| format!("http://{it}/healthz and /metrics")),
        )
    }
}

fn compose(mut root: Section, place: &Place, files: Vec<PathBuf>) -> Config {
    let said = root.text("state_dir").map_or_else(|| PathBuf::from(STATE_DIR), PathBuf::from);
    let state_dir = place.state_dir.clone().unwrap_or(said);
    let labels = labels(&mut root);
    let (collector, identity) = match root.section("collector") {
        Some(mut section) => collector(&mut section),
        None => (None, None),
    };
    let mut pools = Vec::new();
    let apps = root.sections("app").into_iter().filter_map(|it| app(it, &mut pools)).collect();
    let postgres = root.sections("postgres").into_iter().filter_map(postgres_server).collect();
    let pgbouncer = root.sections("pgbouncer").into_iter().filter_map(pooler).collect();
    #[cfg(feature = "mysql")]
    let mysql = root.sections("mysql").into_iter().filter_map(mysql_server).collect();
    #[cfg(feature = "redis")]
    let redis = root.sections("redis").into_iter().filter_map(redis_server).collect();
    #[cfg(feature = "rabbitmq")]
    let rabbitmq = root.sections("rabbitmq").into_iter().filter_map(rabbitmq_server).collect();
    let endpoints: Vec<Endpoint> = root.sections("endpoint").into_iter().filter_map(endpoint).collect();
    let logs = log::read(&mut root);
    for (index, it) in endpoints.iter().enumerate() {
        let shown = it.inspector.url.to_string();
        if endpoints[..index].iter().any(|earlier| earlier.inspector.url.to_string() == shown) {
            let advice = "a query does not tell targets apart: give one of them another path";
            root.note(
                format!("endpoint[{index}].url"),
                "is the same target as an endpoint before it",
                Some(advice.into()),
            );
        }
    }
    let mut buffer = buffer::Config::new(state_dir.join("buffer"));
    if let Some(mut section) = root.section("buffer") {
        if let Some(bytes) = section.bytes("max_bytes", buffer::MIN_MAX_BYTES, 64 << 30) {
            buffer = buffer.clone().with_max_bytes(bytes).unwrap_or(buffer);
        }
        if let Some(bytes) = section.bytes("min_free", 0, 64 << 30) {
            buffer = buffer.with_min_free_bytes(bytes);
        }
    }
    let (mut host_interval, mut namespaces) = (SECOND, false);
    if let Some(mut section) = root.section("host") {
        host_interval = section.duration("interval", SECOND / 10, HOUR).unwrap_or(SECOND);
        namespaces = section.flag("namespaces").unwrap_or(false);
    }
    let mut budget = Budget::default();
    if let Some(mut section) = root.section("budget") {
        budget.cpu = section.percent("cpu", 0.001, 64.0).unwrap_or(budget.cpu);
        budget.memory = section.bytes("memory", 1 << 20, 64 << 30).unwrap_or(budget.memory);
    }
    let canary = root.section("canary").map_or(Some(CANARY_EVERY), canary);
    let listen = root.section("local").and_then(|mut it| listen(&mut it));
    let mut resolver_interval = RESOLVER_INTERVAL;
    if let Some(mut section) = root.section("resolver") {
        resolver_interval = section.duration("interval", SECOND, HOUR).unwrap_or(RESOLVER_INTERVAL);
    }
    let mut sqlite_interval = SQLITE_INTERVAL;
    if let Some(mut section) = root.section("sqlite") {
        sqlite_interval = section.duration("interval", SECOND, HOUR).unwrap_or(SQLITE_INTERVAL);
    }
    let checks = checks(&mut root);
    Config {
        state_dir,
        labels,
        collector,
        identity,
        apps,
        postgres,
        pgbouncer,
        #[cfg(feature = "mysql")]
        mysql,
        #[cfg(feature = "redis")]
        redis,
        #[cfg(feature = "rabbitmq")]
        rabbitmq,
        pools,
        endpoints,
        logs,
        checks,
        buffer,
        budget,
        canary,
        listen,
        host_interval,
        resolver_interval,
        namespaces,
        sqlite_interval,
        files,
        warnings: Vec::new(),
    }
}

/// Between a second, for tests, and an hour.
fn canary(mut section: Section) -> Option<Duration> {
    let every = section.duration("interval", SECOND, HOUR).unwrap_or(CANARY_EVERY);
    section.flag("enabled").unwrap_or(true).then_some(every)
}

fn labels(root: &mut Section) -> Labels {
    let mut labels = Labels::default();
    for (name, value) in root.table("labels").unwrap_or_default() {
        let outcome = match value {
            Value::String(value) => labels.insert(name.clone(), value).map_err(|error| error.to_string()),
            _ => Err("is not a text".to_owned()),
        };
        if let Err(what) = outcome {
            root.wrong(&format!("labels.{name}"), what, None);
        }
    }
    labels
}

/// Where the collector is, and the certificate of another PKI to show there.
fn collector(section: &mut Section) -> (Option<ship::Origin>, Option<Arc<Files>>) {
    let origin = origin(section);
    let mut path = |key| section.text(key).map(PathBuf::from);
    let files = (path("certificate_file"), path("key_file"), path("ca_file"));
    match (files, section.text("agent"), &origin) {
        ((Some(certificate), Some(key), Some(authority)), Some(agent), Some(url)) => {
            let url = url.to_string();
            (origin, Some(Arc::new(Files { agent, url, certificate, key, authority })))
        }
        ((None, None, None), None, _) => (origin, None),
        _ => {
            let advice = "write all of them, or none for a certificate from `tickbird-agent enroll`";
            let what = "a certificate of another PKI needs url, agent, certificate_file, key_file and ca_file";
            section.wrong("certificate_file", what, Some(advice.into()));
            (origin, None)
        }
    }
}

/// Where probes and scrapers of this host may ask. What is said there is for everybody who can reach it.
fn listen(section: &mut Section) -> Option<SocketAddr> {
    let text = section.text("listen")?;
    let advice = || Some("write 127.0.0.1:7442 or [::1]:7442".to_owned());
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() && address.port() != 0 => return Some(address),
        Ok(address) if address.port() == 0 => section.wrong("listen", "needs a port that scrapers can know", advice()),
        Ok(_) => section.wrong("listen", "is no loopback address: other hosts are served by the collector", advice()),
        Err(_) => section.wrong("listen", "is no address with a port", advice()),
    }
    None
}

fn origin(section: &mut Section) -> Option<ship::Origin> {
    let url = section.text("url")?;
    let parsed = url.parse::<ship::Origin>();
    parsed.map_err(|error| section.wrong("url", error, Some("write https://host:port".into()))).ok()
}

fn app(mut section: Section, pools: &mut Vec<PoolSource>) -> Option<host::DeclaredApp> {
    let name = section.text("name");
    let command = section.text("command");
    let expected = section.flag("expected").unwrap_or(false);
    let (mut pooler, mut required_keys) = (None, Vec::new());
    let pool_limit = section.section("pool").and_then(|mut it| {
        pool_source::read(&mut it, name.as_deref().unwrap_or_default(), pools);
        (pooler, required_keys) = pool_source::pooler(&mut it);
        it.whole("limit", 1, 1_000_000)
    });
    for (key, value) in [("name", &name), ("command", &command)] {
        match value.as_deref() {
            None => section.wrong(key, "is missing or wrong", None),
            Some("") => section.wrong(key, "is empty", None),
            Some(text) if text.len() > 200 => section.wrong(key, "is longer than 200 bytes", None),
            Some(_) => (),
        }
    }
    Some(host::DeclaredApp {
        name: name?.into(),
        command: command?,
        pool_limit: pool_limit.and_then(|it| u32::try_from(it).ok()),
        pooler,
        required_keys,
        expected,
    })
}

fn postgres_server(mut section: Section) -> Option<Server<postgres::Config>> {
    let statements = section.flag("statements").unwrap_or(true);
    server(section, |text| match postgres::Dsn::parse(text) {
        Ok(dsn) => Ok(postgres::Config { dsn, statements }),
        Err(error) => Err((error.to_string(), error.advice())),
    })
}

fn pooler(section: Section) -> Option<Server<pgbouncer::Config>> {
    server(section, |text| pgbouncer::Config::parse(text).map_err(|error| (error.to_string(), error.advice())))
}

#[cfg(feature = "mysql")]
fn mysql_server(mut section: Section) -> Option<Server<mysql::Config>> {
    let statements = section.flag("statements").unwrap_or(true);
    server(section, |text| mysql::Config::parse(text, statements).map_err(|error| (error.to_string(), error.advice())))
}

#[cfg(feature = "redis")]
fn redis_server(mut section: Section) -> Option<Server<redis::Config>> {
    let statements = section.flag("statements").unwrap_or(true);
    server(section, |text| redis::Config::parse(text, statements).map_err(|error| (error.to_string(), error.advice())))
}

#[cfg(feature = "rabbitmq")]
fn rabbitmq_server(section: Section) -> Option<Server<rabbitmq::Config>> {
    server(section, |text| rabbitmq::Config::parse(text).map_err(|error| (error.to_string(), error.advice())))
}

/// A section with a DSN, which `parse` reads; it may say what is wrong and what to do, and never a part of it.
fn server<C>(mut section: Section, parse: impl FnOnce(&str) -> Result<C, (String, String)>) -> Option<Server<C>> {
    let (file, variable) = (section.text("dsn_file"), section.text("dsn_env"));
    let interval = section.duration("interval", SECOND, HOUR).unwrap_or(5 * SECOND);
    let (key, text) = match (file, variable) {
        (Some(path), None) => {
            if let Some(warning) = files::readable_by_others(Path::new(&path)) {
                section.warn(warning);
            }
            ("dsn_file", read_secret(Path::new(&path)).map_err(|it| (it, "make it readable to the agent's user")))
        }
        (None, Some(name)) => {
            let found = std::env::var(&name).map(zeroize::Zeroizing::new);
            (
                "dsn_env",
                found.map_err(|_| {
                    (format!("`{name}` is not in the environment"), "set it in the unit's environment file")
                }),
            )
        }
        _ => {
            section.wrong(
                "dsn_file",
                "give either dsn_file or dsn_env",
                Some("a DSN never stands in this file".into()),
            );
            return None;
        }
    };
    let text = match text {
        Ok(text) => text,
        Err((what, advice)) => {
            section.wrong(key, what, Some(advice.to_owned()));
            return None;
        }
    };
    match parse(text.trim()) {
        Ok(inspector) => Some(Server { inspector, interval }),
        Err((what, advice)) => {
            section.wrong(key, what, Some(advice));
            None
        }
    }
}

fn read_secret(path: &Path) -> Result<zeroize::Zeroizing<String>, String> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(it) if it.len() > MAX_SECRET_BYTES => return Err(format!("`{shown}` is larger than 16 KiB")),
        Ok(it) if !it.is_file() => return Err(format!("`{shown}` is not a file")),
        _ => (),
    }
    let mut text = zeroize::Zeroizing::new(String::new());
    // Some files of /proc say that they are empty, and never end.
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_SECRET_BYTES).read_to_string(&mut text));
    read.map(|_| text).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => format!("may not read `{shown}`"),
        std::io::ErrorKind::NotFound => format!("there is no file `{shown}`"),
        _ => format!("cannot read `{shown}`: {error}"),
    })
}

fn endpoint(mut section: Section) -> Option<Endpoint> {
    let url = section.text("url");
    if url.is_none() {
        section.wrong("url", "is missing or wrong", None);
    }
    let mut options = http_endpoint::Options {
        url: String::new(),
        status: section.text("status"),
        body_matches: section.text("body_matches"),
        json: Vec::new(),
        timeout: section.duration("timeout", SECOND / 10, 300 * SECOND).unwrap_or(10 * SECOND),
        ca_file: section.text("ca_file").map(PathBuf::from),
    };
    for (pointer, value) in section.table("json").unwrap_or_default() {
        match serde_json::to_value(&value) {
            Ok(value) => options.json.push((pointer, value)),
            Err(error) => section.wrong("json", format!("{pointer:?}: {error}"), None),
        }
    }
    let interval = section.duration("interval", SECOND, 24 * HOUR).unwrap_or(10 * SECOND);
    options.url = url?;
    match http_endpoint::Config::new(options) {
        Ok(inspector) => Some(Endpoint { inspector, interval }),
        Err(errors) => {
            for error in errors {
                section.wrong(error.key(), &error, Some(error.advice().to_owned()));
            }
            None
        }
    }
}

fn checks(root: &mut Section) -> judge::Thresholds {
    let mut overrides = Vec::new();
    for (check, mut section) in root.named_sections("check") {
        overrides.push(judge::Override {
            warning: section.value("warning").map(|it| written(&it)),
            critical: section.value("critical").map(|it| written(&it)),
            hold: section.value("hold").map(|it| written(&it)),
            enabled: section.flag("enabled"),
            allow_application_names: section.texts("allow_application_names").unwrap_or_default(),
            check,
        });
    }
    let (thresholds, mistakes) = judge::Thresholds::with(overrides);
    for it in mistakes {
        let at = it.key.map_or_else(|| format!("check.{:?}", it.check), |key| format!("check.{:?}.{key}", it.check));
        root.note(at, it.what, it.advice);
    }
    thresholds
}

/// A number or a text, as the operator wrote it.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads this text as the configuration; gives what `check-config` would print.
    fn check(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("agent.toml");
        let text = text.replace("$DIR", &directory.path().display().to_string());
        std::fs::write(&file, text).expect("written");
        std::fs::write(directory.path().join("good.dsn"), "postgresql://app:canary-secret@127.0.0.1/app")
            .expect("written");
        std::fs::write(directory.path().join("bad.dsn"), "postgresql://app:canary-secret@127.0.0.1/app?ssl_mode=on")
            .expect("written");
        Config::load(&Place { file: Some(file), state_dir: None }).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn a_certificate_of_another_pki_comes_with_everything_that_belongs_to_it() {
        let all = "[collector]\nurl = \"https://c.example.org:7443\"\nagent = \"web-1\"\n\
                   certificate_file = \"/a.pem\"\nkey_file = \"/a.key\"\nca_file = \"/ca.pem\"\n";
        let files = check(all).expect("good").identity.expect("files");
        assert_eq!((files.agent.as_str(), files.url.as_str()), ("web-1", "https://c.example.org:7443"));
        for line in ["agent = \"web-1\"\n", "key_file = \"/a.key\"\n", "url = \"https://c.example.org:7443\"\n"] {
            let said = check(&all.replace(line, "")).expect_err("something is missing");
            assert!(said.contains("collector.certificate_file"), "{said}");
        }
    }

    #[test]
    fn canaries_go_each_minute_unless_they_are_switched_off() {
        assert_eq!(check("").expect("good").canary, Some(Duration::from_secs(60)));
        assert_eq!(check("[canary]").expect("good").canary, Some(Duration::from_secs(60)));
        assert_eq!(check("canary.enabled = false").expect("good").canary, None);
        let said = check("[canary]\ninterval = \"10ms\"\nenabled = \"no\"\nevery = \"1s\"").expect_err("mistakes");
        for key in ["canary.interval", "canary.enabled", "canary.every"] {
            assert!(said.contains(key), "{said}");
        }
    }

    #[test]
    fn an_empty_file_is_a_configuration() {
        let config = check("").expect("defaults");
        assert_eq!(config.state_dir, Path::new("/var/lib/tickbird-agent"));
        assert!(config.postgres.is_empty() && config.endpoints.is_empty());
    }

    #[test]
    fn everything_that_is_documented_is_read() {
        let config = check(
            r#"
            state_dir = "/tmp/x"
            labels = { service = "grants-api" }
            collector.url = "https://collector.internal:7443"
            buffer.max_bytes = "128MiB"
            buffer.min_free = "8MiB"
            canary.interval = "90s"
            host.interval = "2s"
            host.namespaces = true
            [[app]]
            name = "grants-api"
            command = "uvicorn app.main:app"
            pool.limit = 30
            pool.metrics = "http://127.0.0.1:8000/metrics"
            pool.health = { url = "http://127.0.0.1:8000/health", limit = "/pool/size", in_use = "/pool/checked_out" }
            pool.endpoint = "10.0.0.5:5432"
            expected = true
            [[postgres]]
            dsn_file = "$DIR/good.dsn"
            statements = false
            interval = "7s"
            [[endpoint]]
            url = "http://127.0.0.1:8000/health"
            status = "200-299"
            body_matches = "ok"
            json = { "/database/ok" = true }
            timeout = "3s"
            interval = "4s"
            [check."pool.idle_in_transaction"]
            warning = "20s"
            hold = 2
            "#,
        )
        .expect("no mistake");
        assert_eq!(config.labels.get("service"), Some("grants-api"));
        assert!(config.namespaces);
        assert_eq!(config.canary, Some(Duration::from_secs(90)));
        assert_eq!(config.apps[0].pool_limit, Some(30));
        assert_eq!(config.pools.iter().map(|it| it.interval.as_secs()).collect::<Vec<_>>(), [10, 10]);
        assert_eq!(config.postgres[0].interval, Duration::from_secs(7));
        assert!(!config.postgres[0].inspector.statements);
        assert_eq!(config.endpoints[0].interval, Duration::from_secs(4));
        let changed: Vec<_> = config.checks.table().iter().filter(|it| it.changed).map(|it| it.check.id).collect();
        assert_eq!(changed, ["pool.idle_in_transaction"]);
    }

    #[test]
    fn five_mistakes_are_five_lines_and_no_secret_is_repeated() {
        let told = check(
            r#"
            state_dri = "/tmp/x"
            [[postgres]]
            dsn_file = "$DIR/bad.dsn"
            [[endpoint]]
            url = "ftp://127.0.0.1/"
            [check."pool.idle_in_transactoin"]
            warning = "30s"
            [check."pool.aborted_transaction"]
            warning = 90
            "#,
        )
        .expect_err("mistakes");
        assert!(told.starts_with("5 mistakes in agent configuration\n"), "{told}");
        for part in [
            "did you mean `state_dir`?",
            "postgres[0].dsn_file:",
            "endpoint[0].url:",
            "pool.idle_in_transactoin",
            "check.\"pool.aborted_transaction\".warning:",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(!told.contains("canary-secret"), "{told}");
    }

    #[test]
    fn a_dsn_in_the_file_and_a_missing_file_are_refused_with_advice() {
        let told = check("[[postgres]]\ndsn = \"postgresql://app:canary-secret@h/app\"").expect_err("mistakes");
        assert!(told.contains("a DSN never stands in this file") && !told.contains("canary-secret"), "{told}");
        let told = check("[[postgres]]\ndsn_file = \"/does/not/exist\"").expect_err("mistakes");
        assert!(told.contains("there is no file `/does/not/exist`"), "{told}");
    }

    #[cfg(all(feature = "redis", feature = "rabbitmq"))]
    #[test]
    fn mistakes_in_the_sections_of_redis_and_rabbitmq_are_named_without_a_secret() {
        let told = check(
            r#"
            [[redis]]
            dsn_file = "$DIR/good.dsn"
            [[rabbitmq]]
            dsn_file = "$DIR/bad.dsn"
            statements = false
            [[redis]]
            dsn_fil = "/x"
            "#,
        )
        .expect_err("mistakes");
        for part in [
            "redis[0].dsn_file: the DSN is no `redis://` URL",
            "rabbitmq[0].dsn_file: the DSN is no `http://` URL",
            "rabbitmq[0].statements",
            "redis[1].dsn_file: give either dsn_file or dsn_env",
            "did you mean `dsn_file`?",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(!told.contains("canary-secret"), "{told}");
    }

    #[test]
    fn a_pool_source_is_a_page_and_where_its_numbers_stand() {
        let told = check(
            r#"
            [[app]]
            name = "shop"
            command = "shop.py"
            pool.metrics = "http://user:canary-secret@h/metrics"
            pool.health = { url = "http://h/health", limit = "pool/size", in_us = "/pool/in_use" }
            pool.endpoint = "db.internal:5432"
            [[app]]
            name = "other"
            command = "other.py"
            pool.endpoint = "10.0.0.5:5432"
            "#,
        )
        .expect_err("mistakes");
        for part in [
            "5 mistakes",
            "app[0].pool.metrics: the URL holds credentials",
            "app[0].pool.health.limit: `pool/size` is not a JSON pointer",
            "did you mean `in_use`?",
            "app[0].pool.endpoint: `db.internal:5432` is not an address with a port",
            "app[1].pool.endpoint: is of use only with pool.metrics or pool.health",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(!told.contains("canary-secret"), "{told}");
    }

    #[test]
    fn two_endpoints_that_share_a_target_are_refused() {
        let told =
            check("[[endpoint]]\nurl = \"http://h/?a=1\"\n[[endpoint]]\nurl = \"http://h/?a=2\"").expect_err("one");
        assert!(told.contains("endpoint[1].url: "), "{told}");
    }
}
