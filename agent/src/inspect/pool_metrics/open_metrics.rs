//! OpenMetrics and Prometheus text, line by line: a name, its labels, a number.

use std::borrow::Cow;

/// One line that holds a number.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    pub(super) value: f64,
}

impl Series<'_> {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(it, _)| it == name).map(|(_, value)| &**value)
    }
}

/// Most labels of one line.
const MAX_LABELS: usize = 64;

/// The name that a line begins with, before anything else of it is read; `None` for comments and empty lines.
pub(super) fn name_of(line: &str) -> Option<Cow<'_, str>> {
    let line = line.trim_start();
    match line.as_bytes().first()? {
        b'#' => None,
        // A name with other characters stands in quotes, first among the labels.
        b'{' => {
            let inside = line[1..].trim_start();
            inside.starts_with('"').then(|| quoted(inside)).flatten().map(|(name, _)| name)
        }
        _ => Some(Cow::Borrowed(line.split(|c: char| c == '{' || c.is_ascii_whitespace()).next().unwrap_or(line))),
    }
}

/// Reads one line; `None` when it is not one.
pub(super) fn read(line: &str) -> Option<Series<'_>> {
    let line = line.trim();
    let begin = line.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
    let (bare, rest) = line.split_at(begin);
    let mut name = (!bare.is_empty()).then_some(Cow::Borrowed(bare));
    let mut labels = Vec::new();
    let mut rest = rest.trim_start();
    if let Some(inside) = rest.strip_prefix('{') {
        let mut inside = inside.trim_start();
        loop {
            if let Some(after) = inside.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = if inside.starts_with('"') {
                quoted(inside)?
            } else {
                let end = inside.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':')))?;
                (Cow::Borrowed(&inside[..end]), &inside[end..])
            };
            inside = after.trim_start();
            if let Some(after) = inside.strip_prefix('=') {
                let (value, after) = quoted(after.trim_start())?;
                if key.is_empty() || labels.len() == MAX_LABELS {
                    return None;
                }
                labels.push((key, value));
                inside = after.trim_start();
            } else if name.is_none() && !key.is_empty() {
                name = Some(key);
            } else {
                return None;
            }
            match inside.strip_prefix(',') {
                Some(after) => inside = after.trim_start(),
                None if inside.starts_with('}') => (),
                None => return None,
            }
        }
    }
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Series { name: name?, labels, value })
}

/// A text in quotes at the beginning, and what follows it.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let inside = text.strip_prefix('"')?;
    let end = inside.find(['"', '\\'])?;
    if inside[end..].starts_with('"') {
        return Some((Cow::Borrowed(&inside[..end]), &inside[end + 1..]));
    }
    let mut plain = inside[..end].to_owned();
    let mut characters = inside[end..].char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((Cow::Owned(plain), &inside[end + at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => plain.push('\n'),
                other => plain.push(other),
            },
            other => plain.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(line: &str) -> String {
        let Some(it) = read(line) else { return "nothing".to_owned() };
        let labels: Vec<_> = it.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{} [{}] {}", it.name, labels.join(" "), it.value)
    }

    #[test]
    fn lines_of_both_formats_are_read() {
        for (line, expected) in [
            ("go_sql_idle_connections 4", "go_sql_idle_connections [] 4"),
            ("a{} 1.5e1 1700000000000", "a [] 15"),
            (r#"a{pool="x",state = "idle", } 3 # {trace="1"} 2"#, "a [pool=x state=idle] 3"),
            (r#"a{pool="say \"hi\" \\ there"} +Inf"#, r#"a [pool=say "hi" \ there] inf"#),
            (r#"{"db.client.connection.count","db.state"="used"} 7"#, "db.client.connection.count [db.state=used] 7"),
            (r#"a{pool="}"} 1"#, "a [pool=}] 1"),
        ] {
            assert_eq!(shown(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_cut_or_no_number_is_no_series() {
        for line in ["", "a", "a b", r#"a{pool="x"#, r#"a{pool="x"} "#, r#"a{pool=x} 1"#, r#"{"a""b"} 1"#, "{} 1"] {
            assert_eq!(shown(line), "nothing", "{line}");
        }
        assert_eq!((name_of("# HELP a"), name_of("  ")), (None, None));
        assert_eq!(name_of(r#"{"a.b", x="1"} 1"#).as_deref(), Some("a.b"));
        assert_eq!(name_of("a{x").as_deref(), Some("a"));
    }

    proptest! {
        #[test]
        fn no_line_panics(line in r#"[a-b{}"=,\\ 1é#\n]{0,40}"#) {
            let _ = (name_of(&line), read(&line));
        }

        #[test]
        fn what_is_written_is_read(value in "\\PC{0,20}", number in -1e9_f64..1e9) {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            let line = format!("a{{pool=\"{escaped}\"}} {number}");
            let series = read(&line).expect("a series");
            prop_assert_eq!(series.label("pool"), Some(&*value));
            prop_assert!((series.value - number).abs() <= f64::EPSILON * number.abs());
        }
    }
}
