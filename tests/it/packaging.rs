//! The examples that are shipped load as they stand.

use std::fs;
use std::path::Path;

use tickbird_tests::agent::User;
use tickbird_tests::stage::workspace;
use tickbird_tests::{Agent, Collector, StageError, alone};

fn example(name: &str) -> Result<String, StageError> {
    let path = workspace().join("packaging/config").join(name);
    fs::read_to_string(&path).map_err(StageError::system(format!("read {}", path.display())))
}

fn write(path: &Path, text: &str) -> Result<(), StageError> {
    fs::write(path, text).map_err(StageError::system(format!("write {}", path.display())))
}

#[test]
fn the_example_configurations_have_no_mistakes() {
    alone(|stage| {
        let room = stage.room("files")?;
        let (dsn, secret) = (room.join("grants.dsn"), room.join("ops.secret"));
        write(&dsn, "postgresql://app:secret@127.0.0.1:5432/app")?;
        write(&secret, "whsec_dGhlIHJlY2VpdmVyJ3Mgb3duIHNlY3JldCwgMzIgYnl0ZXM=")?;

        let agent = Agent::prepare(stage, "", User::Same)?;
        let pooler = room.join("pgbouncer.dsn");
        write(&pooler, "postgresql://stats:secret@127.0.0.1/pgbouncer")?;
        let mysql = room.join("shop.dsn");
        write(&mysql, "mysql://tickbird:secret@127.0.0.1:3306/")?;
        let redis = room.join("cache.dsn");
        write(&redis, "redis://tickbird:secret@127.0.0.1:6379/0")?;
        let rabbitmq = room.join("rabbitmq.url");
        write(&rabbitmq, "http://tickbird:secret@127.0.0.1:15672")?;
        let text = example("agent.toml")?
            .replace("/etc/tickbird/rabbitmq.url", &rabbitmq.display().to_string())
            .replace("/etc/tickbird/cache.dsn", &redis.display().to_string())
            .replace("/etc/tickbird/shop.dsn", &mysql.display().to_string())
            .replace("/etc/tickbird/grants.dsn", &dsn.display().to_string())
            .replace("/etc/tickbird/pgbouncer.dsn", &pooler.display().to_string());
        write(&agent.configuration(), &text)?;
        let output = agent.ask("check-config", &[])?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        let collector = Collector::init(stage)?;
        let text = example("collector.toml")?.replace("/etc/tickbird/ops.secret", &secret.display().to_string());
        write(&collector.directory().join("collector.toml"), &text)?;
        collector.command(&["check-config"]).map(drop)
    });
}

#[test]
fn the_unit_grants_what_the_agent_needs_to_see_and_forbids_nothing_of_it() -> Result<(), StageError> {
    let read = |name: &str| {
        let path = workspace().join("packaging/systemd").join(name);
        fs::read_to_string(&path).map_err(StageError::system(format!("read {}", path.display())))
    };
    let settings = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim);
        lines.filter(|it| !it.starts_with('#') && it.contains('=')).map(str::to_owned).collect()
    };
    let unit = settings(&read("tickbird-agent.service")?);
    for wanted in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
        let wanted = format!("{wanted}CAP_SYS_PTRACE CAP_DAC_READ_SEARCH");
        assert!(unit.contains(&wanted), "{wanted} is missing: {unit:?}");
    }
    let families = unit.iter().find(|it| it.starts_with("RestrictAddressFamilies="));
    assert!(families.is_none_or(|it| it.contains("AF_NETLINK")), "{families:?}");
    let hides = |it: &&String| it.starts_with("ProtectProc=") || it.starts_with("ProcSubset=");
    assert_eq!(unit.iter().find(hides), None, "processes would be hidden");
    let host_mode = settings(&read("namespaces.conf")?);
    for wanted in ["AmbientCapabilities=CAP_SYS_ADMIN", "CapabilityBoundingSet=CAP_SYS_ADMIN", "RestrictNamespaces=net"]
    {
        assert!(host_mode.iter().any(|it| it == wanted), "{wanted} is missing: {host_mode:?}");
    }
    Ok(())
}

#[test]
fn the_tables_of_checks_and_sources_are_printed_for_people_and_programs() {
    alone(|stage| {
        let agent = Agent::prepare(stage, "", User::Same)?;
        for (command, word) in [("defaults", "pool.idle_in_transaction"), ("inspectors", "SOCK_DIAG")] {
            for arguments in [&[][..], &["--json"]] {
                let output = agent.ask(command, arguments)?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success() && text.contains(word), "{command} {arguments:?}: {text}");
                assert!(!text.contains('\u{1b}'), "no colours where nobody looks");
            }
        }
        Ok(())
    });
}
