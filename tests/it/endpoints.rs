//! HTTP and HTTPS endpoints: status, latency, body, certificate, and no answer at all.

use tickbird_tests::certificate::Certificate;
use tickbird_tests::{Application, Seconds, Stage, StageError, Watch, alone};

/// Two web servers, looked at each second; the second one never does anything wrong.
fn watched(stage: &Stage) -> Result<(Application, Application, Watch), StageError> {
    let (web, twin) = (Application::web(stage, "shop", 0)?, Application::web(stage, "twin", 0)?);
    let section = |it: &Application| {
        let asserted = "body_matches = \"ok\"\njson = { \"/database/ok\" = true }";
        format!("[[endpoint]]\nurl = \"{}\"\n{asserted}\ninterval = \"1s\"\n", it.url())
    };
    let watch = Watch::begin(stage, &[section(&web), section(&twin)].concat())?;
    watch.sees("http.status", &endpoint(&web), "ok", 20.s())?;
    Ok((web, twin, watch))
}

fn endpoint(web: &Application) -> String {
    format!("endpoint:{}", web.url())
}

#[test]
fn an_endpoint_that_answers_500_or_nothing_is_found() {
    alone(|stage| {
        const CHECK: &str = "http.status";
        let (mut web, twin, watch) = watched(stage)?;
        web.does("status 500")?;
        let incident = watch.fires(CHECK, &endpoint(&web), 20.s())?;
        assert!(incident["summary"].as_str().is_some_and(|it| it.contains("500")), "{}", incident["summary"]);
        web.does("status 200")?;
        watch.resolves(CHECK, &endpoint(&web), 20.s())?;
        web.kill()?;
        let incident = watch.fires(CHECK, &endpoint(&web), 20.s())?;
        assert!(incident.to_string().contains("refused"), "{incident}");
        watch.silent_about(&endpoint(&twin))
    });
}

#[test]
fn an_endpoint_that_became_slow_is_found() {
    alone(|stage| {
        const CHECK: &str = "http.latency";
        let (mut web, twin, watch) = watched(stage)?;
        web.does("delay 2.5")?;
        watch.fires(CHECK, &endpoint(&web), 60.s())?;
        web.does("delay 0")?;
        watch.resolves(CHECK, &endpoint(&web), 60.s())?;
        watch.silent_about(&endpoint(&twin))
    });
}

#[test]
fn an_endpoint_that_says_the_wrong_thing_is_found() {
    alone(|stage| {
        const CHECK: &str = "http.body";
        let (mut web, twin, watch) = watched(stage)?;
        web.does("body {\"database\": {\"ok\": false}, \"secret\": \"canary-in-a-body\"}")?;
        let incident = watch.fires(CHECK, &endpoint(&web), 20.s())?;
        assert!(incident.to_string().contains("/database/ok"), "{incident}");
        assert!(!incident.to_string().contains("canary"), "no text of a body leaves the host");
        web.does("body {\"database\": {\"ok\": true}}")?;
        watch.resolves(CHECK, &endpoint(&web), 20.s())?;
        watch.silent_about(&endpoint(&twin))
    });
}

#[test]
fn a_body_that_does_not_match_a_regular_expression_is_found() {
    alone(|stage| {
        const CHECK: &str = "http.body";
        let (mut web, twin) = (Application::web(stage, "shop", 0)?, Application::web(stage, "twin", 0)?);
        let section = |it: &Application| {
            format!("[[endpoint]]\nurl = \"{}\"\nbody_matches = \"ok.*true\"\ninterval = \"1s\"\n", it.url())
        };
        let watch = Watch::begin(stage, &[section(&web), section(&twin)].concat())?;
        for it in [&web, &twin] {
            watch.sees(CHECK, &endpoint(it), "ok", 20.s())?;
        }
        web.does("body {\"database\": {\"ok\": false}}")?;
        let incident = watch.fires(CHECK, &endpoint(&web), 20.s())?;
        assert!(incident.to_string().contains("ok.*true"), "{incident}");
        web.does("body {\"database\": {\"ok\": true}}")?;
        watch.resolves(CHECK, &endpoint(&web), 20.s())?;
        watch.sees(CHECK, &endpoint(&twin), "ok", 5.s())?;
        watch.silent_about(&endpoint(&twin))
    });
}

/// With the shipped thresholds: 14 days and 3 days.
#[test]
fn a_certificate_near_its_end_is_found_by_how_near_it_is() {
    alone(|stage| {
        const CHECK: &str = "tls.cert";
        let days = [90, 10, 2];
        let mut servers = Vec::new();
        let mut configuration = String::new();
        for days in days {
            let certificate = Certificate::ending_in(stage, days)?;
            let server = Application::web_tls(stage, &format!("days-{days}"), &certificate)?;
            let file = certificate.chain.display();
            configuration +=
                &format!("[[endpoint]]\nurl = \"{}\"\nca_file = \"{file}\"\ninterval = \"1s\"\n", server.url());
            servers.push(server);
        }
        let stranger = Application::web_tls(stage, "stranger", &Certificate::ending_in(stage, 90)?)?;
        configuration += &format!("[[endpoint]]\nurl = \"{}\"\ninterval = \"1s\"\n", stranger.url());
        let watch = Watch::begin(stage, &configuration)?;
        for (server, severity) in servers[1..].iter().zip(["warning", "critical"]) {
            let incident = watch.fires(CHECK, &endpoint(server), 20.s())?;
            assert_eq!(incident["severity"], severity, "{incident}");
        }
        let incident = watch.fires(CHECK, &endpoint(&stranger), 20.s())?;
        assert!(incident.to_string().contains("issuer"), "it says why it is not trusted: {incident}");
        watch.sees(CHECK, &endpoint(&servers[0]), "ok", 20.s())?;
        watch.silent_about(&endpoint(&servers[0]))
    });
}
