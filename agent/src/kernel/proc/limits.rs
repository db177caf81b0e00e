//! `/proc/<pid>/limits`.

/// The soft limit of `Max open files`; the inner `None` is `unlimited`.
pub fn parse_open_files(bytes: &[u8]) -> Option<Option<u64>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let soft = text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?;
    if soft == "unlimited" { Some(None) } else { soft.parse().ok().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_soft_limit_is_the_first_column() {
        let file = b"Limit      Soft Limit  Hard Limit  Units\nMax cpu time  unlimited unlimited seconds\nMax open files            1024                 524288               files\n";
        assert_eq!(parse_open_files(file), Some(Some(1024)));
        assert_eq!(parse_open_files(b"Max open files unlimited unlimited files"), Some(None));
        assert_eq!(parse_open_files(b"Max open files many"), None);
        assert_eq!(parse_open_files(b"Max cpu time 1"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(Max open files|[0-9a-z \n]){0,30}") {
            let _ = parse_open_files(text.as_bytes());
        }
    }
}
