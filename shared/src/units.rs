//! Durations and sizes as people write them: numbers with their units.

use std::time::Duration;

/// Why a text is not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Digits alone.
    #[error("`{0}` has no unit")]
    NoUnit(String),
    /// A number with letters that mean nothing here.
    #[error("`{0}` has a unit that is none of {1}")]
    UnknownUnit(String, &'static str),
    /// More than can be counted.
    #[error("`{0}` is too large")]
    TooLarge(String),
    /// Anything else: what was asked for.
    #[error("`{0}` is not a {1}")]
    Malformed(String, &'static str),
}

impl UnitError {
    /// What of a text is shown: a text may be anything.
    fn excerpt(text: &str) -> String {
        text.chars().take(40).collect()
    }
}

/// Units with their sizes.
struct Units {
    what: &'static str,
    names: &'static str,
    sizes: &'static [(&'static str, u64)],
}

/// In milliseconds.
const DURATION: Units = Units {
    what: "duration",
    names: "ms, s, m, h, d, w",
    sizes: &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)],
};

const BYTES: Units = Units {
    what: "size",
    names: "B, KiB, MiB, GiB, TiB",
    sizes: &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)],
};

impl Units {
    /// Takes a number with its unit from the front of a text; what it counts, and the rest.
    fn one<'a>(&self, whole: &str, text: &'a str) -> Result<(u64, &'a str), UnitError> {
        let shown = || UnitError::excerpt(whole);
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = text.split_at(digits);
        if number.is_empty() {
            return Err(UnitError::Malformed(shown(), self.what));
        }
        let rest = rest.trim_start();
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, rest) = rest.split_at(letters);
        if unit.is_empty() {
            let is_bare = rest.is_empty() && digits == whole.len();
            return Err(if is_bare { UnitError::NoUnit(shown()) } else { UnitError::Malformed(shown(), self.what) });
        }
        let Some((_, size)) = self.sizes.iter().find(|(name, _)| *name == unit) else {
            return Err(UnitError::UnknownUnit(shown(), self.names));
        };
        let counted = number.parse::<u64>().ok().and_then(|it| it.checked_mul(*size));
        Ok((counted.ok_or_else(|| UnitError::TooLarge(shown()))?, rest))
    }
}

/// Reads `250ms`, `90s`, `2m`, `1h30m`, `36h`, `7d`, `2w`.
///
/// # Errors
/// When there is no unit, or it is not such a text.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let text = text.trim();
    let (mut millis, mut rest) = DURATION.one(text, text)?;
    while !rest.is_empty() {
        let (more, after) = DURATION.one(text, rest)?;
        millis = millis.checked_add(more).ok_or_else(|| UnitError::TooLarge(UnitError::excerpt(text)))?;
        rest = after;
    }
    Ok(Duration::from_millis(millis))
}

/// Reads `4096B`, `512KiB`, `64MiB`, `10GiB`, `1TiB`.
///
/// # Errors
/// When there is no unit, or it is not such a text.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let text = text.trim();
    match BYTES.one(text, text)? {
        (bytes, "") => Ok(bytes),
        _ => Err(UnitError::Malformed(UnitError::excerpt(text), BYTES.what)),
    }
}

/// A duration as an operator writes it.
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let whole = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match whole.into_iter().find(|(size, _)| millis >= *size && millis.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", millis / size),
        None => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_alone_or_with_an_unknown_unit_is_refused_in_words() {
        let seconds = |text| parse_duration(text).map(|it| it.as_secs_f64());
        assert_eq!(["90s", "2m", "1h30m", "5 s", "2w"].map(seconds), [90.0, 120.0, 5_400.0, 5.0, 1_209_600.0].map(Ok));
        assert_eq!(seconds("250ms"), Ok(0.25));
        let said = |text| parse_duration(text).expect_err("not a duration").to_string();
        assert_eq!(said("90"), "`90` has no unit");
        assert_eq!(said("3 fortnights"), "`3 fortnights` has a unit that is none of ms, s, m, h, d, w");
        assert_eq!(said("99999999999999999999s"), "`99999999999999999999s` is too large");
        for text in ["", "soon", "s", "-5s", "1.5h", "1h30"] {
            assert_eq!(said(text), format!("`{text}` is not a duration"));
        }
        assert_eq!(parse_bytes("10GiB"), Ok(10 << 30));
        assert_eq!(parse_bytes(" 512 B"), Ok(512));
        for text in ["10GB", "99999999999TiB", "5", "3 apples", "1GiB2", "1MiB1B"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(millis in 0_u64..10_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = (parse_duration(&text), parse_bytes(&text));
        }
    }
}
