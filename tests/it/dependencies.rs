//! Dependencies: while a server is away, nobody who knows of it hears what the applications on it suffer, as their sockets said which
//! these are; whatever does not depend on it is told.

use serde_json::{Value, json};
use tickbird_tests::agent::{User, check, postgres};
use tickbird_tests::collector::receiver;
use tickbird_tests::simulated::{RECORDS, fingerprint};
use tickbird_tests::webhook::Message;
use tickbird_tests::{
    Agent, Application, Collector, Postgres, Seconds, Simulated, Stage, StageError, Webhook, alone, until,
};

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

/// What one agent says at once, in which order it noticed it: the pools of its host are exhausted, and the server is away.
struct Host {
    agent: Simulated,
    next: usize,
}

impl Host {
    const POOLS: usize = 199;
    /// Processes with a pool each; an agent may have a thousand findings that fire.
    const WORKERS: usize = 5;
    const FINDINGS: usize = Self::POOLS * Self::WORKERS + 2;
    /// Records of one batch.
    const AT_ONCE: usize = 500;
    const SERVER: &str = "10.0.0.5:5432";
    /// No socket says what it depends on, so an operator does.
    const PAGE: &str = "endpoint:http://10.9.9.9/till";
    const DECLARED: &str =
        "\n[[depends_on]]\nmatchers = ['target=~\"endpoint:http://10.9.9.9/.*\"']\nserver = \"10.0.0.5:5432\"\n";

    fn pool(number: usize) -> String {
        format!("pool:shop/worker-{number}>{}", Self::SERVER)
    }

    /// An agent that has told where the pools of its host lead.
    fn of(stage: &Stage, collector: &Collector, token: &str) -> Result<Self, StageError> {
        let mut host = Self { agent: Simulated::enrolled(stage, collector, token)?, next: 1 };
        let server = json!({ "address": Self::SERVER });
        let pool = |number| {
            json!({
                "target": Self::pool(number), "server": server, "application": "shop", "instances": 1,
                "limit": { "known": 5 }, "open": 5, "leased": { "known": 5 },
            })
        };
        let pools: Vec<Value> = (0..Self::POOLS).map(pool).collect();
        let levels = json!({ "form": 1, "observed_at": jiff::Timestamp::now(), "pools": pools, "servers": [] });
        let said = host.agent.batch("bulk", 1, &[json!({ "levels": levels })]);
        host.sends(&said)?;
        Ok(host)
    }

    fn sends(&mut self, batch: &Value) -> Result<(), StageError> {
        let answer = self.agent.connect()?.ask("POST", RECORDS, "", batch.to_string().as_bytes())?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        Ok(())
    }

    fn says(&mut self, change: &str, status: &str) -> Result<(), StageError> {
        let of = |check: &str, target: &str, sub_key: &str| {
            let mut record = self.agent.finding(target, &json!({}));
            let fingerprint = fingerprint(&[&self.agent.tenant, &self.agent.id, check, target, sub_key]);
            let keys = [
                ("check", check),
                ("sub_key", sub_key),
                ("severity", "critical"),
                ("change", change),
                ("status", status),
                ("fingerprint", &fingerprint),
            ];
            keys.into_iter().for_each(|(key, value)| record["finding"][key] = value.into());
            record
        };
        let worker = |number| {
            let (pool, worker) = (Self::pool(number / Self::WORKERS), format!("worker-{}", number % Self::WORKERS));
            of("pool.exhausted", &pool, &worker)
        };
        let pools = (0..Self::POOLS * Self::WORKERS).map(worker);
        let page = of("http.status", Self::PAGE, "page");
        let server = of("db.connect", &format!("server:{}/shop", Self::SERVER), "server");
        let records: Vec<Value> = pools.chain([page, server]).collect();
        for some in records.chunks(Self::AT_ONCE) {
            let batch = self.agent.batch("urgent", self.next as u64, some);
            self.next += some.len();
            self.sends(&batch)?;
        }
        Ok(())
    }
}

/// Each of fifty-one hosts has a thousand processes' pools that wait for one database. People hear of it once, of the database, and once that it
/// is over.
#[test]
fn fifty_thousand_findings_behind_one_database_are_one_message_that_names_it() {
    const HOSTS: usize = 51;
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&(receiver(&webhook) + ROUTE + Host::DECLARED))?;
        collector.serve()?;
        let made: Value =
            serde_json::from_str(&collector.command(&["token", "create", "--json", "--uses", &HOSTS.to_string()])?)
                .expect("JSON");
        let token = made["token"].as_str().unwrap_or_default();
        let hosts = (0..HOSTS).map(|_| Host::of(stage, &collector, token));
        let mut hosts = hosts.collect::<Result<Vec<_>, _>>()?;
        hosts.iter_mut().try_for_each(|it| it.says("began", "firing"))?;
        let about =
            |it: &Message| ["db.connect", "pool.exhausted", "http.status"].iter().any(|word| it.body.contains(word));
        let first = webhook.hears("of the database", 90.s(), about)?;
        let words = format!("{HOSTS} firing: {HOSTS} db.connect of server:{}/shop", Host::SERVER);
        assert_eq!(first.json["group"]["summary"], words, "{}", first.json["group"]);
        let metrics = collector.get("/metrics")?.body;
        let all = HOSTS * Host::FINDINGS;
        assert!(
            all > 50_000 && metrics.contains(&format!("tickbird_incidents_firing{{severity=\"critical\"}} {all}\n")),
            "{metrics}"
        );
        let page = collector.items("incidents", "status=firing&check=http.status")?;
        let explained = collector.command(&["explain", page[0]["id"].as_str().unwrap_or_default()])?;
        assert!(page.len() == HOSTS && explained.contains("by depends_on[0]"), "{explained}");
        hosts.iter_mut().try_for_each(|it| it.says("cleared", "resolved"))?;
        let is_over = |it: &Message| about(it) && it.kind() == "group.resolved";
        let last = webhook.hears("that it is over", 90.s(), is_over)?;
        assert_eq!(last.json["group"]["id"], first.json["group"]["id"]);
        assert_eq!(last.json["group"]["resolved"], HOSTS);
        let told: Vec<_> = webhook.heard()?.into_iter().filter(about).map(|it| it.kind().to_owned()).collect();
        assert_eq!(told, ["group.firing", "group.resolved"], "and nothing else");
        Ok(())
    });
}
