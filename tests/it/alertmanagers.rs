//! A real Alertmanager: it holds what fires, through its restarts and the collector's, and nothing else.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tickbird_tests::alertmanager::Alertmanager;
use tickbird_tests::simulated::RECORDS;
use tickbird_tests::wait::throughout;
use tickbird_tests::{Collector, Seconds, Simulated, Stage, StageError, alone, until};

const LEAK: &str = "pool.leak";

/// An Alertmanager, a collector that tells it of everything each two seconds, and an agent that says what it is told to.
struct Scene {
    alertmanager: Alertmanager,
    collector: Collector,
    agent: Simulated,
    next: usize,
}

impl Scene {
    fn open(stage: &Stage) -> Result<Self, StageError> {
        Self::refreshing(stage, "2s", "")
    }

    fn refreshing(stage: &Stage, every: &str, settings: &str) -> Result<Self, StageError> {
        let alertmanager = Alertmanager::start(stage)?;
        let mut collector = Collector::init(stage)?;
        let settings = format!(
            "\n[[receiver]]\nname = \"am\"\nalertmanager.url = \"{}\"\nalertmanager.refresh = \"{every}\"\n{settings}",
            alertmanager.url()
        );
        collector.configure(&settings)?;
        collector.serve()?;
        let agent = Simulated::enrolled(stage, &collector, collector.enrolment_token())?;
        Ok(Self { alertmanager, collector, agent, next: 1 })
    }

    fn says(&mut self, targets: &[String], change: &str, severity: &str) -> Result<(), StageError> {
        let of = |target: &String| {
            let mut record = self.agent.finding(target, &json!({ "pid": 4121 }));
            let status = if change == "cleared" { "resolved" } else { "firing" };
            for (key, value) in [("change", change), ("severity", severity), ("status", status)] {
                record["finding"][key] = value.into();
            }
            record
        };
        let records: Vec<Value> = targets.iter().map(of).collect();
        let body = self.agent.batch("urgent", self.next as u64, &records).to_string();
        let answer = self.agent.connect()?.ask("POST", RECORDS, "", body.as_bytes())?;
        self.next += records.len();
        assert_eq!(answer.json()?["through"], self.next - 1, "{}", answer.body);
        Ok(())
    }

    /// What it holds for active of leaks: each with target and severity.
    fn active(&self) -> Result<BTreeSet<(String, String)>, String> {
        let found = self.alertmanager.alerts().map_err(|error| error.to_string())?;
        let text = |it: &Value, label: &str| it["labels"][label].as_str().unwrap_or_default().to_owned();
        let of_leaks: Vec<_> = found.iter().filter(|it| it["labels"]["alertname"] == LEAK).collect();
        let active: BTreeSet<_> = of_leaks.iter().map(|it| (text(it, "target"), text(it, "severity"))).collect();
        if active.len() == of_leaks.len() { Ok(active) } else { Err(format!("twice: {of_leaks:?}")) }
    }

    fn silences(&self, begins: bool) -> Result<(), StageError> {
        let taken = || self.collector.log().matches("silences are taken over").count();
        let before = taken();
        if begins {
            let words = ["--reason", "it moves", "--author", "anna", "--for", "1h", "alertname=pool.leak"];
            self.collector.command(&[&["silence", "add"], &words[..]].concat())?;
        } else {
            let listed: Value =
                serde_json::from_str(&self.collector.command(&["silence", "list", "--json"])?).expect("JSON");
            let id = listed["silences"][0]["id"].as_str().unwrap_or_default().to_owned();
            self.collector.command(&["silence", "end", &id])?;
        }
        until("the serving collector has taken it over", 30.s(), || {
            if taken() > before { Ok(()) } else { Err(self.collector.log()) }
        })
    }

    fn stays(&self, targets: &[String], severity: &str) -> Result<(), StageError> {
        let wanted: BTreeSet<_> = targets.iter().map(|it| (it.clone(), severity.to_owned())).collect();
        throughout("it holds what was told, and nothing else", 7.s(), || {
            let active = self.active()?;
            if active == wanted { Ok(()) } else { Err(format!("{active:?}")) }
        })
    }

    fn holds(&self, what: &str, targets: &[String], severity: &str) -> Result<(), StageError> {
        let wanted: BTreeSet<_> = targets.iter().map(|it| (it.clone(), severity.to_owned())).collect();
        until(what, 60.s(), || match self.active()? {
            active if active == wanted => Ok(()),
            active if active.len() > 9 => Err(format!("{} alerts", active.len())),
            active => Err(format!("{active:?}")),
        })
    }
}

fn pools(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("pool:{number}")).collect()
}

#[test]
fn an_alertmanager_holds_what_fires_through_restarts_on_both_sides_and_nothing_that_is_over() {
    alone(|stage| {
        let mut scene = Scene::open(stage)?;
        let tried = scene.collector.command(&["receiver", "test", "am", "--send"])?;
        assert!(tried.contains("receiver.test"), "{tried}");
        let is_there = |it: &Value| it["labels"]["alertname"] == "receiver.test";
        assert!(scene.alertmanager.alerts()?.iter().any(is_there), "what only tried it is there");
        let pools = pools(2);
        scene.says(&pools, "began", "warning")?;
        scene.holds("it holds both", &pools, "warning")?;
        let alert = scene.alertmanager.alerts()?.into_iter().find(|it| it["labels"]["alertname"] == LEAK).expect("one");
        assert_eq!(alert["annotations"]["summary"], "14 of 20 connections are held", "{alert}");
        assert!(alert["labels"]["incident"].is_string(), "{alert}");

        scene.alertmanager.ends()?;
        scene.alertmanager.runs()?;
        scene.holds("it hears again what it forgot", &pools, "warning")?;

        scene.collector.kill()?;
        scene.holds("it forgets what nobody tells it any more", &[], "warning")?;
        scene.collector.serve()?;
        scene.holds("it hears at once what still fires", &pools, "warning")?;

        let metrics = scene.collector.get("/metrics")?.body;
        assert!(
            metrics.contains("tickbird_notify_refreshes_total{receiver=\"am\",outcome=\"delivered\"}"),
            "{metrics}"
        );

        scene.says(&pools[..1], "worsened", "critical")?;
        until("one is another alert now, and not both", 60.s(), || {
            let active = scene.active()?;
            let wanted = BTreeSet::from([(pools[0].clone(), "critical".into()), (pools[1].clone(), "warning".into())]);
            if active == wanted { Ok(()) } else { Err(format!("{active:?}")) }
        })?;
        scene.says(&pools[..1], "cleared", "critical")?;
        scene.holds("one is over", &pools[1..], "warning")?;
        scene.collector.kill()?;
        scene.collector.serve()?;
        throughout("the end is not taken back", 7.s(), || {
            let active = scene.active()?;
            if active.iter().all(|it| it.0 != pools[0]) { Ok(()) } else { Err(format!("{active:?}")) }
        })?;

        // An end that nobody was there to hear is told when somebody is.
        scene.alertmanager.ends()?;
        scene.says(&pools[1..], "cleared", "warning")?;
        scene.collector.kill()?;
        scene.alertmanager.runs()?;
        scene.collector.serve()?;
        scene.holds("nothing is left", &[], "warning")?;
        Ok(())
    });
}

#[test]
fn a_thousand_alerts_are_refreshed_in_a_few_requests_and_all_of_them_end() {
    const MANY: usize = 1_000;
    alone(|stage| {
        let mut scene = Scene::open(stage)?;
        let pools = pools(MANY);
        for some in pools.chunks(250) {
            scene.says(some, "began", "warning")?;
        }
        scene.holds("it holds all of them", &pools, "warning")?;
        scene.alertmanager.ends()?;
        scene.collector.kill()?;
        scene.alertmanager.runs()?;
        scene.collector.serve()?;
        scene.holds("it holds all of them again", &pools, "warning")?;
        for some in pools.chunks(250) {
            scene.says(some, "cleared", "warning")?;
        }
        scene.holds("none is left", &[], "warning")?;
        throughout("and none comes back", 7.s(), || {
            let active = scene.active()?;
            if active.is_empty() { Ok(()) } else { Err(format!("{} alerts", active.len())) }
        })
    });
}

/// One request takes no thousand alerts; nothing is refreshed here, so that each of them comes with the message of its group.
#[test]
fn a_group_of_a_thousand_reaches_it_in_one_message_of_several_requests_and_so_does_their_end() {
    const MANY: usize = 1_000;
    alone(|stage| {
        let route = "\n[route]\nreceiver = \"am\"\ngroup_by = [\"alertname\"]\ngroup_wait = \"10s\"\ngroup_interval = \"10s\"\n";
        let mut scene = Scene::refreshing(stage, "1h", route)?;
        let pools = pools(MANY);
        for some in pools.chunks(250) {
            scene.says(some, "began", "warning")?;
        }
        scene.holds("it holds all of them", &pools, "warning")?;
        for some in pools.chunks(250) {
            scene.says(some, "cleared", "warning")?;
        }
        scene.holds("none is left", &[], "warning")
    });
}

/// People who are told by an Alertmanager are told of an alert by its labels: one with others is another alert, and another page.
#[test]
fn what_gets_worse_or_eases_unsaid_is_no_other_alert_until_it_is_told() {
    alone(|stage| {
        let mut scene = Scene::open(stage)?;
        let pools = pools(1);
        scene.says(&pools, "began", "warning")?;
        scene.holds("it is told", &pools, "warning")?;
        scene.silences(true)?;
        scene.says(&pools, "worsened", "critical")?;
        scene
            .collector
            .has_incident("it is worse", 60.s(), |it| it["check"] == LEAK && it["severity"] == "critical")?;
        scene.stays(&pools, "warning")?;
        scene.collector.kill()?;
        scene.collector.serve()?;
        scene.stays(&pools, "warning")?;
        scene.silences(false)?;
        scene.holds("it is told that it is worse", &pools, "critical")?;
        scene.silences(true)?;
        scene.says(&pools, "eased", "warning")?;
        scene
            .collector
            .has_incident("it has eased", 60.s(), |it| it["check"] == LEAK && it["severity"] == "warning")?;
        scene.stays(&pools, "critical")
    });
}

/// Nothing is refreshed here, so that an alert whose end is not told by its own labels stays for minutes.
#[test]
fn the_end_of_what_eased_unsaid_or_of_an_agent_that_is_forgotten_ends_the_alert_that_was_told() {
    alone(|stage| {
        let route =
            "\n[route]\nreceiver = \"am\"\ngroup_by = [\"alertname\"]\ngroup_wait = \"1s\"\ngroup_interval = \"1s\"\n";
        let mut scene = Scene::refreshing(stage, "1h", route)?;
        let pools = pools(1);
        scene.says(&pools, "began", "critical")?;
        scene.holds("it is told", &pools, "critical")?;
        scene.silences(true)?;
        scene.says(&pools, "eased", "warning")?;
        scene
            .collector
            .has_incident("it has eased", 60.s(), |it| it["check"] == LEAK && it["severity"] == "warning")?;
        scene.says(&pools, "cleared", "warning")?;
        scene.holds("it is over", &[], "critical")?;
        scene.silences(false)?;
        scene.says(&pools, "began", "warning")?;
        scene.holds("it is told again", &pools, "warning")?;
        scene.collector.command(&["agent", "forget", &scene.agent.id])?;
        scene.holds("it is over with its agent", &[], "warning")
    });
}
