//! The agent's CPU and memory for the reference work, at 10 s and at the shipped second, and peers' for the same work.
//!
//! A host with PostgreSQL, Redis, nginx and an application that holds 100 connections. Twenty pages are asked, both servers'
//! own state and the application's CPU, memory and descriptors are read. The agent has its buffer and a collector over
//! mutual TLS, and sees sockets besides; the peers send to nobody, and monit only shakes hands with the servers. Prometheus with its exporters
//! looks at sockets and the application each second, as the agent does as it is shipped. One runs at a time, in turns.
//!
//! At that work a generation of the agent's buffer lasts for hours. So the memory is measured again from the start of an agent in whose
//! buffer both lanes are about to begin one.

mod prometheus;

use std::path::Path;
use std::process::{Command, Stdio};

use tickbird_shared::Lane;
use tickbird_tests::agent::{User, app, postgres};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::nginx::Nginx;
use tickbird_tests::postgres::{APPLICATION, Route, free_port, password};
use tickbird_tests::process::{Running, installed};
use tickbird_tests::{
    Agent, Application, Cgroup, Collector, Library, Postgres, Redis, Seconds, Sizes, Stage, StageError, Webhook, until,
};

use crate::buffer::{failed, open, record};
use crate::cost::{Cost, most_memory, over_in, warm_up};
use crate::{AGAINST_PEERS, Figure};

/// How often each runs.
const ROUNDS: usize = 3;
/// Seconds of a run that count: twelve times the reference's ten.
const SECONDS: u64 = 120;
/// Seconds before them.
const WARM_UP: u64 = 30;
const PAGES: usize = 20;
/// So many records leave a generation that is drained and too large to be written on.
const WEAR: u64 = 50_000;
const CONNECTIONS: u16 = 100;
/// The application has one name everywhere.
const NAME: &str = "reference-api";

/// What the work is done on.
struct World {
    postgres: Postgres,
    redis: Redis,
    nginx: Nginx,
    application: Application,
    collector: Collector,
    _webhook: Webhook,
}

/// Who does the work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Tickbird { seconds: u64 },
    Collectd,
    Monit,
    Prometheus,
}

impl Who {
    fn name(self) -> String {
        match self {
            Self::Tickbird { seconds: 1 } => "tickbird-agent as shipped, every second".to_owned(),
            Self::Tickbird { seconds } => format!("tickbird-agent, every {seconds} s"),
            Self::Collectd => "collectd, every 10 s".to_owned(),
            Self::Monit => "monit, every 10 s".to_owned(),
            Self::Prometheus => "Prometheus with exporters, every second".to_owned(),
        }
    }

    /// Budgets of CPU in percent of a core, and of memory in MiB.
    const fn budgets(self) -> Option<(f64, f64)> {
        match self {
            Self::Tickbird { seconds: 1 } => Some((0.4, 10.0)),
            Self::Tickbird { .. } => Some((0.12, 7.5)),
            Self::Collectd | Self::Monit | Self::Prometheus => None,
        }
    }
}

pub(crate) fn footprint(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let world = World::begin(stage)?;
    let mut who = vec![Who::Tickbird { seconds: 10 }, Who::Tickbird { seconds: 1 }];
    if std::env::var_os(AGAINST_PEERS).is_some() {
        who.extend([Who::Collectd, Who::Monit, Who::Prometheus]);
    }
    let mut costs: Vec<Vec<Cost>> = who.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS {
        for (who, costs) in who.iter().zip(&mut costs) {
            let cost = world.cost_of(stage, *who)?;
            let (cpu, pss) = (100.0 * cost.cpu_ratio, cost.pss_mib);
            eprintln!("  round {}: {}: {cpu:.3} % of a core, {pss:.2} MiB", round + 1, who.name());
            costs.push(cost);
        }
    }
    let mut figures = Vec::new();
    for (who, costs) in who.iter().zip(costs) {
        let cpu = costs.iter().map(|it| 100.0 * it.cpu_ratio).collect();
        let pss = costs.iter().map(|it| it.pss_mib).collect();
        let cpu = Figure::of_all(format!("{}: CPU", who.name()), cpu, "% of a core");
        let pss = Figure::of_all(format!("{}: memory (largest PSS)", who.name()), pss, "MiB");
        figures.extend(match who.budgets() {
            Some((most_cpu, most_pss)) => [cpu.at_most(most_cpu), pss.at_most(most_pss)],
            None => [cpu.for_comparison(), pss.for_comparison()],
        });
    }
    let name = "tickbird-agent as shipped, while two generations of its buffer begin: memory (largest PSS)";
    figures.push(Figure::of_all(name.to_owned(), vec![world.memory_while_rolling(stage)?], "MiB").at_most(10.0));
    Ok(figures)
}

impl World {
    fn begin(stage: &Stage) -> Result<Self, StageError> {
        let certificate = Certificate::ending_in(stage, 90)?;
        let postgres = Postgres::start(stage, CONNECTIONS + 30)?;
        let redis = Redis::start(stage, &certificate, 200)?;
        // The peers know a password at most, and no name of a user.
        redis.says(&["ACL", "SETUSER", "default", "on", "nopass", "+ping", "+info"])?;
        let nginx = Nginx::start(stage)?;
        let mut application =
            Application::of_library(stage, NAME, Library::QueuePool, &postgres, Sizes::full(CONNECTIONS))?;
        application.does("traffic 20")?;
        let webhook = Webhook::start(stage)?;
        let collector = Collector::serving(stage, &webhook)?;
        Ok(Self { postgres, redis, nginx, application, collector, _webhook: webhook })
    }

    /// How often nginx and Redis were asked, by these very questions too.
    fn asked(&self) -> Result<[u64; 2], StageError> {
        let said = self.redis.says(&["INFO", "stats"])?;
        let commands =
            said.lines().find_map(|line| line.strip_prefix("total_commands_processed:")?.trim().parse().ok());
        let commands = commands.ok_or(StageError::Malformed { what: "INFO of Redis".into(), found: said })?;
        Ok([self.nginx.requests()?, commands])
    }

    /// Whether the role of those who watch has asked PostgreSQL within the last round. Monit only shakes hands with it.
    fn has_asked_postgres(&self) -> Result<bool, StageError> {
        let rows = self.postgres.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'tickbird' AND query_start > now() - interval '15 s'",
        )?;
        Ok(rows.first().is_some_and(|row| row[0] != "0"))
    }

    fn pages(&self) -> impl Iterator<Item = String> {
        (0..PAGES).map(|page| self.nginx.url(&format!("/page-{page}")))
    }

    fn cost_of(&self, stage: &Stage, who: Who) -> Result<Cost, StageError> {
        let cgroup = Cgroup::make(stage, "footprint")?;
        let measure = |pids: &[u32]| {
            pids.iter().try_for_each(|pid| cgroup.take(*pid))?;
            warm_up(WARM_UP.s())?;
            let before = self.asked()?;
            let cost = over_in(&cgroup, SECONDS.s())?;
            let after = self.asked()?;
            // One round may be due at the end; and one question each was ours.
            let rounds = SECONDS / 10 - 1;
            let asked = [after[0] - before[0], after[1] - before[1]];
            let is_done = asked[0] > rounds * PAGES as u64 && asked[1] > rounds;
            if !is_done || who != Who::Monit && !self.has_asked_postgres()? {
                let said = format!("nginx and Redis were asked {asked:?} times, or PostgreSQL not at all");
                return Err(StageError::Failed { what: who.name(), said });
            }
            Ok(cost)
        };
        match who {
            Who::Tickbird { seconds } => {
                let mut agent = Agent::prepare(stage, &self.of_agent(seconds)?, User::Same)?;
                agent.enrol(&self.collector)?;
                agent.run()?;
                let cost = measure(&[agent.pid().expect("it runs")])?;
                agent.stop()?;
                Ok(cost)
            }
            Who::Prometheus => {
                let mut all = prometheus::start(stage, self)?;
                let cost = measure(&all.iter().map(Running::pid).collect::<Vec<_>>())?;
                for it in &mut all {
                    it.alive().map_err(|said| StageError::Failed { what: who.name(), said })?;
                }
                all.into_iter().rev().try_for_each(|mut it| it.stop().map(drop))?;
                Ok(cost)
            }
            Who::Collectd | Who::Monit => {
                let room = stage.room(if who == Who::Monit { "monit" } else { "collectd" })?;
                let (program, settings) = if who == Who::Monit {
                    (installed("/usr/bin/monit", "monit")?, self.of_monit(&room))
                } else {
                    (installed("/usr/sbin/collectd", "collectd-core")?, self.of_collectd(&room)?)
                };
                let file = room.join("settings");
                write(&file, &settings)?;
                let mut command = Command::new(program);
                command.args(if who == Who::Monit { ["-I", "-c"] } else { ["-f", "-C"] }).arg(&file);
                let mut peer =
                    Running::start(&who.name(), command.stdin(Stdio::null()).stdout(Stdio::null()), &room.join("log"))?;
                let cost = measure(&[peer.pid()])?;
                peer.alive().map_err(|said| StageError::Failed { what: who.name(), said })?;
                peer.stop()?;
                Ok(cost)
            }
        }
    }

    /// Largest proportional set size in MiB of an agent from its start on, both of whose lanes begin a generation.
    fn memory_while_rolling(&self, stage: &Stage) -> Result<f64, StageError> {
        let mut agent = Agent::prepare(stage, &self.of_agent(1)?, User::Same)?;
        agent.enrol(&self.collector)?;
        let buffer = agent.state_directory().join("buffer");
        let runtime = tokio::runtime::Runtime::new().map_err(failed)?;
        runtime.block_on(worn_out(&buffer))?;
        let begun = newest(&buffer);
        agent.run()?;
        let roll = || {
            until("both lanes begin a generation", 120.s(), || {
                let now = newest(&buffer);
                let is_rolled = now.len() == 2 && now.iter().zip(&begun).all(|(now, begun)| now > begun);
                if is_rolled { Ok(()) } else { Err(format!("{begun:?} before, {now:?} now")) }
            })?;
            warm_up(60.s())
        };
        let (rolled, most) = most_memory(agent.pid().expect("it runs"), roll);
        rolled?;
        agent.stop()?;
        most
    }

    fn of_agent(&self, seconds: u64) -> Result<String, StageError> {
        let mut text = String::new();
        let every = format!("interval = \"{seconds}s\"\n");
        let slower = if seconds == 1 { String::new() } else { every.clone() };
        if seconds != 1 {
            text += &format!("[host]\n{every}");
        }
        text += &app(NAME, &self.application.command());
        text += &(postgres(&self.postgres.dsn_file("tickbird")?) + &slower);
        text += &(self.redis.section("tickbird", Route::V4)? + &slower);
        for page in self.pages() {
            text += &format!("[[endpoint]]\nurl = \"{page}\"\n");
        }
        Ok(text)
    }

    fn of_collectd(&self, room: &Path) -> Result<String, StageError> {
        let room = room.display();
        let pages: String = self
            .pages()
            .enumerate()
            .map(|(at, url)| {
                format!("<Page \"{at}\">\nURL \"{url}\"\nMeasureResponseTime true\nMeasureResponseCode true\n</Page>\n")
            })
            .collect();
        // What it reads goes to somebody who takes it and does nothing.
        let sink = free_port()?;
        Ok(format!(
            "Hostname \"reference\"\nInterval 10\nBaseDir \"{room}\"\nPIDFile \"{room}/pid\"\nPluginDir \"/usr/lib/collectd\"\n\
             TypesDB \"/usr/share/collectd/types.db\"\n\
             LoadPlugin curl\n<Plugin curl>\n{pages}</Plugin>\n\
             LoadPlugin postgresql\n<Plugin postgresql>\n<Database {database}>\nHost \"127.0.0.1\"\nPort \"{port}\"\nUser \"tickbird\"\n\
             Password \"{password}\"\nSSLMode \"disable\"\nQuery backends\nQuery transactions\nQuery queries\n</Database>\n</Plugin>\n\
             LoadPlugin redis\n<Plugin redis>\n<Node \"reference\">\nHost \"127.0.0.1\"\nPort \"{redis}\"\n</Node>\n</Plugin>\n\
             LoadPlugin processes\n<Plugin processes>\nCollectFileDescriptor true\nProcessMatch \"{NAME}\" \"{command}\"\n</Plugin>\n\
             LoadPlugin network\n<Plugin network>\nServer \"127.0.0.1\" \"{sink}\"\n</Plugin>\n",
            database = APPLICATION.1,
            port = self.postgres.port(),
            password = password("tickbird"),
            redis = self.redis.port(),
            command = self.application.command(),
        ))
    }

    fn of_monit(&self, room: &std::path::Path) -> String {
        let (room, port) = (room.display(), self.nginx.port());
        let pages: String = (0..PAGES)
            .map(|page| {
                format!(
                    "check host page-{page} with address 127.0.0.1\nif failed port {port} protocol http request \
                     \"/page-{page}\" then alert\n"
                )
            })
            .collect();
        format!(
            "set daemon 10\nset pidfile {room}/pid\nset idfile {room}/id\nset statefile {room}/state\n{pages}\
             check host postgres with address 127.0.0.1\nif failed port {} protocol pgsql then alert\n\
             check host redis with address 127.0.0.1\nif failed port {} protocol redis then alert\n\
             check process {NAME} matching \"{}\"\nif cpu > 90% for 5 cycles then alert\nif memory > 2 GB then alert\n\
             if filedescriptors > 900 then alert\n",
            self.postgres.port(),
            self.redis.port(),
            self.application.command(),
        )
    }
}

/// A buffer both of whose lanes were written until the next record begins a generation, and drained.
async fn worn_out(directory: &Path) -> Result<(), StageError> {
    let buffer = open(directory)?;
    let records: Vec<Vec<u8>> = (0..WEAR).map(record).collect();
    for lane in [Lane::Urgent, Lane::Bulk] {
        for hundred in records.chunks(100) {
            buffer.append(lane, hundred.to_vec()).await.map_err(failed)?;
        }
        while let Some(stored) = buffer.next_batch(lane, 1_000, usize::MAX).await.map_err(failed)? {
            buffer.settle(lane, stored.through(), Vec::new()).await.map_err(failed)?;
        }
    }
    buffer.close().await.map_err(failed)
}

/// The newest generation of each lane; a generation is a directory `q-<number>`.
fn newest(buffer: &Path) -> Vec<u64> {
    let entries = |at: &Path| std::fs::read_dir(at).into_iter().flatten().flatten().map(|it| it.path());
    let number = |it: std::path::PathBuf| it.file_name()?.to_str()?.strip_prefix("q-")?.parse().ok();
    let mut lanes: Vec<_> = entries(buffer).collect();
    lanes.sort();
    lanes.iter().filter_map(|lane| entries(lane).filter_map(number).max()).collect()
}

/// Peers refuse settings with passwords that others may read.
fn write(file: &Path, text: &str) -> Result<(), StageError> {
    let failed = || StageError::system("write a peer's settings");
    std::fs::write(file, text).map_err(failed())?;
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(failed())
}
