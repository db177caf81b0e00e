//! Processes in other network namespaces than the agent's: what is seen of them from outside, and in the host mode.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tickbird_tests::agent::{User, app, check, postgres};
use tickbird_tests::truth::descriptors;
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Agent, Application, Network, Postgres, Seconds, Stage, StageError, alone, until};

const NO_AGES: &str = "another network namespace: no ages and no ends of its connections are told";
const UNASKED: &str = "cannot ask PostgreSQL at 127.0.0.1:5432: that is loopback of another network namespace";
const HOST_MODE: &str = "[host]\nnamespaces = true\n";
/// What no table of sockets tells.
const NEED_AGES: [&str; 6] =
    ["pool.absent", "pool.churn", "pool.exhausted", "pool.leak", "pool.leak_rate", "pool.storm"];
/// What only the server tells.
const NEED_THE_SERVER: [&str; 2] = ["pool.aborted_transaction", "pool.idle_in_transaction"];
/// What states, queues and timers tell.
const NEED_STATES: [&str; 4] = ["pool.close_wait", "pool.connect_stuck", "pool.half_open", "pool.keepalive"];

fn rows<'r>(report: &'r Value, list: &str, part: &str) -> Vec<&'r Value> {
    let all = report[list].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(|it| it["target"].as_str().is_some_and(|it| it.contains(part))).collect()
}

/// Checks of the targets that contain `part`, with their states.
fn states(report: &Value, part: &str) -> BTreeMap<String, String> {
    let word = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    rows(report, "checks", part).into_iter().map(|it| (word(it, "check"), word(it, "state"))).collect()
}

/// What is blind: reason to checks, both in order.
fn blind(report: &Value) -> BTreeMap<String, Vec<String>> {
    let words = |it: &Value| -> Vec<String> {
        let mut all: Vec<String> =
            it.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        all.sort();
        all
    };
    let all = report["blind"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().map(|it| (it["reason"].as_str().unwrap_or_default().to_owned(), words(&it["checks"]))).collect()
}

/// What fires beside the causes of blindness, of which each is one finding.
fn findings(report: &Value) -> Vec<&Value> {
    let all = report["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (blind, others): (Vec<_>, Vec<_>) = all.iter().partition(|it| it["check"] == "agent.blind");
    let mut told: Vec<&str> = blind.iter().filter_map(|it| it["evidence"]["reason"].as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, self::blind(report).keys().collect::<Vec<_>>(), "one finding for each cause");
    others
}

fn states_of(groups: &[(&[&str], &str)]) -> BTreeMap<String, String> {
    groups.iter().flat_map(|(checks, state)| checks.iter().map(|it| ((*it).to_owned(), (*state).to_owned()))).collect()
}

/// The connections of a pool in another namespace: descriptors as the process has them, states, and nothing more.
fn is_seen_from_outside(pool: &Value, pid: u32, open: usize) -> Result<(), StageError> {
    let truth = descriptors(pid)?;
    let seen = (&pool["pid"], &pool["open"], &pool["counts"], &pool["discipline"], &pool["remote"]);
    let expected = json!([pid, open, { "unknown": open }, "unknown", "netns:127.0.0.1:5432"]);
    assert_eq!(json!([seen.0, seen.1, seen.2, seen.3, seen.4]), expected, "{pool}");
    assert_eq!(pool["waiters"], NO_AGES, "{pool}");
    let connections = pool["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
    assert_eq!(connections.len(), open);
    for it in connections {
        let local = it["local"].as_str().unwrap_or_default();
        let port = local.strip_prefix("netns:127.0.0.1:").and_then(|it| it.parse::<u16>().ok());
        let fd = port.and_then(|port| truth.get(&port));
        assert_eq!(it["fds"], json!([fd.expect("a connection of that process")]), "{it}");
        assert_eq!(
            (&it["age_seconds"], &it["session"], &it["state"]),
            (&Value::Null, &Value::Null, &Value::Null),
            "{it}"
        );
        assert!(!it["facts"].to_string().contains("tcp_info"), "no ages are made up: {it}");
    }
    Ok(())
}

/// A healthy application beside the agent, and two hosts' worth of containers: each its own server on loopback.
struct Host {
    _server: Postgres,
    twin: Application,
    containers: [Application; 2],
    configuration: String,
}

impl Host {
    fn begin(stage: &Stage) -> Result<Self, StageError> {
        let server = Postgres::start(stage, 50)?;
        let mut twin = Application::pooled(stage, "grants-api", &server)?;
        twin.does("traffic 20")?;
        let containers =
            [Application::sockets_elsewhere(stage, 5432, 6)?, Application::sockets_elsewhere(stage, 5432, 4)?];
        let configuration = [postgres(&server.dsn_file("tickbird")?), app("grants-api", &twin.command())].concat();
        Ok(Self { _server: server, twin, containers, configuration })
    }

    /// The twin is seen whole: every session with its descriptor, and nothing blind or firing.
    fn twin_is_well(&self, report: &Value) {
        let [pool] = rows(report, "pools", "grants-api").try_into().expect("one pool");
        assert_eq!((&pool["pid"], &pool["open"]), (&self.twin.pid().into(), &20.into()), "{pool}");
        let connections = pool["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(connections.iter().all(|it| it["session"].is_u64() && it["fds"][0].is_u64()), "{pool}");
        let states = states(report, "grants-api");
        assert!(states.values().all(|it| it == "ok" || it == "not yet"), "{states:?}");
        assert_eq!(findings(report), Vec::<&Value>::new());
    }
}

#[test]
fn containers_are_read_from_outside_with_states_and_owners_and_no_setns() {
    alone(|stage| {
        let host = Host::begin(stage)?;
        let agent = Agent::prepare(stage, &host.configuration, User::Same)?.traced()?;
        let report = agent.report("inspect", &[])?;
        let pools = rows(&report, "pools", "netns:");
        assert_eq!(pools.len(), 2, "{}", report["pools"]);
        for (container, open) in host.containers.iter().zip([6, 4]) {
            let pool = pools.iter().find(|it| it["pid"] == container.pid()).expect("each has its own");
            is_seen_from_outside(pool, container.pid(), open)?;
        }
        let expected = states_of(&[
            (&NEED_AGES, "blind"),
            (&NEED_THE_SERVER, "blind"),
            (&NEED_STATES, "ok"),
            (&["pool.utilization"], "not yet"),
        ]);
        assert_eq!(states(&report, "netns:"), expected);
        let causes = [(NO_AGES, &NEED_AGES[..]), (UNASKED, &NEED_THE_SERVER)];
        let words = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let causes: BTreeMap<String, Vec<String>> = causes.map(|(it, all)| (it.to_owned(), words(all))).into();
        assert_eq!(blind(&report), causes, "one entry for each cause");
        let advice = report["blind"].to_string();
        assert!(advice.contains("namespaces = true") && advice.contains("CAP_SYS_ADMIN"), "{advice}");
        host.twin_is_well(&report);
        let doctor = agent.report("doctor", &[])?.to_string();
        assert!(doctor.contains("2 seen from outside: states, queues and holders"), "{doctor}");
        assert!(doctor.contains(NO_AGES) && doctor.contains("namespaces = true"), "{doctor}");

        let mut agent = Agent::prepare(stage, &host.configuration, User::Same)?.traced()?;
        agent.run()?;
        until("the causes are told, once each", 30.s(), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            let findings = rows(&status, "findings", "agent:self");
            let of_network =
                findings.iter().filter(|it| it["summary"].as_str().is_some_and(|it| it.contains("namespace")));
            if of_network.count() == 2 { Ok(()) } else { Err(status["findings"].to_string()) }
        })?;
        assert_eq!(agent.namespaces_entered(), [""; 0]);
        Ok(())
    });
}

#[test]
fn in_the_host_mode_each_namespace_is_entered_once_and_seen_like_our_own() {
    alone(|stage| {
        let mut host = Host::begin(stage)?;
        let configuration = [HOST_MODE, &host.configuration, &check("pool.churn", "hold = \"3600s\"")].concat();
        let mut agent = Agent::prepare(stage, &configuration, User::Same)?.traced()?;
        agent.run()?;
        until("births are known", 30.s(), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            let churn = rows_of(&status, "pool.churn", "netns:");
            if churn.len() == 1 && churn[0]["state"] == "ok" { Ok(()) } else { Err(format!("{churn:?}")) }
        })?;
        let status = agent.status()?;
        let pools = rows(&status, "pools", "netns:");
        let mut seen: Vec<_> = pools.iter().map(|it| (it["pid"].as_u64(), it["open"].as_u64())).collect();
        seen.sort_unstable_by_key(|it| it.1);
        let pids = host.containers.each_ref().map(|it| u64::from(it.pid()));
        assert_eq!(seen, [(Some(pids[1]), Some(4)), (Some(pids[0]), Some(6))]);
        for it in pools.iter().filter_map(|it| it["connections"].as_array()).flatten() {
            assert!(it["age_seconds"].as_f64().is_some_and(|it| it > 5.0), "idle since its birth: {it}");
            assert!(it["facts"].to_string().contains("tcp_info: last data"), "{it}");
        }
        assert!(blind(&status).keys().all(|it| it == UNASKED), "{}", status["blind"]);
        until("that is told", 20.s(), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            let told = status["findings"].as_array().map_or(0, Vec::len);
            if told == 1 { Ok(()) } else { Err(status["findings"].to_string()) }
        })?;
        host.twin_is_well(&agent.status()?);

        // Forty connections that live for less than a look: only the namespace's own events tell of them.
        host.containers[1].does("churn")?;
        until("they are counted", 10.s(), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            let rate = rows_of(&status, "pool.churn", "netns:").first().and_then(|it| it["value"].as_f64());
            if rate.is_some_and(|it| it >= 1.0) { Ok(()) } else { Err(format!("{rate:?}")) }
        })?;

        let calls = agent.namespaces_entered();
        assert_eq!(calls.len(), 2, "one for each namespace, however long it is watched: {calls:?}");
        assert!(calls.iter().all(|it| it.contains("CLONE_NEWNET") && it.contains("= 0")), "{calls:?}");
        let sockets = || -> Result<usize, StageError> {
            let folder = format!("/proc/{}/fd", agent.pid().expect("it runs"));
            let all = std::fs::read_dir(&folder).map_err(StageError::system("read the agent's descriptors"))?;
            let links = all.flatten().filter_map(|it| std::fs::read_link(it.path()).ok());
            Ok(links.filter(|it| it.to_string_lossy().starts_with("socket:")).count())
        };
        // A question of ours may still be open.
        let mut before = usize::MAX;
        throughout("the agent rests", 1.s(), || {
            before = before.min(sockets().map_err(|error| error.to_string())?);
            Ok(())
        })?;
        let mut third = Application::sockets_elsewhere(stage, 5432, 3)?;
        until("a third is seen", 20.s(), || match agent.status() {
            Ok(status) if rows(&status, "pools", "netns:").len() == 3 => Ok(()),
            Ok(status) => Err(status["pools"].to_string()),
            Err(error) => Err(error.to_string()),
        })?;
        // One for its sockets and one for the news of them; the question of a status may be open for a moment more.
        until("the third has two sockets", 20.s(), || match (agent.namespaces_entered().len(), sockets()) {
            (3, Ok(count)) if count == before + 2 => Ok(()),
            other => Err(format!("{other:?}, before {before}")),
        })?;
        third.kill()?;
        until("its sockets are given back with it", 60.s(), || match sockets() {
            // The question of a status may have been open at first.
            Ok(count) if count <= before => Ok(()),
            other => Err(format!("{other:?}, at first {before}")),
        })?;
        assert_eq!(agent.namespaces_entered().len(), 3);
        Ok(())
    });
}

/// As in a container whose application uses the host's server: its address is routed, so that the server's view joins.
#[test]
fn a_container_on_the_hosts_server_is_joined_with_its_sessions_and_aged_in_the_host_mode_only() {
    alone(|stage| {
        let network = Network::wired(stage)?;
        let server = Postgres::start_at(stage, 80, Network::NEAR)?;
        let mut twin = Application::pooled(stage, "shop", &server)?;
        twin.does("traffic 20")?;
        let mut contained = Application::pooled_in(&network, stage, "grants-api", &server)?;
        contained.does("traffic 20")?;
        let held = contained.leaks(2)?;
        let configuration = [
            postgres(&server.dsn_file("tickbird")?),
            app("grants-api", &contained.command()),
            app("shop", &twin.command()),
            check("pool.idle_in_transaction", "warning = \"1s\""),
        ]
        .concat();
        for (mode, entered) in [("", 0), (HOST_MODE, 1)] {
            let agent = Agent::prepare(stage, &[mode, &configuration].concat(), User::Same)?.traced()?;
            let report = until("the leak is old enough to be named", 20.s(), || {
                let report = agent.report("inspect", &[]).map_err(|error| error.to_string())?;
                if findings(&report).is_empty() { Err(report["checks"].to_string()) } else { Ok(report) }
            })?;
            let [finding] = findings(&report).try_into().expect("one fault");
            let target = format!("pool:grants-api/main>{}:{}/app?user=app", Network::NEAR, server.port());
            assert_eq!(json!([finding["check"], finding["target"]]), json!(["pool.idle_in_transaction", target]));
            let sessions = finding["evidence"]["sessions"].as_array().map(Vec::as_slice).unwrap_or_default();
            for truth in &held {
                let row = sessions.iter().find(|it| it["backend"] == truth.backend).expect("each backend is named");
                let local = format!("{}:{}", Network::FAR, truth.port);
                assert_eq!(json!([row["pid"], row["fd"], row["local"]]), json!([truth.pid, truth.fd, local]), "{row}");
            }
            assert_eq!(sessions.len(), held.len());
            let [pool] = rows(&report, "pools", "grants-api").try_into().expect("one pool");
            let truth = descriptors(contained.pid())?;
            let connections = pool["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
            assert_eq!((connections.len(), truth.len()), (20, 20));
            let aged = connections.iter().filter(|it| it["facts"].to_string().contains("tcp_info: last data sent"));
            assert_eq!(aged.count(), if entered == 0 { 0 } else { 20 }, "{pool}");
            assert!(connections.iter().all(|it| it["session"].is_u64() && it["fds"][0].is_u64()), "{pool}");
            let causes: Vec<String> = blind(&report).into_keys().collect();
            assert_eq!(causes, if entered == 0 { vec![NO_AGES] } else { Vec::new() });
            let of_twin = states(&report, "shop");
            assert!(of_twin.values().all(|it| it == "ok" || it == "not yet"), "{of_twin:?}");
            // A look may be tried more than once above, and each tool enters for itself.
            assert_eq!(agent.namespaces_entered().is_empty(), entered == 0);
        }
        Ok(())
    });
}

/// The agent in a network namespace of its own, then without capabilities, then in a PID namespace of its own, too.
#[test]
fn from_a_network_of_its_own_the_report_shrinks_right_by_right_and_makes_nothing_up() {
    alone(|stage| {
        let server = Postgres::start_on(stage, 50, 5432)?;
        let mut application = Application::pooled(stage, "grants-api", &server)?;
        application.does("traffic 20")?;
        application.leaks(2)?;
        let configuration = app("grants-api", &application.command());

        let agent = Agent::prepare(stage, &configuration, User::OtherNetwork)?.traced()?;
        let report = agent.report("inspect", &[])?;
        let [pool] = rows(&report, "pools", "grants-api").try_into().expect("one pool");
        is_seen_from_outside(pool, application.pid(), 20)?;
        assert_eq!(blind(&report).into_keys().collect::<Vec<_>>(), [NO_AGES, UNASKED]);
        assert_eq!(findings(&report), Vec::<&Value>::new());
        assert_eq!(agent.namespaces_entered(), [""; 0]);

        let agent = Agent::prepare(stage, &[HOST_MODE, &configuration].concat(), User::OtherNetwork)?.traced()?;
        let report = agent.report("inspect", &[])?;
        assert_eq!(blind(&report).into_keys().collect::<Vec<_>>(), [UNASKED]);
        let aged =
            report["pools"][0]["connections"].as_array().into_iter().flatten().filter(|it| it["age_seconds"].is_f64());
        assert_eq!((aged.count(), agent.namespaces_entered().len()), (20, 1), "{}", report["pools"]);

        let agent = Agent::prepare(stage, &configuration, User::OtherNetworkNobody)?;
        let report = agent.report("inspect", &[])?;
        let [pool] = rows(&report, "pools", "netns:").try_into().expect("one group");
        let seen = json!([pool["target"], pool["pid"], pool["open"], pool["counts"]]);
        assert_eq!(seen, json!(["pool:uid 0/unseen>netns:127.0.0.1:5432", null, 20, { "unknown": 20 }]));
        assert!(pool["connections"].as_array().into_iter().flatten().all(|it| it["fds"] == json!([])), "{pool}");
        let causes = blind(&report);
        for part in [NO_AGES, UNASKED, "may not read the descriptors of processes of uid 0"] {
            assert_eq!(causes.keys().filter(|it| *it == part).count(), 1, "{part}: {causes:?}");
        }
        assert_eq!(findings(&report), Vec::<&Value>::new());
        let doctor = agent.report("doctor", &[])?.to_string();
        assert!(doctor.contains("1 seen from outside") && doctor.contains("AmbientCapabilities="), "{doctor}");

        let agent = Agent::prepare(stage, "", User::Alone)?;
        let report = agent.report("inspect", &[])?;
        assert_eq!((&report["pools"], findings(&report)), (&json!([]), Vec::new()));
        let doctor = agent.report("doctor", &[])?.to_string();
        assert!(
            doctor.contains("no process is seen but the agent") && doctor.contains("shareProcessNamespace"),
            "{doctor}"
        );
        Ok(())
    });
}
