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

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse_socket(&bytes);
            let _ = parse_socket(&[b"socket:[", bytes.as_slice(), b"]"].concat());
        }
    }
}
