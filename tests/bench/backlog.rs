//! What a buffer full of what nobody fetched costs the agent: the time to open it with a cold cache, the memory, the disk. In
//! turn with one that is empty, since the machine is not alone.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use tickbird_agent::buffer::{Buffer, Config};
use tickbird_shared::{Lane, Timestamp};
use tickbird_tests::agent::User;
use tickbird_tests::{Agent, Collector, Seconds, Stage, StageError, Webhook, until};

use crate::buffer::{TOGETHER, record};
use crate::cost::{over, warm_up};
use crate::{Figure, median};

const RECORDS: u64 = 3_500_000;
/// The bound has to leave room for all of them.
const MAX_BYTES: u64 = 2 << 30;
const TURNS: usize = 5;
const OPENED: &str = "buffer open";

pub(crate) fn backlog(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let webhook = Webhook::start(stage)?;
    let mut collector = Collector::serving(stage, &webhook)?;
    let configuration = format!("[buffer]\nmax_bytes = \"{MAX_BYTES}B\"\n");
    let mut full = Agent::prepare(stage, &configuration, User::Same)?;
    let mut empty = Agent::prepare(stage, &configuration, User::Same)?;
    full.enrol(&collector)?;
    empty.enrol(&collector)?;
    let directory = full.state_directory().join("buffer");
    let filled = fill(&directory)?;
    // What cannot be sent stays: that is how a backlog of this size comes about.
    collector.stop()?;
    let (mut opens, mut sizes) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..TURNS {
        for (agent, (opens, sizes)) in [&mut full, &mut empty].into_iter().zip(opens.iter_mut().zip(&mut sizes)) {
            forget(&agent.state_directory())?;
            opens.push(opening(agent)?);
            warm_up(2.s())?;
            sizes.push(over(agent.pid().expect("it runs"), 10.s())?.pss_mib);
            agent.stop()?;
        }
    }
    // And while it leaves, as fast as the collector takes it.
    collector.start()?;
    let mut leaving = Vec::new();
    for agent in [&mut full, &mut empty] {
        agent.run()?;
        // Whatever the collector makes of records that are only large: it answers for them, and they leave.
        until("it leaves", 60.s(), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            let lanes = &status["agent"]["buffer"]["lanes"];
            let left = lanes.as_array().into_iter().flatten().filter_map(|it| it["through"].as_u64());
            if left.sum::<u64>() > 0 { Ok(()) } else { Err(status["agent"]["buffer"].to_string()) }
        })?;
        leaving.push(over(agent.pid().expect("it runs"), 30.s())?.pss_mib);
        agent.stop()?;
    }
    let extra = median(&sizes[0]) - median(&sizes[1]);
    let ([opens_full, opens_empty], [full, empty]) = (opens, sizes);
    let mut figures = filled;
    let opening = "from start to an open buffer of 3.5 M records, nothing cached";
    figures.push(Figure::of_all(opening, opens_full, "s").at_most(0.3));
    figures.push(Figure::of_all("from start to an open buffer of none", opens_empty, "s").for_comparison());
    figures.push(Figure::of_all("memory (PSS) with 3.5 M records that wait", full, "MiB"));
    figures.push(Figure::of_all("memory (PSS) with none", empty, "MiB"));
    figures.push(Figure::of("memory for the backlog", extra, "MiB").at_most(8.0));
    figures.push(Figure::of("memory for the backlog while it leaves", leaving[0] - leaving[1], "MiB").at_most(8.0));
    Ok(figures)
}

/// Fills a buffer: records a second while it does, and what they take on disk.
fn fill(directory: &Path) -> Result<Vec<Figure>, StageError> {
    let failed = |error: &dyn std::fmt::Display| StageError::Failed { what: "fill".into(), said: error.to_string() };
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().map_err(StageError::system("make a runtime"))?;
    let config = Config::new(directory).with_max_bytes(MAX_BYTES).map_err(|error| failed(&error))?;
    runtime.block_on(async {
        let (buffer, _) = Buffer::open(config, Timestamp::now()).map_err(|error| failed(&error))?;
        let (began, mut raw, mut compressed) = (Instant::now(), 0, 0);
        for first in (0..RECORDS).step_by(TOGETHER as usize) {
            let records: Vec<Vec<u8>> = (first..first + TOGETHER).map(record).collect();
            raw += records.iter().map(Vec::len).sum::<usize>();
            // One in a hundred stands for the others.
            if first % (100 * TOGETHER) == 0 {
                let all = zstd::bulk::compress(&records.concat(), 3).map_err(StageError::system("compress"))?;
                compressed += 100 * all.len();
            }
            buffer.append(Lane::Urgent, records).await.map_err(|error| failed(&error))?;
        }
        let rate = RECORDS as f64 / began.elapsed().as_secs_f64();
        let stat = buffer.stat().await.map_err(|error| failed(&error))?;
        let lane = stat.lanes[0];
        if lane.backlog != RECORDS {
            return Err(StageError::Failed { what: "fill".into(), said: format!("{lane:?}") });
        }
        buffer.close().await.map_err(|error| failed(&error))?;
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let (disk, compressed) = (mib(lane.bytes_on_disk as f64), mib(compressed as f64));
        Ok(vec![
            Figure::of("records of 300 bytes a second while it is filled, in hundreds, each synced", rate, "1/s")
                .more_is_better(),
            Figure::of("3.5 M records", mib(raw as f64), "MiB").for_comparison(),
            Figure::of("each hundred of them compressed", compressed, "MiB").for_comparison(),
            Figure::of("on disk", disk, "MiB").at_most(2.2 * compressed + 16.0),
        ])
    })
}

/// Puts what the kernel keeps of the files below `directory` out of its cache, so that the next reader pays for them.
fn forget(directory: &Path) -> Result<(), StageError> {
    for entry in std::fs::read_dir(directory).map_err(StageError::system("list the state"))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            forget(&path)?;
        } else if let Ok(file) = std::fs::File::open(&path) {
            file.sync_all().map_err(StageError::system("sync the buffer"))?;
            let forgotten = fadvise(&file, 0, None, Advice::DontNeed).map_err(std::io::Error::from);
            forgotten.map_err(StageError::system("empty the cache"))?;
        }
    }
    Ok(())
}

/// Starts the agent: seconds until it says that its buffer is open.
fn opening(agent: &mut Agent) -> Result<f64, StageError> {
    let before = agent.log().len();
    let began = std::time::SystemTime::now();
    agent.run()?;
    let log = agent.log();
    let line = log.get(before..).unwrap_or_default().lines().find(|line| line.contains(OPENED));
    let said = line.and_then(|line| line.split_whitespace().next()?.parse::<jiff::Timestamp>().ok());
    let said = said.ok_or_else(|| StageError::Malformed { what: "the agent's log".into(), found: log.clone() })?;
    let time = std::time::SystemTime::from(said).duration_since(began).unwrap_or(Duration::ZERO);
    Ok(time.as_secs_f64())
}
