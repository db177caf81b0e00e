//! Tokens: made once, shown once, kept as hashes.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use tickbird_shared::enrolment::EnrolmentToken;
use tickbird_shared::{Labels, Timestamp};

use crate::store::{ApiTokenRow, TokenRow};

/// The only tenant that the command line makes tokens for.
pub const DEFAULT_TENANT: &str = "default";
/// How a token for the API begins, so that a scanner of secrets can know one.
const API_PREFIX: &str = "tba_";

/// What an enrolment token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// How long it may be used.
    pub ttl: Duration,
    /// How many agents it may enrol.
    pub uses: u32,
    /// Labels of those agents, which win over their own.
    pub labels: Labels,
    /// Those agents are forgotten an hour after they were last heard.
    pub ephemeral: bool,
}

/// A new enrolment token of the authority with this fingerprint: the row to keep and the token to hand out.
pub fn enrolment(authority: String, terms: Terms, now: Timestamp) -> (TokenRow, EnrolmentToken) {
    let secret = random();
    let row = TokenRow {
        tenant: DEFAULT_TENANT.into(),
        id: format!("t-{}", ulid::Ulid::new().to_string().to_ascii_lowercase()),
        hash: hash(&secret),
        labels: terms.labels,
        ephemeral: terms.ephemeral,
        uses: terms.uses,
        used: 0,
        created_at: now,
        expires_at: now.saturating_add(terms.ttl).unwrap_or(Timestamp::MAX),
        revoked_at: None,
    };
    (row, EnrolmentToken { authority, secret })
}

/// A new token for the API: the row to keep and the token to hand out.
pub fn api(name: &str, role: &str, now: Timestamp) -> (ApiTokenRow, String) {
    let token = format!("{API_PREFIX}{}", random());
    let row = ApiTokenRow {
        tenant: DEFAULT_TENANT.into(),
        name: name.into(),
        hash: hash(&token),
        role: role.into(),
        created_at: now,
    };
    (row, token)
}

/// What is kept of a token, or of an enrolment token's secret. No salt and no stretching: 256 random bits are not guessed.
pub fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// 256 bits of the system's randomness, as 43 characters.
fn random() -> String {
    let bytes: [u8; 32] = rand::random();
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hashes_are_kept_and_no_two_tokens_are_alike() {
        let terms = Terms { ttl: Duration::from_secs(60), uses: 1, labels: Labels::default(), ephemeral: false };
        let authority = "ab".repeat(32);
        let (row, token) = enrolment(authority.clone(), terms.clone(), Timestamp::UNIX_EPOCH);
        assert_eq!(token.reveal().parse(), Ok(token.clone()), "it has the form that agents read");
        assert_eq!(row.hash, hash(&token.secret));
        assert!(!format!("{row:?}").contains(&token.secret));
        assert_ne!(enrolment(authority, terms, Timestamp::UNIX_EPOCH).1.secret, token.secret);
        let (row, token) = api("admin", "admin", Timestamp::UNIX_EPOCH);
        assert!(token.starts_with("tba_") && token.len() == 47);
        assert_eq!(row.hash, hash(&token));
    }
}
