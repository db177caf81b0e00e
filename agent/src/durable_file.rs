//! Files that are there whole or not at all, whatever cuts the writing short.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Writes `bytes` beside `path`, syncs them, and puts them in its place; then syncs the directory, so that the new
/// name survives a power cut too. A crash leaves the old file or the new one. `mode` is that of the new file.
///
/// # Errors
/// When any step fails; the old file is then untouched.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file needs a directory and a name"));
    };
    let mut draft = name.to_owned();
    draft.push(".new");
    let draft = directory.join(draft);
    let written = write_new(&draft, bytes, mode).and_then(|()| std::fs::rename(&draft, path));
    if let Err(error) = written {
        // A half-written draft on a full disk would keep the space that the next try needs.
        let _ = std::fs::remove_file(&draft);
        return Err(error);
    }
    sync_directory(directory)
}

/// Writes and syncs a file with exactly this mode, whatever was there under that name.
///
/// # Errors
/// When the file cannot be created, written or synced.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names within a directory survive a power cut.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Creates a directory and its parents for the owner alone (0700), so that their names survive a power cut; one that
/// exists keeps its mode.
///
/// # Errors
/// When it cannot be created, or the directory that it is in cannot be synced.
pub fn create_private_directory(directory: &Path) -> io::Result<()> {
    let missing: Vec<_> = directory.ancestors().take_while(|it| !it.as_os_str().is_empty() && !it.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    missing.into_iter().filter_map(Path::parent).try_for_each(|parent| {
        // The parent of a relative name without a directory is where we are.
        sync_directory(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_replaced_file_has_its_new_bytes_and_mode_and_leaves_no_draft() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("meta.json");
        replace(&path, b"one", 0o600).expect("written");
        replace(&path, b"two", 0o640).expect("replaced");
        assert_eq!(std::fs::read(&path).expect("read"), b"two");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("meta.json");
        replace(&path, b"one", 0o600).expect("written");
        std::fs::create_dir(directory.path().join("meta.json.new")).expect("in the way");
        assert!(replace(&path, b"two", 0o600).is_err());
        assert_eq!(std::fs::read(&path).expect("read"), b"one");
    }
}
