//! Damage to the files of an agent's buffer or of a collector's store: the shipped binaries start, say what is lost, and
//! what is left does its work.
//!
//! Hundreds of places are tried beside the unit tests of buffer and store; here, a few with everything around it.
//! `TICKBIRD_DAMAGE_PLACES` asks for more of both: here one for each fifty of them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tickbird_tests::agent::check;
use tickbird_tests::process::{installed, run};
use tickbird_tests::webhook::{firing, resolved};
use tickbird_tests::{Moody, Seconds, StageError, Watch, alone, until};

const PLACES: usize = 20;
/// Places beside the unit tests for one here.
const BESIDE: usize = 50;

fn places() -> usize {
    let asked = std::env::var("TICKBIRD_DAMAGE_PLACES").ok().and_then(|it| it.parse::<usize>().ok());
    asked.map_or(PLACES, |it| it / BESIDE)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with("ballast") && path.metadata().is_ok_and(|it| it.len() > 0) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Turns one bit or those of some bytes in the middle of what the file holds, or cuts it there.
fn damage(file: &Path, place: usize) -> Result<(), StageError> {
    let failed = || StageError::system(format!("damage {}", file.display()));
    let bytes = std::fs::read(file).map_err(failed())?;
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |at| at + 1);
    let at = used * (place * 29 % 97 + 1) / 98;
    let open = std::fs::File::options().write(true).open(file).map_err(failed())?;
    let turned: Vec<u8> = match place % 4 {
        0 => return open.set_len(at as u64).map_err(failed()),
        2 => bytes[at..(at + 3).min(bytes.len())].iter().map(|byte| !byte).collect(),
        _ => vec![bytes[at] ^ (1 << (place % 8))],
    };
    open.write_all_at(&turned, at as u64).map_err(failed())
}

fn copy(from: &Path, to: &Path) -> Result<(), StageError> {
    run(Command::new("/bin/rm").arg("-rf").arg(to))?;
    run(Command::new("/bin/cp").arg("-a").arg(from).arg(to)).map(drop)
}

#[test]
fn an_agent_starts_on_a_damaged_buffer_and_says_what_it_lost() {
    alone(|stage| {
        let load = Moody::start()?;
        let settings = check("http.status", "hold = \"0s\"") + &load.endpoints(8);
        let mut watch = Watch::begin(stage, &settings)?;
        watch.collector.kill()?;
        until("findings wait", 30.s(), || {
            let stat = watch.agent.report("buffer stat", &[]).map_err(|error| error.to_string())?;
            if stat["lanes"][0]["backlog"].as_u64() > Some(20) { Ok(()) } else { Err(stat.to_string()) }
        })?;
        watch.agent.kill()?;
        let (buffer, whole) = (watch.agent.state_directory().join("buffer"), stage.room("whole")?.join("buffer"));
        copy(&buffer, &whole)?;
        for place in 0..places() {
            copy(&whole, &buffer)?;
            let all = files(&buffer);
            let file = &all[place * all.len() / places()];
            damage(file, place)?;
            let what = format!("{} was damaged", file.display());
            watch.agent.run().map_err(|error| StageError::Failed { what: what.clone(), said: error.to_string() })?;
            watch.agent.kill()?;
            let stat = watch.agent.report("buffer stat", &[])?;
            for lane in stat["lanes"].as_array().into_iter().flatten() {
                assert_eq!(lane["whole"], true, "{what}: {lane}");
            }
        }
        // From the last one's remains everything still goes its way.
        load.recovers();
        watch.collector.serve()?;
        watch.agent.run()?;
        until("the backlog has gone", 60.s(), || {
            let stat = watch.agent.report("buffer stat", &[]).map_err(|error| error.to_string())?;
            let lanes = stat["lanes"].as_array().cloned().unwrap_or_default();
            if lanes.iter().all(|lane| lane["backlog"] == 0 && lane["whole"] == true) {
                Ok(())
            } else {
                Err(stat.to_string())
            }
        })
    });
}

const STORE: &str = "collector.store";
const PAGE: usize = 4_096;

/// The store, its log of changes, and the index of that.
fn store_files(directory: &Path) -> [PathBuf; 3] {
    ["store.db", "store.db-wal", "store.db-shm"].map(|name| directory.join(name))
}

/// Every row of a store by its table, without what a collector changes in it that hears no agent.
const ROWS: &str = "import json, sqlite3, sys
store = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True)
store.text_factory = bytes
changes = {
    'agents': ['last_seen_at', 'stopped_at'],
    'incidents': ['status', 'severity', 'summary', 'advice', 'evidence', 'evidence_lost', 'opened_at', 'updated_at', 'resolved_at',
                  'resolved_reason', 'occurrences', 'state_epoch', 'state_since', 'seen_epoch', 'seen_at'],
    'outbox': ['state', 'attempts', 'uncertain', 'next_attempt_at', 'settled_at', 'last_error'],
}
rows = {}
for name, in store.execute(\"SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'pulse'\").fetchall():
    table = name.decode()
    found = store.execute(f'SELECT * FROM {table}')
    columns = [it[0] for it in found.description]
    kept = [at for at, it in enumerate(columns) if it != 'sum' and it not in changes.get(table, [])]
    rows[table] = [repr([row[at] for at in kept]) for row in found]
print(json.dumps(rows))";

type Rows = BTreeMap<String, BTreeSet<String>>;

fn rows(directory: &Path) -> Result<Rows, StageError> {
    let mut python = Command::new(installed("/usr/bin/python3", "python3")?);
    let said = run(python.args(["-c", ROWS]).arg(directory.join("store.db")))?;
    serde_json::from_str(&said)
        .map_err(|error| StageError::Failed { what: "read the rows".into(), said: error.to_string() })
}

/// Rows of `had` that are not in the store any more, or are others there.
fn missing(had: &Rows, directory: &Path) -> Result<Vec<String>, StageError> {
    let has = rows(directory)?;
    let gone = |(table, had): (&String, &BTreeSet<String>)| {
        let none = BTreeSet::new();
        let gone = had.difference(has.get(table).unwrap_or(&none)).count();
        (gone > 0).then(|| format!("{gone} rows of {table}"))
    };
    Ok(had.iter().filter_map(gone).collect())
}

/// How often people were told of damage.
fn told(watch: &Watch) -> Result<usize, StageError> {
    let is_told = firing(STORE);
    Ok(watch.webhook.heard()?.iter().filter(|it| is_told(it)).count())
}

/// Whether the collector set something aside; then people were told, even where the tokens of the API are lost.
fn says_so(watch: &Watch, before: usize) -> Result<bool, StageError> {
    let aside = watch.collector.directory().join("damaged");
    if !aside.exists() {
        return Ok(false);
    }
    until("people are told of the damage", 20.s(), || {
        let now = told(watch).map_err(|error| error.to_string())?;
        if now > before { Ok(()) } else { Err(format!("{now} messages")) }
    })?;
    run(Command::new("/bin/rm").arg("-rf").arg(aside))?;
    Ok(true)
}

#[test]
fn a_collector_starts_on_a_damaged_store_and_says_what_it_lost_or_has_lost_nothing() {
    alone(|stage| {
        let load = Moody::start()?;
        let settings = check("http.status", "hold = \"0s\"") + &load.endpoints(8);
        let mut watch = Watch::begin(stage, &settings)?;
        until("findings are stored", 60.s(), || {
            let found = watch.collector.items("findings", "").map_err(|error| error.to_string())?;
            if found.len() > 40 { Ok(()) } else { Err(format!("{} findings", found.len())) }
        })?;
        // So some rows are in the store, and those that come now in its log alone.
        watch.collector.stop()?;
        watch.collector.serve()?;
        until("more is stored", 60.s(), || {
            let found = watch.collector.items("findings", "").map_err(|error| error.to_string())?;
            if found.len() > 60 { Ok(()) } else { Err(format!("{} findings", found.len())) }
        })?;
        watch.agent.kill()?;
        watch.collector.kill()?;
        let directory = watch.collector.directory().to_owned();
        let (files, whole, read) = (store_files(&directory), stage.room("whole")?, stage.room("read")?);
        let kept = store_files(&whole);
        for ((file, kept), read) in files.iter().zip(&kept).zip(store_files(&read)) {
            copy(file, kept)?;
            copy(file, &read)?;
        }
        // Of a copy: who reads makes the index anew.
        let had = rows(&read)?;
        let (mut found, mut silent) = (0, Vec::new());
        for place in 0..=places() {
            for (file, kept) in files.iter().zip(&kept) {
                copy(kept, file)?;
            }
            let file = &files[usize::from(place % 3 == 1)];
            // The last is the healthy twin.
            let is_damaged = place < places();
            if is_damaged {
                damage(file, place)?;
            }
            let what = format!("{} was damaged at place {place}", file.display());
            let before = told(&watch)?;
            let failed = |error: StageError| StageError::Failed { what: what.clone(), said: error.to_string() };
            watch.collector.serve().map_err(failed)?;
            let is_said = says_so(&watch, before)?;
            watch.collector.kill()?;
            found += usize::from(is_said);
            let missing = missing(&had, &directory)?;
            assert!(is_damaged || (!is_said && missing.is_empty()), "a store that is whole: {missing:?}");
            if !is_said && !missing.is_empty() {
                silent.push(format!("{what}: {}", missing.join(", ")));
            }
        }
        assert!(silent.is_empty(), "of {} places nobody was told: {silent:#?}", silent.len());
        assert!(found * 2 > places(), "most damage is seen: {found} of {}", places());

        // Damage under a collector that serves: it opens its store anew by itself.
        for (file, kept) in files.iter().zip(&kept) {
            copy(kept, file)?;
        }
        watch.collector.serve()?;
        watch.agent.run()?;
        watch.collector.stop()?;
        watch.collector.serve()?;
        let (pid, before) = (watch.collector.pid(), told(&watch)?);
        let finding = watch.collector.items("findings", "")?.pop().unwrap_or_default();
        let text = finding["summary"].as_str().unwrap_or_default().as_bytes().to_vec();
        let bytes = std::fs::read(&files[0]).map_err(StageError::system("read the store"))?;
        let open =
            std::fs::File::options().write(true).open(&files[0]).map_err(StageError::system("open the store"))?;
        // Its page among the findings is one of them.
        let mut pages: Vec<usize> =
            bytes.windows(text.len()).enumerate().filter(|(_, it)| *it == text).map(|(at, _)| at / PAGE).collect();
        pages.dedup();
        assert!(!pages.is_empty(), "what is listed is in the file");
        for page in pages {
            let at = u64::try_from(page * PAGE).expect("a place in a file");
            open.write_all_at(&[0; PAGE], at).map_err(StageError::system("damage the store"))?;
        }
        until("the store is repaired while it serves", 60.s(), || {
            for list in ["findings", "incidents"] {
                // Some answers fail until then.
                let _ = watch.collector.items(list, "");
            }
            let log = watch.collector.log();
            if log.contains("the store was repaired") && watch.collector.directory().join("damaged").exists() {
                Ok(())
            } else {
                Err(log.lines().last().unwrap_or_default().to_owned())
            }
        })?;
        let page = watch.webhook.hears("the store was damaged", 60.s(), firing(STORE))?;
        assert!(page.json["incident"]["summary"].to_string().contains("lost: "), "{}", page.body);
        assert!(page.json["incident"]["advice"].to_string().contains("backup"), "{}", page.body);
        says_so(&watch, before)?;
        assert_eq!(watch.collector.pid(), pid, "by the same process");
        load.recovers();
        until("the agent is heard again", 60.s(), || {
            let stat = watch.agent.report("buffer stat", &[]).map_err(|error| error.to_string())?;
            if stat["lanes"][0]["backlog"] == 0 { Ok(()) } else { Err(stat.to_string()) }
        })?;
        watch.webhook.hears("what was set aside is gone", 60.s(), resolved(STORE)).map(drop)
    });
}
