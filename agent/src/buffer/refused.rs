//! Where records go that will never be sent: a bounded file of JSON lines, for a person to read.
//!
//! `refused/refused.jsonl` grows to 4 MiB, then becomes `refused.1.jsonl` in place of the one before. What falls out
//! of the second file was counted when it was refused.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::value::RawValue;
use tickbird_shared::{Epoch, Lane};

use crate::durable_file;

const MAX_FILE_BYTES: u64 = 4 << 20;

/// One line of the file.
#[derive(Serialize)]
pub(super) struct SetAside<'a> {
    pub(super) epoch: &'a Epoch,
    pub(super) lane: Lane,
    pub(super) seq: u64,
    /// Why, as the collector or this agent named it.
    pub(super) code: &'a str,
    /// The record as it is, when it is JSON.
    record: Option<&'a RawValue>,
    /// The record's text, when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl<'a> SetAside<'a> {
    /// `record` is `None` when its bytes are gone already.
    pub(super) fn new(epoch: &'a Epoch, lane: Lane, seq: u64, code: &'a str, record: Option<&'a [u8]>) -> Self {
        let json = record.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let text = record.filter(|_| json.is_none()).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        Self { epoch, lane, seq, code, record: json, text }
    }
}

/// The file, opened for each use: refusals are rare.
pub(super) struct RefusedFile {
    directory: PathBuf,
}

impl RefusedFile {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Adds lines and syncs them.
    ///
    /// # Errors
    /// When they cannot be written; the records must then not be settled.
    pub(super) fn add(&self, records: &[SetAside<'_>]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        durable_file::create_private_directory(&self.directory)?;
        let path = self.path();
        if path.metadata().is_ok_and(|found| found.len() >= MAX_FILE_BYTES) {
            std::fs::rename(&path, self.directory.join("refused.1.jsonl"))?;
        }
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record).map_err(io::Error::other)?;
            lines.push(b'\n');
        }
        let mut file = File::options().append(true).create(true).open(&path)?;
        file.write_all(&lines)?;
        file.sync_data()
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.join("refused.jsonl")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_records_readable_and_itself_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = RefusedFile::new(directory.path());
        let epoch = Epoch::try_from("01JD7Z5W0000000000000000AA".to_owned()).expect("a ULID");
        let json = SetAside::new(&epoch, Lane::Urgent, 7, "malformed", Some(br#"{"finding":1}"#));
        let other = SetAside::new(&epoch, Lane::Bulk, 8, "malformed", Some(b"\xffno"));
        file.add(&[json, other]).expect("written");
        let text = std::fs::read_to_string(file.path()).expect("read");
        assert!(text.contains(r#""lane":"urgent","seq":7,"code":"malformed","record":{"finding":1}}"#), "{text}");
        assert_eq!(text.lines().count(), 2);
        std::fs::write(file.path(), vec![b'\n'; MAX_FILE_BYTES as usize]).expect("filled");
        file.add(&[SetAside::new(&epoch, Lane::Bulk, 9, "gone", None)]).expect("written");
        assert_eq!(std::fs::read_to_string(file.path()).expect("read").lines().count(), 1);
        assert!(directory.path().join("refused.1.jsonl").exists());
    }
}
