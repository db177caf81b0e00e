//! A connection to a receiver: to no link-local address, and over TLS to nobody whose certificate is not for the configured name.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::NotifyError;

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Place {
    /// Connects to the first of its addresses that answers.
    pub(super) async fn dial(&self) -> Result<TcpStream, NotifyError> {
        let connect = |source| NotifyError::Connect { address: self.to_string(), source };
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(connect)?;
        let (refused, places): (Vec<_>, Vec<_>) = found.partition(|it| is_link_local(it.ip()));
        if places.is_empty() && !refused.is_empty() {
            let why = "its name leads to a link-local address, where no receiver is";
            return Err(connect(io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        let stream = TcpStream::connect(&*places).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        Ok(stream)
    }
}

/// 169.254.0.0/16 (RFC 3927) and fe80::/10 (RFC 4291), in either family's form.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(it) => it.is_link_local(),
        IpAddr::V6(it) => it.is_unicast_link_local(),
    }
}

/// Why no TLS session can be configured so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The file of certificates holds none, or one that cannot be read.
    #[error("the file of certificates holds no readable certificate")]
    Certificates,
    /// The host is not one that a certificate can be for.
    #[error("`{0}` is neither a host name nor an address")]
    Host(String),
    /// Nor is the name that is given for it.
    #[error("`{0}` is neither a host name nor an address")]
    ServerName(String),
    /// The certificate that is to be shown, or its key, cannot be read, or they do not belong together.
    #[error("certificate and key cannot be read, or do not belong together")]
    Identity,
}

impl TlsError {
    /// The key that it is about, beside that of the place.
    pub const fn key(&self) -> Option<&'static str> {
        match self {
            Self::Certificates => Some("ca_file"),
            Self::Host(_) => None,
            Self::ServerName(_) => Some("server_name"),
            Self::Identity => Some("certificate_file"),
        }
    }

    /// What the operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Certificates => "give a PEM file with the authority that signed the receiver's certificate",
            Self::Host(_) => "correct the host",
            Self::ServerName(_) => "write the name that the receiver's certificate is for",
            Self::Identity => "give PEM files: the certificate with those that signed it, and its own key",
        }
    }
}

/// Whose certificates are believed, and which one is shown.
#[derive(Clone, Copy, Default)]
pub struct Trust<'a> {
    /// PEM of authorities beside the public ones.
    pub authorities: Option<&'a [u8]>,
    /// The name in the certificate, where that is not the host's.
    pub server_name: Option<&'a str>,
    /// PEM of a certificate to show, and of its key.
    pub identity: Option<(&'a [u8], &'a [u8])>,
}

/// How TLS sessions with one receiver are made.
#[derive(Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    pub(super) fn new(host: &str, trust: &Trust<'_>, protocols: &[&[u8]]) -> Result<Self, TlsError> {
        let name = match trust.server_name {
            Some(name) => ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))?,
            None => ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Host(host.to_owned()))?,
        };
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(pem) = trust.authorities {
            let mut added = 0;
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|_| TlsError::Certificates)?;
                roots.add(certificate).map_err(|_| TlsError::Certificates)?;
                added += 1;
            }
            if added == 0 {
                return Err(TlsError::Certificates);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_root_certificates(roots);
        let mut config = match trust.identity {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
                let chain = chain.ok().filter(|it| !it.is_empty()).ok_or(TlsError::Identity)?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Identity)?;
                config.with_client_auth_cert(chain, key).map_err(|_| TlsError::Identity)?
            }
        };
        config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
        Ok(Self { config: Arc::new(config), name })
    }

    pub(super) async fn connect<S>(&self, stream: S, place: &Place) -> Result<TlsStream<S>, NotifyError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connected = TlsConnector::from(Arc::clone(&self.config)).connect(self.name.clone(), stream).await;
        connected.map_err(|source| NotifyError::Handshake { address: place.to_string(), source })
    }
}
