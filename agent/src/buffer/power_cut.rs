//! A power cut at any moment: what was accepted is there.
//!
//! None can be tried here. So a process appends under `strace`, and says aloud what was accepted; its writes are
//! replayed into copies that hold what was synced by then and nothing else, and copies that hold every prefix of what
//! was written; each is opened.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use tickbird_shared::StartWord;
use tickbird_tests::power_cut::{Files, INSIDE, What, traced};

use super::*;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

/// Small generations, so that a short trace crosses several.
fn config(directory: &Path) -> Config {
    Config { generation_bytes: 2 << 10, ..Config::new(directory) }.with_min_free_bytes(0)
}

fn record(lane: Lane, number: u64) -> Vec<u8> {
    // One is too large for sled's log and goes to a file of its own.
    let width = if number == 23 { 3_000 } else { 6 };
    let noise: String = (0..width as u64)
        .map(|turn| {
            format!(
                "{:016x}",
                (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_mul(turn * 2 + 1) ^ turn.rotate_left(40)
            )
        })
        .collect();
    format!(r#"{{"lane":"{lane}","number":{number},"noise":"{noise}"}}"#).into_bytes()
}

/// What the traced process does.
async fn works(directory: &Path) {
    let mut said = File::create(directory.join("said")).expect("created");
    let say_start = |said: &mut File, standing: &Standing| {
        let start = standing.start.as_ref().expect("it is on disk");
        said.write_all(format!("start {} {} {}\n", standing.epoch, start.number, start.word).as_bytes()).expect("said");
    };
    let (mut buffer, _) = Buffer::open(config(&directory.join("buffer")), now()).expect("opened");
    say_start(&mut said, &buffer.standing(Lane::Urgent).await.expect("standing"));
    let mut next = [1; 2];
    for turn in 0..14 {
        if turn % 4 == 3 {
            buffer.close().await.expect("closed");
            buffer = Buffer::open(config(&directory.join("buffer")), now()).expect("opened").0;
            say_start(&mut said, &buffer.standing(Lane::Urgent).await.expect("standing"));
        }
        for lane in Lane::ALL {
            let from = &mut next[lane as usize];
            let records = (*from..*from + 4).map(|number| record(lane, number)).collect();
            buffer.append(lane, records).await.expect("appended");
            *from += 4;
            // In one call: what is said is said at one moment.
            said.write_all(format!("{lane} {}\n", *from - 1).as_bytes()).expect("said");
        }
        if turn % 5 == 4 {
            buffer.settle(Lane::Urgent, next[0] - 11, Vec::new()).await.expect("settled");
            buffer.set_aside(Lane::Bulk, next[1] - 2, "too_large").await.expect("set aside");
        }
    }
    buffer.close().await.expect("closed");
}

/// A directory in memory: thousands of syncs of copies say nothing about a disk.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

/// A start that was said, and may have sent what was accepted since.
#[derive(Debug, Clone)]
struct Said {
    epoch: String,
    number: u64,
    word: StartWord,
}

/// Everything up to `accepted` is there or settled, in its place and as it was; nothing is missing in between. This start
/// goes on from the one that was said last; false when it begins an epoch of its own instead, as after damage.
async fn holds(copy: &Path, accepted: &BTreeMap<String, u64>, said: Option<&Said>) -> bool {
    let (buffer, _) = Buffer::open(config(copy), now()).expect("it starts");
    let mut goes_on = true;
    for lane in Lane::ALL {
        let standing = buffer.standing(lane).await.expect("standing");
        let (start, Some(said)) = (standing.start.expect("it is on disk"), said) else { continue };
        goes_on = standing.epoch.as_str() == said.epoch;
        if goes_on {
            assert!(start.number > said.number && start.word != said.word, "{start:?} after {said:?}");
            let accepted = accepted.get(lane.as_str()).copied().unwrap_or_default();
            let holds = start.holds_of(said.word);
            assert!(holds.is_some_and(|holds| holds >= accepted), "{start:?}: {accepted} under {said:?}");
        }
    }
    for lane in Lane::ALL {
        let accepted = accepted.get(lane.as_str()).copied().unwrap_or_default();
        let stat = buffer.stat().await.expect("stat").lanes[lane as usize];
        assert!(stat.appended >= accepted, "{lane}: {accepted} were accepted: {stat:?}");
        assert!(stat.is_whole() && stat.quarantined == 0, "{lane}: nothing accepted is lost: {stat:?}");
        while let Some(stored) = buffer.next_batch(lane, 100, 8 << 20).await.expect("read") {
            let mut sequence = stored.first;
            for item in &stored.items {
                match item {
                    Item::Record(bytes) => assert!(*bytes == record(lane, sequence), "{lane} {sequence} is another"),
                    Item::Loss(loss) => assert_eq!(loss.count, 1, "only what was set aside: {loss:?}"),
                }
                sequence += item.width();
            }
            buffer.settle(lane, stored.through(), Vec::new()).await.expect("settled");
        }
        let stat = buffer.stat().await.expect("stat").lanes[lane as usize];
        assert!(stat.is_whole() && stat.backlog == 0 && stat.through == stat.appended, "{stat:?}");
    }
    buffer.close().await.expect("closed");
    goes_on
}

#[test]
fn what_was_accepted_survives_a_power_cut_at_any_moment() {
    if let Some(directory) = std::env::var_os(INSIDE) {
        return runtime().block_on(works(Path::new(&directory)));
    }
    let room = memory();
    let root = room.path().canonicalize().expect("there");
    let log = root.join("trace");
    let work = root.join("work");
    std::fs::create_dir(&work).expect("created");
    let calls = traced("buffer::power_cut::what_was_accepted_survives_a_power_cut_at_any_moment", &work, &log);

    let (buffer, said) = (work.join("buffer"), work.join("said"));
    let is_ours = |what: &What| what.is_within(&buffer);
    let (runtime, mut files) = (runtime(), Files::default());
    let mut accepted: BTreeMap<String, u64> = BTreeMap::new();
    let mut start = None;
    let (mut cuts, mut anew, mut failed) = (0, 0, Vec::new());
    let mut try_copy =
        |files: &Files, is_all: bool, so_far: (&BTreeMap<String, u64>, &Option<Said>), at: usize, what: &What| {
            cuts += 1;
            let copy: PathBuf = root.join("copy");
            if is_all {
                files.write_all(&buffer, &copy)
            } else {
                files.write_lasting(&buffer, &copy)
            }
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime.block_on(holds(&copy, so_far.0, so_far.1.as_ref()))
            }));
            match outcome {
                Ok(goes_on) => anew += usize::from(!goes_on),
                Err(panic) => {
                    let text =
                        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
                    let kind = what.in_short();
                    failed
                        .push(format!("cut after call {at} ({kind}), all written: {is_all}: {}", text.unwrap_or("?")));
                }
            }
            std::fs::remove_dir_all(&copy).expect("removed");
        };
    for (at, call) in calls.iter().enumerate() {
        files.apply(call);
        match &call.what {
            What::Written { path, bytes, .. } if *path == said => {
                let text = String::from_utf8(bytes.clone()).expect("text");
                let words: Vec<&str> = text.split_whitespace().collect();
                match words[..] {
                    ["start", epoch, number, word] => {
                        let (number, word) = (number.parse().expect("a number"), word.try_into().expect("a word"));
                        start = Some(Said { epoch: epoch.to_owned(), number, word });
                    }
                    [lane, through] => {
                        accepted.insert(lane.to_owned(), through.parse().expect("a number"));
                    }
                    _ => panic!("not what is said: {text}"),
                }
                try_copy(&files, false, (&accepted, &start), at, &call.what);
            }
            what if is_ours(what) && !matches!(what, What::Synced(_) | What::Pushed(_)) => {
                try_copy(&files, true, (&accepted, &start), at, what);
            }
            _ => (),
        }
    }
    assert_eq!(accepted.values().copied().collect::<Vec<_>>(), [56, 56], "the trace was read to its end");
    assert_eq!(start.map(|it| it.number), Some(4), "and each start of it");
    assert!(anew * 20 < cuts, "{anew} of {cuts} began anew");
    assert!(failed.is_empty(), "{} of {cuts} cuts:\n{}", failed.len(), failed.join("\n"));
}
