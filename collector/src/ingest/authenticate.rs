//! Who speaks, and for what it may be heard: the certificate says it, never the body.

use axum::http::HeaderMap;
use rustls::ServerConnection;
use rustls_pki_types::CertificateDer;
use tickbird_shared::Timestamp;
use tickbird_shared::protocol::AGENT_HEADER;

use super::IngestError;
use crate::certificates::Certificates;
use crate::ledger::AgentKey;
use crate::pki::Validity;

/// Whom a verified connection belongs to.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) agent: AgentKey,
    pub(super) certificate: CertificateDer<'static>,
    /// Signed here; else by another PKI, which renews it.
    pub(super) is_ours: bool,
    /// Life of the certificate, which the connection may outlast.
    validity: Validity,
}

impl Peer {
    /// The agent of a connection; `None` when its certificate is no agent's.
    pub(super) fn of(session: &ServerConnection, certificates: &Certificates, now: Timestamp) -> Option<Self> {
        let certificate = session.peer_certificates()?.first()?;
        let (tenant, id, is_ours) = certificates.agent_of(certificate, now)?;
        let validity = Validity::of(certificate)?;
        let agent = AgentKey::new(&tenant, &id);
        Some(Self { agent, certificate: certificate.clone().into_owned(), is_ours, validity })
    }

    /// End of the certificate's life.
    pub(super) const fn ends(&self) -> Timestamp {
        self.validity.ends
    }

    /// An agent that says who it is must be whom its certificate names: else what it finds would be refused one by one.
    pub(super) fn is_meant(&self, headers: &HeaderMap) -> Result<(), IngestError> {
        match headers.get(AGENT_HEADER) {
            Some(said) if said.as_bytes() != self.agent.id.as_bytes() => Err(IngestError::OtherAgent),
            _ => Ok(()),
        }
    }

    /// Whether its certificate speaks for it now.
    pub(super) fn is_valid(&self, now: Timestamp) -> Result<(), IngestError> {
        // One of another PKI that has not begun was let in by a clock that was set since; its agent could not renew it.
        let is_good = if self.is_ours { self.validity.holds(now) } else { now < self.validity.ends };
        if is_good { Ok(()) } else { Err(IngestError::CertificateEnded) }
    }

    /// Whether its certificate may be renewed.
    pub(super) fn may_renew(&self, now: Timestamp) -> bool {
        self.validity.may_return(now)
    }
}
