//! The agent's one connection to a server: opened in bounded time, refused in words, and asked one thing at a time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{self, Instant};

use super::dsn::Dsn;
use super::resp::{self, MAX_REPLY, Reply, Unreadable};
use crate::inspect::server::kept::{self, ANSWER_TIMEOUT, AskError};
use crate::inspect::server::place::Place;
use crate::inspect::server::wire::{self, Wire};
use crate::inspect::server::{ConnectError, Engine, attempts};
use crate::inspect::{Reason, tls_certificate};
use crate::scrub;

/// How our connection is called in the server's list.
const NAME: &str = "tickbird-agent";
/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

/// Begins what is said of a session that TLS ended.
const TLS: &str = "TLS: ";

/// An open connection that the server has let in.
pub(super) struct Connection {
    /// `None` once an answer failed to come: what is left on the wire could be taken for the next one.
    wire: Option<Box<dyn Wire>>,
    seconds: f64,
    address: Option<IpAddr>,
    /// Our end, of TCP.
    pub(super) local: Option<SocketAddr>,
    /// The server's number of it, where we may ask for that.
    pub(super) id: Option<u64>,
    /// What `CONFIG GET maxclients` gave, where it had to be asked.
    pub(super) configured: Option<Result<u32, Reason>>,
}

/// Why there was no reply.
enum Silence {
    Wire(io::Error),
    Unreadable(Unreadable),
}

impl Connection {
    /// Asks one command. An error of the server is [`AskError::Refused`], whose text names the command and no argument.
    pub(super) async fn ask(&mut self, words: &[&str]) -> Result<Reply, AskError> {
        let Some(wire) = &mut self.wire else { return Err(AskError::Closed(None)) };
        let reply = match time::timeout(ANSWER_TIMEOUT, exchange(wire.as_mut(), words)).await {
            Ok(Ok(Reply::Error(said))) => return Err(refusal(&said, words)),
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(Silence::Wire(error))) if wire::is_of_tls(&error) => {
                AskError::Closed(Some(format!("{TLS}{}", tls_certificate::why_handshake_failed(&error))))
            }
            Ok(Err(Silence::Wire(_))) => AskError::Closed(None),
            Ok(Err(Silence::Unreadable(Unreadable::Foreign))) => {
                AskError::Closed(Some("an answer that is no RESP".into()))
            }
            Ok(Err(Silence::Unreadable(Unreadable::TooLong))) => {
                AskError::Closed(Some(format!("an answer of more than {} MiB", MAX_REPLY >> 20)))
            }
            Err(_) => AskError::Silent,
        };
        self.wire = None;
        Err(reply)
    }
}

impl kept::Session for Connection {
    fn is_closed(&self) -> bool {
        self.wire.is_none()
    }

    fn seconds(&self) -> f64 {
        self.seconds
    }

    fn address(&self) -> Option<IpAddr> {
        self.address
    }
}

/// Sends one command and reads one reply.
async fn exchange(wire: &mut dyn Wire, words: &[&str]) -> Result<Reply, Silence> {
    let sent = wire.write_all(&resp::command(words)).await;
    if sent.is_ok() {
        wire.flush().await.map_err(Silence::Wire)?;
    }
    // A server that is full says so and hangs up before it is asked: then nothing can be sent, and there is an answer.
    let mut bytes = Vec::new();
    loop {
        if let Some((reply, _)) = resp::read(&bytes).map_err(Silence::Unreadable)? {
            return Ok(reply);
        }
        if bytes.len() > MAX_REPLY + CHUNK {
            return Err(Silence::Unreadable(Unreadable::TooLong));
        }
        bytes.reserve(CHUNK);
        match wire.read_buf(&mut bytes).await {
            Ok(0) => return Err(Silence::Wire(sent.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()))),
            Ok(_) => (),
            Err(error) => return Err(Silence::Wire(error)),
        }
    }
}

/// What `NOPERM` means.
const NO_RIGHT: &str = "the user has no right to it";

/// `NOPERM`, `NOAUTH` and their kin: who asks is at fault.
fn is_denial(said: &str) -> bool {
    ["NOPERM", "NOAUTH", "WRONGPASS", "DENIED"].iter().any(|kind| said.starts_with(kind))
}

fn refusal(said: &str, words: &[&str]) -> AskError {
    let message = match said.starts_with("NOPERM") {
        true => format!("{}: {NO_RIGHT}", command_of(words)),
        false => scrub::database_error(said),
    };
    AskError::Refused { denied: is_denial(said), message }
}

/// `CLIENT LIST`, `AUTH`: never an argument.
fn command_of(words: &[&str]) -> String {
    let has_second = matches!(words.first(), Some(&("CLIENT" | "CONFIG")));
    words.iter().take(if has_second { 2 } else { 1 }).copied().collect::<Vec<_>>().join(" ")
}

/// Opens a connection at the first of these addresses that lets us in, within `patience` altogether.
pub(super) async fn open(
    dsn: &Dsn,
    tls: Option<&Arc<ClientConfig>>,
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<Connection, ConnectError> {
    let tries: Vec<Option<SocketAddr>> = match dsn.place() {
        Place::Unix(_) => vec![None],
        Place::Tcp { .. } => addresses.iter().copied().map(Some).collect(),
    };
    attempts::first(&dsn.named(), &tries, patience, |address| open_at(dsn, tls, address)).await
}

async fn open_at(
    dsn: &Dsn,
    tls: Option<&Arc<ClientConfig>>,
    address: Option<SocketAddr>,
) -> Result<Connection, ConnectError> {
    let (begun, server) = (Instant::now(), dsn.named());
    let (wire, local): (Box<dyn Wire>, _) = match (dsn.place(), address) {
        (Place::Unix(path), _) => {
            let stream = UnixStream::connect(path).await.map_err(|error| wire::unreachable(&server, &error))?;
            (Box::new(stream), None)
        }
        (Place::Tcp { host, .. }, Some(address)) => wire::connect(&server, host, address, tls).await?,
        (Place::Tcp { .. }, None) => return Err(wire::unreachable(&server, &io::ErrorKind::NotFound.into())),
    };
    let address = address.map(|it| it.ip());
    let mut connection = Connection { wire: Some(wire), seconds: 0.0, address, local, id: None, configured: None };
    greet(dsn, &mut connection).await?;
    connection.seconds = begun.elapsed().as_secs_f64();
    Ok(connection)
}

/// Authentication, our name and our number. Only the first is needed: a user may have no right to the others.
async fn greet(dsn: &Dsn, connection: &mut Connection) -> Result<(), ConnectError> {
    if let Some(credentials) = dsn.credentials() {
        let words: Vec<&str> = std::iter::once("AUTH").chain(credentials).collect();
        if let Err(error) = connection.ask(&words).await {
            return Err(failure(dsn, error));
        }
    }
    for words in [&["CLIENT", "SETNAME", NAME][..], &["CLIENT", "ID"]] {
        match connection.ask(words).await {
            Ok(Reply::Number(id)) => connection.id = u64::try_from(id).ok(),
            Ok(_) => (),
            Err(AskError::Refused { message, .. }) if is_none_of_our_rights(&message) => (),
            Err(error) => return Err(failure(dsn, error)),
        }
    }
    Ok(())
}

/// No right to the command, or a server that has no such command.
fn is_none_of_our_rights(message: &str) -> bool {
    message.ends_with(NO_RIGHT) || message.to_ascii_lowercase().contains("unknown")
}

/// What the server said instead of letting us in.
fn failure(dsn: &Dsn, error: AskError) -> ConnectError {
    let server = dsn.named();
    let said = match error {
        AskError::Silent => return ConnectError::Silent { server, seconds: ANSWER_TIMEOUT.as_secs_f64() },
        AskError::Closed(None) => return ConnectError::Unreachable { server, said: "connection closed".into() },
        AskError::Closed(Some(said)) => {
            return match said.strip_prefix(TLS) {
                Some(said) => ConnectError::Tls { server, said: said.to_owned() },
                None => ConnectError::Foreign { server, engine: Engine::Redis },
            };
        }
        AskError::Refused { message, .. } => message,
    };
    let says = |words: &[&str]| words.iter().any(|it| said.contains(it));
    if says(&["max number of clients"]) {
        ConnectError::TooManyClients { server, said, of_server: true }
    } else if says(&["LOADING", "MASTERDOWN", "BUSY", "CLUSTERDOWN", "TRYAGAIN"]) {
        ConnectError::NotServing { server, said }
    } else {
        ConnectError::Login { server, said }
    }
}
