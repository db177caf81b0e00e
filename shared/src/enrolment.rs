//! How an agent gets its identity, a token and a certificate signing request in, a certificate out; and how it keeps it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::labels::Labels;

/// `POST /v1/enroll` on the listener for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentRequest {
    /// The secret part of the enrolment token.
    pub token: String,
    /// A PKCS #10 request in PEM. Only its public key is used: the collector assigns every name.
    pub csr: String,
    /// Host name, for the list of agents.
    pub host: String,
}

/// The collector's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentAnswer {
    /// The id the collector gave this agent.
    pub agent: String,
    /// The tenant the token was bound to.
    pub tenant: String,
    /// The token's labels; they win over the agent's own.
    pub labels: Labels,
    /// The agent's certificate, PEM.
    pub certificate: String,
    /// The authorities to trust from now on, PEM: first the one that the token names.
    pub authority: String,
    /// Where to send records: `https://host:port` of the listener for agents.
    pub url: String,
    /// End of the certificate's life.
    pub expires_at: Timestamp,
}

/// `POST /v1/renew` on the listener for agents, by the agent that the client certificate names. After its end a certificate
/// still serves for this for 90 days, and the request is then for its own key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewalRequest {
    /// A PKCS #10 request in PEM. Only its public key is used.
    pub csr: String,
}

/// The collector's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalAnswer {
    /// The agent's new certificate, PEM.
    pub certificate: String,
    /// The authorities to trust from now on, PEM: more than one while one follows another.
    pub authority: String,
    /// Where to send records: `https://host:port` of the listener for agents.
    pub url: String,
    /// End of the certificate's life.
    pub expires_at: Timestamp,
}

/// An enrolment token as a person carries it: `tbe1.<SHA-256 of the authority's DER, hex>.<secret>`.
///
/// The fingerprint lets the agent know whom it trusts before it has ever spoken to it. The secret is not shown by
/// `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// SHA-256 of the authority's certificate in DER, 64 hexadecimal digits.
    pub authority: String,
    /// The secret; only its hash is kept at the collector.
    pub secret: String,
}

/// A text that is not an enrolment token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an enrolment token: it has the form tbe1.<64 hexadecimal digits>.<secret>")]
pub struct NotAToken;

impl FromStr for EnrolmentToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let mut parts = text.trim().split('.');
        let (Some("tbe1"), Some(authority), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAToken);
        };
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let is_secret = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if authority.len() != 64
            || !authority.bytes().all(is_hex)
            || secret.len() < 20
            || !secret.bytes().all(is_secret)
        {
            return Err(NotAToken);
        }
        Ok(Self { authority: authority.to_owned(), secret: secret.to_owned() })
    }
}

impl EnrolmentToken {
    /// The text that [`FromStr`] reads. Not `Display`, so that it cannot reach a log by accident.
    pub fn reveal(&self) -> String {
        format!("tbe1.{}.{}", self.authority, self.secret)
    }
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolmentToken").field("authority", &self.authority).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_round_trips_and_never_shows_its_secret() {
        let token = EnrolmentToken { authority: "ab".repeat(32), secret: "s3cret-s3cret-s3cret-s3cret".into() };
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn what_is_not_a_token_is_refused_without_repeating_it() {
        for text in ["", "tbe1", "tbe1.abc.def", "tbe2.x.y", "tbe1.a.b.c"] {
            let error = text.parse::<EnrolmentToken>().expect_err("must be refused").to_string();
            assert!(error.starts_with("not an enrolment token"), "{error}");
        }
    }
}
