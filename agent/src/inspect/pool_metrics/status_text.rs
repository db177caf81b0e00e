//! SQLAlchemy's `pool.status()`: `Pool size: 20  Connections in pool: 7 Current Overflow: 0 Current Checked out
//! connections: 13`, wherever it stands in a text.

use super::shape::Numbers;

/// Reads the first such text; `None` when there is none or a number of it is missing.
pub(super) fn read(text: &str) -> Option<Numbers> {
    let rest = &text[text.find("Pool size:")?..];
    let (size, rest) = number_after(rest, "Pool size:")?;
    let (idle, rest) = number_after(rest, "Connections in pool:")?;
    let (_, rest) = number_after(rest, "Current Overflow:")?;
    let (in_use, _) = number_after(rest, "Current Checked out connections:")?;
    Some(Numbers {
        size: Some(size),
        idle: Some(idle),
        in_use: Some(in_use),
        open: Some(idle + in_use),
        ..Numbers::default()
    })
}

/// The whole number behind `label`, which stands next but for white space.
fn number_after<'a>(text: &'a str, label: &str) -> Option<(f64, &'a str)> {
    let rest = text.trim_start().strip_prefix(label)?.trim_start();
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(rest.len());
    let number: i32 = rest[..end].parse().ok()?;
    Some((f64::from(number), &rest[end..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_found_in_a_line_of_text() {
        let text = "INFO pool: Pool size: 20  Connections in pool: 7 Current Overflow: -12 \
                    Current Checked out connections: 1 (ok)";
        let it = read(text).expect("a status");
        assert_eq!((it.size, it.idle, it.in_use, it.open), (Some(20.0), Some(7.0), Some(1.0), Some(8.0)));
        assert_eq!(it.limit, None, "the overflow that is allowed is not said");
    }

    #[test]
    fn what_is_cut_or_of_another_pool_is_none() {
        for text in ["NullPool", "Pool size: 20  Connections in pool: 7 Current", "Pool size: 99999999999999999999"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(Pool size: |Connections in pool: |Current |Overflow: |[-0-9 é]){0,12}") {
            let _ = read(&text);
        }
    }
}
