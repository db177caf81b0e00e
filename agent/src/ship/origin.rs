//! Where the collector is: `https://host:port`.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::ServerName;

/// Scheme, host and port of a collector's listener. Always HTTPS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// A text that is not such an address. It is not repeated: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Another scheme, or none.
    #[error("the collector's address does not begin with https://")]
    Scheme,
    /// A name and password before the host.
    #[error("the collector's address holds a user name: the agent is known by its certificate")]
    User,
    /// Something after the port.
    #[error("the collector's address has a path: it ends with the port")]
    Path,
    /// No host, or one that is neither a DNS name nor an address.
    #[error("the collector's address has no host that could be reached")]
    Host,
    /// Not 1 to 65535.
    #[error("the collector's address has no port between 1 and 65535")]
    Port,
}

impl Origin {
    /// Host without brackets, as for a lookup.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What its certificate must be for.
    pub fn server_name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    /// `host:port`, as in a `Host` header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let rest = text.trim().strip_prefix("https://").ok_or(OriginError::Scheme)?;
        if rest.contains('@') {
            return Err(OriginError::User);
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(OriginError::Path);
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(OriginError::Host)?;
                (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some("443")).ok_or(OriginError::Port)?)
            }
            None => rest.split_once(':').unwrap_or((rest, "443")),
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| OriginError::Host)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(OriginError::Port)?;
        Ok(Self { host: host.to_owned(), port, name })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_names_and_both_kinds_of_address() {
        for (text, shown) in [
            ("https://collector.internal:7443", "https://collector.internal:7443"),
            ("https://collector.internal/", "https://collector.internal:443"),
            ("https://127.0.0.1:7443", "https://127.0.0.1:7443"),
            (" https://[::1]:7443/\n", "https://[::1]:7443"),
            ("https://[::1]", "https://[::1]:443"),
        ] {
            assert_eq!(text.parse::<Origin>().expect(text).to_string(), shown);
        }
    }

    #[test]
    fn says_what_is_wrong_without_repeating_it() {
        for (text, error) in [
            ("http://collector:7443", OriginError::Scheme),
            ("collector:7443", OriginError::Scheme),
            ("https://me:secret@collector:7443", OriginError::User),
            ("https://collector:7443/v1", OriginError::Path),
            ("https://:7443", OriginError::Host),
            ("https://[::1", OriginError::Host),
            ("https://a b:1", OriginError::Host),
            ("https://collector:0", OriginError::Port),
            ("https://collector:99999", OriginError::Port),
            ("https://[::1]7443", OriginError::Port),
        ] {
            assert_eq!(text.parse::<Origin>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_reads_what_it_shows(text in "(https://)?[\\PC]{0,40}") {
            if let Ok(origin) = text.parse::<Origin>() {
                prop_assert_eq!(origin.to_string().parse::<Origin>(), Ok(origin));
            }
        }
    }
}
