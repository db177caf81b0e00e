//! What the agent's buffer costs: records a second in and out, each hundred of them safe from a power cut, what stays on disk
//! when millions went through, and whether more of them cost more each.
//!
//! In turns with a bare sled that keeps each record by itself, and with a bare file: what the disk's own sync allows.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use tickbird_agent::buffer::{Buffer, Config};
use tickbird_shared::{Lane, Timestamp};
use tickbird_tests::{Stage, StageError};

use crate::cost::cpu_seconds;
use crate::{Figure, median};

/// One call's, and one frame's.
pub(crate) const TOGETHER: u64 = 100;
const TURNS: usize = 5;
/// Records of one turn.
const RECORDS: u64 = 100_000;
/// What a batch to the collector takes at most.
const BATCH: usize = 500;
/// Records that go through, and how many wait meanwhile.
const CYCLES: u64 = 5_000_000;
const DEPTH: u64 = 10_000;
/// Records of which one is stored differently from the other; more would only repeat them.
const DISTINCT: u64 = 10_000;
/// Beside a linear growth.
const GROWTH: f64 = 1.2;

pub(crate) fn buffer(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let records: Vec<Vec<u8>> = (0..DISTINCT).map(record).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(StageError::system("make a runtime"))?;
    let room = stage.room("buffers")?;
    let (mut into, mut out, mut peers) = (Vec::new(), Vec::new(), [const { Vec::new() }; 3]);
    for turn in 0..TURNS {
        let directory = room.join(format!("rate-{turn}"));
        let times = runtime.block_on(through(&directory.join("buffer"), &records, RECORDS))?;
        into.push(RECORDS as f64 / times.append);
        out.push(RECORDS as f64 / times.drain);
        for (peer, rates) in [Peer::Sled, Peer::SyncedSled, Peer::File].into_iter().zip(&mut peers) {
            let seconds = peer.append(&directory.join("peer"), &records)?;
            rates.push(RECORDS as f64 / seconds);
        }
        remove(&directory)?;
    }
    let [sled, synced, file] = peers;
    let mut figures = vec![
        Figure::of_all("appended in hundreds, each synced", into, "records/s").at_least(150_000.0),
        Figure::of_all("drained: read, opened and settled", out, "records/s").more_is_better(),
        Figure::of_all("a bare sled, flushed each hundred, which no power cut may meet", sled, "records/s")
            .for_comparison(),
        Figure::of_all("a bare sled, flushed and synced each hundred", synced, "records/s").for_comparison(),
        Figure::of_all("a bare file, written and synced each hundred", file, "records/s").for_comparison(),
    ];
    let directory = room.join("cycles");
    figures.extend(runtime.block_on(cycles(&directory, &records))?);
    remove(&directory)?;
    figures.extend(growth(&room, &runtime, &records)?);
    Ok(figures)
}

/// Seconds of a way through the buffer.
struct Times {
    append: f64,
    drain: f64,
}

/// Fills a new buffer with `count` records and empties it.
async fn through(directory: &Path, records: &[Vec<u8>], count: u64) -> Result<Times, StageError> {
    let buffer = open(directory)?;
    let began = Instant::now();
    for first in (0..count).step_by(TOGETHER as usize) {
        buffer.append(Lane::Urgent, hundred(records, first)).await.map_err(failed)?;
    }
    let append = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let mut drained = 0;
    while let Some(stored) = buffer.next_batch(Lane::Urgent, BATCH, usize::MAX).await.map_err(failed)? {
        drained += buffer.settle(Lane::Urgent, stored.through(), Vec::new()).await.map_err(failed)?;
    }
    let drain = began.elapsed().as_secs_f64();
    buffer.close().await.map_err(failed)?;
    if drained != count {
        return Err(failed(format!("{drained} of {count} records came out")));
    }
    Ok(Times { append, drain })
}

/// What is on disk while [`CYCLES`] records come and go, [`DEPTH`] waiting, and afterwards.
async fn cycles(directory: &Path, records: &[Vec<u8>]) -> Result<[Figure; 3], StageError> {
    let buffer = open(directory)?;
    let (began, mut most) = (Instant::now(), 0.0_f64);
    for first in (0..CYCLES).step_by(TOGETHER as usize) {
        buffer.append(Lane::Urgent, hundred(records, first)).await.map_err(failed)?;
        if first >= DEPTH {
            let stored = buffer.next_batch(Lane::Urgent, TOGETHER as usize, usize::MAX).await.map_err(failed)?;
            let through = stored.ok_or_else(|| failed("nothing waits"))?.through();
            buffer.settle(Lane::Urgent, through, Vec::new()).await.map_err(failed)?;
        }
        if first % 10_000 == 0 {
            most = most.max(on_disk(directory)?);
        }
    }
    let rate = CYCLES as f64 / began.elapsed().as_secs_f64();
    let stat = buffer.stat().await.map_err(failed)?;
    let backlog = stat.lanes[0].backlog;
    buffer.close().await.map_err(failed)?;
    if backlog != DEPTH {
        return Err(failed(format!("{backlog} wait, not {DEPTH}")));
    }
    Ok([
        Figure::of("appended and acknowledged, 5 M records", rate, "records/s").more_is_better(),
        Figure::of("most on disk meanwhile", most, "MiB").at_most(32.0),
        Figure::of("on disk afterwards", on_disk(directory)?, "MiB").at_most(32.0),
    ])
}

/// The CPU that a record costs on its way through, with four and sixteen times as many, against that of the fewest.
fn growth(room: &Path, runtime: &tokio::runtime::Runtime, records: &[Vec<u8>]) -> Result<Vec<Figure>, StageError> {
    const FEWEST: u64 = 100_000;
    const TIMES: [u64; 3] = [1, 4, 16];
    let mut costs = TIMES.map(|_| Vec::new());
    for _ in 0..3 {
        for (times, costs) in TIMES.into_iter().zip(&mut costs) {
            let directory = room.join("growth");
            let before = cpu_seconds(std::process::id())?;
            runtime.block_on(through(&directory, records, times * FEWEST))?;
            let spent = cpu_seconds(std::process::id())? - before;
            costs.push(1e6 * spent / (times * FEWEST) as f64);
            remove(&directory)?;
        }
    }
    let least = median(&costs[0]);
    let mut figures = Vec::new();
    for (times, costs) in TIMES.into_iter().zip(costs) {
        let what = format!("CPU of a record on its way through, {} thousand of them", times * FEWEST / 1000);
        let ratio = median(&costs) / least;
        figures.push(Figure::of_all(what, costs, "µs"));
        if times > 1 {
            figures
                .push(Figure::of(format!("that to the CPU of one in {times} times fewer"), ratio, "").at_most(GROWTH));
        }
    }
    Ok(figures)
}

/// Who else keeps records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Sled,
    SyncedSled,
    File,
}

impl Peer {
    /// Seconds that it takes for [`RECORDS`], in hundreds.
    fn append(self, directory: &Path, records: &[Vec<u8>]) -> Result<f64, StageError> {
        let hundreds = (0..RECORDS).step_by(TOGETHER as usize).map(|first| (first, hundred(records, first)));
        let seconds = if self == Self::File {
            std::fs::create_dir(directory).map_err(StageError::system("make a directory"))?;
            let mut file = File::create(directory.join("file")).map_err(StageError::system("make a file"))?;
            let began = Instant::now();
            for (_, records) in hundreds {
                let written = file.write_all(&records.concat()).and_then(|()| file.sync_data());
                written.map_err(StageError::system("write a file"))?;
            }
            began.elapsed().as_secs_f64()
        } else {
            let config = sled::Config::new().path(directory).cache_capacity(1 << 20).flush_every_ms(None);
            let database = config.open().map_err(failed)?;
            let file = File::options().write(true).open(directory.join("db"));
            let file = file.map_err(StageError::system("open sled's file"))?;
            let began = Instant::now();
            for (first, records) in hundreds {
                let mut batch = sled::Batch::default();
                for (sequence, record) in (first..).zip(records) {
                    batch.insert(&sequence.to_be_bytes(), record);
                }
                database.apply_batch(batch).and_then(|()| database.flush()).map_err(failed)?;
                if self == Self::SyncedSled {
                    file.sync_data().map_err(StageError::system("sync sled's file"))?;
                }
            }
            began.elapsed().as_secs_f64()
        };
        remove(directory)?;
        Ok(seconds)
    }
}

pub(crate) fn open(directory: &Path) -> Result<Buffer, StageError> {
    let config = Config::new(directory).with_max_bytes(2 << 30).map_err(failed)?;
    Ok(Buffer::open(config, Timestamp::now()).map_err(failed)?.0)
}

/// The records from `first` on that one call takes.
fn hundred(records: &[Vec<u8>], first: u64) -> Vec<Vec<u8>> {
    let at = (first % DISTINCT) as usize;
    records[at..at + TOGETHER as usize].to_vec()
}

/// A finding of some 300 bytes, of which another differs as two findings of an agent do.
pub(crate) fn record(number: u64) -> Vec<u8> {
    let noise = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (pid, fd, age) = (1000 + noise % 40, noise % 977, (noise >> 32) % 100_000);
    let other = (noise ^ noise >> 31).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let record = serde_json::json!({
        "fingerprint": format!("{noise:016x}{other:016x}"),
        "kind": "finding", "at": format!("2026-11-22T00:{:02}:{:02}.{:06}Z", number / 60 % 60, number % 60, noise % 1_000_000),
        "check": "pool.idle_in_transaction", "target": format!("pool:grants-api-{pid}/main>10.0.0.5:5432/app?user=app"),
        "status": "firing", "severity": "warning",
        "summary": format!("pid {pid} holds a session for {age} ms on fd {fd} = backend {}", noise >> 48),
    });
    record.to_string().into_bytes()
}

/// MiB that a directory and everything in it take on disk.
fn on_disk(directory: &Path) -> Result<f64, StageError> {
    fn blocks(directory: &Path) -> std::io::Result<u64> {
        let mut sum = 0;
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            sum += match entry.metadata() {
                Ok(found) if found.is_dir() => blocks(&entry.path())?,
                Ok(found) => found.blocks(),
                // A generation that was just drained.
                Err(_) => 0,
            };
        }
        Ok(sum)
    }
    let blocks = blocks(directory).map_err(StageError::system("measure the buffer"))?;
    Ok(blocks as f64 * 512.0 / f64::from(1 << 20))
}

fn remove(directory: &Path) -> Result<(), StageError> {
    std::fs::remove_dir_all(directory).map_err(StageError::system("remove a buffer"))
}

pub(crate) fn failed(error: impl std::fmt::Display) -> StageError {
    StageError::Failed { what: "the buffer".into(), said: error.to_string() }
}
