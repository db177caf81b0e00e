//! A driver that prepares statements behind a pooler that hands each transaction another connection.

use tickbird_tests::agent::{app, postgres};
use tickbird_tests::postgres::Route;
use tickbird_tests::truth::{backends, descriptors};
use tickbird_tests::{Application, Library, PgBouncer, Postgres, Seconds, Sizes, Stage, StageError, Watch, alone};

const CHECK: &str = "pool.params";
/// What SQLAlchemy documents for asyncpg.
const KEY: &str = "?prepared_statement_cache_size=0";

fn begun(stage: &Stage, name: &str, dsn: String) -> Result<Application, StageError> {
    let mut it = Application::through(stage, name, Library::AsyncEngine, vec![("DATABASE_URL", dsn)], Sizes::full(3))?;
    it.does("traffic 10")?;
    Ok(it)
}

/// What the application says stands in its environment. What the operator demands is a warning; what the driver alone asks
/// for, where PgBouncer itself says that it is in transaction mode, a hint: the program may have set it in its code.
#[test]
fn a_dsn_that_lacks_what_its_driver_needs_behind_a_transaction_pooler_is_found_until_it_has_it() {
    alone(|stage| {
        let server = Postgres::start(stage, 100)?;
        // Each has its own: what one prepares would be in the way of the other.
        let poolers: Vec<PgBouncer> = (0..3).map(|_| PgBouncer::start(stage, &server)).collect::<Result<_, _>>()?;
        let [one, other, third] = poolers.as_slice() else { unreachable!("three were started") };
        let mut faulty = begun(stage, "faulty-api", one.dsn("asyncpg", ""))?;
        let hinted = begun(stage, "hinted-api", third.dsn("asyncpg", ""))?;
        let mut twin = begun(stage, "twin-api", other.dsn("asyncpg", KEY))?;
        // psycopg2 prepares nothing by itself, and needs no key.
        let plain = vec![("DATABASE_URL", other.dsn("psycopg2", ""))];
        let environment = [other.environment(&server, Route::V4), plain].concat();
        let mut simple = Application::through(stage, "simple-api", Library::QueuePool, environment, Sizes::full(3))?;
        simple.does("traffic 10")?;

        let mut configuration = postgres(&server.dsn_file("tickbird")?);
        for it in [&faulty, &twin] {
            configuration += &app(it.name(), &it.command());
            configuration +=
                &format!("pool.pooler = \"transaction\"\npool.required = [\"{}\"]\n", KEY.trim_start_matches('?'));
        }
        for it in [&hinted, &simple] {
            configuration += &app(it.name(), &it.command());
        }
        for it in &poolers {
            configuration += &format!("[[pgbouncer]]\ndsn_file = \"{}\"\n", it.dsn_file()?.display());
        }
        let watch = Watch::begin(stage, &configuration)?;
        let incident = watch.fires(CHECK, "faulty-api", 60.s())?;
        assert_eq!(incident["severity"], "warning", "its log says nothing of failures");
        let told = watch.tells(CHECK, "faulty-api", 5.s())?;
        let evidence = &told["evidence"];
        assert_eq!(evidence["pids"], serde_json::json!([faulty.pid()]), "{told}");
        assert_eq!((&evidence["driver"], &evidence["pool_mode"]), (&"asyncpg".into(), &"transaction".into()), "{told}");
        assert!(evidence["missing"].to_string().contains(KEY.trim_start_matches('?')), "{told}");
        assert!(!told.to_string().contains("canary"), "nothing of the password is told: {told}");
        for it in [&mut twin, &mut simple] {
            watch.sees(CHECK, it.name(), "ok", 20.s())?;
        }
        let hint = watch.tells(CHECK, "hinted-api", 20.s())?;
        let by = &hint["evidence"]["pool_mode_told_by"];
        assert_eq!((&hint["severity"], by), (&"info".into(), &"the pooler's own settings".into()), "{hint}");

        faulty.stop()?;
        // What it prepared is left on the pooler's connections, where its successor would stumble over it.
        let ours = descriptors(one.pid())?;
        let sessions = backends(&server)?;
        server.terminate(sessions.iter().filter(|(port, _)| ours.contains_key(port)).map(|(_, it)| it.pid))?;
        let _mended = begun(stage, "faulty-api", one.dsn("asyncpg", KEY))?;
        watch.resolves(CHECK, "faulty-api", 60.s())?;
        let incidents = watch.collector.items("incidents", "check=pool.params")?;
        let about = |it: &serde_json::Value| it["target"].as_str().is_some_and(|it| it.contains("faulty-api"));
        assert!(incidents.iter().all(about), "a hint disturbs nobody: {incidents:?}");
        for it in [&mut twin, &mut simple] {
            watch.silent_about(it.name())?;
            let (served, failed) = it.served()?;
            assert!(served > 50 && failed == 0, "{}: {served} served, {failed} failed", it.name());
        }
        Ok(())
    });
}
