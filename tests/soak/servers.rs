//! Every server that the applications of a soak stand on, and what the agent is told of each.

use std::path::{Path, PathBuf};
use std::process::Command;

use tickbird_tests::agent::postgres;
use tickbird_tests::certificate::Certificate;
use tickbird_tests::postgres::{Route, password};
use tickbird_tests::process::run;
use tickbird_tests::truth::connections_to;
use tickbird_tests::{MariaDb, PgBouncer, Postgres, RabbitMq, Redis, Seconds, Stage, StageError, replica, until};

/// A name that leads to two addresses in turn.
const NAME: &str = "db.internal";
const ROUND: [&str; 2] = ["127.0.0.1", "127.0.0.2"];

/// They run until this is dropped.
#[derive(Debug)]
pub(crate) struct Servers {
    /// What most of them use, with a replica and a pooler before it.
    pub(crate) main: Postgres,
    replica: Postgres,
    pooler: PgBouncer,
    named: Postgres,
    mariadb: MariaDb,
    redis: Redis,
    rabbitmq: RabbitMq,
    hosts: PathBuf,
}

impl Servers {
    pub(crate) fn begin(stage: &Stage, certificate: &Certificate) -> Result<Self, StageError> {
        let hosts = stage.room("resolver")?.join("hosts");
        lead_to(&hosts, ROUND[0])?;
        // The scenario has mounts of its own.
        run(Command::new("/bin/mount").arg("--bind").arg(&hosts).arg("/etc/hosts"))?;
        let main = Postgres::start(stage, 200)?;
        let (replica, pooler) = (replica::of(stage, &main)?, PgBouncer::start(stage, &main)?);
        let named = Postgres::start_at(stage, 50, ROUND[1])?;
        let mariadb = MariaDb::start(stage, certificate, true, 100)?;
        let redis = Redis::start(stage, certificate, 100)?;
        let rabbitmq = RabbitMq::start(stage, certificate, 100)?;
        Ok(Self { main, replica, pooler, named, mariadb, redis, rabbitmq, hosts })
    }

    /// A section for each.
    pub(crate) fn sections(&self, stage: &Stage) -> Result<String, StageError> {
        let by_name = stage.room("dsn")?.join("tickbird.dsn");
        let dsn = format!("postgresql://tickbird:{}@{NAME}:{}/app", password("tickbird"), self.named.port());
        std::fs::write(&by_name, dsn).map_err(StageError::system("write a DSN file"))?;
        Ok([
            postgres(&self.main.dsn_file("tickbird")?),
            postgres(&self.replica.dsn_file("tickbird")?),
            postgres(&by_name),
            format!("[[pgbouncer]]\ndsn_file = \"{}\"\n", self.pooler.dsn_file()?.display()),
            self.mariadb.section(Route::V4)?,
            self.redis.section("tickbird", Route::V4)?,
            self.rabbitmq.section("tickbird", &password("tickbird"))?,
        ]
        .concat())
    }

    /// The environment of an application on the main server.
    pub(crate) fn direct(&self) -> Vec<(&'static str, String)> {
        self.main.environment("app", Route::V4)
    }

    /// The environment of an application that only reads.
    pub(crate) fn replica(&self) -> Vec<(&'static str, String)> {
        self.replica.environment("app", Route::V4)
    }

    /// Waits until the replica has a table of the main server.
    pub(crate) fn has_replayed(&self, table: &str) -> Result<(), StageError> {
        until(format!("the replica has {table}"), 30.s(), || {
            let rows = self.replica.sql_in("app", &format!("SELECT count(*) FROM {table}"));
            rows.map(drop).map_err(|error| error.to_string())
        })
    }

    /// The same as [`Self::direct`] through the pooler, by this driver's DSN.
    pub(crate) fn pooled(&self, driver: &str, keys: &str) -> Vec<(&'static str, String)> {
        let mut all = self.pooler.environment(&self.main, Route::V4);
        all.push(("DATABASE_URL", self.pooler.dsn(driver, keys)));
        all
    }

    /// The environment of an application that knows its server by name.
    pub(crate) fn by_name(&self) -> Vec<(&'static str, String)> {
        let mut all = self.named.environment("app", Route::V4);
        all.iter_mut().filter(|it| it.0 == "PGHOST").for_each(|it| it.1 = NAME.to_owned());
        all
    }

    pub(crate) fn mariadb(&self) -> Vec<(&'static str, String)> {
        self.mariadb.environment(Route::V4)
    }

    pub(crate) fn redis(&self) -> Vec<(&'static str, String)> {
        vec![("REDIS_URL", self.redis.url("app", Route::V4))]
    }

    pub(crate) fn rabbitmq(&self) -> Vec<(&'static str, String)> {
        self.rabbitmq.environment(Route::V4)
    }

    /// Each minute the name leads to the other address, as in a round robin.
    pub(crate) fn turn(&self, minute: usize) -> Result<(), StageError> {
        lead_to(&self.hosts, ROUND[minute % 2])
    }

    /// How many connections a process has to each server that keeps them, by the kernel's word.
    pub(crate) fn connections_of(&self, pid: u32) -> Result<Vec<(&'static str, usize)>, StageError> {
        let ports = [
            ("PostgreSQL", self.main.port()),
            ("its replica", self.replica.port()),
            ("PostgreSQL by name", self.named.port()),
            ("PgBouncer", self.pooler.port()),
            ("MariaDB", self.mariadb.port()),
            ("Redis", self.redis.port()),
        ];
        ports.into_iter().map(|(name, port)| Ok((name, connections_to(pid, port)?))).collect()
    }
}

/// Says where the name leads. The file is written in place: it is mounted.
fn lead_to(hosts: &Path, address: &str) -> Result<(), StageError> {
    let text = format!("127.0.0.1 localhost\n{address} {NAME}\n");
    std::fs::write(hosts, text).map_err(StageError::system("write a hosts file"))
}
