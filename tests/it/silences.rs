//! Silences: nobody is told of what they are about but its end, whoever missed something hears of it afterwards, and each
//! decision says why.

use serde_json::Value;
use tickbird_tests::collector::receiver;
use tickbird_tests::webhook::{Message, titles};
use tickbird_tests::{Agent, Application, Collector, Seconds, Stage, StageError, Webhook, alone, shop, until};

/// An application with two pages, who looks at it, and whom the collector tells.
struct Shop {
    webhook: Webhook,
    collector: Collector,
    web: Application,
    agent: Agent,
}

impl Shop {
    fn open(stage: &Stage) -> Result<Self, StageError> {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        collector.serve()?;
        let (web, agent) = shop(stage, &collector, &["till", "shelf"])?;
        Ok(Self { webhook, collector, web, agent })
    }

    fn silence(&self, arguments: &[&str]) -> Result<String, StageError> {
        let said = self.collector.command(&[&["silence", "add", "--json"], arguments].concat())?;
        let said: Value = serde_json::from_str(&said).expect("JSON");
        until("the serving collector has taken it over", 30.s(), || match self.collector.log() {
            log if log.contains("silences are taken over") => Ok(()),
            log => Err(log),
        })?;
        Ok(said["id"].as_str().expect("an id").to_owned())
    }

    /// Messages about a page, of a kind.
    fn heard(&self, kind: &str, page: &str) -> Vec<Message> {
        let attempts = self.webhook.attempts().into_iter();
        attempts.filter(|it| it.check() == "http.status" && it.kind() == kind && it.body.contains(page)).collect()
    }

    fn hears(&self, kind: &'static str, page: &'static str) -> Result<(), StageError> {
        let is_it = |it: &Message| it.check() == "http.status" && it.kind() == kind && it.body.contains(page);
        self.webhook.hears(&format!("{kind} of {page}"), 60.s(), is_it).map(drop)
    }

    /// Everything that was decided about the incident of a page, once there is one.
    /// Waits until the incident of a page has this status.
    fn stands(&self, page: &str, status: &str) -> Result<(), StageError> {
        let is_it = |it: &Value| {
            it["status"] == status
                && it["check"] == "http.status"
                && it["target"].as_str().is_some_and(|it| it.ends_with(page))
        };
        self.collector.has_incident(&format!("{page} {status}"), 60.s(), is_it).map(drop)
    }

    fn explained(&self, page: &str) -> Result<Value, StageError> {
        let id = until(format!("an incident of {page}"), 60.s(), || {
            let found = self.collector.items("incidents", "check=http.status").map_err(|error| error.to_string())?;
            let of_page = |it: &&Value| it["target"].as_str().is_some_and(|it| it.ends_with(page));
            let id = found.iter().find(of_page).and_then(|it| it["id"].as_str().map(str::to_owned));
            id.ok_or_else(|| format!("{found:?}"))
        })?;
        let said = self.collector.command(&["explain", "--json", &id])?;
        Ok(serde_json::from_str(&said).expect("JSON"))
    }
}

/// Why each decision was made, in order.
fn reasons(explained: &Value) -> Vec<String> {
    let decisions = explained["decisions"].as_array().into_iter().flatten();
    decisions.filter_map(|it| it["reason"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_silence_holds_through_a_kill_and_what_was_missed_is_told_at_its_end() {
    alone(|stage| {
        let mut shop = Shop::open(stage)?;
        let silence =
            shop.silence(&["target=~\".*/till\"", "--reason", "the till moves", "--author", "anna", "--for", "2h"])?;
        shop.web.does("status 500")?;
        shop.hears("incident.firing", "/shelf")?;
        let explained = shop.explained("/till")?;
        let why = reasons(&explained);
        assert!(
            why.len() == 1 && why[0].starts_with("silenced until ") && why[0].contains(" by anna: the till moves"),
            "{explained}"
        );
        let previewed = shop.collector.command(&["silence", "preview", "target=~\".*/till\""])?;
        assert!(previewed.contains("http.status") && previewed.lines().count() == 2, "{previewed}");

        shop.collector.kill()?;
        shop.collector.serve()?;
        assert!(shop.collector.command(&["silence", "list"])?.contains("holds"));
        // The page without a silence is well and ill again: what is not silenced is told as ever.
        shop.web.does("status 200")?;
        shop.hears("incident.resolved", "/shelf")?;
        shop.stands("/till", "resolved")?;
        shop.web.does("status 500")?;
        until("the shelf fires again", 60.s(), || match shop.heard("incident.firing", "/shelf").len() {
            2.. => Ok(()),
            few => Err(format!("told {few} times")),
        })?;
        // Else its return could be later than the end of the silence, and nothing would be held back.
        shop.stands("/till", "firing")?;
        let told = [shop.heard("incident.firing", "/till"), shop.heard("incident.resolved", "/till")].concat();
        assert!(told.is_empty(), "{}", titles(&told));

        shop.collector.command(&["silence", "end", &silence])?;
        shop.hears("incident.firing", "/till")?;
        let explained = shop.explained("/till")?;
        let why = reasons(&explained);
        assert!(why.last().is_some_and(|it| it.starts_with("the silence of anna has ended")), "{explained}");
        let refused = shop.collector.command(&["silence", "end", &silence]).expect_err("it has ended").to_string();
        assert!(refused.contains("there is no silence that holds"), "{refused}");
        shop.web.does("status 200")?;
        shop.hears("incident.resolved", "/till")?;
        assert_eq!(shop.heard("incident.firing", "/till").len(), 1);
        shop.agent.stop().map(drop)
    });
}

#[test]
fn who_heard_that_it_fires_hears_the_end_in_a_silence_too() {
    alone(|stage| {
        let mut shop = Shop::open(stage)?;
        shop.web.does("status 500")?;
        shop.hears("incident.firing", "/till")?;
        shop.hears("incident.firing", "/shelf")?;
        let id = shop.silence(&["check=~\".+\"", "--reason", "a night off", "--author", "anna"])?;
        // Why nobody is told of it again.
        let explained = shop.explained("/till")?;
        let silence = &explained["silences"][0];
        assert_eq!((&silence["id"], &silence["by"]), (&Value::from(id), &"anna".into()), "{explained}");
        assert_eq!(reasons(&explained).len(), 1);
        shop.web.does("status 200")?;
        shop.hears("incident.resolved", "/till")?;
        shop.hears("incident.resolved", "/shelf")?;
        shop.agent.stop().map(drop)
    });
}

#[test]
fn a_silence_that_ends_while_nobody_serves_holds_nothing_back_any_more() {
    alone(|stage| {
        let mut shop = Shop::open(stage)?;
        let silence = shop.silence(&["check=http.status", "--reason", "they deploy", "--author", "anna"])?;
        shop.web.does("status 500")?;
        assert_eq!(reasons(&shop.explained("/till")?).len(), 1);
        assert_eq!(reasons(&shop.explained("/shelf")?).len(), 1);
        assert!(shop.webhook.attempts().is_empty(), "{}", titles(&shop.webhook.attempts()));
        shop.collector.kill()?;
        shop.collector.command(&["silence", "end", &silence])?;
        shop.collector.serve()?;
        shop.hears("incident.firing", "/till")?;
        shop.hears("incident.firing", "/shelf")?;
        let listed = shop.collector.command(&["silence", "list", "--all"])?;
        assert!(listed.contains("ended") && listed.contains("they deploy"), "{listed}");
        shop.agent.stop().map(drop)
    });
}

#[test]
fn a_silence_that_makes_no_sense_is_refused_in_words() {
    alone(|stage| {
        let collector = Collector::init(stage)?;
        let refused = |arguments: &[&str]| {
            let all = [&["silence", "add", "--author", "anna", "--reason", "none"], arguments].concat();
            collector.command(&all).expect_err("it must be refused").to_string()
        };
        for (arguments, words) in [
            (&["team=~\".*\""][..], "it would silence everything"),
            (&["team"], "`team`: has none of =, !=, =~ and !~"),
            (&["team=db", "--until", "2020-01-01T00:00:00Z"], "it would end before it begins"),
            (&["team=db", "--until", "tomorrow"], "write it with its zone"),
            (&["team=db", "--for", "soon"], "--for"),
            (&[], "<MATCHER>"),
        ] {
            let said = refused(arguments);
            assert!(said.contains(words), "{words}: {said}");
        }
        assert_eq!(collector.command(&["silence", "list", "--json"])?.trim(), r#"{"silences":[]}"#);
        Ok(())
    });
}
