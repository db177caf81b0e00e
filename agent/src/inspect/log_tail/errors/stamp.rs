//! The time that a line bears. Pure.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::{Map, Value as Json};

/// A time stands within so many bytes of a line's beginning.
const WITHIN: usize = 80;
/// Keys of a structured record that hold its time.
const KEYS: [&str; 7] = ["@timestamp", "timestamp", "time", "ts", "asctime", "datetime", "t"];
/// Numbers beyond this are milliseconds since 1970; as seconds they would lie in the year 5138.
const MILLISECONDS_FROM: f64 = 1e11;

/// When a line was written, by its own word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The time. Where the line names no zone it is read as if it were UTC.
    pub at: Timestamp,
    /// How exact it is: the line was written at `at` or within so long after.
    pub grain: Duration,
    /// The line names its zone.
    pub is_zoned: bool,
}

/// The time at a line's head: `2026-11-21 02:00:00,123`, `[2026-11-21 02:00:00 +0000]`, `2026-11-21T02:00:00.5Z`,
/// `2026/11/21 02:00:00`.
pub(super) fn at_head(line: &str) -> Option<Written> {
    let bytes = &line.as_bytes()[..line.len().min(WITHIN)];
    let begins = |at: &usize| {
        let date = |mark: u8| bytes.get(at + 4) == Some(&mark) && bytes.get(at + 7) == Some(&mark);
        (date(b'-') || date(b'/')) && (*at == 0 || !bytes[at - 1].is_ascii_digit())
    };
    (0..bytes.len()).filter(begins).find_map(|at| read(&bytes[at..]))
}

/// The time of a structured record: a text as at a line's head, or a number of seconds or milliseconds since 1970.
pub(super) fn of_record(record: &Map<String, Json>) -> Option<Written> {
    match KEYS.iter().find_map(|key| record.get(*key))? {
        Json::String(text) => at_head(text),
        Json::Number(number) => {
            let number = number.as_f64().filter(|it| *it > 0.0)?;
            let is_seconds = number < MILLISECONDS_FROM;
            let grain = Duration::from_millis(if is_seconds && number.fract() == 0.0 { 1000 } else { 1 });
            let milliseconds = if is_seconds { number * 1e3 } else { number };
            let at = Timestamp::from_millisecond(milliseconds as i64).ok()?;
            Some(Written { at, grain, is_zoned: true })
        }
        _ => None,
    }
}

/// `YYYY-MM-DD HH:MM:SS`, a fraction and a zone where there are any.
fn read(bytes: &[u8]) -> Option<Written> {
    let number = |from: usize, digits: usize| {
        let text = bytes.get(from..from + digits)?;
        let is_number = text.iter().all(u8::is_ascii_digit);
        is_number.then(|| text.iter().fold(0_i32, |sum, digit| sum * 10 + i32::from(digit - b'0')))
    };
    let small = |from: usize| i8::try_from(number(from, 2)?).ok();
    if !matches!(bytes.get(10), Some(b' ' | b'T')) || bytes.get(13) != Some(&b':') || bytes.get(16) != Some(&b':') {
        return None;
    }
    let year = i16::try_from(number(0, 4)?).ok()?;
    let (month, day, hour, minute, second) = (small(5)?, small(8)?, small(11)?, small(14)?, small(17)?);
    let mut rest = &bytes[19..];
    let (mut nanoseconds, mut grain) = (0, Duration::from_secs(1));
    if let [b'.' | b',', tail @ ..] = rest {
        let digits = tail.iter().take_while(|it| it.is_ascii_digit()).count();
        for (index, digit) in tail[..digits].iter().take(9).enumerate() {
            nanoseconds += i32::from(digit - b'0') * 10_i32.pow(8 - u32::try_from(index).ok()?);
        }
        if digits > 0 {
            grain = Duration::from_secs(1) / 10_u32.pow(u32::try_from(digits.min(3)).ok()?);
            rest = &tail[digits..];
        }
    }
    let offset = offset(rest);
    let civil = DateTime::new(year, month, day, hour, minute, second, nanoseconds).ok()?;
    let at = civil.to_zoned(TimeZone::UTC).ok()?.timestamp();
    let at = Timestamp::new(at.as_second().checked_sub(offset.unwrap_or(0))?, at.subsec_nanosecond()).ok()?;
    Some(Written { at, grain, is_zoned: offset.is_some() })
}

/// Seconds east of Greenwich, behind a time: `Z`, `+00:00`, ` +0000`.
fn offset(rest: &[u8]) -> Option<i64> {
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    let (sign, digits) = match rest {
        [b'Z', ..] => return Some(0),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    let digits: Vec<i64> = digits
        .iter()
        .take(5)
        .filter(|it| **it != b':')
        .map_while(|it| it.is_ascii_digit().then(|| i64::from(it - b'0')))
        .take(4)
        .collect();
    let [h, hours, m, minutes] = digits[..] else { return None };
    Some(sign * ((h * 10 + hours) * 3600 + (m * 10 + minutes) * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_loggers_write_them() {
        for (line, at, milliseconds, is_zoned) in [
            ("2026-11-21 02:00:00,123 ERROR shop: 500", "2026-11-21T02:00:00.123Z", 1, false),
            ("[2026-11-21 02:00:00 +0200] [7] [ERROR] Error handling request", "2026-11-21T00:00:00Z", 1000, true),
            ("2026-11-21T02:00:00.5Z ERROR it", "2026-11-21T02:00:00.5Z", 100, true),
            ("ERROR 2026-11-21T02:00:00.123456-05:30 it", "2026-11-21T07:30:00.123456Z", 1, true),
            ("2026/11/21 02:00:00 http: panic serving", "2026-11-21T02:00:00Z", 1000, false),
        ] {
            let expected =
                Written { at: at.parse().expect("a time"), grain: Duration::from_millis(milliseconds), is_zoned };
            assert_eq!(at_head(line), Some(expected), "{line}");
        }
        for line in ["", "2026-13-21 02:00:00 it", "ERROR no time", "version 2026-11-21", "2026-11-21 02:00", "1999-é"]
        {
            assert_eq!(at_head(line), None, "{line}");
        }
    }

    #[test]
    fn a_record_has_seconds_or_milliseconds_or_text() {
        let of = |text: &str| {
            let record: Map<String, Json> = serde_json::from_str(text).expect("a record");
            of_record(&record).map(|it| (it.at.as_millisecond(), it.grain.as_millis()))
        };
        assert_eq!(of(r#"{"ts":1795226400.25}"#), Some((1_795_226_400_250, 1)));
        assert_eq!(of(r#"{"time":1795226400123}"#), Some((1_795_226_400_123, 1)));
        assert_eq!(of(r#"{"ts":1795226400}"#), Some((1_795_226_400_000, 1000)));
        assert_eq!(of(r#"{"asctime":"2026-11-21 02:00:00,100"}"#), Some((1_795_226_400_100, 1)));
        assert_eq!(of(r#"{"time":-1,"t":{}}"#), None);
    }
}
