//! The head of a request that was decided with its body. It is stored before the body, so that each attempt is asked in the same way,
//! whatever the configuration says by then.
//!
//! What is stored begins with a byte that no other form begins with, then the head as one line of JSON, then the body. A body in the
//! operator's words that begins with that byte has a head before it, though it be empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// No document, list or letter that is told begins with it.
const MARK: u8 = 0;

/// What of a request is in the operator's own words; the rest is as it is configured when it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// `PUT`.
    pub method: Option<String>,
    /// Values by the names of headers.
    pub headers: BTreeMap<String, String>,
}

impl Head {
    /// What is stored of a message with this head.
    pub(super) fn before(&self, body: Vec<u8>) -> Vec<u8> {
        let mut stored = vec![MARK];
        serde_json::to_writer(&mut stored, self).expect("texts serialise");
        stored.push(b'\n');
        stored.extend(body);
        stored
    }

    /// Whether bytes could be taken for a head and a body.
    pub(super) fn is_at(stored: &[u8]) -> bool {
        stored.first() == Some(&MARK)
    }

    /// Takes apart what is stored. A message without a head is its body.
    pub fn split(stored: &[u8]) -> (Option<Self>, &[u8]) {
        let found = stored.strip_prefix(&[MARK]).and_then(|rest| {
            let end = rest.iter().position(|it| *it == b'\n')?;
            Some((serde_json::from_slice(&rest[..end]).ok()?, &rest[end + 1..]))
        });
        found.map_or((None, stored), |(head, body)| (Some(head), body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_head_is_read_as_it_was_written_and_no_bytes_panic(
            method in proptest::option::of("PUT|PATCH"),
            headers in proptest::collection::btree_map("[a-z-]{1,9}", "\\PC{0,20}", 0..4),
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..60),
        ) {
            let head = Head { method, headers };
            let stored = head.before(body.clone());
            proptest::prop_assert_eq!(Head::split(&stored), (Some(head), &body[..]));
            let damaged = [&[MARK][..], &body].concat();
            for bytes in [&body, &damaged] {
                proptest::prop_assert!(bytes.ends_with(Head::split(bytes).1));
            }
        }
    }

    #[test]
    fn a_body_alone_is_its_own() {
        assert_eq!(Head::split(b"{\"a\": 1}\n"), (None, &b"{\"a\": 1}\n"[..]));
        assert_eq!(Head::split(b""), (None, &b""[..]));
    }
}
