//! Inhibition: what another incident explains is not told while that one fires, and is told afterwards if it is still true.

use tickbird_tests::collector::receiver;
use tickbird_tests::webhook::{Message, titles};
use tickbird_tests::{Agent, Application, Collector, Seconds, StageError, Webhook, alone, until};

#[test]
fn what_is_explained_is_told_only_when_its_explanation_is_over() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        let [mut store, mut shop] = [Application::web(stage, "store", 0)?, Application::web(stage, "shop", 0)?];
        let (of_store, of_shop) = (store.url().to_owned(), shop.url().to_owned());
        collector.configure(&format!(
            "[[inhibit_rules]]\nsource_matchers = ['target=\"endpoint:{of_store}\"']\n\
             target_matchers = ['check=\"http.status\"']\nequal = [\"host\"]\n"
        ))?;
        collector.serve()?;
        let mut agent = Agent::asking(stage, &collector, &[&of_store, &of_shop])?;
        let of = |kind: &'static str, url: &str| {
            let url = url.to_owned();
            move |it: &Message| it.check() == "http.status" && it.kind() == kind && it.body.contains(&url)
        };

        store.does("status 500")?;
        webhook.hears("that the store fails", 60.s(), of("incident.firing", &of_store))?;
        shop.does("status 500")?;
        let id = until("the shop's incident", 60.s(), || {
            let found = collector.items("incidents", "check=http.status").map_err(|error| error.to_string())?;
            let is_shop = |it: &&serde_json::Value| it["target"].as_str().is_some_and(|it| it.ends_with(&of_shop));
            found
                .iter()
                .find(is_shop)
                .and_then(|it| it["id"].as_str().map(str::to_owned))
                .ok_or_else(|| format!("{found:?}"))
        })?;
        let explained = collector.command(&["explain", &id])?;
        assert!(explained.contains("not told of firing: inhibited by incident"), "{explained}");
        assert!(explained.contains("by inhibit_rules[0]"), "{explained}");

        // Through a restart in the middle of it.
        collector.kill()?;
        collector.serve()?;
        store.does("status 200")?;
        webhook.hears("that the store is well", 60.s(), of("incident.resolved", &of_store))?;
        webhook.hears("that the shop fails", 60.s(), of("incident.firing", &of_shop))?;
        let told: Vec<_> = webhook.attempts().into_iter().filter(|it| it.check() == "http.status").collect();
        let kinds: Vec<_> = told.iter().map(Message::kind).collect();
        assert_eq!(kinds, ["incident.firing", "incident.resolved", "incident.firing"], "{}", titles(&told));
        let explained = collector.command(&["explain", &id])?;
        assert!(explained.contains("told of firing: what held it back does not any more"), "{explained}");

        // In turn the shop explains nothing.
        store.does("status 500")?;
        until("the store is told again", 60.s(), || {
            let again = webhook.attempts().into_iter().filter(of_again(&of_store)).count();
            if again == 2 { Ok(()) } else { Err(format!("{again} times")) }
        })?;
        shop.does("status 200")?;
        webhook.hears("that the shop is well, whatever explains it", 60.s(), of("incident.resolved", &of_shop))?;
        agent.stop().map(drop)
    });
}

/// Firings of one page.
fn of_again(url: &str) -> impl Fn(&Message) -> bool {
    let url = url.to_owned();
    move |it| it.check() == "http.status" && it.kind() == "incident.firing" && it.body.contains(&url)
}

#[test]
fn a_rule_that_matches_everything_is_named_before_anything_is_served() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        collector
            .configure("[[inhibit_rules]]\nsource_matchers = ['severity']\n[[inhibit_rules]]\nequal = [\"host\"]\n")?;
        let said = collector.command(&["check-config"]).expect_err("it must be refused").to_string();
        for mistake in [
            "inhibit_rules[0].source_matchers: `severity`: has none of",
            "inhibit_rules[1].source_matchers: is missing",
            "inhibit_rules[1].target_matchers: is missing",
        ] {
            assert!(said.contains(mistake), "{mistake}: {said}");
        }
        Ok::<_, StageError>(())
    });
}
