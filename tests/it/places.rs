//! Where the agent stands decides what it can see; it says exactly that, and what it would need for the rest.

use std::collections::BTreeMap;

use serde_json::Value;
use tickbird_tests::agent::{User, app, check, postgres};
use tickbird_tests::truth::{backends, descriptors};
use tickbird_tests::{Agent, Application, Cgroup, Postgres, Seconds, alone, until};

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
        let group = pools(&report, "uid 0/unseen>");
        assert_eq!(group.len(), pools(&report, ">").len(), "by user, cgroup and endpoint: {}", report["pools"]);
        assert!(group.iter().all(|it| it["pid"].is_null()), "no process is made up: {group:?}");
        let seen: BTreeMap<_, _> = group.iter().flat_map(|it| connections(it)).collect();
        assert_eq!(seen.len(), 20, "every socket is there: {group:?}");
        assert!(seen.values().all(|(fd, session)| fd.is_none() && session.is_some()), "with its session: {seen:?}");
        let aged = |it: &Value| it["facts"].to_string().contains("tcp_info: last data sent");
        let all = group.iter().filter_map(|it| it["connections"].as_array()).flatten();
        assert_eq!(all.filter(|it| aged(it)).count(), 20, "and its ages");

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

/// Two containers of one image in one pod: same user, same command, same server. Their processes are not visible, so the
/// cgroup of their sockets tells them apart, in the name of each pool and of what is found in it.
#[test]
fn two_containers_of_one_image_are_two_owners_by_the_cgroup_of_their_sockets() {
    alone(|stage| {
        let (leaky, twin) = (Cgroup::make(stage, "leaky")?, Cgroup::make(stage, "twin")?);
        let server = Postgres::start(stage, 60)?;
        let mut application = Application::pooled_in_cgroup(&leaky, stage, "grants-api", &server)?;
        let _replica = Application::pooled_in_cgroup(&twin, stage, "grants-api", &server)?;
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
        for cgroup in [&leaky, &twin] {
            let name = format!("pool:uid 0 cgroup {}/unseen>", cgroup.id()?);
            let [pool] = pools(&report, &name).try_into().expect("one pool of each container");
            assert_eq!((&pool["pid"], &pool["open"]), (&Value::Null, &20.into()), "{name}: {pool}");
        }
        let told = report["findings"].as_array().cloned().unwrap_or_default();
        let left_open: Vec<&Value> = told.iter().filter(|it| it["check"] == "pool.idle_in_transaction").collect();
        let [finding] = left_open.try_into().expect("the healthy one is not told of");
        let (cgroup, twin) = (format!("uid 0 cgroup {}", leaky.id()?), format!("cgroup {}", twin.id()?));
        assert!(finding["target"].to_string().contains(&cgroup), "{finding}");
        let summary = finding["summary"].as_str().unwrap_or_default();
        assert!(summary.contains(&format!("{cgroup} (owner: not visible)")) && !summary.contains(&twin), "{summary}");
        Ok(())
    });
}

/// The rows of the one finding about sessions left in a transaction.
fn sessions(report: &Value) -> Option<&[Value]> {
    let findings = report["findings"].as_array()?;
    let finding = findings.iter().find(|it| it["check"] == "pool.idle_in_transaction")?;
    finding["evidence"]["sessions"].as_array().map(Vec::as_slice)
}

/// Every connection of a pool as `inspect` shows it: local port to descriptor and session.
fn connections(pool: &Value) -> BTreeMap<u16, (Option<u64>, Option<u64>)> {
    let port = |it: &Value| it["local"].as_str()?.rsplit(':').next()?.parse().ok();
    let rows = pool["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|it| Some((port(it)?, (it["fds"][0].as_u64(), it["session"].as_u64())))).collect()
}

/// The pools of a report whose target contains `part`.
fn pools<'r>(report: &'r Value, part: &str) -> Vec<&'r Value> {
    let pools = report["pools"].as_array().map(Vec::as_slice).unwrap_or_default();
    pools.iter().filter(|it| it["target"].as_str().is_some_and(|it| it.contains(part))).collect()
}

/// Without any capability: the descriptors of every process of the agent's own user, and of no other.
#[test]
fn as_the_applications_user_everything_of_it_is_seen_and_of_one_that_is_not_dumpable_its_sockets() {
    alone(|stage| {
        let server = Postgres::start(stage, 80)?;
        let application = Application::pooled_by_nobody(stage, "grants-api", &server)?;
        let configuration =
            [postgres(&server.dsn_file("tickbird")?), app("grants-api", &application.command())].concat();
        let truth = descriptors(application.pid())?;
        let sessions = backends(&server)?;
        for place in [User::Nobody(&[]), User::Sharing] {
            let agent = Agent::prepare(stage, &configuration, place)?;
            let report = agent.report("inspect", &[])?;
            let [pool] = pools(&report, "grants-api").try_into().expect("one pool");
            assert_eq!((&pool["pid"], &pool["open"]), (&application.pid().into(), &20.into()), "{place:?}: {pool}");
            for (port, (fd, session)) in connections(pool) {
                assert_eq!(fd, truth.get(&port).map(|fd| u64::from(*fd)), "{place:?}: descriptor of port {port}");
                assert_eq!(session, Some(sessions[&port].pid as u64), "{place:?}: session of port {port}");
            }
            // The server is another user's, so who serves is not seen; of the application nothing is missing.
            let blind = report["blind"].to_string();
            assert!(!blind.contains("65534") && !blind.contains("grants-api"), "{place:?}: {blind}");
            let told = report["findings"].as_array().cloned().unwrap_or_default();
            assert!(told.iter().all(|it| it["check"] == "agent.blind"), "{place:?}: {told:?}");
            let doctor = agent.report("doctor", &[])?.to_string();
            assert!(doctor.contains("uid 65534 with neither CAP_SYS_PTRACE nor CAP_DAC_READ_SEARCH"), "{doctor}");
        }

        let mut closed = Application::pooled_by_nobody(stage, "secrets-api", &server)?;
        closed.does("undumpable")?;
        let agent = Agent::prepare(stage, &configuration, User::Nobody(&[]))?;
        let report = agent.report("inspect", &[])?;
        let [open] = pools(&report, "grants-api").try_into().expect("the other process is seen as before");
        assert_eq!((&open["pid"], &open["open"]), (&application.pid().into(), &20.into()), "{open}");
        let [hidden] = pools(&report, "uid 65534").try_into().expect("its sockets are seen");
        assert_eq!((&hidden["pid"], &hidden["open"]), (&Value::Null, &20.into()), "{hidden}");
        assert!(connections(hidden).values().all(|(fd, session)| fd.is_none() && session.is_some()), "{hidden}");
        let blind = report["blind"].to_string();
        let reason = "may not read the descriptors of a process of uid 65534 that made itself non-dumpable";
        assert_eq!(blind.matches(reason).count(), 1, "{blind}");
        assert!(!blind.contains("grants-api"), "{blind}");
        let doctor = agent.report("doctor", &[])?.to_string();
        assert!(doctor.contains(reason) && doctor.contains("AmbientCapabilities="), "{doctor}");

        let both = User::Nobody(&["sys_ptrace", "dac_read_search"]);
        let report = Agent::prepare(stage, &configuration, both)?.report("inspect", &[])?;
        let pids: Vec<&Value> = pools(&report, ">").iter().map(|it| &it["pid"]).collect();
        assert_eq!(
            pids,
            [application.pid(), closed.pid()],
            "both capabilities open that one, too: {}",
            report["blind"]
        );
        Ok(())
    });
}
