//! Canaries of real agents on their way to a webhook: how long they need, and what is told when they do not come.

use serde_json::Value;
use tickbird_tests::agent::User;
use tickbird_tests::collector::{receiver, titles};
use tickbird_tests::wait::throughout;
use tickbird_tests::webhook::{Manner, Message, firing, resolved};
use tickbird_tests::{Agent, Collector, Disk, Seconds, Stage, StageError, Webhook, alone, until};

const MISSING: &str = "agent.canary_missing";
const LATE: &str = "collector.canary";
const EACH_SECOND: &str = "[canary]\ninterval = \"1s\"\n";
const MIB: u64 = 1 << 20;

/// One receiver for people, and one that waits for canaries.
fn waiting(stage: &Stage, ops: &Webhook, switch: &Webhook, missing_after: &str) -> Result<Collector, StageError> {
    let mut collector = Collector::init(stage)?;
    let second = receiver(switch).replace("\"ops\"", "\"switch\"");
    let canary = format!("\n[canary]\nreceiver = \"switch\"\nevery = \"1s\"\nmissing_after = \"{missing_after}\"\n");
    let own = "\n[own]\nreceiver_hold = \"3s\"\n";
    collector.configure(&format!("{own}{}{second}{canary}", receiver(ops)))?;
    collector.serve()?;
    Ok(collector)
}

/// A message in which canaries of so many agents came.
fn canaries(came: u64) -> impl Fn(&Message) -> bool {
    move |it| it.kind() == "canary" && it.json["incident"]["evidence"]["agents"]["came"] == came
}

/// How often one was taken, from `/metrics`.
fn taken(collector: &Collector) -> Result<u64, StageError> {
    let text = collector.get("/metrics")?.body;
    let line = text.lines().find_map(|it| it.strip_prefix("tickbird_canary_latency_seconds_count "));
    let count = line.and_then(|it| it.trim().parse().ok());
    count.ok_or(StageError::Malformed { what: "the count of canaries in /metrics".into(), found: text })
}

fn goes_on(collector: &Collector, from: u64) -> Result<(), StageError> {
    until("further canaries are taken", 60.s(), || {
        let taken = taken(collector).map_err(|error| error.to_string())?;
        if taken > from { Ok(()) } else { Err(format!("{taken}")) }
    })
}

/// No incident of canaries fires for a while, and none did.
fn nobody_is_missed(collector: &Collector, seconds: u64) -> Result<(), StageError> {
    throughout("no canary is missed", seconds.s(), || {
        let mut found = collector.items("incidents", "").map_err(|error| error.to_string())?;
        found.retain(|it| it["check"] == MISSING || it["check"] == LATE);
        if found.is_empty() { Ok(()) } else { Err(titles(&found)) }
    })
}

fn of_agent(collector: &Collector) -> Result<Value, StageError> {
    Ok(collector.items("agents", "")?.first().map(|it| it["canary"].clone()).unwrap_or_default())
}

#[test]
fn a_canary_goes_from_an_agent_to_the_receiver_and_its_latency_is_known() {
    alone(|stage| {
        let (ops, switch) = (Webhook::start(stage)?, Webhook::start(stage)?);
        let mut collector = waiting(stage, &ops, &switch, "8s")?;
        switch.hears("that the collector works, before there is an agent", 30.s(), canaries(0))?;
        let mut agent = Agent::running(stage, &collector, EACH_SECOND)?;
        let told = switch.hears("a canary of the agent", 30.s(), canaries(1))?;
        assert_eq!(told.json["incident"]["check"], "agent.canary", "{}", told.body);
        goes_on(&collector, 3)?;
        let canary = of_agent(&collector)?;
        assert_eq!(canary["missing"], false, "{canary}");
        assert!(canary["latency_ms"].as_u64().is_some_and(|it| it < 5_000), "{canary}");
        let metrics = collector.get("/metrics")?.body;
        for line in ["tickbird_canary_agents{state=\"taken\"} 1", "tickbird_canary_newest_seconds{quantile=\"1\"}"] {
            assert!(metrics.contains(line), "{line} in {metrics}");
        }
        assert_eq!(collector.items("findings", "check=agent.canary")?.len(), 0, "they are no history");

        // Longer than what is missed, and nobody listens meanwhile; what waited of the old life is out of the way.
        collector.kill()?;
        throughout("nobody serves", 10.s(), || Ok(()))?;
        collector.serve()?;
        nobody_is_missed(&collector, 12)?;
        goes_on(&collector, 3)?;

        // Who is stopped is missing, and that is all that is said.
        agent.held_up(42.s())?;
        ops.hears("that the agent is missing", 10.s(), firing("agent.missing"))?;
        ops.hears("that it is back", 30.s(), resolved("agent.missing"))?;
        goes_on(&collector, taken(&collector)?)?;
        nobody_is_missed(&collector, 3)?;

        // Switched off, it says so.
        agent.configure("[canary]\nenabled = false\n")?;
        agent.reload()?;
        until("none is waited for", 20.s(), || {
            let canary = of_agent(&collector).map_err(|error| error.to_string())?;
            if canary.is_null() { Ok(()) } else { Err(canary.to_string()) }
        })?;
        nobody_is_missed(&collector, 12)?;
        agent.configure(EACH_SECOND)?;
        agent.stop()?;
        agent.run()?;
        goes_on(&collector, taken(&collector)?)?;
        agent.stop()?;
        nobody_is_missed(&collector, 12)?;
        assert!(ops.heard()?.iter().all(|it| it.kind() != "canary"), "only one receiver waits for them");
        Ok(())
    });
}

#[test]
fn an_agent_that_is_heard_and_whose_findings_do_not_come_is_told_and_so_is_their_return() {
    alone(|stage| {
        let (ops, switch) = (Webhook::start(stage)?, Webhook::start(stage)?);
        let collector = waiting(stage, &ops, &switch, "8s")?;
        let mut agent = Agent::prepare(stage, EACH_SECOND, User::Same)?;
        let disk = Disk::mount(&agent.state_directory(), 160 * MIB)?;
        agent.enrol(&collector)?;
        agent.run()?;
        // It never sends one, and its disk is well.
        let _silent = Agent::running(stage, &collector, "[canary]\nenabled = false\n")?;
        switch.hears("a canary", 30.s(), canaries(1))?;
        nobody_is_missed(&collector, 10)?;

        // Its buffer takes nothing but what is critical; it goes on being heard.
        disk.fill(0)?;
        let told = ops.hears("that no canary comes", 60.s(), firing(MISSING))?;
        let incident = &told.json["incident"];
        assert_eq!(incident["evidence"]["stuck"], "not arrived from the agent", "{incident}");
        let is_so = |it: &Message| it.kind() == "canary" && it.json["incident"]["evidence"]["agents"]["missing"] == 1;
        let named = switch.hears("who is missed", 20.s(), is_so)?;
        assert_eq!(
            named.json["incident"]["evidence"]["missing"][0]["agent"], incident["agent"]["id"],
            "{}",
            named.body
        );
        disk.free()?;
        ops.hears("that they come again", 60.s(), resolved(MISSING))?;
        let of_canaries = |it: &&Message| it.check() == MISSING;
        let heard = ops.heard()?;
        let kinds: Vec<_> = heard.iter().filter(of_canaries).map(Message::kind).collect();
        assert_eq!(kinds, ["incident.firing", "incident.resolved"], "of one agent, once");
        Ok(())
    });
}

#[test]
fn a_receiver_of_canaries_that_is_away_is_one_incident_and_no_agent_is_missed() {
    alone(|stage| {
        let (ops, switch) = (Webhook::start(stage)?, Webhook::start(stage)?);
        let mut collector = waiting(stage, &ops, &switch, "40s")?;
        let _agent = Agent::running(stage, &collector, EACH_SECOND)?;
        switch.hears("a canary", 30.s(), canaries(1))?;
        switch.becomes(Manner::Fails);
        let told = ops.hears("that the receiver is away", 60.s(), firing("collector.receiver"))?;
        assert_eq!(told.json["incident"]["target"], "receiver:switch", "{}", told.body);
        nobody_is_missed(&collector, 45)?;
        collector.kill()?;
        collector.serve()?;
        let before = switch.heard()?.len();
        switch.becomes(Manner::Accepts);
        ops.hears("that it is back", 120.s(), resolved("collector.receiver"))?;
        goes_on(&collector, 2)?;
        // What was superseded meanwhile is never told.
        let told: Vec<_> = switch.heard()?.into_iter().skip(before).collect();
        assert!(told.len() < 40, "{} messages", told.len());
        nobody_is_missed(&collector, 3)
    });
}
