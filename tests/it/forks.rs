//! Workers that inherit the connections of the process they were forked from: each connection is one, and has many holders.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tickbird_tests::agent::{Agent, User, app, check, postgres};
use tickbird_tests::truth::{Backend, backends, descriptors};
use tickbird_tests::{Application, Postgres, Seconds, StageError, Watch, alone, until};

const CHECK: &str = "pool.idle_in_transaction";
const OPEN: usize = 20;

/// Process and descriptor of everyone who holds a connection.
type Holders = BTreeSet<(u64, u64)>;

/// By the local port, as `/proc` says it of these processes.
fn truth(pids: &[u32]) -> Result<BTreeMap<u16, Holders>, StageError> {
    let mut all: BTreeMap<u16, Holders> = BTreeMap::new();
    for pid in pids {
        for (port, fd) in descriptors(*pid)? {
            all.entry(port).or_default().insert((u64::from(*pid), u64::from(fd)));
        }
    }
    Ok(all)
}

fn port(row: &Value) -> Option<u16> {
    row["local"].as_str()?.rsplit(':').next()?.parse().ok()
}

/// Those beside the owner, in a report and in evidence alike.
fn others(row: &Value) -> Option<Holders> {
    let all = row["also_held_by"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().map(|it| Some((it["pid"].as_u64()?, it["fd"].as_u64()?))).collect()
}

/// By the local port, as the agent says it of the only pool of an application.
fn told(report: &Value, name: &str) -> Result<BTreeMap<u16, Holders>, String> {
    let pools = report["pools"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_it: Vec<&Value> =
        pools.iter().filter(|it| it["target"].as_str().is_some_and(|it| it.contains(name))).collect();
    let [pool] = of_it[..] else { return Err(format!("{} pools: {of_it:?}", of_it.len())) };
    let owner = pool["pid"].as_u64().ok_or("a pool without an owner")?;
    let rows = pool["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
    if pool["open"] != rows.len() {
        return Err(format!("{} of {} are listed", rows.len(), pool["open"]));
    }
    let holders = |row: &Value| {
        let own = row["fds"].as_array()?.iter().filter_map(|it| Some((owner, it.as_u64()?)));
        Some((port(row)?, own.chain(others(row)?).collect()))
    };
    rows.iter().map(|row| holders(row).ok_or_else(|| row.to_string())).collect()
}

fn text(agent: &Agent, arguments: &[&str]) -> Result<String, StageError> {
    Ok(String::from_utf8_lossy(&agent.ask("inspect", arguments)?.stdout).into_owned())
}

#[test]
fn connections_that_workers_inherited_name_every_holder_and_are_counted_once() {
    alone(|stage| {
        let server = Postgres::start(stage, 60)?;
        let mut shared = Application::pooled(stage, "forked-api", &server)?;
        let twin = Application::pooled(stage, "single-api", &server)?;
        let leaked = shared.leaks(2)?;
        let workers = shared.does("fork 3")?;
        let workers: Vec<u32> =
            workers.as_array().into_iter().flatten().filter_map(|it| it.as_u64()?.try_into().ok()).collect();
        assert_eq!(workers.len(), 3);
        let mut all = vec![shared.pid()];
        all.extend(&workers);
        let held = truth(&all)?;
        assert!(held.len() == OPEN && held.values().all(|it| it.len() == 4), "each has four holders: {held:?}");

        let configuration = [
            postgres(&server.dsn_file("tickbird")?),
            app(shared.name(), &shared.command()),
            app(twin.name(), &twin.command()),
            check(CHECK, "warning = \"5s\""),
        ]
        .concat();
        let agent = Agent::prepare(stage, &configuration, User::Same)?;
        let report = agent.report("inspect", &[])?;
        assert_eq!(told(&report, "forked-api"), Ok(held.clone()), "at the first look");
        assert_eq!(told(&report, "single-api"), Ok(truth(&[twin.pid()])?), "nobody else holds the twin's");
        let of_it = |row: &&Backend| row.application_name == "forked-api";
        assert_eq!(backends(&server)?.values().filter(of_it).count(), OPEN, "the server has one session of each");

        let listed = text(&agent, &["--sessions"])?;
        for (pid, fd) in held.values().flatten().filter(|it| it.0 != u64::from(shared.pid())) {
            assert!(listed.contains(&format!("pid {pid} fd {fd}")), "pid {pid} fd {fd} is not listed:\n{listed}");
        }
        for worker in &workers {
            let why = text(&agent, &["--why", &worker.to_string()])?;
            let lines = why.lines().filter(|it| {
                it.contains("  also held by ") && !it.contains("inherited") && it.contains(&format!("pid {worker} fd "))
            });
            assert_eq!(lines.count(), OPEN, "what worker {worker} inherited:\n{why}");
        }

        // While it runs: a finding of such a connection says so, and holders that come and go are followed.
        let watch = Watch::begin(stage, &configuration)?;
        watch.fires(CHECK, "forked-api", 60.s())?;
        let finding = watch.tells(CHECK, "forked-api", 5.s())?;
        let rows = finding["evidence"]["sessions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let named: BTreeMap<u16, Holders> = rows.iter().filter_map(|it| Some((port(it)?, others(it)?))).collect();
        let owner = u64::from(shared.pid());
        let of_leaked = leaked.iter().map(|it| (it.port, held[&it.port].iter().copied().filter(|it| it.0 != owner)));
        assert_eq!(named, of_leaked.map(|(port, all)| (port, all.collect())).collect(), "{finding}");
        let summary = finding["summary"].as_str().unwrap_or_default();
        assert!(summary.contains("2 of these connections are held by several processes"), "{summary}");
        for worker in &workers {
            assert!(summary.contains(&format!("pid {worker} fd ")), "{summary}");
        }
        assert_eq!(finding["evidence"]["open"], OPEN, "counted once: {finding}");

        let late = shared.does("fork 1")?;
        all.extend(late.as_array().into_iter().flatten().filter_map(|it| u32::try_from(it.as_u64()?).ok()));
        shared.does(&format!("end {}", all.remove(1)))?;
        let now = truth(&all)?;
        assert!(all.len() == 4 && now.values().all(|it| it.len() == 4), "{now:?}");
        until("everything is read again once a minute", 90.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let told = told(&status, "forked-api")?;
            if told == now { Ok(()) } else { Err(format!("{told:?}")) }
        })?;
        watch.silent_about("single-api")
    });
}
