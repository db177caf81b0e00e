//! Thousands of connected agents at one collector: memory of each, CPU of a handshake, reconnect storms, a steady load.
//!
//! The agents are simulated in this process by `tests/fleet`, which speaks through the agent's own code; a hundred come from
//! each address of loopback, and the collector has the bounds that it is shipped with.

use std::time::{Duration, Instant};

use tickbird_fleet::{Conduct, Fleet, Report, identities, raise_descriptors, sources_for};
use tickbird_shared::enrolment::EnrolmentToken;
use tickbird_tests::{Collector, Seconds, Stage, StageError, until};

use crate::Figure;
use crate::cost::{cpu_seconds, pss, warm_up};

/// Another number of agents than [`AGENTS`].
const NUMBER: &str = "TICKBIRD_BENCH_AGENTS";
/// What one process of the collector must bear.
const AGENTS: usize = 15_000;
/// Batches of 2 KiB after which an agent's memory is taken.
const BATCHES: u32 = 10;
const STORMS: usize = 10;
/// The least descriptors beside one for each agent.
const SPARE: u64 = 200;
const WITHIN: Duration = Duration::from_secs(300);
const STEADY: Duration = Duration::from_secs(60);

/// A collector, and what it has cost so far.
struct Watched {
    collector: Collector,
    pid: u32,
}

impl Watched {
    fn serve(collector: &mut Collector) -> Result<u32, StageError> {
        collector.serve()?;
        collector
            .pid()
            .ok_or_else(|| StageError::Failed { what: "the collector".into(), said: "it does not run".into() })
    }

    fn cpu(&self) -> Result<f64, StageError> {
        cpu_seconds(self.pid)
    }

    /// Until it counts so many connections; the other end of a handshake is done before it is here.
    fn has_connections(&self, wanted: usize) -> Result<(), StageError> {
        until(format!("{wanted} agents are connected"), 60.s(), || {
            let answer = self.collector.get("/metrics").map_err(|error| error.to_string())?;
            let line = answer.body.lines().find_map(|line| line.strip_prefix("tickbird_agent_connections "));
            match line.and_then(|it| it.trim().parse::<usize>().ok()) {
                Some(found) if found == wanted => Ok(()),
                found => Err(format!("{found:?}")),
            }
        })
    }
}

pub(crate) fn fleet(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let wanted = std::env::var(NUMBER).ok().and_then(|it| it.parse().ok()).unwrap_or(AGENTS);
    let most = usize::try_from(raise_descriptors().saturating_sub(SPARE)).unwrap_or(usize::MAX);
    if most < wanted {
        let said = format!("this process may have {most} descriptors: raise `ulimit -Hn`, or set {NUMBER}");
        return Err(StageError::Failed { what: format!("{wanted} agents"), said });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(StageError::system("start a runtime"))?;
    let mut collector = Collector::init(stage)?;
    let pid = Watched::serve(&mut collector)?;
    let token = token(&collector, wanted)?;
    let began = Instant::now();
    let enrolled = runtime.block_on(identities::enrol(&token, &format!("https://{}", collector.people()), wanted));
    let enrolled = enrolled.map_err(|error| failed("enrolment", &error))?;
    eprintln!("  {wanted} agents enrolled in {:.0} s", began.elapsed().as_secs_f64());
    let url = format!("https://{}", collector.agents());
    let conduct = Conduct { sources: sources_for(wanted, &url), ..Conduct::default() };
    let mut fleet = Fleet::new(&enrolled, conduct).map_err(|error| failed("the fleet", &error))?;
    drop(enrolled);
    let mut it = Watched { collector, pid };
    // What enrolment took of its memory is no agent's.
    it.collector.stop()?;
    it.pid = Watched::serve(&mut it.collector)?;
    warm_up(5.s())?;
    let agents = wanted as f64;

    let (empty, cpu, began) = (pss(it.pid)?, it.cpu()?, Instant::now());
    runtime.block_on(fleet.open(WITHIN));
    it.has_connections(wanted)?;
    let (took, cpu) = (began.elapsed().as_secs_f64(), it.cpu()? - cpu);
    well("connecting", &fleet.take_report(), wanted)?;
    let mut figures = vec![
        Figure::of("handshake with a client certificate: the collector's CPU", 1e3 * cpu / agents, "ms").at_most(0.35),
        Figure::of("handshakes, agents on the same processors", agents / took, "1/s").more_is_better(),
    ];
    warm_up(3.s())?;
    let rest = 1024.0 * (pss(it.pid)? - empty) / agents;
    figures.push(Figure::of("memory of a connection on which nothing was said yet", rest, "KiB").for_comparison());

    runtime.block_on(fleet.send(BATCHES, WITHIN));
    well("ten batches", &fleet.take_report(), wanted)?;
    warm_up(3.s())?;
    let full = pss(it.pid)?;
    figures.push(
        Figure::of(format!("memory of an idle agent after {BATCHES} batches"), 1024.0 * (full - empty) / agents, "KiB")
            .at_most(22.0),
    );

    let (mut back, mut cpus, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for storm in 1..=STORMS {
        let (began, cpu) = (Instant::now(), it.cpu()?);
        fleet.drop_all();
        runtime.block_on(fleet.greet(WITHIN));
        back.push(began.elapsed().as_secs_f64());
        cpus.push(it.cpu()? - cpu);
        it.has_connections(wanted)?;
        let report = fleet.take_report();
        well("a storm", &report, wanted)?;
        memory.push(pss(it.pid)?);
        let last = |values: &[f64]| values.last().copied().unwrap_or_default();
        eprintln!(
            "  storm {storm}: back in {:.1} s, {:.1} s of CPU, {:.0} MiB, tried again: {:?}",
            last(&back),
            last(&cpus),
            last(&memory),
            report.errors
        );
    }
    // The first storms fill what is kept for the next.
    let (second, tenth) = (memory[1], memory[STORMS - 1]);
    figures.extend([
        Figure::of_all("storm: all are back and were answered", back, "s"),
        Figure::of_all("storm: the collector's CPU", cpus, "s"),
        Figure::of("memory after ten storms, as a share of that after two", tenth / second, "").at_most(1.05),
        Figure::of("the collector's memory after ten storms", tenth, "MiB").for_comparison(),
    ]);

    // Once round, so that no lane is new.
    runtime.block_on(fleet.keep_sending(10.s()));
    fleet.take_report();
    let (began, cpu) = (Instant::now(), it.cpu()?);
    runtime.block_on(fleet.keep_sending(STEADY));
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), it.cpu()? - cpu);
    let report = fleet.take_report();
    well("a steady load", &report, wanted)?;
    let quantile = |share| report.acknowledgements.quantile(share);
    figures.extend([
        Figure::of("a batch of each agent per 10 s: acknowledgement (median)", quantile(0.5), "ms"),
        Figure::of("a batch of each agent per 10 s: acknowledgement (p99)", quantile(0.99), "ms").at_most(100.0),
        Figure::of("a batch of each agent per 10 s: the collector's CPU", 100.0 * cpu / seconds, "% of a core"),
    ]);
    runtime.block_on(fleet.part(WITHIN));
    it.collector.stop()?;
    Ok(figures)
}

/// Nothing was given up, refused or answered wrongly, and nobody stayed away.
fn well(what: &str, report: &Report, wanted: usize) -> Result<(), StageError> {
    if report.is_well() && report.connected == wanted && report.refusals.is_empty() {
        return Ok(());
    }
    Err(StageError::Failed { what: what.to_owned(), said: format!("\n{}", report.table(1.0)) })
}

fn failed(what: &str, error: &dyn std::error::Error) -> StageError {
    StageError::Failed { what: what.to_owned(), said: error.to_string() }
}

fn token(collector: &Collector, uses: usize) -> Result<EnrolmentToken, StageError> {
    let made = collector.command(&["token", "create", "--json", "--uses", &uses.to_string()])?;
    let token = serde_json::from_str::<serde_json::Value>(&made).ok();
    let token = token.and_then(|it| it["token"].as_str()?.parse().ok());
    token.ok_or_else(|| StageError::Malformed { what: "token create --json".into(), found: "no token".into() })
}
