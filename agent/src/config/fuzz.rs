//! The configuration under any bytes.

use std::path::PathBuf;

use super::reader::Notes;
use super::{Place, Section, compose};

/// A text of TOML.
pub(crate) fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(table) = text.parse::<toml::Table>() else { return };
    let notes = Notes::default();
    let place = Place { file: None, state_dir: None };
    let config = compose(Section::root(table, notes.clone()), &place, vec![PathBuf::from("agent.toml")]);
    assert!(config.describe().len() <= 4096 + 8 * text.len());
    let mistakes = notes.take();
    assert!(mistakes.0.len() <= 64 + text.len(), "{} mistakes in {} bytes", mistakes.0.len(), text.len());
    assert!(mistakes.to_string().len() <= 4096 + 512 * text.len());
}
