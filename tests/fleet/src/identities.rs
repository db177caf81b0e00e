//! The identities of a fleet: enrolled once with a token, as `tickbird-agent enroll` does, and kept in one file.
//!
//! One line of JSON each, private key included, so the file is readable by its owner alone.

use std::fs::OpenOptions;
use std::io::{self, BufRead, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tickbird_agent::identity::{Enrolled, tls};
use tickbird_agent::ship::enrolment::{EnrolError, Enrolment};
use tickbird_agent::ship::{ConnectionError, Origin, OriginError};
use tickbird_shared::backoff::Backoff;
use tickbird_shared::enrolment::EnrolmentToken;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Enrolments under way at once: as many as the collector works on.
const AT_ONCE: usize = 8;
/// Begun a second: nine tenths of the handshakes that the listener for people takes from one address.
const A_SECOND: f64 = 180.0;
/// How long one agent tries.
const PATIENCE: Duration = Duration::from_secs(60);

/// One agent's.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The id that the collector gave it.
    pub agent: String,
    /// Its tenant.
    pub tenant: String,
    /// Where records go.
    pub url: String,
    key: String,
    certificate: String,
    authority: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The collector gave none.
    #[error("agent {number} cannot be enrolled: {source}")]
    Enrol {
        /// Which one, from 1.
        number: usize,
        /// Why not.
        source: EnrolError,
    },
    /// The file cannot be read or written.
    #[error("cannot {doing} `{}`: {source}", path.display())]
    File {
        /// `read`, `write`.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of the file is no identity.
    #[error("`{}`, line {line}, is not an identity", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// The collector says that records go to an address that cannot be read.
    #[error("records cannot be sent to `{url}`: {source}")]
    Url {
        /// The address.
        url: String,
        /// Why not.
        source: OriginError,
    },
    /// What it holds cannot be used.
    #[error("the identity of `{agent}` cannot be used for TLS")]
    Unusable {
        /// Whose.
        agent: String,
    },
}

impl Identity {
    /// Where it sends to.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn origin(&self) -> Result<Origin, IdentityError> {
        self.url.parse().map_err(|source| IdentityError::Url { url: self.url.clone(), source })
    }

    /// TLS as this agent, the way that the agent itself makes it.
    ///
    /// # Errors
    /// When key, certificate and authority do not belong together.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, IdentityError> {
        let unusable = || IdentityError::Unusable { agent: self.agent.clone() };
        let read = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let (chain, authorities) = (read(&self.certificate), read(&self.authority));
        let (Ok(chain), Ok(authorities), Ok(key)) =
            (chain, authorities, PrivateKeyDer::from_pem_slice(self.key.as_bytes()))
        else {
            return Err(unusable());
        };
        tls::as_agent(&authorities, chain, key).map(Arc::new).map_err(|_| unusable())
    }
}

impl From<Enrolled> for Identity {
    fn from(it: Enrolled) -> Self {
        let Enrolled { card, key, certificate, authority } = it;
        let (agent, tenant, url) = (card.agent, card.tenant, card.url);
        Self { agent, tenant, url, key: key.as_str().to_owned(), certificate, authority }
    }
}

/// The identities that `path` holds; none when it does not exist.
///
/// # Errors
/// When it cannot be read, or is something else.
pub fn read(path: &Path) -> Result<Vec<Identity>, IdentityError> {
    let failed = |source| IdentityError::File { doing: "read", path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(failed)?,
    };
    let lines = io::BufReader::new(file).lines().zip(1..);
    lines
        .map(|(text, line)| {
            let text = text.map_err(failed)?;
            serde_json::from_str(&text).map_err(|_| IdentityError::Line { path: path.to_owned(), line })
        })
        .collect()
}

/// Adds identities to `path`.
///
/// # Errors
/// When it cannot be written.
pub fn keep(path: &Path, identities: &[Identity]) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::File { doing: "write", path: path.to_owned(), source };
    let mut text = Vec::new();
    for it in identities {
        serde_json::to_writer(&mut text, it).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(&text)).map_err(failed)
}

/// Enrols so many agents with a token that may be used as often. `collector` is the listener for people.
///
/// # Errors
/// When one cannot be enrolled for a minute, or is refused. Those before it are enrolled all the same, and forgotten.
pub async fn enrol(token: &EnrolmentToken, collector: &str, count: usize) -> Result<Vec<Identity>, IdentityError> {
    let (token, collector): (Arc<EnrolmentToken>, Arc<str>) = (Arc::new(token.clone()), collector.into());
    let (mut asking, mut enrolled) = (JoinSet::new(), Vec::with_capacity(count));
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / A_SECOND));
    for number in 1..=count {
        pace.tick().await;
        while asking.len() >= AT_ONCE {
            take(&mut asking, &mut enrolled).await?;
        }
        asking.spawn(enrol_one(number, Arc::clone(&token), Arc::clone(&collector)));
    }
    while !asking.is_empty() {
        take(&mut asking, &mut enrolled).await?;
    }
    Ok(enrolled)
}

async fn take(
    asking: &mut JoinSet<Result<Identity, IdentityError>>,
    enrolled: &mut Vec<Identity>,
) -> Result<(), IdentityError> {
    match asking.join_next().await {
        Some(Ok(answer)) => enrolled.push(answer?),
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        None => (),
    }
    Ok(())
}

async fn enrol_one(number: usize, token: Arc<EnrolmentToken>, collector: Arc<str>) -> Result<Identity, IdentityError> {
    let host = format!("fleet-{number}");
    // Nothing is written to it: `ask` gives the identity into our hands.
    let nowhere = Path::new("");
    let enrolment = Enrolment { token: &token, collector: &collector, host: &host, state_dir: nowhere, replace: false };
    let (began, mut backoff) = (Instant::now(), Backoff::new(Duration::from_millis(200), Duration::from_secs(5)));
    loop {
        match enrolment.ask().await {
            Ok(enrolled) => return Ok(enrolled.into()),
            Err(error) if began.elapsed() < PATIENCE && may_pass(&error) => {
                tokio::time::sleep(backoff.after_failure(rand::random(), None)).await;
            }
            Err(source) => return Err(IdentityError::Enrol { number, source }),
        }
    }
}

fn may_pass(error: &EnrolError) -> bool {
    match error {
        EnrolError::Unavailable { .. } => true,
        EnrolError::Connection(error) => error.is_of_the_way() || matches!(error, ConnectionError::TimedOut { .. }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(agent: &str) -> Identity {
        let word = || "x".to_owned();
        Identity {
            agent: agent.into(),
            tenant: word(),
            url: word(),
            key: word(),
            certificate: word(),
            authority: word(),
        }
    }

    #[test]
    fn what_is_kept_is_read_again_and_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("identities.jsonl");
        assert!(read(&path).expect("nothing is there").is_empty());
        keep(&path, &[identity("a-1"), identity("a-2")]).expect("written");
        keep(&path, &[identity("a-3")]).expect("written");
        let agents: Vec<String> = read(&path).expect("read").into_iter().map(|it| it.agent).collect();
        assert_eq!(agents, ["a-1", "a-2", "a-3"]);
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "{}\n").expect("written");
        assert!(matches!(read(&path), Err(IdentityError::Line { line: 1, .. })));
    }

    #[test]
    fn what_holds_no_certificate_is_no_identity() {
        assert!(matches!(identity("a-1").tls(), Err(IdentityError::Unusable { .. })));
    }
}
