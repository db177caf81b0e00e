//! Where a Redis server is and who asks it: a URL, read strictly and never shown.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::inspect::server::dsn::url_pairs;
use crate::inspect::server::place::{self, Place};
use crate::inspect::server::tls_keys::{Tls, TlsKeys};
use crate::inspect::server::{DsnError, Engine};

const DEFAULT_PORT: u16 = 6379;

/// What a scheme says of the way to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Tls,
    Unix,
}

const SCHEMES: [(&str, Way); 10] = [
    ("redis", Way::Plain),
    ("valkey", Way::Plain),
    ("rediss", Way::Tls),
    ("valkeys", Way::Tls),
    ("redis+tls", Way::Tls),
    ("unix", Way::Unix),
    ("redis+unix", Way::Unix),
    ("redis+socket", Way::Unix),
    ("redis-socket", Way::Unix),
    ("valkey+unix", Way::Unix),
];

/// Without meaning for one connection that only looks; drivers of many languages write them.
const IGNORED: [&str; 16] = [
    "client_name",
    "decode_responses",
    "dial_timeout",
    "encoding",
    "health_check_interval",
    "idle_timeout",
    "max_connections",
    "min_idle_conns",
    "pool_size",
    "pool_timeout",
    "protocol",
    "read_timeout",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_timeout",
    "write_timeout",
];

/// One server and user, with what proves it. `Debug` and `Display` show `10.0.0.6:6379/0` and nothing else.
#[derive(Clone)]
pub struct Dsn {
    place: Place,
    database: u32,
    user: Option<String>,
    password: Option<Zeroizing<String>>,
    tls: Option<Tls>,
}

impl Dsn {
    /// Reads `redis://user:password@host:6379/0`, the same as `rediss://` over TLS, or `unix://user:password@/path?db=0`
    /// (also `redis+unix://`, and Valkey's names), with redis-py's keys of TLS.
    ///
    /// # Errors
    /// With what is wrong; never with a value.
    pub fn parse(text: &str) -> Result<Self, DsnError> {
        let form = DsnError::Url { scheme: SCHEMES[0].0 };
        let Some((scheme, rest)) = text.trim().split_once("://") else { return Err(form) };
        let Some(way) = SCHEMES.iter().find(|(name, _)| *name == scheme).map(|(_, way)| *way) else { return Err(form) };
        let (mut host, mut port, mut path, mut database) = (None, None, None, None);
        let (mut user, mut password) = (None, None);
        let mut tls = TlsKeys::none();
        for (key, value) in url_pairs(rest)? {
            let wrong = |key, expected| DsnError::Value { key, expected };
            match key.name.as_str() {
                "user" | "username" => user = Some(value),
                "password" => password = Some(Zeroizing::new(value)),
                "host" => host = Some(value),
                "port" => port = Some(place::port(&value)?),
                "dbname" if way == Way::Unix => path = Some(PathBuf::from(format!("/{value}"))),
                "dbname" | "db" => match value.parse() {
                    Ok(number) => database = Some(number),
                    Err(_) => return Err(wrong("db", "the number of a database")),
                },
                name if tls.take(name, &value)? => (),
                name if IGNORED.contains(&name) => (),
                _ => return Err(key.unknown()),
            }
        }
        let tls = match way {
            Way::Plain | Way::Unix => tls.refuse("of use here: TLS is `rediss://`").map(|()| None)?,
            Way::Tls => Some(tls.read()?),
        };
        let place = match (way, host) {
            (Way::Unix, None) => Place::Unix(path.ok_or(DsnError::Missing { what: "path" })?),
            (Way::Unix, Some(_)) => {
                return Err(DsnError::Value { key: "path", expected: "absolute: `unix:///run/redis/redis.sock`" });
            }
            (_, host) => Place::tcp(host, port.unwrap_or(DEFAULT_PORT))?,
        };
        Ok(Self { place, database: database.unwrap_or(0), user, password, tls })
    }

    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    pub(super) const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// `10.0.0.6:6379`, `[::1]:6379`, `/run/redis/redis.sock`: the server, as it is called in targets and texts.
    pub fn address(&self) -> String {
        self.place.address()
    }

    /// `Redis at 10.0.0.6:6379`.
    pub(super) fn named(&self) -> String {
        Engine::Redis.at(&self.address())
    }

    /// The number of the database that the DSN names, 0 unless it does.
    pub fn database(&self) -> String {
        self.database.to_string()
    }

    /// The user; `default` is everybody who names none.
    pub fn user(&self) -> &str {
        self.user.as_deref().unwrap_or("default")
    }

    /// What `AUTH` is sent with, when it has to be sent. Servers before version 6 know no users.
    pub(super) fn credentials(&self) -> Option<Vec<&str>> {
        let password = self.password.as_ref().map(|it| it.as_str());
        match (self.user.as_deref(), password) {
            (None, None) => None,
            (None, Some(password)) => Some(vec![password]),
            (Some(user), password) => Some(vec![user, password.unwrap_or_default()]),
        }
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.database)
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inspect::tls_certificate::Demand;

    #[track_caller]
    fn refuses(text: &str, expected: &str) {
        let error = Dsn::parse(text).expect_err(text);
        assert_eq!(error.to_string(), expected, "{text}");
        assert!(!format!("{error:?} {}", error.advice()).contains("hunter2"));
    }

    #[test]
    fn places_are_read_and_a_password_cannot_be_printed() {
        for (text, shown, user) in [
            ("redis://:hunter2@cache.internal\n", "cache.internal:6379/0", "default"),
            ("redis://tickbird:hunter2@10.0.0.6:6380/3?max_connections=20", "10.0.0.6:6380/3", "tickbird"),
            ("rediss://app:hunter2@[::1]/", "[::1]:6379/0", "app"),
            ("unix://app:hunter2@/run/redis/redis.sock?db=2", "/run/redis/redis.sock/2", "app"),
            ("redis+unix://:hunter2@/run/r.sock", "/run/r.sock/0", "default"),
            ("valkey://:hunter2@h", "h:6379/0", "default"),
        ] {
            let dsn = Dsn::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((dsn.to_string().as_str(), dsn.user()), (shown, user), "{text}");
            assert!(!format!("{dsn:?} {dsn:#?}").contains("hunter2"));
            assert_eq!(dsn.credentials().expect("a password").last(), Some(&"hunter2"));
        }
        assert_eq!(Dsn::parse("redis://h").expect("good").credentials(), None);
        assert_eq!(Dsn::parse("redis://app@h").expect("good").credentials(), Some(vec!["app", ""]));
    }

    #[test]
    fn tls_is_as_strict_as_was_asked_and_never_ignored() {
        let demand = |query: &str| {
            let dsn = Dsn::parse(&format!("rediss://h/{query}")).expect("good");
            dsn.tls().map(Tls::demand)
        };
        assert_eq!(demand(""), Some(Demand::AuthorityAndName));
        assert_eq!(demand("?ssl_check_hostname=false"), Some(Demand::Authority));
        assert_eq!(demand("?ssl_cert_reqs=none"), Some(Demand::Nothing));
        assert!(Dsn::parse("redis://h").expect("good").tls().is_none());
        refuses("redis://h/?ssl_cert_reqs=none", "the value of `ssl_cert_reqs` is not of use here: TLS is `rediss://`");
    }

    #[test]
    fn a_mistake_is_named_and_no_value_is_repeated() {
        refuses("", "the DSN is no `redis://` URL");
        refuses("mysql://a:hunter2@h", "the DSN is no `redis://` URL");
        refuses("redis://a:hunter2@/0", "the DSN names no host");
        refuses("redis://a:hunter2@h:0", "the value of `port` is not a number from 1 to 65535");
        refuses("redis://a:hunter2@h/first", "the value of `db` is not the number of a database");
        refuses("redis://a:hunter2/x@h/0", "the user or password of the URL is not percent-encoded");
        refuses("redis://h/?hunter2=1", "the DSN has an unknown key: number 1 of the query");
        refuses(
            "rediss://h/?ssl_ca_certs=/no",
            "the value of `ssl_ca_certs` is not a readable file with PEM certificates",
        );
        refuses("rediss://h/?ssl_certfile=/no", "the DSN names no ssl_keyfile");
        refuses("unix://app:hunter2@", "the DSN names no path");
        refuses("unix://run/redis.sock", "the value of `path` is not absolute: `unix:///run/redis/redis.sock`");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_error_repeats_a_password(
            scheme in "(redis|rediss|unix)",
            text in "[ -~é]{0,30}",
            tail in "(@h/0|@h:1/0\\?x=1|@/run/x|)",
        ) {
            if let Err(error) = Dsn::parse(&format!("{scheme}://a:{text}hunter2canary{tail}")) {
                prop_assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
            }
        }
    }
}
