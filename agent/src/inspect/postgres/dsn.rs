//! Where a PostgreSQL server is and who asks it: a DSN, read strictly and never shown.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};

use crate::inspect::server::dsn::{DsnError, Key, url_pairs};
use crate::inspect::server::{Engine, place};
use crate::inspect::tls_certificate;

mod pairs;

use pairs::{KEYS, Use, key_value_pairs};

/// What libpq takes when nothing is said: the port of every server, the directory of Debian and its kin.
const DEFAULT_PORT: u16 = 5432;
/// PgBouncer's own port, and the database that is its admin console.
const CONSOLE_PORT: u16 = 6432;
const CONSOLE: &str = "pgbouncer";
const DEFAULT_DIRECTORY: &str = "/var/run/postgresql";

/// One server, database and role, with what proves it. `Debug` and `Display` show `10.0.0.5:5432/app` and nothing else.
#[derive(Clone)]
pub struct Dsn {
    engine: Engine,
    place: Place,
    database: String,
    user: String,
    trust: Trust,
    connect_timeout: Option<Duration>,
    /// All of it but the place, with our own settings of the session; holds the password.
    session: tokio_postgres::Config,
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// `address` is `hostaddr`, which is connected to instead of the addresses of `host`.
    Tcp { host: String, address: Option<IpAddr>, port: u16 },
    /// A directory with the socket `.s.PGSQL.<port>`.
    Unix { directory: PathBuf, port: u16 },
}

/// What must be true of the server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// Nothing: it proves only that nobody listens in silence (`prefer`, `require`).
    Anything,
    /// Signed by a trusted authority (`verify-ca`), and of this name (`verify-full`).
    Authority { roots: Vec<CertificateDer<'static>>, name: bool },
}

impl Dsn {
    /// Reads a URL (`postgres://`, `postgresql://`, also with a driver: `postgresql+asyncpg://`) or `key=value` pairs,
    /// with the keys of libpq, and the file of `sslrootcert`. White space around it (a file's last line end) is
    /// ignored. Without `host` it is the socket in `/var/run/postgresql`; without `sslmode` it is `prefer`.
    pub fn parse(text: &str) -> Result<Self, DsnError> {
        Self::parse_for(Engine::PostgreSql, text)
    }

    /// The same for the admin console of PgBouncer: database `pgbouncer` and port 6432 when the DSN names none, and
    /// no `options`, which a pooler cannot pass on.
    pub fn parse_console(text: &str) -> Result<Self, DsnError> {
        Self::parse_for(Engine::PgBouncer, text)
    }

    fn parse_for(engine: Engine, text: &str) -> Result<Self, DsnError> {
        let text = text.trim();
        let pairs = match text.split_once("://") {
            _ if text.is_empty() => return Err(DsnError::Empty),
            Some((scheme, rest)) if !scheme.contains(['=', ' ', '\'']) => {
                let scheme = scheme.split_once('+').map_or(scheme, |(scheme, _driver)| scheme);
                if !["postgres", "postgresql"].contains(&scheme) {
                    return Err(DsnError::Form);
                }
                url_pairs(rest)?
            }
            _ => key_value_pairs(text)?,
        };
        let mut given = Given::default();
        for (key, value) in pairs {
            given.take(key, value)?;
        }
        given.finish(engine)
    }

    /// What is meant to answer there.
    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    /// `PostgreSQL at 10.0.0.5:5432`.
    pub(in crate::inspect) fn named(&self) -> String {
        self.engine.at(&self.address())
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// `10.0.0.5:5432`, `[::1]:5432`, `/run/postgresql:5432`: the server, as it is called in targets and texts.
    pub fn address(&self) -> String {
        match &self.place {
            Place::Tcp { host, port, .. } => place::host_and_port(host, *port),
            Place::Unix { directory, port } => format!("{}:{port}", directory.display()),
        }
    }

    /// The unix socket that it names.
    pub(in crate::inspect) fn socket_path(&self) -> Option<String> {
        match &self.place {
            Place::Tcp { .. } => None,
            Place::Unix { directory, port } => Some(format!("{}/.s.PGSQL.{port}", directory.display())),
        }
    }

    /// The database; the role's name when the DSN names none.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// How long the application itself would wait for a connection.
    pub(super) fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// Everything that is needed to open a session, at one address of the server; over the unix socket without one.
    pub(super) fn session_at(&self, address: Option<IpAddr>) -> tokio_postgres::Config {
        let mut session = self.session.clone();
        match &self.place {
            Place::Tcp { host, port, .. } => {
                session.host(host).port(*port);
                if let Some(address) = address {
                    session.hostaddr(address);
                }
            }
            // The server offers no TLS there, and nobody can listen in.
            Place::Unix { directory, port } => {
                session.host_path(directory).port(*port).ssl_mode(SslMode::Disable);
            }
        }
        session
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

/// The keys as they were given, each at most once.
#[derive(Default)]
struct Given {
    seen: Vec<&'static str>,
    host: Option<String>,
    hostaddr: Option<IpAddr>,
    port: Option<u16>,
    user: Option<String>,
    database: Option<String>,
    options: Option<String>,
    mode: Mode,
    roots: Option<String>,
    connect_timeout: Option<Duration>,
    session: tokio_postgres::Config,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Mode {
    Disable,
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Given {
    fn take(&mut self, key: Key, value: String) -> Result<(), DsnError> {
        let Key { name, wanted, nth } = key;
        let Some((key, used)) = KEYS.into_iter().find(|(known, _)| *known == name) else {
            return Err(self.unknown(&name, nth));
        };
        if self.seen.contains(&key) {
            return Err(DsnError::Twice { key });
        }
        self.seen.push(key);
        let wrong = |expected| DsnError::Value { key, expected };
        match (key, used) {
            (_, Use::Unsupported) => return Err(DsnError::Unsupported { key }),
            (_, Use::Ignored) => (),
            // What is empty is as if it were not there, as for libpq.
            _ if value.is_empty() && !wanted => (),
            ("host" | "hostaddr" | "port", _) if value.contains(',') => return Err(DsnError::SeveralServers),
            ("host", _) => self.host = Some(value),
            ("hostaddr", _) => self.hostaddr = Some(value.parse().map_err(|_| wrong("a numeric address"))?),
            ("port", _) => self.port = Some(place::port(&value)?),
            ("user", _) => self.user = Some(value),
            ("password", _) => {
                self.session.password(value);
            }
            ("dbname", _) => self.database = Some(value),
            ("options", _) => self.options = Some(value),
            ("sslmode", _) => {
                self.mode = match &*value {
                    "disable" => Mode::Disable,
                    "allow" | "prefer" => Mode::Prefer,
                    "require" => Mode::Require,
                    "verify-ca" => Mode::VerifyCa,
                    "verify-full" => Mode::VerifyFull,
                    _ => return Err(wrong("one of disable, allow, prefer, require, verify-ca, verify-full")),
                }
            }
            ("sslrootcert", _) => self.roots = Some(value),
            ("sslnegotiation", _) => {
                self.session.ssl_negotiation(match &*value {
                    "postgres" => SslNegotiation::Postgres,
                    "direct" => SslNegotiation::Direct,
                    _ => return Err(wrong("one of postgres, direct")),
                });
            }
            ("connect_timeout", _) => match value.parse::<i32>() {
                // libpq waits for ever at 0 and below; the agent has a bound of its own.
                Ok(seconds) => {
                    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
                    self.connect_timeout = seconds.map(Duration::from_secs);
                }
                Err(_) => return Err(wrong("a number of seconds")),
            },
            _ => {
                self.session.channel_binding(match &*value {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(wrong("one of disable, prefer, require")),
                });
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str, nth: usize) -> DsnError {
        let nearest = KEYS.into_iter().map(|(key, _)| (distance(name, key), key)).min();
        match nearest {
            // A third of its letters wrong is still a typing error.
            Some((errors, key)) if errors * 3 <= key.len() && name.len() <= 30 => {
                DsnError::UnknownKey { what: format!("`{}`", name.escape_debug()), nearest: Some(key) }
            }
            _ => {
                let place = self.seen.last().map_or(format!("number {nth}"), |key| format!("the one behind `{key}`"));
                DsnError::UnknownKey { what: place, nearest: None }
            }
        }
    }

    fn finish(mut self, engine: Engine) -> Result<Dsn, DsnError> {
        let is_console = engine == Engine::PgBouncer;
        if is_console && self.options.is_some() {
            return Err(DsnError::Unsupported { key: "options" });
        }
        let user = self.user.ok_or(DsnError::Missing { what: "user" })?;
        let default = if is_console { CONSOLE } else { &user };
        let database = self.database.unwrap_or_else(|| default.to_owned());
        let port = self.port.unwrap_or(if is_console { CONSOLE_PORT } else { DEFAULT_PORT });
        let place = match (self.host, self.hostaddr) {
            (Some(host), None) if host.starts_with('/') => Place::Unix { directory: host.into(), port },
            (None, None) => Place::Unix { directory: DEFAULT_DIRECTORY.into(), port },
            (Some(host), address) => {
                if !place::is_host(&host) {
                    return Err(DsnError::Value { key: "host", expected: "a name, an address or a directory" });
                }
                Place::Tcp { host, address, port }
            }
            (None, Some(address)) => Place::Tcp { host: address.to_string(), address: Some(address), port },
        };
        let roots = match self.roots.as_deref() {
            None | Some("system") => Vec::new(),
            Some(path) => {
                let path = Path::new(path);
                let unreadable = |source| DsnError::RootCertificate { path: path.into(), source };
                tls_certificate::read_file(path).map_err(unreadable)?
            }
        };
        let mode = match self.mode {
            // As libpq has it: who names an authority wants it asked.
            Mode::Require if !roots.is_empty() => Mode::VerifyCa,
            mode => mode,
        };
        let trust = match mode {
            Mode::VerifyCa | Mode::VerifyFull => Trust::Authority { roots, name: mode == Mode::VerifyFull },
            _ => Trust::Anything,
        };
        self.session
            .user(&user)
            .dbname(&database)
            .ssl_mode(match mode {
                Mode::Disable => SslMode::Disable,
                Mode::Prefer => SslMode::Prefer,
                _ => SslMode::Require,
            })
            .application_name(super::APPLICATION_NAME)
            // A peer that is gone is noticed within half a minute, and not by a look that waits.
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(20));
        if !is_console {
            let options = [self.options.as_deref().unwrap_or_default(), super::SESSION_OPTIONS];
            self.session.options(options.join(" ").trim_start());
        }
        Ok(Dsn { engine, place, database, user, trust, connect_timeout: self.connect_timeout, session: self.session })
    }
}

/// Letters to add, to leave out or to change to make one word of the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, letter) in from.chars().take(40).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (at, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn dsn(text: &str) -> Dsn {
        Dsn::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[track_caller]
    fn refuses(text: &str, expected: &str, advice: &str) {
        let error = Dsn::parse(text).expect_err(text);
        assert_eq!(error.to_string(), expected, "{text}");
        assert!(error.advice().contains(advice), "{text}: {}", error.advice());
        for shown in [error.to_string(), error.advice(), format!("{error:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn both_forms_name_the_same_place() {
        for text in [
            "postgres://app:hunter2@db.internal:6000/grants",
            "postgresql+asyncpg://app:hunter2@db.internal:6000/grants?sslmode=disable&application_name=x\n",
            "host=db.internal port=6000 user=app password=hunter2 dbname=grants",
            "host = 'db.internal' port='6000' user=app  password = 'hunter2' dbname=grants sslmode=prefer",
        ] {
            let dsn = dsn(text);
            assert_eq!((dsn.to_string().as_str(), dsn.user()), ("db.internal:6000/grants", "app"));
            let session = dsn.session_at(None);
            assert_eq!(session.get_password(), Some(&b"hunter2"[..]));
            assert_eq!(session.get_application_name(), Some("tickbird-agent"));
        }
    }

    #[test]
    fn what_is_not_said_is_as_for_libpq() {
        assert_eq!(dsn("user=app").to_string(), "/var/run/postgresql:5432/app");
        assert_eq!(dsn("postgres://app@").to_string(), "/var/run/postgresql:5432/app");
        assert_eq!(dsn("postgres://app@/x?host=/tmp&port=1").to_string(), "/tmp:1/x");
        assert_eq!(dsn("postgres://app@%2Ftmp/x").to_string(), "/tmp:5432/x");
        assert_eq!(dsn("postgres://app@[::1]:6000/x").to_string(), "[::1]:6000/x");
        assert_eq!(dsn("hostaddr=10.0.0.5 user=app").to_string(), "10.0.0.5:5432/app");
        assert_eq!(dsn("user=app host=h connect_timeout=0").connect_timeout(), None);
        assert_eq!(dsn("user=app host=h connect_timeout=3").connect_timeout(), Some(Duration::from_secs(3)));
    }

    #[test]
    fn passwords_of_every_kind_are_read() {
        let password = |text: &str| dsn(text).session_at(None).get_password().map(<[u8]>::to_vec);
        assert_eq!(password("postgres://a:p%40%2F%3a%25@h/d"), Some(b"p@/:%".to_vec()));
        assert_eq!(password("postgres://a:x#y:z@h/d"), Some(b"x#y:z".to_vec()));
        assert_eq!(password(r"user=a password='it\'s \\ =x '"), Some(br"it's \ =x ".to_vec()));
        assert_eq!(password(r"user=a password=a\ b"), Some(b"a b".to_vec()));
        assert_eq!(password("user=a host=h"), None);
    }

    #[test]
    fn sessions_are_bounded_whatever_the_dsn_says() {
        let dsn = dsn("user=a host=h options='-c statement_timeout=0 -c geqo=off'");
        let session = dsn.session_at(None);
        let options = session.get_options().expect("has options");
        assert!(options.starts_with("-c statement_timeout=0 -c geqo=off -c statement_timeout=500"), "{options}");
    }

    #[test]
    fn tls_is_as_strict_as_was_asked() {
        let mode = |text: &str| dsn(&format!("user=a host=h {text}")).session_at(None).get_ssl_mode();
        assert_eq!(mode(""), SslMode::Prefer);
        assert_eq!(mode("sslmode=disable"), SslMode::Disable);
        assert_eq!(mode("sslmode=verify-full"), SslMode::Require);
        assert_eq!(*dsn("user=a host=h sslmode=require").trust(), Trust::Anything);
        let system = Trust::Authority { roots: Vec::new(), name: true };
        assert_eq!(*dsn("user=a host=h sslmode=verify-full sslrootcert=system").trust(), system);
        assert_eq!(dsn("user=a host=/tmp sslmode=require").session_at(None).get_ssl_mode(), SslMode::Disable);
    }

    #[test]
    fn a_mistake_is_named_and_no_value_is_repeated() {
        refuses(" \n", "the DSN is empty", "postgresql://");
        refuses("hunter2", "the DSN is neither a `postgresql://` URL nor `key=value` pairs", "postgresql://");
        refuses("mysql://a:hunter2@h/d", "the DSN is neither a `postgresql://` URL nor `key=value` pairs", "");
        refuses("user=a pasword=hunter2", "the DSN has an unknown key: `pasword`", "did you mean `password`?");
        refuses("postgres://a@h/d?sslmod=x", "the DSN has an unknown key: `sslmod`", "did you mean `sslmode`?");
        refuses("user=a password=x hunter2=", "the DSN has an unknown key: the one behind `password`", "libpq");
        refuses("user=a password=x hunter2", "the DSN has a word without `=` behind `password`", "single quotes");
        refuses("user=a password='hunter2", "the value of `password` has no closing quote", "close it");
        refuses("host=a host=b", "`host` is given twice", "leave one");
        refuses("user=a port=hunter2", "the value of `port` is not a number from 1 to 65535", "write a number");
        refuses("user=a host=h port=0", "the value of `port` is not a number from 1 to 65535", "");
        refuses(
            "user=a sslmode=hunter2",
            "the value of `sslmode` is not one of disable, allow, prefer, require, verify-ca, verify-full",
            "",
        );
        refuses("postgres://a:hunter2@h:x/d", "the value of `port` is not a number from 1 to 65535", "");
        refuses("postgres://a:hunter2/x@h/d", "the user or password of the URL is not percent-encoded", "hexadecimal");
        refuses("postgres://a:hunter2@x@h/d", "the user or password of the URL is not percent-encoded", "");
        refuses("postgres://a:hunter2%zz@h/d", "the user or password of the URL is not percent-encoded", "");
        refuses("postgres://h/d", "the DSN names no user", "user=");
        refuses("host=a,b user=x password=hunter2", "the DSN names several servers", "one [[postgres]]");
        refuses("user=a host='h hunter2'", "the value of `host` is not a name, an address or a directory", "");
        refuses("user=a sslkey=/x", "`sslkey` is not supported", "leave it out");
        refuses("user=a sslrootcert=/no/such", "cannot read the file of `sslrootcert`, `/no/such`", "readable");
    }

    #[test]
    fn it_cannot_be_printed() {
        let dsn = dsn("postgres://app:hunter2@h/d?options=-c%20x.y%3Dhunter2");
        assert_eq!(format!("{dsn} {dsn:?} {dsn:#?}"), "h:5432/d Dsn(h:5432/d) Dsn(h:5432/d)");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_error_repeats_a_password(
            text in "[ -~é\n]{0,40}",
            head in "(postgres://a:|user=a password=|password='|host=h pas=|)",
            tail in "(@h/d|@h/d\\?|' host=| x=|)[ -~]{0,9}",
        ) {
            prop_assume!(!tail.contains("hunter2"));
            let text = format!("{head}{text}hunter2canary{tail}");
            if let Err(error) = Dsn::parse(&text) {
                prop_assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
            }
        }
    }
}
