//! From the agent to the receiver, with the collector or the receiver away in between.

use std::collections::BTreeMap;

use serde_json::Value;
use tickbird_tests::agent::{app, check};
use tickbird_tests::postgres::free_port;
use tickbird_tests::wait::throughout;
use tickbird_tests::webhook::{Manner, firing, resolved};
use tickbird_tests::{Application, Seconds, StageError, Watch, alone, until};

const CHECK: &str = "fd.limit";

fn observed_at(finding: &Value) -> String {
    finding["observed_at"].as_str().unwrap_or_default().to_owned()
}

/// Three faults come while the collector is away; one of them goes again, too.
#[test]
fn a_collector_that_was_away_for_a_minute_hears_everything_in_order_and_pages_once() {
    alone(|stage| {
        let mut shops = ["first", "second", "third"]
            .map(|name| Application::web(stage, name, 0))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        let mut configuration = String::new();
        for shop in &mut shops {
            shop.does("limit 100")?;
            configuration += &app(shop.name(), &shop.command());
        }
        let mut watch = Watch::begin(stage, &configuration)?;
        for shop in &shops {
            watch.sees(CHECK, &format!("process:{}", shop.name()), "ok", 20.s())?;
        }
        watch.collector.kill()?;

        for shop in &mut shops {
            shop.does("descriptors 80")?;
            agent_finds(&watch, shop.name(), true)?;
        }
        shops[1].does("release")?;
        agent_finds(&watch, "second", false)?;
        throughout("the agent goes on alone", 50.s(), || watch.agent.status().map_err(|error| error.to_string()))?;
        assert!(watch.webhook.attempts().is_empty(), "nobody can have been told");

        watch.collector.serve()?;
        for name in ["first", "third"] {
            watch.fires(CHECK, &format!("process:{name}"), 90.s())?;
        }
        watch.resolves(CHECK, "process:second", 90.s())?;

        let mut found = watch.collector.items("findings", "check=fd.limit")?;
        found.sort_by_key(observed_at);
        let told: Vec<String> = found
            .iter()
            .map(|it| {
                format!("{} {}", it["target"].as_str().unwrap_or_default(), it["status"].as_str().unwrap_or_default())
            })
            .collect();
        let named = |name: &str, status: &str| told.iter().position(|it| it.contains(name) && it.ends_with(status));
        let order = [
            named("first", "firing"),
            named("second", "firing"),
            named("third", "firing"),
            named("second", "resolved"),
        ];
        assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{told:?}");
        // What came in one order was received in the same.
        let mut received = found.clone();
        received.sort_by_key(|it| it["received_at"].as_str().unwrap_or_default().to_owned());
        assert_eq!(
            received.iter().map(observed_at).collect::<Vec<_>>(),
            found.iter().map(observed_at).collect::<Vec<_>>()
        );

        let pages = || {
            let mut pages: BTreeMap<String, u32> = BTreeMap::new();
            for it in watch.webhook.attempts() {
                *pages.entry(format!("{} {}", it.kind(), it.json["incident"]["target"])).or_default() += 1;
            }
            pages
        };
        until("both are paged", 30.s(), || {
            let pages = pages();
            let firing = |name: &str| pages.keys().any(|page| page.contains("firing") && page.contains(name));
            if firing("first") && firing("third") { Ok(()) } else { Err(format!("{pages:?}")) }
        })?;
        // Time enough for a second page of the same, if there was to be one.
        throughout("each page is sent once", 12.s(), || {
            let pages = pages();
            if pages.values().all(|count| *count == 1) { Ok(()) } else { Err(format!("{pages:?}")) }
        })
    });
}

/// Waits until the agent itself says that `name` is short of descriptors, or no longer.
fn agent_finds(watch: &Watch, name: &str, firing: bool) -> Result<(), StageError> {
    until(format!("the agent finds {name}: {firing}"), 30.s(), || {
        let status = watch.agent.status().map_err(|error| error.to_string())?;
        let findings = status["findings"].as_array().cloned().unwrap_or_default();
        let found = findings.iter().any(|it| it["check"] == CHECK && it["target"].to_string().contains(name));
        if found == firing { Ok(()) } else { Err(status["findings"].to_string()) }
    })
}

#[test]
fn what_waits_for_the_collector_can_be_looked_at_and_survives_the_agent() {
    alone(|stage| {
        let mut web = Application::web(stage, "shop", 0)?;
        web.does("limit 100")?;
        let mut watch = Watch::begin(stage, &app("shop", &web.command()))?;
        watch.sees(CHECK, "process:shop", "ok", 20.s())?;
        watch.collector.kill()?;
        web.does("descriptors 80")?;
        agent_finds(&watch, "shop", true)?;
        watch.agent.kill()?;
        for (command, arguments) in [("stat", &["--json"][..]), ("peek", &[]), ("verify", &[]), ("export", &[])] {
            let output = watch.agent.ask(&format!("buffer {command}"), arguments)?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "buffer {command}: {text}{}", String::from_utf8_lossy(&output.stderr));
            let word = if matches!(command, "peek" | "export") { CHECK } else { "urgent" };
            assert!(text.contains(word), "buffer {command}: {text}");
        }
        watch.collector.serve()?;
        watch.agent.run()?;
        watch.webhook.hears("the page", 60.s(), firing(CHECK))?;
        Ok(())
    });
}

/// Several looks a second keep the agent busy all the time: the list has to come all the same.
#[test]
fn a_fault_that_ended_while_the_agent_was_down_is_resolved_by_its_first_list() {
    const STATUS: &str = "http.status";
    alone(|stage| {
        let (port, steady) = (free_port()?, Application::web(stage, "steady", 0)?);
        let urls = [format!("http://127.0.0.1:{port}/"), steady.url()];
        let endpoint = |url: &String| format!("[[endpoint]]\nurl = \"{url}\"\ninterval = \"1s\"\n");
        let mut watch = Watch::begin(stage, &urls.iter().map(endpoint).collect::<String>())?;
        let at = format!(":{port}/");
        watch.fires(STATUS, &at, 60.s())?;
        watch.agent.kill()?;
        let _back = Application::web(stage, "back", port)?;
        watch.agent.run()?;
        watch.resolves(STATUS, &at, 150.s()).map(drop)
    });
}

#[test]
fn a_receiver_that_fails_is_told_again_with_the_same_bytes_and_id() {
    alone(|stage| {
        let mut web = Application::web(stage, "shop", 0)?;
        web.does("limit 100")?;
        let watch = Watch::begin(stage, &app("shop", &web.command()))?;
        watch.sees(CHECK, "process:shop", "ok", 20.s())?;
        watch.webhook.becomes(Manner::Fails);
        web.does("descriptors 80")?;
        until("two attempts failed", 30.s(), || {
            let attempts = watch.webhook.attempts().len();
            if attempts >= 2 { Ok(()) } else { Err(format!("{attempts} attempts")) }
        })?;
        watch.webhook.becomes(Manner::Accepts);
        let message = watch.webhook.hears("the page", 60.s(), firing(CHECK))?;
        let attempts = watch.webhook.attempts();
        let same = attempts.iter().filter(|it| it.id == message.id && it.body == message.body).count();
        assert!(same >= 3, "two that failed and one that did not: {same} of {}", attempts.len());
        web.does("release")?;
        watch.webhook.hears("the end", 30.s(), resolved(CHECK))?;
        assert_eq!(watch.webhook.heard()?.len(), 2, "one page, one resolve");
        Ok(())
    });
}

#[test]
fn an_agent_that_is_killed_while_the_collector_is_away_is_unknown_since_its_last_word_and_then_missing() {
    alone(|stage| {
        let mut watch = Watch::begin(stage, "")?;
        let seen = |watch: &Watch| Ok::<_, StageError>(watch.collector.items("agents", "")?.remove(0));
        let is = |watch: &Watch, wanted: &str| {
            let found = seen(watch).map_err(|error| error.to_string())?;
            if found["presence"] == wanted { Ok(found) } else { Err(found.to_string()) }
        };
        let live = until("it is live", 20.s(), || is(&watch, "live"))?;
        assert_eq!(live["unknown_since"], Value::Null, "{live}");
        watch.collector.stop()?;
        watch.agent.kill()?;
        let listed = |watch: &Watch| watch.collector.command(&["agent", "list"]);
        until("nobody knows of it", 45.s(), || {
            let said = listed(&watch).map_err(|error| error.to_string())?;
            if said.contains("unknown since 20") { Ok(()) } else { Err(said) }
        })?;
        let row: Value = serde_json::from_str(&watch.collector.command(&["agent", "list", "--json"])?).expect("JSON");
        let heard = &row["agents"][0]["last_seen_at"];
        assert!(heard.is_string() && row["agents"][0]["unknown_since"] == *heard, "{row}");

        watch.collector.serve()?;
        let found = seen(&watch)?;
        assert_eq!((&found["presence"], &found["unknown_since"]), (&"unknown".into(), heard), "{found}");
        assert!(watch.collector.items("incidents", "check=agent.missing")?.is_empty());
        let missing = until("it is missing", 60.s(), || is(&watch, "missing"))?;
        assert_eq!(missing["unknown_since"], Value::Null, "{missing}");
        watch.collector.has_incident("the missing agent", 10.s(), |it| it["status"] == "firing")?;
        assert!(listed(&watch)?.contains("missing"), "{}", listed(&watch)?);
        Ok(())
    });
}

#[test]
fn an_agent_that_is_stopped_says_goodbye_and_one_that_is_killed_is_missed() {
    alone(|stage| {
        let configuration = check("agent.slow", "enabled = true");
        let mut watch = Watch::begin(stage, &configuration)?;
        let presence = |watch: &Watch, wanted: &str, within| {
            until(format!("the agent is {wanted}"), within, || {
                let agents = watch.collector.items("agents", "").map_err(|error| error.to_string())?;
                let found = agents.first().and_then(|it| it["presence"].as_str()).unwrap_or("nowhere").to_owned();
                if found == wanted { Ok(()) } else { Err(found) }
            })
        };
        presence(&watch, "live", 20.s())?;
        watch.agent.stop()?;
        presence(&watch, "stopped", 5.s())?;
        throughout("a goodbye is no incident", 35.s(), || {
            let incidents = watch.collector.items("incidents", "").map_err(|error| error.to_string())?;
            if incidents.is_empty() { Ok(()) } else { Err(tickbird_tests::collector::titles(&incidents)) }
        })?;
        watch.agent.run()?;
        presence(&watch, "live", 20.s())?;
        watch.agent.kill()?;
        presence(&watch, "missing", 45.s())?;
        watch.collector.has_incident("the missing agent", 10.s(), |it| it["status"] == "firing")?;
        watch.agent.run()?;
        watch.collector.has_incident("the return", 30.s(), |it| it["status"] == "resolved").map(drop)
    });
}
