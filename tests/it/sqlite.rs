//! A SQLite database that two processes write to, one that is locked, one that is cut off, and their healthy twins.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tickbird_tests::agent::app;
use tickbird_tests::process::{Running, installed};
use tickbird_tests::{Seconds, Stage, StageError, Watch, alone, until};

const CHECK: &str = "sqlite.shared";

/// Writes a row whenever it is asked to, and says in its log what SQLite says.
const WRITER: &str = r#"
import logging, sqlite3, sys, time
logging.basicConfig(filename=sys.argv[2], level=logging.INFO)
database = sqlite3.connect(sys.argv[1], timeout=0.2, isolation_level=None)
database.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, what TEXT)")
holds = len(sys.argv) > 3
while True:
    try:
        if holds:
            database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO orders (what) VALUES ('a')")
        if holds:
            time.sleep(3)
            database.execute("COMMIT")
    except sqlite3.Error:
        logging.exception("the order was not kept")
    time.sleep(0.5)
"#;

/// Writes to `database`, and says in the log what goes wrong.
fn writer(stage: &Stage, name: &str, database: &Path, holds: bool) -> Result<(Running, PathBuf), StageError> {
    let room = stage.room(name)?;
    let (script, log) = (room.join(format!("{name}.py")), room.join("app.log"));
    std::fs::write(&script, WRITER).map_err(StageError::system("write a script"))?;
    let mut command = Command::new(installed("/usr/bin/python3", "python3")?);
    command.arg(&script).arg(database).arg(&log).args(holds.then_some("holds"));
    let process = Running::start(name, command.stdin(Stdio::null()), &room.join("output"))?;
    // The file is there before its first page is.
    until(format!("{name} has begun"), 30.s(), || match std::fs::metadata(database) {
        Ok(it) if it.len() > 0 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    Ok((process, log))
}

/// Has a file open and does nothing with it.
fn reader(stage: &Stage, file: &Path) -> Result<Running, StageError> {
    let log = stage.room("reader")?.join("output");
    Running::start("tail", Command::new("/usr/bin/tail").arg("-f").arg(file), &log)
}

#[test]
fn a_second_writer_is_named_and_a_database_with_one_is_well() {
    alone(|stage| {
        let room = stage.room("data")?;
        let (shared, twin) = (room.join("shared.db"), room.join("twin.sqlite3"));
        let (first, _) = writer(stage, "first-api", &shared, false)?;
        let _twin = writer(stage, "twin-api", &twin, false)?;
        // A log that somebody else's tool keeps under such a name is no database.
        let other = room.join("other.db");
        std::fs::write(&other, "no database\n").map_err(StageError::system("write a file"))?;
        let _reader = reader(stage, &other)?;
        let watch = Watch::begin(stage, "[sqlite]\ninterval = \"1s\"\n")?;
        for name in ["shared.db", "twin.sqlite3"] {
            watch.sees(CHECK, name, "ok", 30.s())?;
        }
        let (mut second, _) = writer(stage, "second-api", &shared, false)?;
        let told = watch.fires(CHECK, "shared.db", 30.s())?;
        let summary = told["summary"].as_str().unwrap_or_default();
        for pid in [first.pid(), second.pid()] {
            assert!(summary.contains(&pid.to_string()), "{told}");
        }
        second.stop()?;
        watch.resolves(CHECK, "shared.db", 30.s())?;
        watch.silent_about("twin.sqlite3")?;
        watch.silent_about("other.db")
    });
}

#[test]
fn a_locked_database_is_told_from_the_log_and_a_cut_off_one_from_its_file() {
    alone(|stage| {
        let room = stage.room("data")?;
        let (contended, cut) = (room.join("contended.db"), room.join("cut.db"));
        let (_waits, waiting_log) = writer(stage, "waiting-api", &contended, false)?;
        let (mut ends, steady_log) = writer(stage, "steady-api", &cut, false)?;
        // A writer would put the missing pages back from its memory.
        let _reader = reader(stage, &cut)?;
        ends.stop()?;
        let log = |name: &str, path: &Path| format!("[[log]]\npath = \"{}\"\napp = \"{name}\"\n", path.display());
        let settings = app("waiting-api", "waiting-api.py")
            + &log("waiting-api", &waiting_log)
            + &log("steady-api", &steady_log)
            + "[sqlite]\ninterval = \"1s\"\n";
        let watch = Watch::begin(stage, &settings)?;
        for name in ["log:waiting-api", "log:steady-api", "cut.db"] {
            watch.sees(CHECK, name, "ok", 30.s())?;
        }
        let (mut holder, _) = writer(stage, "holding-api", &contended, true)?;
        watch.fires(CHECK, "log:waiting-api", 60.s())?;
        watch.silent_about("log:steady-api")?;
        holder.stop()?;
        let file = std::fs::OpenOptions::new().write(true).open(&cut).map_err(StageError::system("open it"))?;
        file.set_len(4096).map_err(StageError::system("cut a database off"))?;
        let told = watch.fires(CHECK, "cut.db", 30.s())?;
        assert_eq!(told["severity"], "critical", "{told}");
        Ok(())
    });
}
