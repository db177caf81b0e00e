//! Zero-ended strings: `/proc/<pid>/cmdline` and `environ`.
//!
//! Both may hold secrets. Nothing here copies a string, and nobody prints one.

/// The arguments of a command line. A process that wrote its own title often leaves one string, and zeros behind it.
pub fn arguments(bytes: &[u8]) -> Vec<&str> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if end == 0 {
        return Vec::new();
    }
    // An argument that is no text is left as an empty one: its place counts, its content does not.
    bytes[..end].split(|byte| *byte == 0).take(4096).map(|part| std::str::from_utf8(part).unwrap_or("")).collect()
}

/// The value of a named key of an environment; the first, as `getenv` takes it.
pub fn value_of<'a>(environment: &'a [u8], key: &str) -> Option<&'a str> {
    environment.split(|byte| *byte == 0).find_map(|pair| {
        let value = pair.strip_prefix(key.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(value).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn arguments_end_with_the_last_that_is_not_empty() {
        assert_eq!(arguments(b"python3\0app.py\0\0--x\0\0\0"), ["python3", "app.py", "", "--x"]);
        assert_eq!(arguments(b"postgres: writer \0\0\0\0"), ["postgres: writer "]);
        assert_eq!(arguments(b"a\0\xff\0b\0"), ["a", "", "b"]);
        assert_eq!(arguments(b""), Vec::<&str>::new());
        assert_eq!(arguments(b"\0\0"), Vec::<&str>::new());
    }

    #[test]
    fn a_key_is_matched_whole_and_the_first_counts() {
        let environment = b"XDB_POOL_SIZE=1\0DB_POOL_SIZE=20\0DB_POOL_SIZE=30\0EMPTY=\0DB_POOL_SIZE_MAX=4\0";
        assert_eq!(value_of(environment, "DB_POOL_SIZE"), Some("20"));
        assert_eq!(value_of(environment, "EMPTY"), Some(""));
        assert_eq!(value_of(environment, "DB_POOL"), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), key in "[A-Z]{0,5}") {
            let _ = (arguments(&bytes).len(), value_of(&bytes, &key));
        }
    }
}
