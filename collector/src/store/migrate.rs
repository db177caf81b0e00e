//! Brings an older schema up to this binary's, step by step, and refuses a newer one.
//!
//! `PRAGMA user_version` counts the steps taken. Each step is one transaction together with its count, so a crash
//! between two steps leaves a store that the same binary goes on with.

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

const STEPS: [&str; 5] = [
    include_str!("schema/0001.sql"),
    include_str!("schema/0002.sql"),
    include_str!("schema/0003.sql"),
    include_str!("schema/0004.sql"),
    include_str!("schema/0005.sql"),
];

/// Newest schema this binary knows.
pub(super) const KNOWN: u32 = STEPS.len() as u32;

pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found = check(connection)?;
    for (index, step) in STEPS.iter().enumerate().skip(found as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have taken the step while this one waited for the lock.
        if version(&transaction)? as usize == index {
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
    if found > KNOWN { Err(StoreError::FromTheFuture { found, known: KNOWN }) } else { Ok(found) }
}

fn version(connection: &Connection) -> Result<u32, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_of_a_newer_collector_is_refused_and_left_alone() {
        let mut connection = Connection::open_in_memory().expect("memory is there");
        migrate(&mut connection).expect("an empty store is migrated");
        migrate(&mut connection).expect("a second run changes nothing");
        connection.pragma_update(None, "user_version", KNOWN + 1).expect("sets");
        let error = migrate(&mut connection).expect_err("must be refused");
        assert!(matches!(error, StoreError::FromTheFuture { found, known } if found == known + 1), "{error}");
    }

    #[test]
    fn a_lane_of_an_older_schema_goes_by_no_start() {
        let mut connection = Connection::open_in_memory().expect("memory is there");
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
        let mut connection = Connection::open_in_memory().expect("memory is there");
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
}
