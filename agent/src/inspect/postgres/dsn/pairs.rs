//! The two ways to write a DSN, as keys and values: `key=value` pairs and URLs.

use super::DsnError;

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

/// A key as it was written.
pub(in crate::inspect) struct Key {
    pub(in crate::inspect) name: String,
    /// An empty value means something: a URL says `user:@host` for an empty password.
    pub(super) wanted: bool,
    /// Which one it is, from 1.
    pub(in crate::inspect) nth: usize,
}

fn key(name: &str, nth: usize) -> Key {
    Key { name: name.into(), wanted: name == "password", nth }
}

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

/// Reads what follows `scheme://`.
pub(in crate::inspect) fn url_pairs(rest: &str) -> Result<Vec<(Key, String)>, DsnError> {
    if rest.contains(char::is_whitespace) {
        return Err(DsnError::Encoding { part: "whole" });
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    // `user:pass/word@host`: the authority ended inside the password.
    if !authority.contains('@') && path.contains('@') {
        return Err(DsnError::Encoding { part: "user or password" });
    }
    let mut pairs = Vec::new();
    let (credentials, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = credentials.split_once(':').map_or((credentials, None), |(user, it)| (user, Some(it)));
    if user.contains('@') || password.is_some_and(|it| it.contains('@')) {
        return Err(DsnError::Encoding { part: "user or password" });
    }
    if host.contains(',') {
        return Err(DsnError::SeveralServers);
    }
    let (host, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, port))) => (host, port),
        Some(None) => return Err(DsnError::Value { key: "host", expected: "a name, an address or a directory" }),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = match port.strip_prefix(':') {
        None if !port.is_empty() => {
            return Err(DsnError::Value { key: "port", expected: "a number from 1 to 65535" });
        }
        port => port.unwrap_or_default(),
    };
    let database = path.strip_prefix('/').unwrap_or_default();
    for (name, value, part) in [
        ("user", user, "user or password"),
        ("password", password.unwrap_or_default(), "user or password"),
        ("host", host, "host"),
        ("port", port, "port"),
        ("dbname", database, "database"),
    ] {
        if !value.is_empty() {
            pairs.push((key(name, 1), decoded(value, part)?));
        }
    }
    for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(DsnError::NoValue { after: "`?`".into() });
        };
        pairs.push((key(&decoded(name, "query")?, index + 1), decoded(value, "query")?));
    }
    Ok(pairs)
}

fn decoded(text: &str, part: &'static str) -> Result<String, DsnError> {
    let wrong = || DsnError::Encoding { part };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = after.split_at_checked(2).ok_or_else(wrong)?;
        let digits = str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        bytes.push(digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or_else(wrong)?);
        rest = after;
    }
    // The protocol ends texts with NUL.
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or_else(wrong)
}
