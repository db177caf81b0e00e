//! Flapping: what goes and comes again and again is told once that it does, and its end once; what returns as rarely as anything
//! may is told each time.

use serde_json::Value;
use tickbird_tests::collector::receiver;
use tickbird_tests::webhook::{Message, titles};
use tickbird_tests::{Agent, Application, Collector, Seconds, Stage, StageError, Webhook, alone, until};

const SETTINGS: &str = "[flapping]\nreturns = 3\nwithin = \"10m\"\ncalm = \"20s\"\n";

/// Two applications with a page each, who looks at them, and whom the collector tells.
struct Shops {
    webhook: Webhook,
    collector: Collector,
    web: [Application; 2],
    agent: Agent,
}

impl Shops {
    fn open(stage: &Stage) -> Result<Self, StageError> {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&(receiver(&webhook) + SETTINGS))?;
        collector.serve()?;
        let web = [Application::web(stage, "moody", 0)?, Application::web(stage, "steady", 0)?];
        let pages = web.each_ref().map(|it| it.url().replace("/health", "/till"));
        let agent = Agent::asking(stage, &collector, &pages.each_ref().map(String::as_str))?;
        Ok(Self { webhook, collector, web, agent })
    }

    /// The incident of an application's page when it is as asked for.
    fn incident(&self, at: usize, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value, StageError> {
        let page = self.web[at].url().replace("/health", "/till");
        until(format!("the page of {at} is {what}"), 60.s(), || {
            let found = self.collector.items("incidents", "check=http.status").map_err(|error| error.to_string())?;
            let of_page = |it: &Value| it["target"].as_str().is_some_and(|it| it.ends_with(&page));
            let said = format!("{found:?}");
            found.into_iter().find(|it| of_page(it) && is_it(it)).ok_or(said)
        })
    }

    /// Fails, for the time that is its number.
    fn fails(&mut self, at: usize, times: u64) -> Result<Value, StageError> {
        self.web[at].does("status 500")?;
        let is_there = |it: &Value| it["status"] == "firing" && it["flapping"]["calm_since"].is_null();
        self.incident(at, "there", |it| is_there(it) && it["occurrences"] == times)
    }

    /// Is well, for now or for good.
    fn recovers(&mut self, at: usize) -> Result<Value, StageError> {
        self.web[at].does("status 200")?;
        self.incident(at, "gone", |it| it["status"] == "resolved" || !it["flapping"]["calm_since"].is_null())
    }

    /// What was told of an incident, without changes of its evidence.
    fn told(&self, incident: &Value) -> Vec<Message> {
        let is_of = |it: &Message| it.json["incident"]["id"] == incident["id"] && it.kind() != "incident.updated";
        self.webhook.attempts().into_iter().filter(is_of).collect()
    }
}

#[test]
fn what_flaps_is_told_once_and_its_end_once_also_through_a_kill() {
    alone(|stage| {
        let mut shops = Shops::open(stage)?;
        for times in 1..=5 {
            let incident = shops.fails(0, times)?;
            assert_eq!(incident["flapping"].is_null(), times < 4, "{incident}");
            // The twin returns twice.
            if times <= 3 {
                shops.fails(1, times)?;
                shops.recovers(1)?;
            }
            shops.recovers(0)?;
        }
        let incident = shops.incident(0, "calm", |it| !it["flapping"]["calm_since"].is_null())?;
        shops.collector.kill()?;
        shops.collector.serve()?;
        let over = shops.incident(0, "over", |it| it["status"] == "resolved");
        // Agents are heard for a minute before something is over because nobody said otherwise.
        let over = over.or_else(|_| shops.incident(0, "over", |it| it["status"] == "resolved"))?;
        assert_eq!((&over["resolved_reason"], &over["id"]), (&"calm".into(), &incident["id"]));
        let end = |it: &Message| it.kind() == "incident.resolved" && it.json["incident"]["resolved_reason"] == "calm";
        shops.webhook.hears("the end of what flapped", 60.s(), end)?;
        let told = shops.told(&over);
        let kinds: Vec<_> = told.iter().map(|it| it.kind().trim_start_matches("incident.")).collect();
        assert_eq!(kinds, ["firing", "resolved"].repeat(4), "{}", titles(&told));
        let flaps = &told[6].json;
        let said = flaps["reason"].as_str().unwrap_or_default();
        assert!(said.contains("it flaps: 3 returns within 10m, and is over when it stays away for 20s"), "{said}");
        assert!(!flaps["incident"]["flapping"]["since"].is_null(), "{flaps}");

        let steady = shops.incident(1, "over", |it| it["status"] == "resolved")?;
        let kinds: Vec<_> = shops.told(&steady).iter().map(|it| it.kind().to_owned()).collect();
        assert_eq!(kinds, ["incident.firing", "incident.resolved"].repeat(3), "each time");

        let explained = shops.collector.command(&["explain", over["id"].as_str().unwrap_or_default()])?;
        for line in ["ops not told of flapped: gone for now, cleared", "ops not told of flapped: back, time 5"] {
            assert!(explained.contains(line), "{explained}");
        }
        shops.agent.stop().map(drop)
    });
}
