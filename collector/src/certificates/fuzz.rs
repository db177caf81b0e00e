//! Certificates, keys and signing requests that others bring, under any bytes.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tickbird_shared::Timestamp;

use super::brought::Naming;
use crate::pki::{self, Request, Validity};

/// The bytes as DER, as PEM and as a signing request.
pub(crate) fn certificates(data: &[u8]) {
    one(&CertificateDer::from(data));
    let Ok(text) = std::str::from_utf8(data) else { return };
    for it in CertificateDer::pem_slice_iter(data).flatten().take(8) {
        one(&it);
        let again = CertificateDer::from_pem_slice(pki::encode(&it).as_bytes());
        assert_eq!(again.ok(), Some(it), "PEM that we write is read back");
    }
    let keys = pki::keyring::sections(text);
    assert!(keys.iter().map(|it| it.len()).sum::<usize>() <= text.len() + keys.len());
    if let Ok(request) = Request::read(text) {
        assert!(text.len() <= pki::MAX_REQUEST_BYTES && !request.is_of(&CertificateDer::from(data)));
    }
}

fn one(certificate: &CertificateDer<'_>) {
    for naming in [Naming::Uri, Naming::Dns, Naming::CommonName] {
        if let Some((tenant, id)) = naming.agent_of(certificate) {
            assert!(tenant == "default" && pki::is_plain(&id) && !pki::is_assigned(&id), "{id:?}");
        }
    }
    if let Some((tenant, id)) = pki::agent_of(certificate) {
        assert!(pki::is_plain(&tenant) && pki::is_plain(&id));
    }
    assert!(pki::names_of(certificate).len() <= certificate.len());
    assert_eq!(pki::fingerprint(certificate).len(), 64);
    if let Some(life) = Validity::of(certificate) {
        let _ = (life.holds(Timestamp::UNIX_EPOCH), life.may_return(Timestamp::MAX), life.standing(Timestamp::MAX));
        let _ = (life.standing(Timestamp::MIN), life.is_due(std::time::Duration::from_secs(3600), Timestamp::MIN));
    }
}
