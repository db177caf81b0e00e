//! A log under any bytes.

use std::time::Duration;

use super::errors::{self, Raised};
use super::patterns::Reader;

/// Lines, read for what they say by themselves and for errors of several lines.
pub(crate) fn lines(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (mut patterns, mut errors) = (Reader::default(), errors::Reader::default());
    for (at, line) in text.lines().enumerate() {
        let _ = patterns.line(line);
        if let Some(read) = errors.line(line, Duration::from_secs(at as u64)) {
            let Raised { kind, message, place, fingerprint } = read.occurrence.raised;
            assert!(kind.len() <= 120 && message.len() <= 200 && place.len() <= 100 && fingerprint.len() == 16);
            assert!(read.occurrence.since <= Duration::from_secs(at as u64), "nothing begins after it was read");
        }
    }
}
