//! What a long run is kept for: its figures, in the file that `TICKBIRD_REPORT` names.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::stage::StageError;

/// Names the file.
const FILE: &str = "TICKBIRD_REPORT";

/// Adds a line to the file, where somebody asked for one; and prints it.
///
/// # Errors
/// When the file cannot be written.
pub fn report(line: &str) -> Result<(), StageError> {
    println!("{line}");
    let Some(path) = std::env::var_os(FILE) else { return Ok(()) };
    append(path.as_ref(), line)
}

/// Adds a line to a file that several processes may add to.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn append(path: &Path, line: &str) -> Result<(), StageError> {
    let written = File::options().create(true).append(true).open(path);
    // In one call: lines of others come before or after it.
    written
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
        .map_err(StageError::system("write a line"))
}
