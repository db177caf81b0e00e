//! From a fault to the webhook, with a look each second and no hold: server connections over 80 %, a page that answers 500,
//! a killed process; what the agent costs while none of it happens; and once with everything as it is shipped.
//!
//! One world has all three. A fault comes at another point between two looks each time, and the next one only when the
//! webhook has heard that the last is over. Against peers (`peers`) others watch the same world each second, and tell of the same
//! faults.

pub(crate) mod peers;

use std::time::{Duration, Instant};

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::webhook::{Message, firing, resolved};
use tickbird_tests::{Application, Cgroup, Postgres, Seconds, Stage, StageError, Watch};

use crate::cost::{over_in, warm_up};
use crate::{AGAINST_PEERS, Figure};
use peers::{OVER, Peer};

/// Odd, so that the median is one of them.
const RUNS: u32 = 21;
/// Seconds in which nothing happens and the agent's CPU is counted.
const QUIET: u64 = 60;
/// What is not kept for superusers. The agent has one, and so has a peer; 28 are over 80 %.
const SLOTS: u16 = 34;
/// Connections that are in use before the fault, and those that come with it.
const BEFORE: usize = 22;
const MORE: usize = 8;

/// Its name, its check, and the most seconds that its median may be with a look each second and no hold.
const FAULTS: [(Fault, &str, f64); 3] =
    [(Fault::Connections, "db.headroom", 0.8), (Fault::Page, "http.status", 0.55), (Fault::Killed, "proc.gone", 0.1)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Connections,
    Page,
    Killed,
}

impl Fault {
    const fn name(self) -> &'static str {
        match self {
            Self::Connections => "server connections over 80 %",
            Self::Page => "HTTP 500",
            Self::Killed => "a process is killed",
        }
    }
}

pub(crate) fn latency(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let mut figures = Vec::new();
    // They end after whoever is in them.
    let mut cgroups = Vec::new();
    let mut world = World::begin(stage, true)?;
    let mut peers = Vec::new();
    if std::env::var_os(AGAINST_PEERS).is_some() {
        peers.extend([Peer::monit(stage, &world)?, Peer::prometheus(stage, &world)?]);
    }
    let mut who: Vec<(&str, Vec<u32>)> = vec![("the agent", world.watch.agent.pid().into_iter().collect())];
    who.extend(peers.iter().map(|it| (it.name, it.pids().collect())));
    let mut costs = Vec::new();
    for (name, pids) in who {
        let cgroup = Cgroup::make(stage, &format!("latency-{}", name.replace(' ', "-")))?;
        pids.into_iter().try_for_each(|pid| cgroup.take(pid))?;
        warm_up(10.s())?;
        costs.push((name, 100.0 * over_in(&cgroup, QUIET.s())?.cpu_ratio));
        cgroups.push(cgroup);
    }
    for (fault, check, budget) in FAULTS {
        let (mut times, mut theirs) = (Vec::new(), vec![Vec::new(); peers.len()]);
        for run in 0..RUNS {
            // The last one's end was told right after a look: all parts of the second up to the next look have their turn.
            let phase = (f64::from(run * 8 % RUNS) + 0.5) / f64::from(RUNS);
            warm_up(Duration::from_secs_f64(1.0 + phase))?;
            let (ours, told) = world.once(fault, check, &peers)?;
            times.push(ours);
            theirs.iter_mut().zip(told).for_each(|(all, one)| all.push(one));
        }
        let what = format!("{}, a look each second, no hold", fault.name());
        figures.push(Figure::of_all(&what, times, "s").at_most(budget));
        for (peer, theirs) in peers.iter().zip(theirs) {
            figures.push(Figure::of_all(format!("{what}: {}", peer.name), theirs, "s").for_comparison());
        }
    }
    for (name, cost) in costs {
        let figure = Figure::of(format!("CPU with nothing wrong: {name}"), cost, "% of a core");
        figures.push(if name == "the agent" { figure.at_most(0.5) } else { figure.for_comparison() });
    }
    drop((peers, world));
    drop(cgroups);
    let mut world = World::begin(stage, false)?;
    for (fault, check, _) in FAULTS {
        let (took, _) = world.once(fault, check, &[])?;
        figures.push(Figure::of(format!("{}, as shipped", fault.name()), took, "s"));
    }
    Ok(figures)
}

/// All that can go wrong, and who watches it.
struct World {
    pooled: Application,
    page: Application,
    worker: Application,
    watch: Watch,
    server: Postgres,
}

impl World {
    fn begin(stage: &Stage, is_quick: bool) -> Result<Self, StageError> {
        let server = Postgres::start(stage, SLOTS + 3)?;
        let pooled = Application::pooled(stage, "busy-api", &server)?;
        let page = Application::web(stage, "shop", 0)?;
        let worker = Application::web(stage, "worker", 0)?;
        let pace = if is_quick { "interval = \"1s\"\n" } else { "" };
        let mut settings = [
            postgres(&server.dsn_file("tickbird")?),
            pace.to_owned(),
            format!("[[endpoint]]\nurl = \"{}\"\n{pace}", page.url()),
            app("busy-api", &pooled.command()),
            app("worker", &worker.command()),
        ]
        .concat();
        if is_quick {
            settings += &check("db.headroom", "hold = 1");
            settings += &check("http.status", "hold = 1");
            settings += &check("proc.gone", "hold = \"0s\"");
        }
        let watch = Watch::of_repeated_faults(stage, &settings)?;
        watch.sees("db.headroom", "server:", "ok", 60.s())?;
        watch.sees("http.status", "endpoint:", "ok", 60.s())?;
        watch.sees("fd.limit", "process:worker", "ok", 60.s())?;
        Ok(Self { pooled, page, worker, watch, server })
    }

    /// Makes a fault and mends it: the seconds until the webhook heard of it, and until each peer told.
    fn once(&mut self, fault: Fault, check: &str, peers: &[Peer]) -> Result<(f64, Vec<f64>), StageError> {
        if fault == Fault::Connections {
            self.pooled.holds(BEFORE)?;
            // At least one look sees that this is no fault yet.
            warm_up(Duration::from_millis(1_100))?;
        }
        let began = Instant::now();
        match fault {
            Fault::Connections => drop(self.pooled.holds(MORE)?),
            Fault::Page => drop(self.page.does("status 500")?),
            Fault::Killed => drop(self.worker.kill()?),
        }
        let is_it = |it: &Message| it.at > began && is_about(it, fault);
        let heard = self.watch.webhook.hears(fault.name(), 90.s(), |it| is_it(it) && firing(check)(it))?;
        let told = peers.iter().map(|it| it.tells(check)).collect::<Result<Vec<_>, _>>()?;
        match fault {
            Fault::Connections => self.pooled.repairs()?,
            Fault::Page => drop(self.page.does("status 200")?),
            Fault::Killed => self.worker = self.worker.successor()?,
        }
        let over = format!("the end of {}", fault.name());
        self.watch.webhook.hears(&over, 120.s(), |it| it.at > heard.at && is_it(it) && resolved(check)(it))?;
        peers.iter().try_for_each(|it| it.tells(OVER).map(drop))?;
        let since = |at: Instant| (at - began).as_secs_f64();
        Ok((since(heard.at), told.into_iter().map(since).collect()))
    }
}

fn is_about(message: &Message, fault: Fault) -> bool {
    let target = message.json["incident"]["target"].to_string();
    fault != Fault::Killed || target.contains("worker")
}
