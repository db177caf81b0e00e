//! Logs as a killed collector leaves them, damaged.

use std::fs;

use tempfile::TempDir;

use super::super::sample::{agent, at, contents, filled};
use super::*;
use crate::store::{Aside, StoreError, Writer, check, copy, open_sound};

const FILES: [&str; 3] = ["", "-wal", "-shm"];
const TRANSACTIONS: u32 = 12;

/// A store whose last transactions are in its log alone, as they lay there when its process was killed.
struct Killed {
    room: TempDir,
    files: [Vec<u8>; 3],
}

impl Killed {
    fn new() -> Self {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("whole.db");
        filled(&path);
        let mut writer = Writer::open(&path).expect("opens");
        for number in 0..TRANSACTIONS {
            let transaction = writer.transaction().expect("begins");
            transaction.put_agent(&agent(1_000 + number)).expect("writes");
            transaction.commit().expect("commits");
        }
        let files = FILES.map(|suffix| fs::read(with_suffix(&path, suffix)).expect("reads"));
        // In order it would end with the log moved into the store.
        drop(writer);
        Self { room, files }
    }

    /// These files as a store of their own; a file that holds nothing is not there.
    fn laid(&self, files: &[Vec<u8>; 3]) -> (TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir_in(self.room.path()).expect("a directory");
        let path = directory.path().join("store.db");
        for (suffix, bytes) in FILES.iter().zip(files).filter(|(_, bytes)| !bytes.is_empty()) {
            fs::write(with_suffix(&path, suffix), bytes).expect("writes");
        }
        (directory, path)
    }

    /// Agents of the store at `path` once it was opened to serve, and how many transactions it was said to have lost.
    fn opens(path: &Path) -> (usize, u64) {
        open_sound(path, at(20)).expect("opens").close().expect("closes");
        let lost = Aside::of(path).newest().map_or(0, |it| it.transactions);
        assert_eq!(check(path).expect("looks"), [""; 0]);
        (contents(path)["agents"].len(), lost)
    }
}

const ALL: usize = 120 + TRANSACTIONS as usize;

#[test]
fn a_log_that_a_killed_process_left_is_whole_and_so_is_one_that_a_crash_cut_short() {
    let killed = Killed::new();
    let (_directory, path) = killed.laid(&killed.files);
    assert_eq!(look(&path), Verdict::Whole);
    assert_eq!(Killed::opens(&path), (ALL, 0));
    // Killed while it wrote a transaction: frames behind what the index knows.
    let [store, log, index] = killed.files.clone();
    for more in [&log[HEADER..HEADER + 700], &log[HEADER..]] {
        let (_directory, path) = killed.laid(&[store.clone(), [&log[..], more].concat(), index.clone()]);
        assert_eq!(look(&path), Verdict::Whole);
        assert_eq!(Killed::opens(&path), (ALL, 0));
    }
    // The last transaction was not on the disk when the power went, and the index was written out before it.
    let mut torn = log.clone();
    let end = torn.len();
    torn[end - 2_000..].fill(0);
    let mut earlier = index.clone();
    earlier[..INDEX].fill(0);
    for index in [Vec::new(), earlier] {
        let (_directory, path) = killed.laid(&[store.clone(), torn.clone(), index]);
        assert_eq!(look(&path), Verdict::Whole);
        assert_eq!(Killed::opens(&path), (ALL - 1, 0));
    }
}

#[test]
fn a_log_damaged_anywhere_has_the_transactions_told_that_are_missing() {
    let killed = Killed::new();
    let [store, log, index] = killed.files.clone();
    let mut silent = Vec::new();
    for place in 0..60 {
        let at = place * log.len() / 60 + 7;
        let mut turned = log.clone();
        turned[at] ^= 1 << (place % 8);
        for log in [turned, log[..at].to_vec()] {
            let (_directory, path) = killed.laid(&[store.clone(), log, index.clone()]);
            let (agents, lost) = Killed::opens(&path);
            assert!(lost as usize <= ALL - agents, "{place}: {lost} of {}", ALL - agents);
            if agents < ALL && lost == 0 {
                silent.push(place);
            }
        }
    }
    assert_eq!(silent, [0; 0], "places of which nothing is said");
    let words = Verdict::Cut { frames: 3, transactions: 2 }.said().expect("damage");
    assert_eq!(words, "the log of changes is damaged behind frame 3: 2 transactions or more are missing");
}

#[test]
fn without_its_index_damage_is_told_by_the_transactions_behind_it() {
    let killed = Killed::new();
    let [store, log, _] = killed.files.clone();
    let mut turned = log.clone();
    turned[HEADER + FRAME + 9] ^= 1;
    let (_directory, path) = killed.laid(&[store, turned, Vec::new()]);
    assert_eq!(look(&path), Verdict::Cut { frames: 0, transactions: u64::from(TRANSACTIONS) - 1 });
    let (agents, lost) = Killed::opens(&path);
    assert_eq!((agents, lost), (120, u64::from(TRANSACTIONS) - 1));
    let damage = Aside::of(&path).newest().expect("it is said");
    assert_eq!(damage.lost(), "the last transactions (at least 11)");
}

#[test]
fn a_damaged_log_that_was_moved_into_the_store_takes_nothing_back_from_it() {
    let room = tempfile::tempdir().expect("a directory");
    let path = room.path().join("whole.db");
    filled(&path);
    let mut writer = Writer::open(&path).expect("opens");
    for host in ["before", "after"] {
        let transaction = writer.transaction().expect("begins");
        transaction.put_agent(&crate::store::AgentRow { host: host.into(), ..agent(7) }).expect("writes");
        transaction.commit().expect("commits");
    }
    let moved = writer.rows().0.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(0));
    assert_eq!(moved.expect("moves"), 0);
    let killed = Killed { files: FILES.map(|suffix| fs::read(with_suffix(&path, suffix)).expect("reads")), room };
    let mut files = killed.files.clone();
    let end = files[1].len();
    files[1][end - 100] ^= 1;
    let (_directory, path) = killed.laid(&files);
    assert_eq!(look(&path), Verdict::Spent);
    let writer = open_sound(&path, at(20)).expect("opens");
    let host = writer.rows().agent("default", "agent-0007").expect("reads").map(|it| it.host);
    assert_eq!(host.as_deref(), Some("after"));
    assert_eq!(Aside::of(&path).newest(), None, "nothing is lost");
}

#[test]
fn what_a_damaged_log_lost_is_told_also_when_the_first_repair_comes_to_nothing() {
    let killed = Killed::new();
    let mut files = killed.files.clone();
    files[1].truncate(HEADER + 3 * (FRAME + 4_096));
    let (directory, path) = killed.laid(&files);
    // Nothing can be set aside there.
    let aside = directory.path().join("damaged");
    fs::write(&aside, b"").expect("writes");
    open_sound(&path, at(20)).map(drop).expect_err("there is no place for the damaged one");
    assert_eq!(look(&path), Verdict::Whole, "SQLite has made the index anew");
    assert!(Writer::open_beside(&path).is_err(), "commands leave it alone as before");
    fs::remove_file(&aside).expect("removes");
    let (agents, lost) = Killed::opens(&path);
    assert!(agents < ALL && lost > 0, "{agents}, {lost}");
    let (again, lost_again) = Killed::opens(&path);
    assert_eq!((again, lost_again), (agents, lost), "it is repaired once");
    assert_eq!(fs::read_dir(&aside).expect("reads").count(), 1);
}

#[test]
fn what_an_earlier_power_cut_left_behind_the_end_is_no_loss() {
    let killed = Killed::new();
    let [store, log, _] = killed.files.clone();
    let size = FRAME + 4_096;
    let frames = (log.len() - HEADER) / size;
    let commits = |number: usize| word(&log[HEADER + number * size..], 4) != 0;
    let ends: Vec<usize> = (0..frames).filter(|it| commits(*it)).collect();
    // The last but one is torn by the second power cut; behind it stands the tail of a longer transaction of before the first,
    // with the salts of the log, which recovery keeps, and sums of its own.
    let mut torn = log.clone();
    let at = HEADER + (ends[ends.len() - 3] + 1) * size;
    torn[at + FRAME..at + FRAME + 64].fill(0x5a);
    let tail = HEADER + (ends[ends.len() - 2] + 1) * size;
    torn.truncate(tail);
    let mut stale = log[tail..].to_vec();
    stale[FRAME] ^= 1;
    stale[16] ^= 1;
    torn.extend_from_slice(&stale);
    torn.extend_from_slice(&stale);
    let (_directory, path) = killed.laid(&[store, torn, Vec::new()]);
    assert_eq!(look(&path), Verdict::Whole);
    assert_eq!(Killed::opens(&path).1, 0);
}

#[test]
fn a_command_leaves_an_older_store_to_the_collector() {
    let killed = Killed::new();
    let path = killed.room.path().join("older.db");
    let connection = rusqlite::Connection::open(&path).expect("makes");
    connection.execute_batch(include_str!("../schema/0001.sql")).expect("the first schema");
    connection.pragma_update(None, "user_version", 1).expect("sets");
    drop(connection);
    let refused = Writer::open_beside(&path).map(drop).expect_err("it may be served");
    assert!(matches!(refused, StoreError::Older { found: 1, .. }), "{refused}");
    open_sound(&path, at(20)).expect("brings it up").close().expect("closes");
    Writer::open_beside(&path).expect("opens");
}

#[test]
fn commands_leave_a_damaged_log_to_the_collector() {
    let killed = Killed::new();
    let mut files = killed.files.clone();
    files[1].truncate(HEADER + 3 * (FRAME + 4_096));
    let (directory, path) = killed.laid(&files);
    for refused in [
        Writer::open_beside(&path).map(drop).expect_err("its end would make the log look whole"),
        copy(&path, &directory.path().join("copy.db"), |_| ()).map(drop).expect_err("it would lack the end"),
    ] {
        assert!(matches!(refused, StoreError::Unrepaired { .. }), "{refused}");
        assert!(refused.advice().is_some_and(|it| it.contains("start the collector")));
    }
    assert_eq!(fs::read(with_suffix(&path, "-wal")).expect("reads"), files[1], "left as it was");
    assert!(Killed::opens(&path).1 > 0);
    Writer::open_beside(&path).expect("it is repaired");
}
