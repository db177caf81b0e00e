//! A store that a newer collector wrote, under the collector that is shipped: refused by name, and left as it is, whatever
//! state it is in.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};
use tickbird_tests::process::{installed, output, run};
use tickbird_tests::{Moody, Seconds, Stage, StageError, Watch, alone, until};

/// Raises the schema of a store by one, and says what it was. Asked to, it dies before the log of changes is written back.
const RAISE: &str = "import os, sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
known = store.execute('PRAGMA user_version').fetchone()[0]
store.execute('CREATE TABLE of_the_future (omen TEXT)')
store.execute(f'PRAGMA user_version = {known + 1}')
print(known, flush=True)
if sys.argv[2] == 'dies':
    os._exit(0)
store.close()";

/// Zeroes the rows of a table, from within the file: SQLite sees that they are no page.
const SPOIL: &str = "import sqlite3, sys
store = sqlite3.connect(sys.argv[1])
pages = [row[0] for row in store.execute('SELECT rootpage FROM sqlite_schema WHERE name = \"findings\"')]
store.close()
with open(sys.argv[1], 'r+b') as file:
    for page in pages:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))";

/// Puts a store into a backup as if it had been made of it.
const RECORD: &str = "import hashlib, json, sys
path = sys.argv[1]
store = open(path + '/store.db', 'rb').read()
made = json.load(open(path + '/backup.json'))
for it in made['files']:
    if it['name'] == 'store.db':
        it.update(bytes=len(store), sha256=hashlib.sha256(store).hexdigest())
json.dump(made, open(path + '/backup.json', 'w'))";

fn python(program: &str, arguments: &[&Path]) -> Result<String, StageError> {
    run(Command::new(installed("/usr/bin/python3", "python3")?).args(["-c", program]).args(arguments))
}

/// The digests of a directory's files by name, without those that say which process works in it.
fn digests(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>, StageError> {
    let failed = || StageError::system(format!("read {}", directory.display()));
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // How far readers of the log of changes are, which is made anew from the log; where a life listened; and whose turn it is.
        let is_of_a_life = matches!(name.as_str(), "store.db-shm" | "addresses.json" | "store.lock");
        if is_of_a_life || !entry.path().is_file() {
            continue;
        }
        let bytes = std::fs::read(entry.path()).map_err(failed())?;
        if name == "store.db-wal" && bytes.is_empty() {
            continue; // as good as none
        }
        found.insert(name, Sha256::digest(bytes).to_vec());
    }
    Ok(found)
}

/// The store of `directory` is of the schema after `known`: each command says so, fails, and changes nothing.
fn is_refused(stage: &Stage, directory: &Path, known: u32, commands: &[&[&str]]) -> Result<(), StageError> {
    let before = digests(directory)?;
    assert!(before.contains_key("store.db"), "{before:?}");
    for arguments in commands {
        // One that is not refused serves until it is asked to end.
        let mut command = Command::new(installed("/usr/bin/timeout", "coreutils")?);
        command.arg("30").arg(stage.binary("tickbird-collector")?);
        let ended = output(command.args(*arguments).arg("--dir").arg(directory))?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {said}");
        let both = format!("schema {}, this collector knows up to {known}", known + 1);
        assert!(said.contains(&both), "{arguments:?} names both: {said}");
        assert!(said.contains("run the newer collector again, or restore"), "{arguments:?}: what to do: {said}");
        let after = digests(directory)?;
        let names = before.keys().chain(after.keys());
        let changed: Vec<_> = names.filter(|name| before.get(*name) != after.get(*name)).collect();
        assert!(changed.is_empty(), "{arguments:?} changed {changed:?}: {said}");
        assert!(!directory.join("damaged").exists(), "{arguments:?}: nothing is set aside");
    }
    Ok(())
}

#[test]
fn a_store_of_a_newer_collector_is_refused_by_every_command_and_left_as_it_is() {
    alone(|stage| {
        let load = Moody::start()?;
        let mut watch = Watch::begin(stage, &load.endpoints(4))?;
        until("something is stored", 60.s(), || {
            let found = watch.collector.items("findings", "").map_err(|error| error.to_string())?;
            if found.is_empty() { Err("nothing yet".to_owned()) } else { Ok(()) }
        })?;
        let room = stage.room("backups")?;
        let (backup, nowhere) = (room.join("newer"), room.join("nowhere"));
        let text = |path: &Path| path.to_str().expect("the stage's paths are text").to_owned();
        watch.collector.command(&["backup", &text(&backup)])?;
        watch.agent.stop()?;
        watch.collector.kill()?;

        let (directory, to) = (watch.collector.directory().to_owned(), text(&nowhere));
        let commands: [&[&str]; 4] = [&["serve"], &["backup", &to], &["token", "list"], &["agent", "list"]];
        // The newer one was killed: what makes its store newer stands in the log of changes alone.
        let known = python(RAISE, &[&directory.join("store.db"), Path::new("dies")])?;
        let known: u32 = known.trim().parse().expect("a number");
        assert!(directory.join("store.db-wal").metadata().is_ok_and(|it| it.len() > 0), "there is a log of changes");
        is_refused(stage, &directory, known, &commands)?;
        // It ended in order.
        python(
            "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)')",
            &[&directory.join("store.db")],
        )?;
        is_refused(stage, &directory, known, &commands)?;
        // It is damaged, too: an older collector would save what it knows of, and lose what it does not.
        python(SPOIL, &[&directory.join("store.db")])?;
        is_refused(stage, &directory, known, &commands)?;
        std::fs::write(directory.join("store.suspect"), "").map_err(StageError::system("mark the store"))?;
        is_refused(stage, &directory, known, &commands)?;
        assert!(!nowhere.exists(), "no backup is left");

        // A backup that a newer collector made, whole by its own digests.
        python(RAISE, &[&backup.join("store.db"), Path::new("closes")])?;
        python(RECORD, &[&backup])?;
        let before = digests(&backup)?;
        let mut command = Command::new(stage.binary("tickbird-collector")?);
        let ended = output(command.args(["restore", &text(&backup), "--dir", &to]))?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("schema {}, this collector knows up to {known}", known + 1)), "{said}");
        assert_eq!(digests(&backup)?, before, "the backup is as it was");
        let left: Vec<_> = std::fs::read_dir(&room).expect("read").flatten().map(|it| it.file_name()).collect();
        assert_eq!(left, ["newer"], "nothing is left behind");
        Ok(())
    });
}
