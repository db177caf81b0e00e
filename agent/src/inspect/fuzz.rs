//! DSNs of every server, and the small binary forms, under any bytes.

use std::fmt::{Debug, Display};

use super::{pgbouncer, postgres, sqlite, tls_certificate};

/// A DSN as it stands in its file.
pub(crate) fn dsn(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    tried(text, "");
    // A certificate's file is named in its error, wherever the name came from.
    if text.contains("hunter2") || text.contains("cert") || text.contains("ssl") {
        return;
    }
    for scheme in ["postgresql", "mysql", "redis", "rediss", "unix", "http", "https"] {
        for tail in ["", "@h/d", "@h:1/d?x=1"] {
            tried(&format!("{scheme}://me:{text}hunter2canary{tail}"), "hunter2");
        }
    }
    tried(&format!("host=h password='hunter2canary' {text}"), "hunter2");
}

fn tried(text: &str, hidden: &str) {
    let told = [
        error_of(postgres::Dsn::parse(text)),
        error_of(postgres::Dsn::parse_console(text)),
        error_of(pgbouncer::Config::parse(text)),
        #[cfg(feature = "mysql")]
        error_of(super::mysql::Config::parse(text, true)),
        #[cfg(feature = "redis")]
        error_of(super::redis::Config::parse(text, true)),
        #[cfg(feature = "rabbitmq")]
        error_of(super::rabbitmq::Config::parse(text)),
    ];
    for it in told.iter().flatten() {
        assert!(hidden.is_empty() || !it.contains(hidden), "{it:?} repeats a password");
        assert!(it.len() <= 1024 + 8 * text.len());
    }
}

/// The error in words; what is good is shown without its password.
fn error_of<T: Debug, E: Debug + Display>(parsed: Result<T, E>) -> Option<String> {
    match parsed {
        Ok(it) => {
            let _ = format!("{it:?}");
            None
        }
        Err(error) => Some(format!("{error} {error:?}")),
    }
}

/// The head of a SQLite database and a certificate.
pub(crate) fn files(data: &[u8]) {
    if let Ok(header) = sqlite::Header::parse(data) {
        assert!((512..=65_536).contains(&header.page_size) && header.page_size.is_power_of_two());
        let size = data.len() as u64;
        assert!(!header.lacks_pages(u64::MAX, None), "no file lacks pages that is larger than any");
        let _ = (header.lacks_pages(size, None), header.lacks_pages(size, Some(0)));
    }
    if let Some(it) = tls_certificate::read(data) {
        assert!(it.subject.len() <= 120);
    }
}
