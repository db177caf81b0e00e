//! Incidents that are told together: one message for many, its end in the same thread, through kills at any moment.

use serde_json::{Value, json};
use tickbird_tests::collector::receiver;
use tickbird_tests::webhook::{Message, titles};
use tickbird_tests::{Agent, Application, Collector, Seconds, Stage, StageError, Webhook, alone, shop, until};

/// Everything of one check is told together, at most every few seconds, and again soon.
const ROUTE: &str = r#"
[route]
receiver = "ops"
group_by = ["check"]
group_wait = "12s"
group_interval = "3s"
repeat_interval = { critical = "10s" }
"#;

const PAGES: [&str; 4] = ["till", "shelf", "cart", "desk"];

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
        collector.configure(&(receiver(&webhook) + ROUTE))?;
        collector.serve()?;
        let (web, agent) = shop(stage, &collector, &PAGES)?;
        Ok(Self { webhook, collector, web, agent })
    }

    /// Distinct messages about pages, in order.
    fn told(&self) -> Vec<(String, Value)> {
        let mut told: Vec<(String, Value)> = Vec::new();
        for message in self.webhook.attempts() {
            let is_new = told.iter().all(|it| it.1["id"] != message.json["id"]);
            if is_new && message.json["group"]["labels"]["check"] == "http.status" {
                told.push((message.kind().to_owned(), message.json));
            }
        }
        told
    }

    /// The first message of a kind after so many others.
    fn hears(&self, kind: &str, after: usize) -> Result<(usize, Value), StageError> {
        until(format!("a message {kind} after {after} others"), 60.s(), || {
            let told = self.told();
            let found = told.iter().enumerate().skip(after).find(|(_, it)| it.0 == kind);
            found.map(|(at, it)| (at, it.1.clone())).ok_or_else(|| format!("{:?}", kinds(&told)))
        })
    }

    fn explained(&self, id: &str) -> Result<Value, StageError> {
        let said = self.collector.command(&["explain", "--json", id])?;
        Ok(serde_json::from_str(&said).expect("JSON"))
    }
}

fn kinds(told: &[(String, Value)]) -> Vec<&str> {
    told.iter().map(|it| it.0.as_str()).collect()
}

/// What a message says of its incidents.
fn changes<'a>(body: &'a Value, change: &str) -> Vec<&'a str> {
    let members = body["incidents"].as_array().into_iter().flatten().filter(|it| it["change"] == change);
    members.filter_map(|it| it["incident"]["target"].as_str()?.rsplit('/').next()).collect()
}

#[test]
fn many_incidents_are_one_message_and_its_end_is_one_too() {
    alone(|stage| {
        let mut shop = Shop::open(stage)?;
        let shown = shop.collector.command(&["route", "show"])?;
        assert!(shown.contains("grouped by check after 12s, then each 3s, again after 10s to 4h"), "{shown}");
        let foreseen = shop.collector.command(&["route", "test", "check=http.status", "severity=critical"])?;
        assert!(foreseen.contains("GROUPED BY") && foreseen.contains("check=\"http.status\""), "{foreseen}");
        shop.web.does("status 500")?;
        let (_, first) = shop.hears("group.firing", 0)?;
        assert_eq!(changes(&first, "incident.firing").len(), PAGES.len(), "{first}");
        let summary = "4 firing: 4 http.status of 4 targets";
        assert_eq!((&first["group"]["summary"], &first["group"]["severity"]), (&summary.into(), &"critical".into()));

        // Nothing is new, and it is told again: with another id, in the same thread.
        let (at, again) = shop.hears("group.repeated", 1)?;
        assert_eq!(changes(&again, "unchanged").len(), PAGES.len(), "{:?}", kinds(&shop.told()));
        assert!(again["id"] != first["id"] && again["group"]["id"] == first["group"]["id"]);

        let id = first["incidents"][0]["incident"]["id"].as_str().expect("an id");
        let explained = shop.explained(id)?;
        let decision = &explained["decisions"][0];
        assert_eq!((&decision["group"], &decision["message"]["id"]), (&first["group"]["id"], &first["id"]));
        assert_eq!(decision["message"]["state"], "delivered");
        assert_eq!(explained["repeats"][0]["message"]["id"], again["id"], "{explained}");
        assert_eq!(decision["grouped_by"], json!({ "check": "http.status" }), "{explained}");

        shop.web.does("status 200")?;
        let (_, last) = shop.hears("group.resolved", at)?;
        assert_eq!((&last["group"]["status"], &last["group"]["id"]), (&"resolved".into(), &first["group"]["id"]));
        let over: usize = shop.told().iter().map(|it| changes(&it.1, "incident.resolved").len()).sum();
        assert_eq!(over, PAGES.len(), "each of them is told to be over");

        // The group is no more, and it is still said what it was of; by another configuration that its routes were others.
        let said = shop.collector.command(&["explain", id])?;
        assert!(said.contains("grouped by check=\"http.status\""), "{said}");
        let asked = format!("/v1/incidents/{id}/explanation");
        let grouped = || Ok::<_, StageError>(shop.collector.get(&asked)?.json()?["decisions"][0]["grouped_by"].clone());
        assert_eq!(grouped()?, json!({ "check": "http.status" }));
        shop.collector.rewrite("group_by = [\"check\"]", "group_by = [\"target\"]")?;
        let said = shop.collector.command(&["explain", id])?;
        assert!(said.contains("grouped as an earlier configuration"), "{said}");
        shop.collector.reload()?;
        assert_eq!(grouped()?, Value::Null, "the API goes by the routes as they are now");
        shop.agent.stop().map(drop)
    });
}

#[test]
fn a_kill_within_the_wait_loses_nothing_and_tells_nothing_twice() {
    alone(|stage| {
        let mut shop = Shop::open(stage)?;
        shop.web.does("status 500")?;
        until("incidents wait for their group", 60.s(), || {
            let found = shop.collector.items("incidents", "check=http.status").map_err(|error| error.to_string())?;
            if found.len() == PAGES.len() { Ok(()) } else { Err(format!("{} incidents", found.len())) }
        })?;
        shop.collector.kill()?;
        assert!(shop.told().is_empty(), "{:?}", titles(&shop.webhook.attempts()));
        shop.collector.serve()?;
        let (_, first) = shop.hears("group.firing", 0)?;
        assert_eq!(changes(&first, "incident.firing").len(), PAGES.len(), "{first}");
        let group = first["group"]["id"].clone();

        // Their ends wait, too.
        shop.web.does("status 200")?;
        until("all are over", 60.s(), || {
            let query = "check=http.status&status=resolved";
            let found = shop.collector.items("incidents", query).map_err(|error| error.to_string())?;
            if found.len() == PAGES.len() { Ok(()) } else { Err(format!("{} are over", found.len())) }
        })?;
        shop.collector.kill()?;
        shop.collector.serve()?;
        shop.hears("group.resolved", 1)?;
        let told = shop.told();
        let of = |change| told.iter().map(|it| changes(&it.1, change).len()).sum::<usize>();
        assert_eq!((of("incident.firing"), of("incident.resolved")), (PAGES.len(), PAGES.len()), "{:?}", kinds(&told));
        assert!(told.iter().all(|it| it.1["group"]["id"] == group));
        shop.agent.stop().map(drop)
    });
}

#[test]
fn what_is_silenced_while_it_waits_for_its_group_is_not_told_and_says_why() {
    alone(|stage| {
        let mut shop = Shop::open(stage)?;
        shop.web.does("status 500")?;
        let id = until("an incident of the till", 60.s(), || {
            let found = shop.collector.items("incidents", "check=http.status").map_err(|error| error.to_string())?;
            let till = found.iter().find(|it| it["target"].as_str().is_some_and(|it| it.ends_with("/till")));
            till.and_then(|it| it["id"].as_str().map(str::to_owned)).ok_or_else(|| format!("{found:?}"))
        })?;
        let silence = ["silence", "add", "--reason", "it moves", "--author", "anna", "target=~\".*/till\""];
        shop.collector.command(&silence)?;
        let (_, first) = shop.hears("group.firing", 0)?;
        let told = changes(&first, "incident.firing");
        assert!(told.len() == PAGES.len() - 1 && !told.contains(&"till"), "{first}");
        let explained = shop.explained(&id)?;
        let reason = explained["decisions"][0]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("; silenced until") && explained["decisions"][0]["told"] == false, "{explained}");
        shop.web.does("status 200")?;
        shop.hears("group.resolved", 1)?;
        let over = |message: &Message| message.kind() == "group.resolved" && message.body.contains("/till");
        assert!(!shop.webhook.attempts().iter().any(over), "who never heard that it fires does not hear the end");
        shop.agent.stop().map(drop)
    });
}
