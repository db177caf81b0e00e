//! The agent's own cost while it watches this host, as `cargo xtask up` starts it; then with a database and a page.

use tickbird_tests::agent::{app, postgres};
use tickbird_tests::{Application, Postgres, Seconds, Stage, StageError, Watch};

use crate::Figure;
use crate::cost::{over, warm_up};

pub(crate) fn watch(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut figures = measure(stage, "this host", "")?;
    let server = Postgres::start(stage, 50)?;
    let mut pooled = Application::pooled(stage, "bench-api", &server)?;
    pooled.does("traffic 20")?;
    let web = Application::web(stage, "bench-web", 0)?;
    let configuration = [
        postgres(&server.dsn_file("tickbird")?),
        app("bench-api", &pooled.command()),
        format!("[[endpoint]]\nurl = \"{}\"\n", web.url()),
    ];
    figures.extend(measure(stage, "with a pool of 20 and its PostgreSQL and an endpoint", &configuration.concat())?);
    Ok(figures)
}

fn measure(stage: &Stage, what: &str, configuration: &str) -> Result<Vec<Figure>, StageError> {
    let watch = Watch::begin(stage, configuration)?;
    warm_up(10.s())?;
    let cost = over(watch.agent.pid().expect("it runs"), 60.s())?;
    Ok(vec![
        Figure::of(format!("{what}: CPU"), 100.0 * cost.cpu_ratio, "% of a core"),
        Figure::of(format!("{what}: memory (largest PSS)"), cost.pss_mib, "MiB"),
    ])
}
