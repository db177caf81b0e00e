//! Which client certificates open a connection of an agent: those of a believed authority, and for a while those that ended.
//!
//! A certificate that ended opens a connection all the same, if it was good on its last day and that day is less than 90
//! days ago: its agent may renew it, and ingest answers nothing else to it. The same holds for one of ours that has not
//! begun: the clock here was ahead when it was made.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use tickbird_shared::Timestamp;

use crate::pki::{Authority, Validity};

/// See the module.
#[derive(Debug)]
pub(super) struct AgentVerifier {
    believed: Arc<dyn ClientCertVerifier>,
    /// Over the authorities of certificates that may have ended.
    remembered: Arc<dyn ClientCertVerifier>,
}

impl AgentVerifier {
    /// # Errors
    /// When there is no authority, or one is none.
    pub(super) fn new<'a>(
        believed: impl Iterator<Item = &'a CertificateDer<'static>>,
        remembered: impl Iterator<Item = &'a CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self { believed: over(believed)?, remembered: over(remembered)? })
    }
}

/// A verifier of client certificates that one of these authorities signed.
///
/// # Errors
/// When there is no authority, or one is none.
pub(super) fn over<'a>(
    authorities: impl Iterator<Item = &'a CertificateDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    authorities.into_iter().try_for_each(|it| roots.add(it.clone()))?;
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// Whether one of these authorities signed a client certificate that was good on its last day.
pub(super) fn is_of<'a>(authorities: impl Iterator<Item = &'a Authority>, certificate: &CertificateDer<'_>) -> bool {
    let last = Validity::of(certificate).map(|it| last_moment(&it));
    let verifier = over(authorities.map(Authority::certificate));
    last.zip(verifier.ok()).is_some_and(|(last, it)| it.verify_client_cert(certificate, &[], last).is_ok())
}

fn last_moment(validity: &Validity) -> UnixTime {
    let last = u64::try_from(validity.ends.as_second()).unwrap_or_default().saturating_sub(1);
    UnixTime::since_unix_epoch(Duration::from_secs(last))
}

impl ClientCertVerifier for AgentVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: an agent has one certificate, and shows it also when its authority has gone.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.believed.verify_client_cert(end_entity, intermediates, now);
        let Err(error) = verified else { return verified };
        let at = i64::try_from(now.as_secs()).ok().and_then(|it| Timestamp::from_second(it).ok());
        let outside = Validity::of(end_entity).zip(at).filter(|(it, at)| !it.holds(*at) && it.may_return(*at));
        let Some((validity, _)) = outside else { return Err(error) };
        self.remembered.verify_client_cert(end_entity, intermediates, last_moment(&validity))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Not spoken here.
        Err(CertificateError::BadSignature.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.believed.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.believed.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::pki::Request;

    const DAY: u64 = 86_400;

    fn at(day: u64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + (day * DAY) as i64).expect("in range")
    }

    fn agent(authority: &Authority, made: Timestamp) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("makes one");
        let pem = CertificateParams::default().serialize_request(&key).expect("signs").pem().expect("encodes");
        let request = Request::read(&pem).expect("a request");
        let life = Duration::from_secs(30 * DAY);
        let signed = authority.sign_agent(&request, ("default", "a-1"), life, made).expect("signs");
        CertificateDer::from_pem_slice(signed.certificate.as_bytes()).expect("PEM")
    }

    #[test]
    fn a_certificate_opens_until_ninety_days_after_its_end_and_a_foreign_one_never() {
        let life = Duration::from_secs(3_650 * DAY);
        let ours = Authority::create(life, at(0)).expect("makes one");
        let verifier =
            AgentVerifier::new([ours.certificate()].into_iter(), [ours.certificate()].into_iter()).expect("a verifier");
        let opens = |certificate: &CertificateDer<'_>, day: u64| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(at(day).as_second() as u64));
            verifier.verify_client_cert(certificate, &[], now).is_ok()
        };
        let certificate = agent(&ours, at(100));
        let days = [99, 100, 129, 130, 131, 219, 220, 221].map(|day| opens(&certificate, day));
        assert_eq!(days, [true, true, true, true, true, true, false, false], "on day 99 it has not begun");
        let foreign = agent(&Authority::create(life, at(0)).expect("makes one"), at(100));
        assert!(!opens(&foreign, 110) && !opens(&foreign, 140));
        assert!(!opens(ours.certificate(), 10), "an authority is no agent");
    }

    #[test]
    fn an_agent_of_an_authority_that_ended_meanwhile_may_return() {
        let old = Authority::create(Duration::from_secs(40 * DAY), at(0)).expect("makes one");
        let new = Authority::create(Duration::from_secs(400 * DAY), at(30)).expect("makes one");
        let both = [old.certificate(), new.certificate()];
        let verifier = AgentVerifier::new([new.certificate()].into_iter(), both.into_iter()).expect("a verifier");
        let certificate = agent(&old, at(5));
        let now = |day: u64| UnixTime::since_unix_epoch(Duration::from_secs(at(day).as_second() as u64));
        assert!(verifier.verify_client_cert(&certificate, &[], now(60)).is_ok());
        assert!(
            verifier.verify_client_cert(&certificate, &[], now(20)).is_err(),
            "valid, and its authority is not believed"
        );
    }
}
