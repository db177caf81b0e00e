//! A path that breaks connections in the middle of a message, and one that is so long that each answer takes a second: what
//! was said on it is there once, and data flows again within a heartbeat. The agent is on a host of its own; the path begins
//! where it leaves that.
//!
//! `TICKBIRD_CUT_SECONDS` makes it break connections for so long, and then as long a path for as long again.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tickbird_tests::accounts::{are_whole, nothing_is_stuck};
use tickbird_tests::agent::{User, check};
use tickbird_tests::alone::alone_within;
use tickbird_tests::collector::{receiver, titles};
use tickbird_tests::report::report;
use tickbird_tests::wait::throughout;
use tickbird_tests::{Agent, Collector, Far, Moody, Relay, Seconds, StageError, Webhook, Wire, until};

const HEARTBEAT: SignedDuration = SignedDuration::from_secs(10);
/// Bytes of a message that pass before the reset: none of a batch, a part of it, and a part of the next.
const PARTS: [u64; 4] = [0, 20, 300, 2_000];

/// For how long somebody wants it.
fn asked() -> Option<Duration> {
    std::env::var("TICKBIRD_CUT_SECONDS").ok()?.parse().ok().map(Duration::from_secs)
}

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
    let (breaks, late) = (asked().unwrap_or_default(), asked().unwrap_or(15.s()));
    alone_within(300.s() + breaks + late, |stage| {
        let far = Far::begin(stage, 1)?;
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init_with(stage, &["--name", &far.near()])?;
        collector.configure(&receiver(&webhook))?;
        collector.serve()?;
        let target = collector.agents().parse().expect("the stage wrote the address");
        let relay = Relay::start_at(&far.near(), target)?;
        let load = Moody::start_on(&far)?;
        let mut settings = format!("[collector]\nurl = \"{}\"\n", relay.url());
        settings += &check("http.status", "hold = \"0s\"");
        settings += &load.endpoints(16);
        let mut agent = Agent::prepare(stage, &settings, User::Same)?.on(&far);
        agent.enrol(&collector)?;
        agent.run()?;
        received_after(&collector, Timestamp::now())?;

        let (mut slowest, mut resets, began) = (SignedDuration::ZERO, 0, Instant::now());
        while resets == 0 || began.elapsed() < breaks {
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
                    resets += 1;
                }
            }
        }
        report(&format!("after each of {resets} resets data flowed within {:.1} s", slowest.as_secs_f64()))?;
        let repeated = collector.counted("tickbird_records_duplicate")?;
        assert!(repeated > 0, "an answer that was half sent makes its batch come again");

        relay.becomes(Wire::Late(Duration::from_millis(500)));
        let (mut last, mut longest, mut batches) = (Timestamp::now(), SignedDuration::ZERO, 0);
        throughout("data flows over a long path", late, || {
            if let Some(at) = last_received(&collector)?.filter(|at| *at > last) {
                batches += 1;
                longest = longest.max(at.duration_since(last));
                last = at;
            }
            if Timestamp::now().duration_since(last) <= HEARTBEAT { Ok(()) } else { Err(format!("none since {last}")) }
        })?;
        let (time, apart) = (late.as_secs(), longest.as_secs_f64());
        report(&format!("over a path of a second {batches} batches came in {time} s, {apart:.1} s apart at most"))?;
        assert!(batches * 3 >= time, "{batches} batches in {time} s, each of which takes a second");
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
