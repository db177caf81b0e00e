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
/// Nine tenths of the bound of one a second.
const CLEARS_BELOW: f64 = 0.9;

fn churned(application: &mut Application) -> Result<f64, StageError> {
    Ok(application.does("served")?["churned"].as_f64().unwrap_or_default())
}

/// The agent sleeps while more connections end than its socket has room for.
fn loses_events(watch: &Watch, application: &mut Application) -> Result<(), StageError> {
    let agent = watch.agent.pid().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).expect("the agent runs");
    let signal = |it| kill_process(agent, it).map_err(|error| StageError::system("signal the agent")(error.into()));
    let before = lost_events()?;
    signal(Signal::STOP)?;
    let stormed = until("events are lost", 60.s(), || {
        application.does("http 4000").map_err(|error| error.to_string())?;
        if lost_events().map_err(|error| error.to_string())? > before { Ok(()) } else { Err("none is lost".to_owned()) }
    });
    signal(Signal::CONT)?;
    stormed
}

/// Looks so far, and the rate that there is at least; an error when the rate is known, or not at all.
fn lower_bound(watch: &Watch) -> Result<(u64, f64), String> {
    let status = watch.agent.status().map_err(|error| error.to_string())?;
    let rows = rows_of(&status, CHECK, "churning");
    let row = rows.first().ok_or("it has no row")?;
    let low = row["value"].as_array().and_then(|it| it.first()?.as_f64());
    low.and_then(|low| Some((row["looks"].as_u64()?, low))).ok_or_else(|| row.to_string())
}

fn rate(watch: &Watch, name: &str) -> Result<Value, StageError> {
    let status = watch.agent.status()?;
    Ok(rows_of(&status, CHECK, name).first().map(|it| it["value"].clone()).unwrap_or_default())
}

/// What the kernel dropped of all sock_diag sockets here (protocol 4): the ninth column of `/proc/net/netlink`.
fn lost_events() -> Result<u64, StageError> {
    let text = std::fs::read_to_string("/proc/net/netlink").map_err(StageError::system("read /proc/net/netlink"))?;
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

        loses_events(&watch, &mut churning)?;
        until("the rate is a lower bound", 20.s(), || {
            let shown = rate(&watch, "churning").map_err(|error| error.to_string())?;
            if shown.is_array() || shown.is_string() { Ok(()) } else { Err(shown.to_string()) }
        })?;

        // It ends; half a window later events are lost once more, so that nobody knows whether it did.
        churning.does("churn 0")?;
        until("half of the births are out of the window", 40.s(), || match lower_bound(&watch)? {
            (_, low) if low < truth / 2.0 => Ok(()),
            (_, low) => Err(format!("at least {low}")),
        })?;
        loses_events(&watch, &mut churning)?;
        let looks = until("no birth is in the window", 40.s(), || match lower_bound(&watch)? {
            (looks, low) if low < CLEARS_BELOW => Ok(looks),
            (_, low) => Err(format!("at least {low}")),
        })?;
        // Three looks of as little, if it were known to be all, would clear it.
        until("it stays unknown", 30.s(), || match lower_bound(&watch)? {
            (now, low) if now > looks + 3 && low < CLEARS_BELOW => Ok(()),
            seen => Err(format!("{seen:?}, after {looks}")),
        })?;
        let firing = watch.collector.items("incidents", "check=pool.churn&status=firing")?;
        assert_eq!(firing.len(), 1, "what is not known clears nothing: {firing:?}");
        watch.resolves(CHECK, "churning", 90.s())?;
        watch.sees(CHECK, "pooling", "ok", 10.s())?;
        watch.silent_about("pooling")
    });
}
