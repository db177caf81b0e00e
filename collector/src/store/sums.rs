//! A checksum in each row, since SQLite has none: a bit that was turned within a text, a number or a blob leaves its page whole.
//!
//! Each table ends with a column `sum`, computed by SQLite from the table's name and all other columns whenever a row is
//! written, whoever writes it. So no statement can forget it, and no program without [`NAME`] can change a row. What computes
//! it anew must not take what was turned for what was meant: before a row is changed, a trigger compares it ([`guard`]).
//! Rows that are read as what they are are compared by [`check`], all others when the store is looked through ([`wrong`]).
//!
//! Form: CRC-32 over the table's name and the values, in the order of the columns. Each is a byte for its type and eight bytes,
//! little-endian: of a number itself, of a text or a blob its length, and then its bytes; of nothing zeros.

use crc32fast::Hasher;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, Row};

/// The function, as the schema names it.
const NAME: &str = "row_sum";
/// The column; what a query puts behind it is not of the row.
pub(super) const COLUMN: &str = "sum";

/// How [`guard`] ends what it says.
const REFUSED: &str = "does not match its checksum";

/// A row is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("it {REFUSED}")]
struct Mismatch;

/// Lets a connection compute the checksum, which it needs to write any row.
pub(super) fn provide(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    connection.create_scalar_function(NAME, -1, flags, |values| {
        let mut sum = Sum::default();
        (0..values.len()).for_each(|at| sum.add(values.get_raw(at)));
        Ok(sum.end())
    })
}

/// Lets this connection change no row that does not match its checksum: the new one would make it look whole.
///
/// Not the rows of incidents: there is a change of one for each finding, and for a statement with a trigger SQLite keeps copies
/// of all pages it changes, which is a sixth of the ledger's time. Whoever changes one compares it himself ([`is_whole`]).
pub(super) fn guard(connection: &Connection) -> rusqlite::Result<()> {
    for table in tables(connection)?.into_iter().filter(|it| it != "incidents") {
        let mut query = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
        let columns = query.query_map([&table], |row| Ok(format!(", OLD.\"{}\"", row.get::<_, String>(0)?)))?;
        let columns: String = columns.collect::<Result<_, _>>()?;
        connection.execute_batch(&format!(
            "CREATE TEMP TRIGGER {table}_{COLUMN} BEFORE UPDATE ON main.{table} \
             WHEN OLD.{COLUMN} IS NOT {NAME}('{table}'{columns}) \
             BEGIN SELECT RAISE(ABORT, 'a row of {table} {REFUSED}'); END"
        ))?;
    }
    Ok(())
}

/// The condition under which a statement changes a row of `table` that is as it was written; `columns` are all but the sum.
pub(super) fn is_whole(table: &str, columns: &str) -> String {
    format!("{COLUMN} IS {NAME}('{table}', {columns})")
}

/// What is said where [`is_whole`] did not hold: the same as [`guard`] says.
pub(super) fn refusal(table: &str) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CONSTRAINT_TRIGGER);
    rusqlite::Error::SqliteFailure(code, Some(format!("a row of {table} {REFUSED}")))
}

/// Whether this is [`guard`]'s refusal. SQLite tells triggers apart by nothing but their words.
pub(super) fn is_refused(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(it, Some(words)) => {
            it.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_TRIGGER && words.ends_with(REFUSED)
        }
        _ => false,
    }
}

/// Fails where a row of `table` is not what was written. One of a schema without checksums is believed.
pub(super) fn check(table: &str, row: &Row<'_>) -> rusqlite::Result<()> {
    let Ok(place) = row.as_ref().column_index(COLUMN) else { return Ok(()) };
    let mut sum = Sum::default();
    sum.add(ValueRef::Text(table.as_bytes()));
    for at in 0..place {
        sum.add(row.get_ref(at)?);
    }
    if row.get_ref(place)? == ValueRef::Integer(sum.end().into()) {
        Ok(())
    } else {
        Err(rusqlite::Error::FromSqlConversionFailure(place, Type::Integer, Box::new(Mismatch)))
    }
}

/// Compares every row of a store whose pages are whole; the tables that have others than were written, in words.
pub(super) fn wrong(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut said = Vec::new();
    for table in tables(connection)? {
        let mut query = connection.prepare(&format!("SELECT * FROM {table} NOT INDEXED"))?;
        let mut rows = query.query([])?;
        let mut turned = 0_u64;
        while let Some(row) = rows.next()? {
            turned += u64::from(check(&table, row).is_err());
        }
        if turned > 0 {
            said.push(format!("{table}: {turned} rows that do not match their checksums"));
        }
    }
    Ok(said)
}

/// Fails where a row of a table that has checksums is not what was written.
pub(super) fn compare(connection: &Connection, table: &str) -> rusqlite::Result<()> {
    let mut query = connection.prepare(&format!("SELECT * FROM {table}"))?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        check(table, row)?;
    }
    Ok(())
}

/// The tables that have checksums.
fn tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut query = connection.prepare(
        "SELECT it.name FROM main.sqlite_schema AS it JOIN pragma_table_xinfo(it.name) AS of \
         WHERE it.type = 'table' AND of.name = ?1 AND of.hidden = 3 ORDER BY it.name",
    )?;
    query.query_map([COLUMN], |row| row.get(0))?.collect()
}

/// The checksum of one row. Values are gathered: most are a few bytes, and a sum over many at once takes a fourth of the time.
struct Sum {
    sum: Hasher,
    held: [u8; 1_024],
    length: usize,
}

impl Default for Sum {
    fn default() -> Self {
        Self { sum: Hasher::new(), held: [0; 1_024], length: 0 }
    }
}

impl Sum {
    fn add(&mut self, value: ValueRef<'_>) {
        let (kind, fixed, bytes): (u8, [u8; 8], &[u8]) = match value {
            ValueRef::Null => (0, [0; 8], &[]),
            ValueRef::Integer(number) => (1, number.to_le_bytes(), &[]),
            ValueRef::Real(number) => (2, number.to_le_bytes(), &[]),
            ValueRef::Text(bytes) => (3, (bytes.len() as u64).to_le_bytes(), bytes),
            ValueRef::Blob(bytes) => (4, (bytes.len() as u64).to_le_bytes(), bytes),
        };
        let mut head = [kind; 9];
        head[1..].copy_from_slice(&fixed);
        self.hold(&head);
        self.hold(bytes);
    }

    fn hold(&mut self, bytes: &[u8]) {
        if let Some(room) = self.held[self.length..].get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
        } else {
            self.sum.update(&self.held[..self.length]);
            self.length = 0;
            self.sum.update(bytes);
        }
    }

    fn end(mut self) -> u32 {
        self.sum.update(&self.held[..self.length]);
        self.sum.finalize()
    }
}

#[cfg(test)]
mod tests;
