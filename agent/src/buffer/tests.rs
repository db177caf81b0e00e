//! The buffer as its callers see it: against a model, through restarts, and with damage done to its files.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tickbird_shared::batch::{LossOutcome, Refused};

use super::*;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

/// Small generations, so that a test crosses several; the disk's state is not the test's business.
fn config(directory: &Path) -> Config {
    Config { generation_bytes: 4 << 10, ..Config::new(directory.join("buffer")) }.with_min_free_bytes(0)
}

fn open(config: &Config) -> Buffer {
    Buffer::open(config.clone(), now()).expect("opened").0
}

/// JSON that does not compress away.
fn record(number: u64) -> Vec<u8> {
    let noise = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let noise: String = (0..8_u32).map(|turn| format!("{:016x}", noise.rotate_left(turn * 7) ^ noise)).collect();
    format!(r#"{{"summary":{number},"noise":"{noise}"}}"#).into_bytes()
}

fn records(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    numbers.map(record).collect()
}

async fn lane_stat(buffer: &Buffer, lane: Lane) -> LaneStat {
    let stat = buffer.stat().await.expect("stat").lanes[lane as usize];
    assert!(stat.is_whole(), "{stat:?}");
    stat
}

/// Reads and settles everything that waits: records by sequence, and losses.
async fn drain(buffer: &Buffer, lane: Lane) -> (Vec<(u64, Vec<u8>)>, Vec<Loss>) {
    let (mut records, mut losses) = (Vec::new(), Vec::new());
    let mut expected = None;
    while let Some(stored) = buffer.next_batch(lane, 250, 1 << 20).await.expect("read").filter(|it| !it.is_volatile) {
        assert_eq!(*expected.get_or_insert(stored.first), stored.first, "no gap between batches");
        let mut sequence = stored.first;
        for item in &stored.items {
            match item {
                Item::Record(bytes) => records.push((sequence, bytes.clone())),
                Item::Loss(loss) => {
                    assert_eq!((loss.from, loss.lane), (sequence, lane));
                    losses.push(*loss);
                }
            }
            sequence += item.width();
        }
        expected = Some(sequence);
        buffer.settle(lane, stored.through(), Vec::new()).await.expect("settled");
    }
    (records, losses)
}

#[tokio::test]
async fn what_was_appended_comes_out_once_in_order_across_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(directory.path());
    let buffer = open(&config);
    let appended = buffer.append(Lane::Urgent, records(1..301)).await.expect("appended");
    assert_eq!(appended, Appended { first: 1, count: 300, evicted: 0 });
    let first = buffer.next_batch(Lane::Urgent, 130, 1 << 20).await.expect("read").expect("some");
    assert_eq!((first.first, first.through()), (1, 130));
    let again = buffer.next_batch(Lane::Urgent, 130, 1 << 20).await.expect("read").expect("some");
    assert_eq!(first, again, "reading changes nothing");
    assert_eq!(buffer.settle(Lane::Urgent, 130, Vec::new()).await.expect("settled"), 130);
    let epoch = buffer.stat().await.expect("stat").epoch;
    drop(buffer); // without closing

    let (buffer, opened) = Buffer::open(config, now()).expect("opened");
    assert_eq!(opened, Opened { epoch, is_new: false, is_on_disk: true });
    let (rest, losses) = drain(&buffer, Lane::Urgent).await;
    assert!(losses.is_empty());
    let expected: Vec<_> = (131..301).map(|number| (number, record(number))).collect();
    assert!(rest == expected, "the rest comes, in order, with its sequences");
    let stat = lane_stat(&buffer, Lane::Urgent).await;
    assert_eq!((stat.appended, stat.acknowledged, stat.backlog), (300, 300, 0));
}

#[tokio::test]
async fn a_batch_ends_at_either_bound_but_never_holds_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let buffer = open(&config(directory.path()));
    buffer.append(Lane::Bulk, records(0..50)).await.expect("appended");
    let size = record(0).len();
    let taken = async |records, bytes| {
        buffer.next_batch(Lane::Bulk, records, bytes).await.expect("read").map(|stored| stored.items.len())
    };
    assert_eq!(taken(7, 1 << 20).await, Some(7));
    assert_eq!(taken(7, size * 3).await, Some(3));
    assert_eq!(taken(7, 1).await, Some(1));
    assert_eq!(taken(0, 1).await, None);
}

#[tokio::test]
async fn appends_made_together_keep_each_callers_order_and_all_wait_for_the_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let buffer = open(&config(directory.path()));
    let calls = (0..64_u64).map(|caller| {
        let buffer = buffer.clone();
        tokio::spawn(async move { buffer.append(Lane::Urgent, records(caller * 10..caller * 10 + 5)).await })
    });
    let mut firsts = Vec::new();
    for (caller, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        firsts.push((caller as u64, call.await.expect("ran").expect("appended").first));
    }
    let (drained, _) = drain(&buffer, Lane::Urgent).await;
    assert_eq!(drained.len(), 320);
    for (caller, first) in firsts {
        let mine = &drained[(first - 1) as usize..(first + 4) as usize];
        assert!(mine.iter().map(|(_, bytes)| bytes.clone()).eq(records(caller * 10..caller * 10 + 5)));
    }
}

#[tokio::test]
async fn a_full_buffer_gives_up_bulk_first_and_says_exactly_what_went() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = config(directory.path());
    config.max_bytes = 6 << 20;
    let buffer = open(&config);
    buffer.append(Lane::Urgent, records(0..100)).await.expect("appended");
    let mut appended = 0;
    while lane_stat(&buffer, Lane::Bulk).await.evicted == 0 {
        buffer.append(Lane::Bulk, records(appended..appended + 400)).await.expect("appended");
        appended += 400;
        assert!(appended < 200_000, "the bound is never reached");
    }
    let stat = buffer.stat().await.expect("stat");
    assert!(stat.bytes_on_disk() <= config.max_bytes, "{stat}");
    assert_eq!(lane_stat(&buffer, Lane::Urgent).await.evicted, 0);
    let evicted = lane_stat(&buffer, Lane::Bulk).await.evicted;
    let (rest, losses) = drain(&buffer, Lane::Bulk).await;
    let lost = Loss { lane: Lane::Bulk, from: 1, to: evicted, count: evicted, outcome: LossOutcome::Evicted };
    assert_eq!(losses, [lost], "one loss for all of it");
    assert_eq!(rest.len() as u64, appended - evicted);
    assert_eq!(drain(&buffer, Lane::Urgent).await.0.len(), 100);
    assert_eq!(lane_stat(&buffer, Lane::Bulk).await.backlog, 0);
}

#[tokio::test]
async fn what_is_evicted_while_it_is_under_way_counts_as_delivered_once_acknowledged() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = config(directory.path());
    config.max_bytes = 1;
    let buffer = open(&config);
    buffer.append(Lane::Bulk, records(0..100)).await.expect("appended");
    let sent = buffer.next_batch(Lane::Bulk, 40, 1 << 20).await.expect("read").expect("some");
    // Enough to be measured, and so evicted.
    buffer.append(Lane::Bulk, records(100..2_100)).await.expect("appended");
    assert_eq!(lane_stat(&buffer, Lane::Bulk).await.evicted, 2_100);
    buffer.settle(Lane::Bulk, sent.through(), Vec::new()).await.expect("settled");
    let stat = lane_stat(&buffer, Lane::Bulk).await;
    assert_eq!((stat.acknowledged, stat.evicted), (40, 2_060));
}

#[tokio::test]
async fn refused_records_are_kept_for_a_person_and_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(directory.path());
    let buffer = open(&config);
    buffer.append(Lane::Urgent, records(1..11)).await.expect("appended");
    let refuse = |seq, code: &str| Refused { seq, code: code.into() };
    let refused = vec![refuse(3, "malformed"), refuse(3, "malformed"), refuse(99, "nonsense")];
    assert_eq!(buffer.settle(Lane::Urgent, 5, refused).await.expect("settled"), 4);
    buffer.set_aside(Lane::Urgent, 7, "too_large").await.expect("set aside");
    buffer.set_aside(Lane::Urgent, 7, "too_large").await.expect("set aside");
    let stat = lane_stat(&buffer, Lane::Urgent).await;
    assert_eq!((stat.acknowledged, stat.refused, stat.backlog), (4, 2, 4));
    let (rest, losses) = drain(&buffer, Lane::Urgent).await;
    assert_eq!(rest.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [6, 8, 9, 10]);
    assert_eq!((losses[0].from, losses[0].to), (7, 7));
    let stat = lane_stat(&buffer, Lane::Urgent).await;
    assert_eq!((stat.acknowledged, stat.refused, stat.backlog), (8, 2, 0));
    let text = std::fs::read_to_string(config.directory.join("refused/refused.jsonl")).expect("kept");
    assert!(text.contains(r#""seq":3,"code":"malformed","record":{"summary":3,"#), "{text}");
    assert!(text.contains(r#""seq":7,"code":"too_large","record":{"summary":7,"#), "{text}");
}

#[tokio::test]
async fn too_little_free_space_is_a_clear_error_and_heals_by_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let roomy = config(directory.path());
    let buffer = open(&roomy);
    buffer.append(Lane::Urgent, records(0..3)).await.expect("appended");
    buffer.close().await.expect("closed");
    let buffer = open(&roomy.clone().with_min_free_bytes(u64::MAX));
    let error = buffer.append(Lane::Urgent, records(3..4)).await.expect_err("refused");
    assert!(error.is_disk_full() && error.is_transient() && error.advice().is_some(), "{error}");
    assert!(buffer.stat().await.expect("stat").is_disk_full());
    assert_eq!(drain(&buffer, Lane::Urgent).await.0.len(), 3, "what is there still leaves");
    buffer.close().await.expect("closed");
    let buffer = open(&roomy);
    assert_eq!(buffer.append(Lane::Urgent, records(3..4)).await.expect("appended").first, 4);
}

#[tokio::test]
async fn what_the_disk_does_not_take_is_held_in_an_epoch_of_its_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let roomy = config(directory.path());
    let buffer = open(&roomy);
    buffer.append(Lane::Urgent, records(1..3)).await.expect("appended");
    buffer.close().await.expect("closed");
    let buffer = open(&roomy.clone().with_min_free_bytes(u64::MAX));
    buffer.append(Lane::Urgent, records(3..5)).await.expect_err("refused");
    let mut heads = buffer.watch_heads();
    heads.borrow_and_update();
    assert_eq!(buffer.hold(records(3..5)).await.expect("held"), 2);
    assert!(heads.has_changed().expect("open"), "whoever ships it is woken");
    let (first, losses) = drain(&buffer, Lane::Urgent).await;
    assert_eq!((first.len(), losses.len()), (2, 0), "what was on the disk goes first");
    assert_eq!(buffer.next_batch(Lane::Bulk, 9, 1 << 20).await.expect("read"), None, "it is urgent");
    let held = buffer.next_batch(Lane::Urgent, 9, 1 << 20).await.expect("read").expect("some");
    let stat = buffer.stat().await.expect("stat");
    assert!(held.is_volatile && held.epoch != stat.epoch && (held.first, held.through()) == (1, 2));
    assert_eq!(buffer.settle_volatile(2, Vec::new()).await.expect("settled"), 2);
    let stat = buffer.stat().await.expect("stat").volatile.expect("counted");
    assert!(stat.is_whole() && stat.acknowledged == 2, "{stat:?}");
}

#[tokio::test]
async fn a_second_agent_in_the_same_directory_is_turned_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(directory.path());
    let _held = open(&config);
    let error = Buffer::open(config, now()).expect_err("refused");
    assert!(matches!(error, BufferError::InUse { .. }) && error.advice().is_some(), "{error}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_takes_a_sequence() {
    let directory = tempfile::tempdir().expect("a directory");
    let buffer = open(&config(directory.path()));
    let large = buffer.append(Lane::Bulk, vec![vec![b'a'; MAX_RECORD_BYTES + 1]]).await;
    assert!(matches!(large, Err(BufferError::RecordTooLarge(_))));
    let many = buffer.append(Lane::Bulk, vec![b"{}".to_vec(); MAX_APPEND_RECORDS + 1]).await;
    assert!(matches!(many, Err(BufferError::TooMany { .. })));
    let largest = vec![vec![b'a'; MAX_RECORD_BYTES], b"{}".to_vec()];
    assert_eq!(buffer.append(Lane::Bulk, largest.clone()).await.expect("appended").first, 1);
    let (back, _) = drain(&buffer, Lane::Bulk).await;
    assert!(back.into_iter().map(|(_, bytes)| bytes).eq(largest));
}

// --- Damage -----------------------------------------------------------------------------------------------------

fn generations(config: &Config, lane: Lane) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(config.directory.join(lane.as_str())).expect("listed");
    let mut found: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// Offsets of frames in a database's file.
fn frames_in(file: &Path) -> Vec<u64> {
    let bytes = std::fs::read(file).expect("read");
    bytes.windows(4).enumerate().filter(|(_, window)| window == b"TBF\x01").map(|(at, _)| at as u64).collect()
}

fn turn_a_bit(file: &Path, offset: u64) {
    let file = std::fs::File::options().read(true).write(true).open(file).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("written");
}

/// Appends, closes, damages, reopens; what comes out, and that everything is accounted for.
async fn after_damage(count: u64, damage: impl FnOnce(&Config)) -> (Vec<u64>, Vec<Loss>, Stat, Stat) {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(directory.path());
    let buffer = open(&config);
    for from in (0..count).step_by(50) {
        buffer.append(Lane::Urgent, records(from..from + 50)).await.expect("appended");
    }
    let before = buffer.stat().await.expect("stat");
    buffer.close().await.expect("closed");
    damage(&config);
    let buffer = open(&config);
    buffer.append(Lane::Urgent, records(count..count + 50)).await.expect("the agent carries on");
    let (records, losses) = drain(&buffer, Lane::Urgent).await;
    for (sequence, bytes) in &records {
        assert!(*bytes == record(sequence - 1), "sequence {sequence} still has its own record");
    }
    let sequences: Vec<u64> = records.iter().map(|(sequence, _)| *sequence).collect();
    assert!(sequences.ends_with(&(count + 1..=count + 50).collect::<Vec<_>>()), "new records come after old ones");
    let lost: u64 = losses.iter().map(|loss| loss.count).sum();
    assert!(losses.iter().all(|loss| loss.outcome == LossOutcome::Quarantined));
    let stat = lane_stat(&buffer, Lane::Urgent).await;
    assert_eq!((stat.appended, stat.quarantined, stat.backlog), (count + 50, lost, 0));
    assert_eq!(sequences.len() as u64 + lost, count + 50);
    let after = buffer.stat().await.expect("stat");
    (sequences, losses, before, after)
}

#[tokio::test]
async fn a_bit_turned_in_an_old_generation_costs_no_more_than_that_generation() {
    let (_, losses, before, after) = after_damage(600, |config| {
        let generations = generations(config, Lane::Urgent);
        assert!(generations.len() >= 3, "several generations: {generations:?}");
        let file = generations[1].join("db");
        let offset = frames_in(&file)[0] + 40;
        turn_a_bit(&file, offset);
    })
    .await;
    assert!(!losses.is_empty() && after.moved_aside > 0, "{losses:?} {after}");
    assert_eq!(before.epoch, after.epoch, "the range is known, so the epoch goes on");
    let lost: u64 = losses.iter().map(|loss| loss.count).sum();
    assert!(lost < 400, "{lost} of 600 lost");
}

#[tokio::test]
async fn a_bit_turned_in_the_newest_generation_is_lost_under_a_new_epoch() {
    let (_, losses, before, after) = after_damage(600, |config| {
        let file = generations(config, Lane::Urgent).pop().expect("one").join("db");
        let offset = *frames_in(&file).last().expect("a frame") + 40;
        turn_a_bit(&file, offset);
    })
    .await;
    assert!(!losses.is_empty());
    assert_ne!(before.epoch, after.epoch, "sequences of the damaged end may be given out twice");
}

#[tokio::test]
async fn a_generation_that_will_not_open_is_moved_aside_whole() {
    let (_, losses, _, after) = after_damage(600, |config| {
        let generation = generations(config, Lane::Urgent).remove(0);
        std::fs::write(generation.join("conf"), b"not a configuration").expect("written");
    })
    .await;
    assert_eq!(losses.len(), 1);
    assert_eq!((losses[0].from, after.moved_aside), (1, 1));
}

#[tokio::test]
async fn a_generation_cut_short_or_gone_is_counted_to_the_record() {
    let (_, losses, ..) = after_damage(600, |config| {
        let file = generations(config, Lane::Urgent).remove(0).join("db");
        std::fs::File::options().write(true).open(file).expect("opened").set_len(1000).expect("cut");
    })
    .await;
    assert_eq!(losses[0].from, 1);
    let (_, losses, ..) = after_damage(600, |config| {
        std::fs::remove_dir_all(generations(config, Lane::Urgent).remove(1)).expect("removed");
    })
    .await;
    assert_eq!(losses.len(), 1);
}

#[tokio::test]
async fn a_lost_manifest_costs_the_backlog_and_not_the_count() {
    let (sequences, losses, before, after) = after_damage(600, |config| {
        std::fs::write(config.directory.join("urgent/lane.json"), b"{").expect("written");
    })
    .await;
    assert_eq!((losses[0].from, losses[0].to), (1, 600));
    assert_eq!(sequences.len(), 50);
    assert_ne!(before.epoch, after.epoch);
    assert_eq!(after.moved_aside, 1);
}

#[tokio::test]
async fn a_torn_cursor_only_repeats() {
    let (sequences, losses, ..) = after_damage(600, |config| {
        std::fs::write(config.directory.join("urgent/cursor"), b"torn").expect("written");
    })
    .await;
    assert!(losses.is_empty(), "{losses:?}");
    assert_eq!(sequences.len(), 650);
}

#[tokio::test]
async fn a_lost_epoch_begins_a_new_one_and_keeps_the_records() {
    let (sequences, _, before, after) = after_damage(100, |config| {
        std::fs::write(config.directory.join("buffer.json"), b"{}").expect("written");
    })
    .await;
    assert_eq!(sequences.len(), 150);
    assert_ne!(before.epoch, after.epoch);
}

// --- Model ------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Step {
    Append(Lane, u64),
    /// Reads up to so many and settles a part of it, in tenths.
    Ship(Lane, usize, u64),
    /// Takes away the room, so that the next append evicts.
    Squeeze,
    Reopen {
        is_closed: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let lane = || prop_oneof![Just(Lane::Urgent), Just(Lane::Bulk)];
    prop_oneof![
        5 => (lane(), 1_u64..700).prop_map(|(lane, count)| Step::Append(lane, count)),
        5 => (lane(), 1_usize..500, 0_u64..=10).prop_map(|(lane, max, tenths)| Step::Ship(lane, max, tenths)),
        1 => Just(Step::Squeeze),
        2 => any::<bool>().prop_map(|is_closed| Step::Reopen { is_closed }),
    ]
}

/// What a lane must hold: the records that were not settled, by sequence. The buffer may hold less only where it
/// says so by a loss.
#[derive(Default)]
struct Model {
    waiting: VecDeque<(u64, Vec<u8>)>,
    next: u64,
}

impl Model {
    fn append(&mut self, records: &[Vec<u8>]) -> u64 {
        let first = self.next + 1;
        for record in records {
            self.next += 1;
            self.waiting.push_back((self.next, record.clone()));
        }
        first
    }

    fn check(&self, stored: &Stored) -> Result<(), TestCaseError> {
        prop_assert_eq!(stored.first, self.waiting.front().expect("the model has it too").0);
        let mut sequence = stored.first;
        for item in &stored.items {
            if let Item::Record(bytes) = item {
                let at = usize::try_from(sequence - stored.first).expect("small");
                prop_assert!(self.waiting[at] == (sequence, bytes.clone()), "sequence {} is another record", sequence);
            }
            sequence += item.width();
        }
        Ok(())
    }

    fn settle(&mut self, through: u64) {
        while self.waiting.front().is_some_and(|(sequence, _)| *sequence <= through) {
            self.waiting.pop_front();
        }
    }
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = config(directory.path());
    let mut buffer = open(&config);
    let mut models = [Model::default(), Model::default()];
    let mut counter = 0;
    for step in steps {
        match step {
            Step::Append(lane, count) => {
                let records = records(counter..counter + count);
                counter += count;
                let first = models[lane as usize].append(&records);
                let appended = buffer.append(lane, records).await.expect("appended");
                prop_assert_eq!((appended.first, appended.count), (first, count));
            }
            Step::Ship(lane, max, tenths) => {
                let model = &mut models[lane as usize];
                let Some(stored) = buffer.next_batch(lane, max, 1 << 20).await.expect("read") else {
                    prop_assert!(model.waiting.is_empty());
                    continue;
                };
                model.check(&stored)?;
                let through = stored.first + (stored.through() - stored.first + 1) * tenths / 10;
                if through > stored.first {
                    buffer.settle(lane, through - 1, Vec::new()).await.expect("settled");
                    model.settle(through - 1);
                }
            }
            Step::Squeeze => {
                config.max_bytes = if config.max_bytes == 1 { 64 << 20 } else { 1 };
                buffer.close().await.expect("closed");
                buffer = open(&config);
            }
            Step::Reopen { is_closed } => {
                if is_closed {
                    buffer.close().await.expect("closed");
                } else {
                    drop(buffer);
                }
                buffer = open(&config);
            }
        }
        for stat in buffer.stat().await.expect("stat").lanes {
            prop_assert!(stat.is_whole(), "{:?}", stat);
            prop_assert_eq!(stat.appended, models[stat.lane as usize].next);
            prop_assert_eq!(stat.quarantined, 0);
        }
    }
    for lane in Lane::ALL {
        let (records, losses) = drain(&buffer, lane).await;
        let lost: u64 = losses.iter().map(|loss| loss.count).sum();
        prop_assert_eq!(records.len() as u64 + lost, models[lane as usize].waiting.len() as u64);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_a_queue_whatever_happens(steps in proptest::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(steps))?;
    }
}
