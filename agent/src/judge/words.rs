//! Numbers, durations and foreign text as they stand in a sentence for a person.

use std::fmt::Write as _;
use std::time::Duration;

use crate::discover::End;
use crate::inspect::{Unit, Value};

/// A number with its unit: `31.2 s`, `85 %`, `3`, `1.4/s`, `210 MiB`.
pub(super) fn number(value: f64, unit: Unit) -> String {
    if !value.is_finite() {
        return "any number".to_owned();
    }
    match unit {
        Unit::Count => plain(value),
        Unit::Bytes => bytes(value),
        Unit::Seconds => seconds(value),
        Unit::Ratio => format!("{} %", plain((value * 1e3).round() / 10.0)),
        Unit::PerSecond => format!("{}/s", plain((value * 100.0).round() / 100.0)),
    }
}

/// A value with its unit: `31.2 s`, `60 % to 100 %`, `at least 2/s`, or why it is not known.
pub(super) fn value(value: &Value, unit: Unit) -> String {
    match value {
        Value::Known(value) => number(*value, unit),
        Value::Between(low, high) if high.is_infinite() => format!("at least {}", number(*low, unit)),
        Value::Between(low, high) => format!("{} to {}", number(*low, unit), number(*high, unit)),
        Value::Unknown(reason) => reason.to_string(),
    }
}

/// Seconds with one digit below ten minutes, then minutes, hours and days.
pub(super) fn seconds(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v < 1.0 => return format!("{} ms", plain((value * 1e3).round())),
        v if v < 600.0 => (value, "s"),
        v if v < 7_200.0 => (value / 60.0, "min"),
        v if v < 172_800.0 => (value / 3_600.0, "h"),
        _ => (value / 86_400.0, "d"),
    };
    format!("{} {unit}", plain((scaled * 10.0).round() / 10.0))
}

/// A duration as [`seconds`].
pub(super) fn duration(value: Duration) -> String {
    if value.is_zero() { "0 s".to_owned() } else { seconds(value.as_secs_f64()) }
}

fn bytes(value: f64) -> String {
    let scales = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match scales.into_iter().find(|(size, _)| value.abs() >= *size as f64) {
        Some((size, unit)) => format!("{} {unit}", plain((value / size as f64 * 10.0).round() / 10.0)),
        None => format!("{} B", plain(value)),
    }
}

/// Without a fraction where there is none.
fn plain(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value}") }
}

/// Text from outside for a sentence: control and direction characters escaped, at most `most` characters.
pub(super) fn foreign(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most * 4));
    for (index, c) in text.chars().enumerate() {
        if index == most {
            shown.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The text cut at a character's end so that it has at most `most` bytes.
pub(super) fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// `1 look`, `3 looks`.
pub(super) fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// `1 caller waits`, `3 callers wait`.
pub(super) fn waits(count: usize, one: &str) -> String {
    format!("{} {}", counted(count, one), if count == 1 { "waits" } else { "wait" })
}

/// Our end of a connection whose descriptor is not visible: `port 40000`, `unix`.
pub(super) fn local_end(local: &End) -> String {
    local.address().map_or_else(|| local.to_string(), |address| format!("port {}", address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_a_person_writes_them() {
        let all = [
            number(31.23, Unit::Seconds),
            number(0.0034, Unit::Seconds),
            number(14.0 * 86_400.0, Unit::Seconds),
            number(0.8512, Unit::Ratio),
            number(3.0, Unit::Count),
            number(1.404, Unit::PerSecond),
            number(220_200_960.0, Unit::Bytes),
            value(&Value::Between(2.0, f64::INFINITY), Unit::Count),
            value(&Value::Between(0.1, 1.0), Unit::Ratio),
        ];
        let wanted = ["31.2 s", "3 ms", "14 d", "85.1 %", "3", "1.4/s", "210 MiB", "at least 2", "10 % to 100 %"];
        assert_eq!(all, wanted);
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor_and_is_bounded() {
        assert_eq!(foreign("a\u{1b}[2J\u{202e}b\n", 40), "a\\u{1b}[2J\\u{202e}b\\n");
        assert_eq!(foreign("äöüß", 2), "äö…");
        assert_eq!(cut("ä".repeat(10), 9), format!("{}…", "ä".repeat(3)));
    }
}
