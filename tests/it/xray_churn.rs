//! Births of connections are counted by the kernel's events, also where TLS leaves no socket in TIME_WAIT.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::wait::throughout;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Application, Library, Postgres, Seconds, Sizes, StageError, Watch, alone, until};

const CHECK: &str = "pool.churn";

fn churned(application: &mut Application) -> Result<f64, StageError> {
    Ok(application.does("served")?["churned"].as_f64().unwrap_or_default())
}

fn rate(watch: &Watch, name: &str) -> Result<Value, StageError> {
    let status = watch.agent.status()?;
    Ok(rows_of(&status, CHECK, name).first().map(|it| it["value"].clone()).unwrap_or_default())
}

/// What the kernel dropped of all sock_diag sockets here (protocol 4): the ninth column of `/proc/net/netlink`.
fn lost_events() -> Result<u64, String> {
    let text = std::fs::read_to_string("/proc/net/netlink").map_err(|error| error.to_string())?;
    let rows = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let drops = rows.filter(|row| row.get(1) == Some(&"4")).filter_map(|row| row.get(8)?.parse::<u64>().ok());
    Ok(drops.sum())
}

/// Destroy events name no process, so each application has a server of its own here.
#[test]
fn births_under_tls_are_counted_within_five_percent_and_lost_events_clear_nothing() {
    alone(|stage| {
        let certificate = Certificate::ending_in(stage, 30)?;
        let (one, other) =
            (Postgres::start_tls(stage, 50, &certificate)?, Postgres::start_tls(stage, 50, &certificate)?);
        let mut configuration = check(CHECK, "hold = \"5s\"");
        let mut begin = |name, server: &Postgres| -> Result<Application, StageError> {
            let mut it = Application::of_library(stage, name, Library::QueuePool, server, Sizes::full(5))?;
            it.does("traffic 20")?;
            configuration += &postgres(&server.dsn_file("tickbird")?);
            configuration += &app(name, &it.command());
            Ok(it)
        };
        let (mut churning, _twin) = (begin("churning", &one)?, begin("pooling", &other)?);
        let watch = Watch::begin(stage, &configuration)?;
        watch.sees(CHECK, "churning", "ok", 30.s())?;
        churning.does("churn 20")?;
        watch.fires(CHECK, "churning", 40.s())?;

        // A whole window of the agent's rate at this pace, then the same window by the application's own count.
        throughout("it churns", 31.s(), || Ok(()))?;
        let (before, began) = (churned(&mut churning)?, Instant::now());
        throughout("it churns", 30.s(), || Ok(()))?;
        let shown = rate(&watch, "churning")?;
        let truth = (churned(&mut churning)? - before) / began.elapsed().as_secs_f64();
        let known = shown.as_f64().unwrap_or_default();
        assert!((known - truth).abs() <= 0.05 * truth, "{shown} shown, {truth:.2} births a second in truth");
        let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", churning.pid())).unwrap_or_default();
        let port = format!(":{:04X} 06", one.port());
        assert!(!sockets.contains(&port), "a socket to the server is in TIME_WAIT");

        // The agent sleeps while more connections end than its socket has room for.
        let agent = watch.agent.pid().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).expect("the agent runs");
        let signal = |it| kill_process(agent, it).map_err(|error| StageError::system("signal the agent")(error.into()));
        signal(Signal::STOP)?;
        let stormed = until("events are lost", 60.s(), || {
            churning.does("http 4000").map_err(|error| error.to_string())?;
            if lost_events()? > 0 { Ok(()) } else { Err("none is lost".to_owned()) }
        });
        signal(Signal::CONT)?;
        stormed?;
        until("the rate is a lower bound", 20.s(), || {
            let shown = rate(&watch, "churning").map_err(|error| error.to_string())?;
            if shown.is_array() || shown.is_string() { Ok(()) } else { Err(shown.to_string()) }
        })?;
        churning.does("churn 0")?;
        throughout("what is not known clears nothing", 10.s(), || {
            let found = watch.collector.items("incidents", "check=pool.churn&status=firing");
            let found = found.map_err(|error| error.to_string())?;
            if found.len() == 1 { Ok(()) } else { Err(format!("{found:?}")) }
        })?;
        watch.resolves(CHECK, "churning", 90.s())?;
        watch.sees(CHECK, "pooling", "ok", 10.s())?;
        watch.silent_about("pooling")
    });
}
