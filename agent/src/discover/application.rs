//! From a command line to the name of an application.
//!
//! The name is what an operator would call it (`uvicorn app.main:app`, `worker.py`, `nginx`). It is the same after a
//! restart, and it is made of program names, module names and subcommands only: never of an option's value, an
//! address, a path or a URL, so that no secret of a command line can be in it.

use std::sync::Arc;

/// Longest name, in characters.
const MAX_NAME: usize = 80;

/// `[[app]]` of the configuration, as far as it names processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// The name that the operator gave.
    pub name: Arc<str>,
    /// What the command line (arguments joined by spaces) contains.
    pub command: String,
}

/// What a command line says of whom its process belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// An application's process; the flag says whether the operator declared it.
    Named(Arc<str>, bool),
    /// A helper that has no name of its own and belongs to its parent's application, such as a process of Python's
    /// `multiprocessing`.
    OfParent,
}

/// Who a process belongs to. The first declared application whose `command` the command line contains wins; programs
/// that only start, find or show others (`sudo`, `sh -c`, `pgrep -f`, `tail`) are never a declared application.
pub fn identify(arguments: &[&str], declared: &[Declared]) -> Identity {
    let program = program(arguments);
    if !declared.is_empty() && !is_bystander(&program) {
        let line = arguments.join(" ");
        if let Some(found) = declared.iter().find(|app| !app.command.is_empty() && line.contains(&app.command)) {
            return Identity::Named(found.name.clone(), true);
        }
    }
    if is_helper_of_parent(arguments) {
        return Identity::OfParent;
    }
    Identity::Named(clean(&name(arguments, &program)).into(), false)
}

/// Programs whose command line quotes another's.
fn is_bystander(program: &str) -> bool {
    const BYSTANDERS: &[&str] = &[
        "sh",
        "bash",
        "dash",
        "zsh",
        "ksh",
        "fish",
        "sudo",
        "su",
        "doas",
        "runuser",
        "setpriv",
        "env",
        "nice",
        "ionice",
        "nohup",
        "timeout",
        "time",
        "setsid",
        "stdbuf",
        "tini",
        "dumb-init",
        "catatonit",
        "docker-init",
        "s6-supervise",
        "strace",
        "ltrace",
        "gdb",
        "perf",
        "systemd-run",
        "flock",
        "xargs",
        "parallel",
        "watch",
        "entr",
        "pgrep",
        "pkill",
        "grep",
        "egrep",
        "rg",
        "ps",
        "tail",
        "less",
        "more",
        "cat",
        "vim",
        "vi",
        "nvim",
        "nano",
        "emacs",
        "ssh",
        "screen",
        "tmux",
        "script",
    ];
    BYSTANDERS.contains(&program)
}

/// Workers that `multiprocessing` starts by spawn or by its fork server, and its resource tracker.
fn is_helper_of_parent(arguments: &[&str]) -> bool {
    let interpreter = arguments.first().is_some_and(|first| base(first).starts_with("python"));
    interpreter
        && (arguments.contains(&"--multiprocessing-fork")
            || arguments.iter().skip(1).any(|argument| {
                ["spawn import spawn_main", "forkserver import main", "resource_tracker import main"]
                    .iter()
                    .any(|part| argument.starts_with("from multiprocessing.") && argument.contains(part))
            }))
}

/// The program: `argv[0]` without its directory, a login shell's dash, or what a process wrote behind it.
fn program(arguments: &[&str]) -> String {
    let first = arguments.first().copied().unwrap_or("").trim();
    // A title (`nginx: worker process`, `postgres: writer`, `sshd: user@pts/0`) has its program before the colon.
    let first = match first.split_once(": ").or_else(|| first.strip_suffix(':').map(|title| (title, ""))) {
        Some((title, _)) if !title.contains(['/', ' ']) => title,
        _ => first.split(' ').next().unwrap_or(""),
    };
    base(first.trim_start_matches('-')).to_owned()
}

/// The last part of a path.
fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn name(arguments: &[&str], program: &str) -> String {
    let rest = arguments.get(1..).unwrap_or(&[]);
    let title = arguments.first().copied().unwrap_or("");
    if let Some(named) = titled(title, program) {
        return named;
    }
    let family = program.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    match family {
        "python" | "pypy" => python(rest),
        "node" | "nodejs" | "bun" | "deno" | "tsx" | "ts-node" => script(rest, family, &["run"], NODE_VALUES),
        "java" => java(rest),
        "ruby" | "jruby" => match script_at(rest, RUBY_VALUES) {
            Some((path, after)) => launched(base(path), after),
            None => family.to_owned(),
        },
        "perl" => script(rest, family, &[], &["-I", "-M"]),
        "php" => script(rest, family, &[], &["-c", "-d", "-S", "-t"]),
        "dotnet" => script(rest, family, &["exec"], &[]),
        "bundle" => {
            let after = rest.iter().position(|one| *one == "exec").map_or(rest, |at| &rest[at + 1..]);
            after.first().map_or_else(|| family.to_owned(), |next| launched(base(next), &after[1..]))
        }
        // `sh /srv/run.sh` is the script; `sh -c …` is a shell.
        "sh" | "bash" | "dash" => match rest.first() {
            Some(path) if !path.starts_with('-') => base(path).to_owned(),
            _ => family.to_owned(),
        },
        _ => launched(program, rest),
    }
}

/// Names out of titles that a process wrote over its command line.
fn titled(title: &str, program: &str) -> Option<String> {
    if title.starts_with("[celeryd: ") {
        return Some("celery".into());
    }
    match program {
        // `gunicorn: master [grants]`, `puma 6.4 (tcp://0.0.0.0:3000) [grants]`, `puma: cluster worker 0: 7 [grants]`.
        "gunicorn" | "puma" => {
            let (_, inside) = title.rsplit_once('[')?;
            Some(format!("{program} {}", inside.strip_suffix(']')?))
        }
        // `sidekiq 7.1.0 grants [0 of 10 busy]`.
        "sidekiq" => title.split(' ').nth(2).map(|app| format!("sidekiq {app}")),
        _ => None,
    }
}

fn python(arguments: &[&str]) -> String {
    let mut rest = arguments;
    while let [first, after @ ..] = rest {
        match *first {
            "-m" => return after.first().map_or_else(|| "python".into(), |module| launched(module, &after[1..])),
            "-c" | "-" => return "python".into(),
            "-W" | "-X" | "--check-hash-based-pycs" => rest = after.get(1..).unwrap_or(&[]),
            option if option.starts_with('-') => {
                // Short flags can stand together: `-um package`.
                if option.ends_with('m') && !option.starts_with("--") {
                    return after.first().map_or_else(|| "python".into(), |module| launched(module, &after[1..]));
                }
                rest = after;
            }
            path => return launched(base(path), after),
        }
    }
    "python".into()
}

/// A program that runs an application which its arguments name, or that has subcommands; any other is its own name.
fn launched(program: &str, arguments: &[&str]) -> String {
    let of = |argument: Option<&str>| match argument {
        Some(argument) => format!("{program} {argument}"),
        None => program.to_owned(),
    };
    match program {
        "uvicorn" | "gunicorn" | "hypercorn" | "daphne" | "granian" | "waitress-serve" => {
            of(arguments.iter().copied().find(|one| is_module_attribute(one)))
        }
        "celery" | "dramatiq" | "rq" | "arq" | "huey_consumer" | "taskiq" => {
            let application = option_value(arguments, &["-A", "--app"]);
            let command = arguments.iter().copied().find(|one| ["worker", "beat", "flower", "multi"].contains(one));
            let parts: Vec<_> =
                [Some(program), application.filter(|name| is_module(name)), command].into_iter().flatten().collect();
            if parts.len() > 1 { parts.join(" ") } else { of(arguments.first().copied().filter(|one| is_module(one))) }
        }
        "manage.py" | "flask" | "rails" | "rake" | "artisan" | "npm" | "yarn" | "pnpm" | "alembic" | "airflow"
        | "superset" | "fastapi" => of(arguments.iter().copied().find(|one| is_word(one))),
        "streamlit" => of(arguments.iter().skip_while(|one| **one != "run").nth(1).map(|path| base(path))),
        _ => program.to_owned(),
    }
}

const NODE_VALUES: &[&str] =
    &["-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions"];
const RUBY_VALUES: &[&str] = &["-I", "-r", "-C", "-E"];

fn script(arguments: &[&str], interpreter: &str, words: &[&str], with_value: &[&str]) -> String {
    let arguments = match arguments.first() {
        Some(first) if words.contains(first) => &arguments[1..],
        _ => arguments,
    };
    script_at(arguments, with_value).map_or_else(|| interpreter.to_owned(), |(path, after)| launched(base(path), after))
}

/// The first argument that is no option, nor the value of one of those that take it separately; and what follows.
fn script_at<'a>(arguments: &'a [&'a str], with_value: &[&str]) -> Option<(&'a str, &'a [&'a str])> {
    let mut at = 0;
    while let Some(argument) = arguments.get(at) {
        match *argument {
            // Inline code: there is no file.
            "-e" | "--eval" | "-p" | "--print" | "-" => return None,
            option if with_value.contains(&option) => at += 2,
            option if option.starts_with('-') => at += 1,
            path => return Some((path, &arguments[at + 1..])),
        }
    }
    None
}

fn java(arguments: &[&str]) -> String {
    const WITH_VALUE: &[&str] = &[
        "-cp",
        "-classpath",
        "--class-path",
        "-p",
        "--module-path",
        "--upgrade-module-path",
        "--add-modules",
        "--add-opens",
        "--add-exports",
        "--add-reads",
        "--patch-module",
        "--limit-modules",
        "--enable-native-access",
        "-d",
        "--describe-module",
    ];
    let mut at = 0;
    while let Some(argument) = arguments.get(at) {
        match *argument {
            "-jar" => return arguments.get(at + 1).map_or_else(|| "java".into(), |path| base(path).to_owned()),
            "-m" | "--module" => {
                return arguments.get(at + 1).map_or_else(|| "java".into(), |module| base(module).to_owned());
            }
            option if WITH_VALUE.contains(&option) => at += 2,
            option if option.starts_with(['-', '@']) => at += 1,
            class => return class.to_owned(),
        }
    }
    "java".into()
}

fn option_value<'a>(arguments: &[&'a str], names: &[&str]) -> Option<&'a str> {
    arguments.iter().enumerate().find_map(|(at, argument)| {
        if names.contains(argument) {
            return arguments.get(at + 1).copied();
        }
        names.iter().find_map(|name| argument.strip_prefix(name)?.strip_prefix('='))
    })
}

/// `package.module`.
fn is_module(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.split('.').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
}

/// `package.module:attribute`, which `host:8000`, `unix:/run/x` and URLs are not.
fn is_module_attribute(text: &str) -> bool {
    text.split_once(':')
        .is_some_and(|(module, attribute)| is_module(module) && is_module(attribute.trim_end_matches("()")))
}

/// A subcommand.
fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= 32
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-' | ':'))
}

/// What may stand in a target key; everything else becomes `_`. Bounded.
fn clean(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || " ._:@+-".contains(c) { c } else { '_' };
    let clean: String = name.trim().chars().take(MAX_NAME).map(kept).collect();
    if clean.is_empty() { "unnamed".into() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name_of(line: &str) -> String {
        let arguments: Vec<_> = line.split('|').collect();
        match identify(&arguments, &[]) {
            Identity::Named(name, false) => name.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn applications_have_the_name_an_operator_would_use() {
        for (line, expected) in [
            ("python3|-m|uvicorn|app.main:app|--port|8000", "uvicorn app.main:app"),
            ("/usr/bin/python3.11|/usr/local/bin/uvicorn|--host|0.0.0.0|app.main:app", "uvicorn app.main:app"),
            (
                "/venv/bin/python|/venv/bin/gunicorn|-w|4|-b|localhost:8000|grants.wsgi:application",
                "gunicorn grants.wsgi:application",
            ),
            ("gunicorn|-b|unix:/run/x.sock|-c|conf.py|app:create_app()", "gunicorn app:create_app__"),
            ("gunicorn: master [grants]", "gunicorn grants"),
            ("gunicorn: worker [grants]", "gunicorn grants"),
            ("python3|-m|gunicorn", "gunicorn"),
            ("python|/venv/bin/celery|-A|proj.tasks|worker|-l|info", "celery proj.tasks worker"),
            ("celery|--app=proj|beat", "celery proj beat"),
            ("[celeryd: celery@host:MainProcess] -active- (worker)", "celery"),
            ("python3|/srv/leaky.py|--x", "leaky.py"),
            ("python3|-u|-W|ignore|/srv/leaky.py|--dsn|postgres://u:secret@h/d", "leaky.py"),
            ("python3|-um|http.server|8000", "http.server"),
            ("python3|-c|import os; password='secret'", "python"),
            ("python3|manage.py|runserver|0.0.0.0:8000", "manage.py runserver"),
            ("python3", "python"),
            ("node|--inspect|-r|dotenv/config|/srv/server.js|--token=secret", "server.js"),
            ("node|-e|secret()", "node"),
            ("/usr/bin/node|dist/index.js", "index.js"),
            ("npm start", "npm"),
            ("npm|run|start", "npm run"),
            ("java|-Xmx1g|-Dpassword=secret|-cp|a.jar:b.jar|com.example.Main|--x", "com.example.Main"),
            ("/usr/lib/jvm/bin/java|-jar|/opt/grants.jar|--server.port=1", "grants.jar"),
            ("java|@options|-m|com.example/com.example.Main", "com.example.Main"),
            ("puma 6.4.2 (tcp://0.0.0.0:3000) [grants]", "puma grants"),
            ("puma: cluster worker 0: 4711 [grants]", "puma grants"),
            ("ruby|/usr/bin/rails|server|-p|3000", "rails server"),
            ("ruby|-Ilib|/srv/job.rb", "job.rb"),
            ("bundle|exec|sidekiq", "sidekiq"),
            ("sidekiq 7.1.0 grants [0 of 10 busy]", "sidekiq grants"),
            ("/usr/lib/postgresql/15/bin/postgres|-D|/var/lib/postgresql", "postgres"),
            ("postgres: walwriter ", "postgres"),
            ("postgres: app grants 127.0.0.1(40000) idle in transaction", "postgres"),
            ("nginx: master process /usr/sbin/nginx -g daemon off;", "nginx"),
            ("nginx: worker process", "nginx"),
            ("php-fpm: pool www", "php-fpm"),
            ("redis-server 127.0.0.1:6379", "redis-server"),
            ("/usr/sbin/mariadbd|--user=mysql", "mariadbd"),
            ("psql|postgres://u:secret@h/d", "psql"),
            ("-bash", "bash"),
            ("sh|/srv/run.sh|secret", "run.sh"),
            ("sh|-c|PASSWORD=secret run", "sh"),
            ("./a b|x", "a"),
            ("", "unnamed"),
        ] {
            assert_eq!(name_of(line), expected, "{line}");
        }
    }

    #[test]
    fn helpers_of_multiprocessing_belong_to_their_parent() {
        for line in [
            "/usr/bin/python3|-c|from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5)|--multiprocessing-fork",
            "/usr/bin/python3|-c|from multiprocessing.resource_tracker import main;main(4)",
            "/usr/bin/python3|-c|from multiprocessing.forkserver import main; main(4, 5)",
        ] {
            let arguments: Vec<_> = line.split('|').collect();
            assert_eq!(identify(&arguments, &[]), Identity::OfParent, "{line}");
        }
    }

    #[test]
    fn a_declared_name_wins_but_not_for_those_who_only_quote_it() {
        let declared = [
            Declared { name: "empty".into(), command: String::new() },
            Declared { name: "grants-api".into(), command: "uvicorn app.main:app".into() },
        ];
        let of = |line: &str| identify(&line.split('|').collect::<Vec<_>>(), &declared);
        let grants = Identity::Named("grants-api".into(), true);
        assert_eq!(of("python3|-m|uvicorn|app.main:app|--port|8000"), grants);
        assert_eq!(of("pgrep|-f|uvicorn app.main:app"), Identity::Named("pgrep".into(), false));
        assert_eq!(of("/bin/sh|-c|uvicorn app.main:app"), Identity::Named("sh".into(), false));
        assert_eq!(of("sudo|-u|app|uvicorn app.main:app"), Identity::Named("sudo".into(), false));
        assert_eq!(of("uvicorn|other:app"), Identity::Named("uvicorn other:app".into(), false));
    }

    proptest! {
        #[test]
        fn a_name_is_bounded_and_fits_in_a_key(arguments in proptest::collection::vec(".{0,120}", 0..6)) {
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            if let Identity::Named(name, _) = identify(&arguments, &[]) {
                prop_assert!(!name.is_empty() && name.len() <= MAX_NAME);
                let breaks_a_key = name.contains(['/', '>', '\n', '\u{1b}']);
                prop_assert!(!breaks_a_key);
            }
        }

        #[test]
        fn the_value_of_an_option_is_never_in_a_name(
            program in "(python3|node|java|uvicorn|gunicorn|celery|ruby|psql|myapp|bundle)",
            option in "--?(password|token|dsn|p|a)",
        ) {
            let canary = "postgres://user:canary-secret@db/x";
            for value in [format!("{option}={canary}"), canary.to_owned()] {
                if let Identity::Named(name, _) = identify(&[&program, "x.py", &option, &value], &[]) {
                    prop_assert!(!name.contains("canary"), "{name}");
                }
            }
        }
    }
}
