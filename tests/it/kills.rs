//! `kill -9` of agent and collector under load, at random moments and in every window between two promises.
//!
//! Several pairs of agent and collector run beside one another. `TICKBIRD_KILL_CYCLES` asks for more cycles than the
//! suite has time for, `TICKBIRD_KILL_SEED` for the same ones again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tickbird_tests::accounts::{are_whole, lanes, nothing_is_stuck};
use tickbird_tests::agent::{User, check};
use tickbird_tests::alone::alone_within;
use tickbird_tests::chance::{Chance, number};
use tickbird_tests::collector::{receiver, titles};
use tickbird_tests::process::{installed, run};
use tickbird_tests::report::report;
use tickbird_tests::standstill::files_written_by;
use tickbird_tests::webhook::{Manner, Message};
use tickbird_tests::{Agent, Collector, Moody, Relay, Seconds, Stage, StageError, Webhook, Wire, until};

const CYCLES: usize = 210;
const PAIRS: usize = 3;
const ENDPOINTS: usize = 16;
/// In a window that no kill hits nothing is shown.
const LEAST: usize = 3;
/// So many answers in a row that say the same are what both ends have.
const ALIKE: usize = 3;

/// Where a record or a message was when the process was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Window {
    /// The agent was writing it to its disk.
    AppendToFlush,
    /// It was on the agent's disk, and nothing of it had left.
    FlushToSend,
    /// The collector had committed it, and its answer was under way.
    CommitToAcknowledgement,
    /// The receiver had accepted a message, and the collector had not noted it.
    AnswerToMark,
    /// Anywhere at all.
    Anywhere,
}

const WINDOWS: [Window; 8] = [
    Window::Anywhere,
    Window::AppendToFlush,
    Window::Anywhere,
    Window::FlushToSend,
    Window::Anywhere,
    Window::CommitToAcknowledgement,
    Window::Anywhere,
    Window::AnswerToMark,
];

struct Pair {
    webhook: Webhook,
    collector: Collector,
    relay: Relay,
    agent: Agent,
    load: Moody,
    chance: Chance,
    hits: BTreeMap<Window, usize>,
    /// Records that came again or will: those that were committed and not acknowledged when something broke, and no others.
    owed: u64,
}

/// What a pair came to.
#[derive(Debug, Default)]
struct Course {
    hits: BTreeMap<Window, usize>,
    /// Records that came to the collector again, each of which had to.
    repeated: u64,
    /// Messages that came to the receiver again.
    messages_repeated: usize,
    /// Attempts to deliver of which the collector does not know what came of them.
    attempts_uncertain: u64,
}

/// Each message of a store, with how many attempts at it ended nobody knows how.
const MESSAGES: &str = "import sqlite3, sys
store = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True)
for it in store.execute('SELECT id, uncertain FROM outbox'):
    print(*it)";

impl Pair {
    fn begin(stage: &Stage, seed: u64) -> Result<Self, StageError> {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        // What fires and ends all the time would flap, and be over a quarter of an hour after the last kill.
        collector.configure(&format!("\n[flapping]\nenabled = false\n{}", receiver(&webhook)))?;
        collector.serve()?;
        let target: SocketAddr = collector.agents().parse().expect("the stage wrote the address");
        let relay = Relay::start(target)?;
        let load = Moody::start()?;
        let mut settings = format!("[collector]\nurl = \"{}\"\n", relay.url());
        // Whoever is killed every second crashes, as seen from outside: true, and of no interest here.
        for id in ["proc.gone", "proc.restart"] {
            settings += &check(id, "enabled = false");
        }
        settings += &check("http.status", "hold = \"0s\"");
        settings += &load.endpoints(ENDPOINTS);
        let mut agent = Agent::prepare(stage, &settings, User::Same)?;
        agent.enrol(&collector)?;
        agent.run()?;
        Ok(Self { webhook, collector, relay, agent, load, chance: Chance::of(seed), hits: BTreeMap::new(), owed: 0 })
    }

    fn cycle(&mut self, window: Window) -> Result<(), StageError> {
        // What it says of its buffer is on its disk, and may not be less after any death.
        let kept = self.agent.status()?["agent"]["buffer"]["lanes"].clone();
        let mut hit = match window {
            Window::Anywhere => self.kill_anywhere()?,
            Window::AppendToFlush => self.kill_in_an_append()?,
            Window::FlushToSend => self.kill_before_sending()?,
            Window::CommitToAcknowledgement => self.kill_before_the_acknowledgement()?,
            Window::AnswerToMark => self.kill_before_the_mark()?,
        };
        // Nothing gets through until both ends were asked what they have.
        self.relay.becomes(Wire::Cut);
        self.webhook.becomes(Manner::Accepts);
        if self.collector.pid().is_none() {
            self.collector.serve()?;
        }
        let (unheard, repeated) = (self.committed_alone()?, self.repeated()?);
        assert!(repeated <= self.owed, "{repeated} records came again, and {} had to", self.owed);
        let awaited = self.owed - repeated;
        assert!(awaited <= unheard, "{awaited} did not come again, and are acknowledged: {unheard} are not");
        self.owed = repeated + unheard;
        if window == Window::CommitToAcknowledgement {
            // An answer to a heartbeat was no hit.
            hit &= unheard > awaited;
        }
        if self.agent.pid().is_none() {
            for (before, after) in kept.as_array().into_iter().flatten().zip(lanes(&self.agent)?) {
                for what in ["appended", "acknowledged"] {
                    let (before, after) = (before[what].as_u64(), after[what].as_u64());
                    assert!(before.is_some() && after >= before, "{what} went from {before:?} to {after:?}");
                }
            }
            self.agent.run()?;
        }
        self.relay.becomes(Wire::Whole);
        if hit {
            *self.hits.entry(window).or_default() += 1;
        }
        Ok(())
    }

    /// Records that the collector had already when they came.
    fn repeated(&self) -> Result<u64, StageError> {
        self.collector.counted("tickbird_records_duplicate")
    }

    /// While the wire is cut: records that the collector has committed and the agent holds for unacknowledged, of the one request
    /// that was under way.
    fn committed_alone(&self) -> Result<u64, StageError> {
        let now = || -> Result<(u64, u64), StageError> {
            let committed = self.collector.counted("tickbird_records_committed")?;
            let acknowledged = if self.agent.pid().is_none() {
                total(&Value::from(lanes(&self.agent)?.to_vec()), "acknowledged")
            } else {
                total(&self.agent.status()?["agent"]["buffer"]["lanes"], "acknowledged")
            };
            Ok((committed, acknowledged))
        };
        // What came in just before the cut may still be on its way to the ledger, which answers this question after it.
        let (mut last, mut alike) = (now()?, 0);
        let (committed, acknowledged) = until("nothing is under way", 30.s(), || {
            let before = std::mem::replace(&mut last, now().map_err(|error| error.to_string())?);
            alike = if last == before { alike + 1 } else { 0 };
            if alike >= ALIKE { Ok(last) } else { Err(format!("{before:?}, then {last:?}")) }
        })?;
        assert!(acknowledged <= committed, "{acknowledged} were acknowledged, and {committed} committed");
        Ok(committed - acknowledged)
    }

    fn kill_anywhere(&mut self) -> Result<bool, StageError> {
        // The moment is what is left to chance.
        std::thread::sleep(Duration::from_millis(self.chance.below(900)));
        let who = self.chance.below(3);
        if who != 0 {
            self.agent.kill()?;
        }
        if who != 1 {
            self.collector.kill()?;
        }
        Ok(true)
    }

    /// Stops the agent again and again until it stands in the middle of writing a generation.
    fn kill_in_an_append(&mut self) -> Result<bool, StageError> {
        let end = Instant::now() + 10.s();
        let mut is_writing = false;
        while !is_writing && Instant::now() < end {
            // The moment is left to chance; whether it was the right one is seen.
            std::thread::sleep(Duration::from_micros(self.chance.below(2_000)));
            self.agent.signal(Signal::STOP);
            let files = files_written_by(self.agent.pid().unwrap_or_default())?;
            is_writing = files.iter().any(|file| file.to_string_lossy().contains("/urgent/q-"));
            if !is_writing {
                self.agent.signal(Signal::CONT);
            }
        }
        self.agent.kill()?;
        Ok(is_writing)
    }

    fn kill_before_sending(&mut self) -> Result<bool, StageError> {
        self.relay.becomes(Wire::Cut);
        until("findings wait in the agent's buffer", 30.s(), || match backlog(&self.agent) {
            Ok(1..) => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        self.agent.kill()?;
        Ok(self.relay.carried() == 0 && backlog(&self.agent)? > 0)
    }

    fn kill_before_the_acknowledgement(&mut self) -> Result<bool, StageError> {
        let connected = |agent: &Agent| {
            let status = agent.status().map_err(|error| error.to_string())?;
            let at = &status["agent"]["collector"]["acknowledged_at"];
            if at.is_string() { Ok(()) } else { Err(status["agent"].to_string()) }
        };
        until("the agent is connected", 60.s(), || connected(&self.agent))?;
        self.relay.becomes(Wire::Mute);
        let answered = until("the collector answers", 30.s(), || {
            if self.relay.carried() > 0 && self.relay.kept_back() > 0 { Ok(()) } else { Err("not yet".to_owned()) }
        });
        if self.chance.below(2) == 0 {
            self.agent.kill()?;
        } else {
            self.collector.kill()?;
        }
        Ok(answered.is_ok())
    }

    fn kill_before_the_mark(&mut self) -> Result<bool, StageError> {
        let Some(collector) = self.collector.pid() else { return Ok(false) };
        self.webhook.becomes(Manner::AnswersAStopped(collector));
        let answered = until("a message comes", 60.s(), || match self.webhook.manner() {
            Manner::AnswersAStopped(_) | Manner::Answering => Err("not yet".to_owned()),
            _ => Ok(()),
        });
        self.collector.kill()?;
        Ok(answered.is_ok())
    }

    /// All is well again: what was told is resolved, and both sums agree.
    fn ends(mut self) -> Result<Course, StageError> {
        self.load.recovers();
        nothing_is_stuck(&self.collector, &["http.status", "agent.missing"])?;
        // What a kill leaves in the log of changes is no damage.
        let mut damage = self.collector.items("incidents", "")?;
        damage.retain(|it| it["check"] == "collector.store");
        assert!(damage.is_empty(), "{}", titles(&damage));
        // Before the agent ends in order, which cuts a request short and says it again.
        until("what was committed and not acknowledged came again", 30.s(), || match self.repeated() {
            Ok(repeated) if repeated == self.owed => Ok(()),
            other => Err(format!("{other:?} of {} records", self.owed)),
        })?;
        let repeated = self.owed;
        self.agent.stop()?;
        are_whole(&self.collector, &[&self.agent])?;
        until("the outbox is empty", 60.s(), || self.promises().map_err(|error| error.to_string()))?;
        let (messages_repeated, attempts_uncertain) = self.repeats_are_counted()?;
        Ok(Course { hits: self.hits, repeated, messages_repeated, attempts_uncertain })
    }

    /// A message comes again only where an attempt at it ended nobody knows how, and the collector says so: how many came
    /// again, and how many attempts did.
    fn repeats_are_counted(&self) -> Result<(usize, u64), StageError> {
        let store = self.collector.directory().join("store.db");
        let text = run(Command::new(installed("/usr/bin/python3", "python3")?).args(["-c", MESSAGES]).arg(store))?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let uncertain: BTreeMap<&str, u64> = lines.filter_map(|(id, it)| Some((id, it.parse().ok()?))).collect();
        let mut heard: BTreeMap<String, u64> = BTreeMap::new();
        for it in self.webhook.heard()? {
            *heard.entry(it.id).or_default() += 1;
        }
        for (id, times) in &heard {
            let uncertain = uncertain.get(id.as_str());
            let is_explained = uncertain.is_some_and(|it| *times <= it + 1);
            assert!(is_explained, "{id} came {times} times, and {uncertain:?} attempts at it are uncertain");
        }
        Ok((heard.values().filter(|times| **times > 1).count(), uncertain.values().sum()))
    }

    /// A message has one id and one content; whoever heard that it fires hears that it is over.
    fn promises(&self) -> Result<(), StageError> {
        let failed = |said: String| StageError::Failed { what: "a promise to a receiver".into(), said };
        let mut bodies: BTreeMap<String, String> = BTreeMap::new();
        let mut decided: BTreeMap<(String, String, String), BTreeSet<String>> = BTreeMap::new();
        let mut last: BTreeMap<String, Message> = BTreeMap::new();
        let at = |it: &Message| it.json["decided_at"].as_str().unwrap_or_default().to_owned();
        for it in self.webhook.heard()? {
            if it.json["incident"]["check"] != "http.status" {
                continue;
            }
            let incident = it.json["incident"]["id"].to_string();
            if bodies.insert(it.id.clone(), it.body.clone()).is_some_and(|before| before != it.body) {
                return Err(failed(format!("{} came with two contents", it.id)));
            }
            if matches!(it.kind(), "incident.firing" | "incident.resolved") {
                let key = (incident.clone(), it.kind().to_owned(), it.json["incident"]["occurrences"].to_string());
                let ids = decided.entry(key).or_default();
                ids.insert(it.id.clone());
                if ids.len() > 1 {
                    return Err(failed(format!("decided twice: {ids:?} of {incident}")));
                }
                if last.get(&incident).is_none_or(|before| at(before) <= at(&it)) {
                    last.insert(incident, it);
                }
            }
        }
        match last.values().find(|it| it.kind() != "incident.resolved") {
            Some(it) => Err(failed(format!("nobody was told that it is over: {}", it.body))),
            None => Ok(()),
        }
    }
}

/// A count of both lanes together.
fn total(lanes: &Value, what: &str) -> u64 {
    lanes.as_array().into_iter().flatten().filter_map(|it| it[what].as_u64()).sum()
}

/// Urgent records that wait, by the files of the buffer.
fn backlog(agent: &Agent) -> Result<u64, StageError> {
    Ok(agent.report("buffer stat", &[])?["lanes"][0]["backlog"].as_u64().unwrap_or_default())
}

#[test]
fn kills_at_any_moment_lose_nothing_and_count_nothing_twice() {
    let cycles = number("TICKBIRD_KILL_CYCLES").map_or(CYCLES, |it| it as usize);
    let longest = 600.s() + Duration::from_secs(4) * cycles as u32;
    alone_within(longest, |stage| {
        let seed = number("TICKBIRD_KILL_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
        let cycles = number("TICKBIRD_KILL_CYCLES").map_or(CYCLES, |it| it as usize);
        println!("TICKBIRD_KILL_SEED={seed}");
        let outcomes: Vec<Result<Course, StageError>> = std::thread::scope(|scope| {
            let pairs: Vec<_> = (0..PAIRS)
                .map(|pair| {
                    scope.spawn(move || {
                        let mut it = Pair::begin(stage, seed.wrapping_mul(pair as u64 * 2 + 3))?;
                        for cycle in (pair..cycles).step_by(PAIRS) {
                            it.cycle(WINDOWS[cycle / PAIRS % WINDOWS.len()])?;
                        }
                        it.ends()
                    })
                })
                .collect();
            pairs.into_iter().map(|pair| pair.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let mut all = Course::default();
        for outcome in outcomes {
            let it = outcome?;
            for (window, count) in it.hits {
                *all.hits.entry(window).or_default() += count;
            }
            all.repeated += it.repeated;
            all.messages_repeated += it.messages_repeated;
            all.attempts_uncertain += it.attempts_uncertain;
        }
        let Course { hits, repeated, messages_repeated, attempts_uncertain } = all;
        report(&format!(
            "{cycles} kills, seed {seed}, by window: {hits:?}; nothing lost, nothing counted twice; {repeated} records came again, \
             as had to, {messages_repeated} messages of {attempts_uncertain} uncertain attempts"
        ))?;
        for window in WINDOWS {
            let count = hits.get(&window).copied().unwrap_or_default();
            assert!(count >= LEAST, "{window:?} was hit {count} times in {cycles} cycles");
        }
        Ok(())
    });
}
