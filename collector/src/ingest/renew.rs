//! An agent's certificate, renewed by the certificate that it has: `POST /v1/renew`.
//!
//! The collector keeps the agent's id, tenant and labels; of the request only the public key is used, which is a new one while
//! the certificate lasts. One that ended renews its own key only, so that who found it without its key gains nothing.

use tickbird_shared::Timestamp;
use tickbird_shared::enrolment::{RenewalAnswer, RenewalRequest};

use super::IngestError;
use super::authenticate::Peer;
use crate::certificates::Certificates;
use crate::ledger::{self, Renewal, Standing, Unavailable};
use crate::pki::{MAX_REQUEST_BYTES, Request};

/// Largest body: a request within JSON.
const MAX_BODY: usize = MAX_REQUEST_BYTES + 1_024;

/// What renewing needs.
#[derive(Debug)]
pub(super) struct Renewals {
    ledger: ledger::Handle,
    certificates: Certificates,
    /// Where agents send their records.
    url: String,
}

impl Renewals {
    pub(super) const fn new(ledger: ledger::Handle, certificates: Certificates, url: String) -> Self {
        Self { ledger, certificates, url }
    }

    pub(super) const fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// A new certificate for `peer`. Its end is on the disk before it is signed.
    pub(super) async fn renew(&self, peer: &Peer, body: &[u8], now: Timestamp) -> Result<RenewalAnswer, IngestError> {
        if self.ledger.directory().standing(&peer.agent) != Some(Standing::Admitted) || !peer.may_renew(now) {
            return Err(IngestError::NotAdmitted);
        }
        if !peer.is_ours {
            return Err(IngestError::Request("it is renewed by the authority that signed it"));
        }
        if body.len() > MAX_BODY {
            return Err(IngestError::TooLarge);
        }
        let asked: RenewalRequest =
            serde_json::from_slice(body).map_err(|error| IngestError::Malformed(error.to_string()))?;
        let request = Request::read(&asked.csr)
            .map_err(|_| IngestError::Request("it is no signing request of a P-256 key, signed by that key"))?;
        if peer.is_valid(now).is_err() && !request.is_of(&peer.certificate) {
            return Err(IngestError::Request("a certificate that has ended is renewed with its own key"));
        }
        let renewal =
            Renewal { agent: peer.agent.clone(), certificate_expires_at: self.certificates.agent_expiry(now) };
        if !self.ledger.renew(renewal).await? {
            return Err(IngestError::NotAdmitted);
        }
        let (tenant, id) = (&*peer.agent.tenant, &*peer.agent.id);
        let signed = self.certificates.sign(&request, (tenant, id), now).map_err(|error| {
            tracing::error!(agent = id, %error, "an agent's certificate could not be renewed");
            IngestError::from(Unavailable::Failed)
        })?;
        tracing::info!(agent = id, until = %signed.expires_at, "certificate renewed");
        Ok(RenewalAnswer {
            certificate: signed.certificate,
            authority: self.certificates.bundle(now),
            url: self.url.clone(),
            expires_at: signed.expires_at,
        })
    }
}
