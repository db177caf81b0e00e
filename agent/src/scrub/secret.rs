//! What looks like a secret: by the name that is given to it, or by its own look.

/// Contained anywhere in a name, written as one lowercase word: `PGPASSWORD`, `clientSecret`, `x-api-key`.
const IN_NAMES: [&str; 18] = [
    "password",
    "passwd",
    "passwort",
    "passphrase",
    "passcode",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "privatekey",
    "signingkey",
    "credential",
    "authorization",
    "cookie",
    "bearer",
    "jwt",
    "webhookurl",
    "connectionstring",
];

/// Last words of names: too short to be looked for inside others.
const LAST_WORDS: [&str; 15] = [
    "pass",
    "pw",
    "pwd",
    "psw",
    "key",
    "auth",
    "session",
    "sessionid",
    "sid",
    "otp",
    "pin",
    "salt",
    "sig",
    "signature",
    "creds",
];

/// Last words that make a name harmless: the value is a place or a number.
const HARMLESS_LAST_WORDS: [&str; 9] =
    ["file", "path", "dir", "directory", "ttl", "timeout", "length", "size", "policy"];

/// Beginnings that issuers give to their tokens so that scanners find them.
const TOKEN_PREFIXES: [&str; 22] = [
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "sk-",
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "xoxa-",
    "xoxb-",
    "xoxp-",
    "xoxs-",
    "AKIA",
    "ASIA",
    "AIza",
    "whsec_",
    "npm_",
    "hf_",
    "pypi-",
];

/// Whether a value with this name is a secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    let last = name.rsplit(|c: char| !c.is_ascii_alphanumeric()).find(|word| !word.is_empty()).unwrap_or_default();
    // `sslKey` and `API_KEY` end with the same word.
    let capital = last
        .char_indices()
        .skip(1)
        .filter(|(at, c)| c.is_ascii_uppercase() && last[..*at].ends_with(|before: char| before.is_ascii_lowercase()));
    let last = capital.last().map_or(last, |(at, _)| &last[at..]).to_ascii_lowercase();
    if HARMLESS_LAST_WORDS.contains(&&*last) {
        return false;
    }
    let whole: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    LAST_WORDS.contains(&&*last) || IN_NAMES.iter().any(|word| whole.contains(word))
}

/// Whether the rest of the line belongs to the value of this name: `Cookie: a=b; c=d`.
pub(super) fn takes_the_line(name: &str) -> bool {
    ["authorization", "proxy-authorization", "cookie", "set-cookie"].contains(&&*name.to_ascii_lowercase())
}

/// Characters that a token is made of, those of base64, base64url and dotted tokens.
pub(super) fn is_token_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "+/=_~.-".contains(c)
}

/// Whether a run of token characters looks like a token: issued with a known beginning, a JWT, a UUID, a long
/// hexadecimal or decimal number, or letters and digits that change as no words do.
pub(super) fn is_token(run: &str) -> bool {
    let run = run.trim_matches(['.', '=', '~', '/', '-']);
    let prefixed = |prefix: &&str| run.strip_prefix(*prefix).is_some_and(|rest| rest.len() >= 12);
    TOKEN_PREFIXES.iter().any(prefixed) || is_jwt(run) || is_uuid(run) || is_long_number(run) || is_random(run)
}

/// `eyJ` is the beginning of `{"` in base64.
fn is_jwt(run: &str) -> bool {
    run.starts_with("eyJ") && run.len() >= 16
}

fn is_uuid(run: &str) -> bool {
    let groups: Vec<usize> = run.split('-').map(str::len).collect();
    groups == [8, 4, 4, 4, 12] && run.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

/// 128 bits in hexadecimal, or as many digits as a card number has.
fn is_long_number(run: &str) -> bool {
    (run.len() >= 15 && run.bytes().all(|b| b.is_ascii_digit()))
        || (run.len() >= 32 && run.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Random text changes between capitals, small letters and digits every second character; words and versions do at
/// their borders only, and those of a name are mostly marked by `-`, `_`, `.` or `/`, which do not count.
fn is_random(run: &str) -> bool {
    let class = |c: u8| match c {
        b'a'..=b'z' => Some(0),
        b'A'..=b'Z' => Some(1),
        b'0'..=b'9' => Some(2),
        _ => None,
    };
    let classes: Vec<_> = run.bytes().map(class).collect();
    let mut seen = [0_usize; 3];
    for class in classes.iter().flatten() {
        seen[*class] += 1;
    }
    let length: usize = seen.iter().sum();
    let changes =
        classes.windows(2).filter(|pair| pair[0].is_some() && pair[1].is_some() && pair[0] != pair[1]).count();
    let (digits, letters) = (seen[2], seen[0] + seen[1]);
    match length {
        0..16 => false,
        _ if digits >= 2 && letters >= 2 => changes * 5 >= length,
        _ => seen[0].min(seen[1]) >= 4 && changes * 3 >= length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known_however_they_are_spelt() {
        for name in [
            "password",
            "PGPASSWORD",
            "db_password",
            "spring.datasource.password",
            "clientSecret",
            "x-api-key",
            "API_KEY",
            "sslKey",
            "auth",
            "Authorization",
            "Set-Cookie",
            "access_token",
            "pwd",
            "pass",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in
            ["", "host", "port", "token-file", "password_file", "SSL_KEY_PATH", "monkey", "keyspace", "passenger"]
        {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn tokens_are_known_by_their_look() {
        for run in [
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
            "ghp_abcdefghijklmnop",
            "550e8400-e29b-41d4-a716-446655440000",
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
            "4111111111111111",
            "Zm9vYmFyYmF6MTIzNDU2Nzg5MA==",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY",
            "k3J9sLq0ZbX7vT2mWc5R",
            "d2hvIHJlYWRzIHRoaXM/",
        ] {
            assert!(is_token(run), "{run}");
        }
        for run in [
            "",
            "uvicorn",
            "app.main:app",
            "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0",
            "my-long-service-name-v2-production-eu-west-1",
            "org.springframework.boot.loader.JarLauncher",
            "2026-11-21T02:15:30Z",
            "SELECT",
            "postgresql-15-main-2024-05-01",
            "idle_in_transaction_session_timeout",
            "MyApplicationServerMainThreadFactory",
        ] {
            assert!(!is_token(run), "{run}");
        }
    }
}
