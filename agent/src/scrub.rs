//! What leaves the host is scrubbed: statements, command lines, URLs and texts lose their secrets and their power
//! over a terminal.
//!
//! Pure functions from text to bounded text. They err towards hiding: a harmless word that looks like a token is
//! shown as `***`, and a statement that cannot be read with certainty is cut or not sent at all. Every result is
//! bounded in bytes and free of control, bidirectional and invisible characters.

mod command_line;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod secret;
mod sql;
mod text;
mod url;

pub use command_line::command_line;
pub use sql::{mysql, sql};
pub use text::{database_error, escape, path, text};
pub use url::url;

/// Stands where something was hidden.
pub const HIDDEN: &str = "***";

/// Most bytes of a text that are looked at: the rest could not be shown anyway.
const MAX_INPUT: usize = 64 * 1024;

/// The longest prefix of at most `max` bytes that ends between two characters.
fn prefix(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// At most `max` bytes of it, with `…` for what was cut off.
fn bounded(mut text: String, max: usize) -> String {
    const MARK: char = '…';
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max.saturating_sub(MARK.len_utf8())));
        if max >= MARK.len_utf8() {
            text.push(MARK);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cut_falls_between_characters_and_is_shown() {
        assert_eq!(bounded("pool".into(), 4), "pool");
        assert_eq!(bounded("pools".into(), 4), "p…");
        assert_eq!(bounded("ééé".into(), 5), "é…");
        assert_eq!(bounded("éé".into(), 2), "");
        assert_eq!(prefix("é", 1), "");
    }

    /// Words that are alike in every language of this module, so that random text reaches its branches.
    fn awkward() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "\\PC{0,6}",
            "[ -~]{0,8}",
            Just("'".into()),
            Just("\"".into()),
            Just("$$".into()),
            Just("$a$".into()),
            Just("E'\\".into()),
            Just("/*".into()),
            Just("--".into()),
            Just("://".into()),
            Just("postgres://u:p@".into()),
            Just("password=".into()),
            Just("Authorization: ".into()),
            Just("-p".into()),
            Just("\u{202e}\u{0}\n".into()),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    fn is_clean(text: &str) -> bool {
        text.chars().all(|c| escape(&c.to_string()) == c.to_string())
    }

    proptest! {
        #[test]
        fn any_text_gives_bounded_clean_text_and_no_panic(input in awkward(), max in 0_usize..80) {
            let shown = text(&input, max);
            prop_assert!(shown.len() <= max && is_clean(&shown), "{shown:?}");
            let shown = database_error(&input);
            prop_assert!(shown.len() <= 300 && is_clean(&shown), "{shown:?}");
            let shown = url(&input);
            prop_assert!(shown.len() <= 300 && is_clean(&shown), "{shown:?}");
            let words: Vec<&str> = input.split(' ').collect();
            let shown = command_line(&words);
            prop_assert!(shown.len() <= 200 && is_clean(&shown), "{shown:?}");
            if let Some(shown) = sql(&input) {
                prop_assert!(shown.len() <= 400 && is_clean(&shown), "{shown:?}");
            }
        }
    }
}
