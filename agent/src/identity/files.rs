//! An identity of another PKI: files that somebody else writes and renews, named by the configuration.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tickbird_shared::{Labels, Timestamp};
use zeroize::Zeroizing;

use super::{Card, Identity, IdentityError, Place, io_error, life, read, tls};

/// Where they are, and what the certificate calls this agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The agent's id, as the collector reads it from the certificate.
    pub agent: String,
    /// Where records go: `https://host:port`.
    pub url: String,
    /// The certificate, then those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of the collector.
    pub authority: PathBuf,
}

/// Tenant of all agents of another PKI.
const TENANT: &str = "default";

/// What the files held when they were read.
struct Content {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    authority: Vec<u8>,
}

impl Files {
    /// Reads them.
    ///
    /// # Errors
    /// When one cannot be read, holds something else, is exposed, has ended, or they do not belong together.
    pub fn load(self: Arc<Self>, now: Timestamp) -> Result<Identity, IdentityError> {
        let content = self.read()?;
        self.identity(&content, now)
    }

    /// Reads them again; none while they hold what they did.
    pub(super) fn load_changed(
        self: Arc<Self>,
        seen: [u8; 32],
        now: Timestamp,
    ) -> Option<Result<Identity, IdentityError>> {
        match self.read() {
            Ok(content) if content.digest() == seen => None,
            Ok(content) => Some(self.identity(&content, now)),
            Err(error) => Some(Err(error)),
        }
    }

    fn read(&self) -> Result<Content, IdentityError> {
        let of = |path: &Path| {
            read(path).map_err(|error| match error {
                IdentityError::NotEnrolled { path } => io_error("read", &path)(io::ErrorKind::NotFound.into()),
                other => other,
            })
        };
        let mode = self.key.metadata().map_err(io_error("read", &self.key))?.permissions().mode();
        // A group may be meant to read it; everybody cannot be.
        if mode & 0o007 != 0 {
            return Err(IdentityError::KeyExposed { path: self.key.clone() });
        }
        let key = Zeroizing::new(of(&self.key)?);
        Ok(Content { certificate: of(&self.certificate)?, key, authority: of(&self.authority)? })
    }

    fn identity(self: Arc<Self>, content: &Content, now: Timestamp) -> Result<Identity, IdentityError> {
        let malformed = |path: &Path, what| IdentityError::Malformed { path: path.to_owned(), what };
        let certificates = |pem: &[u8], path: &Path| {
            let found: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(pem).collect();
            found.ok().filter(|it| !it.is_empty()).ok_or_else(|| malformed(path, "holds no certificate"))
        };
        let chain = certificates(&content.certificate, &self.certificate)?;
        let authorities = certificates(&content.authority, &self.authority)?;
        let key =
            PrivateKeyDer::from_pem_slice(&content.key).map_err(|_| malformed(&self.key, "holds no private key"))?;
        let (begins, ends) = life(&chain[0]).ok_or_else(|| malformed(&self.certificate, "holds no certificate"))?;
        if ends <= now {
            return Err(IdentityError::Ended { path: self.certificate.clone(), at: ends });
        }
        let tls = tls::as_agent(&authorities, chain, key)
            .map_err(|source| IdentityError::Unusable { path: self.certificate.clone(), source })?;
        let card = Card {
            agent: self.agent.clone(),
            tenant: TENANT.to_owned(),
            labels: Labels::default(),
            url: self.url.clone(),
            expires_at: ends,
        };
        let place = Place::Files(self, content.digest());
        Ok(Identity { card, tls: Arc::new(tls), place, begins, ends })
    }
}

impl Content {
    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [&self.certificate, &*self.key, &self.authority] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    /// Writes a certificate that ends in this year, and its key.
    fn write(files: &Files, year: i32) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters = rcgen::CertificateParams::new(vec!["web-1".to_owned()]).expect("parameters");
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = parameters.self_signed(&key).expect("signed").pem();
        std::fs::write(&files.certificate, &certificate).expect("written");
        std::fs::write(&files.authority, certificate).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o640)).expect("set");
    }

    #[test]
    fn files_are_taken_over_when_they_change_and_are_good() {
        let room = tempfile::tempdir().expect("a directory");
        let files = Arc::new(Files {
            agent: "web-1".into(),
            url: "https://collector.internal:7443".into(),
            certificate: room.path().join("tls.crt"),
            key: room.path().join("tls.key"),
            authority: room.path().join("ca.crt"),
        });
        assert!(matches!(Arc::clone(&files).load(now()), Err(IdentityError::Io { .. })));
        write(&files, 2030);
        let identity = Arc::clone(&files).load(now()).expect("good");
        assert_eq!((identity.card().agent.as_str(), identity.card().tenant.as_str()), ("web-1", "default"));
        assert!(identity.look_again(now()).is_none(), "nothing has changed");
        assert!(!identity.is_renewed_here());

        let good = std::fs::read(&files.key).expect("read");
        std::fs::write(&files.key, "half of a key").expect("written");
        assert!(matches!(identity.look_again(now()), Some(Err(IdentityError::Malformed { .. }))));
        std::fs::write(&files.key, good).expect("written");
        assert!(identity.look_again(now()).is_none());
        write(&files, 2020);
        assert!(matches!(identity.look_again(now()), Some(Err(IdentityError::Ended { .. }))));
        write(&files, 2040);
        let next = identity.look_again(now()).expect("it changed").expect("it is good");
        assert!(next.life().1 > identity.life().1);
        std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o644)).expect("set");
        assert!(matches!(next.look_again(now()), Some(Err(IdentityError::KeyExposed { .. }))));
    }
}
