//! Command lines without the secrets that were typed into them.

use super::{HIDDEN, bounded, escape, secret, text};

/// Most bytes of a scrubbed command line.
const MAX_COMMAND_LINE: usize = 200;

/// How deep a command inside a command (`sh -c "…"`) is looked into.
const MAX_DEPTH: u8 = 3;

/// Programs whose `-p` takes a password, written on to it or behind it, whatever it looks like.
const PASSWORD_PROGRAMS: [&str; 6] = ["mysql", "mysqldump", "mysqladmin", "mariadb", "mariadb-dump", "sshpass"];

/// The arguments of a process with single spaces between them, at most 200 bytes.
///
/// Hidden are the values of options and variables with secret names (`--password=…`, `--token …`, `PGPASSWORD=…`),
/// `-p…` unless it is a port, the password in `-u user:password`, credentials in URLs, and everything that looks like
/// a token; also in a command given to a shell as one argument. An argument with white space is shown in quotes.
pub fn command_line(arguments: &[&str]) -> String {
    bounded(scrub(arguments, MAX_DEPTH).shown, MAX_COMMAND_LINE)
}

struct Scrubbed {
    shown: String,
    /// An option told what to hide, so that the plain text of these words must not be shown.
    hidden: bool,
}

fn scrub(arguments: &[&str], depth: u8) -> Scrubbed {
    let mut it = Scrubbed { shown: String::new(), hidden: false };
    let mut program = "";
    let mut is_next_secret = false;
    for (index, argument) in arguments.iter().enumerate() {
        let name = argument.rsplit('/').next().unwrap_or_default();
        if index == 0 || PASSWORD_PROGRAMS.contains(&name) || name == "redis-cli" {
            program = name;
        }
        if index > 0 {
            it.shown.push(' ');
        }
        // No command line is shown beyond its bound; two of them leave room for what hiding takes away.
        if it.shown.len() > 2 * MAX_COMMAND_LINE {
            break;
        }
        let previous = index.checked_sub(1).map_or("", |before| arguments[before]);
        let visible = match part_to_hide(program, previous, argument, is_next_secret) {
            Some(visible) => {
                it.hidden = true;
                it.shown.push_str(&escape(visible));
                it.shown.push_str(HIDDEN);
                is_next_secret = is_secret_option(argument);
                continue;
            }
            None => argument,
        };
        is_next_secret = is_secret_option(visible);
        let shown = inner(visible, depth, &mut it.hidden);
        it.shown.push_str(&shown);
    }
    it
}

/// An argument that is no option's secret; with white space it may be a command of its own.
fn inner(argument: &str, depth: u8, hidden: &mut bool) -> String {
    let mut shown = text::redact(argument);
    if argument.contains(char::is_whitespace) {
        if depth > 0 {
            let words = words(argument);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let command = scrub(&words, depth - 1);
            if command.hidden {
                *hidden = true;
                shown = text::redact(&command.shown);
            }
        }
        shown = format!("'{shown}'");
    } else if argument.is_empty() {
        shown = "''".into();
    }
    shown
}

/// What may be shown of an argument of which the rest is hidden; `None` when its option does not make it a secret.
fn part_to_hide<'a>(program: &str, previous: &str, argument: &'a str, is_secret: bool) -> Option<&'a str> {
    if is_secret {
        return Some("");
    }
    if let Some((name, _)) = argument.split_once('=')
        && !name.contains(char::is_whitespace)
        && !name.contains("://")
        && secret::is_secret_name(name)
    {
        return Some(&argument[..=name.len()]);
    }
    let is_password_program = PASSWORD_PROGRAMS.contains(&program);
    if let Some(value) = argument.strip_prefix("-p")
        && !value.is_empty()
        && (is_password_program || !is_port(value))
    {
        return Some("-p");
    }
    match previous {
        "-p" if program == "sshpass" || !(is_port(argument) || argument.starts_with('-')) => Some(""),
        "-a" if program == "redis-cli" => Some(""),
        "-u" | "-U" | "--user" => argument.split_once(':').map(|(user, _)| &argument[..=user.len()]),
        _ => None,
    }
}

/// `--password`, `-token`: its value is the next argument.
fn is_secret_option(argument: &str) -> bool {
    argument.starts_with('-')
        && argument.len() > 2
        && !argument.contains(['=', ':', '/', ' '])
        && secret::is_secret_name(argument)
}

fn is_port(value: &str) -> bool {
    value.split([':', '/']).all(|port| port.parse::<u16>().is_ok() || port == "tcp" || port == "udp")
}

/// The words of a shell command; quotes hold white space together and are left out.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quote, mut escaped) = (None, false);
    for c in command.chars() {
        let word = words.last_mut().expect("there is always a last word");
        match (quote, c) {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            (None | Some('"'), '\\') => escaped = true,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (None, _) if c.is_whitespace() => words.push(String::new()),
            _ => word.push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn shows(arguments: &[&str], expected: &str) {
        assert_eq!(command_line(arguments), expected);
    }

    #[test]
    fn ordinary_command_lines_stay_as_they_are() {
        for line in [
            "uvicorn app.main:app --host 0.0.0.0 --port 8000",
            "/usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/main -p 5432",
            "nginx: worker process",
            "docker run -p 8080:80/tcp image",
            "gunicorn -w 4 -k uvicorn.workers.UvicornWorker app:api",
            "mysqld --user=mysql --password-file=/run/secrets/x",
        ] {
            let arguments: Vec<_> = line.split(' ').collect();
            shows(&arguments, line);
        }
        shows(&["sh", "-c", "echo a", ""], "sh -c 'echo a' ''");
        shows(&[], "");
    }

    #[test]
    fn options_that_name_a_secret_hide_it() {
        shows(&["app", "--password=hunter 2"], "app --password=***");
        shows(&["app", "--api-key", "hunter2", "--port", "80"], "app --api-key *** --port 80");
        shows(&["app", "--password", "--token", "hunter2", "x"], "app --password *** *** x");
        shows(
            &["java", "-Dspring.datasource.password=hunter2", "-jar", "a.jar"],
            "java -Dspring.datasource.password=*** -jar a.jar",
        );
        shows(&["env", "PGPASSWORD=hunter2", "psql"], "env PGPASSWORD=*** psql");
    }

    #[test]
    fn short_options_that_take_passwords_hide_them() {
        shows(&["mysql", "-uroot", "-phunter2", "app"], "mysql -uroot -p*** app");
        shows(&["/usr/bin/mysql", "-p12345"], "/usr/bin/mysql -p***");
        shows(&["sshpass", "-p", "12345", "ssh", "h"], "sshpass -p *** ssh h");
        shows(&["redis-cli", "-a", "hunter2"], "redis-cli -a ***");
        shows(&["curl", "-u", "me:hunter2", "http://h/"], "curl -u me:*** http://h/");
        shows(&["tool", "-phunter2"], "tool -p***");
        shows(&["tool", "-p", "hunter2"], "tool -p ***");
    }

    #[test]
    fn urls_tokens_and_headers_are_scrubbed() {
        shows(&["app", "postgres://u:hunter2@db/app"], "app postgres://db/app");
        shows(&["app", "--dsn=host=db password=hunter2 user=x"], "app '--dsn=host=db password=*** user=x'");
        shows(&["curl", "-H", "Authorization: Bearer hunter2"], "curl -H 'Authorization: ***'");
        shows(&["app", "ghp_abcdefghijklmnop"], "app ***");
    }

    #[test]
    fn a_command_inside_a_command_is_looked_into() {
        shows(&["sh", "-c", "mysql -phunter2 --password 'hunter 2' x"], "sh -c 'mysql -p*** --password *** x'");
        shows(&["bash", "-c", "sh -c \"redis-cli -a 'hunter2'\""], "bash -c 'sh -c 'redis-cli -a ***''");
        shows(&["sh", "-c", "exec env PGPASSWORD=hunter2 psql"], "sh -c 'exec env PGPASSWORD=*** psql'");
        // Nothing tells where such a value ends.
        shows(&["sh", "-c", "PGPASSWORD=hunter2 psql"], "sh -c PGPASSWORD=***");
    }

    #[test]
    fn a_command_line_is_bounded_and_on_one_line() {
        let long = vec!["/usr/share/java/library.jar"; 1000];
        let shown = command_line(&long);
        assert!(shown.len() <= MAX_COMMAND_LINE && shown.ends_with('…'), "{shown}");
        shows(&["a\nb\u{1b}"], "'a\\nb\\u{1b}'");
    }

    proptest! {
        #[test]
        fn a_canary_in_a_secret_place_never_survives(
            place in 0..7, before in proptest::collection::vec("-{0,2}[a-z]{0,6}", 0..4), after in "[a-z -]{0,9}",
        ) {
            let canary = format!("hunter2canary{after}");
            let mut arguments = vec!["prog".to_owned()];
            arguments.extend(before);
            arguments.extend(match place {
                0 => vec![format!("--db-password={canary}")],
                1 => vec!["--secret".into(), canary],
                2 => vec![format!("-p{canary}")],
                3 => vec![format!("API_TOKEN={canary}")],
                4 => vec!["https://me:hunter2canary@host/x".into()],
                5 => vec!["-u".into(), format!("me:{canary}")],
                _ => vec!["-c".into(), format!("run --token '{canary}' x")],
            });
            let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let shown = command_line(&words);
            prop_assert!(!shown.contains("hunter2"), "{words:?} gave {shown:?}");
        }
    }
}
