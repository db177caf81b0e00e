//! Connections that only read, for everything that shows.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, InterruptHandle, OpenFlags};
use tokio::sync::Semaphore;

use super::repair::{is_suspected, suspect};
use super::{StoreError, migrate};

/// Queries that run at once; more wait.
const AT_ONCE: usize = 4;
/// What one look of a person may take before it is given up, so that four of them cannot shut everybody else out.
const LONGEST: Duration = Duration::from_secs(10);

/// A connection as seen by a query; the methods are beside the tables they read.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'c>(pub(super) &'c Connection);

/// A few read-only connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    idle: Mutex<Vec<Reader>>,
    slots: Arc<Semaphore>,
}

struct Reader {
    connection: Connection,
    stop: Arc<InterruptHandle>,
}

impl Readers {
    /// Opens the connections, so that what is wrong shows now.
    ///
    /// # Errors
    /// When the file cannot be read, or was written by a newer collector.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let idle = (0..AT_ONCE).map(|_| Reader::open(path)).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Shared {
            path: path.into(),
            idle: Mutex::new(idle),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        })))
    }

    /// Runs `query` on a thread that may block, over one unchanging view of the store.
    ///
    /// # Errors
    /// What the query says; or that it was interrupted, after ten seconds.
    pub async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(Rows<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let slot = Arc::clone(&self.0.slots).acquire_owned().await.map_err(|_| StoreError::Closing)?;
        // One is missing only after a query that panicked took it along.
        let idle = self.idle().pop();
        let mut reader = idle.map_or_else(|| Reader::open(&self.0.path), Ok)?;
        let stop = Arc::clone(&reader.stop);
        let this = self.clone();
        let mut work = tokio::task::spawn_blocking(move || {
            let answer = reader.run(query);
            this.idle().push(reader);
            drop(slot);
            answer
        });
        let answer = match tokio::time::timeout(LONGEST, &mut work).await {
            Ok(answer) => answer,
            Err(_) => {
                stop.interrupt();
                work.await
            }
        };
        let answer = answer.map_err(|_| StoreError::Closing)?;
        if let Err(error) = &answer
            && error.is_damage()
            && !is_suspected(&self.0.path)
        {
            suspect(&self.0.path, &error.in_full());
        }
        answer
    }

    /// Whether the store can be read.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.read(|rows| Ok(rows.0.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?)).await
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing { path: path.into() });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "cache_size", -8_192)?;
        // Directories for temporary files are out of reach.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.set_prepared_statement_cache_capacity(64);
        migrate::check(&connection)?;
        let stop = Arc::new(connection.get_interrupt_handle());
        Ok(Self { connection, stop })
    }

    fn run<T>(&mut self, query: impl FnOnce(Rows<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let view = self.connection.transaction()?;
        query(Rows(&view))
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}
