//! What the collector says of its own parts: room on its disk, what waits for its ledger, receivers that are away.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tickbird_tests::collector::{receiver, titles};
use tickbird_tests::https::Connection;
use tickbird_tests::simulated::RECORDS;
use tickbird_tests::wait::throughout;
use tickbird_tests::webhook::{Manner, Message, firing, resolved};
use tickbird_tests::{Collector, Disk, Seconds, Simulated, Stage, StageError, Volume, Webhook, alone, until};

const STORE: &str = "collector.store";
const QUEUE: &str = "collector.queue";
const RECEIVER: &str = "collector.receiver";
const LEAK: &str = "pool.leak";
const MIB: u64 = 1 << 20;

/// One part of `/readyz`, whatever it says of the others.
fn part(collector: &Collector, name: &str) -> Result<Value, StageError> {
    Ok(collector.get_as("/readyz", None)?.json()?["parts"][name].clone())
}

fn is(collector: &Collector, name: &str, status: &str, within: Duration) -> Result<Value, StageError> {
    until(format!("{name} is {status} in /readyz"), within, || {
        let part = part(collector, name).map_err(|error| error.to_string())?;
        if part["status"] == status { Ok(part["detail"].clone()) } else { Err(part.to_string()) }
    })
}

/// Incidents of a check, from the API.
fn incidents(collector: &Collector, check: &str) -> Result<Vec<Value>, StageError> {
    let mut found = collector.items("incidents", "")?;
    found.retain(|it| it["check"] == check);
    Ok(found)
}

/// For a while there is no incident of the check, or the one that there is goes on.
fn stays(collector: &Collector, check: &str, wanted: &[&str]) -> Result<(), StageError> {
    throughout(format!("incidents of {check} stay {wanted:?}"), 6.s(), || {
        let found = incidents(collector, check).map_err(|error| error.to_string())?;
        let is_so = found.iter().map(|it| it["status"].as_str().unwrap_or_default()).eq(wanted.iter().copied())
            && found.iter().all(|it| it["occurrences"] == 1);
        if is_so { Ok(()) } else { Err(titles(&found)) }
    })
}

fn count(webhook: &Webhook, wanted: impl Fn(&Message) -> bool) -> Result<usize, StageError> {
    Ok(webhook.heard()?.iter().filter(|it| wanted(it)).count())
}

#[test]
fn a_disk_that_gets_low_is_told_before_it_is_full_and_over_when_there_is_room() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let room = stage.room("collector")?;
        let directory = room.join("collector");
        std::fs::create_dir(&directory).map_err(StageError::system("make the collector's directory"))?;
        // It is low with less than a tenth: 19 MiB.
        let disk = Disk::mount(&directory, 192 * MIB)?;
        let mut collector = Collector::init_in(stage, directory, room.join("log"))?;
        collector.configure(&format!("\n[own]\ndisk_hold = \"2s\"\n{}", receiver(&webhook)))?;
        collector.serve()?;

        disk.fill(40 * MIB)?;
        stays(&collector, STORE, &[])?;
        assert_eq!(part(&collector, "disk")?["status"], "ok");
        disk.fill(10 * MIB)?;
        let told = webhook.hears("that it is low", 30.s(), firing(STORE))?;
        let incident = &told.json["incident"];
        assert_eq!(
            (&incident["severity"], &incident["target"]),
            (&json!("warning"), &json!("store:disk")),
            "{incident}"
        );
        assert!(incident["evidence"]["free_bytes"].as_u64() <= Some(10 * MIB), "{incident}");
        let detail = is(&collector, "disk", "degraded", 1.s())?;
        assert!(detail["free_bytes"].as_u64() <= Some(10 * MIB), "{detail}");
        assert_eq!(collector.get_as("/readyz", None)?.status, 200, "it does its work");

        collector.kill()?;
        collector.serve()?;
        stays(&collector, STORE, &["firing"])?;
        disk.free()?;
        webhook.hears("that there is room", 30.s(), resolved(STORE))?;
        is(&collector, "disk", "ok", 1.s())?;
        assert_eq!(count(&webhook, firing(STORE))?, 1, "over the restart, too");
        Ok(())
    });
}

/// Sixteen agents with all the connections that one may open at once. 912 places of 1,024 are over four of five.
const AGENTS: usize = 16;
const EACH: usize = 57;

/// One connection of an agent, and the life of a buffer that it speaks for: batches of one wait for each other.
struct Line<'a> {
    agent: &'a Simulated,
    connection: Connection,
    epoch: String,
    next: u64,
}

fn lines(agent: &Simulated) -> Result<Vec<Line<'_>>, StageError> {
    let begin = |number: usize| {
        let epoch = format!("{number:02}{}", &agent.epoch[2..]);
        let mut connection = agent.connect()?;
        // Handshakes one after the other: so many at once are refused.
        let beat = agent.batch("urgent", 1, &[]).to_string();
        let answer = connection.ask("POST", RECORDS, "", beat.as_bytes())?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        Ok(Line { agent, connection, epoch, next: 1 })
    };
    (0..EACH).map(begin).collect()
}

/// Sends a batch that has to be stored, and waits for no answer.
fn speak(line: &mut Line<'_>) -> Result<(), StageError> {
    let mut batch = line.agent.batch("bulk", line.next, &[line.agent.summary("pool:shop")]);
    batch["epoch"] = json!(line.epoch);
    line.next += 1;
    let body = batch.to_string();
    let length = body.len();
    let head = format!("POST {RECORDS} HTTP/1.1\r\nhost: collector\r\ncontent-length: {length}\r\n\r\n");
    line.connection.say(&(head + &body))
}

/// Hears the answer, which is a yes.
fn hear(line: &mut Line<'_>) -> Result<(), StageError> {
    let answer = line.connection.answer()?;
    assert_eq!(answer.json()?["through"], line.next - 1, "{}", answer.body);
    Ok(())
}

#[test]
fn a_ledger_whose_disk_hangs_says_how_much_waits_for_it_and_that_it_is_over() {
    alone(|stage| {
        let limit = getrlimit(Resource::Nofile);
        // Each connection is a descriptor on either side.
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
            .map_err(|error| StageError::system("raise the limit on open files")(error.into()))?;
        let webhook = Webhook::start(stage)?;
        let room = stage.room("collector")?;
        let mount = room.join("disk");
        std::fs::create_dir(&mount).map_err(StageError::system("make the collector's disk"))?;
        let volume = Volume::mount(&mount, &room.join("image"), 256 * MIB)?;
        let mut collector = Collector::init_in(stage, mount.join("collector"), room.join("log"))?;
        let limits = "connections = 60\nhandshakes_per_second = 1000\nidle_time = \"10m\"";
        collector.configure(&format!("\n[own]\nqueue_hold = \"2s\"\n\n[limits]\n{limits}\n{}", receiver(&webhook)))?;
        collector.serve()?;
        let made = collector.command(&["token", "create", "--json", "--uses", &AGENTS.to_string()])?;
        let token = serde_json::from_str::<Value>(&made).unwrap_or_default()["token"].clone();
        let token = token.as_str().expect("`token create --json` prints one");
        let agents = (0..AGENTS).map(|_| Simulated::enrolled(stage, &collector, token));
        let agents = agents.collect::<Result<Vec<_>, _>>()?;
        let fleet = agents.iter().map(lines).collect::<Result<Vec<_>, _>>()?;
        let mut fleet: Vec<Line<'_>> = fleet.into_iter().flatten().collect();

        // As many at once, with a disk that takes them.
        fleet.iter_mut().try_for_each(speak)?;
        fleet.iter_mut().try_for_each(hear)?;
        stays(&collector, QUEUE, &[])?;

        let frozen = volume.freeze()?;
        let (first, others) = fleet.split_first_mut().expect("many");
        speak(first)?;
        // Else it would take some of the others along into the transaction that hangs.
        until("the ledger stands still: ticks wait, too", 30.s(), || {
            let queue = part(&collector, "queue").map_err(|error| error.to_string())?;
            if queue["detail"]["waiting"].as_u64() >= Some(3) { Ok(()) } else { Err(queue.to_string()) }
        })?;
        others.iter_mut().try_for_each(speak)?;
        let detail = is(&collector, "queue", "degraded", 30.s())?;
        assert!(detail["waiting"].as_u64() >= Some(820) && detail["places"] == 1024, "{detail}");
        // Its hold.
        throughout("it waits", 4.s(), || {
            let part = part(&collector, "queue").map_err(|error| error.to_string())?;
            if part["status"] == "degraded" { Ok(()) } else { Err(part.to_string()) }
        })?;
        drop(frozen);
        fleet.iter_mut().try_for_each(hear)?;
        let told = webhook.hears("what waited", 30.s(), firing(QUEUE))?;
        let incident = &told.json["incident"];
        assert_eq!(
            (&incident["severity"], &incident["target"]),
            (&json!("warning"), &json!("queue:ledger")),
            "{incident}"
        );
        assert!(incident["evidence"]["most_waiting"].as_u64() >= Some(820), "{incident}");
        webhook.hears("that it is over", 30.s(), resolved(QUEUE))?;
        is(&collector, "queue", "ok", 1.s()).map(drop)
    });
}

/// The section of a second receiver.
fn second(webhook: &Webhook) -> String {
    receiver(webhook).replace("\"ops\"", "\"chat\"")
}

/// An agent that says so often that a pool leaks, each time another.
struct Leaks {
    agent: Simulated,
    next: u64,
}

impl Leaks {
    fn of(stage: &Stage, collector: &Collector) -> Result<Self, StageError> {
        Ok(Self { agent: Simulated::enrolled(stage, collector, collector.enrolment_token())?, next: 1 })
    }

    fn find(&mut self, count: u64) -> Result<(), StageError> {
        let numbers = self.next..self.next + count;
        let finding = |number| self.agent.finding(&format!("pool:{number}"), &json!({ "pid": 4121 }));
        let records: Vec<Value> = numbers.map(finding).collect();
        let body = self.agent.batch("urgent", self.next, &records).to_string();
        let answer = self.agent.connect()?.ask("POST", RECORDS, "", body.as_bytes())?;
        self.next += count;
        assert_eq!(answer.json()?["through"], self.next - 1, "{}", answer.body);
        Ok(())
    }
}

fn attempted(webhook: &Webhook) -> Result<(), StageError> {
    until("it was tried", 30.s(), || if webhook.attempts().is_empty() { Err("not yet".into()) } else { Ok(()) })
}

#[test]
fn a_receiver_that_stays_away_is_told_to_the_other_and_over_when_it_is_back() {
    alone(|stage| {
        let (ops, chat) = (Webhook::start(stage)?, Webhook::start(stage)?);
        let mut collector = Collector::init(stage)?;
        collector.configure(&format!("\n[own]\nreceiver_hold = \"3s\"\n{}{}", receiver(&ops), second(&chat)))?;
        collector.serve()?;
        let mut leaks = Leaks::of(stage, &collector)?;

        chat.becomes(Manner::Fails);
        leaks.find(1)?;
        attempted(&chat)?;
        chat.becomes(Manner::Accepts);
        chat.hears("it all the same", 30.s(), firing(LEAK))?;
        stays(&collector, RECEIVER, &[])?;

        chat.becomes(Manner::Fails);
        leaks.find(6)?;
        let told = ops.hears("that the other is away", 60.s(), firing(RECEIVER))?;
        let incident = &told.json["incident"];
        assert_eq!(
            (&incident["severity"], &incident["target"]),
            (&json!("warning"), &json!("receiver:chat")),
            "{incident}"
        );
        assert_eq!(incident["evidence"]["last_error"], "answered 500", "{incident}");
        let detail = is(&collector, "receivers", "degraded", 10.s())?;
        assert_eq!(detail[0]["breaker"], "closed", "{detail}");

        collector.kill()?;
        collector.serve()?;
        stays(&collector, RECEIVER, &["firing"])?;
        chat.becomes(Manner::Accepts);
        ops.hears("that the other is back", 120.s(), resolved(RECEIVER))?;
        until("the other hears all that waited", 120.s(), || {
            let leaks = count(&chat, firing(LEAK)).map_err(|error| error.to_string())?;
            if leaks == 7 { Ok(()) } else { Err(format!("{leaks} leaks")) }
        })?;
        let of_receiver = |it: &Message| it.check() == RECEIVER;
        assert_eq!((count(&ops, of_receiver)?, count(&chat, of_receiver)?), (2, 0), "once each, and never to itself");
        Ok(())
    });
}

#[test]
fn an_only_receiver_that_is_away_stands_in_the_api_and_is_not_told_of_itself() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&format!("\n[own]\nreceiver_hold = \"1s\"\n{}", receiver(&webhook)))?;
        collector.serve()?;
        webhook.becomes(Manner::Fails);
        Leaks::of(stage, &collector)?.find(6)?;
        let is_so = |status: &'static str| move |it: &Value| it["check"] == RECEIVER && it["status"] == status;
        collector.has_incident("the receiver's absence", 60.s(), is_so("firing"))?;
        is(&collector, "receivers", "degraded", 10.s())?;
        webhook.becomes(Manner::Accepts);
        collector.has_incident("its return", 60.s(), is_so("resolved"))?;
        throughout("it hears what waited, and nothing of itself", 6.s(), || {
            let about = count(&webhook, |it| it.check() == RECEIVER).map_err(|error| error.to_string())?;
            if about == 0 { Ok(()) } else { Err(format!("{about} messages about itself")) }
        })?;
        until("it hears what waited", 60.s(), || {
            let leaks = count(&webhook, firing(LEAK)).map_err(|error| error.to_string())?;
            if leaks == 6 { Ok(()) } else { Err(format!("{leaks} leaks")) }
        })
    });
}
