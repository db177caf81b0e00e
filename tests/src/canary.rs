//! Secrets that are planted, and the search for them in everything that came out, in every form that text takes on its
//! way: as it is, in hexadecimal, percent-encoded, and in base64 wherever it began.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// What all planted words begin with. It is made of small letters, so that nothing hides it for its look: only the place
/// in which it stands tells that it is a secret.
const STEM: &str = "zebrafinch";

/// The word for one path, by its number: it says where a leak began.
pub fn canary(path: u8) -> String {
    let letter = |it: u8| char::from(b'a' + it % 26);
    format!("{STEM}{}{}", letter(path / 26), letter(path % 26))
}

/// What is looked for.
#[derive(Debug)]
pub struct Search {
    needles: Vec<Needle>,
}

#[derive(Debug)]
struct Needle {
    what: String,
    form: &'static str,
    text: String,
    /// Whether capitals count: they do in base64.
    is_exact: bool,
}

impl Search {
    /// For every [`canary`], also for one whose end was cut off.
    pub fn for_canaries() -> Self {
        let mut it = Self { needles: Vec::new() };
        it.add("a canary", STEM);
        it
    }

    /// For a secret that was made by others, too.
    ///
    /// # Panics
    /// When it is shorter than ten bytes, which chance would find, or not of ASCII.
    pub fn add(&mut self, what: &str, secret: &str) {
        assert!(secret.len() >= 10 && secret.is_ascii(), "{what} cannot be looked for");
        let escaped = serde_json::Value::from(secret).to_string();
        let mut forms = vec![
            ("as it is", secret.to_ascii_lowercase(), false),
            ("escaped", escaped[1..escaped.len() - 1].to_ascii_lowercase(), false),
            ("in hexadecimal", secret.bytes().map(|it| format!("{it:02x}")).collect(), false),
            ("percent-encoded", secret.bytes().map(|it| format!("%{it:02x}")).collect(), false),
        ];
        for before in 0..3 {
            let shifted = [&vec![0; before], secret.as_bytes()].concat();
            // The characters that depend on nothing but the secret, whatever stands before and behind it.
            let own = (before * 8).div_ceil(6)..shifted.len() * 8 / 6;
            forms.push(("in base64", STANDARD_NO_PAD.encode(&shifted)[own.clone()].to_owned(), true));
            forms.push(("in base64url", URL_SAFE_NO_PAD.encode(&shifted)[own].to_owned(), true));
        }
        for (form, text, is_exact) in forms {
            if !self.needles.iter().any(|it| it.text == text) {
                self.needles.push(Needle { what: what.to_owned(), form, text, is_exact });
            }
        }
    }

    /// Every place of a text or file in which one of them is, with what surrounds it.
    pub fn found(&self, bytes: &[u8]) -> Vec<String> {
        // What is no text has the searched characters all the same.
        let text = String::from_utf8_lossy(bytes);
        let lower = text.to_ascii_lowercase();
        let mut found = Vec::new();
        for it in &self.needles {
            let within = if it.is_exact { &*text } else { &lower };
            found.extend(within.match_indices(&it.text).map(|(at, _)| {
                let (from, to) = (at.saturating_sub(80), (at + it.text.len() + 40).min(text.len()));
                let around = &text[text.floor_char_boundary(from)..text.floor_char_boundary(to)];
                format!("{} {}: …{around}…", it.what, it.form)
            }));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn a_canary_is_found_in_each_form_and_at_each_place_of_it() {
        let search = Search::for_canaries();
        let word = canary(27);
        assert_eq!(word, "zebrafinchbb");
        for before in ["", "a", "ab", "abc", "user:"] {
            for behind in ["", "!", "@host/db?x=1"] {
                let text = format!("{before}{word}{behind}");
                assert!(!search.found(text.as_bytes()).is_empty(), "{text}");
                assert!(!search.found(text.to_uppercase().as_bytes()).is_empty(), "{text}");
                for code in [STANDARD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
                    assert!(!search.found(format!("Basic {code} x").as_bytes()).is_empty(), "{text}: {code}");
                }
                let hexadecimal: String = text.bytes().map(|it| format!("{it:02X}")).collect();
                assert!(!search.found(hexadecimal.as_bytes()).is_empty(), "{hexadecimal}");
                let percent: String = text.bytes().map(|it| format!("%{it:02X}")).collect();
                assert!(!search.found(percent.as_bytes()).is_empty(), "{percent}");
            }
        }
        assert!(search.found(b"a zebra and a finch").is_empty());
    }

    #[test]
    fn a_secret_of_others_is_found_too_and_said_by_its_name() {
        let mut search = Search::for_canaries();
        search.add("the key", "a \"key\" of theirs");
        let found = search.found(br#"{"x": "a \"key\" of theirs"}"#);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("the key escaped"), "{found:?}");
    }
}
