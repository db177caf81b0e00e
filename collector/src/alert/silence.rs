//! Silences: for a while nobody hears of what matches, but that it is over; what was held back is decided anew at the end.

use serde::Serialize;
use tickbird_shared::Timestamp;

use super::{Facts, Matcher, MatcherError};
use crate::store::SilenceRow;

/// A silence as far as deciding goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    row: SilenceRow,
    matchers: Vec<Matcher>,
}

/// A silence as callers of the API and the command line see it.
#[derive(Debug, Serialize)]
pub struct SilenceDocument<'a> {
    id: &'a str,
    state: &'static str,
    matchers: &'a [String],
    author: &'a str,
    reason: &'a str,
    created_at: Timestamp,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

impl<'a> SilenceDocument<'a> {
    /// The document of a row, with its state at a moment.
    pub fn new(row: &'a SilenceRow, now: Timestamp) -> Self {
        Self {
            id: &row.id,
            state: row.state(now),
            matchers: &row.matchers,
            author: &row.author,
            reason: &row.reason,
            created_at: row.created_at,
            starts_at: row.starts_at,
            ends_at: row.ends_at,
        }
    }
}

/// Why a silence would not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SilenceError {
    /// One of its matchers.
    #[error("`{given}`: {source}")]
    Matcher {
        /// As it was written.
        given: String,
        /// What is wrong with it.
        source: MatcherError,
    },
    /// Every incident would match, those without any of its labels too.
    #[error("it would silence everything: each of its matchers is met by a label that is not there")]
    Everything,
    /// No time is left.
    #[error("it would end before it begins, or before now")]
    Over,
}

impl SilenceError {
    /// What to do instead.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Matcher { .. } => MatcherError::advice(),
            Self::Everything => r#"name what it is about; 'check=~".+"' silences everything"#,
            Self::Over => "give an end that is to come",
        }
    }
}

impl Silence {
    /// A silence that was stored.
    ///
    /// # Errors
    /// When this version cannot read its matchers.
    pub fn new(row: SilenceRow) -> Result<Self, SilenceError> {
        let matchers = row.matchers.iter().map(|given| {
            given.parse::<Matcher>().map_err(|source| SilenceError::Matcher { given: given.clone(), source })
        });
        let matchers = matchers.collect::<Result<_, _>>()?;
        Ok(Self { row, matchers })
    }

    /// One that somebody asks for now.
    ///
    /// # Errors
    /// When it would match everything, or is over.
    pub fn asked(mut row: SilenceRow) -> Result<Self, SilenceError> {
        for at in [&mut row.created_at, &mut row.starts_at, &mut row.ends_at] {
            // As it is stored; every time that a microsecond can tell is one.
            *at = Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(*at);
        }
        let silence = Self::new(row)?;
        if silence.matchers.iter().all(|it| it.matches("")) {
            return Err(SilenceError::Everything);
        }
        let row = &silence.row;
        if row.ends_at <= row.starts_at || row.ends_at <= row.created_at {
            return Err(SilenceError::Over);
        }
        Ok(silence)
    }

    /// As it is stored.
    pub const fn row(&self) -> &SilenceRow {
        &self.row
    }

    /// Whether an incident of these facts is what it is about, whenever.
    pub fn matches(&self, facts: &Facts) -> bool {
        facts.get("tenant").is_some_and(|it| *it == self.row.tenant)
            && self.matchers.iter().all(|it| it.matches(facts.get(it.label()).map_or("", String::as_str)))
    }

    /// Whether it holds at a moment.
    pub fn holds(&self, now: Timestamp) -> bool {
        // One from now on holds from now on, also when the clock is set back meanwhile.
        let begins = self.row.starts_at > self.row.created_at;
        (!begins || self.row.starts_at <= now) && now < self.row.ends_at
    }

    /// Whether its end has come.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.row.ends_at <= now
    }

    /// Why nobody is told, for the record.
    pub fn why(&self) -> String {
        let SilenceRow { id, author, reason, ends_at, .. } = &self.row;
        format!("silenced until {ends_at} by {author}: {reason} ({id})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("in range")
    }

    fn row(matchers: &[&str], starts_at: i64, ends_at: i64) -> SilenceRow {
        SilenceRow {
            tenant: "default".into(),
            id: "sil_1".into(),
            matchers: matchers.iter().map(|it| (*it).to_owned()).collect(),
            author: "anna".into(),
            reason: "they move".into(),
            created_at: at(0),
            starts_at: at(starts_at),
            ends_at: at(ends_at),
            over_at: None,
        }
    }

    #[test]
    fn all_matchers_have_to_match_within_its_tenant_and_its_time() {
        let now = Silence::asked(row(&["team=\"db\""], 0, 10)).expect("sound");
        assert!(now.holds(at(-3_600)), "the clock was set back after it was asked for");
        let silence = Silence::asked(row(&["team=\"db\"", "env!=\"staging\""], 5, 10)).expect("sound");
        let facts = |pairs: &[(&str, &str)]| -> Facts {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert!(silence.matches(&facts(&[("tenant", "default"), ("team", "db")])));
        assert!(!silence.matches(&facts(&[("tenant", "other"), ("team", "db")])));
        assert!(!silence.matches(&facts(&[("tenant", "default"), ("team", "db"), ("env", "staging")])));
        assert_eq!([4, 5, 9, 10].map(|it| silence.holds(at(it))), [false, true, true, false]);
        assert_eq!([9, 10].map(|it| silence.is_over(at(it))), [false, true]);
    }

    #[test]
    fn what_would_silence_everything_or_is_over_is_refused() {
        let refused = |matchers: &[&str], starts_at, ends_at| {
            Silence::asked(row(matchers, starts_at, ends_at)).expect_err("refused").to_string()
        };
        assert!(refused(&[], 0, 10).contains("everything"));
        assert!(refused(&["env!=\"staging\"", "team=~\".*\""], 0, 10).contains("everything"));
        assert!(refused(&["team=db"], 5, 5).contains("end before"));
        assert!(refused(&["team=db"], -9, 0).contains("end before"));
        assert!(refused(&["team"], 0, 9).starts_with("`team`: "));
    }
}
