//! A steady second of the agent beside a pool of many connections, against a bare dump of the same host's sockets and
//! `ss -tnp`, taken in the same seconds. All of it is time of CPU and a ratio within one run, so a busy machine says the
//! same as a quiet one; the agent has to be a release build.

use tickbird_tests::agent::User;
use tickbird_tests::{Agent, Application, Seconds, Stage, StageError};

use crate::cost::{run_seconds, warm_up};
use crate::{Figure, median};

/// A port that is known to be a database's, so that the connections are a pool; and rarely in use on a developer's host.
const PORT: u16 = 27017;
/// POOL-XRAY's budget: a second of the agent may cost so many bare dumps.
const BUDGET: f64 = 2.0;
/// An agent that came near its own budget would look less often, and every other second would cost nothing.
const SPENDS: &str = "[budget]\ncpu = \"100%\"\n";
/// Seconds of each size; each with one dump and one `ss` behind the agent's own second.
const SECONDS: usize = 30;

pub(crate) fn tick(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut figures = Vec::new();
    for connections in [100_u32, 1_000, 5_000] {
        let mut holder = Application::sockets(stage, PORT, connections)?;
        let mut agent = Agent::prepare(stage, SPENDS, User::Same)?;
        agent.run()?;
        warm_up(15.s())?;
        let pid = agent.pid().expect("it runs");
        let (mut ticks, mut dumps, mut listings) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..SECONDS {
            let before = run_seconds(pid)?;
            warm_up(1.s())?;
            ticks.push(1000.0 * (run_seconds(pid)? - before));
            dumps.push(holder.does("dump")?.as_f64().unwrap_or(f64::NAN));
            listings.push(holder.does("ss")?.as_f64().unwrap_or(f64::NAN));
        }
        let ratio = median(ticks.clone()) / median(dumps.clone());
        for (what, values) in [("a second of the agent", ticks), ("a bare dump", dumps), ("ss -tnp", listings)] {
            figures.extend(Figure::spread(&format!("{connections} connections: {what}"), values, "ms of CPU"));
        }
        figures.push(Figure::of(format!("{connections} connections: agent to bare dump"), ratio, "").at_most(BUDGET));
        agent.stop()?;
    }
    Ok(figures)
}
