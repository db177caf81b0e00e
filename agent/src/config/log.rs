//! `[[log]]` sections.

use std::path::Path;

use super::reader::Section;
use crate::inspect::log_tail::Config;

/// Reads every log that is to be followed.
pub(super) fn read(root: &mut Section) -> Vec<Config> {
    let mut logs: Vec<Config> = Vec::new();
    for mut section in root.sections("log") {
        let (path, application) = (section.text("path"), section.text("app"));
        match path.as_deref() {
            None => section.wrong("path", "is missing or wrong", None),
            Some(it) if !it.starts_with('/') => {
                section.wrong("path", "is not an absolute path", Some("begin it with a slash".into()));
            }
            Some(it) if it.len() > 500 => section.wrong("path", "is longer than 500 bytes", None),
            Some(it) if logs.iter().any(|earlier| earlier.path == Path::new(it)) => {
                section.wrong("path", "is the same file as a log before it", None);
            }
            Some(_) => (),
        }
        match application.as_deref() {
            None => section.wrong("app", "is missing or wrong", Some("name the [[app]] that writes it".into())),
            Some("") => section.wrong("app", "is empty", None),
            Some(it) if it.len() > 200 => section.wrong("app", "is longer than 200 bytes", None),
            Some(_) => (),
        }
        if let (Some(path), Some(application)) = (path, application) {
            logs.push(Config { path: path.into(), application: application.into() });
        }
    }
    logs
}
