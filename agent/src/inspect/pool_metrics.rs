//! What an application says of its own pools: its metrics, or a page of its health.
//!
//! Only here are used connections and waiting callers exact numbers. Each format has a parser of its own; all of them
//! give `Numbers`, which `shape` makes of the names that a library uses. What a source does not say stays unknown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::discover::TargetKey;
use crate::inspect::http_endpoint::{self, Asker, ConfigError, Options};
use crate::inspect::{About, Inspector, Look, Measure, Observation, Reading, Reason, Rows, Unit, Value};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod health;
mod names;
mod open_metrics;
mod shape;
mod status_text;

pub use health::{Pointer, Pointers};
pub use shape::Totals;

use shape::Numbers;

/// Most pools that one source may tell of.
const MAX_POOLS: usize = 64;
/// Longest name of a pool that is shown.
const MAX_NAME: usize = 80;
/// A page of metrics is made in milliseconds; an application that takes longer is stuck, which is worth knowing soon.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What one source said at one look.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolStats {
    /// `endpoint:<url>` of the source.
    pub target: TargetKey,
    /// The application, as `[[app]]` names it.
    pub application: Arc<str>,
    /// The pools' remote end, where the operator named it.
    pub endpoint: Option<SocketAddr>,
    /// How far it is trusted.
    pub kind: Kind,
    /// Its pools, at least one and at most 64.
    pub pools: Result<Vec<NamedPool>, Reason>,
}

/// Kinds of sources, the most trusted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// OpenMetrics or Prometheus text.
    Metrics,
    /// JSON or a status text.
    Health,
}

/// One pool as the application counts it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedPool {
    /// As the application calls it; `default` where it has no name.
    pub name: Arc<str>,
    /// Most connections. `Between` when only a lower bound is told.
    pub limit: Value,
    /// Connections handed out.
    pub in_use: Value,
    /// Connections that wait for a caller.
    pub idle: Value,
    /// Connections that are open.
    pub open: Value,
    /// Callers that wait for a connection.
    pub waiting: Value,
    /// Seconds for which the longest of them has waited.
    pub oldest_wait: Value,
    /// Connections that it opens though nobody asks for one, where it says so.
    pub least: Option<f64>,
    /// Idle connections that it keeps ready whatever is in use, where it says so.
    pub least_idle: Option<f64>,
    /// Idle connections beyond which it closes one that is given back, where it says so.
    pub most_idle: Option<f64>,
    /// What it counts since its process began.
    pub totals: Totals,
    /// Processes whose numbers were added up; 1 unless the series say more.
    pub processes: u32,
    /// Whose numbers they are: `hikaricp_connections_* of http://…`.
    pub source: Arc<str>,
}

static LIMIT: Measure =
    Measure { name: "pool.limit", unit: Unit::Count, meaning: "most connections, as the application says" };
static IN_USE: Measure =
    Measure { name: "pool.in_use", unit: Unit::Count, meaning: "connections handed out, as the application says" };
static IDLE: Measure =
    Measure { name: "pool.idle", unit: Unit::Count, meaning: "connections not handed out, as the application says" };
static WAITING: Measure =
    Measure { name: "pool.waiting", unit: Unit::Count, meaning: "callers that wait for a connection" };

/// What this inspector is.
pub static ABOUT: About = About {
    name: "pool_metrics",
    source: "OpenMetrics or Prometheus text, health JSON, or SQLAlchemy's pool status, from the application itself",
    needs: "pool.metrics or pool.health in the [[app]] section, and a page that needs no account",
    cost: "one connection and one request a look; at most 1 MiB of the body is read",
    measures: &[&LIMIT, &IN_USE, &IDLE, &WAITING],
};

/// One source, as the operator wrote it: cannot be wrong.
#[derive(Debug, Clone)]
pub struct Config {
    application: Arc<str>,
    endpoint: Option<SocketAddr>,
    page: http_endpoint::Config,
    format: Format,
}

#[derive(Debug, Clone)]
enum Format {
    Metrics,
    Health(Box<Pointers>),
}

impl Config {
    /// A page of metrics.
    ///
    /// # Errors
    /// With what is wrong with its URL.
    pub fn metrics(application: &str, endpoint: Option<SocketAddr>, url: &str) -> Result<Self, Vec<ConfigError>> {
        Self::new(application, endpoint, url, Format::Metrics)
    }

    /// A page of health.
    ///
    /// # Errors
    /// With what is wrong with its URL.
    pub fn health(
        application: &str,
        endpoint: Option<SocketAddr>,
        url: &str,
        pointers: Pointers,
    ) -> Result<Self, Vec<ConfigError>> {
        Self::new(application, endpoint, url, Format::Health(Box::new(pointers)))
    }

    fn new(
        application: &str,
        endpoint: Option<SocketAddr>,
        url: &str,
        format: Format,
    ) -> Result<Self, Vec<ConfigError>> {
        let page = http_endpoint::Config::new(Options {
            url: url.to_owned(),
            status: None,
            body_matches: None,
            json: Vec::new(),
            timeout: TIMEOUT,
            ca_file: None,
        })?;
        let endpoint = endpoint.map(|it| SocketAddr::new(it.ip().to_canonical(), it.port()));
        Ok(Self { application: application.into(), endpoint, page, format })
    }

    /// For how long one look may take.
    pub const fn timeout(&self) -> Duration {
        self.page.timeout
    }
}

/// Asks one source.
pub struct PoolInspector {
    config: Arc<Config>,
    target: TargetKey,
    asker: Asker,
}

impl PoolInspector {
    /// Makes no connection yet.
    pub fn new(config: Config) -> Self {
        Self {
            target: TargetKey::endpoint(&config.page.url.to_string()),
            asker: Asker::new(&config.page),
            config: Arc::new(config),
        }
    }

    async fn look(&mut self) -> Reading {
        let (answer, _) = self.asker.ask().await;
        let url = self.config.page.url.to_string();
        let pools = match answer {
            Err(failure) => Err(Reason::Unreachable(format!("{url}: {}", failure.what))),
            Ok(it) if !it.is_whole => Err(Reason::Malformed(format!("{url}: a body of more than 1 MiB"))),
            Ok(it) if !self.config.format.accepts(it.status) => {
                Err(Reason::Unreachable(format!("{url}: status {}", it.status)))
            }
            Ok(it) => {
                let config = Arc::clone(&self.config);
                // A mebibyte takes longer to read than a thread of the runtime may be held.
                let read = tokio::task::spawn_blocking(move || config.format.read(&it.body, &url));
                read.await.unwrap_or_else(|_| Err(Reason::Malformed("the page".into())))
            }
        };
        let stats = PoolStats {
            target: self.target.clone(),
            application: Arc::clone(&self.config.application),
            endpoint: self.config.endpoint,
            kind: if matches!(self.config.format, Format::Metrics) { Kind::Metrics } else { Kind::Health },
            pools,
        };
        let observations = observations(&stats);
        Reading { rows: Rows::PoolStats(stats), observations }
    }
}

impl Inspector for PoolInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        format!("pool_metrics {}", self.config.page.url)
    }

    fn inspect<'a>(&'a mut self, _now: Duration) -> Look<'a> {
        Box::pin(self.look())
    }
}

impl Format {
    /// A page of health answers 503 when something is broken, which is when its numbers matter most.
    const fn accepts(&self, status: u16) -> bool {
        match self {
            Self::Metrics => status == 200,
            Self::Health(_) => matches!(status, 200..=299 | 500..=599),
        }
    }

    /// Reads a whole body. `url` is for sentences.
    fn read(&self, body: &[u8], url: &str) -> Result<Vec<NamedPool>, Reason> {
        let malformed = |what: String| Reason::Malformed(format!("{url}: {what}"));
        let text = std::str::from_utf8(body).map_err(|_| malformed("not UTF-8".into()))?;
        let told = match self {
            Self::Metrics => names::pools(text).map_err(malformed)?,
            Self::Health(pointers) => health::pools(text, pointers).map_err(malformed)?,
        };
        if told.is_empty() {
            return Err(Reason::Absent(format!("numbers of a pool at {url}")));
        }
        let count = told.len();
        if count > MAX_POOLS {
            return Err(malformed(format!("{count} pools")));
        }
        Ok(told.into_iter().map(|it| it.named(url)).collect())
    }
}

/// The numbers of one pool and how the source calls it.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    name: String,
    numbers: Numbers,
    processes: u32,
    /// `hikaricp_connections_*`, `SQLAlchemy's status`, `/pool/size`.
    by: &'static str,
}

impl Told {
    fn named(self, url: &str) -> NamedPool {
        let name = crate::scrub::text(&self.name, MAX_NAME);
        let numbers = self.numbers.completed();
        let value = |number: Option<f64>| number.filter(|it| it.is_finite()).map_or(NOT_TOLD, Value::Known);
        NamedPool {
            name: if name.is_empty() { "default".into() } else { name.into() },
            limit: numbers.limit(),
            in_use: value(numbers.in_use),
            idle: value(numbers.idle),
            open: value(numbers.open),
            waiting: value(numbers.waiting),
            oldest_wait: value(numbers.oldest_wait),
            least: numbers.least,
            least_idle: numbers.least_idle,
            most_idle: numbers.most_idle,
            totals: numbers.totals,
            processes: self.processes.max(1),
            source: format!("{} of {url}", self.by).into(),
        }
    }
}

const NOT_TOLD: Value = Value::Unknown(Reason::NotYet("not judged: the application does not say it"));

fn observations(stats: &PoolStats) -> Vec<Observation> {
    let mut all = Vec::new();
    for pool in stats.pools.iter().flatten() {
        let target = TargetKey::named_pool(&stats.application, &pool.name);
        for (measure, value) in
            [(&LIMIT, &pool.limit), (&IN_USE, &pool.in_use), (&IDLE, &pool.idle), (&WAITING, &pool.waiting)]
        {
            if value.low().is_some() {
                all.push(Observation { target: target.clone(), measure, value: value.clone() });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests;
