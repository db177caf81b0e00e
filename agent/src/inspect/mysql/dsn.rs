//! Where a MySQL server is and who asks it: a URL, read strictly and never shown.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sqlx::ConnectOptions as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use crate::inspect::server::dsn::url_pairs;
use crate::inspect::server::place::{self, Place};
use crate::inspect::server::{DsnError, Engine};
use crate::inspect::tls_certificate;

const DEFAULT_PORT: u16 = 3306;
const SCHEMES: [&str; 2] = ["mysql", "mariadb"];

/// Without meaning for one session that only looks; drivers of many languages write them.
const IGNORED: [&str; 9] = [
    "charset",
    "collation",
    "timezone",
    "serverTimezone",
    "connect_timeout",
    "connectTimeout",
    "pool_size",
    "max_overflow",
    "autocommit",
];

/// One server and user, with what proves it. `Debug` and `Display` show `10.0.0.5:3306/app` and nothing else.
#[derive(Clone)]
pub struct Dsn {
    place: Place,
    database: String,
    user: String,
    password: Option<String>,
    mode: MySqlSslMode,
    /// PEM, read with the DSN by whoever may: sqlx would open the file at each connecting, with the rights of a thread
    /// that has none.
    authorities: Option<Vec<u8>>,
}

impl Dsn {
    /// Reads `mysql://user:password@host:3306/database` (also `mariadb://`, and with a driver: `mysql+pymysql://`).
    /// `?socket=/run/mysqld/mysqld.sock` asks over a unix socket; `ssl-mode` and `ssl-ca` are those of the server's own
    /// client, `PREFERRED` when nothing is said.
    ///
    /// # Errors
    /// With what is wrong; never with a value.
    pub fn parse(text: &str) -> Result<Self, DsnError> {
        let form = DsnError::Url { scheme: SCHEMES[0] };
        let Some((scheme, rest)) = text.trim().split_once("://") else { return Err(form) };
        if !SCHEMES.contains(&scheme.split_once('+').map_or(scheme, |(scheme, _driver)| scheme)) {
            return Err(form);
        }
        let (mut host, mut port, mut socket) = (None, None, None);
        let (mut user, mut password, mut database) = (None, None, None);
        let (mut mode, mut authorities) = (MySqlSslMode::Preferred, None);
        for (key, value) in url_pairs(rest)? {
            let wrong = |key, expected| DsnError::Value { key, expected };
            match key.name.as_str() {
                "user" => user = Some(value),
                "password" => password = Some(value),
                "dbname" => database = Some(value),
                "host" if value.starts_with('/') => socket = Some(PathBuf::from(value)),
                "host" => host = Some(value),
                "port" => port = Some(place::port(&value)?),
                "socket" | "unix_socket" if value.starts_with('/') => socket = Some(value.into()),
                "socket" | "unix_socket" => return Err(wrong("socket", "an absolute path")),
                "ssl-mode" | "ssl_mode" | "sslmode" => {
                    mode = match value.to_ascii_uppercase().replace('-', "_").as_str() {
                        "DISABLED" | "DISABLE" => MySqlSslMode::Disabled,
                        "PREFERRED" | "PREFER" => MySqlSslMode::Preferred,
                        "REQUIRED" | "REQUIRE" => MySqlSslMode::Required,
                        "VERIFY_CA" => MySqlSslMode::VerifyCa,
                        "VERIFY_IDENTITY" | "VERIFY_FULL" => MySqlSslMode::VerifyIdentity,
                        _ => {
                            let expected = "one of DISABLED, PREFERRED, REQUIRED, VERIFY_CA, VERIFY_IDENTITY";
                            return Err(wrong("ssl-mode", expected));
                        }
                    }
                }
                "ssl-ca" | "ssl_ca" => {
                    let read = tls_certificate::read_pem(Path::new(&value));
                    authorities = Some(read.map_err(|_| wrong("ssl-ca", "a readable file with PEM certificates"))?);
                }
                name if IGNORED.contains(&name) => (),
                _ => return Err(key.unknown()),
            }
        }
        let place = match socket {
            Some(path) => Place::Unix(path),
            None => Place::tcp(host, port.unwrap_or(DEFAULT_PORT))?,
        };
        // As the server's own client has it: who names an authority wants it asked.
        let wants_authority = authorities.is_some() && matches!(mode, MySqlSslMode::Preferred | MySqlSslMode::Required);
        Ok(Self {
            place,
            database: database.unwrap_or_default(),
            user: user.ok_or(DsnError::Missing { what: "user" })?,
            password,
            mode: if wants_authority { MySqlSslMode::VerifyCa } else { mode },
            authorities,
        })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// `10.0.0.5:3306`, `[::1]:3306`, `/run/mysqld/mysqld.sock`: the server, as it is called in targets and texts.
    pub fn address(&self) -> String {
        self.place.address()
    }

    /// `MySQL at 10.0.0.5:3306`.
    pub(super) fn named(&self) -> String {
        Engine::MySql.at(&self.address())
    }

    /// The database that the DSN names, or the one that is read.
    pub fn database(&self) -> &str {
        if self.database.is_empty() { "information_schema" } else { &self.database }
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Everything that is needed to open a session, at one address of the server. A name that is verified is kept.
    pub(super) fn session_at(&self, address: Option<IpAddr>) -> MySqlConnectOptions {
        let mut options = MySqlConnectOptions::new()
            .username(&self.user)
            .ssl_mode(self.mode)
            // Ours are plain statements, and their times are those of the server.
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .statement_cache_capacity(0)
            .disable_statement_logging();
        if !self.database.is_empty() {
            options = options.database(&self.database);
        }
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        if let Some(pem) = &self.authorities {
            options = options.ssl_ca_from_pem(pem.clone());
        }
        match (&self.place, address) {
            (Place::Unix(path), _) => options.socket(path),
            (Place::Tcp { port, .. }, Some(address)) if !matches!(self.mode, MySqlSslMode::VerifyIdentity) => {
                options.host(&address.to_string()).port(*port)
            }
            (Place::Tcp { host, port }, _) => options.host(host).port(*port),
        }
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.database())
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

    #[track_caller]
    fn refuses(text: &str, expected: &str) {
        let error = Dsn::parse(text).expect_err(text);
        assert_eq!(error.to_string(), expected, "{text}");
        assert!(!format!("{error:?} {}", error.advice()).contains("hunter2"));
    }

    #[test]
    fn places_are_read_and_a_password_cannot_be_printed() {
        for (text, expected) in [
            ("mysql://app:hunter2@db.internal/grants\n", "db.internal:3306/grants"),
            ("mysql+pymysql://app:hunter2@10.0.0.5:3307/x?charset=utf8mb4", "10.0.0.5:3307/x"),
            ("mariadb://app:hunter2@[::1]:3306", "[::1]:3306/information_schema"),
            ("mysql://app:hunter2@localhost/x?socket=/run/m.sock", "/run/m.sock/x"),
            ("mysql://app:hunter2@%2Frun%2Fm.sock/x", "/run/m.sock/x"),
        ] {
            let dsn = Dsn::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(dsn.to_string(), expected, "{text}");
            assert!(!format!("{dsn:?} {dsn:#?}").contains("hunter2"));
            assert_eq!(dsn.password.as_deref(), Some("hunter2"));
        }
    }

    #[test]
    fn tls_is_as_strict_as_was_asked() {
        let mode = |query: &str| Dsn::parse(&format!("mysql://a@h/d?{query}")).map(|it| format!("{:?}", it.mode));
        assert_eq!(mode("").expect("good"), "Preferred");
        assert_eq!(mode("ssl-mode=VERIFY_IDENTITY").expect("good"), "VerifyIdentity");
        assert_eq!(mode("sslmode=disable").expect("good"), "Disabled");
        let by_name = Dsn::parse("mysql://a@db.internal/d?ssl-mode=verify_identity").expect("good");
        let address = Some("10.0.0.5".parse().expect("an address"));
        assert_eq!(by_name.session_at(address).get_host(), "db.internal", "the name is what is verified");
    }

    #[test]
    fn a_mistake_is_named_and_no_value_is_repeated() {
        refuses("", "the DSN is no `mysql://` URL");
        refuses("postgres://a:hunter2@h/d", "the DSN is no `mysql://` URL");
        refuses("mysql://h/d", "the DSN names no user");
        refuses("mysql://a:hunter2@/d", "the DSN names no host");
        refuses("mysql://a:hunter2@h:0/d", "the value of `port` is not a number from 1 to 65535");
        refuses("mysql://a:hunter2/x@h/d", "the user or password of the URL is not percent-encoded");
        refuses("mysql://a@h/d?hunter2=1", "the DSN has an unknown key: number 1 of the query");
        refuses("mysql://a@h/d?ssl-ca=/no/such", "the value of `ssl-ca` is not a readable file with PEM certificates");
        refuses("mysql://a@h/d?socket=hunter2", "the value of `socket` is not an absolute path");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_error_repeats_a_password(text in "[ -~é]{0,30}", tail in "(@h/d|@h:1/d\\?x=1|)") {
            if let Err(error) = Dsn::parse(&format!("mysql://a:{text}hunter2canary{tail}")) {
                prop_assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
            }
        }
    }
}
