//! `kill -9` of the collector in the middle of telling, while what it tells of flaps, and receivers fail in every way they can:
//! nobody misses anything, nobody hears anything that was not decided, and what comes twice has an attempt whose end nobody knows.
//!
//! `TICKBIRD_NOTIFY_KILLS` asks for more kills than the suite has time for, `TICKBIRD_KILL_SEED` for the same moments again.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tickbird_tests::agent::{User, check};
use tickbird_tests::alone::alone_within;
use tickbird_tests::chance::{Chance, number};
use tickbird_tests::collector::{receiver, titles};
use tickbird_tests::process::{installed, run};
use tickbird_tests::report::report;
use tickbird_tests::webhook::{Manner, Message};
use tickbird_tests::{Agent, Collector, Moody, Seconds, Stage, StageError, Webhook, until};

const KILLS: usize = 200;
const ENDPOINTS: usize = 12;
/// The last one is told in groups.
const NAMES: [&str; 4] = ["ops", "desk", "chat", "groups"];
/// Longer than the collector waits for an answer.
const TOO_LATE: Duration = Duration::from_secs(11);
const ROUTES: &str = r#"
[route]
receiver = "ops"
[[route.routes]]
receiver = "groups"
group_by = ["check"]
group_wait = "1s"
group_interval = "2s"
repeat_interval = "10s"
continue = true
[[route.routes]]
receiver = "desk"
continue = true
[[route.routes]]
receiver = "chat"
continue = true
[[route.routes]]
receiver = "ops"
"#;

/// Each message of a store: its id, for whom, what became of it, and how many attempts at it ended nobody knows how; and each group
/// that waits to be told.
const MESSAGES: &str = r#"import sqlite3, sys
store = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True)
for it in store.execute("SELECT id, receiver, state, uncertain FROM outbox UNION ALL "
                        "SELECT id, receiver, 'waiting', 0 FROM alert_groups WHERE message IS NOT NULL"):
    print(*it)"#;

/// Mostly well, or nobody would ever hear anything.
fn manner(chance: &mut Chance) -> Manner {
    match chance.below(9) {
        0 => Manner::Fails,
        1 => Manner::SaysNothing,
        2 => Manner::Late(TOO_LATE),
        3 | 4 => Manner::Late(Duration::from_millis(chance.below(600))),
        _ => Manner::Accepts,
    }
}

struct Told {
    receiver: String,
    state: String,
    uncertain: u64,
}

fn messages(collector: &Collector) -> Result<BTreeMap<String, Told>, StageError> {
    let store = collector.directory().join("store.db");
    let text = run(Command::new(installed("/usr/bin/python3", "python3")?).args(["-c", MESSAGES]).arg(store))?;
    let read = |line: &str| {
        let [id, receiver, state, uncertain] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let told = Told { receiver: receiver.into(), state: state.into(), uncertain: uncertain.parse().ok()? };
        Some((id.to_owned(), told))
    };
    Ok(text.lines().filter_map(read).collect())
}

/// What a message says of each incident, by its id.
fn says(message: &Message) -> Vec<(String, String)> {
    let of = |incident: &Value, change: &str| (incident["id"].to_string(), change.to_owned());
    match message.json["incidents"].as_array() {
        Some(members) => {
            let of = |it: &Value| of(&it["incident"], it["change"].as_str().unwrap_or_default());
            members.iter().map(of).collect()
        }
        None => vec![of(&message.json["incident"], message.kind())],
    }
}

/// Compares what a receiver heard with what the store says it was told; how many messages it heard, and how many of them again.
fn compare(name: &str, webhook: &Webhook, messages: &BTreeMap<String, Told>) -> Result<(usize, usize), StageError> {
    let heard = webhook.heard()?;
    let mut times: BTreeMap<&str, u64> = BTreeMap::new();
    let mut bodies: BTreeMap<&str, &str> = BTreeMap::new();
    for it in &heard {
        *times.entry(&it.id).or_default() += 1;
        assert_eq!(*bodies.entry(&it.id).or_insert(&it.body), it.body, "{} came with two contents", it.id);
    }
    let is_of = |it: &Told| it.receiver == name;
    for (id, count) in &times {
        let told =
            messages.get(*id).filter(|it| is_of(it)).unwrap_or_else(|| panic!("{name} heard {id}, never queued"));
        let explained = told.uncertain + u64::from(told.state == "delivered");
        assert!(*count <= explained, "{name} heard {id} {count} times: {}, {} uncertain", told.state, told.uncertain);
    }
    for (id, told) in messages.iter().filter(|(_, it)| is_of(it)) {
        match told.state.as_str() {
            "delivered" => assert!(times.contains_key(id.as_str()), "{name} never heard {id}, which is delivered"),
            "superseded" => (),
            other => panic!("{id} is {other} for {name}"),
        }
    }
    // The newest word of each incident, by the order of ids: those of one incident are told in it.
    let mut last: BTreeMap<String, (&str, String)> = BTreeMap::new();
    for it in &heard {
        for (incident, change) in says(it).into_iter().filter(|(_, change)| change != "unchanged") {
            let before = last.get(&incident).map_or("", |(id, _)| *id);
            if it.id.as_str() >= before {
                last.insert(incident, (&it.id, change));
            }
        }
    }
    let open: Vec<_> = last.iter().filter(|(_, (_, change))| change != "incident.resolved").collect();
    assert!(open.is_empty() && !last.is_empty(), "{name} was never told that these are over: {open:?}");
    Ok((times.len(), times.values().filter(|count| **count > 1).count()))
}

fn collector_with(stage: &Stage, webhooks: &[Webhook]) -> Result<Collector, StageError> {
    let mut collector = Collector::init(stage)?;
    for (name, webhook) in NAMES.iter().zip(webhooks) {
        collector.configure(&receiver(webhook).replace("\"ops\"", &format!("\"{name}\"")))?;
    }
    collector.configure(ROUTES)?;
    // It would be told once, and there would be nothing to be killed in the middle of.
    collector.configure("[flapping]\nenabled = false\n")?;
    collector.serve()?;
    Ok(collector)
}

#[test]
fn kills_in_the_middle_of_telling_cost_nobody_a_word_and_tell_nobody_what_was_not_decided() {
    let kills = number("TICKBIRD_NOTIFY_KILLS").map_or(KILLS, |it| it as usize);
    alone_within(900.s() + Duration::from_secs(5) * kills as u32, move |stage| {
        let seed = number("TICKBIRD_KILL_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
        println!("TICKBIRD_KILL_SEED={seed}");
        let mut chance = Chance::of(seed);
        let webhooks = NAMES.iter().map(|_| Webhook::start(stage)).collect::<Result<Vec<_>, _>>()?;
        let mut collector = collector_with(stage, &webhooks)?;
        let load = Moody::start()?;
        // What is killed every second crashes, as seen from outside, and an unoptimised agent is large: true, and of no interest here.
        let mut settings: String =
            ["proc.gone", "proc.restart", "agent.budget"].map(|id| check(id, "enabled = false")).concat();
        settings += &check("http.status", "hold = \"0s\"");
        settings += &load.endpoints(ENDPOINTS);
        settings += &format!("[collector]\nurl = \"https://{}\"\n", collector.agents());
        let mut agent = Agent::prepare(stage, &settings, User::Same)?;
        agent.enrol(&collector)?;
        agent.run()?;
        webhooks[0].hears("of the first fault", 60.s(), |it| it.check() == "http.status")?;
        for _ in 0..kills {
            webhooks.iter().for_each(|it| it.becomes(manner(&mut chance)));
            // The moment is what is left to chance.
            std::thread::sleep(Duration::from_millis(200 + chance.below(700)));
            collector.kill()?;
            collector.start()?;
        }
        webhooks.iter().for_each(|it| it.becomes(Manner::Accepts));
        load.recovers();
        until("everything is over", 120.s(), || {
            let firing = collector.items("incidents", "status=firing").map_err(|error| error.to_string())?;
            if firing.is_empty() { Ok(()) } else { Err(titles(&firing)) }
        })?;
        agent.stop()?;
        let messages = until("nothing waits", 300.s(), || {
            let messages = messages(&collector).map_err(|error| error.to_string())?;
            let waiting = messages.values().filter(|it| it.state == "waiting").count();
            if waiting == 0 { Ok(messages) } else { Err(format!("{waiting} wait")) }
        })?;
        collector.stop()?;
        let mut told = Vec::new();
        for (name, webhook) in NAMES.iter().zip(&webhooks) {
            let (heard, again) = compare(name, webhook, &messages)?;
            told.push(format!("{name} {heard} ({again} again)"));
        }
        let uncertain: u64 = messages.values().map(|it| it.uncertain).sum();
        assert!(uncertain > 0, "no kill came in the middle of telling");
        report(&format!(
            "{kills} kills while telling, seed {seed}: {}, {uncertain} uncertain attempts",
            told.join(", ")
        ))
    });
}
