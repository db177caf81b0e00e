//! Rules that operators write over many agents: what several hosts have together, its twin, and a rule that is taken out.

use tickbird_tests::agent::postgres;
use tickbird_tests::collector::receiver;
use tickbird_tests::webhook::{firing, resolved};
use tickbird_tests::{
    Agent, Application, Collector, Library, Postgres, Seconds, Sizes, Stage, StageError, Webhook, alone,
};

use crate::fleet::{Host, ports, watched};

const SUM: &str = "rule.connections";
const SHARE: &str = "rule.slots";

/// The proxy between the hosts holds connections, too, and is no application.
const RULES: &str = r#"
[[rule]]
name = "slots"
measure = "pool.open"
aggregate = "sum"
by = ["server"]
matchers = ['application=~".*-api"']
of = "server.slots"
above = { warning = 0.4, critical = 0.9 }
hold = "10s"
"#;

/// Both agents of a stage see the processes of both hosts: what lies in the other's network is left to the other.
const TAKEN_OUT: &str = r#"
[[rule]]
name = "connections"
measure = "pool.open"
aggregate = "sum"
by = ["application", "env"]
matchers = ['application=~".*-api"', 'address!~"netns:.*"']
above = 20
hold = "10s"
summary = "One application has too many connections"
advice = "ask its team for a smaller pool"
"#;

const TESTS: &str = r#"
[[rule_test]]
name = "two hosts count together, and only for the hold"
rule = "connections"
[[rule_test.step]]
for = "9s"
series = [{ host = "a", application = "shop-api", "pool.open" = 14 }, { host = "b", application = "shop-api", "pool.open" = 14 }]
fires = []
[[rule_test.step]]
for = "1s"
series = [{ host = "a", application = "shop-api", "pool.open" = 14 }, { host = "b", application = "shop-api", "pool.open" = 14 }]
fires = [{ application = "shop-api", env = "", severity = "warning" }]
"#;

/// An application whose pool opens this many connections at once and no more.
fn application(stage: &Stage, name: &str, server: &Postgres, open: u16) -> Result<Application, StageError> {
    Application::of_library(stage, name, Library::PsycopgPool, server, Sizes { most: open, least: open })
}

#[test]
fn what_two_hosts_have_together_fires_with_its_proof_its_twin_does_not_and_a_rule_that_is_taken_out_ends() {
    alone(|stage| {
        let tight = Postgres::start(stage, 60)?; // 57 without those for superusers
        let roomy = Postgres::start(stage, 60)?;
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        for rule in [RULES, TAKEN_OUT] {
            collector.configure(rule)?;
        }
        let tests = collector.directory().join("tests.toml");
        std::fs::write(&tests, TESTS).map_err(StageError::system("write the tests"))?;
        let checked = collector.command(&["check-config", "--tests", &tests.to_string_lossy()])?;
        assert!(
            checked.contains("by server, as a share of server.slots: warning above 0.4, critical above 0.9 for 10 s"),
            "{checked}"
        );
        assert!(checked.contains("ok    two hosts count together"), "{checked}");
        collector.serve()?;

        let host = Host::new(stage)?;
        let to_collector = ports(&collector)?;
        for port in [tight.port(), roomy.port()].into_iter().chain(to_collector) {
            host.reaches(port)?;
        }
        let (shop, calm) = (application(stage, "shop-api", &tight, 14)?, application(stage, "calm-api", &roomy, 6)?);
        let (shop_there, calm_there) = host
            .runs(|| Ok((application(stage, "shop-api", &tight, 14)?, application(stage, "calm-api", &roomy, 6)?)))?;
        let servers = [postgres(&tight.dsn_file("tickbird")?), postgres(&roomy.dsn_file("tickbird")?)].concat();
        let here = [servers.clone(), watched(&shop, 14), watched(&calm, 6)].concat();
        let there = [servers, watched(&shop_there, 14), watched(&calm_there, 6)].concat();
        let labelled = |it: String| format!("labels = {{ env = \"production\" }}\n{it}");
        let _first = Agent::running(stage, &collector, &labelled(here))?;
        let _second = host.runs(|| Agent::running(stage, &collector, &labelled(there)))?;

        let message = webhook.hears("the connections of both hosts", 180.s(), firing(SUM))?;
        let incident = &message.json["incident"];
        let evidence = &incident["evidence"];
        assert_eq!(incident["target"], "fleet{application=\"shop-api\",env=\"production\"}", "{incident}");
        assert_eq!((&incident["severity"], &incident["agent"]["id"]), (&"warning".into(), &"fleet".into()));
        assert_eq!(
            incident["summary"],
            "One application has too many connections (application shop-api, env production): sum of pool.open is 28, above 20"
        );
        assert_eq!(incident["advice"], "ask its team for a smaller pool");
        assert_eq!((&evidence["value"], &evidence["values"]), (&28.into(), &2.into()), "{evidence}");
        let largest: Vec<_> = evidence["largest"].as_array().into_iter().flatten().map(|it| &it["value"]).collect();
        assert_eq!(largest, [14, 14], "{evidence}");

        let message = webhook.hears("its share of the slots", 60.s(), firing(SHARE))?;
        let evidence = &message.json["incident"]["evidence"];
        let identifier = tight.sql("SELECT system_identifier FROM pg_control_system()")?;
        assert_eq!(evidence["labels"]["server"], format!("system/{}", identifier[0][0]), "{evidence}");
        assert_eq!(evidence["of"], serde_json::json!({ "measure": "server.slots", "value": 57 }));
        assert_eq!((&evidence["value"], &evidence["share"]), (&28.into(), &0.491.into()), "{evidence}");

        // Of the twin both hosts' pools are known by now, and twelve of them are no fault.
        let twin = roomy.sql("SELECT system_identifier FROM pg_control_system()")?;
        let pools = collector.items("fleet/pools", &format!("server=system/{}", twin[0][0]))?;
        let open: u64 =
            pools.iter().filter(|it| it["application"] == "calm-api").filter_map(|it| it["open"].as_u64()).sum();
        assert_eq!(open, 12, "{pools:?}");

        collector.rewrite(TAKEN_OUT, "")?;
        assert!(collector.reload()?.contains("was read again"));
        let end = webhook.hears("that the rule is gone", 60.s(), resolved(SUM))?;
        assert_eq!(end.json["incident"]["resolved_reason"], "rule gone", "{}", end.body);
        let collector_says = collector.items("incidents", "")?;
        let of = |check: &str| collector_says.iter().filter(|it| it["check"] == check).collect::<Vec<_>>();
        assert_eq!(of(SHARE).len(), 1);
        assert_eq!(of(SHARE)[0]["status"], "firing", "the other rule stands as it was");
        let told: Vec<_> = webhook
            .attempts()
            .iter()
            .filter(|it| it.check().starts_with("rule."))
            .map(|it| it.kind().to_owned())
            .collect();
        assert_eq!(told, ["incident.firing", "incident.firing", "incident.resolved"], "no twin, and nothing twice");
        Ok::<_, StageError>(())
    });
}
