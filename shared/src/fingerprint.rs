//! The stable name of "this check on this target", by which findings find their incident.
//!
//! `SHA-256(len‖tenant ‖ len‖agent ‖ len‖check ‖ len‖target ‖ len‖sub-key)`, each length 8 bytes big-endian, an
//! absent sub-key as the empty string; the first 16 bytes, in lower-case hexadecimal. The lengths keep
//! `("ab", "c")` and `("a", "bc")` apart. Time, values, pids, descriptors and labels are not part of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// 128 bits of identity; shown and sent as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint([u8; 16]);

/// A text that is not 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 32 lower-case hexadecimal digits")]
pub struct NotAFingerprint;

impl Fingerprint {
    /// The fingerprint of `check` on `target` as seen by `agent` of `tenant`.
    pub fn of(tenant: &str, agent: &str, check: &str, target: &str, sub_key: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        for part in [tenant, agent, check, target, sub_key.unwrap_or_default()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(bytes)
    }

    /// The 16 bytes, for a key in a store.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl From<[u8; 16]> for Fingerprint {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(NotAFingerprint);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = NotAFingerprint;

    fn try_from(text: String) -> Result<Self, NotAFingerprint> {
        text.parse()
    }
}

fn digit(byte: u8) -> Result<u8, NotAFingerprint> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(NotAFingerprint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Golden vectors: an agent of today and a collector of next year must agree on these.
    #[test]
    fn golden_vectors() {
        let of =
            |sub_key| Fingerprint::of("default", "a-1", "pool.leak", "shop/web>10.0.0.5:5432/app", sub_key).to_string();
        assert_eq!(of(None), GOLDEN_WITHOUT_SUB_KEY);
        assert_eq!(of(Some("0")), GOLDEN_WITH_SUB_KEY);
    }

    const GOLDEN_WITHOUT_SUB_KEY: &str = "e476e385fbdedf36794857e450452132";
    const GOLDEN_WITH_SUB_KEY: &str = "e0df8093f6f68e458428b5f677a2cf52";

    proptest! {
        #[test]
        fn moving_a_letter_between_parts_changes_it(a in "[a-z]{1,8}", b in "[a-z]{1,8}") {
            let (head, tail) = a.split_at(a.len() - 1);
            let moved = format!("{tail}{b}");
            prop_assert_ne!(Fingerprint::of(&a, &b, "c", "t", None), Fingerprint::of(head, &moved, "c", "t", None));
        }

        #[test]
        fn text_round_trips(bytes in any::<[u8; 16]>()) {
            let it = Fingerprint::from(bytes);
            prop_assert_eq!(it.to_string().parse(), Ok(it));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Fingerprint>();
        }
    }
}
