//! Where the agent stands decides what it can see; it says exactly that, and what it would need for the rest.

use serde_json::Value;
use tickbird_tests::agent::{User, app, check, postgres};
use tickbird_tests::{Agent, Application, Postgres, Seconds, alone, until};

/// Both on one network, the agent in a PID namespace of its own: every socket and the server's view of it, no process.
#[test]
fn a_sidecar_without_the_process_namespace_names_ports_and_sessions_and_no_process() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        let mut application = Application::pooled(stage, "grants-api", &server)?;
        application.does("traffic 20")?;
        let held = application.leaks(2)?;
        let configuration = [
            postgres(&server.dsn_file("tickbird")?),
            app("grants-api", &application.command()),
            check("pool.idle_in_transaction", "warning = \"1s\""),
        ]
        .concat();
        let agent = Agent::prepare(stage, &configuration, User::Sidecar)?;
        let report = until("the leak is old enough to be named", 20.s(), || {
            let report = agent.report("inspect", &[]).map_err(|error| error.to_string())?;
            let named = sessions(&report).map_or(0, <[Value]>::len);
            if named == held.len() { Ok(report) } else { Err(report["findings"].to_string()) }
        })?;

        let rows = sessions(&report).expect("they were counted");
        for truth in &held {
            let row = rows.iter().find(|it| it["backend"] == truth.backend).expect("each backend is named");
            assert_eq!(row["local"], format!("127.0.0.1:{}", truth.port), "by its port: {row}");
            assert_eq!((&row["pid"], &row["fd"]), (&Value::Null, &Value::Null), "no process is made up: {row}");
        }
        let finding = report["findings"].to_string();
        assert!(finding.contains("owner: not visible"), "{finding}");
        assert!(!report["targets"].to_string().contains(&application.pid().to_string()), "{}", report["targets"]);

        let blind = report["blind"].as_array().cloned().unwrap_or_default();
        assert_eq!(blind.len(), 1, "one entry for the one cause: {blind:?}");
        let reason = blind[0]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("in another PID namespace"), "{reason}");
        let advice = blind[0]["advice"].as_str().unwrap_or_default();
        assert!(advice.contains("share"), "it says how to share the namespace: {advice}");
        let doctor = agent.report("doctor", &[])?.to_string();
        assert!(doctor.contains("in another PID namespace"), "the doctor says the same: {doctor}");
        Ok(())
    });
}

/// The rows of the one finding about sessions left in a transaction.
fn sessions(report: &Value) -> Option<&[Value]> {
    let findings = report["findings"].as_array()?;
    let finding = findings.iter().find(|it| it["check"] == "pool.idle_in_transaction")?;
    finding["evidence"]["sessions"].as_array().map(Vec::as_slice)
}
