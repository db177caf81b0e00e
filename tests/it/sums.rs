//! Both sums after every kind of loss: a buffer that overflows, records that nobody can store, damage, and a collector that
//! knows less than it acknowledged.
//!
//! A buffer is filled through the agent's own code while no agent runs: at the rate of an agent it would take hours.

use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};
use tickbird_agent::buffer::{Buffer, Config};
use tickbird_shared::{Lane, Timestamp};
use tickbird_tests::accounts::{Outcomes, agree};
use tickbird_tests::agent::{User, check};
use tickbird_tests::collector::titles;
use tickbird_tests::{Agent, Moody, Seconds, Simulated, Stage, StageError, Watch, alone, until};

const ENDPOINTS: usize = 8;
const MIB: u64 = 1 << 20;
/// The smallest bound that an agent takes.
const BOUND: u64 = 32 * MIB;
/// Records of one call.
const TOGETHER: u64 = 100;
/// Characters of what cannot be compressed, in the evidence of a finding that has room for 8 KiB.
const NOISE: usize = 7_900;

/// Appends these records to the buffer of an agent that does not run, until a lane of it takes so many bytes on disk.
fn fill(
    agent: &Agent,
    lane: Lane,
    bytes_on_disk: u64,
    mut next: impl FnMut() -> Vec<Vec<u8>>,
) -> Result<(), StageError> {
    let failed = |error: &dyn std::fmt::Display| StageError::Failed { what: "fill".into(), said: error.to_string() };
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().map_err(StageError::system("make a runtime"))?;
    // The bound is the running agent's to keep.
    let config = Config::new(agent.state_directory().join("buffer")).with_max_bytes(8 * BOUND);
    let config = config.map_err(|error| failed(&error))?;
    runtime.block_on(async {
        let (buffer, _) = Buffer::open(config, Timestamp::now()).map_err(|error| failed(&error))?;
        loop {
            buffer.append(lane, next()).await.map_err(|error| failed(&error))?;
            let stat = buffer.stat().await.map_err(|error| failed(&error))?;
            if stat.lanes.iter().any(|it| it.lane == lane && it.bytes_on_disk >= bytes_on_disk) {
                return buffer.close().await.map_err(|error| failed(&error));
            }
        }
    })
}

/// Appends records as they are.
fn append(agent: &Agent, lane: Lane, records: &[Vec<u8>]) -> Result<(), StageError> {
    fill(agent, lane, 0, || records.to_vec())
}

/// Letters that nothing makes shorter.
fn noise(seed: u64) -> String {
    let pieces = (0..NOISE as u64 / 64 + 1).map(|piece| Sha256::digest((seed << 16 | piece).to_be_bytes()));
    let letters = pieces.flat_map(|it| it.map(|byte| char::from(b'0' + byte % 64)).into_iter().collect::<Vec<_>>());
    letters.filter(|it| *it != '\\').take(NOISE).collect()
}

/// A hundred findings of one thing, each of which takes about as much on disk as it is long.
fn large_findings(agent: &Agent) -> Result<impl FnMut() -> Vec<Vec<u8>>, StageError> {
    let (speaker, mut seed) = (Simulated::of(agent)?, 0_u64);
    Ok(move || {
        let finding = |seed| speaker.finding("pool:shop", &json!({ "noise": noise(seed) })).to_string().into_bytes();
        seed += TOGETHER;
        (seed - TOGETHER..seed).map(finding).collect()
    })
}

/// A watch with much to tell, some of which is acknowledged.
fn begin(stage: &Stage, load: &Moody) -> Result<Watch, StageError> {
    let settings = check("http.status", "hold = \"0s\"") + &load.endpoints(ENDPOINTS);
    let watch = Watch::begin(stage, &(settings + &format!("[buffer]\nmax_bytes = \"{BOUND}B\"\n")))?;
    acknowledges(&watch.agent, 10)?;
    Ok(watch)
}

/// Waits until so many records more are at the collector.
fn acknowledges(agent: &Agent, more: u64) -> Result<(), StageError> {
    let before = Outcomes::of(agent)?.acknowledged;
    until(format!("{more} records more are acknowledged"), 60.s(), || {
        let now = Outcomes::of(agent).map_err(|error| error.to_string())?;
        if now.acknowledged >= before + more { Ok(()) } else { Err(format!("{now:?}")) }
    })
}

#[test]
fn a_buffer_that_overflows_loses_whole_generations_and_both_ends_say_how_much() {
    alone(|stage| {
        let load = Moody::start()?;
        let mut watch = begin(stage, &load)?;
        // In order: no answer is under way that only one of the two knows of.
        watch.agent.stop()?;
        watch.collector.kill()?;
        fill(&watch.agent, Lane::Bulk, BOUND / 4, large_findings(&watch.agent)?)?;
        fill(&watch.agent, Lane::Urgent, BOUND + BOUND / 4, large_findings(&watch.agent)?)?;
        watch.agent.run()?;
        let lost = until("both lanes gave", 90.s(), || {
            let stat = watch.agent.report("buffer stat", &[]).map_err(|error| error.to_string())?;
            let evicted = [0, 1].map(|lane| stat["lanes"][lane]["evicted"].as_u64().unwrap_or_default());
            if evicted.iter().all(|it| *it > 0) { Ok(evicted) } else { Err(stat.to_string()) }
        })?;
        watch.tells_when("agent.buffer", "agent:self", "that findings are lost", 30.s(), |it| {
            it["severity"] == "critical" && it["summary"].to_string().contains("has lost findings")
        })?;
        watch.agent.kill()?;
        let kept = Outcomes::of(&watch.agent)?;
        assert!(kept.evicted >= lost[0] + lost[1], "a restart forgets nothing: {kept:?}, {lost:?}");
        watch.agent.run()?;
        watch.collector.serve()?;
        // The life that is over told it; the one that goes on knows of no further loss, and so it ends.
        // What it said before, that it fills, comes before it.
        watch.collector.has_incident("findings are lost", 60.s(), |it| {
            let is_told = it["summary"].to_string().contains("has lost findings");
            it["check"] == "agent.buffer" && is_told && it["severity"] == "critical"
        })?;
        Outcomes::drained(&watch.agent)?;
        let incident = watch.fires("agent.loss", "", 30.s())?;
        assert!(incident["summary"].to_string().contains("evicted"), "{incident}");
        load.recovers();
        watch.resolves("agent.buffer", "agent:self", 150.s())?;
        watch.agent.stop()?;
        let (sent, received) = agree(&watch.collector, &[&watch.agent])?;
        println!("{sent:?}, {received:?}");
        assert_eq!((sent.refused, sent.quarantined, received.refused), (0, 0, 0));
        assert_eq!(received.lost, sent.evicted, "as much is told as went");
        Ok(())
    });
}

#[test]
fn a_buffer_that_fills_is_told_until_it_is_drained_and_one_that_does_not_is_not() {
    alone(|stage| {
        let load = Moody::start()?;
        let mut watch = begin(stage, &load)?;
        let made = watch.collector.command(&["token", "create", "--json"])?;
        let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
        let mut twin = Agent::prepare(stage, "", User::Same)?;
        twin.enrol_with(&watch.collector, made["token"].as_str().expect("a token"))?;
        twin.run()?;
        watch.agent.stop()?;
        watch.collector.kill()?;
        fill(&watch.agent, Lane::Urgent, BOUND / 8 * 7, large_findings(&watch.agent)?)?;
        watch.agent.run()?;
        watch.tells_as("agent.buffer", "agent:self", "warning", 30.s())?;
        watch.collector.serve()?;
        let incident = watch.fires("agent.buffer", "agent:self", 60.s())?;
        assert!(incident["summary"].to_string().contains("buffer fills"), "{incident}");
        assert_eq!(incident["severity"], "warning", "{incident}");
        assert_eq!(incident["agent"]["id"], Simulated::of(&watch.agent)?.id, "{incident}");
        Outcomes::drained(&watch.agent)?;
        watch.resolves("agent.buffer", "agent:self", 60.s())?;
        let of_twin = Simulated::of(&twin)?.id;
        let told = watch.collector.items("incidents", "")?;
        // It sees this host's other faults as well.
        let of_itself = ["agent.buffer", "agent.clock", "agent.loss"];
        let is_loud = |it: &&serde_json::Value| {
            it["agent"]["id"] == *of_twin && it["check"].as_str().is_some_and(|it| of_itself.contains(&it))
        };
        assert!(!told.iter().any(|it| is_loud(&it)), "{}", titles(&told));
        load.recovers();
        watch.agent.stop()?;
        twin.stop()?;
        agree(&watch.collector, &[&watch.agent, &twin]).map(drop)
    });
}

#[test]
fn what_nobody_can_store_is_refused_once_and_counted_at_both_ends() {
    alone(|stage| {
        let load = Moody::start()?;
        let mut watch = begin(stage, &load)?;
        watch.agent.kill()?;
        let speaker = Simulated::of(&watch.agent)?;
        let text = |it: serde_json::Value| it.to_string().into_bytes();
        let inventory = json!({ "inventory": {
            "version": "0", "host": "web-1", "system": "x".repeat(300), "labels": {}, "targets": [],
            "observed_at": jiff::Timestamp::now(),
        } });
        // As an agent of another version, or one that went wrong, may have left them.
        let urgent = [
            text(json!({ "omen": { "bird": "raven" } })),
            text(speaker.finding("pool:shop", &json!({}))),
            b"{\"finding\":".to_vec(),
            text(speaker.finding(&"x".repeat(600), &json!({}))),
        ];
        let bulk = [text(inventory), text(speaker.summary("pool:shop")), text(speaker.summary(&"x".repeat(600)))];
        append(&watch.agent, Lane::Urgent, &urgent)?;
        append(&watch.agent, Lane::Bulk, &bulk)?;
        watch.agent.run()?;
        Outcomes::drained(&watch.agent)?;
        watch.agent.kill()?;
        watch.collector.kill()?;
        watch.collector.serve()?;
        watch.agent.run()?;
        load.recovers();
        acknowledges(&watch.agent, 1)?;
        watch.agent.stop()?;
        let (sent, received) = agree(&watch.collector, &[&watch.agent])?;
        println!("{sent:?}, {received:?}");
        assert_eq!((sent.refused, sent.evicted, sent.quarantined), (5, 0, 0));
        // What is no JSON cannot be sent, so only its place is told.
        assert_eq!((received.refused, received.lost), (4, 1));
        let file = watch.agent.state_directory().join("buffer/refused/refused.jsonl");
        let kept = std::fs::read_to_string(file).map_err(StageError::system("read what was refused"))?;
        let mut codes: Vec<String> = kept
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|line| line["code"].as_str().map(str::to_owned))
            .collect();
        codes.sort();
        assert_eq!(codes, ["key_too_long", "key_too_long", "key_too_long", "malformed", "not_json"]);
        Ok(())
    });
}

/// Turns a byte in most pages of what a file holds, or cuts it in the middle. A database keeps much that it does not need
/// any more: one place alone may be nobody's.
fn damage(file: &Path, is_cut: bool) -> Result<(), StageError> {
    let failed = || StageError::system(format!("damage {}", file.display()));
    let bytes = std::fs::read(file).map_err(failed())?;
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or_default();
    let open = std::fs::File::options().write(true).open(file).map_err(failed())?;
    if is_cut {
        return open.set_len(used as u64 / 2).map_err(failed());
    }
    (used / 8..used / 8 * 7)
        .step_by(4096)
        .try_for_each(|at| open.write_all_at(&[!bytes[at]], at as u64))
        .map_err(failed())
}

#[test]
fn a_buffer_that_was_damaged_goes_on_and_both_ends_say_how_much_is_gone() {
    alone(|stage| {
        let load = Moody::start()?;
        let mut watch = begin(stage, &load)?;
        // In order: no answer is under way that only one of the two knows of.
        watch.agent.stop()?;
        watch.collector.kill()?;
        fill(&watch.agent, Lane::Urgent, BOUND / 8 * 7, large_findings(&watch.agent)?)?;
        let lane = watch.agent.state_directory().join("buffer/urgent");
        let entries = std::fs::read_dir(&lane).map_err(StageError::system("list the generations"))?;
        let mut generations: Vec<_> =
            entries.flatten().map(|it| it.path().join("db")).filter(|it| it.exists()).collect();
        generations.sort();
        assert!(generations.len() >= 3, "{generations:?}");
        // One that waits to be read, and the one that is written to.
        damage(&generations[1], false)?;
        damage(&generations[generations.len() - 1], true)?;
        watch.agent.run()?;
        watch.collector.serve()?;
        Outcomes::drained(&watch.agent)?;
        let incident = watch.fires("agent.loss", "", 30.s())?;
        assert!(incident["summary"].to_string().contains("quarantined"), "{incident}");
        watch.agent.kill()?;
        let gone = Outcomes::of(&watch.agent)?.quarantined;
        watch.agent.run()?;
        load.recovers();
        acknowledges(&watch.agent, 1)?;
        watch.agent.stop()?;
        let (sent, received) = agree(&watch.collector, &[&watch.agent])?;
        println!("{sent:?}, {received:?}");
        assert_eq!((sent.quarantined, sent.evicted, sent.refused), (gone, 0, 0), "a restart forgets nothing of it");
        assert!(
            sent.acknowledged > 0 && received.losses >= 2,
            "two places were damaged, and the rest came: {received:?}"
        );
        assert_eq!(received.lost, sent.quarantined, "as much is told as is gone");
        assert!(watch.agent.report("buffer stat", &[])?["moved_aside"].as_u64() >= Some(1), "kept for a person");
        Ok(())
    });
}

#[test]
fn a_collector_made_of_an_old_backup_says_how_much_it_has_forgotten() {
    alone(|stage| {
        let load = Moody::start()?;
        let mut watch = begin(stage, &load)?;
        let backup = stage.room("backups")?.join("old");
        let backup = backup.to_str().expect("the stage's paths are text");
        let before = Outcomes::of(&watch.agent)?;
        watch.collector.command(&["backup", backup])?;
        acknowledges(&watch.agent, 60)?;
        watch.collector.kill()?;
        let known = Outcomes::of(&watch.agent)?;
        std::fs::remove_dir_all(watch.collector.directory()).map_err(StageError::system("lose the collector"))?;
        watch.collector.command(&["restore", backup])?;
        watch.collector.serve()?;
        let incident = watch.fires("agent.loss", "", 60.s())?;
        acknowledges(&watch.agent, 10)?;
        load.recovers();
        watch.agent.stop()?;
        let (sent, received) = agree(&watch.collector, &[&watch.agent])?;
        println!("{sent:?}, {received:?}");
        assert_eq!(sent.appended, sent.acknowledged, "for the agent nothing is lost: {sent:?}");
        let forgotten = received.lost;
        let most = known.appended - before.acknowledged;
        assert!((60..=most).contains(&forgotten), "{forgotten} of {most} at most: {before:?}, {known:?}");
        let told = incident["evidence"]["count"].as_u64();
        assert!(told.is_some_and(|it| it > 0 && it <= forgotten), "{incident}");
        Ok(())
    });
}
