//! Connection pools of the libraries that our users have, each in a small program of `tests/applications`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{installed, run};
use crate::stage::{StageError, target_directory, workspace};

/// A library and its manner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Library {
    /// SQLAlchemy's QueuePool on psycopg2: it rotates.
    QueuePool,
    /// The same with `pool_use_lifo`: a stack.
    QueuePoolLifo,
    /// psycopg_pool on psycopg 3: it rotates.
    PsycopgPool,
    /// asyncpg: a stack, with reset statements at each return.
    Asyncpg,
    /// SQLAlchemy's asyncio engine on asyncpg, whose DSN stands in `DATABASE_URL`: it rotates.
    AsyncEngine,
    /// SQLAlchemy 2's QueuePool on psycopg 3 (`postgresql+psycopg`): it rotates.
    EnginePsycopg,
    /// SQLAlchemy 2's asyncio engine on asyncpg (`postgresql+asyncpg`): it rotates.
    EngineAsyncpg,
    /// Go's database/sql on lib/pq: a stack.
    GoSql,
    /// HikariCP on JDBC: neither.
    Hikari,
    /// node-postgres: a stack.
    NodePg,
    /// SQLAlchemy's QueuePool on PyMySQL, for MySQL and MariaDB: it rotates.
    PyMySql,
    /// redis-py's BlockingConnectionPool, for Redis and Valkey: a stack.
    RedisPy,
    /// pika's connections in a stack, for RabbitMQ.
    Pika,
}

/// How many connections a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// At most.
    pub most: u16,
    /// From the start.
    pub least: u16,
}

impl Sizes {
    /// A pool that is as large at the start as it ever gets.
    pub const fn full(size: u16) -> Self {
        Self { most: size, least: size }
    }

    /// A pool that opens connections on demand.
    pub const fn growing(size: u16) -> Self {
        Self { most: size, least: 1 }
    }
}

const PYTHON: &str = "/usr/lib/python3/dist-packages";
const JARS: [(&str, &str); 4] = [
    ("HikariCP", "libhikaricp-java"),
    ("slf4j-api", "libslf4j-java"),
    ("slf4j-nop", "libslf4j-java"),
    ("postgresql", "libpostgresql-jdbc-java"),
];
/// Debian's own pg, and where [`node_modules`] has ours.
const NODE: &str = "/usr/share/nodejs";

impl Library {
    /// All of them that speak to PostgreSQL and find it by libpq's variables.
    pub const ALL: [Self; 9] = [
        Self::QueuePool,
        Self::QueuePoolLifo,
        Self::PsycopgPool,
        Self::Asyncpg,
        Self::EnginePsycopg,
        Self::EngineAsyncpg,
        Self::GoSql,
        Self::Hikari,
        Self::NodePg,
    ];

    /// A short name without spaces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueuePool => "queuepool",
            Self::QueuePoolLifo => "queuepool-lifo",
            Self::PsycopgPool => "psycopg-pool",
            Self::Asyncpg => "asyncpg",
            Self::AsyncEngine => "async-engine",
            Self::EnginePsycopg => "engine-psycopg",
            Self::EngineAsyncpg => "engine-asyncpg",
            Self::GoSql => "go-sql",
            Self::Hikari => "hikari",
            Self::NodePg => "node-pg",
            Self::PyMySql => "pymysql",
            Self::RedisPy => "redis-py",
            Self::Pika => "pika",
        }
    }

    /// The module of `tests/applications/python` that speaks for it.
    pub(crate) const fn module(self) -> Option<&'static str> {
        match self {
            Self::QueuePool => Some("queue_pool"),
            Self::QueuePoolLifo => Some("queue_pool_lifo"),
            Self::PsycopgPool => Some("rotating_pool"),
            Self::Asyncpg => Some("asyncpg_pool"),
            Self::AsyncEngine | Self::EngineAsyncpg => Some("async_engine"),
            Self::EnginePsycopg => Some("engine_psycopg"),
            Self::PyMySql => Some("pymysql_pool"),
            Self::RedisPy => Some("redis_pool"),
            Self::Pika => Some("pika_pool"),
            Self::GoSql | Self::Hikari | Self::NodePg => None,
        }
    }

    /// The program and what comes before its own arguments; what has to be built is built in `room`.
    pub(crate) fn program(self, room: &Path) -> Result<Vec<PathBuf>, StageError> {
        let sources = workspace().join("tests/applications");
        match self {
            Self::QueuePool
            | Self::QueuePoolLifo
            | Self::PsycopgPool
            | Self::Asyncpg
            | Self::AsyncEngine
            | Self::EnginePsycopg
            | Self::EngineAsyncpg
            | Self::PyMySql
            | Self::RedisPy
            | Self::Pika => {
                let (directory, package) = match self {
                    Self::PsycopgPool => ("psycopg_pool", "python3-psycopg-pool"),
                    Self::Asyncpg => ("asyncpg", "python3-asyncpg"),
                    Self::PyMySql => ("pymysql", "python3-pymysql"),
                    Self::RedisPy => ("redis", "python3-redis"),
                    Self::Pika => ("pika", "python3-pika"),
                    _ => ("sqlalchemy", "python3-sqlalchemy"),
                };
                installed(&format!("{PYTHON}/{directory}"), package)?;
                if matches!(self, Self::EnginePsycopg | Self::EngineAsyncpg) {
                    if !python_modules().join("sqlalchemy").exists() {
                        let said = "it is not installed: `cargo xtask test` does that".to_owned();
                        return Err(StageError::Failed { what: "find SQLAlchemy 2".into(), said });
                    }
                    installed(&format!("{PYTHON}/psycopg_pool"), "python3-psycopg-pool")?;
                }
                if matches!(self, Self::AsyncEngine | Self::EngineAsyncpg) {
                    installed(&format!("{PYTHON}/asyncpg"), "python3-asyncpg")?;
                    installed(&format!("{PYTHON}/greenlet"), "python3-greenlet")?;
                }
                Ok(vec![installed("/usr/bin/python3", "python3")?, sources.join("python/application.py")])
            }
            Self::GoSql => Ok(vec![build_go(&sources.join("go"), room)?]),
            Self::Hikari => java(&sources.join("java/Pooled.java")),
            Self::NodePg => node(&sources.join("node/pooled.js")),
        }
    }

    pub(crate) fn environment(self) -> Vec<(&'static str, String)> {
        match self {
            Self::NodePg => vec![node_path()],
            Self::EnginePsycopg | Self::EngineAsyncpg => {
                vec![("PYTHONPATH", python_modules().display().to_string())]
            }
            _ => Vec::new(),
        }
    }
}

/// A program of one file of source, which is compiled when it is run, with HikariCP and PostgreSQL's driver.
pub(crate) fn java(source: &Path) -> Result<Vec<PathBuf>, StageError> {
    let java = installed("/usr/bin/java", "openjdk-17-jre-headless")?;
    let jars: Vec<String> = JARS
        .iter()
        .map(|(jar, package)| installed(&format!("/usr/share/java/{jar}.jar"), package))
        .map(|it| it.map(|path| path.display().to_string()))
        .collect::<Result<_, _>>()?;
    // The heap is small: several run at once. No performance data: its file is /tmp/hsperfdata_*/PID, and scenarios side by
    // side share /tmp, each with PIDs of its own.
    let options =
        ["-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp"].map(PathBuf::from);
    Ok([vec![java], options.into(), vec![jars.join(":").into(), source.into()]].concat())
}

/// A script that finds node-postgres by [`node_path`].
pub(crate) fn node(script: &Path) -> Result<Vec<PathBuf>, StageError> {
    let node = installed("/usr/bin/node", "nodejs")?;
    if !node_modules().join("pg").exists() {
        installed(&format!("{NODE}/pg"), "node-pg")?;
    }
    Ok(vec![node, script.into()])
}

pub(crate) fn node_path() -> (&'static str, String) {
    ("NODE_PATH", format!("{}:{NODE}", node_modules().display()))
}

/// Where `cargo xtask` puts SQLAlchemy 2, which stands before Debian's there.
pub fn python_modules() -> PathBuf {
    target_directory().join("applications/python")
}

/// Where `cargo xtask` puts node-postgres when Debian's package cannot be installed beside the Node.js that is here.
pub fn node_modules() -> PathBuf {
    target_directory().join("applications/node/node_modules")
}

/// With Debian's sources and nothing else: no network, no module proxy.
fn build_go(sources: &Path, room: &Path) -> Result<PathBuf, StageError> {
    let go = installed("/usr/bin/go", "golang-go")?;
    for (path, package) in [
        ("lib/pq", "golang-github-lib-pq-dev"),
        ("prometheus/client_golang", "golang-github-prometheus-client-golang-dev"),
    ] {
        installed(&format!("/usr/share/gocode/src/github.com/{path}"), package)?;
    }
    let program = room.join("pooled");
    let mut command = Command::new(go);
    command.args(["build", "-o"]).arg(&program).arg(".").current_dir(sources);
    command.envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOFLAGS", "")]);
    // Go's cache is made for builds at the same time.
    command.env("GOCACHE", target_directory().join("applications/go-cache"));
    run(&mut command)?;
    Ok(program)
}
