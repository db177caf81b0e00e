//! Escalation: what was told and is nobody's is told to the next after a time, once, also when the collector was down meanwhile; and
//! whoever heard of it hears the end.

use serde_json::Value;
use tickbird_tests::collector::receiver;
use tickbird_tests::webhook::Message;
use tickbird_tests::{Agent, Application, Clock, Collector, Seconds, Stage, StageError, Webhook, alone, shop, until};

const MINUTE: i64 = 60;
const STEPS: &str = r#"
[route]
receiver = "ops"
[[route.escalate]]
after = { critical = "15m", warning = "2h" }
receiver = "boss"
"#;

/// An application with two pages, who looks at it, and whom the collector tells by a clock of its own.
struct Shop {
    ops: Webhook,
    boss: Webhook,
    collector: Collector,
    clock: Clock,
    web: Application,
    agent: Agent,
}

impl Shop {
    fn open(stage: &Stage) -> Result<Self, StageError> {
        let (ops, boss) = (Webhook::start(stage)?, Webhook::start(stage)?);
        let mut collector = Collector::init(stage)?;
        let clock = Clock::right(collector.directory())?;
        clock.environment().into_iter().for_each(|(variable, value)| collector.knows(variable, value));
        collector.configure(&receiver(&ops))?;
        collector.configure(&receiver(&boss).replace("\"ops\"", "\"boss\""))?;
        collector.configure(STEPS)?;
        collector.serve()?;
        let (web, agent) = shop(stage, &collector, &["till", "shelf"])?;
        Ok(Self { ops, boss, collector, clock, web, agent })
    }

    /// The collector is killed, and starts again when so many seconds have passed since the beginning.
    fn is_killed_until(&mut self, seconds: i64) -> Result<(), StageError> {
        self.collector.kill()?;
        [&self.ops, &self.boss].iter().for_each(|it| it.is_ahead_by(seconds));
        self.clock.is_ahead_by(seconds)?;
        self.collector.serve()
    }

    /// The incident of a page, once there is one.
    fn incident(&self, page: &str) -> Result<String, StageError> {
        until(format!("an incident of {page}"), 60.s(), || {
            let found = self.collector.items("incidents", "check=http.status").map_err(|error| error.to_string())?;
            let of_page = |it: &&Value| it["target"].as_str().is_some_and(|it| it.ends_with(page));
            let id = found.iter().find(of_page).and_then(|it| it["id"].as_str().map(str::to_owned));
            id.ok_or_else(|| format!("{found:?}"))
        })
    }
}

/// Distinct messages of a kind about a page, in order.
fn heard(webhook: &Webhook, kind: &str, page: &str) -> Vec<Message> {
    let mut heard: Vec<Message> = Vec::new();
    for it in webhook.attempts() {
        let is_new = heard.iter().all(|known| known.id != it.id);
        if is_new && it.check() == "http.status" && it.kind() == kind && it.body.contains(page) {
            heard.push(it);
        }
    }
    heard
}

fn hears(webhook: &Webhook, kind: &str, page: &str) -> Result<Message, StageError> {
    until(format!("{kind} of {page}"), 60.s(), || {
        heard(webhook, kind, page).first().cloned().ok_or_else(|| "nothing yet".to_owned())
    })
}

#[test]
fn what_nobody_has_is_told_to_the_next_and_what_somebody_has_is_not_through_kills_at_each_moment() {
    alone(|stage| {
        let mut shop = Shop::open(stage)?;
        shop.web.does("status 500")?;
        hears(&shop.ops, "incident.firing", "/till")?;
        hears(&shop.ops, "incident.firing", "/shelf")?;
        let (till, shelf) = (shop.incident("/till")?, shop.incident("/shelf")?);
        shop.collector.command(&["ack", &till, "--by", "anna", "--for", "2h"])?;
        shop.is_killed_until(14 * MINUTE)?;
        shop.is_killed_until(14 * MINUTE)?;
        assert!(shop.boss.attempts().iter().all(|it| it.check() != "http.status"), "it is not time yet");

        // It falls due while nobody serves, and is told once, however often the collector starts.
        shop.is_killed_until(20 * MINUTE)?;
        let told = hears(&shop.boss, "incident.escalated", "/shelf")?;
        let reason = told.json["reason"].as_str().unwrap_or_default();
        assert_eq!(reason, "escalated: not acknowledged for 15m, by route.escalate[0]");
        shop.is_killed_until(60 * MINUTE)?;
        assert_eq!(heard(&shop.boss, "incident.escalated", "/till").len(), 0, "somebody has it");

        // Nobody has it any more: whoever was told is told again, and from then on time counts anew.
        shop.is_killed_until(130 * MINUTE)?;
        hears(&shop.ops, "incident.repeated", "/till")?;
        shop.is_killed_until(140 * MINUTE)?;
        assert_eq!(heard(&shop.boss, "incident.escalated", "/till").len(), 0, "ten minutes are no quarter of an hour");
        shop.is_killed_until(150 * MINUTE)?;
        hears(&shop.boss, "incident.escalated", "/till")?;
        let explained = shop.collector.command(&["explain", &shelf])?;
        for words in
            ["escalates what ops was told", "boss: told", "boss told of escalated: escalated: not acknowledged for 15m"]
        {
            assert!(explained.contains(words), "{words}: {explained}");
        }

        shop.collector.kill()?;
        shop.web.does("status 200")?;
        shop.collector.serve()?;
        for page in ["/till", "/shelf"] {
            hears(&shop.ops, "incident.resolved", page)?;
            hears(&shop.boss, "incident.resolved", page)?;
            assert_eq!(heard(&shop.boss, "incident.escalated", page).len(), 1, "{page}");
            assert_eq!(heard(&shop.boss, "incident.firing", page).len(), 0, "no route leads there");
        }
        shop.agent.stop().map(drop)
    });
}

#[test]
fn what_is_over_before_the_time_of_a_step_is_told_to_nobody_else() {
    alone(|stage| {
        let mut shop = Shop::open(stage)?;
        shop.web.does("status 500")?;
        hears(&shop.ops, "incident.firing", "/till")?;
        hears(&shop.ops, "incident.firing", "/shelf")?;
        shop.is_killed_until(14 * MINUTE)?;
        shop.web.does("status 200")?;
        hears(&shop.ops, "incident.resolved", "/till")?;
        hears(&shop.ops, "incident.resolved", "/shelf")?;
        shop.is_killed_until(60 * MINUTE)?;
        // A fault of its own tells that it would have been told.
        shop.web.does("status 500")?;
        until("it is told again", 60.s(), || match heard(&shop.ops, "incident.firing", "/till").len() {
            2.. => Ok(()),
            few => Err(format!("told {few} times")),
        })?;
        shop.is_killed_until(80 * MINUTE)?;
        hears(&shop.boss, "incident.escalated", "/till")?;
        assert_eq!(heard(&shop.boss, "incident.escalated", "/till").len(), 1, "of the second fault alone");
        shop.web.does("status 200")?;
        hears(&shop.boss, "incident.resolved", "/till")?;
        shop.agent.stop().map(drop)
    });
}

#[test]
fn steps_are_shown_beforehand_and_those_that_lead_nowhere_are_refused() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        collector.configure(&receiver(&webhook).replace("\"ops\"", "\"boss\""))?;
        collector.configure(STEPS)?;
        let shown = collector.command(&["route", "show"])?;
        assert!(shown.contains("everything -> ops, escalates to boss after 15m to 2h"), "{shown}");
        let tested = collector.command(&["route", "test", "severity=critical"])?;
        assert!(tested.contains("told after 15m, unless somebody acknowledges it"), "{tested}");
        let said: Value =
            serde_json::from_str(&collector.command(&["route", "test", "--json", "severity=warning"])?).expect("JSON");
        assert_eq!(
            (&said["escalates"][0]["receiver"], &said["escalates"][0]["after"]),
            (&"boss".into(), &7_200.0.into())
        );

        collector.rewrite("receiver = \"boss\"", "receiver = \"nobody\"")?;
        collector.rewrite("critical = \"15m\"", "fatal = \"15m\"")?;
        let said = collector.command(&["check-config"]).expect_err("it must be refused").to_string();
        for mistake in
            ["route.escalate[0].receiver: there is no receiver `nobody`", "route.escalate[0].after.fatal: is not a key"]
        {
            assert!(said.contains(mistake), "{mistake}: {said}");
        }
        Ok::<(), StageError>(())
    });
}
