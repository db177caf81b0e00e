//! Shipping as the collector sees it, over real TLS: nothing is lost, nothing comes twice, and nothing stands still.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::buffer;

mod collector;
mod enrolment;

use collector::{Collector, Mood, World};

fn wall_clock() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

/// A buffer and its shipping, with waits short enough for a test.
struct Agent {
    buffer: Buffer,
    health: watch::Receiver<Health>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
    state: tempfile::TempDir,
}

impl Agent {
    fn start(collector: &Collector) -> Self {
        Self::start_with(collector, tempfile::tempdir().expect("a directory"), |_| ())
    }

    fn start_with(collector: &Collector, state: tempfile::TempDir, adjust: impl FnOnce(&mut Config)) -> Self {
        let identity = collector.authority.enrol(state.path(), &collector.url());
        let origin = identity.card().url.parse().expect("an address");
        let mut config = Config {
            heartbeat: Duration::from_millis(200),
            request_timeout: Duration::from_secs(5),
            backoff_base: Duration::from_millis(20),
            backoff_cap: Duration::from_millis(100),
            ..Config::new(origin, wall_clock)
        };
        adjust(&mut config);
        let buffer = buffer::Config::new(state.path().join("buffer")).with_min_free_bytes(0);
        let (buffer, _) = Buffer::open(buffer, wall_clock()).expect("opened");
        let (ship, health) = Ship::new(config, &identity, buffer.clone());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(ship.run(async move {
            let _ = stopped.await;
        }));
        Self { buffer, health, stop, running, state }
    }

    async fn finds(&self, lane: Lane, records: impl IntoIterator<Item = String>) {
        let records = records.into_iter().map(String::into_bytes).collect();
        self.buffer.append(lane, records).await.expect("appended");
    }

    async fn shows(&self, what: &str, is_so: impl FnMut(&Health) -> bool) -> Health {
        let mut health = self.health.clone();
        let waited = timeout(Duration::from_secs(30), health.wait_for(is_so)).await;
        match waited {
            Ok(health) => health.expect("it runs").clone(),
            Err(_) => panic!("the agent never showed {what}: {:?}", self.health.borrow()),
        }
    }

    async fn stop(self) -> tempfile::TempDir {
        self.stop.send(()).expect("it runs");
        self.running.await.expect("ended");
        self.buffer.close().await.expect("closed");
        self.state
    }

    async fn settled(&self, lane: Lane) -> buffer::LaneStat {
        let stat = self.buffer.stat().await.expect("stat").lanes[index(lane)];
        assert!(stat.is_whole(), "{stat:?}");
        stat
    }
}

fn record(number: usize) -> String {
    format!(r#"{{"summary":{number}}}"#)
}

fn records(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(record).collect()
}

/// That these records arrived, in order, once each.
fn arrived(world: &World, lane: Lane, expected: &[String]) {
    assert!(world.violations.is_empty(), "{:?}", world.violations);
    assert_eq!(world.records(lane), expected);
}

#[tokio::test]
async fn what_was_found_arrives_once_in_order_over_one_connection() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    for from in (0..2_500).step_by(500) {
        agent.finds(Lane::Urgent, records(from..from + 500)).await;
    }
    let world = collector.sees("all records", |world| world.records(Lane::Urgent).len() == 2_500).await;
    arrived(&world, Lane::Urgent, &records(0..2_500));
    assert_eq!(world.connections, 1);
    let health = agent.shows("2,500 acknowledged", |health| health.acknowledged == 2_500).await;
    assert_eq!((health.breaker, health.refused, health.last_error), (BreakerState::Closed, 0, None));
    assert_eq!(agent.settled(Lane::Urgent).await.backlog, 0);
}

#[tokio::test]
async fn urgent_leaves_before_bulk_that_waited_longer() {
    let collector = Collector::start().await;
    collector.stop();
    let agent = Agent::start(&collector);
    agent.finds(Lane::Bulk, records(0..50)).await;
    agent.finds(Lane::Urgent, records(50..60)).await;
    // From here on only probes are tried: no bulk is under way when the collector comes back.
    agent.shows("an open breaker", |health| health.breaker == BreakerState::Open).await;
    collector.restart().await;
    let world = collector.sees("both lanes", |world| world.order.len() == 2).await;
    assert_eq!(world.order, [Lane::Urgent, Lane::Bulk]);
}

#[tokio::test]
async fn a_collector_that_was_away_gets_everything_once_and_in_order() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    agent.finds(Lane::Urgent, records(0..100)).await;
    collector.sees("the first", |world| world.records(Lane::Urgent).len() == 100).await;
    collector.stop();
    for from in (100..1_500).step_by(100) {
        agent.finds(Lane::Urgent, records(from..from + 100)).await;
    }
    let health = agent.shows("an open breaker", |health| health.breaker == BreakerState::Open).await;
    let failure = health.last_error.expect("why");
    assert!(matches!(failure.outcome, "unreachable" | "broken") && failure.is_transient, "{failure:?}");
    assert!(health.failures_in_a_row >= 5);
    collector.restart().await;
    let world = collector.sees("all of it", |world| world.records(Lane::Urgent).len() == 1_500).await;
    arrived(&world, Lane::Urgent, &records(0..1_500));
    agent
        .shows("a closed breaker", |health| health.breaker == BreakerState::Closed && health.last_error.is_none())
        .await;
}

#[tokio::test]
async fn an_answer_that_is_lost_does_not_store_anything_twice() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    collector.sees("a heartbeat", |world| world.heartbeats > 0).await;
    collector.with(|world| world.moods = vec![Mood::ResetAfterCommit; 3].into());
    agent.finds(Lane::Urgent, records(0..300)).await;
    agent.shows("all acknowledged", |health| health.acknowledged == 300).await;
    arrived(&collector.world(), Lane::Urgent, &records(0..300));
}

#[tokio::test]
async fn every_bad_answer_is_survived() {
    let collector = Collector::start().await;
    let agent = Agent::start_with(&collector, tempfile::tempdir().expect("a directory"), |config| {
        config.request_timeout = Duration::from_millis(300);
    });
    collector.sees("a heartbeat", |world| world.heartbeats > 0).await;
    collector.with(|world| {
        world.moods = VecDeque::from([
            Mood::Answer(503, Some("0"), r#"{"code":"busy"}"#),
            Mood::Answer(200, None, "<html>welcome</html>"),
            Mood::Answer(200, None, r#"{"through":0}"#),
            Mood::Reset,
            Mood::Silent,
            Mood::Answer(429, Some("0"), ""),
            Mood::Answer(500, None, "oops"),
            Mood::Answer(302, None, ""),
            Mood::Answer(403, None, r#"{"code":"denied"}"#),
            Mood::Answer(409, None, r#"{"code":"gap","through":99999}"#),
        ]);
    });
    agent.finds(Lane::Urgent, records(0..40)).await;
    let world = collector.sees("the end of bad days", |world| world.records(Lane::Urgent).len() == 40).await;
    arrived(&world, Lane::Urgent, &records(0..40));
    assert!(world.moods.is_empty());
    let health = agent.shows("health again", |health| health.last_error.is_none()).await;
    assert!(health.failures >= 9, "{health:?}");
}

#[tokio::test]
async fn the_collectors_wish_to_wait_is_kept() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    collector.sees("a heartbeat", |world| world.heartbeats > 0).await;
    let began = Instant::now();
    collector.with(|world| world.moods = vec![Mood::Answer(503, Some("1"), "")].into());
    agent.finds(Lane::Urgent, records(0..1)).await;
    collector.sees("the record", |world| world.records(Lane::Urgent).len() == 1).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_batch_too_large_is_halved_until_it_fits() {
    let collector = Collector::start().await;
    collector.with(|world| world.max_records = Some(7));
    let agent = Agent::start(&collector);
    agent.finds(Lane::Bulk, records(0..100)).await;
    let world = collector.sees("all", |world| world.records(Lane::Bulk).len() == 100).await;
    arrived(&world, Lane::Bulk, &records(0..100));
}

#[tokio::test]
async fn one_poisoned_record_is_set_aside_and_the_others_arrive() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    let mut found = records(0..300);
    found[123] = r#"{"poison":1}"#.into();
    agent.finds(Lane::Urgent, found).await;
    agent.finds(Lane::Urgent, ["not json".to_owned()]).await;
    agent.finds(Lane::Urgent, records(301..310)).await;
    let world = collector.sees("the last", |world| world.records(Lane::Urgent).last() == Some(&record(309))).await;
    let stored = world.records(Lane::Urgent);
    let lost: Vec<&String> = stored.iter().filter(|record| record.contains("loss")).collect();
    assert_eq!((stored.len(), lost.len()), (310, 2), "each leaves a loss in its place");
    assert!(lost[0].contains(r#""from":124,"to":124,"count":1"#), "{lost:?}");
    agent.shows("all settled", |health| health.acknowledged == 308 && health.set_aside == 2).await;
    assert_eq!(agent.settled(Lane::Urgent).await.refused, 2);
    let refused = std::fs::read_to_string(agent.state.path().join("buffer/refused/refused.jsonl")).expect("kept");
    assert!(refused.contains(r#""code":"malformed","record":{"poison":1}"#), "{refused}");
    assert!(refused.contains(r#""code":"not_json","record":null,"text":"not json""#), "{refused}");
}

#[tokio::test]
async fn who_turns_down_even_an_empty_batch_gets_no_record_set_aside() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    collector.sees("a heartbeat", |world| world.heartbeats > 0).await;
    collector.with(|world| world.moods = vec![Mood::Answer(400, None, r#"{"code":"malformed"}"#); 60].into());
    agent.finds(Lane::Urgent, records(0..2)).await;
    let health = agent.shows("why", |health| health.last_error.is_some()).await;
    let failure = health.last_error.expect("why");
    assert!(failure.outcome == "rejected" && !failure.is_transient && failure.advice.is_some());
    let world = collector.sees("both", |world| world.records(Lane::Urgent).len() == 2).await;
    arrived(&world, Lane::Urgent, &records(0..2));
    assert_eq!(agent.settled(Lane::Urgent).await.refused, 0);
}

#[tokio::test]
async fn a_refused_record_is_set_aside_and_not_sent_again() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    agent.finds(Lane::Urgent, [record(0), r#"{"refuse":1}"#.to_owned(), record(2)]).await;
    let health = agent.shows("two acknowledged", |health| health.acknowledged == 2).await;
    assert_eq!(health.refused, 1);
    arrived(&collector.world(), Lane::Urgent, &[record(0), record(2)]);
    let stat = agent.settled(Lane::Urgent).await;
    assert_eq!((stat.acknowledged, stat.refused, stat.backlog), (2, 1, 0));
}

/// A collector that took a hundred records and has only sixty of them any more, as after a restore.
async fn forgotten_from_60_to_100() -> (Collector, Agent) {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    agent.finds(Lane::Urgent, records(0..100)).await;
    agent.shows("all acknowledged", |health| health.acknowledged == 100).await;
    collector.with(|world| {
        world.settled.values_mut().for_each(|settled| *settled = 60);
        world.stored.values_mut().for_each(|records| records.retain(|sequence, _| *sequence <= 60));
    });
    (collector, agent)
}

#[tokio::test]
async fn a_collector_restored_from_an_older_copy_is_told_what_is_gone() {
    let (collector, agent) = forgotten_from_60_to_100().await;
    agent.finds(Lane::Urgent, records(100..110)).await;
    let world = collector.sees("the new ones", |world| world.records(Lane::Urgent).len() == 71).await;
    assert!(world.records(Lane::Urgent)[60].contains(r#""from":61,"to":100,"count":40"#), "{world:?}");
}

#[tokio::test]
async fn a_restored_collector_is_told_what_is_gone_although_nothing_new_is_found() {
    let (collector, agent) = forgotten_from_60_to_100().await;
    let world = collector.sees("a loss", |world| world.records(Lane::Urgent).len() == 61).await;
    assert!(world.records(Lane::Urgent)[60].contains(r#""from":61,"to":100,"count":40"#), "{world:?}");
    // Said again is what still fires, by whoever hears of this.
    agent.shows("a bridge", |health| health.bridged == 1).await;
    let heartbeats = world.heartbeats;
    let world = collector.sees("more heartbeats", |world| world.heartbeats > heartbeats + 2).await;
    assert_eq!(world.records(Lane::Urgent).len(), 61, "it is told once: {world:?}");
}

#[tokio::test]
async fn an_agent_restored_from_an_older_copy_goes_on_in_a_new_epoch() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    agent.finds(Lane::Urgent, records(0..10)).await;
    agent.shows("all acknowledged", |health| health.acknowledged == 10).await;
    // The collector remembers more of this epoch than the buffer has given out.
    collector.with(|world| world.settled.values_mut().for_each(|settled| *settled = 5_000));
    agent.finds(Lane::Urgent, records(10..20)).await;
    let world = collector.sees("the new ones", |world| world.records(Lane::Urgent).len() == 20).await;
    assert_eq!(world.stored.len(), 2, "two epochs");
}

/// Another state directory with the same in it.
fn copied(state: &std::path::Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    let status = std::process::Command::new("/bin/cp").arg("-aT").args([state, copy.path()]).status();
    assert!(status.expect("it runs").success());
    copy
}

/// Each of these arrived in some epoch.
fn all_arrived(world: &World, lane: Lane, expected: &[String]) {
    let arrived = world.records(lane);
    let missing: Vec<_> = expected.iter().filter(|it| !arrived.contains(it)).collect();
    assert!(missing.is_empty() && world.violations.is_empty(), "{missing:?}: {world:?}");
}

#[tokio::test]
async fn a_state_that_was_put_back_goes_on_in_an_epoch_of_its_own_and_nothing_is_taken_for_a_repeat() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    agent.finds(Lane::Urgent, records(0..10)).await;
    agent.shows("ten acknowledged", |health| health.acknowledged == 10).await;
    let state = agent.stop().await;
    let older = copied(state.path());
    let agent = Agent::start_with(&collector, state, |_| ());
    agent.finds(Lane::Urgent, records(10..30)).await;
    agent.shows("the next acknowledged", |health| health.acknowledged == 20).await;
    agent.stop().await;
    assert_eq!(collector.world().superseded, 0);

    // What it finds now has numbers that the collector has passed long ago.
    let agent = Agent::start_with(&collector, older, |_| ());
    agent.finds(Lane::Urgent, records(50..60)).await;
    let health = agent.shows("all acknowledged", |health| health.acknowledged == 10).await;
    let world = collector.world();
    all_arrived(&world, Lane::Urgent, &[records(0..30), records(50..60)].concat());
    assert_eq!((health.begun_anew, world.stored.len(), world.superseded), (1, 2, 1));
    assert_eq!(agent.settled(Lane::Urgent).await.backlog, 0);
}

#[tokio::test]
async fn a_copy_beside_the_original_costs_neither_a_record() {
    let collector = Collector::start().await;
    let first = Agent::start(&collector);
    first.finds(Lane::Urgent, records(0..10)).await;
    first.shows("ten acknowledged", |health| health.acknowledged == 10).await;
    let second = Agent::start_with(&collector, copied(first.state.path()), |_| ());
    for turn in 0..5_usize {
        let (ours, theirs) = (100 + turn * 10, 200 + turn * 10);
        tokio::join!(
            first.finds(Lane::Urgent, records(ours..ours + 10)),
            second.finds(Lane::Urgent, records(theirs..theirs + 10)),
        );
    }
    first.shows("all acknowledged", |health| health.acknowledged == 60).await;
    second.shows("all acknowledged", |health| health.acknowledged >= 50).await;
    let world = collector.world();
    all_arrived(&world, Lane::Urgent, &[records(0..10), records(100..150), records(200..250)].concat());
    assert!(world.superseded >= 1, "{world:?}");
    for agent in [&first, &second] {
        assert_eq!(agent.settled(Lane::Urgent).await.backlog, 0);
    }
}

#[tokio::test]
async fn a_goodbye_that_is_refused_is_said_again_in_the_new_epoch() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    collector.sees("a heartbeat", |world| world.heartbeats > 0).await;
    agent.finds(Lane::Urgent, records(0..1)).await;
    agent.shows("it acknowledged", |health| health.acknowledged == 1).await;
    collector.with(|world| world.starts.values_mut().for_each(|word| *word = tickbird_shared::StartWord::new(0)));
    agent.stop().await;
    assert_eq!(collector.world().goodbyes, 1);
}

#[tokio::test]
async fn who_turns_down_every_epoch_is_left_alone_for_a_while() {
    let collector = Collector::start().await;
    collector.with(|world| world.moods = vec![Mood::Answer(409, None, r#"{"code":"other_start"}"#); 400].into());
    let agent = Agent::start(&collector);
    let health = agent.shows("an open breaker", |health| health.breaker == BreakerState::Open).await;
    assert!(health.last_error.is_some_and(|it| it.outcome == "garbage"));
    let world = collector.world();
    assert!(health.begun_anew <= 6 && world.requests <= 12, "{} epochs, {world:?}", health.begun_anew);
}

#[tokio::test]
async fn a_quiet_agent_is_heard_from_and_says_goodbye() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    collector.sees("three heartbeats", |world| world.heartbeats >= 3).await;
    agent.finds(Lane::Bulk, records(0..20)).await;
    agent.stop().await;
    let world = collector.world();
    assert_eq!(world.goodbyes, 1);
    arrived(&world, Lane::Bulk, &records(0..20));
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_collector_that_is_away() {
    let collector = Collector::start().await;
    let agent = Agent::start(&collector);
    collector.sees("a heartbeat", |world| world.heartbeats > 0).await;
    collector.stop();
    agent.finds(Lane::Urgent, records(0..10)).await;
    agent.shows("a failure", |health| health.failures > 0).await;
    let began = Instant::now();
    let state = agent.stop().await;
    assert!(began.elapsed() < Duration::from_secs(4));
    collector.restart().await;
    let agent = Agent::start_with(&collector, state, |_| ());
    agent.shows("the rest", |health| health.acknowledged == 10).await;
    arrived(&collector.world(), Lane::Urgent, &records(0..10));
}

#[tokio::test]
async fn a_backlog_is_paced_and_what_is_urgent_passes_it() {
    let collector = Collector::start().await;
    let agent = Agent::start_with(&collector, tempfile::tempdir().expect("a directory"), |config| {
        config.burst = 1_000.0;
        config.records_per_second = 200.0;
    });
    agent.finds(Lane::Bulk, records(0..5_000)).await;
    collector.sees("the burst", |world| world.records(Lane::Bulk).len() >= 800).await;
    agent.finds(Lane::Urgent, records(0..1)).await;
    let world = collector.sees("the urgent one", |world| world.records(Lane::Urgent).len() == 1).await;
    assert!(world.records(Lane::Bulk).len() < 2_000, "the backlog is far from sent");
}

#[tokio::test]
async fn a_server_of_another_authority_hears_nothing() {
    let collector = Collector::start().await;
    let other = Collector::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let agent = Agent::start_with(&collector, state, |config| config.origin = other.url().parse().expect("an address"));
    agent.finds(Lane::Urgent, records(0..1)).await;
    let health = agent.shows("why", |health| health.last_error.is_some()).await;
    let failure = health.last_error.expect("why");
    assert_eq!((failure.outcome, failure.is_transient), ("tls", false), "{failure:?}");
    assert_eq!(other.world().requests, 0);
}

/// The certificates of these tests begin in 1975 and end in 4096.
#[tokio::test]
async fn a_renewal_that_fails_is_told_and_stops_nothing_before_the_certificates_end() {
    let late = || Timestamp::from_second(50_000_000_000).expect("a time");
    let collector = Collector::start().await;
    let agent = Agent::start_with(&collector, tempfile::tempdir().expect("a directory"), |config| config.clock = late);
    agent.finds(Lane::Urgent, records(0..50)).await;
    let world = collector.sees("all records", |world| world.records(Lane::Urgent).len() == 50).await;
    arrived(&world, Lane::Urgent, &records(0..50));
    let health = agent.shows("the failure", |health| health.certificate.failures == 1).await;
    let failure = health.certificate.last_error.expect("told");
    assert!(failure.text.contains("503") && failure.text.contains("store_full"), "{}", failure.text);
    assert_eq!((world.renewals, health.last_error, health.breaker), (1, None, BreakerState::Closed));
}

#[tokio::test]
async fn whether_a_certificate_has_ended_is_the_collectors_to_say_and_then_it_is_renewed_at_once() {
    let after = || Timestamp::from_second(70_000_000_000).expect("a time");
    let collector = Collector::start().await;
    let agent = Agent::start_with(&collector, tempfile::tempdir().expect("a directory"), |config| config.clock = after);
    agent.finds(Lane::Urgent, records(0..50)).await;
    let world = collector.sees("all records", |world| world.records(Lane::Urgent).len() == 50).await;
    arrived(&world, Lane::Urgent, &records(0..50));
    assert!(world.renewals >= 1, "by the clock here it ended long ago");

    let collector = Collector::start().await;
    let ended = r#"{"code":"certificate_ended"}"#;
    collector.with(|world| world.moods = VecDeque::from([Mood::Answer(403, None, ended)]));
    let agent = Agent::start(&collector);
    agent.finds(Lane::Urgent, records(0..50)).await;
    let world = collector.sees("a renewal that is not due", |world| world.renewals == 1).await;
    assert!(world.violations.is_empty(), "{:?}", world.violations);
    collector.sees("all records", |world| world.records(Lane::Urgent).len() == 50).await;
}

#[tokio::test]
async fn who_takes_a_connection_and_does_not_answer_in_time_is_not_asked_again_as_soon_as_after_a_cut() {
    let collector = Collector::start().await;
    let asked = |url: &str, mood: Option<Mood>, within: Duration| {
        let room = tempfile::tempdir().expect("a directory");
        let identity = collector.authority.enrol(room.path(), url);
        let origin = identity.card().url.parse().expect("an address");
        let config = Config { request_timeout: within, ..Config::new(origin, wall_clock) };
        collector.with(|world| world.moods.extend(mood));
        let mut session = session(&config, &identity);
        async move {
            let body = zstd::bulk::compress(b"{}", 1).expect("compresses");
            session.post(body).await.expect_err("it is not answered")
        }
    };
    let late = asked(&collector.url(), Some(Mood::Silent), Duration::from_millis(100)).await;
    assert_eq!((late.outcome(), late.is_of_the_way()), ("timed_out", false), "{late:?}");
    let broken = asked(&collector.url(), Some(Mood::Reset), Duration::from_secs(30)).await;
    assert_eq!((broken.outcome(), broken.is_of_the_way()), ("broken", true), "{broken:?}");
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr()).expect("a free port");
    let nobody = asked(&format!("https://{closed}"), None, Duration::from_secs(30)).await;
    assert_eq!((nobody.outcome(), nobody.is_of_the_way()), ("unreachable", true), "{nobody:?}");
}
