//! Whose turn it is to change a store's files: commands beside the serving collector take it together, a repair alone.
//!
//! A repair puts another file in the place of the store; what a command wrote into the old one meanwhile would be set aside
//! with it. The lock is one of the kernel's on a file beside the store, so it ends with its process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::StoreError;

/// A repair waits so long for a command, whose transaction takes seconds at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Held as long as it lives.
#[derive(Debug)]
pub(super) struct Turn {
    _lock: File,
}

impl Turn {
    /// For a command.
    ///
    /// # Errors
    /// [`StoreError::InRepair`] while the store is being repaired.
    pub(super) fn beside(store: &Path) -> Result<Self, StoreError> {
        Self::take(store, FlockOperation::NonBlockingLockShared)?
            .ok_or_else(|| StoreError::InRepair { path: store.to_owned() })
    }

    /// For a repair: waits until the commands that are under way are done. One that holds its turn for longer than any
    /// transaction takes does not hold up a collector that cannot serve.
    pub(super) fn alone(store: &Path) -> Result<Option<Self>, StoreError> {
        let began = Instant::now();
        loop {
            let taken = Self::take(store, FlockOperation::NonBlockingLockExclusive)?;
            if taken.is_some() {
                return Ok(taken);
            }
            if began.elapsed() >= PATIENCE {
                tracing::warn!(store = %store.display(), "a command holds the store; what it writes now may be set aside");
                return Ok(None);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether there is a store, or its place is empty for the moment of a repair.
    pub(super) fn is_of_a_store(store: &Path) -> bool {
        store.exists() || store.with_extension("lock").exists()
    }

    fn take(store: &Path, how: FlockOperation) -> Result<Option<Self>, StoreError> {
        let path = store.with_extension("lock");
        let failed = |path: PathBuf| move |source| StoreError::Create { path, source };
        let lock = open(&path, store).map_err(failed(path.clone()))?;
        match flock(&lock, how) {
            Ok(()) => Ok(Some(Self { _lock: lock })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed(path)(error.into())),
        }
    }
}

/// Opens the file, or makes it for the store's owner: root's commands leave nothing that the collector may not open.
fn open(path: &Path, store: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        opened => return opened,
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if let Ok(found) = store.metadata() {
        // Who is not root makes it as what it is.
        let _ = fchown(&file, Some(found.uid()), Some(found.gid()));
    }
    Ok(file)
}
