//! Secrets on every path that an agent and a collector have, and none in anything that comes out of them.
//!
//! Each path is shown to be live: words that stand beside its secret, and are none, have to come out.

mod outlets;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};
use tickbird_tests::agent::{User, app, check, postgres};
use tickbird_tests::canary::{Search, canary};
use tickbird_tests::canned::{Canned, page};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::collector::receiver;
use tickbird_tests::postgres::{Route, password};
use tickbird_tests::process::output;
use tickbird_tests::{
    Agent, Application, Collector, Postgres, Redis, Seconds, Stage, StageError, Webhook, alone, until,
};

use outlets::Outlets;

const APP: &str = "till-api";
/// Port of the agent's page for probes.
const PAGE: u16 = 7442;

/// What stands beside a secret and is none; it has to come out at the agent, in its frames, and at the collector.
const MARKERS: [(&str, &str); 20] = [
    ("the password of a DSN in a file, refused by the server", "auditor"),
    ("the password of a DSN in the environment", "bookkeeper.invalid"),
    ("the password of a Redis, refused by it", "invalid username-password pair"),
    ("an address's query, and an answer of 500", "/health answers with status 500"),
    ("an answer that is none", "the answer is not HTTP/1.1"),
    ("an answer that redirects", "/moved"),
    ("a body that is not as asserted", "/database/ok"),
    ("a label of a metrics page", "#stock"),
    ("a string", "marker_plain"),
    ("a string between dollars", "marker_dollar"),
    ("a string with escapes", "marker_escape"),
    ("a string of code points", "marker_unicode"),
    ("a comment", "marker_comment"),
    ("a string that was cut off", "marker_cut"),
    ("a setting", "marker_setting"),
    ("an application's name", "till.example"),
    ("a statement that waits for a lock", "marker_blocked"),
    ("a command line", "clerk.example"),
    ("a line of a log", "QueuePool limit of size 7"),
    ("a database's error in a log", "invalid input syntax for type integer"),
];

/// A worker with secrets in its command line and environment.
fn worker(stage: &Stage, server: &Postgres) -> Result<Application, StageError> {
    let url = format!("mysql://clerk:{}@clerk.example/db", canary(18));
    let password = format!("--password={}", canary(19));
    let short = format!("-p{}", canary(20));
    let words = [&*url, &password, &short, "--token", &canary(21)];
    let dsn = format!("{}?pool_size=30&max_overflow=0&sslpassword={}", server.dsn("app"), canary(22));
    let environment = vec![
        ("DATABASE_URL", dsn),
        ("REDIS_URL", format!("redis://:{}@127.0.0.1/0", canary(23))),
        ("SECRET_KEY", canary(24)),
    ];
    Application::indiscreet(stage, APP, &words, environment)
}

/// Sessions with secrets in their last statements and their name, left open.
fn sessions(it: &mut Application) -> Result<(), StageError> {
    let mut leaves = |name: &str, statements: &[String]| {
        it.does(&format!("session {}", json!({ "name": name, "statements": statements }))).map(drop)
    };
    let rest = "and so on ".repeat(200);
    let statements = [
        format!("SELECT '{}' AS marker_plain", canary(30)),
        format!("SELECT $tag${}$tag$ AS marker_dollar, $${}$$", canary(31), canary(31)),
        format!(r"SELECT E'it\'s {}' AS marker_escape", canary(32)),
        format!(r"SELECT U&'\0041 {}' AS marker_unicode", canary(33)),
        format!("SELECT 1 AS marker_comment /* {} */ -- {}", canary(34), canary(34)),
        format!("SELECT 1 AS marker_cut, length('{} {rest}')", canary(35)),
        format!("SET LOCAL marker_setting.key TO {}", canary(36)),
    ];
    for it in statements {
        leaves("till", &[it])?;
    }
    leaves(&format!("postgresql://till:{}@till.example/x", canary(37)), &["SELECT 1 AS marker_name".to_owned()])?;
    leaves("till", &["INSERT INTO till VALUES (1)".to_owned()])?;
    // It waits for the same key, which the other has not committed.
    let waits = format!("INSERT INTO till VALUES (1, '{}') RETURNING note AS marker_blocked", canary(38));
    it.does(&format!("waits {}", json!(waits))).map(drop)
}

/// What an application writes when its pool and its requests fail.
fn lines(error: &str) -> String {
    format!(
        "2026-11-21 10:00:00,000 ERROR pool: QueuePool limit of size 7 overflow 0 reached, connection timed out, \
         timeout 30 Authorization: Bearer {}\n\
         2026-11-21 10:00:00,001 ERROR pool: QueuePool limit of size 7 overflow 0 reached, connection timed out, \
         timeout 30 password={} postgresql://u:{}@db.example/app?sslpassword={}\n\
         2026-11-21 10:00:00,002 ERROR app: request failed\nTraceback (most recent call last):\n  \
         File \"/srv/till/main.py\", line 7, in handler\n    order('{}')\n{error}\n\
         127.0.0.1 - - [21/Nov/2026:10:00:00 +0000] \"GET /orders?token={} HTTP/1.1\" 500 12\n",
        canary(40),
        canary(41),
        canary(42),
        canary(43),
        canary(44),
        canary(45),
    )
}

/// A client of Redis whose transaction stays open, with a secret in it.
fn open_transaction(server: &Redis) -> Result<TcpStream, StageError> {
    let failed = || StageError::system("speak to Redis");
    let mut client = TcpStream::connect(server.address()).map_err(failed())?;
    client.set_read_timeout(Some(10.s())).map_err(failed())?;
    let words = [format!("AUTH app {}", password("app")), "MULTI".into(), format!("SET till {}", canary(50))];
    for it in words {
        client.write_all(format!("{it}\r\n").as_bytes()).map_err(failed())?;
        let read = client.read(&mut [0; 128]).map_err(failed())?;
        assert!(read > 0, "Redis answers");
    }
    Ok(client)
}

/// A web server that answers with secrets wherever an answer has room for them.
fn pages() -> Result<Canned, StageError> {
    let secret = canary(60);
    let head =
        format!("set-cookie: session={secret}\r\nx-api-key: {secret}\r\nwww-authenticate: Basic realm={secret}\r\n");
    let moved = format!("location: https://u:{0}@elsewhere.example/?token={0}\r\n", canary(61));
    let body = format!("{{\"database\": {{\"ok\": \"{0}\"}}, \"{0}\": 1}}", canary(62));
    let secret_name = format!("stock password={} postgresql://u:{}@db.example/app", canary(63), canary(63));
    let pool = |name: &str| {
        let sizes = [("active", 7), ("idle", 0), ("pending", 3), ("max", 7)];
        sizes.map(|(it, value)| format!("hikaricp_connections_{it}{{pool=\"{name}\"}} {value}\n")).concat()
    };
    Canned::start(vec![
        ("/health", page(&format!("500 {secret}"), &head, &secret)),
        ("/moved", page("302 Found", &moved, &canary(61))),
        ("/body", page("200 OK", "", &body)),
        ("/metrics", page("200 OK", "", &[pool("orders"), pool(&secret_name)].concat())),
        ("/babble", format!("{secret} is no answer\r\n\r\n")),
    ])
}

fn write(path: &Path, text: &str) -> Result<(), StageError> {
    std::fs::write(path, text).map_err(StageError::system(format!("write {}", path.display())))
}

fn append(path: &Path, text: &str) -> Result<(), StageError> {
    let failed = || StageError::system(format!("append to {}", path.display()));
    let mut file = std::fs::File::options().append(true).open(path).map_err(failed())?;
    file.write_all(text.as_bytes()).map_err(failed())
}

/// The base64 of a key in a file that may hold its certificate too. Its beginning is the same in every key of its kind.
fn key_of(path: &Path) -> Result<String, StageError> {
    let text = std::fs::read_to_string(path).map_err(StageError::system(format!("read {}", path.display())))?;
    let key = text.split("PRIVATE KEY-----").nth(1).unwrap_or_default();
    let line = key.lines().filter(|it| !it.is_empty() && !it.starts_with('-')).nth(1).unwrap_or_default();
    Ok(line.to_owned())
}

/// What is said of configurations in which a secret stands where none belongs, or in a DSN that cannot be read.
fn mistakes(stage: &Stage, out: &mut Outlets) -> Result<(), StageError> {
    let room = stage.room("mistakes")?;
    let secret = canary(90);
    let dsns = [
        format!("postgresql://u:{secret}@host:no-port/db"),
        format!("postgresql://u:{secret}@[::1/db"),
        format!("postgresql://u:{secret}@host/db?sslmode={secret}"),
        format!("host=h port={secret} password='{secret}"),
        format!("mysql://u:{secret}@host/db"),
        secret.clone(),
    ];
    let mut texts = vec![
        ("postgres[0]", format!("[[postgres]]\ndsn = \"postgresql://u:{secret}@h/db\"\n")),
        ("endpoint[0]", format!("[[endpoint]]\nurl = \"http://u:{secret}@h/\"\n")),
        ("endpoint[0]", format!("[[endpoint]]\nurl = \"ftp://h/?token={secret}\"\n")),
        ("app[0]", app("x", "x") + &format!("pool.metrics = \"http://u:{secret}@h/\"\n")),
        ("collector", format!("[collector]\nurl = \"https://u:{secret}@h:x/\"\n")),
        ("agent.toml", format!("password = \"{secret}\n")),
        ("password", format!("password = \"{secret}\"\n")),
    ];
    for (number, dsn) in dsns.iter().enumerate() {
        for kind in ["postgres", "pgbouncer", "mysql", "redis", "rabbitmq"] {
            let file = room.join(number.to_string());
            write(&file, dsn)?;
            texts.push((kind, format!("[[{kind}]]\ndsn_file = \"{}\"\n", file.display())));
        }
    }
    let mut refused = 0;
    for (marker, text) in texts {
        let file = room.join("agent.toml");
        write(&file, &text)?;
        let mut command = std::process::Command::new(stage.binary("tickbird-agent")?);
        let answer = output(command.args(["check-config", "--config"]).arg(&file))?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        refused += usize::from(!answer.status.success());
        assert!(answer.status.success() || said.contains(marker), "`{marker}`: {said} to {text}");
        out.take(format!("a mistake at {marker}"), [answer.stdout, answer.stderr].concat());
    }
    assert!(refused > 25, "most of them are mistakes: {refused}");

    let file = room.join("whsec");
    write(&file, &format!("whsec_{secret}!"))?;
    for (marker, text) in [
        ("receiver", format!("[[receiver]]\nname = \"x\"\nwebhook.url = \"ftp://u:{secret}@h/\"\n")),
        ("receiver", format!("[[receiver]]\nname = \"x\"\nwebhook.secret = \"{secret}\"\n")),
        (
            "receiver",
            format!(
                "[[receiver]]\nname = \"x\"\nwebhook.url = \"http://h/\"\nwebhook.secret_file = \"{}\"\n",
                file.display()
            ),
        ),
        ("collector.toml", format!("secret = \"{secret}\n")),
    ] {
        let collector = Collector::init(stage)?;
        collector.configure(&text)?;
        let said = collector.command(&["check-config"]).unwrap_or_else(|error| error.to_string());
        assert!(said.contains(marker), "`{marker}`: {said} to {text}");
        out.take(format!("a mistake at the collector's {marker}"), said);
    }
    Ok(())
}

/// Receivers that nobody answers for, with a secret in each file that one may name.
fn receivers(room: &Path) -> Result<String, StageError> {
    let file =
        |name: &str, text: String| write(&room.join(name), &text).map(|()| room.join(name).display().to_string());
    let (key, token) =
        (file("whsec", format!("whsec_{}", canary(72).repeat(4)))?, file("token", format!("Bearer {}", canary(73)))?);
    let hook = file("hook.url", format!("http://127.0.0.1:1/{}?token={}\n", canary(74), canary(74)))?;
    let chat = file("chat.url", format!("http://127.0.0.1:1/services/{}\n", canary(75)))?;
    let password = file("mail.password", canary(76))?;
    Ok(format!(
        "\n[[receiver]]\nname = \"vault\"\nwebhook.url_file = \"{hook}\"\nwebhook.secret_file = \"{key}\"\n\
         webhook.headers = {{ authorization = {{ file = \"{token}\" }} }}\n\
         \n[[receiver]]\nname = \"chat\"\nslack.url_file = \"{chat}\"\n\
         \n[[receiver]]\nname = \"desk\"\nemail.smarthost = \"127.0.0.1:1\"\nemail.from = \"a@example.org\"\n\
         email.to = [\"b@example.org\"]\nemail.user = \"till\"\nemail.password_file = \"{password}\"\n"
    ))
}

#[test]
fn no_secret_comes_out_of_any_path_and_what_stands_beside_it_does() {
    alone(|stage| {
        let room = stage.room("secrets")?;
        let server = Postgres::start(stage, 50)?;
        let redis = Redis::start(stage, &Certificate::ending_in(stage, 30)?, 50)?;
        let pages = pages()?;
        let mut worker = worker(stage, &server)?;
        server.sql_in("app", "CREATE TABLE till (id int PRIMARY KEY, note text); GRANT ALL ON till TO app")?;
        let log = room.join("app.log");
        write(&log, "2026-11-21 09:00:00,000 INFO app: started\n")?;
        // By another address, so that they are servers of their own to the agent.
        let refused = [
            ("auditor.dsn", format!("postgresql://auditor:{}@[::1]:{}/app", canary(0), server.port())),
            ("stocktaker.dsn", format!("redis://stocktaker:{}@[::1]:{}/0", canary(2), redis.port())),
        ];
        for (file, dsn) in &refused {
            write(&room.join(file), dsn)?;
        }
        let (auditor, stocktaker) = (room.join("auditor.dsn"), room.join("stocktaker.dsn"));
        let endpoint =
            |rest: &str| format!("[[endpoint]]\nurl = \"http://{}/{rest}\ninterval = \"1s\"\n", pages.address());
        let soon = ["db.connect", "pool.exhausted", "http.status", "http.body", "db.locks"];
        let configuration = [
            format!("[local]\nlisten = \"127.0.0.1:{PAGE}\"\n"),
            app(APP, &worker.command()),
            format!("pool.metrics = \"http://{}/metrics?token={}\"\n", pages.address(), canary(64)),
            format!("[[log]]\npath = \"{}\"\napp = \"{APP}\"\n", log.display()),
            postgres(&server.dsn_file("tickbird")?),
            postgres(&auditor),
            "[[postgres]]\ndsn_env = \"BOOKKEEPER\"\n".to_owned(),
            redis.section("tickbird", Route::V4)?,
            format!("[[redis]]\ndsn_file = \"{}\"\n", stocktaker.display()),
            endpoint(&format!("health?token={}\"", canary(3))),
            endpoint("moved\"\nstatus = \"200-299\""),
            endpoint("babble\""),
            endpoint("body\"\njson = { \"/database/ok\" = true }"),
            soon.map(|it| check(it, "hold = \"1s\"")).concat(),
            check("pool.idle_in_transaction", "warning = \"1s\""),
            check("pool.leak", "warning = \"8s\""),
        ]
        .concat();

        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        let pager = receiver(&webhook).replace("\"ops\"", "\"pager\"");
        let elsewhere = format!("http://127.0.0.1:1/{}?token={}", canary(70), canary(71));
        collector.configure(&pager.replace(&webhook.url(), &elsewhere))?;
        collector.configure(&receivers(&room)?)?;
        collector.serve()?;
        let mut agent = Agent::prepare(stage, &configuration, User::Same)?;
        agent.knows("BOOKKEEPER", format!("postgresql://bookkeeper:{}@bookkeeper.invalid/app", canary(1)));
        let strange = agent.enrol_with(&collector, &canary(80));
        let mut out = Outlets::default();
        mistakes(stage, &mut out)?;
        out.take("a refused enrolment", strange.expect_err("nobody gave out that token").to_string());
        agent.enrol(&collector)?;
        // What is found waits in the buffer.
        collector.stop()?;
        agent.run()?;

        let error = worker.does(&format!("fails {}", json!(format!("SELECT '{}'::int", canary(46)))))?;
        let error = error.as_str().unwrap_or_default().to_owned();
        assert!(error.contains(&canary(46)), "the server itself says it: {error}");
        until("the log has been read for a while", 60.s(), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            let rows = tickbird_tests::watch::rows_of(&status, "pool.timeout", "log:");
            if rows.iter().any(|it| it["looks"].as_u64() >= Some(15)) { Ok(()) } else { Err(format!("{rows:?}")) }
        })?;
        let _client = open_transaction(&redis)?;
        sessions(&mut worker)?;
        append(&log, &lines(&error))?;
        until("each path has told of itself", 60.s(), || {
            let status = agent.report("status", &["--sessions", "--checks"]).map_err(|error| error.to_string())?;
            let findings = status["findings"].to_string();
            let missing: Vec<_> = MARKERS.iter().filter(|(_, marker)| !findings.contains(marker)).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        })?;
        out.take_commands(&agent, worker.pid())?;
        out.take_pages(PAGE)?;
        out.take_files("the buffer", &agent.state_directory(), &["identity"])?;
        for (path, marker) in MARKERS {
            for outlet in ["status --json", "inspect --json", "buffer export", "the agent's log"] {
                let is_told = match outlet {
                    // What needs a history is not known at two looks, and a summary names only the first of many.
                    "inspect --json" | "the agent's log" => continue,
                    _ => out.say(outlet, marker),
                };
                assert!(is_told, "{path}: `{marker}` is not in {outlet}");
            }
        }

        collector.serve()?;
        until("everything has arrived", 60.s(), || {
            let incidents = collector.items("incidents", "").map_err(|error| error.to_string())?;
            let findings = collector.items("findings", "").map_err(|error| error.to_string())?;
            let told = Value::from([incidents, findings].concat()).to_string();
            let missing: Vec<_> = MARKERS.iter().filter(|(_, marker)| !told.contains(marker)).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        })?;
        until("the unreachable receiver is logged", 30.s(), || {
            if collector.log().contains("pager") { Ok(()) } else { Err(collector.log()) }
        })?;
        worker.kill()?;
        webhook.hears("of the end of the worker", 30.s(), |it| {
            it.check() == "proc.gone" && it.body.contains("clerk.example")
        })?;
        for token in [canary(81), format!("tbv_{}", canary(81))] {
            let refused = collector.get_as(&format!("/v1/{}?token={}", canary(82), canary(83)), Some(&token))?;
            out.take("an answer to a stranger", format!("{:?} {}", refused.headers, refused.body));
        }
        let ended = collector.items("incidents", "")?;
        let ended = ended.iter().find(|it| it["check"] == "proc.gone").expect("it was told");
        out.take_receivers(&collector, ended["id"].as_str().unwrap_or_default())?;
        let backup = room.join("backup");
        out.take("backup", collector.command(&["backup", &backup.display().to_string()])?);
        out.take_answers(&collector)?;
        out.take_messages(&webhook);
        agent.stop()?;
        collector.stop()?;
        out.take("the agent's whole log", agent.log());
        out.take("the collector's whole log", collector.log());
        out.take_store("the store", &collector.directory().join("store.db"))?;
        let by_design = ["ca.key", "server.key", "collector.toml", "ballast"];
        out.take_files("the collector", collector.directory(), &by_design)?;
        out.take_files("the backup", &backup, &by_design)?;

        let mut search = Search::for_canaries();
        for role in ["app", "tickbird", "postgres"] {
            search.add(&format!("the password of {role}"), &password(role));
        }
        search.add("the administrator's token", collector.admin_token());
        search.add("the enrolment token", collector.enrolment_token());
        search.add("the agent's key", &key_of(&agent.identity("agent.key"))?);
        for name in ["ca.key", "server.key"] {
            search.add(name, &key_of(&collector.directory().join(name))?);
        }
        let leaks = out.leaks(&search);
        assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
        Ok(())
    });
}
