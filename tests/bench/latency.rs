//! From a fault to the webhook, with a look each second and no hold: server connections over 80 %, a page that answers 500,
//! a killed process; what the agent costs while none of it happens; and once with everything as it is shipped.
//!
//! One world has all three. A fault comes at another point between two looks each time, and the next one only when the
//! webhook has heard that the last is over. Against peers monit watches the same world each second, and rings a bell.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::process::{Running, installed};
use tickbird_tests::webhook::{Message, firing, resolved};
use tickbird_tests::{Application, Cgroup, Postgres, Seconds, Stage, StageError, Watch};

use crate::cost::{over_in, warm_up};
use crate::{AGAINST_PEERS, Figure};

/// Odd, so that the median is one of them.
const RUNS: u32 = 21;
/// Seconds in which nothing happens and the agent's CPU is counted.
const QUIET: u64 = 60;
/// What is not kept for superusers. The agent has one, and the peer's program another while it runs; 28 are over 80 %.
const SLOTS: u16 = 34;
/// Connections that are in use before the fault, and those that come with it.
const BEFORE: usize = 24;
const MORE: usize = 6;

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
    let monit = std::env::var_os(AGAINST_PEERS).map(|_| Monit::begin(stage, &world)).transpose()?;
    let pids = [world.watch.agent.pid(), monit.as_ref().map(|it| it.process.pid())];
    let mut costs = Vec::new();
    for pid in pids.into_iter().flatten() {
        let cgroup = Cgroup::make(stage, &format!("latency-{pid}"))?;
        cgroup.take(pid)?;
        warm_up(10.s())?;
        costs.push(100.0 * over_in(&cgroup, QUIET.s())?.cpu_ratio);
        cgroups.push(cgroup);
    }
    for (fault, check, budget) in FAULTS {
        let (mut times, mut theirs) = (Vec::new(), Vec::new());
        for run in 0..RUNS {
            // The last one's end was told right after a look: all parts of the second up to the next look have their turn.
            let phase = (f64::from(run * 8 % RUNS) + 0.5) / f64::from(RUNS);
            warm_up(Duration::from_secs_f64(1.0 + phase))?;
            let [ours, peers] = world.once(fault, check, monit.as_ref())?;
            times.push(ours);
            theirs.push(peers);
        }
        let what = format!("{}, a look each second, no hold", fault.name());
        figures.push(Figure::of_all(&what, times, "s").at_most(budget));
        if monit.is_some() {
            figures.push(Figure::of_all(format!("{what}: monit"), theirs, "s").for_comparison());
        }
    }
    let names = ["the agent's CPU with nothing wrong", "monit's, with the programs that it starts"];
    for (what, cost) in names.into_iter().zip(costs) {
        let figure = Figure::of(what, cost, "% of a core");
        figures.push(if what == names[0] { figure.at_most(0.5) } else { figure.for_comparison() });
    }
    drop((monit, world));
    drop(cgroups);
    let mut world = World::begin(stage, false)?;
    for (fault, check, _) in FAULTS {
        let [took, _] = world.once(fault, check, None)?;
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
        let watch = Watch::begin(stage, &settings)?;
        watch.sees("db.headroom", "server:", "ok", 60.s())?;
        watch.sees("http.status", "endpoint:", "ok", 60.s())?;
        watch.sees("fd.limit", "process:worker", "ok", 60.s())?;
        Ok(Self { pooled, page, worker, watch, server })
    }

    /// Makes a fault and mends it: the seconds until the webhook heard of it, and until the peer told.
    fn once(&mut self, fault: Fault, check: &str, peer: Option<&Monit>) -> Result<[f64; 2], StageError> {
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
        let told = peer.map(|it| it.tells(check)).transpose()?;
        match fault {
            Fault::Connections => self.pooled.repairs()?,
            Fault::Page => drop(self.page.does("status 200")?),
            Fault::Killed => self.worker = self.worker.successor()?,
        }
        let over = format!("the end of {}", fault.name());
        self.watch.webhook.hears(&over, 120.s(), |it| it.at > heard.at && is_it(it) && resolved(check)(it))?;
        peer.map(|it| it.tells(OVER)).transpose()?;
        let since = |at: Instant| (at - began).as_secs_f64();
        Ok([since(heard.at), told.map_or(f64::NAN, since)])
    }
}

/// A peer that looks each second and runs a program when something is wrong, and another when it is over.
struct Monit {
    process: Running,
    bell: Receiver<(Instant, String)>,
}

const OVER: &str = "over";

impl Monit {
    fn begin(stage: &Stage, world: &World) -> Result<Self, StageError> {
        let program = installed("/usr/bin/monit", "monit")?;
        let room = stage.room("monit")?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(StageError::system("bind a free port"))?;
        let port = listener.local_addr().map_err(StageError::system("read the port"))?.port();
        let (sender, bell) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (at, mut word) = (Instant::now(), String::new());
                // A word that is cut is none that anybody waits for.
                let _ = BufReader::new(stream).read_line(&mut word);
                if sender.send((at, word.trim().to_owned())).is_err() {
                    break;
                }
            }
        });
        let ring = room.join("ring");
        write(&ring, 0o700, &format!("#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/{port}\necho \"$1\" >&3\n"))?;
        let count = room.join("count");
        let used = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        let dsn = world.server.dsn("tickbird");
        let most = f64::from(SLOTS) * 0.8;
        write(
            &count,
            0o700,
            &format!("#!/bin/bash\nused=$(psql -qtAX -c \"{used}\" '{dsn}')\n[ \"$used\" -le {most:.0} ]\n"),
        )?;
        let (room_, ring, count) = (room.display(), ring.display(), count.display());
        let tells =
            |check: &str| format!("then exec \"{ring} {check}\" else if succeeded then exec \"{ring} {OVER}\"\n");
        let settings = format!(
            "set daemon 1\nset pidfile {room_}/pid\nset idfile {room_}/id\nset statefile {room_}/state\n\
             check program connections with path \"{count}\" timeout 5 seconds\nif status != 0 {}\
             check host page with address 127.0.0.1\nif failed port {} protocol http request \"/health\" {}\
             check process worker matching \"{}\"\nif not exist {}",
            tells("db.headroom"),
            world.page.port(),
            tells("http.status"),
            world.worker.command(),
            tells("proc.gone"),
        );
        let file = room.join("settings");
        write(&file, 0o600, &settings)?;
        let mut command = Command::new(program);
        command.args(["-I", "-c"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Running::start("monit", &mut command, &room.join("log"))?;
        Ok(Self { process, bell })
    }

    /// Waits until it tells of this.
    fn tells(&self, what: &str) -> Result<Instant, StageError> {
        let end = Instant::now() + 60.s();
        while let Ok((at, word)) = self.bell.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if word == what {
                return Ok(at);
            }
        }
        Err(StageError::Failed { what: format!("monit tells {what}"), said: self.process.last_words() })
    }
}

fn write(file: &Path, mode: u32, text: &str) -> Result<(), StageError> {
    let failed = || StageError::system(format!("write {}", file.display()));
    std::fs::write(file, text).map_err(failed())?;
    std::fs::set_permissions(file, PermissionsExt::from_mode(mode)).map_err(failed())
}

fn is_about(message: &Message, fault: Fault) -> bool {
    let target = message.json["incident"]["target"].to_string();
    fault != Fault::Killed || target.contains("worker")
}
