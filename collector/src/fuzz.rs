//! The parsers of bytes that are not ours, each as one function of bytes.
//!
//! A target panics when what its parser promises does not hold. `cargo xtask fuzz` looks for such bytes, guided by
//! coverage; the test below replays those that are kept, in `tests/fuzz/corpus` and `tests/fuzz/found`.

use std::path::Path;

use tickbird_shared::enrolment::{EnrolmentRequest, EnrolmentToken, RenewalRequest};
use tickbird_shared::{Fingerprint, Labels, units};

use crate::{api, backup, certificates, config, ingest};

/// A name, and what reads the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const TARGETS: &[Target] = &[
    ("batches", ingest::fuzz::batches),
    ("requests", requests),
    ("certificates", certificates::fuzz::certificates),
    ("collector_files", files),
];

/// What agents and people ask for: queries, cursors, headers, enrolment and renewal.
fn requests(data: &[u8]) {
    api::fuzz::queries(data);
    ingest::fuzz::heads(data);
    let _ = (serde_json::from_slice::<EnrolmentRequest>(data), serde_json::from_slice::<RenewalRequest>(data));
    let _ = serde_json::from_slice::<Labels>(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = text.parse::<EnrolmentToken>() {
        assert_eq!(token.reveal(), text.trim());
        assert!(token.authority.contains(&token.secret) || !format!("{token:?}").contains(&token.secret));
    }
    if let Ok(fingerprint) = text.parse::<Fingerprint>() {
        assert_eq!(fingerprint.to_string(), text);
    }
}

/// The same text as a configuration and as a backup's manifest.
fn files(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    configuration(text);
    manifest(text);
}

/// The configuration, beside which no file lies.
fn configuration(text: &str) {
    for line in text.lines() {
        let _ = (
            units::parse_duration(line).map(|it| {
                let shown = units::show_duration(it);
                assert_eq!(units::parse_duration(&shown), Ok(it), "{line:?} is shown as {shown}");
            }),
            units::parse_bytes(line),
        );
    }
    if let Err(mistakes) = config::Config::parse(text, Path::new("/nonexistent")) {
        assert!(!mistakes.is_empty() && mistakes.len() <= 64 + text.len());
        let said: usize = mistakes.iter().map(|it| it.at.len() + it.what.len()).sum();
        assert!(said <= 4096 + 64 * text.len(), "{said} bytes about {}", text.len());
    }
}

/// What a backup says of itself.
fn manifest(text: &str) {
    let Ok(manifest) = backup::parse_manifest(text, Path::new("backup")) else { return };
    for it in &manifest.files {
        let path = Path::new("backup").join(&it.name);
        assert!(path.parent() == Some(Path::new("backup")) && !it.name.contains('\0'), "{:?} leads away", it.name);
    }
    let text = serde_json::to_string(&manifest).expect("it was read");
    assert_eq!(backup::parse_manifest(&text, Path::new("backup")).ok(), Some(manifest));
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_kept_of_fuzzing_still_holds() {
        tickbird_tests::kept::replay(super::TARGETS);
    }
}
