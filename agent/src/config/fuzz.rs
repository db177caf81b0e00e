//! The configuration under any bytes.

use std::path::PathBuf;

use super::reader::{Notes, parse_bytes};
use super::{Place, Section, compose, parse_duration, show};

/// A text of TOML, and each of its lines as a duration and a size.
pub(crate) fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines() {
        if let Ok(it) = parse_duration(line) {
            assert_eq!(parse_duration(&show(it)).ok(), Some(it), "{line:?} is shown as {}", show(it));
        }
        let _ = parse_bytes(line);
    }
    let Ok(table) = text.parse::<toml::Table>() else { return };
    let notes = Notes::default();
    let place = Place { file: None, state_dir: None };
    let config = compose(Section::root(table, notes.clone()), &place, vec![PathBuf::from("agent.toml")]);
    assert!(config.describe().len() <= 4096 + 8 * text.len());
    let mistakes = notes.take();
    assert!(mistakes.0.len() <= 64 + text.len(), "{} mistakes in {} bytes", mistakes.0.len(), text.len());
    assert!(mistakes.to_string().len() <= 4096 + 512 * text.len());
}
