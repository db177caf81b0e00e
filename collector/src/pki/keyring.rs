//! The generations of the authority: who signs now, who is still believed.
//!
//! `ca.key` holds key and certificate of every generation, oldest first, and is replaced as one; `ca.pem` is what others
//! trust, the one that signs first. Which generation does what follows from their validity and the time alone.

use std::path::Path;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tickbird_shared::Timestamp;
use zeroize::Zeroizing;

use super::life::signs_from;
use super::{Authority, PkiError, read, replace};

/// All generations, oldest first; at least one.
pub struct Keyring {
    generations: Vec<Authority>,
}

impl Keyring {
    /// Of a first authority.
    pub fn new(first: Authority) -> Self {
        Self { generations: vec![first] }
    }

    /// Reads the generations. A `ca.key` that holds nothing but one key is completed by the first certificate of `ca.pem`.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what it should.
    pub fn read(key_file: &Path, certificate_file: &Path) -> Result<Self, PkiError> {
        let text = read(key_file)?;
        let malformed = || PkiError::Malformed { path: key_file.into(), what: "keys and certificates in PEM" };
        let certificates = |text: &str| -> Result<Vec<CertificateDer<'static>>, PkiError> {
            CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(|_| malformed())
        };
        let mut found = certificates(&text)?;
        if found.is_empty() {
            found = certificates(&read(certificate_file)?)?;
            found.truncate(1);
        }
        let keys = sections(&text);
        if keys.len() != found.len() || keys.is_empty() {
            return Err(malformed());
        }
        let generations = found.into_iter().zip(&keys).map(|(it, key)| Authority::of(it, key));
        let generations = generations.collect::<Option<_>>().ok_or_else(malformed)?;
        Ok(Self { generations })
    }

    /// Writes everything: first what is secret, then what others trust.
    ///
    /// # Errors
    /// When a file cannot be written; each is then as it was.
    pub fn write(&self, key_file: &Path, certificate_file: &Path, now: Timestamp) -> Result<(), PkiError> {
        let mut text = Zeroizing::new(String::new());
        for it in &self.generations {
            text.push_str(&it.key);
            text.push_str(&it.pem);
        }
        replace(key_file, &text, 0o600)?;
        replace(certificate_file, &self.bundle(now), 0o644)
    }

    /// The generation that signs: the newest whose time has come.
    pub fn signer(&self, now: Timestamp) -> &Authority {
        let pairs = self.generations.iter().zip(&self.generations[1..]);
        let begun = pairs.take_while(|(old, new)| signs_from(new.validity.begins, old.validity.ends) <= now).count();
        &self.generations[begun]
    }

    /// Those that vouch for somebody now.
    pub fn believed(&self, now: Timestamp) -> impl Iterator<Item = &Authority> {
        self.generations.iter().filter(move |it| now < it.validity.ends)
    }

    /// Those that vouched for an agent that may still return.
    pub fn remembered(&self, now: Timestamp) -> impl Iterator<Item = &Authority> {
        self.generations.iter().filter(move |it| it.validity.may_return(now))
    }

    /// What others should trust, PEM: the one that signs first, then the others that are believed.
    pub fn bundle(&self, now: Timestamp) -> String {
        let signer = self.signer(now);
        let others = self.believed(now).filter(|it| it.certificate != signer.certificate);
        std::iter::once(signer).chain(others).map(Authority::pem).collect()
    }

    /// Whether the newest generation is in need of a successor.
    pub fn is_due(&self, life: Duration, now: Timestamp) -> bool {
        self.newest().validity.is_due(life, now)
    }

    /// The newest generation, which may not sign yet.
    pub fn newest(&self) -> &Authority {
        self.generations.last().expect("there is at least one")
    }

    /// Adds a successor, and forgets generations that nobody can return by.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn succeed(&mut self, life: Duration, now: Timestamp) -> Result<(), PkiError> {
        let next = Authority::create(life, now)?;
        self.generations.retain(|it| it.validity.may_return(now));
        self.generations.push(next);
        Ok(())
    }
}

/// The private keys of a PEM file, each as PEM.
pub(crate) fn sections(text: &str) -> Vec<Zeroizing<String>> {
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find("-----BEGIN PRIVATE KEY-----") {
        const END: &str = "-----END PRIVATE KEY-----\n";
        let Some(end) = rest[begin..].find(END.trim_end()) else { break };
        let end = begin + end + END.len() - 1;
        keys.push(Zeroizing::new(format!("{}\n", &rest[begin..end])));
        rest = &rest[end..];
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(900);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
    }

    fn names(authorities: Vec<&Authority>) -> Vec<String> {
        authorities.into_iter().map(Authority::fingerprint).collect()
    }

    #[test]
    fn a_successor_is_published_before_it_signs_and_the_old_one_believed_until_its_end() {
        let mut ring = Keyring::new(Authority::create(LIFE, at(0)).expect("makes one"));
        let old = ring.newest().fingerprint();
        assert!(!ring.is_due(LIFE, at(560)) && ring.is_due(LIFE, at(580)));
        ring.succeed(LIFE, at(580)).expect("makes one");
        let new = ring.newest().fingerprint();
        assert_eq!(ring.signer(at(580)).fingerprint(), old, "no agent has heard of the new one");
        assert_eq!(names(ring.believed(at(580)).collect()), [old.clone(), new.clone()]);
        assert_eq!(ring.signer(at(740)).fingerprint(), new);
        assert!(ring.bundle(at(740)).starts_with(ring.newest().pem()));
        assert_eq!(ring.bundle(at(740)).matches("BEGIN").count(), 2);
        assert_eq!(names(ring.believed(at(901)).collect()), [new]);
        assert_eq!(ring.remembered(at(901)).count(), 2, "an agent that was off may return");
    }

    #[test]
    fn generations_come_back_as_written_and_a_lone_key_takes_its_certificate_from_beside_it() {
        let room = tempfile::tempdir().expect("makes one");
        let (key, pem) = (room.path().join("ca.key"), room.path().join("ca.pem"));
        let mut ring = Keyring::new(Authority::create(LIFE, at(0)).expect("makes one"));
        replace(&key, &ring.newest().key, 0o600).expect("writes");
        replace(&pem, ring.newest().pem(), 0o644).expect("writes");
        let first = Keyring::read(&key, &pem).expect("reads");
        assert_eq!(first.newest().fingerprint(), ring.newest().fingerprint());
        ring.succeed(LIFE, at(600)).expect("makes one");
        ring.write(&key, &pem, at(600)).expect("writes");
        let both = Keyring::read(&key, &pem).expect("reads");
        assert_eq!(names(both.believed(at(600)).collect()), names(ring.believed(at(600)).collect()));
        assert_eq!(std::fs::read_to_string(&pem).expect("reads"), ring.bundle(at(600)));
        std::fs::write(&key, "nothing").expect("writes");
        assert!(matches!(Keyring::read(&key, &pem), Err(PkiError::Malformed { .. })));
    }
}
