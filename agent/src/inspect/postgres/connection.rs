//! The agent's one connection to a server: opened in bounded time, refused in words.

use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, SimpleQueryMessage, SimpleQueryRow, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dsn::{Dsn, Place, Trust};
use crate::inspect::network;
use crate::inspect::server::kept::{self, ANSWER_TIMEOUT, AskError};
use crate::inspect::server::{ConnectError, Engine, attempts, place};
use crate::inspect::tls_certificate::{self, Demand, Verifier};
use crate::scrub;

/// What an orderly farewell may take before the connection is cut.
const FAREWELL: Duration = Duration::from_secs(5);

/// An open session. One that is dropped sends its farewell and is closed.
pub(in crate::inspect) struct Connection {
    client: Client,
    driver: Option<JoinHandle<()>>,
    /// From the first SYN to a ready session.
    pub(in crate::inspect) seconds: f64,
    /// The address that answered; `None` over a unix socket.
    pub(in crate::inspect) address: Option<IpAddr>,
}

impl Connection {
    /// Whether the server or the network ended it.
    pub(in crate::inspect) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Has a statement parsed and planned, once for all looks.
    pub(in crate::inspect) async fn prepare(&self, statement: &str) -> Result<Statement, AskError> {
        answer(self.client.prepare(statement)).await
    }

    /// Asks by the simple protocol, which is all that a pooler's console speaks: rows only.
    pub(in crate::inspect) async fn ask_console(&self, command: &str) -> Result<Vec<SimpleQueryRow>, AskError> {
        let messages = answer(self.client.simple_query(command)).await?;
        let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
        Ok(messages.into_iter().filter_map(row).collect())
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

impl kept::Session for Connection {
    fn is_closed(&self) -> bool {
        self.is_closed()
    }

    fn seconds(&self) -> f64 {
        self.seconds
    }

    fn address(&self) -> Option<IpAddr> {
        self.address
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
        Ok(answer) => answer.map_err(ask_error),
        Err(_) => Err(AskError::Silent),
    }
}

/// What the library's error means to an open session.
fn ask_error(error: tokio_postgres::Error) -> AskError {
    match error.as_db_error() {
        // 57P01 to 57P05: shut down, crashed, database dropped, idle too long. The session ends with them.
        Some(said) if said.code().code().starts_with("57P") => {
            AskError::Closed(Some(scrub::database_error(said.message())))
        }
        Some(said) => AskError::Refused {
            denied: *said.code() == SqlState::INSUFFICIENT_PRIVILEGE,
            message: scrub::database_error(said.message()),
        },
        None if error.is_closed() || cause::<io::Error>(&error).is_some() => AskError::Closed(None),
        None => AskError::Refused { denied: false, message: scrub::text(&error.to_string(), 120) },
    }
}

/// What the library's error means.
fn failure(dsn: &Dsn, error: &tokio_postgres::Error) -> ConnectError {
    let server = dsn.named();
    if let Some(said) = error.as_db_error() {
        let (code, routine) = (said.code(), said.routine());
        let said = scrub::database_error(said.message());
        if dsn.engine() == Engine::PgBouncer {
            return pooler_refusal(server, said);
        }
        // Limits of a role and of a database have the same code; the text of all of them may be translated.
        let of_server = !matches!(routine, Some("InitializeSessionUserId" | "CheckMyDatabase"));
        return match code.code() {
            "53300" => ConnectError::TooManyClients { server, said, of_server },
            "3D000" | "42501" => ConnectError::Login { server, said },
            code if code.starts_with("28") => ConnectError::Login { server, said },
            // Operator intervention, lack of resources, errors of the system and of the server itself.
            code if ["57", "53", "58", "XX"].iter().any(|class| code.starts_with(class)) => {
                ConnectError::NotServing { server, said }
            }
            _ => ConnectError::Settings { server, said },
        };
    }
    if let Some(tls) = cause::<rustls::Error>(error) {
        return ConnectError::Tls { server, said: tls_certificate::why_refused(tls) };
    }
    let texts = error.source().map(ToString::to_string).unwrap_or_default();
    match cause::<io::Error>(error) {
        // Not of the kernel, but of the library's reader: the answer is in another language.
        Some(io) if io.raw_os_error().is_none() && io.kind() != io::ErrorKind::UnexpectedEof => {
            ConnectError::Foreign { server, engine: dsn.engine() }
        }
        Some(io) => ConnectError::Unreachable { server, said: network::said(io) },
        // The library has no other mark for these two; what it says is of its own making.
        None if error.to_string().contains("TLS") => ConnectError::Tls { server, said: scrub::text(&texts, 120) },
        None if texts.contains("password") => ConnectError::Login { server, said: scrub::text(&texts, 120) },
        None if error.is_closed() => ConnectError::Unreachable { server, said: "connection closed".into() },
        None => ConnectError::Foreign { server, engine: dsn.engine() },
    }
}

/// PgBouncer has one code for all of them, but never translates its texts.
fn pooler_refusal(server: String, said: String) -> ConnectError {
    let says = |words: &[&str]| words.iter().any(|it| said.contains(it));
    if says(&["no more connections allowed"]) {
        ConnectError::TooManyClients { server, said, of_server: true }
    } else if says(&["shut", "paused", "suspended"]) {
        ConnectError::NotServing { server, said }
    } else if says(&["startup parameter"]) {
        ConnectError::Settings { server, said }
    } else {
        ConnectError::Login { server, said }
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
pub(in crate::inspect) fn connector(dsn: &Dsn) -> MakeRustlsConnect {
    let verifier = match dsn.trust() {
        Trust::Anything => Verifier::new(Demand::Nothing, &[], true),
        Trust::Authority { roots, name: false } => Verifier::new(Demand::Authority, roots, true),
        Trust::Authority { roots, name: true } => Verifier::new(Demand::AuthorityAndName, roots, true),
    };
    // Servers from 17 on ask for the protocol when TLS comes first.
    MakeRustlsConnect::new(verifier.client_config(&[b"postgresql"]))
}

/// Addresses of the server as sockets show them; none for a unix socket.
pub(in crate::inspect) async fn addresses(dsn: &Dsn) -> Result<Vec<SocketAddr>, ConnectError> {
    match dsn.place() {
        Place::Unix { .. } => Ok(Vec::new()),
        Place::Tcp { address: Some(address), port, .. } => Ok(vec![SocketAddr::new(address.to_canonical(), *port)]),
        Place::Tcp { host, port, .. } => place::resolve(host, *port, dsn.named()).await,
    }
}

/// Opens a session at the first of these addresses that gives one, within `patience` altogether and within what the
/// DSN allows.
pub(in crate::inspect) async fn open(
    dsn: &Dsn,
    tls: &MakeRustlsConnect,
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<Connection, ConnectError> {
    let patience = dsn.connect_timeout().unwrap_or(patience).min(patience);
    let mut tries: Vec<Option<IpAddr>> = addresses.iter().map(|address| Some(address.ip())).collect();
    if matches!(dsn.place(), Place::Unix { .. }) {
        tries.push(None);
    }
    attempts::first(&dsn.named(), &tries, patience, |address| open_at(dsn, tls, address)).await
}

async fn open_at(dsn: &Dsn, tls: &MakeRustlsConnect, address: Option<IpAddr>) -> Result<Connection, ConnectError> {
    let begun = Instant::now();
    let opened = dsn.session_at(address).connect(tls.clone()).await;
    let (client, connection) = opened.map_err(|error| failure(dsn, &error))?;
    let driver = tokio::spawn(async move {
        // How it ended is told to whoever asks the client.
        let _ = connection.await;
    });
    Ok(Connection { client, driver: Some(driver), seconds: begun.elapsed().as_secs_f64(), address })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::inspect::Reason;
    use crate::inspect::server::kept::CONNECT_TIMEOUT;

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
        assert!(matches!(error.reason(), Reason::Refused(_) | Reason::NotGranted(_)), "{error:?}");

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
        assert!(matches!(error, ConnectError::Foreign { .. }), "{error:?}");
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
