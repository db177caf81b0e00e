//! A finding: a judged change worth telling, with its evidence.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::fingerprint::Fingerprint;
use crate::protocol::{MAX_EVIDENCE_BYTES, MAX_JSON_DEPTH, MAX_KEY_BYTES, MAX_TEXT_BYTES};

/// How bad it is. `Info` is recorded and opens no incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Recorded, shown, tells nobody.
    Info,
    /// Somebody should look today.
    Warning,
    /// Somebody should look now.
    Critical,
}

impl Severity {
    /// `info`, `warning` or `critical`, as on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Severity {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        [Self::Info, Self::Warning, Self::Critical]
            .into_iter()
            .find(|it| it.as_str() == word)
            .ok_or(UnknownWord { known: "info, warning, critical" })
    }
}

/// Whether the fault is there or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is there, or was when last seen.
    Firing,
    /// A known value said that it is gone.
    Resolved,
}

impl Status {
    /// `firing` or `resolved`, as on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Status {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        [Self::Firing, Self::Resolved]
            .into_iter()
            .find(|it| it.as_str() == word)
            .ok_or(UnknownWord { known: "firing, resolved" })
    }
}

/// A word that is none of the known ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is none of {known}")]
pub struct UnknownWord {
    /// The words that would have been understood.
    pub known: &'static str,
}

/// What about the check changed, so that the collector can tell a beginning from a repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It was well and began to fail.
    Began,
    /// It failed and the severity rose.
    Worsened,
    /// It still fails and the severity fell.
    Eased,
    /// It still fails with the same severity and the evidence is worth telling anew.
    Evidence,
    /// It fails and can no longer be seen: the last evidence stands.
    EvidenceLost,
    /// It can be seen again and still fails.
    EvidenceBack,
    /// A known value cleared it.
    Cleared,
    /// The target ended and did not come back.
    TargetGone,
}

/// One finding as it crosses the wire. Texts are UTF-8, already scrubbed of secrets at the agent.
///
/// Borrows from the body it was read from: two million of these a second are decoded by one core.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding<'a> {
    /// Hash of tenant, agent, check, target and sub-key; the collector computes it again and refuses a difference.
    pub fingerprint: Fingerprint,
    /// Id of the check, as in the catalogue: `pool.idle_in_transaction`.
    #[serde(borrow)]
    pub check: Cow<'a, str>,
    /// Stable key of the target: application, role, and listening port or remote endpoint.
    #[serde(borrow)]
    pub target: Cow<'a, str>,
    /// Tells findings of one check on one target apart, where the check declares it.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sub_key: Option<Cow<'a, str>>,
    /// Firing or resolved.
    pub status: Status,
    /// The severity now, or the highest one it had when resolved.
    pub severity: Severity,
    /// What changed.
    pub change: Change,
    /// One sentence for a person.
    #[serde(borrow)]
    pub summary: Cow<'a, str>,
    /// Why the judge decided this: bound, hold, looks.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    /// What to do next.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Cow<'a, str>>,
    /// A JSON object with the proof, at most [`MAX_EVIDENCE_BYTES`].
    #[serde(borrow)]
    pub evidence: Cow<'a, RawValue>,
    /// When the fault began, by the agent's wall clock.
    pub since: Timestamp,
    /// When this was seen, by the agent's wall clock.
    pub observed_at: Timestamp,
}

impl Finding<'_> {
    /// What is wrong with it, if anything, as the code that refuses it; `None` when it may be stored.
    pub fn fault(&self) -> Option<&'static str> {
        let keys = [Some(&self.check), Some(&self.target), self.sub_key.as_ref()];
        if self.check.is_empty() || self.target.is_empty() {
            return Some("empty_key");
        }
        if keys.into_iter().flatten().any(|key| key.len() > MAX_KEY_BYTES) {
            return Some("key_too_long");
        }
        let texts = [Some(&self.summary), Some(&self.reason), self.advice.as_ref()];
        if texts.into_iter().flatten().any(|text| text.len() > MAX_TEXT_BYTES) {
            return Some("text_too_long");
        }
        let evidence = self.evidence.get();
        if evidence.len() > MAX_EVIDENCE_BYTES {
            return Some("evidence_too_large");
        }
        if !evidence.starts_with('{') || depth(evidence) > MAX_JSON_DEPTH {
            return Some("evidence_not_an_object");
        }
        None
    }
}

/// Deepest nesting of brackets in a valid JSON text.
fn depth(json: &str) -> usize {
    let (mut now, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                now += 1;
                deepest = deepest.max(now);
            }
            b'}' | b']' if !in_string => now = now.saturating_sub(1),
            _ => (),
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(evidence: &str) -> Finding<'static> {
        Finding {
            fingerprint: Fingerprint::of("t", "a", "c", "x", None),
            check: "c".into(),
            target: "x".into(),
            sub_key: None,
            status: Status::Firing,
            severity: Severity::Warning,
            change: Change::Began,
            summary: "s".into(),
            reason: "r".into(),
            advice: None,
            evidence: Cow::Owned(RawValue::from_string(evidence.into()).expect("valid JSON")),
            since: Timestamp::UNIX_EPOCH,
            observed_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn evidence_is_a_bounded_object() {
        assert_eq!(finding("{}").fault(), None);
        assert_eq!(finding("[]").fault(), Some("evidence_not_an_object"));
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(40), "]".repeat(40));
        assert_eq!(finding(&deep).fault(), Some("evidence_not_an_object"));
        let brackets_in_text = format!(r#"{{"a":"{}\""}}"#, "[".repeat(40));
        assert_eq!(finding(&brackets_in_text).fault(), None);
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_EVIDENCE_BYTES));
        assert_eq!(finding(&large).fault(), Some("evidence_too_large"));
    }

    #[test]
    fn an_escaped_text_is_read() {
        let mut it = finding("{}");
        it.summary = "say \"leak\"\n".into();
        let text = serde_json::to_string(&it).expect("serialises");
        let back: Finding<'_> = serde_json::from_str(&text).expect("reads back");
        assert_eq!(back.summary, it.summary);
    }
}
