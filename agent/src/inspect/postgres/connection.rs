//! The agent's one connection to a server: opened in bounded time, refused in words.

use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dsn::{Dsn, Place, Trust};
use crate::inspect::tls_certificate::{self, Demand, Verifier};
use crate::inspect::{Reason, network};
use crate::scrub;

/// For the name and all its addresses together. Above the five seconds that `db.connect` calls critical, so that they
/// can be measured.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);

/// For the answer to one question: `statement_timeout`, and what a busy host and network add to it.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What an orderly farewell may take before the connection is cut.
const FAREWELL: Duration = Duration::from_secs(5);

/// An open session. One that is dropped sends its farewell and is closed.
pub(super) struct Connection {
    client: Client,
    driver: Option<JoinHandle<()>>,
    /// From the first SYN to a ready session.
    pub(super) seconds: f64,
    /// The address that answered; `None` over a unix socket.
    pub(super) address: Option<IpAddr>,
}

impl Connection {
    /// Whether the server or the network ended it.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Has a statement parsed and planned, once for all looks.
    pub(super) async fn prepare(&self, statement: &str) -> Result<Statement, AskError> {
        answer(self.client.prepare(statement)).await
    }

    /// Asks a prepared statement.
    pub(super) async fn ask(&self, statement: &Statement) -> Result<Vec<Row>, AskError> {
        self.ask_of(statement, &[]).await
    }

    /// The same with parameters.
    pub(super) async fn ask_of(
        &self,
        statement: &Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, AskError> {
        answer(self.client.query(statement, parameters)).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The driver says farewell once the client is gone; a server that is stopped would keep it for ever.
        if let (Some(driver), Ok(runtime)) = (self.driver.take(), tokio::runtime::Handle::try_current()) {
            let cut = driver.abort_handle();
            runtime.spawn(async move {
                if time::timeout(FAREWELL, driver).await.is_err() {
                    cut.abort();
                }
            });
        }
    }
}

async fn answer<T>(asked: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, AskError> {
    match time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(AskError::of),
        Err(_) => Err(AskError::Silent),
    }
}

/// Why an open session gave no answer.
#[derive(Debug)]
pub(super) enum AskError {
    /// The server refused or cancelled the statement; the session goes on.
    Refused { denied: bool, message: String },
    /// No answer in time: the session is given up.
    Silent,
    /// The session is over; the server may have said why.
    Closed(Option<String>),
}

impl AskError {
    fn of(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            // 57P01 to 57P05: shut down, crashed, database dropped, idle too long. The session ends with them.
            Some(said) if said.code().code().starts_with("57P") => {
                Self::Closed(Some(scrub::database_error(said.message())))
            }
            Some(said) => Self::Refused {
                denied: *said.code() == SqlState::INSUFFICIENT_PRIVILEGE,
                message: scrub::database_error(said.message()),
            },
            None if error.is_closed() || cause::<io::Error>(&error).is_some() => Self::Closed(None),
            None => Self::Refused { denied: false, message: scrub::text(&error.to_string(), 120) },
        }
    }

    /// Whether the session can be asked again.
    pub(super) fn keeps_session(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// The same as the cause of there being no session any more.
    pub(super) fn without_session(&self, address: &str) -> ConnectError {
        let address = address.to_owned();
        match self {
            Self::Silent => ConnectError::Silent { address, seconds: ANSWER_TIMEOUT.as_secs_f64() },
            Self::Closed(None) => ConnectError::Unreachable { address, said: "connection closed".into() },
            Self::Closed(Some(said)) | Self::Refused { message: said, .. } => {
                ConnectError::NotServing { address, said: said.clone() }
            }
        }
    }

    /// Why nothing is known, for the server at `address`.
    pub(super) fn reason(&self, address: &str) -> Reason {
        match self {
            Self::Refused { denied: true, message } => Reason::Denied(format!("PostgreSQL at {address}: {message}")),
            Self::Refused { message, .. } | Self::Closed(Some(message)) => {
                Reason::Unreachable(format!("PostgreSQL at {address}: {message}"))
            }
            Self::Closed(None) => Reason::Unreachable(format!("PostgreSQL at {address}: connection closed")),
            Self::Silent => {
                let seconds = ANSWER_TIMEOUT.as_secs();
                Reason::Unreachable(format!("PostgreSQL at {address}: no answer within {seconds} s"))
            }
        }
    }
}

/// Why there is no session. Texts name the server and the role, never a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("PostgreSQL at {address}: the name has no address: {said}")]
    Resolve {
        /// Host and port.
        address: String,
        /// What the resolver said.
        said: String,
    },
    /// The network or the kernel refused.
    #[error("PostgreSQL at {address}: {said}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the kernel said.
        said: String,
    },
    /// Nobody answered, or not to the end.
    #[error("PostgreSQL at {address}: no session within {seconds:.0} s")]
    Timeout {
        /// Host and port.
        address: String,
        /// How long it was waited for.
        seconds: f64,
    },
    /// There was a session, and it gave no answer.
    #[error("PostgreSQL at {address}: no answer within {seconds:.0} s")]
    Silent {
        /// Host and port.
        address: String,
        /// How long it was waited for.
        seconds: f64,
    },
    /// The certificate is not trusted, or there is no TLS where it was demanded.
    #[error("PostgreSQL at {address}: TLS: {said}")]
    Tls {
        /// Host and port.
        address: String,
        /// `expired`, `unknown issuer`, `server does not support TLS`.
        said: String,
    },
    /// The role may not log in like this: password, `pg_hba.conf`, no such role or database.
    #[error("PostgreSQL at {address}: {said}")]
    Login {
        /// Host and port.
        address: String,
        /// What the server said.
        said: String,
    },
    /// SQLSTATE 53300: no slot is free, of the server or of the role or database alone.
    #[error("PostgreSQL at {address}: {said}")]
    TooManyClients {
        /// Host and port.
        address: String,
        /// What the server said.
        said: String,
        /// All slots of the server are taken, not only those of our role or database.
        of_server: bool,
    },
    /// The server answered that it serves nobody: it starts, stops or recovers.
    #[error("PostgreSQL at {address}: {said}")]
    NotServing {
        /// Host and port.
        address: String,
        /// What the server said.
        said: String,
    },
    /// The session itself is not as the server would have it: a setting in `options`, or a pooler that takes none.
    #[error("PostgreSQL at {address}: {said}")]
    Settings {
        /// Host and port.
        address: String,
        /// What the server said.
        said: String,
    },
    /// What answers there speaks another protocol.
    #[error("PostgreSQL at {address}: what answers is not PostgreSQL")]
    NotPostgres {
        /// Host and port.
        address: String,
    },
}

impl ConnectError {
    /// What the operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "check the host in the DSN and the resolver of this host",
            Self::Unreachable { .. } => {
                "check that the server runs, that it listens there, and that no firewall refuses"
            }
            Self::Timeout { .. } | Self::Silent { .. } => {
                "check the network between here and the server, and the server's load"
            }
            Self::Tls { .. } => "check the server's certificate, and sslmode and sslrootcert in the DSN",
            Self::Login { .. } => "check role, password and database in the DSN, and the server's pg_hba.conf",
            Self::TooManyClients { of_server: true, .. } => {
                "find who holds the connections; raise max_connections only after that"
            }
            Self::TooManyClients { .. } => "raise the connection limit of the agent's role or database",
            Self::NotServing { .. } => "look into the server's log: it starts, stops or recovers",
            Self::Settings { .. } => {
                "check options in the DSN; where a pooler answers, name the server behind it, which knows the sessions"
            }
            Self::NotPostgres { .. } => "check host and port in the DSN",
        }
    }

    /// Whether the agent's own credentials or settings are at fault: the server is there, and others may be served well.
    pub const fn is_our_fault(&self) -> bool {
        matches!(self, Self::Login { .. } | Self::Tls { .. } | Self::Settings { .. })
    }

    /// Why nothing is known of the server.
    pub fn reason(&self) -> Reason {
        match self {
            _ if self.is_our_fault() => Reason::Denied(self.to_string()),
            Self::NotPostgres { .. } => Reason::Malformed(self.to_string()),
            _ => Reason::Unreachable(self.to_string()),
        }
    }

    fn of(address: &str, error: &tokio_postgres::Error) -> Self {
        let address = address.to_owned();
        if let Some(said) = error.as_db_error() {
            let (code, routine) = (said.code(), said.routine());
            let said = scrub::database_error(said.message());
            // Limits of a role and of a database have the same code; the text of all of them may be translated.
            let of_server = !matches!(routine, Some("InitializeSessionUserId" | "CheckMyDatabase"));
            return match code.code() {
                "53300" => Self::TooManyClients { address, said, of_server },
                "3D000" | "42501" => Self::Login { address, said },
                code if code.starts_with("28") => Self::Login { address, said },
                // Operator intervention, lack of resources, errors of the system and of the server itself.
                code if ["57", "53", "58", "XX"].iter().any(|class| code.starts_with(class)) => {
                    Self::NotServing { address, said }
                }
                _ => Self::Settings { address, said },
            };
        }
        if let Some(tls) = cause::<rustls::Error>(error) {
            return Self::Tls { address, said: tls_certificate::why_refused(tls) };
        }
        let texts = error.source().map(ToString::to_string).unwrap_or_default();
        match cause::<io::Error>(error) {
            // Not of the kernel, but of the library's reader: the answer is in another language.
            Some(io) if io.raw_os_error().is_none() && io.kind() != io::ErrorKind::UnexpectedEof => {
                Self::NotPostgres { address }
            }
            Some(io) => Self::Unreachable { address, said: network::said(io) },
            // The library has no other mark for these two; what it says is of its own making.
            None if error.to_string().contains("TLS") => Self::Tls { address, said: scrub::text(&texts, 120) },
            None if texts.contains("password") => Self::Login { address, said: scrub::text(&texts, 120) },
            None if error.is_closed() => Self::Unreachable { address, said: "connection closed".into() },
            None => Self::NotPostgres { address },
        }
    }
}

/// The innermost cause of this type; I/O errors wrap those of TLS.
fn cause<E: std::error::Error + 'static>(error: &tokio_postgres::Error) -> Option<&E> {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        if let Some(found) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(found) = found.downcast_ref()
        {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

/// TLS as the DSN demands it; made once, since authorities are read for it.
pub(super) fn connector(dsn: &Dsn) -> MakeRustlsConnect {
    let verifier = match dsn.trust() {
        Trust::Anything => Verifier::new(Demand::Nothing, &[], true),
        Trust::Authority { roots, name: false } => Verifier::new(Demand::Authority, roots, true),
        Trust::Authority { roots, name: true } => Verifier::new(Demand::AuthorityAndName, roots, true),
    };
    // Servers from 17 on ask for the protocol when TLS comes first.
    MakeRustlsConnect::new(verifier.client_config(&[b"postgresql"]))
}

/// Addresses of the server as sockets show them; none for a unix socket.
pub(super) async fn addresses(dsn: &Dsn) -> Result<Vec<SocketAddr>, ConnectError> {
    match dsn.place() {
        Place::Unix { .. } => Ok(Vec::new()),
        Place::Tcp { address: Some(address), port, .. } => Ok(vec![SocketAddr::new(address.to_canonical(), *port)]),
        Place::Tcp { host, port, .. } => network::resolve(host, *port, CONNECT_TIMEOUT)
            .await
            .map_err(|error| ConnectError::Resolve { address: dsn.address(), said: network::said(&error) }),
    }
}

/// Opens a session at the first of these addresses that gives one, within `patience` altogether and within what the
/// DSN allows.
pub(super) async fn open(
    dsn: &Dsn,
    tls: &MakeRustlsConnect,
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<Connection, ConnectError> {
    let patience = dsn.connect_timeout().unwrap_or(patience).min(patience);
    let started = Instant::now();
    let mut tries: Vec<Option<IpAddr>> = addresses.iter().map(|address| Some(address.ip())).collect();
    if matches!(dsn.place(), Place::Unix { .. }) {
        tries.push(None);
    }
    let mut last = None;
    for (index, address) in tries.iter().enumerate() {
        // A first address that swallows everything leaves the others their share.
        let left = patience.saturating_sub(started.elapsed());
        let share = left / u32::try_from(tries.len() - index).unwrap_or(u32::MAX);
        let begun = Instant::now();
        match time::timeout(share, dsn.session_at(*address).connect(tls.clone())).await {
            Ok(Ok((client, connection))) => {
                let driver = tokio::spawn(async move {
                    // How it ended is told to whoever asks the client.
                    let _ = connection.await;
                });
                let seconds = begun.elapsed().as_secs_f64();
                return Ok(Connection { client, driver: Some(driver), seconds, address: *address });
            }
            Ok(Err(error)) => {
                let error = ConnectError::of(&dsn.address(), &error);
                // A server that answers would say the same at its other addresses, and each try takes a slot.
                if !matches!(error, ConnectError::Unreachable { .. }) {
                    return Err(error);
                }
                last = Some(error);
            }
            Err(_) => {
                let seconds = begun.elapsed().as_secs_f64();
                last = Some(ConnectError::Timeout { address: dsn.address(), seconds });
            }
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::Resolve { address: dsn.address(), said: "no address".into() }))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// What a session with a server is refused with that answers the first message with these bytes and hangs up.
    async fn refused_by(answer: &'static [u8], options: &str) -> ConnectError {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let port = listener.local_addr().expect("is bound").port();
        let dsn =
            Dsn::parse(&format!("host=127.0.0.1 port={port} user=app password=hunter2 {options}")).expect("a DSN");
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("accepts");
            let mut first = [0; 512];
            let _ = socket.read(&mut first).await;
            let _ = socket.write_all(answer).await;
        });
        let addresses = addresses(&dsn).await.expect("an address");
        let Err(error) = open(&dsn, &connector(&dsn), &addresses, CONNECT_TIMEOUT).await else {
            panic!("a session with nobody")
        };
        server.await.expect("ends");
        let shown = format!("{error} {error:?} {}", error.advice());
        assert!(!shown.contains("hunter2"), "{shown}");
        error
    }

    /// An ErrorResponse: fields of one letter and a text.
    fn error_response(fields: &[&str]) -> &'static [u8] {
        let body: Vec<u8> = fields.iter().flat_map(|field| field.bytes().chain([0])).chain([0]).collect();
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        [&b"E"[..], &length, &body].concat().leak()
    }

    #[tokio::test]
    async fn each_refusal_is_told_apart() {
        let full = error_response(&["SFATAL", "VFATAL", "C53300", "Msorry, too many clients already", "RInitProcess"]);
        let error = refused_by(full, "sslmode=disable").await;
        assert!(matches!(error, ConnectError::TooManyClients { of_server: true, .. }), "{error:?}");
        assert!(error.to_string().ends_with("sorry, too many clients already"), "{error}");

        let of_role =
            error_response(&["SF", "VFATAL", "C53300", "Mtoo many for role \"a\"", "RInitializeSessionUserId"]);
        let error = refused_by(of_role, "sslmode=disable").await;
        assert!(matches!(error, ConnectError::TooManyClients { of_server: false, .. }), "{error:?}");

        let login = error_response(&["SFATAL", "VFATAL", "C28P01", "Mpassword authentication failed for user \"app\""]);
        let error = refused_by(login, "sslmode=disable").await;
        assert!(matches!(error.reason(), Reason::Denied(_)), "{error:?}");

        let starting = error_response(&["SFATAL", "VFATAL", "C57P03", "Mthe database system is starting up"]);
        let error = refused_by(starting, "sslmode=disable").await;
        assert!(matches!(error, ConnectError::NotServing { .. }), "{error:?}");

        let pooler = error_response(&["SFATAL", "C08P01", "Munsupported startup parameter: options"]);
        let error = refused_by(pooler, "sslmode=disable").await;
        assert!(error.is_our_fault() && error.advice().contains("pooler"), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_no_server_of_ours_is_said_to_be_none() {
        let error = refused_by(b"HTTP/1.1 400 Bad Request\r\n\r\n", "sslmode=disable").await;
        assert!(matches!(error, ConnectError::NotPostgres { .. }), "{error:?}");
        let error = refused_by(b"", "sslmode=disable").await;
        assert!(error.to_string().ends_with("connection closed"), "{error:?}");
        let error = refused_by(b"N", "sslmode=require").await;
        assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
        let error = refused_by(b"Sno TLS at all, but text", "sslmode=require").await;
        assert!(error.to_string().ends_with("TLS: the peer speaks no TLS"), "{error:?}");
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_at_once_and_a_missing_socket_is_not_found() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let port = listener.local_addr().expect("is bound").port();
        drop(listener);
        let dsn = Dsn::parse(&format!("postgres://app@127.0.0.1:{port}/d")).expect("a DSN");
        let addresses = addresses(&dsn).await.expect("an address");
        let error = open(&dsn, &connector(&dsn), &addresses, CONNECT_TIMEOUT).await.err().expect("nobody listens");
        assert_eq!(error.to_string(), format!("PostgreSQL at 127.0.0.1:{port}: connection refused"));
        let dsn = Dsn::parse("user=app host=/no/such").expect("a DSN");
        let error = open(&dsn, &connector(&dsn), &[], CONNECT_TIMEOUT).await.err().expect("nobody listens");
        assert_eq!(error.to_string(), "PostgreSQL at /no/such:5432: not found");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_left_in_time() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        let dsn = Dsn::parse(&format!("postgres://app@{address}/d")).expect("a DSN");
        let error = open(&dsn, &connector(&dsn), &[address], CONNECT_TIMEOUT).await.err().expect("nobody answers");
        assert_eq!(error.to_string(), format!("PostgreSQL at {address}: no session within 6 s"));
    }
}
