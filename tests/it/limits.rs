//! One agent cannot hurt the rest: eleven that misbehave, each in a way of its own, beside many that do not.
//!
//! What they do is refused as documented and counted under their names, and the others' acknowledgements take no longer than
//! twice what they take while the eleven are quiet, also the slowest of a hundred.

mod misdeeds;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tickbird_tests::alone::alone_within;
use tickbird_tests::collector::titles;
use tickbird_tests::https::{Connection, knock};
use tickbird_tests::report::report;
use tickbird_tests::simulated::RECORDS;
use tickbird_tests::{Collector, Seconds, Simulated, Stage, StageError, alone, until};

use misdeeds::{MISDEEDS, Misdeed, Seen};

/// How many behave well; 50 without it, and 2,000 is what DESIGN.md speaks of.
const AGENTS: &str = "TICKBIRD_LIMITS_AGENTS";
/// Quiet and loud by turns, so often, and each so short that whatever else this machine does falls on both alike.
const ROUNDS: usize = 60;
/// Fewer of them when each has many.
const LEAST_ROUNDS: usize = 6;
/// Agents behind one address: half of what one address may have.
const EACH_ADDRESS: usize = 500;
/// How many times as long it may take beside the eleven: one that behaves well, and one in a hundred.
const BOUNDS: [(&str, f64, f64); 2] = [("the median", 0.5, 2.0), ("the 99th percentile", 0.99, 3.0)];
/// How long each of the eleven rests between two deeds.
const PAUSE: Duration = Duration::from_millis(20);

fn agents() -> usize {
    std::env::var(AGENTS).ok().and_then(|it| it.parse().ok()).unwrap_or(50)
}

/// After which the collector closes a connection. A turn of all that behave well takes a while when they are many.
fn idle() -> Duration {
    if agents() > 100 { Duration::from_millis(100) * agents() as u32 } else { 3.s() }
}

/// A collector that is less patient than the shipped one, so that patience ends within a test.
fn impatient(stage: &Stage) -> Result<Collector, StageError> {
    let mut collector = Collector::init(stage)?;
    let idle = idle().as_secs();
    collector.configure(&format!("\n[limits]\nidle_time = \"{idle}s\"\nbody_time = \"2s\"\nanswer_time = \"2s\"\n"))?;
    collector.serve()?;
    Ok(collector)
}

/// A token for so many agents.
fn token(collector: &Collector, uses: usize) -> Result<String, StageError> {
    let made = collector.command(&["token", "create", "--json", "--uses", &uses.to_string()])?;
    let wrong = || StageError::Malformed { what: "token create --json".into(), found: made.clone() };
    let made: Value = serde_json::from_str(&made).map_err(|_| wrong())?;
    made["token"].as_str().map(str::to_owned).ok_or_else(wrong)
}

/// An agent that behaves well: one connection, one batch after another.
struct Good {
    agent: Simulated,
    connection: Connection,
    next: u64,
}

impl Good {
    fn new(stage: &Stage, collector: &Collector, token: &str) -> Result<Self, StageError> {
        let agent = Simulated::enrolled(stage, collector, token)?;
        let connection = agent.connect()?;
        Ok(Self { agent, connection, next: 1 })
    }

    /// One of many, the so-manieth. Five hundred share an address, and wait for their turn as agents do.
    fn one_of_many(agent: Simulated, number: usize) -> Result<Self, StageError> {
        let from = Ipv4Addr::new(127, 0, 1, 1 + (number / EACH_ADDRESS) as u8);
        let beat = agent.batch("urgent", 1, &[]).to_string();
        let connection = until("an agent is let in", 30.s(), || {
            let text = |error: StageError| error.to_string();
            let mut connection = agent.connect_from(from).map_err(text)?;
            let answer = connection.ask("POST", RECORDS, "", beat.as_bytes()).map_err(text)?;
            if answer.status == 200 { Ok(connection) } else { Err(answer.body) }
        })?;
        Ok(Self { agent, connection, next: 1 })
    }

    /// Sends a batch; how long its acknowledgement took.
    fn sends(&mut self) -> Result<Duration, StageError> {
        let finding = self.agent.finding("pool:shop", &serde_json::json!({ "pid": 4121 }));
        let body = self.agent.batch("urgent", self.next, &[finding]).to_string();
        let began = Instant::now();
        let answer = self.connection.ask("POST", RECORDS, "", body.as_bytes())?;
        let took = began.elapsed();
        if answer.status == 200 && answer.json()?["through"] == self.next {
            self.next += 1;
            return Ok(took);
        }
        Err(StageError::Failed { what: "a batch of an agent that behaves well".into(), said: answer.body })
    }
}

/// Whether the eleven misbehave now, who of them rests, and what they were answered.
struct Stir {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    loud: bool,
    /// It was loud once: those who only wait go on with it.
    begun: bool,
    over: bool,
    resting: usize,
    deeds: Vec<u64>,
    seen: Vec<BTreeSet<Seen>>,
}

impl Stir {
    fn new(count: usize) -> Self {
        let seen = vec![BTreeSet::new(); count];
        let state = State { loud: false, begun: false, over: false, resting: 0, deeds: vec![0; count], seen };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let told = act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        told
    }

    /// One of them: does its deed again and again while it is loud.
    fn misbehave(&self, index: usize, agent: &Simulated, misdeed: &Misdeed) {
        // The agents are other machines in truth: what their side costs must not be taken from the collector. A thread
        // has a priority of its own.
        let _ = rustix::process::setpriority_process(None, 19);
        let mut deed = (misdeed.prepare)(agent);
        loop {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let begun = state.loud || (misdeed.waits && state.begun);
            if !begun {
                state.resting += 1;
                self.changed.notify_all();
                state =
                    self.changed.wait_while(state, |it| !it.loud && !it.over).unwrap_or_else(PoisonError::into_inner);
                state.resting -= 1;
            }
            if state.over {
                return;
            }
            // In its eyes a pause; fifty times a second in the collector's.
            drop(self.changed.wait_timeout_while(state, PAUSE, |it| !it.over).unwrap_or_else(PoisonError::into_inner));
            // A connection that is cut in the middle is one of the answers.
            let seen = deed().unwrap_or_default();
            self.with(|state| {
                state.deeds[index] += 1;
                state.seen[index].extend(seen);
            });
        }
    }

    /// Waits until none of them does anything but wait; the others go on meanwhile, as they always do.
    fn rest(&self, count: usize, good: &mut [Good]) -> Result<(), StageError> {
        self.with(|state| state.loud = false);
        until("the eleven rest", 30.s(), || {
            for it in good.iter_mut() {
                it.sends().map_err(|error| error.to_string())?;
            }
            let resting = self.with(|state| state.resting);
            if resting >= count { Ok(()) } else { Err(format!("{resting} rest")) }
        })
    }
}

/// What so large a share of them is not above.
fn percentile(of: &[f64], share: f64) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() as f64 * share) as usize]
}

/// A batch of each; how long each took, in milliseconds.
fn sweep(all: &mut [Good]) -> Result<Vec<f64>, StageError> {
    all.iter_mut().map(|good| Ok(1000.0 * good.sends()?.as_secs_f64())).collect()
}

/// The name of the metric that counts how often an agent exceeded a limit; it is there from the first time on.
fn metric(agent: &str, limit: &str) -> String {
    format!("tickbird_agent_excess_total{{agent=\"{agent}\",limit=\"{limit}\"}}")
}

#[test]
fn eleven_misbehaving_agents_are_refused_by_name_and_the_others_do_not_feel_it() {
    alone_within(300.s() + Duration::from_millis(500 * agents() as u64), |stage| {
        let limit = getrlimit(Resource::Nofile);
        // Each agent is a connection of this process.
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
            .map_err(|error| StageError::system("raise the limit on open files")(error.into()))?;
        let collector = impatient(stage)?;
        let token = token(&collector, agents() + MISDEEDS.len())?;
        let rogues = MISDEEDS.iter().map(|_| Simulated::enrolled(stage, &collector, &token));
        let rogues = rogues.collect::<Result<Vec<_>, _>>()?;
        let enrolled = (0..agents()).map(|_| Simulated::enrolled(stage, &collector, &token));
        let enrolled = enrolled.collect::<Result<Vec<_>, _>>()?;
        let good = enrolled.into_iter().enumerate().map(|(number, agent)| Good::one_of_many(agent, number));
        let mut good = good.collect::<Result<Vec<_>, _>>()?;
        let stir = Stir::new(rogues.len());
        let (quiet, loud) = thread::scope(|scope| {
            let stir = &stir;
            let begin = |(index, (agent, misdeed))| scope.spawn(move || stir.misbehave(index, agent, misdeed));
            let threads: Vec<_> = rogues.iter().zip(MISDEEDS).enumerate().map(begin).collect();
            let measured = measure(stir, &mut good);
            stir.with(|state| state.over = true);
            // Those who wait come to an end later, and whoever behaves well does not fall silent meanwhile.
            until("the eleven have ended", idle() + 30.s(), || {
                sweep(&mut good).map_err(|error| error.to_string())?;
                let at_it = threads.iter().filter(|it| !it.is_finished()).count();
                if at_it == 0 { Ok(()) } else { Err(format!("{at_it} are at it")) }
            })?;
            measured
        })?;
        for (what, share, most) in BOUNDS {
            let (quiet, loud) = (percentile(&quiet, share), percentile(&loud, share));
            report(&format!("{what} acknowledged after {quiet:.2} ms in quiet, and {loud:.2} ms beside the eleven"))?;
            assert!(loud <= most * quiet, "{what} took {loud:.2} ms beside the eleven, and {quiet:.2} ms without");
        }

        let (seen, deeds) = stir.with(|state| (state.seen.clone(), state.deeds.clone()));
        for ((misdeed, seen), deeds) in MISDEEDS.iter().zip(&seen).zip(&deeds) {
            println!("{}: {deeds} times, answered {seen:?}", misdeed.name);
            for (status, code) in misdeed.answers {
                assert!(seen.contains(&(*status, (*code).to_owned())), "{}: {status} {code} in {seen:?}", misdeed.name);
            }
        }
        everyone_is_named(&collector, &rogues, &good)
    });
}

/// The acknowledgements' latencies while the eleven are quiet and while they are loud, in milliseconds.
fn measure(stir: &Stir, good: &mut [Good]) -> Result<(Vec<f64>, Vec<f64>), StageError> {
    // Those who only wait cost nothing while they do, and are not waited for.
    let count = MISDEEDS.iter().filter(|it| !it.waits).count();
    let (mut quiet, mut loud) = (Vec::new(), Vec::new());
    // The first batch of each is also a handshake.
    sweep(good)?;
    for _ in 0..(ROUNDS * 50 / agents()).clamp(LEAST_ROUNDS, ROUNDS) {
        stir.rest(count, good)?;
        quiet.extend(sweep(good)?);
        let done = |state: &mut State| state.deeds.iter().sum::<u64>();
        let before = stir.with(|state| {
            (state.loud, state.begun) = (true, true);
            done(state)
        });
        // Not before they are at it.
        until("the eleven are loud", 30.s(), || {
            let deeds = stir.with(done) - before;
            if deeds >= 1 { Ok(()) } else { Err("nothing yet".into()) }
        })?;
        loud.extend(sweep(good)?);
    }
    // Those who wait have to come to an end once.
    let last = |state: &mut State| state.deeds.iter().copied().min().unwrap_or_default();
    until("each of the eleven had its answer", idle() + 30.s(), || {
        sweep(good).map_err(|error| error.to_string())?;
        if stir.with(last) > 0 { Ok(()) } else { Err("one still waits".into()) }
    })?;
    Ok((quiet, loud))
}

/// In the API, in the command line's list, in the metrics and as an incident: each by its own name, and nobody else.
fn everyone_is_named(collector: &Collector, rogues: &[Simulated], good: &[Good]) -> Result<(), StageError> {
    for (rogue, misdeed) in rogues.iter().zip(MISDEEDS) {
        until(format!("what {} does is counted under its name", misdeed.name), idle() + 10.s(), || {
            // One answer for all: thousands of agents are many pages of a list, and who asks for pages without end is
            // refused a handshake.
            let metrics = collector.get("/metrics").map_err(|error| error.to_string())?.body;
            let missing = misdeed.counted.iter().find(|code| !metrics.contains(&metric(&rogue.id, code)));
            missing.map_or(Ok(()), |code| Err(format!("no {code} is counted")))
        })?;
    }
    let metrics = collector.get("/metrics")?.body;
    let list: Value = serde_json::from_str(&collector.command(&["agent", "list", "--json"])?)
        .map_err(|_| StageError::Malformed { what: "agent list --json".into(), found: String::new() })?;
    let listed = list["agents"].as_array().cloned().unwrap_or_default();
    for (rogue, misdeed) in rogues.iter().zip(MISDEEDS) {
        for code in misdeed.counted {
            assert!(metrics.contains(&metric(&rogue.id, code)), "{}: {code}", misdeed.name);
            let it = listed.iter().find(|it| it["id"] == *rogue.id).expect("is listed");
            assert!(it["excess"][code].as_u64() > Some(0), "{}: {it}", misdeed.name);
        }
    }
    let incidents = collector.items("incidents", "")?;
    let told: BTreeSet<&str> = incidents
        .iter()
        .filter(|it| it["check"] == "agent.excess")
        .filter_map(|it| it["agent"]["id"].as_str())
        .collect();
    for (rogue, misdeed) in rogues.iter().zip(MISDEEDS).filter(|(_, misdeed)| !misdeed.waits) {
        assert!(told.contains(rogue.id.as_str()), "{} is told of: {}", misdeed.name, titles(&incidents));
    }
    let of_firing = |it: &&Value| it["check"] == "agent.too_many_firing";
    let named: Vec<&str> = incidents.iter().filter(of_firing).filter_map(|it| it["agent"]["id"].as_str()).collect();
    let guilty = rogues.iter().zip(MISDEEDS).filter(|(_, it)| it.counted.contains(&"too_many_firing"));
    assert_eq!(named, guilty.map(|(rogue, _)| rogue.id.as_str()).collect::<Vec<_>>(), "{}", titles(&incidents));
    for it in good {
        assert!(!metrics.contains(&format!("agent=\"{}\"", it.agent.id)), "one that behaves well is not named");
        assert!(!told.contains(it.agent.id.as_str()), "{}", titles(&incidents));
    }
    Ok(())
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Sockets that are opened and say nothing, from an address that no agent has: they are closed without a handshake, and
/// an agent still gets in at once.
#[test]
fn a_source_that_floods_is_shut_out_and_agents_are_let_in() {
    alone(|stage| {
        let mut collector = Collector::init(stage)?;
        collector.serve()?;
        let mut known = Good::new(stage, &collector, collector.enrolment_token())?;
        known.sends()?;
        // As many as would take every place for a handshake together, if half of them were not kept for agents.
        let strangers: [Ipv4Addr; 5] = [2, 3, 4, 5, 6].map(|it| Ipv4Addr::new(127, 0, 0, it));
        let mut held = Vec::new();
        for round in 0..400 {
            for from in strangers {
                held.push(knock(from, collector.agents())?);
            }
            if round % 100 == 99 {
                let mut again = known.agent.connect()?;
                let beat = known.agent.batch("urgent", known.next, &[]).to_string();
                let answer = again.ask("POST", RECORDS, "", beat.as_bytes())?;
                assert_eq!(answer.status, 200, "round {round}: {}", answer.body);
            }
        }
        known.sends()?;
        let refused = |reason: &str| {
            let metrics = collector.get("/metrics").map_err(|error| error.to_string())?.body;
            let of = format!("tickbird_connections_refused_total{{reason=\"{reason}\"}}");
            if metrics.contains(&of) { Ok(()) } else { Err(format!("nobody was refused for {reason}")) }
        };
        until("who took more than a share of the places is counted", 10.s(), || refused("handshakes"))?;
        // One that hangs up at once takes no place for long, and is held to so many a second.
        let hasty = Ipv4Addr::new(127, 0, 0, 7);
        until("who begins too many a second is counted", 60.s(), || {
            for _ in 0..500 {
                // Refused or not.
                drop(knock(hasty, collector.agents()));
            }
            refused("source_rate")
        })?;
        // The first of all had its place, and said nothing: it does not keep it.
        let waits = held[0].set_read_timeout(Some(60.s())).and_then(|()| held[0].read(&mut [0; 16]));
        assert!(!matches!(&waits, Err(error) if is_timeout(error)), "a silent one was let wait: {waits:?}");
        Ok(())
    });
}
