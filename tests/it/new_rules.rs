//! A collector that reads its configuration again while it serves, and the tests that go with a configuration.

use std::collections::BTreeSet;

use serde_json::Value;
use tickbird_tests::collector::receiver;
use tickbird_tests::wait::until;
use tickbird_tests::webhook::{Manner, Message, firing, resolved};
use tickbird_tests::{Agent, Application, Collector, Seconds, StageError, Webhook, alone};

fn named(webhook: &Webhook, name: &str) -> String {
    receiver(webhook).replace("\"ops\"", &format!("\"{name}\""))
}

fn about(page: &str) -> impl Fn(&Message) -> bool {
    let page = page.to_owned();
    move |it| it.check() == "http.status" && it.body.contains(&page)
}

/// The agents' ends of established connections to the collector.
fn sessions(collector: &Collector) -> Result<BTreeSet<String>, StageError> {
    let port: u16 = collector.agents().rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let table = std::fs::read_to_string("/proc/net/tcp").map_err(StageError::system("read /proc/net/tcp"))?;
    let end = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        (remote.ends_with(&format!(":{port:04X}")) && state == "01").then(|| local.to_owned())
    };
    Ok(table.lines().filter_map(end).collect())
}

#[test]
fn other_rules_hold_at_once_and_every_end_goes_to_whoever_heard_of_the_beginning() {
    alone(|stage| {
        let [desk, night] = [Webhook::start(stage)?, Webhook::start(stage)?];
        let mut collector = Collector::init(stage)?;
        collector.configure(&named(&desk, "desk"))?;
        collector.configure("[route]\nreceiver = \"desk\"\n")?;
        collector.serve()?;
        let mut web = Application::web(stage, "shop", 0)?;
        let mut agent = Agent::asking(stage, &collector, &[&web.url()])?;
        web.does("status 500")?;
        desk.hears("that it fires", 60.s(), |it| firing("http.status")(it) && about("/health")(it))?;

        // A mistake changes nothing.
        let before = sessions(&collector)?;
        collector.rewrite("receiver = \"desk\"\n", "receiver = \"nobody\"\n")?;
        let said = collector.reload()?;
        assert!(
            said.contains("stays as it was") && collector.log().contains("there is no receiver `nobody`"),
            "{said}"
        );
        collector.rewrite("receiver = \"nobody\"\n", "receiver = \"night\"\n")?;
        // Its secret lies where the collector may read what nobody named when it began.
        let secret = collector.directory().join("night.secret");
        std::fs::copy(night.secret_file(), &secret).map_err(StageError::system("copy a secret"))?;
        let of_night = named(&night, "night").replace(&night.secret_file().display().to_string(), "night.secret");
        collector.configure(&of_night)?;
        collector.configure("[limits]\nconnections = 3\n")?;
        let said = collector.reload()?;
        assert!(
            said.contains("was read again") && said.contains("limits"),
            "the limits of agents need a new start: {said}"
        );
        // What fired before leads to the other one now, who is told so.
        let told = night.hears("what fires", 60.s(), |it| firing("http.status")(it) && about("/health")(it))?;
        assert!(told.body.contains("it leads to the receiver now, by route"), "{}", told.body);
        web.does("status 200")?;
        for webhook in [&desk, &night] {
            webhook.hears("that it is over", 60.s(), |it| resolved("http.status")(it) && about("/health")(it))?;
        }
        let over = night.hears("that it is over", 60.s(), |it| resolved("http.status")(it) && about("/health")(it))?;
        web.does("status 500")?;
        let again = night.hears("that it fires again", 60.s(), |it| {
            it.at > over.at && firing("http.status")(it) && about("/health")(it)
        })?;
        assert!(
            desk.attempts().iter().all(|it| it.at < again.at || !firing("http.status")(it)),
            "its route leads away"
        );
        assert_eq!(sessions(&collector)?, before, "no session was ended for it");

        // Killed and started again it goes by the file that it had read.
        collector.kill()?;
        collector.serve()?;
        web.does("status 200")?;
        night.hears("that it is over", 60.s(), |it| it.at > again.at && resolved("http.status")(it))?;
        agent.stop().map(drop)
    });
}

#[test]
fn a_receiver_that_is_owed_an_end_is_taken_out_only_by_name() {
    alone(|stage| {
        let [desk, night] = [Webhook::start(stage)?, Webhook::start(stage)?];
        let mut collector = Collector::init(stage)?;
        let of_desk = named(&desk, "desk");
        collector.configure(&named(&night, "night"))?;
        collector.configure(&of_desk)?;
        collector.serve()?;
        let mut web = Application::web(stage, "shop", 0)?;
        let mut agent = Agent::asking(stage, &collector, &[&web.url()])?;
        web.does("status 500")?;
        for webhook in [&desk, &night] {
            webhook.hears("that it fires", 60.s(), firing("http.status"))?;
        }
        collector.rewrite(&of_desk, "")?;
        let said = collector.reload()?;
        assert!(said.contains("stays as it was") && said.contains("`desk` was told of what fires"), "{said}");
        collector.rewrite("name = \"collector\"", "name = \"collector\"\nabandoned_receivers = [\"desk\"]")?;
        let said = collector.reload()?;
        assert!(said.contains("was read again"), "{said}");
        web.does("status 200")?;
        night.hears("that it is over", 60.s(), resolved("http.status"))?;
        let incident = collector.has_incident("its end", 30.s(), |it| it["status"] == "resolved")?;
        let id = incident["id"].as_str().expect("an id");
        let explained: Value = collector.get(&format!("/v1/incidents/{id}/explanation"))?.json()?;
        let end = explained["decisions"].as_array().into_iter().flatten().rfind(|it| it["receiver"] == "desk").cloned();
        let end = end.expect("a decision");
        assert!(end["reason"].to_string().contains("not configured any more") && end["told"] == false, "{explained}");
        assert!(!desk.attempts().iter().any(resolved("http.status")), "it was abandoned");

        // Nothing is owed now, so it comes back and goes without a word.
        collector.rewrite("\nabandoned_receivers = [\"desk\"]", "")?;
        collector.configure(&of_desk)?;
        assert!(collector.reload()?.contains("was read again"));
        collector.rewrite(&of_desk, "")?;
        assert!(collector.reload()?.contains("was read again"));
        agent.stop().map(drop)
    });
}

#[test]
fn what_waits_for_a_receiver_goes_to_nobody_who_does_not_understand_it() {
    alone(|stage| {
        let [desk, chat] = [Webhook::start(stage)?, Webhook::start_unsigned(stage)?];
        let mut collector = Collector::init(stage)?;
        let of_desk = named(&desk, "desk");
        collector.configure(&of_desk)?;
        collector.serve()?;
        let mut web = Application::web(stage, "shop", 0)?;
        let mut agent = Agent::asking(stage, &collector, &[&web.url()])?;
        desk.becomes(Manner::Fails);
        web.does("status 500")?;
        until("an attempt that failed", 60.s(), || match desk.attempts().iter().any(firing("http.status")) {
            true => Ok(()),
            false => Err("none".to_owned()),
        })?;

        let address = collector.directory().join("slack.url");
        std::fs::write(&address, chat.url()).map_err(StageError::system("write an address"))?;
        let of_chat = "\n[[receiver]]\nname = \"desk\"\nslack.url_file = \"slack.url\"\n";
        collector.rewrite(&of_desk, of_chat)?;
        let said = collector.reload()?;
        assert!(said.contains("stays as it was") && said.contains("`desk` is of another kind"), "{said}");
        desk.becomes(Manner::Accepts);
        let told = desk.hears("that it fires", 60.s(), |it| it.accepted && firing("http.status")(it))?;
        assert!(told.header("webhook-id").is_some(), "in the form that it was written in");
        // Whoever hears in the new form would hear of the end of what it was never told.
        until("nothing waits, and the end is owed", 60.s(), || {
            let said = collector.reload().map_err(|error| error.to_string())?;
            if said.contains("the old one is owed the end of an incident") { Ok(()) } else { Err(said) }
        })?;
        web.does("status 200")?;
        desk.hears("the end, where it was told", 60.s(), |it| it.accepted && resolved("http.status")(it))?;
        until("nothing is owed", 60.s(), || {
            let said = collector.reload().map_err(|error| error.to_string())?;
            if said.contains("was read again") { Ok(()) } else { Err(said) }
        })?;
        web.does("status 500")?;
        chat.hears("what fires, in the new form", 60.s(), |it| {
            it.json["text"].as_str().is_some_and(|it| !it.is_empty())
        })?;
        agent.stop().map(drop)
    });
}

/// What `init` writes has no receiver.
#[test]
fn that_nobody_is_told_because_there_is_no_receiver_is_said_everywhere_and_the_first_one_hears_what_fires() {
    alone(|stage| {
        let webhook = Webhook::start_unsigned(stage)?;
        let mut collector = Collector::init(stage)?;
        let said = collector.command(&["check-config"])?;
        assert!(said.contains("no [[receiver]]: nobody is told of anything"), "{said}");
        collector.serve()?;
        assert!(collector.log().contains("nobody is told"), "{}", collector.log());
        let mut web = Application::web(stage, "shop", 0)?;
        let mut agent = Agent::asking(stage, &collector, &[&web.url()])?;
        web.does("status 500")?;
        let incident = collector.has_incident("a broken page", 60.s(), |it| it["check"] == "http.status")?;
        let id = incident["id"].as_str().expect("an id");
        let explained = collector.command(&["explain", id])?;
        assert!(
            explained.contains("nobody not told of firing: there is no receiver in the configuration"),
            "{explained}"
        );
        let path = format!("/v1/incidents/{id}/explanation");
        let decision = collector.get(&path)?.json()?["decisions"][0].clone();
        assert!(decision["receiver"].is_null() && decision["told"] == false, "{decision}");

        // Its URL is a secret, which stands in a file.
        let url = collector.directory().join("ops.url");
        std::fs::write(&url, format!("{}\n", webhook.url())).map_err(StageError::system("write a URL"))?;
        collector.configure("\n[[receiver]]\nname = \"ops\"\nwebhook.url_file = \"ops.url\"\n")?;
        assert!(collector.reload()?.contains("was read again"));
        webhook.hears("what fires since before it was there", 60.s(), firing("http.status"))?;
        collector.configure("webhook.url = \"http://127.0.0.1:1/\"\n")?;
        let refused = collector.command(&["check-config"]).expect_err("two of them").to_string();
        assert!(refused.contains("url_file"), "{refused}");
        agent.stop().map(drop)
    });
}

const TESTS: &str = r#"
[[test]]
name = "at night a full database wakes the DBA alone"
at = "2026-11-21T03:00:00Z"
labels = { check = "db.headroom", severity = "critical", team = "db" }
told = ["dba"]
not_told.desk = "nights"
[[test]]
name = "by day the desk hears of it, too"
at = "2026-11-21T12:00:00Z"
labels = { check = "db.headroom", severity = "critical", team = "db" }
told = ["dba", "desk"]
"#;

#[test]
fn the_tests_of_a_configuration_pass_and_fail_with_it() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let collector = Collector::init(stage)?;
        collector.configure(&named(&webhook, "dba"))?;
        collector.configure(&named(&webhook, "desk"))?;
        collector.configure(
            "[route]\nreceiver = \"desk\"\n[[route.routes]]\nreceiver = \"dba\"\nmatchers = [\"team=db\"]\ncontinue = true\n\
             [[route.routes]]\nreceiver = \"desk\"\nmute_time_intervals = [\"nights\"]\n\
             [[time_intervals]]\nname = \"nights\"\n[[time_intervals.time_intervals]]\n\
             times = [{ start_time = \"00:00\", end_time = \"06:00\" }]\n",
        )?;
        let file = collector.directory().join("tests.toml");
        std::fs::write(&file, TESTS).map_err(StageError::system("write the tests"))?;
        let path = file.to_string_lossy().into_owned();
        let check = ["check-config", "--tests", &path];
        let said = collector.command(&check)?;
        assert_eq!(said.matches("ok    ").count(), 2, "{said}");
        collector.rewrite("continue = true", "continue = false")?;
        let said = collector.command(&check).expect_err("the desk hears nothing by day").to_string();
        assert!(said.contains("2 of 2 tests failed"), "{said}");
        assert!(said.contains("desk is not told: no route leads there"), "{said}");
        Ok::<_, StageError>(())
    });
}
