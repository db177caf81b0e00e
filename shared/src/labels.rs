//! Sorted name–value pairs that describe who a thing belongs to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::protocol::{MAX_LABEL_BYTES, MAX_LABELS};

/// Labels, sorted by name, so that two sets with the same pairs are equal and hash alike whatever their order was.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// Why a set of labels is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// More than [`MAX_LABELS`] pairs.
    #[error("{0} labels, at most {MAX_LABELS} are kept")]
    TooMany(usize),
    /// A name that is empty or holds something other than ASCII letters, digits, `_`, `.`, `-` and `/`.
    #[error("label name {0:?} is not made of letters, digits, `_`, `.`, `-`, `/`")]
    Name(String),
    /// A name or value over [`MAX_LABEL_BYTES`].
    #[error("label `{0}` is longer than {MAX_LABEL_BYTES} bytes")]
    TooLong(String),
}

impl Labels {
    /// Adds one pair, or replaces the value of a name that is there.
    ///
    /// # Errors
    /// When the name is malformed, either is too long, or the set is full.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) -> Result<(), LabelError> {
        let (name, value) = (name.into(), value.into());
        check_pair(&name, &value)?;
        if !self.0.contains_key(&name) && self.0.len() == MAX_LABELS {
            return Err(LabelError::TooMany(MAX_LABELS + 1));
        }
        self.0.insert(name, value);
        Ok(())
    }

    /// The value of `name`, if it is set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The pairs in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These labels with `winner`'s laid over them: where both have a name, `winner`'s value stays.
    #[must_use]
    pub fn overlaid_with(&self, winner: &Self) -> Self {
        let mut all = self.0.clone();
        all.extend(winner.0.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self(all)
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = LabelError;

    fn try_from(pairs: BTreeMap<String, String>) -> Result<Self, LabelError> {
        if pairs.len() > MAX_LABELS {
            return Err(LabelError::TooMany(pairs.len()));
        }
        pairs.iter().try_for_each(|(name, value)| check_pair(name, value))?;
        Ok(Self(pairs))
    }
}

fn check_pair(name: &str, value: &str) -> Result<(), LabelError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte);
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(LabelError::Name(name.chars().take(40).collect()));
    }
    if name.len() > MAX_LABEL_BYTES || value.len() > MAX_LABEL_BYTES {
        return Err(LabelError::TooLong(name.chars().take(40).collect()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_arrival_makes_no_difference() {
        let read = |text| serde_json::from_str::<Labels>(text).expect("valid labels");
        assert_eq!(read(r#"{"env":"prod","service":"a"}"#), read(r#"{"service":"a","env":"prod"}"#));
    }

    #[test]
    fn what_is_too_long_too_many_or_misnamed_is_refused_by_name() {
        let read = |text: &str| serde_json::from_str::<Labels>(text).expect_err("must be refused").to_string();
        assert!(read(r#"{"a b":"x"}"#).contains("\"a b\""));
        assert!(read(&format!(r#"{{"a":"{}"}}"#, "x".repeat(257))).contains("label `a` is longer"));
        let many: BTreeMap<_, _> = (0..65).map(|i| (format!("l{i}"), String::new())).collect();
        assert_eq!(Labels::try_from(many), Err(LabelError::TooMany(65)));
    }

    #[test]
    fn the_winner_wins() {
        let mut mine = Labels::default();
        mine.insert("env", "staging").expect("valid");
        mine.insert("team", "grants").expect("valid");
        let mut theirs = Labels::default();
        theirs.insert("env", "production").expect("valid");
        let both = mine.overlaid_with(&theirs);
        assert_eq!((both.get("env"), both.get("team")), (Some("production"), Some("grants")));
    }
}
