//! What no agent does: a body that breaks off, a connection without a word. Written by hand, for the agent's code cannot.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::ClientConfig;
use tickbird_agent::ship::Origin;
use tickbird_shared::protocol::RECORDS_PATH;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connection with an agent's certificate, and nothing said on it.
pub(crate) async fn connect(
    origin: &Origin,
    tls: Arc<ClientConfig>,
    from: Option<IpAddr>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut addresses = tokio::net::lookup_host((origin.host(), origin.port())).await?;
    let address = addresses.next().ok_or(std::io::ErrorKind::NotFound)?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    let stream = socket.connect(address).await?;
    TlsConnector::from(tls).connect(origin.server_name(), stream).await
}

/// Announces `body` whole, sends half of it and is gone.
pub(crate) async fn break_off(mut stream: TlsStream<TcpStream>, origin: &Origin, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "POST {RECORDS_PATH} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-encoding: zstd\r\n\
         content-length: {}\r\n\r\n",
        origin.authority(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body[..body.len() / 2]).await?;
    stream.flush().await
}

/// Says nothing until the other end is tired of it.
pub(crate) async fn stay(mut stream: TlsStream<TcpStream>) {
    // However it ends, it has ended.
    let _ = stream.read(&mut [0]).await;
}
