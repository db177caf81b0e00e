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
/// Longer than the collector waits for an answer, which is ten seconds.
const TOO_LATE: Duration = Duration::from_secs(11);
/// So long it lives now and then: an attempt that began with its start comes to its end, and so does the answer that is too late.
const LONG_LIFE: Duration = Duration::from_secs(13);
/// One life in so many is long.
const LONG_EVERY: usize = 25;
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

/// Each message of a store: its id, for whom, what became of it, how many attempts at it ended nobody knows how, and whether one of
/// them was waited for in vain; and each group that waits to be told.
const MESSAGES: &str = r#"import sqlite3, sys
store = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True)
in_vain = "coalesce(last_error, '') LIKE '%no answer within 10000 ms%'"
for it in store.execute(f"SELECT id, receiver, state, uncertain, {in_vain} FROM outbox UNION ALL "
                        "SELECT id, receiver, 'waiting', 0, 0 FROM alert_groups WHERE message IS NOT NULL"):
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
    timed_out: bool,
}

fn messages(collector: &Collector) -> Result<BTreeMap<String, Told>, StageError> {
    let store = collector.directory().join("store.db");
    let text = run(Command::new(installed("/usr/bin/python3", "python3")?).args(["-c", MESSAGES]).arg(store))?;
    let read = |line: &str| {
        let [id, receiver, state, uncertain, timed_out] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let (uncertain, timed_out) = (uncertain.parse().ok()?, timed_out == "1");
        let told = Told { receiver: receiver.into(), state: state.into(), uncertain, timed_out };
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

/// What a message tells of, as the targets of its incidents.
fn targets(message: &Message) -> Vec<&str> {
    match message.json["incidents"].as_array() {
        Some(members) => members.iter().filter_map(|it| it["incident"]["target"].as_str()).collect(),
        None => message.json["incident"]["target"].as_str().into_iter().collect(),
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
    // Not by what the collector says that it told, but by what was broken.
    for path in 0..ENDPOINTS {
        let end = format!("/{path}");
        let is_told = heard.iter().any(|it| targets(it).iter().any(|target| target.ends_with(&end)));
        assert!(is_told, "{name} never heard of the page {end}");
    }
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
        for kill in 0..kills {
            webhooks.iter().for_each(|it| it.becomes(manner(&mut chance)));
            // The moment is what is left to chance.
            let mut life = Duration::from_millis(200 + chance.below(700));
            if kill % LONG_EVERY == 0 {
                // Of all, each in its turn.
                webhooks[kill / LONG_EVERY % webhooks.len()].becomes(Manner::Late(TOO_LATE));
                life = LONG_LIFE;
            }
            std::thread::sleep(life);
            collector.kill()?;
            collector.start()?;
        }
        // Before there is a life that nobody ends.
        let timed_out = messages(&collector)?.values().filter(|it| it.timed_out).count();
        assert!(timed_out > 0, "no answer was waited for in vain");
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
        let late = |it: &Told| it.timed_out && it.uncertain > 0 && it.state == "delivered";
        assert!(messages.values().any(late), "none of them came again");
        report(&format!(
            "{kills} kills while telling, seed {seed}: {}, {uncertain} uncertain attempts, {timed_out} messages \
             with answers that were too late",
            told.join(", ")
        ))
    });
}
