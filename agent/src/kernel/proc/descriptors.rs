//! `/proc/<pid>/fd`.

/// A descriptor that is a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number in the process.
    pub fd: u32,
    /// The socket.
    pub inode: u64,
}

/// The inode of `socket:[4711]`; `None` for every other target.
pub fn parse_socket(target: &[u8]) -> Option<u64> {
    let digits = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether the `flags` of a `fdinfo` (octal, as `open(2)` takes them) allow writing; `None` when there are none.
pub fn parse_writable(bytes: &[u8]) -> Option<bool> {
    const ACCESS_MODE: u64 = 0o3;
    let text = std::str::from_utf8(bytes).ok()?;
    let flags = text.lines().find_map(|it| it.strip_prefix("flags:"))?;
    Some(u64::from_str_radix(flags.trim(), 8).ok()? & ACCESS_MODE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_a_socket_has_an_inode_here() {
        assert_eq!(parse_socket(b"socket:[4711]"), Some(4711));
        for other in [&b"pipe:[4711]"[..], b"/tmp/socket:[1]", b"socket:[1", b"socket:[]", b"socket:[x]", b""] {
            assert_eq!(parse_socket(other), None);
        }
    }

    #[test]
    fn the_flags_of_a_descriptor_tell_whether_it_writes() {
        assert_eq!(parse_writable(b"pos:\t0\nflags:\t02100002\nmnt_id:\t29\n"), Some(true));
        assert_eq!(parse_writable(b"pos:\t0\nflags:\t0100001\n"), Some(true));
        assert_eq!(parse_writable(b"pos:\t0\nflags:\t0100000\n"), Some(false));
        assert_eq!(parse_writable(b"pos:\t0\n"), None);
        assert_eq!(parse_writable(b"flags:\t9\n"), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse_writable(&bytes);
            let _ = parse_writable(&[b"flags:", bytes.as_slice()].concat());
            let _ = parse_socket(&bytes);
            let _ = parse_socket(&[b"socket:[", bytes.as_slice(), b"]"].concat());
        }
    }
}
