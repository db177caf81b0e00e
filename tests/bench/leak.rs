//! From a fault to the webhook: a leaked session with the shipped thresholds, and three faults without a hold.

use std::time::Instant;

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::webhook::firing;
use tickbird_tests::{Application, Postgres, Seconds, Stage, StageError, Watch};

use crate::Figure;

const RUNS: usize = 5;

/// One run: the seconds it took.
type Once = fn(&Stage) -> Result<f64, StageError>;

pub(crate) fn leak(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut figures = vec![shipped(stage)?];
    let quick: [(&str, Once); 3] = [
        ("a leaked session, over 1 s, no hold", session),
        ("HTTP 500, each second, no hold", page),
        ("killed, no hold", killed),
    ];
    for (what, once) in quick {
        let times = (0..RUNS).map(|_| once(stage)).collect::<Result<Vec<_>, _>>()?;
        figures.push(Figure::of_all(what, times, "s"));
    }
    Ok(figures)
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

fn page(stage: &Stage) -> Result<f64, StageError> {
    let mut web = Application::web(stage, "shop", 0)?;
    let settings = check("http.status", "hold = 1");
    let watch = Watch::begin(stage, &format!("[[endpoint]]\nurl = \"{}\"\ninterval = \"1s\"\n{settings}", web.url()))?;
    watch.sees("http.status", "endpoint:", "ok", 20.s())?;
    let began = Instant::now();
    web.does("status 500")?;
    let heard = watch.webhook.hears("the 500", 20.s(), firing("http.status"))?;
    Ok((heard.at - began).as_secs_f64())
}

fn killed(stage: &Stage) -> Result<f64, StageError> {
    let mut web = Application::web(stage, "shop", 0)?;
    let watch = Watch::begin(stage, &[app("shop", &web.command()), check("proc.gone", "hold = \"0s\"")].concat())?;
    watch.sees("fd.limit", "process:shop", "ok", 20.s())?;
    let began = Instant::now();
    web.kill()?;
    let heard = watch.webhook.hears("the end", 20.s(), |it| {
        firing("proc.gone")(it) && it.json["incident"]["target"].to_string().contains("shop")
    })?;
    Ok((heard.at - began).as_secs_f64())
}
