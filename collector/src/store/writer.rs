//! The one connection that writes, and its transactions.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use tickbird_shared::Timestamp;

use super::ballast::Ballast;
use super::column::At;
use super::mover::Mover;
use super::repair::refuse_unrepaired;
use super::turn::Turn;
use super::{Rows, StoreError, migrate, salvage, sums};

/// How long a command line and the ledger wait for each other's transaction.
const BUSY: Duration = Duration::from_secs(5);
/// Statements kept ready; there are fewer.
const STATEMENTS: usize = 64;

/// A connection that writes. One thread owns it.
#[derive(Debug)]
pub struct Writer {
    /// Before the connection, which moves what is left of the log as it goes.
    mover: Option<Mover>,
    connection: Connection,
    data_version: i64,
    ballast: Ballast,
    /// Of a command: no repair takes the file away meanwhile. The last to go.
    _turn: Option<Turn>,
}

/// One transaction: everything written through it is on the disk when [`Transaction::commit`] returns, or nothing is.
#[derive(Debug)]
pub struct Transaction<'a>(rusqlite::Transaction<'a>);

impl Writer {
    /// Creates the file, readable by its owner only.
    ///
    /// # Errors
    /// When it exists or cannot be written.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        made.map_err(|e| StoreError::Create { path: path.into(), source: e })?;
        Self::open(path)
    }

    /// Opens a store and brings its schema up to this binary's.
    ///
    /// # Errors
    /// When it is not there, was written by a newer collector, or cannot be written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing { path: path.into() });
        }
        let ballast = Ballast::beside(path);
        if ballast.is_short() {
            // Opening writes too.
            ballast.drop();
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        // Before anything is written, so that a newer store is left exactly as it is, with its log of changes.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        migrate::check(&connection)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", -8_192)?;
        connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
        // A long reader lets the log grow; what it grew by is given back at the next checkpoint.
        connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        sums::provide(&connection)?;
        migrate::migrate(&mut connection)?;
        sums::guard(&connection)?;
        let data_version = data_version(&connection)?;
        Ok(Self { mover: None, connection, data_version, ballast, _turn: None })
    }

    /// The same for a command beside a collector that may serve, or repair the store.
    ///
    /// # Errors
    /// As [`Writer::open`], while the store is being repaired, and when it is of an older schema: only serving brings it up.
    pub fn open_beside(path: &Path) -> Result<Self, StoreError> {
        // Else the lock's file would be made in a directory that is no collector's.
        if !Turn::is_of_a_store(path) {
            return Err(StoreError::Missing { path: path.into() });
        }
        let turn = Turn::beside(path)?;
        refuse_unrepaired(path)?;
        // A collector of before may serve, and knows nothing of what a step makes.
        let found = migrate::check(&salvage::open(path)?)?;
        if found < migrate::KNOWN {
            return Err(StoreError::Older { path: path.into(), found, known: migrate::KNOWN });
        }
        Ok(Self { _turn: Some(turn), ..Self::open(path)? })
    }

    /// From now on no commit waits until the log of changes was moved into the store; [`Writer::tidy`] has it done.
    ///
    /// # Errors
    /// When there is no second connection or no thread for it.
    pub fn move_beside(&mut self) -> Result<(), StoreError> {
        let path = self.connection.path().unwrap_or_default().to_owned();
        self.mover = Some(Mover::start(Path::new(&path), &mut self.connection)?);
        Ok(())
    }

    /// To be called after each transaction and before the next, once whoever waits for it has its answer.
    pub fn tidy(&mut self) {
        if let Some(mover) = &mut self.mover {
            mover.look(&self.connection);
        }
    }

    /// Begins a transaction that may write.
    ///
    /// # Errors
    /// When another process holds the lock for longer than five seconds.
    pub fn transaction(&mut self) -> Result<Transaction<'_>, StoreError> {
        Ok(Transaction(self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?))
    }

    /// Reads outside of a transaction.
    pub const fn rows(&self) -> Rows<'_> {
        Rows(&self.connection)
    }

    /// Whether another process has committed since this was last asked.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn changed_elsewhere(&mut self) -> Result<bool, StoreError> {
        let now = data_version(&self.connection)?;
        Ok(std::mem::replace(&mut self.data_version, now) != now)
    }

    /// Holds space in reserve for a full disk; false when there is none to hold.
    pub fn lay_ballast(&self) -> bool {
        self.ballast.lay()
    }

    /// Gives the reserve up.
    pub fn drop_ballast(&self) {
        self.ballast.drop();
    }

    /// The disk has less room than a few transactions need.
    pub fn is_short(&self) -> bool {
        self.ballast.is_short()
    }

    /// The disk has room again, also for the reserve.
    pub fn has_room(&self) -> bool {
        self.ballast.has_room()
    }

    /// Moves the log into the file and closes it.
    ///
    /// # Errors
    /// When the log could not be moved; it is complete all the same and is read at the next start.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.mover = None;
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.connection.close().map_err(|(_, e)| e.into())
    }
}

impl Transaction<'_> {
    /// Makes it all durable at once.
    ///
    /// # Errors
    /// Then nothing of it is.
    pub fn commit(self) -> Result<(), StoreError> {
        Ok(self.0.commit()?)
    }

    /// Writes a little, so that the commit says whether the store can be written at all.
    ///
    /// # Errors
    /// When it cannot.
    pub fn prove_writable(&self, now: Timestamp) -> Result<(), StoreError> {
        self.0.prepare_cached("INSERT OR REPLACE INTO pulse (id, at) VALUES (1, ?1)")?.execute([At(now)])?;
        Ok(())
    }

    /// Reads what is stored and what this transaction has written.
    pub fn rows(&self) -> Rows<'_> {
        Rows(&self.0)
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.0
    }
}

fn data_version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("PRAGMA data_version", [], |row| row.get(0))?)
}
