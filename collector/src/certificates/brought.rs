//! Certificates of another PKI: which files, what they hold, and which agent a certificate of theirs names.
//!
//! They are renewed by whoever made them; here they are read again at each look. What cannot be used is refused as a whole, and
//! what was read before goes on.

use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tickbird_shared::Timestamp;
use x509_parser::extensions::GeneralName;

use crate::pki::{self, PkiError, Validity};
use crate::token::DEFAULT_TENANT;

/// What an operator brings for one listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brought {
    /// The server's certificate with its chain, its key, and the authorities that agents should trust for it.
    pub server: Option<ServerFiles>,
    /// Authorities of clients.
    pub clients: Option<PathBuf>,
}

/// A server's certificate that was not signed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// The certificate, then those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Its authority, for those who are to trust it.
    pub authority: PathBuf,
}

/// Where a certificate of another PKI names its agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Naming {
    /// In its one URI `tickbird://default/<id>`.
    #[default]
    Uri,
    /// Its one DNS name is the id.
    Dns,
    /// Its subject's one common name is the id.
    CommonName,
}

/// What the files of one listener held when they were last good.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) server: Option<HeldServer>,
    pub(super) clients: Vec<CertificateDer<'static>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct HeldServer {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) authorities: Vec<CertificateDer<'static>>,
}

impl Brought {
    /// Every file that is named.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let server = self.server.iter().flat_map(|it| [&it.certificate, &it.key, &it.authority]);
        server.chain(&self.clients).map(PathBuf::as_path)
    }

    /// Reads all files; a server's certificate that is not valid at `now` is refused.
    pub(super) fn read(&self, now: Option<Timestamp>) -> Result<Held, PkiError> {
        let server = self.server.as_ref().map(|files| {
            let chain = pki::read_chain(&files.certificate)?;
            let malformed = |what| PkiError::Malformed { path: files.certificate.clone(), what };
            let validity = Validity::of(&chain[0]).ok_or_else(|| malformed("certificates in PEM"))?;
            if now.is_some_and(|now| !validity.holds(now)) {
                return Err(malformed("a certificate that is valid now"));
            }
            let authorities = pki::read_chain(&files.authority)?;
            // A token names the first, and an agent that enrols looks for it in what it is shown.
            let (mut chain, first) = (chain, &authorities[0]);
            if !chain.contains(first) {
                chain.push(first.clone());
            }
            Ok(HeldServer { chain, key: pki::read_key(&files.key)?, authorities })
        });
        let clients = self.clients.as_deref().map(pki::read_chain).transpose()?.unwrap_or_default();
        Ok(Held { server: server.transpose()?, clients })
    }
}

impl Naming {
    /// Tenant and id of the agent that a certificate of another PKI names, if it names exactly one.
    pub(super) fn agent_of(self, certificate: &CertificateDer<'_>) -> Option<(String, String)> {
        let id = match self {
            Self::Uri => {
                let (tenant, id) = pki::agent_of(certificate)?;
                Some(id).filter(|_| tenant == DEFAULT_TENANT)
            }
            Self::Dns => {
                let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
                let names = parsed.subject_alternative_name().ok()??;
                only(names.value.general_names.iter().filter_map(|name| match name {
                    GeneralName::DNSName(name) => Some((*name).to_owned()),
                    _ => None,
                }))
            }
            Self::CommonName => {
                let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
                only(parsed.subject().iter_common_name().map(|it| it.as_str().unwrap_or_default().to_owned()))
            }
        };
        // Names that enrolment gives out belong to our own authority.
        let id = id.filter(|id| pki::is_plain(id) && !pki::is_assigned(id))?;
        Some((DEFAULT_TENANT.to_owned(), id))
    }
}

/// The one item; a second would leave open who speaks.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common_names: &[&str], dns: &[&str], uris: &[&str]) -> CertificateDer<'static> {
        let mut params =
            CertificateParams::new(dns.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in common_names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let uri = |it: &&str| SanType::URI((*it).try_into().expect("a URI"));
        params.subject_alt_names.extend(uris.iter().map(uri));
        params.self_signed(&KeyPair::generate().expect("makes one")).expect("signs").der().clone()
    }

    #[test]
    fn an_agent_is_named_where_the_configuration_says_and_only_once() {
        let it = certificate(&["web-1"], &["web-1.example.org"], &["tickbird://default/shop-1"]);
        let id = |naming: Naming, it: &CertificateDer<'_>| naming.agent_of(it).map(|(_, id)| id);
        assert_eq!(id(Naming::Uri, &it).as_deref(), Some("shop-1"));
        assert_eq!(id(Naming::Dns, &it).as_deref(), Some("web-1.example.org"));
        assert_eq!(id(Naming::CommonName, &it).as_deref(), Some("web-1"));
        let two = certificate(&["web 1"], &["a", "b"], &["tickbird://other/shop-1"]);
        assert_eq!([Naming::Uri, Naming::Dns, Naming::CommonName].map(|naming| id(naming, &two)), [None, None, None]);
        let assigned = certificate(&["a-01kaf2zv3w0000000000000000"], &[], &[]);
        assert_eq!(id(Naming::CommonName, &assigned), None, "it would speak for an agent that was enrolled");
    }

    proptest! {
        #[test]
        fn no_certificate_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let it = CertificateDer::from(bytes);
            for naming in [Naming::Uri, Naming::Dns, Naming::CommonName] {
                prop_assert_eq!(naming.agent_of(&it), None);
            }
        }
    }
}
