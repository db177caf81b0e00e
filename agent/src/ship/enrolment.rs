//! How an agent gets its identity: a token and a key of its own in, a signed certificate out.
//!
//! The token names the authority to trust by its fingerprint, so nothing is sent before the server has shown a
//! certificate of that authority for the name or address we connected to. The private key never leaves this host.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use tickbird_shared::Timestamp;
use tickbird_shared::enrolment::{EnrolmentAnswer, EnrolmentRequest, EnrolmentToken};
use tickbird_shared::protocol::ENROL_PATH;
use zeroize::Zeroizing;

use super::connection::{Answer, ConnectionError, Line, Post};
use super::origin::{Origin, OriginError};
use crate::identity::{Card, Enrolled, Identity, IdentityError, tls};
use crate::scrub;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest text of the collector that is repeated, in bytes.
const MAX_DETAIL_BYTES: usize = 300;

/// Why there is no identity. The token is in none of the texts.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The address cannot be read.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The collector was not reached, or is not the one the token is from.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The collector does not take the token: used up, expired, revoked or never made.
    #[error("the collector does not take the token: it is used up, expired, revoked or from another collector")]
    TokenRefused,
    /// Too many attempts, or the collector cannot store anything now.
    #[error("the collector cannot enrol anybody now ({code})")]
    Unavailable {
        /// Its reason, as a word.
        code: String,
    },
    /// The collector turns the request down.
    #[error("the collector answers {status}: {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words, scrubbed.
        detail: String,
    },
    /// The answer is not one, or does not fit what was asked.
    #[error("the collector's answer {0}")]
    Answer(&'static str),
    /// No key could be made.
    #[error("cannot make a key and a certificate request")]
    Key(#[from] rcgen::Error),
    /// TLS could not be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The identity could not be written, or there is one.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl EnrolError {
    /// What the operator can do.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Origin(_) => Some("write https://host:port of the collector's listener for people"),
            Self::Connection(ConnectionError::Unreachable { .. }) => {
                Some("check that the collector runs and that this is its listener for people (7444 by default)")
            }
            Self::Connection(error) => error.advice(),
            Self::TokenRefused => Some("make a new one with `tickbird-collector token create`"),
            Self::Unavailable { .. } => Some("try again in a minute; see the collector's /readyz"),
            Self::Refused { .. } | Self::Answer(_) => {
                Some("check that this is the collector's listener for people (7444 by default), and both versions")
            }
            Self::Identity(error) => error.advice(),
            Self::Key(_) | Self::Tls(_) => None,
        }
    }
}

/// Whom to enrol with, and as what.
#[derive(Debug)]
pub struct Enrolment<'a> {
    /// From `tickbird-collector token create`.
    pub token: &'a EnrolmentToken,
    /// `https://host:port` of the collector's listener for people.
    pub collector: &'a str,
    /// This host's name, for the list of agents.
    pub host: &'a str,
    /// The identity goes to `identity/` in it.
    pub state_dir: &'a Path,
    /// Replace an identity that is there; its id is then gone.
    pub replace: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: String,
    detail: String,
}

impl Enrolment<'_> {
    /// Enrols and writes the identity. A token that works once is used only when nothing is known to be in the way.
    ///
    /// # Errors
    /// See [`EnrolError`]; nothing on disk has then changed.
    pub async fn run(&self, now: Timestamp) -> Result<Identity, EnrolError> {
        if Identity::exists(self.state_dir) && !self.replace {
            return Err(IdentityError::Exists { path: self.state_dir.join("identity") }.into());
        }
        let enrolled = self.ask().await?;
        Identity::install(self.state_dir, &enrolled, self.replace)?;
        Ok(Identity::load(self.state_dir, now)?)
    }

    /// Enrols and writes nothing: whoever asks keeps it.
    ///
    /// # Errors
    /// See [`EnrolError`].
    pub async fn ask(&self) -> Result<Enrolled, EnrolError> {
        let origin: Origin = self.collector.parse()?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let request = EnrolmentRequest {
            token: self.token.secret.clone(),
            csr: certificate_request(&key)?,
            host: self.host.to_owned(),
        };
        let body = serde_json::to_vec(&request).map_err(|_| EnrolError::Answer("could not be asked for"))?;
        let mut line = Line::new(origin, Arc::new(tls::as_stranger(&self.token.authority)?), REQUEST_TIMEOUT);
        let post = Post { path: ENROL_PATH, body: Bytes::from(body), is_zstd: false };
        let answer = read(&line.post(&post).await?)?;
        self.check(answer, &key)
    }

    /// The answer comes from whom the token names; that it fits is checked all the same, before anything is replaced.
    fn check(&self, answer: EnrolmentAnswer, key: &KeyPair) -> Result<Enrolled, EnrolError> {
        let authority = CertificateDer::from_pem_slice(answer.authority.as_bytes())
            .map_err(|_| EnrolError::Answer("holds no authority"))?;
        if tls::fingerprint(&authority) != self.token.authority {
            return Err(EnrolError::Answer("holds another authority than the token names"));
        }
        let certificate = CertificateDer::from_pem_slice(answer.certificate.as_bytes())
            .map_err(|_| EnrolError::Answer("holds no certificate"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|_| EnrolError::Answer("holds no certificate"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(EnrolError::Answer("holds a certificate for another key"));
        }
        answer.url.parse::<Origin>().map_err(|_| EnrolError::Answer("does not say where to send records"))?;
        let EnrolmentAnswer { agent, tenant, labels, certificate, authority, url, expires_at } = answer;
        let card = Card { agent, tenant, labels, url, expires_at };
        Ok(Enrolled { card, key: Zeroizing::new(key.serialize_pem()), certificate, authority })
    }
}

/// Only its public key counts: the collector assigns every name.
pub(super) fn certificate_request(key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, "tickbird-agent");
    parameters.serialize_request(key)?.pem()
}

pub(super) fn read(answer: &Answer) -> Result<EnrolmentAnswer, EnrolError> {
    if answer.status == 200 || answer.status == 201 {
        return serde_json::from_slice(&answer.body).map_err(|_| EnrolError::Answer("is not one to an enrolment"));
    }
    let problem: Problem = serde_json::from_slice(&answer.body).unwrap_or_default();
    let shown = |text: &str, max| scrub::text(text, max);
    match answer.status {
        401 | 403 if problem.code == "token_refused" => Err(EnrolError::TokenRefused),
        429 | 500..=599 => Err(EnrolError::Unavailable { code: shown(&problem.code, 64) }),
        status => Err(EnrolError::Refused { status, detail: shown(&problem.detail, MAX_DETAIL_BYTES) }),
    }
}
