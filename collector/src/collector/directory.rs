//! A collector's directory: what is in it, and how a new one is made.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tickbird_shared::{Labels, Timestamp};

use super::CollectorError;
use crate::pki::{self, Authority, Keyring, Lives};
use crate::store::Writer;
use crate::token::{self, Terms};

/// How long the first enrolment token may be used, and for how many agents: enough to enrol a first fleet by hand.
const FIRST_TOKEN: (Duration, u32) = (Duration::from_secs(24 * 3600), 100);

/// Names of the files in a collector's directory.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

impl Directory {
    /// The directory at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes a new collector here: authority, server certificate for `names`, `configuration`, store and first tokens.
    /// `lives` are those of the configuration.
    ///
    /// # Errors
    /// When the directory holds something, a name cannot be in a certificate, or something cannot be written.
    pub fn create(
        &self,
        names: &[String],
        configuration: &str,
        lives: Lives,
        now: Timestamp,
    ) -> Result<Created, CollectorError> {
        let authority = Authority::create(lives.authority, now)?;
        // Before anything is written, so that a wrong name leaves nothing behind.
        let server = authority.sign_server(names, lives.server, now)?;
        let fingerprint = authority.fingerprint();
        self.make_empty()?;
        Keyring::new(authority).write(&self.authority_key(), &self.authority(), now)?;
        pki::write_secret(&self.server_key(), &server.key)?;
        pki::write_public(&self.server(), &server.certificate)?;
        pki::write_public(&self.config(), configuration)?;

        let (api_row, admin_token) = token::api("admin", "admin", now);
        let (ttl, uses) = FIRST_TOKEN;
        let terms = Terms { ttl, uses, labels: Labels::default(), ephemeral: false };
        let (token_row, enrolment_token) = token::enrolment(fingerprint, terms, now);
        let mut writer = Writer::create(&self.store())?;
        let transaction = writer.transaction()?;
        transaction.add_api_token(&api_row)?;
        transaction.add_token(&token_row)?;
        transaction.commit()?;
        writer.close()?;
        // The names of the new files survive a power cut, too.
        let synced = fs::File::open(&self.0).and_then(|directory| directory.sync_all());
        synced.map_err(|source| self.failed(source))?;
        Ok(Created { admin_token, enrolment_token: enrolment_token.reveal() })
    }

    /// `collector.toml`.
    pub fn config(&self) -> PathBuf {
        self.0.join("collector.toml")
    }

    /// `store.db`.
    pub fn store(&self) -> PathBuf {
        self.0.join("store.db")
    }

    /// `ca.pem`: what agents and people trust.
    pub fn authority(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// `ca.key`: every generation of the authority with its certificate.
    pub fn authority_key(&self) -> PathBuf {
        self.0.join("ca.key")
    }

    /// `server.pem`: the server's certificate and its authority's.
    pub fn server(&self) -> PathBuf {
        self.0.join("server.pem")
    }

    /// `server.key`.
    pub fn server_key(&self) -> PathBuf {
        self.0.join("server.key")
    }

    /// `addresses.json`: where a serving collector listens; gone when it ended well.
    pub fn addresses(&self) -> PathBuf {
        self.0.join("addresses.json")
    }

    fn make_empty(&self) -> Result<(), CollectorError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(|source| self.failed(source))?;
        match fs::read_dir(&self.0).map_err(|source| self.failed(source))?.next() {
            None => Ok(()),
            Some(_) => Err(CollectorError::NotEmpty(self.0.clone())),
        }
    }

    fn failed(&self, source: std::io::Error) -> CollectorError {
        CollectorError::Directory { path: self.0.clone(), source }
    }
}

/// The secrets of a new collector; they are kept nowhere else. Not `Debug`.
pub struct Created {
    /// For the API, as administrator.
    pub admin_token: String,
    /// For the first agents.
    pub enrolment_token: String,
}
