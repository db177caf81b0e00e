//! How an agent keeps its identity: the certificate that it has, and a key, in; the next certificate out.
//!
//! While the certificate lasts the key is a new one. One that has ended, by either clock, is renewed with its own: that is
//! what the collector knows the agent by. What comes back is checked and on the disk before it is used.

use std::time::Duration;

use hyper::body::Bytes;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use tickbird_shared::Timestamp;
use tickbird_shared::enrolment::{RenewalAnswer, RenewalRequest};
use tickbird_shared::protocol::RENEW_PATH;
use zeroize::Zeroizing;

use super::connection::{Answer, ConnectionError, Line, Post};
use super::enrolment::certificate_request;
use super::origin::Origin;
use super::{CertificateHealth, Failure, Ship, health, session};
use crate::identity::renewal::Renewal;
use crate::identity::{Identity, IdentityError, Renewed};
use crate::scrub;

/// Between two looks at the files of another PKI.
const FILES_EVERY: Duration = Duration::from_secs(5);
/// Longest word of the collector that is repeated, in bytes.
const MAX_CODE_BYTES: usize = 64;

/// Why the certificate is still the old one.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The collector was not reached.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The collector does not renew this agent's certificate.
    #[error("the collector refuses to renew the certificate ({code})")]
    Refused {
        /// Its reason, as a word.
        code: String,
    },
    /// It cannot do so now.
    #[error("the collector cannot renew the certificate now: it answers {status} ({code})")]
    Unavailable {
        /// HTTP status.
        status: u16,
        /// Its reason, as a word.
        code: String,
    },
    /// The answer is not one, or does not fit what was asked.
    #[error("the collector's answer to the renewal {0}")]
    Answer(&'static str),
    /// No key or request could be made.
    #[error("cannot make a key and a certificate request")]
    Key(#[from] rcgen::Error),
    /// The new identity could not be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl RenewError {
    /// What the operator can do.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Connection(error) => error.advice(),
            Self::Refused { .. } => {
                Some("see `tickbird-collector agent list`; enrol again with a new token and --force")
            }
            Self::Unavailable { .. } => Some("see the collector's /readyz"),
            Self::Identity(error) => error.advice(),
            Self::Answer(_) | Self::Key(_) => None,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: String,
}

impl Ship {
    /// Renews the certificate when that is due. Whether one that has ended by this host's clock still serves is the
    /// collector's to say: the clock may be wrong.
    pub(super) async fn keep_certificate(&mut self) {
        let now = (self.config.clock)();
        if self.renewal.is_due(now) {
            match renew(&mut self.session.line, &self.identity, self.renewal.needs_own_key(now)).await {
                Ok(identity) => self.renewed(identity),
                Err(error) => self.not_renewed(&error, now),
            }
        }
        if !self.identity.is_renewed_here() && self.now() >= self.files_due {
            self.files_due = self.now() + FILES_EVERY;
            self.look_at_files(now).await;
        }
    }

    /// Takes over what somebody else put in the place of the certificate, if it is good.
    async fn look_at_files(&mut self, now: Timestamp) {
        let identity = self.identity.clone();
        let found = match tokio::task::spawn_blocking(move || identity.look_again(now)).await {
            Ok(None) if self.renewal.has_ended(now) => Err(self.identity.ended()),
            Ok(None) | Err(_) => return self.health.send_modify(|health| health.certificate.last_error = None),
            Ok(Some(found)) => found,
        };
        match found {
            Ok(identity) => self.renewed(identity),
            Err(error) => self.not_renewed(&error.into(), now),
        }
    }

    /// The next request opens a connection of the new identity; no other is under way.
    fn renewed(&mut self, identity: Identity) {
        let (begins, ends) = identity.life();
        tracing::info!(until = %ends, "the certificate is renewed");
        self.session = session(&self.config, &identity);
        self.renewal = if identity.is_renewed_here() {
            Renewal::of_new(begins, ends, rand::random(), (self.config.clock)())
        } else {
            Renewal::of_others(begins, ends)
        };
        self.identity = identity;
        self.health.send_modify(|health| {
            health.certificate = CertificateHealth {
                begins,
                ends,
                renewals: health.certificate.renewals + 1,
                ..CertificateHealth::new((begins, ends))
            };
        });
    }

    fn not_renewed(&mut self, error: &RenewError, now: Timestamp) {
        self.renewal.failed(now, rand::random());
        if matches!(error, RenewError::Refused { code } if code == "csr") {
            // By the collector's clock it has ended, and then a new key is refused.
            self.renewal.hurry();
        }
        let (failures, text) = (self.renewal.failures(), health::told(error));
        // Once when it begins and at each doubling; the rest is in the status.
        if failures.is_power_of_two() {
            tracing::warn!(error = text, failures, ends = %self.identity.life().1, "the certificate could not be renewed");
        }
        let failure = Failure {
            outcome: "not_renewed",
            text,
            advice: error.advice(),
            at: now,
            is_transient: !matches!(error, RenewError::Refused { .. } | RenewError::Identity(_)),
        };
        self.health.send_modify(|health| {
            health.certificate.failures = failures;
            health.certificate.last_error = Some(failure.clone());
            // Else it is no trouble yet.
            if self.renewal.has_ended(now) {
                health.last_error = Some(failure);
            }
        });
    }
}

/// Renews over the connection that records take, and writes the new identity in the place of the old.
async fn renew(line: &mut Line, identity: &Identity, with_own_key: bool) -> Result<Identity, RenewError> {
    let key = if with_own_key {
        KeyPair::from_pem(&identity.key()?)?
    } else {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?
    };
    let request = RenewalRequest { csr: certificate_request(&key)? };
    let body = serde_json::to_vec(&request).map_err(|_| RenewError::Answer("could not be asked for"))?;
    let answer = line.post(&Post { path: RENEW_PATH, body: Bytes::from(body), is_zstd: false }).await?;
    let renewed = check(read(&answer)?, &key)?;
    let identity = identity.clone();
    let written = tokio::task::spawn_blocking(move || identity.renew(renewed)).await;
    Ok(written.map_err(|_| RenewError::Answer("could not be written down"))??)
}

pub(super) fn read(answer: &Answer) -> Result<RenewalAnswer, RenewError> {
    if answer.status == 200 {
        return serde_json::from_slice(&answer.body).map_err(|_| RenewError::Answer("is not one"));
    }
    let problem: Problem = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = scrub::text(&problem.code, MAX_CODE_BYTES);
    match answer.status {
        408 | 429 | 500..=599 => Err(RenewError::Unavailable { status: answer.status, code }),
        status if code.is_empty() => Err(RenewError::Refused { code: format!("http_{status}") }),
        _ => Err(RenewError::Refused { code }),
    }
}

/// What comes from the collector is believed for what it is, and must fit all the same.
fn check(answer: RenewalAnswer, key: &KeyPair) -> Result<Renewed, RenewError> {
    let certificate = CertificateDer::from_pem_slice(answer.certificate.as_bytes())
        .map_err(|_| RenewError::Answer("holds no certificate"))?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&certificate).map_err(|_| RenewError::Answer("holds no certificate"))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(RenewError::Answer("holds a certificate for another key"));
    }
    answer.url.parse::<Origin>().map_err(|_| RenewError::Answer("does not say where to send records"))?;
    let RenewalAnswer { certificate, authority, url, .. } = answer;
    Ok(Renewed { key: Zeroizing::new(key.serialize_pem()), certificate, authority, url })
}
