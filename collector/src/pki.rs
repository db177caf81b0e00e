//! The certificate authority of a collector and what it signs: its own server certificate and those of its agents.
//!
//! Keys are ECDSA P-256. An agent's certificate names it by the URI `tickbird://<tenant>/<agent>`, which the collector
//! assigns: of a signing request only the public key is used.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tickbird_shared::Timestamp;
use x509_parser::extensions::GeneralName;
use zeroize::Zeroizing;

pub(crate) mod keyring;
pub mod life;

pub use keyring::Keyring;
pub use life::{Lives, Validity};

/// Longest signing request that is looked at, in bytes of PEM.
pub const MAX_REQUEST_BYTES: usize = 4_096;

/// Scheme of the URI in an agent's certificate.
const SCHEME: &str = "tickbird://";

/// What went wrong with a key, a certificate or a request.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what its name says.
    #[error("`{path}` does not hold {what}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// A name that a certificate cannot carry.
    #[error("`{0}` is neither a host name nor an IP address")]
    Name(String),
    /// A signing request that is not one, or is not signed by its own key.
    #[error("not a signing request of a P-256 key, in PEM, signed by that key")]
    Request,
    /// The signature could not be made.
    #[error("the certificate could not be made")]
    Sign(#[source] rcgen::Error),
}

impl PkiError {
    /// What an operator can do.
    pub const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Read { .. } => Some("run as the collector's user, on a directory made by `tickbird-collector init`"),
            Self::Write { .. } => Some("check the rights and the space of the directory"),
            Self::Malformed { .. } => Some("restore the file from a backup of the collector's directory"),
            Self::Name(_) => Some("write it like collector.example.org or 192.0.2.7"),
            Self::Request => Some("let `tickbird-agent enroll` make the request"),
            Self::Sign(_) => None,
        }
    }
}

/// The authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    key: Zeroizing<String>,
    validity: Validity,
}

/// A certificate (or chain) and its key, both PEM. Not `Debug`: the key is secret.
pub struct Issued {
    /// The certificate, followed by its authority's where a peer needs it.
    pub certificate: String,
    /// The key, PKCS #8.
    pub key: String,
}

/// An agent's new certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCertificate {
    /// PEM.
    pub certificate: String,
    /// End of its life.
    pub expires_at: Timestamp,
}

/// A signing request that was read and whose signature is its own key's.
#[derive(Debug, Clone)]
pub struct Request(CertificateSigningRequestParams);

impl Authority {
    /// Makes a new authority that lives so long.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn create(life: Duration, now: Timestamp) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::Sign)?;
        let validity = Validity::new(now, life, None);
        let mut params = params(&format!("Tickbird authority {}", ulid::Ulid::new()), validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(PkiError::Sign)?;
        let (pem, key_pem) = (certificate.pem(), Zeroizing::new(key.serialize_pem()));
        let issuer = Issuer::new(params, key);
        Ok(Self { issuer, certificate: certificate.der().clone(), pem, key: key_pem, validity })
    }

    /// The authority of a certificate and its key; `None` when they are not one.
    fn of(certificate: CertificateDer<'static>, key: &str) -> Option<Self> {
        let pair = KeyPair::from_pem(key).ok()?;
        let validity = Validity::of(&certificate)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return None;
        }
        let pem = encode(&certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate, pair).ok()?;
        Some(Self { issuer, pem, key: Zeroizing::new(key.to_owned()), validity, certificate })
    }

    /// SHA-256 of the certificate in DER, in hexadecimal: what an enrolment token carries.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// The certificate, DER.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// From when to when it may vouch for anybody.
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// A new key and certificate for a server of these names.
    ///
    /// # Errors
    /// When a name cannot be in a certificate.
    pub fn sign_server(&self, names: &[String], life: Duration, now: Timestamp) -> Result<Issued, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::Sign)?;
        let certificate = self.sign_server_key(&key, names, life, now)?;
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    /// A new certificate for a server's key, PEM; the authority follows it in the chain.
    ///
    /// # Errors
    /// When a name cannot be in a certificate.
    pub fn sign_server_key(
        &self,
        key: &KeyPair,
        names: &[String],
        life: Duration,
        now: Timestamp,
    ) -> Result<String, PkiError> {
        let mut params = params("Tickbird collector", Validity::new(now, life, Some(self.validity.ends)));
        params.subject_alt_names = names.iter().map(|name| server_name(name)).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(PkiError::Sign)?;
        Ok(format!("{}{}", certificate.pem(), self.pem))
    }

    /// When a certificate ends that an agent gets now.
    pub fn agent_expiry(&self, life: Duration, now: Timestamp) -> Timestamp {
        Validity::new(now, life, Some(self.validity.ends)).ends
    }

    /// Signs the public key of `request` for the agent `id` of `tenant`.
    ///
    /// # Errors
    /// When the names cannot be in a certificate.
    pub fn sign_agent(
        &self,
        request: &Request,
        (tenant, id): (&str, &str),
        life: Duration,
        now: Timestamp,
    ) -> Result<AgentCertificate, PkiError> {
        let validity = Validity::new(now, life, Some(self.validity.ends));
        let mut params = params(id, validity);
        let uri = format!("{SCHEME}{tenant}/{id}");
        let uri = uri.as_str().try_into().map_err(|_| PkiError::Name(uri.clone()))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&request.0.public_key, &self.issuer).map_err(PkiError::Sign)?;
        Ok(AgentCertificate { certificate: certificate.pem(), expires_at: validity.ends })
    }
}

impl Request {
    /// Reads a PKCS #10 request in PEM and checks that its key signed it.
    ///
    /// # Errors
    /// When it is too long, is not one, is of another kind of key, or its signature is wrong.
    pub fn read(pem: &str) -> Result<Self, PkiError> {
        if pem.len() > MAX_REQUEST_BYTES {
            return Err(PkiError::Request);
        }
        let request = CertificateSigningRequestParams::from_pem(pem).map_err(|_| PkiError::Request)?;
        if *request.public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(PkiError::Request);
        }
        Ok(Self(request))
    }

    /// Whether it is about the key of this certificate.
    pub fn is_of(&self, certificate: &CertificateDer<'_>) -> bool {
        let parsed = x509_parser::parse_x509_certificate(certificate);
        parsed.is_ok_and(|(_, it)| it.public_key().raw == self.0.public_key.subject_public_key_info())
    }
}

/// Tenant and id of the agent that a certificate names, if it names one.
pub fn agent_of(certificate: &CertificateDer<'_>) -> Option<(String, String)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut agents = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(SCHEME)?.split_once('/'),
        _ => None,
    });
    // A second name would leave open who speaks.
    let (Some((tenant, id)), None) = (agents.next(), agents.next()) else { return None };
    (is_plain(tenant) && is_plain(id)).then(|| (tenant.to_owned(), id.to_owned()))
}

/// SHA-256 of a certificate in DER, in hexadecimal.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text may be a tenant or an agent's id.
pub fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= 128 && text.bytes().all(plain)
}

/// Whether an agent's id has the form that enrolment gives out.
pub fn is_assigned(id: &str) -> bool {
    id.strip_prefix("a-").is_some_and(|rest| rest.len() == 26 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// The host names and addresses that a server's certificate is for, in its order.
pub fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => match (<[u8; 4]>::try_from(*octets), <[u8; 16]>::try_from(*octets)) {
            (Ok(v4), _) => Some(IpAddr::from(v4).to_string()),
            (_, Ok(v6)) => Some(IpAddr::from(v6).to_string()),
            _ => None,
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// The certificates in a file, at least one.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let malformed = || PkiError::Malformed { path: path.into(), what: "certificates in PEM" };
    let text = read(path)?;
    let chain =
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|_| malformed())?;
    if chain.is_empty() { Err(malformed()) } else { Ok(chain) }
}

/// The private key in a file.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|_| PkiError::Malformed { path: path.into(), what: "a private key in PEM" })
}

/// A certificate as PEM.
pub fn encode(certificate: &CertificateDer<'_>) -> String {
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

/// Writes a secret, readable by its owner only, and never over something that is there.
///
/// # Errors
/// When it exists or cannot be written.
pub fn write_secret(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o600)
}

/// Writes what anybody may read, and never over something that is there.
///
/// # Errors
/// When it exists or cannot be written.
pub fn write_public(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o644)
}

/// Puts a file in the place of another, whole or not at all, also over a power cut.
fn replace(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let failed = |source| PkiError::Write { path: path.into(), source };
    let draft = path.with_added_extension("new");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => write(&draft, text, mode)?,
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    let renamed = std::fs::rename(&draft, path).and_then(|()| std::fs::File::open(directory)?.sync_all());
    renamed.map_err(failed)
}

/// Puts what anybody may read in the place of a file that says something else.
///
/// # Errors
/// When it cannot be written; the old file is then untouched.
pub fn publish(path: &Path, text: &str) -> Result<(), PkiError> {
    let stands = std::fs::read_to_string(path).is_ok_and(|it| it == text);
    if stands { Ok(()) } else { replace(path, text, 0o644) }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|source| PkiError::Write { path: path.into(), source })
}

fn read(path: &Path) -> Result<Zeroizing<String>, PkiError> {
    let text = std::fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.into(), source })?;
    Ok(Zeroizing::new(text))
}

fn params(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = SystemTime::from(validity.begins).into();
    params.not_after = SystemTime::from(validity.ends).into();
    params
}

fn server_name(name: &str) -> Result<SanType, PkiError> {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(allowed)
    };
    let bad = || PkiError::Name(name.chars().take(80).collect());
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(bad());
    }
    name.try_into().map(SanType::DnsName).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(key: &KeyPair) -> String {
        let asked = CertificateParams::new(vec!["admin.example.org".into()]).expect("a name");
        asked.serialize_request(key).expect("signs").pem().expect("encodes")
    }

    #[test]
    fn an_agent_gets_the_names_the_collector_assigns_and_none_it_asked_for() {
        let now = Timestamp::from_second(1_800_000_000).expect("in range");
        let lives = Lives::default();
        let authority = Authority::create(lives.authority, now).expect("makes one");
        let key = KeyPair::generate().expect("makes one");
        let read = Request::read(&request(&key)).expect("a request");
        let issued = authority.sign_agent(&read, ("default", "a-01"), lives.agent, now).expect("signs");
        let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("PEM");
        assert_eq!(agent_of(&der), Some(("default".into(), "a-01".into())));
        assert_eq!(Validity::of(&der).map(|it| it.ends), Some(issued.expires_at));
        assert!(read.is_of(&der) && !read.is_of(authority.certificate()));
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("DER");
        let names = parsed.subject_alternative_name().expect("reads").expect("is there").value.general_names.len();
        assert_eq!(names, 1, "the name in the request is not taken over");
        assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let key = KeyPair::generate().expect("makes one");
        let pem = request(&key);
        let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let mut bytes = der.to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
        let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(matches!(Request::read(&forged), Err(PkiError::Request)));
        assert!(matches!(Request::read(""), Err(PkiError::Request)));
        assert!(matches!(Request::read(&"x".repeat(100_000)), Err(PkiError::Request)));
    }

    #[test]
    fn the_servers_names_are_host_names_and_addresses() {
        for good in ["localhost", "collector.example.org", "127.0.0.1", "::1", "a_b-c.internal"] {
            assert!(server_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "http://x", "x..y", &"a".repeat(64)] {
            assert!(server_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_of_somebody_else_names_no_agent() {
        let authority = Authority::create(Lives::default().authority, Timestamp::UNIX_EPOCH).expect("makes one");
        assert_eq!(agent_of(authority.certificate()), None);
        assert_eq!(agent_of(&CertificateDer::from(vec![1, 2, 3])), None);
    }

    #[test]
    fn keys_are_readable_by_their_owner_only_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("makes one");
        let path = directory.path().join("ca.key");
        write_secret(&path, "key").expect("writes");
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        assert!(matches!(write_secret(&path, "other"), Err(PkiError::Write { .. })));
    }
}
