//! Text for people: columns, times and what must not reach a terminal as it is.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use tickbird_shared::{Labels, Timestamp};

/// Rows below their headings, each column as wide as it must be.
pub(super) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(headings)];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// In the local zone, with its offset.
pub(super) fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// `env=production, team=grants`.
pub(super) fn labels(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    pairs.join(", ")
}

/// What all of a group have in common: `check="http.status"`.
pub(super) fn group(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "nothing but their route".into();
    }
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{}={value:?}", plain(name))).collect();
    pairs.join(", ")
}

/// With control characters escaped: an agent chose this text.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_are_escaped() {
        let rows = [["a-1".to_owned(), plain("web\x1b[31m")], ["a-22".to_owned(), "db".to_owned()]];
        assert_eq!(table(["ID", "HOST"], &rows), "ID    HOST\na-1   web\\u{1b}[31m\na-22  db");
    }
}
