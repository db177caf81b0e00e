//! `/proc/<pid>/status`.

/// The real user id: first number of the `Uid:` line.
pub fn parse_uid(bytes: &[u8]) -> Option<u32> {
    // The name of the first line may be no text; the rest is.
    let line = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_real_uid_is_the_first_of_four() {
        assert_eq!(parse_uid(b"Name:\t\xff\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n"), Some(1000));
        assert_eq!(parse_uid(b"Name:\tUid: 7\n"), None);
        assert_eq!(parse_uid(b"Uid:\t"), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "(Uid:|[0-9\t\n -]){0,40}") {
            let _ = (parse_uid(&bytes), parse_uid(text.as_bytes()));
        }
    }
}
