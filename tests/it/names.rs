//! A database's name that leads elsewhere while a pool stays where it was.

use std::path::Path;
use std::process::Command;

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::postgres::{Route, password};
use tickbird_tests::process::run;
use tickbird_tests::wait::throughout;
use tickbird_tests::{Application, Library, Postgres, Seconds, Sizes, StageError, Watch, alone};

const CHECK: &str = "pool.stale_dns";
const NAME: &str = "db.internal";

/// Says where the name leads. The file is written in place: it is mounted.
fn lead_to(hosts: &Path, addresses: &[&str]) -> Result<(), StageError> {
    let lines: String = addresses.iter().map(|it| format!("{it} {NAME}\n")).collect();
    std::fs::write(hosts, format!("127.0.0.1 localhost\n{lines}")).map_err(StageError::system("write a hosts file"))
}

#[test]
fn a_pool_that_stays_at_its_databases_old_address_is_told_and_one_in_a_round_robin_is_not() {
    alone(|stage| {
        let hosts = stage.room("resolver")?.join("hosts");
        lead_to(&hosts, &["127.0.0.1", "127.0.0.2"])?;
        // The scenario has mounts of its own.
        run(Command::new("/bin/mount").arg("--bind").arg(&hosts).arg("/etc/hosts"))?;
        let server = Postgres::start(stage, 50)?;
        let mut environment = server.environment("app", Route::V4);
        environment.iter_mut().filter(|it| it.0 == "PGHOST").for_each(|it| it.1 = NAME.to_owned());
        let shop = Application::through(stage, "shop-api", Library::QueuePool, environment, Sizes::full(5))?;
        let dsn = stage.room("dsn")?.join("tickbird.dsn");
        let text = format!("postgresql://tickbird:{}@{NAME}:{}/app", password("tickbird"), server.port());
        std::fs::write(&dsn, text).map_err(StageError::system("write a DSN file"))?;
        let settings = app("shop-api", &shop.command())
            + &postgres(&dsn)
            + "[resolver]\ninterval = \"1s\"\n"
            + &check(CHECK, "warning = \"15s\"");
        let watch = Watch::begin(stage, &settings)?;
        watch.sees(CHECK, "shop-api", "ok", 30.s())?;
        // Each answer shows one of the two: together they are where the name leads.
        let mut turn = 0;
        throughout("a round robin is no change", 25.s(), || {
            turn += 1;
            lead_to(&hosts, &[["127.0.0.1", "127.0.0.2"][turn / 4 % 2]]).map_err(|error| error.to_string())
        })?;
        watch.silent_about("shop-api")?;
        lead_to(&hosts, &["127.0.0.2"])?;
        let told = watch.fires(CHECK, "shop-api", 60.s())?;
        let summary = told["summary"].as_str().unwrap_or_default();
        assert!(summary.contains(NAME) && summary.contains("leads to 127.0.0.2"), "{told}");
        lead_to(&hosts, &["127.0.0.1"])?;
        watch.resolves(CHECK, "shop-api", 30.s()).map(drop)
    });
}
