//! The healthy twin: everything is watched, everything is known, nothing is found.

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::collector::titles;
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Postgres, Seconds, Watch, alone};

/// Each check, and a part of the key of the target it has to have seen with known values.
const CHECKS: [(&str, &str); 19] = [
    ("pool.idle_in_transaction", "grants-api"),
    ("pool.aborted_transaction", "grants-api"),
    ("pool.close_wait", "grants-api"),
    ("pool.churn", "grants-api"),
    ("pool.utilization", "grants-api"),
    ("pool.timeout", "log:grants-api"),
    ("err.correlate", "grants-api"),
    ("db.headroom", "server:"),
    ("db.connect", "server:"),
    ("proc.memory", "grants-api"),
    ("proc.restart", "grants-api"),
    ("proc.gone", "grants-api"),
    ("proc.zombie", "grants-api"),
    ("fd.limit", "grants-api"),
    ("http.status", "endpoint:http:"),
    ("http.latency", "endpoint:http:"),
    ("http.body", "endpoint:http:"),
    ("tls.cert", "endpoint:https:"),
    ("agent.slow", "agent:self"),
];

fn nothing_found(watch: &Watch) -> Result<(), String> {
    let found = watch.collector.items("findings", "").map_err(|error| error.to_string())?;
    if found.is_empty() { Ok(()) } else { Err(titles(&found)) }
}

/// With the shipped thresholds, under traffic. Memory alone is given a bound: without a limit of the control group it
/// would need a day of history.
#[test]
fn three_minutes_of_a_healthy_application_cause_not_one_finding() {
    alone(|stage| {
        let server = Postgres::start(stage, 100)?;
        let mut pooled = Application::pooled(stage, "grants-api", &server)?;
        pooled.does("traffic 20")?;
        let web = Application::web(stage, "grants-web", 0)?;
        let certificate = Certificate::ending_in(stage, 90)?;
        let safe = Application::web_tls(stage, "grants-tls", &certificate)?;
        let configuration = [
            app("grants-api", &pooled.command()),
            app("grants-web", &web.command()),
            postgres(&server.dsn_file("tickbird")?),
            format!("[[log]]\npath = \"{}\"\napp = \"grants-api\"\n", pooled.log().display()),
            check("proc.memory", "warning = \"2GiB\""),
            format!(
                "[[endpoint]]\nurl = \"{}\"\nbody_matches = \"ok\"\njson = {{ \"/database/ok\" = true }}\n",
                web.url()
            ),
            format!("[[endpoint]]\nurl = \"{}\"\nca_file = \"{}\"\n", safe.url(), certificate.chain.display()),
        ]
        .concat();
        let mut watch = Watch::begin(stage, &configuration)?;

        throughout("nothing is found", 180.s(), || nothing_found(&watch))?;

        let status = watch.agent.status()?;
        for (check, target) in CHECKS {
            let rows = rows_of(&status, check, target);
            // A look or two at the start may not know yet.
            let is_known = |it: &&serde_json::Value| {
                let (known, looks) = (it["looks_known"].as_u64(), it["looks"].as_u64());
                it["state"] == "ok"
                    && known.zip(looks).is_some_and(|(known, looks)| known > 0 && known * 10 >= looks * 9)
            };
            assert!(
                rows.iter().any(is_known),
                "{check} has not seen {target} with known values: {rows:?}; blind: {}",
                status["blind"]
            );
        }
        assert_eq!(status["findings"], serde_json::json!([]));
        assert_eq!(status["blind"], serde_json::json!([]));
        assert!(watch.webhook.attempts().is_empty(), "nobody was told anything");

        // An agent that begins anew, or reads its configuration again, finds a pool that is minutes old: nothing was
        // born, nothing stormed.
        watch.agent.stop()?;
        watch.agent.run()?;
        throughout("nothing is found after a restart of the agent", 20.s(), || nothing_found(&watch))?;
        watch.agent.reload()?;
        throughout("nothing is found after a reload", 20.s(), || nothing_found(&watch))?;
        let (served, failed) = pooled.served()?;
        assert!(served > 2_000 && failed == 0, "it was under traffic: {served} served, {failed} failed");
        Ok(())
    });
}
