//! A small client for the collector's API: one request on one connection, over TLS with the collector's authority.
//!
//! rustls and a socket are all it needs. A client crate would bring its own pool, retries and redirects, each of
//! which could hide what a scenario asks about.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
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
        let wrong = |found: String| StageError::Malformed { what: authority.display().to_string(), found };
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(authority).map_err(|error| wrong(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring speaks TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls) })
    }

    /// `GET path` of the server at `address` (`127.0.0.1:41234`), with a bearer token when there is one.
    pub fn get(&self, address: &str, path: &str, token: Option<&str>) -> Result<Answer, StageError> {
        let authorization = token.map(|it| format!("authorization: Bearer {it}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{authorization}connection: close\r\n\r\n");
        let failed = || StageError::system(format!("get https://{address}{path}"));
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host)
            .map_err(|_| StageError::Malformed { what: "the collector's address".into(), found: address.into() })?;
        let tcp = TcpStream::connect(address).map_err(failed())?;
        tcp.set_read_timeout(Some(TIMEOUT)).map_err(failed())?;
        tcp.set_write_timeout(Some(TIMEOUT)).map_err(failed())?;
        let tls = ClientConnection::new(self.tls.clone(), name)
            .map_err(|error| StageError::Failed { what: "TLS".into(), said: error.to_string() })?;
        let mut stream = StreamOwned::new(tls, tcp);
        stream.write_all(request.as_bytes()).map_err(failed())?;
        let mut bytes = Vec::new();
        match stream.take(LARGEST).read_to_end(&mut bytes) {
            Ok(_) => (),
            // A server that ends without close_notify: the length below says whether something is missing.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => (),
            Err(error) => return Err(failed()(error)),
        }
        let text = String::from_utf8_lossy(&bytes);
        parse(&text).ok_or_else(|| StageError::Malformed {
            what: format!("the answer of https://{address}{path}"),
            found: text.chars().take(400).collect(),
        })
    }
}

/// An answer to the end: `None` when it is cut or no HTTP.
fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer { status, headers, body: body.to_owned() };
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = unchunk(body)?;
    } else if let Some(length) = answer.header("content-length") {
        let length: usize = length.parse().ok()?;
        answer.body = body.get(..length)?.to_owned();
    }
    Some(answer)
}

fn unchunk(mut text: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = text.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(rest.get(..size)?);
        text = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_say_where_a_body_ends_are_read() {
        let counted = parse("HTTP/1.1 200 OK\r\nX-Request-Id: a\r\nContent-Length: 2\r\n\r\nok").expect("whole");
        assert_eq!((counted.status, counted.body.as_str(), counted.header("x-request-id")), (200, "ok", Some("a")));
        let chunks =
            "HTTP/1.1 503 Service Unavailable\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n1;x\r\n!\r\n0\r\n\r\n";
        let chunked = parse(chunks).expect("whole");
        assert_eq!((chunked.status, chunked.body.as_str()), (503, "ok!"));
    }

    #[test]
    fn a_cut_answer_is_no_answer() {
        for text in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", "SSH-2.0\r\n\r\n"] {
            assert!(parse(text).is_none(), "{text}");
        }
        assert_eq!(unchunk("5\r\nok"), None);
    }
}
