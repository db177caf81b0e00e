//! Fifty thousand findings at once behind one cause, told in one message: what that costs the collector, and how long it takes. Against peers
//! an Alertmanager gets as many alerts, with the same labels to group by and the same wait.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tickbird_tests::collector::receiver;
use tickbird_tests::postgres::free_port;
use tickbird_tests::process::{Running, installed};
use tickbird_tests::requests::exchange;
use tickbird_tests::simulated::fingerprint;
use tickbird_tests::{Collector, Seconds, Stage, StageError, Webhook, until};

use crate::ingest::{LIMITS, Sender, send_all};
use crate::latency::peers::bell;
use crate::{AGAINST_PEERS, Figure, cost};

/// An agent may have a thousand that fire.
const AGENTS: u32 = 50;
const BATCHES: u32 = 2;
const EACH: u32 = 500;
const ALL: u32 = AGENTS * BATCHES * EACH;
/// `group_wait` of both.
const WAIT: Duration = Duration::from_secs(5);
const ROUTE: &str = "[route]\nreceiver = \"ops\"\ngroup_by = [\"check\"]\ngroup_wait = \"5s\"\n";
/// As agents name it, so that what clients suffer from it would be explained.
const DATABASE: &str = "server:10.0.0.5:5432/shop";
const TIME: &str = "2026-01-01T00:00:00Z";
/// Storms of each, in turns with the peer's.
const TURNS: u32 = 5;
/// Alerts of one request.
const AT_ONCE: u32 = 1_000;

/// What it took of one process.
struct Storm {
    cpu: f64,
    memory: f64,
    /// From the last acknowledgement to the message. The wait for the group begins with the first finding.
    told: f64,
    taken: f64,
}

impl Storm {
    /// What several storms took of one who bears them.
    fn figures(all: &[Self], who: &str) -> Vec<Figure> {
        let of = |what: &str, value: fn(&Self) -> f64, unit| {
            Figure::of_all(format!("{who}: {what}"), all.iter().map(value).collect(), unit)
        };
        vec![
            of("CPU until people are told", |it| it.cpu, "s"),
            of("memory", |it| it.memory, "MiB"),
            of(
                "from the last acknowledgement to the message, of which at most 5 s are the group's wait",
                |it| it.told,
                "s",
            ),
            of("until all are acknowledged", |it| it.taken, "s"),
        ]
    }
}

pub(crate) fn storm(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let against_peers = std::env::var_os(AGAINST_PEERS).is_some();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        ours.push(of_collector(stage)?);
        if against_peers {
            theirs.push(of_alertmanager(stage)?);
        }
    }
    let budgets = [Some(1.5), Some(100.0), Some(1.5 + WAIT.as_secs_f64()), None];
    let with_budgets = Storm::figures(&ours, "collector").into_iter().zip(budgets);
    let mut figures: Vec<Figure> =
        with_budgets.map(|(figure, most)| if let Some(most) = most { figure.at_most(most) } else { figure }).collect();
    if against_peers {
        figures.extend(Storm::figures(&theirs, "Alertmanager").into_iter().map(Figure::for_comparison));
    }
    Ok(figures)
}

fn of_collector(stage: &Stage) -> Result<Storm, StageError> {
    let webhook = Webhook::start(stage)?;
    let mut collector = Collector::init(stage)?;
    collector.configure(&[LIMITS, &receiver(&webhook), ROUTE].concat())?;
    collector.serve()?;
    let pid = collector.pid().unwrap_or_default();
    let made = collector.command(&["token", "create", "--json", "--uses", &AGENTS.to_string()])?;
    let made: Option<serde_json::Value> = serde_json::from_str(&made).ok();
    let token = made.as_ref().and_then(|it| it["token"].as_str()).unwrap_or_default();
    let senders = (0..AGENTS).map(|_| Sender::enrolled(stage, &collector, token));
    let mut senders = senders.collect::<Result<Vec<_>, _>>()?;
    for sender in &mut senders {
        for batch in 0..BATCHES {
            sender.add("urgent", EACH, |it, text, number| finding(it, text, batch * EACH + number));
        }
    }
    let (began, cpu) = (Instant::now(), cost::cpu_seconds(pid)?);
    let (sent, most) = cost::most_memory(pid, || send_all(&mut senders, 4).map(|_| Instant::now()));
    let (last, mut memory) = (sent?, most?);
    let heard = until("one message tells of all", 120.s(), || {
        memory = memory.max(cost::pss(pid).map_err(|error| error.to_string())?);
        let heard = webhook.heard().map_err(|error| error.to_string())?;
        let all = heard.iter().find(|it| it.json["group"]["firing"] == ALL);
        all.cloned().ok_or_else(|| format!("{} messages", heard.len()))
    })?;
    let cpu = cost::cpu_seconds(pid)? - cpu;
    let summary = format!("{ALL} firing: {ALL} db.connect of {DATABASE}");
    if heard.json["group"]["summary"] != summary.as_str() {
        return Err(StageError::Malformed { what: "the message".into(), found: heard.json["group"].to_string() });
    }
    let told = (heard.at - last).as_secs_f64();
    collector.stop()?;
    let messages = webhook.heard()?;
    if messages
        .iter()
        .any(|it| it.json["group"]["labels"]["check"] == "db.connect" && it.json["id"] != heard.json["id"])
    {
        return Err(StageError::Malformed { what: "one message of all".into(), found: format!("{}", messages.len()) });
    }
    Ok(Storm { cpu, memory, told, taken: (last - began).as_secs_f64() })
}

/// One application cannot reach the database that all of them use.
fn finding(sender: &Sender, text: &mut String, number: u32) {
    let (sub_key, check) = (format!("app-{number}"), "db.connect");
    let fingerprint = fingerprint(&[&sender.tenant, &sender.id, check, DATABASE, &sub_key]);
    let now = jiff::Timestamp::now();
    let _ = write!(
        text,
        r#"{{"finding":{{"fingerprint":"{fingerprint}","check":"{check}","target":"{DATABASE}","sub_key":"{sub_key}","status":"firing","severity":"critical","change":"began","summary":"the server refuses connections","reason":"3 of 3 looks","evidence":{{"application":{number}}},"since":"{TIME}","observed_at":"{now}"}}}},"#
    );
}

fn of_alertmanager(stage: &Stage) -> Result<Storm, StageError> {
    let room = stage.room("alertmanager")?;
    let (bell, rings) = bell()?;
    let (port, file) = (free_port()?, room.join("alertmanager.yml"));
    let settings = format!(
        "route:\n  receiver: bell\n  group_by: [alertname]\n  group_wait: 5s\nreceivers:\n  - name: bell\n    \
         webhook_configs:\n      - url: http://127.0.0.1:{bell}/\n"
    );
    std::fs::write(&file, settings).map_err(StageError::system("write Alertmanager's configuration"))?;
    let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let mut command = Command::new(installed("/usr/bin/prometheus-alertmanager", "prometheus-alertmanager")?);
    command.arg(option("config.file", &file)).arg(option("storage.path", &room.join("data")));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}")).arg("--cluster.listen-address=");
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut process = Running::start("alertmanager", command, &room.join("log"))?;
    until("Alertmanager is ready", 30.s(), || {
        process.alive()?;
        let answer = exchange(port, "GET", "/-/ready").unwrap_or_default();
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
    })?;
    let bodies: Vec<String> = (0..ALL / AT_ONCE).map(|turn| alerts(turn * AT_ONCE)).collect();
    let (pid, began) = (process.pid(), Instant::now());
    let cpu = cost::cpu_seconds(pid)?;
    let post_all = || bodies.iter().try_for_each(|it| post(port, it)).map(|()| Instant::now());
    let (posted, most) = cost::most_memory(pid, post_all);
    let (last, mut memory) = (posted?, most?);
    let heard = until("it tells somebody", 120.s(), || {
        memory = memory.max(cost::pss(pid).map_err(|error| error.to_string())?);
        rings.try_recv().map(|(at, _)| at).map_err(|_| "nothing yet".to_owned())
    })?;
    let told = (heard - last).as_secs_f64();
    Ok(Storm { cpu: cost::cpu_seconds(pid)? - cpu, memory, told, taken: (last - began).as_secs_f64() })
}

fn alerts(first: u32) -> String {
    let of = |number| {
        format!(
            r#"{{"labels":{{"alertname":"db.connect","target":"{DATABASE}","sub_key":"app-{number}","severity":"critical","agent":"a-{}"}},"annotations":{{"summary":"the server refuses connections"}}}}"#,
            number / (BATCHES * EACH)
        )
    };
    format!("[{}]", (first..first + AT_ONCE).map(of).collect::<Vec<_>>().join(","))
}

fn post(port: u16, body: &str) -> Result<(), StageError> {
    let failed = || StageError::system("post alerts");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(failed())?;
    let head = format!(
        "POST /api/v2/alerts HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).map_err(failed())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed())?;
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    Err(StageError::Malformed { what: "Alertmanager's answer".into(), found: answer.chars().take(300).collect() })
}
