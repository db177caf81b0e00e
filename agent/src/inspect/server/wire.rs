//! What carries a protocol that is spoken by hand: TCP, TLS over it, or a unix socket.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ConnectError;
use crate::inspect::{network, tls_certificate};

/// Whatever carries the protocol.
pub(in crate::inspect) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Connects over TCP, and shakes hands with `host` where TLS is wanted; gives our end too. `server` is named in errors.
pub(in crate::inspect) async fn connect(
    server: &str,
    host: &str,
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<(Box<dyn Wire>, Option<SocketAddr>), ConnectError> {
    let stream = TcpStream::connect(address).await.map_err(|error| unreachable(server, &error))?;
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr().ok().map(|it| SocketAddr::new(it.ip().to_canonical(), it.port()));
    let Some(tls) = tls else { return Ok((Box::new(stream), local)) };
    let failed = |said: String| ConnectError::Tls { server: server.to_owned(), said };
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|_| failed("not a name that a certificate can have".to_owned()))?;
    match TlsConnector::from(Arc::clone(tls)).connect(name, stream).await {
        Ok(stream) => Ok((Box::new(stream), local)),
        // What the kernel says is no matter of trust.
        Err(error) if is_of_tls(&error) => Err(failed(tls_certificate::why_handshake_failed(&error))),
        Err(error) => Err(unreachable(server, &error)),
    }
}

/// The kernel refused.
pub(in crate::inspect) fn unreachable(server: &str, error: &io::Error) -> ConnectError {
    ConnectError::Unreachable { server: server.to_owned(), said: network::said(error) }
}

/// Whether TLS ended it: with version 1.3 a server that does not like our certificate says so only after the handshake.
pub(in crate::inspect) fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|it| it.is::<rustls::Error>())
}
