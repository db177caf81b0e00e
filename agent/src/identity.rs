//! Whom this agent speaks as: the id, key and certificate that enrolment gave it.
//!
//! ```text
//! STATE/identity/          0700
//!   agent.key              0600  P-256 private key, PEM; made here, never leaves
//!   agent.pem              the collector's signature on it, 30 days; renewed in time
//!   ca.pem                 the authorities that the collector itself shows, one or two
//!   identity.json          id, tenant, labels, where to send, expiry
//! ```
//!
//! The directory is replaced as one: an agent has all four of one enrolment or renewal, or none.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tickbird_shared::{Labels, Timestamp};
use zeroize::Zeroizing;

use crate::durable_file;

pub mod files;
pub mod renewal;
pub mod tls;

/// An agent whose certificate ended this long ago, and not longer, may still renew it.
const RETURNS_WITHIN: Duration = Duration::from_secs(90 * 24 * 3600);
/// Larger is not one of ours.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// A complete identity, read from its directory.
#[derive(Clone)]
pub struct Identity {
    card: Card,
    tls: Arc<ClientConfig>,
    place: Place,
    begins: Timestamp,
    ends: Timestamp,
}

/// Where an identity comes from.
#[derive(Clone)]
enum Place {
    /// A state directory; it is renewed here.
    Enrolled(PathBuf),
    /// Files of another PKI, and the digest of what they held.
    Files(Arc<files::Files>, [u8; 32]),
}

/// `identity.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// The id the collector gave this agent.
    pub agent: String,
    /// The tenant of its token.
    pub tenant: String,
    /// The token's labels; they win over the agent's own.
    pub labels: Labels,
    /// Where to send records: `https://host:port`.
    pub url: String,
    /// End of the certificate's life.
    pub expires_at: Timestamp,
}

/// What enrolment brings.
pub struct Enrolled {
    /// Who the agent is now.
    pub card: Card,
    /// Private key, PEM.
    pub key: Zeroizing<String>,
    /// Certificate, PEM.
    pub certificate: String,
    /// Authority of the collector, PEM.
    pub authority: String,
}

/// What a renewal brings.
pub struct Renewed {
    /// Private key, PEM: a new one, or the one that was.
    pub key: Zeroizing<String>,
    /// Certificate, PEM.
    pub certificate: String,
    /// Authorities of the collector, PEM.
    pub authority: String,
    /// Where to send records: `https://host:port`.
    pub url: String,
}

/// Why there is no identity to speak as.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The agent was never enrolled with this state directory.
    #[error("this agent is not enrolled: there is no `{}`", path.display())]
    NotEnrolled {
        /// What is missing.
        path: PathBuf,
    },
    /// Enrolling again would throw the identity away.
    #[error("this agent is enrolled already: `{}` exists", path.display())]
    Exists {
        /// The identity's directory.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// `read`, `write`.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file's content is not what it should be.
    #[error("`{}` {what}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// `holds no certificate`, …
        what: &'static str,
    },
    /// Others on this host can read the private key.
    #[error("the private key `{}` can be read by others", path.display())]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
    },
    /// The certificate's life has been over for so long that it cannot be renewed.
    #[error("the certificate of agent `{agent}` expired at {at}, too long ago to be renewed")]
    Expired {
        /// Whose.
        agent: String,
        /// When.
        at: Timestamp,
    },
    /// The life of a certificate of another PKI is over.
    #[error("the certificate in `{}` ended at {at}", path.display())]
    Ended {
        /// The certificate's file.
        path: PathBuf,
        /// When.
        at: Timestamp,
    },
    /// Key, certificate and authority do not make a TLS configuration.
    #[error("the identity in `{}` cannot be used for TLS", path.display())]
    Unusable {
        /// The identity's directory, or the certificate's file.
        path: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
}

impl IdentityError {
    /// What the operator can do.
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotEnrolled { .. } => {
                "make a token with `tickbird-collector token create` and run `tickbird-agent enroll`"
            }
            Self::Exists { .. } => "nothing needs doing; to enrol under a new id all the same, add --force",
            Self::Io { .. } => "run as the agent's user, and check the owner of the state directory",
            Self::KeyExposed { .. } => "run `chmod 600` on it; if others may have read it, enrol again with --force",
            Self::Ended { .. } => "let its authority renew it: the files are read again every few seconds",
            Self::Malformed { .. } | Self::Unusable { .. } | Self::Expired { .. } => {
                "enrol again with a new token and --force"
            }
        })
    }
}

impl Identity {
    /// Reads the identity of `state_dir`.
    ///
    /// # Errors
    /// When there is none, a file of it is damaged or exposed, or its certificate ended so long before `now` that it cannot
    /// even be renewed.
    pub fn load(state_dir: &Path, now: Timestamp) -> Result<Self, IdentityError> {
        let directory = directory(state_dir);
        let card_path = directory.join("identity.json");
        let card: Card = serde_json::from_slice(&read(&card_path)?)
            .map_err(|_| IdentityError::Malformed { path: card_path, what: "is not an identity" })?;
        let key_path = directory.join("agent.key");
        let key = Zeroizing::new(read(&key_path)?);
        let mode = key_path.metadata().map_err(io_error("read", &key_path))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(IdentityError::KeyExposed { path: key_path });
        }
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|_| IdentityError::Malformed { path: key_path, what: "holds no private key" })?;
        let chain = certificates(&directory.join("agent.pem"))?;
        let authorities = certificates(&directory.join("ca.pem"))?;
        let (begins, ends) = life(&chain[0]).unwrap_or((now, card.expires_at));
        if ends.saturating_add(RETURNS_WITHIN).is_ok_and(|until| until <= now) {
            return Err(IdentityError::Expired { agent: card.agent, at: ends });
        }
        let tls = tls::as_agent(&authorities, chain, key)
            .map_err(|source| IdentityError::Unusable { path: directory, source })?;
        Ok(Self { card, tls: Arc::new(tls), place: Place::Enrolled(state_dir.to_owned()), begins, ends })
    }

    /// Puts what a renewal brought in the place of what was there, and gives the identity that comes of it. Nothing is
    /// replaced by what TLS cannot use. Blocks on the disk.
    ///
    /// # Errors
    /// When it does not fit together or cannot be written; the old identity is then as it was.
    pub fn renew(&self, renewed: Renewed) -> Result<Self, IdentityError> {
        let state_dir = self.state_dir()?;
        let path = directory(state_dir);
        let malformed = |what| IdentityError::Malformed { path: path.clone(), what };
        let Renewed { key, certificate, authority, url } = renewed;
        let read = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().ok();
        let chain =
            read(&certificate).filter(|it| !it.is_empty()).ok_or_else(|| malformed("would hold no certificate"))?;
        let authorities = read(&authority).ok_or_else(|| malformed("would hold no authority"))?;
        let parsed =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| malformed("would hold no private key"))?;
        let (begins, ends) = life(&chain[0]).ok_or_else(|| malformed("would hold no certificate"))?;
        let tls = tls::as_agent(&authorities, chain, parsed)
            .map_err(|source| IdentityError::Unusable { path: path.clone(), source })?;
        let card = Card { url, expires_at: ends, ..self.card.clone() };
        let enrolled = Enrolled { card, key, certificate, authority };
        Self::install(state_dir, &enrolled, true)?;
        Ok(Self { card: enrolled.card, tls: Arc::new(tls), place: self.place.clone(), begins, ends })
    }

    /// The private key, PEM.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn key(&self) -> Result<Zeroizing<String>, IdentityError> {
        let path = directory(self.state_dir()?).join("agent.key");
        let bytes = Zeroizing::new(read(&path)?);
        let text = std::str::from_utf8(&bytes).map(|it| Zeroizing::new(it.to_owned()));
        text.map_err(|_| IdentityError::Malformed { path, what: "holds no private key" })
    }

    /// Whether the agent renews it; else somebody else replaces its files.
    pub const fn is_renewed_here(&self) -> bool {
        matches!(self.place, Place::Enrolled(_))
    }

    /// The identity that the files of another PKI hold now; none while they hold what they did. Blocks on the disk.
    pub fn look_again(&self, now: Timestamp) -> Option<Result<Self, IdentityError>> {
        match &self.place {
            Place::Enrolled(_) => None,
            Place::Files(files, seen) => Arc::clone(files).load_changed(*seen, now),
        }
    }

    /// That its life is over, as an error.
    pub fn ended(&self) -> IdentityError {
        let path = match &self.place {
            Place::Enrolled(state_dir) => directory(state_dir),
            Place::Files(files, _) => files.certificate.clone(),
        };
        IdentityError::Ended { path, at: self.ends }
    }

    fn state_dir(&self) -> Result<&Path, IdentityError> {
        match &self.place {
            Place::Enrolled(state_dir) => Ok(state_dir),
            Place::Files(files, _) => Err(IdentityError::Malformed {
                path: files.certificate.clone(),
                what: "is of another PKI and not renewed here",
            }),
        }
    }

    /// First and last moment of the certificate's life.
    pub const fn life(&self) -> (Timestamp, Timestamp) {
        (self.begins, self.ends)
    }

    /// Whether `state_dir` holds one, readable or not.
    pub fn exists(state_dir: &Path) -> bool {
        directory(state_dir).exists()
    }

    /// Puts a new identity in the place of what was there. Atomic, and safe against a power cut.
    ///
    /// # Errors
    /// When one exists and `replace` is not set, or the files cannot be written.
    pub fn install(state_dir: &Path, enrolled: &Enrolled, replace: bool) -> Result<(), IdentityError> {
        let path = directory(state_dir);
        if path.exists() && !replace {
            return Err(IdentityError::Exists { path });
        }
        let draft = state_dir.join("identity.new");
        install_through(state_dir, &path, &draft, enrolled).map_err(io_error("write", &path))
    }

    /// Who the agent is.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// TLS 1.3 as this agent, towards its collector and nobody else.
    pub fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("card", &self.card).finish_non_exhaustive()
    }
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("identity")
}

/// Root enrols for a service that runs as somebody else: its identity belongs to whom its state directory belongs to.
fn give_to_the_owner_of(state_dir: &Path, directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, chown};
    let owner = state_dir.metadata()?;
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let (user, group) = (Some(owner.uid()), Some(owner.gid()));
    for entry in std::fs::read_dir(directory)? {
        chown(entry?.path(), user, group)?;
    }
    chown(directory, user, group)
}

fn install_through(state_dir: &Path, path: &Path, draft: &Path, enrolled: &Enrolled) -> io::Result<()> {
    durable_file::create_private_directory(state_dir)?;
    remove_directory(draft)?;
    durable_file::create_private_directory(draft)?;
    let card = serde_json::to_vec_pretty(&enrolled.card).map_err(io::Error::other)?;
    durable_file::write_new(&draft.join("agent.key"), enrolled.key.as_bytes(), 0o600)?;
    durable_file::write_new(&draft.join("agent.pem"), enrolled.certificate.as_bytes(), 0o644)?;
    durable_file::write_new(&draft.join("ca.pem"), enrolled.authority.as_bytes(), 0o644)?;
    durable_file::write_new(&draft.join("identity.json"), &card, 0o644)?;
    give_to_the_owner_of(state_dir, draft)?;
    durable_file::sync_directory(draft)?;
    if path.exists() {
        // Both names change in one step: at no moment is there no identity.
        renameat_with(CWD, draft, CWD, path, RenameFlags::EXCHANGE)?;
        durable_file::sync_directory(state_dir)?;
        return remove_directory(draft);
    }
    std::fs::rename(draft, path)?;
    durable_file::sync_directory(state_dir)
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(IdentityError::NotEnrolled { path: path.to_owned() })
        }
        Err(error) => Err(io_error("read", path)(error)),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let malformed = || IdentityError::Malformed { path: path.to_owned(), what: "holds no certificate" };
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(malformed)
}

fn life(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    Some((at(parsed.validity().not_before)?, at(parsed.validity().not_after)?))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError + use<> {
    let path = path.to_owned();
    move |source| IdentityError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    fn enrolled(agent: &str) -> Enrolled {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters = rcgen::CertificateParams::new(vec!["agent".to_owned()]).expect("parameters");
        parameters.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let certificate = parameters.self_signed(&key).expect("signed").pem();
        Enrolled {
            card: Card {
                agent: agent.into(),
                tenant: "default".into(),
                labels: Labels::default(),
                url: "https://collector.internal:7443".into(),
                expires_at: Timestamp::from_second(1_893_456_000).expect("a time"),
            },
            key: Zeroizing::new(key.serialize_pem()),
            authority: certificate.clone(),
            certificate,
        }
    }

    #[test]
    fn an_identity_comes_back_as_installed_with_its_key_for_the_owner_alone() {
        let state = tempfile::tempdir().expect("a directory");
        Identity::install(state.path(), &enrolled("a-1"), false).expect("installed");
        let identity = Identity::load(state.path(), now()).expect("loaded");
        assert_eq!(identity.card().agent, "a-1");
        let mode = |name: &str| state.path().join(name).metadata().expect("there").permissions().mode() & 0o777;
        assert_eq!((mode("identity"), mode("identity/agent.key")), (0o700, 0o600));
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }

    #[test]
    fn belongs_to_whom_the_state_directory_belongs_to() {
        use std::os::unix::fs::{MetadataExt, chown};
        let state = tempfile::tempdir().expect("a directory");
        let own = rustix::process::geteuid();
        // Only root can give a directory away; everybody else keeps its own.
        let owner = if own.is_root() { 12_345 } else { own.as_raw() };
        chown(state.path(), Some(owner), None).expect("given away");
        Identity::install(state.path(), &enrolled("a-1"), false).expect("installed");
        for name in ["identity", "identity/agent.key", "identity/identity.json"] {
            assert_eq!(state.path().join(name).metadata().expect("there").uid(), owner, "{name}");
        }
    }

    #[test]
    fn is_replaced_only_when_asked_and_then_whole() {
        let state = tempfile::tempdir().expect("a directory");
        Identity::install(state.path(), &enrolled("a-1"), false).expect("installed");
        let error = Identity::install(state.path(), &enrolled("a-2"), false).expect_err("refused");
        assert!(matches!(error, IdentityError::Exists { .. }));
        assert_eq!(Identity::load(state.path(), now()).expect("loaded").card().agent, "a-1");
        Identity::install(state.path(), &enrolled("a-2"), true).expect("replaced");
        assert_eq!(Identity::load(state.path(), now()).expect("loaded").card().agent, "a-2");
        assert!(!state.path().join("identity.new").exists(), "the old key is gone");
    }

    #[test]
    fn a_renewal_replaces_key_certificate_and_authorities_as_one_or_not_at_all() {
        let state = tempfile::tempdir().expect("a directory");
        Identity::install(state.path(), &enrolled("a-1"), false).expect("installed");
        let identity = Identity::load(state.path(), now()).expect("loaded");
        let renewed = |key: Enrolled, authority: &str| Renewed {
            key: key.key,
            certificate: key.certificate,
            authority: authority.to_owned(),
            url: "https://collector.internal:7444".into(),
        };
        let (next, other) = (enrolled("a-1"), enrolled("a-1"));
        let (certificate, both) = (next.certificate.clone(), format!("{}{}", next.authority, other.authority));
        let misfit = Renewed { key: other.key, ..renewed(enrolled("a-1"), &both) };
        assert!(matches!(identity.renew(misfit), Err(IdentityError::Unusable { .. })));
        let empty = Renewed { certificate: String::new(), ..renewed(enrolled("a-1"), &both) };
        assert!(matches!(identity.renew(empty), Err(IdentityError::Malformed { .. })));
        let same = Identity::load(state.path(), now()).expect("loaded");
        assert_eq!(*same.key().expect("read"), *identity.key().expect("read"), "what does not fit changes nothing");

        let identity = identity.renew(renewed(next, &both)).expect("renewed");
        assert_eq!(
            (identity.card().agent.as_str(), identity.card().url.as_str()),
            ("a-1", "https://collector.internal:7444")
        );
        let file = |name: &str| std::fs::read_to_string(state.path().join("identity").join(name)).expect("read");
        assert_eq!((file("agent.pem"), file("ca.pem")), (certificate, both));
        assert_eq!(Identity::load(state.path(), now()).expect("loaded").card(), identity.card());
    }

    #[test]
    fn each_way_of_being_unusable_has_its_own_error_with_advice() {
        let state = tempfile::tempdir().expect("a directory");
        let load = || Identity::load(state.path(), now()).expect_err("must fail");
        assert!(matches!(load(), IdentityError::NotEnrolled { .. }));
        let fresh = || Identity::install(state.path(), &enrolled("a-1"), true).expect("installed");
        let file = |name: &str| state.path().join("identity").join(name);

        fresh();
        std::fs::set_permissions(file("agent.key"), PermissionsExt::from_mode(0o640)).expect("set");
        assert!(matches!(load(), IdentityError::KeyExposed { .. }));
        fresh();
        std::fs::remove_file(file("agent.pem")).expect("removed");
        assert!(matches!(load(), IdentityError::NotEnrolled { .. }));
        fresh();
        std::fs::write(file("ca.pem"), "nothing").expect("written");
        assert!(matches!(load(), IdentityError::Malformed { what: "holds no certificate", .. }));
        fresh();
        std::fs::write(file("agent.key"), "nothing").expect("written");
        assert!(matches!(load(), IdentityError::Malformed { what: "holds no private key", .. }));
        fresh();
        let other = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        std::fs::write(file("agent.key"), other).expect("written");
        assert!(matches!(load(), IdentityError::Unusable { .. }));
        fresh();
        let late = Timestamp::from_second(1_893_456_000 + 89 * 86_400).expect("a time");
        let ended = Identity::load(state.path(), late).expect("it may be renewed");
        assert!(ended.life().1 < late);
        let late = Timestamp::from_second(1_893_456_000 + 90 * 86_400).expect("a time");
        let error = Identity::load(state.path(), late).expect_err("expired");
        assert!(matches!(error, IdentityError::Expired { .. }));
        assert!(error.advice().is_some_and(|advice| advice.contains("token")));
    }
}
