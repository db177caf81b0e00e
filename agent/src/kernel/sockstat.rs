//! How many TCP sockets a network namespace has, from `/proc/net/sockstat` and `sockstat6`.
//!
//! Those in its tables: what listens and every connection, whoever holds it, but neither TIME_WAIT nor what waits for the
//! last part of a handshake. The kernel keeps the sums, so that to read them costs some microseconds where a dump goes
//! through the whole table of connections of the machine.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::KernelError;

/// Longer than either file is.
const LONGEST: usize = 1024;

/// The two files, kept open.
#[derive(Debug)]
pub struct Counter {
    v4: File,
    /// A kernel without IPv6 has none.
    v6: Option<File>,
}

impl Counter {
    /// For the network namespace of whoever `root` is the directory of: `/proc` for our own, `/proc/<pid>` for that of a process.
    ///
    /// # Errors
    /// When the first file cannot be opened.
    pub fn open(root: &Path) -> Result<Self, KernelError> {
        let v6 = match File::open(root.join("net/sockstat6")).map_err(KernelError::from) {
            Ok(file) => Some(file),
            Err(KernelError::Gone) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4: File::open(root.join("net/sockstat"))?, v6 })
    }

    /// Sockets now.
    ///
    /// # Errors
    /// When a file cannot be read or does not name its sockets.
    pub fn read(&self) -> Result<u64, KernelError> {
        let of_v6 = self.v6.as_ref().map_or(Ok(0), |file| sockets(file, "TCP6:"))?;
        Ok(sockets(&self.v4, "TCP:")?.saturating_add(of_v6))
    }
}

fn sockets(file: &File, protocol: &str) -> Result<u64, KernelError> {
    let mut text = [0; LONGEST];
    let length = file.read_at(&mut text, 0)?;
    parse(&text[..length], protocol).ok_or(KernelError::Malformed("the count of sockets"))
}

/// `TCP: inuse 5 orphan 0 tw 2 alloc 8 mem 1`, see `net/ipv4/proc.c`.
pub(super) fn parse(text: &[u8], protocol: &str) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.lines().find_map(|line| line.strip_prefix(protocol))?.split_ascii_whitespace();
    (words.next() == Some("inuse")).then(|| words.next()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_count_is_that_of_its_protocol() {
        let v4 = b"sockets: used 9\nTCP: inuse 17 orphan 1 tw 2 alloc 19 mem 121\nUDP: inuse 3 mem 0\n";
        assert_eq!(parse(v4, "TCP:"), Some(17));
        assert_eq!(parse(b"TCP6: inuse 4\nUDP6: inuse 5\n", "TCP6:"), Some(4));
        for none in [&b"TCP: orphan 1"[..], b"", b"TCP: inuse", b"TCP: inuse -1", b"UDP: inuse 3", b"\xff"] {
            assert_eq!(parse(none, "TCP:"), None, "{none:?}");
        }
    }

    #[test]
    fn the_kernel_counts_anew_at_each_reading() {
        let counter = Counter::open(Path::new("/proc")).unwrap();
        // Tests beside this one open and close some, too: so many at a time do not pass for that.
        let before = counter.read().unwrap();
        let ours: Vec<TcpListener> =
            (0..400).map(|at| TcpListener::bind(["127.0.0.1:0", "[::1]:0"][at % 2]).unwrap()).collect();
        let with = counter.read().unwrap();
        drop(ours);
        let after = counter.read().unwrap();
        assert!(with > before + 200 && with > after + 200, "{before}, {with}, {after}");
    }
}
