//! A path that breaks connections in the middle of a message, and one that is so long that each answer takes a second: what
//! was said on it is there once, and data flows again within a heartbeat.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tickbird_tests::accounts::{are_whole, nothing_is_stuck};
use tickbird_tests::agent::{User, check};
use tickbird_tests::collector::titles;
use tickbird_tests::wait::throughout;
use tickbird_tests::{Agent, Collector, Moody, Relay, Seconds, StageError, Webhook, Wire, alone, until};

const HEARTBEAT: SignedDuration = SignedDuration::from_secs(10);
/// Bytes of a message that pass before the reset: none of a batch, a part of it, and a part of the next.
const PARTS: [u64; 4] = [0, 20, 300, 2_000];

/// When the collector received its newest finding, by its own record.
fn last_received(collector: &Collector) -> Result<Option<Timestamp>, String> {
    let answer = collector.get("/v1/findings?limit=1").map_err(|error| error.to_string())?;
    let page = answer.json().map_err(|error| error.to_string())?;
    Ok(page["items"][0]["received_at"].as_str().and_then(|it| it.parse().ok()))
}

/// Waits until the collector received a finding after this moment; when it did.
fn received_after(collector: &Collector, moment: Timestamp) -> Result<Timestamp, StageError> {
    until("findings arrive", 60.s(), || match last_received(collector)? {
        Some(at) if at > moment => Ok(at),
        other => Err(format!("the last at {other:?}, and wanted after {moment}")),
    })
}

#[test]
fn resets_in_mid_body_and_a_second_of_delay_lose_nothing_and_hold_nothing_up() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let collector = Collector::serving(stage, &webhook)?;
        let relay = Relay::start(collector.agents().parse().expect("the stage wrote the address"))?;
        let load = Moody::start()?;
        let mut settings = format!("[collector]\nurl = \"{}\"\n", relay.url());
        settings += &check("http.status", "hold = \"0s\"");
        settings += &load.endpoints(16);
        let mut agent = Agent::prepare(stage, &settings, User::Same)?;
        agent.enrol(&collector)?;
        agent.run()?;
        received_after(&collector, Timestamp::now())?;

        let mut slowest = SignedDuration::ZERO;
        for part in PARTS {
            for wire in [Wire::ResetsRequest(part), Wire::ResetsAnswer(part.min(100))] {
                relay.becomes(wire);
                until(format!("{wire:?} comes to it"), 30.s(), || match relay.resets() {
                    0 => Err("not yet".to_owned()),
                    _ => Ok(()),
                })?;
                relay.becomes(Wire::Whole);
                let end = Timestamp::now();
                let after = received_after(&collector, end)?.duration_since(end);
                assert!(after <= HEARTBEAT, "{wire:?}: {after:?}");
                slowest = slowest.max(after);
            }
        }
        println!("after {} resets data flowed within {:.1} s", PARTS.len() * 2, slowest.as_secs_f64());
        let repeated = collector.counted("tickbird_records_duplicate")?;
        assert!(repeated > 0, "an answer that was half sent makes its batch come again");

        relay.becomes(Wire::Late(Duration::from_millis(500)));
        let (mut last, mut longest, mut batches) = (Timestamp::now(), SignedDuration::ZERO, 0);
        throughout("data flows over a long path", 15.s(), || {
            if let Some(at) = last_received(&collector)?.filter(|at| *at > last) {
                batches += 1;
                longest = longest.max(at.duration_since(last));
                last = at;
            }
            if Timestamp::now().duration_since(last) <= HEARTBEAT { Ok(()) } else { Err(format!("none since {last}")) }
        })?;
        println!(
            "over a path of a second {batches} batches came in 15 s, {:.1} s apart at most",
            longest.as_secs_f64()
        );
        assert!(batches >= 5, "{batches} batches in 15 s, each of which takes a second");
        relay.becomes(Wire::Whole);

        load.recovers();
        nothing_is_stuck(&collector, &["http.status"])?;
        let mut told = collector.items("incidents", "")?;
        told.retain(|it| it["check"].as_str().is_some_and(|it| it.starts_with("agent.")));
        told.retain(|it| !matches!(it["check"].as_str(), Some("agent.slow" | "agent.blind")));
        assert!(told.is_empty(), "{}", titles(&told));
        agent.stop()?;
        are_whole(&collector, &[&agent])
    });
}
