//! Where a RabbitMQ's management API is and who asks it: a URL, read strictly and never shown.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::inspect::server::dsn::url_pairs;
use crate::inspect::server::tls_keys::{Tls, TlsKeys};
use crate::inspect::server::{DsnError, Engine, place};

const PLAIN_PORT: u16 = 15672;
const TLS_PORT: u16 = 15671;

/// One management API and user, with what proves it. `Debug` and `Display` show `10.0.0.8:15672/rabbitmq` and nothing else.
#[derive(Clone)]
pub struct Url {
    host: String,
    port: u16,
    /// `management.path_prefix`, without the last slash.
    prefix: String,
    user: String,
    password: Zeroizing<String>,
    tls: Option<Tls>,
}

impl Url {
    /// Reads `http://user:password@host:15672` or the same with `https://` and port 15671, with the keys of TLS that a
    /// `[[redis]]` section has, and a path where the API has a prefix.
    ///
    /// # Errors
    /// With what is wrong; never with a value.
    pub fn parse(text: &str) -> Result<Self, DsnError> {
        let form = DsnError::Url { scheme: "http" };
        let Some((scheme, rest)) = text.trim().split_once("://") else { return Err(form) };
        let is_tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(form),
        };
        let (mut host, mut port, mut prefix, mut user, mut password) = (None, None, String::new(), None, None);
        let mut tls = TlsKeys::none();
        for (key, value) in url_pairs(rest)? {
            let wrong = |key, expected| DsnError::Value { key, expected };
            match key.name.as_str() {
                "user" => user = Some(value),
                "password" => password = Some(Zeroizing::new(value)),
                "host" => host = Some(value),
                "port" => port = Some(place::port(&value)?),
                "dbname" if value.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b)) => {
                    prefix = format!("/{}", value.trim_matches('/')).trim_end_matches('/').to_owned();
                }
                "dbname" => return Err(wrong("path", "the prefix of the management API")),
                name if tls.take(name, &value)? => (),
                _ => return Err(key.unknown()),
            }
        }
        let tls = match is_tls {
            false => tls.refuse("of use here: TLS is `https://`").map(|()| None)?,
            true => Some(tls.read()?),
        };
        let host = match host {
            None => return Err(DsnError::Missing { what: "host" }),
            Some(host) if place::is_host(&host) => host,
            Some(_) => return Err(DsnError::Value { key: "host", expected: "a name or an address" }),
        };
        Ok(Self {
            host,
            port: port.unwrap_or(if is_tls { TLS_PORT } else { PLAIN_PORT }),
            prefix,
            user: user.ok_or(DsnError::Missing { what: "user" })?,
            password: password.ok_or(DsnError::Missing { what: "password" })?,
            tls,
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    pub(super) const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// `10.0.0.8:15672`, `[::1]:15672`: the server, as it is called in targets and texts.
    pub fn address(&self) -> String {
        place::host_and_port(&self.host, self.port)
    }

    /// `RabbitMQ at 10.0.0.8:15672`.
    pub(super) fn named(&self) -> String {
        Engine::RabbitMq.at(&self.address())
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// `/api/nodes` with the prefix.
    pub(super) fn path(&self, rest: &str) -> String {
        format!("{}/api/{rest}", self.prefix)
    }

    /// The value of `Authorization`.
    pub(super) fn authorization(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new(format!("{}:{}", self.user, self.password.as_str()));
        Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), super::DATABASE)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn refuses(text: &str, expected: &str) {
        let error = Url::parse(text).expect_err(text);
        assert_eq!(error.to_string(), expected, "{text}");
        assert!(!format!("{error:?} {}", error.advice()).contains("hunter2"));
    }

    #[test]
    fn places_are_read_and_a_password_cannot_be_printed() {
        for (text, shown, path) in [
            ("http://tickbird:hunter2@10.0.0.8\n", "10.0.0.8:15672/rabbitmq", "/api/nodes"),
            ("http://tickbird:hunter2@[::1]:8080/", "[::1]:8080/rabbitmq", "/api/nodes"),
            ("https://tickbird:hunter2@mq.internal/broker/", "mq.internal:15671/rabbitmq", "/broker/api/nodes"),
        ] {
            let url = Url::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((url.to_string().as_str(), url.path("nodes").as_str()), (shown, path), "{text}");
            assert!(!format!("{url:?} {url:#?}").contains("hunter2"));
            assert_eq!(url.authorization().as_str(), "Basic dGlja2JpcmQ6aHVudGVyMg==");
            assert_eq!(url.tls().is_some(), text.starts_with("https"));
        }
    }

    #[test]
    fn a_mistake_is_named_and_no_value_is_repeated() {
        refuses("", "the DSN is no `http://` URL");
        refuses("amqp://a:hunter2@h", "the DSN is no `http://` URL");
        refuses("http://h", "the DSN names no user");
        refuses("http://a@h", "the DSN names no password");
        refuses("http://a:hunter2@", "the DSN names no host");
        refuses("http://a:hunter2@h:0", "the value of `port` is not a number from 1 to 65535");
        refuses("http://a:hunter2@h/a%20b", "the value of `path` is not the prefix of the management API");
        refuses("http://a:hunter2/x@h/0", "the user or password of the URL is not percent-encoded");
        refuses("http://a:b@h/?hunter2=1", "the DSN has an unknown key: number 1 of the query");
        let expected = "the value of `ssl_cert_reqs` is not of use here: TLS is `https://`";
        refuses("http://a:hunter2@h/?ssl_cert_reqs=none", expected);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_error_repeats_a_password(text in "[ -~é]{0,30}", tail in "(@h/|@h:1/x\\?x=1|)") {
            if let Err(error) = Url::parse(&format!("http://a:{text}hunter2canary{tail}")) {
                prop_assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
            }
        }
    }
}
