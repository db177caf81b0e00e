//! What is scrubbed, under any text: bounded, without power over a terminal, and never with a marked secret.

use super::{command_line, database_error, escape, mysql, path, sql, text, url};

/// What must not be shown.
const SECRET: &str = "hunter2canary";

fn assert_clean(shown: &str, most: usize, of: &str) {
    assert!(shown.len() <= most, "{} bytes of {of:?}", shown.len());
    assert!(shown.chars().all(|c| escape(c.encode_utf8(&mut [0; 4])).chars().eq([c])), "{shown:?} of {of:?}");
}

fn assert_hidden(shown: &str, of: &str) {
    assert!(!shown.contains("hunter2"), "{shown:?} of {of:?}");
}

/// Statements, in both dialects.
pub(crate) fn statements(data: &[u8]) {
    let input = String::from_utf8_lossy(data);
    if input.contains("hunter2") {
        return;
    }
    for scrubbed in [sql, mysql] {
        if let Some(shown) = scrubbed(&input) {
            assert_clean(&shown, 400, &input);
        }
        let marked = format!("SELECT '{SECRET}' {input}");
        assert_hidden(&scrubbed(&marked).unwrap_or_default(), &marked);
    }
}

/// Texts, paths, URLs, errors of a database and command lines.
pub(crate) fn texts(data: &[u8]) {
    let input = String::from_utf8_lossy(data);
    if input.contains("hunter2") {
        return;
    }
    for most in [0, 2, 63, 300, 2048] {
        assert_clean(&text(&input, most), most, &input);
        assert_clean(&path(&input, most), most, &input);
    }
    assert_clean(&database_error(&input), 300, &input);
    assert_clean(&url(&input), 300, &input);
    let words: Vec<&str> = input.split([' ', '\0']).collect();
    assert_clean(&command_line(&words), 200, &input);

    for marked in [format!("{input} password={SECRET}"), format!("password={SECRET} {input}")] {
        assert_hidden(&text(&marked, 4096), &marked);
        assert_hidden(&database_error(&marked), &marked);
    }
    let marked = format!("https://me:{SECRET}@{input}");
    assert_hidden(&url(&marked), &marked);
    let mut words = words;
    words.insert(0, "prog");
    let marked = format!("--db-password={SECRET}");
    words.insert(1, &marked);
    assert_hidden(&command_line(&words), &input);
}
