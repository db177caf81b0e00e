//! Command lines as scripts and monitoring systems use them: exit codes, and an output that is closed or full.

use std::fs::File;
use std::process::{Command, Stdio};

use serde_json::Value;
use tickbird_tests::agent::{app, postgres};
use tickbird_tests::postgres::password;
use tickbird_tests::process::output;
use tickbird_tests::{Application, Postgres, Stage, StageError, Watch, alone};

const COMMANDS: [&[&str]; 7] =
    [&["status"], &["inspect"], &["doctor"], &["defaults"], &["inspectors"], &["check-config"], &["buffer", "stat"]];

/// Runs the agent's binary, its standard output being `out`; gives code and standard error.
fn run(stage: &Stage, watch: &Watch, arguments: &[&str], out: Stdio) -> Result<(Option<i32>, String), StageError> {
    let mut command = Command::new(stage.binary("tickbird-agent")?);
    command.args(arguments).arg("--config").arg(watch.agent.configuration()).stdout(out);
    let child = command.stderr(Stdio::piped()).spawn().map_err(StageError::system("start the agent's binary"))?;
    let ended = child.wait_with_output().map_err(StageError::system("wait for the agent's binary"))?;
    Ok((ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned()))
}

#[test]
fn a_reader_who_leaves_is_no_failure_and_a_full_disk_is_one() {
    alone(|stage| {
        let web = Application::web(stage, "shop", 0)?;
        let watch = Watch::begin(stage, &app("shop", &web.command()))?;
        watch.sees("fd.limit", "process:shop", "ok", std::time::Duration::from_secs(20))?;
        for arguments in COMMANDS {
            let (reader, writer) = std::io::pipe().map_err(StageError::system("make a pipe"))?;
            drop(reader);
            let (code, said) = run(stage, &watch, arguments, writer.into())?;
            assert!(matches!(code, Some(0 | 3)) && said.is_empty(), "{arguments:?} to nobody: {code:?} {said}");
            let full = File::options().write(true).open("/dev/full").map_err(StageError::system("open /dev/full"))?;
            let (code, said) = run(stage, &watch, arguments, full.into())?;
            let is_verdict = matches!(arguments[0], "status" | "inspect" | "doctor");
            assert_eq!(code, Some(if is_verdict { 3 } else { 1 }), "{arguments:?} to a full disk: {said}");
            assert!(said.contains("cannot write the answer"), "{arguments:?}: {said}");
        }
        let full = File::options().write(true).open("/dev/full").map_err(StageError::system("open /dev/full"))?;
        let mut list = Command::new(stage.binary("tickbird-collector")?);
        list.args(["agent", "list", "--dir"]).arg(watch.collector.directory()).stdout(full);
        let listed = output(&mut list)?;
        let said = String::from_utf8_lossy(&listed.stderr);
        assert!(listed.status.code() == Some(1) && said.contains("cannot write the answer"), "{said}");
        Ok(())
    });
}

#[test]
fn a_command_that_failed_is_no_verdict() {
    alone(|stage| {
        let mut watch = Watch::begin(stage, "")?;
        watch.agent.stop()?;
        let code = |arguments: &[&str]| run(stage, &watch, arguments, Stdio::null()).map(|it| it.0);
        assert_eq!(code(&["status"])?, Some(3), "no agent runs");
        assert_eq!(code(&["status", "--bogus"])?, Some(3), "wrong usage of a command that gives verdicts");
        assert_eq!(code(&["buffer", "--bogus"])?, Some(2), "wrong usage of another");
        assert_eq!(code(&["status", "--help"])?, Some(0));
        watch.agent.configure("bogus = 1\n")?;
        for (arguments, expected) in [(&["status"][..], 3), (&["inspect"], 3), (&["doctor"], 3), (&["check-config"], 1)]
        {
            assert_eq!(code(arguments)?, Some(expected), "{arguments:?} with a broken configuration");
        }
        Ok(())
    });
}

#[test]
fn a_wrong_password_is_blind_wherever_it_is_met_and_its_remedy_is_at_the_server() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        let file = server.dsn_file("tickbird")?;
        let wrong = server.dsn("tickbird").replace(&password("tickbird"), "canary-wrong");
        std::fs::write(&file, wrong).map_err(StageError::system("write a DSN file"))?;
        let watch = Watch::begin(stage, &postgres(&file))?;
        for name in ["inspect", "doctor"] {
            let ended = watch.agent.ask(name, &[])?;
            let said = String::from_utf8_lossy(&ended.stdout);
            assert_eq!(ended.status.code(), Some(3), "{name}: {said}");
            assert!(said.contains("password authentication failed") && said.contains("pg_hba.conf"), "{name}: {said}");
            assert!(!said.contains("CAP_SYS_PTRACE") || name == "doctor", "{name}: {said}");
            assert!(!said.contains("canary"), "{name}: {said}");
        }
        Ok(())
    });
}

#[test]
fn the_doctor_names_what_each_check_lacks_and_a_secret_that_others_may_read() {
    alone(|stage| {
        let watch = Watch::begin(stage, "")?;
        let line = |what: &str| {
            let report = watch.agent.report("doctor", &[])?;
            let has = |it: &&Value| it["what"].as_str().is_some_and(|it| it.split(", ").any(|it| it == what));
            let lines = report["lines"].as_array().cloned().unwrap_or_default();
            Ok::<_, StageError>(lines.iter().find(has).cloned().unwrap_or_default())
        };
        for (check, section) in [
            ("pool.idle_in_transaction", "[[postgres]]"),
            ("db.locks", "[[postgres]]"),
            ("http.status", "[[endpoint]]"),
            ("pool.timeout", "[[log]]"),
            ("err.correlate", "[[log]]"),
        ] {
            let found = line(check)?;
            assert_eq!(found["state"], "note", "{check}: {found}");
            assert!(found["found"].as_str().is_some_and(|it| it.contains(section)), "{check}: {found}");
        }
        let path = stage.room("dsn")?.join("app.dsn");
        std::fs::write(&path, "postgresql://app:canary@127.0.0.1:1/app").map_err(StageError::system("write a DSN"))?;
        watch.agent.configure(&postgres(&path))?;
        for (mode, is_warned) in [(0o644, true), (0o600, false)] {
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .map_err(StageError::system("set the mode of a DSN"))?;
            let checked = watch.agent.ask("check-config", &[])?;
            let said = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "{said}");
            assert_eq!(said.contains(&format!("chmod 600 {}", path.display())), is_warned, "{mode:o}: {said}");
            assert_eq!(line("secrets")?["state"] == "note", is_warned);
        }
        Ok(())
    });
}

#[test]
fn help_tells_the_exit_codes_and_nothing_panics_over_standard_error() {
    alone(|stage| {
        let watch = Watch::begin(stage, "")?;
        let full = || File::options().write(true).open("/dev/full").map_err(StageError::system("open /dev/full"));
        let binary = stage.binary("tickbird-agent")?;
        let help = output(Command::new(&binary).arg("--help"))?;
        let text = String::from_utf8_lossy(&help.stdout);
        assert!(
            help.status.success() && text.contains("status, inspect, doctor  0 ok, 1 warning, 2 critical"),
            "{text}"
        );
        assert_eq!(run(stage, &watch, &["--help"], full()?.into())?.0, Some(1), "help that nobody gets");
        let missing = stage.directory().join("missing.toml");
        let broken = Command::new(&binary).args(["status", "--config"]).arg(missing).stderr(full()?).status();
        assert_eq!(broken.map_err(StageError::system("run the agent"))?.code(), Some(3), "and no panic");
        Ok(())
    });
}
