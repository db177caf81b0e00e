//! Damage at random places of a copied buffer: it always starts, goes on, and says what was lost.
//!
//! `TICKBIRD_DAMAGE_PLACES` asks for more places than the suite has time for.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const PLACES: u64 = 500;
/// Records of each lane, in the order of [`Lane::ALL`].
const RECORDS: [u64; 2] = [300, 150];
/// As many of them are settled before the damage.
const SETTLED: u64 = 30;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

fn config(directory: &Path) -> Config {
    Config { generation_bytes: 4 << 10, ..Config::new(directory.join("buffer")) }.with_min_free_bytes(0)
}

fn record(lane: Lane, number: u64) -> Vec<u8> {
    let noise = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let noise: String = (0..6_u32).map(|turn| format!("{:016x}", noise.rotate_left(turn * 7) ^ noise)).collect();
    format!(r#"{{"lane":"{lane}","number":{number},"noise":"{noise}"}}"#).into_bytes()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

/// A directory in memory: thousands of syncs of copies say nothing about a disk.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// A buffer of several generations, partly settled, with one record set aside.
fn whole(directory: &Path) {
    runtime().block_on(async {
        let (buffer, _) = Buffer::open(config(directory), now()).expect("opened");
        for (lane, count) in Lane::ALL.into_iter().zip(RECORDS) {
            for from in (0..count).step_by(25) {
                let records = (from..from + 25).map(|number| record(lane, number)).collect();
                buffer.append(lane, records).await.expect("appended");
            }
            buffer.settle(lane, SETTLED, Vec::new()).await.expect("settled");
        }
        buffer.set_aside(Lane::Urgent, SETTLED + 5, "too_large").await.expect("set aside");
        buffer.close().await.expect("closed");
    });
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_name() != "ballast" {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<_> =
        std::fs::read_dir(directory).expect("listed").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        match () {
            () if path.is_dir() => found.extend(files(&path)),
            () if path.metadata().expect("there").len() > 0 => found.push(path),
            () => (),
        }
    }
    found
}

/// Turns a bit, cuts the file, or overwrites a piece of it, as a bad block does. Says what it did.
fn damage(directory: &Path, random: &mut StdRng) -> String {
    let files = files(directory);
    let path = &files[random.random_range(0..files.len())];
    let bytes = std::fs::read(path).expect("read");
    let file = std::fs::File::options().write(true).open(path).expect("opened");
    // A database is mostly zeros behind its end, where damage hurts nobody.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |at| at + 1);
    let at = random.random_range(0..used);
    let what = match random.random_range(0..4) {
        0 => {
            file.set_len(at as u64).expect("cut");
            "cut"
        }
        1 => {
            let piece = vec![random.random::<u8>(); random.random_range(1..=512).min(bytes.len() - at)];
            file.write_all_at(&piece, at as u64).expect("written");
            "overwritten"
        }
        _ => {
            file.write_all_at(&[bytes[at] ^ 1 << random.random_range(0..8)], at as u64).expect("written");
            "one bit turned"
        }
    };
    format!("{} of {} bytes: {what} at {at}", path.strip_prefix(directory).expect("beneath").display(), bytes.len())
}

/// What a drained lane gave: numbers of records as they came, and how many sequences came as losses.
async fn drain(buffer: &Buffer, lane: Lane, known: &BTreeMap<Vec<u8>, u64>) -> (Vec<u64>, u64) {
    let (mut numbers, mut lost, mut expected) = (Vec::new(), 0, None);
    while let Some(stored) = buffer.next_batch(lane, 200, 1 << 20).await.expect("read") {
        assert_eq!(*expected.get_or_insert(stored.first), stored.first, "no gap");
        for item in &stored.items {
            match item {
                Item::Record(bytes) => numbers.push(*known.get(bytes).expect("a record as it was appended")),
                Item::Loss(loss) => lost += loss.count,
            }
        }
        expected = Some(stored.through() + 1);
        buffer.settle(lane, stored.through(), Vec::new()).await.expect("settled");
    }
    (numbers, lost)
}

async fn survives(config: &Config) {
    let (buffer, _) = Buffer::open(config.clone(), now()).expect("it starts");
    for (lane, count) in Lane::ALL.into_iter().zip(RECORDS) {
        let known = (0..count + 3).map(|number| (record(lane, number), number)).collect();
        let new: Vec<_> = (count..count + 3).map(|number| record(lane, number)).collect();
        buffer.append(lane, new).await.expect("it goes on");
        let (numbers, lost) = drain(&buffer, lane, &known).await;
        assert!(numbers.is_sorted_by(|one, next| one < next), "{lane}: in order, none twice: {numbers:?}");
        assert!(numbers.ends_with(&[count, count + 1, count + 2]), "{lane}: what came after the damage comes");
        let waiting = count - SETTLED - u64::from(lane == Lane::Urgent);
        let missing = waiting
            - numbers.iter().filter(|number| (SETTLED..count).contains(number)).count().min(waiting as usize) as u64;
        assert!(lost >= missing, "{lane}: {missing} records are gone, {lost} are told");
        let stat = buffer.stat().await.expect("stat").lanes[lane as usize];
        assert!(stat.is_whole() && stat.backlog == 0, "{stat:?}");
    }
    buffer.close().await.expect("closed");
}

#[test]
fn damage_anywhere_costs_records_and_never_the_agent_nor_the_truth() {
    let places = std::env::var("TICKBIRD_DAMAGE_PLACES").ok().and_then(|it| it.parse().ok()).unwrap_or(PLACES);
    let room = memory();
    let original = room.path().join("original");
    whole(&original);
    let runtime = runtime();
    let mut failed = Vec::new();
    for place in 0..places {
        let mut random = StdRng::seed_from_u64(place);
        let directory = room.path().join(place.to_string());
        copy(&original, &directory);
        let config = config(&directory);
        let what = damage(config.directory(), &mut random);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(survives(&config))));
        if let Err(panic) = outcome {
            let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
            failed.push(format!("{place}: {what}: {}", said.unwrap_or("?")));
        }
        std::fs::remove_dir_all(&directory).expect("removed");
    }
    assert!(failed.is_empty(), "{} of {places} places:\n{}", failed.len(), failed.join("\n"));
}
