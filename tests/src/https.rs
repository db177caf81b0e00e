//! A small client for the collector: HTTP/1.1 over TLS with the collector's authority, one request after another.
//!
//! rustls and a socket are all it needs. A client crate would bring its own pool, retries and redirects, each of
//! which could hide what a scenario asks about.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::stage::StageError;

const TIMEOUT: Duration = Duration::from_secs(10);
/// No answer of the API is larger.
const LARGEST: u64 = 16 << 20;

/// Trusts one authority, and nothing else.
#[derive(Debug, Clone)]
pub struct Client {
    tls: Arc<ClientConfig>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
}

impl Answer {
    /// The first header of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value, StageError> {
        serde_json::from_str(&self.body).map_err(|_| StageError::Malformed {
            what: format!("the body of an answer {}", self.status),
            found: self.body.chars().take(400).collect(),
        })
    }
}

impl Client {
    /// A client that trusts the certificates in `authority` (PEM).
    pub fn trusting(authority: &Path) -> Result<Self, StageError> {
        Ok(Self { tls: Arc::new(builder(authority)?.with_no_client_auth()) })
    }

    /// The same, showing an agent's certificate: PEM files of the chain and the key.
    pub fn as_agent(authority: &Path, chain: &Path, key: &Path) -> Result<Self, StageError> {
        let wrong = |error: &dyn std::fmt::Display| StageError::Malformed {
            what: "an agent's identity".into(),
            found: error.to_string(),
        };
        let chain = CertificateDer::pem_file_iter(chain).map_err(|error| wrong(&error))?;
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(&error))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(&error))?;
        let tls = builder(authority)?.with_client_auth_cert(chain, key).map_err(|error| wrong(&error))?;
        Ok(Self { tls: Arc::new(tls) })
    }

    /// Connects to the server at `address` (`127.0.0.1:41234`).
    pub fn connect(&self, address: &str) -> Result<Connection, StageError> {
        self.open(TcpStream::connect(address).map_err(StageError::system(format!("connect to {address}")))?, address)
    }

    /// The same from another address of loopback, as another host would.
    pub fn connect_from(&self, from: std::net::Ipv4Addr, address: &str) -> Result<Connection, StageError> {
        self.open(socket(address, Some(from), None)?, address)
    }

    /// The same with a socket that takes in so few bytes that whoever writes to it soon waits.
    pub fn connect_narrow(&self, address: &str) -> Result<Connection, StageError> {
        self.open(socket(address, None, Some(4 << 10))?, address)
    }

    fn open(&self, tcp: TcpStream, address: &str) -> Result<Connection, StageError> {
        let failed = || StageError::system(format!("connect to {address}"));
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host)
            .map_err(|_| StageError::Malformed { what: "the collector's address".into(), found: address.into() })?;
        tcp.set_nodelay(true).map_err(failed())?;
        tcp.set_read_timeout(Some(TIMEOUT)).map_err(failed())?;
        tcp.set_write_timeout(Some(TIMEOUT)).map_err(failed())?;
        let tls = ClientConnection::new(self.tls.clone(), name)
            .map_err(|error| StageError::Failed { what: "TLS".into(), said: error.to_string() })?;
        let stream = BufReader::new(StreamOwned::new(tls, tcp));
        Ok(Connection { address: address.to_owned(), stream })
    }

    /// `GET path` on a connection of its own, with a bearer token when there is one.
    pub fn get(&self, address: &str, path: &str, token: Option<&str>) -> Result<Answer, StageError> {
        let authorization = token.map(|it| format!("authorization: Bearer {it}\r\n")).unwrap_or_default();
        self.connect(address)?.ask("GET", path, &format!("{authorization}connection: close\r\n"), &[])
    }
}

/// A connection that is kept between requests.
#[derive(Debug)]
pub struct Connection {
    address: String,
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Connection {
    /// One request and its answer; `headers` are whole lines.
    pub fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<Answer, StageError> {
        let length = body.len();
        self.say(&format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n{headers}\r\n",
            self.address
        ))?;
        self.write(body)?;
        self.answer()
    }

    /// Writes these words as they are: a head of a request, or a part of one.
    pub fn say(&mut self, words: &str) -> Result<(), StageError> {
        self.write(words.as_bytes())
    }

    /// Writes bytes of a body.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        let failed = StageError::system(format!("write to {}", self.address));
        let writer = self.stream.get_mut();
        writer.write_all(bytes).and_then(|()| writer.flush()).map_err(failed)
    }

    /// Reads the next answer.
    pub fn answer(&mut self) -> Result<Answer, StageError> {
        let what = format!("an answer of {}", self.address);
        let answer = read_answer(&mut self.stream).map_err(StageError::system(format!("read {what}")))?;
        answer.ok_or_else(|| StageError::Malformed { what, found: "a cut answer, or no HTTP".into() })
    }

    /// Reads these words, and no others.
    pub fn hears(&mut self, words: &str) -> Result<(), StageError> {
        let what = format!("the words of {}", self.address);
        let mut heard = vec![0; words.len()];
        self.stream.read_exact(&mut heard).map_err(StageError::system(format!("read {what}")))?;
        if heard == words.as_bytes() {
            return Ok(());
        }
        Err(StageError::Malformed { what, found: String::from_utf8_lossy(&heard).into_owned() })
    }

    /// Waits until the server ends it.
    pub fn ended(&mut self, within: Duration) -> Result<(), StageError> {
        let failed = || StageError::system(format!("wait for {} to end the connection", self.address));
        self.stream.get_ref().sock.set_read_timeout(Some(within)).map_err(failed())?;
        match self.stream.read(&mut [0]) {
            Ok(0) => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                Ok(())
            }
            Ok(_) => {
                Err(StageError::Malformed { what: "the end".into(), found: "an answer that nobody asked for".into() })
            }
            Err(error) => Err(failed()(error)),
        }
    }
}

fn builder(authority: &Path) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, StageError> {
    let wrong = |found: String| StageError::Malformed { what: authority.display().to_string(), found };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(authority).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring speaks TLS 1.3");
    Ok(builder.with_root_certificates(roots))
}

/// A connection, without a word of TLS, from another address of loopback (`127.0.0.2`).
pub fn knock(from: std::net::Ipv4Addr, address: &str) -> Result<TcpStream, StageError> {
    socket(address, Some(from), None)
}

/// A connection whose end here takes in few bytes, or has this address. Both are set first: a window once given is not taken
/// back.
fn socket(
    address: &str,
    from: Option<std::net::Ipv4Addr>,
    receive_buffer: Option<usize>,
) -> Result<TcpStream, StageError> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let failed = || StageError::system(format!("connect to {address}"));
    let to: std::net::SocketAddr = address
        .parse()
        .map_err(|_| StageError::Malformed { what: "the collector's address".into(), found: address.into() })?;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None).map_err(|error| failed()(error.into()))?;
    if let Some(bytes) = receive_buffer {
        sockopt::set_socket_recv_buffer_size(&socket, bytes).map_err(|error| failed()(error.into()))?;
    }
    if let Some(from) = from {
        bind(&socket, &std::net::SocketAddrV4::new(from, 0)).map_err(|error| failed()(error.into()))?;
    }
    connect(&socket, &to).map_err(|error| failed()(error.into()))?;
    Ok(socket.into())
}

/// An answer to its end: `None` when it is cut or no HTTP.
fn read_answer(reader: &mut impl BufRead) -> io::Result<Option<Answer>> {
    let first = line(reader)?;
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|it| it.parse().ok());
    let Some(status) = status else { return Ok(None) };
    let mut answer = Answer { status, headers: Vec::new(), body: String::new() };
    loop {
        let line = line(reader)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None if line == "\r\n" => break,
            None => return Ok(None),
        }
    }
    let mut body = Vec::new();
    if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let size = line(reader)?;
            let Ok(size) = u64::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16) else {
                return Ok(None);
            };
            if !take(reader, size, &mut body)? || line(reader)? != "\r\n" {
                return Ok(None);
            }
            if size == 0 {
                break;
            }
        }
    } else {
        let length = answer.header("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
        if !take(reader, length, &mut body)? {
            return Ok(None);
        }
    }
    answer.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(answer))
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(64 << 10).read_line(&mut line)?;
    Ok(line)
}

/// Reads exactly `size` more bytes; `false` when they are not there, or too many.
fn take(reader: &mut impl BufRead, size: u64, body: &mut Vec<u8>) -> io::Result<bool> {
    if size + body.len() as u64 > LARGEST {
        return Ok(false);
    }
    Ok(reader.take(size).read_to_end(body)? as u64 == size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Answer> {
        read_answer(&mut text.as_bytes()).expect("memory can be read")
    }

    #[test]
    fn both_ways_to_say_where_a_body_ends_are_read() {
        let counted = parse("HTTP/1.1 200 OK\r\nX-Request-Id: a\r\nContent-Length: 2\r\n\r\nok!").expect("whole");
        assert_eq!((counted.status, counted.body.as_str(), counted.header("x-request-id")), (200, "ok", Some("a")));
        let chunks =
            "HTTP/1.1 503 Service Unavailable\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n1;x\r\n!\r\n0\r\n\r\n";
        let chunked = parse(chunks).expect("whole");
        assert_eq!((chunked.status, chunked.body.as_str()), (503, "ok!"));
    }

    #[test]
    fn a_cut_answer_is_no_answer() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nok";
        let counted = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok";
        for text in ["", "HTTP/1.1 200 OK\r\n", counted, chunked, "SSH-2.0\r\n\r\n"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
