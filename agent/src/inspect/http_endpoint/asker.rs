//! What asks one endpoint, whatever is then done with its answer.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::request::{self, Course, Received};
use super::{Certificate, Config, EndpointUrl, Phase, ProbeFailure};
use crate::inspect::tls_certificate::{Demand, Verifier};

/// One endpoint, its patience and its trust. Each request has a connection of its own.
pub(in crate::inspect) struct Asker {
    url: EndpointUrl,
    timeout: Duration,
    verifier: Arc<Verifier>,
    tls: Arc<ClientConfig>,
}

impl Asker {
    /// Makes no connection yet.
    pub(in crate::inspect) fn new(config: &Config) -> Self {
        // Authorities take memory, and plain HTTP asks none.
        let demand = if config.url.is_https { Demand::AuthorityAndName } else { Demand::Nothing };
        let verifier = Verifier::new(demand, &config.authorities, false);
        Self {
            url: config.url.clone(),
            timeout: config.timeout,
            tls: Arc::new(verifier.client_config(&[b"http/1.1"])),
            verifier,
        }
    }

    /// One request: its answer, of which at most a mebibyte is read, and how long each phase took.
    pub(in crate::inspect) async fn ask(&self) -> (Result<Received, ProbeFailure>, Vec<(Phase, Duration)>) {
        let mut course = Course::within(self.timeout);
        let received = request::ask(&self.url, &self.tls, &mut course).await;
        (received, course.phases)
    }

    /// The certificate that the last handshake showed.
    pub(super) fn take_certificate(&self) -> Option<Certificate> {
        self.verifier.take_seen()
    }
}
