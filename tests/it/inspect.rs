//! What a person sees: a pool as one glance, its sessions, every fact behind a verdict, and a screen that is drawn anew.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::Value;
use tickbird_tests::agent::{app, postgres};
use tickbird_tests::postgres::Route;
use tickbird_tests::process::Running;
use tickbird_tests::truth::{backends, descriptors};
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Library, PgBouncer, Postgres, Seconds, Sizes, StageError, Watch, alone, until};

const EXHAUSTED: &str = "pool.exhausted";
const SIZE: usize = 8;
/// Of the terminal.
const COLUMNS: usize = 80;
const ROWS: usize = 24;

fn text(watch: &Watch, command: &str, arguments: &[&str]) -> Result<String, StageError> {
    Ok(String::from_utf8_lossy(&watch.agent.ask(command, arguments)?.stdout).into_owned())
}

/// The line of a pool's bar: what stands between the brackets, and the words behind them.
fn bar(text: &str, who: &str) -> (String, String) {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("CONNECTIONS"));
    lines.find(|line| line.trim_start().starts_with(who)).unwrap_or_else(|| panic!("{who} has a pool: {text}"));
    let line = lines.next().unwrap_or_default().trim();
    let (bar, words) = line.trim_start_matches('[').split_once("] ").unwrap_or_else(|| panic!("a bar: {line}"));
    (bar.to_owned(), words.to_owned())
}

/// The number before a word: `3 leased, 5 not known of 8 (configuration)`.
fn number(words: &str, word: &str) -> usize {
    let parts = words.split([',', ';']);
    let number = parts.filter_map(|it| it.trim().split_once(' ')).find(|(_, rest)| rest.starts_with(word));
    number.and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}

#[test]
fn a_pool_is_one_glance_and_its_sessions_and_reasons_are_told_on_request() {
    alone(|stage| {
        let server = Postgres::start(stage, 60)?;
        let mut shop =
            Application::of_library(stage, "shop-api", Library::QueuePool, &server, Sizes { most: 8, least: 5 })?;
        let settings = postgres(&server.dsn_file("tickbird")?) + &app("shop-api", &shop.command()) + "pool.limit = 8\n";
        let watch = Watch::begin(stage, &settings)?;
        watch.sees("pool.idle_in_transaction", "shop-api", "ok", 40.s())?;
        shop.does("leak 2")?;
        let (pid, fds) = (shop.pid(), descriptors(shop.pid())?);
        let sessions = backends(&server)?;
        let open: BTreeSet<(u32, i32)> =
            fds.iter().filter_map(|(port, fd)| Some((*fd, sessions.get(port)?.pid))).collect();
        assert_eq!(open.len(), 5, "{fds:?} {sessions:?}");

        for command in ["inspect", "status"] {
            // The running agent asks the server every few seconds.
            let shown = until(format!("{command} shows two leases"), 20.s(), || {
                let shown = text(&watch, command, &[]).map_err(|error| error.to_string())?;
                if number(&bar(&shown, "shop-api").1, "leased") == 2 { Ok(shown) } else { Err(shown) }
            })?;
            let (bar, words) = bar(&shown, "shop-api");
            let of = |sign: char| bar.chars().filter(|it| *it == sign).count();
            assert_eq!((of('#'), bar.chars().count()), (2, SIZE), "each place of its limit: {bar}");
            assert_eq!(
                (of('.'), of('?') + of('-') + of('!')),
                (3, 3),
                "three are not open, three are open beside: {bar}"
            );
            assert!(words.ends_with("of 8 (configuration)"), "{words}");

            let listed = text(&watch, command, &["--sessions"])?;
            let rows: Vec<&str> = listed.lines().filter(|line| line.contains(" fd ")).collect();
            let why = text(&watch, command, &["--why", &pid.to_string()])?;
            for (fd, backend) in &open {
                let is_row = |line: &&&str| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    let has = |name: &str, value: &str| words.windows(2).any(|it| it == [name, value]);
                    has("fd", &fd.to_string()) && has("session", &backend.to_string())
                };
                assert!(rows.iter().any(|it| is_row(&it)), "{command}: fd {fd} = {backend}: {listed}");
                let join = format!("joined with backend {backend} of PostgreSQL");
                assert!(why.contains(&join), "{command}: {join}: {why}");
            }
            assert_eq!(rows.iter().filter(|it| it.contains("idle in transaction")).count(), 2, "{listed}");
            for fact in ["by pg_stat_activity.state", "tcp_info: last data sent", "limit_source: configuration"] {
                assert!(why.contains(fact), "{command}: {fact}: {why}");
            }
            assert!(why.contains(&format!("WHY: PID {pid}")), "{why}");
        }
        shop.does("repair").map(drop)
    });
}

/// What is drawn between two clearings of the screen, without colours.
fn frames(drawn: &str) -> Vec<Vec<String>> {
    let plain = |line: &str| {
        let mut parts = line.trim_end_matches('\r').split('\x1b');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
    };
    // The last one may not be whole yet.
    let mut parts: Vec<&str> = drawn.split("\x1b[H\x1b[2J").skip(1).collect();
    parts.pop();
    parts.into_iter().map(|it| it.lines().map(plain).collect()).collect()
}

#[test]
fn a_terminal_is_drawn_anew_each_second_and_nothing_runs_over_its_edges() {
    alone(|stage| {
        let server = Postgres::start(stage, 60)?;
        let mut shop = Application::of_library(stage, "shop-api", Library::QueuePool, &server, Sizes::full(8))?;
        let settings = postgres(&server.dsn_file("tickbird")?) + &app("shop-api", &shop.command()) + "pool.limit = 8\n";
        let watch = Watch::begin(stage, &settings)?;
        let room = stage.room("terminal")?;
        let agent = stage.binary("tickbird-agent")?;
        let line = format!(
            "stty cols {COLUMNS} rows {ROWS}; exec {} inspect --watch --config {}",
            agent.display(),
            watch.agent.configuration().display()
        );
        // A terminal of its own, which writes down what is drawn on it.
        let mut command = Command::new("/usr/bin/script");
        command.args(["-qfec", &line]).arg(room.join("drawn")).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("TERM", "xterm").env_remove("NO_COLOR");
        let mut terminal = Running::start("script", &mut command, &room.join("log"))?;
        let drawn = || std::fs::read_to_string(room.join("drawn")).unwrap_or_default();
        let shows =
            |frames: &[Vec<String>], what: &str| frames.iter().any(|it| it.iter().any(|line| line.contains(what)));
        until("three screens are drawn", 30.s(), || {
            terminal.alive()?;
            let frames = frames(&drawn());
            if frames.len() >= 3 && shows(&frames, "shop-api") {
                Ok(())
            } else {
                Err(format!("{} screens", frames.len()))
            }
        })?;
        let before = frames(&drawn()).len();
        shop.does("leak 8")?;
        let frames = until("what changed is drawn", 30.s(), || {
            let frames = frames(&drawn());
            if shows(&frames[before..], "critical") || shows(&frames[before..], "warning") {
                Ok(frames)
            } else {
                Err(format!("{frames:?}"))
            }
        })?;
        assert!(drawn().contains("\x1b[33m") || drawn().contains("\x1b[31;1m"), "a terminal has colours");
        for frame in &frames {
            assert!(frame.len() <= ROWS, "{} lines: {frame:#?}", frame.len());
            let longest = frame.iter().map(|line| line.chars().count()).max();
            assert!(longest <= Some(COLUMNS), "{longest:?}: {frame:#?}");
            assert!(frame[0].starts_with("tickbird-agent "), "from its beginning: {frame:#?}");
        }
        assert!(shows(&frames, " more lines"), "what does not fit is counted");
        Ok(())
    });
}

/// Two connections to the server, and somebody who keeps both: six more clients wait at the pooler.
#[test]
fn clients_that_wait_at_a_pooler_are_counted_and_named() {
    alone(|stage| {
        let server = Postgres::start(stage, 60)?;
        let small = PgBouncer::sized(stage, &server, 2, "transaction")?;
        // One in session mode, where each client keeps its connection to the server.
        let roomy = PgBouncer::sized(stage, &server, 20, "session")?;
        let sizes = Sizes { most: 8, least: 2 };
        let through = |name: &'static str, pooler: &PgBouncer| {
            Application::through(stage, name, Library::QueuePool, pooler.environment(&server, Route::V4), sizes)
        };
        let (mut hungry, mut twin) = (through("hungry-api", &small)?, through("twin-api", &roomy)?);
        let mut settings = postgres(&server.dsn_file("tickbird")?);
        for pooler in [&small, &roomy] {
            settings += &format!("[[pgbouncer]]\ndsn_file = \"{}\"\n", pooler.dsn_file()?.display());
        }
        for it in [&hungry, &twin] {
            settings += &app(it.name(), &it.command());
        }
        let watch = Watch::begin(stage, &settings)?;
        for it in [&mut hungry, &mut twin] {
            // By the pooler's word, for nobody sees their requests.
            watch.sees(EXHAUSTED, it.name(), "ok", 40.s())?;
            it.does("traffic 30")?;
        }
        hungry.does("leak 2")?;
        let finding = until("six wait", 60.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let found = status["findings"].as_array().cloned().unwrap_or_default();
            let it =
                found.into_iter().find(|it| it["check"] == EXHAUSTED && it["target"].to_string().contains("hungry"));
            let it = it.ok_or_else(|| format!("{:?}", rows_of(&status, EXHAUSTED, "hungry")))?;
            if it["severity"] == "critical" && it["evidence"]["waiters"] == 6 { Ok(it) } else { Err(it.to_string()) }
        })?;
        let evidence = &finding["evidence"];
        let waiting = evidence["waiting_clients"].as_array().cloned().unwrap_or_default();
        let fds = descriptors(hungry.pid())?;
        for row in &waiting {
            let port = row["local"].as_str().and_then(|it| it.rsplit(':').next()?.parse::<u16>().ok());
            let fd = port.and_then(|it| fds.get(&it)).map(|it| Value::from(*it));
            assert_eq!((&row["pid"], Some(&row["fd"])), (&Value::from(hungry.pid()), fd.as_ref()), "{row}: {fds:?}");
            assert!(row["waited_seconds"].as_f64() >= Some(3.0), "{row}");
        }
        assert_eq!(waiting.len(), 6, "{evidence}");
        assert!(evidence["waiters_source"].to_string().contains("PgBouncer"), "{evidence}");
        watch.fires(EXHAUSTED, "hungry-api", 20.s())?;
        hungry.does("repair")?;
        watch.resolves(EXHAUSTED, "hungry-api", 60.s())?;
        let (served, failed) = twin.served()?;
        assert!(served > 50 && failed == 0, "the twin was at work: {served} served, {failed} failed");
        watch.silent_about("twin-api")
    });
}
