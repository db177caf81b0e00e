//! Receivers as an operator tries them: a test message before anything happens, and what one never took, sent once more.

use serde_json::Value;
use tickbird_tests::collector::receiver;
use tickbird_tests::webhook::{Manner, firing, resolved};
use tickbird_tests::{Agent, Application, Clock, Collector, Seconds, StageError, Webhook, alone, until};

/// Longer than any message waits for its receiver.
const EIGHT_DAYS: i64 = 8 * 24 * 3600;

/// The id of the first message that a page fails, once it was attempted.
fn attempted(webhook: &Webhook) -> Result<String, StageError> {
    let is_firing = firing("http.status");
    until("it was attempted", 60.s(), || {
        let attempts = webhook.attempts();
        attempts.iter().find(|it| is_firing(it)).map(|it| it.id.clone()).ok_or_else(|| "nothing".to_owned())
    })
}

#[test]
fn a_test_message_is_shown_and_on_request_sent_signed() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        let shown: Value = serde_json::from_str(&collector.command(&["receiver", "test", "ops"])?).expect("JSON");
        assert_eq!((&shown["type"], &shown["receiver"]), (&"receiver.test".into(), &"ops".into()));
        assert!(webhook.attempts().is_empty(), "it was shown, not sent");

        collector.command(&["receiver", "test", "ops", "--send"])?;
        // Its signature is compared by the receiver.
        let heard = webhook.heard()?;
        assert!(heard.len() == 1 && heard[0].kind() == "receiver.test" && heard[0].json["id"] == heard[0].id.as_str());
        assert_eq!(webhook.is_believed_elsewhere()?, 1, "by the library of Standard Webhooks, too");
        webhook.becomes(Manner::Fails);
        let said = collector.command(&["receiver", "test", "ops", "--send"]).expect_err("it answers 500").to_string();
        assert!(said.contains("the receiver did not take it") && said.contains("500"), "{said}");
        let said = collector.command(&["receiver", "test", "nobody"]).expect_err("there is none").to_string();
        assert!(said.contains("there is no receiver `nobody`"), "{said}");
        Ok::<_, StageError>(())
    });
}

#[test]
fn what_was_given_up_is_listed_and_sent_again_with_its_id() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        webhook.becomes(Manner::Fails);
        let mut collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        let clock = Clock::right(collector.directory())?;
        clock.environment().into_iter().for_each(|(variable, value)| collector.knows(variable, value));
        collector.serve()?;
        let mut web = Application::web(stage, "shop", 0)?;
        let mut agent = Agent::asking(stage, &collector, &[&web.url()])?;
        web.does("status 500")?;
        let id = attempted(&webhook)?;
        let early = collector.command(&["receiver", "resend", &id]).expect_err("it still waits").to_string();
        assert!(early.contains("is waiting, and only one that was given up"), "{early}");

        collector.stop()?;
        clock.is_ahead_by(EIGHT_DAYS)?;
        webhook.is_ahead_by(EIGHT_DAYS);
        collector.serve()?;
        // Not before it was tried for a minute: a start by a wrong clock would give up everything.
        until("it is given up", 150.s(), || {
            let dead = collector.command(&["receiver", "dead", "--json"]).map_err(|error| error.to_string())?;
            if dead.contains(&id) { Ok(()) } else { Err(dead) }
        })?;
        let listed = collector.command(&["receiver", "dead"])?;
        assert!(listed.contains(&id) && listed.contains("incident.firing") && listed.contains("500"), "{listed}");
        webhook.becomes(Manner::Accepts);
        collector.command(&["receiver", "resend", &id])?;
        webhook.hears("it", 60.s(), |it| it.id == id && it.accepted)?;
        let bodies: Vec<_> = webhook.attempts().into_iter().filter(|it| it.id == id).map(|it| it.body).collect();
        assert!(bodies.windows(2).all(|two| two[0] == two[1]), "the same bytes each time");
        until("nothing is dead any more", 60.s(), || {
            let listed = collector.command(&["receiver", "list", "--json"]).map_err(|error| error.to_string())?;
            if listed.contains("\"dead\":0") { Ok(()) } else { Err(listed) }
        })?;
        agent.stop().map(drop)
    });
}

/// A gateway before the receiver finds one message too large: what comes after it is told all the same, and somebody hears of it.
#[test]
fn what_is_refused_for_what_it_is_holds_nothing_up() {
    alone(|stage| {
        let (webhook, other) = (Webhook::start(stage)?, Webhook::start(stage)?);
        webhook.becomes(Manner::RefusesFirings);
        let mut collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        collector.configure(&receiver(&other).replace("\"ops\"", "\"desk\""))?;
        collector.configure(
            "[route]\nreceiver = \"ops\"\n[[route.routes]]\nreceiver = \"desk\"\nmatchers = ['check=\"notify.dead_letter\"']\n",
        )?;
        collector.serve()?;
        let mut web = Application::web(stage, "shop", 0)?;
        let mut agent = Agent::asking(stage, &collector, &[&web.url()])?;
        web.does("status 500")?;
        let id = attempted(&webhook)?;
        // A minute, and not a week.
        let told = other.hears("of the dead letter", 120.s(), firing("notify.dead_letter"))?;
        let evidence = &told.json["incident"]["evidence"];
        assert_eq!((&evidence["message"], &evidence["last_error"]), (&id.as_str().into(), &"answered 413".into()));
        let tried = webhook.attempts().iter().filter(|it| it.id == id).count();
        assert!((5..30).contains(&tried), "{tried} attempts");
        let listed = collector.command(&["receiver", "dead"])?;
        assert!(listed.contains(&id) && listed.contains("answered 413"), "{listed}");
        let ready: Value = serde_json::from_str(&collector.get("/readyz")?.body).expect("JSON");
        let receivers = &ready["parts"]["receivers"];
        assert_eq!((&receivers["detail"][0]["dead"], &receivers["status"]), (&1.into(), &"ok".into()), "{ready}");
        let metrics = collector.get("/metrics")?.body;
        assert!(metrics.contains("tickbird_notify_dead{receiver=\"ops\"} 1\n"), "{metrics}");
        web.does("status 200")?;
        webhook.hears("the end of it", 60.s(), resolved("http.status"))?;
        webhook.becomes(Manner::Accepts);
        let said = collector.command(&["receiver", "resend", &id]).expect_err("it is over").to_string();
        assert!(said.contains("was followed by"), "{said}");
        agent.stop().map(drop)
    });
}
