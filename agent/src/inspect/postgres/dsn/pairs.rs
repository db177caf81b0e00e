//! The keys of libpq, and its own way to write a DSN: `key=value` pairs.

use crate::inspect::server::dsn::{DsnError, Key, key};

/// What happens to a key of libpq here.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Use {
    Taken,
    /// Without meaning for one session that only looks.
    Ignored,
    /// To ignore it would be to trust or to authenticate otherwise than was asked for.
    Unsupported,
}

pub(super) const KEYS: [(&str, Use); 40] = [
    ("host", Use::Taken),
    ("hostaddr", Use::Taken),
    ("port", Use::Taken),
    ("user", Use::Taken),
    ("password", Use::Taken),
    ("dbname", Use::Taken),
    ("options", Use::Taken),
    ("sslmode", Use::Taken),
    ("sslrootcert", Use::Taken),
    ("sslnegotiation", Use::Taken),
    ("connect_timeout", Use::Taken),
    ("channel_binding", Use::Taken),
    ("application_name", Use::Ignored),
    ("fallback_application_name", Use::Ignored),
    ("client_encoding", Use::Ignored),
    ("keepalives", Use::Ignored),
    ("keepalives_idle", Use::Ignored),
    ("keepalives_interval", Use::Ignored),
    ("keepalives_count", Use::Ignored),
    ("tcp_user_timeout", Use::Ignored),
    ("target_session_attrs", Use::Ignored),
    ("load_balance_hosts", Use::Ignored),
    ("sslcompression", Use::Ignored),
    ("sslsni", Use::Ignored),
    ("ssl_min_protocol_version", Use::Ignored),
    ("ssl_max_protocol_version", Use::Ignored),
    ("gssencmode", Use::Ignored),
    ("gssdelegation", Use::Ignored),
    ("gsslib", Use::Ignored),
    ("krbsrvname", Use::Ignored),
    ("passfile", Use::Unsupported),
    ("service", Use::Unsupported),
    ("sslcert", Use::Unsupported),
    ("sslkey", Use::Unsupported),
    ("sslpassword", Use::Unsupported),
    ("sslcrl", Use::Unsupported),
    ("sslcrldir", Use::Unsupported),
    ("require_auth", Use::Unsupported),
    ("requirepeer", Use::Unsupported),
    ("replication", Use::Unsupported),
];

/// Reads `host=10.0.0.5 password='it\\'s'`.
pub(super) fn key_value_pairs(text: &str) -> Result<Vec<(Key, String)>, DsnError> {
    let mut pairs: Vec<(Key, String)> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let name = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (name, after) = rest.split_at(name);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            let known = |(key, _): &(Key, String)| KEYS.iter().find(|(known, _)| *known == key.name);
            let before = pairs.last().and_then(known).map(|(key, _)| format!("`{key}`"));
            return match before {
                None if !text.contains('=') => Err(DsnError::Form),
                before => Err(DsnError::NoValue { after: before.unwrap_or_else(|| "its beginning".into()) }),
            };
        };
        let (value, after) = value(after.trim_start(), name)?;
        pairs.push((key(name, pairs.len() + 1), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// The value at the beginning, without quotes and backslashes, and what follows it.
fn value<'a>(text: &'a str, key: &str) -> Result<(String, &'a str), DsnError> {
    let is_quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(is_quoted));
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if is_quoted => return Ok((value, &text[at + 1..])),
            _ if c.is_whitespace() && !is_quoted => return Ok((value, &text[at..])),
            _ => value.push(c),
        }
    }
    match KEYS.iter().find(|(known, _)| *known == key) {
        _ if !is_quoted => Ok((value, "")),
        Some((key, _)) => Err(DsnError::Unterminated { key }),
        None => Err(DsnError::Form),
    }
}
