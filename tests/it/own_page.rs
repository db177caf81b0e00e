//! The agent's page for probes and scrapers of its host: read with Prometheus' own parser, and free of evidence.

use std::process::Command;

use tickbird_tests::process::{installed, output, run};
use tickbird_tests::requests::exchange;
use tickbird_tests::{Application, Seconds, Stage, StageError, Watch, alone, until};

const PORT: u16 = 7442;
const PAGE: &str = "[local]\nlisten = \"127.0.0.1:7442\"\n";

/// Scrapes as a server does, and prints each sample with its labels.
const SCRAPE: &str = "import sys, urllib.request
from prometheus_client.openmetrics.parser import text_string_to_metric_families
answer = urllib.request.urlopen(sys.argv[1])
assert answer.headers['content-type'].startswith('application/openmetrics-text'), answer.headers
for family in text_string_to_metric_families(answer.read().decode()):
    for it in family.samples:
        print(it.name, ','.join(f'{key}={it.labels[key]}' for key in sorted(it.labels)), it.value)
";

/// `name labels value` by line.
fn scrape() -> Result<String, StageError> {
    let library = "/usr/lib/python3/dist-packages/prometheus_client";
    installed(library, "python3-prometheus-client")?;
    let url = format!("http://127.0.0.1:{PORT}/metrics");
    run(Command::new("/usr/bin/python3").args(["-c", SCRAPE, &url]))
}

fn says(line: &str) -> Result<(), StageError> {
    until(format!("the page says {line}"), 30.s(), || {
        let said = scrape().map_err(|error| error.to_string())?;
        if said.lines().any(|it| it == line) { Ok(()) } else { Err(said) }
    })
}

fn health(wanted: &str) -> Result<(), StageError> {
    until(format!("its health is {wanted}"), 60.s(), || {
        let said = exchange(PORT, "GET", "/healthz").map_err(|error| error.to_string())?;
        if said.starts_with("HTTP/1.1 200 ") && said.trim_end().ends_with(wanted) { Ok(()) } else { Err(said) }
    })
}

#[test]
fn the_page_tells_numbers_to_a_scraper_and_health_to_a_probe_and_no_evidence_to_anybody() {
    alone(|stage| {
        let mut web = Application::web(stage, "shop", 0)?;
        let endpoint = format!("[[endpoint]]\nurl = \"{}\"\ninterval = \"1s\"\n", web.url());
        let mut watch = Watch::begin(stage, &(PAGE.to_owned() + &endpoint))?;
        watch.sees("http.status", &web.url(), "ok", 30.s())?;
        let healthy = scrape()?;
        assert!(!healthy.contains("check=http.status"), "nothing fires: {healthy}");
        says("tickbird_agent_collector_connected  1.0")?;

        web.does("status 500")?;
        watch.fires("http.status", &web.url(), 30.s())?;
        says("tickbird_agent_findings check=http.status,severity=critical 1.0")?;
        says("tickbird_agent_targets kind=endpoint 1.0")?;
        let pages = [scrape()?, exchange(PORT, "GET", "/healthz")?].concat();
        let port = web.url().rsplit(':').next().unwrap_or_default().trim_matches('/').to_owned();
        for evidence in ["shop", "127.0.0.1", &port, "python"] {
            assert!(!pages.contains(evidence), "`{evidence}` is evidence: {pages}");
        }
        web.does("status 200")?;
        watch.resolves("http.status", &web.url(), 30.s())?;

        for (method, path, status) in [
            ("GET", "/v1/status", "404"),
            ("POST", "/metrics", "405"),
            ("DELETE", "/healthz", "405"),
            ("HEAD", "/healthz", "200"),
        ] {
            let said = exchange(PORT, method, path)?;
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {said}");
        }
        watch.collector.stop()?;
        health(r#"{"reasons":["collector_away"],"status":"degraded"}"#)?;
        says("tickbird_agent_collector_connected  0.0")?;
        watch.collector.start()?;
        health(r#"{"reasons":[],"status":"ok"}"#)?;

        // Switched off by a reload, and where another process listens.
        watch.agent.configure(&endpoint)?;
        watch.agent.reload()?;
        until("nobody answers there", 10.s(), || match exchange(PORT, "GET", "/healthz") {
            Err(_) => Ok(()),
            Ok(said) => Err(said),
        })
    });
}

#[test]
fn an_address_that_others_reach_is_refused_and_one_that_is_taken_is_named() {
    alone(|stage: &Stage| {
        let mut watch = Watch::begin(stage, PAGE)?;
        for (address, why) in [
            ("0.0.0.0:7442", "is no loopback address"),
            ("[::]:7442", "is no loopback address"),
            ("127.0.0.1:0", "needs a port"),
            ("localhost", "is no address with a port"),
        ] {
            watch.agent.configure(&format!("[local]\nlisten = \"{address}\"\n"))?;
            let said = watch.agent.ask("check-config", &[])?;
            let text = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.status.code() == Some(1) && text.contains(why), "{address}: {text}");
        }
        watch.agent.configure(PAGE)?;
        let elsewhere = stage.room("second")?;
        let mut second = Command::new(watch.agent.binary());
        second.args(["run", "--config"]).arg(watch.agent.configuration()).arg("--state-dir").arg(elsewhere);
        let said = output(&mut second)?;
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && text.contains("cannot listen at 127.0.0.1:7442"), "{text}");
        watch.agent.stop().map(drop)
    });
}
