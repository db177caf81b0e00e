//! The network between agents and their collector is cut while they have much to say: both ways, one way, for seconds and
//! for minutes. Whatever the cut was, data flows again within a heartbeat of its end, whole and once.
//!
//! `TICKBIRD_CUT_SECONDS` makes every cut so long.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tickbird_tests::accounts::{are_whole, nothing_is_stuck};
use tickbird_tests::agent::{User, check};
use tickbird_tests::alone::alone_within;
use tickbird_tests::collector::{receiver, titles};
use tickbird_tests::wait::throughout;
use tickbird_tests::{Agent, Collector, Far, Lost, Moody, Seconds, Stage, StageError, Webhook, until};

const ENDPOINTS: usize = 12;
/// An agent speaks every ten seconds; no cut may make it quiet for longer than that after its end.
const HEARTBEAT: SignedDuration = SignedDuration::from_secs(10);
/// A cut that lasts for longer makes its agent missing: the silence of 30 s, and the heartbeat that may have been due.
const MISSED: Duration = Duration::from_secs(42);
/// One that is shorter does not.
const NOT_MISSED: Duration = Duration::from_secs(20);

/// An agent on a host of its own, which has much to tell.
struct Host {
    far: Far,
    load: Moody,
    agent: Agent,
    id: String,
}

impl Host {
    fn begin(stage: &Stage, collector: &Collector, far: Far) -> Result<Self, StageError> {
        let load = Moody::start_on(&far)?;
        let (_, port) = collector.agents().rsplit_once(':').expect("an address has a port");
        let mut settings = format!("[collector]\nurl = \"https://{}:{port}\"\n", far.near());
        settings += &check("http.status", "hold = \"0s\"");
        settings += &load.endpoints(ENDPOINTS);
        let mut agent = Agent::prepare(stage, &settings, User::Same)?.on(&far);
        agent.enrol(collector)?;
        agent.run()?;
        let id = agent.status()?["agent"]["id"].as_str().unwrap_or_default().to_owned();
        Ok(Self { far, load, agent, id })
    }

    /// When the collector received its last findings, by its own record, newest first.
    fn received(&self, collector: &Collector) -> Result<Vec<Timestamp>, String> {
        let answer = collector.get(&format!("/v1/findings?limit=50&agent={}", self.id)).map_err(|it| it.to_string())?;
        let page = answer.json().map_err(|it| it.to_string())?;
        let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(items.iter().filter_map(|it| it["received_at"].as_str()?.parse().ok()).collect())
    }

    /// Waits until the collector received a finding after this moment; when it did.
    fn is_received_after(&self, collector: &Collector, moment: Timestamp) -> Result<Timestamp, StageError> {
        until("findings arrive", 90.s(), || match self.received(collector)?.first() {
            Some(at) if *at > moment => Ok(*at),
            other => Err(format!("the last at {other:?}, and wanted after {moment}")),
        })
    }

    /// Loses these packets for so long; how long after the end the first finding came.
    fn is_cut(&self, collector: &Collector, lost: Lost, time: Duration) -> Result<SignedDuration, StageError> {
        self.is_received_after(collector, Timestamp::now())?;
        self.far.loses(lost)?;
        let cut_at = Timestamp::now();
        throughout("it is cut", time, || Ok(()))?;
        let received = self.received(collector).map_err(|said| StageError::Failed { what: "findings".into(), said })?;
        let batches: BTreeSet<Timestamp> = received.into_iter().filter(|at| *at > cut_at).collect();
        // Where only answers are lost, one batch arrives; the next would follow its answer.
        assert!(batches.len() <= 1, "it is cut: {batches:?} after {cut_at}");
        self.far.returns()?;
        let end = Timestamp::now();
        Ok(self.is_received_after(collector, end)?.duration_since(end))
    }
}

fn seconds(written: u64) -> Duration {
    let told = std::env::var("TICKBIRD_CUT_SECONDS").ok().and_then(|it| it.parse().ok());
    Duration::from_secs(told.unwrap_or(written))
}

/// What each host goes through. The odd lengths end between two repeats of the kernel, whose pauses double.
fn courses() -> [Vec<(Lost, Duration)>; 3] {
    [
        vec![(Lost::BothWays, seconds(43))],
        vec![(Lost::FromIt, seconds(7)), (Lost::FromIt, seconds(15))],
        vec![(Lost::ToIt, seconds(7)), (Lost::ToIt, seconds(15))],
    ]
}

#[test]
fn after_a_partition_and_after_one_way_loss_data_flows_within_a_heartbeat_and_is_whole() {
    let cuts: Duration = courses().iter().flatten().map(|(_, time)| *time).sum();
    alone_within(300.s() + cuts, |stage| {
        let fars = [Far::begin(stage, 1)?, Far::begin(stage, 2)?, Far::begin(stage, 3)?];
        let names = fars.each_ref().map(Far::near);
        let names: Vec<&str> = names.iter().flat_map(|it| ["--name", it]).collect();
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init_with(stage, &names)?;
        let everywhere = collector.agents().replace("127.0.0.1", "0.0.0.0");
        collector.rewrite(&format!("listen = \"{}\"", collector.agents()), &format!("listen = \"{everywhere}\""))?;
        // What comes and goes with each cut would be over a quarter of an hour after the last.
        collector.configure(&format!("\n[flapping]\nenabled = false\n{}", receiver(&webhook)))?;
        collector.serve()?;
        let hosts = fars.into_iter().map(|far| Host::begin(stage, &collector, far));
        let mut hosts = hosts.collect::<Result<Vec<_>, _>>()?;

        let collector = &collector;
        std::thread::scope(|scope| {
            let threads: Vec<_> = hosts
                .iter()
                .zip(courses())
                .map(|(host, course)| {
                    scope.spawn(move || {
                        for (lost, time) in course {
                            let after = host.is_cut(collector, lost, time)?;
                            println!("{lost:?} for {time:?}: data {:.1} s after its end", after.as_secs_f64());
                            assert!(after <= HEARTBEAT, "{lost:?} for {time:?}: {after:?}; {}", host.agent.log());
                        }
                        Ok(())
                    })
                })
                .collect();
            let joined =
                threads.into_iter().map(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.collect::<Result<(), StageError>>()
        })?;

        for host in &hosts {
            host.load.recovers();
        }
        nothing_is_stuck(collector, &["http.status", "agent.missing"])?;
        for (host, course) in hosts.iter().zip(courses()) {
            presence_was_told(collector, host, &course)?;
        }
        for host in &mut hosts {
            host.agent.stop()?;
        }
        are_whole(collector, &hosts.iter().map(|it| &it.agent).collect::<Vec<_>>())
    });
}

/// One incident for each long cut and none for a short one: the same one that fires again, or another.
fn presence_was_told(collector: &Collector, host: &Host, course: &[(Lost, Duration)]) -> Result<(), StageError> {
    let mut told = collector.items("incidents", "")?;
    told.retain(|it| it["check"] == "agent.missing" && it["agent"]["id"] == host.id.as_str());
    let times: u64 = told.iter().filter_map(|it| it["occurrences"].as_u64()).sum();
    let certain = course.iter().filter(|(_, time)| *time >= MISSED).count() as u64;
    let possible = course.iter().filter(|(_, time)| *time > NOT_MISSED).count() as u64;
    assert!((certain..=possible).contains(&times), "{course:?}: {}", titles(&told));
    assert!(told.iter().all(|it: &Value| it["status"] == "resolved"), "{}", titles(&told));
    Ok(())
}
