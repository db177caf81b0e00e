//! One identity on two machines is told and harms nobody, also with one buffer; one machine with a changing past is no two.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tickbird_tests::accounts::lanes;
use tickbird_tests::agent::{User, app};
use tickbird_tests::https::Client;
use tickbird_tests::process::run;
use tickbird_tests::wait::throughout;
use tickbird_tests::webhook::firing;
use tickbird_tests::{Agent, Application, Seconds, Stage, StageError, Watch, alone, until};

const CHECK: &str = "fd.limit";
const CLONED: &str = "agent.cloned_identity";
/// Batches that were refused because their epoch goes on elsewhere.
const SUPERSEDED: &str = "tickbird_batches_superseded";

/// An application beyond its bound, and the agent that has told of it.
fn at_fault(stage: &Stage) -> Result<(Application, Watch), StageError> {
    let mut shop = Application::web(stage, "shop", 0)?;
    shop.does("limit 100")?;
    let watch = Watch::begin(stage, &app("shop", &shop.command()))?;
    watch.sees(CHECK, "process:shop", "ok", 30.s())?;
    shop.does("descriptors 80")?;
    watch.fires(CHECK, "process:shop", 60.s())?;
    Ok((shop, watch))
}

fn copy(from: &Path, to: &Path) -> Result<(), StageError> {
    run(Command::new("/bin/cp").arg("-aT").arg(from).arg(to)).map(drop)
}

/// An agent with a copy of this part of another one's state, that watches the same application under another name.
fn copy_of(watch: &Watch, stage: &Stage, shop: &Application, part: &str) -> Result<Agent, StageError> {
    let agent = Agent::prepare(stage, &app("copy", &shop.command()), User::Same)?;
    copy(&watch.agent.state_directory().join(part), &agent.state_directory().join(part))?;
    Ok(agent)
}

/// Waits until somebody is told that the agent's identity is used twice.
fn told_of_clone(watch: &Watch, within: Duration) -> Result<Value, StageError> {
    let id = watch.agent.status()?["agent"]["id"].clone();
    let told = watch.fires(CLONED, "", within)?;
    assert_eq!((&told["agent"]["id"], &told["severity"]), (&id, &json!("critical")), "{told}");
    watch.webhook.hears("the clone", 10.s(), firing(CLONED))?;
    Ok(told)
}

fn still_fires(watch: &Watch) -> Result<(), StageError> {
    let told = watch.fires(CHECK, "process:shop", 1.s())?;
    assert_eq!((&told["occurrences"], &told["resolved_at"]), (&json!(1), &Value::Null), "{told}");
    Ok(())
}

/// An open list of an epoch of its own in which nothing fires, as a copy sends it 90 s after its start.
fn list_of_nothing() -> Vec<u8> {
    let open = json!({ "open": { "checks": [CHECK], "firing": [], "observed_at": "2099-01-01T00:00:00Z" } });
    let batch = json!({
        "protocol": 1, "epoch": "01JD7Z5W0000000000000000AA", "lane": "urgent", "first": 1,
        "sent_at": "2099-01-01T00:00:00Z", "records": [open],
    });
    batch.to_string().into_bytes()
}

#[test]
fn a_copied_identity_is_told_and_ends_nothing_that_the_other_one_said() {
    alone(|stage| {
        let (mut shop, watch) = at_fault(stage)?;
        let mut second = copy_of(&watch, stage, &shop, "identity")?;
        second.run()?;
        told_of_clone(&watch, 90.s())?;
        second.stop()?;

        let [ca, chain, key] = ["ca.pem", "agent.pem", "agent.key"].map(|it| second.identity(it));
        let as_second = Client::as_agent(&ca, &chain, &key)?;
        until("the list is taken", 20.s(), || {
            let mut open = as_second.connect(watch.collector.agents()).map_err(|error| error.to_string())?;
            let answer = open.ask("POST", "/v1/records", "", &list_of_nothing()).map_err(|error| error.to_string())?;
            if answer.status == 200 && answer.body.contains("\"through\":1") { Ok(()) } else { Err(answer.body) }
        })?;
        still_fires(&watch)?;
        shop.does("release")?;
        watch.resolves(CHECK, "process:shop", 60.s()).map(drop)
    });
}

#[test]
fn an_agent_that_is_killed_and_loses_its_buffer_is_one_agent() {
    alone(|stage| {
        let (mut shop, mut watch) = at_fault(stage)?;
        let buffer = watch.agent.state_directory().join("buffer");
        for past in ["kept", "lost", "kept", "lost", "kept", "lost", "lost", "kept"] {
            let batches = |watch: &Watch| watch.agent.status().map(|it| it["agent"]["collector"]["counts"].clone());
            watch.agent.kill()?;
            if past == "lost" {
                std::fs::remove_dir_all(&buffer).map_err(StageError::system("lose the buffer"))?;
            }
            watch.agent.run()?;
            until("it has spoken", 20.s(), || {
                let counts = batches(&watch).map_err(|error| error.to_string())?;
                if counts["acknowledged"].as_u64() >= Some(1) { Ok(()) } else { Err(counts.to_string()) }
            })?;
        }
        still_fires(&watch)?;
        watch.sees(CHECK, "process:shop", "warning", 30.s())?;
        shop.does("release")?;
        watch.resolves(CHECK, "process:shop", 60.s())?;
        watch.never_told(CLONED, "")?;
        let incidents = watch.collector.items("incidents", "")?;
        assert!(!incidents.iter().any(|it| it["check"] == CLONED), "{incidents:?}");
        assert_eq!(watch.collector.counted("tickbird_records_refused")?, 0);
        assert_eq!(watch.collector.counted(SUPERSEDED)?, 0, "each start goes on from the one before");
        Ok(())
    });
}

/// Records that an agent has ever appended, of both lanes.
fn appended(agent: &Agent) -> Result<u64, StageError> {
    let count = |lane: &Value| lane["appended"].as_u64().unwrap_or_default();
    Ok(lanes(agent)?.iter().map(count).sum())
}

/// Ends an agent in order; everything that it appended is acknowledged then.
fn drained(agent: &mut Agent) -> Result<u64, StageError> {
    agent.stop()?;
    for lane in lanes(agent)? {
        assert_eq!((&lane["backlog"], &lane["acknowledged"]), (&json!(0), &lane["appended"]), "{lane}");
    }
    appended(agent)
}

#[test]
fn a_copied_state_is_told_and_costs_neither_agent_a_record() {
    alone(|stage| {
        let (mut shop, mut watch) = at_fault(stage)?;
        let mut till = Application::web(stage, "till", 0)?;
        till.does("limit 100")?;
        let mut second = Agent::prepare(stage, &app("till", &till.command()), User::Same)?;
        copy(&watch.agent.state_directory(), &second.state_directory())?;
        // Read after the copy: what it holds, and perhaps a record more.
        let common = appended(&watch.agent)?;
        second.run()?;
        till.does("descriptors 80")?;
        watch.fires(CHECK, "process:till", 60.s())?;
        told_of_clone(&watch, 150.s())?;
        // The copy's first list, 90 s after its start, has not what only the other agent sees.
        throughout("the copy ends nothing of the first", 100.s(), || {
            still_fires(&watch).map_err(|error| error.to_string())
        })?;
        for app in [&mut shop, &mut till] {
            app.does("release")?;
            watch.resolves(CHECK, &format!("process:{}", app.name()), 60.s())?;
        }
        let unique = drained(&mut watch.agent)? + drained(&mut second)? - common;
        let counted = |what: &str| watch.collector.counted(what);
        assert!(counted(SUPERSEDED)? >= 1, "their epoch went on with one of them");
        assert_eq!(counted("tickbird_records_refused")?, 0);
        let committed = counted("tickbird_records_committed")?;
        assert!(committed >= unique, "{unique} were appended here or there, {committed} are stored");
        Ok(())
    });
}

#[test]
fn an_agent_whose_state_was_put_back_goes_on_in_a_new_life_and_is_no_clone() {
    const TILLS: [&str; 3] = ["till-a", "till-b", "till-c"];
    alone(|stage| {
        let mut shop = Application::web(stage, "shop", 0)?;
        let mut tills = Vec::new();
        let mut configuration = app("shop", &shop.command());
        for name in TILLS {
            let mut till = Application::web(stage, name, 0)?;
            till.does("limit 100")?;
            configuration += &app(name, &till.command());
            tills.push(till);
        }
        shop.does("limit 100")?;
        let mut watch = Watch::begin(stage, &configuration)?;
        watch.sees(CHECK, "process:shop", "ok", 30.s())?;
        shop.does("descriptors 80")?;
        watch.fires(CHECK, "process:shop", 60.s())?;

        watch.agent.stop()?;
        let (state, older) = (watch.agent.state_directory(), stage.room("older")?);
        copy(&state, &older)?;
        let common = appended(&watch.agent)?;
        watch.agent.run()?;
        watch.sees(CHECK, "process:shop", "warning", 30.s())?;
        shop.does("release")?;
        watch.resolves(CHECK, "process:shop", 60.s())?;
        watch.agent.stop()?;
        let urgent = |watch: &Watch| lanes(&watch.agent).map(|it| it[0]["appended"].as_u64().unwrap_or_default());
        let (known, before) = (urgent(&watch)?, appended(&watch.agent)?);

        // Until the collector is there, it finds more than was acknowledged since, under the same numbers.
        watch.collector.kill()?;
        std::fs::remove_dir_all(&state).map_err(StageError::system("lose the state"))?;
        copy(&older, &state)?;
        watch.agent.run()?;
        let all_are = |tills: &mut [Application], does: &str, state: &str| -> Result<(), StageError> {
            tills.iter_mut().try_for_each(|till| till.does(does).map(drop))?;
            tills
                .iter()
                .try_for_each(|it| watch.sees(CHECK, &format!("process:{}", it.name()), state, 60.s()).map(drop))
        };
        all_are(&mut tills, "descriptors 80", "warning")?;
        for _ in 0..6 {
            if urgent(&watch)? > known {
                break;
            }
            all_are(&mut tills, "release", "ok")?;
            all_are(&mut tills, "descriptors 80", "warning")?;
        }
        assert!(urgent(&watch)? > known, "{:?}, and {known} before", lanes(&watch.agent)?);
        watch.collector.serve()?;
        for name in TILLS {
            watch.fires(CHECK, &format!("process:{name}"), 60.s())?;
        }
        for till in &mut tills {
            till.does("release")?;
            watch.resolves(CHECK, &format!("process:{}", till.name()), 90.s())?;
        }
        let unique = before + drained(&mut watch.agent)? - common;
        let committed = watch.collector.counted("tickbird_records_committed")?;
        assert!(committed >= unique, "{unique} were appended in either life, {committed} are stored");
        watch.never_told(CLONED, "")?;
        assert!(watch.agent.log().contains("put back to an older copy"), "{}", watch.agent.log());
        assert!(watch.collector.counted(SUPERSEDED)? >= 1);
        assert_eq!(watch.collector.counted("tickbird_records_refused")?, 0);
        Ok(())
    });
}
