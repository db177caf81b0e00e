//! Certificates of the servers that are inspected: read, trusted or refused, and remembered either way.
//!
//! The agent's own connection to its collector trusts one authority and has no part in this.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::scrub;

/// Debian's bundle, in the place that most distributions and images have adopted.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// No bundle of authorities is longer; a bigger file is something else.
const MAX_BUNDLE: u64 = 4 * 1024 * 1024;

/// Most bytes that are shown of a subject.
const MAX_SUBJECT: usize = 120;

/// A server's certificate as it was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The first alternative name; without one, the subject.
    pub subject: Arc<str>,
    /// End of its life.
    pub not_after: Timestamp,
    /// Since when it is valid.
    pub not_before: Timestamp,
    /// Why it was not trusted, if so: `unknown issuer`, `not valid for this name`, `expired`.
    pub refused: Option<Arc<str>>,
}

/// What a certificate (DER) says of its subject and life; `None` when it is none.
pub fn read(der: &[u8]) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative.and_then(|names| names.value.general_names.iter().find_map(name));
    let subject = alternative.unwrap_or_else(|| certificate.subject().to_string());
    let moment = |seconds| Timestamp::from_second(seconds).ok();
    Some(Certificate {
        subject: scrub::text(&subject, MAX_SUBJECT).into(),
        not_after: moment(certificate.validity().not_after.timestamp())?,
        not_before: moment(certificate.validity().not_before.timestamp())?,
        refused: None,
    })
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(*octets).ok().map(|it| std::net::Ipv4Addr::from(it).to_string()),
            _ => <[u8; 16]>::try_from(*octets).ok().map(|it| std::net::Ipv6Addr::from(it).to_string()),
        },
        _ => None,
    }
}

/// The certificates of a PEM file, at least one. Reads a regular file of at most 4 MiB.
pub fn read_file(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    bundle(path).map(|(_, certificates)| certificates)
}

/// A PEM file with at least one certificate, all of them usable, as it stands. Of at most 4 MiB.
#[cfg(feature = "mysql")]
pub fn read_pem(path: &Path) -> io::Result<Vec<u8>> {
    bundle(path).map(|(pem, _)| pem)
}

fn bundle(path: &Path) -> io::Result<(Vec<u8>, Vec<CertificateDer<'static>>)> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut pem = Vec::new();
    file.take(MAX_BUNDLE).read_to_end(&mut pem)?;
    let wrong = |text: &'static str| io::Error::new(io::ErrorKind::InvalidData, text);
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|_| wrong("a PEM block in it is damaged"))?;
    if certificates.is_empty() {
        return Err(wrong("no PEM certificate in it"));
    }
    let mut usable = RootCertStore::empty();
    if certificates.iter().any(|certificate| usable.add(certificate.clone()).is_err()) {
        return Err(wrong("a certificate in it is damaged"));
    }
    Ok((pem, certificates))
}

/// Mozilla's authorities and those of this host's bundle, each once, and `extra`. The bundle is read once.
fn authorities(extra: &[CertificateDer<'static>]) -> Arc<RootCertStore> {
    static SYSTEM: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let mut store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        // A host without the bundle is as usual as one with a damaged entry in it.
        for certificate in read_file(Path::new(SYSTEM_BUNDLE)).unwrap_or_default() {
            let mut one = RootCertStore::empty();
            if one.add(certificate).is_ok() {
                let is_new = |it: &rustls_pki_types::TrustAnchor<'_>| {
                    !store.roots.iter().any(|known| {
                        known.subject == it.subject && known.subject_public_key_info == it.subject_public_key_info
                    })
                };
                one.roots.retain(is_new);
                store.roots.append(&mut one.roots);
            }
        }
        Arc::new(store)
    });
    if extra.is_empty() {
        return Arc::clone(&SYSTEM);
    }
    let mut store = RootCertStore::clone(&SYSTEM);
    store.add_parsable_certificates(extra.iter().cloned());
    Arc::new(store)
}

/// What must be true of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// Only that the server holds its key.
    Nothing,
    /// An authority of ours signed it, and it lives.
    Authority,
    /// The same, and it is of the name that was asked for.
    AuthorityAndName,
}

/// Our own certificate and its key, for a server that asks its clients for one.
#[cfg(any(feature = "redis", feature = "rabbitmq"))]
#[derive(Clone)]
pub(super) struct ClientIdentity(Arc<rustls::sign::CertifiedKey>);

#[cfg(any(feature = "redis", feature = "rabbitmq"))]
impl ClientIdentity {
    /// From PEM files: the certificate with its chain, and its key.
    pub(super) fn read(certificate: &Path, key: &Path) -> io::Result<Self> {
        let wrong = |text: &'static str| io::Error::new(io::ErrorKind::InvalidData, text);
        let chain = read_file(certificate)?;
        let key = rustls_pki_types::PrivateKeyDer::from_pem_file(key).map_err(|_| wrong("no PEM key in it"))?;
        let key = ring::sign::any_supported_type(&key).map_err(|_| wrong("a key of an unknown kind"))?;
        let pair = rustls::sign::CertifiedKey::new(chain, key);
        pair.keys_match().map_err(|_| wrong("the key is not the certificate's"))?;
        Ok(Self(Arc::new(pair)))
    }

    /// Shown to whoever asks for one.
    pub(super) fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&self.0)))
    }
}

/// Decides on certificates and keeps the last one, also when it was refused.
#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    authorities: Arc<RootCertStore>,
    /// Trusted when they are shown as they are, though they call themselves authorities: what `openssl req -x509`
    /// makes for a server is one, and libpq accepts it.
    pinned: Vec<CertificateDer<'static>>,
    demand: Demand,
    seen: Mutex<Option<Certificate>>,
}

impl Verifier {
    /// Trusts Mozilla's and the host's authorities, and `extra`; with `only`, `extra` alone.
    pub(super) fn new(demand: Demand, extra: &[CertificateDer<'static>], only: bool) -> Arc<Self> {
        let authorities = match demand {
            Demand::Nothing => Arc::new(RootCertStore::empty()),
            _ if only && !extra.is_empty() => {
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(extra.iter().cloned());
                Arc::new(store)
            }
            _ => authorities(extra),
        };
        Arc::new(Self {
            provider: Arc::new(ring::default_provider()),
            authorities,
            pinned: extra.to_vec(),
            demand,
            seen: Mutex::default(),
        })
    }

    /// The certificate of the last handshake, taken out.
    pub(super) fn take_seen(&self) -> Option<Certificate> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// TLS 1.2 and 1.3 without resumption, since a resumed handshake shows no certificate.
    pub(super) fn client_config(self: &Arc<Self>, protocols: &[&[u8]]) -> ClientConfig {
        self.client_config_as(protocols, None)
    }

    /// The same for a server that asks who we are.
    pub(super) fn client_config_as(
        self: &Arc<Self>,
        protocols: &[&[u8]],
        identity: Option<Arc<dyn ResolvesClientCert>>,
    ) -> ClientConfig {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .expect("ring serves the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Self>::clone(self));
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => config.with_client_cert_resolver(identity),
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }

    fn decide(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if self.demand == Demand::Nothing {
            return Ok(());
        }
        let is_pinned = self.pinned.iter().any(|pinned| pinned == shown);
        let life = read(shown).map(|it| (it.not_before.as_second(), it.not_after.as_second()));
        let shown = ParsedCertificate::try_from(shown)?;
        if is_pinned {
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            let (from, to) = life.ok_or(CertificateError::BadEncoding)?;
            if now < from {
                return Err(CertificateError::NotValidYet.into());
            }
            if now > to {
                return Err(CertificateError::Expired.into());
            }
        } else {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&shown, &self.authorities, chain, now, algorithms)?;
        }
        if self.demand == Demand::AuthorityAndName {
            verify_server_name(&shown, name)?;
        }
        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let decision = self.decide(shown, chain, name, now);
        let refused = decision.as_ref().err().map(|error| why_refused(error).into());
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            read(shown).map(|certificate| Certificate { refused, ..certificate });
        decision.map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, shown, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, shown, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Why a handshake failed, in an operator's words: `expired`, `unknown issuer`, `the peer speaks no TLS`.
pub(super) fn why_refused(error: &rustls::Error) -> String {
    let known = match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not valid yet",
            CertificateError::UnknownIssuer => "unknown issuer",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "not valid for this name"
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "not a server's certificate"
            }
            CertificateError::Revoked => "revoked",
            CertificateError::BadSignature => "bad signature",
            CertificateError::BadEncoding => "damaged certificate",
            // The verifier has no name of its own for it.
            CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity" => {
                "an authority's certificate where a server's belongs"
            }
            _ => "",
        },
        rustls::Error::InvalidMessage(_) => "the peer speaks no TLS",
        rustls::Error::NoCertificatesPresented => "no certificate",
        _ => "",
    };
    if !known.is_empty() {
        return known.into();
    }
    let text = error.to_string();
    scrub::text(text.strip_prefix("invalid peer certificate: ").unwrap_or(&text), MAX_SUBJECT)
}

/// The same for what a TLS stream gives: the cause is wrapped in an I/O error.
pub(super) fn why_handshake_failed(error: &io::Error) -> String {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(cause) => why_refused(cause),
        None => super::network::said(error),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

    /// An authority and a server's certificate signed by it, as a test wants them.
    pub(in crate::inspect) struct Issued {
        pub(in crate::inspect) authority_pem: String,
        pub(in crate::inspect) authority: CertificateDer<'static>,
        pub(in crate::inspect) certificate: CertificateDer<'static>,
        pub(in crate::inspect) key: PrivateKeyDer<'static>,
    }

    /// A certificate for these names and addresses that is valid from one year to another.
    pub(in crate::inspect) fn issue(names: &[&str], from: i32, to: i32) -> Issued {
        let mut authority = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("signs");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test server");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &authority).expect("signs");
        Issued {
            authority_pem: authority.pem(),
            authority: authority.der().clone(),
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8"),
        }
    }

    #[cfg(any(feature = "redis", feature = "rabbitmq"))]
    #[test]
    fn our_own_certificate_is_read_with_its_key_and_with_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let (key, other) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let params = CertificateParams::new(vec!["agent.internal".to_owned()]).expect("parameters");
        let certificate = write("agent.crt", &params.self_signed(&key).expect("signs").pem());
        let key = write("agent.key", &key.serialize_pem());
        assert!(ClientIdentity::read(&certificate, &key).is_ok());
        for wrong in [write("other.key", &other.serialize_pem()), write("no.key", "none"), "/no/such".into()] {
            assert!(ClientIdentity::read(&certificate, &wrong).is_err(), "{}", wrong.display());
        }
    }

    fn decide(issued: &Issued, demand: Demand, trusted: bool, name: &'static str) -> (bool, Option<Certificate>) {
        let extra = if trusted { std::slice::from_ref(&issued.authority) } else { &[] };
        let verifier = Verifier::new(demand, extra, true);
        let name = ServerName::try_from(name).expect("a name");
        let decision = verifier.verify_server_cert(&issued.certificate, &[], &name, &[], UnixTime::now());
        (decision.is_ok(), verifier.take_seen())
    }

    #[track_caller]
    fn refused(issued: &Issued, demand: Demand, trusted: bool, expected: &str) {
        let (accepted, seen) = decide(issued, demand, trusted, "db.internal");
        assert!(!accepted);
        let seen = seen.expect("remembered though refused");
        assert_eq!(seen.refused.as_deref(), Some(expected));
    }

    #[test]
    fn a_certificate_is_read() {
        let issued = issue(&["db.internal", "127.0.0.1"], 2020, 2040);
        let read = read(&issued.certificate).expect("is one");
        assert_eq!(&*read.subject, "db.internal");
        assert_eq!(read.not_before.to_string(), "2020-01-01T00:00:00Z");
        assert_eq!(read.not_after.to_string(), "2040-01-01T00:00:00Z");
        let by_address = super::read(&issue(&["::1"], 2020, 2040).certificate).expect("is one");
        assert_eq!(&*by_address.subject, "::1");
        let by_subject = super::read(&issue(&[], 2020, 2040).certificate).expect("is one");
        assert!(by_subject.subject.contains("test server"), "{}", by_subject.subject);
        assert_eq!(super::read(b"no certificate"), None);
    }

    #[test]
    fn what_is_refused_is_remembered_with_its_reason() {
        let good = issue(&["db.internal"], 2020, 2040);
        assert_eq!(decide(&good, Demand::AuthorityAndName, true, "db.internal").1.expect("seen").refused, None);
        refused(&good, Demand::Authority, false, "unknown issuer");
        refused(&issue(&["other"], 2020, 2040), Demand::AuthorityAndName, true, "not valid for this name");
        refused(&issue(&["db.internal"], 2000, 2001), Demand::AuthorityAndName, true, "expired");
        refused(&issue(&["db.internal"], 2090, 2091), Demand::Authority, true, "not valid yet");
    }

    #[test]
    fn a_certificate_that_signed_itself_is_trusted_when_it_is_given() {
        let mut params = CertificateParams::new(vec!["db.internal".to_owned()]).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        for (to, expected) in [(2040, None), (2021, Some("expired"))] {
            params.not_after = date_time_ymd(to, 1, 1);
            let itself = params.self_signed(&key).expect("signs").der().clone();
            let given = Verifier::new(Demand::AuthorityAndName, std::slice::from_ref(&itself), true);
            let name = ServerName::try_from("db.internal").expect("a name");
            let decision = given.verify_server_cert(&itself, &[], &name, &[], UnixTime::now());
            assert_eq!(decision.is_ok(), expected.is_none());
            assert_eq!(given.take_seen().expect("seen").refused.as_deref(), expected);
            let not_given = Verifier::new(Demand::Authority, &[], false);
            assert!(not_given.verify_server_cert(&itself, &[], &name, &[], UnixTime::now()).is_err());
        }
    }

    #[test]
    fn a_demand_asks_for_no_more_than_it_says() {
        let other = issue(&["other"], 2020, 2040);
        assert!(decide(&other, Demand::Authority, true, "db.internal").0, "the name does not count");
        assert!(decide(&issue(&["other"], 2000, 2001), Demand::Nothing, false, "db.internal").0, "nothing counts");
    }

    #[test]
    fn a_file_without_certificates_is_an_error_and_not_an_empty_trust() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca.pem");
        for (content, expected) in [
            ("", "no PEM certificate in it"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a certificate in it is damaged"),
            ("-----BEGIN CERTIFICATE-----\n", "a PEM block in it is damaged"),
        ] {
            std::fs::write(&path, content).expect("writes");
            assert_eq!(read_file(&path).expect_err(content).to_string(), expected);
        }
        std::fs::write(&path, issue(&[], 2020, 2040).authority_pem).expect("writes");
        assert_eq!(read_file(&path).expect("reads").len(), 1);
        assert_eq!(read_file(directory.path()).expect_err("a directory").to_string(), "not a regular file");
    }

    #[test]
    fn an_authority_is_kept_once() {
        let store = authorities(&[]);
        assert!(store.len() >= webpki_roots::TLS_SERVER_ROOTS.len());
        let mut keys: Vec<_> =
            store.roots.iter().map(|it| (it.subject.to_vec(), it.subject_public_key_info.to_vec())).collect();
        let all = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    proptest::proptest! {
        #[test]
        fn bytes_that_are_no_certificate_do_no_harm(cut in 0_usize..600, at in 0_usize..600, with: u8) {
            static ISSUED: LazyLock<Vec<u8>> =
                LazyLock::new(|| issue(&["a", "127.0.0.1"], 2020, 2040).certificate.to_vec());
            let mut der = ISSUED.clone();
            let length = der.len();
            der[at % length] = with;
            der.truncate(length - cut % length);
            read(&der);
        }
    }
}
