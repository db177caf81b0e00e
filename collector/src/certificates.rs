//! The collector's own certificates while it serves: shown, renewed in time, and swapped without ending a session.
//!
//! [`Certificates::keep`] looks at them every two seconds. What it changes is on the disk before it is shown; a listener takes
//! what it shows with each new connection, so those that stand are not touched. A look that fails changes nothing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tickbird_shared::Timestamp;
use tokio::sync::watch;

use crate::listener;
use crate::pki::life::{Kept, Life};
use crate::pki::{self, AgentCertificate, Keyring, Lives, PkiError, Request, Validity};

mod brought;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod verifier;

pub use brought::{Brought, Naming, ServerFiles};

use brought::Held;
use verifier::AgentVerifier;

/// Between two looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where they are.
#[derive(Debug, Clone)]
pub struct Files {
    /// Keys and certificates of the authority.
    pub authority_key: PathBuf,
    /// What others trust.
    pub authority: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// The server's certificate and its authority's.
    pub server: PathBuf,
}

/// What is configured of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// How long what is signed here is valid.
    pub lives: Lives,
    /// Of another PKI, for the listener for agents.
    pub agents: Brought,
    /// Of another PKI, for the listener for people.
    pub people: Brought,
    /// Where a client certificate of another PKI names its agent.
    pub naming: Naming,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// A file of them.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A key that does not fit its certificate, or one that TLS cannot use.
    #[error("`{certificate}` and `{key}` cannot be used for TLS")]
    Tls {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
}

impl Settings {
    /// Every file that is read again while the collector serves, beside those in its directory.
    pub fn read_again(&self) -> impl Iterator<Item = &Path> {
        [&self.agents, &self.people].into_iter().flat_map(Brought::files)
    }

    const fn of(&self, side: Side) -> &Brought {
        match side {
            Side::Agents => &self.agents,
            Side::People => &self.people,
        }
    }
}

impl CertificatesError {
    fn tls(certificate: &Path, key: &Path) -> impl FnOnce(rustls::Error) -> Self + use<> {
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        move |source| Self::Tls { certificate, key, source }
    }

    /// What an operator can do.
    pub const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Pki(error) => error.advice(),
            Self::Tls { .. } => Some("put a key beside it that belongs to the certificate"),
        }
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Certificates(Arc<Shared>);

struct Shared {
    files: Files,
    settings: Settings,
    own: Mutex<Own>,
    shown: Shown,
}

/// What stands in the files.
struct Own {
    ring: Keyring,
    server: Vec<CertificateDer<'static>>,
    /// Of other PKIs, for agents and for people.
    brought: [Held; 2],
    /// Of what is shown of our own, on each side.
    marks: [Vec<CertificateDer<'static>>; 2],
}

/// What the other parts see.
struct Shown {
    sides: [watch::Sender<Arc<ServerConfig>>; 2],
    kept: watch::Sender<Kept>,
}

/// A listener, as an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Agents,
    People,
}

impl Certificates {
    /// Reads the files, and renews what is due.
    ///
    /// # Errors
    /// When something cannot be read or used.
    pub fn open(files: Files, settings: Settings, now: Timestamp) -> Result<Self, CertificatesError> {
        let ring = Keyring::read(&files.authority_key, &files.authority)?;
        let server = pki::read_chain(&files.server)?;
        // One that has ended is shown all the same: who restarts a collector wants it to page, and to say so.
        let brought = [settings.agents.read(None)?, settings.people.read(None)?];
        let mut own = Own { ring, server, brought, marks: [Vec::new(), Vec::new()] };
        let failure = own.renew(&files, settings.lives, now).err().map(|error| told(&error));
        if let Some(error) = &failure {
            tracing::error!(error, "the collector's certificates could not be renewed");
        }
        own.marks = [own.mark(now), own.mark(now)];
        let show = |side: Side| {
            let config = own.tls(side, &files, &settings, &own.brought[side as usize], now)?;
            Ok::<_, CertificatesError>(watch::Sender::new(Arc::new(config)))
        };
        let sides = [show(Side::Agents)?, show(Side::People)?];
        let shown = Shown { sides, kept: watch::Sender::new(Kept { lives: own.lives(now), failure }) };
        Ok(Self(Arc::new(Shared { files, settings, own: Mutex::new(own), shown })))
    }

    /// One look: renews what is due and shows what has changed. Blocks on the disk.
    pub fn keep(&self, now: Timestamp) {
        let Shared { files, settings, own, shown } = &*self.0;
        let mut own = own.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failure = own.renew(files, settings.lives, now).err();
        for side in [Side::Agents, Side::People] {
            let (config, fault) = own.look(side, files, settings, now);
            if let Some(config) = config {
                shown.sides[side as usize].send_replace(Arc::new(config));
            }
            failure = failure.or(fault);
        }
        let kept = Kept { lives: own.lives(now), failure: failure.map(|error| told(&error)) };
        shown.kept.send_if_modified(|shown| {
            if kept.failure.is_some() && kept.failure != shown.failure {
                tracing::error!(error = kept.failure, "the collector's certificates stay as they are");
            }
            let is_news = *shown != kept;
            *shown = kept;
            is_news
        });
    }

    /// What the listener for agents shows.
    pub fn for_agents(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.0.shown.sides[Side::Agents as usize].subscribe()
    }

    /// What the listener for people shows.
    pub fn for_people(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.0.shown.sides[Side::People as usize].subscribe()
    }

    /// When our own end, and why they are not renewed.
    pub fn kept(&self) -> watch::Receiver<Kept> {
        self.0.shown.kept.subscribe()
    }

    /// What agents should trust, PEM; first what enrolment tokens name.
    pub fn bundle(&self, now: Timestamp) -> String {
        self.with(|own| {
            let [agents, people] = &own.brought;
            let brought = [people, agents].into_iter().filter_map(|it| it.server.as_ref());
            let mut pems: Vec<String> =
                brought.flat_map(|it| it.authorities.iter().map(|it| pki::encode(it))).collect();
            pems.dedup();
            pems.push(own.ring.bundle(now));
            pems.concat()
        })
    }

    /// When a certificate ends that an agent gets now.
    pub fn agent_expiry(&self, now: Timestamp) -> Timestamp {
        self.with(|own| own.ring.signer(now).agent_expiry(self.0.settings.lives.agent, now))
    }

    /// Signs the key of a request for an agent.
    ///
    /// # Errors
    /// When the names cannot be in a certificate.
    pub fn sign(
        &self,
        request: &Request,
        (tenant, agent): (&str, &str),
        now: Timestamp,
    ) -> Result<AgentCertificate, PkiError> {
        self.with(|own| own.ring.signer(now).sign_agent(request, (tenant, agent), self.0.settings.lives.agent, now))
    }

    /// The first host name or address of the certificate that agents are shown.
    pub fn first_name(&self) -> Option<String> {
        self.with(|own| {
            let brought = own.brought[0].server.as_ref().map(|it| &it.chain);
            pki::names_of(brought.unwrap_or(&own.server).first()?).into_iter().next()
        })
    }

    /// Tenant and id of the agent that shows this certificate, which was verified, and whether it was signed here; `None` when
    /// it names no agent.
    pub fn agent_of(&self, certificate: &CertificateDer<'_>, now: Timestamp) -> Option<(String, String, bool)> {
        let is_ours = self
            .with(|own| own.brought[0].clients.is_empty() || verifier::is_of(own.ring.remembered(now), certificate));
        let naming = self.0.settings.naming;
        let (tenant, id) = if is_ours { pki::agent_of(certificate) } else { naming.agent_of(certificate) }?;
        Some((tenant, id, is_ours))
    }

    fn with<T>(&self, look: impl FnOnce(&Own) -> T) -> T {
        look(&self.0.own.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.0.files).finish_non_exhaustive()
    }
}

impl Own {
    /// Makes and writes what is due: a successor of the authority, a new certificate for the server's key.
    fn renew(&mut self, files: &Files, lives: Lives, now: Timestamp) -> Result<(), CertificatesError> {
        if self.ring.is_due(lives.authority, now) {
            let mut next = Keyring::read(&files.authority_key, &files.authority)?;
            next.succeed(lives.authority, now)?;
            next.write(&files.authority_key, &files.authority, now)?;
            self.ring = next;
            let (successor, ends) = (self.ring.newest().fingerprint(), self.ring.newest().validity().ends);
            tracing::info!(successor, %ends, "the authority has a successor");
        }
        // What people trust: the one that signs first, and none that has ended.
        pki::publish(&files.authority, &self.ring.bundle(now))?;
        let signer = self.ring.signer(now);
        let is_signers = self.server.get(1).is_some_and(|it| it == signer.certificate());
        let is_due = self.server.first().and_then(Validity::of).is_none_or(|it| it.is_due(lives.server, now));
        if is_signers && !is_due {
            return Ok(());
        }
        let malformed = |path: &PathBuf, what| PkiError::Malformed { path: path.clone(), what };
        let names = self.server.first().map(pki::names_of).unwrap_or_default();
        let key = pki::read_key(&files.server_key)?;
        let key = KeyPair::try_from(&key).map_err(|_| malformed(&files.server_key, "a private key that can sign"))?;
        let pem = signer.sign_server_key(&key, &names, lives.server, now)?;
        pki::publish(&files.server, &pem)?;
        self.server = pki::read_chain(&files.server)?;
        tracing::info!(ends = ?self.server.first().and_then(Validity::of).map(|it| it.ends), "the server's certificate is renewed");
        Ok(())
    }

    /// Everything that what is shown is made of.
    fn mark(&self, now: Timestamp) -> Vec<CertificateDer<'static>> {
        let authorities = self.ring.believed(now).chain(self.ring.remembered(now)).map(|it| it.certificate());
        self.server.iter().chain(authorities).cloned().collect()
    }

    /// What a listener should show from now on, if that has changed, and what is wrong with the files brought for it.
    fn look(
        &mut self,
        side: Side,
        files: &Files,
        settings: &Settings,
        now: Timestamp,
    ) -> (Option<ServerConfig>, Option<CertificatesError>) {
        let (index, mark) = (side as usize, self.mark(now));
        let mut fault = None;
        match settings.of(side).read(Some(now)) {
            Ok(held) if held == self.brought[index] => (),
            Ok(held) => match self.tls(side, files, settings, &held, now) {
                Ok(config) => {
                    tracing::info!(listener = ?side, "certificates of another PKI were replaced");
                    self.brought[index] = held;
                    self.marks[index] = mark;
                    return (Some(config), None);
                }
                Err(error) => fault = Some(error),
            },
            Err(error) => fault = Some(error.into()),
        }
        if mark == self.marks[index] {
            return (None, fault);
        }
        match self.tls(side, files, settings, &self.brought[index], now) {
            Ok(config) => {
                self.marks[index] = mark;
                (Some(config), fault)
            }
            Err(error) => (None, fault.or(Some(error))),
        }
    }

    fn tls(
        &self,
        side: Side,
        files: &Files,
        settings: &Settings,
        held: &Held,
        now: Timestamp,
    ) -> Result<ServerConfig, CertificatesError> {
        let brought = settings.of(side);
        let clients: Option<Arc<dyn ClientCertVerifier>> = match (side, &brought.clients) {
            (Side::Agents, _) => {
                let believed = self.ring.believed(now).map(|it| it.certificate()).chain(&held.clients);
                let remembered = self.ring.remembered(now).map(|it| it.certificate());
                let verifier = AgentVerifier::new(believed, remembered);
                Some(Arc::new(verifier.map_err(CertificatesError::tls(&files.authority, &files.authority_key))?))
            }
            (Side::People, Some(path)) => {
                Some(verifier::over(held.clients.iter()).map_err(CertificatesError::tls(path, path))?)
            }
            (Side::People, None) => None,
        };
        match (&brought.server, &held.server) {
            (Some(files), Some(held)) => server(held.chain.clone(), held.key.clone_key(), clients)
                .map_err(CertificatesError::tls(&files.certificate, &files.key)),
            _ => server(self.server.clone(), pki::read_key(&files.server_key)?, clients)
                .map_err(CertificatesError::tls(&files.server, &files.server_key)),
        }
    }

    fn lives(&self, now: Timestamp) -> Vec<Life> {
        let [agents, people] = &self.brought;
        let of = |name, chain: &[CertificateDer<'_>]| Some(Life { name, validity: Validity::of(chain.first()?)? });
        let brought = |name, held: &Held| held.server.as_ref().and_then(|it| of(name, &it.chain));
        let authority = self.ring.believed(now).last().unwrap_or_else(|| self.ring.newest());
        // One that nobody is shown is nobody's worry.
        let is_shown = agents.server.is_none() || people.server.is_none();
        let server = of("server", &self.server).filter(|_| is_shown);
        let authority = Life { name: "authority", validity: authority.validity() };
        [server, brought("agents", agents), brought("people", people), Some(authority)].into_iter().flatten().collect()
    }
}

fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = listener::tls_builder()?;
    let verifies = clients.is_some();
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    if verifies {
        // Whoever resumes shows no certificate again, and sessions of a few hundred would be kept for thousands of agents.
        config.send_tls13_tickets = 0;
    }
    config.alpn_protocols = listener::protocols();
    Ok(config)
}

/// An error with its cause, in one line.
fn told(error: &CertificatesError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
