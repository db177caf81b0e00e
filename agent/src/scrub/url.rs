//! URLs without credentials and without the values of their query.

use super::{HIDDEN, MAX_INPUT, bounded, escape, prefix, secret};

/// Most bytes of a scrubbed URL.
const MAX_URL: usize = 300;

/// A URL without user and password, with `***` for each value of its query and for every part of its path that looks
/// like a token, without a fragment, at most 300 bytes. Where credentials cannot be told from host and path, only
/// the scheme is left.
pub fn url(text: &str) -> String {
    let text = prefix(text, MAX_INPUT);
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let mut shown = String::new();
    if !scheme.is_empty() {
        shown.push_str(if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b)) {
            scheme
        } else {
            HIDDEN
        });
        shown.push_str("://");
    }
    let (location, query) = split(rest);
    match without_credentials(location) {
        Some((authority, path)) => {
            shown.push_str(authority);
            push_path(&mut shown, path);
            push_query(&mut shown, query);
        }
        None => shown.push_str(HIDDEN),
    }
    bounded(escape(&shown), MAX_URL)
}

/// What stands before the query, and the query without the fragment. A `?` or `#` inside a password does not count.
fn split(rest: &str) -> (&str, Option<&str>) {
    let credentials = rest.rfind('@').filter(|at| rest[..*at].contains(':')).unwrap_or(0);
    let end = rest[credentials..].find('#').map_or(rest.len(), |at| credentials + at);
    match rest[credentials..end].find('?').map(|at| credentials + at) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..end])),
        None => (&rest[..end], None),
    }
}

/// Host and port, and the path, when they can be told apart from credentials.
fn without_credentials(location: &str) -> Option<(&str, &str)> {
    let slash = location.find(['/', '?', '#']).unwrap_or(location.len());
    let (authority, path) = match location[..slash].rfind('@') {
        Some(at) => (&location[at + 1..slash], &location[slash..]),
        None => location.split_at(slash),
    };
    // `user:pass/word@host`: the slash belongs to the password, so that nothing here is what it seems to be.
    let is_ambiguous = path.contains('@') && (path.contains(':') || authority.contains([':', '@']));
    (is_authority(authority) && !is_ambiguous).then_some((authority, path))
}

/// `host`, `host:port`, `[v6]:port`, or several of them with commas, as libpq and MongoDB allow.
fn is_authority(text: &str) -> bool {
    text.split(',').all(|one| {
        let (host, port) = match one.strip_prefix('[').and_then(|one| one.split_once(']')) {
            Some((host, port)) if host.bytes().all(|b| b.is_ascii_hexdigit() || b":.%".contains(&b)) => ("", port),
            Some(_) => return false,
            None => one.split_at(one.find(':').unwrap_or(one.len())),
        };
        host.chars().all(|c| c.is_alphanumeric() || "-._~%".contains(c))
            && !secret::is_token(host)
            && (port.is_empty()
                || port.strip_prefix(':').is_some_and(|p| p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit())))
    })
}

fn push_path(shown: &mut String, path: &str) {
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            shown.push('/');
        }
        let (name, parameters) = segment.split_at(segment.find(';').unwrap_or(segment.len()));
        let is_secret = segment.contains('@')
            || name.split([':', ',', '%']).any(secret::is_token)
            || name.split_once('=').is_some_and(|(name, _)| secret::is_secret_name(name));
        shown.push_str(if is_secret { HIDDEN } else { name });
        if !parameters.is_empty() {
            shown.push(';');
            shown.push_str(HIDDEN);
        }
    }
}

fn push_query(shown: &mut String, query: Option<&str>) {
    for (index, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        shown.push(if index == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _)) if is_query_name(name) => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(HIDDEN);
            }
            _ => shown.push_str(HIDDEN),
        }
    }
}

fn is_query_name(name: &str) -> bool {
    name.len() <= 40
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.[]".contains(&b))
        && !secret::is_token(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn shows(text: &str, expected: &str) {
        assert_eq!(url(text), expected, "{text}");
        assert_eq!(url(expected), expected, "a second time");
    }

    #[test]
    fn credentials_and_values_go_and_the_place_stays() {
        shows("http://127.0.0.1:8000/health", "http://127.0.0.1:8000/health");
        shows("postgres://app:hunter2@db.internal:5432/app", "postgres://db.internal:5432/app");
        shows("postgresql://app@/app?host=/run/postgresql&password=x", "postgresql:///app?host=***&password=***");
        shows("redis://:hunter2@[::1]:6379/0", "redis://[::1]:6379/0");
        shows("mongodb://u:p@a:27017,b:27017/db", "mongodb://a:27017,b:27017/db");
        shows("https://host/path?token=abc&flag#access_token=abc", "https://host/path?token=***&***");
        shows("https://host/a;jsessionid=abc/b", "https://host/a;***/b");
        shows("https://registry.npmjs.org/@scope/package", "https://registry.npmjs.org/***/package");
        shows("localhost:8000/health?x=1", "localhost:8000/health?x=***");
    }

    #[test]
    fn tokens_in_a_path_are_hidden() {
        shows("https://hooks/services/T00000000/k3J9sLq0ZbX7vT2mWc5RaBcD", "https://hooks/services/T00000000/***");
        shows("https://api/bot123456:k3J9sLq0ZbX7vT2mWc5RaBcD/send", "https://api/***/send");
    }

    #[test]
    fn an_unescaped_password_hides_everything_that_it_might_have_reached() {
        for secret in ["a/b", "a?b", "a#b", "a@b", "1/b", "a:b", "/", "a b/", "1@2/3"] {
            let shown = url(&format!("postgres://user:{secret}hunter2@host:5432/app"));
            assert!(!shown.contains("hunter2"), "{secret}: {shown}");
        }
        shows("postgres://user:hunt er2", "postgres://***");
    }

    #[test]
    fn no_character_moves_the_cursor() {
        shows("http://host/a\u{202e}b", "http://host/a\\u{202e}b");
        shows("http://host/a\nb", "http://host/a\\nb");
    }
}
