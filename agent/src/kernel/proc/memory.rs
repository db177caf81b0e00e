//! `/proc/<pid>/smaps_rollup`.

/// Proportional set size in bytes: each shared page divided by those who share it.
pub fn parse_pss(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let kilobytes: u64 =
        text.lines().find_map(|line| line.strip_prefix("Pss:"))?.split_ascii_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kilobytes_become_bytes() {
        let file =
            b"5581d1-7ffe00 ---p 00000000 00:00 0    [rollup]\nRss:     3000 kB\nPss:     1024 kB\nPss_Anon: 5 kB\n";
        assert_eq!(parse_pss(file), Some(1 << 20));
        assert_eq!(parse_pss(b"Rss: 3000 kB\n"), None);
        assert_eq!(parse_pss(b"Pss: 99999999999999999999 kB\n"), None);
        assert_eq!(parse_pss(b"Pss: 18446744073709551615 kB\n"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(Pss:|[0-9a-zA-Z \n]){0,30}") {
            let _ = parse_pss(text.as_bytes());
        }
    }
}
