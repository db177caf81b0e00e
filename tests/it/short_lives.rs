//! Certificates that live for seconds or for two minutes, over many lives: not one record is missing, nothing comes late,
//! nobody is missed, and nobody is turned away.
//!
//! `TICKBIRD_CERTIFICATE_MINUTES=30` lets two-minute certificates follow one another for half an hour.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tickbird_tests::accounts::{are_whole, lanes, nothing_is_stuck};
use tickbird_tests::agent::{User, check};
use tickbird_tests::alone::alone_within;
use tickbird_tests::collector::{receiver, titles};
use tickbird_tests::process::{installed, run};
use tickbird_tests::wait::{Paced, paced};
use tickbird_tests::{Agent, Collector, Moody, Seconds, StageError, Webhook, until};

const HEARTBEAT: Duration = Duration::from_secs(10);

/// Prints what the store has of the lanes, the losses, and how late findings came, in microseconds.
const ASK_THE_STORE: &str = r#"
import json, sqlite3, sys
store = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
rows = lambda text: store.execute(text).fetchall()
print(json.dumps({
    "lanes": rows("SELECT lane, through FROM lanes ORDER BY lane"),
    "bodies": rows("SELECT first, through FROM bodies WHERE lane = 'bulk' ORDER BY id"),
    "losses": rows("SELECT count(*) FROM losses")[0][0],
    "findings": rows("SELECT count(*) FROM findings")[0][0],
    "latest": rows("SELECT max(received_at - observed_at) FROM findings")[0][0],
}))
"#;

/// The life of a certificate, and for how long.
fn form() -> (Duration, Duration) {
    let minutes = std::env::var("TICKBIRD_CERTIFICATE_MINUTES").ok().and_then(|it| it.parse::<u64>().ok());
    minutes.map_or((15.s(), 40.s()), |it| (120.s(), (60 * it).s()))
}

fn certificate(agent: &Agent) -> Result<Value, StageError> {
    Ok(agent.status()?["agent"]["collector"]["counts"]["certificate"].clone())
}

fn ask_the_store(collector: &Collector) -> Result<Value, StageError> {
    let mut command = std::process::Command::new(installed("/usr/bin/python3", "python3")?);
    let told = run(command.args(["-c", ASK_THE_STORE]).arg(collector.directory().join("store.db")))?;
    serde_json::from_str(&told).map_err(|_| StageError::Malformed { what: "the store".into(), found: told })
}

#[test]
fn over_many_lives_of_a_certificate_no_record_is_missing_or_late_and_nobody_is_turned_away() {
    alone_within(300.s() + form().1, |stage| {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        let (life, time) = form();
        collector.rewrite("agent = \"30d\"", &format!("agent = \"{}s\"", life.as_secs()))?;
        collector.configure(&receiver(&webhook))?;
        collector.serve()?;
        let load = Moody::start()?;
        let settings = [check("http.status", "hold = \"0s\""), load.endpoints(6)].concat();
        let mut agent = Agent::prepare(stage, &settings, User::Same)?;
        agent.enrol(&collector)?;
        agent.run()?;

        // Once a second is enough of questions.
        paced(1.s(), time, || {
            let held = certificate(&agent)?;
            let ends: Option<Timestamp> = held["ends"].as_str().and_then(|it| it.parse().ok());
            let lasts = ends.is_some_and(|it| it > Timestamp::now()) && held["last_error"].is_null();
            assert!(lasts, "the certificate lasts: {held}");
            Ok(Paced::More)
        })?;
        // Each is renewed at three fifths of its life at the earliest, and at two thirds.
        let renewals = certificate(&agent)?["renewals"].as_u64().unwrap_or_default();
        let least = time.as_secs_f64() / (life.as_secs_f64() * 2.0 / 3.0 + 2.0);
        assert!(renewals as f64 >= least.floor() && renewals >= 3, "{renewals} renewals, and {least} were due");
        assert_eq!(collector.counted("tickbird_certificates_renewed")?, renewals);
        load.recovers();
        nothing_is_stuck(&collector, &["http.status"])?;
        nobody_was_turned_away(&collector)?;
        agent.stop()?;
        until("the goodbye is heard", 10.s(), || {
            let agents = collector.items("agents", "").map_err(|error| error.to_string())?;
            if agents[0]["presence"] == "stopped" { Ok(()) } else { Err(agents[0].to_string()) }
        })?;
        are_whole(&collector, &[&agent])?;
        let incidents = collector.items("incidents", "")?;
        let of_agents = |it: &&Value| {
            let check = it["check"].as_str().unwrap_or_default();
            ["agent.missing", "agent.certificate", "agent.loss", "agent.excess", "agent.cloned_identity"]
                .contains(&check)
        };
        assert_eq!(incidents.iter().find(of_agents), None, "{}", titles(&incidents));

        // The store itself: one life of the buffer, every sequence of both lanes up to the last, and nothing later than a heartbeat.
        let store = ask_the_store(&collector)?;
        let [urgent, bulk] = lanes(&agent)?.map(|it| it["appended"].clone());
        assert_eq!(store["lanes"], serde_json::json!([["bulk", bulk], ["urgent", urgent]]));
        assert_eq!(store["losses"], 0);
        let bodies = store["bodies"].as_array().map(Vec::as_slice).unwrap_or_default();
        let in_turn = bodies.windows(2).all(|it| it[0][1].as_u64() < it[1][0].as_u64());
        assert!(in_turn && !bodies.is_empty(), "each summary once and in order: {bodies:?}");
        let [count, latest] = ["findings", "latest"].map(|it| store[it].as_u64().unwrap_or_default());
        let latest = Duration::from_micros(latest);
        println!(
            "{renewals} renewals of {life:?} in {time:?}; {urgent} urgent and {bulk} bulk records; {count} findings, received \
             {:.3} s after they were made at the latest",
            latest.as_secs_f64()
        );
        assert!(count >= time.as_secs() / 4, "there was much to tell: {count} findings");
        assert!(latest <= HEARTBEAT, "one came after {latest:?}");
        Ok(())
    });
}

fn nobody_was_turned_away(collector: &Collector) -> Result<(), StageError> {
    assert_eq!(collector.counted("tickbird_handshakes_failed")?, 0);
    let metrics = collector.get("/metrics")?.body;
    let refused = |line: &&str| {
        let is_request = line.starts_with("tickbird_ingest_requests_total{") && !line.contains("code=\"ok\"");
        is_request || line.starts_with("tickbird_connections_refused_total{")
    };
    assert_eq!(metrics.lines().find(refused), None);
    Ok(())
}
