//! What a long run is kept for: its figures, in the file that `TICKBIRD_REPORT` names.

use std::io::Write;

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
    let written = std::fs::File::options().create(true).append(true).open(path);
    written.and_then(|mut file| writeln!(file, "{line}")).map_err(StageError::system("write the report"))
}
