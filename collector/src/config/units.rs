//! Durations and sizes as people write them: a number with its unit.

use std::time::Duration;

/// Reads `90s`, `2m`, `36h`, `30d`, `2w` or `250ms`; the error says what is wrong with it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        "" => return Err(format!("`{text}` has no unit")),
        _ => return Err(format!("`{text}` has a unit that is none of ms, s, m, h, d, w")),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long"))
}

/// Reads `10GiB`, `512MiB`, `64KiB`, `1TiB` or `4096B`; the error says what is wrong with it.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        "" => return Err(format!("`{text}` has no unit")),
        _ => return Err(format!("`{text}` has a unit that is none of B, KiB, MiB, GiB, TiB")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

fn split(text: &str) -> Result<(u64, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    Ok((number, text[end..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_alone_or_with_an_unknown_unit_is_refused_in_words() {
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("90"), Err("`90` has no unit".into()));
        assert_eq!(duration("soon"), Err("`soon` does not begin with a number".into()));
        assert!(duration("3 fortnights").is_err() && duration("99999999999999999d").is_err());
        assert_eq!(bytes("10GiB"), Ok(10 << 30));
        assert!(bytes("10GB").is_err() && bytes("99999999999TiB").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = (duration(&text), bytes(&text));
        }
    }
}
