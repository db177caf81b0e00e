//! Acknowledgements: an incident is somebody's for a while. Nobody hears of it meanwhile but its end, and whoever was told hears of it
//! again when nobody has it any more, also when that came while the collector was down.

use serde_json::Value;
use tickbird_tests::collector::receiver;
use tickbird_tests::wait::throughout;
use tickbird_tests::webhook::Message;
use tickbird_tests::{Agent, Application, Clock, Collector, Seconds, Stage, StageError, Webhook, alone, shop, until};

const HOUR: i64 = 3_600;
/// Each page is told by itself, and again every few seconds while it fires.
const REPEATS: &str = r#"
[route]
receiver = "ops"
group_by = ["target"]
group_wait = "1s"
group_interval = "1s"
repeat_interval = "3s"
"#;

/// An application with two pages, who looks at it, and whom the collector tells by a clock of its own.
struct Shop {
    webhook: Webhook,
    collector: Collector,
    clock: Clock,
    web: Application,
    agent: Agent,
}

impl Shop {
    fn open(stage: &Stage, routes: &str) -> Result<Self, StageError> {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        let clock = Clock::right(collector.directory())?;
        clock.environment().into_iter().for_each(|(variable, value)| collector.knows(variable, value));
        collector.configure(&(receiver(&webhook) + routes))?;
        collector.serve()?;
        let (web, agent) = shop(stage, &collector, &["till", "shelf"])?;
        Ok(Self { webhook, collector, clock, web, agent })
    }

    /// So many seconds pass for the collector and whom it tells.
    fn is_ahead_by(&self, seconds: i64) -> Result<(), StageError> {
        self.webhook.is_ahead_by(seconds);
        self.clock.is_ahead_by(seconds)
    }

    /// Ids of the incidents of the till and of the shelf, once there are both.
    fn incidents(&self) -> Result<[String; 2], StageError> {
        until("both pages have an incident", 60.s(), || {
            let found = self.collector.items("incidents", "check=http.status").map_err(|error| error.to_string())?;
            let of = |page: &str| {
                let of_page = |it: &&Value| it["target"].as_str().is_some_and(|it| it.ends_with(page));
                found.iter().find(of_page).and_then(|it| it["id"].as_str().map(str::to_owned))
            };
            of("/till").zip(of("/shelf")).map(|(till, shelf)| [till, shelf]).ok_or_else(|| format!("{found:?}"))
        })
    }

    /// Whose an incident is, as the API says.
    fn owner(&self, incident: &str) -> Result<Value, StageError> {
        let found = self.collector.items("incidents", "check=http.status")?;
        Ok(found.iter().find(|it| it["id"] == incident).map(|it| it["acknowledged"]["by"].clone()).unwrap_or_default())
    }

    /// Distinct messages of a kind about a page, in order.
    fn heard(&self, kind: &str, page: &str) -> Vec<Message> {
        let mut heard: Vec<Message> = Vec::new();
        for it in self.webhook.attempts() {
            let is_new = heard.iter().all(|known| known.id != it.id);
            if is_new && it.body.contains("http.status") && it.kind() == kind && it.body.contains(page) {
                heard.push(it);
            }
        }
        heard
    }

    fn hears(&self, kind: &str, page: &str, times: usize) -> Result<Message, StageError> {
        until(format!("{kind} of {page}, {times} times"), 60.s(), || {
            let heard = self.heard(kind, page);
            heard.get(times - 1).cloned().ok_or_else(|| format!("told {} times", heard.len()))
        })
    }

    /// Takes an incident, and waits until the serving collector knows.
    fn takes(&self, incident: &str, arguments: &[&str]) -> Result<(), StageError> {
        self.collector.command(&[&["ack", incident], arguments].concat())?;
        until("the collector has taken it over", 30.s(), || {
            let said = self.collector.command(&["explain", incident]).map_err(|error| error.to_string())?;
            let is_written = said.contains("not told of acknowledged: acknowledged until");
            if is_written { Ok(()) } else { Err(said) }
        })
    }
}

#[test]
fn nobody_hears_of_what_somebody_has_until_nobody_has_it_through_kills_at_each_moment() {
    alone(|stage| {
        let mut shop = Shop::open(stage, "")?;
        shop.web.does("status 500")?;
        shop.hears("incident.firing", "/till", 1)?;
        shop.hears("incident.firing", "/shelf", 1)?;
        let [till, shelf] = shop.incidents()?;
        // Killed right after it was written: whether the collector had taken it over or not, it holds.
        shop.collector.command(&["ack", &till, "--by", "anna", "--note", "rolling back"])?;
        shop.collector.kill()?;
        shop.collector.serve()?;
        assert_eq!((shop.owner(&till)?, shop.owner(&shelf)?), ("anna".into(), Value::Null));
        let listed = shop.collector.command(&["ack", "list"])?;
        assert!(listed.contains(&till) && listed.contains("rolling back") && !listed.contains(&shelf), "{listed}");

        // Its eight hours end while nobody serves. What was told is told again, once, however often the collector starts.
        shop.collector.kill()?;
        assert!(shop.heard("incident.repeated", "http").is_empty());
        shop.is_ahead_by(9 * HOUR)?;
        shop.collector.serve()?;
        let again = shop.hears("incident.repeated", "/till", 1)?;
        let reason = again.json["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("the acknowledgement of anna has ended: its time has passed"), "{}", again.body);
        shop.collector.kill()?;
        shop.collector.serve()?;

        // Somebody ends it before its time. Commands go by the right time.
        shop.takes(&till, &["--by", "ben", "--for", "20h"])?;
        assert_eq!(shop.owner(&till)?, "ben");
        shop.collector.kill()?;
        shop.collector.command(&["ack", "end", &till, "--by", "ben"])?;
        shop.collector.serve()?;
        let again = shop.hears("incident.repeated", "/till", 2)?;
        assert!(again.json["reason"].as_str().is_some_and(|it| it.contains("of ben has ended: ben ended it")));

        // The end of the fault is told though somebody has it, and says who.
        shop.takes(&till, &["--by", "anna", "--for", "20h"])?;
        shop.collector.kill()?;
        shop.web.does("status 200")?;
        shop.collector.serve()?;
        let over = shop.hears("incident.resolved", "/till", 1)?;
        assert_eq!(over.json["incident"]["acknowledged"]["by"], "anna", "{}", over.body);
        let other = shop.hears("incident.resolved", "/shelf", 1)?;
        assert_eq!(other.json["incident"]["acknowledged"], Value::Null);
        assert_eq!(
            (shop.heard("incident.repeated", "/till").len(), shop.heard("incident.repeated", "/shelf").len()),
            (2, 0)
        );
        let explained = shop.collector.command(&["explain", &till])?;
        for words in
            ["anna acknowledged it until", "rolling back", "of ben has ended: ben ended it", "the incident is over"]
        {
            assert!(explained.contains(words), "{words}: {explained}");
        }
        let refused = shop.collector.command(&["ack", &till, "--by", "anna"]).expect_err("it is over").to_string();
        assert!(refused.contains("does not fire any more"), "{refused}");
        shop.agent.stop().map(drop)
    });
}

#[test]
fn a_group_is_not_told_again_while_its_incident_is_somebodys_and_others_are() {
    alone(|stage| {
        let mut shop = Shop::open(stage, REPEATS)?;
        shop.web.does("status 500")?;
        let [till, _] = shop.incidents()?;
        shop.hears("group.repeated", "/till", 1)?;
        shop.takes(&till, &["--by", "anna", "--for", "2h", "--note", "on it"])?;
        let told = shop.heard("group.repeated", "/till").len();
        let others = shop.heard("group.repeated", "/shelf").len();
        shop.collector.kill()?;
        shop.collector.serve()?;
        shop.hears("group.repeated", "/shelf", others + 2)?;
        throughout("the till is not told again", 4.s(), || match shop.heard("group.repeated", "/till").len() {
            it if it <= told + 1 => Ok(()), // one may have been on its way
            it => Err(format!("{it} times after {told}")),
        })?;
        assert_eq!(shop.owner(&till)?, "anna");
        shop.collector.command(&["ack", "end", &till, "--by", "anna"])?;
        let again = shop.hears("group.firing", "/till", 2)?;
        assert_eq!(again.json["incidents"][0]["change"], "incident.repeated", "{}", again.body);
        shop.hears("group.repeated", "/till", told + 2)?;
        shop.web.does("status 200")?;
        shop.hears("group.resolved", "/till", 1)?;
        shop.hears("group.resolved", "/shelf", 1)?;
        shop.agent.stop().map(drop)
    });
}

#[test]
fn what_cannot_be_acknowledged_is_refused_in_words() {
    alone(|stage| {
        let collector = Collector::init(stage)?;
        for (arguments, words) in [
            (&["ack", "01JCZZZZZZZZZZZZZZZZZZZZZZ", "--by", "anna"][..], "there is no incident of this id"),
            (&["ack", "end", "01JCZZZZZZZZZZZZZZZZZZZZZZ", "--by", "anna"], "there is no incident of this id"),
            (&["ack", "01J", "--for", "soon"], "--for"),
            (&["ack", "01J", "--for", "1h", "--until", "2999-01-01T00:00:00Z"], "cannot be used with"),
            (&["ack"], "<INCIDENT>"),
        ] {
            let said = collector.command(arguments).expect_err("it must be refused").to_string();
            assert!(said.contains(words), "{words}: {said}");
        }
        assert_eq!(collector.command(&["ack", "list", "--json"])?.trim(), r#"{"acknowledgements":[]}"#);
        Ok::<(), StageError>(())
    });
}
