//! Clocks that are set by minutes and hours while agent and collector run, on either side, forward, back and right again.
//!
//! What fires goes on, what waits for its hold waits as long as ever, what waits for its receiver is told when it is back,
//! nobody is missed, and nothing is lost. Only the clock itself is told of.

use std::time::{Duration, Instant};

use serde_json::Value;
use tickbird_tests::accounts::{are_whole, nothing_is_stuck};
use tickbird_tests::agent::{User, check};
use tickbird_tests::collector::{receiver, titles};
use tickbird_tests::webhook::{Manner, Message};
use tickbird_tests::{Agent, Application, Clock, Collector, Seconds, Stage, StageError, Webhook, alone, until};

const HOUR: i64 = 3600;
const MINUTES: i64 = 600;
/// How long a status counts before it is a fault.
const HOLD: Duration = Duration::from_secs(4);
/// Between the end of the hold and the receiver: a look, and what an unoptimised build takes beside others.
const AFTER: Duration = Duration::from_secs(5);

/// Whose clock is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Agent,
    Collector,
}

/// Who is set by how much, and how long certificates live there.
const COURSES: [(Side, i64, &str); 5] = [
    // Nobody's clock is set: of these nothing is told.
    (Side::Agent, 0, "30d"),
    // Shorter than the step: by one of the clocks each has ended when it comes, or has not begun.
    (Side::Agent, HOUR, "20s"),
    (Side::Agent, MINUTES, "30d"),
    (Side::Collector, HOUR, "20s"),
    (Side::Collector, MINUTES, "30d"),
];

/// An agent and its collector, one of which goes by a clock that is set.
struct Pair {
    side: Side,
    by: i64,
    clock: Clock,
    webhook: Webhook,
    collector: Collector,
    agent: Agent,
}

impl Pair {
    fn begin(stage: &Stage, (side, by, life): (Side, i64, &str), endpoints: &str) -> Result<Self, StageError> {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.rewrite("agent = \"30d\"", &format!("agent = \"{life}\""))?;
        collector.configure(&receiver(&webhook))?;
        let settings = check("http.status", &format!("hold = \"{}s\"", HOLD.as_secs())) + endpoints;
        let mut agent = Agent::prepare(stage, &settings, User::Same)?;
        let clock = Clock::right(&match side {
            Side::Agent => agent.state_directory(),
            Side::Collector => collector.directory().to_owned(),
        })?;
        for (variable, value) in clock.environment() {
            match side {
                Side::Agent => agent.knows(variable, value),
                Side::Collector => collector.knows(variable, value),
            }
        }
        collector.serve()?;
        agent.enrol(&collector)?;
        agent.run()?;
        Ok(Self { side, by, clock, webhook, collector, agent })
    }

    fn steps(&self, way: i64) -> Result<(), StageError> {
        self.clock.is_ahead_by(way * self.by)?;
        if self.side == Side::Collector {
            self.webhook.is_ahead_by(way * self.by);
        }
        Ok(())
    }

    /// How often the receiver has heard this of the target.
    fn heard(&self, kind: &str, target: &str) -> Result<Vec<Message>, StageError> {
        let mut heard = self.webhook.heard()?;
        heard.retain(|it| it.kind() == kind && it.json["incident"]["target"].as_str().is_some_and(|it| it == target));
        Ok(heard)
    }

    /// Waits until it has heard this so many times; when the last one came.
    fn hears(&self, kind: &str, target: &str, times: usize) -> Result<Instant, StageError> {
        let what = format!("{:?} by {}: {kind} {target} is told {times} times", self.side, self.by);
        until(what, 60.s(), || {
            let heard = self.heard(kind, target).map_err(|error| error.to_string())?;
            match heard.last() {
                Some(it) if heard.len() == times => Ok(it.at),
                _ => Err(format!("{} times; {:?}", heard.len(), self.agent.status().map(|it| it["findings"].clone()))),
            }
        })
    }

    /// Waits until the agent says how far apart the clocks are, or nothing when they agree, and the collector knows it.
    fn tells_the_skew(&self, way: i64) -> Result<(), StageError> {
        let wanted = (way * self.by).unsigned_abs() as f64;
        until(format!("{:?} by {}: a skew of {wanted} s is told", self.side, self.by), 30.s(), || {
            let status = self.agent.status().map_err(|error| error.to_string())?;
            let findings = status["findings"].as_array().cloned().unwrap_or_default();
            let told = findings.iter().filter(|it| it["check"] == "agent.clock");
            let skews: Vec<f64> = told.filter_map(|it| it["evidence"]["skew_seconds"].as_f64()).collect();
            let is_told = match skews[..] {
                [skew] => wanted > 0.0 && (skew - wanted).abs() < 5.0,
                _ => wanted == 0.0 && skews.is_empty(),
            };
            if is_told { Ok(()) } else { Err(format!("{skews:?}")) }
        })?;
        until(format!("{:?} by {}: people know of a skew of {wanted} s", self.side, self.by), 30.s(), || {
            let told = self.collector.items("incidents", "").map_err(|error| error.to_string())?;
            let of_skew =
                |it: &&Value| it["check"] == "agent.clock" && it["evidence"]["skew_seconds"].as_f64().is_some();
            let firing = told.iter().filter(of_skew).filter(|it| it["status"] == "firing").count();
            let is_known = told.iter().any(|it| of_skew(&it));
            let is_as_it_is = firing == usize::from(wanted > 0.0) && is_known == (self.by != 0);
            if is_as_it_is { Ok(()) } else { Err(titles(&told)) }
        })
    }

    fn firing(&self, target: &str) -> Result<bool, StageError> {
        let firing = self.collector.items("incidents", "status=firing")?;
        Ok(firing.iter().any(|it| it["check"] == "http.status" && it["target"] == target))
    }

    /// Everything is as it is without a step, but for what is said of the clocks.
    fn ends(&mut self, shop: &str) -> Result<(), StageError> {
        nothing_is_stuck(&self.collector, &["http.status"])?;
        let told = self.collector.items("incidents", "")?;
        let is_due = |it: &Value| {
            let check = it["check"].as_str().unwrap_or_default();
            // A certificate that lives for less than a step has ended by one of the clocks.
            let is_of_the_step = self.by != 0 && check == "agent.clock";
            check == "http.status" || is_of_the_step || (self.by == HOUR && check == "agent.certificate")
        };
        let others: Vec<Value> = told.into_iter().filter(|it| !is_due(it) && it["severity"] != "info").collect();
        assert!(others.is_empty(), "{:?} by {}: {}", self.side, self.by, titles(&others));
        // In the order of their sequences, whatever times are in them.
        let mut found = self.collector.items("findings", "check=http.status")?;
        found.retain(|it| it["target"] == shop && it["change"] != "updated");
        let changes: Vec<&str> = found.iter().rev().filter_map(|it| it["change"].as_str()).collect();
        assert_eq!(changes, ["began", "cleared"].repeat(3), "{:?} by {}", self.side, self.by);
        let renewals = &self.agent.status()?["agent"]["collector"]["counts"]["certificate"]["renewals"];
        assert!(renewals.as_u64() <= Some(8), "{renewals} renewals");
        self.agent.stop()?;
        are_whole(&self.collector, &[&self.agent])
    }
}

#[test]
fn clocks_that_are_set_on_either_side_open_resolve_delay_and_lose_nothing_and_are_told() {
    alone(|stage| {
        let (mut bad, mut shop) = (Application::web(stage, "bad", 0)?, Application::web(stage, "shop", 0)?);
        let section = |it: &Application| format!("[[endpoint]]\nurl = \"{}\"\ninterval = \"1s\"\n", it.url());
        let endpoints = [section(&bad), section(&shop)].concat();
        let target = |it: &Application| format!("endpoint:{}", it.url());
        let (of_bad, of_shop) = (target(&bad), target(&shop));
        bad.does("status 500")?;
        let pairs = COURSES.into_iter().map(|course| Pair::begin(stage, course, &endpoints));
        let mut pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        for pair in &pairs {
            pair.hears("incident.firing", &of_bad, 1)?;
        }

        for (round, way) in [1, -1, 0].into_iter().enumerate() {
            for pair in &pairs {
                pair.steps(way)?;
                pair.webhook.becomes(Manner::Accepts);
            }
            shop.does("status 500")?;
            let began = Instant::now();
            for pair in &pairs {
                let after = pair.hears("incident.firing", &of_shop, round + 1)?.duration_since(began);
                let (side, by) = (pair.side, way * pair.by);
                println!("{side:?} by {by} s: told after {:.1} s", after.as_secs_f64());
                assert!(after + 1.s() >= HOLD && after <= HOLD + AFTER, "{side:?} by {by} s: told after {after:?}");
                // What could not be delivered before this step is.
                if round > 0 {
                    pair.hears("incident.resolved", &of_shop, round)?;
                }
                pair.tells_the_skew(way)?;
            }
            for pair in &pairs {
                pair.webhook.becomes(Manner::Fails);
            }
            shop.does("status 200")?;
            for pair in &pairs {
                until("it is over, and cannot be told", 30.s(), || {
                    let firing = pair.firing(&of_shop).map_err(|error| error.to_string())?;
                    let attempts = pair.webhook.attempts();
                    let tried = attempts.iter().any(|it| !it.accepted && it.kind() == "incident.resolved");
                    if tried && !firing { Ok(()) } else { Err(format!("firing: {firing}, tried: {tried}")) }
                })?;
                assert!(pair.firing(&of_bad)?, "what is bad stays so: {:?} by {}", pair.side, way * pair.by);
                assert!(pair.heard("incident.resolved", &of_bad)?.is_empty());
            }
        }
        for pair in &pairs {
            pair.webhook.becomes(Manner::Accepts);
        }
        bad.does("status 200")?;
        for pair in &mut pairs {
            pair.hears("incident.resolved", &of_shop, 3)?;
            pair.hears("incident.resolved", &of_bad, 1)?;
            pair.hears("incident.firing", &of_bad, 1)?;
            pair.ends(&of_shop)?;
        }
        Ok(())
    });
}
