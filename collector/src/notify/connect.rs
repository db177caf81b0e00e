//! A connection to a receiver: to no link-local address, and over TLS to nobody whose certificate is not for the configured name.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::NotifyError;

/// An address has so much time for itself before the next one is tried beside it (RFC 8305, section 8).
const STAGGER: Duration = Duration::from_millis(250);

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
        let stream = first_of(allowed(found).map_err(connect)?).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        Ok(stream)
    }
}

/// The addresses of a name that a receiver may have, in the order of the resolver.
fn allowed(found: impl Iterator<Item = SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    let (refused, places): (Vec<_>, Vec<_>) = found.partition(|it| is_link_local(it.ip()));
    match (places.is_empty(), refused.is_empty()) {
        (false, _) => Ok(places),
        (true, false) => {
            let why = "its name leads to a link-local address, where no receiver is";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
        (true, true) => Err(io::Error::new(io::ErrorKind::NotFound, "its name leads to no address")),
    }
}

/// Tries one address after another, the next one as soon as one says no and at the latest after [`STAGGER`], and takes the first
/// that answers. One after the other alone, an address that nobody answers at would use up the time of all.
async fn first_of(places: Vec<SocketAddr>) -> io::Result<TcpStream> {
    // Those that are too late end with it.
    let mut attempts = JoinSet::new();
    let mut places = places.into_iter();
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    loop {
        let is_last = places.next().map(|place| _ = attempts.spawn(TcpStream::connect(place))).is_none();
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(said))) => error = said,
                Some(Err(_)) => (), // a panic is written down where it happens
                None => return Err(error),
            },
            () = tokio::time::sleep(STAGGER), if !is_last => (),
        }
    }
}

/// 169.254.0.0/16 (RFC 3927) and fe80::/10 (RFC 4291), in either family's form, also behind NAT64 (64:ff9b::/96, RFC 6052), 6to4
/// (2002::/16, RFC 3056) and as an IPv4-compatible address (::/96, RFC 4291); and where clouds answer beside them: fd00:ec2::254 and
/// 100.100.100.200.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(it) => it.is_link_local() || it == Ipv4Addr::new(100, 100, 100, 200),
        IpAddr::V6(it) => {
            let embedded = match it.segments() {
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => Some([high, low]),
                [0x2002, high, low, ..] => Some([high, low]),
                _ => None,
            };
            let embedded = embedded.map(|[high, low]| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
            it.is_unicast_link_local()
                || it == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
                || embedded.is_some_and(|it| is_link_local(it.into()))
        }
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

/// How TLS sessions with one receiver are made. Equal to another that was made of the same files and names.
#[derive(Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    /// Of what it was made of.
    digest: [u8; 32],
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.digest) == (&other.name, other.digest)
    }
}

impl Trust<'_> {
    fn digest(&self) -> [u8; 32] {
        let (chain, key) = self.identity.unzip();
        let mut digest = Sha256::new();
        for part in [self.authorities, chain, key] {
            let length = part.map_or(u64::MAX, |it| it.len() as u64);
            digest.update(length.to_be_bytes());
            digest.update(part.unwrap_or_default());
        }
        digest.finalize().into()
    }
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
        Ok(Self { config: Arc::new(config), name, digest: trust.digest() })
    }

    pub(super) async fn connect<S>(&self, stream: S, place: &Place) -> Result<TlsStream<S>, NotifyError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connected = TlsConnector::from(Arc::clone(&self.config)).connect(self.name.clone(), stream).await;
        connected.map_err(|source| NotifyError::Handshake { address: place.to_string(), source })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// A listener whose queue is full, with what fills it: whoever comes then is not answered at all.
    async fn mute(address: &str) -> (TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(address.parse().expect("an address")).expect("binds");
        let listener = socket.listen(0).expect("listens");
        let (place, mut filling) = (listener.local_addr().expect("has one"), Vec::new());
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(place)).await {
            filling.push(stream.expect("connects"));
            assert!(filling.len() < 100, "its queue never fills");
        }
        (listener, filling)
    }

    #[test]
    fn a_link_local_address_is_known_in_every_disguise() {
        let is = |address: &str| is_link_local(address.parse().expect("an address"));
        for address in [
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fd00:ec2::254",
            "100.100.100.200",
        ] {
            assert!(is(address), "{address}");
        }
        for address in ["10.0.0.5", "::1", "::", "64:ff9b::a00:5", "2002:a00:5::1", "fd00:ec2::253", "100.100.100.201"]
        {
            assert!(!is(address), "{address}");
        }
    }

    #[tokio::test]
    async fn an_address_that_nobody_answers_at_hides_no_other() {
        let (dead, _filling) = mute("127.0.0.1:0").await;
        let dead = dead.local_addr().expect("has one");
        let well = TcpListener::bind("127.0.0.2:0").await.expect("binds");
        let well = well.local_addr().expect("has one");
        let nobody = TcpListener::bind("127.0.0.3:0").await.expect("binds").local_addr().expect("has one");
        let reached = async |places: &[SocketAddr]| {
            let within = Duration::from_secs(5);
            let stream = tokio::time::timeout(within, first_of(places.to_vec())).await.expect("in time")?;
            stream.peer_addr()
        };
        assert_eq!(reached(&[dead, well]).await.expect("reached"), well);
        assert_eq!(reached(&[nobody, dead, dead, well]).await.expect("reached"), well);
        assert_eq!(reached(&[well, dead]).await.expect("reached"), well);
        assert_eq!(reached(&[nobody, nobody]).await.expect_err("nobody").kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(reached(&[]).await.expect_err("no address").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_name_that_leads_to_link_local_addresses_leads_nowhere() {
        let judge = |found: &[&str]| {
            let found = found.iter().map(|it| SocketAddr::new(it.parse().expect("an address"), 443));
            allowed(found).map(|it| it.iter().map(|it| it.ip().to_string()).collect::<Vec<_>>())
        };
        for address in ["169.254.169.254", "169.254.0.1", "fe80::1", "febf::1", "::ffff:169.254.169.254"] {
            let error = judge(&[address]).expect_err(address);
            assert_eq!(error.to_string(), "its name leads to a link-local address, where no receiver is", "{address}");
        }
        for address in ["169.253.255.255", "192.0.2.1", "127.0.0.1", "fec0::1", "2001:db8::1", "::ffff:192.0.2.1"] {
            assert_eq!(judge(&[address]).expect("allowed"), [address]);
        }
        let mixed = ["fe80::1", "2001:db8::1", "169.254.169.254", "192.0.2.1", "::ffff:169.254.1.1"];
        assert_eq!(judge(&mixed).expect("some are allowed"), ["2001:db8::1", "192.0.2.1"]);
        assert_eq!(judge(&[]).expect_err("nothing").to_string(), "its name leads to no address");
    }
}
