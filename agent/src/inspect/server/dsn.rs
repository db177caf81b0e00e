//! What DSNs of all servers have in common: how a URL is taken apart, and what may be wrong with it.

use std::io;
use std::path::PathBuf;

/// What is wrong with a DSN. Never repeats a value of it.
#[derive(Debug, thiserror::Error)]
pub enum DsnError {
    /// Nothing but white space.
    #[error("the DSN is empty")]
    Empty,
    /// Neither form.
    #[error("the DSN is neither a `postgresql://` URL nor `key=value` pairs")]
    Form,
    /// Not the URL that the section wants.
    #[error("the DSN is no `{scheme}://` URL")]
    Url {
        /// `mysql`.
        scheme: &'static str,
    },
    /// `hos 10.0.0.5`, or a value with white space and no quotes.
    #[error("the DSN has a word without `=` behind {after}")]
    NoValue {
        /// The key before it: `` `password` ``, or `its beginning`.
        after: String,
    },
    /// A quoted value that does not end.
    #[error("the value of `{key}` has no closing quote")]
    Unterminated {
        /// The key.
        key: &'static str,
    },
    /// A key that libpq does not know. Named when it is nearly one that it does: else it may be a piece of a password.
    #[error("the DSN has an unknown key: {what}")]
    UnknownKey {
        /// `` `pasword` ``, or `the one behind `host``.
        what: String,
        /// The key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The same key a second time.
    #[error("`{key}` is given twice")]
    Twice {
        /// The key.
        key: &'static str,
    },
    /// A value that the key cannot have.
    #[error("the value of `{key}` is not {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What would have been understood.
        expected: &'static str,
    },
    /// A key that libpq knows and this agent does not serve.
    #[error("`{key}` is not supported")]
    Unsupported {
        /// The key.
        key: &'static str,
    },
    /// A part of a URL that is not percent-encoded rightly.
    #[error("the {part} of the URL is not percent-encoded")]
    Encoding {
        /// `user or password`, `database`, `query`.
        part: &'static str,
    },
    /// A key that must be there.
    #[error("the DSN names no {what}")]
    Missing {
        /// `user`.
        what: &'static str,
    },
    /// `host=a,b`.
    #[error("the DSN names several servers")]
    SeveralServers,
    /// `sslrootcert` cannot be read.
    #[error("cannot read the file of `sslrootcert`, `{path}`")]
    RootCertificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DsnError {
    /// What the operator can do.
    pub fn advice(&self) -> String {
        match self {
            Self::Empty | Self::Form => "write `postgresql://user:password@host:5432/database`".into(),
            Self::Url { scheme } => format!("write `{scheme}://user:password@host/database`"),
            Self::NoValue { .. } => "put a value with white space into single quotes".into(),
            Self::Unterminated { .. } => "close it with `'`, and write `\\'` for a quote inside".into(),
            Self::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Self::UnknownKey { nearest: None, .. } => "leave it out; keys are those of libpq".into(),
            Self::Twice { .. } => "leave one of them out".into(),
            Self::Value { expected, .. } => format!("write {expected}"),
            Self::Unsupported { .. } => "leave it out, or write a role with a password into the DSN".into(),
            Self::Encoding { .. } => {
                "write every character that is no letter or digit as `%` and two hexadecimal digits".into()
            }
            Self::Missing { what } => format!("add `{what}=…`"),
            Self::SeveralServers => "write one section for each server, such as one [[postgres]]".into(),
            Self::RootCertificate { .. } => "name a readable file with PEM certificates".into(),
        }
    }
}

/// A key as it was written.
pub(in crate::inspect) struct Key {
    pub(in crate::inspect) name: String,
    /// An empty value means something: a URL says `user:@host` for an empty password.
    pub(in crate::inspect) wanted: bool,
    /// Which one it is, from 1.
    pub(in crate::inspect) nth: usize,
}

impl Key {
    /// A key of the query that means nothing here. It may be a piece of a password, so it is not repeated.
    pub(in crate::inspect) fn unknown(&self) -> DsnError {
        DsnError::UnknownKey { what: format!("number {} of the query", self.nth), nearest: None }
    }
}

/// Number `nth` of its part.
pub(in crate::inspect) fn key(name: &str, nth: usize) -> Key {
    Key { name: name.into(), wanted: name == "password", nth }
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
