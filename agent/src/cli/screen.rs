//! A text cut to what a terminal shows at once, for reports that are drawn again and again.

use std::io::stdout;

use rustix::termios::tcgetwinsize;

/// Columns and rows of the terminal on standard output; nothing when it is none or does not tell.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(stdout()).ok().filter(|it| it.ws_col > 0 && it.ws_row > 0)?;
    Some((size.ws_col.into(), size.ws_row.into()))
}

/// The first lines of `text` that fit, each cut at the last column; the last row tells how many do not.
pub(super) fn fit(text: &str, (columns, rows): (usize, usize)) -> String {
    let all = text.lines().count();
    let shown = if all <= rows { all } else { rows.saturating_sub(1) };
    let mut lines: Vec<String> = text.lines().take(shown).map(|line| cut(line, columns)).collect();
    if shown < all {
        lines.push(cut(
            &format!("… {} more lines: a taller terminal shows them, or a look without --watch", all - shown),
            columns,
        ));
    }
    lines.join("\n")
}

/// At most so many characters; what is missing is an ellipsis. Colours take no room, and end where the line ends.
fn cut(line: &str, columns: usize) -> String {
    let mut out = String::with_capacity(line.len());
    let (mut width, mut is_coloured, mut rest) = (0, false, line.chars());
    while let Some(character) = rest.next() {
        if character == '\x1b' {
            is_coloured = true;
            out.push(character);
            // `ESC [ … m`, which is all that a report has.
            for part in rest.by_ref() {
                out.push(part);
                if part == 'm' {
                    break;
                }
            }
            continue;
        }
        if width + 1 == columns && !ends(rest.as_str()) {
            out.push('…');
            if is_coloured {
                out.push_str("\x1b[0m");
            }
            return out;
        }
        out.push(character);
        width += 1;
    }
    out
}

/// Only colours follow.
fn ends(rest: &str) -> bool {
    rest.split('\x1b').enumerate().all(|(index, part)| match index {
        0 => part.is_empty(),
        _ => part.ends_with('m') && part.find('m') == Some(part.len() - 1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_the_last_column_and_colours_take_no_room() {
        assert_eq!(fit("abcdef", (6, 5)), "abcdef");
        assert_eq!(fit("abcdefg", (6, 5)), "abcde…");
        assert_eq!(fit("\x1b[31mabcdef\x1b[0m", (6, 5)), "\x1b[31mabcdef\x1b[0m", "it fits");
        assert_eq!(fit("\x1b[31mabc\x1b[0mdefg", (6, 5)), "\x1b[31mabc\x1b[0mde…\x1b[0m");
        assert_eq!(fit("äöüß", (3, 5)), "äö…");
        assert_eq!(fit("ab", (1, 5)), "…");
    }

    #[test]
    fn what_does_not_fit_below_is_counted() {
        assert_eq!(fit("a\nb\nc", (80, 3)), "a\nb\nc");
        let cut = fit("a\nb\nc\nd", (80, 3));
        assert!(cut.starts_with("a\nb\n… 2 more lines"), "{cut}");
        assert_eq!(cut.lines().count(), 3);
    }
}
