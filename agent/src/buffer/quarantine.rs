//! Damaged parts of a buffer are moved aside for a person to look at. They are never deleted here.

use std::io;
use std::path::{Path, PathBuf};

use crate::durable_file;

/// Moves a file or directory into `quarantine` under a name that is free. One that is not there is none to move.
///
/// # Errors
/// When it cannot be moved.
pub(super) fn take(what: &Path, quarantine: &Path, name: &str) -> io::Result<()> {
    durable_file::create_private_directory(quarantine)?;
    match std::fs::rename(what, free_name(quarantine, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    durable_file::sync_directory(quarantine)
}

/// Writes a damaged frame into `quarantine`; one that is there already, met before the last restart, stays.
///
/// # Errors
/// When it cannot be written.
pub(super) fn keep(bytes: &[u8], quarantine: &Path, name: &str) -> io::Result<()> {
    durable_file::create_private_directory(quarantine)?;
    let path = quarantine.join(name);
    if std::fs::read(&path).is_ok_and(|kept| kept == bytes) {
        return Ok(());
    }
    durable_file::replace(&free_name(quarantine, name), bytes, 0o600)
}

/// How many things were moved aside.
pub(super) fn count(quarantine: &Path) -> usize {
    std::fs::read_dir(quarantine).map_or(0, |entries| entries.flatten().count())
}

fn free_name(quarantine: &Path, name: &str) -> PathBuf {
    let numbered = (1_u32..).map(|number| quarantine.join(format!("{name}.{number}")));
    let mut candidates = std::iter::once(quarantine.join(name)).chain(numbered);
    candidates.find(|path| !path.exists()).expect("there is a number for each")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moved_aside_replaces_what_is_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let quarantine = directory.path().join("quarantine");
        for content in ["one", "two"] {
            let what = directory.path().join("q-000001");
            std::fs::create_dir(&what).expect("created");
            std::fs::write(what.join("db"), content).expect("written");
            take(&what, &quarantine, "urgent-q-000001").expect("moved");
        }
        take(&directory.path().join("absent"), &quarantine, "urgent-q-000002").expect("nothing to move");
        keep(b"frame", &quarantine, "urgent-7.frame").expect("kept");
        keep(b"frame", &quarantine, "urgent-7.frame").expect("kept once");
        keep(b"other", &quarantine, "urgent-7.frame").expect("kept beside");
        assert_eq!(count(&quarantine), 4);
        assert_eq!(std::fs::read(quarantine.join("urgent-q-000001.1/db")).expect("read"), b"two");
    }
}
