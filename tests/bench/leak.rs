//! From a leaked session to the webhook, with the shipped thresholds and without a hold.

use std::time::Instant;

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::webhook::firing;
use tickbird_tests::{Application, Postgres, Seconds, Stage, StageError, Watch};

use crate::Figure;

const RUNS: usize = 5;

pub(crate) fn leak(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let times = (0..RUNS).map(|_| session(stage)).collect::<Result<Vec<_>, _>>()?;
    Ok(vec![shipped(stage)?, Figure::of_all("a leaked session, over 1 s, no hold", times, "s")])
}

fn shipped(stage: &Stage) -> Result<Figure, StageError> {
    let took = leaked(stage, "", "", 60)?;
    Ok(Figure::of("a leaked session, shipped thresholds (30 s idle in transaction)", took, "s"))
}

fn session(stage: &Stage) -> Result<f64, StageError> {
    leaked(stage, "interval = \"1s\"\n", &check("pool.idle_in_transaction", "warning = \"1s\"\nhold = 1"), 30)
}

/// With `pace` in the server's section and `settings` behind all sections.
fn leaked(stage: &Stage, pace: &str, settings: &str, within: u64) -> Result<f64, StageError> {
    let server = Postgres::start(stage, 50)?;
    let mut pooled = Application::pooled(stage, "leaky", &server)?;
    let section = postgres(&server.dsn_file("tickbird")?);
    let configuration = [&section, pace, &app("leaky", &pooled.command()), settings].concat();
    let watch = Watch::begin(stage, &configuration)?;
    watch.sees("pool.idle_in_transaction", "leaky", "ok", 30.s())?;
    let began = Instant::now();
    pooled.leaks(1)?;
    let heard = watch.webhook.hears("the leak", within.s(), firing("pool.idle_in_transaction"))?;
    Ok((heard.at - began).as_secs_f64())
}
