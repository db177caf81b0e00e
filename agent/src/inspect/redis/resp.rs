//! RESP 2, as much of it as five commands need: requests as arrays of bulk strings, and one reply read with bounds.
//!
//! A reply begins with `+` (text), `-` (error), `:` (number), `$` (length and so many bytes) or `*` (so many replies),
//! and every line ends with CR LF. Reading is a function of the bytes that came so far.

/// Longest reply that is read: 20,000 clients as `CLIENT LIST` tells them.
pub(super) const MAX_REPLY: usize = 12 << 20;
/// Longest line: an error, a number, a length.
const MAX_LINE: usize = 4096;
/// Most parts of an array; `CONFIG GET` of one setting has two.
const MAX_PARTS: usize = 16;

/// One reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// A simple or a bulk string; a null is an empty one. Bytes that are no UTF-8 are replaced.
    Text(String),
    /// `NOPERM …`: the first word is the kind.
    Error(String),
    Number(i64),
    Array(Vec<Reply>),
}

impl Reply {
    /// The text, or the number in digits.
    pub(super) fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(number) => Some(number.to_string()),
            Self::Error(_) | Self::Array(_) => None,
        }
    }
}

/// What came is no reply, or one beyond the bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// No RESP at all.
    Foreign,
    /// RESP, and too much of it.
    TooLong,
}

/// A command as it is sent.
pub(super) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The reply at the beginning of `bytes` and how many of them it took; `None` until all of it is there.
pub(super) fn read(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Unreadable> {
    let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
    if !b"+-:$*".contains(&kind) {
        return Err(Unreadable::Foreign);
    }
    let Some(length) = rest.iter().take(MAX_LINE).position(|it| *it == b'\n') else {
        return if rest.len() >= MAX_LINE { Err(Unreadable::TooLong) } else { Ok(None) };
    };
    let Some(line) = rest[..length].strip_suffix(b"\r") else { return Err(Unreadable::Foreign) };
    let line = String::from_utf8_lossy(line);
    let begun = 1 + length + 1;
    let whole = |reply| Ok(Some((reply, begun)));
    match kind {
        b'+' => return whole(Reply::Text(line.into_owned())),
        b'-' => return whole(Reply::Error(line.into_owned())),
        _ => (),
    }
    let number: i64 = line.parse().map_err(|_| Unreadable::Foreign)?;
    match (kind, usize::try_from(number)) {
        (b':', _) => whole(Reply::Number(number)),
        // A null, of either kind.
        (_, Err(_)) => whole(Reply::Text(String::new())),
        (b'$', Ok(length)) => bulk(bytes, begun, length),
        (_, Ok(parts)) => array(bytes, begun, parts),
    }
}

fn bulk(bytes: &[u8], begun: usize, length: usize) -> Result<Option<(Reply, usize)>, Unreadable> {
    if length > MAX_REPLY {
        return Err(Unreadable::TooLong);
    }
    let Some(body) = bytes.get(begun..begun + length + 2) else { return Ok(None) };
    let Some(body) = body.strip_suffix(b"\r\n") else { return Err(Unreadable::Foreign) };
    let text = String::from_utf8_lossy(body).into_owned();
    Ok(Some((Reply::Text(text), begun + length + 2)))
}

/// Its parts are no arrays themselves: nothing that is asked here nests.
fn array(bytes: &[u8], begun: usize, parts: usize) -> Result<Option<(Reply, usize)>, Unreadable> {
    if parts > MAX_PARTS {
        return Err(Unreadable::TooLong);
    }
    let (mut all, mut at) = (Vec::with_capacity(parts), begun);
    for _ in 0..parts {
        let rest = &bytes[at..];
        if rest.first() == Some(&b'*') {
            return Err(Unreadable::TooLong);
        }
        let Some((part, taken)) = read(rest)? else { return Ok(None) };
        all.push(part);
        at += taken;
    }
    Ok(Some((Reply::Array(all), at)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn replies_are_read_once_they_are_whole() {
        let text = |text: &str| Reply::Text(text.to_owned());
        for (bytes, reply) in [
            ("+OK\r\n", text("OK")),
            ("-NOPERM no\r\n", Reply::Error("NOPERM no".to_owned())),
            (":42\r\n", Reply::Number(42)),
            ("$5\r\na\r\nb\n\r\n", text("a\r\nb\n")),
            ("$-1\r\n", text("")),
            ("*2\r\n$10\r\nmaxclients\r\n$2\r\n24\r\n", Reply::Array(vec![text("maxclients"), text("24")])),
        ] {
            assert_eq!(read(bytes.as_bytes()), Ok(Some((reply, bytes.len()))), "{bytes:?}");
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes.as_bytes()[..end]), Ok(None), "{:?}", &bytes[..end]);
            }
        }
        assert_eq!(read(b"+OK\r\n+more"), Ok(Some((text("OK"), 5))));
    }

    #[test]
    fn what_is_no_reply_or_too_long_is_said_so_before_it_is_kept() {
        assert_eq!(read(b"HTTP/1.1 400 Bad Request\r\n"), Err(Unreadable::Foreign));
        assert_eq!(read(b"$many\r\n"), Err(Unreadable::Foreign));
        assert_eq!(read(b"+OK\n"), Err(Unreadable::Foreign));
        assert_eq!(read(b"$2\r\nabcd"), Err(Unreadable::Foreign));
        for bytes in ["$99999999999\r\n", "*99999\r\n", "*1\r\n*1\r\n:1\r\n"] {
            assert_eq!(read(bytes.as_bytes()), Err(Unreadable::TooLong), "{bytes:?}");
        }
        assert_eq!(read(&[b'+'; MAX_LINE + 2]), Err(Unreadable::TooLong));
    }

    #[test]
    fn a_command_keeps_its_words_apart() {
        assert_eq!(command(&["AUTH", "a b", "é"]), "*3\r\n$4\r\nAUTH\r\n$3\r\na b\r\n$2\r\né\r\n".as_bytes());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in "[-+:$*0-9\r\n]{0,40}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                if let Ok(Some((_, taken))) = read(bytes) {
                    prop_assert!(taken <= bytes.len());
                }
            }
        }
    }
}
