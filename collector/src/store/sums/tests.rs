//! Bits turned where SQLite sees nothing wrong.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::super::sample::{agent, at, contents, filled};
use super::*;
use crate::store::{
    Aside, Readers, StoreError, Writer, check as look, is_suspected, migrate, open_sound, suspect, verify,
};

/// In each table a place within one row whose bits mean something: bytes that only this row has, and how far behind their start.
const PLACES: [(&str, &[u8], usize); 23] = [
    ("agents", b"web-17", 5),
    ("tokens", b"token-17", 13),
    ("api_tokens", b"person-17", 11),
    ("incidents", b"pool.leak17resolvedwarning", 30),
    ("decisions", b"00017opsincident.firingbegan", 23),
    ("outbox", b"00017ops01JINCIDENT", 140),
    ("silences", b"00017[\"team=\\\"shop\\\"\"]anna", 9),
    ("withheld", b"00017pagerincident.firing", 24),
    ("acknowledgements", b"00017annawe are on itwarning", 6),
    ("escalations", b"00017night", 7),
    ("heard", b"00017page{\"severity\"", 11),
    ("flaps", b"00017[1", 9),
    ("dependencies", b"agent-0017{\"db.internal:17\"", 16),
    ("alert_groups", b"00017deskroute.routes", 6),
    ("lanes", b"00017urgent\x07\x03", 18),
    ("findings", b"finding 317", 9),
    ("bodies", b"00017bulk\x07\x00", 40),
    ("losses", b"00017bulk\x08\x0b\x04evicted", 10),
    ("levels", b"\"left_out\":17", 12),
    ("pool_use", b"shop-17\x00", 15),
    ("tallies", b"tenant-17", 9),
    ("excesses", b"agent-0017rate_limited", 22),
    ("pulse", &[0x00, 0x06, 0x5b, 0xfe, 0xe0, 0x1b, 0xc1, 0x00], 7),
];

struct Scene {
    room: TempDir,
    whole: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("whole.db");
        filled(&path);
        Self { whole: fs::read(&path).expect("reads"), room }
    }

    /// A store with one bit turned; also where these bytes lie in room that nothing holds.
    fn turned(&self, table: &str, needle: &[u8], behind: usize) -> (TempDir, std::path::PathBuf) {
        let mut bytes = self.whole.clone();
        let places = self.whole.windows(needle.len()).enumerate().filter_map(|(at, it)| (it == needle).then_some(at));
        let turned = places.map(|at| bytes[at + behind] ^= 1).count();
        assert!(turned > 0, "{table} is not in the file as expected");
        let directory = tempfile::tempdir_in(self.room.path()).expect("a directory");
        let path = directory.path().join("store.db");
        fs::write(&path, bytes).expect("writes");
        (directory, path)
    }
}

fn is_whole_to_sqlite(path: &Path) -> bool {
    let connection = Connection::open(path).expect("opens");
    let said: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("asks");
    said == "ok"
}

#[test]
fn a_bit_turned_in_any_table_is_found_the_row_left_out_and_its_loss_told() {
    let scene = Scene::new();
    let had = contents(&scene.room.path().join("whole.db"));
    assert_eq!(had.len() + 1, PLACES.len(), "every table but the one that a start writes: {:?}", had.keys());
    for (table, needle, behind) in PLACES {
        let (_directory, path) = scene.turned(table, needle, behind);
        assert!(is_whole_to_sqlite(&path), "{table}: else nothing is shown");
        let refused = verify(&path).expect_err("no backup is made of it, none restored");
        let said = format!("{table}: 1 rows that do not match their checksums");
        assert!(matches!(&refused, StoreError::Damaged { said: it, .. } if *it == said), "{table}: {refused}");

        open_sound(&path, at(20)).expect("opens").close().expect("closes");
        let damage = Aside::of(&path).newest().unwrap_or_else(|| panic!("{table}: nothing is said"));
        assert_eq!((damage.said.concat(), damage.lost()), (said, format!("{table} (at least 1 rows)")));
        for (name, rows) in contents(&path) {
            assert!(rows.is_subset(&had[&name]), "{table}: nothing that was never written");
            assert_eq!(had[&name].len() - rows.len(), usize::from(name == table), "{table}: one row, not of {name}");
        }
        assert_eq!(look(&path).expect("looks"), [""; 0]);
    }
}

#[test]
fn what_is_read_for_a_decision_or_for_people_is_compared() {
    let scene = Scene::new();
    let (_directory, path) = scene.turned("agents", b"web-17", 5);
    let mut writer = Writer::open(&path).expect("nothing is looked through");
    assert!(writer.rows().agent("default", "agent-0018").expect("reads").is_some());
    let refused = writer.rows().agent("default", "agent-0017").expect_err("it is another host's name");
    assert!(refused.is_damage() && refused.in_full().contains("does not match its checksum"), "{}", refused.in_full());

    // A change would give what was turned a checksum that matches.
    let transaction = writer.transaction().expect("begins");
    transaction.mark_seen(&agent(18)).expect("another row");
    let refused = transaction.mark_seen(&agent(17)).expect_err("it is not what was written");
    assert!(refused.is_damage() && refused.in_full().contains("a row of agents"), "{}", refused.in_full());
    let refused = transaction.put_agent(&agent(17)).expect_err("nor is all of it written anew");
    assert!(refused.is_damage(), "{}", refused.in_full());
    drop(transaction);

    let (_directory, path) = scene.turned("incidents", b"pool.leak17resolvedwarning", 30);
    let mut writer = Writer::open(&path).expect("nothing is looked through");
    let whole = Writer::open(&scene.room.path().join("whole.db")).expect("opens");
    let filter = crate::store::IncidentFilter { tenant: "default".into(), limit: 1_000, ..Default::default() };
    let rows = whole.rows().incidents(&filter).expect("reads");
    let transaction = writer.transaction().expect("begins");
    let outcomes = rows.iter().map(|row| transaction.put_incident(row));
    let refused: Vec<_> = outcomes.filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1, "the one that was turned, and no other: {refused:?}");
    assert!(refused[0].is_damage() && refused[0].in_full().contains("a row of incidents"), "{refused:?}");
}

#[tokio::test]
async fn a_page_of_the_api_that_meets_a_turned_bit_has_the_store_opened_anew() {
    let scene = Scene::new();
    let (_directory, path) = scene.turned("findings", b"finding 317", 9);
    let readers = Readers::open(&path).expect("opens");
    let filter = crate::store::FindingFilter { tenant: "default".into(), limit: 1_000, ..Default::default() };
    readers.read(move |rows| rows.findings(&filter)).await.expect_err("one of them was never found");
    assert!(is_suspected(&path));
    drop(readers);
    let writer = open_sound(&path, at(20)).expect("opens");
    let filter = crate::store::FindingFilter { tenant: "default".into(), limit: 1_000, ..Default::default() };
    assert_eq!(writer.rows().findings(&filter).expect("reads").len(), 599);
}

#[test]
fn other_programs_read_the_store_and_write_nothing_into_it() {
    let scene = Scene::new();
    let path = scene.room.path().join("whole.db");
    let other = Connection::open(&path).expect("opens");
    let count = |sql: &str| other.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("reads");
    assert_eq!(count("SELECT count(*) FROM agents WHERE host LIKE 'web-%'"), 120);
    assert_eq!(count("SELECT max(sum) FROM findings WHERE tenant = 'default'").signum(), 1);
    for change in ["UPDATE agents SET host = 'x'", "INSERT INTO pulse (id, at) VALUES (2, 3)"] {
        let refused = other.execute(change, []).expect_err("it cannot know the checksum");
        assert!(refused.to_string().contains(NAME), "{refused}");
    }
    assert!(is_whole_to_sqlite(&path));
}

#[test]
fn a_letter_turned_in_the_list_of_tables_is_found_and_the_number_of_the_schema_too() {
    let scene = Scene::new();
    for (needle, behind) in [(&b"WHERE status = 'firing'"[..], 17), (b"\n    summary         TEXT", 5)] {
        let (_directory, path) = scene.turned("incidents", needle, behind);
        assert_ne!(look(&path).expect("looks"), [""; 0]);
        suspect(&path, "whatever the size of the store");
        open_sound(&path, at(20)).expect("opens").close().expect("closes");
        let damage = Aside::of(&path).newest().expect("it is said");
        assert_ne!(damage.said, [""; 0]);
        assert_eq!(look(&path).expect("looks"), [""; 0]);
    }
    // An older schema than the tables are of: steps taken twice would fail at each start.
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.db");
    let mut bytes = scene.whole.clone();
    assert_eq!(u32::from(bytes[63]), migrate::KNOWN, "where SQLite keeps it");
    bytes[63] ^= 1 << migrate::KNOWN.ilog2();
    fs::write(&path, bytes).expect("writes");
    open_sound(&path, at(20)).expect("opens").close().expect("closes");
    let damage = Aside::of(&path).newest().expect("it is said");
    assert!(damage.said[0].ends_with("is not as it was made"), "{:?}", damage.said);
    assert_eq!(contents(&path), contents(&scene.room.path().join("whole.db")), "every row is saved");
}

/// Stores that are there have sums of this form.
#[test]
fn the_form_of_the_checksum_is_fixed() {
    let connection = Connection::open_in_memory().expect("memory is there");
    provide(&connection).expect("provides");
    let sum = |values: &str| {
        let sql = format!("SELECT {NAME}({values})");
        connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).expect("computes")
    };
    assert_eq!(sum("'pulse', 1, 7"), 1_469_746_574);
    let others =
        ["'pulse', 1, NULL", "'pulse', 1, '7'", "'pulse', 1, x'37'", "'pulse', 1, 7.0", "'pulse1', 7", "'pulse', 17"];
    let sums: std::collections::BTreeSet<i64> = others.into_iter().map(sum).collect();
    assert_eq!(sums.len(), others.len(), "types, and where one value ends and the next begins, count");
}
