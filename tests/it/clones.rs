//! One identity on two machines is told and harms nobody; one machine with a changing past is no two.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tickbird_tests::agent::{User, app};
use tickbird_tests::https::Client;
use tickbird_tests::process::run;
use tickbird_tests::webhook::firing;
use tickbird_tests::{Agent, Application, Seconds, Stage, StageError, Watch, alone, until};

const CHECK: &str = "fd.limit";
const CLONED: &str = "agent.cloned_identity";

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
        Ok(())
    });
}
