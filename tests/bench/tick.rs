//! A steady second of the agent beside a pool of many connections, against a bare dump of the same host's sockets and
//! `ss -tnp`, taken in the same seconds. All of it is time of CPU and a ratio within one run, so a busy machine says the
//! same as a quiet one; the agent has to be a release build.

use tickbird_tests::agent::User;
use tickbird_tests::{Agent, Application, Seconds, Stage, StageError};

use crate::Figure;
use crate::cost::{lower_quartile, run_seconds, warm_up};

/// A port that is known to be a database's, so that the connections are a pool; and rarely in use on a developer's host.
const PORT: u16 = 27017;
/// POOL-XRAY's budget: a second of the agent may cost so many bare dumps.
const BUDGET: f64 = 2.0;
/// An agent that came near its own budget would look less often, and every other second would cost nothing.
const SPENDS: &str = "[budget]\ncpu = \"100%\"\n";
/// Beside a linear growth.
const GROWTH: f64 = 1.2;
/// Seconds of each size; each with one dump and one `ss` behind the agent's own second.
const SECONDS: usize = 30;

/// Connections of the pool whose second has a budget.
const SIZES: [u32; 3] = [100, 1_000, 5_000];
/// Those of which each has four times as many as the one before: what each connection costs may not grow.
const GROWING: [u32; 3] = [312, 1_250, 5_000];
/// Seconds in each of which one connection is opened.
const OPENINGS: usize = 20;
/// Every descriptor of every process is read once in a minute.
const MINUTE: usize = 62;

/// Who holds so many connections, and an agent that has known them for a while, with its process id.
fn beside(stage: &Stage, connections: u32) -> Result<(Application, Agent, u32), StageError> {
    let holder = Application::sockets(stage, PORT, connections)?;
    let mut agent = Agent::prepare(stage, SPENDS, User::Same)?;
    agent.run()?;
    warm_up(15.s())?;
    let pid = agent.pid().expect("it runs");
    Ok((holder, agent, pid))
}

/// Seconds in which something is new, against quiet ones: whose descriptor a new connection is has to be found, among all that
/// its process has; and the dearest second of a minute, in which the descriptors of every process are read.
pub(crate) fn owners(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut figures = Vec::new();
    for connections in SIZES {
        let (mut holder, mut agent, pid) = beside(stage, connections)?;
        let mut second = |opens: bool| {
            let before = run_seconds(pid)?;
            if opens {
                holder.does("more")?;
            }
            warm_up(1.s())?;
            Ok::<_, StageError>(1000.0 * (run_seconds(pid)? - before))
        };
        let quiet = (0..MINUTE).map(|_| second(false)).collect::<Result<Vec<_>, _>>()?;
        let opening = (0..OPENINGS).map(|_| second(true)).collect::<Result<Vec<_>, _>>()?;
        let dearest = quiet.iter().copied().fold(0.0, f64::max);
        let of = |what: &str| format!("{connections} connections: {what}");
        figures.push(Figure::of_all(of("a quiet second"), quiet, "ms of CPU"));
        figures.push(Figure::of_all(of("a second with a new connection"), opening, "ms of CPU"));
        figures.push(Figure::of(of("the dearest second of a minute"), dearest, "ms of CPU"));
        agent.stop()?;
    }
    let processes = std::fs::read_dir("/proc").map_err(StageError::system("list processes"))?.flatten();
    let is_process = |it: &std::fs::DirEntry| it.file_name().to_string_lossy().parse::<u32>().is_ok();
    figures.push(Figure::of("processes", processes.filter(is_process).count() as f64, "").for_comparison());
    Ok(figures)
}

pub(crate) fn tick(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut figures = Vec::new();
    let mut fewest: Option<f64> = None;
    let mut sizes = [SIZES, GROWING].concat();
    sizes.sort_unstable();
    sizes.dedup();
    for connections in sizes {
        let (mut holder, mut agent, pid) = beside(stage, connections)?;
        let (mut ticks, mut dumps, mut listings) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..SECONDS {
            let before = run_seconds(pid)?;
            warm_up(1.s())?;
            ticks.push(1000.0 * (run_seconds(pid)? - before));
            dumps.push(holder.does("dump")?.as_f64().unwrap_or(f64::NAN));
            listings.push(holder.does("ss")?.as_f64().unwrap_or(f64::NAN));
        }
        // What others on the machine evict and delay comes on top, in some seconds and not in others: the lower quarter has least of it.
        let ratio = lower_quartile(&ticks) / lower_quartile(&dumps);
        let each = lower_quartile(&ticks) / f64::from(connections);
        let of = |what: &str, values| Figure::of_all(format!("{connections} connections: {what}"), values, "ms of CPU");
        figures.push(of("a second of the agent", ticks));
        figures.push(of("a bare dump", dumps).for_comparison());
        figures.push(of("ss -tnp", listings).for_comparison());
        let what = format!("{connections} connections: agent to bare dump, lower quartiles");
        figures.push(Figure::of(what, ratio, "").at_most(BUDGET));
        if GROWING.contains(&connections) {
            let first = *fewest.get_or_insert(each);
            let what = format!("{connections} connections: the cost of each, to that among {}", GROWING[0]);
            figures.push(Figure::of(what, each / first, "").at_most(GROWTH));
        }
        agent.stop()?;
    }
    Ok(figures)
}
