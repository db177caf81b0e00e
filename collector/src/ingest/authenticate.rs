//! Who speaks: the certificate says it, never the body.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::ledger::AgentKey;
use crate::listener;
use crate::pki;

/// TLS for the listener of agents: a client certificate of `authority` is required.
///
/// # Errors
/// When the key does not fit the certificate, or the authority is none.
pub fn tls(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: &CertificateDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = listener::tls_builder()?.with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.alpn_protocols = listener::protocols();
    Ok(config)
}

/// The agent that a verified connection belongs to.
pub(super) fn agent(session: &ServerConnection) -> Option<AgentKey> {
    let (tenant, id) = pki::agent_of(session.peer_certificates()?.first()?)?;
    Some(AgentKey::new(&tenant, &id))
}
