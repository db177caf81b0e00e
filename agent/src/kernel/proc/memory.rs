//! `/proc/<pid>/smaps_rollup` and `statm`.

/// Proportional set size in bytes: each shared page divided by those who share it.
pub fn parse_pss(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let kilobytes: u64 =
        text.lines().find_map(|line| line.strip_prefix("Pss:"))?.split_ascii_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// Resident pages that no file is behind: those of the process itself, for the most part (proc_pid_statm(5): resident less shared).
pub fn parse_anonymous_pages(bytes: &[u8]) -> Option<u64> {
    let mut fields = std::str::from_utf8(bytes).ok()?.split_ascii_whitespace().skip(1);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let (resident, shared) = (next()?, next()?);
    // Each is counted by itself, so that for a moment there may be more of the one.
    Some(resident.saturating_sub(shared))
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

    #[test]
    fn what_a_file_is_behind_is_not_anonymous() {
        assert_eq!(parse_anonymous_pages(b"4567 1200 300 8 0 500 0\n"), Some(900));
        assert_eq!(parse_anonymous_pages(b"4567 300 1200 8 0 500 0\n"), Some(0));
        assert_eq!(parse_anonymous_pages(b"4567 300\n"), None);
        assert_eq!(parse_anonymous_pages(b"4567 -300 1\n"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(Pss:|[0-9a-zA-Z \n]){0,30}") {
            let _ = (parse_pss(text.as_bytes()), parse_anonymous_pages(text.as_bytes()));
        }
    }
}
