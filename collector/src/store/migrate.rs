//! Brings an older schema up to this binary's, step by step, and refuses a newer one.
//!
//! `PRAGMA user_version` counts the steps taken. Each step is one transaction together with its count, so a crash
//! between two steps leaves a store that the same binary goes on with. Each step changes the list of tables, so that a count which
//! says "newer" above a list that is ours is known for a turned bit.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rusqlite::{Connection, TransactionBehavior};

use super::{StoreError, sums};

const STEPS: [&str; 16] = [
    include_str!("schema/0001.sql"),
    include_str!("schema/0002.sql"),
    include_str!("schema/0003.sql"),
    include_str!("schema/0004.sql"),
    include_str!("schema/0005.sql"),
    include_str!("schema/0006.sql"),
    include_str!("schema/0007.sql"),
    include_str!("schema/0008.sql"),
    include_str!("schema/0009.sql"),
    include_str!("schema/0010.sql"),
    include_str!("schema/0011.sql"),
    include_str!("schema/0012.sql"),
    include_str!("schema/0013.sql"),
    include_str!("schema/0014.sql"),
    include_str!("schema/0015.sql"),
    include_str!("schema/0016.sql"),
];

/// The steps that write every row of a table anew that has checksums.
const ANEW: [(usize, &str); 2] = [(8, "decisions"), (14, "outbox")];

/// Newest schema this binary knows.
pub(super) const KNOWN: u32 = STEPS.len() as u32;

/// The statements that made tables and indexes, by name.
type Made = BTreeMap<String, String>;

pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found = check(connection)?;
    for (index, step) in STEPS.iter().enumerate().skip(found as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have taken the step while this one waited for the lock.
        if version(&transaction)? as usize == index {
            for (_, table) in ANEW.iter().filter(|(step, _)| *step == index) {
                // Their sums are computed anew, and what was turned would look whole.
                sums::compare(&transaction, table)?;
            }
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "user_version", index as u32 + 1)?;
        }
        transaction.commit()?;
        tracing::info!(schema = index + 1, "store migrated");
    }
    Ok(())
}

/// The schema of the file, if this binary can read it.
pub(super) fn check(connection: &Connection) -> Result<u32, StoreError> {
    let found = version(connection)?;
    if found <= KNOWN {
        return Ok(found);
    }
    // A list that cannot be read may be a newer one.
    if made(connection).is_ok_and(|it| models().is_ok_and(|models| models.last() == Some(&it))) {
        let said = format!("it counts {found} steps of its schema, and its tables are those of {KNOWN}");
        return Err(StoreError::Damaged { path: connection.path().unwrap_or_default().into(), said });
    }
    Err(StoreError::FromTheFuture { found, known: KNOWN })
}

/// The first table or index that is not as this binary makes it at the schema of the file: a letter turned in the list of tables
/// makes another column, or another rule of an index. What others have added is left alone.
///
/// # Errors
/// When the list cannot be read.
pub(super) fn altered(connection: &Connection) -> Result<Option<String>, StoreError> {
    let found = check(connection)?;
    let (has, models) = (made(connection)?, models()?);
    let (Some(expected), Some(newest)) = (models.get(found as usize), models.last()) else { return Ok(None) };
    // What is only in the newest is not there, or the number of the schema is wrong.
    let mut names = expected.keys().chain(newest.keys());
    Ok(names.find(|name| has.get(*name) != expected.get(*name)).cloned())
}

/// Statements of each schema, from none to the newest: a table that a step changes has another text than one made at once.
fn models() -> Result<&'static [Made], StoreError> {
    static MODELS: OnceLock<Vec<Made>> = OnceLock::new();
    if let Some(models) = MODELS.get() {
        return Ok(models);
    }
    let model = Connection::open_in_memory()?;
    sums::provide(&model)?;
    let mut models = vec![Made::new()];
    for step in STEPS {
        model.execute_batch(step)?;
        models.push(made(&model)?);
    }
    Ok(MODELS.get_or_init(|| models))
}

fn made(connection: &Connection) -> Result<Made, StoreError> {
    let mut query = connection.prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn version(connection: &Connection) -> Result<u32, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_memory() -> Connection {
        let connection = Connection::open_in_memory().expect("memory is there");
        sums::provide(&connection).expect("provides");
        connection
    }

    #[test]
    fn a_store_of_a_newer_collector_is_refused_and_left_alone() {
        let mut connection = in_memory();
        migrate(&mut connection).expect("an empty store is migrated");
        migrate(&mut connection).expect("a second run changes nothing");
        connection.pragma_update(None, "user_version", KNOWN + 1).expect("sets");
        let error = check(&connection).expect_err("a bit was turned");
        assert!(error.is_damage(), "{error}");
        connection.execute_batch("CREATE TABLE of_the_future (omen TEXT)").expect("makes");
        let error = migrate(&mut connection).expect_err("must be refused");
        assert!(matches!(error, StoreError::FromTheFuture { found, known } if found == known + 1), "{error}");
    }

    #[test]
    fn each_step_changes_the_list_of_tables() {
        let models = models().expect("made");
        assert_eq!(models.len(), STEPS.len() + 1);
        assert!(models.windows(2).all(|two| two[0] != two[1]));
    }

    #[test]
    fn a_store_a_bit_of_whose_count_of_steps_was_turned_is_repaired_with_all_that_is_in_it() {
        use super::super::sample::{at, contents, filled};
        use crate::store::{Aside, open_sound};
        let room = tempfile::tempdir().expect("a directory");
        for bit in [1, 4, 12, 30] {
            let path = room.path().join(format!("{bit}.db"));
            filled(&path);
            let had = contents(&path);
            let connection = Connection::open(&path).expect("opens");
            connection.pragma_update(None, "user_version", KNOWN ^ 1 << bit).expect("sets");
            drop(connection);
            let writer = open_sound(&path, at(9)).expect("it starts");
            assert_eq!(check(writer.rows().0).expect("reads"), KNOWN);
            writer.close().expect("closes");
            assert_eq!(contents(&path), had, "bit {bit}");
            assert!(Aside::of(&path).newest().is_some(), "it is told");
        }
    }

    #[test]
    fn a_lane_of_an_older_schema_goes_by_no_start() {
        let mut connection = in_memory();
        STEPS[..4].iter().for_each(|step| connection.execute_batch(step).expect("an older schema"));
        connection.pragma_update(None, "user_version", 4).expect("sets");
        let row = "INSERT INTO lanes VALUES ('default', 'a-1', '01JD7Z5W0000000000000000AA', 'urgent', 7, 5, zeroblob(32), 9)";
        connection.execute_batch(row).expect("writes");
        let read = |connection: &Connection| {
            connection.query_row("SELECT * FROM lanes", [], super::super::lanes::read).expect("reads")
        };
        let before = read(&connection);
        assert_eq!((before.through, before.start), (7, None), "also by who only repairs it");
        migrate(&mut connection).expect("migrates");
        assert_eq!(read(&connection), before);
    }

    #[test]
    fn a_store_of_the_first_schema_keeps_what_it_holds_and_gets_what_is_new() {
        let mut connection = in_memory();
        connection.execute_batch(STEPS[0]).expect("the first schema");
        connection.pragma_update(None, "user_version", 1).expect("sets");
        connection.execute_batch("INSERT INTO pulse (id, at) VALUES (1, 7)").expect("writes");
        migrate(&mut connection).expect("migrates");
        assert_eq!(check(&connection).expect("reads"), KNOWN);
        let kept: i64 = connection.query_row("SELECT at FROM pulse", [], |row| row.get(0)).expect("is there");
        assert_eq!(kept, 7);
        for table in ["levels", "pool_use", "tallies"] {
            let count = format!("SELECT count(*) FROM {table}");
            let rows: i64 = connection.query_row(&count, [], |row| row.get(0)).expect("the table is there");
            assert_eq!(rows, 0);
        }
    }

    #[test]
    fn rows_of_a_schema_without_checksums_get_them_whole_or_saved_from_damage() {
        use super::super::sample::{at, contents as all, filled};
        use crate::store::{Aside, Writer, check as look, open_sound};
        let contents = |path| -> BTreeMap<_, _> { all(path).into_iter().filter(|it| !it.1.is_empty()).collect() };
        let room = tempfile::tempdir().expect("a directory");
        let (newer, older) = (room.path().join("newer.db"), room.path().join("older.db"));
        filled(&newer);
        let later = "DELETE FROM silences; DELETE FROM withheld; DELETE FROM alert_groups; \
             DELETE FROM acknowledgements; DELETE FROM escalations; DELETE FROM flaps; DELETE FROM dependencies; \
             DELETE FROM heard; UPDATE outbox SET form = NULL";
        let connection = Connection::open(&newer).expect("opens");
        sums::provide(&connection).expect("provides");
        connection.execute_batch(later).expect("what the older one has no place for");
        drop(connection);
        let mut connection = Connection::open(&older).expect("makes");
        STEPS[..5].iter().for_each(|step| connection.execute_batch(step).expect("an older schema"));
        connection.pragma_update(None, "user_version", 5).expect("sets");
        connection.execute("ATTACH ?1 AS newer", [newer.to_str()]).expect("attaches");
        let transaction = connection.transaction().expect("begins");
        for table in made(&transaction).expect("asks").into_iter().filter(|it| it.1.starts_with("CREATE TABLE")) {
            let columns = "SELECT group_concat('\"' || name || '\"') FROM pragma_table_info(?1, 'main')";
            let columns: String = transaction.query_row(columns, [&table.0], |row| row.get(0)).expect("asks");
            let sql = format!("INSERT INTO main.{0} ({columns}) SELECT {columns} FROM newer.{0}", table.0);
            transaction.execute_batch(&sql).expect("copies");
        }
        transaction.commit().expect("commits");
        drop(connection);
        let had = contents(&newer);
        assert_eq!(contents(&older), had);
        let damaged = room.path().join("damaged.db");
        let mut bytes = std::fs::read(&older).expect("reads");
        let middle = bytes.len() / 2 / 4_096 * 4_096;
        bytes[middle..middle + 4_096].fill(0);
        std::fs::write(&damaged, bytes).expect("writes");

        open_sound(&older, at(9)).expect("opens").close().expect("closes");
        assert_eq!((contents(&older), Aside::of(&older).newest()), (had.clone(), None), "nothing is called damage");
        assert_eq!(look(&older).expect("looks"), [""; 0]);
        let writer: Writer = open_sound(&damaged, at(9)).expect("opens");
        assert_eq!(check(writer.rows().0).expect("reads"), KNOWN);
        writer.close().expect("closes");
        assert!(Aside::of(&damaged).newest().is_some(), "its page is missed");
        let has = contents(&damaged);
        assert!(has.iter().all(|(table, rows)| rows.is_subset(&had[table])));
        let [had, has] = [&had, &has].map(|it| it.values().map(std::collections::BTreeSet::len).sum::<usize>());
        assert!(has < had && has * 10 > had * 9, "{has} of {had}");
        assert_eq!(look(&damaged).expect("looks"), [""; 0]);
    }
}
