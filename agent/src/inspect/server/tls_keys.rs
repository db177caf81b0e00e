//! What a URL says of TLS, in the keys of redis-py: whom to trust, and who we are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;

use crate::inspect::postgres::DsnError;
use crate::inspect::tls_certificate::{self, ClientIdentity, Demand, Verifier};

/// What TLS is to prove, of the server and of us.
#[derive(Clone)]
pub(in crate::inspect) struct Tls {
    demand: Demand,
    authorities: Vec<CertificateDer<'static>>,
    /// Some servers ask their clients for a certificate.
    identity: Option<ClientIdentity>,
}

impl Tls {
    /// Made once, since authorities are read for it.
    pub(in crate::inspect) fn client_config(&self) -> Arc<ClientConfig> {
        let verifier = Verifier::new(self.demand, &self.authorities, !self.authorities.is_empty());
        Arc::new(verifier.client_config_as(&[], self.identity.as_ref().map(ClientIdentity::resolver)))
    }

    /// How strict it is.
    #[cfg(test)]
    pub(in crate::inspect) const fn demand(&self) -> Demand {
        self.demand
    }
}

/// The keys while they are read: `ssl_ca_certs`, `ssl_cert_reqs` (`required`, the default, or `none`),
/// `ssl_check_hostname`, `ssl_certfile` and `ssl_keyfile`.
pub(in crate::inspect) struct TlsKeys {
    is_checked: bool,
    has_name: bool,
    authorities: Vec<CertificateDer<'static>>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    /// The first that was given.
    given: Option<&'static str>,
}

impl TlsKeys {
    /// None yet.
    pub(in crate::inspect) const fn none() -> Self {
        Self { is_checked: true, has_name: true, authorities: Vec::new(), certificate: None, key: None, given: None }
    }

    /// Takes one key in; false when it is none of TLS.
    pub(in crate::inspect) fn take(&mut self, name: &str, value: &str) -> Result<bool, DsnError> {
        let wrong = |key, expected| DsnError::Value { key, expected };
        let lower = value.to_ascii_lowercase();
        let key = match name {
            "ssl_ca_certs" => {
                let read = tls_certificate::read_file(Path::new(value));
                self.authorities = read.map_err(|_| wrong("ssl_ca_certs", "a readable file with PEM certificates"))?;
                "ssl_ca_certs"
            }
            "ssl_cert_reqs" => {
                self.is_checked = match lower.as_str() {
                    "required" => true,
                    "none" => false,
                    _ => return Err(wrong("ssl_cert_reqs", "`required` or `none`")),
                };
                "ssl_cert_reqs"
            }
            "ssl_check_hostname" => {
                self.has_name = match lower.as_str() {
                    "true" | "1" | "yes" => true,
                    "false" | "0" | "no" => false,
                    _ => return Err(wrong("ssl_check_hostname", "`true` or `false`")),
                };
                "ssl_check_hostname"
            }
            "ssl_certfile" => {
                self.certificate = Some(PathBuf::from(value));
                "ssl_certfile"
            }
            "ssl_keyfile" => {
                self.key = Some(PathBuf::from(value));
                "ssl_keyfile"
            }
            _ => return Ok(false),
        };
        self.given.get_or_insert(key);
        Ok(true)
    }

    /// Of a URL whose scheme is without TLS: to ignore them would be to send a password in the clear that was meant to be
    /// encrypted.
    pub(in crate::inspect) fn refuse(self, expected: &'static str) -> Result<(), DsnError> {
        self.given.map_or(Ok(()), |key| Err(DsnError::Value { key, expected }))
    }

    /// Of a URL with TLS.
    pub(in crate::inspect) fn read(self) -> Result<Tls, DsnError> {
        let demand = match (self.is_checked, self.has_name) {
            (false, _) => Demand::Nothing,
            (true, false) => Demand::Authority,
            (true, true) => Demand::AuthorityAndName,
        };
        let identity = match (self.certificate, self.key) {
            (None, None) => None,
            (Some(_), None) => return Err(DsnError::Missing { what: "ssl_keyfile" }),
            (None, Some(_)) => return Err(DsnError::Missing { what: "ssl_certfile" }),
            (Some(certificate), Some(key)) => {
                let expected = "a readable PEM file with a certificate, and its key in `ssl_keyfile`";
                let read = ClientIdentity::read(&certificate, &key);
                Some(read.map_err(|_| DsnError::Value { key: "ssl_certfile", expected })?)
            }
        };
        Ok(Tls { demand, authorities: self.authorities, identity })
    }
}
