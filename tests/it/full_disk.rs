//! A full disk under the agent and under the collector: filled, freed, filled again.

use std::time::Duration;

use serde_json::Value;
use tickbird_tests::accounts::{Outcomes, Received};
use tickbird_tests::agent::{User, app, check};
use tickbird_tests::collector::receiver;
use tickbird_tests::disk::KeptFull;
use tickbird_tests::wait::throughout;
use tickbird_tests::webhook::{Manner, Message, firing, resolved};
use tickbird_tests::{
    Agent, Application, Collector, Disk, Moody, Seconds, Stage, StageError, Watch, Webhook, alone, until,
};

const CHECK: &str = "fd.limit";
const STORE: &str = "collector.store";
const MIB: u64 = 1 << 20;
/// More than the agent leaves to others, 64 MiB, and little enough to be filled at once.
const AGENTS_DISK: u64 = 160 * MIB;
const COLLECTORS_DISK: u64 = 192 * MIB;

/// The newest finding about an application's descriptors at the collector.
fn newest(watch: &Watch, shop: &str) -> Result<Value, StageError> {
    let mut found = watch.collector.items("findings", &format!("check={CHECK}"))?;
    found.retain(|it| it["target"].as_str().is_some_and(|target| target.contains(shop)));
    found.sort_by_key(|it| it["received_at"].as_str().unwrap_or_default().to_owned());
    Ok(found.pop().unwrap_or_default())
}

/// A process that is out of descriptors is critical; tells whether the finding was held in memory on its way.
fn told_as_volatile(watch: &Watch, shop: &mut Application) -> Result<bool, StageError> {
    shop.does("descriptors 960")?;
    watch.fires(CHECK, &format!("process:{}", shop.name()), 60.s())?;
    until("the finding is stored", 10.s(), || {
        let finding = newest(watch, shop.name()).map_err(|error| error.to_string())?;
        if finding["severity"] == "critical" {
            Ok(finding["evidence"]["volatile"] == true)
        } else {
            Err(finding.to_string())
        }
    })
}

fn sums_are_whole(agent: &Agent) -> Result<(), StageError> {
    let stat = agent.report("buffer stat", &[])?;
    for lane in stat["lanes"].as_array().into_iter().flatten() {
        assert_eq!(lane["whole"], true, "{lane}");
        for lost in ["evicted", "quarantined"] {
            assert_eq!(lane[lost], 0, "what was accepted is there: {lane}");
        }
    }
    Ok(())
}

/// Applications whose descriptors can run out, and what the agent is told of them.
fn shops<const N: usize>(stage: &Stage, names: [&str; N]) -> Result<(Vec<Application>, String), StageError> {
    let (mut shops, mut settings) = (Vec::new(), String::new());
    for name in names {
        let mut shop = Application::web(stage, name, 0)?;
        shop.does("limit 1000")?;
        settings += &app(shop.name(), &shop.command());
        shops.push(shop);
    }
    Ok((shops, settings))
}

#[test]
fn an_agent_on_a_full_disk_tells_what_is_critical_and_recovers_by_itself() {
    alone(|stage| {
        let (mut shops, settings) = shops(stage, ["first", "second", "third", "fourth"])?;
        let webhook = Webhook::start(stage)?;
        let collector = Collector::serving(stage, &webhook)?;
        let mut agent = Agent::prepare(stage, &settings, User::Same)?;
        let disk = Disk::mount(&agent.state_directory(), AGENTS_DISK)?;
        agent.enrol(&collector)?;
        agent.run()?;
        let mut watch = Watch { webhook, collector, agent };
        for shop in &shops {
            watch.sees(CHECK, &format!("process:{}", shop.name()), "ok", 20.s())?;
        }

        disk.fill(0)?;
        assert!(told_as_volatile(&watch, &mut shops[0])?, "it was held in memory only, and says so");
        let told = watch.fires("agent.buffer", "agent:self", 60.s())?;
        assert!(
            told["summary"].to_string().contains("no space") || told["summary"].to_string().contains("takes no"),
            "{told}"
        );

        // The ballast pays for the first start, and is gone for the second.
        watch.agent.kill()?;
        watch.agent.run()?;
        disk.fill(0)?;
        watch.agent.kill()?;
        watch.agent.run()?;
        watch.sees(CHECK, "process:second", "ok", 20.s())?;
        assert!(told_as_volatile(&watch, &mut shops[1])?);

        disk.free()?;
        watch.resolves("agent.buffer", "agent:self", 120.s())?;
        assert!(!told_as_volatile(&watch, &mut shops[2])?, "the disk takes it again");
        let stat = watch.agent.report("buffer stat", &[])?;
        assert_eq!(stat["lanes"].as_array().map(Vec::len), Some(2), "it is open again: {stat}");
        sums_are_whole(&watch.agent)?;

        disk.fill(0)?;
        assert!(told_as_volatile(&watch, &mut shops[3])?, "and again it is full");
        disk.free()?;
        until("the backlog has gone", 60.s(), || {
            let stat = watch.agent.report("buffer stat", &[]).map_err(|error| error.to_string())?;
            let backlog = |lane: usize| stat["lanes"][lane]["backlog"].as_u64();
            if backlog(0) == Some(0) && backlog(1) == Some(0) { Ok(()) } else { Err(stat.to_string()) }
        })?;
        sums_are_whole(&watch.agent)
    });
}

/// More than a buffer needs that is drained, and less than the agent would leave to others if it were not told.
const SMALL_DISK: u64 = 40 * MIB;

/// What the agent holds in memory, or held.
fn in_memory(agent: &Agent, what: &str) -> Result<u64, StageError> {
    Ok(agent.status()?["agent"]["buffer"]["volatile"][what].as_u64().unwrap_or_default())
}

/// Fills the disk until appends fail: the last page of a database has room for a record or two.
fn is_met(disk: &Disk, agent: &Agent) -> Result<KeptFull, StageError> {
    let full = disk.kept_full();
    let before = in_memory(agent, "held")?;
    until("appends meet the end of the disk", 60.s(), || {
        let held = in_memory(agent, "held").map_err(|error| error.to_string())? - before;
        if held >= 20 { Ok(()) } else { Err(format!("{held} are held in memory")) }
    })?;
    Ok(full)
}

/// The guard of free space is off, so that it is sled's own append that meets the end of the disk.
#[test]
fn an_append_that_meets_a_full_disk_is_held_in_memory_and_the_buffer_comes_back_by_itself() {
    alone(|stage| {
        let load = Moody::start()?;
        let (mut shops, settings) = shops(stage, ["first", "second", "third", "fourth"])?;
        let settings = check("http.status", "hold = \"0s\"") + &load.endpoints(8) + &settings;
        let webhook = Webhook::start(stage)?;
        let collector = Collector::serving(stage, &webhook)?;
        let mut agent = Agent::prepare(stage, &(settings + "[buffer]\nmin_free = \"0B\"\n"), User::Same)?;
        let disk = Disk::mount(&agent.state_directory(), SMALL_DISK)?;
        agent.enrol(&collector)?;
        agent.run()?;
        let mut watch = Watch { webhook, collector, agent };
        for shop in &shops {
            watch.sees(CHECK, &format!("process:{}", shop.name()), "ok", 20.s())?;
        }
        let full = is_met(&disk, &watch.agent)?;
        assert!(told_as_volatile(&watch, &mut shops[0])?, "it was held in memory only, and says so");
        let told = watch.fires("agent.buffer", "agent:self", 60.s())?;
        assert!(told["summary"].to_string().contains("takes no records"), "{told}");
        drop(full);
        disk.free()?;
        watch.resolves("agent.buffer", "agent:self", 150.s())?;
        assert!(!told_as_volatile(&watch, &mut shops[1])?, "the disk takes it again");
        let ballast = watch.agent.state_directory().join("buffer/ballast");
        assert!(ballast.exists(), "what was given up is there again");

        let full = is_met(&disk, &watch.agent)?;
        assert!(told_as_volatile(&watch, &mut shops[2])?, "and again it is full");
        load.recovers();
        drop(full);
        disk.free()?;
        assert!(!told_as_volatile(&watch, &mut shops[3])?, "and again it has room");
        let log = watch.agent.log();
        assert!(log.contains("no space for the queue's database"), "an append met the end of the disk: {log}");
        assert!(!log.contains("nothing is appended below"), "and the guard did not: {log}");
        let held = until("nothing waits in memory", 30.s(), || {
            let of = |what| in_memory(&watch.agent, what).map_err(|error| error.to_string());
            if of("backlog")? == 0 { of("acknowledged") } else { Err("something does".to_owned()) }
        })?;
        watch.agent.kill()?;
        watch.agent.run()?;
        Outcomes::drained(&watch.agent)?;
        watch.agent.stop()?;
        sums_are_whole(&watch.agent)?;
        let (sent, received) = (Outcomes::of(&watch.agent)?, Received::by(&watch.collector)?);
        println!("{sent:?}, {received:?}, {held} held in memory");
        assert_eq!((received.lost, received.refused, sent.refused), (0, 0, 0));
        assert_eq!(received.committed, sent.appended + held, "everything that was accepted is there: {sent:?}");
        Ok(())
    });
}

/// The sum of what the collector received.
fn received_is_whole(collector: &Collector) -> Result<u64, StageError> {
    let counted = |what: &str| collector.counted(&format!("tickbird_records_{what}"));
    let (received, committed) = (counted("received")?, counted("committed")?);
    assert_eq!(received, committed + counted("duplicate")? + counted("refused")?);
    Ok(committed)
}

fn is_ready(collector: &Collector, wanted: bool, within: Duration) -> Result<(), StageError> {
    until(format!("the collector is ready: {wanted}"), within, || {
        let answer = collector.get_as("/readyz", None).map_err(|error| error.to_string())?;
        let found = answer.status == 200;
        if found == wanted && (found || answer.status == 503) { Ok(()) } else { Err(answer.body) }
    })
}

#[test]
fn a_collector_on_a_full_disk_stores_nothing_delivers_what_waits_and_recovers_by_itself() {
    alone(|stage| {
        let (mut shops, settings) = shops(stage, ["first", "second"])?;
        let webhook = Webhook::start(stage)?;
        let room = stage.room("collector")?;
        let directory = room.join("collector");
        std::fs::create_dir(&directory).map_err(StageError::system("make the collector's directory"))?;
        let disk = Disk::mount(&directory, COLLECTORS_DISK)?;
        let mut collector = Collector::init_in(stage, directory, room.join("log"))?;
        collector.configure(&receiver(&webhook))?;
        collector.serve()?;
        let agent = Agent::running(stage, &collector, &settings)?;
        let mut watch = Watch { webhook, collector, agent };
        for shop in &shops {
            watch.sees(CHECK, &format!("process:{}", shop.name()), "ok", 20.s())?;
        }

        // A page waits for its receiver while the disk fills up.
        watch.webhook.becomes(Manner::Fails);
        shops[0].does("descriptors 960")?;
        watch.fires(CHECK, "process:first", 30.s())?;
        until("the page was tried", 30.s(), || {
            if watch.webhook.attempts().is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
        })?;
        disk.fill(0)?;
        is_ready(&watch.collector, false, 60.s())?;
        shops[1].does("descriptors 960")?;
        until("the agent keeps what it finds", 60.s(), || {
            let stat = watch.agent.report("buffer stat", &[]).map_err(|error| error.to_string())?;
            if stat["lanes"][0]["backlog"].as_u64() > Some(0) { Ok(()) } else { Err(stat.to_string()) }
        })?;
        watch.webhook.becomes(Manner::Accepts);
        let page = watch.webhook.hears("the page that waited", 90.s(), firing(CHECK))?;
        assert!(page.json["incident"]["target"].to_string().contains("first"), "{}", page.body);
        // The reserve pays for one more message.
        let notice = watch.webhook.hears("nothing can be stored", 60.s(), firing(STORE))?;
        assert!(notice.json["incident"]["summary"].to_string().contains("cannot store"), "{}", notice.body);
        // Long enough to be told again, if it had not been marked, also by another life of the collector.
        let once = |watch: &Watch| {
            let accepted = watch.webhook.heard().map_err(|error| error.to_string())?;
            let is_page = firing(CHECK);
            let same = accepted.iter().filter(|it| is_page(it)).count();
            if same == 1 { Ok(()) } else { Err(format!("{same} pages")) }
        };
        throughout("it is told once", 6.s(), || once(&watch))?;
        watch.collector.kill()?;
        watch.collector.start()?;
        is_ready(&watch.collector, false, 30.s())?;
        throughout("it stays told once", 6.s(), || once(&watch))?;

        disk.free()?;
        is_ready(&watch.collector, true, 60.s())?;
        watch.webhook.hears("it can be stored again", 60.s(), resolved(STORE))?;
        let is_notice = firing(STORE);
        let notices = watch.webhook.heard()?.iter().filter(|it| is_notice(it)).count();
        assert_eq!(notices, 1, "one notice goes out, over a restart too");
        watch.fires(CHECK, "process:second", 90.s())?;
        let committed = received_is_whole(&watch.collector)?;
        assert!(committed > 0, "what was counted before the kill is counted still");

        disk.fill(0)?;
        is_ready(&watch.collector, false, 60.s())?;
        disk.free()?;
        is_ready(&watch.collector, true, 60.s())?;
        until("the agent is rid of its backlog", 90.s(), || {
            let stat = watch.agent.report("buffer stat", &[]).map_err(|error| error.to_string())?;
            if stat["lanes"][0]["backlog"] == 0 { Ok(()) } else { Err(stat.to_string()) }
        })?;
        received_is_whole(&watch.collector).map(drop)
    });
}

/// Where a route groups, the reserve pays for the message of the group, which does not wait.
#[test]
fn a_route_that_groups_tells_of_a_full_disk_at_once_too() {
    alone(|stage| {
        let (mut shops, settings) = shops(stage, ["first"])?;
        let webhook = Webhook::start(stage)?;
        let room = stage.room("collector")?;
        let directory = room.join("collector");
        std::fs::create_dir(&directory).map_err(StageError::system("make the collector's directory"))?;
        let disk = Disk::mount(&directory, COLLECTORS_DISK)?;
        let mut collector = Collector::init_in(stage, directory, room.join("log"))?;
        let route = "[route]\nreceiver = \"ops\"\ngroup_by = [\"check\"]\ngroup_wait = \"10m\"\n";
        collector.configure(&(receiver(&webhook) + route))?;
        collector.serve()?;
        let agent = Agent::running(stage, &collector, &settings)?;
        let watch = Watch { webhook, collector, agent };
        watch.sees(CHECK, "process:first", "ok", 20.s())?;
        disk.fill(0)?;
        is_ready(&watch.collector, false, 60.s())?;
        shops[0].does("descriptors 960")?;
        let of_store =
            |kind: &'static str| move |it: &Message| it.kind() == kind && it.json["group"]["labels"]["check"] == STORE;
        let notice = watch.webhook.hears("nothing can be stored", 90.s(), of_store("group.firing"))?;
        assert!(notice.body.contains("cannot store"), "{}", notice.body);
        disk.free()?;
        is_ready(&watch.collector, true, 60.s())?;
        watch.webhook.hears("it can be stored again", 60.s(), of_store("group.resolved")).map(drop)
    });
}
