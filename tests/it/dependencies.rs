//! Dependencies: while a server is away, nobody who knows of it hears what the applications on it suffer, as their sockets said which
//! these are; whatever does not depend on it is told.

use serde_json::Value;
use tickbird_tests::agent::{User, check, postgres};
use tickbird_tests::collector::receiver;
use tickbird_tests::{Agent, Application, Collector, Postgres, Seconds, Webhook, alone, until};

/// So long that the server's incident is there when the group of pages is told, whichever is noticed first.
const ROUTE: &str = r#"
[route]
receiver = "ops"
group_by = ["check"]
group_wait = "20s"
group_interval = "5s"
"#;

/// Pages that a message says something of: `incident.firing /till`.
fn pages(webhook: &Webhook) -> Vec<(String, String)> {
    let messages = webhook.attempts().into_iter();
    let members = messages.flat_map(|it| it.json["incidents"].as_array().cloned().unwrap_or_default());
    let told = members.filter(|it| it["incident"]["check"] == "http.status" && it["change"] != "unchanged");
    let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
    told.map(|it| (text(&it["change"]), text(&it["incident"]["target"]))).collect()
}

#[test]
fn a_server_that_is_away_is_told_and_not_what_its_clients_suffer_also_through_a_kill() {
    alone(|stage| {
        let mut server = Postgres::start(stage, 50)?;
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&(receiver(&webhook) + ROUTE))?;
        collector.serve()?;
        let shop = Application::web_of(stage, "shop", &server)?;
        let mut blog = Application::web(stage, "blog", 0)?;
        let [of_shop, of_blog] = [&shop, &blog].map(|it| format!("endpoint:{}", it.url()));
        let mut settings = postgres(&server.dsn_file("tickbird")?) + "interval = \"1s\"\n";
        for (name, page) in [("shop", shop.url()), ("blog", blog.url())] {
            settings += &format!("[[app]]\nname = \"{name}\"\ncommand = \"--name {name}\"\n");
            settings += &format!("[[endpoint]]\nurl = \"{page}\"\ninterval = \"1s\"\n");
        }
        settings += &check("http.status", "hold = \"0s\"");
        let mut agent = Agent::prepare(stage, &settings, User::Same)?;
        agent.enrol(&collector)?;
        agent.run()?;
        let place = format!("127.0.0.1:{}", server.port());
        until("the collector has learnt who uses the server", 90.s(), || {
            let said = collector.command(&["dependency", "list", "--json"]).map_err(|error| error.to_string())?;
            let said: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
            let all = said["dependencies"].as_array().into_iter().flatten();
            let leads = |it: &&Value| {
                it["names"].to_string().contains(&place) && it["applications"].to_string().contains("shop")
            };
            all.clone().find(leads).map(drop).ok_or_else(|| said.to_string())
        })?;

        server.stop()?;
        blog.does("status 500")?;
        let has = |what: &str, check: &str, target: &str| {
            collector.has_incident(what, 60.s(), |it| {
                let is_there = it["check"] == check && it["status"] == "firing";
                is_there && it["target"].as_str().is_some_and(|it| it.contains(target))
            })
        };
        has("the server", "db.connect", &place)?;
        let suffers = has("the page of the shop", "http.status", &of_shop)?;
        webhook.hears("that the server is away", 60.s(), |it| it.body.contains("db.connect"))?;
        webhook.hears("that the blog fails", 60.s(), |it| it.body.contains(&of_blog))?;
        collector.kill()?;
        collector.serve()?;
        let id = suffers["id"].as_str().unwrap_or_default();
        let explained = until("it is decided that nobody hears of the shop", 60.s(), || {
            let said = collector.command(&["explain", id]).map_err(|error| error.to_string())?;
            if said.contains("depends on a server with incident") { Ok(said) } else { Err(said) }
        })?;
        assert!(explained.contains("as its sockets said"), "{explained}");

        server.serve()?;
        let over = |check: &'static str, target: String| {
            collector.has_incident("what is over", 90.s(), move |it| {
                let is_over = it["check"] == check && it["status"] == "resolved";
                is_over && it["target"].as_str().is_some_and(|it| it.contains(&target))
            })
        };
        over("http.status", of_shop)?;
        over("db.connect", place)?;
        webhook.hears("that the server is back", 60.s(), |it| {
            it.kind() == "group.resolved" && it.body.contains("db.connect")
        })?;
        blog.does("status 200")?;
        webhook
            .hears("that the blog is well", 60.s(), |it| it.kind() == "group.resolved" && it.body.contains(&of_blog))?;
        let told = [("incident.firing", &of_blog), ("incident.resolved", &of_blog)];
        assert_eq!(
            pages(&webhook),
            told.map(|(change, of)| (change.to_owned(), of.clone())),
            "and nothing of the shop"
        );
        agent.stop().map(drop)
    });
}
