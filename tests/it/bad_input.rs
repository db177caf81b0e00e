//! Bad input and missing rights: a clear error, or `blind` with its reason; never a wrong verdict.

use std::process::Output;

use serde_json::Value;
use tickbird_tests::agent::{User, app, postgres};
use tickbird_tests::postgres::{free_port, password};
use tickbird_tests::{Agent, Application, Postgres, Seconds, Stage, StageError, alone, until};

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

fn dsn_file(stage: &Stage, text: &str) -> Result<String, StageError> {
    let path = stage.room("dsn")?.join("app.dsn");
    std::fs::write(&path, text).map_err(StageError::system("write a DSN"))?;
    Ok(postgres(&path))
}

#[test]
fn a_dsn_with_a_typo_is_named_and_its_password_is_not() {
    alone(|stage| {
        for dsn in ["postgresl://app:hunter2@127.0.0.1/app", "host=127.0.0.1 prot=5432 password=hunter2"] {
            let agent = Agent::prepare(stage, &dsn_file(stage, dsn)?, User::Same)?;
            for command in ["check-config", "run"] {
                let output = agent.ask(command, &[])?;
                let text = said(&output);
                assert_eq!(output.status.code(), Some(1), "{text}");
                assert!(text.contains("postgres[0].dsn_file"), "{text}");
                assert!(!text.contains("hunter2"), "{text}");
            }
        }
        Ok(())
    });
}

#[test]
fn all_five_mistakes_of_a_configuration_are_reported_at_once() {
    alone(|stage| {
        let configuration = r#"
            labels = { "a b" = "x" }
            [[app]]
            name = "shop"
            comand = "web.py"
            [[endpoint]]
            url = "htp://127.0.0.1/"
            [check."pool.idle_in_transaction"]
            warning = "90"
            [check."pool.lek"]
            enabled = true
        "#;
        let agent = Agent::prepare(stage, configuration, User::Same)?;
        let output = agent.ask("check-config", &[])?;
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in ["labels", "comand", "endpoint[0].url", "pool.idle_in_transaction", "has no unit", "pool.lek"] {
            assert!(text.contains(part), "`{part}` is missing in:\n{text}");
        }
        assert!(text.contains("did you mean `command`"), "{text}");
        Ok(())
    });
}

#[test]
fn a_server_that_cannot_be_reached_makes_its_checks_blind_and_says_why() {
    alone(|stage| {
        let port = free_port()?;
        let dsn = dsn_file(stage, &format!("postgresql://app:hunter2@127.0.0.1:{port}/app"))?;
        let mut agent = Agent::prepare(stage, &dsn, User::Same)?;
        agent.run()?;
        until("it is said", 30.s(), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            let text = status.to_string();
            let blind = status["blind"].to_string();
            let refused =
                text.contains("refused") && blind.contains(&port.to_string()) && blind.contains("db.headroom");
            if refused && !text.contains("hunter2") { Ok(()) } else { Err(text) }
        })?;
        assert!(!agent.log().contains("hunter2"), "{}", agent.log());
        Ok(())
    });
}

#[test]
fn a_wrong_password_is_said_without_the_password() {
    alone(|stage| {
        let server = Postgres::start(stage, 20)?;
        let wrong = server.dsn("tickbird").replace(&password("tickbird"), "hunter2");
        let mut agent = Agent::prepare(stage, &dsn_file(stage, &wrong)?, User::Same)?;
        agent.run()?;
        until("it is said", 30.s(), || {
            let text = agent.status().map_err(|error| error.to_string())?.to_string();
            if text.contains("password authentication failed") { Ok(()) } else { Err(text) }
        })?;
        assert!(!agent.log().contains("hunter2"), "{}", agent.log());
        Ok(())
    });
}

/// The application runs as root, the agent as nobody. Only both capabilities together open `/proc/<pid>/fd`.
#[test]
fn without_both_capabilities_the_agent_is_blind_and_says_what_to_grant() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        let application = Application::pooled(stage, "grants-api", &server)?;
        let named = |report: &Value| report["targets"].to_string().contains(&application.pid().to_string());
        let configuration = app("grants-api", &application.command());
        for granted in [&[][..], &["sys_ptrace"], &["dac_read_search"]] {
            let agent = Agent::prepare(stage, &configuration, User::Nobody(granted))?;
            let report = agent.report("inspect", &[])?;
            let blind = report["blind"].to_string();
            assert!(blind.contains("may not read"), "with {granted:?}: {blind}");
            assert!(blind.contains("CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"), "with {granted:?}: {blind}");
        }
        let agent = Agent::prepare(stage, &configuration, User::Nobody(&["sys_ptrace", "dac_read_search"]))?;
        let report = agent.report("inspect", &[])?;
        assert!(!report["blind"].to_string().contains("may not read"), "{}", report["blind"]);
        assert!(named(&report), "with both, the process is named: {}", report["targets"]);
        Ok(())
    });
}

#[test]
fn a_spent_or_foreign_enrolment_token_is_refused_in_words() {
    use tickbird_tests::Collector;
    alone(|stage| {
        let (mut collector, mut other) = (Collector::init(stage)?, Collector::init(stage)?);
        collector.serve()?;
        other.serve()?;
        let agent = Agent::prepare(stage, "", User::Same)?;
        let foreign = agent.enrol_with(&collector, other.enrolment_token()).expect_err("it is of another authority");
        assert!(foreign.to_string().contains("authority"), "{foreign}");
        for token in ["", "not a token", "tbe1.abc.def"] {
            let refused = agent.enrol_with(&collector, token).expect_err("it is no token");
            assert!(refused.to_string().contains("enrolment token"), "{refused}");
        }
        Ok(())
    });
}
