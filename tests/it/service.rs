//! What a service manager hears of both programs: readiness, signs of life, the end.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tickbird_tests::agent::User;
use tickbird_tests::process::Running;
use tickbird_tests::simulated::RECORDS;
use tickbird_tests::{Agent, Collector, Seconds, Simulated, Stage, StageError, alone, until};

/// A service manager's end of `sd_notify`, and the service.
struct Managed {
    socket: UnixDatagram,
    process: Running,
    heard: Vec<String>,
}

impl Managed {
    fn start(name: &str, command: &mut Command, room: PathBuf) -> Result<Self, StageError> {
        let path = room.join("notify");
        let socket = UnixDatagram::bind(&path).map_err(StageError::system("bind the socket"))?;
        let waits = Some(Duration::from_millis(100));
        socket.set_read_timeout(waits).map_err(StageError::system("set a time limit"))?;
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000").stdin(Stdio::null()).stdout(Stdio::null());
        let process = Running::start(name, command, &room.join("log"))?;
        Ok(Self { socket, process, heard: Vec::new() })
    }

    /// Waits until `word` was said so many times.
    fn hears(&mut self, word: &str, times: usize) -> Result<(), StageError> {
        until(format!("{word} is said {times} times"), 30.s(), || {
            let mut said = [0; 512];
            while let Ok(bytes) = self.socket.recv(&mut said) {
                self.heard.extend(String::from_utf8_lossy(&said[..bytes]).lines().map(str::to_owned));
            }
            let count = self.heard.iter().filter(|it| *it == word).count();
            if count >= times { Ok(()) } else { Err(format!("{:?}", self.heard)) }
        })
    }

    /// How often a sign of life is given within `time`.
    fn signs_within(&mut self, time: Duration) -> usize {
        self.heard.clear();
        let end = Instant::now() + time;
        let mut said = [0; 512];
        while Instant::now() < end {
            if let Ok(bytes) = self.socket.recv(&mut said) {
                self.heard.extend(String::from_utf8_lossy(&said[..bytes]).lines().map(str::to_owned));
            }
        }
        self.heard.iter().filter(|it| *it == "WATCHDOG=1").count()
    }

    fn lives_as_told(mut self) -> Result<(), StageError> {
        self.hears("READY=1", 1)?;
        assert_eq!(self.heard[0], "READY=1", "first of all");
        self.hears("WATCHDOG=1", 3)?;
        self.process.signal(Signal::TERM);
        self.hears("STOPPING=1", 1)?;
        let status = self.process.ends(30.s())?;
        assert!(status.success(), "{status}");
        assert_eq!(self.heard.iter().filter(|it| *it == "READY=1").count(), 1, "{:?}", self.heard);
        Ok(())
    }
}

fn agent(stage: &Stage) -> Result<Managed, StageError> {
    let agent = Agent::prepare(stage, "", User::Same)?;
    let mut command = Command::new(agent.binary());
    command.args(["run", "--config"]).arg(agent.configuration());
    Managed::start("tickbird-agent", &mut command, stage.room("service")?)
}

fn collector(stage: &Stage, directory: &Path) -> Result<Managed, StageError> {
    let mut command = Command::new(stage.binary("tickbird-collector")?);
    command.args(["serve", "--dir"]).arg(directory);
    Managed::start("tickbird-collector", &mut command, stage.room("service")?)
}

#[test]
fn both_say_when_they_are_ready_that_they_live_and_that_they_end() {
    alone(|stage| {
        agent(stage)?.lives_as_told()?;
        let made = Collector::init(stage)?;
        collector(stage, made.directory())?.lives_as_told()
    });
}

/// A stopped process says nothing in any case; this one runs, and its ledger cannot go on.
#[test]
fn a_collector_whose_ledger_hangs_gives_no_sign_of_life() {
    alone(|stage| {
        let made = Collector::init(stage)?;
        let mut it = collector(stage, made.directory())?;
        it.hears("WATCHDOG=1", 2)?;
        let store = made.directory().join("store.db");
        let mut writer = Command::new("/usr/bin/python3");
        writer.arg("-c").arg(HOLDS).arg(&store).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut writer = Running::start("another writer", &mut writer, &stage.room("writer")?.join("log"))?;
        until("the ledger waits for the other writer", 30.s(), || {
            // More than twice the time in which it is to say something.
            match it.signs_within(Duration::from_millis(2_500)) {
                0 => Ok(()),
                signs => Err(format!("{signs} signs of life")),
            }
        })?;
        writer.kill()?;
        it.heard.clear();
        it.hears("WATCHDOG=1", 2)?;
        it.process.stop().map(drop)
    });
}

/// Takes the write lock of the store and keeps it.
const HOLDS: &str = "
import sqlite3, sys, time
store = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
store.execute('BEGIN IMMEDIATE')
sys.stdin.read()
";

/// The collector is told to stop while a batch is half said: it hears the rest, keeps it, answers, and only then ends.
#[test]
fn a_collector_that_is_told_to_stop_ends_what_it_has_begun_and_begins_nothing() {
    alone(|stage| {
        let mut collector = Collector::init(stage)?;
        collector.serve()?;
        let agent = Simulated::enrolled(stage, &collector, collector.enrolment_token())?;
        let target = "pool:shop/main>10.0.0.5:5432/app";
        let batch = agent.batch("urgent", 1, &[agent.finding(target, &serde_json::json!({}))]).to_string();
        let (said, rest) = batch.split_at(batch.len() / 2);
        let mut connection = agent.connect()?;
        let length = batch.len();
        connection.say(&format!(
            "POST {RECORDS} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        ))?;
        // So it has begun: who is told to stop before that ends the connection, and the agent comes again.
        connection.hears("HTTP/1.1 100 Continue\r\n\r\n")?;
        connection.say(said)?;
        collector.signal(Signal::TERM);
        until("the collector drains", 10.s(), || match collector.log() {
            log if log.contains("collector drains") => Ok(()),
            log => Err(log),
        })?;
        until("nobody new is let in", 10.s(), || match agent.connect() {
            Err(_) => Ok(()),
            Ok(_) => Err("one was".to_owned()),
        })?;
        connection.say(rest)?;
        let answer = connection.answer()?;
        assert_eq!((answer.status, answer.json()?["through"].as_u64()), (200, Some(1)), "{}", answer.body);
        assert!(collector.ends()?.success(), "{}", collector.log());
        collector.serve()?;
        let kept = collector.items("findings", "")?;
        assert!(kept.iter().any(|it| it["target"] == target), "{kept:?}");
        Ok(())
    });
}
