//! A steady second of the agent beside a pool of many connections, against a bare dump of the same host's sockets.

use tickbird_tests::agent::User;
use tickbird_tests::{Agent, Application, Seconds, Stage, StageError};

use crate::cost::{over, warm_up};
use crate::{Figure, median};

/// A port that is known to be a database's, so that the connections are a pool; and rarely in use on a developer's host.
const PORT: u16 = 27017;

pub(crate) fn tick(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut figures = Vec::new();
    for connections in [100_u32, 1_000, 5_000] {
        let mut holder = Application::sockets(stage, PORT, connections)?;
        let mut agent = Agent::prepare(stage, "", User::Same)?;
        agent.run()?;
        warm_up(15.s())?;
        let cost = over(agent.pid().expect("it runs"), 30.s())?;
        let mut dumps = Vec::new();
        for _ in 0..30 {
            dumps.push(holder.does("dump")?.as_f64().unwrap_or(f64::NAN));
        }
        let (tick, dump) = (1000.0 * cost.cpu_ratio, median(dumps));
        figures.push(Figure::of(format!("{connections} connections: a second of the agent"), tick, "ms of CPU"));
        figures.push(Figure::of(format!("{connections} connections: a bare dump"), dump, "ms of CPU"));
        figures.push(Figure::of(format!("{connections} connections: ratio"), tick / dump, ""));
        agent.stop()?;
    }
    Ok(figures)
}
