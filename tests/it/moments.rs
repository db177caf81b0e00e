//! Kills one after another, or reloads, at every moment of a silence, of the wait for a group and of a repeat interval: people hear
//! what they would have heard, once, and no sooner.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tickbird_shared::Timestamp;
use tickbird_tests::chance::{Chance, number};
use tickbird_tests::collector::receiver;
use tickbird_tests::{Agent, Application, Collector, Seconds, Stage, StageError, Webhook, alone, shop, until};

const REPEAT: i64 = 10;
const ROUTE: &str = r#"
[route]
receiver = "ops"
group_by = ["check"]
group_wait = "6s"
group_interval = "4s"
repeat_interval = "10s"
"#;

/// What happens to the collector all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    Kill,
    Reload,
}

struct Shop {
    webhook: Webhook,
    collector: Collector,
    web: Application,
    agent: Agent,
    chance: Chance,
    disturbance: Disturbance,
    times: usize,
}

impl Shop {
    fn open(stage: &Stage, disturbance: Disturbance) -> Result<Self, StageError> {
        let seed = number("TICKBIRD_KILL_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
        println!("TICKBIRD_KILL_SEED={seed}");
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&(receiver(&webhook) + ROUTE))?;
        collector.serve()?;
        let (web, agent) = shop(stage, &collector, &["till", "shelf"])?;
        Ok(Self { webhook, collector, web, agent, chance: Chance::of(seed), disturbance, times: 0 })
    }

    /// Distinct messages about pages, in the order of their ids, which is that of their decisions.
    fn told(&self) -> BTreeMap<String, Value> {
        let mut told: BTreeMap<String, Value> = BTreeMap::new();
        for it in self.webhook.attempts().into_iter().filter(|it| it.body.contains("http.status")) {
            let before = told.entry(it.id.clone()).or_insert_with(|| it.json.clone());
            assert_eq!(*before, it.json, "one id, and two contents");
        }
        told
    }

    /// Disturbs the collector again and again until people have heard something.
    fn disturbed_until(&mut self, what: &str, is_heard: impl Fn(&[&Value]) -> bool) -> Result<(), StageError> {
        for _ in 0..150 {
            let told = self.told();
            if is_heard(&told.values().collect::<Vec<_>>()) {
                return Ok(());
            }
            // The moment is what is left to chance.
            std::thread::sleep(Duration::from_millis(300 + self.chance.below(900)));
            match self.disturbance {
                Disturbance::Kill => {
                    self.collector.kill()?;
                    self.collector.start()?;
                }
                Disturbance::Reload => {
                    let said = self.collector.reload()?;
                    assert!(said.contains("was read again"), "{said}");
                }
            }
            self.times += 1;
        }
        let told: Vec<_> = self.told().into_values().map(|it| it["type"].clone()).collect();
        panic!("never heard {what}: {told:?}");
    }
}

/// Pages of which a message says that they changed so.
fn changed<'a>(message: &'a Value, change: &str) -> Vec<&'a str> {
    let members = message["incidents"].as_array().into_iter().flatten().filter(|it| it["change"] == change);
    members.filter_map(|it| it["incident"]["target"].as_str()?.rsplit('/').next()).collect()
}

fn says(change: &'static str, page: &'static str) -> impl Fn(&[&Value]) -> bool {
    move |told| told.iter().any(|it| changed(it, change).contains(&page))
}

fn decided_at(message: &Value) -> Timestamp {
    message["decided_at"].as_str().and_then(|it| it.parse().ok()).expect("a moment")
}

/// Two pages fail, one of them in a silence, and are well again.
fn a_story(stage: &Stage, disturbance: Disturbance) -> Result<(), StageError> {
    let mut shop = Shop::open(stage, disturbance)?;
    let silence = ["silence", "add", "--reason", "it moves", "--author", "anna", "--for", "25s", "target=~\".*/till\""];
    shop.collector.command(&silence)?;
    let silent_until = Timestamp::now() + Duration::from_secs(24);
    until("the collector has taken it over", 20.s(), || match shop.collector.log() {
        log if log.contains("silences are taken over") => Ok(()),
        log => Err(log),
    })?;
    shop.web.does("status 500")?;
    shop.disturbed_until("that the shelf fails", says("incident.firing", "shelf"))?;
    shop.disturbed_until("that the till fails", says("incident.firing", "till"))?;
    let is_repeated = |it: &Value| it["type"] == "group.repeated" && changed(it, "unchanged").len() == 2;
    shop.disturbed_until("both again, twice", |told| told.iter().filter(|it| is_repeated(it)).count() >= 2)?;
    shop.web.does("status 200")?;
    shop.disturbed_until("that the shelf is well", says("incident.resolved", "shelf"))?;
    shop.disturbed_until("that the till is well", says("incident.resolved", "till"))?;
    shop.agent.stop()?;
    shop.collector.stop()?;

    let told: Vec<_> = shop.told().into_values().collect();
    let kinds: Vec<_> = told.iter().map(|it| it["type"].as_str().unwrap_or_default()).collect();
    for page in ["till", "shelf"] {
        for change in ["incident.firing", "incident.resolved"] {
            let times = told.iter().filter(|it| changed(it, change).contains(&page)).count();
            assert_eq!(times, 1, "{change} of {page} after {} times {disturbance:?}: {kinds:?}", shop.times);
        }
    }
    let of_till = told.iter().find(|it| changed(it, "incident.firing").contains(&"till")).expect("it is told");
    assert!(decided_at(of_till) >= silent_until, "within its silence");
    for (before, it) in told.iter().zip(&told[1..]).filter(|(_, it)| it["type"] == "group.repeated") {
        let apart = decided_at(it).duration_since(decided_at(before));
        assert!(apart.as_secs() >= REPEAT - 1, "told again after {apart:?}: {kinds:?}");
    }
    // All of it takes a minute at least.
    assert!(shop.times >= 20, "{} times", shop.times);
    Ok(())
}

#[test]
fn kills_at_every_moment_change_nothing_that_a_person_could_see() {
    alone(|stage| a_story(stage, Disturbance::Kill));
}

#[test]
fn reloads_at_every_moment_change_nothing_that_a_person_could_see() {
    alone(|stage| a_story(stage, Disturbance::Reload));
}
