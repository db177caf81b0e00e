//! What a database says of its own troubles: locks, deadlocks, rollbacks, replicas that lag, and a primary that is none.

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::postgres::Route;
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Postgres, Seconds, Stage, StageError, Watch, alone, replica, until};

const LOCKS: &str = "db.locks";
const ABANDONED: &str = "db.tx_abandoned";
const ERRORS: &str = "db.tx_errors";
const ROLE: &str = "db.role";
const REPLICA: &str = "db.replica";

fn worker(stage: &Stage, name: &str, server: &Postgres) -> Result<Application, StageError> {
    Application::transacting(stage, name, server.environment("app", Route::V4))
}

/// A part of the target of a server's own checks.
fn of(server: &Postgres) -> String {
    format!(":{}/app", server.port())
}

/// The twin on a server of its own holds locks and deadlocks nobody.
#[test]
fn who_waits_for_a_lock_and_who_holds_it_are_named_and_a_deadlock_is_told() {
    alone(|stage| {
        let (server, well) = (Postgres::start(stage, 50)?, Postgres::start(stage, 50)?);
        let (mut faulty, mut twin) = (worker(stage, "faulty-api", &server)?, worker(stage, "twin-api", &well)?);
        let mut text = String::new();
        for (it, server) in [(&mut faulty, &server), (&mut twin, &well)] {
            it.does("prepare")?;
            text += &(app(it.name(), &it.command()) + &postgres(&server.dsn_file("tickbird")?));
        }
        let watch = Watch::begin(stage, &text)?;
        for server in [&server, &well] {
            watch.sees(LOCKS, &of(server), "ok", 40.s())?;
            watch.sees(ERRORS, &of(server), "ok", 40.s())?;
        }
        twin.does("hold 1")?;
        twin.does("want 2")?;
        faulty.does("hold 1")?;
        faulty.does("want 1")?;
        watch.fires(LOCKS, &of(&server), 60.s())?;
        let told = watch.tells(LOCKS, &of(&server), 5.s())?;
        let blocked = &told["evidence"]["blocked"][0];
        assert_eq!(blocked["pid"], faulty.pid(), "who waits: {told}");
        assert_eq!(blocked["waits_for"][0]["pid"], faulty.pid(), "who holds it: {told}");
        assert_eq!(blocked["waits_for"][0]["state"], "idle in transaction", "{told}");
        faulty.does("release")?;
        watch.resolves(LOCKS, &of(&server), 40.s())?;
        assert_eq!(faulty.does("deadlock")?, 1);
        until("the deadlock is told", 40.s(), || {
            let told = watch.tells(LOCKS, &of(&server), 1.s()).map_err(|error| error.to_string())?;
            if told["evidence"]["deadlocks"] == 1 { Ok(()) } else { Err(told.to_string()) }
        })?;
        let told = watch.tells(ERRORS, &of(&server), 60.s())?;
        assert_eq!(told["severity"], "info", "one is recorded: {told}");
        watch.never_told(LOCKS, &of(&well))?;
        watch.never_told(ERRORS, &of(&well))
    });
}

/// Before the habit of a database is known, rollbacks count only beside a transaction that failed and was kept.
#[test]
fn rollbacks_beside_a_failed_transaction_are_told_and_those_of_a_habit_are_not() {
    alone(|stage| {
        let servers = [Postgres::start(stage, 50)?, Postgres::start(stage, 50)?, Postgres::start(stage, 50)?];
        let mut text = String::new();
        let mut workers = Vec::new();
        for (name, server) in ["faulty-api", "habit-api", "commits-api"].into_iter().zip(&servers) {
            let mut it = worker(stage, name, server)?;
            it.does("prepare")?;
            text += &(app(name, &it.command()) + &postgres(&server.dsn_file("tickbird")?));
            workers.push(it);
        }
        let [faulty, habit, commits] = workers.as_mut_slice() else { unreachable!("three were begun") };
        let watch = Watch::begin(stage, &text)?;
        for server in &servers {
            until("its counters were read twice", 40.s(), || {
                let status = watch.agent.status().map_err(|error| error.to_string())?;
                let rows = rows_of(&status, ERRORS, &of(server));
                if rows.iter().any(|it| it["state"] == "ok") { Ok(()) } else { Err(format!("{rows:?}")) }
            })?;
        }
        for it in [&mut *faulty, &mut *habit, &mut *commits] {
            it.does("commit 300")?;
        }
        // A pool that rolls back whenever a connection returns to it.
        habit.does("rollback 300")?;
        // One that failed once, and commits everything else.
        commits.does("fail")?;
        faulty.does("rollback 60")?;
        faulty.does("fail")?;
        let [server, other, third] = &servers;
        let found = watch.fires(ABANDONED, &of(server), 60.s())?;
        assert_eq!(found["severity"], "warning", "one sign beside another is no proof before the habit is known");
        let told = watch.tells(ABANDONED, &of(server), 5.s())?;
        // A session that is in a transaction has not yet told of those before.
        assert!(told["evidence"]["rollbacks"].as_u64() >= Some(30), "{told}");
        watch.sees(ABANDONED, &of(third), "ok", 40.s())?;
        let status = watch.agent.status()?;
        let rows = rows_of(&status, ABANDONED, &of(other));
        assert!(!rows.is_empty() && rows.iter().all(|it| it["state"] == "not yet"), "it is being learnt: {rows:?}");
        watch.never_told(ABANDONED, &of(other))?;
        watch.never_told(ABANDONED, &of(third))
    });
}

/// A pair of servers, a pool on the first that knows no other, one that knows both, and a watch that has seen them.
struct Pair {
    first: Postgres,
    second: Postgres,
    stays: Application,
    moves: Application,
    watch: Watch,
}

impl Pair {
    fn begin(stage: &Stage, settings: &str) -> Result<Self, StageError> {
        let first = Postgres::start(stage, 50)?;
        let second = replica::of(stage, &first)?;
        let mut stays = worker(stage, "stays-api", &first)?;
        let mut both = first.environment("app", Route::V4);
        for (key, value) in &mut both {
            match *key {
                "PGHOST" => *value = "127.0.0.1,127.0.0.1".to_owned(),
                "PGPORT" => *value = format!("{},{}", second.port(), first.port()),
                _ => (),
            }
        }
        both.push(("PGTARGETSESSIONATTRS", "read-write".to_owned()));
        let moves = Application::transacting(stage, "moves-api", both)?;
        stays.does("prepare")?;
        let mut text = settings.to_owned() + &app("stays-api", &stays.command()) + &app("moves-api", &moves.command());
        for server in [&first, &second] {
            text += &postgres(&server.dsn_file("tickbird")?);
        }
        let watch = Watch::begin(stage, &text)?;
        for server in [&first, &second] {
            watch.sees(ROLE, &of(server), "ok", 40.s())?;
            watch.sees(REPLICA, &of(server), "ok", 40.s())?;
        }
        Ok(Self { first, second, stays, moves, watch })
    }

    /// The pool that knows only the first server is told of until it is brought to the second.
    fn is_told_of_until_it_moves(&mut self) -> Result<(), StageError> {
        let Self { first, second, moves, watch, .. } = self;
        moves.does("reconnect")?;
        assert_eq!(moves.does("write")?, 0, "it is on the new primary");
        let found = watch.fires(ROLE, &of(first), 60.s())?;
        until("the pool that stays is named", 20.s(), || {
            let told = watch.tells(ROLE, &of(first), 1.s()).map_err(|error| error.to_string())?;
            let pools = told["evidence"]["pools"].to_string();
            let is_it = pools.contains("stays-api") && !pools.contains("moves-api") && told["severity"] == "critical";
            if is_it { Ok(()) } else { Err(told.to_string()) }
        })?;
        assert_eq!(found["severity"], "critical");
        self.stays.stop()?;
        watch.resolves(ROLE, &of(first), 60.s())?;
        let loud = watch.collector.items("incidents", "check=db.role")?;
        let about_new = loud.iter().find(|it| it["target"].as_str().is_some_and(|it| it.contains(&of(second))));
        assert!(about_new.is_none(), "the new primary is where everybody should be: {about_new:?}");
        Ok(())
    }
}

#[test]
fn a_pool_that_stays_on_a_primary_that_became_a_replica_is_told_until_it_moves() {
    alone(|stage| {
        let mut it = Pair::begin(stage, "")?;
        it.first.stop()?;
        replica::promote(&it.second)?;
        replica::follow(&mut it.first, &it.second)?;
        // The dead connections are found, and the pool opens new ones where it always did.
        let _ = it.stays.does("reconnect");
        assert_eq!(it.stays.does("write")?, 5, "every write is refused");
        it.is_told_of_until_it_moves()
    });
}

#[test]
fn a_pool_that_stays_on_a_primary_whose_replica_was_promoted_is_told_until_it_moves() {
    alone(|stage| {
        let mut it = Pair::begin(stage, "")?;
        replica::promote(&it.second)?;
        assert_eq!(it.stays.does("write")?, 0, "nobody refuses what will be lost");
        it.is_told_of_until_it_moves()
    });
}

#[test]
fn a_replica_that_does_not_replay_is_behind_and_one_of_an_idle_primary_is_not() {
    alone(|stage| {
        let mut it = Pair::begin(stage, &check(REPLICA, "warning = \"5s\""))?;
        throughout("nothing is written", 10.s(), || Ok(()))?;
        it.watch.never_told(REPLICA, "")?;
        it.second.sql("SELECT pg_wal_replay_pause()")?;
        assert_eq!(it.stays.does("write")?, 0);
        let found = it.watch.fires(REPLICA, &of(&it.second), 60.s())?;
        assert_eq!(found["severity"], "warning");
        it.second.sql("SELECT pg_wal_replay_resume()")?;
        it.watch.resolves(REPLICA, &of(&it.second), 60.s())?;
        it.watch.never_told(ROLE, "")
    });
}

#[test]
fn a_replica_that_takes_no_reads_is_recorded_until_it_does() {
    alone(|stage| {
        const CHECK: &str = "db.replica_use";
        let it = Pair::begin(stage, &check(CHECK, "hold = \"15s\""))?;
        it.first.sql_in("app", "CREATE TABLE read AS SELECT generate_series(1, 50000) AS number")?;
        until("the table is on the replica", 30.s(), || match it.second.sql_in("app", "SELECT count(*) FROM read") {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        })?;
        until("the replica's reads are too few", 150.s(), || {
            it.first
                .sql_in("app", "SELECT count(*) FROM read; SELECT count(*) FROM read")
                .map_err(|error| error.to_string())?;
            let told = it.watch.tells(CHECK, &of(&it.second), 1.s()).map_err(|error| error.to_string())?;
            if told["severity"] == "info" { Ok(()) } else { Err(told.to_string()) }
        })?;
        let told = it.watch.tells(CHECK, &of(&it.second), 5.s())?;
        let servers = told["evidence"]["servers"].as_array().cloned().unwrap_or_default();
        assert_eq!(servers.iter().filter(|it| it["is_primary"] == true).count(), 1, "{told}");
        until("the replica takes its part", 150.s(), || {
            it.second
                .sql_in("app", "SELECT count(*) FROM read; SELECT count(*) FROM read")
                .map_err(|error| error.to_string())?;
            it.watch.sees(CHECK, &of(&it.second), "ok", 1.s()).map(drop).map_err(|error| error.to_string())
        })?;
        let incidents = it.watch.collector.items("incidents", "check=db.replica_use")?;
        assert!(incidents.is_empty(), "it is recorded and told to nobody: {incidents:?}");
        Ok(())
    });
}
